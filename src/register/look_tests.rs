//! Looks at many registers: words in, a sight out, and what it answers.

use super::Kind;
use super::look::{Looker, Sight};
use super::proposer_tests::{Append, Appending, Numbers, ballot, stamp};
use crate::driver::{Action, Context, Machine, Word};
use crate::ids::{NodeIndex, ProposerId};
use crate::node::operation::{Answer, Looked, RegisterKey, Shown, Stamp};
use crate::node::wire;
use crate::quorum::ClusterSize;
use crate::runtime::Moment;
use crate::token::Token;

const SECOND_US: u64 = 1_000_000;

fn three() -> ClusterSize {
    ClusterSize::new(3).unwrap()
}

/// A record as a node stores it, with stamps that it has held since its clock began.
fn record(token: u64, value: &[u8], stamps: &[Stamp], copied: bool) -> Option<Shown> {
    let mut raw = Vec::new();
    let number = |raw: &mut Vec<u8>, number: u64| {
        rmp::encode::write_uint(raw, number).unwrap();
    };
    let text = |raw: &mut Vec<u8>, bytes: &[u8]| {
        rmp::encode::write_str_len(raw, bytes.len() as u32).unwrap();
        raw.extend_from_slice(bytes);
    };
    let ballot = ballot(token, ProposerId(1));
    // The promise, and the ballot.
    for _ in 0..2 {
        number(&mut raw, token);
        text(&mut raw, &1u64.to_be_bytes());
    }
    let (listed, no_place, due, guard) = (1, b"", 0, 0);
    number(&mut raw, copied.into());
    number(&mut raw, listed);
    text(&mut raw, no_place);
    number(&mut raw, due);
    number(&mut raw, guard);
    let held = |stamp: &Stamp| [&stamp.to_bytes()[..], format!("{:016}", 0).as_bytes()].concat();
    text(&mut raw, &stamps.iter().flat_map(held).collect::<Vec<_>>());
    text(&mut raw, &ballot.to_bytes());
    let no_vids_before = b"";
    text(&mut raw, no_vids_before);
    text(&mut raw, value);
    wire::show(&raw.into()).ok()
}

/// A record of so many numbers, stamped or not.
fn numbers(token: u64, count: u8, stamped: bool) -> Option<Shown> {
    let stamp = stamped.then(|| stamp(ballot(token, ProposerId(1))));
    let value = Appending::encode(&Numbers { numbers: (0..count).collect(), stamp });
    record(token, &value, stamp.as_slice(), false)
}

/// What a change finds where two of three nodes show this at this second; `None` for a round of its own.
fn found(change: &Append, rows: [Option<Shown>; 2], second: u64) -> Option<usize> {
    let now_us = second * SECOND_US;
    let answers = rows.into_iter().map(|row| Looked { now_us, rows: vec![None, row] }).collect();
    Sight { size: three(), answers, outstanding: 1 }.of::<Appending>(1)?.answer(change)
}

#[test]
fn a_look_is_answered_where_q_nodes_hold_one_value_that_is_committed() {
    let found = |rows| found(&Append::Look, rows, 0);
    let two = || numbers(5, 2, false);
    assert_eq!(found([two(), two()]), Some(2));
    assert_eq!(found([None, None]), Some(0), "absent");
    assert_eq!(found([two(), numbers(6, 3, false)]), None, "a write is half way");
    assert_eq!(found([two(), None]), None, "the first write is half way");
    let copied = two().map(|shown| Shown { copied: true, ..shown });
    assert_eq!(found([two(), copied]), None, "a copy took no part in the round");
}

#[test]
fn what_changes_something_is_for_a_round_of_its_own() {
    let stamped = || numbers(5, 2, true);
    let (look, change) = (Append::Look, Append::IfAged(9));
    assert_eq!(found(&change, [stamped(), stamped()], 10), Some(2), "not held for longer than ten seconds");
    assert_eq!(found(&change, [stamped(), stamped()], 11), None);
    assert_eq!(found(&look, [stamped(), stamped()], 11), Some(2));
    assert_eq!(found(&Append::One(9), [stamped(), stamped()], 0), None);
    assert_eq!(found(&Append::NotThisRound, [stamped(), stamped()], 0), None);
}

#[test]
fn q_words_make_a_sight_and_words_under_another_list_do_not_count() {
    // By node: an answer (+), one about more registers than were asked for (*), no word (-). R: sent again under another list.
    for (words, expected) in [
        ("0+", "waits"),
        ("0+ 0+", "waits"),
        ("0+ 2+", "sees"),
        ("0- 2+", "waits"),
        ("0- 2+ 1+", "sees"),
        ("0+ 1- 2-", "nothing"),
        ("0* 1+", "waits"),
        ("0* 1+ 2*", "nothing"),
        ("0+ R 1+", "waits"),
        ("0+ R 1+ 0+", "sees"),
    ] {
        let context = Context { now: Moment::ZERO, tokens: &|_| Token::ZERO, jitter: &|length| length };
        let mut looker = Looker::new([RegisterKey::new('t', "a")].into(), three());
        assert!(matches!(looker.start(&context), Action::Look(keys) if keys.len() == 1));
        let mut end = "waits";
        for word in words.split(' ') {
            let (node, rows) = match word.split_at(1) {
                ("R", _) => {
                    looker.on_resend();
                    continue;
                }
                (node, "+") => (node, Some(1)),
                (node, "*") => (node, Some(2)),
                (node, _) => (node, None),
            };
            let looked = |rows| Word::Answer(Answer::Looked(Looked { now_us: 0, rows: vec![None; rows] }));
            let word = rows.map_or(Word::Lost, looked);
            end = match looker.on_word(NodeIndex(node.parse().unwrap()), word, &context) {
                Action::Wait(None) => "waits",
                Action::Done(Some(sight)) if sight.answers.len() == 2 => "sees",
                Action::Done(None) => "nothing",
                other => panic!("{words}: {other:?}"),
            };
        }
        assert_eq!(end, expected, "{words}");
    }
}
