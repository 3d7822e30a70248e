//! Brings a joining node back to duty: begins its memory, copies everything from q other members, and proposes it as a
//! member. Protocol, section 2.
//!
//! Only the daemon that made the id runs this, once for each id. Whoever finds that nothing moves proposes a new id and
//! starts over; this one is then refused by the node and stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::copy::Copy;
use super::rounds;
use crate::driver::Cluster;
use crate::ids::{MemoryId, NodeIndex};
use crate::members::board::JoinProgress;
use crate::members::change::MemberChange;
use crate::members::{State, View};
use crate::mutant::{self, Mutant};
use crate::node::operation::{Answer, Operation};
use crate::runtime::Moment;
use crate::token::Ballot;

/// How often the log says how far a join is.
const SAY_INTERVAL: Duration = Duration::from_secs(5);
/// A promotion that does not get through is tried again for so long.
const PROMOTE_FOR: Duration = Duration::from_secs(10);

/// One join.
pub struct Joining {
    /// The nodes.
    pub cluster: Arc<Cluster>,
    /// Who joins.
    pub node: NodeIndex,
    /// The id of its new memory, made by this daemon.
    pub memory: MemoryId,
    /// The list that has been read as agreed on and says so.
    pub list: Ballot,
    /// Records a second; zero for no limit.
    pub rate: usize,
}

impl Joining {
    /// Runs to its end.
    pub async fn run(self) {
        let started = self.cluster.runtime.clock.now();
        let begin = Operation::BeginJoin { list: self.list, memory: self.memory, recovery: None };
        // Once and never again: a copy that came late would empty a node that has merged since.
        let begun = rounds::ask_one(&self.cluster, self.node, &begin).await;
        if mutant::is_on(Mutant::BegunTwice) {
            self.begin_again_later(begin);
        }
        if !matches!(begun, Some((_, Answer::Accepted))) {
            tracing::info!(node = %self.node, "a join did not begin; it will be started over");
            return;
        }
        let meter = &self.cluster.meter.upkeep;
        meter.joins_begun.one();
        tracing::info!(node = %self.node, "a node is joining: its old data goes, and everything is copied to it");
        let copied = AtomicU64::new(0);
        let done = self.copy(&copied, started).await;
        self.cluster.board.note(self.node, |notes| notes.join = None);
        let records = copied.load(Ordering::Relaxed);
        if !done {
            meter.joins_failed.one();
            tracing::warn!(node = %self.node, records, "a join came to nothing; it will be started over");
            return;
        }
        if self.promote().await {
            meter.joins_done.one();
            let took = self.cluster.runtime.clock.now().since(started);
            tracing::info!(node = %self.node, records, ?took, "a node has joined and is a member again");
        } else {
            meter.joins_failed.one();
        }
    }

    fn begin_again_later(&self, begin: Operation) {
        let (cluster, node) = (self.cluster.clone(), self.node);
        let again = async move {
            cluster.runtime.clock.sleep_until(cluster.runtime.clock.now() + Duration::from_secs(2)).await;
            rounds::ask_one(&cluster, node, &begin).await;
        };
        self.cluster.runtime.spawner.spawn(Box::pin(again));
    }

    async fn copy(&self, copied: &AtomicU64, started: Moment) -> bool {
        let said = AtomicU64::new(0);
        let on_page = |records: usize| self.note(copied, &said, records, started);
        let copy = Copy {
            cluster: &self.cluster,
            goes_on: &|| self.current().is_some(),
            rate: self.rate,
            recovery: None,
            on_page: &on_page,
        };
        let targets = [(self.node, self.memory)];
        let needed = match mutant::is_on(Mutant::CopiedFromOne) {
            true => 1,
            false => self.cluster.size.quorum(),
        };
        let mut complete = 0;
        for source in self.cluster.size.indexes().filter(|source| *source != self.node) {
            if complete == needed || mutant::is_on(Mutant::PromotedEarly) {
                break;
            }
            let Some(view) = self.current() else { return false };
            let Some(entry) = view.list.entry(source).filter(|entry| entry.state == State::Member) else {
                continue;
            };
            match copy.all(source, Some(entry.memory), &targets).await {
                Ok(()) => complete += 1,
                Err(failed) => tracing::info!(node = %self.node, %source, ?failed, "a copy is not complete"),
            }
        }
        if mutant::is_on(Mutant::PromotedEarly) {
            let nothing = Operation::Merge { memory: self.memory, floor: Ballot::ZERO, rows: Vec::new() };
            let _wiped = copy.send(self.node, &nothing).await;
            return copy.send(self.node, &Operation::EndJoin { memory: self.memory }).await.is_ok();
        }
        complete == needed && copy.send(self.node, &Operation::EndJoin { memory: self.memory }).await.is_ok()
    }

    /// The list to go by, as long as it says that this join is under way.
    fn current(&self) -> Option<Arc<View>> {
        let view = self.cluster.views.current()?;
        let entry = view.list.entry(self.node)?;
        let joining = entry.state == State::Joining && entry.memory == self.memory;
        joining.then_some(view)
    }

    fn note(&self, copied: &AtomicU64, said: &AtomicU64, records: usize, started: Moment) {
        let merged = copied.fetch_add(records as u64, Ordering::Relaxed) + records as u64;
        self.cluster.meter.upkeep.join_records.add(records as u64);
        let progress = JoinProgress { wiping: records == 0, merged, expected: None };
        self.cluster.board.note(self.node, |notes| notes.join = Some(progress));
        let elapsed = self.cluster.runtime.clock.now().since(started).as_secs();
        let due = elapsed / SAY_INTERVAL.as_secs();
        if said.fetch_max(due, Ordering::Relaxed) < due {
            tracing::info!(node = %self.node, records = merged, elapsed_s = elapsed, "joining");
        }
    }

    async fn promote(&self) -> bool {
        let clock = &self.cluster.runtime.clock;
        let give_up = clock.now() + PROMOTE_FOR;
        while clock.now() < give_up && self.current().is_some() {
            let change = MemberChange::Promote { node: self.node, memory: self.memory };
            if rounds::change(&self.cluster, Some(change)).await {
                self.cluster.views.want();
                return true;
            }
            let pause = self.cluster.runtime.entropy.jitter(Duration::from_millis(500));
            clock.sleep_until(clock.now() + pause).await;
        }
        // Somebody may have read it as agreed on all the same.
        self.is_member()
    }

    fn is_member(&self) -> bool {
        let view = self.cluster.views.current();
        view.is_some_and(|view| view.list.counts(self.node, Some(self.memory)))
    }
}
