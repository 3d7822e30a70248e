//! [`Leases`]: what the leases of locks and of items share (protocol, sections 2 and 3): until when one is good, and
//! whether any may be granted or extended while a recovery waits for those from before it to run out.
//!
//! While it waits, what the nodes have kept does not tell whether a lease has been running all the while: the grant that
//! came after it may be lost. But nobody can have got the lock or the item while the lease was still good by the clock of a
//! daemon that had it agreed on. So until when leases are good that this daemon has given out or extended is remembered:
//! lost with the daemon, and bounded; what is not known here was perhaps not running.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::driver::Cluster;
use crate::ids::LeaseId;
use crate::limits;
use crate::mutant::{self, Mutant};
use crate::runtime::Moment;

/// Off each lease for clocks that run unevenly: 0.1 % fast here and 0.1 % slow there.
const DRIFT_PER_MILLE: u32 = 2;

const LOCKED: &str = "no holder of this lock panics";

/// Nothing may be granted yet: leases from before a recovery may still run, for so many milliseconds at the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovering {
    /// See the type.
    pub wait_ms: u64,
}

/// See the module.
pub struct Leases {
    cluster: Arc<Cluster>,
    known: Mutex<Generations>,
}

/// Until when leases are good that have not been given back: the latest, and those before them. When the young are many, the
/// old are dropped: a lease that is extended is young again. Iterated over for nothing but their number, so the order does not
/// matter.
#[derive(Default)]
struct Generations {
    young: HashMap<LeaseId, Known>,
    old: HashMap<LeaseId, Known>,
}

/// A lease.
#[derive(Clone, Copy)]
struct Known {
    until: Moment,
    /// See [`Leases::lost`].
    lost: bool,
}

impl Leases {
    /// The leases that one daemon gives out.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, known: Mutex::default() }
    }

    /// Until when a lease is good whose accept was first sent after this moment.
    pub fn valid_until(first_sent: Moment, ttl: Duration) -> Moment {
        let margin = if mutant::is_on(Mutant::NoDriftMargin) { 0 } else { DRIFT_PER_MILLE };
        first_sent + (ttl - ttl * margin / 1000)
    }

    /// The lease has begun, or begun again.
    pub fn note(&self, lease_id: LeaseId, valid_until: Moment) {
        self.known.lock().expect(LOCKED).note(lease_id, valid_until);
    }

    /// Until when a lease is good, if this daemon knows.
    pub fn until(&self, lease_id: LeaseId) -> Option<Moment> {
        self.known.lock().expect(LOCKED).until(lease_id)
    }

    /// The lease was given back, and is not known any more.
    pub fn ended(&self, lease_id: LeaseId) {
        self.known.lock().expect(LOCKED).ended(lease_id);
    }

    /// A client was told that it has lost the lease. It is not counted any more. Until when it is good stays known: the client may
    /// have named another lock or item than the one that the lease is of.
    pub fn lost(&self, lease_id: LeaseId) {
        self.known.lock().expect(LOCKED).lost(lease_id);
    }

    /// How many leases are good that this daemon gave out or extended, as far as it remembers and was told.
    pub fn live(&self) -> usize {
        let now = self.cluster.runtime.clock.now();
        self.known.lock().expect(LOCKED).live(now)
    }

    /// Whether leases may be granted under the list to go by. Asked before a grant is tried, and again before anybody is
    /// told of one: what was under way when a recovery came is sent again under its list, and may be agreed on only there.
    ///
    /// # Errors
    /// [`Recovering`].
    pub fn check_grants(&self) -> Result<(), Recovering> {
        match self.cluster.views.current() {
            Some(view) if !view.grants && !mutant::is_on(Mutant::GrantsWhileRecovering) => {
                Err(Recovering { wait_ms: view.list.ttl_max_ms })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a lease may be extended under the list to go by. While a recovery waits for the leases from before it to run
    /// out, only if this one has not; `until` is what was known when the extension was tried. Asked before it is tried, and
    /// again before anybody is told of it.
    ///
    /// # Errors
    /// [`Recovering`].
    pub fn check_extends(&self, until: Option<Moment>) -> Result<(), Recovering> {
        let runs = until.is_some_and(|until| self.cluster.runtime.clock.now() < until);
        match self.check_grants() {
            Err(_) if runs || mutant::is_on(Mutant::ExtendsWhileRecovering) => Ok(()),
            checked => checked,
        }
    }
}

impl Generations {
    fn note(&mut self, lease_id: LeaseId, valid_until: Moment) {
        if self.young.len() >= limits::RUNNING_MAX / 2 && !self.young.contains_key(&lease_id) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(lease_id, Known { until: valid_until, lost: false });
    }

    fn until(&self, lease_id: LeaseId) -> Option<Moment> {
        self.young.get(&lease_id).or_else(|| self.old.get(&lease_id)).map(|known| known.until)
    }

    fn ended(&mut self, lease_id: LeaseId) {
        for generation in [&mut self.young, &mut self.old] {
            generation.remove(&lease_id);
        }
    }

    fn lost(&mut self, lease_id: LeaseId) {
        for generation in [&mut self.young, &mut self.old] {
            if let Some(known) = generation.get_mut(&lease_id) {
                known.lost = true;
            }
        }
    }

    fn live(&self, now: Moment) -> usize {
        let is_live = |known: &&Known| !known.lost && now < known.until;
        let young = self.young.values().filter(is_live).count();
        // A lease that was extended is in both.
        let old =
            self.old.iter().filter(|(lease_id, known)| is_live(known) && !self.young.contains_key(*lease_id));
        young + old.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_known_by_its_latest_time_and_the_oldest_make_room() {
        let mut known = Generations::default();
        let id = |number: usize| LeaseId::from_bytes((number as u128).to_be_bytes());
        let at = |seconds: u64| Moment::from_start(Duration::from_secs(seconds));
        let until = |known: &Generations, numbers: [usize; 3]| {
            numbers.map(|number| known.until(id(number)).map(|at| at.since(Moment::ZERO).as_secs()))
        };
        known.note(id(0), at(5));
        known.note(id(1), at(6));
        known.note(id(0), at(7));
        assert_eq!(until(&known, [0, 1, 2]), [Some(7), Some(6), None]);
        let half = limits::RUNNING_MAX / 2;
        (2..=half).for_each(|number| known.note(id(number), at(8)));
        known.note(id(1), at(9));
        assert_eq!(until(&known, [0, 1, half]), [Some(7), Some(9), Some(8)]);
        assert_eq!(known.live(at(0)), half + 1, "each once, of either generation");
        known.ended(id(half));
        known.ended(id(2));
        assert_eq!((known.live(at(6)), until(&known, [half, 2, 1])), (half - 1, [None, None, Some(9)]));
        assert_eq!((known.live(at(8)), known.live(at(9))), (1, 0));
        known.lost(id(1));
        assert_eq!((known.live(at(8)), known.until(id(1))), (0, Some(at(9))), "it may be another's");
        known.note(id(1), at(9));
        assert_eq!(known.live(at(8)), 1, "it was extended");
        (half + 1..=2 * half).for_each(|number| known.note(id(number), at(8)));
        assert_eq!(until(&known, [0, 1, 2 * half]), [None, Some(9), Some(8)], "0 has made room");
    }
}
