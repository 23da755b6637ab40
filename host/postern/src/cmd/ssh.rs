//! `postern ssh`: the user's own OpenSSH, started with what it needs to know.

use crate::cli::Global;
use crate::failure::Failure;
use crate::openssh::{self, Login};
use crate::profile::{Home, Profile};
use crate::resolve::{self, Named};
use clap::Args;
use postern_identity::ResourceId;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Open a shell on a server, or run a command there
///
/// Starts your own OpenSSH client, so that its options, configuration and agent forwarding work as you know them.
/// Options before and after NAME are OpenSSH's. The exit status is that of the command.
#[derive(Debug, Args)]
#[command(
    override_usage = "postern ssh [SSH OPTIONS] [LOGIN@]NAME [COMMAND]...",
    after_help = "\
Examples:
  postern ssh web-1
  postern ssh root@web-1 systemctl status nginx
  postern ssh -L 8080:127.0.0.1:80 root@web-1
  tar c site | postern ssh root@web-1 tar x -C /srv

For scp, sftp, rsync and Ansible see: postern config --help"
)]
pub struct SshArgs {
    /// [SSH OPTIONS] [LOGIN@]NAME [COMMAND]...
    #[arg(
        value_name = "ARGS",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true
    )]
    args: Vec<OsString>,
}

pub fn run(global: &Global, args: SshArgs) -> Result<(), Failure> {
    let line = split(args.args)?;
    let home = Home::locate(global.home.as_deref())?;
    let profile = home.logged_in()?;
    let id = server(&line.name, &profile)?;
    if !home.ssh_cert().exists() {
        return Err(Failure::new(format!(
            "your roles ({}) allow no login on any server; ask your administrator",
            crate::out::list(&profile.roles)
        )));
    }
    let login = match line.login {
        Some(login) => Some(login),
        None if line.login_by_option => None,
        None => match openssh::default_login(&profile.logins, &local_user()) {
            Login::Own => None,
            Login::Is(login) => Some(login.to_owned()),
            Login::Ambiguous if configured(&id.dns(&profile.cluster), &profile.logins) => None,
            Login::Ambiguous => {
                let first = &profile.logins[0];
                return Err(Failure::usage(format!(
                    "as whom? You may log in as {}; run: postern ssh {first}@{}",
                    profile.logins.join(", "),
                    line.name
                )));
            }
        },
    };
    let dns = id.dns(&profile.cluster);
    let mut command = Command::new("ssh");
    for (key, value) in openssh::options(&home, &program()?, &dns)? {
        command.arg("-o").arg(format!("{key}={value}"));
    }
    // The name that the certificate has to show, whatever HostName the user's configuration makes of it.
    command.arg("-o").arg(format!("HostKeyAlias={dns}"));
    command.args(line.before);
    if let Some(login) = login {
        command.arg("-l").arg(login);
    }
    // `postern ssh web-1 -- ls` is how many write it; OpenSSH would make the second `--` part of the command.
    let after = match line.after.split_first() {
        Some((first, rest)) if first == "--" => rest,
        _ => &line.after[..],
    };
    command.arg("--").arg(dns).args(after);
    // Becomes ssh: exit status, signals and the terminal are its own.
    let e = command.exec();
    Err(Failure::new(match e.kind() {
        std::io::ErrorKind::NotFound => "there is no OpenSSH client (ssh) in your PATH; install it (Debian: apt install openssh-client)".to_owned(),
        _ => format!("cannot start ssh: {e}"),
    }))
}

/// Whether the user's own OpenSSH configuration names a login that is allowed.
fn configured(dns: &str, logins: &[String]) -> bool {
    let Ok(shown) = Command::new("ssh").args(["-G", "--", dns]).output() else {
        return false;
    };
    let shown = String::from_utf8_lossy(&shown.stdout);
    let user = shown.lines().find_map(|l| l.strip_prefix("user "));
    user.is_some_and(|user| logins.iter().any(|l| l == user))
}

/// A server's name needs no look-up: its kind is known.
fn server(name: &str, profile: &Profile) -> Result<ResourceId, Failure> {
    match resolve::parse(name, &profile.cluster)? {
        Named::Bare(name) => Ok(ResourceId::new("ssh", &name)?),
        Named::Full(id) if id.kind == "ssh" => Ok(id),
        Named::Full(id) => Err(Failure::usage(format!(
            "{name} is not a server but of kind {}; run: postern proxy {name}",
            id.kind
        ))),
    }
}

/// This executable, for OpenSSH to start.
pub fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|e| Failure::new(format!("cannot tell where this program is: {e}")))
}

/// The name of the user who runs us.
pub fn local_user() -> String {
    let by_uid = || {
        nix::unistd::User::from_uid(nix::unistd::getuid())
            .ok()
            .flatten()
            .map(|u| u.name)
    };
    by_uid()
        .or_else(|| std::env::var("USER").ok())
        .unwrap_or_default()
}

/// An ssh command line, taken apart at the name.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    before: Vec<OsString>,
    login: Option<String>,
    name: String,
    /// Options (OpenSSH reads them there too) and the command.
    after: Vec<OsString>,
    /// `-l` or `-o User=` was given.
    login_by_option: bool,
}

/// Options of ssh(1) that take an argument.
const WITH_ARGUMENT: &str = "bBcDeEFIiJlLmoOpPQRSwW";

fn split(args: Vec<OsString>) -> Result<Line, Failure> {
    let usage =
        || Failure::usage("which server? Run: postern ssh [LOGIN@]NAME, see: postern ls ssh");
    let mut line = Line {
        before: Vec::new(),
        login: None,
        name: String::new(),
        after: Vec::new(),
        login_by_option: false,
    };
    let mut args = args.into_iter();
    let destination = loop {
        let arg = args.next().ok_or_else(usage)?;
        let text = arg.to_string_lossy().into_owned();
        match text.strip_prefix('-') {
            Some("-") => break args.next().ok_or_else(usage)?,
            Some(flags) if !flags.is_empty() => {
                line.before.push(arg);
                if let Some((i, flag)) = flags
                    .char_indices()
                    .find(|(_, c)| WITH_ARGUMENT.contains(*c))
                {
                    let attached = &flags[i + flag.len_utf8()..];
                    let value = if attached.is_empty() {
                        let value = args.next().ok_or_else(|| {
                            Failure::usage(format!("ssh option -{flag} needs an argument"))
                        })?;
                        line.before.push(value.clone());
                        value.to_string_lossy().into_owned()
                    } else {
                        attached.to_owned()
                    };
                    line.login_by_option |= flag == 'l' || (flag == 'o' && sets_user(&value));
                }
            }
            _ => break arg,
        }
    };
    let destination = destination.into_string().map_err(|_| usage())?;
    let (login, name) = match destination.rsplit_once('@') {
        Some((login, name)) => (Some(login.to_owned()), name.to_owned()),
        None => (None, destination),
    };
    if login.as_deref() == Some("") || name.is_empty() {
        return Err(usage());
    }
    line.after.extend(args);
    line.login_by_option |= line
        .after
        .iter()
        .take_while(|a| a.to_string_lossy().starts_with('-'))
        .any(|a| a.to_string_lossy().starts_with("-l"));
    Ok(Line {
        login,
        name,
        ..line
    })
}

fn sets_user(option: &str) -> bool {
    let key = option.split(['=', ' ']).next().unwrap_or("");
    key.eq_ignore_ascii_case("user")
}

#[cfg(test)]
mod tests;
