//! Signatures; bodies follow.
use crate::*;

/// Engines, cache and CPU ticker.
pub struct Runtime {
    _o: RuntimeOptions,
}
impl Runtime {
    pub fn new(o: RuntimeOptions) -> Result<Self, PluginError> {
        Ok(Runtime { _o: o })
    }
    pub async fn load(
        &self,
        source: &PluginSource,
        _limits: Limits,
    ) -> Result<Plugin, PluginError> {
        Err(unready(&source.name))
    }
}
fn unready(p: &str) -> PluginError {
    PluginError::new(
        p,
        Cause::Host {
            why: "not built yet".into(),
        },
    )
    .version("0")
    .session("0")
}
/// One version of one component, compiled.
#[derive(Clone)]
pub struct Plugin {
    d: std::sync::Arc<Description>,
}
impl Plugin {
    pub fn name(&self) -> &str {
        ""
    }
    pub fn description(&self) -> &Description {
        &self.d
    }
    /// sha256 of the component, hex.
    pub fn digest(&self) -> &str {
        ""
    }
    pub async fn validate(&self, _settings_json: &str) -> Result<(), PluginError> {
        Err(unready(""))
    }
    pub async fn codec(&self, _settings_json: &str, _session: &str) -> Result<Codec, PluginError> {
        Err(unready(""))
    }
    pub async fn ssh(
        &self,
        _settings_json: &str,
        _session: &SshSessionInfo,
    ) -> Result<SshGuard, PluginError> {
        Err(unready(""))
    }
}
/// One connection's instance of a codec plugin.
pub struct Codec(());
impl Codec {
    pub async fn on_open(&mut self) -> Result<Vec<Step>, PluginError> {
        Err(unready(""))
    }
    pub async fn on_input(&mut self, _s: Side, _data: &[u8]) -> Result<Vec<Step>, PluginError> {
        Err(unready(""))
    }
    pub async fn on_result(&mut self, _r: StepResult) -> Result<Vec<Step>, PluginError> {
        Err(unready(""))
    }
    pub async fn on_close(&mut self, _s: Side) -> Result<Vec<Step>, PluginError> {
        Err(unready(""))
    }
}
/// One SSH session's instance.
pub struct SshGuard(());
impl SshGuard {
    pub async fn decide(&mut self, _channel: u32, _ev: SshEvent) -> Result<Verdict, PluginError> {
        Err(unready(""))
    }
}
