//! [`Options`]: what a seed decides before a run begins.
//!
//! Each kind of fault is in some runs and not in others (swarm testing: Groce et al., ISSTA 2012): a fault that always rages
//! hides what only shows while it does not.

use std::fmt;
use std::time::Duration;

use super::faults::Fault;
use super::random::Random;
use super::world::Stalls;
use crate::queue::QueueOptions;

/// Sizes, and what may go wrong.
#[derive(Clone, Debug)]
pub struct Options {
    /// N.
    pub nodes: usize,
    /// Daemons.
    pub daemons: usize,
    /// Clients of locks.
    pub clients: u32,
    /// Names that they fight over.
    pub names: u64,
    /// Clients of cells.
    pub cell_clients: u32,
    /// Cells that they fight over.
    pub cells: u64,
    /// Clients of keys, and what they do.
    pub keys: KeyOptions,
    /// Clients of queues, and what they do.
    pub queues: QueueWork,
    /// The operator's word that the cluster is new.
    pub bootstrap: bool,
    /// For how long faults rage.
    pub faults_for: Duration,
    /// Up to so long from one fault to the next.
    pub fault_every: Duration,
    /// The kinds of faults.
    pub faults: Vec<Fault>,
    /// Messages lost, in percent.
    pub loss: u64,
    /// Messages late, in percent.
    pub late: u64,
    /// A late one takes up to 2 to the power of this, in milliseconds.
    pub late_bits: u64,
    /// Hints lost, in percent.
    pub hints_lost: u64,
    /// How often daemons are paused at an await.
    pub stalls: Stalls,
    /// How far a daemon's wall clock is off at most.
    pub skew: Duration,
}

/// What a seed decides about keys.
#[derive(Clone, Debug, Default)]
pub struct KeyOptions {
    /// Clients. In most runs there are none.
    pub clients: u32,
    /// Clients that watch.
    pub watchers: u32,
    /// Keys that they fight over.
    pub keys: u64,
    /// Writes with a request id, in percent.
    pub requests: u64,
    /// Writes under a token of a lock, in percent.
    pub fenced: u64,
    /// Reads that list all keys, in percent.
    pub listed: u64,
    /// The run goes on until request ids have aged.
    pub ages: bool,
}

impl KeyOptions {
    fn draw(random: &mut Random) -> Self {
        if random.chance(60) {
            return Self::default();
        }
        let requests = if random.chance(60) { 50 } else { 0 };
        Self {
            clients: 1 + random.below(4) as u32,
            watchers: random.below(3) as u32,
            keys: 1 + random.below(2),
            requests,
            fenced: if random.chance(50) { 30 } else { 0 },
            listed: if random.chance(30) { 30 } else { 0 },
            // It takes long, so only some runs do.
            ages: requests > 0 && random.chance(10),
        }
    }

    /// Nothing keeps a key that has been removed, once the run is over.
    pub fn leaves_nothing(&self) -> bool {
        self.fenced == 0 && (self.requests == 0 || self.ages)
    }
}

/// What a seed decides about queues.
#[derive(Clone, Debug, Default)]
pub struct QueueWork {
    /// Clients that put. In most runs there are none.
    pub producers: u32,
    /// Clients that work on items.
    pub consumers: u32,
    /// Queues that they fight over.
    pub queues: u64,
    /// Items that each producer puts at most while faults rage.
    pub items_max: u64,
    /// Puts under an id of the client's making that nobody else uses, in percent.
    pub named: u64,
    /// Times that a consumer works with a stream, in percent.
    pub streams: u64,
    /// Operators purge now and then.
    pub purges: bool,
    /// Settings of the queues.
    pub options: QueueOptions,
}

impl QueueWork {
    fn draw(random: &mut Random) -> Self {
        if random.chance(75) {
            return Self::default();
        }
        let purges = random.chance(20);
        let seconds = Duration::from_secs;
        Self {
            producers: 1 + random.below(2) as u32,
            consumers: 1 + random.below(4) as u32,
            queues: 1 + random.below(2),
            items_max: 15 + random.below(40),
            named: 10 + random.below(60),
            streams: random.below(60),
            purges,
            options: QueueOptions {
                lease_ttl: Duration::from_millis(300 + random.below(3_000)),
                max_attempts: [0, 0, 2, 3, 10][random.index(5)],
                backoff_min: Duration::from_millis(100 + random.below(400)),
                backoff_max: seconds(2),
                max_items: if random.chance(20) { 3 + random.below(10) } else { 0 },
                // Longer than any lease where leased items are purged: otherwise an item could be put once more, and
                // leased, while somebody relies on the lease of the one that was purged.
                done_retention: seconds(if purges { 15 } else { [0, 3, 3, 15][random.index(4)] }),
            },
        }
    }
}

impl Options {
    /// What a seed decides.
    pub fn draw(random: &mut Random) -> Self {
        let mut options = Self::draw_the_rest(random);
        // Of a generator of their own, so that a run without keys or queues is what it was before there were any.
        options.keys = KeyOptions::draw(&mut Random::new(!random.clone().bits()));
        options.queues = QueueWork::draw(&mut Random::new(random.clone().bits().rotate_left(32)));
        options
    }

    fn draw_the_rest(random: &mut Random) -> Self {
        let some =
            |random: &mut Random, percent, most| if random.chance(percent) { random.below(most) } else { 0 };
        // After a power cut nobody is served for a while; with one in most runs there would be little else.
        let often = |fault| if fault == Fault::PowerCut { 10 } else { 60 };
        let faults = Fault::ALL.into_iter().filter(|fault| random.chance(often(*fault))).collect();
        Self {
            nodes: [1, 3, 3, 3, 3, 3, 3, 5, 5, 7][random.index(10)],
            daemons: 1 + random.index(3),
            clients: 2 + random.below(6) as u32,
            names: 1 + random.below(3),
            cell_clients: random.below(5) as u32,
            cells: 1 + random.below(2),
            keys: KeyOptions::default(),
            queues: QueueWork::default(),
            bootstrap: random.chance(80),
            faults_for: Duration::from_secs(10 + random.below(30)),
            fault_every: Duration::from_millis(500 + random.below(4_000)),
            faults,
            loss: some(random, 60, 10),
            late: some(random, 60, 20),
            // Up to two minutes: longer than any lease, any timeout, and the faults themselves.
            late_bits: 5 + random.below(13),
            hints_lost: if random.chance(20) { 100 } else { some(random, 50, 70) },
            stalls: Stalls { per_100_000: some(random, 50, 100), longest_ms: 1 + random.below(16_000) },
            // Most machines keep time; some runs are about those that do not.
            skew: Duration::from_millis(if random.chance(30) { 10_000 } else { 500 }),
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, daemons, clients, names, cell_clients, cells, keys, queues, .. } = self;
        write!(
            f,
            "{nodes} nodes, {daemons} daemons, {clients} clients of {names} locks, {cell_clients} of {cells} cells, bootstrap {}; {:?} of {:?}; \
             {} % of messages lost, {} % late by up to {:?}, {} % of hints lost, {:?}, wall clocks off by up to {:?}",
            self.bootstrap,
            self.faults_for,
            self.faults,
            self.loss,
            self.late,
            Duration::from_millis(1 << self.late_bits),
            self.hints_lost,
            self.stalls,
            self.skew
        )?;
        if keys.clients > 0 {
            write!(f, "; {keys:?}")?;
        }
        if queues.producers > 0 { write!(f, "; {queues:?}") } else { Ok(()) }
    }
}
