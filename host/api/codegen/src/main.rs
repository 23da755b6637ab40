//! Generates `host/api/src/gen/postern.v1.rs`. With `--check` it writes nothing and fails where the committed
//! code is not what the proto says (for CI).

use std::path::{Path, PathBuf};
use std::process::Command;

type Error = Box<dyn std::error::Error>;

const HEADER: &str = "\
// Generated from proto/postern.proto by host/api/codegen. Do not edit.
#![allow(clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::expect_used, rustdoc::all, missing_docs)]
";

fn main() -> Result<(), Error> {
    let check = std::env::args().any(|a| a == "--check");
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let proto = api.join("proto");
    let scratch = std::env::temp_dir().join(format!("postern-api-codegen-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let result = generate(&proto, &scratch).and_then(|code| settle(&api.join("src/gen/postern.v1.rs"), code, check));
    std::fs::remove_dir_all(&scratch)?;
    result
}

fn generate(proto: &Path, scratch: &Path) -> Result<String, Error> {
    let descriptors = protox::compile(["postern.proto"], [proto])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .out_dir(scratch)
        .btree_map(".")
        .compile_fds(descriptors)?;
    let file = scratch.join("postern.v1.rs");
    let code = format!("{HEADER}{}", std::fs::read_to_string(&file)?);
    std::fs::write(&file, code)?;
    // With the workspace's edition, so that `cargo fmt` leaves the committed file alone.
    let status = Command::new("rustfmt").args(["--edition", "2024"]).arg(&file).status()?;
    if !status.success() {
        return Err("rustfmt failed on the generated code".into());
    }
    Ok(std::fs::read_to_string(&file)?)
}

fn settle(target: &PathBuf, code: String, check: bool) -> Result<(), Error> {
    let committed = std::fs::read_to_string(target).unwrap_or_default();
    if committed == code {
        println!("{} is up to date", target.display());
        return Ok(());
    }
    if check {
        return Err(format!("{} is not what proto/postern.proto says; run: cargo run --manifest-path host/api/codegen/Cargo.toml", target.display()).into());
    }
    std::fs::write(target, code)?;
    println!("wrote {}", target.display());
    Ok(())
}
