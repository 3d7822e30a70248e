//! A lock that is known to be free is tried for before anybody stands in line.

use majorityd::lock::{Acquisition, Lease};
use majorityd::mutant::Mutant;

use super::stage::{ACCEPT, Daemon, RIGHT, Stage, Way};
use super::table::{Table, holds_and_breaks_without, promise};

/// A daemon that knows the lock to be free, as it released it last.
fn freed(stage: &Stage) -> Daemon {
    let a = stage.daemon(1, RIGHT);
    let before = stage.acquire(&a, "before", 60, 90).lease().expect("it was free");
    stage.release(&a, &before);
    a
}

/// The lock is another daemon's now.
fn taken(stage: &Stage, b: &Daemon) -> Lease {
    let y = stage.acquire(b, "y", 60, 0);
    stage.pass(1_000);
    y.lease().expect("it was free")
}

fn keep_replies(a: &Daemon) {
    (0..3).for_each(|node| a.way_of(node, ACCEPT, Way::KeepReply));
}

fn open(stage: &Stage, a: &Daemon) {
    (0..3).for_each(|node| {
        a.way(node, Way::Open);
        a.let_go(node);
    });
    stage.pass(2_000);
}

#[test]
fn what_is_free_is_had_at_once_and_nobody_stands_in_line() {
    let stage = Stage::on(Table::laid(3));
    let a = freed(&stage);
    keep_replies(&a);
    let x = stage.acquire(&a, "x", 60, 90);
    assert_eq!(a.locks.waiters(), 0, "it tries");
    open(&stage, &a);
    assert!(x.lease().is_some());
}

#[test]
fn who_finds_it_taken_stands_in_line_where_it_came() {
    let stage = Stage::on(Table::laid(3));
    let a = freed(&stage);
    let b = stage.daemon(2, RIGHT);
    let y = taken(&stage, &b);
    keep_replies(&a);
    // One tries, and another, who comes later, is in line before it.
    let (x, z) = (stage.acquire(&a, "x", 60, 90), stage.acquire(&a, "z", 60, 90));
    assert_eq!(a.locks.waiters(), 1);
    open(&stage, &a);
    assert_eq!(a.locks.waiters(), 2);
    stage.release(&b, &y);
    stage.pass(10_000);
    let x = x.lease().expect("it came first");
    assert!(z.lease().is_none());
    stage.release(&a, &x);
    stage.pass(10_000);
    assert!(z.lease().is_some());
}

#[test]
fn whose_time_is_up_when_it_has_tried_is_told_what_it_found() {
    let stage = Stage::on(Table::laid(3));
    let a = freed(&stage);
    let b = stage.daemon(2, RIGHT);
    taken(&stage, &b);
    keep_replies(&a);
    let x = stage.acquire(&a, "x", 60, 1);
    stage.pass(1_100);
    assert!(x.ended().is_none(), "it does not know yet");
    (0..3).for_each(|node| {
        a.way(node, Way::Open);
        a.let_go(node);
    });
    stage.pass(1_000);
    assert!(matches!(x.ended(), Some(Ok(Acquisition::Contended(_)))));
    assert_eq!(a.locks.waiters(), 0);
}

#[test]
fn an_attempt_of_which_nobody_can_tell_goes_on_in_line_under_the_same_lease_id() {
    let stage = Stage::on(Table::laid(3));
    let a = freed(&stage);
    let b = stage.daemon(2, RIGHT);
    keep_replies(&a);
    let x = stage.acquire(&a, "x", 60, 90);
    stage.pass(20_000);
    assert!(x.ended().is_none());
    assert_eq!(a.locks.waiters(), 1, "it has tried, and does not know");
    open(&stage, &a);
    stage.pass(20_000);
    let x = x.lease().expect("nobody else wants it");
    assert!(stage.acquire(&b, "y", 60, 0).lease().is_none());
    stage.release(&a, &x);
    stage.pass(1_000);
    assert!(stage.acquire(&b, "y", 60, 0).lease().is_some(), "what was released is free");
}

/// Nothing that was sent later tells of it: that the first attempt may have got the lock is known by its mark alone.
#[test]
fn what_the_first_attempt_may_have_got_is_undone_though_no_other_was_sent() {
    let stage = Stage::on(Table::laid(3));
    let a = freed(&stage);
    let b = stage.daemon(2, RIGHT);
    keep_replies(&a);
    let x = stage.acquire(&a, "x", 300, 90);
    (0..3).for_each(|node| a.way(node, Way::Cut));
    stage.pass(10_000);
    assert_eq!(a.locks.waiters(), 1, "it has tried, and does not know");
    x.go_away(&stage);
    open(&stage, &a);
    let y = stage.acquire(&b, "y", 60, 0);
    stage.pass(1_000);
    assert!(y.lease().is_some(), "the lock is held for one who went away");
}

#[test]
fn what_a_client_that_went_away_meanwhile_acquired_is_undone() {
    for milliseconds in [0, 20_000] {
        holds_and_breaks_without(Mutant::NoAbandon, || {
            let stage = Stage::on(Table::laid(3));
            let a = freed(&stage);
            let b = stage.daemon(2, RIGHT);
            keep_replies(&a);
            let x = stage.acquire(&a, "x", 300, 90);
            // It tries, or it has tried and stands in line.
            stage.pass(milliseconds);
            x.go_away(&stage);
            open(&stage, &a);
            let y = stage.acquire(&b, "y", 60, 0);
            stage.pass(1_000);
            promise(y.lease().is_some(), "the lock is held for one who went away")
        });
    }
}
