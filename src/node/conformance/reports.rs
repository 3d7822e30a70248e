//! What a node is told of the others and tells of itself: `report`, `missed`, and the count of writes.

use super::*;
use crate::node::operation::{Forgotten, JoinState, News, Told};

/// A report about one node.
fn news(node: usize, news: News) -> Report {
    let mut nodes = vec![News::default(); NODES];
    nodes[node] = news;
    Report { nodes, missed: Vec::new() }
}

fn nothing_new() -> Report {
    news(0, News::default())
}

const SECOND: Duration = Duration::from_secs(1);

pub(super) async fn ages_are_by_the_clock_of_the_node(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    let reached = |node| news(node, News { reached: true, ..News::default() });
    let ages = async |report| -> Vec<u64> {
        let told: Vec<Told> = connection.report(report).await.nodes;
        told.iter().map(|told| told.unreached.as_secs()).collect()
    };
    // There is no list yet, and no memory: reports have no gate. What was never reached counts from the first report.
    assert_eq!(ages(nothing_new()).await, [0, 0, 0]);
    subject.set_time(START + 10);
    assert_eq!(ages(reached(1)).await, [10, 0, 10]);
    subject.set_time(START + 15);
    assert_eq!(ages(reached(2)).await, [15, 5, 0]);
    assert_eq!(ages(nothing_new()).await, [15, 5, 0], "and all is kept");
    // What lies ahead of a clock that went back starts anew, or it would count for nothing until the clock is there.
    subject.set_time(START + 12);
    assert_eq!(ages(nothing_new()).await, [12, 2, 0]);
    subject.set_time(START - 100);
    assert_eq!(ages(nothing_new()).await, [0, 0, 0]);
    subject.set_time(START - 90);
    assert_eq!(ages(reached(0)).await, [0, 10, 10]);
    let connection = restarted(subject).await;
    subject.set_time(START - 80);
    let told = connection.report(nothing_new()).await.nodes;
    assert_eq!(told[1].unreached, 20 * SECOND, "also over a restart");
}

pub(super) async fn the_highest_count_of_each_memory_is_kept(subject: &dyn Subject) {
    let connection = member(subject).await;
    let told = async |memory, writes| {
        let heard = News { reached: false, memory, writes };
        let told = connection.report(news(2, heard)).await.nodes;
        assert_eq!((told[0].memory, told[0].writes, told[1].memory), (None, 0, None), "of that node alone");
        (told[2].memory, told[2].writes)
    };
    let (one, other) = (Some(MemoryId(1)), Some(MemoryId(u64::MAX)));
    assert_eq!(told(None, 7).await, (None, 0), "a count out of no memory is none");
    assert_eq!(told(one, 5).await, (one, 5));
    assert_eq!(told(one, 3).await, (one, 5));
    assert_eq!(told(None, 0).await, (one, 5));
    assert_eq!(told(one, 9).await, (one, 9));
    assert_eq!(told(other, 2).await, (other, 2), "another memory counts from its own");
    assert_eq!(told(other, 1).await, (other, 2));
    assert_eq!(told(other, 1 << 52).await, (other, 1 << 52));
}

pub(super) async fn a_short_report_spoils_nothing(subject: &dyn Subject) {
    let connection = member(subject).await;
    let heard = News { reached: true, memory: Some(MemoryId(1)), writes: 5 };
    connection.report(Report { nodes: vec![heard; NODES], missed: Vec::new() }).await;
    subject.set_time(START + 5);
    for nodes in [Vec::new(), vec![heard], vec![heard; NODES + 1]] {
        let reached = nodes.len();
        let told = connection.report(Report { nodes, missed: Vec::new() }).await.nodes;
        assert_eq!(told.len(), NODES);
        for (i, told) in told.into_iter().enumerate() {
            let unreached = if i < reached { 0 } else { 5 };
            let expected = Told { unreached: unreached * SECOND, memory: heard.memory, writes: 5, notes: 0 };
            assert_eq!(told, expected, "node {i}, {reached} in the report");
        }
    }
}

pub(super) async fn what_was_missed_is_noted_until_it_is_brought(subject: &dyn Subject) {
    let connection = member(subject).await;
    let note = |node: u8, names: &[&str]| {
        let missed = vec![(NodeIndex(node), names.iter().map(|name| lock(name)).collect())];
        Report { missed, ..nothing_new() }
    };
    let notes = async |report| -> Vec<u64> {
        connection.report(report).await.nodes.iter().map(|told| told.notes).collect()
    };
    let missed = |node, done: &[&str], limit| {
        let done = done.iter().map(|name| lock(name)).collect();
        Operation::Missed { node: NodeIndex(node), done, limit }
    };
    let names = |names: &[&str]| Answer::Names(names.iter().map(|name| format!("l:{name}")).collect());
    assert_eq!(notes(note(0, &["b", "a", "c"])).await, [3, 0, 0]);
    assert_eq!(notes(note(0, &["a"])).await, [3, 0, 0], "each once");
    assert_eq!(notes(note(2, &["a"])).await, [3, 0, 1]);
    assert_eq!(connection.run(missed(0, &[], 100)).await, names(&["a", "b", "c"]));
    assert_eq!(connection.run(missed(0, &[], 2)).await, names(&["a", "b"]));
    assert_eq!(connection.run(missed(1, &["a"], 100)).await, names(&[]));
    assert_eq!(connection.run(missed(0, &["a", "none"], 1)).await, names(&["b"]));
    assert_eq!(connection.run(missed(0, &["b", "c"], 0)).await, names(&[]));
    assert_eq!(notes(nothing_new()).await, [0, 0, 1], "the other node's are its own");
    assert!(subject.dump().get(b"majorityd:n:0").is_none());
    for list in [Ballot::ZERO, ballot(7, 7)] {
        assert_eq!(connection.run_by(list, missed(2, &["a"], 1)).await, None);
    }
    assert_eq!(connection.run(missed(2, &[], 1)).await, names(&["a"]));
    // Several nodes at once.
    let both = Report {
        missed: vec![(NodeIndex(0), vec![lock("x")]), (NodeIndex(1), vec![lock("x"), lock("y")])],
        ..nothing_new()
    };
    assert_eq!(notes(both).await, [1, 2, 1]);
}

pub(super) async fn notes_are_bounded(subject: &dyn Subject) {
    const NOTES_MAX: u64 = 100_000;
    let connection = member(subject).await;
    let note = async |names: std::ops::Range<u64>| {
        let missed = vec![(NodeIndex(0), names.map(|i| lock(&format!("{i}"))).collect())];
        connection.report(Report { missed, ..nothing_new() }).await.nodes[0].notes
    };
    assert_eq!(note(0..NOTES_MAX - 1).await, NOTES_MAX - 1);
    assert_eq!(note(NOTES_MAX..NOTES_MAX + 5).await, NOTES_MAX);
    assert_eq!(note(NOTES_MAX + 5..NOTES_MAX + 6).await, NOTES_MAX);
    // One that is there needs no room.
    assert_eq!(note(0..2).await, NOTES_MAX);
}

pub(super) async fn a_node_tells_of_its_own_join(subject: &dyn Subject) {
    let connection = member(subject).await;
    let (next, memory) = (ballot(10, 9), MemoryId(0xbeef));
    let told = async || connection.report(nothing_new()).await;
    let reported = told().await;
    assert_eq!((reported.join, reported.aside, reported.nodes.len()), (None, None, NODES));
    connection.run(put("a", ballot(1, 1), "x")).await;
    connection.ungated(list(next)).await;
    connection.ungated(Operation::BeginJoin { list: next, memory, recovery: None }).await;
    let state = |wiping, merged, idle: u32| Some(JoinState { wiping, merged, idle: idle * SECOND });
    assert_eq!(told().await.join, state(true, 0, 0));
    subject.set_time(START + 4);
    assert_eq!(told().await.join, state(true, 0, 4));
    let merge = |rows: Vec<(RegisterKey, Bytes)>| Operation::Merge { memory, floor: Ballot::ZERO, rows };
    assert_eq!(connection.ungated(merge(Vec::new())).await, Answer::Wiping);
    assert_eq!(told().await.join, state(false, 0, 0), "a slice moves it");
    subject.set_time(START + 9);
    let answer = connection.ungated(merge(vec![(lock("torn"), Bytes::from_static(b"torn"))])).await;
    assert!(matches!(answer, Answer::Failed { .. }), "{answer:?}");
    assert_eq!(told().await.join, state(false, 0, 5), "what fails does not");
    let Some(Entry::Bytes(raw)) = subject.dump().get(b"majorityd:r:m:").cloned() else { panic!("a list") };
    let rows = vec![(lock("a"), raw.clone()), (lock("b"), raw.clone()), (lock("a"), raw)];
    assert_eq!(connection.ungated(merge(rows)).await, Answer::Accepted);
    assert_eq!(told().await.join, state(false, 3, 0), "each as often as it comes");
    subject.set_time(START);
    assert_eq!(told().await.join, state(false, 3, 0), "a clock that went back");
    connection.ungated(Operation::EndJoin { memory }).await;
    assert_eq!(told().await.join, None);
    let connection = restarted(subject).await;
    let reported = connection.report(nothing_new()).await;
    assert_eq!((reported.join, reported.aside), (None, Some(memory)));
    assert_eq!(reported.writes, 1, "one merge has stored something");
}

pub(super) async fn batches_that_change_something_are_counted(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    let by = founding();
    assert_eq!(connection.writes(by, &found()).await, Some(1));
    assert_eq!(connection.writes(by, &[]).await, None);
    assert_eq!(connection.writes(by, &[put("a", ballot(1, 1), "x")]).await, Some(2));
    // The same again, a look, and what is refused change nothing.
    let quiet = [
        put("a", ballot(1, 1), "x"),
        put("a", ballot(0, 1), "low"),
        read("a"),
        prepare("a", ballot(1, 2)),
        names_from(""),
        Operation::Ballots { keys: vec![lock("a")] },
        Operation::Report(nothing_new()),
        Operation::Missed { node: NodeIndex(0), done: vec![lock("a")], limit: 1 },
        Operation::Forget { records: Vec::new() },
    ];
    assert_eq!(connection.writes(by, &quiet).await, None);
    assert_eq!(connection.writes(ballot(7, 7), &[put("a", ballot(2, 1), "gated")]).await, None);
    let several = [prepare("b", ballot(1, 1)), prepare("c", ballot(1, 1)), put("b", ballot(1, 1), "x")];
    assert_eq!(connection.writes(by, &several).await, Some(3), "a batch counts once");
    let record = Forgotten { key: lock("b"), ballot: ballot(1, 1), promise: ballot(1, 1).token };
    assert_eq!(connection.writes(by, &[Operation::Forget { records: vec![record] }]).await, Some(4));
    assert_eq!(connection.report(nothing_new()).await.writes, 4);

    // What fails half way has changed something too.
    connection.run(listed("torn", ballot(2, 1), true)).await;
    subject.put(b"majorityd:i:l", Entry::Bytes("no index".into()));
    let record = Forgotten { key: lock("torn"), ballot: ballot(2, 1), promise: ballot(2, 1).token };
    assert_eq!(connection.writes(by, &[Operation::Forget { records: vec![record] }]).await, Some(6));

    // A recovery goes on counting, a join begins anew.
    let (next, memory) = (ballot(10, 9), MemoryId(0xbeef));
    assert_eq!(connection.writes(by, &[list(next)]).await, Some(7));
    let begin = |memory, recovery| Operation::BeginJoin { list: next, memory, recovery };
    connection.ungated(begin(memory, Some(next))).await;
    assert_eq!(connection.report(nothing_new()).await.writes, 7);
    let rows = connection.page(next, keys_of(next, "a")).await.rows;
    let rows: Vec<_> = rows.into_iter().map(|(key, raw)| (key, raw.expect("stored"))).collect();
    let merge = |memory, rows| Operation::Merge { memory, floor: Ballot::ZERO, rows };
    assert_eq!(connection.writes(by, &[merge(memory, rows.clone())]).await, Some(8));
    connection.ungated(begin(MemoryId(7), None)).await;
    assert_eq!(connection.report(nothing_new()).await.writes, 0);
    assert_eq!(
        connection.writes(by, &[merge(MemoryId(7), rows.clone())]).await,
        None,
        "removing is no write"
    );
    assert_eq!(connection.writes(by, &[merge(MemoryId(7), rows)]).await, Some(1));
}

/// For the recovery of a list: some of its keys.
fn keys_of(recovery: Ballot, name: &str) -> PageRequest {
    let cursor = PageRequest::START;
    let (count, bytes, recovery, with_values) = (1, 1 << 20, Some(recovery), true);
    PageRequest { cursor, count, bytes, recovery, with_values, keys: vec![lock(name)] }
}
