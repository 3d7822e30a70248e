//! A worker for a queue: items as they come, each to a handler.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use futures::future::{AbortHandle, Aborted, Either, abortable, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{Client, ClientError, is_elsewhere};
use crate::proto::v1;
use crate::proto::v1::consume_request::{Command, Open};
use crate::proto::v1::consume_response::Event;
use crate::proto::v1::queue_service_client::QueueServiceClient;

/// How long a daemon has to end a stream that was closed, and to take back what was not begun.
const PARTING: Duration = Duration::from_secs(2);
/// Items that one `Nack` takes, by its `.proto` file.
const NACK_MAX: usize = 1_000;

/// A handler could not do what the item asks for: it comes again, or is set aside after the queue's last attempt.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Kept with the item, for people.
    pub reason: String,
    /// When it comes again; the queue's back-off unless given.
    pub delay: Option<Duration>,
}

impl<T: Into<String>> From<T> for Refused {
    fn from(reason: T) -> Self {
        Self { reason: reason.into(), delay: None }
    }
}

/// Why a stream of items came to its end.
enum End {
    /// As was asked for, with nothing in flight.
    Stopped,
    /// Another daemon may go on.
    Elsewhere,
}

impl Client {
    /// Works on the items of a queue until `stop` completes, and then until those in flight are done. `handler` is called for each
    /// item, for up to `max_in_flight` at a time; an item is acked if it succeeds. The future of a handler whose item was lost is
    /// dropped. What comes when it is stopping is given back at the end, and that counts as an attempt. An item may come more
    /// than once: what a handler does should bear that, or check `fencing_token`.
    ///
    /// # Errors
    /// [`ClientError::Call`] for what no other daemon would answer better. What was in flight comes again.
    pub async fn work<F, W>(
        &self,
        queue: &str,
        max_in_flight: u16,
        handler: F,
        stop: impl Future<Output = ()>,
    ) -> Result<(), ClientError>
    where
        F: Fn(v1::ReservedItem) -> W,
        W: Future<Output = Result<(), Refused>>,
    {
        let mut stop = pin!(stop.fuse());
        let mut turn = 0;
        let mut stopping = false;
        while !stopping {
            match self.consume(turn, queue, max_in_flight, &handler, &mut stop, &mut stopping).await {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::Elsewhere) => {}
                Err(status) if is_elsewhere(&status) => {}
                Err(status) => return Err(status.into()),
            }
            turn += 1;
            self.pause().await;
        }
        Ok(())
    }

    async fn consume<F, W>(
        &self,
        turn: usize,
        queue: &str,
        max_in_flight: u16,
        handler: &F,
        mut stop: impl Future<Output = ()> + Unpin,
        stopping: &mut bool,
    ) -> Result<End, Status>
    where
        F: Fn(v1::ReservedItem) -> W,
        W: Future<Output = Result<(), Refused>>,
    {
        let max = usize::from(max_in_flight.max(1));
        // An answer for each item in flight, and the opening: there is always room.
        let (commands, sent) = mpsc::channel(2 * max + 1);
        let say = |command| drop(commands.try_send(v1::ConsumeRequest { command: Some(command) }));
        let open = Open { queue: queue.to_owned(), max_in_flight: Some(max as i32), lease_ttl: None };
        say(Command::Open(open));
        let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
        let mut events = QueueServiceClient::new(self.connection(turn)).consume(stream).await?.into_inner();
        let mut work = FuturesUnordered::new();
        let mut handles: HashMap<String, AbortHandle> = HashMap::new();
        // Items whose ack or nack has not been answered.
        let mut unsettled = 0_usize;
        // What came when the worker was to stop. Given back at once it would come again here, where it is waited for, and be
        // dead after a few turns.
        let mut unbegun = Vec::new();
        loop {
            if *stopping && work.is_empty() && unsettled == 0 {
                drop(commands);
                self.end(&mut events, &mut unbegun).await;
                self.give_back(turn, queue, unbegun).await;
                return Ok(End::Stopped);
            }
            let event = tokio::select! {
                Some((lease, outcome)) = work.next(), if !work.is_empty() => {
                    let lease: v1::ItemLease = lease;
                    handles.remove(&lease.lease_id);
                    match outcome {
                        Ok(Ok(())) => say(Command::Ack(lease)),
                        Ok(Err(refused)) => say(Command::Nack(nack(lease, refused))),
                        // Lost: somebody else has the item.
                        Err(Aborted) => continue,
                    }
                    unsettled += 1;
                    continue;
                }
                () = &mut stop, if !*stopping => {
                    *stopping = true;
                    continue;
                }
                event = events.message() => event?,
            };
            match event.map(|event| event.event) {
                Some(Some(Event::Item(item))) => {
                    let lease = lease_of(&item);
                    if *stopping {
                        unbegun.push(lease);
                        continue;
                    }
                    let (running, handle) = abortable(handler(item));
                    handles.insert(lease.lease_id.clone(), handle);
                    work.push(running.map(move |outcome| (lease, outcome)));
                }
                Some(Some(Event::Settled(_))) => unsettled = unsettled.saturating_sub(1),
                Some(Some(Event::Lost(lost))) => {
                    if let Some(handle) = lost.lease.and_then(|lease| handles.remove(&lease.lease_id)) {
                        handle.abort();
                    }
                }
                Some(None) => {}
                None => return Ok(End::Elsewhere),
            }
        }
    }

    /// Waits for the end of a stream that was closed. What comes still has been under way.
    async fn end(&self, events: &mut Streaming<v1::ConsumeResponse>, unbegun: &mut Vec<v1::ItemLease>) {
        let rest = async {
            while let Ok(Some(event)) = events.message().await {
                if let Some(Event::Item(item)) = event.event {
                    unbegun.push(lease_of(&item));
                }
            }
        };
        self.in_time(rest).await;
    }

    /// What can't be given back comes again when its lease is over.
    async fn give_back(&self, turn: usize, queue: &str, leases: Vec<v1::ItemLease>) {
        let mut queues = QueueServiceClient::new(self.connection(turn));
        for leases in leases.chunks(NACK_MAX) {
            let refused = || Refused { reason: "the worker stops".into(), delay: Some(Duration::ZERO) };
            let items = leases.iter().map(|lease| nack(lease.clone(), refused())).collect();
            self.in_time(queues.nack(v1::NackRequest { queue: queue.to_owned(), items })).await;
        }
    }

    /// Gives up on what takes too long: a daemon that does not answer must not keep who wants to stop.
    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let clock = &self.runtime.clock;
        let limit = clock.sleep_until(clock.now() + PARTING);
        match select(pin!(work), limit).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }
}

fn lease_of(item: &v1::ReservedItem) -> v1::ItemLease {
    v1::ItemLease { id: item.id.clone(), lease_id: item.lease_id.clone() }
}

fn nack(lease: v1::ItemLease, refused: Refused) -> v1::ItemNack {
    v1::ItemNack {
        id: lease.id,
        lease_id: lease.lease_id,
        delay: refused.delay.and_then(super::to_proto),
        reason: refused.reason,
    }
}
