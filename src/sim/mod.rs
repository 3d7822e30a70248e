//! A deterministic world for the real code: one thread, virtual time, everything drawn from one seed.
//!
//! The facades, the register, the driver and the membership task run as they are; under them stand the traits of
//! [`crate::runtime`], implemented by a [`world::World`], and embedded nodes behind a [`network::SimNode`] that delays,
//! loses and reorders. What clients do and see is in [`workload`]; [`invariants`] judges it.

pub mod cell;
pub mod cells;
pub mod history;
pub mod invariants;
pub mod linearizable;
pub mod network;
pub mod workload;
pub mod world;
