//! The typed operations that a node runs, and their typed answers. [`super::wire`] turns them to and from MessagePack.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{MemoryId, NodeIndex, ProposerId};
use crate::token::{Ballot, Token};

/// The key of one register: a kind and a name. The node's scripts put the cluster's prefix before it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegisterKey(Bytes);

impl RegisterKey {
    /// The register that holds the member list.
    pub fn members() -> Self {
        Self(Bytes::from_static(b"m:"))
    }

    /// The register of a kind ([`super::keyspace`]) and name.
    pub fn new(kind: char, name: &str) -> Self {
        debug_assert!(kind.is_ascii_lowercase());
        Self(Bytes::from(format!("{kind}:{name}")))
    }

    /// As a node names it.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }

    /// As it travels.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its kind and name; `None` for what no version of this wrote.
    pub fn parts(&self) -> Option<(char, &str)> {
        let (kind, name) = std::str::from_utf8(&self.0).ok()?.split_once(':')?;
        let kind = Some(kind.chars().next()?).filter(|_| kind.len() == 1)?;
        Some((kind, name))
    }
}

impl fmt::Debug for RegisterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// A name in a value for something that ages. It contains the ballot of the attempt that set it, so no other attempt,
/// late or repeated, can be taken for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    /// The attempt that set it.
    pub ballot: Ballot,
    /// Tells the stamps of one attempt apart.
    pub ordinal: u8,
}

impl Stamp {
    /// Length of [`Stamp::to_bytes`].
    pub const BYTES: usize = Ballot::BYTES + 1;

    /// As it travels.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [self.ordinal; Self::BYTES];
        bytes[..Ballot::BYTES].copy_from_slice(&self.ballot.to_bytes());
        bytes
    }

    /// Reads what [`Stamp::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (ordinal, ballot) = bytes.split_last()?;
        Some(Self { ballot: Ballot::from_bytes(ballot)?, ordinal: *ordinal })
    }
}

/// One step that a node does or refuses as a whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Answers [`Answer::Record`] and changes nothing.
    Read {
        /// Which register.
        key: RegisterKey,
    },
    /// Promises to refuse lower ballots: [`Answer::Promised`], [`Answer::Held`] or [`Answer::Conflict`].
    Prepare {
        /// Which register.
        key: RegisterKey,
        /// The ballot to promise.
        ballot: Ballot,
        /// Where the record is guarded and not aged by this node's clock, show it and promise nothing.
        soft: bool,
    },
    /// Stores a value: [`Answer::Accepted`] or [`Answer::Conflict`].
    Accept(std::sync::Arc<Accept>),
    /// Names in one index, in byte order: [`Answer::Names`]. A hint, as of this node alone.
    List {
        /// Of a kind its letter; for the sets of a queue see [`super::keyspace`].
        index: String,
        /// Only names that start so.
        prefix: String,
        /// Only names after this one; empty for all.
        after: String,
        /// At most so many.
        limit: usize,
    },
    /// Prepares the first ready items of a queue: [`Answer::Claimed`].
    Claim(ClaimRequest),
    /// How many items a queue has: [`Answer::Census`]. A hint, as of this node alone.
    Census {
        /// Which queue.
        queue: String,
        /// Of this set ([`super::keyspace`]) the first members are shown.
        set: char,
        /// So many.
        limit: usize,
    },
    /// The founding's gift of a memory: [`Answer::Accepted`], or [`Answer::Conflict`] if the node's own list is not
    /// the founding's, something has been promised on it since, or the node has a memory.
    Found {
        /// The founding, as vid of the member list and promise on it.
        founding: Ballot,
        /// The id that the list names for this node.
        memory: u64,
    },
    /// A new memory begins: [`Answer::Accepted`], or [`Answer::Conflict`] if the node's own list is not the one given,
    /// or this id has begun before. Only whoever made the id sends it, and once.
    BeginJoin {
        /// The attempt that made the list in which the node joins.
        list: Ballot,
        /// The id that the list names for this node.
        memory: MemoryId,
        /// The recovery that this is part of: the data is kept. Without one it is removed.
        recovery: Option<Ballot>,
    },
    /// What another node holds: [`Answer::Accepted`], [`Answer::Wiping`] or [`Answer::Conflict`]. The highest ballot and
    /// the highest promise win.
    Merge {
        /// The memory that it is for.
        memory: MemoryId,
        /// The floor of the source.
        floor: Ballot,
        /// Keys and records as the source stores them.
        rows: Vec<(RegisterKey, Bytes)>,
    },
    /// No more merges: [`Answer::Accepted`] or [`Answer::Conflict`].
    EndJoin {
        /// The memory that is complete.
        memory: MemoryId,
    },
    /// Some of a node's records: [`Answer::Page`].
    Page(PageRequest),
    /// What is held, without the values: [`Answer::Ballots`].
    Ballots {
        /// Which registers.
        keys: Vec<RegisterKey>,
    },
    /// Removes records that say nothing: [`Answer::Forgotten`].
    Forget {
        /// Which, each as it was read.
        records: Vec<Forgotten>,
    },
    /// What this daemon knows of the nodes: [`Answer::Reported`], with what the node was told by all. Hints.
    Report(Report),
    /// Some of what is noted for a node: [`Answer::Names`], of register keys.
    Missed {
        /// The node that missed it.
        node: NodeIndex,
        /// What has been brought to it: these notes go.
        done: Vec<RegisterKey>,
        /// At most so many.
        limit: usize,
    },
}

/// Which items are claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Of which queue.
    pub queue: String,
    /// At most so many, one at least.
    pub count: usize,
    /// No more once their records have so many bytes.
    pub bytes: usize,
    /// For how long the node gives them to nobody else.
    pub mark: Duration,
    /// The ballot to promise, for each of them.
    pub ballot: Ballot,
}

/// Where an item stands among the others of its queue: kept for it by each node that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which set ([`super::keyspace`]).
    pub set: char,
    /// As what: the item's order, and its id.
    pub member: String,
    /// So long after its first stamp it stands among the ready ones; zero for never.
    pub due: Duration,
}

impl Place {
    /// How much of a member is the order.
    pub const ORDER_LENGTH: usize = 22;
    /// Stands between a queue and an item's id in the name of the item's register.
    pub const SEPARATOR: char = '\u{1f}';
}

/// Which records a page is to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Where to go on: [`PageRequest::START`] to begin, else the cursor of the page before.
    pub cursor: Bytes,
    /// About so many.
    pub count: usize,
    /// Values up to so many bytes, and at least one.
    pub bytes: usize,
    /// The recovery that asks.
    pub recovery: Option<Ballot>,
    /// Whether values are wanted.
    pub with_values: bool,
    /// Just these; empty for what comes next.
    pub keys: Vec<RegisterKey>,
}

impl PageRequest {
    /// The first cursor, and the last.
    pub const START: Bytes = Bytes::from_static(b"0");
}

/// A record to be forgotten, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// Which register.
    pub key: RegisterKey,
    /// The ballot that all members hold.
    pub ballot: Ballot,
    /// The highest token promised then; past it somebody is about to write.
    pub promise: Token,
}

/// What a daemon knows of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One for each node.
    pub nodes: Vec<News>,
    /// What nodes have missed.
    pub missed: Vec<(NodeIndex, Vec<RegisterKey>)>,
}

/// What a daemon knows of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// It has answered since the last report.
    pub reached: bool,
    /// Its memory.
    pub memory: Option<MemoryId>,
    /// The highest count of writes that it answered out of that memory.
    pub writes: u64,
}

/// The second phase of a round, the same for all nodes, so shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Accept {
    /// Which register.
    pub key: RegisterKey,
    /// The ballot that carries the value.
    pub ballot: Ballot,
    /// The value, encoded.
    pub value: Bytes,
    /// The attempt that made the value; differs from `ballot` in a write-back.
    pub vid: Ballot,
    /// Vids of the values before it, latest first, at most [`crate::limits::RECENT_MAX`].
    pub recent: Vec<Ballot>,
    /// What ages in the value. The node keeps the times of those it knows.
    pub stamps: Vec<Stamp>,
    /// For how long after the first stamp a soft prepare is answered with the record; zero for never.
    pub guard: Duration,
    /// Whether the node's index of this kind has the name.
    pub listed: bool,
    /// Token of this proposer's next ballot, promised in the same step; [`Token::ZERO`] for none.
    pub next: Token,
    /// Whether those who watch for changes are told.
    pub announce: bool,
    /// Daemons to wake.
    pub wake: Vec<ProposerId>,
    /// Where an item stands in its queue.
    pub place: Option<Place>,
}

/// What a node holds under one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// No lower ballot is taken.
    pub promise: Ballot,
    /// The ballot of the accepted value; [`Ballot::ZERO`] for a bare promise.
    pub ballot: Ballot,
    /// The accepted value; empty for a bare promise.
    pub value: Bytes,
    /// The attempt that made the value.
    pub vid: Ballot,
    /// Vids of the values before it, latest first.
    pub recent: Vec<Ballot>,
    /// For how long the node has held each stamp, by its own clock, rounded down to milliseconds. Zero where that
    /// clock has gone back.
    pub ages: Vec<(Stamp, Duration)>,
    /// The value came by a merge and not from a round.
    pub copied: bool,
    /// The value says something: its name is listed.
    pub listed: bool,
    /// For how long after the first stamp a soft prepare is answered with the record.
    pub guard: Duration,
    /// Where an item stands in its queue.
    pub place: Option<Box<Place>>,
}

/// Some of a node's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where to go on; [`PageRequest::START`] at the end.
    pub cursor: Bytes,
    /// The node's floor.
    pub floor: Ballot,
    /// Keys and records as they are stored; without one where it was not wanted, did not fit, or is gone.
    pub rows: Vec<(RegisterKey, Option<Bytes>)>,
}

/// What a node promised of a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// Members and records, in the order of the queue; every record has the new promise in it.
    pub items: Vec<(String, Record)>,
    /// The highest promise that the node ever forgot.
    pub floor: Ballot,
    /// Until the next item is due, by the node's clock.
    pub next_due: Option<Duration>,
    /// Others have claimed some a moment ago.
    pub contended: bool,
}

/// What a node holds of many registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The node's clock, in microseconds of Unix time, by which stamps have their ages.
    pub now_us: u64,
    /// In the order of the question; `None` for nothing at all.
    pub rows: Vec<Option<Shown>>,
}

/// A record as it is stored, with what shows whether others hold the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// No lower ballot is taken.
    pub promise: Ballot,
    /// The ballot of the accepted value; [`Ballot::ZERO`] for a bare promise.
    pub ballot: Ballot,
    /// The value came by a merge and not from a round.
    pub copied: bool,
    /// For [`Shown::record`].
    pub raw: Bytes,
}

/// How many items a queue has, by one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Ready, and not due any later.
    pub ready: u64,
    /// Delayed.
    pub delayed: u64,
    /// Leased.
    pub leased: u64,
    /// Dead.
    pub dead: u64,
    /// Done and remembered.
    pub done: u64,
    /// The member that comes next.
    pub first: Option<String>,
    /// Members of the set that was asked for.
    pub members: Vec<String>,
}

/// A record without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The ballot of the accepted value; [`Ballot::ZERO`] for a bare promise.
    pub ballot: Ballot,
    /// No lower ballot is taken.
    pub promise: Ballot,
    /// The value came by a merge and not from a round.
    pub copied: bool,
    /// The value says something.
    pub listed: bool,
    /// What guards the value has aged, by this node's clock.
    pub ripe: bool,
    /// What guards the value has not aged.
    pub guarded: bool,
}

/// What a node was told by all daemons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// One for each node.
    pub nodes: Vec<Told>,
    /// The memory that the answering node had before its last start, or before the recovery that is under way; `None`
    /// once it has joined again.
    pub aside: Option<MemoryId>,
    /// How many batches have changed something on the answering node.
    pub writes: u64,
    /// The answering node's own join; `None` unless one is under way.
    pub join: Option<JoinState>,
}

/// How far a node's join is, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinState {
    /// Its old data is still being removed.
    pub wiping: bool,
    /// Records merged, each as often as a source had it.
    pub merged: u64,
    /// For how long nothing has moved.
    pub idle: Duration,
}

/// What a node was told of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// For how long no daemon has said that it reached it.
    pub unreached: Duration,
    /// The memory that it had.
    pub memory: Option<MemoryId>,
    /// The highest count of writes out of that memory.
    pub writes: u64,
    /// How many registers are noted that it missed.
    pub notes: u64,
}

/// What a node says to one operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// What is held; `None` for nothing at all.
    Record(Option<Record>),
    /// The promise was given; what was held before it.
    Promised {
        /// The record with the new promise in it. A bare promise where nothing was held.
        record: Record,
        /// The highest promise that the node ever forgot.
        floor: Ballot,
    },
    /// A soft prepare met a guarded record: nothing was promised.
    Held {
        /// The record as it stays.
        record: Record,
    },
    /// The node has promised a higher ballot: nothing was done.
    Conflict {
        /// What it has promised (or forgotten).
        promise: Ballot,
    },
    /// Stored, now or by the same operation earlier.
    Accepted,
    /// Names in byte order.
    Names(Vec<String>),
    /// Some of its records.
    Page(Page),
    /// What it holds, in the order of the question; `None` for nothing at all. Where records are large only of the first keys,
    /// one at least.
    Ballots(Vec<Option<Held>>),
    /// What it promised of a queue.
    Claimed(Claimed),
    /// How many items a queue has there.
    Census(Census),
    /// What is held of many registers: what a look without the script ([`super::peek`]) comes to.
    Looked(Looked),
    /// How many records are gone.
    Forgotten(u64),
    /// What it was told.
    Reported(Reported),
    /// Old data is still being removed: nothing was merged. The same again goes on with that.
    Wiping,
    /// The ballot is more than a day ahead of the node's clock: nothing was done.
    TooFarAhead,
    /// The node takes no operations: it has no memory or is not a member yet. Nothing was done.
    NotServing,
    /// The script raised an error in this operation. Whether it was done is unknown.
    Failed {
        /// The server's words.
        message: String,
    },
}
