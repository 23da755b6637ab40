//! Kind `ssh`: what an SSH session may do besides being let in. The host speaks SSH and applies RBAC (which logins, which
//! servers); the settings of a service may narrow it here: no shell, only these commands, these forwarding targets.
//!
//! `settings.rs` is what operators write, `rules.rs` what it means; both are plain Rust, tested natively.

mod rules;
mod settings;

use postern_sdk::ssh::{Event, Ssh, SshSession, Verdict};
use postern_sdk::{Manifest, Wants, export_ssh};
pub use settings::SshSettings;

/// One session.
pub struct SshSessionRules {
    settings: SshSettings,
    session: SshSession,
}

impl Ssh for SshSessionRules {
    type Settings = SshSettings;

    fn manifest() -> Manifest {
        Manifest {
            kind: "ssh",
            protocol: "SSH 2.0",
            version: env!("CARGO_PKG_VERSION"),
            summary: "shells, commands, files and forwarding over SSH",
            principals: &[("logins", "Unix logins that the user may take")],
            settings_schema: include_str!("settings.schema.json"),
            wants: Wants::default(),
        }
    }

    fn open(settings: SshSettings, session: SshSession) -> Result<Self, String> {
        Ok(SshSessionRules { settings, session })
    }

    fn decide(&mut self, _channel: u32, event: Event) -> Verdict {
        rules::decide(&self.settings, &self.session.resource, &event)
    }
}

export_ssh!(SshSessionRules);
