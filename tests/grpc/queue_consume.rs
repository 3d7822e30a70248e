//! Items as they come: Consume.

use std::collections::VecDeque;
use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::LeaseOutcome;
use majorityd::proto::v1::consume_request::{Command, Open};
use majorityd::proto::v1::consume_response::settled::Result as Settled;
use majorityd::proto::v1::consume_response::{Event, Settled as SettledEvent};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::RpcStatusExt;

use crate::queue::*;
use crate::stage::*;

/// Both sides of a stream, as its client has them.
struct Consumer {
    commands: mpsc::Sender<v1::ConsumeRequest>,
    events: Streaming<v1::ConsumeResponse>,
    /// That came before the answer that was waited for.
    items: VecDeque<v1::ReservedItem>,
}

impl Consumer {
    async fn start(client: &mut QueueClient, timeout: Option<Duration>) -> Self {
        let (commands, sent) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(sent));
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let events = within(client.consume(request)).await.unwrap().into_inner();
        Self { commands, events, items: VecDeque::new() }
    }

    async fn open(client: &mut QueueClient, open: Open) -> Self {
        let consumer = Self::start(client, None).await;
        consumer.say(Command::Open(open)).await;
        consumer
    }

    async fn say(&self, command: Command) {
        self.send(v1::ConsumeRequest { command: Some(command) }).await;
    }

    async fn send(&self, request: v1::ConsumeRequest) {
        within(self.commands.send(request)).await.expect("the stream is there");
    }

    async fn ack(&self, item: &v1::ReservedItem) {
        self.say(Command::Ack(lease_of(item))).await;
    }

    /// What comes next; `None` for the end.
    async fn hear(&mut self) -> Result<Option<Event>, Status> {
        let told = within(self.events.message()).await?;
        Ok(told.map(|told| told.event.expect("set")))
    }

    async fn item(&mut self) -> v1::ReservedItem {
        if let Some(item) = self.items.pop_front() {
            return item;
        }
        match self.hear().await {
            Ok(Some(Event::Item(item))) => item,
            other => panic!("{other:?}"),
        }
    }

    async fn settled(&mut self) -> (String, LeaseOutcome) {
        loop {
            match self.hear().await {
                Ok(Some(Event::Item(item))) => self.items.push_back(item),
                Ok(Some(Event::Settled(SettledEvent {
                    lease: Some(lease),
                    result: Some(Settled::Outcome(outcome)),
                }))) => return (lease.id, LeaseOutcome::try_from(outcome).expect("known")),
                other => panic!("{other:?}"),
            }
        }
    }

    /// How the stream ends, past what is still told before.
    async fn end(mut self) -> Result<(), Status> {
        while self.hear().await?.is_some() {}
        Ok(())
    }
}

/// For five minutes: nothing here runs out by itself unless a test says so.
fn opening(queue: &str, max_in_flight: i32) -> Open {
    Open { queue: queue.to_owned(), max_in_flight: Some(max_in_flight), lease_ttl: seconds(300) }
}

fn done(id: &str) -> (String, LeaseOutcome) {
    (id.to_owned(), LeaseOutcome::Ok)
}

#[tokio::test]
async fn items_come_as_they_are_put_and_no_more_than_may_be_in_flight() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    let mut consumer = Consumer::open(&mut one, opening("mail", 2)).await;
    put(&mut two, "mail", ["a", "b", "c"].map(|id| item(id, id)).into()).await;
    let (first, second) = (consumer.item().await, consumer.item().await);
    let got = [first.clone(), second.clone()];
    assert_eq!(ids(&got), ["a", "b"]);
    assert_eq!((first.attempt, first.payload.as_ref()), (1, &b"a"[..]));
    assert_eq!(length(&first.ttl), Duration::from_secs(300));
    // The third is for whoever asks, as long as nothing is settled.
    assert_eq!(look(&mut two, "mail", "c").await.unwrap().state(), v1::ItemState::Ready);
    consumer.ack(&second).await;
    assert_eq!(consumer.settled().await, done("b"));
    let third = consumer.item().await;
    assert_eq!(third.id, "c");
    for item in [&first, &third] {
        consumer.ack(item).await;
        assert_eq!(consumer.settled().await, done(&item.id));
    }
    put(&mut two, "mail", vec![item("d", "d")]).await;
    assert_eq!(consumer.item().await.id, "d");
    for id in ["a", "b", "c"] {
        assert_eq!(look(&mut two, "mail", id).await.unwrap().state(), v1::ItemState::Done);
    }
}

#[tokio::test]
async fn an_item_that_is_given_back_on_the_stream_comes_again() {
    let (_cluster, _served, mut client) = queue_alone().await;
    put(&mut client, "mail", vec![item("a", "x")]).await;
    let mut consumer = Consumer::open(&mut client, opening("mail", 1)).await;
    let first = consumer.item().await;
    consumer.say(Command::Nack(nack_of(&first, seconds(0)))).await;
    assert_eq!(consumer.settled().await, done("a"));
    let again = consumer.item().await;
    assert_eq!((again.id.as_str(), again.attempt), ("a", 2));
    assert!(again.fencing_token > first.fencing_token);
    // The lease before is over.
    consumer.ack(&first).await;
    assert_eq!(consumer.settled().await, ("a".to_owned(), LeaseOutcome::LeaseLost));
    consumer.ack(&again).await;
    assert_eq!(consumer.settled().await, done("a"));
}

#[tokio::test]
async fn leases_are_kept_while_the_stream_is_open_and_run_out_when_it_is_not() {
    let (cluster, _served, [mut one, mut two]) = queue_pair().await;
    put(&mut one, "mail", vec![item("a", "x")]).await;
    let mut consumer = Consumer::open(&mut one, Open { lease_ttl: seconds(1), ..opening("mail", 1) }).await;
    let first = consumer.item().await;
    // Longer than the lease that it began with, by the servers' clocks, which run as this machine's.
    within(async {
        let mut remaining = Duration::ZERO;
        let mut extended = 0;
        while extended < 6 {
            let shown = look(&mut two, "mail", "a").await.unwrap();
            assert_eq!(shown.fencing_token, first.fencing_token);
            let left = length(&shown.remaining);
            extended += usize::from(left > remaining);
            remaining = left;
            pause().await;
        }
    })
    .await;
    drop(consumer);
    let waiter = waiting_for_one(&two, "mail");
    cluster.advance(PAST_EVERY_LEASE);
    let again = within(waiter).await.unwrap();
    assert_eq!((again.id.as_str(), again.attempt), ("a", 2));
}

#[tokio::test]
async fn a_lease_that_others_ended_is_told_as_lost() {
    let (_cluster, _served, [mut one, mut two]) = queue_pair().await;
    put(&mut one, "mail", vec![item("a", "x")]).await;
    let mut consumer = Consumer::open(&mut one, Open { lease_ttl: seconds(1), ..opening("mail", 1) }).await;
    let first = consumer.item().await;
    let states = vec![v1::ItemState::Leased.into()];
    let purging = v1::PurgeRequest { queue: "mail".to_owned(), states };
    within(two.purge(purging)).await.unwrap();
    match consumer.hear().await {
        Ok(Some(Event::Lost(lost))) => assert_eq!(lost.lease, Some(lease_of(&first))),
        other => panic!("{other:?}"),
    }
    // It no longer counts as in flight.
    put(&mut two, "mail", vec![item("b", "x")]).await;
    assert_eq!(consumer.item().await.id, "b");
}

#[tokio::test]
async fn a_client_that_closes_its_side_hears_the_last_answers_and_no_more() {
    let (cluster, _served, [mut one, mut two]) = queue_pair().await;
    put(&mut one, "mail", ["a", "b"].map(|id| item(id, "x")).into()).await;
    let mut consumer = Consumer::open(&mut one, opening("mail", 2)).await;
    let (first, second) = (consumer.item().await, consumer.item().await);
    put(&mut two, "mail", vec![item("c", "x")]).await;
    consumer.ack(&first).await;
    let Consumer { commands, mut events, .. } = consumer;
    drop(commands);
    // Whether the next item comes before the end is heard of is a race.
    let mut settled = Vec::new();
    while let Some(told) = within(events.message()).await.unwrap() {
        match told.event.expect("set") {
            Event::Settled(done) => settled.push(done.lease.expect("as it was named").id),
            Event::Item(item) => assert_eq!(item.id, "c"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(settled, ["a"]);
    // What is in flight may be acked elsewhere, until its lease has run out.
    assert_eq!(ack(&mut two, "mail", &second).await, LeaseOutcome::Ok);
    let waiter = waiting_for_one(&two, "mail");
    cluster.advance(PAST_EVERY_LEASE);
    assert_eq!(within(waiter).await.unwrap().id, "c");
}

#[tokio::test]
async fn a_command_that_breaks_a_rule_is_answered_and_the_stream_goes_on() {
    let (_cluster, _served, mut client) = queue_alone().await;
    put(&mut client, "mail", vec![item("a", "x")]).await;
    let mut consumer = Consumer::open(&mut client, opening("mail", 1)).await;
    let first = consumer.item().await;
    let too_long = v1::ItemNack { reason: "x".repeat(1_025), ..nack_of(&first, None) };
    let no_lease = v1::ItemLease { lease_id: "none".to_owned(), ..lease_of(&first) };
    for (command, field, why) in [
        (Command::Nack(too_long), "nack.reason", "TOO_LARGE"),
        (Command::Ack(no_lease), "ack.lease_id", "INVALID_LEASE_ID"),
    ] {
        consumer.say(command).await;
        let settled = match consumer.hear().await {
            Ok(Some(Event::Settled(settled))) => settled,
            other => panic!("{other:?}"),
        };
        assert_eq!(settled.lease.expect("as it was named").id, "a");
        let Some(Settled::Error(error)) = settled.result else { panic!("{field}") };
        assert_eq!((error.code, reason_in(&error).as_str()), (Code::InvalidArgument.into(), why));
        let named = error.get_error_details().bad_request().expect("BadRequest").field_violations.clone();
        assert_eq!((named.len(), named[0].field.as_str()), (1, field));
    }
    consumer.ack(&first).await;
    assert_eq!(consumer.settled().await, done("a"));
    // This can't be understood.
    consumer.say(Command::Open(opening("mail", 1))).await;
    let status = consumer.end().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_COMMAND"));
}

#[tokio::test]
async fn a_stream_that_is_not_opened_well_ends_at_once() {
    let (_cluster, _served, mut client) = queue_alone().await;
    let open = |open| v1::ConsumeRequest { command: Some(Command::Open(open)) };
    let ack = v1::ItemLease { id: "a".to_owned(), lease_id: "0".repeat(32) };
    let wrong = Open { queue: String::new(), max_in_flight: Some(0), lease_ttl: millis(1) };
    let cases: Vec<(v1::ConsumeRequest, Vec<(&str, &str)>)> = vec![
        (v1::ConsumeRequest { command: None }, vec![("open", "INVALID_COMMAND")]),
        (v1::ConsumeRequest { command: Some(Command::Ack(ack)) }, vec![("open", "INVALID_COMMAND")]),
        (
            open(wrong),
            vec![
                ("open.queue", "INVALID_NAME"),
                ("open.max_in_flight", "INVALID_COUNT"),
                ("open.lease_ttl", "INVALID_TTL"),
            ],
        ),
        (open(opening("mail", 1_001)), vec![("open.max_in_flight", "INVALID_COUNT")]),
    ];
    for (first, fields) in cases {
        let consumer = Consumer::start(&mut client, None).await;
        consumer.send(first).await;
        crate::refusals::refused(consumer.end().await, &fields);
    }
}

#[tokio::test]
async fn a_stream_on_which_nothing_is_said_ends_with_its_client_its_deadline_and_the_daemon() {
    let (_cluster, served, mut client) = queue_alone().await;
    let Consumer { commands, mut events, .. } = Consumer::start(&mut client, None).await;
    drop(commands);
    assert!(within(events.message()).await.unwrap().is_none());

    let silent = Consumer::start(&mut client, Some(Duration::from_secs(1))).await;
    let status = silent.end().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));

    let silent = Consumer::start(&mut client, None).await;
    served.stop.send(()).unwrap();
    let status = silent.end().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    within(served.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_open_stream_ends_with_its_deadline_and_the_daemon_and_gives_no_item_back() {
    let (cluster, [first, _second], [mut one, mut two]) = queue_pair().await;
    put(&mut two, "mail", vec![item("a", "x")]).await;
    let timed = Consumer::start(&mut one, Some(Duration::from_secs(1))).await;
    timed.say(Command::Open(opening("empty", 1))).await;
    let status = timed.end().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));

    let mut busy = Consumer::open(&mut one, opening("mail", 1)).await;
    let idle = Consumer::open(&mut one, opening("empty", 1)).await;
    assert_eq!(busy.item().await.id, "a");
    let waiting = start({
        let mut one = one.clone();
        async move { one.reserve(patiently(reserving("empty", 1))).await }
    });
    first.stop.send(()).unwrap();
    for status in [busy.end().await.unwrap_err(), idle.end().await.unwrap_err()] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    }
    // Whether it had come to the daemon by then shows nowhere.
    within(waiting).await.unwrap().unwrap_err();
    within(first.task).await.unwrap().unwrap();
    assert_eq!(reserve(&mut two, reserving("mail", 1)).await, []);
    let waiter = waiting_for_one(&two, "mail");
    cluster.advance(PAST_EVERY_LEASE);
    assert_eq!(within(waiter).await.unwrap().attempt, 2);
}

/// Mechanism: a stream that waits for its client to read waits for the end of the daemon, too.
#[tokio::test]
async fn a_stream_that_nobody_reads_ends_with_the_daemon() {
    use futures::{StreamExt, stream};
    use majorityd::ids::{ItemId, LeaseId, QueueName};
    use majorityd::queue::{ConsumeCommand, ConsumeRequest, Leased, QueueError};

    let (_cluster, served, _client) = queue_alone().await;
    let queue = QueueName::parse("mail").unwrap();
    let request = ConsumeRequest { queue, max_in_flight: 1, lease_ttl: None };
    let lease_id = LeaseId::parse("0123456789abcdef0123456789abcdef").unwrap();
    let lease = Leased { id: ItemId::parse("nothing").unwrap(), lease_id };
    // Each is answered, and there is no room for so many answers. Its end tells that of the stream's task.
    let (guard, mut ended) = tokio::sync::oneshot::channel::<()>();
    let commands = stream::iter(vec![ConsumeCommand::Ack(lease); 100]).chain(stream::once(async move {
        let _guard = guard;
        std::future::pending().await
    }));
    let mut events = served.inside().consume(request, commands.boxed());
    for _ in 0..50 {
        pause().await;
    }
    assert!(ended.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
    served.inside().shut_down();
    assert!(within(ended).await.is_err(), "dropped");
    let mut told = Vec::new();
    while let Some(event) = within(events.next()).await {
        told.push(event);
    }
    assert!(told.len() < 100);
    assert!(matches!(told.last(), Some(Err(QueueError::ShuttingDown))), "{told:?}");
}
