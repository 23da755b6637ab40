//! What can go wrong with a script, in words for a plugin's author.

use crate::error::PluginError;

/// Why a script was not played to its end. Names the session and the event where there is one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ScriptError {
    /// The file can't be read as a script.
    #[error("{0}")]
    NotAScript(String),
    /// The script asks for something that can't happen there, or the session ended otherwise than it says.
    #[error("{place}: {why}")]
    Script { place: String, why: String },
    /// The plugin answered something else.
    #[error(
        "{place}: the plugin answered something else than expected (- expected, + answered)\n{diff}"
    )]
    Differs { place: String, diff: String },
    /// The plugin failed, or broke the contract.
    #[error("{place}: {error}")]
    Plugin { place: String, error: PluginError },
}

/// An event as it is shown (empty where that is not known), and its number; 0 for the opening that the script did not mention.
pub(super) type Place = (String, usize);

fn place(session: &str, event: Option<Place>) -> String {
    match event {
        None => format!("session {session:?}"),
        Some((shown, 0)) => format!("session {session:?}, {shown}"),
        Some((shown, n)) if shown.is_empty() => format!("session {session:?}, event {n}"),
        Some((shown, n)) => format!("session {session:?}, event {n} ({shown})"),
    }
}

impl ScriptError {
    pub(super) fn at(session: &str, event: Option<Place>, why: impl Into<String>) -> Self {
        ScriptError::Script {
            place: place(session, event),
            why: why.into(),
        }
    }

    pub(super) fn differs(session: &str, event: Place, diff: String) -> Self {
        ScriptError::Differs {
            place: place(session, Some(event)),
            diff,
        }
    }

    pub(super) fn plugin(session: &str, event: Option<Place>, error: PluginError) -> Self {
        ScriptError::Plugin {
            place: place(session, event),
            error,
        }
    }
}

impl serde::Serialize for ScriptError {
    /// The message.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Trouble of which the place is not known yet.
pub(super) enum Trouble {
    Script(String),
    Plugin(PluginError),
}

impl Trouble {
    pub(super) fn at(self, session: &str, event: Option<Place>) -> ScriptError {
        match self {
            Trouble::Script(why) => ScriptError::at(session, event, why),
            Trouble::Plugin(e) => ScriptError::plugin(session, event, e),
        }
    }
}
