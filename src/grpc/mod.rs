//! wip
pub mod convert;
pub mod status;
