//! Every key that majorityd stores on a node, in one place.
//!
//! | key | type | holds | written by | goes when |
//! | --- | --- | --- | --- | --- |
//! | `majorityd:node` | string | the node record, below | the handshake, `found`, `begin_join`, `merge`, `end_join` | never |
//! | `majorityd:r:m:` | string | the record of the member list | `prepare` and `accept`, ungated; `merge` | never |
//! | `majorityd:r:l:NAME` | string | the record of the lock NAME | `prepare`, `accept`, `merge` | with `forget`, and when a join removes old data |
//! | `majorityd:r:k:NAME` | string | the record of the key NAME | as that of a lock | as that of a lock |
//! | `majorityd:i:l` | sorted set | names of the locks that are held or waited for; a hint | `accept`, `merge`, `forget` | when empty, and when a join removes old data |
//! | `majorityd:i:k` | sorted set | names of the keys that have a value, or remember requests or fences; a hint | as `majorityd:i:l` | as `majorityd:i:l` |
//! | `majorityd:r:q:QUEUE\x1fID` | string | the record of the item ID of QUEUE | as that of a lock, `claim` | as that of a lock |
//! | `majorityd:r:c:QUEUE` | string | the record of the settings of QUEUE | as that of a lock | as that of a lock |
//! | `majorityd:i:c` | sorted set | names of the queues that have settings; a hint | as `majorityd:i:l` | as `majorityd:i:l` |
//! | `majorityd:i:qS:QUEUE` | sorted set | items of QUEUE in the set S, below; a hint | `accept`, `merge`, `forget`, `claim`, `census` | as `majorityd:i:l` |
//! | `majorityd:floor` | string | the highest promise ever forgotten, as 16 bytes | `forget`, `merge` | with `begin_join`, unless of a recovery |
//! | `majorityd:writes` | string | how many batches have changed a record, in decimal | every batch that does | with `begin_join`, unless of a recovery |
//! | `majorityd:seen` | string | for each node `[microseconds, memory, writes]`: when a daemon last said that it reached it, by this node's clock, and the highest count out of the memory last told of; a hint | `report` | never |
//! | `majorityd:n:INDEX` | sorted set | register keys of what the node INDEX has missed, at most 100,000; a hint | `report`, `missed` | when empty, and when a join removes old data |
//!
//! "Never" leaves out FLUSHALL. The node record and what was seen are MessagePack arrays; a record is MessagePack values one
//! after the other, in the order of the script's prelude. Scores are 0, but for those of
//! queues that are times.
//!
//! Sets of a queue: `r` ready, `w` delayed, `l` leased, `d` dead, `x` done, and `m` marked: somebody has claimed it a moment
//! ago. In `w`, `l` and `m` the score is when that is over, in milliseconds of the node's clock; what is due goes to `r`.
//! A member is the item's order, 22 hexadecimal digits ([`super::operation::Place`]), and its id.
//!
//! The node record is an array. The handshake reads the first six fields and `aside`, the scripts all:
//!
//! | field | holds | set by |
//! | --- | --- | --- |
//! | 1 to 4 | format, cluster, N, index: whose node it is | the first handshake |
//! | 5 `run_id` | the run of the server that the memory belongs to | the handshake |
//! | 6 `memory` | the id of the memory, 8 bytes; empty for none | `found`, `begin_join`; a handshake in another run empties it |
//! | 7 `aside` | the id of what a recovery may merge into, while that is not the memory; else empty | a handshake in another run, unless a join was under way; a recovery's `begin_join`; emptied by any other and by `end_join` |
//! | 8 `begun` | the id that a join began with last | `begin_join` |
//! | 9 `phase` | 0 serving, 1 old data is being removed, 2 merging | `begin_join`, `merge`, `end_join`; a handshake in another run sets it to 0 |
//! | 10 `cursor` | where the removal of old data goes on | `begin_join`, `merge` |
//! | 11 `recovery` | `[token, proposer]` of the recovery that the join belongs to, or false | `begin_join`, `end_join`; a handshake in another run |
//! | 12 `merged` | how many records were merged | `begin_join`, `merge` |
//! | 13 `moved` | when the join last moved, in microseconds of the node's clock | `begin_join`, `merge`, `end_join` |
//!
//! The keys are built by the scripts' prelude; the constants here are for tests and for the embedded node. Channels:
//! `majorityd:CLUSTER:d:PROPOSER` wakes one daemon, `majorityd:CLUSTER:changes` tells watchers; both carry a register
//! key.

use crate::ids::ProposerId;

/// Kind of the member list's register.
pub const KIND_MEMBERS: char = 'm';
/// Kind of a lock's register.
pub const KIND_LOCK: char = 'l';
/// Kind of a key's register.
pub const KIND_KEY: char = 'k';
/// Kind of the register of a queue's item.
pub const KIND_ITEM: char = 'q';
/// Kind of the register of a queue's settings.
pub const KIND_QUEUE: char = 'c';
/// The node record.
pub const NODE_KEY: &str = "majorityd:node";
/// The highest promise ever forgotten.
pub const FLOOR_KEY: &str = "majorityd:floor";
/// How many batches have changed something.
pub const WRITES_KEY: &str = "majorityd:writes";
/// What stands before a register key.
pub const RECORD_PREFIX: &str = "majorityd:r:";
/// The format of records and batches that this version writes; part of the node record.
pub const FORMAT: u32 = 4;

/// The channel that wakes one daemon.
pub fn daemon_channel(cluster: &str, daemon: ProposerId) -> String {
    format!("majorityd:{cluster}:d:{daemon}")
}

/// The channel that announces changes.
pub fn changes_channel(cluster: &str) -> String {
    format!("majorityd:{cluster}:changes")
}
