//! Every key that majorityd stores on a node, in one place.
//!
//! | key | type | holds | written by | goes when |
//! | --- | --- | --- | --- | --- |
//! | `majorityd:node` | string | the node record: `[format, cluster, N, index, run_id, memory, aside]` | the handshake, `found` | never |
//! | `majorityd:r:m:` | string | the record of the member list | operations, ungated | never |
//! | `majorityd:r:l:NAME` | string | the record of the lock NAME | operations | never, in this version |
//! | `majorityd:i:l` | sorted set, all scores 0 | names of the locks that are held or waited for; a hint | `accept` | when empty |
//! | `majorityd:floor` | string | the highest promise ever forgotten, as 16 bytes | `forget` | never |
//!
//! All are MessagePack but the floor. The keys are built by the scripts' prelude; the constants here are for tests and
//! for the embedded node. Channels: `majorityd:CLUSTER:d:PROPOSER` wakes one daemon, `majorityd:CLUSTER:changes` tells
//! watchers; both carry a register key.

use crate::ids::ProposerId;

/// Kind of the member list's register.
pub const KIND_MEMBERS: char = 'm';
/// Kind of a lock's register.
pub const KIND_LOCK: char = 'l';
/// The node record.
pub const NODE_KEY: &str = "majorityd:node";
/// The highest promise ever forgotten.
pub const FLOOR_KEY: &str = "majorityd:floor";
/// How many batches have changed something.
pub const WRITES_KEY: &str = "majorityd:writes";
/// What stands before a register key.
pub const RECORD_PREFIX: &str = "majorityd:r:";
/// The format of records and batches that this version writes; part of the node record.
pub const FORMAT: u32 = 1;

/// The channel that wakes one daemon.
pub fn daemon_channel(cluster: &str, daemon: ProposerId) -> String {
    format!("majorityd:{cluster}:d:{daemon}")
}

/// The channel that announces changes.
pub fn changes_channel(cluster: &str) -> String {
    format!("majorityd:{cluster}:changes")
}
