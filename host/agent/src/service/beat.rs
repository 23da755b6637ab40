//! What Auth hears of a service every ten seconds, and at once where it has changed.

use super::health::{Report, unreachable};
use super::spec::Spec;
use postern_api::v1::{AnnouncedResource, HeartbeatRequest, Unreachable};
use postern_membership::{heartbeat, hostname};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

/// The task that sends heartbeats, and what it says.
pub struct Beat {
    channel: watch::Sender<Channel>,
    says: watch::Sender<HeartbeatRequest>,
    _task: AbortOnDropHandle<()>,
}

impl Beat {
    /// `named`: the names in the certificate held; others would be refused.
    pub fn start(
        channel: Channel,
        rejoin: Arc<Notify>,
        spec: &Spec,
        named: &[String],
        health: &Report,
    ) -> Self {
        let (channel, channels) = watch::channel(channel);
        let (says, said) = watch::channel(of(spec, named, health));
        let task = tokio::spawn(async move {
            heartbeat(channels, rejoin, || said.borrow().clone()).await;
        });
        Beat {
            channel,
            says,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Through this channel from now on; says so at once.
    pub fn through(&self, channel: Channel) {
        self.channel.send_replace(channel);
    }

    /// The service has changed: says so at once.
    pub fn says(&self, spec: &Spec, named: &[String], health: &Report) {
        let rtt = self.says.borrow().tunnel_rtt_ms;
        let mut says = of(spec, named, health);
        says.tunnel_rtt_ms = rtt;
        self.says.send_replace(says);
        self.channel.send_modify(|_| {});
    }

    /// With the next one.
    pub fn rtt(&self, rtt: Duration) {
        self.says
            .send_modify(|s| s.tunnel_rtt_ms = rtt.as_secs_f64() * 1e3);
    }
}

fn of(spec: &Spec, named: &[String], health: &Report) -> HeartbeatRequest {
    HeartbeatRequest {
        kind: spec.kind.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        resources: spec
            .offered
            .iter()
            .filter(|o| named.contains(&o.id.name))
            .map(|o| AnnouncedResource {
                name: o.id.name.clone(),
                labels: o.labels.clone().into_iter().collect(),
                direct: o.direct,
                unreachable: unreachable(health, &o.id.name).map(|h| Unreachable {
                    reason: h.reason.clone().unwrap_or_default(),
                    since_unix: i64::try_from(h.since_unix).unwrap_or(i64::MAX),
                }),
            })
            .collect(),
        hostname: hostname(),
        plugin: spec.plugin_label(),
        ..HeartbeatRequest::default()
    }
}
