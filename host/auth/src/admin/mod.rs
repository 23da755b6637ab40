//! Administration: over the Unix socket in the data directory only, for whoever may open it. Every change is audited.

mod objects;
mod presets;
mod remove;
mod tokens;

pub use remove::{Gone, Removal, leave};
pub use tokens::create_token;

use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use postern_access::{Lock, Role};
use postern_api::status::{reasons, refuse};
use postern_api::v1::admin_service_server::AdminService;
use postern_api::v1::{
    AuditEvent, AuditRequest, ClusterInfoResponse, CreateTokenRequest, CreateTokenResponse,
    CreateUserRequest, CreateUserResponse, Empty, GetRequest, ListRequest, Object, PutLockRequest,
    PutRoleRequest, RemoveRequest, SignDbServerRequest, SignDbServerResponse,
};
use postern_identity::{check_host_id, check_label, check_user_name};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Request, Response, Status};

use crate::audit_log::Filter;
use crate::error::failed;
use crate::kv::{KvError, KvExt};
use crate::login::hash_code;
use crate::records::{self, Agent, Announced, Code as OneTimeCode, Record, User, load, role_key};
use crate::state::Shared;
use crate::time;
use tokens::Created;

const CODE_TTL: u64 = 60 * 60;
/// Tokens and codes are handed around; none lives for ever.
const MAX_TTL: u64 = 366 * 86_400;

pub struct Admin(pub Shared);

fn bad(message: impl Into<String>) -> Status {
    refuse(Code::InvalidArgument, reasons::BAD_REQUEST, message)
}

fn not_found(kind: &str, name: &str) -> Status {
    refuse(
        Code::NotFound,
        reasons::NOT_FOUND,
        format!("there is no {kind} {name:?}; see: postern {kind}s ls"),
    )
}

/// The uid at the other end of the socket, for the audit log.
fn admin<T>(req: &Request<T>) -> Option<u32> {
    let info = req.extensions().get::<UdsConnectInfo>()?;
    info.peer_cred.as_ref().map(tokio::net::unix::UCred::uid)
}

#[tonic::async_trait]
impl AdminService for Admin {
    type ListStream = BoxStream<'static, Result<Object, Status>>;
    type AuditStream = BoxStream<'static, Result<AuditEvent, Status>>;

    async fn create_token(
        &self,
        req: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let by = admin(&req);
        let Created { token, secret } = create_token(&self.0, req.into_inner()).await?;
        let event = self
            .0
            .event("token.create")
            .with("token", token.label())
            .with("method", token.method_word())
            .with("kinds", &token.kinds)
            .with("names", &token.names)
            .with("uses", token.uses)
            .with("expires", token.expires_unix.map(time::rfc3339))
            .with("admin_uid", by);
        self.0.record(event).await;
        Ok(Response::new(CreateTokenResponse {
            token: secret.to_string(),
            expires_unix: token.expires_unix.unwrap_or(0),
            id: token.id,
        }))
    }

    async fn create_user(
        &self,
        req: Request<CreateUserRequest>,
    ) -> Result<Response<CreateUserResponse>, Status> {
        let by = admin(&req);
        self.create_user(req.into_inner(), by)
            .await
            .map(Response::new)
    }

    async fn put_role(&self, req: Request<PutRoleRequest>) -> Result<Response<Empty>, Status> {
        let by = admin(&req);
        let req = req.into_inner();
        let role: Role = serde_json::from_str(&req.role_json)
            .map_err(|e| bad(format!("this is no role: {e}")))?;
        check_label("role name", &role.name).map_err(|e| bad(e.to_string()))?;
        role.validate().map_err(|e| bad(e.to_string()))?;
        let key = role_key(&role.name);
        let put = if req.replace {
            self.0.kv.put(&key, role.encode()).await
        } else {
            self.0.kv.compare_and_swap(&key, None, role.encode()).await
        };
        match put {
            Ok(_) => {}
            Err(KvError::Conflict { .. }) => {
                return Err(exists("role", &role.name, "replace it with --replace"));
            }
            Err(e) => return Err(failed("store the role", e)),
        }
        self.0
            .record(
                self.0
                    .event("role.put")
                    .with("role", &role)
                    .with("admin_uid", by),
            )
            .await;
        Ok(Response::new(Empty {}))
    }

    async fn put_lock(&self, req: Request<PutLockRequest>) -> Result<Response<Empty>, Status> {
        let by = admin(&req);
        let lock: Lock = serde_json::from_str(&req.into_inner().lock_json)
            .map_err(|e| bad(format!("this is no lock: {e}")))?;
        check_target(&lock.target)?;
        if lock
            .expires_unix
            .is_some_and(|at| i64::try_from(at).unwrap_or(i64::MAX) <= time::now())
        {
            return Err(bad("the lock's expiry is in the past"));
        }
        self.0
            .put_lock(&lock)
            .await
            .map_err(|e| failed("store the lock", e))?;
        let event = self
            .0
            .event("lock.put")
            .with("target", &lock.target)
            .with("reason", &lock.reason);
        self.0
            .record(
                event
                    .with("expires", lock.expires_unix)
                    .with("admin_uid", by),
            )
            .await;
        Ok(Response::new(Empty {}))
    }

    async fn list(&self, req: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let objects = objects::list(&self.0, &req.get_ref().kind).await?;
        Ok(Response::new(
            stream::iter(objects.into_iter().map(Ok)).boxed(),
        ))
    }

    async fn get(&self, req: Request<GetRequest>) -> Result<Response<Object>, Status> {
        let req = req.get_ref();
        let objects = objects::list(&self.0, &req.kind).await?;
        let found = objects.into_iter().find(|o| o.name == req.name);
        found
            .map(Response::new)
            .ok_or_else(|| not_found(&req.kind, &req.name))
    }

    async fn remove(&self, req: Request<RemoveRequest>) -> Result<Response<Empty>, Status> {
        let by = admin(&req);
        remove::remove(&self.0, req.get_ref(), by).await?;
        Ok(Response::new(Empty {}))
    }

    async fn sign_db_server(
        &self,
        req: Request<SignDbServerRequest>,
    ) -> Result<Response<SignDbServerResponse>, Status> {
        let by = admin(&req);
        crate::databases::sign_server(&self.0, req.into_inner(), by)
            .await
            .map(Response::new)
    }

    async fn audit(
        &self,
        req: Request<AuditRequest>,
    ) -> Result<Response<Self::AuditStream>, Status> {
        let req = req.get_ref();
        let filter = Filter::new(&req.event);
        let from = if req.after_seq > 0 {
            req.after_seq
        } else {
            let before = self.0.audit.before_last(req.last, filter.clone()).await;
            before.map_err(|e| failed("read the audit log", e))?
        };
        let shutdown = self.0.shutdown.clone();
        let events = self.0.audit.read(from, filter, req.follow);
        let events = events
            .map_ok(|stored| AuditEvent {
                seq: stored.seq,
                json: stored.json,
            })
            .map_err(|e| failed("read the audit log", e))
            .take_until(async move { shutdown.cancelled().await });
        Ok(Response::new(events.boxed()))
    }

    async fn cluster_info(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<ClusterInfoResponse>, Status> {
        let agents = records::all::<Agent>(&self.0.kv)
            .await
            .map_err(|e| failed("list the proxies", e))?;
        let proxies = agents.into_iter().filter(|a| a.value.kind == "proxy");
        Ok(Response::new(ClusterInfoResponse {
            cluster: self.0.cluster().to_owned(),
            ca_pins: self.0.authority.pins(),
            proxies: proxies.flat_map(|p| p.value.names).collect(),
            trust_json: self.0.authority.trust_json(),
            public_addr: self.public_addr().await.unwrap_or_default(),
        }))
    }
}

impl Admin {
    async fn create_user(
        &self,
        req: CreateUserRequest,
        by: Option<u32>,
    ) -> Result<CreateUserResponse, Status> {
        let state = &self.0;
        check_user_name(&req.name).map_err(|e| bad(e.to_string()))?;
        for role in &req.roles {
            if state
                .kv
                .get(&role_key(role))
                .await
                .map_err(|e| failed("read the roles", e))?
                .is_none()
            {
                return Err(not_found("role", role));
            }
        }
        let key = User::key(&req.name);
        let old = load::<User>(&state.kv, &key)
            .await
            .map_err(|e| failed("read the user", e))?;
        if old.is_some() && !req.reset {
            return Err(exists(
                "user",
                &req.name,
                "give a new enrolment code with --reset",
            ));
        }
        if old.is_none() && req.reset {
            return Err(not_found("user", &req.name));
        }
        if old.is_none() && req.roles.is_empty() {
            return Err(bad(
                "a user without a role reaches nothing: name at least one (\"access\" is there from the start)",
            ));
        }
        let code = hex::encode(rand::random::<[u8; 16]>());
        let expires_unix = time::now() + ttl(req.ttl_seconds, CODE_TTL)?;
        let one_time = OneTimeCode {
            hash: hash_code(&code),
            expires_unix,
        };
        let revision = old.as_ref().map(|o| o.revision);
        let (roles, traits) = (
            req.roles,
            req.traits.into_iter().map(|(k, v)| (k, v.values)).collect(),
        );
        let user = match old {
            None => User {
                name: req.name,
                roles,
                traits,
                password: None,
                code: Some(one_time),
                created_unix: time::now(),
                not_after_unix: 0,
            },
            Some(old) => User {
                roles: if roles.is_empty() {
                    old.value.roles
                } else {
                    roles
                },
                traits: if traits.is_empty() {
                    old.value.traits
                } else {
                    traits
                },
                code: Some(one_time),
                // The old password works until the code is used: a reset does not lock anybody out by itself.
                ..old.value
            },
        };
        match state
            .kv
            .compare_and_swap(&key, revision, user.encode())
            .await
        {
            Ok(_) => {}
            Err(KvError::Conflict { .. }) => {
                return Err(exists(
                    "user",
                    &user.name,
                    "it was changed at the same moment; try again",
                ));
            }
            Err(e) => return Err(failed("store the user", e)),
        }
        let event = state.event(if req.reset {
            "user.reset"
        } else {
            "user.create"
        });
        let event = event
            .with("user", &user.name)
            .with("roles", &user.roles)
            .with("traits", &user.traits);
        state.record(event.with("admin_uid", by)).await;
        let link = self.link(&user.name, &code).await;
        Ok(CreateUserResponse {
            code,
            link,
            expires_unix,
        })
    }

    /// Where users reach the cluster: the proxy of this process, or what a proxy says of itself.
    async fn public_addr(&self) -> Option<String> {
        let state = &self.0;
        if let Some(addr) = &state.opts.proxy_public_addr {
            return Some(addr.clone());
        }
        let announced = records::all::<Announced>(&state.kv)
            .await
            .unwrap_or_default();
        announced
            .into_iter()
            .map(|a| a.value)
            .find(|a| a.kind == "proxy" && !a.public_addr.is_empty())
            .map(|a| a.public_addr)
    }

    /// What a user needs for enrolling; empty while no proxy is known.
    async fn link(&self, user: &str, code: &str) -> String {
        let state = &self.0;
        let addr = self.public_addr().await;
        let Some(addr) = addr else {
            return String::new();
        };
        // Of what a user name may hold, only '+' and '@' mean something in a query.
        let user = user.replace('+', "%2B").replace('@', "%40");
        let pins: String = state
            .authority
            .pins()
            .iter()
            .map(|p| format!("&ca_pin={p}"))
            .collect();
        format!(
            "https://{addr}/enroll?cluster={}&user={user}&code={code}{pins}",
            state.cluster()
        )
    }
}

fn ttl(asked: u64, default: u64) -> Result<i64, Status> {
    let ttl = if asked == 0 { default } else { asked };
    if ttl > MAX_TTL {
        return Err(bad("it would live longer than a year"));
    }
    Ok(time::seconds(Duration::from_secs(ttl)))
}

fn exists(kind: &str, name: &str, hint: &str) -> Status {
    refuse(
        Code::AlreadyExists,
        reasons::EXISTS,
        format!("the {kind} {name:?} exists; {hint}"),
    )
}

fn check_target(target: &str) -> Result<(), Status> {
    let ok = match target.split_once(':') {
        Some(("user", name)) => check_user_name(name).is_ok(),
        Some(("host", id)) => check_host_id(id).is_ok(),
        Some(("service", id)) => id.split_once('/').is_some_and(|(host, s)| {
            check_host_id(host).is_ok() && check_label("service", s).is_ok()
        }),
        _ => false,
    };
    if ok {
        return Ok(());
    }
    Err(bad(format!(
        "{target:?} is no lock target; one is user:<name>, host:<host id> or service:<host id>/<service>"
    )))
}
