//! Every cap that is not a setting, and the default of every cap that is, each with the reason for its number.

use std::time::Duration;

/// Names of locks, queues and keys, in bytes: long enough for a path, short enough that a thousand fit in a batch.
pub const NAME_BYTES_MAX: usize = 512;
/// Owners, in bytes: room for a host name, a pod name and a thread.
pub const OWNER_BYTES_MAX: usize = 512;
/// Attributes of a lease or an item, in entries: they are for people who look who holds a lock.
pub const ATTRIBUTES_MAX: usize = 16;
/// Attributes of a lease or an item, keys and values together, in bytes: every accept of the record carries them.
pub const ATTRIBUTES_BYTES_MAX: usize = 4096;
/// Default of the largest value of a key, in bytes: a round sends it to every node.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The largest value that a configuration may allow: a script of Redis holds some copies of it while it runs.
pub const VALUE_BYTES_CEILING: usize = 16 << 20;
/// Bytes of values that one daemon writes at a time: each waits in memory, some times over, until its round is done.
pub const WRITES_BYTES_MAX: usize = 256 << 20;
/// The longest TTL of a key: ten years of microseconds are far below 2^53.
pub const KEY_TTL_MAX: Duration = Duration::from_secs(3_650 * 86_400);
/// Default of the longest TTL of a key: what is meant to stay for longer is meant to stay for good.
pub const KEY_TTL_MAX_DEFAULT: Duration = Duration::from_secs(365 * 86_400);
/// Items of a batch that a client sends.
pub const BATCH_ITEMS_MAX: usize = 1_000;
/// Keys and values, or items, of a batch that a client sends, together, in bytes: what servers take in one message unless told
/// otherwise.
pub const BATCH_BYTES_TOTAL_MAX: usize = 4 << 20;
/// Request ids that a key remembers: so many writes of others may come between a request and its repeat. Each takes some
/// forty bytes of every accept of the key.
pub const REQUESTS_MAX: usize = 128;
/// For how long a key remembers request ids after the last: longer than any client repeats.
pub const REQUESTS_KEPT: Duration = Duration::from_secs(600);
/// Locks whose tokens fence one key: every accept of the key carries them.
pub const FENCES_MAX: usize = 16;
/// For how long a key that was removed remembers its fences: longer than a holder that was paused comes back after.
pub const FENCES_KEPT: Duration = Duration::from_secs(86_400);
/// Keys that one watch of a prefix follows: a daemon remembers each, some 100 bytes and its name.
pub const WATCH_KEYS_MAX: usize = 100_000;
/// Names of changed keys that wait for one watch to read them; past this it walks through all its keys instead.
pub const WATCH_PENDING_MAX: usize = 4_096;
/// Bytes of values that a daemon reads for one page of keys: what a client takes in one message.
pub const LIST_BYTES_MAX: usize = 3 << 20;
/// Default of the largest payload of an item, in bytes: as for a value.
pub const PAYLOAD_BYTES_MAX: usize = VALUE_BYTES_MAX;
/// The longest delay of an item: what is to happen later than in a week belongs into a calendar.
pub const DELAY_MAX: Duration = Duration::from_secs(7 * 86_400);
/// The longest back-off of a queue: an item that fails once a day for its ten attempts is looked at by somebody.
pub const BACKOFF_MAX: Duration = Duration::from_secs(86_400);
/// For how long a queue may remember ids of items that are done: each is a record on every node.
pub const DONE_RETENTION_MAX: Duration = Duration::from_secs(7 * 86_400);
/// The reason of a nack, in bytes: the last lines of an error. Every accept of the item carries it.
pub const NACK_REASON_BYTES_MAX: usize = 1_024;
/// Items that one call reserves, and that one stream may have in flight: each costs the daemon an extension now and then.
pub const RESERVE_ITEMS_MAX: usize = 1_000;
/// Attempts after which an item is dead, at most: more are as good as no bound, for which there is the zero.
pub const ATTEMPTS_MAX: u32 = 1_000_000;
/// The bound that a queue may have on its items: what Lua counts exactly.
pub const QUEUE_ITEMS_MAX: u64 = (1 << 53) - 1;
/// Entries of a page of dead items: with the largest attributes and reasons they come to what a client takes in one message.
pub const DEAD_PAGE_SIZE_MAX: usize = 500;
/// Nodes of a cluster: beyond seven, each round trip costs more than the redundancy is worth.
pub const NODES_MAX: usize = 7;
/// Default of the shortest TTL: below a second a pause of a garbage collector loses the lease.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// Default of the longest TTL: a crashed holder blocks its lock for this long.
pub const TTL_MAX: Duration = Duration::from_secs(300);
/// TTL of a lease whose caller named none.
pub const TTL_DEFAULT: Duration = Duration::from_secs(30);
/// The longest TTL that a configuration may allow: a day keeps all sums of milliseconds far below 2^53.
pub const TTL_CEILING: Duration = Duration::from_secs(86_400);
/// Default of the connections that one daemon takes: each has a file descriptor, and some 30 KiB where it is idle.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Files that a daemon has open beside the connections of its clients: those to nodes, to operators, its listeners and the
/// runtime's own, with room to spare.
pub const OPEN_FILES_SPARE: u64 = 256;
/// How long a connection may take to say that it speaks HTTP/2: after a round trip or two it has, also from another continent.
pub const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may take to arrive, whatever its deadline is: the largest batch comes in it over a line of 2 Mbit/s.
pub const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers of one call, in bytes as HTTP/2 counts them: room for a token and for what proxies add.
pub const HEADERS_BYTES_MAX: u32 = 16 << 10;
/// A request up to this size, in bytes, is not counted while it arrives: all calls together have half a GiB of such at most.
pub const ARRIVING_SMALL_BYTES: usize = 4 << 10;
/// Bytes of requests that are on their way on one connection: some thirty of the largest batches.
pub const ARRIVING_BYTES_PER_CONNECTION_MAX: usize = 128 << 20;
/// Bytes of requests that are on their way to one daemon.
pub const ARRIVING_BYTES_MAX: usize = 512 << 20;
/// An answer up to this size, in bytes, is not counted while it waits to be read.
pub const LEAVING_SMALL_BYTES: usize = 4 << 10;
/// What answers that wait to be read take up on one connection, in bytes: those to some sixty calls for the largest values.
pub const LEAVING_BYTES_PER_CONNECTION_MAX: usize = 128 << 20;
/// What such answers take up in one daemon, in bytes.
pub const LEAVING_BYTES_MAX: usize = 512 << 20;
/// Default of the waiters that one daemon keeps for one lock, and for one queue.
pub const WAITERS_PER_NAME_MAX: usize = 4_096;
/// Default of the waiters that one daemon keeps in all.
pub const WAITERS_MAX: usize = 65_536;
/// Operations in one batch: a node runs one batch at a time, and this many take it about a quarter of a millisecond.
pub const BATCH_OPERATIONS_MAX: usize = 128;
/// Bytes of operations in one batch, unless a single operation alone is larger.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Batches under way to one node: one being carried there, one being run, one on its way back.
pub const BATCHES_IN_FLIGHT_MAX: usize = 3;
/// A batch sets out this long after the one before, although that is not back: then the way is long. On a short way what
/// waits goes together, which costs a server and a daemon a tenth to a fifth less.
pub const BATCHES_OVERLAP_AFTER: Duration = Duration::from_millis(1);
/// Operations that may wait for one node; past this they are refused at once instead of growing old.
pub const OPERATIONS_QUEUED_MAX: usize = 65_536;
/// Looks without the script that may be under way to one node. Of one that has been silent the answers come all at once.
pub const LOOKS_IN_FLIGHT_MAX: usize = 8;
/// Rounds of looks that are under way at a time: as with batches.
pub const LOOK_ROUNDS_MAX: usize = BATCHES_IN_FLIGHT_MAX;
/// Bytes of records that one round of looks is to bring from each node, unless a single record is larger.
pub const LOOK_BYTES_MAX: usize = 4 << 20;
/// Changes of one key that one round applies together.
pub const GROUP_MAX: usize = 128;
/// Changes that may wait for one key in one daemon.
pub const CHANGES_QUEUED_MAX: usize = 16_384;
/// How many vids before its own a value remembers (the retry rule looks there). With eight, two of 120 runs of 64 writers of one
/// key at two daemons met an outcome that nobody could tell.
pub const RECENT_MAX: usize = 16;
/// Entries that a list page has at most, and by default.
pub const PAGE_SIZE_MAX: usize = 1_000;
/// Entries of a list page when the caller names no size.
pub const PAGE_SIZE_DEFAULT: usize = 100;
/// Registers that a daemon remembers to have missed a node until it has told the other nodes: a second's work.
pub const MISSES_MAX: usize = 10_000;
/// Registers that a daemon remembers to have left with nothing to say: what it does in some ten seconds.
pub const IDLE_MAX: usize = 200_000;
/// For so long a register that says nothing is left alone before it is looked at, and again before it is forgotten: the floor
/// stays behind the ballots in use, also where clocks differ a little.
pub const FORGET_LAG: Duration = Duration::from_secs(5);
/// Leases of which a daemon remembers until when they are good, for the time after a recovery: some 5 MiB.
pub const RUNNING_MAX: usize = 131_072;
/// Default of the records that a join copies a second: a few percent of what a node can do.
pub const JOIN_RATE: usize = 20_000;
/// Default of how long it is from one comparison of all nodes to the next, on average: nobody waits for what it finds.
pub const COMPARE_INTERVAL: Duration = Duration::from_secs(600);
/// Default of the registers that a comparison looks at a second: far below one percent of what a node can do.
pub const COMPARE_RATE: usize = 1_000;
/// Default of how long nobody may have reached a node before it is put out.
pub const OUT_AFTER: Duration = Duration::from_secs(600);
/// What is read of one connection before others have a turn: a hundred calls, and a millisecond's work.
pub const READ_IN_TURN_BYTES: usize = 32 << 10;
