//! The checker against two others: one that tries every order, and `todc_utils::linearizability::WGLChecker`.

use proptest::prelude::*;
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History as Actions};
use todc_utils::specifications::Specification;

use super::*;
use crate::sim::random::Random;

/// A number from a small range, so that random answers are right often enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Read,
    Write(u8),
    Add(u8),
    /// Writes the second where the first is found.
    Swap(u8, u8),
}

/// What was asked, and the number before it.
type Call = (Asked, u8);

fn after(asked: Asked, before: u8) -> u8 {
    match asked {
        Asked::Read => before,
        Asked::Write(number) => number,
        Asked::Add(number) => (before + number) % 4,
        Asked::Swap(expected, number) => {
            if before == expected {
                number
            } else {
                before
            }
        }
    }
}

struct Number;

impl Model for Number {
    type State = u8;
    type Call = Call;

    fn initial(&self) -> u8 {
        0
    }

    fn step(&self, state: &u8, (asked, before): &Call, open: bool) -> Vec<u8> {
        if open || before == state { vec![after(*asked, *state)] } else { vec![] }
    }

    fn are_alike(&self, one: &Call, other: &Call) -> bool {
        one.0 == other.0
    }
}

/// A call with the places of its start and end.
type Placed = (Call, u64, Option<u64>);

fn timed(calls: &[Placed]) -> Vec<Timed<'_, Call>> {
    calls.iter().map(|(call, began, ended)| Timed { call, began: *began, ended: *ended }).collect()
}

const PLENTY: u64 = 10_000_000;

fn has_order(calls: &[Placed]) -> bool {
    match check(&Number, &timed(calls), PLENTY) {
        Verdict::Linearizable { order, .. } => {
            assert!(is_order(calls, &order), "not an order of {calls:?}: {order:?}");
            true
        }
        Verdict::Violated { .. } => false,
        Verdict::Undecided { .. } => panic!("undecided: {calls:?}"),
    }
}

/// Whether an order keeps to time, explains all answers and misses none.
fn is_order(calls: &[Placed], order: &[usize]) -> bool {
    let mut state = 0;
    for (place, at) in order.iter().enumerate() {
        let ((asked, before), began, ended) = calls[*at];
        let too_late = order[place + 1..].iter().any(|later| calls[*later].2.is_some_and(|end| end < began));
        if too_late || order[..place].contains(at) || ended.is_some() && before != state {
            return false;
        }
        state = after(asked, state);
    }
    (0..calls.len()).all(|at| calls[at].2.is_none() || order.contains(&at))
}

/// Every order, one after the other.
fn has_order_by_trying_all(calls: &[Placed], state: u8, left: u32) -> bool {
    let is_left = |at: &usize| left & (1 << at) != 0;
    let waited_for: Vec<u64> = (0..calls.len()).filter(is_left).filter_map(|at| calls[at].2).collect();
    waited_for.is_empty()
        || (0..calls.len()).filter(is_left).any(|at| {
            let ((asked, before), began, ended) = calls[at];
            let in_time = waited_for.iter().all(|end| began < *end);
            let fits = ended.is_none() || before == state;
            in_time && fits && has_order_by_trying_all(calls, after(asked, state), left & !(1 << at))
        })
}

struct NumberOfOthers;

impl Specification for NumberOfOthers {
    type State = u8;
    /// What was asked, and the number before it if it is known.
    type Operation = (Asked, Option<u8>);

    fn init() -> u8 {
        0
    }

    fn apply((asked, before): &(Asked, Option<u8>), state: &u8) -> (bool, u8) {
        (before.is_none_or(|before| before == *state), after(*asked, *state))
    }
}

/// That checker has no open calls. Each of ours can be done in every state, so that it never was and that it was the
/// last of all are the same: it gets its end there, with any answer.
fn has_order_by_others(calls: &[Placed]) -> bool {
    let mut events = Vec::new();
    for (number, ((asked, before), began, ended)) in calls.iter().enumerate() {
        let operation = (*asked, ended.map(|_| *before));
        events.push((*began, number, Action::Call(operation)));
        events.push((ended.unwrap_or(1_000_000 + number as u64), number, Action::Response(operation)));
    }
    events.sort_by_key(|(place, ..)| *place);
    let actions = events.into_iter().map(|(_, number, action)| (number, action)).collect();
    WGLChecker::<NumberOfOthers>::is_linearizable(Actions::from_actions(actions))
}

fn asked() -> impl Strategy<Value = Asked> {
    prop_oneof![
        Just(Asked::Read),
        (0..4u8).prop_map(Asked::Write),
        (1..3u8).prop_map(Asked::Add),
        (0..4u8, 0..4u8).prop_map(|(expected, number)| Asked::Swap(expected, number)),
    ]
}

/// Calls with random answers; about one in four is open.
fn calls(most: usize) -> impl Strategy<Value = Vec<Placed>> {
    let call = (asked(), 0..4u8, any::<u32>(), 0..u32::MAX / 4, 0..4u8);
    prop::collection::vec(call, 1..=most).prop_map(|calls| {
        // Wishes for places, then places: no two events share one.
        let wishes = |(number, (_, _, start, length, _)): (usize, &(Asked, u8, u32, u32, u8))| {
            let start = u64::from(*start);
            [(start, 2 * number), (start + u64::from(*length) + 1, 2 * number + 1)]
        };
        let mut places: Vec<(u64, usize)> = calls.iter().enumerate().flat_map(wishes).collect();
        places.sort_unstable();
        let place = |event: usize| places.iter().position(|(_, of)| *of == event).unwrap() as u64;
        let placed = calls.iter().enumerate().map(|(number, (asked, before, _, _, open))| {
            let ended = (*open > 0).then(|| place(2 * number + 1));
            ((*asked, *before), place(2 * number), ended)
        });
        placed.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn it_agrees_with_one_that_tries_all_orders(calls in calls(7)) {
        prop_assert_eq!(has_order(&calls), has_order_by_trying_all(&calls, 0, (1 << calls.len()) - 1));
    }

    #[test]
    fn it_agrees_with_the_checker_of_others(calls in calls(10)) {
        prop_assert_eq!(has_order(&calls), has_order_by_others(&calls));
    }

    #[test]
    fn it_agrees_with_the_checker_of_others_on_long_histories(seed in any::<u64>(), spoilt in any::<bool>()) {
        let calls = lived(&mut Random::new(seed), 40, 5, 4, spoilt);
        prop_assert_eq!(has_order(&calls), has_order_by_others(&calls));
    }
}

/// What clients of a number that works see: so many calls by so many clients, and so many of them open. A spoilt
/// history has one answer changed.
fn lived(random: &mut Random, count: usize, clients: usize, open: usize, spoilt: bool) -> Vec<Placed> {
    let (mut state, mut place) = (0, 0);
    let mut calls: Vec<Placed> = Vec::new();
    // What each client has under way: the call, and whether it has taken effect.
    let mut under_way: Vec<Option<(usize, bool)>> = vec![None; clients];
    while calls.len() < count || under_way.iter().any(Option::is_some) {
        place += 1;
        let client = random.below(clients as u64) as usize;
        match under_way[client] {
            None if calls.len() < count => {
                let asked = match random.below(4) {
                    0 => Asked::Read,
                    1 => Asked::Write(random.below(4) as u8),
                    2 => Asked::Add(1 + random.below(2) as u8),
                    _ => Asked::Swap(random.below(4) as u8, random.below(4) as u8),
                };
                under_way[client] = Some((calls.len(), false));
                calls.push(((asked, 0), place, None));
            }
            None => {}
            Some((at, false)) => {
                calls[at].0.1 = state;
                state = after(calls[at].0.0, state);
                under_way[client] = Some((at, true));
            }
            Some((at, true)) => {
                calls[at].2 = Some(place);
                under_way[client] = None;
            }
        }
    }
    for _ in 0..open {
        calls[random.below(count as u64) as usize].2 = None;
    }
    if spoilt {
        let before = &mut calls[random.below(count as u64) as usize].0.1;
        *before = (*before + 1) % 4;
    }
    calls
}

#[test]
fn two_hundred_calls_with_ten_open_ones_are_decided() {
    let mut most = 0;
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let spoilt = random.chance(50);
        let calls = lived(&mut random, 200, 10, 10, spoilt);
        match check(&Number, &timed(&calls), PLENTY) {
            Verdict::Linearizable { order, steps } => {
                assert!(is_order(&calls, &order), "seed {seed}");
                most = most.max(steps);
            }
            Verdict::Violated { steps, .. } => {
                assert!(spoilt, "seed {seed}");
                most = most.max(steps);
            }
            Verdict::Undecided { .. } => panic!("seed {seed}"),
        }
    }
    println!("at most {most} steps");
}

#[test]
fn who_has_no_steps_left_says_so() {
    let calls = lived(&mut Random::new(1), 50, 5, 3, false);
    assert_eq!(check(&Number, &timed(&calls), 20), Verdict::Undecided { steps: 20 });
}

#[test]
fn the_first_answer_that_nothing_explains_is_named() {
    let write = |number, began, ended| ((Asked::Write(number), 0), began, Some(ended));
    let read = |number, began, ended| ((Asked::Read, number), began, Some(ended));
    let calls = [write(1, 0, 1), read(1, 2, 3), read(0, 4, 5), read(1, 6, 7), read(3, 8, 9)];
    assert_eq!(first_unexplained(&Number, &timed(&calls), PLENTY), Some(2));
    let Verdict::Violated { order, state, .. } = check(&Number, &timed(&calls), PLENTY) else { panic!() };
    assert_eq!((order, state), (vec![0, 1], 1));
}

#[test]
fn an_open_call_takes_effect_late_or_never_and_never_before_its_start() {
    let open = |number, began| ((Asked::Write(number), 0), began, None);
    let read = |number, began, ended| ((Asked::Read, number), began, Some(ended));
    for (calls, expected) in [
        (vec![open(1, 0), read(0, 1, 2), read(0, 3, 4)], true),
        (vec![open(1, 0), read(0, 1, 2), read(1, 3, 4)], true),
        (vec![open(1, 0), read(1, 1, 2), read(0, 3, 4)], false),
        (vec![read(1, 0, 1), open(1, 2)], false),
        (vec![read(1, 0, 3), open(1, 2)], true),
    ] {
        assert_eq!(has_order(&calls), expected, "{calls:?}");
    }
}
