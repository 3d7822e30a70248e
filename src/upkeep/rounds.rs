//! Rounds on the member list: what membership, joining and recovery ask of all nodes, and how they change the list.

use std::sync::Arc;
use std::time::Duration;

use crate::driver::Cluster;
use crate::ids::{MemoryId, NodeIndex};
use crate::limits;
use crate::members::MemberList;
use crate::members::change::{Answered, Judgement, MemberChange, judge};
use crate::node::operation::{Accept, Answer, Operation, Record, RegisterKey, Report, Reported};
use crate::token::{Ballot, Token};

/// Reads or prepares on all nodes; those that fail or refuse are left out.
pub async fn ask(cluster: &Cluster, operation: &Operation) -> Vec<Answered> {
    let answers = cluster.ask_all(operation).await.into_iter();
    answers
        .filter_map(|(node, memory, answer)| match answer {
            Answer::Record(record) => Some(Answered { node, memory, record }),
            Answer::Promised { record, .. } => Some(Answered { node, memory, record: Some(record) }),
            _ => None,
        })
        .collect()
}

/// What nodes hold of the list.
pub async fn read(cluster: &Cluster) -> Vec<Answered> {
    ask(cluster, &Operation::Read { key: RegisterKey::members() }).await
}

/// Promises on the list.
pub async fn promises(cluster: &Cluster, ballot: Ballot) -> Vec<Answered> {
    ask(cluster, &Operation::Prepare { key: RegisterKey::members(), ballot, soft: false }).await
}

/// One operation on one node: its memory and its answer, or nothing.
pub async fn ask_one(
    cluster: &Cluster,
    node: NodeIndex,
    operation: &Operation,
) -> Option<(Option<MemoryId>, Answer)> {
    let answers = cluster.ask(std::iter::once((node, operation.encode()))).await;
    answers.into_iter().next().map(|(_, memory, answer)| (memory, answer))
}

/// What nodes were told of each other.
pub async fn reports(cluster: &Cluster, report: Report) -> Vec<(NodeIndex, Option<MemoryId>, Reported)> {
    let answers = cluster.ask_all(&Operation::Report(report)).await.into_iter();
    answers
        .filter_map(|(node, memory, answer)| match answer {
            Answer::Reported(reported) => Some((node, memory, reported)),
            _ => None,
        })
        .collect()
}

/// Changes the list, or with `None` finishes what is half written. `true` when q members took the new list.
pub async fn change(cluster: &Cluster, change: Option<MemberChange>) -> bool {
    let ballot = cluster.next_ballot();
    let promised = promises(cluster, ballot).await;
    let (Judgement::Committed { record, list, .. } | Judgement::Unfinished { record, list }) =
        judge(&promised, cluster.size)
    else {
        return false;
    };
    let changed = change.and_then(|change| change.apply(&list));
    let applied = changed.is_some();
    let accept = match &changed {
        Some(new) => accept_of(ballot, ballot, Some(&record), new),
        None => accept_of(ballot, record.vid, Some(&record), &list),
    };
    let answers = cluster.ask_all(&Operation::Accept(Arc::new(accept))).await;
    // Whose answer counts is said by the list that is being changed.
    let taken = answers
        .iter()
        .filter(|(node, memory, answer)| *answer == Answer::Accepted && list.counts(*node, *memory));
    applied && taken.count() >= cluster.size.quorum()
}

/// The accept of a list under a ballot.
pub fn accept_of(ballot: Ballot, vid: Ballot, base: Option<&Record>, list: &MemberList) -> Accept {
    let recent = match base {
        Some(base) if base.vid == vid => base.recent.clone(),
        Some(base) => {
            std::iter::once(base.vid).chain(base.recent.iter().copied()).take(limits::RECENT_MAX).collect()
        }
        None => vec![Ballot::ZERO],
    };
    Accept {
        key: RegisterKey::members(),
        ballot,
        value: list.encode().into(),
        vid,
        recent,
        stamps: list.recovery.into_iter().collect(),
        guard: Duration::ZERO,
        listed: false,
        next: Token::ZERO,
        announce: false,
        wake: Vec::new(),
        place: None,
    }
}

/// An id that no memory has had.
pub fn fresh_memory(cluster: &Cluster) -> MemoryId {
    loop {
        // Zero is "none" on the wire.
        let random = cluster.runtime.entropy.next_u64();
        if random != 0 {
            return MemoryId(random);
        }
    }
}
