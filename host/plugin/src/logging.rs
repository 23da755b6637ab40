//! A plugin's lines in the host's log: cut, cleaned of control characters, rate limited per plugin.

use bytes::Bytes;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Lines a second that one plugin may write, all its sessions together, and at once.
const LINES_PER_SECOND: f64 = 20.0;
const BURST: f64 = 100.0;
/// Bytes of a line; the rest of it is cut.
const MAX_LINE: usize = 4096;

/// Token bucket of one plugin.
pub(crate) struct Limiter(Mutex<Bucket>);

struct Bucket {
    tokens: f64,
    at: Instant,
    dropped: u64,
}

impl Limiter {
    pub(crate) fn new() -> Self {
        Limiter(Mutex::new(Bucket {
            tokens: BURST,
            at: Instant::now(),
            dropped: 0,
        }))
    }

    /// `Some(lines dropped before)` if one more may be written.
    fn admit(&self) -> Option<u64> {
        let mut b = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        b.tokens =
            (b.tokens + now.duration_since(b.at).as_secs_f64() * LINES_PER_SECOND).min(BURST);
        b.at = now;
        if b.tokens < 1.0 {
            b.dropped += 1;
            return None;
        }
        b.tokens -= 1.0;
        Some(std::mem::take(&mut b.dropped))
    }
}

/// Where one instance's lines go.
#[derive(Clone)]
pub(crate) struct LogSink(Arc<Sink>);

struct Sink {
    plugin: String,
    version: String,
    session: String,
    limiter: Arc<Limiter>,
    /// The last line on stderr, rate limit or not: what a panic said.
    last_words: Mutex<String>,
}

impl LogSink {
    pub(crate) fn new(plugin: &str, version: &str, session: &str, limiter: Arc<Limiter>) -> Self {
        LogSink(Arc::new(Sink {
            plugin: plugin.into(),
            version: version.into(),
            session: session.into(),
            limiter,
            last_words: Mutex::new(String::new()),
        }))
    }

    pub(crate) fn line(&self, level: tracing::Level, text: &str) {
        let s = &self.0;
        let Some(dropped) = s.limiter.admit() else {
            return;
        };
        let text = clean(text);
        macro_rules! emit {
            ($level:ident) => {
                tracing::$level!(target: "postern::plugin", plugin = s.plugin, version = s.version, session = s.session, "{text}")
            };
        }
        if dropped > 0 {
            tracing::warn!(target: "postern::plugin", plugin = s.plugin, version = s.version, "{dropped} lines dropped: more than {LINES_PER_SECOND} a second");
        }
        match level {
            tracing::Level::TRACE => emit!(trace),
            tracing::Level::DEBUG => emit!(debug),
            tracing::Level::INFO => emit!(info),
            tracing::Level::WARN => emit!(warn),
            tracing::Level::ERROR => emit!(error),
        }
    }

    /// What the guest wrote last on stderr, for trap reports.
    pub(crate) fn last_words(&self) -> String {
        self.0
            .last_words
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// One line without control characters, at most [`MAX_LINE`] bytes.
fn clean(text: &str) -> String {
    let mut out: String = text
        .trim_end()
        .chars()
        .scan(0, |n, c| {
            *n += c.len_utf8();
            (*n <= MAX_LINE).then_some(if c.is_control() { ' ' } else { c })
        })
        .collect();
    if out.len() < text.trim_end().len() && text.len() > MAX_LINE {
        out.push('…');
    }
    out
}

/// stdout or stderr of a guest.
pub(crate) struct GuestStdio {
    pub(crate) sink: LogSink,
    pub(crate) level: tracing::Level,
}

impl IsTerminal for GuestStdio {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestStdio {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Lines {
            sink: self.sink.clone(),
            level: self.level,
            partial: Vec::new(),
        })
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this, and 0.3 is not linked.
        Box::new(tokio::io::sink())
    }
}

/// Cuts what is written into lines.
struct Lines {
    sink: LogSink,
    level: tracing::Level,
    partial: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let room = MAX_LINE.saturating_sub(self.partial.len());
            self.partial
                .extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial)
            .trim_end()
            .to_string();
        self.partial.clear();
        // Rust's panic handler ends with a hint about backtraces, which says nothing here.
        if line.is_empty() || line.starts_with("note: run with `RUST_BACKTRACE") {
            return;
        }
        if self.level == tracing::Level::WARN {
            let mut last = self
                .sink
                .0
                .last_words
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // "thread '<unnamed>' panicked at src/lib.rs:1:2:" and the message come as two lines.
            let panicked = last.contains("panicked at") && last.ends_with(':');
            *last = if panicked {
                format!("{last} {}", clean(&line))
            } else {
                clean(&line)
            };
        }
        self.sink.line(self.level, &line);
    }
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.feed(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

impl Pollable for Lines {
    // What `#[async_trait]` makes of `async fn ready(&mut self) {}`.
    fn ready<'a, 'b>(&'a mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        struct Now;
        impl Future for Now {
            type Output = ();
            fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
                Poll::Ready(())
            }
        }
        Box::pin(Now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink() -> LogSink {
        LogSink::new("p", "1", "s", Arc::new(Limiter::new()))
    }

    #[test]
    fn lines_are_cut_and_cleaned() {
        assert_eq!(clean("a\x1b[31m\tb\n"), "a [31m b");
        let long = clean(&"ä".repeat(5000));
        assert!(
            long.len() <= MAX_LINE + 3 && long.ends_with('…'),
            "{}",
            long.len()
        );
    }

    #[test]
    fn a_panic_is_remembered_over_two_lines() {
        let mut l = Lines {
            sink: sink(),
            level: tracing::Level::WARN,
            partial: vec![],
        };
        l.feed(b"thread '<unnamed>' (1) panicked at lib.rs:1:2:\nno");
        l.feed(b" way\nnote: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n\n");
        assert_eq!(
            l.sink.last_words(),
            "thread '<unnamed>' (1) panicked at lib.rs:1:2: no way"
        );
    }

    #[test]
    fn a_flood_is_dropped_and_a_line_without_end_takes_no_memory() {
        let l = Limiter::new();
        let admitted = (0..10_000).filter(|_| l.admit().is_some()).count();
        assert!((100..200).contains(&admitted), "{admitted}");
        let mut l = Lines {
            sink: sink(),
            level: tracing::Level::INFO,
            partial: vec![],
        };
        for _ in 0..1000 {
            l.feed(&[b'x'; 1000]);
        }
        assert!(l.partial.len() <= MAX_LINE);
    }
}
