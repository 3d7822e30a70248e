//! Operations, batches and replies as MessagePack, the form in which they travel to the script and back.
//!
//! An operation is encoded once and shared by all nodes ([`Encoded`]), so a batch is little more than a copy. Decoding
//! takes any bytes without a panic.

mod decode;
mod encode;

pub use decode::{BatchReply, Malformed, decode, decode_record, show};
pub use encode::{Encoded, encode};
