//! [`Looker`]: the machine that looks at many registers in one round. Pure.
//!
//! It shows what q nodes hold, all under one list, and decides nothing. Whether that is a committed value, register by
//! register, is the rule of every read ([`super::reader`]); where it is not, or where the look would change something,
//! the register is read by a round of its own.

use std::sync::Arc;

use super::age::Ages;
use super::reader::agree;
use super::{Attempt, Kind, Verdict};
use crate::driver::{Action, Context, Machine, Word};
use crate::ids::NodeIndex;
use crate::mutant::{self, Mutant};
use crate::node::operation::{Answer, Looked, RegisterKey, Shown};
use crate::quorum::{ClusterSize, Tally, Verdict as Count};
use crate::token::Ballot;

/// The machine. See the module.
#[derive(Debug)]
pub struct Looker {
    keys: Arc<[RegisterKey]>,
    size: ClusterSize,
    tally: Tally,
    answers: Vec<Looked>,
}

/// What q nodes hold.
#[derive(Debug)]
pub struct Sight {
    pub(super) size: ClusterSize,
    pub(super) answers: Vec<Looked>,
    /// Nodes that have not answered.
    pub(super) outstanding: usize,
}

impl Looker {
    /// A look at these registers, each named once.
    pub fn new(keys: Arc<[RegisterKey]>, size: ClusterSize) -> Self {
        Self { keys, size, tally: Tally::new(size), answers: Vec::new() }
    }

    fn enough(&mut self) -> Action<Option<Sight>> {
        match self.tally.verdict() {
            Count::Pending if self.tally.yes() > 0 && mutant::is_on(Mutant::ReadsFromOne) => {}
            Count::Pending => return Action::Wait(None),
            Count::Impossible => return Action::Done(None),
            Count::Reached => {}
        }
        let (answers, outstanding) = (std::mem::take(&mut self.answers), self.tally.outstanding());
        Action::Done(Some(Sight { size: self.size, answers, outstanding }))
    }
}

impl Machine for Looker {
    /// `None` without a quorum.
    type Outcome = Option<Sight>;

    fn start(&mut self, _: &Context<'_>) -> Action<Self::Outcome> {
        Action::Look(self.keys.clone())
    }

    fn on_word(&mut self, node: NodeIndex, word: Word, _: &Context<'_>) -> Action<Self::Outcome> {
        match word {
            Word::Answer(Answer::Looked(looked)) if looked.rows.len() == self.keys.len() => {
                if self.tally.count(node, true) {
                    self.answers.push(looked);
                }
            }
            _ => {
                self.tally.count(node, false);
            }
        }
        self.enough()
    }

    fn on_wake(&mut self, _: &Context<'_>) -> Action<Self::Outcome> {
        Action::Done(None)
    }

    fn on_resend(&mut self) {
        if !mutant::is_on(Mutant::MixedLists) {
            self.tally = Tally::new(self.size);
            self.answers.clear();
        }
    }

    fn give_up(&mut self) -> Self::Outcome {
        None
    }
}

impl Sight {
    /// What is to be seen of the register in this place; `None` where a round of its own must say, because a write is half way
    /// or the record can't be read.
    pub fn of<K: Kind>(&self, place: usize) -> Option<Sighted<K>> {
        let rows = || self.answers.iter().map(|looked| (looked.now_us, looked.rows[place].as_ref()));
        let agreement = agree(rows().map(|(_, shown)| shown), self.size);
        let sloppy = mutant::is_on(Mutant::AnswersUnfinished) || mutant::is_on(Mutant::ReadsFromOne);
        if !agreement.committed && !sloppy {
            return None;
        }
        let value = match agreement.highest {
            Some(shown) => K::decode(&shown.record(0).ok()?.value).ok()?,
            None => K::Value::default(),
        };
        let ages = if K::stamps(&value).is_empty() {
            Ages::unasked(self.size)
        } else {
            let of = |(now_us, shown): (u64, Option<&Shown>)| {
                shown.map(|shown| shown.record(now_us).map(|record| record.ages))
            };
            let answers = rows().filter_map(of).collect::<Result<_, _>>().ok()?;
            Ages::of(self.size, answers, self.outstanding)
        };
        Some(Sighted { value, ages })
    }

    /// How many bytes of records a node showed, at most.
    pub fn bytes(&self) -> usize {
        let of = |looked: &Looked| looked.rows.iter().flatten().map(|shown| shown.raw.len()).sum();
        self.answers.iter().map(of).max().unwrap_or(0)
    }
}

/// One register's value, which is committed.
#[derive(Debug)]
pub struct Sighted<K: Kind> {
    value: K::Value,
    ages: Ages,
}

impl<K: Kind> Sighted<K> {
    /// What a change that only looks answers; `None` where it would change something, because something has aged: that takes a
    /// round of its own.
    pub fn answer(&self, change: &K::Change) -> Option<K::Answer> {
        match K::apply(change, &self.value, &Attempt::new(Ballot::ZERO, &self.ages)) {
            Verdict::Unchanged(answer) => Some(answer),
            Verdict::Changed(..) | Verdict::Deferred => None,
        }
    }
}
