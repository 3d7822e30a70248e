//! One run: a cluster is founded, clients come, faults rage; then healing, and a check that all is served and nothing left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;

use super::cells::{CellClient, CellSettings, run_cell_client};
use super::clients::Clients;
use super::consumers::Consumer;
use super::daemon::{Daemons, SimDaemon};
use super::faults::Rage;
use super::host::Host;
use super::invariants::Event;
use super::invariants::leftovers::{self, Remaining};
use super::judge::{Judge, Report};
use super::keys::{self, KeyClient, KeySettings, run_key_client};
use super::network::Weather;
use super::operators::Operator;
use super::options::{KeyOptions, Options};
use super::producers::Producer;
use super::queues::{self, QueueClient};
use super::random::Random;
use super::watchers::Watcher;
use super::world::{NOBODY, World};
use crate::ids::LockName;
use crate::kv::Write;
use crate::limits;
use crate::lock::{AcquireRequest, Acquisition};
use crate::node::keyspace::{KIND_ITEM, KIND_KEY, KIND_LOCK, KIND_QUEUE};

/// A founding takes no longer, with the waiting that it may call for.
const FOUNDING: Duration = Duration::from_secs(30);
/// After the faults: the longest pause and the longest lease have passed.
const SETTLING: Duration = Duration::from_secs(15);
/// Clients come to an end within so long after the faults.
const HEALING: Duration = Duration::from_secs(240);
/// Nodes are members again within so long, if nothing fails any more.
const JOINING: Duration = Duration::from_secs(120);
/// What says nothing is forgotten within so long.
const FORGETTING: Duration = Duration::from_secs(180);
/// What has aged and nobody asks for is found by a comparison, and then forgotten, within so long.
const SWEEPING: Duration = Duration::from_secs(240);
/// When all clients have gone: leases and places have aged.
const CLEARING: Duration = Duration::from_secs(20);
/// All watches hear of the last removals within so long.
const WATCHING: Duration = Duration::from_secs(120);
/// All items are acked within so long.
const DRAINING: Duration = Duration::from_secs(240);
/// Longer than any lease, delay and back-off of a run.
const QUIET: Duration = Duration::from_secs(6);
/// How often queues are drained and deleted before nothing more may come: puts whose outcome was unknown.
const DRAINS_MAX: usize = 4;
/// A last visit to every lock takes no longer.
const VISITING: Duration = Duration::from_secs(60);

/// Clients of cells are numbered from here.
const CELL_CLIENTS: u32 = 100;
/// Clients of keys are numbered from here.
const KEY_CLIENTS: u32 = 200;
/// Those that watch from here.
const WATCHERS: u32 = 300;
/// Those of queues from here.
const QUEUE_CLIENTS: u32 = 400;

/// Runs a seed.
pub fn run(seed: u64) -> Report {
    let world = World::new(seed);
    let mut random = world.fork();
    let options = Options::draw(&mut random);
    run_with(&world, options, random)
}

fn run_with(world: &World, options: Options, mut random: Random) -> Report {
    let judge = Arc::new(Judge::new(world));
    judge.say(format_args!("{options}"));
    let rate = |random: &mut Random| [-1_000, 0, 0, 1_000][random.index(4)];
    let hosts: Vec<Arc<Host>> =
        (0..options.nodes).map(|name| Host::new(world, name as u64, rate(&mut random))).collect();
    let weather = Arc::new(Weather::default());
    let daemons = Daemons::start(world, &options, &hosts, &weather, &mut random);
    let founded = || daemons.living().iter().all(|daemon| serves(daemon));
    if !world.run(world.now() + FOUNDING, founded) {
        judge.violated("the cluster was not founded".to_owned());
    }
    let idle: usize = daemons.living().iter().map(|daemon| world.tasks(daemon.actor)).max().unwrap_or(0);

    let clients = Arc::new(Clients {
        world: world.clone(),
        daemons: daemons.clone(),
        judge: judge.clone(),
        options: options.clone(),
        calm: Default::default(),
    });
    for client in 1..=options.clients {
        judge.progress(|progress| progress.begin(client));
        world.spawn(NOBODY, clients.clone().live(client).boxed());
    }
    for number in 1..=options.cell_clients {
        let settings = CellSettings { keys: options.cells, ..CellSettings::default() };
        let client = CellClient::new(world, number, settings, judge.cells.clone());
        let (calmed, name, ended) = (clients.clone(), CELL_CLIENTS + number, judge.clone());
        judge.progress(|progress| progress.begin(name));
        let life = run_cell_client(client, daemons.clone(), move || calmed.calm.load(Ordering::Relaxed));
        let life = life.map(move |()| ended.progress(|progress| progress.end(name)));
        world.spawn(NOBODY, life.boxed());
    }
    let unwatched = start_keys(world, &options.keys, &daemons, &clients);
    start_queues(world, &clients);
    let (faults_for, skew) = (options.faults_for, options.skew);
    let rage = Rage {
        world: world.clone(),
        options,
        hosts: hosts.clone(),
        weather,
        daemons: daemons.clone(),
        judge: judge.clone(),
        random,
        unreached: Arc::default(),
    };
    let (calmed, calm_judge, calm_world) = (clients.clone(), judge.clone(), world.clone());
    let story = async move {
        rage.run().await;
        calm_world.sleep(SETTLING).await;
        calmed.calm.store(true, Ordering::Relaxed);
        calm_judge.observe(&Event::Calm { skew: 2 * skew });
    };
    world.spawn(NOBODY, story.boxed());
    let over = || judge.is_violated() || judge.progress(|progress| progress.is_over());
    world.run(world.now() + faults_for + SETTLING + HEALING, over);
    judge.expect(judge.progress(|progress| progress.judge()));
    if !judge.is_violated() {
        remove_keys(world, &clients);
    }
    unwatched.store(true, Ordering::Relaxed);
    if !judge.is_violated() {
        drain_queues(world, &clients);
    }
    if !judge.is_violated() {
        check_leftovers(world, &hosts, &daemons, clients.options.names, &judge, idle);
    }
    if !judge.is_violated() && clients.options.keys.leaves_nothing() {
        check_keys_forgotten(world, &hosts, &clients);
    }
    if !judge.is_violated() {
        check_queues_forgotten(world, &hosts, &clients);
    }
    judge.judge_histories(&clients.options.queues.options);
    let report = judge.report();
    world.end();
    daemons.end();
    report
}

/// Starts the clients of keys. What they return ends the watches.
fn start_keys(
    world: &World,
    options: &KeyOptions,
    daemons: &Arc<Daemons>,
    clients: &Arc<Clients>,
) -> Arc<AtomicBool> {
    let KeyOptions { keys, requests, fenced, listed, .. } = *options;
    let (judge, unwatched) = (&clients.judge, Arc::new(AtomicBool::new(false)));
    let calm = || {
        let clients = clients.clone();
        move || clients.calm.load(Ordering::Relaxed)
    };
    for name in (KEY_CLIENTS + 1..).take(options.clients as usize) {
        let settings = KeySettings { keys, requests, fenced, listed };
        let client = KeyClient::new(world, name, settings, judge.clone());
        judge.progress(|progress| progress.begin(name));
        let ended = judge.clone();
        let life = run_key_client(client, daemons.clone(), calm());
        let life = life.map(move |()| ended.progress(|progress| progress.end(name)));
        world.spawn(NOBODY, life.boxed());
    }
    for name in (WATCHERS + 1..).take(options.watchers as usize) {
        let watcher = Watcher::new(world, name, keys, judge.clone());
        world.spawn(NOBODY, watcher.live(daemons.clone(), calm(), unwatched.clone()).boxed());
    }
    unwatched
}

/// Starts the clients of queues, each of which has its settings by then.
fn start_queues(world: &World, clients: &Arc<Clients>) {
    let (judge, daemons, work) = (&clients.judge, &clients.daemons, &clients.options.queues);
    if work.producers == 0 {
        return;
    }
    let first = daemons.living()[0].clone();
    run_task(world, FOUNDING, queues::configure(first, judge.clone(), work.clone()));
    let calm = || {
        let clients = clients.clone();
        move || clients.calm.load(Ordering::Relaxed)
    };
    let mut names = QUEUE_CLIENTS + 1..;
    let mut client = || QueueClient::new(world, names.next().unwrap_or(u32::MAX), judge, daemons, work);
    let mut lives = Vec::new();
    for _ in 0..work.producers {
        let base = client();
        lives.push((base.client, Producer::new(base).live(calm()).boxed()));
    }
    for _ in 0..work.consumers {
        let base = client();
        lives.push((base.client, Consumer::new(base).live(calm()).boxed()));
    }
    let base = client();
    lives.push((base.client, Operator::new(base).live(calm()).boxed()));
    for (name, life) in lives {
        judge.progress(|progress| progress.begin(name));
        let ended = judge.clone();
        let life = life.map(move |()| ended.progress(|progress| progress.end(name)));
        world.spawn(NOBODY, life.boxed());
    }
}

/// Whatever is in the queues can be reserved and acked.
fn drain_queues(world: &World, clients: &Arc<Clients>) {
    let Clients { judge, daemons, options, .. } = &**clients;
    if options.queues.producers == 0 {
        return;
    }
    let mut drainer = Operator::new(QueueClient::new(world, QUEUE_CLIENTS, judge, daemons, &options.queues));
    let drained = run_task(world, DRAINING, async move { drainer.drain(Duration::ZERO).await });
    if !drained {
        let left = judge.queues(|notes| queues::outstanding(notes, &options.queues.options));
        judge.violated(format!("queues can't be drained; these are missed: {left:?}"));
    }
}

/// When queues are deleted, nothing of them stays on any node.
fn check_queues_forgotten(world: &World, hosts: &[Arc<Host>], clients: &Arc<Clients>) {
    let Clients { judge, daemons, options, .. } = &**clients;
    if options.queues.producers == 0 {
        return;
    }
    let left = || {
        let of_kind = |kind: char| hosts.iter().flat_map(move |host| host.records(kind));
        of_kind(KIND_ITEM).chain(of_kind(KIND_QUEUE)).collect::<BTreeSet<_>>()
    };
    for _ in 0..DRAINS_MAX {
        let mut drainer =
            Operator::new(QueueClient::new(world, QUEUE_CLIENTS, judge, daemons, &options.queues));
        let deleted = run_task(world, DRAINING, async move {
            drainer.drain(QUIET).await;
            drainer.delete().await;
        });
        if !deleted {
            judge.violated("queues can't be deleted at the end".to_owned());
        }
        let forgotten = world.run(world.now() + SWEEPING, || left().is_empty());
        if forgotten || judge.is_violated() {
            return;
        }
    }
    judge.violated(format!("queues were deleted, and these are still on nodes: {:?}", left()));
}

/// Runs to the end of a task, but not longer than a while. Whether it came to its end.
fn run_task(world: &World, most: Duration, task: impl Future<Output = ()> + Send + 'static) -> bool {
    let done = Arc::new(AtomicBool::new(false));
    let over = done.clone();
    world.spawn(NOBODY, task.map(move |()| over.store(true, Ordering::Relaxed)).boxed());
    world.run(world.now() + most, || done.load(Ordering::Relaxed))
}

/// Removes each key, and waits for all who watch to hear of it.
fn remove_keys(world: &World, clients: &Arc<Clients>) {
    let Clients { daemons, judge, options, .. } = &**clients;
    if options.keys.clients == 0 {
        return;
    }
    let (daemon, words, keys) = (daemons.living()[0].clone(), judge.clone(), options.keys.keys);
    run_task(world, VISITING, async move {
        for key in (0..keys).map(keys::name) {
            let (keys, name, deadline) = (daemon.keys.clone(), key.clone(), daemon.now() + VISITING / 3);
            let delete = Write::Delete { version: None };
            let call = async move { keys.write(&name, delete.into(), deadline).await };
            if let Some(Err(error)) = daemon.call(call).await {
                words.violated(format!("{key} can't be removed at the end: {error}"));
            }
        }
    });
    let see_nothing = || judge.watches(|watches| watches.see_nothing());
    if !judge.is_violated() && !world.run(world.now() + WATCHING, see_nothing) {
        judge.violated("all keys were removed, and not all who watch were told".to_owned());
    }
}

/// Keys that were removed are no longer on any node.
fn check_keys_forgotten(world: &World, hosts: &[Arc<Host>], clients: &Arc<Clients>) {
    if clients.options.keys.ages {
        // Slow clocks, too. Nobody asks for the keys any more.
        world.run_until(world.now() + limits::REQUESTS_KEPT + SETTLING);
    }
    let left = || hosts.iter().flat_map(|host| host.records(KIND_KEY)).collect::<BTreeSet<_>>();
    if !world.run(world.now() + SWEEPING, || left().is_empty()) {
        clients.judge.violated(format!("keys that were removed are still on nodes: {:?}", left()));
    }
}

fn serves(daemon: &SimDaemon) -> bool {
    daemon.cluster.views.current().is_some_and(|view| view.grants)
}

/// Looks at what is left: first where nobody has asked for anything, then after each lock was taken and given back once.
fn check_leftovers(
    world: &World,
    hosts: &[Arc<Host>],
    daemons: &Arc<Daemons>,
    names: u64,
    judge: &Arc<Judge>,
    idle: usize,
) {
    world.run_until(world.now() + CLEARING);
    let living = daemons.living();
    let whole = || (0..daemons.size().nodes()).all(|node| daemons.is_whole(node));
    if !world.run(world.now() + JOINING, whole) {
        let lists: Vec<_> = living.iter().map(|daemon| daemon.cluster.complaint()).collect();
        judge.violated(format!("not all nodes are members at the end: {lists:?}"));
    }
    let locks = || hosts.iter().flat_map(|host| host.records(KIND_LOCK)).collect::<BTreeSet<_>>();
    if !world.run(world.now() + SWEEPING, || locks().is_empty()) {
        judge.violated(format!("locks that nobody asks for any more are still on nodes: {:?}", locks()));
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let (visited, words) = (living.clone(), judge.clone());
    let visit = async move {
        let first = visited[0].clone();
        for name in 0..names {
            let name = LockName::parse(&format!("n{name}")).expect("a good name");
            if let Err(error) = touch(&first, name.clone()).await {
                words.violated(format!("{name} can't be taken at the end: {error}"));
            }
        }
        for daemon in visited {
            let (locks, deadline) = (daemon.locks.clone(), daemon.now() + Duration::from_secs(5));
            let page = daemon.call(async move { locks.list("", 100, "", deadline).await }).await;
            let listed = match page {
                Some(Ok(page)) => page.locks.iter().map(|lock| lock.name.to_string()).collect(),
                other => vec![format!("{other:?}")],
            };
            let _ = sender.send((daemon.actor.0, daemon.locks.waiters(), listed));
        }
    };
    run_task(world, VISITING, visit);
    // What the visit started comes to an end.
    world.run_until(world.now() + SETTLING);
    let tasks_of = |daemon: u32| {
        living.iter().find(|d| d.actor.0 == daemon).map_or(0, |d| world.tasks(d.actor).saturating_sub(idle))
    };
    let remaining: Vec<Remaining> = receiver
        .try_iter()
        .map(|(daemon, waiters, listed)| Remaining { daemon, waiters, tasks: tasks_of(daemon), listed })
        .collect();
    if remaining.len() < living.len() {
        judge.violated("not every daemon answered at the end".to_owned());
    }
    judge.expect(leftovers::judge(&remaining));
    if !world.run(world.now() + FORGETTING, || locks().is_empty()) {
        judge.violated(format!("locks that nobody holds or waits for are still on nodes: {:?}", locks()));
    }
}

async fn touch(daemon: &SimDaemon, name: LockName) -> Result<(), String> {
    let (locks, deadline) = (daemon.locks.clone(), daemon.now() + Duration::from_secs(20));
    let request = AcquireRequest {
        name: name.clone(),
        owner: None,
        ttl: Duration::from_secs(1),
        wait: Duration::from_secs(10),
        attributes: vec![],
    };
    let call = async move {
        match locks.acquire(request, deadline).await {
            Ok(Acquisition::Acquired(lease)) => {
                locks.release(&name, lease.lease_id, deadline).await.map_err(|error| error.to_string())
            }
            Ok(Acquisition::Contended(contention)) => Err(format!("{contention:?}")),
            Err(error) => Err(error.to_string()),
        }
    };
    daemon.call(call).await.unwrap_or(Err("the daemon died".to_owned())).map(|_| ())
}
