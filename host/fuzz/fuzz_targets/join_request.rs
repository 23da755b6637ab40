//! A join as Auth gets it from anybody: protobuf, and a signature over it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_api::{join, v1::JoinRequest};
use prost::Message;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = JoinRequest::decode(data) {
        // Nothing the fuzzer makes up can carry a valid signature.
        assert_eq!(join::verify(&request), None);
    }
});
