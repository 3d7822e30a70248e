//! Time, randomness and tasks as three traits, so that the simulation can put its own under the same code.
//!
//! Protocol code gets a [`Moment`] passed in; async code holds a [`Runtime`]. Only [`system`] touches the real things.

pub mod clock;
pub mod entropy;
pub mod spawn;
pub mod system;

use std::sync::Arc;

pub use clock::{Clock, Moment};
pub use entropy::Entropy;
pub use spawn::Spawn;

/// The three together, cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    /// What time it is, and waiting.
    pub clock: Arc<dyn Clock>,
    /// Random numbers.
    pub entropy: Arc<dyn Entropy>,
    /// Background tasks.
    pub spawner: Arc<dyn Spawn>,
}
