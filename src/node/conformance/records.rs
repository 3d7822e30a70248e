//! Looking through a node's records and forgetting some: `page`, `ballots`, `forget`.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::node::operation::{Forgotten, Held};

/// Pages of one walk before a case gives up.
const PAGES_MAX: usize = 2_000;

/// The first page, with all values.
fn first(count: usize) -> PageRequest {
    PageRequest {
        cursor: PageRequest::START,
        count,
        bytes: 1 << 20,
        recovery: None,
        with_values: true,
        keys: Vec::new(),
    }
}

fn of_keys(names: &[&str]) -> PageRequest {
    PageRequest { keys: names.iter().map(|name| lock(name)).collect(), ..first(1) }
}

fn forget(name: &str, ballot: Ballot, promise: Ballot) -> Forgotten {
    Forgotten { key: lock(name), ballot, promise: promise.token }
}

async fn forgotten(connection: &Connection, records: Vec<Forgotten>) -> u64 {
    match connection.run(Operation::Forget { records }).await {
        Answer::Forgotten(count) => count,
        other => panic!("forget answered {other:?}"),
    }
}

pub(super) async fn pages_show_every_record(subject: &dyn Subject) {
    const RECORDS: usize = 300;
    let connection = member(subject).await;
    let name = |i: usize| format!("{i}");
    for tens in 0..RECORDS / 10 {
        let accept = |i: usize| put(&name(i), ballot(1, 1), &format!("value of {i}"));
        let accepts: Vec<_> = (10 * tens..10 * tens + 10).map(accept).collect();
        connection.done(founding(), &accepts).await;
    }
    subject.put(FLOOR_KEY.as_bytes(), floor_entry(ballot(2, 2)));
    subject.put(b"app:1", Entry::Bytes("theirs".into()));
    for count in [1, 7, 1_000] {
        let mut seen: BTreeMap<RegisterKey, Bytes> = BTreeMap::new();
        let mut request = first(count);
        let mut pages = 0;
        loop {
            let page = connection.page(founding(), request.clone()).await;
            assert_eq!(page.floor, ballot(2, 2));
            seen.extend(page.rows.into_iter().map(|(key, raw)| (key, raw.expect("a value that fits"))));
            if page.cursor == PageRequest::START {
                break;
            }
            request.cursor = page.cursor;
            pages += 1;
            assert!(pages < PAGES_MAX, "the walk has no end");
            // Others come, and go, all the while: enough that a hash table grows and shrinks.
            let other = format!("{count} other {pages}");
            connection.run(put(&other, ballot(3, 1), "x")).await;
            if pages % 3 == 0 {
                let gone = vec![forget(&other, ballot(3, 1), ballot(3, 1))];
                assert_eq!(forgotten(&connection, gone).await, 1);
                subject.put(FLOOR_KEY.as_bytes(), floor_entry(ballot(2, 2)));
            }
        }
        for i in 0..RECORDS {
            let raw = seen.get(&lock(&name(i))).unwrap_or_else(|| panic!("{i} is on no page of {count}"));
            let record = wire::decode_record(raw, START * 1_000_000).expect("as it is stored");
            assert_eq!((record.value, record.ballot), (format!("value of {i}").into(), ballot(1, 1)));
        }
        assert!(seen.contains_key(&RegisterKey::members()));
        let ours: BTreeSet<_> = seen.keys().filter_map(|key| Some(key.parts()?.0)).collect();
        assert_eq!(ours, ['l', 'm'].into(), "nothing else");
    }
}

pub(super) async fn values_that_do_not_fit_a_page_are_asked_for_by_key(subject: &dyn Subject) {
    let connection = member(subject).await;
    let value = "x".repeat(1_000);
    let names: Vec<_> = (0..10).map(|i| format!("{i}")).collect();
    for name in &names {
        connection.run(put(name, ballot(1, 1), &value)).await;
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let with_value = |page: &Page| -> Vec<bool> { page.rows.iter().map(|(_, raw)| raw.is_some()).collect() };
    let up_to = |count| (0..10).map(|i| i < count).collect::<Vec<_>>();
    // A value goes out as long as those before it are below the bound.
    for (bytes, shown) in [(0, 1), (1, 1), (1_000, 1), (2_000, 2), (4_500, 5), (1 << 20, 10)] {
        let page = connection.page(founding(), PageRequest { bytes, ..of_keys(&names) }).await;
        assert_eq!(with_value(&page), up_to(shown), "{bytes} bytes");
    }
    // The same when a walk comes by, and then nothing is left out for good.
    let page = connection.page(founding(), PageRequest { bytes: 2_500, ..first(1_000) }).await;
    assert_eq!((page.rows.len(), page.cursor), (11, PageRequest::START));
    let mut left: Vec<_> =
        page.rows.into_iter().filter(|(_, raw)| raw.is_none()).map(|(key, _)| key).collect();
    assert!(left.len() >= 7);
    while !left.is_empty() {
        let request = PageRequest { bytes: 0, keys: left.clone(), ..first(1) };
        let page = connection.page(founding(), request).await;
        assert!(page.rows[0].1.is_some(), "the first always has it");
        left.remove(0);
    }
}

pub(super) async fn a_page_of_keys_is_in_their_order(subject: &dyn Subject) {
    let connection = member(subject).await;
    for name in ["a", "b", "c"] {
        connection.run(put(name, ballot(1, 1), name)).await;
    }
    let request = of_keys(&["c", "none", "a"]);
    let page = connection.page(founding(), request.clone()).await;
    let keys: Vec<_> = page.rows.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!((keys, page.cursor), (request.keys.clone(), PageRequest::START));
    let raw = |name: &str| {
        let key = [RECORD_PREFIX.as_bytes(), lock(name).as_bytes()].concat();
        match subject.dump().get(&key) {
            Some(Entry::Bytes(raw)) => Some(raw.clone()),
            _ => None,
        }
    };
    let values: Vec<_> = page.rows.into_iter().map(|(_, raw)| raw).collect();
    assert_eq!(values, [raw("c"), None, raw("a")]);
    let page = connection.page(founding(), PageRequest { with_values: false, ..request }).await;
    assert!(page.rows.len() == 3 && page.rows.iter().all(|(_, raw)| raw.is_none()));
    assert_eq!(page.floor, Ballot::ZERO);
}

pub(super) async fn pages_are_gated_and_a_recovery_has_its_own_gate(subject: &dyn Subject) {
    let recovery = ballot(30, 3);
    let by_recovery = Operation::Page(PageRequest { recovery: Some(recovery), ..first(10) });
    let plain = Operation::Page(first(10));
    let is_page = |answer: &Option<Answer>| matches!(answer, Some(Answer::Page(_)));

    let connection = subject.connect(ProposerId(1)).await;
    for operation in [&plain, &by_recovery] {
        assert_eq!(connection.run_by(Ballot::ZERO, operation.clone()).await, None, "there is no list");
    }
    let [list, found] = found();
    connection.ungated(list).await;
    assert_eq!(connection.run_by(founding(), plain.clone()).await, Some(Answer::NotServing));
    let prepare = |ballot| Operation::Prepare { key: RegisterKey::members(), ballot, soft: false };
    // A recovery sees nodes that have no memory, whatever list they hold.
    connection.ungated(prepare(recovery)).await;
    for list in [Ballot::ZERO, founding(), ballot(7, 7)] {
        assert!(is_page(&connection.run_by(list, by_recovery.clone()).await));
    }
    for other in [ballot(29, 3), ballot(30, 2), ballot(30, 4), ballot(31, 3)] {
        let page = Operation::Page(PageRequest { recovery: Some(other), ..first(10) });
        assert_eq!(connection.run_by(founding(), page).await, None, "{other} was not promised last");
    }
    connection.ungated(prepare(ballot(31, 1))).await;
    assert_eq!(connection.run_by(founding(), by_recovery.clone()).await, None, "it is over");

    subject.wipe();
    let connection = subject.connect(ProposerId(1)).await;
    let [list, _] = super::found();
    connection.done(Ballot::ZERO, &[list, found]).await;
    assert!(is_page(&connection.run_by(founding(), plain.clone()).await));
    // Not even with a cursor that looks like the list's key.
    let odd = Operation::Page(PageRequest { cursor: Bytes::from_static(b"m:"), ..of_keys(&["a"]) });
    for list in [Ballot::ZERO, ballot(7, 7)] {
        assert_eq!(connection.run_by(list, plain.clone()).await, None);
        assert_eq!(connection.run_by(list, odd.clone()).await, None);
    }
    assert_eq!(connection.run_by(founding(), by_recovery).await, None, "no recovery was promised anything");
}

pub(super) async fn ballots_are_shown_without_values(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.run(listed("listed", ballot(3, 1), true)).await;
    connection.run(put("plain", ballot(2, u64::MAX), "x")).await;
    connection.run(prepare("plain", ballot(5, 2))).await;
    connection.run(prepare("bare", ballot(4, 2))).await;
    let keys = ["plain", "none", "listed", "bare", "plain"].map(lock).to_vec();
    let before = subject.dump();
    let held =
        |ballot, promise| Held { ballot, promise, copied: false, listed: false, ripe: false, guarded: false };
    let plain = held(ballot(2, u64::MAX), ballot(5, 2));
    let all = vec![
        Some(plain),
        None,
        Some(Held { listed: true, ..held(ballot(3, 1), ballot(3, 1)) }),
        Some(held(Ballot::ZERO, ballot(4, 2))),
        Some(plain),
    ];
    assert_eq!(connection.run(Operation::Ballots { keys }).await, Answer::Ballots(all));
    let none = Operation::Ballots { keys: Vec::new() };
    assert_eq!(connection.run(none.clone()).await, Answer::Ballots(Vec::new()));
    assert_eq!(subject.dump(), before);
    for list in [Ballot::ZERO, ballot(7, 7)] {
        assert_eq!(connection.run_by(list, none.clone()).await, None);
    }
    // A copied one says so.
    let next = ballot(10, 9);
    connection.ungated(list(next)).await;
    let memory = MemoryId(0xbeef);
    let rows = connection.page(next, of_keys(&["plain"])).await.rows;
    let rows = rows.into_iter().map(|(key, raw)| (key, raw.expect("stored"))).collect();
    connection.ungated(Operation::BeginJoin { list: next, memory, recovery: None }).await;
    let merge = Operation::Merge { memory, floor: Ballot::ZERO, rows };
    assert_eq!(connection.ungated(merge.clone()).await, Answer::Wiping);
    assert_eq!(connection.ungated(merge).await, Answer::Accepted);
    connection.ungated(Operation::EndJoin { memory }).await;
    let answer = connection.run_by(next, Operation::Ballots { keys: vec![lock("plain")] }).await;
    assert_eq!(answer, Some(Answer::Ballots(vec![Some(Held { copied: true, ..plain })])));
}

pub(super) async fn ballots_of_large_records_are_shown_some_at_a_time(subject: &dyn Subject) {
    let connection = member(subject).await;
    let large = "x".repeat(200_000);
    let names = ["a", "b", "c", "d"];
    for name in names {
        connection.run(put(name, ballot(2, 1), if name == "d" { "small" } else { &large })).await;
    }
    for (first, shown) in [(0, 2), (1, 2), (2, 2), (3, 1)] {
        let keys = names[first..].iter().map(|name| lock(name)).collect();
        let answer = connection.run(Operation::Ballots { keys }).await;
        assert!(matches!(&answer, Answer::Ballots(held) if held.len() == shown), "from {first}: {answer:?}");
    }
}

pub(super) async fn what_guards_a_record_ripens_by_the_nodes_clock(subject: &dyn Subject) {
    let connection = member(subject).await;
    let (first, second) = (stamp(ballot(1, 1)), stamp(ballot(2, 1)));
    let guarded = |name, ballot, stamps: &[Stamp], seconds| {
        let guard = Duration::from_secs(seconds);
        Operation::Accept(Arc::new(Accept {
            stamps: stamps.to_vec(),
            guard,
            ..accept(lock(name), ballot, "held")
        }))
    };
    connection.run(guarded("guarded", ballot(1, 1), &[first], 10)).await;
    connection.run(guarded("stamped", ballot(1, 1), &[first], 0)).await;
    let names = ["guarded", "stamped", "none"];
    let ripe = async || match connection.run(Operation::Ballots { keys: names.map(lock).to_vec() }).await {
        Answer::Ballots(held) => held.into_iter().map(|held| held.is_some_and(|held| held.ripe)).collect(),
        other => panic!("ballots answered {other:?}"),
    };
    let expect = async |later: u64, guarded: bool, why: &str| {
        subject.set_time(START + later);
        let ripe: Vec<bool> = ripe().await;
        assert_eq!(ripe, [guarded, false, false], "after {later} s: {why}");
    };
    expect(0, false, "it has just begun").await;
    expect(10, false, "aged means longer").await;
    expect(11, true, "it has aged").await;
    // Another stamp in the first place begins anew, whatever stands behind it.
    connection.run(guarded("guarded", ballot(2, 1), &[second, first], 10)).await;
    expect(21, false, "a new stamp").await;
    expect(22, true, "it has aged, too").await;
    // A clock that went back says nothing about ages, and whoever looks after the record sets that right.
    expect(5, true, "it is ahead of the clock").await;
    connection.run(prepare("guarded", ballot(3, 1))).await;
    expect(5, false, "its time has begun anew").await;
}

pub(super) async fn only_what_is_as_it_was_read_is_forgotten(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.run(listed("a", ballot(5, 5), true)).await;
    connection.run(prepare("a", ballot(7, 2))).await;
    connection.run(prepare("bare", ballot(3, 1))).await;
    let before = subject.dump();
    let kept = vec![
        // Another ballot, by token or by proposer.
        forget("a", ballot(4, 5), ballot(9, 9)),
        forget("a", ballot(6, 5), ballot(9, 9)),
        forget("a", ballot(5, 4), ballot(9, 9)),
        forget("a", ballot(5, 6), ballot(9, 9)),
        forget("a", Ballot::ZERO, ballot(9, 9)),
        // Somebody was promised more since.
        forget("a", ballot(5, 5), ballot(6, 9)),
        forget("bare", Ballot::ZERO, ballot(2, 1)),
        forget("none", Ballot::ZERO, ballot(9, 9)),
    ];
    assert_eq!(forgotten(&connection, kept).await, 0);
    assert_eq!(forgotten(&connection, Vec::new()).await, 0);
    assert_eq!(subject.dump(), before);
    // The promise just as it was read; and each once.
    let gone = [forget("a", ballot(5, 5), ballot(7, 1)), forget("bare", Ballot::ZERO, ballot(3, 1))];
    let twice = [gone.clone(), gone].concat();
    assert_eq!(forgotten(&connection, twice.clone()).await, 2);
    assert_eq!((connection.record("a").await, connection.record("bare").await), (None, None));
    assert!(subject.dump().get(b"majorityd:i:l").is_none(), "the index follows");
    assert_eq!(connection.run(names_from("")).await, Answer::Names(Vec::new()));
    assert_eq!(forgotten(&connection, twice).await, 0);
    for list in [Ballot::ZERO, ballot(7, 7)] {
        let operation = Operation::Forget { records: Vec::new() };
        assert_eq!(connection.run_by(list, operation).await, None);
    }
}

pub(super) async fn what_is_forgotten_raises_the_floor(subject: &dyn Subject) {
    let connection = member(subject).await;
    let floor = async || connection.page(founding(), of_keys(&["none"])).await.floor;
    for (name, token, proposer) in [("a", 5, 5), ("b", 8, 2), ("c", 3, 9), ("d", 8, 3), ("e", 8, 1)] {
        connection.run(put(name, ballot(token, proposer), "x")).await;
    }
    connection.run(prepare("a", ballot(6, 6))).await;
    assert_eq!(floor().await, Ballot::ZERO);
    let of = |name, ballot| vec![forget(name, ballot, super::ballot(9, 9))];
    let table = [
        ("a", ballot(5, 5), ballot(6, 6)),
        ("b", ballot(8, 2), ballot(8, 2)),
        ("c", ballot(3, 9), ballot(8, 2)),
        ("d", ballot(8, 3), ballot(8, 3)),
        ("e", ballot(8, 1), ballot(8, 3)),
    ];
    for (name, ballot, risen) in table {
        assert_eq!(forgotten(&connection, of(name, ballot)).await, 1);
        assert_eq!(floor().await, risen, "after {name}");
    }
    for refused in [ballot(8, 9), ballot(8, 3), ballot(8, 1), ballot(2, 2)] {
        assert_eq!(connection.run(prepare("a", refused)).await, conflict(ballot(8, 3)), "{refused}");
        assert_eq!(connection.run(put("a", refused, "old")).await, conflict(ballot(8, 3)), "{refused}");
    }
    let answer = connection.run(prepare("a", ballot(9, 1))).await;
    assert!(matches!(answer, Answer::Promised { floor, .. } if floor == ballot(8, 3)), "{answer:?}");
    // Also for what comes later in the same batch.
    connection.run(put("f", ballot(12, 1), "x")).await;
    let batch = [
        prepare("other", ballot(9, 1)),
        Operation::Forget { records: vec![forget("f", ballot(12, 1), ballot(12, 1))] },
        put("f", ballot(12, 1), "old"),
        prepare("other", ballot(13, 1)),
    ];
    let (_, _, answers) = connection.done(founding(), &batch).await;
    assert_eq!(answers[1..3], [Some(Answer::Forgotten(1)), Some(conflict(ballot(12, 1)))]);
    let told = matches!(&answers[3], Some(Answer::Promised { floor, .. }) if *floor == ballot(12, 1));
    assert!(told, "{answers:?}");
}

pub(super) async fn the_list_is_never_forgotten(subject: &dyn Subject) {
    let connection = member(subject).await;
    let before = subject.dump();
    let list = Forgotten { key: RegisterKey::members(), ballot: founding(), promise: ballot(9, 9).token };
    assert_eq!(forgotten(&connection, vec![list]).await, 0);
    assert_eq!(subject.dump(), before);
}
