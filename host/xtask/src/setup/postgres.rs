//! What proves PostgreSQL: drivers for Python, and PostgreSQL's own regression suite, which is only in Debian's source package.

use super::pypi::Program;
use crate::{paths, sh};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The server that the tests use.
const MAJOR: &str = "15";
/// The server's headers, for the suite's own functions in C.
const HEADERS: &str = "/usr/include/postgresql/15/server";

/// A Python that has psycopg with its own libpq, asyncpg and SQLAlchemy.
pub fn python_drivers() -> Result<PathBuf> {
    let program = Program {
        package: "psycopg",
        version: "3.3.9",
        also: &[
            "psycopg-binary==3.3.9",
            "asyncpg==0.32.0",
            "SQLAlchemy==2.1.9",
        ],
        name: "python-with-drivers",
        run: "",
        only_binary: true,
    };
    program.installed()
}

/// The suite's schedule, among its files. `None`, said aloud, where there is no source package to be had.
pub fn regression_suite() -> Option<PathBuf> {
    fetched()
        .map_err(|e| {
            eprintln!("  no regression suite of PostgreSQL, so its test is skipped: {e:#}")
        })
        .ok()
}

fn fetched() -> Result<PathBuf> {
    let dir = paths::tools().join(format!("postgresql-{MAJOR}-regress"));
    let schedule = dir.join("parallel_schedule");
    if schedule.is_file() {
        return Ok(schedule);
    }
    if sh::which("apt-get").is_none() {
        bail!("this is no Debian machine");
    }
    std::fs::create_dir_all(paths::tools())?;
    let work = tempfile::tempdir_in(paths::tools())?;
    eprintln!(
        "  fetching the source of postgresql-{MAJOR} into {}",
        dir.display()
    );
    let tarball = source(work.path())?;
    let unpacked = work.path().join("unpacked");
    std::fs::create_dir_all(&unpacked)?;
    let mut tar = sh::cmd("tar", &["-x", "--strip-components=4", "--wildcards", "-f"]);
    tar.arg(&tarball).arg("-C").arg(&unpacked);
    sh::output(tar.arg("*/src/test/regress"))?;
    let mut gcc = sh::cmd("gcc", &["-shared", "-fPIC", "-O1", "-I", HEADERS, "-o"]);
    gcc.arg(unpacked.join("regress.so"))
        .arg(unpacked.join("regress.c"));
    sh::output(&mut gcc).context("compiling the suite's functions")?;
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::rename(&unpacked, &dir).with_context(|| format!("cannot put {}", dir.display()))?;
    Ok(schedule)
}

/// The tarball, by apt with sources of its own: a machine rarely has `deb-src` lines, and its own lists stay as they are. The
/// security archive is only asked second, since it may list versions that it no longer holds.
fn source(work: &Path) -> Result<PathBuf> {
    let mut why = None;
    for (uri, suite) in [
        ("http://deb.debian.org/debian", "bookworm"),
        ("http://deb.debian.org/debian-security", "bookworm-security"),
    ] {
        let dir = work.join(suite);
        match fetch(&dir, uri, suite) {
            Ok(()) => return tarball(&dir),
            Err(e) => why = Some(e),
        }
    }
    Err(why.context("no archive")?)
}

fn fetch(dir: &Path, uri: &str, suite: &str) -> Result<()> {
    for sub in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(dir.join(sub))?;
    }
    let sources = dir.join("deb-src.sources");
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(
        &sources,
        format!(
            "Types: deb-src\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {keys}\n"
        ),
    )?;
    let apt = |args: &[&str]| -> Command {
        let mut apt = sh::cmd("apt-get", &["-qq"]);
        for (option, value) in [
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            ("Dir::Etc::SourceList", &sources),
            ("Dir::State::Lists", &dir.join("lists")),
            ("Dir::Cache", &dir.join("cache")),
            // As whoever runs this: the directory is no other user's.
            ("APT::Sandbox::User", Path::new("root")),
        ] {
            apt.arg("-o").arg(format!("{option}={}", value.display()));
        }
        apt.args(args).current_dir(dir);
        apt
    };
    sh::output(&mut apt(&["update"]))?;
    // The signature of the index names the tarball's digest, and apt compares.
    let package = format!("postgresql-{MAJOR}");
    sh::output(&mut apt(&["source", "--download-only", &package])).map(drop)
}

fn tarball(dir: &Path) -> Result<PathBuf> {
    let files = std::fs::read_dir(dir)?.flatten().map(|e| e.path());
    let mut found = files.filter(|p| p.to_string_lossy().contains(".orig.tar."));
    found.next().context("the source package has no .orig.tar")
}
