//! What must always hold, and what must happen somewhere so that the first says anything.

use std::sync::atomic::Ordering;

use stateright::Property;

use crate::bounds::{Bounds, Role};
use crate::model::Register;
use crate::state::*;

pub const AGREEMENT: &str = "what is committed stays";
pub const LISTS_AGREE: &str = "what is agreed on of the list stays";
pub const ONCE: &str = "no change is applied twice";
pub const FRESH: &str = "no read is older than what was acknowledged before it began";

pub fn all(bounds: &Bounds) -> Vec<Property<Register>> {
    let mut all = vec![
        Property::always(AGREEMENT, |model, state| first(model, committed_values_are_a_chain(model, state))),
        Property::always(LISTS_AGREE, |model, state| first(model, lists_are_a_chain(state))),
        Property::always(ONCE, |model, state| first(model, nothing_is_applied_twice(model, state))),
        Property::always(FRESH, |model, state: &State| first(model, !state.stale)),
        Property::sometimes("all attempts are committed in turn", |model: &Register, state: &State| {
            model.ballots().all(|ballot| {
                state.rounds[usize::from(ballot)].committed
                    || state.rounds[usize::from(ballot)].phase == Phase::Over
            })
        }),
    ];
    let makers = bounds.roles.iter().filter(|role| **role != Role::Look).count();
    if bounds.restarts > 0 && bounds.lists > 1 {
        all.push(Property::sometimes("a commit counts a node that joined again", |model, state: &State| {
            model.ballots().any(|ballot| counts_a_joiner(state, &state.rounds[usize::from(ballot)]))
        }));
    }
    if bounds.restarts > 0 && bounds.lists > 1 && makers > 1 {
        all.push(Property::sometimes("a commit stands on one from before a join", |model, state: &State| {
            model.ballots().any(|ballot| {
                let round = &state.rounds[usize::from(ballot)];
                let older = |b: u8| {
                    state.rounds[usize::from(b)].committed && state.comes_from(round.base, state.vid(b))
                };
                counts_a_joiner(state, round) && (1..ballot).any(older)
            })
        }));
    }
    if bounds.restarts > 1 && bounds.lists > 3 {
        all.push(Property::sometimes("two nodes have joined again", |_, state: &State| {
            let list = state.list(state.agreed_list());
            list.iter().filter(|entry| matches!(entry, Entry::Member(2..))).count() > 1
        }));
    }
    if bounds.forgets {
        all.push(Property::sometimes("a record is forgotten", |_, state: &State| {
            state.nodes.iter().all(|node| node.floor > 0 && node.record == Record::default())
        }));
    }
    if bounds.forgets && makers > 1 {
        all.push(Property::sometimes("a forgotten record is made anew", |model, state: &State| {
            let anew = |b: u8| state.rounds[usize::from(b)].committed && state.root(state.vid(b)) > 1;
            state.nodes.iter().all(|node| node.floor > 0) && model.ballots().any(anew)
        }));
    }
    all
}

/// Holds, or was violated before; see [`Register::found`].
fn first(model: &Register, holds: bool) -> bool {
    holds || model.found.swap(true, Ordering::Relaxed)
}

fn counts_a_joiner(state: &State, round: &Round) -> bool {
    let joined =
        |node| has(round.accepted, node) && matches!(state.list(round.list)[node], Entry::Member(2..));
    round.committed && (0..N).any(joined)
}

/// Each committed value comes from each that was committed under a lower ballot.
fn committed_values_are_a_chain(model: &Register, state: &State) -> bool {
    let committed = state.committed();
    let below = |ballot: u8| committed & ((1 << ballot) - 1);
    let known = model.ballots().filter(|ballot| has(committed, usize::from(*ballot)));
    known.into_iter().all(|ballot| shows_all(model, state, state.vid(ballot), below(ballot)))
}

/// Whether somebody who has this value misses nothing of what was committed under these ballots. A value that was made from an
/// absent record misses nothing if what was committed last before it says nothing: that may have been forgotten.
pub fn shows_all(model: &Register, state: &State, vid: u8, ballots: Set) -> bool {
    let missed = (1..=DATA).filter(|b| has(ballots, *b) && !state.comes_from(vid, state.rounds[*b].vid));
    let Some(last_missed) = missed.max() else { return true };
    let root = if vid == 0 { DATA + 1 } else { usize::from(state.root(vid)) };
    let before = if vid == 0 { ballots } else { state.committed() };
    let last = (1..root).filter(|b| has(before, *b)).max();
    last_missed < root && last.is_some_and(|last| model.says_nothing(state.rounds[last].vid))
}

fn lists_are_a_chain(state: &State) -> bool {
    let agreed = |set: Set| set.count_ones() >= Q;
    let agreed = (0..=LISTS).filter(|n| agreed(state.lists[*n].taken) || agreed(state.lists[*n].readable));
    let mut newest = 0;
    for vid in agreed.map(|n| state.lists[n].vid) {
        let mut older = vid;
        while older > newest {
            older = state.lists[usize::from(older)].base;
        }
        if older != newest {
            return false;
        }
        newest = vid;
    }
    true
}

/// A retry that made a value of its own, in a history that has the first attempt's value too.
fn nothing_is_applied_twice(model: &Register, state: &State) -> bool {
    let happened = |attempt: u8| {
        let shows = |b: usize| state.rounds[b].committed && state.comes_from(state.rounds[b].vid, attempt);
        (1..=DATA).any(shows)
    };
    model.ballots().all(|ballot| match model.role(ballot) {
        Role::RetryOf(first) => !(happened(first) && happened(ballot)),
        Role::Write | Role::Free | Role::Look => true,
    })
}
