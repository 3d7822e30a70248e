//! Clocks of nodes that are set while leases run.

use std::time::Duration;

use crate::support::daemon::{DaemonProcess, now};
use crate::support::redis_server::{RedisServer, ServerTime};

const TTL: Duration = Duration::from_secs(2);
const WAIT: Duration = Duration::from_secs(40);
const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 24 * HOUR;

/// A lease is held while the clocks of fewer than q nodes are set; nobody else may get the lock while it is good, and
/// somebody does get it when it is not.
async fn clocks_jump(count: usize, jumps: &[&[i64]]) {
    let bad = count / 2;
    let servers: Vec<_> = (0..count)
        .map(|n| if n < bad { RedisServer::start_with_clock(&[]) } else { RedisServer::start() })
        .collect();
    let first = DaemonProcess::serving(&servers).await;
    let second = DaemonProcess::serving(&servers).await;
    let (a, b) = (first.client().await, second.client().await);
    let mut token = 0;
    for jump in jumps {
        for server in &servers[..bad] {
            server.set_time(ServerTime::Shifted(0));
        }
        let held = a.must_acquire("x", "a", TTL, WAIT).await;
        assert!(held.lease.fencing_token > token, "{jump:?}");
        for (server, seconds) in servers.iter().zip(*jump) {
            server.set_time(ServerTime::Shifted(*seconds));
        }
        // Not by one who looks, and not by one who waits.
        b.must_be_held("x").await;
        let held = a.extend(&held).await.unwrap();
        let next = b.must_acquire("x", "b", TTL, WAIT).await;
        assert!(now() >= held.valid_until, "{jump:?}: two holders");
        assert!(next.lease.fencing_token > held.lease.fencing_token, "{jump:?}");
        token = next.lease.fencing_token;
        assert!(b.release(&next).await.unwrap());
        // All that is done daily goes on with such clocks.
        let again = a.must_acquire("y", "a", TTL, WAIT).await;
        a.extend(&again).await.unwrap();
        b.must_be_held("y").await;
        assert!(a.release(&again).await.unwrap());
    }
}

/// Mechanisms: aged means that q nodes say so, each by its own clock; a node refuses ballots that are more than a day ahead
/// of its clock, and its refusal is not taken over by the others.
#[tokio::test]
async fn one_clock_of_three_jumps_and_the_lease_stays_exclusive_and_ends() {
    clocks_jump(3, &[&[HOUR], &[-HOUR], &[10 * YEAR], &[-2 * YEAR]]).await;
}

/// Mechanisms: as above, with all but q clocks wrong.
#[tokio::test]
async fn two_clocks_of_five_jump_and_the_lease_stays_exclusive_and_ends() {
    clocks_jump(5, &[&[HOUR, HOUR], &[-HOUR, -HOUR], &[10 * YEAR, -2 * YEAR]]).await;
}
