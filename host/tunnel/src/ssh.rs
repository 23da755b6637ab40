//! What both ends agree on about SSH: algorithms, windows, user names, and how credentials are read.

use russh::keys::{Algorithm, Certificate, PrivateKey};
use russh::{Preferred, cipher, client, compression, kex, mac, server};
use std::borrow::Cow;
use std::time::Duration;
use tokio::io::{AsyncRead, BufReader};

/// Messages (of up to 32 KB) that a reader which has stopped leaves in russh's channel before the connection
/// itself stops: with the chunk in flight and the sockets' buffers this is what a stalled stream pins.
pub(crate) const BUFFERED_MESSAGES: usize = 48;
/// SSH window, bytes. russh opens it again on receipt, not on reading: the bound is the one above.
const WINDOW: u32 = 2 * 1024 * 1024;
const PACKET: u32 = 32 * 1024;

const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const KEYS: &[Algorithm] = &[Algorithm::Ed25519];
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::CHACHA20_POLY1305,
];

/// russh reads each packet's length by itself: for small ones that is every second system call. Large ones go past this buffer.
pub(crate) fn read_ahead<IO: AsyncRead>(io: IO) -> BufReader<IO> {
    BufReader::with_capacity(2 * 1024, io)
}

fn preferred(host_certificates: bool) -> Preferred {
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Borrowed(KEYS),
        // Without it a russh client never asks for a certificate and gets a bare key.
        host_key_certificates: Cow::Borrowed(if host_certificates { KEYS } else { &[] }),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(&[mac::HMAC_SHA256_ETM]),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

pub(crate) fn client_config() -> client::Config {
    client::Config {
        client_id: russh::SshId::Standard(Cow::Borrowed("SSH-2.0-postern")),
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: BUFFERED_MESSAGES,
        preferred: preferred(true),
        // Quiet connections are normal; who is alive is found out by our heartbeats and TCP keepalives. SSH's
        // own would cut a connection whose reader merely stopped, since russh does not answer then.
        inactivity_timeout: None,
        keepalive_interval: None,
        nodelay: true,
        ..Default::default()
    }
}

pub(crate) fn server_config(key: PrivateKey, certificate: Certificate) -> server::Config {
    server::Config {
        server_id: russh::SshId::Standard(Cow::Borrowed("SSH-2.0-postern")),
        methods: (&[russh::MethodKind::PublicKey][..]).into(),
        // Certificates are not guessed, so there is nothing to slow down; 1 s otherwise.
        auth_rejection_time: Duration::from_millis(50),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        certificates: vec![certificate],
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: BUFFERED_MESSAGES,
        preferred: preferred(false),
        max_auth_attempts: 3,
        inactivity_timeout: None,
        keepalive_interval: None,
        nodelay: true,
        ..Default::default()
    }
}

/// A private key and its certificate in OpenSSH form. The error never quotes the key.
pub(crate) fn parse_pair(
    key: &str,
    certificate: &str,
) -> Result<(PrivateKey, Certificate), String> {
    let key =
        PrivateKey::from_openssh(key).map_err(|e| format!("the SSH key is not readable: {e}"))?;
    let certificate = Certificate::from_openssh(certificate.trim())
        .map_err(|e| format!("the SSH certificate is not readable: {e}"))?;
    if certificate.public_key() != key.public_key().key_data() {
        return Err("the SSH certificate belongs to another key".into());
    }
    Ok((key, certificate))
}

/// What a connection is for; travels as the SSH user name, so that it shows in logs and is known before any
/// channel is opened. Who the agent is comes from its certificate alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    Control(String),
    Data(String),
}

impl Role {
    pub fn user(&self) -> String {
        match self {
            Role::Control(instance) => format!("control/{instance}"),
            Role::Data(instance) => format!("data/{instance}"),
        }
    }

    /// `None` for anything that isn't ours. Instances are 32 lower-case hex digits.
    pub fn parse(user: &str) -> Option<Self> {
        let (role, instance) = user.split_once('/')?;
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if instance.len() != 32 || !instance.bytes().all(hex) {
            return None;
        }
        match role {
            "control" => Some(Role::Control(instance.into())),
            "data" => Some(Role::Data(instance.into())),
            _ => None,
        }
    }

    /// Names one control connection and the data connections that belong to it.
    pub fn new_instance() -> String {
        format!("{:032x}", rand::random::<u128>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_survive_the_user_name() {
        let role = Role::Data(Role::new_instance());
        assert_eq!(Role::parse(&role.user()), Some(role));
        for bad in ["root", "data/", "data/../x", "control/ABCDEF", "x/0123"] {
            assert_eq!(Role::parse(bad), None, "{bad}");
        }
    }
}
