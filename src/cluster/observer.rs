//! [`Observer`]: looks at the cluster, and tells when it has changed.

use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use futures::{Stream, future, stream};

use super::status::{DaemonFacts, Sighting, Status};
use crate::config::address::redact;
use crate::driver::Cluster;
use crate::runtime::Moment;

/// How often it is looked for changes that nobody announces: a memory is noticed in an answer.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks at the cluster.
pub struct Observer {
    cluster: Arc<Cluster>,
    daemon: Arc<DaemonFacts>,
    /// Notified when the state of a connection changes.
    states: Arc<Event>,
}

impl Observer {
    /// For this cluster; `states` is notified when the state of a connection changes.
    pub fn new(cluster: Arc<Cluster>, daemon: DaemonFacts, states: Arc<Event>) -> Self {
        Self { cluster, daemon: Arc::new(daemon), states }
    }

    /// How the cluster is now.
    pub fn look(&self) -> Status {
        let cluster = &*self.cluster;
        let view = cluster.views.current();
        let sightings = cluster.batchers().iter().map(|batcher| {
            let node = batcher.node();
            let index = node.index();
            Sighting {
                index,
                // A password may stand where the user belongs, which an address shows.
                address: redact(node.address()),
                state: node.state(),
                last: batcher.last_reply(),
                counts: view.as_ref().is_some_and(|view| cluster.is_reachable(view, index)),
                notes: cluster.board.notes(index),
            }
        });
        let sightings = sightings.collect();
        Status::new(cluster.size, view.as_deref(), sightings, cluster.board.events(), self.daemon.clone())
    }

    /// How the cluster is, at once and then whenever it has changed, with so much time between two. Looks only when the
    /// next one is asked for, so that a slow reader gets the newest and nothing is kept for it.
    pub fn watch(self: Arc<Self>, min_interval: Duration) -> impl Stream<Item = Status> + Send + 'static {
        let told: Option<(Status, Moment)> = None;
        stream::unfold((self, told), move |(observer, told)| async move {
            if let Some((_, at)) = &told {
                observer.cluster.runtime.clock.sleep_until(*at + min_interval).await;
            }
            let status = observer.news_after(told.as_ref().map(|(last, _)| last)).await;
            let now = observer.cluster.runtime.clock.now();
            Some((status.clone(), (observer, Some((status, now)))))
        })
    }

    /// The first status that has more than other figures against the last one.
    async fn news_after(&self, last: Option<&Status>) -> Status {
        loop {
            // Listen before looking, so that no change is missed.
            let changed = future::select(self.cluster.board.changed(), self.cluster.views.refreshed());
            let changed = future::select(changed, self.states.listen());
            let status = self.look();
            if last.is_none_or(|last| status.differs_from(last)) {
                return status;
            }
            let clock = &self.cluster.runtime.clock;
            future::select(changed, clock.sleep_until(clock.now() + LOOK_INTERVAL)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::ids::{NodeIndex, ProposerId};
    use crate::members::EventKind;
    use crate::node::embedded::{EmbeddedNode, EmbeddedServer};
    use crate::node::{Identity, Node};
    use crate::quorum::ClusterSize;
    use crate::runtime::system;

    fn observer(server: &Arc<EmbeddedServer>) -> Arc<Observer> {
        let identity = Identity { cluster: "blue".into(), nodes: 1, daemon: ProposerId(1) };
        let states = Arc::new(Event::new());
        let hints = states.clone();
        let sink = Arc::new(move |_, _| {
            hints.notify(usize::MAX);
        });
        let node = EmbeddedNode::new(server.clone(), identity, NodeIndex(0), sink) as Arc<dyn Node>;
        let size = ClusterSize::new(1).unwrap();
        let cluster = Arc::new(Cluster::new(size, vec![node], ProposerId(1), system::runtime()));
        let daemon = DaemonFacts {
            cluster: "blue".into(),
            version: "0.1.0",
            proposer: ProposerId(1),
            started_unix_ms: 0,
            settings: Vec::new(),
        };
        Arc::new(Observer::new(cluster, daemon, states))
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_newest_and_only_that() {
        let server = EmbeddedServer::new(0, Arc::new(|| 0));
        let observer = observer(&server);
        let mut watch = Box::pin(observer.clone().watch(Duration::ZERO));
        assert_eq!(watch.next().await.unwrap().nodes[0].missed, 0);
        assert!(watch.next().now_or_never().is_none(), "nothing has changed");
        let board = &observer.cluster.board;
        for missed in 1..=100 {
            board.note(NodeIndex(0), |notes| notes.missed = missed);
            board.happened(missed, EventKind::ClockJumped, None, "odd".into());
        }
        let status = watch.next().await.unwrap();
        assert_eq!((status.nodes[0].missed, status.events.len()), (100, 100));
        assert!(watch.next().now_or_never().is_none(), "what lay between is not told");
    }

    #[tokio::test]
    async fn a_change_wakes_the_watch_and_waits_for_the_interval() {
        let server = EmbeddedServer::new(0, Arc::new(|| 0));
        let observer = observer(&server);
        let interval = Duration::from_millis(100);
        let mut watch = Box::pin(observer.clone().watch(interval));
        watch.next().await;
        let clock = system::runtime().clock;
        let told = clock.now();
        server.stop();
        let status = watch.next().await.unwrap();
        assert_eq!(status.nodes[0].connection, crate::cluster::Connection::Unreachable);
        let waited = clock.now().since(told);
        // Sooner than by looking from time to time, were it not for a machine that is busy.
        assert!(waited >= interval - Duration::from_millis(10), "{waited:?}");
    }
}
