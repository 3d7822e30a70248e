//! The built binary under clients that mean harm: what they can take up of its memory and its descriptors is bounded, and others
//! are served meanwhile. What each of them is answered is in `tests/grpc/hostile.rs`.
//!
//! `HOSTILE_NAMES` and `HOSTILE_CONNECTIONS` set how many names and connections there are. The bounds on memory are several
//! times what was seen, so that only a leak reaches them.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/raw_http2.rs"]
mod raw_http2;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use majorityd::limits::{LEAVING_BYTES_MAX, OPEN_FILES_SPARE, VALUE_BYTES_MAX};
use majorityd::proto::v1;
use majorityd::proto::v1::kv_service_client::KvServiceClient;
use majorityd::runtime::system::raise_open_files;
use prost::Message;
use raw_http2::*;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use support::daemon::{Client, DaemonProcess, addresses, beside, in_time, seen, servers};
use support::redis_server::RedisServer;
use tonic_health::pb::health_check_response::ServingStatus;

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const GET_LOCK: &str = "/majority.v1.LockService/GetLock";

/// A number from the environment, or the default.
fn asked(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// What a process has had in memory at most, in bytes.
fn memory(daemon: &DaemonProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Somebody who takes and gives back a lock, over and over, on one connection, and is never refused.
struct Bystander {
    stop: Arc<AtomicBool>,
    turns: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Bystander {
    async fn of(daemon: &DaemonProcess) -> Self {
        let client = daemon.client().await;
        turn(&client).await;
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), turns.clone());
        let task = beside(async move {
            while !stopped.load(Ordering::SeqCst) {
                turn(&client).await;
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { stop, turns, task }
    }

    /// Waits until one more turn has begun and ended.
    async fn is_served(&self) {
        let before = self.turns.load(Ordering::SeqCst);
        seen("two more turns", || async {
            assert!(!self.task.is_finished(), "the bystander failed");
            (self.turns.load(Ordering::SeqCst) >= before + 2).then_some(())
        })
        .await;
    }

    async fn leave(self) {
        self.is_served().await;
        self.stop.store(true, Ordering::SeqCst);
        in_time("the bystander's end", self.task).await.unwrap();
    }
}

async fn turn(client: &Client) {
    let held = client.must_acquire("bystander", "b", LONG, LONG).await;
    assert!(client.release(&held).await.unwrap());
}

/// A flood of bytes, on one connection, by one who may or may not read what comes back. Gives up when the daemon does not take
/// any more for a while, or closes the connection.
async fn flood(daemon: &DaemonProcess, bytes: &[u8], times: usize, reads: bool) {
    let raw = Raw::open(daemon.address).await;
    let (mut reader, mut writer) = raw.0.into_split();
    let reading = beside(async move {
        if reads {
            let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
        } else {
            // Held, and never read from.
            std::future::pending::<()>().await;
            drop(reader);
        }
    });
    let bystander = Bystander::of(daemon).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let (counted, bytes) = (sent.clone(), bytes.to_vec());
    let writing = beside(async move {
        use tokio::io::AsyncWriteExt;
        for _ in 0..times {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    // Until it is over, or the bystander has had many turns in which nothing more was taken.
    let mut last = 0;
    while !writing.is_finished() {
        for _ in 0..10 {
            bystander.is_served().await;
        }
        let now = sent.load(Ordering::SeqCst);
        if now == last {
            break;
        }
        last = now;
    }
    bystander.leave().await;
    writing.abort();
    reading.abort();
}

/// A daemon that has patience with its servers: a flood on a busy machine makes it slow.
async fn patient_daemon(servers: &[RedisServer], settings: &[(&str, &str)]) -> DaemonProcess {
    let patience =
        [("locks.ttl_min", "20s"), ("nodes.call_timeout", "20s"), ("log.filter", "info,fred=error")];
    let daemon = DaemonProcess::start(&addresses(servers), &[&patience, settings].concat()).await;
    daemon.until_health(ServingStatus::Serving).await;
    daemon
}

fn get_lock_frames(stream: u32, end: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | end, stream, &call_headers(GET_LOCK))
}

/// Mechanisms: h2 bounds streams that are reset, answers to PING and SETTINGS that are not read, and CONTINUATION; the edge
/// bounds headers and streams. (CVE-2023-44487, CVE-2024-27316, CVE-2019-9512, CVE-2019-9515 and their like.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_take_little_memory_and_others_are_served() {
    let servers = servers(3);
    let daemon = patient_daemon(&servers, &[]).await;
    turn(&daemon.client().await).await;
    let before = memory(&daemon);

    // Streams that are opened and reset at once, in pieces that arrive together.
    let resets = |piece: u32| {
        let pairs = (0..500).map(|number| {
            let stream = 1 + 2 * (piece * 500 + number);
            [get_lock_frames(stream, 0), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        });
        pairs.collect::<Vec<_>>().concat()
    };
    let all: Vec<u8> = (0..100).flat_map(resets).collect();
    flood(&daemon, &all, 1, true).await;
    flood(&daemon, &all, 1, false).await;

    // More streams than there may be, none of which gets its request.
    let streams: Vec<u8> = (0..20_000).flat_map(|number| get_lock_frames(1 + 2 * number, 0)).collect();
    flood(&daemon, &streams, 1, true).await;

    let pings = frame(PING, 0, 0, &[7; 8]).repeat(1_000);
    flood(&daemon, &pings, 1_000, false).await;
    flood(&daemon, &pings, 1_000, true).await;
    let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(1_000);
    flood(&daemon, &settings, 1_000, false).await;
    flood(&daemon, &settings, 1_000, true).await;

    // Headers without an end: in one block over very many frames, in very many, in one that is very long.
    let begin = frame(HEADERS, 0, 1, &call_headers(GET_LOCK));
    let go_on = frame(CONTINUATION, 0, 1, &header("x-more", &"y".repeat(1_000)).repeat(10)).repeat(100);
    flood(&daemon, &[begin.clone(), go_on].concat(), 1, true).await;
    let empty = frame(CONTINUATION, 0, 1, &[]).repeat(100_000);
    flood(&daemon, &[begin, empty].concat(), 1, true).await;
    let many: Vec<u8> = (0..1_000).flat_map(|number| header(&format!("x-{number}"), "y")).collect();
    let many = [call_headers(GET_LOCK), many].concat();
    let many: Vec<u8> = (0..1_000)
        .flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, &many))
        .collect();
    flood(&daemon, &many, 1, true).await;

    // Frames of no known kind, empty DATA on no stream.
    flood(&daemon, &frame(0xee, 0xff, 0, &[0; 10_000]), 5_000, true).await;
    flood(&daemon, &frame(DATA, 0, 1, &[]).repeat(1_000), 100, true).await;

    let grown = memory(&daemon).saturating_sub(before);
    println!("{} MiB more than before", grown / MIB);
    assert!(grown < 192 * MIB, "{} MiB more than before", grown / MIB);
    turn(&daemon.client().await).await;
}

/// Headers that are too large cost their own call, and others on the same connection go on.
#[tokio::test]
async fn headers_past_the_limit_cost_their_own_call() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let mut client = daemon.client().await;
    let mut request = tonic::Request::new(v1::GetLockRequest { name: "x".into() });
    request.metadata_mut().insert("x-long", "y".repeat(20_000).parse().unwrap());
    let refused = in_time("a refusal", client.inner.get_lock(request)).await;
    assert!(refused.is_err(), "{refused:?}");
    let mut request = tonic::Request::new(v1::GetLockRequest { name: "x".into() });
    request.metadata_mut().insert("x-long", "y".repeat(8_000).parse().unwrap());
    in_time("an answer", client.inner.get_lock(request)).await.unwrap();
}

/// Mechanism: a place for each connection, so that there are descriptors for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_connections_are_served_and_those_past_the_limit_refused() {
    let may = raise_open_files().unwrap_or(u64::MAX).saturating_sub(OPEN_FILES_SPARE);
    let count = asked("HOSTILE_CONNECTIONS", 5_000).min(usize::try_from(may).unwrap_or(usize::MAX));
    let servers = servers(3);
    let max = (count + 2).to_string();
    let daemon = patient_daemon(&servers, &[("grpc.max_connections", max.as_str())]).await;
    let bystander = Bystander::of(&daemon).await;
    let before = memory(&daemon);
    let mut open = tokio::task::JoinSet::new();
    let request = v1::GetLockRequest { name: "x".into() }.encode_to_vec();
    while open.len() < count {
        let mut raw = Raw::open(daemon.address).await;
        let call = [get_lock_frames(1, 0), frame(DATA, END_STREAM, 1, &message(&request))].concat();
        raw.send(&call).await;
        // Only one that was answered has a place: a frame of the call, which is the first stream.
        let answered = in_time("an answer", async {
            while let Some(frame) = raw.next().await {
                if frame.stream == 1 {
                    return true;
                }
            }
            false
        })
        .await;
        assert!(answered, "connection {} of {count}", open.len());
        open.spawn(raw.stay());
    }
    bystander.is_served().await;
    let each = memory(&daemon).saturating_sub(before) / count;
    println!("{count} connections: {each} bytes each");
    assert!(each < 96 << 10, "{each} bytes each");

    let mut refused = 0;
    for _ in 0..20 {
        let mut raw = Raw::open(daemon.address).await;
        if raw_is_refused(&mut raw).await {
            refused += 1;
        } else {
            open.spawn(raw.stay());
        }
    }
    assert!(refused >= 18, "{refused}");
    bystander.leave().await;
    // Who leaves makes room.
    open.shutdown().await;
    seen("a place", || async {
        let mut raw = Raw::open(daemon.address).await;
        (!raw_is_refused(&mut raw).await).then_some(())
    })
    .await;
    turn(&daemon.client().await).await;
}

/// Whether a connection gets GOAWAY, and not the answer to a ping.
async fn raw_is_refused(raw: &mut Raw) -> bool {
    raw.send(&frame(PING, 0, 0, &[1; 8])).await;
    in_time("a word", async {
        loop {
            match raw.next().await {
                Some(frame) if frame.kind == PING && frame.payload == [1; 8] => return false,
                Some(frame) if frame.goaway() == Some(ENHANCE_YOUR_CALM) => return true,
                Some(_) => {}
                None => return true,
            }
        }
    })
    .await
}

/// Mechanism: answers are counted until they have been written, for each connection and for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads_take_bounded_memory() {
    const CONNECTIONS: usize = 8;
    const STREAMS: u32 = 200;
    let servers = servers(3);
    let daemon = patient_daemon(&servers, &[]).await;
    let mut keys = KvServiceClient::connect(format!("http://{}", daemon.address)).await.unwrap();
    let value = Some(v1::set_request::Content::Value(vec![7; VALUE_BYTES_MAX].into()));
    let set = v1::SetRequest { key: "large".into(), content: value, ..Default::default() };
    in_time("a value", keys.set(set)).await.unwrap();
    let bystander = Bystander::of(&daemon).await;
    let before = memory(&daemon);
    let mut open = tokio::task::JoinSet::new();
    let request = message(&v1::GetRequest { key: "large".into() }.encode_to_vec());
    for _ in 0..CONNECTIONS {
        let mut raw = Raw::open(daemon.address).await;
        // SETTINGS_INITIAL_WINDOW_SIZE.
        raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
        let call = |stream| {
            let head = frame(HEADERS, END_HEADERS, stream, &call_headers("/majority.v1.KvService/Get"));
            [head, frame(DATA, END_STREAM, stream, &request)].concat()
        };
        let calls: Vec<u8> = (0..STREAMS).flat_map(|number| call(1 + 2 * number)).collect();
        raw.send(&calls).await;
        let mut answered = 0;
        in_time("the heads of all answers", async {
            while answered < STREAMS {
                let frame = raw.next().await.expect("the connection stays");
                answered += u32::from(frame.kind == HEADERS);
            }
        })
        .await;
        open.spawn(raw.stay());
    }
    bystander.leave().await;
    let grown = memory(&daemon).saturating_sub(before);
    println!("{CONNECTIONS} connections with {STREAMS} values unread: {} MiB more", grown / MIB);
    // Without the bound it would be 1.6 GiB and more. Beside the answers there are values that are being read from the nodes.
    assert!(grown < LEAVING_BYTES_MAX + 256 * MIB, "{} MiB", grown / MIB);
}

/// Mechanism: a failed accept is tried again, after a pause; nothing that has a descriptor loses it.
#[tokio::test]
async fn a_daemon_without_descriptors_serves_whom_it_has_and_recovers() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let bystander = Bystander::of(&daemon).await;
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap().count() as u64;
    let pid = Pid::from_raw(daemon.id() as i32);
    let limit = |files| prlimit(pid, Resource::Nofile, Rlimit { current: Some(files), maximum: Some(files) });
    limit(open + 10).unwrap();
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(Raw::open(daemon.address).await);
    }
    daemon.until_logged(&["could not accept a connection"]).await;
    bystander.is_served().await;
    drop(crowd);
    seen("a connection that is served", || async {
        let mut raw = Raw::open(daemon.address).await;
        (!raw_is_refused(&mut raw).await).then_some(())
    })
    .await;
    bystander.leave().await;
}

/// Mechanisms: idle registers keep bounded numbers of warm promises, notes for upkeep and leases; everything else of a name goes
/// with its call. So memory follows the bounds and not the number of names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn very_many_names_take_bounded_memory() {
    const CONNECTIONS: usize = 4;
    const AT_A_TIME: usize = 16;
    let names = asked("HOSTILE_NAMES", 5_000);
    let servers = servers(3);
    let daemon = patient_daemon(&servers, &[]).await;
    let bystander = Bystander::of(&daemon).await;
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = daemon.client().await;
        for _ in 0..AT_A_TIME {
            let (client, next) = (client.clone(), next.clone());
            workers.push(beside(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= names {
                        return;
                    }
                    // As long as names may be.
                    let name = format!("{number:0>512}");
                    if number % 4 > 0 {
                        client.get(&name).await.unwrap();
                        continue;
                    }
                    let held = client.must_acquire(&name, "a", LONG, NO_WAIT).await;
                    assert!(client.release(&held).await.unwrap());
                }
            }));
        }
    }
    for worker in workers {
        worker.await.unwrap();
    }
    bystander.leave().await;
    let peak = memory(&daemon);
    println!("{names} names: {} MiB at most", peak / MIB);
    // Warm promises (64 shards of 1,024) and what is idle (200,000) with names of this length, and the daemon itself.
    assert!(peak < 512 * MIB, "{} MiB", peak / MIB);
}
