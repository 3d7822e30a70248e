//! A queue service with one queue in memory, that does what a test wants: it breaks streams, takes leases away and does not
//! answer. What it promises is not tested here, but what its clients make of it.
#![allow(dead_code, reason = "every test crate uses another part of it")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::stream::{self, BoxStream};
use majorityd::proto::v1;
use majorityd::proto::v1::consume_request::Command;
use majorityd::proto::v1::consume_response::{Event, Lost, Settled, settled};
use majorityd::proto::v1::new_item::Content;
use majorityd::proto::v1::put_response::result::Outcome as Put;
use majorityd::proto::v1::queue_service_extend_response::result::Outcome as Extended;
use majorityd::proto::v1::queue_service_server::{QueueService, QueueServiceServer};
use majorityd::proto::v1::settle_result::Result as Settle;
use prost::Message as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// An item and where it stands.
#[derive(Clone, Default)]
pub struct FakeItem {
    pub payload: Vec<u8>,
    pub attributes: BTreeMap<String, String>,
    pub priority: i32,
    pub attempts: u32,
    pub token: u64,
    pub lease_id: Option<String>,
    pub done: bool,
    pub reason: String,
    /// With the last nack.
    pub delay: Option<Duration>,
}

/// The queue, and its faults.
pub struct FakeQueue {
    pub items: Mutex<BTreeMap<String, FakeItem>>,
    /// The length of a lease.
    pub ttl: Duration,
    /// No call is answered but with an error; streams that are there go on.
    pub refusing: AtomicBool,
    /// No extension succeeds.
    pub not_extending: AtomicBool,
    /// Acks on the stream are answered with an error.
    pub not_settling: AtomicBool,
    /// What is said on a stream after the first message is heard a while later.
    pub hears_late: AtomicBool,
    /// Streams that were opened, ack and nack calls, and extensions.
    pub streams: AtomicU64,
    pub calls: AtomicU64,
    pub extensions: AtomicU64,
    changed: tokio::sync::watch::Sender<u64>,
    broken: tokio::sync::watch::Sender<u64>,
    tokens: AtomicU64,
}

impl FakeQueue {
    /// Serves until the test's process ends.
    pub fn serve(ttl: Duration, runtime: &tokio::runtime::Runtime) -> (Arc<Self>, SocketAddr) {
        let fake = Arc::new(Self {
            items: Mutex::default(),
            ttl,
            refusing: AtomicBool::default(),
            not_extending: AtomicBool::default(),
            not_settling: AtomicBool::default(),
            hears_late: AtomicBool::default(),
            streams: AtomicU64::default(),
            calls: AtomicU64::default(),
            extensions: AtomicU64::default(),
            changed: tokio::sync::watch::Sender::new(0),
            broken: tokio::sync::watch::Sender::new(0),
            tokens: AtomicU64::default(),
        });
        let service = QueueServiceServer::new(Shared(fake.clone()));
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            start(async move {
                let server = tonic::transport::Server::builder().add_service(service);
                server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
            });
            address
        });
        (fake, address)
    }

    /// Puts an item.
    pub fn put(&self, id: &str, payload: &str) {
        let item = FakeItem { payload: payload.into(), ..FakeItem::default() };
        self.items.lock().unwrap().insert(id.to_owned(), item);
        self.tell();
    }

    /// Ends all streams with an error.
    pub fn break_streams(&self) {
        self.broken.send_modify(|count| *count += 1);
    }

    /// Gives an item to somebody else.
    pub fn steal(&self, id: &str) {
        let token = self.next_token();
        let mut items = self.items.lock().unwrap();
        let item = items.get_mut(id).unwrap();
        (item.lease_id, item.token) = (Some(lease_id(token)), token);
        drop(items);
        self.tell();
    }

    /// An item as it is.
    pub fn item(&self, id: &str) -> FakeItem {
        self.items.lock().unwrap()[id].clone()
    }

    /// Waits until the queue is as it should be.
    pub fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        for _ in 0..6_000 {
            if is(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited in vain: {what}");
    }

    pub fn is_done(&self, id: &str) -> bool {
        self.item(id).done
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn next_token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn lease(&self) -> Option<v1::ReservedItem> {
        let mut items = self.items.lock().unwrap();
        let free = items.iter_mut().filter(|(_, item)| !item.done && item.lease_id.is_none());
        let (id, item) = free.min_by_key(|(id, item)| (item.priority, (*id).clone()))?;
        let token = self.next_token();
        item.lease_id = Some(lease_id(token));
        item.token = token;
        item.attempts += 1;
        Some(v1::ReservedItem {
            id: id.clone(),
            payload: item.payload.clone().into(),
            attributes: item.attributes.clone(),
            priority: item.priority,
            attempt: item.attempts,
            put_time: None,
            lease_id: lease_id(token),
            fencing_token: token,
            ttl: self.ttl.try_into().ok(),
            remaining: self.ttl.try_into().ok(),
        })
    }

    fn settle(&self, id: &str, lease_id: &str, nack: Option<v1::ItemNack>) -> v1::LeaseOutcome {
        let mut items = self.items.lock().unwrap();
        let Some(item) = items.get_mut(id) else { return v1::LeaseOutcome::NoSuchItem };
        if item.done {
            return v1::LeaseOutcome::AlreadyDone;
        }
        if item.lease_id.as_deref() != Some(lease_id) {
            return v1::LeaseOutcome::LeaseLost;
        }
        item.lease_id = None;
        match nack {
            None => item.done = true,
            Some(nack) => {
                item.reason = nack.reason;
                item.delay = nack.delay.map(|delay| delay.try_into().unwrap());
            }
        }
        drop(items);
        self.tell();
        v1::LeaseOutcome::Ok
    }

    fn is_held(&self, lease: &v1::ItemLease) -> bool {
        let items = self.items.lock().unwrap();
        items.get(&lease.id).is_some_and(|item| item.lease_id.as_ref() == Some(&lease.lease_id))
    }

    fn refuse(&self) -> Result<(), Status> {
        match self.refusing.load(Ordering::SeqCst) {
            true => Err(Status::unavailable("told to refuse")),
            false => Ok(()),
        }
    }

    fn queue(&self) -> v1::Queue {
        let items = self.items.lock().unwrap();
        let count = |which: fn(&FakeItem) -> bool| items.values().filter(|item| which(item)).count() as u64;
        v1::Queue {
            name: "q".into(),
            ready: count(|item| !item.done && item.lease_id.is_none()),
            leased: count(|item| item.lease_id.is_some()),
            done: count(|item| item.done),
            ..v1::Queue::default()
        }
    }
}

fn lease_id(token: u64) -> String {
    format!("{SECRET}{token:016x}")
}

/// Every lease id begins with this.
pub const SECRET: &str = "5ec4e75ec4e75ec4";

/// What is on a page, and the token of the next one.
fn page(token: &str) -> (String, String) {
    match token {
        "" => ("first".into(), "more".into()),
        _ => ("second".into(), String::new()),
    }
}

fn start(task: impl Future<Output = ()> + Send + 'static) {
    majorityd::runtime::system::runtime().spawner.spawn(Box::pin(task));
}

#[derive(Clone)]
struct Shared(Arc<FakeQueue>);

type Say = UnboundedSender<Result<v1::ConsumeResponse, Status>>;

impl Shared {
    async fn consume(self, mut commands: Streaming<v1::ConsumeRequest>, say: Say) {
        let first = commands.message().await.ok().flatten().and_then(|first| first.command);
        let Some(Command::Open(open)) = first else { return };
        let most = usize::try_from(open.max_in_flight.unwrap_or(1)).unwrap();
        let hears_late = self.0.hears_late.load(Ordering::SeqCst);
        let commands = commands.map(Some).chain(stream::iter([None])).then(async |command| {
            if hears_late {
                let clock = majorityd::runtime::system::runtime().clock;
                clock.sleep_until(clock.now() + Duration::from_millis(200)).await;
            }
            command
        });
        let mut commands = pin!(commands.filter_map(async |command| command));
        let mut in_flight: Vec<v1::ItemLease> = Vec::new();
        let mut changed = self.0.changed.subscribe();
        let mut broken = self.0.broken.subscribe();
        let tell = |event| say.unbounded_send(Ok(v1::ConsumeResponse { event: Some(event) })).is_ok();
        loop {
            in_flight.retain(|lease| {
                let held = self.0.is_held(lease);
                if !held {
                    tell(Event::Lost(Lost { lease: Some(lease.clone()) }));
                }
                held
            });
            let wants_more = in_flight.len() < most;
            // What the client has said comes first, as at a daemon: who has closed its side gets no more items.
            tokio::select! {
                biased;
                _ = broken.changed() => {
                    say.unbounded_send(Err(Status::unavailable("told to break"))).ok();
                    return;
                }
                command = commands.next() => match command {
                    Some(Ok(command)) => {
                        let (lease, nack) = match command.command.unwrap() {
                            Command::Ack(lease) => (lease, None),
                            Command::Nack(nack) => {
                                let lease = v1::ItemLease { id: nack.id.clone(), lease_id: nack.lease_id.clone() };
                                (lease, Some(nack))
                            }
                            Command::Open(_) => return,
                        };
                        let result = match self.0.not_settling.load(Ordering::SeqCst) {
                            true => settled::Result::Error(tonic_types::pb::Status {
                                code: tonic::Code::Unavailable.into(),
                                ..Default::default()
                            }),
                            false => {
                                in_flight.retain(|held| *held != lease);
                                settled::Result::Outcome(self.0.settle(&lease.id, &lease.lease_id, nack).into())
                            }
                        };
                        tell(Event::Settled(Settled { lease: Some(lease), result: Some(result) }));
                    }
                    // All that was settled is answered by now.
                    None | Some(Err(_)) => return,
                },
                Some(item) = async { self.0.lease() }, if wants_more => {
                    in_flight.push(v1::ItemLease { id: item.id.clone(), lease_id: item.lease_id.clone() });
                    if !tell(Event::Item(item)) {
                        return;
                    }
                }
                _ = changed.changed() => {}
            }
        }
    }
}

#[tonic::async_trait]
impl QueueService for Shared {
    type ConsumeStream = BoxStream<'static, Result<v1::ConsumeResponse, Status>>;

    async fn consume(
        &self,
        request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        self.0.refuse()?;
        self.0.streams.fetch_add(1, Ordering::SeqCst);
        let (say, events) = unbounded();
        // When the client is gone, its commands end with an error.
        start(self.clone().consume(request.into_inner(), say));
        Ok(Response::new(events.boxed()))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        self.0.refuse()?;
        let mut items = self.0.items.lock().unwrap();
        let put = |new: v1::NewItem| {
            let payload = match new.content {
                Some(Content::Payload(payload)) => payload.to_vec(),
                Some(Content::Text(text)) => text.into_bytes(),
                None => Vec::new(),
            };
            let (attributes, priority) = (new.attributes, new.priority);
            let id = new.id.expect("the command line makes ids");
            let error = |code: tonic::Code, reason: &str| {
                let details = ErrorDetails::with_error_info(reason, "majorityd", HashMap::new());
                let status = Status::with_error_details(code, "told to", details);
                let error = tonic_types::pb::Status::decode(status.details()).unwrap();
                v1::put_response::Result { outcome: Some(Put::Error(error)) }
            };
            if payload == b"full" {
                return error(tonic::Code::ResourceExhausted, "QUEUE_FULL");
            }
            let duplicate = items.contains_key(&id);
            items.entry(id.clone()).or_insert(FakeItem {
                payload,
                attributes,
                priority,
                ..FakeItem::default()
            });
            if items[&id].payload == b"unknown" && !duplicate {
                return error(tonic::Code::Unavailable, "OUTCOME_UNKNOWN");
            }
            v1::put_response::Result { outcome: Some(Put::Put(v1::put_response::Put { id, duplicate })) }
        };
        let results = request.into_inner().items.into_iter().map(put).collect();
        drop(items);
        self.0.tell();
        Ok(Response::new(v1::PutResponse { results }))
    }

    async fn extend(
        &self,
        request: Request<v1::QueueServiceExtendRequest>,
    ) -> Result<Response<v1::QueueServiceExtendResponse>, Status> {
        self.0.refuse()?;
        if self.0.not_extending.load(Ordering::SeqCst) {
            return Err(Status::unavailable("told not to extend"));
        }
        self.0.extensions.fetch_add(1, Ordering::SeqCst);
        let extend = |lease: v1::ItemLease| {
            let (ttl, remaining) = (self.0.ttl.try_into().ok(), self.0.ttl.try_into().ok());
            let outcome = match self.0.is_held(&lease) {
                true => Extended::Extended(v1::queue_service_extend_response::Extended { ttl, remaining }),
                false => Extended::Ended(v1::LeaseOutcome::LeaseLost.into()),
            };
            v1::queue_service_extend_response::Result { id: lease.id, outcome: Some(outcome) }
        };
        let results = request.into_inner().leases.into_iter().map(extend).collect();
        Ok(Response::new(v1::QueueServiceExtendResponse { results }))
    }

    async fn ack(&self, request: Request<v1::AckRequest>) -> Result<Response<v1::AckResponse>, Status> {
        self.0.refuse()?;
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        let ack = |lease: v1::ItemLease| {
            let outcome = self.0.settle(&lease.id, &lease.lease_id, None);
            v1::SettleResult { id: lease.id, result: Some(Settle::Outcome(outcome.into())) }
        };
        Ok(Response::new(v1::AckResponse {
            results: request.into_inner().leases.into_iter().map(ack).collect(),
        }))
    }

    async fn nack(&self, request: Request<v1::NackRequest>) -> Result<Response<v1::NackResponse>, Status> {
        self.0.refuse()?;
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        let nack = |nack: v1::ItemNack| {
            let (id, lease_id) = (nack.id.clone(), nack.lease_id.clone());
            let outcome = self.0.settle(&id, &lease_id, Some(nack));
            v1::SettleResult { id, result: Some(Settle::Outcome(outcome.into())) }
        };
        Ok(Response::new(v1::NackResponse {
            results: request.into_inner().items.into_iter().map(nack).collect(),
        }))
    }

    async fn get_queue(
        &self,
        _: Request<v1::GetQueueRequest>,
    ) -> Result<Response<v1::GetQueueResponse>, Status> {
        self.0.refuse()?;
        Ok(Response::new(v1::GetQueueResponse { queue: Some(self.0.queue()) }))
    }

    async fn reserve(&self, _: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn get_item(
        &self,
        _: Request<v1::GetItemRequest>,
    ) -> Result<Response<v1::GetItemResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn list_queues(
        &self,
        request: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesResponse>, Status> {
        let (name, next_page_token) = page(&request.get_ref().page_token);
        let queues = vec![v1::Queue { name, ..v1::Queue::default() }];
        Ok(Response::new(v1::ListQueuesResponse { queues, next_page_token }))
    }

    async fn configure_queue(
        &self,
        _: Request<v1::ConfigureQueueRequest>,
    ) -> Result<Response<v1::ConfigureQueueResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn list_dead(
        &self,
        request: Request<v1::ListDeadRequest>,
    ) -> Result<Response<v1::ListDeadResponse>, Status> {
        let (id, next_page_token) = page(&request.get_ref().page_token);
        let items = vec![v1::Item { id, ..v1::Item::default() }];
        Ok(Response::new(v1::ListDeadResponse { items, next_page_token }))
    }

    async fn redrive(&self, _: Request<v1::RedriveRequest>) -> Result<Response<v1::RedriveResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn purge(&self, _: Request<v1::PurgeRequest>) -> Result<Response<v1::PurgeResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn delete_queue(
        &self,
        _: Request<v1::DeleteQueueRequest>,
    ) -> Result<Response<v1::DeleteQueueResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }
}
