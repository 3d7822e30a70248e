//! [`Running`]: until when leases are good that this daemon has given out or extended, by its own clock.
//!
//! Needed only while a recovery waits for the leases from before it to run out (protocol, section 2). What the nodes have
//! kept then does not tell whether a lease has been running all the while: the grant that came after it may be lost. But
//! nobody can have got the lock while the lease was still good by the clock of a daemon that had it agreed on.
//!
//! Lost with the daemon, and bounded: what is not known here was perhaps not running.

use std::collections::HashMap;
use std::sync::Mutex;

use super::Lease;
use crate::ids::LeaseId;
use crate::limits;
use crate::runtime::Moment;

const LOCKED: &str = "no holder of this lock panics";

/// See the module.
#[derive(Default)]
pub(super) struct Running {
    known: Mutex<Generations>,
}

/// The latest leases, and those before them. When the young are many, the old are dropped: a lease that is extended is young
/// again. Never iterated over, so the order does not matter.
#[derive(Default)]
struct Generations {
    young: HashMap<LeaseId, Moment>,
    old: HashMap<LeaseId, Moment>,
}

impl Running {
    /// The lease has begun, or begun again.
    pub fn note(&self, lease: &Lease) {
        let mut known = self.known.lock().expect(LOCKED);
        if known.young.len() >= limits::RUNNING_MAX / 2 && !known.young.contains_key(&lease.lease_id) {
            known.old = std::mem::take(&mut known.young);
        }
        known.young.insert(lease.lease_id, lease.valid_until);
    }

    /// Until when a lease is good, if this daemon knows.
    pub fn until(&self, lease_id: LeaseId) -> Option<Moment> {
        let known = self.known.lock().expect(LOCKED);
        known.young.get(&lease_id).or_else(|| known.old.get(&lease_id)).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::{LockName, Owner};
    use crate::token::Token;

    fn lease(number: usize, seconds: u64) -> Lease {
        Lease {
            name: LockName::parse("a").unwrap(),
            owner: Owner::parse("ann").unwrap(),
            lease_id: LeaseId::from_bytes((number as u128).to_be_bytes()),
            token: Token::ZERO,
            ttl: Duration::from_secs(1),
            valid_until: Moment::from_start(Duration::from_secs(seconds)),
        }
    }

    #[test]
    fn a_lease_is_known_by_its_latest_time_and_the_oldest_make_room() {
        let running = Running::default();
        let until =
            |number| running.until(lease(number, 0).lease_id).map(|at| at.since(Moment::ZERO).as_secs());
        running.note(&lease(0, 5));
        running.note(&lease(1, 6));
        running.note(&lease(0, 7));
        assert_eq!([until(0), until(1), until(2)], [Some(7), Some(6), None]);
        let half = limits::RUNNING_MAX / 2;
        (2..=half).for_each(|number| running.note(&lease(number, 8)));
        running.note(&lease(1, 9));
        assert_eq!([until(0), until(1), until(half)], [Some(7), Some(9), Some(8)]);
        (half + 1..2 * half).for_each(|number| running.note(&lease(number, 8)));
        assert_eq!([until(0), until(1), until(2 * half - 1)], [None, Some(9), Some(8)], "0 has made room");
    }
}
