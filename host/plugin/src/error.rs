//! What can go wrong with a plugin, in words for the operator.

/// Everything that this crate reports. `Display` is one line: plugin, version, what failed, why, what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("plugin {plugin:?}{}{}: {cause}", Ver(.version), Ses(.session))]
pub struct PluginError {
    plugin: String,
    version: Option<String>,
    session: Option<String>,
    cause: Cause,
}

struct Ver<'a>(&'a Option<String>);
impl std::fmt::Display for Ver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map_or(Ok(()), |v| write!(f, " {v}"))
    }
}
struct Ses<'a>(&'a Option<String>);
impl std::fmt::Display for Ses<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .as_ref()
            .map_or(Ok(()), |s| write!(f, " session {s}"))
    }
}

/// Why a call trapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrapKind {
    /// More than the `memory_mb` limit.
    Memory,
    /// More than the `cpu_ms_per_call` limit.
    Cpu,
    /// The plugin gave up by itself (panic, `unreachable`).
    Unreachable,
    /// Call stack exhausted.
    Stack,
    /// More data in one call than the host takes.
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
            TrapKind::Unreachable => "unreachable",
            TrapKind::Stack => "stack",
            TrapKind::Data => "data",
            TrapKind::Other => "other",
        }
    }
}

/// The kinds of failure. Each message says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Cause {
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
    #[error("{file}: {why}")]
    WrongWorld { file: String, why: String },
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
    #[error("settings: {why}")]
    Settings { why: String },
    #[error("refused the session: {reason}")]
    Refused { reason: String },
    #[error("{why}")]
    Description { why: String },
    #[error(
        "all {limit} plugin instances are in use: sessions must end first, or raise the limit (and vm.max_map_count)"
    )]
    Busy { limit: u32 },
    #[error("broke the contract: {why}; report this to the plugin's author")]
    Contract { why: String },
    #[error("was ended by an earlier trap of this session")]
    Ended,
    #[error("cannot run plugins here: {why}")]
    Host { why: String },
}

impl PluginError {
    pub(crate) fn new(plugin: impl Into<String>, cause: Cause) -> Self {
        PluginError {
            plugin: plugin.into(),
            version: None,
            session: None,
            cause,
        }
    }

    pub(crate) fn version(mut self, v: impl Into<String>) -> Self {
        self.version = Some(v.into());
        self
    }

    pub(crate) fn session(mut self, s: impl Into<String>) -> Self {
        self.session = Some(s.into());
        self
    }

    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// The plugin's own words if it refused the session, for the user.
    pub fn refusal(&self) -> Option<&str> {
        match &self.cause {
            Cause::Refused { reason } => Some(reason),
            _ => None,
        }
    }

    /// The kind of trap, if it is one.
    pub fn trap(&self) -> Option<TrapKind> {
        match self.cause {
            Cause::Trap { kind, .. } => Some(kind),
            _ => None,
        }
    }
}
