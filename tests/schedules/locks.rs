//! Locks: protocol, section 4.

use std::time::Duration;

use majorityd::lock::change::Acquire;
use majorityd::mutant::Mutant;

use super::table::{
    Table, abandon, each_is_enough, extend, holds_and_breaks_without, one_holder, promise, release,
};

#[test]
fn a_late_release_does_not_end_what_the_same_owner_acquired_after_it() {
    holds_and_breaks_without(Mutant::KeepsLeaseId, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        let mut x = table.take(&a, &first);
        // The release is still under way when the same owner acquires again by another daemon.
        let late = table.warm_round(&a, release(first.lease_id), x.warm());
        let again = table.take(&b, &table.acquire("x"));
        a.tokens_from(300);
        late.run(&[0, 1, 2]);
        b.tokens_from(400);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&again, &y)
    });
}

#[test]
fn abandon_does_not_free_a_lease_that_was_granted_under_another_id() {
    holds_and_breaks_without(Mutant::AbandonIgnoresFirst, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let x = table.take(&a, &table.acquire("x"));
        // A second call of the same owner goes through, but its client has gone away.
        let second = table.acquire("x");
        table.take(&b, &second);
        table.round(&b, &[abandon(second.lease_id)]).run(&[0, 1, 2]);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&x, &y)
    });
}

#[test]
fn what_was_taken_over_is_not_abandoned_by_whom_it_was_granted_to() {
    holds_and_breaks_without(Mutant::FirstStays, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        // Granted, but its daemon does not know. The client asks again, at another daemon, and goes by that lease.
        let first = table.acquire("x");
        table.take(&a, &first);
        let x = table.take(&b, &table.acquire("x"));
        // Now the first daemon tries once more, and then undoes what nobody waits for.
        a.tokens_from(300);
        table.take(&a, &first);
        table.round(&a, &[abandon(first.lease_id)]).run(&[0, 1, 2]);
        b.tokens_from(400);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&x, &y)
    });
}

#[test]
fn a_lease_taken_again_ends_no_earlier_than_the_one_that_it_voids() {
    holds_and_breaks_without(Mutant::TakenShorter, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let x = table.take(&a, &table.acquire("x"));
        // An older call of the same owner, for a shorter time, gets through only now.
        let older = Acquire { ttl: Duration::from_secs(2), ..table.acquire("x") };
        table.take(&b, &older);
        table.pass(3);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&x, &y)
    });
}

#[test]
fn only_the_lease_id_releases() {
    holds_and_breaks_without(Mutant::ReleaseByAnyone, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let x = table.take(&a, &table.acquire("x"));
        let stranger = table.acquire("stranger");
        table.round(&b, &[release(stranger.lease_id)]).run(&[0, 1, 2]);
        let y = table.take(&b, &table.acquire("y"));
        one_holder(&x, &y)
    });
}

#[test]
fn only_the_lease_id_extends() {
    holds_and_breaks_without(Mutant::ExtendByAnyone, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let lost = table.acquire("x");
        table.take(&a, &lost);
        table.pass(11);
        let y = table.take(&b, &table.acquire("y"));
        a.tokens_from(300);
        let x = table.round(&a, &[extend(lost.lease_id)]).run(&[0, 1, 2]);
        one_holder(&x, &y)
    });
}

#[test]
fn a_released_lock_goes_to_the_first_in_line() {
    holds_and_breaks_without(Mutant::LineIgnored, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        table.take(&a, &first);
        let waiter = table.wait_for(&b, "y", 150);
        table.take(&b, &waiter);
        a.tokens_from(300);
        table.round(&a, &[release(first.lease_id)]).run(&[0, 1, 2]);
        let z = table.take(&a, &table.acquire("z"));
        promise(!z.holds(), "who came last was served before the first in line")
    });
}

#[test]
fn a_turn_that_nobody_takes_passes() {
    holds_and_breaks_without(Mutant::OffersNeverAge, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        table.take(&a, &first);
        // Daemon 2 crashes after its waiter got a place.
        table.take(&b, &table.wait_for(&b, "y", 150));
        a.tokens_from(300);
        table.round(&a, &[release(first.lease_id)]).run(&[0, 1, 2]);
        table.pass(3);
        let z = table.take(&a, &table.acquire("z"));
        promise(z.holds(), "the lock is kept for one who crashed, for longer than the grace")
    });
}

#[test]
fn a_lock_is_not_kept_for_ever_for_one_who_crashed() {
    each_is_enough(&[Mutant::OffersNeverAge, Mutant::PlacesNeverAge], || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let first = table.acquire("x");
        table.take(&a, &first);
        table.take(&b, &table.wait_for(&b, "y", 150));
        a.tokens_from(300);
        table.round(&a, &[release(first.lease_id)]).run(&[0, 1, 2]);
        table.pass(60);
        let z = table.take(&a, &table.acquire("z"));
        promise(z.holds(), "the lock is kept for one who crashed")
    });
}

#[test]
fn a_place_that_nobody_renews_is_dropped() {
    holds_and_breaks_without(Mutant::PlacesNeverAge, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        table.take(&a, &table.acquire("x"));
        table.take(&b, &table.wait_for(&b, "y", 150));
        table.pass(60);
        a.tokens_from(300);
        let z = table.take(&a, &table.acquire("z"));
        promise(z.holds(), "one who crashed a minute ago is still before others in line")
    });
}
