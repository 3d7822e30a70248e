//! Brings a cluster back in which fewer than q nodes have their memory: a power cut, all servers restarted at once.
//! Protocol, section 2.
//!
//! All nodes promise a new list, so nothing older goes on. Those that kept what they had (or, if too few did, all) are
//! merged with each other where they are, under that promise; then the list is confirmed and the others join. Locks are
//! granted once the recovery's stamp has aged by the longest TTL. It is never silent: an event, and a log line.

use std::sync::Arc;
use std::time::Duration;

use super::copy::Copy;
use super::rounds;
use crate::driver::Cluster;
use crate::ids::{MemoryId, NodeIndex};
use crate::members::change::{Answered, Judgement, MemberChange, judge};
use crate::members::{Entry, EventKind, Loss, MemberList, State};
use crate::mutant::{self, Mutant};
use crate::node::operation::{Answer, Operation, Report, Reported, Stamp};
use crate::runtime::Moment;
use crate::token::Ballot;

/// Nodes that restart together need a moment until all answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long the missing are waited for before going on without them, where the operator has said so.
const MISSING_PATIENCE: Duration = Duration::from_secs(30);
/// A recovery that has not moved for so long is started over.
const STALLED: Duration = Duration::from_secs(10);
/// Daemons that see the same get apart.
const JITTER: Duration = Duration::from_secs(2);

/// What is done when fewer than q nodes have their memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Recover as soon as all N nodes answer.
    #[default]
    Automatic,
    /// The same, and after half a minute without those that do not answer, if q do. What only they had is lost.
    Available,
    /// Wait until a daemon with another setting comes.
    Manual,
}

/// The recovery, as one daemon goes about it.
pub struct Recovery {
    cluster: Arc<Cluster>,
    mode: RecoveryMode,
    /// Since when it has been called for.
    since: Option<Moment>,
}

/// What one node has to show.
struct Witness {
    node: NodeIndex,
    memory: Option<MemoryId>,
    reported: Reported,
}

impl Recovery {
    /// Nothing to be done yet.
    pub fn new(cluster: Arc<Cluster>, mode: RecoveryMode) -> Self {
        Self { cluster, mode, since: None }
    }

    /// The list is served by again.
    pub fn over(&mut self) {
        self.since = None;
    }

    /// One look at a cluster that needs it. What people should know, if it can't go on.
    pub async fn step(&mut self, list: &MemberList, answers: &[Answered]) -> Option<String> {
        let now = self.now();
        let waited = now.since(*self.since.get_or_insert(now));
        let (nodes, quorum) = (self.cluster.size.nodes(), self.cluster.size.quorum());
        let counted = answers.iter().filter(|answer| list.counts(answer.node, answer.memory)).count();
        let complaint = self.cluster.complaint();
        let answered = answers.len();
        if answered < nodes {
            let missing = format!(
                "{counted} of {nodes} nodes answer with the memory that the list names, and {quorum} are needed: {complaint}"
            );
            let lost = answers.iter().any(|answer| !list.counts(answer.node, answer.memory));
            let asked = self.mode == RecoveryMode::Available || mutant::is_on(Mutant::RecoversWithQuorum);
            let may = asked && answered >= quorum && counted < quorum && lost;
            if !may {
                let words = match lost {
                    true => "; a recovery begins when all nodes answer (setting healing.recovery)",
                    false => "",
                };
                return Some(missing + words);
            }
            if waited < MISSING_PATIENCE {
                return Some(missing + "; they are waited for a while");
            }
        }
        if self.mode == RecoveryMode::Manual {
            return Some(format!(
                "{counted} of {nodes} nodes have their memory and {quorum} are needed; all answer, but healing.recovery is \
                 \"manual\": start a daemon with \"automatic\" to go on with what the nodes have kept"
            ));
        }
        if waited < PATIENCE {
            return None;
        }
        let reports = rounds::reports(&self.cluster, Report::default()).await;
        let moves = reports.iter().any(|(.., told)| told.join.is_some_and(|join| join.idle < STALLED));
        if list.is_recovering() && moves {
            return Some("a recovery is under way".to_owned());
        }
        let runtime = &self.cluster.runtime;
        runtime.clock.sleep_until(self.now() + runtime.entropy.jitter(JITTER)).await;
        let failed = self.run(answered).await.err();
        // Whoever fails leaves the others some time.
        self.since = Some(self.now());
        failed.map(|failed| format!("a recovery came to nothing: {failed}"))
    }

    /// Recovers, with as many nodes as answered at least.
    async fn run(&self, answered: usize) -> Result<(), &'static str> {
        let cluster = &self.cluster;
        let ballot = cluster.next_ballot();
        let promised = rounds::promises(cluster, ballot).await;
        if promised.len() < answered {
            return Err("not all nodes promised");
        }
        let (record, list) = match judge(&promised, cluster.size) {
            Judgement::TooFew { record, list, .. } => (record, list),
            Judgement::Unfinished { record, list } | Judgement::Committed { record, list, .. }
                if list.is_recovering() =>
            {
                (record, list)
            }
            _ => return Err("it is not needed any more"),
        };
        if list.founding && !list.is_recovering() {
            return Err("it is a founding that got stuck");
        }
        let reports = rounds::reports(cluster, Report::default()).await;
        let witnesses: Vec<Witness> = reports
            .into_iter()
            .filter(|(node, ..)| promised.iter().any(|answer| answer.node == *node))
            .map(|(node, memory, reported)| Witness { node, memory, reported })
            .collect();
        if witnesses.len() < promised.len() {
            return Err("not all nodes told what they have kept");
        }
        let trusted: Vec<NodeIndex> =
            witnesses.iter().filter(|w| kept_all(w, &list, &witnesses)).map(|witness| witness.node).collect();
        let enough = trusted.len() >= cluster.size.quorum();
        let sources = if enough { trusted } else { witnesses.iter().map(|witness| witness.node).collect() };
        let loss = match (witnesses.len() < cluster.size.nodes(), enough) {
            (true, _) => Loss::NotAsked,
            (false, true) => Loss::LatestWrites,
            (false, false) => Loss::Anything,
        };
        let new = self.list_of(&list, &sources, &witnesses, loss, ballot);
        tracing::error!(
            kept = sources.len(),
            ?loss,
            "fewer than q nodes have their memory: recovering with what the nodes have kept"
        );
        let accept = Operation::Accept(Arc::new(rounds::accept_of(ballot, ballot, Some(&record), &new)));
        let accepted = cluster.ask_all(&accept).await;
        if accepted.iter().filter(|(_, _, answer)| *answer == Answer::Accepted).count() < promised.len() {
            return Err("not all nodes took the list");
        }
        self.merge(&new, &sources, ballot).await?;
        let confirm = MemberChange::ConfirmRecovery { entries: new.entries.clone() };
        if rounds::change(cluster, Some(confirm)).await { Ok(()) } else { Err("it was not confirmed") }
    }

    /// The list of the recovery: whoever is merged will be a member with a new memory, the others are to join.
    fn list_of(
        &self,
        old: &MemberList,
        sources: &[NodeIndex],
        witnesses: &[Witness],
        loss: Loss,
        ballot: Ballot,
    ) -> MemberList {
        let entries = self.cluster.size.indexes().map(|node| {
            let state = match (sources.contains(&node), witnesses.iter().any(|w| w.node == node)) {
                (true, _) => State::Member,
                (false, true) => State::Joining,
                (false, false) => State::Out,
            };
            Entry { state, memory: rounds::fresh_memory(&self.cluster) }
        });
        MemberList {
            entries: entries.collect(),
            founding: true,
            ttl_max_ms: old.ttl_max_ms,
            recovery: Some(Stamp { ballot, ordinal: 0 }),
            loss: loss.max(if old.is_recovering() { old.loss } else { Loss::None }),
            before: if old.is_recovering() { old.before.clone() } else { old.entries.clone() },
        }
    }

    /// Each of the sources gets what the others have.
    async fn merge(
        &self,
        list: &MemberList,
        sources: &[NodeIndex],
        ballot: Ballot,
    ) -> Result<(), &'static str> {
        let memory_of = |node: &NodeIndex| list.entries[usize::from(node.0)].memory;
        for node in sources {
            let begin =
                Operation::BeginJoin { list: ballot, memory: memory_of(node), recovery: Some(ballot) };
            let begun = rounds::ask_one(&self.cluster, *node, &begin).await;
            if !matches!(begun, Some((_, Answer::Accepted))) {
                return Err("a node did not begin");
            }
        }
        let copy = Copy {
            cluster: &self.cluster,
            goes_on: &|| true,
            rate: 0,
            recovery: Some(ballot),
            on_page: &|_| {},
        };
        for source in sources.iter().filter(|_| !mutant::is_on(Mutant::RecoversUnmerged)) {
            let others: Vec<_> = sources.iter().filter(|node| *node != source).collect();
            let targets: Vec<_> = others.into_iter().map(|node| (*node, memory_of(node))).collect();
            let copied = copy.all(*source, Some(memory_of(source)), &targets).await;
            copied.map_err(|_| "a copy was not complete")?;
        }
        for node in sources {
            let end = Operation::EndJoin { memory: memory_of(node) };
            copy.send(*node, &end).await.map_err(|_| "a node did not end its part")?;
        }
        Ok(())
    }

    fn now(&self) -> Moment {
        self.cluster.runtime.clock.now()
    }
}

/// Whether a node has, as far as anybody remembers, all that it had as a member of the list before.
fn kept_all(witness: &Witness, list: &MemberList, witnesses: &[Witness]) -> bool {
    let index = usize::from(witness.node.0);
    let before = if list.is_recovering() { &list.before } else { &list.entries };
    // Where a recovery is started over, those that it had merged have it all, too.
    let candidates = [before.get(index), list.entries.get(index).filter(|_| list.loss <= Loss::LatestWrites)];
    let mut candidates = candidates.into_iter().flatten().filter(|entry| entry.state == State::Member);
    candidates.any(|entry| {
        let memory = Some(entry.memory);
        let told = witnesses.iter().filter_map(|other| other.reported.nodes.get(index));
        let remembered = told.filter(|told| told.memory == memory).map(|told| told.writes).max();
        (witness.memory == memory || witness.reported.aside == memory)
            && (witness.reported.writes >= remembered.unwrap_or(0) || mutant::is_on(Mutant::CountsIgnored))
    })
}

/// Says what a recovery may have lost.
pub fn tell(cluster: &Cluster, loss: Loss, list: &MemberList) {
    let members = list.entries.iter().filter(|entry| entry.state == State::Member).count();
    let text = match loss {
        Loss::None => return,
        Loss::LatestWrites => format!(
            "the cluster was recovered: {members} nodes came back with what they had kept. What they had acknowledged and \
             not yet written to disk may be lost (nothing, where they write through)"
        ),
        Loss::Anything => format!(
            "the cluster was recovered from what {members} nodes still had, and too few had kept everything: writes may be \
             lost, and what was removed may be back"
        ),
        Loss::Everything => format!(
            "all {members} nodes were empty, and the cluster was founded again: everything that it held is lost"
        ),
        Loss::NotAsked => format!(
            "the cluster was recovered with {members} nodes while others did not answer, as healing.recovery says: what only \
             those had is lost"
        ),
    };
    tracing::error!(members, ?loss, "{text}");
    cluster.happened(EventKind::Recovered, None, text.clone());
    cluster.happened(EventKind::PossibleLoss, None, text);
}
