//! Where a TLS connection goes, by its ClientHello alone. Pure.

use crate::hello::Hello;
use postern_identity::{ResourceId, auth_dns};

pub(crate) const ALPN_SESSION: &[u8] = b"postern-session";
pub(crate) const ALPN_TUNNEL: &[u8] = b"postern-tunnel";

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Passed on to Auth as it is.
    Auth,
    /// Passed on to an agent as it is, if the resource allows that.
    Direct(ResourceId),
    /// SSH inside TLS.
    Tunnel,
    /// The helper path.
    Session,
    /// HTTPS.
    Web,
    /// A name below the cluster's that is nothing.
    Unknown(String),
}

impl Route {
    /// Label for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Route::Auth => "auth",
            Route::Direct(_) => "direct",
            Route::Tunnel => "tunnel",
            Route::Session => "session",
            Route::Web => "web",
            Route::Unknown(_) => "unknown",
        }
    }
}

/// First the name, then the protocol: a resource's name never reaches the web server, whatever it offers.
/// `public_host` is the host part of the proxy's public address, which may lie below the cluster's name.
pub(crate) fn route(hello: &Hello, cluster: &str, public_host: &str) -> Route {
    if let Some(sni) = &hello.sni
        && sni != public_host
    {
        if *sni == auth_dns(cluster) {
            return Route::Auth;
        }
        if let Some(id) = ResourceId::from_dns(sni, cluster) {
            return Route::Direct(id);
        }
        let below = sni
            .strip_suffix(cluster)
            .is_some_and(|rest| rest.ends_with('.'));
        if below && *sni != postern_identity::proxy_dns(cluster) {
            return Route::Unknown(sni.clone());
        }
    }
    if hello.offers(ALPN_TUNNEL) {
        Route::Tunnel
    } else if hello.offers(ALPN_SESSION) {
        Route::Session
    } else {
        Route::Web
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sni: &str, alpn: &[&[u8]]) -> Route {
        let hello = Hello {
            sni: (!sni.is_empty()).then(|| sni.to_owned()),
            alpn: alpn.iter().map(|p| p.to_vec()).collect(),
            raw: Vec::new(),
        };
        route(&hello, "demo.example.com", "gate.demo.example.com")
    }

    #[test]
    fn names_before_protocols() {
        let web_1 = Route::Direct(ResourceId {
            kind: "ssh".into(),
            name: "web-1".into(),
        });
        assert_eq!(of("web-1.ssh.demo.example.com", &[]), web_1);
        assert_eq!(of("web-1.ssh.demo.example.com", &[ALPN_SESSION]), web_1);
        assert_eq!(of("auth.demo.example.com", &[b"h2"]), Route::Auth);
        assert_eq!(
            of("proxy.demo.example.com", &[ALPN_SESSION]),
            Route::Session
        );
        assert_eq!(of("proxy.demo.example.com", &[ALPN_TUNNEL]), Route::Tunnel);
        assert_eq!(of("proxy.demo.example.com", &[]), Route::Web);
        assert_eq!(of("gate.demo.example.com", &[]), Route::Web);
        assert_eq!(
            of("other.demo.example.com", &[]),
            Route::Unknown("other.demo.example.com".into())
        );
        assert_eq!(of("www.example.org", &[b"h2"]), Route::Web);
        assert_eq!(of("", &[ALPN_TUNNEL]), Route::Tunnel);
        assert_eq!(of("", &[]), Route::Web);
    }
}
