//! What Auth signs for databases (D2): a certificate per connection for the agent that dials one, after looking at the
//! user again; and the servers' own.

use std::time::Duration;

use postern_access::{Decision, Subject, Target};
use postern_api::status::{reasons, refuse};
use postern_api::v1::{
    SignDbClientRequest, SignDbClientResponse, SignDbServerRequest, SignDbServerResponse,
};
use postern_identity::{Peer, UserIdentity, check_label};
use rustls::pki_types::CertificateDer;
use tonic::{Code, Status};

use crate::caller::{AgentCaller, locked_message};
use crate::error::internal;
use crate::records::{Agent, Announced, Resource, User, load, lock_user};
use crate::state::State;

/// How long a certificate for one connection lives: as long as a slow login may take.
const CLIENT_TTL: Duration = Duration::from_secs(300);
/// How long a database's own certificate lives, where nothing else was asked for, and at most.
const SERVER_TTL: Duration = Duration::from_secs(90 * 86_400);
const MAX_SERVER_TTL: Duration = Duration::from_secs(825 * 86_400);
const MAX_NAMES: usize = 32;
/// A leaf; longer chains are nobody's of this cluster.
const MAX_CHAIN: usize = 4;
const MAX_PRINCIPALS: usize = 64;

fn bad(message: impl Into<String>) -> Status {
    refuse(Code::InvalidArgument, reasons::BAD_REQUEST, message)
}

fn denied(reason: &'static str, message: impl Into<String>) -> Status {
    refuse(Code::PermissionDenied, reason, message)
}

/// For one connection of `caller` to a database as `account`. Signs and refusals are audited.
pub async fn sign_client(
    state: &State,
    caller: &AgentCaller,
    req: SignDbClientRequest,
) -> Result<SignDbClientResponse, Status> {
    let signed = signed(state, caller, &req).await;
    let about = state
        .event("db.certificate")
        .with("host_id", &caller.id.host_id)
        .with("service", &caller.id.service)
        .with("resource", &req.resource)
        .with("account", &req.account)
        .with("session_id", &req.session_id);
    match signed {
        Ok((user, response)) => {
            let event = about.with("success", true).with("user", user.name);
            state.record(event).await;
            Ok(response)
        }
        Err(status) => {
            let who = ("db.certificate", &caller.id.host_id, &caller.id.service);
            if state.refusal_limit.take(who).is_ok() {
                let event = about
                    .with("success", false)
                    .with("reason", status.message());
                state.record(event).await;
            }
            Err(status)
        }
    }
}

/// The principals that are accounts at a database.
const ACCOUNTS: &str = "db_users";

async fn signed(
    state: &State,
    caller: &AgentCaller,
    req: &SignDbClientRequest,
) -> Result<(UserIdentity, SignDbClientResponse), Status> {
    if caller.is_proxy() {
        return Err(denied(
            reasons::WRONG_CALLER,
            "a proxy serves no databases and gets no certificate for one",
        ));
    }
    if req.principals.len() > MAX_PRINCIPALS || req.user_chain.len() > MAX_CHAIN {
        return Err(bad(format!(
            "at most {MAX_PRINCIPALS} principals and {MAX_CHAIN} certificates"
        )));
    }
    check_label("resource name", &req.resource).map_err(|e| bad(e.to_string()))?;
    let labels = held(state, caller, &req.resource).await?;
    let user = user(state, &req.user_chain).await?;
    let asked: Vec<(&str, &str)> = req
        .principals
        .iter()
        .map(|p| (p.r#type.as_str(), p.value.as_str()))
        .collect();
    // By type too: a database's name may be that of its superuser.
    if !asked.contains(&(ACCOUNTS, req.account.as_str())) {
        return Err(bad(format!(
            "account {:?} is none of the principals that the session has",
            req.account
        )));
    }
    let roles = state
        .roles(&user.roles)
        .await
        .map_err(|e| internal("read the roles", e))?;
    let subject = Subject {
        user: &user.name,
        roles: &roles,
        traits: &user.traits,
    };
    let (kind, labels) = labels;
    let target = Target {
        kind: &kind,
        name: &req.resource,
        labels: &labels,
    };
    if let Decision::Deny { reason } = postern_access::decide(&subject, &target, &asked) {
        return Err(denied(reasons::ACCESS_DENIED, reason));
    }
    let (certificate, not_after_unix) = state
        .authority
        .sign_db_client(&req.spki, &req.account, &user.name, CLIENT_TTL)
        .map_err(|e| bad(e.to_string()))?;
    Ok((
        user,
        SignDbClientResponse {
            certificate,
            not_after_unix,
        },
    ))
}

/// Kind and labels of a resource that the calling service holds, as it announced them here.
async fn held(
    state: &State,
    caller: &AgentCaller,
    name: &str,
) -> Result<(String, std::collections::BTreeMap<String, String>), Status> {
    let id = &caller.id;
    let failed = |e| internal("read what the service holds", e);
    let not_its = || {
        let message = format!(
            "service {:?} of host {} does not hold resource {name:?}: it must have joined with it, and announced it",
            id.service, id.host_id
        );
        denied(reasons::ACCESS_DENIED, message)
    };
    let agent = load::<Agent>(&state.kv, &Agent::key(&id.host_id, &id.service)).await;
    let agent = agent.map_err(failed)?.ok_or_else(not_its)?.value;
    let key = Resource::key(&agent.kind, name);
    let resource = load::<Resource>(&state.kv, &key).await.map_err(failed)?;
    if !agent.names.iter().any(|n| n == name)
        || !resource.is_some_and(|r| r.value.held_by(&id.host_id))
    {
        return Err(not_its());
    }
    let key = Announced::key(&id.host_id, &id.service);
    let announced = load::<Announced>(&state.kv, &key).await.map_err(failed)?;
    let resources = announced.map(|a| a.value.resources).unwrap_or_default();
    let announced = resources.into_iter().find(|r| r.name == name);
    Ok((agent.kind, announced.ok_or_else(not_its)?.labels))
}

/// The user behind a certificate, with those of its roles that the user still has.
async fn user(state: &State, chain: &[Vec<u8>]) -> Result<UserIdentity, Status> {
    let chain: Vec<CertificateDer<'_>> = chain
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let mut user = match Peer::from_chain(&chain, state.authority.trust()) {
        Ok((Peer::User(user), _)) => user,
        Ok((Peer::Agent(_), _)) => {
            let message = "an agent's certificate was given as the user's";
            return Err(denied(reasons::BAD_CERTIFICATE, message));
        }
        Err(e) => return Err(denied(reasons::BAD_CERTIFICATE, e.to_string())),
    };
    let lock = state.locked(&[lock_user(&user.name)]).await;
    if let Some(lock) = lock.map_err(|e| internal("read the locks", e))? {
        return Err(denied(reasons::LOCKED, locked_message(&lock)));
    }
    let record = load::<User>(&state.kv, &User::key(&user.name)).await;
    let Some(record) = record.map_err(|e| internal("read the user", e))? else {
        let message = format!("user {:?} is not known here any more", user.name);
        return Err(denied(reasons::NOT_FOUND, message));
    };
    user.roles.retain(|role| record.value.roles.contains(role));
    Ok(user)
}

/// For a database itself; for administrators.
pub async fn sign_server(
    state: &State,
    req: SignDbServerRequest,
    by: Option<u32>,
) -> Result<SignDbServerResponse, Status> {
    if req.names.is_empty() || req.names.len() > MAX_NAMES {
        return Err(bad(format!(
            "{} names given; a server has 1 to {MAX_NAMES}",
            req.names.len()
        )));
    }
    let ttl = match req.ttl_seconds {
        0 => SERVER_TTL,
        secs => Duration::from_secs(secs).min(MAX_SERVER_TTL),
    };
    let (certificate_pem, not_after_unix) = state
        .authority
        .sign_db_server(&req.spki, &req.names, ttl)
        .map_err(|e| bad(e.to_string()))?;
    let event = state
        .event("db.server_certificate")
        .with("names", &req.names)
        .with("not_after", crate::time::rfc3339(not_after_unix))
        .with("admin_uid", by);
    state.record(event).await;
    Ok(SignDbServerResponse {
        certificate_pem,
        client_ca_pem: state.authority.db_client_ca(),
        not_after_unix,
    })
}
