//! What can go wrong with a plugin, in words for the operator.

use std::fmt;

/// Everything that this crate reports. `Display` is one line: plugin, version, session, what failed, why, what to do.
#[derive(Debug, Clone)]
pub struct PluginError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    plugin: String,
    version: Option<String>,
    session: Option<String>,
    cause: Cause,
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin {:?}", self.0.plugin)?;
        if let Some(v) = &self.0.version {
            write!(f, " {v}")?;
        }
        if let Some(s) = &self.0.session {
            write!(f, ", session {s}")?;
        }
        write!(f, ": {}", self.0.cause)
    }
}

impl std::error::Error for PluginError {}

/// Why a call trapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrapKind {
    /// More memory than the limit.
    Memory,
    /// More CPU time than the limit.
    Cpu,
    /// Slept or waited instead of answering.
    Time,
    /// The plugin gave up by itself (panic, `unreachable`).
    Unreachable,
    /// Call stack exhausted.
    Stack,
    /// More data in one answer than the host takes.
    Data,
    /// Any other trap: out-of-bounds access, bad cast, …
    Other,
}

impl TrapKind {
    /// Word for metrics and audit.
    pub fn as_str(self) -> &'static str {
        match self {
            TrapKind::Memory => "memory",
            TrapKind::Cpu => "cpu",
            TrapKind::Time => "time",
            TrapKind::Unreachable => "unreachable",
            TrapKind::Stack => "stack",
            TrapKind::Data => "data",
            TrapKind::Other => "other",
        }
    }
}

/// One thing wrong in a service's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsProblem {
    /// As the operator wrote it, `forward.allow[2]`; empty for the settings as a whole.
    pub path: String,
    pub message: String,
}

impl fmt::Display for SettingsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

fn joined(problems: &[SettingsProblem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// The kinds of failure. Each message says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Cause {
    /// Contained: this instance is gone, nothing else is touched.
    #[error("trapped ({}): {detail}", .kind.as_str())]
    Trap { kind: TrapKind, detail: String },
    #[error("{file} is not a WebAssembly component: {why}")]
    NotAComponent { file: String, why: String },
    #[error("{file} lacks {export}: {help}")]
    MissingExport {
        file: String,
        export: String,
        help: String,
    },
    /// A component, but not one that this host can run, or not of the world that is needed here.
    #[error("{file}: {why}")]
    WrongWorld { file: String, why: String },
    /// Somebody else could change this file.
    #[error("{file}: {why}")]
    Permissions { file: String, why: String },
    #[error("cannot read {file}: {why}")]
    Io { file: String, why: String },
    #[error(
        "{file} has sha256 {actual}, the configuration pins {expected}: install the pinned file, or change `sha256` if this change is yours"
    )]
    PinMismatch {
        file: String,
        expected: String,
        actual: String,
    },
    #[error("settings: {}", joined(.0))]
    Settings(Vec<SettingsProblem>),
    /// The plugin's own decision about a session; worded for the user.
    #[error("refused the session: {reason}")]
    Refused { reason: String },
    #[error("describes itself wrongly: {why}; report this to the plugin's author")]
    Description { why: String },
    #[error("all {limit} plugin instances of this agent are in use; sessions must end first")]
    Busy { limit: u32 },
    #[error("broke the contract: {why}; report this to the plugin's author")]
    Contract { why: String },
    #[error("was ended by an earlier failure in this session")]
    Ended,
    #[error("cannot run plugins here: {why}")]
    Host { why: String },
}

impl PluginError {
    pub(crate) fn new(plugin: impl Into<String>, cause: Cause) -> Self {
        PluginError(Box::new(Inner {
            plugin: plugin.into(),
            version: None,
            session: None,
            cause,
        }))
    }

    pub(crate) fn version(mut self, v: impl Into<String>) -> Self {
        self.0.version = Some(v.into());
        self
    }

    pub(crate) fn session(mut self, s: impl Into<String>) -> Self {
        self.0.session = Some(s.into());
        self
    }

    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    pub fn plugin(&self) -> &str {
        &self.0.plugin
    }

    /// The plugin's own words if it refused the session, for the user.
    pub fn refusal(&self) -> Option<&str> {
        match &self.0.cause {
            Cause::Refused { reason } => Some(reason),
            _ => None,
        }
    }

    /// The kind of trap, if it is one.
    pub fn trap(&self) -> Option<TrapKind> {
        match self.0.cause {
            Cause::Trap { kind, .. } => Some(kind),
            _ => None,
        }
    }
}
