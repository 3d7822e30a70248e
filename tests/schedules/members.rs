//! Who may vote: protocol, section 2.

use majorityd::ids::{MemoryId, NodeIndex};
use majorityd::lock::change::LockChange;
use majorityd::members::change::{Judgement, MemberChange, judge};
use majorityd::mutant::Mutant;
use majorityd::node::embedded::After;
use majorityd::node::operation::Operation;
use majorityd::token::Ballot;

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
