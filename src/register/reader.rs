//! [`Agreement`]: which value a set of answers shows, and whether it is committed. Pure.
//!
//! Committed without a write: q answers with one and the same ballot, none higher, those q not `copied` (a copied
//! record came by a merge: its node never took part in the round that agreed on it).

use crate::mutant::{self, Mutant};
use crate::node::operation::Record;
use crate::quorum::ClusterSize;
use crate::token::Ballot;

/// What answers of one round, read or promised, show together.
#[derive(Debug)]
pub struct Agreement<'a> {
    /// The record with the highest ballot; `None` where there is no value in any.
    pub highest: Option<&'a Record>,
    /// q answers have it, uncopied.
    pub committed: bool,
}

/// Compares the records of the answers. A node that holds nothing counts as holding "absent".
pub fn agree<'a>(
    records: impl Iterator<Item = Option<&'a Record>> + Clone,
    size: ClusterSize,
) -> Agreement<'a> {
    let held = |record: &Option<&Record>| record.map_or(Ballot::ZERO, |record| record.ballot);
    let ballot = records.clone().map(|record| held(&record)).max().unwrap_or(Ballot::ZERO);
    let same = records.clone().filter(|record| held(record) == ballot && !record.is_some_and(is_copied));
    let committed = same.count() >= size.quorum();
    if mutant::is_on(Mutant::NotTheHighest) {
        return Agreement { highest: records.flatten().find(|r| r.ballot != Ballot::ZERO), committed };
    }
    let highest = records.flatten().find(|record| record.ballot == ballot && ballot != Ballot::ZERO);
    Agreement { highest, committed }
}

fn is_copied(record: &Record) -> bool {
    record.copied && !mutant::is_on(Mutant::CopiedCounts)
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
