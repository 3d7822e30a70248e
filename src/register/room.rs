//! [`Room`]: a bound on the bytes that are being written at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room in memory for what is being written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Room {
    taken: Arc<AtomicUsize>,
    max: usize,
}

/// A part of the room that is taken until this is dropped. It belongs to the change that is written, and not to the call:
/// a change waits on when its caller goes away.
#[derive(Debug)]
pub struct Held {
    taken: Arc<AtomicUsize>,
    bytes: usize,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// How much is taken.
    pub taken: usize,
    /// How much there is.
    pub max: usize,
}

impl Room {
    /// Room for so many bytes.
    pub fn new(max: usize) -> Self {
        Self { taken: Arc::default(), max }
    }

    /// How much is taken, and how much there is.
    pub fn filled(&self) -> (usize, usize) {
        (self.taken.load(Ordering::Relaxed), self.max)
    }

    /// Takes a part.
    ///
    /// # Errors
    /// [`Full`], and nothing is taken.
    pub fn take(&self, bytes: usize) -> Result<Held, Full> {
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        // Gives it back where it is too much.
        let held = Held { taken: self.taken.clone(), bytes };
        if before.saturating_add(bytes) > self.max {
            return Err(Full { taken: before, max: self.max });
        }
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back_and_never_more_than_there_is() {
        let room = Room::new(10);
        let first = room.take(8).unwrap();
        assert_eq!(room.take(3).unwrap_err(), Full { taken: 8, max: 10 });
        assert_eq!(room.filled(), (8, 10));
        let second = room.take(2).unwrap();
        drop(first);
        assert_eq!(room.take(9).unwrap_err(), Full { taken: 2, max: 10 });
        drop(second);
        drop(room.take(10).unwrap());
    }
}
