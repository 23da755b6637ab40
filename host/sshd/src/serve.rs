//! One connection, from the first byte to `session.end`.

use crate::audit::{Ledger, Trail};
use crate::flow::{Totals, WINDOW};
use crate::handler::Connection;
use crate::io::Cuttable;
use crate::shared::{News, Shared};
use crate::{
    Gate, GuardSource, HostIdentity, SessionContext, SessionSummary, SshdError, SshdOptions,
};
use postern_audit::{Emitter, names};
use russh::keys::{Certificate, PrivateKey};
use russh::server::Config;
use russh::{Disconnect, MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// For everything before somebody is authenticated.
const LOGIN: Duration = Duration::from_secs(10);
/// For saying goodbye, and for channels to clean up.
const GOODBYE: Duration = Duration::from_secs(3);
const MAX_EXITS: usize = 64;

/// Serves one SSH connection until it ends.
///
/// `drain`: once cancelled, no new channel opens and the connection ends with its last one. Dropping the future ends it at once:
/// processes get SIGHUP, `session.end` is written all the same.
///
/// An error means that nobody got in; after that, how it ended is in the summary.
#[allow(clippy::too_many_arguments)]
pub async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    host: HostIdentity,
    opts: Arc<SshdOptions>,
    gate: Arc<dyn Gate>,
    plugin: impl GuardSource,
    audit: Emitter,
    ctx: SessionContext,
    drain: CancellationToken,
) -> Result<SessionSummary, SshdError> {
    let deadline = Instant::now() + LOGIN;
    let config = Arc::new(config(&host, &opts)?);
    let source = ctx.source.clone();
    let lost = |why: String| SshdError::Connection {
        source_addr: source.clone(),
        why,
    };
    let gone = CancellationToken::new();
    let cut = gone.clone().drop_guard();
    let (news, mut heard) = mpsc::channel(32);
    let trail = Arc::new(Trail::new(audit, ctx.clone()));
    let totals = Arc::new(Totals::default());
    let shared = Arc::new(Shared {
        opts: opts.clone(),
        ctx,
        trail: trail.clone(),
        totals: totals.clone(),
        gone: gone.clone(),
        drain: drain.clone(),
        tasks: TaskTracker::new(),
        channels: AtomicUsize::new(0),
        news,
        recorded: watch::Sender::new(None),
    });
    let patience = opts.keepalive * u32::try_from(opts.keepalive_max + 1).unwrap_or(1);
    let io = Cuttable::new(io, patience, gone.clone());
    let connection = Connection::new(shared.clone(), gate, plugin);
    let running = russh::server::run_stream(config, io, connection);
    let mut running = timeout_at(deadline, running)
        .await
        .map_err(|_| lost("nothing was heard for 10 s".into()))?
        .map_err(|e| lost(e.to_string()))?;
    let handle = running.handle();

    let mut ledger = Ledger::new(trail.clone(), totals);
    let mut room = Room::default();
    let outcome = loop {
        let idle = room.admitted && shared.channels.load(SeqCst) == 0;
        tokio::select! {
            ended = &mut running => break ended.map_err(|e| in_words(&e)),
            Some(news) = heard.recv() => room.hear(news, &mut ledger),
            () = sleep_until(deadline), if !room.admitted => {
                break Err("the login took longer than 10 s".into());
            }
            () = drain.cancelled(), if idle => {
                // Channels may have opened since `idle` was asked.
                if shared.channels.load(SeqCst) > 0 {
                    continue;
                }
                let bye = "this agent is going away: connect again".to_owned();
                let _ = timeout(GOODBYE, async {
                    let _ = handle.disconnect(Disconnect::ByApplication, bye, "en".into()).await;
                    let _ = (&mut running).await;
                })
                .await;
                break Ok(());
            }
        }
    };
    // Channels clean up after themselves; what they have to tell comes in meanwhile.
    drop(cut);
    shared.tasks.close();
    let _ = timeout(GOODBYE, async {
        let done = shared.tasks.wait();
        tokio::pin!(done);
        loop {
            tokio::select! {
                () = &mut done => break,
                Some(news) = heard.recv() => room.hear(news, &mut ledger),
            }
        }
    })
    .await;
    while let Ok(news) = heard.try_recv() {
        room.hear(news, &mut ledger);
    }
    if !room.admitted {
        if let (Some(login), false) = (&room.tried, room.refused) {
            let event = trail.event(names::SESSION_REJECTED).with("login", login);
            trail.later(event.with("reason", "no certificate was offered, only plain keys"));
        }
        return match (room.refused, outcome) {
            (true, _) => Err(lost("access denied".into())),
            (false, Err(why)) => Err(lost(why)),
            (false, Ok(())) => Err(lost("nobody logged in".into())),
        };
    }
    ledger.summary.reason = match outcome {
        Ok(()) if drain.is_cancelled() => "agent is going away".into(),
        Ok(()) => "client left".into(),
        Err(why) => why,
    };
    Ok(ledger.finish().await)
}

fn in_words(e: &russh::Error) -> String {
    use std::io::ErrorKind::TimedOut;
    match e {
        russh::Error::KeepaliveTimeout => "the client stopped answering".into(),
        russh::Error::IO(e) if e.kind() == TimedOut => "the client stopped reading".into(),
        russh::Error::IO(_) | russh::Error::Disconnect | russh::Error::HUP => {
            "the connection was lost".into()
        }
        e => e.to_string(),
    }
}

/// What is known about the connection.
#[derive(Default)]
struct Room {
    admitted: bool,
    refused: bool,
    tried: Option<String>,
}

impl Room {
    fn hear(&mut self, news: News, ledger: &mut Ledger) {
        match news {
            News::Tried { login } => self.tried = Some(login),
            News::Refused => self.refused = true,
            News::Admitted => {
                self.admitted = true;
                ledger.start();
            }
            News::ChannelEnded(exit) => {
                if let Some(exit) = exit
                    && ledger.summary.exits.len() < MAX_EXITS
                {
                    ledger.summary.exits.push(exit);
                }
            }
        }
    }
}

fn config(host: &HostIdentity, opts: &SshdOptions) -> Result<Config, SshdError> {
    let key = PrivateKey::from_openssh(host.ssh_key.as_bytes())
        .map_err(|e| SshdError::HostKey(e.to_string()))?;
    let cert = Certificate::from_openssh(host.ssh_host_cert.trim())
        .map_err(|e| SshdError::HostCert(e.to_string()))?;
    Ok(Config {
        server_id: SshId::Standard(concat!("SSH-2.0-Postern_", env!("CARGO_PKG_VERSION")).into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        keys: vec![key],
        certificates: vec![cert],
        preferred: Preferred {
            kex: vec![
                kex::MLKEM768X25519_SHA256,
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::EXTENSION_SUPPORT_AS_SERVER,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
            ]
            .into(),
            // The client's preference decides, and OpenSSH's default prefers ChaCha20 and CTR, which cost two to four times the CPU: so
            // AES-GCM is all there is. Every current client has it.
            cipher: vec![cipher::AES_256_GCM, cipher::AES_128_GCM].into(),
            compression: vec![compression::NONE].into(),
            ..Preferred::DEFAULT
        },
        // Refusals leak nothing by their timing (public key only), and OpenSSH's probe would cost a second.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 8,
        window_size: WINDOW,
        // A quiet session is a session: only keepalives end it.
        inactivity_timeout: None,
        keepalive_interval: Some(opts.keepalive),
        keepalive_max: opts.keepalive_max,
        nodelay: true,
        ..Config::default()
    })
}
