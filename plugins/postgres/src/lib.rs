//! PostgreSQL, versions 3.0 to 3.2 of its protocol, and whatever else speaks it.
//!
//! A client begins inside of Postern's TLS (`startup`): what it names as user and database the host decides about, then the server
//! is dialled, TLS begun, and the login answered by the host (`login`). From then on all passes unchanged, and what
//! is asked is put on record (`session`). A request to cancel comes on a connection of its own and has one.
#![forbid(unsafe_code)]

mod accounts;
mod audit;
mod lexer;
mod login;
mod pending;
mod redact;
mod session;
mod settings;
mod startup;
mod statements;
#[cfg(test)]
mod testing;
mod wire;

use accounts::Work;
use login::{Login, Next};
use postern_sdk::accounts::{Administrator, Task};
use postern_sdk::codec::{Codec, Step, StepResult};
use postern_sdk::input::{Input, Rest};
use postern_sdk::{Endpoint, Manifest, Side, Wants, export_accounts, export_codec};
use session::Session;
use settings::{PostgresSettings, UpstreamTls};
use startup::{First, Refused, Startup};
use wire::Broken;

/// One connection.
pub struct Postgres {
    upstream_tls: UpstreamTls,
    phase: Phase,
    session: Session,
    /// There is no client, but something to be done as the administrator.
    work: Option<Box<Work>>,
    /// Of messages that pass in parts.
    from_client: Rest,
    from_server: Rest,
}

/// How far it is.
enum Phase {
    /// Nothing is known yet but which encryption the client has asked for.
    Start {
        ssl: bool,
        gss: bool,
    },
    /// May it?
    Authorizing(Startup),
    /// Whose session is it to cancel?
    FindingKey,
    Connecting(Goal),
    /// The server has been asked for TLS.
    OfferingTls(Goal),
    StartingTls(Goal),
    Login(Login),
    Session,
    /// The administrator is logged in.
    Accounts,
    /// The request is sent; the server closes when it has done it.
    Cancelling,
    Over,
}

impl Phase {
    /// The client may ask.
    fn is_session(&self) -> bool {
        match self {
            Phase::Login(login) => login.authenticated,
            phase => matches!(phase, Phase::Session),
        }
    }
}

/// What the connection to the server is for.
enum Goal {
    Session(Startup),
    /// With the server's key.
    Cancel(Vec<u8>),
    Accounts,
}

/// Could not reach the server, or not agree with it.
const NO_CONNECTION: &str = "08006";
const BROKEN: &str = "08P01";

impl Codec for Postgres {
    type Settings = PostgresSettings;

    fn manifest() -> Manifest {
        Manifest {
            kind: "postgres",
            protocol: "PostgreSQL 3.0 to 3.2",
            version: env!("CARGO_PKG_VERSION"),
            summary: "PostgreSQL and its kin: logs in for the user, puts every query on record",
            principals: &[
                ("db_users", "database user that the session logs in as"),
                ("db_names", "database that it uses"),
                ("db_options", "what else it may: replication"),
                (
                    "db_roles",
                    "the server's roles that an account gets which is made for the user",
                ),
            ],
            settings_schema: include_str!("settings.schema.json"),
            wants: Wants {
                endpoints: &[Endpoint::Main, Endpoint::Cancel, Endpoint::Admin],
                start_tls: true,
                challenges: &[login::SCRAM, login::MD5],
                send_secret: true,
                ..Wants::default()
            },
        }
    }

    fn new(settings: PostgresSettings) -> Self {
        Postgres {
            upstream_tls: settings.upstream_tls,
            phase: Phase::Start {
                ssl: false,
                gss: false,
            },
            session: Session::new(settings.parameters),
            work: None,
            from_client: Rest::default(),
            from_server: Rest::default(),
        }
    }

    fn on_task(&mut self, admin: Administrator, task: Task) -> Vec<Step> {
        match Work::new(admin, task) {
            Ok(work) => {
                self.work = Some(Box::new(work));
                self.phase = Phase::Connecting(Goal::Accounts);
                vec![Step::Connect(Endpoint::Admin)]
            }
            Err(why) => vec![Step::Close(Some(why))],
        }
    }

    fn on_input(&mut self, side: Side, data: &[u8]) -> Vec<Step> {
        match (side, &mut self.phase) {
            (Side::Client, _) if self.work.is_some() => vec![Step::Skip(data.len() as u32)],
            (Side::Client, Phase::Start { .. }) => self.start(data),
            (Side::Client, phase) if phase.is_session() => {
                let mut input = Input::new(data, &mut self.from_client);
                let read = self.session.client(&mut input);
                let steps = input.end();
                self.or_broken(read, steps)
            }
            (Side::Client, Phase::Cancelling | Phase::Over) => vec![Step::Skip(data.len() as u32)],
            (Side::Client, _) => self.too_early(data),
            (Side::Upstream, Phase::OfferingTls(_)) => self.tls_offered(data),
            (Side::Upstream, Phase::Login(_) | Phase::Session | Phase::Accounts) => {
                self.server(data)
            }
            (Side::Upstream, _) => vec![Step::Skip(data.len() as u32)],
        }
    }

    fn on_result(&mut self, result: StepResult) -> Vec<Step> {
        match (std::mem::replace(&mut self.phase, Phase::Over), result) {
            (Phase::Authorizing(startup), StepResult::Authorized) => {
                let mut steps = Vec::new();
                if !startup.settings.is_empty() {
                    steps.push(Step::Event(audit::settings(&startup.settings)));
                }
                self.phase = Phase::Connecting(Goal::Session(startup));
                steps.push(Step::Connect(Endpoint::Main));
                steps
            }
            (Phase::Authorizing(_), StepResult::Denied(why)) => self.refuse("28000", why),
            (Phase::FindingKey, StepResult::CancelFound(key)) => {
                self.phase = Phase::Connecting(Goal::Cancel(key));
                vec![Step::Connect(Endpoint::Cancel)]
            }
            // Nobody is told anything: PostgreSQL does not answer such requests either.
            (Phase::FindingKey, StepResult::CancelUnknown) => {
                vec![Step::Close(Some(
                    "no session has the key that the client wants to cancel by".into(),
                ))]
            }
            (Phase::Connecting(goal), StepResult::Connected) => {
                self.phase = Phase::OfferingTls(goal);
                vec![Step::ToUpstream(startup::ssl_request())]
            }
            (Phase::StartingTls(goal), StepResult::TlsStarted) => self.begin(goal),
            (Phase::Connecting(goal), StepResult::ConnectFailed(why)) => self.no_server(&goal, why),
            (Phase::StartingTls(goal), StepResult::TlsFailed(why)) => {
                self.no_server(&goal, format!("no TLS with the database server: {why}"))
            }
            (Phase::Login(mut login), result) => match login.answered(result) {
                Ok(steps) => {
                    self.phase = Phase::Login(login);
                    steps
                }
                Err(why) => self.refuse("28000", why),
            },
            _ => self.refuse(BROKEN, "the host gave an answer to no question".into()),
        }
    }

    fn on_close(&mut self, side: Side) -> Vec<Step> {
        if let Some(work) = &mut self.work {
            self.phase = Phase::Over;
            return match side {
                Side::Client => work.released(),
                Side::Upstream => work.cut(),
            };
        }
        match (side, std::mem::replace(&mut self.phase, Phase::Over)) {
            (
                Side::Upstream,
                Phase::Login(Login {
                    refused: Some(code),
                    ..
                }),
            ) => {
                vec![Step::Close(Some(format!(
                    "the database server refused the login: SQLSTATE {code}"
                )))]
            }
            (Side::Upstream, Phase::OfferingTls(goal)) => self.no_server(
                &goal,
                "the database server closed the connection when it was asked for TLS".into(),
            ),
            (Side::Upstream, Phase::Login(_)) => self.refuse(
                NO_CONNECTION,
                "the database server closed the connection during the login".into(),
            ),
            (Side::Upstream, Phase::Cancelling) => vec![Step::Close(None)],
            (_, phase) if phase.is_session() => {
                self.phase = phase;
                self.session.end().map(Step::Event).into_iter().collect()
            }
            (_, phase) => {
                self.phase = phase;
                vec![]
            }
        }
    }
}

impl Postgres {
    /// The first message, or the one after it.
    fn start(&mut self, data: &[u8]) -> Vec<Step> {
        match startup::first(data) {
            Ok(First::Partial) => vec![Step::NeedMore],
            Ok(First::Encryption { len, gss: is_gss }) => {
                let Phase::Start { ssl, gss } = &mut self.phase else {
                    return vec![];
                };
                if std::mem::replace(if is_gss { gss } else { ssl }, true) {
                    return self.refuse(
                        BROKEN,
                        "the client asks for encryption again and again".into(),
                    );
                }
                // It is inside of TLS already.
                let mut steps = vec![Step::Skip(len as u32), Step::ToClient(b"N".to_vec())];
                if data.len() > len {
                    steps.extend(self.start(&data[len..]));
                }
                steps
            }
            Ok(First::Cancel { len, key }) => {
                self.phase = Phase::FindingKey;
                vec![Step::Skip(len as u32), Step::FindCancel(key)]
            }
            Ok(First::Startup(startup)) => {
                let mut asked = vec![
                    ("db_users".to_owned(), startup.user.clone()),
                    ("db_names".to_owned(), startup.database.clone()),
                ];
                if startup.replication {
                    asked.push(("db_options".into(), "replication".into()));
                }
                let len = startup.bytes.len();
                self.phase = Phase::Authorizing(startup);
                vec![Step::Skip(len as u32), Step::Authorize(asked)]
            }
            Err(Refused(sqlstate, why)) => self.refuse(sqlstate, why),
        }
    }

    /// Nothing of a client makes sense before the server has let it in; what comes is kept until then.
    fn too_early(&mut self, data: &[u8]) -> Vec<Step> {
        if Input::new(data, &mut self.from_client).is_full() {
            return self.refuse(BROKEN, "the client sends before it is let in".into());
        }
        vec![Step::NeedMore]
    }

    /// The server's answer to the request for TLS is one byte, and nothing may follow before TLS does.
    fn tls_offered(&mut self, data: &[u8]) -> Vec<Step> {
        let Phase::OfferingTls(goal) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return vec![];
        };
        let mut steps = vec![Step::Skip(data.len() as u32)];
        steps.extend(match data {
            b"S" => {
                self.phase = Phase::StartingTls(goal);
                vec![Step::StartTls(Side::Upstream)]
            }
            b"N" if self.upstream_tls == UpstreamTls::AllowPlain => self.begin(goal),
            b"N" => {
                let why = "the database server offers no TLS; turn ssl on in its postgresql.conf, or set upstream_tls = \"allow-plain\" in the service's settings";
                self.no_server(&goal, why.into())
            }
            // Its words are not shown: anybody may have said them.
            [b'E', ..] => self.no_server(&goal, "the database server answered the request for TLS with an error".into()),
            other => {
                let said = other[..other.len().min(16)].escape_ascii();
                self.no_server(&goal, format!("this is no PostgreSQL server: it answered the request for TLS with \"{said}\""))
            }
        });
        steps
    }

    /// The connection is ready for what it is for.
    fn begin(&mut self, goal: Goal) -> Vec<Step> {
        match goal {
            Goal::Session(startup) => {
                self.phase = Phase::Login(Login::new(&startup));
                vec![Step::ToUpstream(startup.bytes)]
            }
            Goal::Cancel(key) => {
                self.phase = Phase::Cancelling;
                vec![Step::ToUpstream(startup::cancel_request(&key))]
            }
            Goal::Accounts => match &self.work {
                Some(work) => {
                    self.phase = Phase::Login(Login::of_administrator(work.user()));
                    vec![Step::ToUpstream(work.startup())]
                }
                None => vec![],
            },
        }
    }

    fn server(&mut self, data: &[u8]) -> Vec<Step> {
        let mut input = Input::new(data, &mut self.from_server);
        let mut read = Ok(());
        if let Phase::Login(login) = &mut self.phase {
            match login.server(&mut input) {
                Ok(Next::Wait) => return input.end(),
                Ok(Next::Session) => match &mut self.work {
                    Some(work) => {
                        input.push(work.begin());
                        self.phase = Phase::Accounts;
                    }
                    None => self.phase = Phase::Session,
                },
                Err(broken) => read = Err(broken),
            }
        }
        let read = read.and_then(|()| match &mut self.work {
            Some(work) => work.server(&mut input),
            None => self.session.server(&mut input),
        });
        let steps = input.end();
        self.or_broken(read, steps)
    }

    /// What was read is carried out; where one side broke the protocol, that is the end.
    fn or_broken(&mut self, read: Result<(), Broken>, mut steps: Vec<Step>) -> Vec<Step> {
        if let Err(Broken(why)) = read {
            if self.phase.is_session() && self.work.is_none() {
                steps.extend(self.session.end().map(Step::Event));
            }
            steps.extend(self.refuse(BROKEN, why));
        }
        steps
    }

    /// No server for this goal. Who wants to cancel gets no answer in any case.
    fn no_server(&mut self, goal: &Goal, why: String) -> Vec<Step> {
        match goal {
            Goal::Session(_) => self.refuse(NO_CONNECTION, why),
            Goal::Cancel(_) | Goal::Accounts => vec![Step::Close(Some(why))],
        }
    }

    /// Tells the client, where that makes sense, and closes.
    fn refuse(&mut self, sqlstate: &str, why: String) -> Vec<Step> {
        self.phase = Phase::Over;
        let mut steps = Vec::new();
        if !self.from_server.is_open() && self.work.is_none() {
            steps.push(Step::ToClient(wire::fatal(sqlstate, &why)));
        }
        steps.push(Step::Close(Some(why)));
        steps
    }
}

export_codec!(Postgres);
export_accounts!();

#[cfg(test)]
mod tests;
