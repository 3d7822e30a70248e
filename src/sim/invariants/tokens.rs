//! Fencing tokens strictly increase per lock, and per item, in the order of grants.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Grant, Invariant, Leasable};
use crate::runtime::Moment;
use crate::token::Token;

/// The property.
#[derive(Default)]
pub struct TokensGrow {
    highest: BTreeMap<Leasable, Grant>,
    forced: BTreeSet<(Leasable, Token)>,
}

impl Invariant for TokensGrow {
    fn observe(&mut self, now: Moment, event: &Event) -> Result<(), String> {
        match event {
            // What is told after its end may be told after later grants.
            Event::Holds(grant) if grant.until > now => self.holds(grant),
            Event::Forces { name, token } => {
                self.forced.insert((name.clone(), *token));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl TokensGrow {
    fn holds(&mut self, grant: &Grant) -> Result<(), String> {
        let highest = self.highest.get(&grant.name);
        if let Some(before) = highest {
            let forced = self.forced.contains(&(grant.name.clone(), grant.token));
            if before.token >= grant.token && !is_again(before, grant) && !forced {
                return Err(format!(
                    "the token of {} did not grow: client {} has {} after client {} had {}",
                    grant.name, grant.client, grant.token, before.client, before.token
                ));
            }
        }
        if highest.is_none_or(|before| before.token <= grant.token) {
            self.highest.insert(grant.name.clone(), grant.clone());
        }
        Ok(())
    }
}

/// A lease that goes on. That of a lock does so under another id for an owner that asks again.
fn is_again(before: &Grant, grant: &Grant) -> bool {
    let same_lease = match grant.name {
        Leasable::Lock(_) => true,
        Leasable::Item(..) => before.lease == grant.lease,
    };
    before.token == grant.token && before.client == grant.client && same_lease
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, grant, grant_of, item};
    use super::*;
    use crate::ids::LeaseId;

    #[test]
    fn a_token_that_comes_again_or_falls_is_found() {
        let mut property = TokensGrow::default();
        property.observe(at(0), &grant(1, 5, 10)).unwrap();
        property.observe(at(5), &grant(1, 5, 15)).expect("an extension keeps its token");
        property.observe(at(20), &grant(2, 6, 30)).unwrap();
        assert!(property.observe(at(40), &grant(3, 6, 50)).is_err(), "the same token");
        assert!(property.observe(at(40), &grant(1, 5, 50)).is_err(), "an older one");
        property.observe(at(40), &grant(1, 5, 40)).expect("told too late, relied on by nobody");
    }

    #[test]
    fn an_item_that_is_leased_anew_has_a_new_token() {
        let mut property = TokensGrow::default();
        property.observe(at(0), &grant_of(item(), 1, 5, 10)).unwrap();
        property.observe(at(5), &grant_of(item(), 1, 5, 15)).expect("an extension keeps its token");
        let Event::Holds(grant) = grant_of(item(), 1, 5, 30) else { unreachable!() };
        let anew = Event::Holds(Grant { lease: LeaseId::from_bytes([9; 16]), ..grant });
        assert!(property.observe(at(20), &anew).is_err(), "another lease of the same client");
        property.observe(at(20), &grant_of(item(), 1, 6, 30)).unwrap();
    }
}
