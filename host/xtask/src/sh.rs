//! Running other programs: say what is run, and make a failure name the command.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A command in the checkout's root.
pub fn cmd<S: AsRef<OsStr>>(program: S, args: &[&str]) -> Command {
    let mut c = Command::new(program);
    c.args(args).current_dir(crate::paths::root());
    c
}

/// The cargo that runs us.
pub fn cargo(args: &[&str]) -> Command {
    cmd(
        std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        args,
    )
}

/// Prints and runs it; an exit status other than 0 is an error.
pub fn run(c: &mut Command) -> Result<()> {
    let shown = show(c);
    eprintln!("  $ {shown}");
    let started = Instant::now();
    let status = c
        .status()
        .with_context(|| format!("cannot start: {shown}"))?;
    if !status.success() {
        bail!("{status} after {:.0?}: {shown}", started.elapsed());
    }
    Ok(())
}

/// Runs it quietly; gives what it printed on stdout.
pub fn output(c: &mut Command) -> Result<String> {
    let shown = show(c);
    let out = c
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start: {shown}"))?;
    if !out.status.success() {
        bail!(
            "{}: {shown}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Whether it runs and exits with 0; its output is dropped.
pub fn works(c: &mut Command) -> bool {
    c.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// A heading, so that a long log can be skimmed.
pub fn phase(title: &str) {
    eprintln!("\n== {title}");
}

/// Finds a program in PATH, and where Debian puts what only root needs.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|p| is_executable(p))
}

/// A file that somebody may execute.
pub fn is_executable(p: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    p.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn show(c: &Command) -> String {
    let program = Path::new(c.get_program()).file_name().unwrap_or_default();
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(c.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}
