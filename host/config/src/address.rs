//! Addresses as they are written in the configuration: `host:port`, `[::1]:port`, `unix:/path`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
};

/// Where to listen or what to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A host name or IP address (IPv6 without its brackets) and a port.
    Tcp {
        /// DNS name or IP literal.
        host: String,
        /// 0 only makes sense for listening.
        port: u16,
    },
    /// The absolute path of a Unix socket.
    Unix(PathBuf),
}

/// Why a text is no address; continues a sentence that starts with the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no address: {why}")]
pub struct AddressError {
    /// What was written.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Address {
    /// Whether only this host can reach it. Names other than `localhost` count as reachable.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Unix(_) => true,
            Address::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }

    /// Whether it stands for all addresses of a host (`0.0.0.0`, `[::]`), which nobody can dial.
    pub fn is_unspecified(&self) -> bool {
        matches!(self, Address::Tcp { host, .. }
            if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()))
    }

    /// What the same host dials to reach a listener here.
    pub fn dialable(&self) -> Address {
        match self {
            Address::Tcp { host, port } if self.is_unspecified() => {
                let loopback = if host.contains(':') {
                    IpAddr::V6(Ipv6Addr::LOCALHOST)
                } else {
                    IpAddr::V4(Ipv4Addr::LOCALHOST)
                };
                Address::Tcp {
                    host: loopback.to_string(),
                    port: *port,
                }
            }
            other => other.clone(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(value: &str) -> Result<Self, AddressError> {
        let bad = |why| AddressError {
            value: value.to_owned(),
            why,
        };
        if let Some(path) = value.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(bad(
                    "a Unix socket needs an absolute path, as in unix:/run/app.sock",
                ));
            }
            // sun_path of Linux: 108 bytes with the final zero.
            if path.len() > 107 {
                return Err(bad("the path of a Unix socket has at most 107 bytes"));
            }
            return Ok(Address::Unix(path.into()));
        }
        if value.contains("://") {
            return Err(bad("write host:port, without a scheme"));
        }
        let Some((host, port)) = value.rsplit_once(':') else {
            return Err(bad("the port is missing; write host:port or unix:/path"));
        };
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let Some(port) = port.parse::<u16>().ok().filter(|_| digits) else {
            return Err(bad("the port is not a number from 0 to 65535"));
        };
        if let Some(inner) = host.strip_prefix('[') {
            let ip = inner
                .strip_suffix(']')
                .and_then(|ip| ip.parse::<Ipv6Addr>().ok());
            let ip = ip.ok_or_else(|| bad("what is in brackets is no IPv6 address"))?;
            return Ok(Address::Tcp {
                host: ip.to_string(),
                port,
            });
        }
        if host.contains(':') {
            return Err(bad("an IPv6 address needs brackets, as in [::1]:443"));
        }
        if !is_host(host) {
            return Err(bad("the host is neither an IP address nor a DNS name"));
        }
        Ok(Address::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

/// An IPv4 address or a DNS name. A name whose last label is a number is a mistyped IPv4 address.
fn is_host(host: &str) -> bool {
    if host.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_end = host
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && host.split('.').all(label) && !numeric_end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_addresses_are_shown_as_written() {
        for text in [
            "127.0.0.1:443",
            "proxy.example.com:3080",
            "[::1]:22",
            "unix:/run/x.sock",
            "a_b:0",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_addresses_say_why() {
        for (text, why) in [
            ("proxy.example.com", "port is missing"),
            ("https://proxy.example.com:443", "without a scheme"),
            ("::1:443", "brackets"),
            ("[zz]:443", "no IPv6"),
            ("host:99999", "0 to 65535"),
            ("host:+1", "0 to 65535"),
            ("300.1.1.1:80", "neither"),
            (":443", "neither"),
            ("-a.example:443", "neither"),
            ("unix:run/x", "absolute"),
        ] {
            let message = text.parse::<Address>().unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
        }
    }

    #[test]
    fn local_and_dialable() {
        let parse = |text: &str| text.parse::<Address>().unwrap();
        assert!(parse("127.9.9.9:1").is_local() && parse("[::1]:1").is_local());
        assert!(!parse("0.0.0.0:1").is_local() && !parse("example.com:1").is_local());
        assert_eq!(parse("0.0.0.0:443").dialable().to_string(), "127.0.0.1:443");
        assert_eq!(parse("[::]:443").dialable().to_string(), "[::1]:443");
        assert_eq!(parse("10.0.0.1:443").dialable().to_string(), "10.0.0.1:443");
    }
}
