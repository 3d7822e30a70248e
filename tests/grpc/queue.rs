//! Items one by one: Put, Reserve, Extend, Ack, Nack; order, repeats and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::new_item::Content;
use majorityd::proto::v1::put_response::result::Outcome as PutOutcome;
use majorityd::proto::v1::queue_service_extend_response::result::Outcome as Extended;
use majorityd::proto::v1::settle_result::Result as SettleOutcome;
use majorityd::proto::v1::{ItemState, LeaseOutcome};
use prost::Message;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};
use tonic_types::RpcStatusExt;

use crate::stage::*;

/// Longer than any lease here, with what clocks may differ by.
pub const PAST_EVERY_LEASE: Duration = Duration::from_secs(400);

/// Servers on which consumers look often: what is announced may be missed, and nobody here waits for that.
pub fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.settings.queues.look_interval = Duration::from_millis(100);
    cluster
}

/// Three servers, one daemon, one client.
pub async fn queue_alone() -> (Cluster, Served, QueueClient) {
    let cluster = cluster();
    let served = cluster.daemon().await;
    let client = served.queues().await;
    (cluster, served, client)
}

/// Three servers, two daemons, a client of each.
pub async fn queue_pair() -> (Cluster, [Served; 2], [QueueClient; 2]) {
    let cluster = cluster();
    let served = [cluster.daemon().await, cluster.daemon().await];
    let clients = [served[0].queues().await, served[1].queues().await];
    (cluster, served, clients)
}

/// Without an id if it is empty.
pub fn item(id: &str, text: &str) -> v1::NewItem {
    let id = Some(id.to_owned()).filter(|id| !id.is_empty());
    v1::NewItem { id, content: Some(Content::Text(text.to_owned())), ..Default::default() }
}

pub async fn try_put(
    client: &mut QueueClient,
    queue: &str,
    items: Vec<v1::NewItem>,
) -> Result<Vec<PutOutcome>, Status> {
    let request = v1::PutRequest { queue: queue.to_owned(), items };
    let answer = within(client.put(request)).await?.into_inner();
    Ok(answer.results.into_iter().map(|result| result.outcome.expect("set")).collect())
}

pub async fn put(
    client: &mut QueueClient,
    queue: &str,
    items: Vec<v1::NewItem>,
) -> Vec<v1::put_response::Put> {
    let results = try_put(client, queue, items).await.unwrap();
    let put = results.into_iter().map(|result| match result {
        PutOutcome::Put(put) => put,
        PutOutcome::Error(error) => panic!("{error:?}"),
    });
    put.collect()
}

/// The error of a put of one item, be it that of the call or of the item.
pub async fn not_put(client: &mut QueueClient, queue: &str, item: v1::NewItem) -> (i32, String) {
    match try_put(client, queue, vec![item]).await {
        Err(status) => (status.code().into(), reason(&status)),
        Ok(results) => match &results[..] {
            [PutOutcome::Error(error)] => (error.code, reason_in(error)),
            other => panic!("{other:?}"),
        },
    }
}

pub fn reason_in(error: &tonic_types::Status) -> String {
    error.get_error_details().error_info().expect("ErrorInfo").reason.clone()
}

/// For five minutes: nothing here runs out by itself unless a test says so.
pub fn reserving(queue: &str, max_items: i32) -> v1::ReserveRequest {
    v1::ReserveRequest {
        queue: queue.to_owned(),
        max_items: Some(max_items),
        lease_ttl: seconds(300),
        ..Default::default()
    }
}

pub fn patiently(request: v1::ReserveRequest) -> v1::ReserveRequest {
    v1::ReserveRequest { wait_timeout: seconds(600), ..request }
}

pub async fn reserve(client: &mut QueueClient, request: v1::ReserveRequest) -> Vec<v1::ReservedItem> {
    within(client.reserve(request)).await.unwrap().into_inner().items
}

/// The next item, which there is or will be.
pub async fn next(client: &mut QueueClient, queue: &str) -> v1::ReservedItem {
    let items = reserve(client, patiently(reserving(queue, 1))).await;
    assert_eq!(items.len(), 1);
    items.into_iter().next().unwrap()
}

/// A reserve in the background, for one that waits.
pub fn waiting_for_one(client: &QueueClient, queue: &str) -> JoinHandle<v1::ReservedItem> {
    let (mut client, queue) = (client.clone(), queue.to_owned());
    start(async move { next(&mut client, &queue).await })
}

pub fn lease_of(item: &v1::ReservedItem) -> v1::ItemLease {
    v1::ItemLease { id: item.id.clone(), lease_id: item.lease_id.clone() }
}

fn outcome(result: v1::SettleResult) -> LeaseOutcome {
    match result.result.expect("set") {
        SettleOutcome::Outcome(outcome) => LeaseOutcome::try_from(outcome).expect("known"),
        SettleOutcome::Error(error) => panic!("{error:?}"),
    }
}

pub async fn ack_all(client: &mut QueueClient, queue: &str, leases: Vec<v1::ItemLease>) -> Vec<LeaseOutcome> {
    let request = v1::AckRequest { queue: queue.to_owned(), leases };
    let answer = within(client.ack(request)).await.unwrap().into_inner();
    answer.results.into_iter().map(outcome).collect()
}

pub async fn ack(client: &mut QueueClient, queue: &str, item: &v1::ReservedItem) -> LeaseOutcome {
    ack_all(client, queue, vec![lease_of(item)]).await[0]
}

pub fn nack_of(item: &v1::ReservedItem, delay: Option<prost_types::Duration>) -> v1::ItemNack {
    let v1::ItemLease { id, lease_id } = lease_of(item);
    v1::ItemNack { id, lease_id, delay, reason: "broke".to_owned() }
}

pub async fn nack(client: &mut QueueClient, queue: &str, items: Vec<v1::ItemNack>) -> Vec<LeaseOutcome> {
    let request = v1::NackRequest { queue: queue.to_owned(), items };
    let answer = within(client.nack(request)).await.unwrap().into_inner();
    answer.results.into_iter().map(outcome).collect()
}

async fn extend_all(
    client: &mut QueueClient,
    queue: &str,
    leases: Vec<v1::ItemLease>,
    ttl: Option<prost_types::Duration>,
) -> Vec<Extended> {
    let request = v1::QueueServiceExtendRequest { queue: queue.to_owned(), leases, ttl };
    let answer = within(client.extend(request)).await.unwrap().into_inner();
    answer.results.into_iter().map(|result| result.outcome.expect("set")).collect()
}

fn ended(outcome: LeaseOutcome) -> Extended {
    Extended::Ended(outcome.into())
}

pub async fn look(client: &mut QueueClient, queue: &str, id: &str) -> Result<v1::Item, Status> {
    let request = v1::GetItemRequest { queue: queue.to_owned(), id: id.to_owned() };
    within(client.get_item(request)).await.map(|answer| answer.into_inner().item.expect("always there"))
}

pub fn ids(items: &[v1::ReservedItem]) -> Vec<&str> {
    items.iter().map(|item| item.id.as_str()).collect()
}

#[tokio::test]
async fn what_is_put_at_one_daemon_is_worked_on_at_the_other_until_it_is_done() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    let attributes = [("kind".to_owned(), "bulk".to_owned())].into();
    let bulk = v1::NewItem { priority: 7, attributes, ..item("a", "body") };
    let put = put(&mut one, "mail", vec![bulk.clone()]).await;
    assert_eq!(put, [v1::put_response::Put { id: "a".to_owned(), duplicate: false }]);
    let ready = look(&mut two, "mail", "a").await.unwrap();
    assert_eq!((ready.state(), ready.attempts, ready.fencing_token), (ItemState::Ready, 0, 0));
    assert_eq!((ready.payload.as_ref(), ready.remaining), (&b"body"[..], None));

    let leased = next(&mut two, "mail").await;
    assert_eq!((leased.id.as_str(), leased.payload.as_ref()), ("a", &b"body"[..]));
    assert_eq!((leased.priority, leased.attempt, &leased.attributes), (7, 1, &bulk.attributes));
    assert_eq!((leased.lease_id.len(), length(&leased.ttl)), (32, Duration::from_secs(300)));
    assert!(length(&leased.remaining) <= Duration::from_secs(300) && leased.put_time.is_some());
    assert!((1..1 << 53).contains(&leased.fencing_token));
    let shown = look(&mut one, "mail", "a").await.unwrap();
    assert_eq!((shown.state(), shown.attempts), (ItemState::Leased, 1));
    assert_eq!((shown.fencing_token, shown.remaining.is_some()), (leased.fencing_token, true));
    assert_eq!(reserve(&mut one, reserving("mail", 10)).await, []);

    assert_eq!(ack(&mut one, "mail", &leased).await, LeaseOutcome::Ok);
    let done = look(&mut two, "mail", "a").await.unwrap();
    assert_eq!((done.state(), done.payload.len()), (ItemState::Done, 0));
    assert_eq!(ack(&mut two, "mail", &leased).await, LeaseOutcome::AlreadyDone);
    assert_eq!(reserve(&mut one, reserving("mail", 10)).await, []);
}

#[tokio::test]
async fn items_come_by_priority_and_then_as_they_were_put() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let of = |id: &str, priority| v1::NewItem { priority, ..item(id, id) };
    put(&mut client, "mail", vec![of("late", i32::MAX), of("b", 0), of("c", 0), of("d", 0)]).await;
    put(&mut client, "mail", vec![of("e", 0), of("first", i32::MIN), of("second", -1)]).await;
    let some = reserve(&mut client, reserving("mail", 3)).await;
    assert_eq!(ids(&some), ["first", "second", "b"]);
    let rest = reserve(&mut client, reserving("mail", 1_000)).await;
    assert_eq!(ids(&rest), ["c", "d", "e", "late"]);
}

#[tokio::test]
async fn a_repeated_id_is_the_same_item_until_it_is_done_and_forgotten() {
    let (cluster, _served, [mut one, mut two]) = queue_pair().await;
    let known = |put: Vec<v1::put_response::Put>| put[0].duplicate;
    assert!(!known(put(&mut one, "mail", vec![item("a", "first")]).await));
    assert!(known(put(&mut two, "mail", vec![item("a", "other")]).await));
    let leased = next(&mut two, "mail").await;
    assert_eq!(leased.payload.as_ref(), b"first");
    assert!(known(put(&mut one, "mail", vec![item("a", "other")]).await), "while it is leased");
    ack(&mut one, "mail", &leased).await;
    assert!(known(put(&mut two, "mail", vec![item("a", "other")]).await), "after it is done");
    assert_eq!(reserve(&mut one, reserving("mail", 1)).await, []);
    // The same id in another queue is another item.
    assert!(!known(put(&mut two, "post", vec![item("a", "other")]).await));

    cluster.advance(PAST_EVERY_LEASE);
    within(async {
        while known(put(&mut one, "mail", vec![item("a", "again")]).await) {
            pause().await;
        }
    })
    .await;
    assert_eq!(next(&mut two, "mail").await.payload.as_ref(), b"again");
}

#[tokio::test]
async fn without_an_id_every_put_is_another_item() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let items = vec![item("", "x"); 3];
    let mut put = put(&mut client, "mail", items.clone()).await;
    put.extend(self::put(&mut client, "mail", items).await);
    assert!(put.iter().all(|put| !put.duplicate && !put.id.is_empty()));
    let mut made: Vec<&str> = put.iter().map(|put| put.id.as_str()).collect();
    let found = reserve(&mut client, reserving("mail", 10)).await;
    assert_eq!(ids(&found), made, "in the order in which they were put");
    made.sort_unstable();
    made.dedup();
    assert_eq!(made.len(), 6);
    assert_eq!(try_put(&mut client, "mail", vec![]).await.unwrap(), []);
}

#[tokio::test]
async fn what_is_put_with_a_delay_comes_after_it() {
    let (cluster, _served, [mut one, mut two]) = queue_pair().await;
    let delayed = v1::NewItem { delay: seconds(600), ..item("a", "x") };
    put(&mut one, "mail", vec![delayed, item("b", "x")]).await;
    let shown = look(&mut two, "mail", "a").await.unwrap();
    assert_eq!(shown.state(), ItemState::Delayed);
    assert!(length(&shown.remaining) <= Duration::from_secs(600));
    assert_eq!(ids(&reserve(&mut two, reserving("mail", 10)).await), ["b"]);
    let waiter = waiting_for_one(&two, "mail");
    cluster.advance(Duration::from_secs(700));
    assert_eq!(within(waiter).await.unwrap().id, "a");
}

#[tokio::test]
async fn an_item_that_is_given_back_comes_again_after_its_delay() {
    let (cluster, _served, [mut one, mut two]) = queue_pair().await;
    put(&mut one, "mail", vec![item("a", "x"), item("b", "x")]).await;
    let first = next(&mut one, "mail").await;
    assert_eq!(first.id, "a");
    assert_eq!(nack(&mut two, "mail", vec![nack_of(&first, seconds(60))]).await, [LeaseOutcome::Ok]);
    assert_eq!(nack(&mut one, "mail", vec![nack_of(&first, None)]).await, [LeaseOutcome::LeaseLost]);
    let shown = look(&mut one, "mail", "a").await.unwrap();
    assert_eq!((shown.state(), shown.attempts, shown.reason.as_str()), (ItemState::Delayed, 1, "broke"));
    assert!(length(&shown.remaining) <= Duration::from_secs(60));
    assert_eq!(ids(&reserve(&mut one, reserving("mail", 10)).await), ["b"]);
    assert_eq!(ack(&mut two, "mail", &first).await, LeaseOutcome::LeaseLost);

    let waiter = waiting_for_one(&two, "mail");
    cluster.advance(Duration::from_secs(90));
    let again = within(waiter).await.unwrap();
    assert_eq!((again.id.as_str(), again.attempt), ("a", 2));
    assert!(again.fencing_token > first.fencing_token && again.lease_id != first.lease_id);
    // Without a delay it is there at once.
    assert_eq!(nack(&mut two, "mail", vec![nack_of(&again, seconds(0))]).await, [LeaseOutcome::Ok]);
    assert_eq!(next(&mut one, "mail").await.attempt, 3);
}

#[tokio::test]
async fn an_item_whose_lease_has_run_out_is_somebody_elses() {
    let (cluster, _served, [mut one, mut two]) = queue_pair().await;
    put(&mut one, "mail", vec![item("a", "x")]).await;
    let frozen = next(&mut one, "mail").await;
    let waiter = waiting_for_one(&two, "mail");
    cluster.advance(PAST_EVERY_LEASE);
    let taken = within(waiter).await.unwrap();
    assert_eq!((taken.id.as_str(), taken.attempt), ("a", 2));
    assert!(taken.fencing_token > frozen.fencing_token);

    let extended = extend_all(&mut one, "mail", vec![lease_of(&frozen)], None).await;
    assert_eq!(extended, [ended(LeaseOutcome::LeaseLost)]);
    assert_eq!(nack(&mut one, "mail", vec![nack_of(&frozen, None)]).await, [LeaseOutcome::LeaseLost]);
    assert_eq!(ack(&mut one, "mail", &frozen).await, LeaseOutcome::LeaseLost);
    assert_eq!(look(&mut one, "mail", "a").await.unwrap().state(), ItemState::Leased);
    assert_eq!(ack(&mut two, "mail", &taken).await, LeaseOutcome::Ok);
    assert_eq!(ack(&mut one, "mail", &frozen).await, LeaseOutcome::AlreadyDone);
}

#[tokio::test]
async fn an_extension_starts_the_time_again_and_each_lease_has_its_own_answer() {
    let (cluster, _served, [mut one, mut two]) = queue_pair().await;
    put(&mut one, "mail", vec![item("a", "x"), item("b", "x")]).await;
    let leased = reserve(&mut one, reserving("mail", 2)).await;
    let none = "0".repeat(32);
    let leases = vec![
        lease_of(&leased[0]),
        v1::ItemLease { id: "nothing".to_owned(), lease_id: none.clone() },
        v1::ItemLease { id: "b".to_owned(), lease_id: none.clone() },
    ];
    let extended = extend_all(&mut two, "mail", leases.clone(), seconds(200)).await;
    let Extended::Extended(goes_on) = &extended[0] else { panic!("{extended:?}") };
    assert_eq!(length(&goes_on.ttl), Duration::from_secs(200));
    assert!(length(&goes_on.remaining) <= Duration::from_secs(200));
    assert_eq!(extended[1..], [ended(LeaseOutcome::NoSuchItem), ended(LeaseOutcome::LeaseLost)]);
    assert_eq!(look(&mut one, "mail", "a").await.unwrap().fencing_token, leased[0].fencing_token);

    // What was extended in between is still there after a time that is longer than its lease.
    for _ in 0..3 {
        cluster.advance(Duration::from_secs(120));
        let extended = extend_all(&mut one, "mail", vec![lease_of(&leased[0])], None).await;
        let [Extended::Extended(goes_on)] = &extended[..] else { panic!("{extended:?}") };
        assert_eq!(length(&goes_on.ttl), Duration::from_secs(200), "as long as before");
    }
    assert_eq!(next(&mut two, "mail").await.id, "b", "which nobody extended");
    assert_eq!(
        ack_all(&mut two, "mail", leases).await,
        [LeaseOutcome::Ok, LeaseOutcome::NoSuchItem, LeaseOutcome::LeaseLost]
    );
    let extended = extend_all(&mut one, "mail", vec![lease_of(&leased[0])], None).await;
    assert_eq!(extended, [ended(LeaseOutcome::AlreadyDone)]);
    assert_eq!(ack_all(&mut one, "mail", vec![]).await, []);
}

#[tokio::test]
async fn who_waits_gets_the_first_item_of_a_queue_that_was_not_there() {
    let (_cluster, _served, [mut one, two]) = queue_pair().await;
    assert_eq!(reserve(&mut one, reserving("mail", 1)).await, []);
    let waiters = [waiting_for_one(&one, "mail"), waiting_for_one(&two, "mail")];
    put(&mut one, "mail", vec![item("a", "x")]).await;
    put(&mut one, "mail", vec![item("b", "x")]).await;
    let mut got = Vec::new();
    for waiter in waiters {
        got.push(within(waiter).await.unwrap().id);
    }
    got.sort_unstable();
    assert_eq!(got, ["a", "b"]);
}

#[tokio::test]
async fn who_waits_in_vain_is_answered_with_nothing() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let briefly = v1::ReserveRequest { wait_timeout: millis(50), ..reserving("mail", 1) };
    assert_eq!(reserve(&mut client, briefly).await, []);
    // The wait ends with the call, and a little before its client's deadline.
    let mut request = Request::new(patiently(reserving("mail", 1)));
    request.set_timeout(Duration::from_secs(1));
    let answer = within(client.reserve(request)).await.unwrap().into_inner();
    assert_eq!(answer.items, []);
}

/// Every item to one consumer, and none lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_consumers_share_the_items() {
    const ITEMS: usize = 60;
    let (_cluster, _served, [mut one, two]) = queue_pair().await;
    let done = Arc::new(AtomicUsize::new(0));
    let consumers: Vec<_> = (0..6)
        .map(|number| {
            let done = done.clone();
            let mut client = if number % 2 == 0 { one.clone() } else { two.clone() };
            start(async move {
                let mut worked = Vec::new();
                loop {
                    let leased = next(&mut client, "mail").await;
                    assert_eq!(ack(&mut client, "mail", &leased).await, LeaseOutcome::Ok);
                    if leased.payload.as_ref() == b"stop" {
                        return worked;
                    }
                    worked.push(leased.id);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for number in 0..ITEMS {
        put(&mut one, "mail", vec![item(&format!("{number:02}"), "x")]).await;
    }
    // An item may be passed for a moment, so the end is put when all are done.
    let all_done = async {
        while done.load(Ordering::Relaxed) < ITEMS {
            pause().await;
        }
    };
    within(all_done).await;
    let stop = item("", "stop");
    put(&mut one, "mail", vec![stop; consumers.len()]).await;
    let mut worked = Vec::new();
    for consumer in consumers {
        worked.extend(within(consumer).await.unwrap());
    }
    worked.sort_unstable();
    let expected: Vec<String> = (0..ITEMS).map(|number| format!("{number:02}")).collect();
    assert_eq!(worked, expected);
}

#[tokio::test]
async fn an_unknown_outcome_may_be_repeated_only_by_who_named_the_item() {
    let cluster = cluster();
    let deaf = cluster.daemon_behind_network().await;
    let other = cluster.daemon().await;
    let (mut one, mut two) = (deaf.queues().await, other.queues().await);
    put(&mut one, "mail", vec![item("before", "x")]).await;
    for (id, code) in [("", Code::Unknown), ("a", Code::Unavailable)] {
        cluster.set_network(&[0, 1, 2], Network::Mute);
        let mut request =
            Request::new(v1::PutRequest { queue: "mail".to_owned(), items: vec![item(id, "x")] });
        request.set_timeout(Duration::from_secs(1));
        let told = match within(one.put(request)).await {
            Err(status) => (i32::from(status.code()), reason(&status)),
            Ok(answer) => match answer.into_inner().results.remove(0).outcome.expect("set") {
                PutOutcome::Error(error) => (error.code, reason_in(&error)),
                PutOutcome::Put(put) => panic!("{put:?}"),
            },
        };
        cluster.set_network(&[0, 1, 2], Network::Whole);
        // A daemon that prepares before it accepts may learn that it did nothing.
        let expected = match told.1.as_str() {
            "OUTCOME_UNKNOWN" => code,
            "NO_QUORUM" => Code::Unavailable,
            "DEADLINE_EXCEEDED" => Code::DeadlineExceeded,
            other => panic!("{other}"),
        };
        assert_eq!(told.0, i32::from(expected), "{told:?}");
    }
    // Whatever became of the first attempt, the item is there once.
    put(&mut two, "mail", vec![item("a", "x")]).await;
    let found = within(async {
        let mut found = Vec::new();
        while !ids(&found).contains(&"a") {
            found.extend(reserve(&mut two, reserving("mail", 10)).await);
        }
        found
    })
    .await;
    assert_eq!(ids(&found).iter().filter(|id| **id == "a").count(), 1);

    cluster.set_network(&[0, 1, 2], Network::Cut);
    let told = not_put(&mut one, "mail", item("b", "x")).await;
    assert_eq!(told, (Code::Unavailable.into(), "NO_QUORUM".to_owned()));
    let status = within(one.reserve(reserving("mail", 1))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "NO_QUORUM"));
    let request = v1::AckRequest { queue: "mail".to_owned(), leases: vec![lease_of(&found[0])] };
    let answer = within(one.ack(request)).await.unwrap().into_inner();
    let Some(SettleOutcome::Error(error)) = &answer.results[0].result else { panic!("{answer:?}") };
    assert_eq!((error.code, reason_in(error).as_str()), (Code::Unavailable.into(), "NO_QUORUM"));
    assert_eq!(ack(&mut two, "mail", &found[0]).await, LeaseOutcome::Ok);
}

/// What gRPC clients take in one message unless told otherwise.
const ANSWER_BYTES_MAX: usize = 4 << 20;

#[tokio::test]
async fn large_items_come_in_answers_that_clients_take() {
    const ITEMS: usize = 9;
    let (_cluster, _served, mut client) = queue_alone().await;
    let large = "x".repeat(1 << 20);
    for number in 0..ITEMS {
        put(&mut client, "mail", vec![item(&number.to_string(), &large)]).await;
    }
    let mut found = Vec::new();
    while found.len() < ITEMS {
        let request = v1::ReserveRequest { wait_timeout: seconds(60), ..reserving("mail", 100) };
        let answer = within(client.reserve(request)).await.unwrap().into_inner();
        assert!(!answer.items.is_empty() && answer.encoded_len() < ANSWER_BYTES_MAX);
        found.extend(answer.items);
    }
    let expected: Vec<String> = (0..ITEMS).map(|number| number.to_string()).collect();
    assert_eq!(ids(&found), expected);
    assert!(found.iter().all(|item| item.payload == large && item.attempt == 1));
}
