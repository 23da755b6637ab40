//! One session channel: a shell, a command or a subsystem, from the channel's opening to its close.
//!
//! The handler (on russh's loop) answers requests and hands over a [`Start`]; this task does everything that takes time. It takes in
//! what the client sends at all times (see `flow` for why), and when it is dropped the process gets SIGHUP.

use crate::child::pty::set_size;
use crate::child::request::{PtyRequest, Request, Run};
use crate::flow::Flow;
use crate::launch::{Process, Stdio3, launch};
use crate::login;
use crate::pump::{Inbox, Inward, outward};
use crate::shared::Shared;
use futures::FutureExt;
use nix::sys::signal::Signal;
use postern_audit::{Event, names};
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a channel is to run, as the plugin allowed it.
pub struct Start {
    pub login: String,
    pub run: Run,
    pub env: Vec<(String, String)>,
    /// `TERM` and the rest.
    pub pty: Option<(String, PtyRequest)>,
    /// For the audit log, recorded before it runs.
    pub event: Event,
}

/// Runs until the channel ends; cleans up whatever happens.
pub async fn session(
    channel: Channel<Msg>,
    start: oneshot::Receiver<Box<Start>>,
    flow: Arc<Flow>,
    shared: Arc<Shared>,
    handle: Handle,
) {
    let exit = tokio::select! {
        exit = run(channel, start, &flow, &shared, handle) => exit,
        () = shared.gone.cancelled() => Some("disconnected".to_owned()),
    };
    flow.close();
    shared.channel_ended(exit).await;
}

async fn run(
    channel: Channel<Msg>,
    mut start: oneshot::Receiver<Box<Start>>,
    flow: &Flow,
    shared: &Shared,
    handle: Handle,
) -> Option<String> {
    let (mut from, to) = channel.split();
    let mut inbox = Inbox::default();
    let mut resized = None;
    let start = loop {
        tokio::select! {
            asked = &mut start => break asked.ok()?,
            message = from.wait() => match message {
                Some(ChannelMsg::Data { data }) => inbox.push(data),
                Some(ChannelMsg::Eof) => inbox.end(),
                Some(ChannelMsg::Close) | None => return None,
                // The handler has seen it.
                Some(_) => {}
            },
        }
    };
    let has_pty = start.pty.is_some();
    let begun = {
        let beginning = begin(start, shared);
        tokio::pin!(beginning);
        loop {
            tokio::select! {
                begun = &mut beginning => break begun,
                message = from.wait() => match message {
                    Some(ChannelMsg::Data { data }) => inbox.push(data),
                    Some(ChannelMsg::Eof) => inbox.end(),
                    Some(ChannelMsg::Close) | None => return None,
                    Some(ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height }) => {
                        resized = Some(size(col_width, row_height, pix_width, pix_height));
                    }
                    Some(_) => {}
                },
            }
        }
    };
    match begun {
        Ok((process, stdio)) => {
            if let (Some(size), Some(pty)) = (&resized, &stdio.pty) {
                let _ = set_size(pty.file(), size);
            }
            attend(process, stdio, from, inbox, to, flow, handle).await
        }
        Err(why) => {
            tracing::info!(session = shared.ctx.session_id, "session refused: {why}");
            let rejected = shared.trail.event(names::SESSION_REJECTED);
            shared.trail.later(rejected.with("reason", &why));
            let end = if has_pty { "\r\n" } else { "\n" };
            let _ = to
                .extended_data_bytes(1, format!("postern: {why}{end}"))
                .await;
            let _ = to.exit_status(255).await;
            let _ = to.eof().await;
            let _ = to.close().await;
            Some("not started".into())
        }
    }
}

/// Records, then starts. The error is for the user.
async fn begin(start: Box<Start>, shared: &Shared) -> Result<(Process, Stdio3), String> {
    let start = *start;
    let (name, same) = (start.login, shared.opts.allow_same_user);
    let lookup = tokio::task::spawn_blocking(move || login::find(&name, same));
    let ((), (), login) =
        tokio::try_join!(shared.recorded(), shared.trail.emit(start.event), async {
            lookup.await.map_err(|e| e.to_string())?
        },)?;
    let (term, pty) = start.pty.unzip();
    let request = Request {
        env: login::environment(&login, &shared.ctx, start.env, term.as_deref()),
        login,
        run: start.run,
        pty,
        nologin: shared.opts.nologin.clone(),
    };
    launch(&shared.opts.session_child, &request).await
}

/// Moves bytes, sizes and signals until the process and its output have ended, or the client closes the channel.
async fn attend(
    mut process: Process,
    stdio: Stdio3,
    mut from: ChannelReadHalf,
    mut inbox: Inbox,
    to: ChannelWriteHalf<Msg>,
    flow: &Flow,
    handle: Handle,
) -> Option<String> {
    let (exited, group) = process.parts();
    let mut inward = Inward::new(stdio.stdin);
    let output = async {
        tokio::join!(outward(stdio.stdout, &to, None, flow), async {
            if let Some(stderr) = stdio.stderr {
                outward(stderr, &to, Some(1), flow).await;
            }
        });
    };
    let ended = async { tokio::join!(output, exited).1 };
    tokio::pin!(ended);
    let status = loop {
        tokio::select! {
            status = &mut ended => break status,
            () = inward.step(&mut inbox, flow) => {}
            message = from.wait() => {
                let mut message = message;
                // Take what is there at once: fewer and larger writes.
                let mut more = 32;
                loop {
                    match message {
                        Some(ChannelMsg::Data { data }) => inbox.push(data),
                        Some(ChannelMsg::Eof) => inbox.end(),
                        Some(ChannelMsg::Close) => return Some("closed by the client".into()),
                        None => return Some("disconnected".into()),
                        Some(ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height }) => {
                            if let Some(pty) = &stdio.pty {
                                let _ = set_size(pty.file(), &size(col_width, row_height, pix_width, pix_height));
                            }
                        }
                        Some(ChannelMsg::Signal { signal }) => {
                            if let Some(signal) = to_unix(&signal) {
                                group.signal(signal);
                            }
                        }
                        Some(_) => {}
                    }
                    more -= 1;
                    if more == 0 {
                        break;
                    }
                    match from.wait().now_or_never() {
                        Some(next) => message = next,
                        None => break,
                    }
                }
            }
        }
    };
    // In this order: once a client has seen the end of file it may close the channel, russh answers that by itself, and the exit
    // status would come too late.
    let exit = report(status, &to, &handle).await;
    let _ = to.eof().await;
    let _ = to.close().await;
    exit
}

/// Tells the client how the process ended.
async fn report(
    status: std::io::Result<ExitStatus>,
    to: &ChannelWriteHalf<Msg>,
    handle: &Handle,
) -> Option<String> {
    let status = status.ok()?;
    if let Some(code) = status.code() {
        let _ = to.exit_status(code.cast_unsigned()).await;
        return Some(code.to_string());
    }
    let name = status
        .signal()
        .and_then(|s| Signal::try_from(s).ok())
        .map_or("SIGKILL", Signal::as_str);
    let _ = handle
        .exit_signal_request(
            to.id(),
            Sig::Custom(name.trim_start_matches("SIG").to_owned()),
            status.core_dumped(),
            String::new(),
            String::new(),
        )
        .await;
    Some(name.to_owned())
}

pub fn size(cols: u32, rows: u32, xpixel: u32, ypixel: u32) -> PtyRequest {
    let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    PtyRequest {
        cols: short(cols),
        rows: short(rows),
        xpixel: short(xpixel),
        ypixel: short(ypixel),
        modes: Vec::new(),
    }
}

/// The signals that OpenSSH passes on.
fn to_unix(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::SIGABRT,
        Sig::ALRM => Signal::SIGALRM,
        Sig::FPE => Signal::SIGFPE,
        Sig::HUP => Signal::SIGHUP,
        Sig::ILL => Signal::SIGILL,
        Sig::INT => Signal::SIGINT,
        Sig::KILL => Signal::SIGKILL,
        Sig::PIPE => Signal::SIGPIPE,
        Sig::QUIT => Signal::SIGQUIT,
        Sig::SEGV => Signal::SIGSEGV,
        Sig::TERM => Signal::SIGTERM,
        Sig::USR1 => Signal::SIGUSR1,
        Sig::Custom(name) if name == "USR2" => Signal::SIGUSR2,
        Sig::Custom(_) => return None,
    })
}
