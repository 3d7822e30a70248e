//! [`Idle`]: registers whose value seems to say nothing, for upkeep to forget. A hint; what is lost here is found by
//! comparison.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::limits;
use crate::node::operation::RegisterKey;
use crate::runtime::Moment;

const LOCKED: &str = "no holder of this lock panics";

/// See the module.
#[derive(Default)]
pub struct Idle {
    since: Mutex<BTreeMap<RegisterKey, Moment>>,
}

impl Idle {
    /// The register was just found, or left, with nothing to say.
    pub fn add(&self, key: &RegisterKey, now: Moment) {
        let mut since = self.since.lock().expect(LOCKED);
        if since.len() < limits::IDLE_MAX || since.contains_key(key) {
            since.insert(key.clone(), now);
        }
    }

    /// Takes up to so many that have been left alone for so long.
    pub fn take(&self, now: Moment, length: Duration, most: usize) -> Vec<RegisterKey> {
        let mut since = self.since.lock().expect(LOCKED);
        let ripe = since.iter().filter(|(_, at)| now.since(**at) >= length).take(most);
        let keys: Vec<RegisterKey> = ripe.map(|(key, _)| key.clone()).collect();
        for key in &keys {
            since.remove(key);
        }
        keys
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.since.lock().expect(LOCKED).len()
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
        let (a, b) = (RegisterKey::new('l', "a"), RegisterKey::new('l', "b"));
        idle.add(&a, at(0));
        idle.add(&b, at(0));
        idle.add(&b, at(4));
        let length = Duration::from_secs(5);
        assert_eq!(idle.take(at(4), length, 10), []);
        assert_eq!(idle.take(at(5), length, 10), [a]);
        assert_eq!(idle.take(at(9), length, 10), [b]);
        assert!(idle.is_empty());
    }
}
