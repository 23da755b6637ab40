//! The smallest useful plugin: any TCP service. Asks whether the user may see the resource at all, connects, steps aside.
//!
//! One that reads its protocol is in `docs/examples/plugin-rust`.

use postern_sdk::codec::{Codec, Step, StepResult};
use postern_sdk::settings::NoSettings;
use postern_sdk::{Endpoint, Manifest, Side, Wants, export_codec};

/// One connection. Nothing to remember: the host asks in a fixed order.
pub struct Tcp;

impl Codec for Tcp {
    type Settings = NoSettings;

    fn manifest() -> Manifest {
        Manifest {
            kind: "tcp",
            protocol: "any over TCP",
            version: env!("CARGO_PKG_VERSION"),
            summary: "passes a TCP connection through, unread",
            principals: &[],
            settings_schema: include_str!("settings.schema.json"),
            wants: Wants {
                endpoints: &[Endpoint::Main],
                ..Wants::default()
            },
        }
    }

    fn new(_: NoSettings) -> Self {
        Tcp
    }

    fn on_open(&mut self) -> Vec<Step> {
        vec![Step::Authorize(vec![])]
    }

    fn on_input(&mut self, _: Side, _: &[u8]) -> Vec<Step> {
        vec![Step::NeedMore]
    }

    fn on_result(&mut self, result: StepResult) -> Vec<Step> {
        match result {
            StepResult::Authorized => vec![Step::Connect(Endpoint::Main)],
            StepResult::Connected => vec![Step::Splice(Side::Client), Step::Splice(Side::Upstream)],
            StepResult::Denied(why) | StepResult::ConnectFailed(why) => {
                vec![Step::Close(Some(why))]
            }
            _ => vec![Step::Close(Some(
                "the host gave an answer that tcp did not ask for".into(),
            ))],
        }
    }
}

export_codec!(Tcp);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_connects_and_steps_aside() {
        let mut t = Tcp::new(NoSettings {});
        assert_eq!(t.on_open(), [Step::Authorize(vec![])]);
        assert_eq!(
            t.on_result(StepResult::Authorized),
            [Step::Connect(Endpoint::Main)]
        );
        assert_eq!(
            t.on_result(StepResult::Connected),
            [Step::Splice(Side::Client), Step::Splice(Side::Upstream)]
        );
    }

    #[test]
    fn a_denial_is_the_reason_of_the_close() {
        let mut t = Tcp::new(NoSettings {});
        assert_eq!(
            t.on_result(StepResult::Denied("no".into())),
            [Step::Close(Some("no".into()))]
        );
    }

    #[test]
    fn the_schema_is_json() {
        let schema: serde_json::Value =
            serde_json::from_str(Tcp::manifest().settings_schema).unwrap();
        assert_eq!(schema["additionalProperties"], false);
    }
}
