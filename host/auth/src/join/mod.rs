//! Joining (D1, D3): reads what is stored, lets [`decide`] decide, signs, and writes everything in one transaction
//! that holds only if nothing it was decided on has changed. Whoever loses such a race decides anew.

mod decide;
mod proof;
mod request;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use postern_access::Lock;
use postern_api::status::{reasons, refuse};
use postern_api::v1::{JoinRequest, JoinResponse};
use postern_audit::{Event, names};
use postern_identity::AgentIdentity;
use prost::Message;
use tonic::{Code, Status};

use crate::admin::{Gone, Removal};
use crate::error::{AuthError, internal};
use crate::kv::{Entry, KvError, Txn};
use crate::limits::network;
use crate::records::{
    Agent, At, Holder, Host, Record, Resource, ShownIdToken, Token, decode, load, lock_host,
    lock_key, lock_service,
};
use crate::state::{Shared, with_lock};
use crate::time;
use decide::{Decision, Plan, Refusal, TokenView, View, decide};
use proof::Proof;
use request::Ask;

/// Lost races before giving up. Each lost one means that another join was answered.
const ATTEMPTS: usize = 200;

/// Answers a join, and writes it into the audit log.
pub async fn join(state: &Shared, req: &JoinRequest, from: IpAddr) -> Result<JoinResponse, Status> {
    let ask = match Ask::check(req, state.cluster()) {
        Ok(ask) => ask,
        Err(refusal) => return Err(refused(state, req, None, from, refusal).await),
    };
    for _ in 0..ATTEMPTS {
        match attempt(state, &ask).await {
            Ok(Outcome::Joined(response, event)) => {
                state
                    .inventory
                    .joined(&identity(&ask.host_id, &ask.service));
                if let Some(event) = event {
                    state.record(event.with("source", from.to_string())).await;
                }
                return Ok(response);
            }
            Ok(Outcome::Refused(refusal, known)) => {
                let host = known.then_some(ask.host_id.as_str());
                return Err(refused(state, req, host, from, refusal).await);
            }
            Err(AuthError::Kv(KvError::Conflict { .. })) => continue,
            Err(AuthError::Ca(e)) => {
                let refusal = Refusal::new(Code::InvalidArgument, reasons::BAD_REQUEST, e);
                return Err(refused(state, req, Some(&ask.host_id), from, refusal).await);
            }
            Err(e) => return Err(internal("answer the join", e)),
        }
    }
    Err(refuse(
        Code::Unavailable,
        reasons::BUSY,
        format!(
            "service {:?}: too many joins at once; try again",
            req.service
        ),
    ))
}

enum Outcome {
    Joined(JoinResponse, Option<Event>),
    /// And whether the host is known here.
    Refused(Refusal, bool),
}

/// What was read, with the revisions to expect.
struct Read {
    host: Option<At<Host>>,
    agent: Option<At<Agent>>,
    proof: Proof,
    locks: Vec<Lock>,
    /// Of the asked names, and of those held so far.
    resources: Vec<(String, Option<At<Resource>>)>,
}

async fn attempt(state: &Shared, ask: &Ask) -> Result<Outcome, AuthError> {
    let mut read = read(state, ask).await?;
    let mut view = View {
        locks: read.locks.clone(),
        host: read.host.as_ref().map(|h| h.value.clone()),
        agent: read.agent.as_ref().map(|a| a.value.clone()),
        token: TokenView::None,
        resources: asked_resources(ask, &read),
    };
    let now = time::now();
    let mut decision = decide(ask, &view, now, state.opts.rejoin_window);
    // What is shown is looked at only where the host's grant is not enough: an issuer that can't be reached keeps no
    // member from coming back.
    if let Decision::Refuse(refusal) = &decision
        && matches!(
            refusal.reason,
            reasons::TOKEN_NEEDED | reasons::REJOIN_WINDOW | reasons::RESOURCE_CONFLICT
        )
    {
        read.proof = proof::shown(state, ask).await?;
        view.token = std::mem::take(&mut read.proof.view);
        decision = decide(ask, &view, now, state.opts.rejoin_window);
        // The token was read after the host: another service of the host may have used it meanwhile, and the host has got by
        // that what this one asks for.
        if matches!(decision, Decision::Refuse(_)) {
            unchanged(state, ask, &read).await?;
        }
    }
    match decision {
        Decision::Refuse(refusal) => Ok(Outcome::Refused(refusal, read.host.is_some())),
        Decision::Replay(agent) => {
            let mut response = hex::decode(&agent.answer)
                .map_err(|e| e.to_string())
                .and_then(|bytes| JoinResponse::decode(&*bytes).map_err(|e| e.to_string()))
                .map_err(|why| KvError::Corrupt {
                    key: Agent::key(&ask.host_id, &ask.service),
                    why,
                })?;
            response.trust_json = state.authority.trust_json();
            Ok(Outcome::Joined(response, None))
        }
        Decision::Copied(refusal) => {
            let lock = Lock {
                target: lock_service(&ask.host_id, &ask.service),
                reason: "its credentials were copied".into(),
                expires_unix: None,
            };
            let agent = Agent::key(&ask.host_id, &ask.service);
            let txn = Txn::new().expect(agent, read.agent.as_ref().map(|a| a.revision));
            state.kv.commit(with_lock(txn, &lock)).await?;
            Ok(Outcome::Refused(refusal, true))
        }
        Decision::Issue(plan) => issue(state, ask, &read, plan).await,
    }
}

/// # Errors
/// `Conflict`, where host or service are not as they were read.
async fn unchanged(state: &Shared, ask: &Ask, read: &Read) -> Result<(), AuthError> {
    let revisions = [
        read.host.as_ref().map(|h| h.revision),
        read.agent.as_ref().map(|a| a.revision),
    ];
    let keys = [
        Host::key(&ask.host_id),
        Agent::key(&ask.host_id, &ask.service),
    ];
    let now = state.kv.get_many(keys.to_vec()).await?;
    for ((key, revision), now) in keys.into_iter().zip(revisions).zip(now) {
        if now.map(|entry| entry.revision) != revision {
            return Err(KvError::Conflict { key }.into());
        }
    }
    Ok(())
}

async fn read(state: &Shared, ask: &Ask) -> Result<Read, AuthError> {
    let locks = state
        .locked(&[
            lock_host(&ask.host_id),
            lock_service(&ask.host_id, &ask.service),
        ])
        .await?;
    let keys = vec![
        Host::key(&ask.host_id),
        Agent::key(&ask.host_id, &ask.service),
    ];
    let entries = state.kv.get_many(keys).await?;
    let mut entries = entries.into_iter();
    let host = optional::<Host>(entries.next().flatten())?;
    let agent = optional::<Agent>(entries.next().flatten())?;
    let mut keys: Vec<String> = Vec::new();
    if !ask.is_proxy() {
        keys.extend(ask.names.iter().map(|name| Resource::key(&ask.kind, name)));
        if let Some(agent) = &agent {
            keys.extend(
                agent
                    .value
                    .names
                    .iter()
                    .map(|name| Resource::key(&agent.value.kind, name)),
            );
        }
        keys.sort_unstable();
        keys.dedup();
    }
    let entries = state.kv.get_many(keys.clone()).await?;
    let resources = keys
        .into_iter()
        .zip(entries)
        .map(|(key, e)| Ok((key, optional(e)?)))
        .collect::<Result<_, KvError>>()?;
    Ok(Read {
        host,
        agent,
        proof: Proof::default(),
        locks: locks.into_iter().collect(),
        resources,
    })
}

fn optional<T: Record>(entry: Option<Entry>) -> Result<Option<At<T>>, KvError> {
    entry.as_ref().map(decode).transpose()
}

fn asked_resources(ask: &Ask, read: &Read) -> Vec<Resource> {
    let held = read
        .resources
        .iter()
        .filter_map(|(_, r)| r.as_ref())
        .map(|r| &r.value);
    held.filter(|r| r.kind == ask.kind && ask.names.binary_search(&r.name).is_ok())
        .cloned()
        .collect()
}

async fn issue(state: &Shared, ask: &Ask, read: &Read, plan: Plan) -> Result<Outcome, AuthError> {
    let certificates = state.authority.sign_service(
        &ask.host_id,
        &ask.service,
        &ask.kind,
        &ask.names,
        (&ask.spki, &ask.ssh_public_key),
        state.opts.cert_ttl,
    )?;
    let mut response = JoinResponse {
        generation: plan.generation,
        tls_server_cert_pem: certificates.tls_server_pem,
        tls_client_cert_pem: certificates.tls_client_pem,
        ssh_host_cert: certificates.ssh_host,
        ssh_client_cert: certificates.ssh_client,
        trust_json: String::new(),
        not_after_unix: certificates.not_after_unix,
    };
    let (txn, replaced) = match &plan.replaces {
        Some(host_id) => replace(state, host_id, &plan).await?,
        None => (Txn::new(), None),
    };
    let now = time::now();
    let host = Host {
        host_id: ask.host_id.clone(),
        grants: plan.grants,
        not_after_unix: read
            .host
            .as_ref()
            .map_or(0, |h| h.value.not_after_unix)
            .max(response.not_after_unix),
        created_unix: read.host.as_ref().map_or(now, |h| h.value.created_unix),
    };
    let agent = Agent {
        host_id: ask.host_id.clone(),
        service: ask.service.clone(),
        kind: ask.kind.clone(),
        names: ask.names.clone(),
        generation: plan.generation,
        nonce: ask.nonce.clone(),
        asked: ask.digest.clone(),
        answer: hex::encode(response.encode_to_vec()),
        not_after_unix: response.not_after_unix,
        joined_unix: read.agent.as_ref().map_or(now, |a| a.value.joined_unix),
        version: ask.version.clone(),
    };
    let (host_key, agent_key) = (
        Host::key(&ask.host_id),
        Agent::key(&ask.host_id, &ask.service),
    );
    let mut txn = txn
        .expect(lock_key(&lock_host(&ask.host_id)), None)
        .expect(lock_key(&lock_service(&ask.host_id, &ask.service)), None)
        .expect(host_key.clone(), read.host.as_ref().map(|h| h.revision))
        .expect(agent_key.clone(), read.agent.as_ref().map(|a| a.revision))
        .put(host_key, host.encode())
        .put(agent_key, agent.encode());
    if let (Some(used), Some(stored)) = (&plan.token, &read.proof.stored) {
        let txn_expecting = txn.expect(Token::key(&used.id), Some(stored.revision));
        txn = put_token(txn_expecting, used, now);
        if let Some(shown) = &read.proof.id_token {
            let by = ShownIdToken {
                host_id: ask.host_id.clone(),
            };
            let left = u64::try_from(shown.until.saturating_sub(now)).unwrap_or(0);
            txn = txn.expect(shown.key.clone(), shown.revision).put_for(
                shown.key.clone(),
                by.encode(),
                Duration::from_secs(left.max(1)),
            );
        }
    }
    let mut claims: BTreeMap<String, &Resource> = plan
        .claims
        .iter()
        .map(|c| (Resource::key(&c.kind, &c.name), c))
        .collect();
    for (key, resource) in &read.resources {
        let revision = resource.as_ref().map(|r| r.revision);
        let claimed = claims.remove(key);
        txn = match (claimed, resource) {
            (Some(claim), _) => txn
                .expect(key.clone(), revision)
                .put(key.clone(), claim.encode()),
            (None, Some(held))
                if ask.kind == held.value.kind
                    && ask.names.binary_search(&held.value.name).is_ok() =>
            {
                txn.expect(key.clone(), revision)
            }
            // Served until now and asked for no more.
            (None, Some(held)) => {
                let mut held = held.clone();
                // Released above already, where it held the name too.
                let stays = |h: &Holder| plan.replaces.as_ref() != Some(&h.host_id);
                held.value.holders.retain(stays);
                release(txn, &held, &ask.host_id, Some(&ask.service))
            }
            (None, None) => txn,
        };
    }
    state.kv.commit(txn).await?;
    if let Some(gone) = replaced {
        let host_id = plan.replaces.as_deref().unwrap_or_default();
        let event = state
            .event(names::AGENT_REPLACED)
            .with("host_id", host_id)
            .with("by", &ask.host_id)
            .with("services", gone.forget(state))
            .with("token", plan.token.as_ref().map(Token::label));
        state.record(event).await;
    }
    response.trust_json = state.authority.trust_json();
    let event = state
        .event(names::AGENT_JOIN)
        .with("host_id", &ask.host_id)
        .with("service", &ask.service)
        .with("kind", &ask.kind)
        .with("names", &ask.names)
        .with("via", plan.via.name())
        .with("token", plan.token.as_ref().map(Token::label))
        .with("method", plan.token.as_ref().map(Token::method_word))
        .with("subject", read.proof.id_token.as_ref().map(|t| &t.subject))
        .with("generation", plan.generation)
        .with("not_after", time::rfc3339(response.not_after_unix));
    Ok(Outcome::Joined(response, Some(event)))
}

/// Takes a host (or one of its services) off a name; the next holder becomes its owner, and a name that nobody
/// holds is free.
pub fn release(txn: Txn, held: &At<Resource>, host_id: &str, service: Option<&str>) -> Txn {
    let key = Resource::key(&held.value.kind, &held.value.name);
    let gone =
        |h: &crate::records::Holder| h.host_id == host_id && service.is_none_or(|s| h.service == s);
    let mut left = held.value.clone();
    left.holders.retain(|h| !gone(h));
    if left.holders.len() == held.value.holders.len() {
        return txn;
    }
    let txn = txn.expect(key.clone(), Some(held.revision));
    if left.holders.is_empty() {
        txn.delete(key)
    } else {
        txn.put(key, left.encode())
    }
}

/// What takes the host off the records that the token's bound key served before: a lost disk, or a copied key. Its
/// certificates stop working, so that only one of the two goes on.
async fn replace(
    state: &Shared,
    host_id: &str,
    plan: &Plan,
) -> Result<(Txn, Option<Gone>), AuthError> {
    let token = plan.token.as_ref().map(Token::label).unwrap_or_default();
    let host = load::<Host>(&state.kv, &Host::key(host_id)).await?;
    // As it is now: a renewal meanwhile would outlive the lock.
    let mut as_read = Txn::new().expect(Host::key(host_id), host.as_ref().map(|h| h.revision));
    let lock = Lock {
        target: lock_host(host_id),
        reason: format!("another host has joined with its key pair (token {token})"),
        // Afterwards its certificates are dead by themselves.
        expires_unix: host
            .and_then(|h| u64::try_from(h.value.not_after_unix).ok())
            .map(|at| at.saturating_add(60)),
    };
    let Some(removal) = Removal::of(state, host_id, None, Some(lock)).await? else {
        return Ok((as_read.expect(lock_key(&lock_host(host_id)), None), None));
    };
    // Nobody has locked it meanwhile: that was looked at before.
    let services = removal.gone.services().iter();
    let locks = services.map(|s| lock_key(&lock_service(host_id, s)));
    for key in locks.chain([lock_key(&lock_host(host_id))]) {
        as_read = as_read.expect(key, None);
    }
    Ok((as_read.and(removal.txn), Some(removal.gone)))
}

/// Stores a token. Its record is kept a week longer than the token, so that a late join hears that it expired.
pub fn put_token(txn: Txn, token: &Token, now: i64) -> Txn {
    let key = Token::key(&token.id);
    let Some(expires) = token.expires_unix else {
        return txn.put(key, token.encode());
    };
    let left = expires
        .saturating_sub(now)
        .max(0)
        .saturating_add(7 * 86_400);
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(0));
    txn.put_for(key, token.encode(), left)
}

/// Audits a refusal and words it. Strangers who fail too often are not worth a line in the log each.
async fn refused(
    state: &Shared,
    req: &JoinRequest,
    known: Option<&str>,
    from: IpAddr,
    refusal: Refusal,
) -> Status {
    if known.is_none() && state.join_peer_limit.take(network(from)).is_err() {
        return refuse(
            Code::ResourceExhausted,
            reasons::RATE_LIMITED,
            format!(
                "service {:?}: too many refused joins from {from}; the last reason: {}",
                cut(&req.service),
                refusal.message
            ),
        );
    }
    let message = format!("service {:?}: {}", cut(&req.service), refusal.message);
    if let Some(host_id) = known {
        let id = identity(host_id, &cut(&req.service));
        state
            .inventory
            .join_refused(id, &cut(&req.kind), &refusal.message);
    }
    // Without a valid signature the request proves no host id.
    let host_id = postern_api::join::verify(req);
    let name = match (&refusal.conflict, refusal.reason) {
        (Some(_), _) => names::RESOURCE_CONFLICT,
        (None, reasons::AGENT_COPIED) => names::AGENT_COPIED,
        _ => names::JOIN_REFUSED,
    };
    let token = req
        .token
        .parse::<postern_api::token::JoinToken>()
        .ok()
        .map(|t| t.to_string())
        .or_else(|| (!req.token_name.is_empty()).then(|| cut(&req.token_name)));
    let mut event = state
        .event(name)
        .with("host_id", &host_id)
        .with("service", cut(&req.service))
        .with("kind", cut(&req.kind))
        .with(
            "names",
            req.names
                .iter()
                .take(20)
                .map(|n| cut(n))
                .collect::<Vec<_>>(),
        )
        .with("token", token)
        .with("reason", refusal.reason)
        .with("message", &message)
        .with("source", from.to_string());
    if let Some((resource, owner)) = &refusal.conflict {
        event = event.with("resource", resource).with("owner", owner);
    }
    // A locked or misconfigured agent tries again and again; its first tries tell the story.
    let who = host_id.unwrap_or_else(|| network(from).to_string());
    let who = ("join", who, &req.service, refusal.reason);
    if state.refusal_limit.take(who).is_ok() {
        state.record(event).await;
    }
    tracing::info!(source = %from, reason = refusal.reason, "join refused: {message}");
    refuse(refusal.code, refusal.reason, message)
}

fn identity(host_id: &str, service: &str) -> AgentIdentity {
    AgentIdentity {
        host_id: host_id.to_owned(),
        service: service.to_owned(),
    }
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(63).collect()
}
