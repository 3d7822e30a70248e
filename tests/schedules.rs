//! Directed schedules: for each mechanism that a promise rests on, the few steps that break the promise without it.
//!
//! Each test runs one schedule twice: as the code is, where it must be harmless, and with the mechanism taken out
//! ([`majorityd::mutant`]), where it must break the promise that it names. So the schedules also say what each mechanism
//! is for. Asks for the feature `sim`.
//!
//! What this version does not have yet has no schedule either: that `begin_join` acts once and only for its own id, that
//! it wipes, that joining copies from q other members, bare promises too, the floors in merges, stamps that start anew in
//! a merge, no accepts while joining, `end_join` before `member`, no forgetting while a node joins, a record forgotten
//! only where all members hold it, a node's lag before that, putting a node `out`, and the recovery.
#![cfg(feature = "sim")]

#[path = "schedules/daemons.rs"]
mod daemons;
#[path = "schedules/locks.rs"]
mod locks;
#[path = "schedules/members.rs"]
mod members;
#[path = "schedules/register.rs"]
mod register;
#[path = "schedules/stage.rs"]
mod stage;
#[path = "schedules/table.rs"]
mod table;
#[path = "schedules/time.rs"]
mod time;
