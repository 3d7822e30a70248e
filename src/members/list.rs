//! [`MemberList`], the value of the register `members`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::{MemoryId, NodeIndex};
use crate::mutant::{self, Mutant};
use crate::node::operation::Stamp;

/// What the list says of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Its answers count, if it has the listed memory.
    Member,
    /// It lost its memory and is to get everything from the others first. Its answers do not count.
    Joining,
    /// Nobody has reached it for long. Its answers do not count.
    Out,
}

/// One node's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub state: State,
    /// The memory by which its answers count, or will when it has joined.
    pub memory: MemoryId,
}

/// The whole list, one entry per node index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {
    /// By node index.
    pub entries: Vec<Entry>,
    /// The founding has not been confirmed: nobody serves by this list yet.
    pub founding: bool,
    /// The longest TTL that any daemon may grant, in milliseconds. It only grows.
    pub ttl_max_ms: u64,
    /// Set by a recovery, or a founding without the operator's word: no new locks until it has aged by the longest TTL.
    pub recovery: Option<Stamp>,
    /// What the last recovery had to go by.
    pub loss: Loss,
    /// While a recovery is not confirmed: the entries before it, by which it is judged who kept what.
    pub before: Vec<Entry>,
}

/// What a recovery may have lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Loss {
    /// There was no recovery.
    None,
    /// q nodes came back with what they had, as far as anybody remembers. What they had not written through is gone.
    LatestWrites,
    /// Fewer than q nodes kept what they had: writes may be gone, and what was removed may be back.
    Anything,
    /// All nodes were empty.
    Everything,
    /// Not all nodes answered, and the operator had said to go on without them.
    NotAsked,
}

impl MemberList {
    /// The entry of a node.
    pub fn entry(&self, node: NodeIndex) -> Option<&Entry> {
        self.entries.get(usize::from(node.0))
    }

    /// Whether an answer of this node, given out of this memory, counts.
    pub fn counts(&self, node: NodeIndex, memory: Option<MemoryId>) -> bool {
        let is_it = |listed| memory == Some(listed) || mutant::is_on(Mutant::MemoryIgnored);
        self.entry(node).is_some_and(|entry| entry.state == State::Member && is_it(entry.memory))
    }

    /// The longest TTL.
    pub fn ttl_max(&self) -> Duration {
        Duration::from_millis(self.ttl_max_ms)
    }

    /// Whether a recovery has begun and is not confirmed.
    pub fn is_recovering(&self) -> bool {
        self.founding && !self.before.is_empty()
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("a member list has nothing that MessagePack can't hold")
    }

    /// Reads what [`MemberList::encode`] wrote.
    ///
    /// # Errors
    /// The parser's words, for what a newer version may have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
    }
}
