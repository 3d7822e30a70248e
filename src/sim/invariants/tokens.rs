//! Fencing tokens strictly increase per name, in the order of grants.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Grant, Invariant};
use crate::ids::LockName;
use crate::runtime::Moment;
use crate::token::Token;

/// The property.
#[derive(Default)]
pub struct TokensGrow {
    highest: BTreeMap<LockName, (Token, u32)>,
    forced: BTreeSet<(LockName, Token)>,
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
        let highest = self.highest.get(&grant.name).copied();
        if let Some((token, client)) = highest {
            let again = token == grant.token && client == grant.client;
            if token >= grant.token && !again && !self.forced.contains(&(grant.name.clone(), grant.token)) {
                return Err(format!(
                    "the token of {} did not grow: client {} has {} after client {client} had {token}",
                    grant.name, grant.client, grant.token
                ));
            }
        }
        let highest = highest.filter(|(token, _)| *token > grant.token);
        self.highest.insert(grant.name.clone(), highest.unwrap_or((grant.token, grant.client)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, grant};
    use super::*;

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
}
