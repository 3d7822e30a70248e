//! [`Hinted`]: when those who wait look after a hint.
//!
//! Every node passes a hint on by itself. The first to do so may be ahead of the quorum, and a look at that moment would be
//! in the way of the very write that it looks for. So the q-th wakes, or a little time.

use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use futures::FutureExt;

use crate::ids::NodeIndex;
use crate::runtime::Runtime;

/// What fewer than q nodes have passed on is looked for after this.
const PATIENCE: Duration = Duration::from_millis(20);

/// Nodes that passed a hint on since the last look, by bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hinted(u8);

impl Hinted {
    /// A node passed it on: wakes, now, soon, or not at all, if that was said already.
    pub fn hear(&mut self, node: NodeIndex, quorum: usize, runtime: &Runtime, woken: &Arc<Event>) {
        let first = self.0 == 0;
        self.0 |= 1 << node.0;
        if self.0.count_ones() as usize >= quorum {
            self.0 = 0;
            woken.notify(1);
        } else if first {
            let (clock, woken) = (runtime.clock.clone(), woken.clone());
            let wait = async move {
                clock.sleep_until(clock.now() + PATIENCE).await;
                woken.notify(1);
            };
            runtime.spawner.spawn(wait.boxed());
        }
    }

    /// Somebody looks.
    pub fn clear(&mut self) {
        self.0 = 0;
    }
}
