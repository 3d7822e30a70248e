//! [`ClusterSize`]: N and q.

use crate::ids::NodeIndex;
use crate::limits;
use crate::mutant::{self, Mutant};

/// The configured number of nodes: 1, 3, 5 or 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterSize(u8);

/// A number of nodes that no cluster may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} nodes are configured; the number must be 1, 3, 5 or 7, so that two majorities always meet")]
pub struct InvalidSize(pub usize);

impl ClusterSize {
    /// Checks the number of nodes.
    ///
    /// # Errors
    /// [`InvalidSize`] for 0, an even number, or more than [`limits::NODES_MAX`].
    pub fn new(nodes: usize) -> Result<Self, InvalidSize> {
        if nodes.is_multiple_of(2) || nodes > limits::NODES_MAX {
            return Err(InvalidSize(nodes));
        }
        Ok(Self(nodes as u8))
    }

    /// N.
    pub fn nodes(self) -> usize {
        usize::from(self.0)
    }

    /// q = N/2 + 1.
    pub fn quorum(self) -> usize {
        if mutant::is_on(Mutant::SmallQuorum) {
            return (self.nodes() / 2).max(1);
        }
        self.nodes() / 2 + 1
    }

    /// All indexes, in order.
    pub fn indexes(self) -> impl Iterator<Item = NodeIndex> {
        (0..self.0).map(NodeIndex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_quorums_meet() {
        for n in [1, 3, 5, 7] {
            let size = ClusterSize::new(n).unwrap();
            assert!(2 * size.quorum() > n);
            assert!(2 * (size.quorum() - 1) <= n, "q is the smallest such number");
        }
    }

    #[test]
    fn other_sizes_are_refused() {
        for n in [0, 2, 4, 6, 8, 9, 300] {
            assert_eq!(ClusterSize::new(n), Err(InvalidSize(n)));
        }
    }
}
