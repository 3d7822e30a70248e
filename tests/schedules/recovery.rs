//! Too many nodes lose their memory at once: protocol, section 2, "Recovery".

use majorityd::lock::Lease;
use majorityd::members::{EventKind, Loss, State};
use majorityd::mutant::Mutant;
use majorityd::node::embedded::After;
use majorityd::upkeep::recovery::RecoveryMode;

use super::daemons::not_both;
use super::stage::{ACCEPT, Clocks, Daemon, RIGHT, Stage, Way};
use super::table::{Table, holds_and_breaks_without, promise};

/// A recovery that needs nobody's patience is over, and its wait is not.
const RECOVERED: u64 = 15_000;

/// Power comes back: each server has what is given for it.
pub fn power_cut(stage: &Stage, after: [After; 3], daemons: &[&Daemon]) {
    for (node, after) in (0..).zip(after) {
        stage.restart(node, after, daemons);
    }
}

/// It is recovered, and waits for the leases from before to run out.
pub fn waits(keeper: &Daemon) {
    let view = keeper.view();
    assert!(!view.grants && view.list.recovery.is_some(), "it has been recovered: {view:?}");
    assert!(view.list.entries.iter().all(|entry| entry.state == State::Member), "{view:?}");
}

// ---- what is told during the wait

/// X has the lock for 20 s and for so long, and y gets it then. All who know of y lose that in a power cut. X extends.
fn lost_grant(stage: &Stage, passed: u64) -> (Daemon, [Option<Lease>; 2], Daemon) {
    let (a, b) = (stage.keeper(1, false), stage.daemon(2, RIGHT));
    stage.pass(1_000);
    let x = stage.acquire(&a, "x", 20, 0).lease().expect("it was free");
    stage.pass(passed);
    let [first, second] = [0, 1].map(|node| After::Replaced(stage.table.snapshot(node)));
    b.way(2, Way::Cut);
    let y = stage.acquire(&b, "y", 60, 0).lease();
    power_cut(stage, [first, second, After::Kept], &[&a]);
    stage.pass(RECOVERED);
    waits(&a);
    let x = stage.extend(&a, &x);
    stage.pass(1_000);
    (a, [x.lease(), y], b)
}

#[test]
fn what_ran_out_before_a_recovery_is_not_extended_while_others_may_hold_it() {
    holds_and_breaks_without(Mutant::ExtendsWhileRecovering, || {
        let stage = Stage::on(Table::laid(3));
        let (a, [x, y], b) = lost_grant(&stage, 30_000);
        assert!(b.relies(y.as_ref()), "it was free again");
        not_both(a.relies(x.as_ref()), b.relies(y.as_ref()))
    });
}

#[test]
fn what_has_not_run_out_goes_on_in_the_wait_after_a_recovery() {
    let stage = Stage::on(Table::laid(3));
    let (a, [x, y], _) = lost_grant(&stage, 1_000);
    assert!(y.is_none(), "x has it");
    assert!(a.relies(x.as_ref()), "its daemon knows that nobody can have had the lock since");
}

/// A's append is about to be accepted when its daemon is stopped; power goes and comes back, and all have forgotten what they
/// promised it. B appends. Then a goes on.
#[test]
fn no_round_goes_on_across_a_recovery() {
    holds_and_breaks_without(Mutant::RoundsCrossRecovery, || {
        let stage = Stage::on(Table::laid(3));
        // The clock of a hardly moves while it is stopped; that of b is behind, so that its ballots are below a's.
        let (keeper, a) = (stage.keeper(1, false), stage.daemon(2, Clocks { rate: 1, ..RIGHT }));
        let b = stage.daemon(3, Clocks { behind_ms: 60_000, ..RIGHT });
        stage.pass(1_000);
        let before = [0, 1, 2].map(|node| After::Replaced(stage.table.snapshot(node)));
        (0..3).for_each(|node| a.way_of(node, ACCEPT, Way::KeepRequest));
        let one = stage.append(&a, 1);
        power_cut(&stage, before, &[&keeper, &a, &b]);
        stage.pass(RECOVERED);
        waits(&keeper);
        [&a, &b].into_iter().for_each(|daemon| daemon.cluster.views.install(keeper.view()));
        let two = stage.append(&b, 2);
        stage.pass(1_000);
        assert_eq!(two.done(), Some(vec![2]), "nobody is in its way");
        (0..3).for_each(|node| {
            a.way(node, Way::Open);
            a.let_go(node);
        });
        stage.pass(1_000);
        assert!(one.done() != Some(vec![1, 2]), "it can't know of the other");
        promise(stage.numbers(&b).contains(&2), "what was agreed on after a recovery was lost")
    });
}

// ---- what is kept

/// Nobody lost anything: who had a lock has it, and it is said that the latest writes may be lost.
#[test]
fn a_power_cut_that_nobody_lost_anything_in_leaves_all_as_it_was() {
    let stage = Stage::on(Table::laid(3));
    let keeper = stage.keeper(1, false);
    stage.reports(&keeper);
    stage.pass(1_000);
    let x = stage.acquire(&keeper, "x", 60, 0).lease().expect("it was free");
    assert!(stage.append(&keeper, 1).done().is_some());
    power_cut(&stage, [After::Kept, After::Kept, After::Kept], &[&keeper]);
    stage.pass(RECOVERED);
    waits(&keeper);
    assert_eq!(keeper.view().list.loss, Loss::LatestWrites);
    assert_eq!(stage.recorded(&keeper, "l:lock"), [0, 1, 2]);
    let x = stage.extend(&keeper, &x).lease();
    assert!(keeper.relies(x.as_ref()), "its daemon has run on, and so has its lease");
    assert_eq!(stage.numbers(&keeper), [1]);
    // In the wait nobody gets anything new, and after it everybody does.
    let y = stage.acquire(&keeper, "y", 60, 0);
    assert!(y.lease().is_none(), "others may hold what was lost");
    stage.pass(65_000);
    let y = stage.acquire(&keeper, "y", 60, 0);
    stage.pass(1_000);
    assert!(keeper.view().grants && y.lease().is_some(), "the wait is over, and so is the lease");
}

/// One is agreed on by nodes 0 and 1. Then both lose power with node 2, and one of them what it had.
#[test]
fn what_one_node_has_kept_is_brought_to_q() {
    holds_and_breaks_without(Mutant::RecoversUnmerged, || {
        let stage = Stage::on(Table::laid(3));
        let (keeper, a) = (stage.keeper(1, false), stage.daemon(2, RIGHT));
        stage.pass(1_000);
        let before = stage.table.snapshot(0);
        a.way(2, Way::Cut);
        assert_eq!(stage.append(&a, 1).done(), Some(vec![1]));
        power_cut(&stage, [After::Replaced(before), After::Kept, After::Kept], &[&keeper]);
        stage.pass(RECOVERED);
        waits(&keeper);
        keeper.way(1, Way::Cut);
        promise(stage.numbers(&keeper) == [1], "what a node had kept was lost in the recovery")
    });
}

/// X has released the lock, and all have forgotten it. Node 0 comes back with what it had before that.
#[test]
fn what_a_node_has_lost_is_told_by_what_others_remember_of_its_counts() {
    holds_and_breaks_without(Mutant::CountsIgnored, || {
        let stage = Stage::on(Table::laid(3));
        let keeper = stage.keeper(1, false);
        stage.reports(&keeper);
        stage.forgets(&keeper);
        stage.pass(1_000);
        let x = stage.acquire(&keeper, "x", 60, 0).lease().expect("it was free");
        let before = stage.table.snapshot(0);
        stage.release(&keeper, &x);
        stage.pass(20_000);
        assert!(stage.recorded(&keeper, "l:lock").is_empty(), "it is forgotten");
        power_cut(&stage, [After::Replaced(before), After::Kept, After::Kept], &[&keeper]);
        stage.pass(RECOVERED + 5_000);
        waits(&keeper);
        promise(stage.recorded(&keeper, "l:lock").is_empty(), "x released the lock, and holds it again")
    });
}

/// With fewer than q that kept all, all is merged, and that more may be lost than the latest writes is said.
#[test]
fn where_too_few_have_kept_all_everything_is_merged_and_the_loss_is_told() {
    let stage = Stage::on(Table::laid(3));
    let keeper = stage.keeper(1, false);
    stage.reports(&keeper);
    stage.pass(1_000);
    let before = [0, 1].map(|node| After::Replaced(stage.table.snapshot(node)));
    assert_eq!(stage.append(&keeper, 1).done(), Some(vec![1]));
    // The counts are told.
    stage.pass(5_000);
    let [first, second] = before;
    power_cut(&stage, [first, second, After::Kept], &[&keeper]);
    stage.pass(RECOVERED);
    waits(&keeper);
    assert_eq!(keeper.view().list.loss, Loss::Anything);
    assert!(keeper.cluster.board.events().iter().any(|event| event.kind == EventKind::PossibleLoss));
    assert_eq!(stage.numbers(&keeper), [1], "one node had it");
}

// ---- who is waited for

/// One is agreed on by nodes 1 and 2. Then all lose power, node 1 what it had, and node 2 comes back a minute later.
fn one_comes_late(mode: RecoveryMode) -> (Stage, Daemon) {
    let stage = Stage::on(Table::laid(3));
    let (keeper, a) = (stage.keeper_that(1, mode), stage.daemon(2, RIGHT));
    stage.pass(1_000);
    let before = stage.table.snapshot(1);
    a.way(0, Way::Cut);
    assert_eq!(stage.append(&a, 1).done(), Some(vec![1]));
    stage.gone(2);
    stage.restart(0, After::Kept, &[&keeper]);
    stage.restart(1, After::Replaced(before), &[&keeper]);
    stage.pass(60_000);
    (stage, keeper)
}

#[test]
fn what_only_a_missing_node_has_is_waited_for() {
    holds_and_breaks_without(Mutant::RecoversWithQuorum, || {
        let (stage, keeper) = one_comes_late(RecoveryMode::Automatic);
        stage.restart(2, After::Kept, &[&keeper]);
        stage.pass(RECOVERED);
        waits(&keeper);
        promise(
            stage.numbers(&keeper) == [1],
            "what node 2 had kept was lost, and nobody had said that it may be",
        )
    });
}

#[test]
fn where_the_operator_said_so_a_recovery_goes_on_without_the_missing_and_tells() {
    let (stage, keeper) = one_comes_late(RecoveryMode::Available);
    let states =
        |keeper: &Daemon| keeper.view().list.entries.iter().map(|entry| entry.state).collect::<Vec<_>>();
    let view = keeper.view();
    assert!(!view.grants && view.list.loss == Loss::NotAsked, "{view:?}");
    assert_eq!(states(&keeper), [State::Member, State::Member, State::Out]);
    assert!(keeper.cluster.board.events().iter().any(|event| event.kind == EventKind::PossibleLoss));
    assert!(stage.numbers(&keeper).is_empty(), "only node 2 had it");
    // Back again, it joins like any other, and what it had kept is not brought back.
    stage.restart(2, After::Kept, &[&keeper]);
    stage.pass(RECOVERED);
    assert_eq!(states(&keeper), [State::Member; 3]);
    assert!(stage.numbers(&keeper).is_empty());
}

#[test]
fn where_the_operator_decides_nothing_is_recovered() {
    let stage = Stage::on(Table::laid(3));
    let keeper = stage.keeper_that(1, RecoveryMode::Manual);
    stage.pass(1_000);
    let before = keeper.view();
    power_cut(&stage, [After::Kept, After::Kept, After::Kept], &[&keeper]);
    stage.pass(120_000);
    assert_eq!(keeper.view(), before, "it goes by the list from before, and nobody counts by that");
    assert_eq!(keeper.cluster.reachable(), 0);
    let other = stage.keeper(2, false);
    stage.pass(RECOVERED);
    waits(&other);
}
