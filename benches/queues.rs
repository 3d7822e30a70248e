//! What queues cost: emptying one from several daemons against one, and how much the number of waiting items matters.
//!
//! `cargo bench --bench queues -- 100000` puts so many items, from many tasks, and has ten consumers empty the queue, all at
//! one daemon and then on three; the rate of the puts alone is the ceiling, as a put is one round and an item's lease and
//! ack are two. `WAITING=1000000` measures Reserve + Ack with so many waiting items against 1,000; without it 20,000 are
//! put for that. The daemons run in this process, without gRPC. Figures are for comparing within one run: see
//! docs/operations.md.

#![expect(clippy::unwrap_used, reason = "a bench that can't go on fails, and prints what it found")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use majorityd::ids::QueueName;
use majorityd::queue::{Leased, NewItem, QueueOptionsPatch, ReserveRequest, Reserved, Settled};
use support::daemon::{beside, now, servers};
use support::local::{Caller, LocalDaemon, settings};
use support::redis_server::{RedisServer, Reply};

const CONSUMERS: usize = 10;
/// Items that a consumer takes at a time.
const AT_A_TIME: usize = 10;
/// Tasks that put, and items of one call.
const PRODUCERS: usize = 8;
const BATCH: usize = 100;
const SLICES: usize = 10;
const PAYLOAD: &[u8] = &[b'x'; 100];
/// Reserve + Ack, one after the other.
const ROUNDS: usize = 1_000;
const FEW: usize = 1_000;
const CALL: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(120);

fn new_item() -> NewItem {
    let payload = Bytes::from_static(PAYLOAD);
    NewItem { id: None, payload, priority: 0, delay: Duration::ZERO, attributes: Vec::new() }
}

async fn put(caller: &Caller, queue: &QueueName, count: usize) {
    let (queue, deadline) = (queue.clone(), caller.now() + CALL);
    let items = vec![new_item(); count];
    let put = caller.call(|queues| async move { queues.put(&queue, items, deadline).await }).await;
    put.unwrap().unwrap().into_iter().for_each(|put| drop(put.unwrap()));
}

async fn reserve(caller: &Caller, queue: &QueueName, max_items: usize) -> Vec<Reserved> {
    let wait = Duration::from_millis(50);
    let request = ReserveRequest { queue: queue.clone(), max_items, lease_ttl: Some(LEASE), wait };
    let deadline = caller.now() + CALL;
    caller.call(|queues| async move { queues.reserve(request, deadline).await }).await.unwrap().unwrap()
}

async fn ack(caller: &Caller, queue: &QueueName, items: Vec<Reserved>) {
    let (queue, deadline) = (queue.clone(), caller.now() + CALL);
    let leases = items.into_iter().map(|item| Leased { id: item.id, lease_id: item.lease_id }).collect();
    let acked =
        caller.call(|queues| async move { queues.ack(&queue, leases, deadline).await }).await.unwrap();
    acked.into_iter().for_each(|acked| assert_eq!(acked.unwrap(), Settled::Done));
}

/// Puts so many, and how long that took.
async fn fill(callers: &[Caller], queue: &QueueName, items: usize) -> Duration {
    let (began, left) = (now(), Arc::new(AtomicUsize::new(items)));
    let tasks = (0..PRODUCERS).map(|number| {
        let (caller, queue, left) = (callers[number % callers.len()].clone(), queue.clone(), left.clone());
        beside(async move {
            loop {
                let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    (left > 0).then(|| left - left.min(BATCH))
                });
                let Ok(before) = taken else { return };
                put(&caller, &queue, before.min(BATCH)).await;
            }
        })
    });
    join_all(tasks.collect::<Vec<_>>()).await.into_iter().for_each(|ended| ended.unwrap());
    began.elapsed()
}

/// Takes and acks until so many in all are done, and how long that took.
async fn empty(stage: &Stage, all: usize) -> Duration {
    let began = now();
    let tasks = (0..CONSUMERS).map(|number| {
        let caller = stage.callers[number % stage.callers.len()].clone();
        let (queue, done) = (stage.queue.clone(), stage.done.clone());
        beside(async move {
            while done.load(Ordering::Relaxed) < all {
                let got = reserve(&caller, &queue, AT_A_TIME).await;
                let count = got.len();
                ack(&caller, &queue, got).await;
                done.fetch_add(count, Ordering::Relaxed);
            }
        })
    });
    join_all(tasks.collect::<Vec<_>>()).await.into_iter().for_each(|ended| ended.unwrap());
    began.elapsed()
}

/// Daemons on new servers, and a queue.
struct Stage {
    servers: Vec<RedisServer>,
    _daemons: Vec<LocalDaemon>,
    callers: Vec<Caller>,
    queue: QueueName,
    /// Items that were acked.
    done: Arc<AtomicUsize>,
}

impl Stage {
    async fn new(daemons: usize) -> Self {
        let servers = servers(3);
        let mut settings = settings(&servers);
        settings.nodes.call_timeout = Duration::from_secs(5);
        settings.quorum.patience = Duration::from_secs(30);
        settings.healing.compare_interval = Duration::from_secs(3_600);
        let daemons = join_all((0..daemons).map(|_| LocalDaemon::start(&settings, 2))).await;
        let callers: Vec<Caller> = daemons.iter().map(LocalDaemon::caller).collect();
        let queue = QueueName::parse("bench").unwrap();
        // Nothing is forgotten meanwhile.
        let patch = QueueOptionsPatch { done_retention: Some(CALL * 60), ..QueueOptionsPatch::default() };
        let (name, deadline) = (queue.clone(), callers[0].now() + CALL);
        let configured =
            callers[0].call(|queues| async move { queues.configure(&name, patch, deadline).await });
        configured.await.unwrap().unwrap();
        Self { servers, _daemons: daemons, callers, queue, done: Arc::default() }
    }

    /// What one server takes up, in bytes.
    fn memory(&self) -> usize {
        let Reply::Bytes(info) = self.servers[0].command(&["INFO", "memory"]) else { panic!("INFO") };
        let info = String::from_utf8(info).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        line.unwrap().trim().parse().unwrap()
    }
}

/// What is measured of a stage, slice by slice.
#[derive(Default)]
struct Took {
    puts: Duration,
    emptied: Duration,
}

/// Three daemons against one, and both against puts alone. In turn, slice by slice, as the machine may have other work.
async fn emptying(items: usize) {
    let stages = [Stage::new(1).await, Stage::new(3).await];
    let mut took = [Took::default(), Took::default()];
    let slice = items / SLICES;
    let before = stages[0].memory();
    for _ in 0..SLICES {
        for (stage, took) in stages.iter().zip(&mut took) {
            took.puts += fill(&stage.callers, &stage.queue, slice).await;
        }
    }
    let each = (stages[0].memory() - before) / items;
    for number in 1..=SLICES {
        for (stage, took) in stages.iter().zip(&mut took) {
            took.emptied += empty(stage, number * slice).await;
        }
    }
    let a_second = |length: Duration| items as f64 / length.as_secs_f64();
    println!("{items} items of {} bytes, {each} bytes of each server for one", PAYLOAD.len());
    for (stage, Took { puts, emptied }) in stages.iter().zip(&took) {
        println!(
            "{} daemon(s): {:.0} puts/s; {CONSUMERS} consumers, {AT_A_TIME} at a time, empty it at {:.0} items/s, x {:.2} \
             of half the puts",
            stage.callers.len(),
            a_second(*puts),
            a_second(*emptied),
            2.0 * puts.as_secs_f64() / emptied.as_secs_f64()
        );
    }
    println!(
        "three daemons against one x {:.2}",
        took[0].emptied.as_secs_f64() / took[1].emptied.as_secs_f64()
    );
}

/// One Reserve + Ack after the other with many waiting items against the same with few, in turn.
async fn waiting(many: usize) {
    let stages = [Stage::new(1).await, Stage::new(1).await];
    for (stage, waiting) in stages.iter().zip([FEW, many]) {
        fill(&stage.callers, &stage.queue, waiting).await;
    }
    let mut micros = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS + ROUNDS / 10 {
        for (stage, micros) in stages.iter().zip(&mut micros) {
            let (caller, queue) = (&stage.callers[0], &stage.queue);
            let began = now();
            let got = loop {
                let got = reserve(caller, queue, 1).await;
                if !got.is_empty() {
                    break got;
                }
            };
            ack(caller, queue, got).await;
            // The first ones warm up.
            if round >= ROUNDS / 10 {
                micros.push(began.elapsed().as_micros() as u64);
            }
            put(caller, queue, 1).await;
        }
    }
    let [few, lots] = micros.map(|mut micros| {
        micros.sort_unstable();
        [0.5, 0.99].map(|q| micros[((micros.len() - 1) as f64 * q) as usize] as f64)
    });
    for (waiting, [p50, p99]) in [(FEW, few), (many, lots)] {
        println!("{waiting} waiting: Reserve + Ack p50 {p50:.0} us, p99 {p99:.0} us");
    }
    println!("{many} waiting against {FEW}: p50 x {:.2}, p99 x {:.2}", lots[0] / few[0], lots[1] / few[1]);
}

async fn bench(items: usize, many: usize) {
    emptying(items).await;
    waiting(many).await;
}

fn main() {
    let items = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(100_000);
    let many = std::env::var("WAITING").map_or(20_000, |waiting| waiting.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(bench(items, many));
}
