//! The model of a key: which histories it allows.

use super::*;
use crate::sim::linearizable::{Timed, Verdict, check};

fn at(ms: u64) -> Moment {
    Moment::from_start(Duration::from_millis(ms))
}

fn token(number: u64) -> Token {
    Token::new(number).unwrap()
}

fn set_if(data: &'static str, ttl_ms: Option<u64>, precondition: Precondition) -> Write {
    Write::Set { data: data.into(), ttl: ttl_ms.map(Duration::from_millis), precondition }
}

fn set(data: &'static str) -> Write {
    set_if(data, None, Precondition::None)
}

fn set_for(data: &'static str, ttl_ms: u64) -> Write {
    set_if(data, Some(ttl_ms), Precondition::None)
}

fn fenced(write: Write, number: u64) -> Mutation {
    let fence = Fence { lock: LockName::parse("f").unwrap(), token: token(number) };
    Mutation { fence: Some(fence), ..write.into() }
}

fn entry(data: &'static str, version: u64, expires: bool) -> Entry {
    Entry { data: data.into(), version: token(version), remaining: expires.then_some(Duration::ZERO) }
}

/// A call at these milliseconds; its places among all events are the same numbers. Without an answer it is open.
fn call(start: u64, end: u64, asked: KeyAsked, told: Option<KeyTold>) -> KeyOperation {
    KeyOperation { asked, start: at(start), end: Some(at(end)), told }
}

fn get(start: u64, end: u64, told: Option<Entry>) -> KeyOperation {
    call(start, end, KeyAsked::Get, Some(KeyTold::Seen(told)))
}

fn write(start: u64, mutation: impl Into<Mutation>, effect: Effect) -> KeyOperation {
    let told = Written { effect, previous: None, repeated: false };
    call(start, start + 5, KeyAsked::Write(mutation.into()), Some(KeyTold::Written(told)))
}

/// A set that was answered.
fn done(start: u64, mutation: impl Into<Mutation>, version: u64) -> KeyOperation {
    let mutation = mutation.into();
    let Write::Set { ttl, .. } = mutation.write else { panic!("a set") };
    write(start, mutation, Effect::Set { version: token(version), ttl })
}

fn lost(start: u64, mutation: impl Into<Mutation>) -> KeyOperation {
    call(start, start + 5, KeyAsked::Write(mutation.into()), None)
}

fn refused(start: u64, mutation: impl Into<Mutation>, refused: Refused) -> KeyOperation {
    call(start, start + 5, KeyAsked::Write(mutation.into()), Some(KeyTold::Refused(refused)))
}

fn deleted(start: u64, version: Option<u64>) -> KeyOperation {
    write(start, Write::Delete { version: None }, Effect::Deleted { version: version.map(token) })
}

fn counted(start: u64, number: i64, version: u64) -> KeyOperation {
    let add = Write::Increment { delta: 1, initial: 10, ttl: None };
    write(start, add, Effect::Counted { number, version: token(version) })
}

fn touched(start: u64, ttl_ms: Option<u64>, version: Option<u64>) -> KeyOperation {
    let ttl = ttl_ms.map(Duration::from_millis);
    write(start, Write::Touch { ttl }, Effect::Touched { version: version.map(token), ttl })
}

fn is_explained(operations: &[KeyOperation]) -> bool {
    let place = |moment: Moment| moment.since(Moment::ZERO).as_millis() as u64;
    let timed: Vec<_> = operations
        .iter()
        .map(|call| Timed {
            call,
            began: place(call.start),
            ended: call.told.as_ref().and(call.end).map(place),
        })
        .collect();
    matches!(check(&KeyModel, &timed, 10_000), Verdict::Linearizable { .. })
}

fn judge(cases: Vec<(Vec<KeyOperation>, bool)>) {
    for (operations, expected) in cases {
        assert_eq!(is_explained(&operations), expected, "{operations:#?}");
    }
}

#[test]
fn a_value_is_what_was_written_last_and_its_version_is_that_write_s() {
    let add = || Write::Increment { delta: 1, initial: 10, ttl: None };
    judge(vec![
        (vec![get(0, 5, None)], true),
        (vec![done(0, set("1"), 5), get(10, 15, Some(entry("1", 5, false)))], true),
        (vec![done(0, set("1"), 5), get(10, 15, Some(entry("1", 6, false)))], false),
        (vec![done(0, set("1"), 5), get(10, 15, Some(entry("2", 5, false)))], false),
        (vec![done(0, set("1"), 5), get(10, 15, Some(entry("1", 5, true)))], false),
        (vec![done(0, set("1"), 5), get(10, 15, None)], false),
        (vec![done(0, set("1"), 5), counted(10, 2, 6)], true),
        (vec![done(0, set("1"), 5), counted(10, 3, 6)], false),
        (vec![counted(0, 11, 5)], true),
        (vec![done(0, set("a"), 5), refused(10, add(), Refused::NotAnInteger)], true),
        (vec![done(0, set("1"), 5), refused(10, add(), Refused::NotAnInteger)], false),
        (vec![done(0, set("1"), 5), deleted(10, Some(6)), get(20, 25, None)], true),
        (vec![done(0, set("1"), 5), deleted(10, None)], false),
        (vec![deleted(10, None)], true),
        (vec![deleted(10, Some(6))], false),
        (vec![done(0, set("1"), 5), touched(10, None, Some(5))], true),
        (vec![done(0, set("1"), 5), touched(10, None, Some(6))], false),
        (vec![touched(10, None, None)], true),
    ]);
}

#[test]
fn versions_grow_also_over_what_nobody_was_told_of() {
    judge(vec![
        (vec![done(0, set("1"), 5), done(10, set("2"), 6)], true),
        (vec![done(0, set("1"), 5), done(10, set("2"), 5)], false),
        (vec![done(0, set("1"), 5), done(10, set("2"), 4)], false),
        (vec![done(0, set("1"), 5), deleted(10, Some(6)), done(20, set("2"), 6)], false),
        (vec![done(0, set("1"), 5), lost(10, set("2")), get(20, 25, Some(entry("2", 6, false)))], true),
        (vec![done(0, set("1"), 5), lost(10, set("2")), get(20, 25, Some(entry("2", 5, false)))], false),
        (
            vec![
                lost(10, set("2")),
                get(20, 25, Some(entry("2", 6, false))),
                get(30, 35, Some(entry("2", 7, false))),
            ],
            false,
        ),
        (
            vec![
                done(0, set("1"), 5),
                lost(10, set("2")),
                refused(20, set_if("3", None, Precondition::Absent), Refused::Precondition(Some(token(7)))),
                get(30, 35, Some(entry("2", 7, false))),
            ],
            true,
        ),
    ]);
}

#[test]
fn what_is_asked_for_has_to_be_there() {
    use Precondition::{Absent, Present, Version};
    let refuses = |precondition, version: Option<u64>| {
        refused(10, set_if("2", None, precondition), Refused::Precondition(version.map(token)))
    };
    let does = |precondition| done(10, set_if("2", None, precondition), 6);
    let one = || done(0, set("1"), 5);
    judge(vec![
        (vec![one(), refuses(Absent, Some(5))], true),
        (vec![one(), refuses(Absent, Some(4))], false),
        (vec![one(), refuses(Absent, None)], false),
        (vec![refuses(Absent, None)], false),
        (vec![does(Absent)], true),
        (vec![one(), does(Absent)], false),
        (vec![does(Present)], false),
        (vec![refuses(Present, None)], true),
        (vec![one(), does(Present)], true),
        (vec![one(), does(Version(token(5)))], true),
        (vec![one(), does(Version(token(4)))], false),
        (vec![one(), refuses(Version(token(4)), Some(5))], true),
    ]);
}

#[test]
fn nothing_expires_before_its_time_and_what_is_gone_stays_gone() {
    let seven = || done(0, set_for("7", 100), 5);
    let shown = || Some(entry("7", 5, true));
    judge(vec![
        (vec![seven(), get(90, 95, shown())], true),
        (vec![seven(), get(200, 205, shown())], true),
        (vec![seven(), get(90, 95, None)], false),
        (vec![seven(), get(90, 101, None)], true),
        (vec![seven(), get(200, 205, None), get(210, 215, shown())], false),
        (vec![seven(), get(200, 205, Some(entry("7", 5, false)))], false),
        // Counted on from what has not ended, with its time; from the start where it has.
        (vec![seven(), counted(50, 8, 6), get(60, 65, Some(entry("8", 6, true)))], true),
        (vec![seven(), counted(50, 11, 6)], false),
        (vec![seven(), counted(150, 11, 6), get(160, 165, Some(entry("11", 6, false)))], true),
        (vec![seven(), touched(50, Some(100), Some(5)), get(120, 125, None)], false),
        (vec![seven(), touched(50, Some(100), Some(5)), get(160, 165, None)], true),
        (vec![seven(), touched(50, None, Some(5)), get(160, 165, None)], false),
        (vec![seven(), lost(50, Write::Touch { ttl: None }), get(160, 165, None)], true),
        (
            vec![seven(), lost(50, Write::Touch { ttl: None }), get(160, 165, Some(entry("7", 5, false)))],
            true,
        ),
    ]);
}

#[test]
fn a_lower_token_is_refused_and_an_equal_one_is_not() {
    let refuses =
        |start, number, highest| refused(start, fenced(set("2"), number), Refused::Fenced(token(highest)));
    judge(vec![
        (vec![done(0, fenced(set("1"), 6), 5), refuses(10, 5, 6)], true),
        (vec![done(0, fenced(set("1"), 6), 5), refuses(10, 5, 7)], false),
        (vec![done(0, fenced(set("1"), 6), 5), done(10, fenced(set("2"), 5), 6)], false),
        (vec![done(0, fenced(set("1"), 6), 5), done(10, fenced(set("2"), 6), 6)], true),
        (vec![done(0, fenced(set("1"), 6), 5), refuses(10, 6, 6)], false),
        (vec![done(0, fenced(set("1"), 6), 5), done(10, set("2"), 6)], true),
        (vec![done(0, fenced(set("1"), 6), 5), deleted(10, Some(6)), refuses(20, 5, 6)], true),
        (vec![lost(0, fenced(set("1"), 6)), refuses(10, 5, 6)], true),
        (vec![refuses(10, 5, 6)], false),
    ]);
}

#[test]
fn the_value_before_is_told_where_it_was_asked_for() {
    let asked = Mutation { previous: true, ..set("2").into() };
    let told = |previous| {
        let effect = Effect::Set { version: token(6), ttl: None };
        let told = KeyTold::Written(Written { effect, previous, repeated: false });
        call(10, 15, KeyAsked::Write(asked.clone()), Some(told))
    };
    judge(vec![
        (vec![done(0, set("1"), 5), told(Some(entry("1", 5, false)))], true),
        (vec![done(0, set("1"), 5), told(Some(entry("1", 4, false)))], false),
        (vec![done(0, set("1"), 5), told(None)], false),
        (vec![told(None)], true),
    ]);
}
