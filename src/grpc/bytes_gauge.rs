//! [`BytesGauge`]: how many bytes of something there are, and how many there may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::{Event, EventListener};

/// Bytes that are taken up, by one connection or all of them.
#[derive(Clone, Debug)]
pub struct BytesGauge {
    name: &'static str,
    max: usize,
    level: Arc<Level>,
}

#[derive(Debug, Default)]
struct Level {
    now: AtomicUsize,
    /// Something was given back.
    less: Event,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The limit.
    pub name: &'static str,
    /// What should have fitted.
    pub bytes: usize,
    /// What fits.
    pub max: usize,
}

impl BytesGauge {
    /// At zero. The name is for errors.
    pub fn new(name: &'static str, max: usize) -> Self {
        Self { name, max, level: Arc::default() }
    }

    /// Room for so many, if there is.
    ///
    /// # Errors
    /// [`Full`].
    pub fn take(&self, bytes: usize) -> Result<Taken, Full> {
        let before = self.level.now.fetch_add(bytes, Ordering::Relaxed);
        let taken = Taken { bytes, level: self.level.clone() };
        // One message always fits, however large messages may be.
        match before == 0 || before.saturating_add(bytes) <= self.max {
            true => Ok(taken),
            false => Err(Full { name: self.name, bytes, max: self.max }),
        }
    }

    /// Room for so many, whether there is or not.
    pub fn take_anyway(&self, bytes: usize) -> Taken {
        self.level.now.fetch_add(bytes, Ordering::Relaxed);
        Taken { bytes, level: self.level.clone() }
    }

    /// Nothing more fits.
    pub fn is_full(&self) -> bool {
        self.level.now.load(Ordering::Relaxed) >= self.max
    }

    /// Completes when something is given back.
    pub fn less(&self) -> EventListener {
        self.level.less.listen()
    }
}

/// Given back when dropped.
#[derive(Debug)]
pub struct Taken {
    bytes: usize,
    level: Arc<Level>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.level.now.fetch_sub(self.bytes, Ordering::Relaxed);
        self.level.less.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_back_and_one_message_always_fits() {
        let gauge = BytesGauge::new("x", 10);
        let large = gauge.take(11).unwrap();
        assert_eq!(gauge.take(1).unwrap_err(), Full { name: "x", bytes: 1, max: 10 });
        assert!(gauge.is_full());
        drop(large);
        let (first, second) = (gauge.take(4).unwrap(), gauge.take(6).unwrap());
        assert!(gauge.take(1).is_err());
        let mut less = gauge.less();
        drop(first);
        assert!(
            std::pin::Pin::new(&mut less)
                .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
                .is_ready()
        );
        assert!(gauge.take(4).is_ok());
        drop((second, gauge.take_anyway(20)));
        assert_eq!(gauge.level.now.load(Ordering::Relaxed), 0);
    }
}
