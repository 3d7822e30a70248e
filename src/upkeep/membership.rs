//! Keeps the member list read, agreed on and known to all nodes; founds a new cluster; puts a member that lost its
//! memory to `joining`. Protocol, section 2; what answers amount to is judged in [`crate::members::change`].
//!
//! It looks with a read first and prepares only to change or to finish, so that many daemons do not get in each other's
//! way. It looks about once a second, and at once when a node's gate was closed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, future};

use super::joining::Joining;
use super::recovery::{self, Recovery, RecoveryMode};
use super::rounds;
use crate::driver::Cluster;
use crate::ids::{MemoryId, NodeIndex};
use crate::limits;
use crate::members::board::JoinProgress;
use crate::members::change::{Answered, Judgement, MemberChange, founding_list, founding_size, judge};
use crate::members::{EventKind, Loss, MemberList, State, View};
use crate::mutant::{self, Mutant};
use crate::node::operation::{Accept, Answer, Operation, Record, Report, Reported, Stamp};
use crate::runtime::Moment;

/// Between two looks, if nothing calls for one.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks, whatever calls.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// How long another daemon's founding, or half-written list, is left alone before this one takes it up.
const PATIENCE: Duration = Duration::from_secs(3);
/// For how long a daemon that saw a clean cluster may finish a founding on the operator's word, its own or another
/// daemon's. Daemons that start together get in each other's way, and must not make the operator wait for that.
const CLEAN_FOR: Duration = Duration::from_secs(15);
/// Drawn before a founding, so that daemons that start together do not found together.
const FOUNDING_JITTER: Duration = Duration::from_millis(150);
/// A join that has not moved for so long, and half as much at random, is started over.
const STALLED: Duration = Duration::from_secs(10);

/// The settings of the member list.
#[derive(Clone, Copy, Debug)]
pub struct MembershipSettings {
    /// The operator says that this is a new cluster: a clean founding grants locks at once.
    pub bootstrap: bool,
    /// The longest TTL that this daemon grants.
    pub ttl_max: Duration,
    /// Records a second that a join copies; zero for no limit.
    pub join_rate: usize,
    /// What happens when fewer than q nodes have their memory.
    pub recovery: RecoveryMode,
    /// A node that no daemon has reached for so long is put out.
    pub out_after: Duration,
}

impl Default for MembershipSettings {
    fn default() -> Self {
        Self {
            bootstrap: false,
            ttl_max: limits::TTL_MAX,
            join_rate: limits::JOIN_RATE,
            recovery: RecoveryMode::default(),
            out_after: limits::OUT_AFTER,
        }
    }
}

/// The task. See the module.
pub struct Membership {
    cluster: Arc<Cluster>,
    settings: MembershipSettings,
    /// Since when the state has called for patience.
    stuck_since: Option<Moment>,
    /// What was logged last, so that it is logged once.
    said: String,
    /// When the task was made: at first the nodes need a moment to connect, and nobody wants to read that they have not.
    started: Moment,
    /// A list has been seen: whatever is found later is no new cluster.
    seen_list: bool,
    /// When this daemon last saw all N nodes without a record and without a memory.
    seen_clean: Option<Moment>,
    /// Ids of memories that this daemon has proposed, and that have not begun.
    made: BTreeSet<MemoryId>,
    /// Joins that this daemon watches: what was seen last, and since when.
    watched: BTreeMap<NodeIndex, (Watched, Moment)>,
    recovery: Recovery,
    /// The last recovery whose stamp this daemon has seen aged: q nodes said so. That stays so, also when only younger copies
    /// of the list can be asked.
    recovered: Option<Stamp>,
}

/// How far a join is, as others see it: whether it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watched {
    memory: MemoryId,
    answered: Option<MemoryId>,
    merged: u64,
    wiping: bool,
}

/// What a look at the list led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing to do.
    Rest,
    /// Something was changed, or is about to be: look again soon.
    Again,
}

impl Membership {
    /// A task for this cluster; [`Membership::run`] runs it.
    pub fn new(cluster: Arc<Cluster>, settings: MembershipSettings) -> Self {
        let started = cluster.runtime.clock.now();
        let recovery = Recovery::new(cluster.clone(), settings.recovery);
        Self {
            cluster,
            settings,
            stuck_since: None,
            said: String::new(),
            started,
            seen_list: false,
            seen_clean: None,
            made: BTreeSet::new(),
            watched: BTreeMap::new(),
            recovery,
            recovered: None,
        }
    }

    /// Runs for as long as the daemon does.
    pub async fn run(mut self) {
        let mut pause_max = PAUSE_MIN;
        loop {
            // Listen before looking, so that no call is missed.
            let wanted = self.cluster.views.wanted();
            let runtime = &self.cluster.runtime.clone();
            let next = self.look().await;
            let ready = self.cluster.views.current().is_some();
            if next == Next::Again || !ready {
                // Daemons that want the same get apart.
                pause_max = (pause_max * 2).min(INTERVAL / 2);
                let timer =
                    runtime.clock.sleep_until(runtime.clock.now() + runtime.entropy.jitter(pause_max));
                match next {
                    Next::Again => timer.await,
                    // A node that can be reached now may show a list.
                    Next::Rest => drop(future::select(wanted, timer).await),
                }
                runtime.clock.sleep_until(runtime.clock.now() + PAUSE_MIN).await;
                continue;
            }
            pause_max = PAUSE_MIN;
            let timer = runtime.clock.sleep_until(runtime.clock.now() + INTERVAL);
            future::select(wanted, timer).await;
            runtime.clock.sleep_until(runtime.clock.now() + PAUSE_MIN).await;
        }
    }

    async fn look(&mut self) -> Next {
        let answers = rounds::read(&self.cluster).await;
        let judgement = judge(&answers, self.cluster.size);
        self.seen_list |= !matches!(judgement, Judgement::Absent { .. });
        match judgement {
            Judgement::Committed { record, list, behind, recovered } => {
                self.on_committed(record, list, behind, recovered, &answers).await
            }
            Judgement::Unfinished { record, list } => {
                self.say(format!("the member list {} is not agreed on yet", record.ballot));
                if list.is_recovering() {
                    return self.recover(&list, &answers).await;
                }
                let patience = if list.founding { PATIENCE } else { PATIENCE / 10 };
                if self.is_stuck_for(patience) {
                    match list.founding {
                        true => self.found(Some(&list)).await,
                        false => _ = rounds::change(&self.cluster, None).await,
                    }
                }
                Next::Again
            }
            Judgement::TooFew { counted, founding_stuck, list, .. } => {
                self.on_too_few(counted, founding_stuck, &list, &answers).await
            }
            Judgement::Absent { new_cluster: true } if self.may_found() => {
                self.found(None).await;
                Next::Again
            }
            Judgement::Absent { .. } => {
                let (answered, nodes) = (answers.len(), self.cluster.size.nodes());
                self.say(format!(
                    "no member list: a new cluster is founded when all {nodes} nodes answer; {answered} do: {}",
                    self.cluster.complaint()
                ));
                // Fewer than q say nothing of the others: whichever can be reached next may show a list.
                if answered < self.cluster.size.quorum() { Next::Rest } else { Next::Again }
            }
            Judgement::Unreadable(error) => {
                self.say(format!(
                    "the member list can't be read ({error}); a newer version may have written it"
                ));
                Next::Again
            }
        }
    }

    async fn on_committed(
        &mut self,
        record: Record,
        list: MemberList,
        behind: Vec<NodeIndex>,
        recovered: bool,
        answers: &[Answered],
    ) -> Next {
        if list.is_recovering() {
            return self.recover(&list, answers).await;
        }
        if list.founding && !mutant::is_on(Mutant::FoundingServed) {
            // The founder confirms as soon as it has given every node its memory; others only if it does not.
            if self.is_stuck_for(PATIENCE) {
                let all = answers.iter().all(|answer| list.counts(answer.node, answer.memory));
                if all || answers.len() < self.cluster.size.nodes() {
                    rounds::change(&self.cluster, Some(MemberChange::ConfirmFounding)).await;
                } else {
                    self.found(Some(&list)).await;
                }
            }
            return Next::Again;
        }
        self.stuck_since = None;
        self.recovery.over();
        if recovered {
            self.recovered = list.recovery;
        }
        let grants = recovered || self.recovered == list.recovery;
        let view = View { vid: record.vid, grants, list };
        if self.cluster.views.current().as_deref() != Some(&view) {
            let members = view.list.entries.iter().filter(|entry| entry.state == State::Member).count();
            tracing::info!(list = %view.vid, members, grants = view.grants, "going by a member list");
            self.said.clear();
            self.tell(&view);
            self.cluster.views.install(view.clone());
        }
        self.begin_joins(&view);
        let mut next = Next::Rest;
        if !behind.is_empty() {
            next = self.bring_up_to_date(&record, &view.list, behind).await;
        }
        let stalled = self.stalled_join(&view.list, answers).await;
        if let Some(change) = self.wish(&view.list, answers, stalled) {
            if let MemberChange::Rejoin { fresh, .. } = &change {
                // Before it is sent: whoever reads it as agreed on must know whose it is.
                self.made.insert(*fresh);
            }
            if rounds::change(&self.cluster, Some(change.clone())).await {
                tracing::warn!(%change, "the member list was changed");
            }
            next = Next::Again;
        }
        next
    }

    /// What this daemon would change in the list.
    fn wish(
        &self,
        list: &MemberList,
        answers: &[Answered],
        stalled: Option<NodeIndex>,
    ) -> Option<MemberChange> {
        let back = answers.iter().find_map(|answer| {
            let entry = *list.entry(answer.node)?;
            let starts = match entry.state {
                State::Member => answer.memory != Some(entry.memory),
                State::Joining => stalled == Some(answer.node),
                State::Out => true,
            };
            starts.then_some((answer.node, entry))
        });
        if let Some((node, was)) = back {
            let fresh = rounds::fresh_memory(&self.cluster);
            return Some(MemberChange::Rejoin { node, was, fresh });
        }
        let ttl_max_ms = u64::try_from(self.settings.ttl_max.as_millis()).unwrap_or(u64::MAX);
        (ttl_max_ms > list.ttl_max_ms).then_some(MemberChange::RaiseTtl { ttl_max_ms })
    }

    /// Runs the joins whose id this daemon has made, each once.
    fn begin_joins(&mut self, view: &View) {
        for (node, entry) in self.cluster.size.indexes().zip(&view.list.entries) {
            if entry.state == State::Joining && self.made.remove(&entry.memory) {
                let joining = Joining {
                    cluster: self.cluster.clone(),
                    node,
                    memory: entry.memory,
                    list: view.vid,
                    rate: self.settings.join_rate,
                };
                self.cluster.runtime.spawner.spawn(joining.run().boxed());
            }
        }
    }

    /// A node that answers and whose join has not moved for long, by its own word.
    async fn stalled_join(&mut self, list: &MemberList, answers: &[Answered]) -> Option<NodeIndex> {
        let joining = |node: NodeIndex| list.entry(node).filter(|entry| entry.state == State::Joining);
        self.watched.retain(|node, (seen, _)| joining(*node).is_some_and(|e| e.memory == seen.memory));
        let (runtime, mut stalled) = (self.cluster.runtime.clone(), None);
        for answer in answers {
            let Some(entry) = joining(answer.node) else { continue };
            let report = Operation::Report(Report::default());
            let Some((answered, Answer::Reported(Reported { join, .. }))) =
                rounds::ask_one(&self.cluster, answer.node, &report).await
            else {
                continue;
            };
            let join = join.filter(|_| answered == Some(entry.memory));
            let seen = Watched {
                memory: entry.memory,
                answered,
                merged: join.map_or(0, |join| join.merged),
                wiping: join.is_some_and(|join| join.wiping),
            };
            if let (Some(join), false) = (join, self.made.contains(&entry.memory)) {
                let progress = JoinProgress { wiping: join.wiping, merged: join.merged, expected: None };
                self.cluster.board.note(answer.node, |notes| notes.join = Some(progress));
            }
            let now = runtime.clock.now();
            let (last, since) = self.watched.entry(answer.node).or_insert((seen, now));
            // While old data goes nothing is counted, but the node notes each step.
            let moves = *last != seen || join.is_some_and(|join| join.wiping && join.idle < STALLED);
            if moves {
                (*last, *since) = (seen, now);
            } else if now.since(*since) > STALLED + runtime.entropy.jitter(STALLED / 2) {
                *since = now;
                stalled = Some(answer.node);
            }
        }
        stalled
    }

    /// What a new list says, for people.
    fn tell(&self, view: &View) {
        let before = self.cluster.views.current();
        for (node, entry) in self.cluster.size.indexes().zip(&view.list.entries) {
            let was = before.as_ref().and_then(|before| before.list.entry(node)).copied();
            let text = match (was.map(|was| was.state), entry.state) {
                (was, State::Joining) if was != Some(State::Joining) => {
                    "it lost its memory (a restart, FLUSHALL or a new server) and joins again"
                }
                (was, State::Out) if was != Some(State::Out) => {
                    "it is out: no daemon has reached it for long. It joins again when it is back"
                }
                (Some(State::Joining | State::Out), State::Member) => {
                    self.cluster.board.note(node, |notes| notes.join = None);
                    "it is a member again"
                }
                _ => continue,
            };
            let kind = match entry.state {
                State::Member => EventKind::Joined,
                State::Joining => EventKind::MemoryLost,
                State::Out => EventKind::PutOut,
            };
            self.cluster.happened(kind, Some(node), text.to_owned());
        }
        let told = before.is_none_or(|before| before.list.recovery != view.list.recovery);
        if view.list.loss != Loss::None && told {
            recovery::tell(&self.cluster, view.list.loss, &view.list);
        }
    }

    /// Fewer than q nodes have their memory, or a recovery from that is not confirmed.
    async fn recover(&mut self, list: &MemberList, answers: &[Answered]) -> Next {
        if let Some(words) = self.recovery.step(list, answers).await {
            self.say(words);
        }
        Next::Again
    }

    async fn on_too_few(
        &mut self,
        counted: usize,
        founding_stuck: bool,
        list: &MemberList,
        answers: &[Answered],
    ) -> Next {
        if founding_stuck {
            if self.is_stuck_for(PATIENCE) {
                self.found(Some(list)).await;
            }
            return Next::Again;
        }
        if !list.founding || list.is_recovering() {
            return self.recover(list, answers).await;
        }
        let quorum = self.cluster.size.quorum();
        self.say(format!(
            "{counted} of {} nodes answer with the memory that the list names, and {quorum} are needed: {}",
            self.cluster.size.nodes(),
            self.cluster.complaint()
        ));
        Next::Again
    }

    /// What a daemon that has seen a list can't find any more was lost, which is for the operator where the settings say so.
    fn may_found(&self) -> bool {
        !self.was_lost() || self.settings.recovery != RecoveryMode::Manual
    }

    /// This daemon has seen a list: a cluster that looks new is one that lost everything.
    fn was_lost(&self) -> bool {
        self.seen_list && !mutant::is_on(Mutant::FoundsAgain)
    }

    /// Founds a new cluster, or starts a founding over that got stuck before anybody served by it.
    async fn found(&mut self, stuck: Option<&MemberList>) {
        let runtime = self.cluster.runtime.clone();
        let jitter = runtime.entropy.jitter(FOUNDING_JITTER);
        runtime.clock.sleep_until(runtime.clock.now() + jitter).await;
        let answers = rounds::read(&self.cluster).await;
        let clean = matches!(judge(&answers, self.cluster.size), Judgement::Absent { new_cluster: true });
        if clean && !self.was_lost() {
            self.seen_clean = Some(runtime.clock.now());
        }
        if clean != stuck.is_none() {
            return;
        }
        let ballot = self.cluster.next_ballot();
        let promised = rounds::promises(&self.cluster, ballot).await;
        let all = founding_size(self.cluster.size);
        if promised.len() < all {
            return;
        }
        // Judged once more on the promises of all N: from here on nobody else's founding can give out a memory.
        let Some(base) = judge(&promised, self.cluster.size).founding_base() else { return };
        let (kept, base) = base.unzip();
        let fresh = self.cluster.size.indexes().map(|_| rounds::fresh_memory(&self.cluster)).collect();
        let lost = kept.as_ref().map_or(self.was_lost(), |kept| kept.loss == Loss::Everything);
        // The operator's word is for a clean founding of a new cluster. Where something was there, what it held may be
        // still held; but not where this very daemon saw a moment ago that there was nothing, and nobody has served
        // since.
        let seen_clean = self.seen_clean.is_some_and(|at| runtime.clock.now().since(at) < CLEAN_FOR);
        let clean = kept.is_none() || seen_clean || mutant::is_on(Mutant::FoundingTrusted);
        let trusted = self.settings.bootstrap && clean && !lost;
        let recovery = (!trusted).then_some(Stamp { ballot, ordinal: 0 });
        // Leases of a cluster that was lost may be as long as its list said.
        let known = self.cluster.views.current().map_or(0, |view| view.list.ttl_max_ms);
        let ttl_max_ms = u64::try_from(self.settings.ttl_max.as_millis()).unwrap_or(u64::MAX).max(known);
        let mut list =
            founding_list(fresh, kept.as_ref().map(|list| (list, &promised[..])), ttl_max_ms, recovery);
        if lost {
            list.loss = Loss::Everything;
        }
        let accept = rounds::accept_of(ballot, ballot, base.as_ref(), &list);
        let accepted = self.cluster.ask_all(&Operation::Accept(Arc::new(accept))).await;
        if accepted.iter().filter(|(_, _, answer)| *answer == Answer::Accepted).count() < all {
            return;
        }
        // Each node is sent its memory once and never again.
        let gifts =
            promised.iter().filter(|answer| !list.counts(answer.node, answer.memory)).filter_map(|answer| {
                let entry = list.entry(answer.node)?;
                let found = Operation::Found { founding: ballot, memory: entry.memory.0 };
                Some((answer.node, found.encode()))
            });
        let given = self.cluster.ask(gifts).await;
        let has = promised.iter().filter(|answer| list.counts(answer.node, answer.memory)).count();
        let got = given.iter().filter(|(_, _, answer)| *answer == Answer::Accepted).count();
        if has + got < all {
            // Another daemon came in between. Once more, for those that went away empty-handed.
            return;
        }
        if rounds::change(&self.cluster, Some(MemberChange::ConfirmFounding)).await {
            let nodes = self.cluster.size.nodes();
            tracing::info!(nodes, waiting = !trusted, "a new cluster was founded");
            self.cluster.happened(
                EventKind::Founded,
                None,
                format!("a cluster of {nodes} nodes was founded"),
            );
        }
    }

    /// The committed list, to the nodes that do not have it.
    async fn bring_up_to_date(&mut self, record: &Record, list: &MemberList, behind: Vec<NodeIndex>) -> Next {
        let accept = rounds::accept_of(record.ballot, record.vid, None, list);
        let accept = Accept { recent: record.recent.clone(), value: record.value.clone(), ..accept };
        let encoded = Operation::Accept(Arc::new(accept)).encode();
        let answers = self.cluster.ask(behind.into_iter().map(|node| (node, encoded.clone()))).await;
        let refused = answers.iter().any(|(_, _, answer)| *answer != Answer::Accepted);
        if refused {
            // It has promised a higher ballot: only a round above that reaches it.
            rounds::change(&self.cluster, None).await;
        }
        self.cluster.views.nodes_updated();
        if refused { Next::Again } else { Next::Rest }
    }

    /// Whether the state has called for patience for at least so long.
    fn is_stuck_for(&mut self, length: Duration) -> bool {
        let now = self.cluster.runtime.clock.now();
        let since = *self.stuck_since.get_or_insert(now);
        let stuck = now.since(since) >= length;
        if stuck {
            self.stuck_since = None;
        }
        stuck
    }

    fn say(&mut self, words: String) {
        let quiet = self.cluster.runtime.clock.now().since(self.started) < INTERVAL;
        if self.said != words && !quiet {
            tracing::warn!("{words}");
            self.said = words;
        }
    }
}
