//! The client for Rust, against daemons that go away.

#[path = "../../examples/rust/client.rs"]
#[allow(dead_code, reason = "its main is not called")]
pub mod example;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use majorityd::client::{Client, ClientError, LockOptions, Loss, Refused};
use majorityd::proto::v1;
use majorityd::proto::v1::ItemState;

use crate::queue::{item, look, put};
use crate::stage::*;

fn client_of(served: &[&Served]) -> Client {
    Client::new(served.iter().map(|served| format!("http://{}", served.address))).unwrap()
}

#[tokio::test]
async fn a_lock_is_kept_while_its_guard_lives_and_given_back_with_it() {
    let (_cluster, served, [mut other, _]) = pair().await;
    let client = client_of(&[&served[0]]);
    let short =
        LockOptions { ttl: Some(Duration::from_secs(3)), owner: Some("ann".into()), ..Default::default() };
    let lock = within(client.lock("orders", short)).await.unwrap();
    // Past the length of its first lease.
    let first = get(&mut other, "orders").await.holder.unwrap();
    assert_eq!((first.owner.as_str(), first.fencing_token), ("ann", lock.fencing_token()));
    for _ in 0..350 {
        pause().await;
    }
    assert_eq!((lock.loss(), lock.name()), (None, "orders"));
    let refused = within(client.lock("orders", LockOptions::default())).await.unwrap_err();
    assert!(matches!(refused, ClientError::Contended(_)), "{refused}");
    assert!(within(lock.release()).await);
    // And by a drop.
    let lock = within(client.lock("orders", LockOptions::default())).await.unwrap();
    assert!(lock.fencing_token() > first.fencing_token);
    drop(lock);
    until(&other, "orders", |lock| lock.holder.is_none()).await;
}

#[tokio::test]
async fn the_loss_of_a_lock_is_told() {
    let (_cluster, served, mut other) = alone().await;
    let lock = within(client_of(&[&served]).lock("orders", LockOptions::default())).await.unwrap();
    force(&mut other, "orders", lock.fencing_token()).await.unwrap();
    let waits = LockOptions { ttl: Some(Duration::from_secs(5)), ..Default::default() };
    let next = within(client_of(&[&served]).lock("orders", waits)).await.unwrap();
    assert!(next.fencing_token() > lock.fencing_token());
    assert_eq!(within(lock.lost()).await, Loss::Taken);
    assert_eq!(lock.loss(), Some(Loss::Taken));
    assert!(!within(lock.release()).await);
    assert_eq!(next.loss(), None);
}

#[tokio::test]
async fn without_a_quorum_a_lock_is_lost_when_its_time_is_over() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    let short = LockOptions { ttl: Some(Duration::from_secs(3)), ..Default::default() };
    let lock = within(client_of(&[&served]).lock("orders", short)).await.unwrap();
    cluster.set_network(&[0, 1], Network::Cut);
    let loss = within(lock.lost()).await;
    assert!(matches!(loss, Loss::Expired | Loss::Taken), "{loss:?}");
}

/// Under the same token.
#[tokio::test]
async fn a_lock_outlives_the_daemon_that_gave_it() {
    let (_cluster, [first, second], [_, mut other]) = pair().await;
    let client = client_of(&[&first, &second]);
    let short = LockOptions { ttl: Some(Duration::from_secs(3)), ..Default::default() };
    let lock = within(client.lock("orders", short)).await.unwrap();
    first.stop.send(()).unwrap();
    within(first.task).await.unwrap().unwrap();
    for _ in 0..400 {
        pause().await;
    }
    assert_eq!(lock.loss(), None);
    let holder = get(&mut other, "orders").await.holder.unwrap();
    assert_eq!(holder.fencing_token, lock.fencing_token());
    assert!(within(lock.release()).await);
}

#[tokio::test]
async fn a_worker_settles_items_and_goes_on_at_another_daemon() {
    let (_cluster, [first, second], _) = pair().await;
    let client = client_of(&[&first, &second]);
    let mut queues = second.queues().await;
    put(&mut queues, "mail", ["a", "b"].map(|id| item(id, id)).into()).await;
    let done = Arc::new(Mutex::new(Vec::new()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (worker, seen) = (client.clone(), done.clone());
    let task = start(async move {
        let handler = |item: v1::ReservedItem| {
            let seen = seen.clone();
            async move {
                seen.lock().unwrap().push(item.id.clone());
                match item.id.as_str() {
                    "b" => Err(Refused { reason: "no".into(), delay: Some(Duration::from_secs(600)) }),
                    _ => Ok(()),
                }
            }
        };
        worker.work("mail", 2, handler, async { drop(stopped.await) }).await
    });
    let mut queues_of_second = second.queues().await;
    within(async {
        loop {
            let state = look(&mut queues_of_second, "mail", "a").await.unwrap().state();
            let other = look(&mut queues_of_second, "mail", "b").await.unwrap();
            if state == ItemState::Done && other.state() == ItemState::Delayed {
                return;
            }
            pause().await;
        }
    })
    .await;
    first.stop.send(()).unwrap();
    within(first.task).await.unwrap().unwrap();
    put(&mut queues, "mail", vec![item("c", "c")]).await;
    within(async {
        while look(&mut queues_of_second, "mail", "c").await.unwrap().state() != ItemState::Done {
            pause().await;
        }
    })
    .await;
    stop.send(()).unwrap();
    within(task).await.unwrap().unwrap();
    assert_eq!(*done.lock().unwrap(), ["a", "b", "c"]);
}

/// What came and is not begun is given back when nothing can hand it out to the same worker once more.
#[tokio::test]
async fn a_worker_that_stops_uses_up_no_attempts() {
    let (_cluster, served, _) = alone().await;
    let client = client_of(&[&served]);
    let mut queues = served.queues().await;
    put(&mut queues, "mail", vec![item("a", "a")]).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let (hears, heard) = tokio::sync::oneshot::channel::<()>();
    let task = start(async move {
        let finished = finished.shared();
        let handler = |item: v1::ReservedItem| {
            let finished = finished.clone();
            async move {
                assert_eq!(item.id, "a");
                finished.await.unwrap();
                Ok(())
            }
        };
        let stop = async {
            stopped.await.unwrap();
            hears.send(()).unwrap();
        };
        client.work("mail", 4, handler, stop).await
    });
    within(async {
        while look(&mut queues, "mail", "a").await.unwrap().state() != ItemState::Leased {
            pause().await;
        }
    })
    .await;
    stop.send(()).unwrap();
    within(heard).await.unwrap();
    put(&mut queues, "mail", ["b", "c"].map(|id| item(id, id)).into()).await;
    // For as long as the worker still works.
    for _ in 0..50 {
        pause().await;
    }
    finish.send(()).unwrap();
    within(task).await.unwrap().unwrap();
    assert_eq!(look(&mut queues, "mail", "a").await.unwrap().state(), ItemState::Done);
    for id in ["b", "c"] {
        let rest = look(&mut queues, "mail", id).await.unwrap();
        assert!(rest.state() == ItemState::Ready && rest.attempts <= 1, "{rest:?}");
    }
}

#[tokio::test]
async fn endpoints_that_are_none_are_refused() {
    assert!(matches!(Client::new(Vec::<String>::new()), Err(ClientError::NoEndpoint)));
    assert!(matches!(Client::new(["not an endpoint"]), Err(ClientError::Endpoint { .. })));
}

#[tokio::test]
async fn the_example_runs() {
    let (_cluster, served, mut other) = alone().await;
    within(example::run(&client_of(&[&served]))).await.unwrap();
    assert_eq!(get(&mut other, "nightly").await.holder, None);
    let request = v1::GetQueueRequest { queue: "mail".into() };
    let queue = within(served.queues().await.get_queue(request)).await.unwrap().into_inner().queue.unwrap();
    assert_eq!((queue.ready, queue.leased, queue.delayed), (0, 0, 1), "one could not be sent");
}
