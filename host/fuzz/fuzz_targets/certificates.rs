//! SSH certificates from strangers: without a CA that we trust, none may pass.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_identity::{verify_agent_cert, verify_host_cert, verify_user_cert};
use std::time::SystemTime;

fuzz_target!(|data: &[u8]| {
    if let Ok(certificate) = ssh_key::Certificate::from_bytes(data) {
        let now = SystemTime::now();
        assert!(verify_user_cert(&certificate, &[], Some("root"), None, now).is_err());
        assert!(verify_agent_cert(&certificate, &[], now).is_err());
        assert!(verify_host_cert(&certificate, &[], "web-1.ssh.demo", now).is_err());
    }
});
