//! Roles as an administrator writes them, and decisions with them: patterns of any shape must not hang or panic, and a
//! denial of everything wins over whatever else there is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_access::{Decision, Role, Subject, Target, decide};
use std::collections::BTreeMap;

fuzz_target!(|data: &[u8]| {
    let Ok(role) = serde_json::from_slice::<Role>(data) else { return };
    if role.validate().is_err() {
        return;
    }
    let none: Role = serde_json::from_str(r#"{"name":"none","deny":{"ssh":{"labels":{"*":["*"]}}}}"#).expect("valid");
    let traits = BTreeMap::from([("logins".to_string(), vec!["root".to_string()])]);
    let labels = BTreeMap::from([("env".to_string(), "prod".to_string())]);
    let target = Target { kind: "ssh", name: "web-1", labels: &labels };
    let asked = [("logins", "root")];
    let alone = [role.clone()];
    let _ = decide(&Subject { user: "alice", roles: &alone, traits: &traits }, &target, &asked);
    let both = [role, none];
    let decision = decide(&Subject { user: "alice", roles: &both, traits: &traits }, &target, &asked);
    assert!(matches!(decision, Decision::Deny { .. }), "a denial was overruled");
});
