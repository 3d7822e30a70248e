//! `Consume`: items as they come, for as long as the consumer reads, with their leases extended meanwhile.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::channel::{mpsc, oneshot};
use futures::future::{self, BoxFuture, OptionFuture};
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, Stream, StreamExt, select_biased};

use super::queues::Inner;
use super::{
    ConsumeCommand, ConsumeEvent, ConsumeRequest, Extended, Leased, Nack, QueueError, Reserved, Settled,
};
use crate::ids::{ItemId, LeaseId};
use crate::runtime::Moment;

/// A lease is extended when this part of it has passed, and then there is time for several tries.
const EXTEND_AFTER: u32 = 3;
/// Pause between tries while extending fails.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long an ack or a nack is tried. Past this its consumer is told what is certain.
const SETTLE_FOR: Duration = Duration::from_secs(10);

type Event = Result<ConsumeEvent, QueueError>;

/// Starts the task that consumes, and returns its stream. Dropping the stream is the client's going away.
pub(super) fn consume(
    inner: Arc<Inner>,
    request: ConsumeRequest,
    commands: BoxStream<'static, ConsumeCommand>,
) -> BoxStream<'static, Event> {
    // Room for all that can be on its way: past this the client does not read.
    let (events, receiver) = mpsc::channel(2 * request.max_in_flight);
    let (client, gone) = oneshot::channel();
    let runtime = inner.runtime().clone();
    let task = async move {
        let mut consuming =
            Consuming { inner, request, events, in_flight: BTreeMap::new(), work: FuturesUnordered::new() };
        consuming.run(commands, gone).await;
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

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.receiver.poll_next_unpin(context)
    }
}

struct Consuming {
    inner: Arc<Inner>,
    request: ConsumeRequest,
    events: mpsc::Sender<Event>,
    /// Leased, and neither acked nor nacked.
    in_flight: BTreeMap<ItemId, Flight>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
}

/// A lease that is kept up.
struct Flight {
    lease_id: LeaseId,
    valid_until: Moment,
    /// When it is extended; [`Moment::FAR`] while that is under way.
    next: Moment,
}

/// What has come of something that was under way.
enum Done {
    Settled(Leased, Result<Settled, QueueError>),
    Extended(Leased, Result<Extended, QueueError>),
}

/// Whether the stream goes on.
enum Next {
    GoesOn,
    Ends,
}

impl Consuming {
    async fn run(&mut self, commands: BoxStream<'static, ConsumeCommand>, mut gone: oneshot::Receiver<()>) {
        let (inner, request) = (self.inner.clone(), self.request.clone());
        let mut commands = commands.fuse();
        let mut reserving: Option<BoxFuture<'_, Result<Vec<Reserved>, QueueError>>> = None;
        let mut open = true;
        loop {
            if inner.is_closing() {
                return self.say_last(Err(QueueError::ShuttingDown));
            }
            if !open && self.work.is_empty() {
                return;
            }
            let wanted = request.max_in_flight.saturating_sub(self.in_flight.len());
            if open && wanted > 0 && reserving.is_none() && self.is_read() {
                let items =
                    inner.wait_for_items(&request.queue, wanted, request.lease_ttl, Moment::FAR, Moment::FAR);
                reserving = Some(items.boxed());
            }
            let next = self.next_extension();
            let mut timer = inner.runtime().clock.sleep_until(next).fuse();
            let closed = inner.closed.listen();
            // The order is that of a simulation, too, and so must not be drawn.
            let step = select_biased! {
                _ = (&mut gone).fuse() => Next::Ends,
                () = closed.fuse() => Next::GoesOn,
                done = self.work.select_next_some() => self.on_done(done).await,
                command = commands.next() => match command {
                    Some(command) => self.on_command(command),
                    None => {
                        open = false;
                        reserving = None;
                        Next::GoesOn
                    }
                },
                reserved = OptionFuture::from(reserving.as_mut()).map(wait_if_none).flatten() => {
                    reserving = None;
                    self.on_reserved(reserved).await
                }
                () = timer => self.on_time(),
            };
            if let Next::Ends = step {
                return;
            }
        }
    }

    /// Whether there is room for another event: the client reads.
    fn is_read(&mut self) -> bool {
        let ready = future::poll_fn(|context| self.events.poll_ready(context)).now_or_never();
        matches!(ready, Some(Ok(())))
    }

    /// Waits until there is room, for a client that does not read until the daemon shuts down.
    async fn say(&mut self, event: ConsumeEvent) -> Next {
        let inner = self.inner.clone();
        let closed = inner.closed.listen();
        let closing = async {
            if !inner.is_closing() {
                closed.await;
            }
        };
        let mut closing = pin!(closing.fuse());
        let mut room = future::poll_fn(|context| self.events.poll_ready(context)).fuse();
        let room = select_biased! {
            room = room => Some(room),
            () = closing => None,
        };
        match room {
            Some(Ok(())) if self.events.start_send(Ok(event)).is_ok() => Next::GoesOn,
            Some(_) => Next::Ends,
            None => {
                self.say_last(Err(QueueError::ShuttingDown));
                Next::Ends
            }
        }
    }

    /// For the last event, which there is always room for: it goes past the channel's bound if need be.
    fn say_last(&mut self, event: Event) {
        // Every clone of the sender brings one more slot, so this fails only where the reader is gone.
        let _ = self.events.clone().try_send(event);
    }

    fn next_extension(&self) -> Moment {
        let ends = self.in_flight.values().map(|flight| flight.next.min(flight.valid_until));
        ends.min().unwrap_or(Moment::FAR)
    }

    async fn on_reserved(&mut self, reserved: Result<Vec<Reserved>, QueueError>) -> Next {
        let items = match reserved {
            Ok(items) => items,
            Err(error) => {
                self.say_last(Err(error));
                return Next::Ends;
            }
        };
        let mut items = items.into_iter();
        while let Some(item) = items.next() {
            let flight = Flight {
                lease_id: item.lease_id,
                valid_until: item.valid_until,
                next: self.time_to_extend(item.ttl),
            };
            self.in_flight.insert(item.id.clone(), flight);
            let lease = Leased { id: item.id.clone(), lease_id: item.lease_id };
            if let Next::Ends = self.say(ConsumeEvent::Item(item)).await {
                // Nobody saw it, nor the rest.
                let rest = items.map(|item| Leased { id: item.id, lease_id: item.lease_id });
                for Leased { id, lease_id } in std::iter::once(lease).chain(rest) {
                    self.inner.give_back(&self.request.queue, &id, lease_id);
                }
                return Next::Ends;
            }
        }
        Next::GoesOn
    }

    fn time_to_extend(&self, ttl: Duration) -> Moment {
        let after = ttl / EXTEND_AFTER;
        self.inner.now() + after - self.inner.runtime().entropy.jitter(after / 10)
    }

    fn on_command(&mut self, command: ConsumeCommand) -> Next {
        let (inner, queue) = (self.inner.clone(), self.request.queue.clone());
        let lease = match &command {
            ConsumeCommand::Ack(lease) | ConsumeCommand::Nack(Nack { lease, .. }) => lease.clone(),
        };
        if self.in_flight.get(&lease.id).is_some_and(|flight| flight.lease_id == lease.lease_id) {
            self.in_flight.remove(&lease.id);
        }
        let deadline = self.inner.now() + SETTLE_FOR;
        let settle = async move {
            let result = match command {
                ConsumeCommand::Ack(lease) => inner.ack(&queue, &lease, deadline).await,
                ConsumeCommand::Nack(nack) => inner.nack(&queue, nack, deadline).await,
            };
            Done::Settled(lease, result)
        };
        self.work.push(settle.boxed());
        Next::GoesOn
    }

    async fn on_done(&mut self, done: Done) -> Next {
        match done {
            Done::Settled(lease, result) => self.say(ConsumeEvent::Settled { lease, result }).await,
            Done::Extended(lease, result) => {
                let Some(flight) = self.in_flight.get_mut(&lease.id) else { return Next::GoesOn };
                if flight.lease_id != lease.lease_id {
                    return Next::GoesOn;
                }
                match result {
                    Ok(Extended::Until { ttl, valid_until }) => {
                        flight.valid_until = valid_until;
                        let next = self.time_to_extend(ttl);
                        if let Some(flight) = self.in_flight.get_mut(&lease.id) {
                            flight.next = next;
                        }
                        Next::GoesOn
                    }
                    Ok(Extended::Lost(_)) => {
                        self.in_flight.remove(&lease.id);
                        self.say(ConsumeEvent::Lost { lease }).await
                    }
                    Err(error) => {
                        tracing::debug!(queue = %self.request.queue, %error, "a lease can't be extended at the moment");
                        let pause = self.inner.runtime().entropy.jitter(RETRY_PAUSE);
                        flight.next = self.inner.now() + pause;
                        Next::GoesOn
                    }
                }
            }
        }
    }

    /// Extends what it is time for, and gives up what has run out.
    fn on_time(&mut self) -> Next {
        let now = self.inner.now();
        let over: Vec<ItemId> = self
            .in_flight
            .iter()
            .filter(|(_, flight)| flight.valid_until <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            let Some(flight) = self.in_flight.remove(&id) else { continue };
            self.inner.meter().leases.expired.one();
            let lease = Leased { id, lease_id: flight.lease_id };
            // A client that does not read finds out by its ack.
            if self.is_read() {
                let _ = self.events.try_send(Ok(ConsumeEvent::Lost { lease }));
            }
        }
        // What the client does not hear of must run out.
        let is_read = self.is_read();
        for (id, flight) in self.in_flight.iter_mut().filter(|(_, flight)| flight.next <= now) {
            if !is_read {
                flight.next = now + RETRY_PAUSE;
                continue;
            }
            flight.next = Moment::FAR;
            let (inner, queue) = (self.inner.clone(), self.request.queue.clone());
            let lease = Leased { id: id.clone(), lease_id: flight.lease_id };
            let deadline = flight.valid_until;
            let ttl = self.request.lease_ttl;
            let extend = async move {
                let result = inner.extend(&queue, &lease, ttl, deadline).await;
                Done::Extended(lease, result)
            };
            self.work.push(extend.boxed());
        }
        Next::GoesOn
    }
}

/// Waits for good where there is nothing to wait for.
async fn wait_if_none<T>(value: Option<T>) -> T {
    match value {
        Some(value) => value,
        None => future::pending().await,
    }
}
