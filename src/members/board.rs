//! [`Board`]: what has happened to the nodes, and how far joins are, as this daemon has seen it. For people; lost with the
//! daemon.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use event_listener::{Event as Changed, EventListener};

use crate::ids::NodeIndex;

/// Events that are kept; the oldest make room.
const EVENTS_MAX: usize = 256;
const LOCKED: &str = "no holder of this lock panics";

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A new cluster was founded.
    Founded,
    /// A node lost its memory, by a restart, FLUSHALL or a new server, and is to join again.
    MemoryLost,
    /// A node has joined again.
    Joined,
    /// A node that nobody reached for long was put out, so that others need not wait for it.
    PutOut,
    /// A node's clock jumped against this machine's.
    ClockJumped,
    /// The cluster was recovered after fewer than q nodes had their memory.
    Recovered,
    /// Something that was acknowledged may be lost, or something that was removed may be back.
    PossibleLoss,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Founded,
        Self::MemoryLost,
        Self::Joined,
        Self::PutOut,
        Self::ClockJumped,
        Self::Recovered,
        Self::PossibleLoss,
    ];
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Grows by one with each event of this daemon.
    pub number: u64,
    /// When, in milliseconds of Unix time by this machine's clock.
    pub unix_ms: u64,
    /// What kind.
    pub kind: EventKind,
    /// To which node, if to one.
    pub node: Option<NodeIndex>,
    /// In words.
    pub text: String,
}

/// How far a join is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinProgress {
    /// Old data is still being removed.
    pub wiping: bool,
    /// Records merged, each as often as a source had it.
    pub merged: u64,
    /// About how many there are to be merged; `None` if this daemon is not the one that copies.
    pub expected: Option<u64>,
}

/// What people may want to know of a node beside what its connection tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeNotes {
    /// Its join, if one is under way.
    pub join: Option<JoinProgress>,
    /// Registers noted on the other nodes that it misses.
    pub missed: u64,
}

/// See the module.
#[derive(Default)]
pub struct Board {
    inner: Mutex<Inner>,
    changed: Changed,
}

#[derive(Default)]
struct Inner {
    events: VecDeque<Event>,
    happened: u64,
    /// How many of each kind, also of those that have made room.
    kinds: BTreeMap<EventKind, u64>,
    nodes: BTreeMap<NodeIndex, NodeNotes>,
}

impl Board {
    /// Something has happened.
    pub fn happened(&self, unix_ms: u64, kind: EventKind, node: Option<NodeIndex>, text: String) {
        let mut inner = self.inner.lock().expect(LOCKED);
        inner.happened += 1;
        *inner.kinds.entry(kind).or_default() += 1;
        let number = inner.happened;
        inner.events.push_back(Event { number, unix_ms, kind, node, text });
        if inner.events.len() > EVENTS_MAX {
            inner.events.pop_front();
        }
        drop(inner);
        self.changed.notify(usize::MAX);
    }

    /// What is known of a node.
    pub fn note(&self, node: NodeIndex, change: impl FnOnce(&mut NodeNotes)) {
        let mut inner = self.inner.lock().expect(LOCKED);
        let notes = inner.nodes.entry(node).or_default();
        let before = *notes;
        change(notes);
        let changed = *notes != before;
        drop(inner);
        if changed {
            self.changed.notify(usize::MAX);
        }
    }

    /// What is known of a node.
    pub fn notes(&self, node: NodeIndex) -> NodeNotes {
        self.inner.lock().expect(LOCKED).nodes.get(&node).copied().unwrap_or_default()
    }

    /// The latest events, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.inner.lock().expect(LOCKED).events.iter().cloned().collect()
    }

    /// How often something of this kind has happened, as this daemon has seen it.
    pub fn count(&self, kind: EventKind) -> u64 {
        self.inner.lock().expect(LOCKED).kinds.get(&kind).copied().unwrap_or(0)
    }

    /// Completes with the next change after this call.
    pub fn changed(&self) -> EventListener {
        self.changed.listen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_events_make_room() {
        let board = Board::default();
        for i in 0..EVENTS_MAX as u64 + 5 {
            board.happened(i, EventKind::Joined, Some(NodeIndex(1)), format!("event {i}"));
        }
        let events = board.events();
        assert_eq!((events.len(), events[0].number), (EVENTS_MAX, 6));
        assert_eq!(board.count(EventKind::Joined), EVENTS_MAX as u64 + 5, "all are counted");
        assert_eq!(board.count(EventKind::PutOut), 0);
    }

    #[test]
    fn whoever_listens_hears_of_a_change_and_of_nothing_else() {
        use futures::FutureExt;
        let board = Board::default();
        let mut quiet = board.changed();
        board.note(NodeIndex(0), |notes| notes.missed = 0);
        assert!((&mut quiet).now_or_never().is_none());
        board.note(NodeIndex(0), |notes| notes.missed = 3);
        assert!(quiet.now_or_never().is_some());
        assert_eq!(board.notes(NodeIndex(0)).missed, 3);
    }
}
