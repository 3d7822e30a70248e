//! How a round of agreement can fail. The three fates of a change are kept apart: not applied, unknown, and the rest.

use std::time::Duration;

/// Why a register gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Too few members answered in time. Nothing happened.
    #[error("no quorum: {reachable} of {nodes} nodes can be counted on and {quorum} are needed ({detail}); nothing happened")]
    NoQuorum {
        /// Members that answer and count, as last seen.
        reachable: usize,
        /// N.
        nodes: usize,
        /// q.
        quorum: usize,
        /// What is wrong with the others, for people.
        detail: String,
    },
    /// An accept was sent and too few answered: the change may have happened, may happen later, or never.
    #[error("the outcome is unknown: the change was sent and no quorum confirmed it; it may have happened, may still, or may never")]
    OutcomeUnknown,
    /// The caller's deadline passed before anything was sent. Nothing happened.
    #[error("the deadline passed after {waited:?}, before anything was sent; nothing happened")]
    DeadlineExceeded {
        /// How long the change had waited.
        waited: Duration,
    },
    /// Too much waits in this daemon. Nothing happened.
    #[error("{waiting} changes wait for this record already; at most {max} may; nothing happened")]
    Overloaded {
        /// How many wait.
        waiting: usize,
        /// How many may.
        max: usize,
    },
    /// This daemon's clock is more than a day ahead of the nodes'. Nothing happened.
    #[error("this machine's clock is more than a day ahead of the clocks of the nodes, which therefore refuse it: set the clock right; nothing happened")]
    ClockTooFarAhead,
    /// A record can't be read by this version. Nothing happened.
    #[error("the record can't be read: {detail}; a newer version may have written it; nothing happened")]
    Unreadable {
        /// What is wrong with it.
        detail: String,
    },
}
