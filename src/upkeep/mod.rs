//! What keeps the cluster whole while others use it.
//!
//! [`membership`] keeps the member list; [`joining`] brings a node back that lost its memory, [`recovery`] a cluster in
//! which too many did. [`copy`] and [`rounds`] are what they share.

pub mod copy;
pub mod joining;
pub mod membership;
pub mod recovery;
pub mod rounds;
