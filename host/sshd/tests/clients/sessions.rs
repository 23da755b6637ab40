//! Shells and commands with the real OpenSSH client.

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_as_the_login() {
    let mut lab = Lab::new().await;
    let login = login();
    let id = lab
        .sh("id -un; id -G; pwd; umask; echo $HOME $USER $LOGNAME $SHELL; echo $PATH")
        .await;
    let lines: Vec<&str> = id.lines().collect();
    let local = std::process::Command::new("id")
        .args(["-G", &login])
        .output()
        .unwrap();
    assert_eq!(lines[0], login);
    assert_eq!(lines[1], String::from_utf8(local.stdout).unwrap().trim());
    let user = nix::unistd::User::from_name(&login).unwrap().unwrap();
    assert_eq!(lines[2], user.dir.to_str().unwrap());
    assert_eq!(lines[3], "0022");
    assert_eq!(
        lines[4],
        format!(
            "{} {login} {login} {}",
            user.dir.display(),
            user.shell.display()
        )
    );
    assert!(lines[5].contains("/usr/bin"));

    let start = lab.event("session.start").await;
    assert_eq!(start.text("user"), Some("alice"));
    assert_eq!(start.text("login"), Some(login.as_str()));
    assert_eq!(start.text("session_id"), Some("session-1"));
    assert_eq!(start.text("resource"), Some("web-1"));
    let exec = lab.event("exec").await;
    assert!(exec.text("command").unwrap().starts_with("id -un;"));
    let end = lab.event("session.end").await;
    assert_eq!(end.fields["exits"], serde_json::json!(["0"]));
    assert_eq!(end.fields["bytes_out"], serde_json::json!(id.len()));
    let summary = lab.summary().await.unwrap();
    assert_eq!(summary.user.as_deref(), Some("alice"));
    assert_eq!(summary.exits, ["0"]);
    assert_eq!(summary.reason, "client left");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_agent_is_left_in_a_session() {
    let lab = Lab::new().await;
    let seen = lab
        .sh("ls /proc/self/fd | sort -n | tr '\\n' ' '; grep -E 'SigBlk' /proc/self/status; grep SigIgn /proc/self/status | cut -c18-; env | grep -c CARGO; ps -o sid=,pid=,tty= -p $$; ulimit -n; readlink /proc/$$/exe; true")
        .await;
    let mut lines = seen.lines();
    // 3 is ls's own.
    assert_eq!(
        lines.next(),
        Some("0 1 2 3 SigBlk:\t0000000000000000"),
        "{seen}"
    );
    // Signals 1 to 31 (32 and 33 are libc's own, and stay as whoever started the agent left them).
    let ignored = u64::from_str_radix(lines.next().unwrap(), 16).unwrap();
    assert_eq!(ignored & 0x7fff_ffff, 0, "{seen}");
    assert_eq!(lines.next(), Some("0"));
    let ids: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(ids[0], ids[1], "leader of its own session");
    assert_eq!(ids[2], "?");
    assert!(lines.next().unwrap().parse::<u32>().unwrap() <= 1024);
    assert!(lines.next().unwrap().ends_with("/bash"));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_status_and_signal_arrive() {
    let mut lab = Lab::new().await;
    for (command, code) in [
        ("exit 7", 7),
        ("true", 0),
        ("kill -9 $$", 255),
        ("kill -TERM $$", 255),
    ] {
        let mut ssh = lab.ssh();
        ssh.arg(command);
        let out = run(ssh).await;
        assert_eq!(out.status.code(), Some(code), "{command}: {}", text(&out));
    }
    let mut exits = Vec::new();
    for _ in 0..4 {
        exits.extend(lab.summary().await.unwrap().exits);
    }
    exits.sort();
    assert_eq!(exits, ["0", "7", "SIGKILL", "SIGTERM"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_error_is_apart_and_half_close_works_both_ways() {
    let lab = Lab::new().await;
    let mut ssh = lab.ssh();
    ssh.arg("cat; echo done >&2; exit 3");
    let out = feed(ssh, b"some input\n".to_vec()).await;
    assert_eq!(out.stdout, b"some input\n");
    assert_eq!(stderr(&out), "done\n");
    assert_eq!(out.status.code(), Some(3));

    // Output ends long before input does.
    let mut ssh = lab.ssh();
    ssh.arg("echo early; exec >&- 2>&-; wc -c > /dev/null; exit 4");
    let out = feed(ssh, vec![b'x'; 3 << 20]).await;
    assert_eq!(out.stdout, b"early\n");
    assert_eq!(out.status.code(), Some(4), "{}", text(&out));

    // A process that does not want its input is no obstacle.
    let mut ssh = lab.ssh();
    ssh.arg("true");
    let out = feed(ssh, vec![b'x'; 20 << 20]).await;
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_on_a_terminal() {
    let lab = Lab::new().await;
    let mut ssh = lab.program("ssh");
    ssh.args(["-tt", &lab.remote("")[..lab.remote("").len() - 1]]);
    ssh.env("TERM", "xterm-postern");
    let out = feed(
        ssh,
        b"echo term=$TERM tty=$SSH_TTY; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all-tty; stat -c %U $(tty); echo arg0=$0; stty size; exit 5\n"
            .to_vec(),
    )
    .await;
    let shown = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(5), "{}", text(&out));
    assert!(
        shown.contains("term=xterm-postern tty=/dev/pts/"),
        "{shown}"
    );
    assert!(shown.contains("\r\nall-tty\r\n"), "{shown}");
    assert!(shown.contains(&format!("\r\n{}\r\n", login())), "{shown}");
    assert!(shown.contains("arg0=-bash"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_modes_and_size_of_the_client_apply_and_follow() {
    use nix::pty::{Winsize, openpty};
    use std::io::{Read, Write};
    let lab = Lab::new().await;
    // ssh itself on a terminal of ours, so that it has modes and a size to pass on.
    let size = |rows, cols| Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size(30, 100), None).unwrap();
    let mut modes = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    modes.control_chars[nix::libc::VINTR] = 0x07;
    nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &modes).unwrap();
    let mut ssh = lab.program("ssh");
    ssh.args(["-tt", &format!("{}@127.0.0.1", login())]);
    ssh.arg("stty -a | head -3; trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.05; done");
    ssh.stdin(pty.slave.try_clone().unwrap());
    ssh.stdout(pty.slave.try_clone().unwrap());
    ssh.stderr(pty.slave);
    // SAFETY (test): setsid and TIOCSCTTY are async-signal-safe.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut ssh, || {
            nix::unistd::setsid()?;
            if nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = ssh.spawn().unwrap();
    drop(ssh);
    let mut master = std::fs::File::from(pty.master);
    let reader = tokio::task::spawn_blocking({
        let mut from = master.try_clone().unwrap();
        move || {
            let (mut seen, mut buf, mut resized) = (String::new(), [0; 1024], false);
            while let Ok(n @ 1..) = from.read(&mut buf) {
                seen.push_str(&String::from_utf8_lossy(&buf[..n]));
                if !resized && seen.contains("ready") {
                    resized = true;
                    let size = size(33, 111);
                    // SAFETY (test): a valid struct and descriptor.
                    unsafe {
                        use std::os::fd::AsRawFd;
                        nix::libc::ioctl(from.as_raw_fd(), nix::libc::TIOCSWINSZ, &size);
                    }
                }
            }
            seen
        }
    });
    let seen = tokio::time::timeout(std::time::Duration::from_secs(20), reader)
        .await
        .unwrap()
        .unwrap();
    let _ = master.write(b"");
    assert_eq!(child.wait().unwrap().code(), Some(6), "{seen}");
    assert!(seen.contains("rows 30; columns 100"), "{seen}");
    assert!(seen.contains("intr = ^G"), "{seen}");
    assert!(seen.contains("33 111"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_by_accept_list_and_plugin() {
    let lab = Lab::new().await;
    let mut ssh = lab.program("ssh");
    for v in [
        "LC_TEST=yes",
        "LC_IGNORED=no",
        "EDITOR=no",
        "HOME=/no",
        "LANG=C.UTF-8",
    ] {
        ssh.args(["-o", &format!("SetEnv={v}")]);
    }
    ssh.args([&format!("{}@127.0.0.1", login()), "env"]);
    let out = run(ssh).await;
    let env = String::from_utf8(out.stdout).unwrap();
    assert!(
        env.contains("\nLC_TEST=yes\n") || env.starts_with("LC_TEST=yes\n"),
        "{env}"
    );
    for absent in ["LC_IGNORED", "EDITOR", "HOME=/no", "CARGO"] {
        assert!(!env.contains(absent), "{env}");
    }
    assert!(env.contains("SSH_CONNECTION=127.0.0.1 "), "{env}");
    assert!(env.contains("POSTERN_SESSION=session-1"), "{env}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_plugin_denies_does_not_happen_and_says_so() {
    let mut lab = Lab::new().await;
    let marker = lab.path("marker");
    let mut ssh = lab.ssh();
    ssh.arg(format!("touch {}; echo forbidden", marker.display()));
    let out = run(ssh).await;
    assert_eq!(out.status.code(), Some(255));
    assert!(
        stderr(&out).contains("postern: this command is not for you"),
        "{}",
        text(&out)
    );
    assert!(!marker.exists());
    let exec = lab.event("exec").await;
    assert_eq!(exec.fields["success"], serde_json::json!(false));
    assert_eq!(exec.text("reason"), Some("this command is not for you"));

    let mut ssh = lab.ssh();
    ssh.arg("crash-the-plugin");
    let out = run(ssh).await;
    assert_eq!(out.status.code(), Some(255));
    assert!(
        stderr(&out).contains("trapped (unreachable)"),
        "{}",
        text(&out)
    );
    let trap = lab.event("plugin.trap").await;
    assert_eq!(
        (trap.text("plugin"), trap.text("trap")),
        (Some("ssh"), Some("unreachable"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_of_the_client_reach_the_process() {
    // OpenSSH sends them only through ControlMaster's API, so this is a russh client.
    let lab = Lab::new().await;
    let client = lab.client().await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel
        .exec(
            true,
            "trap 'echo got-it; exit 9' USR1; echo ready; while :; do sleep 0.05; done",
        )
        .await
        .unwrap();
    let (mut seen, mut status) = (String::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            russh::ChannelMsg::Data { data } => {
                seen.push_str(&String::from_utf8_lossy(&data));
                if seen == "ready\n" {
                    channel.signal(russh::Sig::USR1).await.unwrap();
                }
            }
            russh::ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            _ => {}
        }
    }
    assert_eq!(seen, "ready\ngot-it\n");
    assert_eq!(status, Some(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_plugin_decides() {
    use postern_plugin::{Limits, PluginSource};
    use postern_plugin_testing as testing;
    let dir = tempfile::tempdir().unwrap();
    let runtime = testing::runtime(dir.path());
    let load = async |name: &str| {
        let source = PluginSource::file(name, testing::guest(name));
        runtime.load(&source, Limits::default()).await.unwrap()
    };
    let settings = r#"{"exec": {"deny": ["rm *"]}, "env": ["LC_*"], "forward": {"allow": []}}"#;
    let lab = Lab::guarded((load("ssh").await, settings.to_owned()), true, |_| {}).await;
    assert_eq!(lab.sh("echo fine").await, "fine\n");
    let mut ssh = lab.ssh();
    ssh.arg("rm -rf /nonexistent");
    let out = run(ssh).await;
    assert_eq!(out.status.code(), Some(255), "{}", text(&out));
    assert!(stderr(&out).contains("postern: "), "{}", text(&out));
    let mut ssh = lab.program("ssh");
    ssh.args(["-W", "127.0.0.1:1", &format!("{}@127.0.0.1", login())]);
    let out = run(ssh).await;
    assert!(
        stderr(&out).contains("administratively prohibited"),
        "{}",
        text(&out)
    );

    let mut lab = Lab::guarded((load("misbehave_ssh").await, "{}".into()), true, |_| {}).await;
    for (command, word) in [
        ("trap", "unreachable"),
        ("loop", "cpu"),
        ("memory", "memory"),
    ] {
        let mut ssh = lab.ssh();
        ssh.arg(command);
        let out = run(ssh).await;
        assert_eq!(out.status.code(), Some(255), "{command}: {}", text(&out));
        assert!(stderr(&out).contains("misbehave_ssh"), "{}", text(&out));
        assert_eq!(lab.event("plugin.trap").await.text("trap"), Some(word));
    }
    assert_eq!(lab.sh("echo fine").await, "fine\n");
}
