//! What answers about the member list amount to, and what may become of the list. Pure.
//!
//! The list counts by itself: of all answers the value with the highest ballot says whose answers count. That is sound
//! because N and q never change and only one entry changes at a time: q that count by one list meet q that count by the
//! next.

use crate::ids::{MemoryId, NodeIndex};
use crate::mutant::{self, Mutant};
use crate::node::operation::{Record, Stamp};
use crate::quorum::ClusterSize;
use crate::token::Ballot;

use super::{Entry, Loss, MemberList, State};

/// One node's answer about the list.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Who answered.
    pub node: NodeIndex,
    /// Out of which memory.
    pub memory: Option<MemoryId>,
    /// What it holds.
    pub record: Option<Record>,
}

impl Answered {
    fn ballot(&self) -> Ballot {
        self.record.as_ref().map_or(Ballot::ZERO, |record| record.ballot)
    }
}

/// What answers about the list amount to.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// No list anywhere among the answers.
    Absent {
        /// All N answered, none has a memory: this is a new cluster.
        new_cluster: bool,
    },
    /// q answers that count have one and the same ballot, and none is higher.
    Committed {
        /// The record that they hold.
        record: Record,
        /// The list in it.
        list: MemberList,
        /// Who answered with something older.
        behind: Vec<NodeIndex>,
        /// q members that hold the recovery's stamp all say that it has aged by the longest TTL, or there is none.
        recovered: bool,
    },
    /// A list is there that may or may not be agreed on; q answers count by it, so it can be finished.
    Unfinished {
        /// The highest record.
        record: Record,
        /// The list in it.
        list: MemberList,
    },
    /// Fewer than q answers count by the highest list.
    TooFew {
        /// The highest record.
        record: Record,
        /// The list in it.
        list: MemberList,
        /// How many count.
        counted: usize,
        /// A founding that was never confirmed, and all N answered: it may be started over.
        founding_stuck: bool,
    },
    /// The highest list can't be read.
    Unreadable(String),
}

impl Judgement {
    /// What a founding may be built on: nothing at all, in a new cluster, or a founding that nobody has confirmed. `None`
    /// for everything else. A recovery is marked as a founding is, and is none: its nodes hold what is to be kept.
    pub fn founding_base(self) -> Option<Option<(MemberList, Record)>> {
        match self {
            Judgement::Absent { new_cluster: true } => Some(None),
            Judgement::TooFew { record, list, .. }
            | Judgement::Unfinished { record, list }
            | Judgement::Committed { record, list, .. }
                if list.founding && !list.is_recovering() =>
            {
                Some(Some((list, record)))
            }
            _ => None,
        }
    }
}

/// Judges the answers of one round of reads or promises.
pub fn judge(answers: &[Answered], size: ClusterSize) -> Judgement {
    let highest = answers.iter().max_by_key(|answer| answer.ballot()).filter(|a| a.ballot() != Ballot::ZERO);
    let all = answers.len() >= founding_size(size);
    let Some(record) = highest.and_then(|answer| answer.record.clone()) else {
        return Judgement::Absent {
            new_cluster: all && answers.iter().all(|answer| answer.memory.is_none()),
        };
    };
    let list = match MemberList::decode(&record.value) {
        Ok(list) if list.entries.len() == size.nodes() => list,
        Ok(list) => return Judgement::Unreadable(format!("it has {} nodes", list.entries.len())),
        Err(error) => return Judgement::Unreadable(error),
    };
    let counting: Vec<_> = answers.iter().filter(|a| list.counts(a.node, a.memory)).collect();
    if counting.len() < size.quorum() {
        let founding_stuck = all && list.founding && !list.is_recovering();
        return Judgement::TooFew { counted: counting.len(), founding_stuck, record, list };
    }
    let agreed = counting
        .iter()
        .filter(|a| a.ballot() == record.ballot && a.record.as_ref().is_some_and(|record| !record.copied));
    if agreed.count() < size.quorum() && !mutant::is_on(Mutant::ListUncommitted) {
        return Judgement::Unfinished { record, list };
    }
    let behind = answers.iter().filter(|a| a.ballot() < record.ballot).map(|a| a.node).collect();
    let recovered = list.recovery.is_none_or(|stamp| {
        let aged = counting.iter().filter(|a| age_of(a, stamp).is_some_and(|age| age > list.ttl_max()));
        aged.count() >= size.quorum()
    });
    Judgement::Committed { record, list, behind, recovered }
}

/// How many nodes a founding takes: all, for one that is left out might hold the list of a cluster that there is.
pub fn founding_size(size: ClusterSize) -> usize {
    if mutant::is_on(Mutant::FoundsWithQuorum) { size.quorum() } else { size.nodes() }
}

fn age_of(answer: &Answered, stamp: Stamp) -> Option<std::time::Duration> {
    let record = answer.record.as_ref()?;
    record.ages.iter().find(|(name, _)| *name == stamp).map(|(_, age)| *age)
}

/// What a daemon wants of the list. Each applies only to what it was meant for, so a repeat is harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// The founding is confirmed: q members have their memory.
    ConfirmFounding,
    /// A member answered without its listed memory, or a join is started over, or a node that was out is back.
    Rejoin {
        /// Which node.
        node: NodeIndex,
        /// What the list says of it.
        was: Entry,
        /// The memory that it will get.
        fresh: MemoryId,
    },
    /// The copy to a joining node is complete.
    Promote {
        /// Which node.
        node: NodeIndex,
        /// The memory whose `end_join` succeeded.
        memory: MemoryId,
    },
    /// Nobody has reached a node for long.
    PutOut {
        /// Which node.
        node: NodeIndex,
        /// What the list says of it.
        was: Entry,
        /// q.
        quorum: usize,
    },
    /// What was kept has been merged, and q nodes have it all.
    ConfirmRecovery {
        /// The entries of that very recovery.
        entries: Vec<Entry>,
    },
    /// A daemon may grant longer leases than the list knows of.
    RaiseTtl {
        /// The longest, in milliseconds.
        ttl_max_ms: u64,
    },
}

impl std::fmt::Display for MemberChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MemberChange::ConfirmFounding => f.write_str("the founding is confirmed"),
            MemberChange::Rejoin { node, .. } => write!(f, "node {node} is to join again"),
            MemberChange::Promote { node, .. } => write!(f, "node {node} is a member"),
            MemberChange::PutOut { node, .. } => write!(f, "node {node} is out"),
            MemberChange::ConfirmRecovery { .. } => f.write_str("the recovery is confirmed"),
            MemberChange::RaiseTtl { ttl_max_ms } => write!(f, "the longest TTL is {ttl_max_ms} ms"),
        }
    }
}

impl MemberChange {
    /// The new list; `None` where there is nothing to do (any more).
    pub fn apply(&self, old: &MemberList) -> Option<MemberList> {
        let mut list = old.clone();
        match self {
            MemberChange::ConfirmFounding if list.is_recovering() => return None,
            MemberChange::ConfirmFounding => list.founding = false,
            MemberChange::Rejoin { node, was, fresh } => {
                let entry = list.entries.get_mut(usize::from(node.0))?;
                if entry == was {
                    *entry = Entry { state: State::Joining, memory: *fresh };
                }
            }
            MemberChange::Promote { node, memory } => {
                let entry = list.entries.get_mut(usize::from(node.0))?;
                if *entry == (Entry { state: State::Joining, memory: *memory }) {
                    entry.state = State::Member;
                }
            }
            MemberChange::PutOut { node, was, quorum } => {
                let others =
                    list.entries.iter().enumerate().filter(|(index, entry)| {
                        *index != usize::from(node.0) && entry.state == State::Member
                    });
                let enough = others.count() >= *quorum || mutant::is_on(Mutant::OutBelowQuorum);
                let entry = list.entries.get_mut(usize::from(node.0))?;
                if entry == was && enough {
                    entry.state = State::Out;
                }
            }
            MemberChange::ConfirmRecovery { entries } => {
                if list.is_recovering() && list.entries == *entries {
                    list.founding = false;
                    list.before = Vec::new();
                }
            }
            MemberChange::RaiseTtl { ttl_max_ms } => list.ttl_max_ms = list.ttl_max_ms.max(*ttl_max_ms),
        }
        (list != *old).then_some(list)
    }
}

/// The first list of a new cluster, or of a founding that is started over: whoever has a memory of the stuck founding
/// keeps it, the others are to get a fresh one.
pub fn founding_list(
    fresh: Vec<MemoryId>,
    kept: Option<(&MemberList, &[Answered])>,
    ttl_max_ms: u64,
    recovery: Option<Stamp>,
) -> MemberList {
    let memory_of = |index: usize, fresh: MemoryId| {
        let (list, answers) = kept?;
        let answer = answers.iter().find(|answer| usize::from(answer.node.0) == index)?;
        list.counts(answer.node, answer.memory).then_some(answer.memory).flatten().or(Some(fresh))
    };
    let entries = fresh
        .into_iter()
        .enumerate()
        .map(|(index, fresh)| Entry {
            state: State::Member,
            memory: memory_of(index, fresh).unwrap_or(fresh),
        })
        .collect();
    MemberList { entries, founding: true, ttl_max_ms, recovery, loss: Loss::None, before: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProposerId;
    use crate::token::Token;
    use std::time::Duration;

    fn ballot(token: u64) -> Ballot {
        Ballot { token: Token::new(token).unwrap(), proposer: ProposerId(1) }
    }

    fn list() -> MemberList {
        let entries = (1..=3).map(|id| Entry { state: State::Member, memory: MemoryId(id) }).collect();
        MemberList {
            entries,
            founding: false,
            ttl_max_ms: 1000,
            recovery: None,
            loss: Loss::None,
            before: Vec::new(),
        }
    }

    fn record(token: u64, list: &MemberList) -> Record {
        Record {
            promise: ballot(token),
            ballot: ballot(token),
            value: list.encode().into(),
            vid: ballot(token),
            recent: vec![],
            ages: list.recovery.map(|stamp| (stamp, Duration::from_millis(1500))).into_iter().collect(),
            copied: false,
            listed: true,
            guard: Duration::ZERO,
            place: None,
        }
    }

    fn answered(node: u8, memory: u64, record: Option<Record>) -> Answered {
        Answered { node: NodeIndex(node), memory: (memory != 0).then_some(MemoryId(memory)), record }
    }

    fn three() -> ClusterSize {
        ClusterSize::new(3).unwrap()
    }

    #[test]
    fn only_listed_memories_count() {
        let held = || Some(record(5, &list()));
        // Memories of the three nodes, and whether the list is seen as committed.
        for (memories, committed) in
            [([1, 2, 3], true), ([1, 2, 0], true), ([1, 0, 0], false), ([1, 9, 0], false), ([0, 0, 0], false)]
        {
            let answers: Vec<_> = (0..3).map(|i| answered(i, memories[usize::from(i)], held())).collect();
            let judged = judge(&answers, three());
            assert_eq!(matches!(judged, Judgement::Committed { .. }), committed, "{memories:?}: {judged:?}");
        }
    }

    #[test]
    fn a_newer_list_on_one_node_is_finished_before_anybody_goes_by_it() {
        let was = list().entries[2];
        let newer =
            MemberChange::Rejoin { node: NodeIndex(2), was, fresh: MemoryId(7) }.apply(&list()).unwrap();
        let answers = [answered(0, 1, Some(record(6, &newer))), answered(1, 2, Some(record(5, &list())))];
        assert!(matches!(judge(&answers, three()), Judgement::Unfinished { list, .. } if list == newer));
        let answers = [answered(0, 1, Some(record(6, &newer))), answered(2, 3, Some(record(5, &list())))];
        let judged = judge(&answers, three());
        assert!(
            matches!(judged, Judgement::TooFew { counted: 1, .. }),
            "the joining one does not count: {judged:?}"
        );
    }

    #[test]
    fn a_copied_list_proves_nothing() {
        let copied = Record { copied: true, ..record(5, &list()) };
        let answers = [answered(0, 1, Some(copied)), answered(1, 2, Some(record(5, &list())))];
        assert!(matches!(judge(&answers, three()), Judgement::Unfinished { .. }));
    }

    #[test]
    fn a_new_cluster_is_one_where_all_answer_and_none_remembers() {
        let none = |n: u8| (0..n).map(|i| answered(i, 0, None)).collect::<Vec<_>>();
        assert_eq!(judge(&none(3), three()), Judgement::Absent { new_cluster: true });
        assert_eq!(judge(&none(2), three()), Judgement::Absent { new_cluster: false });
        let mut one_remembers = none(2);
        one_remembers.push(answered(2, 4, None));
        assert_eq!(judge(&one_remembers, three()), Judgement::Absent { new_cluster: false });
    }

    #[test]
    fn a_recovery_is_over_when_q_nodes_have_held_its_stamp_for_longer_than_the_longest_ttl() {
        let recovering = MemberList { recovery: Some(Stamp { ballot: ballot(5), ordinal: 0 }), ..list() };
        let young = Record {
            ages: vec![(Stamp { ballot: ballot(5), ordinal: 0 }, Duration::from_millis(1000))],
            ..record(5, &recovering)
        };
        let old = record(5, &recovering);
        for (second, expected) in [(young, false), (old.clone(), true)] {
            let answers = [answered(0, 1, Some(old.clone())), answered(1, 2, Some(second))];
            let judged = judge(&answers, three());
            assert!(
                matches!(judged, Judgement::Committed { recovered, .. } if recovered == expected),
                "{judged:?}"
            );
        }
    }

    #[test]
    fn changes_apply_only_to_what_they_were_meant_for() {
        let was = list().entries[1];
        let rejoin = MemberChange::Rejoin { node: NodeIndex(1), was, fresh: MemoryId(8) };
        let joining = rejoin.apply(&list()).unwrap();
        assert_eq!(joining.entries[1], Entry { state: State::Joining, memory: MemoryId(8) });
        assert_eq!(rejoin.apply(&joining), None, "once");
        let promote = |id| MemberChange::Promote { node: NodeIndex(1), memory: MemoryId(id) };
        assert_eq!(promote(2).apply(&joining), None, "another memory");
        let joined = promote(8).apply(&joining).unwrap();
        assert_eq!(joined.entries[1], Entry { state: State::Member, memory: MemoryId(8) });
        assert_eq!(promote(8).apply(&joined), None, "once");
        let put_out = |index: u8, list: &MemberList| {
            let was = list.entries[usize::from(index)];
            MemberChange::PutOut { node: NodeIndex(index), was, quorum: 2 }.apply(list)
        };
        let out = put_out(1, &joining).unwrap();
        assert_eq!(out.entries[1].state, State::Out);
        assert_eq!(put_out(0, &out), None, "q members stay");
        let back = MemberChange::Rejoin { node: NodeIndex(1), was: out.entries[1], fresh: MemoryId(9) };
        assert_eq!(back.apply(&out).unwrap().entries[1].state, State::Joining);
        assert_eq!(MemberChange::RaiseTtl { ttl_max_ms: 10 }.apply(&list()), None, "it only grows");
        assert_eq!(MemberChange::ConfirmFounding.apply(&list()), None);
    }

    #[test]
    fn a_founding_is_built_on_nothing_or_on_one_that_got_stuck_and_never_on_a_recovery() {
        let stuck = MemberList { founding: true, ..list() };
        let recovering = MemberList { before: list().entries, ..stuck.clone() };
        let base = |held: Option<&MemberList>| {
            let answers: Vec<_> = (0..3).map(|i| answered(i, 0, held.map(|list| record(5, list)))).collect();
            judge(&answers, three()).founding_base()
        };
        assert_eq!(base(None), Some(None));
        assert_eq!(base(Some(&stuck)).flatten().map(|(list, _)| list), Some(stuck));
        assert_eq!(base(Some(&list())), None, "a cluster that serves, or did");
        assert_eq!(base(Some(&recovering)), None, "what it merges would be lost");
    }

    #[test]
    fn a_recovery_is_confirmed_by_whoever_merged_it_and_by_nobody_else() {
        let recovering = MemberList { founding: true, before: list().entries, ..list() };
        assert_eq!(MemberChange::ConfirmFounding.apply(&recovering), None);
        let confirm = |entries: &[Entry]| {
            MemberChange::ConfirmRecovery { entries: entries.to_vec() }.apply(&recovering)
        };
        let mut others = recovering.entries.clone();
        others[0].memory = MemoryId(77);
        assert_eq!(confirm(&others), None, "a recovery that was started over since");
        assert_eq!(confirm(&recovering.entries), Some(list()));
    }

    #[test]
    fn a_founding_started_over_keeps_the_memories_that_were_given() {
        let stuck = MemberList { founding: true, ..list() };
        let answers = [answered(0, 1, None), answered(1, 0, None), answered(2, 9, None)];
        let fresh = vec![MemoryId(11), MemoryId(12), MemoryId(13)];
        let again = founding_list(fresh, Some((&stuck, &answers)), 1000, None);
        let memories: Vec<u64> = again.entries.iter().map(|entry| entry.memory.0).collect();
        assert_eq!(memories, [1, 12, 13]);
    }
}
