//! A load generator: so many callers do one thing again and again, and it is counted how often, and how long it took.
//!
//! Without a rate each caller begins its next call when the last one has ended (a closed loop), so a slow server gets less
//! to do. With a rate calls are due at fixed times, whatever became of those before, and each is measured from when it was
//! due: otherwise the calls that a pause has kept from being made would be missing among the slow ones (Gil Tene's
//! "coordinated omission").

mod tally;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future;
use futures::{FutureExt, StreamExt, stream};

use crate::runtime::{Moment, Runtime};
use tally::Tally;
pub use tally::{Outcome, Progress};

/// How often it is told how things are going.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What one caller does.
pub trait Work: Send + 'static {
    /// Does it once. What failed is told in a word or two: failures are counted by these.
    fn once(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// How much, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// How long callers are at work before anything is counted.
    pub warm_up: Duration,
    /// For how long it is counted.
    pub duration: Duration,
    /// Calls that are due each second, of all callers together; `None` for as many as they can.
    pub rate: Option<f64>,
}

/// When the calls of one caller are due.
#[derive(Clone, Copy)]
struct Schedule {
    next: Moment,
    interval: Duration,
}

/// The time of a run.
#[derive(Clone, Copy)]
struct Window {
    from: Moment,
    until: Moment,
}

impl Window {
    fn has(&self, moment: Moment) -> bool {
        self.from <= moment && moment < self.until
    }
}

/// Has all callers do their work at the same time, and tells every second how it goes.
pub async fn run<W: Work>(
    runtime: &Runtime,
    plan: &Plan,
    callers: Vec<W>,
    mut progress: impl FnMut(&Progress),
) -> Outcome {
    let start = runtime.clock.now();
    let from = start + plan.warm_up;
    let window = Window { from, until: from + plan.duration };
    let tally = Arc::new(Tally::default());
    let count = callers.len();
    let ended: Vec<_> = callers
        .into_iter()
        .enumerate()
        .map(|(number, work)| {
            let schedule = plan.rate.map(|rate| Schedule {
                // One after the other, and not all at once.
                next: start + Duration::from_secs_f64(number as f64 / rate),
                interval: Duration::from_secs_f64(count as f64 / rate),
            });
            let caller = Caller { runtime: runtime.clone(), tally: tally.clone(), window, schedule };
            let (sender, ended) = oneshot::channel::<()>();
            let task = async move {
                caller.run(work).await;
                // Nobody misses it.
                let _ = sender.send(());
            };
            runtime.spawner.spawn(task.boxed());
            ended
        })
        .collect();
    let all_ended = future::join_all(ended);
    let told = stream::unfold(from + PROGRESS_INTERVAL, |at| async move {
        runtime.clock.sleep_until(at).await;
        (at < window.until).then_some((at, at + PROGRESS_INTERVAL))
    });
    let telling = told.for_each(|at| {
        progress(&tally.progress(at.since(from), PROGRESS_INTERVAL));
        future::ready(())
    });
    future::join(all_ended, telling).await;
    tally.outcome(plan.duration)
}

/// One of those who call.
struct Caller {
    runtime: Runtime,
    tally: Arc<Tally>,
    window: Window,
    schedule: Option<Schedule>,
}

impl Caller {
    async fn run(mut self, mut work: impl Work) {
        while let Some(due) = self.wait_until_due().await {
            let result = work.once().await;
            let ended = self.runtime.clock.now();
            // In a closed loop a call belongs to the time at which it ended: those that are under way at the start and those
            // at the end make up for each other.
            let belongs_to = if self.schedule.is_some() { due } else { ended };
            if self.window.has(belongs_to) {
                self.tally.count(ended.since(due), result);
            }
        }
    }

    /// When the next call was due; `None` when time is up.
    async fn wait_until_due(&mut self) -> Option<Moment> {
        let clock = &self.runtime.clock;
        let Some(Schedule { next, interval }) = &mut self.schedule else {
            return Some(clock.now()).filter(|now| *now < self.window.until);
        };
        let due = *next;
        if due >= self.window.until {
            return None;
        }
        if clock.now() >= self.window.until {
            let missed =
                self.window.until.since(due.max(self.window.from)).as_secs_f64() / interval.as_secs_f64();
            self.tally.missed(missed.ceil() as u64);
            return None;
        }
        *next = due + *interval;
        clock.sleep_until(due).await;
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::executor::block_on;
    use futures::future::BoxFuture;

    use super::*;
    use crate::runtime::{Clock, Entropy, Spawn};

    /// Time that goes on exactly while somebody waits for it, so that one caller has the world for itself.
    #[derive(Default)]
    struct Alone(AtomicU64);

    impl Clock for Alone {
        fn now(&self) -> Moment {
            Moment::from_start(Duration::from_millis(self.0.load(Ordering::Relaxed)))
        }

        fn wall_unix_ms(&self) -> u64 {
            0
        }

        fn sleep_until(&self, moment: Moment) -> BoxFuture<'static, ()> {
            let millis = moment.since(Moment::ZERO).as_millis() as u64;
            self.0.fetch_max(millis, Ordering::Relaxed);
            future::ready(()).boxed()
        }
    }

    impl Entropy for Alone {
        fn next_u64(&self) -> u64 {
            0
        }
    }

    impl Spawn for Alone {
        fn spawn(&self, task: BoxFuture<'static, ()>) {
            task.now_or_never().expect("nobody here waits for anything");
        }
    }

    /// Takes so many milliseconds each time; the last of them again and again.
    struct Takes(Runtime, Vec<u64>, usize);

    impl Work for Takes {
        async fn once(&mut self) -> Result<(), String> {
            let Self(runtime, times, turn) = self;
            let millis = times[(*turn).min(times.len() - 1)];
            *turn += 1;
            runtime.clock.sleep_until(runtime.clock.now() + Duration::from_millis(millis)).await;
            if turn.is_multiple_of(10) { Err("tenth".to_owned()) } else { Ok(()) }
        }
    }

    fn outcome(times: &[u64], warm_up: u64, duration: u64, rate: Option<f64>) -> Outcome {
        let alone = Arc::new(Alone::default());
        let runtime = Runtime { clock: alone.clone(), entropy: alone.clone(), spawner: alone };
        let work = Takes(runtime.clone(), times.to_vec(), 0);
        let [warm_up, duration] = [warm_up, duration].map(Duration::from_millis);
        block_on(run(&runtime, &Plan { warm_up, duration, rate }, vec![work], |_| ()))
    }

    #[test]
    fn what_ends_in_time_and_not_while_it_warms_up_is_counted() {
        let outcome = outcome(&[10], 100, 1_000, None);
        // 109 calls end before 1,100 ms, 9 of them before 100 ms; every tenth fails.
        assert_eq!((outcome.done, outcome.failed_in_all(), outcome.missed), (90, 10, 0));
        assert_eq!(outcome.failed["tenth"], 10);
        assert_eq!(outcome.a_second(), 90.0);
        // Three digits of it are kept.
        assert_eq!(outcome.quantile(0.5).as_millis(), 10);
    }

    #[test]
    fn a_pause_counts_for_all_calls_that_were_due_in_it() {
        // One call in 100 takes 500 ms, and at 100 a second fifty calls were due meanwhile.
        let paused = outcome(&[1, 500, 1], 0, 1_000, Some(100.0));
        assert_eq!((paused.done + paused.failed_in_all(), paused.missed), (100, 0));
        assert!(paused.quantile(0.6) > Duration::from_millis(100), "{:?}", paused.quantile(0.6));
        let closed = outcome(&[1, 500, 1], 0, 1_000, None);
        assert!(closed.quantile(0.99) < Duration::from_millis(2), "a closed loop hides it");
    }

    #[test]
    fn what_could_not_be_called_in_time_is_told() {
        let late = outcome(&[50], 0, 1_000, Some(100.0));
        assert_eq!((late.done + late.failed_in_all(), late.missed), (20, 80));
    }

    #[test]
    fn people_are_told_every_second() {
        let alone = Arc::new(Alone::default());
        let runtime = Runtime { clock: alone.clone(), entropy: alone.clone(), spawner: alone };
        let mut seconds = Vec::new();
        let plan = Plan { warm_up: Duration::ZERO, duration: Duration::from_millis(3_500), rate: None };
        block_on(run(&runtime, &plan, Vec::<Takes>::new(), |progress| {
            seconds.push(progress.elapsed.as_secs())
        }));
        assert_eq!(seconds, [1, 2, 3]);
    }
}
