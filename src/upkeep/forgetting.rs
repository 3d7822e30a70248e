//! Forgets registers that say nothing, so that memory follows what is alive. Protocol, section 5.
//!
//! One round sees that all members hold the same ballot, q of them not by a copy; not sooner than a lag later, and under
//! the same list, each removes the record where it is still exactly that, under its floor. Never while a node joins.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::driver::Cluster;
use crate::limits::FORGET_LAG;
use crate::members::{State, View};
use crate::mutant::{self, Mutant};
use crate::node::operation::{Answer, Forgotten, Held, Operation, RegisterKey};
use crate::runtime::Moment;
use crate::token::{Ballot, Token};

/// Between two looks for what can go.
const INTERVAL: Duration = Duration::from_millis(250);
/// Registers in one round: some milliseconds of a node's time.
const BATCH: usize = 500;
/// Registers a second, at most.
const RATE: usize = 20_000;

/// The task.
pub struct Forgetting {
    cluster: Arc<Cluster>,
    /// What was seen, when, and under which list.
    seen: VecDeque<(Moment, Ballot, Vec<Forgotten>)>,
}

impl Forgetting {
    /// A task for this cluster.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, seen: VecDeque::new() }
    }

    /// Runs for as long as the daemon does.
    pub async fn run(mut self) {
        let clock = self.cluster.runtime.clock.clone();
        loop {
            clock.sleep_until(clock.now() + INTERVAL).await;
            let most = RATE * INTERVAL.as_millis() as usize / 1_000;
            let mut keys = self.cluster.idle.take(clock.now(), FORGET_LAG, most);
            while !keys.is_empty() {
                let rest = keys.split_off(keys.len().min(BATCH));
                self.see(keys).await;
                keys = rest;
            }
            while self.seen.front().is_some_and(|(at, ..)| clock.now().since(*at) >= FORGET_LAG) {
                if let Some((_, list, records)) = self.seen.pop_front() {
                    self.forget(list, records).await;
                }
            }
        }
    }

    /// The list, if one may forget under it.
    fn view(&self) -> Option<Arc<View>> {
        let view = self.cluster.views.current()?;
        let joining = view.list.entries.iter().any(|entry| entry.state == State::Joining);
        (!joining || mutant::is_on(Mutant::ForgottenWhileJoining)).then_some(view)
    }

    async fn see(&mut self, mut keys: Vec<RegisterKey>) {
        let Some(view) = self.view() else { return self.put_back(&keys) };
        let members = view.list.entries.iter().filter(|entry| entry.state == State::Member).count();
        let answers = self.cluster.ask_members(&view, &Operation::Ballots { keys: keys.clone() }).await;
        let held: Vec<Vec<Option<Held>>> = answers
            .into_iter()
            .filter_map(|(_, answer)| match answer {
                Answer::Ballots(held) => Some(held),
                _ => None,
            })
            .collect();
        let by_quorum = mutant::is_on(Mutant::ForgottenByQuorum) && held.len() >= self.cluster.size.quorum();
        if held.len() < members && !by_quorum {
            return self.put_back(&keys);
        }
        // Of large records members show some at a time; those are in use again, and so may others be.
        let shown = held.iter().map(Vec::len).min().unwrap_or(0).min(keys.len());
        self.put_back(&keys.split_off(shown));
        let quorum = self.cluster.size.quorum();
        let mut records = Vec::new();
        for (at, key) in keys.into_iter().enumerate() {
            if is_kept(held.iter().map(|held| held[at])) {
                self.put_back(&[key]);
                continue;
            }
            // Otherwise it is in use again, or uneven: then comparison settles it and brings it here once more.
            if let Some((ballot, promise)) = says_nothing(held.iter().map(|held| held[at]), quorum) {
                records.push(Forgotten { key, ballot, promise });
            }
        }
        if !records.is_empty() {
            self.seen.push_back((self.cluster.runtime.clock.now(), view.vid, records));
        }
    }

    async fn forget(&mut self, list: Ballot, records: Vec<Forgotten>) {
        let keys =
            |records: &[Forgotten]| records.iter().map(|record| record.key.clone()).collect::<Vec<_>>();
        match self.view().filter(|view| view.vid == list) {
            Some(view) => {
                let (count, all) = (records.len(), keys(&records));
                let answers = self.cluster.ask_members(&view, &Operation::Forget { records }).await;
                let gone = answers.iter().map(|(_, answer)| match answer {
                    Answer::Forgotten(gone) => *gone,
                    _ => 0,
                });
                let gone = gone.collect::<Vec<u64>>();
                // Each member says how many it had; the one with the most had nearly all.
                self.cluster.meter.upkeep.forgotten.add(gone.iter().copied().max().unwrap_or(0));
                tracing::debug!(count, ?gone, "registers that say nothing were forgotten");
                if gone.iter().all(|gone| *gone == 0) {
                    self.put_back(&all);
                }
            }
            // Seen under another list: once more.
            None => self.put_back(&keys(&records)),
        }
    }

    fn put_back(&self, keys: &[RegisterKey]) {
        let now = self.cluster.runtime.clock.now();
        keys.iter().for_each(|key| self.cluster.idle.add(key, now));
    }
}

/// Whether it says nothing but is to be remembered for a while, by the clock of a node.
fn is_kept(held: impl Iterator<Item = Option<Held>> + Clone) -> bool {
    let mut held = held.flatten();
    !mutant::is_on(Mutant::DoneForgottenEarly) && held.any(|held| held.guarded && !held.listed)
}

/// The ballot that all hold, and the highest token promised on it, if the register says nothing.
fn says_nothing(held: impl Iterator<Item = Option<Held>> + Clone, quorum: usize) -> Option<(Ballot, Token)> {
    let ballot = |held: &Option<Held>| held.map_or(Ballot::ZERO, |held| held.ballot);
    let first = held.clone().map(|held| ballot(&held)).next()?;
    let same = held.clone().all(|held| ballot(&held) == first && !held.is_some_and(|held| held.listed));
    // A bare promise is no value that anybody could have been told.
    let uncopied = held.clone().flatten().filter(|held| !held.copied).count();
    let there = held.clone().any(|held| held.is_some());
    // What was to be remembered has aged on q nodes that have seen it pass.
    let ripe = held.clone().flatten().filter(|held| held.ripe).count();
    let aged = held.clone().flatten().all(|held| !held.ripe && !held.guarded) || ripe >= quorum;
    let aged = aged || mutant::is_on(Mutant::DoneForgottenEarly);
    let promise = held.flatten().map(|held| held.promise.token).max()?;
    (same && there && aged && (uncopied >= quorum || first == Ballot::ZERO)).then_some((first, promise))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProposerId;

    fn held(token: u64, promise: u64, copied: bool, listed: bool) -> Option<Held> {
        let ballot = |token| Ballot {
            token: Token::new(token).unwrap(),
            proposer: if token == 0 { Ballot::ZERO.proposer } else { ProposerId(1) },
        };
        let (ballot, promise) = (ballot(token), ballot(promise));
        Some(Held { ballot, promise, copied, listed, ripe: false, guarded: false })
    }

    #[test]
    fn only_what_all_hold_alike_and_q_by_a_round_says_nothing() {
        let plain = held(5, 5, false, false);
        let copied = held(5, 5, true, false);
        let guarded = plain.map(|held| Held { guarded: true, ..held });
        let ripe = plain.map(|held| Held { ripe: true, ..held });
        for (records, expected) in [
            (vec![plain, plain, plain], Some(5)),
            (vec![plain, plain, held(5, 9, false, false)], Some(9)),
            (vec![plain, plain, copied], Some(5)),
            (vec![plain, copied, copied], None),
            (vec![plain, plain, held(6, 6, false, false)], None),
            (vec![plain, plain, None], None),
            (vec![plain, plain, held(5, 5, false, true)], None),
            (vec![None, None, None], None),
            (vec![held(0, 4, false, false), None, None], Some(4)),
            (vec![held(0, 4, true, false), held(0, 6, true, false), None], Some(6)),
            (vec![held(0, 4, false, false), None, plain], None),
            // Remembered for a while.
            (vec![guarded, guarded, guarded], None),
            (vec![ripe, guarded, guarded], None),
            (vec![ripe, ripe, guarded], Some(5)),
            (vec![ripe, ripe, ripe], Some(5)),
        ] {
            let found = says_nothing(records.iter().copied(), 2).map(|(_, promise)| promise.get());
            assert_eq!(found, expected, "{records:?}");
        }
    }
}
