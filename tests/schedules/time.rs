//! Ages and leases: protocol, section 3.

use majorityd::lock::change::LockChange;
use majorityd::mutant::Mutant;
use majorityd::node::embedded::After;
use majorityd::node::operation::{Answer, Operation, Report, Reported};

use super::joins::Join;
use super::table::{Table, extend, holds_and_breaks_without, one_holder, promise};

#[test]
fn an_extended_lease_begins_anew_on_every_node() {
    holds_and_breaks_without(Mutant::StampsInheritTime, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        let mut x = table.take(&a, &first);
        table.pass(6);
        let longer = table.warm_round(&a, extend(first.lease_id), x.warm()).run(&[0, 1, 2]);
        table.pass(6);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&longer, &y)
    });
}

#[test]
fn a_lease_goes_on_ageing_whatever_else_of_the_value_changes() {
    holds_and_breaks_without(Mutant::StampsRestart, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        table.take(&a, &table.acquire("x"));
        let wait = LockChange::Acquire(table.wait_for(&b, "y", 150));
        table.pass(6);
        table.round(&b, std::slice::from_ref(&wait)).run(&[0, 1, 2]);
        table.pass(6);
        let y = table.round(&b, &[wait]).run(&[0, 1, 2]);
        promise(y.holds(), "the lease ran out long ago, and the first in line does not get the lock")
    });
}

#[test]
fn a_node_whose_clock_was_set_back_lets_leases_age_again() {
    holds_and_breaks_without(Mutant::StampsFromTheFuture, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        table.jump(0, 1_000_000);
        table.take(&a, &table.acquire("x"));
        table.jump(0, -1_000_000);
        // Node 2 is down: without node 0 nobody can say that the lease ran out.
        let wait = LockChange::Acquire(table.wait_for(&b, "y", 150));
        table.round(&b, std::slice::from_ref(&wait)).run(&[0, 1]);
        table.pass(12);
        let y = table.round(&b, &[wait]).run(&[0, 1]);
        promise(y.holds(), "the lease ran out long ago, and the first in line does not get the lock")
    });
}

#[test]
fn one_clock_that_jumps_ages_nothing() {
    holds_and_breaks_without(Mutant::AgedByOne, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let x = table.take(&a, &table.acquire("x"));
        table.jump(0, 20);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&x, &y)
    });
}

#[test]
fn only_the_stamp_in_the_value_that_the_prepare_showed_says_how_old_it_is() {
    holds_and_breaks_without(Mutant::AgedByAnyStamp, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        let mut x = table.take(&a, &first);
        table.pass(6);
        let longer = table.warm_round(&a, extend(first.lease_id), x.warm()).run(&[0, 1]);
        // Node 1 is the one whose clock may jump; node 2 knows only the stamp before the extension.
        table.jump(1, 10);
        table.pass(6);
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[1, 2]);
        one_holder(&longer, &y)
    });
}

#[test]
fn others_wait_for_the_whole_lease() {
    holds_and_breaks_without(Mutant::AgedEarly, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let x = table.take(&a, &table.acquire("x"));
        table.pass(6);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&x, &y)
    });
}

#[test]
fn a_lease_counts_from_before_its_accept_was_sent() {
    holds_and_breaks_without(Mutant::LeaseFromAnswer, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let mut x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]);
        x.to(&[0, 1]);
        let answers = x.reach(&[0, 1]);
        table.pass(3);
        x.hear(answers);
        table.pass(8);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&x, &y)
    });
}

#[test]
fn two_attempts_never_give_their_stamps_one_name() {
    holds_and_breaks_without(Mutant::StampsWithoutBallot, || {
        let table = Table::laid(3);
        let (a, b, c) = (table.daemon(1, 100), table.daemon(2, 200), table.daemon(3, 300));
        let first = table.acquire("x");
        let mut x = table.take(&a, &first);
        table.pass(1);
        // An extension that fails half way leaves its stamp on node 0, at second 1.
        let mut failed = table.warm_round(&a, extend(first.lease_id), x.warm());
        failed.to(&[0]);
        failed.give_up();
        table.pass(8);
        // One by another daemon starts from the same value, and is agreed on at second 9.
        let mut longer = table.round(&b, &[extend(first.lease_id)]);
        longer.to(&[1, 2]);
        longer.to(&[0, 1, 2]);
        table.jump(1, 10);
        table.pass(3);
        let y = table.round(&c, &[LockChange::Acquire(table.acquire("y"))]).run(&[0, 1]);
        one_holder(&longer, &y)
    });
}

/// A daemon died while a node's old data was being removed, and the node's clock was set right, hours back. Others see how
/// long the join has stood still, and not that it has just moved, until the clock has caught up.
#[test]
fn a_join_stands_still_also_on_a_node_whose_clock_was_set_back() {
    let table = Table::laid(3);
    table.jump(2, 8_000);
    Join::begun(&table, After::Kept, &[]);
    let idle = || match table.run(2, &Operation::Report(Report::default())) {
        Some(Answer::Reported(Reported { join: Some(join), .. })) => {
            assert!(join.wiping);
            join.idle.as_secs()
        }
        other => panic!("a join was expected: {other:?}"),
    };
    assert_eq!(idle(), 0);
    table.jump(2, -8_000);
    assert_eq!(idle(), 0, "its time starts anew");
    table.pass(20);
    assert_eq!(idle(), 20);
}
