//! The two engines: instances from a pool of slots, and on demand for components that are too big for a slot (Python).

use crate::error::{Cause, PluginError};
use crate::types::RuntimeOptions;
use std::num::NonZeroUsize;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

/// Mappings that one live instance takes at most (its memory: an image, grown pages, a guard; its stack: pages and a guard;
/// measured by `tests/idle.rs`), and what the rest of the process may need of `vm.max_map_count`.
const MAPS_PER_INSTANCE: u32 = 7;
const MAPS_FOR_OTHERS: u32 = 8192;
/// Fewest slots that are worth a pool.
const MIN_SLOTS: u32 = 16;

pub(crate) struct Engines {
    pub(crate) pooled: Engine,
    pub(crate) on_demand: Engine,
    /// Instances that the pool holds.
    pub(crate) slots: u32,
    /// Bytes of memory in a slot.
    pub(crate) slot_memory: usize,
}

impl Engines {
    pub(crate) fn new(o: &RuntimeOptions) -> Result<Self, PluginError> {
        let host = |why: String| PluginError::new("*", Cause::Host { why });
        let on_demand = Engine::new(&common()).map_err(|e| host(format!("wasmtime: {e:#}")))?;
        let wanted = o.max_instances.max(MIN_SLOTS);
        let mut slots = wanted.min(max_slots(max_map_count()));
        if slots < wanted {
            tracing::warn!(
                "room for {slots} plugin instances instead of {wanted}: vm.max_map_count is {}, raise it by sysctl",
                max_map_count()
            );
        }
        loop {
            match Engine::new(&pooled(slots, o.default_memory)) {
                Ok(pooled) => {
                    return Ok(Engines {
                        pooled,
                        on_demand,
                        slots,
                        slot_memory: o.default_memory,
                    });
                }
                Err(e) if slots > MIN_SLOTS => {
                    tracing::warn!(
                        "no address space for {slots} plugin instances ({e:#}); trying half as many"
                    );
                    slots = (slots / 2).max(MIN_SLOTS);
                }
                Err(e) => {
                    return Err(host(format!(
                        "no address space for {slots} instances of {} MiB (ulimit -v?): {e:#}",
                        o.default_memory >> 20
                    )));
                }
            }
        }
    }
}

/// What both engines have in common.
fn common() -> Config {
    let mut c = Config::new();
    c.wasm_component_model(true);
    c.epoch_interruption(true);
    c.cranelift_opt_level(OptLevel::Speed);
    // A trap report says what happened; a full trace of a stripped guest says nothing more.
    c.wasm_backtrace_max_frames(NonZeroUsize::new(4));
    c
}

fn pooled(slots: u32, memory: usize) -> Config {
    let mut p = PoolingAllocationConfig::new();
    p.total_component_instances(slots)
        // A component of a Rust guest is the module itself and up to three shims of the component tools.
        .total_core_instances(slots.saturating_mul(6))
        .total_memories(slots)
        .total_tables(slots.saturating_mul(3))
        // A store keeps the stack of its last call for the next one, so each instance has its own.
        .total_stacks(slots)
        .max_memories_per_component(1)
        .max_tables_per_component(4)
        .max_core_instances_per_component(8)
        .table_elements(10_000)
        .max_memory_size(memory)
        // A free slot keeps nothing: thousands of them may have been used once.
        .linear_memory_keep_resident(0)
        .table_keep_resident(0)
        .async_stack_keep_resident(0)
        .max_unused_warm_slots(64);
    let mut c = common();
    c.memory_reservation(memory as u64);
    c.memory_guard_size(64 << 10);
    c.async_stack_size(1 << 20);
    c.async_stack_zeroing(true);
    c.allocation_strategy(InstanceAllocationStrategy::Pooling(p));
    c
}

fn max_slots(max_map_count: u32) -> u32 {
    (max_map_count.saturating_sub(MAPS_FOR_OTHERS) / MAPS_PER_INSTANCE).max(MIN_SLOTS)
}

fn max_map_count() -> u32 {
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|s| s.trim().parse().ok())
        .unwrap_or(65_530)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_leave_mappings_for_the_rest_of_the_process() {
        assert_eq!(max_slots(65_530), 8191);
        assert_eq!(max_slots(100), MIN_SLOTS);
    }

    #[test]
    fn more_than_fits_is_less_than_asked_for_and_not_an_error() {
        let mut o = RuntimeOptions::new("/nonexistent");
        o.max_instances = 10_000_000;
        let e = Engines::new(&o).unwrap();
        assert!(e.slots >= MIN_SLOTS && e.slots < 10_000_000);
    }
}
