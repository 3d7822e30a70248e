//! What heals by itself: nodes that come back with nothing, with everything, or as another server; clusters in which too
//! many did; and memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::daemon::{
    Client, DaemonProcess, Held, addresses, beside, now, pause, reason, seen, servers,
};
use crate::support::redis_server::{Data, RedisServer};

const NO_WAIT: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_secs(4);
const LONG: Duration = Duration::from_secs(60);
/// Keeps all that was acknowledged.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
/// So that a recovery does not take minutes, and long enough for a slow machine.
const TTL_MAX: Duration = Duration::from_secs(15);
const SHORT_TTLS: [(&str, &str); 2] = [("locks.ttl_max", "15s"), ("locks.ttl_default", "15s")];

/// What clients were told, and what must be true of it.
#[derive(Default)]
struct Told {
    /// Of each name the highest token, and up to when its holder counts on it.
    claims: Mutex<BTreeMap<String, (u64, Instant)>>,
    grants: AtomicU64,
    failed: AtomicU64,
}

impl Told {
    fn granted(&self, held: &Held) {
        let (at, token) = (now(), held.lease.fencing_token);
        if held.valid_until <= at {
            // It took too long to say anything about now.
            return;
        }
        let mut claims = self.claims.lock().unwrap();
        if let Some((before, until)) = claims.insert(held.lease.name.clone(), (token, held.valid_until)) {
            assert!(token > before, "tokens do not grow: {before}, then {held:?}");
            assert!(until <= at, "two holders: {before} for another {:?}, and {held:?}", until - at);
        }
        self.grants.fetch_add(1, Ordering::Relaxed);
    }

    fn extended(&self, held: &Held) {
        let (at, token) = (now(), held.lease.fencing_token);
        let mut claims = self.claims.lock().unwrap();
        let claim = claims.get_mut(&held.lease.name).unwrap();
        if claim.0 == token {
            claim.1 = held.valid_until;
        }
        assert!(claim.0 == token || held.valid_until <= at, "two holders: {claim:?} and {held:?}");
    }

    /// Its holder counts on it no more, and is about to say so.
    fn given_up(&self, held: &Held) {
        let mut claims = self.claims.lock().unwrap();
        let claim = claims.get_mut(&held.lease.name).unwrap();
        if claim.0 == held.lease.fencing_token {
            claim.1 = now();
        }
    }

    fn failed(&self, status: &Status) {
        let known = matches!(
            reason(status).as_deref(),
            Some("NO_QUORUM" | "OUTCOME_UNKNOWN" | "LEASE_LOST" | "RECOVERING")
        );
        assert!(known, "{status:?}");
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Clients that work all the while.
struct Traffic {
    told: Arc<Told>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Two clients of each daemon, and three locks.
    async fn start(daemons: &[&DaemonProcess]) -> Self {
        let (told, stop) = (Arc::<Told>::default(), Arc::<AtomicBool>::default());
        let mut tasks = Vec::new();
        for who in 0..2 * daemons.len() {
            let client = daemons[who % daemons.len()].client().await;
            let (told, stop) = (told.clone(), stop.clone());
            tasks.push(beside(async move {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("busy-{}", (who + round) % 3);
                    work(&client, &told, &name, &format!("c{who}-{round}")).await;
                    pause(Duration::from_millis(5)).await;
                }
            }));
        }
        Self { told, stop, tasks }
    }

    /// Waits until so many more locks were granted.
    async fn until_more(&self, count: u64) {
        let from = self.told.grants.load(Ordering::Relaxed);
        seen("work that goes on", || async {
            assert!(!self.tasks.iter().any(JoinHandle::is_finished), "a client stopped");
            (self.told.grants.load(Ordering::Relaxed) >= from + count).then_some(())
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        join_all(self.tasks).await.into_iter().for_each(|ended| ended.unwrap());
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        println!("{} grants, {} failed calls", count(&self.told.grants), count(&self.told.failed));
    }
}

async fn work(client: &Client, told: &Told, name: &str, owner: &str) {
    let mut held = match client.acquire(name, owner, SHORT, Duration::from_secs(1)).await {
        Ok(Ok(held)) => held,
        Ok(Err(_)) => return,
        Err(status) => return told.failed(&status),
    };
    told.granted(&held);
    for _ in 0..2 {
        match client.extend(&held).await {
            Ok(extended) => held = extended,
            Err(status) => {
                told.failed(&status);
                break;
            }
        }
        told.extended(&held);
    }
    told.given_up(&held);
    if let Err(status) = client.release(&held).await {
        told.failed(&status);
    }
}

/// A lock that one client keeps by extending it, through one daemon and the other.
struct Kept {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Held>,
}

impl Kept {
    async fn start(daemons: &[&DaemonProcess]) -> Self {
        let client = daemons[0].client().await;
        let held = client.must_acquire("kept", "keeper", Duration::from_secs(30), NO_WAIT).await;
        Self::go_on(daemons, held).await
    }

    async fn go_on(daemons: &[&DaemonProcess], held: Held) -> Self {
        let mut clients = Vec::new();
        for daemon in daemons {
            clients.push(daemon.client().await);
        }
        let (stop, mut last) = (Arc::<AtomicBool>::default(), held);
        let stopped = stop.clone();
        let task = beside(async move {
            for client in clients.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                match client.extend(&last).await {
                    Ok(extended) => last = extended,
                    Err(status) => assert_ne!(reason(&status).as_deref(), Some("LEASE_LOST"), "{status:?}"),
                }
                assert!(now() < last.valid_until, "it could not be extended for too long");
                pause(Duration::from_millis(100)).await;
            }
            last
        });
        Self { stop, task }
    }

    async fn pause(self) -> Held {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }

    /// It was never lost.
    async fn end(self, witness: &DaemonProcess) {
        let held = self.pause().await;
        let client = witness.client().await;
        client.must_have_holder(&held).await;
        assert!(client.release(&held).await.unwrap());
    }
}

impl Client {
    async fn must_have_holder(&self, held: &Held) {
        let holder = self.must_be_held(&held.lease.name).await.holder.unwrap();
        assert_eq!(holder.fencing_token, held.lease.fencing_token);
    }
}

/// Waits until every node is a member and has the memory that the list names.
async fn until_all_count(daemon: &DaemonProcess) {
    seen("all nodes count", || async { daemon.all_is_well().then_some(()) }).await;
}

async fn started(servers: &[RedisServer], settings: &[(&str, &str)]) -> DaemonProcess {
    let daemon = DaemonProcess::start(&addresses(servers), settings).await;
    daemon.until_health(ServingStatus::Serving).await;
    daemon
}

fn durable_servers(count: usize) -> Vec<RedisServer> {
    (0..count).map(|_| RedisServer::start_with(&DURABLE)).collect()
}

/// A power cut.
fn kill_all(servers: &mut [RedisServer]) {
    servers.iter_mut().for_each(RedisServer::kill);
}

/// Mechanisms: who lost its memory does not count, until it has been given everything that q others have, under a new
/// memory that everybody agrees on; traffic goes on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_can_be_emptied_one_after_another() {
    let mut servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let kept = Kept::start(&[&daemon, &other]).await;
    let traffic = Traffic::start(&[&daemon, &other]).await;
    traffic.until_more(20).await;
    // Held by somebody who has nothing to do with daemons meanwhile.
    let quiet = daemon.client().await.must_acquire("quiet", "q", Duration::from_secs(300), NO_WAIT).await;
    for server in &mut servers {
        server.restart(Data::Wiped);
        until_all_count(&daemon).await;
        traffic.until_more(20).await;
    }
    traffic.end().await;
    kept.end(&other).await;
    let client = other.client().await;
    client.must_have_holder(&quiet).await;
    client.extend(&quiet).await.unwrap();
}

/// As above; two that are away at once are as many as five nodes can spare.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_two_can_be_emptied_at_once() {
    let mut servers = servers(5);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let kept = Kept::start(&[&daemon, &other]).await;
    let traffic = Traffic::start(&[&daemon, &other]).await;
    for pair in [[0, 1], [2, 3], [4, 0]] {
        traffic.until_more(20).await;
        pair.iter().for_each(|node| servers[*node].kill());
        pair.iter().for_each(|node| servers[*node].restart(Data::Wiped));
        until_all_count(&daemon).await;
    }
    traffic.until_more(20).await;
    traffic.end().await;
    kept.end(&other).await;
}

/// Mechanisms: a restart ends a memory, whatever is on disk; a server that was emptied while it runs is found out by what
/// it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_again_after_a_restart_with_all_its_data_and_after_flushall() {
    let mut servers = durable_servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let (client, stranger) = (daemon.client().await, other.client().await);
    let held = client.must_acquire("x", "a", LONG, NO_WAIT).await;
    servers[0].kill();
    let during = client.must_acquire("during", "a", LONG, NO_WAIT).await;
    servers[0].revive();
    until_all_count(&daemon).await;
    servers[1].flushall();
    // Nothing else may tell them: they look by themselves.
    seen("the loss is noticed", || async {
        servers[1].dump().get(b"majorityd:node").is_some().then_some(())
    })
    .await;
    until_all_count(&daemon).await;
    // Now all rests on those two.
    servers[2].freeze();
    for held in [&held, &during] {
        stranger.must_have_holder(held).await;
        client.extend(held).await.unwrap();
        assert!(stranger.release(held).await.unwrap());
        let next = stranger.must_acquire(&held.lease.name, "b", LONG, NO_WAIT).await;
        assert!(next.lease.fencing_token > held.lease.fencing_token);
    }
}

/// Tries until the lock is there; whether somebody was told to wait because of a recovery.
async fn acquire_at_last(client: &Client, name: &str, owner: &str) -> (Held, bool) {
    let recovering = AtomicBool::new(false);
    let held = seen(&format!("{name} for {owner}"), || async {
        match client.acquire(name, owner, SHORT, NO_WAIT).await {
            Ok(Ok(held)) => Some(held),
            Ok(Err(_)) => None,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                let told = reason(&status).as_deref() == Some("RECOVERING");
                recovering.fetch_or(told, Ordering::Relaxed);
                None
            }
        }
    })
    .await;
    (held, recovering.into_inner())
}

async fn extend_at_last(client: &Client, held: &Held) -> Held {
    seen("an extension", || async {
        match client.extend(held).await {
            Ok(held) => Some(held),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                None
            }
        }
    })
    .await
}

/// Stands in line for a lock whose holder is gone when the servers are, and is served not before locks are granted again.
async fn in_line(daemons: [&DaemonProcess; 2]) -> JoinHandle<(Held, Instant)> {
    let (client, waiter) = (daemons[0].client().await, daemons[1].client().await);
    client.must_acquire("short", "a", Duration::from_secs(3), NO_WAIT).await;
    let waits = beside(async move {
        let held = waiter.must_acquire("short", "w", SHORT, Duration::from_secs(50)).await;
        (held, now())
    });
    seen("a waiter", || async { (client.get("short").await.unwrap().waiters == 1).then_some(()) }).await;
    waits
}

/// After all servers were killed: what was held stays held, new locks wait, and the log has it all.
async fn recovers(
    daemons: [&DaemonProcess; 2],
    [held, extended]: [&Held; 2],
    in_line: JoinHandle<(Held, Instant)>,
    cut: Instant,
    told: &str,
) {
    let (client, stranger) = (daemons[0].client().await, daemons[1].client().await);
    let waits = {
        let fresh = stranger.clone();
        beside(async move {
            let got = acquire_at_last(&fresh, "fresh", "c").await;
            (got, now())
        })
    };
    let taken = {
        let stranger = stranger.clone();
        beside(async move {
            let (next, _) = acquire_at_last(&stranger, "held", "b").await;
            (next, now())
        })
    };
    // Its holder goes on as soon as there is a quorum, long before anybody gets anything new.
    let extended = extend_at_last(&client, extended).await;
    assert!(now() < extended.valid_until, "this machine is too slow for this lease: the test says nothing");
    let ((_, was_recovering), at) = waits.await.unwrap();
    assert!(was_recovering, "locks were granted at once");
    assert!(at >= cut + TTL_MAX, "not all leases from before can be over");
    let (_, at) = in_line.await.unwrap();
    assert!(at >= cut + TTL_MAX, "somebody in line got a lock while others may hold it");
    let (next, at) = taken.await.unwrap();
    assert!(at >= held.valid_until, "two holders");
    assert!(next.lease.fencing_token > held.lease.fencing_token);
    for daemon in daemons {
        daemon.until_logged(&["\"level\":\"ERROR\"", "the cluster was recovered", told]).await;
        daemon.until_health(ServingStatus::Serving).await;
    }
    until_all_count(daemons[0]).await;
}

/// Mechanisms: what the nodes kept is merged under a list that all have promised; locks wait for the longest lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_recovers_from_a_power_cut_with_what_the_servers_kept() {
    let mut servers = durable_servers(3);
    let daemon = started(&servers, &SHORT_TTLS).await;
    let other = started(&servers, &SHORT_TTLS).await;
    let client = daemon.client().await;
    let held = client.must_acquire("held", "a", TTL_MAX, NO_WAIT).await;
    let extended = client.must_acquire("extended", "a", TTL_MAX, NO_WAIT).await;
    let in_line = in_line([&daemon, &other]).await;
    kill_all(&mut servers);
    let cut = now();
    servers.iter_mut().for_each(RedisServer::revive);
    recovers([&daemon, &other], [&held, &extended], in_line, cut, "what they had kept").await;
    // A daemon that has seen nothing of it.
    let late = started(&servers, &SHORT_TTLS).await;
    late.client().await.must_acquire("late", "a", SHORT, NO_WAIT).await;
}

/// Mechanisms: as above. What only the emptied ones knew is lost, and is given to nobody before its lease is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_recovers_when_two_of_three_lost_everything() {
    let mut servers = durable_servers(3);
    let daemon = started(&servers, &SHORT_TTLS).await;
    let other = started(&servers, &SHORT_TTLS).await;
    let client = daemon.client().await;
    let extended = client.must_acquire("extended", "a", TTL_MAX, NO_WAIT).await;
    // It is acknowledged when any two have it; that the last server is one of them tells an answer without the first.
    servers[0].freeze();
    client.must_have_holder(&extended).await;
    servers[0].thaw();
    servers[2].freeze();
    let held = client.must_acquire("held", "a", TTL_MAX, NO_WAIT).await;
    let in_line = in_line([&daemon, &other]).await;
    kill_all(&mut servers);
    let cut = now();
    servers[2].revive();
    servers[0].restart(Data::Wiped);
    servers[1].restart(Data::Wiped);
    recovers([&daemon, &other], [&held, &extended], in_line, cut, "writes may be lost").await;
}

/// Mechanism: the operator decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manual_recovery_waits_for_a_daemon_that_may() {
    let manual = [SHORT_TTLS[0], SHORT_TTLS[1], ("healing.recovery", "manual")];
    let mut servers = durable_servers(3);
    let daemon = started(&servers, &manual).await;
    let client = daemon.client().await;
    let held = client.must_acquire("held", "a", TTL_MAX, NO_WAIT).await;
    kill_all(&mut servers);
    servers.iter_mut().for_each(RedisServer::revive);
    daemon.until_logged(&["\"level\":\"WARN\"", "healing.recovery is \\\"manual\\\""]).await;
    client.must_lack_quorum("fresh", "b").await;
    // Longer than it takes where nobody has to be asked.
    pause(Duration::from_secs(8)).await;
    client.must_lack_quorum("fresh", "b").await;
    assert!(!daemon.all_is_well());
    let other = DaemonProcess::start(&addresses(&servers), &SHORT_TTLS).await;
    let (next, _) = acquire_at_last(&client, "held", "b").await;
    assert!(next.lease.fencing_token > held.lease.fencing_token);
    other.until_logged(&["\"level\":\"ERROR\"", "the cluster was recovered"]).await;
    until_all_count(&daemon).await;
}

/// Mechanism: the operator may prefer service to what only a missing server has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_operator_said_so_a_cluster_recovers_without_a_server_that_is_gone() {
    let available = [SHORT_TTLS[0], SHORT_TTLS[1], ("healing.recovery", "available")];
    let mut servers = durable_servers(3);
    let daemon = started(&servers, &available).await;
    let client = daemon.client().await;
    let held = client.must_acquire("held", "a", TTL_MAX, NO_WAIT).await;
    kill_all(&mut servers);
    servers[..2].iter_mut().for_each(RedisServer::revive);
    daemon.until_logged(&["\"level\":\"ERROR\"", "as healing.recovery says"]).await;
    let (next, _) = acquire_at_last(&client, "held", "b").await;
    assert!(now() >= held.valid_until, "two holders");
    assert!(next.lease.fencing_token > held.lease.fencing_token);
    servers[2].revive();
    until_all_count(&daemon).await;
    // It has what the others have.
    servers[0].freeze();
    let after = client.must_acquire("after", "c", SHORT, NO_WAIT).await;
    assert!(after.lease.fencing_token > held.lease.fencing_token);
}

/// Mechanisms: whom no daemon reaches for long is out, so that the others forget; back again, it joins like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_for_long_keeps_nobody_from_forgetting_and_joins_again() {
    let mut servers = durable_servers(3);
    let daemon = started(&servers, &[("healing.out_after", "2s")]).await;
    let client = daemon.client().await;
    let kept = client.must_acquire("kept", "k", Duration::from_secs(300), NO_WAIT).await;
    let over = client.must_acquire("over", "o", LONG, NO_WAIT).await;
    seen("both on all", || async { (servers[2].lock_records() == 2).then_some(()) }).await;
    servers[2].kill();
    assert!(client.release(&over).await.unwrap());
    daemon.until_logged(&["no daemon has reached it for long"]).await;
    for server in &servers[..2] {
        seen("one record", || async { (server.lock_records() == 1).then_some(()) }).await;
    }
    servers[2].revive();
    until_all_count(&daemon).await;
    assert_eq!(servers[2].lock_records(), 1, "what was forgotten meanwhile is not brought back");
    servers[0].freeze();
    client.must_have_holder(&kept).await;
    client.must_acquire("new", "n", LONG, NO_WAIT).await;
}

/// The server at index 1 gives way to a new one, daemon by daemon.
async fn replaced(old_one_is_dead: bool) {
    let mut servers = servers(3);
    let first = DaemonProcess::serving(&servers).await;
    let mut second = DaemonProcess::serving(&servers).await;
    let kept = Kept::start(&[&first]).await;
    let quiet = second.client().await.must_acquire("quiet", "q", Duration::from_secs(300), NO_WAIT).await;
    let mut old = std::mem::replace(&mut servers[1], RedisServer::start());
    if old_one_is_dead {
        old.kill();
    }
    second.terminate();
    second.until_ended().await;
    let second = DaemonProcess::serving(&servers).await;
    let client = second.client().await;
    if old_one_is_dead {
        until_all_count(&second).await;
    }
    // The other daemon, too; the client goes to the one that runs.
    let kept = Kept::go_on(&[&second], kept.pause().await).await;
    drop(first);
    let first = DaemonProcess::serving(&servers).await;
    until_all_count(&first).await;
    // All rests on the new one.
    servers[0].freeze();
    client.must_have_holder(&quiet).await;
    client.extend(&quiet).await.unwrap();
    kept.end(&first).await;
    client.must_acquire("after", "a", LONG, NO_WAIT).await;
}

/// Mechanisms: a node is a place in the list, not an address; what comes there without a memory joins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_is_replaced_by_a_new_one() {
    replaced(true).await;
}

/// As above. While daemons disagree about where the node is, it does not count for both, and that is all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_still_runs_is_replaced_by_a_new_one() {
    replaced(false).await;
}

/// So many locks, held.
async fn hold_many(client: &Client, count: usize) -> Vec<Held> {
    let names: Vec<String> = (0..count).map(|number| format!("many-{number}")).collect();
    join_all(names.iter().map(|name| client.must_acquire(name, "m", Duration::from_secs(300), NO_WAIT))).await
}

/// Mechanism: a join goes in steps that others can see, however slow it is told to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_join_is_not_taken_for_one_that_has_stopped() {
    let mut servers = servers(3);
    let slow = started(&servers, &[("healing.join_rate", "12")]).await;
    hold_many(&slow.client().await, 220).await;
    servers[0].restart(Data::Wiped);
    until_all_count(&slow).await;
    let begun = slow.log().lines().filter(|line| line.contains("a node is joining")).count();
    assert_eq!(begun, 1, "it was started over");
}

/// Mechanism: nobody waits for a daemon: a join that does not move is started over under another memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_whose_daemon_is_killed_is_brought_to_its_end_by_another() {
    let slow = [("healing.join_rate", "20")];
    let mut servers = servers(3);
    let daemons = [started(&servers, &slow).await, started(&servers, &slow).await];
    let held = hold_many(&daemons[0].client().await, 250).await;
    servers[0].restart(Data::Wiped);
    let begun = |daemon: &DaemonProcess| daemon.log().lines().any(|line| line.contains("a node is joining"));
    let at = seen("a join", || async { daemons.iter().position(begun) }).await;
    seen("the first records", || async {
        let records = servers[0].lock_records();
        (records > 0).then_some(())
    })
    .await;
    let mut daemons = Vec::from(daemons);
    let mut copying = daemons.remove(at);
    copying.kill();
    assert!(!copying.log().contains("has joined"), "it was too fast: the test says nothing");
    let other = daemons.remove(0);
    until_all_count(&other).await;
    servers[1].freeze();
    let client = other.client().await;
    client.must_have_holder(held.first().unwrap()).await;
    client.must_have_holder(held.last().unwrap()).await;
    assert_eq!(servers[0].lock_records(), held.len());
}

/// Mechanism: what says nothing on all members is removed from all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_used_once_leave_nothing_behind() {
    let servers = servers(3);
    let daemons = [DaemonProcess::serving(&servers).await, DaemonProcess::serving(&servers).await];
    let held = daemons[0].client().await.must_acquire("held", "h", Duration::from_secs(300), NO_WAIT).await;
    let mut tasks = Vec::new();
    for who in 0..20 {
        let client = daemons[who % 2].client().await;
        tasks.push(beside(async move {
            for number in 0..100 {
                let lock = client.must_acquire(&format!("once-{who}-{number}"), "o", LONG, NO_WAIT).await;
                assert!(client.release(&lock).await.unwrap());
            }
        }));
    }
    join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    for server in &servers {
        seen("one record", || async { (server.lock_records() == 1).then_some(()) }).await;
    }
    let client = daemons[1].client().await;
    client.must_have_holder(&held).await;
    // One of those that were forgotten: its tokens go on growing, for all that anybody knows.
    let again = client.must_acquire("once-0-0", "o", LONG, NO_WAIT).await;
    assert!(again.lease.fencing_token > held.lease.fencing_token);
}
