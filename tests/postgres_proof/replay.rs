//! Bytes of real sessions, recorded between a client and the server and played through the plugin: the same steps each time,
//! nothing lost or changed on the way, and the same queries on record as in a session that really went through Postern. What was
//! recorded becomes the corpus of the fuzz target `postgres_session`.

use crate::{NO_SERVER, at_rest, crowd, runtime, tool};
use anyhow::{Context, Result, ensure};
use postern_tests::{DatabaseSpec, Login, Postgres, Run, bin, bin_dir, plugin, skip_unless};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

/// One connection: what each side said, in the order in which it came.
#[derive(Default, Clone)]
struct Recorded(Vec<(Side, Vec<u8>)>);

/// The key that Postern gives the client in the script.
const KEY: &[u8; 8] = b"\0\0\0\x07ours";
/// Bytes that one piece of the fuzz target's input may say.
const PIECE: usize = 127;
/// What libFuzzer takes of a file.
const MOST: usize = 64 << 10;

/// A port that leads to the server and keeps what passes.
struct Relay {
    port: u16,
    recorded: Arc<Mutex<Vec<Arc<Mutex<Recorded>>>>>,
}

impl Relay {
    fn start(server: u16) -> Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let recorded: Arc<Mutex<Vec<Arc<Mutex<Recorded>>>>> = Arc::default();
        let all = recorded.clone();
        std::thread::spawn(move || -> Result<()> {
            for client in listener.incoming() {
                let (client, upstream) = (client?, TcpStream::connect(("127.0.0.1", server))?);
                let one: Arc<Mutex<Recorded>> = Arc::default();
                if let Ok(mut all) = all.lock() {
                    all.push(one.clone());
                }
                let (from, to, said) = (client.try_clone()?, upstream.try_clone()?, one.clone());
                std::thread::spawn(move || pass(from, to, Side::Client, &said));
                std::thread::spawn(move || pass(upstream, client, Side::Upstream, &one));
            }
            Ok(())
        });
        Ok(Relay { port, recorded })
    }

    /// What was recorded since the last time; the clients have ended.
    fn take(&self) -> Vec<Recorded> {
        let mut all = self
            .recorded
            .lock()
            .map(|mut all| std::mem::take(&mut *all))
            .unwrap_or_default();
        let whole = all
            .drain(..)
            .filter_map(|one| Some(one.lock().ok()?.clone()));
        whole.collect()
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, side: Side, recorded: &Mutex<Recorded>) {
    let mut buf = [0; 8192];
    while let Ok(n @ 1..) = from.read(&mut buf) {
        // Kept before the other can answer it.
        if let Ok(mut recorded) = recorded.lock() {
            recorded.0.push((side, buf[..n].to_vec()));
        }
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

impl Recorded {
    fn all(&self, side: Side) -> Vec<u8> {
        let said = self.0.iter().filter(|(s, _)| *s == side);
        said.flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    /// A request to cancel, or nothing at all, is no session.
    fn is_session(&self) -> bool {
        self.all(Side::Client).get(4..8) == Some(b"\0\x03\0\0")
    }

    /// What the host would have to answer, between what was recorded.
    fn script(&self, name: &str) -> Result<String> {
        let mut out = format!(
            "[[session]]\nname = \"{name}\"\nsettings = {{ parameters = true }}\nevents = [\n"
        );
        let (mut started, mut upstream, mut keyed) = (false, Vec::new(), false);
        for (side, bytes) in &self.0 {
            let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            match side {
                Side::Client => writeln!(out, "  {{ client_hex = \"{digits}\" }},")?,
                Side::Upstream => writeln!(out, "  {{ upstream_hex = \"{digits}\" }},")?,
            }
            if !std::mem::replace(&mut started, true) {
                out += "  { authorize = \"allow\" },\n  { connect = \"ok\" },\n  { upstream = \"S\" },\n  { start_tls = \"ok\" },\n";
            }
            if *side == Side::Upstream && !keyed {
                upstream.extend(bytes);
                if key_of(&upstream).is_some() {
                    keyed = true;
                    let digits: String = KEY.iter().map(|b| format!("{b:02x}")).collect();
                    writeln!(
                        out,
                        "  {{ offer_cancel = \"ok\", data_hex = \"{digits}\" }},"
                    )?;
                }
            }
        }
        ensure!(keyed, "{name}: the server gave no cancel key");
        Ok(out + "  { close = \"client\" },\n]\n")
    }

    /// As `host/fuzz/fuzz_targets/postgres_session.rs` reads it; the host's answers are its own.
    fn corpus(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut say = |side: Side, bytes: &[u8]| {
            for piece in bytes.chunks(PIECE) {
                out.push((piece.len() as u8) << 1 | u8::from(side == Side::Upstream));
                out.extend(piece);
            }
        };
        for (n, (side, bytes)) in self.0.iter().enumerate() {
            say(*side, bytes);
            if n == 0 {
                say(Side::Upstream, b"S");
            }
        }
        out
    }
}

/// Where the cancel key's message is in what the server says.
fn key_of(said: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut at = 0;
    loop {
        let head = said.get(at..at + 5)?;
        let end = at + 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        said.get(at..end)?;
        if head[0] == b'K' {
            return Some(at + 5..end);
        }
        at = end;
    }
}

/// As `posternd plugin run` shows bytes.
fn shown(bytes: &[u8]) -> String {
    format!(
        "\"{}\"",
        bytes.escape_ascii().to_string().replace("\\'", "'")
    )
}

fn play(script: &Path) -> Result<Value> {
    let run = Run::new(Command::new(bin("posternd")?)).args(["plugin", "run", "--json"]);
    let out = run
        .arg(plugin("postgres")?)
        .arg("--script")
        .arg(script)
        .ok()?;
    Ok(serde_json::from_str(&out)?)
}

/// The SQL of the events in a report's session, as it stands in them.
fn queries(session: &Value) -> Vec<String> {
    let events = session["events"].as_array().into_iter().flatten();
    let calls = events.flat_map(|e| e["calls"].as_array().into_iter().flatten());
    let steps = calls.flat_map(|c| c["steps"].as_array().into_iter().flatten());
    let queries = steps.filter_map(|s| s.as_str()?.strip_prefix("event session.query "));
    queries.map(str::to_owned).collect()
}

const SCRIPT: &str = "drop table if exists replayed;
create table replayed (n int primary key, t text);
copy replayed from stdin;
1\tone
2\t\\N
\\.
select * from replayed; select 1 / 0;
begin; declare c cursor for select * from replayed; fetch 1 from c; commit;
copy replayed to stdout;
alter role app password 'not on record';
do $$ begin raise notice 'hear'; end $$;
prepare p (int) as select t from replayed where n = $1;
execute p(1);
selct;
";

#[test]
fn recorded_sessions_go_the_same_way_through_the_plugin() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let db = DatabaseSpec::new(Login::Trust)
        .hba("hostnossl all all 127.0.0.1/32 trust")
        .start()?;
    let relay = Relay::start(db.server().port())?;
    let port = relay.port.to_string();
    let client = |program: &str, port: &str| {
        let run = db
            .run(program)
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable");
        run.args(["-h", "127.0.0.1", "-p", port, "-U", "app"])
    };
    let psql = |port: &str| {
        client("psql", port)
            .args(["-X", "-q", "-d", "orders"])
            .stdin(SCRIPT)
            .run()
    };
    let mut recorded: Vec<(String, Recorded)> = Vec::new();
    let keep = |what: &str, recorded: &mut Vec<(String, Recorded)>| {
        let sessions = relay.take().into_iter().filter(Recorded::is_session);
        recorded.extend(
            sessions
                .enumerate()
                .map(|(n, r)| (format!("{what}-{n}"), r)),
        );
    };
    ensure!(psql(&port)?.told().contains("division by zero"));
    keep("psql", &mut recorded);
    client("pgbench", &port)
        .args(["-i", "-q", "-I", "dtGp", "orders"])
        .ok()?;
    keep("pgbench-init", &mut recorded);
    for protocol in ["simple", "extended", "prepared"] {
        client("pgbench", &port)
            .args(["-n", "-t", "5", "-M", protocol, "orders"])
            .ok()?;
        keep(&format!("pgbench-{protocol}"), &mut recorded);
    }
    runtime()?.block_on(async { crowd::open(relay.port).await.map(drop) })?;
    keep("tokio-postgres", &mut recorded);
    if let Some(python) = tool("POSTERN_TEST_DRIVERS_PYTHON", "python-with-drivers") {
        let pipeline = "import psycopg\n\
            with psycopg.connect('dbname=orders user=app host=127.0.0.1 sslmode=disable gssencmode=disable', autocommit=True) as c:\n\
            \x20   with c.pipeline():\n\
            \x20       for n in range(20): c.execute('select %s::int', (n,), binary=n % 2 == 0)\n";
        let run = Run::new(Command::new(python)).args(["-c", pipeline]);
        run.env("PGPORT", &port).ok()?;
        keep("psycopg-pipeline", &mut recorded);
    }
    ensure!(recorded.len() >= 6, "only {} sessions", recorded.len());

    let mut script = String::new();
    for (name, session) in &recorded {
        script += &session.script(name)?;
    }
    let file = db.lab.file("recorded.toml", script)?;
    let report = play(&file)?;
    ensure!(report == play(&file)?, "other steps the second time");
    let sessions = report["sessions"].as_array().context("no sessions")?;
    ensure!(sessions.len() == recorded.len());
    for ((name, session), played) in recorded.iter().zip(sessions) {
        // Unchanged but for the request for TLS, and the key.
        let asked = [
            b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec(),
            session.all(Side::Client),
        ]
        .concat();
        ensure!(
            played["to_upstream"] == shown(&asked),
            "{name}: the server does not get what was said"
        );
        let mut told = session.all(Side::Upstream);
        let key = key_of(&told).context("a key")?;
        told[key].copy_from_slice(KEY);
        ensure!(
            played["to_client"] == shown(&told),
            "{name}: the client does not get what was said"
        );
        ensure!(!queries(played).is_empty(), "{name}: nothing on record");
    }

    // psql once more, through Postern this time.
    let helper = db.helper("orders")?;
    ensure!(
        psql(&helper.port.to_string())?
            .told()
            .contains("division by zero")
    );
    at_rest(&db)?;
    db.cluster.audited("db.session.end", |_| true)?;
    let live = db.queries()?;
    let played: Vec<String> = queries(&sessions[0])
        .iter()
        .map(|q| {
            q.strip_prefix("sql=").map_or_else(
                || q.clone(),
                |q| serde_json::from_str(q).unwrap_or_else(|_| q.to_owned()),
            )
        })
        .collect();
    ensure!(live == played, "live: {live:#?}\nplayed: {played:#?}");
    ensure!(!format!("{live:?}").contains("not on record"));
    seed(&recorded)
}

/// Where `cargo xtask fuzz` looks.
fn seed(recorded: &[(String, Recorded)]) -> Result<()> {
    let dir = bin_dir()?.join("../fuzz-corpus/postgres_session");
    std::fs::create_dir_all(&dir)?;
    for (name, session) in recorded {
        let mut bytes = session.corpus();
        bytes.truncate(MOST);
        std::fs::write(dir.join(format!("recorded-{name}")), bytes)?;
    }
    println!("{} sessions are in {}", recorded.len(), dir.display());
    Ok(())
}
