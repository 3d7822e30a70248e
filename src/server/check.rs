//! What `majorityd check` finds out: connects to every server, looks, and touches nothing.

use crate::config::Settings;
use crate::ids::{NodeIndex, ProposerId};
use crate::members::change::{Answered, Judgement, judge};
use crate::members::{MemberList, State};
use crate::node::handshake::Welcome;
use crate::node::redis::look::{Look, look};
use crate::node::{Identity, NodeState};
use crate::quorum::ClusterSize;
use crate::runtime::system;

use super::redis_options;

/// How far a server's clock may be off before it is worth a word, in milliseconds.
const CLOCK_OFFSET_MS: i64 = 1_000;

/// What was found out about one node.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Its place in the configured list.
    pub index: NodeIndex,
    /// Its address, without secrets.
    pub address: String,
    /// What a handshake would find, or why the node can't be used: a refusal, or that nobody answers.
    pub state: Result<Welcome, String>,
    /// Its answers count, or will once the new cluster is founded.
    pub counts: bool,
    /// What the member list says of it, in a word or two.
    pub member_state: String,
    /// What an operator should know besides.
    pub notes: Vec<String>,
}

/// Looks at every node. In the order of the configured list.
pub async fn check_nodes(settings: &Settings) -> Vec<NodeReport> {
    let runtime = system::runtime();
    let Ok(size) = ClusterSize::new(settings.nodes.addresses.len()) else { return Vec::new() };
    let identity = Identity {
        cluster: settings.cluster.name.as_str().into(),
        nodes: size.nodes(),
        daemon: ProposerId(0),
    };
    let looks = size.indexes().zip(redis_options(settings)).map(|(index, options)| {
        let (identity, runtime) = (identity.clone(), runtime.clone());
        async move { (options.address.to_string(), look(&options, &identity, index, &runtime).await) }
    });
    let mut looks = futures::future::join_all(looks).await;
    refuse_duplicates(&mut looks);
    let answered: Vec<_> =
        size.indexes().zip(&looks).filter_map(|(node, (_, look))| answered(node, look)).collect();
    let judgement = judge(&answered, size);
    size.indexes()
        .zip(looks)
        .map(|(node, (address, look))| report(node, address, look, &answered, &judgement))
        .collect()
}

/// Of two addresses with one server the later is refused.
fn refuse_duplicates(looks: &mut [(String, Look)]) {
    let run_of = |look: &Look| match &look.state {
        NodeState::Ready(welcome) => Some(welcome.run_id.clone()),
        NodeState::Unreachable(_) | NodeState::Refused(_) => None,
    };
    for later in 1..looks.len() {
        let Some(run_id) = run_of(&looks[later].1) else { continue };
        if let Some(other) =
            looks[..later].iter().position(|(_, look)| run_of(look).as_ref() == Some(&run_id))
        {
            let refusal =
                crate::node::handshake::Refusal::Duplicate { other: other as u8, run_id: run_id.to_string() };
            looks[later].1.state = NodeState::Refused(refusal);
        }
    }
}

fn answered(node: NodeIndex, look: &Look) -> Option<Answered> {
    match &look.state {
        NodeState::Ready(welcome) => {
            Some(Answered { node, memory: welcome.memory, record: look.members.clone() })
        }
        NodeState::Unreachable(_) | NodeState::Refused(_) => None,
    }
}

fn report(
    index: NodeIndex,
    address: String,
    look: Look,
    answered: &[Answered],
    judgement: &Judgement,
) -> NodeReport {
    let answer = answered.iter().find(|answer| answer.node == index);
    let (counts, member_state, mut notes) = member_state(index, answer, judgement);
    if let Some(offset) = look.clock_offset_ms.filter(|offset| offset.abs() > CLOCK_OFFSET_MS) {
        notes.push(format!("its clock is {offset} ms from this machine's: run a time service on both"));
    }
    let state = match look.state {
        NodeState::Ready(welcome) => Ok(welcome),
        NodeState::Refused(refusal) => Err(refusal.to_string()),
        NodeState::Unreachable(reason) => Err(format!("unreachable: {reason}")),
    };
    NodeReport { index, address, state, counts, member_state, notes }
}

/// Whether the node counts, what the member list says of it, and what follows for an operator.
fn member_state(
    node: NodeIndex,
    answer: Option<&Answered>,
    judgement: &Judgement,
) -> (bool, String, Vec<String>) {
    let lost = "it lost its memory (a restart, a replacement, FLUSHALL?) and does not count until a daemon has brought it \
                back";
    let joins = "it lost its memory; everything is being copied to it, and it will count when that is done";
    let is_back = "no daemon had reached it for long, so it is out; it does not count until a daemon has brought it back";
    let of_list = |list: &MemberList| {
        let Some(entry) = list.entry(node) else { return (false, "not listed", vec![]) };
        let counts = answer.is_some_and(|answer| list.counts(node, answer.memory));
        match (entry.state, answer.is_some()) {
            (State::Member, true) if counts => (true, "member", vec![]),
            (State::Member, true) => (false, "member without its memory", vec![lost.to_owned()]),
            (State::Member, false) => (false, "member, silent", vec![]),
            (State::Joining, _) => (false, "joining", vec![joins.to_owned()]),
            (State::Out, true) => (false, "out", vec![is_back.to_owned()]),
            (State::Out, false) => (false, "out", vec![]),
        }
    };
    let (counts, state, notes) = match judgement {
        Judgement::Committed { list, .. } | Judgement::Unfinished { list, .. } => of_list(list),
        Judgement::TooFew { list, .. } => {
            let (counts, state, mut notes) = of_list(list);
            notes.push(
                "fewer than a quorum have the memory that the list names: the cluster does not serve".into(),
            );
            (counts, state, notes)
        }
        Judgement::Absent { new_cluster: true } => (answer.is_some(), "new cluster, not founded yet", vec![]),
        Judgement::Absent { .. } => (answer.is_some(), "no member list", vec![]),
        Judgement::Unreadable(error) => return (false, format!("list unreadable: {error}"), vec![]),
    };
    (counts, state.to_owned(), notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MemoryId;
    use crate::members::{Entry, Loss};
    use crate::node::operation::Record;
    use crate::token::{Ballot, Token};

    #[test]
    fn whoever_answers_and_does_not_count_comes_with_a_note() {
        let entry = |state, memory| Entry { state, memory: MemoryId(memory) };
        let list = MemberList {
            entries: vec![entry(State::Member, 1), entry(State::Member, 2), entry(State::Out, 3)],
            founding: false,
            ttl_max_ms: 1_000,
            recovery: None,
            loss: Loss::None,
            before: Vec::new(),
        };
        let ballot = Ballot { token: Token::new(5).unwrap(), proposer: ProposerId(1) };
        let record = Record {
            promise: ballot,
            ballot,
            value: list.encode().into(),
            vid: ballot,
            recent: Vec::new(),
            ages: Vec::new(),
            copied: false,
            listed: false,
            guard: std::time::Duration::ZERO,
            place: None,
        };
        for state in [State::Member, State::Joining, State::Out] {
            let mut list = list.clone();
            list.entries[2].state = state;
            let judgement =
                Judgement::Committed { record: record.clone(), list, behind: Vec::new(), recovered: true };
            for memory in [None, Some(2), Some(3)] {
                let node = NodeIndex(2);
                let answer = Answered { node, memory: memory.map(MemoryId), record: Some(record.clone()) };
                let (counts, words, notes) = member_state(node, Some(&answer), &judgement);
                assert_eq!(counts, notes.is_empty(), "{words} out of memory {memory:?}: {notes:?}");
                assert_eq!(counts, state == State::Member && memory == Some(3));
            }
        }
    }
}
