//! What must hold of every run, one property a file, judged on what clients were told.
//!
//! Clients say what happens to them as [`Event`]s. Each property listens to all of them and says at once what must not be.

pub mod accounting;
pub mod deliveries;
pub mod ended;
pub mod exclusion;
pub mod leftovers;
pub mod line;
pub mod progress;
pub mod tokens;
pub mod versions;
pub mod watches;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{ItemId, Key, LeaseId, LockName, QueueName};
use crate::runtime::Moment;
use crate::token::Token;

/// What a lease is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leasable {
    /// A lock.
    Lock(LockName),
    /// An item of a queue.
    Item(QueueName, ItemId),
}

impl From<&LockName> for Leasable {
    fn from(name: &LockName) -> Self {
        Self::Lock(name.clone())
    }
}

impl fmt::Display for Leasable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock(name) => write!(f, "{name}"),
            Self::Item(queue, id) => write!(f, "{queue}/{id}"),
        }
    }
}

/// What happens to a client. All moments are the world's.
#[derive(Clone, Debug)]
pub enum Event {
    /// It begins to wait for a lock.
    Wants {
        /// Who.
        client: u32,
        /// Which lock.
        name: LockName,
    },
    /// It waits no longer.
    Leaves {
        /// Who.
        client: u32,
        /// Which lock.
        name: LockName,
    },
    /// It is told that it holds a lock or an item, for the first time or again.
    Holds(Grant),
    /// It relies on its lease no longer.
    LetsGo {
        /// Who.
        client: u32,
        /// Of what.
        name: Leasable,
        /// The fencing token.
        token: Token,
    },
    /// It is told that a lease is over: released, or lost.
    Over {
        /// Of what.
        name: Leasable,
        /// The lease.
        lease: LeaseId,
    },
    /// An operator is about to end whatever lease has this token.
    Forces {
        /// Of what.
        name: Leasable,
        /// The fencing token.
        token: Token,
    },
    /// The faults are over, and some time has passed.
    Calm {
        /// How far the daemons' wall clocks are apart at most.
        skew: Duration,
    },
    /// It is told of a version of a key.
    Versioned {
        /// Which key.
        key: Key,
        /// The version.
        version: Token,
        /// The value; `None` for a removal.
        data: Option<Bytes>,
        /// It is told that its own write made it.
        made: bool,
    },
}

/// A lease as its client is told of it.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Who.
    pub client: u32,
    /// Of what.
    pub name: Leasable,
    /// The lease.
    pub lease: LeaseId,
    /// The fencing token.
    pub token: Token,
    /// Until when the client relies on it.
    pub until: Moment,
}

/// A property.
pub trait Invariant: Send {
    /// Takes note of an event.
    ///
    /// # Errors
    /// What must not be, in words for whoever reads the trace.
    fn observe(&mut self, now: Moment, event: &Event) -> Result<(), String>;
}

/// All that are judged event by event.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(exclusion::Exclusion::default()),
        Box::new(tokens::TokensGrow::default()),
        Box::new(ended::StaysOver::default()),
        Box::new(line::LineIsKept::default()),
        Box::new(versions::VersionsAreUnique::default()),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::Duration;

    /// A moment of a test.
    pub(crate) fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    /// The one lock of a test.
    pub(crate) fn name() -> LockName {
        LockName::parse("x").unwrap()
    }

    /// The one item of a test.
    pub(crate) fn item() -> Leasable {
        Leasable::Item(QueueName::parse("q").unwrap(), ItemId::parse("i").unwrap())
    }

    /// What a client is told.
    pub(crate) fn grant(client: u32, token: u64, until: u64) -> Event {
        grant_of(Leasable::Lock(name()), client, token, until)
    }

    /// The same of something else.
    pub(crate) fn grant_of(name: Leasable, client: u32, token: u64, until: u64) -> Event {
        let lease = LeaseId::from_bytes([token as u8; 16]);
        let token = Token::new(token).unwrap();
        Event::Holds(Grant { client, name, lease, token, until: at(until) })
    }

    /// What a client lets go.
    pub(crate) fn lets_go(client: u32, token: u64) -> Event {
        Event::LetsGo { client, name: Leasable::Lock(name()), token: Token::new(token).unwrap() }
    }
}
