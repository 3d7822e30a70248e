//! What others see of a lock: GetLock, ListLocks, WatchLock, CheckToken; and ForceRelease.

use std::collections::BTreeSet;

use futures::StreamExt;
use majorityd::proto::v1;
use tonic::{Code, Streaming};

use crate::acquire::shows;
use crate::stage::*;

#[tokio::test]
async fn a_name_that_nobody_used_is_a_lock_that_nobody_holds() {
    let (_cluster, _served, mut client) = alone().await;
    let lock = get(&mut client, "never used").await;
    assert_eq!((lock.name.as_str(), &lock.holder, lock.waiters), ("never used", &None, 0));
    assert!(lock.nodes.len() >= 2 && lock.nodes.iter().all(|node| *node < 3), "{lock:?}");
}

#[tokio::test]
async fn nobody_but_the_holder_ever_sees_the_lease_id() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let watching = v1::WatchLockRequest { name: "orders".to_owned() };
    let mut watch = within(two.watch_lock(watching)).await.unwrap().into_inner();
    assert_eq!(holder(&mut watch).await, None);
    let held = lease(&mut one, asking("orders", "ann")).await;
    let waiter = acquiring(&one, waiting("orders", "bob"));
    until(&two, "orders", |lock| lock.waiters == 1).await;
    let id = &held.lease_id;
    for client in [&mut one, &mut two] {
        assert!(!shows(&get(client, "orders").await, id));
        assert!(!shows(&contention(client, asking("orders", "carl")).await, id));
        let list = within(client.list_locks(v1::ListLocksRequest::default())).await.unwrap().into_inner();
        assert!(list.locks.len() == 1 && !shows(&list, id));
    }
    assert!(!shows(&within(watch.message()).await.unwrap().expect("an event"), id));
    let wrong = force(&mut one, "orders", held.fencing_token - 1).await.unwrap_err();
    assert!(!format!("{wrong:?}").contains(id.as_str()));
    assert!(!format!("{held:?}").contains(id.as_str()), "not even to a log of the client");
    waiter.abort();
}

async fn page(client: &mut Client, prefix: &str, page_size: i32, token: &str) -> v1::ListLocksResponse {
    let (prefix, page_token) = (prefix.to_owned(), token.to_owned());
    within(client.list_locks(v1::ListLocksRequest { prefix, page_size, page_token }))
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_has_every_lock_once_in_byte_order_whatever_the_page_size() {
    let (_cluster, _served, [one, mut two]) = pair().await;
    let mut names: Vec<String> = (0..500).map(|number| format!("job/{number}")).collect();
    // A prefix of a name, names around the prefix, and one past ASCII.
    names.extend(["job/", "job", "jobs", "job0", "job/ü", "a", "z"].map(str::to_owned));
    let taken = futures::stream::iter(names.clone()).map(|name| {
        let mut client = one.clone();
        async move { lease(&mut client, asking(&name, "ann")).await }
    });
    let leases: Vec<_> = taken.buffer_unordered(50).collect().await;
    assert_eq!(leases.len(), names.len());

    let mut expected: Vec<&String> = names.iter().filter(|name| name.starts_with("job/")).collect();
    expected.sort();
    for page_size in [7, 1_000, 0] {
        let mut listed = Vec::new();
        let mut token = String::new();
        loop {
            let page = page(&mut two, "job/", page_size, &token).await;
            let most = if page_size == 0 { 100 } else { page_size as usize };
            assert!(page.locks.len() <= most);
            assert!(page.locks.iter().all(|lock| lock.holder.as_ref().is_some_and(|h| h.owner == "ann")));
            listed.extend(page.locks.into_iter().map(|lock| lock.name));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(listed.iter().collect::<Vec<_>>(), expected, "page size {page_size}");
    }
    let all: Vec<String> = page(&mut two, "", 1_000, "").await.locks.into_iter().map(|l| l.name).collect();
    assert!(all.is_sorted() && all.len() == names.len());

    // A token belongs to its prefix.
    let first = page(&mut two, "job/", 7, "").await;
    let (prefix, page_token) = ("other/".to_owned(), first.next_page_token);
    let status = two.list_locks(v1::ListLocksRequest { prefix, page_size: 7, page_token }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_PAGE_TOKEN"));
}

#[tokio::test]
async fn a_list_has_what_is_held_or_waited_for_and_nothing_else() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let mut leases = Vec::new();
    for name in ["a", "b", "c", "d"] {
        leases.push(lease(&mut one, asking(name, "ann")).await);
    }
    let waiter = acquiring(&two, waiting("c", "bob"));
    until(&one, "c", |lock| lock.waiters == 1).await;
    assert!(release(&mut one, &leases[1]).await);
    force(&mut one, "d", leases[3].fencing_token).await.unwrap();
    contention(&mut two, asking("a", "bob")).await;
    get(&mut two, "looked at").await;
    let listed = page(&mut two, "", 0, "").await;
    let shown: Vec<_> = listed.locks.iter().map(|lock| (lock.name.as_str(), lock.waiters)).collect();
    assert_eq!(shown, [("a", 0), ("c", 1)]);
    assert_eq!(listed.next_page_token, "");
    // A lease that has run out is shown until somebody takes the lock: it can still be extended.
    waiter.abort();
    until(&one, "c", |lock| lock.waiters == 0).await;
    assert!(release(&mut one, &leases[2]).await);
    assert!(release(&mut one, &leases[0]).await);
    assert!(page(&mut one, "", 0, "").await.locks.is_empty());
}

/// The token of the holder in the next event.
async fn holder(watch: &mut Streaming<v1::WatchLockResponse>) -> Option<u64> {
    let event = within(watch.message()).await.unwrap().expect("a watch does not end");
    event.holder.map(|holder| holder.fencing_token)
}

#[tokio::test]
async fn a_watch_sees_every_change_of_holder_at_any_daemon_with_rising_tokens() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let mut watches = Vec::new();
    for client in [&mut one, &mut two] {
        let watching = v1::WatchLockRequest { name: "leader".to_owned() };
        watches.push(within(client.watch_lock(watching)).await.unwrap().into_inner());
    }
    for watch in &mut watches {
        assert_eq!(holder(watch).await, None);
    }
    let mut highest = 0;
    for round in 0..6 {
        let (client, other) = if round % 2 == 0 { (&mut one, &mut two) } else { (&mut two, &mut one) };
        let held = lease(client, asking("leader", &format!("candidate {round}"))).await;
        assert!(held.fencing_token > highest);
        highest = held.fencing_token;
        for watch in &mut watches {
            assert_eq!(holder(watch).await, Some(highest));
        }
        // What is not a change of holder is not told: the next event is that of the end.
        extend(other, &held).await.unwrap();
        let again = lease(other, asking("leader", &format!("candidate {round}"))).await;
        match round % 3 {
            0 => assert!(release(other, &again).await),
            _ => force(other, "leader", highest).await.unwrap(),
        }
        for watch in &mut watches {
            assert_eq!(holder(watch).await, None);
        }
    }
    // Who opens a watch later starts with the holder.
    let held = lease(&mut one, asking("leader", "ann")).await;
    let watching = v1::WatchLockRequest { name: "leader".to_owned() };
    let mut late = within(two.watch_lock(watching)).await.unwrap().into_inner();
    assert_eq!(holder(&mut late).await, Some(held.fencing_token));
}

#[tokio::test]
async fn a_watch_sees_a_lock_pass_from_holder_to_holder() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let mut current = lease(&mut one, asking("leader", "first")).await;
    let watching = v1::WatchLockRequest { name: "leader".to_owned() };
    let mut watch = within(two.watch_lock(watching)).await.unwrap().into_inner();
    assert_eq!(holder(&mut watch).await, Some(current.fencing_token));
    for number in 0..5 {
        let waiter = acquiring(&two, waiting("leader", &format!("waiter {number}")));
        until(&two, "leader", |lock| lock.waiters == 1).await;
        assert!(release(&mut one, &current).await);
        let next = within(waiter).await.unwrap();
        // That nobody held it in between may be seen or not.
        let seen = match holder(&mut watch).await {
            None => holder(&mut watch).await,
            seen => seen,
        };
        assert_eq!(seen, Some(next.fencing_token));
        assert!(next.fencing_token > current.fencing_token);
        current = next;
    }
}

#[tokio::test]
async fn only_the_token_that_holds_the_lock_can_be_released_by_force() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let held = lease(&mut one, asking("orders", "ann")).await;
    for wrong in [1, held.fencing_token - 1, held.fencing_token + 1, (1 << 53) - 1] {
        let status = force(&mut two, "orders", wrong).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "TOKEN_NOT_HELD"));
        assert_eq!(metadata(&status, "fencing_token"), wrong.to_string());
        assert_eq!(metadata(&status, "highest_fencing_token"), held.fencing_token.to_string());
    }
    assert_eq!(get(&mut one, "orders").await.holder.unwrap().owner, "ann");

    force(&mut two, "orders", held.fencing_token).await.unwrap();
    assert_eq!(get(&mut one, "orders").await.holder, None);
    assert_eq!(reason(&extend(&mut one, &held).await.unwrap_err()), "LEASE_LOST");
    assert!(!release(&mut one, &held).await);
    // A repeat hits nobody.
    let next = lease(&mut one, asking("orders", "bob")).await;
    assert!(next.fencing_token > held.fencing_token);
    let status = force(&mut two, "orders", held.fencing_token).await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_NOT_HELD");
    assert_eq!(get(&mut one, "orders").await.holder.unwrap().fencing_token, next.fencing_token);
}

#[tokio::test]
async fn a_lock_released_by_force_goes_to_who_waits() {
    let (_cluster, _served, [mut one, two]) = pair().await;
    let held = lease(&mut one, asking("orders", "ann")).await;
    let waiter = acquiring(&two, waiting("orders", "bob"));
    until(&one, "orders", |lock| lock.waiters == 1).await;
    force(&mut one, "orders", held.fencing_token).await.unwrap();
    assert!(within(waiter).await.unwrap().fencing_token > held.fencing_token);
}

#[tokio::test]
async fn a_token_is_checked_against_the_highest_before_and_after_a_takeover() {
    let (_cluster, _served, [mut one, mut two]) = pair().await;
    let answer = |highest, held, highest_fencing_token| v1::CheckTokenResponse {
        highest,
        held,
        highest_fencing_token,
    };
    assert_eq!(check_token(&mut one, "orders", 5).await, answer(false, false, 0));

    let short = v1::AcquireRequest { ttl: seconds(1), ..asking("orders", "ann") };
    let first = lease(&mut one, short).await;
    let token = first.fencing_token;
    // Whether it is held is a matter of a second.
    let check = check_token(&mut two, "orders", token).await;
    assert_eq!((check.highest, check.highest_fencing_token), (true, token));
    extend_for(&mut one, &first, seconds(300)).await.unwrap();
    assert_eq!(check_token(&mut two, "orders", token).await, answer(true, true, token));
    assert_eq!(check_token(&mut two, "orders", token - 1).await, answer(false, false, token));
    assert_eq!(check_token(&mut two, "orders", token + 1).await, answer(false, false, token));

    // Ran out, but nobody else has had it.
    extend_for(&mut one, &first, seconds(1)).await.unwrap();
    within(async {
        while check_token(&mut two, "orders", token).await.held {
            pause().await;
        }
    })
    .await;
    assert_eq!(check_token(&mut two, "orders", token).await, answer(true, false, token));

    let second = lease(&mut two, waiting("orders", "bob")).await;
    let next = second.fencing_token;
    assert_eq!(check_token(&mut one, "orders", token).await, answer(false, false, next));
    assert_eq!(check_token(&mut one, "orders", next).await, answer(true, true, next));
    assert!(release(&mut two, &second).await);
    assert_eq!(check_token(&mut one, "orders", next).await, answer(true, false, next));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_only_rise_whoever_gets_the_lock_wherever() {
    let (_cluster, _served, clients) = pair().await;
    let workers = (0..8).map(|number| {
        let mut client = clients[number % 2].clone();
        start(async move {
            let mut tokens = Vec::new();
            for _ in 0..10 {
                let held = lease(&mut client, waiting("orders", &format!("worker {number}"))).await;
                tokens.push(held.fencing_token);
                let check = check_token(&mut client, "orders", held.fencing_token).await;
                assert!(check.highest && check.held, "{check:?}");
                assert!(release(&mut client, &held).await);
            }
            assert!(tokens.is_sorted());
            tokens
        })
    });
    let mut tokens = BTreeSet::new();
    for worker in workers.collect::<Vec<_>>() {
        for token in within(worker).await.unwrap() {
            assert!(tokens.insert(token), "no token is granted twice");
        }
    }
    assert_eq!(tokens.len(), 80);
}
