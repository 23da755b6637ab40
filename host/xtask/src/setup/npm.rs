//! oidc-provider from the npm registry, for the end-to-end tests: a real issuer of OpenID Connect tokens.

use crate::{paths, sh};
use anyhow::{Context, Result};
use std::path::PathBuf;

const PACKAGE: &str = "oidc-provider";
const VERSION: &str = "9.13.3";

/// The `node_modules` that holds it, installed if need be.
pub fn oidc_provider() -> Result<PathBuf> {
    let dir = paths::tools().join(format!("{PACKAGE}-{VERSION}"));
    let modules = dir.join("node_modules");
    if modules.join(PACKAGE).join("package.json").is_file() {
        return Ok(modules);
    }
    eprintln!(
        "  installing {PACKAGE} {VERSION} from the npm registry into {}",
        dir.display()
    );
    std::fs::create_dir_all(&dir)?;
    let mut npm = sh::cmd("npm", &["install", "--no-audit", "--no-fund", "--silent"]);
    // Nothing of it needs a script of its own at installation.
    npm.args(["--ignore-scripts", "--prefix"]).arg(&dir);
    sh::output(npm.arg(format!("{PACKAGE}@{VERSION}")))
        .with_context(|| format!("{PACKAGE} cannot be had from the npm registry"))?;
    Ok(modules)
}
