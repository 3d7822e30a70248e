//! [`SimNode`]: an embedded node at the end of a network that delays, loses and reorders.
//!
//! A batch travels by itself: it may arrive long after its daemon has given it up, or died. The server's clock is the
//! world's, off by what the faults say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{self, BoxFuture, Either};

use super::world::{NOBODY, World};
use crate::ids::NodeIndex;
use crate::node::embedded::{EmbeddedNode, EmbeddedServer};
use crate::node::{CallError, HintSink, Identity, Node, NodeState};

/// After this a daemon counts a batch as lost.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// What the network does to what passes through it. Shared by all.
#[derive(Default)]
pub struct Weather {
    /// Messages lost, in percent.
    pub loss: AtomicU64,
    /// Messages that take up to [`Weather::late_ms`], in percent.
    pub late: AtomicU64,
    /// The longest delay of a late one, in milliseconds.
    pub late_ms: AtomicU64,
    /// Hints lost, in percent.
    pub hints_lost: AtomicU64,
}

/// A server and what the faults do to it.
pub struct Host {
    /// The server.
    pub server: Arc<EmbeddedServer>,
    /// How far its clock is off, in milliseconds.
    pub skew_ms: Arc<AtomicI64>,
}

impl Host {
    /// A server in a world.
    pub fn new(world: &World, name: u64) -> Self {
        let skew_ms = Arc::new(AtomicI64::new(0));
        let (world, skew) = (world.clone(), skew_ms.clone());
        let clock = move || world.unix_ms().saturating_add_signed(skew.load(Ordering::Relaxed)) * 1_000;
        Self { server: EmbeddedServer::new(name, Arc::new(clock)), skew_ms }
    }
}

/// One daemon's way to one server.
pub struct SimNode {
    world: World,
    inner: Arc<EmbeddedNode>,
    weather: Arc<Weather>,
    /// Nothing passes in either direction.
    cut: Arc<AtomicBool>,
}

impl SimNode {
    /// A daemon's connection to a host. `cut` lets the faults partition this pair.
    pub fn new(
        world: &World,
        host: &Host,
        identity: &Identity,
        index: NodeIndex,
        hints: HintSink,
        weather: Arc<Weather>,
        cut: Arc<AtomicBool>,
    ) -> Arc<Self> {
        let (drawing, lossy, unreachable) = (world.clone(), weather.clone(), cut.clone());
        let hints: HintSink = Arc::new(move |node, hint| {
            let lost = drawing.draw(|random| random.chance(lossy.hints_lost.load(Ordering::Relaxed)));
            if !lost && !unreachable.load(Ordering::Relaxed) {
                hints(node, hint);
            }
        });
        let inner = EmbeddedNode::new(host.server.clone(), identity.clone(), index, hints);
        let node = Arc::new(Self { world: world.clone(), inner, weather, cut });
        let (keeper, world) = (Arc::downgrade(&node), world.clone());
        let reconnect = async move {
            loop {
                world.sleep(Duration::from_millis(100)).await;
                let Some(node) = keeper.upgrade() else { return };
                let cut = node.cut.load(Ordering::Relaxed);
                if !cut && !matches!(node.inner.state(), NodeState::Ready(_)) {
                    node.inner.connect();
                }
            }
        };
        node.world.spawn(NOBODY, reconnect.boxed());
        node
    }

    /// How long one message takes; `None` if it never arrives.
    fn travel(&self) -> Option<Duration> {
        let weather = &self.weather;
        self.world.draw(|random| {
            if random.chance(weather.loss.load(Ordering::Relaxed)) {
                return None;
            }
            let micros = 50 + random.below(2_000);
            let late = random.chance(weather.late.load(Ordering::Relaxed));
            let late = if late { random.below(weather.late_ms.load(Ordering::Relaxed)) } else { 0 };
            Some(Duration::from_micros(micros) + Duration::from_millis(late))
        })
    }
}

impl Node for SimNode {
    fn index(&self) -> NodeIndex {
        self.inner.index()
    }

    fn address(&self) -> &str {
        self.inner.address()
    }

    fn call(&self, payload: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        if self.cut.load(Ordering::Relaxed) {
            return future::ready(Err(CallError::Unsent("cut off".into()))).boxed();
        }
        let (sender, reply) = oneshot::channel();
        let (there, back) = (self.travel(), self.travel());
        let (world, inner, cut) = (self.world.clone(), self.inner.clone(), self.cut.clone());
        let journey = async move {
            let Some(there) = there else { return };
            world.sleep(there).await;
            let result = inner.call(payload).await;
            let Some(back) = back else { return };
            world.sleep(back).await;
            if !cut.load(Ordering::Relaxed) {
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
                    inner.reset("no reply in time");
                    Err(CallError::Lost("no reply in time".into()))
                }
            }
        }
        .boxed()
    }

    fn reset(&self, reason: &str) {
        self.inner.reset(reason);
    }

    fn state(&self) -> NodeState {
        if self.cut.load(Ordering::Relaxed) {
            return NodeState::Unreachable("cut off".into());
        }
        self.inner.state()
    }

    fn watch_changes(&self, on: bool) {
        self.inner.watch_changes(on);
    }
}
