//! Nodes that crash, freeze and forget.

use std::time::Duration;

use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::daemon::{DaemonProcess, addresses, reason, request, servers, until_health};
use crate::support::redis_server::{Data, Reply};
use majorityd::proto::v1;

const NO_WAIT: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_secs(30);

/// Mechanisms: q of N is enough (waiting for all would hang on the frozen one); a call that gets no reply is given up and
/// its connection made anew; a stale record on a node is finished by the next round that meets it.
#[tokio::test]
async fn five_nodes_serve_with_one_killed_and_one_frozen_which_then_catches_up() {
    let mut servers = servers(5);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let (client, stranger) = (daemon.client().await, other.client().await);
    let before = client.must_acquire("before", "a", LONG, NO_WAIT).await;

    servers[0].kill();
    servers[1].freeze();
    // One that the frozen node still believes to be held, one that it never hears of.
    assert!(client.release(&before).await.unwrap());
    let during = client.must_acquire("during", "a", LONG, NO_WAIT).await;
    for _ in 0..5 {
        client.extend(&during).await.unwrap();
    }
    for round in 0..5 {
        let held = client.must_acquire("again", "a", LONG, NO_WAIT).await;
        stranger.must_be_held("again").await;
        assert!(client.release(&held).await.unwrap(), "round {round}");
    }

    servers[1].thaw();
    // From now on nothing works without the node that was frozen.
    servers[2].freeze();
    let free = stranger.must_acquire("before", "b", LONG, WAIT).await;
    assert!(free.lease.fencing_token > before.lease.fencing_token);
    let contention = stranger.must_be_held("during").await;
    assert_eq!(contention.holder.unwrap().fencing_token, during.lease.fencing_token);
    client.extend(&during).await.unwrap();
    assert!(client.release(&during).await.unwrap());
    let next = stranger.must_acquire("during", "b", LONG, NO_WAIT).await;
    assert!(next.lease.fencing_token > during.lease.fencing_token);
}

/// Mechanisms: no answer without q nodes; patience that ends before the caller's deadline; and with only prepares sent
/// nothing is held afterwards.
#[tokio::test]
async fn without_a_quorum_callers_are_told_so_in_time_and_nothing_is_half_held() {
    let mut servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let mut health = daemon.watch_health().await;
    until_health(&mut health, ServingStatus::Serving).await;
    let held = client.must_acquire("held", "a", LONG, NO_WAIT).await;

    servers[0].kill();
    servers[1].freeze();
    client.must_lack_quorum("fresh", "a").await;
    until_health(&mut health, ServingStatus::NotServing).await;
    // A deadline that is shorter than the daemon's patience.
    for name in ["fresh", "held", "third"] {
        let message = v1::AcquireRequest {
            name: name.into(),
            ttl: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            ..v1::AcquireRequest::default()
        };
        let status =
            client.inner.clone().acquire(request(message, Duration::from_secs(1))).await.unwrap_err();
        assert_eq!(reason(&status).as_deref(), Some("NO_QUORUM"), "{status:?}");
        assert_eq!(status.code(), Code::Unavailable);
    }
    for status in [client.extend(&held).await.unwrap_err(), client.get("held").await.unwrap_err()] {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(reason(&status).is_some(), "{status:?}");
    }

    servers[1].thaw();
    until_health(&mut health, ServingStatus::Serving).await;
    // NO_QUORUM said that nothing happened.
    let fresh = client.must_acquire("fresh", "b", LONG, NO_WAIT).await;
    client.must_be_held("fresh").await;
    let third = client.must_acquire("third", "b", LONG, NO_WAIT).await;
    client.must_be_held("held").await;
    client.extend(&held).await.unwrap();
    for held in [fresh, third, held] {
        assert!(client.release(&held).await.unwrap());
    }
}

/// Mechanisms: as before; and where an accept was under way when its node froze, the outcome is open until the lease that
/// may have come of it has aged, and not longer.
#[tokio::test]
async fn what_was_under_way_when_the_nodes_froze_blocks_for_at_most_a_ttl() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    // The next acquire is warm: its accept goes out at once.
    let first = client.must_acquire("warm", "a", LONG, NO_WAIT).await;
    assert!(client.release(&first).await.unwrap());
    servers[0].freeze();
    servers[1].freeze();
    let status = client.acquire("warm", "a", SHORT, NO_WAIT).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let found = reason(&status).unwrap();
    assert!(found == "OUTCOME_UNKNOWN" || found == "NO_QUORUM", "{status:?}");
    daemon.until_health(ServingStatus::NotServing).await;
    servers[0].thaw();
    servers[1].thaw();
    daemon.until_health(ServingStatus::Serving).await;
    let next = client.must_acquire("warm", "b", LONG, WAIT).await;
    assert!(next.lease.fencing_token > first.lease.fencing_token);
}

/// Mechanism: who lost its memory does not count, so q empty nodes of three are no quorum that could grant anything. What a
/// recovery makes of it is in `healing.rs`.
#[tokio::test]
async fn two_of_three_that_come_back_empty_grant_nothing() {
    let mut servers = servers(3);
    let mut daemon = DaemonProcess::serving(&servers).await;
    let held = daemon.client().await.must_acquire("x", "a", LONG, NO_WAIT).await;
    daemon.kill();
    servers[0].restart(Data::Wiped);
    servers[1].restart(Data::Wiped);
    // All three answer, two of them as if they were new, to a daemon that has seen nothing.
    let settings = [("healing.recovery", "manual")];
    let fresh = DaemonProcess::start(&addresses(&servers), &settings).await;
    fresh.until_logged(&["1 of 3 nodes have their memory"]).await;
    let client = fresh.client().await;
    client.must_lack_quorum("x", "b").await;
    client.must_lack_quorum("y", "b").await;
    assert_eq!(client.extend(&held).await.unwrap_err().code(), Code::Unavailable);
}

/// How the node that both quorums share comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Returns {
    Empty,
    WithOldSnapshot,
    WithAllData,
}

/// Waits until the daemon has given up its connection to a frozen node.
async fn without_connection(daemon: &DaemonProcess, node: usize) {
    daemon.until_logged(&[&format!("\"node\":{node},"), "node is unreachable"]).await;
}

/// The lease of A is on nodes `0..q`; the last of them restarts; then only it and those that never heard of the lease can
/// be reached.
async fn the_classic(count: usize, returns: Returns) {
    let mut servers = servers(count);
    let quorum = count / 2 + 1;
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let (a, b) = (daemon.client().await, other.client().await);
    let witness = quorum - 1;
    if returns == Returns::WithOldSnapshot {
        assert_eq!(servers[witness].command(&["SAVE"]), Reply::Status("OK".into()));
    }
    for (node, server) in servers.iter().enumerate().skip(quorum) {
        server.freeze();
        // What is sent to a frozen server waits in its socket, and is done when it goes on. So nothing may be sent to it.
        without_connection(&daemon, node).await;
    }
    let held = a.must_acquire("x", "a", LONG, NO_WAIT).await;
    if returns == Returns::WithAllData {
        assert_eq!(servers[witness].command(&["SAVE"]), Reply::Status("OK".into()));
    }
    servers[witness].kill();
    servers[witness].revive();
    for server in &servers[..witness] {
        server.freeze();
    }
    for server in &servers[quorum..] {
        server.thaw();
    }
    // Also one that has never seen anything else.
    let late = DaemonProcess::start(&addresses(&servers), &[]).await;
    let c = late.client().await;
    b.must_lack_quorum("x", "b").await;
    c.must_lack_quorum("x", "c").await;
    c.must_lack_quorum("another", "c").await;

    for server in &servers[..witness] {
        server.thaw();
    }
    for daemon in [&daemon, &other, &late] {
        daemon.until_health(ServingStatus::Serving).await;
    }
    for client in [&b, &c] {
        let contention = client.must_be_held("x").await;
        assert_eq!(contention.holder.unwrap().fencing_token, held.lease.fencing_token, "{returns:?}");
    }
    a.extend(&held).await.unwrap();
    assert!(a.release(&held).await.unwrap());
    let next = b.must_acquire("x", "b", LONG, WAIT).await;
    assert!(next.lease.fencing_token > held.lease.fencing_token);
}

/// Mechanisms: the memory id, which a restart ends; a member list that says whose answers count.
#[tokio::test]
async fn of_five_a_node_that_comes_back_empty_does_not_make_a_second_quorum() {
    the_classic(5, Returns::Empty).await;
}

/// Mechanisms: as above; the memory id is in the snapshot too, but the run id that it was given under is another one.
#[tokio::test]
async fn of_five_a_node_that_comes_back_with_an_old_snapshot_does_not_make_a_second_quorum() {
    the_classic(5, Returns::WithOldSnapshot).await;
}

/// Mechanisms: as above. Nobody can tell from outside that what it kept is all that it had.
#[tokio::test]
async fn of_five_a_node_that_comes_back_with_all_its_data_does_not_make_a_second_quorum() {
    the_classic(5, Returns::WithAllData).await;
}

/// Mechanisms: as above.
#[tokio::test]
async fn of_three_a_node_that_comes_back_empty_does_not_make_a_second_quorum() {
    the_classic(3, Returns::Empty).await;
}

/// Mechanisms: as above.
#[tokio::test]
async fn of_three_a_node_that_comes_back_with_an_old_snapshot_does_not_make_a_second_quorum() {
    the_classic(3, Returns::WithOldSnapshot).await;
}
