//! Looks of keys that share a round: protocol, "Looks".

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use majorityd::ids::Key;
use majorityd::kv::{Precondition, Write};
use majorityd::limits;

use super::stage::{ACCEPT, Daemon, READ, RIGHT, Stage, Way};
use super::table::Table;

fn key(name: &str) -> Key {
    Key::parse(name).expect("a good name")
}

fn set(stage: &Stage, daemon: &Daemon, name: &str, data: &str, ttl: Option<Duration>) -> bool {
    let write = Write::Set { data: Bytes::from(data.to_owned()), ttl, precondition: Precondition::None };
    let (keys, deadline, key) = (daemon.keys.clone(), daemon.deadline(), key(name));
    stage.call(async move { keys.write(&key, write.into(), deadline).await.is_ok() }).ended().unwrap_or(false)
}

/// The data, or the error as it is printed.
type Got = Result<Option<Bytes>, String>;

/// Gets of all of them at once; what each has ended with.
fn get(stage: &Stage, daemon: &Daemon, names: &[&str], milliseconds: u64) -> Option<Vec<Got>> {
    let (keys, deadline) = (daemon.keys.clone(), daemon.deadline());
    let all: Vec<_> = names.iter().map(|name| key(name)).collect();
    let call = stage.call(async move {
        let gets = all.iter().map(|key| async {
            let got = keys.get(key, deadline).await.map_err(|error| format!("{error:?}"))?;
            Ok(got.map(|entry| entry.data))
        });
        join_all(gets).await
    });
    stage.pass(milliseconds);
    call.ended()
}

fn found(data: &str) -> Got {
    Ok(Some(Bytes::from(data.to_owned())))
}

#[test]
fn looks_of_many_keys_are_one_question_to_each_node() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    for name in ["a", "b", "c"] {
        assert!(set(&stage, &a, name, name, None));
    }
    let got = get(&stage, &a, &["a", "b", "none", "a", "c"], 0).expect("they end at once");
    assert_eq!(got, [found("a"), found("b"), Ok(None), found("a"), found("c")]);
    for node in 0..3 {
        assert_eq!(a.looks(node), [4], "each key once");
    }
    // Not more than a batch has operations.
    let names: Vec<String> = (0..=limits::BATCH_OPERATIONS_MAX).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let got = get(&stage, &a, &names, 0).expect("they end at once");
    assert_eq!(got, vec![Ok(None); names.len()]);
    assert_eq!(a.looks(0), [4, limits::BATCH_OPERATIONS_MAX, 1]);
}

#[test]
fn a_look_that_meets_a_write_half_way_leaves_it_to_a_round_of_its_own() {
    let stage = Stage::on(Table::laid(3));
    let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
    assert!(set(&stage, &a, "k", "old", None));
    assert!(set(&stage, &a, "other", "x", None));
    // The write arrives at one node and is on its way to the others.
    for node in [1, 2] {
        a.way_of(node, ACCEPT, Way::KeepRequest);
    }
    assert!(!set(&stage, &a, "k", "new", None));
    // Who answered first may have been those who know nothing of it: then the old value is what was agreed on.
    b.way_of(0, READ, Way::KeepReply);
    assert_eq!(get(&stage, &b, &["k", "other"], 0), Some(vec![found("old"), found("x")]));
    // Who sees both can't tell, and has it finished. What else is in the look is answered by it.
    b.way_of(0, READ, Way::Open);
    b.way_of(1, READ, Way::KeepReply);
    assert_eq!(get(&stage, &b, &["k", "other"], 1_000), Some(vec![found("new"), found("x")]));
    a.way_of(1, ACCEPT, Way::Open);
    let again = get(&stage, &b, &["k"], 1_000);
    assert_eq!(again, Some(vec![found("new")]), "and it stays");
}

#[test]
fn what_has_expired_is_removed_before_a_look_says_so() {
    let stage = Stage::on(Table::laid(3));
    let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
    assert!(set(&stage, &a, "k", "x", Some(Duration::from_secs(10))));
    stage.pass(10_000);
    assert_eq!(get(&stage, &b, &["k"], 0), Some(vec![found("x")]), "not for longer than its TTL");
    stage.pass(1);
    assert_eq!(get(&stage, &b, &["k"], 100), Some(vec![Ok(None)]));
    // That it is gone is agreed on: also nodes whose clocks were set back don't show it again.
    stage.table.clock_ms.fetch_sub(5_000, Ordering::Relaxed);
    assert_eq!(get(&stage, &a, &["k"], 0), Some(vec![Ok(None)]));
}

#[test]
fn a_node_that_is_silent_keeps_no_look_up_and_is_not_asked_without_end() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    assert!(set(&stage, &a, "k", "x", None));
    a.way_of(2, READ, Way::KeepRequest);
    for _ in 0..2 * limits::LOOKS_IN_FLIGHT_MAX {
        assert_eq!(get(&stage, &a, &["k"], 0), Some(vec![found("x")]));
    }
    assert_eq!(a.looks(1).len(), 2 * limits::LOOKS_IN_FLIGHT_MAX);
    assert_eq!(a.looks(2).len(), limits::LOOKS_IN_FLIGHT_MAX);
    // When it answers it is asked again.
    a.way_of(2, READ, Way::Open);
    a.let_go(2);
    stage.settle();
    assert_eq!(get(&stage, &a, &["k"], 0), Some(vec![found("x")]));
    assert_eq!(a.looks(2).len(), limits::LOOKS_IN_FLIGHT_MAX + 1);
}

#[test]
fn without_a_quorum_a_look_says_so_and_later_ones_do_not_wait_for_it() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    assert!(set(&stage, &a, "k", "x", None));
    for node in [1, 2] {
        a.way(node, Way::Cut);
    }
    let got = get(&stage, &a, &["k"], 4_000).expect("patience ends");
    assert!(matches!(&got[..], [Err(error)] if error.starts_with("Register(NoQuorum")), "{got:?}");
    // Two are silent, and nobody knows: a look that is stuck does not keep up the next, which has its quorum.
    for node in [1, 2] {
        a.way_of(node, READ, Way::KeepRequest);
    }
    assert_eq!(get(&stage, &a, &["k"], 100), None);
    for node in [1, 2] {
        a.way(node, Way::Open);
    }
    assert_eq!(get(&stage, &a, &["k"], 0), Some(vec![found("x")]));
}

#[test]
fn while_a_write_of_its_daemon_is_under_way_a_look_stands_in_line() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    assert!(set(&stage, &a, "k", "old", None));
    for node in 0..3 {
        a.way_of(node, ACCEPT, Way::KeepReply);
    }
    assert!(!set(&stage, &a, "k", "new", None));
    let (keys, deadline) = (a.keys.clone(), a.deadline());
    let get = stage.call(async move { keys.get(&key("k"), deadline).await });
    assert!(get.ended().is_none() && a.looks(0).is_empty(), "it waits for the write");
    for node in 0..3 {
        a.way(node, Way::Open);
        a.let_go(node);
    }
    stage.settle();
    let got = get.ended().expect("the write is done").expect("there is a quorum");
    assert_eq!(got.map(|entry| entry.data), Some(Bytes::from("new")));
}

#[test]
fn a_look_asks_for_as_many_values_as_are_no_burden() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    let names: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mib = "x".repeat(1 << 20);
    for name in &names {
        assert!(set(&stage, &a, name, &mib, None));
    }
    let all = vec![found(&mib); names.len()];
    assert!(get(&stage, &a, &names, 0) == Some(all.clone()));
    assert_eq!(a.looks(0), [12], "how large they are is not known before");
    assert!(get(&stage, &a, &names, 0) == Some(all));
    assert_eq!(a.looks(0), [12, 3, 3, 3, 3], "three and their heads are 4 MiB");
    // However many want the same one.
    assert!(get(&stage, &a, &[names[0]; 100], 0) == Some(vec![found(&mib); 100]));
    assert_eq!(a.looks(0), [12, 3, 3, 3, 3, 1]);
    // Small ones end that.
    assert_eq!(get(&stage, &a, &["a", "b", "c", "d", "e"], 0), Some(vec![Ok(None); 5]));
    assert_eq!(a.looks(0)[6..], [3, 2]);
    assert_eq!(get(&stage, &a, &["a", "b", "c", "d", "e"], 0), Some(vec![Ok(None); 5]));
    assert_eq!(a.looks(0)[8..], [5]);
}

#[test]
fn few_looks_are_under_way_until_they_count_as_stuck() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    assert!(set(&stage, &a, "k", "x", None));
    for node in [1, 2] {
        a.way_of(node, READ, Way::KeepReply);
    }
    let mut calls = Vec::new();
    let mut ask = |milliseconds: u64| {
        let (keys, deadline) = (a.keys.clone(), a.deadline());
        calls.push(stage.call(async move { keys.get(&key("k"), deadline).await }));
        stage.pass(milliseconds);
    };
    for _ in 0..10 {
        ask(2);
    }
    assert_eq!(a.looks(1).len(), limits::LOOK_ROUNDS_MAX);
    stage.pass(250);
    assert_eq!(a.looks(1).len(), limits::LOOK_ROUNDS_MAX + 1, "all that waited go together");
    for _ in 0..20 {
        ask(250);
    }
    assert_eq!(a.looks(1).len(), limits::LOOKS_IN_FLIGHT_MAX, "a node is not asked without end");
    for node in [1, 2] {
        a.way(node, Way::Open);
        a.let_go(node);
    }
    stage.pass(2_000);
    for call in calls {
        let got = call.ended().expect("none is forgotten").expect("there is a quorum");
        assert_eq!(got.map(|entry| entry.data), Some(Bytes::from("x")));
    }
}

#[test]
fn a_look_that_waits_for_others_ends_by_its_deadline() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    assert!(set(&stage, &a, "k", "x", None));
    for node in [1, 2] {
        a.way_of(node, READ, Way::KeepReply);
    }
    let ask = |milliseconds: u64| {
        let (keys, deadline) = (a.keys.clone(), stage.table.now() + Duration::from_millis(milliseconds));
        stage.call(async move { keys.get(&key("k"), deadline).await.map_err(|error| format!("{error:?}")) })
    };
    let under_way: Vec<_> = (0..limits::LOOK_ROUNDS_MAX)
        .map(|_| {
            let call = ask(10_000);
            stage.pass(2);
            call
        })
        .collect();
    let waits = ask(100);
    stage.pass(99);
    assert!(waits.ended().is_none());
    stage.pass(1);
    let got = waits.ended().expect("its deadline has come");
    assert!(got.as_ref().is_err_and(|error| error.starts_with("Register(DeadlineExceeded")), "{got:?}");
    assert!(under_way.iter().all(|call| call.ended().is_none()));
}
