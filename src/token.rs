//! [`Token`] (a hybrid logical clock, Kulkarni et al. 2014) and [`Ballot`] (CASPaxos): making, ordering, bounds. Pure.
//!
//! A token has 53 bits: 41 of milliseconds since 2024-01-01 and 12 of a counter, so that a Lua double and JavaScript
//! hold it exactly. It is never behind a token that the daemon has seen. Only liveness depends on its being near real
//! time: a node refuses ballots more than a day ahead of its own clock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::ProposerId;

/// Milliseconds from the Unix epoch to 2024-01-01T00:00:00Z, where tokens start.
pub const EPOCH_UNIX_MS: u64 = 1_704_067_200_000;
const COUNTER_BITS: u32 = 12;

/// An ordered number below 2^53. Zero comes before every token that is ever made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Token(u64);

impl Token {
    /// Before every token that is made.
    pub const ZERO: Token = Token(0);
    /// The largest token: 2^53 − 1.
    pub const MAX: Token = Token((1 << 53) - 1);

    /// Checks the bound. `None` above [`Token::MAX`].
    pub fn new(value: u64) -> Option<Self> {
        (value <= Self::MAX.0).then_some(Self(value))
    }

    /// The first token of a millisecond of wall-clock time (Unix). Times before 2024 give the first of all.
    pub fn at_unix_ms(unix_ms: u64) -> Self {
        let ms = unix_ms.saturating_sub(EPOCH_UNIX_MS);
        Self((ms << COUNTER_BITS).clamp(1, Self::MAX.0))
    }

    /// So many tokens later, at most [`Token::MAX`].
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count).min(Self::MAX.0))
    }

    /// How much later it is than another one, by wall clocks; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis((self.0 >> COUNTER_BITS).saturating_sub(earlier.0 >> COUNTER_BITS))
    }

    /// The number itself.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// `(token, proposer)`, compared field by field. One ballot carries at most one value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Compared first.
    pub token: Token,
    /// Breaks ties between daemons.
    pub proposer: ProposerId,
}

impl Ballot {
    /// Before every ballot; also the vid of "absent".
    pub const ZERO: Ballot = Ballot { token: Token::ZERO, proposer: ProposerId(0) };
    /// Length of [`Ballot::to_bytes`].
    pub const BYTES: usize = 16;

    /// Token and proposer as big-endian numbers, so that bytes order like ballots.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.token.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.proposer.0.to_be_bytes());
        bytes
    }

    /// Reads what [`Ballot::to_bytes`] wrote. `None` for a wrong length or a token out of range.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (token, proposer) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            token: Token::new(u64::from_be_bytes(*token))?,
            proposer: ProposerId(u64::from_be_bytes(proposer.try_into().ok()?)),
        })
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.token, self.proposer)
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Makes tokens that are above all that this daemon has made or seen.
#[derive(Debug, Default)]
pub struct TokenClock {
    last: AtomicU64,
}

impl TokenClock {
    /// A token above all made or seen so far and, where that allows, at wall-clock time.
    pub fn next(&self, wall_unix_ms: u64) -> Token {
        let floor = Token::at_unix_ms(wall_unix_ms).0;
        let advance = |last: u64| (last + 1).max(floor).min(Token::MAX.0);
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(advance(last)))
            .expect("the update never declines");
        Token(advance(last))
    }

    /// Takes note of a token from elsewhere.
    pub fn observe(&self, token: Token) {
        self.last.fetch_max(token.0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_grow_past_what_was_seen_even_when_the_clock_goes_back() {
        let clock = TokenClock::default();
        let first = clock.next(EPOCH_UNIX_MS + 1_000);
        assert_eq!(first.get(), 1_000 << 12);
        assert_eq!(clock.next(EPOCH_UNIX_MS).get(), first.get() + 1);
        clock.observe(Token(first.get() + 100));
        assert_eq!(clock.next(EPOCH_UNIX_MS).get(), first.get() + 101);
    }

    #[test]
    fn a_token_stays_below_two_to_the_53() {
        assert_eq!(Token::new(1 << 53), None);
        assert_eq!(Token::at_unix_ms(u64::MAX), Token::MAX);
        assert_ne!(Token::at_unix_ms(0), Token::ZERO);
    }

    #[test]
    fn ballots_order_by_token_then_proposer_and_so_do_their_bytes() {
        let ballot = |token, proposer| Ballot { token: Token(token), proposer: ProposerId(proposer) };
        let ordered = [Ballot::ZERO, ballot(1, 9), ballot(2, 1), ballot(2, 2), ballot(256, 0)];
        for pair in ordered.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].to_bytes() < pair[1].to_bytes());
        }
        for ballot in ordered {
            assert_eq!(Ballot::from_bytes(&ballot.to_bytes()), Some(ballot));
        }
        assert_eq!(Ballot::from_bytes(&[0; 15]), None);
        assert_eq!(Ballot::from_bytes(&[0xff; 16]), None);
    }
}
