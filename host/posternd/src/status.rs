//! `posternd status`: asks the running daemon over its diagnostic socket.

use crate::args::StatusArgs;
use crate::diag::{self, Status};
use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};

pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let config = postern_config::load(&args.config)?;
    let listen = diag::address(&config);
    let body = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(diag::get(&listen, "/status"))
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
                service.sessions.to_string(),
                service
                    .tunnel_rtt_ms
                    .map_or_else(String::new, |ms| format!("{ms:.1} ms")),
            ]);
        }
        out += &format!("{table}\n");
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
