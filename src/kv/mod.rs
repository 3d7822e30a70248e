//! Keys: values under names, linearizable one by one. What a register holds for one ([`value`]), how it changes
//! ([`change`], pure), and the asynchronous facade ([`keys`]) with its watches ([`watch`]).
//!
//! This file has the words that the facade speaks with its callers.

pub mod change;
pub mod error;
pub mod keys;
pub mod value;
pub mod watch;

#[cfg(test)]
mod change_tests;

use std::time::Duration;

use bytes::Bytes;

pub use error::KvError;
pub use keys::Keys;
pub use watch::{WatchEvent, Watched};

use crate::ids::{Key, LockName, RequestId};
use crate::token::Token;

/// The value of a key, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes.
    pub data: Bytes,
    /// The token of the write that made it: higher than that of every earlier write or removal of the key.
    pub version: Token,
    /// How long it stays at least, if it has a TTL; zero if it may be gone now.
    pub remaining: Option<Duration>,
}

/// What has to be there for a write to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precondition {
    /// Anything or nothing.
    #[default]
    None,
    /// Nothing.
    Absent,
    /// Something.
    Present,
    /// The value that this write made.
    Version(Token),
}

/// What a write does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts a value there.
    Set {
        /// The bytes.
        data: Bytes,
        /// How long it stays; `None` for good.
        ttl: Option<Duration>,
        /// What has to be there.
        precondition: Precondition,
    },
    /// Removes the value.
    Delete {
        /// Only the value that this write made.
        version: Option<Token>,
    },
    /// Adds to a decimal number.
    Increment {
        /// What is added.
        delta: i64,
        /// What is counted from where there is nothing.
        initial: i64,
        /// How long the number stays from now on; `None` for as long as before.
        ttl: Option<Duration>,
    },
    /// Starts the time of the value anew, leaving the value.
    Touch {
        /// How long it stays from now on; `None` for good.
        ttl: Option<Duration>,
    },
}

/// A write is refused if the key has been written under a higher token of the same lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The lock that protects the key.
    pub lock: LockName,
    /// The fencing token of its holder.
    pub token: Token,
}

/// A write, with what makes it safe to repeat and to be late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// What is done.
    pub write: Write,
    /// A repeat with the same id is answered as the first was, and not done again.
    pub request: Option<RequestId>,
    /// The holder of a lock writes.
    pub fence: Option<Fence>,
    /// The value before it is wanted in the answer.
    pub previous: bool,
}

impl From<Write> for Mutation {
    fn from(write: Write) -> Self {
        Self { write, request: None, fence: None, previous: false }
    }
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The value is there.
    Set {
        /// Its version.
        version: Token,
        /// How long it stays.
        ttl: Option<Duration>,
    },
    /// The value is gone.
    Deleted {
        /// The version of the removal; `None` where there was nothing to remove.
        version: Option<Token>,
    },
    /// The number is there.
    Counted {
        /// It.
        number: i64,
        /// Its version.
        version: Token,
    },
    /// The value has its new time.
    Touched {
        /// Its version, which stays; `None` where there was no value.
        version: Option<Token>,
        /// How long it stays.
        ttl: Option<Duration>,
    },
}

/// The answer to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What it did.
    pub effect: Effect,
    /// The value before it, where that was asked for and there was one. Not for a repeat.
    pub previous: Option<Entry>,
    /// The request id was known: nothing was done now, and the effect is that of the first time.
    pub repeated: bool,
}

/// A key of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedKey {
    /// Its name.
    pub key: Key,
    /// Its value.
    pub entry: Entry,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPage {
    /// In byte order of the names.
    pub keys: Vec<ListedKey>,
    /// Where the next page starts (after this name); `None` at the end.
    pub next: Option<String>,
}
