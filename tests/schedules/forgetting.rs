//! What says nothing is forgotten, and does not come back: protocol, section 5.

use majorityd::lock::change::LockChange;
use majorityd::mutant::Mutant;
use majorityd::node::embedded::After;
use majorityd::node::operation::RegisterKey;

use super::joins::Join;
use super::stage::{END_JOIN, PREPARE, RIGHT, Stage, Way};
use super::table::{Append, Found, Table, founding, holds_and_breaks_without, one_holder, promise, release};

const LOCK: &str = "l:lock";

// ---- the floor

/// X is about to get the lock; y gets it and releases it, and all is forgotten. Then x's accept arrives.
fn a_late_accept_meets_nothing() -> Found {
    let table = Table::laid(3);
    let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
    let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
    x.to(&[0, 1]);
    let between = table.acquire("y");
    let y = table.take(&b, &between);
    table.round(&b, &[release(between.lease_id)]).run(&table.all());
    table.forget_everywhere(LOCK);
    x.to(&[0, 1]);
    promise(
        x.tokens().iter().all(|token| *token > y.tokens()[0]),
        "a grant has a lower token than one before",
    )
}

#[test]
fn what_was_forgotten_is_not_brought_back_by_a_late_accept() {
    holds_and_breaks_without(Mutant::FloorIgnored, a_late_accept_meets_nothing);
}

#[test]
fn what_is_forgotten_leaves_a_floor() {
    holds_and_breaks_without(Mutant::ForgetsWithoutFloor, a_late_accept_meets_nothing);
}

#[test]
fn a_retry_on_absent_asks_whether_anything_was_forgotten() {
    holds_and_breaks_without(Mutant::RetryIgnoresFloor, || {
        let table = Table::laid(3);
        let a = table.daemon(1, 100);
        let mut change = table.numbers(&a, &[Append(7)]);
        change.to(&[0, 1]);
        // It is agreed on, and its daemon does not hear of it. Such a register is never listed, so it may go.
        change.reach(&[0, 1, 2]);
        change.lose(&[0, 1, 2]);
        table.forget_everywhere("t:lock");
        a.tokens_from(300);
        promise(change.run(&[0, 1]).answer().is_none(), "a change was applied again after it was forgotten")
    });
}

// ---- what may go

#[test]
fn what_has_changed_since_it_was_seen_stays() {
    holds_and_breaks_without(Mutant::ForgetsChanged, || {
        let table = Table::laid(3);
        let (a, b, c) = (table.daemon(1, 100), table.daemon(2, 200), table.daemon(3, 300));
        let first = table.acquire("x");
        table.take(&a, &first);
        table.round(&a, &[release(first.lease_id)]).run(&table.all());
        let seen = table.seen(founding(), LOCK);
        let y = table.take(&b, &table.acquire("y"));
        table.all().into_iter().for_each(|node| _ = table.forget(founding(), node, &seen));
        let z = table.take(&c, &table.acquire("z"));
        one_holder(&y, &z)
    });
}

/// X has released the lock: whoever asks for it by these two nodes gets it.
fn is_free(stage: &Stage, daemon: &super::stage::Daemon) -> Found {
    daemon.way(1, Way::Cut);
    let z = stage.acquire(daemon, "z", 60, 0);
    stage.pass(1_000);
    promise(z.lease().is_some(), "x released the lock, that was forgotten, and x holds it again")
}

#[test]
fn only_what_all_members_hold_alike_is_forgotten() {
    holds_and_breaks_without(Mutant::ForgottenByQuorum, || {
        let stage = Stage::on(Table::laid(3));
        let (a, c) = (stage.daemon(1, RIGHT), stage.daemon(3, RIGHT));
        stage.forgets(&a);
        let x = stage.acquire(&a, "x", 60, 0).lease().expect("it was free");
        // Node 2 misses the release.
        a.way(2, Way::Cut);
        stage.release(&a, &x);
        stage.pass(20_000);
        is_free(&stage, &c)
    });
}

#[test]
fn nothing_is_forgotten_while_a_node_joins() {
    holds_and_breaks_without(Mutant::ForgottenWhileJoining, || {
        let stage = Stage::on(Table::laid(3));
        let (a, keeper) = (stage.daemon(1, RIGHT), stage.keeper(2, false));
        stage.forgets(&keeper);
        stage.pass(1_000);
        let x = stage.acquire(&a, "x", 60, 0).lease().expect("it was free");
        // The keeper has noticed long ago that the lock was free.
        keeper
            .cluster
            .idle
            .add(&RegisterKey::from_bytes(LOCK.as_bytes()), keeper.cluster.runtime.clock.now());
        stage.pass(3_500);
        // Node 2 joins, and is copied to; its end_join is on its way.
        keeper.way_of(2, END_JOIN, Way::KeepRequest);
        stage.restart(2, After::Wiped, &[&a, &keeper]);
        stage.pass(1_300);
        let joining = keeper.view();
        assert_ne!(joining.vid, founding(), "a join is under way");
        a.go_by(joining.vid, joining.list);
        stage.release(&a, &x);
        // It takes the keeper ten seconds to make node 2 a member.
        (0..3).for_each(|node| keeper.way_of(node, PREPARE, Way::Cut));
        keeper.way_of(2, END_JOIN, Way::Open);
        keeper.let_go(2);
        stage.pass(8_500);
        (0..3).for_each(|node| keeper.way(node, Way::Open));
        stage.pass(500);
        let entries = keeper.view().list.entries;
        assert!(entries.iter().all(|entry| entry.state == majorityd::members::State::Member), "{entries:?}");
        is_free(&stage, &keeper)
    });
}

/// X's daemon dies, and so does y's, which waits for the lock. Nobody asks for it any more.
#[test]
fn a_lock_whose_holder_died_goes_although_nobody_asks_for_it() {
    holds_and_breaks_without(Mutant::NeverSwept, || {
        let stage = Stage::on(Table::laid(3));
        let (a, b, c) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT), stage.daemon(3, RIGHT));
        stage.forgets(&c);
        stage.compares(&c);
        assert!(stage.acquire(&a, "x", 20, 0).lease().is_some(), "it was free");
        let y = stage.acquire(&b, "y", 20, 90);
        stage.pass(1_000);
        assert_eq!(stage.recorded(&c, LOCK), [0, 1, 2]);
        for died in [&a, &b] {
            (0..3).for_each(|node| died.way(node, Way::Cut));
        }
        y.go_away(&stage);
        stage.pass(120_000);
        promise(
            stage.recorded(&c, LOCK).is_empty(),
            "the record of a lock whose holder died stays on the nodes",
        )
    });
}

/// X had the lock and released it at the daemon that y asks, and all have forgotten it. Node 0 does not answer.
#[test]
fn a_daemon_does_not_count_on_a_promise_that_may_be_forgotten() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    stage.forgets(&a);
    let x = stage.acquire(&a, "x", 60, 0).lease().expect("it was free");
    stage.release(&a, &x);
    stage.pass(20_000);
    assert!(stage.recorded(&a, LOCK).is_empty(), "it is forgotten");
    a.way(0, Way::KeepRequest);
    let y = stage.acquire(&a, "y", 60, 0);
    stage.pass(1_000);
    assert!(y.lease().is_some(), "its first accept was refused by two, and by the third nobody knows");
}

// ---- forgetting and joining

/// What a schedule of a node that comes back ends with: x released the lock, and all have forgotten it.
fn is_free_by_0_and_2(table: &Table, daemon: &super::table::Hand) -> Found {
    let z = table.round(daemon, &[LockChange::Acquire(table.acquire("z"))]).run(&[0, 2]);
    promise(z.holds(), "x released the lock, that was forgotten, and x holds it again")
}

#[test]
fn a_node_that_comes_back_with_old_data_brings_nothing_back() {
    holds_and_breaks_without(Mutant::KeepsOldData, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        table.take(&a, &first);
        let older = table.snapshot(2);
        table.round(&a, &[release(first.lease_id)]).run(&table.all());
        table.forget_everywhere(LOCK);
        b.go_by(&Join::begun(&table, After::Replaced(older), &[&a, &b]).completed());
        is_free_by_0_and_2(&table, &b)
    });
}

#[test]
fn the_floor_comes_with_the_copy() {
    holds_and_breaks_without(Mutant::MergeForgetsFloor, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        let between = table.acquire("y");
        let y = table.take(&b, &between);
        table.round(&b, &[release(between.lease_id)]).run(&table.all());
        table.forget_everywhere(LOCK);
        a.go_by(&Join::begun(&table, After::Kept, &[&a, &b]).completed());
        // X's accept arrives at node 2; to its next attempt it is one that may have been agreed on.
        x.resend();
        x.to(&[2]);
        x.lose(&[0, 1]);
        a.tokens_from(400);
        let x = x.run(&[0, 2]);
        promise(
            x.tokens().iter().all(|token| *token > y.tokens()[0]),
            "a grant has a lower token than one before",
        )
    });
}

#[test]
fn a_late_merge_brings_nothing_to_a_member() {
    holds_and_breaks_without(Mutant::MergeAfterEnd, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        table.take(&a, &first);
        let join = Join::begun(&table, After::Kept, &[&a, &b]);
        let late = join.page(0).expect("a page");
        let view = join.completed();
        [&a, &b].into_iter().for_each(|daemon| daemon.go_by(&view));
        table.round(&a, &[release(first.lease_id)]).run(&table.all());
        let seen = table.seen(view.vid, LOCK);
        assert!(table.all().into_iter().all(|node| table.forget(view.vid, node, &seen)));
        // The same page once more, by a message that nobody had heard of any more.
        join.merge(&late);
        is_free_by_0_and_2(&table, &b)
    });
}
