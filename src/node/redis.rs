//! A node that is a Redis server, reached through fred.
//!
//! One connection at a time, which never reconnects by itself and never sends a command twice: fred gets no reconnect
//! policy and one attempt per command. A task keeps it: connect, handshake ([`super::handshake`]), serve until it breaks
//! or is reset, rest, and again. Every connection is a new client, so what was under way on the old one ends as lost.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use event_listener::Event;
use fred::clients::Client;
use fred::error::ErrorKind;
use fred::interfaces::{ClientLike, EventInterface, LuaInterface, PubsubInterface};
use fred::types::config::{ConnectionConfig, PerformanceConfig, ServerConfig, TcpConfig};
use fred::types::{ConnectHandle, CustomCommand, Message, Value};
use futures::FutureExt;
use futures::future::{self, BoxFuture, Either};

use super::handshake::{Inspection, Refusal, Welcome, greeted, inspect};
use super::keyspace::{changes_channel, daemon_channel};
use super::{CallError, Hint, HintSink, Identity, Node, NodeState, script};
use crate::config::{NodeAddress, NodeServer, Secret};
use crate::ids::{MemoryId, NodeIndex};
use crate::runtime::Runtime;

/// The shortest pause between two attempts to connect.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// How often a refused server is looked at again.
const REFUSED_DELAY: Duration = Duration::from_secs(2);

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Where it is.
    pub address: NodeAddress,
    /// The ACL user.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a connection may take to be ready, handshake included.
    pub connect_timeout: Duration,
    /// How long a batch may take before it counts as lost and the connection is given up.
    pub call_timeout: Duration,
    /// The longest pause between two attempts to connect.
    pub reconnect_delay_max: Duration,
    /// How often the server is asked again whether it is still fit.
    pub inspect_interval: Duration,
    /// Vouches for `noeviction` where the server hides CONFIG.
    pub assume_noeviction: bool,
}

/// Which runs of servers the nodes of one daemon are connected to, so that no server is counted twice.
#[derive(Default)]
pub struct Runs(Mutex<Vec<Option<Run>>>);

/// A run id, and the node that is connected to it.
type Run = (String, Weak<Shared>);

impl Runs {
    /// Registers a node's run.
    fn register(&self, shared: &Arc<Shared>, run_id: &str) -> Result<(), Refusal> {
        let index = usize::from(shared.index.0);
        let mut runs = self.0.lock().expect("no holder of this lock panics");
        if runs.len() <= index {
            runs.resize_with(index + 1, || None);
        }
        runs[index] = None;
        let same = |run: &Option<Run>| run.as_ref().is_some_and(|(id, _)| id == run_id);
        if let Some(other) = runs[..index].iter().position(same) {
            return Err(Refusal::Duplicate { other: other as u8, run_id: run_id.to_owned() });
        }
        // The higher index is the one that is refused, whoever connected first.
        for later in runs[index + 1..].iter().filter(|run| same(run)) {
            if let Some(later) = later.as_ref().and_then(|(_, shared)| shared.upgrade()) {
                later.reset(None, "it is the same server as another node");
            }
        }
        runs[index] = Some((run_id.to_owned(), Arc::downgrade(shared)));
        Ok(())
    }

    fn forget(&self, index: NodeIndex) {
        let mut runs = self.0.lock().expect("no holder of this lock panics");
        if let Some(run) = runs.get_mut(usize::from(index.0)) {
            *run = None;
        }
    }
}

/// A node that is a Redis server. Dropping it ends its task.
pub struct RedisNode {
    shared: Arc<Shared>,
}

struct Shared {
    index: NodeIndex,
    address: String,
    identity: Identity,
    options: RedisOptions,
    runtime: Runtime,
    hints: HintSink,
    runs: Arc<Runs>,
    current: Mutex<Current>,
    /// Wakes the task: the connection is to be dropped, the subscription changed, or the node is gone.
    woken: Event,
    watching: AtomicBool,
    ended: AtomicBool,
    connections: AtomicU64,
}

struct Current {
    state: NodeState,
    live: Option<Live>,
}

/// A connection whose handshake succeeded.
#[derive(Clone)]
struct Live {
    client: Client,
    digest: Arc<str>,
    /// Tells connections apart, so that a late failure of one does not reset the next.
    number: u64,
}

/// Why a connection did not come to be, or ended.
enum Failure {
    Unreachable(String),
    Refused(Refusal),
}

impl RedisNode {
    /// Starts the task that keeps the connection.
    pub fn new(
        index: NodeIndex,
        options: RedisOptions,
        identity: Identity,
        runs: Arc<Runs>,
        hints: HintSink,
        runtime: &Runtime,
    ) -> Self {
        let shared = Arc::new(Shared {
            index,
            address: options.address.to_string(),
            identity,
            options,
            runtime: runtime.clone(),
            hints,
            runs,
            current: Mutex::new(Current {
                state: NodeState::Unreachable("not connected yet".into()),
                live: None,
            }),
            woken: Event::new(),
            watching: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            connections: AtomicU64::new(0),
        });
        runtime.spawner.spawn(shared.clone().keep().boxed());
        Self { shared }
    }
}

impl Drop for RedisNode {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.woken.notify(usize::MAX);
    }
}

impl Node for RedisNode {
    fn index(&self) -> NodeIndex {
        self.shared.index
    }

    fn address(&self) -> &str {
        &self.shared.address
    }

    fn call(&self, payload: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let shared = self.shared.clone();
        async move { shared.call(payload).await }.boxed()
    }

    fn reset(&self, reason: &str) {
        self.shared.reset(None, reason);
    }

    fn state(&self) -> NodeState {
        self.shared.current().state.clone()
    }

    fn watch_changes(&self, on: bool) {
        self.shared.watching.store(on, Ordering::Release);
        self.shared.woken.notify(usize::MAX);
    }
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().expect("no holder of this lock panics")
    }

    async fn call(&self, payload: Bytes) -> Result<Bytes, CallError> {
        let live = {
            let current = self.current();
            match (&current.live, &current.state) {
                (Some(live), _) => live.clone(),
                (None, NodeState::Unreachable(reason)) => return Err(CallError::Unsent(reason.clone())),
                (None, NodeState::Refused(refusal)) => {
                    return Err(CallError::Unsent(refusal.to_string().into()));
                }
                (None, NodeState::Ready(_)) => return Err(CallError::Unsent("reconnecting".into())),
            }
        };
        let no_keys = Vec::<String>::new();
        let sent =
            live.client.evalsha::<Value, _, _, _>(&*live.digest, no_keys, Value::Bytes(payload)).boxed();
        let clock = &self.runtime.clock;
        let timer = clock.sleep_until(clock.now() + self.options.call_timeout);
        let lost = match future::select(sent, timer).await {
            Either::Left((Ok(reply), _)) => match reply.into_bytes() {
                Some(bytes) => return Ok(bytes),
                None => "the script's reply is not a string".to_owned(),
            },
            Either::Left((Err(error), _)) => match refused_whole(&error) {
                Some(reconnect) => {
                    if reconnect {
                        self.reset(Some(live.number), error.details());
                    }
                    return Err(CallError::Unsent(error.details().into()));
                }
                None => words_of(&error),
            },
            // A frozen server must not hold things up. What it still does with this batch nobody knows.
            Either::Right(_) => format!("no reply within {:?}", self.options.call_timeout),
        };
        self.reset(Some(live.number), &lost);
        Err(CallError::Lost(lost.into()))
    }

    /// Drops the connection: this one, or with `None` whichever it is.
    fn reset(&self, number: Option<u64>, reason: &str) {
        let mut current = self.current();
        let is_it =
            current.live.as_ref().is_some_and(|live| number.is_none_or(|number| live.number == number));
        if is_it {
            current.live = None;
            current.state = NodeState::Unreachable(reason.into());
            drop(current);
            self.woken.notify(usize::MAX);
        }
    }

    /// Keeps a connection for as long as the node exists.
    async fn keep(self: Arc<Self>) {
        let mut delay = RECONNECT_DELAY_MIN;
        while !self.ended.load(Ordering::Acquire) {
            let started = self.runtime.clock.now();
            let failure = self.connect_and_serve().await;
            self.runs.forget(self.index);
            let pause = match &failure {
                Failure::Refused(_) => REFUSED_DELAY,
                Failure::Unreachable(_) => {
                    // A connection that lasted was a good one.
                    if self.runtime.clock.now().since(started) > self.options.reconnect_delay_max * 2 {
                        delay = RECONNECT_DELAY_MIN;
                    }
                    delay = (delay * 2).min(self.options.reconnect_delay_max);
                    delay / 2 + self.runtime.entropy.jitter(delay / 2)
                }
            };
            self.set_failed(failure);
            let (clock, until) = (&self.runtime.clock, self.runtime.clock.now() + pause);
            clock.sleep_until(until).await;
        }
    }

    fn set_failed(&self, failure: Failure) {
        let state = match failure {
            Failure::Unreachable(reason) => NodeState::Unreachable(reason.into()),
            Failure::Refused(refusal) => NodeState::Refused(refusal),
        };
        self.set(state, None);
    }

    /// Takes note of a new state, and logs it if it is another one.
    fn set(&self, state: NodeState, live: Option<Live>) {
        let mut current = self.current();
        let before = std::mem::replace(&mut current.state, state.clone());
        current.live = live;
        drop(current);
        let (node, address) = (self.index, &self.address);
        match (&before, &state) {
            (NodeState::Unreachable(before), NodeState::Unreachable(now)) if before == now => return,
            (before, now) if before == now => return,
            (_, NodeState::Unreachable(reason)) => {
                tracing::warn!(%node, address, %reason, "a node can't be reached")
            }
            (_, NodeState::Refused(refusal)) => {
                tracing::error!(%node, address, %refusal, "a node is refused")
            }
            (_, NodeState::Ready(welcome)) => {
                let (version, has_memory) = (&welcome.version, welcome.memory.is_some());
                tracing::info!(%node, address, %version, has_memory, "a node is connected");
            }
        }
        (self.hints)(self.index, Hint::State);
    }

    async fn connect_and_serve(self: &Arc<Self>) -> Failure {
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => return Failure::Unreachable(error),
        };
        let mut messages = client.message_rx();
        let mut connection = client.connect();
        let clock = self.runtime.clock.clone();
        let ready = async {
            client.wait_for_connect().await.map_err(|error| unreachable_or_denied("AUTH", &error))?;
            self.shake_hands(&client).await
        };
        let timer = clock.sleep_until(clock.now() + self.options.connect_timeout);
        let outcome = match future::select(ready.boxed(), timer).await {
            Either::Left((Ok((welcome, digest)), _)) => {
                let number = self.connections.fetch_add(1, Ordering::Relaxed);
                let live = Live { client: client.clone(), digest, number };
                self.set(NodeState::Ready(welcome), Some(live));
                self.serve(&client, number, &mut messages, &mut connection).await
            }
            Either::Left((Err(failure), _)) => failure,
            Either::Right(_) => {
                Failure::Unreachable(format!("no connection within {:?}", self.options.connect_timeout))
            }
        };
        self.current().live = None;
        // Ends the client's task and closes its socket, whatever the server does.
        connection.abort();
        outcome
    }

    /// Until the connection ends: passes hints on, keeps subscriptions, and asks now and then whether the server is fit.
    async fn serve(
        self: &Arc<Self>,
        client: &Client,
        number: u64,
        messages: &mut tokio::sync::broadcast::Receiver<Message>,
        connection: &mut ConnectHandle,
    ) -> Failure {
        let clock = self.runtime.clock.clone();
        let changes = changes_channel(&self.identity.cluster);
        let mut subscribed = false;
        let mut inspection = clock.sleep_until(clock.now() + self.options.inspect_interval);
        loop {
            let woken = self.woken.listen();
            if self.ended.load(Ordering::Acquire) {
                return Failure::Unreachable("the daemon is stopping".into());
            }
            match &*self.current() {
                Current { live: Some(live), .. } if live.number == number => {}
                Current { state: NodeState::Unreachable(reason), .. } => {
                    return Failure::Unreachable(reason.to_string());
                }
                Current { .. } => return Failure::Unreachable("the connection was reset".into()),
            }
            let watching = self.watching.load(Ordering::Acquire);
            if watching != subscribed {
                let result = if watching {
                    client.subscribe(changes.as_str()).await
                } else {
                    client.unsubscribe(changes.as_str()).await
                };
                if let Err(error) = result {
                    return Failure::Unreachable(words_of(&error));
                }
                subscribed = watching;
            }
            futures::select_biased! {
                message = messages.recv().fuse() => match message {
                    Ok(message) => self.pass_on(&message, &changes),
                    // Hints were dropped: whoever waits for them looks by itself sooner or later.
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => {
                        return Failure::Unreachable("the connection was closed".into());
                    }
                },
                ended = (&mut *connection).fuse() => {
                    let reason = match ended {
                        Ok(Err(error)) => words_of(&error),
                        Ok(Ok(())) | Err(_) => "the connection was closed".to_owned(),
                    };
                    return Failure::Unreachable(reason);
                }
                () = (&mut inspection).fuse() => {
                    if let Err(failure) = self.inspect_again(client).await {
                        return failure;
                    }
                    inspection = clock.sleep_until(clock.now() + self.options.inspect_interval);
                }
                () = woken.fuse() => {}
            }
        }
    }

    fn pass_on(&self, message: &Message, changes: &str) {
        let Some(key) = message.value.clone().into_bytes() else { return };
        let hint = if *message.channel == *changes { Hint::Changed(key) } else { Hint::Wake(key) };
        (self.hints)(self.index, hint);
    }

    async fn inspect_again(self: &Arc<Self>, client: &Client) -> Result<(), Failure> {
        let clock = &self.runtime.clock;
        let timer = clock.sleep_until(clock.now() + self.options.call_timeout);
        match future::select(self.inspect(client).boxed(), timer).await {
            Either::Left((Ok(found), _)) => inspect(&found).map_err(Failure::Refused),
            Either::Left((Err(failure), _)) => Err(failure),
            Either::Right(_) => {
                Err(Failure::Unreachable(format!("no answer within {:?}", self.options.call_timeout)))
            }
        }
    }

    // ---- the handshake

    async fn shake_hands(self: &Arc<Self>, client: &Client) -> Result<(Welcome, Arc<str>), Failure> {
        let found = self.inspect(client).await?;
        inspect(&found).map_err(Failure::Refused)?;
        let (Some(version), Some(run_id)) = (&found.redis_version, &found.run_id) else {
            unreachable!("an inspection without them is refused")
        };
        self.runs.register(self, run_id).map_err(Failure::Refused)?;
        let memory = self.hello(client, run_id).await?;
        let batch = script::batch(&self.identity, self.index);
        let digest: String =
            ask(client, "SCRIPT", vec!["LOAD".into(), batch]).await?.into_string().ok_or_else(|| {
                Failure::Refused(Refusal::Denied {
                    command: "SCRIPT LOAD",
                    message: "no digest came back".into(),
                })
            })?;
        let own = daemon_channel(&self.identity.cluster, self.identity.daemon);
        client.subscribe(own).await.map_err(|error| unreachable_or_denied("SUBSCRIBE", &error))?;
        Ok((
            Welcome { version: version.as_str().into(), run_id: run_id.as_str().into(), memory },
            digest.into(),
        ))
    }

    /// What the server says about itself.
    async fn inspect(&self, client: &Client) -> Result<Inspection, Failure> {
        let info = ask(client, "INFO", vec![]).await?.into_string().unwrap_or_default();
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned())
        };
        let assumed = self.options.assume_noeviction.then(|| "noeviction".to_owned());
        Ok(Inspection {
            redis_version: field("redis_version"),
            run_id: field("run_id"),
            role: field("role"),
            cluster_enabled: field("cluster_enabled").is_some_and(|enabled| enabled == "1"),
            maxmemory_policy: setting(client, "maxmemory-policy").await?.or(assumed),
            appendonly: setting(client, "appendonly").await?,
        })
    }

    /// Makes or checks the node record; gives the memory.
    async fn hello(&self, client: &Client, run_id: &str) -> Result<Option<MemoryId>, Failure> {
        let script = script::hello(&self.identity, self.index);
        let no_keys = Vec::<String>::new();
        let reply = client
            .eval::<Value, _, _, _>(script, no_keys, run_id)
            .await
            .map_err(|error| unreachable_or_denied("EVAL", &error))?;
        let reply = reply.into_bytes().unwrap_or_default();
        greeted(&self.identity, self.index, &reply).map_err(Failure::Refused)
    }

    // ---- fred

    /// A client for one connection.
    fn client(&self) -> Result<Client, String> {
        let options = &self.options;
        let server = match &options.address.server {
            NodeServer::Tcp { host, port } => ServerConfig::new_centralized(host.clone(), *port),
            NodeServer::Unix { path } => ServerConfig::Unix { path: path.clone() },
        };
        let config = fred::types::config::Config {
            server,
            username: options.username.clone(),
            password: options.password.as_ref().map(|password| password.expose().to_owned()),
            database: (options.address.database != 0).then_some(options.address.database),
            version: fred::types::RespVersion::RESP3,
            fail_fast: true,
            tls: if options.address.tls { Some(tls(options.ca_file.as_ref())?) } else { None },
            ..Default::default()
        };
        let performance = PerformanceConfig { default_command_timeout: Duration::ZERO, ..Default::default() };
        let connection = ConnectionConfig {
            connection_timeout: options.connect_timeout,
            internal_command_timeout: options.connect_timeout,
            max_command_attempts: 1,
            tcp: TcpConfig { nodelay: Some(true), ..Default::default() },
            ..Default::default()
        };
        Ok(Client::new(config, Some(performance), Some(connection), None))
    }
}

/// One command of the handshake.
async fn ask(client: &Client, command: &'static str, arguments: Vec<String>) -> Result<Value, Failure> {
    let custom = CustomCommand::new_static(command, None::<u16>, false);
    client.custom::<Value, _>(custom, arguments).await.map_err(|error| unreachable_or_denied(command, &error))
}

/// A setting of the server; `None` where it hides CONFIG.
async fn setting(client: &Client, name: &str) -> Result<Option<String>, Failure> {
    match ask(client, "CONFIG", vec!["GET".into(), name.into()]).await {
        Ok(reply) => Ok(reply.into_array().into_iter().nth(1).and_then(Value::into_string)),
        Err(Failure::Refused(_)) => Ok(None),
        Err(unreachable) => Err(unreachable),
    }
}

/// An error reply means that the server is there and says no; anything else that it is not there.
fn unreachable_or_denied(command: &'static str, error: &fred::error::Error) -> Failure {
    let message = words_of(error);
    let loading = ["LOADING", "BUSY", "MASTERDOWN"].iter().any(|code| message.starts_with(code));
    if error_code(error).is_some() && !loading {
        Failure::Refused(Refusal::Denied { command, message })
    } else {
        Failure::Unreachable(message)
    }
}

/// The error in words: fred passes on errors of the system as their debug form.
fn words_of(error: &fred::error::Error) -> String {
    let details = error.details();
    let of_system = details.split_once("message: \"").and_then(|(_, rest)| rest.split_once('"'));
    of_system.map_or_else(|| details.to_owned(), |(words, _)| words.to_owned())
}

/// The first word of a server's error reply (`NOSCRIPT`, `ERR`, …); `None` for what went wrong on this side.
fn error_code(error: &fred::error::Error) -> Option<&str> {
    let local = matches!(
        error.kind(),
        ErrorKind::IO
            | ErrorKind::Timeout
            | ErrorKind::Canceled
            | ErrorKind::Routing
            | ErrorKind::Tls
            | ErrorKind::Parse
    );
    let word = error.details().split_whitespace().next()?;
    let is_code = word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase());
    (!local && is_code).then_some(word)
}

/// Whether the server refused the call before the script ran; then, whether a new handshake is due.
fn refused_whole(error: &fred::error::Error) -> Option<bool> {
    match error_code(error)? {
        // The server does not know the script: this run of it, or this cache, was never inspected.
        "NOSCRIPT" => Some(true),
        "NOAUTH" | "NOPERM" | "MASTERDOWN" => Some(true),
        // It is busy with something else and did not begin.
        "LOADING" | "BUSY" => Some(false),
        // ERR, OOM, READONLY, MISCONF, …: the script may have run in part.
        _ => None,
    }
}

fn tls(ca_file: Option<&PathBuf>) -> Result<fred::types::config::TlsConfig, String> {
    use fred::rustls::pki_types::CertificateDer;
    use fred::rustls::pki_types::pem::PemObject;
    use fred::rustls::{ClientConfig, RootCertStore};
    use fred::types::config::TlsConnector;

    let Some(path) = ca_file else {
        return TlsConnector::default_rustls().map(Into::into).map_err(|error| error.to_string());
    };
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))? {
        let certificate = certificate.map_err(|error| failed(&error))?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    let provider = Arc::new(fred::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(config).into())
}
