//! How a call to [`super::Keys`] can fail. A variant per thing that a caller would handle differently.

use crate::ids::{Key, LockName};
use crate::register::RegisterError;
use crate::token::Token;

/// Why a call failed, and what is certain then.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// What the write asked for is not there. Nothing happened.
    #[error("the precondition is not met: {key} {}; nothing happened", match current {
        Some(version) => format!("has version {version}"),
        None => "has no value".to_owned(),
    })]
    PreconditionFailed {
        /// Which key.
        key: Key,
        /// The version that it has; `None` where it has no value.
        current: Option<Token>,
    },
    /// The value is no decimal number of 64 bits. Nothing happened.
    #[error(
        "the value of {key} is not an integer (decimal, from -2^63 to 2^63 - 1, without leading zeros); nothing happened"
    )]
    NotAnInteger {
        /// Which key.
        key: Key,
    },
    /// The sum does not fit. Nothing happened.
    #[error("{number} + {delta} in {key} is outside -2^63 to 2^63 - 1; nothing happened")]
    Overflow {
        /// Which key.
        key: Key,
        /// What is there.
        number: i64,
        /// What was to be added.
        delta: i64,
    },
    /// The key has been written under a higher token of the lock. Nothing happened.
    #[error(
        "{key} has been written under token {highest} of the lock {lock}, so token {token} is refused; nothing happened"
    )]
    Fenced {
        /// Which key.
        key: Key,
        /// The lock.
        lock: LockName,
        /// The token given.
        token: Token,
        /// The highest seen.
        highest: Token,
    },
    /// The key is fenced by as many other locks as it may. Nothing happened.
    #[error(
        "{key} has been written under tokens of {max} locks, and {lock} would be one more; nothing happened"
    )]
    TooManyFences {
        /// Which key.
        key: Key,
        /// The lock given.
        lock: LockName,
        /// How many may.
        max: usize,
    },
    /// The request id was used for another request. Nothing happened.
    #[error("the request_id was used for another request to {key}; nothing happened")]
    RequestIdReused {
        /// Which key.
        key: Key,
    },
    /// A watch of a prefix has more keys than it may follow. The watch ends.
    #[error("there are more than {max} keys under {prefix:?}, the most that one watch follows")]
    TooManyKeys {
        /// The prefix.
        prefix: String,
        /// How many a watch may follow.
        max: usize,
    },
    /// The daemon is stopping; nothing happened.
    #[error("this daemon is shutting down")]
    ShuttingDown,
    /// The register could not agree.
    #[error(transparent)]
    Register(#[from] RegisterError),
}
