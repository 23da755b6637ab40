//! One control connection and the data connections that belong to it.

use super::data::{Data, Phase};
use super::dial::{Connection, Dialer};
use super::{Credentials, Incoming};
use crate::error::DialError;
use crate::ssh::Role;
use crate::stream::{Dropped, TunnelStream};
use crate::wire::{ANNOUNCE_CHUNK, Announcement, Frame, MAX_FRAME, parse_json};
use futures::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Data connections dialled at the same time.
const DIALS_AT_ONCE: usize = 32;

/// How the supervisor sees a link.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LinkState {
    Up {
        rtt: Duration,
    },
    /// Still up, but the proxy wants us to connect anew.
    Goodbye(String),
    /// Another connection of this service carries the new streams; live ones go on.
    Superseded,
    /// No new streams come any more.
    Drained,
    /// The control connection ended; live streams may go on.
    Lost(String),
}

pub(crate) type Control = Framed<TunnelStream, LengthDelimitedCodec>;

pub(crate) fn framed(stream: TunnelStream) -> Control {
    LengthDelimitedCodec::builder()
        .length_field_length(4)
        .max_frame_length(MAX_FRAME)
        .new_framed(stream)
}

pub(crate) async fn send(control: &mut Control, frame: &Frame, limit: Duration) -> io::Result<()> {
    let body = serde_json::to_vec(frame)?;
    timeout(limit, control.send(bytes::Bytes::from(body)))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

pub(crate) fn parse(frame: Option<io::Result<bytes::BytesMut>>) -> io::Result<Frame> {
    let body = frame.ok_or(io::ErrorKind::UnexpectedEof)??;
    parse_json(&body)
}

/// What every link of a tunnel client needs.
#[derive(Clone)]
pub(crate) struct Context {
    pub dialer: Arc<Dialer>,
    pub incoming: mpsc::Sender<Incoming>,
    pub announce: watch::Receiver<Announcement>,
}

pub(crate) struct Link {
    context: Context,
    credentials: Credentials,
    instance: String,
    connection: Connection,
    control: Control,
    _dropped: oneshot::Receiver<Dropped>,
    rtt: Duration,
}

impl Link {
    /// Dials the control connection and announces; returns when the proxy has welcomed us.
    pub async fn connect(
        mut context: Context,
        credentials: Credentials,
    ) -> Result<Self, DialError> {
        let addr = context.dialer.opts.proxy_addr.clone();
        let limit = context.dialer.opts.timing.dial_timeout;
        let instance = Role::new_instance();
        let role = Role::Control(instance.clone());
        let connection = context.dialer.dial(&credentials, &role).await?;
        let greet = async {
            let opened = connection.open().await.map_err(io::Error::other)?;
            let mut control = framed(opened.stream);
            let started = Instant::now();
            announce(&mut control, &mut context).await?;
            loop {
                match parse(control.next().await)? {
                    Frame::Welcome { version, refused } => {
                        debug!(%version, "the proxy welcomes us");
                        warn_refused(&refused);
                        return io::Result::Ok(Ok((control, opened.dropped, started.elapsed())));
                    }
                    Frame::Goodbye { reason } => return Ok(Err(reason)),
                    _ => {}
                }
            }
        };
        let ssh = |why| DialError::Ssh {
            addr: addr.clone(),
            why,
        };
        let greeted = match timeout(limit, greet).await {
            Ok(greeted) => greeted.map_err(|e| ssh(e.to_string()))?,
            Err(_) => return Err(ssh("no welcome from the proxy".into())),
        };
        let (control, dropped, rtt) = greeted.map_err(|why| DialError::SentAway {
            addr: addr.clone(),
            why,
        })?;
        Ok(Link {
            context,
            credentials,
            instance,
            connection,
            control,
            _dropped: dropped,
            rtt,
        })
    }

    pub fn rtt(&self) -> Duration {
        self.rtt
    }

    /// Runs until nothing of the link is left. `retire`: a newer link took over, finish what is live.
    pub async fn run(
        self,
        state: watch::Sender<LinkState>,
        drain: CancellationToken,
        retire: CancellationToken,
    ) {
        let (phases_tx, phases) = mpsc::channel(64);
        let pool = Pool {
            context: self.context.clone(),
            credentials: self.credentials.clone(),
            instance: self.instance.clone(),
            phases_tx,
            phases: HashMap::new(),
            tasks: JoinSet::new(),
            next_id: 0,
            retire: CancellationToken::new(),
            cut: CancellationToken::new(),
            not_before: Instant::now(),
            failures: 0,
            leaving: false,
            wanted: 0,
        };
        let mut run = Run {
            link: self,
            pool,
            events: phases,
            state,
            drain,
            retire,
        };
        let lost = run.control().await;
        run.state.send_replace(LinkState::Lost(lost));
        run.link.connection.token.cancel();
        run.pool.retire.cancel();
        // Live streams finish; what is parked ends soon; what lingers waits for the proxy to have read it all.
        while !run.pool.tasks.is_empty() {
            tokio::select! {
                Some((id, phase)) = run.events.recv() => run.pool.note(id, phase),
                _ = run.pool.tasks.join_next() => {}
            }
        }
    }
}

struct Run {
    link: Link,
    pool: Pool,
    events: mpsc::Receiver<(u64, Phase)>,
    state: watch::Sender<LinkState>,
    drain: CancellationToken,
    retire: CancellationToken,
}

impl Run {
    /// Serves the control connection; returns why it ended.
    async fn control(&mut self) -> String {
        let timing = self.link.context.dialer.opts.timing.clone();
        let mut beat = interval(timing.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut seq = 0u64;
        let mut pinged = (0u64, Instant::now());
        let mut draining = false;
        self.pool.top_up();
        loop {
            if self.retire.is_cancelled() && self.pool.live() == 0 {
                return "a newer connection took over".into();
            }
            let sent = tokio::select! {
                frame = self.link.control.next() => {
                    let frame = match parse(frame) {
                        Ok(frame) => frame,
                        Err(e) if e.kind() == io::ErrorKind::InvalidData => return e.to_string(),
                        Err(e) => return format!("the control connection ended: {e}"),
                    };
                    heard = Instant::now();
                    match frame {
                        Frame::Ping { seq } => self.send(&Frame::Pong { seq }).await,
                        Frame::Pong { seq } => {
                            if seq == pinged.0 {
                                let rtt = pinged.1.elapsed();
                                self.state.send_if_modified(|s| match s {
                                    LinkState::Up { rtt: old } => { *old = rtt; true }
                                    _ => false,
                                });
                            }
                            Ok(())
                        }
                        Frame::WantData { n } => {
                            self.pool.wanted = n;
                            self.pool.top_up();
                            Ok(())
                        }
                        Frame::Welcome { refused, .. } => { warn_refused(&refused); Ok(()) }
                        Frame::Goodbye { reason } => {
                            info!(%reason, "the proxy says goodbye");
                            self.pool.leaving = true;
                            self.state.send_replace(LinkState::Goodbye(reason));
                            Ok(())
                        }
                        Frame::Superseded => {
                            self.pool.leaving = true;
                            self.retire.cancel();
                            self.state.send_replace(LinkState::Superseded);
                            Ok(())
                        }
                        Frame::Drained => {
                            self.pool.retire.cancel();
                            self.state.send_replace(LinkState::Drained);
                            Ok(())
                        }
                        Frame::Announce { .. } | Frame::Drain | Frame::Unknown => Ok(()),
                    }
                }
                _ = beat.tick() => {
                    seq += 1;
                    pinged = (seq, Instant::now());
                    self.pool.top_up();
                    self.send(&Frame::Ping { seq }).await
                }
                () = sleep_until(heard + timing.dead_after) => {
                    // The same path carries the data connections: they are as dead.
                    self.pool.cut.cancel();
                    return format!("the proxy was silent for {:?}", timing.dead_after);
                }
                Some((id, phase)) = self.events.recv() => {
                    self.pool.note(id, phase);
                    self.pool.top_up();
                    Ok(())
                }
                changed = self.link.context.announce.changed() => {
                    if changed.is_err() {
                        return "the service ended".into();
                    }
                    announce(&mut self.link.control, &mut self.link.context).await
                }
                () = self.drain.cancelled(), if !draining => {
                    draining = true;
                    self.pool.leaving = true;
                    self.send(&Frame::Drain).await
                }
                () = self.retire.cancelled(), if !self.pool.retire.is_cancelled() => {
                    self.pool.retire.cancel();
                    Ok(())
                }
            };
            if let Err(e) = sent {
                return format!("cannot write to the control connection: {e}");
            }
        }
    }

    async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let limit = self.link.context.dialer.opts.timing.dead_after;
        send(&mut self.link.control, frame, limit).await
    }
}

async fn announce(control: &mut Control, context: &mut Context) -> io::Result<()> {
    let all = context.announce.borrow_and_update().clone();
    let timing = &context.dialer.opts.timing;
    let warm = context.dialer.opts.warm.max(1);
    let mut rest = all.resources.as_slice();
    loop {
        let (now, later) = rest.split_at(rest.len().min(ANNOUNCE_CHUNK));
        rest = later;
        let frame = Frame::Announce {
            announcement: Announcement {
                kind: all.kind.clone(),
                resources: now.to_vec(),
                version: all.version.clone(),
            },
            warm,
            more: !rest.is_empty(),
        };
        send(control, &frame, timing.dead_after).await?;
        if rest.is_empty() {
            return Ok(());
        }
    }
}

fn warn_refused(refused: &[String]) {
    if !refused.is_empty() {
        warn!(
            names = refused.join(", "),
            "the proxy does not route these resources to us: they are not in this service's certificate"
        );
    }
}

/// The data connections of a link.
struct Pool {
    context: Context,
    credentials: Credentials,
    instance: String,
    phases_tx: mpsc::Sender<(u64, Phase)>,
    phases: HashMap<u64, Phase>,
    tasks: JoinSet<()>,
    next_id: u64,
    retire: CancellationToken,
    cut: CancellationToken,
    not_before: Instant,
    failures: u32,
    /// The proxy said goodbye, or was told to send nothing more: it takes no data connections that are on their way.
    leaving: bool,
    /// Streams that waited at the proxy, by its last word.
    wanted: usize,
}

impl Pool {
    fn count(&self, phase: &Phase) -> usize {
        self.phases.values().filter(|p| *p == phase).count()
    }

    fn live(&self) -> usize {
        self.count(&Phase::Live)
    }

    fn note(&mut self, id: u64, phase: Phase) {
        match phase {
            Phase::Gone(failure) => {
                self.phases.remove(&id);
                while self.tasks.try_join_next().is_some() {}
                if let Some(why) = failure {
                    match self.leaving {
                        true => debug!(error = %why, "a data connection came too late"),
                        false => warn!(error = %why, "cannot open a data connection"),
                    }
                    let (min, max) = self.context.dialer.opts.timing.backoff;
                    self.failures += 1;
                    self.not_before =
                        Instant::now() + (min * 2u32.pow(self.failures.min(6))).min(max);
                }
            }
            phase => {
                match phase {
                    Phase::Idle => self.failures = 0,
                    Phase::Live => self.wanted = self.wanted.saturating_sub(1),
                    _ => {}
                }
                self.phases.insert(id, phase);
            }
        }
    }

    /// Dials what is missing to have `warm` idle connections, or `wanted` for streams that wait at the proxy.
    fn top_up(&mut self) {
        if self.retire.is_cancelled() || Instant::now() < self.not_before {
            return;
        }
        let opts = &self.context.dialer.opts;
        let (idle, dialling) = (self.count(&Phase::Idle), self.count(&Phase::Dialling));
        let ready = idle + dialling;
        // Who waits at the proxy has nothing of a connection that will be idle at some time.
        let to_keep = opts
            .warm
            .max(1)
            .saturating_sub(ready + self.count(&Phase::Recycling));
        let missing = to_keep.max(self.wanted.saturating_sub(ready));
        let room = opts.max_data.saturating_sub(self.phases.len());
        let n = missing
            .min(room)
            .min(DIALS_AT_ONCE.saturating_sub(dialling));
        for _ in 0..n {
            let id = self.next_id;
            self.next_id += 1;
            self.phases.insert(id, Phase::Dialling);
            let data = Data {
                id,
                dialer: self.context.dialer.clone(),
                instance: self.instance.clone(),
                incoming: self.context.incoming.clone(),
                phases: self.phases_tx.clone(),
                retire: self.retire.clone(),
                cut: self.cut.clone(),
            };
            self.tasks.spawn(data.run(self.credentials.clone()));
        }
    }
}
