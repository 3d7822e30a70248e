//! [`Tally`]: who has said yes in one round, and who can't any more.

use super::ClusterSize;
use crate::ids::NodeIndex;

/// What a round's answers amount to so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// q nodes said yes.
    Reached,
    /// So many said no, or can't be asked, that q can't come together.
    Impossible,
    /// Both may still happen.
    Pending,
}

/// Counts each node at most once; its first word stands.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    size: ClusterSize,
    yes: u8,
    no: u8,
}

impl Tally {
    /// Nobody has answered.
    pub fn new(size: ClusterSize) -> Self {
        Self { size, yes: 0, no: 0 }
    }

    /// Counts an answer; `false` if this node has been counted already.
    pub fn count(&mut self, node: NodeIndex, yes: bool) -> bool {
        let bit = 1 << node.0;
        if (self.yes | self.no) & bit != 0 {
            return false;
        }
        *if yes { &mut self.yes } else { &mut self.no } |= bit;
        true
    }

    /// How many said yes.
    pub fn yes(&self) -> usize {
        self.yes.count_ones() as usize
    }

    /// How many have not been counted yet.
    pub fn outstanding(&self) -> usize {
        self.size.nodes() - (self.yes | self.no).count_ones() as usize
    }

    /// What this amounts to.
    pub fn verdict(&self) -> Verdict {
        if self.yes() >= self.size.quorum() {
            Verdict::Reached
        } else if self.yes() + self.outstanding() < self.size.quorum() {
            Verdict::Impossible
        } else {
            Verdict::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_of_every_size() {
        for n in [1usize, 3, 5, 7] {
            let size = ClusterSize::new(n).unwrap();
            // Each node: 0 silent, 1 yes, 2 no.
            for case in 0..3usize.pow(n as u32) {
                let words: Vec<usize> = (0..n).map(|i| case / 3usize.pow(i as u32) % 3).collect();
                let mut tally = Tally::new(size);
                for (i, word) in words.iter().enumerate().filter(|(_, w)| **w != 0) {
                    assert!(tally.count(NodeIndex(i as u8), *word == 1));
                    assert!(!tally.count(NodeIndex(i as u8), *word != 1), "the first word stands");
                }
                let yes = words.iter().filter(|w| **w == 1).count();
                let no = words.iter().filter(|w| **w == 2).count();
                let expected = match (yes > n / 2, no > n / 2) {
                    (true, _) => Verdict::Reached,
                    (_, true) => Verdict::Impossible,
                    _ => Verdict::Pending,
                };
                assert_eq!(tally.verdict(), expected, "{words:?}");
            }
        }
    }
}
