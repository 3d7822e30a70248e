//! The API over gRPC: builds the router and serves it, with health, reflection, keepalive and a graceful end.
//!
//! ```text
//! listener -> Admitted -> handshake -> Connection (counts) -> CallLayer (who, deadline, limits, span) -> LockApi -> Locks
//!                                                                       -> QueueApi -> Queues
//!                                                                       -> KvApi -> Keys
//!                                                                       -> ClusterApi -> Observer
//!                                                                       -> health, reflection v1 and v1alpha
//! ```
//!
//! Read [`lock`], [`queue`], [`kv`] and [`cluster`] for the handlers, [`convert`] for what is checked, [`status`] for errors and
//! [`layers`] for what every call goes through; [`connections`] and [`arrival`] bound what clients can take up before that, and [`leaving`] after it. Nothing here decides anything about locks, queues or keys.

pub mod access;
pub mod arrival;
pub mod bytes_gauge;
pub mod cluster;
pub mod connections;
pub mod convert;
mod handshakes;
pub mod kv;
pub mod layers;
pub mod leaving;
pub mod lock;
pub mod opening;
pub mod queue;
mod routes;
pub mod shown;
pub mod status;
pub mod streams;
mod unary;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryFutureExt};
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::access::Rules;
use crate::cluster::Observer;
use crate::kv::Keys;
use crate::lock::Locks;
use crate::meter::calls::Calls;
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::v1::cluster_service_server::ClusterServiceServer;
use crate::proto::v1::kv_service_server::KvServiceServer;
use crate::proto::v1::lock_service_server::LockServiceServer;
use crate::proto::v1::queue_service_server::QueueServiceServer;
use crate::queue::Queues;
use crate::runtime::{Clock, Runtime};
use crate::tls;
use access::Gate;
use arrival::Arrivals;
use cluster::ClusterApi;
use connections::Connections;
use convert::Limits;
use handshakes::Handshakes;
use kv::KvApi;
use layers::{CallLayer, Connection, Gauge};
use lock::LockApi;
use queue::QueueApi;
use routes::Routes;

/// Streams of one connection beyond [`Settings::calls_per_connection_max`]. A call past that setting must reach the
/// daemon to be told so, and a release must reach it even then; held back by HTTP/2 it would wait for what it ends.
const STREAMS_SPARE: u32 = 256;
/// What h2 takes a waiting message for that is smaller, in bytes.
const SMALL_MESSAGE_BYTES: u32 = 256;
/// What hyper gives a connection by itself, in bytes.
const CONNECTION_WINDOW_MIN: u32 = 1 << 20;
/// What HTTP/2 allows, in bytes.
const CONNECTION_WINDOW_MAX: u32 = (1 << 31) - 1;
/// What a client of HTTP/1 is told.
const ABOUT: &str = "This port of majorityd speaks gRPC, over HTTP/2 alone.";
/// The same where it would have to speak TLS first.
const ABOUT_TLS: &str = "This port of majorityd speaks gRPC, over HTTP/2 and TLS alone.";
/// After a failed accept (no file descriptors left, mostly) the next try waits, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What requests are held against.
    pub limits: Limits,
    /// How long a call may take whose client gave no deadline, on top of the time that it asks to wait.
    pub deadline_default: Duration,
    /// How long calls in flight may take to end when the daemon shuts down.
    pub shutdown_grace: Duration,
    /// How often a quiet connection is pinged, so that proxies keep it and dead clients are noticed.
    pub keepalive_interval: Duration,
    /// How long the answer to such a ping may take before the connection is closed.
    pub keepalive_timeout: Duration,
    /// Largest request message, in bytes. Larger ones are answered OUT_OF_RANGE.
    pub message_bytes_max: usize,
    /// Connections at a time, over all listeners; more are told to go elsewhere.
    pub connections_max: usize,
    /// How long a connection may take to say that it speaks HTTP/2.
    pub opening_timeout: Duration,
    /// How long a request may take to arrive, whatever its client's deadline is.
    pub arrival_timeout: Duration,
    /// Calls in flight on one connection, streams included.
    pub calls_per_connection_max: usize,
    /// Calls in flight in the daemon, streams included. Each takes some ten KiB.
    pub calls_max: usize,
    /// Handshakes of TLS under way at once; past this the oldest is given up. Each takes some tens of KiB.
    pub handshakes_max: usize,
    /// How long a handshake may take: some round trips around the world, each of them sent twice.
    pub handshake_timeout: Duration,
    /// Where operators are answered over HTTP/1, for who asks for that here.
    pub operators: Option<SocketAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            deadline_default: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            // A batch of 4 MiB and its framing.
            message_bytes_max: 5 << 20,
            connections_max: crate::limits::CONNECTIONS_MAX,
            opening_timeout: crate::limits::OPENING_TIMEOUT,
            arrival_timeout: crate::limits::ARRIVAL_TIMEOUT,
            // As many as one daemon keeps waiters for one name: one client may wait with all its threads.
            calls_per_connection_max: crate::limits::WAITERS_PER_NAME_MAX,
            // All the waiters, and as many calls that do not wait.
            calls_max: 2 * crate::limits::WAITERS_MAX,
            handshakes_max: 1_024,
            handshake_timeout: Duration::from_secs(10),
            operators: None,
        }
    }
}

/// What is served.
#[derive(Clone)]
pub struct Services {
    /// Behind `LockService`.
    pub locks: Arc<Locks>,
    /// Behind `QueueService`.
    pub queues: Queues,
    /// Behind `KvService`.
    pub keys: Keys,
    /// Behind `ClusterService`.
    pub observer: Arc<Observer>,
    /// Clock and tasks.
    pub runtime: Runtime,
    /// Whether a quorum can serve; health says SERVING exactly while it is true.
    pub can_serve: watch::Receiver<bool>,
    /// Where calls are counted; see [`calls`].
    pub calls: Arc<Calls>,
    /// What TCP connections are encrypted with, as it is now; `None` for nothing.
    pub tls: Option<watch::Receiver<Arc<tls::Server>>>,
    /// Who may do what, as it is now; `None` for everybody everything.
    pub access: Option<watch::Receiver<Arc<Rules>>>,
    /// How to serve.
    pub settings: Settings,
}

/// Why serving ended, other than by the shutdown.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport gave up.
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors in this binary are not well formed.
    #[error("server reflection can't be built")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Counts the calls of all methods that are served.
pub fn calls() -> Calls {
    let sets = [
        FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let methods = sets.into_iter().flat_map(methods_in);
    Calls::of(methods.map(|method| (method.service, method.name, method.streams)))
}

/// A method as its descriptor has it.
struct Described {
    service: String,
    name: String,
    /// Its answers, or its requests, are a stream.
    streams: bool,
    /// Its requests are.
    client_streams: bool,
}

/// The methods in a set of descriptors.
fn methods_in(set: &[u8]) -> Vec<Described> {
    let set = FileDescriptorSet::decode(set).expect("descriptors in this binary are well formed");
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let full = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                methods.push(Described {
                    service: full.clone(),
                    name: method.name().to_owned(),
                    streams: method.client_streaming() || method.server_streaming(),
                    client_streams: method.client_streaming(),
                });
            }
        }
    }
    methods
}

/// Paths of the methods whose clients may go on sending.
fn client_streams() -> BTreeSet<String> {
    let sets = [
        FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let methods = sets.into_iter().flat_map(methods_in).filter(|method| method.client_streams);
    methods.map(|method| format!("/{}/{}", method.service, method.name)).collect()
}

/// Serves on bound listeners until `shutdown` completes and calls in flight have ended, or the grace has passed.
///
/// On shutdown, in this order: health says NOT_SERVING; nothing more is accepted and connections get GOAWAY; waiters,
/// watches and held streams end with what the API says of a shutdown; calls in flight finish. What has not finished
/// after [`Settings::shutdown_grace`] is left to the end of the process.
///
/// # Errors
/// [`ServeError`] when serving ended for another reason.
pub async fn serve(
    services: Services,
    tcp: TcpListener,
    unix: Option<UnixListener>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (stop, stopping) = watch::channel(false);
    let (reporter, health) = tonic_health::server::health_reporter();
    report(&reporter, &QUORUM_NAMES, false).await;
    report(&reporter, &STEADY_NAMES, true).await;
    let routes = Routes::new(&services, health, stopping.clone())?;

    let settings = &services.settings;
    let clock = services.runtime.clock.clone();
    let calls = Gauge::new("calls_max", settings.calls_max);
    let calls_max = settings.calls_per_connection_max;
    let arrivals = Arrivals::new(clock.clone(), settings.arrival_timeout, client_streams());
    let gate = Gate::new(services.access.clone(), services.calls.clone());
    let layer = CallLayer::new(clock.clone(), calls, arrivals, services.calls.clone(), gate);
    let connections = Connections::new(
        settings.connections_max,
        settings.opening_timeout,
        opening::http1_answer(ABOUT, settings.operators),
        services.runtime.clone(),
        services.calls.clone(),
    );

    let tcp = paced(TcpIncoming::from(tcp).with_nodelay(Some(true)), clock.clone());
    let on_tcp = {
        let (routes, layer, stopping) = (routes.clone(), layer.clone(), stopping.clone());
        let (connections, tls) = (connections.clone(), services.tls.clone());
        let tcp = connections.admitted(tls.is_none(), tcp);
        let handshakes = tls.map(|server| Handshakes {
            server,
            calls: services.calls.clone(),
            runtime: services.runtime.clone(),
            connections: connections.clone(),
            calls_max,
            handshakes_max: settings.handshakes_max,
            timeout: settings.handshake_timeout,
            http1_answer: opening::http1_answer(ABOUT_TLS, settings.operators),
        });
        async move {
            match handshakes {
                Some(handshakes) => {
                    serve_on(handshakes::done(tcp, handshakes), routes, layer, settings, stopping).await
                }
                None => {
                    let plain = tcp.map(move |accepted| {
                        accepted.map(|stream| {
                            let peer = stream.get_ref().peer_addr().ok();
                            Connection::new(connections.opened_in_time(stream), peer, calls_max)
                        })
                    });
                    serve_on(plain, routes, layer, settings, stopping).await
                }
            }
        }
    };
    let on_unix = async {
        match unix {
            Some(unix) => {
                let accepted =
                    connections.admitted(true, UnixListenerStream::new(unix)).map(move |accepted| {
                        accepted.map(|stream| {
                            Connection::new(connections.opened_in_time(stream), None, calls_max)
                        })
                    });
                serve_on(paced(accepted, clock.clone()), routes, layer, settings, stopping).await
            }
            None => Ok(()),
        }
    };
    let served = futures::future::try_join(on_tcp, on_unix).map_ok(|((), ())| ());

    let end = async {
        tokio::select! {
            () = shutdown => {}
            () = follow_quorum(&reporter, services.can_serve.clone()) => {}
        }
        report_stopped(&reporter).await;
        stop.send_replace(true);
        services.locks.shut_down();
        services.queues.shut_down();
        services.keys.shut_down();
        close_health_watches(reporter.clone()).await;
        clock.sleep_until(clock.now() + settings.shutdown_grace).await;
    };
    tokio::select! {
        served = served => served,
        () = end => {
            let grace = settings.shutdown_grace;
            tracing::warn!(?grace, "calls were still in flight at the end of the grace; they are cut off");
            Ok(())
        }
    }
}

/// One server over one kind of listener, until `stopping` is true and its connections have closed.
async fn serve_on<I, IO>(
    incoming: I,
    routes: Routes,
    layer: CallLayer,
    settings: &Settings,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), ServeError>
where
    I: Stream<Item = io::Result<Connection<IO>>>,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let streams_max = u32::try_from(settings.calls_per_connection_max).unwrap_or(u32::MAX);
    let streams = streams_max.saturating_add(STREAMS_SPARE);
    let stopped = async move {
        // A sender that is gone has stopped too.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    // Clients may ping every 8 s, with or without a call: hyper answers pings and, unlike the servers of grpc-go and
    // grpc-core, keeps no count of them after which it would send GOAWAY with "too_many_pings".
    Server::builder()
        .http2_keepalive_interval(Some(settings.keepalive_interval))
        .http2_keepalive_timeout(Some(settings.keepalive_timeout))
        .max_concurrent_streams(streams)
        // A client may give up all its calls at once; by default the 21st would take the connection down with all else
        // that is on it.
        .http2_max_pending_accept_reset_streams(Some(streams as usize))
        .initial_connection_window_size(connection_window(streams))
        .http2_max_header_list_size(Some(crate::limits::HEADERS_BYTES_MAX))
        .layer(layer)
        .serve_with_incoming_shutdown(routes, incoming, stopped)
        .await?;
    Ok(())
}

/// h2 closes a connection ("too_many_data_frames") on which more small messages wait to be read than half its window has
/// room for, each counted as [`SMALL_MESSAGE_BYTES`]. A client may send a request on all of its streams at once.
fn connection_window(streams: u32) -> u32 {
    streams.saturating_mul(2 * SMALL_MESSAGE_BYTES).clamp(CONNECTION_WINDOW_MIN, CONNECTION_WINDOW_MAX)
}

/// The same connections, with a pause after every failure to accept one.
fn paced<T>(
    incoming: impl Stream<Item = io::Result<T>>,
    clock: Arc<dyn Clock>,
) -> impl Stream<Item = io::Result<T>> {
    incoming.then(move |accepted| {
        let clock = clock.clone();
        async move {
            if let Err(error) = &accepted {
                tracing::warn!(error = error as &dyn std::error::Error, "could not accept a connection");
                clock.sleep_until(clock.now() + ACCEPT_PAUSE).await;
            }
            accepted
        }
    })
}

/// The names under which it is reported whether a quorum can serve: the daemon as a whole, and each service that needs one.
const QUORUM_NAMES: [&str; 4] = [
    "",
    <LockServiceServer<LockApi> as NamedService>::NAME,
    <QueueServiceServer<QueueApi> as NamedService>::NAME,
    <KvServiceServer<KvApi> as NamedService>::NAME,
];
/// The services that serve for as long as the daemon runs.
const STEADY_NAMES: [&str; 1] = [<ClusterServiceServer<ClusterApi> as NamedService>::NAME];

async fn report(reporter: &HealthReporter, names: &[&str], serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in names {
        reporter.set_service_status(*name, status).await;
    }
}

/// Never ends: who can't tell any more whether a quorum can serve takes it that none can.
async fn follow_quorum(reporter: &HealthReporter, mut can_serve: watch::Receiver<bool>) {
    loop {
        let now = *can_serve.borrow_and_update();
        report(reporter, &QUORUM_NAMES, now).await;
        if can_serve.changed().await.is_err() {
            report(reporter, &QUORUM_NAMES, false).await;
            return std::future::pending().await;
        }
    }
}

/// Ends the streams of `Health.Watch`, which have said NOT_SERVING by now and would hold up the shutdown. Checks on
/// connections that are still open go on being answered NOT_SERVING.
async fn close_health_watches(mut reporter: HealthReporter) {
    for name in QUORUM_NAMES.iter().chain(&STEADY_NAMES) {
        reporter.clear_service_status(name).await;
    }
    report_stopped(&reporter).await;
}

async fn report_stopped(reporter: &HealthReporter) {
    report(reporter, &QUORUM_NAMES, false).await;
    report(reporter, &STEADY_NAMES, false).await;
}
