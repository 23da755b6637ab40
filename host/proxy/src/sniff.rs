//! What a connection begins with. Pure functions over bytes from anybody, fuzzed.

/// First bytes of an SSH connection.
const SSH: &[u8] = b"SSH-2.0-";
/// First byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// PostgreSQL's requests ahead of a startup message (protocol documentation, "Message Formats").
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// What the first bytes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniff {
    /// Can still become something; read on. Never for 8 bytes or more.
    NeedMore,
    /// An SSH identification.
    Ssh,
    /// Probably a TLS ClientHello.
    Tls,
    /// PostgreSQL asks for GSSAPI encryption: answer `N`, sniff again. 8 bytes.
    PostgresGssEnc,
    /// PostgreSQL asks for TLS: answer `S`, a ClientHello follows. 8 bytes.
    PostgresSsl,
    /// PostgreSQL wants to cancel a query of another connection.
    PostgresCancel,
    /// None of ours.
    Unknown,
}

/// Classifies the first bytes of a connection.
pub fn sniff(bytes: &[u8]) -> Sniff {
    let Some(first) = bytes.first() else {
        return Sniff::NeedMore;
    };
    match first {
        &TLS_HANDSHAKE => Sniff::Tls,
        b'S' => literal(bytes, SSH, Sniff::Ssh),
        0 => postgres(bytes),
        _ => Sniff::Unknown,
    }
}

fn literal(bytes: &[u8], expected: &[u8], found: Sniff) -> Sniff {
    let n = bytes.len().min(expected.len());
    match bytes[..n] == expected[..n] {
        false => Sniff::Unknown,
        true if n == expected.len() => found,
        true => Sniff::NeedMore,
    }
}

/// A big-endian length (8, or 16 and more for a cancellation) and a request code.
fn postgres(bytes: &[u8]) -> Sniff {
    // Of all three codes.
    const CODE: [u8; 3] = [0x04, 0xd2, 0x16];
    let Some((head, _)) = bytes.split_first_chunk::<8>() else {
        let length = bytes.iter().take(2).all(|b| *b == 0);
        let code = bytes.iter().skip(4).zip(CODE).all(|(b, c)| *b == c);
        return if length && code {
            Sniff::NeedMore
        } else {
            Sniff::Unknown
        };
    };
    let [l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    match (length, u32::from_be_bytes([c0, c1, c2, c3])) {
        (8, SSL_REQUEST) => Sniff::PostgresSsl,
        (8, GSSENC_REQUEST) => Sniff::PostgresGssEnc,
        // 16 up to protocol 3.0; 3.2 has longer secrets.
        (12..=1024, CANCEL_REQUEST) => Sniff::PostgresCancel,
        _ => Sniff::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pg(length: u32, code: u32) -> Vec<u8> {
        [length.to_be_bytes(), code.to_be_bytes()].concat()
    }

    #[test]
    fn knows_its_own() {
        assert_eq!(sniff(b"SSH-2.0-OpenSSH_9.2"), Sniff::Ssh);
        assert_eq!(sniff(&[0x16, 3, 1]), Sniff::Tls);
        assert_eq!(sniff(&pg(8, SSL_REQUEST)), Sniff::PostgresSsl);
        assert_eq!(sniff(&pg(8, GSSENC_REQUEST)), Sniff::PostgresGssEnc);
        assert_eq!(sniff(&pg(16, CANCEL_REQUEST)), Sniff::PostgresCancel);
        // A startup message without TLS.
        assert_eq!(sniff(&pg(41, 196_608)), Sniff::Unknown);
        for garbage in [
            &b"GET / HTTP/1.1"[..],
            b"SSH-1.99-x",
            b"\0\0\0\0\0\0\0\0",
            b"\xff",
        ] {
            assert_eq!(sniff(garbage), Sniff::Unknown, "{garbage:?}");
        }
    }

    #[test]
    fn every_prefix_of_a_known_start_needs_more() {
        for whole in [
            b"SSH-2.0-".to_vec(),
            pg(8, SSL_REQUEST),
            pg(8, GSSENC_REQUEST),
            pg(16, CANCEL_REQUEST),
        ] {
            for n in 0..whole.len() {
                assert_eq!(sniff(&whole[..n]), Sniff::NeedMore, "{:?}", &whole[..n]);
            }
        }
    }

    proptest! {
        #[test]
        fn decides_within_eight_bytes(bytes in proptest::collection::vec(any::<u8>(), 8..32)) {
            prop_assert_ne!(sniff(&bytes), Sniff::NeedMore);
        }

        #[test]
        fn more_bytes_never_change_a_decision(bytes in proptest::collection::vec(any::<u8>(), 0..16), n in 0usize..16) {
            let early = sniff(&bytes[..n.min(bytes.len())]);
            // A cancellation may turn out to have a wrong length or code: only Unknown and the rest are final.
            if early != Sniff::NeedMore {
                prop_assert_eq!(early, sniff(&bytes));
            }
        }
    }
}
