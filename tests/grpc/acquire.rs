//! Acquire, Extend, Release, and standing in line.

use std::time::Duration;

use majorityd::proto::v1;
use prost::Message;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::stage::*;

#[tokio::test]
async fn a_free_lock_is_had_with_the_documented_defaults() {
    let (_cluster, _served, mut client) = alone().await;
    let request = v1::AcquireRequest { name: "orders".to_owned(), ..Default::default() };
    let lease = lease(&mut client, request).await;
    assert_eq!((lease.name.as_str(), lease.ttl), ("orders", seconds(30)));
    assert!(lease.owner.starts_with("anonymous-") && lease.owner.len() > 32, "{}", lease.owner);
    assert!(lease.lease_id.len() == 32 && lease.lease_id.bytes().all(|b| b.is_ascii_hexdigit()));
    assert!((1..1 << 53).contains(&lease.fencing_token));
    // The margin for clocks is taken off: even at once it is less than the whole.
    let remaining = length(&lease.remaining);
    assert!(remaining > Duration::ZERO && remaining < Duration::from_secs(30), "{remaining:?}");
}

#[tokio::test]
async fn contention_tells_all_about_the_holder_but_its_secret() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let attributes = [("host".to_owned(), "a.example".to_owned()), ("ü".to_owned(), "ß".to_owned())];
    let request = v1::AcquireRequest { attributes: attributes.clone().into(), ..asking("orders", "ann") };
    let held = lease(&mut one, request).await;

    let contention = contention(&mut two, asking("orders", "bob")).await;
    let holder = contention.holder.clone().expect("the holder is known");
    assert_eq!((holder.owner.as_str(), holder.fencing_token), ("ann", held.fencing_token));
    assert_eq!((holder.ttl, contention.waiters), (seconds(300), 0));
    assert!(length(&holder.remaining) <= Duration::from_secs(300));
    assert!(length(&holder.remaining) > Duration::from_secs(200));
    assert!(holder.acquire_time.is_some_and(|time| time.seconds > 1_700_000_000));
    assert_eq!(holder.attributes, attributes.into());
    assert!(!shows(&contention, &held.lease_id));
}

/// Whether a message has the lease id in it, as text or as bytes.
pub fn shows(message: &impl Message, lease_id: &str) -> bool {
    let encoded = message.encode_to_vec();
    let raw = u128::from_str_radix(lease_id, 16).unwrap().to_be_bytes();
    let has = |secret: &[u8]| encoded.windows(secret.len()).any(|window| window == secret);
    has(lease_id.as_bytes()) || has(&raw)
}

#[tokio::test]
async fn the_same_owner_gets_the_same_token_under_a_new_id_that_voids_the_old() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let first = lease(&mut one, asking("orders", "ann")).await;
    let again = lease(&mut two, v1::AcquireRequest { ttl: seconds(200), ..asking("orders", "ann") }).await;
    assert_eq!(again.fencing_token, first.fencing_token);
    assert_ne!(again.lease_id, first.lease_id);
    assert_eq!(again.ttl, seconds(200));

    for client in [&mut one, &mut two] {
        let status = extend(client, &first).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "LEASE_LOST"));
        assert_eq!(metadata(&status, "lock"), "orders");
        assert!(!release(client, &first).await);
    }
    let extended = extend(&mut one, &again).await.unwrap();
    assert_eq!((extended.fencing_token, extended.lease_id), (again.fencing_token, again.lease_id));
    assert_eq!(get(&mut one, "orders").await.holder.unwrap().owner, "ann");
}

#[tokio::test]
async fn callers_without_an_owner_are_never_the_same() {
    let (_cluster, _served, mut client) = alone().await;
    let first = lease(&mut client, asking("orders", "")).await;
    let contention = contention(&mut client, asking("orders", "")).await;
    assert_eq!(contention.holder.unwrap().owner, first.owner);
}

#[tokio::test]
async fn extending_keeps_token_and_id_and_takes_another_length() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let first = lease(&mut one, v1::AcquireRequest { ttl: seconds(30), ..asking("orders", "ann") }).await;
    let longer = extend_for(&mut two, &first, seconds(60)).await.unwrap();
    assert_eq!((longer.ttl, &longer.lease_id), (seconds(60), &first.lease_id));
    assert_eq!((longer.fencing_token, longer.owner.as_str()), (first.fencing_token, "ann"));
    assert!(length(&longer.remaining) > Duration::from_secs(30));
    // Without a length it stays as it was last.
    let same = extend(&mut one, &first).await.unwrap();
    assert_eq!(same.ttl, seconds(60));
    assert_eq!(get(&mut one, "orders").await.holder.unwrap().ttl, seconds(60));
}

#[tokio::test]
async fn extending_what_is_not_held_is_lost() {
    let (_cluster, _served, mut client) = alone().await;
    let first = lease(&mut client, asking("orders", "ann")).await;
    let elsewhere = v1::Lease { name: "never used".to_owned(), ..first.clone() };
    assert_eq!(reason(&extend(&mut client, &elsewhere).await.unwrap_err()), "LEASE_LOST");
    assert!(release(&mut client, &first).await);
    assert_eq!(reason(&extend(&mut client, &first).await.unwrap_err()), "LEASE_LOST");
    let second = lease(&mut client, asking("orders", "bob")).await;
    assert!(second.fencing_token > first.fencing_token);
    let status = extend(&mut client, &first).await.unwrap_err();
    assert_eq!(reason(&status), "LEASE_LOST");
    assert!(status.get_details_retry_info().is_none());
}

#[tokio::test]
async fn a_lease_that_ran_out_can_be_extended_until_somebody_else_has_had_the_lock() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let short = v1::AcquireRequest { ttl: seconds(1), ..asking("orders", "ann") };
    let first = lease(&mut one, short).await;
    let ran_out = |lock: &v1::Lock| lock.holder.as_ref().is_some_and(|h| h.remaining == seconds(0));
    until(&two, "orders", ran_out).await;
    let extended = extend(&mut one, &first).await.unwrap();
    assert_eq!(extended.fencing_token, first.fencing_token);
    contention(&mut two, asking("orders", "bob")).await;

    // Once more, and this time bob waits for it.
    let second = lease(&mut two, waiting("orders", "bob")).await;
    assert!(second.fencing_token > first.fencing_token);
    assert_eq!(reason(&extend(&mut one, &first).await.unwrap_err()), "LEASE_LOST");
    assert!(!release(&mut one, &first).await);
    assert_eq!(get(&mut one, "orders").await.holder.unwrap().owner, "bob");
}

#[tokio::test]
async fn releasing_may_be_repeated_at_any_daemon() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let first = lease(&mut one, asking("orders", "ann")).await;
    assert!(release(&mut two, &first).await);
    assert!(!release(&mut two, &first).await);
    assert!(!release(&mut one, &first).await);
    let lock = get(&mut one, "orders").await;
    assert_eq!((lock.holder, lock.waiters), (None, 0));
    let never = v1::Lease { name: "never used".to_owned(), ..first };
    assert!(!release(&mut one, &never).await);
}

/// With looks so far apart that only being told can be the reason.
#[tokio::test]
async fn who_waits_at_another_daemon_is_woken_by_the_release() {
    let mut cluster = Cluster::new();
    cluster.settings.locks.look_interval = Duration::from_secs(3600);
    let served = [cluster.daemon().await, cluster.daemon().await];
    let (mut one, mut two) = (served[0].client().await, served[1].client().await);
    for round in 0..10 {
        let held = lease(&mut one, asking("orders", "ann")).await;
        let waiter = acquiring(&two, waiting("orders", "bob"));
        until(&one, "orders", |lock| lock.waiters == 1).await;
        assert!(release(&mut one, &held).await);
        let got = within(waiter).await.unwrap();
        assert!(got.fencing_token > held.fencing_token, "round {round}");
        assert!(release(&mut two, &got).await);
    }
    assert_eq!(get(&mut one, "orders").await.waiters, 0);
}

#[tokio::test]
async fn who_waits_gets_the_lock_in_order_of_arrival_over_all_daemons() {
    let mut cluster = Cluster::new();
    // Who has come hears its position with the next look.
    cluster.settings.locks.look_interval = Duration::from_millis(100);
    // Whoever is late for its turn loses it, and this machine may be busy.
    cluster.settings.locks.offer_grace = Duration::from_secs(60);
    let served = [cluster.daemon().await, cluster.daemon().await];
    let mut clients = [served[0].client().await, served[1].client().await];
    let mut current = lease(&mut clients[0], asking("orders", "first")).await;
    let mut streams = Vec::new();
    for number in 0..9 {
        let owner = format!("waiter {number}");
        let request = v1::HoldRequest { wait_timeout: seconds(600), ..holding("orders", &owner) };
        // Two at the one, then one at the other.
        let mut stream = hold(&mut clients[usize::from(number % 3 == 2)], request).await;
        let first = event(&mut stream).await.unwrap().unwrap();
        assert!(matches!(first, v1::hold_response::Event::Waiting(_)), "{first:?}");
        streams.push(stream);
        // Who comes to two daemons in one millisecond comes at the same time.
        pause().await;
    }
    for (number, mut stream) in streams.into_iter().enumerate() {
        assert!(release(&mut clients[0], &current).await);
        let next = held(&mut stream).await;
        assert_eq!(next.owner, format!("waiter {number}"));
        assert!(next.fencing_token > current.fencing_token);
        current = next;
    }
}

#[tokio::test]
async fn a_wait_that_ends_without_the_lock_is_answered_with_who_has_it() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let held = lease(&mut one, asking("orders", "ann")).await;
    for client in [&mut one, &mut two] {
        let request = v1::AcquireRequest { wait_timeout: millis(300), ..asking("orders", "bob") };
        let contention = contention(client, request).await;
        assert_eq!(contention.holder.unwrap().fencing_token, held.fencing_token);
    }
    until(&one, "orders", |lock| lock.waiters == 0).await;
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_answered_before_it() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let held = lease(&mut one, asking("orders", "ann")).await;
    let mut request = Request::new(waiting("orders", "bob"));
    // The client gives up by itself at the deadline: an answer at all is one in time.
    request.set_timeout(Duration::from_secs(3));
    let answer = within(two.acquire(request)).await.unwrap().into_inner();
    match answer.outcome.unwrap() {
        v1::acquire_response::Outcome::Contention(contention) => {
            assert_eq!(contention.holder.unwrap().fencing_token, held.fencing_token);
        }
        acquired => panic!("{acquired:?}"),
    }
    until(&one, "orders", |lock| lock.waiters == 0).await;
}

#[tokio::test]
async fn a_wait_that_is_cancelled_leaves_nothing_behind() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let held = lease(&mut one, asking("orders", "ann")).await;
    for client in [&one, &two] {
        let waiter = acquiring(client, waiting("orders", "bob"));
        until(client, "orders", |lock| lock.waiters == 1).await;
        waiter.abort();
        until(client, "orders", |lock| lock.waiters == 0).await;
    }
    assert!(release(&mut one, &held).await);
    assert_eq!(get(&mut two, "orders").await.holder, None);
    lease(&mut two, asking("orders", "carl")).await;
}

/// Cancelled at the very moment of the release: the lock is had by nobody, or was given back.
#[tokio::test]
async fn a_lock_that_was_got_for_somebody_who_left_is_given_back() {
    let (_cluster, _served, [mut one, two]) = pair().await;
    for round in 0..20 {
        let held = lease(&mut one, asking("orders", "ann")).await;
        let waiter = acquiring(if round % 2 == 0 { &one } else { &two }, waiting("orders", "bob"));
        until(&one, "orders", |lock| lock.waiters == 1).await;
        let releasing = start({
            let mut one = one.clone();
            async move { release(&mut one, &held).await }
        });
        waiter.abort();
        assert!(within(releasing).await.unwrap());
        if let Ok(lease) = within(waiter).await {
            assert!(release(&mut one, &lease).await);
        }
        until(&one, "orders", |lock| lock.holder.is_none() && lock.waiters == 0).await;
    }
}

#[tokio::test]
async fn an_owner_does_not_stand_in_line_for_what_it_holds() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let held = lease(&mut one, asking("orders", "ann")).await;
    let waiters = [acquiring(&one, waiting("orders", "bob")), acquiring(&two, waiting("orders", "carl"))];
    until(&one, "orders", |lock| lock.waiters == 2).await;
    for client in [&mut one, &mut two] {
        let again = lease(client, waiting("orders", "ann")).await;
        assert_eq!(again.fencing_token, held.fencing_token);
    }
    waiters.into_iter().for_each(|waiter| waiter.abort());
}

#[tokio::test]
async fn the_daemons_own_answer_is_there_before_the_clients_deadline() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    let mut client = served.client().await;
    let held = lease(&mut client, asking("orders", "ann")).await;
    cluster.set_network(&[0, 1, 2], Network::Cut);
    // One deadline before the daemon's patience with the nodes ends, one after it.
    for timeout in [1, 6] {
        let timeout = Duration::from_secs(timeout);
        fn by<T>(message: T, timeout: Duration) -> Request<T> {
            let mut request = Request::new(message);
            request.set_timeout(timeout);
            request
        }
        let (name, lease_id) = (held.name.clone(), held.lease_id.clone());
        let extending = v1::ExtendRequest { name: name.clone(), lease_id, ttl: None };
        let statuses = [
            client.get_lock(by(v1::GetLockRequest { name }, timeout)).await.unwrap_err(),
            client.acquire(by(asking("orders", "bob"), timeout)).await.unwrap_err(),
            client.acquire(by(waiting("other", "bob"), timeout)).await.unwrap_err(),
            client.extend(by(extending, timeout)).await.unwrap_err(),
            client.list_locks(by(v1::ListLocksRequest::default(), timeout)).await.unwrap_err(),
        ];
        for status in statuses {
            let reason = reason(&status);
            let expected = match reason.as_str() {
                "NO_QUORUM" => Code::Unavailable,
                "DEADLINE_EXCEEDED" => Code::DeadlineExceeded,
                _ => panic!("{status:?}"),
            };
            assert_eq!(status.code(), expected);
        }
    }
    // Nothing happened.
    cluster.set_network(&[0, 1, 2], Network::Whole);
    let lock = until(&client, "orders", |_| true).await;
    assert_eq!(lock.holder.unwrap().fencing_token, held.fencing_token);
    assert_eq!(get(&mut client, "other").await.holder, None);
}

#[tokio::test]
async fn without_a_quorum_the_error_says_why_and_when_to_repeat() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    let mut client = served.client().await;
    cluster.set_network(&[0, 2], Network::Cut);
    let status = within(client.acquire(asking("orders", "ann"))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "NO_QUORUM"));
    for (key, value) in [("reachable", "1"), ("nodes", "3"), ("quorum", "2")] {
        assert_eq!(metadata(&status, key), value);
    }
    assert!(metadata(&status, "detail").contains("the cable is out"));
    assert!(status.get_details_retry_info().is_some());
    // One node back makes a quorum.
    cluster.set_network(&[0], Network::Whole);
    lease(&mut client, asking("orders", "ann")).await;
}

/// Everything arrives at the nodes and no answer comes back, so nobody can tell.
#[tokio::test]
async fn an_unknown_outcome_is_told_by_whether_a_repeat_is_harmless_and_is_undone() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    let other = cluster.daemon().await;
    let (mut client, mut elsewhere) = (served.client().await, other.client().await);
    // Warm promises: the next changes are sent without asking first.
    for name in ["named", "anonymous"] {
        let warm = lease(&mut client, asking(name, "ann")).await;
        assert!(release(&mut client, &warm).await);
    }
    cluster.set_network(&[0, 1, 2], Network::Mute);
    let named = within(client.acquire(asking("named", "bob"))).await.unwrap_err();
    let anonymous = within(client.acquire(asking("anonymous", ""))).await.unwrap_err();
    assert_eq!((named.code(), reason(&named).as_str()), (Code::Unavailable, "OUTCOME_UNKNOWN"));
    assert!(named.get_details_retry_info().is_some());
    assert_eq!((anonymous.code(), reason(&anonymous).as_str()), (Code::Unknown, "OUTCOME_UNKNOWN"));
    assert!(anonymous.get_details_retry_info().is_none());
    // It had been agreed on, as another daemon sees; as soon as the first can, it takes it back.
    assert_eq!(get(&mut elsewhere, "named").await.holder.unwrap().owner, "bob");
    cluster.set_network(&[0, 1, 2], Network::Whole);
    for name in ["named", "anonymous"] {
        until(&elsewhere, name, |lock| lock.holder.is_none()).await;
    }
}

/// The same for one that waits: it was the first in line when the answers stopped coming, and then went away.
#[tokio::test]
async fn an_unknown_outcome_of_a_waiter_that_left_is_undone() {
    for after in [Network::Mute, Network::Cut] {
        let mut cluster = Cluster::new();
        cluster.settings.quorum.patience = Duration::from_millis(300);
        cluster.settings.locks.look_interval = Duration::from_millis(100);
        let served = cluster.daemon_behind_network().await;
        let other = cluster.daemon().await;
        let (mut client, elsewhere) = (served.client().await, other.client().await);
        let warm = lease(&mut client, asking("orders", "ann")).await;
        assert!(release(&mut client, &warm).await);
        cluster.set_network(&[0, 1, 2], Network::Mute);
        let waiter = start({
            let mut client = client.clone();
            let mut request = Request::new(waiting("orders", "bob"));
            request.set_timeout(Duration::from_secs(5));
            async move { client.acquire(request).await }
        });
        until(&elsewhere, "orders", |lock| lock.holder.as_ref().is_some_and(|h| h.owner == "bob")).await;
        // What is found later, that nobody can be asked, does not make the outcome known.
        cluster.set_network(&[0, 1, 2], after);
        let status = within(waiter).await.unwrap().unwrap_err();
        let told = (status.code(), reason(&status));
        assert_eq!(told, (Code::Unavailable, "OUTCOME_UNKNOWN".to_owned()), "{after:?}");
        cluster.set_network(&[0, 1, 2], Network::Whole);
        until(&elsewhere, "orders", |lock| lock.holder.is_none() && lock.waiters == 0).await;
    }
}

/// However short the wait is, it is not shorter than a try.
#[tokio::test]
async fn the_shortest_wait_gets_a_free_lock() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    for round in 0..20 {
        let shortest = prost_types::Duration { seconds: 0, nanos: 1 };
        let name = format!("orders {round}");
        let request = v1::AcquireRequest { wait_timeout: Some(shortest), ..asking(&name, "ann") };
        let held = lease(&mut one, request).await;
        let request = v1::AcquireRequest { wait_timeout: Some(shortest), ..asking(&name, "bob") };
        let contention = contention(&mut two, request).await;
        assert_eq!(contention.holder.unwrap().fencing_token, held.fencing_token);
    }
}
