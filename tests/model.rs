//! Explores the model in `docs/model` in full, within bounds, and shows that it would find what is wrong.
//!
//! `docs/model/README.md` has the figures. Wider bounds are explored too by
//! `cargo nextest run --test model --run-ignored all`.

use register_model::bounds::{Bounds, Role, attempt, copied, forgotten, joining, promoted};
use register_model::explore;
use register_model::model::{Action, Keeps};
use register_model::mutants::Mutant;

use Role::{Free, Look, RetryOf, Write};

fn of(roles: &[Role]) -> Bounds {
    Bounds { roles: roles.to_vec(), mirrors: true, ..Bounds::default() }
}

/// One node restarts and joins again.
fn with_join(roles: &[Role]) -> Bounds {
    Bounds { lists: 2, restarts: 1, ..of(roles) }
}

/// Explores in full, finds no violation, and reaches what makes that say something.
fn holds(name: &str, bounds: Bounds) {
    let explored = explore(bounds, None);
    println!(
        "{name}: {} states, {} steps deep, {:.1} s",
        explored.states,
        explored.depth,
        explored.took.as_secs_f32()
    );
    assert_eq!(explored.violation, None, "{name}");
    assert!(explored.is_done, "{name}");
    assert!(explored.never.is_empty(), "{name} never reaches: {:?}", explored.never);
}

#[test]
fn changes_reads_and_retries_hold() {
    holds("three writes", of(&[Write; 3]));
    holds("a look among writes", of(&[Write, Look, Write]));
    holds("a retry", of(&[Write, Write, RetryOf(1)]));
    holds("two writes and a read", Bounds { reads: true, ..of(&[Write; 2]) });
}

#[test]
fn two_writes_and_a_join_hold() {
    holds("two writes, a join", Bounds { saves: true, ..with_join(&[Write; 2]) });
}

#[test]
fn a_read_and_a_join_hold() {
    holds("a write, a read, a join", Bounds { saves: true, reads: true, ..with_join(&[Write]) });
    holds("a write, a look, a join", with_join(&[Write, Look]));
}

#[test]
fn forgetting_holds() {
    holds("forgetting", Bounds { forgets: true, ..of(&[Write, Free, Write]) });
    holds("forgetting and a retry", Bounds { forgets: true, ..of(&[Write, Free, RetryOf(1)]) });
    holds("forgetting and a join", Bounds { forgets: true, ..with_join(&[Free]) });
}

// Wider bounds, with the time that each takes on a core of its own.

/// From when the first attempt is proposed and nobody has accepted it.
fn once_proposed(bounds: Bounds) -> Bounds {
    bounds.after(&[attempt(1, 0, &[0, 1], &[])])
}

#[test]
#[ignore = "15 seconds"]
fn lists_prepared_by_message_hold() {
    let bounds = with_join(&[Write]);
    holds("lists by message", Bounds { lists_by_message: true, reads: true, ..bounds });
}

#[test]
fn a_list_that_is_finished_by_another_holds() {
    let bounds = once_proposed(with_join(&[Write]));
    holds("lists finished", Bounds { lists: 3, finishes: true, ..bounds });
}

#[test]
fn a_join_that_is_started_over_holds() {
    let bounds = Bounds { lists: 3, restarts: 2, starts_over: true, ..with_join(&[Write]) };
    let accepted = Action::Accept { ballot: 1, node: 2, list: 0 };
    let again = Action::Restart { node: 2, keeps: Keeps::Nothing };
    let join = [joining(Keeps::Everything), copied(&[0])].concat();
    let begun = [attempt(1, 0, &[0, 1], &[]), vec![accepted], join, vec![again]];
    holds("started over", bounds.after(&begun));
}

#[test]
#[ignore = "half a minute"]
fn two_nodes_that_join_one_after_the_other_hold() {
    holds("two joins", Bounds { lists: 4, restarts: 2, ..with_join(&[Write]) });
}

#[test]
#[ignore = "half a minute"]
fn three_writes_and_a_join_hold() {
    // The first write is on node 0 alone; the second is made from it, and nobody has it yet.
    let begun = [attempt(1, 0, &[0, 1], &[0]), attempt(2, 0, &[0, 2], &[])];
    holds("three writes, a join", with_join(&[Write; 3]).after(&begun));
}

#[test]
#[ignore = "a minute and a half"]
fn two_writes_a_read_and_a_join_hold() {
    holds("two writes, a read, a join", Bounds { reads: true, ..once_proposed(with_join(&[Write; 2])) });
}

#[test]
#[ignore = "a minute"]
fn forgetting_among_joins_holds() {
    let bounds = once_proposed(with_join(&[Free, Write]));
    holds("forgetting, a write, a join", Bounds { forgets: true, ..bounds });
}

/// What has happened so far, the bounds from there on, and what is switched off then. With everything switched on the same
/// exploration holds.
fn mutants() -> Vec<(Mutant, Bounds)> {
    let plain = |roles: &[Role]| Bounds { mirrors: false, ..of(roles) };
    let join = |roles: &[Role]| Bounds { mirrors: false, ..with_join(roles) };
    let reads = |bounds: Bounds| Bounds { reads: true, ..bounds };
    let forgets = |bounds: Bounds| Bounds { forgets: true, ..bounds };
    let everything = || joining(Keeps::Everything);
    // Node 2 has restarted, and node 0 does not have the list yet in which it is joining.
    let late = Action::AcceptList { ballot: 1, node: 0 };
    let noticed = || everything()[..5].iter().copied().filter(|step| *step != late).collect::<Vec<_>>();
    // The first write is proposed, and nobody has it yet.
    let proposed = || attempt(1, 0, &[0, 1], &[]);
    // All have the first write, and the second, which says nothing, is proposed.
    let freed = || [attempt(1, 0, &[0, 1], &[0, 1, 2]), attempt(2, 0, &[0, 1], &[])].concat();
    let accepted = |ballot, nodes: &[usize]| -> Vec<Action> {
        nodes.iter().map(|node| Action::Accept { ballot, node: *node, list: 0 }).collect()
    };
    let all = &[0, 1, 2];
    vec![
        (Mutant::AcceptIgnoresPromise, plain(&[Write, Write])),
        (Mutant::NoRetryRule, plain(&[Write, Write, RetryOf(1)])),
        (Mutant::MemoryNotChecked, reads(join(&[Write]))),
        (Mutant::NoGate, reads(join(&[Write])).after(&[proposed()])),
        (
            Mutant::PromotedEarly,
            reads(join(&[Write])).after(&[proposed(), accepted(1, &[0, 2]), everything()]),
        ),
        (Mutant::CopiedFromOne, reads(join(&[Write])).after(&[proposed()])),
        (Mutant::CopiedTooSoon, reads(join(&[Write])).after(&[proposed(), accepted(1, &[2]), noticed()])),
        (Mutant::BegunTwice, reads(join(&[Write])).after(&[proposed()])),
        (
            Mutant::MergeForgetsPromise,
            join(&[Write, Write]).after(&[proposed(), attempt(2, 0, &[0, 2], &[])]),
        ),
        (Mutant::LiveWhileJoining, join(&[Write, Write]).after(&[proposed(), attempt(2, 0, &[0, 2], &[])])),
        (
            Mutant::BegunAfterRestart,
            Bounds { restarts: 2, ..reads(join(&[Write])) }.after(&[
                proposed(),
                accepted(1, &[0, 2]),
                everything(),
            ]),
        ),
        // The first write is on node 0 alone; the second has seen nothing of it.
        (
            Mutant::CopiedCounts,
            reads(join(&[Write, Write])).after(&[
                attempt(1, 0, &[0, 1], &[0]),
                attempt(2, 0, &[1, 2], &[]),
                everything(),
            ]),
        ),
        (
            Mutant::CopiedAnswersAgain,
            join(&[Write, Write]).after(&[
                attempt(1, 0, &[0, 1], &[0]),
                attempt(2, 0, &[1, 2], &[]),
                everything(),
            ]),
        ),
        (Mutant::NoFloor, forgets(plain(&[Write, Free, Write])).after(&[freed()])),
        (Mutant::ForgottenByQuorum, forgets(plain(&[Write, Free, Write])).after(&[freed()])),
        (Mutant::RetryIgnoresFloor, forgets(plain(&[Write, Free, RetryOf(1)])).after(&[freed()])),
        // Node 2 is saved with the first write before it is overwritten and forgotten.
        (
            Mutant::KeepsOldData,
            Bounds { saves: true, ..forgets(join(&[Write, Free, Write])) }.after(&[
                attempt(1, 0, &[0, 1], all),
                vec![Action::Save { node: 2 }],
                attempt(2, 0, &[0, 1], all),
                forgotten(2, 0, 0b111),
                joining(Keeps::Saved),
            ]),
        ),
        // The second write is forgotten before the node restarts that still can get the first.
        (
            Mutant::MergeForgetsFloor,
            forgets(join(&[Write, Free, Write])).after(&[
                freed(),
                accepted(2, all),
                forgotten(2, 0, 0b111),
                everything(),
            ]),
        ),
        // The copy has the first write, the members the second.
        (
            Mutant::ForgottenWhileJoining,
            forgets(join(&[Write, Free, Write])).after(&[
                freed(),
                everything(),
                copied(&[0, 1]),
                vec![Action::SendAgain { ballot: 2, list: 1 }],
                (0..2).map(|node| Action::Accept { ballot: 2, node, list: 1 }).collect(),
            ]),
        ),
        // The same; and the copy is complete.
        (
            Mutant::MergedAfterEnd,
            forgets(join(&[Write, Free, Write])).after(&[freed(), everything(), copied(&[0, 1]), promoted()]),
        ),
    ]
}

#[test]
fn every_mechanism_is_missed_when_it_is_off() {
    for (mutant, bounds) in mutants() {
        let given = bounds.after.len();
        let explored = explore(bounds, Some(mutant));
        let (name, steps) = explored.violation.clone().unwrap_or_default();
        println!(
            "{mutant:?}: {} steps ({given} of them given): {name}; {} states, {:.1} s",
            steps.len(),
            explored.states,
            explored.took.as_secs_f32()
        );
        if std::env::var_os("MODEL_TRACE").is_some() {
            steps.iter().for_each(|step| println!("    {step:?}"));
        }
        assert!(explored.violation.is_some(), "{mutant:?} shows nothing");
    }
}

/// A round under a list needs q answers from nodes that hold it and count by it, and with N = 3 that is as much as reading it
/// as committed asks for.
#[test]
fn the_gate_stands_in_for_reading_a_list_as_committed() {
    let second_write = with_join(&[Write, Write]).after(&[attempt(1, 0, &[0, 1], &[])]);
    for bounds in [Bounds { reads: true, ..with_join(&[Write]) }, second_write] {
        let explored = explore(bounds, Some(Mutant::GoesByUncommittedList));
        println!("{} states, {:.1} s", explored.states, explored.took.as_secs_f32());
        assert_eq!(explored.violation, None);
        assert!(explored.is_done);
    }
}

#[test]
fn from_the_same_beginnings_nothing_breaks_with_everything_on() {
    for (mutant, bounds) in mutants().into_iter().filter(|(_, bounds)| !bounds.after.is_empty()) {
        let explored = explore(Bounds { mirrors: true, ..bounds }, None);
        println!("{mutant:?}: {} states, {:.1} s", explored.states, explored.took.as_secs_f32());
        assert_eq!(explored.violation, None, "{mutant:?}");
        assert!(explored.is_done, "{mutant:?}");
    }
}
