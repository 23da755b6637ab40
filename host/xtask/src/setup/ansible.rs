//! Ansible, for the end-to-end tests: a whole tool that people drive over ssh.

use super::pypi::Program;
use anyhow::Result;
use std::path::PathBuf;

/// A wrapper that runs `ansible` out of `target/tools`, installed if need be.
pub fn ansible() -> Result<PathBuf> {
    let program = Program {
        package: "ansible-core",
        version: "2.18.19",
        also: &[],
        name: "ansible",
        run: "-m ansible adhoc",
        only_binary: false,
    };
    program.installed()
}
