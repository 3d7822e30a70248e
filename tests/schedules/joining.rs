//! Nodes that come back: protocol, section 2, "Joining".

use majorityd::lock::change::LockChange;
use majorityd::members::State;
use majorityd::mutant::Mutant;
use majorityd::node::embedded::After;

use super::daemons::not_both;
use super::joins::Join;
use super::members::agreed;
use super::stage::{ACCEPT, RIGHT, Stage, Way};
use super::table::{
    Found, Table, ballot, each_is_enough, first_view, holds_and_breaks_without, one_holder, promise,
};

// ---- who is a member has a complete copy

/// X gets the lock while one node is out of reach, and then node 2 is wiped. When it is a member again, y asks that node
/// and the one that x has missed.
fn copied_to_node_2(missed: u8) -> Found {
    let stage = Stage::on(Table::laid(3));
    let (a, keeper) = (stage.daemon(1, RIGHT), stage.keeper(2, false));
    stage.pass(1_000);
    a.way_of(missed, ACCEPT, Way::Cut);
    let x = stage.acquire(&a, "x", 60, 0).lease();
    assert!(x.is_some(), "it was free");
    stage.restart(2, After::Wiped, &[&a, &keeper]);
    stage.pass(5_000);
    assert!(keeper.view().list.entries.iter().all(|entry| entry.state == State::Member), "it has joined");
    keeper.way(1 - missed, Way::Cut);
    let y = stage.acquire(&keeper, "y", 60, 0);
    stage.pass(1_000);
    not_both(a.relies(x.as_ref()), keeper.relies(y.lease().as_ref()))
}

#[test]
fn a_node_is_a_member_when_its_copy_is_complete() {
    holds_and_breaks_without(Mutant::PromotedEarly, || copied_to_node_2(1));
}

#[test]
fn a_copy_is_of_q_other_members() {
    // The first source is node 0, which has missed it.
    holds_and_breaks_without(Mutant::CopiedFromOne, || copied_to_node_2(0));
}

/// X's accept reaches node 2 and then, late, node 0. In between node 2 joins.
#[test]
fn nothing_is_agreed_on_by_the_old_list_once_a_copy_has_begun() {
    holds_and_breaks_without(Mutant::GateOpen, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[2]);
        let join = Join::begun(&table, After::Kept, &[&a, &b]);
        assert!(join.copy(0));
        x.to(&[0]);
        assert!(join.copy(1) && join.end());
        b.go_by(&join.promoted(&[0, 1, 2]));
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        one_holder(&x, &y)
    });
}

#[test]
fn an_answer_from_before_a_join_does_not_count_after_it() {
    holds_and_breaks_without(Mutant::MixedLists, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[2]);
        let view = Join::begun(&table, After::Kept, &[&a, &b]).completed();
        a.go_by(&view);
        b.go_by(&view);
        // Node 2 has taken it out of its old memory.
        x.resend();
        x.to(&[0]);
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        one_holder(&x, &y)
    });
}

#[test]
fn a_copy_begins_under_a_list_that_is_agreed_on() {
    // A source that goes by the old list still shows nothing, and nobody begins before the list was read as agreed on:
    // with three nodes a copy needs both others under the list, so either does.
    each_is_enough(&[Mutant::GateOpen, Mutant::ListUncommitted], || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[2]);
        table.restart(2, After::Kept, &[&a, &b]);
        let join = Join::proposed(&table, 2, &first_view(3), ballot(40, 9), 33);
        join.put(&[2]);
        let begun = agreed(&table, &[0, 1, 2]) == Some(join.view.vid) && join.begin();
        let copied = begun && join.copy(0);
        x.to(&[0]);
        join.put(&[0, 1]);
        assert!((begun || join.begin()) && (copied || join.copy(0)) && join.copy(1) && join.end());
        b.go_by(&join.promoted(&[0, 1, 2]));
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        one_holder(&x, &y)
    });
}

// ---- one memory, one join

#[test]
fn a_restart_in_the_middle_ends_a_join() {
    holds_and_breaks_without(Mutant::RestartUnnoticed, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[0, 2]);
        // A server whose restarts nobody notices has no other way to lose its memory than to lose all.
        let join = Join::begun(&table, After::Wiped, &[&a, &b]);
        let before = table.snapshot(2);
        assert!(join.copy(0));
        table.restart(2, After::Replaced(before), &[&a, &b]);
        let complete = join.copy(1) && join.end();
        b.go_by(&if complete { join.promoted(&[0, 1, 2]) } else { join.view.clone() });
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        one_holder(&x, &y)
    });
}

#[test]
fn a_node_that_forgets_once_more_after_its_join_does_not_count() {
    // As for any member: it refuses to serve, and what it answers does not count.
    each_is_enough(&[Mutant::ServesWithoutMemory, Mutant::MemoryIgnored], || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let join = Join::begun(&table, After::Wiped, &[&a, &b]);
        let (view, older) = (join.completed(), table.snapshot(2));
        a.go_by(&view);
        b.go_by(&view);
        let x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]).run(&[0, 2]);
        table.restart(2, After::Replaced(older), &[&a, &b]);
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        one_holder(&x, &y)
    });
}

#[test]
fn what_was_merged_for_an_id_is_not_removed_by_its_begin_join_again() {
    holds_and_breaks_without(Mutant::BegunTwice, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[0, 2]);
        let join = Join::begun(&table, After::Wiped, &[&a, &b]);
        assert!(join.copy(0));
        join.begin();
        assert!(join.copy(1) && join.end());
        b.go_by(&join.promoted(&[0, 1, 2]));
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        one_holder(&x, &y)
    });
}

/// No second holder can come of it: the memory that begins is not the one that the list names. But it is a member that is
/// lost without a fault, and one fault more is too many.
#[test]
fn a_late_begin_join_takes_no_member_away() {
    holds_and_breaks_without(Mutant::BegunUnderAnyList, || {
        let table = Table::laid(3);
        let b = table.daemon(2, 200);
        table.restart(2, After::Kept, &[&b]);
        let late = Join::proposed(&table, 2, &first_view(3), ballot(30, 9), 44);
        late.put(&[0, 1, 2]);
        // Nothing moves, so somebody starts over with an id of its own.
        let join = Join::proposed(&table, 2, &late.view, ballot(40, 9), 33);
        join.put(&[0, 1, 2]);
        assert!(join.begin());
        b.go_by(&join.completed());
        late.begin();
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        promise(y.holds(), "only node 0 is down, and nobody is served")
    });
}

// ---- what a merge takes over

#[test]
fn promises_outlive_the_node_that_gave_them() {
    holds_and_breaks_without(Mutant::MergeForgetsPromise, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        let mut y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]);
        y.to(&[0, 2]);
        // Node 2 learns of x's promise first, and then of y's.
        let view = Join::begun(&table, After::Kept, &[&a, &b]).completed();
        for (daemon, round) in [(&a, &mut x), (&b, &mut y)] {
            daemon.go_by(&view);
            round.resend();
            round.to(&[1, 2]);
        }
        one_holder(&x, &y)
    });
}

/// Daemons send nothing to a node that their list does not call a member, and a node is called so only after its
/// `end_join`; so the node's own refusal is for daemons that do not keep to that, as the one here.
#[test]
fn a_joining_node_takes_no_accept() {
    holds_and_breaks_without(Mutant::ServesWhileJoining, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        let mut y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]);
        y.to(&[0, 2]);
        let join = Join::begun(&table, After::Wiped, &[&a, &b]);
        let empty = majorityd::node::operation::Page { rows: Vec::new(), ..join.page(1).expect("a page") };
        assert!(join.merge(&empty), "the old data is gone");
        table.run_by(join.view.vid, 2, &x.message());
        let view = join.completed();
        // The same accept again, where y has a promise meanwhile.
        for (daemon, round) in [(&a, &mut x), (&b, &mut y)] {
            daemon.go_by(&view);
            round.resend();
            round.to(&[1, 2]);
        }
        one_holder(&x, &y)
    });
}

#[test]
fn a_merged_record_is_no_accept_that_may_be_repeated() {
    holds_and_breaks_without(Mutant::MergeUnmarked, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[0]);
        let mut y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]);
        y.to(&[1, 2]);
        // Node 2 gets x's value from node 0, and its promise to y from node 1.
        let view = Join::begun(&table, After::Kept, &[&a, &b]).completed();
        for (daemon, round) in [(&a, &mut x), (&b, &mut y)] {
            daemon.go_by(&view);
            round.resend();
            round.to(&[0, 2]);
        }
        one_holder(&x, &y)
    });
}

#[test]
fn a_copied_record_does_not_prove_that_its_node_took_part() {
    holds_and_breaks_without(Mutant::CopiedCounts, || {
        let table = Table::laid(3);
        let (a, b, c) = (table.daemon(1, 100), table.daemon(2, 200), table.daemon(3, 300));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[0]);
        let mut y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]);
        y.to(&[1, 2]);
        // Node 2 gets x's value by a merge, and the promise to y, whose base was "absent".
        let view = Join::begun(&table, After::Kept, &[&a, &b, &c]).completed();
        c.go_by(&view);
        let read = table.holder(&c, &[0, 2]);
        b.go_by(&view);
        y.resend();
        y.to(&[0, 2]);
        promise(read.is_none() || !y.holds(), "x was read as holder, did nothing, and y got the lock")
    });
}

#[test]
fn how_long_a_source_has_held_a_stamp_says_nothing_about_the_node_that_joined() {
    holds_and_breaks_without(Mutant::MergeKeepsTimes, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        // The clock of node 0 is behind, and is set right later; it is the only one that jumps.
        table.jump(0, -20);
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        x.to(&[0, 1]);
        let join = Join::begun(&table, After::Wiped, &[&a, &b]);
        assert!(join.copy(0) && join.copy(1) && join.end());
        b.go_by(&join.promoted(&[0, 1, 2]));
        table.jump(0, 20);
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[0, 2]);
        one_holder(&x, &y)
    });
}
