//! etcd: locks, and keys.

use clap::ValueEnum;
use etcd_client::{Client, LockOptions};
use majorityd::load::{Outcome, Work};

use crate::{Error, LEASE, Load};

/// What each caller does again and again.
#[derive(Clone, Copy, ValueEnum)]
pub enum Operation {
    Locks,
    Get,
    Set,
}

struct Caller {
    client: Client,
    operation: Operation,
    name: String,
    lease: i64,
    payload: Vec<u8>,
}

impl Work for Caller {
    async fn once(&mut self) -> Result<(), String> {
        let name = self.name.as_str();
        let done = match self.operation {
            Operation::Locks => {
                let options = LockOptions::new().with_lease(self.lease);
                let lock = self.client.lock(name, Some(options)).await.map_err(|error| error.to_string())?;
                self.client.unlock(lock.key()).await.map(drop)
            }
            Operation::Get => self.client.get(name, None).await.map(drop),
            Operation::Set => self.client.put(name, self.payload.clone(), None).await.map(drop),
        };
        done.map_err(|error| error.to_string())
    }
}

/// Callers in turn at each of the members.
pub async fn run(operation: Operation, endpoints: &[String], load: &Load) -> Result<Outcome, Error> {
    let mut clients = Vec::new();
    for number in 0..load.connections as usize {
        clients.push(Client::connect([&endpoints[number % endpoints.len()]], None).await?);
    }
    let mut callers = Vec::new();
    for number in 0..load.callers {
        let mut client = clients[number as usize % clients.len()].clone();
        let name = load.name(number);
        let payload = vec![b'x'; load.payload];
        client.put(name.as_str(), payload.clone(), None).await?;
        // A key that is locked must end with its lease.
        let lease = client.lease_grant(10 * LEASE.as_secs() as i64, None).await?.id();
        callers.push(Caller { client, operation, name, lease, payload });
    }
    Ok(load.put_on(callers).await)
}
