//! What the proxy accepts on an SSH connection: a certificate by the agent CA, and session channels.

use crate::ssh::Role;
use postern_identity::{AgentCertInfo, CaKind, TrustBundle, verify_agent_cert};
use russh::keys::{Certificate, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session};
use russh::{Channel, ChannelId, MethodKind};
use std::net::SocketAddr;
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

/// Whom the certificate proved.
pub(crate) struct Authenticated {
    pub role: Role,
    pub info: AgentCertInfo,
    /// When the certificate ends; `None`: never.
    pub not_after: Option<SystemTime>,
}

/// What the session tells the task that owns the connection.
pub(crate) struct Events {
    pub authenticated: mpsc::Receiver<Authenticated>,
    pub channels: mpsc::Receiver<Channel<Msg>>,
    pub closed: mpsc::Receiver<ChannelId>,
}

pub(crate) struct ServerHandler {
    cas: Vec<PublicKey>,
    peer: SocketAddr,
    verified: Option<Authenticated>,
    authenticated: mpsc::Sender<Authenticated>,
    channels: mpsc::Sender<Channel<Msg>>,
    closed: mpsc::Sender<ChannelId>,
    /// The session owns the handler: when it ends, so does everything that waits for the connection.
    _ended: DropGuard,
}

impl ServerHandler {
    pub fn new(trust: &TrustBundle, peer: SocketAddr, token: CancellationToken) -> (Self, Events) {
        let (authenticated, authenticated_rx) = mpsc::channel(1);
        // One that is parked or in use, one that comes next.
        let (channels, channels_rx) = mpsc::channel(1);
        let (closed, closed_rx) = mpsc::channel(4);
        let handler = ServerHandler {
            cas: trust.ssh_keys(CaKind::Agent),
            peer,
            verified: None,
            authenticated,
            channels,
            closed,
            _ended: token.drop_guard(),
        };
        let events = Events {
            authenticated: authenticated_rx,
            channels: channels_rx,
            closed: closed_rx,
        };
        (handler, events)
    }
}

impl Handler for ServerHandler {
    type Error = russh::Error;

    // Passwords, "none" and keyboard-interactive are refused by russh's defaults, and not offered.

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        _: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        // Bare keys and certificates both come by here; what is decisive comes with the signature.
        match Role::parse(user) {
            Some(_) => Ok(Auth::Accept),
            None => Ok(Auth::Reject {
                proceed_with_methods: Some((&[MethodKind::PublicKey][..]).into()),
                partial_success: false,
            }),
        }
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        let Some(role) = Role::parse(user) else {
            return Ok(Auth::reject());
        };
        match verify_agent_cert(certificate, &self.cas, SystemTime::now()) {
            Ok(info) => {
                let not_after = certificate.valid_before_time();
                self.verified = Some(Authenticated {
                    role,
                    info,
                    not_after,
                });
                Ok(Auth::Accept)
            }
            Err(e) => {
                warn!(peer = %self.peer, key_id = certificate.key_id(), error = %e, "an agent's SSH certificate is refused");
                Ok(Auth::reject())
            }
        }
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(verified) = self.verified.take() {
            let _ = self.authenticated.try_send(verified);
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // Reserved before the reply: a channel that nobody would take is refused (dropping the reply does that).
        if let Ok(permit) = self.channels.clone().try_reserve_owned() {
            reply.accept().await;
            permit.send(channel);
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        let _ = self.closed.try_send(id);
        Ok(())
    }
}
