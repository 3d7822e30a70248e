//! The checker of the cells' histories, held against one that we did not write. Asks for the feature `sim`.
#![cfg(feature = "sim")]

use majorityd::sim::cell::{CellCall, CellModel, CellState, CellTold};
use majorityd::sim::cells::{Judged, judge, timed};
use majorityd::sim::history::{Calls, Fate};
use majorityd::sim::judge::CELL_STEPS_MAX as STEPS_MAX;
use majorityd::sim::key::KeyTold;
use majorityd::sim::keys;
use majorityd::sim::linearizable::{Model, Timed, Verdict, check};
use majorityd::sim::random::Random;
use majorityd::sim::run::run;
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History as Actions};
use todc_utils::specifications::Specification;

/// How much of a history is shown to the other checker.
const OTHERS_CALLS: usize = 40;
const OTHERS_OPEN: usize = 6;

#[test]
fn hardly_a_history_is_left_undecided_and_all_fates_occur() {
    let (mut answered, mut unknown, mut not_applied, mut undecided) = (0, 0, 0, 0);
    for seed in 1..=10 {
        let judged = judge(&run(seed).cells, STEPS_MAX).expect("an order");
        answered += judged.answered;
        unknown += judged.unknown;
        not_applied += judged.not_applied;
        undecided += judged.undecided.len();
    }
    println!("{answered} answered, {not_applied} not applied, {unknown} unknown, {undecided} undecided");
    assert!(answered > 500 && unknown > 10 && not_applied > 10);
    // What can't be decided proves nothing, so it must stay rare.
    assert!(undecided <= 1);
}

#[test]
fn of_keys_too_and_requests_are_sent_again() {
    let (mut all, mut undecided, mut repeated, mut refused) = (Judged::default(), 0, 0, 0);
    for seed in 1..=20 {
        let history = run(seed).keys;
        let judged = keys::judge(&history, STEPS_MAX).expect("an order");
        all.answered += judged.answered;
        all.unknown += judged.unknown;
        all.not_applied += judged.not_applied;
        undecided += judged.undecided.len();
        for call in history.keys().flat_map(|(_, calls)| &calls.0) {
            match &call.fate {
                Fate::Answered(KeyTold::Written(written)) => repeated += usize::from(written.repeated),
                Fate::Answered(KeyTold::Refused(_)) => refused += 1,
                _ => {}
            }
        }
    }
    let Judged { answered, unknown, not_applied, .. } = all;
    println!("{answered} answered, {not_applied} not applied, {unknown} unknown, {undecided} undecided");
    println!("{repeated} repeated, {refused} refused");
    assert!(answered > 500 && unknown > 10 && not_applied > 10 && repeated > 50 && refused > 50);
    assert!(undecided <= 1);
}

/// The cell, as told to a checker that we did not write. That one wants one outcome of each call; so what it takes for
/// a state is all the states that there can be.
struct ForOthers;

#[derive(Clone, Debug)]
struct Shown {
    call: CellCall,
    open: bool,
}

impl Specification for ForOthers {
    type State = Vec<CellState>;
    type Operation = Shown;

    fn init() -> Vec<CellState> {
        vec![CellModel.initial()]
    }

    fn apply(shown: &Shown, states: &Vec<CellState>) -> (bool, Vec<CellState>) {
        let mut after: Vec<CellState> = Vec::new();
        for state in states.iter().flat_map(|state| CellModel.step(state, &shown.call, shown.open)) {
            if !after.contains(&state) {
                after.push(state);
            }
        }
        (!after.is_empty(), after)
    }
}

/// That checker has no open calls either. A change can be done in every state, so that it never was and that it was
/// the last of all are the same: an open one gets its end there, with any answer.
fn has_order_by_others(calls: &[Timed<'_, CellCall>]) -> bool {
    let mut events = Vec::new();
    for (number, timed) in calls.iter().enumerate() {
        let shown = Shown { call: timed.call.clone(), open: timed.ended.is_none() };
        events.push((timed.began, number, Action::Call(shown.clone())));
        events.push((timed.ended.unwrap_or(u64::MAX), number, Action::Response(shown)));
    }
    events.sort_by_key(|(place, number, _)| (*place, *number));
    let actions = events.into_iter().map(|(_, number, action)| (number, action)).collect();
    WGLChecker::<ForOthers>::is_linearizable(Actions::from_actions(actions))
}

#[test]
fn a_checker_of_others_says_the_same_of_histories_good_and_spoilt() {
    let (mut compared, mut refused) = (0, 0);
    let mut random = Random::new(1);
    for seed in 1..=20 {
        let history = run(seed).cells;
        for (_, calls) in history.keys() {
            // It is slower, so only beginnings are shown to it: what ends later is still open there.
            let until = calls.0.get(OTHERS_CALLS).map_or(u64::MAX, |call| call.began);
            let begins = |call: &&CellCall| call.began < until;
            let mut calls = Calls(calls.0.iter().filter(begins).cloned().collect::<Vec<_>>());
            for spoil in [false, true] {
                let at = random.below(calls.0.len() as u64) as usize;
                if spoil && let Fate::Answered(CellTold::Change(answer)) = &mut calls.0[at].fate {
                    answer.old = answer.old.map(|number| number + 1);
                }
                let (_, mut timed) = timed(&calls);
                timed.iter_mut().for_each(|timed| timed.ended = timed.ended.filter(|end| *end < until));
                if timed.iter().filter(|timed| timed.ended.is_none()).count() > OTHERS_OPEN {
                    continue;
                }
                let ours = match check(&CellModel, &timed, STEPS_MAX) {
                    Verdict::Linearizable { .. } => true,
                    Verdict::Violated { .. } => false,
                    Verdict::Undecided { .. } => panic!("seed {seed}: undecided"),
                };
                assert_eq!(ours, has_order_by_others(&timed), "seed {seed}\n{calls}");
                compared += 1;
                refused += usize::from(!ours);
            }
        }
    }
    println!("{compared} histories, {refused} of them without an order");
    assert!(compared > 20 && refused > 5, "{compared} histories, {refused} of them without an order");
}
