//! SSH sessions: what `postern-sshd` asks this host about a user's certificate.

use crate::decide::{Decider, Offered};
use crate::session::{Arrival, Served, Slots, source_ip};
use postern_audit::{Emitter, Event, names};
use postern_identity::{CaKind, TrustBundle, UserIdentity, verify_user_cert};
use postern_sshd::{Admitted, Gate, HostIdentity, SessionContext, SshdOptions};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

/// Serves one SSH connection from its banner to its end.
pub async fn serve(served: &Arc<Served>, arrival: Arrival, slots: Slots) -> Result<(), String> {
    let _slot = slots.take()?;
    let credentials = &arrival.credentials;
    let gate = Arc::new(AgentGate {
        decider: served.decider.clone(),
        resource: arrival.resource.clone(),
        joined: credentials.trust.clone(),
        source: arrival.header.source.clone(),
        session_id: arrival.session_id.clone(),
        audit: served.audit.clone(),
        admitted: OnceLock::new(),
    });
    let host = HostIdentity {
        ssh_key: credentials.ssh_key(),
        ssh_host_cert: credentials.ssh_host_cert.clone(),
    };
    let ssh = &served.options.ssh;
    let options = Arc::new(SshdOptions {
        accept_env: ssh.accept_env.clone(),
        sftp_server: ssh.sftp_server.clone(),
        allow_same_user: ssh.allow_same_user,
        port_forwarding: ssh.port_forwarding,
        denied_dials: served.own_sockets.clone(),
        ..SshdOptions::default()
    });
    let context = SessionContext {
        cluster: served.decider.cluster.clone(),
        resource: arrival.resource.id.name.clone(),
        labels: arrival.resource.labels.clone().into_iter().collect(),
        source: arrival.header.source.clone(),
        host_id: served.decider.host_id.clone(),
        session_id: arrival.session_id.clone(),
    };
    let serving = postern_sshd::serve(
        arrival.stream,
        host,
        options,
        gate.clone(),
        (served.plugin.clone(), served.settings.clone()),
        served.audit.clone(),
        context,
        tokio_util::sync::CancellationToken::new(),
    );
    tokio::select! {
        r = serving => r.map(drop).map_err(|e| e.to_string()),
        reason = gate.until_refused() => Err(format!("ended: {reason}")),
    }
}

/// Decides for one connection, and remembers who came in.
struct AgentGate {
    decider: Decider,
    resource: Offered,
    joined: TrustBundle,
    source: String,
    session_id: String,
    audit: Emitter,
    /// Who came in, and as which login.
    admitted: OnceLock<(UserIdentity, String)>,
}

impl AgentGate {
    async fn until_refused(&self) -> String {
        // Only somebody who is in can lose what was allowed; the cache changes at least every 10 s
        // (Auth's "alive"), so one who came in since is seen then.
        let mut cache = self.decider.cache.clone();
        loop {
            if let Some((user, login)) = self.admitted.get() {
                let asked = [("logins", login.as_str())];
                let refused = self
                    .decider
                    .until_refused(user, &self.resource, &asked, None);
                return refused.await;
            }
            if cache.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn admit(
        &self,
        cert: &ssh_key::Certificate,
        login: &str,
    ) -> Result<Admitted, (Option<UserIdentity>, String)> {
        let trust = self.decider.trust(&self.joined);
        // Which logins are allowed is for the roles of this moment; the certificate's principals
        // are what they allowed when it was issued, so both must agree.
        let user = verify_user_cert(
            cert,
            &trust.ssh_keys(CaKind::User),
            None,
            source_ip(&self.source),
            SystemTime::now(),
        )
        .map_err(|e| (None, e.to_string()))?;
        let role = self
            .decider
            .check(&user, &self.resource, &[("logins", login)])
            .map_err(|why| (Some(user.clone()), why))?;
        if !cert.valid_principals().iter().any(|p| p == login) {
            let why = format!(
                "the certificate of {} was issued for logins {}; log in again with `postern login` to get {login:?}",
                user.name,
                cert.valid_principals().join(", ")
            );
            return Err((Some(user), why));
        }
        let may_forward = self.decider.may_forward(&user, &self.resource);
        let _ = self.admitted.set((user.clone(), login.to_owned()));
        Ok(Admitted {
            user,
            login: login.to_owned(),
            may_forward,
            role,
        })
    }
}

impl Gate for AgentGate {
    fn authenticate(&self, cert: &ssh_key::Certificate, login: &str) -> Result<Admitted, String> {
        self.admit(cert, login).map_err(|(user, why)| {
            tracing::info!(resource = self.resource.id.name, login, "refused: {why}");
            self.audit.emit_later(
                Event::new(names::SESSION_REJECTED)
                    .with("session_id", &self.session_id)
                    .with("kind", &self.resource.id.kind)
                    .with("resource", &self.resource.id.name)
                    .with("user", user.map(|u| u.name))
                    .with("login", login)
                    .with("source", &self.source)
                    .with("reason", &why),
            );
            why
        })
    }

    fn explains_to(&self, cert: &ssh_key::Certificate) -> bool {
        self.decider
            .trust(&self.joined)
            .ssh_keys(CaKind::User)
            .iter()
            .any(|ca| ca.key_data() == cert.signature_key())
    }
}
