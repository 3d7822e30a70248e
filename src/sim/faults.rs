//! The faults of a run, one after another, and the healing at the end.
//!
//! Bounded by what is promised (`docs/protocol.md`): at any time fewer than q nodes have lost their memory, or have been out of
//! reach for so long that they may be put out, and are not members again, unless all restart at once and keep what they had;
//! fewer than q clocks jump.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;

use super::daemon::{Daemons, OUT_AFTER, SimDaemon};
use super::host::{Host, Remains};
use super::judge::Judge;
use super::network::Weather;
use super::options::Options;
use super::random::Random;
use super::world::{NOBODY, Stalls, World};
use crate::ids::MemoryId;
use crate::node::embedded::Keyspace;

/// Longest pause of a daemon and longest freeze of a server, in milliseconds: longer than any lease of a run.
const PAUSE_MS_MAX: u64 = 12_000;
/// Longest cut, in milliseconds.
const CUT_MS_MAX: u64 = 8_000;
/// How often servers are noted for restarts that bring old data back.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked who has been out of reach.
const UNREACHED_LOOK: Duration = Duration::from_millis(250);
const LOCKED: &str = "no holder of this lock panics";

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A daemon stands still and goes on; so does what its clients asked of it.
    Pause,
    /// The machine of several daemons stands still: a virtual machine is suspended or moved.
    Suspend,
    /// A daemon dies; another may be started later.
    Kill,
    /// Nothing passes between a daemon and a server.
    Cut,
    /// Nothing passes in one direction.
    OneWay,
    /// A daemon reaches fewer than q servers.
    Minority,
    /// A server stands still while its clock goes on.
    Freeze,
    /// A server gets slow.
    Slow,
    /// A server's clock jumps.
    Jump,
    /// A server stops, and starts with all, most, some or none of its data.
    Crash,
    /// All servers stop at once, and start with what they had.
    PowerCut,
    /// An operator sends FLUSHALL.
    FlushAll,
    /// An operator sends SCRIPT FLUSH.
    FlushScripts,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 13] = [
        Self::Pause,
        Self::Suspend,
        Self::Kill,
        Self::Cut,
        Self::OneWay,
        Self::Minority,
        Self::Freeze,
        Self::Slow,
        Self::Jump,
        Self::Crash,
        Self::PowerCut,
        Self::FlushAll,
        Self::FlushScripts,
    ];
}

/// Whoever makes trouble.
pub struct Rage {
    /// The world.
    pub world: World,
    /// What the seed decided.
    pub options: Options,
    /// The servers.
    pub hosts: Vec<Arc<Host>>,
    /// The network.
    pub weather: Arc<Weather>,
    /// The daemons.
    pub daemons: Arc<Daemons>,
    /// The trace.
    pub judge: Arc<Judge>,
    /// The accidents.
    pub random: Random,
    /// Nodes that may be put out, with the memory that they had then.
    pub unreached: Arc<Mutex<BTreeMap<usize, Option<MemoryId>>>>,
}

impl Rage {
    /// Rages, then heals.
    pub async fn run(mut self) {
        let fewer = self.daemons.size().quorum() - 1;
        let may_jump = self.random.pick(self.hosts.len(), fewer);
        let end = self.world.now() + self.options.faults_for;
        self.keep_snapshots();
        self.note_unreached();
        self.bad_weather();
        while self.world.now() < end && !self.options.faults.is_empty() {
            let pause = self.random.below(self.options.fault_every.as_millis() as u64);
            self.world.sleep(Duration::from_millis(pause)).await;
            let fault = self.options.faults[self.random.index(self.options.faults.len())];
            let nodes = match fault {
                Fault::Jump => &may_jump,
                Fault::Crash | Fault::FlushAll => &self.may_forget(),
                _ => &(0..self.hosts.len()).collect::<Vec<_>>(),
            };
            if !nodes.is_empty() {
                let node = nodes[self.random.index(nodes.len())];
                self.strike(fault, node);
            }
        }
        self.world.sleep_until(end).await;
        self.heal();
    }

    /// Nodes that may lose their memory now.
    fn may_forget(&self) -> Vec<usize> {
        let all = 0..self.hosts.len();
        let on_its_way_out = |node| {
            let unreached = self.unreached.lock().expect(LOCKED);
            unreached.get(&node).is_some_and(|memory| *memory == self.hosts[node].memory())
        };
        let lost: Vec<usize> =
            all.clone().filter(|node| !self.daemons.is_whole(*node) || on_its_way_out(*node)).collect();
        let quorum = self.daemons.size().quorum();
        all.filter(|node| lost.len() + usize::from(!lost.contains(node)) < quorum).collect()
    }

    /// Notes who has been out of reach for so long that it may be put out. A list that does so may be under way for long, and so
    /// the node counts as without its memory until it has another, whatever is reached meanwhile.
    fn note_unreached(&self) {
        let (world, hosts, unreached) = (self.world.clone(), self.hosts.clone(), self.unreached.clone());
        let quorum = self.daemons.size().quorum();
        let looks = self.options.faults_for.as_millis() / UNREACHED_LOOK.as_millis();
        let task = async move {
            for _ in 0..looks {
                let told: Vec<Vec<Duration>> = hosts.iter().map(|host| host.unreached()).collect();
                for (node, host) in hosts.iter().enumerate() {
                    let long =
                        told.iter().filter(|told| told.get(node).is_some_and(|length| *length >= OUT_AFTER));
                    if long.count() >= quorum {
                        unreached.lock().expect(LOCKED).insert(node, host.memory());
                    }
                }
                world.sleep(UNREACHED_LOOK).await;
            }
        };
        self.world.spawn(NOBODY, task.boxed());
    }

    fn keep_snapshots(&self) {
        let (world, hosts) = (self.world.clone(), self.hosts.clone());
        let rounds = self.options.faults_for.as_secs() / SNAPSHOT_EVERY.as_secs();
        let task = async move {
            for _ in 0..rounds {
                hosts.iter().for_each(|host| host.take_snapshot());
                world.sleep(SNAPSHOT_EVERY).await;
            }
        };
        self.world.spawn(NOBODY, task.boxed());
    }

    fn bad_weather(&self) {
        let (weather, options) = (&self.weather, &self.options);
        let store = |trouble: &std::sync::atomic::AtomicU64, value| {
            trouble.store(value, std::sync::atomic::Ordering::Relaxed);
        };
        store(&weather.loss, options.loss);
        store(&weather.late, options.late);
        store(&weather.late_bits, options.late_bits);
        store(&weather.hints_lost, options.hints_lost);
        self.world.set_stalls(options.stalls);
    }

    fn heal(&mut self) {
        self.weather.clear();
        self.world.set_stalls(Stalls::default());
        self.daemons.restart_dead(&mut self.random);
        for daemon in self.daemons.living() {
            daemon.links.iter().for_each(|link| link.set(false, false));
        }
        for host in &self.hosts {
            host.slow_ms.store(0, std::sync::atomic::Ordering::Relaxed);
            host.set_clock(0);
        }
        self.judge.say(format_args!("calm"));
    }

    fn strike(&mut self, fault: Fault, node: usize) {
        match fault {
            Fault::Pause | Fault::Suspend => self.pause(fault),
            Fault::Kill => self.kill(),
            Fault::Cut | Fault::OneWay => self.cut(fault, node),
            Fault::Minority => self.minority(),
            Fault::Freeze => {
                let length = self.length(PAUSE_MS_MAX);
                self.say(format_args!("node {node} stands still for {length:?}"));
                self.hosts[node].freeze(self.world.now() + length);
            }
            Fault::Slow => {
                let slow = self.random.magnitude(11);
                self.say(format_args!("node {node} takes up to {slow} ms longer for each call"));
                self.hosts[node].slow_ms.store(slow, std::sync::atomic::Ordering::Relaxed);
            }
            Fault::Jump => {
                // From milliseconds to years.
                let length = self.random.magnitude(38) as i64;
                let jump = if self.random.chance(50) { length } else { -length };
                self.say(format_args!("the clock of node {node} is off by {jump} ms"));
                self.hosts[node].set_clock(jump);
            }
            Fault::Crash => self.crash(node),
            Fault::PowerCut => {
                let down = self.length(CUT_MS_MAX);
                self.say(format_args!("all nodes stop, and start with what they had after up to {down:?}"));
                for node in 0..self.hosts.len() {
                    let down = Duration::from_millis(self.random.below(down.as_millis().max(1) as u64));
                    self.stop_for(node, down, Remains::Everything);
                }
            }
            Fault::FlushAll => {
                self.say(format_args!("node {node} is sent FLUSHALL"));
                self.hosts[node].server.edit(|keyspace| *keyspace = Keyspace::default());
            }
            Fault::FlushScripts => {
                self.say(format_args!("node {node} is sent SCRIPT FLUSH"));
                self.hosts[node].server.flush_scripts();
            }
        }
    }

    fn say(&self, words: std::fmt::Arguments<'_>) {
        self.judge.say(format_args!("FAULT     {words}"));
    }

    fn length(&mut self, most_ms: u64) -> Duration {
        Duration::from_millis(self.random.below(most_ms))
    }

    fn a_daemon(&mut self) -> Option<Arc<SimDaemon>> {
        self.daemons.pick(&mut self.random)
    }

    fn pause(&mut self, fault: Fault) {
        let length = self.length(PAUSE_MS_MAX);
        let all = self.daemons.living();
        let one = self.a_daemon();
        let paused = if fault == Fault::Suspend { all } else { one.into_iter().collect() };
        for daemon in paused {
            self.say(format_args!("daemon {} stands still for {length:?}", daemon.actor.0));
            self.world.pause(daemon.actor, self.world.now() + length);
        }
    }

    fn kill(&mut self) {
        let Some(daemon) = self.a_daemon() else { return };
        self.say(format_args!("daemon {} dies", daemon.actor.0));
        self.daemons.kill(&daemon);
        let (world, daemons, mut random) = (self.world.clone(), self.daemons.clone(), self.random.clone());
        let later = self.length(PAUSE_MS_MAX);
        let task = async move {
            world.sleep(later).await;
            daemons.restart_dead(&mut random);
        };
        self.world.spawn(NOBODY, task.boxed());
    }

    fn cut(&mut self, fault: Fault, node: usize) {
        let Some(daemon) = self.a_daemon() else { return };
        let length = self.length(CUT_MS_MAX);
        let (there, back) = match fault {
            Fault::OneWay if self.random.chance(50) => (true, false),
            Fault::OneWay => (false, true),
            _ => (true, true),
        };
        self.say(format_args!(
            "daemon {} and node {node} are cut off for {length:?}, there: {there}, back: {back}",
            daemon.actor.0
        ));
        self.cut_for(&daemon, &[node], (there, back), length);
    }

    fn minority(&mut self) {
        let Some(daemon) = self.a_daemon() else { return };
        let length = self.length(CUT_MS_MAX);
        let cut = self.random.pick(self.hosts.len(), self.daemons.size().quorum());
        self.say(format_args!("daemon {} is cut off from nodes {cut:?} for {length:?}", daemon.actor.0));
        self.cut_for(&daemon, &cut, (true, true), length);
    }

    fn cut_for(&self, daemon: &SimDaemon, nodes: &[usize], (there, back): (bool, bool), length: Duration) {
        let links: Vec<_> = nodes.iter().map(|node| daemon.links[*node].clone()).collect();
        links.iter().for_each(|link| link.set(there, back));
        let world = self.world.clone();
        let mend = async move {
            world.sleep(length).await;
            links.iter().for_each(|link| link.set(false, false));
        };
        self.world.spawn(NOBODY, mend.boxed());
    }

    fn crash(&mut self, node: usize) {
        let remains = Remains::draw(&mut self.random);
        let down = if self.random.chance(50) { self.length(CUT_MS_MAX) } else { Duration::ZERO };
        self.say(format_args!("node {node} stops, and after {down:?} starts with: {remains:?}"));
        self.stop_for(node, down, remains);
    }

    fn stop_for(&mut self, node: usize, down: Duration, remains: Remains) {
        let host = self.hosts[node].clone();
        if down.is_zero() {
            return host.restart(remains, &mut self.random);
        }
        host.server.stop();
        let (world, mut random) = (self.world.clone(), self.random.clone());
        let start = async move {
            world.sleep(down).await;
            if !host.server.is_up() {
                host.restart(remains, &mut random);
            }
        };
        self.world.spawn(NOBODY, start.boxed());
    }
}
