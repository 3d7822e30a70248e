//! What a node does with one message (sections 1, 2 and 5 of the protocol). A node knows itself and nothing else.

use crate::model::Register;
use crate::mutants::Mutant;
use crate::state::{Entry, Record, State};

impl Register {
    /// Whether a node lets a batch pass that goes by this list: the gate, and no service without a memory.
    pub fn passes(&self, state: &State, node: usize, list: u8) -> bool {
        let gated = state.own_list(node) != list && !self.is(Mutant::NoGate);
        let without_memory = state.nodes[node].memory == 0 && !self.is(Mutant::MemoryNotChecked);
        !gated && !without_memory
    }

    /// Whether a node takes prepares and accepts of this batch: a joining node takes none.
    pub fn takes_live(&self, state: &State, node: usize, list: u8) -> bool {
        let own = state.list(state.own_list(node))[node];
        let joining = matches!(own, Entry::Joining(_)) && !self.is(Mutant::LiveWhileJoining);
        self.passes(state, node, list) && !joining
    }

    /// On an absent record nothing at or below the floor is taken.
    fn under_floor(&self, record: &Record, floor: u8, ballot: u8) -> bool {
        record.promise == 0 && ballot <= floor && !self.is(Mutant::NoFloor)
    }

    /// Whether it was promised; a repeat of the same ballot is promised again.
    pub fn prepare(&self, record: &mut Record, floor: u8, ballot: u8) -> bool {
        if self.under_floor(record, floor, ballot) || ballot < record.promise {
            return false;
        }
        record.promise = ballot;
        true
    }

    /// Whether it is accepted. The same accept again is, also under a higher promise.
    pub fn accept(&self, record: &mut Record, floor: u8, ballot: u8) -> bool {
        let again = !record.copied || self.is(Mutant::CopiedAnswersAgain);
        if record.ballot == ballot && again {
            return true;
        }
        let refused = ballot < record.promise && !self.is(Mutant::AcceptIgnoresPromise);
        if self.under_floor(record, floor, ballot) || refused {
            return false;
        }
        *record = Record { promise: ballot.max(record.promise), ballot, copied: false };
        true
    }

    /// `begin_join(id)`: only where the node's own list says `joining` with this id, and only the first time.
    pub fn begin_join(&self, state: &mut State, node: usize, id: u8) -> bool {
        let first = state.nodes[node].memory != id || self.is(Mutant::BegunTwice);
        if state.list(state.own_list(node))[node] != Entry::Joining(id) || !first {
            return false;
        }
        let node = &mut state.nodes[node];
        if !self.is(Mutant::KeepsOldData) {
            node.record = Record::default();
            node.floor = 0;
        }
        node.memory = id;
        node.ended = false;
        true
    }

    /// `merge(id, …)`: the highest ballot wins, promise and floor become the highest of both.
    pub fn merge(&self, state: &mut State, node: usize, id: u8, from: (Record, u8, Record)) -> bool {
        let node = &mut state.nodes[node];
        if node.memory != id || node.ended && !self.is(Mutant::MergedAfterEnd) {
            return false;
        }
        self.merge_record(&mut node.record, from.0);
        self.merge_record(&mut node.list, from.2);
        if !self.is(Mutant::MergeForgetsFloor) {
            node.floor = node.floor.max(from.1);
        }
        true
    }

    fn merge_record(&self, record: &mut Record, from: Record) {
        if from.ballot > record.ballot {
            record.ballot = from.ballot;
            record.copied = true;
            record.promise = record.promise.max(from.ballot);
        }
        if !self.is(Mutant::MergeForgetsPromise) {
            record.promise = record.promise.max(from.promise);
        }
    }

    /// `end_join(id)`: no merges from now on.
    pub fn end_join(&self, state: &mut State, node: usize, id: u8) -> bool {
        let node = &mut state.nodes[node];
        node.ended |= node.memory == id;
        node.memory == id
    }

    /// `forget(ballot)`: removes the record where it is still that, and remembers its promise in the floor.
    pub fn forget(&self, state: &mut State, node: usize, ballot: u8) {
        let node = &mut state.nodes[node];
        if node.record.ballot == ballot {
            node.floor = node.floor.max(node.record.promise);
            node.record = Record::default();
        }
    }
}
