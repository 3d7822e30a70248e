//! [`Options`]: the settings of queues, as this daemon last read them. Kept in registers of their own, the same for all
//! daemons, and read again when they are older than [`KEPT`].

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use super::change::{QueueAnswer, QueueChange, QueueKind};
use super::{QueueOptions, QueueOptionsPatch};
use crate::ids::QueueName;
use crate::register::registers::Names;
use crate::register::{RegisterError, Registers};
use crate::runtime::Moment;

/// A change of a queue's settings is gone by everywhere after so long.
pub(super) const KEPT: Duration = Duration::from_secs(2);
/// Queues whose settings are remembered. What is forgotten is read again.
const KNOWN_MAX: usize = 10_000;

const LOCKED: &str = "no holder of this lock panics";

/// See the module.
pub(super) struct Options {
    registers: Registers<QueueKind>,
    /// Never iterated over, so its order does not matter. `None` for a queue that there is not.
    known: Mutex<HashMap<QueueName, (Option<QueueOptions>, Moment)>>,
}

impl Options {
    pub fn new(registers: Registers<QueueKind>) -> Self {
        Self { registers, known: Mutex::default() }
    }

    /// What is set, not older than [`KEPT`]; `None` for no such queue.
    pub async fn recent(
        &self,
        queue: &QueueName,
        deadline: Moment,
    ) -> Result<Option<QueueOptions>, RegisterError> {
        let now = self.now();
        let known = self.known.lock().expect(LOCKED).get(queue).cloned();
        match known {
            Some((options, read)) if now < read + KEPT => Ok(options),
            Some(_) | None => self.current(queue, deadline).await,
        }
    }

    /// The same, or what a queue has that nobody configured.
    pub async fn or_default(
        &self,
        queue: &QueueName,
        deadline: Moment,
    ) -> Result<QueueOptions, RegisterError> {
        Ok(self.recent(queue, deadline).await?.unwrap_or_default())
    }

    /// What is set now.
    pub async fn current(
        &self,
        queue: &QueueName,
        deadline: Moment,
    ) -> Result<Option<QueueOptions>, RegisterError> {
        let now = self.now();
        let observed = self.registers.read(queue.as_str(), deadline).await?;
        let options = observed.value.options.map(QueueOptions::from);
        self.note(queue, options.clone(), now);
        Ok(options)
    }

    /// What is set, of a queue that is made if there is none.
    pub async fn of_made(&self, queue: &QueueName, deadline: Moment) -> Result<QueueOptions, RegisterError> {
        match self.recent(queue, deadline).await? {
            Some(options) => Ok(options),
            None => self.configure(queue, QueueOptionsPatch::default(), deadline).await,
        }
    }

    pub async fn configure(
        &self,
        queue: &QueueName,
        patch: QueueOptionsPatch,
        deadline: Moment,
    ) -> Result<QueueOptions, RegisterError> {
        let now = self.now();
        let change = QueueChange::Configure(patch);
        match self.registers.change(queue.as_str(), change, deadline).await?.answer {
            QueueAnswer::Options(options) => {
                self.note(queue, Some(options.clone()), now);
                Ok(options)
            }
            QueueAnswer::Removed(_) => unreachable!("what is configured is answered"),
        }
    }

    /// Whether there was such a queue.
    pub async fn remove(&self, queue: &QueueName, deadline: Moment) -> Result<bool, RegisterError> {
        let now = self.now();
        match self.registers.change(queue.as_str(), QueueChange::Remove, deadline).await?.answer {
            QueueAnswer::Removed(removed) => {
                self.note(queue, None, now);
                Ok(removed)
            }
            QueueAnswer::Options(_) => unreachable!("a removal answers whether it removed"),
        }
    }

    /// Names of queues.
    pub async fn names(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        deadline: Moment,
    ) -> Result<Names, RegisterError> {
        self.registers.list(prefix, after, limit, deadline).await
    }

    fn now(&self) -> Moment {
        self.registers.cluster().runtime.clock.now()
    }

    fn note(&self, queue: &QueueName, options: Option<QueueOptions>, read: Moment) {
        let mut known = self.known.lock().expect(LOCKED);
        if known.len() >= KNOWN_MAX && !known.contains_key(queue) {
            known.clear();
        }
        known.insert(queue.clone(), (options, read));
    }
}
