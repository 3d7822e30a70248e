//! How an item changes: tables of old values, changes and what comes of them.

use std::time::Duration;

use bytes::Bytes;

use super::change::{
    Delay, ItemAnswer, ItemChange, ItemKind, PutItem, QueueAnswer, QueueChange, QueueKind, States,
};
use super::value::{Item, ItemValue, QueueValue, State, Timer};
use super::{ItemState, QueueOptions, QueueOptionsPatch, Settled};
use crate::ids::{LeaseId, ProposerId};
use crate::node::operation::Stamp;
use crate::quorum::ClusterSize;
use crate::register::{Ages, Attempt, Kind, Verdict};
use crate::token::{Ballot, Token};

/// The token of the attempt under test; what is there was written under lower ones.
const NOW: u64 = 100;
/// The length of what ends by itself, in seconds.
const LENGTH: u64 = 10;

fn ballot(number: u64) -> Ballot {
    Ballot { token: Token::new(number).expect("a small number"), proposer: ProposerId(1) }
}

fn timer() -> Timer {
    Timer { stamp: Stamp { ballot: ballot(5), ordinal: 0 }, length_ms: LENGTH * 1_000 }
}

fn lease(number: u8) -> LeaseId {
    LeaseId::from_bytes([number; 16])
}

/// An item that was put under token 3, and leased twice if it is not ready.
fn item(state: State) -> Item {
    let leased = !matches!(state, State::Ready);
    Item {
        state,
        payload: Bytes::from_static(b"work"),
        attributes: vec![("a".into(), "b".into())],
        priority: 7,
        order: ballot(3).token,
        put_by: ProposerId(1),
        put_unix_ms: 1,
        attempts: if leased { 2 } else { 0 },
        token: if leased { ballot(5).token } else { Token::ZERO },
        reason: String::new(),
    }
}

fn some(item: Item) -> ItemValue {
    ItemValue { item: Some(item) }
}

fn ready() -> ItemValue {
    some(item(State::Ready))
}

fn delayed() -> ItemValue {
    some(item(State::Delayed(timer())))
}

fn leased() -> ItemValue {
    some(item(State::Leased(lease(1), timer())))
}

fn dead() -> ItemValue {
    some(item(State::Dead))
}

fn done() -> ItemValue {
    let done = item(State::Done(Some(timer())));
    some(Item { payload: Bytes::new(), attributes: Vec::new(), ..done })
}

/// Applies a change where all stamps from before have been held for so many seconds.
fn apply(change: &ItemChange, old: &ItemValue, held_s: u64) -> (ItemValue, ItemAnswer, bool) {
    let age: Vec<_> =
        ItemKind::stamps(old).iter().map(|(stamp, _)| (*stamp, Duration::from_secs(held_s))).collect();
    let ages = Ages::of(ClusterSize::new(3).expect("a size"), vec![age.clone(), age], 0);
    match ItemKind::apply(change, old, &Attempt::new(ballot(NOW), &ages)) {
        Verdict::Changed(new, answer) => {
            assert_ne!(new, *old, "what changes nothing says so");
            assert_eq!(ItemKind::decode(&ItemKind::encode(&new)).as_ref(), Ok(&new));
            (new, answer, true)
        }
        Verdict::Unchanged(answer) => (old.clone(), answer, false),
        Verdict::Deferred => panic!("an item never defers"),
    }
}

fn state_of(value: &ItemValue) -> &'static str {
    match value.item.as_ref().map(|item| &item.state) {
        None => "none",
        Some(State::Ready) => "ready",
        Some(State::Delayed(_)) => "delayed",
        Some(State::Leased(..)) => "leased",
        Some(State::Dead) => "dead",
        Some(State::Done(_)) => "done",
    }
}

fn put(order: u64, delay_s: u64) -> ItemChange {
    ItemChange::Put(PutItem {
        payload: Bytes::from_static(b"new"),
        attributes: Vec::new(),
        priority: 0,
        order: ballot(order).token,
        put_by: ProposerId(1),
        now_unix_ms: 2,
        delay: Duration::from_secs(delay_s),
        lease: None,
    })
}

fn handed(order: u64) -> ItemChange {
    let ItemChange::Put(put) = put(order, 0) else { unreachable!() };
    ItemChange::Put(PutItem { lease: Some((lease(7), Duration::from_secs(30))), ..put })
}

fn lease_as(number: u8, max_attempts: u32) -> ItemChange {
    ItemChange::Lease { lease_id: lease(number), ttl: Duration::from_secs(30), max_attempts }
}

#[test]
fn an_id_is_put_once_for_as_long_as_it_is_remembered() {
    let forgotten = some(item(State::Done(None)));
    for (old, held_s, answer, state) in [
        (ItemValue::default(), 0, ItemAnswer::Put, "ready"),
        (ready(), 99, ItemAnswer::Known, "ready"),
        (delayed(), 99, ItemAnswer::Known, "delayed"),
        (leased(), 99, ItemAnswer::Known, "leased"),
        (dead(), 99, ItemAnswer::Known, "dead"),
        (done(), LENGTH, ItemAnswer::Known, "done"),
        (done(), LENGTH + 1, ItemAnswer::Put, "ready"),
        (forgotten, 0, ItemAnswer::Put, "ready"),
    ] {
        let (new, found, _) = apply(&put(NOW, 0), &old, held_s);
        assert_eq!((found, state_of(&new)), (answer, state), "{old:?} held for {held_s} s");
    }
    assert_eq!(state_of(&apply(&put(NOW, 5), &ItemValue::default(), 0).0), "delayed");
    // The same put again finds its own effect, whatever has become of the item.
    for old in [ready(), leased(), done(), dead()] {
        let (_, answer, changed) = apply(&put(3, 0), &old, 99);
        assert_eq!((answer, changed), (ItemAnswer::Put, false), "{old:?}");
    }
    // Another daemon's may have drawn the same token.
    let ItemChange::Put(own) = put(3, 0) else { unreachable!() };
    let other = ItemChange::Put(PutItem { put_by: ProposerId(2), ..own });
    assert_eq!(apply(&other, &ready(), 0).1, ItemAnswer::Known);
}

#[test]
fn what_is_handed_over_is_as_if_it_were_put_and_leased() {
    for (old, held_s) in [(ItemValue::default(), 0), (done(), LENGTH + 1)] {
        let (ready, _, _) = apply(&put(NOW, 0), &old, held_s);
        let (expected, leased, _) = apply(&lease_as(7, 1), &ready, 0);
        let (new, answer, _) = apply(&handed(NOW), &old, held_s);
        assert_eq!((new, answer), (expected, leased));
    }
    for old in [ready(), delayed(), leased(), dead(), done()] {
        let (new, answer, _) = apply(&handed(NOW), &old, LENGTH);
        assert_eq!((new, answer), (old, ItemAnswer::Known));
    }
}

#[test]
fn the_tokens_of_an_id_go_on_from_those_of_the_item_that_had_it_before() {
    let (again, _, _) = apply(&put(NOW, 0), &done(), LENGTH + 1);
    assert_eq!(again.item.map(|item| (item.token.get(), item.attempts)), Some((5, 0)));
}

#[test]
fn only_what_is_ready_or_over_is_leased() {
    for (old, held_s, state) in [
        (ready(), 0, "leased"),
        (delayed(), LENGTH, "delayed"),
        (delayed(), LENGTH + 1, "leased"),
        (leased(), LENGTH, "not"),
        (leased(), LENGTH + 1, "leased"),
        (dead(), 99, "dead"),
        (done(), 99, "done"),
        (ItemValue::default(), 99, "none"),
    ] {
        let (new, answer, changed) = apply(&lease_as(2, 0), &old, held_s);
        let has_it = new.item.as_ref().is_some_and(|item| {
            matches!(&item.state, State::Leased(id, timer)
                if *id == lease(2) && timer.length() == Duration::from_secs(30))
        });
        assert_eq!(has_it, state == "leased", "{old:?} held for {held_s} s");
        assert_eq!(changed, has_it);
        if !has_it {
            assert_eq!(answer, ItemAnswer::NotReady);
            continue;
        }
        let (item, before) = (new.item.expect("leased"), old.item.expect("there"));
        assert_eq!(item.token, ballot(NOW).token, "tokens are those of ballots");
        assert_eq!(item.attempts, before.attempts + 1);
        assert_eq!(answer, ItemAnswer::Leased(Box::new(item)));
    }
}

#[test]
fn what_was_leased_as_often_as_it_may_is_buried_and_says_why() {
    let failed = |reason: &str| {
        let failed = item(State::Leased(lease(1), timer()));
        some(Item { reason: reason.into(), ..failed })
    };
    for (old, max, buried) in [
        (failed(""), 0, None),
        (failed(""), 3, None),
        (failed(""), 2, Some("its lease ran out 2 times")),
        (failed("exit 1"), 2, Some("leased 2 times; the last nack said: exit 1")),
    ] {
        let (new, answer, _) = apply(&lease_as(2, max), &old, LENGTH + 1);
        let item = new.item.expect("it stays");
        match buried {
            Some(reason) => {
                assert_eq!(
                    (answer, item.state, item.reason.as_str()),
                    (ItemAnswer::Buried, State::Dead, reason)
                );
            }
            None => assert!(matches!(answer, ItemAnswer::Leased(_)), "{old:?} of {max}"),
        }
    }
}

#[test]
fn a_lease_is_ended_by_who_has_it_and_by_nobody_else() {
    let nack = |number: u8| ItemChange::Nack {
        lease_id: lease(number),
        delay: Delay::Length(Duration::from_secs(1)),
        max_attempts: 3,
        reason: "no".into(),
    };
    let ack = |number: u8| ItemChange::Ack { lease_id: lease(number), retention: Duration::from_secs(60) };
    let extend = |number: u8| ItemChange::Extend { lease_id: lease(number), ttl: None };
    let settled = ItemAnswer::Settled;
    let again = ItemAnswer::Extended(Duration::from_secs(LENGTH));
    for (old, change, answer, state) in [
        (leased(), ack(1), settled(Settled::Done), "done"),
        (leased(), nack(1), settled(Settled::Done), "delayed"),
        (leased(), extend(1), again, "leased"),
        (leased(), ack(2), settled(Settled::LeaseLost), "leased"),
        (leased(), nack(2), settled(Settled::LeaseLost), "leased"),
        (leased(), extend(2), settled(Settled::LeaseLost), "leased"),
        (ready(), ack(1), settled(Settled::LeaseLost), "ready"),
        (delayed(), nack(1), settled(Settled::LeaseLost), "delayed"),
        (dead(), extend(1), settled(Settled::LeaseLost), "dead"),
        (done(), ack(1), settled(Settled::AlreadyDone), "done"),
        (done(), nack(1), settled(Settled::AlreadyDone), "done"),
        (ItemValue::default(), ack(1), settled(Settled::NoSuchItem), "none"),
    ] {
        // A lease that has run out is still the holder's, as long as nobody had the item since.
        for held_s in [0, LENGTH + 1] {
            let (new, found, _) = apply(&change, &old, held_s);
            assert_eq!((&found, state_of(&new)), (&answer, state), "{change:?} of {old:?}");
        }
    }
    let (extended, _, _) = apply(&extend(1), &leased(), 3);
    let stamp = ItemKind::stamps(&extended)[0].0;
    assert_eq!(stamp.ballot, ballot(NOW), "its time begins anew");
    let longer = ItemChange::Extend { lease_id: lease(1), ttl: Some(Duration::from_secs(99)) };
    assert_eq!(apply(&longer, &leased(), 3).1, ItemAnswer::Extended(Duration::from_secs(99)));
}

#[test]
fn a_nack_waits_longer_after_each_attempt_and_buries_after_the_last() {
    let nack = |max_attempts| ItemChange::Nack {
        lease_id: lease(1),
        delay: Delay::Backoff(Duration::from_secs(2), Duration::from_secs(30)),
        max_attempts,
        reason: "no".into(),
    };
    let after = |attempts| {
        let old = some(Item { attempts, ..item(State::Leased(lease(1), timer())) });
        let (new, answer, _) = apply(&nack(0), &old, 0);
        assert_eq!(answer, ItemAnswer::Settled(Settled::Done));
        ItemKind::stamps(&new).first().map_or(0, |(_, length)| length.as_secs())
    };
    assert_eq!([0, 1, 2, 3, 4, 5, 40].map(after), [2, 2, 4, 8, 16, 30, 30]);
    let (buried, answer, _) = apply(&nack(2), &leased(), 0);
    assert_eq!((answer, state_of(&buried)), (ItemAnswer::Settled(Settled::Buried), "dead"));
    assert_eq!(buried.item.map(|item| item.reason), Some("no".into()));
    let at_once = ItemChange::Nack {
        lease_id: lease(1),
        delay: Delay::Length(Duration::ZERO),
        max_attempts: 0,
        reason: String::new(),
    };
    assert_eq!(state_of(&apply(&at_once, &leased(), 0).0), "ready");
}

#[test]
fn a_lease_that_nobody_got_is_no_attempt() {
    let (back, answer, _) = apply(&ItemChange::Return { lease_id: lease(1) }, &leased(), 0);
    assert_eq!((answer, state_of(&back)), (ItemAnswer::Changed(true), "ready"));
    assert_eq!(back.item.map(|item| item.attempts), Some(1));
    for old in [ready(), done(), ItemValue::default()] {
        let (_, answer, changed) = apply(&ItemChange::Return { lease_id: lease(1) }, &old, 0);
        assert_eq!((answer, changed), (ItemAnswer::Changed(false), false), "{old:?}");
    }
    let (_, answer, _) = apply(&ItemChange::Return { lease_id: lease(2) }, &leased(), 0);
    assert_eq!(answer, ItemAnswer::Changed(false), "not another's");
}

#[test]
fn what_is_dead_is_made_ready_and_what_is_purged_is_done() {
    let (redriven, answer, _) = apply(&ItemChange::Redrive, &dead(), 0);
    assert_eq!((answer, state_of(&redriven)), (ItemAnswer::Changed(true), "ready"));
    assert_eq!(redriven.item.map(|item| (item.attempts, item.order.get())), Some((0, 3)));
    assert!(!apply(&ItemChange::Redrive, &leased(), 99).2);

    let purge = |states| ItemChange::Purge { states, retention: Duration::ZERO };
    let (none, open) = (States::default(), States { ready: true, ..States::default() });
    let all = States { ready: true, delayed: true, leased: true, dead: true };
    for (old, states, held_s, removed) in [
        (ready(), none, 0, false),
        (ready(), open, 0, true),
        (delayed(), open, LENGTH, false),
        // What is over is ready.
        (delayed(), open, LENGTH + 1, true),
        (leased(), open, 0, false),
        (leased(), open, LENGTH + 1, true),
        (leased(), all, 0, true),
        (dead(), open, 0, false),
        (dead(), all, 0, true),
        (done(), all, 0, false),
        (ItemValue::default(), all, 0, false),
    ] {
        let (new, answer, _) = apply(&purge(states), &old, held_s);
        assert_eq!(answer, ItemAnswer::Changed(removed), "{old:?} {states:?} {held_s}");
        assert_eq!(state_of(&new) == "done", removed || state_of(&old) == "done");
    }
}

#[test]
fn done_items_keep_no_payload_and_are_kept_for_their_time_only() {
    let ack = |seconds| ItemChange::Ack { lease_id: lease(1), retention: Duration::from_secs(seconds) };
    let (kept, _, _) = apply(&ack(60), &leased(), 0);
    assert_eq!(ItemKind::retention(&kept), Duration::from_secs(60));
    assert!(ItemKind::is_guarded(&kept) && !ItemKind::is_listed(&kept));
    let (gone, _, _) = apply(&ack(0), &leased(), 0);
    assert!(!ItemKind::is_guarded(&gone) && ItemKind::stamps(&gone).is_empty());
    for done in [kept, gone] {
        let item = done.item.expect("remembered");
        assert!(item.payload.is_empty() && item.attributes.is_empty());
    }
    for alive in [ready(), delayed(), leased(), dead()] {
        assert!(ItemKind::is_listed(&alive) && !ItemKind::is_guarded(&alive));
    }
}

#[test]
fn an_item_stands_where_its_state_says() {
    for (value, set, due_s) in [
        (ready(), 'r', 0),
        (delayed(), 'w', LENGTH),
        (leased(), 'l', LENGTH),
        (dead(), 'd', 0),
        (done(), 'x', 0),
    ] {
        let place = ItemKind::place("queue\u{1f}id", &value).expect("a place");
        assert_eq!((place.set, place.due), (set, Duration::from_secs(due_s)));
        assert_eq!(place.member, "8000000700000000000003id");
    }
    assert_eq!(ItemKind::place("queue\u{1f}id", &ItemValue::default()), None);
}

#[test]
fn those_who_wait_hear_of_what_they_may_have() {
    let nothing = ItemValue::default();
    for (old, new, announced) in [
        (&nothing, &ready(), true),
        (&nothing, &delayed(), true),
        (&leased(), &ready(), true),
        (&leased(), &delayed(), true),
        (&dead(), &ready(), true),
        (&ready(), &leased(), false),
        (&leased(), &done(), false),
        (&leased(), &dead(), false),
        (&ready(), &ready(), false),
    ] {
        assert_eq!(ItemKind::publish(old, new).announce, announced, "{old:?} to {new:?}");
    }
}

#[test]
fn a_queue_is_made_by_its_first_settings_and_keeps_what_is_not_changed() {
    let ages = Ages::unasked(ClusterSize::new(3).expect("a size"));
    let apply = |change: &QueueChange, old: &QueueValue| {
        QueueKind::apply(change, old, &Attempt::new(ballot(NOW), &ages))
    };
    let configure =
        |max_items| QueueChange::Configure(QueueOptionsPatch { max_items, ..QueueOptionsPatch::default() });
    let Verdict::Changed(made, answer) = apply(&configure(None), &QueueValue::default()) else {
        panic!("it is made")
    };
    assert_eq!(answer, QueueAnswer::Options(QueueOptions::default()));
    let Verdict::Changed(bounded, answer) = apply(&configure(Some(9)), &made) else {
        panic!("it is changed")
    };
    let options = QueueOptions { max_items: 9, ..QueueOptions::default() };
    assert_eq!(answer, QueueAnswer::Options(options.clone()));
    assert_eq!(apply(&configure(None), &bounded), Verdict::Unchanged(QueueAnswer::Options(options)));
    assert!(QueueKind::is_listed(&bounded));
    let removed = Verdict::Changed(QueueValue::default(), QueueAnswer::Removed(true));
    assert_eq!(apply(&QueueChange::Remove, &bounded), removed);
    let nothing = QueueValue::default();
    assert_eq!(apply(&QueueChange::Remove, &nothing), Verdict::Unchanged(QueueAnswer::Removed(false)));
    assert!(!QueueKind::is_listed(&nothing));
}

#[test]
fn a_state_is_judged_by_ages() {
    let ages = |held_s| {
        let age = vec![(timer().stamp, Duration::from_secs(held_s))];
        Ages::of(ClusterSize::new(3).expect("a size"), vec![age.clone(), age], 0)
    };
    for (value, held_s, state) in [
        (ready(), 0, ItemState::Ready),
        (delayed(), LENGTH, ItemState::Delayed),
        (delayed(), LENGTH + 1, ItemState::Ready),
        (leased(), LENGTH, ItemState::Leased),
        (leased(), LENGTH + 1, ItemState::Ready),
        (dead(), 99, ItemState::Dead),
        (done(), 99, ItemState::Done),
    ] {
        assert_eq!(value.item.expect("there").state(&ages(held_s)), state);
    }
}
