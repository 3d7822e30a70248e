//! Walks slowly through everything that the members hold and compares: finds what nobody noted as missed, what a join
//! left copied, and what could be forgotten. Protocol, section 7.
//!
//! One member after another shows its keys page by page, and all say which ballot they hold for each. What differs is
//! looked at once more a moment later, since most of it is just being written, and then settled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::rounds;
use super::settling::{Settled, settle};
use crate::driver::Cluster;
use crate::ids::NodeIndex;
use crate::limits;
use crate::members::State;
use crate::node::keyspace::KIND_MEMBERS;
use crate::node::operation::{Answer, Held, Operation, PageRequest, RegisterKey};
use crate::token::Ballot;

/// Keys of one page.
const PAGE_COUNT: usize = 200;
/// What differs is looked at again after so long.
const RECHECK: Duration = Duration::from_secs(1);

/// Settings of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComparingSettings {
    /// Between the end of one walk and the next, on average.
    pub interval: Duration,
    /// Keys a second.
    pub rate: usize,
}

impl Default for ComparingSettings {
    fn default() -> Self {
        Self { interval: limits::COMPARE_INTERVAL, rate: limits::COMPARE_RATE }
    }
}

/// The task.
pub struct Comparing {
    /// The nodes.
    pub cluster: Arc<Cluster>,
    /// How fast, how often.
    pub settings: ComparingSettings,
}

/// What one walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Keys looked at, each once for each member that has it.
    pub keys: u64,
    /// Registers that differed and were mended.
    pub mended: u64,
}

impl Comparing {
    /// Runs for as long as the daemon does.
    pub async fn run(self) {
        let runtime = self.cluster.runtime.clone();
        loop {
            // Drawn from [0, 2 intervals], so that many daemons do not walk at once.
            let pause = runtime.entropy.jitter(self.settings.interval * 2);
            runtime.clock.sleep_until(runtime.clock.now() + pause).await;
            let mut found = Found::default();
            for source in self.cluster.size.indexes() {
                self.walk(source, &mut found).await;
            }
            if found.mended > 0 {
                tracing::info!(keys = found.keys, mended = found.mended, "members were compared");
            }
        }
    }

    async fn walk(&self, source: NodeIndex, found: &mut Found) {
        let mut cursor = PageRequest::START;
        while let Some((keys, next)) = self.keys(source, cursor).await {
            found.keys += keys.len() as u64;
            let clock = self.cluster.runtime.clock.clone();
            let length = Duration::from_secs(1).mul_f64(keys.len() as f64 / self.settings.rate.max(1) as f64);
            let uneven = self.uneven(keys, true).await;
            if !uneven.is_empty() {
                clock.sleep_until(clock.now() + RECHECK).await;
                for key in self.uneven(uneven, false).await {
                    found.mended += u64::from(settle(&self.cluster, &key).await == Settled::Mended);
                }
            }
            cursor = next;
            if cursor == PageRequest::START {
                return;
            }
            clock.sleep_until(clock.now() + length).await;
        }
    }

    /// Keys of a member, and where to go on.
    async fn keys(&self, source: NodeIndex, cursor: Bytes) -> Option<(Vec<RegisterKey>, Bytes)> {
        let view = self.cluster.views.current()?;
        view.list.entry(source).filter(|entry| entry.state == State::Member)?;
        let page = Operation::Page(PageRequest {
            cursor,
            count: PAGE_COUNT,
            bytes: 0,
            recovery: None,
            with_values: false,
            keys: Vec::new(),
        });
        let Some((_, Answer::Page(page))) = rounds::ask_one(&self.cluster, source, &page).await else {
            return None;
        };
        // The list has a keeper of its own.
        let members = |key: &RegisterKey| key.parts().is_some_and(|(kind, _)| kind == KIND_MEMBERS);
        let keys = page.rows.into_iter().map(|(key, _)| key).filter(|key| !members(key)).collect();
        Some((keys, page.cursor))
    }

    /// Those that members do not hold alike. What says nothing on all of them is left to be forgotten.
    async fn uneven(&self, keys: Vec<RegisterKey>, first: bool) -> Vec<RegisterKey> {
        let Some(view) = self.cluster.views.current() else { return Vec::new() };
        let answers = self.cluster.ask_members(&view, &Operation::Ballots { keys: keys.clone() }).await;
        let mut held: BTreeMap<usize, Vec<Option<Held>>> = BTreeMap::new();
        for (_, answer) in answers {
            let Answer::Ballots(all) = answer else { continue };
            all.into_iter().enumerate().for_each(|(at, one)| held.entry(at).or_default().push(one));
        }
        let (now, quorum) = (self.cluster.runtime.clock.now(), self.cluster.size.quorum());
        let mut uneven = Vec::new();
        for (at, key) in keys.into_iter().enumerate() {
            let Some(held) = held.get(&at).filter(|held| held.len() >= quorum) else { continue };
            let ballot = |held: &Option<Held>| held.map_or(Ballot::ZERO, |held| held.ballot);
            let highest = held.iter().map(ballot).max().unwrap_or(Ballot::ZERO);
            let alike = held.iter().all(|held| ballot(held) == highest);
            let uncopied = held.iter().flatten().filter(|held| !held.copied).count();
            if highest != Ballot::ZERO && (!alike || uncopied < quorum) {
                uneven.push(key);
            } else if first && held.iter().flatten().all(|held| !held.listed) {
                self.cluster.idle.add(&key, now);
            }
        }
        uneven
    }
}
