//! Joins over the wire: every refusal with its words, replays, races, renewals, proxies.

use std::time::Duration;

use postern_api::status::reasons;
use postern_api::v1::{CreateTokenRequest, RemoveRequest};
use postern_identity::{CaKind, tls, verify_agent_cert, verify_host_cert};
use tokio::task::JoinSet;

use super::{CLUSTER, Host, Lab, assert_refused, strings};

#[tokio::test]
async fn a_token_lets_a_service_in_and_the_grant_the_next_ones() {
    let lab = Lab::start().await;
    let host = Host::new();
    let token = lab.token(&["ssh", "tcp"], &[], 1).await;
    let joined = lab
        .joins()
        .join(host.ask("ssh", "ssh", &["web-1"], &token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(joined.generation, 1);

    // What D2 says an ssh service holds.
    let trust: postern_identity::TrustBundle = serde_json::from_str(&joined.trust_json).unwrap();
    assert_eq!(trust, lab.server().trust());
    let now = std::time::SystemTime::now();
    let certificate: ssh_key::Certificate = joined.ssh_host_cert.parse().unwrap();
    verify_host_cert(
        &certificate,
        &trust.ssh_keys(CaKind::Host),
        &format!("web-1.ssh.{CLUSTER}"),
        now,
    )
    .unwrap();
    let certificate: ssh_key::Certificate = joined.ssh_client_cert.parse().unwrap();
    let agent = verify_agent_cert(&certificate, &trust.ssh_keys(CaKind::Agent), now).unwrap();
    assert_eq!(
        (agent.identity.host_id, agent.kind, agent.names),
        (host.id(), "ssh".into(), strings(&["web-1"]))
    );
    assert_eq!(
        tls::certs(&joined.tls_server_cert_pem).unwrap().len(),
        2,
        "leaf and host CA, so that a pin matches"
    );

    // Within the grant: no token, and the used-up one does no harm.
    lab.joins()
        .join(host.ask("tcp", "tcp", &["orders"], ""))
        .await
        .unwrap();
    let more = lab
        .joins()
        .join(host.ask("more", "tcp", &["more"], &token))
        .await
        .unwrap()
        .into_inner();
    assert!(
        more.ssh_host_cert.is_empty(),
        "SSH host certificates are for kind ssh"
    );

    let events = lab.audited("agent.join").await;
    assert_eq!(
        events
            .iter()
            .map(|e| e["via"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["token", "grant", "grant"]
    );
    assert_eq!(events[0]["host_id"], host.id());
    assert_eq!(events[0]["cluster"], CLUSTER);
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    let lab = Lab::start().await;
    let (host, stranger) = (Host::new(), Host::new());
    let ssh_only = lab.token(&["ssh"], &["web-*"], 0).await;
    let used_up = lab.token(&["tcp"], &[], 1).await;
    lab.joins()
        .join(Host::new().ask("x", "tcp", &["used"], &used_up))
        .await
        .unwrap();
    let short = CreateTokenRequest {
        kinds: strings(&["ssh"]),
        ttl_seconds: 1,
        ..CreateTokenRequest::default()
    };
    let expired = lab.admin().create_token(short).await.unwrap().into_inner();
    super::eventually("the token expires", || async {
        crate::time::now() > expired.expires_unix
    })
    .await;
    let wrong_secret = format!(
        "{}_{}",
        ssh_only.rsplit_once('_').unwrap().0,
        "00".repeat(16)
    );
    let id = ssh_only.split('_').nth(1).unwrap().to_owned();

    let cases = [
        (
            host.ask("orders", "postgres", &[], &ssh_only),
            reasons::TOKEN_KIND,
            format!(
                "service \"orders\": token pt_{id} does not cover kind \"postgres\" (it covers: ssh); create one with: postern tokens create --kinds postgres"
            ),
        ),
        (
            host.ask("ssh", "ssh", &["db-1"], &ssh_only),
            reasons::TOKEN_NAME,
            format!(
                "token pt_{id} does not cover the name \"db-1\" (it covers: web-*); create one with: postern tokens create --kinds ssh --names db-1"
            ),
        ),
        (
            host.ask("ssh", "ssh", &["web-1"], &wrong_secret),
            reasons::TOKEN_INVALID,
            format!("token pt_{id} is unknown here, or its secret is wrong"),
        ),
        (
            host.ask(
                "ssh",
                "ssh",
                &["web-1"],
                &format!("pt_00000000_{}", "00".repeat(16)),
            ),
            reasons::TOKEN_INVALID,
            "token pt_00000000 is unknown".into(),
        ),
        (
            host.ask("ssh", "ssh", &["web-1"], "hunter2"),
            reasons::TOKEN_INVALID,
            "malformed".into(),
        ),
        (
            host.ask("ssh", "ssh", &["web-1"], &expired.token),
            reasons::TOKEN_EXPIRED,
            format!("token pt_{} expired at", expired.id),
        ),
        (
            host.ask("x", "tcp", &["y"], &used_up),
            reasons::TOKEN_USED_UP,
            "is used up (it allowed 1 join)".into(),
        ),
        (
            host.ask("ssh", "ssh", &["web-1"], ""),
            reasons::TOKEN_NEEDED,
            "gave no join token; create one with: postern tokens create --kinds ssh".into(),
        ),
        (
            host.ask("a", "auth", &[], ""),
            reasons::RESERVED,
            "reserved".into(),
        ),
        (
            host.ask("w", "web", &[], ""),
            reasons::RESERVED,
            "reserved".into(),
        ),
        (
            host.ask("p", "proxy", &[], ""),
            reasons::RESERVED,
            "Proxy Services".into(),
        ),
        (
            host.ask("proxy", "ssh", &[], ""),
            reasons::RESERVED,
            "Proxy Services".into(),
        ),
        (
            host.ask("proxy", "proxy", &["p.example.com"], ""),
            reasons::TOKEN_NEEDED,
            "--kinds proxy".into(),
        ),
        (
            host.ask("Ssh", "ssh", &[], ""),
            reasons::BAD_REQUEST,
            "lower-case".into(),
        ),
        (
            host.ask("ssh", "ssh", &["Web"], ""),
            reasons::BAD_REQUEST,
            "resource name".into(),
        ),
        (
            host.ask_with("ssh", "ssh", &[], "", |r| r.nonce = vec![1]),
            reasons::BAD_REQUEST,
            "nonce has 1 bytes".into(),
        ),
        (
            host.ask_with("ssh", "ssh", &[], "", |r| r.cluster = "other".into()),
            reasons::WRONG_CLUSTER,
            "configured for cluster \"other\"".into(),
        ),
        (
            host.ask_with("ssh", "ssh", &["web-1"], &ssh_only, |r| {
                r.signed_at_unix -= 3600
            }),
            reasons::CLOCK_SKEW,
            "60 min behind".into(),
        ),
        (
            host.ask_with("ssh", "ssh", &["web-1"], &ssh_only, |r| {
                r.signed_at_unix += 3600
            }),
            reasons::CLOCK_SKEW,
            "ahead of".into(),
        ),
        (
            host.ask_with("ssh", "ssh", &["web-1"], &ssh_only, |r| {
                r.spki = vec![1, 2, 3]
            }),
            reasons::BAD_REQUEST,
            "".into(),
        ),
        (
            {
                let mut forged = stranger.ask("ssh", "ssh", &["web-1"], &ssh_only);
                forged.host_public_key = host.key.public();
                forged
            },
            reasons::BAD_SIGNATURE,
            "signature".into(),
        ),
    ];
    let mut joins = lab.joins();
    let count = cases.len();
    for (request, reason, says) in cases {
        let refused = joins.join(request).await.unwrap_err();
        assert_refused(&refused, reason, &says);
    }
    let events = lab.audited("agent.join.refused").await;
    assert!(
        events.len() > count - 5,
        "{} of {count} audited; repetitions of one kind are cut",
        events.len()
    );
    let text = serde_json::to_string(&events).unwrap();
    assert!(
        !text.contains(ssh_only.rsplit('_').next().unwrap()),
        "a secret is in the audit log"
    );
}

#[tokio::test]
async fn a_repeated_nonce_gets_the_same_answer_also_after_a_crash() {
    let mut lab = Lab::start().await;
    let host = Host::new();
    let token = lab.token(&["ssh"], &[], 1).await;
    let request = host.ask("ssh", "ssh", &["web-1"], &token);
    let first = lab
        .joins()
        .join(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        lab.joins()
            .join(request.clone())
            .await
            .unwrap()
            .into_inner(),
        first
    );
    lab.restart().await;
    // Signed long ago by now, with another clock: a known nonce is answered all the same.
    let later = host.ask_with("ssh", "ssh", &["web-1"], "", |r| {
        r.nonce = request.nonce.clone();
        r.signed_at_unix -= 7200;
    });
    assert_eq!(lab.joins().join(later).await.unwrap().into_inner(), first);

    // The configuration changed before the answer was read: the host goes on, and is not taken for a copy.
    let changed = host.ask_with("ssh", "ssh", &["web-1", "web-2"], "", |r| {
        r.nonce = request.nonce.clone()
    });
    assert_eq!(
        lab.joins()
            .join(changed)
            .await
            .unwrap()
            .into_inner()
            .generation,
        2
    );
    assert_eq!(
        lab.audited("agent.join").await.len(),
        2,
        "replays are no joins"
    );
}

#[tokio::test]
async fn of_twenty_hosts_one_gets_the_single_use() {
    let lab = Lab::start().await;
    let token = lab.token(&["ssh"], &[], 1).await;
    let mut joins = JoinSet::new();
    for n in 0..20 {
        let (mut client, token) = (lab.joins(), token.clone());
        joins.spawn(async move {
            client
                .join(Host::new().ask("ssh", "ssh", &[&format!("web-{n}")], &token))
                .await
        });
    }
    let mut joined = 0;
    for result in joins.join_all().await {
        match result {
            Ok(_) => joined += 1,
            Err(status) => assert_refused(&status, reasons::TOKEN_USED_UP, "used up"),
        }
    }
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn services_of_one_host_that_start_together_use_one_use() {
    let lab = Lab::start().await;
    let host = std::sync::Arc::new(Host::new());
    let token = lab.token(&["ssh", "tcp"], &[], 1).await;
    let mut joins = JoinSet::new();
    for n in 0..8 {
        let (mut client, token, host) = (lab.joins(), token.clone(), host.clone());
        let kind = if n % 2 == 0 { "ssh" } else { "tcp" };
        joins.spawn(async move {
            client
                .join(host.ask(&format!("s{n}"), kind, &[&format!("r{n}")], &token))
                .await
        });
    }
    for result in joins.join_all().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn two_hosts_race_for_a_name_and_one_owns_it() {
    let lab = Lab::start().await;
    let token = lab.token(&["ssh"], &[], 0).await;
    let mut joins = JoinSet::new();
    for _ in 0..10 {
        let (mut client, token) = (lab.joins(), token.clone());
        joins.spawn(async move {
            client
                .join(Host::new().ask("ssh", "ssh", &["web-1"], &token))
                .await
        });
    }
    let results = joins.join_all().await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    for refused in results.into_iter().filter_map(Result::err) {
        assert_refused(
            &refused,
            reasons::RESOURCE_CONFLICT,
            "\"web-1\" belongs to host",
        );
    }
}

#[tokio::test]
async fn a_name_is_shared_only_by_a_token_that_lists_it() {
    let lab = Lab::start().await;
    let (first, second) = (Host::new(), Host::new());
    first.join(&lab, "ssh", "ssh", &["web-1"]).await;
    let any = lab.token(&["ssh"], &[], 0).await;
    let refused = lab
        .joins()
        .join(second.ask("ssh", "ssh", &["web-1"], &any))
        .await
        .unwrap_err();
    assert_refused(
        &refused,
        reasons::RESOURCE_CONFLICT,
        &format!("belongs to host {}", first.id()),
    );
    let conflict = &lab.audited("resource.conflict").await[0];
    assert_eq!(
        (&conflict["resource"], &conflict["owner"]),
        (&"web-1".into(), &first.id().into())
    );

    let glob = lab.token(&["ssh"], &["web-*"], 0).await;
    lab.joins()
        .join(second.ask("ssh", "ssh", &["web-1"], &glob))
        .await
        .unwrap();
    // The right to share stays with the grant.
    lab.joins()
        .join(second.ask_with("ssh", "ssh", &["web-1"], "", |r| r.generation = 1))
        .await
        .unwrap();
    // Of another kind the same name is another resource.
    Host::new().join(&lab, "x", "tcp", &["web-1"]).await;

    // The owner goes, the second holder owns, then it is free.
    for host in [&first, &second] {
        let request = RemoveRequest {
            kind: "agent".into(),
            name: host.id(),
        };
        lab.admin().remove(request).await.unwrap();
    }
    Host::new().join(&lab, "ssh", "ssh", &["web-1"]).await;
}

#[tokio::test]
async fn a_name_that_is_served_no_more_is_free() {
    let lab = Lab::start().await;
    let host = Host::new();
    host.join(&lab, "ssh", "ssh", &["a", "b"]).await;
    lab.joins()
        .join(host.ask_with("ssh", "ssh", &["b"], "", |r| r.generation = 1))
        .await
        .unwrap();
    Host::new().join(&lab, "ssh", "ssh", &["a"]).await;
}

#[tokio::test]
async fn a_copied_disk_locks_the_service() {
    let lab = Lab::start().await;
    let host = Host::new();
    host.join(&lab, "ssh", "ssh", &["web-1"]).await;
    host.join(&lab, "tcp", "tcp", &["orders"]).await;
    let renewed = host.ask_with("ssh", "ssh", &["web-1"], "", |r| r.generation = 1);
    let renewed = lab.joins().join(renewed).await.unwrap().into_inner();
    assert_eq!(renewed.generation, 2);

    let stale = host.ask_with("ssh", "ssh", &["web-1"], "", |r| r.generation = 1);
    let refused = lab.joins().join(stale).await.unwrap_err();
    assert_refused(&refused, reasons::AGENT_COPIED, "data directory was copied");
    assert_eq!(lab.audited("agent.copied").await.len(), 1);

    // Locked now, for the original too; the host's other service is not.
    let original = host.ask_with("ssh", "ssh", &["web-1"], "", |r| r.generation = 2);
    let refused = lab.joins().join(original).await.unwrap_err();
    assert_refused(
        &refused,
        reasons::LOCKED,
        &format!("lift it with: postern locks rm service:{}/ssh", host.id()),
    );
    lab.joins()
        .join(host.ask_with("tcp", "tcp", &["orders"], "", |r| r.generation = 1))
        .await
        .unwrap();

    let lift = RemoveRequest {
        kind: "lock".into(),
        name: format!("service:{}/ssh", host.id()),
    };
    lab.admin().remove(lift).await.unwrap();
    let original = host.ask_with("ssh", "ssh", &["web-1"], "", |r| r.generation = 2);
    assert_eq!(
        lab.joins()
            .join(original)
            .await
            .unwrap()
            .into_inner()
            .generation,
        3
    );
}

#[tokio::test]
async fn a_removed_host_stays_out_even_with_a_token() {
    let lab = Lab::start().await;
    let host = Host::new();
    let joined = host.join(&lab, "ssh", "ssh", &["web-1"]).await;
    lab.admin()
        .remove(RemoveRequest {
            kind: "agent".into(),
            name: host.id(),
        })
        .await
        .unwrap();
    let token = lab.token(&["ssh"], &[], 0).await;
    let refused = lab
        .joins()
        .join(host.ask("ssh", "ssh", &["web-1"], &token))
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::LOCKED, "removed by an administrator");
    let refused = lab
        .agents(&host.tls(&joined))
        .heartbeat(postern_api::v1::HeartbeatRequest::default())
        .await;
    assert_refused(
        &refused.unwrap_err(),
        reasons::LOCKED,
        &format!("host:{}", host.id()),
    );
    assert_eq!(lab.audited("agent.remove").await.len(), 1);
}

#[tokio::test]
async fn a_host_that_slept_too_long_needs_a_token() {
    let lab = Lab::with(|o| {
        o.cert_ttl = Duration::from_secs(1);
        o.rejoin_window = Duration::from_secs(4);
    })
    .await;
    let host = Host::new();
    let joined = host.join(&lab, "ssh", "ssh", &["web-1"]).await;
    super::eventually("the certificate expires", || async {
        crate::time::now() > joined.not_after_unix
    })
    .await;
    let renewed = host.ask_with("ssh", "ssh", &["web-1"], "", |r| r.generation = 1);
    let renewed = lab.joins().join(renewed).await.unwrap().into_inner();
    super::eventually("the window passes", || async {
        crate::time::now() > renewed.not_after_unix + 4
    })
    .await;
    let late = host.ask_with("ssh", "ssh", &["web-1"], "", |r| r.generation = 2);
    let refused = lab.joins().join(late).await.unwrap_err();
    assert_refused(
        &refused,
        reasons::REJOIN_WINDOW,
        "needs a token again: postern tokens create --kinds ssh",
    );
    let token = lab.token(&["ssh"], &[], 1).await;
    lab.joins()
        .join(host.ask_with("ssh", "ssh", &["web-1"], &token, |r| r.generation = 2))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_proxy_joins_with_its_own_kind_of_token() {
    let lab = Lab::start().await;
    let proxy = Host::new();
    let token = lab.server().mint_proxy_token().await.unwrap();
    for name in [
        format!("auth.{CLUSTER}"),
        format!("web-1.ssh.{CLUSTER}"),
        format!("a.b.c.{CLUSTER}"),
    ] {
        let refused = lab
            .joins()
            .join(proxy.ask("proxy", "proxy", &[&name], &token))
            .await
            .unwrap_err();
        assert_refused(
            &refused,
            reasons::RESOURCE_CONFLICT,
            "among the cluster's own names",
        );
    }
    let refused = lab
        .joins()
        .join(proxy.ask("proxy", "proxy", &["*.example.com"], &token))
        .await
        .unwrap_err();
    assert_refused(&refused, reasons::BAD_REQUEST, "no wildcard");

    let names = ["proxy.example.com", "127.0.0.1", &format!("gate.{CLUSTER}")];
    let joined = lab
        .joins()
        .join(proxy.ask("proxy", "proxy", &names, &token))
        .await
        .unwrap()
        .into_inner();
    assert!(
        joined.ssh_client_cert.is_empty(),
        "a proxy opens no tunnels"
    );
    let certificate: ssh_key::Certificate = joined.ssh_host_cert.parse().unwrap();
    let keys = lab.server().trust().ssh_keys(CaKind::Host);
    verify_host_cert(
        &certificate,
        &keys,
        &format!("proxy.{CLUSTER}"),
        std::time::SystemTime::now(),
    )
    .unwrap();

    let refused = lab
        .joins()
        .join(proxy.ask("ssh", "ssh", &["web-1"], ""))
        .await
        .unwrap_err();
    assert_refused(
        &refused,
        reasons::TOKEN_NEEDED,
        "grant does not cover kind \"ssh\" (it covers: proxy)",
    );
    let info = lab
        .admin()
        .cluster_info(postern_api::v1::Empty {})
        .await
        .unwrap()
        .into_inner();
    assert!(
        info.proxies.contains(&"proxy.example.com".to_owned()),
        "{:?}",
        info.proxies
    );
}
