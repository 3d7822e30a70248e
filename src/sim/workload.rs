//! One run: a cluster, daemons, clients that lock and unlock, faults, then healing and a check that all is served again.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, Either};

use super::invariants::Leases;
use super::network::{Host, SimNode, Weather};
use super::world::{Actor, NOBODY, Random, World};
use crate::driver::Cluster;
use crate::ids::{LockName, NodeIndex, Owner, ProposerId};
use crate::lock::locks::LockSettings;
use crate::lock::{AcquireRequest, Acquisition, Lease, Locks};
use crate::node::embedded::After;
use crate::node::{Hint, HintSink, Identity, Node};
use crate::quorum::ClusterSize;
use crate::upkeep::membership::{Membership, MembershipSettings};

/// How long faults rage, in virtual time.
const FAULTS: Duration = Duration::from_secs(60);
/// How long clients may take to come to an end afterwards.
const HEALING: Duration = Duration::from_secs(120);
const LOCKED: &str = "no holder of this lock panics";

/// What a run found.
#[derive(Debug)]
pub struct Report {
    /// The first thing that must not be; `None` for a clean run.
    pub violation: Option<String>,
    /// What happened, one event a line.
    pub trace: String,
    /// Grants that clients were told of.
    pub grants: usize,
}

struct Shared {
    world: World,
    leases: Mutex<Leases>,
    trace: Mutex<String>,
    violation: Mutex<Option<String>>,
    calm: AtomicBool,
}

impl Shared {
    fn say(&self, words: std::fmt::Arguments<'_>) {
        let mut trace = self.trace.lock().expect(LOCKED);
        let now = self.world.now();
        let _ = writeln!(trace, "{now:?} {words}");
    }

    fn violated(&self, words: String) {
        self.say(format_args!("VIOLATION {words}"));
        self.violation.lock().expect(LOCKED).get_or_insert(words);
    }
}

/// One daemon of the world.
struct SimDaemon {
    actor: Actor,
    locks: Locks,
    cuts: Vec<Arc<AtomicBool>>,
    alive: Arc<AtomicBool>,
}

/// Runs a seed.
pub fn run(seed: u64) -> Report {
    let world = World::new(seed);
    let mut random = world.fork();
    let size = ClusterSize::new([3, 3, 5][random.below(3) as usize]).expect("one of the sizes");
    let hosts: Vec<Host> = (0..size.nodes()).map(|name| Host::new(&world, name as u64)).collect();
    let weather = Arc::new(Weather::default());
    let shared = Arc::new(Shared {
        world: world.clone(),
        leases: Mutex::default(),
        trace: Mutex::default(),
        violation: Mutex::default(),
        calm: AtomicBool::new(false),
    });
    let daemons = 1 + random.below(3) as u32;
    let daemons: Vec<SimDaemon> = (1..=daemons)
        .map(|actor| start_daemon(&world, size, &hosts, &weather, Actor(actor), &mut random))
        .collect();
    let daemons = Arc::new(daemons);
    world.run_until(world.now() + Duration::from_secs(10));

    let clients = 2 + random.below(6) as u32;
    let names = 1 + random.below(3);
    let finished = Arc::new(Mutex::new(0u32));
    for client in 1..=clients {
        let task = run_client(shared.clone(), daemons.clone(), client, names, finished.clone());
        world.spawn(NOBODY, task.boxed());
    }
    world.spawn(NOBODY, rage(shared.clone(), size, hosts, weather, daemons, random).boxed());
    world.run_until(world.now() + FAULTS + HEALING);
    let done = *finished.lock().expect(LOCKED);
    if done < clients {
        shared
            .violated(format!("only {done} of {clients} clients came to an end after the faults were over"));
    }
    let violation = shared.violation.lock().expect(LOCKED).clone();
    let grants = shared.leases.lock().expect(LOCKED).grants();
    let trace = shared.trace.lock().expect(LOCKED).clone();
    for actor in 0..=100 {
        world.kill(Actor(actor));
    }
    Report { violation, trace, grants }
}

fn start_daemon(
    world: &World,
    size: ClusterSize,
    hosts: &[Host],
    weather: &Arc<Weather>,
    actor: Actor,
    random: &mut Random,
) -> SimDaemon {
    let skew_ms = random.below(20_000) as i64 - 10_000;
    let runtime = world.runtime(actor, skew_ms);
    let proposer = ProposerId(random.bits());
    let identity = Identity { cluster: "sim".into(), nodes: size.nodes(), daemon: proposer };
    let room: Arc<OnceLock<Locks>> = Arc::default();
    let alive = Arc::new(AtomicBool::new(true));
    let (locks, living) = (room.clone(), alive.clone());
    let hints: HintSink = Arc::new(move |node, hint| {
        let Some(locks) = locks.get().filter(|_| living.load(Ordering::Relaxed)) else { return };
        let name = |key: &[u8]| String::from_utf8_lossy(&key[2..]).into_owned();
        match hint {
            Hint::Wake(key) => locks.on_wake(node, &name(&key)),
            Hint::Changed(key) => locks.on_changed(&name(&key)),
            Hint::State => {}
        }
    });
    let cuts: Vec<Arc<AtomicBool>> = hosts.iter().map(|_| Arc::default()).collect();
    let nodes = (0..).zip(hosts.iter().zip(&cuts)).map(|(index, (host, cut))| {
        let (index, weather, cut) = (NodeIndex(index), weather.clone(), cut.clone());
        SimNode::new(world, host, &identity, index, hints.clone(), weather, cut) as Arc<dyn Node>
    });
    let cluster = Arc::new(Cluster::new(size, nodes.collect(), proposer, runtime.clone()));
    let locks = Locks::new(cluster.clone(), LockSettings::default());
    let _ = room.set(locks.clone());
    let membership = MembershipSettings { bootstrap: true, ttl_max: Duration::from_secs(10) };
    runtime.spawner.spawn(Membership::new(cluster, membership).run().boxed());
    SimDaemon { actor, locks, cuts, alive }
}

/// A client: acquires, works, extends, releases or forgets to, again and again until the faults are over and once more.
async fn run_client(
    shared: Arc<Shared>,
    daemons: Arc<Vec<SimDaemon>>,
    client: u32,
    names: u64,
    finished: Arc<Mutex<u32>>,
) {
    let mut random = shared.world.fork();
    let mut last_round = false;
    loop {
        let calm = shared.calm.load(Ordering::Relaxed);
        let name = LockName::parse(&format!("n{}", random.below(names))).expect("a good name");
        let living: Vec<&SimDaemon> = daemons.iter().filter(|d| d.alive.load(Ordering::Relaxed)).collect();
        let daemon = living[random.below(living.len() as u64) as usize];
        let served = one_round(&shared, daemon, client, &name, &mut random, &living).await;
        if calm && served && last_round {
            break;
        }
        last_round = calm;
        shared.world.sleep(Duration::from_millis(random.below(500))).await;
    }
    shared.say(format_args!("client {client} is done"));
    *finished.lock().expect(LOCKED) += 1;
}

/// `true` if the lock was had.
async fn one_round(
    shared: &Arc<Shared>,
    daemon: &SimDaemon,
    client: u32,
    name: &LockName,
    random: &mut Random,
    living: &[&SimDaemon],
) -> bool {
    let world = &shared.world;
    let ttl = Duration::from_millis(1_000 + random.below(4_000));
    let wait = if random.chance(70) { Duration::from_secs(1 + random.below(20)) } else { Duration::ZERO };
    let named = random.chance(50);
    let owner = named.then(|| Owner::parse(&format!("c{client}")).expect("a good name"));
    let request = AcquireRequest { name: name.clone(), owner, ttl, wait, attributes: vec![] };
    let deadline = world.now() + wait + Duration::from_secs(5);
    shared.say(format_args!("client {client} wants {name} of {:?} wait {wait:?}", daemon.actor));
    let acquire = daemon.locks.acquire(request, deadline);
    // Now and then the client loses patience and drops the call.
    let patience =
        if random.chance(10) { Duration::from_millis(random.below(3_000)) } else { Duration::from_secs(60) };
    let acquired = match future::select(acquire.boxed(), world.sleep(patience)).await {
        Either::Left((acquired, _)) => acquired,
        Either::Right(_) => {
            shared.say(format_args!("client {client} gave up on {name}"));
            return false;
        }
    };
    let mut lease = match acquired {
        Ok(Acquisition::Acquired(lease)) => lease,
        other => {
            shared.say(format_args!("client {client} did not get {name}: {}", fate_of(&other)));
            return false;
        }
    };
    if !note(shared, client, &lease) {
        return false;
    }
    for _ in 0..random.below(4) {
        world.sleep(Duration::from_millis(random.below(1_500))).await;
        if random.chance(50) {
            // Any daemon will do.
            let at = living[random.below(living.len() as u64) as usize];
            let deadline = world.now() + Duration::from_secs(2);
            match at.locks.extend(name, lease.lease_id, None, deadline).await {
                Ok(extended) => {
                    lease = extended;
                    if !note(shared, client, &lease) {
                        return false;
                    }
                }
                Err(error) => shared.say(format_args!("client {client} could not extend {name}: {error}")),
            }
        }
    }
    if random.chance(85) {
        shared.leases.lock().expect(LOCKED).let_go(name, client, lease.token, world.now());
        let deadline = world.now() + Duration::from_secs(3);
        let released = daemon.locks.release(name, lease.lease_id, deadline).await;
        let released = released.map_err(|error| error.to_string());
        shared.say(format_args!("client {client} released {name} ({}): {released:?}", lease.token));
    } else {
        let until = lease.valid_until;
        shared.say(format_args!("client {client} keeps {name} ({}) until {until:?}", lease.token));
        // It will not ask for it again under its name before that: that would be the same holder.
        world.sleep_until(until).await;
    }
    true
}

fn note(shared: &Shared, client: u32, lease: &Lease) -> bool {
    let now = shared.world.now();
    shared.say(format_args!(
        "client {client} has {} token {} until {:?}",
        lease.name, lease.token, lease.valid_until
    ));
    let granted =
        shared.leases.lock().expect(LOCKED).granted(&lease.name, client, lease.token, now, lease.valid_until);
    if let Err(violation) = granted {
        shared.violated(violation);
        return false;
    }
    true
}

fn fate_of(acquired: &Result<Acquisition, crate::lock::LockError>) -> String {
    match acquired {
        Ok(_) => "contention".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// The faults, then the calm.
async fn rage(
    shared: Arc<Shared>,
    size: ClusterSize,
    hosts: Vec<Host>,
    weather: Arc<Weather>,
    daemons: Arc<Vec<SimDaemon>>,
    mut random: Random,
) {
    let world = shared.world.clone();
    let end = world.now() + FAULTS;
    // Fewer than q nodes may lose their memory, and fewer than q clocks may jump.
    let fewer = size.quorum() as u64 - 1;
    let mut may_forget: Vec<usize> = pick(&mut random, hosts.len(), fewer);
    let may_jump: Vec<usize> = pick(&mut random, hosts.len(), fewer);
    let snapshots: Vec<_> = hosts.iter().map(|host| host.server.keyspace()).collect();
    weather.loss.store(random.below(8), Ordering::Relaxed);
    weather.late.store(random.below(15), Ordering::Relaxed);
    weather.late_ms.store(1 + random.below(8_000), Ordering::Relaxed);
    weather.hints_lost.store(random.below(60), Ordering::Relaxed);
    while world.now() < end {
        world.sleep(Duration::from_millis(random.below(4_000))).await;
        let daemon = &daemons[random.below(daemons.len() as u64) as usize];
        match random.below(6) {
            0 => {
                let length = Duration::from_millis(random.below(12_000));
                shared.say(format_args!("fault: {:?} pauses for {length:?}", daemon.actor));
                world.pause(daemon.actor, world.now() + length);
            }
            1 if daemons.iter().filter(|d| d.alive.load(Ordering::Relaxed)).count() > 1
                && random.chance(40) =>
            {
                shared.say(format_args!("fault: {:?} dies", daemon.actor));
                daemon.alive.store(false, Ordering::Relaxed);
                world.kill(daemon.actor);
            }
            2 => {
                let node = random.below(hosts.len() as u64) as usize;
                let cut = daemon.cuts[node].clone();
                let length = Duration::from_millis(random.below(8_000));
                shared.say(format_args!(
                    "fault: {:?} is cut off from node {node} for {length:?}",
                    daemon.actor
                ));
                cut.store(true, Ordering::Relaxed);
                let mend = world.clone();
                let task = async move {
                    mend.sleep(length).await;
                    cut.store(false, Ordering::Relaxed);
                };
                world.spawn(NOBODY, task.boxed());
            }
            3 if !may_jump.is_empty() => {
                let node = may_jump[random.below(may_jump.len() as u64) as usize];
                let jump = random.below(200_000) as i64 - 100_000;
                shared.say(format_args!("fault: the clock of node {node} is off by {jump} ms"));
                hosts[node].skew_ms.store(jump, Ordering::Relaxed);
            }
            4 => {
                if let Some(node) = may_forget.pop() {
                    let after = match random.below(3) {
                        0 => After::Kept,
                        1 => After::Wiped,
                        _ => After::Replaced(snapshots[node].clone()),
                    };
                    shared.say(format_args!("fault: node {node} restarts"));
                    hosts[node].server.restart(after);
                }
            }
            _ => {
                let node = random.below(hosts.len() as u64) as usize;
                shared.say(format_args!("fault: node {node} forgets its scripts"));
                hosts[node].server.flush_scripts();
            }
        }
    }
    weather.loss.store(0, Ordering::Relaxed);
    weather.late.store(0, Ordering::Relaxed);
    weather.hints_lost.store(0, Ordering::Relaxed);
    for daemon in daemons.iter() {
        daemon.cuts.iter().for_each(|cut| cut.store(false, Ordering::Relaxed));
    }
    hosts.iter().for_each(|host| host.skew_ms.store(0, Ordering::Relaxed));
    shared.say(format_args!("calm"));
    shared.calm.store(true, Ordering::Relaxed);
}

/// So many different numbers below `end`.
fn pick(random: &mut Random, end: usize, count: u64) -> Vec<usize> {
    let mut all: Vec<usize> = (0..end).collect();
    (0..count).map(|_| all.swap_remove(random.below(all.len() as u64) as usize)).collect()
}
