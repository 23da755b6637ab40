//! The critical option `source-address`: a comma-separated list of addresses and CIDR blocks.

use super::{CertRejected, reject};
use std::net::IpAddr;

/// Refuses a client from elsewhere, an unknown one, and a list that is not wholly understood.
pub(super) fn check(list: &str, source: Option<IpAddr>) -> Result<(), CertRejected> {
    let Some(source) = source.map(|ip| ip.to_canonical()) else {
        return reject(
            "it holds only for some addresses (source-address), the client's is unknown",
        );
    };
    let mut inside = false;
    for block in list.split(',') {
        let Some((net, len)) = parse(block) else {
            return reject(format!(
                "source-address {block:?} is not an address or a CIDR block"
            ));
        };
        inside |= contains(net, len, source);
    }
    match inside {
        true => Ok(()),
        false => reject(format!(
            "it does not hold for a client at {source} (source-address)"
        )),
    }
}

fn parse(block: &str) -> Option<(IpAddr, u32)> {
    let (ip, len) = match block.split_once('/') {
        Some((ip, len)) if len.bytes().all(|b| b.is_ascii_digit()) => (ip, Some(len.parse().ok()?)),
        Some(_) => return None,
        None => (block, None),
    };
    let ip: IpAddr = ip.parse().ok()?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let len = len.unwrap_or(bits);
    (len <= bits).then_some((ip, len))
}

fn contains(net: IpAddr, len: u32, ip: IpAddr) -> bool {
    // The bits that must be equal, moved to the right; a shift by all bits leaves nothing.
    match (net, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            (net.to_bits() ^ ip.to_bits())
                .checked_shr(32 - len)
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            (net.to_bits() ^ ip.to_bits())
                .checked_shr(128 - len)
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(list: &str, ip: &str) -> bool {
        check(list, Some(ip.parse().unwrap())).is_ok()
    }

    #[test]
    fn blocks_hold_what_they_say() {
        assert!(ok("10.0.0.0/8", "10.255.0.1"));
        assert!(!ok("10.0.0.0/8", "11.0.0.1"));
        assert!(ok("192.0.2.7", "192.0.2.7"));
        assert!(!ok("192.0.2.7/32", "192.0.2.6"));
        assert!(ok("0.0.0.0/0", "198.51.100.1"));
        assert!(!ok("0.0.0.0/0", "2001:db8::1"));
        assert!(ok("2001:db8::/32", "2001:db8:1::1"));
        assert!(ok("::/0", "2001:db8::1"));
        assert!(!ok("2001:db8::1/128", "2001:db8::2"));
        assert!(ok("10.0.0.0/8,192.0.2.0/24", "192.0.2.200"));
    }

    #[test]
    fn mapped_addresses_are_the_ipv4_ones() {
        assert!(ok("10.0.0.0/8", "::ffff:10.1.1.1"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for list in [
            "",
            "10.0.0.0/33",
            "10.*",
            "!10.0.0.1",
            "10.0.0.1,",
            "10.0.0.1/+8",
            "10.0.0.1/",
        ] {
            assert!(!ok(list, "10.0.0.1"), "{list}");
        }
        assert!(check("10.0.0.0/8", None).is_err());
    }
}
