//! A load of acquire + release against running daemons, each caller on a name of its own or all on one:
//!
//! `cargo run --release --example load -- CALLERS SECONDS [NAME [ENDPOINT…]]`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use majorityd::proto::v1::acquire_response::Outcome;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use majorityd::proto::v1::{AcquireRequest, ReleaseRequest};

#[tokio::main]
#[expect(clippy::disallowed_methods, reason = "a client outside of the daemon, in real time")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let callers: usize = arguments.next().and_then(|a| a.parse().ok()).unwrap_or(64);
    let seconds: u64 = arguments.next().and_then(|a| a.parse().ok()).unwrap_or(5);
    let name = arguments.next();
    let endpoints: Vec<String> = arguments.collect();
    let endpoints = if endpoints.is_empty() { vec!["http://127.0.0.1:7480".to_owned()] } else { endpoints };
    let done = Arc::new(AtomicU64::new(0));
    let stop = Instant::now() + Duration::from_secs(seconds);
    let mut channels = Vec::new();
    for i in 0..4 {
        let endpoint = endpoints[i % endpoints.len()].clone();
        let endpoint = tonic::transport::Endpoint::from_shared(endpoint).expect("an endpoint is a URL");
        channels.push(endpoint.connect().await.expect("a daemon listens there"));
    }
    let tasks: Vec<_> = (0..callers)
        .map(|i| {
            let mut client = LockServiceClient::new(channels[i % channels.len()].clone());
            let (done, name) = (done.clone(), name.clone().unwrap_or_else(|| format!("load/{i}")));
            tokio::spawn(async move {
                let mut worst = Duration::ZERO;
                while Instant::now() < stop {
                    let started = Instant::now();
                    let request = AcquireRequest {
                        name: name.clone(),
                        wait_timeout: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
                        ..Default::default()
                    };
                    let lease = match client.acquire(request).await {
                        Ok(response) => match response.into_inner().outcome {
                            Some(Outcome::Lease(lease)) => lease,
                            other => {
                                eprintln!("{other:?}");
                                continue;
                            }
                        },
                        Err(status) => {
                            eprintln!("acquire: {status}");
                            continue;
                        }
                    };
                    let release = ReleaseRequest { name: name.clone(), lease_id: lease.lease_id };
                    if let Err(status) = client.release(release).await {
                        eprintln!("release: {status}");
                    }
                    worst = worst.max(started.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                worst
            })
        })
        .collect();
    let mut worst = Duration::ZERO;
    for task in tasks {
        worst = worst.max(task.await.expect("no caller panics"));
    }
    println!("{} acquire+release a second, worst {:?}", done.load(Ordering::Relaxed) / seconds, worst);
}
