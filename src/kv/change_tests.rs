//! How a key changes: tables of old values, writes and what comes of them.

use std::time::Duration;

use bytes::Bytes;

use super::change::{KeyAnswer, KeyChange, KeyKind, Refused, Seen};
use super::value::{Expiry, KeyValue, Request, Stored, StoredEffect};
use super::{Effect, Entry, Fence, Mutation, Precondition, Write, Written};
use crate::ids::{LockName, ProposerId, RequestId};
use crate::limits;
use crate::node::operation::Stamp;
use crate::quorum::ClusterSize;
use crate::register::{Ages, Attempt, Kind, Verdict};
use crate::token::{Ballot, Token};

/// The token of the attempt under test; what is there was written under lower ones.
const NOW: u64 = 100;

fn token(number: u64) -> Token {
    Token::new(number).expect("a small number")
}

fn ballot(number: u64) -> Ballot {
    Ballot { token: token(number), proposer: ProposerId(1) }
}

fn stamp(number: u64, ordinal: u8) -> Stamp {
    Stamp { ballot: ballot(number), ordinal }
}

/// A value that was written under token 5, as the third write.
fn held(data: &str) -> KeyValue {
    KeyValue {
        stored: Some(Stored { data: Bytes::copy_from_slice(data.as_bytes()), expiry: None }),
        version: token(5),
        writes: 3,
        ..KeyValue::default()
    }
}

/// The same with a TTL of ten seconds.
fn expiring(data: &str) -> KeyValue {
    let expiry = Some(Expiry { stamp: stamp(5, 0), ttl_ms: 10_000 });
    KeyValue { stored: Some(Stored { expiry, ..held(data).stored.expect("held") }), ..held(data) }
}

/// What is left of such a value when it was removed under token 6.
fn removed() -> KeyValue {
    KeyValue { stored: None, version: token(6), writes: 4, ..KeyValue::default() }
}

fn request(number: u64) -> RequestId {
    RequestId(7, number)
}

fn fence(lock: &str, number: u64) -> Option<Fence> {
    Some(Fence { lock: LockName::parse(lock).expect("a name"), token: token(number) })
}

fn set(data: &str) -> Write {
    let data = Bytes::copy_from_slice(data.as_bytes());
    Write::Set { data, ttl: None, precondition: Precondition::None }
}

fn set_if(data: &str, precondition: Precondition) -> Write {
    Write::Set { data: Bytes::copy_from_slice(data.as_bytes()), ttl: None, precondition }
}

fn increment(delta: i64) -> Write {
    Write::Increment { delta, initial: 0, ttl: None }
}

/// Applies a change in the place of a group, where all stamps from before have been held for so many seconds.
fn apply_at(place: u32, change: &KeyChange, old: &KeyValue, held_s: u64) -> (KeyValue, KeyAnswer, bool) {
    let age: Vec<_> = old.stamps().iter().map(|(stamp, _)| (*stamp, Duration::from_secs(held_s))).collect();
    let ages = Ages::of(ClusterSize::new(3).expect("a size"), vec![age.clone(), age], 0);
    let attempt = Attempt { place, ..Attempt::new(ballot(NOW), &ages) };
    match KeyKind::apply(change, old, &attempt) {
        Verdict::Changed(new, answer) => {
            assert_eq!(
                KeyKind::decode(&KeyKind::encode(&new)).as_ref(),
                Ok(&new),
                "it survives being stored"
            );
            (new, answer, true)
        }
        Verdict::Unchanged(answer) => (old.clone(), answer, false),
        Verdict::Deferred => panic!("a key never defers"),
    }
}

fn apply(change: impl Into<Mutation>, old: &KeyValue, held_s: u64) -> (KeyValue, KeyAnswer, bool) {
    apply_at(0, &KeyChange::Write(change.into()), old, held_s)
}

fn data_of(value: &KeyValue) -> Option<&str> {
    value.stored.as_ref().map(|stored| std::str::from_utf8(&stored.data).expect("text"))
}

fn effect(answer: KeyAnswer) -> Result<Effect, Refused> {
    match answer {
        KeyAnswer::Written(written) => Ok(written.effect),
        KeyAnswer::Refused(refused) => Err(refused),
        KeyAnswer::Seen(seen) => panic!("a write was expected: {seen:?}"),
    }
}

#[test]
fn what_a_write_does_to_what_there_is() {
    let nothing = KeyValue::default();
    let version = Precondition::Version;
    let done = |number| Ok(Effect::Set { version: token(number), ttl: None });
    let counted = |number| Ok(Effect::Counted { number, version: token(NOW) });
    let deleted = |at: Option<u64>| Ok(Effect::Deleted { version: at.map(token) });
    let touched = |at: Option<u64>| Ok(Effect::Touched { version: at.map(token), ttl: None });
    let not = |at: Option<u64>| Err(Refused::Precondition(at.map(token)));
    let delete = |version: Option<u64>| Write::Delete { version: version.map(token) };
    let from = |initial| Write::Increment { delta: 2, initial, ttl: None };
    let max = i64::MAX.to_string();
    // Old value, the write: its effect, the data after it.
    for (old, write, expected, data) in [
        (&nothing, set("x"), done(NOW), Some("x")),
        (&held("a"), set("x"), done(NOW), Some("x")),
        (&held("a"), set("a"), done(NOW), Some("a")),
        (&nothing, set_if("x", Precondition::Absent), done(NOW), Some("x")),
        (&held("a"), set_if("x", Precondition::Absent), not(Some(5)), Some("a")),
        (&removed(), set_if("x", Precondition::Absent), done(NOW), Some("x")),
        (&nothing, set_if("x", Precondition::Present), not(None), None),
        (&removed(), set_if("x", Precondition::Present), not(None), None),
        (&held("a"), set_if("x", Precondition::Present), done(NOW), Some("x")),
        (&held("a"), set_if("x", version(token(5))), done(NOW), Some("x")),
        (&held("a"), set_if("x", version(token(4))), not(Some(5)), Some("a")),
        (&nothing, set_if("x", version(token(5))), not(None), None),
        // The version of a removal is that of no value.
        (&removed(), set_if("x", version(token(6))), not(None), None),
        (&held("a"), delete(None), deleted(Some(NOW)), None),
        (&held("a"), delete(Some(5)), deleted(Some(NOW)), None),
        (&held("a"), delete(Some(4)), not(Some(5)), Some("a")),
        (&nothing, delete(None), deleted(None), None),
        (&nothing, delete(Some(5)), not(None), None),
        (&held("40"), increment(2), counted(42), Some("42")),
        (&held("-1"), increment(-2), counted(-3), Some("-3")),
        (&nothing, from(40), counted(42), Some("42")),
        (&held("1"), from(40), counted(3), Some("3")),
        (&held("a"), increment(1), Err(Refused::NotAnInteger), Some("a")),
        (&held(""), increment(1), Err(Refused::NotAnInteger), Some("")),
        (&held("007"), increment(1), Err(Refused::NotAnInteger), Some("007")),
        (&held("+7"), increment(1), Err(Refused::NotAnInteger), Some("+7")),
        (&held("-0"), increment(1), Err(Refused::NotAnInteger), Some("-0")),
        (&held(&max), increment(1), Err(Refused::Overflow(i64::MAX)), Some(max.as_str())),
        (&held(&max), increment(-1), counted(i64::MAX - 1), Some("9223372036854775806")),
        (
            &nothing,
            Write::Increment { delta: -1, initial: i64::MIN, ttl: None },
            Err(Refused::Overflow(i64::MIN)),
            None,
        ),
        (&held("a"), Write::Touch { ttl: None }, touched(Some(5)), Some("a")),
        (&nothing, Write::Touch { ttl: None }, touched(None), None),
    ] {
        let (new, answer, changed) = apply(write.clone(), old, 0);
        let was = new.version == old.version;
        assert_eq!(effect(answer), expected, "{write:?} of {old:?}");
        assert_eq!(data_of(&new), data, "{write:?} of {old:?}");
        let writes =
            !matches!(expected, Err(_) | Ok(Effect::Touched { .. } | Effect::Deleted { version: None }));
        assert_eq!(!was, writes, "a write has a new version, and nothing else has: {write:?} of {old:?}");
        assert_eq!(new.writes, old.writes + u64::from(writes), "{write:?} of {old:?}");
        assert_eq!(changed, new != *old);
    }
}

#[test]
fn an_expired_value_is_removed_by_whoever_finds_it() {
    let seen = |entry: Option<(&str, u64)>, version, writes| {
        let entry = entry.map(|(data, left)| Entry {
            data: Bytes::copy_from_slice(data.as_bytes()),
            version: token(version),
            remaining: Some(Duration::from_secs(left)),
        });
        KeyAnswer::Seen(Seen { entry, version: token(version), writes })
    };
    // Held for so many seconds of ten: what a look answers, whether it changes anything.
    for (held_s, answer, changes) in [
        (0, seen(Some(("a", 10)), 5, 3), false),
        (9, seen(Some(("a", 1)), 5, 3), false),
        // Longer than ten, not as long.
        (10, seen(Some(("a", 0)), 5, 3), false),
        (11, seen(None, NOW, 4), true),
    ] {
        let (new, found, changed) = apply_at(0, &KeyChange::Get, &expiring("a"), held_s);
        assert_eq!((found, changed), (answer, changes), "{held_s} s");
        assert_eq!(new.stored.is_none(), changes);
    }
    // Also when what it came for is refused, or was to be done to the value.
    for (write, expected) in [
        (set_if("x", Precondition::Present), Err(Refused::Precondition(None))),
        (set_if("x", Precondition::Absent), Ok(Effect::Set { version: token(NOW), ttl: None })),
        (Write::Delete { version: None }, Ok(Effect::Deleted { version: None })),
        (increment(1), Ok(Effect::Counted { number: 1, version: token(NOW) })),
        (Write::Touch { ttl: None }, Ok(Effect::Touched { version: None, ttl: None })),
    ] {
        let (new, answer, changed) = apply(write.clone(), &expiring("7"), 11);
        assert_eq!(effect(answer), expected, "{write:?}");
        assert!(changed, "{write:?}");
        assert!(new.stored.is_none_or(|stored| stored.expiry.is_none()), "{write:?}");
    }
}

#[test]
fn a_ttl_is_that_of_the_last_write_that_says_one() {
    let ttl = Some(Duration::from_secs(20));
    let (old_time, new_time) = (Some((stamp(5, 0), 10_000)), Some((stamp(NOW, 0), 20_000)));
    for (write, expected) in [
        (Write::Set { data: Bytes::new(), ttl, precondition: Precondition::None }, new_time),
        (set("x"), None),
        (increment(1), old_time),
        (Write::Increment { delta: 1, initial: 0, ttl }, new_time),
        (Write::Touch { ttl }, new_time),
        (Write::Touch { ttl: None }, None),
    ] {
        let (new, ..) = apply(write.clone(), &expiring("7"), 3);
        let expiry = new.stored.expect("a value").expiry;
        assert_eq!(expiry.map(|expiry| (expiry.stamp, expiry.ttl_ms)), expected, "{write:?}");
    }
}

#[test]
fn a_request_that_was_done_is_answered_and_not_done_again() {
    let mutation = |write: Write, number| Mutation { request: Some(request(number)), ..write.into() };
    for write in [set("x"), increment(2), Write::Delete { version: None }, Write::Touch { ttl: None }] {
        for old in [KeyValue::default(), held("7"), removed()] {
            let (once, first, _) = apply(mutation(write.clone(), 1), &old, 0);
            assert_eq!(once.requests.len(), 1, "also where there was nothing to do: {write:?} of {old:?}");
            // Somebody else writes in between.
            let (between, ..) = apply(set("9"), &once, 0);
            let (after, second, changed) = apply(mutation(write.clone(), 1), &between, 0);
            assert!(!changed && after == between, "{write:?} of {old:?}");
            let (KeyAnswer::Written(first), KeyAnswer::Written(second)) = (first, second) else {
                panic!("both are answered as done: {write:?} of {old:?}")
            };
            assert_eq!(second, Written { repeated: true, previous: None, ..first });
            // The same id with something else in it is a mistake.
            let (after, answer, _) = apply(mutation(set("other"), 1), &between, 0);
            assert_eq!((effect(answer), after), (Err(Refused::RequestIdReused), between));
        }
    }
}

#[test]
fn what_was_refused_is_not_remembered() {
    let refused = Mutation { request: Some(request(1)), ..set_if("x", Precondition::Present).into() };
    let (after, answer, changed) = apply(refused.clone(), &KeyValue::default(), 0);
    assert_eq!(effect(answer), Err(Refused::Precondition(None)));
    assert!(!changed && after.requests.is_empty());
    let (_, answer, _) = apply(refused, &held("a"), 0);
    assert_eq!(effect(answer), Ok(Effect::Set { version: token(NOW), ttl: None }));
}

#[test]
fn the_last_requests_are_remembered_for_a_while() {
    let mutation = |number| Mutation { request: Some(request(number)), ..increment(1).into() };
    let mut value = KeyValue::default();
    for number in 0..=limits::REQUESTS_MAX as u64 {
        value = apply(mutation(number), &value, 0).0;
    }
    assert_eq!(value.requests.len(), limits::REQUESTS_MAX);
    assert_eq!(value.requests.first().map(|request| request.id), Some(request(1)), "the oldest is dropped");
    let kept = limits::REQUESTS_KEPT.as_secs();
    assert_eq!(apply_at(0, &KeyChange::Tidy, &value, kept).0, value);
    let (tidy, ..) = apply_at(0, &KeyChange::Tidy, &value, kept + 1);
    assert_eq!((tidy.requests.len(), tidy.requests_stamp), (0, None));
    assert_eq!(tidy.stored, value.stored, "and nothing else");
}

#[test]
fn who_holds_a_lock_no_more_is_fenced_off() {
    let by = |lock, number| Mutation { fence: fence(lock, number), ..set("x").into() };
    let (value, ..) = apply(by("a", 7), &KeyValue::default(), 0);
    let done = Ok(Effect::Set { version: token(NOW), ttl: None });
    for (lock, number, expected) in [
        ("a", 6, Err(Refused::Fenced(token(7)))),
        ("a", 7, done.clone()),
        ("a", 8, done.clone()),
        // Another lock's tokens say nothing of this one's.
        ("b", 1, done.clone()),
    ] {
        let (new, answer, changed) = apply(by(lock, number), &value, 0);
        assert_eq!(effect(answer), expected, "{lock} {number}");
        assert_eq!(changed, expected.is_ok(), "nothing happened when it was refused");
        let highest = new.fences.iter().find(|(name, _)| name == lock).map(|(_, highest)| highest.get());
        assert_eq!(highest, Some(if lock == "a" { number.max(7) } else { number }));
    }
    // Who does not name a lock is not asked for one.
    assert_eq!(effect(apply(set("y"), &value, 0).1), done);
}

#[test]
fn fences_outlive_the_value_for_a_while() {
    let by = |number, write: Write| Mutation { fence: fence("a", number), ..write.into() };
    let delete = || Write::Delete { version: None };
    let gone = |value: &KeyValue| (value.fences.len(), value.fences_stamp, value.says_something());
    // Removed by its holder, by somebody else, by time; and by a holder who found nothing to remove.
    let (fenced, ..) = apply(by(7, set("x")), &KeyValue::default(), 0);
    let expiry = Some(Expiry { stamp: stamp(5, 0), ttl_ms: 10_000 });
    let short = KeyValue { stored: Some(Stored { data: Bytes::new(), expiry }), ..fenced.clone() };
    for (words, removed) in [
        ("its holder", apply(by(7, delete()), &fenced, 0).0),
        ("somebody else", apply(delete(), &fenced, 0).0),
        ("time", apply_at(0, &KeyChange::Tidy, &short, 11).0),
        ("nothing there", apply(by(7, delete()), &KeyValue::default(), 0).0),
    ] {
        assert_eq!(gone(&removed), (1, Some(stamp(NOW, 2)), true), "{words}");
        let late = apply(by(6, set("late")), &removed, 0).1;
        assert_eq!(effect(late), Err(Refused::Fenced(token(7))), "{words}");
        let kept = limits::FENCES_KEPT.as_secs();
        assert_eq!(apply_at(0, &KeyChange::Tidy, &removed, kept).0, removed, "{words}");
        assert_eq!(gone(&apply_at(0, &KeyChange::Tidy, &removed, kept + 1).0), (0, None, false), "{words}");
        // With a value they stay as long as it does.
        let (again, ..) = apply(set("y"), &removed, 0);
        assert_eq!((again.fences.len(), again.fences_stamp), (1, None), "{words}");
    }
}

#[test]
fn so_many_locks_fence_a_key_and_no_more() {
    let by = |number: usize| Mutation { fence: fence(&format!("l{number}"), 7), ..set("x").into() };
    let mut value = KeyValue::default();
    for number in 0..limits::FENCES_MAX {
        value = apply(by(number), &value, 0).0;
    }
    let (after, answer, _) = apply(by(limits::FENCES_MAX), &value, 0);
    assert_eq!((effect(answer), after), (Err(Refused::TooManyFences), value.clone()));
    assert!(effect(apply(by(0), &value, 0).1).is_ok());
}

#[test]
fn each_write_of_a_group_has_a_version_of_its_own() {
    let (one, ..) = apply_at(0, &KeyChange::Write(set("a").into()), &held("x"), 0);
    let (two, ..) = apply_at(1, &KeyChange::Write(set("b").into()), &one, 0);
    assert_eq!((one.version, two.version), (token(NOW), token(NOW + 1)));
}

#[test]
fn the_value_before_is_told_where_it_is_asked_for() {
    let asked = |write: Write| Mutation { previous: true, ..write.into() };
    let previous = |answer| match answer {
        KeyAnswer::Written(written) => written.previous.map(|entry| (entry.data, entry.version.get())),
        other => panic!("a write was expected: {other:?}"),
    };
    let delete = Write::Delete { version: None };
    assert_eq!(previous(apply(asked(set("x")), &held("a"), 0).1), Some((Bytes::from("a"), 5)));
    assert_eq!(previous(apply(asked(delete), &held("a"), 0).1), Some((Bytes::from("a"), 5)));
    assert_eq!(previous(apply(asked(set("x")), &KeyValue::default(), 0).1), None);
    assert_eq!(previous(apply(asked(set("x")), &expiring("a"), 11).1), None, "it had expired");
    assert_eq!(previous(apply(set("x"), &held("a"), 0).1), None);
}

#[test]
fn watchers_are_told_of_writes_and_of_nothing_else() {
    let announces =
        |old: &KeyValue, (new, ..): (KeyValue, KeyAnswer, bool)| KeyKind::publish(old, &new).announce;
    let old = expiring("7");
    let ttl = Some(Duration::from_secs(20));
    assert!(announces(&old, apply(set("7"), &old, 0)));
    assert!(announces(&old, apply(Write::Delete { version: None }, &old, 0)));
    assert!(announces(&old, apply_at(0, &KeyChange::Get, &old, 11)));
    assert!(!announces(&old, apply(Write::Touch { ttl }, &old, 0)));
    assert!(!announces(&old, apply_at(0, &KeyChange::Get, &old, 0)));
}

#[test]
fn a_key_with_nothing_to_remember_may_be_forgotten() {
    let effect = StoredEffect::Deleted(None);
    let remembered = Request { id: request(1), fingerprint: 0, effect };
    for (words, value, listed) in [
        ("never written", KeyValue::default(), false),
        ("removed", removed(), false),
        ("held", held("a"), true),
        ("a request", KeyValue { requests: vec![remembered], ..removed() }, true),
        ("a fence", KeyValue { fences: vec![("a".into(), token(7))], ..removed() }, true),
    ] {
        assert_eq!(KeyKind::is_listed(&value), listed, "{words}");
    }
}

#[test]
fn what_can_not_be_read_says_why() {
    assert_eq!(KeyValue::decode(b""), Ok(KeyValue::default()));
    assert_eq!(KeyValue::decode(b"\x09x"), Err("version 9 of a key".to_owned()));
    assert!(KeyValue::decode(b"\x01\xc1").is_err());
}
