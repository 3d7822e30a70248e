//! Watch: a key or a prefix, what was there, what changes, and how it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::set_request::Content;
use majorityd::proto::v1::watch_request::Target;
use majorityd::proto::v1::watch_response::Event;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Streaming};

use crate::kv::*;
use crate::stage::*;

type Events = Streaming<v1::WatchResponse>;

fn of_key(key: &str) -> v1::WatchRequest {
    v1::WatchRequest { target: Some(Target::Key(key.to_owned())), start_version: 0 }
}

fn of_prefix(prefix: &str) -> v1::WatchRequest {
    v1::WatchRequest { target: Some(Target::Prefix(prefix.to_owned())), start_version: 0 }
}

async fn watch(client: &mut KvClient, request: v1::WatchRequest) -> Events {
    within(client.watch(request)).await.unwrap().into_inner()
}

#[track_caller]
fn next(events: &mut Events) -> impl Future<Output = Event> + '_ {
    let message = within(events.message());
    async { message.await.unwrap().expect("a watch does not end").event.expect("an event") }
}

/// A key with its text, none where it is gone; the version; what was missed.
type Told = (String, Option<String>, u64, u64);

#[track_caller]
fn told(events: &mut Events) -> impl Future<Output = Told> + '_ {
    let next = next(events);
    async {
        match next.await {
            Event::Value(v1::watch_response::Value { key_value: Some(found), missed }) => {
                let text = String::from_utf8(found.value.to_vec()).unwrap();
                (found.key, Some(text), found.version, missed)
            }
            Event::Removed(removed) => (removed.key, None, removed.version, removed.missed),
            other => panic!("{other:?}"),
        }
    }
}

async fn remove(client: &mut KvClient, key: &str) -> u64 {
    let request = v1::DeleteRequest { key: key.to_owned(), ..Default::default() };
    within(client.delete(request)).await.unwrap().into_inner().version
}

#[tokio::test]
async fn a_watch_of_a_key_tells_what_is_there_and_every_change_at_any_daemon() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let mut watches = [watch(&mut one, of_key("a")).await, watch(&mut two, of_key("a")).await];
    for events in &mut watches {
        assert_eq!(told(events).await, ("a".to_owned(), None, 0, 0));
        assert_eq!(next(events).await, Event::Synced(v1::watch_response::Synced {}));
    }
    for round in 0..4 {
        let (client, text) = (if round % 2 == 0 { &mut one } else { &mut two }, round.to_string());
        let version = set(client, setting("a", &text)).await;
        for events in &mut watches {
            assert_eq!(told(events).await, ("a".to_owned(), Some(text.clone()), version, 0));
        }
        let gone = remove(client, "a").await;
        for events in &mut watches {
            assert_eq!(told(events).await, ("a".to_owned(), None, gone, 0));
        }
    }
    // What is no change is not told, and neither is another key: the next event is that of the next write.
    set(&mut one, setting("ab", "other")).await;
    within(one.touch(v1::TouchRequest { key: "a".to_owned(), ..Default::default() })).await.unwrap();
    let last = set(&mut two, setting("a", "last")).await;
    for events in &mut watches {
        assert_eq!(told(events).await, ("a".to_owned(), Some("last".to_owned()), last, 0));
    }
}

#[tokio::test]
async fn a_watch_of_a_prefix_tells_all_that_is_there_then_synced_then_changes() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let mut versions = BTreeMap::new();
    for key in ["job/1", "job/2", "job/3", "other"] {
        versions.insert(key, set(&mut one, setting(key, key)).await);
    }
    remove(&mut one, "job/3").await;
    let mut events = watch(&mut two, of_prefix("job/")).await;
    for key in ["job/1", "job/2"] {
        assert_eq!(told(&mut events).await, (key.to_owned(), Some(key.to_owned()), versions[key], 0));
    }
    assert_eq!(next(&mut events).await, Event::Synced(v1::watch_response::Synced {}));
    set(&mut one, setting("other", "not told")).await;
    let new = set(&mut one, setting("job/4", "new")).await;
    assert_eq!(told(&mut events).await, ("job/4".to_owned(), Some("new".to_owned()), new, 0));
    let gone = remove(&mut two, "job/1").await;
    assert_eq!(told(&mut events).await, ("job/1".to_owned(), None, gone, 0));

    // An empty prefix is all keys; of what is there, only what is newer is told.
    let request = v1::WatchRequest { start_version: new - 1, ..of_prefix("") };
    let mut late = watch(&mut one, request).await;
    let mut seen = Vec::new();
    while let Event::Value(value) = next(&mut late).await {
        seen.push(value.key_value.unwrap().key);
    }
    assert!(seen.contains(&"job/4".to_owned()) && !seen.contains(&"job/2".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn a_watch_that_is_opened_again_starts_after_the_version_it_saw() {
    let (_cluster, _served, [mut one, mut two]) = kv_pair().await;
    let first = set(&mut one, setting("a", "1")).await;
    let from = |start_version| v1::WatchRequest { start_version, ..of_key("a") };
    let mut events = watch(&mut two, from(first)).await;
    assert_eq!(next(&mut events).await, Event::Synced(v1::watch_response::Synced {}));
    let second = set(&mut one, setting("a", "2")).await;
    assert_eq!(told(&mut events).await.2, second);
    drop(events);
    let third = set(&mut one, setting("a", "3")).await;
    let mut events = watch(&mut two, from(second)).await;
    assert_eq!(told(&mut events).await, ("a".to_owned(), Some("3".to_owned()), third, 0));
    assert_eq!(next(&mut events).await, Event::Synced(v1::watch_response::Synced {}));
}

#[tokio::test]
async fn what_expires_is_told_as_removed_when_it_is_noticed() {
    let (cluster, _served, [mut one, mut two]) = kv_pair().await;
    let version = set(&mut one, v1::SetRequest { ttl: seconds(60), ..setting("a", "x") }).await;
    let mut events = watch(&mut two, of_key("a")).await;
    assert_eq!(told(&mut events).await.2, version);
    assert_eq!(next(&mut events).await, Event::Synced(v1::watch_response::Synced {}));
    cluster.advance(Duration::from_secs(61));
    assert_eq!(look(&mut one, "a").await, None);
    let (key, text, removal, missed) = told(&mut events).await;
    assert_eq!((key.as_str(), text, missed), ("a", None, 0));
    assert!(removal > version);
}

/// The client takes nothing for as long as forty writes take, each too large to be in flight with another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_told_what_it_missed_and_holds_up_nobody() {
    const WRITES: u64 = 40;
    let (_cluster, served, mut client) = kv_alone().await;
    let narrow = Endpoint::from_shared(format!("http://{}", served.address))
        .unwrap()
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535);
    let mut slow = KvClient::new(narrow.connect().await.unwrap());
    let of = |number: u64| v1::SetRequest {
        content: Some(Content::Value(vec![number as u8; 1 << 18].into())),
        ..setting("a", "")
    };
    set(&mut client, of(0)).await;
    let mut slow = watch(&mut slow, of_key("a")).await;
    let mut quick = watch(&mut client, of_key("a")).await;
    for events in [&mut slow, &mut quick] {
        assert!(matches!(next(events).await, Event::Value(_)));
        assert!(matches!(next(events).await, Event::Synced(_)));
    }
    let mut last = 0;
    for number in 1..=WRITES {
        last = set(&mut client, of(number)).await;
        let Event::Value(value) = next(&mut quick).await else { panic!("a value") };
        let found = value.key_value.unwrap();
        assert_eq!((found.version, found.value[0], value.missed), (last, number as u8, 0));
    }
    let (mut seen, mut told, mut missed) = (0, 0, 0);
    while seen != last {
        let Event::Value(value) = next(&mut slow).await else { panic!("a value") };
        let version = value.key_value.unwrap().version;
        assert!(version > seen, "no version goes backwards");
        (seen, told, missed) = (version, told + 1, missed + value.missed);
    }
    assert_eq!(told + missed, WRITES);
    assert!(missed > 0 && told < WRITES, "told of {told}, missed {missed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_only_rise_and_the_last_is_always_told_however_many_write() {
    let (_cluster, _served, clients) = kv_pair().await;
    let (mut one, mut two) = (clients[0].clone(), clients[1].clone());
    let mut watches = [watch(&mut one, of_prefix("n/")).await, watch(&mut two, of_prefix("n/")).await];
    let writers = (0..8_usize).map(|writer| {
        let mut client = clients[writer % 2].clone();
        start(async move {
            for round in 0..20 {
                let key = format!("n/{}", (writer + round) % 4);
                within(client.increment(counting(&key))).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        within(writer).await.unwrap();
    }
    for events in &mut watches {
        let mut state: BTreeMap<String, (u64, i64)> = BTreeMap::new();
        // Forty increments of each of four keys.
        while state.len() < 4 || state.values().any(|(_, number)| *number != 40) {
            let Event::Value(value) = next(events).await else { continue };
            let found = value.key_value.unwrap();
            let number: i64 = std::str::from_utf8(&found.value).unwrap().parse().unwrap();
            let before = state.insert(found.key, (found.version, number)).unwrap_or_default();
            assert!(found.version > before.0 && number > before.1);
            let skipped = number - before.1 - 1;
            assert!(before.0 == 0 || skipped == value.missed as i64, "{skipped} {}", value.missed);
        }
    }
}

#[tokio::test]
async fn a_watch_tells_all_that_is_there_although_writes_never_stop() {
    let (_cluster, _served, clients) = kv_pair().await;
    // More than the watch reads in one step.
    let key = |number: usize| format!("n/{number:03}");
    let mut one = clients[0].clone();
    for number in 0..300 {
        within(one.increment(counting(&key(number)))).await.unwrap();
    }
    let over = Arc::new(AtomicBool::new(false));
    let writers = (0..100_usize).map(|writer| {
        let (mut client, over) = (clients[writer % 2].clone(), over.clone());
        start(async move {
            while !over.load(Ordering::Relaxed) {
                within(client.increment(counting(&key(writer)))).await.unwrap();
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut events = watch(&mut one, of_prefix("n/")).await;
    while !matches!(next(&mut events).await, Event::Synced(_)) {}
    over.store(true, Ordering::Relaxed);
    for writer in writers {
        within(writer).await.unwrap();
    }
}

#[tokio::test]
async fn a_watch_ends_at_its_deadline() {
    let (_cluster, _served, mut client) = kv_alone().await;
    let mut request = Request::new(of_key("a"));
    request.set_timeout(Duration::from_secs(1));
    let mut events = within(client.watch(request)).await.unwrap().into_inner();
    let status = loop {
        match within(events.message()).await {
            Ok(event) => assert!(event.is_some(), "it does not just end"),
            Err(status) => break status,
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
}

#[tokio::test]
async fn a_watch_that_its_client_drops_is_over() {
    let mut cluster = Cluster::new();
    cluster.grpc.calls_per_connection_max = 1;
    let served = cluster.daemon().await;
    let mut client = served.kv().await;
    let mut events = watch(&mut client, of_prefix("")).await;
    assert!(matches!(next(&mut events).await, Event::Synced(_)));
    let request = v1::GetRequest { key: "a".to_owned() };
    let status = within(client.get(request.clone())).await.unwrap_err();
    assert_eq!(reason(&status), "RATE_LIMITED", "the watch is a call in flight");
    drop(events);
    within(async {
        while client.get(request.clone()).await.is_err() {
            pause().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_ends_watches_and_says_why() {
    let (_cluster, served, mut client) = kv_alone().await;
    let mut watches = [watch(&mut client, of_key("a")).await, watch(&mut client, of_prefix("")).await];
    assert_eq!(told(&mut watches[0]).await.1, None);
    for events in &mut watches {
        assert!(matches!(next(events).await, Event::Synced(_)));
    }
    served.stop.send(()).unwrap();
    for events in &mut watches {
        let status = within(events.message()).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    }
    drop((client, watches));
    within(served.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_watch_outlasts_a_time_without_a_quorum() {
    let cluster = Cluster::new();
    let served = [cluster.daemon_behind_network().await, cluster.daemon().await];
    let (mut client, mut other) = (served[0].kv().await, served[1].kv().await);
    let mut events = watch(&mut client, of_key("a")).await;
    assert_eq!(told(&mut events).await.1, None);
    assert!(matches!(next(&mut events).await, Event::Synced(_)));
    cluster.set_network(&[0, 1, 2], Network::Cut);
    let version = set(&mut other, setting("a", "x")).await;
    cluster.set_network(&[0, 1, 2], Network::Whole);
    assert_eq!(told(&mut events).await, ("a".to_owned(), Some("x".to_owned()), version, 0));
}
