//! The line is kept: in calm nobody is passed more than twice by those who came clearly later.
//!
//! Clearly later: tickets are the tokens of arrivals, and a daemon that has not heard of a lock for a while makes them by
//! its own wall clock until a round shows it others'. So what comes within the difference of two daemons' clocks, and two
//! seconds, may stand either way.
//! During faults an offer may age before its daemon comes, which costs that daemon its turn, so only those are judged
//! who came when it was calm.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Event, Invariant, Leasable};
use crate::ids::LockName;
use crate::runtime::Moment;

/// Who comes so much after somebody, and the difference of the clocks, comes later.
const CLEARLY: Duration = Duration::from_secs(2);
/// How often somebody may be passed.
const PASSED_MAX: u32 = 2;

/// The property.
#[derive(Default)]
pub struct LineIsKept {
    /// Since it is calm: who comes so much after somebody comes later.
    clearly: Option<Duration>,
    waiting: BTreeMap<(LockName, u32), Waiter>,
}

struct Waiter {
    since: Moment,
    passed: u32,
}

impl Invariant for LineIsKept {
    fn observe(&mut self, now: Moment, event: &Event) -> Result<(), String> {
        match event {
            Event::Calm { skew } => self.clearly = Some(*skew + CLEARLY),
            Event::Wants { client, name } if self.clearly.is_some() => {
                self.waiting.insert((name.clone(), *client), Waiter { since: now, passed: 0 });
            }
            Event::Leaves { client, name } => {
                self.waiting.remove(&(name.clone(), *client));
            }
            Event::Holds(grant) => {
                let Leasable::Lock(name) = &grant.name else { return Ok(()) };
                let Some(served) = self.waiting.remove(&(name.clone(), grant.client)) else {
                    return Ok(());
                };
                return self.pass(name, grant.client, served.since);
            }
            _ => {}
        }
        Ok(())
    }
}

impl LineIsKept {
    fn pass(&mut self, name: &LockName, by: u32, came: Moment) -> Result<(), String> {
        let Some(clearly) = self.clearly else { return Ok(()) };
        let earlier = self.waiting.iter_mut().filter(|((n, _), w)| n == name && w.since + clearly < came);
        for ((_, client), waiter) in earlier {
            waiter.passed += 1;
            if waiter.passed > PASSED_MAX {
                return Err(format!(
                    "client {client} has waited for {name} since {:?} and was passed {} times, the last time by client {by}, who came at {came:?}",
                    waiter.since, waiter.passed
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, grant, name};
    use super::*;

    #[test]
    fn one_who_is_passed_again_and_again_is_found() {
        let mut property = LineIsKept::default();
        property.observe(at(0), &Event::Calm { skew: Duration::ZERO }).unwrap();
        property.observe(at(1), &Event::Wants { client: 1, name: name() }).unwrap();
        let mut found = false;
        for turn in 0..u64::from(PASSED_MAX) + 1 {
            let came = 10 * (turn + 1);
            property.observe(at(came), &Event::Wants { client: 2, name: name() }).unwrap();
            found = property.observe(at(came + 1), &grant(2, turn + 1, came + 2)).is_err();
        }
        assert!(found);
    }
}
