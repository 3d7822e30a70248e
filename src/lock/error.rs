//! How a call to [`super::Locks`] can fail. A variant per thing that a caller would handle differently.

use crate::ids::LockName;
use crate::register::RegisterError;
use crate::register::leases::Recovering;

/// Why a call failed, and what is certain then.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lease id does not hold the lock (any more): it was released, forced, taken over or passed to somebody else.
    /// Or too many servers lost their memory at once, and it with that: what is absent does not tell why.
    #[error(
        "the lease on {name} is lost: it was released, somebody else has had the lock since, or a recovery of the cluster did not find it"
    )]
    LeaseLost {
        /// Which lock.
        name: LockName,
    },
    /// Too many wait already; nothing happened.
    #[error("{waiting} callers wait for {name} at this daemon already; at most {max} may")]
    TooManyWaiters {
        /// Which lock, or all of them together (`None`) when the daemon's own limit is reached.
        name: LockName,
        /// How many wait.
        waiting: usize,
        /// How many may.
        max: usize,
    },
    /// The daemon is stopping; nothing happened.
    #[error("this daemon is shutting down")]
    ShuttingDown,
    /// The lock held by the token that was to be released by force is held by another token, or not held.
    #[error("{name} is not held under fencing token {token}; the highest token known is {highest}")]
    TokenNotHeld {
        /// Which lock.
        name: LockName,
        /// The token given.
        token: crate::token::Token,
        /// The highest known.
        highest: crate::token::Token,
    },
    /// No new lock may be granted, and no lease extended that may have run out, until the longest TTL has passed since a
    /// recovery or a founding. Nothing happened.
    #[error(
        "the cluster was founded or recovered a short while ago; until the longest TTL of {wait_ms} ms has passed since, no lock is granted, and a lease is extended only by a daemon that knows that it has not run out"
    )]
    Recovering {
        /// How long it takes, in milliseconds.
        wait_ms: u64,
    },
    /// The register could not agree.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl From<Recovering> for LockError {
    fn from(Recovering { wait_ms }: Recovering) -> Self {
        Self::Recovering { wait_ms }
    }
}
