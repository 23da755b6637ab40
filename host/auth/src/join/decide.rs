//! Whether a join is answered, and with what: a pure function of what is stored and what is asked, so that every
//! rule of D1 and D3 is tested without a server.

use std::time::Duration;

use postern_access::Lock;
use postern_api::status::reasons;
use tonic::Code;

use super::request::Ask;
use crate::records::{Agent, Grant, Holder, Host, Method, Resource, Token, lock_service};
use crate::time::{about, rfc3339, seconds};

/// What is stored about the asker, as read before deciding.
#[derive(Debug, Default)]
pub struct View {
    pub locks: Vec<Lock>,
    pub host: Option<Host>,
    pub agent: Option<Agent>,
    pub token: TokenView,
    /// The asked names that somebody holds already.
    pub resources: Vec<Resource>,
}

#[derive(Debug, Clone, Default)]
pub enum TokenView {
    #[default]
    None,
    /// Not even the form of a token.
    Malformed,
    /// No such id, or the secret is another.
    Unknown(String),
    /// What was shown for it does not hold.
    Refused(Refusal),
    Known(Token),
}

#[derive(Debug)]
pub enum Decision {
    /// The same nonce again: the same answer again.
    Replay(Agent),
    Issue(Plan),
    /// Credentials of a copied disk: lock the service.
    Copied(Refusal),
    Refuse(Refusal),
}

/// What to write if the certificates are issued.
#[derive(Debug)]
pub struct Plan {
    pub generation: u64,
    pub via: Via,
    pub grants: Vec<Grant>,
    /// With one more use counted.
    pub token: Option<Token>,
    /// Records of the asked names, with the asker among the holders.
    pub claims: Vec<Resource>,
    /// The host that the token's bound key served before: one key, one host.
    pub replaces: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Token,
    Grant,
    Renewal,
}

impl Via {
    pub fn name(self) -> &'static str {
        match self {
            Via::Token => "token",
            Via::Grant => "grant",
            Via::Renewal => "renewal",
        }
    }
}

/// Worded for the operator of the agent; `service "x": ` goes in front.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub code: Code,
    pub reason: &'static str,
    pub message: String,
    /// The name that belongs to somebody else, with its owner's host id.
    pub conflict: Option<(String, String)>,
}

impl Refusal {
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Refusal {
            code,
            reason,
            message: message.into(),
            conflict: None,
        }
    }

    fn denied(reason: &'static str, message: impl Into<String>) -> Self {
        Refusal::new(Code::PermissionDenied, reason, message)
    }
}

/// The clock of a host may be off by this much (seconds).
const MAX_SKEW: i64 = 300;

pub fn decide(ask: &Ask, view: &View, now: i64, rejoin_window: Duration) -> Decision {
    // Before anything else, replays too: a locked host gets no certificate, not even one it had.
    if let Some(lock) = view.locks.first() {
        return Decision::Refuse(Refusal::denied(
            reasons::LOCKED,
            format!(
                "{} is locked ({}); lift it with: postern locks rm {}",
                lock.target, lock.reason, lock.target
            ),
        ));
    }
    let mut generation = ask.generation;
    if let Some(agent) = &view.agent
        && agent.nonce == ask.nonce
    {
        if agent.asked == ask.digest && agent.not_after_unix > now {
            return Decision::Replay(agent.clone());
        }
        // The answer was never read, and has expired or the configuration has changed meanwhile. Only the host it
        // was issued to knows the nonce: it goes on from there, and is no copy.
        generation = agent.generation;
    }
    let skew = i64::try_from(ask.signed_at.abs_diff(now)).unwrap_or(i64::MAX);
    if skew > MAX_SKEW {
        return Decision::Refuse(Refusal::new(
            Code::FailedPrecondition,
            reasons::CLOCK_SKEW,
            format!(
                "the clock of this host is {} {} that of the Auth Service; at most {} are allowed: check its time synchronisation",
                about(skew),
                if ask.signed_at > now {
                    "ahead of"
                } else {
                    "behind"
                },
                about(MAX_SKEW),
            ),
        ));
    }
    // After the clock: an old request that somebody recorded must not be good for locking its sender out.
    if let Some(agent) = &view.agent
        && generation != 0
        && generation < agent.generation
    {
        return Decision::Copied(Refusal::denied(
            reasons::AGENT_COPIED,
            format!(
                "these credentials are generation {generation}, the current one is {}: they were renewed elsewhere, so \
                 this host's data directory was copied. {} is now locked; find the copy, delete its data directory, \
                 then: postern locks rm {}",
                agent.generation,
                lock_service(&ask.host_id, &ask.service),
                lock_service(&ask.host_id, &ask.service),
            ),
        ));
    }
    match admit(ask, view, now, rejoin_window) {
        Err(refusal) => Decision::Refuse(refusal),
        Ok(Admitted {
            grants,
            token,
            replaces,
        }) => {
            let renewal = generation != 0 && view.agent.is_some();
            Decision::Issue(Plan {
                // Beyond what we know: this Auth was restored from a backup, the host was not.
                generation: generation
                    .max(view.agent.as_ref().map_or(0, |a| a.generation))
                    .saturating_add(1),
                via: match &token {
                    Some(_) => Via::Token,
                    None if renewal => Via::Renewal,
                    None => Via::Grant,
                },
                claims: claims(ask, view, replaces.as_deref()),
                grants,
                token,
                replaces,
            })
        }
    }
}

/// Why a join is answered.
struct Admitted {
    /// The host's grants after this join.
    grants: Vec<Grant>,
    /// As it is after this join, if one had to be used. A token that adds nothing is not used up: every service of a host
    /// offers the same one.
    token: Option<Token>,
    replaces: Option<String>,
}

fn admit(ask: &Ask, view: &View, now: i64, rejoin_window: Duration) -> Result<Admitted, Refusal> {
    let grants = view.host.as_ref().map_or(&[][..], |h| &h.grants);
    let lapsed = view.host.as_ref().and_then(|h| {
        let since = now - h.not_after_unix;
        (since > seconds(rejoin_window)).then_some(since)
    });
    let by_grant = match lapsed {
        Some(since) => Err(Refusal::denied(
            reasons::REJOIN_WINDOW,
            format!(
                "the certificates of this host expired {} ago, longer than the rejoin window ({}); it needs a token again: {}",
                about(since),
                about(seconds(rejoin_window)),
                create_for(ask, false),
            ),
        )),
        None => covered(ask, grants).and_then(|()| conflicts(ask, view, grants, None)),
    };
    let refused = match by_grant {
        Ok(()) => {
            return Ok(Admitted {
                grants: grants.to_vec(),
                token: None,
                replaces: None,
            });
        }
        Err(refused) => refused,
    };
    let token = match &view.token {
        TokenView::None => return Err(refused),
        TokenView::Malformed => {
            return Err(Refusal::denied(
                reasons::TOKEN_INVALID,
                format!(
                    "the join token is malformed (expected pt_<id>_<secret>); {}",
                    create_for(ask, false)
                ),
            ));
        }
        TokenView::Unknown(label) => {
            return Err(Refusal::denied(
                reasons::TOKEN_INVALID,
                format!(
                    "token {label} is unknown here, or its secret is wrong; create one with: {}",
                    create_for(ask, false)
                ),
            ));
        }
        TokenView::Refused(refusal) => return Err(refusal.clone()),
        TokenView::Known(token) => token,
    };
    usable(ask, token, now)?;
    let mut widened = grants.to_vec();
    let grant = Grant {
        kinds: token.kinds.clone(),
        names: token.names.clone(),
        token: token.id.clone(),
    };
    if !widened
        .iter()
        .any(|g| g.kinds == grant.kinds && g.names == grant.names)
    {
        widened.push(grant);
    }
    let replaces = match &token.method {
        Method::BoundKeypair(bound) => bound.host_id.clone().filter(|h| *h != ask.host_id),
        _ => None,
    };
    token_covers(ask, token, &widened)?;
    conflicts(ask, view, &widened, replaces.as_deref())?;
    Ok(Admitted {
        grants: widened,
        token: Some(spent(ask, token)),
        replaces,
    })
}

/// The token after this join.
fn spent(ask: &Ask, token: &Token) -> Token {
    let mut token = token.clone();
    token.used = token.used.saturating_add(1);
    if let Method::BoundKeypair(bound) = &mut token.method {
        let shown = ask.named.as_ref().and_then(|n| n.bound_key.clone());
        bound.public_key = shown.map(|key| key.0).or(bound.public_key.take());
        bound.registration = None;
        let before = bound.host_id.replace(ask.host_id.clone());
        bound.former.extend(before.filter(|h| *h != ask.host_id));
    }
    token
}

fn usable(ask: &Ask, token: &Token, now: i64) -> Result<(), Refusal> {
    if let Some(expired) = token.expires_unix.filter(|at| *at <= now) {
        return Err(Refusal::denied(
            reasons::TOKEN_EXPIRED,
            format!(
                "token {} expired at {} ({} ago); create one with: {}",
                token.label(),
                rfc3339(expired),
                about(now - expired),
                create_for(ask, false),
            ),
        ));
    }
    if let Some(uses) = token.uses.filter(|uses| token.used >= *uses) {
        return Err(Refusal::denied(
            reasons::TOKEN_USED_UP,
            format!(
                "token {} is used up ({}); create one with: {}",
                token.label(),
                match (&token.method, uses) {
                    (Method::BoundKeypair(_), _) => format!(
                        "after its first join, its key allowed {} more",
                        uses.saturating_sub(1)
                    ),
                    (_, 1) => "it allowed 1 join".to_owned(),
                    _ => format!("it allowed {uses} joins"),
                },
                create_for(ask, false),
            ),
        ));
    }
    Ok(())
}

/// Whether the grants alone are enough.
fn covered(ask: &Ask, grants: &[Grant]) -> Result<(), Refusal> {
    let kinds: Vec<&str> = grants
        .iter()
        .flat_map(|g| g.kinds.iter().map(String::as_str))
        .collect();
    if grants.is_empty() {
        return Err(Refusal::denied(
            reasons::TOKEN_NEEDED,
            format!(
                "this host is not known here and gave no join token; create one with: {}",
                create_for(ask, false)
            ),
        ));
    }
    if !kinds.contains(&ask.kind.as_str()) {
        return Err(Refusal::denied(
            reasons::TOKEN_NEEDED,
            format!(
                "this host's grant does not cover kind {:?} (it covers: {}); give the service a token, created with: {}",
                ask.kind,
                list(kinds),
                create_for(ask, false),
            ),
        ));
    }
    match uncovered(ask, grants) {
        None => Ok(()),
        Some(name) => Err(Refusal::denied(
            reasons::TOKEN_NEEDED,
            format!(
                "this host's grant does not cover the name {name:?}; give the service a token, created with: {}",
                create_for(ask, true),
            ),
        )),
    }
}

/// As [`covered`], worded for a host whose token is to blame.
fn token_covers(ask: &Ask, token: &Token, grants: &[Grant]) -> Result<(), Refusal> {
    if !grants.iter().any(|g| g.covers_kind(&ask.kind)) {
        return Err(Refusal::denied(
            reasons::TOKEN_KIND,
            format!(
                "token {} does not cover kind {:?} (it covers: {}); create one with: {}",
                token.label(),
                ask.kind,
                list(token.kinds.iter().map(String::as_str)),
                create_for(ask, false),
            ),
        ));
    }
    match uncovered(ask, grants) {
        None => Ok(()),
        Some(name) => Err(Refusal::denied(
            reasons::TOKEN_NAME,
            format!(
                "token {} does not cover the name {name:?} (it covers: {}); create one with: {}",
                token.label(),
                list(token.names.iter().map(String::as_str)),
                create_for(ask, true),
            ),
        )),
    }
}

fn uncovered<'a>(ask: &'a Ask, grants: &[Grant]) -> Option<&'a str> {
    ask.names
        .iter()
        .map(String::as_str)
        .find(|name| !grants.iter().any(|g| g.covers(&ask.kind, name)))
}

/// A name belongs to the first host; another shares it only if a token of its own lists the name (D1).
/// What the `replaced` host holds will be free.
fn conflicts(
    ask: &Ask,
    view: &View,
    grants: &[Grant],
    replaced: Option<&str>,
) -> Result<(), Refusal> {
    if ask.is_proxy() {
        return Ok(());
    }
    let asked = |r: &&Resource| ask.names.binary_search(&r.name).is_ok();
    for resource in view.resources.iter().filter(asked) {
        let stays = |h: &&Holder| replaced != Some(h.host_id.as_str());
        let Some(owner) = resource.holders.iter().find(stays) else {
            continue;
        };
        let shared = grants.iter().any(|g| g.lists(&ask.kind, &resource.name));
        if resource.held_by(&ask.host_id) || shared {
            continue;
        }
        let message = format!(
            "the {} resource {:?} belongs to host {} (service {:?}); choose another name, or let both serve it with a token \
             that lists it: postern tokens create --kinds {} --names {}, or remove the other: postern agents rm {}/{}",
            ask.kind,
            resource.name,
            owner.host_id,
            owner.service,
            ask.kind,
            resource.name,
            owner.host_id,
            owner.service,
        );
        let conflict = Some((resource.name.clone(), owner.host_id.clone()));
        return Err(Refusal {
            conflict,
            ..Refusal::new(Code::AlreadyExists, reasons::RESOURCE_CONFLICT, message)
        });
    }
    Ok(())
}

fn claims(ask: &Ask, view: &View, replaced: Option<&str>) -> Vec<Resource> {
    if ask.is_proxy() {
        return Vec::new();
    }
    let me = Holder {
        host_id: ask.host_id.clone(),
        service: ask.service.clone(),
    };
    let claim = |name: &String| {
        let known = view.resources.iter().find(|r| r.name == *name).cloned();
        let mut resource = known.unwrap_or_else(|| Resource {
            kind: ask.kind.clone(),
            name: name.clone(),
            holders: Vec::new(),
        });
        let before = resource.holders.len();
        resource
            .holders
            .retain(|h| replaced != Some(h.host_id.as_str()));
        if !resource.holders.contains(&me) {
            resource.holders.push(me.clone());
        } else if resource.holders.len() == before {
            return None;
        }
        Some(resource)
    };
    ask.names.iter().filter_map(claim).collect()
}

fn create_for(ask: &Ask, with_names: bool) -> String {
    let mut command = format!("postern tokens create --kinds {}", ask.kind);
    if with_names {
        command.push_str(" --names ");
        command.push_str(&ask.names.join(","));
    }
    command
}

fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let mut items: Vec<&str> = items.into_iter().collect();
    items.sort_unstable();
    items.dedup();
    if items.is_empty() {
        "nothing".into()
    } else {
        items.join(", ")
    }
}
