//! What the callers of a bench do.

use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use tonic::{Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::Operation;
use crate::cli::client::{self, CALL_TIMEOUT, Connection, Failed, to_proto};
use crate::load::Work;
use crate::proto::v1;
use crate::proto::v1::acquire_response::Outcome as Acquired;
use crate::proto::v1::consume_request::{self, Command};
use crate::proto::v1::consume_response::{Event, settled};
use crate::proto::v1::kv_service_client::KvServiceClient;
use crate::proto::v1::lock_service_client::LockServiceClient;
use crate::proto::v1::new_item::Content as Payload;
use crate::proto::v1::put_response::result::Outcome as Put;
use crate::proto::v1::queue_service_client::QueueServiceClient;
use crate::proto::v1::set_request::{Content, Precondition};
use crate::proto::v1::settle_result::Result as Settled;

/// How long a caller stands in line, for a lock or an item.
const WAIT: Duration = Duration::from_secs(30);
/// A lease, and how long what a bench wrote stays: it is gone soon, also if the bench is killed.
const LEASE: Duration = Duration::from_secs(30);
const KEY_TTL: Duration = Duration::from_secs(600);

/// Where the callers are at work.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) prefix: String,
    pub(super) names: u64,
    pub(super) callers: u64,
    pub(super) payload: Bytes,
}

impl Place {
    fn name(&self, number: u64) -> String {
        format!("{}{}", self.prefix, number % self.names)
    }
}

/// Makes what there has to be before: values that can be read.
pub(super) async fn prepare(operation: Operation, place: &Place, channel: &Connection) -> Result<(), Failed> {
    let mut keys = KvServiceClient::new(channel.clone());
    if matches!(operation, Operation::Get | Operation::Cas) {
        for number in 0..place.names {
            keys.set(client::request(set(place.name(number), &place.payload, None), CALL_TIMEOUT)).await?;
        }
    }
    Ok(())
}

/// Removes the queues, with what is left in them. Locks are released, and keys are gone after a while.
pub(super) async fn tidy_up(operation: Operation, place: &Place, channel: &Connection) {
    if !operation.is_on_queues() {
        return;
    }
    let mut queues = QueueServiceClient::new(channel.clone());
    for number in 0..place.names {
        let queue = place.name(number);
        let request = v1::DeleteQueueRequest { queue: queue.clone() };
        if let Err(status) = queues.delete_queue(client::request(request, WAIT)).await {
            eprintln!("majorityd: the queue {queue} is still there: {}", why(status));
        }
    }
}

fn set(key: String, value: &Bytes, version: Option<u64>) -> v1::SetRequest {
    v1::SetRequest {
        key,
        content: Some(Content::Value(value.clone())),
        ttl: Some(to_proto(KEY_TTL)),
        precondition: version.map(Precondition::Version),
        ..Default::default()
    }
}

/// One caller.
pub(super) struct Caller {
    operation: Operation,
    place: Place,
    /// Names in turn, beginning with its own; callers of different numbers meet only where there are fewer names than callers.
    turn: u64,
    locks: LockServiceClient<Connection>,
    keys: KvServiceClient<Connection>,
    queues: QueueServiceClient<Connection>,
    health: HealthClient<Connection>,
    consumer: Option<Consumer>,
}

impl Caller {
    pub(super) fn new(operation: Operation, number: u64, place: &Place, channel: Connection) -> Self {
        Self {
            operation,
            place: place.clone(),
            turn: number,
            locks: LockServiceClient::new(channel.clone()),
            keys: KvServiceClient::new(channel.clone()),
            queues: QueueServiceClient::new(channel.clone()),
            health: HealthClient::new(channel),
            consumer: None,
        }
    }

    fn next_name(&mut self) -> String {
        let name = self.place.name(self.turn);
        self.turn = self.turn.wrapping_add(self.place.callers);
        name
    }

    async fn lock(&mut self) -> Result<(), String> {
        let name = self.next_name();
        let request = v1::AcquireRequest {
            name: name.clone(),
            ttl: Some(to_proto(LEASE)),
            wait_timeout: Some(to_proto(WAIT)),
            ..Default::default()
        };
        let acquired = self.locks.acquire(waiting(request)).await.map_err(why)?.into_inner();
        let Some(Acquired::Lease(lease)) = acquired.outcome else {
            return Err("somebody else had the lock all the time".to_owned());
        };
        let request = v1::ReleaseRequest { name, lease_id: lease.lease_id };
        let released = self.locks.release(client::request(request, CALL_TIMEOUT)).await.map_err(why)?;
        if released.into_inner().released { Ok(()) } else { Err("the lock was lost".to_owned()) }
    }

    async fn get(&mut self) -> Result<(), String> {
        let key = self.next_name();
        let got = self.keys.get(client::request(v1::GetRequest { key }, CALL_TIMEOUT)).await.map_err(why)?;
        got.into_inner().key_value.map(drop).ok_or_else(|| "there was no value".to_owned())
    }

    async fn set(&mut self) -> Result<(), String> {
        let request = set(self.next_name(), &self.place.payload, None);
        self.keys.set(client::request(request, CALL_TIMEOUT)).await.map(drop).map_err(why)
    }

    async fn compare_and_set(&mut self) -> Result<(), String> {
        let key = self.next_name();
        loop {
            let request = v1::GetRequest { key: key.clone() };
            let got = self.keys.get(client::request(request, CALL_TIMEOUT)).await.map_err(why)?;
            let version = got.into_inner().key_value.map(|found| found.version);
            let request = set(key.clone(), &self.place.payload, version);
            match self.keys.set(client::request(request, CALL_TIMEOUT)).await {
                Ok(_) => return Ok(()),
                Err(status) if client::reason(&status).as_deref() == Some("PRECONDITION_FAILED") => {}
                Err(status) => return Err(why(status)),
            }
        }
    }

    async fn increment(&mut self) -> Result<(), String> {
        let key = self.next_name();
        let request = v1::IncrementRequest { key, ttl: Some(to_proto(KEY_TTL)), ..Default::default() };
        self.keys.increment(client::request(request, CALL_TIMEOUT)).await.map(drop).map_err(why)
    }

    async fn put(&mut self, queue: &str) -> Result<(), String> {
        let content = Some(Payload::Payload(self.place.payload.clone()));
        let items = vec![v1::NewItem { content, ..Default::default() }];
        let request = v1::PutRequest { queue: queue.to_owned(), items };
        let put = self.queues.put(client::request(request, CALL_TIMEOUT)).await.map_err(why)?.into_inner();
        match put.results.into_iter().next().and_then(|result| result.outcome) {
            Some(Put::Error(error)) => Err(error.message),
            Some(_) => Ok(()),
            None => Err("a put was not answered".to_owned()),
        }
    }

    /// Of all items in the queue any will do: each caller has put one.
    async fn put_and_ack(&mut self) -> Result<(), String> {
        let queue = self.next_name();
        self.put(&queue).await?;
        let request = v1::ReserveRequest {
            queue: queue.clone(),
            lease_ttl: Some(to_proto(LEASE)),
            wait_timeout: Some(to_proto(WAIT)),
            ..Default::default()
        };
        let reserved = self.queues.reserve(waiting(request)).await.map_err(why)?.into_inner();
        let Some(item) = reserved.items.into_iter().next() else {
            return Err("no item came".to_owned());
        };
        let leases = vec![v1::ItemLease { id: item.id, lease_id: item.lease_id }];
        let request = v1::AckRequest { queue, leases };
        let acked = self.queues.ack(client::request(request, CALL_TIMEOUT)).await.map_err(why)?.into_inner();
        match acked.results.into_iter().next().and_then(|result| result.result) {
            Some(Settled::Outcome(outcome)) if outcome == i32::from(v1::LeaseOutcome::Ok) => Ok(()),
            Some(Settled::Error(error)) => Err(error.message),
            _ => Err("the item was lost".to_owned()),
        }
    }

    /// The same with a stream, which is opened at the first call.
    async fn put_and_consume(&mut self) -> Result<(), String> {
        if self.consumer.is_none() {
            self.consumer = Some(Consumer::open(&mut self.queues, self.place.name(self.turn)).await?);
        }
        let queue = self.place.name(self.turn);
        self.put(&queue).await?;
        let consumer = self.consumer.as_mut().expect("it was opened a moment ago");
        let done = consumer.take_and_ack().await;
        if done.is_err() {
            self.consumer = None;
        }
        done
    }

    async fn ping(&mut self) -> Result<(), String> {
        let request = client::request(HealthCheckRequest::default(), CALL_TIMEOUT);
        self.health.check(request).await.map(drop).map_err(why)
    }
}

impl Work for Caller {
    async fn once(&mut self) -> Result<(), String> {
        match self.operation {
            Operation::Locks => self.lock().await,
            Operation::Get => self.get().await,
            Operation::Set => self.set().await,
            Operation::Cas => self.compare_and_set().await,
            Operation::Increment => self.increment().await,
            Operation::Queue => self.put_and_ack().await,
            Operation::Consume => self.put_and_consume().await,
            Operation::Ping => self.ping().await,
        }
    }
}

/// A stream of items, one in flight at a time.
struct Consumer {
    commands: mpsc::UnboundedSender<v1::ConsumeRequest>,
    events: Streaming<v1::ConsumeResponse>,
}

impl Consumer {
    async fn open(queues: &mut QueueServiceClient<Connection>, queue: String) -> Result<Self, String> {
        let (commands, sent) = mpsc::unbounded();
        let open = consume_request::Open { queue, lease_ttl: Some(to_proto(LEASE)), ..Default::default() };
        let opened = Self::send(&commands, Command::Open(open));
        let events = queues.consume(sent).await.map_err(why)?.into_inner();
        opened.map(|()| Self { commands, events })
    }

    fn send(commands: &mpsc::UnboundedSender<v1::ConsumeRequest>, command: Command) -> Result<(), String> {
        let request = v1::ConsumeRequest { command: Some(command) };
        commands.unbounded_send(request).map_err(|_| "the stream ended".to_owned())
    }

    async fn take_and_ack(&mut self) -> Result<(), String> {
        loop {
            let event = self.events.message().await.map_err(why)?.ok_or("the stream ended")?.event;
            match event {
                Some(Event::Item(item)) => {
                    let lease = v1::ItemLease { id: item.id, lease_id: item.lease_id };
                    Self::send(&self.commands, Command::Ack(lease))?;
                }
                Some(Event::Settled(settled)) => {
                    return match settled.result {
                        Some(settled::Result::Outcome(outcome))
                            if outcome == i32::from(v1::LeaseOutcome::Ok) =>
                        {
                            Ok(())
                        }
                        Some(settled::Result::Error(error)) => Err(error.message),
                        _ => Err("the item was lost".to_owned()),
                    };
                }
                Some(Event::Lost(_)) => return Err("the item was lost".to_owned()),
                // Of a later version of the API.
                None => {}
            }
        }
    }
}

/// A request that may wait in line.
fn waiting<T>(message: T) -> Request<T> {
    client::request(message, WAIT + CALL_TIMEOUT)
}

/// What a failure is counted under: code and reason, as messages have names in them.
fn why(status: Status) -> String {
    match client::reason(&status) {
        Some(reason) => format!("{:?} ({reason})", status.code()),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}
