//! Component to machine code, off to the side and at low priority: reloading a plugin must not slow down sessions.

use wasmtime::Engine;

/// How much CPU time a compilation may take from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Somebody waits for it, but sessions go first.
    Low,
    /// Nobody waits: the old version serves. Only what nobody else wants. A lower nice value alone is not enough for that:
    /// since Linux 6.6 whoever wakes up waits until the slice of who runs is over (up to 3 ms), a dozen times for each
    /// connection that is opened meanwhile; of `SCHED_IDLE` alone the CPU is taken away at once.
    Idle,
}

/// Compiles on threads of its own (a thread's lowered priority can't be raised again) and waits for them.
pub(crate) fn compile(
    engine: &Engine,
    bytes: &[u8],
    urgency: Urgency,
) -> wasmtime::Result<Vec<u8>> {
    // The compiler's own pool would keep the priority of whoever used it first.
    let threads = rayon::ThreadPoolBuilder::new()
        .thread_name(|n| format!("plugin-compile-{n}"))
        .start_handler(move |_| lower_priority(urgency))
        .build()
        .map_err(|e| wasmtime::Error::msg(format!("no threads to compile on: {e}")))?;
    let compiled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        threads.install(|| engine.precompile_component(bytes))
    }));
    compiled.unwrap_or_else(|_| {
        Err(wasmtime::Error::msg(
            "the compiler panicked (see the log); this is a bug of wasmtime",
        ))
    })
}

/// Of the calling thread. A failure costs nothing.
#[allow(unsafe_code)]
fn lower_priority(urgency: Urgency) {
    let param = nix::libc::sched_param { sched_priority: 0 };
    // SAFETY: the one pointer is to a value that outlives the call. On Linux 0 is the calling thread, for both calls.
    unsafe {
        match urgency {
            Urgency::Low => {
                nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 10);
            }
            Urgency::Idle => {
                nix::libc::sched_setscheduler(0, nix::libc::SCHED_IDLE, &raw const param);
            }
        }
    }
}
