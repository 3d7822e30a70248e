//! The real clock, randomness and tasks. The only file that may use them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Clock, Entropy, Moment, Runtime, Spawn};

/// Everything real, on the tokio runtime that this is called from.
pub fn runtime() -> Runtime {
    Runtime {
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy::default()),
        spawner: Arc::new(TokioSpawn(tokio::runtime::Handle::current())),
    }
}

/// Lets this process open as many files as it may at all, and says how many that are; `None` for no limit. A shell or a container
/// often starts with 1,024 while many more are allowed, and each connection is one.
pub fn raise_open_files() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Where that is not allowed it stays as it was.
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit.current = limit.maximum;
        }
    }
    limit.current
}

struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("the time since boot is not negative");
        let nanos = u32::try_from(time.tv_nsec).expect("nanoseconds are below one second");
        Moment::from_start(Duration::new(seconds, nanos))
    }

    #[expect(clippy::disallowed_methods, reason = "this is where the real clock is read")]
    fn wall_unix_ms(&self) -> u64 {
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        elapsed.map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is where the real timer is set")]
    fn sleep_until(&self, moment: Moment) -> BoxFuture<'static, ()> {
        let length = moment.since(self.now());
        Box::pin(async move {
            if !length.is_zero() {
                tokio::time::sleep(length).await;
            }
        })
    }
}

/// Draws so much at once as the operating system gives without a break: a call for each number is a fiftieth of what a lock
/// costs a daemon. What has been given out is not kept.
#[derive(Default)]
struct SystemEntropy(Mutex<Vec<u8>>);

const DRAWN: usize = 256;
const NUMBER: usize = size_of::<u64>();

impl Entropy for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "this is where real randomness is drawn")]
    fn next_u64(&self) -> u64 {
        let mut drawn = self.0.lock().expect("no holder of this lock panics");
        if drawn.is_empty() {
            drawn.resize(DRAWN, 0);
            getrandom::fill(&mut drawn).expect("the operating system gives random numbers");
        }
        let rest = drawn.len() - NUMBER;
        let mut number = [0; NUMBER];
        number.copy_from_slice(&drawn[rest..]);
        drawn[rest..].fill(0);
        drawn.truncate(rest);
        u64::from_le_bytes(number)
    }
}

struct TokioSpawn(tokio::runtime::Handle);

impl Spawn for TokioSpawn {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_number_is_given_out_twice() {
        let entropy = SystemEntropy::default();
        let drawn: BTreeSet<u64> = (0..5 * DRAWN).map(|_| entropy.next_u64()).collect();
        assert_eq!(drawn.len(), 5 * DRAWN);
        let kept = entropy.0.lock().unwrap().len();
        assert!(kept < DRAWN && kept.is_multiple_of(NUMBER), "{kept}");
    }
}
