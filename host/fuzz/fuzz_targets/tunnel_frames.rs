//! What the two ends of a tunnel say to each other ahead of a stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_tunnel::{Announcement, StreamHeader, parse_json};

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = parse_json::<StreamHeader>(data) {
        let again = serde_json::to_vec(&header).expect("writes what it read");
        assert_eq!(parse_json::<StreamHeader>(&again).expect("reads what it wrote"), header);
    }
    let _ = parse_json::<Announcement>(data);
});
