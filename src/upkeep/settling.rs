//! Brings one register's agreed value to the members that lack it. Protocol, section 7.

use std::sync::Arc;

use crate::driver::Cluster;
use crate::ids::NodeIndex;
use crate::members::View;
use crate::node::operation::{Accept, Answer, Operation, Record, RegisterKey};
use crate::register::reader::agree;
use crate::token::{Ballot, Token};

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// All members that answered hold it, or there is nothing to hold.
    Even,
    /// It has been brought to those that lacked it, or made anew on q members.
    Mended,
    /// Too few answered, or somebody is writing it.
    NotNow,
}

/// Looks at a register on all members and mends what differs.
pub async fn settle(cluster: &Cluster, key: &RegisterKey) -> Settled {
    let Some(view) = cluster.views.current() else { return Settled::NotNow };
    let answers = cluster.ask_members(&view, &Operation::Read { key: key.clone() }).await;
    let records: Vec<(NodeIndex, Option<Record>)> = answers
        .into_iter()
        .filter_map(|(node, answer)| match answer {
            Answer::Record(record) => Some((node, record)),
            _ => None,
        })
        .collect();
    if records.len() < cluster.size.quorum() {
        return Settled::NotNow;
    }
    let agreement = agree(records.iter().map(|(_, record)| record.as_ref()), cluster.size);
    let Some(highest) = agreement.highest else { return Settled::Even };
    if agreement.committed {
        let holds =
            |record: &Option<Record>| record.as_ref().is_some_and(|record| record.ballot == highest.ballot);
        let behind: Vec<NodeIndex> =
            records.iter().filter(|(_, record)| !holds(record)).map(|(node, _)| *node).collect();
        if behind.is_empty() {
            return Settled::Even;
        }
        // The very accept that they have missed; harmless, however late.
        let accept = Operation::Accept(Arc::new(accept_of(key, highest.ballot, highest))).encode();
        let sent = behind.iter().map(|node| (*node, accept.clone()));
        let taken = cluster.ask_under(view.vid, sent).await;
        if taken.iter().filter(|(_, _, answer)| *answer == Answer::Accepted).count() == behind.len() {
            return Settled::Mended;
        }
    }
    finish(cluster, &view, key).await
}

/// A change that changes nothing.
async fn finish(cluster: &Cluster, view: &View, key: &RegisterKey) -> Settled {
    let (ballot, quorum) = (cluster.next_ballot(), cluster.size.quorum());
    let prepare = Operation::Prepare { key: key.clone(), ballot, soft: false };
    let promised: Vec<Record> = cluster
        .ask_members(view, &prepare)
        .await
        .into_iter()
        .filter_map(|(_, answer)| match answer {
            Answer::Promised { record, .. } => Some(record),
            _ => None,
        })
        .collect();
    if promised.len() < quorum {
        return Settled::NotNow;
    }
    let Some(highest) = agree(promised.iter().map(Some), cluster.size).highest else { return Settled::Even };
    let accept = Operation::Accept(Arc::new(accept_of(key, ballot, highest)));
    let taken = cluster.ask_members(view, &accept).await;
    match taken.iter().filter(|(_, answer)| *answer == Answer::Accepted).count() >= quorum {
        true => Settled::Mended,
        false => Settled::NotNow,
    }
}

fn accept_of(key: &RegisterKey, ballot: Ballot, record: &Record) -> Accept {
    Accept {
        key: key.clone(),
        ballot,
        value: record.value.clone(),
        vid: record.vid,
        recent: record.recent.clone(),
        stamps: record.ages.iter().map(|(stamp, _)| *stamp).collect(),
        guard: record.guard,
        listed: record.listed,
        next: Token::ZERO,
        announce: false,
        wake: Vec::new(),
        place: record.place.as_deref().cloned(),
    }
}
