//! What is about a queue: where its items stand on a node, `claim`, `census`.

use super::*;
use crate::node::operation::{Census, ClaimRequest, Claimed, Forgotten, Held, Place};

const QUEUE: &str = "jobs";
const MARK: Duration = Duration::from_secs(5);

fn item_of(queue: &str, id: &str) -> RegisterKey {
    RegisterKey::new('q', &format!("{queue}{}{id}", Place::SEPARATOR))
}

fn item(id: &str) -> RegisterKey {
    item_of(QUEUE, id)
}

/// The member of an item that is the so-and-so-many-th of its queue.
fn member(order: usize, id: &str) -> String {
    format!("{order:022x}{id}")
}

fn place(set: char, order: usize, id: &str, due: Duration) -> Option<Place> {
    Some(Place { set, member: member(order, id), due })
}

/// An accept of an item, with a stamp of its ballot's where it is to end by itself.
fn standing(ballot: Ballot, set: char, order: usize, id: &str, due: Duration) -> Accept {
    Accept {
        stamps: if due.is_zero() { Vec::new() } else { vec![stamp(ballot)] },
        listed: set != 'x',
        place: place(set, order, id, due),
        ..accept(item(id), ballot, &format!("value of {id}"))
    }
}

fn claim_of(queue: &str, count: usize, ballot: Ballot) -> ClaimRequest {
    ClaimRequest { queue: queue.into(), count, bytes: 1 << 20, mark: MARK, ballot }
}

fn claim(count: usize, ballot: Ballot) -> ClaimRequest {
    claim_of(QUEUE, count, ballot)
}

fn census_of(set: char, limit: usize) -> Operation {
    Operation::Census { queue: QUEUE.into(), set, limit }
}

impl Connection {
    async fn stand(&self, ballot: Ballot, set: char, order: usize, id: &str, due: Duration) {
        let accept = Arc::new(standing(ballot, set, order, id, due));
        assert_eq!(self.run(Operation::Accept(accept)).await, Answer::Accepted, "{id}");
    }

    async fn ready(&self, order: usize, id: &str) {
        self.stand(ballot(1, 1), 'r', order, id, Duration::ZERO).await;
    }

    async fn claim(&self, request: ClaimRequest) -> Claimed {
        match self.run(Operation::Claim(request)).await {
            Answer::Claimed(claimed) => claimed,
            other => panic!("claim answered {other:?}"),
        }
    }

    /// Ready, delayed, leased, dead, done.
    async fn counts(&self) -> [u64; 5] {
        let Census { ready, delayed, leased, dead, done, .. } = self.census('r', 0).await;
        [ready, delayed, leased, dead, done]
    }

    async fn census(&self, set: char, limit: usize) -> Census {
        match self.run(census_of(set, limit)).await {
            Answer::Census(census) => census,
            other => panic!("census answered {other:?}"),
        }
    }

    async fn item(&self, id: &str) -> Option<Record> {
        match self.run(Operation::Read { key: item(id) }).await {
            Answer::Record(record) => record,
            other => panic!("read answered {other:?}"),
        }
    }
}

fn ids(claimed: &Claimed) -> Vec<&str> {
    claimed.items.iter().map(|(member, _)| &member[Place::ORDER_LENGTH..]).collect()
}

/// What stands in the sets of the queue: set, score, member.
fn sets(subject: &dyn Subject) -> Vec<(char, String, u64)> {
    let mut found = Vec::new();
    for set in ['r', 'w', 'l', 'd', 'x', 'm'] {
        if let Some(Entry::Sorted(sorted)) =
            subject.dump().get(format!("majorityd:i:q{set}:{QUEUE}").as_bytes())
        {
            let members = sorted.iter().map(|(score, member)| {
                (set, String::from_utf8_lossy(member).into_owned(), u64::try_from(score).expect("a time"))
            });
            found.extend(members);
        }
    }
    found
}

fn milliseconds(seconds: u64) -> u64 {
    (START + seconds) * 1_000
}

pub(super) async fn a_claim_prepares_the_first_ready_items_in_order(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    assert_eq!(connection.claim(claim(3, ballot(2, 1))).await.items, [], "there is no such queue");
    for (order, id) in [(7, "c"), (5, "z"), (6, "b"), (8, "a")] {
        connection.ready(order, id).await;
    }
    let claimed = connection.claim(claim(3, ballot(9, 7))).await;
    assert_eq!(ids(&claimed), ["z", "b", "c"]);
    assert_eq!((claimed.floor, claimed.contended), (Ballot::ZERO, false));
    for (member, record) in &claimed.items {
        let id = &member[Place::ORDER_LENGTH..];
        assert_eq!((record.promise, record.ballot), (ballot(9, 7), ballot(1, 1)));
        assert_eq!(record.value, format!("value of {id}"));
        assert_eq!(connection.item(id).await.as_ref(), Some(record), "it is a promise");
        let late = Accept { place: None, ..accept(item(id), ballot(8, 1), "late") };
        assert_eq!(connection.run(Operation::Accept(Arc::new(late))).await, conflict(ballot(9, 7)));
    }
    assert_eq!(connection.item("a").await.expect("stored").promise, ballot(1, 1), "nobody asked for it");
    connection.stand(ballot(9, 7), 'l', 5, "z", Duration::from_secs(30)).await;
    assert_eq!(connection.counts().await, [3, 0, 1, 0, 0]);
}

pub(super) async fn a_batch_announces_each_queue_once(subject: &dyn Subject) {
    let first = super::member(subject).await;
    let mut second = subject.connect(ProposerId(2)).await;
    second.node.watch_changes(true);
    let put = |queue: &str, order: usize, token: u64| {
        let id = format!("{order}");
        let place = place('r', order, &id, Duration::ZERO);
        let accept = Accept { announce: true, place, ..accept(item_of(queue, &id), ballot(token, 1), "x") };
        Operation::Accept(Arc::new(accept))
    };
    let end = |token| {
        let accept = Accept { wake: vec![ProposerId(2)], ..accept(lock("end"), ballot(token, 1), "x") };
        Operation::Accept(Arc::new(accept))
    };
    for token in 1.. {
        let batch =
            [put("a", 1, token), put("a", 2, token), put("b", 1, token), put("a", 3, token), end(token)];
        let (_, _, answers) = first.done(founding(), &batch).await;
        assert!(answers.iter().all(|answer| *answer == Some(Answer::Accepted)), "{answers:?}");
        let mut heard = Vec::new();
        loop {
            match second.hint().await {
                Hint::Wake(_) => break,
                Hint::Changed(key) => heard.push(key),
                Hint::State => {}
            }
        }
        if !heard.is_empty() {
            assert_eq!(heard, [item_of("a", "1").as_bytes(), item_of("b", "1").as_bytes()]);
            break;
        }
        // The wish to hear has not reached the server yet.
        subject.pause().await;
        assert!(token < 3_000, "changes are never heard");
    }
}

pub(super) async fn claims_are_bounded(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    for order in 0..6 {
        connection.ready(order, &format!("{order}")).await;
    }
    let some = connection.claim(ClaimRequest { bytes: 1, ..claim(5, ballot(2, 1)) }).await;
    assert_eq!(ids(&some), ["0"], "one at least");
    let size = |id: &str| {
        let key = [RECORD_PREFIX.as_bytes(), item(id).as_bytes()].concat();
        match subject.dump().get(&key) {
            Some(Entry::Bytes(record)) => record.len(),
            other => panic!("{other:?}"),
        }
    };
    // What does not fit is not marked.
    let bytes = size("1") + 1;
    let some = connection.claim(ClaimRequest { bytes, ..claim(5, ballot(3, 1)) }).await;
    assert_eq!(ids(&some), ["1", "2"]);
    assert_eq!(ids(&connection.claim(claim(2, ballot(4, 1))).await), ["3", "4"]);
    assert_eq!(ids(&connection.claim(claim(2, ballot(5, 1))).await), ["5"]);
}

pub(super) async fn what_is_claimed_is_kept_from_others_for_a_moment(subject: &dyn Subject) {
    let first = super::member(subject).await;
    let second = subject.connect(ProposerId(2)).await;
    for (order, id) in [(1, "a"), (2, "b"), (3, "c")] {
        first.ready(order, id).await;
    }
    assert_eq!(ids(&first.claim(claim(2, ballot(5, 1))).await), ["a", "b"]);
    let others = second.claim(claim(2, ballot(6, 2))).await;
    assert_eq!((ids(&others), others.contended, others.next_due), (vec!["c"], true, Some(MARK)));
    assert_eq!(first.counts().await, [3, 0, 0, 0, 0], "who is marked is ready, too");
    // Exactly its length is not over: over means longer.
    subject.set_time(START + 5);
    let none = second.claim(claim(2, ballot(7, 2))).await;
    assert_eq!((none.items.len(), none.contended, none.next_due), (0, true, Some(Duration::ZERO)));
    // One is leased, and one was given back: the marks go with that.
    first.stand(ballot(5, 1), 'l', 1, "a", Duration::from_secs(60)).await;
    first.stand(ballot(5, 1), 'r', 2, "b", Duration::ZERO).await;
    let next = second.claim(claim(9, ballot(8, 2))).await;
    assert_eq!((ids(&next), next.contended), (vec!["b"], true), "the third is marked yet");
    subject.set_time(START + 6);
    let next = first.claim(claim(9, ballot(9, 1))).await;
    assert_eq!((ids(&next), next.contended), (vec!["c"], true), "nobody leased it");
    subject.set_time(START + 13);
    let next = second.claim(claim(9, ballot(10, 2))).await;
    assert_eq!((ids(&next), next.contended), (vec!["b", "c"], false));
    assert_eq!(next.next_due, Some(MARK), "its own marks are the next to end");
}

pub(super) async fn what_was_promised_higher_is_not_claimed(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    for (order, id) in [(1, "a"), (2, "b"), (3, "c")] {
        connection.ready(order, id).await;
    }
    connection.run(Operation::Prepare { key: item("a"), ballot: ballot(9, 2), soft: false }).await;
    // By token alone, as every prepare.
    connection.run(Operation::Prepare { key: item("b"), ballot: ballot(5, 9), soft: false }).await;
    let claimed = connection.claim(claim(3, ballot(5, 10))).await;
    assert_eq!(ids(&claimed), ["c"]);
    assert_eq!(connection.item("a").await.expect("stored").promise, ballot(9, 2));
    assert_eq!(connection.claim(claim(3, ballot(20, 1))).await.items, [], "all were looked at");
    subject.set_time(START + 6);
    assert_eq!(ids(&connection.claim(claim(3, ballot(21, 1))).await), ["a", "b", "c"]);
    // What the day after tomorrow has for it.
    let before = subject.dump();
    let far = ballot(25 * 3_600_000 * 4096, 1);
    assert_eq!(connection.run(Operation::Claim(claim(3, far))).await, Answer::TooFarAhead);
    assert_eq!(subject.dump(), before);
}

pub(super) async fn an_item_stands_in_one_set_at_a_time(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    let seconds = Duration::from_secs;
    let steps = [
        ('r', 0),
        ('w', 7),
        ('r', 0),
        ('l', 30),
        ('l', 60),
        ('w', 9),
        ('l', 5),
        ('r', 0),
        ('d', 0),
        ('r', 0),
        ('l', 5),
        ('x', 0),
    ];
    for (token, (set, due)) in (1..).zip(steps) {
        connection.stand(ballot(token, 1), set, 4, "a", seconds(due)).await;
        // Past the next whole millisecond.
        let score = if due > 0 { milliseconds(due) + 1 } else { 0 };
        assert_eq!(sets(subject), [(set, member(4, "a"), score)], "step {token}");
    }
    // Another place: as another item under the same id has it.
    connection.stand(ballot(20, 1), 'r', 9, "a", Duration::ZERO).await;
    assert_eq!(sets(subject), [('r', member(9, "a"), 0)]);
    // An accept that is refused moves nothing, and one without a place takes it out.
    let late = standing(ballot(19, 1), 'd', 9, "a", Duration::ZERO);
    assert_eq!(connection.run(Operation::Accept(Arc::new(late))).await, conflict(ballot(20, 1)));
    assert_eq!(sets(subject), [('r', member(9, "a"), 0)]);
    let nowhere = Accept { place: None, ..accept(item("a"), ballot(21, 1), "x") };
    connection.run(Operation::Accept(Arc::new(nowhere))).await;
    assert_eq!(sets(subject), []);
    connection.stand(ballot(22, 1), 'x', 9, "a", Duration::ZERO).await;
    let gone = Forgotten { key: item("a"), ballot: ballot(22, 1), promise: ballot(22, 1).token };
    assert_eq!(connection.run(Operation::Forget { records: vec![gone] }).await, Answer::Forgotten(1));
    assert_eq!(sets(subject), [], "an empty set is no key");
}

pub(super) async fn items_leave_the_sets_that_they_stand_in_whatever_their_records_say(
    subject: &dyn Subject,
) {
    let connection = super::member(subject).await;
    let seconds = Duration::from_secs;
    // Claimed below, and so marked: one whose record says that it is leased, and one that it is ready.
    connection.stand(ballot(1, 1), 'l', 1, "due, marked", seconds(1)).await;
    connection.ready(2, "marked").await;
    connection.stand(ballot(1, 1), 'l', 3, "due", seconds(1)).await;
    connection.ready(4, "ready").await;
    connection.stand(ballot(1, 1), 'l', 5, "leased", seconds(60)).await;
    subject.set_time(START + 2);
    let claimed = connection.claim(claim(2, ballot(2, 1))).await;
    assert_eq!(ids(&claimed), ["due, marked", "marked"]);
    let stand: Vec<_> = sets(subject).into_iter().map(|(set, member, _)| (set, member)).collect();
    let expected = [
        ('r', member(3, "due")),
        ('r', member(4, "ready")),
        ('l', member(5, "leased")),
        ('m', member(1, "due, marked")),
        ('m', member(2, "marked")),
    ];
    assert_eq!(stand, expected);
    let done = |(order, id): (usize, &str)| {
        Operation::Accept(Arc::new(standing(ballot(3, 1), 'x', order, id, Duration::ZERO)))
    };
    let items = [(1, "due, marked"), (2, "marked"), (3, "due"), (4, "ready"), (5, "leased")];
    let (_, _, answers) = connection.done(founding(), &items.map(done)).await;
    assert!(answers.iter().all(|answer| *answer == Some(Answer::Accepted)), "{answers:?}");
    assert_eq!(sets(subject), items.map(|(order, id)| ('x', member(order, id), 0)));
}

pub(super) async fn what_fails_half_way_leaves_nothing_to_those_after_it(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    connection.stand(ballot(1, 1), 'x', 1, "a", Duration::ZERO).await;
    // The index is no set any more, and nothing can be taken out of it.
    let done = format!("majorityd:i:qx:{QUEUE}");
    subject.put(done.as_bytes(), Entry::Bytes("none of ours".into()));
    let gone = Forgotten { key: item("a"), ballot: ballot(1, 1), promise: ballot(1, 1).token };
    let batch = [
        Operation::Forget { records: vec![gone] },
        Operation::Accept(Arc::new(standing(ballot(2, 1), 'r', 2, "b", Duration::ZERO))),
    ];
    let (_, _, answers) = connection.done(founding(), &batch).await;
    assert!(matches!(answers[0], Some(Answer::Failed { .. })), "{answers:?}");
    assert_eq!(answers[1], Some(Answer::Accepted));
    assert_eq!(sets(subject), [('r', member(2, "b"), 0)]);
}

pub(super) async fn what_is_due_is_ready_by_the_clock_of_the_node(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    let seconds = Duration::from_secs;
    connection.stand(ballot(1, 1), 'w', 1, "delayed", seconds(5)).await;
    connection.stand(ballot(1, 1), 'l', 2, "leased", seconds(8)).await;
    let none = connection.claim(claim(9, ballot(2, 1))).await;
    assert_eq!((none.items.len(), none.next_due), (0, Some(Duration::from_millis(5_001))));
    subject.set_time(START + 3);
    // A stamp that the record had keeps its time, and with it the place; a new one begins anew.
    let same =
        Accept { stamps: vec![stamp(ballot(1, 1))], ..standing(ballot(3, 1), 'w', 1, "delayed", seconds(5)) };
    connection.run(Operation::Accept(Arc::new(same))).await;
    subject.set_time(START + 5);
    assert_eq!(connection.counts().await, [0, 1, 1, 0, 0], "of exactly its length it is not aged");
    assert_eq!(connection.claim(claim(9, ballot(4, 1))).await.next_due, Some(Duration::from_millis(1)));
    subject.set_time(START + 6);
    assert_eq!(connection.counts().await, [1, 0, 1, 0, 0]);
    let claimed = connection.claim(claim(9, ballot(5, 1))).await;
    assert_eq!((ids(&claimed), claimed.next_due), (vec!["delayed"], Some(Duration::from_millis(2_001))));
    // The record still says what it said: whether it is over is agreed on elsewhere.
    assert_eq!(claimed.items[0].1.place, place('w', 1, "delayed", seconds(5)).map(Into::into));
    connection.stand(ballot(6, 1), 'l', 2, "leased", seconds(8)).await;
    subject.set_time(START + 9);
    assert_eq!(connection.claim(claim(9, ballot(7, 1))).await.items, [], "it was extended");
    // What is due and marked leaves both with its end.
    connection.stand(ballot(8, 1), 'x', 1, "delayed", Duration::ZERO).await;
    assert_eq!(connection.counts().await, [0, 0, 1, 0, 1]);
    subject.set_time(START + 15);
    assert_eq!(ids(&connection.claim(claim(9, ballot(9, 1))).await), ["leased"]);
}

pub(super) async fn members_without_their_record_are_dropped(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    connection.ready(1, "a").await;
    connection.stand(ballot(1, 1), 'x', 2, "done", Duration::ZERO).await;
    connection.stand(ballot(1, 1), 'd', 3, "dead", Duration::ZERO).await;
    connection.ready(4, "moved").await;
    let nowhere = Accept { place: None, ..accept(item("nowhere"), ballot(1, 1), "x") };
    connection.run(Operation::Accept(Arc::new(nowhere))).await;
    connection.run(Operation::Prepare { key: item("bare"), ballot: ballot(1, 1), soft: false }).await;
    let stale = [
        member(0, "none"),
        member(2, "done"),
        member(3, "dead"),
        member(5, "moved"),
        member(6, "nowhere"),
        member(7, "bare"),
        "short".to_owned(),
    ];
    let real = [member(1, "a"), member(4, "moved")];
    let ready = format!("majorityd:i:qr:{QUEUE}");
    subject.put(ready.as_bytes(), Entry::Sorted(stale.into_iter().chain(real).collect()));
    assert_eq!(connection.counts().await[0], 9);
    let claimed = connection.claim(claim(9, ballot(2, 1))).await;
    assert_eq!(ids(&claimed), ["a", "moved"]);
    assert_eq!(claimed.items[1].0, member(4, "moved"));
    assert_eq!(connection.item("none").await, None, "a claim promises nothing for what is not there");
    assert_eq!(connection.item("bare").await.expect("a bare promise").promise, ballot(1, 1));
    assert_eq!(connection.counts().await, [2, 0, 0, 1, 1], "and they are gone");
}

pub(super) async fn the_floor_is_told_with_a_claim(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    connection.ready(1, "a").await;
    subject.put(FLOOR_KEY.as_bytes(), floor_entry(ballot(5, 5)));
    // What is there is under no floor.
    let claimed = connection.claim(claim(1, ballot(3, 1))).await;
    assert_eq!((ids(&claimed), claimed.floor), (vec!["a"], ballot(5, 5)));
    assert_eq!(connection.claim(claim_of("none", 1, ballot(4, 1))).await.floor, ballot(5, 5));
}

pub(super) async fn a_census_counts_all_and_shows_the_first(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    assert_eq!(connection.census('r', 9).await, Census::default());
    let seconds = Duration::from_secs;
    for (order, id) in [(3, "c"), (1, "a"), (2, "b")] {
        connection.ready(order, id).await;
    }
    for (order, id) in [(12, "v"), (11, "u")] {
        connection.stand(ballot(1, 1), 'd', order, id, Duration::ZERO).await;
    }
    connection.stand(ballot(1, 1), 'w', 4, "w", seconds(9)).await;
    connection.stand(ballot(1, 1), 'l', 5, "l", seconds(9)).await;
    connection.stand(ballot(1, 1), 'x', 6, "x", Duration::ZERO).await;
    let first = Some(member(1, "a"));
    let expected = Census { ready: 3, delayed: 1, leased: 1, dead: 2, done: 1, first, members: Vec::new() };
    let shows = |set, limit, members: Vec<String>| (set, limit, Census { members, ..expected.clone() });
    for (set, limit, expected) in [
        shows('r', 0, vec![]),
        shows('r', 2, vec![member(1, "a"), member(2, "b")]),
        shows('r', 9, vec![member(1, "a"), member(2, "b"), member(3, "c")]),
        shows('d', 9, vec![member(11, "u"), member(12, "v")]),
        shows('w', 9, vec![member(4, "w")]),
        shows('m', 9, vec![]),
    ] {
        assert_eq!(connection.census(set, limit).await, expected, "{set}, {limit}");
    }
    // What is claimed is ready all the same, but not the next to be given out.
    connection.claim(claim(1, ballot(2, 1))).await;
    let census = connection.census('m', 9).await;
    assert_eq!((census.ready, census.first, census.members), (3, Some(member(2, "b")), vec![member(1, "a")]));
    // The dead are listed in pages, too.
    let list = |after: &str| Operation::List {
        index: format!("qd:{QUEUE}"),
        prefix: String::new(),
        after: after.into(),
        limit: 1,
    };
    assert_eq!(connection.run(list("")).await, Answer::Names(vec![member(11, "u")]));
    assert_eq!(connection.run(list(&member(11, "u"))).await, Answer::Names(vec![member(12, "v")]));
}

pub(super) async fn queues_do_not_meet(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    for queue in ["jobs", "job", "jobs:", "j"] {
        let place = place('r', 1, "s:x", Duration::ZERO);
        let accept = Accept { place, ..accept(item_of(queue, "s:x"), ballot(1, 1), queue) };
        connection.run(Operation::Accept(Arc::new(accept))).await;
    }
    for queue in ["job", "jobs:", "jobs"] {
        let claimed = connection.claim(claim_of(queue, 9, ballot(2, 1))).await;
        assert_eq!(ids(&claimed), ["s:x"]);
        assert_eq!(claimed.items[0].1.value, queue);
    }
    assert_eq!(connection.counts().await[0], 1);
}

pub(super) async fn claims_and_censuses_are_gated(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    connection.ready(1, "a").await;
    let before = subject.dump();
    for list in [Ballot::ZERO, ballot(7, 7)] {
        assert_eq!(connection.run_by(list, Operation::Claim(claim(1, ballot(2, 1)))).await, None);
        assert_eq!(connection.run_by(list, census_of('r', 1)).await, None);
    }
    assert_eq!(subject.dump(), before);
    // A node that joins serves neither.
    let (next, memory) = (ballot(10, 9), MemoryId(0xbeef));
    connection.ungated(list(next)).await;
    connection.ungated(Operation::BeginJoin { list: next, memory, recovery: None }).await;
    for operation in [Operation::Claim(claim(1, ballot(2, 1))), census_of('r', 1)] {
        assert_eq!(connection.run_by(next, operation).await, Some(Answer::NotServing));
    }
}

pub(super) async fn places_come_with_merges_and_their_times_begin_anew(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    let seconds = Duration::from_secs;
    connection.stand(ballot(1, 1), 'r', 8, "old", Duration::ZERO).await;
    subject.set_time(START + 100);
    let (next, memory) = (ballot(10, 9), MemoryId(0xbeef));
    connection.ungated(list(next)).await;
    connection.ungated(Operation::BeginJoin { list: next, memory, recovery: None }).await;
    let source = |set, order, id: &str, token, due: Duration| {
        let stamps = if due.is_zero() { vec![] } else { vec![(stamp(ballot(token, 1)), START * 1_000_000)] };
        let place = place(set, order, id, due);
        (item(id), Source { stamps, place, listed: set != 'x', ..Source::new(ballot(token, 1), id) }.raw())
    };
    let merge = async |rows| {
        let merge = Operation::Merge { memory, floor: Ballot::ZERO, rows };
        while connection.ungated(merge.clone()).await == Answer::Wiping {}
    };
    merge(vec![
        source('r', 1, "ready", 2, Duration::ZERO),
        source('w', 2, "delayed", 2, seconds(5)),
        source('l', 3, "leased", 2, seconds(9)),
        source('x', 4, "done", 2, Duration::ZERO),
    ])
    .await;
    let (delayed, leased) = (milliseconds(105) + 1, milliseconds(109) + 1);
    let first = [
        ('r', member(1, "ready"), 0),
        ('w', member(2, "delayed"), delayed),
        ('l', member(3, "leased"), leased),
        ('x', member(4, "done"), 0),
    ];
    assert_eq!(sets(subject), first, "what was there before is gone");
    subject.set_time(START + 101);
    // An older record changes nothing, a newer one takes the item along.
    merge(vec![
        source('d', 2, "delayed", 1, Duration::ZERO),
        source('l', 1, "ready", 3, seconds(4)),
        source('x', 3, "leased", 3, Duration::ZERO),
    ])
    .await;
    let second = [
        ('w', member(2, "delayed"), delayed),
        ('l', member(1, "ready"), milliseconds(105) + 1),
        ('x', member(3, "leased"), 0),
        ('x', member(4, "done"), 0),
    ];
    assert_eq!(sets(subject), second);
    assert_eq!(connection.ungated(Operation::EndJoin { memory }).await, Answer::Accepted);
    subject.set_time(START + 106);
    let Some(Answer::Claimed(claimed)) =
        connection.run_by(next, Operation::Claim(claim(9, ballot(11, 1)))).await
    else {
        panic!("a member serves")
    };
    assert_eq!(ids(&claimed), ["ready", "delayed"]);
    assert!(claimed.items.iter().all(|(_, record)| record.copied), "a claim shows that it was copied");
}

pub(super) async fn what_is_done_is_guarded_until_it_may_be_forgotten(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    let kept = Duration::from_secs(10);
    let done = |guard| {
        let stamps = vec![stamp(ballot(1, 1))];
        Accept { stamps, guard, ..standing(ballot(1, 1), 'x', 1, "kept", Duration::ZERO) }
    };
    connection.run(Operation::Accept(Arc::new(done(kept)))).await;
    connection.stand(ballot(1, 1), 'x', 2, "plain", Duration::ZERO).await;
    // A lease has a stamp, too, and guards nothing.
    connection.stand(ballot(1, 1), 'l', 3, "leased", kept).await;
    let look = async || {
        let keys = ["kept", "plain", "leased", "none"].map(item).to_vec();
        match connection.run(Operation::Ballots { keys }).await {
            Answer::Ballots(held) => {
                let flags = |held: Held| (held.listed, held.guarded, held.ripe);
                held.into_iter().map(|held| held.map(flags)).collect::<Vec<_>>()
            }
            other => panic!("ballots answered {other:?}"),
        }
    };
    let others = [Some((false, false, false)), Some((true, false, false)), None];
    for (later, guarded) in [(0, true), (10, true), (11, false)] {
        subject.set_time(START + later);
        let found = look().await;
        assert_eq!(found[0], Some((false, guarded, !guarded)), "after {later} s: aged means longer");
        assert_eq!(found[1..], others);
    }
    // A clock that went back has nothing to guard; whoever promises next sets the time right.
    subject.set_time(START - 5);
    assert_eq!(look().await[0], Some((false, false, true)));
    connection.run(Operation::Prepare { key: item("kept"), ballot: ballot(2, 1), soft: false }).await;
    assert_eq!(look().await[0], Some((false, true, false)));
}

pub(super) async fn a_claim_that_promises_is_a_write(subject: &dyn Subject) {
    let connection = super::member(subject).await;
    connection.ready(1, "a").await;
    let claim = |token| Operation::Claim(claim(1, ballot(token, 1)));
    let writes = connection.writes(founding(), &[census_of('r', 1)]).await;
    assert_eq!(writes, None, "a census changes no record");
    let after = connection.writes(founding(), &[claim(2)]).await;
    assert!(after.is_some());
    assert_eq!(connection.writes(founding(), &[claim(3)]).await, None, "there was nothing to claim");
}
