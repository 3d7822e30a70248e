//! Majorities, and why they are enough.
//!
//! N is odd, and a quorum is `q = N/2 + 1` of the N *configured* nodes, never of those now reachable. Two quorums have
//! at least one node in common, because `2q = N + 1`. So what q nodes took, some node of any other q shows.

pub mod size;
pub mod tally;

pub use size::{ClusterSize, InvalidSize};
pub use tally::{Tally, Verdict};
