//! [`Agreement`]: which value a set of answers shows, and whether it is committed. Pure.
//!
//! Committed without a write: q answers with one and the same ballot, none higher, those q not `copied` (a copied
//! record came by a merge: its node never took part in the round that agreed on it).

use crate::mutant::{self, Mutant};
use crate::node::operation::{Record, Shown};
use crate::quorum::ClusterSize;
use crate::token::Ballot;

/// What answers of one round, read or promised, show together.
#[derive(Debug)]
pub struct Agreement<'a, R> {
    /// The record with the highest ballot; `None` where there is no value in any.
    pub highest: Option<&'a R>,
    /// q answers have it, uncopied.
    pub committed: bool,
}

/// What of a record shows whether others hold the same.
pub trait Balloted {
    /// The ballot of the accepted value; [`Ballot::ZERO`] for a bare promise.
    fn ballot(&self) -> Ballot;

    /// The value came by a merge and not from a round.
    fn copied(&self) -> bool;
}

impl Balloted for Record {
    fn ballot(&self) -> Ballot {
        self.ballot
    }

    fn copied(&self) -> bool {
        self.copied
    }
}

impl Balloted for Shown {
    fn ballot(&self) -> Ballot {
        self.ballot
    }

    fn copied(&self) -> bool {
        self.copied
    }
}

/// Compares the records of the answers. A node that holds nothing counts as holding "absent".
pub fn agree<'a, R: Balloted>(
    records: impl Iterator<Item = Option<&'a R>> + Clone,
    size: ClusterSize,
) -> Agreement<'a, R> {
    let held = |record: &Option<&R>| record.map_or(Ballot::ZERO, Balloted::ballot);
    let ballot = records.clone().map(|record| held(&record)).max().unwrap_or(Ballot::ZERO);
    let same = records.clone().filter(|record| held(record) == ballot && !record.is_some_and(is_copied));
    let committed = same.count() >= size.quorum();
    if mutant::is_on(Mutant::NotTheHighest) {
        return Agreement { highest: records.flatten().find(|r| r.ballot() != Ballot::ZERO), committed };
    }
    let highest = records.flatten().find(|record| record.ballot() == ballot && ballot != Ballot::ZERO);
    Agreement { highest, committed }
}

fn is_copied(record: &impl Balloted) -> bool {
    record.copied() && !mutant::is_on(Mutant::CopiedCounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProposerId;
    use crate::token::Token;

    fn record(token: u64, copied: bool) -> Option<Record> {
        let ballot = Ballot { token: Token::new(token).unwrap(), proposer: ProposerId(1) };
        Some(Record {
            promise: ballot,
            ballot,
            value: "v".into(),
            vid: ballot,
            recent: vec![],
            ages: vec![],
            copied,
            listed: true,
            guard: std::time::Duration::ZERO,
            place: None,
        })
    }

    #[test]
    fn committed_is_what_q_uncopied_answers_hold_and_none_surpasses() {
        let size = ClusterSize::new(3).unwrap();
        let bare = Some(Record { ballot: Ballot::ZERO, ..record(9, false).unwrap() });
        // Records: highest ballot, committed?
        for (records, highest, committed) in [
            (vec![record(5, false), record(5, false)], 5, true),
            (vec![record(5, false), record(5, true)], 5, false),
            (vec![record(5, false), record(6, false)], 6, false),
            (vec![record(5, false), record(5, false), record(6, false)], 6, false),
            (vec![None, None], 0, true),
            (vec![None, bare.clone()], 0, true),
            (vec![None, record(5, false)], 5, false),
            (vec![record(5, false)], 5, false),
        ] {
            let agreement = agree(records.iter().map(Option::as_ref), size);
            assert_eq!(agreement.highest.map_or(0, |r| r.ballot.token.get()), highest, "{records:?}");
            assert_eq!(agreement.committed, committed, "{records:?}");
        }
    }
}
