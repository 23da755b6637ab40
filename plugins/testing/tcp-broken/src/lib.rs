//! For the host's tests: a version of the `tcp` plugin that traps on every connection.

use postern_sdk::codec::{Codec, Step, StepResult};
use postern_sdk::settings::NoSettings;
use postern_sdk::{Endpoint, Manifest, Side, Wants, export_codec};

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
            settings_schema: include_str!("../../../tcp/src/settings.schema.json"),
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
        panic!("this version is broken")
    }

    fn on_input(&mut self, _: Side, _: &[u8]) -> Vec<Step> {
        vec![Step::NeedMore]
    }

    fn on_result(&mut self, _: StepResult) -> Vec<Step> {
        vec![]
    }
}

export_codec!(Tcp);
