//! World `codec`: one connection's instance.

use crate::asking::Asking;
use crate::bindings::{self, accounts, codec as world};
use crate::error::{Cause, PluginError};
use crate::instance::{Live, call};
use crate::types::{Administrator, Endpoint, Side, Step, StepResult, Task};
use wasmtime::component::ResourceAny;

/// Steps in one answer.
const MAX_STEPS: usize = 4096;

/// One connection's instance of a codec plugin. What it answers has been checked against what the plugin announced: a step
/// that reaches the caller is one that the plugin may ask for. After an error the instance is gone, and every further call
/// says so.
pub struct Codec {
    live: Live,
    bindings: world::Codec,
    machine: ResourceAny,
    /// It has a task, and no connection of a user.
    task: bool,
}

impl Codec {
    pub(crate) async fn start(
        mut live: Live,
        pre: &world::CodecPre<crate::instance::Ctx>,
        settings: &str,
    ) -> Result<Self, PluginError> {
        let (bindings, machine) = call!(&mut live, "new machine", |store| async {
            let bindings = pre.instantiate_async(&mut *store).await?;
            let service = bindings.postern_plugin_codec_service();
            let machine = service.machine().call_constructor(store, settings).await?;
            wasmtime::Result::Ok((bindings, machine))
        })?;
        Ok(Codec {
            live,
            bindings,
            machine,
            task: false,
        })
    }

    /// As [`Codec::start`], for a task in the place of a connection.
    pub(crate) async fn start_task(
        mut live: Live,
        pre: &world::CodecPre<crate::instance::Ctx>,
        settings: &str,
        (admin, task): (&Administrator, Task),
    ) -> Result<Self, PluginError> {
        let admin = bindings::wit_administrator(admin);
        let task = bindings::wit_task(task);
        let (bindings, machine) = call!(&mut live, "begin", |store| async {
            let instance = pre.instance_pre().instantiate_async(&mut *store).await?;
            let accounts = accounts::Accounts::new(&mut *store, &instance)?;
            let accounts = accounts.postern_plugin_accounts_service();
            accounts.call_begin(&mut *store, &admin, &task).await?;
            let bindings = world::Codec::new(&mut *store, &instance)?;
            let service = bindings.postern_plugin_codec_service();
            let machine = service.machine().call_constructor(store, settings).await?;
            wasmtime::Result::Ok((bindings, machine))
        })?;
        Ok(Codec {
            live,
            bindings,
            machine,
            task: true,
        })
    }

    /// The rules for what it may ask.
    pub fn asking(&self) -> Asking {
        if self.task {
            Asking::of_task()
        } else {
            Asking::default()
        }
    }

    /// The connection is there.
    pub async fn on_open(&mut self) -> Result<Vec<Step>, PluginError> {
        let (b, m) = (&self.bindings, self.machine);
        let steps = call!(&mut self.live, "on-open", |store| b
            .postern_plugin_codec_service()
            .machine()
            .call_on_open(store, m))?;
        self.checked(steps)
    }

    /// All bytes of this side that are not consumed yet.
    pub async fn on_input(&mut self, side: Side, data: &[u8]) -> Result<Vec<Step>, PluginError> {
        let (b, m) = (&self.bindings, self.machine);
        let side = bindings::wit_side(side);
        let steps = call!(&mut self.live, "on-input", |store| b
            .postern_plugin_codec_service()
            .machine()
            .call_on_input(store, m, side, data))?;
        self.checked(steps)
    }

    /// The answer to the question that ended the last steps.
    pub async fn on_result(&mut self, result: StepResult) -> Result<Vec<Step>, PluginError> {
        let (b, m) = (&self.bindings, self.machine);
        let result = bindings::wit_result(result);
        let steps = call!(&mut self.live, "on-result", |store| b
            .postern_plugin_codec_service()
            .machine()
            .call_on_result(store, m, &result))?;
        self.checked(steps)
    }

    /// This side will send nothing more.
    pub async fn on_close(&mut self, side: Side) -> Result<Vec<Step>, PluginError> {
        let (b, m) = (&self.bindings, self.machine);
        let side = bindings::wit_side(side);
        let steps = call!(&mut self.live, "on-close", |store| b
            .postern_plugin_codec_service()
            .machine()
            .call_on_close(store, m, side))?;
        self.checked(steps)
    }

    /// An error about what the plugin answered; ends the instance.
    pub fn broke_contract(&mut self, why: impl Into<String>) -> PluginError {
        self.live.fail(Cause::Contract { why: why.into() })
    }

    fn checked(
        &mut self,
        steps: Vec<world::exports::postern::plugin::codec_service::Step>,
    ) -> Result<Vec<Step>, PluginError> {
        if steps.len() > MAX_STEPS {
            let why = format!(
                "{} steps in one answer, at most {MAX_STEPS} are carried out",
                steps.len()
            );
            return Err(self.broke_contract(why));
        }
        let steps: Vec<Step> = steps.into_iter().map(bindings::step).collect();
        if let Some(why) = steps.iter().find_map(|s| self.unannounced(s)) {
            return Err(self.broke_contract(why));
        }
        Ok(steps)
    }

    /// A plugin gets nothing that it did not name in `describe`.
    fn unannounced(&self, step: &Step) -> Option<String> {
        let d = &self.live.plugin.description;
        match step {
            Step::Connect(e) if !d.wants.endpoints.contains(e) => Some(format!(
                "it asked for endpoint {e:?}, which it did not announce"
            )),
            Step::StartTls(_) if !d.wants.start_tls => {
                Some("it asked for start-tls, which it did not announce".into())
            }
            Step::Answer(c) if !d.wants.challenges.contains(&c.method) => Some(format!(
                "it asked for an answer by {:?}, which it did not announce",
                c.method
            )),
            Step::SendSecret(_) if !d.wants.send_secret => {
                Some("it asked for send-secret, which it did not announce".into())
            }
            Step::OfferCancel(..) | Step::FindCancel(_)
                if !d.wants.endpoints.contains(&Endpoint::Cancel) =>
            {
                Some("it asked about a cancel key, but did not announce endpoint Cancel".into())
            }
            Step::Authorize(asked) => asked
                .iter()
                .find(|(name, _)| !d.principals.iter().any(|p| p.name == *name))
                .map(|(name, _)| {
                    format!("it asked about principal {name:?}, which it did not announce")
                }),
            _ => None,
        }
    }
}
