//! [`Daemons`]: the real daemons of a run, from the facades down to the nodes' connections, and their lives.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{AbortHandle, Abortable};
use futures::{FutureExt, StreamExt, channel::mpsc, stream::BoxStream};

use super::cell::CellKind;
use super::host::Host;
use super::network::{Link, SimNode, Weather};
use super::options::Options;
use super::random::Random;
use super::world::{Actor, ActorClock, World};
use crate::driver::Cluster;
use crate::ids::{NodeIndex, ProposerId};
use crate::kv::Keys;
use crate::kv::keys::KeySettings;
use crate::lock::Locks;
use crate::lock::locks::LockSettings;
use crate::node::keyspace::{KIND_ITEM, KIND_KEY, KIND_LOCK};
use crate::node::{Hint, HintSink, Identity, Node};
use crate::queue::Queues;
use crate::queue::queues::QueueSettings;
use crate::quorum::ClusterSize;
use crate::register::Registers;
use crate::runtime::Moment;
use crate::upkeep::comparing::ComparingSettings;
use crate::upkeep::membership::MembershipSettings;
use crate::upkeep::{self, Sweeps, UpkeepSettings};

/// A node that nobody has reached for so long is out: some cuts of a run are longer.
pub(super) const OUT_AFTER: Duration = Duration::from_secs(6);
/// Between two comparisons: some in each run.
const COMPARING_INTERVAL: Duration = Duration::from_secs(15);
const LOCKED: &str = "no holder of this lock panics";

/// One run of one daemon.
pub struct SimDaemon {
    /// Whose its tasks are.
    pub actor: Actor,
    /// How its machine tells time.
    pub clock: ActorClock,
    /// The facade that clients of locks call.
    pub locks: Locks,
    /// The one that clients of keys call.
    pub keys: Keys,
    /// The one that clients of queues call.
    pub queues: Queues,
    /// Registers by themselves, with nothing of a lock.
    pub cells: Registers<CellKind>,
    /// Its nodes.
    pub cluster: Arc<Cluster>,
    /// Its way to each server.
    pub links: Vec<Arc<Link>>,
    world: World,
    alive: Arc<AtomicBool>,
    room: Room,
}

/// Where hints find the facades. Emptied when the daemon ends: the facades hold the nodes, and the nodes the hints.
type Room = Arc<Mutex<Option<(Locks, Keys, Queues)>>>;

/// Ends a call when it is dropped, as a client's going away ends a gRPC call.
pub struct Hangup(AbortHandle);

impl Drop for Hangup {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl SimDaemon {
    /// Whether it has not died.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Now, by its clock.
    pub fn now(&self) -> Moment {
        self.clock.local(self.world.now())
    }

    /// Runs a call among the daemon's own tasks, so that its pauses and its death reach the call. `None` when it died.
    pub async fn call<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let (abort, registration) = AbortHandle::new_pair();
        let _hangup = Hangup(abort);
        let task = async move {
            if let Ok(result) = Abortable::new(call, registration).await {
                // Nobody misses the answer of a call that nobody waits for.
                let _ = sender.send(result);
            }
        };
        self.world.spawn(self.actor, task.boxed());
        receiver.await.ok()
    }

    /// The same for a stream. Dropping the receiver, with its hangup, is the client's going away.
    pub fn stream<T: Send + 'static>(
        &self,
        stream: impl FnOnce() -> BoxStream<'static, T> + Send + 'static,
    ) -> (mpsc::UnboundedReceiver<T>, Hangup) {
        let (sender, receiver) = mpsc::unbounded();
        let (abort, registration) = AbortHandle::new_pair();
        let forward = async move {
            let mut stream = stream();
            while let Some(item) = stream.next().await {
                // Nobody misses what nobody reads.
                let _ = sender.unbounded_send(item);
            }
        };
        let task = Abortable::new(forward, registration).map(|_| ());
        self.world.spawn(self.actor, task.boxed());
        (receiver, Hangup(abort))
    }
}

/// All daemons of a run. One that died may be followed by another, under another name.
pub struct Daemons {
    world: World,
    size: ClusterSize,
    hosts: Vec<Arc<Host>>,
    weather: Arc<Weather>,
    bootstrap: bool,
    skew_ms: u64,
    slots: Mutex<Vec<Arc<SimDaemon>>>,
    started: AtomicU32,
}

impl Daemons {
    /// Starts the daemons of a run.
    pub fn start(
        world: &World,
        options: &Options,
        hosts: &[Arc<Host>],
        weather: &Arc<Weather>,
        random: &mut Random,
    ) -> Arc<Self> {
        let daemons = Self {
            world: world.clone(),
            size: ClusterSize::new(options.nodes).expect("one of the sizes"),
            hosts: hosts.to_vec(),
            weather: weather.clone(),
            bootstrap: options.bootstrap,
            skew_ms: options.skew.as_millis() as u64,
            slots: Mutex::default(),
            started: AtomicU32::new(0),
        };
        for _ in 0..options.daemons {
            let daemon = daemons.launch(random);
            daemons.slots.lock().expect(LOCKED).push(daemon);
        }
        Arc::new(daemons)
    }

    /// N and q.
    pub fn size(&self) -> ClusterSize {
        self.size
    }

    /// Those that have not died.
    pub fn living(&self) -> Vec<Arc<SimDaemon>> {
        self.slots.lock().expect(LOCKED).iter().filter(|daemon| daemon.is_alive()).cloned().collect()
    }

    /// One that has not died, if there is one.
    pub fn pick(&self, random: &mut Random) -> Option<Arc<SimDaemon>> {
        let living = self.living();
        (!living.is_empty()).then(|| living[random.index(living.len())].clone())
    }

    /// Whether a node remembers all that it ever took: it has the memory that a list names, as a member.
    pub fn is_whole(&self, node: usize) -> bool {
        let index = NodeIndex(node as u8);
        let memory = self.hosts[node].memory();
        let lists = self.living().into_iter().filter_map(|daemon| daemon.cluster.views.current());
        self.hosts[node].server.is_up() && lists.into_iter().any(|view| view.list.counts(index, memory))
    }

    /// A daemon dies, at any of its awaits.
    pub fn kill(&self, daemon: &SimDaemon) {
        daemon.alive.store(false, Ordering::Relaxed);
        self.world.kill(daemon.actor);
        drop(daemon.room.lock().expect(LOCKED).take());
    }

    /// Lets go of everything at the end of a run.
    pub fn end(&self) {
        for daemon in self.slots.lock().expect(LOCKED).drain(..) {
            drop(daemon.room.lock().expect(LOCKED).take());
        }
    }

    /// Whoever died is started again, knowing nothing.
    pub fn restart_dead(&self, random: &mut Random) {
        let slots = self.slots.lock().expect(LOCKED).len();
        for slot in 0..slots {
            let dead = !self.slots.lock().expect(LOCKED)[slot].is_alive();
            if dead {
                let daemon = self.launch(random);
                self.slots.lock().expect(LOCKED)[slot] = daemon;
            }
        }
    }

    fn launch(&self, random: &mut Random) -> Arc<SimDaemon> {
        let actor = Actor(self.started.fetch_add(1, Ordering::Relaxed) + 1);
        // Rates at the allowed limit, and wall clocks as machines without NTP have them.
        let clock = ActorClock {
            skew_ms: random.below(2 * self.skew_ms) as i64 - self.skew_ms as i64,
            fast_ppm: [-1_000, 0, 0, 1_000][random.index(4)],
        };
        let runtime = self.world.runtime(actor, clock);
        let proposer = ProposerId(random.bits());
        let identity = Identity { cluster: "sim".into(), nodes: self.size.nodes(), daemon: proposer };
        let room = Room::default();
        let alive = Arc::new(AtomicBool::new(true));
        let hints = hint_sink(room.clone(), alive.clone());
        let links: Vec<Arc<Link>> = self.hosts.iter().map(|_| Arc::default()).collect();
        let nodes = (0..).zip(self.hosts.iter().zip(&links)).map(|(index, (host, link))| {
            let (index, weather, link) = (NodeIndex(index), self.weather.clone(), link.clone());
            SimNode::new(&self.world, host, &identity, index, hints.clone(), weather, link) as Arc<dyn Node>
        });
        let cluster = Arc::new(Cluster::new(self.size, nodes.collect(), proposer, runtime.clone()));
        let locks = Locks::new(cluster.clone(), LockSettings::default());
        let keys = Keys::new(cluster.clone(), KeySettings::default());
        let queues = Queues::new(cluster.clone(), QueueSettings::default());
        *room.lock().expect(LOCKED) = Some((locks.clone(), keys.clone(), queues.clone()));
        let cells = Registers::new(cluster.clone(), LockSettings::default().patience);
        let membership = MembershipSettings {
            bootstrap: self.bootstrap,
            ttl_max: Duration::from_secs(10),
            out_after: OUT_AFTER,
            ..MembershipSettings::default()
        };
        let comparing = ComparingSettings { interval: COMPARING_INTERVAL, ..ComparingSettings::default() };
        let sweeps: Sweeps = vec![Arc::new(locks.clone()), Arc::new(keys.clone())];
        upkeep::start(&cluster, UpkeepSettings { membership, comparing }, sweeps);
        let world = self.world.clone();
        Arc::new(SimDaemon { actor, clock, locks, keys, queues, cells, cluster, links, world, alive, room })
    }
}

fn hint_sink(room: Room, alive: Arc<AtomicBool>) -> HintSink {
    Arc::new(move |node, hint| {
        let facades = room.lock().expect(LOCKED).clone().filter(|_| alive.load(Ordering::Relaxed));
        let Some((locks, keys, queues)) = facades else { return };
        let parse = |key: &[u8]| {
            let (kind, name) = std::str::from_utf8(key).ok()?.split_once(':')?;
            Some((kind.parse::<char>().ok()?, name.to_owned()))
        };
        match hint {
            Hint::Wake(key) => {
                if let Some((KIND_LOCK, name)) = parse(&key) {
                    locks.on_wake(node, &name);
                }
            }
            Hint::Changed(key) => match parse(&key) {
                Some((KIND_LOCK, name)) => locks.on_changed(&name),
                Some((KIND_KEY, name)) => keys.on_changed(&name),
                Some((KIND_ITEM, name)) => queues.on_ready(node, &name),
                Some(_) | None => {}
            },
            Hint::State => {}
        }
    })
}
