//! How far the model goes, and ways to begin further on.

use crate::model::{Action, Keeps, ListChange};
use crate::state::{N, has, with};

/// What an attempt is for. Attempt `i` (from 1) has ballot `i`; each is a daemon's, and they run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Makes a new value.
    Write,
    /// Makes a value that says nothing, so that the record may be forgotten.
    Free,
    /// A change that changes nothing.
    Look,
    /// The same daemon's retry of the write under this ballot, whose outcome it does not know.
    RetryOf(u8),
}

/// How far the model goes.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// What the attempts on the register are for, in the order of their ballots.
    pub roles: Vec<Role>,
    /// Attempts on the member list.
    pub lists: u8,
    /// Whether an attempt on the list gets its promises one by one. Otherwise all at one moment.
    pub lists_by_message: bool,
    /// Whether an attempt on the list may write again what it found.
    pub finishes: bool,
    /// Whether a join may be started over under another memory id.
    pub starts_over: bool,
    /// Restarts in all, of whichever nodes.
    pub restarts: u8,
    /// Whether node 2 may save its data at any time before its first restart and come back with them.
    pub saves: bool,
    /// One read by quorum.
    pub reads: bool,
    /// One attempt to forget.
    pub forgets: bool,
    /// Whether nodes 0 and 1 may change their names from step to step: half as many states, and traces that are hard to
    /// read.
    pub mirrors: bool,
    /// What has happened before the exploration begins.
    pub after: Vec<Action>,
}

impl Bounds {
    /// This, from a later beginning.
    pub fn after(self, parts: &[Vec<Action>]) -> Bounds {
        Bounds { after: parts.concat(), ..self }
    }
}

/// Attempt `ballot` under a list: promised by the first nodes, proposed on their word, accepted by the others.
pub fn attempt(ballot: u8, list: u8, promised: &[usize], accepted: &[usize]) -> Vec<Action> {
    let quorum = promised.iter().copied().fold(0, with);
    let prepares = promised.iter().map(|node| Action::Prepare { ballot, node: *node, list });
    let accepts = accepted.iter().map(|node| Action::Accept { ballot, node: *node, list });
    prepares.chain([Action::Propose { ballot, quorum }]).chain(accepts).collect()
}

/// Node 2 restarts, the others agree that it joins, and it has begun.
pub fn joining(keeps: Keeps) -> Vec<Action> {
    let change = ListChange::Join(2);
    let start =
        [Action::Restart { node: 2, keeps }, Action::ProposeList { ballot: 1, quorum: 0b011, change }];
    let accepts = (0..N).map(|node| Action::AcceptList { ballot: 1, node });
    start.into_iter().chain(accepts).chain([Action::BeginJoin { join: 1, node: 2 }]).collect()
}

/// Node 2 has what these nodes hold now.
pub fn copied(sources: &[usize]) -> Vec<Action> {
    let copy = |source: &usize| {
        let (join, node, source) = (1, 2, *source);
        [Action::CopyFrom { join, node, source, list: 1 }, Action::Merge { join, node, source }]
    };
    sources.iter().flat_map(copy).collect()
}

/// Node 2 is a member again, and all know it.
pub fn promoted() -> Vec<Action> {
    let change = ListChange::Promote(2);
    let start =
        [Action::EndJoin { join: 1, node: 2 }, Action::ProposeList { ballot: 2, quorum: 0b011, change }];
    start.into_iter().chain((0..N).map(|node| Action::AcceptList { ballot: 2, node })).collect()
}

/// The record of this ballot is forgotten by these nodes, which have all shown it.
pub fn forgotten(ballot: u8, list: u8, nodes: u8) -> Vec<Action> {
    let each = || (0..N).filter(move |node| has(nodes, *node));
    let reads = each().map(|node| Action::ReadToForget { node });
    let removals = each().map(|node| Action::Forget { node });
    let send = [Action::SendForget { ballot }];
    [Action::BeginForget { list }].into_iter().chain(reads).chain(send).chain(removals).collect()
}
