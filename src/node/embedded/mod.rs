//! A node without Redis: the same Lua, run in this process over data in memory.
//!
//! An [`EmbeddedServer`] stands for one Redis server: data ([`Keyspace`]), a clock that is given, a run, a script cache,
//! and Pub/Sub. An [`EmbeddedNode`] is one daemon's connection to it; several daemons may share a server. The
//! conformance suite ([`super::conformance`]) shows that the two kinds of node answer alike.
//!
//! Deterministic: no task, no randomness and no time but the given clock. A call is done when its future is first
//! polled. A server that is stopped or restarted breaks its connections; a node then answers `Unsent` until
//! [`EmbeddedNode::connect`] has done the handshake anew, or [`Node::reset`] has, which is the same.

mod interpreter;
mod keyspace;
mod msgpack;
mod sorted_set;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use self::interpreter::Interpreter;
pub use self::keyspace::{Entry, Keyspace};
pub use self::sorted_set::SortedSet;
use super::handshake::{self, Inspection, Welcome};
use super::keyspace::{changes_channel, daemon_channel};
use super::peek::{Peeked, Question};
use super::{CallError, Hint, HintSink, Identity, Node, NodeState, script};
use crate::ids::NodeIndex;

/// A server's clock: microseconds of Unix time.
pub type ServerClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a server has after a restart.
#[derive(Clone, Debug)]
pub enum After {
    /// What it had before.
    Kept,
    /// Nothing.
    Wiped,
    /// Something else, such as an older snapshot.
    Replaced(Keyspace),
}

const VERSION: &str = "7.0.0-embedded";
const LOCKED: &str = "no holder of this lock panics";

/// What stands for one Redis server.
pub struct EmbeddedServer {
    name: u64,
    clock: ServerClock,
    inner: Mutex<Inner>,
}

struct Inner {
    interpreter: Interpreter,
    /// Counts starts; part of the run_id.
    run: u64,
    up: bool,
    /// The script cache, which a restart empties.
    loaded: BTreeSet<String>,
    connections: BTreeMap<u64, Connection>,
    connections_made: u64,
}

/// A connection as the server knows it.
struct Connection {
    node: Weak<EmbeddedNode>,
    subscribed: BTreeMap<Bytes, Subscription>,
}

#[derive(Clone, Copy)]
enum Subscription {
    Daemon,
    Changes,
}

/// Hints on their way, to be handed over when no lock is held.
type Deliveries = Vec<(Arc<EmbeddedNode>, Hint)>;

fn deliver(deliveries: Deliveries) {
    for (node, hint) in deliveries {
        (node.hints)(node.index, hint);
    }
}

impl EmbeddedServer {
    /// Starts an empty server. Servers that are used together need different names: the run_id comes from them.
    pub fn new(name: u64, clock: ServerClock) -> Arc<Self> {
        let inner = Inner {
            interpreter: Interpreter::new(),
            run: 1,
            up: true,
            loaded: BTreeSet::new(),
            connections: BTreeMap::new(),
            connections_made: 0,
        };
        Arc::new(Self { name, clock, inner: Mutex::new(inner) })
    }

    /// The name of this run: 40 hexadecimal digits, new with every start.
    pub fn run_id(&self) -> String {
        self.run_id_of(self.inner().run)
    }

    fn run_id_of(&self, run: u64) -> String {
        format!("{:016x}{run:024x}", self.name)
    }

    /// What its clock shows, in microseconds of Unix time.
    pub fn clock_us(&self) -> u64 {
        (self.clock)()
    }

    /// A copy of the data.
    pub fn keyspace(&self) -> Keyspace {
        self.inner().interpreter.store().keyspace.clone()
    }

    /// Changes the data behind the back of all, as an operator with `redis-cli` may. FLUSHALL is
    /// `edit(|keyspace| *keyspace = Keyspace::default())`.
    pub fn edit(&self, change: impl FnOnce(&mut Keyspace)) {
        change(&mut self.inner().interpreter.store().keyspace);
    }

    /// Empties the script cache, as `SCRIPT FLUSH` does: every connection needs a new handshake.
    pub fn flush_scripts(&self) {
        self.inner().loaded.clear();
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.inner().up
    }

    /// Stops it: all connections break, none can be made.
    pub fn stop(&self) {
        let broken = {
            let mut inner = self.inner();
            inner.up = false;
            inner.loaded.clear();
            inner.interpreter.store().subscribers.clear();
            std::mem::take(&mut inner.connections)
        };
        for (id, connection) in broken {
            if let Some(node) = connection.node.upgrade() {
                node.broken(id, "the embedded server was stopped");
            }
        }
    }

    /// Stops it if it runs, and starts it with a new run_id.
    pub fn restart(&self, after: After) {
        self.stop();
        let mut inner = self.inner();
        inner.run += 1;
        inner.up = true;
        let mut store = inner.interpreter.store();
        match after {
            After::Kept => {}
            After::Wiped => store.keyspace = Keyspace::default(),
            After::Replaced(keyspace) => store.keyspace = keyspace,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect(LOCKED)
    }

    fn connect(&self, node: Weak<EmbeddedNode>) -> Option<u64> {
        let mut inner = self.inner();
        if !inner.up {
            return None;
        }
        inner.connections_made += 1;
        let id = inner.connections_made;
        inner.connections.insert(id, Connection { node, subscribed: BTreeMap::new() });
        Some(id)
    }

    fn disconnect(&self, connection: u64) {
        let mut inner = self.inner();
        if let Some(connection) = inner.connections.remove(&connection) {
            for channel in connection.subscribed.keys() {
                inner.unsubscribed(channel);
            }
        }
    }

    /// EVAL: runs a script once, without keeping it.
    fn eval(&self, connection: u64, script: &str, argument: &[u8]) -> Result<Bytes, CallError> {
        let (result, deliveries) = self.inner().run(connection, script, argument, (self.clock)())?;
        deliver(deliveries);
        result
    }

    /// EVALSHA: runs a script that was loaded.
    fn evalsha(&self, connection: u64, script: &str, argument: &[u8]) -> Result<Bytes, CallError> {
        let (result, deliveries) = {
            let mut inner = self.inner();
            if inner.connections.contains_key(&connection) && !inner.loaded.contains(script) {
                return Err(CallError::Unsent(NOSCRIPT.into()));
            }
            inner.run(connection, script, argument, (self.clock)())?
        };
        deliver(deliveries);
        result
    }

    /// TIME, SCRIPT EXISTS and MGET.
    fn show(&self, connection: u64, script: &str, question: &Question) -> Result<Peeked, CallError> {
        let inner = self.inner();
        inner.check(connection)?;
        if !inner.loaded.contains(script) {
            return Err(CallError::Unsent(NOSCRIPT.into()));
        }
        let store = inner.interpreter.store();
        let value = |key: &Bytes| match store.keyspace.get(key) {
            Some(Entry::Bytes(value)) => Some(value.clone()),
            Some(Entry::Sorted(_)) | None => None,
        };
        Ok(Peeked { now_us: self.clock_us(), values: question.keys().iter().map(value).collect() })
    }

    fn load(&self, script: &str) {
        self.inner().loaded.insert(script.to_owned());
    }

    fn subscribe(&self, connection: u64, channel: Bytes, subscription: Subscription) {
        let mut inner = self.inner();
        let Some(known) = inner.connections.get_mut(&connection) else { return };
        if known.subscribed.insert(channel.clone(), subscription).is_none() {
            *inner.interpreter.store().subscribers.entry(channel).or_insert(0) += 1;
        }
    }

    fn unsubscribe(&self, connection: u64, channel: &Bytes) {
        let mut inner = self.inner();
        let Some(known) = inner.connections.get_mut(&connection) else { return };
        if known.subscribed.remove(channel).is_some() {
            inner.unsubscribed(channel);
        }
    }
}

/// Runs a script over no data, for comparing this Lua with that of Redis.
///
/// # Errors
/// The message of what the script raised.
#[cfg(any(test, feature = "sim"))]
pub fn eval(script: &str, argument: &[u8]) -> Result<Bytes, String> {
    Interpreter::new().run(script, argument)
}

const NOSCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";

impl Inner {
    fn check(&self, connection: u64) -> Result<(), CallError> {
        if self.connections.contains_key(&connection) {
            return Ok(());
        }
        Err(CallError::Unsent("the connection to the embedded server is closed".into()))
    }

    /// Runs a script; what it returned, and the hints that it published.
    fn run(
        &mut self,
        connection: u64,
        script: &str,
        argument: &[u8],
        now_us: u64,
    ) -> Result<(Result<Bytes, CallError>, Deliveries), CallError> {
        self.check(connection)?;
        self.interpreter.store().now_us = now_us;
        let result = self.interpreter.run(script, argument);
        let published = std::mem::take(&mut self.interpreter.store().published);
        let mut deliveries = Vec::new();
        for (channel, message) in published {
            for connection in self.connections.values() {
                let Some(subscription) = connection.subscribed.get(&channel) else { continue };
                let Some(node) = connection.node.upgrade() else { continue };
                let hint = match subscription {
                    Subscription::Daemon => Hint::Wake(message.clone()),
                    Subscription::Changes => Hint::Changed(message.clone()),
                };
                deliveries.push((node, hint));
            }
        }
        // What raised an error may have run in part.
        Ok((result.map_err(|message| CallError::Lost(message.into())), deliveries))
    }

    fn unsubscribed(&mut self, channel: &Bytes) {
        let mut store = self.interpreter.store();
        if let Some(count) = store.subscribers.get_mut(channel) {
            *count -= 1;
            if *count == 0 {
                store.subscribers.remove(channel);
            }
        }
    }
}

/// One daemon's connection to an embedded server.
pub struct EmbeddedNode {
    this: Weak<EmbeddedNode>,
    server: Arc<EmbeddedServer>,
    identity: Identity,
    index: NodeIndex,
    address: String,
    batch: Arc<str>,
    hints: HintSink,
    link: Mutex<Link>,
}

struct Link {
    state: NodeState,
    connection: Option<u64>,
    watching: bool,
}

impl EmbeddedNode {
    /// Makes a node and does the handshake. `hints` may be called before this returns.
    pub fn new(
        server: Arc<EmbeddedServer>,
        identity: Identity,
        index: NodeIndex,
        hints: HintSink,
    ) -> Arc<Self> {
        let node = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            batch: script::batch(&identity, index).into(),
            address: format!("embedded:{}", server.name),
            server,
            identity,
            index,
            hints,
            link: Mutex::new(Link {
                state: NodeState::Unreachable("not connected yet".into()),
                connection: None,
                watching: false,
            }),
        });
        node.connect();
        node
    }

    /// The server behind it.
    pub fn server(&self) -> &Arc<EmbeddedServer> {
        &self.server
    }

    /// Makes a new connection with a new handshake, whether there was one or not. The state says how it went.
    pub fn connect(&self) {
        self.disconnect("connecting");
        let Some(connection) = self.server.connect(self.this.clone()) else {
            return self.settle(None, NodeState::Unreachable("the embedded server is stopped".into()));
        };
        let state = self.shake_hands(connection);
        if !matches!(state, NodeState::Ready(_)) {
            self.server.disconnect(connection);
            return self.settle(None, state);
        }
        self.server.load(&self.batch);
        self.server.subscribe(connection, self.daemon_channel(), Subscription::Daemon);
        if self.link().watching {
            self.server.subscribe(connection, self.changes_channel(), Subscription::Changes);
        }
        self.settle(Some(connection), state);
    }

    /// Breaks the connection; only [`EmbeddedNode::connect`] makes a new one.
    pub fn disconnect(&self, reason: &str) {
        let connection = self.link().connection;
        if let Some(connection) = connection {
            self.server.disconnect(connection);
            self.broken(connection, reason);
        }
    }

    fn shake_hands(&self, connection: u64) -> NodeState {
        let run_id = self.server.run_id();
        let found = Inspection {
            redis_version: Some(VERSION.to_owned()),
            run_id: Some(run_id.clone()),
            role: Some("master".to_owned()),
            cluster_enabled: false,
            maxmemory_policy: Some("noeviction".to_owned()),
        };
        let hello = script::hello(&self.identity, self.index);
        let greeted =
            handshake::inspect(&found).map(|()| self.server.eval(connection, &hello, run_id.as_bytes()));
        let memory = match greeted {
            Err(refusal) => return NodeState::Refused(refusal),
            Ok(Err(CallError::Unsent(reason))) => return NodeState::Unreachable(reason),
            Ok(Err(CallError::Lost(message))) => {
                let message = message.to_string();
                return NodeState::Refused(handshake::Refusal::Denied { command: "EVAL", message });
            }
            Ok(Ok(reply)) => handshake::greeted(&self.identity, self.index, &reply),
        };
        match memory {
            Ok(memory) => {
                NodeState::Ready(Welcome { version: VERSION.into(), run_id: run_id.into(), memory })
            }
            Err(refusal) => NodeState::Refused(refusal),
        }
    }

    fn settle(&self, connection: Option<u64>, state: NodeState) {
        {
            let mut link = self.link();
            link.connection = connection;
            link.state = state;
        }
        (self.hints)(self.index, Hint::State);
    }

    /// The connection with this id is no more.
    fn broken(&self, connection: u64, reason: &str) {
        if self.link().connection == Some(connection) {
            self.settle(None, NodeState::Unreachable(reason.into()));
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().expect(LOCKED)
    }

    fn daemon_channel(&self) -> Bytes {
        daemon_channel(&self.identity.cluster, self.identity.daemon).into()
    }

    fn changes_channel(&self) -> Bytes {
        changes_channel(&self.identity.cluster).into()
    }

    fn run(&self, payload: &[u8]) -> Result<Bytes, CallError> {
        let connection = {
            let link = self.link();
            let Some(connection) = link.connection else {
                return Err(CallError::Unsent(link.state.to_string().into()));
            };
            connection
        };
        let result = self.server.evalsha(connection, &self.batch, payload);
        self.heed(&result);
        result
    }

    /// A server without the script needs a new handshake.
    fn heed<T>(&self, result: &Result<T, CallError>) {
        if matches!(result, Err(CallError::Unsent(reason)) if reason.as_ref() == NOSCRIPT) {
            self.connect();
        }
    }
}

impl Drop for EmbeddedNode {
    fn drop(&mut self) {
        if let Some(connection) = self.link().connection {
            self.server.disconnect(connection);
        }
    }
}

impl Node for EmbeddedNode {
    fn index(&self) -> NodeIndex {
        self.index
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn call(&self, payload: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let node = self.this.upgrade();
        async move {
            match node {
                Some(node) => node.run(&payload),
                None => Err(CallError::Unsent("the node was dropped".into())),
            }
        }
        .boxed()
    }

    fn peek(&self, question: Question) -> BoxFuture<'static, Result<Peeked, CallError>> {
        let node = self.this.upgrade();
        async move {
            let node = node.ok_or_else(|| CallError::Unsent("the node was dropped".into()))?;
            let link = node.link();
            let Some(connection) = link.connection else {
                return Err(CallError::Unsent(link.state.to_string().into()));
            };
            drop(link);
            let shown = node.server.show(connection, &node.batch, &question);
            node.heed(&shown);
            shown
        }
        .boxed()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn reset(&self, reason: &str) {
        self.disconnect(reason);
        self.connect();
    }

    fn state(&self) -> NodeState {
        self.link().state.clone()
    }

    fn watch_changes(&self, on: bool) {
        let connection = {
            let mut link = self.link();
            link.watching = on;
            link.connection
        };
        match connection {
            Some(connection) if on => {
                self.server.subscribe(connection, self.changes_channel(), Subscription::Changes);
            }
            Some(connection) => self.server.unsubscribe(connection, &self.changes_channel()),
            None => {}
        }
    }
}
