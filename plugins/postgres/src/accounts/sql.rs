//! The SQL of accounts. Made of checked names alone, each quoted; what is read comes back in rows that begin with a word of ours.

use postern_sdk::accounts::Afterwards;

/// `NAMEDATALEN - 1`: what is longer would be cut, and mean another role.
const LONGEST: usize = 63;
/// The first half of our advisory locks' keys, `post`; the second is the account's hash. They end with the connection.
const LOCKS: u32 = 0x706f_7374;

/// Roles that mark an account as ours, and say what becomes of it.
const KEEP: &str = "postern_auto_keep";
const DROP: &str = "postern_auto_drop";

pub fn mark(afterwards: Afterwards) -> &'static str {
    match afterwards {
        Afterwards::Keep => KEEP,
        Afterwards::Drop => DROP,
    }
}

pub fn is_mark(role: &str) -> bool {
    role == KEEP || role == DROP
}

/// For every connection. The search path is first: an administrator must not run what others have put into a schema.
pub const SETTINGS: &str = "SET search_path = pg_catalog; SET standard_conforming_strings = on; \
    SET lock_timeout = '5s'; SET statement_timeout = '8s'; SET client_min_messages = error; \
    SELECT 'admin', rolsuper, rolcreaterole, pg_has_role('pg_signal_backend', 'usage') FROM pg_roles WHERE rolname = current_user";

/// The name of a role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    pub fn new(name: &str) -> Result<Name, String> {
        if name.is_empty() || name.len() > LONGEST || name.contains('\0') {
            return Err(format!(
                "{name:?} can't be the name of a role at the server: it has to have 1 to {LONGEST} bytes"
            ));
        }
        Ok(Name(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As an identifier.
    fn ident(&self) -> String {
        format!("\"{}\"", self.0.replace('"', "\"\""))
    }

    /// As a text; right whatever the server thinks of backslashes.
    fn text(&self) -> String {
        let doubled = self.0.replace('\\', "\\\\").replace('\'', "''");
        format!("E'{doubled}'")
    }

    fn lock(&self) -> String {
        format!("{LOCKS}, hashtext({})", self.text())
    }
}

/// For as long as the account has to stay as it is.
pub fn share(account: &Name) -> String {
    format!("SELECT pg_advisory_lock_shared({})", account.lock())
}

/// To change the account, after [`share`].
pub fn alone_after_share(account: &Name) -> String {
    let lock = account.lock();
    format!("SELECT pg_advisory_unlock_shared({lock}); SELECT pg_advisory_lock({lock})")
}

pub fn alone(account: &Name) -> String {
    format!("SELECT pg_advisory_lock({})", account.lock())
}

/// As [`alone`], but only if nobody else has it, and with none of those before.
pub fn alone_if_free(account: &Name) -> String {
    format!(
        "SELECT pg_advisory_unlock_all(); SELECT 'lock', pg_try_advisory_lock({})",
        account.lock()
    )
}

/// From [`alone`] to [`share`], with no moment in between.
pub fn share_after_alone(account: &Name) -> String {
    let lock = account.lock();
    format!("SELECT pg_advisory_lock_shared({lock}); SELECT pg_advisory_unlock({lock})")
}

/// What there is of the account. Of other people's sessions an administrator sees little more than whose they are, so parallel
/// workers count; they end before what they work for.
pub fn state(account: &Name) -> String {
    let name = account.text();
    format!(
        "SELECT 'account', r.rolcanlogin, \
         r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls, \
         (SELECT count(*) FROM pg_stat_activity s WHERE s.usesysid = r.oid) \
         FROM pg_roles r WHERE r.rolname = {name}; \
         SELECT 'mark', rolname FROM pg_roles WHERE rolname IN ('{KEEP}', '{DROP}'); \
         {}; \
         SELECT DISTINCT 'member', a.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid \
         JOIN pg_roles a ON a.oid = m.member WHERE g.rolname = {name} AND a.rolname <> current_user",
        roles(account)
    )
}

/// The roles that it has.
fn roles(account: &Name) -> String {
    format!(
        "SELECT DISTINCT 'has', g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid \
         JOIN pg_roles a ON a.oid = m.member WHERE a.rolname = {}",
        account.text()
    )
}

pub fn make_mark(mark: &str) -> String {
    format!("CREATE ROLE {mark} NOLOGIN")
}

/// Ends what a session has left at the server.
pub fn terminate(account: &Name, pid: u32) -> String {
    format!(
        "SELECT pg_terminate_backend(s.pid) FROM pg_stat_activity s JOIN pg_roles r ON r.oid = s.usesysid \
         WHERE s.pid = {pid} AND r.rolname = {}",
        account.text()
    )
}

/// Whether it is still there, after a moment.
pub fn is_there(account: &Name, pid: u32) -> String {
    format!(
        "SELECT pg_sleep(0.02); SELECT 'there' FROM pg_stat_activity s JOIN pg_roles r ON r.oid = s.usesysid \
         WHERE s.pid = {pid} AND r.rolname = {}",
        account.text()
    )
}

/// A change of one account, all of it or nothing: the statements of one query are one transaction.
#[derive(Debug)]
pub struct Change<'a> {
    pub account: &'a Name,
    pub create: bool,
    pub grant: Vec<Name>,
    pub revoke: Vec<Name>,
    /// Who may become the account, and shall not.
    pub members: Vec<Name>,
    pub login: bool,
}

impl Change<'_> {
    pub fn sql(&self) -> String {
        let account = self.account.ident();
        let mut sql = Vec::new();
        if self.create {
            sql.push(format!("CREATE ROLE {account} NOLOGIN"));
        }
        for role in &self.revoke {
            sql.push(format!("REVOKE {} FROM {account}", role.ident()));
        }
        for member in &self.members {
            sql.push(format!("REVOKE {account} FROM {}", member.ident()));
        }
        for role in &self.grant {
            sql.push(format!("GRANT {} TO {account}", role.ident()));
        }
        // Logins are by certificate; users could have set a password.
        let login = if self.login { "LOGIN" } else { "NOLOGIN" };
        sql.push(format!("ALTER ROLE {account} {login} PASSWORD NULL"));
        sql.push(roles(self.account));
        sql.join("; ")
    }
}

pub fn drop(account: &Name) -> String {
    format!("DROP ROLE {}", account.ident())
}

/// Accounts of ours that nobody uses and that have something left to take; those that can do something first.
pub fn idle() -> String {
    format!(
        "SELECT 'idle', a.rolname FROM pg_roles a WHERE a.rolname <> current_user \
         AND NOT (a.rolsuper OR a.rolcreaterole OR a.rolcreatedb OR a.rolreplication OR a.rolbypassrls) \
         AND EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid \
         WHERE m.member = a.oid AND g.rolname IN ('{KEEP}', '{DROP}')) \
         AND (a.rolcanlogin OR EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid \
         WHERE m.member = a.oid AND g.rolname <> '{KEEP}')) \
         AND NOT EXISTS (SELECT FROM pg_stat_activity s WHERE s.usesysid = a.oid) \
         ORDER BY a.rolcanlogin DESC, a.rolname LIMIT 500"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        Name::new(name).unwrap()
    }

    #[test]
    fn names_are_checked_and_quoted() {
        for bad in ["", "a\0b", &"x".repeat(64), &"ä".repeat(32)] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
        assert!(Name::new(&"x".repeat(63)).is_ok());
        let nasty = name(r#"x"; DROP ROLE y; --'\"#);
        assert_eq!(nasty.ident(), r#""x""; DROP ROLE y; --'\""#);
        assert_eq!(nasty.text(), r#"E'x"; DROP ROLE y; --''\\'"#);
    }

    #[test]
    fn a_change_is_one_query() {
        let alice = name("alice");
        let change = Change {
            account: &alice,
            create: true,
            grant: vec![name("postern_auto_drop"), name("Reader")],
            revoke: vec![name("old")],
            members: vec![name("bob")],
            login: true,
        };
        let sql = change.sql();
        let (change, read) = sql.split_once("; SELECT").unwrap();
        assert_eq!(
            change,
            r#"CREATE ROLE "alice" NOLOGIN; REVOKE "old" FROM "alice"; REVOKE "alice" FROM "bob"; GRANT "postern_auto_drop" TO "alice"; GRANT "Reader" TO "alice"; ALTER ROLE "alice" LOGIN PASSWORD NULL"#
        );
        assert!(read.ends_with("a.rolname = E'alice'"), "{read}");
    }
}
