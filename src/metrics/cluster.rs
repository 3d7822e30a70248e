//! How the cluster is, as this daemon sees it: the quorum, what may still fail, each node, what has happened.

use std::fmt;

use super::Sources;
use super::page::{Labels, Page, label, with};
use crate::cluster::{Connection, EventKind, Figures, NodeStatus, State, Status};
use crate::meter::NodeMeter;
use crate::node::batch::Batcher;

pub(super) fn write(page: &mut Page<'_>, sources: &Sources) -> fmt::Result {
    let status = sources.observer.look();
    write_daemon(page, &status)?;
    write_quorum(page, &status)?;
    write_nodes(page, &status.nodes)?;
    write_queues(page, sources.cluster.batchers())?;
    let count = |kind| (label("kind", event_name(kind)), sources.cluster.board.count(kind));
    let help = "What has happened to the cluster, as this daemon has seen it, by kind.";
    page.counters("majorityd_cluster_events", help, EventKind::ALL.map(count))
}

fn write_daemon(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let build = label("version", status.daemon.version);
    page.gauges("majorityd_build_info", "The version of this daemon; always 1.", [(build, 1.0)])?;
    let started = status.daemon.started_unix_ms as f64 / 1_000.0;
    page.gauge("majorityd_start_time_seconds", "When this daemon started, in Unix time.", started)
}

fn write_quorum(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let (nodes, quorum, counting) = (status.size.nodes(), status.size.quorum(), status.counting);
    page.gauge("majorityd_cluster_nodes", "Nodes of the cluster, as configured.", nodes as f64)?;
    page.gauge("majorityd_cluster_quorum", "Nodes that are needed.", quorum as f64)?;
    page.gauge("majorityd_cluster_counting", "Nodes whose answers count.", counting as f64)?;
    let help = "Nodes that count beyond those that are needed; negative where there is no quorum.";
    page.gauge("majorityd_cluster_quorum_margin", help, counting as f64 - quorum as f64)?;
    let help = "Nodes that may lose their memory, beside those that have, before something acknowledged may be lost.";
    page.gauge("majorityd_cluster_memory_margin", help, status.tolerates.memory_losses as f64)?;
    page.gauge("majorityd_cluster_serves", "1 while a quorum counts.", f64::from(status.serves))?;
    let help = "1 while new leases are granted; 0 without a quorum, and while a founding or a recovery has them wait.";
    page.gauge("majorityd_cluster_grants", help, f64::from(status.grants))
}

fn write_nodes(page: &mut Page<'_>, nodes: &[NodeStatus]) -> fmt::Result {
    let info = nodes.iter().map(|node| {
        let labels = with(&of(node), "address", &node.address);
        (with(&labels, "version", node.version.as_deref().unwrap_or("")), 1.0)
    });
    page.gauges("majorityd_node_info", "Where a node is and what runs there; always 1.", info)?;
    let connections = |node| states(node, &CONNECTIONS, |is| node.connection == is);
    let help = "1 for what the connection to the node is, 0 for what it is not.";
    page.gauges("majorityd_node_connection", help, nodes.iter().flat_map(connections))?;
    let listed = |node| states(node, &LISTED, |is| node.listed == is);
    let help = "1 for what the member list says of the node, 0 for what it does not.";
    page.gauges("majorityd_node_member", help, nodes.iter().flat_map(listed))?;
    let counts = nodes.iter().map(|node| (of(node), f64::from(node.counts)));
    page.gauges("majorityd_node_counts", "1 while the node's answers count.", counts)?;

    let figures = |figure: fn(&Figures) -> f64| {
        nodes.iter().filter_map(move |node| Some((of(node), figure(node.figures.as_ref()?))))
    };
    let help = "From a batch to its answer, the latest.";
    page.gauges("majorityd_node_round_trip_seconds", help, figures(|f| f.round_trip.as_secs_f64()))?;
    let help = "How far the node's clock is ahead of this machine's; off by at most half the round trip.";
    page.gauges("majorityd_node_clock_offset_seconds", help, figures(|f| f.clock_offset_us as f64 / 1e6))?;
    let missed = nodes.iter().map(|node| (of(node), node.missed as f64));
    page.gauges(
        "majorityd_node_missed_registers",
        "Registers that the node is known to miss a change of.",
        missed,
    )?;
    let merged = nodes.iter().filter_map(|node| Some((of(node), node.join?.merged as f64)));
    let help = "Records copied to the node by the join that this daemon runs; absent without one.";
    page.gauges("majorityd_node_join_records", help, merged)
}

fn write_queues(page: &mut Page<'_>, batchers: &[Batcher]) -> fmt::Result {
    let node = |batcher: &Batcher| label("node", batcher.node().index());
    let batches = batchers.iter().map(|batcher| (node(batcher), batcher.meter().batches.shown()));
    page.spreads("majorityd_node_batch_seconds", "How long batches took that the node answered.", batches)?;
    let sizes = batchers.iter().map(|batcher| (node(batcher), batcher.meter().operations.shown()));
    page.spreads("majorityd_node_batch_operations", "Operations in each batch to the node.", sizes)?;
    let outcomes = batchers.iter().flat_map(|batcher| outcomes(&node(batcher), batcher.meter()));
    page.counters("majorityd_node_operations", "Operations for the node, by what became of them.", outcomes)?;
    let queued = batchers.iter().map(|batcher| (node(batcher), batcher.queued() as f64));
    page.gauges("majorityd_node_operations_queued", "Operations that wait to be sent to the node.", queued)?;
    let max = crate::limits::OPERATIONS_QUEUED_MAX as f64;
    let help = "Operations that may wait for one node; more are refused.";
    page.gauge("majorityd_node_operations_queued_max", help, max)
}

fn outcomes(node: &Labels, meter: &NodeMeter) -> [(Labels, u64); 4] {
    let NodeMeter { answered, gated, unsent, lost, .. } = meter;
    [("answered", answered), ("gated", gated), ("unsent", unsent), ("lost", lost)]
        .map(|(outcome, count)| (with(node, "outcome", outcome), count.get()))
}

const CONNECTIONS: [(&str, Connection); 3] = [
    ("ready", Connection::Ready),
    ("refused", Connection::Refused),
    ("unreachable", Connection::Unreachable),
];
const LISTED: [(&str, Option<State>); 4] = [
    ("member", Some(State::Member)),
    ("joining", Some(State::Joining)),
    ("out", Some(State::Out)),
    ("unknown", None),
];

fn of(node: &NodeStatus) -> Labels {
    label("node", node.index)
}

/// A sample for each state that there is.
fn states<T: Copy>(node: &NodeStatus, all: &[(&str, T)], is: impl Fn(T) -> bool) -> Vec<(Labels, f64)> {
    let sample = |(name, state): &(&str, T)| (with(&of(node), "state", name), f64::from(is(*state)));
    all.iter().map(sample).collect()
}

fn event_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Founded => "founded",
        EventKind::MemoryLost => "memory_lost",
        EventKind::Joined => "joined",
        EventKind::PutOut => "put_out",
        EventKind::ClockJumped => "clock_jumped",
        EventKind::Recovered => "recovered",
        EventKind::PossibleLoss => "possible_loss",
    }
}
