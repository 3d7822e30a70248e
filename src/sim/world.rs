//! [`World`]: an executor with virtual time. The same seed gives the same run.
//!
//! Tasks belong to an actor (a daemon, or the world itself). Of the tasks that are ready the seed picks the next, so
//! that many interleavings are tried. When none is ready, time jumps to the next timer. An actor can be paused, which
//! keeps its tasks from being polled while time goes on, or killed, which drops them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::task::{ArcWake, waker};

use crate::runtime::{Clock, Entropy, Moment, Runtime, Spawn};

/// Wall-clock time at the world's start, in milliseconds of Unix time: some moment in 2026.
const START_UNIX_MS: u64 = 1_790_000_000_000;

/// Who owns a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor(pub u32);

/// Tasks of nobody in particular: the network, the faults, the clients.
pub const NOBODY: Actor = Actor(0);

/// The world. Cheap to clone.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
}

struct State {
    now: Moment,
    random: Random,
    timers: BTreeMap<(Moment, u64), Waker>,
    timers_made: u64,
    tasks: BTreeMap<u64, Task>,
    tasks_made: u64,
    ready: BTreeSet<u64>,
    paused: BTreeMap<Actor, Moment>,
}

struct Task {
    actor: Actor,
    /// Taken out while it is polled.
    future: Option<BoxFuture<'static, ()>>,
}

/// SplitMix64 (Steele, Lea and Flood 2014): small, and good enough to draw faults from.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly from `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end.max(1)
    }

    /// `true` in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Wake {
    state: Arc<Mutex<State>>,
    task: u64,
}

impl ArcWake for Wake {
    fn wake_by_ref(this: &Arc<Self>) {
        let mut state = lock(&this.state);
        if state.tasks.contains_key(&this.task) {
            state.ready.insert(this.task);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder of this lock panics")
}

impl World {
    /// A world for a seed.
    pub fn new(seed: u64) -> Self {
        let state = State {
            now: Moment::from_start(Duration::from_secs(1)),
            random: Random::new(seed),
            timers: BTreeMap::new(),
            timers_made: 0,
            tasks: BTreeMap::new(),
            tasks_made: 0,
            ready: BTreeSet::new(),
            paused: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Now.
    pub fn now(&self) -> Moment {
        lock(&self.state).now
    }

    /// Wall-clock time, in milliseconds of Unix time.
    pub fn unix_ms(&self) -> u64 {
        let elapsed = self.now().since(Moment::ZERO).as_millis();
        START_UNIX_MS + u64::try_from(elapsed).expect("a run is short")
    }

    /// Draws from the world's generator.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut lock(&self.state).random)
    }

    /// A generator of its own, for somebody whose draws shall not depend on those of others.
    pub fn fork(&self) -> Random {
        Random::new(self.draw(Random::bits))
    }

    /// Starts a task.
    pub fn spawn(&self, actor: Actor, future: BoxFuture<'static, ()>) {
        let mut state = lock(&self.state);
        state.tasks_made += 1;
        let id = state.tasks_made;
        state.tasks.insert(id, Task { actor, future: Some(future) });
        state.ready.insert(id);
    }

    /// Completes at `moment`.
    pub fn sleep_until(&self, moment: Moment) -> Sleep {
        Sleep { world: self.clone(), moment, timer: None }
    }

    /// Completes after `length`.
    pub fn sleep(&self, length: Duration) -> Sleep {
        self.sleep_until(self.now() + length)
    }

    /// The actor's tasks are not polled until `until`.
    pub fn pause(&self, actor: Actor, until: Moment) {
        let mut state = lock(&self.state);
        let paused = state.paused.entry(actor).or_insert(until);
        *paused = (*paused).max(until);
    }

    /// Drops the actor's tasks.
    pub fn kill(&self, actor: Actor) {
        let dead: Vec<Task> = {
            let mut state = lock(&self.state);
            let ids: Vec<u64> =
                state.tasks.iter().filter(|(_, t)| t.actor == actor).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| state.tasks.remove(id)).collect()
        };
        // Dropped outside the lock: what they hold may wake others.
        drop(dead);
    }

    /// A runtime for an actor, whose wall clock is off by `skew_ms`.
    pub fn runtime(&self, actor: Actor, skew_ms: i64) -> Runtime {
        Runtime {
            clock: Arc::new(SimClock { world: self.clone(), skew_ms }),
            entropy: Arc::new(SimEntropy(Mutex::new(self.fork()))),
            spawner: Arc::new(SimSpawn { world: self.clone(), actor }),
        }
    }

    /// Runs until nothing is left to do or `until` has come. `false` if the world came to rest before.
    pub fn run_until(&self, until: Moment) -> bool {
        loop {
            let Some((id, mut future)) = self.next_ready() else {
                let mut state = lock(&self.state);
                let timer = state.timers.keys().next().map(|(at, _)| *at);
                // A paused actor's ready tasks wait for the end of its pause.
                let pause = state.paused.values().min().copied();
                let Some(next) = [timer, pause].into_iter().flatten().min() else { return false };
                if next > until {
                    state.now = until;
                    return true;
                }
                state.now = state.now.max(next);
                let now = state.now;
                state.paused.retain(|_, end| *end > now);
                let due = state.timers.split_off(&(now + Duration::from_nanos(1), 0));
                let fired = std::mem::replace(&mut state.timers, due);
                drop(state);
                fired.into_values().for_each(Waker::wake);
                continue;
            };
            let wake = waker(Arc::new(Wake { state: self.state.clone(), task: id }));
            let polled = future.as_mut().poll(&mut Context::from_waker(&wake));
            let mut state = lock(&self.state);
            match (polled, state.tasks.get_mut(&id)) {
                (Poll::Pending, Some(task)) => task.future = Some(future),
                (Poll::Pending, None) => {
                    drop(state);
                    drop(future);
                }
                (Poll::Ready(()), _) => {
                    state.tasks.remove(&id);
                    state.ready.remove(&id);
                }
            }
        }
    }

    /// A ready task whose actor is not paused, picked by the seed.
    fn next_ready(&self) -> Option<(u64, BoxFuture<'static, ()>)> {
        let mut state = lock(&self.state);
        let runnable = |state: &State, id: &u64| {
            state.tasks.get(id).is_some_and(|task| !state.paused.contains_key(&task.actor))
        };
        let candidates: Vec<u64> =
            state.ready.iter().filter(|id| runnable(&state, id)).take(8).copied().collect();
        if candidates.is_empty() {
            return None;
        }
        let pick = state.random.below(candidates.len() as u64) as usize;
        let id = candidates[pick];
        state.ready.remove(&id);
        let future = state.tasks.get_mut(&id)?.future.take();
        future.map(|future| (id, future))
    }
}

/// A wait for a moment of virtual time.
pub struct Sleep {
    world: World,
    moment: Moment,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let world = self.world.clone();
        let mut state = lock(&world.state);
        if state.now >= self.moment {
            return Poll::Ready(());
        }
        let number = *self.timer.get_or_insert_with(|| {
            state.timers_made += 1;
            state.timers_made
        });
        let moment = self.moment;
        state.timers.insert((moment, number), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.timer {
            let timer = lock(&self.world.state).timers.remove(&(self.moment, number));
            drop(timer);
        }
    }
}

struct SimClock {
    world: World,
    skew_ms: i64,
}

impl Clock for SimClock {
    fn now(&self) -> Moment {
        self.world.now()
    }

    fn wall_unix_ms(&self) -> u64 {
        self.world.unix_ms().saturating_add_signed(self.skew_ms)
    }

    fn sleep_until(&self, moment: Moment) -> BoxFuture<'static, ()> {
        Box::pin(self.world.sleep_until(moment))
    }
}

struct SimEntropy(Mutex<Random>);

impl Entropy for SimEntropy {
    fn next_u64(&self) -> u64 {
        self.0.lock().expect("no holder of this lock panics").bits()
    }
}

struct SimSpawn {
    world: World,
    actor: Actor,
}

impl Spawn for SimSpawn {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.world.spawn(self.actor, task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_jumps_to_the_next_timer_and_pauses_hold_tasks_back() {
        let world = World::new(1);
        let seen = Arc::new(Mutex::new(Vec::new()));
        for (actor, seconds) in [(1, 3), (2, 1), (3, 2)] {
            let (inner, seen) = (world.clone(), seen.clone());
            let task = async move {
                inner.sleep(Duration::from_secs(seconds)).await;
                seen.lock().unwrap().push((actor, inner.now().since(Moment::ZERO).as_secs()));
            };
            world.spawn(Actor(actor), Box::pin(task));
        }
        // Paused before it is polled at all, it begins its second of sleep when the pause ends.
        world.pause(Actor(2), world.now() + Duration::from_secs(5));
        world.run_until(world.now() + Duration::from_secs(100));
        assert_eq!(*seen.lock().unwrap(), [(3, 3), (1, 4), (2, 7)]);
    }

    #[test]
    fn a_killed_actor_does_nothing_more() {
        let world = World::new(1);
        let seen = Arc::new(Mutex::new(0));
        let (inner, counter) = (world.clone(), seen.clone());
        let task = async move {
            loop {
                inner.sleep(Duration::from_secs(1)).await;
                *counter.lock().unwrap() += 1;
            }
        };
        world.spawn(Actor(1), Box::pin(task));
        world.run_until(world.now() + Duration::from_millis(2_500));
        world.kill(Actor(1));
        world.run_until(world.now() + Duration::from_secs(10));
        assert_eq!(*seen.lock().unwrap(), 2);
    }
}
