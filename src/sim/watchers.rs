//! Watchers of keys: they watch one, or all of them, read slowly, hang up and come again, at any daemon.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{self, Either};

use super::daemon::Daemons;
use super::invariants::Event;
use super::invariants::watches::Told;
use super::judge::Judge;
use super::key::KeyAsked;
use super::keys::{self, PREFIX};
use super::random::Random;
use super::world::World;
use crate::ids::Key;
use crate::kv::watch::Scope;
use crate::kv::{KvError, WatchEvent, Watched};
use crate::token::Token;

const LOCKED: &str = "no holder of this lock panics";
/// The longest that a slow client takes for an event, in milliseconds.
const SLOW_MS: u64 = 1_500;

/// One client that watches.
pub struct Watcher {
    world: World,
    judge: Arc<Judge>,
    client: u32,
    random: Random,
    keys: u64,
    /// What it was told last of each key.
    last: BTreeMap<Key, Token>,
}

impl Watcher {
    /// A watcher with a number of its own, of so many keys.
    pub fn new(world: &World, client: u32, keys: u64, judge: Arc<Judge>) -> Self {
        Self { world: world.clone(), judge, client, random: world.fork(), keys, last: BTreeMap::new() }
    }

    /// Watches until `over`; when it is `calm` without hanging up.
    pub async fn live(mut self, daemons: Arc<Daemons>, calm: impl Fn() -> bool, over: Arc<AtomicBool>) {
        while !over.load(Ordering::Relaxed) {
            self.watch(&daemons, &calm, &over).await;
            self.judge.watches(|watches| watches.close(self.client));
            self.world.sleep(Duration::from_millis(self.random.below(1_000))).await;
        }
    }

    async fn watch(&mut self, daemons: &Daemons, calm: &impl Fn() -> bool, over: &AtomicBool) {
        let Some(daemon) = daemons.pick(&mut self.random) else { return };
        let key = keys::name(self.random.below(self.keys));
        let (scope, after) = if self.random.chance(50) {
            let after = self.last.get(&key).copied().filter(|_| self.random.chance(70));
            (Scope::Key(key), after)
        } else {
            (Scope::Prefix(PREFIX.to_owned()), None)
        };
        let of_key = matches!(scope, Scope::Key(_));
        self.judge.watches(|watches| watches.open(self.client, of_key));
        let slow = if self.random.chance(40) { self.random.below(SLOW_MS) } else { 0 };
        let (world, keys) = (self.world.clone(), daemon.keys.clone());
        let (mut events, _hangup) = daemon.stream(move || {
            // The next event is asked for when the client is done with this one.
            let read = move |event| {
                let pause = world.sleep(Duration::from_millis(slow));
                async move {
                    pause.await;
                    event
                }
            };
            keys.watch(Watched { scope, after }).then(read).boxed()
        });
        let mut hangs_up = self.world.now() + Duration::from_millis(self.random.below(12_000));
        loop {
            let timer = self.world.sleep_until(hangs_up);
            match future::select(events.next(), timer).await {
                Either::Left((Some(Ok(event)), _)) => self.note(event, after),
                // The daemon died, or can't read.
                Either::Left((Some(Err(error)), _)) => return self.judge_end(&error),
                Either::Left((None, _)) => return,
                Either::Right(_) if over.load(Ordering::Relaxed) || !calm() => return,
                Either::Right(_) => hangs_up = self.world.now() + Duration::from_secs(1),
            }
        }
    }

    fn judge_end(&self, error: &KvError) {
        if !matches!(error, KvError::Register(_)) {
            self.judge.violated(format!("the watch of watcher {} ended: {error}", self.client));
        }
    }

    fn note(&mut self, event: WatchEvent, after: Option<Token>) {
        let (key, version, missed, data) = match event {
            WatchEvent::Synced => {
                let synced = self.judge.watches(|watches| watches.synced(self.client));
                return self.judge.expect(synced);
            }
            WatchEvent::Value { key, entry, missed } => (key, entry.version, missed, Some(entry.data)),
            WatchEvent::Removed { key, version, missed } => (key, version, missed, None),
        };
        let present = data.is_some();
        if present {
            if after.is_some_and(|after| version <= after) {
                let words = format!("watcher {} is told of {key} {version}, which it had", self.client);
                self.judge.violated(words);
            }
            self.last.insert(key.clone(), version);
            self.judge.observe(&Event::Versioned { key: key.clone(), version, data, made: false });
        }
        let asked =
            self.judge.keys.lock().expect(LOCKED).count(key.as_str(), |call| call.asked != KeyAsked::Get);
        let told = Told { version, present, missed };
        let judged = self.judge.watches(|watches| watches.told(self.client, &key, told, asked as u64));
        self.judge.expect(judged);
    }
}
