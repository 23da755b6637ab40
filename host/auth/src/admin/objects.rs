//! The stored records as administrators see them: no hashes, no answers, times as text.

use postern_access::{Lock, Role};
use postern_api::v1::Object;
use postern_identity::AgentIdentity;
use serde_json::{Value, json};
use tonic::Status;

use super::bad;
use crate::error::failed;
use crate::inventory::Seen;
use crate::kv::KvError;
use crate::records::{
    Agent, AnnouncedResource, KeySource, Method, Resource, Token, User, all, lock_host,
    lock_service,
};
use crate::state::Shared;
use crate::time::{self, rfc3339};

/// All objects of a kind, by name.
pub async fn list(state: &Shared, kind: &str) -> Result<Vec<Object>, Status> {
    let objects = match kind {
        "token" => all::<Token>(&state.kv)
            .await
            .map(|v| v.iter().map(|t| token(&t.value)).collect()),
        "user" => all::<User>(&state.kv)
            .await
            .map(|v| v.iter().map(|u| user(&u.value)).collect()),
        "role" => all::<Role>(&state.kv).await.map(|v| {
            v.iter()
                .map(|r| (r.value.name.clone(), json!(r.value)))
                .collect()
        }),
        "lock" => all::<Lock>(&state.kv).await.map(|v| {
            v.iter()
                .map(|l| (l.value.target.clone(), json!(l.value)))
                .collect()
        }),
        "resource" => all::<Resource>(&state.kv)
            .await
            .map(|v| v.iter().map(|r| resource(&r.value)).collect()),
        "agent" => agents(state).await,
        other => {
            return Err(bad(format!(
                "{other:?} is no kind of object; there are token, user, role, agent, lock, resource"
            )));
        }
    };
    let objects: Vec<(String, Value)> =
        objects.map_err(|e| failed(&format!("list the {kind}s"), e))?;
    Ok(objects
        .into_iter()
        .map(|(name, json)| Object {
            kind: kind.to_owned(),
            name,
            json: json.to_string(),
        })
        .collect())
}

fn token(t: &Token) -> (String, Value) {
    let expired = t.expires_unix.is_some_and(|at| at <= time::now());
    let used_up = t.uses.is_some_and(|uses| t.used >= uses);
    let name = t.label();
    let json = json!({
        "id": name, "method": t.method_word(), "proof": proof(&t.method), "kinds": t.kinds, "names": t.names,
        "created": rfc3339(t.created_unix), "expires": t.expires_unix.map(rfc3339),
        "uses": t.uses, "used": t.used,
        "state": if expired { "expired" } else if used_up { "used up" } else { "valid" },
    });
    (name, json)
}

/// What a host has to show, without what is secret or long.
fn proof(method: &Method) -> Value {
    match method {
        Method::Secret(_) => Value::Null,
        Method::IdToken(m) => json!({
            "issuer": m.issuer, "audiences": m.audiences, "admit": m.admit,
            "keys": match m.keys { KeySource::Static(_) => "static", KeySource::Discovered { .. } => "fetched" },
        }),
        Method::BoundKeypair(b) => json!({
            "public_key": b.public_key, "host_id": b.host_id,
            "registration_expires": b.registration.as_ref().map(|r| rfc3339(r.expires_unix)),
        }),
    }
}

fn user(u: &User) -> (String, Value) {
    let code = u.code.as_ref();
    let waiting = code.filter(|c| c.expires_unix > time::now());
    let state = match (&u.password, waiting, code) {
        (Some(_), _, _) => "enrolled",
        (None, Some(_), _) => "invited",
        (None, None, Some(_)) => "invitation expired",
        (None, None, None) => "no password",
    };
    let json = json!({
        "name": u.name, "roles": u.roles, "traits": u.traits, "state": state,
        "created": rfc3339(u.created_unix), "code_expires": waiting.map(|c| rfc3339(c.expires_unix)),
    });
    (u.name.clone(), json)
}

fn resource(r: &Resource) -> (String, Value) {
    let owner = r
        .holders
        .first()
        .map(|h| format!("{}/{}", h.host_id, h.service));
    let json = json!({ "kind": r.kind, "name": r.name, "owner": owner, "holders": r.holders });
    (format!("{}/{}", r.kind, r.name), json)
}

async fn agents(state: &Shared) -> Result<Vec<(String, Value)>, KvError> {
    let mut objects = Vec::new();
    let mut refused = state.inventory.refused();
    for agent in all::<Agent>(&state.kv).await? {
        let a = agent.value;
        let id = AgentIdentity {
            host_id: a.host_id.clone(),
            service: a.service.clone(),
        };
        let join_failed = refused.remove(&id).map(|r| r.message);
        let seen = state.inventory.get(&id);
        let lock = state
            .locked(&[lock_host(&a.host_id), lock_service(&a.host_id, &a.service)])
            .await?;
        let healthy = seen.as_ref().is_some_and(Seen::healthy);
        let last_seen = seen
            .as_ref()
            .and_then(|s| s.last)
            .map(|(_, at)| rfc3339(time::unix(at)));
        let json = json!({
            "host_id": a.host_id, "service": a.service, "kind": a.kind, "names": a.names,
            "generation": a.generation, "joined": rfc3339(a.joined_unix), "expires": rfc3339(a.not_after_unix),
            "hostname": seen.as_ref().map(|s| &s.announced.hostname),
            "version": seen.as_ref().map_or(&a.version, |s| &s.announced.version),
            "plugin": seen.as_ref().map(|s| &s.announced.plugin),
            "resources": seen.as_ref().map(announced),
            "tunnel_rtt_ms": seen.as_ref().map(|s| s.rtt_ms),
            "last_seen": last_seen, "healthy": healthy, "locked": lock.map(|l| l.reason),
            "join_failed": join_failed,
        });
        objects.push((format!("{}/{}", a.host_id, a.service), json));
    }
    // Services of known hosts that have not joined at all.
    for (id, why) in refused {
        let json = json!({
            "host_id": id.host_id, "service": id.service, "kind": why.kind, "healthy": false,
            "last_seen": rfc3339(time::unix(why.at)), "join_failed": why.message,
        });
        objects.push((format!("{}/{}", id.host_id, id.service), json));
    }
    objects.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(objects)
}

/// What a service offers; of those whose addresses do not answer it, why and since when.
fn announced(seen: &Seen) -> Vec<Value> {
    let resources = seen.announced.resources.iter();
    let one = |r: &AnnouncedResource| {
        let mut one = json!(r);
        if let Some(why) = seen.unreachable.get(&r.name) {
            one["unreachable"] =
                json!({ "reason": why.reason, "since": rfc3339(why.since_unix.max(0)) });
        }
        one
    };
    resources.map(one).collect()
}
