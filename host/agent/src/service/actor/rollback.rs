//! Takes a plugin version back that failed its trial.

use super::{Actor, Parts};
use crate::service::spec::Spec;
use crate::service::trial::Verdict;
use crate::status::RolledBack;
use postern_audit::{Event, names};
use std::sync::Arc;

impl Actor<'_> {
    /// A session has ended: was it one too many that a new plugin version broke?
    pub(super) fn judge(&mut self, parts: &mut Parts) {
        let Some((trial, good)) = &self.trial else {
            return;
        };
        let trapped = match trial.verdict() {
            Verdict::Open => return,
            Verdict::Passed => {
                self.trial = None;
                return;
            }
            Verdict::Failed { trapped } => trapped,
        };
        let (bad, back) = (
            trial.new.description().version.clone(),
            trial.old.description().version.clone(),
        );
        let rule = &parts.spec.service.rollback;
        let why = format!(
            "{trapped} of the first {} connections of plugin {} {bad} trapped (rollback.traps = {}): {back} is back; put another file in place to try again",
            rule.of, parts.spec.service.plugin, rule.traps
        );
        tracing::error!(service = self.name, "{why}");
        metrics::counter!("postern_plugin_rollbacks_total", "plugin" => trial.new.name().to_owned(), "version" => bad.clone())
            .increment(1);
        let event = Event::new(names::AGENT_PLUGIN_ROLLBACK)
            .with("kind", &parts.spec.kind)
            .with("plugin", &parts.spec.service.plugin)
            .with("from", &bad)
            .with("from_sha256", trial.new.digest())
            .with("to", &back)
            .with("to_sha256", trial.old.digest())
            .with("trapped", trapped)
            .with("reason", &why);
        self.home.audit.emit_later(event);
        let rolled_back = RolledBack {
            version: bad,
            sha256: trial.new.digest().to_owned(),
            reason: why,
        };
        // With the settings that worked with it; everything else is as configured now.
        let spec = Spec {
            name: parts.spec.name.clone(),
            service: parts.spec.service.clone(),
            common: parts.spec.common.clone(),
            plugin: good.plugin.clone(),
            held_back: true,
            settings: good.settings.clone(),
            kind: parts.spec.kind.clone(),
            offered: parts.spec.offered.clone(),
        };
        self.trial = None;
        parts.spec = Arc::new(spec);
        parts.sessions.serve(self.served(&parts.spec));
        self.outlet
            .status
            .send_modify(|s| s.rolled_back = Some(rolled_back));
        self.tell_auth(parts);
    }
}
