//! Enrolment links (`https://PROXY/enroll?cluster=…&user=…&code=…&ca_pin=sha256:…`) and the
//! proxy addresses people type.

use postern_identity::CaPin;

/// What an enrolment link says. The code is a secret until it is used.
#[derive(Clone, PartialEq, Eq)]
pub struct Link {
    /// `host:port`
    pub proxy: String,
    pub cluster: String,
    pub user: String,
    pub code: String,
    pub ca_pins: Vec<CaPin>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({} {} {})", self.proxy, self.cluster, self.user)
    }
}

/// Reads a link; the error says which part is wrong.
pub fn parse(text: &str) -> Result<Link, String> {
    let wrong = |what: &str| {
        format!("this is not an enrolment link: {what}; paste all of it, in single quotes")
    };
    let rest = text
        .trim()
        .strip_prefix("https://")
        .ok_or_else(|| wrong("it does not begin with https://"))?;
    let (proxy, query) = rest
        .split_once("/enroll?")
        .ok_or_else(|| wrong("it has no /enroll? part"))?;
    let mut link = Link {
        proxy: address(proxy)?,
        cluster: String::new(),
        user: String::new(),
        code: String::new(),
        ca_pins: Vec::new(),
    };
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or_else(|| wrong("it has a broken % sequence"))?;
        match key {
            "cluster" => link.cluster = value,
            "user" => link.user = value,
            "code" => link.code = value,
            "ca_pin" => {
                for pin in value.split(',') {
                    link.ca_pins
                        .push(pin.parse().map_err(|e| wrong(&format!("{e}")))?);
                }
            }
            // A later version may say more.
            _ => {}
        }
    }
    for (name, value) in [
        ("cluster", &link.cluster),
        ("user", &link.user),
        ("code", &link.code),
    ] {
        if value.is_empty() {
            return Err(wrong(&format!("it names no {name}")));
        }
    }
    Ok(link)
}

/// `proxy.example.com`, `proxy.example.com:8443`, `https://proxy.example.com/` → `host:port`.
pub fn address(text: &str) -> Result<String, String> {
    let host = text
        .trim()
        .trim_start_matches("https://")
        .trim_end_matches('/');
    let bad = || {
        format!(
            "{text:?} is not a proxy address; write HOST:PORT, for example proxy.example.com:443"
        )
    };
    if host.is_empty()
        || host
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '/' || c == '@')
    {
        return Err(bad());
    }
    let v6_end = host.rfind(']').map_or(0, |i| i + 1);
    match host[v6_end..].rsplit_once(':') {
        Some((before, port)) => match port.parse::<u16>() {
            Ok(p) if p != 0 && !before.contains(':') && (v6_end > 0 || !before.is_empty()) => {
                Ok(host.to_owned())
            }
            _ => Err(bad()),
        },
        None => Ok(format!("{host}:443")),
    }
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'%' => {
                let digit = |b: Option<u8>| (b? as char).to_digit(16);
                u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pin() -> CaPin {
        CaPin([0xab; 32])
    }

    #[test]
    fn a_link_is_read() {
        let link = parse(&format!("https://proxy.example.com:8443/enroll?cluster=demo&user=alice%2Eb&code=AB-12&ca_pin={}&new=1", pin())).unwrap();
        assert_eq!(
            link,
            Link {
                proxy: "proxy.example.com:8443".into(),
                cluster: "demo".into(),
                user: "alice.b".into(),
                code: "AB-12".into(),
                ca_pins: vec![pin()]
            }
        );
        // The pin's colon may come encoded, and the port be left out.
        let link = parse(&format!(
            "https://p.example.com/enroll?cluster=demo&user=a&code=x&ca_pin={}",
            pin().to_string().replace(':', "%3A")
        ))
        .unwrap();
        assert_eq!(
            (link.proxy.as_str(), link.ca_pins),
            ("p.example.com:443", vec![pin()])
        );
    }

    #[test]
    fn a_cut_link_says_what_is_missing() {
        // What a shell leaves of an unquoted link: `&` ends the command.
        let e = parse("https://proxy.example.com/enroll?cluster=demo").unwrap_err();
        assert_eq!(
            e,
            "this is not an enrolment link: it names no user; paste all of it, in single quotes"
        );
        assert!(parse("http://x/enroll?").unwrap_err().contains("https://"));
        assert!(parse("https://x/enroll?cluster=a&user=b&code=c&ca_pin=sha256:12").is_err());
        assert!(
            parse("https://x/enroll?cluster=%zz")
                .unwrap_err()
                .contains('%')
        );
    }

    #[test]
    fn addresses_get_a_port() {
        for (given, want) in [
            ("p.example.com", "p.example.com:443"),
            ("p:3080", "p:3080"),
            ("https://p/", "p:443"),
            ("[::1]:8443", "[::1]:8443"),
            ("[::1]", "[::1]:443"),
            ("127.0.0.1:1", "127.0.0.1:1"),
        ] {
            assert_eq!(address(given).as_deref(), Ok(want), "{given}");
        }
        for bad in [
            "", "p:", "p:x", "p:0", "p:70000", "a b", "::1", "u@p:1", ":443",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn anything_pasted_is_answered(text in "\\PC*") {
            let _ = parse(&text);
            let _ = parse(&format!("https://p/enroll?{text}"));
            let _ = address(&text);
        }
    }
}
