//! [`Judge`]: the trace of a run, and what must hold of it.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::cells::{self, CellHistory, Judged};
use super::invariants::progress::Progress;
use super::invariants::watches::Watches;
use super::invariants::{self, Event, Invariant, Leasable};
use super::item::QueueNotes;
use super::keys::{self, KeyHistory};
use super::queues;
use super::world::World;
use crate::queue::QueueOptions;

/// For the history of one cell, or of one key. The typical one takes a thousand.
pub const CELL_STEPS_MAX: u64 = 2_000_000;
const LOCKED: &str = "no holder of this lock panics";

/// Listens to everybody.
pub struct Judge {
    world: World,
    trace: Mutex<String>,
    violation: Mutex<Option<String>>,
    invariants: Mutex<Vec<Box<dyn Invariant>>>,
    progress: Mutex<Progress>,
    watches: Mutex<Watches>,
    queues: Mutex<QueueNotes>,
    grants: AtomicU64,
    /// What clients of cells noted.
    pub cells: Arc<Mutex<CellHistory>>,
    /// What clients of keys noted.
    pub keys: Mutex<KeyHistory>,
}

impl Judge {
    /// A judge of a world.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            trace: Mutex::default(),
            violation: Mutex::default(),
            invariants: Mutex::new(invariants::all()),
            progress: Mutex::default(),
            watches: Mutex::default(),
            queues: Mutex::default(),
            grants: AtomicU64::new(0),
            cells: Arc::default(),
            keys: Mutex::default(),
        }
    }

    /// One line of the trace.
    pub fn say(&self, words: fmt::Arguments<'_>) {
        let seconds = self.world.now().since(crate::runtime::Moment::ZERO).as_secs_f64();
        let mut trace = self.trace.lock().expect(LOCKED);
        writeln!(trace, "{seconds:10.4}  {words}").expect("a string takes all");
    }

    /// Something happened to a client.
    pub fn observe(&self, event: &Event) {
        if matches!(event, Event::Holds(grant) if matches!(grant.name, Leasable::Lock(_))) {
            self.grants.fetch_add(1, Ordering::Relaxed);
        }
        self.watches(|watches| watches.observe(event));
        let now = self.world.now();
        let mut invariants = self.invariants.lock().expect(LOCKED);
        for invariant in invariants.iter_mut() {
            if let Err(words) = invariant.observe(now, event) {
                self.violated(words);
            }
        }
    }

    /// Something is not as it must be.
    pub fn violated(&self, words: String) {
        self.say(format_args!("VIOLATION {words}"));
        self.violation.lock().expect(LOCKED).get_or_insert(words);
    }

    /// Judges a result.
    pub fn expect(&self, judged: Result<(), String>) {
        if let Err(words) = judged {
            self.violated(words);
        }
    }

    /// Whether something was not as it must be: the run need not go on.
    pub fn is_violated(&self) -> bool {
        self.violation.lock().expect(LOCKED).is_some()
    }

    /// What clients are about.
    pub fn progress<T>(&self, with: impl FnOnce(&mut Progress) -> T) -> T {
        with(&mut self.progress.lock().expect(LOCKED))
    }

    /// What watchers were told.
    pub fn watches<T>(&self, with: impl FnOnce(&mut Watches) -> T) -> T {
        with(&mut self.watches.lock().expect(LOCKED))
    }

    /// What clients of queues noted.
    pub fn queues<T>(&self, with: impl FnOnce(&mut QueueNotes) -> T) -> T {
        with(&mut self.queues.lock().expect(LOCKED))
    }

    /// Judges what clients of cells, of keys and of queues with these settings noted.
    pub fn judge_histories(&self, options: &QueueOptions) {
        self.judged("items", self.queues(|notes| queues::judge(notes, options)));
        self.judged("cells", cells::judge(&self.cells.lock().expect(LOCKED), CELL_STEPS_MAX));
        self.judged("keys", keys::judge(&self.keys.lock().expect(LOCKED), CELL_STEPS_MAX));
        self.expect(self.watches(|watches| watches.judge()));
    }

    fn judged(&self, of: &str, judged: Result<Judged, String>) {
        match judged {
            Ok(Judged { answered, not_applied, unknown, undecided, .. }) => self.say(format_args!(
                "{of}: {answered} calls answered, {not_applied} not applied, {unknown} unknown, undecided {undecided:?}"
            )),
            Err(words) => self.violated(words),
        }
    }

    /// What the run found.
    pub fn report(&self) -> Report {
        Report {
            violation: self.violation.lock().expect(LOCKED).clone(),
            trace: self.trace.lock().expect(LOCKED).clone(),
            grants: self.grants.load(Ordering::Relaxed),
            cells: self.cells.lock().expect(LOCKED).clone(),
            keys: self.keys.lock().expect(LOCKED).clone(),
            queues: self.queues(|notes| notes.clone()),
        }
    }
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The first thing that must not be; `None` for a clean run.
    pub violation: Option<String>,
    /// What happened, one event a line: seconds of the world's time, then words.
    pub trace: String,
    /// How often a client was told that it holds a lock.
    pub grants: u64,
    /// What clients of cells asked and were told.
    pub cells: CellHistory,
    /// What clients of keys asked and were told.
    pub keys: KeyHistory,
    /// What clients of queues asked and were told.
    pub queues: QueueNotes,
}
