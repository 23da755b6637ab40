//! Databases of kind `postgres`: a real PostgreSQL behind an agent, real clients before it.

use anyhow::{Context, Result, ensure};
use postern_identity::{CaKind, TrustBundle, tls};
use postern_tests::{Database, DatabaseSpec, Login, Postgres, skip_unless, wait};
use serde_json::json;
use std::process::Stdio;
use std::time::Duration;

fn logs_in(login: Login) -> Result<()> {
    let s = Database::start(login)?;
    let out = s
        .connect("app", "select current_user || '@' || current_database()")?
        .ok()?;
    ensure!(out.trim() == "app@orders", "{out}");
    s.cluster.audited("db.session.query", |e| {
        e["user"] == "alice" && e["sql"].to_string().contains("current_user")
    })?;
    s.cluster.audited("session.start", |e| {
        e["db_users"] == "app" && e["db_names"] == "orders"
    })?;
    s.cluster
        .audited("db.session.end", |e| e["resource"] == "orders")?;
    if login == Login::Certificate {
        s.cluster.audited("db.certificate", |e| {
            e["success"] == true && e["account"] == "app" && e["user"] == "alice"
        })?;
    }
    Ok(())
}

#[test]
fn by_a_certificate_for_each_connection() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    logs_in(Login::Certificate)
}

#[test]
fn by_scram_with_the_password_of_the_host() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    logs_in(Login::Scram)
}

#[test]
fn by_md5() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    logs_in(Login::Md5)
}

#[test]
fn by_a_password_in_cleartext_over_verified_tls() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    logs_in(Login::Cleartext)
}

#[test]
fn what_the_role_does_not_allow_is_refused_before_anything_is_dialled() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = Database::start(Login::Certificate)?;
    let before = s.server().log().matches("connection received").count();
    let ran = s.connect("other", "select 1")?.run()?;
    ensure!(!ran.status.success(), "{}", ran.told());
    ensure!(
        ran.told().contains("no role of alice (dba) allows db user"),
        "{}",
        ran.told()
    );
    s.cluster
        .audited("session.rejected", |e| e["user"] == "alice")?;
    ensure!(s.server().log().matches("connection received").count() == before);
    Ok(())
}

#[test]
fn without_a_helper() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = Database::start(Login::Certificate)?;
    let out = s.direct("orders")?.args(["-c", "select 40 + 2"]).ok()?;
    ensure!(out.trim() == "42", "{out}");
    // Ctrl-C: psql asks for it in plaintext, on a connection of its own.
    let query = s.direct("orders")?.args(["-c", "select pg_sleep(60)"]);
    let sleeping = query.background(Stdio::null())?;
    wait::holds("the query to run", wait::LONG, || {
        let sql = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and state = 'active' and usename = 'app'";
        s.server()
            .sql("postgres", sql)
            .is_ok_and(|n| n.trim() == "1")
    })?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(sleeping.pid())?),
        nix::sys::signal::Signal::SIGINT,
    )?;
    wait::holds("the query to be cancelled", Duration::from_secs(20), || {
        let sql = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and state = 'active' and usename = 'app'";
        s.server()
            .sql("postgres", sql)
            .is_ok_and(|n| n.trim() == "0")
    })?;
    s.cluster
        .audited("session.cancel", |e| e["resource"] == "orders")
        .map(drop)
}

#[test]
fn through_a_port_of_this_computer_and_cancelled_there() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = Database::start(Login::Scram)?;
    let helper = s.helper("orders")?;
    let out = helper
        .psql(&s)
        .args([
            "-c",
            "create table t (n int)",
            "-c",
            "insert into t select generate_series(1, 1000)",
            "-c",
            "select sum(n) from t",
        ])
        .ok()?;
    ensure!(out.contains("500500"), "{out}");
    let sleeping = helper
        .psql(&s)
        .args(["-c", "select pg_sleep(61)"])
        .background(Stdio::null())?;
    let active = |n: &str| {
        let sql = "select count(*) from pg_stat_activity where query like '%pg_sleep(61)%' and state = 'active' and usename = 'app'";
        s.server()
            .sql("postgres", sql)
            .is_ok_and(|now| now.trim() == n)
    };
    wait::holds("the query to run", wait::LONG, || active("1"))?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(sleeping.pid())?),
        nix::sys::signal::Signal::SIGINT,
    )?;
    wait::holds("the query to be cancelled", Duration::from_secs(20), || {
        active("0")
    })?;
    Ok(())
}

#[test]
fn every_query_of_a_benchmark_is_on_record() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    for options in [json!({}), json!({"recording": "strict"})] {
        let s = DatabaseSpec::new(Login::Scram)
            .role_options(options)
            .start()?;
        let helper = s.helper("orders")?;
        let script = s.alice.home.join("bench.sql");
        std::fs::write(&script, "select 7 as benchmarked;\n")?;
        let out = helper
            .client(&s, "pgbench")
            .args(["-n", "-c", "2", "-t", "500"])
            .arg("-f")
            .arg(&script)
            .arg("orders")
            .timeout(Duration::from_secs(120))
            .ok()?;
        ensure!(out.contains("1000/1000"), "{out}");
        let counted = wait::until("all queries to be on record", wait::LONG, || {
            let n = s
                .queries()?
                .iter()
                .filter(|q| q.contains("benchmarked"))
                .count();
            Ok((n >= 1000).then_some(n))
        });
        let counted = counted.with_context(|| format!("{:?}", s.queries().map(|q| q.len())))?;
        ensure!(counted == 1000, "{counted}");
    }
    Ok(())
}

/// A client of PostgreSQL 17 with `sslnegotiation=direct`: TLS at once, and the protocol's name in it.
#[test]
fn by_tls_that_comes_first() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = Database::start(Login::Scram)?;
    let trust: TrustBundle =
        serde_json::from_str(&std::fs::read_to_string(s.alice.home.join("trust.json"))?)?;
    let id = tls::TlsIdentity {
        chain_pem: std::fs::read_to_string(s.alice.home.join("tls.crt"))?,
        key_pem: std::fs::read_to_string(s.alice.home.join("tls.key"))?.into(),
    };
    let config = tls::client(&trust, CaKind::Host, Some(&id), &[b"postgresql"])?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let talk = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let tcp = tokio::net::TcpStream::connect(&s.cluster.proxy_addr).await?;
        let name = rustls::pki_types::ServerName::try_from("orders.postgres.demo")?;
        let mut stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, tcp)
            .await?;
        ensure!(stream.get_ref().1.alpn_protocol() == Some(b"postgresql".as_slice()));
        let body = b"\0\x03\0\0user\0app\0database\0orders\0\0";
        stream.write_u32(u32::try_from(body.len())? + 4).await?;
        stream.write_all(body).await?;
        // AuthenticationOk: the host has logged in.
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).await?;
        ensure!(answer == *b"R\0\0\0\x08\0\0\0\0", "{answer:?}");
        Ok(())
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), talk).await? })
}

#[test]
fn a_lock_ends_a_session_that_runs() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = Database::start(Login::Scram)?;
    let mut sleeping = s
        .connect("app", "select pg_sleep(62)")?
        .background(Stdio::null())?;
    let sql = "select count(*) from pg_stat_activity where query like '%pg_sleep(62)%' and state = 'active' and usename = 'app'";
    wait::holds("the query to run", wait::LONG, || {
        s.server()
            .sql("postgres", sql)
            .is_ok_and(|n| n.trim() == "1")
    })?;
    s.cluster
        .admin(&["locks", "create", "user:alice", "--reason", "laptop stolen"])?;
    ensure!(!sleeping.wait(Duration::from_secs(10))?.success());
    s.cluster
        .audited("session.end", |e| {
            e["error"].to_string().contains("laptop stolen")
        })
        .map(drop)
}
