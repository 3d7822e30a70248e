//! A node that is a Redis server, reached with fred.
//!
//! A [`RedisNode`] has one task, which makes a connection, does the handshake on it, tends it until it ends, and begins
//! again. fred is not allowed to reconnect or to repeat anything: a new connection may lead to another run of the
//! server, and a payload that is sent twice may be done twice.
//!
//! ```text
//! connect ── INFO, CONFIG GET ── judge ── EVAL hello ── compare ── SCRIPT LOAD ── SUBSCRIBE ── Ready
//!    ▲                             │                       │                                     │ call, hints,
//!    └── wait, with jitter ◄───────┴─ Refused ◄────────────┘            Unreachable ◄────────────┘ inspections
//! ```
//!
//! Batches and subscriptions have a connection each, which begin and end together: fred matches replies with commands
//! by their order and does not count the reply of a SUBSCRIBE, so a server that refuses one would put the replies of
//! all batches behind it out of step.
//!
//! Every call has a timeout that ends the connection, for a server that hangs would hold up all that follows. Whatever
//! is under way when a connection ends is [`CallError::Lost`].

mod certificate;
mod client;
pub mod look;
pub mod survey;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::prelude::{Client, EventInterface};
use fred::types::{ConnectHandle, Message};
use futures::channel::{mpsc, oneshot};
use futures::future::{BoxFuture, Shared as SharedFuture};
use futures::{FutureExt, StreamExt, select_biased};
use tokio::sync::broadcast;
use tracing::{debug, info, warn};

use self::client::{Connected, Failure};
use super::handshake::{self, Refusal, Welcome};
use super::keyspace::{changes_channel, daemon_channel};
use super::peek::{Peeked, Question};
use super::{CallError, Hint, HintSink, Identity, Node, NodeState, script, wire};
use crate::config::{NodeAddress, Secret};
use crate::ids::NodeIndex;
use crate::runtime::Runtime;
use crate::token::Ballot;

/// The wait after a first failure; it doubles with each one that follows.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(50);
/// The wait until a refused server is looked at again.
const REFUSED_DELAY: Duration = Duration::from_secs(2);
const LOCKED: &str = "no holder of this lock panics";

/// How one server is reached and watched.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Where it is.
    pub address: NodeAddress,
    /// ACL user; without one the server's default user.
    pub username: Option<String>,
    /// Password; without one the server must want none.
    pub password: Option<Secret>,
    /// A file of PEM certificates to trust, for `rediss://`; without one those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// Files of a PEM certificate with its chain and of its key, to show to the server, for `rediss://`.
    pub client_pair: Option<(PathBuf, PathBuf)>,
    /// For how long a connection is tried.
    pub connect_timeout: Duration,
    /// For how long a reply is waited for. Then the connection is given up, because a server that hangs must not hold
    /// up what follows.
    pub call_timeout: Duration,
    /// The longest wait between two attempts to connect.
    pub reconnect_delay_max: Duration,
    /// How often a server is asked whether it still fits.
    pub inspect_interval: Duration,
    /// The operator vouches for `maxmemory-policy noeviction` where the server hides CONFIG.
    pub assume_noeviction: bool,
}

/// The runs that the nodes of one daemon are connected to, by which two addresses of one server are found out.
#[derive(Default)]
pub struct Runs(Mutex<Vec<Run>>);

struct Run {
    index: NodeIndex,
    run_id: Arc<str>,
    node: Weak<Shared>,
}

impl Runs {
    /// Notes the run of a node. Of two nodes with one run the later in the list is refused, whichever connected first.
    fn claim(&self, index: NodeIndex, run_id: &Arc<str>, node: Weak<Shared>) -> Result<(), Refusal> {
        let mut later = Vec::new();
        {
            let mut runs = self.0.lock().expect(LOCKED);
            runs.retain(|run| run.index != index);
            if let Some(other) = runs.iter().find(|run| run.index < index && run.run_id == *run_id) {
                return Err(Refusal::Duplicate { other: other.index.0, run_id: run_id.to_string() });
            }
            later.extend(runs.iter().filter(|run| run.run_id == *run_id).map(|run| run.node.clone()));
            runs.push(Run { index, run_id: run_id.clone(), node });
        }
        for node in later.iter().filter_map(Weak::upgrade) {
            node.reset("it is the same server as another node");
        }
        Ok(())
    }

    fn leave(&self, index: NodeIndex) {
        self.0.lock().expect(LOCKED).retain(|run| run.index != index);
    }
}

/// A Redis server as a node. Its task ends when this is dropped.
pub struct RedisNode {
    shared: Arc<Shared>,
}

/// What the task is told.
enum Order {
    /// The connection of this generation is given up.
    Reset(u64),
    /// [`Link::watching`] changed.
    Watch,
    /// The node is no more.
    Stop,
}

struct Shared {
    this: Weak<Shared>,
    orders: mpsc::UnboundedSender<Order>,
    index: NodeIndex,
    identity: Identity,
    options: RedisOptions,
    address: String,
    batch: String,
    hello: String,
    runtime: Runtime,
    hints: HintSink,
    runs: Arc<Runs>,
    link: Mutex<Link>,
}

/// What there is now.
struct Link {
    state: NodeState,
    /// There is one exactly while the state is ready.
    live: Option<Live>,
    /// Completes [`Live::ended`].
    end: Option<oneshot::Sender<Arc<str>>>,
    /// Of the last connection.
    generation: u64,
    /// Changes are to be passed on.
    watching: bool,
    /// The state was logged, so that the same again is no news.
    told: bool,
}

/// What a call needs of the connection.
#[derive(Clone)]
struct Live {
    client: Client,
    digest: Arc<str>,
    generation: u64,
    /// Completes with the reason when the connection is given up.
    ended: SharedFuture<BoxFuture<'static, Arc<str>>>,
}

/// A connection after its handshake.
struct Established {
    batches: Connected,
    subscriptions: Connected,
    messages: broadcast::Receiver<Message>,
    watching: bool,
    digest: Arc<str>,
    welcome: Welcome,
}

impl RedisNode {
    /// Makes a node and starts its task. All nodes of a daemon share one `runs`.
    pub fn new(
        index: NodeIndex,
        options: RedisOptions,
        identity: Identity,
        runs: Arc<Runs>,
        hints: HintSink,
        runtime: &Runtime,
    ) -> Self {
        let (orders, received) = mpsc::unbounded();
        let shared = Arc::new_cyclic(|this| Shared {
            this: this.clone(),
            orders,
            index,
            address: options.address.to_string(),
            batch: script::batch(&identity, index),
            hello: script::hello(&identity, index),
            identity,
            options,
            runtime: runtime.clone(),
            hints,
            runs,
            link: Mutex::new(Link {
                state: NodeState::Unreachable("not connected yet".into()),
                live: None,
                end: None,
                generation: 0,
                watching: false,
                told: false,
            }),
        });
        runtime.spawner.spawn(run(shared.clone(), received).boxed());
        Self { shared }
    }
}

impl RedisNode {
    /// Asks something on the connection that there is now, and gives it up if that is no good any more.
    fn ask<T, F>(
        &self,
        question: impl FnOnce(Live) -> F + Send + 'static,
    ) -> BoxFuture<'static, Result<T, CallError>>
    where
        F: Future<Output = Result<T, fred::error::Error>> + Send,
    {
        let live = {
            let link = self.shared.link();
            link.live.clone().ok_or_else(|| CallError::Unsent(link.state.to_string().into()))
        };
        let shared = self.shared.clone();
        async move {
            let live = live?;
            let (ended, generation) = (live.ended.clone(), live.generation);
            let (result, reset) = shared.reply(question(live), ended).await;
            if let (true, Err(CallError::Unsent(reason) | CallError::Lost(reason))) = (reset, &result)
                && shared.give_up_generation(generation, reason)
            {
                shared.order(Order::Reset(generation));
            }
            result
        }
        .boxed()
    }
}

impl Drop for RedisNode {
    fn drop(&mut self) {
        self.shared.give_up("the node was dropped");
        self.shared.order(Order::Stop);
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
        self.ask(|live| async move { client::evalsha(&live.client, &live.digest, payload).await })
    }

    fn peek(&self, question: Question) -> BoxFuture<'static, Result<Peeked, CallError>> {
        self.ask(|live| async move { client::peek(&live.client, &live.digest, &question).await })
    }

    fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    fn reset(&self, reason: &str) {
        self.shared.reset(reason);
    }

    fn state(&self) -> NodeState {
        self.shared.link().state.clone()
    }

    fn watch_changes(&self, on: bool) {
        let changed = std::mem::replace(&mut self.shared.link().watching, on) != on;
        if changed {
            self.shared.order(Order::Watch);
        }
    }
}

/// The task of a node.
async fn run(shared: Arc<Shared>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut delay = RECONNECT_DELAY_MIN;
    loop {
        let failure = match shared.establish().await {
            Ok(established) => {
                delay = RECONNECT_DELAY_MIN;
                match shared.tend(established, &mut orders).await {
                    Some(failure) => failure,
                    None => return,
                }
            }
            Err(failure) => failure,
        };
        let refused = matches!(failure, Failure::Refused(_));
        shared.failed(failure);
        let wait = if refused {
            REFUSED_DELAY
        } else {
            // Not all daemons at once: between half of it and all.
            delay / 2 + shared.runtime.entropy.jitter(delay / 2)
        };
        delay = (delay * 2).min(shared.options.reconnect_delay_max);
        let until = shared.runtime.clock.now() + wait;
        let mut sleep = shared.runtime.clock.sleep_until(until).fuse();
        loop {
            select_biased! {
                order = orders.next() => if matches!(order, None | Some(Order::Stop)) { return },
                () = sleep => break,
            }
        }
    }
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().expect(LOCKED)
    }

    fn order(&self, order: Order) {
        // The task is gone only if the node is.
        let _ = self.orders.unbounded_send(order);
    }

    fn reset(&self, reason: &str) {
        if let Some(generation) = self.give_up(reason) {
            self.order(Order::Reset(generation));
        }
    }

    /// Waits for a reply on a connection that ends with `ended`; also says whether the connection is no good any more.
    async fn reply<T>(
        &self,
        reply: impl Future<Output = Result<T, fred::error::Error>>,
        ended: SharedFuture<BoxFuture<'static, Arc<str>>>,
    ) -> (Result<T, CallError>, bool) {
        let timeout = self.options.call_timeout;
        let deadline = self.runtime.clock.now() + timeout;
        let reply = reply.fuse();
        futures::pin_mut!(reply);
        select_biased! {
            reply = reply => match reply {
                Ok(reply) => (Ok(reply), false),
                Err(error) => match (client::call_error(&error), ended.clone().now_or_never()) {
                    // fred only says that its channel is closed; why is known here.
                    ((CallError::Lost(_), _), Some(reason)) => (Err(CallError::Lost(reason)), false),
                    ((error, reset), _) => (Err(error), reset),
                },
            },
            reason = ended.clone() => (Err(CallError::Lost(reason)), false),
            () = self.runtime.clock.sleep_until(deadline).fuse() => {
                (Err(CallError::Lost(format!("no reply within {timeout:?}").into())), true)
            }
        }
    }

    /// Connects and does the handshake.
    async fn establish(&self) -> Result<Established, Failure> {
        let batches = client::connect(&self.options).await?;
        let shaken = self.shake_hands(&batches.client);
        let (digest, welcome) = self.in_time(shaken).await?;
        let subscriptions = client::connect(&self.options).await?;
        // Before subscribing, or the first hints would be lost.
        let messages = subscriptions.client.message_rx();
        let watching = self.link().watching;
        let subscribed = async {
            client::subscribe(&subscriptions.client, &self.daemon_channel(), true).await?;
            if watching {
                client::subscribe(&subscriptions.client, &self.changes_channel(), true).await?;
            }
            Ok(())
        };
        self.in_time(subscribed).await?;
        Ok(Established { batches, subscriptions, messages, watching, digest, welcome })
    }

    /// Bounds a few commands in a row.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let deadline = self.runtime.clock.now() + self.options.call_timeout;
        let work = work.fuse();
        futures::pin_mut!(work);
        select_biased! {
            result = work => result,
            () = self.runtime.clock.sleep_until(deadline).fuse() => {
                Err(Failure::Unreachable("it does not answer".into()))
            }
        }
    }

    /// The handshake, on a new connection: which server this is, whether it fits, and its memory.
    async fn shake_hands(&self, client: &Client) -> Result<(Arc<str>, Welcome), Failure> {
        let (version, run_id) = self.inspect(client).await?;
        let reply = client::eval(client, &self.hello, &run_id).await?;
        let memory = handshake::greeted(&self.identity, self.index, &reply).map_err(Failure::Refused)?;
        let digest = client::load(client, &self.batch).await?;
        // An empty batch, so that a user without EVALSHA is found out here and not by every call.
        let empty = wire::encode(Ballot::ZERO, [].into_iter());
        if let Err(error) = client::evalsha(client, &digest, empty).await {
            let message = error.details().to_owned();
            return Err(match client::call_error(&error).0 {
                CallError::Unsent(_) => Failure::Refused(Refusal::Denied { command: "EVALSHA", message }),
                CallError::Lost(reason) => Failure::Unreachable(reason),
            });
        }
        // And one without what a look wants.
        if let Err(error) = client::peek(client, &digest, &Question::about(&[])).await {
            let message = error.details().to_owned();
            return Err(match client::call_error(&error).0 {
                CallError::Unsent(_) => {
                    Failure::Refused(Refusal::Denied { command: "TIME, SCRIPT EXISTS or MGET", message })
                }
                CallError::Lost(reason) => Failure::Unreachable(reason),
            });
        }
        Ok((digest.into(), Welcome { version, run_id, memory }))
    }

    /// Asks the server about itself and judges it; its version and run_id.
    async fn inspect(&self, client: &Client) -> Result<(Arc<str>, Arc<str>), Failure> {
        let found = client::inspect(client, self.options.assume_noeviction).await?;
        handshake::inspect(&found).map_err(Failure::Refused)?;
        let version = found.redis_version.unwrap_or_default().into();
        let run_id: Arc<str> = found.run_id.unwrap_or_default().into();
        self.runs.claim(self.index, &run_id, self.this.clone()).map_err(Failure::Refused)?;
        Ok((version, run_id))
    }

    /// Stays with a connection until it ends; why it did, or `None` if the node was dropped.
    async fn tend(
        &self,
        mut established: Established,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Option<Failure> {
        let generation = self.ready(&established);
        let mut inspection = self.next_inspection();
        loop {
            let Established { batches, subscriptions, messages, .. } = &mut established;
            let step = select_biased! {
                order = orders.next() => match order? {
                    Order::Stop => return None,
                    Order::Reset(given_up) if given_up == generation => return Some(self.reason()),
                    // Of a connection that is no more.
                    Order::Reset(_) => Ok(()),
                    Order::Watch => self.watch(&mut established).await,
                },
                ended = (&mut batches.task).fuse() => Err(end_of(ended)),
                ended = (&mut subscriptions.task).fuse() => Err(end_of(ended)),
                () = inspection => {
                    inspection = self.next_inspection();
                    self.in_time(self.inspect(&established.batches.client)).await.map(|_| ())
                }
                message = messages.recv().fuse() => {
                    self.hint(message);
                    Ok(())
                }
            };
            if let Err(failure) = step {
                return Some(failure);
            }
        }
    }

    fn next_inspection(&self) -> futures::future::Fuse<BoxFuture<'static, ()>> {
        let clock = &self.runtime.clock;
        clock.sleep_until(clock.now() + self.options.inspect_interval).fuse()
    }

    /// Subscribes to changes, or no longer, as [`Link::watching`] says.
    async fn watch(&self, established: &mut Established) -> Result<(), Failure> {
        let watching = self.link().watching;
        if established.watching == watching {
            return Ok(());
        }
        established.watching = watching;
        let channel = self.changes_channel();
        self.in_time(client::subscribe(&established.subscriptions.client, &channel, watching)).await
    }

    fn hint(&self, message: Result<Message, broadcast::error::RecvError>) {
        // Too many at once: some were lost, as hints may be.
        let Ok(message) = message else { return };
        let Ok(key) = message.value.convert::<Bytes>() else { return };
        if *message.channel == *self.daemon_channel() {
            (self.hints)(self.index, Hint::Wake(key));
        } else if *message.channel == *self.changes_channel() {
            (self.hints)(self.index, Hint::Changed(key));
        }
    }

    fn daemon_channel(&self) -> String {
        daemon_channel(&self.identity.cluster, self.identity.daemon)
    }

    fn changes_channel(&self) -> String {
        changes_channel(&self.identity.cluster)
    }

    /// Lets calls through; the generation of the connection.
    fn ready(&self, established: &Established) -> u64 {
        let (end, ended) = oneshot::channel();
        let ended = ended.map(|reason| reason.unwrap_or_else(|_| "the connection ended".into()));
        let mut link = self.link();
        link.generation += 1;
        let generation = link.generation;
        link.live = Some(Live {
            client: established.batches.client.clone(),
            digest: established.digest.clone(),
            generation,
            ended: ended.boxed().shared(),
        });
        link.end = Some(end);
        self.set_state(link, NodeState::Ready(established.welcome.clone()));
        generation
    }

    /// Lets no more calls through and ends those under way. The generation of the connection, if there was one.
    fn give_up(&self, reason: &str) -> Option<u64> {
        let link = self.link();
        let generation = link.live.as_ref()?.generation;
        self.end(link, NodeState::Unreachable(reason.into()));
        Some(generation)
    }

    /// As [`Shared::give_up`], unless the connection is another one by now.
    fn give_up_generation(&self, generation: u64, reason: &str) -> bool {
        let link = self.link();
        let same = link.live.as_ref().is_some_and(|live| live.generation == generation);
        if same {
            self.end(link, NodeState::Unreachable(reason.into()));
        }
        same
    }

    /// There is no connection, because of this.
    fn failed(&self, failure: Failure) {
        self.runs.leave(self.index);
        let state = match failure {
            Failure::Unreachable(reason) => NodeState::Unreachable(reason),
            Failure::Refused(refusal) => NodeState::Refused(refusal),
        };
        self.end(self.link(), state);
    }

    /// Ends what is under way, and shows why.
    fn end(&self, mut link: MutexGuard<'_, Link>, state: NodeState) {
        link.live = None;
        if let Some(end) = link.end.take() {
            // Nobody listens if no call is under way.
            let _ = end.send(state.to_string().into());
        }
        self.set_state(link, state);
    }

    /// Why the connection was given up.
    fn reason(&self) -> Failure {
        match &self.link().state {
            NodeState::Unreachable(reason) => Failure::Unreachable(reason.clone()),
            other => Failure::Unreachable(other.to_string().into()),
        }
    }

    /// Changes the state, and tells of it once: another reason for being unreachable is no news.
    fn set_state(&self, mut link: MutexGuard<'_, Link>, state: NodeState) {
        let first = !std::mem::replace(&mut link.told, true);
        let before = std::mem::replace(&mut link.state, state.clone());
        drop(link);
        let (node, address) = (self.index.0, &self.address);
        match (&before, &state) {
            (NodeState::Unreachable(_), NodeState::Unreachable(reason)) if !first => {
                debug!(node, address, reason = reason.as_ref(), "node is still unreachable");
                return;
            }
            _ if before == state => return,
            (_, NodeState::Unreachable(reason)) => {
                warn!(node, address, reason = reason.as_ref(), "node is unreachable");
            }
            (_, NodeState::Refused(refusal)) => {
                warn!(node, address, reason = %refusal, "node is refused");
            }
            (_, NodeState::Ready(welcome)) => {
                info!(node, address, version = welcome.version.as_ref(), "node is ready");
            }
        }
        (self.hints)(self.index, Hint::State);
    }
}

/// Why fred's task ended.
fn end_of(ended: <ConnectHandle as Future>::Output) -> Failure {
    Failure::Unreachable(match ended {
        Ok(Err(error)) => client::words(&error).into(),
        Ok(Ok(())) | Err(_) => "the connection ended".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_nodes_with_one_run_the_later_is_refused() {
        let runs = Runs::default();
        let run: Arc<str> = "run".into();
        let claim = |index| runs.claim(NodeIndex(index), &run, Weak::new());
        assert_eq!(claim(1), Ok(()));
        assert_eq!(claim(0), Ok(()));
        assert_eq!(claim(1), Err(Refusal::Duplicate { other: 0, run_id: "run".into() }));
        runs.leave(NodeIndex(0));
        assert_eq!(claim(1), Ok(()));
    }
}
