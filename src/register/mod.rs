//! A register: what q of N nodes agree on under one key, changed by pure functions. CASPaxos (Rystsov,
//! arXiv 1802.07000), with what time and lost memories ask for on top.
//!
//! ```text
//!            warm: one round trip                     cold: two
//!  change ──► f(own last value) ─► accept(next) ─► done
//!                                                 ▲
//!  change ──► prepare(b) ─► q promises ─► f(highest value, ages) ─► accept(b) ─► q accepted ─► done
//!                 ▲                                                     │
//!                 └────────── conflict: back off, raise the token ◄─────┘
//! ```
//!
//! * [`proposer`]: the machine of one round of changes, with the retry rule. Pure.
//! * [`reader`]: when a value counts as committed without a write. Pure.
//! * [`age`]: when a stamp is aged. Pure.
//! * [`look`]: the machine that looks at many registers at once. Pure.
//! * [`claim`]: the machine that prepares several items of a queue at once. Pure.
//! * [`hints`]: when those who wait look after a hint.
//! * [`leases`]: until when a lease is good, and whether any may be granted. What locks and items share.
//! * `looking`: looks that wait set out together. Asynchronous.
//! * [`registers`]: the line of changes per key and the warm promises. Asynchronous.
//! * [`room`]: a bound on the bytes that are being written.
//! * [`sweep`]: how a kind is tidied where nobody asks any more.
//!
//! What a value means is not known here: a [`Kind`] brings its own pure `apply`.

pub mod age;
pub mod claim;
pub mod error;
pub mod hints;
pub mod leases;
pub mod look;
mod looking;
pub mod proposer;
pub mod reader;
pub mod registers;
pub mod room;
pub mod sweep;

#[cfg(test)]
mod look_tests;
#[cfg(test)]
mod proposer_tests;

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;

pub use age::Ages;
pub use claim::{Haul, Promised};
pub use error::RegisterError;
pub use leases::Leases;
pub use registers::{Committed, Observed, Registers};
pub use room::Room;
pub use sweep::Sweep;

use crate::ids::ProposerId;
use crate::node::operation::{Place, Stamp};
use crate::token::{Ballot, Token};

/// One kind of register: a lock, a key, a queue's item.
pub trait Kind: Send + Sync + 'static {
    /// The letter of its keys ([`crate::node::keyspace`]).
    const LETTER: char;
    /// What a register holds. The default is "absent".
    type Value: Clone + Default + Debug + PartialEq + Send + Sync;
    /// A pure function on the value, as data.
    type Change: Clone + Debug + Send + Sync;
    /// What a change answers.
    type Answer: Clone + Debug + Send;

    /// As the value is stored.
    fn encode(value: &Self::Value) -> Bytes;

    /// Reads what [`Kind::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    fn decode(bytes: &[u8]) -> Result<Self::Value, String>;

    /// The change itself. Must depend on nothing but its arguments.
    fn apply(
        change: &Self::Change,
        old: &Self::Value,
        attempt: &Attempt<'_>,
    ) -> Verdict<Self::Value, Self::Answer>;

    /// Whether the change is but a glance: it mostly changes nothing, and a guarded record need not be promised for it.
    fn is_glance(change: &Self::Change) -> bool;

    /// Whether the change only looks: it begins with a read, and changes something only where something has aged.
    fn is_look(_: &Self::Change) -> bool {
        false
    }

    /// What ages in the value, and after how long. The first is the guard's, if the value has a guard.
    fn stamps(value: &Self::Value) -> Vec<(Stamp, Duration)>;

    /// Whether the first stamp guards the value: until it has aged, glances are answered with the record.
    fn is_guarded(value: &Self::Value) -> bool;

    /// How many bytes of memory the value takes, more or less, beyond a few hundred.
    fn weight(_: &Self::Value) -> usize {
        0
    }

    /// Whether the node's index has the name.
    fn is_listed(value: &Self::Value) -> bool;

    /// For how long a value is to be kept by which nothing is listed; zero for as short as may be. Where it is not zero the
    /// value is guarded for as long.
    fn retention(_: &Self::Value) -> Duration {
        Duration::ZERO
    }

    /// Where the register of this name stands among the items of its queue.
    fn place(_name: &str, _value: &Self::Value) -> Option<Place> {
        None
    }

    /// Who is to be woken by this step, and whether watchers are told.
    fn publish(old: &Self::Value, new: &Self::Value) -> Publish;
}

/// What an accept publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publish {
    /// Watchers are told.
    pub announce: bool,
    /// Daemons that are woken.
    pub wake: Vec<ProposerId>,
}

/// What a change may know of the attempt that it is applied in.
pub struct Attempt<'a> {
    /// The attempt's ballot. Its token is the one new fencing token that the round may hand out.
    pub ballot: Ballot,
    /// For how long stamps have been held.
    pub ages: &'a Ages,
    /// Where the change stands in its group, from 0.
    pub place: u32,
}

impl<'a> Attempt<'a> {
    /// For the first of a group.
    pub fn new(ballot: Ballot, ages: &'a Ages) -> Self {
        Self { ballot, ages, place: 0 }
    }

    /// A token that no other change of the register is given, above those of all changes before it: the ballot's for the
    /// first of a group, the ones after it for the others. The proposer keeps them from the ballots that follow.
    pub fn token(&self) -> Token {
        self.ballot.token.plus(self.place.into())
    }
}

/// What a change makes of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict<V, A> {
    /// It changes nothing.
    Unchanged(A),
    /// It makes a new value.
    Changed(V, A),
    /// It can't be done in this round (the round's token is used up): once more in the next.
    Deferred,
}
