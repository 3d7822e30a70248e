//! Daemons that are stopped and killed while there is work: what was acknowledged is there, what was refused did not happen, and
//! clients go on at another daemon with what they have.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::consume_request::{Command, Open};
use majorityd::proto::v1::hold_response::Event;
use majorityd::proto::v1::kv_service_client::KvServiceClient;
use majorityd::proto::v1::queue_service_client::QueueServiceClient;
use majorityd::proto::v1::{DisconnectPolicy, LeaseOutcome};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::support::daemon::{
    DaemonProcess, Held, acquired, addresses, beside, in_time, now, pause, reason, request, seen, servers,
};

const NO_WAIT: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(120);
const CALL: Duration = Duration::from_secs(20);

fn seconds(length: Duration) -> Option<prost_types::Duration> {
    Some(length.try_into().unwrap())
}

/// Adds one, in a way that a repeat would add again.
async fn count(kv: &mut KvServiceClient<Channel>, key: &str) -> Result<(), Status> {
    let message = v1::IncrementRequest { key: key.into(), delta: Some(1), ..Default::default() };
    kv.increment(request(message, CALL)).await.map(drop)
}

async fn counted(daemon: &DaemonProcess, key: &str) -> u64 {
    let mut kv = KvServiceClient::new(daemon.channel().await);
    let message = v1::GetRequest { key: key.into() };
    let value = kv.get(request(message, CALL)).await.unwrap().into_inner().key_value;
    value.map_or(0, |value| String::from_utf8_lossy(&value.value).parse().expect("a number"))
}

/// The client's library sent a call although the connection was closing: the server has not looked at it, and says so by a
/// GOAWAY, which the library calls INTERNAL.
fn was_told_to_go(status: &Status) -> bool {
    status.code() == Code::Internal && format!("{status:?}").contains("GoAway(b\"\", NO_ERROR, Remote)")
}

/// The daemon said that it stops, or the call did not reach it: it was refused, with the connection or before there was one.
fn is_refusal(status: &Status) -> bool {
    match reason(status) {
        Some(reason) => (status.code(), reason.as_str()) == (Code::Unavailable, "SHUTTING_DOWN"),
        None => {
            matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
                || was_told_to_go(status)
        }
    }
}

async fn put(channel: Channel, queue: &str, ids: impl Iterator<Item = String>) {
    let item = |id| v1::NewItem {
        id: Some(id),
        content: Some(v1::new_item::Content::Text("x".into())),
        ..Default::default()
    };
    let message = v1::PutRequest { queue: queue.into(), items: ids.map(item).collect() };
    QueueServiceClient::new(channel).put(request(message, CALL)).await.unwrap();
}

struct Consumer {
    commands: mpsc::Sender<v1::ConsumeRequest>,
    events: Streaming<v1::ConsumeResponse>,
}

impl Consumer {
    async fn open(channel: Channel, queue: &str, lease_ttl: Duration) -> Self {
        let (commands, sent) = mpsc::channel(16);
        let open = Open { queue: queue.into(), max_in_flight: Some(1), lease_ttl: seconds(lease_ttl) };
        commands.send(v1::ConsumeRequest { command: Some(Command::Open(open)) }).await.unwrap();
        let events = QueueServiceClient::new(channel).consume(ReceiverStream::new(sent)).await.unwrap();
        Self { commands, events: events.into_inner() }
    }

    async fn item(&mut self) -> v1::ReservedItem {
        let told = in_time("an item", self.events.message()).await.unwrap().expect("it goes on");
        match told.event.expect("set") {
            v1::consume_response::Event::Item(item) => item,
            other => panic!("{other:?}"),
        }
    }
}

fn lease_of(item: &v1::ReservedItem) -> v1::ItemLease {
    v1::ItemLease { id: item.id.clone(), lease_id: item.lease_id.clone() }
}

/// Mechanisms: what has come is finished; what comes later is refused before anything happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_stopped_under_load_finishes_what_it_took_and_refuses_the_rest() {
    const CALLERS: usize = 16;
    let servers = servers(3);
    let mut stopping = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let acknowledged: Arc<AtomicU64> = Arc::default();
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        let (channel, locks) = (stopping.channel().await, stopping.client().await);
        let acknowledged = acknowledged.clone();
        callers.push(beside(async move {
            let mut kv = KvServiceClient::new(channel);
            loop {
                if let Err(status) = count(&mut kv, "count").await {
                    return status;
                }
                acknowledged.fetch_add(1, Ordering::SeqCst);
                let name = format!("lock-{number}");
                let held = match locks.acquire(&name, "a", LONG, NO_WAIT).await {
                    Ok(held) => held.expect("its own lock"),
                    Err(status) => return status,
                };
                match locks.release(&held).await {
                    Ok(released) => assert!(released),
                    Err(status) => return status,
                }
            }
        }));
    }
    seen("much being done", || async { (acknowledged.load(Ordering::SeqCst) > 200).then_some(()) }).await;
    stopping.terminate();
    for caller in callers {
        let status = in_time("a refusal", caller).await.unwrap();
        assert!(is_refusal(&status), "{status:?}");
    }
    assert_eq!(stopping.until_ended().await.code(), Some(0));
    assert!(!stopping.log().contains("cut off"), "nothing was in flight at its end");
    // What was acknowledged happened once, and what was refused did not.
    assert_eq!(counted(&other, "count").await, acknowledged.load(Ordering::SeqCst));
}

/// Mechanism: no lease is bound to a daemon.
#[tokio::test]
async fn what_a_killed_daemon_gave_out_is_good_at_another_and_nobody_else_is_affected() {
    let servers = servers(3);
    let mut doomed = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    put(other.channel().await, "jobs", ["a", "b"].map(str::to_owned).into_iter()).await;
    // Of the one that will be killed: a stream that holds, a lease, an item of a stream.
    let mut lost = doomed.client().await.hold("held", LONG, DisconnectPolicy::Keep).await;
    let held = Held::new(acquired(&mut lost).await, now());
    let leased = doomed.client().await.must_acquire("leased", "a", LONG, NO_WAIT).await;
    let mut consumer = Consumer::open(doomed.channel().await, "jobs", LONG).await;
    let item = consumer.item().await;
    // Of the other: the same.
    let client = other.client().await;
    let mut goes_on = client.hold("mine", SHORT, DisconnectPolicy::Keep).await;
    let mine = acquired(&mut goes_on).await;
    let mut consumes = Consumer::open(other.channel().await, "jobs", SHORT).await;
    let others_item = consumes.item().await;

    doomed.kill();
    let end = in_time("the stream's end", async {
        loop {
            match lost.message().await {
                Ok(Some(_)) => {}
                end => return end.map(drop),
            }
        }
    })
    .await;
    assert!(end.is_err_and(|status| reason(&status).is_none()), "the daemon could say nothing");
    in_time("the consumer's end", consumer.events.message()).await.unwrap_err();

    // Nobody else's stream has noticed: it goes on past the length of its leases.
    let past = now() + SHORT;
    while now() < past {
        let event = in_time("extensions", goes_on.message()).await.unwrap().unwrap().event;
        let Some(Event::Extended(extended)) = event else { panic!("{event:?}") };
        assert_eq!(extended.fencing_token, mine.fencing_token);
    }
    // Who goes on at the other daemon keeps what they had, under the same token.
    for held in [&held, &leased] {
        for _ in 0..3 {
            let extended = client.extend(held).await.unwrap();
            assert_eq!(extended.lease.fencing_token, held.lease.fencing_token);
            assert_eq!(extended.lease.lease_id, held.lease.lease_id);
        }
        client.must_be_held(&held.lease.name).await;
        assert!(client.release(held).await.unwrap());
    }
    let mut queues = QueueServiceClient::new(other.channel().await);
    let extend = v1::QueueServiceExtendRequest {
        queue: "jobs".into(),
        leases: vec![lease_of(&item)],
        ttl: seconds(LONG),
    };
    let extended = queues.extend(request(extend, CALL)).await.unwrap().into_inner();
    assert!(
        matches!(
            extended.results[0].outcome,
            Some(v1::queue_service_extend_response::result::Outcome::Extended(_))
        ),
        "{extended:?}"
    );
    let ack = v1::AckRequest { queue: "jobs".into(), leases: vec![lease_of(&item)] };
    let acked = queues.ack(request(ack, CALL)).await.unwrap().into_inner();
    let outcome = v1::settle_result::Result::Outcome(LeaseOutcome::Ok.into());
    assert_eq!(acked.results[0].result, Some(outcome));
    // And the consumer at the other daemon still has its own.
    let ack = v1::ConsumeRequest { command: Some(Command::Ack(lease_of(&others_item))) };
    consumes.commands.send(ack).await.unwrap();
    let told = in_time("the ack", consumes.events.message()).await.unwrap().unwrap();
    let Some(v1::consume_response::Event::Settled(settled)) = told.event else { panic!("{told:?}") };
    let ok = v1::consume_response::settled::Result::Outcome(LeaseOutcome::Ok.into());
    assert_eq!(settled.result, Some(ok));
}

/// Mechanism: clients whose daemon is killed in the middle of things learn nothing false: every increment that was acknowledged
/// is there, and at most those whose outcome is open besides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_killed_under_load_loses_nothing_that_it_acknowledged() {
    const CALLERS: usize = 16;
    let servers = servers(3);
    let mut doomed = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let (acknowledged, open) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let elsewhere = Arc::<AtomicBool>::default();
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let (first, second) = (doomed.channel().await, other.channel().await);
        let (acknowledged, open, elsewhere) = (acknowledged.clone(), open.clone(), elsewhere.clone());
        callers.push(beside(async move {
            let mut kv = KvServiceClient::new(first);
            while count(&mut kv, "count").await.is_ok() {
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            open.fetch_add(1, Ordering::SeqCst);
            // And goes on elsewhere, where nothing of it is noticed.
            let mut kv = KvServiceClient::new(second);
            for _ in 0..5 {
                count(&mut kv, "count").await.unwrap();
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            elsewhere.store(true, Ordering::SeqCst);
        }));
    }
    seen("much being done", || async { (acknowledged.load(Ordering::SeqCst) > 200).then_some(()) }).await;
    doomed.kill();
    for caller in callers {
        in_time("the caller's end", caller).await.unwrap();
    }
    assert!(elsewhere.load(Ordering::SeqCst));
    let (acknowledged, open) = (acknowledged.load(Ordering::SeqCst), open.load(Ordering::SeqCst));
    let found = counted(&other, "count").await;
    assert!((acknowledged..=acknowledged + open).contains(&found), "{acknowledged}, {open} open, {found}");
}

/// A client that reads nothing can't keep a daemon from ending.
#[tokio::test]
async fn a_consumer_that_does_not_read_does_not_hold_up_the_end_for_longer_than_the_grace() {
    let servers = servers(3);
    let mut daemon = DaemonProcess::start(&addresses(&servers), &[("grpc.shutdown_grace", "1s")]).await;
    daemon.until_health(tonic_health::pb::health_check_response::ServingStatus::Serving).await;
    let endpoint = tonic::transport::Endpoint::from_shared(daemon.url()).unwrap();
    let channel = endpoint.initial_stream_window_size(1_000).connect().await.unwrap();
    let consumer = Consumer::open(channel, "jobs", LONG).await;
    let nothing = v1::ItemLease { id: "nothing".into(), lease_id: "0123456789abcdef0123456789abcdef".into() };
    // As many as it takes: the daemon takes no more when nobody reads the answers.
    for _ in 0..2_000 {
        let ack = v1::ConsumeRequest { command: Some(Command::Ack(nothing.clone())) };
        if consumer.commands.try_send(ack).is_err() {
            pause(Duration::from_millis(1)).await;
        }
    }
    daemon.terminate();
    assert_eq!(daemon.until_ended().await.code(), Some(0));
}
