//! [`SimNode`]: an embedded node at the end of a network that delays, loses and reorders.
//!
//! A batch travels by itself: it may arrive long after its daemon has given it up, or died. Each direction of each pair
//! of daemon and server can be cut by itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{self, BoxFuture, Either};

use super::host::Host;
use super::world::{NOBODY, World};
use crate::ids::NodeIndex;
use crate::node::embedded::EmbeddedNode;
use crate::node::peek::{Peeked, Question};
use crate::node::{CallError, HintSink, Identity, Node, NodeState};

/// After this a daemon counts a batch as lost.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What the network does to what passes through it. Shared by all.
#[derive(Default)]
pub struct Weather {
    /// Messages lost, in percent.
    pub loss: AtomicU64,
    /// Messages that are late, in percent.
    pub late: AtomicU64,
    /// A late one takes up to 2 to the power of this, in milliseconds; short delays are as likely as long ones.
    pub late_bits: AtomicU64,
    /// Hints lost, in percent.
    pub hints_lost: AtomicU64,
}

impl Weather {
    /// No more trouble. What is late stays late.
    pub fn clear(&self) {
        [&self.loss, &self.late, &self.late_bits, &self.hints_lost]
            .iter()
            .for_each(|trouble| trouble.store(0, Ordering::Relaxed));
    }

    /// How long a message takes; `None` if it never arrives.
    fn travel(&self, world: &World) -> Option<Duration> {
        world.draw(|random| {
            if random.chance(self.loss.load(Ordering::Relaxed)) {
                return None;
            }
            let micros = 50 + random.below(2_000);
            let late = random.chance(self.late.load(Ordering::Relaxed));
            let late = if late { random.magnitude(self.late_bits.load(Ordering::Relaxed)) } else { 0 };
            Some(Duration::from_micros(micros) + Duration::from_millis(late))
        })
    }
}

/// What passes between one daemon and one server.
#[derive(Default)]
pub struct Link {
    /// Nothing from the daemon reaches the server.
    pub there: AtomicBool,
    /// Nothing from the server reaches the daemon.
    pub back: AtomicBool,
}

impl Link {
    /// Cuts, or mends, each direction.
    pub fn set(&self, there: bool, back: bool) {
        self.there.store(there, Ordering::Relaxed);
        self.back.store(back, Ordering::Relaxed);
    }

    fn is_whole(&self) -> bool {
        !self.there.load(Ordering::Relaxed) && !self.back.load(Ordering::Relaxed)
    }

    fn is_gone(&self) -> bool {
        self.there.load(Ordering::Relaxed) && self.back.load(Ordering::Relaxed)
    }
}

/// One daemon's way to one server.
pub struct SimNode {
    world: World,
    inner: Arc<EmbeddedNode>,
    host: Arc<Host>,
    weather: Arc<Weather>,
    link: Arc<Link>,
    reconnecting: AtomicBool,
    this: Weak<SimNode>,
}

impl SimNode {
    /// A daemon's connection to a host.
    pub fn new(
        world: &World,
        host: &Arc<Host>,
        identity: &Identity,
        index: NodeIndex,
        hints: HintSink,
        weather: Arc<Weather>,
        link: Arc<Link>,
    ) -> Arc<Self> {
        let node = Arc::new_cyclic(|this: &Weak<Self>| {
            let late_hints = late(world, hints, weather.clone(), link.clone(), this.clone());
            Self {
                world: world.clone(),
                inner: EmbeddedNode::new(host.server.clone(), identity.clone(), index, late_hints),
                host: host.clone(),
                weather,
                link,
                reconnecting: AtomicBool::new(false),
                this: this.clone(),
            }
        });
        // While it is made nobody hears that the server is down.
        if !matches!(node.inner.state(), NodeState::Ready(_)) {
            node.reconnect();
        }
        node
    }

    /// Connects as soon as the link and the server allow it.
    fn reconnect(&self) {
        if self.reconnecting.swap(true, Ordering::Relaxed) {
            return;
        }
        let (this, world) = (self.this.clone(), self.world.clone());
        let task = async move {
            loop {
                world.sleep(RECONNECT_PAUSE).await;
                let Some(node) = this.upgrade() else { return };
                if !node.link.is_whole() || node.host.is_frozen() {
                    continue;
                }
                node.inner.connect();
                if matches!(node.inner.state(), NodeState::Ready(_)) {
                    node.reconnecting.store(false, Ordering::Relaxed);
                    return;
                }
            }
        };
        self.world.spawn(NOBODY, task.boxed());
    }
}

/// Hints travel too. A change of the connection's state is known at once.
fn late(
    world: &World,
    hints: HintSink,
    weather: Arc<Weather>,
    link: Arc<Link>,
    node: Weak<SimNode>,
) -> HintSink {
    let world = world.clone();
    Arc::new(move |index, hint| {
        if hint == crate::node::Hint::State {
            if let Some(node) = node.upgrade()
                && !matches!(node.inner.state(), NodeState::Ready(_))
            {
                node.reconnect();
            }
            return hints(index, hint);
        }
        let lost = world.draw(|random| random.chance(weather.hints_lost.load(Ordering::Relaxed)));
        let Some(travel) = weather.travel(&world).filter(|_| !lost) else { return };
        let (world_then, hints, link) = (world.clone(), hints.clone(), link.clone());
        let journey = async move {
            world_then.sleep(travel).await;
            if !link.back.load(Ordering::Relaxed) {
                hints(index, hint);
            }
        };
        world.spawn(NOBODY, journey.boxed());
    })
}

impl Node for SimNode {
    fn index(&self) -> NodeIndex {
        self.inner.index()
    }

    fn address(&self) -> &str {
        self.inner.address()
    }

    fn call(&self, payload: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let inner = self.inner.clone();
        self.travel(move || inner.call(payload))
    }

    fn peek(&self, question: Question) -> BoxFuture<'static, Result<Peeked, CallError>> {
        let inner = self.inner.clone();
        self.travel(move || inner.peek(question))
    }

    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn reset(&self, reason: &str) {
        self.inner.disconnect(reason);
    }

    fn state(&self) -> NodeState {
        if self.link.is_gone() {
            return NodeState::Unreachable("cut off".into());
        }
        self.inner.state()
    }

    fn watch_changes(&self, on: bool) {
        self.inner.watch_changes(on);
    }
}

impl SimNode {
    /// What is asked arrives, perhaps, and its answer comes back, perhaps.
    fn travel<T: Send + 'static>(
        &self,
        ask: impl FnOnce() -> BoxFuture<'static, Result<T, CallError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, CallError>> {
        if self.link.is_gone() {
            return future::ready(Err(CallError::Unsent("cut off".into()))).boxed();
        }
        let (sender, reply) = oneshot::channel();
        let (there, back) = (self.weather.travel(&self.world), self.weather.travel(&self.world));
        let world = self.world.clone();
        let (host, link) = (self.host.clone(), self.link.clone());
        let journey = async move {
            let Some(there) = there else { return };
            world.sleep(there).await;
            if link.there.load(Ordering::Relaxed) {
                return;
            }
            host.ready().await;
            let result = ask().await;
            let Some(back) = back else { return };
            world.sleep(back).await;
            if !link.back.load(Ordering::Relaxed) {
                let _ = sender.send(result);
            }
        };
        self.world.spawn(NOBODY, journey.boxed());
        let (world, inner) = (self.world.clone(), self.inner.clone());
        async move {
            let timer = world.sleep(CALL_TIMEOUT);
            // A reply that is lost is waited for like one that is late.
            let reply = reply.then(|reply| async move {
                match reply {
                    Ok(reply) => reply,
                    Err(oneshot::Canceled) => future::pending().await,
                }
            });
            match future::select(reply.boxed(), timer).await {
                Either::Left((reply, _)) => reply,
                Either::Right(_) => {
                    // The next connection is made by the task that reconnects.
                    inner.disconnect("no reply in time");
                    Err(CallError::Lost("no reply in time".into()))
                }
            }
        }
        .boxed()
    }
}
