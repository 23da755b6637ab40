//! Python programs from PyPI, each in a directory of its own in `target/tools`.

use crate::{paths, sh};
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// What is installed, and how it is started.
pub struct Program {
    /// Its name on PyPI.
    pub package: &'static str,
    pub version: &'static str,
    /// What else is installed beside it, as pip takes it.
    pub also: &'static [&'static str],
    /// What the wrapper is called.
    pub name: &'static str,
    /// What Python is given to run it.
    pub run: &'static str,
    /// Refuse what would have to be built.
    pub only_binary: bool,
}

impl Program {
    /// A wrapper that runs it, installed if need be.
    pub fn installed(&self) -> Result<PathBuf> {
        let Program {
            package, version, ..
        } = self;
        let dir = paths::tools().join(format!("{package}-{version}"));
        let wrapper = dir.join(self.name);
        if sh::is_executable(&wrapper) {
            return Ok(wrapper);
        }
        let python = super::tools::python()?;
        let libs = dir.join("lib");
        eprintln!(
            "  installing {package} {version} from PyPI into {}",
            libs.display()
        );
        let mut pip = sh::cmd(&python, &["-m", "pip", "install", "--quiet"]);
        pip.args([
            "--disable-pip-version-check",
            "--no-warn-conflicts",
            "--upgrade",
            "--root-user-action=ignore",
        ]);
        if self.only_binary {
            pip.arg("--only-binary=:all:");
        }
        pip.arg("--target").arg(&libs);
        sh::output(pip.arg(format!("{package}=={version}")).args(self.also))
            .with_context(|| format!("{package} cannot be had from PyPI"))?;
        let script = format!(
            "#!/bin/sh\nexport PYTHONPATH='{}'\nexec '{}' {} \"$@\"\n",
            libs.display(),
            python.display(),
            self.run
        );
        std::fs::write(&wrapper, script)?;
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
        Ok(wrapper)
    }
}
