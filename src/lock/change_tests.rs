//! [`super::change`] case by case, and in random sequences.
//!
//! Values are written as words, so that a case is a line:
//!
//! ```text
//! H=ann/1/1@10~30   held by ann under lease 1, granted as lease 1, token 10, for 30 s
//! O=2               on offer to daemon 2
//! P=2:12x3          daemon 2 in line with ticket 12 for three waiters
//! T=10  F=9         highest and forced token
//! ```
//!
//! Before the `=`, `!` says that the stamp has aged, `*` that this attempt has set it anew. Attempts are those of daemon 1
//! with token 100 unless a case says otherwise.

use std::time::Duration;

use proptest::prelude::*;

use super::change::{Acquire, LockAnswer, LockChange, LockKind, Waiting};
use super::value::{Holder, LockValue, Offer, Place};
use crate::ids::{LeaseId, Owner, ProposerId};
use crate::node::operation::Stamp;
use crate::quorum::ClusterSize;
use crate::register::{Ages, Attempt, Kind, Verdict};
use crate::token::{Ballot, Token};

const NOW: u64 = 100;
const GRACE: Duration = Duration::from_secs(2);
const PLACE_TTL: Duration = Duration::from_secs(16);
const DAY: Duration = Duration::from_secs(86_400);

fn token(value: u64) -> Token {
    Token::new(value).expect("small")
}

fn lease(number: u8) -> LeaseId {
    LeaseId::from_bytes([number; 16])
}

fn ballot(value: u64, daemon: u64) -> Ballot {
    Ballot { token: token(value), proposer: ProposerId(daemon) }
}

fn number_of(id: LeaseId) -> u8 {
    u8::from_str_radix(&id.expose()[..2], 16).expect("hexadecimal")
}

fn owner(name: &str) -> Owner {
    Owner::parse(name).expect("a good owner")
}

/// A value from its words, and the stamps in it that have aged.
fn value(words: &str) -> (LockValue, Vec<Stamp>) {
    let mut value = LockValue::default();
    let mut aged = Vec::new();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    for word in words.split_whitespace() {
        let (what, of) = word.split_once('=').expect("what=of");
        let (what, is_aged) = what.strip_suffix('!').map_or((what, false), |what| (what, true));
        let stamp = match what {
            "H" => {
                let (owner, rest) = of.split_once('/').expect("owner/lease");
                let (id, rest) = rest.split_once('/').expect("lease/first");
                let (first, rest) = rest.split_once('@').expect("first@token");
                let (granted, ttl) = rest.split_once('~').expect("token~ttl");
                let stamp = Stamp { ballot: ballot(1, 9), ordinal: 0 };
                value.holder = Some(Holder {
                    lease_id: lease(number(id) as u8),
                    first: (first != "-").then(|| lease(number(first) as u8)),
                    owner: self::owner(owner),
                    token: token(number(granted)),
                    ttl_ms: number(ttl) * 1_000,
                    stamp,
                    acquired_unix_ms: 7,
                    attributes: vec![],
                });
                stamp
            }
            "O" => {
                let stamp = Stamp { ballot: ballot(2, 9), ordinal: 1 };
                let grace_ms = GRACE.as_millis() as u64;
                value.offer = Some(Offer { daemon: ProposerId(number(of)), stamp, grace_ms });
                stamp
            }
            "P" => {
                let (daemon, rest) = of.split_once(':').expect("daemon:ticket");
                let (ticket, count) = rest.split_once('x').expect("ticket x count");
                let stamp = Stamp { ballot: ballot(3, number(daemon)), ordinal: 2 };
                value.line.push(Place {
                    daemon: ProposerId(number(daemon)),
                    ticket: token(number(ticket)),
                    count: number(count) as u32,
                    stamp,
                    ttl_ms: PLACE_TTL.as_millis() as u64,
                });
                stamp
            }
            "T" => {
                value.highest_token = token(number(of));
                continue;
            }
            "F" => {
                value.forced_token = token(number(of));
                continue;
            }
            _ => panic!("{word}"),
        };
        if is_aged {
            aged.push(stamp);
        }
    }
    (value, aged)
}

/// The words of a value; `*` for what was stamped by this ballot.
fn words(value: &LockValue, attempt: Ballot) -> String {
    let mut words = Vec::new();
    let mark = |stamp: Stamp, ordinal: u8| match stamp.ballot == attempt {
        true if stamp.ordinal == ordinal => "*",
        true => "?",
        false => "",
    };
    if let Some(h) = &value.holder {
        let id = number_of(h.lease_id);
        let first = h.first.map_or("-".to_owned(), |first| number_of(first).to_string());
        let ttl = h.ttl_ms / 1_000;
        words.push(format!("H{}={}/{id}/{first}@{}~{ttl}", mark(h.stamp, 0), h.owner, h.token));
    }
    if let Some(offer) = value.offer {
        words.push(format!("O{}={}", mark(offer.stamp, 1), offer.daemon.0));
    }
    for place in &value.line {
        let mark = mark(place.stamp, 2);
        words.push(format!("P{mark}={}:{}x{}", place.daemon.0, place.ticket, place.count));
    }
    words.push(format!("T={}", value.highest_token));
    if value.forced_token != Token::ZERO {
        words.push(format!("F={}", value.forced_token));
    }
    words.join(" ")
}

fn answer_words(answer: &LockAnswer) -> String {
    let holder = |contention: &super::Contention| match &contention.holder {
        Some(holder) => format!("{}@{}", holder.owner, holder.token),
        None => "nobody".to_owned(),
    };
    match answer {
        LockAnswer::Held { lease_id, token, owner, ttl, .. } => {
            format!("held {owner}/{}@{token}~{}", number_of(*lease_id), ttl.as_secs())
        }
        LockAnswer::Contended(c) => format!("contended {} {}", holder(c), c.waiters),
        LockAnswer::Waiting { contention: c, before } => {
            format!("waiting {} {} before {before}", holder(c), c.waiters)
        }
        LockAnswer::Lost { forced_token } => format!("lost {forced_token}"),
        LockAnswer::Ended => "ended".to_owned(),
        LockAnswer::NothingToEnd { highest_token } => format!("nothing {highest_token}"),
    }
}

fn ages(value: &LockValue, aged: &[Stamp]) -> Ages {
    let age = |(stamp, _)| (stamp, if aged.contains(&stamp) { DAY } else { Duration::ZERO });
    let answer: Vec<_> = LockKind::stamps(value).into_iter().map(age).collect();
    Ages::of(ClusterSize::new(3).expect("three"), vec![answer.clone(), answer], 1)
}

/// What a change makes of a value, in words.
fn apply(old: &str, change: &LockChange) -> (String, String) {
    apply_as(old, change, ballot(NOW, 1))
}

fn apply_as(old: &str, change: &LockChange, ballot: Ballot) -> (String, String) {
    let (old, aged) = value(old);
    let ages = ages(&old, &aged);
    match LockKind::apply(change, &old, &Attempt::new(ballot, &ages)) {
        Verdict::Unchanged(answer) => ("same".to_owned(), answer_words(&answer)),
        Verdict::Changed(new, answer) => {
            check(&new);
            (words(&new, ballot), answer_words(&answer))
        }
        Verdict::Deferred => ("deferred".to_owned(), String::new()),
    }
}

/// What holds for every value that a change makes.
fn check(value: &LockValue) {
    let shown = words(value, Ballot::ZERO);
    let key = |place: &Place| (place.ticket, place.daemon);
    assert!(value.line.is_sorted_by_key(key), "the line is in order of tickets: {shown}");
    for place in &value.line {
        let places = value.line.iter().filter(|other| other.daemon == place.daemon).count();
        assert_eq!(places, 1, "one place per daemon: {shown}");
    }
    if let Some(offer) = value.offer {
        assert!(value.holder.is_none(), "an offer of a held lock: {shown}");
        assert!(value.place_of(offer.daemon).is_some(), "an offer to nobody in line: {shown}");
    }
    let turn_lost = value.holder.is_none() && value.offer.is_none() && !value.line.is_empty();
    assert!(!turn_lost, "a free lock is offered to somebody in line: {shown}");
    let known = value.holder.as_ref().is_none_or(|holder| holder.token <= value.highest_token);
    assert!(known && value.forced_token <= value.highest_token, "the highest token is the highest: {shown}");
    assert_eq!(LockValue::decode(&value.encode()).as_ref(), Ok(value), "stored and read again: {shown}");
}

/// `old | new | answer` per row; the answer may have several words.
fn table(change: &LockChange, rows: &[(&str, &str, &str)]) {
    for (old, new, answer) in rows {
        let expected = ((*new).to_owned(), (*answer).to_owned());
        assert_eq!(apply(old, change), expected, "\n{change:?}\non {old}");
    }
}

/// Bob, lease 7, for 60 s, without waiting.
fn once() -> Acquire {
    Acquire {
        lease_id: lease(7),
        owner: owner("bob"),
        ttl: Duration::from_secs(60),
        now_unix_ms: 8,
        attributes: vec![],
        grace: GRACE,
        waiting: None,
    }
}

/// The first waiter of daemon 1, alone, with ticket 50.
fn first() -> Waiting {
    Waiting {
        daemon: ProposerId(1),
        ticket: token(50),
        first: true,
        next: None,
        count: 1,
        place_ttl: PLACE_TTL,
        renew: false,
    }
}

fn wait(waiting: Waiting) -> LockChange {
    LockChange::Acquire(Acquire { waiting: Some(waiting), ..once() })
}

#[test]
fn trying_once_takes_what_is_free_and_never_passes_the_line() {
    table(
        &LockChange::Acquire(once()),
        &[
            ("", "H*=bob/7/7@100~60 T=100", "held bob/7@100~60"),
            ("T=99", "H*=bob/7/7@100~60 T=100", "held bob/7@100~60"),
            // Held by somebody else, who is in time or not.
            ("H=ann/1/1@10~30 T=10", "same", "contended ann@10 0"),
            ("H=ann/1/1@10~30 P=2:12x3 P=3:13x1 T=10", "same", "contended ann@10 4"),
            ("H!=ann/1/1@10~30 T=10", "H*=bob/7/7@100~60 T=100", "held bob/7@100~60"),
            // Somebody waits: the turn is theirs, and they are told.
            ("H!=ann/1/1@10~30 P=2:12x3 T=10", "O*=2 P=2:12x3 T=10", "contended nobody 3"),
            ("H!=ann/1/1@10~30 P=1:12x3 T=10", "O*=1 P=1:12x3 T=10", "contended nobody 3"),
            ("O=2 P=2:12x3 T=10", "same", "contended nobody 3"),
            ("O=1 P=1:12x3 T=10", "same", "contended nobody 3"),
            // Who let an offer age loses the place; with nobody left the lock is free.
            ("O!=2 P=2:12x3 P=3:13x1 T=10", "O*=3 P=3:13x1 T=10", "contended nobody 1"),
            ("O!=2 P=2:12x3 T=10", "H*=bob/7/7@100~60 T=100", "held bob/7@100~60"),
            // Places that were not renewed are dropped, with the offer to them.
            ("O=2 P!=2:12x3 T=10", "H*=bob/7/7@100~60 T=100", "held bob/7@100~60"),
            ("O=2 P!=2:12x3 P=3:13x1 T=10", "O*=3 P=3:13x1 T=10", "contended nobody 1"),
            ("H!=ann/1/1@10~30 P!=2:12x3 T=10", "H*=bob/7/7@100~60 T=100", "held bob/7@100~60"),
            // As long as the lock is held nothing is dropped by a glance.
            ("H=ann/1/1@10~30 P!=2:12x3 T=10", "same", "contended ann@10 3"),
            // What an operator forced is remembered.
            ("T=10 F=10", "H*=bob/7/7@100~60 T=100 F=10", "held bob/7@100~60"),
        ],
    );
}

#[test]
fn the_same_owner_gets_its_lease_again_under_a_new_id() {
    let rows = [
        ("H=bob/1/1@10~30 T=10", "H*=bob/7/-@10~60 T=10", "held bob/7@10~60"),
        // Also when it ran out: nobody has had the lock since.
        ("H!=bob/1/1@10~30 T=10", "H*=bob/7/-@10~60 T=10", "held bob/7@10~60"),
        ("H!=bob/1/1@10~30 P=2:12x3 T=10", "H*=bob/7/-@10~60 P=2:12x3 T=10", "held bob/7@10~60"),
        // Whoever got it before may still go by the longer one.
        ("H=bob/1/1@10~90 T=10", "H*=bob/7/-@10~90 T=10", "held bob/7@10~60"),
        // The same attempt once more takes nothing over.
        ("H=bob/7/7@10~60 T=10", "H*=bob/7/7@10~60 T=10", "held bob/7@10~60"),
        ("H=bob/7/-@10~60 T=10", "H*=bob/7/-@10~60 T=10", "held bob/7@10~60"),
    ];
    table(&LockChange::Acquire(once()), &rows);
    table(&wait(first()), &rows);
    table(
        &wait(Waiting { next: Some(token(60)), count: 2, ..first() }),
        &[
            (
                "H=bob/1/1@10~30 P=1:50x2 P=2:55x1 T=10",
                "H*=bob/7/-@10~60 P=2:55x1 P*=1:60x1 T=10",
                "held bob/7@10~60",
            ),
            (
                "H=bob/1/1@10~30 P=1:50x2 P=2:65x1 T=10",
                "H*=bob/7/-@10~60 P*=1:60x1 P=2:65x1 T=10",
                "held bob/7@10~60",
            ),
        ],
    );
}

#[test]
fn attributes_of_a_lease_taken_again_are_replaced_only_by_others() {
    let (mut old, _) = value("H=bob/1/1@10~30 T=10");
    let pair = |text: &str| vec![("on".to_owned(), text.to_owned())];
    old.holder.as_mut().expect("held").attributes = pair("here");
    let unasked = ages(&old, &[]);
    let attempt = Attempt::new(ballot(NOW, 1), &unasked);
    for (given, kept) in [(vec![], pair("here")), (pair("there"), pair("there"))] {
        let change = LockChange::Acquire(Acquire { attributes: given, ..once() });
        let Verdict::Changed(new, _) = LockKind::apply(&change, &old, &attempt) else { panic!("held") };
        assert_eq!(new.holder.expect("held").attributes, kept);
    }
}

#[test]
fn waiting_takes_a_free_lock_in_order_of_tickets() {
    let got = "held bob/7@100~60";
    table(
        &wait(first()),
        &[
            ("", "H*=bob/7/7@100~60 T=100", got),
            ("H!=ann/1/1@10~30 T=10", "H*=bob/7/7@100~60 T=100", got),
            // Our own place goes with the grant; others keep theirs.
            ("H!=ann/1/1@10~30 P=1:50x1 T=10", "H*=bob/7/7@100~60 T=100", got),
            ("H!=ann/1/1@10~30 P=1:50x1 P=2:60x2 T=10", "H*=bob/7/7@100~60 P=2:60x2 T=100", got),
            ("O=1 P=1:50x1 P=2:60x2 T=10", "H*=bob/7/7@100~60 P=2:60x2 T=100", got),
            // A lower ticket of another daemon goes first; a higher one does not.
            ("H!=ann/1/1@10~30 P=2:40x2 T=10", "O*=2 P=2:40x2 P*=1:50x1 T=10", "waiting nobody 3 before 2"),
            ("H!=ann/1/1@10~30 P=2:60x2 T=10", "H*=bob/7/7@100~60 P=2:60x2 T=100", got),
            // On offer to another daemon, in time or not.
            ("O=2 P=2:40x2 P=1:50x1 T=10", "same", "waiting nobody 3 before 2"),
            ("O=2 P=2:40x2 T=10", "O=2 P=2:40x2 P*=1:50x1 T=10", "waiting nobody 3 before 2"),
            ("O!=2 P=2:40x2 P=1:50x1 T=10", "H*=bob/7/7@100~60 T=100", got),
            (
                "O!=2 P=2:40x2 P=3:45x1 P=1:50x1 T=10",
                "O*=3 P=3:45x1 P=1:50x1 T=10",
                "waiting nobody 2 before 1",
            ),
            // An offer stands even against a lower ticket that came late.
            ("O=2 P=2:60x2 T=10", "O=2 P*=1:50x1 P=2:60x2 T=10", "waiting nobody 3 before 0"),
            // An offer to us that aged: we are here now, and with nobody before us it is ours all the same.
            ("O!=1 P=1:50x1 T=10", "H*=bob/7/7@100~60 T=100", got),
            ("O!=1 P=2:40x1 P=1:50x1 T=10", "O*=2 P=2:40x1 P*=1:50x1 T=10", "waiting nobody 2 before 1"),
            // Places that aged do not stand before us.
            ("H!=ann/1/1@10~30 P!=2:40x2 T=10", "H*=bob/7/7@100~60 T=100", got),
            ("O=2 P!=2:40x2 P=1:50x1 T=10", "H*=bob/7/7@100~60 T=100", got),
        ],
    );
}

#[test]
fn a_grant_moves_the_daemons_place_to_its_next_waiter() {
    let change = wait(Waiting { next: Some(token(60)), count: 3, ..first() });
    let got = "held bob/7@100~60";
    table(
        &change,
        &[
            ("", "H*=bob/7/7@100~60 P*=1:60x2 T=100", got),
            (
                "O=1 P=1:50x3 P=2:55x1 P=3:65x1 T=10",
                "H*=bob/7/7@100~60 P=2:55x1 P*=1:60x2 P=3:65x1 T=100",
                got,
            ),
        ],
    );
}

#[test]
fn waiting_stands_in_line_once_and_moves_only_for_a_reason() {
    table(
        &wait(first()),
        &[
            ("H=ann/1/1@10~30 T=10", "H=ann/1/1@10~30 P*=1:50x1 T=10", "waiting ann@10 1 before 0"),
            ("H=ann/1/1@10~30 P=1:50x1 T=10", "same", "waiting ann@10 1 before 0"),
            (
                "H=ann/1/1@10~30 P=2:40x2 P=3:60x1 T=10",
                "H=ann/1/1@10~30 P=2:40x2 P*=1:50x1 P=3:60x1 T=10",
                "waiting ann@10 4 before 2",
            ),
            // The first before us has left: the place is ours from now on.
            (
                "H=ann/1/1@10~30 P=1:30x2 P=2:40x1 T=10",
                "H=ann/1/1@10~30 P=2:40x1 P*=1:50x1 T=10",
                "waiting ann@10 2 before 1",
            ),
            ("H=ann/1/1@10~30 P=1:70x2 T=10", "H=ann/1/1@10~30 P*=1:50x1 T=10", "waiting ann@10 1 before 0"),
        ],
    );
    table(
        &wait(Waiting { renew: true, count: 4, ..first() }),
        &[("H=ann/1/1@10~30 P=1:50x1 T=10", "H=ann/1/1@10~30 P*=1:50x4 T=10", "waiting ann@10 4 before 0")],
    );
    // One that is not the first of its daemon neither pushes the first back nor takes the lock before it.
    let later = wait(Waiting { first: false, ..first() });
    table(
        &later,
        &[
            ("H=ann/1/1@10~30 P=1:40x1 T=10", "same", "waiting ann@10 1 before 0"),
            ("H=ann/1/1@10~30 P=1:60x1 T=10", "H=ann/1/1@10~30 P*=1:50x1 T=10", "waiting ann@10 1 before 0"),
            ("H=ann/1/1@10~30 T=10", "H=ann/1/1@10~30 P*=1:50x1 T=10", "waiting ann@10 1 before 0"),
            ("O=1 P=1:40x1 T=10", "same", "waiting nobody 1 before 0"),
            ("H!=ann/1/1@10~30 P=1:40x1 T=10", "O*=1 P=1:40x1 T=10", "waiting nobody 1 before 0"),
        ],
    );
    let renewed = wait(Waiting { first: false, renew: true, ..first() });
    let row =
        ("H=ann/1/1@10~30 P=1:40x1 T=10", "H=ann/1/1@10~30 P*=1:40x1 T=10", "waiting ann@10 1 before 0");
    table(&renewed, &[row]);
}

#[test]
fn a_round_has_one_new_token_and_the_second_grant_waits_for_the_next() {
    for change in [LockChange::Acquire(once()), wait(first())] {
        // Granted and released again within the round, or granted by a higher ballot.
        for highest in ["T=100", "T=101", "H!=ann/1/1@100~30 T=100"] {
            assert_eq!(apply(highest, &change).0, "deferred", "{highest}");
        }
        // To take a lease again needs no token.
        let (new, _) = apply("H=bob/1/1@100~30 T=100", &change);
        assert_eq!(new, "H*=bob/7/-@100~60 T=100");
    }
}

#[test]
fn extending_starts_the_time_again_for_the_latest_lease_id_only() {
    let extend =
        |ttl: Option<u64>| LockChange::Extend { lease_id: lease(1), ttl: ttl.map(Duration::from_secs) };
    table(
        &extend(None),
        &[
            ("H=ann/1/1@10~30 T=10", "H*=ann/1/1@10~30 T=10", "held ann/1@10~30"),
            ("H!=ann/1/1@10~30 T=10", "H*=ann/1/1@10~30 T=10", "held ann/1@10~30"),
            ("H=ann/1/9@10~30 P=2:12x1 T=10", "H*=ann/1/9@10~30 P=2:12x1 T=10", "held ann/1@10~30"),
            // The id that it was granted under, taken over since.
            ("H=ann/2/-@10~30 T=10", "same", "lost 0"),
            ("H=bob/7/7@20~30 T=20", "same", "lost 0"),
            ("T=10", "same", "lost 0"),
            ("", "same", "lost 0"),
            ("T=10 F=10", "same", "lost 10"),
            ("H=bob/7/7@20~30 T=20 F=10", "same", "lost 10"),
            ("O=2 P=2:12x1 T=10", "same", "lost 0"),
        ],
    );
    table(&extend(Some(5)), &[("H=ann/1/1@10~30 T=10", "H*=ann/1/1@10~5 T=10", "held ann/1@10~5")]);
}

/// What ends a lease, on values where it is the one to end.
const ENDINGS: [(&str, &str); 8] = [
    ("H=ann/1/1@10~30 T=10", "T=10"),
    ("H!=ann/1/1@10~30 T=10", "T=10"),
    ("H=ann/1/1@10~30 P=2:12x3 T=10", "O*=2 P=2:12x3 T=10"),
    ("H=ann/1/1@10~30 P=3:11x1 P=2:12x3 T=10", "O*=3 P=3:11x1 P=2:12x3 T=10"),
    ("H=ann/1/1@10~30 P=1:11x1 P=2:12x3 T=10", "O*=1 P=1:11x1 P=2:12x3 T=10"),
    ("H=ann/1/1@10~30 P!=3:11x1 P=2:12x3 T=10", "O*=2 P=2:12x3 T=10"),
    ("H=ann/1/1@10~30 P!=3:11x1 P!=2:12x3 T=10", "T=10"),
    ("H!=ann/1/1@10~30 P=2:12x3 T=10", "O*=2 P=2:12x3 T=10"),
];

/// Where there is no lease 1 and no token 10.
const NO_ENDINGS: [&str; 4] = ["", "T=20", "O=2 P=2:12x1 T=20", "H=bob/7/7@20~30 P!=2:12x1 T=20"];

#[test]
fn what_ends_a_lease_offers_the_lock_to_the_lowest_ticket() {
    let release = LockChange::Release { lease_id: lease(1), grace: GRACE };
    let abandon = LockChange::Abandon { lease_id: lease(1), grace: GRACE };
    let force = LockChange::Force { token: token(10), grace: GRACE };
    for (old, new) in ENDINGS {
        table(&release, &[(old, new, "ended")]);
        table(&abandon, &[(old, new, "ended")]);
        table(&force, &[(old, &format!("{new} F=10"), "ended")]);
    }
    for change in [release, abandon, force] {
        for old in NO_ENDINGS {
            let highest = if old.is_empty() { "nothing 0" } else { "nothing 20" };
            table(&change, &[(old, "same", highest)]);
        }
    }
}

#[test]
fn a_lease_id_that_was_taken_over_ends_nothing_and_abandon_ends_no_lease_that_was() {
    let release = LockChange::Release { lease_id: lease(1), grace: GRACE };
    let abandon = LockChange::Abandon { lease_id: lease(1), grace: GRACE };
    let force = LockChange::Force { token: token(10), grace: GRACE };
    for (old, released, abandoned, forced) in [
        ("H=ann/1/1@10~30 T=10", "T=10", "T=10", "T=10 F=10"),
        // Taken over under another id; taken over by this one, which may have been the first, too.
        ("H=ann/2/-@10~30 T=10", "same", "same", "T=10 F=10"),
        ("H=ann/1/-@10~30 T=10", "T=10", "same", "T=10 F=10"),
        ("H=ann/1/1@11~30 T=11", "T=11", "T=11", "same"),
    ] {
        assert_eq!(apply(old, &release).0, released, "release {old}");
        assert_eq!(apply(old, &abandon).0, abandoned, "abandon {old}");
        assert_eq!(apply(old, &force).0, forced, "force {old}");
    }
}

#[test]
fn leaving_gives_up_the_place_and_passes_an_offer_on() {
    let leave = LockChange::Leave { daemon: ProposerId(1), grace: GRACE };
    table(
        &leave,
        &[
            ("", "same", "nothing 0"),
            ("H=ann/1/1@10~30 P=2:12x1 T=10", "same", "nothing 10"),
            ("H=ann/1/1@10~30 P=1:11x2 P=2:12x1 T=10", "H=ann/1/1@10~30 P=2:12x1 T=10", "ended"),
            ("O=1 P=1:11x2 T=10", "T=10", "ended"),
            ("O=1 P=1:11x2 P=2:12x1 T=10", "O*=2 P=2:12x1 T=10", "ended"),
            ("O=1 P=1:11x2 P!=3:12x1 P=2:13x1 T=10", "O*=2 P=2:13x1 T=10", "ended"),
            // The offer is another's.
            ("O=2 P=2:11x1 T=10", "same", "nothing 10"),
            ("O=2 P=2:11x1 P=1:12x2 T=10", "O=2 P=2:11x1 T=10", "ended"),
            ("O!=2 P=2:11x1 P=1:12x2 P=3:13x1 T=10", "O*=3 P=3:13x1 T=10", "ended"),
            ("O!=2 P=2:11x1 P=1:12x2 T=10", "T=10", "ended"),
            // Others that did not come are dropped on the way.
            ("H=ann/1/1@10~30 P=1:11x2 P!=2:12x1 T=10", "H=ann/1/1@10~30 T=10", "ended"),
        ],
    );
}

#[test]
fn only_a_try_without_waiting_is_a_glance() {
    assert!(LockKind::is_glance(&LockChange::Acquire(once())));
    let others = [
        wait(first()),
        LockChange::Extend { lease_id: lease(1), ttl: None },
        LockChange::Release { lease_id: lease(1), grace: GRACE },
        LockChange::Abandon { lease_id: lease(1), grace: GRACE },
        LockChange::Force { token: token(1), grace: GRACE },
        LockChange::Leave { daemon: ProposerId(1), grace: GRACE },
    ];
    for change in others {
        assert!(!LockKind::is_glance(&change), "{change:?}");
    }
}

#[test]
fn tidying_drops_what_has_aged_and_offers_the_lock_to_the_next_in_line() {
    table(
        &LockChange::Tidy { grace: GRACE },
        &[
            ("", "same", "nothing 0"),
            ("T=10 F=10", "same", "nothing 10"),
            ("H=ann/1/1@10~30 P=2:12x3 T=10", "same", "nothing 10"),
            ("O=2 P=2:12x1 P=3:13x1 T=10", "same", "nothing 10"),
            // The holder.
            ("H!=ann/1/1@10~30 T=10", "T=10", "ended"),
            ("H!=ann/1/1@10~30 T=10 F=9", "T=10 F=9", "ended"),
            ("H!=ann/1/1@10~30 P=2:12x3 T=10", "O*=2 P=2:12x3 T=10", "ended"),
            ("H!=ann/1/1@10~30 P!=2:12x3 P=3:13x1 T=10", "O*=3 P=3:13x1 T=10", "ended"),
            ("H!=ann/1/1@10~30 P!=2:12x3 P!=3:13x1 T=10", "T=10", "ended"),
            // Places behind a holder that lives.
            ("H=ann/1/1@10~30 P!=2:12x3 P=3:13x1 T=10", "H=ann/1/1@10~30 P=3:13x1 T=10", "ended"),
            // Offers that nobody took.
            ("O!=2 P=2:12x1 T=10", "T=10", "ended"),
            ("O!=2 P=2:12x1 P=3:13x1 T=10", "O*=3 P=3:13x1 T=10", "ended"),
            ("O!=2 P=2:12x1 P!=3:13x1 T=10", "T=10", "ended"),
            ("O=2 P!=2:12x1 P=3:13x1 T=10", "O*=3 P=3:13x1 T=10", "ended"),
        ],
    );
}

#[test]
fn watchers_hear_of_holders_and_daemons_of_offers_to_them() {
    let all = ["", "T=10", "H=ann/1/1@10~30 T=10", "H=ann/2/1@10~30 T=10", "H=bob/7/7@20~30 T=20"];
    for (old, new, announce) in [
        (all[0], all[1], false),
        (all[0], all[2], true),
        (all[2], all[1], true),
        (all[2], all[3], false),
        (all[2], all[4], true),
        ("H=ann/1/1@10~30 T=10", "H=ann/1/1@10~30 P=2:12x1 T=10", false),
    ] {
        let publish = LockKind::publish(&value(old).0, &value(new).0);
        assert_eq!((publish.announce, publish.wake), (announce, vec![]), "{old} -> {new}");
    }
    let (held, _) = value("H=ann/1/1@10~30 P=2:12x1 T=10");
    let (offered, _) = value("O=2 P=2:12x1 T=10");
    assert_eq!(LockKind::publish(&held, &offered).wake, [ProposerId(2)]);
    assert!(LockKind::publish(&offered, &offered).wake.is_empty());
    // The same daemon again is another offer.
    let mut again = offered.clone();
    again.offer.as_mut().expect("offered").stamp.ballot = ballot(NOW, 1);
    assert_eq!(LockKind::publish(&offered, &again).wake, [ProposerId(2)]);
}

#[test]
fn a_lock_is_guarded_by_its_holder_or_an_offer_and_listed_while_somebody_has_or_wants_it() {
    for (words, guarded, listed) in [
        ("", false, false),
        ("T=10 F=10", false, false),
        ("H=ann/1/1@10~30 T=10", true, true),
        ("O=2 P=2:12x1 T=10", true, true),
        ("H=ann/1/1@10~30 P=2:12x1 T=10", true, true),
    ] {
        let (value, _) = value(words);
        assert_eq!((LockKind::is_guarded(&value), LockKind::is_listed(&value)), (guarded, listed), "{words}");
        if guarded {
            let first = LockKind::stamps(&value)[0].0;
            let guard = value.holder.map(|holder| holder.stamp).or(value.offer.map(|offer| offer.stamp));
            assert_eq!(Some(first), guard, "the guard's stamp comes first");
        }
    }
}

#[test]
fn values_of_another_version_or_damaged_are_refused() {
    assert_eq!(LockValue::decode(&[]), Ok(LockValue::default()));
    assert_eq!(LockValue::decode(&[9, 0]), Err("version 9 of a lock".to_owned()));
    let encoded = value("H=ann/1/1@10~30 P=2:12x1 T=10").0.encode();
    for end in 1..encoded.len() {
        assert!(LockValue::decode(&encoded[..end]).is_err(), "cut at {end}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Random sequences

/// One step of a sequence; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
struct Step {
    daemon: u64,
    what: What,
    /// One bit per stamp in the value: it has aged.
    aged: u16,
    /// In the same round as the step before: under its ballot.
    same_round: bool,
}

#[derive(Clone, Debug)]
enum What {
    Once { owner: u8, lease: u8 },
    Wait { owner: u8, lease: u8, ticket: u64, next: Option<u64>, first: bool, renew: bool },
    Extend { lease: u8 },
    Release { lease: u8 },
    Abandon { lease: u8 },
    Force { current: bool, token: u64 },
    Tidy,
    Leave,
}

fn what() -> impl Strategy<Value = What> {
    let lease = 1..6u8;
    prop_oneof![
        2 => (0..4u8, lease.clone()).prop_map(|(owner, lease)| What::Once { owner, lease }),
        6 => (0..4u8, lease.clone(), 1..40u64, prop::option::of(1..40u64), any::<bool>(), any::<bool>())
            .prop_map(|(owner, lease, ticket, next, first, renew)| {
                What::Wait { owner, lease, ticket, next, first, renew }
            }),
        1 => lease.clone().prop_map(|lease| What::Extend { lease }),
        2 => lease.clone().prop_map(|lease| What::Release { lease }),
        1 => lease.prop_map(|lease| What::Abandon { lease }),
        1 => (any::<bool>(), 1..200u64).prop_map(|(current, token)| What::Force { current, token }),
        1 => Just(What::Tidy),
        1 => Just(What::Leave),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly nothing has aged.
    let aged = prop_oneof![3 => Just(0), 2 => any::<u16>()];
    let same_round = prop::bool::weighted(0.3);
    (1..=3u64, what(), aged, same_round).prop_map(|(daemon, what, aged, same_round)| Step {
        daemon,
        what,
        aged,
        same_round,
    })
}

fn change_of(step: &Step, value: &LockValue) -> LockChange {
    let acquire = |number: u8, id: u8| Acquire {
        lease_id: lease(id),
        owner: owner(&format!("owner-{number}")),
        ..once()
    };
    match step.what {
        What::Once { owner, lease } => LockChange::Acquire(acquire(owner, lease)),
        What::Wait { owner, lease, ticket, next, first, renew } => {
            let daemon = ProposerId(step.daemon);
            let next = next.map(|after| token(ticket + after));
            let count = 1 + u32::from(next.is_some());
            let ticket = token(ticket);
            let waiting = Waiting { daemon, ticket, first, next, count, place_ttl: PLACE_TTL, renew };
            LockChange::Acquire(Acquire { waiting: Some(waiting), ..acquire(owner, lease) })
        }
        What::Extend { lease: id } => LockChange::Extend { lease_id: lease(id), ttl: None },
        What::Release { lease: id } => LockChange::Release { lease_id: lease(id), grace: GRACE },
        What::Abandon { lease: id } => LockChange::Abandon { lease_id: lease(id), grace: GRACE },
        What::Force { current: true, .. } => LockChange::Force { token: value.highest_token, grace: GRACE },
        What::Force { token: number, .. } => LockChange::Force { token: token(number), grace: GRACE },
        What::Tidy => LockChange::Tidy { grace: GRACE },
        What::Leave => LockChange::Leave { daemon: ProposerId(step.daemon), grace: GRACE },
    }
}

/// What holds from one value to the next.
fn check_step(old: &LockValue, new: &LockValue, change: &LockChange, answer: &LockAnswer, aged: &[Stamp]) {
    check(new);
    assert!(new.highest_token >= old.highest_token && new.forced_token >= Token::ZERO);
    let granted = new.highest_token > old.highest_token;
    let (before, after) = (old.holder.as_ref(), new.holder.as_ref());
    if let Some(holder) = before {
        let replaced = after.map(|after| after.token) != Some(holder.token);
        let may_end = match change {
            LockChange::Acquire(_) | LockChange::Tidy { .. } => aged.contains(&holder.stamp),
            LockChange::Release { lease_id, .. } => holder.lease_id == *lease_id,
            LockChange::Abandon { lease_id, .. } => {
                holder.lease_id == *lease_id && holder.first == Some(*lease_id)
            }
            LockChange::Force { token, .. } => holder.token == *token,
            LockChange::Extend { .. } | LockChange::Leave { .. } => false,
        };
        assert!(!replaced || may_end, "a lease in time ends by its holder or by force only");
    }
    if let (Some(holder), true) = (after, granted) {
        assert_eq!(holder.token, new.highest_token, "the new token is the holder's");
        assert_eq!(holder.first, Some(holder.lease_id), "a grant is under the id that asked");
    } else if let Some(holder) = after {
        assert_eq!(Some(holder.token), before.map(|before| before.token), "no new holder without a token");
        let before = before.expect("no new holder without a token");
        let taken_over = holder.lease_id != before.lease_id;
        let first = before.first.filter(|_| !taken_over);
        assert_eq!(holder.first, first, "known until it is taken over");
        let extended = matches!(change, LockChange::Extend { .. });
        assert!(holder.ttl_ms >= before.ttl_ms || extended, "only its holder shortens a lease");
    }
    match (answer, change) {
        (LockAnswer::Held { lease_id, token, owner, ttl, .. }, _) => {
            let holder = after.expect("who is told so holds it");
            assert_eq!((holder.lease_id, holder.token), (*lease_id, *token));
            assert_eq!((&holder.owner, holder.ttl()), (owner, *ttl));
        }
        (LockAnswer::Waiting { contention, before }, LockChange::Acquire(acquire)) => {
            let waiting = acquire.waiting.expect("only who waits is told so");
            let place = new.place_of(waiting.daemon).expect("who waits stands in line");
            assert!(place.ticket <= waiting.ticket, "nobody waits before its daemon's place");
            assert!(*before <= contention.waiters);
        }
        (LockAnswer::Contended(contention), _) => assert_eq!(contention.waiters, new.waiters()),
        (LockAnswer::Lost { .. } | LockAnswer::NothingToEnd { .. }, _) => assert_eq!(old, new),
        (LockAnswer::Ended, LockChange::Leave { daemon, .. }) => assert!(new.place_of(*daemon).is_none()),
        (LockAnswer::Ended, LockChange::Tidy { .. }) => assert!(!granted && old != new),
        (LockAnswer::Ended, _) => assert!(new.holder.is_none()),
        (LockAnswer::Waiting { .. }, _) => panic!("only an acquire waits"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_sequence_of_changes_by_three_daemons_keeps_the_invariants(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut value = LockValue::default();
        let mut current = ballot(NOW, 1);
        for (index, step) in steps.iter().enumerate() {
            // A round is one daemon's.
            let mut step = step.clone();
            match step.same_round {
                true => step.daemon = current.proposer.0,
                false => current = ballot(NOW + 1 + index as u64, step.daemon),
            }
            // What this round has set can't be aged in it.
            let stamps = LockKind::stamps(&value).into_iter().map(|(stamp, _)| stamp).enumerate();
            let aged: Vec<Stamp> = stamps
                .filter(|(bit, stamp)| step.aged >> bit & 1 == 1 && stamp.ballot != current)
                .map(|(_, stamp)| stamp)
                .collect();
            let ages = ages(&value, &aged);
            let change = change_of(&step, &value);
            match LockKind::apply(&change, &value, &Attempt::new(current, &ages)) {
                Verdict::Unchanged(answer) => check_step(&value, &value, &change, &answer, &aged),
                Verdict::Changed(new, answer) => {
                    check_step(&value, &new, &change, &answer, &aged);
                    value = new;
                }
                Verdict::Deferred => {
                    prop_assert!(value.highest_token >= current.token, "only where the token is used up");
                }
            }
        }
    }
}
