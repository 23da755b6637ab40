//! componentize-py, for the example plugin in Python: makes a component of Python source and an interpreter.

use super::pypi::Program;
use std::path::PathBuf;

/// A wrapper that runs `componentize-py` out of `target/tools`, installed if need be. `None`, said aloud, where there is no
/// Python with pip, or PyPI does not have it for this machine.
pub fn componentize_py() -> Option<PathBuf> {
    let program = Program {
        package: "componentize-py",
        version: "0.25.1",
        also: &[],
        name: "componentize-py",
        run: "-c 'from componentize_py import script; script()'",
        only_binary: true,
    };
    program
        .installed()
        .map_err(|e| eprintln!("  no componentize-py, so no example in Python: {e:#}"))
        .ok()
}
