//! Requests that break rules: every field is named, and nothing has happened.

use std::collections::BTreeMap;

use majorityd::proto::v1;
use prost_types::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::stage::*;

const TEN_YEARS: i64 = 315_360_000;
const TOO_LONG: i64 = 315_576_000_001;

fn violations(status: &Status) -> BTreeMap<String, String> {
    let bad_request = status.get_details_bad_request().expect("BadRequest");
    assert!(bad_request.field_violations.iter().all(|violation| !violation.description.is_empty()));
    bad_request.field_violations.into_iter().map(|v| (v.field, v.reason)).collect()
}

/// Refused for exactly these fields, the first of which is the error's reason.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, fields: &[(&str, &str)]) -> Status {
    let status = answer.expect_err("it breaks a rule");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let expected = fields.iter().map(|(field, reason)| ((*field).to_owned(), (*reason).to_owned()));
    assert_eq!(violations(&status), expected.collect());
    assert_eq!(reason(&status), fields[0].1);
    assert!(status.get_details_retry_info().is_none(), "a repeat does not help");
    status
}

pub fn wire(seconds: i64, nanos: i32) -> Option<Duration> {
    Some(Duration { seconds, nanos })
}

fn pairs(count: usize, bytes: usize) -> BTreeMap<String, String> {
    (0..count).map(|number| (format!("{number:04}"), "x".repeat(bytes))).collect()
}

fn pair(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

/// What Acquire and Hold have in common: the request, and the one field that is wrong with it.
fn bad_acquires() -> Vec<(v1::AcquireRequest, &'static str, &'static str)> {
    let good = || asking("orders", "ann");
    let mut cases = Vec::new();
    let long = "x".repeat(513);
    // 257 characters of two bytes.
    let wide = "ü".repeat(257);
    for text in ["", "\0", "tab\t", "line\nline", "\u{7f}", "\u{85}", "esc\u{1b}[2J", &long, &wide] {
        cases.push((v1::AcquireRequest { name: text.to_owned(), ..good() }, "name", "INVALID_NAME"));
        let owner = Some(text.to_owned());
        cases.push((v1::AcquireRequest { owner, ..good() }, "owner", "INVALID_OWNER"));
    }
    for ttl in [
        wire(0, 0),
        wire(0, 1),
        wire(0, 999_999_999),
        wire(-1, 0),
        wire(0, -1),
        wire(1, -1),
        wire(-1, 1),
        wire(300, 1),
        wire(301, 0),
        wire(TEN_YEARS, 0),
        wire(TOO_LONG, 0),
        wire(i64::MAX, 0),
        wire(i64::MIN, 0),
        wire(30, 1_000_000_000),
        wire(30, i32::MAX),
        wire(30, i32::MIN),
    ] {
        cases.push((v1::AcquireRequest { ttl, ..good() }, "ttl", "INVALID_TTL"));
    }
    for wait_timeout in [wire(-1, 0), wire(0, -1), wire(1, -1), wire(0, 1_000_000_000), wire(TOO_LONG, 0)] {
        let request = v1::AcquireRequest { wait_timeout, ..good() };
        cases.push((request, "wait_timeout", "INVALID_WAIT_TIMEOUT"));
    }
    for (attributes, reason) in [
        (pairs(17, 1), "INVALID_ATTRIBUTES"),
        (pairs(1_000, 1), "INVALID_ATTRIBUTES"),
        (pair("", "x"), "INVALID_ATTRIBUTES"),
        (pair("a\n", "x"), "INVALID_ATTRIBUTES"),
        (pair("a", "\u{1b}[2J"), "INVALID_ATTRIBUTES"),
        // 16 times 4 + 252 is 4,096; one more is too many.
        (pair("a", &"x".repeat(4_096)), "TOO_LARGE"),
        (pairs(16, 253), "TOO_LARGE"),
    ] {
        cases.push((v1::AcquireRequest { attributes, ..good() }, "attributes", reason));
    }
    cases
}

fn as_hold(request: v1::AcquireRequest) -> v1::HoldRequest {
    let v1::AcquireRequest { name, owner, ttl, wait_timeout, attributes } = request;
    v1::HoldRequest { name, owner, ttl, wait_timeout, attributes, ..Default::default() }
}

#[tokio::test]
async fn a_bad_acquire_or_hold_names_its_field_and_does_nothing() {
    let (_cluster, _served, mut client) = alone().await;
    for (request, field, reason) in bad_acquires() {
        refused(within(client.acquire(request.clone())).await, &[(field, reason)]);
        refused(within(client.hold(as_hold(request))).await, &[(field, reason)]);
    }
    let lock = get(&mut client, "orders").await;
    assert_eq!((lock.holder, lock.waiters), (None, 0));
    let all = within(client.list_locks(v1::ListLocksRequest::default())).await.unwrap().into_inner();
    assert!(all.locks.is_empty());
}

#[tokio::test]
async fn what_is_just_within_the_rules_is_taken() {
    let (_cluster, _served, mut client) = alone().await;
    let good = || asking("orders", "ann");
    let edge = "ü".repeat(256);
    for request in [
        asking(&edge, &edge),
        asking("/a b\"'{}%\\…🔒", "🔒"),
        v1::AcquireRequest { ttl: wire(1, 0), ..good() },
        v1::AcquireRequest { ttl: wire(300, 0), ..good() },
        v1::AcquireRequest { ttl: wire(1, 500_000_000), ..good() },
        v1::AcquireRequest { ttl: None, ..good() },
        v1::AcquireRequest { wait_timeout: wire(TEN_YEARS, 999_999_999), ..good() },
        v1::AcquireRequest { attributes: pairs(16, 252), ..good() },
        v1::AcquireRequest { attributes: pair("a", ""), ..good() },
    ] {
        let ttl = request.ttl.or(seconds(30));
        let name = request.name.clone();
        let attributes = request.attributes.clone();
        assert_eq!(lease(&mut client, request).await.ttl, ttl);
        let holder = get(&mut client, &name).await.holder.unwrap();
        // An acquire again without attributes keeps those of before.
        assert!(attributes.is_empty() || holder.attributes == attributes);
    }
}

#[tokio::test]
async fn a_bad_hold_names_its_own_fields() {
    let (_cluster, _served, mut client) = alone().await;
    for limit in [wire(0, 0), wire(-1, 0), wire(1, -1), wire(0, i32::MAX)] {
        let request = v1::HoldRequest { hold_limit: limit, ..holding("orders", "ann") };
        refused(within(client.hold(request)).await, &[("hold_limit", "INVALID_HOLD_LIMIT")]);
    }
    for policy in [-1, 3, i32::MAX] {
        let request = v1::HoldRequest { disconnect_policy: policy, ..holding("orders", "ann") };
        refused(within(client.hold(request)).await, &[("disconnect_policy", "INVALID_DISCONNECT_POLICY")]);
    }
    assert_eq!(get(&mut client, "orders").await.holder, None);
}

#[tokio::test]
async fn all_that_is_wrong_is_told_at_once() {
    let (_cluster, _served, mut client) = alone().await;
    let request = v1::HoldRequest {
        name: "tab\t".to_owned(),
        owner: Some(String::new()),
        ttl: wire(0, 0),
        wait_timeout: wire(-1, 0),
        hold_limit: wire(0, 0),
        attributes: pairs(17, 1),
        disconnect_policy: 9,
    };
    let status = refused(
        within(client.hold(request)).await,
        &[
            ("name", "INVALID_NAME"),
            ("owner", "INVALID_OWNER"),
            ("ttl", "INVALID_TTL"),
            ("wait_timeout", "INVALID_WAIT_TIMEOUT"),
            ("hold_limit", "INVALID_HOLD_LIMIT"),
            ("attributes", "INVALID_ATTRIBUTES"),
            ("disconnect_policy", "INVALID_DISCONNECT_POLICY"),
        ],
    );
    assert_eq!(
        (metadata(&status, "ttl_min").as_str(), metadata(&status, "ttl_max").as_str()),
        ("1s", "300s")
    );
    assert_eq!(
        (metadata(&status, "attributes").as_str(), metadata(&status, "attributes_max").as_str()),
        ("17", "16")
    );
}

#[tokio::test]
async fn a_bad_lease_id_is_refused_and_not_repeated() {
    let (_cluster, _served, mut client) = alone().await;
    let held = lease(&mut client, asking("orders", "ann")).await;
    let short = &held.lease_id[..31];
    let long = format!("{}0", held.lease_id);
    let wrong = [("lease_id", "INVALID_LEASE_ID")];
    for bad in [
        "",
        short,
        &long,
        &"g".repeat(32),
        &"+".repeat(32),
        &"ü".repeat(16),
        "0x00000000000000000000000000000",
    ] {
        let (name, lease_id) = ("orders".to_owned(), bad.to_owned());
        let extending = v1::ExtendRequest { name: name.clone(), lease_id: lease_id.clone(), ttl: None };
        let extended = refused(within(client.extend(extending)).await, &wrong);
        let released = refused(within(client.release(v1::ReleaseRequest { name, lease_id })).await, &wrong);
        for status in [extended, released] {
            assert!(bad.is_empty() || !format!("{status:?}").contains(bad));
        }
    }
    // Upper case is the same number; a ttl out of range is not the lease id's fault.
    let upper = v1::Lease { lease_id: held.lease_id.to_uppercase(), ..held.clone() };
    assert!(extend(&mut client, &upper).await.is_ok());
    let (name, lease_id) = (held.name.clone(), held.lease_id.clone());
    let extending = v1::ExtendRequest { name, lease_id, ttl: wire(TEN_YEARS, 0) };
    refused(within(client.extend(extending)).await, &[("ttl", "INVALID_TTL")]);
    assert_eq!(get(&mut client, "orders").await.holder.unwrap().ttl, held.ttl);
}

#[tokio::test]
async fn the_other_methods_refuse_what_is_wrong_with_theirs() {
    let (_cluster, _served, mut client) = alone().await;
    let held = lease(&mut client, asking("orders", "ann")).await;
    let long = "x".repeat(513);
    for name in ["", "a\nb", &long] {
        let name = || name.to_owned();
        let wrong = [("name", "INVALID_NAME")];
        let lease_id = held.lease_id.clone();
        let extending = v1::ExtendRequest { name: name(), lease_id: lease_id.clone(), ttl: None };
        refused(within(client.extend(extending)).await, &wrong);
        refused(within(client.release(v1::ReleaseRequest { name: name(), lease_id })).await, &wrong);
        refused(within(client.get_lock(v1::GetLockRequest { name: name() })).await, &wrong);
        refused(within(client.watch_lock(v1::WatchLockRequest { name: name() })).await, &wrong);
        let forcing = v1::ForceReleaseRequest { name: name(), fencing_token: 1 };
        refused(within(client.force_release(forcing)).await, &wrong);
        let checking = v1::CheckTokenRequest { name: name(), fencing_token: 1 };
        refused(within(client.check_token(checking)).await, &wrong);
    }
    for fencing_token in [0, 1 << 53, u64::MAX] {
        let name = || "orders".to_owned();
        let wrong = [("fencing_token", "INVALID_FENCING_TOKEN")];
        let forcing = v1::ForceReleaseRequest { name: name(), fencing_token };
        refused(within(client.force_release(forcing)).await, &wrong);
        let checking = v1::CheckTokenRequest { name: name(), fencing_token };
        refused(within(client.check_token(checking)).await, &wrong);
    }
    let list = |prefix: &str, page_size, page_token: &str| v1::ListLocksRequest {
        prefix: prefix.to_owned(),
        page_size,
        page_token: page_token.to_owned(),
    };
    for (request, field, reason) in [
        (list("\0", 0, ""), "prefix", "INVALID_NAME"),
        (list(&long, 0, ""), "prefix", "INVALID_NAME"),
        (list("", -1, ""), "page_size", "INVALID_PAGE_SIZE"),
        (list("", i32::MIN, ""), "page_size", "INVALID_PAGE_SIZE"),
        (list("", 0, "not base64!"), "page_token", "INVALID_PAGE_TOKEN"),
        (list("", 0, "_w"), "page_token", "INVALID_PAGE_TOKEN"),
        (list("", 0, &"A".repeat(1_025)), "page_token", "INVALID_PAGE_TOKEN"),
    ] {
        refused(within(client.list_locks(request)).await, &[(field, reason)]);
    }
    assert_eq!(get(&mut client, "orders").await.holder.unwrap().fencing_token, held.fencing_token);
}

/// Names that would mean something to Lua, Redis, MessagePack or a glob are names like others.
#[tokio::test]
async fn names_mean_nothing_to_the_layers_below() {
    let (_cluster, _served, mut client) = alone().await;
    let names = ODD_NAMES;
    let mut tokens = Vec::new();
    for name in names {
        tokens.push(lease(&mut client, asking(name, name)).await.fencing_token);
    }
    for (name, token) in names.iter().zip(tokens) {
        let holder = get(&mut client, name).await.holder.unwrap();
        assert_eq!((holder.owner.as_str(), holder.fencing_token), (*name, token));
    }
    for prefix in ["*", "[", "\\"] {
        let request = v1::ListLocksRequest { prefix: prefix.to_owned(), ..Default::default() };
        let page = within(client.list_locks(request)).await.unwrap().into_inner();
        let expected: Vec<_> = names.iter().filter(|name| name.starts_with(prefix)).collect();
        assert_eq!(
            page.locks.iter().map(|lock| lock.name.as_str()).collect::<Vec<_>>(),
            expected.iter().map(|n| **n).collect::<Vec<_>>()
        );
    }
}
