//! Ten thousand at one lock.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use majorityd::limits::WAITERS_PER_NAME_MAX;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::stage::*;

const CROWD: usize = 10_000;
const CONNECTIONS: usize = 4;

/// Exactly as many wait as may; the others are told so at once; and when all have gone nothing is left of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_wait_as_may_and_leave_no_trace() {
    let (_cluster, served, mut client) = alone().await;
    let held = lease(&mut client, asking("orders", "ann")).await;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(served.client().await);
    }
    let (refused, mut refusals) = mpsc::unbounded_channel::<Status>();
    let crowd: Vec<_> = (0..CROWD)
        .map(|number| {
            let (mut client, refused) = (clients[number % CONNECTIONS].clone(), refused.clone());
            start(async move {
                let status = client.acquire(waiting("orders", "")).await.expect_err("ann holds it");
                refused.send(status).expect("the test counts");
            })
        })
        .collect();
    for number in 0..CROWD - WAITERS_PER_NAME_MAX {
        let status = within(refusals.recv()).await.expect("a refusal");
        let told = (status.code(), reason(&status));
        assert_eq!(told, (Code::ResourceExhausted, "TOO_MANY_WAITERS".to_owned()), "refusal {number}");
        assert_eq!(metadata(&status, "waiting_max"), WAITERS_PER_NAME_MAX.to_string());
        assert_eq!(metadata(&status, "lock"), "orders");
        assert!(status.get_details_retry_info().is_some());
    }
    // Everybody else waits, and is counted when the daemon renews its place.
    until(&client, "orders", |lock| lock.waiters as usize == WAITERS_PER_NAME_MAX).await;
    assert!(refusals.try_recv().is_err(), "nobody who waits is refused");

    crowd.iter().for_each(|waiter| waiter.abort());
    until(&client, "orders", |lock| lock.waiters == 0).await;
    assert_eq!(get(&mut client, "orders").await.holder.unwrap().fencing_token, held.fencing_token);
    assert!(release(&mut client, &held).await);
    let next = lease(&mut client, asking("orders", "bob")).await;
    assert!(next.fencing_token > held.fencing_token);
    // And there is room again.
    let waiter = acquiring(&clients[0], waiting("orders", "carl"));
    until(&client, "orders", |lock| lock.waiters == 1).await;
    assert!(release(&mut client, &next).await);
    within(waiter).await.unwrap();
}

/// All of a crowd get the lock, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_passes_through_a_whole_crowd() {
    const CROWD: usize = 300;
    let (_cluster, served, clients) = pair().await;
    let waiters = (0..CROWD).map(|number| {
        let mut client = clients[number % 2].clone();
        start(async move {
            let held = lease(&mut client, waiting("orders", "")).await;
            assert!(release(&mut client, &held).await);
            held.fencing_token
        })
    });
    let mut waiters: FuturesUnordered<_> = waiters.collect();
    let mut tokens = Vec::new();
    while let Some(token) = within(waiters.next()).await {
        tokens.push(token.unwrap());
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), CROWD, "each had its own turn");
    let lock = until(&clients[0], "orders", |lock| lock.waiters == 0).await;
    assert_eq!(lock.holder, None);
    drop(served);
}

#[tokio::test]
async fn the_limit_of_the_daemon_holds_over_all_names() {
    let mut cluster = Cluster::new();
    cluster.settings.locks.waiters_max = 3;
    cluster.settings.locks.look_interval = Duration::from_millis(200);
    let served = cluster.daemon().await;
    let mut client = served.client().await;
    let mut leases = Vec::new();
    let mut waiters = Vec::new();
    for name in ["a", "b", "c"] {
        leases.push(lease(&mut client, asking(name, "ann")).await);
        waiters.push(acquiring(&client, waiting(name, "bob")));
        until(&client, name, |lock| lock.waiters == 1).await;
    }
    for name in ["a", "d"] {
        lease(&mut client, asking("d", "ann")).await;
        let status = within(client.acquire(waiting(name, "carl"))).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "TOO_MANY_WAITERS"));
        assert_eq!(metadata(&status, "waiting_max"), "3");
    }
    // Trying once is not waiting.
    contention(&mut client, asking("a", "carl")).await;
    // Who leaves makes room.
    waiters.remove(0).abort();
    until(&client, "a", |lock| lock.waiters == 0).await;
    let waiter = acquiring(&client, waiting("d", "carl"));
    until(&client, "d", |lock| lock.waiters == 1).await;
    waiter.abort();
    waiters.into_iter().for_each(|waiter| waiter.abort());
}
