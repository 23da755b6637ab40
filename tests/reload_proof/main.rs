//! The proof of hot reload: what must not break, under edits of all sorts, in numbers. [`reload`](../reload.rs) beside
//! this says what each edit does; here it is about what none of them may do.
//!
//! By hand with more than CI has time for, and without nextest, which would end it:
//! `POSTERN_SEQUENCES=1000 cargo test --workspace --test reload_proof sequences`; also `POSTERN_ROUNDS=500`, `POSTERN_KILLS=200`.

mod crashes;
mod draft;
mod leaks;
mod many;
mod sequences;
mod sessions;
mod witness;
mod world;

/// A number from the environment.
fn count(name: &str, default: u32) -> u32 {
    let set = std::env::var(name).ok();
    set.and_then(|n| n.parse().ok()).unwrap_or(default)
}
