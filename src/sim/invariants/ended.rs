//! A lease that was released or lost never comes back.

use std::collections::BTreeSet;

use super::{Event, Invariant, Leasable};
use crate::runtime::Moment;

/// The property.
#[derive(Default)]
pub struct StaysOver {
    over: BTreeSet<(Leasable, String)>,
}

impl Invariant for StaysOver {
    fn observe(&mut self, _now: Moment, event: &Event) -> Result<(), String> {
        match event {
            Event::Over { name, lease } => {
                self.over.insert((name.clone(), lease.expose()));
                Ok(())
            }
            Event::Holds(grant) if self.over.contains(&(grant.name.clone(), grant.lease.expose())) => {
                Err(format!(
                    "a lease on {} came back: client {} was told that it is over, and now that it holds it with token {}",
                    grant.name, grant.client, grant.token
                ))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, grant, name};
    use super::*;

    #[test]
    fn an_extension_after_the_end_is_found() {
        let mut property = StaysOver::default();
        property.observe(at(0), &grant(1, 5, 10)).unwrap();
        let lease = crate::ids::LeaseId::from_bytes([5; 16]);
        property.observe(at(1), &Event::Over { name: (&name()).into(), lease }).unwrap();
        property.observe(at(2), &grant(2, 6, 10)).unwrap();
        assert!(property.observe(at(3), &grant(1, 5, 13)).is_err());
    }
}
