//! The session child.

/// Entry of the re-executed process (`posternd session-child`): never returns.
pub fn session_child_main() -> ! {
    std::process::exit(1)
}
