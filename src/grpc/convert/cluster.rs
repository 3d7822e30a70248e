//! `ClusterService`, wire to domain and back.

use std::time::Duration;

use super::{Fields, Invalid, Limits, WIRE_SECONDS_MAX, duration, timestamp};
use crate::cluster::{self, Connection, DaemonFacts, Event, EventKind, JoinProgress, NodeStatus, State};
use crate::grpc::status::{Reason, bounded};
use crate::proto::v1;

/// Events of a status when the caller names no number: a screen of them.
const EVENTS_DEFAULT: usize = 20;
/// Most events of a status: as many as are kept, and the answer stays far below 4 MiB.
const EVENTS_MAX: usize = 256;
/// The shortest time between two messages of a watch of the status: it is for people.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The same where the caller names none.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// The longest: a watch that says nothing for longer is of no use.
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);

/// Most events that a caller asks for.
pub fn events_max(asked: Option<u32>) -> usize {
    asked.map_or(EVENTS_DEFAULT, |asked| usize::try_from(asked).unwrap_or(usize::MAX).min(EVENTS_MAX))
}

/// A `WatchStatus`: most events, and the time between two messages.
pub fn watch_status(request: &v1::WatchStatusRequest, limits: &Limits) -> Result<(usize, Duration), Invalid> {
    let mut fields = Fields::new(limits);
    let interval = fields.duration("min_interval", Reason::InvalidInterval, request.min_interval.as_ref());
    let interval = interval.map(|asked| asked.unwrap_or(INTERVAL_DEFAULT).clamp(INTERVAL_MIN, INTERVAL_MAX));
    fields.finish(interval.map(|interval| (events_max(request.events_max), interval)))
}

/// The cluster, with so many of the latest events.
pub fn cluster_status(status: &cluster::Status, events_max: usize) -> v1::ClusterStatus {
    let events = &status.events[status.events.len().saturating_sub(events_max)..];
    v1::ClusterStatus {
        cluster: status.daemon.cluster.clone(),
        node_count: count(status.size.nodes()),
        quorum: count(status.size.quorum()),
        counting: count(status.counting),
        serves: status.serves,
        grants_locks: status.grants,
        tolerates: Some(v1::Tolerance {
            stops: count(status.tolerates.stops),
            memory_losses: count(status.tolerates.memory_losses),
        }),
        summary: bounded(&status.summary),
        nodes: status.nodes.iter().map(node_status).collect(),
        events: events.iter().map(cluster_event).collect(),
        daemon: Some(daemon_status(&status.daemon)),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn node_status(node: &NodeStatus) -> v1::NodeStatus {
    v1::NodeStatus {
        index: node.index.0.into(),
        address: bounded(&node.address),
        connection: connection_state(node.connection).into(),
        member: member_state(node.listed).into(),
        counts: node.counts,
        problem: node.problem.as_deref().map(bounded).unwrap_or_default(),
        has_listed_memory: node.has_listed_memory,
        join: node.join.as_ref().map(join_progress),
        missed_records: node.missed,
        round_trip: node.figures.map(|figures| duration(figures.round_trip)),
        clock_offset: node.figures.map(|figures| signed_micros(figures.clock_offset_us)),
        measure_time: node.figures.map(|figures| timestamp(figures.measured_unix_ms)),
        server_version: node.version.as_deref().unwrap_or_default().chars().take(64).collect(),
    }
}

fn connection_state(connection: Connection) -> v1::ConnectionState {
    match connection {
        Connection::Unreachable => v1::ConnectionState::Unreachable,
        Connection::Refused => v1::ConnectionState::Refused,
        Connection::Ready => v1::ConnectionState::Ready,
    }
}

fn member_state(listed: Option<State>) -> v1::MemberState {
    match listed {
        None => v1::MemberState::Unknown,
        Some(State::Member) => v1::MemberState::Member,
        Some(State::Joining) => v1::MemberState::Joining,
        Some(State::Out) => v1::MemberState::Out,
    }
}

fn join_progress(join: &JoinProgress) -> v1::JoinProgress {
    v1::JoinProgress { wiping: join.wiping, merged_records: join.merged, expected_records: join.expected }
}

fn cluster_event(event: &Event) -> v1::ClusterEvent {
    let kind = match event.kind {
        EventKind::Founded => v1::ClusterEventKind::Founded,
        EventKind::MemoryLost => v1::ClusterEventKind::MemoryLost,
        EventKind::Joined => v1::ClusterEventKind::Joined,
        EventKind::PutOut => v1::ClusterEventKind::PutOut,
        EventKind::ClockJumped => v1::ClusterEventKind::ClockJumped,
        EventKind::Recovered => v1::ClusterEventKind::Recovered,
        EventKind::PossibleLoss => v1::ClusterEventKind::PossibleLoss,
    };
    v1::ClusterEvent {
        number: event.number,
        time: Some(timestamp(event.unix_ms)),
        kind: kind.into(),
        node: event.node.map(|node| node.0.into()),
        text: bounded(&event.text),
    }
}

fn daemon_status(daemon: &DaemonFacts) -> v1::DaemonStatus {
    let setting = |(key, value): &(String, String)| v1::Setting { key: key.clone(), value: bounded(value) };
    v1::DaemonStatus {
        version: daemon.version.to_owned(),
        proposer_id: daemon.proposer.to_string(),
        start_time: Some(timestamp(daemon.started_unix_ms)),
        settings: daemon.settings.iter().map(setting).collect(),
    }
}

/// Seconds and nanoseconds have the same sign.
fn signed_micros(micros: i64) -> prost_types::Duration {
    let nanos = i32::try_from(micros % 1_000_000).expect("a remainder of a million fits") * 1_000;
    prost_types::Duration { seconds: (micros / 1_000_000).clamp(-WIRE_SECONDS_MAX, WIRE_SECONDS_MAX), nanos }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{refused, wire};
    use super::*;
    use crate::ids::NodeIndex;

    #[test]
    fn a_watch_of_the_status_has_an_interval_that_people_can_follow() {
        let asked = |min_interval| {
            let request = v1::WatchStatusRequest { min_interval, events_max: None };
            watch_status(&request, &Limits::default()).map(|(_, interval)| interval)
        };
        assert_eq!(asked(None), Ok(Duration::from_secs(1)));
        assert_eq!(asked(wire(0, 0)), Ok(Duration::from_millis(100)));
        assert_eq!(asked(wire(2, 500_000_000)), Ok(Duration::from_millis(2_500)));
        assert_eq!(asked(wire(86_400, 0)), Ok(Duration::from_secs(3_600)));
        for bad in [wire(-1, 0), wire(0, -1), wire(1, -1), wire(0, 1_000_000_000)] {
            assert_eq!(refused(asked(bad)), [("min_interval", Reason::InvalidInterval)], "{bad:?}");
        }
        assert_eq!([None, Some(0), Some(30), Some(1_000)].map(events_max), [20, 0, 30, 256]);
    }

    #[test]
    fn a_status_goes_over_the_wire_as_it_is() {
        use crate::ids::ProposerId;
        use crate::quorum::ClusterSize;
        let figures = cluster::Figures {
            round_trip: Duration::from_micros(1_500),
            clock_offset_us: -2_000_001,
            measured_unix_ms: 1_001,
        };
        let node = NodeStatus {
            index: NodeIndex(0),
            address: "redis://a:6379".into(),
            connection: Connection::Ready,
            listed: Some(State::Joining),
            counts: false,
            problem: Some("ü".repeat(2_000)),
            has_listed_memory: Some(false),
            join: Some(JoinProgress { wiping: true, merged: 3, expected: None }),
            missed: 9,
            figures: Some(figures),
            version: Some("7.2.4".into()),
        };
        let event = |number| Event {
            number,
            unix_ms: 2_000,
            kind: EventKind::PutOut,
            node: None,
            text: "gone".into(),
        };
        let daemon = DaemonFacts {
            cluster: "blue".into(),
            version: "1.2.3",
            proposer: ProposerId(255),
            started_unix_ms: 3_000,
            settings: vec![("cluster.name".into(), "blue".into())],
        };
        let status = cluster::Status {
            size: ClusterSize::new(1).unwrap(),
            counting: 0,
            serves: false,
            grants: false,
            tolerates: cluster::Tolerance { stops: 0, memory_losses: 0 },
            summary: "not serving".into(),
            nodes: vec![node],
            events: vec![event(1), event(2), event(3)],
            daemon: std::sync::Arc::new(daemon),
        };
        let sent = cluster_status(&status, 2);
        assert_eq!((sent.cluster.as_str(), sent.node_count, sent.quorum), ("blue", 1, 1));
        let numbers: Vec<u64> = sent.events.iter().map(|event| event.number).collect();
        assert_eq!(numbers, [2, 3], "the latest, oldest first");
        assert_eq!((sent.events[0].kind(), sent.events[0].node), (v1::ClusterEventKind::PutOut, None));
        let node = &sent.nodes[0];
        assert_eq!(
            (node.member(), node.connection()),
            (v1::MemberState::Joining, v1::ConnectionState::Ready)
        );
        assert_eq!(node.clock_offset, wire(-2, -1_000));
        assert_eq!((node.round_trip, node.missed_records), (wire(0, 1_500_000), 9));
        assert!(node.problem.len() <= 1_024 && !node.problem.is_empty());
        let join = v1::JoinProgress { wiping: true, merged_records: 3, expected_records: None };
        assert_eq!(node.join, Some(join));
        let daemon = sent.daemon.expect("always there");
        assert_eq!((daemon.proposer_id.as_str(), daemon.settings.len()), ("00000000000000ff", 1));
        assert_eq!(signed_micros(i64::MIN).seconds, -WIRE_SECONDS_MAX);
    }
}
