//! What can go wrong, worded for the person who runs the agent or the proxy.

use postern_identity::ResourceId;
use std::time::Duration;

/// Why the agent could not make a connection to the proxy.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    #[error(
        "cannot reach the proxy at {addr}: {why}; check `proxy` in [agent] and what lies between"
    )]
    Connect {
        addr: String,
        why: String,
        /// Nobody listens there.
        refused: bool,
    },
    #[error("the HTTP proxy {via} does not connect to {target}: {why}")]
    HttpProxy {
        via: String,
        target: String,
        why: String,
    },
    #[error("HTTPS_PROXY can't be used: {0}")]
    HttpProxyUrl(String),
    #[error("{doing} with {addr} took longer than {after:?}")]
    Timeout {
        addr: String,
        doing: &'static str,
        after: Duration,
    },
    #[error("TLS to {addr} as {name}: {why}")]
    Tls {
        addr: String,
        name: String,
        why: String,
    },
    #[error("SSH to {addr}: {why}")]
    Ssh { addr: String, why: String },
    #[error("SSH to {ssh}; inside TLS: {tls}")]
    Both {
        ssh: Box<DialError>,
        tls: Box<DialError>,
    },
    #[error("{addr} is not this cluster's proxy: {why}")]
    HostRefused { addr: String, why: String },
    #[error("the proxy at {addr} refused this service's certificate; the proxy's log says why")]
    Refused { addr: String },
    #[error("the proxy at {addr} sent us away: {why}")]
    SentAway { addr: String, why: String },
    #[error("the service's credentials can't be used: {0}")]
    Credentials(String),
}

impl DialError {
    /// The host is there, and no proxy is: it restarts, most likely.
    pub(crate) fn nobody_listens(&self) -> bool {
        match self {
            DialError::Connect { refused, .. } => *refused,
            DialError::Both { ssh, tls } => ssh.nobody_listens() || tls.nobody_listens(),
            _ => false,
        }
    }

    pub(crate) fn connect(addr: &str, e: std::io::Error) -> Self {
        DialError::Connect {
            addr: addr.to_owned(),
            refused: e.kind() == std::io::ErrorKind::ConnectionRefused,
            why: e.to_string(),
        }
    }

    pub(crate) fn both(ssh: DialError, tls: DialError) -> Self {
        DialError::Both {
            ssh: Box::new(ssh),
            tls: Box::new(tls),
        }
    }

    /// Whether something on the way may have kept SSH (or TLS) from getting through. Not so for a peer that
    /// answered in SSH and was refused, or a port where nothing listens.
    pub(crate) fn other_transport_may_help(&self) -> bool {
        match self {
            DialError::Timeout { doing, .. } => *doing != "connecting",
            DialError::Tls { .. } | DialError::Ssh { .. } => true,
            _ => false,
        }
    }
}

/// Why the proxy has no stream for a client.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    #[error("no agent has announced {kind} {name:?}", kind = .0.kind, name = .0.name)]
    Unknown(ResourceId),
    #[error("no agent that serves {kind} {name:?} is connected at the moment", kind = .0.kind, name = .0.name)]
    NoAgent(ResourceId),
    #[error("the agent of {kind} {name:?} opened no data connection within {after:?}", kind = .id.kind, name = .id.name)]
    Busy { id: ResourceId, after: Duration },
    #[error("the stream header is too long: {0}")]
    Header(String),
}

impl OpenError {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            OpenError::Unknown(_) => "unknown-resource",
            OpenError::NoAgent(_) => "no-agent",
            OpenError::Busy { .. } => "agent-busy",
            OpenError::Header(_) => "bad-request",
        }
    }
}
