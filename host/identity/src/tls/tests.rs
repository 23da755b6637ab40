use super::*;
use crate::testing::{Cluster, HOUR, expired, future, valid};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConnection, Error, ServerConnection};
use std::io::Read as _;

const AUTH: &str = "auth.demo";

/// Who gave up, and why.
#[derive(Debug)]
enum Refusal {
    Client(Error),
    Server(Error),
}

fn pump(from: &mut Vec<u8>, mut read: impl FnMut(&mut &[u8]) -> std::io::Result<usize>) {
    let mut bytes = from.as_slice();
    while !bytes.is_empty() {
        read(&mut bytes).unwrap();
    }
    from.clear();
}

/// A whole handshake in memory, until both sides have nothing more to say.
fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), Refusal> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let mut wire = Vec::new();
    while client.wants_write() || server.wants_write() {
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        pump(&mut wire, |b| server.read_tls(b));
        server.process_new_packets().map_err(Refusal::Server)?;
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        pump(&mut wire, |b| client.read_tls(b));
        client.process_new_packets().map_err(Refusal::Client)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

#[track_caller]
fn client_refused(result: Result<(ClientConnection, ServerConnection), Refusal>, why: &str) {
    match result {
        Err(Refusal::Client(e)) => assert!(e.to_string().contains(why), "{e}"),
        other => panic!("the client did not refuse: {other:?}"),
    }
}

#[track_caller]
fn server_refused(result: Result<(ClientConnection, ServerConnection), Refusal>, why: &str) {
    match result {
        Err(Refusal::Server(e)) => assert!(e.to_string().contains(why), "{e}"),
        other => panic!("the server did not refuse: {other:?}"),
    }
}

fn plain(id: &TlsIdentity) -> Arc<ServerConfig> {
    server(id, ClientAuth::None, &[]).unwrap()
}

#[test]
fn the_cluster_s_own_server_is_trusted_by_name() {
    let c = Cluster::new();
    let trust = c.trust();
    let cl = client(&trust, CaKind::Host, None, &[b"h2"]).unwrap();
    let srv = server(
        &c.server(&[AUTH, "127.0.0.1"], valid()),
        ClientAuth::None,
        &[b"h2"],
    )
    .unwrap();
    let (client_end, server_end) = handshake(&cl, &srv, AUTH).unwrap();
    assert_eq!(
        client_end.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(server_end.alpn_protocol(), Some(b"h2".as_slice()));
    handshake(&cl, &srv, "127.0.0.1").unwrap();
    client_refused(handshake(&cl, &srv, "proxy.demo"), "not valid for name");
}

#[test]
fn a_client_trusts_one_kind_of_ca_only() {
    let (c, other) = (Cluster::new(), Cluster::new());
    let srv = plain(&c.server(&[AUTH], valid()));
    for kind in CaKind::ALL.into_iter().filter(|k| *k != CaKind::Host) {
        let cl = client(&c.trust(), kind, None, &[]).unwrap();
        client_refused(handshake(&cl, &srv, AUTH), "UnknownIssuer");
    }
    let cl = client(&other.trust(), CaKind::Host, None, &[]).unwrap();
    assert!(handshake(&cl, &srv, AUTH).is_err());
    // A client's certificate is no server's, not even for a name of its own.
    let cl = client(&c.trust(), CaKind::User, None, &[]).unwrap();
    assert!(handshake(&cl, &plain(&c.user(valid())), "alice").is_err());
}

#[test]
fn servers_out_of_their_time_are_refused() {
    let c = Cluster::new();
    let cl = client(&c.trust(), CaKind::Host, None, &[]).unwrap();
    let pinned = client_pinned(&c.trust().host_pins(), &[]).unwrap();
    for cl in [cl, pinned] {
        client_refused(
            handshake(&cl, &plain(&c.server(&[AUTH], expired())), AUTH),
            "expired",
        );
        client_refused(
            handshake(&cl, &plain(&c.server(&[AUTH], future())), AUTH),
            "not valid yet",
        );
    }
}

#[test]
fn a_pinned_client_knows_its_cluster() {
    let (c, other) = (Cluster::new(), Cluster::new());
    let srv = plain(&c.server(&[AUTH], valid()));
    let (right, wrong) = (c.trust().host_pins()[0], other.trust().host_pins()[0]);
    // While the CA rotates there are two.
    for pins in [vec![right], vec![wrong, right]] {
        let cl = client_pinned(&pins, &[]).unwrap();
        handshake(&cl, &srv, AUTH).unwrap();
        client_refused(handshake(&cl, &srv, "proxy.demo"), "not valid for name");
    }
    let cl = client_pinned(&[wrong], &[]).unwrap();
    let Err(Refusal::Client(e)) = handshake(&cl, &srv, AUTH) else {
        panic!("accepted a wrong pin");
    };
    let Error::InvalidCertificate(rustls::CertificateError::Other(source)) = &e else {
        panic!("{e}");
    };
    let mismatch = source.0.downcast_ref::<PinMismatch>().unwrap();
    assert_eq!(
        (&mismatch.wanted, &mismatch.shown),
        (&vec![wrong], &vec![right])
    );
    let text = mismatch.to_string();
    assert!(
        text.contains(&right.to_string()) && text.contains(&wrong.to_string()),
        "{text}"
    );
    assert!(matches!(client_pinned(&[], &[]), Err(TlsError::NoPin)));
}

#[test]
fn a_pinned_ca_in_the_chain_does_not_vouch_for_another_s_leaf() {
    let (c, other) = (Cluster::new(), Cluster::new());
    let cl = client_pinned(&c.trust().host_pins(), &[]).unwrap();
    // The attacker's leaf, with the real CA's certificate, which anybody can have, behind it.
    let mut mixed = other.server(&[AUTH], valid());
    mixed
        .chain_pem
        .push_str(&c.ca(CaKind::Host).public().x509_pem);
    assert!(matches!(
        handshake(&cl, &plain(&mixed), AUTH),
        Err(Refusal::Client(_))
    ));
    // Without a CA in the chain there is nothing to compare.
    let mut bare = c.server(&[AUTH], valid());
    let leaf = certs(&bare.chain_pem).unwrap().remove(0);
    bare.chain_pem = cert_pem(&leaf);
    client_refused(handshake(&cl, &plain(&bare), AUTH), "PinMismatch");
    // The pin of another CA of the cluster is not that of the server's.
    let user_ca = client_pinned(&[c.ca(CaKind::User).public().pin()], &[]).unwrap();
    assert!(handshake(&user_ca, &plain(&c.server(&[AUTH], valid())), AUTH).is_err());
    // Nor does a leaf's own pin make it a CA.
    let leaf_pin = client_pinned(&[CaPin::of_cert(&leaf).unwrap()], &[]).unwrap();
    assert!(handshake(&leaf_pin, &plain(&c.server(&[AUTH], valid())), AUTH).is_err());
}

#[test]
fn each_kind_of_client_where_it_is_wanted_and_nowhere_else() {
    let c = Cluster::new();
    let trust = c.trust();
    let id = c.server(&[AUTH], valid());
    let as_client = |id| client(&trust, CaKind::Host, Some(&id), &[]).unwrap();
    let (agent, user) = (as_client(c.agent(valid())), as_client(c.user(valid())));
    let host = as_client(c.server(&["web-1.ssh.demo"], valid()));
    let wants = |kinds: &[CaKind]| server(&id, ClientAuth::Required(&trust, kinds), &[]).unwrap();
    let (agents, users) = (wants(&[CaKind::Agent]), wants(&[CaKind::User]));
    for (cl, srv) in [(&agent, &agents), (&user, &users)] {
        let (_, server_end) = handshake(cl, srv, AUTH).unwrap();
        crate::Peer::from_chain(server_end.peer_certificates().unwrap(), &trust).unwrap();
    }
    for (cl, srv) in [(&agent, &users), (&user, &agents)] {
        server_refused(handshake(cl, srv, AUTH), "UnknownIssuer");
    }
    for srv in [&users, &agents] {
        server_refused(handshake(&host, srv, AUTH), "extended key usage");
    }
    let both = wants(&[CaKind::Agent, CaKind::User]);
    handshake(&agent, &both, AUTH).unwrap();
    handshake(&user, &both, AUTH).unwrap();
    server_refused(handshake(&host, &both, AUTH), "extended key usage");
    server_refused(
        handshake(&as_client(c.user(expired())), &both, AUTH),
        "expired",
    );
    server_refused(
        handshake(&as_client(Cluster::new().user(valid())), &both, AUTH),
        "invalid peer certificate",
    );
}

#[test]
fn optional_and_required_authentication() {
    let c = Cluster::new();
    let trust = c.trust();
    let id = c.server(&[AUTH], valid());
    let kinds = [CaKind::User];
    let optional = server(&id, ClientAuth::Optional(&trust, &kinds), &[]).unwrap();
    let required = server(&id, ClientAuth::Required(&trust, &kinds), &[]).unwrap();
    let anonymous = client(&trust, CaKind::Host, None, &[]).unwrap();
    let (_, server_end) = handshake(&anonymous, &optional, AUTH).unwrap();
    assert!(server_end.peer_certificates().is_none());
    server_refused(handshake(&anonymous, &required, AUTH), "no certificates");
    // A wrong certificate is worse than none.
    let agent = client(&trust, CaKind::Host, Some(&c.agent(valid())), &[]).unwrap();
    server_refused(handshake(&agent, &optional, AUTH), "UnknownIssuer");
    let user = client(&trust, CaKind::Host, Some(&c.user(valid())), &[]).unwrap();
    let (_, server_end) = handshake(&user, &optional, AUTH).unwrap();
    assert!(server_end.peer_certificates().is_some());
    let no_cas = TrustBundle {
        cluster: "demo".into(),
        cas: vec![],
    };
    let e = server(&id, ClientAuth::Required(&no_cas, &kinds), &[]).unwrap_err();
    assert_eq!(
        e.to_string(),
        "TLS: the trust bundle of cluster \"demo\" has no user CA"
    );
    assert!(client(&no_cas, CaKind::Host, None, &[]).is_err());
}

#[test]
fn authenticated_sessions_are_never_resumed() {
    let c = Cluster::new();
    let trust = c.trust();
    let id = c.server(&[AUTH], valid());
    let user = client(&trust, CaKind::Host, Some(&c.user(valid())), &[]).unwrap();
    let kinds = [CaKind::User];
    let again = |srv: &Arc<ServerConfig>, times: usize| {
        let mut last = None;
        for _ in 0..times {
            let (mut client_end, server_end) = handshake(&user, srv, AUTH).unwrap();
            let _ = client_end.reader().read(&mut [0; 1]);
            last = server_end.handshake_kind();
        }
        last
    };
    use rustls::HandshakeKind::{Full, Resumed};
    let required = server(&id, ClientAuth::Required(&trust, &kinds), &[]).unwrap();
    assert_eq!(again(&required, 3), Some(Full));
    let optional = server(&id, ClientAuth::Optional(&trust, &kinds), &[]).unwrap();
    assert_eq!(again(&optional, 3), Some(Full));
    assert_eq!(again(&plain(&id), 3), Some(Resumed));
}

#[test]
fn two_cas_of_one_kind_while_they_rotate() {
    let (old, new) = (Cluster::new(), Cluster::new());
    let mut trust = old.trust();
    trust.cas.extend(new.trust().cas);
    let cl = client(&trust, CaKind::Host, None, &[]).unwrap();
    for c in [&old, &new] {
        handshake(&cl, &plain(&c.server(&[AUTH], valid())), AUTH).unwrap();
        let chain = certs(&c.user(valid()).chain_pem).unwrap();
        crate::Peer::from_chain(&chain, &trust).unwrap();
    }
}

#[test]
fn tls12_only_where_asked_for() {
    let c = Cluster::new();
    let id = c.server(&[AUTH], valid());
    let roots = c.trust().x509_roots(CaKind::Host).unwrap();
    let old = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let old = Arc::new(old);
    assert!(matches!(
        handshake(&old, &plain(&id), AUTH),
        Err(Refusal::Server(_))
    ));
    let both = server_with_versions(&id, ClientAuth::None, &[], TLS12_AND_13).unwrap();
    handshake(&old, &both, AUTH).unwrap();
}

#[test]
fn damaged_identities_are_errors() {
    let c = Cluster::new();
    let good = c.server(&[AUTH], valid());
    assert_eq!(format!("{good:?}"), "TlsIdentity { .. }");
    let other_key = TlsIdentity {
        chain_pem: good.chain_pem.clone(),
        key_pem: c.server(&[AUTH], valid()).key_pem,
    };
    let no_chain = TlsIdentity {
        chain_pem: String::new(),
        key_pem: good.key_pem.clone(),
    };
    let no_key = TlsIdentity {
        chain_pem: good.chain_pem.clone(),
        key_pem: String::new().into(),
    };
    let half = TlsIdentity {
        chain_pem: good.chain_pem[..90].into(),
        key_pem: good.key_pem.clone(),
    };
    for id in [other_key, no_chain, no_key, half] {
        assert!(server(&id, ClientAuth::None, &[]).is_err());
    }
}

#[test]
fn an_expired_user_learns_it_from_the_alert() {
    let c = Cluster::new();
    let trust = c.trust();
    let kinds = [CaKind::User];
    let id = c.server(&[AUTH], valid());
    let srv = server(&id, ClientAuth::Required(&trust, &kinds), &[]).unwrap();
    let v = expired();
    assert!(v.not_after + HOUR <= std::time::SystemTime::now());
    let cl = client(&trust, CaKind::Host, Some(&c.user(v)), &[]).unwrap();
    let name = ServerName::try_from(AUTH).unwrap();
    let (mut cl, mut srv) = (
        ClientConnection::new(cl, name).unwrap(),
        ServerConnection::new(srv).unwrap(),
    );
    let mut wire = Vec::new();
    let mut result = Ok(());
    while result.is_ok() {
        while cl.wants_write() {
            cl.write_tls(&mut wire).unwrap();
        }
        pump(&mut wire, |b| srv.read_tls(b));
        let _ = srv.process_new_packets();
        while srv.wants_write() {
            srv.write_tls(&mut wire).unwrap();
        }
        pump(&mut wire, |b| cl.read_tls(b));
        result = cl.process_new_packets().map(|_| ());
    }
    assert_eq!(
        result,
        Err(Error::AlertReceived(AlertDescription::CertificateExpired))
    );
}

#[test]
fn a_database_is_checked_as_far_as_was_asked() {
    use crate::{Ca, ServiceKeys};
    let (ca, other) = (
        Ca::generate(CaKind::DbServer, "demo").unwrap(),
        Ca::generate(CaKind::DbServer, "demo").unwrap(),
    );
    let roots = |ca: &Ca| {
        let trust = TrustBundle {
            cluster: "demo".into(),
            cas: vec![ca.public()],
        };
        trust.x509_roots(CaKind::DbServer).unwrap()
    };
    let keys = ServiceKeys::generate();
    let names = ["db.internal".to_owned()];
    let leaf = ca.sign_tls_server(&keys.spki(), &names, valid()).unwrap();
    let srv = plain(&TlsIdentity::new(&leaf, None, keys.x509_key_pem.clone()));
    let meet = |check, name: &str| handshake(&client_upstream(check, None).unwrap(), &srv, name);
    let (met, _) = meet(ServerCheck::Name(roots(&ca)), "db.internal").unwrap();
    let shown = &met.peer_certificates().unwrap()[0];
    assert_eq!(server_end_point(shown).unwrap().len(), 32);
    client_refused(
        meet(ServerCheck::Name(roots(&ca)), "other.internal"),
        "not valid for name",
    );
    meet(ServerCheck::Chain(roots(&ca)), "other.internal").unwrap();
    let strange = meet(ServerCheck::Chain(roots(&other)), "db.internal");
    assert!(matches!(strange, Err(Refusal::Client(_))));
    meet(ServerCheck::Nothing, "other.internal").unwrap();
}
