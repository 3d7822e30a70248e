//! A stage on a [`Table`]: whole daemons (driver, registers, locks, the member list's task) on time that is moved by hand,
//! over a network that lets through, keeps or loses what the schedule says. Hints get lost always.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::executor::LocalPool;
use futures::future::{AbortHandle, BoxFuture, abortable};
use futures::task::LocalSpawnExt;
use futures::{Future, FutureExt};
use majorityd::driver::Cluster;
use majorityd::ids::{LockName, NodeIndex, Owner, ProposerId};
use majorityd::kv::Keys;
use majorityd::kv::keys::KeySettings;
use majorityd::lock::locks::LockSettings;
use majorityd::lock::{AcquireRequest, Acquisition, Lease, LockError, Locks};
use majorityd::members::{MemberList, View};
use majorityd::node::embedded::{After, EmbeddedNode};
use majorityd::node::operation::{Answer, Operation, RegisterKey};
use majorityd::node::peek::{Peeked, Question};
use majorityd::node::{CallError, Identity, Node, NodeState};
use majorityd::queue::Queues;
use majorityd::queue::queues::QueueSettings;
use majorityd::register::{RegisterError, Registers, Sweep};
use majorityd::runtime::{Clock, Entropy, Moment, Runtime, Spawn};
use majorityd::token::Ballot;
use majorityd::upkeep::comparing::{Comparing, ComparingSettings};
use majorityd::upkeep::forgetting::Forgetting;
use majorityd::upkeep::membership::{Membership, MembershipSettings};
use majorityd::upkeep::recovery::RecoveryMode;
use majorityd::upkeep::reporting::Reporting;

use super::table::{Append, Numbers, Table, first_list, founding};

/// What becomes of a batch, by the kind of its first operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It arrives, and so does the answer.
    Open,
    /// It is not sent.
    Cut,
    /// It is kept until it is let go.
    KeepRequest,
    /// It arrives; the answer is kept until it is let go.
    KeepReply,
}

/// The kinds of operations that schedules tell apart.
pub const READ: u8 = 1;
pub const PREPARE: u8 = 2;
pub const ACCEPT: u8 = 3;
pub const END_JOIN: u8 = 8;
pub const CLAIM: u8 = 14;

/// What waits to be let go, and how it goes on.
enum Kept {
    Request(Box<dyn FnOnce() + Send>),
    Reply(Box<dyn FnOnce() + Send>),
}

/// A daemon's tasks, and how many calls it has left until it stands still.
struct Life {
    calls_left: AtomicI64,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// A daemon's way to one server.
struct Wire {
    inner: Arc<EmbeddedNode>,
    life: Arc<Life>,
    /// By kind of operation, and for all others.
    ways: Mutex<(BTreeMap<u8, Way>, Way)>,
    kept: Mutex<Vec<Kept>>,
    /// Of each look without the script, how many registers it was about.
    looks: Mutex<Vec<usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

/// The code of the first operation of a batch, after the list, three numbers and the keys.
fn kind_of(payload: &[u8]) -> u8 {
    let expect = "a batch";
    fn text<'a>(rest: &mut &'a [u8], expect: &str) -> &'a [u8] {
        let length = rmp::decode::read_str_len(rest).expect(expect) as usize;
        rest.split_off(..length).expect(expect)
    }
    let mut rest = payload;
    text(&mut rest, expect);
    let [keys, _operations, _wanted] =
        [(); 3].map(|()| rmp::decode::read_int::<u64, _>(&mut rest).expect(expect));
    for _ in 0..keys {
        text(&mut rest, expect);
    }
    rmp::decode::read_int(&mut rest).expect(expect)
}

impl Wire {
    /// Of what was kept, what is wanted goes on.
    fn let_go(&self, wanted: impl Fn(&Kept) -> bool) {
        let (gone, kept) = std::mem::take(&mut *lock(&self.kept)).into_iter().partition(wanted);
        *lock(&self.kept) = kept;
        let gone: Vec<Kept> = gone;
        for kept in gone {
            match kept {
                Kept::Request(go_on) | Kept::Reply(go_on) => go_on(),
            }
        }
    }
}

impl Node for Wire {
    fn index(&self) -> NodeIndex {
        self.inner.index()
    }

    fn address(&self) -> &str {
        self.inner.address()
    }

    fn call(&self, payload: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (kind, inner) = (kind_of(&payload), self.inner.clone());
        self.travel(kind, move || inner.call(payload))
    }

    fn peek(&self, question: Question) -> BoxFuture<'static, Result<Peeked, CallError>> {
        lock(&self.looks).push(question.registers());
        let inner = self.inner.clone();
        self.travel(READ, move || inner.peek(question))
    }

    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn reset(&self, reason: &str) {
        self.inner.reset(reason);
    }

    fn state(&self) -> NodeState {
        self.inner.state()
    }

    fn watch_changes(&self, on: bool) {
        self.inner.watch_changes(on);
    }
}

impl Wire {
    /// Something of this kind is asked.
    fn travel<T: Send + 'static>(
        &self,
        kind: u8,
        ask: impl FnOnce() -> BoxFuture<'static, Result<T, CallError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, CallError>> {
        let way = {
            let ways = lock(&self.ways);
            ways.0.get(&kind).copied().unwrap_or(ways.1)
        };
        let arrive = || ask().now_or_never().expect("done when polled");
        // The last call arrives, and its daemon does not hear of it.
        let way = match self.life.calls_left.load(Ordering::Relaxed) {
            1 => Way::KeepReply,
            left if left < 1 => Way::KeepRequest,
            _ => way,
        };
        self.life.calls_left.fetch_sub(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        let kept = match way {
            Way::Open => return futures::future::ready(arrive()).boxed(),
            Way::Cut => return futures::future::ready(Err(CallError::Unsent("cut".into()))).boxed(),
            // Whoever asked may have given up.
            Way::KeepRequest => Kept::Request(Box::new(move || drop(sender.send(arrive())))),
            Way::KeepReply => {
                let reply = arrive();
                Kept::Reply(Box::new(move || drop(sender.send(reply))))
            }
        };
        lock(&self.kept).push(kept);
        reply.map(|reply| reply.unwrap_or(Err(CallError::Lost("dropped".into())))).boxed()
    }
}

// ---- time and tasks

#[derive(Default)]
struct Shared {
    timers: Mutex<BTreeMap<(u64, u64), oneshot::Sender<()>>>,
    timers_made: AtomicU64,
    spawned: Mutex<Vec<BoxFuture<'static, ()>>>,
}

impl Spawn for Place {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let (task, abort) = abortable(task);
        lock(&self.life.tasks).push(abort);
        lock(&self.shared.spawned).push(task.map(|_| ()).boxed());
    }
}

/// The time and the tasks, as one daemon has them.
struct Place {
    shared: Arc<Shared>,
    life: Arc<Life>,
    clock_ms: Arc<AtomicU64>,
    /// How fast its clock runs, in thousandths.
    rate: u64,
    /// How far behind its wall clock is.
    behind_ms: u64,
    random: AtomicU64,
}

impl Clock for Place {
    fn now(&self) -> Moment {
        let elapsed = self.clock_ms.load(Ordering::Relaxed) * self.rate;
        Moment::from_start(Duration::from_secs(1) + Duration::from_micros(elapsed))
    }

    fn wall_unix_ms(&self) -> u64 {
        Table::START_UNIX_MS + self.clock_ms.load(Ordering::Relaxed) - self.behind_ms
    }

    fn sleep_until(&self, moment: Moment) -> BoxFuture<'static, ()> {
        let left = moment.since(self.now());
        if left.is_zero() {
            return futures::future::ready(()).boxed();
        }
        // Up, so that nobody is woken before the time and sleeps again for none.
        let left_ms = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX).div_ceil(1_000 * self.rate);
        let due = self.clock_ms.load(Ordering::Relaxed).saturating_add(left_ms);
        let (sender, fired) = oneshot::channel();
        let number = self.shared.timers_made.fetch_add(1, Ordering::Relaxed);
        lock(&self.shared.timers).insert((due, number), sender);
        fired.map(|_| ()).boxed()
    }
}

impl Entropy for Place {
    fn next_u64(&self) -> u64 {
        // Any numbers that differ.
        self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}

/// The stage. See the module.
pub struct Stage {
    pub table: Table,
    shared: Arc<Shared>,
    pool: RefCell<LocalPool>,
}

/// A daemon on the stage.
pub struct Daemon {
    pub cluster: Arc<Cluster>,
    pub locks: Locks,
    pub keys: Keys,
    pub queues: Queues,
    wires: Vec<Arc<Wire>>,
    life: Arc<Life>,
}

/// How a daemon's clock is.
#[derive(Clone, Copy)]
pub struct Clocks {
    /// How fast it runs, in thousandths.
    pub rate: u64,
    /// How far behind its wall clock is.
    pub behind_ms: u64,
}

pub const RIGHT: Clocks = Clocks { rate: 1000, behind_ms: 0 };

impl Stage {
    /// A stage on a table.
    pub fn on(table: Table) -> Self {
        // Some time must have been, for clocks to be behind.
        table.pass(100_000);
        Self { table, shared: Arc::default(), pool: RefCell::default() }
    }

    /// A daemon that goes by the list that the table was laid with.
    pub fn daemon(&self, id: u64, clocks: Clocks) -> Daemon {
        let daemon = self.stranger(id, clocks);
        daemon.go_by(founding(), first_list(self.table.size.nodes()));
        daemon
    }

    /// A daemon that knows no list.
    fn stranger(&self, id: u64, clocks: Clocks) -> Daemon {
        let life = Arc::new(Life { calls_left: AtomicI64::new(i64::MAX), tasks: Mutex::default() });
        let place = Arc::new(Place {
            shared: self.shared.clone(),
            life: life.clone(),
            clock_ms: self.table.clock_ms.clone(),
            rate: clocks.rate,
            behind_ms: clocks.behind_ms,
            random: AtomicU64::new(id << 32),
        });
        let runtime = Runtime { clock: place.clone(), entropy: place.clone(), spawner: place };
        let proposer = ProposerId(id);
        let identity = Identity { cluster: "table".into(), nodes: self.table.size.nodes(), daemon: proposer };
        let wire = |(index, server): (u8, &Arc<_>)| {
            let hints = Arc::new(|_, _| {});
            let inner = EmbeddedNode::new(Arc::clone(server), identity.clone(), NodeIndex(index), hints);
            let ways = Mutex::new((BTreeMap::new(), Way::Open));
            Arc::new(Wire {
                inner,
                life: life.clone(),
                ways,
                kept: Mutex::default(),
                looks: Mutex::default(),
            })
        };
        let wires: Vec<Arc<Wire>> = (0..).zip(&self.table.servers).map(wire).collect();
        let nodes = wires.iter().map(|wire| wire.clone() as Arc<dyn Node>).collect();
        let cluster = Arc::new(Cluster::new(self.table.size, nodes, proposer, runtime));
        let locks = Locks::new(cluster.clone(), LockSettings::default());
        let keys = Keys::new(cluster.clone(), KeySettings::default());
        let queues = Queues::new(cluster.clone(), QueueSettings::default());
        Daemon { cluster, locks, keys, queues, wires, life }
    }

    /// A daemon that looks after the member list, as a real one does.
    pub fn keeper(&self, id: u64, bootstrap: bool) -> Daemon {
        self.keeper_with(id, MembershipSettings { bootstrap, ..MembershipSettings::default() })
    }

    /// A keeper that recovers as the setting says.
    pub fn keeper_that(&self, id: u64, recovery: RecoveryMode) -> Daemon {
        self.keeper_with(id, MembershipSettings { recovery, ..MembershipSettings::default() })
    }

    /// A keeper with these settings, but for the longest TTL.
    pub fn keeper_with(&self, id: u64, settings: MembershipSettings) -> Daemon {
        let daemon = self.stranger(id, RIGHT);
        let settings = MembershipSettings { ttl_max: Duration::from_secs(60), ..settings };
        let task = Membership::new(daemon.cluster.clone(), settings).run();
        daemon.cluster.runtime.spawner.spawn(task.boxed());
        daemon
    }

    /// A daemon tells the nodes of each other, as a real one does, and puts out whom nobody has reached for five seconds.
    pub fn reports(&self, daemon: &Daemon) {
        let task = Reporting { cluster: daemon.cluster.clone(), out_after: Duration::from_secs(5) }.run();
        daemon.cluster.runtime.spawner.spawn(task.boxed());
    }

    /// A daemon forgets, as a real one does.
    pub fn forgets(&self, daemon: &Daemon) {
        daemon.cluster.runtime.spawner.spawn(Forgetting::new(daemon.cluster.clone()).run().boxed());
    }

    /// A daemon compares the members and has tidied what aged, as a real one does.
    pub fn compares(&self, daemon: &Daemon) {
        let settings =
            ComparingSettings { interval: Duration::from_secs(10), ..ComparingSettings::default() };
        let (cluster, sweeps) =
            (daemon.cluster.clone(), vec![Arc::new(daemon.locks.clone()) as Arc<dyn Sweep>]);
        let task = Comparing { cluster, settings, sweeps }.run();
        daemon.cluster.runtime.spawner.spawn(task.boxed());
    }

    /// A server restarts, and these daemons connect again.
    pub fn restart(&self, node: u8, after: After, daemons: &[&Daemon]) {
        self.table.restart(node, after, &[]);
        daemons.iter().for_each(|daemon| daemon.wires[usize::from(node)].inner.connect());
    }

    /// The nodes that have a record under a key, by the list that a daemon goes by.
    pub fn recorded(&self, daemon: &Daemon, key: &str) -> Vec<u8> {
        let read = Operation::Read { key: RegisterKey::from_bytes(key.as_bytes()) };
        let list = daemon.view().vid;
        let held = |node: u8| match self.table.run_by(list, node, &read) {
            Some(Answer::Record(record)) => record.is_some(),
            other => panic!("node {node}: {other:?}"),
        };
        self.table
            .all()
            .into_iter()
            .filter(|node| self.table.servers[usize::from(*node)].is_up() && held(*node))
            .collect()
    }

    /// Appends a number to a register, and waits until it is done.
    pub fn append(&self, daemon: &Daemon, number: u8) -> Numbered {
        let registers = Registers::<Numbers>::new(daemon.cluster.clone(), Duration::from_secs(60));
        let deadline = daemon.deadline();
        self.call(
            async move { registers.change("lock", Append(number), deadline).await.map(|done| done.answer) },
        )
    }

    /// What stands in that register.
    pub fn numbers(&self, daemon: &Daemon) -> Vec<u8> {
        let registers = Registers::<Numbers>::new(daemon.cluster.clone(), Duration::from_secs(5));
        let deadline = daemon.deadline();
        let read = self.call(async move { registers.read("lock", deadline).await.map(|seen| seen.value) });
        self.pass(3_000);
        let numbers = lock(&read.result).clone();
        numbers.expect("it is read by now").expect("q members answer")
    }

    /// A server stops. [`Stage::restart`] brings it back.
    pub fn gone(&self, node: u8) {
        self.table.servers[usize::from(node)].stop();
    }

    /// Everybody goes on as far as they get without time passing.
    pub fn settle(&self) {
        let mut pool = self.pool.borrow_mut();
        loop {
            let spawned = std::mem::take(&mut *lock(&self.shared.spawned));
            let done = spawned.is_empty();
            for task in spawned {
                pool.spawner().spawn_local(task).expect("the pool is there");
            }
            pool.run_until_stalled();
            if done && lock(&self.shared.spawned).is_empty() {
                return;
            }
        }
    }

    /// Time passes, and what is due happens.
    pub fn pass(&self, milliseconds: u64) {
        let clock = &self.table.clock_ms;
        let until = clock.load(Ordering::Relaxed) + milliseconds;
        loop {
            self.settle();
            let mut timers = lock(&self.shared.timers);
            let Some(first) = timers.first_entry().filter(|first| first.key().0 <= until) else { break };
            clock.store(first.key().0.max(clock.load(Ordering::Relaxed)), Ordering::Relaxed);
            // Whoever waited may be gone.
            let _ = first.remove().send(());
        }
        clock.store(until, Ordering::Relaxed);
        self.settle();
    }

    /// Starts a call; it goes on as far as it gets.
    pub fn call<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> Call<T> {
        let result = Arc::new(Mutex::new(None));
        let (call, abort) = abortable(call);
        let slot = result.clone();
        let task = call.map(move |done| *lock(&slot) = done.ok());
        lock(&self.shared.spawned).push(task.boxed());
        self.settle();
        Call { result, abort }
    }

    /// Somebody acquires the lock.
    pub fn acquire(&self, daemon: &Daemon, owner: &str, ttl: u64, wait: u64) -> Acquiring {
        self.acquire_one(daemon, "lock", owner, ttl, wait)
    }

    /// Somebody acquires the lock of this name.
    pub fn acquire_one(&self, daemon: &Daemon, name: &str, owner: &str, ttl: u64, wait: u64) -> Acquiring {
        let request = AcquireRequest {
            name: LockName::parse(name).expect("a good name"),
            owner: Some(Owner::parse(owner).expect("a good owner")),
            ttl: Duration::from_secs(ttl),
            wait: Duration::from_secs(wait),
            attributes: Vec::new(),
        };
        let (locks, deadline) = (daemon.locks.clone(), daemon.deadline());
        self.call(async move { locks.acquire(request, deadline).await })
    }

    /// Somebody extends the lease.
    pub fn extend(&self, daemon: &Daemon, lease: &Lease) -> Call<Result<Lease, LockError>> {
        let (locks, deadline, lease) = (daemon.locks.clone(), daemon.deadline(), lease.clone());
        self.call(async move { locks.extend(&lease.name, lease.lease_id, None, deadline).await })
    }

    /// Somebody releases it.
    pub fn release(&self, daemon: &Daemon, lease: &Lease) {
        let (locks, deadline, lease) = (daemon.locks.clone(), daemon.deadline(), lease.clone());
        self.call(async move { locks.release(&lease.name, lease.lease_id, deadline).await });
    }
}

/// A call under way.
pub struct Call<T> {
    result: Arc<Mutex<Option<T>>>,
    abort: AbortHandle,
}

impl<T> Call<T> {
    /// What it came to, if it has by now.
    pub fn ended(&self) -> Option<T> {
        lock(&self.result).take()
    }

    /// The client goes away.
    pub fn go_away(self, stage: &Stage) {
        self.abort.abort();
        stage.settle();
    }
}

/// An acquire under way.
pub type Acquiring = Call<Result<Acquisition, LockError>>;

impl Acquiring {
    /// The lease, if it came to one by now.
    pub fn lease(&self) -> Option<Lease> {
        match &*lock(&self.result) {
            Some(Ok(Acquisition::Acquired(lease))) => Some(lease.clone()),
            _ => None,
        }
    }
}

/// A number under way to its register, and what that came to.
pub type Numbered = Call<Result<Vec<u8>, RegisterError>>;

impl Numbered {
    /// The register with the number in it, if it was agreed on by now.
    pub fn done(&self) -> Option<Vec<u8>> {
        lock(&self.result).as_ref()?.as_ref().ok().cloned()
    }
}

impl Call<Result<Lease, LockError>> {
    /// The lease, if it was extended by now.
    pub fn lease(&self) -> Option<Lease> {
        lock(&self.result).as_ref()?.as_ref().ok().cloned()
    }
}

impl Daemon {
    /// The list that it goes by.
    pub fn view(&self) -> View {
        View::clone(&self.cluster.views.current().expect("it goes by a list"))
    }

    /// From now on it goes by this list.
    pub fn go_by(&self, vid: Ballot, list: MemberList) {
        self.cluster.views.install(View { vid, list, grants: true });
    }

    /// What becomes of everything that it sends to a node.
    pub fn way(&self, node: u8, way: Way) {
        *lock(&self.wires[usize::from(node)].ways) = (BTreeMap::new(), way);
    }

    /// What becomes of one kind of operation.
    pub fn way_of(&self, node: u8, kind: u8, way: Way) {
        lock(&self.wires[usize::from(node)].ways).0.insert(kind, way);
    }

    /// Of each look without the script that it has sent to a node, how many registers it was about.
    pub fn looks(&self, node: u8) -> Vec<usize> {
        lock(&self.wires[usize::from(node)].looks).clone()
    }

    /// What was kept on the way to or from a node goes on.
    pub fn let_go(&self, node: u8) {
        self.wires[usize::from(node)].let_go(|_| true);
    }

    /// The same with answers alone.
    pub fn let_go_replies(&self, node: u8) {
        self.wires[usize::from(node)].let_go(|kept| matches!(kept, Kept::Reply(..)));
    }

    /// After so many calls it stands still: the last arrives, its answer and whatever else it sends is kept.
    pub fn stands_still_after(&self, calls: u32) {
        self.life.calls_left.store(calls.into(), Ordering::Relaxed);
    }

    /// Whether it does.
    pub fn stands_still(&self) -> bool {
        self.life.calls_left.load(Ordering::Relaxed) < 1
    }

    /// It goes on, and so does what was kept.
    pub fn goes_on(&self) {
        self.life.calls_left.store(i64::MAX, Ordering::Relaxed);
        self.wires.iter().for_each(|wire| wire.let_go(|_| true));
    }

    /// It is killed, with all that it had not sent.
    pub fn kill(&self) {
        lock(&self.life.tasks).drain(..).for_each(|task| task.abort());
        self.wires.iter().for_each(|wire| lock(&wire.kept).clear());
    }

    /// Its client relies on the lease now.
    pub fn relies(&self, lease: Option<&Lease>) -> bool {
        lease.is_some_and(|lease| self.cluster.runtime.clock.now() < lease.valid_until)
    }

    pub fn deadline(&self) -> Moment {
        self.cluster.runtime.clock.now() + Duration::from_secs(100)
    }
}
