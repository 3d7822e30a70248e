//! Too many nodes lose their memory at once: protocol, section 2, "Recovery".

use majorityd::lock::Lease;
use majorityd::members::State;
use majorityd::mutant::Mutant;
use majorityd::node::embedded::After;

use super::daemons::not_both;
use super::stage::{Daemon, RIGHT, Stage, Way};
use super::table::{Table, holds_and_breaks_without};

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
