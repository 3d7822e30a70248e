//! `QueueService`: each handler parses, calls [`Queues`], maps the error and answers.

use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc;
use futures::future::{self, BoxFuture, Either};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, SinkExt, Stream, StreamExt, TryFutureExt};
use tokio::sync::watch;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::access::{self, Caller};
use super::convert::{Limits, queue as convert};
use super::layers::CallTime;
use super::status::{self, Repeat};
use super::streams::{self, failed};
use crate::proto::v1;
use crate::proto::v1::queue_service_server::QueueService;
use crate::queue::{
    ConsumeCommand, ConsumeEvent, ConsumeRequest, Leased, NewItem, QueueError, Queues, Reserved, Settled,
};
use crate::runtime::{Clock, Moment};

/// Answers to commands that break a rule which may wait for the client to read them; past this it is not read from.
const REFUSED_MAX: usize = 16;

/// What a `Consume` tells its client.
type Told = Result<v1::ConsumeResponse, Status>;

/// The service over the wire.
pub struct QueueApi {
    /// Who does the work.
    pub queues: Queues,
    /// What `remaining` is measured by.
    pub clock: Arc<dyn Clock>,
    /// What requests are held against.
    pub limits: Limits,
    /// For calls whose clients gave no deadline.
    pub deadline_default: Duration,
    /// True from the moment when the daemon starts to shut down; ends streams that were not opened yet.
    pub stopping: watch::Receiver<bool>,
}

impl QueueApi {
    /// When the call came and until when its client listens.
    fn time(&self, extensions: &Extensions) -> CallTime {
        streams::time_of(extensions, &*self.clock)
    }

    /// Until when a call is to be answered that asks to wait so long.
    fn deadline(&self, extensions: &Extensions, wait: Duration) -> Moment {
        self.time(extensions).deadline(self.deadline_default, wait)
    }

    fn start_reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<BoxFuture<'_, Result<Vec<Reserved>, Status>>, Status> {
        let caller = access::permit(&request)?;
        let mut asked = convert::reserve(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let deadline = self.deadline(request.extensions(), asked.wait);
        // A wait ends with the call.
        asked.wait = asked.wait.min(deadline.since(self.clock.now()));
        // At worst an item was leased that nobody got, and comes again.
        let reserved = self.queues.reserve(asked, deadline).map_err(|e| failed(&e, Repeat::Harmless));
        Ok(caller.unless_revoked(caller.named(request.get_ref()), reserved.boxed()))
    }
}

/// An id makes the repeat of a put the same put.
fn repeat_of(item: &NewItem) -> Repeat {
    match item.id {
        Some(_) => Repeat::Harmless,
        None => Repeat::Harmful,
    }
}

/// One answer for each lease, in order.
fn settled<'a>(
    leases: impl Iterator<Item = &'a Leased>,
    results: Vec<Result<Settled, QueueError>>,
) -> Vec<v1::SettleResult> {
    let told = |(lease, result): (&Leased, Result<_, QueueError>)| {
        convert::settle_result(&lease.id, result.map_err(|e| failed(&e, Repeat::Harmless)))
    };
    leases.zip(results).map(told).collect()
}

#[tonic::async_trait]
impl QueueService for QueueApi {
    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let deadline = self.deadline(&extensions, Duration::ZERO);
        let (queue, items) = convert::put(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let repeats: Vec<Repeat> = items.iter().map(repeat_of).collect();
        let together = match repeats.contains(&Repeat::Harmful) {
            true => Repeat::Harmful,
            false => Repeat::Harmless,
        };
        let put = self.queues.put(&queue, items, deadline).await.map_err(|e| failed(&e, together))?;
        let told = |(result, repeat): (Result<_, QueueError>, _)| {
            convert::put_result(result.map_err(|e| failed(&e, repeat)))
        };
        Ok(Response::new(v1::PutResponse { results: put.into_iter().zip(repeats).map(told).collect() }))
    }

    // Not an `async fn`, which would keep the request for as long as it waits.
    fn reserve<'a, 'b>(
        &'a self,
        request: Request<v1::ReserveRequest>,
    ) -> BoxFuture<'b, Result<Response<v1::ReserveResponse>, Status>>
    where
        'a: 'b,
    {
        let reserved = match self.start_reserve(request) {
            Ok(reserved) => reserved,
            Err(refusal) => return future::ready(Err(refusal)).boxed(),
        };
        let answer = |reserved: Vec<Reserved>| {
            let now = self.clock.now();
            let items = reserved.into_iter().map(|item| convert::reserved(item, now)).collect();
            Response::new(v1::ReserveResponse { items })
        };
        reserved.map_ok(answer).boxed()
    }

    type ConsumeStream = BoxStream<'static, Told>;

    async fn consume(
        &self,
        request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let caller = Caller::of(request.extensions())?;
        let (_, extensions, messages) = request.into_parts();
        let time = self.time(&extensions);
        // Answered before the first message has come: some clients send none until they have the head of the answer.
        let consumed = consumed(
            self.queues.clone(),
            caller,
            self.clock.clone(),
            self.limits.clone(),
            messages.boxed(),
            self.stopping.clone(),
        );
        Ok(Response::new(streams::until_deadline(&self.clock, consumed, time)))
    }

    async fn extend(
        &self,
        request: Request<v1::QueueServiceExtendRequest>,
    ) -> Result<Response<v1::QueueServiceExtendResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let deadline = self.deadline(&extensions, Duration::ZERO);
        let (queue, leases, ttl) = convert::extend(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let extended = self.queues.extend(&queue, leases.clone(), ttl, deadline).await;
        let now = self.clock.now();
        let told = |(lease, result): (&Leased, Result<_, QueueError>)| {
            convert::extend_result(&lease.id, result.map_err(|e| failed(&e, Repeat::Harmless)), now)
        };
        let results = leases.iter().zip(extended).map(told).collect();
        Ok(Response::new(v1::QueueServiceExtendResponse { results }))
    }

    async fn ack(&self, request: Request<v1::AckRequest>) -> Result<Response<v1::AckResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let deadline = self.deadline(&extensions, Duration::ZERO);
        let (queue, leases) = convert::ack(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let results = self.queues.ack(&queue, leases.clone(), deadline).await;
        Ok(Response::new(v1::AckResponse { results: settled(leases.iter(), results) }))
    }

    async fn nack(&self, request: Request<v1::NackRequest>) -> Result<Response<v1::NackResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let deadline = self.deadline(&extensions, Duration::ZERO);
        let (queue, nacks) = convert::nack(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let leases: Vec<Leased> = nacks.iter().map(|nack| nack.lease.clone()).collect();
        let results = self.queues.nack(&queue, nacks, deadline).await;
        Ok(Response::new(v1::NackResponse { results: settled(leases.iter(), results) }))
    }

    async fn get_item(
        &self,
        request: Request<v1::GetItemRequest>,
    ) -> Result<Response<v1::GetItemResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let (queue, id) =
            convert::get_item(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let item = self.queues.get_item(&queue, &id, deadline).await;
        let item = item.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::GetItemResponse { item: Some(convert::item_view(item)) }))
    }

    async fn get_queue(
        &self,
        request: Request<v1::GetQueueRequest>,
    ) -> Result<Response<v1::GetQueueResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let queue =
            convert::queue(&request.get_ref().queue, &self.limits).map_err(|e| status::invalid(&e))?;
        let view = self.queues.get(&queue, deadline).await.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::GetQueueResponse { queue: Some(convert::queue_view(&view)) }))
    }

    async fn list_queues(
        &self,
        request: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let asked = convert::list(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let page = self.queues.list(&asked.prefix, asked.page_size, &asked.after, deadline).await;
        let page = page.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(convert::queue_page(&page)))
    }

    async fn configure_queue(
        &self,
        request: Request<v1::ConfigureQueueRequest>,
    ) -> Result<Response<v1::ConfigureQueueResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let (queue, patch) =
            convert::configure(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let options = self.queues.configure(&queue, patch, deadline).await;
        let options = options.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::ConfigureQueueResponse { settings: Some(convert::options(&options)) }))
    }

    async fn list_dead(
        &self,
        request: Request<v1::ListDeadRequest>,
    ) -> Result<Response<v1::ListDeadResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let asked = convert::list_dead(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let page = self.queues.list_dead(&asked.queue, asked.page_size, &asked.after, deadline).await;
        let page = page.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(convert::dead_page(page)))
    }

    async fn redrive(
        &self,
        request: Request<v1::RedriveRequest>,
    ) -> Result<Response<v1::RedriveResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let deadline = self.deadline(&extensions, Duration::ZERO);
        let (queue, ids) = convert::redrive(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let redriven = self.queues.redrive(&queue, &ids, deadline).await;
        let redriven = redriven.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::RedriveResponse { redriven }))
    }

    async fn purge(&self, request: Request<v1::PurgeRequest>) -> Result<Response<v1::PurgeResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let deadline = self.deadline(&extensions, Duration::ZERO);
        let (queue, states) = convert::purge(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let purged = self.queues.purge(&queue, &states, deadline).await;
        let purged = purged.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::PurgeResponse { purged }))
    }

    async fn delete_queue(
        &self,
        request: Request<v1::DeleteQueueRequest>,
    ) -> Result<Response<v1::DeleteQueueResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let queue =
            convert::queue(&request.get_ref().queue, &self.limits).map_err(|e| status::invalid(&e))?;
        let items = self.queues.delete(&queue, deadline).await;
        let items = items.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::DeleteQueueResponse { items }))
    }
}

/// What the client says on a `Consume`.
type Messages = BoxStream<'static, Result<v1::ConsumeRequest, Status>>;

/// A `Consume` from its first message to its end.
fn consumed(
    queues: Queues,
    caller: Caller,
    clock: Arc<dyn Clock>,
    limits: Limits,
    messages: Messages,
    stopping: watch::Receiver<bool>,
) -> impl Stream<Item = Told> + Send + 'static {
    let opened = async move {
        let (first, messages) = match opened(messages, stopping).await {
            Ok(Some(opened)) => opened,
            Ok(None) => return stream::empty().boxed(),
            Err(status) => return stream::once(future::ready(Err(status))).boxed(),
        };
        let request = match permitted(&caller, &first, &limits) {
            Ok(request) => request,
            Err(status) => return stream::once(future::ready(Err(status))).boxed(),
        };
        let (commands, refused) = commands(messages, limits);
        let events = queues.consume(request, commands).map(move |event| match event {
            Ok(event) => Ok(told(event, clock.now())),
            Err(error) => Err(failed(&error, Repeat::Harmless)),
        });
        caller.until_revoked(first, until_error(stream::select(events, refused)))
    };
    stream::once(opened).flatten()
}

/// Waits for the message that opens the stream. `None` when the client goes without having sent one.
async fn opened(
    mut messages: Messages,
    mut stopping: watch::Receiver<bool>,
) -> Result<Option<(v1::ConsumeRequest, Messages)>, Status> {
    let stopped = std::pin::pin!(async {
        // A sender that is gone has stopped too.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    });
    let first = match future::select(messages.next(), stopped).await {
        Either::Left((first, _)) => first,
        Either::Right(_) => return Err(failed(&QueueError::ShuttingDown, Repeat::Harmless)),
    };
    let Some(first) = first else { return Ok(None) };
    Ok(Some((first.map_err(status::unreadable)?, messages)))
}

/// What the first message asks for, if its sender may have it.
fn permitted(caller: &Caller, first: &v1::ConsumeRequest, limits: &Limits) -> Result<ConsumeRequest, Status> {
    caller.permit(first)?;
    convert::open(first, limits).map_err(|e| status::invalid(&e))
}

/// What the client says after the first message, and what it is told about that without asking the queue. Both end when
/// the client closes its side or can't be understood; what it is told last then is why.
fn commands(
    messages: Messages,
    limits: Limits,
) -> (BoxStream<'static, ConsumeCommand>, mpsc::Receiver<Told>) {
    let (sender, refused) = mpsc::channel(REFUSED_MAX);
    let next = |(mut messages, mut sender, limits): (Messages, mpsc::Sender<Told>, Limits)| async move {
        loop {
            let answer = match messages.next().await? {
                Ok(message) => match convert::command(message, &limits) {
                    Ok(command) => return Some((command, (messages, sender, limits))),
                    Err(convert::BadCommand::Settle { lease, invalid }) => {
                        Ok(convert::consume_refused(lease, &invalid))
                    }
                    Err(convert::BadCommand::Other(invalid)) => Err(status::invalid(&invalid)),
                },
                Err(status) => Err(status::unreadable(status)),
            };
            let last = answer.is_err();
            // A receiver that is gone went with the stream, and with it goes what is told there.
            if sender.send(answer).await.is_err() || last {
                return None;
            }
        }
    };
    (stream::unfold((messages, sender, limits), next).boxed(), refused)
}

fn told(event: ConsumeEvent, now: Moment) -> v1::ConsumeResponse {
    match event {
        ConsumeEvent::Item(item) => convert::consumed(item, now),
        ConsumeEvent::Settled { lease, result } => {
            convert::consume_settled(&lease, result.map_err(|e| failed(&e, Repeat::Harmless)))
        }
        ConsumeEvent::Lost { lease } => convert::consume_lost(&lease),
    }
}

/// Nothing comes after an error: what goes on behind the stream is dropped with it.
fn until_error(
    events: impl Stream<Item = Told> + Send + 'static,
) -> impl Stream<Item = Told> + Send + 'static {
    stream::unfold(Some(events.boxed()), |events| async move {
        let mut events = events?;
        let event = events.next().await?;
        let rest = event.is_ok().then_some(events);
        Some((event, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ItemId, LeaseId};
    use tonic::Code;
    use v1::consume_request::{Command, Open};

    const LEASE_ID: &str = "0123456789abcdef0123456789abcdef";

    fn message(command: Command) -> Result<v1::ConsumeRequest, Status> {
        Ok(v1::ConsumeRequest { command: Some(command) })
    }

    fn ack(id: &str, lease_id: &str) -> Result<v1::ConsumeRequest, Status> {
        message(Command::Ack(v1::ItemLease { id: id.to_owned(), lease_id: lease_id.to_owned() }))
    }

    fn acked(id: &str) -> ConsumeCommand {
        let lease_id = LeaseId::parse(LEASE_ID).unwrap();
        ConsumeCommand::Ack(Leased { id: ItemId::parse(id).unwrap(), lease_id })
    }

    fn said(messages: Vec<Result<v1::ConsumeRequest, Status>>) -> Messages {
        stream::iter(messages).boxed()
    }

    #[tokio::test]
    async fn bad_commands_are_answered_in_between_and_good_ones_go_on() {
        let messages = vec![ack("a", LEASE_ID), ack("b", "none"), ack("", LEASE_ID), ack("c", LEASE_ID)];
        let (commands, refused) = commands(said(messages), Limits::default());
        assert_eq!(commands.collect::<Vec<_>>().await, [acked("a"), acked("c")]);
        let refused: Vec<Told> = refused.collect().await;
        assert_eq!(refused.len(), 2);
        assert!(refused.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn what_can_not_be_understood_is_the_last_that_is_read() {
        let open = || message(Command::Open(Open::default()));
        let gone = || Err(Status::cancelled("the client is gone"));
        for (bad, code) in [(open(), Code::InvalidArgument), (gone(), Code::Cancelled)] {
            let messages = vec![ack("a", LEASE_ID), bad, ack("c", LEASE_ID)];
            let (commands, mut refused) = commands(said(messages), Limits::default());
            assert_eq!(commands.collect::<Vec<_>>().await, [acked("a")]);
            assert_eq!(refused.next().await.unwrap().unwrap_err().code(), code);
            assert!(refused.next().await.is_none());
        }
    }

    /// A client that sends nonsense and reads no answers is not read from without end.
    #[tokio::test]
    async fn answers_that_nobody_reads_hold_up_the_commands() {
        let nonsense = stream::iter(std::iter::repeat_with(|| ack("", "")));
        let (mut commands, mut refused) = commands(nonsense.boxed(), Limits::default());
        assert!(futures::poll!(commands.next()).is_pending());
        assert!(refused.next().await.is_some());
        assert!(futures::poll!(commands.next()).is_pending());
    }

    #[tokio::test]
    async fn nothing_is_told_after_an_error() {
        let lease = Leased { id: ItemId::parse("a").unwrap(), lease_id: LeaseId::parse(LEASE_ID).unwrap() };
        let event = || Ok(convert::consume_lost(&lease));
        let events = stream::iter(vec![event(), event(), Err(Status::unavailable("over")), event()]);
        let told: Vec<Told> = until_error(events).collect().await;
        assert_eq!(told.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false]);
    }
}
