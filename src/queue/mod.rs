//! Locking queues: an item that one consumer has leased is nobody else's. Every item is a register of its own; what a
//! register holds for one ([`value`]), how it changes ([`change`], pure), and the asynchronous facade ([`queues`]), with
//! the desk where calls wait for items, streams of items, and what operators do with a queue as a whole.
//!
//! This file has the words that the facade speaks with its callers.

mod admin;
pub mod change;
mod consume;
mod desk;
pub mod error;
mod handing;
mod options;
pub mod queues;
pub mod value;

#[cfg(test)]
mod change_tests;

use std::time::Duration;

use bytes::Bytes;

pub use error::QueueError;
pub use queues::Queues;

use crate::ids::{Attributes, ItemId, LeaseId, QueueName};
use crate::limits;
use crate::runtime::Moment;
use crate::token::Token;

/// An item to be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewItem {
    /// Its id; `None` for one that nobody else has. A repeated id is the same item.
    pub id: Option<ItemId>,
    /// The bytes.
    pub payload: Bytes,
    /// Lower comes first.
    pub priority: i32,
    /// For how long nobody gets it.
    pub delay: Duration,
    /// For people and for workers.
    pub attributes: Attributes,
}

/// What became of an item that was put. It is in the queue, or was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Its id.
    pub id: ItemId,
    /// The id was known, so nothing was put now: the item is there, or was done not long ago.
    pub duplicate: bool,
}

/// What a consumer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReserveRequest {
    /// From which queue.
    pub queue: QueueName,
    /// At most so many, one at least.
    pub max_items: usize,
    /// The length of the leases; `None` for the queue's.
    pub lease_ttl: Option<Duration>,
    /// How long to wait for the first item.
    pub wait: Duration,
}

/// An item with its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Its id.
    pub id: ItemId,
    /// The bytes.
    pub payload: Bytes,
    /// For people and for workers.
    pub attributes: Attributes,
    /// Lower comes first.
    pub priority: i32,
    /// How often the item has been leased, this time included.
    pub attempt: u32,
    /// When it was put, by the clock of the daemon that took it, in milliseconds of Unix time.
    pub put_unix_ms: u64,
    /// Proves the lease. A secret.
    pub lease_id: LeaseId,
    /// Higher than that of every earlier lease of the item.
    pub token: Token,
    /// The length of the lease.
    pub ttl: Duration,
    /// Until when the lease is good, by this daemon's clock.
    pub valid_until: Moment,
}

/// One lease of one item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    /// The item.
    pub id: ItemId,
    /// The lease.
    pub lease_id: LeaseId,
}

/// A lease that is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// Which.
    pub lease: Leased,
    /// For how long nobody gets the item; `None` for the queue's back-off.
    pub delay: Option<Duration>,
    /// Why, for people; kept with the item.
    pub reason: String,
}

/// What became of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was done as asked.
    Done,
    /// The item was given back for the last time that it may be: it is dead now.
    Buried,
    /// The lease has run out and somebody else has the item, had it since, or it was given back.
    LeaseLost,
    /// The item is done. After an ack under the same lease that is the answer to its repeat.
    AlreadyDone,
    /// There is no such item: it never was, or it is done and forgotten.
    NoSuchItem,
}

/// What became of a lease that was to be extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extended {
    /// It goes on.
    Until {
        /// The length from now on.
        ttl: Duration,
        /// Until when it is good, by this daemon's clock.
        valid_until: Moment,
    },
    /// It does not: see [`Settled`], which is never `Done` here.
    Lost(Settled),
}

/// What a stream of items is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumeRequest {
    /// From which queue.
    pub queue: QueueName,
    /// Items that the consumer has at most, leased and not yet acked or nacked.
    pub max_in_flight: usize,
    /// The length of the leases; `None` for the queue's. They are extended while the stream is open.
    pub lease_ttl: Option<Duration>,
}

/// What a consumer says on its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumeCommand {
    /// The item is done.
    Ack(Leased),
    /// The item is given back.
    Nack(Nack),
}

/// What a consumer hears on its stream.
#[derive(Debug)]
pub enum ConsumeEvent {
    /// An item.
    Item(Reserved),
    /// What became of an ack or a nack.
    Settled {
        /// Of which lease.
        lease: Leased,
        /// What.
        result: Result<Settled, QueueError>,
    },
    /// The lease has run out or was taken: the item is, or will be, somebody else's. It is no longer in flight.
    Lost {
        /// Which.
        lease: Leased,
    },
}

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemState {
    /// Whoever reserves next may get it.
    Ready,
    /// Nobody gets it for a while.
    Delayed,
    /// Somebody has it.
    Leased,
    /// It failed as often as it may, and stays until it is redriven or purged.
    Dead,
    /// It was acked or purged, and is remembered for a while.
    Done,
}

/// An item, for people: everything but the lease id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemView {
    /// Its id.
    pub id: ItemId,
    /// Where it stands.
    pub state: ItemState,
    /// The bytes; empty once it is done.
    pub payload: Bytes,
    /// For people and for workers.
    pub attributes: Attributes,
    /// Lower comes first.
    pub priority: i32,
    /// How often it has been leased.
    pub attempts: u32,
    /// When it was put, in milliseconds of Unix time.
    pub put_unix_ms: u64,
    /// What is left of the delay or the lease, at least.
    pub remaining: Option<Duration>,
    /// The fencing token of the last lease; [`Token::ZERO`] before the first.
    pub token: Token,
    /// The reason that the last nack gave, or why it is dead; empty for none.
    pub reason: String,
}

/// Settings of one queue, kept in the cluster: the same for all daemons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// The length of a lease for which none is asked.
    pub lease_ttl: Duration,
    /// An item that has been leased so often is dead when it is given back or its lease runs out; 0 for never.
    pub max_attempts: u32,
    /// A nack that names no delay waits for so long after the first attempt, twice as long after each further one...
    pub backoff_min: Duration,
    /// ...and at most for so long.
    pub backoff_max: Duration,
    /// Items that the queue has at most, in whatever state but done; 0 for no bound.
    pub max_items: u64,
    /// For how long done items are remembered, so that their ids are known.
    pub done_retention: Duration,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            lease_ttl: limits::TTL_DEFAULT,
            max_attempts: 10,
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            max_items: 0,
            done_retention: Duration::from_secs(60),
        }
    }
}

/// What is to be changed of [`QueueOptions`]; `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueOptionsPatch {
    /// See [`QueueOptions::lease_ttl`].
    pub lease_ttl: Option<Duration>,
    /// See [`QueueOptions::max_attempts`].
    pub max_attempts: Option<u32>,
    /// See [`QueueOptions::backoff_min`].
    pub backoff_min: Option<Duration>,
    /// See [`QueueOptions::backoff_max`].
    pub backoff_max: Option<Duration>,
    /// See [`QueueOptions::max_items`].
    pub max_items: Option<u64>,
    /// See [`QueueOptions::done_retention`].
    pub done_retention: Option<Duration>,
}

/// How many items a queue has, by the indexes of a quorum. Exact while nothing changes and no node has missed anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// [`ItemState::Ready`]
    pub ready: u64,
    /// [`ItemState::Delayed`]
    pub delayed: u64,
    /// [`ItemState::Leased`]
    pub leased: u64,
    /// [`ItemState::Dead`]
    pub dead: u64,
    /// [`ItemState::Done`]: those that are remembered.
    pub done: u64,
}

/// A queue, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueView {
    /// Its name.
    pub queue: QueueName,
    /// Its settings.
    pub options: QueueOptions,
    /// How many items it has.
    pub counts: QueueCounts,
    /// How long ago, by wall clocks, the first of the ready items was put; `None` if none is ready.
    pub oldest_ready_age: Option<Duration>,
}

/// A page of a list of queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePage {
    /// In byte order of the names.
    pub queues: Vec<QueueView>,
    /// Where the next page starts (after this name); `None` at the end.
    pub next: Option<String>,
}

/// A page of dead items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadPage {
    /// Without payloads. By priority, then in the order in which they were put.
    pub items: Vec<ItemView>,
    /// Where the next page starts; `None` at the end. Meaningless to callers.
    pub next: Option<String>,
}
