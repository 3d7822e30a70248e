//! [`Host`]: a server with its machine, and what the faults do to it: stops, freezes, restarts, wrong clocks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::random::Random;
use super::world::World;
use crate::ids::MemoryId;
use crate::node::embedded::{After, EmbeddedServer, Entry, Keyspace};
use crate::node::handshake;
use crate::node::keyspace::{NODE_KEY, RECORD_PREFIX};
use crate::runtime::Moment;

/// Snapshots that a host keeps; the oldest make room, but the first stays.
const SNAPSHOTS_MAX: usize = 16;
const LOCKED: &str = "no holder of this lock panics";

/// What a server finds when it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// All of it, as with an append-only file that is written through.
    Everything,
    /// All but the last second or so, as with `appendfsync everysec`.
    AllButTheLatest,
    /// An old snapshot.
    OldSnapshot,
    /// Nothing.
    Nothing,
}

impl Remains {
    /// One of them.
    pub fn draw(random: &mut Random) -> Self {
        [Self::Everything, Self::AllButTheLatest, Self::OldSnapshot, Self::Nothing][random.index(4)]
    }
}

/// What a server was told of the nodes (`report.lua`).
const SEEN_KEY: &[u8] = b"majorityd:seen";

/// The first field of each row: since when no daemon has reached a node.
fn times_in(mut seen: &[u8]) -> Option<Vec<u64>> {
    let rows = rmp::decode::read_array_len(&mut seen).ok()?;
    let row = |_| {
        rmp::decode::read_array_len(&mut seen).ok()?;
        let since = rmp::decode::read_int(&mut seen).ok()?;
        let memory = rmp::decode::read_str_len(&mut seen).ok()?;
        seen = seen.get(memory as usize..)?;
        let _writes: u64 = rmp::decode::read_int(&mut seen).ok()?;
        Some(since)
    };
    (0..rows).map(row).collect()
}

/// A server and its machine.
pub struct Host {
    /// The server.
    pub server: Arc<EmbeddedServer>,
    world: World,
    skew_us: Arc<AtomicI64>,
    /// No call is served before this.
    frozen_until: Mutex<Moment>,
    /// Each call takes up to this much longer, in milliseconds.
    pub slow_ms: AtomicU64,
    snapshots: Mutex<VecDeque<(Moment, Keyspace)>>,
}

impl Host {
    /// A server in a world, whose clock runs so much too fast.
    pub fn new(world: &World, name: u64, fast_ppm: i64) -> Arc<Self> {
        let skew_us = Arc::new(AtomicI64::new(0));
        let (clock_world, skew) = (world.clone(), skew_us.clone());
        let started = world.now();
        let clock = move || {
            let elapsed = clock_world.now().since(started).as_micros() as i64;
            let drift = elapsed * fast_ppm / 1_000_000;
            clock_world.unix_us().saturating_add_signed(drift + skew.load(Ordering::Relaxed))
        };
        Arc::new(Self {
            server: EmbeddedServer::new(name, Arc::new(clock)),
            world: world.clone(),
            skew_us,
            frozen_until: Mutex::new(Moment::ZERO),
            slow_ms: AtomicU64::new(0),
            snapshots: Mutex::default(),
        })
    }

    /// Its clock is off by so much from now on.
    pub fn set_clock(&self, off_ms: i64) {
        self.skew_us.store(off_ms * 1_000, Ordering::Relaxed);
    }

    /// The server stands still until then; its clock goes on.
    pub fn freeze(&self, until: Moment) {
        let mut frozen = self.frozen_until.lock().expect(LOCKED);
        *frozen = (*frozen).max(until);
    }

    /// Whether it stands still.
    pub fn is_frozen(&self) -> bool {
        *self.frozen_until.lock().expect(LOCKED) > self.world.now()
    }

    /// Completes when the server gets to a call that has just arrived.
    pub async fn ready(&self) {
        let slow = self.slow_ms.load(Ordering::Relaxed);
        if slow > 0 {
            let late = self.world.draw(|random| random.below(slow));
            self.world.sleep(Duration::from_millis(late)).await;
        }
        loop {
            let until = *self.frozen_until.lock().expect(LOCKED);
            if until <= self.world.now() {
                return;
            }
            self.world.sleep_until(until).await;
        }
    }

    /// Notes what the server holds now, for restarts that bring it back.
    pub fn take_snapshot(&self) {
        let mut snapshots = self.snapshots.lock().expect(LOCKED);
        if snapshots.len() >= SNAPSHOTS_MAX {
            snapshots.remove(1);
        }
        snapshots.push_back((self.world.now(), self.server.keyspace()));
    }

    /// The registers of a kind that the server holds.
    pub fn records(&self, kind: char) -> Vec<String> {
        let keyspace = self.server.keyspace();
        let prefix = format!("{RECORD_PREFIX}{kind}:");
        let names = keyspace.iter().filter_map(|(key, _)| std::str::from_utf8(key).ok());
        names.filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// The memory in the node record, whoever may go by it.
    pub fn memory(&self) -> Option<MemoryId> {
        let keyspace = self.server.keyspace();
        let Some(Entry::Bytes(record)) = keyspace.get(NODE_KEY.as_bytes()) else { return None };
        handshake::memory_of(record, &self.server.run_id())
    }

    /// For how long no daemon has said that it reached each node, by the server's clock.
    pub fn unreached(&self) -> Vec<Duration> {
        let keyspace = self.server.keyspace();
        let Some(Entry::Bytes(seen)) = keyspace.get(SEEN_KEY) else { return Vec::new() };
        let now_us = self.server.clock_us();
        let since = times_in(seen).unwrap_or_default();
        since.into_iter().map(|since| Duration::from_micros(now_us.saturating_sub(since))).collect()
    }

    /// Starts the server anew with what remains.
    pub fn restart(&self, remains: Remains, random: &mut Random) {
        let snapshots = self.snapshots.lock().expect(LOCKED);
        let kept = match remains {
            Remains::Everything => None,
            Remains::AllButTheLatest => snapshots.back(),
            Remains::OldSnapshot => snapshots.get(random.index(snapshots.len())),
            Remains::Nothing => return self.server.restart(After::Wiped),
        };
        // Without a snapshot it kept what it had.
        self.server.restart(kept.map_or(After::Kept, |(_, keyspace)| After::Replaced(keyspace.clone())));
    }
}
