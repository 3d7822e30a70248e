//! What `majorityd check` finds out: connects to every server, looks, and touches nothing.

use std::collections::BTreeMap;

use crate::config::Settings;
use crate::ids::{NodeIndex, ProposerId};
use crate::members::change::{Answered, Judgement, judge};
use crate::members::{MemberList, State};
use crate::node::handshake::Welcome;
use crate::node::redis::look::{Look, look};
use crate::node::{Identity, NodeState};
use crate::quorum::ClusterSize;
use crate::runtime::system;

use super::findings::{self, Finding, Kind, Severity};
use super::redis_options;

/// What was found out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order of the configured list.
    pub nodes: Vec<NodeReport>,
    /// What somebody should know, the worst first.
    pub findings: Vec<Finding>,
}

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
}

/// Looks at every node, and at what a daemon with these settings would have here.
pub async fn check(settings: &Settings) -> Report {
    let runtime = system::runtime();
    let Ok(size) = ClusterSize::new(settings.nodes.addresses.len()) else { return Report::default() };
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
    let mut report = Report::default();
    report.findings.extend(of_cluster(&judgement));
    for (node, (address, look)) in size.indexes().zip(looks) {
        let answer = answered.iter().find(|answer| answer.node == node);
        let (counts, member_state, finding) = member_state(node, answer, &judgement);
        report.findings.extend(finding);
        report.findings.extend(of_look(node, &address, &look, settings));
        let state = match look.state {
            NodeState::Ready(welcome) => Ok(welcome),
            NodeState::Refused(refusal) => Err(refusal.to_string()),
            NodeState::Unreachable(reason) => Err(format!("unreachable: {reason}")),
        };
        report.nodes.push(NodeReport { index: node, address, state, counts, member_state });
    }
    let versions: BTreeMap<u8, String> = report
        .nodes
        .iter()
        .filter_map(|node| Some((node.index.0, node.state.as_ref().ok()?.version.to_string())))
        .collect();
    report.findings.extend(findings::versions(&versions));
    report.findings.extend(findings::open_files(system::raise_open_files(), settings));
    report.findings.extend(findings::bootstrap(is_founded(&judgement), settings));
    // Within one severity as they were found: node by node.
    report.findings.sort_by_key(|finding| finding.severity);
    report
}

/// The nodes alone.
pub async fn check_nodes(settings: &Settings) -> Vec<NodeReport> {
    check(settings).await.nodes
}

fn of_look(node: NodeIndex, address: &str, look: &Look, settings: &Settings) -> Vec<Finding> {
    let state = match &look.state {
        NodeState::Ready(_) => None,
        NodeState::Refused(refusal) => Some(findings::refused(node, refusal)),
        // Nothing more is known of it.
        NodeState::Unreachable(reason) => return vec![findings::unreachable(node, address, reason)],
    };
    state.into_iter().chain(findings::surveyed(node, &look.survey, settings)).collect()
}

fn is_founded(judgement: &Judgement) -> bool {
    matches!(judgement, Judgement::Committed { .. } | Judgement::Unfinished { .. } | Judgement::TooFew { .. })
}

/// What belongs to no node.
fn of_cluster(judgement: &Judgement) -> Option<Finding> {
    match judgement {
        Judgement::TooFew { .. } => Some(Finding::overall(
            Severity::Error,
            Kind::Quorum,
            "fewer than a quorum have the memory that the member list names: the cluster does not serve",
            "start the servers that are missing; if all were restarted, a daemon recovers the cluster when all of them answer \
             (docs/operations.md, After a power cut)",
        )),
        Judgement::Unreadable(error) => Some(Finding::overall(
            Severity::Error,
            Kind::Member,
            format!("the member list can't be read: {error}"),
            "use a version of majorityd that is as new as that of the daemons",
        )),
        Judgement::Absent { .. } | Judgement::Committed { .. } | Judgement::Unfinished { .. } => None,
    }
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

/// Whether the node counts, what the member list says of it, and what follows for an operator.
fn member_state(
    node: NodeIndex,
    answer: Option<&Answered>,
    judgement: &Judgement,
) -> (bool, String, Option<Finding>) {
    let warning =
        |found: &str, advice: &str| Some(Finding::of(node, Severity::Warning, Kind::Member, found, advice));
    let wait = "wait, and restart no other server meanwhile; majorityd status --watch shows how far it is";
    let run = "a daemon does that by itself: run one, and restart no other server meanwhile";
    let of_list = |list: &MemberList| {
        let Some(entry) = list.entry(node) else { return (false, "not listed", None) };
        let counts = answer.is_some_and(|answer| list.counts(node, answer.memory));
        match (entry.state, answer.is_some()) {
            (State::Member, true) if counts => (true, "member", None),
            (State::Member, true) => {
                let found = "it lost its memory (a restart, a replacement, FLUSHALL?) and does not count until a daemon has \
                             brought it back";
                (false, "member without its memory", warning(found, run))
            }
            (State::Member, false) => (false, "member, silent", None),
            (State::Joining, _) => {
                let found = "it lost its memory; everything is being copied to it, and it will count when that is done";
                (false, "joining", warning(found, wait))
            }
            (State::Out, true) => {
                let found = "no daemon had reached it for long, so it is out; it does not count until a daemon has brought it \
                             back";
                (false, "out", warning(found, run))
            }
            (State::Out, false) => (false, "out", None),
        }
    };
    let (counts, state, finding) = match judgement {
        Judgement::Committed { list, .. }
        | Judgement::Unfinished { list, .. }
        | Judgement::TooFew { list, .. } => of_list(list),
        Judgement::Absent { new_cluster: true } => (answer.is_some(), "new cluster, not founded yet", None),
        Judgement::Absent { .. } => (answer.is_some(), "no member list", None),
        Judgement::Unreadable(error) => return (false, format!("list unreadable: {error}"), None),
    };
    (counts, state.to_owned(), finding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MemoryId;
    use crate::members::{Entry, Loss};
    use crate::node::operation::Record;
    use crate::token::{Ballot, Token};

    #[test]
    fn whoever_answers_and_does_not_count_comes_with_a_finding() {
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
                let (counts, words, finding) = member_state(node, Some(&answer), &judgement);
                assert_eq!(counts, finding.is_none(), "{words} out of memory {memory:?}: {finding:?}");
                assert_eq!(counts, state == State::Member && memory == Some(3));
            }
        }
    }
}
