//! The register by itself under faults: every cell's calls can be put in one order. Asks for the feature `sim`.
//!
//! `CELLS_SEED=7` replays one seed with its history; `CELLS_SEEDS=1000` runs so many from `CELLS_FROM` on.
#![cfg(feature = "sim")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use majorityd::driver::Cluster;
use majorityd::ids::{NodeIndex, ProposerId};
use majorityd::node::embedded::After;
use majorityd::node::{HintSink, Identity, Node};
use majorityd::quorum::ClusterSize;
use majorityd::register::Registers;
use majorityd::sim::cell::{CellCall, CellKind, CellModel, CellState, CellTold};
use majorityd::sim::cells::{
    CellClient, CellDaemon, CellHistory, CellSettings, Judged, judge, run_cell_client, timed,
};
use majorityd::sim::history::{Calls, Fate};
use majorityd::sim::linearizable::{Model, Timed, Verdict, check};
use majorityd::sim::network::{Host, SimNode, Weather};
use majorityd::sim::world::{Actor, NOBODY, Random, World};
use majorityd::upkeep::membership::{Membership, MembershipSettings};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History as Actions};
use todc_utils::specifications::Specification;

/// How long faults rage, and how long clients may take to be served again.
const FAULTS: Duration = Duration::from_secs(30);
const HEALING: Duration = Duration::from_secs(60);
/// For one cell's history. The typical one takes a thousand.
const STEPS_MAX: u64 = 2_000_000;
const LOCKED: &str = "no holder of this lock panics";
/// How much of a history is shown to the other checker.
const OTHERS_CALLS: usize = 40;
const OTHERS_OPEN: usize = 6;

struct Ran {
    history: CellHistory,
    /// Clients that were served after the faults, and clients.
    finished: (u32, u32),
}

/// One daemon of the world.
struct Daemon {
    actor: Actor,
    cell: CellDaemon,
    cuts: Vec<Arc<AtomicBool>>,
}

fn run(seed: u64) -> Ran {
    let world = World::new(seed);
    let mut random = world.fork();
    let size = ClusterSize::new([3, 3, 5][random.below(3) as usize]).expect("one of the sizes");
    let hosts: Vec<Host> = (0..size.nodes()).map(|name| Host::new(&world, name as u64)).collect();
    let weather = Arc::new(Weather::default());
    let daemons = 1 + random.below(3) as u32;
    let daemons: Vec<Daemon> = (1..=daemons)
        .map(|actor| start_daemon(&world, size, &hosts, &weather, Actor(actor), &mut random))
        .collect();
    world.run_until(world.now() + Duration::from_secs(10));

    let history = Arc::new(Mutex::new(CellHistory::default()));
    let calm = Arc::new(AtomicBool::new(false));
    let finished = Arc::new(Mutex::new(0));
    let clients = 2 + random.below(5) as u32;
    let settings = CellSettings { keys: 1 + random.below(3), ..CellSettings::default() };
    let cells: Arc<Vec<CellDaemon>> = Arc::new(daemons.iter().map(|daemon| daemon.cell.clone()).collect());
    for number in 1..=clients {
        let client = CellClient::new(&world, number, settings.clone(), history.clone());
        let (task, finished) = (run_cell_client(client, cells.clone(), calm.clone()), finished.clone());
        let task = async move {
            task.await;
            *finished.lock().expect(LOCKED) += 1;
        };
        world.spawn(NOBODY, task.boxed());
    }
    world.spawn(NOBODY, rage(world.clone(), size, hosts, weather, daemons, calm, random).boxed());
    world.run_until(world.now() + FAULTS + HEALING);
    for actor in 0..=10 {
        world.kill(Actor(actor));
    }
    let finished = (*finished.lock().expect(LOCKED), clients);
    Ran { history: history.lock().expect(LOCKED).clone(), finished }
}

fn start_daemon(
    world: &World,
    size: ClusterSize,
    hosts: &[Host],
    weather: &Arc<Weather>,
    actor: Actor,
    random: &mut Random,
) -> Daemon {
    let skew_ms = random.below(20_000) as i64 - 10_000;
    let runtime = world.runtime(actor, skew_ms);
    let proposer = ProposerId(random.bits());
    let identity = Identity { cluster: "sim".into(), nodes: size.nodes(), daemon: proposer };
    // Cells wake nobody.
    let hints: HintSink = Arc::new(|_, _| ());
    let cuts: Vec<Arc<AtomicBool>> = hosts.iter().map(|_| Arc::default()).collect();
    let nodes = (0..).zip(hosts.iter().zip(&cuts)).map(|(index, (host, cut))| {
        let (index, weather, cut) = (NodeIndex(index), weather.clone(), cut.clone());
        SimNode::new(world, host, &identity, index, hints.clone(), weather, cut) as Arc<dyn Node>
    });
    let cluster = Arc::new(Cluster::new(size, nodes.collect(), proposer, runtime.clone()));
    let registers: Registers<CellKind> = Registers::new(cluster.clone(), Duration::from_secs(3));
    let membership = MembershipSettings { bootstrap: true, ttl_max: Duration::from_secs(10) };
    runtime.spawner.spawn(Membership::new(cluster, membership).run().boxed());
    Daemon { actor, cell: CellDaemon { registers, alive: Arc::new(AtomicBool::new(true)) }, cuts }
}

/// The faults, then the calm.
async fn rage(
    world: World,
    size: ClusterSize,
    hosts: Vec<Host>,
    weather: Arc<Weather>,
    daemons: Vec<Daemon>,
    calm: Arc<AtomicBool>,
    mut random: Random,
) {
    let end = world.now() + FAULTS;
    // Fewer than q nodes may lose their memory, and fewer than q clocks may jump.
    let fewer = size.quorum() - 1;
    let mut may_forget: Vec<usize> = (0..hosts.len()).collect();
    while may_forget.len() > fewer {
        may_forget.swap_remove(random.below(may_forget.len() as u64) as usize);
    }
    let first = random.below(hosts.len() as u64) as usize;
    let may_jump: Vec<usize> = (0..fewer).map(|n| (first + n) % hosts.len()).collect();
    weather.loss.store(random.below(10), Ordering::Relaxed);
    weather.late.store(random.below(15), Ordering::Relaxed);
    weather.late_ms.store(1 + random.below(6_000), Ordering::Relaxed);
    while world.now() < end {
        world.sleep(Duration::from_millis(random.below(1_500))).await;
        let daemon = &daemons[random.below(daemons.len() as u64) as usize];
        let node = random.below(hosts.len() as u64) as usize;
        match random.below(8) {
            0 => world.pause(daemon.actor, world.now() + Duration::from_millis(random.below(5_000))),
            1 => {
                let living = daemons.iter().filter(|d| d.cell.alive.load(Ordering::Relaxed)).count();
                if living > 1 && random.chance(20) {
                    daemon.cell.alive.store(false, Ordering::Relaxed);
                    world.kill(daemon.actor);
                }
            }
            2..=4 => {
                let (cut, mend) = (daemon.cuts[node].clone(), world.clone());
                let length = Duration::from_millis(random.below(4_000));
                cut.store(true, Ordering::Relaxed);
                let task = async move {
                    mend.sleep(length).await;
                    cut.store(false, Ordering::Relaxed);
                };
                world.spawn(NOBODY, task.boxed());
            }
            5 => {
                let node = may_jump[random.below(may_jump.len() as u64) as usize];
                let jump = random.below(200_000) as i64 - 100_000;
                hosts[node].skew_ms.store(jump, Ordering::Relaxed);
            }
            6 if random.chance(15) => {
                if let Some(node) = may_forget.pop() {
                    let after = if random.chance(50) { After::Kept } else { After::Wiped };
                    hosts[node].server.restart(after);
                }
            }
            _ => hosts[node].server.flush_scripts(),
        }
    }
    weather.loss.store(0, Ordering::Relaxed);
    weather.late.store(0, Ordering::Relaxed);
    for daemon in &daemons {
        daemon.cuts.iter().for_each(|cut| cut.store(false, Ordering::Relaxed));
    }
    hosts.iter().for_each(|host| host.skew_ms.store(0, Ordering::Relaxed));
    calm.store(true, Ordering::Relaxed);
}

fn judge_run(seed: u64, ran: &Ran) -> Judged {
    let replay =
        format!("replay: CELLS_SEED={seed} cargo test --features sim --test sim_cells -- --nocapture");
    let judged = judge(&ran.history, STEPS_MAX).unwrap_or_else(|words| panic!("{words}\n{replay}"));
    let (served, clients) = ran.finished;
    assert_eq!(served, clients, "clients that were served after the faults were over; {replay}");
    judged
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 1..=2 {
        let tables = || run(seed).history.keys().map(|(_, calls)| calls.to_string()).collect::<Vec<_>>();
        assert_eq!(tables(), tables(), "seed {seed}");
    }
}

#[test]
fn every_cells_calls_can_be_put_in_one_order() {
    if let Ok(seed) = std::env::var("CELLS_SEED") {
        let seed = seed.parse().expect("CELLS_SEED is a number");
        let ran = run(seed);
        for (key, calls) in ran.history.keys() {
            println!("{key}\n{calls}");
        }
        println!("{:?}", judge_run(seed, &ran));
        return;
    }
    let (from, seeds) = (number("CELLS_FROM", 1), number("CELLS_SEEDS", 25));
    let mut all = Judged::default();
    for seed in from..from + seeds {
        let judged = judge_run(seed, &run(seed));
        all.answered += judged.answered;
        all.not_applied += judged.not_applied;
        all.unknown += judged.unknown;
        all.steps += judged.steps;
        all.undecided.extend(judged.undecided.iter().map(|key| format!("seed {seed} {key}")));
    }
    println!("{seeds} seeds, {all:?}");
    assert!(all.answered as u64 > 100 * seeds, "clients were hardly ever answered: {all:?}");
    assert!(all.unknown as u64 > seeds, "hardly any outcome was unknown: {all:?}");
    // What can't be decided proves nothing, so it must stay rare.
    assert!(all.undecided.len() as u64 <= seeds / 20, "{all:?}");
}

/// The cell, as told to a checker that we did not write. That one wants one outcome of each call; so what it takes for
/// a state is all the states that there can be.
struct ForOthers;

#[derive(Clone, Debug)]
struct Shown {
    call: CellCall,
    open: bool,
}

impl Specification for ForOthers {
    type State = Vec<CellState>;
    type Operation = Shown;

    fn init() -> Vec<CellState> {
        vec![CellModel.initial()]
    }

    fn apply(shown: &Shown, states: &Vec<CellState>) -> (bool, Vec<CellState>) {
        let mut after: Vec<CellState> = Vec::new();
        for state in states.iter().flat_map(|state| CellModel.step(state, &shown.call, shown.open)) {
            if !after.contains(&state) {
                after.push(state);
            }
        }
        (!after.is_empty(), after)
    }
}

/// That checker has no open calls either. A change can be done in every state, so that it never was and that it was
/// the last of all are the same: an open one gets its end there, with any answer.
fn has_order_by_others(calls: &[Timed<'_, CellCall>]) -> bool {
    let mut events = Vec::new();
    for (number, timed) in calls.iter().enumerate() {
        let shown = Shown { call: timed.call.clone(), open: timed.ended.is_none() };
        events.push((timed.began, number, Action::Call(shown.clone())));
        events.push((timed.ended.unwrap_or(u64::MAX), number, Action::Response(shown)));
    }
    events.sort_by_key(|(place, number, _)| (*place, *number));
    let actions = events.into_iter().map(|(_, number, action)| (number, action)).collect();
    WGLChecker::<ForOthers>::is_linearizable(Actions::from_actions(actions))
}

#[test]
fn a_checker_of_others_says_the_same_of_histories_good_and_spoilt() {
    let (mut compared, mut refused) = (0, 0);
    let mut random = Random::new(1);
    for seed in 1..=20 {
        let history = run(seed).history;
        for (_, calls) in history.keys() {
            // It is slower, so only beginnings are shown to it: what ends later is still open there.
            let until = calls.0.get(OTHERS_CALLS).map_or(u64::MAX, |call| call.began);
            let begins = |call: &&CellCall| call.began < until;
            let mut calls = Calls(calls.0.iter().filter(begins).cloned().collect::<Vec<_>>());
            for spoil in [false, true] {
                let at = random.below(calls.0.len() as u64) as usize;
                if spoil && let Fate::Answered(CellTold::Change(answer)) = &mut calls.0[at].fate {
                    answer.old = answer.old.map(|number| number + 1);
                }
                let (_, mut timed) = timed(&calls);
                timed.iter_mut().for_each(|timed| timed.ended = timed.ended.filter(|end| *end < until));
                if timed.iter().filter(|timed| timed.ended.is_none()).count() > OTHERS_OPEN {
                    continue;
                }
                let ours = match check(&CellModel, &timed, STEPS_MAX) {
                    Verdict::Linearizable { .. } => true,
                    Verdict::Violated { .. } => false,
                    Verdict::Undecided { .. } => panic!("seed {seed}: undecided"),
                };
                assert_eq!(ours, has_order_by_others(&timed), "seed {seed}\n{calls}");
                compared += 1;
                refused += usize::from(!ours);
            }
        }
    }
    println!("{compared} histories, {refused} of them without an order");
    assert!(compared > 20 && refused > 5, "{compared} histories, {refused} of them without an order");
}
