//! Directed schedules: for each mechanism that a promise rests on, the few steps that break the promise without it.
//!
//! Each test runs one schedule twice: as the code is, where it must be harmless, and with the mechanism taken out
//! ([`majorityd::mutant`]), where it must break the promise that it names. So the schedules also say what each mechanism
//! is for. Asks for the feature `sim`.
//!
//! What has no schedule: that only the id whose `end_join` succeeded becomes a member; and the lag before a record is
//! forgotten, on which no promise rests.
#![cfg(feature = "sim")]

#[path = "schedules/copying.rs"]
mod copying;
#[path = "schedules/daemons.rs"]
mod daemons;
#[path = "schedules/first_try.rs"]
mod first_try;
#[path = "schedules/forgetting.rs"]
mod forgetting;
#[path = "schedules/handing.rs"]
mod handing;
#[path = "schedules/joining.rs"]
mod joining;
#[path = "schedules/joins.rs"]
mod joins;
#[path = "schedules/keys.rs"]
mod keys;
#[path = "schedules/locks.rs"]
mod locks;
#[path = "schedules/looks.rs"]
mod looks;
#[path = "schedules/members.rs"]
mod members;
#[path = "schedules/queues.rs"]
mod queues;
#[path = "schedules/recovery.rs"]
mod recovery;
#[path = "schedules/register.rs"]
mod register;
#[path = "schedules/stage.rs"]
mod stage;
#[path = "schedules/table.rs"]
mod table;
#[path = "schedules/time.rs"]
mod time;
