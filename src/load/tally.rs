//! What is counted of a run.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies are kept in microseconds, up to an hour, with three significant digits.
const LATENCY_MAX_US: u64 = 3_600_000_000;
const DIGITS: u8 = 3;

/// What all callers count into.
pub(super) struct Tally(Mutex<Counts>);

struct Counts {
    done: u64,
    failed: BTreeMap<String, u64>,
    missed: u64,
    latency: Histogram<u64>,
    /// Since people were told last.
    recent: Histogram<u64>,
    recently_failed: u64,
}

/// How it has gone since people were told last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Since counting began.
    pub elapsed: Duration,
    /// Calls that were done each second.
    pub a_second: f64,
    /// Calls that failed.
    pub failed: u64,
    /// Half of the calls that were done took no longer.
    pub p50: Duration,
    /// 99 of 100 calls that were done took no longer.
    pub p99: Duration,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// For how long it was counted.
    pub duration: Duration,
    /// Calls that were done.
    pub done: u64,
    /// Calls that failed, by why.
    pub failed: BTreeMap<String, u64>,
    /// Calls that were due and could not be made in time; always 0 without a rate.
    pub missed: u64,
    latency: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS).expect("these bounds are good")
}

impl Default for Tally {
    fn default() -> Self {
        Self(Mutex::new(Counts {
            done: 0,
            failed: BTreeMap::new(),
            missed: 0,
            latency: histogram(),
            recent: histogram(),
            recently_failed: 0,
        }))
    }
}

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// One call, and what became of it. How long it took is kept of those that were done.
    pub(super) fn count(&self, took: Duration, result: Result<(), String>) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut counts = self.counts();
        match result {
            Ok(()) => {
                counts.done += 1;
                counts.latency.saturating_record(micros);
                counts.recent.saturating_record(micros);
            }
            Err(why) => {
                counts.recently_failed += 1;
                *counts.failed.entry(why).or_default() += 1;
            }
        }
    }

    pub(super) fn missed(&self, calls: u64) {
        self.counts().missed += calls;
    }

    /// How it has gone for such an interval; the next one begins.
    pub(super) fn progress(&self, elapsed: Duration, interval: Duration) -> Progress {
        let mut counts = self.counts();
        let progress = Progress {
            elapsed,
            a_second: counts.recent.len() as f64 / interval.as_secs_f64(),
            failed: counts.recently_failed,
            p50: quantile(&counts.recent, 0.5),
            p99: quantile(&counts.recent, 0.99),
        };
        counts.recent.reset();
        counts.recently_failed = 0;
        progress
    }

    pub(super) fn outcome(&self, duration: Duration) -> Outcome {
        let counts = self.counts();
        Outcome {
            duration,
            done: counts.done,
            failed: counts.failed.clone(),
            missed: counts.missed,
            latency: counts.latency.clone(),
        }
    }
}

impl Outcome {
    /// Calls that were done each second.
    pub fn a_second(&self) -> f64 {
        self.done as f64 / self.duration.as_secs_f64()
    }

    /// Calls that failed.
    pub fn failed_in_all(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Such a part of the calls that were done took no longer than this; 0 where none was done.
    pub fn quantile(&self, part: f64) -> Duration {
        quantile(&self.latency, part)
    }

    /// The slowest call that was done.
    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.latency.max())
    }

    /// The mean of the calls that were done.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.latency.mean() / 1e6)
    }
}

fn quantile(latency: &Histogram<u64>, part: f64) -> Duration {
    Duration::from_micros(latency.value_at_quantile(part).min(latency.max()))
}
