//! A component with a manifest and no service: what someone gets who builds for the wrong world.
wit_bindgen::generate!({ path: "../../../wit", world: "base" });
use exports::postern::plugin::manifest::{Description, Guest, Problem, Wants};

struct Hollow;

impl Guest for Hollow {
    fn describe() -> Description {
        Description {
            kind: "hollow".into(),
            protocol: "none".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "serves nothing".into(),
            principals: vec![],
            settings_schema: "{}".into(),
            wants: Wants {
                endpoints: vec![],
                start_tls: false,
                challenges: vec![],
                send_secret: false,
                body_filters: false,
            },
        }
    }

    fn validate(_settings: String) -> Result<(), Vec<Problem>> {
        Ok(())
    }
}

export!(Hollow);
