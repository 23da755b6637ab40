//! PostgreSQL's own regression suite through Postern gives what it gives without, on the same server.
//!
//! The suite knows what it has to give: where all of it is as expected, a run without Postern would say nothing new. Where
//! something is not, that run decides, file by file. Both in any case: `POSTERN_REGRESS=both`.

use crate::{NO_SERVER, at_rest, rests_as_before, tool};
use anyhow::{Context, Result, ensure};
use postern_tests::{Database, DatabaseSpec, Login, Postgres, Run, skip_unless};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The suite of PostgreSQL 15 has 217 tests; with fewer than this something is missing.
const AT_LEAST: usize = 200;

/// Where the suite lies for both runs: readable by the server, which reads its data and writes results.
struct Suite {
    runner: PathBuf,
    input: PathBuf,
    libs: PathBuf,
    out: PathBuf,
}

/// Files of results by name, and how many tests ran.
struct Results {
    files: BTreeMap<String, Vec<u8>>,
    summary: String,
    /// All tests gave what PostgreSQL says they give.
    as_expected: bool,
}

#[test]
fn regress() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    // Debian has it in the package of the clients.
    let runner = Postgres::lib_dir()?.join("pgxs/src/test/regress/pg_regress");
    skip_unless!(
        runner.exists(),
        "no pg_regress (Debian: postgresql-client-15)"
    );
    let source = tool("POSTERN_TEST_PG_REGRESS", "parallel_schedule");
    skip_unless!(
        source.is_some(),
        "no regression suite of PostgreSQL; `cargo xtask test` fetches it from Debian's archive"
    );
    let source = source
        .and_then(|s| Some(s.parent()?.to_owned()))
        .context("the suite")?;
    let db = DatabaseSpec::new(Login::Trust)
        .db_user("postgres")
        .db_name("regression")
        .setting("log_statement = none")
        .setting("max_prepared_transactions = 2")
        .start()?;
    let suite = Suite::prepare(&db, &source, runner)?;
    let helper = db.helper("orders")?;
    let before = at_rest(&db)?;
    let through = suite.run(&db, helper.port, "disable")?;
    println!("through Postern: {}", through.summary);
    rests_as_before(&db, before, 20)?;
    ensure!(
        through.files.len() >= AT_LEAST,
        "only {} tests ran",
        through.files.len()
    );
    if through.as_expected && std::env::var_os("POSTERN_REGRESS").is_none_or(|v| v != "both") {
        return Ok(());
    }
    let direct = suite.run(&db, db.server().port(), "require")?;
    println!("direct: {}", direct.summary);
    let names = direct.files.keys().chain(through.files.keys());
    let mut different = String::new();
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let (a, b) = (direct.files.get(name), through.files.get(name));
        if a != b {
            different += &format!("{name}:\n{}", difference(a, b));
        }
    }
    ensure!(
        different.is_empty(),
        "not the same as without Postern:\n{different}"
    );
    println!("{} files of results are the same", through.files.len());
    Ok(())
}

impl Suite {
    fn prepare(db: &Database, source: &Path, runner: PathBuf) -> Result<Suite> {
        let input = db.lab.join("regress");
        Run::new(Command::new("cp"))
            .arg("-r")
            .arg(source)
            .arg(&input)
            .ok()?;
        Run::new(Command::new("chmod"))
            .args(["-R", "a+rX"])
            .arg(&input)
            .ok()?;
        // One directory for what tests load: the suite's own, and two of the contributed ones.
        let libs = db.lab.join("regress-libs");
        std::fs::create_dir_all(&libs)?;
        std::fs::copy(source.join("regress.so"), libs.join("regress.so"))?;
        for lib in ["autoinc.so", "refint.so"] {
            let from = Postgres::lib_dir()?.join(lib);
            std::fs::copy(&from, libs.join(lib)).with_context(|| from.display().to_string())?;
        }
        let out = db.lab.join("regress-out");
        Ok(Suite {
            runner,
            input,
            libs,
            out,
        })
    }

    /// In a fresh database, by this port.
    fn run(&self, db: &Database, port: u16, sslmode: &str) -> Result<Results> {
        db.server().sql(
            "postgres",
            "drop database if exists regression with (force)",
        )?;
        // What pg_regress does where it makes the database itself.
        db.server()
            .sql("postgres", "create database regression template template0")?;
        for setting in [
            "lc_messages to 'C'",
            "lc_monetary to 'C'",
            "lc_numeric to 'C'",
            "lc_time to 'C'",
            "bytea_output to 'hex'",
            "timezone_abbreviations to 'Default'",
        ] {
            db.server().sql(
                "postgres",
                &format!("alter database regression set {setting}"),
            )?;
        }
        if self.out.exists() {
            std::fs::remove_dir_all(&self.out)?;
        }
        for dir in [self.out.clone(), self.out.join("results")] {
            std::fs::create_dir_all(&dir)?;
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777))?;
        }
        let run = db.run(&self.runner.display().to_string());
        let run = run
            .args(["--use-existing", "--host=127.0.0.1", "--user=postgres"])
            .arg(format!("--port={port}"))
            .arg(option("--inputdir=", &self.input))
            .arg(option("--outputdir=", &self.out))
            .arg(option("--dlpath=", &self.libs))
            .arg(format!("--bindir={}", Postgres::bin_dir()?.display()))
            .arg(option("--schedule=", &self.input.join("parallel_schedule")))
            .env("PGSSLMODE", sslmode)
            .dir(&self.out)
            .timeout(Duration::from_secs(200));
        let ran = run.run()?;
        // 1: some differ from what is expected. What counts here is that they do so in both.
        ensure!(matches!(ran.code(), Some(0 | 1)), "{}", ran.told());
        let out = ran.out();
        let summary = out
            .lines()
            .find(|l| l.contains("passed") || l.contains("tests failed"));
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(self.out.join("results"))? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.ends_with(".out") {
                files.insert(name, std::fs::read(&path)?);
            }
        }
        Ok(Results {
            as_expected: ran.code() == Some(0),
            files,
            summary: format!("{} after {:?}", summary.unwrap_or(&out).trim(), ran.took),
        })
    }
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}{}", path.display())
}

/// The first lines that differ.
fn difference(direct: Option<&Vec<u8>>, through: Option<&Vec<u8>>) -> String {
    let lines = |file: Option<&Vec<u8>>| -> Vec<String> {
        let text =
            String::from_utf8_lossy(file.map_or(b"(no file)".as_slice(), |f| f)).into_owned();
        text.lines().map(str::to_owned).collect()
    };
    let (a, b) = (lines(direct), lines(through));
    let at = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let show = |lines: &[String], sign: char| -> String {
        let shown = lines.iter().skip(at).take(4);
        shown.map(|l| format!("  {sign} {l}\n")).collect()
    };
    format!("  line {}\n{}{}", at + 1, show(&a, '-'), show(&b, '+'))
}
