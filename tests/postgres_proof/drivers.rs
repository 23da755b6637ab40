//! Programs and drivers that people use, by the helper's port and, where they can, without a helper. What they check stands in
//! the scripts beside this.

use crate::{NO_SERVER, at_rest, rests_as_before, tool};
use anyhow::{Context, Result, ensure};
use postern_tests::{Database, Helper, Login, Postgres, Run, skip_unless};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Where a client finds the database: by the helper, and without.
fn ways(db: &Database, helper: &Helper) -> Result<Vec<Vec<(String, String)>>> {
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let who = [pair("PGUSER", "app"), pair("PGDATABASE", "orders")];
    let port = helper.port.to_string();
    let near = [
        pair("PGHOST", "127.0.0.1"),
        pair("PGPORT", &port),
        pair("PGSSLMODE", "disable"),
    ];
    let mut far = db.env("orders")?;
    far.push(pair("DIRECT", "1"));
    Ok([near.to_vec(), far]
        .map(|way| [way, who.to_vec()].concat())
        .to_vec())
}

fn check(program: &Path, script: &str, env: &[(String, String)]) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("postgres_proof")
        .join(script);
    let run = Run::new(Command::new(program)).arg(&script);
    let run = env.iter().fold(run, |run, (k, v)| run.env(k, v));
    let out = run.timeout(Duration::from_secs(90)).ok()?;
    ensure!(!out.is_empty(), "{} checked nothing", script.display());
    println!("{out}");
    Ok(())
}

#[test]
fn python() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let python = tool("POSTERN_TEST_DRIVERS_PYTHON", "python-with-drivers");
    skip_unless!(
        python.is_some(),
        "no psycopg, asyncpg and SQLAlchemy; `cargo xtask test` installs them"
    );
    let python = python.context("python")?;
    let db = Database::start(Login::Certificate)?;
    let helper = db.helper("orders")?;
    let before = at_rest(&db)?;
    for way in ways(&db, &helper)? {
        for script in [
            "psycopg_check.py",
            "asyncpg_check.py",
            "sqlalchemy_check.py",
        ] {
            check(&python, script, &way)?;
        }
    }
    rests_as_before(&db, before, 10).map(drop)
}

#[test]
fn node() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let modules = tool("POSTERN_TEST_NODE_POSTGRES", "node_modules/pg");
    skip_unless!(
        modules.is_some(),
        "no node-postgres; `cargo xtask test` installs it"
    );
    let modules = modules.context("node_modules")?;
    let modules = modules
        .parent()
        .context("node_modules")?
        .display()
        .to_string();
    let db = Database::start(Login::Scram)?;
    let helper = db.helper("orders")?;
    let before = at_rest(&db)?;
    for mut way in ways(&db, &helper)? {
        way.push(("NODE_MODULES".into(), modules.clone()));
        check(Path::new("node"), "node_check.mjs", &way)?;
    }
    rests_as_before(&db, before, 10).map(drop)
}

/// What a dump says, without the token that pg_dump makes up for each.
fn comparable(dump: &str) -> String {
    let lines = dump.lines();
    let kept = lines.filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"));
    kept.collect::<Vec<_>>().join("\n")
}

#[test]
fn pg_dump_and_pg_restore() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let db = postern_tests::DatabaseSpec::new(Login::Scram)
        .db_name("copy")
        .start()?;
    db.server()
        .sql("postgres", "create database copy owner app")?;
    let helper = db.helper("orders")?;
    let client = |program: &str| helper.client(&db, program).timeout(Duration::from_secs(90));
    client("pgbench")
        .args(["-i", "-q", "--foreign-keys", "orders"])
        .ok()?;
    let blob = db
        .lab
        .file("blob", (0..200_000u32).map(|n| n as u8).collect::<Vec<_>>())?;
    let more = format!(
        "create table odd (a int[], t text, b bytea, j jsonb);\n\
         insert into odd select array[n, null], repeat('ß', n % 50), decode(md5(n::text), 'hex'), jsonb_build_object('n', n) from generate_series(1, 1000) n;\n\
         create view even as select * from odd where a[1] % 2 = 0;\n\
         create function half(n int) returns int language plpgsql as $$ begin return n / 2; end $$;\n\
         \\lo_import {}\n",
        blob.display()
    );
    helper
        .psql(&db)
        .args(["-v", "ON_ERROR_STOP=1"])
        .stdin(more)
        .ok()?;
    // In one stream, and by two connections with one snapshot.
    for (format, name) in [
        (["-Fc"].as_slice(), "dump.custom"),
        (&["-Fd", "-j2"], "dump.dir"),
    ] {
        let file = db.lab.join(name).display().to_string();
        client("pg_dump")
            .args(format)
            .args(["-f", &file, "orders"])
            .ok()?;
        let restore = [
            "--clean",
            "--if-exists",
            "--exit-on-error",
            "-j2",
            "-d",
            "copy",
        ];
        client("pg_restore").args(restore).arg(&file).ok()?;
        let whole = |database: &str| -> Result<String> {
            let dump = Run::new(Command::new("pg_dump")).args(["-U", "postgres", "-h"]);
            let dump = dump.arg(db.server().socket_dir());
            let dump = dump.args(["-p", &db.server().port().to_string(), database]);
            Ok(comparable(&dump.ok()?))
        };
        let (orders, copy) = (whole("orders")?, whole("copy")?);
        ensure!(orders.len() > 5_000_000, "{}", orders.len());
        ensure!(
            orders == copy,
            "{name}: what was restored is not what was dumped"
        );
    }
    // And a large object through libpq's own functions, there and back.
    let back = db.lab.join("blob.back");
    let script = format!(
        "select max(oid) as oid from pg_largeobject_metadata \\gset\n\\lo_export :oid {}\n",
        back.display()
    );
    helper
        .psql(&db)
        .args(["-v", "ON_ERROR_STOP=1"])
        .stdin(script)
        .ok()?;
    ensure!(std::fs::read(&back)? == std::fs::read(&blob)?);
    Ok(())
}

#[test]
fn pgbench_in_all_three_protocols() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let db = Database::start(Login::Scram)?;
    let helper = db.helper("orders")?;
    let before = at_rest(&db)?;
    helper
        .client(&db, "pgbench")
        .args(["-i", "-q", "orders"])
        .ok()?;
    let pipeline = db.lab.file(
        "pipeline.sql",
        "\\startpipeline\nselect 1;\nselect abalance from pgbench_accounts where aid = 7;\nselect 2;\n\\endpipeline\n",
    )?;
    let pipeline = pipeline.display().to_string();
    for protocol in ["simple", "extended", "prepared"] {
        let mut scripts = vec![vec!["-b", "tpcb-like"], vec!["-b", "select-only", "-C"]];
        if protocol != "simple" {
            scripts.push(vec!["-f", &pipeline]);
        }
        for script in scripts {
            let bench = helper
                .client(&db, "pgbench")
                .args(["-n", "-c", "4", "-t", "25", "-M", protocol]);
            let out = bench.args(&script).arg("orders").ok()?;
            ensure!(
                out.contains("100/100") && !out.contains("failed transactions: 1"),
                "{protocol} {script:?}: {out}"
            );
        }
    }
    // Nothing was lost on the way: the four tables agree.
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), \
                (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers), \
                (select count(*) from pgbench_history)";
    let sums = db.server().sql("orders", sums)?;
    ensure!(sums.trim() == "t|t|300", "{sums}");
    rests_as_before(&db, before, 10).map(drop)
}
