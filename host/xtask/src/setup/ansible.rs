//! Ansible, for the end-to-end tests: a whole tool that people drive over ssh.

use crate::{paths, sh};
use anyhow::{Context, Result};
use std::path::PathBuf;

const VERSION: &str = "2.18.19";

/// A wrapper that runs `ansible` out of `target/tools`, installed if need be.
pub fn ansible() -> Result<PathBuf> {
    let dir = paths::tools().join(format!("ansible-core-{VERSION}"));
    let wrapper = dir.join("ansible");
    if sh::is_executable(&wrapper) {
        return Ok(wrapper);
    }
    let python = super::tools::python()?;
    let libs = dir.join("lib");
    eprintln!(
        "  installing ansible-core {VERSION} from PyPI into {}",
        libs.display()
    );
    let mut pip = sh::cmd(
        &python,
        &[
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ],
    );
    pip.args([
        "--no-warn-conflicts",
        "--upgrade",
        "--root-user-action=ignore",
        "--target",
    ])
    .arg(&libs);
    sh::output(pip.arg(format!("ansible-core=={VERSION}")))
        .context("ansible-core cannot be had from PyPI")?;
    let script = format!(
        "#!/bin/sh\nexport PYTHONPATH='{}'\nexec '{}' -m ansible adhoc \"$@\"\n",
        libs.display(),
        python.display()
    );
    std::fs::write(&wrapper, script)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
    Ok(wrapper)
}
