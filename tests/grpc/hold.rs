//! Hold: its events, and what its end does.

use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::hold_response::{Ended, Event, Jeopardy, Lost, Waiting};
use majorityd::proto::v1::{DisconnectPolicy, LostReason};
use tonic::{Code, Request};

use crate::stage::*;

/// Extended soon and lost soon.
fn briefly(name: &str, owner: &str) -> v1::HoldRequest {
    v1::HoldRequest { ttl: seconds(3), ..holding(name, owner) }
}

fn releasing(request: v1::HoldRequest) -> v1::HoldRequest {
    v1::HoldRequest { disconnect_policy: DisconnectPolicy::Release.into(), ..request }
}

#[tokio::test]
async fn a_held_lock_is_extended_for_as_long_as_the_client_reads() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let attributes = [("host".to_owned(), "a.example".to_owned())];
    let request = v1::HoldRequest { attributes: attributes.clone().into(), ..briefly("orders", "ann") };
    let mut stream = hold(&mut one, v1::HoldRequest { ttl: seconds(1), ..request }).await;
    let acquired = held(&mut stream).await;
    assert_eq!((acquired.owner.as_str(), acquired.ttl), ("ann", seconds(1)));
    assert_eq!(get(&mut two, "orders").await.holder.unwrap().attributes, attributes.into());
    // Longer than the lease lasts by itself.
    for _ in 0..8 {
        match event(&mut stream).await.unwrap().unwrap() {
            Event::Extended(extended) => {
                assert_eq!(extended.fencing_token, acquired.fencing_token);
                assert_eq!(extended.lease_id, acquired.lease_id);
                assert!(length(&extended.remaining) <= Duration::from_secs(1));
            }
            other => panic!("{other:?}"),
        }
        let contention = contention(&mut two, asking("orders", "bob")).await;
        assert_eq!(contention.holder.unwrap().fencing_token, acquired.fencing_token);
    }
}

#[tokio::test]
async fn a_held_lock_can_be_extended_and_released_with_its_lease_id() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let mut stream = hold(&mut one, briefly("orders", "ann")).await;
    let acquired = held(&mut stream).await;
    assert_eq!(extend(&mut two, &acquired).await.unwrap().fencing_token, acquired.fencing_token);
    assert!(release(&mut two, &acquired).await);
    let lost = Lost { reason: LostReason::Replaced.into() };
    assert_eq!(news(&mut stream).await, Event::Lost(lost));
    assert!(event(&mut stream).await.is_none(), "lost is the last event");
}

#[tokio::test]
async fn who_waits_hears_its_position_and_then_has_the_lock() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let first = lease(&mut one, asking("orders", "first")).await;
    let in_line = |owner: &str| v1::HoldRequest { wait_timeout: seconds(600), ..holding("orders", owner) };

    let mut second = hold(&mut one, in_line("second")).await;
    assert_eq!(event(&mut second).await.unwrap().unwrap(), Event::Waiting(Waiting { position: 0 }));
    let mut third = hold(&mut two, in_line("third")).await;
    assert_eq!(event(&mut third).await.unwrap().unwrap(), Event::Waiting(Waiting { position: 1 }));

    drop(second);
    assert_eq!(event(&mut third).await.unwrap().unwrap(), Event::Waiting(Waiting { position: 0 }));
    assert!(release(&mut one, &first).await);
    let acquired = held(&mut third).await;
    assert!(acquired.owner == "third" && acquired.fencing_token > first.fencing_token);
    assert_eq!(get(&mut one, "orders").await.waiters, 0);
}

#[tokio::test]
async fn positions_count_down_within_a_daemon() {
    let mut cluster = Cluster::new();
    cluster.settings.locks.look_interval = Duration::from_secs(3600);
    let served = cluster.daemon().await;
    let mut client = served.client().await;
    let mut current = lease(&mut client, asking("orders", "ann")).await;
    let mut streams = Vec::new();
    for number in 0..4u32 {
        let owner = format!("waiter {number}");
        let request = v1::HoldRequest { wait_timeout: seconds(600), ..holding("orders", &owner) };
        let mut stream = hold(&mut client, request).await;
        let mut positions = Vec::new();
        // A newcomer is told at once, without a look.
        while positions.last() != Some(&number) {
            match event(&mut stream).await.unwrap().unwrap() {
                Event::Waiting(Waiting { position }) => positions.push(position),
                other => panic!("{other:?}"),
            }
        }
        streams.push(stream);
    }
    for number in 0..4 {
        assert!(release(&mut client, &current).await);
        let mut stream = streams.remove(0);
        let mut last = number;
        current = loop {
            match event(&mut stream).await.unwrap().unwrap() {
                Event::Waiting(Waiting { position }) => {
                    assert!(position < last, "only changes are told, and nobody passes");
                    last = position;
                }
                Event::Acquired(lease) => break lease,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(current.owner, format!("waiter {number}"));
    }
}

#[tokio::test]
async fn a_hold_that_may_not_wait_or_not_longer_times_out() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let first = lease(&mut one, asking("orders", "ann")).await;
    for wait_timeout in [None, millis(300)] {
        let request = v1::HoldRequest { wait_timeout, ..holding("orders", "bob") };
        let mut stream = hold(&mut two, request).await;
        match news(&mut stream).await {
            Event::TimedOut(contention) => {
                assert_eq!(contention.holder.unwrap().fencing_token, first.fencing_token);
            }
            other => panic!("{other:?}"),
        }
        assert!(event(&mut stream).await.is_none(), "it is the last event");
    }
    until(&one, "orders", |lock| lock.waiters == 0).await;
}

#[tokio::test]
async fn a_lease_whose_client_left_runs_out_or_is_released_as_it_asked() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let mut kept = hold(&mut one, v1::HoldRequest { ttl: seconds(1), ..holding("kept", "ann") }).await;
    let mut released = hold(&mut one, releasing(holding("released", "ann"))).await;
    let (kept_lease, released_lease) = (held(&mut kept).await, held(&mut released).await);
    drop((kept, released));
    // Five minutes are not over, so it was released.
    let next = lease(&mut two, waiting("released", "bob")).await;
    assert!(next.fencing_token > released_lease.fencing_token);
    // Never released: the holder stays until its time is over, and a while after by name.
    let next = lease(&mut two, waiting("kept", "bob")).await;
    assert!(next.fencing_token > kept_lease.fencing_token);
}

#[tokio::test]
async fn a_kept_lease_stays_with_its_owner_when_the_stream_ends() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let mut stream = hold(&mut one, holding("orders", "ann")).await;
    let acquired = held(&mut stream).await;
    drop(stream);
    // What the daemon does at the end of another stream comes after what it did at the end of this one.
    let mut marker = hold(&mut one, releasing(holding("marker", "ann"))).await;
    held(&mut marker).await;
    drop(marker);
    until(&one, "marker", |lock| lock.holder.is_none()).await;
    assert_eq!(get(&mut two, "orders").await.holder.unwrap().fencing_token, acquired.fencing_token);
    assert_eq!(extend(&mut two, &acquired).await.unwrap().fencing_token, acquired.fencing_token);
}

#[tokio::test]
async fn a_hold_limit_ends_the_stream_and_not_the_lease() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let limited = |name| v1::HoldRequest { hold_limit: millis(300), ..holding(name, "ann") };
    let mut stream = hold(&mut one, limited("kept")).await;
    let acquired = held(&mut stream).await;
    match news(&mut stream).await {
        Event::Ended(Ended { remaining }) => {
            let remaining = length(&remaining);
            assert!(remaining > Duration::from_secs(200) && remaining < Duration::from_secs(300));
        }
        other => panic!("{other:?}"),
    }
    assert!(event(&mut stream).await.is_none(), "it is the last event");
    assert_eq!(extend(&mut two, &acquired).await.unwrap().fencing_token, acquired.fencing_token);

    let mut stream = hold(&mut one, releasing(limited("released"))).await;
    held(&mut stream).await;
    assert_eq!(news(&mut stream).await, Event::Ended(Ended { remaining: seconds(0) }));
    assert_eq!(get(&mut two, "released").await.holder, None);
}

#[tokio::test]
async fn a_lease_that_an_operator_ended_is_lost_as_forced() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let mut stream = hold(&mut one, briefly("orders", "ann")).await;
    let acquired = held(&mut stream).await;
    force(&mut two, "orders", acquired.fencing_token).await.unwrap();
    // Also when somebody else has it by then.
    let next = lease(&mut two, asking("orders", "bob")).await;
    assert!(next.fencing_token > acquired.fencing_token);
    assert_eq!(news(&mut stream).await, Event::Lost(Lost { reason: LostReason::Forced.into() }));
    assert!(event(&mut stream).await.is_none());
    assert_eq!(get(&mut one, "orders").await.holder.unwrap().owner, "bob");
}

#[tokio::test]
async fn a_lease_that_the_same_owner_took_over_is_lost_as_replaced() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let mut first = hold(&mut one, releasing(briefly("orders", "ann"))).await;
    let acquired = held(&mut first).await;
    let mut second = hold(&mut two, briefly("orders", "ann")).await;
    let again = held(&mut second).await;
    assert_eq!(again.fencing_token, acquired.fencing_token);
    assert_ne!(again.lease_id, acquired.lease_id);
    let replaced = Event::Lost(Lost { reason: LostReason::Replaced.into() });
    assert_eq!(news(&mut first).await, replaced);
    assert!(event(&mut first).await.is_none());
    // By an acquire just so.
    let third = lease(&mut one, asking("orders", "ann")).await;
    assert_eq!(news(&mut second).await, replaced);
    drop((first, second));
    assert_eq!(extend(&mut one, &third).await.unwrap().fencing_token, acquired.fencing_token);
}

#[tokio::test]
async fn a_lease_that_cannot_be_extended_is_in_jeopardy_until_it_can() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    let mut client = served.client().await;
    let mut stream =
        hold(&mut client, v1::HoldRequest { ttl: seconds(30), ..holding("orders", "ann") }).await;
    let acquired = held(&mut stream).await;
    cluster.set_network(&[0, 1, 2], Network::Cut);
    match news(&mut stream).await {
        Event::Jeopardy(Jeopardy { remaining }) => {
            let remaining = length(&remaining);
            assert!(remaining > Duration::ZERO && remaining < Duration::from_secs(25), "{remaining:?}");
        }
        other => panic!("{other:?}"),
    }
    cluster.set_network(&[0, 1, 2], Network::Whole);
    let extended = loop {
        match event(&mut stream).await.unwrap().unwrap() {
            Event::Jeopardy(_) => {}
            Event::Extended(lease) => break lease,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(extended.fencing_token, acquired.fencing_token);
    assert!(length(&extended.remaining) > Duration::from_secs(20));
}

#[tokio::test]
async fn a_lease_is_lost_when_no_node_is_left_until_it_runs_out() {
    let (cluster, _served, mut client) = alone().await;
    let mut stream = hold(&mut client, briefly("orders", "ann")).await;
    held(&mut stream).await;
    cluster.stop_servers(&[0, 1, 2]);
    let mut last = Duration::from_secs(3);
    let mut warnings = 0;
    let lost = loop {
        match news(&mut stream).await {
            Event::Jeopardy(Jeopardy { remaining }) => {
                let remaining = length(&remaining);
                assert!(remaining <= last, "{remaining:?} after {last:?}");
                last = remaining;
                warnings += 1;
            }
            Event::Lost(lost) => break lost,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(lost.reason, i32::from(LostReason::Expired));
    assert!(warnings > 0);
    assert!(event(&mut stream).await.is_none());
}

#[tokio::test]
async fn a_hold_without_a_quorum_fails_like_an_acquire() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    let mut client = served.client().await;
    cluster.set_network(&[0, 1], Network::Cut);
    let mut stream = hold(&mut client, holding("orders", "ann")).await;
    let status = event(&mut stream).await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "NO_QUORUM"));
    assert!(event(&mut stream).await.is_none());
}

/// This client does not end streams at its deadline by itself, so it is the daemon that keeps it.
#[tokio::test]
async fn a_streams_deadline_ends_it_like_a_cancellation() {
    let (_cluster, _served, [mut one, two]) = pair().await;
    let mut request = Request::new(releasing(briefly("orders", "ann")));
    request.set_timeout(Duration::from_secs(2));
    let mut stream = within(one.hold(request)).await.unwrap().into_inner();
    held(&mut stream).await;
    let status = within(async {
        loop {
            match event(&mut stream).await.expect("it ends with a status") {
                Ok(Event::Extended(_)) => {}
                Ok(other) => panic!("{other:?}"),
                Err(status) => break status,
            }
        }
    });
    let status = status.await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    until(&two, "orders", |lock| lock.holder.is_none()).await;

    let mut request = Request::new(v1::WatchLockRequest { name: "orders".to_owned() });
    request.set_timeout(Duration::from_secs(1));
    let mut watch = within(one.watch_lock(request)).await.unwrap().into_inner();
    assert_eq!(within(watch.message()).await.unwrap().expect("the first").holder, None);
    assert_eq!(within(watch.message()).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_stream_that_waits_up_to_its_deadline_times_out() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    lease(&mut one, asking("orders", "ann")).await;
    let waiting = v1::HoldRequest { wait_timeout: seconds(600), ..holding("orders", "bob") };
    let mut request = Request::new(waiting);
    request.set_timeout(Duration::from_secs(3));
    let mut stream = within(two.hold(request)).await.unwrap().into_inner();
    assert!(matches!(news(&mut stream).await, Event::TimedOut(_)));
    assert!(event(&mut stream).await.is_none());
}

#[tokio::test]
async fn a_daemon_that_stops_leaves_leases_to_others_and_tells_everybody() {
    let (_cluster, served, [mut one, mut two]) = pair().await;
    let mut stream = hold(&mut one, holding("held", "ann")).await;
    let acquired = held(&mut stream).await;
    let other = lease(&mut two, asking("other", "bob")).await;
    let in_line = start({
        let mut one = one.clone();
        async move { one.acquire(waiting("other", "ann")).await }
    });
    until(&two, "other", |lock| lock.waiters == 1).await;
    let watching = v1::WatchLockRequest { name: "other".to_owned() };
    let mut watch = within(one.watch_lock(watching)).await.unwrap().into_inner();
    within(watch.message()).await.unwrap().expect("the holder");

    let [first, _second] = served;
    first.stop.send(()).unwrap();
    match news(&mut stream).await {
        Event::Ended(Ended { remaining }) => assert!(length(&remaining) > Duration::from_secs(200)),
        other => panic!("{other:?}"),
    }
    assert!(event(&mut stream).await.is_none());
    for status in [within(in_line).await.unwrap().unwrap_err(), within(watch.message()).await.unwrap_err()] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    }
    within(first.task).await.unwrap().unwrap();
    assert_eq!(extend(&mut two, &acquired).await.unwrap().fencing_token, acquired.fencing_token);
    until(&two, "other", |lock| lock.waiters == 0).await;
    assert!(release(&mut two, &other).await);
}
