//! What daemons do with the member list and with nodes that join (section 2), and what breaks.

use crate::model::{Action, Keeps, ListChange, Register, subsets};
use crate::mutants::Mutant;
use crate::state::*;

impl Register {
    /// Whether an answer out of this memory counts by this list.
    fn counts_by(&self, list: &List, node: usize, memory: u8) -> bool {
        let Entry::Member(listed) = list[node] else { return false };
        listed == memory || self.is(Mutant::MemoryNotChecked)
    }

    pub fn list_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for ballot in self.list_ballots() {
            let round = &state.lists[usize::from(ballot)];
            if round.proposed {
                actions.extend((0..N).map(|node| Action::AcceptList { ballot, node }));
                continue;
            }
            let promised = if self.bounds.lists_by_message {
                actions.extend((0..N).map(|node| Action::PrepareList { ballot, node }));
                (0..N).filter(|node| round.promised[*node].is_some()).fold(0, with)
            } else if state.lists[usize::from(ballot) - 1].proposed {
                (0..N).filter(|node| state.nodes[*node].list.promise < ballot).fold(0, with)
            } else {
                0
            };
            for quorum in subsets(promised) {
                let Some(base) = self.judge(state, ballot, quorum) else { continue };
                let changes = self.list_changes(state, base);
                actions.extend(changes.map(|change| Action::ProposeList { ballot, quorum, change }));
            }
        }
    }

    /// The promises of an attempt on the list, as (ballot held, memory).
    fn list_promise(&self, state: &State, ballot: u8, node: usize) -> (u8, u8) {
        let now = (state.nodes[node].list.ballot, state.nodes[node].memory);
        state.lists[usize::from(ballot)].promised[node].unwrap_or(now)
    }

    /// The vid of the list to start from: of all these answers the one with the highest ballot, if q count by it.
    fn judge(&self, state: &State, ballot: u8, answers: Set) -> Option<u8> {
        let seen = || (0..N).filter(|n| has(answers, *n)).map(|n| (n, self.list_promise(state, ballot, n)));
        let highest = seen().map(|(_, (held, _))| held).max()?;
        let base = state.lists[usize::from(highest)].vid;
        let counting = seen().filter(|(node, (_, memory))| self.counts_by(state.list(base), *node, *memory));
        (counting.count() >= Q as usize).then_some(base)
    }

    fn list_changes(&self, state: &State, base: u8) -> impl Iterator<Item = ListChange> {
        let list = *state.list(base);
        let nodes = state.nodes;
        let ended = state.joins.map(|join| join.ended);
        let change = move |node: usize| match list[node] {
            Entry::Member(memory) => [(memory != nodes[node].memory).then_some(ListChange::Join(node)), None],
            Entry::Joining(id) => {
                let complete = ended[usize::from(id) - 1] || self.is(Mutant::PromotedEarly);
                [
                    complete.then_some(ListChange::Promote(node)),
                    self.bounds.starts_over.then_some(ListChange::Join(node)),
                ]
            }
            Entry::Unset => [None, None],
        };
        let finish = self.bounds.finishes.then_some(ListChange::Finish);
        (0..N).flat_map(change).flatten().chain(finish)
    }

    pub fn prepare_list(&self, state: &mut State, ballot: u8, node: usize) {
        let Node { list, memory, .. } = &mut state.nodes[node];
        if list.promise < ballot {
            list.promise = ballot;
            state.lists[usize::from(ballot)].promised[node] = Some((list.ballot, *memory));
        }
    }

    pub fn propose_list(&self, state: &mut State, ballot: u8, quorum: Set, change: ListChange) {
        let Some(base) = self.judge(state, ballot, quorum) else { return };
        if !self.bounds.lists_by_message {
            for node in (0..N).filter(|node| has(quorum, *node)) {
                state.nodes[node].list.promise = ballot;
            }
        }
        let mut list = *state.list(base);
        match (change, list) {
            (ListChange::Finish, _) => {}
            (ListChange::Join(node), _) => list[node] = Entry::Joining(ballot + 1),
            (ListChange::Promote(node), before) => {
                if let Entry::Joining(id) = before[node] {
                    list[node] = Entry::Member(id);
                }
            }
        }
        let finishes = change == ListChange::Finish;
        state.lists[usize::from(ballot)] = ListRound {
            proposed: true,
            base,
            vid: if finishes { base } else { ballot },
            list: if finishes { List::default() } else { list },
            ..ListRound::default()
        };
    }

    pub fn accept_list(&self, state: &mut State, ballot: u8, node: usize) {
        let held = &mut state.nodes[node].list;
        let again = held.ballot == ballot && !held.copied;
        if !again && ballot < held.promise {
            return;
        }
        if !again {
            *held = Record { promise: ballot, ballot, copied: false };
        }
        let ListRound { base, vid, .. } = state.lists[usize::from(ballot)];
        let memory = state.nodes[node].memory;
        let taken = self.counts_by(state.list(base), node, memory);
        let readable = self.counts_by(state.list(vid), node, memory);
        let round = &mut state.lists[usize::from(ballot)];
        round.taken = if taken { with(round.taken, node) } else { round.taken };
        round.readable = if readable { with(round.readable, node) } else { round.readable };
    }

    pub fn join_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let repeated = self.is(Mutant::BegunTwice) || self.is(Mutant::BegunAfterRestart);
        for ballot in self.list_ballots() {
            let round = &state.lists[usize::from(ballot)];
            let joining = round.list.iter().position(|entry| *entry == Entry::Joining(ballot + 1));
            let Some(node) = joining else { continue };
            let join = &state.joins[usize::from(ballot)];
            // Sent by the daemon that proposed the id, once it has seen that it is agreed on.
            if round.taken.count_ones() >= Q && (!join.begun || repeated) {
                actions.push(Action::BeginJoin { join: ballot, node });
            }
            for source in (0..N).filter(|source| *source != node) {
                if join.merges[source].is_some() {
                    actions.push(Action::Merge { join: ballot, node, source });
                } else if let Some(list) = self.copies_under(state, node, ballot + 1, source) {
                    actions.push(Action::CopyFrom { join: ballot, node, source, list });
                }
            }
            let needed = if self.is(Mutant::CopiedFromOne) { 1 } else { Q };
            if join.merged.count_ones() >= needed {
                actions.push(Action::EndJoin { join: ballot, node });
            }
        }
    }

    /// The list under which this source may be read for a copy now: a known one in which the node is joining.
    fn copies_under(&self, state: &State, node: usize, id: u8, source: usize) -> Option<u8> {
        let too_soon = self.is(Mutant::CopiedTooSoon);
        let lists = if too_soon { 0..=self.bounds.lists } else { 0..=0 };
        let joins = |list: &u8| too_soon || state.list(*list)[node] == Entry::Joining(id);
        let mut lists = self.known_lists(state).chain(lists).filter(joins);
        lists.find(|list| self.passes(state, source, *list) && self.counts(state, *list, source))
    }

    pub fn deliver_begin_join(&self, state: &mut State, join: u8, node: usize) {
        if self.begin_join(state, node, join + 1) {
            state.joins[usize::from(join)].begun = true;
        }
    }

    pub fn copy_from(&self, state: &mut State, join: u8, source: usize) {
        let Node { record, floor, list, .. } = state.nodes[source];
        state.joins[usize::from(join)].merges[source] = Some((record, floor, list));
    }

    pub fn deliver_merge(&self, state: &mut State, join: u8, node: usize, source: usize) {
        let Some(from) = state.joins[usize::from(join)].merges[source] else { return };
        if self.merge(state, node, join + 1, from) {
            let merged = &mut state.joins[usize::from(join)].merged;
            *merged = with(*merged, source);
        }
    }

    pub fn deliver_end_join(&self, state: &mut State, join: u8, node: usize) {
        if self.end_join(state, node, join + 1) {
            state.joins[usize::from(join)].ended = true;
        }
    }

    pub fn fault_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.restarts == self.bounds.restarts {
            return;
        }
        // Nodes differ in nothing but their names, so the first to be restarted may as well be called 2.
        let first = if state.restarts == 0 { N - 1 } else { 0 };
        if self.bounds.saves && state.restarts == 0 && state.nodes[N - 1].saved.is_none() {
            actions.push(Action::Save { node: N - 1 });
        }
        for node in first..N {
            // Fewer than q may have lost their memory. A node has, from its restart until it is agreed to be a member.
            let list = state.agreed_list();
            if (0..N).all(|other| other == node || self.counts(state, list, other)) {
                actions.push(Action::Restart { node, keeps: Keeps::Everything });
                actions.push(Action::Restart { node, keeps: Keeps::Nothing });
                if state.nodes[node].saved.is_some() {
                    actions.push(Action::Restart { node, keeps: Keeps::Saved });
                }
            }
        }
    }

    pub fn save(&self, state: &mut State, node: usize) {
        let Node { record, floor, list, .. } = state.nodes[node];
        state.nodes[node].saved = Some((record, floor, list));
    }

    pub fn restart(&self, state: &mut State, node: usize, keeps: Keeps) {
        state.restarts += 1;
        let node = &mut state.nodes[node];
        if !self.is(Mutant::MemoryNotChecked) {
            node.memory = 0;
        }
        node.ended = false;
        let saved = node.saved.take();
        match keeps {
            Keeps::Everything => {}
            Keeps::Saved => (node.record, node.floor, node.list) = saved.unwrap_or_default(),
            Keeps::Nothing => (node.record, node.floor, node.list) = Default::default(),
        }
    }
}
