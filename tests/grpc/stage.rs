//! Daemons on embedded servers that they share, with a network between that can be cut, and what tests say to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use majorityd::config;
use majorityd::grpc::{self, ServeError, Services, Settings};
use majorityd::http::{self, Operators};
use majorityd::ids::NodeIndex;
use majorityd::members::Board;
use majorityd::node::embedded::{EmbeddedNode, EmbeddedServer};
use majorityd::node::peek::{Peeked, Question};
use majorityd::node::{CallError, Identity, Node, NodeState};
use majorityd::proto::v1;
use majorityd::proto::v1::hold_response::Event;
use majorityd::proto::v1::kv_service_client::KvServiceClient;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use majorityd::proto::v1::queue_service_client::QueueServiceClient;
use majorityd::runtime::{Runtime, system};
use majorityd::server::{self, Daemon, reload};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_types::StatusExt;

pub const SERVICE: &str = "majority.v1.LockService";
pub const QUEUE_SERVICE: &str = "majority.v1.QueueService";
pub const KV_SERVICE: &str = "majority.v1.KvService";
pub const CLUSTER_SERVICE: &str = "majority.v1.ClusterService";

/// Whatever is waited for comes long before; past this it never will.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Names that would mean something to Lua, Redis, MessagePack, a glob or a key of this daemon, and are names like others.
pub const ODD_NAMES: [&str; 19] = [
    "*",
    "?",
    "[a]",
    "{tag}",
    "a:b",
    ":",
    "l:",
    "l:a",
    "q:",
    "k:",
    "k:a",
    "%s",
    "\\",
    "'",
    "\"; return 1 --",
    "\u{2028}",
    "é",
    "e\u{301}",
    "0000000000000000000000a",
];

pub type Client = LockServiceClient<Channel>;
pub type QueueClient = QueueServiceClient<Channel>;
pub type KvClient = KvServiceClient<Channel>;

/// What becomes of calls to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Network {
    Whole,
    /// Nothing arrives, and everybody knows.
    Cut,
    /// Everything arrives and no answer comes back.
    Mute,
}

/// Three embedded servers, and the network to them, which all daemons share.
pub struct Cluster {
    pub servers: Vec<Arc<EmbeddedServer>>,
    pub settings: config::Settings,
    pub grpc: Settings,
    pub http: http::Limits,
    networks: Vec<Arc<AtomicU8>>,
    /// How far the servers' clocks are ahead, in microseconds.
    ahead: Arc<AtomicU64>,
    runtime: Runtime,
}

impl Cluster {
    pub fn new() -> Self {
        let runtime = system::runtime();
        let mut settings = config::Settings::default();
        settings.cluster.bootstrap = true;
        let ahead = Arc::new(AtomicU64::new(0));
        let server = |name| {
            let (clock, ahead) = (runtime.clock.clone(), ahead.clone());
            let now = move || clock.wall_unix_ms() * 1_000 + ahead.load(Ordering::SeqCst);
            EmbeddedServer::new(name, Arc::new(now))
        };
        Self {
            servers: (0..3).map(server).collect(),
            settings,
            grpc: Settings::default(),
            http: http::Limits::default(),
            networks: (0..3).map(|_| Arc::new(AtomicU8::new(Network::Whole as u8))).collect(),
            ahead,
            runtime,
        }
    }

    /// A daemon on these servers that can serve, as everybody builds it.
    pub async fn daemon(&self) -> Served {
        let daemon = Daemon::on_embedded(&self.settings, &self.runtime, &self.servers).unwrap();
        self.serve(daemon, None).await
    }

    /// The same behind the network that can be cut.
    pub async fn daemon_behind_network(&self) -> Served {
        let daemon = Daemon::start(&self.settings, &self.runtime, 3, |identity, hints| {
            let nodes = self.servers.iter().zip(&self.networks).zip(0..).map(|((server, network), index)| {
                let (server, hints) = (server.clone(), hints.clone());
                let node = EmbeddedNode::new(server, identity.clone(), NodeIndex(index), hints);
                Arc::new(Wire { node, network: network.clone() }) as Arc<dyn Node>
            });
            nodes.collect()
        });
        self.serve(daemon.unwrap(), None).await
    }

    pub async fn daemon_on(&self, unix: UnixListener) -> Served {
        let daemon = Daemon::on_embedded(&self.settings, &self.runtime, &self.servers).unwrap();
        self.serve(daemon, Some(unix)).await
    }

    async fn serve(&self, daemon: Daemon, unix: Option<UnixListener>) -> Served {
        let mut can_serve = daemon.can_serve.clone();
        within(can_serve.wait_for(|can_serve| *can_serve)).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(grpc::calls());
        let door = reload::start(&self.settings, &self.runtime, &calls).await.unwrap();
        let (stopping, is_stopping) = watch::channel(false);
        let operators = server::operators(&daemon, &self.settings, calls.clone(), is_stopping);
        let operators = Arc::new(Operators { limits: self.http, ..operators });
        let for_operators = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = for_operators.local_addr().unwrap();
        start(async move { match http::serve(operators, for_operators).await {} });
        let services = Services {
            locks: daemon.locks.clone(),
            queues: daemon.queues.clone(),
            keys: daemon.keys.clone(),
            observer: daemon.observer.clone(),
            runtime: self.runtime.clone(),
            can_serve: daemon.can_serve.clone(),
            calls: calls.clone(),
            tls: door.tls,
            access: door.access,
            settings: self.grpc.clone(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            let _ = stopped.await;
            stopping.send_replace(true);
        };
        let task = start(grpc::serve(services, listener, unix, shutdown));
        Served { address, http, daemon, stop, task }
    }

    /// Time passes on the servers, by whose clocks everything ages, and nowhere else.
    pub fn advance(&self, time: Duration) {
        self.ahead.fetch_add(time.as_micros() as u64, Ordering::SeqCst);
    }

    /// For the nodes with these indexes.
    pub fn set_network(&self, nodes: &[usize], network: Network) {
        nodes.iter().for_each(|node| self.networks[*node].store(network as u8, Ordering::SeqCst));
    }

    pub fn stop_servers(&self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.servers[*node].stop());
    }
}

/// A connection behind a network.
struct Wire {
    node: Arc<EmbeddedNode>,
    network: Arc<AtomicU8>,
}

impl Wire {
    fn is(&self, network: Network) -> bool {
        self.network.load(Ordering::SeqCst) == network as u8
    }

    fn answer<T: Send + 'static>(
        &self,
        call: BoxFuture<'static, Result<T, CallError>>,
    ) -> BoxFuture<'static, Result<T, CallError>> {
        let mute = self.is(Network::Mute);
        async move {
            let answer = call.await;
            if mute { Err(CallError::Lost("the cable fell out".into())) } else { answer }
        }
        .boxed()
    }
}

impl Node for Wire {
    fn index(&self) -> NodeIndex {
        self.node.index()
    }

    fn address(&self) -> &str {
        self.node.address()
    }

    fn call(&self, payload: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        if self.is(Network::Cut) {
            return std::future::ready(Err(CallError::Unsent("the cable is out".into()))).boxed();
        }
        self.answer(self.node.call(payload))
    }

    fn peek(&self, question: Question) -> BoxFuture<'static, Result<Peeked, CallError>> {
        if self.is(Network::Cut) {
            return std::future::ready(Err(CallError::Unsent("the cable is out".into()))).boxed();
        }
        self.answer(self.node.peek(question))
    }

    fn identity(&self) -> &Identity {
        self.node.identity()
    }

    fn reset(&self, reason: &str) {
        self.node.reset(reason);
    }

    fn state(&self) -> NodeState {
        match self.is(Network::Cut) {
            true => NodeState::Unreachable("the cable is out".into()),
            false => self.node.state(),
        }
    }

    fn watch_changes(&self, on: bool) {
        self.node.watch_changes(on);
    }
}

/// A daemon that serves until it is stopped.
pub struct Served {
    pub address: SocketAddr,
    /// Where operators are answered.
    pub http: SocketAddr,
    daemon: Daemon,
    pub stop: oneshot::Sender<()>,
    pub task: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// What the daemon has noted of the nodes.
    pub fn board(&self) -> &Board {
        &self.daemon.cluster.board
    }

    /// The queues of the daemon, without gRPC.
    pub fn inside(&self) -> &majorityd::queue::Queues {
        &self.daemon.queues
    }

    pub async fn client(&self) -> Client {
        LockServiceClient::new(self.channel().await)
    }

    pub async fn queues(&self) -> QueueClient {
        QueueServiceClient::new(self.channel().await)
    }

    pub async fn kv(&self) -> KvClient {
        KvServiceClient::new(self.channel().await)
    }
}

/// Three servers, one daemon, one client.
pub async fn alone() -> (Cluster, Served, Client) {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let client = served.client().await;
    (cluster, served, client)
}

/// Three servers, two daemons, a client of each.
pub async fn pair() -> (Cluster, [Served; 2], [Client; 2]) {
    let cluster = Cluster::new();
    let served = [cluster.daemon().await, cluster.daemon().await];
    let clients = [served[0].client().await, served[1].client().await];
    (cluster, served, clients)
}

#[expect(clippy::disallowed_methods, reason = "a test has no simulated runtime")]
pub fn start<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task)
}

/// What comes, or the test fails.
#[track_caller]
pub fn within<T>(what: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    #[expect(clippy::disallowed_methods, reason = "a test that hangs should say where")]
    let limited = tokio::time::timeout(LIMIT, what);
    async move { limited.await.unwrap_or_else(|_| panic!("nothing came; waited for at {caller}")) }
}

/// A pause between two looks, never a length that a test rests on.
#[expect(clippy::disallowed_methods, reason = "the daemon under test runs in real time")]
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Looks at a lock until it is as wished.
#[track_caller]
pub fn until(
    client: &Client,
    name: &str,
    wish: impl Fn(&v1::Lock) -> bool,
) -> impl Future<Output = v1::Lock> {
    let (mut client, name) = (client.clone(), name.to_owned());
    within(async move {
        loop {
            let lock = get(&mut client, &name).await;
            if wish(&lock) {
                return lock;
            }
            pause().await;
        }
    })
}

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub fn millis(millis: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 })
}

pub fn length(wire: &Option<prost_types::Duration>) -> Duration {
    Duration::try_from(wire.expect("a duration")).expect("not negative")
}

/// For five minutes: nothing here runs out by itself unless a test says so.
pub fn asking(name: &str, owner: &str) -> v1::AcquireRequest {
    let owner = Some(owner.to_owned()).filter(|owner| !owner.is_empty());
    v1::AcquireRequest { name: name.to_owned(), owner, ttl: seconds(300), ..Default::default() }
}

pub fn waiting(name: &str, owner: &str) -> v1::AcquireRequest {
    v1::AcquireRequest { wait_timeout: seconds(600), ..asking(name, owner) }
}

pub fn holding(name: &str, owner: &str) -> v1::HoldRequest {
    let v1::AcquireRequest { name, owner, ttl, .. } = asking(name, owner);
    v1::HoldRequest { name, owner, ttl, ..Default::default() }
}

pub async fn acquire(client: &mut Client, request: v1::AcquireRequest) -> v1::acquire_response::Outcome {
    within(client.acquire(request)).await.unwrap().into_inner().outcome.expect("an outcome")
}

pub async fn lease(client: &mut Client, request: v1::AcquireRequest) -> v1::Lease {
    match acquire(client, request).await {
        v1::acquire_response::Outcome::Lease(lease) => lease,
        contended => panic!("{contended:?}"),
    }
}

pub async fn contention(client: &mut Client, request: v1::AcquireRequest) -> v1::Contention {
    match acquire(client, request).await {
        v1::acquire_response::Outcome::Contention(contention) => contention,
        acquired => panic!("{acquired:?}"),
    }
}

/// An acquire in the background, for one that waits.
pub fn acquiring(client: &Client, request: v1::AcquireRequest) -> JoinHandle<v1::Lease> {
    let mut client = client.clone();
    start(async move { lease(&mut client, request).await })
}

pub async fn extend(client: &mut Client, lease: &v1::Lease) -> Result<v1::Lease, Status> {
    extend_for(client, lease, None).await
}

pub async fn extend_for(
    client: &mut Client,
    lease: &v1::Lease,
    ttl: Option<prost_types::Duration>,
) -> Result<v1::Lease, Status> {
    let (name, lease_id) = (lease.name.clone(), lease.lease_id.clone());
    let extended = within(client.extend(v1::ExtendRequest { name, lease_id, ttl })).await?;
    Ok(extended.into_inner().lease.expect("a lease"))
}

pub async fn release(client: &mut Client, lease: &v1::Lease) -> bool {
    let (name, lease_id) = (lease.name.clone(), lease.lease_id.clone());
    within(client.release(v1::ReleaseRequest { name, lease_id })).await.unwrap().into_inner().released
}

pub async fn get(client: &mut Client, name: &str) -> v1::Lock {
    let request = v1::GetLockRequest { name: name.to_owned() };
    within(client.get_lock(request)).await.unwrap().into_inner().lock.expect("always there")
}

pub async fn force(client: &mut Client, name: &str, fencing_token: u64) -> Result<(), Status> {
    let name = name.to_owned();
    within(client.force_release(v1::ForceReleaseRequest { name, fencing_token })).await.map(drop)
}

pub async fn check_token(client: &mut Client, name: &str, fencing_token: u64) -> v1::CheckTokenResponse {
    let name = name.to_owned();
    within(client.check_token(v1::CheckTokenRequest { name, fencing_token })).await.unwrap().into_inner()
}

pub async fn hold(client: &mut Client, request: v1::HoldRequest) -> Streaming<v1::HoldResponse> {
    within(client.hold(request)).await.unwrap().into_inner()
}

/// The next event of a held lock, or how the stream ended.
#[track_caller]
pub fn event(
    stream: &mut Streaming<v1::HoldResponse>,
) -> impl Future<Output = Option<Result<Event, Status>>> + '_ {
    within(stream.next()).map(|next| next.map(|event| event.map(|event| event.event.expect("an event"))))
}

/// The next event, past extensions and positions.
#[track_caller]
pub fn news(stream: &mut Streaming<v1::HoldResponse>) -> impl Future<Output = Event> + '_ {
    within(async {
        loop {
            let event = stream.next().await.expect("an event").expect("no error").event.expect("set");
            if !matches!(event, Event::Extended(_) | Event::Waiting(_)) {
                return event;
            }
        }
    })
}

/// The lease that the stream begins with, past the positions.
pub async fn held(stream: &mut Streaming<v1::HoldResponse>) -> v1::Lease {
    match news(stream).await {
        Event::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "majorityd");
    info.reason
}

pub fn metadata(status: &Status, key: &str) -> String {
    let info = status.get_details_error_info().expect("ErrorInfo");
    info.metadata.get(key).unwrap_or_else(|| panic!("no {key} in {info:?}")).clone()
}
