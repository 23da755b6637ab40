//! What is shipped: the two programs, and the plugins beside them.

use crate::{paths, setup, sh};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Which optimisation the programs are built with; plugins are always built for release.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// Where cargo puts the programs.
    pub fn dir(self) -> PathBuf {
        paths::target().join(match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
        })
    }
}

#[derive(clap::Args)]
pub struct PluginArgs {
    /// Put them beside the release binaries instead of the debug ones
    #[arg(long)]
    release: bool,
}

/// `cargo xtask plugins`
pub fn plugins_command(args: PluginArgs) -> Result<()> {
    plugins(if args.release {
        Profile::Release
    } else {
        Profile::Dev
    })
}

/// Builds `posternd` and `postern`.
pub fn binaries(profile: Profile) -> Result<()> {
    // Always the whole workspace: with `-p` cargo would choose other features for the dependencies, and build them again.
    let mut build = sh::cargo(&["build", "--workspace", "--bins"]);
    if profile == Profile::Release {
        // The load generators of the benchmarks are examples.
        build.args(["--release", "--examples"]);
    }
    sh::run(&mut build)
}

/// Where the plugins are built.
pub fn plugin_target() -> PathBuf {
    paths::target().join("plugins")
}

/// Builds the plugins of `plugins/` and copies them where `posternd` looks: `plugins/NAME.wasm` beside itself.
/// Those of `plugins/testing` go to `plugins/testing` there too, where no name in a configuration finds them.
pub fn plugins(profile: Profile) -> Result<()> {
    setup::wasm_target()?;
    let mut build = sh::cargo(&[
        "build",
        "--workspace",
        "--release",
        "--target",
        "wasm32-wasip2",
    ]);
    build
        .arg("--manifest-path")
        .arg(paths::root().join("plugins/Cargo.toml"));
    sh::run(build.env("CARGO_TARGET_DIR", plugin_target()))?;
    let built = plugin_target().join("wasm32-wasip2/release");
    let into = profile.dir().join("plugins");
    let listed = std::fs::read_dir(&built)
        .with_context(|| format!("nothing was built in {}", built.display()))?;
    for file in listed
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "wasm"))
    {
        let (dir, name) = match shipped_name(&file) {
            Some((false, name)) => (into.clone(), name),
            Some((true, name)) => (into.join("testing"), name),
            None => continue,
        };
        put(&file, &dir.join(format!("{name}.wasm")))?;
    }
    Ok(())
}

/// `misbehave_ssh.wasm` is `misbehave-ssh`, a plugin for tests; `finger.wasm`, an example, is not shipped.
fn shipped_name(file: &Path) -> Option<(bool, String)> {
    let name = file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .replace('_', "-");
    let plugins = paths::root().join("plugins");
    let testing = plugins.join("testing").join(&name).is_dir();
    (testing || plugins.join(&name).is_dir()).then_some((testing, name))
}

/// Copies when the content differs, by rename: a running agent watches these files.
pub fn put(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let dir = to.parent().context("no parent")?;
    std::fs::create_dir_all(dir)?;
    // The agent refuses plugins that others may write.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    let fresh = to.with_extension("new");
    std::fs::write(&fresh, content)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(&fresh, to).with_context(|| format!("cannot put {}", to.display()))
}
