//! No two leases inside their validity on one lock, or on one item.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Grant, Invariant, Leasable};
use crate::runtime::Moment;
use crate::token::Token;

/// The property.
#[derive(Default)]
pub struct Exclusion {
    held: BTreeMap<Leasable, Vec<Grant>>,
    /// Operators end leases that their holders rely on; that is what the word "force" says.
    forced: BTreeSet<(Leasable, Token)>,
}

impl Invariant for Exclusion {
    fn observe(&mut self, now: Moment, event: &Event) -> Result<(), String> {
        match event {
            Event::Holds(grant) => self.holds(now, grant),
            Event::LetsGo { client, name, token } => {
                if let Some(held) = self.held.get_mut(name) {
                    held.retain(|held| held.client != *client || held.token != *token);
                }
                Ok(())
            }
            Event::Forces { name, token } => {
                self.forced.insert((name.clone(), *token));
                Ok(())
            }
            Event::Wants { .. }
            | Event::Leaves { .. }
            | Event::Over { .. }
            | Event::Calm { .. }
            | Event::Versioned { .. } => Ok(()),
        }
    }
}

impl Exclusion {
    fn holds(&mut self, now: Moment, grant: &Grant) -> Result<(), String> {
        // Told too late to be of use: nobody relies on it.
        if grant.until <= now {
            return Ok(());
        }
        let held = self.held.entry(grant.name.clone()).or_default();
        held.retain(|held| held.until > now);
        let is_forced = |token| self.forced.contains(&(grant.name.clone(), token));
        // An owner may have its lock again; nobody has an item twice.
        let is_other = |held: &&Grant| match grant.name {
            Leasable::Lock(_) => held.client != grant.client,
            Leasable::Item(..) => held.token != grant.token,
        };
        let other = held.iter().filter(is_other).find(|held| !is_forced(held.token));
        if let Some(other) = other.filter(|_| !is_forced(grant.token)) {
            return Err(format!(
                "two holders of {}: client {} has token {} until {:?}, and client {} has token {} until {:?}",
                grant.name, other.client, other.token, other.until, grant.client, grant.token, grant.until
            ));
        }
        held.retain(|held| held.client != grant.client || held.token != grant.token);
        held.push(grant.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, grant, grant_of, item, lets_go, name};
    use super::*;

    #[test]
    fn an_overlap_is_found_and_a_lease_that_was_let_go_is_none() {
        let mut property = Exclusion::default();
        property.observe(at(0), &grant(1, 5, 10)).unwrap();
        property.observe(at(3), &grant(1, 5, 13)).unwrap();
        assert!(property.observe(at(12), &grant(2, 6, 20)).is_err(), "overlap");
        property.observe(at(12), &lets_go(1, 5)).unwrap();
        property.observe(at(12), &grant(2, 6, 20)).unwrap();
        property.observe(at(13), &grant(3, 7, 13)).expect("told too late, relied on by nobody");
        property.observe(at(20), &grant(3, 8, 30)).expect("the one before has run out");
    }

    #[test]
    fn an_operators_force_ends_a_lease_that_is_relied_on() {
        let mut property = Exclusion::default();
        property.observe(at(0), &grant(1, 5, 10)).unwrap();
        property
            .observe(at(1), &Event::Forces { name: (&name()).into(), token: Token::new(5).unwrap() })
            .unwrap();
        property.observe(at(2), &grant(2, 6, 20)).unwrap();
        assert!(property.observe(at(3), &grant(3, 7, 20)).is_err(), "only that one");
    }

    #[test]
    fn nobody_has_an_item_twice() {
        let mut property = Exclusion::default();
        property.observe(at(0), &grant_of(item(), 1, 5, 10)).unwrap();
        property.observe(at(3), &grant_of(item(), 1, 5, 13)).expect("an extension");
        assert!(property.observe(at(12), &grant_of(item(), 1, 6, 20)).is_err(), "overlap");
        property.observe(at(13), &grant_of(item(), 1, 6, 20)).expect("the one before has run out");
    }
}
