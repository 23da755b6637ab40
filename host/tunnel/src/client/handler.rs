//! What the agent accepts from the proxy on an SSH connection: a host certificate of this cluster, and nothing
//! that the proxy asks for by itself.

use postern_identity::{CaKind, TrustBundle, proxy_dns, verify_host_cert};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelId, client};
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    #[error("{0}")]
    Ssh(#[from] russh::Error),
    #[error("{0}")]
    HostRefused(String),
}

pub(crate) struct ClientHandler {
    name: String,
    cas: Vec<PublicKey>,
    closed: mpsc::Sender<ChannelId>,
    /// The session owns the handler: when it ends, so does everything that waits for the connection.
    _ended: DropGuard,
}

impl ClientHandler {
    pub fn new(
        cluster: &str,
        trust: &TrustBundle,
        token: CancellationToken,
    ) -> (Self, mpsc::Receiver<ChannelId>) {
        let (closed, closed_rx) = mpsc::channel(4);
        let handler = ClientHandler {
            name: proxy_dns(cluster),
            cas: trust.ssh_keys(CaKind::Host),
            closed,
            _ended: token.drop_guard(),
        };
        (handler, closed_rx)
    }
}

impl client::Handler for ClientHandler {
    type Error = SshError;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, SshError> {
        let certificate = key.certificate().ok_or_else(|| {
            SshError::HostRefused(
                "it offers a bare SSH key instead of a certificate by the cluster's host CA".into(),
            )
        })?;
        verify_host_cert(certificate, &self.cas, &self.name, SystemTime::now())
            .map_err(|e| SshError::HostRefused(e.to_string()))?;
        Ok(true)
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), SshError> {
        // Full only if the proxy closes channels that nobody waits for.
        let _ = self.closed.try_send(id);
        Ok(())
    }

    // russh accepts channels that a server opens, unless told otherwise; dropping the reply refuses.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<client::Msg>,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<client::Msg>,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        _: u32,
        _: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), SshError> {
        Ok(())
    }
}
