//! For the host's tests: an ssh plugin that does what the command says: `trap`, `loop`, `memory`, `deny`; else it allows.
//! A session of login `refused` is not opened.

use postern_sdk::settings::NoSettings;
use postern_sdk::ssh::{Event, Ssh, SshSession, Verdict};
use postern_sdk::{Manifest, Wants, export_ssh};

pub struct Misbehave {
    asked: u32,
}

impl Ssh for Misbehave {
    type Settings = NoSettings;

    fn manifest() -> Manifest {
        Manifest {
            kind: "misbehave-ssh",
            protocol: "none",
            version: env!("CARGO_PKG_VERSION"),
            summary: "does what the command says",
            principals: &[],
            settings_schema: r#"{"type":"object"}"#,
            wants: Wants::default(),
        }
    }

    fn open(_: NoSettings, session: SshSession) -> Result<Self, String> {
        match session.login.as_str() {
            "refused" => Err(format!(
                "{} may not be {} today",
                session.user, session.login
            )),
            _ => Ok(Misbehave { asked: 0 }),
        }
    }

    fn decide(&mut self, channel: u32, event: Event) -> Verdict {
        self.asked += 1;
        let Event::Exec(command) = event else {
            return Verdict::Allow;
        };
        match command.as_str() {
            "trap" => panic!("asked to"),
            "loop" => loop {
                std::hint::black_box(0);
            },
            "memory" => {
                let mut all: Vec<Vec<u8>> = Vec::new();
                loop {
                    all.push(std::hint::black_box(vec![1; 1 << 20]));
                }
            }
            "deny" => Verdict::Deny(format!(
                "denied on channel {channel}, question {}",
                self.asked
            )),
            _ => Verdict::Allow,
        }
    }
}

export_ssh!(Misbehave);
