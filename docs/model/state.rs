//! What there is: nodes, messages on their way, and what daemons know.
//!
//! A message is never taken out of the network: "sent" is a mark on the round that sent it, and it may arrive at any later
//! time, or never. Everything is a small number, so that two ways to the same situation give the same state.
//!
//! Numbers stand for names. A data ballot is 1, 2, …, and 0 is "absent"; a list ballot likewise, and list 0 is the list
//! that the cluster was founded with. The ballot of the attempt that made a value is its vid. Memory 0 is none,
//! memory 1 is that of the founding, and the attempt at list ballot `n` proposes memory `n + 1`.

/// Nodes, and the quorum.
pub const N: usize = 3;
pub const Q: u32 = 2;
/// The most data ballots and list ballots that a bound may ask for, and with them the size of a state.
pub const DATA: usize = 3;
pub const LISTS: usize = 4;

/// One bit per node, or per list.
pub type Set = u8;

pub fn has(set: Set, index: usize) -> bool {
    set >> index & 1 == 1
}

pub fn with(set: Set, index: usize) -> Set {
    set | 1 << index
}

/// What a node holds for a register. The value is not kept: a ballot carries at most one, see [`Round::vid`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    pub promise: u8,
    pub ballot: u8,
    pub copied: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    pub memory: u8,
    /// `end_join` was taken in this memory: no merges any more.
    pub ended: bool,
    pub record: Record,
    pub floor: u8,
    /// The node's own copy of the member list, with promise and ballot of the register that it is.
    pub list: Record,
    /// What was saved to disk at some time, for a restart with old data: record, floor and list.
    pub saved: Option<(Record, u8, Record)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Not begun. Only looks and retries begin at a time that matters; the others begin in [`Phase::Prepare`].
    #[default]
    Idle,
    Prepare,
    Accept,
    /// Answered to the client without an accept, or given up for a retry.
    Over,
}

/// One attempt on the data register, under one ballot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Round {
    pub phase: Phase,
    /// The list that the daemon goes by now. Answers under others are dropped.
    pub list: u8,
    /// The lists under which a prepare, and an accept, was sent.
    pub prepares: Set,
    pub accepts: Set,
    /// Promises that count, as (ballot, copied, floor).
    pub promised: [Option<(u8, bool, u8)>; N],
    /// Who accepted, as far as it counts under `list`.
    pub accepted: Set,
    /// The value that this one was made from, and the vid of what the accept carries: its own, or an older one when it
    /// only finishes.
    pub base: u8,
    pub vid: u8,
    /// q accepts counted: a client may have been told.
    pub committed: bool,
    /// Which ballots were known committed when a look began.
    pub began: Set,
}

/// What the list says of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// With this memory.
    Member(u8),
    Joining(u8),
    #[default]
    Unset,
}

pub type List = [Entry; N];

/// One attempt on the member list, under one list ballot; slot 0 is the founding's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListRound {
    pub proposed: bool,
    /// Promises as (ballot of the list held, memory of the answer).
    pub promised: [Option<(u8, u8)>; N],
    pub base: u8,
    pub vid: u8,
    /// The list itself, in the slot of the attempt that made it.
    pub list: List,
    /// Who accepted and counts by the list that was changed; q of them make it agreed on.
    pub taken: Set,
    /// Who accepted and counts by this list; q of them let others read it as committed.
    pub readable: Set,
}

/// The join under the memory that list ballot `n` proposed, in slot `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Join {
    /// `begin_join` was delivered. It is sent once.
    pub begun: bool,
    /// What was read from each source, as a merge on its way.
    pub merges: [Option<(Record, u8, Record)>; N],
    /// The sources whose merge was answered.
    pub merged: Set,
    pub ended: bool,
}

/// One read by quorum, of one round trip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reader {
    pub phase: Phase,
    pub list: u8,
    pub began: Set,
    pub answers: [Option<(u8, bool)>; N],
}

/// One attempt to forget the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Forget {
    pub phase: Phase,
    pub list: u8,
    pub answers: [Option<(u8, bool)>; N],
    pub ballot: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    pub nodes: [Node; N],
    /// By ballot; slot 0 stands for "absent".
    pub rounds: [Round; DATA + 1],
    pub lists: [ListRound; LISTS + 1],
    pub joins: [Join; LISTS + 1],
    pub reader: Reader,
    pub forget: Forget,
    pub restarts: u8,
    /// A read answered with something older than what was acknowledged before it began.
    pub stale: bool,
}

impl State {
    /// The list under a vid.
    pub fn list(&self, vid: u8) -> &List {
        &self.lists[usize::from(vid)].list
    }

    /// The vid of the list that a node holds.
    pub fn own_list(&self, node: usize) -> u8 {
        self.lists[usize::from(self.nodes[node].list.ballot)].vid
    }

    /// The newest list that is agreed on.
    pub fn agreed_list(&self) -> u8 {
        let agreed = self.lists.iter().rev().find(|round| round.taken.count_ones() >= Q);
        agreed.expect("the founding's list is agreed on").vid
    }

    /// The vid of the value that a ballot carries.
    pub fn vid(&self, ballot: u8) -> u8 {
        self.rounds[usize::from(ballot)].vid
    }

    /// Whether the value `vid` was made from `older`, or is it. Everything comes from the absent value.
    pub fn comes_from(&self, mut vid: u8, older: u8) -> bool {
        while vid != older && vid != 0 {
            vid = self.rounds[usize::from(vid)].base;
        }
        vid == older
    }

    /// The vid of the oldest value in a value's chain, the one that was made from an absent record.
    pub fn root(&self, mut vid: u8) -> u8 {
        while self.rounds[usize::from(vid)].base != 0 {
            vid = self.rounds[usize::from(vid)].base;
        }
        vid
    }

    /// The ballots that a client may know to be committed.
    pub fn committed(&self) -> Set {
        (1..=DATA).filter(|b| self.rounds[*b].committed).fold(0, with)
    }

    /// Of this state and its mirror image, in which nodes 0 and 1 change places, always the same one: the rules do not tell
    /// these nodes apart.
    pub fn canonical(self) -> State {
        let mirrored = self.mirrored();
        if mirrored < self { mirrored } else { self }
    }

    fn mirrored(mut self) -> State {
        let swap = |set: &mut Set| *set = *set & !3 | (*set & 1) << 1 | *set >> 1 & 1;
        self.nodes.swap(0, 1);
        for round in &mut self.rounds {
            round.promised.swap(0, 1);
            swap(&mut round.accepted);
        }
        for round in &mut self.lists {
            round.promised.swap(0, 1);
            round.list.swap(0, 1);
            swap(&mut round.taken);
            swap(&mut round.readable);
        }
        for join in &mut self.joins {
            join.merges.swap(0, 1);
            swap(&mut join.merged);
        }
        self.reader.answers.swap(0, 1);
        self.forget.answers.swap(0, 1);
        self
    }
}
