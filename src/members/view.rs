//! [`View`]: the list that a daemon goes by, and [`Views`], where everybody finds the latest.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use event_listener::{Event, EventListener};

use super::MemberList;
use crate::ids::{MemoryId, NodeIndex};
use crate::token::Ballot;

/// A list that was read as committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The attempt that made the list; each batch names it.
    pub vid: Ballot,
    /// The list.
    pub list: MemberList,
    /// Whether new locks may be granted: no recovery, or its stamp has aged by the longest TTL.
    pub grants: bool,
}

impl View {
    /// Whether an answer of this node, given out of this memory, counts.
    pub fn counts(&self, node: NodeIndex, memory: Option<MemoryId>) -> bool {
        self.list.counts(node, memory)
    }
}

/// The latest [`View`], and the wish for a newer one.
#[derive(Default)]
pub struct Views {
    current: ArcSwapOption<View>,
    refreshed: Event,
    wanted: Event,
}

impl Views {
    /// The view to go by; `None` until a list has been read as committed.
    pub fn current(&self) -> Option<Arc<View>> {
        self.current.load_full()
    }

    /// Goes by this view from now on, and wakes those whom a closed gate stopped: they send their round again.
    pub fn install(&self, view: View) {
        self.current.store(Some(Arc::new(view)));
        self.refreshed.notify(usize::MAX);
    }

    /// Wakes those whom a closed gate stopped, after nodes that were behind have been brought up to date.
    pub fn nodes_updated(&self) {
        self.refreshed.notify(usize::MAX);
    }

    /// Completes with the next [`Views::install`] or [`Views::nodes_updated`] after this call.
    pub fn refreshed(&self) -> EventListener {
        self.refreshed.listen()
    }

    /// Says that a node goes by another list than this daemon.
    pub fn want(&self) {
        self.wanted.notify(1);
    }

    /// Completes with the next [`Views::want`] after this call.
    pub fn wanted(&self) -> EventListener {
        self.wanted.listen()
    }
}
