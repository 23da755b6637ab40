//! Packages from the npm registry, for the end-to-end tests: a real issuer of OpenID Connect tokens, and a database driver.

use crate::{paths, sh};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// The `node_modules` that holds oidc-provider, installed if need be.
pub fn oidc_provider() -> Result<PathBuf> {
    installed("oidc-provider", "9.13.3", &[])
}

/// The package of node-postgres in its `node_modules`, beside those for cursors and COPY, installed if need be.
pub fn node_postgres() -> Result<PathBuf> {
    let also = ["pg-cursor@2.22.1", "pg-copy-streams@7.0.0"];
    Ok(installed("pg", "8.23.1", &also)?.join("pg"))
}

fn installed(package: &str, version: &str, also: &[&str]) -> Result<PathBuf> {
    let dir = paths::tools().join(format!("{package}-{version}"));
    let modules = dir.join("node_modules");
    if modules.join(package).join("package.json").is_file() {
        return Ok(modules);
    }
    eprintln!(
        "  installing {package} {version} from the npm registry into {}",
        dir.display()
    );
    std::fs::create_dir_all(&dir)?;
    let mut npm = sh::cmd("npm", &["install", "--no-audit", "--no-fund", "--silent"]);
    // Nothing of it needs a script of its own at installation.
    npm.args(["--ignore-scripts", "--prefix"]).arg(&dir);
    sh::output(npm.arg(format!("{package}@{version}")).args(also))
        .with_context(|| format!("{package} cannot be had from the npm registry"))?;
    Ok(modules)
}
