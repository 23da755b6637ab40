//! The signature on a join (D1, D3). It covers every field of the request: whoever holds the host key asked for
//! exactly these names and these keys, so a token that leaked cannot be redeemed in another host's name, and a
//! man in the middle cannot put his own public key into somebody's join.

use aws_lc_rs::digest;
use postern_identity::{HostKey, host_id_of, verify_host_signature};
use prost::Message;

use crate::v1::JoinRequest;

/// Separates this signature from anything else a host key may ever sign.
const CONTEXT: &[u8] = b"postern-join-v1\n";

/// What is signed: SHA-256 of the context and the request encoded without its signature.
pub fn signing_input(req: &JoinRequest) -> Vec<u8> {
    let unsigned = JoinRequest {
        signature: Vec::new(),
        ..req.clone()
    };
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(CONTEXT);
    hash.update(&unsigned.encode_to_vec());
    hash.finish().as_ref().to_vec()
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
