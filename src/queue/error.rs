//! How a call to [`super::Queues`] can fail. A variant per thing that a caller would handle differently.

use crate::ids::{ItemId, QueueName};
use crate::register::RegisterError;
use crate::register::leases::Recovering;

/// Why a call failed, and what is certain then.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Nothing was ever put there and nobody configured it, or it was deleted. Nothing happened.
    #[error("there is no queue {queue}")]
    NoSuchQueue {
        /// Which.
        queue: QueueName,
    },
    /// The item never was, or it is done and forgotten. Nothing happened.
    #[error("there is no item {id} in the queue {queue}")]
    NoSuchItem {
        /// Which queue.
        queue: QueueName,
        /// Which item.
        id: ItemId,
    },
    /// The queue has as many items as it may. Nothing happened.
    #[error("the queue {queue} has {items} items, and at most {max} may be in it; nothing happened")]
    QueueFull {
        /// Which.
        queue: QueueName,
        /// How many there are.
        items: u64,
        /// How many may be.
        max: u64,
    },
    /// As many calls wait for items as may. Nothing happened.
    #[error(
        "{waiting} calls wait for items of {queue} at this daemon, and at most {max} may; nothing happened"
    )]
    TooManyWaiters {
        /// Which queue.
        queue: QueueName,
        /// How many wait.
        waiting: usize,
        /// How many may.
        max: usize,
    },
    /// This daemon is writing as many bytes as it may at a time. Nothing happened.
    #[error(
        "payloads of {bytes} bytes are being written by this daemon already; at most {max} may; nothing happened"
    )]
    TooMuchToWrite {
        /// How many are.
        bytes: usize,
        /// How many may be.
        max: usize,
    },
    /// After a recovery nothing is leased until every lease from before it has run out. Nothing happened.
    #[error(
        "the cluster was recovered: leases from before it may still run, so nothing is leased for up to {wait_ms} ms"
    )]
    Recovering {
        /// The longest that it can take, in milliseconds.
        wait_ms: u64,
    },
    /// The daemon is stopping; nothing happened.
    #[error("this daemon is shutting down")]
    ShuttingDown,
    /// The register could not agree.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl From<Recovering> for QueueError {
    fn from(Recovering { wait_ms }: Recovering) -> Self {
        Self::Recovering { wait_ms }
    }
}
