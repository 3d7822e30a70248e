//! Daemons and real Redis servers: what is promised while nodes crash, freeze, forget, and tell the wrong time.
//!
//! Every test starts its own servers and the built binary. Nothing here is measured: waits are for events, and only end
//! when what they wait for never comes.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

#[path = "redis/access.rs"]
mod access;
#[path = "support/certificates.rs"]
mod certificates;
#[path = "redis/clocks.rs"]
mod clocks;
#[path = "redis/command.rs"]
mod command;
#[path = "redis/contention.rs"]
mod contention;
#[path = "redis/doctor.rs"]
mod doctor;
#[path = "redis/going_away.rs"]
mod going_away;
#[path = "redis/healing.rs"]
mod healing;
#[path = "redis/keys.rs"]
mod keys;
#[path = "redis/keys_history.rs"]
mod keys_history;
#[path = "redis/lifecycle.rs"]
mod lifecycle;
#[path = "redis/nodes_fail.rs"]
mod nodes_fail;
#[path = "redis/queues.rs"]
mod queues;
#[path = "redis/queues_history.rs"]
mod queues_history;
#[path = "redis/secrets.rs"]
mod secrets;
#[path = "redis/supervisor.rs"]
mod supervisor;
#[path = "redis/tracing.rs"]
mod tracing;
#[path = "redis/unfit.rs"]
mod unfit;
