//! The member list: whose answers count. A register like any other, except that it is not gated and counts by itself.
//!
//! [`list`] is the value, [`change`] what may become of it (pure), [`view`] the list as a daemon goes by it, [`board`] what
//! people are told.
//! The protocol's section 2 has the reasoning; `upkeep::membership` does the asking.

pub mod board;
pub mod change;
pub mod list;
pub mod view;

pub use board::{Board, Event, EventKind, JoinProgress, NodeNotes};
pub use list::{Entry, Loss, MemberList, State};
pub use view::{View, Views};
