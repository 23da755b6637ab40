//! The signature on a join (D1, D3). It covers every field of the request: whoever holds the host key asked for
//! exactly these names and these keys, so a token that leaked cannot be redeemed in another host's name, and a
//! man in the middle cannot put his own public key into somebody's join. The same holds of a bound key (join method
//! `bound_keypair`): it signs for this one host key.

use aws_lc_rs::digest;
use postern_identity::{HostKey, host_id_of, verify_host_signature};
use prost::Message;

use crate::v1::JoinRequest;

/// Separates this signature from anything else a host key may ever sign.
const CONTEXT: &[u8] = b"postern-join-v1\n";
/// The same for a bound key, which is none of a host.
const BOUND_CONTEXT: &[u8] = b"postern-bound-keypair-v1\n";

/// What is signed: SHA-256 of the context and the request encoded without its signature.
pub fn signing_input(req: &JoinRequest) -> Vec<u8> {
    input(
        CONTEXT,
        JoinRequest {
            signature: Vec::new(),
            ..req.clone()
        },
    )
}

fn bound_input(req: &JoinRequest) -> Vec<u8> {
    input(
        BOUND_CONTEXT,
        JoinRequest {
            signature: Vec::new(),
            bound_signature: Vec::new(),
            ..req.clone()
        },
    )
}

fn input(context: &[u8], unsigned: JoinRequest) -> Vec<u8> {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(context);
    hash.update(&unsigned.encode_to_vec());
    hash.finish().as_ref().to_vec()
}

/// Fills `bound_public_key` and `bound_signature`, for the host of this public key. Call it before [`sign`].
pub fn sign_bound(req: &mut JoinRequest, key: &HostKey, host_public_key: Vec<u8>) {
    req.host_public_key = host_public_key;
    req.bound_public_key = key.public();
    req.bound_signature = key.sign(&bound_input(req));
}

/// Whether the holder of `bound_public_key` signed this request.
pub fn bound_key_signed(req: &JoinRequest) -> bool {
    verify_host_signature(
        &req.bound_public_key,
        &bound_input(req),
        &req.bound_signature,
    )
}

/// Fills `host_public_key` and `signature`. Call it last: a later change makes the signature void.
pub fn sign(req: &mut JoinRequest, key: &HostKey) {
    req.host_public_key = key.public();
    req.signature = key.sign(&signing_input(req));
}

/// The id of the host that signed this request; `None` if the signature does not hold.
pub fn verify(req: &JoinRequest) -> Option<String> {
    verify_host_signature(&req.host_public_key, &signing_input(req), &req.signature)
        .then(|| host_id_of(&req.host_public_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> JoinRequest {
        JoinRequest {
            cluster: "demo".into(),
            service: "ssh".into(),
            kind: "ssh".into(),
            names: vec!["web-1".into()],
            nonce: vec![7; 16],
            ..Default::default()
        }
    }

    #[test]
    fn a_signed_request_names_its_host() {
        let key = HostKey::generate();
        let mut req = request();
        sign(&mut req, &key);
        assert_eq!(verify(&req), Some(key.host_id()));
    }

    #[test]
    fn a_bound_key_signs_for_one_host() {
        let (host, bound) = (HostKey::generate(), HostKey::generate());
        let mut req = request();
        sign_bound(&mut req, &bound, host.public());
        sign(&mut req, &host);
        assert!(bound_key_signed(&req) && verify(&req).is_some());
        // A host that saw the request can't make it its own.
        let thief = HostKey::generate();
        sign(&mut req, &thief);
        assert_eq!(verify(&req), Some(thief.host_id()));
        assert!(!bound_key_signed(&req));
    }

    #[test]
    fn any_change_voids_the_signature() {
        let key = HostKey::generate();
        let mut req = request();
        sign(&mut req, &key);
        let changes: [fn(&mut JoinRequest); 6] = [
            |r| r.names.push("db-1".into()),
            |r| r.kind = "tcp".into(),
            |r| r.spki = vec![1],
            |r| r.generation = 2,
            |r| r.host_public_key = HostKey::generate().public(),
            |r| r.signature.clear(),
        ];
        for change in changes {
            let mut changed = req.clone();
            change(&mut changed);
            assert_eq!(verify(&changed), None);
        }
    }
}
