//! Tells the nodes what this daemon knows of the others, and brings to a node what it has missed. Protocol, sections 2 and 7.
//!
//! Nodes keep what they are told, so that it outlives daemons: when a node was last reached, how many writes it has
//! counted, and which registers it has missed. A node that nobody has reached for long, by the word of q members, is put
//! out, so that the others can forget.

use std::sync::Arc;
use std::time::Duration;

use super::rounds;
use super::settling::{Settled, settle};
use crate::driver::Cluster;
use crate::ids::NodeIndex;
use crate::members::change::MemberChange;
use crate::members::{State, View};
use crate::mutant::{self, Mutant};
use crate::node::NodeState;
use crate::node::operation::{Answer, News, Operation, RegisterKey, Report, Reported};

/// Between two reports.
const INTERVAL: Duration = Duration::from_secs(1);
/// Registers that one look brings to a node.
const MISSED_BATCH: usize = 100;

/// The task.
pub struct Reporting {
    /// The nodes.
    pub cluster: Arc<Cluster>,
    /// A node that no daemon has reached for so long is put out.
    pub out_after: Duration,
}

impl Reporting {
    /// Runs for as long as the daemon does.
    pub async fn run(self) {
        let runtime = self.cluster.runtime.clone();
        loop {
            let pause = INTERVAL / 2 + runtime.entropy.jitter(INTERVAL);
            runtime.clock.sleep_until(runtime.clock.now() + pause).await;
            let Some(view) = self.cluster.views.current() else { continue };
            let reports = rounds::reports(&self.cluster, self.report(&view)).await;
            let reports: Vec<(NodeIndex, Reported)> = reports
                .into_iter()
                .filter(|(node, memory, _)| view.counts(*node, *memory))
                .map(|(node, _, reported)| (node, reported))
                .collect();
            self.put_out(&view, &reports).await;
            self.mend(&view, &reports).await;
        }
    }

    fn report(&self, view: &View) -> Report {
        let mut report = Report::default();
        for (batcher, entry) in self.cluster.batchers().iter().zip(&view.list.entries) {
            let node = batcher.node();
            let ready = matches!(node.state(), NodeState::Ready(_));
            let last = batcher.last_reply();
            report.nodes.push(News {
                reached: ready,
                memory: last.as_ref().and_then(|last| last.memory),
                writes: last.map_or(0, |last| last.writes),
            });
            let (missed, overflowed) = batcher.take_misses();
            if overflowed {
                tracing::warn!(node = %node.index(), "it missed more than is noted; comparison will find the rest");
            }
            // A node that is to join gets everything anyhow.
            if !missed.is_empty() && entry.state == State::Member {
                report.missed.push((node.index(), missed));
            }
        }
        report
    }

    async fn put_out(&self, view: &View, reports: &[(NodeIndex, Reported)]) {
        let quorum = self.cluster.size.quorum();
        for (node, entry) in self.cluster.size.indexes().zip(&view.list.entries) {
            let ready = |node: NodeIndex| {
                let state = self.cluster.batchers()[usize::from(node.0)].node().state();
                matches!(state, NodeState::Ready(_))
            };
            if entry.state == State::Out || ready(node) || mutant::is_on(Mutant::NeverOut) {
                continue;
            }
            let long = |reported: &Reported| {
                reported.nodes.get(usize::from(node.0)).is_some_and(|told| told.unreached > self.out_after)
            };
            if reports.iter().filter(|(_, reported)| long(reported)).count() >= quorum {
                let change = MemberChange::PutOut { node, was: *entry, quorum };
                if rounds::change(&self.cluster, Some(change)).await {
                    tracing::warn!(%node, "no daemon has reached it for long: it is out until it is back");
                    self.cluster.views.want();
                }
            }
        }
    }

    /// Brings to each reachable member some of what is noted for it.
    async fn mend(&self, view: &View, reports: &[(NodeIndex, Reported)]) {
        for (node, entry) in self.cluster.size.indexes().zip(&view.list.entries) {
            let notes =
                |reported: &Reported| reported.nodes.get(usize::from(node.0)).map_or(0, |told| told.notes);
            let noted = reports.iter().map(|(_, reported)| notes(reported)).max().unwrap_or(0);
            self.cluster.board.note(node, |notes| notes.missed = noted);
            let reachable = reports.iter().any(|(reporter, _)| *reporter == node);
            for (keeper, reported) in reports {
                if *keeper != node && notes(reported) > 0 {
                    let drop_all = entry.state != State::Member;
                    if reachable || drop_all {
                        self.mend_from(*keeper, node, drop_all).await;
                    }
                }
            }
        }
    }

    async fn mend_from(&self, keeper: NodeIndex, node: NodeIndex, drop_all: bool) {
        let missed = |done| Operation::Missed { node, done, limit: MISSED_BATCH };
        let asked = rounds::ask_one(&self.cluster, keeper, &missed(Vec::new())).await;
        let Some((_, Answer::Names(names))) = asked else { return };
        let mut done = Vec::new();
        for name in names {
            let key = RegisterKey::from_bytes(name.as_bytes());
            let settled = if drop_all { Settled::Even } else { settle(&self.cluster, &key).await };
            if settled == Settled::Mended {
                self.cluster.meter.upkeep.repaired.one();
            }
            if settled != Settled::NotNow {
                done.push(key);
            }
        }
        if !done.is_empty() {
            rounds::ask_one(&self.cluster, keeper, &missed(done)).await;
        }
    }
}
