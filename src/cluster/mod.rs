//! How the cluster is, for people: what each node is worth now, what may still fail, what has happened.
//!
//! [`status`] is the picture and what follows from it, pure. [`observer`] takes it off the [`Cluster`](crate::driver::Cluster)
//! and tells of changes. Nothing here asks a node or changes anything, and no decision of the protocol rests on it: it is
//! what the connections, the member list and the [`Board`](crate::members::Board) of this daemon say.

pub mod observer;
pub mod status;

pub use crate::members::{Event, EventKind, JoinProgress, State};
pub use observer::Observer;
pub use status::{Connection, DaemonFacts, Figures, NodeStatus, Status, Tolerance};
