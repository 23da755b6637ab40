//! What proves PostgreSQL: drivers for Python, and PostgreSQL's own regression suite, which is only in Debian's source package.

use super::pypi::Program;
use crate::{paths, sh};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The server that the tests use.
const MAJOR: &str = "15";
/// In the package of the server's headers: the suite's own functions in C need them. It is unpacked, not installed, since it
/// would bring LLVM along.
const HEADERS: &str = "usr/include/postgresql/15/server";

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
    let (tarball, headers) = packages(work.path())?;
    let unpacked = work.path().join("unpacked");
    std::fs::create_dir_all(&unpacked)?;
    // Not with the modes of the tarball: some of its directories are everybody's to write.
    let options = [
        "-x",
        "--no-same-owner",
        "--no-same-permissions",
        "--strip-components=4",
        "--wildcards",
        "-f",
    ];
    let mut tar = sh::cmd("tar", &options);
    tar.arg(&tarball).arg("-C").arg(&unpacked);
    sh::output(tar.arg("*/src/test/regress"))?;
    let dev = work.path().join("dev");
    sh::output(sh::cmd("dpkg", &["-x"]).arg(&headers).arg(&dev))?;
    let mut gcc = sh::cmd("gcc", &["-shared", "-fPIC", "-O1", "-I"]);
    gcc.arg(dev.join(HEADERS)).arg("-o");
    gcc.arg(unpacked.join("regress.so"))
        .arg(unpacked.join("regress.c"));
    sh::output(&mut gcc).context("compiling the suite's functions")?;
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::rename(&unpacked, &dir).with_context(|| format!("cannot put {}", dir.display()))?;
    Ok(schedule)
}

/// The source and the server's headers, by apt with sources of its own: a machine rarely has `deb-src` lines, and its own lists
/// stay as they are. The security archive is only asked second, since it may list versions that it no longer holds.
fn packages(work: &Path) -> Result<(PathBuf, PathBuf)> {
    let mut why = None;
    for (uri, suite) in [
        ("http://deb.debian.org/debian", "bookworm"),
        ("http://deb.debian.org/debian-security", "bookworm-security"),
    ] {
        let dir = work.join(suite);
        match fetch(&dir, uri, suite) {
            Ok(()) => return Ok((find(&dir, ".orig.tar.bz2")?, find(&dir, ".deb")?)),
            Err(e) => why = Some(e),
        }
    }
    Err(why.context("no archive")?)
}

fn fetch(dir: &Path, uri: &str, suite: &str) -> Result<()> {
    for sub in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(dir.join(sub))?;
    }
    let sources = dir.join("own.sources");
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(
        &sources,
        format!(
            "Types: deb deb-src\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {keys}\n"
        ),
    )?;
    // What is installed here does not matter.
    std::fs::write(dir.join("status"), "")?;
    let apt = |args: &[&str]| -> Command {
        let mut apt = sh::cmd("apt-get", &["-qq"]);
        for (option, value) in [
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            ("Dir::Etc::SourceList", &sources),
            ("Dir::State::Lists", &dir.join("lists")),
            ("Dir::State::status", &dir.join("status")),
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
    // The index is signed and names digests, which apt compares.
    let source = format!("postgresql-{MAJOR}");
    sh::output(&mut apt(&["source", "--download-only", &source]))?;
    let headers = format!("postgresql-server-dev-{MAJOR}");
    sh::output(&mut apt(&["download", &headers])).map(drop)
}

fn find(dir: &Path, end: &str) -> Result<PathBuf> {
    let mut files = std::fs::read_dir(dir)?.flatten().map(|e| e.path());
    let found = files.find(|p| p.to_string_lossy().ends_with(end));
    found.with_context(|| format!("apt-get has fetched no file {end}"))
}
