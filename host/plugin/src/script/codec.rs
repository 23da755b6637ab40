//! Plays one connection through a codec plugin: does what the script says, shows the plugin what the host would show it.

use super::conn::{Conn, Next};
use super::error::Trouble;
use super::file::What;
use super::report::Event;
use super::show;
use crate::codec::Codec;
use crate::error::PluginError;
use crate::types::{Side, Step, StepResult};

pub(super) struct Player {
    codec: Codec,
    conn: Conn,
    opened: bool,
}

impl Player {
    pub(super) fn new(codec: Codec) -> Self {
        Player {
            codec,
            conn: Conn::default(),
            opened: false,
        }
    }

    pub(super) fn totals(&self) -> (Vec<u8>, Vec<u8>) {
        self.conn.totals()
    }

    pub(super) async fn event(&mut self, what: &What, told: &mut Event) -> Result<(), Trouble> {
        if self.conn.closed() {
            return wrong(
                "the plugin has closed the connection, nothing happens after that; begin another [[session]]",
            );
        }
        match what {
            What::Open => self.open(told).await,
            What::Bytes(side, bytes) => self.bytes(*side, bytes, told).await,
            What::Close(side) => self.close(*side, told).await,
            What::Result(name, result) => self.result(name, result, told).await,
            What::Ssh(..) => wrong("this is no event of world codec"),
        }
    }

    async fn open(&mut self, told: &mut Event) -> Result<(), Trouble> {
        if self.opened {
            return wrong("the connection is open already; `open` is the first event, or left out");
        }
        self.opened = true;
        let steps = self.codec.on_open().await;
        self.carry_out("on-open", steps, None, told)?;
        self.settle(told).await
    }

    async fn bytes(&mut self, side: Side, bytes: &[u8], told: &mut Event) -> Result<(), Trouble> {
        self.may_send(side)?;
        self.conn.arrives(side, bytes);
        if self.conn.native(side) {
            told.note("copied natively: this side is spliced, the plugin is not asked");
        } else if let Some(question) = self.conn.question() {
            told.note(format!(
                "kept: the plugin is shown it when its `{}` is answered",
                show::question(question)
            ));
        }
        self.settle(told).await
    }

    async fn close(&mut self, side: Side, told: &mut Event) -> Result<(), Trouble> {
        self.may_send(side)?;
        self.conn.ends(side);
        if self.conn.native(side) {
            told.note("this side is spliced, the plugin is not told");
        }
        self.settle(told).await
    }

    fn may_send(&mut self, side: Side) -> Result<(), Trouble> {
        let who = show::side(side);
        if self.conn.ended(side) {
            return wrong(format!("the {who} has closed its side before"));
        }
        if side == Side::Upstream && !self.conn.connected() {
            return wrong(format!(
                "there is no upstream yet: the plugin has to ask `connect`, and the script to answer connect = \"ok\"; {}",
                self.waits()
            ));
        }
        Ok(())
    }

    async fn result(
        &mut self,
        name: &'static str,
        result: &StepResult,
        told: &mut Event,
    ) -> Result<(), Trouble> {
        match self.conn.question().map(show::question) {
            Some(open) if open == name => {}
            _ => {
                return wrong(format!("the plugin did not ask `{name}`; {}", self.waits()));
            }
        }
        let steps = self.codec.on_result(result.clone()).await;
        self.conn.answered(result);
        self.carry_out("on-result", steps, None, told)?;
        self.settle(told).await
    }

    /// What the plugin waits for now.
    fn waits(&self) -> String {
        match self.conn.question() {
            Some(step) => format!(
                "it waits for the answer to: {} (an event with the key {})",
                show::step(step),
                show::question(step)
            ),
            None => "no question is open, it waits for bytes".into(),
        }
    }

    /// Shows the plugin what there is, until it asks something or there is nothing more.
    async fn settle(&mut self, told: &mut Event) -> Result<(), Trouble> {
        while let Some(next) = self.conn.next() {
            let (call, about, steps) = match next {
                Next::Input(side, data) => (
                    format!("on-input {} {}", show::side(side), show::bytes(&data)),
                    side,
                    self.codec.on_input(side, &data).await,
                ),
                Next::End(side) => (
                    format!("on-close {}", show::side(side)),
                    side,
                    self.codec.on_close(side).await,
                ),
            };
            self.carry_out(&call, steps, Some(about), told)?;
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        call: &str,
        steps: Result<Vec<Step>, PluginError>,
        about: Option<Side>,
        told: &mut Event,
    ) -> Result<(), Trouble> {
        let steps = steps?;
        let gone = self.conn.all_native();
        told.called(call, steps.iter().map(show::step).collect());
        let done = self.conn.carry_out(&steps, about);
        done.map_err(|why| self.codec.broke_contract(why))?;
        if self.conn.all_native() && !gone {
            told.note("both sides are spliced: the instance is thrown away");
        }
        Ok(())
    }
}

fn wrong<T>(why: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Script(why.into()))
}
