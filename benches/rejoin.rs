//! How long a server that lost everything takes to join again, and what that costs the traffic.
//!
//! `cargo bench --bench rejoin -- 1000000` starts three Redis servers and a daemon, puts so many lock records on each server,
//! measures acquire + release of other locks for a while, empties one server, and goes on measuring until it is a member
//! again. `RATE=20000` sets `healing.join_rate`. Figures are for comparing within one run: see docs/operations.md.

#![expect(clippy::unwrap_used, reason = "a bench that can't go on fails, and prints what it found")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::cluster_service_client::ClusterServiceClient;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use support::daemon::{DaemonProcess, addresses, beside, now, pause, servers};
use support::redis_server::RedisServer;
use tonic::transport::{Channel, Endpoint};

/// Callers of acquire + release.
const CALLERS: usize = 16;
/// How long the traffic is measured without a join.
const BASELINE: Duration = Duration::from_secs(10);
/// Records that one call of the filling script writes.
const FILL: u64 = 20_000;

/// What callers have seen in one phase.
#[derive(Default)]
struct Phase {
    micros: Vec<u64>,
    errors: u64,
}

impl Phase {
    fn show(&mut self, name: &str, length: Duration) -> (f64, f64) {
        self.micros.sort_unstable();
        let at = |q: f64| self.micros[((self.micros.len() - 1) as f64 * q) as usize] as f64 / 1_000.0;
        let (throughput, p99) = (self.micros.len() as f64 / length.as_secs_f64(), at(0.99));
        println!(
            "{name}: {throughput:.0} acquire+release/s, p50 {:.2} ms, p99 {p99:.2} ms, {} errors",
            at(0.5),
            self.errors
        );
        (throughput, p99)
    }
}

/// The daemon's resident memory, in MiB.
fn resident(daemon: &DaemonProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1_024
}

/// So many copies of a real lock record on a server.
fn fill(server: &RedisServer, records: u64) {
    let script = "local raw = redis.call('GET', 'majorityd:r:l:template') \
                  for i = ARGV[1], ARGV[2] do redis.call('SET', 'majorityd:r:l:bench/' .. i, raw) \
                  redis.call('ZADD', 'majorityd:i:l', 0, 'bench/' .. i) end";
    for from in (0..records).step_by(FILL as usize) {
        let to = (from + FILL).min(records) - 1;
        let (from, to) = (from.to_string(), to.to_string());
        server.command(&["EVAL", script, "0", &from, &to]);
    }
}

fn request(name: String, ttl: i64) -> v1::AcquireRequest {
    let ttl = Some(prost_types::Duration { seconds: ttl, nanos: 0 });
    v1::AcquireRequest { name, ttl, ..Default::default() }
}

async fn call(client: &mut LockServiceClient<Channel>, name: String) -> Option<()> {
    use v1::acquire_response::Outcome;
    let acquired = client.acquire(request(name.clone(), 30)).await.ok()?.into_inner();
    let Some(Outcome::Lease(lease)) = acquired.outcome else { return None };
    let release = v1::ReleaseRequest { name, lease_id: lease.lease_id };
    client.release(release).await.ok().map(|_| ())
}

/// Calls until told to stop.
async fn traffic(channel: Channel, caller: usize, stop: Arc<AtomicBool>) -> Phase {
    let (mut client, mut phase) = (LockServiceClient::new(channel), Phase::default());
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = now();
        match call(&mut client, format!("traffic/{caller}/{number}")).await {
            Some(()) => phase.micros.push(began.elapsed().as_micros() as u64),
            None => phase.errors += 1,
        }
    }
    phase
}

/// Runs the traffic until the future is over.
async fn beside_traffic(channel: &Channel, during: impl Future<Output = ()>) -> (Phase, Duration) {
    let (stop, began) = (Arc::new(AtomicBool::new(false)), now());
    let callers: Vec<_> =
        (0..CALLERS).map(|caller| beside(traffic(channel.clone(), caller, stop.clone()))).collect();
    during.await;
    let length = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut all = Phase::default();
    for caller in callers {
        let phase = caller.await.unwrap();
        all.micros.extend(phase.micros);
        all.errors += phase.errors;
    }
    (all, length)
}

async fn members(client: &mut ClusterServiceClient<Channel>) -> usize {
    let status = client.get_status(v1::GetStatusRequest::default()).await.unwrap().into_inner();
    status.status.unwrap_or_default().nodes.iter().filter(|node| node.counts).count()
}

async fn bench(records: u64, rate: &str) {
    let servers = servers(3);
    let daemon = DaemonProcess::start(
        &addresses(&servers),
        &[("healing.join_rate", rate), ("log.filter", "info"), ("healing.compare_interval", "1h")],
    )
    .await;
    let channel = Endpoint::new(format!("http://{}", daemon.address)).unwrap().connect().await.unwrap();
    let mut status = ClusterServiceClient::new(channel.clone());
    while members(&mut status).await < 3 {
        pause(Duration::from_millis(100)).await;
    }
    let mut locks = LockServiceClient::new(channel.clone());
    while locks.acquire(request("template".into(), 300)).await.is_err() {
        pause(Duration::from_millis(100)).await;
    }
    pause(Duration::from_secs(1)).await;
    servers.iter().for_each(|server| fill(server, records));
    println!("{records} records on each of 3 servers, healing.join_rate {rate}, {CALLERS} callers");
    let empty = resident(&daemon);
    let (mut phase, length) = beside_traffic(&channel, pause(BASELINE)).await;
    let before = phase.show("all are members ", length);

    let (most, took) = (AtomicU64::new(0), AtomicU64::new(0));
    let (mut phase, length) = beside_traffic(&channel, async {
        let began = now();
        servers[2].command(&["FLUSHALL"]);
        while members(&mut status).await == 3 {
            pause(Duration::from_millis(10)).await;
        }
        while members(&mut status).await < 3 {
            most.fetch_max(resident(&daemon), Ordering::Relaxed);
            pause(Duration::from_millis(100)).await;
        }
        took.store(began.elapsed().as_millis() as u64, Ordering::Relaxed);
    })
    .await;
    let during = phase.show("one is joining  ", length);
    let seconds = took.load(Ordering::Relaxed) as f64 / 1_000.0;
    println!(
        "a member again after {seconds:.1} s; throughput x {:.2}, p99 x {:.2}; the daemon had {empty} MiB before and at most {} MiB",
        during.0 / before.0,
        during.1 / before.1,
        most.load(Ordering::Relaxed)
    );
}

fn main() {
    let records = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(1_000_000);
    let rate = std::env::var("RATE").unwrap_or_else(|_| "20000".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(bench(records, &rate));
}
