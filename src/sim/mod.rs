//! A deterministic world for the real code: one thread, virtual time, everything drawn from one seed.
//!
//! The facades, the register, the driver and the membership task run as they are. Under them stand the traits of
//! [`crate::runtime`], implemented by a [`world::World`], and embedded nodes, with the Lua that runs in Redis, behind a
//! [`network::SimNode`] that delays, loses and reorders.
//!
//! [`run::run`] is one run of one seed: [`options`] says what the seed decides, [`clients`] what is asked, [`faults`] what
//! goes wrong, and [`invariants`] what must hold nevertheless, judged by a [`judge::Judge`] on what clients were told.
//! `docs/correctness.md` says what that has shown so far.

pub mod cell;
pub mod cells;
pub mod clients;
pub mod consumers;
pub mod daemon;
pub mod faults;
pub mod history;
pub mod host;
pub mod invariants;
pub mod item;
pub mod judge;
pub mod key;
pub mod keys;
pub mod linearizable;
pub mod network;
pub mod operators;
pub mod options;
pub mod producers;
pub mod queues;
pub mod random;
pub mod run;
pub mod story;
pub mod watchers;
pub mod world;
