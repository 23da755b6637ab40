//! Everything that the server ran is on record, as often as it ran it: the audit log against the server's own.

use crate::{NO_SERVER, at_rest};
use anyhow::{Context, Result, ensure};
use postern_tests::{Database, DatabaseSpec, Login, Postgres, skip_unless, wait};
use serde_json::Value;
use std::collections::BTreeMap;

/// What people type; psql sends `\;` as one query of several statements. One line of it is no SQL.
const SCRIPT: &str = r#"
create table said (n int, t text);
insert into said select n, 'ä' || n from generate_series(1, 100) n;
select 1 \; select 'two' as "Two" \; insert into said values (-1, 'both');
prepare by_number (int) as select t from said where n = $1;
execute by_number(7);
execute by_number(8);
deallocate by_number;
copy said from stdin;
201	from stdin
202	\N
\.
copy (select * from said where n > 200) to stdout;
do $$ begin
  raise notice 'in a block';
  insert into said values (0, 'from a block');
end $$;
begin;
declare slowly cursor for select * from said;
fetch 10 from slowly;
fetch all from slowly;
commit;
listen news;
notify news, 'good';
/* a comment */ select n -- and another
  from said
 where t = E'it''s \\ a "text"';
selct 'no SQL';
select 1 / 0;
begin; savepoint s; select nothing_here; rollback to s; commit;
explain analyze select count(*) from said;
create function twice(n int) returns int language sql as 'select 2 * n';
select twice(n) from said limit 3;
set search_path = public; show search_path; reset all;
select $q$ in dollars; not two queries $q$;
\bind_is_no_command_of_psql_15
\gdesc
select 1 as gset \gset
select :'gset' as interpolated;
\lo_import CONTENT
\lo_unlink :LASTOID
table said limit 1;
values (1), (2);
vacuum said;
"#;

#[test]
fn whatever_the_server_ran_is_on_record() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let mut spec = DatabaseSpec::new(Login::Scram);
    for line in [
        "logging_collector = on",
        "log_destination = 'jsonlog'",
        "log_filename = 'all.log'",
        "log_rotation_age = 0",
        "log_rotation_size = 0",
    ] {
        spec = spec.setting(line);
    }
    let db = spec.start()?;
    let helper = db.helper("orders")?;
    let bench = |args: &[&str]| helper.client(&db, "pgbench").args(args).arg("orders").ok();
    bench(&["-i", "-q"])?;
    for protocol in ["simple", "extended", "prepared"] {
        let out = bench(&["-n", "-c", "2", "-t", "100", "-M", protocol])?;
        ensure!(out.contains("200/200"), "{out}");
    }
    let content = db.lab.file("content", vec![7; 20_000])?;
    let script = SCRIPT.replace("CONTENT", &content.display().to_string());
    let ran = helper.psql(&db).stdin(script).run()?;
    for needle in [
        "from stdin",
        "ä8",
        "in a block",
        "syntax error",
        "division by zero",
    ] {
        ensure!(ran.told().contains(needle), "{needle:?}: {}", ran.told());
    }
    let without_helper = db.direct("orders")?;
    without_helper.args(["-c", "select 'no helper'"]).ok()?;
    at_rest(&db)?;

    let log = db.server().socket_dir().join("data/log/all.json");
    let log = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    let ran = tally(
        log.lines()
            .map(ran_by_the_server)
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten(),
    );
    let all: usize = ran.values().sum();
    ensure!(all > 3 * 200 * 7, "the server has logged only {all}");
    let recorded = wait::until("all of it to be on record", wait::LONG, || {
        let recorded = on_record(&db)?;
        Ok((recorded.values().sum::<usize>() >= all).then_some(recorded))
    });
    let recorded = match recorded {
        Ok(recorded) => recorded,
        Err(_) => on_record(&db)?,
    };
    let mut different = String::new();
    for sql in ran
        .keys()
        .chain(recorded.keys())
        .collect::<std::collections::BTreeSet<_>>()
    {
        let count = |all: &BTreeMap<String, usize>| all.get(sql).copied().unwrap_or(0);
        if count(&ran) != count(&recorded) {
            different += &format!(
                "{} run, {} on record: {sql:?}\n",
                count(&ran),
                count(&recorded)
            );
        }
    }
    ensure!(different.is_empty(), "{different}");
    println!("{all} statements, {} different ones", ran.len());
    Ok(())
}

fn tally(all: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    for one in all {
        *counted.entry(one).or_default() += 1;
    }
    counted
}

/// What a line of the server's log says that `app` ran. `log_statement` leaves out what is no SQL; the error about it does not.
fn ran_by_the_server(line: &str) -> Result<Option<String>> {
    let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
    if line["user"] != "app" {
        return Ok(None);
    }
    if line["state_code"] == "42601" {
        return Ok(line["statement"].as_str().map(str::to_owned));
    }
    let message = line["message"].as_str().unwrap_or_default();
    if line["error_severity"] != "LOG" {
        return Ok(None);
    }
    if let Some(sql) = message.strip_prefix("statement: ") {
        return Ok(Some(sql.to_owned()));
    }
    // "execute NAME: SQL"; "execute NAME/PORTAL: SQL"
    if let Some((_, sql)) = message
        .strip_prefix("execute ")
        .and_then(|m| m.split_once(": "))
    {
        return Ok(Some(sql.to_owned()));
    }
    // "fastpath function call: "lo_open" (OID 952)"
    if let Some((_, oid)) = message
        .strip_prefix("fastpath function call: ")
        .and_then(|m| m.split_once("(OID "))
    {
        return Ok(Some(format!("function {}", oid.trim_end_matches(')'))));
    }
    Ok(None)
}

fn on_record(db: &Database) -> Result<BTreeMap<String, usize>> {
    let mut all = Vec::new();
    for event in db.cluster.audit()? {
        match event["event"].as_str() {
            Some("db.session.query") => all.push(told(&event)),
            // Only where more than a thousand come in one piece, which nobody here sends.
            Some("db.session.batch") => all.push(event.to_string()),
            _ => {}
        }
    }
    Ok(tally(all.into_iter()))
}

fn told(event: &Value) -> String {
    match (&event["sql"], &event["function_oid"]) {
        (Value::String(sql), _) if event["sql_bytes"].is_null() => sql.clone(),
        (_, Value::Number(oid)) => format!("function {oid}"),
        _ => event.to_string(),
    }
}
