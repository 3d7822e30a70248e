//! Joins by hand on a [`Table`]: the steps that the daemon which made the id takes, each when the schedule says so.

use majorityd::ids::{MemoryId, NodeIndex};
use majorityd::members::View;
use majorityd::members::change::MemberChange;
use majorityd::node::embedded::After;
use majorityd::node::operation::{Answer, Operation, Page, PageRequest, RegisterKey};
use majorityd::token::Ballot;

use super::table::{Hand, Table, ballot, first_view};

/// One join.
pub struct Join<'a> {
    table: &'a Table,
    node: NodeIndex,
    /// The list in which the node joins.
    pub view: View,
}

impl<'a> Join<'a> {
    /// An id is made for a node, and a list with it in place of `was`. No node has that list yet.
    pub fn proposed(table: &'a Table, node: u8, was: &View, vid: Ballot, id: u64) -> Self {
        let node = NodeIndex(node);
        let entry = *was.list.entry(node).expect("a node of the table");
        let change = MemberChange::Rejoin { node, was: entry, fresh: MemoryId(id) };
        let list = change.apply(&was.list).expect("another id");
        Self { table, node, view: View { vid, list, grants: true } }
    }

    /// Node 2 restarts. The list in which it joins is agreed on, all nodes have it, and the join has begun.
    pub fn begun(table: &'a Table, after: After, daemons: &[&Hand]) -> Self {
        table.restart(2, after, daemons);
        let join = Self::proposed(table, 2, &first_view(table.size.nodes()), ballot(40, 9), 33);
        join.put(&table.all());
        assert!(join.begin());
        join
    }

    /// These nodes get the list.
    pub fn put(&self, nodes: &[u8]) {
        nodes.iter().for_each(|node| self.table.put_list(*node, self.view.vid, &self.view.list));
    }

    fn memory(&self) -> MemoryId {
        self.view.list.entry(self.node).expect("a node of the table").memory
    }

    fn run(&self, operation: &Operation) -> Option<Answer> {
        self.table.run_by(self.view.vid, self.node.0, operation)
    }

    /// `begin_join` arrives; whether it did anything.
    pub fn begin(&self) -> bool {
        let begin = Operation::BeginJoin { list: self.view.vid, memory: self.memory(), recovery: None };
        self.run(&begin) == Some(Answer::Accepted)
    }

    /// All that a source holds, unless it goes by another list.
    pub fn page(&self, source: u8) -> Option<Page> {
        let request = PageRequest {
            cursor: PageRequest::START,
            count: 100,
            bytes: 1 << 20,
            recovery: None,
            with_values: true,
            keys: Vec::new(),
        };
        match self.table.run_by(self.view.vid, source, &Operation::Page(request))? {
            Answer::Page(page) => Some(page).filter(|page| page.cursor == PageRequest::START),
            other => panic!("a page was expected: {other:?}"),
        }
    }

    /// A page arrives at the node; whether it was taken.
    pub fn merge(&self, page: &Page) -> bool {
        let row = |(key, raw): &(RegisterKey, Option<_>)| (key.clone(), Option::clone(raw).expect("a value"));
        let rows = page.rows.iter().map(row).collect();
        let merge = Operation::Merge { memory: self.memory(), floor: page.floor, rows };
        loop {
            match self.run(&merge) {
                // The old data goes first.
                Some(Answer::Wiping) => {}
                answer => return answer == Some(Answer::Accepted),
            }
        }
    }

    /// Everything from one source; whether it was copied.
    pub fn copy(&self, source: u8) -> bool {
        self.page(source).is_some_and(|page| self.merge(&page))
    }

    /// `end_join` arrives; whether the node agrees.
    pub fn end(&self) -> bool {
        self.run(&Operation::EndJoin { memory: self.memory() }) == Some(Answer::Accepted)
    }

    /// The node is a member, by a list that these nodes have.
    pub fn promoted(&self, nodes: &[u8]) -> View {
        let change = MemberChange::Promote { node: self.node, memory: self.memory() };
        let list = change.apply(&self.view.list).expect("it is joining");
        let vid = ballot(self.view.vid.token.get() + 10, 9);
        nodes.iter().for_each(|node| self.table.put_list(*node, vid, &list));
        View { vid, list, grants: true }
    }

    /// The copy from both others, its end, and the list that says so on all nodes.
    pub fn completed(&self) -> View {
        assert!(self.copy(1) && self.copy(0) && self.end());
        self.promoted(&self.table.all())
    }
}
