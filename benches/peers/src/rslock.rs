//! rslock, which calls Redis servers itself.

use std::time::Duration;

use majorityd::load::{Outcome, Work};
use rslock::LockManager;

use crate::{LEASE, Load};

/// A pause before it tries again is drawn up to this; so its documentation has it.
const RETRY_DELAY: Duration = Duration::from_millis(200);

struct Caller {
    manager: LockManager,
    name: String,
}

impl Work for Caller {
    async fn once(&mut self) -> Result<(), String> {
        let lock = loop {
            match self.manager.lock(self.name.as_bytes(), LEASE).await {
                Ok(lock) => break lock,
                Err(rslock::LockError::Unavailable) => {}
                Err(error) => return Err(error.to_string()),
            }
        };
        self.manager.unlock(&lock).await;
        Ok(())
    }
}

/// All callers share the managers, of which there are as many as connections elsewhere.
pub async fn run(servers: &[String], load: &Load) -> Outcome {
    let managers: Vec<LockManager> = (0..load.connections)
        .map(|_| {
            let mut manager = LockManager::new(servers.to_vec());
            manager.set_retry(3, RETRY_DELAY);
            manager
        })
        .collect();
    let callers = (0..load.callers).map(|number| Caller {
        manager: managers[number as usize % managers.len()].clone(),
        name: load.name(number),
    });
    load.put_on(callers.collect()).await
}
