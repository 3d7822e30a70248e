//! `majorityd status`: how the cluster is, as one daemon sees it.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tonic::{Code, Request};

use super::client::{CALL_TIMEOUT, ClientFlags, Daemons, explain, request};
use super::{EXIT_FAILURE, EXIT_OK, Output, printable, table};
use crate::proto::v1;

/// Exit code: a quorum serves, but some node does not count.
const EXIT_DEGRADED: u8 = 3;
/// Exit code: no quorum.
const EXIT_NO_QUORUM: u8 = 4;
/// Exit code: a quorum serves, but no lock is granted until leases from before a recovery have run out.
const EXIT_WAITS: u8 = 5;
/// Puts the cursor home and clears what was there.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// The command line of `majorityd status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0   a quorum serves, and every node is a member and counts
  1   no daemon answers, or it went away during --watch
  3   a quorum serves, but some node does not count
  4   no quorum
  5   a quorum serves, but grants no locks yet after a founding or a recovery
  64  wrong command line")]
pub struct Status {
    /// Which daemon.
    #[command(flatten)]
    client: ClientFlags,

    /// Show it again on each change, until Ctrl-C
    ///
    /// Redraws a terminal; elsewhere, one after the other. The exit code is that of the last one shown if the reader
    /// of the output goes away.
    #[arg(long)]
    watch: bool,

    /// How to print
    ///
    /// With --watch, JSON is one object per line.
    #[arg(long, value_enum, default_value_t)]
    output: Output,

    /// The same as --output json
    #[arg(long, conflicts_with = "output")]
    json: bool,

    /// How many of the latest events to show
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    events: u32,
}

/// The status as this command prints it. Names of fields are for scripts, and only grow.
#[derive(Serialize)]
struct StatusLine {
    cluster: String,
    node_count: u32,
    quorum: u32,
    counting: u32,
    serves: bool,
    grants_locks: bool,
    tolerates: ToleratesLine,
    summary: String,
    nodes: Vec<NodeLine>,
    events: Vec<EventLine>,
    daemon: DaemonLine,
}

#[derive(Serialize)]
struct ToleratesLine {
    stops: u32,
    memory_losses: u32,
}

#[derive(Serialize)]
struct NodeLine {
    index: u32,
    address: String,
    connection: String,
    member: String,
    counts: bool,
    problem: Option<String>,
    has_listed_memory: Option<bool>,
    join: Option<JoinLine>,
    missed_records: u64,
    round_trip_us: Option<i128>,
    clock_offset_us: Option<i128>,
    measured: Option<String>,
    server_version: Option<String>,
}

#[derive(Serialize)]
struct JoinLine {
    wiping: bool,
    merged_records: u64,
    expected_records: Option<u64>,
}

#[derive(Serialize)]
struct EventLine {
    number: u64,
    time: Option<String>,
    kind: String,
    node: Option<u32>,
    text: String,
}

#[derive(Serialize)]
struct DaemonLine {
    version: String,
    proposer_id: String,
    started: Option<String>,
    settings: serde_json::Map<String, serde_json::Value>,
}

impl Status {
    /// Asks and prints.
    pub async fn run(self) -> u8 {
        let mut daemons = match Daemons::new(&self.client) {
            Ok(daemons) => daemons,
            Err(code) => return code,
        };
        let mut asked = 1;
        loop {
            let done = if self.watch { self.follow(&daemons).await } else { self.show(&daemons).await };
            let status = match done {
                Ok(code) => return code,
                Err(status) => status,
            };
            eprintln!("majorityd: {}", explain(&status, daemons.address()));
            // Only one that does not answer has the next one asked.
            if status.code() != Code::Unavailable || asked == daemons.count() {
                return EXIT_FAILURE;
            }
            asked += 1;
            daemons.advance();
        }
    }

    async fn show(&self, daemons: &Daemons) -> Result<u8, tonic::Status> {
        let message = v1::GetStatusRequest { events_max: Some(self.events) };
        let answer = daemons.cluster_client().get_status(request(message, CALL_TIMEOUT)).await?.into_inner();
        let status = line(whole(answer.status)?);
        write(&self.render(&status, false));
        Ok(exit_code(&status))
    }

    /// Ends with an error when the daemon goes away, and without one when the reader of the output does.
    async fn follow(&self, daemons: &Daemons) -> Result<u8, tonic::Status> {
        let message = v1::WatchStatusRequest { events_max: Some(self.events), min_interval: None };
        let mut stream = daemons.cluster_client().watch_status(Request::new(message)).await?.into_inner();
        let clear = io::stdout().is_terminal() && self.output() == Output::Text;
        while let Some(event) = stream.message().await? {
            let status = line(whole(event.status)?);
            let text = self.render(&status, true);
            let text = if clear { format!("{CLEAR}{text}") } else { text };
            if !write(&text) {
                return Ok(exit_code(&status));
            }
        }
        Err(tonic::Status::unavailable("the daemon ended the stream"))
    }

    fn output(&self) -> Output {
        if self.json { Output::Json } else { self.output }
    }

    /// With its newline; where one follows another, text with an empty line between them.
    fn render(&self, status: &StatusLine, more: bool) -> String {
        let json = |text: serde_json::Result<String>| text.expect("what is printed has text keys only");
        match (self.output(), more) {
            (Output::Json, false) => format!("{}\n", json(serde_json::to_string_pretty(status))),
            (Output::Json, true) => format!("{}\n", json(serde_json::to_string(status))),
            (Output::Text, false) => format!("{}\n", render(status)),
            (Output::Text, true) => format!("{}\n\n", render(status)),
        }
    }
}

/// `false` when nobody reads any more.
fn write(text: &str) -> bool {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}

fn whole(status: Option<v1::ClusterStatus>) -> Result<v1::ClusterStatus, tonic::Status> {
    status.ok_or_else(|| tonic::Status::internal("the answer has no status in it"))
}

fn exit_code(status: &StatusLine) -> u8 {
    let all = status.nodes.iter().all(|node| node.counts);
    match (status.serves, status.grants_locks, all) {
        (false, _, _) => EXIT_NO_QUORUM,
        (true, false, _) => EXIT_WAITS,
        (true, true, true) => EXIT_OK,
        (true, true, false) => EXIT_DEGRADED,
    }
}

fn line(status: v1::ClusterStatus) -> StatusLine {
    let tolerates = status.tolerates.unwrap_or_default();
    StatusLine {
        cluster: status.cluster,
        node_count: status.node_count,
        quorum: status.quorum,
        counting: status.counting,
        serves: status.serves,
        grants_locks: status.grants_locks,
        tolerates: ToleratesLine { stops: tolerates.stops, memory_losses: tolerates.memory_losses },
        summary: status.summary,
        nodes: status.nodes.into_iter().map(node_line).collect(),
        events: status.events.into_iter().map(event_line).collect(),
        daemon: daemon_line(status.daemon.unwrap_or_default()),
    }
}

fn node_line(node: v1::NodeStatus) -> NodeLine {
    let join = node.join.map(|join| JoinLine {
        wiping: join.wiping,
        merged_records: join.merged_records,
        expected_records: join.expected_records,
    });
    NodeLine {
        connection: word(node.connection().as_str_name(), "CONNECTION_STATE_"),
        member: word(node.member().as_str_name(), "MEMBER_STATE_"),
        index: node.index,
        address: node.address,
        counts: node.counts,
        problem: Some(node.problem).filter(|problem| !problem.is_empty()),
        has_listed_memory: node.has_listed_memory,
        join,
        missed_records: node.missed_records,
        round_trip_us: node.round_trip.map(micros),
        clock_offset_us: node.clock_offset.map(micros),
        measured: node.measure_time.map(|time| time.to_string()),
        server_version: Some(node.server_version).filter(|version| !version.is_empty()),
    }
}

fn event_line(event: v1::ClusterEvent) -> EventLine {
    EventLine {
        kind: word(event.kind().as_str_name(), "CLUSTER_EVENT_KIND_"),
        number: event.number,
        time: event.time.map(|time| time.to_string()),
        node: event.node,
        text: event.text,
    }
}

fn daemon_line(daemon: v1::DaemonStatus) -> DaemonLine {
    let settings = daemon.settings.into_iter().map(|setting| (setting.key, setting.value.into()));
    DaemonLine {
        version: daemon.version,
        proposer_id: daemon.proposer_id,
        started: daemon.start_time.map(|time| time.to_string()),
        settings: settings.collect(),
    }
}

/// A value of an enum as a word: `MEMBER_STATE_OUT` is `out`. One of a newer daemon is `unspecified`.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

/// Negative too.
fn micros(length: prost_types::Duration) -> i128 {
    i128::from(length.seconds) * 1_000_000 + i128::from(length.nanos) / 1_000
}

fn render(status: &StatusLine) -> String {
    let daemon = &status.daemon;
    let mut lines = vec![format!(
        "cluster {}, as daemon {} sees it (version {}, since {})",
        status.cluster,
        daemon.proposer_id,
        daemon.version,
        daemon.started.as_deref().unwrap_or("-")
    )];
    let rows: Vec<Vec<String>> = status.nodes.iter().map(row).collect();
    let titles =
        ["NODE", "ADDRESS", "CONNECTION", "MEMBER", "COUNTS", "ROUND TRIP", "CLOCK", "MISSED", "VERSION"];
    lines.push(table(&titles, &rows));
    for node in &status.nodes {
        lines.extend(node.problem.iter().map(|problem| format!("node {}: {problem}", node.index)));
    }
    lines.push(status.summary.clone());
    if !status.events.is_empty() {
        lines.push("events:".to_owned());
    }
    for event in &status.events {
        let node = event.node.map_or(String::new(), |node| format!("node {node}: "));
        let time = event.time.as_deref().unwrap_or("-");
        lines.push(format!("  {time}  {}  {node}{}", event.kind, event.text));
    }
    printable(&lines.join("\n"))
}

fn row(node: &NodeLine) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    vec![
        node.index.to_string(),
        node.address.clone(),
        node.connection.clone(),
        member(node),
        if node.counts { "yes" } else { "no" }.to_owned(),
        or_dash(node.round_trip_us.map(|us| in_words(us, false))),
        or_dash(node.clock_offset_us.map(|us| in_words(us, true))),
        node.missed_records.to_string(),
        or_dash(node.server_version.clone()),
    ]
}

/// With what share of a join is done, or that the node has not the memory listed.
fn member(node: &NodeLine) -> String {
    match (&node.join, node.has_listed_memory) {
        (Some(JoinLine { wiping: true, .. }), _) => format!("{}, wiping", node.member),
        (Some(JoinLine { merged_records, expected_records: Some(expected), .. }), _) => {
            format!("{}, {merged_records}/{expected}", node.member)
        }
        (Some(JoinLine { merged_records, .. }), _) => format!("{}, {merged_records}", node.member),
        (None, Some(false)) if node.member == "member" => "member without memory".to_owned(),
        (None, _) => node.member.clone(),
    }
}

/// A number of microseconds in the unit that suits it, with a sign if asked for.
fn in_words(us: i128, signed: bool) -> String {
    // What is shown as zero has no side.
    let sign = match (us <= -50, signed) {
        (true, _) => "-",
        (false, true) => "+",
        (false, false) => "",
    };
    let length = Duration::from_micros(u64::try_from(us.unsigned_abs()).unwrap_or(u64::MAX));
    match length {
        _ if length < Duration::from_secs(1) => format!("{sign}{:.1}ms", length.as_secs_f64() * 1_000.0),
        _ => format!("{sign}{:.1}s", length.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(index: u32, counts: bool) -> v1::NodeStatus {
        let ready = v1::ConnectionState::Ready;
        v1::NodeStatus {
            index,
            address: format!("redis://n{index}:6379"),
            connection: if counts { ready } else { v1::ConnectionState::Unreachable }.into(),
            member: v1::MemberState::Member.into(),
            counts,
            problem: if counts { String::new() } else { "Connection refused\u{1b}[2J".into() },
            has_listed_memory: counts.then_some(true),
            round_trip: counts.then_some(prost_types::Duration { seconds: 0, nanos: 412_345 }),
            clock_offset: counts.then_some(prost_types::Duration { seconds: -3, nanos: -500_000_000 }),
            server_version: if counts { "7.0.15".into() } else { String::new() },
            ..v1::NodeStatus::default()
        }
    }

    fn status(counts: &[bool]) -> v1::ClusterStatus {
        let nodes: Vec<_> = (0..).zip(counts).map(|(index, counts)| node(index, *counts)).collect();
        let counting = nodes.iter().filter(|node| node.counts).count() as u32;
        let event = v1::ClusterEvent {
            number: 4,
            time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
            kind: v1::ClusterEventKind::MemoryLost.into(),
            node: Some(1),
            text: "it restarted".into(),
        };
        v1::ClusterStatus {
            cluster: "blue".into(),
            counting,
            serves: counting >= 2,
            grants_locks: counting >= 2,
            summary: "so it is".into(),
            nodes,
            events: vec![event],
            ..v1::ClusterStatus::default()
        }
    }

    #[test]
    fn the_exit_code_says_how_bad_it_is() {
        for (counts, code) in
            [([true, true, true], 0), ([true, true, false], 3), ([true, false, false], 4), ([false; 3], 4)]
        {
            assert_eq!(exit_code(&line(status(&counts))), code, "{counts:?}");
            // In the wait after a recovery.
            let waits = v1::ClusterStatus { grants_locks: false, ..status(&counts) };
            let code = if code == 4 { 4 } else { 5 };
            assert_eq!(exit_code(&line(waits)), code, "{counts:?}, and no locks are granted");
        }
    }

    #[test]
    fn people_see_nodes_then_the_sentence_then_events() {
        let text = render(&line(status(&[true, true, false])));
        assert!(!text.contains('\u{1b}'), "{text}");
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[0].starts_with("cluster blue"), "{text}");
        let cells: Vec<&str> = rows[2].split_whitespace().collect();
        let expected = ["0", "redis://n0:6379", "ready", "member", "yes", "0.4ms", "-3.5s", "0", "7.0.15"];
        assert_eq!(cells, expected, "{text}");
        let cells: Vec<&str> = rows[4].split_whitespace().collect();
        assert_eq!(cells, ["2", "redis://n2:6379", "unreachable", "member", "no", "-", "-", "0", "-"]);
        assert!(rows[5].starts_with("node 2: Connection refused"), "{text}");
        assert_eq!(rows[6], "so it is");
        assert_eq!(rows[8], "  2027-01-15T08:00:00Z  memory_lost  node 1: it restarted");
    }

    #[test]
    fn a_join_is_shown_where_the_member_state_is() {
        let with = |join, has_listed_memory| {
            let member = v1::MemberState::Joining.into();
            member_of(v1::NodeStatus { member, join, has_listed_memory, ..node(0, true) })
        };
        let member_of_join = |wiping, merged_records, expected_records| {
            with(Some(v1::JoinProgress { wiping, merged_records, expected_records }), Some(true))
        };
        assert_eq!(member_of_join(true, 0, None), "joining, wiping");
        assert_eq!(member_of_join(false, 12, Some(40)), "joining, 12/40");
        assert_eq!(member_of_join(false, 12, None), "joining, 12");
        assert_eq!(with(None, Some(false)), "joining");
        let lost = v1::NodeStatus { has_listed_memory: Some(false), ..node(0, true) };
        assert_eq!(member_of(lost), "member without memory");
    }

    #[test]
    fn lengths_have_one_digit_behind_the_point_and_a_side_if_they_are_to_have_one() {
        for (us, signed, text) in [
            (0, false, "0.0ms"),
            (-49, true, "+0.0ms"),
            (-50, true, "-0.1ms"),
            (1_250_000, false, "1.2s"),
            (-3_600_000_000, true, "-3600.0s"),
        ] {
            assert_eq!(in_words(us, signed), text, "{us}");
        }
    }

    fn member_of(node: v1::NodeStatus) -> String {
        member(&node_line(node))
    }

    #[test]
    fn scripts_find_the_same_names_whatever_is_known() {
        let json = serde_json::to_value(line(status(&[true, true, false]))).unwrap();
        let nodes = json["nodes"].as_array().unwrap();
        let keys = |node: &serde_json::Value| node.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&nodes[0]), keys(&nodes[2]));
        assert_eq!(nodes[0]["clock_offset_us"], -3_500_000);
        assert_eq!((&nodes[2]["round_trip_us"], &nodes[2]["problem"].is_string()), (&().into(), &true));
        assert_eq!(json["events"][0]["kind"], "memory_lost");
    }
}
