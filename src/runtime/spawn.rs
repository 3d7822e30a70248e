//! [`Spawn`], the one way to start a background task.

use futures::future::BoxFuture;

/// Starts tasks that run until they end by themselves or the runtime stops.
pub trait Spawn: Send + Sync {
    /// Starts one.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}
