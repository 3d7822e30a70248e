//! Puts peers of the daemon under the same load as `majorityd bench` does, with the same load generator, and serves the
//! smallest gRPC service there is. `benches/compare` starts it and reads its JSON.

mod etcd;
mod nats;
mod rabbitmq;
mod rslock;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use majorityd::load::{self, Outcome, Plan, Work};
use majorityd::runtime::system;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Of what is held or waited for; none is held for so long.
const LEASE: Duration = Duration::from_secs(30);

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
        operation: etcd::Operation,
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
    /// Put messages into a quorum queue of RabbitMQ, take and ack them
    Rabbitmq {
        /// Where it is: amqp://…
        server: String,
        #[command(flatten)]
        load: Load,
    },
    /// Put messages into a stream of NATS JetStream, fetch and ack them
    Nats {
        /// Where it is: nats://…
        server: String,
        #[command(flatten)]
        load: Load,
    },
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
        Peer::Etcd { operation, endpoint, load } => print(&etcd::run(operation, &endpoint, &load).await?),
        Peer::Rslock { server, load } => print(&rslock::run(&server, &load).await),
        Peer::Rabbitmq { server, load } => print(&rabbitmq::run(&server, &load).await?),
        Peer::Nats { server, load } => print(&nats::run(&server, &load).await?),
    }
    Ok(())
}
