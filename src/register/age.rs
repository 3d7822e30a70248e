//! [`Ages`]: when a stamp is aged (protocol, section 3). Pure.
//!
//! A stamp is aged by d when q members that hold it all say: longer than d, judged on the answers of the change's own
//! prepare. Of q answers one is from a clock that did not jump; that node took the stamp more than d ago.

use std::cell::Cell;
use std::time::Duration;

use crate::mutant::{self, Mutant};
use crate::node::operation::Stamp;
use crate::quorum::ClusterSize;

/// What the answers of one round say about stamps, and what a change asked about them.
#[derive(Debug)]
pub struct Ages {
    size: ClusterSize,
    /// One list per answer; none on the warm path, where nobody was asked.
    answers: Vec<Vec<(Stamp, Duration)>>,
    outstanding: usize,
    undecided: Cell<bool>,
}

impl Ages {
    /// Nobody was asked, so nothing is known to be aged. For the warm path, where by the daemon's own clock no stamp can
    /// be. "Not aged" is an answer that every change must be right with: slow or set-back nodes may give it at any time.
    pub fn unasked(size: ClusterSize) -> Self {
        Self::of(size, Vec::new(), 0)
    }

    /// The ages in the answers so far; so many nodes may still answer.
    pub fn of(size: ClusterSize, answers: Vec<Vec<(Stamp, Duration)>>, outstanding: usize) -> Self {
        Self { size, answers, outstanding, undecided: Cell::new(false) }
    }

    /// Whether q members have held the stamp for longer than `length`.
    pub fn is_aged(&self, stamp: Stamp, length: Duration) -> bool {
        let length = if mutant::is_on(Mutant::AgedEarly) { length / 2 } else { length };
        // `>`: a stamp held for exactly `length` is not aged yet.
        let longer =
            self.answers.iter().filter(|ages| age_in(ages, stamp).is_some_and(|age| age > length)).count();
        if longer >= self.size.quorum() || longer > 0 && mutant::is_on(Mutant::AgedByOne) {
            return true;
        }
        // Some say yes and some no: clocks differ, or the edge is just being crossed. Others may settle it.
        if longer > 0 && longer + self.outstanding >= self.size.quorum() {
            self.undecided.set(true);
        }
        false
    }

    /// How long is left of `length` by the answer that has held the stamp longest. For people and for pacing, never for
    /// a decision.
    pub fn remaining(&self, stamp: Stamp, length: Duration) -> Duration {
        let oldest = self.answers.iter().filter_map(|ages| age_in(ages, stamp)).max();
        length.saturating_sub(oldest.unwrap_or_default())
    }

    /// More answers might turn a "not aged" into "aged".
    pub fn is_undecided(&self) -> bool {
        self.undecided.get()
    }
}

fn age_in(ages: &[(Stamp, Duration)], stamp: Stamp) -> Option<Duration> {
    let is_it = |name| name == stamp || mutant::is_on(Mutant::AgedByAnyStamp);
    ages.iter().find(|(name, _)| is_it(*name)).map(|(_, age)| *age)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProposerId;
    use crate::token::{Ballot, Token};

    fn stamp(token: u64) -> Stamp {
        Stamp { ballot: Ballot { token: Token::new(token).unwrap(), proposer: ProposerId(1) }, ordinal: 0 }
    }

    #[test]
    fn aged_takes_a_quorum_that_holds_this_very_stamp_for_longer() {
        let size = ClusterSize::new(3).unwrap();
        let d = Duration::from_secs(10);
        let held = |seconds: u64| vec![(stamp(1), Duration::from_secs(seconds))];
        let other = || vec![(stamp(2), Duration::from_secs(99))];
        // Answers, nodes still out: aged? undecided?
        for (answers, outstanding, aged, undecided) in [
            (vec![held(11), held(11)], 1, true, false),
            (vec![held(10), held(11)], 0, false, false),
            (vec![held(10), held(11)], 1, false, true),
            (vec![held(0), held(11)], 1, false, true),
            (vec![held(0), held(11), held(11)], 0, true, false),
            (vec![held(3), held(3)], 1, false, false),
            (vec![other(), held(11)], 0, false, false),
            (vec![other(), other()], 1, false, false),
        ] {
            let ages = Ages::of(size, answers.clone(), outstanding);
            assert_eq!(ages.is_aged(stamp(1), d), aged, "{answers:?}");
            assert_eq!(ages.is_undecided(), undecided, "{answers:?}");
        }
    }

    #[test]
    fn where_nobody_was_asked_nothing_is_aged() {
        let ages = Ages::unasked(ClusterSize::new(3).unwrap());
        assert!(!ages.is_aged(stamp(1), Duration::ZERO));
        assert!(!ages.is_undecided());
    }
}
