//! What a logged-in helper asks the proxy for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_identity::ResourceId;

fuzz_target!(|data: &[u8]| {
    if let Ok(id) = postern_proxy::parse_session_request(data) {
        // Names that pass must survive the way through DNS and SNI.
        assert_eq!(ResourceId::from_dns(&id.dns("demo"), "demo"), Some(id));
    }
});
