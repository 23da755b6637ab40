use super::*;
use crate::testing::{CLUSTER, Cluster, HOST_ID, HOUR, alice, expired, future, valid};
use crate::{TlsIdentity, spiffe_agent, spiffe_user};
use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, SanType};

fn from(id: &TlsIdentity, trust: &TrustBundle) -> Result<(Peer, SystemTime), String> {
    let chain = tls::certs(&id.chain_pem).unwrap();
    Peer::from_chain(&chain, trust).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(result: Result<(Peer, SystemTime), String>, why: &str) {
    let e = result.unwrap_err();
    assert!(
        e.starts_with("client certificate refused: ") && e.contains(why),
        "{e}"
    );
}

/// What a user's certificate has, to be varied.
fn user_params(uris: &[String]) -> CertificateParams {
    let v = valid();
    let mut params = CertificateParams::default();
    params.not_before = v.not_before.into();
    params.not_after = v.not_after.into();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let uri = |u: &String| SanType::URI(u.as_str().try_into().unwrap());
    params.subject_alt_names = uris.iter().map(uri).collect();
    let json = serde_json::to_vec(&alice()).unwrap();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&USER_EXTENSION_OID, json)];
    params
}

fn alice_uri() -> String {
    spiffe_user(CLUSTER, "alice")
}

#[test]
fn both_peers_round_trip() {
    let cluster = Cluster::new();
    let v = valid();
    let (peer, end) = from(&cluster.user(v), &cluster.trust()).unwrap();
    assert_eq!(peer, Peer::User(alice()));
    assert!(end <= v.not_after && end > v.not_after - std::time::Duration::from_secs(2));
    let (peer, _) = from(&cluster.agent(v), &cluster.trust()).unwrap();
    let (host_id, service) = (HOST_ID.into(), "orders".into());
    assert_eq!(peer, Peer::Agent(AgentIdentity { host_id, service }));
    // What the tests below vary is accepted as it is.
    let crafted = cluster.craft(CaKind::User, &user_params(&[alice_uri()]));
    assert_eq!(
        from(&crafted, &cluster.trust()).unwrap().0,
        Peer::User(alice())
    );
}

#[test]
fn the_issuing_ca_decides_what_a_certificate_is() {
    let cluster = Cluster::new();
    let trust = cluster.trust();
    // The agent CA cannot make users, the user CA no agents, whatever they write.
    let user_by_agent_ca = cluster.craft(CaKind::Agent, &user_params(&[alice_uri()]));
    refused(from(&user_by_agent_ca, &trust), "not that of an agent");
    let agent_uri = spiffe_agent(CLUSTER, HOST_ID, "ssh");
    let agent_by_user_ca = cluster.craft(CaKind::User, &user_params(&[agent_uri]));
    refused(from(&agent_by_user_ca, &trust), "not that of a user");
    for kind in [CaKind::Host, CaKind::DbServer, CaKind::DbClient] {
        let cert = cluster.craft(kind, &user_params(&[alice_uri()]));
        refused(
            from(&cert, &trust),
            "no agent or user CA of this cluster issued it",
        );
    }
    refused(
        from(&cluster.server(&["auth.demo"], valid()), &trust),
        "extended key usage",
    );
    refused(
        from(&Cluster::new().user(valid()), &trust),
        "no agent or user CA",
    );
    // A bundle without the kind trusts nobody of it.
    let mut agents_only = trust.clone();
    agents_only.cas.retain(|ca| ca.kind == CaKind::Agent);
    refused(
        from(&cluster.user(valid()), &agents_only),
        "no agent or user CA",
    );
}

#[test]
fn times_and_usage_count() {
    let cluster = Cluster::new();
    let trust = cluster.trust();
    refused(from(&cluster.user(expired()), &trust), "expired");
    refused(from(&cluster.agent(expired()), &trust), "expired");
    refused(from(&cluster.user(future()), &trust), "not valid yet");
    let chain = tls::certs(&cluster.user(valid()).chain_pem).unwrap();
    let now = SystemTime::now();
    assert!(Peer::from_chain_at(&chain, &trust, now).is_ok());
    assert!(Peer::from_chain_at(&chain, &trust, now + 2 * HOUR).is_err());
    assert!(Peer::from_chain_at(&chain, &trust, UNIX_EPOCH - HOUR).is_err());
    let mut params = user_params(&[alice_uri()]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let e = from(&cluster.craft(CaKind::User, &params), &trust).unwrap_err();
    assert!(
        e.to_lowercase().contains("usage") || e.contains("purpose"),
        "{e}"
    );
}

#[test]
fn names_must_be_one_and_agree() {
    let cluster = Cluster::new();
    let trust = cluster.trust();
    let with = |uris: &[String]| from(&cluster.craft(CaKind::User, &user_params(uris)), &trust);
    refused(with(&[]), "no subject alternative name");
    refused(with(&[alice_uri(), alice_uri()]), "not one URI");
    refused(with(&[spiffe_user("other", "alice")]), "is not of cluster");
    refused(
        with(&[spiffe_user("demo.evil", "alice")]),
        "is not of cluster",
    );
    refused(
        with(&["https://demo/user/alice".into()]),
        "is not of cluster",
    );
    refused(with(&[spiffe_user(CLUSTER, "bob")]), "name different users");
    refused(with(&[spiffe_user(CLUSTER, "a/b")]), "user name");
    let mut dns = user_params(&[]);
    dns.subject_alt_names = vec![SanType::DnsName("alice".try_into().unwrap())];
    refused(
        from(&cluster.craft(CaKind::User, &dns), &trust),
        "not one URI",
    );
}

#[test]
fn the_identity_extension_must_be_there_once_and_whole() {
    let cluster = Cluster::new();
    let trust = cluster.trust();
    let with = |contents: &[&[u8]]| {
        let mut params = user_params(&[alice_uri()]);
        let extension =
            |c: &&[u8]| CustomExtension::from_oid_content(&USER_EXTENSION_OID, c.to_vec());
        params.custom_extensions = contents.iter().map(extension).collect();
        from(&cluster.craft(CaKind::User, &params), &trust)
    };
    let whole = serde_json::to_vec(&alice()).unwrap();
    refused(with(&[]), "identity extension is missing");
    refused(
        with(&[&whole[..whole.len() - 1]]),
        "identity extension is damaged",
    );
    refused(with(&[b""]), "damaged");
    assert!(with(&[&whole, &whole]).is_err());
    assert!(with(&[&whole]).is_ok());
}

#[test]
fn damaged_chains_and_cas_as_leaves_are_refused() {
    let cluster = Cluster::new();
    let trust = cluster.trust();
    let chain =
        |certs: &[CertificateDer<'_>]| Peer::from_chain(certs, &trust).map_err(|e| e.to_string());
    refused(chain(&[]), "there is none");
    for ca in &trust.cas {
        assert!(chain(&tls::certs(&ca.x509_pem).unwrap()).is_err());
    }
    let der = tls::certs(&cluster.user(valid()).chain_pem)
        .unwrap()
        .remove(0);
    for i in (0..der.len()).step_by(3) {
        let mut bytes = der.to_vec();
        bytes[i] ^= 1;
        assert!(chain(&[bytes.into()]).is_err(), "byte {i}");
        assert!(chain(&[der[..i].to_vec().into()]).is_err());
    }
    let mut longer = der.to_vec();
    longer.push(0);
    assert!(chain(&[longer.into()]).is_err());
}
