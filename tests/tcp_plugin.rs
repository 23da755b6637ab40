//! A resource of kind `tcp`: through `postern proxy --port`, and by TLS straight from a program.

use anyhow::{Context, Result, ensure};
use postern_identity::{CaKind, TrustBundle, tls};
use postern_tests::{Agent, Cluster, Lab, User, free_port, wait};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

fn setup(resource_lines: &str) -> Result<(Cluster, Agent, User)> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let upstream = upper_server()?;
    let service = format!(
        "[services.orders]\nplugin = \"tcp\"\n[[services.orders.resources]]\nname = \"orders\"\naddress = \"127.0.0.1:{upstream}\"\nlabels = {{ env = \"test\" }}\n{resource_lines}\n\
         [[services.orders.resources]]\nname = \"nobody-home\"\naddress = \"127.0.0.1:{}\"\n",
        free_port()?
    );
    let agent = cluster
        .agent("web-1")
        .no_ssh()
        .service("tcp", &service)
        .start()?;
    let alice = cluster.user_with("alice", &["access"], &[])?;
    Ok((cluster, agent, alice))
}

/// Reads to the end, then answers in upper case: needs half-closed connections to work.
fn upper_server() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut all = Vec::new();
                stream.read_to_end(&mut all)?;
                all.make_ascii_uppercase();
                stream.write_all(&all)
            });
        }
    });
    Ok(port)
}

#[test]
fn through_the_helper() -> Result<()> {
    let (cluster, agent, alice) = setup("")?;
    let port = free_port()?;
    let _helper = alice
        .postern()?
        .args(["proxy", "orders", "--port", &port.to_string()])
        .background(Stdio::null())?;
    wait::holds("postern proxy to listen", wait::LONG, || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    })?;
    for round in 0..3 {
        let sent = format!("order {round} ").repeat(100_000);
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(sent.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = String::new();
        stream.read_to_string(&mut back)?;
        ensure!(
            back == sent.to_uppercase(),
            "{} of {} bytes",
            back.len(),
            sent.len()
        );
    }
    cluster.audited("session.start", |e| {
        e["user"] == "alice" && e.to_string().contains("orders")
    })?;
    cluster.audited("session.end", |e| {
        e["user"] == "alice" && e.to_string().contains("orders")
    })?;
    ensure!(
        agent.metric("postern_plugin_calls_total")? > 0.0,
        "the plugin decided nothing?"
    );
    // Standard input and output, as a ProxyCommand would have it.
    let out = alice
        .postern()?
        .args(["proxy", "--stdio", "orders.tcp"])
        .stdin("by stdio")
        .ok()?;
    ensure!(out == "BY STDIO", "{out}");
    Ok(())
}

#[test]
fn an_upstream_that_is_not_there() -> Result<()> {
    let (cluster, _agent, alice) = setup("")?;
    let ran = alice
        .postern()?
        .args(["proxy", "--stdio", "nobody-home.tcp"])
        .stdin("x")
        .run()?;
    ensure!(ran.out().is_empty(), "{}", ran.told());
    cluster
        .audited("session.end", |e| {
            e.to_string().contains("nobody-home") && e.to_string().contains("refused")
        })
        .map(drop)
}

#[test]
fn a_role_without_tcp_is_refused() -> Result<()> {
    let (cluster, _agent, _alice) = setup("")?;
    cluster.role(&serde_json::json!({"name": "ssh-only", "allow": {"ssh": {"labels": {"*": ["*"]}, "logins": ["x"]}}}))?;
    let bob = cluster.user_with("bob", &["ssh-only"], &[])?;
    let ran = bob
        .postern()?
        .args(["proxy", "--stdio", "orders.tcp"])
        .stdin("x")
        .run()?;
    ensure!(ran.out().is_empty(), "{}", ran.told());
    cluster
        .audited("session.rejected", |e| e["user"] == "bob")
        .map(drop)
}

/// One exchange by TLS to the proxy's port with the resource's name, as any program with a client certificate does.
fn direct(cluster: &Cluster, user: &User, with_certificate: bool) -> Result<String> {
    let trust: TrustBundle =
        serde_json::from_str(&std::fs::read_to_string(user.home.join("trust.json"))?)?;
    let id = tls::TlsIdentity {
        chain_pem: std::fs::read_to_string(user.home.join("tls.crt"))?,
        key_pem: std::fs::read_to_string(user.home.join("tls.key"))?.into(),
    };
    let config = tls::client(&trust, CaKind::Host, with_certificate.then_some(&id), &[])?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let tcp = tokio::net::TcpStream::connect(&cluster.proxy_addr).await?;
        let name = rustls::pki_types::ServerName::try_from("orders.tcp.demo")?;
        let connect = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
        let mut stream = tokio::time::timeout(Duration::from_secs(15), connect)
            .await?
            .context("handshake")?;
        stream.write_all(b"direct").await?;
        stream.shutdown().await?;
        let mut back = String::new();
        tokio::time::timeout(Duration::from_secs(15), stream.read_to_string(&mut back)).await??;
        Ok(back)
    })
}

#[test]
fn by_tls_straight_from_a_program_where_the_resource_allows_it() -> Result<()> {
    let (cluster, _agent, alice) = setup("direct = true")?;
    let back = wait::until(
        "the proxy to know the resource is direct",
        wait::LONG,
        || Ok(direct(&cluster, &alice, true).ok()),
    )?;
    ensure!(back == "DIRECT", "{back}");
    ensure!(
        direct(&cluster, &alice, false).is_err(),
        "a client without a certificate was served"
    );
    cluster
        .audited("session.start", |e| {
            e["user"] == "alice" && e.to_string().contains("orders")
        })
        .map(drop)
}

#[test]
fn direct_tls_needs_the_resources_consent() -> Result<()> {
    let (cluster, _agent, alice) = setup("")?;
    ensure!(
        direct(&cluster, &alice, true).is_err(),
        "direct is off by default for tcp"
    );
    Ok(())
}
