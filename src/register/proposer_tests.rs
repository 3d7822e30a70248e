//! The proposer, step by step: words in, exact actions out.

use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;

use super::proposer::{Claim, Decided, Entry, Fate, Proposer, Warm};
use super::{Attempt, Kind, Promised, Publish, Verdict};
use crate::driver::{Action, Context, Machine, Word};
use crate::ids::{NodeIndex, ProposerId};
use crate::node::operation::{Accept, Answer, Operation, Record, RegisterKey, Stamp};
use crate::quorum::ClusterSize;
use crate::runtime::Moment;
use crate::token::{Ballot, Token};

/// A register that holds a list of numbers; a change appends one, and says how many there are then.
#[derive(Debug)]
pub(super) struct Appending;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Append {
    One(u8),
    /// Only if the stamp of the last append has aged by ten seconds.
    IfAged(u8),
    Nothing,
    /// A look.
    Look,
    NotThisRound,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub(super) numbers: Vec<u8>,
    pub(super) stamp: Option<Stamp>,
}

const TEN: Duration = Duration::from_secs(10);

impl Kind for Appending {
    const LETTER: char = 't';
    type Value = Numbers;
    type Change = Append;
    type Answer = usize;

    fn encode(value: &Numbers) -> Bytes {
        let mut bytes = value.numbers.clone();
        bytes.extend(value.stamp.iter().flat_map(|stamp| stamp.to_bytes()));
        bytes.push(u8::from(value.stamp.is_some()));
        bytes.into()
    }

    fn decode(bytes: &[u8]) -> Result<Numbers, String> {
        let Some((stamped, rest)) = bytes.split_last() else { return Ok(Numbers::default()) };
        if *stamped == 0 {
            return Ok(Numbers { numbers: rest.to_vec(), stamp: None });
        }
        let (numbers, stamp) = rest.split_at(rest.len() - Stamp::BYTES);
        Ok(Numbers { numbers: numbers.to_vec(), stamp: Stamp::from_bytes(stamp) })
    }

    fn apply(change: &Append, old: &Numbers, attempt: &Attempt<'_>) -> Verdict<Numbers, usize> {
        let aged = || old.stamp.is_none_or(|stamp| attempt.ages.is_aged(stamp, TEN));
        match change {
            Append::NotThisRound => Verdict::Deferred,
            Append::Nothing | Append::Look => Verdict::Unchanged(old.numbers.len()),
            Append::IfAged(_) if !aged() => Verdict::Unchanged(old.numbers.len()),
            Append::One(number) | Append::IfAged(number) => {
                let mut numbers = old.numbers.clone();
                numbers.push(*number);
                let answer = numbers.len();
                Verdict::Changed(Numbers { numbers, stamp: Some(stamp(attempt.ballot)) }, answer)
            }
        }
    }

    fn is_glance(change: &Append) -> bool {
        matches!(change, Append::IfAged(_) | Append::Look)
    }

    fn is_look(change: &Append) -> bool {
        *change == Append::Look
    }

    fn stamps(value: &Numbers) -> Vec<(Stamp, Duration)> {
        value.stamp.iter().map(|stamp| (*stamp, TEN)).collect()
    }

    fn is_guarded(value: &Numbers) -> bool {
        value.stamp.is_some()
    }

    fn is_listed(_: &Numbers) -> bool {
        false
    }

    fn publish(_: &Numbers, _: &Numbers) -> Publish {
        Publish::default()
    }
}

const ME: ProposerId = ProposerId(1);
const OTHER: ProposerId = ProposerId(2);

pub(super) fn ballot(token: u64, proposer: ProposerId) -> Ballot {
    Ballot { token: Token::new(token).unwrap(), proposer }
}

pub(super) fn stamp(ballot: Ballot) -> Stamp {
    Stamp { ballot, ordinal: 0 }
}

/// A proposer among three nodes, whose tokens are 100, 101, …
struct Bench {
    proposer: Proposer<Appending>,
    claims: Vec<std::sync::Arc<Claim>>,
    token: Cell<u64>,
    now: Moment,
}

type Step = Action<Decided<Appending>>;

impl Bench {
    fn new(changes: &[Append]) -> Self {
        Self::warm(changes, None)
    }

    fn warm(changes: &[Append], warm: Option<Warm<Numbers>>) -> Self {
        let claims: Vec<_> = changes.iter().map(|_| std::sync::Arc::new(Claim::default())).collect();
        let entry = |(change, claim): (&Append, &std::sync::Arc<Claim>)| Entry {
            change: change.clone(),
            claim: claim.clone(),
        };
        let entries = changes.iter().zip(&claims).map(entry).collect();
        let size = ClusterSize::new(3).unwrap();
        let proposer = Proposer::new(RegisterKey::new('t', "x"), size, ME, entries, warm);
        Self { proposer, claims, token: Cell::new(99), now: Moment::from_start(Duration::from_secs(1_000)) }
    }

    fn with<T>(&mut self, call: impl FnOnce(&mut Proposer<Appending>, &Context<'_>) -> T) -> T {
        let token = &self.token;
        let tokens = |above: Token| {
            token.set(token.get().max(above.get()) + 1);
            Token::new(token.get()).unwrap()
        };
        call(&mut self.proposer, &Context { now: self.now, tokens: &tokens, jitter: &|most| most })
    }

    fn start(&mut self) -> Step {
        self.with(|proposer, context| proposer.start(context))
    }

    fn hear(&mut self, node: u8, word: Word) -> Step {
        self.with(|proposer, context| proposer.on_word(NodeIndex(node), word, context))
    }

    fn wake(&mut self) -> Step {
        self.with(|proposer, context| proposer.on_wake(context))
    }

    /// The same word from nodes 0 and 1: a quorum.
    fn hear_two(&mut self, word: &Word) -> Step {
        assert!(matches!(self.hear(0, word.clone()), Action::Wait(None)));
        self.hear(1, word.clone())
    }
}

fn record(at: Ballot, vid: Ballot, recent: &[Ballot], value: &Numbers, age: Duration) -> Record {
    Record {
        promise: at,
        ballot: at,
        value: if at == Ballot::ZERO { Bytes::new() } else { Appending::encode(value) },
        vid,
        recent: recent.to_vec(),
        ages: value.stamp.iter().map(|stamp| (*stamp, age)).collect(),
        copied: false,
        listed: true,
        guard: Duration::ZERO,
        place: None,
    }
}

fn absent() -> Record {
    record(Ballot::ZERO, Ballot::ZERO, &[], &Numbers::default(), Duration::ZERO)
}

fn numbers(numbers: &[u8]) -> Numbers {
    Numbers { numbers: numbers.to_vec(), stamp: None }
}

fn promised(record: Record) -> Word {
    Word::Answer(Answer::Promised { record, floor: Ballot::ZERO })
}

fn accepted() -> Word {
    Word::Answer(Answer::Accepted)
}

fn conflict(token: u64) -> Word {
    Word::Answer(Answer::Conflict { promise: ballot(token, OTHER) })
}

fn prepare_of(step: &Step) -> (Ballot, bool) {
    match step {
        Action::Send(Operation::Prepare { ballot, soft, .. }) => (*ballot, *soft),
        other => panic!("a prepare was expected: {other:?}"),
    }
}

fn accept_of(step: &Step) -> std::sync::Arc<Accept> {
    match step {
        Action::Send(Operation::Accept(accept)) => accept.clone(),
        other => panic!("an accept was expected: {other:?}"),
    }
}

fn decided(step: Step) -> Decided<Appending> {
    match step {
        Action::Done(decided) => decided,
        other => panic!("the end was expected: {other:?}"),
    }
}

fn answers(decided: &Decided<Appending>) -> Vec<Option<usize>> {
    let answer = |fate: &Fate<usize>| match fate {
        Fate::Done { answer, .. } => Some(*answer),
        _ => None,
    };
    decided.fates.iter().map(answer).collect()
}

/// Runs a first append to its end and returns what it leaves warm.
fn warm_after_one() -> Warm<Numbers> {
    let mut bench = Bench::new(&[Append::One(1)]);
    bench.start();
    bench.hear_two(&promised(absent()));
    decided(bench.hear_two(&accepted())).warm.expect("a committed accept leaves a promise")
}

#[test]
fn a_cold_change_takes_two_rounds_and_leaves_a_promise() {
    let mut bench = Bench::new(&[Append::One(1), Append::One(2)]);
    let (at, soft) = prepare_of(&bench.start());
    assert_eq!((at, soft), (ballot(100, ME), false));
    let accept = accept_of(&bench.hear_two(&promised(absent())));
    assert_eq!((accept.ballot, accept.vid), (ballot(100, ME), ballot(100, ME)));
    assert_eq!(accept.recent, [Ballot::ZERO], "absent is the value before it");
    assert_eq!(accept.next.get(), 102, "101 is the token of the group's second change");
    let expected = Numbers { numbers: vec![1, 2], stamp: Some(stamp(ballot(100, ME))) };
    assert_eq!(accept.value, Appending::encode(&expected));
    let end = decided(bench.hear_two(&accepted()));
    assert_eq!(answers(&end), [Some(1), Some(2)]);
    assert!(end.warm.is_some());
}

#[test]
fn a_warm_change_takes_one_round() {
    let mut bench = Bench::warm(&[Append::One(2)], Some(warm_after_one()));
    bench.token.set(101);
    let accept = accept_of(&bench.start());
    assert_eq!(accept.ballot, ballot(101, ME), "the promise that the first accept left");
    assert_eq!(accept.recent, [ballot(100, ME), Ballot::ZERO]);
    assert_eq!(answers(&decided(bench.hear_two(&accepted()))), [Some(2)]);
}

#[test]
fn a_warm_value_is_never_the_answer_itself() {
    let mut bench = Bench::warm(&[Append::Nothing], Some(warm_after_one()));
    let step = bench.start();
    assert!(matches!(step, Action::Send(Operation::Read { .. })), "{step:?}");
    // Another daemon has appended since.
    let value = numbers(&[1, 9]);
    let held = record(ballot(150, OTHER), ballot(150, OTHER), &[ballot(100, ME)], &value, TEN);
    let read = Word::Answer(Answer::Record(Some(held)));
    assert_eq!(answers(&decided(bench.hear_two(&read))), [Some(2)]);
}

#[test]
fn a_stamp_that_may_have_aged_takes_the_cold_path() {
    let mut bench = Bench::warm(&[Append::IfAged(2)], Some(warm_after_one()));
    bench.now = bench.now + TEN;
    prepare_of(&bench.start());
}

#[test]
fn what_q_hold_needs_no_write_and_what_fewer_hold_does() {
    let value = numbers(&[1]);
    let held = record(ballot(50, OTHER), ballot(50, OTHER), &[], &value, TEN);
    let mut bench = Bench::new(&[Append::Nothing]);
    bench.start();
    assert_eq!(answers(&decided(bench.hear_two(&promised(held.clone())))), [Some(1)]);

    let mut bench = Bench::new(&[Append::Nothing]);
    bench.start();
    bench.hear(0, promised(held.clone()));
    let accept = accept_of(&bench.hear(1, promised(absent())));
    assert_eq!(
        (accept.ballot, accept.vid),
        (ballot(100, ME), ballot(50, OTHER)),
        "a write-back keeps the vid"
    );
    assert_eq!(answers(&decided(bench.hear_two(&accepted()))), [Some(1)]);

    let copied = Record { copied: true, ..held };
    let mut bench = Bench::new(&[Append::Nothing]);
    bench.start();
    bench.hear(0, promised(copied.clone()));
    accept_of(&bench.hear(1, promised(copied)));
}

#[test]
fn a_conflict_is_retried_above_it_after_a_rest() {
    let mut bench = Bench::new(&[Append::One(1)]);
    bench.start();
    bench.hear(0, conflict(500));
    let Action::Rest(length) = bench.hear(1, conflict(500)) else { panic!("a rest was expected") };
    assert!(length > Duration::ZERO);
    let (at, _) = prepare_of(&bench.wake());
    assert!(at > ballot(100, ME));
}

#[test]
fn the_pause_after_a_conflict_goes_by_how_long_the_round_took() {
    // What rounds take, and the longest pause after each.
    for (round_ms, pauses_us) in
        [(0, [500, 1_000, 2_000]), (10, [20_000, 40_000, 80_000]), (200, [250_000; 3])]
    {
        let mut bench = Bench::new(&[Append::One(1)]);
        let mut step = bench.start();
        for pause in pauses_us {
            prepare_of(&step);
            bench.now = bench.now + Duration::from_millis(round_ms);
            step = bench.hear_two(&conflict(50));
            assert!(matches!(step, Action::Rest(most) if most == Duration::from_micros(pause)), "{step:?}");
            step = bench.wake();
        }
    }
}

#[test]
fn after_an_accept_was_sent_the_retry_finds_its_own_attempt_and_does_not_apply_twice() {
    for recent_has_it in [false, true] {
        let mut bench = Bench::new(&[Append::One(7)]);
        bench.start();
        let first = accept_of(&bench.hear_two(&promised(absent())));
        bench.hear(0, Word::Lost);
        assert!(matches!(bench.hear(1, Word::Lost), Action::Rest(_)));
        prepare_of(&bench.wake());
        // Either it is the value, or another daemon has gone on from it.
        let own = Numbers { numbers: vec![7], stamp: Some(stamp(first.ballot)) };
        let found = if recent_has_it {
            record(
                ballot(300, OTHER),
                ballot(300, OTHER),
                &[first.ballot, Ballot::ZERO],
                &numbers(&[7, 8]),
                TEN,
            )
        } else {
            record(first.ballot, first.vid, &[Ballot::ZERO], &own, TEN)
        };
        let accept = accept_of(&bench.hear_two(&promised(found.clone())));
        assert_eq!(accept.value, found.value, "it is finished as it is");
        assert_eq!(accept.vid, found.vid);
        let end = decided(bench.hear_two(&accepted()));
        assert_eq!(answers(&end), [Some(1)], "as the first attempt would have answered");
        assert!(matches!(end.fates[0], Fate::Done { ballot, .. } if ballot == first.ballot));
    }
}

#[test]
fn the_retry_applies_again_only_where_the_history_is_complete() {
    let base = record(ballot(50, OTHER), ballot(50, OTHER), &[ballot(40, OTHER)], &numbers(&[1]), TEN);
    let complete = record(ballot(60, OTHER), ballot(60, OTHER), &[ballot(50, OTHER)], &numbers(&[1, 2]), TEN);
    let gap = record(ballot(99, OTHER), ballot(99, OTHER), &[ballot(98, OTHER)], &numbers(&[3]), TEN);
    for (found, again) in [(base.clone(), true), (complete, true), (gap, false), (absent(), false)] {
        let mut bench = Bench::new(&[Append::One(7)]);
        bench.start();
        accept_of(&bench.hear_two(&promised(base.clone())));
        bench.hear(0, Word::Lost);
        bench.hear(1, Word::Lost);
        bench.wake();
        let step = bench.hear_two(&promised(found.clone()));
        if again {
            let accept = accept_of(&step);
            assert_eq!(accept.vid, accept.ballot, "a new attempt: {found:?}");
        } else {
            assert_eq!(decided(step).fates, [Fate::Unknown], "{found:?}");
        }
    }
}

#[test]
fn an_attempt_on_absent_is_applied_again_only_under_a_low_floor() {
    for (floor, again) in
        [(ballot(99, OTHER), true), (ballot(100, OTHER), false), (ballot(5_000, OTHER), false)]
    {
        let mut bench = Bench::new(&[Append::One(7)]);
        bench.start();
        accept_of(&bench.hear_two(&promised(absent())));
        bench.hear(0, Word::Lost);
        bench.hear(1, Word::Lost);
        bench.wake();
        bench.hear(0, promised(absent()));
        let step = bench.hear(1, Word::Answer(Answer::Promised { record: absent(), floor }));
        match step {
            Action::Send(_) => assert!(again, "floor {floor}"),
            step => {
                assert!(!again, "floor {floor}");
                assert_eq!(decided(step).fates, [Fate::Unknown]);
            }
        }
    }
}

#[test]
fn no_answer_without_an_accept_once_one_was_sent() {
    let aged = stamp(ballot(50, OTHER));
    let value = Numbers { numbers: vec![1], stamp: Some(aged) };
    let base = record(ballot(50, OTHER), ballot(50, OTHER), &[], &value, TEN * 2);
    let mut bench = Bench::new(&[Append::IfAged(7)]);
    bench.start();
    accept_of(&bench.hear_two(&promised(base)));
    bench.hear(0, Word::Lost);
    bench.hear(1, Word::Lost);
    bench.wake();
    // Somebody else was first, so the change has nothing to do; the lone old accept must still be buried.
    let newer = Numbers { numbers: vec![1, 2], stamp: Some(stamp(ballot(60, OTHER))) };
    let found = record(ballot(60, OTHER), ballot(60, OTHER), &[ballot(50, OTHER)], &newer, Duration::ZERO);
    let accept = accept_of(&bench.hear_two(&promised(found)));
    assert_eq!(accept.vid, ballot(60, OTHER));
    assert_eq!(answers(&decided(bench.hear_two(&accepted()))), [Some(2)]);
}

#[test]
fn giving_up_says_what_is_certain() {
    let mut bench = Bench::new(&[Append::One(7)]);
    bench.start();
    assert_eq!(bench.proposer.give_up().fates, [Fate::NotApplied]);

    let mut bench = Bench::new(&[Append::One(7)]);
    bench.start();
    bench.hear_two(&promised(absent()));
    bench.hear(0, accepted());
    assert_eq!(bench.proposer.give_up().fates, [Fate::Unknown]);
}

#[test]
fn an_accept_that_all_refused_was_never_sent() {
    let mut bench = Bench::new(&[Append::One(7)]);
    bench.start();
    bench.hear_two(&promised(absent()));
    bench.hear(2, Word::Refused);
    bench.hear(0, Word::Refused);
    bench.hear(1, Word::Refused);
    assert_eq!(bench.proposer.give_up().fates, [Fate::NotApplied]);
    assert!(bench.claims[0].withdraw(), "it may be taken back again");
}

#[test]
fn a_change_can_be_taken_back_until_its_accept_is_sent() {
    let mut bench = Bench::new(&[Append::One(1), Append::One(2)]);
    bench.start();
    assert!(bench.claims[0].withdraw());
    let accept = accept_of(&bench.hear_two(&promised(absent())));
    let expected = Numbers { numbers: vec![2], stamp: Some(stamp(ballot(100, ME))) };
    assert_eq!(accept.value, Appending::encode(&expected));
    assert!(!bench.claims[1].withdraw(), "too late");
    let end = decided(bench.hear_two(&accepted()));
    assert_eq!(end.fates[0], Fate::Withdrawn);
    assert_eq!(answers(&end)[1], Some(1));
}

#[test]
fn what_is_deferred_keeps_its_place_and_what_follows_stays_behind_it() {
    let mut bench = Bench::new(&[Append::One(1), Append::NotThisRound, Append::One(3)]);
    bench.start();
    bench.hear_two(&promised(absent()));
    let end = decided(bench.hear_two(&accepted()));
    assert_eq!(answers(&end), [Some(1), None, None]);
    assert_eq!(end.fates[1..], [Fate::Deferred, Fate::Deferred]);
}

#[test]
fn a_glance_at_a_guarded_record_promises_nothing_and_answers() {
    let value = Numbers { numbers: vec![1], stamp: Some(stamp(ballot(50, OTHER))) };
    let guarded = record(ballot(50, OTHER), ballot(50, OTHER), &[], &value, Duration::from_secs(1));
    let held = Word::Answer(Answer::Held { record: guarded.clone() });
    let mut bench = Bench::new(&[Append::IfAged(2)]);
    assert!(prepare_of(&bench.start()).1, "soft");
    assert_eq!(answers(&decided(bench.hear_two(&held))), [Some(1)]);

    // One node shows it, one promises: enough for an answer, not for a change.
    let old = record(ballot(50, OTHER), ballot(50, OTHER), &[], &value, TEN * 2);
    let mut bench = Bench::new(&[Append::IfAged(2)]);
    bench.start();
    bench.hear(0, Word::Answer(Answer::Held { record: old.clone() }));
    let step = bench.hear(1, promised(old));
    assert!(!prepare_of(&step).1, "a change needs promises: {step:?}");
}

#[test]
fn where_clocks_disagree_the_machine_listens_longer_before_it_says_not_aged() {
    let value = Numbers { numbers: vec![1], stamp: Some(stamp(ballot(50, OTHER))) };
    let held =
        |seconds| record(ballot(50, OTHER), ballot(50, OTHER), &[], &value, Duration::from_secs(seconds));
    let mut bench = Bench::new(&[Append::IfAged(2)]);
    bench.start();
    bench.hear(0, promised(held(0)));
    let step = bench.hear(1, promised(held(11)));
    assert!(matches!(step, Action::Wait(Some(_))), "one says aged, one not, one is out: {step:?}");
    accept_of(&bench.hear(2, promised(held(11))));

    let mut bench = Bench::new(&[Append::IfAged(2)]);
    bench.start();
    bench.hear(0, promised(held(0)));
    bench.hear(1, promised(held(11)));
    assert_eq!(answers(&decided(bench.wake())), [Some(1)], "nobody else spoke up");
}

#[test]
fn a_round_sent_again_under_another_list_counts_anew() {
    let mut bench = Bench::new(&[Append::One(1)]);
    bench.start();
    bench.hear(0, promised(absent()));
    bench.proposer.on_resend();
    assert!(
        matches!(bench.hear(1, promised(absent())), Action::Wait(None)),
        "one under each list is no quorum"
    );
    accept_of(&bench.hear(0, promised(absent())));
    bench.hear(0, accepted());
    bench.proposer.on_resend();
    for node in 0..3 {
        bench.hear(node, Word::Refused);
    }
    assert_eq!(bench.proposer.give_up().fates, [Fate::Unknown], "a node took it under the other list");
}

fn read(record: &Record) -> Word {
    Word::Answer(Answer::Record(Some(record.clone())))
}

fn is_read(step: &Step) -> bool {
    matches!(step, Action::Send(Operation::Read { .. }))
}

#[test]
fn looks_share_one_read_and_take_nobodys_promise() {
    let held = record(ballot(50, OTHER), ballot(50, OTHER), &[], &numbers(&[1, 2]), TEN);
    let mut bench = Bench::new(&[Append::Look, Append::Look]);
    assert!(is_read(&bench.start()));
    assert_eq!(answers(&decided(bench.hear_two(&read(&held)))), [Some(2), Some(2)]);

    let mut bench = Bench::new(&[Append::Look, Append::One(3)]);
    prepare_of(&bench.start());
}

#[test]
fn a_look_that_meets_a_write_gives_it_a_moment_before_it_finishes_it() {
    let old = record(ballot(50, OTHER), ballot(50, OTHER), &[], &numbers(&[1]), TEN);
    let new = record(ballot(60, OTHER), ballot(60, OTHER), &[ballot(50, OTHER)], &numbers(&[1, 2]), TEN);
    let mut bench = Bench::new(&[Append::Look]);
    bench.start();
    let meet = |bench: &mut Bench| {
        bench.hear(0, read(&new));
        assert!(matches!(bench.hear(1, read(&old)), Action::Wait(Some(_))), "the third may settle it");
        bench.hear(2, read(&old))
    };
    for _ in 0..3 {
        assert!(matches!(meet(&mut bench), Action::Rest(_)));
        assert!(is_read(&bench.wake()));
    }
    assert!(prepare_of(&meet(&mut bench)).1, "its writer has stopped: it is finished now");
    bench.hear(0, promised(new.clone()));
    let accept = accept_of(&bench.hear(1, promised(old)));
    assert_eq!(accept.vid, new.vid, "as it was written");
    assert_eq!(answers(&decided(bench.hear_two(&accepted()))), [Some(2)]);

    let mut bench = Bench::new(&[Append::Look]);
    bench.start();
    bench.hear(0, read(&new));
    assert_eq!(answers(&decided(bench.hear(1, read(&new)))), [Some(2)], "it was over in time");
}

/// Promises that nodes gave for a claim under token 90.
fn given(nodes: &[u8], record: &Record) -> Promised {
    let list = crate::members::MemberList {
        entries: Vec::new(),
        founding: false,
        ttl_max_ms: 0,
        recovery: None,
        loss: crate::members::Loss::None,
        before: Vec::new(),
    };
    let view = std::sync::Arc::new(crate::members::View { vid: Ballot::ZERO, list, grants: true });
    let records = nodes.iter().map(|node| (NodeIndex(*node), record.clone())).collect();
    Promised { ballot: ballot(90, ME), records, floor: Ballot::ZERO, view }
}

fn after_claim(nodes: &[u8], record: &Record) -> Bench {
    let bench = Bench::new(&[Append::One(2)]);
    Bench { proposer: bench.proposer.with_promises(given(nodes, record)), ..bench }
}

#[test]
fn what_q_nodes_promised_for_a_claim_needs_no_prepare() {
    let held = record(ballot(7, OTHER), ballot(7, OTHER), &[], &numbers(&[1]), Duration::ZERO);
    let mut bench = after_claim(&[0, 2], &held);
    let accept = accept_of(&bench.start());
    assert_eq!((accept.ballot, accept.vid), (ballot(90, ME), ballot(90, ME)));
    let expected = Numbers { numbers: vec![1, 2], stamp: Some(stamp(ballot(90, ME))) };
    assert_eq!(accept.value, Appending::encode(&expected));
    assert_eq!(answers(&decided(bench.hear_two(&accepted()))), [Some(2)]);
}

#[test]
fn what_fewer_promised_for_a_claim_is_prepared_on_all_under_the_same_ballot() {
    let held = record(ballot(7, OTHER), ballot(7, OTHER), &[], &numbers(&[1]), Duration::ZERO);
    let mut bench = after_claim(&[2], &held);
    assert_eq!(prepare_of(&bench.start()), (ballot(90, ME), false));
    // Somebody else's later value is on the others.
    let later = record(ballot(80, OTHER), ballot(80, OTHER), &[], &numbers(&[1, 5]), Duration::ZERO);
    let accept = accept_of(&bench.hear_two(&promised(later)));
    let expected = Numbers { numbers: vec![1, 5, 2], stamp: Some(stamp(ballot(90, ME))) };
    assert_eq!((accept.ballot, &accept.value), (ballot(90, ME), &Appending::encode(&expected)));
}

#[test]
fn a_claim_that_was_overtaken_goes_on_under_a_higher_ballot() {
    let held = record(ballot(7, OTHER), ballot(7, OTHER), &[], &numbers(&[1]), Duration::ZERO);
    let mut bench = after_claim(&[0, 1], &held);
    accept_of(&bench.start());
    assert!(matches!(bench.hear(0, conflict(95)), Action::Wait(None)));
    assert!(matches!(bench.hear(1, conflict(95)), Action::Wait(_)));
    assert!(matches!(bench.hear(2, conflict(95)), Action::Rest(_)));
    let (next, soft) = prepare_of(&bench.wake());
    assert!(next > ballot(95, OTHER) && !soft);
}

#[test]
fn a_name_that_nobody_else_can_know_is_written_in_one_round() {
    let first = ballot(100, ME);
    let mut bench = Bench::warm(&[Append::One(1)], Some(Warm::absent(first)));
    bench.token.set(100);
    let accept = accept_of(&bench.start());
    assert_eq!((accept.ballot, accept.recent.as_slice()), (first, &[Ballot::ZERO][..]));
    assert_eq!(answers(&decided(bench.hear_two(&accepted()))), [Some(1)]);
}

#[test]
fn a_first_write_that_the_floor_refuses_is_tried_again_from_above_it() {
    let mut bench = Bench::warm(&[Append::One(1)], Some(Warm::absent(ballot(100, ME))));
    bench.token.set(100);
    accept_of(&bench.start());
    assert!(matches!(bench.hear(0, conflict(500)), Action::Wait(None)));
    assert!(matches!(bench.hear(1, conflict(500)), Action::Wait(_)));
    assert!(matches!(bench.hear(2, conflict(500)), Action::Rest(_)));
    bench.token.set(500);
    prepare_of(&bench.wake());
    let accept = accept_of(&bench.hear_two(&promised(absent())));
    assert!(accept.ballot > ballot(500, OTHER));
}

#[test]
fn what_finds_nothing_after_a_doubt_is_applied_only_if_nothing_can_have_been_forgotten() {
    let floor = |token| Word::Answer(Answer::Promised { record: absent(), floor: ballot(token, OTHER) });
    let held = record(ballot(7, OTHER), ballot(7, OTHER), &[], &numbers(&[1]), Duration::ZERO);
    let there = Word::Answer(Answer::Promised { record: held, floor: ballot(95, OTHER) });
    // What a quorum shows, and whether it is applied; the attempt in doubt was under 90.
    for (word, applied) in [(floor(89), true), (floor(90), false), (floor(95), false), (there, true)] {
        let bench = Bench::new(&[Append::One(2)]);
        let mut bench = Bench { proposer: bench.proposer.after_doubt(ballot(90, ME)), ..bench };
        prepare_of(&bench.start());
        let step = bench.hear_two(&word);
        match applied {
            true => drop(accept_of(&step)),
            false => assert_eq!(decided(step).fates, [Fate::Unknown], "{word:?}"),
        }
    }
}
