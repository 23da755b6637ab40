//! The one place where this host says yes or no (D5): locks, then roles and labels,
//! from the cached snapshot.

use postern_access::{Automatic, Decision, Recorded, Subject, Target};
use postern_config::{LockMode, UpstreamAdmin, UpstreamAuth, UpstreamTls};
use postern_identity::{ResourceId, TrustBundle, UserIdentity};
use postern_membership::{Cache, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// With `lock_mode = "strict"` nothing is served from a watch older than this.
const STRICT_AGE: Duration = Duration::from_secs(300);

/// One resource as it is offered now.
#[derive(Debug, Clone)]
pub struct Offered {
    pub id: ResourceId,
    pub labels: BTreeMap<String, String>,
    pub direct: bool,
    pub address: Option<String>,
    /// `None`: as the plugin has it; where it does TLS, verified in full.
    pub tls: Option<UpstreamTls>,
    pub auth: UpstreamAuth,
    pub admin: Option<UpstreamAdmin>,
}

impl Offered {
    /// What is dialled for it; `service` is for the words.
    pub fn address(&self, service: &str) -> Result<&str, String> {
        self.address.as_deref().ok_or_else(|| {
            format!(
                "resource {:?} has no address; set it in [[services.{service}.resources]]",
                self.id.name
            )
        })
    }
}

/// Decides for one service of this host.
#[derive(Clone)]
pub struct Decider {
    pub cluster: String,
    pub host_id: String,
    pub service: String,
    pub lock_mode: LockMode,
    pub cache: Cache,
}

impl Decider {
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.cache.borrow().clone()
    }

    /// The newest trust: from the watch, or what the service got when it joined.
    pub fn trust(&self, joined: &TrustBundle) -> TrustBundle {
        self.snapshot()
            .trust
            .clone()
            .unwrap_or_else(|| joined.clone())
    }

    /// The lock that concerns this user on this service, with its reason.
    pub fn locked(&self, user: &str) -> Option<String> {
        let snapshot = self.snapshot();
        let lock = snapshot.locked(&[
            format!("user:{user}"),
            format!("host:{}", self.host_id),
            format!("service:{}/{}", self.host_id, self.service),
        ])?;
        Some(format!("{} is locked: {}", lock.target, lock.reason))
    }

    /// May `user` use `resource` in the way asked? Ok carries the role that allows it.
    pub fn check(
        &self,
        user: &UserIdentity,
        resource: &Offered,
        asked: &[(&str, &str)],
    ) -> Result<String, String> {
        let snapshot = self.snapshot();
        if self.lock_mode == LockMode::Strict && snapshot.age() > STRICT_AGE {
            return Err(format!(
                "this host has not heard from Auth for {} s and lock_mode is \"strict\"",
                snapshot.age().as_secs()
            ));
        }
        self.verdict(user, resource, asked)
    }

    /// The answer of locks and roles alone.
    fn verdict(
        &self,
        user: &UserIdentity,
        resource: &Offered,
        asked: &[(&str, &str)],
    ) -> Result<String, String> {
        if let Some(lock) = self.locked(&user.name) {
            return Err(lock);
        }
        let snapshot = self.snapshot();
        let roles = snapshot.roles(&user.roles);
        match postern_access::decide(&subject(user, &roles), &target(resource), asked) {
            Decision::Allow { role } => Ok(role),
            Decision::Deny { reason } => Err(reason),
        }
    }

    /// How a session is recorded that was allowed.
    pub fn recorded(
        &self,
        user: &UserIdentity,
        resource: &Offered,
        asked: &[(&str, &str)],
    ) -> Recorded {
        let roles = self.snapshot().roles(&user.roles);
        postern_access::recorded(&subject(user, &roles), &target(resource), asked)
    }

    /// The account of the user's own that a session which was allowed wants to have made.
    pub fn automatic(
        &self,
        user: &UserIdentity,
        resource: &Offered,
        asked: &[(&str, &str)],
    ) -> Option<Automatic> {
        let roles = self.snapshot().roles(&user.roles);
        postern_access::automatic(&subject(user, &roles), &target(resource), asked)
    }

    /// What `made` was given is still to be given to it.
    fn still(
        &self,
        user: &UserIdentity,
        resource: &Offered,
        asked: &[(&str, &str)],
        made: &Automatic,
    ) -> Result<(), String> {
        let now = self.automatic(user, resource, asked);
        let granted = now.map_or_else(Vec::new, |now| now.roles);
        match made.roles.iter().find(|role| !granted.contains(role)) {
            Some(role) => Err(format!(
                "the roles of {} no longer give db role {role:?} to the account of that name",
                user.name
            )),
            None => Ok(()),
        }
    }

    pub fn may_forward(&self, user: &UserIdentity, resource: &Offered) -> bool {
        let roles = self.snapshot().roles(&user.roles);
        postern_access::may_forward(&subject(user, &roles), &target(resource))
    }

    /// Resolves when what was allowed is allowed no longer (a lock, a changed role), or what an account was given that was made
    /// for it; for sessions that are already running. An old cache alone ends nothing, not even with
    /// `lock_mode = "strict"`.
    pub async fn until_refused(
        &self,
        user: &UserIdentity,
        resource: &Offered,
        asked: &[(&str, &str)],
        made: Option<&Automatic>,
    ) -> String {
        let mut cache = self.cache.clone();
        loop {
            cache.borrow_and_update();
            let verdict = self.verdict(user, resource, asked);
            let still = || made.map_or(Ok(()), |made| self.still(user, resource, asked, made));
            if let Err(why) = verdict.and_then(|_| still()) {
                return why;
            }
            if cache.changed().await.is_err() {
                // The agent is going down; that ends the session by its own way.
                std::future::pending::<()>().await;
            }
        }
    }
}

fn subject<'a>(user: &'a UserIdentity, roles: &'a [postern_access::Role]) -> Subject<'a> {
    Subject {
        user: &user.name,
        roles,
        traits: &user.traits,
    }
}

fn target(resource: &Offered) -> Target<'_> {
    Target {
        kind: &resource.id.kind,
        name: &resource.id.name,
        labels: &resource.labels,
    }
}

#[cfg(test)]
mod tests;
