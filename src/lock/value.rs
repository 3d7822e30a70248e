//! What a register holds for one lock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::HolderView;
use crate::ids::{Attributes, LeaseId, Owner, ProposerId};
use crate::node::operation::Stamp;
use crate::register::Ages;
use crate::token::Token;

/// The first byte of a stored value, for versions to come.
const VERSION: u8 = 1;

/// A lock. The default is a lock that nobody has or ever had, as far as its record knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockValue {
    /// Who has it; its lease may have run out.
    pub holder: Option<Holder>,
    /// Set only while there is no holder: who may take it next, for a short grace.
    pub offer: Option<Offer>,
    /// Who waits: one place per daemon, in order of tickets.
    pub line: Vec<Place>,
    /// The highest fencing token granted.
    pub highest_token: Token,
    /// The last fencing token that an operator released by force.
    pub forced_token: Token,
}

/// The holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Proves the lease. A new one each time that the same owner acquires again.
    pub lease_id: LeaseId,
    /// The lease id that it was granted under, until it is taken over under another. An abandoned attempt frees only a
    /// lease that was never taken over, or it would end one that somebody newer goes by.
    pub first: Option<LeaseId>,
    /// Who it is.
    pub owner: Owner,
    /// The fencing token.
    pub token: Token,
    /// The lease's length in milliseconds.
    pub ttl_ms: u64,
    /// Ages by the lease's length.
    pub stamp: Stamp,
    /// When it acquired, in milliseconds of Unix time by its daemon's clock. For people.
    pub acquired_unix_ms: u64,
    /// For people.
    pub attributes: Attributes,
}

/// The next in line may take the lock until the offer has aged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The daemon whose first waiter is next.
    pub daemon: ProposerId,
    /// Ages by the grace.
    pub stamp: Stamp,
    /// Length of the grace in milliseconds.
    pub grace_ms: u64,
}

/// A daemon's place in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Whose waiters.
    pub daemon: ProposerId,
    /// The ticket of the first of them: the token of its arrival.
    pub ticket: Token,
    /// How many there are; approximate.
    pub count: u32,
    /// Ages by `ttl_ms`; then the place is dropped.
    pub stamp: Stamp,
    /// For how long the place lasts without being renewed, in milliseconds.
    pub ttl_ms: u64,
}

impl Holder {
    /// The lease's length.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    /// What everybody may know.
    pub fn view(&self, ages: &Ages) -> HolderView {
        HolderView {
            owner: self.owner.clone(),
            token: self.token,
            ttl: self.ttl(),
            remaining: ages.remaining(self.stamp, self.ttl()),
            acquired_unix_ms: self.acquired_unix_ms,
            attributes: self.attributes.clone(),
        }
    }
}

impl LockValue {
    /// Whether nobody has it, and nobody is to have it first.
    pub fn is_free(&self) -> bool {
        self.holder.is_none() && self.offer.is_none() && self.line.is_empty()
    }

    /// How many wait, over all daemons; approximate.
    pub fn waiters(&self) -> u32 {
        self.line.iter().fold(0, |sum, place| sum.saturating_add(place.count))
    }

    /// The place of a daemon.
    pub fn place_of(&self, daemon: ProposerId) -> Option<&Place> {
        self.line.iter().find(|place| place.daemon == daemon)
    }

    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        rmp_serde::encode::write(&mut bytes, self).expect("a lock has nothing that MessagePack can't hold");
        bytes
    }

    /// Reads what [`LockValue::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            None => Ok(Self::default()),
            Some((&VERSION, value)) => rmp_serde::from_slice(value).map_err(|error| error.to_string()),
            Some((version, _)) => Err(format!("version {version} of a lock")),
        }
    }
}
