//! One live instance: its store, limits, and the way every call goes.

use crate::error::{Cause, PluginError, TrapKind};
use crate::logging::{GuestStdio, LogSink};
use crate::meter::{CpuExceeded, Meter, WaitedTooLong};
use crate::plugin::{First, FirstGuard, Loaded};
use crate::ticker::Running;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Store, Trap, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

/// Bytes that a guest may hand to the host in one call: the 1 MiB that an answer may send, and what goes around it.
const MAX_ANSWER: usize = 4 << 20;

/// What a store holds besides the guest.
pub(crate) struct Ctx {
    table: ResourceTable,
    wasi: WasiCtx,
    pub(crate) log: LogSink,
    pub(crate) meter: Arc<Meter>,
    limits: MemoryLimit,
    /// Counts the instance as live until the store is dropped.
    _live: LiveGuard,
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

struct LiveGuard(Arc<Loaded>);

impl Drop for LiveGuard {
    fn drop(&mut self) {
        self.0.metrics.instance(-1.0);
    }
}

/// wasmtime's limiter, with a memory of what went wrong.
struct MemoryLimit {
    plugin: Arc<Loaded>,
    exceeded: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("memory limit exceeded")]
struct MemoryExceeded;

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > self.plugin.memory_limit {
            self.exceeded = true;
            // A trap, not a failed `memory.grow`: what a guest does when it runs out of memory is rarely better.
            return Err(MemoryExceeded.into());
        }
        self.plugin.metrics.memory(desired);
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.exceeded = true;
        Err(error)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= 100_000)
    }

    fn instances(&self) -> usize {
        32
    }
    fn tables(&self) -> usize {
        32
    }
    fn memories(&self) -> usize {
        8
    }
}

/// One instance, or what is left of it after a failure.
pub(crate) struct Live {
    pub(crate) plugin: Arc<Loaded>,
    pub(crate) session: String,
    pub(crate) meter: Arc<Meter>,
    log: LogSink,
    /// Taken out during each call: a call that fails, or is dropped half way, takes the store with it.
    store: Option<Store<Ctx>>,
    /// Of a connection among the first that are watched.
    first: Option<FirstGuard>,
}

impl Live {
    pub(crate) fn new(plugin: Arc<Loaded>, session: &str) -> Self {
        let budget = Duration::from_millis(u64::from(plugin.limits.cpu_ms_per_call));
        let meter = Arc::new(Meter::new(budget));
        let log = LogSink::new(
            &plugin.name,
            &plugin.version,
            session,
            plugin.log_limiter.clone(),
        );
        plugin.metrics.instance(1.0);
        let ctx = Ctx {
            table: ResourceTable::new(),
            // Empty: no files, no environment, no network. Rust's std imports the interfaces, and gets nothing behind them.
            wasi: WasiCtx::builder()
                .stdout(GuestStdio {
                    sink: log.clone(),
                    level: tracing::Level::INFO,
                })
                .stderr(GuestStdio {
                    sink: log.clone(),
                    level: tracing::Level::WARN,
                })
                .build(),
            log: log.clone(),
            meter: meter.clone(),
            limits: MemoryLimit {
                plugin: plugin.clone(),
                exceeded: false,
            },
            _live: LiveGuard(plugin.clone()),
        };
        let mut store = Store::new(&plugin.engine, ctx);
        store.limiter(|c| &mut c.limits);
        store.set_hostcall_fuel(MAX_ANSWER);
        let theirs = meter.clone();
        store.epoch_deadline_callback(move |_| {
            if theirs.exceeded() {
                return Err(CpuExceeded.into());
            }
            Ok(UpdateDeadline::YieldCustom(
                1,
                Box::pin(tokio::task::yield_now()),
            ))
        });
        // Questions about the plugin itself are no connections.
        let first = (!session.is_empty())
            .then(|| First::begin(&plugin))
            .flatten();
        Live {
            first,
            plugin,
            session: session.into(),
            meter,
            log,
            store: Some(store),
        }
    }

    /// Before a call: the store to call on, and what keeps the CPU clock ticking.
    pub(crate) fn begin(&mut self) -> Result<(Store<Ctx>, Running), PluginError> {
        let Some(mut store) = self.store.take() else {
            return Err(self.error(Cause::Ended));
        };
        store.set_epoch_deadline(1);
        Ok((store, self.plugin.ticker.enter()))
    }

    /// After a call: keeps the store if it went well, says what happened if not.
    pub(crate) fn finish<R>(
        &mut self,
        what: &str,
        store: Store<Ctx>,
        outcome: Result<wasmtime::Result<R>, WaitedTooLong>,
        cpu: Duration,
    ) -> Result<R, PluginError> {
        self.plugin.metrics.called(cpu);
        let cause = match outcome {
            Ok(Ok(r)) => {
                self.store = Some(store);
                return Ok(r);
            }
            Ok(Err(e)) => self.explain(what, &store, &e),
            Err(WaitedTooLong(wait)) => Cause::Trap {
                kind: TrapKind::Time,
                detail: format!(
                    "`{what}` waited instead of answering, for {} s",
                    wait.as_secs()
                ),
            },
        };
        drop(store);
        let error = self.error(cause);
        self.plugin.metrics.failed(error.trap());
        if error.trap().is_some() {
            tracing::warn!(target: "postern::plugin", "{error}");
            self.trapped();
        }
        Err(error)
    }

    fn explain(&self, what: &str, store: &Store<Ctx>, e: &wasmtime::Error) -> Cause {
        tracing::debug!(target: "postern::plugin", plugin = self.plugin.name, session = self.session, "{what}: {e:?}");
        if e.is::<wasmtime::PoolConcurrencyLimitError>() {
            return Cause::Busy {
                limit: self.plugin.slots,
            };
        }
        let last_words = match self.log.last_words() {
            w if w.is_empty() => String::new(),
            w => format!("; its last words: {w}"),
        };
        let (kind, detail) = if store.data().limits.exceeded {
            (
                TrapKind::Memory,
                format!(
                    "`{what}` needed more than the {} MiB of limit memory_mb",
                    self.plugin.memory_limit >> 20
                ),
            )
        } else if e.is::<CpuExceeded>() {
            (
                TrapKind::Cpu,
                format!(
                    "`{what}` took more than the {} ms of limit cpu_ms_per_call",
                    self.plugin.limits.cpu_ms_per_call
                ),
            )
        } else {
            match e.downcast_ref::<Trap>() {
                Some(Trap::UnreachableCodeReached) => (
                    TrapKind::Unreachable,
                    format!("`{what}` gave up (a panic){last_words}"),
                ),
                // Guests keep their own stack at the bottom of their memory, and run out of it at its edge.
                Some(t @ Trap::MemoryOutOfBounds) => (
                    TrapKind::Other,
                    format!("`{what}`: {t}, or recursion that went too deep{last_words}"),
                ),
                Some(Trap::StackOverflow) => (
                    TrapKind::Stack,
                    format!("`{what}` recursed too deep{last_words}"),
                ),
                Some(t) => (TrapKind::Other, format!("`{what}`: {t}{last_words}")),
                None if e
                    .root_cause()
                    .to_string()
                    .contains("fuel allocated for hostcalls") =>
                {
                    (
                        TrapKind::Data,
                        format!("`{what}` answered with more than {} MiB", MAX_ANSWER >> 20),
                    )
                }
                None => (
                    TrapKind::Other,
                    format!("`{what}`: {}{last_words}", e.root_cause()),
                ),
            }
        };
        Cause::Trap { kind, detail }
    }

    /// An error with everything that is known about this instance.
    pub(crate) fn error(&self, cause: Cause) -> PluginError {
        let e = PluginError::new(&self.plugin.name, cause).version(&self.plugin.version);
        if self.session.is_empty() {
            e
        } else {
            e.session(&self.session)
        }
    }

    /// Ends the instance because of what it answered.
    pub(crate) fn fail(&mut self, cause: Cause) -> PluginError {
        self.store = None;
        let e = self.error(cause);
        self.plugin.metrics.failed(e.trap());
        if e.trap().is_some() {
            self.trapped();
        }
        e
    }

    /// Counted once: nothing can be called afterwards.
    fn trapped(&mut self) {
        if let Some(first) = self.first.take() {
            first.trapped();
        }
    }
}

/// One call on a [`Live`]: `call!(live, "on-input", |store| bindings.call_on_input(store, …))`.
macro_rules! call {
    ($live:expr, $what:expr, |$store:ident| $call:expr) => {{
        let live: &mut $crate::instance::Live = $live;
        let (mut owned, running) = live.begin()?;
        let meter = live.meter.clone();
        let (outcome, cpu) = {
            let $store = &mut owned;
            meter.run($call).await
        };
        drop(running);
        live.finish($what, owned, outcome, cpu)
    }};
}
pub(crate) use call;
