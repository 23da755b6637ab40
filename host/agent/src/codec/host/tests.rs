use super::*;
use postern_config::{LockMode, SecretSource, UpstreamAdmin, UpstreamAuth};
use postern_identity::ResourceId;
use postern_membership::Snapshot;
use tokio::sync::mpsc;

/// Nobody can be in between there.
const SOCKET: &str = "unix:/run/postgresql/.s.PGSQL.5432";

struct Setup {
    host: SessionHost,
    events: mpsc::Receiver<Event>,
    roles: watch::Sender<Arc<Snapshot>>,
}

fn snapshot(principals: &str) -> Snapshot {
    let role = format!(
        r#"{{"name":"dba","allow":{{"postgres":{{"labels":{{"*":["*"]}},{principals}}}}}}}"#
    );
    let role: postern_access::Role = serde_json::from_str(&role).unwrap();
    Snapshot {
        roles: [("dba".to_owned(), role)].into(),
        heard_unix: postern_membership::unix_now(),
        ..Snapshot::default()
    }
}

/// alice may be `app` and `root` in every database; the password of both is in the environment, as is the administrator's.
fn setup() -> Setup {
    let path = || SecretSource {
        file: None,
        env: Some("PATH".into()),
    };
    let (roles, cache) = watch::channel(Arc::new(snapshot(
        r#""db_users":["app","root"],"db_names":["*"]"#,
    )));
    let (audit, events) = Emitter::memory(100);
    let trust = TrustBundle {
        cluster: "demo".into(),
        cas: vec![],
    };
    let host = SessionHost {
        decider: Decider {
            cluster: "demo".into(),
            host_id: "h1".into(),
            service: "db".into(),
            lock_mode: LockMode::BestEffort,
            cache,
        },
        recorder: Recorder::new(audit.clone(), "postgres", true),
        audit,
        user: UserIdentity {
            name: "alice".into(),
            roles: vec!["dba".into()],
            traits: Default::default(),
        },
        user_chain: vec![],
        resource: Offered {
            id: ResourceId::new("postgres", "orders").unwrap(),
            labels: Default::default(),
            direct: false,
            address: None,
            tls: None,
            auth: UpstreamAuth::Password {
                passwords: [("*".to_owned(), path())].into(),
            },
            admin: Some(UpstreamAdmin {
                user: "root".into(),
                password: path(),
                database: "postgres".into(),
            }),
        },
        trust: Arc::new(trust),
        auth: watch::channel(None).1,
        source: "192.0.2.1:1".into(),
        session_id: "s-1".into(),
        cancels: Arc::new(Cancels::new(1)),
        asked: watch::Sender::new(None),
        rejected: OnceLock::new(),
        made: Default::default(),
        accounts: None,
        automatic: Default::default(),
        admission: Default::default(),
        cancel: Default::default(),
        since: Instant::now(),
        about: OnceLock::new(),
    };
    Setup {
        host,
        events,
        roles,
    }
}

fn asked(pairs: &[(&str, &str)]) -> Principals {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn salt(account: &str) -> Challenge {
    Challenge {
        method: login::MD5.into(),
        account: account.into(),
        data: vec![1, 2, 3, 4],
    }
}

#[tokio::test]
async fn only_an_account_that_was_authorized_gets_an_answer() {
    let mut s = setup();
    s.host.resource.address = Some(SOCKET.into());
    let why = s.host.answer(Endpoint::Main, salt("app")).await;
    assert!(
        why.unwrap_err().contains("not authorized"),
        "nothing was asked"
    );
    // A database of that name makes no account of it.
    let pairs = asked(&[("db_users", "app"), ("db_names", "other")]);
    s.host.authorize(&pairs).await.unwrap();
    for account in ["other", "root", "App", ""] {
        let why = s
            .host
            .answer(Endpoint::Main, salt(account))
            .await
            .unwrap_err();
        assert!(why.contains("not authorized"), "{account}: {why}");
        let why = s
            .host
            .secret(Endpoint::Main, account.into())
            .await
            .unwrap_err();
        assert!(why.contains("not authorized"), "{account}: {why}");
    }
    // What was refused has used nothing up.
    assert!(s.host.answer(Endpoint::Main, salt("app")).await.is_ok());
    let why = s.host.secret(Endpoint::Main, "app".into()).await;
    assert!(why.unwrap_err().contains("second login"));
}

#[tokio::test]
async fn the_administrator_is_nobody_and_nobody_is_the_administrator() {
    let mut s = setup();
    s.host.resource.address = Some(SOCKET.into());
    let why = s.host.authorize(&asked(&[("db_users", "root")])).await;
    assert!(why.unwrap_err().contains("the administrator's"));
    s.host
        .authorize(&asked(&[("db_users", "app")]))
        .await
        .unwrap();
    for endpoint in [Endpoint::Main, Endpoint::Admin] {
        assert!(s.host.answer(endpoint, salt("root")).await.is_err());
    }
}

#[tokio::test]
async fn an_account_of_ones_own_is_none_where_it_can_not_be_made() {
    for (principals, reasons) in [
        (r#""db_names":["*"]"#, Some("gives the resource an `admin`")),
        (r#""db_names":["*"],"db_users":["*"]"#, None),
    ] {
        let mut s = setup();
        let mut snapshot = snapshot(principals);
        let options = &mut snapshot.roles.get_mut("dba").unwrap().options;
        options.create_db_user = Some(postern_access::AfterSession::Drop);
        s.roles.send_replace(Arc::new(snapshot));
        let own = s.host.authorize(&asked(&[("db_users", "alice")])).await;
        let event = s.events.recv().await.unwrap();
        match reasons {
            Some(why) => {
                assert!(own.unwrap_err().contains(why));
                assert_eq!(event.event, "session.rejected");
            }
            // As any other account that the roles allow.
            None => {
                own.unwrap();
                assert_eq!(event.event, "session.start");
                assert!(!event.fields.contains_key("create_db_user"));
            }
        }
    }
}

#[tokio::test]
async fn losing_what_the_account_was_given_ends_the_session() {
    let s = setup();
    let with = |roles: &str| {
        let principals = format!(r#""db_users":["alice"],"db_roles":[{roles}]"#);
        let mut snapshot = snapshot(&principals);
        let options = &mut snapshot.roles.get_mut("dba").unwrap().options;
        options.create_db_user = Some(postern_access::AfterSession::Drop);
        Arc::new(snapshot)
    };
    s.roles.send_replace(with(r#""reader","writer""#));
    s.host
        .authorize(&asked(&[("db_users", "alice")]))
        .await
        .unwrap();
    let pairs = asked(&[("db_users", "alice")]);
    let user = &s.host.user;
    let made = s
        .host
        .decider
        .automatic(user, &s.host.resource, &super::pairs(&pairs));
    *lock(&s.host.automatic) = made;
    let more = tokio::time::timeout(Duration::from_millis(50), s.host.until_refused());
    s.roles.send_replace(with(r#""reader","writer","owner""#));
    assert!(more.await.is_err(), "it has more for the next session");
    s.roles.send_replace(with(r#""writer""#));
    let why = s.host.until_refused().await;
    assert!(why.contains(r#"db role "reader""#), "{why}");
}

#[tokio::test]
async fn md5_goes_to_a_server_that_is_known() {
    for (address, verified, answered) in [
        ("db.internal:5432", false, false),
        ("db.internal:5432", true, true),
        (SOCKET, false, true),
    ] {
        let mut s = setup();
        s.host.resource.address = Some(address.into());
        s.host
            .authorize(&asked(&[("db_users", "app")]))
            .await
            .unwrap();
        s.host.made.get_mut().verified = verified;
        let answer = s.host.answer(Endpoint::Main, salt("app")).await;
        assert_eq!(answer.is_ok(), answered, "{address}: {answer:?}");
    }
}

#[tokio::test]
async fn a_client_that_asks_for_nothing_is_late() {
    let s = setup();
    let soon = Duration::from_millis(20);
    let why = s.host.until_late(soon).await;
    assert!(why.contains("did not say within 20ms"), "{why}");
    s.host
        .authorize(&asked(&[("db_users", "app")]))
        .await
        .unwrap();
    let late = tokio::time::timeout(soon * 5, s.host.until_late(soon)).await;
    assert!(late.is_err(), "it has started: {late:?}");
}

#[tokio::test]
async fn what_is_asked_later_counts_with_what_was_asked_before() {
    let mut s = setup();
    s.host
        .authorize(&asked(&[("db_users", "app")]))
        .await
        .unwrap();
    s.host
        .authorize(&asked(&[("db_names", "orders")]))
        .await
        .unwrap();
    let names = [s.events.recv().await, s.events.recv().await].map(|e| e.unwrap().event);
    assert_eq!(names, ["session.start", "session.principals"]);
    assert_eq!(s.host.principals().len(), 2);
    assert!(
        s.host
            .authorize(&asked(&[("db_users", "mallory")]))
            .await
            .is_err()
    );
    assert_eq!(s.host.principals().len(), 2, "what was denied is not had");
}

#[tokio::test]
async fn losing_an_account_ends_the_session_that_uses_it() {
    let s = setup();
    s.host
        .authorize(&asked(&[("db_users", "app")]))
        .await
        .unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), async {
        let lose = async {
            tokio::task::yield_now().await;
            s.roles
                .send_replace(Arc::new(snapshot(r#""db_users":["other"]"#)));
        };
        tokio::join!(s.host.until_refused(), lose).0
    });
    let why = ended.await.unwrap();
    assert!(why.contains("\"app\""), "{why}");
}

#[tokio::test]
async fn nothing_is_dialled_that_was_not_set_up() {
    let s = setup();
    let refused = |r: Result<BoxedStream, String>| r.err().unwrap();
    let why = refused(s.host.connect(Endpoint::Main).await);
    assert!(why.contains("before it asked for authorization"), "{why}");
    let why = refused(s.host.connect(Endpoint::Cancel).await);
    assert!(why.contains("no session to cancel"), "{why}");
    s.host
        .authorize(&asked(&[("db_users", "app")]))
        .await
        .unwrap();
    let why = refused(s.host.connect(Endpoint::Main).await);
    assert!(why.contains("has no address"), "{why}");
    let why = refused(s.host.connect(Endpoint::Admin).await);
    assert!(why.contains("nothing to do with"), "{why}");
}

#[tokio::test]
async fn a_cancel_key_lives_as_long_as_its_session() {
    let mut s = setup();
    let cancels = s.host.cancels.clone();
    let key = s.host.offer_cancel(b"theirs".to_vec(), 8).unwrap();
    assert_eq!(s.host.find_cancel(&key), Some(b"theirs".to_vec()));
    assert_eq!(s.events.recv().await.unwrap().event, "session.cancel");
    assert_eq!(s.host.find_cancel(b"another!"), None);
    drop(s);
    assert!(cancels.find(&key).is_none());
}

#[tokio::test]
async fn a_cancel_connection_is_held_to_the_tls_of_what_it_cancels() {
    let mut s = setup();
    assert!(!s.host.needs_tls(Endpoint::Main));
    assert!(s.host.needs_tls(Endpoint::Cancel), "of nobody yet");
    let key = s.host.offer_cancel(b"theirs".to_vec(), 8).unwrap();
    s.host.resource.tls = Some(Default::default());
    s.host.find_cancel(&key).unwrap();
    assert!(s.host.needs_tls(Endpoint::Main));
    assert!(!s.host.needs_tls(Endpoint::Cancel), "that one has no tls");
    let key = s.host.offer_cancel(b"theirs".to_vec(), 8).unwrap();
    s.host.resource.tls = None;
    s.host.find_cancel(&key).unwrap();
    assert!(s.host.needs_tls(Endpoint::Cancel));
}
