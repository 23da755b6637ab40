//! What a client asks for, answered on russh's loop: authentication, channels, requests.
//!
//! Answers are given here, in order, because russh remembers only the last request's wish for one; whatever takes longer than a
//! plugin's decision goes to the channel's task. A request is decided before it is answered, and nothing is widened: gate, options,
//! then plugin must all agree.

use crate::channel::{self, Start, size};
use crate::child::request::{PtyRequest, Run};
use crate::flow::{Flow, TRICKLE, WINDOW};
use crate::forward::{self, Refusal, forward};
use crate::login::accepts_env;
use crate::shared::{News, Shared};
use crate::{Admitted, Gate, Guard, GuardError, GuardSource};
use postern_audit::{Event, names};
use postern_plugin::{SshEvent, SshSessionInfo, Verdict};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, Error, Pty};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use tokio::sync::oneshot;

/// Channels that may be open at once on a connection.
const MAX_CHANNELS: usize = 256;
/// Variables, and bytes of them, per channel.
const MAX_ENV: (usize, usize) = (128, 64 << 10);

pub struct Connection<S: GuardSource> {
    pub shared: Arc<Shared>,
    gate: Arc<dyn Gate>,
    plugin: S,
    guard: Option<S::Guard>,
    admitted: Option<Arc<Admitted>>,
    /// Authenticated, but not allowed in: why. See [`Gate::explains_to`].
    refused: Option<String>,
    slots: HashMap<ChannelId, Slot>,
    trickling: bool,
}

/// A channel as the loop sees it.
struct Slot {
    flow: Arc<Flow>,
    /// Taken when something runs.
    start: Option<oneshot::Sender<Box<Start>>>,
    env: Vec<(String, String)>,
    pty: Option<(String, PtyRequest)>,
}

impl<S: GuardSource> Connection<S> {
    pub fn new(shared: Arc<Shared>, gate: Arc<dyn Gate>, plugin: S) -> Self {
        Connection {
            shared,
            gate,
            plugin,
            guard: None,
            admitted: None,
            refused: None,
            slots: HashMap::new(),
            trickling: false,
        }
    }

    /// What the plugin is told about the session.
    fn info(&self, who: &Admitted) -> SshSessionInfo {
        let ctx = &self.shared.ctx;
        SshSessionInfo {
            session: ctx.session_id.clone(),
            user: who.user.name.clone(),
            roles: who.user.roles.clone(),
            login: who.login.clone(),
            resource: ctx.resource.clone(),
            labels: ctx.labels.clone(),
            source: ctx.source.clone(),
        }
    }

    /// The plugin's verdict. `None`: it failed, and the connection is ending (D6: with its plugin, nothing else does).
    async fn ask(
        &mut self,
        channel: ChannelId,
        event: SshEvent,
        session: &mut Session,
    ) -> Result<Option<Verdict>, Error> {
        let Some(guard) = &mut self.guard else {
            return Ok(None);
        };
        match guard.decide(channel.into(), event).await {
            Ok(verdict) => Ok(Some(verdict)),
            Err(e) => {
                self.guard = None;
                self.failed(&e);
                let why = format!("this service's plugin failed: {e}");
                session.disconnect(Disconnect::ByApplication, &why, "en")?;
                Ok(None)
            }
        }
    }

    fn failed(&self, e: &GuardError) {
        tracing::warn!(session = self.shared.ctx.session_id, "session ended: {e}");
        if let Some(trap) = e.trap {
            let event = self.shared.trail.event(names::PLUGIN_TRAP);
            let event = event.with("plugin", &e.plugin).with("trap", trap);
            self.shared.trail.later(event.with("message", &e.message));
        }
    }

    /// Why no channel can be opened now, if so.
    fn closed(&mut self) -> Option<ChannelOpenFailure> {
        self.slots.retain(|_, slot| !slot.flow.is_closed());
        let (code, reason) = if self.guard.is_none() {
            (1, "the session is not open")
        } else if self.shared.drain.is_cancelled() {
            (4, "this agent is going away: connect again")
        } else if self.slots.len() >= MAX_CHANNELS {
            (4, "too many channels on this connection")
        } else {
            return None;
        };
        Some(ChannelOpenFailure::Other {
            code,
            reason: reason.to_owned(),
        })
    }

    /// Counts the channel; its task takes it off again.
    fn slot(&mut self, id: ChannelId, start: Option<oneshot::Sender<Box<Start>>>) -> Arc<Flow> {
        let flow = Arc::new(Flow::new(self.shared.totals.clone()));
        let slot = Slot {
            flow: flow.clone(),
            start,
            env: Vec::new(),
            pty: None,
        };
        self.slots.insert(id, slot);
        self.shared.channels.fetch_add(1, SeqCst);
        flow
    }

    /// Ends a request to run something with words on the channel's standard error. OpenSSH throws away what it got on a channel
    /// whose request fails, so the request succeeds, and what "ran" said no: exit status 255, as from ssh itself.
    fn refuse(&self, id: ChannelId, why: &str, session: &mut Session) -> Result<(), Error> {
        let has_pty = self.slots.get(&id).is_some_and(|s| s.pty.is_some());
        let end = if has_pty { "\r\n" } else { "\n" };
        session.channel_success(id)?;
        session.extended_data(id, 1, format!("postern: {why}{end}"))?;
        session.exit_status_request(id, 255)?;
        session.eof(id)?;
        session.close(id)
    }

    /// Shell, exec and subsystem: decided, answered, handed over.
    async fn start(
        &mut self,
        id: ChannelId,
        question: SshEvent,
        run: Run,
        event: Event,
        session: &mut Session,
    ) -> Result<(), Error> {
        let Some(who) = self.admitted.clone() else {
            return session.channel_failure(id);
        };
        if self.slots.get(&id).is_none_or(|s| s.start.is_none()) {
            // A forwarding, or something runs already.
            return session.channel_failure(id);
        }
        let why = match self.ask(id, question, session).await? {
            Some(Verdict::Allow) => None,
            Some(Verdict::Deny(why)) => Some(why),
            Some(Verdict::Ignore) => Some("not served here".to_owned()),
            None => return Ok(()),
        };
        if let Some(why) = why {
            self.shared
                .trail
                .later(event.with("success", false).with("reason", &why));
            self.refuse(id, &why, session)?;
            self.slots.remove(&id);
            return Ok(());
        }
        let Some(slot) = self.slots.get_mut(&id) else {
            return session.channel_failure(id);
        };
        let start = Box::new(Start {
            login: who.login.clone(),
            run,
            env: std::mem::take(&mut slot.env),
            pty: slot.pty.take(),
            event: event.with("success", true),
        });
        match slot.start.take().map(|s| s.send(start)) {
            Some(Ok(())) => session.channel_success(id),
            _ => session.channel_failure(id),
        }
    }
}

impl<S: GuardSource> Handler for Connection<S> {
    type Error = Error;

    async fn auth_publickey(
        &mut self,
        login: &str,
        _key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Error> {
        // Certificates only. (The offer of a key can't be told from that of a certificate, so this is where it ends.)
        let login = login.to_owned();
        self.shared.tell(News::Tried { login }).await;
        Ok(Auth::reject())
    }

    async fn auth_openssh_certificate(
        &mut self,
        login: &str,
        cert: &russh::keys::Certificate,
    ) -> Result<Auth, Error> {
        match self.gate.authenticate(cert, login) {
            Ok(admitted) => {
                self.admitted = Some(Arc::new(admitted));
                Ok(Auth::Accept)
            }
            Err(why) => {
                self.shared.tell(News::Refused).await;
                if self.gate.explains_to(cert) {
                    // SSH has no words for a refusal, but for a disconnect: see `auth_succeeded`.
                    self.refused = Some(why);
                    return Ok(Auth::Accept);
                }
                Ok(Auth::reject())
            }
        }
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Error> {
        let who = match (&self.refused, &self.admitted) {
            (None, Some(who)) => who.clone(),
            (why, _) => {
                let why = match why {
                    Some(why) => format!("Permission denied: {why}"),
                    None => "Permission denied".to_owned(),
                };
                return session.disconnect(Disconnect::NoMoreAuthMethodsAvailable, &why, "en");
            }
        };
        self.shared.trail.admitted(who.clone());
        let info = self.info(&who);
        let guard = match self.plugin.open(&info).await {
            Ok(guard) => guard,
            Err(e) => {
                self.failed(&e);
                let event = self.shared.trail.event(names::SESSION_REJECTED);
                self.shared.trail.later(event.with("reason", &e.message));
                self.shared.tell(News::Refused).await;
                let why = format!("Permission denied: {e}");
                return session.disconnect(Disconnect::ByApplication, &why, "en");
            }
        };
        self.guard = Some(guard);
        self.shared.tell(News::Admitted).await;
        // In the background: the client's first channel is on its way meanwhile, and waits for it.
        let shared = self.shared.clone();
        self.shared.tasks.spawn(async move {
            let event = shared.trail.event(names::SESSION_START);
            let outcome = shared.trail.emit(event).await;
            shared.recorded.send_replace(Some(outcome));
        });
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Error> {
        if let Some(closed) = self.closed() {
            reply.reject(closed).await;
            return Ok(());
        }
        let (start, started) = oneshot::channel();
        let flow = self.slot(channel.id(), Some(start));
        let task = channel::session(
            channel,
            started,
            flow,
            self.shared.clone(),
            session.handle(),
        );
        self.shared.tasks.spawn(task);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Error> {
        if let Some(closed) = self.closed() {
            reply.reject(closed).await;
            return Ok(());
        }
        let port16 = u16::try_from(port).unwrap_or(0);
        let event = SshEvent::Forward {
            host: host.to_owned(),
            port: port16,
        };
        let why = if port16 == 0 || host.is_empty() || host.len() > 255 {
            Some(format!("{host:?} port {port} is not an address"))
        } else if !self.shared.opts.port_forwarding {
            Some("port forwarding is off on this service".into())
        } else if !self.admitted.as_ref().is_some_and(|a| a.may_forward) {
            Some("your roles do not allow port forwarding here".into())
        } else {
            match self.ask(channel.id(), event, session).await? {
                Some(Verdict::Allow) => None,
                Some(Verdict::Deny(why)) => Some(why),
                Some(Verdict::Ignore) => Some("not served here".into()),
                None => return Ok(()),
            }
        };
        if let Some(why) = why {
            let refusal = Refusal::Prohibited(why);
            forward::audit(&self.shared, host, port16, Err(&refusal));
            reply.reject(refusal.to_ssh()).await;
            return Ok(());
        }
        let flow = self.slot(channel.id(), None);
        let target = (host.to_owned(), port16);
        let task = forward(channel, reply, target, flow, self.shared.clone());
        self.shared.tasks.spawn(task);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        xpixel: u32,
        ypixel: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        if self.slots.get(&id).is_none_or(|s| s.start.is_none()) || term.len() > 256 {
            return session.channel_failure(id);
        }
        let event = SshEvent::Pty {
            term: term.to_owned(),
            cols,
            rows,
        };
        match self.ask(id, event, session).await? {
            Some(Verdict::Allow) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    let mut pty = size(cols, rows, xpixel, ypixel);
                    pty.modes = modes
                        .iter()
                        .map(|&(mode, value)| (mode as u8, value))
                        .collect();
                    slot.pty = Some((term.to_owned(), pty));
                }
                session.channel_success(id)
            }
            Some(Verdict::Ignore) => session.channel_failure(id),
            None => Ok(()),
            Some(Verdict::Deny(why)) => {
                session.extended_data(id, 1, format!("postern: {why}\r\n"))?;
                session.channel_failure(id)
            }
        }
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        let accepted = accepts_env(&self.shared.opts, name, value)
            && self.slots.get(&id).is_some_and(|slot| {
                let bytes: usize = slot.env.iter().map(|(k, v)| k.len() + v.len()).sum();
                slot.start.is_some()
                    && slot.env.len() < MAX_ENV.0
                    && bytes + name.len() + value.len() <= MAX_ENV.1
            });
        let event = SshEvent::Env {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        // Refused variables are passed over silently, as OpenSSH does.
        if !accepted || self.ask(id, event, session).await? != Some(Verdict::Allow) {
            return session.channel_failure(id);
        }
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.env.push((name.to_owned(), value.to_owned()));
        }
        session.channel_success(id)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Error> {
        let event = self.shared.trail.event(names::EXEC).with("what", "shell");
        self.start(id, SshEvent::Shell, Run::Shell, event, session)
            .await
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Error> {
        // What the plugin decides on is what runs: no characters that one of the two would see otherwise.
        let Some(command) = std::str::from_utf8(command)
            .ok()
            .filter(|c| !c.contains('\0'))
        else {
            return self.refuse(id, "the command is not valid UTF-8 text", session);
        };
        let event = self.shared.trail.event(names::EXEC);
        let event = event.with("what", "exec").with("command", command);
        let question = SshEvent::Exec {
            command: command.to_owned(),
        };
        self.start(
            id,
            question,
            Run::Command(command.to_owned()),
            event,
            session,
        )
        .await
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Error> {
        if name != "sftp" {
            return self.refuse(id, &format!("there is no subsystem {name:?} here"), session);
        }
        let event = self.shared.trail.event(names::EXEC);
        let event = event.with("what", "subsystem").with("subsystem", name);
        let question = SshEvent::Subsystem {
            name: name.to_owned(),
        };
        // By the login's shell, as OpenSSH does: an account without a real shell gets no files either.
        let server = self.shared.opts.sftp_server.to_string_lossy().into_owned();
        self.start(id, question, Run::Command(server), event, session)
            .await
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        xpixel: u32,
        ypixel: u32,
        _session: &mut Session,
    ) -> Result<(), Error> {
        // Once something runs, its task hears of it.
        if let Some((_, pty)) = self.slots.get_mut(&id).and_then(|s| s.pty.as_mut()) {
            let modes = std::mem::take(&mut pty.modes);
            *pty = size(cols, rows, xpixel, ypixel);
            pty.modes = modes;
        }
        Ok(())
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(id)
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Error> {
        if let Some(slot) = self.slots.get(&id) {
            slot.flow.arrived(data.len(), self.trickling).await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _id: ChannelId, _current: u32) -> u32 {
        self.trickling = self.slots.values().any(|slot| slot.flow.is_stuck());
        if self.trickling { TRICKLE } else { WINDOW }
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Error> {
        self.slots.remove(&id);
        Ok(())
    }
}
