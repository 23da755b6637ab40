//! Locks reach what is live, and what wants to come.

use super::lab::*;

#[tokio::test]
async fn a_locked_user_loses_the_sessions_and_gets_no_new_ones() {
    let lab = Lab::start().await;
    let _echo = lab.agent("a", "tcp", &[("orders", false)]).await.echo();
    let (alice, bob) = (lab.user("alice", 0).await, lab.user("bob", 0).await);
    let (_, mut hers) = lab.session(&alice, "tcp", "orders").await;
    let (_, mut his) = lab.session(&bob, "tcp", "orders").await;
    echoes(&mut hers, b"hers").await;
    lab.lock("user:alice").await;
    until_closed(&mut hers).await;
    let (reply, _) = lab.session(&alice, "tcp", "orders").await;
    assert_eq!((reply.ok, reply.code.as_str()), (false, "locked"));
    assert!(reply.message.contains("laptop stolen"), "{}", reply.message);
    echoes(&mut his, b"not his").await;
    lab.unlock("user:alice").await;
    loop {
        let (reply, mut again) = lab.session(&alice, "tcp", "orders").await;
        if reply.ok {
            echoes(&mut again, b"again").await;
            return;
        }
    }
}

#[tokio::test]
async fn a_locked_host_loses_its_tunnel_and_every_session_through_it() {
    let lab = Lab::start().await;
    let a = lab.agent("a", "tcp", &[("orders", false)]).await.echo();
    let _b = lab.agent("b", "tcp", &[("stock", false)]).await.echo();
    let alice = lab.user("alice", 0).await;
    let (_, mut orders) = lab.session(&alice, "tcp", "orders").await;
    let (_, mut stock) = lab.session(&alice, "tcp", "stock").await;
    echoes(&mut orders, b"open").await;
    lab.lock(&format!("host:{}", a.agent.host_id)).await;
    until_closed(&mut orders).await;
    a.agent.down_with("locked").await;
    let (reply, _) = lab.session(&alice, "tcp", "orders").await;
    assert_eq!(reply.code, "no-agent");
    echoes(&mut stock, b"the other host goes on").await;
    lab.unlock(&format!("host:{}", a.agent.host_id)).await;
    a.agent.up().await;
}

#[tokio::test]
async fn a_locked_service_is_cut_alone() {
    let lab = Lab::start().await;
    let a = lab.agent("a", "tcp", &[("orders", false)]).await.echo();
    let b = lab.agent("b", "tcp", &[("stock", false)]).await.echo();
    lab.lock(&format!("service:{}/svc", a.agent.host_id)).await;
    a.agent.down_with("locked").await;
    b.agent.up().await;
    let views = lab.proxy().agents();
    assert_eq!(views.len(), 1);
    assert_eq!(views[0].identity.host_id, b.agent.host_id);
}
