//! Holders, waiters and daemons that stop, in every way.

use std::time::Duration;

use majorityd::proto::v1::hold_response::Event;
use majorityd::proto::v1::{DisconnectPolicy, Lock};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::daemon::{
    Client, DaemonProcess, Held, acquired, beside, in_time, length, now, pause, reason, seen, servers,
};

const NO_WAIT: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(120);
const WAIT: Duration = Duration::from_secs(40);

async fn lock_with_waiters(client: &Client, name: &str, waiters: u32) -> Lock {
    seen(&format!("{waiters} waiters of {name}"), || async {
        let lock = client.get(name).await.expect("a quorum");
        (lock.waiters == waiters).then_some(lock)
    })
    .await
}

/// Mechanisms: leases age; tokens grow by agreement; a lease id is void once somebody else has had the lock.
#[tokio::test]
async fn a_holder_that_slept_too_long_is_found_out() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let (a, b) = (daemon.client().await, other.client().await);
    let slept = a.must_acquire("x", "a", Duration::from_secs(1), NO_WAIT).await;
    let next = b.must_acquire("x", "b", LONG, WAIT).await;
    assert!(now() >= slept.valid_until, "two holders");
    assert!(next.lease.fencing_token > slept.lease.fencing_token);

    for client in [&a, &b] {
        let status = client.extend(&slept).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(reason(&status).as_deref(), Some("LEASE_LOST"));
        assert!(!client.release(&slept).await.unwrap());
        let old = client.check_token("x", slept.lease.fencing_token).await;
        assert!(!old.highest && !old.held);
        assert_eq!(old.highest_fencing_token, next.lease.fencing_token);
        let new = client.check_token("x", next.lease.fencing_token).await;
        assert!(new.highest && new.held);
    }
}

/// Mechanism: a wait that is dropped takes its waiter out, and the last of a daemon gives up the daemon's place.
#[tokio::test]
async fn waiters_that_cancel_leave_no_place_in_line() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let held = client.must_acquire("x", "a", LONG, NO_WAIT).await;
    let mut waiters = Vec::new();
    for (number, daemon) in [&daemon, &other].into_iter().enumerate() {
        let waiter = daemon.client().await;
        let wait = async move { waiter.acquire("x", &format!("w{number}"), SHORT, WAIT).await };
        waiters.push(beside(wait));
    }
    lock_with_waiters(&client, "x", 2).await;
    for waiter in &waiters {
        waiter.abort();
    }
    let lock = lock_with_waiters(&client, "x", 0).await;
    assert_eq!(lock.holder.unwrap().fencing_token, held.lease.fencing_token);
    assert!(client.release(&held).await.unwrap());
    // Nobody is before us.
    client.must_acquire("x", "b", SHORT, NO_WAIT).await;
}

/// Mechanism: the daemon stops extending when the client is gone; `KEEP` leaves the lease to its time.
#[tokio::test]
async fn a_hold_that_vanishes_keeps_its_lock_for_a_ttl_and_not_longer() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let mut stream = daemon.client().await.hold("x", SHORT, DisconnectPolicy::Keep).await;
    let lease = acquired(&mut stream).await;
    // It was extended beyond its first TTL.
    let first_end = now() + SHORT;
    let mut last = now();
    while last < first_end {
        let event = in_time("extensions", stream.message()).await.unwrap().unwrap().event;
        let Some(Event::Extended(extended)) = event else { panic!("{event:?}") };
        assert_eq!(extended.fencing_token, lease.fencing_token);
        last = now();
    }
    client.must_be_held("x").await;
    drop(stream);
    client.must_be_held("x").await;
    let next = client.must_acquire("x", "b", SHORT, WAIT).await;
    assert!(next.lease.fencing_token > lease.fencing_token);
}

/// Mechanism: `RELEASE` ends the lease, far before its TTL, also when the whole connection breaks.
#[tokio::test]
async fn a_hold_that_vanishes_releases_if_told_so() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let client = other.client().await;
    let mut stream = daemon.client().await.hold("x", LONG, DisconnectPolicy::Release).await;
    let lease = acquired(&mut stream).await;
    client.must_be_held("x").await;
    // The stream was the last that used its connection.
    drop(stream);
    let next = client.must_acquire("x", "b", SHORT, WAIT).await;
    assert!(next.lease.fencing_token > lease.fencing_token);
}

/// Mechanism: an attempt whose caller is gone is withdrawn if nothing was sent, and abandoned if it was: what it got is
/// given back long before its TTL.
#[tokio::test]
async fn an_acquire_that_is_cancelled_while_it_is_under_way_holds_nothing() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let warm = client.must_acquire("warm", "a", LONG, NO_WAIT).await;
    assert!(client.release(&warm).await.unwrap());
    for (before, name) in ["warm", "cold"].into_iter().enumerate() {
        // What is sent now arrives, but is not answered before the caller has gone.
        servers[0].freeze();
        servers[1].freeze();
        let attempt = daemon.client().await;
        let attempt = beside(async move { attempt.acquire(name, "v", LONG, NO_WAIT).await });
        pause(Duration::from_millis(150)).await;
        attempt.abort();
        daemon.until_logged_times(before + 1, &["the client went away", "Acquire"]).await;
        servers[0].thaw();
        servers[1].thaw();
        daemon.until_health(ServingStatus::Serving).await;
        let next = other.client().await.must_acquire(name, "b", SHORT, WAIT).await;
        assert!(name == "cold" || next.lease.fencing_token > warm.lease.fencing_token);
    }
}

/// Mechanism: whatever came of an acquire that was cancelled, be it that its answer was on the way already, ends by itself.
#[tokio::test]
async fn acquires_that_are_cancelled_at_any_moment_hold_nothing_beyond_a_ttl() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    for round in 0..40_u64 {
        let name = format!("x{}", round % 4);
        let attempt = client.clone();
        let attempt =
            beside(async move { attempt.acquire(&name, &format!("v{round}"), SHORT, NO_WAIT).await });
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        attempt.abort();
        // More than twenty at once that are cancelled before the server has looked at them look like an attack to it.
        let _ = attempt.await;
        pause(Duration::from_millis(1)).await;
    }
    for name in ["x0", "x1", "x2", "x3"] {
        client.must_acquire(name, "b", SHORT, WAIT).await;
    }
}

/// Mechanisms: what a killed daemon leaves behind ages: its leases by their TTL, its offers by their grace, its place by
/// not coming.
#[tokio::test]
async fn a_killed_daemon_leaves_nothing_that_stays() {
    let servers = servers(3);
    let mut doomed = DaemonProcess::serving(&servers).await;
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let mut stream = doomed.client().await.hold("x", SHORT, DisconnectPolicy::Release).await;
    let lease = acquired(&mut stream).await;
    let waiter = doomed.client().await;
    let wait = beside(async move { waiter.acquire("x", "w", LONG, WAIT).await });
    lock_with_waiters(&client, "x", 1).await;

    doomed.kill();
    // Not an error of the daemon's making.
    assert_eq!(reason(&in_time("the waiter's end", wait).await.unwrap().unwrap_err()), None);
    client.must_be_held("x").await;
    let next = client.must_acquire("x", "b", LONG, WAIT).await;
    assert!(next.lease.fencing_token > lease.fencing_token);
    assert!(client.release(&next).await.unwrap());
    lock_with_waiters(&client, "x", 0).await;
    client.must_acquire("x", "c", SHORT, NO_WAIT).await;
}

/// Mechanisms: SIGTERM ends streams with their last event and waits with SHUTTING_DOWN; it touches no lease, and a lease id
/// is good at every daemon.
#[tokio::test]
async fn a_daemon_that_is_stopped_ends_its_calls_and_leaves_its_leases() {
    let servers = servers(3);
    let mut stopping = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let client = other.client().await;
    let mut stream = stopping.client().await.hold("x", LONG, DisconnectPolicy::Release).await;
    let lease = acquired(&mut stream).await;
    let waiter = stopping.client().await;
    let wait = beside(async move { waiter.acquire("x", "w", SHORT, LONG).await });
    lock_with_waiters(&client, "x", 1).await;

    stopping.terminate();
    let status = in_time("the waiter's end", wait).await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::Unavailable, Some("SHUTTING_DOWN")));
    let mut last = None;
    while let Some(event) = in_time("the stream's end", stream.message()).await.unwrap() {
        last = event.event;
    }
    let Some(Event::Ended(ended)) = last else { panic!("{last:?}") };
    assert!(!length(ended.remaining).is_zero());
    assert_eq!(stopping.until_ended().await.code(), Some(0));

    client.must_be_held("x").await;
    let held = Held::new(lease.clone(), now());
    let extended = client.extend(&held).await.unwrap();
    assert_eq!(extended.lease.fencing_token, lease.fencing_token);
    lock_with_waiters(&client, "x", 0).await;
    assert!(client.release(&held).await.unwrap());
    client.must_acquire("x", "b", SHORT, NO_WAIT).await;
}
