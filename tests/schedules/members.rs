//! Who may vote: protocol, section 2.

use majorityd::ids::{MemoryId, NodeIndex};
use majorityd::lock::change::LockChange;
use majorityd::members::change::{Judgement, MemberChange, judge};
use majorityd::members::{State, View};
use majorityd::mutant::Mutant;
use majorityd::node::embedded::After;
use majorityd::node::operation::Operation;
use majorityd::token::Ballot;

use super::stage::{Daemon, Stage, Way};
use super::table::{
    Table, ballot, each_is_enough, first_list, founding, holds_and_breaks_without, one_holder, promise,
};

#[test]
fn a_server_that_restarted_with_older_data_does_not_count() {
    holds_and_breaks_without(Mutant::RestartUnnoticed, || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let older = table.snapshot(0);
        let x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]).run(&[0, 1]);
        table.restart(0, After::Replaced(older), &[&a, &b]);
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[0, 2]);
        one_holder(&x, &y)
    });
}

#[test]
fn a_node_that_was_emptied_and_got_the_list_again_does_not_count() {
    // It refuses to serve, and what it answers does not count: either would do.
    each_is_enough(&[Mutant::ServesWithoutMemory, Mutant::MemoryIgnored], || {
        let table = Table::laid(3);
        let (a, b) = (table.daemon(1, 100), table.daemon(2, 200));
        let x = table.round(&a, &[LockChange::Acquire(table.acquire("x"))]).run(&[0, 1]);
        table.restart(0, After::Wiped, &[&a, &b]);
        table.put_list(0, founding(), &first_list(3));
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&[0, 2]);
        one_holder(&x, &y)
    });
}

/// Which list these nodes show as agreed on.
pub fn agreed(table: &Table, nodes: &[u8]) -> Option<Ballot> {
    match judge(&table.lists(nodes), table.size) {
        Judgement::Committed { record, .. } => Some(record.vid),
        _ => None,
    }
}

fn next_list() -> majorityd::members::MemberList {
    MemberChange::RaiseTtl { ttl_max_ms: 90_000 }.apply(&first_list(3)).expect("it is longer")
}

#[test]
fn the_list_itself_counts_by_memories() {
    holds_and_breaks_without(Mutant::MemoryIgnored, || {
        let table = Table::laid(3);
        let older = table.snapshot(0);
        let next = ballot(50, 1);
        table.put_list(0, next, &next_list());
        table.put_list(1, next, &next_list());
        assert_eq!(agreed(&table, &[0, 1]), Some(next));
        table.restart(0, After::Replaced(older), &[]);
        promise(agreed(&table, &[0, 2]).is_none(), "a list is read as agreed on although a later one is")
    });
}

#[test]
fn a_list_on_fewer_than_q_nodes_is_not_gone_by() {
    holds_and_breaks_without(Mutant::ListUncommitted, || {
        let table = Table::laid(3);
        table.put_list(0, ballot(50, 1), &next_list());
        let (earlier, later) = (agreed(&table, &[0, 1]), agreed(&table, &[1, 2]));
        promise(earlier <= later, "one daemon goes by a list, and later another by the one before it")
    });
}

#[test]
fn a_late_gift_of_a_founder_takes_no_memory_away() {
    holds_and_breaks_without(Mutant::FoundUnchecked, || {
        let table = Table::bare(3);
        let late = Operation::Found { founding: founding(), memory: 33 };
        (0..3).for_each(|node| table.put_list(node, founding(), &first_list(3)));
        // Another daemon starts the founding over, and gives node 2 its memory.
        let over = ballot(50, 2);
        let mut list = first_list(3);
        list.entries[2].memory = MemoryId(44);
        table.put_list(2, over, &list);
        table.run(2, &Operation::Found { founding: over, memory: 44 });
        table.run(2, &late);
        let answers = table.lists(&[2]);
        promise(list.counts(NodeIndex(2), answers[0].memory), "a late message took a member's memory away")
    });
}

// ---- out

/// Node 2 is gone for long. X releases the lock meanwhile, and it is forgotten; then node 2 is back with what it had.
fn gone_for_long(stage: &Stage) -> (Daemon, Vec<u8>) {
    let keeper = stage.keeper(1, false);
    stage.reports(&keeper);
    stage.forgets(&keeper);
    stage.pass(1_000);
    let x = stage.acquire(&keeper, "x", 60, 0).lease().expect("it was free");
    stage.gone(2);
    stage.release(&keeper, &x);
    stage.pass(30_000);
    let left = stage.recorded(&keeper, "l:lock");
    (keeper, left)
}

fn state_of_node_2(keeper: &Daemon) -> State {
    keeper.view().list.entries[2].state
}

#[test]
fn a_node_that_nobody_reaches_does_not_keep_the_others_from_forgetting() {
    holds_and_breaks_without(Mutant::NeverOut, || {
        let (_, left) = gone_for_long(&Stage::on(Table::laid(3)));
        promise(left.is_empty(), "what says nothing stays for as long as a node is gone")
    });
}

#[test]
fn a_node_that_was_out_joins_when_it_is_back() {
    holds_and_breaks_without(Mutant::KeepsOldData, || {
        let stage = Stage::on(Table::laid(3));
        let (keeper, _) = gone_for_long(&stage);
        assert_eq!(state_of_node_2(&keeper), State::Out);
        stage.restart(2, After::Kept, &[&keeper]);
        stage.pass(10_000);
        assert_eq!(state_of_node_2(&keeper), State::Member);
        keeper.way(1, Way::Cut);
        let z = stage.acquire(&keeper, "z", 60, 0);
        stage.pass(1_000);
        promise(z.lease().is_some(), "x released the lock, that was forgotten, and x holds it again")
    });
}

/// A daemon finds that nobody has reached node 2 for long. Before it says so in the list, node 2 is back, and node 1 loses its
/// memory.
#[test]
fn nobody_is_put_out_below_a_quorum() {
    holds_and_breaks_without(Mutant::OutBelowQuorum, || {
        let table = Table::laid(3);
        let b = table.daemon(2, 200);
        table.restart(1, After::Wiped, &[&b]);
        let entries = first_list(3).entries;
        let joining = MemberChange::Rejoin { node: NodeIndex(1), was: entries[1], fresh: MemoryId(9) };
        let joining = joining.apply(&first_list(3)).expect("it was a member");
        let out = MemberChange::PutOut { node: NodeIndex(2), was: entries[2], quorum: 2 }.apply(&joining);
        let list = out.unwrap_or(joining);
        let vid = ballot(50, 9);
        table.all().into_iter().for_each(|node| table.put_list(node, vid, &list));
        b.go_by(&View { vid, list, grants: true });
        let y = table.round(&b, &[LockChange::Acquire(table.acquire("y"))]).run(&table.all());
        promise(y.holds(), "only node 1 is without its memory, and nobody is served")
    });
}
