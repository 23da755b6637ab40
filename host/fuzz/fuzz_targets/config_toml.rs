//! A configuration file: an error names a place, and never panics; what is valid equals itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|text: &str| {
    match postern_config::parse(text, Path::new("fuzz.toml")) {
        Ok(config) => drop(postern_config::warnings(&config)),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});
