//! Who is connected through the helper path, so that a lock ends their sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// Live sessions by user.
#[derive(Clone, Default)]
pub(crate) struct Live {
    users: Arc<Mutex<HashMap<String, Entry>>>,
}

struct Entry {
    token: CancellationToken,
    sessions: usize,
}

/// One session; cancelled when its user is locked.
pub(crate) struct Session {
    live: Live,
    user: String,
    pub token: CancellationToken,
}

impl Live {
    pub fn enter(&self, user: &str) -> Session {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = users.entry(user.to_owned()).or_insert_with(|| Entry {
            token: CancellationToken::new(),
            sessions: 0,
        });
        entry.sessions += 1;
        Session {
            live: self.clone(),
            user: user.to_owned(),
            token: entry.token.clone(),
        }
    }

    /// Ends the sessions of a user; returns how many there were.
    pub fn cut(&self, user: &str) -> usize {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.remove(user).map_or(0, |entry| {
            entry.token.cancel();
            entry.sessions
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut users = self
            .live
            .users
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // After a cut the entry is a new one, of which this session is no part.
        if self.token.is_cancelled() {
            return;
        }
        if let Some(entry) = users.get_mut(&self.user) {
            entry.sessions -= 1;
            if entry.sessions == 0 {
                users.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_ends_the_sessions_of_one_user_once() {
        let live = Live::default();
        let (a1, a2, b) = (live.enter("alice"), live.enter("alice"), live.enter("bob"));
        assert_eq!(live.cut("alice"), 2);
        assert!(a1.token.is_cancelled() && a2.token.is_cancelled() && !b.token.is_cancelled());
        let again = live.enter("alice");
        drop((a1, a2));
        assert!(!again.token.is_cancelled());
        assert_eq!(live.cut("alice"), 1);
        drop(b);
        assert_eq!(live.cut("bob"), 0);
    }
}
