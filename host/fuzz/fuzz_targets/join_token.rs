//! Join tokens and CA pins as people paste them. A token never shows its secret.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_api::token::JoinToken;
use postern_identity::CaPin;

fuzz_target!(|text: &str| {
    if let Ok(token) = text.parse::<JoinToken>() {
        let revealed = token.reveal();
        let again: JoinToken = revealed.parse().expect("reads what it wrote");
        assert!(again.matches(&token.hash()));
        let secret = revealed.rsplit('_').next().expect("has a secret");
        assert!(!format!("{token} {token:?}").contains(secret), "the secret is shown");
    }
    if let Ok(pin) = text.parse::<CaPin>() {
        assert_eq!(pin.to_string().parse::<CaPin>().ok(), Some(pin));
    }
});
