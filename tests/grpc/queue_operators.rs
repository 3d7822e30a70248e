//! Queues as their operators see them: counts, settings, dead items, and what is removed.

use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::{ItemState, LeaseOutcome};
use tonic::{Code, Status};

use crate::queue::*;
use crate::stage::*;

async fn get(client: &mut QueueClient, queue: &str) -> Result<v1::Queue, Status> {
    let request = v1::GetQueueRequest { queue: queue.to_owned() };
    within(client.get_queue(request)).await.map(|answer| answer.into_inner().queue.expect("always there"))
}

/// Looks at a queue until it has so many items that are ready, delayed, leased, dead and done: the counts are near while
/// a node has yet to hear of a change.
#[track_caller]
fn until_counts(
    client: &QueueClient,
    queue: &str,
    counts: [u64; 5],
) -> impl Future<Output = v1::Queue> + use<> {
    let (mut client, queue) = (client.clone(), queue.to_owned());
    within(async move {
        loop {
            let shown = get(&mut client, &queue).await.unwrap();
            if [shown.ready, shown.delayed, shown.leased, shown.dead, shown.done] == counts {
                return shown;
            }
            pause().await;
        }
    })
}

async fn configure(client: &mut QueueClient, request: v1::ConfigureQueueRequest) -> v1::QueueSettings {
    let answer = within(client.configure_queue(request)).await.unwrap();
    answer.into_inner().settings.expect("always there")
}

fn configuring(queue: &str) -> v1::ConfigureQueueRequest {
    v1::ConfigureQueueRequest { queue: queue.to_owned(), ..Default::default() }
}

async fn dead_page(client: &mut QueueClient, page_size: i32, page_token: &str) -> v1::ListDeadResponse {
    let (queue, page_token) = ("mail".to_owned(), page_token.to_owned());
    let request = v1::ListDeadRequest { queue, page_size, page_token };
    within(client.list_dead(request)).await.unwrap().into_inner()
}

/// All dead items, page by page.
async fn dead(client: &mut QueueClient, page_size: i32) -> Vec<v1::Item> {
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let page = dead_page(client, page_size, &token).await;
        assert!(page.items.len() <= page_size as usize);
        found.extend(page.items);
        token = page.next_page_token;
        if token.is_empty() {
            return found;
        }
    }
}

async fn redrive(client: &mut QueueClient, queue: &str, ids: &[&str]) -> Result<u64, Status> {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let request = v1::RedriveRequest { queue: queue.to_owned(), ids };
    within(client.redrive(request)).await.map(|answer| answer.into_inner().redriven)
}

async fn purge(client: &mut QueueClient, queue: &str, states: &[ItemState]) -> Result<u64, Status> {
    let states = states.iter().map(|state| i32::from(*state)).collect();
    let request = v1::PurgeRequest { queue: queue.to_owned(), states };
    within(client.purge(request)).await.map(|answer| answer.into_inner().purged)
}

async fn delete(client: &mut QueueClient, queue: &str) -> Result<u64, Status> {
    let request = v1::DeleteQueueRequest { queue: queue.to_owned() };
    within(client.delete_queue(request)).await.map(|answer| answer.into_inner().items)
}

#[track_caller]
fn not_found<T: std::fmt::Debug>(answer: Result<T, Status>, why: &str) -> Status {
    let status = answer.expect_err(why);
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, why), "{status:?}");
    status
}

/// Items of a queue in which one attempt is all there is, all of them dead.
async fn bury(client: &mut QueueClient, items: &[&str]) {
    configure(client, v1::ConfigureQueueRequest { max_attempts: Some(1), ..configuring("mail") }).await;
    put(client, "mail", items.iter().map(|id| item(id, "body")).collect()).await;
    let leased = reserve(client, reserving("mail", 1_000)).await;
    assert_eq!(leased.len(), items.len());
    let nacks = leased.iter().map(|item| nack_of(item, None)).collect();
    assert!(nack(client, "mail", nacks).await.iter().all(|outcome| *outcome == LeaseOutcome::Buried));
}

#[tokio::test]
async fn a_queue_says_how_many_items_it_has_and_of_which_kind() {
    let (_cluster, _served, [mut one, two]) = queue_pair().await;
    configure(&mut one, v1::ConfigureQueueRequest { max_attempts: Some(1), ..configuring("mail") }).await;
    let shown = until_counts(&two, "mail", [0; 5]).await;
    assert_eq!((shown.name.as_str(), shown.oldest_ready_age), ("mail", None));
    put(&mut one, "mail", ["a", "b", "c", "d", "e"].map(|id| item(id, "x")).into()).await;
    let later = v1::NewItem { delay: seconds(3_600), ..item("later", "x") };
    put(&mut one, "mail", vec![later]).await;
    let shown = until_counts(&two, "mail", [5, 1, 0, 0, 0]).await;
    assert!(shown.oldest_ready_age.is_some());
    let leased = reserve(&mut one, reserving("mail", 3)).await;
    until_counts(&two, "mail", [2, 1, 3, 0, 0]).await;
    ack(&mut one, "mail", &leased[0]).await;
    nack(&mut one, "mail", vec![nack_of(&leased[1], None)]).await;
    until_counts(&two, "mail", [2, 1, 1, 1, 1]).await;
}

#[tokio::test]
async fn settings_are_the_same_at_every_daemon_and_change_one_by_one() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    not_found(get(&mut two, "mail").await, "NO_SUCH_QUEUE");
    let made = configure(&mut one, configuring("mail")).await;
    let defaults = v1::QueueSettings {
        lease_ttl: seconds(30),
        max_attempts: 10,
        backoff_min: seconds(1),
        backoff_max: seconds(300),
        max_items: 0,
        done_retention: seconds(60),
    };
    assert_eq!(made, defaults);
    let asked = v1::ConfigureQueueRequest {
        lease_ttl: seconds(20),
        max_items: Some(7),
        done_retention: seconds(0),
        ..configuring("mail")
    };
    let changed =
        v1::QueueSettings { lease_ttl: seconds(20), max_items: 7, done_retention: seconds(0), ..defaults };
    assert_eq!(configure(&mut one, asked).await, changed);
    let more = v1::ConfigureQueueRequest { max_attempts: Some(0), ..configuring("mail") };
    let changed = v1::QueueSettings { max_attempts: 0, ..changed };
    assert_eq!(configure(&mut two, more).await, changed);
    assert_eq!(get(&mut one, "mail").await.unwrap().settings, Some(changed));

    // Daemons go by them within some seconds.
    put(&mut one, "mail", vec![item("a", "x")]).await;
    within(async {
        loop {
            let asked = v1::ReserveRequest { queue: "mail".to_owned(), ..Default::default() };
            let items = reserve(&mut two, patiently(asked)).await;
            if length(&items[0].ttl) == Duration::from_secs(20) {
                return;
            }
            nack(&mut two, "mail", vec![nack_of(&items[0], seconds(0))]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_takes_items_again_when_some_are_done() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    configure(&mut one, v1::ConfigureQueueRequest { max_items: Some(2), ..configuring("mail") }).await;
    put(&mut one, "mail", vec![item("a", "x")]).await;
    put(&mut one, "mail", vec![item("b", "x")]).await;
    until_counts(&one, "mail", [2, 0, 0, 0, 0]).await;
    let full = (i32::from(Code::ResourceExhausted), "QUEUE_FULL".to_owned());
    assert_eq!(not_put(&mut one, "mail", item("c", "x")).await, full);
    // What is leased is still there.
    let leased = next(&mut two, "mail").await;
    assert_eq!(not_put(&mut one, "mail", item("c", "x")).await, full);
    ack(&mut two, "mail", &leased).await;
    until_counts(&one, "mail", [1, 0, 0, 0, 1]).await;
    let put = put(&mut one, "mail", vec![item("c", "x")]).await;
    assert!(!put[0].duplicate);
}

#[tokio::test]
async fn what_fails_too_often_is_set_aside_and_made_ready_again() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    bury(&mut one, &["a", "b", "c", "d", "e"]).await;
    assert_eq!(reserve(&mut two, reserving("mail", 10)).await, []);
    until_counts(&two, "mail", [0, 0, 0, 5, 0]).await;
    for page_size in [1, 2, 5, 500] {
        let found = dead(&mut two, page_size).await;
        let names: Vec<&str> = found.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e"], "pages of {page_size}");
        for item in found {
            assert_eq!((item.state(), item.attempts, item.payload.len()), (ItemState::Dead, 1, 0));
            assert_eq!(item.reason, "broke");
        }
    }
    let shown = look(&mut one, "mail", "a").await.unwrap();
    assert_eq!((shown.state(), shown.payload.as_ref()), (ItemState::Dead, &b"body"[..]));
    assert!(put(&mut one, "mail", vec![item("a", "other")]).await[0].duplicate, "it is still there");

    assert_eq!(redrive(&mut two, "mail", &["b", "nothing", "b"]).await.unwrap(), 1);
    let again = next(&mut one, "mail").await;
    assert_eq!((again.id.as_str(), again.attempt), ("b", 1));
    assert_eq!(redrive(&mut two, "mail", &["b"]).await.unwrap(), 0, "it is leased");
    assert_eq!(redrive(&mut two, "mail", &[]).await.unwrap(), 4);
    assert_eq!(redrive(&mut two, "mail", &[]).await.unwrap(), 0);
    assert_eq!(ids(&reserve(&mut one, reserving("mail", 10)).await), ["a", "c", "d", "e"]);
    assert_eq!(dead(&mut one, 10).await, []);
}

/// Nobody gave it back: its consumer is gone.
#[tokio::test]
async fn an_item_whose_last_lease_runs_out_is_dead() {
    let (cluster, _served, [mut one, two]) = queue_pair().await;
    configure(&mut one, v1::ConfigureQueueRequest { max_attempts: Some(1), ..configuring("mail") }).await;
    put(&mut one, "mail", vec![item("a", "x")]).await;
    next(&mut one, "mail").await;
    let waiter = waiting_for_one(&two, "mail");
    cluster.advance(PAST_EVERY_LEASE);
    put(&mut one, "mail", vec![item("b", "x")]).await;
    assert_eq!(within(waiter).await.unwrap().id, "b");
    let state = within(async {
        loop {
            let state = look(&mut one, "mail", "a").await.unwrap().state();
            if state != ItemState::Leased {
                return state;
            }
            pause().await;
        }
    });
    assert_eq!(state.await, ItemState::Dead);
}

#[tokio::test]
async fn what_is_purged_is_as_if_it_was_acked() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    let delayed = v1::NewItem { delay: seconds(3_600), ..item("delayed", "x") };
    put(&mut one, "mail", vec![item("leased", "x"), item("ready", "x"), delayed]).await;
    let leased = next(&mut one, "mail").await;
    until_counts(&two, "mail", [1, 1, 1, 0, 0]).await;
    assert_eq!(purge(&mut two, "mail", &[ItemState::Dead]).await.unwrap(), 0);
    assert_eq!(purge(&mut two, "mail", &[ItemState::Delayed]).await.unwrap(), 1);
    assert_eq!(look(&mut one, "mail", "delayed").await.unwrap().state(), ItemState::Done);
    assert_eq!(look(&mut one, "mail", "ready").await.unwrap().state(), ItemState::Ready);
    let states = [ItemState::Ready, ItemState::Leased];
    assert_eq!(purge(&mut two, "mail", &states).await.unwrap(), 2);
    assert_eq!(ack(&mut one, "mail", &leased).await, LeaseOutcome::AlreadyDone);
    assert!(put(&mut one, "mail", vec![item("ready", "x")]).await[0].duplicate);
    until_counts(&two, "mail", [0, 0, 0, 0, 3]).await;
}

#[tokio::test]
async fn a_queue_that_is_deleted_is_gone_with_all_that_was_in_it() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    bury(&mut one, &["dead"]).await;
    put(&mut one, "mail", vec![item("ready", "x"), item("leased", "x")]).await;
    until_counts(&two, "mail", [2, 0, 0, 1, 0]).await;
    assert_eq!(delete(&mut two, "mail").await.unwrap(), 3);
    let status = not_found(get(&mut one, "mail").await, "NO_SUCH_QUEUE");
    assert_eq!(metadata(&status, "queue"), "mail");
    for queue in ["mail", "never"] {
        let listing = v1::ListDeadRequest { queue: queue.to_owned(), ..Default::default() };
        not_found(within(one.list_dead(listing)).await, "NO_SUCH_QUEUE");
        not_found(redrive(&mut one, queue, &[]).await, "NO_SUCH_QUEUE");
        not_found(redrive(&mut one, queue, &["dead"]).await, "NO_SUCH_QUEUE");
        not_found(purge(&mut one, queue, &[ItemState::Ready]).await, "NO_SUCH_QUEUE");
        not_found(delete(&mut one, queue).await, "NO_SUCH_QUEUE");
        let status = not_found(look(&mut one, queue, "never").await, "NO_SUCH_ITEM");
        assert_eq!(
            (metadata(&status, "queue"), metadata(&status, "id")),
            (queue.to_owned(), "never".to_owned())
        );
        assert_eq!(reserve(&mut one, reserving(queue, 1)).await, []);
    }
    // Whoever puts makes it anew, with the settings of a new one.
    assert!(!put(&mut one, "mail", vec![item("new", "x")]).await[0].duplicate);
    let settings = get(&mut two, "mail").await.unwrap().settings.expect("always there");
    assert_eq!(settings.max_attempts, 10);
}

#[tokio::test]
async fn queues_are_listed_by_name_page_by_page() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    let names = ["a/1", "a/2", "a/3", "b", "k:", "ü"];
    for name in names {
        put(&mut one, name, vec![item("i", "x")]).await;
    }
    let mut list = async |prefix: &str, page_size: i32| {
        let mut found: Vec<v1::Queue> = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListQueuesRequest { prefix: prefix.to_owned(), page_size, page_token };
            let page = within(two.list_queues(request)).await.unwrap().into_inner();
            found.extend(page.queues);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    for page_size in [1, 2, 0] {
        let found = list("", page_size).await;
        let found: Vec<&str> = found.iter().map(|queue| queue.name.as_str()).collect();
        assert_eq!(found, names, "pages of {page_size}");
    }
    let found = list("a/", 2).await;
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|queue| queue.settings.is_some() && queue.name.starts_with("a/")));
    assert_eq!(list("c", 0).await, []);
}

/// Names that would mean something to Lua, Redis, MessagePack or a glob are names like others, of queues and of items.
#[tokio::test]
async fn names_mean_nothing_to_the_layers_below() {
    let (_cluster, served, mut client) = queue_alone().await;
    let long = "ü".repeat(256);
    let mut names = [&ODD_NAMES[..], &[&long]].concat();
    names.sort_unstable();
    for queue in &names {
        put(&mut client, queue, names.iter().map(|id| item(id, id)).collect()).await;
    }
    let mut keys = served.kv().await;
    for queue in &names {
        let found = reserve(&mut client, reserving(queue, 100)).await;
        assert_eq!(ids(&found), names, "{queue}");
        assert!(found.iter().all(|item| item.payload == item.id));
        let leases = found.iter().map(lease_of).collect();
        assert_eq!(ack_all(&mut client, queue, leases).await, vec![LeaseOutcome::Ok; names.len()]);
        assert_eq!(look(&mut client, queue, queue).await.unwrap().state(), ItemState::Done);
        assert_eq!(crate::kv::look(&mut keys, queue).await, None, "a key is another thing");
    }
    let listed = within(client.list_queues(v1::ListQueuesRequest::default())).await.unwrap().into_inner();
    let listed: Vec<&str> = listed.queues.iter().map(|queue| queue.name.as_str()).collect();
    assert_eq!(listed, names);
}
