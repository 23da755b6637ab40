//! Accounts that are made at a database server for users, and taken away behind them: against a real PostgreSQL.

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Agent, Background, Cluster, Lab, Postgres, PostgresSpec, PostgresTls, Ran, Run, User,
    skip_unless, wait,
};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

const PASSWORD: &str = "the administrator's";
/// What a session may do in `orders`, and how it got there.
const WHO: &str = "select current_user, pg_has_role('reader', 'usage'), pg_has_role('writer', 'usage'), \
                   (select count(*) from items)";

struct Setup {
    cluster: Cluster,
    agent: Agent,
    server: Postgres,
    alice: User,
}

fn role(name: &str, db: &str, db_roles: &[&str], after: &str) -> Value {
    let mut rule = json!({"labels": {"*": ["*"]}, "db_names": [db]});
    if !db_roles.is_empty() {
        rule["db_roles"] = json!(db_roles);
    }
    json!({
        "name": name,
        "allow": {"postgres": rule},
        "options": {"create_db_user": after},
    })
}

/// alice has the roles `dev` and `ops`, of which the first is this one.
fn setup(dev: &Value) -> Result<Setup> {
    let lab = Lab::new()?;
    let cluster = Cluster::start(&lab)?;
    let certs = cluster.db_certs()?;
    let server = Postgres::start(
        &lab,
        &PostgresSpec {
            tls: Some(PostgresTls::signed(&certs)),
            hba: vec![
                "hostssl postgres postern 127.0.0.1/32 scram-sha-256".into(),
                "hostssl all all 127.0.0.1/32 cert".into(),
            ],
            ..PostgresSpec::default()
        },
    )?;
    let escaped = PASSWORD.replace('\'', "''");
    for sql in [
        &*format!("create user postern createrole password '{escaped}'"),
        "grant pg_signal_backend to postern",
        "create role reader",
        "create role writer",
        "create database orders",
        "create database other",
    ] {
        server.sql("postgres", sql)?;
    }
    server.sql(
        "orders",
        "create table items (n int); grant select on items to reader; grant insert on items to writer; \
         grant create on schema public to writer",
    )?;
    let file = lab.file("admin.password", format!("{PASSWORD}\n"))?;
    let service = format!(
        "[services.db]\nplugin = \"postgres\"\n[[services.db.resources]]\nname = \"orders\"\naddress = \"{}\"\n\
         admin = {{ user = \"postern\", password = {{ file = \"{}\" }} }}\n",
        server.address(),
        file.display()
    );
    let agent = cluster
        .agent("db-1")
        .no_ssh()
        .service("postgres", &service)
        .start()?;
    cluster.role(dev)?;
    cluster.role(&role("ops", "other", &["writer"], "keep"))?;
    let alice = cluster.user_with("alice", &["dev", "ops"], &[])?;
    Ok(Setup {
        cluster,
        agent,
        server,
        alice,
    })
}

impl Setup {
    /// psql as the user's own account.
    fn psql(&self, database: &str) -> Result<Run> {
        let run = self.alice.postern()?;
        let run = run.args(["db", "connect", "orders", "--db-user", "alice"]);
        Ok(run.args(["--db-name", database, "--", "-X", "-A", "-t"]))
    }

    fn query(&self, sql: &str) -> Result<Ran> {
        self.psql("orders")?.args(["-c", sql]).run()
    }

    /// A session that stays, having said this.
    fn session(&self, database: &str, sql: &str) -> Result<Background> {
        let doing = format!("usename = 'alice' and query = '{sql};'");
        let count = || self.count(&doing);
        let before = count()?;
        let mut psql = self.psql(database)?.background(Stdio::null())?;
        let stdin = psql.child().stdin.as_mut().context("no stdin")?;
        writeln!(stdin, "{sql};")?;
        stdin.flush()?;
        wait::until("the session to begin", wait::LONG, || {
            Ok((count()? > before).then_some(()))
        })?;
        Ok(psql)
    }

    fn sessions(&self) -> Result<u32> {
        self.count("usename = 'alice'")
    }

    fn count(&self, those: &str) -> Result<u32> {
        let sql = format!("select count(*) from pg_stat_activity where {those}");
        Ok(self.server.sql("postgres", &sql)?.trim().parse()?)
    }

    /// `f:reader,writer`: whether alice may log in, and her roles; nothing where there is no such account.
    fn account(&self) -> Result<String> {
        let sql = "select a.rolcanlogin::text || ':' || coalesce((select string_agg(g.rolname, ',' order by g.rolname) \
                   from pg_auth_members m join pg_roles g on g.oid = m.roleid where m.member = a.oid), '') \
                   from pg_roles a where a.rolname = 'alice'";
        Ok(self.server.sql("postgres", sql)?.trim().to_owned())
    }

    fn becomes(&self, account: &str) -> Result<()> {
        wait::holds(
            &format!("the account to be {account:?}"),
            wait::LONG,
            || self.account().is_ok_and(|is| is == account),
        )
        .with_context(|| format!("it is {:?}\n{}", self.account(), self.agent.log_tail(20)))
    }
}

#[test]
fn an_account_is_made_for_a_session_and_dropped() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = setup(&role("dev", "orders", &["reader"], "drop"))?;
    for _ in 0..2 {
        let out = s.query(WHO)?.ok()?;
        ensure!(out == "alice|t|f|0", "{out}");
        s.becomes("")?;
    }
    s.query("insert into items values (1)")?
        .refused("permission denied")?;
    s.becomes("")?;
    for event in [
        "db.user.create",
        "db.user.grant",
        "db.user.revoke",
        "db.user.drop",
    ] {
        let told = s.cluster.audited(event, |e| e["account"] == "alice")?;
        ensure!(
            told["user"] == "alice" && told["resource"] == "orders",
            "{told}"
        );
        ensure!(
            !event.ends_with("e.grant") || told["db_roles"] == json!(["reader"]),
            "{told}"
        );
        let session = told["session_id"].as_str().context("no session")?;
        s.cluster.audited("session.start", |e| {
            e["session_id"] == session
                && e["create_db_user"] == "drop"
                && e["db_roles"] == json!(["reader"])
        })?;
    }
    // Not where no role of hers says so.
    let elsewhere = s.psql("postgres")?.args(["-c", "select 1"]).run()?;
    elsewhere.refused("no role of alice")?;

    // It owns something: it can't be dropped, and is worth nothing any more.
    s.cluster
        .role(&role("dev", "orders", &["reader", "writer"], "drop"))?;
    let made = wait::until("the role to be known", wait::LONG, || {
        let ran = s.query("create table hers (n int)")?;
        s.becomes(match ran.status.success() {
            true => "false:postern_auto_drop",
            false => "",
        })?;
        Ok(ran.status.success().then_some(()))
    });
    made?;
    s.cluster.audited("db.user.disable", |e| {
        e["not_dropped"].to_string().contains("2BP01")
    })?;
    // With the next session it is hers again.
    let out = s.query("select count(*) from hers")?.ok()?;
    ensure!(out == "0", "{out}");
    s.server.sql("orders", "drop table hers")?;
    s.query(WHO)?.ok()?;
    s.becomes("")
}

#[test]
fn an_account_that_is_kept_can_do_nothing_meanwhile() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = setup(&role("dev", "orders", &["reader"], "keep"))?;
    // Neither what she leaves behind nor what others give her lasts.
    s.query("alter role alice password 'mine'")?.ok()?;
    s.becomes("false:postern_auto_keep")?;
    let password = "select rolpassword is null from pg_authid where rolname = 'alice'";
    ensure!(s.server.sql("postgres", password)?.trim() == "t");
    s.server.sql("postgres", "grant writer to alice")?;
    let out = s.query(WHO)?.ok()?;
    ensure!(out == "alice|t|f|0", "{out}");
    s.becomes("false:postern_auto_keep")?;
    s.cluster
        .audited("db.user.disable", |e| e["account"] == "alice")?;
    s.cluster
        .audited("db.user.enable", |e| e["user"] == "alice")?;

    // In two sessions at once she has what both may have, or there is no second one.
    let first = s.session("orders", "select 1")?;
    let second = s.psql("other")?.args(["-c", "select 1"]).run()?;
    second.refused("has sessions at this server with other roles (reader)")?;
    ensure!(s.account()? == "true:postern_auto_keep,reader");
    drop(first);
    s.becomes("false:postern_auto_keep")?;
    s.psql("other")?.args(["-c", "select 1"]).ok()?;
    s.becomes("false:postern_auto_keep")
}

#[test]
fn the_last_of_several_sessions_takes_it_all() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = setup(&role("dev", "orders", &["reader"], "drop"))?;
    let ready = "true:postern_auto_drop,reader";
    let mut first = s.session("orders", "select 1")?;
    let second = s.session("orders", "select 1")?;
    ensure!(first.wait(wait::LONG)?.success());
    wait::until("the first to be gone", wait::LONG, || {
        Ok((s.sessions()? == 1).then_some(()))
    })?;
    wait::stays("the account of the second", Duration::from_secs(2), || {
        s.account().is_ok_and(|is| is == ready)
    })?;
    // The client vanishes.
    drop(second);
    s.becomes("")?;

    // A crowd: whoever begins while another one ends has the account, or waits for it.
    let sessions: Vec<Background> = (0..12)
        .map(|_| {
            s.psql("orders")?
                .args(["-c", WHO])
                .background(Stdio::null())
        })
        .collect::<Result<_>>()?;
    for mut session in sessions {
        ensure!(session.wait(wait::LONG)?.success(), "{}", s.agent.log());
    }
    s.becomes("")
}

#[test]
fn what_can_not_be_made_is_refused_and_leaves_nothing() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = setup(&role("dev", "orders", &["reader", "nobody"], "drop"))?;
    s.query("select 1")?
        .refused(r#"role "nobody" does not exist"#)?;
    ensure!(s.account()?.is_empty(), "{:?}", s.account());
    s.cluster
        .role(&role("dev", "orders", &["reader"], "drop"))?;
    s.server
        .sql("postgres", "revoke pg_signal_backend from postern")?;
    wait::until("the role to be known", wait::LONG, || {
        let said = s.query("select 1")?.refused("could not be made ready")?;
        Ok(said.contains("GRANT pg_signal_backend").then_some(()))
    })?;
    s.server
        .sql("postgres", "grant pg_signal_backend to postern")?;
    // Somebody else's.
    s.server
        .sql("postgres", "create role alice login; grant writer to alice")?;
    s.query("select 1")?.refused("was not made by Postern")?;
    wait::stays("the account", Duration::from_secs(1), || {
        s.account().is_ok_and(|is| is == "true:writer")
    })?;
    // The administrator is nobody's account.
    let run = s.alice.postern()?;
    run.args(["db", "connect", "orders", "--db-user", "postern"])
        .args(["--db-name", "orders", "--", "-c", "select 1"])
        .run()?
        .refused("postern")
        .map(drop)
}

#[test]
fn a_crash_leaves_nothing_granted() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let mut s = setup(&role("dev", "orders", &["reader"], "keep"))?;
    let _idle = s.session("orders", "select 1")?;
    ensure!(s.account()? == "true:postern_auto_keep,reader");
    s.agent.kill9()?;
    ensure!(s.account()? == "true:postern_auto_keep,reader");
    s.agent.launch()?;
    s.becomes("false:postern_auto_keep")?;
    s.cluster.audited("db.user.revoke", |e| {
        e["swept"] == true && e["resource"] == "orders"
    })?;
    s.agent.ready()?;

    // What it was doing goes on at the server for a while.
    let _busy = s.session("orders", "select pg_sleep(4)")?;
    s.agent.kill9()?;
    s.agent.launch()?;
    s.becomes("false:postern_auto_keep")?;
    s.agent.ready()?;
    s.query(WHO)?.ok()?;
    s.becomes("false:postern_auto_keep")
}

#[test]
fn a_lock_takes_back_what_was_granted() -> Result<()> {
    skip_unless!(
        Postgres::is_there(),
        "no PostgreSQL (Debian: postgresql-15)"
    );
    let s = setup(&role("dev", "orders", &["reader"], "drop"))?;
    let mut busy = s.session("orders", "select pg_sleep(600)")?;
    s.cluster
        .admin(&["locks", "create", "user:alice", "--reason", "laptop stolen"])?;
    s.becomes("")?;
    ensure!(s.sessions()? == 0, "the query runs on");
    ensure!(!busy.wait(Duration::from_secs(10))?.success());
    s.cluster
        .audited("session.end", |e| {
            e["error"].to_string().contains("laptop stolen")
        })
        .map(drop)
}
