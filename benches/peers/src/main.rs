//! Puts peers of the daemon under the same load as `majorityd bench` does, with the same load generator, and serves the
//! smallest gRPC service there is. `benches/compare` starts it and reads its JSON.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use etcd_client::{Client, LockOptions};
use majorityd::load::{self, Outcome, Plan, Work};
use majorityd::runtime::system;
use rslock::LockManager;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Of what is held or waited for; none is held for so long.
const LEASE: Duration = Duration::from_secs(30);
/// A pause of rslock before it tries again is drawn up to this; so its documentation has it.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Peers of the daemon under load.
#[derive(Parser)]
struct Command {
    #[command(subcommand)]
    peer: Peer,
}

#[derive(Subcommand)]
enum Peer {
    /// Serve gRPC health checks, and nothing else
    Serve {
        /// Where
        listen: SocketAddr,
    },
    /// Call etcd
    Etcd {
        /// What each caller does again and again
        #[arg(value_enum)]
        operation: EtcdOperation,
        /// Where its members are
        #[arg(long, required = true)]
        endpoint: Vec<String>,
        #[command(flatten)]
        load: Load,
    },
    /// Lock with rslock, which calls Redis servers itself
    Rslock {
        /// Where the servers are
        #[arg(long, required = true)]
        server: Vec<String>,
        #[command(flatten)]
        load: Load,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum EtcdOperation {
    Locks,
    Get,
    Set,
}

#[derive(Args)]
struct Load {
    #[arg(long)]
    callers: u64,
    #[arg(long)]
    connections: u64,
    #[arg(long)]
    names: u64,
    #[arg(long)]
    seconds: f64,
    #[arg(long)]
    warm_up: f64,
    #[arg(long, default_value_t = 100)]
    payload: usize,
}

impl Load {
    async fn put_on<W: Work>(&self, callers: Vec<W>) -> Outcome {
        let [warm_up, duration] = [self.warm_up, self.seconds].map(Duration::from_secs_f64);
        load::run(&system::runtime(), &Plan { warm_up, duration, rate: None }, callers, |_| ()).await
    }

    fn name(&self, turn: u64) -> String {
        format!("bench/{}", turn % self.names)
    }
}

struct EtcdCaller {
    client: Client,
    operation: EtcdOperation,
    name: String,
    lease: i64,
    payload: Vec<u8>,
}

impl Work for EtcdCaller {
    async fn once(&mut self) -> Result<(), String> {
        let name = self.name.as_str();
        let done = match self.operation {
            EtcdOperation::Locks => {
                let options = LockOptions::new().with_lease(self.lease);
                let lock = self.client.lock(name, Some(options)).await.map_err(|error| error.to_string())?;
                self.client.unlock(lock.key()).await.map(drop)
            }
            EtcdOperation::Get => self.client.get(name, None).await.map(drop),
            EtcdOperation::Set => self.client.put(name, self.payload.clone(), None).await.map(drop),
        };
        done.map_err(|error| error.to_string())
    }
}

async fn etcd(operation: EtcdOperation, endpoints: &[String], load: &Load) -> Result<Outcome, Error> {
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
        callers.push(EtcdCaller { client, operation, name, lease, payload });
    }
    Ok(load.put_on(callers).await)
}

struct RslockCaller {
    manager: LockManager,
    name: String,
}

impl Work for RslockCaller {
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

async fn rslock(servers: &[String], load: &Load) -> Outcome {
    let managers: Vec<LockManager> = (0..load.connections)
        .map(|_| {
            let mut manager = LockManager::new(servers.to_vec());
            manager.set_retry(3, RETRY_DELAY);
            manager
        })
        .collect();
    let callers = (0..load.callers).map(|number| RslockCaller {
        manager: managers[number as usize % managers.len()].clone(),
        name: load.name(number),
    });
    load.put_on(callers.collect()).await
}

fn print(outcome: &Outcome) {
    let micros = |part| outcome.quantile(part).as_micros() as u64;
    let report = json!({
        "per_second": outcome.a_second(),
        "failed": outcome.failed,
        "latency_us": { "p50": micros(0.5), "p99": micros(0.99) },
    });
    println!("{report}");
}

// As `majorityd bench` does.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    match Command::parse().peer {
        Peer::Serve { listen } => {
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
            let connections = TcpListenerStream::new(TcpListener::bind(listen).await?);
            Server::builder().tcp_nodelay(true).add_service(health).serve_with_incoming(connections).await?;
        }
        Peer::Etcd { operation, endpoint, load } => print(&etcd(operation, &endpoint, &load).await?),
        Peer::Rslock { server, load } => print(&rslock(&server, &load).await),
    }
    Ok(())
}
