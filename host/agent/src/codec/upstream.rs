//! TLS towards the server behind a resource: whom this host takes for it, and as whom it appears there.

use postern_api::v1::agent_service_client::AgentServiceClient;
use postern_api::v1::{Principal, SignDbClientRequest};
use postern_config::{Address, TlsMode, UpstreamTls};
use postern_identity::tls::{self, ServerCheck, TlsIdentity};
use postern_identity::{CaKind, ServiceKeys, TrustBundle};
use postern_relay::{BoxedStream, Secured};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::time::Duration;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

/// For the server's part of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For Auth to sign.
const SIGN: Duration = Duration::from_secs(10);

/// Speaks TLS over `stream`; besides the stream, the server's channel binding.
pub async fn secure(
    stream: BoxedStream,
    config: &UpstreamTls,
    address: &str,
    trust: &TrustBundle,
    id: Option<&TlsIdentity>,
) -> Result<(Secured, Option<Vec<u8>>), String> {
    let name = server_name(config, address)?;
    let check = match config.mode {
        TlsMode::VerifyFull => ServerCheck::Name(roots(config, trust)?),
        TlsMode::VerifyCa => ServerCheck::Chain(roots(config, trust)?),
        TlsMode::Insecure => ServerCheck::Nothing,
    };
    let client = tls::client_upstream(check, id).map_err(|e| e.to_string())?;
    let connecting = TlsConnector::from(client).connect(name, stream);
    let stream = tokio::time::timeout(HANDSHAKE, connecting)
        .await
        .map_err(|_| format!("{address}: no TLS handshake within {HANDSHAKE:?}"))?
        .map_err(|e| explain(config, address, &e))?;
    let certificate = stream.get_ref().1.peer_certificates();
    let end_point = certificate
        .and_then(<[_]>::first)
        .and_then(tls::server_end_point);
    let secured = Secured {
        stream: Box::new(stream),
        // With verify-ca it is some server of the CA, with insecure anybody.
        verified: config.mode == TlsMode::VerifyFull,
    };
    Ok((secured, end_point))
}

fn explain(config: &UpstreamTls, address: &str, e: &std::io::Error) -> String {
    let advice = match &config.ca_file {
        _ if config.mode == TlsMode::Insecure => "",
        None => {
            "; its certificate must be of the cluster's db-server CA (postern db certs sign), or tls.ca_file of the resource must name its CA"
        }
        Some(_) => "; see tls.ca_file and tls.server_name of the resource",
    };
    format!("{address}: TLS: {e}{advice}")
}

/// The CAs that may have issued the server's certificate; the file is read anew for each connection.
fn roots(config: &UpstreamTls, trust: &TrustBundle) -> Result<rustls::RootCertStore, String> {
    let Some(path) = &config.ca_file else {
        return trust
            .x509_roots(CaKind::DbServer)
            .map_err(|e| e.to_string());
    };
    let named = |e: &dyn std::fmt::Display| {
        tracing::error!(file = %path.display(), "CA file of a resource: {e}");
        "this host can't read the CA of the server; ask its operator to look at the log".to_owned()
    };
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(path).map_err(|e| named(&e))? {
        let cert = cert.map_err(|e| named(&e))?;
        roots.add(cert).map_err(|e| named(&e))?;
    }
    if roots.is_empty() {
        return Err(named(&"there is no PEM certificate in it"));
    }
    Ok(roots)
}

fn server_name(config: &UpstreamTls, address: &str) -> Result<ServerName<'static>, String> {
    let name = match (&config.server_name, address.parse::<Address>()) {
        (Some(name), _) => name.clone(),
        (None, Ok(Address::Tcp { host, .. })) => host,
        // Nobody looks at it.
        (None, _) if config.mode != TlsMode::VerifyFull => "localhost".to_owned(),
        (None, _) => {
            return Err(format!(
                "{address} has no host name that its certificate could have; the operator sets tls.server_name of the resource"
            ));
        }
    };
    ServerName::try_from(name.clone())
        .map_err(|_| format!("{name:?} is no name that a certificate could have"))
}

/// For whom a certificate is asked.
pub struct Asked<'a> {
    pub user_chain: &'a [CertificateDer<'static>],
    pub resource: &'a str,
    pub principals: &'a [(String, String)],
    pub account: &'a str,
    pub session_id: &'a str,
}

/// A certificate of the db-client CA for this connection alone (D2).
pub async fn sign(auth: Option<Channel>, asked: Asked<'_>) -> Result<TlsIdentity, String> {
    let no = |why: String| {
        format!(
            "no certificate for account {:?} from the Auth Service: {why}",
            asked.account
        )
    };
    let auth = auth.ok_or_else(|| no("this host is not connected with it".into()))?;
    let keys = ServiceKeys::generate();
    let request = SignDbClientRequest {
        spki: keys.spki(),
        user_chain: asked.user_chain.iter().map(|c| c.to_vec()).collect(),
        resource: asked.resource.to_owned(),
        principals: asked
            .principals
            .iter()
            .map(|(name, value)| Principal {
                r#type: name.clone(),
                value: value.clone(),
            })
            .collect(),
        account: asked.account.to_owned(),
        session_id: asked.session_id.to_owned(),
    };
    let mut client = AgentServiceClient::new(auth);
    let signed = tokio::time::timeout(SIGN, client.sign_db_client(request))
        .await
        .map_err(|_| no(format!("no answer within {SIGN:?}")))?
        .map_err(|s| no(postern_api::status::describe(&s)))?
        .into_inner();
    Ok(TlsIdentity::new(
        &signed.certificate,
        None,
        keys.x509_key_pem.clone(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_needed_where_it_is_verified() {
        let full = UpstreamTls::default();
        let named = UpstreamTls {
            server_name: Some("db.internal".into()),
            ..UpstreamTls::default()
        };
        let of = |config, address| server_name(config, address).map(|n| n.to_str().into_owned());
        assert_eq!(of(&full, "10.0.0.1:5432"), Ok("10.0.0.1".into()));
        assert_eq!(
            of(&full, "db.example.com:5432"),
            Ok("db.example.com".into())
        );
        assert_eq!(of(&named, "unix:/run/pg"), Ok("db.internal".into()));
        let why = of(&full, "unix:/run/pg").unwrap_err();
        assert!(why.contains("tls.server_name"), "{why}");
    }

    #[test]
    fn a_ca_file_that_has_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.crt");
        let trust = TrustBundle {
            cluster: "demo".into(),
            cas: vec![],
        };
        let config = UpstreamTls {
            ca_file: Some(path.clone()),
            ..UpstreamTls::default()
        };
        assert!(roots(&config, &trust).is_err());
        std::fs::write(&path, "nothing").unwrap();
        assert!(roots(&config, &trust).is_err());
        let ca = postern_identity::Ca::generate(CaKind::DbServer, "demo").unwrap();
        std::fs::write(&path, ca.public().x509_pem).unwrap();
        assert_eq!(roots(&config, &trust).unwrap().len(), 1);
    }
}
