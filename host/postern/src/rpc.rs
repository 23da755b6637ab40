//! gRPC to Auth on behalf of the logged-in user, and what its errors mean to a person.

use crate::failure::{Failure, root_cause};
use crate::profile::{Home, Profile};
use postern_identity::{CaKind, tls};
use std::time::Duration;
use tonic::transport::Channel;

/// How long one call may take before the user is told that nothing answers.
pub const DEADLINE: Duration = Duration::from_secs(15);
/// Auth speaks HTTP/2 only.
pub const ALPN: &[&[u8]] = &[b"h2"];

/// A channel to Auth, through the proxy, with the user's certificate.
pub fn user_channel(home: &Home, profile: &Profile) -> Result<Channel, Failure> {
    let id = home.tls_identity()?;
    let config = tls::client(&home.trust()?, CaKind::Host, Some(&id), ALPN)
        .map_err(|e| Failure::new(format!("{e}; run: postern login")))?;
    Ok(postern_api::connect_lazy(
        &profile.proxy,
        &profile.cluster,
        config,
    ))
}

/// Awaits one call. `via` says on the way to whom it may have failed: `Auth through the proxy HOST:PORT`.
pub async fn call<T>(
    via: &str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failure(via, &status)),
        Err(_) => Err(Failure::new(format!(
            "cannot reach {via}: no answer within {} s",
            DEADLINE.as_secs()
        ))),
    }
}

/// Words a status: what Auth refused is its own sentence; a broken way there is ours.
pub fn failure(via: &str, status: &tonic::Status) -> Failure {
    use std::error::Error;
    match status.source() {
        _ if postern_api::status::reason(status).is_some() => Failure::new(status.message()),
        Some(source) => {
            let cause = explain(&root_cause(source));
            // The channel's own errors say already what was not reached.
            Failure::new(if cause.starts_with("cannot reach ") {
                cause
            } else {
                format!("cannot reach {via}: {cause}")
            })
        }
        None if status.message().is_empty() => {
            Failure::new(format!("{via}: {}", status.code().description()))
        }
        None => Failure::new(status.message()),
    }
}

/// TLS errors name what a library saw; this says what it means here.
fn explain(cause: &str) -> String {
    let meaning = if cause.contains("CertificateExpired")
        || cause.contains("CertificateUnknown")
        || cause.contains("AccessDenied")
    {
        "your certificate is not accepted; run: postern login"
    } else if cause.contains("UnknownIssuer")
        || cause.contains("BadSignature")
        || cause.contains("ca_pin")
    {
        "what answers there does not belong to the cluster that this profile or pin names; check the address and the pin"
    } else {
        return cause.to_owned();
    };
    format!("{cause} ({meaning})")
}

/// `Auth through the proxy HOST:PORT`
pub fn via(proxy: &str) -> String {
    format!("Auth through the proxy {proxy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_auths_own_sentence() {
        let status = tonic::Status::permission_denied("user name or password is wrong");
        assert_eq!(
            failure("Auth", &status).to_string(),
            "user name or password is wrong"
        );
    }

    #[test]
    fn a_broken_way_names_it_and_the_cause() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = tonic::Status::from_error(Box::new(refused));
        assert_eq!(
            failure(&via("p:443"), &status).to_string(),
            "cannot reach Auth through the proxy p:443: connection refused"
        );
    }

    #[tokio::test]
    async fn nobody_listening_is_said_plainly() {
        // A port that was just free; nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = tls::client_pinned(&[postern_identity::CaPin([1; 32])], ALPN).unwrap();
        let address = format!("127.0.0.1:{port}");
        let mut client = postern_api::v1::login_service_client::LoginServiceClient::new(
            postern_api::connect_lazy(&address, "demo", config),
        );
        let e = call(
            &via(&address),
            client.login(postern_api::v1::LoginRequest::default()),
        )
        .await
        .unwrap_err()
        .to_string();
        assert!(
            e.starts_with("cannot reach ") && e.contains(&address),
            "{e}"
        );
        assert!(e.to_lowercase().contains("connection refused"), "{e}");
    }
}
