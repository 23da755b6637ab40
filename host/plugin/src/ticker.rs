//! The clock of the CPU limits: a thread that advances the engines' epoch while any guest runs, and sleeps while none does
//! (an idle agent must not wake up a hundred times a second).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;
use wasmtime::EngineWeak;

/// How long a guest runs before it has to let others run; the resolution of the CPU limit.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Owned by the runtime and what it loaded; the thread ends with the last of them.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

struct Shared {
    /// Calls under way.
    active: AtomicUsize,
    /// There was a call since the last tick: another one is likely, and should not have to wake the thread.
    used: AtomicBool,
    /// The thread is, or is about to be, parked until somebody calls.
    parked: AtomicBool,
    stop: AtomicBool,
}

impl Ticker {
    pub(crate) fn start(engines: Vec<EngineWeak>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            active: AtomicUsize::new(0),
            used: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        let handle = std::thread::Builder::new()
            .name("plugin-ticker".into())
            .stack_size(64 << 10)
            .spawn(move || run(&theirs, &engines))?;
        Ok(Ticker {
            shared,
            thread: handle.thread().clone(),
            handle: Some(handle),
        })
    }

    /// A call begins; it ends when the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Running {
        self.shared.active.fetch_add(1, SeqCst);
        self.shared.used.store(true, SeqCst);
        if self.shared.parked.load(SeqCst) {
            self.thread.unpark();
        }
        Running(self.clone())
    }
}

pub(crate) struct Running(Arc<Ticker>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.shared.active.fetch_sub(1, SeqCst);
    }
}

fn run(shared: &Shared, engines: &[EngineWeak]) {
    while !shared.stop.load(SeqCst) {
        if !shared.used.swap(false, SeqCst) && shared.active.load(SeqCst) == 0 {
            // Whoever enters after this store unparks us; whoever entered before is seen by the second look.
            shared.parked.store(true, SeqCst);
            if shared.active.load(SeqCst) == 0 && !shared.stop.load(SeqCst) {
                std::thread::park();
            }
            shared.parked.store(false, SeqCst);
            continue;
        }
        std::thread::park_timeout(TICK);
        for engine in engines {
            if let Some(e) = engine.upgrade() {
                e.increment_epoch();
            }
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            // It only ever sleeps a tick; a panic in it has been reported by the panic hook.
            let _ = handle.join();
        }
    }
}
