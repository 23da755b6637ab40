//! Plays one SSH session through an ssh plugin: what is asked, and the verdict.

use super::error::Trouble;
use super::file::{self, What};
use super::report::Event;
use super::show;
use crate::plugin::Plugin;
use crate::ssh::SshGuard;
use crate::types::SshSessionInfo;

pub(super) struct Player<'a> {
    plugin: &'a Plugin,
    settings: &'a str,
    info: SshSessionInfo,
    state: State,
}

enum State {
    Closed,
    Open(Box<SshGuard>),
    Refused,
}

impl<'a> Player<'a> {
    pub(super) fn new(
        plugin: &'a Plugin,
        settings: &'a str,
        session: &file::Session,
        name: &str,
    ) -> Self {
        Player {
            plugin,
            settings,
            info: session.who.clone().unwrap_or_default().session(name),
            state: State::Closed,
        }
    }

    pub(super) async fn event(&mut self, what: &What, told: &mut Event) -> Result<(), Trouble> {
        let script = |why: &str| Err(Trouble::Script(why.into()));
        match (what, &mut self.state) {
            (What::Open, State::Closed) => {
                match self.plugin.ssh(self.settings, &self.info).await {
                    Ok(guard) => {
                        self.state = State::Open(Box::new(guard));
                        told.called("open", vec!["opened".into()]);
                    }
                    Err(e) => {
                        let Some(reason) = e.refusal() else {
                            return Err(e.into());
                        };
                        self.state = State::Refused;
                        told.called("open", vec![format!("refused {}", show::text(reason))]);
                    }
                }
                Ok(())
            }
            (What::Open, _) => {
                script("the session is open already; `open` is the first event, or left out")
            }
            (_, State::Refused) => script(
                "the plugin refused the session, nothing happens after that; begin another [[session]]",
            ),
            (What::Ssh(channel, event), State::Open(guard)) => {
                let verdict = guard.decide(*channel, event.clone()).await?;
                told.called("decide", vec![show::verdict(&verdict)]);
                Ok(())
            }
            _ => script("this is no event of world ssh"),
        }
    }
}
