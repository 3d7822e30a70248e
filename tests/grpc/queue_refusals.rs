//! Requests about queues that break rules: every field is named, and nothing is asked of the nodes.

use majorityd::proto::v1;
use majorityd::proto::v1::ItemState;
use tonic::Status;
use tonic_types::StatusExt;

use crate::queue::*;
use crate::refusals::{refused, wire};
use crate::stage::*;

const DAY: i64 = 86_400;

fn bad_names() -> Vec<String> {
    let names = ["", "\0", "tab\t", "line\nline", "\u{7f}", "\u{85}", &"x".repeat(513), &"ü".repeat(257)];
    names.map(str::to_owned).into()
}

fn bad_lease_ids() -> Vec<String> {
    let id = "0123456789abcdef0123456789abcdef";
    ["", "1", &id[1..], &format!("{id}0"), &"g".repeat(32), &"ü".repeat(16), &"x".repeat(100_000)]
        .map(str::to_owned)
        .into()
}

fn bad_ttls() -> Vec<Option<prost_types::Duration>> {
    vec![
        wire(0, 0),
        wire(0, 999_999_999),
        wire(300, 1),
        wire(-1, 0),
        wire(1, -1),
        wire(1, 1_000_000_000),
        wire(i64::MAX, 0),
        wire(i64::MIN, i32::MIN),
    ]
}

/// Past the longest, and what is no length at all.
fn bad_delays(longest: i64) -> Vec<Option<prost_types::Duration>> {
    vec![wire(longest, 1), wire(-1, 0), wire(0, -1), wire(1, -1), wire(0, 1_000_000_000), wire(i64::MAX, 0)]
}

fn lease() -> v1::ItemLease {
    v1::ItemLease { id: "a".to_owned(), lease_id: "0".repeat(32) }
}

fn nacking() -> v1::ItemNack {
    let v1::ItemLease { id, lease_id } = lease();
    v1::ItemNack { id, lease_id, ..Default::default() }
}

fn queue() -> String {
    "mail".to_owned()
}

/// One field of a request is as named and it alone is wrong.
async fn refused_put(client: &mut QueueClient, item: v1::NewItem, field: &str, reason: &str) -> Status {
    let items = vec![self::item("good", "x"), item];
    let field = format!("items[1].{field}");
    refused(try_put(client, "mail", items).await, &[(&field, reason)])
}

#[tokio::test]
async fn every_method_refuses_a_bad_name_of_a_queue() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let wrong = [("queue", "INVALID_NAME")];
    for queue in bad_names() {
        let of = || queue.clone();
        refused(try_put(&mut client, &queue, vec![item("a", "x")]).await, &wrong);
        refused(within(client.reserve(reserving(&queue, 1))).await, &wrong);
        let request = v1::QueueServiceExtendRequest { queue: of(), leases: vec![lease()], ttl: None };
        refused(within(client.extend(request)).await, &wrong);
        let request = v1::AckRequest { queue: of(), leases: vec![lease()] };
        refused(within(client.ack(request)).await, &wrong);
        let request = v1::NackRequest { queue: of(), items: vec![nacking()] };
        refused(within(client.nack(request)).await, &wrong);
        refused(look(&mut client, &queue, "a").await, &wrong);
        refused(within(client.get_queue(v1::GetQueueRequest { queue: of() })).await, &wrong);
        let request = v1::ConfigureQueueRequest { queue: of(), ..Default::default() };
        refused(within(client.configure_queue(request)).await, &wrong);
        let request = v1::ListDeadRequest { queue: of(), ..Default::default() };
        refused(within(client.list_dead(request)).await, &wrong);
        refused(within(client.redrive(v1::RedriveRequest { queue: of(), ids: vec![] })).await, &wrong);
        let request = v1::PurgeRequest { queue: of(), states: vec![ItemState::Dead.into()] };
        refused(within(client.purge(request)).await, &wrong);
        refused(within(client.delete_queue(v1::DeleteQueueRequest { queue: of() })).await, &wrong);
    }
}

#[tokio::test]
async fn a_bad_item_is_named_by_its_position_and_nothing_is_put() {
    let (_cluster, _served, mut client) = queue_alone().await;
    for id in bad_names() {
        let bad = v1::NewItem { id: Some(id), ..item("", "x") };
        refused_put(&mut client, bad, "id", "INVALID_ITEM_ID").await;
    }
    for delay in bad_delays(7 * DAY) {
        refused_put(&mut client, v1::NewItem { delay, ..item("a", "x") }, "delay", "INVALID_DELAY").await;
    }
    let without = v1::NewItem { content: None, ..item("a", "") };
    refused_put(&mut client, without, "payload", "INVALID_VALUE").await;
    let large = item("a", &"x".repeat((1 << 20) + 1));
    let status = refused_put(&mut client, large, "text", "TOO_LARGE").await;
    assert_eq!(metadata(&status, "payload_bytes_max"), "1048576");
    for (key, value, reason) in [
        ("", "x", "INVALID_ATTRIBUTES"),
        ("a", "\u{1b}[2J", "INVALID_ATTRIBUTES"),
        ("a", &"x".repeat(4_096), "TOO_LARGE"),
    ] {
        let attributes = [(key.to_owned(), value.to_owned())].into();
        let bad = v1::NewItem { attributes, ..item("a", "x") };
        refused_put(&mut client, bad, "attributes", reason).await;
    }
    refused_put(&mut client, item("good", "y"), "id", "DUPLICATE_ITEM").await;

    let all = v1::NewItem {
        id: Some(String::new()),
        content: None,
        delay: wire(-1, 0),
        attributes: [(String::new(), String::new())].into(),
        ..Default::default()
    };
    let answer = try_put(&mut client, "\n", vec![item("a", "x"), all]).await;
    let expected = [
        ("queue", "INVALID_NAME"),
        ("items[1].id", "INVALID_ITEM_ID"),
        ("items[1].payload", "INVALID_VALUE"),
        ("items[1].delay", "INVALID_DELAY"),
        ("items[1].attributes", "INVALID_ATTRIBUTES"),
    ];
    refused(answer, &expected);
}

#[tokio::test]
async fn a_batch_has_no_more_items_and_bytes_than_it_may() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let too_large = |list| [(list, "TOO_LARGE")];
    let many = vec![item("", "x"); 1_001];
    let status = refused(try_put(&mut client, "mail", many).await, &too_large("items"));
    assert_eq!(metadata(&status, "batch_items_max"), "1000");
    let heavy = vec![item("", &"x".repeat((1 << 20) - 1)); 5];
    // Less than the largest message, and more than the largest batch.
    let heavy = [&heavy[..4], &[item("", "xxxxx")]].concat();
    let status = refused(try_put(&mut client, "mail", heavy).await, &too_large("items"));
    assert_eq!(metadata(&status, "batch_bytes"), ((4 << 20) + 1).to_string());
    let leases = || vec![lease(); 1_001];
    let request = v1::AckRequest { queue: queue(), leases: leases() };
    refused(within(client.ack(request)).await, &too_large("leases"));
    let request = v1::QueueServiceExtendRequest { queue: queue(), leases: leases(), ttl: None };
    refused(within(client.extend(request)).await, &too_large("leases"));
    let request = v1::NackRequest { queue: queue(), items: vec![nacking(); 1_001] };
    refused(within(client.nack(request)).await, &too_large("items"));
    let request = v1::RedriveRequest { queue: queue(), ids: vec!["a".to_owned(); 1_001] };
    refused(within(client.redrive(request)).await, &too_large("ids"));
}

/// The client must be able to read what is wrong with a thousand items.
#[tokio::test]
async fn a_batch_with_very_many_bad_items_is_answered_within_the_size_of_trailers() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let items = vec![item(&"x".repeat(512), ""); 1_000];
    let status = try_put(&mut client, "mail", items).await.unwrap_err();
    let told = (reason(&status), metadata(&status, "violations"));
    assert_eq!(told, ("DUPLICATE_ITEM".to_owned(), "999".to_owned()));
    let named = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(named[0].field, "items[1].id");
}

#[tokio::test]
async fn leases_are_named_by_their_position_and_never_shown() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let bad = |lease_id: &str| v1::ItemLease { lease_id: lease_id.to_owned(), ..lease() };
    for lease_id in bad_lease_ids() {
        let leases = vec![lease(), bad(&lease_id)];
        let wrong = [("leases[1].lease_id", "INVALID_LEASE_ID")];
        let request = v1::AckRequest { queue: queue(), leases: leases.clone() };
        let status = refused(within(client.ack(request)).await, &wrong);
        assert!(lease_id.len() < 20 || !format!("{status:?}").contains(&lease_id), "{status:?}");
        let request = v1::QueueServiceExtendRequest { queue: queue(), leases, ttl: None };
        refused(within(client.extend(request)).await, &wrong);
        let items = vec![nacking(), v1::ItemNack { lease_id, ..nacking() }];
        let request = v1::NackRequest { queue: queue(), items };
        refused(within(client.nack(request)).await, &[("items[1].lease_id", "INVALID_LEASE_ID")]);
    }
    for ttl in bad_ttls() {
        let request = v1::QueueServiceExtendRequest { queue: queue(), leases: vec![lease()], ttl };
        refused(within(client.extend(request)).await, &[("ttl", "INVALID_TTL")]);
    }
    for delay in bad_delays(7 * DAY) {
        let items = vec![v1::ItemNack { delay, ..nacking() }];
        let request = v1::NackRequest { queue: queue(), items };
        refused(within(client.nack(request)).await, &[("items[0].delay", "INVALID_DELAY")]);
    }
    let everything = v1::ItemNack {
        id: String::new(),
        lease_id: String::new(),
        delay: wire(-1, 0),
        reason: "x".repeat(1_025),
    };
    let request = v1::NackRequest { queue: queue(), items: vec![everything] };
    let expected = [
        ("items[0].id", "INVALID_ITEM_ID"),
        ("items[0].lease_id", "INVALID_LEASE_ID"),
        ("items[0].delay", "INVALID_DELAY"),
        ("items[0].reason", "TOO_LARGE"),
    ];
    refused(within(client.nack(request)).await, &expected);
}

#[tokio::test]
async fn who_reserves_keeps_to_the_ranges() {
    let (_cluster, _served, mut client) = queue_alone().await;
    for count in [i32::MIN, -1, 0, 1_001, i32::MAX] {
        let answer = within(client.reserve(reserving("mail", count))).await;
        let status = refused(answer, &[("max_items", "INVALID_COUNT")]);
        assert_eq!(metadata(&status, "count"), count.to_string());
    }
    for lease_ttl in bad_ttls() {
        let request = v1::ReserveRequest { lease_ttl, ..reserving("mail", 1) };
        refused(within(client.reserve(request)).await, &[("lease_ttl", "INVALID_TTL")]);
    }
    for wait_timeout in [wire(-1, 0), wire(1, -1), wire(i64::MAX, 0)] {
        let request = v1::ReserveRequest { wait_timeout, ..reserving("mail", 1) };
        refused(within(client.reserve(request)).await, &[("wait_timeout", "INVALID_WAIT_TIMEOUT")]);
    }
}

#[tokio::test]
async fn settings_keep_to_their_ranges() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let good = || v1::ConfigureQueueRequest { queue: queue(), ..Default::default() };
    let mut cases: Vec<(v1::ConfigureQueueRequest, &str, &str)> = Vec::new();
    for lease_ttl in bad_ttls() {
        cases.push((v1::ConfigureQueueRequest { lease_ttl, ..good() }, "lease_ttl", "INVALID_TTL"));
    }
    for backoff in bad_delays(DAY) {
        let (min, max) = ("backoff_min", "backoff_max");
        cases.push((v1::ConfigureQueueRequest { backoff_min: backoff, ..good() }, min, "INVALID_DELAY"));
        cases.push((v1::ConfigureQueueRequest { backoff_max: backoff, ..good() }, max, "INVALID_DELAY"));
    }
    for done_retention in bad_delays(7 * DAY) {
        let request = v1::ConfigureQueueRequest { done_retention, ..good() };
        cases.push((request, "done_retention", "INVALID_DELAY"));
    }
    for count in [1_000_001, u32::MAX] {
        let request = v1::ConfigureQueueRequest { max_attempts: Some(count), ..good() };
        cases.push((request, "max_attempts", "INVALID_COUNT"));
    }
    for count in [1 << 53, u64::MAX] {
        let request = v1::ConfigureQueueRequest { max_items: Some(count), ..good() };
        cases.push((request, "max_items", "INVALID_COUNT"));
    }
    for (request, field, reason) in cases {
        refused(within(client.configure_queue(request)).await, &[(field, reason)]);
    }
}

#[tokio::test]
async fn looks_and_removals_refuse_what_is_wrong_with_theirs() {
    let (_cluster, _served, mut client) = queue_alone().await;
    for id in bad_names() {
        refused(look(&mut client, "mail", &id).await, &[("id", "INVALID_ITEM_ID")]);
        let request = v1::RedriveRequest { queue: queue(), ids: vec!["a".to_owned(), id] };
        refused(within(client.redrive(request)).await, &[("ids[1]", "INVALID_ITEM_ID")]);
    }
    for (states, field) in [
        (vec![], "states"),
        (vec![ItemState::Dead as i32, ItemState::Done as i32], "states[1]"),
        (vec![ItemState::Unspecified as i32], "states[0]"),
        (vec![6], "states[0]"),
        (vec![-1], "states[0]"),
    ] {
        let request = v1::PurgeRequest { queue: queue(), states };
        refused(within(client.purge(request)).await, &[(field, "INVALID_STATE")]);
    }
    let list = |prefix: &str, page_size, page_token: &str| v1::ListQueuesRequest {
        prefix: prefix.to_owned(),
        page_size,
        page_token: page_token.to_owned(),
    };
    for (request, field, reason) in [
        (list("\0", 0, ""), "prefix", "INVALID_NAME"),
        (list(&"x".repeat(513), 0, ""), "prefix", "INVALID_NAME"),
        (list("", -1, ""), "page_size", "INVALID_PAGE_SIZE"),
        (list("", 0, "not base64!"), "page_token", "INVALID_PAGE_TOKEN"),
        (list("", 0, &"A".repeat(1_025)), "page_token", "INVALID_PAGE_TOKEN"),
    ] {
        refused(within(client.list_queues(request)).await, &[(field, reason)]);
    }
    for (page_size, page_token, field, reason) in [
        (-1, "", "page_size", "INVALID_PAGE_SIZE"),
        (0, "not base64!", "page_token", "INVALID_PAGE_TOKEN"),
        (0, &"A".repeat(1_025), "page_token", "INVALID_PAGE_TOKEN"),
    ] {
        let page_token = page_token.to_owned();
        let request = v1::ListDeadRequest { queue: queue(), page_size, page_token };
        refused(within(client.list_dead(request)).await, &[(field, reason)]);
    }
}
