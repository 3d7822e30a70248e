//! [`SortedSet`]: members with scores, ordered by both, as in Redis.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SortedSet {
    scores: BTreeMap<Bytes, i64>,
    order: BTreeSet<(i64, Bytes)>,
}

impl SortedSet {
    /// Adds a member, or gives it another score. Whether it is new.
    pub fn insert(&mut self, name: Bytes, score: i64) -> bool {
        let before = self.scores.insert(name.clone(), score);
        if let Some(before) = before {
            self.order.remove(&(before, name.clone()));
        }
        self.order.insert((score, name));
        before.is_none()
    }

    /// Removes a member. Whether it was there.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        match self.scores.remove_entry(name) {
            Some((name, score)) => self.order.remove(&(score, name)),
            None => false,
        }
    }

    /// By score, then by name.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &Bytes)> {
        self.order.iter().map(|(score, name)| (*score, name))
    }

    /// By name.
    pub fn names(&self) -> impl Iterator<Item = &Bytes> {
        self.scores.keys()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.scores.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }
}

impl<B: Into<Bytes>> FromIterator<B> for SortedSet {
    /// All with the score 0.
    fn from_iter<I: IntoIterator<Item = B>>(names: I) -> Self {
        let mut set = Self::default();
        for name in names {
            set.insert(name.into(), 0);
        }
        set
    }
}
