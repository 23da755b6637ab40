//! An account as it shall be and as it is, and the change from one to the other.

use super::reply::Reply;
use super::sql::{self, Change, Name};
use postern_sdk::AuditEvent;
use postern_sdk::accounts::{Account, Afterwards};
use postern_sdk::event::{Event, json};

/// The account as it shall be.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub name: Name,
    /// Sorted.
    pub roles: Vec<Name>,
    pub afterwards: Afterwards,
}

/// What there is of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub exists: bool,
    pub can_login: bool,
    /// It has power over the server: no account of ours has.
    pub powerful: bool,
    pub sessions: u32,
    /// What becomes of it; `None`: it is not ours.
    pub afterwards: Option<Afterwards>,
    /// Without the marks, sorted.
    pub roles: Vec<String>,
    pub members: Vec<String>,
    /// Marks that it has, and that there are.
    pub marks: Vec<String>,
    pub known_marks: Vec<String>,
}

/// Whether an account is as it shall be.
pub enum Fit {
    Fits,
    Differs,
    Refused(String),
}

impl Wanted {
    pub fn new(account: Account, admin: &str) -> Result<Wanted, String> {
        let mut roles = Vec::new();
        for role in &account.roles {
            if sql::is_mark(role) || *role == admin || *role == account.name {
                return Err(format!(
                    "the roles of the user grant {role:?} by db_roles, which no account of a user may have"
                ));
            }
            roles.push(Name::new(role)?);
        }
        roles.sort();
        roles.dedup();
        Ok(Wanted {
            name: Name::new(&account.name)?,
            roles,
            afterwards: account.afterwards,
        })
    }

    pub fn has(&self, roles: &[String]) -> bool {
        self.roles.iter().map(Name::as_str).eq(roles)
    }

    pub fn compare(&self, seen: &Seen) -> Fit {
        let name = self.name.as_str();
        if !seen.exists {
            return Fit::Differs;
        }
        let Some(afterwards) = seen.ours() else {
            return Fit::Refused(format!(
                "account {name:?} exists at the server and was not made by Postern, which leaves it alone; its operator removes or renames it there, or a role without create_db_user names it in db_users"
            ));
        };
        match self.has(&seen.roles) {
            true if seen.can_login && afterwards == self.afterwards => Fit::Fits,
            false if seen.sessions > 0 => Fit::Refused(format!(
                "account {name:?} has sessions at this server with other roles ({}); end them first",
                seen.roles.join(", ")
            )),
            _ => Fit::Differs,
        }
    }

    /// The change from `seen`, and what is told when it is done.
    pub fn change(&self, seen: &Seen) -> Result<(String, Vec<AuditEvent>), String> {
        let wanted: Vec<&str> = self.roles.iter().map(Name::as_str).collect();
        let mark = sql::mark(self.afterwards);
        let had = |role: &str| seen.roles.iter().any(|has| has == role);
        let granted: Vec<String> = wanted
            .iter()
            .filter(|role| !had(role))
            .map(|role| (*role).to_owned())
            .collect();
        let too_many = |role: &&String| !wanted.contains(&role.as_str());
        let revoked: Vec<String> = seen.roles.iter().filter(too_many).cloned().collect();
        let other_marks = seen.marks.iter().filter(|has| *has != mark).cloned();
        let all_revoked: Vec<String> = revoked.iter().cloned().chain(other_marks).collect();
        let mut grant = names(&granted);
        if !seen.marks.iter().any(|has| has == mark) {
            grant.insert(0, Name::new(mark)?);
        }
        let change = Change {
            account: &self.name,
            create: !seen.exists,
            grant,
            revoke: names(&all_revoked),
            members: names(&seen.members),
            login: true,
        };
        let name = self.name.as_str();
        let mut events = Vec::new();
        if !seen.exists {
            let afterwards = match self.afterwards {
                Afterwards::Keep => "keep",
                Afterwards::Drop => "drop",
            };
            events.push(event("user.create", name).text("afterwards", afterwards));
        } else if !seen.can_login {
            events.push(event("user.enable", name));
        }
        for (what, roles) in [("user.revoke", revoked), ("user.grant", granted)] {
            if !roles.is_empty() {
                events.push(event(what, name).json("db_roles", list(&roles)));
            }
        }
        Ok((change.sql(), events.into_iter().map(Event::end).collect()))
    }
}

impl Seen {
    pub fn read(reply: &Reply) -> Seen {
        let account = reply.rows("account").next();
        let column = |n: usize| {
            account
                .and_then(|row| row.get(n))
                .map_or("", String::as_str)
        };
        let (marks, mut roles): (Vec<String>, Vec<String>) = reply
            .names("has")
            .into_iter()
            .partition(|role| sql::is_mark(role));
        roles.sort();
        let marked = |afterwards| marks.iter().any(|has| has == sql::mark(afterwards));
        let by_mark = [Afterwards::Drop, Afterwards::Keep];
        Seen {
            exists: account.is_some(),
            can_login: column(0) == "t",
            // What can't be read is not ours.
            powerful: column(1) != "f",
            sessions: column(2).parse().unwrap_or(u32::MAX),
            afterwards: by_mark.into_iter().find(|afterwards| marked(*afterwards)),
            roles,
            members: reply.names("member"),
            known_marks: reply.names("mark"),
            marks,
        }
    }

    /// What becomes of it, where it is an account that was made by a task.
    pub fn ours(&self) -> Option<Afterwards> {
        self.afterwards.filter(|_| self.exists && !self.powerful)
    }
}

pub fn event(what: &str, account: &str) -> Event {
    Event::new(what).text("account", account)
}

pub fn list(names: &[String]) -> String {
    let all: Vec<String> = names.iter().map(|name| json(name)).collect();
    format!("[{}]", all.join(","))
}

/// What the server has told us itself.
pub fn names(names: &[String]) -> Vec<Name> {
    names.iter().flat_map(|name| Name::new(name)).collect()
}
