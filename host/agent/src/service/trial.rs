//! A new version of a plugin is on trial for its first connections: where too many of them trap, the old one is back.

use postern_config::Rollback;
use postern_plugin::Plugin;

/// One version on trial, and what it replaced.
pub struct Trial {
    pub new: Plugin,
    pub old: Plugin,
    rule: Rollback,
}

/// What has become of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not all of the first connections have ended.
    Open,
    Passed,
    Failed {
        /// Of the first connections, those that trapped.
        trapped: u64,
    },
}

impl Trial {
    pub fn new(new: Plugin, old: Plugin, rule: Rollback) -> Self {
        new.watch_first(u64::from(rule.of));
        Trial { new, old, rule }
    }

    /// Connections have ended well, and none has trapped.
    pub fn looks_good(&self) -> bool {
        let first = self.new.first_connections();
        first.trapped == 0 && first.ended > 0
    }

    pub fn verdict(&self) -> Verdict {
        let first = self.new.first_connections();
        verdict(&self.rule, first.ended, first.trapped)
    }
}

fn verdict(rule: &Rollback, ended: u64, trapped: u64) -> Verdict {
    if trapped > u64::from(rule.traps) {
        Verdict::Failed { trapped }
    } else if ended >= u64::from(rule.of) {
        Verdict::Passed
    } else {
        Verdict::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_share_of_the_first_fails() {
        let rule = Rollback { traps: 3, of: 10 };
        assert_eq!(verdict(&rule, 3, 3), Verdict::Open);
        assert_eq!(verdict(&rule, 4, 4), Verdict::Failed { trapped: 4 });
        assert_eq!(verdict(&rule, 10, 3), Verdict::Passed);
        let never = Rollback { traps: 10, of: 10 };
        assert_eq!(verdict(&never, 10, 10), Verdict::Passed);
    }
}
