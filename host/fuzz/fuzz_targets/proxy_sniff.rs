//! The first bytes of any stranger's connection. What was decided on a prefix must stay decided.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_proxy::{Sniff, sniff};

fuzz_target!(|data: &[u8]| {
    let whole = sniff(data);
    assert!(whole != Sniff::NeedMore || data.len() < 8, "would wait for more for ever");
    for n in 0..data.len().min(32) {
        let early = sniff(&data[..n]);
        // Nothing is served as what it turns out not to be, however it is cut into segments.
        assert!(early == Sniff::NeedMore || early == sniff(&data[..n + 1]) || n >= 8, "{early:?} at {n}, then another");
    }
});
