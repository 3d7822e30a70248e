//! [`Moment`], a plain number, and [`Clock`], the one way to learn it or to wait for it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use futures::future::BoxFuture;

/// A point on this machine's monotonic clock, which goes on while the machine sleeps (`CLOCK_BOOTTIME`).
/// Says nothing to another process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment {
    nanos: u64,
}

impl Moment {
    /// The clock's own start.
    pub const ZERO: Moment = Moment { nanos: 0 };
    /// Later than every moment that comes.
    pub const FAR: Moment = Moment { nanos: u64::MAX };

    /// A moment so long after the clock's start.
    pub fn from_start(elapsed: Duration) -> Self {
        Self { nanos: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// How long before `self` the moment `earlier` was; zero if it was not.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, length: Duration) -> Moment {
        let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Moment { nanos: self.nanos.saturating_add(nanos) }
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;
    fn sub(self, length: Duration) -> Moment {
        let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        Moment { nanos: self.nanos.saturating_sub(nanos) }
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.nanos))
    }
}

/// What time it is, and waiting for a later one.
pub trait Clock: Send + Sync {
    /// Now, monotonic.
    fn now(&self) -> Moment;
    /// Now by the wall clock, in milliseconds of Unix time. For tokens, for people and for the dates in
    /// certificates, never for another decision.
    fn wall_unix_ms(&self) -> u64;
    /// Completes at `moment` or soon after; at once if it has passed.
    fn sleep_until(&self, moment: Moment) -> BoxFuture<'static, ()>;
}
