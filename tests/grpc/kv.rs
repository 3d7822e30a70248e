//! Keys one by one: Get, Set, Delete, Increment, Touch; repeats, fences and time.

use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::set_request::{Content, Precondition};
use tonic::{Code, Request, Status};

use crate::stage::*;

/// Three servers, one daemon, one client.
pub async fn kv_alone() -> (Cluster, Served, KvClient) {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let client = served.kv().await;
    (cluster, served, client)
}

/// Three servers, two daemons, a client of each.
pub async fn kv_pair() -> (Cluster, [Served; 2], [KvClient; 2]) {
    let cluster = Cluster::new();
    let served = [cluster.daemon().await, cluster.daemon().await];
    let clients = [served[0].kv().await, served[1].kv().await];
    (cluster, served, clients)
}

pub fn setting(key: &str, text: &str) -> v1::SetRequest {
    let content = Some(Content::Text(text.to_owned()));
    v1::SetRequest { key: key.to_owned(), content, ..Default::default() }
}

pub fn counting(key: &str) -> v1::IncrementRequest {
    v1::IncrementRequest { key: key.to_owned(), ..Default::default() }
}

fn deleting(key: &str) -> v1::DeleteRequest {
    v1::DeleteRequest { key: key.to_owned(), ..Default::default() }
}

fn touching(key: &str) -> v1::TouchRequest {
    v1::TouchRequest { key: key.to_owned(), ..Default::default() }
}

/// A UUID for each number.
pub fn request_id(number: u64) -> Option<String> {
    Some(format!("00000000-0000-4000-8000-{number:012x}"))
}

fn fence(lock: &str, token: u64) -> Option<v1::Fence> {
    Some(v1::Fence { lock: lock.to_owned(), token })
}

pub async fn try_set(client: &mut KvClient, request: v1::SetRequest) -> Result<v1::SetResponse, Status> {
    within(client.set(request)).await.map(|answer| answer.into_inner())
}

/// The version that a write gets.
pub async fn set(client: &mut KvClient, request: v1::SetRequest) -> u64 {
    try_set(client, request).await.unwrap().key_value.expect("always there").version
}

pub async fn look(client: &mut KvClient, key: &str) -> Option<v1::KeyValue> {
    let request = v1::GetRequest { key: key.to_owned() };
    within(client.get(request)).await.unwrap().into_inner().key_value
}

pub async fn text(client: &mut KvClient, key: &str) -> Option<String> {
    let value = look(client, key).await?.value;
    Some(String::from_utf8(value.to_vec()).expect("it was set as text"))
}

async fn delete(client: &mut KvClient, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Status> {
    within(client.delete(request)).await.map(|answer| answer.into_inner())
}

async fn increment(
    client: &mut KvClient,
    request: v1::IncrementRequest,
) -> Result<v1::IncrementResponse, Status> {
    within(client.increment(request)).await.map(|answer| answer.into_inner())
}

async fn touch(client: &mut KvClient, request: v1::TouchRequest) -> Result<v1::TouchResponse, Status> {
    within(client.touch(request)).await.map(|answer| answer.into_inner())
}

/// Refused with this code and reason; the error.
#[track_caller]
fn failed<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, why: &str) -> Status {
    let status = answer.expect_err(why);
    assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{status:?}");
    status
}

#[tokio::test]
async fn what_is_set_at_one_daemon_is_read_at_the_other_until_it_is_deleted() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    assert_eq!(look(&mut two, "a").await, None);
    let mut last = 0;
    for number in 0..4 {
        let answer = try_set(&mut one, setting("a", &number.to_string())).await.unwrap();
        let written = answer.key_value.expect("always there");
        assert_eq!((written.key.as_str(), written.value.len(), written.remaining), ("a", 0, None));
        assert!(written.version > last && written.version < 1 << 53);
        last = written.version;
        let read = look(&mut two, "a").await.unwrap();
        let expected = v1::KeyValue { value: number.to_string().into(), ..written };
        assert_eq!(read, expected);
        assert_eq!((answer.previous, answer.repeated), (None, false));
    }
    let request = v1::DeleteRequest { return_previous: true, ..deleting("a") };
    let deleted = delete(&mut two, request.clone()).await.unwrap();
    assert!(deleted.deleted && deleted.version > last);
    assert_eq!(deleted.previous.unwrap().value, "3");
    assert_eq!(look(&mut one, "a").await, None);
    assert_eq!(delete(&mut one, request).await.unwrap(), v1::DeleteResponse::default());
    // No version comes twice.
    assert!(set(&mut one, setting("a", "again")).await > deleted.version);
}

#[tokio::test]
async fn bytes_come_back_as_they_were_and_an_empty_value_is_one() {
    let (_cluster, _served, mut client) = kv_alone().await;
    let all: Vec<u8> = (0..=255).collect();
    for bytes in [all, vec![], vec![0xff; 3]] {
        let content = Some(Content::Value(bytes.clone().into()));
        let request = v1::SetRequest { content, return_previous: true, ..setting("a", "") };
        try_set(&mut client, request).await.unwrap();
        assert_eq!(look(&mut client, "a").await.unwrap().value, bytes);
    }
    let request = v1::SetRequest { return_previous: true, ..setting("a", "ü") };
    assert_eq!(try_set(&mut client, request).await.unwrap().previous.unwrap().value, vec![0xff; 3]);
    assert_eq!(text(&mut client, "a").await.as_deref(), Some("ü"));
}

#[tokio::test]
async fn a_value_of_1_mib_passes_and_one_byte_more_is_refused() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let of = |bytes: usize| v1::SetRequest {
        content: Some(Content::Value(vec![7; bytes].into())),
        ..setting("large", "")
    };
    let version = set(&mut one, of(1 << 20)).await;
    assert_eq!(look(&mut two, "large").await.unwrap().value, vec![7; 1 << 20]);
    let larger =
        crate::refusals::refused(try_set(&mut two, of((1 << 20) + 1)).await, &[("value", "TOO_LARGE")]);
    assert_eq!(metadata(&larger, "value_bytes"), "1048577");
    assert_eq!(metadata(&larger, "value_bytes_max"), "1048576");
    let text = setting("large", &"x".repeat((1 << 20) + 1));
    crate::refusals::refused(try_set(&mut two, text).await, &[("text", "TOO_LARGE")]);
    assert_eq!(look(&mut one, "large").await.unwrap().version, version, "nothing has happened");
}

#[tokio::test]
async fn a_precondition_that_is_not_met_changes_nothing_and_tells_the_version() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let under = |precondition| v1::SetRequest { precondition: Some(precondition), ..setting("a", "new") };
    let why = "PRECONDITION_FAILED";
    for missing in [Precondition::Present(true), Precondition::Version(7)] {
        let status = failed(try_set(&mut one, under(missing)).await, Code::FailedPrecondition, why);
        assert!(status.message().contains("has no value"), "{status:?}");
    }
    let status = delete(&mut one, v1::DeleteRequest { version: Some(7), ..deleting("a") }).await;
    failed(status, Code::FailedPrecondition, why);
    assert_eq!(look(&mut two, "a").await, None);

    let first = set(&mut one, under(Precondition::Absent(true))).await;
    for wrong in [Precondition::Absent(true), Precondition::Version(first - 1)] {
        let status = failed(try_set(&mut two, under(wrong)).await, Code::FailedPrecondition, why);
        assert_eq!(metadata(&status, "key"), "a");
        assert_eq!(metadata(&status, "current_version"), first.to_string());
    }
    let wrong = v1::DeleteRequest { version: Some(first + 1), ..deleting("a") };
    failed(delete(&mut two, wrong).await, Code::FailedPrecondition, why);
    assert_eq!(look(&mut one, "a").await.unwrap().version, first);

    let second = set(&mut two, under(Precondition::Version(first))).await;
    let third = set(&mut one, under(Precondition::Present(true))).await;
    assert!(first < second && second < third);
    let right = v1::DeleteRequest { version: Some(third), ..deleting("a") };
    assert!(delete(&mut two, right).await.unwrap().deleted);
}

#[tokio::test]
async fn a_number_counts_from_where_it_is_told_to() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let by = |delta| v1::IncrementRequest { delta: Some(delta), ..counting("n") };
    let from_ten = v1::IncrementRequest { initial: 10, ..counting("n") };
    let mut last = 0;
    for (request, number) in
        [(from_ten.clone(), 11), (from_ten, 12), (by(-20), -8), (by(0), -8), (counting("n"), -7)]
    {
        let answer = increment(&mut one, request).await.unwrap();
        assert_eq!(answer.number, number);
        assert!(answer.version > last);
        last = answer.version;
    }
    assert_eq!(text(&mut two, "n").await.as_deref(), Some("-7"));

    set(&mut one, setting("n", &i64::MAX.to_string())).await;
    let status = failed(increment(&mut two, by(1)).await, Code::OutOfRange, "INTEGER_OVERFLOW");
    assert_eq!(metadata(&status, "number"), i64::MAX.to_string());
    assert_eq!(metadata(&status, "delta"), "1");
    assert_eq!(increment(&mut two, by(i64::MIN)).await.unwrap().number, -1);

    for odd in ["", "1.5", "+1", "007", " 1", "9223372036854775808", "one"] {
        let version = set(&mut one, setting("n", odd)).await;
        let status = increment(&mut two, counting("n")).await;
        failed(status, Code::FailedPrecondition, "NOT_AN_INTEGER");
        assert_eq!(look(&mut one, "n").await.unwrap().version, version, "{odd:?}");
    }
}

#[tokio::test]
async fn a_value_with_a_time_to_live_is_gone_after_it_and_never_comes_back() {
    let (cluster, _served, [mut one, mut two]) = kv_pair().await;
    let request = v1::SetRequest { ttl: seconds(60), ..setting("a", "x") };
    let answer = try_set(&mut one, request).await.unwrap().key_value.unwrap();
    let left = length(&answer.remaining);
    assert!(left > Duration::ZERO && left <= Duration::from_secs(60), "{left:?}");
    cluster.advance(Duration::from_secs(40));
    let left = length(&look(&mut two, "a").await.unwrap().remaining);
    assert!(left > Duration::ZERO && left <= Duration::from_secs(20), "{left:?}");

    // Its time starts anew, the version stays.
    let again = touch(&mut two, v1::TouchRequest { ttl: seconds(60), ..touching("a") }).await.unwrap();
    assert_eq!((again.found, again.version), (true, answer.version));
    cluster.advance(Duration::from_secs(40));
    assert_eq!(look(&mut one, "a").await.unwrap().version, answer.version);
    cluster.advance(Duration::from_secs(40));
    assert_eq!(look(&mut two, "a").await, None);
    assert_eq!(look(&mut one, "a").await, None);
    let late = touch(&mut one, touching("a")).await.unwrap();
    assert_eq!(late, v1::TouchResponse::default());
    let absent = v1::SetRequest { precondition: Some(Precondition::Absent(true)), ..setting("a", "y") };
    assert!(set(&mut two, absent).await > answer.version);

    // An increment keeps the time of the number; a touch without one leaves it for good.
    increment(&mut one, v1::IncrementRequest { ttl: seconds(60), ..counting("n") }).await.unwrap();
    assert_eq!(increment(&mut two, counting("n")).await.unwrap().number, 2);
    assert!(look(&mut one, "n").await.unwrap().remaining.is_some());
    assert!(touch(&mut one, touching("n")).await.unwrap().found);
    cluster.advance(Duration::from_secs(100_000));
    let number = look(&mut two, "n").await.unwrap();
    assert_eq!((number.value.as_ref(), number.remaining), (&b"2"[..], None));
}

#[tokio::test]
async fn a_request_that_comes_again_anywhere_is_answered_and_not_done_again() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let counted = v1::IncrementRequest { request_id: request_id(1), ..counting("n") };
    let first = increment(&mut one, counted.clone()).await.unwrap();
    increment(&mut one, counting("n")).await.unwrap();
    let again = increment(&mut two, counted).await.unwrap();
    assert_eq!(again, v1::IncrementResponse { repeated: true, ..first });
    assert_eq!(text(&mut two, "n").await.as_deref(), Some("2"));

    let put = v1::SetRequest {
        request_id: request_id(2),
        return_previous: true,
        ttl: seconds(60),
        precondition: Some(Precondition::Present(true)),
        ..setting("n", "x")
    };
    let first = try_set(&mut one, put.clone()).await.unwrap();
    let removed = v1::DeleteRequest { request_id: request_id(3), return_previous: true, ..deleting("n") };
    let gone = delete(&mut two, removed.clone()).await.unwrap();
    assert_eq!((first.repeated, first.previous.unwrap().value.as_ref()), (false, &b"2"[..]));
    assert_eq!(gone.previous.as_ref().unwrap().value, "x");

    let again = try_set(&mut two, put).await.unwrap();
    let (was, is) = (first.key_value.unwrap(), again.key_value.unwrap());
    assert!(again.repeated && again.previous.is_none() && is.version == was.version);
    assert_eq!(is.remaining, seconds(0), "nobody knows how much of it is over");
    let expected = v1::DeleteResponse { previous: None, repeated: true, ..gone };
    assert_eq!(delete(&mut one, removed).await.unwrap(), expected);
    assert_eq!(look(&mut one, "n").await, None, "the set was not done again");

    let touched = v1::TouchRequest { request_id: request_id(4), ..touching("n") };
    assert!(!touch(&mut one, touched.clone()).await.unwrap().repeated);
    set(&mut one, setting("n", "y")).await;
    let again = touch(&mut two, touched).await.unwrap();
    assert_eq!(again, v1::TouchResponse { found: false, version: 0, repeated: true });
}

#[tokio::test]
async fn an_id_that_named_another_request_is_refused() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let named = |text| v1::SetRequest { request_id: request_id(1), ..setting("a", text) };
    set(&mut one, named("x")).await;
    let why = "REQUEST_ID_REUSED";
    let status = failed(try_set(&mut two, named("y")).await, Code::FailedPrecondition, why);
    assert_eq!(metadata(&status, "key"), "a");
    let removing = v1::DeleteRequest { request_id: request_id(1), ..deleting("a") };
    failed(delete(&mut two, removing).await, Code::FailedPrecondition, why);
    assert_eq!(text(&mut one, "a").await.as_deref(), Some("x"));
    // Ids belong to their key, and the form of a UUID does not matter.
    set(&mut two, v1::SetRequest { request_id: request_id(1), ..setting("b", "y") }).await;
    let plain = request_id(1).map(|id| id.replace('-', "").to_uppercase());
    assert!(try_set(&mut two, v1::SetRequest { request_id: plain, ..named("x") }).await.unwrap().repeated);
}

#[tokio::test]
async fn a_holder_that_was_overtaken_is_fenced_off() {
    let cluster = Cluster::new();
    let served = [cluster.daemon().await, cluster.daemon().await];
    let mut locks = served[0].client().await;
    let (mut one, mut two) = (served[0].kv().await, served[1].kv().await);
    let old = lease(&mut locks, asking("writer", "ann")).await;
    force(&mut locks, "writer", old.fencing_token).await.unwrap();
    let new = lease(&mut locks, asking("writer", "bob")).await;

    let by = |lease: &v1::Lease, text| v1::SetRequest {
        fence: fence(&lease.name, lease.fencing_token),
        ..setting("a", text)
    };
    set(&mut one, by(&old, "old")).await;
    set(&mut two, by(&old, "old again")).await;
    set(&mut two, by(&new, "new")).await;
    set(&mut one, by(&new, "new again")).await;
    let late = fence("writer", old.fencing_token);
    let refusals = [
        try_set(&mut one, by(&old, "late")).await.map(drop),
        delete(&mut two, v1::DeleteRequest { fence: late.clone(), ..deleting("a") }).await.map(drop),
        increment(&mut one, v1::IncrementRequest { fence: late.clone(), ..counting("a") }).await.map(drop),
        touch(&mut two, v1::TouchRequest { fence: late, ..touching("a") }).await.map(drop),
    ];
    for refusal in refusals {
        let status = failed(refusal, Code::FailedPrecondition, "FENCED");
        assert_eq!((metadata(&status, "key"), metadata(&status, "lock")), ("a".into(), "writer".into()));
        assert_eq!(metadata(&status, "fencing_token"), old.fencing_token.to_string());
        assert_eq!(metadata(&status, "highest_fencing_token"), new.fencing_token.to_string());
    }
    assert_eq!(text(&mut two, "a").await.as_deref(), Some("new again"));
    // Not even where there is no value any more.
    let removing = v1::DeleteRequest { fence: fence("writer", new.fencing_token), ..deleting("a") };
    assert!(delete(&mut one, removing).await.unwrap().deleted);
    failed(try_set(&mut two, by(&old, "late")).await, Code::FailedPrecondition, "FENCED");
    assert_eq!(look(&mut one, "a").await, None);
}

#[tokio::test]
async fn a_key_is_fenced_by_so_many_locks_and_no_more() {
    let (_cluster, _served, mut client) = kv_alone().await;
    let under = |lock: usize| v1::SetRequest { fence: fence(&format!("l{lock}"), 5), ..setting("a", "x") };
    for lock in 0..16 {
        set(&mut client, under(lock)).await;
    }
    let status = failed(try_set(&mut client, under(16)).await, Code::ResourceExhausted, "TOO_MANY_FENCES");
    assert_eq!((metadata(&status, "lock"), metadata(&status, "fences_max")), ("l16".into(), "16".into()));
    set(&mut client, under(3)).await;
}

/// The nodes take the write and nobody hears of it.
#[tokio::test]
async fn an_unknown_outcome_may_be_repeated_only_by_who_can_name_the_write() {
    let cluster = Cluster::new();
    let deaf = cluster.daemon_behind_network().await;
    let other = cluster.daemon().await;
    let (mut one, mut two) = (deaf.kv().await, other.kv().await);
    let in_a_second = |message| {
        let mut request = Request::new(message);
        request.set_timeout(Duration::from_secs(1));
        request
    };
    for (key, id, code) in [("a", None, Code::Unknown), ("b", request_id(1), Code::Unavailable)] {
        // The promise is there, so that the next write is sent at once.
        increment(&mut one, counting(key)).await.unwrap();
        cluster.set_network(&[0, 1, 2], Network::Mute);
        let counted = v1::IncrementRequest { request_id: id, ..counting(key) };
        let answer = within(one.increment(in_a_second(counted.clone()))).await;
        failed(answer, code, "OUTCOME_UNKNOWN");
        cluster.set_network(&[0, 1, 2], Network::Whole);
        // It happened. Who can say that it is the same may ask again, at another daemon.
        let again = increment(&mut two, counted).await.unwrap();
        let expected = if again.repeated { 2 } else { 3 };
        assert_eq!((again.number, again.repeated), (expected, key == "b"), "{key}");
    }
    let version = look(&mut two, "a").await.unwrap().version;
    cluster.set_network(&[0, 1, 2], Network::Cut);
    let request = v1::SetRequest { precondition: Some(Precondition::Version(version)), ..setting("a", "x") };
    failed(try_set(&mut one, request).await, Code::Unavailable, "NO_QUORUM");
    assert_eq!(look(&mut two, "a").await.unwrap().version, version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_that_are_all_sent_twice_count_once() {
    let cluster = Cluster::new();
    let mut clients = Vec::new();
    let mut served = Vec::new();
    for _ in 0..3 {
        let daemon = cluster.daemon().await;
        clients.push(daemon.kv().await);
        served.push(daemon);
    }
    // As many as a key remembers, so that the repeat may come as late as it likes.
    let workers = (0..64_usize).map(|worker| {
        let mut first = clients[worker % 3].clone();
        let mut second = clients[(worker + 1) % 3].clone();
        start(async move {
            for round in 0..2 {
                let id = request_id((worker * 2 + round) as u64);
                let request = v1::IncrementRequest { request_id: id, ..counting("n") };
                let sent = increment(&mut first, request.clone()).await.unwrap();
                let again = increment(&mut second, request).await.unwrap();
                assert_eq!(again, v1::IncrementResponse { repeated: true, ..sent });
                assert!(!sent.repeated);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        within(worker).await.unwrap();
    }
    assert_eq!(text(&mut clients[0], "n").await.as_deref(), Some("128"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_without_ids_count_once_each() {
    let (_cluster, _served, clients) = kv_pair().await;
    let workers = (0..64).map(|worker| {
        let mut client = clients[worker % 2].clone();
        start(async move {
            let mut numbers = Vec::new();
            for _ in 0..4 {
                numbers.push(increment(&mut client, counting("n")).await.unwrap().number);
            }
            numbers
        })
    });
    let mut numbers = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        numbers.extend(within(worker).await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=256).collect::<Vec<_>>(), "each sum is seen once");
}
