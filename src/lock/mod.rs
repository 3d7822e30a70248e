//! Locks: what a register holds for one ([`value`]), how it changes ([`change`], pure), and the asynchronous facade
//! ([`locks`]) with its waiting ([`waiting`]) and its streams ([`hold`]).
//!
//! This file has the words that the facade speaks with its callers.

pub mod change;
pub mod error;
pub mod hold;
pub mod locks;
pub mod value;
pub mod waiting;
pub mod watch;

#[cfg(test)]
mod change_tests;

use std::time::Duration;

pub use error::LockError;
pub use locks::Locks;

use crate::ids::{Attributes, LeaseId, LockName, NodeIndex, Owner};
use crate::runtime::Moment;
use crate::token::Token;

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct AcquireRequest {
    /// Which lock.
    pub name: LockName,
    /// Who asks; `None` for somebody new.
    pub owner: Option<Owner>,
    /// How long the lease lasts unless extended. Checked against the configured range by the edge.
    pub ttl: Duration,
    /// How long to stand in line; zero tries once.
    pub wait: Duration,
    /// For people.
    pub attributes: Attributes,
}

/// A lease, as its holder gets it.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Which lock.
    pub name: LockName,
    /// Its holder.
    pub owner: Owner,
    /// The secret that proves it.
    pub lease_id: LeaseId,
    /// The fencing token.
    pub token: Token,
    /// As asked for.
    pub ttl: Duration,
    /// Until when the holder may rely on it, by this machine's clock. All margins are taken off already.
    pub valid_until: Moment,
}

/// Somebody else has the lock (an answer, not an error), as of the moment of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contention {
    /// The holder; `None` when the lock is on offer to somebody in line.
    pub holder: Option<HolderView>,
    /// How many wait in line, over all daemons; approximate.
    pub waiters: u32,
}

/// What everybody may know of a holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderView {
    /// Who it is.
    pub owner: Owner,
    /// Its fencing token.
    pub token: Token,
    /// Length of its lease.
    pub ttl: Duration,
    /// How long until others may take the lock, if it does not extend; zero if they may now.
    pub remaining: Duration,
    /// When it acquired, in milliseconds of Unix time by its daemon's clock. For people.
    pub acquired_unix_ms: u64,
    /// For people.
    pub attributes: Attributes,
}

/// How an acquire ended, when nothing failed.
#[derive(Clone, Debug)]
pub enum Acquisition {
    /// The caller holds the lock.
    Acquired(Lease),
    /// Somebody else does, also at the end of the wait.
    Contended(Contention),
}

/// One lock, as `GetLock` and `ListLocks` show it.
#[derive(Clone, Debug)]
pub struct LockView {
    /// Which lock.
    pub name: LockName,
    /// Its holder, if any.
    pub holder: Option<HolderView>,
    /// How many wait in line, over all daemons; approximate.
    pub waiters: u32,
    /// The nodes that answered with the agreed record.
    pub nodes: Vec<NodeIndex>,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct LockPage {
    /// In byte order of the names.
    pub locks: Vec<LockView>,
    /// Where the next page starts (after this name); `None` at the end.
    pub next: Option<LockName>,
}

/// What is known of a fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCheck {
    /// The token is the highest that the lock is known to have granted.
    pub highest: bool,
    /// Its lease has not ended, as far as a quorum can tell.
    pub held: bool,
    /// The highest token that the lock is known to have granted; zero if its record says nothing any more.
    pub highest_token: Token,
}

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// It ran out before it could be extended.
    Expired,
    /// Somebody else has the lock, or it was released with the lease id, or taken over by the same owner; or a
    /// recovery of the cluster did not find it.
    Replaced,
    /// An operator released it.
    Forced,
}

/// What a held lock's stream tells.
#[derive(Clone, Debug)]
pub enum HoldEvent {
    /// In line; how many stand before, 0 for the next; sent when it changes.
    Waiting {
        /// How many stand before.
        position: u32,
    },
    /// The wait ended without the lock. The last event.
    TimedOut(Contention),
    /// The lock is held.
    Acquired(Lease),
    /// It goes on being held.
    Extended(Lease),
    /// Extending fails at the moment; the lease is still good for so long.
    Jeopardy {
        /// What is left.
        remaining: Duration,
    },
    /// The lease ended. The last event.
    Lost(LostReason),
    /// The daemon stops serving or the `hold_limit` is reached: it extends no more, the lease is good for so long,
    /// and another daemon can extend it. The last event.
    Ended {
        /// What is left; zero when it was released.
        remaining: Duration,
    },
}

/// What happens to the lease when the client goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DisconnectPolicy {
    /// It runs out by itself: the client may still be working.
    #[default]
    Keep,
    /// It is released at once.
    Release,
}

/// What a `Hold` asks for.
#[derive(Clone, Debug)]
pub struct HoldRequest {
    /// As for an acquire.
    pub acquire: AcquireRequest,
    /// The daemon extends for no longer than this after the acquire; `None` for as long as the client reads.
    pub hold_limit: Option<Duration>,
    /// What the end of the stream does.
    pub disconnect: DisconnectPolicy,
}

/// A change of holder, as observers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The holder now; `None` for nobody.
    pub holder: Option<HolderView>,
}
