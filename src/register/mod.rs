//! Stub.
pub mod error;
pub use error::RegisterError;
