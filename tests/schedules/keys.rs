//! Keys: protocol, section 4, and what the register has for them.

use std::time::Duration;

use futures::StreamExt;
use majorityd::ids::{Key, LockName, RequestId};
use majorityd::kv::change::{KeyAnswer, KeyChange, KeyKind, Refused};
use majorityd::kv::value::KeyValue;
use majorityd::kv::watch::Scope;
use majorityd::kv::{Effect, Fence, KvError, Mutation, Precondition, WatchEvent, Watched, Write, Written};
use majorityd::limits;
use majorityd::mutant::Mutant;
use majorityd::register::RegisterError;
use majorityd::register::proposer::{Fate, Warm};
use majorityd::token::Token;

use super::stage::{ACCEPT, Call, Daemon, RIGHT, Stage, Way};
use super::table::{Found, Hand, Round, Table, holds_and_breaks_without, promise};

const KEY: &str = "k:lock";

fn set(data: &'static str) -> Write {
    Write::Set { data: data.into(), ttl: None, precondition: Precondition::None }
}

/// The same for ten seconds.
fn set_for_10_s(data: &'static str) -> Write {
    let ttl = Some(Duration::from_secs(10));
    Write::Set { data: data.into(), ttl, precondition: Precondition::None }
}

fn add(delta: i64) -> Write {
    Write::Increment { delta, initial: 0, ttl: None }
}

const DELETE: Write = Write::Delete { version: None };

fn requested(write: Write) -> Mutation {
    Mutation { request: Some(RequestId(1, 1)), ..write.into() }
}

/// Under this token of the lock.
fn fenced(write: Write, token: u64) -> Mutation {
    let lock = LockName::parse("guard").expect("a good name");
    let token = Token::new(token).expect("a small number");
    Mutation { fence: Some(Fence { lock, token }), ..write.into() }
}

/// A round of these writes.
fn writes<'a, M: Into<Mutation> + Clone>(
    table: &'a Table,
    daemon: &'a Hand,
    all: &[M],
) -> Round<'a, KeyKind> {
    let changes = all.iter().map(|write| KeyChange::Write(write.clone().into())).collect();
    table.start(daemon, changes, None)
}

/// One write, with everybody listening.
fn write<'a>(
    table: &'a Table,
    daemon: &'a Hand,
    mutation: impl Into<Mutation> + Clone,
) -> Round<'a, KeyKind> {
    writes(table, daemon, &[mutation]).run(&table.all())
}

fn warm_write<'a>(
    table: &'a Table,
    daemon: &'a Hand,
    write: Write,
    warm: Option<Warm<KeyValue>>,
) -> Round<'a, KeyKind> {
    table.start(daemon, vec![KeyChange::Write(write.into())], warm).run(&table.all())
}

fn getting<'a>(table: &'a Table, daemon: &'a Hand) -> Round<'a, KeyKind> {
    table.start(daemon, vec![KeyChange::Get], None)
}

/// What a reader is told by these nodes; empty for nothing.
fn get(table: &Table, daemon: &Hand, nodes: &[u8]) -> String {
    data(&getting(table, daemon).run(nodes))
}

fn data(round: &Round<'_, KeyKind>) -> String {
    match round.answer() {
        Some(KeyAnswer::Seen(seen)) => seen.entry.as_ref().map_or_else(String::new, |entry| {
            String::from_utf8(entry.data.to_vec()).expect("only text is written here")
        }),
        other => panic!("a reader is told what there is: {other:?}"),
    }
}

fn written(fate: &Fate<KeyAnswer>) -> Option<&Written> {
    match fate {
        Fate::Done { answer: KeyAnswer::Written(written), .. } => Some(written),
        _ => None,
    }
}

/// The versions that writes were answered with.
fn versions(round: &Round<'_, KeyKind>) -> Vec<u64> {
    let version = |written: &Written| match written.effect {
        Effect::Set { version, .. } | Effect::Counted { version, .. } => Some(version.get()),
        Effect::Deleted { version } | Effect::Touched { version, .. } => version.map(Token::get),
    };
    round.fates().iter().filter_map(written).filter_map(version).collect()
}

/// The number that an increment was answered with.
fn number(round: &Round<'_, KeyKind>) -> Option<i64> {
    match round.fates().first().and_then(written)?.effect {
        Effect::Counted { number, .. } => Some(number),
        _ => None,
    }
}

fn is_fenced(round: &Round<'_, KeyKind>) -> bool {
    matches!(round.answer(), Some(KeyAnswer::Refused(Refused::Fenced(_))))
}

// ---- versions

#[test]
fn writes_of_one_round_and_those_of_others_after_it_have_versions_of_their_own() {
    holds_and_breaks_without(Mutant::TokensNotReserved, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 102));
        let three = writes(&table, &a, &[set("1"), set("2"), set("3")]).run(&table.all());
        let four = write(&table, &b, set("4"));
        let all = [versions(&three), versions(&four)].concat();
        assert_eq!(all.len(), 4, "{:?} {:?}", three.fates(), four.fates());
        promise(all.is_sorted_by(|one, next| one < next), "two writes have one version")
    });
}

#[test]
fn versions_grow_also_when_the_key_was_forgotten() {
    holds_and_breaks_without(Mutant::VersionsCounted, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let one = write(&table, &a, set("1"));
        let gone = write(&table, &a, DELETE);
        table.forget_everywhere(KEY);
        let two = write(&table, &b, set("2"));
        let all = [versions(&one), versions(&gone), versions(&two)].concat();
        assert_eq!(all.len(), 3, "{:?} {:?}", one.fates(), two.fates());
        promise(all.is_sorted_by(|one, next| one < next), "a version came again after the key was forgotten")
    });
}

// ---- reading

#[test]
fn a_reader_asks_more_than_one() {
    holds_and_breaks_without(Mutant::ReadsFromOne, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        write(&table, &a, set("1"));
        // Node 2 misses it.
        writes(&table, &a, &[set("2")]).run(&[0, 1]);
        promise(get(&table, &b, &[2, 0]) == "2", "a write was answered, and a later reader does not see it")
    });
}

/// A write reaches node 0 only, and its client is told that the outcome is unknown.
fn half_written(table: &Table, daemon: &Hand) {
    write(table, daemon, set("1"));
    let mut two = writes(table, daemon, &[set("2")]);
    two.to(&[0, 1]);
    two.to(&[0]);
    two.give_up();
    assert_eq!(two.fates(), [Fate::Unknown]);
}

#[test]
fn what_reached_one_node_is_seen_by_everybody_after_the_first_who_sees_it() {
    holds_and_breaks_without(Mutant::AnswersUnfinished, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        half_written(&table, &a);
        let (earlier, later) = (get(&table, &b, &[0, 1]), get(&table, &b, &[1, 2]));
        promise(earlier == later, "a write was seen, and by a later reader it was not")
    });
}

#[test]
fn what_reached_one_node_is_seen_by_nobody_after_another_write() {
    let table = Table::laid(3);
    let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
    half_written(&table, &a);
    // Readers without node 0 see what was before, as often as they like; it may still come.
    assert_eq!([get(&table, &b, &[1, 2]), get(&table, &b, &[1, 2])], ["1", "1"]);
    writes(&table, &b, &[set("3")]).run(&[1, 2]);
    for nodes in [[0, 1], [0, 2], [1, 2]] {
        assert_eq!(get(&table, &b, &nodes), "3", "by {nodes:?}");
    }
}

// ---- expiry

#[test]
fn what_is_told_to_be_gone_has_been_removed() {
    holds_and_breaks_without(Mutant::AbsentUnagreed, || {
        let table = Table::laid(3);
        let (a, b, c) = (table.daemon(1, 100), table.daemon(2, 200), table.daemon(3, 300));
        write(&table, &a, set_for_10_s("1"));
        table.pass(11);
        let earlier = get(&table, &b, &[0, 1]);
        // By the clock of node 2 there is time left.
        table.jump(2, -5);
        let later = get(&table, &c, &[1, 2]);
        assert_eq!(earlier, "");
        promise(later.is_empty(), "a value was told to be gone, and a later reader sees it")
    });
}

/// Two readers find that a value has expired; the removal of the slower one arrives after the next write.
#[test]
fn a_late_removal_of_what_had_expired_takes_nothing_else_away() {
    holds_and_breaks_without(Mutant::AcceptIgnoresPromise, || {
        let table = Table::laid(3);
        let (a, b, c) = (table.daemon(1, 100), table.daemon(2, 200), table.daemon(3, 300));
        write(&table, &a, set_for_10_s("1"));
        table.pass(11);
        let mut slow = getting(&table, &b);
        slow.to(&[0, 1]);
        slow.to(&[0, 1]);
        assert_eq!(get(&table, &c, &[0, 1, 2]), "");
        write(&table, &c, set("2"));
        slow.to(&[0, 1]);
        promise(get(&table, &a, &[0, 1]) == "2", "a write was answered, and was removed as if it had expired")
    });
}

#[test]
fn a_value_that_is_written_often_ends_too() {
    holds_and_breaks_without(Mutant::WarmNeverRipe, || {
        let table = Table::laid(3);
        let a = table.daemon(1, 100);
        let mut five = write(&table, &a, set_for_10_s("5"));
        table.pass(6);
        let mut six = warm_write(&table, &a, add(1), five.warm());
        assert_eq!(number(&six), Some(6));
        table.pass(6);
        let one = warm_write(&table, &a, add(1), six.warm());
        promise(number(&one) == Some(1), "a value ended two seconds ago, and is counted on from")
    });
}

// ---- requests

#[test]
fn a_request_that_is_repeated_is_done_once() {
    holds_and_breaks_without(Mutant::RequestIdIgnored, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut first = writes(&table, &a, &[requested(add(1))]);
        first.to(&[0, 1]);
        // It is agreed on, and nobody hears of it.
        first.reach(&[0, 1]);
        first.give_up();
        let again = write(&table, &b, requested(add(1)));
        assert_eq!(again.fates().len(), 1, "{:?}", again.fates());
        promise(number(&again) == Some(1), "a request was done twice")
    });
}

/// The request is on its way to one node while it is done at another daemon.
fn repeated_while_under_way(nodes: &[u8]) -> Found {
    let table = Table::laid(3);
    let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
    let mut first = writes(&table, &a, &[requested(add(1))]);
    first.to(&[0, 1]);
    let late = first.reach(&[0]);
    let again = writes(&table, &b, &[requested(add(1))]).run(nodes);
    first.hear(late);
    a.tokens_from(300);
    let first = first.run(&[0, 1, 2]);
    let told = [number(&first), number(&again)];
    let seen = get(&table, &b, &[0, 1, 2]);
    promise(told == [Some(1), Some(1)] && seen == "1", "a request was done twice")
}

#[test]
fn a_request_that_is_repeated_while_it_is_under_way_is_done_once() {
    // The repeat misses what is under way, and it meets it.
    holds_and_breaks_without(Mutant::RequestIdIgnored, || repeated_while_under_way(&[1, 2]));
    holds_and_breaks_without(Mutant::RequestIdIgnored, || repeated_while_under_way(&[0, 1]));
}

#[test]
fn a_request_that_found_nothing_to_do_is_remembered() {
    holds_and_breaks_without(Mutant::NoOpUnremembered, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        write(&table, &a, requested(DELETE));
        write(&table, &b, set("1"));
        write(&table, &b, requested(DELETE));
        promise(get(&table, &a, &[0, 1]) == "1", "the repeat of a request removed what was written after it")
    });
}

#[test]
fn requests_are_forgotten_at_last() {
    holds_and_breaks_without(Mutant::RequestsNeverAge, || {
        let table = Table::laid(3);
        let a = table.daemon(1, 100);
        write(&table, &a, requested(set("1")));
        let removed = write(&table, &a, DELETE);
        let says_something = |round: &Round<'_, KeyKind>| round.value().expect("seen").says_something();
        assert!(says_something(&removed), "the request is remembered");
        table.pass(limits::REQUESTS_KEPT.as_secs() + 1);
        let tidy = table.start::<KeyKind>(&a, vec![KeyChange::Tidy], None).run(&table.all());
        promise(!says_something(&tidy), "a key that was removed long ago still remembers requests")
    });
}

#[test]
fn nothing_happened_is_not_said_of_a_request_whose_first_try_is_in_doubt() {
    holds_and_breaks_without(Mutant::RepeatForgetsDoubt, || {
        let stage = Stage::on(Table::laid(3));
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
        let key = || Key::parse("k").expect("a good name");
        (0..3).for_each(|node| a.way_of(node, ACCEPT, Way::KeepReply));
        let (keys, deadline) = (a.keys.clone(), a.cluster.runtime.clock.now() + Duration::from_secs(5));
        let call = stage.call(async move { keys.write(&key(), requested(set("1")), deadline).await });
        // After three seconds the daemon tries again, and reaches nobody.
        stage.pass(1_000);
        (0..3).for_each(|node| a.way(node, Way::Cut));
        stage.pass(9_000);
        let told = call.ended().expect("its deadline has passed").expect_err("nobody was reached");
        let (keys, deadline) = (b.keys.clone(), b.deadline());
        let seen = stage.call(async move { keys.get(&key(), deadline).await }).ended();
        let seen = seen.expect("all nodes are there").expect("all nodes are there");
        let in_doubt = matches!(told, KvError::Register(RegisterError::OutcomeUnknown));
        promise(in_doubt || seen.is_none(), "a client was told that nothing happened, and its value is there")
    });
}

// ---- fences

#[test]
fn who_comes_with_a_lower_token_writes_no_more() {
    holds_and_breaks_without(Mutant::FenceIgnored, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        write(&table, &a, fenced(set("new"), 6));
        let old = write(&table, &b, fenced(set("old"), 5));
        let seen = get(&table, &a, &[0, 1]);
        promise(is_fenced(&old) && seen == "new", "who lost the lock overwrote what the next holder wrote")
    });
}

#[test]
fn who_holds_the_lock_writes_more_than_once() {
    holds_and_breaks_without(Mutant::FenceRefusesEqual, || {
        let table = Table::laid(3);
        let a = table.daemon(1, 100);
        write(&table, &a, fenced(set("1"), 6));
        let again = write(&table, &a, fenced(set("2"), 6));
        promise(versions(&again).len() == 1, "the holder of the lock may not write a second time")
    });
}

#[test]
fn a_fence_stays_when_the_value_goes() {
    holds_and_breaks_without(Mutant::FencesGoWithValue, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        write(&table, &a, fenced(set("new"), 6));
        write(&table, &a, DELETE);
        let old = write(&table, &b, fenced(set("old"), 5));
        promise(is_fenced(&old), "who lost the lock brought back what the next holder had removed")
    });
}

// ---- watching

/// The first events of a watch, once there are so many.
fn watching(stage: &Stage, daemon: &Daemon, events: usize) -> Call<Vec<Result<WatchEvent, KvError>>> {
    let scope = Scope::Key(Key::parse("lock").expect("a good name"));
    let watch = daemon.keys.watch(Watched { scope, after: None });
    stage.call(watch.take(events).collect())
}

fn write_at(stage: &Stage, daemon: &Daemon, write: Write) {
    let (keys, deadline) = (daemon.keys.clone(), daemon.deadline());
    let key = Key::parse("lock").expect("a good name");
    let done = stage.call(async move { keys.write(&key, write.into(), deadline).await });
    assert!(matches!(done.ended(), Some(Ok(_))), "everybody listens");
}

/// Nothing is announced on the stage.
#[test]
fn a_watch_finds_what_was_not_announced() {
    holds_and_breaks_without(Mutant::WatchNeverWalks, || {
        let stage = Stage::on(Table::laid(3));
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
        // That there is nothing, that this is all, and what comes.
        let told = watching(&stage, &a, 3);
        write_at(&stage, &b, set("1"));
        stage.pass(20_000);
        promise(told.ended().is_some(), "who watches is never told of a write")
    });
}

#[test]
fn a_removal_that_is_forgotten_is_told_under_no_lower_version() {
    holds_and_breaks_without(Mutant::WatchForgetsVersions, || {
        let stage = Stage::on(Table::laid(3));
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
        let told = watching(&stage, &a, 4);
        write_at(&stage, &b, set("1"));
        stage.pass(20_000);
        write_at(&stage, &b, DELETE);
        stage.table.forget_everywhere(KEY);
        stage.pass(20_000);
        let told = told.ended().expect("nothing, all of it, a value, nothing");
        let version = |event: &Result<WatchEvent, KvError>| match event {
            Ok(WatchEvent::Value { entry, .. }) => Some(entry.version),
            Ok(WatchEvent::Removed { version, .. }) => Some(*version),
            Ok(WatchEvent::Synced) | Err(_) => None,
        };
        let versions: Vec<Token> = told.iter().filter_map(version).collect();
        promise(versions.len() == 3 && versions.is_sorted(), "a version of a key went backwards")
    });
}
