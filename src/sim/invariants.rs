//! What must hold of every run, judged on what clients were told.

use std::collections::BTreeMap;

use crate::ids::LockName;
use crate::runtime::Moment;
use crate::token::Token;

/// A lease as its client knows it.
#[derive(Clone, Debug)]
struct Held {
    client: u32,
    token: Token,
    /// Until when the client relies on it: its validity's end, or when it began to release.
    until: Moment,
}

/// Every lease that was told to a client, by name.
#[derive(Debug, Default)]
pub struct Leases {
    names: BTreeMap<LockName, Vec<Held>>,
}

impl Leases {
    /// A client was told at `now` that it holds the lock until `until`. An error describes what it contradicts.
    ///
    /// # Errors
    /// Two holders at one moment, or a token that does not grow.
    pub fn granted(
        &mut self,
        name: &LockName,
        client: u32,
        token: Token,
        now: Moment,
        until: Moment,
    ) -> Result<(), String> {
        if until <= now {
            // Told too late to be of use: nobody relies on it.
            return Ok(());
        }
        let held = self.names.entry(name.clone()).or_default();
        for other in held.iter() {
            if other.client != client && other.until > now {
                return Err(format!(
                    "two holders of {name} at {now:?}: client {client} with token {token} until {until:?}, and {other:?}"
                ));
            }
            let same_lease = other.client == client && other.token == token;
            if other.token >= token && !same_lease {
                return Err(format!(
                    "the token of {name} did not grow: {token} for client {client} after {other:?}"
                ));
            }
        }
        match held.iter_mut().find(|held| held.client == client && held.token == token) {
            Some(known) => known.until = known.until.max(until),
            None => held.push(Held { client, token, until }),
        }
        Ok(())
    }

    /// The client stops relying on its lease.
    pub fn let_go(&mut self, name: &LockName, client: u32, token: Token, now: Moment) {
        let held = self.names.entry(name.clone()).or_default();
        for held in held.iter_mut().filter(|held| held.client == client && held.token == token) {
            held.until = held.until.min(now);
        }
    }

    /// How many grants there were.
    pub fn grants(&self) -> usize {
        self.names.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn overlaps_and_tokens_that_do_not_grow_are_found() {
        let name = LockName::parse("x").unwrap();
        let token = |value| Token::new(value).unwrap();
        let mut leases = Leases::default();
        leases.granted(&name, 1, token(5), at(0), at(10)).unwrap();
        leases.granted(&name, 1, token(5), at(3), at(13)).unwrap();
        assert!(leases.granted(&name, 2, token(6), at(12), at(20)).is_err(), "overlap");
        leases.let_go(&name, 1, token(5), at(12));
        leases.granted(&name, 2, token(6), at(12), at(20)).unwrap();
        assert!(leases.granted(&name, 3, token(6), at(30), at(40)).is_err(), "the same token again");
        leases.granted(&name, 3, token(4), at(30), at(29)).unwrap();
    }
}
