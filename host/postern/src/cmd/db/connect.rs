//! `postern db connect`: the user's own psql, on a Unix socket that only the user can open.

use crate::cli::Global;
use crate::cmd::db::{database, home};
use crate::cmd::proxy::listen;
use crate::failure::Failure;
use crate::helper::Helper;
use clap::Args;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

/// The number in the name of a socket of PostgreSQL's.
const PORT: &str = "5432";

/// Open psql on a database
///
/// Starts your own psql, so that its options and configuration work as you know them; the exit status is psql's. It
/// connects through a socket that only you can open, and needs no password. Other programs: see postern proxy.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  postern db connect orders --db-user app --db-name orders
  postern db connect orders --db-user app -- -c 'SELECT now()'")]
pub struct ConnectArgs {
    /// NAME, NAME.postgres or NAME.postgres.CLUSTER
    #[arg(value_name = "NAME")]
    name: String,
    /// The account at the database
    #[arg(long, value_name = "USER")]
    db_user: String,
    /// The database on the server [default: as the account]
    #[arg(long, value_name = "DATABASE")]
    db_name: Option<String>,
    /// Further arguments of psql
    #[arg(value_name = "PSQL ARGS", last = true)]
    args: Vec<OsString>,
}

pub async fn run(global: &Global, args: ConnectArgs) -> Result<u8, Failure> {
    let (home, profile) = home(global)?;
    let id = Rc::new(database(&args.name, &profile)?);
    let helper = Rc::new(Helper::new(&home, &profile)?);
    let cannot = |e: io::Error| Failure::new(format!("cannot make a socket for psql: {e}"));
    // Private (0700), and short enough for a socket's path.
    let dir = tempfile::Builder::new()
        .prefix("postern-")
        .tempdir()
        .map_err(cannot)?;
    let listener =
        UnixListener::bind(dir.path().join(format!(".s.PGSQL.{PORT}"))).map_err(cannot)?;
    let mut psql = Command::new("psql");
    psql.arg("-h")
        .arg(dir.path())
        .args(["-p", PORT, "-U", &args.db_user]);
    psql.arg("-d")
        .arg(args.db_name.as_ref().unwrap_or(&args.db_user));
    psql.args(&args.args);
    // What is meant for servers that are dialled directly would be in the way.
    for name in ["PGHOSTADDR", "PGSERVICE", "PGPASSWORD", "PGREQUIREPEER"] {
        psql.env_remove(name);
    }
    psql.kill_on_drop(true);
    // Ctrl-C is psql's: it cancels the query.
    let _interrupts = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut psql = psql.spawn().map_err(|e| {
        Failure::new(match e.kind() {
            io::ErrorKind::NotFound => "there is no psql in your PATH; install it (Debian: apt install postgresql-client), or use another client with: postern proxy".to_owned(),
            _ => format!("cannot start psql: {e}"),
        })
    })?;
    let ended = LocalSet::new()
        .run_until(listen::accept_unix(listener, helper, id, psql.wait()))
        .await
        .map_err(|e| Failure::new(format!("cannot wait for psql: {e}")))?;
    Ok(code(ended))
}

/// As a shell tells it.
fn code(ended: ExitStatus) -> u8 {
    let signal = ended.signal().map(|s| 128 + s);
    ended
        .code()
        .or(signal)
        .and_then(|c| u8::try_from(c).ok())
        .unwrap_or(1)
}
