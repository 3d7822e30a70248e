//! Requests about keys that break rules: every field is named, and nothing has happened.

use majorityd::proto::v1;
use majorityd::proto::v1::set_request::Precondition;
use majorityd::proto::v1::watch_request::Target;
use tonic::Status;
use tonic_types::StatusExt;

use crate::kv::*;
use crate::refusals::{refused, wire};
use crate::stage::*;

type Wrong = &'static [(&'static str, &'static str)];

/// What is wrong with a key, a TTL, a request id and a fence, for every method that has them.
struct Shared {
    key: String,
    ttl: Option<prost_types::Duration>,
    request_id: Option<String>,
    fence: Option<v1::Fence>,
    wrong: Wrong,
}

fn shared() -> Vec<Shared> {
    let good = |wrong| Shared { key: "a".to_owned(), ttl: None, request_id: None, fence: None, wrong };
    let mut cases = Vec::new();
    for key in ["", "\0", "tab\t", "line\nline", "\u{7f}", "\u{85}", &"x".repeat(513), &"ü".repeat(257)] {
        cases.push(Shared { key: key.to_owned(), ..good(&[("key", "INVALID_NAME")]) });
    }
    let year = 365 * 86_400;
    for ttl in [
        wire(0, 0),
        wire(0, 999_999_999),
        wire(-1, 0),
        wire(1, -1),
        wire(1, 1_000_000_000),
        wire(year, 1),
        wire(i64::MAX, 0),
        wire(i64::MIN, i32::MIN),
    ] {
        cases.push(Shared { ttl, ..good(&[("ttl", "INVALID_TTL")]) });
    }
    let id = "01234567-89ab-cdef-fedc-ba9876543210";
    for text in ["", "1", &id[1..], &format!("{id}0"), &"g".repeat(32), &"ü".repeat(16), &"x".repeat(100_000)]
    {
        cases.push(Shared {
            request_id: Some(text.to_owned()),
            ..good(&[("request_id", "INVALID_REQUEST_ID")])
        });
    }
    let fence = |lock: &str, token| Some(v1::Fence { lock: lock.to_owned(), token });
    for token in [0, 1 << 53, u64::MAX] {
        cases.push(Shared { fence: fence("l", token), ..good(&[("fence.token", "INVALID_FENCING_TOKEN")]) });
    }
    cases.push(Shared { fence: fence("", 1), ..good(&[("fence.lock", "INVALID_NAME")]) });
    let all: Wrong = &[
        ("key", "INVALID_NAME"),
        ("ttl", "INVALID_TTL"),
        ("request_id", "INVALID_REQUEST_ID"),
        ("fence.lock", "INVALID_NAME"),
        ("fence.token", "INVALID_FENCING_TOKEN"),
    ];
    cases.push(Shared {
        key: String::new(),
        ttl: wire(0, 0),
        request_id: Some(String::new()),
        fence: fence("\t", 0),
        wrong: all,
    });
    cases
}

async fn nothing_happened(client: &mut KvClient) {
    assert_eq!(text(client, "a").await.as_deref(), Some("7"));
    let all = within(client.list_keys(v1::ListKeysRequest::default())).await.unwrap().into_inner();
    assert_eq!(all.keys.len(), 1);
}

#[tokio::test]
async fn a_bad_write_names_its_fields_and_does_nothing() {
    let (_cluster, _served, mut client) = kv_alone().await;
    set(&mut client, setting("a", "7")).await;
    for Shared { key, ttl, request_id, fence, wrong } in shared() {
        let request = v1::SetRequest {
            ttl,
            request_id: request_id.clone(),
            fence: fence.clone(),
            ..setting(&key, "8")
        };
        refused(try_set(&mut client, request).await, wrong);
        let request = v1::IncrementRequest {
            ttl,
            request_id: request_id.clone(),
            fence: fence.clone(),
            ..counting(&key)
        };
        refused(within(client.increment(request)).await, wrong);
        let request =
            v1::TouchRequest { key: key.clone(), ttl, request_id: request_id.clone(), fence: fence.clone() };
        refused(within(client.touch(request)).await, wrong);
        // A delete has no TTL.
        let wrong: Vec<_> = wrong.iter().copied().filter(|(field, _)| *field != "ttl").collect();
        let request = v1::DeleteRequest { key, request_id, fence, ..Default::default() };
        match wrong.is_empty() {
            true => continue,
            false => refused(within(client.delete(request)).await, &wrong),
        };
    }
    nothing_happened(&mut client).await;
}

#[tokio::test]
async fn a_bad_set_or_delete_names_its_own_fields() {
    let (_cluster, _served, mut client) = kv_alone().await;
    set(&mut client, setting("a", "7")).await;
    for (precondition, field, reason) in [
        (Precondition::Absent(false), "absent", "INVALID_PRECONDITION"),
        (Precondition::Present(false), "present", "INVALID_PRECONDITION"),
        (Precondition::Version(0), "version", "INVALID_VERSION"),
        (Precondition::Version(1 << 53), "version", "INVALID_VERSION"),
    ] {
        let request = v1::SetRequest { precondition: Some(precondition), ..setting("a", "8") };
        refused(try_set(&mut client, request).await, &[(field, reason)]);
    }
    let request = v1::SetRequest { content: None, ..setting("a", "") };
    refused(try_set(&mut client, request).await, &[("value", "INVALID_VALUE")]);
    for version in [0, 1 << 53, u64::MAX] {
        let request = v1::DeleteRequest { key: "a".to_owned(), version: Some(version), ..Default::default() };
        let status = refused(within(client.delete(request)).await, &[("version", "INVALID_VERSION")]);
        assert_eq!(metadata(&status, "version"), version.to_string());
    }
    nothing_happened(&mut client).await;
}

#[tokio::test]
async fn a_batch_with_one_bad_item_does_nothing() {
    let (_cluster, _served, mut client) = kv_alone().await;
    set(&mut client, setting("a", "7")).await;
    let good = || (0..3).map(|number| setting(&format!("new {number}"), "x"));
    let ttl = v1::SetRequest { ttl: wire(0, 1), ..setting("b", "x") };
    let previous = v1::SetRequest { return_previous: true, ..setting("b", "x") };
    let cases: [(v1::SetRequest, &str, &str); 4] = [
        (setting("\n", "x"), "items[3].key", "INVALID_NAME"),
        (ttl, "items[3].ttl", "INVALID_TTL"),
        (previous, "items[3].return_previous", "INVALID_RETURN_PREVIOUS"),
        (setting("new 1", "y"), "items[3].key", "DUPLICATE_KEY"),
    ];
    for (item, field, reason) in cases {
        let items = good().chain([item]).collect();
        refused(within(client.batch_set(v1::BatchSetRequest { items })).await, &[(field, reason)]);
    }
    let items = (0..1_001).map(|number| setting(&number.to_string(), "x")).collect();
    let status =
        refused(within(client.batch_set(v1::BatchSetRequest { items })).await, &[("items", "TOO_LARGE")]);
    assert_eq!(metadata(&status, "batch_items_max"), "1000");
    let keys = |count| v1::BatchGetRequest { keys: vec!["a".to_owned(); count] };
    refused(within(client.batch_get(keys(1_001))).await, &[("keys", "TOO_LARGE")]);
    let asked = v1::BatchGetRequest { keys: vec!["a".to_owned(), "\0".to_owned()] };
    refused(within(client.batch_get(asked)).await, &[("keys[1]", "INVALID_NAME")]);
    nothing_happened(&mut client).await;
    assert_eq!(within(client.batch_get(keys(1_000))).await.unwrap().into_inner().entries.len(), 1_000);
}

/// The client must be able to read what is wrong with a thousand items.
#[tokio::test]
async fn a_batch_with_very_many_bad_items_is_answered_within_the_size_of_trailers() {
    let (_cluster, _served, mut client) = kv_alone().await;
    let items = vec![setting(&"x".repeat(512), ""); 1_000];
    let status = within(client.batch_set(v1::BatchSetRequest { items })).await.unwrap_err();
    assert_eq!(
        (reason(&status).as_str(), metadata(&status, "violations").as_str()),
        ("DUPLICATE_KEY", "999")
    );
    let named = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(named[0].field, "items[1].key");
}

fn watching(target: Option<Target>, start_version: u64) -> v1::WatchRequest {
    v1::WatchRequest { target, start_version }
}

#[tokio::test]
async fn reads_refuse_what_is_wrong_with_theirs() {
    let (_cluster, _served, mut client) = kv_alone().await;
    let long = "x".repeat(513);
    for key in ["", "a\nb", &long] {
        let wrong = [("key", "INVALID_NAME")];
        refused(within(client.get(v1::GetRequest { key: key.to_owned() })).await, &wrong);
        let target = Some(Target::Key(key.to_owned()));
        refused(within(client.watch(watching(target, 0))).await.map(drop), &wrong);
    }
    let all = || Some(Target::Prefix(String::new()));
    for (request, field, reason) in [
        (watching(None, 0), "key", "INVALID_NAME"),
        (watching(Some(Target::Prefix(long.clone())), 0), "prefix", "INVALID_NAME"),
        (watching(all(), 1 << 53), "start_version", "INVALID_VERSION"),
    ] {
        refused(within(client.watch(request)).await.map(drop), &[(field, reason)]);
    }
    let list = |prefix: &str, page_size, page_token: &str| v1::ListKeysRequest {
        prefix: prefix.to_owned(),
        page_size,
        page_token: page_token.to_owned(),
        with_values: false,
    };
    for (request, field, reason) in [
        (list("\0", 0, ""), "prefix", "INVALID_NAME"),
        (list(&long, 0, ""), "prefix", "INVALID_NAME"),
        (list("", -1, ""), "page_size", "INVALID_PAGE_SIZE"),
        (list("", 0, "not base64!"), "page_token", "INVALID_PAGE_TOKEN"),
        (list("", 0, &"A".repeat(1_025)), "page_token", "INVALID_PAGE_TOKEN"),
    ] {
        refused(within(client.list_keys(request)).await, &[(field, reason)]);
    }
}

/// Names that would mean something to Lua, Redis, MessagePack or a glob are names like others, and a lock of the same name
/// is another thing.
#[tokio::test]
async fn names_mean_nothing_to_the_layers_below() {
    let (_cluster, served, mut client) = kv_alone().await;
    let mut locks = served.client().await;
    let names = ODD_NAMES;
    for name in names {
        set(&mut client, setting(name, name)).await;
        lease(&mut locks, asking(name, "ann")).await;
    }
    for name in names {
        assert_eq!(text(&mut client, name).await.as_deref(), Some(name));
        let prefix = name.to_owned();
        let request = v1::ListKeysRequest { prefix, ..Default::default() };
        let page: Result<_, Status> = within(client.list_keys(request)).await;
        let found: Vec<String> = page.unwrap().into_inner().keys.into_iter().map(|found| found.key).collect();
        let mut expected: Vec<&str> = names.into_iter().filter(|other| other.starts_with(name)).collect();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}
