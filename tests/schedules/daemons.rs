//! Whole daemons: what the driver, the facade and the member list's task see to.

use majorityd::lock::LockError;
use majorityd::members::State;
use majorityd::members::change::MemberChange;
use majorityd::mutant::Mutant;
use majorityd::node::embedded::{After, Keyspace};
use majorityd::node::operation::Operation;
use majorityd::register::RegisterError;

use super::stage::{ACCEPT, Clocks, RIGHT, Stage, Way};
use super::table::{Found, Table, ballot, first_list, founding, holds_and_breaks_without, promise};

pub fn not_both(one: bool, other: bool) -> Found {
    promise(!(one && other), "two hold the lock at one moment")
}

#[test]
fn a_lease_ends_for_its_holder_before_it_ends_for_others_also_on_uneven_clocks() {
    holds_and_breaks_without(Mutant::NoDriftMargin, || {
        let stage = Stage::on(Table::laid(3));
        // The clock of daemon 1 is slow by 0.1 %, those of the nodes are fast by 0.1 %.
        let (a, b) = (stage.daemon(1, Clocks { rate: 999, ..RIGHT }), stage.daemon(2, RIGHT));
        let x = stage.acquire(&a, "x", 1000, 0).lease();
        stage.pass(999_500);
        (0..3).for_each(|node| stage.table.jump(node, 1));
        let y = stage.acquire(&b, "y", 1000, 0).lease();
        assert!(x.is_some() && y.is_some());
        not_both(a.relies(x.as_ref()), b.relies(y.as_ref()))
    });
}

#[test]
fn a_late_answer_counts_in_its_own_round_or_nowhere() {
    holds_and_breaks_without(Mutant::LateWordsCount, || {
        let stage = Stage::on(Table::laid(3));
        let (a, b, c) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT), stage.daemon(3, RIGHT));
        b.way(0, Way::Cut);
        c.way(1, Way::Cut);
        // The first accept of x is stored on node 0 alone, and the answer is late.
        a.way(2, Way::Cut);
        a.way_of(0, ACCEPT, Way::KeepReply);
        a.way_of(1, ACCEPT, Way::Cut);
        let x = stage.acquire(&a, "x", 60, 0);
        // Meanwhile the others agree on another value: y had the lock and released it.
        a.way(0, Way::KeepRequest);
        a.way(1, Way::Cut);
        stage.pass(10);
        let y = stage.acquire(&b, "y", 60, 0);
        stage.pass(40);
        stage.release(&b, &y.lease().expect("it was free"));
        // The second accept of x is stored on node 1 alone.
        a.way(1, Way::Open);
        a.way(2, Way::Open);
        a.way_of(2, ACCEPT, Way::Cut);
        stage.pass(400);
        a.let_go_replies(0);
        stage.settle();
        let x = x.lease();
        let z = stage.acquire(&c, "z", 60, 0);
        stage.pass(100);
        not_both(a.relies(x.as_ref()), c.relies(z.lease().as_ref()))
    });
}

fn next_list() -> majorityd::members::MemberList {
    MemberChange::RaiseTtl { ttl_max_ms: 90_000 }.apply(&first_list(3)).expect("it is longer")
}

#[test]
fn no_round_comes_together_by_a_list_that_the_nodes_have_left() {
    holds_and_breaks_without(Mutant::GateOpen, || {
        let stage = Stage::on(Table::laid(3));
        let a = stage.daemon(1, RIGHT);
        (0..2).for_each(|node| stage.table.put_list(node, ballot(50, 9), &next_list()));
        let x = stage.acquire(&a, "x", 60, 0);
        promise(x.lease().is_none(), "q nodes hold a new list, and a round came together by the old one")
    });
}

#[test]
fn answers_under_two_lists_do_not_make_up_a_quorum() {
    holds_and_breaks_without(Mutant::MixedLists, || {
        let stage = Stage::on(Table::laid(3));
        let a = stage.daemon(1, RIGHT);
        a.way(2, Way::Cut);
        a.way_of(1, ACCEPT, Way::KeepRequest);
        let x = stage.acquire(&a, "x", 60, 0);
        // Node 0 has taken the accept by the old list; the others get the next one.
        (1..3).for_each(|node| stage.table.put_list(node, ballot(50, 9), &next_list()));
        a.let_go(1);
        stage.settle();
        a.way(0, Way::Cut);
        a.way(1, Way::Open);
        a.go_by(ballot(50, 9), next_list());
        stage.settle();
        promise(x.lease().is_none(), "one answer by each of two lists, and the round is done")
    });
}

#[test]
fn a_daemon_whose_clock_is_behind_is_served() {
    holds_and_breaks_without(Mutant::TokensUnobserved, || {
        let stage = Stage::on(Table::laid(3));
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, Clocks { behind_ms: 60_000, ..RIGHT }));
        let x = stage.acquire(&a, "x", 60, 0).lease().expect("it was free");
        stage.release(&a, &x);
        let y = stage.acquire(&b, "y", 60, 0);
        stage.pass(2_000);
        promise(y.lease().is_some(), "a daemon whose clock is a minute behind gets no lock")
    });
}

#[test]
fn who_waits_looks_although_nobody_wakes_it() {
    holds_and_breaks_without(Mutant::NoLook, || {
        let stage = Stage::on(Table::laid(3));
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
        let x = stage.acquire(&a, "x", 60, 0).lease().expect("it was free");
        stage.pass(10);
        let y = stage.acquire(&b, "y", 60, 90);
        stage.pass(1_000);
        stage.release(&a, &x);
        stage.pass(20_000);
        promise(y.lease().is_some(), "the lock is free, and the one who waits for it does not get it")
    });
}

#[test]
fn what_a_client_that_went_away_acquired_is_undone() {
    holds_and_breaks_without(Mutant::NoAbandon, || {
        let stage = Stage::on(Table::laid(3));
        let (a, b) = (stage.daemon(1, RIGHT), stage.daemon(2, RIGHT));
        (0..3).for_each(|node| a.way_of(node, ACCEPT, Way::KeepReply));
        let x = stage.acquire(&a, "x", 60, 0);
        x.go_away(&stage);
        (0..3).for_each(|node| {
            a.way(node, Way::Open);
            a.let_go(node);
        });
        stage.pass(2_000);
        let y = stage.acquire(&b, "y", 60, 0);
        stage.pass(1_000);
        promise(y.lease().is_some(), "the lock is held for one who went away")
    });
}

/// All servers lose everything at once.
fn flush(stage: &Stage, nodes: std::ops::Range<usize>) {
    stage.table.servers[nodes].iter().for_each(|server| server.edit(|held| *held = Keyspace::default()));
}

#[test]
fn a_daemon_that_has_seen_a_list_founds_only_with_waiting() {
    holds_and_breaks_without(Mutant::FoundsAgain, || {
        let stage = Stage::on(Table::bare(3));
        let a = stage.keeper(1, true);
        stage.pass(5_000);
        let x = stage.acquire(&a, "x", 60, 0).lease();
        assert!(x.is_some(), "a new cluster serves");
        flush(&stage, 0..3);
        stage.pass(10_000);
        let y = stage.acquire(&a, "y", 60, 0);
        stage.pass(5_000);
        not_both(a.relies(x.as_ref()), a.relies(y.lease().as_ref()))
    });
}

#[test]
fn a_founding_without_the_operators_word_waits_for_leases_to_run_out() {
    holds_and_breaks_without(Mutant::GrantsWhileRecovering, || {
        let stage = Stage::on(Table::laid(3));
        let a = stage.daemon(1, RIGHT);
        let x = stage.acquire(&a, "x", 60, 0).lease();
        assert!(x.is_some(), "it was free");
        flush(&stage, 0..3);
        let b = stage.keeper(2, false);
        stage.pass(10_000);
        let y = stage.acquire(&b, "y", 60, 0);
        stage.pass(5_000);
        not_both(a.relies(x.as_ref()), b.relies(y.lease().as_ref()))
    });
}

/// The list on a node that joined since is young, and so is its stamp there.
#[test]
fn a_wait_that_is_over_does_not_begin_again_when_a_node_that_knows_of_it_is_gone() {
    let stage = Stage::on(Table::laid(3));
    flush(&stage, 0..3);
    let a = stage.keeper(2, false);
    stage.pass(15_000);
    let taken = |name| stage.acquire_one(&a, name, "x", 30, 0).lease().is_some();
    assert!(!taken("early"), "others may hold it");
    stage.pass(70_000);
    assert!(taken("late"), "the wait is over");
    stage.restart(2, After::Wiped, &[&a]);
    stage.pass(20_000);
    assert!(a.view().list.entries.iter().all(|entry| entry.state == State::Member), "it has joined");
    a.way(0, Way::Cut);
    stage.pass(5_000);
    assert!(taken("later"), "two nodes are enough, and the wait is over");
}

#[test]
fn the_operators_word_is_not_for_a_founding_that_somebody_else_began() {
    holds_and_breaks_without(Mutant::FoundingTrusted, || {
        let stage = Stage::on(Table::laid(3));
        let a = stage.daemon(1, RIGHT);
        let x = stage.acquire(&a, "x", 60, 0).lease();
        assert!(x.is_some(), "it was free");
        flush(&stage, 0..3);
        // Somebody began to found, without the operator's word, and crashed before the memories were given.
        let b = stage.keeper(2, true);
        let begun = majorityd::members::MemberList { founding: true, ..first_list(3) };
        (0..3).for_each(|node| stage.table.put_list(node, ballot(50, 9), &begun));
        stage.pass(15_000);
        let y = stage.acquire(&b, "y", 60, 0);
        stage.pass(5_000);
        not_both(a.relies(x.as_ref()), b.relies(y.lease().as_ref()))
    });
}

#[test]
fn all_nodes_found_a_cluster_or_none() {
    holds_and_breaks_without(Mutant::FoundsWithQuorum, || {
        let stage = Stage::on(Table::laid(3));
        let a = stage.daemon(1, RIGHT);
        let x = stage.acquire(&a, "x", 60, 0).lease();
        assert!(x.is_some(), "it was free");
        flush(&stage, 0..2);
        // Node 2 knows better, but can't be reached.
        let b = stage.keeper(2, true);
        b.way(2, Way::Cut);
        stage.pass(10_000);
        let y = stage.acquire(&b, "y", 60, 0);
        stage.pass(5_000);
        not_both(a.relies(x.as_ref()), b.relies(y.lease().as_ref()))
    });
}

#[test]
fn nobody_goes_by_a_founding_that_is_not_confirmed() {
    holds_and_breaks_without(Mutant::FoundingServed, || {
        let table = Table::bare(3);
        let begun = majorityd::members::MemberList { founding: true, ..first_list(3) };
        for (node, member) in (0..3).zip(&begun.entries) {
            table.put_list(node, founding(), &begun);
            table.run(node, &Operation::Found { founding: founding(), memory: member.memory.0 });
        }
        let stage = Stage::on(table);
        let a = stage.keeper(1, true);
        stage.pass(1_000);
        promise(
            a.cluster.views.current().is_none(),
            "a daemon goes by a list that its founder may start over",
        )
    });
}

#[test]
fn whose_time_is_up_is_told_that_a_look_has_failed_and_does_not_wait_for_its_deadline() {
    let stage = Stage::on(Table::laid(3));
    let a = stage.daemon(1, RIGHT);
    (0..3).for_each(|node| a.way(node, Way::Cut));
    let x = stage.acquire(&a, "x", 60, 1);
    stage.pass(900);
    assert!(x.ended().is_none(), "its time is not up");
    // Longer than a look goes on without a quorum, and far from the deadline.
    stage.pass(10_000);
    let told = x.ended();
    let told_that_nobody_answers =
        matches!(&told, Some(Err(LockError::Register(RegisterError::NoQuorum { .. }))));
    assert!(told_that_nobody_answers, "{told:?}");
}

#[test]
fn a_daemon_whose_nodes_can_be_reached_again_looks_for_a_list_at_once() {
    let stage = Stage::on(Table::laid(3));
    let daemon = stage.keeper(1, false);
    (0..3).for_each(|node| daemon.way(node, Way::Cut));
    stage.pass(10_000);
    assert!(daemon.cluster.views.current().is_none());
    (0..3).for_each(|node| daemon.way(node, Way::Open));
    // As the server does when the state of a node has changed.
    daemon.cluster.views.want();
    stage.pass(25);
    assert!(daemon.cluster.views.current().is_some());
}
