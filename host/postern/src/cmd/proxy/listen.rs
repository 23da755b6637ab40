//! The loopback listener: one helper connection for each connection accepted.

use crate::failure::Failure;
use crate::helper::Helper;
use crate::out;
use crate::profile::{Home, Profile};
use crate::session::carry;
use postern_identity::ResourceId;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{JoinSet, LocalSet};

/// Connections at a time; more wait in the kernel's queue.
const MOST: usize = 512;
/// For sessions whose program has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves until the process is ended.
pub async fn listen(
    home: &Home,
    profile: &Profile,
    id: ResourceId,
    address: SocketAddr,
    json: bool,
) -> Result<(), Failure> {
    if !address.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "{address} is not a loopback address: whoever reached it would act as you; use for example 127.0.0.1:{}",
            address.port()
        )));
    }
    let helper = Rc::new(Helper::new(home, profile)?);
    let listener = TcpListener::bind(address).await.map_err(|e| {
        let hint = if e.kind() == std::io::ErrorKind::AddrInUse {
            "; choose another port, or leave it out for a free one"
        } else {
            ""
        };
        Failure::new(format!("cannot listen on {address}: {e}{hint}"))
    })?;
    let local = listener
        .local_addr()
        .map_err(|e| Failure::new(format!("cannot listen on {address}: {e}")))?;
    announce(local, &id, profile, json)?;
    LocalSet::new()
        .run_until(accept(listener, helper, Rc::new(id)))
        .await
}

fn announce(
    local: SocketAddr,
    id: &ResourceId,
    profile: &Profile,
    json: bool,
) -> Result<(), Failure> {
    let dns = id.dns(&profile.cluster);
    if json {
        // One line, so that a script can read it while we run.
        return out::say(
            &serde_json::json!({ "listen": local.to_string(), "resource": dns }).to_string(),
        );
    }
    out::say(&format!("{local} leads to {dns}. End with Ctrl-C."))
}

async fn accept(
    listener: TcpListener,
    helper: Rc<Helper>,
    id: Rc<ResourceId>,
) -> Result<(), Failure> {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = sessions.join_next() => {}
            accepted = listener.accept(), if sessions.len() < MOST => match accepted {
                Ok((client, _)) => {
                    let _ = client.set_nodelay(true);
                    sessions.spawn_local(session(client, helper.clone(), id.clone()));
                }
                Err(e) => told(&e).await,
            }
        }
    }
}

/// The same for a Unix socket, until `ended`; what is open then may end in good order.
pub async fn accept_unix<T>(
    listener: UnixListener,
    helper: Rc<Helper>,
    id: Rc<ResourceId>,
    ended: impl Future<Output = T>,
) -> T {
    let mut sessions = JoinSet::new();
    tokio::pin!(ended);
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            Some(_) = sessions.join_next() => {}
            accepted = listener.accept(), if sessions.len() < MOST => match accepted {
                Ok((client, _)) => {
                    sessions.spawn_local(session(client, helper.clone(), id.clone()));
                }
                Err(e) => told(&e).await,
            }
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, sessions.join_all()).await;
    ended
}

/// A client that went away, or no descriptors left: neither ends the others' sessions.
async fn told(e: &std::io::Error) {
    eprintln!("postern: cannot accept a connection: {e}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn session(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    helper: Rc<Helper>,
    id: Rc<ResourceId>,
) {
    let result = match helper.open(&id).await {
        Ok(remote) => carry(&mut client, remote, &id).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = result {
        eprintln!("postern: {failure}");
    }
}
