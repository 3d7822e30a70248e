//! [`Sweep`]: how a kind of register is tidied where nobody asks for it any more.
//!
//! What ages in a value is found aged by whoever changes it next. Where nobody does, the record would stay for good: a lock
//! whose holder died, a key that expired. Upkeep finds such records without knowing what they hold, and hands their names to
//! whoever does know.

use futures::future::BoxFuture;

/// Tidies registers of one kind.
pub trait Sweep: Send + Sync {
    /// The letter of the kind's keys ([`crate::node::keyspace`]).
    fn letter(&self) -> char;

    /// Drops from a register what has aged, as the next change would that finds it, and nothing else. Whether that changed
    /// anything; `false` also where it could not be done now: a later walk finds it again.
    fn sweep<'a>(&'a self, name: &'a str) -> BoxFuture<'a, bool>;
}
