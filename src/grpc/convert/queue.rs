//! `QueueService`, wire to domain and back.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tonic::Status;

use super::{
    Fields, Invalid, Limits, ListRequest, duration, page_token_from, page_token_to_place, timestamp, within,
};
use crate::grpc::status::{self, Reason};
use crate::ids::{ItemId, QueueName};
use crate::limits;
use crate::proto::v1;
use crate::queue::{
    ConsumeCommand, ConsumeRequest, DeadPage, Extended, ItemState, ItemView, Leased, Nack, NewItem, Put,
    QueueOptions, QueueOptionsPatch, QueuePage, QueueView, ReserveRequest, Reserved, Settled,
};
use crate::runtime::Moment;

/// Names of the fields of an [`v1::ItemNack`], where it is an element of a list or a message of its own.
struct NackFields {
    id: &'static str,
    lease_id: &'static str,
    delay: &'static str,
    reason: &'static str,
}

const NACK_IN_LIST: NackFields =
    NackFields { id: "id", lease_id: "lease_id", delay: "delay", reason: "reason" };
const NACK_OF_STREAM: NackFields =
    NackFields { id: "nack.id", lease_id: "nack.lease_id", delay: "nack.delay", reason: "nack.reason" };

impl Fields<'_> {
    fn queue(&mut self, field: &'static str, text: &str) -> Option<QueueName> {
        self.name_of(field, text, QueueName::parse)
    }

    fn item_id(&mut self, field: &'static str, text: &str) -> Option<ItemId> {
        match within(text, self.limits.name_bytes_max).and_then(ItemId::parse) {
            Ok(id) => Some(id),
            Err(error) => self.refuse_name(field, Reason::InvalidItemId, &error),
        }
    }

    /// The outer `Option` is for a refusal, the inner for "not given".
    fn delay_within(
        &mut self,
        field: &'static str,
        value: Option<&prost_types::Duration>,
        max: Duration,
    ) -> Option<Option<Duration>> {
        let names = ["delay", "delay_min", "delay_max"];
        self.duration_within((field, Reason::InvalidDelay), value, (Duration::ZERO, max), names)
    }

    fn count_within(
        &mut self,
        field: &'static str,
        count: impl Into<i128>,
        (min, max): (i128, i128),
    ) -> Option<i128> {
        let count = count.into();
        if (min..=max).contains(&count) {
            return Some(count);
        }
        self.refuse(
            field,
            Reason::InvalidCount,
            format!("is {count}; from {min} to {max} is allowed"),
            vec![
                ("count", count.to_string()),
                ("count_min", min.to_string()),
                ("count_max", max.to_string()),
            ],
        )
    }

    /// How many items a consumer wants.
    fn items_max(&mut self, field: &'static str, count: Option<i32>) -> Option<usize> {
        let count = self.count_within(field, count.unwrap_or(1), (1, limits::RESERVE_ITEMS_MAX as i128))?;
        Some(usize::try_from(count).expect("it is within its range"))
    }

    fn payload(&mut self, content: Option<v1::new_item::Content>) -> Option<Bytes> {
        use v1::new_item::Content;
        let (field, data) = match content {
            Some(Content::Payload(payload)) => ("payload", payload),
            Some(Content::Text(text)) => ("text", text.into()),
            None => {
                let text =
                    "is not given, and neither is text; an empty one has to be given as such".to_owned();
                return self.refuse("payload", Reason::InvalidValue, text, vec![]);
            }
        };
        let names = ["payload_bytes", "payload_bytes_max"];
        self.bytes_within(field, data.len(), self.limits.payload_bytes_max, names)?;
        Some(data)
    }

    fn new_item(&mut self, item: v1::NewItem) -> Option<NewItem> {
        let id = match &item.id {
            None => Some(None),
            Some(id) => self.item_id("id", id).map(Some),
        };
        let payload = self.payload(item.content);
        let delay = self.delay_within("delay", item.delay.as_ref(), limits::DELAY_MAX);
        let attributes = self.attributes(item.attributes);
        Some(NewItem {
            id: id?,
            payload: payload?,
            priority: item.priority,
            delay: delay?.unwrap_or_default(),
            attributes: attributes?,
        })
    }

    fn leased(&mut self, lease: &v1::ItemLease, [id, lease_id]: [&'static str; 2]) -> Option<Leased> {
        let id = self.item_id(id, &lease.id);
        let lease_id = self.lease_id(lease_id, &lease.lease_id);
        Some(Leased { id: id?, lease_id: lease_id? })
    }

    fn leases(&mut self, leases: Vec<v1::ItemLease>) -> Option<Vec<Leased>> {
        self.count("leases", leases.len())?;
        self.each("leases", leases, |fields, lease| fields.leased(&lease, ["id", "lease_id"]))
    }

    fn nack(&mut self, nack: v1::ItemNack, names: &NackFields) -> Option<Nack> {
        let id = self.item_id(names.id, &nack.id);
        let lease_id = self.lease_id(names.lease_id, &nack.lease_id);
        let delay = self.delay_within(names.delay, nack.delay.as_ref(), limits::DELAY_MAX);
        let bytes = ["reason_bytes", "reason_bytes_max"];
        let reason = self.bytes_within(names.reason, nack.reason.len(), limits::NACK_REASON_BYTES_MAX, bytes);
        let lease = Leased { id: id?, lease_id: lease_id? };
        reason.and(Some(Nack { lease, delay: delay?, reason: nack.reason }))
    }

    /// A state whose items may be removed.
    fn state(&mut self, value: i32) -> Option<ItemState> {
        let rule = match v1::ItemState::try_from(value) {
            Ok(v1::ItemState::Ready) => return Some(ItemState::Ready),
            Ok(v1::ItemState::Delayed) => return Some(ItemState::Delayed),
            Ok(v1::ItemState::Leased) => return Some(ItemState::Leased),
            Ok(v1::ItemState::Dead) => return Some(ItemState::Dead),
            Ok(v1::ItemState::Done) => "items that are done go by themselves",
            Ok(v1::ItemState::Unspecified) | Err(_) => "no items are in it",
        };
        self.refuse(
            "",
            Reason::InvalidState,
            format!("is {value}; {rule}"),
            vec![("state", value.to_string())],
        )
    }
}

/// A `Put`.
///
/// # Errors
/// [`Invalid`] with every field that breaks a rule; so for all parsers here.
pub fn put(request: v1::PutRequest, limits: &Limits) -> Result<(QueueName, Vec<NewItem>), Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let bytes = || request.items.iter().map(bytes_of).sum();
    let fits = fields.count("items", request.items.len());
    let fits = fits.and_then(|()| fields.batch_bytes("bytes of ids, payloads and attributes", bytes()));
    let mut seen = BTreeSet::new();
    let items = fits.and_then(|()| {
        fields.each("items", request.items, |fields, item| {
            let item = fields.new_item(item)?;
            match &item.id {
                Some(id) if !seen.insert(id.clone()) => {
                    let text = format!("is {id}, as in an item before; the same id is the same item");
                    fields.refuse("id", Reason::DuplicateItem, text, vec![("id", id.as_str().to_owned())])
                }
                Some(_) | None => Some(item),
            }
        })
    });
    fields.finish(queue.zip(items))
}

fn bytes_of(item: &v1::NewItem) -> usize {
    use v1::new_item::Content;
    let content = match &item.content {
        Some(Content::Payload(payload)) => payload.len(),
        Some(Content::Text(text)) => text.len(),
        None => 0,
    };
    let attributes: usize = item.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    item.id.as_ref().map_or(0, String::len) + content + attributes
}

/// A `Reserve`.
pub fn reserve(request: &v1::ReserveRequest, limits: &Limits) -> Result<ReserveRequest, Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let max_items = fields.items_max("max_items", request.max_items);
    let lease_ttl = fields.lease_ttl("lease_ttl", request.lease_ttl.as_ref());
    let wait = fields.wait(request.wait_timeout.as_ref());
    let parsed =
        || Some(ReserveRequest { queue: queue?, max_items: max_items?, lease_ttl: lease_ttl?, wait: wait? });
    fields.finish(parsed())
}

/// The first message of a `Consume`.
pub fn open(request: &v1::ConsumeRequest, limits: &Limits) -> Result<ConsumeRequest, Invalid> {
    use v1::consume_request::Command;
    let mut fields = Fields::new(limits);
    let Some(Command::Open(open)) = &request.command else {
        let refused = misplaced(&mut fields, "open", "must be the first message");
        return fields.finish(refused);
    };
    let queue = fields.queue("open.queue", &open.queue);
    let max_in_flight = fields.items_max("open.max_in_flight", open.max_in_flight);
    let lease_ttl = fields.lease_ttl("open.lease_ttl", open.lease_ttl.as_ref());
    let parsed =
        || Some(ConsumeRequest { queue: queue?, max_in_flight: max_in_flight?, lease_ttl: lease_ttl? });
    fields.finish(parsed())
}

fn misplaced<T>(fields: &mut Fields<'_>, field: &'static str, rule: &str) -> Option<T> {
    fields.refuse(field, Reason::InvalidCommand, rule.to_owned(), vec![])
}

/// A message of a `Consume` that is none of its commands.
#[derive(Debug)]
pub enum BadCommand {
    /// An ack or a nack that breaks a rule: the client learns of it as of one that failed.
    Settle {
        /// As the client named it.
        lease: v1::ItemLease,
        /// What is wrong.
        invalid: Invalid,
    },
    /// Neither of these. What the client means is not clear, so the stream ends.
    Other(Invalid),
}

/// A message of a `Consume` after the first.
///
/// # Errors
/// [`BadCommand`]
pub fn command(request: v1::ConsumeRequest, limits: &Limits) -> Result<ConsumeCommand, BadCommand> {
    use v1::consume_request::Command;
    let mut fields = Fields::new(limits);
    let (lease, parsed) = match request.command {
        Some(Command::Ack(lease)) => {
            let parsed = fields.leased(&lease, ["ack.id", "ack.lease_id"]).map(ConsumeCommand::Ack);
            (lease, parsed)
        }
        Some(Command::Nack(nack)) => {
            let lease = v1::ItemLease { id: nack.id.clone(), lease_id: nack.lease_id.clone() };
            (lease, fields.nack(nack, &NACK_OF_STREAM).map(ConsumeCommand::Nack))
        }
        Some(Command::Open(_)) | None => {
            let field = if request.command.is_some() { "open" } else { "command" };
            let rule = "must be an ack or a nack, after the first message";
            let refused = misplaced::<()>(&mut fields, field, rule);
            return Err(BadCommand::Other(fields.finish(refused).expect_err("it was refused")));
        }
    };
    fields.finish(parsed).map_err(|invalid| BadCommand::Settle { lease, invalid })
}

/// An `Extend`: queue, leases, and the new length if one is asked for.
pub fn extend(
    request: v1::QueueServiceExtendRequest,
    limits: &Limits,
) -> Result<(QueueName, Vec<Leased>, Option<Duration>), Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let leases = fields.leases(request.leases);
    let ttl = fields.lease_ttl("ttl", request.ttl.as_ref());
    let parsed = || Some((queue?, leases?, ttl?));
    fields.finish(parsed())
}

/// An `Ack`.
pub fn ack(request: v1::AckRequest, limits: &Limits) -> Result<(QueueName, Vec<Leased>), Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let leases = fields.leases(request.leases);
    fields.finish(queue.zip(leases))
}

/// A `Nack`.
pub fn nack(request: v1::NackRequest, limits: &Limits) -> Result<(QueueName, Vec<Nack>), Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let fits = fields.count("items", request.items.len());
    let nacks = fits
        .and_then(|()| fields.each("items", request.items, |fields, nack| fields.nack(nack, &NACK_IN_LIST)));
    fields.finish(queue.zip(nacks))
}

/// A `GetItem`.
pub fn get_item(request: &v1::GetItemRequest, limits: &Limits) -> Result<(QueueName, ItemId), Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let id = fields.item_id("id", &request.id);
    fields.finish(queue.zip(id))
}

/// A request that is a queue and nothing else.
pub fn queue(text: &str, limits: &Limits) -> Result<QueueName, Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", text);
    fields.finish(queue)
}

/// A `ConfigureQueue`.
pub fn configure(
    request: &v1::ConfigureQueueRequest,
    limits: &Limits,
) -> Result<(QueueName, QueueOptionsPatch), Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let lease_ttl = fields.lease_ttl("lease_ttl", request.lease_ttl.as_ref());
    let max_attempts = match request.max_attempts {
        None => Some(None),
        Some(count) => fields
            .count_within("max_attempts", count, (0, limits::ATTEMPTS_MAX.into()))
            .map(|count| u32::try_from(count).ok()),
    };
    let backoff_min = fields.delay_within("backoff_min", request.backoff_min.as_ref(), limits::BACKOFF_MAX);
    let backoff_max = fields.delay_within("backoff_max", request.backoff_max.as_ref(), limits::BACKOFF_MAX);
    let max_items = match request.max_items {
        None => Some(None),
        Some(count) => fields
            .count_within("max_items", count, (0, limits::QUEUE_ITEMS_MAX.into()))
            .map(|count| u64::try_from(count).ok()),
    };
    let retention = request.done_retention.as_ref();
    let done_retention = fields.delay_within("done_retention", retention, limits::DONE_RETENTION_MAX);
    let parsed = || {
        let patch = QueueOptionsPatch {
            lease_ttl: lease_ttl?,
            max_attempts: max_attempts?,
            backoff_min: backoff_min?,
            backoff_max: backoff_max?,
            max_items: max_items?,
            done_retention: done_retention?,
        };
        Some((queue?, patch))
    };
    fields.finish(parsed())
}

/// A `Redrive`: no ids for all.
pub fn redrive(request: v1::RedriveRequest, limits: &Limits) -> Result<(QueueName, Vec<ItemId>), Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let fits = fields.count("ids", request.ids.len());
    let ids = fits.and_then(|()| fields.each("ids", request.ids, |fields, id| fields.item_id("", &id)));
    fields.finish(queue.zip(ids))
}

/// A `Purge`.
pub fn purge(request: v1::PurgeRequest, limits: &Limits) -> Result<(QueueName, Vec<ItemState>), Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let states = match fields.count("states", request.states.len()) {
        Some(()) if request.states.is_empty() => {
            let text = "is empty; name at least one state".to_owned();
            fields.refuse("states", Reason::InvalidState, text, vec![])
        }
        Some(()) => fields.each("states", request.states, Fields::state),
        None => None,
    };
    let once = |states: Vec<ItemState>| states.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    fields.finish(queue.zip(states.map(once)))
}

/// A `ListQueues`.
pub fn list(request: &v1::ListQueuesRequest, limits: &Limits) -> Result<ListRequest, Invalid> {
    let mut fields = Fields::new(limits);
    let parsed = fields.list(&request.prefix, request.page_size, &request.page_token);
    fields.finish(parsed)
}

/// A `ListDead` request, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListDeadRequest {
    /// Of which queue.
    pub queue: QueueName,
    /// Most entries.
    pub page_size: usize,
    /// Where the page starts; empty for the first page.
    pub after: String,
}

/// A `ListDead`. A page has no more entries than fit into one answer, however large they are.
pub fn list_dead(request: &v1::ListDeadRequest, limits: &Limits) -> Result<ListDeadRequest, Invalid> {
    let mut fields = Fields::new(limits);
    let queue = fields.queue("queue", &request.queue);
    let page_size = fields.page_size(request.page_size).map(|size| size.min(limits::DEAD_PAGE_SIZE_MAX));
    let after = match page_token_to_place(&request.page_token) {
        Some(place) => Some(place),
        None => fields.refuse_page_token("is not the next_page_token of a page"),
    };
    let parsed = || Some(ListDeadRequest { queue: queue?, page_size: page_size?, after: after? });
    fields.finish(parsed())
}

/// What became of an item of a `Put`.
pub fn put_result(put: Result<Put, Status>) -> v1::put_response::Result {
    use v1::put_response::result::Outcome;
    let outcome = match put {
        Ok(Put { id, duplicate }) => {
            Outcome::Put(v1::put_response::Put { id: id.as_str().to_owned(), duplicate })
        }
        Err(status) => Outcome::Error(status::as_message(&status)),
    };
    v1::put_response::Result { outcome: Some(outcome) }
}

/// An item with what remains of its lease `now`. With `lease` the one place where the lease id of an item leaves.
pub fn reserved(item: Reserved, now: Moment) -> v1::ReservedItem {
    v1::ReservedItem {
        id: item.id.as_str().to_owned(),
        payload: item.payload,
        attributes: item.attributes.into_iter().collect(),
        priority: item.priority,
        attempt: item.attempt,
        put_time: Some(timestamp(item.put_unix_ms)),
        lease_id: item.lease_id.expose(),
        fencing_token: item.token.get(),
        ttl: Some(duration(item.ttl)),
        remaining: Some(duration(item.valid_until.since(now))),
    }
}

/// A lease as the client named it, for the client that did.
fn lease(lease: &Leased) -> v1::ItemLease {
    v1::ItemLease { id: lease.id.as_str().to_owned(), lease_id: lease.lease_id.expose() }
}

fn outcome(settled: Settled) -> v1::LeaseOutcome {
    match settled {
        Settled::Done => v1::LeaseOutcome::Ok,
        Settled::Buried => v1::LeaseOutcome::Buried,
        Settled::LeaseLost => v1::LeaseOutcome::LeaseLost,
        Settled::AlreadyDone => v1::LeaseOutcome::AlreadyDone,
        Settled::NoSuchItem => v1::LeaseOutcome::NoSuchItem,
    }
}

/// An event of a `Consume`: an item.
pub fn consumed(item: Reserved, now: Moment) -> v1::ConsumeResponse {
    consume_event(v1::consume_response::Event::Item(reserved(item, now)))
}

/// An event of a `Consume`: what became of an ack or a nack.
pub fn consume_settled(of: &Leased, result: Result<Settled, Status>) -> v1::ConsumeResponse {
    settled_event(lease(of), result)
}

/// An event of a `Consume`: an ack or a nack broke a rule.
pub fn consume_refused(lease: v1::ItemLease, invalid: &Invalid) -> v1::ConsumeResponse {
    settled_event(lease, Err(status::invalid(invalid)))
}

/// An event of a `Consume`: a lease is lost.
pub fn consume_lost(of: &Leased) -> v1::ConsumeResponse {
    consume_event(v1::consume_response::Event::Lost(v1::consume_response::Lost { lease: Some(lease(of)) }))
}

fn settled_event(lease: v1::ItemLease, result: Result<Settled, Status>) -> v1::ConsumeResponse {
    use v1::consume_response::settled::Result as Sent;
    let result = match result {
        Ok(settled) => Sent::Outcome(outcome(settled).into()),
        Err(status) => Sent::Error(status::as_message(&status)),
    };
    let settled = v1::consume_response::Settled { lease: Some(lease), result: Some(result) };
    consume_event(v1::consume_response::Event::Settled(settled))
}

fn consume_event(event: v1::consume_response::Event) -> v1::ConsumeResponse {
    v1::ConsumeResponse { event: Some(event) }
}

/// What became of a lease of an `Extend`, with what remains of it `now`.
pub fn extend_result(
    id: &ItemId,
    extended: Result<Extended, Status>,
    now: Moment,
) -> v1::queue_service_extend_response::Result {
    use v1::queue_service_extend_response as sent;
    use v1::queue_service_extend_response::result::Outcome;
    let outcome = match extended {
        Ok(Extended::Until { ttl, valid_until }) => Outcome::Extended(sent::Extended {
            ttl: Some(duration(ttl)),
            remaining: Some(duration(valid_until.since(now))),
        }),
        Ok(Extended::Lost(why)) => Outcome::Ended(outcome(why).into()),
        Err(status) => Outcome::Error(status::as_message(&status)),
    };
    sent::Result { id: id.as_str().to_owned(), outcome: Some(outcome) }
}

/// What became of a lease of an `Ack` or a `Nack`.
pub fn settle_result(id: &ItemId, settled: Result<Settled, Status>) -> v1::SettleResult {
    use v1::settle_result::Result as Sent;
    let result = match settled {
        Ok(settled) => Sent::Outcome(outcome(settled).into()),
        Err(status) => Sent::Error(status::as_message(&status)),
    };
    v1::SettleResult { id: id.as_str().to_owned(), result: Some(result) }
}

fn state(state: ItemState) -> v1::ItemState {
    match state {
        ItemState::Ready => v1::ItemState::Ready,
        ItemState::Delayed => v1::ItemState::Delayed,
        ItemState::Leased => v1::ItemState::Leased,
        ItemState::Dead => v1::ItemState::Dead,
        ItemState::Done => v1::ItemState::Done,
    }
}

/// An item for `GetItem` and `ListDead`.
pub fn item_view(view: ItemView) -> v1::Item {
    v1::Item {
        id: view.id.as_str().to_owned(),
        state: state(view.state).into(),
        payload: view.payload,
        attributes: view.attributes.into_iter().collect(),
        priority: view.priority,
        attempts: view.attempts,
        put_time: Some(timestamp(view.put_unix_ms)),
        remaining: view.remaining.map(duration),
        fencing_token: view.token.get(),
        reason: view.reason,
    }
}

/// All settings of a queue.
pub fn options(options: &QueueOptions) -> v1::QueueSettings {
    v1::QueueSettings {
        lease_ttl: Some(duration(options.lease_ttl)),
        max_attempts: options.max_attempts,
        backoff_min: Some(duration(options.backoff_min)),
        backoff_max: Some(duration(options.backoff_max)),
        max_items: options.max_items,
        done_retention: Some(duration(options.done_retention)),
    }
}

/// A queue for `GetQueue` and `ListQueues`.
pub fn queue_view(view: &QueueView) -> v1::Queue {
    v1::Queue {
        name: view.queue.as_str().to_owned(),
        settings: Some(options(&view.options)),
        ready: view.counts.ready,
        delayed: view.counts.delayed,
        leased: view.counts.leased,
        dead: view.counts.dead,
        done: view.counts.done,
        oldest_ready_age: view.oldest_ready_age.map(duration),
    }
}

/// A page of `ListQueues`. A queue has a name and some numbers, so the largest page is far below what clients take.
pub fn queue_page(page: &QueuePage) -> v1::ListQueuesResponse {
    v1::ListQueuesResponse {
        queues: page.queues.iter().map(queue_view).collect(),
        next_page_token: page.next.as_deref().map(page_token_from).unwrap_or_default(),
    }
}

/// A page of `ListDead`.
pub fn dead_page(page: DeadPage) -> v1::ListDeadResponse {
    let without_payload = |item| item_view(ItemView { payload: Bytes::new(), ..item });
    v1::ListDeadResponse {
        items: page.items.into_iter().map(without_payload).collect(),
        next_page_token: page.next.as_deref().map(page_token_from).unwrap_or_default(),
    }
}

// The generated `Debug` of these three is left out because it would print the lease id, and of payloads only the size is
// shown.

impl fmt::Debug for v1::ReservedItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservedItem")
            .field("id", &self.id)
            .field("payload_bytes", &self.payload.len())
            .field("priority", &self.priority)
            .field("attempt", &self.attempt)
            .field("fencing_token", &self.fencing_token)
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::ItemLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemLease").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::ItemNack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemNack").field("id", &self.id).field("delay", &self.delay).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{paths, refused, wire};
    use super::*;
    use crate::ids::LeaseId;
    use crate::queue::QueueCounts;
    use crate::token::Token;
    use prost::Message;
    use v1::consume_request::Command;
    use v1::new_item::Content;

    const LEASE_ID: &str = "0123456789abcdef0123456789abcdef";
    const DAY: i64 = 86_400;

    fn item(id: &str) -> v1::NewItem {
        let content = Some(Content::Text("x".to_owned()));
        v1::NewItem { id: Some(id.to_owned()), content, ..Default::default() }
    }

    fn putting(items: Vec<v1::NewItem>) -> v1::PutRequest {
        v1::PutRequest { queue: "mail".to_owned(), items }
    }

    fn parse(items: Vec<v1::NewItem>) -> Result<Vec<NewItem>, Invalid> {
        put(putting(items), &Limits::default()).map(|(_, items)| items)
    }

    fn lease_of(id: &str) -> v1::ItemLease {
        v1::ItemLease { id: id.to_owned(), lease_id: LEASE_ID.to_owned() }
    }

    fn nack_of(id: &str) -> v1::ItemNack {
        v1::ItemNack { id: id.to_owned(), lease_id: LEASE_ID.to_owned(), ..Default::default() }
    }

    fn leased_as(id: &str) -> Leased {
        Leased { id: ItemId::parse(id).unwrap(), lease_id: LeaseId::parse(LEASE_ID).unwrap() }
    }

    fn named(path: &str, reason: Reason) -> (String, Reason) {
        (path.to_owned(), reason)
    }

    #[test]
    fn a_bare_item_is_put_at_once_in_the_middle_under_an_id_of_the_daemons() {
        let bare = v1::NewItem { id: None, ..item("") };
        let expected = NewItem {
            id: None,
            payload: Bytes::from_static(b"x"),
            priority: 0,
            delay: Duration::ZERO,
            attributes: vec![],
        };
        let (queue, items) = put(putting(vec![bare]), &Limits::default()).unwrap();
        assert_eq!((queue.as_str(), items), ("mail", vec![expected]));
    }

    #[test]
    fn everything_that_an_item_may_carry_arrives() {
        let full = v1::NewItem {
            content: Some(Content::Payload(Bytes::new())),
            priority: i32::MIN,
            delay: wire(7 * DAY, 0),
            attributes: [("kind".to_owned(), "bulk".to_owned())].into(),
            ..item("i-7")
        };
        let expected = NewItem {
            id: ItemId::parse("i-7").ok(),
            payload: Bytes::new(),
            priority: i32::MIN,
            delay: Duration::from_secs(7 * 86_400),
            attributes: vec![("kind".to_owned(), "bulk".to_owned())],
        };
        assert_eq!(parse(vec![full]).unwrap(), [expected]);
    }

    #[test]
    fn each_field_of_an_item_keeps_to_its_rule() {
        let good = || item("i");
        let large = Some(Content::Payload(vec![0; (1 << 20) + 1].into()));
        let long = Some(Content::Text("x".repeat((1 << 20) + 1)));
        let attribute = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        let cases: Vec<(v1::NewItem, &str, Reason)> = vec![
            (item(""), "items[0].id", Reason::InvalidItemId),
            (item("a\n"), "items[0].id", Reason::InvalidItemId),
            (item(&"x".repeat(513)), "items[0].id", Reason::InvalidItemId),
            (v1::NewItem { content: None, ..good() }, "items[0].payload", Reason::InvalidValue),
            (v1::NewItem { content: large, ..good() }, "items[0].payload", Reason::TooLarge),
            (v1::NewItem { content: long, ..good() }, "items[0].text", Reason::TooLarge),
            (v1::NewItem { delay: wire(7 * DAY, 1), ..good() }, "items[0].delay", Reason::InvalidDelay),
            (v1::NewItem { delay: wire(-1, 0), ..good() }, "items[0].delay", Reason::InvalidDelay),
            (v1::NewItem { delay: wire(1, -1), ..good() }, "items[0].delay", Reason::InvalidDelay),
            (
                v1::NewItem { attributes: attribute("", "x"), ..good() },
                "items[0].attributes",
                Reason::InvalidAttributes,
            ),
            (
                v1::NewItem { attributes: attribute("a", &"x".repeat(4096)), ..good() },
                "items[0].attributes",
                Reason::TooLarge,
            ),
        ];
        for (item, path, reason) in cases {
            assert_eq!(paths(parse(vec![item])), [named(path, reason)]);
        }
        let edge = v1::NewItem {
            content: Some(Content::Payload(vec![0; 1 << 20].into())),
            ..item(&"ü".repeat(256))
        };
        assert!(parse(vec![edge]).is_ok());
    }

    #[test]
    fn a_batch_names_what_is_wrong_by_its_position_and_is_bounded_as_a_whole() {
        let limits = Limits { batch_items_max: 4, batch_bytes_max: 40, ..Limits::default() };
        let batch = |items| put(putting(items), &limits).map(|(_, items)| items);
        assert_eq!(batch(vec![]).unwrap(), []);
        let items = vec![
            item("a"),
            v1::NewItem { delay: wire(-1, 0), content: None, ..item("\t") },
            v1::NewItem { id: None, ..item("") },
            item("a"),
        ];
        let expected = [
            named("items[1].id", Reason::InvalidItemId),
            named("items[1].payload", Reason::InvalidValue),
            named("items[1].delay", Reason::InvalidDelay),
            named("items[3].id", Reason::DuplicateItem),
        ];
        assert_eq!(paths(batch(items)), expected);
        // Without ids they are different items.
        assert_eq!(batch(vec![v1::NewItem { id: None, ..item("") }; 4]).unwrap().len(), 4);
        let many = (0..5).map(|n: u32| item(&n.to_string())).collect();
        assert_eq!(paths(batch(many)), [named("items", Reason::TooLarge)]);
        // 20 bytes of id and one of text: two are too many by two.
        let large = ["a", "b"].map(|id| item(&id.repeat(20)));
        assert_eq!(paths(batch(large.to_vec())), [named("items", Reason::TooLarge)]);
        let attributes = [("k".repeat(20), "v".repeat(20))].into();
        let large = vec![v1::NewItem { attributes, ..item("a") }];
        assert_eq!(paths(batch(large)), [named("items", Reason::TooLarge)]);
        let bad_queue = put(v1::PutRequest { queue: String::new(), items: vec![item("")] }, &limits);
        let expected = [named("queue", Reason::InvalidName), named("items[0].id", Reason::InvalidItemId)];
        assert_eq!(paths(bad_queue), expected);
    }

    #[test]
    fn who_reserves_gets_one_item_at_once_unless_more_is_asked() {
        let bare = v1::ReserveRequest { queue: "mail".to_owned(), ..Default::default() };
        let parsed = reserve(&bare, &Limits::default()).unwrap();
        let queue = QueueName::parse("mail").unwrap();
        let expected = ReserveRequest { queue, max_items: 1, lease_ttl: None, wait: Duration::ZERO };
        assert_eq!(parsed, expected);
        let asked = v1::ReserveRequest {
            max_items: Some(1_000),
            lease_ttl: wire(300, 0),
            wait_timeout: wire(90_000, 0),
            ..bare.clone()
        };
        let parsed = reserve(&asked, &Limits::default()).unwrap();
        assert_eq!((parsed.max_items, parsed.lease_ttl), (1_000, Some(Duration::from_secs(300))));
        assert_eq!(parsed.wait, Limits::default().wait_max);
        for count in [i32::MIN, -1, 0, 1_001, i32::MAX] {
            let asked = v1::ReserveRequest { max_items: Some(count), ..bare.clone() };
            assert_eq!(refused(reserve(&asked, &Limits::default())), [("max_items", Reason::InvalidCount)]);
        }
        let wrong = v1::ReserveRequest {
            queue: "\0".to_owned(),
            max_items: Some(0),
            lease_ttl: wire(300, 1),
            wait_timeout: wire(-1, 0),
        };
        let expected = [
            ("queue", Reason::InvalidName),
            ("max_items", Reason::InvalidCount),
            ("lease_ttl", Reason::InvalidTtl),
            ("wait_timeout", Reason::InvalidWaitTimeout),
        ];
        assert_eq!(refused(reserve(&wrong, &Limits::default())), expected);
    }

    fn message(command: Command) -> v1::ConsumeRequest {
        v1::ConsumeRequest { command: Some(command) }
    }

    #[test]
    fn a_stream_is_opened_by_its_first_message_and_by_no_other() {
        let limits = Limits::default();
        let opening = |open| message(Command::Open(open));
        let bare = v1::consume_request::Open { queue: "mail".to_owned(), ..Default::default() };
        let parsed = open(&opening(bare.clone()), &limits).unwrap();
        let queue = QueueName::parse("mail").unwrap();
        assert_eq!(parsed, ConsumeRequest { queue, max_in_flight: 1, lease_ttl: None });
        let wrong = v1::consume_request::Open {
            queue: String::new(),
            max_in_flight: Some(1_001),
            lease_ttl: wire(0, 1),
        };
        let expected = [
            ("open.queue", Reason::InvalidName),
            ("open.max_in_flight", Reason::InvalidCount),
            ("open.lease_ttl", Reason::InvalidTtl),
        ];
        assert_eq!(refused(open(&opening(wrong), &limits)), expected);
        for first in [v1::ConsumeRequest { command: None }, message(Command::Ack(lease_of("i")))] {
            assert_eq!(refused(open(&first, &limits)), [("open", Reason::InvalidCommand)]);
        }
        for (later, field) in [(opening(bare), "open"), (v1::ConsumeRequest { command: None }, "command")] {
            let Err(BadCommand::Other(invalid)) = command(later, &limits) else { panic!("{field}") };
            assert_eq!(refused::<()>(Err(invalid)), [(field, Reason::InvalidCommand)]);
        }
    }

    #[test]
    fn what_a_consumer_says_arrives_and_what_breaks_a_rule_names_its_lease() {
        let limits = Limits::default();
        let ack = command(message(Command::Ack(lease_of("i"))), &limits).unwrap();
        assert_eq!(ack, ConsumeCommand::Ack(leased_as("i")));
        let given = v1::ItemNack { delay: wire(5, 0), reason: "broke\n".to_owned(), ..nack_of("i") };
        let nacked = command(message(Command::Nack(given)), &limits).unwrap();
        let delay = Some(Duration::from_secs(5));
        let expected = Nack { lease: leased_as("i"), delay, reason: "broke\n".to_owned() };
        assert_eq!(nacked, ConsumeCommand::Nack(expected));

        let wrong = v1::ItemNack {
            delay: wire(7 * DAY, 1),
            reason: "x".repeat(1_025),
            lease_id: "secret?".to_owned(),
            ..nack_of("i")
        };
        let bad = command(message(Command::Nack(wrong)), &limits).unwrap_err();
        assert!(!format!("{bad:?}").contains("secret"));
        let BadCommand::Settle { lease, invalid } = bad else { panic!("{bad:?}") };
        assert_eq!((lease.id.as_str(), lease.lease_id.as_str()), ("i", "secret?"));
        let expected = [
            ("nack.lease_id", Reason::InvalidLeaseId),
            ("nack.delay", Reason::InvalidDelay),
            ("nack.reason", Reason::TooLarge),
        ];
        assert_eq!(refused::<()>(Err(invalid)), expected);
        let wrong = v1::ItemLease { lease_id: String::new(), ..lease_of("") };
        let Err(BadCommand::Settle { invalid, .. }) = command(message(Command::Ack(wrong)), &limits) else {
            panic!("an ack")
        };
        let expected = [("ack.id", Reason::InvalidItemId), ("ack.lease_id", Reason::InvalidLeaseId)];
        assert_eq!(refused::<()>(Err(invalid)), expected);
    }

    #[test]
    fn batches_of_leases_name_what_is_wrong_by_its_position() {
        let limits = Limits { batch_items_max: 3, ..Limits::default() };
        let queue = || "mail".to_owned();
        let wrong = || vec![lease_of("a"), v1::ItemLease { lease_id: "x".to_owned(), ..lease_of("") }];
        let expected = [
            named("leases[1].id", Reason::InvalidItemId),
            named("leases[1].lease_id", Reason::InvalidLeaseId),
        ];
        assert_eq!(paths(ack(v1::AckRequest { queue: queue(), leases: wrong() }, &limits)), expected);
        let request = v1::QueueServiceExtendRequest { queue: queue(), leases: wrong(), ttl: wire(0, 1) };
        let expected = [&expected[..], &[named("ttl", Reason::InvalidTtl)]].concat();
        assert_eq!(paths(extend(request, &limits)), expected);
        let many = v1::AckRequest { queue: queue(), leases: vec![lease_of("a"); 4] };
        assert_eq!(paths(ack(many, &limits)), [named("leases", Reason::TooLarge)]);
        let nacking = |items| nack(v1::NackRequest { queue: queue(), items }, &limits);
        assert_eq!(paths(nacking(vec![nack_of("a"); 4])), [named("items", Reason::TooLarge)]);
        let long = v1::ItemNack { reason: "x".repeat(1_025), delay: wire(-1, 0), ..nack_of("a") };
        let expected =
            [named("items[1].delay", Reason::InvalidDelay), named("items[1].reason", Reason::TooLarge)];
        assert_eq!(paths(nacking(vec![nack_of("a"), long])), expected);
        // The same lease twice is asked twice.
        let twice = v1::AckRequest { queue: queue(), leases: vec![lease_of("a"); 2] };
        assert_eq!(ack(twice, &limits).unwrap().1, [leased_as("a"), leased_as("a")]);
        let (_, nacks) = nacking(vec![nack_of("a")]).unwrap();
        assert_eq!(nacks, [Nack { lease: leased_as("a"), delay: None, reason: String::new() }]);
    }

    #[test]
    fn settings_that_are_not_given_stay_and_the_others_keep_to_their_ranges() {
        let limits = Limits::default();
        let bare = v1::ConfigureQueueRequest { queue: "mail".to_owned(), ..Default::default() };
        assert_eq!(configure(&bare, &limits).unwrap().1, QueueOptionsPatch::default());
        let largest = v1::ConfigureQueueRequest {
            lease_ttl: wire(300, 0),
            max_attempts: Some(1_000_000),
            backoff_min: wire(DAY, 0),
            backoff_max: wire(0, 0),
            max_items: Some((1 << 53) - 1),
            done_retention: wire(7 * DAY, 0),
            ..bare.clone()
        };
        let expected = QueueOptionsPatch {
            lease_ttl: Some(Duration::from_secs(300)),
            max_attempts: Some(1_000_000),
            backoff_min: Some(Duration::from_secs(86_400)),
            backoff_max: Some(Duration::ZERO),
            max_items: Some((1 << 53) - 1),
            done_retention: Some(Duration::from_secs(7 * 86_400)),
        };
        assert_eq!(configure(&largest, &limits).unwrap().1, expected);
        let none = v1::ConfigureQueueRequest { max_attempts: Some(0), max_items: Some(0), ..bare };
        let patch = configure(&none, &limits).unwrap().1;
        assert_eq!((patch.max_attempts, patch.max_items), (Some(0), Some(0)));
        let wrong = v1::ConfigureQueueRequest {
            queue: String::new(),
            lease_ttl: wire(0, 0),
            max_attempts: Some(1_000_001),
            backoff_min: wire(DAY, 1),
            backoff_max: wire(-1, 0),
            max_items: Some(1 << 53),
            done_retention: wire(7 * DAY, 1),
        };
        let expected = [
            ("queue", Reason::InvalidName),
            ("lease_ttl", Reason::InvalidTtl),
            ("max_attempts", Reason::InvalidCount),
            ("backoff_min", Reason::InvalidDelay),
            ("backoff_max", Reason::InvalidDelay),
            ("max_items", Reason::InvalidCount),
            ("done_retention", Reason::InvalidDelay),
        ];
        assert_eq!(refused(configure(&wrong, &limits)), expected);
    }

    #[test]
    fn what_is_removed_has_to_be_named() {
        use v1::ItemState::{Dead, Delayed, Done, Leased, Ready, Unspecified};
        let purging = |states: &[v1::ItemState]| {
            let states = states.iter().map(|state| i32::from(*state)).collect();
            purge(v1::PurgeRequest { queue: "mail".to_owned(), states }, &Limits::default())
        };
        let (_, states) = purging(&[Dead, Ready, Dead, Leased, Delayed]).unwrap();
        assert_eq!(states, [ItemState::Ready, ItemState::Delayed, ItemState::Leased, ItemState::Dead]);
        assert_eq!(paths(purging(&[])), [named("states", Reason::InvalidState)]);
        let expected = [named("states[1]", Reason::InvalidState), named("states[2]", Reason::InvalidState)];
        assert_eq!(paths(purging(&[Ready, Done, Unspecified])), expected);
        let unknown = v1::PurgeRequest { queue: "mail".to_owned(), states: vec![6, i32::MIN] };
        assert_eq!(paths(purge(unknown, &Limits::default())).len(), 2);

        let redriving = |ids: &[&str]| {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            redrive(v1::RedriveRequest { queue: "mail".to_owned(), ids }, &Limits::default())
        };
        assert_eq!(redriving(&[]).unwrap().1, []);
        assert_eq!(paths(redriving(&["a", ""])), [named("ids[1]", Reason::InvalidItemId)]);
        assert_eq!(paths(redriving(&["a"; 1_001])), [named("ids", Reason::TooLarge)]);
    }

    fn view(id: &str) -> ItemView {
        ItemView {
            id: ItemId::parse(id).unwrap(),
            state: ItemState::Dead,
            payload: Bytes::from_static(b"x"),
            attributes: vec![("kind".to_owned(), "bulk".to_owned())],
            priority: -1,
            attempts: 10,
            put_unix_ms: 1_704_067_200_123,
            remaining: None,
            token: Token::ZERO,
            reason: "broke".to_owned(),
        }
    }

    #[test]
    fn a_page_of_dead_items_is_continued_where_it_ended_whatever_is_in_the_place() {
        let places = ["a", "\u{1}-5:\u{0}i\nd", &"x".repeat(768)];
        for place in places {
            let sent = dead_page(DeadPage { items: vec![], next: Some(place.to_owned()) });
            let request = v1::ListDeadRequest {
                queue: "mail".to_owned(),
                page_size: 0,
                page_token: sent.next_page_token,
            };
            let parsed = list_dead(&request, &Limits::default()).unwrap();
            assert_eq!((parsed.after.as_str(), parsed.page_size), (place, 100));
        }
        assert_eq!(dead_page(DeadPage { items: vec![], next: None }).next_page_token, "");
        let with = |queue: &str, page_size, token: &str| {
            let (queue, page_token) = (queue.to_owned(), token.to_owned());
            list_dead(&v1::ListDeadRequest { queue, page_size, page_token }, &Limits::default())
        };
        assert_eq!(with("mail", i32::MAX, "").unwrap().page_size, 500);
        assert_eq!(with("mail", 0, "").unwrap().after, "");
        let expected = [
            ("queue", Reason::InvalidName),
            ("page_size", Reason::InvalidPageSize),
            ("page_token", Reason::InvalidPageToken),
        ];
        assert_eq!(refused(with("", -1, "!")), expected);
        for bad in ["====", "_w", &"A".repeat(1_025)] {
            assert_eq!(refused(with("mail", 0, bad)), [("page_token", Reason::InvalidPageToken)], "{bad}");
        }
    }

    #[test]
    fn the_largest_page_of_dead_items_is_one_that_clients_take() {
        let largest = ItemView {
            payload: vec![7; 1 << 20].into(),
            attributes: (0..16).map(|n| (format!("{n:0>3}"), "x".repeat(253))).collect(),
            reason: "x".repeat(1_024),
            ..view(&"x".repeat(512))
        };
        let items = vec![largest; limits::DEAD_PAGE_SIZE_MAX];
        let sent = dead_page(DeadPage { items, next: Some("x".repeat(768)) });
        assert!(sent.encoded_len() < 3 << 20, "{}", sent.encoded_len());
        assert!(sent.items.iter().all(|item| item.payload.is_empty() && item.attributes.len() == 16));
    }

    #[test]
    fn an_item_shows_where_it_stands() {
        let shown = item_view(view("i"));
        assert_eq!((shown.id.as_str(), shown.state()), ("i", v1::ItemState::Dead));
        assert_eq!((shown.priority, shown.attempts, shown.fencing_token), (-1, 10, 0));
        let put_time = prost_types::Timestamp { seconds: 1_704_067_200, nanos: 123_000_000 };
        assert_eq!((shown.put_time, shown.remaining), (Some(put_time), None));
        assert_eq!((shown.payload, shown.reason.as_str()), (Bytes::from_static(b"x"), "broke"));
        let leased =
            ItemView { state: ItemState::Leased, remaining: Some(Duration::from_millis(1_500)), ..view("i") };
        assert_eq!(item_view(leased).remaining, wire(1, 500_000_000));
        let queue = QueueView {
            queue: QueueName::parse("mail").unwrap(),
            options: QueueOptions::default(),
            counts: QueueCounts { ready: 1, delayed: 2, leased: 3, dead: 4, done: 5 },
            oldest_ready_age: Some(Duration::from_secs(7)),
        };
        let shown = queue_view(&queue);
        assert_eq!((shown.ready, shown.delayed, shown.leased, shown.dead, shown.done), (1, 2, 3, 4, 5));
        assert_eq!(shown.oldest_ready_age, wire(7, 0));
        let settings = shown.settings.unwrap();
        assert_eq!((settings.max_attempts, settings.max_items), (10, 0));
        assert_eq!((settings.lease_ttl, settings.done_retention), (wire(30, 0), wire(60, 0)));
        assert_eq!((settings.backoff_min, settings.backoff_max), (wire(1, 0), wire(300, 0)));
    }

    #[test]
    fn a_lease_says_what_remains_now_and_is_not_printed() {
        let second = |s| Moment::from_start(Duration::from_secs(s));
        let item = Reserved {
            id: ItemId::parse("i").unwrap(),
            payload: Bytes::from_static(b"body"),
            attributes: vec![],
            priority: 0,
            attempt: 1,
            put_unix_ms: 0,
            lease_id: LeaseId::parse(LEASE_ID).unwrap(),
            token: Token::new(7).unwrap(),
            ttl: Duration::from_secs(30),
            valid_until: second(100),
        };
        let at = |now| reserved(item.clone(), now);
        assert_eq!((at(second(75)).remaining, at(second(101)).remaining), (wire(25, 0), wire(0, 0)));
        assert_eq!((at(second(75)).lease_id.as_str(), at(second(75)).fencing_token), (LEASE_ID, 7));
        let response = v1::ReserveResponse { items: vec![at(second(75))] };
        let nacks = v1::NackRequest { queue: "mail".to_owned(), items: vec![nack_of("i")] };
        let acks = message(Command::Ack(lease_of("i")));
        let settled = consume_settled(&leased_as("i"), Ok(Settled::Done));
        for printed in [
            format!("{response:?}"),
            format!("{nacks:?}"),
            format!("{acks:?}"),
            format!("{settled:?}"),
            format!("{:?}", consume_lost(&leased_as("i"))),
        ] {
            assert!(!printed.contains("0123456789") && !printed.contains("body"), "{printed}");
        }
    }

    #[test]
    fn every_outcome_of_a_lease_has_its_own_name() {
        use v1::settle_result::Result as Sent;
        let outcomes = [
            (Settled::Done, v1::LeaseOutcome::Ok),
            (Settled::Buried, v1::LeaseOutcome::Buried),
            (Settled::LeaseLost, v1::LeaseOutcome::LeaseLost),
            (Settled::AlreadyDone, v1::LeaseOutcome::AlreadyDone),
            (Settled::NoSuchItem, v1::LeaseOutcome::NoSuchItem),
        ];
        let id = ItemId::parse("i").unwrap();
        for (settled, expected) in outcomes {
            let sent = settle_result(&id, Ok(settled));
            assert_eq!((sent.id.as_str(), sent.result), ("i", Some(Sent::Outcome(expected.into()))));
        }
        let now = Moment::from_start(Duration::from_secs(9));
        let until = Extended::Until {
            ttl: Duration::from_secs(30),
            valid_until: Moment::from_start(Duration::from_secs(34)),
        };
        use v1::queue_service_extend_response::result::Outcome;
        let Some(Outcome::Extended(extended)) = extend_result(&id, Ok(until), now).outcome else {
            panic!("it goes on")
        };
        assert_eq!((extended.ttl, extended.remaining), (wire(30, 0), wire(25, 0)));
        let lost = extend_result(&id, Ok(Extended::Lost(Settled::AlreadyDone)), now).outcome;
        assert_eq!(lost, Some(Outcome::Ended(v1::LeaseOutcome::AlreadyDone.into())));
    }
}
