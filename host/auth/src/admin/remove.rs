//! Removing things. What is removed must stop working at once, so agents and users leave a lock behind: their
//! certificates are still valid, and every agent, proxy and tunnel that watches the locks cuts them.

use postern_access::{Lock, Role};
use postern_api::status::{reasons, refuse};
use postern_api::v1::RemoveRequest;
use postern_audit::names;
use postern_identity::{AgentIdentity, check_host_id};
use tonic::{Code, Status};

use super::{bad, not_found};
use crate::error::{self, AuthError};
use crate::join::release;
use crate::kv::{KvError, KvExt, Txn};
use crate::records::{
    Agent, Announced, At, Host, Resource, Token, User, all, decode, load, lock_host, lock_key,
    lock_service, lock_user, role_key,
};
use crate::state::{Shared, with_lock};
use crate::time;

const ATTEMPTS: usize = 50;

pub async fn remove(state: &Shared, req: &RemoveRequest, by: Option<u32>) -> Result<(), Status> {
    let (kind, name) = (req.kind.as_str(), req.name.as_str());
    let event = match kind {
        "token" => {
            let (id, label) = match name.strip_prefix("pt_") {
                // A whole token was pasted: its id is meant, and its secret belongs into no message.
                Some(rest) => {
                    let id = rest.split('_').next().unwrap_or(rest);
                    (id, format!("pt_{id}"))
                }
                None => (name, name.to_owned()),
            };
            delete(state, kind, &label, Token::key(id)).await?;
            state.event("token.remove").with("token", label)
        }
        "role" => {
            delete(state, kind, name, role_key(name)).await?;
            state.event("role.remove").with("role", name)
        }
        "lock" => {
            delete(state, kind, name, lock_key(name)).await?;
            state.event("lock.remove").with("target", name)
        }
        "user" => {
            remove_user(state, name).await?;
            state.event("user.remove").with("user", name)
        }
        "agent" => {
            let removed = remove_agent(state, name).await?;
            state
                .event("agent.remove")
                .with("agent", name)
                .with("services", removed)
        }
        other => {
            return Err(bad(format!(
                "{other:?} cannot be removed; token, user, role, agent and lock can"
            )));
        }
    };
    state.record(event.with("admin_uid", by)).await;
    Ok(())
}

async fn delete(state: &Shared, kind: &str, name: &str, key: String) -> Result<(), Status> {
    let failed = |e: KvError| error::failed(&format!("remove the {kind}"), e);
    if state.kv.get(&key).await.map_err(failed)?.is_none() {
        return Err(not_found(kind, name));
    }
    state.kv.delete(&key).await.map(|_| ()).map_err(failed)
}

async fn remove_user(state: &Shared, name: &str) -> Result<(), Status> {
    for _ in 0..ATTEMPTS {
        match try_remove_user(state, name).await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(not_found("user", name)),
            // The user logged in, or was changed or locked, at the same moment.
            Err(KvError::Conflict { .. }) => {}
            Err(e) => return Err(error::failed("remove the user", e)),
        }
    }
    Err(refuse(
        Code::Unavailable,
        reasons::BUSY,
        "the user keeps logging in; lock the name first with: postern locks create",
    ))
}

async fn try_remove_user(state: &Shared, name: &str) -> Result<bool, KvError> {
    let Some(user) = load::<User>(&state.kv, &User::key(name)).await? else {
        return Ok(false);
    };
    // Until the last certificate of the user has expired. Records of earlier versions don't say when that is: the
    // longest life any role allows today, and at least the default.
    let roles = all::<Role>(&state.kv).await?;
    let longest = roles
        .iter()
        .map(|r| r.value.options.max_session_ttl_secs)
        .max()
        .unwrap_or(0)
        .max(12 * 3600);
    let by_roles = u64::try_from(time::now())
        .unwrap_or(0)
        .saturating_add(longest);
    let by_record = u64::try_from(user.value.not_after_unix).unwrap_or(0);
    let expires = by_roles.max(by_record);
    let target = lock_user(name);
    let held = load::<Lock>(&state.kv, &lock_key(&target)).await?;
    let txn = Txn::new()
        .expect(lock_key(&target), held.as_ref().map(|l| l.revision))
        .expect(User::key(name), Some(user.revision))
        .delete(User::key(name));
    // A lock that holds longer stays: an administrator's, or that of an earlier user of this name.
    let longer = |l: &At<Lock>| l.value.expires_unix.is_none_or(|at| at >= expires);
    let txn = if held.as_ref().is_some_and(longer) {
        txn
    } else {
        let lock = Lock {
            target,
            reason: "the user was removed".into(),
            expires_unix: Some(expires),
        };
        with_lock(txn, &lock)
    };
    state.kv.commit(txn).await.map(|_| true)
}

/// A service leaves of itself: its record and its names go, the host's grant stays, and nothing is locked.
pub async fn leave(state: &Shared, id: &AgentIdentity) -> Result<(), Status> {
    for _ in 0..ATTEMPTS {
        match take_away(state, &id.host_id, Some(&id.service), None).await {
            Ok(gone) => {
                if !gone.is_empty() {
                    let event = state
                        .event(names::AGENT_LEAVE)
                        .with("host_id", &id.host_id)
                        .with("service", &id.service);
                    state.record(event).await;
                }
                return Ok(());
            }
            Err(AuthError::Kv(KvError::Conflict { .. })) => {}
            Err(e) => return Err(error::failed("take the service off the records", e)),
        }
    }
    Err(refuse(
        Code::Unavailable,
        reasons::BUSY,
        "the service keeps joining while it leaves; try again",
    ))
}

/// `<host_id>/<service>`, or `<host_id>` for everything of a host and its grant. Returns the services removed.
async fn remove_agent(state: &Shared, name: &str) -> Result<Vec<String>, Status> {
    let (host_id, service) = name
        .split_once('/')
        .map_or((name, None), |(h, s)| (h, Some(s)));
    check_host_id(host_id).map_err(|e| {
        bad(format!(
            "{e}; an agent is named <host id>/<service>, see: postern agents ls"
        ))
    })?;
    let lock = Lock {
        target: match service {
            Some(service) => lock_service(host_id, service),
            None => lock_host(host_id),
        },
        reason: "removed by an administrator".into(),
        expires_unix: None,
    };
    for _ in 0..ATTEMPTS {
        match take_away(state, host_id, service, Some(lock.clone())).await {
            Ok(removed) if removed.is_empty() => return Err(not_found("agent", name)),
            Ok(removed) => return Ok(removed),
            // A join or renewal came between.
            Err(AuthError::Kv(KvError::Conflict { .. })) => {}
            Err(e) => return Err(error::failed("remove the agent", e)),
        }
    }
    Err(refuse(
        Code::Unavailable,
        reasons::BUSY,
        "the agent keeps joining; lock it first with: postern locks create",
    ))
}

async fn take_away(
    state: &Shared,
    host_id: &str,
    service: Option<&str>,
    lock: Option<Lock>,
) -> Result<Vec<String>, AuthError> {
    let Some(removal) = Removal::of(state, host_id, service, lock).await? else {
        return Ok(Vec::new());
    };
    state.kv.commit(removal.txn).await?;
    Ok(removal.gone.forget(state))
}

/// What takes a host, or one of its services, off the records.
pub struct Removal {
    pub txn: Txn,
    pub gone: Gone,
}

/// Who is off the records once the transaction holds.
pub struct Gone {
    host_id: String,
    services: Vec<String>,
}

impl Removal {
    /// With a lock, certificates stop working at once, and the last service of a host takes the grant along: nothing is
    /// left that it was given for. Without, a service said goodbye. `None`: there is no such host or service.
    pub async fn of(
        state: &Shared,
        host_id: &str,
        service: Option<&str>,
        lock: Option<Lock>,
    ) -> Result<Option<Self>, AuthError> {
        let agents = state.kv.range(vec![Agent::prefix(host_id)]).await?.entries;
        let agents: Vec<At<Agent>> = agents.iter().map(decode).collect::<Result<_, _>>()?;
        let is_gone = |a: &At<Agent>| service.is_none_or(|s| a.value.service == s);
        let alone = agents.iter().all(is_gone);
        let gone: Vec<&At<Agent>> = agents.iter().filter(|a| is_gone(a)).collect();
        let host = load::<Host>(&state.kv, &Host::key(host_id)).await?;
        if gone.is_empty() && !(service.is_none() && host.is_some()) {
            return Ok(None);
        }
        let whole_host = lock.is_some() && (service.is_none() || alone);
        let mut txn = lock.map_or_else(Txn::new, |lock| with_lock(Txn::new(), &lock));
        for agent in &gone {
            let a = &agent.value;
            let key = Agent::key(host_id, &a.service);
            txn = txn
                .expect(key.clone(), Some(agent.revision))
                .delete(key)
                .delete(Announced::key(host_id, &a.service));
        }
        if let Some(host) = host.filter(|_| whole_host) {
            txn = txn
                .expect(Host::key(host_id), Some(host.revision))
                .delete(Host::key(host_id));
        }
        let held = all::<Resource>(&state.kv).await?;
        for resource in held.iter().filter(|r| r.value.held_by(host_id)) {
            txn = release(txn, resource, host_id, service);
        }
        let services = gone.iter().map(|a| a.value.service.clone()).collect();
        let host_id = host_id.to_owned();
        Ok(Some(Removal {
            txn,
            gone: Gone { host_id, services },
        }))
    }
}

impl Gone {
    /// By name.
    pub fn services(&self) -> &[String] {
        &self.services
    }

    /// Their heartbeats count no more. Returns what is gone, for people.
    pub fn forget(mut self, state: &Shared) -> Vec<String> {
        for service in &self.services {
            state.inventory.forget(&AgentIdentity {
                host_id: self.host_id.clone(),
                service: service.clone(),
            });
        }
        if self.services.is_empty() {
            self.services.push("grant".into());
        }
        self.services
    }
}
