//! [`Idle`]: registers whose value seems to say nothing, for upkeep to forget. A hint; what is lost here is found by
//! comparison.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use crate::limits;
use crate::node::operation::RegisterKey;
use crate::runtime::Moment;

const LOCKED: &str = "no holder of this lock panics";

/// See the module.
#[derive(Default)]
pub struct Idle {
    known: Mutex<Known>,
}

/// The same registers twice: by name, and by time.
#[derive(Default)]
struct Known {
    /// Never iterated over, so its order does not matter.
    since: HashMap<RegisterKey, Moment>,
    order: BTreeSet<(Moment, RegisterKey)>,
}

impl Idle {
    /// The register was just found, or left, with nothing to say; or with what is to be kept until then.
    pub fn add(&self, key: &RegisterKey, since: Moment) {
        let mut known = self.known.lock().expect(LOCKED);
        let is_known = match known.since.get(key).copied() {
            Some(before) => known.order.remove(&(before, key.clone())),
            None => false,
        };
        if is_known || known.since.len() < limits::IDLE_MAX {
            known.since.insert(key.clone(), since);
            known.order.insert((since, key.clone()));
        }
    }

    /// The register was found with nothing to say. Where that was known, the time since which it is stays.
    pub fn found(&self, key: &RegisterKey, since: Moment) {
        let is_known = self.known.lock().expect(LOCKED).since.contains_key(key);
        if !is_known {
            self.add(key, since);
        }
    }

    /// Takes up to so many that have been left alone for so long.
    pub fn take(&self, now: Moment, length: Duration, most: usize) -> Vec<RegisterKey> {
        let mut known = self.known.lock().expect(LOCKED);
        let mut keys = Vec::new();
        while keys.len() < most && known.order.first().is_some_and(|(since, _)| *since + length <= now) {
            let Some((_, key)) = known.order.pop_first() else { break };
            known.since.remove(&key);
            keys.push(key);
        }
        keys
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.lock().expect(LOCKED).since.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_again_waits_again() {
        let (idle, at) = (Idle::default(), |seconds| Moment::from_start(Duration::from_secs(seconds)));
        let (a, b, c) = (RegisterKey::new('l', "a"), RegisterKey::new('l', "b"), RegisterKey::new('l', "c"));
        idle.add(&a, at(0));
        idle.add(&b, at(0));
        idle.add(&b, at(4));
        // To be kept for a while.
        idle.add(&c, at(60));
        let length = Duration::from_secs(5);
        assert_eq!(idle.take(at(4), length, 10), []);
        assert_eq!(idle.take(at(5), length, 10), [a]);
        assert_eq!(idle.take(at(64), length, 10), [b]);
        assert_eq!(idle.take(at(65), length, 10), [c]);
        assert!(idle.is_empty());
    }

    #[test]
    fn what_is_found_again_and_again_does_not_wait_again() {
        let (idle, at) = (Idle::default(), |seconds| Moment::from_start(Duration::from_secs(seconds)));
        let (a, b) = (RegisterKey::new('l', "a"), RegisterKey::new('l', "b"));
        idle.add(&a, at(1));
        for seconds in 2..5 {
            idle.found(&a, at(seconds));
            idle.found(&b, at(seconds));
        }
        assert_eq!(idle.take(at(6), Duration::from_secs(5), 10), [a]);
        assert_eq!(idle.take(at(7), Duration::from_secs(5), 10), [b]);
    }

    #[test]
    fn the_longest_alone_are_taken_first() {
        let (idle, at) = (Idle::default(), |seconds| Moment::from_start(Duration::from_secs(seconds)));
        let key = |number: u64| RegisterKey::new('l', &number.to_string());
        (0..5).for_each(|number| idle.add(&key(number), at(10 - number)));
        assert_eq!(idle.take(at(100), Duration::ZERO, 2), [key(4), key(3)]);
        assert_eq!(idle.take(at(9), Duration::ZERO, 9), [key(2), key(1)]);
        assert_eq!(idle.len(), 1);
    }
}
