//! tokio-postgres: what a Rust program does, by the helper's port, and by its own TLS in both ways of beginning it.

use crate::tls::of_user;
use crate::{NO_SERVER, SOON, at_rest, crowd, rests_as_before, runtime};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{SinkExt, StreamExt, TryStreamExt, future, stream};
use postern_tests::{Database, Login, Postgres, skip_unless};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::Type;
use tokio_postgres::{
    AsyncMessage, CancelToken, Client, Config, NoTls, SimpleQueryMessage, Socket, binary_copy,
    error::SqlState,
};

/// What [`Config::connect`] and a program's tasks ask of TLS.
trait AnyTls:
    MakeTlsConnect<Socket, Stream: Send, TlsConnect: Send + TlsConnect<Socket, Future: Send>>
    + Clone
    + Send
    + Sync
    + 'static
{
}
impl<T> AnyTls for T where
    T: MakeTlsConnect<Socket, Stream: Send, TlsConnect: Send + TlsConnect<Socket, Future: Send>>
        + Clone
        + Send
        + Sync
        + 'static
{
}

#[test]
fn tokio_postgres() -> Result<()> {
    skip_unless!(Postgres::is_there(), NO_SERVER);
    let db = Database::start(Login::Certificate)?;
    let helper = db.helper("orders")?;
    let before = at_rest(&db)?;
    let mut direct = Config::new();
    let (address, port) = db
        .cluster
        .proxy_addr
        .split_once(':')
        .context("an address")?;
    direct
        .host("orders.postgres.demo")
        .hostaddr(address.parse()?)
        .port(port.parse()?);
    direct.user("app").dbname("orders");
    direct.ssl_mode(tokio_postgres::config::SslMode::Require);
    let tls = of_user(&db.alice)?;
    runtime()?.block_on(async {
        everything(&crowd::config(helper.port), NoTls)
            .await
            .context("by the helper")?;
        everything(&direct, tls.clone())
            .await
            .context("by TLS that is asked for")?;
        direct.ssl_negotiation(SslNegotiation::Direct);
        everything(&direct, tls).await.context("by TLS at once")
    })?;
    rests_as_before(&db, before, 10).map(drop)
}

async fn connect(
    config: &Config,
    tls: impl AnyTls,
) -> Result<(Client, mpsc::Receiver<AsyncMessage>)> {
    let (client, mut connection) = config.connect(tls).await?;
    let (tell, told) = mpsc::channel(1000);
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if tell.send(message).await.is_err() {
                break;
            }
        }
    });
    Ok((client, told))
}

/// Until it hits: a request that comes before the query cancels nothing.
async fn keep_cancelling(
    token: &CancelToken,
    tls: &impl AnyTls,
) -> Result<(), tokio_postgres::Error> {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        token.cancel_query(tls.clone()).await?;
    }
}

async fn everything(config: &Config, tls: impl AnyTls) -> Result<()> {
    let (mut client, mut told) = connect(config, tls.clone()).await?;
    client
        .batch_execute(
            "drop table if exists rs; create table rs (n int4 primary key, t text, b bytea)",
        )
        .await?;

    let rows = 2000;
    let sink = client.copy_in("copy rs from stdin (format binary)").await?;
    let types = [Type::INT4, Type::TEXT, Type::BYTEA];
    let writer = binary_copy::BinaryCopyInWriter::new(sink, &types);
    futures::pin_mut!(writer);
    for n in 0..rows {
        let (text, bytes) = (format!("ü{n}"), vec![n as u8; n as usize % 100]);
        writer.as_mut().write(&[&n, &text, &bytes]).await?;
    }
    ensure!(writer.as_mut().finish().await? == rows as u64);
    let out = client
        .copy_out("copy (select n from rs order by n) to stdout")
        .await?;
    let out: Vec<Bytes> = out.try_collect().await?;
    let lines: usize = out
        .iter()
        .map(|b| b.iter().filter(|b| **b == b'\n').count())
        .sum();
    ensure!(lines == rows as usize, "{lines} lines");
    // A COPY that is given up.
    let mut sink = Box::pin(client.copy_in("copy rs from stdin").await?);
    sink.send(Bytes::from_static(b"9000\tx\t\\\\x00\n")).await?;
    drop(sink);
    let there = client.query_one("select count(*) from rs", &[]).await?;
    ensure!(there.get::<_, i64>(0) == i64::from(rows));

    // All at once on one connection: they are pipelined.
    let statement = client.prepare("select t from rs where n = $1").await?;
    let asked: Vec<i32> = (0..500).collect();
    let one = |n: &i32| {
        let (client, statement, n) = (&client, &statement, *n);
        async move { client.query_one(statement, &[&n]).await }
    };
    let got = future::try_join_all(asked.iter().map(one)).await?;
    for (n, row) in got.iter().enumerate() {
        ensure!(row.get::<_, &str>(0) == format!("ü{n}"));
    }
    let mixed = future::join_all((0..50).map(|n| {
        let client = &client;
        async move {
            client
                .query_one("select 10 / $1::int4", &[&(n % 5)])
                .await
                .is_ok()
        }
    }))
    .await;
    ensure!(
        mixed.iter().enumerate().all(|(n, ok)| *ok == (n % 5 != 0)),
        "{mixed:?}"
    );

    let transaction = client.transaction().await?;
    let portal = transaction.bind("select n from rs order by n", &[]).await?;
    let mut read = 0;
    loop {
        let portion = transaction.query_portal(&portal, 300).await?;
        if portion.is_empty() {
            break;
        }
        read += portion.len();
    }
    ensure!(read == rows as usize, "{read} rows by a portal");
    transaction.execute("delete from rs", &[]).await?;
    transaction.rollback().await?;

    let both = client.simple_query("select 1; select 'zwei'").await?;
    let values: Vec<&str> = both
        .iter()
        .filter_map(|m| match m {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        })
        .collect();
    ensure!(values == ["1", "zwei"], "{values:?}");

    client.batch_execute("listen news").await?;
    let (other, _) = connect(config, tls.clone()).await?;
    other
        .execute("select pg_notify('news', 'good')", &[])
        .await?;
    let heard = async {
        loop {
            match told.recv().await {
                Some(AsyncMessage::Notification(n)) => return n.payload() == "good",
                Some(_) => {}
                None => return false,
            }
        }
    };
    ensure!(tokio::time::timeout(SOON, heard).await?, "no notification");

    let token = client.cancel_token();
    let sleeping = client.batch_execute("select pg_sleep(60)");
    let cancelling = keep_cancelling(&token, &tls);
    tokio::select! {
        slept = sleeping => {
            let code = slept.err().and_then(|e| e.code().cloned());
            ensure!(code == Some(SqlState::QUERY_CANCELED), "{code:?}");
        }
        failed = cancelling => failed?,
        () = tokio::time::sleep(SOON) => anyhow::bail!("the query was not cancelled"),
    }
    // One of the requests may still be on its way.
    while client.batch_execute("select 1").await.is_err() {}

    let unique = client.execute("insert into rs values (1)", &[]).await;
    let code = unique.err().and_then(|e| e.code().cloned());
    ensure!(code == Some(SqlState::UNIQUE_VIOLATION), "{code:?}");
    let mut stranger = config.clone();
    let refused = connect(stranger.user("other"), tls)
        .await
        .err()
        .context("let in")?;
    let refused = format!("{refused:?}");
    ensure!(refused.contains("no role of alice (dba)"), "{refused}");
    Ok(())
}
