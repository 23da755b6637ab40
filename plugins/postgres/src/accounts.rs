//! Accounts that are made for users and taken away again: the tasks of `wit/accounts.wit`, as a conversation with the server by
//! simple queries.
//!
//! An account is ours if it has one of two roles that mark it, and no power over the server. Whoever changes one holds an
//! advisory lock on it; whoever needs it as it is, until its session is there to be seen in `pg_stat_activity`, shares the
//! lock. Both end with the connection, so nobody has to be alive for others to go on. Everything that is decided by is read
//! under the lock.

mod account;
mod reply;
mod sql;

use crate::startup::LONGEST_KEY;
use crate::wire::{self, Broken};
use account::{Fit, Seen, Wanted, event, list, names};
use postern_sdk::AuditEvent;
use postern_sdk::accounts::{Administrator, Afterwards, Departure, Task};
use postern_sdk::codec::Step;
use postern_sdk::event::Event;
use postern_sdk::input::Input;
pub use reply::Failure;
use reply::Reply;
use sql::{Change, Name};

/// How often it is looked whether what a session left is gone: some five seconds.
const LOOKS: u32 = 200;

/// One task.
#[derive(Debug)]
pub struct Work {
    admin: Administrator,
    task: Todo,
    at: At,
    reply: Reply,
    /// Accounts that a sweep has still to look at.
    rest: Vec<Name>,
    /// What went wrong in a sweep, which goes on.
    wrong: Vec<String>,
}

/// What is to be done, with names that are some.
#[derive(Debug)]
enum Todo {
    Admit(Wanted),
    Dismiss(Name, Option<u32>),
    Sweep,
}

/// Which answer is awaited.
#[derive(Debug)]
enum At {
    Settings,
    // Admit.
    Shared,
    Alone,
    /// The mark is being made.
    Mark(Seen),
    Changed(Vec<AuditEvent>),
    Handed,
    /// None: the client has been told.
    Ready,
    // Dismiss.
    Terminated,
    Looked(u32),
    Locked,
    // Sweep.
    Listed,
    Tried(Name),
    // Both.
    Taken(Name, Taking),
    Dropped(Name, Taking),
    Over,
}

/// What is told when it is done.
#[derive(Debug, Clone)]
struct Taking {
    afterwards: Afterwards,
    /// Roles that it had.
    roles: Vec<String>,
    /// It could do something.
    able: bool,
}

impl Work {
    pub fn new(admin: Administrator, task: Task) -> Result<Work, String> {
        let task = match task {
            Task::Admit(account) => Todo::Admit(Wanted::new(account, &admin.user)?),
            Task::Dismiss(Departure { account, key }) => {
                // A key begins with the process that serves the session.
                let key = key.filter(|key| key.len() <= LONGEST_KEY);
                let pid = key.and_then(|key| wire::u32_of(&key).map(|(pid, _)| pid));
                Todo::Dismiss(Name::new(&account)?, pid)
            }
            Task::Sweep => Todo::Sweep,
        };
        Ok(Work {
            admin,
            task,
            at: At::Settings,
            reply: Reply::default(),
            rest: vec![],
            wrong: vec![],
        })
    }

    /// Whom to log in as.
    pub fn user(&self) -> &str {
        &self.admin.user
    }

    /// The startup message.
    pub fn startup(&self) -> Vec<u8> {
        let Administrator { user, database } = &self.admin;
        let parameters = format!(
            "user\0{user}\0database\0{database}\0application_name\0postern\0client_encoding\0UTF8\0\0"
        );
        wire::untyped(3 << 16, parameters.as_bytes())
    }

    /// The administrator is logged in.
    pub fn begin(&mut self) -> Step {
        query(sql::SETTINGS)
    }

    /// Reads what the server answers.
    pub fn server(&mut self, input: &mut Input<'_>) -> Result<(), Broken> {
        while !matches!(self.at, At::Over) && self.reply.read(input)? {
            let reply = std::mem::take(&mut self.reply);
            for step in self.turn(&reply) {
                input.push(step);
            }
        }
        Ok(())
    }

    /// The host lets go of the account.
    pub fn released(&mut self) -> Vec<Step> {
        match std::mem::replace(&mut self.at, At::Over) {
            At::Ready => self.done(),
            _ => self.failed("the session has ended meanwhile"),
        }
    }

    /// The server has closed the connection.
    pub fn cut(&mut self) -> Vec<Step> {
        let why = match &self.reply.failure {
            Some(failure) => format!("the database server closed the connection: {failure}"),
            None => "the database server closed the connection".to_owned(),
        };
        self.failed(why)
    }

    fn done(&mut self) -> Vec<Step> {
        self.at = At::Over;
        vec![
            Step::ToUpstream(wire::message(b'X', &[])),
            Step::Close(None),
        ]
    }

    fn failed(&mut self, why: impl Into<String>) -> Vec<Step> {
        self.at = At::Over;
        vec![Step::Close(Some(why.into()))]
    }

    /// Asks, and waits for the answer.
    fn ask(&mut self, at: At, sql: &str) -> Vec<Step> {
        self.at = at;
        vec![query(sql)]
    }

    /// An answer is complete.
    fn turn(&mut self, reply: &Reply) -> Vec<Step> {
        match (std::mem::replace(&mut self.at, At::Over), &reply.failure) {
            (At::Mark(_), Some(f)) if !is_there_already(f) => self.failed(explained(f)),
            (At::Mark(seen), _) => self.change(&seen),
            (At::Dropped(name, taking), failure) => self.dropped(name, taking, failure.as_ref()),
            (At::Tried(name) | At::Taken(name, _), Some(f)) if matches!(self.task, Todo::Sweep) => {
                self.wrong(&name, &explained(f))
            }
            (_, Some(f)) => self.failed(explained(f)),
            (At::Settings, None) => self.logged_in(reply),
            (At::Shared, None) => self.admit(Seen::read(reply), false),
            (At::Alone, None) => self.admit(Seen::read(reply), true),
            (At::Changed(events), None) => self.changed(events, reply),
            (At::Handed, None) => self.ready(),
            (At::Terminated, None) => self.look(0),
            (At::Looked(looks), None) => self.looked(looks, reply),
            (At::Locked, None) => match &self.task {
                Todo::Dismiss(name, _) => self.take(name.clone(), &Seen::read(reply)),
                _ => self.done(),
            },
            (At::Listed, None) => {
                let names = reply.names("idle");
                self.rest = names.iter().rev().flat_map(|n| Name::new(n)).collect();
                self.next()
            }
            (At::Tried(name), None) => {
                let locked = reply.names("lock").iter().any(|is| is == "t");
                if locked {
                    self.take(name, &Seen::read(reply))
                } else {
                    self.next()
                }
            }
            (At::Taken(name, taking), None) => self.taken(name, taking, reply),
            (At::Ready | At::Over, None) => self.failed("the server answers what was not asked"),
        }
    }

    fn logged_in(&mut self, reply: &Reply) -> Vec<Step> {
        let is = |row: &[String], n: usize| row.get(n).is_some_and(|v| v == "t");
        let may = reply
            .rows("admin")
            .any(|row| is(row, 0) || is(row, 1) && is(row, 2));
        if !may {
            let user = self.admin.user.clone();
            return self.failed(format!(
                "the administrator {user:?} may not do at the server what it is for; its operator runs there: ALTER ROLE \"{user}\" CREATEROLE; GRANT pg_signal_backend TO \"{user}\""
            ));
        }
        match &self.task {
            Todo::Admit(wanted) => {
                let sql = [sql::share(&wanted.name), sql::state(&wanted.name)].join("; ");
                self.ask(At::Shared, &sql)
            }
            Todo::Dismiss(name, Some(pid)) => {
                // Before the lock: the session may be what keeps it.
                let sql = sql::terminate(name, *pid);
                self.ask(At::Terminated, &sql)
            }
            Todo::Dismiss(_, None) => self.lock(),
            Todo::Sweep => self.ask(At::Listed, &sql::idle()),
        }
    }

    /// The account is this. `alone`: it may be changed.
    fn admit(&mut self, seen: Seen, alone: bool) -> Vec<Step> {
        let Todo::Admit(wanted) = &self.task else {
            return self.done();
        };
        match wanted.compare(&seen) {
            Fit::Refused(why) => self.failed(why),
            Fit::Fits if alone => {
                let sql = sql::share_after_alone(&wanted.name);
                self.ask(At::Handed, &sql)
            }
            Fit::Fits => self.ready(),
            Fit::Differs if !alone => {
                let lock = sql::alone_after_share(&wanted.name);
                let sql = [lock, sql::state(&wanted.name)].join("; ");
                self.ask(At::Alone, &sql)
            }
            Fit::Differs => {
                let mark = sql::mark(wanted.afterwards);
                if seen.known_marks.iter().any(|known| known == mark) {
                    return self.change(&seen);
                }
                self.ask(At::Mark(seen), &sql::make_mark(mark))
            }
        }
    }

    fn change(&mut self, seen: &Seen) -> Vec<Step> {
        let Todo::Admit(wanted) = &self.task else {
            return self.done();
        };
        match wanted.change(seen) {
            Ok((sql, events)) => self.ask(At::Changed(events), &sql),
            Err(why) => self.failed(why),
        }
    }

    fn changed(&mut self, events: Vec<AuditEvent>, reply: &Reply) -> Vec<Step> {
        let Todo::Admit(wanted) = &self.task else {
            return self.done();
        };
        let mut roles = reply.names("has");
        roles.retain(|role| !sql::is_mark(role));
        roles.sort();
        // The server only warns where it does not do what it is told.
        if !wanted.has(&roles) {
            let why = format!(
                "account {:?} has other roles at the server than it should have ({}); somebody else granted them, and has to revoke them",
                wanted.name.as_str(),
                roles.join(", ")
            );
            return self.failed(why);
        }
        let sql = sql::share_after_alone(&wanted.name);
        let mut steps: Vec<Step> = events.into_iter().map(Step::Event).collect();
        steps.extend(self.ask(At::Handed, &sql));
        steps
    }

    fn ready(&mut self) -> Vec<Step> {
        self.at = At::Ready;
        vec![Step::ToClient(vec![1])]
    }

    fn look(&mut self, looks: u32) -> Vec<Step> {
        match &self.task {
            Todo::Dismiss(name, Some(pid)) => {
                let sql = sql::is_there(name, *pid);
                self.ask(At::Looked(looks), &sql)
            }
            _ => self.lock(),
        }
    }

    fn looked(&mut self, looks: u32, reply: &Reply) -> Vec<Step> {
        if reply.rows("there").next().is_none() {
            self.lock()
        } else if looks < LOOKS {
            self.look(looks + 1)
        } else {
            self.failed("what the session was doing at the server does not end")
        }
    }

    fn lock(&mut self) -> Vec<Step> {
        match &self.task {
            Todo::Dismiss(name, _) => {
                let sql = [sql::alone(name), sql::state(name)].join("; ");
                self.ask(At::Locked, &sql)
            }
            _ => self.done(),
        }
    }

    /// The next account of a sweep; the end of any other task.
    fn next(&mut self) -> Vec<Step> {
        if let Some(name) = self.rest.pop() {
            let sql = [sql::alone_if_free(&name), sql::state(&name)].join("; ");
            return self.ask(At::Tried(name), &sql);
        }
        if self.wrong.is_empty() {
            return self.done();
        }
        let why = self.wrong.join("; ");
        self.failed(why)
    }

    fn wrong(&mut self, name: &Name, why: &str) -> Vec<Step> {
        let why = format!("account {:?}: {why}", name.as_str());
        if matches!(self.task, Todo::Sweep) {
            self.wrong.push(why);
            self.next()
        } else {
            self.failed(why)
        }
    }

    /// Takes from the account what it was given, where it is ours and nobody uses it.
    fn take(&mut self, name: Name, seen: &Seen) -> Vec<Step> {
        let Some(afterwards) = seen.ours().filter(|_| seen.sessions == 0) else {
            return self.next();
        };
        let taking = Taking {
            afterwards,
            roles: seen.roles.clone(),
            able: seen.can_login || !seen.roles.is_empty(),
        };
        if taking.able || !seen.members.is_empty() {
            let change = Change {
                account: &name,
                create: false,
                grant: vec![],
                revoke: names(&seen.roles),
                members: names(&seen.members),
                login: false,
            };
            let sql = change.sql();
            self.ask(At::Taken(name, taking), &sql)
        } else {
            self.remove(name, taking)
        }
    }

    fn taken(&mut self, name: Name, taking: Taking, reply: &Reply) -> Vec<Step> {
        let mut left = reply.names("has");
        left.retain(|role| !sql::is_mark(role));
        if !left.is_empty() {
            let why = format!(
                "it still has roles ({}): somebody else granted them, and has to revoke them",
                left.join(", ")
            );
            return self.wrong(&name, &why);
        }
        let mut steps = Vec::new();
        if !taking.roles.is_empty() {
            let event = self.event("user.revoke", name.as_str());
            let event = event.json("db_roles", list(&taking.roles));
            steps.push(Step::Event(event.end()));
        }
        steps.extend(self.remove(name, taking));
        steps
    }

    fn remove(&mut self, name: Name, taking: Taking) -> Vec<Step> {
        if taking.afterwards == Afterwards::Drop {
            let sql = sql::drop(&name);
            return self.ask(At::Dropped(name, taking), &sql);
        }
        let mut steps = Vec::new();
        if taking.able {
            let event = self.event("user.disable", name.as_str());
            steps.push(Step::Event(event.end()));
        }
        steps.extend(self.next());
        steps
    }

    fn dropped(&mut self, name: Name, taking: Taking, failure: Option<&Failure>) -> Vec<Step> {
        let mut steps = Vec::new();
        match failure {
            None => steps.push(Step::Event(self.event("user.drop", name.as_str()).end())),
            // It owns something. That is known where it has been tried before.
            Some(f) if f.sqlstate == "2BP01" => {
                if taking.able {
                    let event = self.event("user.disable", name.as_str());
                    let event = event.text("not_dropped", &f.to_string());
                    steps.push(Step::Event(event.end()));
                }
            }
            Some(f) => return self.wrong(&name, &explained(f)),
        }
        steps.extend(self.next());
        steps
    }

    fn event(&self, what: &str, account: &str) -> Event {
        event(what, account).mark("swept", matches!(self.task, Todo::Sweep))
    }
}

fn query(sql: &str) -> Step {
    Step::ToUpstream(wire::message(b'Q', &[sql.as_bytes(), b"\0"].concat()))
}

fn is_there_already(failure: &Failure) -> bool {
    matches!(failure.sqlstate.as_str(), "42710" | "23505")
}

fn explained(failure: &Failure) -> String {
    match failure.sqlstate.as_str() {
        "55P03" => "somebody else is changing it at the server for a long time; try again".into(),
        _ => format!("the database server says: {failure}"),
    }
}

#[cfg(test)]
mod tests;
