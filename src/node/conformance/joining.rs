//! Joining and recovery: `begin_join`, `merge`, `end_join`, and what the handshake makes of them.

use super::*;
use crate::node::operation::News;

/// The list in which the node joins.
fn joining_list() -> Ballot {
    ballot(10, 9)
}

/// The memory that it joins with.
const JOINER: MemoryId = MemoryId(0xbeef);
/// Another one.
const OTHER: MemoryId = MemoryId(0xcafe);
/// Merges that a removal of old data may take before a case gives up.
const SLICES_MAX: usize = 100;

fn begin(list: Ballot, memory: MemoryId, recovery: Option<Ballot>) -> Operation {
    Operation::BeginJoin { list, memory, recovery }
}

fn end(memory: MemoryId) -> Operation {
    Operation::EndJoin { memory }
}

fn merge(memory: MemoryId, floor: Ballot, rows: &[(&str, Bytes)]) -> Operation {
    let rows = rows.iter().map(|(key, raw)| (lock(key), raw.clone())).collect();
    Operation::Merge { memory, floor, rows }
}

/// Sends a merge until the old data is removed; the answer then, and how many slices it took.
async fn merged(connection: &Connection, merge: Operation) -> (Answer, usize) {
    for slices in 0..SLICES_MAX {
        match connection.ungated(merge.clone()).await {
            Answer::Wiping => {}
            answer => return (answer, slices),
        }
    }
    panic!("the old data is never removed");
}

/// A connection to a node that joins with [`JOINER`] and has nothing yet.
async fn joiner(subject: &dyn Subject) -> Connection {
    let connection = member(subject).await;
    connection.ungated(list(joining_list())).await;
    assert_eq!(connection.ungated(begin(joining_list(), JOINER, None)).await, Answer::Accepted);
    assert_eq!(merged(&connection, merge(JOINER, Ballot::ZERO, &[])).await.0, Answer::Accepted);
    connection
}

/// Begins the recovery of the joining list on a node.
async fn recovering(connection: &Connection) {
    connection.ungated(list(joining_list())).await;
    let begun = begin(joining_list(), JOINER, Some(joining_list()));
    assert_eq!(connection.ungated(begun).await, Answer::Accepted);
}

/// Somebody else is promised the list.
async fn promise_the_list(connection: &Connection, ballot: Ballot) {
    let prepare = Operation::Prepare { key: RegisterKey::members(), ballot, soft: false };
    assert!(matches!(connection.ungated(prepare).await, Answer::Promised { .. }));
}

/// The record after the join.
async fn record_of(connection: &Connection, key: &str) -> Option<Record> {
    match connection.run_by(joining_list(), read(key)).await {
        Some(Answer::Record(record)) => record,
        other => panic!("read answered {other:?}"),
    }
}

pub(super) async fn a_join_shuts_and_opens_the_gate_for_what_follows_in_its_batch(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.ungated(list(joining_list())).await;
    let put = |token| put("a", ballot(token, 1), "x");
    let prepare = Operation::Prepare { key: lock("b"), ballot: ballot(30, 1), soft: false };
    let batch = [put(20), begin(joining_list(), JOINER, None), put(21), prepare, read("a")];
    let (_, _, answers) = connection.done(joining_list(), &batch).await;
    let [accepted, not_serving] = [Answer::Accepted, Answer::NotServing].map(Some);
    assert_eq!(answers[..2], [accepted.clone(), accepted.clone()]);
    assert_eq!(answers[2..], [not_serving.clone(), not_serving.clone(), not_serving]);
    assert_eq!(merged(&connection, merge(JOINER, Ballot::ZERO, &[])).await.0, Answer::Accepted);
    let (_, _, answers) = connection.done(joining_list(), &[end(JOINER), put(22)]).await;
    assert_eq!(answers, [accepted.clone(), accepted]);
}

pub(super) async fn a_join_begins_under_its_own_list_only(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    for nowhere in [Ballot::ZERO, joining_list()] {
        let answer = connection.ungated(begin(nowhere, JOINER, None)).await;
        assert_eq!(answer, conflict(Ballot::ZERO), "there is no list");
    }
    connection.done(Ballot::ZERO, &found()).await;
    let before = subject.dump();
    for other in [Ballot::ZERO, joining_list()] {
        // The batch may go by the right list or by none: what counts is the list that made the id.
        for by in [founding(), Ballot::ZERO] {
            let answer = connection.run_by(by, begin(other, JOINER, None)).await;
            assert_eq!(answer, Some(conflict(founding())));
        }
    }
    assert_eq!(subject.dump(), before);
    connection.ungated(list(joining_list())).await;
    // That somebody else has been promised the list since is no matter here.
    promise_the_list(&connection, ballot(12, 1)).await;
    assert_eq!(connection.ungated(begin(founding(), JOINER, None)).await, conflict(ballot(12, 1)));
    assert_eq!(connection.met().await, (Some(MEMORY), joining_list()));
    assert_eq!(connection.ungated(begin(joining_list(), JOINER, None)).await, Answer::Accepted);
    assert_eq!(connection.met().await, (Some(JOINER), joining_list()));
}

pub(super) async fn a_join_begins_once_for_each_id(subject: &dyn Subject) {
    let connection = joiner(subject).await;
    let again = begin(joining_list(), JOINER, None);
    let row = Source::new(ballot(3, 1), "merged").raw();
    connection.ungated(merge(JOINER, Ballot::ZERO, &[("a", row)])).await;
    let before = subject.dump();
    assert_eq!(connection.ungated(again.clone()).await, conflict(joining_list()));
    assert_eq!(subject.dump(), before, "what was merged stays");
    connection.ungated(end(JOINER)).await;
    let before = subject.dump();
    assert_eq!(connection.ungated(again.clone()).await, conflict(joining_list()));
    assert_eq!(subject.dump(), before, "and the member stays one");

    let connection = restarted(subject).await;
    assert_eq!(connection.met().await, (None, joining_list()));
    assert_eq!(connection.ungated(again.clone()).await, conflict(joining_list()), "also in another run");
    let with_recovery = begin(joining_list(), JOINER, Some(joining_list()));
    assert_eq!(connection.ungated(with_recovery).await, conflict(joining_list()));
    assert_eq!(connection.met().await, (None, joining_list()));

    let next = ballot(20, 9);
    connection.ungated(list(next)).await;
    assert_eq!(connection.ungated(begin(next, OTHER, None)).await, Answer::Accepted);
    let before = subject.dump();
    assert_eq!(connection.ungated(again).await, conflict(next), "one that began before the last");
    assert_eq!(connection.ungated(begin(next, OTHER, None)).await, conflict(next));
    assert_eq!(subject.dump(), before);
}

pub(super) async fn a_join_removes_all_old_data_in_slices(subject: &dyn Subject) {
    const RECORDS: usize = 1_300;
    let connection = member(subject).await;
    for batch in 0..RECORDS / 100 {
        let accepts: Vec<_> =
            (0..100).map(|i| listed(&format!("{batch}/{i}"), ballot(1, 1), i % 2 == 0)).collect();
        connection.done(founding(), &accepts).await;
    }
    let missed = vec![(NodeIndex(2), vec![lock("a")])];
    connection.report(Report { nodes: vec![News::default(); NODES], missed }).await;
    subject.put(FLOOR_KEY.as_bytes(), floor_entry(ballot(2, 2)));
    let foreign = ["app:1", "majority:r:l:a", "majoritydx:r:l:a", "r:l:a", "zzz"];
    for key in foreign {
        subject.put(key.as_bytes(), Entry::Bytes("theirs".into()));
    }
    connection.ungated(list(joining_list())).await;
    let list_before = subject.dump().get(b"majorityd:r:m:").cloned();
    let keys = |keyspace: &Keyspace| -> Vec<String> {
        keyspace.iter().map(|(key, _)| String::from_utf8_lossy(key).into_owned()).collect()
    };
    assert!(keys(&subject.dump()).len() > RECORDS);

    assert_eq!(connection.ungated(begin(joining_list(), JOINER, None)).await, Answer::Accepted);
    let begun = subject.dump();
    assert!(begun.get(FLOOR_KEY.as_bytes()).is_none() && begun.get(WRITES_KEY.as_bytes()).is_none());
    let row = merge(JOINER, Ballot::ZERO, &[("merged", Source::new(ballot(3, 1), "x").raw())]);
    assert_eq!(connection.ungated(row.clone()).await, Answer::Wiping);
    let slice = subject.dump();
    assert!(slice.len() < begun.len() && slice.len() > RECORDS / 4, "{} keys after a slice", slice.len());
    assert!(slice.get(b"majorityd:r:l:merged").is_none(), "nothing was merged yet");
    assert_eq!(connection.ungated(end(JOINER)).await, conflict(joining_list()), "not before all is removed");
    let answer = connection.run_by(joining_list(), read("0/0")).await;
    assert_eq!(answer, Some(Answer::NotServing));
    assert_eq!(connection.met().await, (Some(JOINER), joining_list()), "the list is there all the while");
    let (answer, slices) = merged(&connection, row).await;
    assert_eq!(answer, Answer::Accepted);
    assert!(slices >= 1);

    let after = subject.dump();
    let ours =
        ["majorityd:node", "majorityd:r:l:merged", "majorityd:r:m:", "majorityd:seen", "majorityd:writes"];
    let mut expected: Vec<_> = foreign.iter().chain(&ours).map(|key| (*key).to_owned()).collect();
    expected.sort();
    assert_eq!(keys(&after), expected);
    assert_eq!(after.get(b"majorityd:r:m:").cloned(), list_before);
    assert_eq!(after.get(WRITES_KEY.as_bytes()), Some(&Entry::Bytes("1".into())), "counted anew");
}

pub(super) async fn a_join_forgets_the_floor_at_once(subject: &dyn Subject) {
    let connection = member(subject).await;
    subject.put(FLOOR_KEY.as_bytes(), floor_entry(ballot(8, 8)));
    connection.ungated(list(joining_list())).await;
    // The list's prepare has looked at the floor in the very batch in which it goes.
    let floor = ballot(5, 5);
    let batch = [
        Operation::Prepare { key: RegisterKey::members(), ballot: ballot(12, 1), soft: false },
        begin(joining_list(), JOINER, None),
        merge(JOINER, floor, &[]),
        merge(JOINER, floor, &[]),
        end(JOINER),
    ];
    let (_, _, answers) = connection.done(Ballot::ZERO, &batch).await;
    let expected = [Answer::Accepted, Answer::Wiping, Answer::Accepted, Answer::Accepted];
    assert_eq!(answers[1..], expected.map(Some));
    assert_eq!(subject.dump().get(FLOOR_KEY.as_bytes()), Some(&floor_entry(floor)));
}

pub(super) async fn a_recovery_keeps_what_there_is(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.run(listed("a", ballot(1, 1), true)).await;
    subject.put(FLOOR_KEY.as_bytes(), floor_entry(ballot(2, 2)));
    connection.ungated(list(joining_list())).await;
    let before = subject.dump();
    for other in [ballot(9, 9), ballot(10, 8), ballot(11, 9)] {
        let answer = connection.ungated(begin(joining_list(), JOINER, Some(other))).await;
        assert_eq!(answer, conflict(joining_list()), "{other} was not promised last");
    }
    let answer = connection.ungated(begin(ballot(9, 9), JOINER, Some(joining_list()))).await;
    assert_eq!(answer, conflict(joining_list()), "another list");
    assert_eq!(subject.dump(), before);
    recovering(&connection).await;
    let mut after = subject.dump();
    assert_ne!(after.get(NODE_KEY.as_bytes()), before.get(NODE_KEY.as_bytes()));
    after.insert(NODE_KEY, before.get(NODE_KEY.as_bytes()).expect("a node record").clone());
    assert_eq!(after, before, "nothing else has changed");
    let begun = begin(joining_list(), JOINER, Some(joining_list()));
    assert_eq!(connection.ungated(begun).await, conflict(joining_list()), "once for each id");
    let row = Source::new(ballot(3, 1), "merged").raw();
    let answer = connection.ungated(merge(JOINER, Ballot::ZERO, &[("b", row)])).await;
    assert_eq!(answer, Answer::Accepted, "there is nothing to remove");
    assert_eq!(connection.ungated(end(JOINER)).await, Answer::Accepted);
    assert!(!record_of(&connection, "a").await.expect("kept").copied);
    assert!(record_of(&connection, "b").await.expect("merged").copied);
    assert_eq!(subject.dump().get(FLOOR_KEY.as_bytes()), Some(&floor_entry(ballot(2, 2))));
}

pub(super) async fn a_recovery_is_over_when_the_list_is_promised_to_another(subject: &dyn Subject) {
    let connection = member(subject).await;
    recovering(&connection).await;
    let row = |name| merge(JOINER, ballot(4, 4), &[(name, Source::new(ballot(3, 1), "x").raw())]);
    assert_eq!(connection.ungated(row("a")).await, Answer::Accepted);
    let later = ballot(12, 1);
    promise_the_list(&connection, later).await;
    let before = subject.dump();
    assert_eq!(connection.ungated(row("b")).await, conflict(later));
    assert_eq!(connection.ungated(end(JOINER)).await, conflict(later));
    let begun = begin(joining_list(), OTHER, Some(joining_list()));
    assert_eq!(connection.ungated(begun).await, conflict(later));
    assert_eq!(subject.dump(), before);
    // The next recovery goes on with what there is.
    connection.ungated(list(later)).await;
    assert_eq!(connection.ungated(begin(later, OTHER, Some(later))).await, Answer::Accepted);
    assert_eq!(connection.ungated(row("b")).await, conflict(later), "of the first");
    assert_eq!(connection.ungated(merge(OTHER, Ballot::ZERO, &[])).await, Answer::Accepted);
    assert_eq!(connection.ungated(end(OTHER)).await, Answer::Accepted);
    // What is over for merges is not over for a member.
    promise_the_list(&connection, ballot(13, 1)).await;
    assert_eq!(connection.ungated(end(OTHER)).await, Answer::Accepted);
    let answer = connection.run_by(later, read("a")).await;
    assert!(matches!(answer, Some(Answer::Record(Some(_)))), "{answer:?}");
}

pub(super) async fn the_highest_ballot_and_the_highest_promise_win_a_merge(subject: &dyn Subject) {
    // Own ballot and promise, theirs, and which value and promise are held afterwards. Zero is a bare promise.
    let table = [
        // own    theirs    held
        ((5, 5), (4, 4), ("own", 5)),
        ((5, 5), (6, 6), ("theirs", 6)),
        ((5, 5), (5, 5), ("own", 5)),
        ((5, 5), (5, 7), ("own", 7)),
        ((5, 8), (6, 7), ("theirs", 8)),
        ((5, 8), (4, 9), ("own", 9)),
        ((5, 9), (4, 8), ("own", 9)),
        ((5, 5), (0, 7), ("own", 7)),
        ((0, 7), (5, 6), ("theirs", 7)),
        ((0, 5), (0, 7), ("", 7)),
        ((0, 7), (0, 5), ("", 7)),
    ];
    let at = |token| if token == 0 { Ballot::ZERO } else { ballot(token, 1) };
    let connection = member(subject).await;
    for (row, ((own, promise), ..)) in table.iter().enumerate() {
        if *own > 0 {
            connection.run(put(&row.to_string(), at(*own), "own")).await;
        }
        connection.run(prepare(&row.to_string(), at(*promise))).await;
    }
    recovering(&connection).await;
    let names: Vec<_> = (0..table.len()).map(|row| row.to_string()).collect();
    let rows: Vec<_> = table
        .iter()
        .zip(&names)
        .map(|((_, (ballot, promise), _), name)| {
            let value = if *ballot == 0 { "" } else { "theirs" };
            let source = Source { promise: at(*promise), ..Source::new(at(*ballot), value) };
            (name.as_str(), source.raw())
        })
        .collect();
    assert_eq!(connection.ungated(merge(JOINER, Ballot::ZERO, &rows)).await, Answer::Accepted);
    let absent = Source { promise: at(9), ..Source::new(at(4), "theirs") };
    let bare = Source { promise: at(9), ..Source::new(Ballot::ZERO, "") };
    // With equal tokens the proposer decides, for the ballot and for the promise.
    let low = Source { promise: ballot(8, 3), ..Source::new(ballot(4, 3), "low") };
    let high = Source { promise: ballot(8, 2), ..Source::new(ballot(4, u64::MAX), "high") };
    let rows = [("absent", absent.raw()), ("bare", bare.raw()), ("equal", low.raw()), ("equal", high.raw())];
    // The same again changes nothing.
    for _ in 0..2 {
        assert_eq!(connection.ungated(merge(JOINER, Ballot::ZERO, &rows)).await, Answer::Accepted);
    }
    connection.ungated(end(JOINER)).await;

    for ((own, theirs, (value, promise)), name) in table.iter().zip(&names) {
        let record = record_of(&connection, name).await.expect("stored");
        let found = (record.value.as_ref(), record.promise, record.copied);
        assert_eq!(found, (value.as_bytes(), at(*promise), *value == "theirs"), "{own:?} and {theirs:?}");
        let ballot = if *value == "theirs" { theirs.0 } else { own.0 };
        assert_eq!(record.ballot, at(ballot), "{own:?} and {theirs:?}");
    }
    let record = record_of(&connection, "absent").await.expect("merged");
    assert_eq!((record.ballot, record.promise, record.copied), (at(4), at(9), true));
    assert_eq!((record.vid, record.value.as_ref()), (at(4), &b"theirs"[..]));
    let record = record_of(&connection, "bare").await.expect("merged");
    assert_eq!((record.ballot, record.promise, record.copied), (Ballot::ZERO, at(9), true));
    let record = record_of(&connection, "equal").await.expect("merged");
    assert_eq!((record.ballot, record.promise), (ballot(4, u64::MAX), ballot(8, 3)));
    assert_eq!(record.value, "high");
}

pub(super) async fn stamps_start_anew_with_a_merge(subject: &dyn Subject) {
    let connection = member(subject).await;
    let (old, new) = (stamp(ballot(1, 1)), stamp(ballot(2, 1)));
    let stamped = |token, stamps: &[Stamp]| {
        let accept = Accept { stamps: stamps.to_vec(), ..accept(lock("own"), ballot(token, 1), "x") };
        Operation::Accept(Arc::new(accept))
    };
    connection.run(stamped(5, &[old])).await;
    subject.set_time(START + 60);
    recovering(&connection).await;
    let since = |seconds: u64| seconds * 1_000_000;
    let source = |token, stamps: &[(Stamp, u64)]| {
        Source { stamps: stamps.to_vec(), ..Source::new(ballot(token, 1), "theirs") }.raw()
    };
    let rows = [
        ("absent", source(3, &[(old, since(START - 1_000)), (new, since(START + 9_000))])),
        ("own", source(4, &[(old, since(START))])),
    ];
    connection.ungated(merge(JOINER, Ballot::ZERO, &rows)).await;
    connection.ungated(end(JOINER)).await;
    let ages = async |name| record_of(&connection, name).await.expect("stored").ages;
    let seconds = Duration::from_secs;
    assert_eq!(ages("absent").await, [(old, seconds(0)), (new, seconds(0))], "held from now on");
    assert_eq!(ages("own").await, [(old, seconds(60))], "the own one stays");
    subject.set_time(START + 67);
    assert_eq!(ages("absent").await, [(old, seconds(7)), (new, seconds(7))]);

    // One that this node holds too starts anew with a higher ballot's record: that is another node's.
    let next = ballot(20, 9);
    connection.ungated(list(next)).await;
    assert_eq!(connection.ungated(begin(next, OTHER, Some(next))).await, Answer::Accepted);
    let rows = [("own", source(6, &[(old, since(START))]))];
    connection.ungated(merge(OTHER, Ballot::ZERO, &rows)).await;
    connection.ungated(end(OTHER)).await;
    let Some(Answer::Record(Some(record))) = connection.run_by(next, read("own")).await else {
        panic!("a record")
    };
    assert_eq!(record.ages, [(old, seconds(0))]);
}

pub(super) async fn the_floor_is_the_highest_merged(subject: &dyn Subject) {
    let connection = joiner(subject).await;
    let told = async || connection.page(joining_list(), of_recovery(joining_list())).await.floor;
    let mut highest = Ballot::ZERO;
    for floor in [Ballot::ZERO, ballot(5, 5), ballot(3, 9), ballot(5, 4), ballot(5, 6), ballot(7, 1)] {
        assert_eq!(connection.ungated(merge(JOINER, floor, &[])).await, Answer::Accepted);
        highest = highest.max(floor);
        assert_eq!(told().await, highest);
    }
    // Merges are not under it.
    let rows = [("below", Source::new(ballot(6, 1), "x").raw())];
    assert_eq!(connection.ungated(merge(JOINER, Ballot::ZERO, &rows)).await, Answer::Accepted);
    connection.ungated(end(JOINER)).await;
    assert!(record_of(&connection, "below").await.is_some());
    for refused in [prepare("a", ballot(7, 9)), put("a", ballot(7, 9), "x")] {
        assert_eq!(connection.run_by(joining_list(), refused).await, Some(conflict(highest)));
    }
    let answer = connection.run_by(joining_list(), prepare("a", ballot(8, 1))).await;
    assert!(matches!(answer, Some(Answer::Promised { floor, .. }) if floor == highest), "{answer:?}");
}

/// The first page for a recovery, without values.
fn of_recovery(recovery: Ballot) -> PageRequest {
    let cursor = PageRequest::START;
    PageRequest {
        cursor,
        count: 100,
        bytes: 0,
        recovery: Some(recovery),
        with_values: false,
        keys: Vec::new(),
    }
}

pub(super) async fn the_index_follows_merges(subject: &dyn Subject) {
    let connection = member(subject).await;
    for name in ["goes", "stays"] {
        connection.run(listed(name, ballot(5, 1), true)).await;
    }
    connection.run(listed("comes", ballot(5, 1), false)).await;
    recovering(&connection).await;
    let source = |token, listed| Source { listed, ..Source::new(ballot(token, 1), "theirs") }.raw();
    let rows = [
        ("goes", source(6, false)),
        ("stays", source(4, false)),
        ("comes", source(6, true)),
        ("new", source(1, true)),
        ("hidden", source(1, false)),
        ("lost", source(1, true)),
        ("lost", source(2, false)),
    ];
    assert_eq!(connection.ungated(merge(JOINER, Ballot::ZERO, &rows)).await, Answer::Accepted);
    connection.ungated(end(JOINER)).await;
    let names = connection.run_by(joining_list(), names_from("")).await;
    assert_eq!(names, Some(Answer::Names(["comes", "new", "stays"].map(String::from).into())));
}

pub(super) async fn merges_are_of_one_memory_and_end_with_it(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    let row = |memory| merge(memory, ballot(4, 4), &[("a", Source::new(ballot(3, 1), "x").raw())]);
    assert_eq!(connection.ungated(row(JOINER)).await, conflict(Ballot::ZERO), "there is no list");
    connection.done(Ballot::ZERO, &found()).await;
    let before = subject.dump();
    for memory in [JOINER, MEMORY] {
        assert_eq!(connection.ungated(row(memory)).await, conflict(founding()), "nothing has begun");
    }
    assert_eq!(subject.dump(), before);

    connection.ungated(list(joining_list())).await;
    connection.ungated(begin(joining_list(), JOINER, None)).await;
    let before = subject.dump();
    for memory in [MEMORY, OTHER] {
        assert_eq!(connection.ungated(row(memory)).await, conflict(joining_list()));
        assert_eq!(connection.ungated(end(memory)).await, conflict(joining_list()));
    }
    assert_eq!(subject.dump(), before, "nothing was removed for them");
    assert_eq!(merged(&connection, row(JOINER)).await.0, Answer::Accepted);
    let before = subject.dump();
    assert_eq!(connection.ungated(row(OTHER)).await, conflict(joining_list()));
    assert_eq!(subject.dump(), before);

    // It is part of a join that somebody else is promised the list: that is how it ends.
    promise_the_list(&connection, ballot(12, 1)).await;
    assert_eq!(connection.ungated(row(JOINER)).await, Answer::Accepted);
    connection.ungated(end(JOINER)).await;
    let before = subject.dump();
    let late = merge(JOINER, ballot(9, 9), &[("b", Source::new(ballot(3, 1), "late").raw())]);
    assert_eq!(connection.ungated(late).await, conflict(ballot(12, 1)), "after the end");
    assert_eq!(subject.dump(), before);
}

pub(super) async fn the_end_of_a_join_can_be_repeated(subject: &dyn Subject) {
    let connection = joiner(subject).await;
    for _ in 0..3 {
        assert_eq!(connection.ungated(end(JOINER)).await, Answer::Accepted);
        assert_eq!(connection.met().await, (Some(JOINER), joining_list()));
    }
    assert_eq!(connection.ungated(end(OTHER)).await, conflict(joining_list()));
    let answer = connection.run_by(joining_list(), put("a", ballot(1, 1), "x")).await;
    assert_eq!(answer, Some(Answer::Accepted), "it serves");
    assert_eq!(connection.ungated(end(JOINER)).await, Answer::Accepted);
    assert!(record_of(&connection, "a").await.is_some());
    // The next join has an end of its own.
    let next = ballot(20, 9);
    connection.ungated(list(next)).await;
    connection.ungated(begin(next, OTHER, None)).await;
    assert_eq!(connection.ungated(end(JOINER)).await, conflict(next));
    assert_eq!(connection.ungated(end(OTHER)).await, conflict(next), "the old data is not removed yet");
    assert_eq!(merged(&connection, merge(OTHER, Ballot::ZERO, &[])).await.0, Answer::Accepted);
    assert_eq!(connection.ungated(end(OTHER)).await, Answer::Accepted);
}

pub(super) async fn who_joins_serves_the_list_alone(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.ungated(list(joining_list())).await;
    connection.ungated(begin(joining_list(), JOINER, None)).await;
    let page = PageRequest { recovery: None, ..of_recovery(joining_list()) };
    let gated = [
        read("a"),
        prepare("a", ballot(11, 1)),
        put("a", ballot(11, 1), "x"),
        names_from(""),
        Operation::Page(page),
        Operation::Ballots { keys: vec![lock("a")] },
        Operation::Forget { records: Vec::new() },
        Operation::Missed { node: NodeIndex(0), done: Vec::new(), limit: 1 },
    ];
    let refused = async |phase: &str| {
        let before = subject.dump();
        let (memory, held, answers) = connection.done(joining_list(), &gated).await;
        assert_eq!((memory, held), (Some(JOINER), joining_list()));
        assert_eq!(answers, vec![Some(Answer::NotServing); gated.len()], "{phase}");
        let (_, _, answers) = connection.done(founding(), &gated).await;
        assert_eq!(answers, vec![None; gated.len()], "{phase}");
        assert_eq!(subject.dump(), before);
        let members = Operation::Read { key: RegisterKey::members() };
        let answer = connection.ungated(members).await;
        assert!(matches!(answer, Answer::Record(Some(_))), "{phase}: {answer:?}");
    };
    refused("wiping").await;
    assert_eq!(merged(&connection, merge(JOINER, Ballot::ZERO, &[])).await.0, Answer::Accepted);
    refused("merging").await;
    promise_the_list(&connection, ballot(12, 1)).await;
    let next = accept(RegisterKey::members(), ballot(12, 1), "the same list");
    let next = Accept { vid: joining_list(), ..next };
    assert_eq!(connection.ungated(Operation::Accept(Arc::new(next))).await, Answer::Accepted);
    refused("a list written again").await;
    connection.ungated(end(JOINER)).await;
    let (_, _, answers) = connection.done(joining_list(), &gated).await;
    let served = |answer: &Option<Answer>| !matches!(answer, None | Some(Answer::NotServing));
    assert!(answers.iter().all(served), "{answers:?}");
}

pub(super) async fn a_restart_ends_a_join(subject: &dyn Subject) {
    let connection = joiner(subject).await;
    let connection = {
        drop(connection);
        restarted(subject).await
    };
    assert_eq!(connection.met().await, (None, joining_list()));
    let reported =
        connection.report(Report { nodes: vec![News::default(); NODES], ..Report::default() }).await;
    assert_eq!((reported.aside, reported.join), (None, None), "half a copy is nothing to be kept");
    let before = subject.dump();
    let late = merge(JOINER, ballot(4, 4), &[("a", Source::new(ballot(3, 1), "x").raw())]);
    assert_eq!(connection.ungated(late).await, conflict(joining_list()));
    assert_eq!(connection.ungated(end(JOINER)).await, conflict(joining_list()));
    assert_eq!(connection.run_by(joining_list(), read("a")).await, Some(Answer::NotServing));
    assert_eq!(subject.dump(), before);
    // A handshake of the same run changes nothing.
    let again = subject.connect(ProposerId(2)).await;
    assert_eq!(subject.dump(), before);
    assert_eq!(again.met().await, (None, joining_list()));
}

pub(super) async fn a_restart_keeps_what_a_recovery_merges_into(subject: &dyn Subject) {
    let aside = async |connection: &Connection| {
        let report = Report { nodes: vec![News::default(); NODES], ..Report::default() };
        connection.report(report).await.aside
    };
    // A node that remembers takes part too: fewer than q do.
    let connection = member(subject).await;
    assert_eq!(aside(&connection).await, None);
    recovering(&connection).await;
    assert_eq!(aside(&connection).await, Some(MEMORY));
    let connection = restarted(subject).await;
    assert_eq!((connection.met().await.0, aside(&connection).await), (None, Some(MEMORY)));

    // And now as one that has restarted.
    let later = ballot(12, 9);
    connection.ungated(list(later)).await;
    assert_eq!(connection.ungated(begin(later, OTHER, Some(later))).await, Answer::Accepted);
    assert_eq!(aside(&connection).await, Some(MEMORY));
    let connection = restarted(subject).await;
    assert_eq!((connection.met().await.0, aside(&connection).await), (None, Some(MEMORY)));
    let connection = restarted(subject).await;
    assert_eq!(aside(&connection).await, Some(MEMORY), "and another restart");

    // At its end the new memory is all there is.
    let (last, memory) = (ballot(14, 9), MemoryId(0xd00d));
    connection.ungated(list(last)).await;
    assert_eq!(connection.ungated(begin(last, memory, Some(last))).await, Answer::Accepted);
    assert_eq!(connection.ungated(end(memory)).await, Answer::Accepted);
    assert_eq!(aside(&connection).await, None);
    let connection = restarted(subject).await;
    assert_eq!((connection.met().await.0, aside(&connection).await), (None, Some(memory)));
    // A join without a recovery has no use for it.
    let (next, memory) = (ballot(16, 9), MemoryId(0xf00d));
    connection.ungated(list(next)).await;
    assert_eq!(connection.ungated(begin(next, memory, None)).await, Answer::Accepted);
    assert_eq!(aside(&connection).await, None);
}

pub(super) async fn what_pages_show_can_be_merged(subject: &dyn Subject) {
    let connection = member(subject).await;
    let full = Accept {
        recent: vec![ballot(2, 1), ballot(1, 1)],
        stamps: vec![stamp(ballot(3, 1))],
        guard: Duration::from_secs(10),
        listed: true,
        ..accept(lock("full"), ballot(3, 1), "value")
    };
    connection.run(Operation::Accept(Arc::new(full))).await;
    connection.run(prepare("bare", ballot(4, 2))).await;
    connection.ungated(list(joining_list())).await;
    let before = [record_of(&connection, "full").await, record_of(&connection, "bare").await];
    let request =
        PageRequest { recovery: None, bytes: 1 << 20, with_values: true, ..of_recovery(founding()) };
    let page = connection.page(joining_list(), request).await;
    assert_eq!(page.cursor, PageRequest::START);
    let rows: Vec<_> = page.rows.into_iter().map(|(key, raw)| (key, raw.expect("a value"))).collect();
    assert_eq!(rows.len(), 3, "the list is among them");

    subject.set_time(START + 5);
    connection.ungated(begin(joining_list(), JOINER, None)).await;
    let all = Operation::Merge { memory: JOINER, floor: page.floor, rows };
    assert_eq!(merged(&connection, all).await.0, Answer::Accepted);
    connection.ungated(end(JOINER)).await;
    assert_eq!(connection.met().await, (Some(JOINER), joining_list()), "the list as it was");
    for (before, name) in before.into_iter().zip(["full", "bare"]) {
        let copied = Record { copied: true, ..before.expect("was there") };
        assert_eq!(record_of(&connection, name).await, Some(copied));
    }
    let names = connection.run_by(joining_list(), names_from("")).await;
    assert_eq!(names, Some(Answer::Names(vec!["full".into()])));
}
