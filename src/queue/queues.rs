//! [`Queues`]: what callers see of queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use event_listener::Event;
use futures::channel::oneshot;
use futures::future;
use futures::stream::BoxStream;

use super::change::{Delay, ItemAnswer, ItemChange, ItemKind, PutItem};
use super::desk::{Desk, WANTED_MAX};
use super::handing::{Handing, Returning};
use super::options::Options;
use super::value::{name_of, split};
use super::{
    ConsumeCommand, ConsumeEvent, ConsumeRequest, Extended, ItemView, Leased, Nack, NewItem, Put, QueueError,
    QueueOptions, QueueOptionsPatch, ReserveRequest, Reserved, Settled, consume,
};
use crate::driver::Cluster;
use crate::ids::{ItemId, LeaseId, NodeIndex, QueueName};
use crate::limits;
use crate::meter::{Count, QueueMeter};
use crate::register::registers::{ChangeResult, Extras, Ticket};
use crate::register::room::{Full, Held};
use crate::register::{Committed, Leases, RegisterError, Registers, Room};
use crate::runtime::{Moment, Runtime};
use crate::token::Ballot;

/// Pause before a put whose outcome is unknown is tried again; drawn up to this.
const REPEAT_PAUSE: Duration = Duration::from_millis(100);

/// Settings of the queues at this daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// How long a round is retried without a quorum.
    pub patience: Duration,
    /// About how often a waiting consumer's daemon looks although nothing was announced.
    pub look_interval: Duration,
    /// Bytes of payloads that may be written at a time.
    pub writes_bytes_max: usize,
    /// Calls that may wait for items of one queue at this daemon.
    pub waiters_per_name_max: usize,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(3),
            look_interval: Duration::from_secs(2),
            writes_bytes_max: limits::WRITES_BYTES_MAX,
            waiters_per_name_max: limits::WAITERS_PER_NAME_MAX,
        }
    }
}

/// The queues of a cluster. Cheap to clone. Every `deadline` is a moment of the daemon's clock after which the caller no
/// longer listens; the answer comes before it.
#[derive(Clone)]
pub struct Queues {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub items: Registers<ItemKind>,
    pub options: Options,
    pub leases: Leases,
    pub desk: Desk,
    pub settings: QueueSettings,
    /// For the payloads that are being written.
    room: Room,
    closing: AtomicBool,
    pub closed: Event,
}

impl Queues {
    /// The queues of a cluster.
    pub fn new(cluster: Arc<Cluster>, settings: QueueSettings) -> Self {
        let (closing, closed) = (AtomicBool::new(false), Event::new());
        Self {
            inner: Arc::new(Inner {
                items: Registers::new(cluster.clone(), settings.patience),
                options: Options::new(Registers::new(cluster.clone(), settings.patience)),
                leases: Leases::new(cluster),
                desk: Desk::default(),
                room: Room::new(settings.writes_bytes_max),
                settings,
                closing,
                closed,
            }),
        }
    }

    /// Puts items, each by itself: one result for each, in order. The queue need not exist before.
    ///
    /// # Errors
    /// [`QueueError`] for the call as a whole: nothing was put. An item's own error says what is certain of it; that its
    /// outcome is unknown means that it is put once or never, and with an id the same may be put again.
    pub async fn put(
        &self,
        queue: &QueueName,
        items: Vec<NewItem>,
        deadline: Moment,
    ) -> Result<Vec<Result<Put, QueueError>>, QueueError> {
        let inner = &self.inner;
        inner.check_open()?;
        let options = inner.options.of_made(queue, deadline).await?;
        let mut space = match options.max_items {
            0 => None,
            max => Some((inner.census(queue, deadline).await?.alive(), max)),
        };
        let mut handings = inner.handings(queue, &items, &options);
        // All are in line before any is waited for, so they travel together, and in this order.
        let mut puts = Vec::with_capacity(items.len());
        for (item, handing) in items.into_iter().zip(&mut handings) {
            let put = match &mut space {
                Some((alive, max)) if *alive >= *max => {
                    let full = QueueError::QueueFull { queue: queue.clone(), items: *alive, max: *max };
                    Start::Full(item.id, full)
                }
                space => {
                    if let Some((alive, _)) = space {
                        *alive += 1;
                    }
                    Start::Put(inner.start_put(queue, item, handing.take(), deadline))
                }
            };
            puts.push(put);
        }
        // Those for which there is no room.
        handings.into_iter().flatten().for_each(|handing| inner.put_back(queue, handing.waiter));
        let puts = puts.into_iter().map(|put| async move {
            match put {
                Start::Put(started) => inner.finish_put(queue, started?, deadline).await,
                Start::Full(id, full) => inner.refuse(queue, id, full, deadline).await,
            }
        });
        Ok(future::join_all(puts).await)
    }

    /// Leases items, waiting for the first for up to `request.wait`, never past `deadline`. Empty if there was none, and at
    /// times fewer than there are. A queue that does not exist is as good as an empty one.
    ///
    /// # Errors
    /// [`QueueError`] says what is certain: at worst an item was leased that nobody got, and comes again.
    pub async fn reserve(
        &self,
        request: ReserveRequest,
        deadline: Moment,
    ) -> Result<Vec<Reserved>, QueueError> {
        let inner = &self.inner;
        inner.check_open()?;
        inner.leases.check_grants()?;
        let until = inner.now() + request.wait;
        let wanted = request.max_items.clamp(1, WANTED_MAX);
        inner.wait_for_items(&request.queue, wanted, request.lease_ttl, until, deadline).await
    }

    /// Items as they come, until the stream is dropped, with their leases extended meanwhile. When `commands` ends no more
    /// items come, and the stream ends with the last answer to a command. What is not acked then runs out.
    pub fn consume(
        &self,
        request: ConsumeRequest,
        commands: BoxStream<'static, ConsumeCommand>,
    ) -> BoxStream<'static, Result<ConsumeEvent, QueueError>> {
        consume::consume(self.inner.clone(), request, commands)
    }

    /// Starts the leases' time again, with another length if `ttl` is given. A result for each, in order.
    pub async fn extend(
        &self,
        queue: &QueueName,
        leases: Vec<Leased>,
        ttl: Option<Duration>,
        deadline: Moment,
    ) -> Vec<Result<Extended, QueueError>> {
        let extensions = leases.iter().map(|lease| self.inner.extend(queue, lease, ttl, deadline));
        future::join_all(extensions).await
    }

    /// The items are done. A result for each, in order. Repeatable.
    pub async fn ack(
        &self,
        queue: &QueueName,
        leases: Vec<Leased>,
        deadline: Moment,
    ) -> Vec<Result<Settled, QueueError>> {
        future::join_all(leases.iter().map(|lease| self.inner.ack(queue, lease, deadline))).await
    }

    /// The items are given back. A result for each, in order. Repeatable: a repeat says [`Settled::LeaseLost`].
    pub async fn nack(
        &self,
        queue: &QueueName,
        nacks: Vec<Nack>,
        deadline: Moment,
    ) -> Vec<Result<Settled, QueueError>> {
        future::join_all(nacks.into_iter().map(|nack| self.inner.nack(queue, nack, deadline))).await
    }

    /// One item, linearizable.
    ///
    /// # Errors
    /// [`QueueError::NoSuchItem`]; [`QueueError::Register`] without a quorum.
    pub async fn get_item(
        &self,
        queue: &QueueName,
        id: &ItemId,
        deadline: Moment,
    ) -> Result<ItemView, QueueError> {
        let found = self.inner.view(queue, id, deadline).await?;
        found.ok_or_else(|| QueueError::NoSuchItem { queue: queue.clone(), id: id.clone() })
    }

    /// Changes a queue's settings, and makes the queue if there is none. Other daemons go by it within some seconds.
    ///
    /// # Errors
    /// [`QueueError::Register`] says what is certain; a repeat is harmless.
    pub async fn configure(
        &self,
        queue: &QueueName,
        patch: QueueOptionsPatch,
        deadline: Moment,
    ) -> Result<QueueOptions, QueueError> {
        self.inner.check_open()?;
        Ok(self.inner.options.configure(queue, patch, deadline).await?)
    }

    /// A node passed on that an item is ready: the register's name. A hint.
    pub fn on_ready(&self, node: NodeIndex, name: &str) {
        if let Some(queue) = split(name).and_then(|(queue, _)| QueueName::parse(queue).ok()) {
            self.inner.on_ready(node, &queue);
        }
    }

    /// How many leases of items are good that this daemon gave out or extended, as far as it remembers and was told.
    pub fn live_leases(&self) -> usize {
        self.inner.leases.live()
    }

    /// Bytes of payloads that are being written, and how many may be at a time.
    pub fn writes_bytes(&self) -> (usize, usize) {
        self.inner.room.filled()
    }

    /// Stops taking calls; waiting calls and streams end with [`QueueError::ShuttingDown`]. No lease is given back.
    pub fn shut_down(&self) {
        self.inner.closing.store(true, Ordering::Release);
        self.inner.closed.notify(usize::MAX);
    }
}

/// How an item's put begins.
enum Start {
    Put(Result<Started, QueueError>),
    /// There is no room for it, unless it is there already.
    Full(Option<ItemId>, QueueError),
}

/// A put that is in line.
struct Started {
    id: ItemId,
    put: PutItem,
    outcome: Outcome,
}

/// What the first attempt of a put comes to.
enum Outcome {
    /// It is waited for.
    Own(Ticket<ItemAnswer>),
    /// Somebody is handed the item, also if the call that puts it goes away.
    Handed(oneshot::Receiver<ChangeResult<ItemAnswer>>),
}

impl Inner {
    pub fn runtime(&self) -> &Runtime {
        &self.items.cluster().runtime
    }

    pub fn now(&self) -> Moment {
        self.runtime().clock.now()
    }

    pub fn meter(&self) -> &QueueMeter {
        &self.items.cluster().meter.queues
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub fn check_open(&self) -> Result<(), QueueError> {
        if self.is_closing() { Err(QueueError::ShuttingDown) } else { Ok(()) }
    }

    fn room_for(&self, bytes: usize) -> Result<Held, QueueError> {
        self.room.take(bytes).map_err(|Full { taken, max }| QueueError::TooMuchToWrite { bytes: taken, max })
    }

    fn start_put(
        self: &Arc<Self>,
        queue: &QueueName,
        item: NewItem,
        handing: Option<Handing>,
        deadline: Moment,
    ) -> Result<Started, QueueError> {
        // Whoever was to be handed the item is back in line if it can't be put.
        let handing = Returning::new(self, queue, handing);
        let room = self.room_for(item.payload.len())?;
        let cluster = self.items.cluster();
        let ballot = cluster.next_ballot();
        let put = PutItem {
            payload: item.payload,
            attributes: item.attributes,
            priority: item.priority,
            order: ballot.token,
            put_by: ballot.proposer,
            now_unix_ms: self.runtime().clock.wall_unix_ms(),
            delay: item.delay,
            lease: handing.lease(),
        };
        let (id, extras) = match item.id {
            Some(id) => (id, Extras::default()),
            None => (ItemId::unique(self.runtime().entropy.next_u128()), Extras::fresh(ballot)),
        };
        let change = ItemChange::Put(put.clone());
        let extras = extras.with_room(room);
        let ticket = self.items.enqueue_with(&name_of(queue, &id), change, extras, deadline)?;
        let outcome = match handing.keep() {
            None => Outcome::Own(ticket),
            Some(handing) => Outcome::Handed(self.hand_over(queue, &id, handing, ticket, deadline)),
        };
        Ok(Started { id, put: PutItem { lease: None, ..put }, outcome })
    }

    /// Waits for a put, and tries it again where its outcome is unknown: the item shows whether it was this put's.
    async fn finish_put(
        &self,
        queue: &QueueName,
        started: Started,
        deadline: Moment,
    ) -> Result<Put, QueueError> {
        let Started { id, put, outcome } = started;
        let mut result = match outcome {
            Outcome::Own(ticket) => self.items.wait(ticket, deadline).await,
            // The task ended without a word: the runtime is stopping.
            Outcome::Handed(told) => told.await.unwrap_or(Err(RegisterError::OutcomeUnknown)),
        };
        if !matches!(&result, Ok(Committed { answer: ItemAnswer::Leased(_), .. })) {
            self.desk.stir(queue);
        }
        let mut in_doubt = false;
        loop {
            match result {
                Ok(Committed { answer: ItemAnswer::Put | ItemAnswer::Leased(_), .. }) => {
                    self.meter().put.one();
                    return Ok(Put { id, duplicate: false });
                }
                Ok(Committed { answer: ItemAnswer::Known, .. }) => {
                    self.meter().duplicates.one();
                    return Ok(Put { id, duplicate: true });
                }
                Ok(_) => unreachable!("a put is put or known"),
                Err(RegisterError::OutcomeUnknown) if self.now() < deadline => in_doubt = true,
                // That nothing happened is then true of this repeat only.
                Err(_) if in_doubt => return Err(RegisterError::OutcomeUnknown.into()),
                Err(error) => return Err(error.into()),
            }
            let pause = self.runtime().entropy.jitter(REPEAT_PAUSE);
            self.runtime().clock.sleep_until(deadline.min(self.now() + pause)).await;
            // If it was put it may have been done and forgotten since.
            let extras =
                Extras::after_doubt(Ballot { token: put.order, ..self.items.cluster().next_ballot() });
            let change = ItemChange::Put(put.clone());
            result = match self.items.enqueue_with(&name_of(queue, &id), change, extras, deadline) {
                Ok(ticket) => self.items.wait(ticket, deadline).await,
                Err(error) => Err(error),
            };
            self.desk.stir(queue);
        }
    }

    /// There is no room for the item, unless it is there.
    async fn refuse(
        &self,
        queue: &QueueName,
        id: Option<ItemId>,
        full: QueueError,
        deadline: Moment,
    ) -> Result<Put, QueueError> {
        if let Some(id) = id
            && self.view(queue, &id, deadline).await?.is_some()
        {
            return Ok(Put { id, duplicate: true });
        }
        Err(full)
    }

    async fn change(
        &self,
        queue: &QueueName,
        id: &ItemId,
        change: ItemChange,
        deadline: Moment,
    ) -> ChangeResult<ItemAnswer> {
        self.items.change(&name_of(queue, id), change, deadline).await
    }

    pub async fn extend(
        &self,
        queue: &QueueName,
        lease: &Leased,
        ttl: Option<Duration>,
        deadline: Moment,
    ) -> Result<Extended, QueueError> {
        self.check_open()?;
        let until = self.leases.until(lease.lease_id);
        self.leases.check_extends(until)?;
        let change = ItemChange::Extend { lease_id: lease.lease_id, ttl };
        let committed = self.change(queue, &lease.id, change, deadline).await?;
        match committed.answer {
            // The lease's time has begun again, and yet its holder may not go by it.
            ItemAnswer::Extended(_) if self.leases.check_extends(until).is_err() => {
                Err(RegisterError::OutcomeUnknown.into())
            }
            ItemAnswer::Extended(ttl) => {
                let from = committed.first_sent.expect("what is extended was sent");
                let valid_until = Leases::valid_until(from, ttl);
                self.leases.note(lease.lease_id, valid_until);
                self.meter().leases.extended.one();
                Ok(Extended::Until { ttl, valid_until })
            }
            ItemAnswer::Settled(lost) => {
                self.meter().leases.taken.one();
                self.leases.lost(lease.lease_id);
                Ok(Extended::Lost(lost))
            }
            other => unreachable!("an extension does not answer {other:?}"),
        }
    }

    pub async fn ack(
        &self,
        queue: &QueueName,
        lease: &Leased,
        deadline: Moment,
    ) -> Result<Settled, QueueError> {
        self.check_open()?;
        let retention = self.options.or_default(queue, deadline).await?.done_retention;
        let change = ItemChange::Ack { lease_id: lease.lease_id, retention };
        let settled = settled(self.change(queue, &lease.id, change, deadline).await?.answer)?;
        self.count_end(lease.lease_id, settled, &self.meter().acked);
        Ok(settled)
    }

    pub async fn nack(&self, queue: &QueueName, nack: Nack, deadline: Moment) -> Result<Settled, QueueError> {
        self.check_open()?;
        let options = self.options.or_default(queue, deadline).await?;
        let Nack { lease: Leased { id, lease_id }, delay, reason } = nack;
        let delay = delay.map_or(Delay::Backoff(options.backoff_min, options.backoff_max), Delay::Length);
        let change = ItemChange::Nack { lease_id, delay, max_attempts: options.max_attempts, reason };
        let changed = self.change(queue, &id, change, deadline).await;
        self.desk.stir(queue);
        let settled = settled(changed?.answer)?;
        self.count_end(lease_id, settled, &self.meter().nacked);
        Ok(settled)
    }

    /// A lease was to be ended, by something that has a count of its own.
    fn count_end(&self, lease_id: LeaseId, settled: Settled, done: &Count) {
        let meter = self.meter();
        match settled {
            Settled::Done => done.one(),
            Settled::Buried => meter.buried.one(),
            Settled::LeaseLost => {
                meter.leases.taken.one();
                return self.leases.lost(lease_id);
            }
            // A repeat, mostly.
            Settled::AlreadyDone | Settled::NoSuchItem => return self.leases.lost(lease_id),
        }
        self.leases.ended(lease_id);
        meter.leases.ended.one();
    }

    /// One item; `None` for none.
    pub async fn view(
        &self,
        queue: &QueueName,
        id: &ItemId,
        deadline: Moment,
    ) -> Result<Option<ItemView>, QueueError> {
        let observed = self.items.read(&name_of(queue, id), deadline).await?;
        Ok(observed.value.item.map(|item| item.view(id.clone(), &observed.ages)))
    }
}

fn settled(answer: ItemAnswer) -> Result<Settled, QueueError> {
    match answer {
        ItemAnswer::Settled(settled) => Ok(settled),
        other => unreachable!("an end of a lease does not answer {other:?}"),
    }
}
