//! What the rooms of one daemon count, for whoever shows it: plain numbers behind shared references.
//!
//! No room learns from here how it is doing, and nothing here reads a clock or draws a number, so counting changes nothing
//! in what is counted, nor in a simulation. There is no global state: each [`crate::driver::Cluster`] has a [`Meter`] of
//! its own. Nothing in it is kept by the name of a lock, a queue or a key, so it does not grow. [`calls`] counts what
//! comes over the wire, and [`door`] who is let in; [`crate::metrics`] gives all of it its names.

pub mod calls;
pub mod door;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::node::keyspace::{KIND_ITEM, KIND_KEY, KIND_LOCK, KIND_QUEUE};

/// Up to how many microseconds each bucket goes: from a round trip inside a machine to the longest lease by default.
const MICROSECONDS: [u64; 16] = [
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    10_000_000,
    60_000_000,
    300_000_000,
];
/// Up to how many each bucket goes: 128 is the most that a batch or a round has.
const SIZES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Something that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are at the moment.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    /// One more, until the answer is dropped.
    pub fn enter(&self) -> Entered<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Entered(self)
    }

    /// How many now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One of a [`Level`].
#[derive(Debug)]
pub struct Entered<'a>(&'a Level);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How lengths of time are spread.
#[derive(Debug, Default)]
pub struct Times(Spread<16>);

impl Times {
    /// Something took so long.
    pub fn took(&self, length: Duration) {
        self.0.add(&MICROSECONDS, u64::try_from(length.as_micros()).unwrap_or(u64::MAX));
    }

    /// In seconds.
    pub fn shown(&self) -> Shown {
        self.0.shown(&MICROSECONDS, 1e-6)
    }
}

/// How numbers of things are spread.
#[derive(Debug, Default)]
pub struct Sizes(Spread<8>);

impl Sizes {
    /// There were so many.
    pub fn had(&self, count: usize) {
        self.0.add(&SIZES, count as u64);
    }

    /// As they are.
    pub fn shown(&self) -> Shown {
        self.0.shown(&SIZES, 1.0)
    }
}

/// How many were in each bucket.
#[derive(Debug)]
struct Spread<const N: usize> {
    buckets: [Count; N],
    /// Beyond the last bucket.
    beyond: Count,
    sum: Count,
}

impl<const N: usize> Default for Spread<N> {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Count::default()),
            beyond: Count::default(),
            sum: Count::default(),
        }
    }
}

impl<const N: usize> Spread<N> {
    fn add(&self, bounds: &[u64; N], value: u64) {
        let bucket = bounds.iter().position(|bound| value <= *bound);
        bucket.map_or(&self.beyond, |bucket| &self.buckets[bucket]).one();
        self.sum.add(value);
    }

    fn shown(&self, bounds: &[u64; N], unit: f64) -> Shown {
        let bounds = bounds.iter().map(|bound| *bound as f64 * unit).chain([f64::INFINITY]);
        let counts = self.buckets.iter().chain([&self.beyond]).map(Count::get);
        Shown { buckets: bounds.zip(counts).collect(), sum: self.sum.get() as f64 * unit }
    }
}

/// A spread at one moment. What was added meanwhile may be in one number and not yet in another.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Up to what each bucket goes, and how many were in it alone.
    pub buckets: Vec<(f64, u64)>,
    /// The sum of all.
    pub sum: f64,
}

impl Shown {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

/// Everything that is counted below the edges of one daemon, except for what each node's queue counts for itself
/// ([`NodeMeter`]).
#[derive(Debug, Default)]
pub struct Meter {
    /// Registers of each kind.
    pub kinds: Kinds,
    /// Answers of nodes that had promised a higher ballot to somebody else.
    pub conflicts: Count,
    /// Locks.
    pub locks: LockMeter,
    /// Queues.
    pub queues: QueueMeter,
    /// What heals.
    pub upkeep: UpkeepMeter,
}

/// What is counted of registers, by kind.
#[derive(Debug)]
pub struct Kinds {
    known: [(char, &'static str, KindMeter); 4],
    /// Of tests; not shown.
    other: KindMeter,
}

impl Default for Kinds {
    fn default() -> Self {
        let names = [(KIND_LOCK, "lock"), (KIND_ITEM, "item"), (KIND_KEY, "key"), (KIND_QUEUE, "queue")];
        let known = names.map(|(letter, name)| (letter, name, KindMeter::default()));
        Self { known, other: KindMeter::default() }
    }
}

impl Kinds {
    /// Of the kind with this letter.
    pub fn of(&self, letter: char) -> &KindMeter {
        let known = self.known.iter().find(|(known, ..)| *known == letter);
        known.map_or(&self.other, |(.., meter)| meter)
    }

    /// Each with its name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &KindMeter)> {
        self.known.iter().map(|(_, name, meter)| (*name, meter))
    }
}

/// Registers of one kind.
#[derive(Debug, Default)]
pub struct KindMeter {
    /// How long rounds took.
    pub rounds: Times,
    /// How many changes each round had.
    pub changes: Sizes,
    /// Rounds that needed no prepare.
    pub warm: Count,
    /// How long reads took that found a quorum.
    pub reads: Times,
    /// What changes came to.
    pub fates: Fates,
}

/// What changes came to.
#[derive(Debug, Default)]
pub struct Fates {
    /// Agreed on, whether they changed something or not.
    pub done: Count,
    /// No quorum, and certainly not applied.
    pub no_quorum: Count,
    /// Nobody knows.
    pub unknown: Count,
    /// Refused for another reason.
    pub refused: Count,
}

/// Leases of one sort.
#[derive(Debug, Default)]
pub struct LeaseMeter {
    /// Given out.
    pub granted: Count,
    /// Extended.
    pub extended: Count,
    /// Given back: released, acked, nacked.
    pub ended: Count,
    /// Found lost when they were to be extended or ended: somebody else has had it since, or it was given back.
    pub taken: Count,
    /// Run out in the hands of a stream that was to keep them.
    pub expired: Count,
}

/// Locks.
#[derive(Debug, Default)]
pub struct LockMeter {
    /// Their leases.
    pub leases: LeaseMeter,
    /// Acquires that found somebody else, for as long as they wanted to wait.
    pub contended: Count,
    /// Leases that were ended by force.
    pub forced: Count,
    /// How long callers waited in line.
    pub waits: Waits,
    /// Leases that streams keep.
    pub holds: Level,
    /// Tries of streams to extend that failed while the lease was still good.
    pub jeopardies: Count,
}

/// Queues.
#[derive(Debug, Default)]
pub struct QueueMeter {
    /// Leases of items.
    pub leases: LeaseMeter,
    /// Items that were put.
    pub put: Count,
    /// Items that were there already.
    pub duplicates: Count,
    /// Acked.
    pub acked: Count,
    /// Nacked, to come again.
    pub nacked: Count,
    /// Nacked for the last time.
    pub buried: Count,
    /// Leased, and given back because nobody was there to take them.
    pub returned: Count,
    /// Calls and streams that wait for items.
    pub waiters: Level,
    /// How long they waited.
    pub waits: Waits,
}

/// How long callers waited, by what came of it.
#[derive(Debug, Default)]
pub struct Waits {
    /// They got what they waited for.
    pub served: Times,
    /// Their time was up.
    pub in_vain: Times,
    /// It failed.
    pub failed: Times,
}

/// What heals.
#[derive(Debug, Default)]
pub struct UpkeepMeter {
    /// Joins that this daemon began.
    pub joins_begun: Count,
    /// Of those, the ones that made a node a member again.
    pub joins_done: Count,
    /// Of those, the ones that came to nothing and are started over.
    pub joins_failed: Count,
    /// Records copied to nodes that join, each as often as a source had it.
    pub join_records: Count,
    /// Registers brought to nodes that were known to miss them.
    pub repaired: Count,
    /// Walks through all that the nodes hold.
    pub walks: Count,
    /// Registers that a walk looked at, each once for each node that has it.
    pub compared: Count,
    /// Of those, the ones that differed and were mended.
    pub mended: Count,
    /// Of those, the ones in which something had aged and was tidied.
    pub swept: Count,
    /// Registers that said nothing and were forgotten.
    pub forgotten: Count,
}

/// The queue of one node.
#[derive(Debug, Default)]
pub struct NodeMeter {
    /// How long batches took that were answered.
    pub batches: Times,
    /// How many operations each batch had.
    pub operations: Sizes,
    /// Operations that were answered.
    pub answered: Count,
    /// Operations that met a closed gate.
    pub gated: Count,
    /// Operations that were not sent, or refused with the whole batch.
    pub unsent: Count,
    /// Operations that were sent and had no answer.
    pub lost: Count,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_that_reaches_it() {
        let sizes = Sizes::default();
        for size in [0, 1, 2, 3, 128, 129, 1_000_000] {
            sizes.had(size);
        }
        let shown = sizes.shown();
        let counts: Vec<u64> = shown.buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 1, 1, 0, 0, 0, 0, 1, 2]);
        assert_eq!((shown.count(), shown.sum), (7, 1_000_263.0));
    }

    #[test]
    fn times_are_shown_in_seconds_and_however_long() {
        let times = Times::default();
        times.took(Duration::from_micros(250));
        times.took(Duration::from_millis(3));
        times.took(Duration::from_secs(301));
        let shown = times.shown();
        let used: Vec<f64> =
            shown.buckets.iter().filter(|(_, count)| *count > 0).map(|(bound, _)| *bound).collect();
        assert_eq!(used, [0.00025, 0.005, f64::INFINITY]);
        assert!((shown.sum - 301.00325).abs() < 1e-6);
        assert!(MICROSECONDS.is_sorted() && SIZES.is_sorted());
    }

    #[test]
    fn a_level_falls_when_what_entered_is_dropped() {
        let level = Level::default();
        let first = level.enter();
        let second = level.enter();
        drop(first);
        assert_eq!(level.get(), 1);
        drop(second);
        assert_eq!(level.get(), 0);
    }
}
