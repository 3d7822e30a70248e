//! [`World`]: an executor with virtual time. The same seed gives the same run.
//!
//! Tasks belong to an actor (a daemon, or the world itself). Of the tasks that are ready the seed picks the next, so
//! that many interleavings are tried. When none is ready, time jumps to the next timer. An actor can be paused, which
//! keeps its tasks from being polled while time goes on, or killed, which drops them. With [`World::set_stalls`] the seed
//! also pauses daemons by itself, before any poll: at every await there is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::task::{ArcWake, waker};

use super::random::Random;
use crate::runtime::{Clock, Entropy, Moment, Runtime, Spawn};

/// Wall-clock time at the world's start, in milliseconds of Unix time: some moment in 2026.
const START_UNIX_MS: u64 = 1_790_000_000_000;

/// Who owns a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor(pub u32);

/// Tasks of nobody in particular: the network, the faults, the clients. Never stalled by the seed.
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
    /// By number; never reused. Taken out when they end.
    tasks: Vec<Option<Task>>,
    /// Tasks to poll, in no order: the seed picks.
    ready: Vec<usize>,
    paused: BTreeMap<Actor, Moment>,
    /// Ready tasks of paused actors.
    parked: BTreeMap<Actor, Vec<usize>>,
    stalls: Stalls,
}

/// How often, and for how long, the seed pauses a daemon before a poll.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stalls {
    /// So many in 100,000 polls.
    pub per_100_000: u64,
    /// The longest, in milliseconds; short ones are as likely as long ones.
    pub longest_ms: u64,
}

struct Task {
    actor: Actor,
    /// Taken out while it is polled.
    future: Option<BoxFuture<'static, ()>>,
    waker: Waker,
    /// Stands in `ready` or `parked`.
    queued: bool,
}

struct Wake {
    state: Arc<Mutex<State>>,
    task: usize,
}

impl ArcWake for Wake {
    fn wake_by_ref(this: &Arc<Self>) {
        lock(&this.state).enqueue(this.task);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder of this lock panics")
}

impl State {
    fn enqueue(&mut self, id: usize) {
        if let Some(Some(task)) = self.tasks.get_mut(id)
            && !std::mem::replace(&mut task.queued, true)
        {
            self.ready.push(id);
        }
    }

    /// A ready task whose actor is not paused, picked by the seed.
    fn next_ready(&mut self) -> Option<(usize, BoxFuture<'static, ()>, Waker)> {
        while !self.ready.is_empty() {
            let pick = self.random.index(self.ready.len());
            let id = self.ready.swap_remove(pick);
            let Some(actor) = self.tasks[id].as_ref().map(|task| task.actor) else { continue };
            if actor != NOBODY && self.stalls.per_100_000 > 0 {
                self.maybe_stall(actor);
            }
            if self.paused.contains_key(&actor) {
                self.parked.entry(actor).or_default().push(id);
                continue;
            }
            let task = self.tasks[id].as_mut()?;
            task.queued = false;
            // Woken while it is polled: it is queued again, and polled when this poll is over.
            let Some(future) = task.future.take() else { continue };
            return Some((id, future, task.waker.clone()));
        }
        None
    }

    fn maybe_stall(&mut self, actor: Actor) {
        if self.random.below(100_000) < self.stalls.per_100_000 && !self.paused.contains_key(&actor) {
            let bits = u64::from(self.stalls.longest_ms.max(1).ilog2());
            let length = Duration::from_millis(self.random.magnitude(bits));
            self.paused.insert(actor, self.now + length);
        }
    }

    /// Time goes on to the next thing that happens, but not past `until`. What the timers wake.
    fn advance(&mut self, until: Moment) -> Option<Vec<Waker>> {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        // A paused actor's ready tasks wait for the end of its pause.
        let pause = self.paused.values().min().copied();
        let next = [timer, pause].into_iter().flatten().min().filter(|next| *next <= until)?;
        self.now = self.now.max(next);
        let now = self.now;
        let over: Vec<Actor> =
            self.paused.iter().filter(|(_, end)| **end <= now).map(|(actor, _)| *actor).collect();
        for actor in over {
            self.paused.remove(&actor);
            self.ready.extend(self.parked.remove(&actor).unwrap_or_default());
        }
        let later = self.timers.split_off(&(now + Duration::from_nanos(1), 0));
        Some(std::mem::replace(&mut self.timers, later).into_values().collect())
    }
}

impl World {
    /// A world for a seed.
    pub fn new(seed: u64) -> Self {
        let state = State {
            now: Moment::from_start(Duration::from_secs(1)),
            random: Random::new(seed),
            timers: BTreeMap::new(),
            timers_made: 0,
            tasks: Vec::new(),
            ready: Vec::new(),
            paused: BTreeMap::new(),
            parked: BTreeMap::new(),
            stalls: Stalls::default(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Now.
    pub fn now(&self) -> Moment {
        lock(&self.state).now
    }

    /// Wall-clock time, in microseconds of Unix time.
    pub fn unix_us(&self) -> u64 {
        START_UNIX_MS * 1_000 + micros(self.now())
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
        let id = state.tasks.len();
        let waker = waker(Arc::new(Wake { state: self.state.clone(), task: id }));
        state.tasks.push(Some(Task { actor, future: Some(future), waker, queued: false }));
        state.enqueue(id);
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

    /// From now on the seed pauses daemons like this.
    pub fn set_stalls(&self, stalls: Stalls) {
        lock(&self.state).stalls = stalls;
    }

    /// Drops the actor's tasks.
    pub fn kill(&self, actor: Actor) {
        let dead: Vec<Task> = {
            let mut state = lock(&self.state);
            let of_actor = |task: &mut Option<Task>| {
                if task.as_ref().is_some_and(|task| task.actor == actor) { task.take() } else { None }
            };
            state.tasks.iter_mut().filter_map(of_actor).collect()
        };
        // Dropped outside the lock: what they hold may wake others.
        drop(dead);
    }

    /// How many tasks an actor has.
    pub fn tasks(&self, actor: Actor) -> usize {
        lock(&self.state).tasks.iter().flatten().filter(|task| task.actor == actor).count()
    }

    /// Drops all tasks: they hold the world, and the world holds them.
    pub fn end(&self) {
        let dead = std::mem::take(&mut lock(&self.state).tasks);
        drop(dead);
    }

    /// A runtime for an actor.
    pub fn runtime(&self, actor: Actor, clock: ActorClock) -> Runtime {
        Runtime {
            clock: Arc::new(SimClock { world: self.clone(), clock }),
            entropy: Arc::new(SimEntropy(Mutex::new(self.fork()))),
            spawner: Arc::new(SimSpawn { world: self.clone(), actor }),
        }
    }

    /// Runs until `done`, until nothing is left to do, or until `until` has come, and says whether it was `done`.
    pub fn run(&self, until: Moment, done: impl Fn() -> bool) -> bool {
        loop {
            let next = lock(&self.state).next_ready();
            let Some((id, mut future, waker)) = next else {
                if done() {
                    return true;
                }
                let fired = lock(&self.state).advance(until);
                let Some(fired) = fired else {
                    lock(&self.state).now = until;
                    return done();
                };
                fired.into_iter().for_each(Waker::wake);
                continue;
            };
            let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
            let mut state = lock(&self.state);
            match (polled, &mut state.tasks[id]) {
                (Poll::Pending, Some(task)) => task.future = Some(future),
                (Poll::Ready(()), task) => {
                    let ended = task.take();
                    drop(state);
                    drop((ended, future));
                }
                // Killed while it was polled.
                (Poll::Pending, None) => {
                    drop(state);
                    drop(future);
                }
            }
        }
    }

    /// Runs until `until`.
    pub fn run_until(&self, until: Moment) {
        self.run(until, || false);
    }
}

fn micros(moment: Moment) -> u64 {
    u64::try_from(moment.since(Moment::ZERO).as_micros()).expect("a run is short")
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

/// How a daemon's machine tells time.
#[derive(Clone, Copy, Debug, Default)]
pub struct ActorClock {
    /// How far its wall clock is off, in milliseconds.
    pub skew_ms: i64,
    /// How much faster than right it runs, in parts per million; negative for slower.
    pub fast_ppm: i64,
}

impl ActorClock {
    /// What this clock shows at a moment of the world.
    pub fn local(self, moment: Moment) -> Moment {
        scale(moment, 1_000_000 + i128::from(self.fast_ppm), 1_000_000)
    }

    /// The moment of the world at which this clock shows `local`. Rounded up, so that a timer is never early.
    pub fn global(self, local: Moment) -> Moment {
        if local == Moment::FAR {
            return local;
        }
        scale(local, 1_000_000, 1_000_000 + i128::from(self.fast_ppm)) + Duration::from_nanos(1)
    }
}

fn scale(moment: Moment, by: i128, of: i128) -> Moment {
    let nanos = moment.since(Moment::ZERO).as_nanos();
    let scaled = i128::try_from(nanos).expect("fits") * by / of;
    Moment::from_start(Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX)))
}

struct SimClock {
    world: World,
    clock: ActorClock,
}

impl Clock for SimClock {
    fn now(&self) -> Moment {
        self.clock.local(self.world.now())
    }

    fn wall_unix_ms(&self) -> u64 {
        (START_UNIX_MS + micros(self.now()) / 1_000).saturating_add_signed(self.clock.skew_ms)
    }

    fn sleep_until(&self, moment: Moment) -> BoxFuture<'static, ()> {
        Box::pin(self.world.sleep_until(self.clock.global(moment)))
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
        assert_eq!(world.tasks(Actor(1)), 1);
        world.run_until(world.now() + Duration::from_millis(2_500));
        world.kill(Actor(1));
        world.run_until(world.now() + Duration::from_secs(10));
        assert_eq!(*seen.lock().unwrap(), 2);
        assert_eq!(world.tasks(Actor(1)), 0);
    }

    #[test]
    fn a_clock_that_runs_fast_shows_more_and_its_timers_come_early() {
        let world = World::new(1);
        let clock = ActorClock { skew_ms: 0, fast_ppm: 1_000 };
        let runtime = world.runtime(Actor(1), clock);
        world.run_until(world.now() + Duration::from_secs(1_000));
        let ahead = runtime.clock.now().since(world.now());
        assert_eq!(ahead.as_millis(), 1_001);
        for seconds in [1, 1_000, 4_999] {
            let moment = Moment::from_start(Duration::from_secs(seconds));
            assert!(clock.local(clock.global(moment)) >= moment, "a timer is not early by its own clock");
        }
    }

    #[test]
    fn stalls_delay_daemons_and_nobody_else() {
        let world = World::new(1);
        world.set_stalls(Stalls { per_100_000: 50_000, longest_ms: 10_000 });
        let finished = Arc::new(Mutex::new(BTreeMap::new()));
        for actor in [NOBODY, Actor(1)] {
            let (inner, finished) = (world.clone(), finished.clone());
            let task = async move {
                for _ in 0..20 {
                    inner.sleep(Duration::from_millis(1)).await;
                }
                finished.lock().unwrap().insert(actor, inner.now());
            };
            world.spawn(actor, Box::pin(task));
        }
        world.run_until(world.now() + Duration::from_secs(1_000));
        let finished = finished.lock().unwrap();
        assert_eq!(finished[&NOBODY].since(Moment::from_start(Duration::from_secs(1))).as_millis(), 20);
        assert!(finished[&Actor(1)].since(finished[&NOBODY]) > Duration::from_secs(1));
    }
}
