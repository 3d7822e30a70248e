//! Keys, while servers are killed, frozen and emptied.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use majorityd::proto::v1;
use majorityd::proto::v1::kv_service_client::KvServiceClient;
use majorityd::proto::v1::set_request::{Content, Precondition};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::daemon::{DaemonProcess, addresses, beside, pause, reason, request, seen, servers};
use crate::support::redis_server::{Data, RedisServer};

const CALL: Duration = Duration::from_secs(20);
/// How long a server is away, and the pause before the next one.
const AWAY: Duration = Duration::from_millis(1_500);

pub type Client = KvServiceClient<Channel>;

pub async fn client(daemon: &DaemonProcess) -> Client {
    KvServiceClient::new(daemon.channel().await)
}

/// A UUID of these bits.
pub fn request_id(high: u64, low: u64) -> String {
    format!("{high:016x}{low:016x}")
}

fn increment(key: &str, request_id: Option<String>) -> v1::IncrementRequest {
    v1::IncrementRequest { key: key.into(), request_id, ..v1::IncrementRequest::default() }
}

fn set(key: &str, text: &str) -> v1::SetRequest {
    let content = Some(Content::Text(text.into()));
    v1::SetRequest { key: key.into(), content, ..v1::SetRequest::default() }
}

/// What is there, however long it takes until a quorum can say.
async fn value(client: &Client, key: &str) -> Option<v1::KeyValue> {
    let message = v1::GetRequest { key: key.into() };
    let found = seen("a value", || async { client.clone().get(request(message.clone(), CALL)).await.ok() });
    found.await.into_inner().key_value
}

fn text(found: &v1::KeyValue) -> &str {
    std::str::from_utf8(&found.value).unwrap()
}

/// Only what may be said of a call that failed while nodes do.
fn known(status: &Status) -> String {
    let reason = reason(status).unwrap_or_else(|| panic!("no daemon says that: {status:?}"));
    assert!(["NO_QUORUM", "OUTCOME_UNKNOWN", "DEADLINE_EXCEEDED"].contains(&reason.as_str()), "{status:?}");
    reason
}

/// Kills, freezes and empties one server after the other, each of them once in each way, with all daemons' word in between
/// that every node counts.
pub async fn harass(servers: &mut [RedisServer], daemon: &DaemonProcess) {
    for server in servers {
        server.freeze();
        pause(AWAY).await;
        server.thaw();
        for data in [Data::Kept, Data::Wiped] {
            server.restart(data);
            seen("all nodes to count again", || async { daemon.all_is_well().then_some(()) }).await;
        }
        server.flushall();
        seen("all nodes to count again", || async { daemon.all_is_well().then_some(()) }).await;
    }
}

/// Mechanisms: request ids in the register, the retry rule, and that what q nodes have taken stays while one after the other
/// forgets everything.
#[tokio::test]
async fn increments_by_64_clients_come_out_exactly_while_servers_are_emptied() {
    let mut servers = servers(3);
    let daemons = join_all((0..3).map(|_| DaemonProcess::serving(&servers))).await;
    let clients: Vec<Client> = join_all(daemons.iter().map(client)).await;
    let over = Arc::new(AtomicBool::new(false));
    // Without ids: what was acknowledged, and what may have happened.
    let (acknowledged, open) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counting = (0..64).map(|number| {
        let (clients, over) = (clients.clone(), over.clone());
        let (acknowledged, open) = (acknowledged.clone(), open.clone());
        beside(async move {
            let (mut done, mut turn) = (0, number);
            while !over.load(Ordering::Relaxed) {
                let message = increment("exact", Some(request_id(number as u64, done)));
                // Sent until it is answered, each time to another daemon; and now and then once more all the same.
                let mut answers = Vec::new();
                while answers.len() < 1 + usize::from(done.is_multiple_of(5)) {
                    turn += 1;
                    let mut client = clients[turn % clients.len()].clone();
                    match client.increment(request(message.clone(), CALL)).await {
                        Ok(answer) => answers.push(answer.into_inner()),
                        Err(status) => drop(known(&status)),
                    }
                }
                let first = (answers[0].number, answers[0].version);
                for again in &answers[1..] {
                    assert!(again.repeated);
                    assert_eq!((again.number, again.version), first);
                }
                done += 1;
                let mut client = clients[turn % clients.len()].clone();
                match client.increment(request(increment("plain", None), CALL)).await {
                    Ok(_) => drop(acknowledged.fetch_add(1, Ordering::Relaxed)),
                    Err(status) if known(&status) == "OUTCOME_UNKNOWN" => {
                        assert_eq!(status.code(), Code::Unknown, "a repeat would do harm");
                        open.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {}
                }
            }
            done
        })
    });
    let counting: Vec<_> = counting.collect();
    harass(&mut servers, &daemons[0]).await;
    over.store(true, Ordering::Relaxed);
    let done: u64 = join_all(counting).await.into_iter().map(|done| done.unwrap()).sum();
    let sum = |found: Option<v1::KeyValue>| text(&found.unwrap()).parse::<u64>().unwrap();
    assert_eq!(sum(value(&clients[1], "exact").await), done);
    let plain = sum(value(&clients[2], "plain").await);
    let (least, open) = (acknowledged.load(Ordering::Relaxed), open.load(Ordering::Relaxed));
    assert!(
        (least..=least + open).contains(&plain),
        "{plain}, and {least} to {} were expected",
        least + open
    );
    println!("{done} with an id; {plain} without, {least} of them acknowledged and {open} open");
    assert!(done > 64);
}

/// Mechanisms: versions, and write-backs. A chain in which each write names the version before it has no gap and no fork,
/// and readers never see it go back.
#[tokio::test]
async fn compare_and_set_makes_one_chain_that_no_reader_sees_going_back() {
    let mut servers = servers(3);
    let daemons = join_all((0..2).map(|_| DaemonProcess::serving(&servers))).await;
    let clients: Vec<Client> = join_all(daemons.iter().map(client)).await;
    clients[0].clone().set(request(set("chain", "1"), CALL)).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let writers = (0..4usize).map(|number| {
        let (client, over) = (clients[number % 2].clone(), over.clone());
        beside(async move {
            let mut links = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let found = value(&client, "chain").await.unwrap();
                let next: u64 = text(&found).parse::<u64>().unwrap() + 1;
                let precondition = Some(Precondition::Version(found.version));
                let message = v1::SetRequest { precondition, ..set("chain", &next.to_string()) };
                match client.clone().set(request(message, CALL)).await {
                    Ok(answer) => {
                        let version = answer.into_inner().key_value.unwrap().version;
                        assert!(version > found.version);
                        links.push((next, version));
                    }
                    Err(status) if reason(&status).as_deref() == Some("PRECONDITION_FAILED") => {}
                    Err(status) => drop(known(&status)),
                }
            }
            links
        })
    });
    let writers: Vec<_> = writers.collect();
    let readers = clients.iter().cloned().map(|client| {
        let over = over.clone();
        beside(async move {
            let mut last = (0, 0);
            while !over.load(Ordering::Relaxed) {
                let found = value(&client, "chain").await.unwrap();
                let now = (found.version, text(&found).parse::<u64>().unwrap());
                assert!(now >= last && (now.0 > last.0) == (now.1 > last.1), "{last:?}, then {now:?}");
                last = now;
            }
        })
    });
    let readers: Vec<_> = readers.collect();
    harass(&mut servers, &daemons[0]).await;
    over.store(true, Ordering::Relaxed);
    let mut links: Vec<(u64, u64)> =
        join_all(writers).await.into_iter().flat_map(|links| links.unwrap()).collect();
    join_all(readers).await.into_iter().for_each(|reader| reader.unwrap());
    links.sort_unstable();
    assert!(links.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1), "each link once");
    let end = value(&clients[1], "chain").await.unwrap();
    // Links of unknown outcome are in the chain or not, but the last that was acknowledged is not behind its end.
    let last = links.last().unwrap();
    assert!(text(&end).parse::<u64>().unwrap() >= last.0 && end.version >= last.1);
    assert!(links.len() > 20, "{} links", links.len());
}

/// Mechanisms: the index on the nodes, and pages by name. `KEYS=100000` takes more than a minute.
#[tokio::test]
async fn many_keys_are_listed_in_pages_of_stable_order() {
    const BATCH: usize = 1_000;
    let keys: usize = std::env::var("KEYS").map_or(20_000, |keys| keys.parse().unwrap());
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = client(&daemon).await;
    let name = |number: usize| format!("many/{number:06}");
    for batch in 0..keys / BATCH {
        let items = (batch * BATCH..(batch + 1) * BATCH).map(|number| set(&name(number), "x")).collect();
        let answer = client.clone().batch_set(request(v1::BatchSetRequest { items }, CALL)).await.unwrap();
        for result in answer.into_inner().results {
            let outcome = result.outcome.unwrap();
            assert!(matches!(outcome, v1::batch_set_response::result::Outcome::Set(_)), "{outcome:?}");
        }
    }
    client.clone().set(request(set("other", "x"), CALL)).await.unwrap();
    let (mut listed, mut page_token) = (Vec::with_capacity(keys), String::new());
    loop {
        let prefix = "many/".to_owned();
        let message = v1::ListKeysRequest { prefix, page_size: 1_000, page_token, with_values: true };
        let page = client.clone().list_keys(request(message, CALL)).await.unwrap().into_inner();
        listed.extend(page.keys.into_iter().map(|key| (key.key, key.value)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed.len(), keys);
    for (number, (key, value)) in listed.into_iter().enumerate() {
        assert_eq!((key, value.as_ref()), (name(number), &b"x"[..]));
    }
}

/// Mechanisms: announcements over all nodes, and the walk that finds what was not announced.
#[tokio::test]
async fn a_watch_at_another_daemon_is_told_the_last_of_every_key_although_servers_come_and_go() {
    use v1::watch_request::Target;
    use v1::watch_response::Event;
    let mut servers = servers(3);
    let often = [("keys.look_interval", "500ms")];
    let daemons = join_all((0..2).map(|_| async {
        let daemon = DaemonProcess::start(&addresses(&servers), &often).await;
        daemon.until_health(ServingStatus::Serving).await;
        daemon
    }))
    .await;
    let (writer, watcher) = (client(&daemons[0]).await, client(&daemons[1]).await);
    let message = v1::WatchRequest { target: Some(Target::Prefix("w/".into())), start_version: 0 };
    let mut events = watcher.clone().watch(message).await.unwrap().into_inner();
    assert!(matches!(events.message().await.unwrap().unwrap().event, Some(Event::Synced(_))));
    let told = Arc::new(Mutex::new(BTreeMap::<String, (u64, Option<String>)>::new()));
    let noted = told.clone();
    let follower = beside(async move {
        loop {
            let (key, version, text) = match events.message().await.unwrap().unwrap().event.unwrap() {
                Event::Value(told) => {
                    let found = told.key_value.unwrap();
                    let text = text(&found).to_owned();
                    (found.key, found.version, Some(text))
                }
                Event::Removed(told) => (told.key, told.version, None),
                Event::Synced(_) => panic!("it comes once"),
            };
            let before = noted.lock().unwrap().insert(key.clone(), (version, text));
            assert!(
                before.as_ref().is_none_or(|before| before.0 < version),
                "{key}: {before:?}, then {version}"
            );
        }
    });
    for round in 0..40 {
        let written = set(&format!("w/{}", round % 5), &round.to_string());
        seen("a write", || async { writer.clone().set(request(written.clone(), CALL)).await.ok() }).await;
        match round {
            5 => servers[0].freeze(),
            20 => servers[0].thaw(),
            21 => servers[1].restart(Data::Wiped),
            _ => {}
        }
    }
    let message = v1::DeleteRequest { key: "w/0".into(), ..v1::DeleteRequest::default() };
    seen("a removal", || async { writer.clone().delete(request(message.clone(), CALL)).await.ok() }).await;
    let there = |number: u32| (format!("w/{number}"), (number > 0).then(|| (35 + number).to_string()));
    let expected: Vec<_> = (0..5).map(there).collect();
    seen("the last of every key", || async {
        let told: Vec<_> =
            told.lock().unwrap().iter().map(|(key, (_, text))| (key.clone(), text.clone())).collect();
        (told == expected || follower.is_finished()).then_some(())
    })
    .await;
    assert!(!follower.is_finished(), "{:?}", follower.await);
}

/// Mechanisms: fences in the register, tokens by agreement.
#[tokio::test]
async fn the_holder_before_writes_no_more_at_any_daemon() {
    let servers = servers(3);
    let daemons = join_all((0..2).map(|_| DaemonProcess::serving(&servers))).await;
    let (locks, ttl) = (daemons[0].client().await, Duration::from_secs(30));
    let old = locks.must_acquire("job", "old", ttl, Duration::ZERO).await;
    assert!(locks.release(&old).await.unwrap());
    let new = locks.must_acquire("job", "new", ttl, Duration::ZERO).await;
    let by = |token: u64| v1::SetRequest {
        fence: Some(v1::Fence { lock: "job".into(), token }),
        ..set("result", &token.to_string())
    };
    let (one, other) = (client(&daemons[0]).await, client(&daemons[1]).await);
    let (old, new) = (old.lease.fencing_token, new.lease.fencing_token);
    one.clone().set(request(by(old), CALL)).await.unwrap();
    one.clone().set(request(by(new), CALL)).await.unwrap();
    let late = other.clone().set(request(by(old), CALL)).await.unwrap_err();
    assert_eq!((late.code(), reason(&late).as_deref()), (Code::FailedPrecondition, Some("FENCED")));
    other.clone().set(request(by(new), CALL)).await.unwrap();
    let message = v1::DeleteRequest { key: "result".into(), ..v1::DeleteRequest::default() };
    assert!(one.clone().delete(request(message, CALL)).await.unwrap().into_inner().deleted);
    let late = other.clone().set(request(by(old), CALL)).await.unwrap_err();
    assert_eq!(reason(&late).as_deref(), Some("FENCED"), "also when the value is gone");
}
