//! What all streams that the daemon sends have in common: they end at their client's deadline, and with the daemon.

use std::sync::Arc;

use futures::future::{self, BoxFuture, Either};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tonic::{Extensions, Status};

use super::layers::CallTime;
use super::status::{Fault, Repeat};
use crate::lock::LockError;
use crate::register::RegisterError;
use crate::runtime::Clock;

/// When a call came and until when its client listens.
pub fn time_of(extensions: &Extensions, clock: &dyn Clock) -> CallTime {
    let without_layer = || CallTime { arrived: clock.now(), client_deadline: None, stream_deadline: None };
    extensions.get::<CallTime>().copied().unwrap_or_else(without_layer)
}

/// Ends a stream at its client's deadline. Most clients do that by themselves, but not all.
pub fn until_deadline<T: Send + 'static>(
    clock: &Arc<dyn Clock>,
    events: impl Stream<Item = Result<T, Status>> + Send + 'static,
    time: CallTime,
) -> BoxStream<'static, Result<T, Status>> {
    let Some(deadline) = time.stream_deadline else { return events.boxed() };
    let waited = deadline.since(time.arrived);
    let timer = clock.sleep_until(deadline);
    let state = Some((events.boxed(), timer));
    let next = move |state: Option<(BoxStream<'static, _>, BoxFuture<'static, ()>)>| async move {
        let (mut events, timer) = state?;
        match future::select(events.next(), timer).await {
            Either::Left((Some(event), timer)) => Some((event, Some((events, timer)))),
            Either::Left((None, _)) => None,
            Either::Right(_) => {
                let error = RegisterError::DeadlineExceeded { waited };
                Some((Err(failed(&error, Repeat::Harmless)), None))
            }
        }
    };
    futures::stream::unfold(state, next).boxed()
}

/// Ends a stream that has no end of its own when `stopping` turns true, and says that this was why.
pub fn until_stopped<T: Send + 'static>(
    events: impl Stream<Item = Result<T, Status>> + Send + 'static,
    mut stopping: watch::Receiver<bool>,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let stopped = async move {
        // A sender that is gone has stopped too.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let end = futures::stream::once(async { Err(failed(&LockError::ShuttingDown, Repeat::Harmless)) });
    events.take_until(stopped).chain(end)
}

/// The edge is where an error is logged, with all its causes.
pub fn failed(error: &impl Fault, repeat: Repeat) -> Status {
    tracing::debug!(error = error as &dyn std::error::Error, "failed");
    error.status(repeat)
}
