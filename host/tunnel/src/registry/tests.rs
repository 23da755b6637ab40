//! Which agent a stream is offered to first.

use super::*;

fn link(registry: &Registry, host: &str) -> LinkId {
    let (control, _) = mpsc::channel(1);
    let link = registry.add_link(NewLink {
        identity: AgentIdentity {
            host_id: host.into(),
            service: "db".into(),
        },
        instance: host.into(),
        kind: "postgres".into(),
        peer: ([127, 0, 0, 1], 1).into(),
        control,
        cut: CancellationToken::new(),
        suspect_after: Duration::from_secs(10),
    });
    link.unwrap()
}

fn announce(registry: &Registry, link: LinkId, unhealthy: bool) {
    let offer = Offer {
        direct: false,
        unhealthy,
    };
    registry.announce(link, "0", 1, [("orders".to_owned(), offer)].into());
}

fn first(registry: &Registry) -> LinkId {
    let id = ResourceId {
        kind: "postgres".into(),
        name: "orders".into(),
    };
    registry.lock().candidates(&id)[0]
}

/// How often each of them comes first, of twelve streams.
fn firsts(registry: &Registry, links: [LinkId; 3]) -> [usize; 3] {
    let all: Vec<LinkId> = (0..12).map(|_| first(registry)).collect();
    links.map(|link| all.iter().filter(|first| **first == link).count())
}

#[test]
fn agents_that_reach_the_resource_share_the_streams() {
    let registry = Registry::default();
    let links = ["a", "b", "c"].map(|host| link(&registry, host));
    let [a, b, c] = links;
    for link in links {
        announce(&registry, link, false);
    }
    assert_eq!(firsts(&registry, links), [4, 4, 4]);
    // Not twice as many for the one that stands behind it in the list.
    announce(&registry, b, true);
    assert_eq!(firsts(&registry, links), [6, 0, 6]);
    announce(&registry, a, true);
    assert_eq!(firsts(&registry, links), [0, 0, 12]);
    // All of them: somebody is asked all the same.
    announce(&registry, c, true);
    assert_eq!(firsts(&registry, links), [4, 4, 4]);
    announce(&registry, b, false);
    assert_eq!(firsts(&registry, links), [0, 12, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_agent_is_asked_before_one_that_does_not_reach_the_resource() {
    let registry = Registry::default();
    let links = ["a", "b", "c"].map(|host| link(&registry, host));
    let [a, b, c] = links;
    for link in links {
        announce(&registry, link, false);
    }
    tokio::time::advance(Duration::from_secs(11)).await;
    registry.heard(b, None);
    registry.heard(c, None);
    assert_eq!(firsts(&registry, links), [0, 6, 6]);
    announce(&registry, b, true);
    announce(&registry, c, true);
    assert_eq!(first(&registry), a);
    announce(&registry, c, false);
    assert_eq!(first(&registry), c);
}
