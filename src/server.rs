//! Composition root: builds the nodes, the rooms, the services and the listeners, and takes them down again.
//! [`check`] looks at the nodes without becoming a daemon, [`reload`] at files that may change.

pub mod check;
pub mod findings;
pub mod reload;
mod supervisor;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::cluster::{DaemonFacts, Observer};
use crate::config::{Recovery, Settings};
use crate::driver::Cluster;
use crate::grpc;
use crate::http::{self, Operators};
use crate::ids::{NodeIndex, ProposerId};
use crate::kv::Keys;
use crate::kv::keys::KeySettings;
use crate::lock::Locks;
use crate::lock::locks::LockSettings;
use crate::meter::calls::Calls;
use crate::metrics::{Limits, Metrics, Sources};
use crate::node::embedded::{EmbeddedNode, EmbeddedServer};
use crate::node::keyspace::{KIND_ITEM, KIND_KEY, KIND_LOCK};
use crate::node::redis::{RedisNode, RedisOptions, Runs};
use crate::node::{Hint, HintSink, Identity, Node};
use crate::queue::Queues;
use crate::queue::queues::QueueSettings;
use crate::quorum::{ClusterSize, InvalidSize};
use crate::runtime::{Runtime, system};
use crate::upkeep::comparing::ComparingSettings;
use crate::upkeep::membership::MembershipSettings;
use crate::upkeep::recovery::RecoveryMode;
use crate::upkeep::{self, Sweeps, UpkeepSettings};

/// How often it is looked whether a quorum can serve, beside the moments when a node's state changes.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

/// What a message with a value or a payload may have besides it, in bytes.
const MESSAGE_SPARE_BYTES: usize = 1 << 20;

/// How long the daemon takes at its end to give up its places in line; those that stay age.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a daemon's nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodesKind {
    /// The servers that the settings list.
    Redis,
    /// So many in this process, which forget everything when it ends.
    Embedded(usize),
}

/// Why a daemon could not serve, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A number of nodes that no cluster may have.
    #[error(transparent)]
    Size(#[from] InvalidSize),
    /// The TCP listener.
    #[error("can't listen on {address} (setting grpc.listen)")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The listener for operators.
    #[error("can't listen on {address} (setting http.listen; off for no such port)")]
    ListenHttp {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The Unix listener.
    #[error("can't listen on {} (setting grpc.unix_socket)", path.display())]
    ListenUnix {
        /// The socket file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The certificate or the rules of access.
    #[error(transparent)]
    Files(#[from] reload::BadFiles),
    /// gRPC.
    #[error(transparent)]
    Grpc(#[from] grpc::ServeError),
}

/// A daemon without its listeners: what the services stand on.
pub struct Daemon {
    /// The nodes.
    pub cluster: Arc<Cluster>,
    /// The locks.
    pub locks: Arc<Locks>,
    /// The queues.
    pub queues: Queues,
    /// The keys.
    pub keys: Keys,
    /// How the cluster is.
    pub observer: Arc<Observer>,
    /// Whether a quorum can serve.
    pub can_serve: watch::Receiver<bool>,
}

/// Where hints go: the rooms are made after the nodes.
#[derive(Default)]
struct HintRouter {
    rooms: OnceLock<(Arc<Locks>, Queues, Keys)>,
    states: Arc<event_listener::Event>,
}

impl HintRouter {
    fn sink(self: &Arc<Self>) -> HintSink {
        let router = self.clone();
        Arc::new(move |node, hint| router.route(node, &hint))
    }

    fn route(&self, node: NodeIndex, hint: &Hint) {
        match (hint, self.rooms.get()) {
            (Hint::State, _) => drop(self.states.notify(usize::MAX)),
            (Hint::Wake(key), Some((locks, ..))) => {
                if let Some((KIND_LOCK, name)) = kind_and_name(key) {
                    locks.on_wake(node, name);
                }
            }
            (Hint::Changed(key), Some((locks, queues, keys))) => match kind_and_name(key) {
                Some((KIND_LOCK, name)) => locks.on_changed(name),
                Some((KIND_ITEM, name)) => queues.on_ready(node, name),
                Some((KIND_KEY, name)) => keys.on_changed(name),
                Some(_) | None => {}
            },
            (Hint::Wake(_) | Hint::Changed(_), None) => {}
        }
    }
}

/// Of a register's key, as hints have it.
fn kind_and_name(key: &[u8]) -> Option<(char, &str)> {
    let (kind, name) = std::str::from_utf8(key).ok()?.split_once(':')?;
    let mut letters = kind.chars();
    let letter = letters.next().filter(|_| letters.as_str().is_empty())?;
    Some((letter, name))
}

impl Daemon {
    /// Puts a daemon together on nodes that `nodes` makes, and starts its tasks.
    ///
    /// # Errors
    /// [`InvalidSize`] for a number of nodes that no cluster may have.
    pub fn start(
        settings: &Settings,
        runtime: &Runtime,
        size: usize,
        nodes: impl FnOnce(&Identity, HintSink) -> Vec<Arc<dyn Node>>,
    ) -> Result<Self, InvalidSize> {
        let size = ClusterSize::new(size)?;
        let proposer = ProposerId(runtime.entropy.next_u64());
        let cluster_name = settings.cluster.name.as_str().into();
        let identity = Identity { cluster: cluster_name, nodes: size.nodes(), daemon: proposer };
        let router = Arc::new(HintRouter::default());
        let nodes = nodes(&identity, router.sink());
        let cluster = Arc::new(Cluster::new(size, nodes, proposer, runtime.clone()));
        let locks = Arc::new(Locks::new(cluster.clone(), lock_settings(settings)));
        let keys = Keys::new(cluster.clone(), key_settings(settings));
        let queues = Queues::new(cluster.clone(), queue_settings(settings));
        router.rooms.get_or_init(|| (locks.clone(), queues.clone(), keys.clone()));
        let observer = Observer::new(cluster.clone(), facts(settings, &cluster), router.states.clone());
        let sweeps: Sweeps = vec![locks.clone(), Arc::new(keys.clone())];
        upkeep::start(&cluster, upkeep_settings(settings), sweeps);
        let (sender, can_serve) = watch::channel(false);
        runtime.spawner.spawn(watch_quorum(cluster.clone(), router, sender).boxed());
        Ok(Self { cluster, locks, queues, keys, observer: Arc::new(observer), can_serve })
    }

    /// On the servers that the settings list.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn on_redis(settings: &Settings, runtime: &Runtime) -> Result<Self, InvalidSize> {
        let options: Vec<_> = redis_options(settings).collect();
        Self::start(settings, runtime, options.len(), |identity, hints| {
            let runs = Arc::new(Runs::default());
            let nodes = (0..).zip(options).map(|(index, options)| {
                let (runs, hints) = (runs.clone(), hints.clone());
                let node = RedisNode::new(NodeIndex(index), options, identity.clone(), runs, hints, runtime);
                Arc::new(node) as Arc<dyn Node>
            });
            nodes.collect()
        })
    }

    /// On nodes in this process.
    ///
    /// # Errors
    /// See [`Daemon::start`].
    pub fn on_embedded(
        settings: &Settings,
        runtime: &Runtime,
        servers: &[Arc<EmbeddedServer>],
    ) -> Result<Self, InvalidSize> {
        Self::start(settings, runtime, servers.len(), |identity, hints| {
            let nodes = (0..).zip(servers).map(|(index, server)| {
                EmbeddedNode::new(server.clone(), identity.clone(), NodeIndex(index), hints.clone())
                    as Arc<dyn Node>
            });
            nodes.collect()
        })
    }
}

/// What operators see of a daemon.
pub fn operators(
    daemon: &Daemon,
    settings: &Settings,
    calls: Arc<Calls>,
    stopping: watch::Receiver<bool>,
) -> Operators {
    let grpc = grpc_settings(settings);
    let limits = Limits {
        calls: grpc.calls_max,
        connections: grpc.connections_max,
        lock_waiters: settings.locks.waiters_max,
    };
    let sources = Sources {
        cluster: daemon.cluster.clone(),
        locks: daemon.locks.clone(),
        queues: daemon.queues.clone(),
        keys: daemon.keys.clone(),
        observer: daemon.observer.clone(),
        calls,
        limits,
    };
    let (observer, runtime) = (daemon.observer.clone(), daemon.cluster.runtime.clone());
    Operators { metrics: Metrics::new(sources), observer, stopping, limits: http::Limits::default(), runtime }
}

/// Servers for embedded nodes, with the clock of this machine.
pub fn embedded_servers(count: usize, runtime: &Runtime) -> Vec<Arc<EmbeddedServer>> {
    let server = |name: usize| {
        let clock = runtime.clock.clone();
        EmbeddedServer::new(name as u64, Arc::new(move || clock.wall_unix_ms() * 1_000))
    };
    (0..count).map(server).collect()
}

fn upkeep_settings(settings: &Settings) -> UpkeepSettings {
    let healing = &settings.healing;
    let recovery = match healing.recovery {
        Recovery::Automatic => RecoveryMode::Automatic,
        Recovery::Available => RecoveryMode::Available,
        Recovery::Manual => RecoveryMode::Manual,
    };
    UpkeepSettings {
        membership: MembershipSettings {
            bootstrap: settings.cluster.bootstrap,
            ttl_max: settings.locks.ttl_max,
            join_rate: healing.join_rate,
            recovery,
            out_after: healing.out_after,
        },
        comparing: ComparingSettings { interval: healing.compare_interval, rate: healing.compare_rate },
    }
}

fn facts(settings: &Settings, cluster: &Cluster) -> DaemonFacts {
    DaemonFacts {
        cluster: settings.cluster.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        proposer: cluster.proposer,
        started_unix_ms: cluster.runtime.clock.wall_unix_ms(),
        settings: settings.shown(),
    }
}

fn lock_settings(settings: &Settings) -> LockSettings {
    LockSettings {
        waiters_per_name_max: settings.locks.waiters_per_name_max,
        waiters_max: settings.locks.waiters_max,
        offer_grace: settings.locks.offer_grace,
        look_interval: settings.locks.look_interval,
        patience: settings.quorum.patience,
    }
}

fn queue_settings(settings: &Settings) -> QueueSettings {
    QueueSettings {
        patience: settings.quorum.patience,
        look_interval: settings.queues.look_interval,
        waiters_per_name_max: settings.queues.waiters_per_name_max,
        ..QueueSettings::default()
    }
}

fn key_settings(settings: &Settings) -> KeySettings {
    KeySettings {
        patience: settings.quorum.patience,
        look_interval: settings.keys.look_interval,
        ..KeySettings::default()
    }
}

pub(crate) fn redis_options(settings: &Settings) -> impl Iterator<Item = RedisOptions> + '_ {
    let nodes = &settings.nodes;
    nodes.addresses.iter().map(move |address| {
        let (username, password) = nodes.credentials(address);
        RedisOptions {
            address: address.clone(),
            username: username.map(str::to_owned),
            password: password.cloned(),
            ca_file: nodes.tls.ca_file.clone(),
            client_pair: nodes.tls.cert_file.clone().zip(nodes.tls.key_file.clone()),
            connect_timeout: nodes.connect_timeout,
            call_timeout: nodes.call_timeout,
            reconnect_delay_max: nodes.reconnect_delay_max,
            inspect_interval: nodes.inspect_interval,
            assume_noeviction: nodes.assume_noeviction,
        }
    })
}

/// How many files a daemon has open that has as many connections as it takes.
fn open_files_needed(settings: &Settings) -> u64 {
    u64::from(settings.grpc.max_connections) + crate::limits::OPEN_FILES_SPARE
}

fn grpc_settings(settings: &Settings) -> grpc::Settings {
    let defaults = grpc::Settings::default();
    let limits = grpc::convert::Limits {
        ttl_min: settings.locks.ttl_min,
        ttl_max: settings.locks.ttl_max,
        ttl_default: settings.locks.ttl_default,
        key_ttl_max: settings.keys.ttl_max,
        value_bytes_max: settings.keys.value_bytes_max,
        payload_bytes_max: settings.queues.payload_bytes_max,
        ..defaults.limits.clone()
    };
    let bytes_max = settings.keys.value_bytes_max.max(settings.queues.payload_bytes_max);
    grpc::Settings {
        // The largest value, and one that is too large by little and gets an answer that says so.
        message_bytes_max: defaults.message_bytes_max.max(bytes_max + MESSAGE_SPARE_BYTES),
        limits,
        deadline_default: settings.grpc.default_timeout,
        shutdown_grace: settings.grpc.shutdown_grace,
        connections_max: settings.grpc.max_connections as usize,
        calls_per_connection_max: settings.grpc.max_streams_per_connection as usize,
        ..defaults
    }
}

/// Keeps `sender` at whether a quorum can serve.
async fn watch_quorum(cluster: Arc<Cluster>, router: Arc<HintRouter>, sender: watch::Sender<bool>) {
    let clock = cluster.runtime.clock.clone();
    while !sender.is_closed() {
        let changed = futures::future::select(router.states.listen(), cluster.views.refreshed());
        if cluster.views.current().is_none() {
            // Who looks for a list need not wait for its next look.
            cluster.views.want();
        }
        let can_serve = cluster.reachable() >= cluster.size.quorum();
        let flipped = sender.send_if_modified(|now| std::mem::replace(now, can_serve) != can_serve);
        if flipped && can_serve {
            tracing::info!(reachable = cluster.reachable(), "a quorum can serve");
        } else if flipped {
            tracing::error!(reachable = cluster.reachable(), detail = cluster.complaint(), "no quorum");
        }
        futures::future::select(changed, clock.sleep_until(clock.now() + HEALTH_INTERVAL)).await;
    }
}

/// Serves until `shutdown` completes, then ends gracefully.
///
/// # Errors
/// [`ServeError`] says what could not be started or what broke.
pub async fn run(
    settings: Settings,
    nodes: NodesKind,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let runtime = system::runtime();
    if let Some(open_files) = system::raise_open_files()
        && open_files < open_files_needed(&settings)
    {
        let needed = open_files_needed(&settings);
        tracing::warn!(
            open_files,
            needed,
            "fewer files may be open than grpc.max_connections needs: raise the limit (LimitNOFILE of systemd, ulimit -n)"
        );
    }
    let address = settings.grpc.listen;
    let tcp = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    let unix = settings.grpc.unix_socket.as_deref().map(listen_unix).transpose()?;
    let http = listen_http(settings.http.listen).await?;
    let http_address = http.as_ref().and_then(|listener| listener.local_addr().ok());
    let calls = Arc::new(grpc::calls());
    let door = reload::start(&settings, &runtime, &calls).await?;
    let daemon = match nodes {
        NodesKind::Redis => Daemon::on_redis(&settings, &runtime)?,
        NodesKind::Embedded(count) => {
            Daemon::on_embedded(&settings, &runtime, &embedded_servers(count, &runtime))?
        }
    };
    let listen = tcp.local_addr().unwrap_or(address);
    let (tls, rules) = (door.tls.is_some(), door.access.is_some());
    tracing::info!(%listen, tls, rules, cluster = settings.cluster.name, nodes = daemon.cluster.size.nodes(), "serving gRPC");
    let (stop, stopping) = watch::channel(false);
    let supervised = supervisor::inform(daemon.cluster.clone(), daemon.can_serve.clone(), stopping.clone());
    let operators = Arc::new(operators(&daemon, &settings, calls.clone(), stopping));
    let shutdown = async move {
        shutdown.await;
        supervisor::stopping();
        stop.send_replace(true);
    };
    let services = grpc::Services {
        locks: daemon.locks,
        queues: daemon.queues,
        keys: daemon.keys,
        observer: daemon.observer,
        runtime,
        can_serve: daemon.can_serve,
        calls,
        tls: door.tls,
        access: door.access,
        settings: grpc::Settings { operators: http_address, ..grpc_settings(&settings) },
    };
    let locks = services.locks.clone();
    let clock = services.runtime.clock.clone();
    // Operators are answered, and the service manager told, until the last call has ended.
    tokio::select! {
        served = grpc::serve(services, tcp, unix, shutdown) => served?,
        never = serve_http(operators, http) => match never {},
        never = supervised => match never {},
    }
    locks.settled(clock.now() + SETTLE_TIMEOUT).await;
    if let Some(path) = &settings.grpc.unix_socket {
        // A file that is gone already is what was wanted.
        let _ = std::fs::remove_file(path);
    }
    tracing::info!("stopped");
    Ok(())
}

async fn listen_http(address: Option<std::net::SocketAddr>) -> Result<Option<TcpListener>, ServeError> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|source| ServeError::ListenHttp { address, source })
}

async fn serve_http(operators: Arc<Operators>, listener: Option<TcpListener>) -> std::convert::Infallible {
    let Some(listener) = listener else { return futures::future::pending().await };
    if let Ok(listen) = listener.local_addr() {
        tracing::info!(%listen, "serving operators over HTTP");
    }
    http::serve(operators, listener).await
}

/// Listens on a socket file; one that a daemon before this left behind is replaced, one that is in use is not.
fn listen_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::ListenUnix { path: path.to_owned(), source };
    if std::os::unix::net::UnixStream::connect(path).is_err() && path.exists() {
        std::fs::remove_file(path).map_err(failed)?;
    }
    UnixListener::bind(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_room_for_the_largest_value_or_payload_and_a_batch() {
        for (value_bytes_max, least) in [(1, 4 << 20), (1 << 20, 4 << 20), (16 << 20, 16 << 20)] {
            let mut settings = Settings::default();
            settings.keys.value_bytes_max = value_bytes_max;
            let grpc = grpc_settings(&settings);
            assert!(grpc.message_bytes_max > least, "{value_bytes_max}");
            assert_eq!(grpc.limits.value_bytes_max, value_bytes_max);
            let mut settings = Settings::default();
            settings.queues.payload_bytes_max = value_bytes_max;
            let grpc = grpc_settings(&settings);
            assert!(grpc.message_bytes_max > least, "{value_bytes_max}");
            assert_eq!(grpc.limits.payload_bytes_max, value_bytes_max);
        }
    }

    #[test]
    fn the_name_of_a_register_has_one_letter_before_it() {
        assert_eq!(kind_and_name(b"k:a:b"), Some(('k', "a:b")));
        assert_eq!(kind_and_name("l:ü".as_bytes()), Some(('l', "ü")));
        for other in [&b"k"[..], b":a", b"kl:a", b"k:\xff", b""] {
            assert_eq!(kind_and_name(other), None, "{other:?}");
        }
    }
}
