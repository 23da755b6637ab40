//! Component to machine code, off to the side and at low priority: reloading a plugin must not slow down sessions.

use wasmtime::Engine;

/// Compiles on a thread of its own (a thread's lowered priority can't be raised again) and waits for it.
pub(crate) fn compile(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Vec<u8>> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("plugin-compile".into())
            .spawn_scoped(scope, || {
                lower_priority();
                engine.precompile_component(bytes)
            });
        match thread.map(|t| t.join()) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(wasmtime::Error::msg(
                "the compiler panicked (see the log); this is a bug of wasmtime",
            )),
            Err(e) => Err(wasmtime::Error::msg(format!(
                "no thread to compile on: {e}"
            ))),
        }
    })
}

/// Nice 10 for this thread, and for the compiler's worker threads where this one starts them.
#[allow(unsafe_code)]
fn lower_priority() {
    // SAFETY: no memory is passed. On Linux `PRIO_PROCESS` with 0 is the calling thread. A failure costs nothing.
    unsafe {
        nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 10);
    }
}
