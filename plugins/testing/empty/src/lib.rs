//! A component that exports nothing: not a plugin.

/// Something to export from the core module.
#[unsafe(no_mangle)]
pub extern "C" fn nothing() -> u32 {
    7
}
