//! Walks slowly through everything that the members hold and compares: finds what nobody noted as missed, what a join
//! left copied, what has aged and nobody asks for, and what could be forgotten. Protocol, section 7.
//!
//! One member after another shows its keys page by page, and all say which ballot they hold for each. What differs is
//! looked at once more a moment later, since most of it is just being written, and then settled. What is guarded by
//! something that has aged on q nodes is handed to who tidies that kind ([`crate::register::Sweep`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Sweeps;
use super::rounds;
use super::settling::{Settled, settle};
use crate::driver::Cluster;
use crate::ids::NodeIndex;
use crate::limits;
use crate::members::State;
use crate::mutant::{self, Mutant};
use crate::node::keyspace::KIND_MEMBERS;
use crate::node::operation::{Answer, Held, Operation, PageRequest, RegisterKey};
use crate::runtime::Moment;
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
    /// Who tidies what has aged.
    pub sweeps: Sweeps,
}

/// What one walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Keys looked at, each once for each member that has it.
    pub keys: u64,
    /// Registers that differed and were mended.
    pub mended: u64,
    /// Registers that something had aged in, and that were tidied.
    pub swept: u64,
}

/// What the answers of members say of one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nothing to do.
    Fine,
    /// Members do not hold it alike, or too few by a round of their own.
    Uneven,
    /// It says nothing.
    Silent,
    /// What guards it has aged.
    Ripe,
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
            let meter = &self.cluster.meter.upkeep;
            meter.walks.one();
            if found.mended > 0 || found.swept > 0 {
                let Found { keys, mended, swept } = found;
                tracing::info!(keys, mended, swept, "members were compared");
            }
        }
    }

    async fn walk(&self, source: NodeIndex, found: &mut Found) {
        let mut cursor = PageRequest::START;
        while let Some((keys, next)) = self.keys(source, cursor).await {
            found.keys += keys.len() as u64;
            let meter = &self.cluster.meter.upkeep;
            meter.compared.add(keys.len() as u64);
            let began = self.now();
            let count = keys.len();
            let looks = self.look(keys).await;
            let of = |wanted| {
                looks.iter().filter(move |(_, look)| *look == wanted).map(|(key, _)| key.clone()).collect()
            };
            let (uneven, ripe): (Vec<_>, Vec<_>) = (of(Look::Uneven), of(Look::Ripe));
            if !uneven.is_empty() {
                self.rest(RECHECK).await;
                for (key, look) in self.look(uneven).await {
                    let mended = look == Look::Uneven && settle(&self.cluster, &key).await == Settled::Mended;
                    found.mended += u64::from(mended);
                    meter.mended.add(u64::from(mended));
                }
            }
            for (key, _) in looks.iter().filter(|(_, look)| *look == Look::Silent) {
                self.cluster.idle.found(key, began);
            }
            for key in ripe {
                let swept = u64::from(self.sweep(&key).await);
                found.swept += swept;
                meter.swept.add(swept);
                self.rest(self.time_of(1)).await;
            }
            cursor = next;
            if cursor == PageRequest::START {
                return;
            }
            self.rest(self.time_of(count)).await;
        }
    }

    /// Has a register tidied, if its kind has somebody for that.
    async fn sweep(&self, key: &RegisterKey) -> bool {
        let Some((kind, name)) = key.parts() else { return false };
        let sweep = self.sweeps.iter().find(|sweep| sweep.letter() == kind);
        match sweep.filter(|_| !mutant::is_on(Mutant::NeverSwept)) {
            Some(sweep) => sweep.sweep(name).await,
            None => false,
        }
    }

    /// How long so many keys may take.
    fn time_of(&self, keys: usize) -> Duration {
        Duration::from_secs(1).mul_f64(keys as f64 / self.settings.rate.max(1) as f64)
    }

    async fn rest(&self, length: Duration) {
        self.cluster.runtime.clock.sleep_until(self.now() + length).await;
    }

    fn now(&self) -> Moment {
        self.cluster.runtime.clock.now()
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

    /// What members say of registers; nothing of those on which fewer than q have a word.
    async fn look(&self, mut keys: Vec<RegisterKey>) -> Vec<(RegisterKey, Look)> {
        let mut looks = Vec::with_capacity(keys.len());
        while !keys.is_empty() {
            // Of large records members show some at a time.
            let (some, shown) = self.look_at_some(&keys).await;
            looks.extend(some);
            keys.drain(..shown);
        }
        looks
    }

    /// The same of the first keys, and of how many.
    async fn look_at_some(&self, keys: &[RegisterKey]) -> (Vec<(RegisterKey, Look)>, usize) {
        let Some(view) = self.cluster.views.current() else { return (Vec::new(), keys.len()) };
        let answers = self.cluster.ask_members(&view, &Operation::Ballots { keys: keys.to_vec() }).await;
        let mut shown = keys.len();
        let mut held: BTreeMap<usize, Vec<Option<Held>>> = BTreeMap::new();
        for (_, answer) in answers {
            let Answer::Ballots(all) = answer else { continue };
            shown = shown.min(all.len().max(1));
            all.into_iter().enumerate().for_each(|(at, one)| held.entry(at).or_default().push(one));
        }
        let quorum = self.cluster.size.quorum();
        let heard = keys[..shown].iter().enumerate().filter_map(|(at, key)| {
            let held = held.get(&at).filter(|held| held.len() >= quorum)?;
            Some((key.clone(), look(held, quorum)))
        });
        (heard.collect(), shown)
    }
}

/// Judges what q members or more hold of one register.
fn look(held: &[Option<Held>], quorum: usize) -> Look {
    let ballot = |held: &Option<Held>| held.map_or(Ballot::ZERO, |held| held.ballot);
    let highest = held.iter().map(ballot).max().unwrap_or(Ballot::ZERO);
    let alike = held.iter().all(|held| ballot(held) == highest);
    let count = |is: fn(&Held) -> bool| held.iter().flatten().filter(|held| is(held)).count();
    if highest != Ballot::ZERO && (!alike || count(|held| !held.copied) < quorum) {
        Look::Uneven
    } else if count(|held| held.listed) == 0 {
        // What is remembered for a while is left alone until that is over.
        let waits = count(|held| held.guarded) > 0 && count(|held| held.ripe) < quorum;
        if waits { Look::Fine } else { Look::Silent }
    } else if count(|held| held.ripe) >= quorum {
        Look::Ripe
    } else {
        Look::Fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProposerId;
    use crate::token::Token;

    /// What a member holds, in words: the ballot, and `c` for copied, `l` for listed, `r` for ripe, `g` for guarded; `-` for
    /// nothing.
    fn held(word: &str) -> Option<Held> {
        let (ballot, flags) = word.split_at(1);
        let token = ballot.parse().ok()?;
        let ballot = match token {
            0 => Ballot::ZERO,
            token => Ballot { token: Token::new(token).unwrap(), proposer: ProposerId(1) },
        };
        let has = |flag| flags.contains(flag);
        let (copied, listed, ripe, guarded) = (has('c'), has('l'), has('r'), has('g'));
        Some(Held { ballot, promise: ballot, copied, listed, ripe, guarded })
    }

    #[test]
    fn what_is_uneven_is_settled_before_anything_is_swept_or_forgotten() {
        for (words, expected) in [
            ("5l 5l 5l", Look::Fine),
            ("5l 5l", Look::Fine),
            ("5 5 5", Look::Silent),
            ("0 0 -", Look::Silent),
            ("- - -", Look::Silent),
            ("5l 5l 6l", Look::Uneven),
            ("5l 5l -", Look::Uneven),
            ("5lc 5lc 5l", Look::Uneven),
            ("5lc 5l 5l", Look::Fine),
            // By the clocks of q nodes.
            ("5lr 5l 5l", Look::Fine),
            ("5lr 5lr 5l", Look::Ripe),
            ("5lr 5lr", Look::Ripe),
            ("5lr 5lrc 5l", Look::Ripe),
            // What is not listed is forgotten when it is ripe, and remembered until then.
            ("5r 5r 5r", Look::Silent),
            ("5r 5r 5g", Look::Silent),
            ("5r 5g 5g", Look::Fine),
            ("5g 5g 5g", Look::Fine),
            // It is settled first.
            ("5lr 5lr 6l", Look::Uneven),
            ("5lrc 5lrc 5lr", Look::Uneven),
        ] {
            let held: Vec<_> = words.split_whitespace().map(held).collect();
            assert_eq!(look(&held, 2), expected, "{words}");
        }
    }
}
