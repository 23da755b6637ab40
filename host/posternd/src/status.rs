//! `posternd status`: asks the running daemon over its diagnostic socket.

use crate::args::StatusArgs;
use crate::diag::{self, Status};
use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};
use http::Method;
use postern_agent::{Health, ServiceState, ServiceStatus};

/// Lines about unhealthy resources of one service.
const UNHEALTHY_SHOWN: usize = 20;

pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let listen = diag::of(&args.config, args.data_dir.as_deref())?;
    let body = diag::blocking(diag::request(
        &listen,
        Method::GET,
        "/status",
        String::new(),
    ))
    .with_context(|| {
        format!("no daemon answers at {listen}; is posternd running with this configuration?")
    })?;
    if args.json {
        println!("{body}");
        return Ok(());
    }
    let status: Status = serde_json::from_str(&body).context("the daemon's answer")?;
    print!("{}", render(&status));
    Ok(())
}

/// The status as a person reads it.
fn render(s: &Status) -> String {
    let mut out = format!(
        "posternd {} · cluster {} · pid {} · running since {}\nconfiguration {}\n",
        s.version, s.cluster, s.pid, s.since, s.config
    );
    if let Some(why) = &s.config_state.invalid {
        out += &format!(
            "running the configuration of {}; the file on disk is invalid: {}\n",
            clock(s.config_state.since),
            why.replace('\n', "\n  ")
        );
    }
    if let Some(addr) = &s.auth {
        out += &format!("Auth Service on {addr}\n");
    }
    if let Some(addr) = &s.proxy {
        out += &format!("Proxy Service on {addr}\n");
    }
    if let Some(agent) = &s.agent {
        out += &format!("host {}", agent.host_id);
        out += &match agent.auth_silent_secs {
            Some(secs) => format!(", Auth heard {secs} s ago\n\n"),
            None => ", Auth not heard yet\n\n".to_owned(),
        };
        let mut table = Table::new();
        table.load_preset(NOTHING).set_header([
            "SERVICE",
            "KIND",
            "PLUGIN",
            "STATE",
            "RESOURCES",
            "HEALTH",
            "SESSIONS",
            "RTT",
        ]);
        for service in &agent.services {
            table.add_row([
                service.name.clone(),
                service.kind.clone(),
                service.plugin.clone(),
                service.state.to_string(),
                service.resources.join(" "),
                health(service),
                service.sessions.to_string(),
                service
                    .tunnel_rtt_ms
                    .map_or_else(String::new, |ms| format!("{ms:.1} ms")),
            ]);
        }
        out += &format!("{table}\n");
        for service in &agent.services {
            if let Some(line) = remarks(service) {
                out += &format!("{line}\n");
            }
            out += &unreachable(service);
        }
    }
    if s.ready {
        out += "\nready\n";
    } else {
        out += "\nnot ready:\n";
        for reason in &s.not_ready {
            out += &format!("  {reason}\n");
        }
    }
    out
}

/// Of the resources that are probed, in a word.
fn health(s: &ServiceStatus) -> String {
    let count = |state| s.health.values().filter(|h| h.state == state).count();
    match (count(Health::Unhealthy), count(Health::Unknown)) {
        _ if s.health.is_empty() => String::new(),
        (0, 0) => "healthy".to_owned(),
        (0, _) => "unknown".to_owned(),
        (bad, _) => format!("{bad} of {} unhealthy", s.health.len()),
    }
}

/// The unhealthy resources, a line each.
fn unreachable(s: &ServiceStatus) -> String {
    let unhealthy = s.health.iter();
    let unhealthy = unhealthy.filter(|(_, h)| h.state == Health::Unhealthy);
    let mut out = String::new();
    for (n, (resource, health)) in unhealthy.enumerate() {
        if n == UNHEALTHY_SHOWN {
            out += &format!("  {}: … (all of them: --json)\n", s.name);
            break;
        }
        let since = i64::try_from(health.since_unix).unwrap_or_default();
        let since = jiff::Timestamp::from_second(since).unwrap_or_default();
        let since = since.to_zoned(jiff::tz::TimeZone::system());
        out += &format!(
            "  {}: {resource} is unhealthy since {}: {}\n",
            s.name,
            since.strftime("%Y-%m-%d %H:%M:%S"),
            health.reason.as_deref().unwrap_or_default()
        );
    }
    out
}

/// What the table has no room for.
fn remarks(s: &ServiceStatus) -> Option<String> {
    let until = s
        .until_unix
        .and_then(|t| jiff::Timestamp::from_second(i64::try_from(t).ok()?).ok())
        .map(clock);
    let state = match (s.state, until) {
        (ServiceState::Draining, Some(until)) => Some(format!(
            "takes no new sessions; the open ones are ended at {until}"
        )),
        (ServiceState::Removed, Some(until)) => Some(format!(
            "its keys are deleted at {until}; put back before that it is as it was"
        )),
        _ => s.reason.clone().filter(|_| s.state == ServiceState::Up),
    };
    let renewal = s
        .renewal_failed
        .as_ref()
        .map(|why| format!("what it holds stays in use, but new credentials are refused: {why}"));
    let back = s.rolled_back.as_ref().map(|r| r.reason.clone());
    let all: Vec<String> = [state, renewal, back].into_iter().flatten().collect();
    (!all.is_empty()).then(|| format!("  {}: {}", s.name, all.join("; ")))
}

/// A time of this day, where the host is.
fn clock(at: jiff::Timestamp) -> String {
    let at = at.to_zoned(jiff::tz::TimeZone::system());
    at.strftime("%H:%M:%S").to_string()
}
