//! componentize-py, for the example plugin in Python: makes a component of Python source and an interpreter.

use crate::{paths, sh};
use anyhow::{Context, Result};
use std::path::PathBuf;

const VERSION: &str = "0.25.1";

/// A wrapper that runs `componentize-py` out of `target/tools`, installed if need be. `None`, said aloud, where there is no
/// Python with pip, or PyPI does not have it for this machine.
pub fn componentize_py() -> Option<PathBuf> {
    installed()
        .map_err(|e| eprintln!("  no componentize-py, so no example in Python: {e:#}"))
        .ok()
}

fn installed() -> Result<PathBuf> {
    let dir = paths::tools().join(format!("componentize-py-{VERSION}"));
    let wrapper = dir.join("componentize-py");
    if sh::is_executable(&wrapper) {
        return Ok(wrapper);
    }
    let python = super::tools::python()?;
    let libs = dir.join("lib");
    eprintln!(
        "  installing componentize-py {VERSION} from PyPI into {}",
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
    ])
    .args(["--only-binary=:all:", "--target"])
    .arg(&libs);
    sh::output(pip.arg(format!("componentize-py=={VERSION}")))
        .context("componentize-py cannot be had from PyPI")?;
    let script = format!(
        "#!/bin/sh\nexport PYTHONPATH='{}'\nexec '{}' -c 'from componentize_py import script; script()' \"$@\"\n",
        libs.display(),
        python.display()
    );
    std::fs::write(&wrapper, script)?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
    Ok(wrapper)
}
