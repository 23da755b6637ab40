//! What must go on through every edit: a session that counts, a file on its way, a connection of another kind. Each
//! says at its end whether it lost anything; a test shows that they notice.

use crate::world::World;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_tests::{Run, free_port, run::Background, wait};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Counts fifty times a second, and repeats each line that it is told.
const COUNT: &str = "bash -c '(i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done) & \
    while read -r word; do echo \"told $word\"; [ \"$word\" = end ] && break; done; kill $!'";

/// An SSH session.
pub struct Counter {
    session: Background,
    stdin: ChildStdin,
    told: u64,
    seen: Arc<AtomicU64>,
    reader: JoinHandle<Result<Counted>>,
}

/// What the session printed, complete and in order.
#[derive(Debug, Default)]
pub struct Counted {
    pub numbers: u64,
    pub told: u64,
    /// Between two lines.
    pub longest_pause: Duration,
}

impl Counter {
    pub fn start(w: &World, resource: &str) -> Result<Counter> {
        let run = w.alice.ssh_as(&w.login, resource).arg(COUNT);
        let mut session = run.background(Stdio::piped())?;
        let stdin = session.child().stdin.take().context("stdin")?;
        let stdout = session.child().stdout.take().context("stdout")?;
        let seen = Arc::new(AtomicU64::new(0));
        let counted = seen.clone();
        let reader = std::thread::spawn(move || read_numbers(BufReader::new(stdout), &counted));
        let counter = Counter {
            session,
            stdin,
            told: 0,
            seen,
            reader,
        };
        wait::holds("the session to count", wait::LONG, || counter.numbers() > 0)?;
        Ok(counter)
    }

    pub fn numbers(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// A line in the other direction.
    pub fn tell(&mut self) -> Result<()> {
        let line = format!("{}\n", self.told);
        let told = self.stdin.write_all(line.as_bytes());
        told.context("the session that counts has ended")?;
        self.told += 1;
        Ok(())
    }

    /// Ends it. Errors: it ended before, or something is missing.
    pub fn finish(mut self) -> Result<Counted> {
        self.stdin.write_all(b"end\n")?;
        let status = self.session.wait(wait::LONG)?;
        ensure!(
            status.success(),
            "the session that counts ended with {status}"
        );
        let Ok(counted) = self.reader.join() else {
            bail!("the reader panicked");
        };
        let counted = counted?;
        ensure!(
            counted.told == self.told,
            "it was told {} lines and saw {}",
            self.told,
            counted.told
        );
        Ok(counted)
    }
}

fn read_numbers(lines: impl BufRead, seen: &AtomicU64) -> Result<Counted> {
    let mut counted = Counted::default();
    let mut last = Instant::now();
    for line in lines.lines() {
        let line = line?;
        counted.longest_pause = counted.longest_pause.max(last.elapsed());
        last = Instant::now();
        if line == "told end" {
            return Ok(counted);
        }
        let (expected, which) = match line.strip_prefix("told ") {
            Some(_) => (format!("told {}", counted.told), &mut counted.told),
            None => (counted.numbers.to_string(), &mut counted.numbers),
        };
        ensure!(line == expected, "{line:?} where {expected:?} was due");
        *which += 1;
        seen.store(counted.numbers, Relaxed);
    }
    bail!(
        "the session that counts ended after {} numbers",
        counted.numbers
    )
}

/// A file on its way to the server by scp.
pub struct Copy {
    scp: Background,
    from: PathBuf,
    to: PathBuf,
    size: u64,
}

impl Copy {
    /// `kbits`: scp's own limit.
    pub fn start(w: &World, resource: &str, size: u64, kbits: u32) -> Result<Copy> {
        let from = w.lab.join("from.bin");
        let random = std::fs::File::open("/dev/urandom")?;
        std::io::copy(&mut random.take(size), &mut std::fs::File::create(&from)?)?;
        let to = w.lab.home()?.join("to.bin");
        let target = format!("{}@{resource}.ssh.demo:{}", w.login, to.display());
        let scp = w.alice.openssh("scp");
        let scp = scp.args(["-q", "-l", &kbits.to_string()]).arg(&from);
        let scp = scp.arg(target).background(Stdio::null())?;
        let copy = Copy {
            scp,
            from,
            to,
            size,
        };
        wait::holds("the copy to begin", wait::LONG, || copy.done() > 0.0)?;
        Ok(copy)
    }

    /// How much of it has arrived, from 0 to 1.
    pub fn done(&self) -> f64 {
        std::fs::metadata(&self.to).map_or(0.0, |m| m.len() as f64 / self.size as f64)
    }

    /// Lets it run until it is that far, and no further before it is asked again: it must not end before the edits.
    pub fn run_to(&mut self, part: f64) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.scp.pid())?);
        if self.done() >= part + 0.02 {
            return Ok(kill(pid, Signal::SIGSTOP)?);
        }
        kill(pid, Signal::SIGCONT)?;
        let mut ended = false;
        wait::holds("the copy to go on", wait::LONG, || {
            ended = !self.scp.is_running();
            ended || self.done() >= part
        })?;
        ensure!(
            !ended || self.done() >= 1.0,
            "scp ended when {:.0} % were there",
            self.done() * 100.0
        );
        Ok(())
    }

    /// Waits for its end. Errors: it failed, or what arrived is something else.
    pub fn finish(mut self) -> Result<()> {
        kill(
            Pid::from_raw(i32::try_from(self.scp.pid())?),
            Signal::SIGCONT,
        )?;
        let status = self.scp.wait(Duration::from_secs(120))?;
        ensure!(status.success(), "scp ended with {status}");
        // Byte by byte: as good as a hash of both, and faster.
        let same = Run::new(Command::new("cmp"));
        same.arg(&self.from).arg(&self.to).ok()?;
        std::fs::remove_file(&self.from)?;
        Ok(std::fs::remove_file(&self.to)?)
    }
}

/// A connection to a `tcp` resource.
pub struct Connection {
    _helper: Background,
    stream: TcpStream,
    sent: u64,
}

impl Connection {
    pub fn open(w: &World, name: &str) -> Result<Connection> {
        let port = free_port()?;
        let helper = w.alice.postern()?.args(["proxy", &format!("{name}.tcp")]);
        let helper = helper.args(["--port", &port.to_string()]);
        let helper = helper.background(Stdio::null())?;
        let stream = wait::until("postern proxy to listen", wait::LONG, || {
            Ok(TcpStream::connect(("127.0.0.1", port)).ok())
        })?;
        stream.set_read_timeout(Some(wait::LONG))?;
        let mut connection = Connection {
            _helper: helper,
            stream,
            sent: 0,
        };
        connection.comes(crate::world::GREETING)?;
        Ok(connection)
    }

    /// There and back.
    pub fn exchange(&mut self) -> Result<()> {
        let line = format!("line {}\n", self.sent);
        self.sent += 1;
        let sent = self.stream.write_all(line.as_bytes());
        sent.context("the connection has ended")?;
        self.comes(&line)
    }

    fn comes(&mut self, text: &str) -> Result<()> {
        let mut back = vec![0; text.len()];
        let read = self.stream.read_exact(&mut back);
        read.context("the connection has ended")?;
        ensure!(
            back == text.as_bytes(),
            "{:?} instead of {text:?}",
            String::from_utf8_lossy(&back)
        );
        Ok(())
    }
}
