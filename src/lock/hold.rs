//! `Hold`: acquires and keeps extending for as long as the client reads, and says so when it can't.

use std::sync::Arc;
use std::time::Duration;

use futures::channel::{mpsc, oneshot};
use futures::future::{self, Either};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};

use super::change::LockChange;
use super::locks::{Inner, lost_reason};
use super::{Acquisition, DisconnectPolicy, HoldEvent, HoldRequest, Lease, LockError, LostReason};
use crate::runtime::Moment;

/// A lease is extended when this part of it has passed, and then there is time for several tries.
const EXTEND_AFTER: u32 = 3;
/// Pause between tries while extending fails.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Events that wait for a slow reader. Past this it is not reading, and the lease is no longer extended.
const EVENTS_MAX: usize = 16;

type Event = Result<HoldEvent, LockError>;

/// Starts the task that holds, and returns its stream. Dropping the stream is the client's going away.
pub(super) fn hold(inner: Arc<Inner>, request: HoldRequest, deadline: Moment) -> BoxStream<'static, Event> {
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    let (client, gone) = oneshot::channel();
    let runtime = inner.runtime().clone();
    let task = async move {
        let mut holding = Holding { inner, request, events, gone };
        holding.run(deadline).await;
    };
    runtime.spawner.spawn(task.boxed());
    Events { receiver, _client: client }.boxed()
}

/// What the client reads. Its end tells the task that the client is gone.
struct Events {
    receiver: mpsc::Receiver<Event>,
    _client: oneshot::Sender<()>,
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Event>> {
        self.receiver.poll_next_unpin(context)
    }
}

struct Holding {
    inner: Arc<Inner>,
    request: HoldRequest,
    events: mpsc::Sender<Event>,
    /// Completes when the client is gone.
    gone: oneshot::Receiver<()>,
}

impl Holding {
    async fn run(&mut self, deadline: Moment) {
        let inner = self.inner.clone();
        let mut events = self.events.clone();
        let mut positions = |position| {
            // A position that nobody reads in time is not missed: the next one says more.
            let _ = events.try_send(Ok(HoldEvent::Waiting { position }));
        };
        let acquire = inner.acquire(self.request.acquire.clone(), deadline, Some(&mut positions));
        // Dropping the acquire takes it back, or gives the lease back.
        let acquired = match future::select(acquire, &mut self.gone).await {
            Either::Left((acquired, _)) => acquired,
            Either::Right(_) => return,
        };
        match acquired {
            Ok(Acquisition::Acquired(lease)) => self.hold(lease).await,
            Ok(Acquisition::Contended(contention)) => self.say_last(Ok(HoldEvent::TimedOut(contention))),
            Err(error) => self.say_last(Err(error)),
        }
    }

    /// `false` when the reader is too slow.
    fn say(&mut self, event: Event) -> bool {
        self.events.try_send(event).is_ok()
    }

    /// For the last event, which there is always room for: it goes past the channel's bound if need be.
    fn say_last(&mut self, event: Event) {
        // Every clone of the sender brings one more slot, so this fails only where the reader is gone.
        let _ = self.events.clone().try_send(event);
    }

    async fn hold(&mut self, mut lease: Lease) {
        let inner = self.inner.clone();
        let _held = inner.meter().holds.enter();
        let limit = self.request.hold_limit.map_or(Moment::FAR, |limit| self.inner.now() + limit);
        if !self.say(Ok(HoldEvent::Acquired(lease.clone()))) {
            // Nobody read even the positions; the lease must not stand for one who does not listen.
            return self.end(&lease).await;
        }
        let mut next = self.next_extension(&lease);
        loop {
            match self.pause(next.min(limit).min(lease.valid_until)).await {
                Interruption::ClientGone => return self.end(&lease).await,
                Interruption::Closing => return self.stop(&lease),
                Interruption::None if self.inner.now() >= limit => return self.reach_limit(&lease).await,
                Interruption::None => {}
            }
            if self.inner.now() >= lease.valid_until {
                inner.meter().leases.expired.one();
                self.say_last(Ok(HoldEvent::Lost(LostReason::Expired)));
                return;
            }
            match self.extend(&lease).await {
                Some(Ok(extended)) => {
                    lease = extended;
                    next = self.next_extension(&lease);
                }
                Some(Err(lost)) => {
                    self.say_last(Ok(HoldEvent::Lost(lost)));
                    return;
                }
                None => next = self.inner.now() + self.inner.runtime().entropy.jitter(RETRY_PAUSE),
            }
        }
    }

    fn next_extension(&self, lease: &Lease) -> Moment {
        let after = lease.ttl / EXTEND_AFTER;
        self.inner.now() + after - self.inner.runtime().entropy.jitter(after / 10)
    }

    /// One try. `None` when it failed but the lease is still good, or the client does not read.
    async fn extend(&mut self, lease: &Lease) -> Option<Result<Lease, LostReason>> {
        // A full channel means that the client has stopped reading: what it does not hear of must run out.
        let ready = future::poll_fn(|context| self.events.poll_ready(context)).now_or_never();
        if !matches!(ready, Some(Ok(()))) {
            return None;
        }
        let deadline = lease.valid_until.min(self.inner.now() + lease.ttl / EXTEND_AFTER);
        match self.inner.extend(&lease.name, lease.lease_id, None, deadline).await {
            Ok(Ok(extended)) => {
                self.say(Ok(HoldEvent::Extended(extended.clone())));
                Some(Ok(extended))
            }
            Ok(Err(lost)) => Some(Err(lost_reason(lease.token, &lost))),
            Err(error) => {
                let remaining = lease.valid_until.since(self.inner.now());
                tracing::warn!(lock = %lease.name, ?remaining, %error, "a held lock can't be extended at the moment");
                self.inner.meter().jeopardies.one();
                self.say(Ok(HoldEvent::Jeopardy { remaining }));
                None
            }
        }
    }

    async fn pause(&mut self, until: Moment) -> Interruption {
        let closed = self.inner.closed.listen();
        if self.inner.is_closing() {
            return Interruption::Closing;
        }
        let timer = self.inner.runtime().clock.sleep_until(until);
        match future::select(&mut self.gone, future::select(timer, closed)).await {
            Either::Left(_) => Interruption::ClientGone,
            Either::Right((Either::Left(_), _)) => Interruption::None,
            Either::Right((Either::Right(_), _)) => Interruption::Closing,
        }
    }

    /// The daemon stops: the lease stays, and another daemon can extend it.
    fn stop(&mut self, lease: &Lease) {
        let remaining = lease.valid_until.since(self.inner.now());
        self.say_last(Ok(HoldEvent::Ended { remaining }));
    }

    async fn reach_limit(&mut self, lease: &Lease) {
        self.end(lease).await;
        let remaining = match self.request.disconnect {
            DisconnectPolicy::Keep => lease.valid_until.since(self.inner.now()),
            DisconnectPolicy::Release => Duration::ZERO,
        };
        self.say_last(Ok(HoldEvent::Ended { remaining }));
    }

    /// The holding is over: releases the lease if that was asked for.
    async fn end(&mut self, lease: &Lease) {
        if self.request.disconnect == DisconnectPolicy::Keep {
            return;
        }
        let grace = self.inner.settings.offer_grace;
        let change = LockChange::Release { lease_id: lease.lease_id, grace };
        if let Err(error) = self.inner.end(&lease.name, change, lease.valid_until).await {
            tracing::debug!(lock = %lease.name, %error, "a lock could not be released; its lease will run out");
        }
    }
}

enum Interruption {
    None,
    ClientGone,
    Closing,
}
