//! Users come in: by password, or with a one-time code that lets them choose one. Strangers call this, so it says
//! the same, and costs the same, for users that exist and users that do not.

use std::net::IpAddr;
use std::time::Duration;

use postern_api::status::{reasons, refuse};
use postern_api::v1::login_service_server::LoginService;
use postern_api::v1::{EnrollRequest, LoginRequest, UserCredentials};
use postern_audit::names;
use postern_identity::{UserIdentity, check_user_name};
use tonic::{Code, Request, Response, Status};
use zeroize::Zeroizing;

use crate::budget::Purpose;
use crate::caller::{anonymous, locked_message};
use crate::error::{AuthError, internal};
use crate::kv::{KvError, KvExt};
use crate::limits::network;
use crate::password::{Busy, Passwords};
use crate::records::{At, Code as OneTimeCode, Record, User, load, lock_user};
use crate::state::{Shared, State};
use crate::time;

/// For users without any role that still exists: they may log in, and reach nothing.
const NO_ROLE_TTL: u64 = 3600;
const MIN_TTL: u64 = 60;
/// Lost races with other logins of the same user before giving up.
const ATTEMPTS: usize = 100;

pub struct Login(pub Shared);

/// An attempt by somebody, for limits and the audit log.
struct Attempt<'a> {
    state: &'a Shared,
    user: String,
    from: IpAddr,
    method: &'static str,
}

#[tonic::async_trait]
impl LoginService for Login {
    async fn login(&self, req: Request<LoginRequest>) -> Result<Response<UserCredentials>, Status> {
        let from = anonymous(&req, Purpose::Login)?;
        let req = req.into_inner();
        let password = Zeroizing::new(req.password);
        let attempt = Attempt::begin(&self.0, req.user, from, "password").await?;
        if password.len() > crate::password::MAX_BYTES {
            return Err(attempt.failed(reasons::LOGIN_FAILED).await);
        }
        let user = attempt.user().await?;
        let stored = user.as_ref().and_then(|u| u.value.password.as_deref());
        let fits = self
            .0
            .passwords
            .verify(password, stored)
            .await
            .map_err(|Busy| busy())?;
        let Some(user) = user.filter(|_| fits) else {
            return Err(attempt.failed(reasons::LOGIN_FAILED).await);
        };
        attempt
            .admit(user, (&req.spki, &req.ssh_public_key), req.ttl_seconds)
            .await
            .map(Response::new)
    }

    async fn enroll(
        &self,
        req: Request<EnrollRequest>,
    ) -> Result<Response<UserCredentials>, Status> {
        let from = anonymous(&req, Purpose::Login)?;
        let req = req.into_inner();
        let (code, password) = (Zeroizing::new(req.code), Zeroizing::new(req.new_password));
        // Before the code is looked at: a weak password neither uses the code up nor tells whether it is right.
        Passwords::check(&req.user, &password)
            .map_err(|why| refuse(Code::InvalidArgument, reasons::WEAK_PASSWORD, why))?;
        let attempt = Attempt::begin(&self.0, req.user, from, "enrolment code").await?;
        let user = attempt.user().await?;
        let Some(user) = user.filter(|u| u.value.code.as_ref().is_some_and(|c| c.fits(&code)))
        else {
            return Err(attempt.failed(reasons::CODE_INVALID).await);
        };
        let password = self
            .0
            .passwords
            .hash(password)
            .await
            .map_err(|Busy| busy())?;
        let enrolled = User {
            password: Some(password),
            code: None,
            ..user.value
        };
        let key = User::key(&enrolled.name);
        let revision = match self
            .0
            .kv
            .compare_and_swap(&key, Some(user.revision), enrolled.encode())
            .await
        {
            Ok(revision) => revision,
            // Somebody used the same code in the same moment, or the user was changed.
            Err(KvError::Conflict { .. }) => {
                return Err(attempt.failed(reasons::CODE_INVALID).await);
            }
            Err(e) => return Err(internal("store the password", e)),
        };
        let enrolled = At {
            value: enrolled,
            revision,
        };
        attempt
            .admit(enrolled, (&req.spki, &req.ssh_public_key), req.ttl_seconds)
            .await
            .map(Response::new)
    }
}

impl<'a> Attempt<'a> {
    /// Counts the attempt; success gives it back.
    async fn begin(
        state: &'a Shared,
        user: String,
        from: IpAddr,
        method: &'static str,
    ) -> Result<Self, Status> {
        // Anything else never was a user. It is not repeated into the log: people type passwords into name fields.
        let user = if check_user_name(&user).is_ok() {
            user
        } else {
            String::new()
        };
        let attempt = Attempt {
            state,
            user,
            from,
            method,
        };
        // The address first: whoever is over its limit leaves no further keys behind.
        let by_peer = state.login_peer_limit.take(network(from));
        if let Err(wait) = by_peer.and_then(|()| state.login_limit.take(attempt.key())) {
            attempt.audit_failure(reasons::RATE_LIMITED).await;
            let message = format!(
                "too many failed logins; try again in {} s",
                wait.as_secs().max(1)
            );
            return Err(refuse(
                Code::ResourceExhausted,
                reasons::RATE_LIMITED,
                message,
            ));
        }
        Ok(attempt)
    }

    fn key(&self) -> (&str, IpAddr) {
        (&self.user, network(self.from))
    }

    async fn user(&self) -> Result<Option<At<User>>, Status> {
        load(&self.state.kv, &User::key(&self.user))
            .await
            .map_err(|e| internal("look the user up", e))
    }

    async fn failed(&self, reason: &'static str) -> Status {
        self.audit_failure(reason).await;
        let message = match reason {
            reasons::CODE_INVALID => {
                "the enrolment code is wrong, was used, or has expired; ask an administrator for a new one"
            }
            _ => "user name or password is wrong",
        };
        refuse(Code::Unauthenticated, reason, message)
    }

    async fn audit_failure(&self, reason: &'static str) {
        // What the limit turns away is logged sparingly: it is what floods are made of.
        // By address alone: names cost a flood nothing.
        let who = ("login", network(self.from));
        if reason == reasons::RATE_LIMITED && self.state.refusal_limit.take(who).is_err() {
            return;
        }
        let user = (!self.user.is_empty()).then_some(&self.user);
        let event = self
            .state
            .event(names::USER_LOGIN)
            .with("user", user)
            .with("success", false)
            .with("method", self.method)
            .with("reason", reason)
            .with("source", self.from.to_string());
        self.state.record(event).await;
    }

    /// The user has proved who he is.
    async fn admit(
        &self,
        stored: At<User>,
        keys: (&[u8], &str),
        ttl: u32,
    ) -> Result<UserCredentials, Status> {
        let state = self.state;
        let user = stored.value.clone();
        state.login_limit.give_back(self.key());
        state.login_peer_limit.give_back(network(self.from));
        let lock = state
            .locked(&[lock_user(&user.name)])
            .await
            .map_err(|e| internal("read the locks", e))?;
        if let Some(lock) = lock {
            self.audit_failure(reasons::LOCKED).await;
            return Err(refuse(
                Code::PermissionDenied,
                reasons::LOCKED,
                locked_message(&lock),
            ));
        }
        let roles = state
            .roles(&user.roles)
            .await
            .map_err(|e| internal("read the roles", e))?;
        let allowed = if roles.is_empty() {
            NO_ROLE_TTL
        } else {
            postern_access::session_ttl_secs(&roles)
        };
        let asked = if ttl == 0 {
            allowed
        } else {
            u64::from(ttl).max(MIN_TTL)
        };
        let ttl = Duration::from_secs(asked.min(allowed));
        let identity = UserIdentity {
            name: user.name,
            roles: user.roles,
            traits: user.traits,
        };
        let logins = State::logins(&identity, &roles);
        let (spki, ssh_key) = keys;
        if spki.len() > 256 || ssh_key.len() > 512 {
            return Err(refuse(
                Code::InvalidArgument,
                reasons::BAD_REQUEST,
                "the public keys are too long",
            ));
        }
        let signed = state
            .authority
            .sign_user(&identity, &logins, keys, ttl)
            .map_err(|e| match e {
                AuthError::Ca(why) => refuse(Code::InvalidArgument, reasons::BAD_REQUEST, why),
                e => internal("sign the user's certificates", e),
            })?;
        self.note_expiry(stored, signed.not_after_unix).await?;
        let event = state
            .event(names::USER_LOGIN)
            .with("user", &identity.name)
            .with("success", true)
            .with("method", self.method)
            .with("roles", &identity.roles)
            .with("not_after", time::rfc3339(signed.not_after_unix))
            .with("source", self.from.to_string());
        state.record(event).await;
        Ok(UserCredentials {
            tls_cert_pem: signed.tls_pem,
            ssh_cert: signed.ssh,
            trust_json: state.authority.trust_json(),
            not_after_unix: signed.not_after_unix,
            roles: identity.roles,
            logins,
        })
    }

    /// Writes down how long a certificate of the user may live, before he has it: removing him locks his name until
    /// then.
    async fn note_expiry(&self, mut user: At<User>, not_after: i64) -> Result<(), Status> {
        let key = User::key(&user.value.name);
        for _ in 0..ATTEMPTS {
            user.value.not_after_unix = user.value.not_after_unix.max(not_after);
            let noted = self
                .state
                .kv
                .compare_and_swap(&key, Some(user.revision), user.value.encode())
                .await;
            match noted {
                Ok(_) => return Ok(()),
                Err(KvError::Conflict { .. }) => {}
                Err(e) => return Err(internal("note how long the certificate lives", e)),
            }
            user = match self.user().await? {
                Some(user) => user,
                // Removed in the same moment.
                None => return Err(self.failed(reasons::LOGIN_FAILED).await),
            };
        }
        Err(busy())
    }
}

impl OneTimeCode {
    fn fits(&self, given: &str) -> bool {
        use subtle::ConstantTimeEq;
        let same: bool = hash_code(given)
            .as_bytes()
            .ct_eq(self.hash.as_bytes())
            .into();
        same && self.expires_unix > time::now()
    }
}

/// SHA-256 in hex. Codes are 128 random bits: nothing slower is needed.
pub fn hash_code(code: &str) -> String {
    hex::encode(aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        code.trim().as_bytes(),
    ))
}

fn busy() -> Status {
    refuse(
        Code::ResourceExhausted,
        reasons::BUSY,
        "too many people are logging in; try again in a moment",
    )
}
