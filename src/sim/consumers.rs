//! Clients that work on items: they reserve and wait or not, extend, ack and give back at any daemon, hold items beyond
//! their leases, and die with some; or they consume with a stream.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc;
use futures::future::{self, Either};

use super::daemon::Hangup;
use super::history::{CallId, Fate};
use super::item::ItemAsked;
use super::queues::{Held, QueueClient};
use crate::ids::{LeaseId, QueueName};
use crate::queue::{ConsumeCommand, ConsumeEvent, ConsumeRequest, Nack, QueueError, ReserveRequest, Settled};
use crate::runtime::Moment;

/// Longest pause between two calls.
const PAUSE: Duration = Duration::from_millis(1_000);
/// Longest wait for an item.
const WAIT_MS: u64 = 8_000;
/// Longest work between two steps, in milliseconds.
const WORK_MS: u64 = 1_500;
/// Items of one call, and of one stream, at most.
const BATCH: u64 = 4;
/// So often at most is one ack sent.
const SENDS_MAX: u32 = 3;

/// One client that works on items.
pub struct Consumer {
    base: QueueClient,
}

type Events = mpsc::UnboundedReceiver<Result<ConsumeEvent, QueueError>>;

/// One stream of items.
struct Stream {
    queue: QueueName,
    most: usize,
    events: Events,
    commands: Option<mpsc::UnboundedSender<ConsumeCommand>>,
    /// What it is at work on, and what is to become of it when.
    items: VecDeque<(Moment, Plan, Held)>,
    /// Acks and nacks under way.
    settling: Vec<(Held, CallId)>,
    _hangup: Hangup,
}

/// What a consumer means to do with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Ack,
    Nack,
    /// It has it until the stream ends, or it is told that it has lost it.
    Keep,
}

impl Consumer {
    /// A consumer.
    pub fn new(base: QueueClient) -> Self {
        Self { base }
    }

    /// Works until it is `calm`, and then until one call has been answered.
    pub async fn live(mut self, calm: impl Fn() -> bool) {
        while !self.base.judge.is_violated() {
            let was_calm = calm();
            let queue = self.base.queue();
            let served = if self.base.random.chance(self.base.work.streams) {
                self.consume(queue).await
            } else {
                self.reserve(queue).await
            };
            if was_calm && served {
                return;
            }
            self.base.rest(PAUSE).await;
        }
    }

    // ---- one call after another

    async fn reserve(&mut self, queue: QueueName) -> bool {
        let wait = if self.base.random.chance(40) { 0 } else { self.base.random.below(WAIT_MS) };
        let most = 1 + self.base.random.below(BATCH);
        let ttl = self.base.random.chance(70).then(|| self.base.ttl());
        self.base.does(format!("reserves from {queue}"));
        let Some(held) = self.base.reserve(&queue, most as usize, ttl, Duration::from_millis(wait)).await
        else {
            return false;
        };
        if !held.is_empty() {
            self.base.does(format!("works on items of {queue}"));
            self.work(held).await;
        }
        true
    }

    async fn work(&mut self, mut held: Vec<Held>) {
        for _ in 0..self.base.random.below(3) {
            self.pass().await;
            if self.base.random.chance(60) {
                held = self.base.extend(held).await;
            }
        }
        if self.base.random.chance(30)
            && let Some(until) = held.iter().map(|held| held.until).max()
        {
            // Longer than it may.
            self.base.world.sleep_until(until).await;
            self.pass().await;
        }
        let (mut done, mut back) = (Vec::new(), Vec::new());
        for held in held {
            match self.base.random.below(100) {
                0..65 => done.push(held),
                65..85 => back.push(held),
                // It dies with the rest.
                _ => {}
            }
        }
        let delay = self.base.random.chance(60).then(|| self.delay());
        self.base.settle(&back, Some(delay)).await;
        for _ in 0..SENDS_MAX {
            let settled = self.base.settle(&done, None).await;
            let again = |settled: &Option<Settled>| if settled.is_none() { 70 } else { 10 };
            let again: Vec<bool> =
                settled.iter().map(|settled| self.base.random.chance(again(settled))).collect();
            done = done.into_iter().zip(again).filter(|(_, again)| *again).map(|(held, _)| held).collect();
            if done.is_empty() {
                return;
            }
            self.pass().await;
        }
    }

    fn delay(&mut self) -> Duration {
        let most = if self.base.random.chance(30) { 1 } else { 2_500 };
        Duration::from_millis(self.base.random.below(most))
    }

    async fn pass(&mut self) {
        let length = Duration::from_millis(self.base.random.below(WORK_MS));
        self.base.world.sleep(length).await;
    }

    // ---- a stream

    async fn consume(&mut self, queue: QueueName) -> bool {
        let Some(daemon) = self.base.daemon().await else { return false };
        self.base.does(format!("consumes {queue} with a stream"));
        let most = 1 + self.base.random.below(BATCH) as usize;
        let lease_ttl = Some(self.base.ttl());
        let request = ConsumeRequest { queue: queue.clone(), max_in_flight: most, lease_ttl };
        let (commands, receiver) = mpsc::unbounded();
        let (queues, start) = (daemon.queues.clone(), self.base.world.now());
        let (events, _hangup) = daemon.stream(move || queues.consume(request, receiver.boxed()));
        let (commands, items, settling) = (Some(commands), VecDeque::new(), Vec::new());
        let mut stream = Stream { queue, most, events, commands, items, settling, _hangup };
        let leaves = start + Duration::from_millis(self.base.random.below(12_000));
        // Now and then it ends its commands and waits for the answers; otherwise it dies.
        let mut last = leaves;
        let ends_well = self.base.random.chance(50);
        loop {
            let due = stream.items.iter().map(|(due, ..)| *due).min().unwrap_or(Moment::FAR);
            let timer = self.base.world.sleep_until(due.min(last));
            match future::select(stream.events.next(), timer).await {
                Either::Left((Some(Ok(event)), _)) => self.note(&daemon, &mut stream, start, event),
                Either::Left((Some(Err(_)) | None, _)) => break,
                Either::Right(_) if self.base.world.now() >= last => {
                    if !ends_well || stream.commands.take().is_none() {
                        break;
                    }
                    last = last + Duration::from_secs(20);
                }
                Either::Right(_) => self.do_what_is_due(&mut stream),
            }
        }
        for (held, call) in stream.settling.drain(..) {
            self.base.settled(&held, call, None);
        }
        true
    }

    fn note(
        &mut self,
        daemon: &super::daemon::SimDaemon,
        stream: &mut Stream,
        start: Moment,
        event: ConsumeEvent,
    ) {
        match event {
            ConsumeEvent::Item(reserved) => {
                let Some(held) = self.base.takes(daemon, &stream.queue, start, reserved) else { return };
                let plan = match self.base.random.below(10) {
                    0..6 => Plan::Ack,
                    6..8 => Plan::Nack,
                    _ => Plan::Keep,
                };
                let work = Duration::from_millis(self.base.random.below(2 * WORK_MS));
                let due = if plan == Plan::Keep { Moment::FAR } else { self.base.world.now() + work };
                stream.items.push_back((due, plan, held));
                if stream.items.len() > stream.most {
                    let words = format!("client {} has more in flight than it asked for", self.base.client);
                    self.base.judge.violated(words);
                }
            }
            ConsumeEvent::Settled { lease, result } => {
                let at = stream.settling.iter().position(|(held, _)| held.lease() == lease);
                let Some(at) = at else {
                    return self.base.judge.violated(format!("client {} never settled it", self.base.client));
                };
                let (held, call) = stream.settling.remove(at);
                self.base.settled(&held, call, Some(result));
            }
            ConsumeEvent::Lost { lease } => self.lose(stream, lease.lease_id),
        }
    }

    fn lose(&mut self, stream: &mut Stream, lease: LeaseId) {
        let at = stream.items.iter().position(|(.., held)| held.reserved.lease_id == lease);
        let Some((_, _, held)) = at.and_then(|at| stream.items.remove(at)) else { return };
        self.base.say(format_args!("has lost {} ({})", held.item, held.reserved.token));
        self.base.lets_go(&held);
    }

    fn do_what_is_due(&mut self, stream: &mut Stream) {
        let now = self.base.world.now();
        while let Some(at) = stream.items.iter().position(|(due, ..)| *due <= now) {
            let Some((_, plan, held)) = stream.items.remove(at) else { return };
            let lease = held.lease();
            let delay = self.base.random.chance(60).then(|| self.delay());
            let (asked, command) = match plan {
                Plan::Ack => (ItemAsked::Ack(held.reserved.token), ConsumeCommand::Ack(lease)),
                Plan::Nack | Plan::Keep => {
                    let nack = Nack { lease, delay, reason: "not now".to_owned() };
                    (ItemAsked::Nack(held.reserved.token, delay), ConsumeCommand::Nack(nack))
                }
            };
            self.base.lets_go(&held);
            let call = self.base.begin(&held.item, asked);
            let sent =
                stream.commands.as_ref().is_some_and(|commands| commands.unbounded_send(command).is_ok());
            if sent {
                stream.settling.push((held, call));
            } else {
                self.base.end(call, Fate::NotApplied("not sent".into()));
            }
        }
    }
}

impl QueueClient {
    /// Reserves items. `None` without an answer.
    pub async fn reserve(
        &mut self,
        queue: &QueueName,
        most: usize,
        lease_ttl: Option<Duration>,
        wait: Duration,
    ) -> Option<Vec<Held>> {
        let daemon = self.daemon().await?;
        let request = ReserveRequest { queue: queue.clone(), max_items: most, lease_ttl, wait };
        let (start, deadline) = (self.world.now(), self.deadline(&daemon) + wait);
        let answer =
            self.call(&daemon, |queues| async move { queues.reserve(request, deadline).await }).await;
        let items = answer?.ok()?;
        if items.len() > most {
            self.judge.violated(format!(
                "client {} asked for {most} items and got {}",
                self.client,
                items.len()
            ));
        }
        Some(items.into_iter().filter_map(|item| self.takes(&daemon, queue, start, item)).collect())
    }
}
