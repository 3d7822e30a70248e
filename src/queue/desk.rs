//! The desk: where this daemon's calls wait for items. One clerk per queue serves all of them.
//!
//! The clerk claims as many items as are wanted, leases them for those who came first, and goes on with the next. It is
//! woken by an announcement that an item is ready, by a timer for the next that is due, and by a slow, jittered look. An
//! item whose caller has gone away is given back at once, and not counted as an attempt.
//!
//! Where a claim has found that nothing is ready, and nothing has happened since that could have made something ready, whoever
//! waits is handed what this daemon puts next ([`super::handing`]), and whoever comes to wait needs no claim of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use event_listener::Event;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{self, Either};

use super::change::{ItemAnswer, ItemChange};
use super::queues::Inner;
use super::value::{Item, name_of, parse_member};
use super::{ItemState, QueueError, QueueOptions, Reserved};
use crate::ids::{ItemId, LeaseId, NodeIndex, QueueName};
use crate::limits;
use crate::mutant::{self, Mutant};
use crate::node::operation::ClaimRequest;
use crate::register::claim::{Haul, Promised};
use crate::register::hints::Hinted;
use crate::register::registers::Extras;
use crate::register::{Leases, RegisterError};
use crate::runtime::Moment;

/// Items of one claim at most, and the bytes of their records in one node's answer, which may be passed by the last of them.
const CLAIM_MAX: usize = 128;
const CLAIM_BYTES: usize = limits::LIST_BYTES_MAX - limits::VALUE_BYTES_MAX;
/// For how long a node gives a claimed item to nobody else: longer than it takes to lease it.
const MARK: Duration = Duration::from_secs(1);
/// An item that fewer than q nodes promised while others claim, too, may be somebody else's in a moment: it is looked at after
/// a pause of up to this.
const CONTENDED_PAUSE: Duration = Duration::from_millis(8);
/// Where several daemons were promised the same items, one node alone is asked for so long, and so says who gets what.
const ONE_DECIDES_FOR: Duration = Duration::from_secs(2);
/// Who comes so soon after a claim that found nothing needs none of its own.
const FRESH_FOR: Duration = Duration::from_millis(250);
/// For so many looks at most it is gone by that nothing was ready: announcements by other daemons may be lost.
const BARE_LOOKS: u32 = 2;
/// How long a clerk stays when nobody waits: consumers come back.
const LINGER: Duration = Duration::from_secs(5);
/// Pause after a claim that found no quorum, or that a recovery forbids; each is drawn up to this.
const FAILED_PAUSE: Duration = Duration::from_millis(250);
/// After the first item is due, a look comes this much later, jittered.
const AFTER_DUE: Duration = Duration::from_millis(10);
/// How long a daemon goes on trying to give back what nobody got. After this the lease runs out by itself.
const RETURN_FOR: Duration = Duration::from_secs(30);

/// Those who wait, of all queues.
#[derive(Default)]
pub(super) struct Desk {
    /// Never iterated over, so its order does not matter.
    lines: Mutex<HashMap<QueueName, Line>>,
    tickets: AtomicU64,
}

/// Those who wait for items of one queue.
#[derive(Default)]
struct Line {
    waiters: VecDeque<Waiter>,
    /// Wakes the clerk.
    woken: Arc<Event>,
    /// Who passed on that an item is ready, since the last claim.
    hinted: Hinted,
    /// Why the last claim failed.
    failed: Option<RegisterError>,
    /// What was claimed and nobody wanted yet: nodes that choose differently promise more than was asked for.
    hand: VecDeque<Chosen>,
    /// Until when: before the marks end, and others claim it.
    hand_until: Moment,
    /// Until when one node is asked; see [`ONE_DECIDES_FOR`].
    one_decides_until: Moment,
    /// Until when it is gone by that nothing is ready, as far as this daemon knows; see [`Line::stir`].
    bare_until: Moment,
    /// The same for who comes to wait.
    fresh_until: Moment,
    /// How often something may have become ready.
    stirs: u64,
}

pub(super) struct Waiter {
    ticket: u64,
    pub wanted: usize,
    pub lease_ttl: Option<Duration>,
    /// A claim has been made for it since it came.
    looked: bool,
    /// It waits for one claim and no longer.
    hasty: bool,
    answer: oneshot::Sender<Vec<Reserved>>,
}

/// A waiter's place. Dropping it takes the waiter out; what it was given too late is given back.
struct Seat<'a> {
    inner: &'a Arc<Inner>,
    queue: &'a QueueName,
    ticket: u64,
    answer: oneshot::Receiver<Vec<Reserved>>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if let Some(line) = self.inner.desk.lines().get_mut(self.queue) {
            line.waiters.retain(|waiter| waiter.ticket != self.ticket);
        }
        // What was sent is here; what has not been can't be from now on.
        self.answer.close();
        if let Ok(Some(items)) = self.answer.try_recv() {
            items.iter().for_each(|item| self.inner.give_back(self.queue, &item.id, item.lease_id));
        }
    }
}

impl Desk {
    fn lines(&self) -> MutexGuard<'_, HashMap<QueueName, Line>> {
        self.lines.lock().expect("no holder of this lock panics")
    }

    /// An item of the queue may have become ready, and nobody was handed it.
    pub fn stir(&self, queue: &QueueName) {
        if let Some(line) = self.lines().get_mut(queue) {
            line.stir();
        }
    }

    /// Takes those out of line whom the next items that this daemon puts may be handed to, at most so many and the first ones
    /// first: none, unless nothing is ready that comes before. Each wants one item, unless one is all there is.
    pub fn take_waiters(&self, queue: &QueueName, most: usize, now: Moment) -> Vec<Waiter> {
        let mut lines = self.lines();
        let Some(line) = lines.get_mut(queue) else { return Vec::new() };
        if !line.is_bare(now) && !mutant::is_on(Mutant::HandsPastReady) {
            return Vec::new();
        }
        let fits = |waiter: &&Waiter| waiter.looked && (most == 1 || waiter.wanted == 1);
        let fitting = line.waiters.iter().take(most).take_while(fits).count();
        line.waiters.drain(..fitting).collect()
    }
}

impl Inner {
    /// Waits for up to so many items, until there is one or until `until`; or longer, up to `deadline`, until somebody has
    /// looked: who waits for however short a time has tried at least once.
    pub(super) async fn wait_for_items(
        self: &Arc<Self>,
        queue: &QueueName,
        wanted: usize,
        lease_ttl: Option<Duration>,
        until: Moment,
        deadline: Moment,
    ) -> Result<Vec<Reserved>, QueueError> {
        let started = self.now();
        let hasty = until <= started;
        let seat = self.sit_down(queue, wanted, lease_ttl, until)?;
        let meter = self.meter();
        let waiting = meter.waiters.enter();
        let result = self.wait_on(seat, started, hasty, until, deadline).await;
        drop(waiting);
        let waited = match &result {
            Ok(items) if items.is_empty() => &meter.waits.in_vain,
            Ok(items) => {
                meter.leases.granted.add(items.len() as u64);
                &meter.waits.served
            }
            Err(_) => &meter.waits.failed,
        };
        waited.took(self.now().since(started));
        result
    }

    async fn wait_on(
        self: &Arc<Self>,
        mut seat: Seat<'_>,
        started: Moment,
        hasty: bool,
        until: Moment,
        deadline: Moment,
    ) -> Result<Vec<Reserved>, QueueError> {
        let queue = seat.queue;
        let mut limit = if hasty { deadline } else { until.min(deadline) };
        loop {
            let closed = self.closed.listen();
            if self.is_closing() {
                return Err(QueueError::ShuttingDown);
            }
            let timer = self.runtime().clock.sleep_until(limit);
            match future::select(&mut seat.answer, future::select(timer, closed)).await {
                Either::Left((Ok(items), _)) => return Ok(items),
                // The clerk has nothing to say but this.
                Either::Left((Err(_), _)) => return self.nothing(queue, started),
                Either::Right((Either::Right(_), _)) => {}
                Either::Right((Either::Left(_), _)) => {
                    match self.stand_up(&seat, limit < deadline) {
                        // It is being served, or has to wait for the first look.
                        None if limit < deadline => limit = deadline,
                        None | Some(()) => {
                            // The last moment: what came just now is taken along.
                            return match seat.answer.try_recv() {
                                Ok(Some(items)) => Ok(items),
                                Ok(None) | Err(_) => self.nothing(queue, started),
                            };
                        }
                    }
                }
            }
        }
    }

    /// Takes a waiter out whose time is up. `None` if it is being served, or, where it `may_wait`, if no claim has been made
    /// for it: then it waits for one.
    fn stand_up(&self, seat: &Seat<'_>, may_wait: bool) -> Option<()> {
        let mut lines = self.desk.lines();
        let line = lines.get_mut(seat.queue)?;
        let at = line.waiters.iter().position(|waiter| waiter.ticket == seat.ticket)?;
        if may_wait && !line.waiters[at].looked {
            line.waiters[at].hasty = true;
            return None;
        }
        line.waiters.remove(at).map(drop)
    }

    /// There was no item, or nobody could tell.
    fn nothing(&self, queue: &QueueName, started: Moment) -> Result<Vec<Reserved>, QueueError> {
        self.leases.check_grants()?;
        let failed = self.desk.lines().get(queue).and_then(|line| line.failed.clone());
        match failed {
            None => Ok(Vec::new()),
            Some(RegisterError::DeadlineExceeded { .. }) => {
                Err(RegisterError::DeadlineExceeded { waited: self.now().since(started) }.into())
            }
            Some(error) => Err(error.into()),
        }
    }

    fn sit_down<'a>(
        self: &'a Arc<Self>,
        queue: &'a QueueName,
        wanted: usize,
        lease_ttl: Option<Duration>,
        until: Moment,
    ) -> Result<Seat<'a>, QueueError> {
        let max = self.settings.waiters_per_name_max;
        let mut lines = self.desk.lines();
        let starts = match lines.get(queue).map(|line| line.waiters.len()) {
            Some(waiting) if waiting >= max => {
                return Err(QueueError::TooManyWaiters { queue: queue.clone(), waiting, max });
            }
            Some(_) => false,
            None => true,
        };
        let ticket = self.desk.tickets.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let line = lines.entry(queue.clone()).or_default();
        let now = self.now();
        let hasty = until <= now;
        // Who waits for less than that has a claim of its own.
        let looked = line.is_fresh(now) && line.fresh_until < until;
        line.waiters.push_back(Waiter { ticket, wanted, lease_ttl, looked, hasty, answer: sender });
        line.woken.notify(1);
        drop(lines);
        if starts {
            self.start_clerk(queue);
        }
        Ok(Seat { inner: self, queue, ticket, answer })
    }

    fn start_clerk(self: &Arc<Self>, queue: &QueueName) {
        let clerk = Clerk { inner: self.clone(), queue: queue.clone() };
        self.runtime().spawner.spawn(clerk.run().boxed());
    }

    /// Gives a waiter what was leased for it. What it can't have any more is given back.
    pub(super) fn hand_out(self: &Arc<Self>, queue: &QueueName, waiter: Waiter, leased: Vec<Reserved>) {
        // Each was leased at its own time, and the slowest may have outlasted the first.
        let now = self.now();
        let (leased, late): (Vec<_>, Vec<_>) = leased.into_iter().partition(|item| now < item.valid_until);
        late.iter().for_each(|item| self.give_back(queue, &item.id, item.lease_id));
        if leased.is_empty() && !waiter.answer.is_canceled() {
            return self.put_back(queue, waiter);
        }
        // What was under way when a recovery came may not be gone by.
        let unwanted = match self.leases.check_grants() {
            Ok(()) => {
                leased.iter().for_each(|item| self.leases.note(item.lease_id, item.valid_until));
                waiter.answer.send(leased).err()
            }
            Err(_) => {
                self.put_back(queue, waiter);
                Some(leased)
            }
        };
        for item in unwanted.into_iter().flatten() {
            self.give_back(queue, &item.id, item.lease_id);
        }
    }

    /// A waiter that was to be served and got nothing is the first again.
    pub(super) fn put_back(self: &Arc<Self>, queue: &QueueName, waiter: Waiter) {
        let mut lines = self.desk.lines();
        let starts = !lines.contains_key(queue);
        let line = lines.entry(queue.clone()).or_default();
        line.waiters.push_front(waiter);
        line.stir();
        line.woken.notify(1);
        drop(lines);
        if starts {
            self.start_clerk(queue);
        }
    }

    /// A node passed on that an item is ready.
    pub(super) fn on_ready(&self, node: NodeIndex, queue: &QueueName) {
        let quorum = self.items.cluster().size.quorum();
        if let Some(line) = self.desk.lines().get_mut(queue) {
            line.stir();
            line.hinted.hear(node, quorum, self.runtime(), &line.woken);
        }
    }

    /// Gives back what nobody got. In the background, and at worst the lease runs out.
    pub(super) fn give_back(self: &Arc<Self>, queue: &QueueName, id: &ItemId, lease_id: LeaseId) {
        let (inner, queue, name) = (self.clone(), queue.clone(), name_of(queue, id));
        let task = async move {
            let deadline = inner.now() + RETURN_FOR;
            while inner.now() < deadline {
                let change = ItemChange::Return { lease_id };
                let changed = inner.items.change(&name, change, deadline).await;
                inner.desk.stir(&queue);
                match changed {
                    Ok(_) => {
                        inner.meter().returned.one();
                        inner.leases.ended(lease_id);
                        return;
                    }
                    Err(error) => tracing::debug!(%error, "an item could not be given back yet"),
                }
                let pause = inner.runtime().entropy.jitter(FAILED_PAUSE * 2);
                inner.runtime().clock.sleep_until(inner.now() + pause).await;
            }
        };
        self.runtime().spawner.spawn(task.boxed());
    }
}

/// The task that serves those who wait for items of one queue.
struct Clerk {
    inner: Arc<Inner>,
    queue: QueueName,
}

/// What one waiter is served.
struct Serving {
    waiter: Waiter,
    items: Vec<Chosen>,
}

/// An item that is worth trying.
struct Chosen {
    member: String,
    promised: Promised,
    /// Somebody else may have it in a moment.
    contended: bool,
}

/// What came of a look.
enum Look {
    /// Nobody waits.
    Idle,
    /// Somebody else may be served at once.
    Again,
    /// There is nothing for now.
    Wait(Duration),
}

impl Clerk {
    async fn run(self) {
        self.inner.items.cluster().watch();
        let mut idle_since = None;
        loop {
            // Listen before looking, so that nothing that happens in between is missed.
            let Some(woken) = self.inner.desk.lines().get(&self.queue).map(|line| line.woken.listen()) else {
                break;
            };
            if self.inner.is_closing() {
                self.inner.desk.lines().remove(&self.queue);
                break;
            }
            let pause = match self.look().await {
                Look::Again => {
                    idle_since = None;
                    continue;
                }
                Look::Wait(pause) => {
                    idle_since = None;
                    pause
                }
                Look::Idle => {
                    let since = *idle_since.get_or_insert(self.inner.now());
                    if self.inner.now().since(since) >= LINGER {
                        let mut lines = self.inner.desk.lines();
                        if lines.get(&self.queue).is_none_or(|line| line.waiters.is_empty()) {
                            lines.remove(&self.queue);
                            break;
                        }
                        continue;
                    }
                    LINGER
                }
            };
            let timer = self.inner.runtime().clock.sleep_until(self.inner.now() + pause);
            let closed = self.inner.closed.listen();
            future::select(woken, future::select(timer, closed)).await;
        }
        self.inner.items.cluster().unwatch();
    }

    /// Has those served who wait: from what is in hand, and with what it claims.
    async fn look(&self) -> Look {
        let inner = &self.inner;
        if inner.desk.lines().get(&self.queue).is_none_or(|line| line.waiters.is_empty()) {
            return Look::Idle;
        }
        if inner.leases.check_grants().is_err() {
            return self.failed(None);
        }
        let deadline = inner.now() + inner.settings.patience;
        let options = match inner.options.or_default(&self.queue, deadline).await {
            Ok(options) => options,
            Err(error) => return self.failed(Some(error)),
        };
        let asked = inner.now();
        let (wanted, one_decides, stirs) = match inner.desk.lines().get_mut(&self.queue) {
            Some(line) => {
                line.hinted.clear();
                let hand = std::mem::take(&mut line.hand);
                if asked < line.hand_until {
                    line.hand = self.deal(line, hand, &options);
                }
                let wanted = line.waiters.iter().map(|waiter| waiter.wanted).sum::<usize>().min(CLAIM_MAX);
                if wanted > 0 && line.is_fresh(asked) && line.waiters.iter().all(|waiter| waiter.looked) {
                    return Look::Wait(line.fresh_until.since(asked));
                }
                (wanted, asked < line.one_decides_until, line.stirs)
            }
            None => (0, false, 0),
        };
        if wanted == 0 {
            return Look::Idle;
        }
        let request = ClaimRequest {
            queue: self.queue.as_str().to_owned(),
            count: wanted,
            bytes: CLAIM_BYTES,
            mark: MARK,
            ballot: inner.items.cluster().next_ballot(),
        };
        let hand_until = inner.now() + MARK / 2;
        let of_one = if one_decides { inner.items.claim_at_first(request.clone()).await } else { None };
        let one_decided = of_one.is_some();
        let haul = match of_one {
            Some(haul) => haul,
            None => match inner.items.claim(request, deadline).await {
                Ok(haul) => haul,
                Err(error) => return self.failed(Some(error)),
            },
        };
        let (next_due, found) = (haul.next_due, haul.items.len());
        let full = found >= wanted;
        let crowded = haul.is_crowded(inner.items.cluster().size);
        let chosen = self.worth_trying(haul);
        // What is left to others may stay, and what one node has is not all there is.
        let is_all = !full && !one_decided && chosen.len() == found;
        let mut lines = inner.desk.lines();
        let Some(line) = lines.get_mut(&self.queue) else { return Look::Idle };
        line.failed = None;
        line.hand = self.deal(line, chosen, &options);
        line.hand_until = hand_until;
        if is_all && line.stirs == stirs {
            let until = |longest: Duration| asked + next_due.map_or(longest, |due| due.min(longest));
            line.bare_until = until(inner.settings.look_interval * BARE_LOOKS);
            line.fresh_until = until(FRESH_FOR);
        }
        if crowded {
            line.one_decides_until = inner.now() + ONE_DECIDES_FOR;
        } else if !(one_decided && full) {
            line.one_decides_until = Moment::ZERO;
        }
        if one_decided && !full {
            // The others may know of more.
            return if line.waiters.is_empty() { Look::Idle } else { Look::Again };
        }
        line.looked();
        if line.waiters.is_empty() {
            return Look::Idle;
        }
        // There are more than were claimed, whoever has got those.
        if full { Look::Again } else { Look::Wait(self.pause(next_due)) }
    }

    /// Hands items out to those who came first, and what is left back.
    fn deal(&self, line: &mut Line, mut items: VecDeque<Chosen>, options: &QueueOptions) -> VecDeque<Chosen> {
        while !items.is_empty() {
            let Some(waiter) = line.waiters.pop_front() else { break };
            let count = waiter.share_of(&items);
            let serving = Serving { waiter, items: items.drain(..count).collect() };
            let lease = Leasing {
                inner: self.inner.clone(),
                queue: self.queue.clone(),
                lease_ttl: serving.waiter.lease_ttl.unwrap_or(options.lease_ttl),
                max_attempts: options.max_attempts,
            };
            self.inner.runtime().spawner.spawn(async move { lease.serve(serving).await }.boxed());
        }
        items
    }

    /// What may be leased: what q nodes promised, and what fewer did, as those that have it may be few. Where others claim at
    /// the same time, they have the rest of the promises, and of all who have some one should try and the others leave it: the
    /// one that the first node has given its promise to. Otherwise all might leave it, again and again.
    fn worth_trying(&self, haul: Haul) -> VecDeque<Chosen> {
        let Haul { items, contended, first, .. } = haul;
        let quorum = self.inner.items.cluster().size.quorum();
        let chosen = items.into_iter().filter_map(|(member, promised)| {
            let contended = contended && promised.records.len() < quorum;
            let has_first = promised.records.iter().any(|(node, _)| *node == first);
            (!contended || has_first).then_some(Chosen { member, promised, contended })
        });
        chosen.collect()
    }

    /// No item can be had for now.
    fn failed(&self, error: Option<RegisterError>) -> Look {
        if let Some(line) = self.inner.desk.lines().get_mut(&self.queue) {
            line.failed = error;
            line.looked();
        }
        Look::Wait(self.inner.runtime().entropy.jitter(FAILED_PAUSE))
    }

    /// Until the next look, if nobody wakes us.
    fn pause(&self, next_due: Option<Duration>) -> Duration {
        let entropy = &self.inner.runtime().entropy;
        let interval = self.inner.settings.look_interval;
        let slow = interval / 2 + entropy.jitter(interval);
        next_due.map_or(slow, |due| slow.min(due + AFTER_DUE / 5 + entropy.jitter(AFTER_DUE)))
    }
}

impl Waiter {
    /// How many of these it is given: no more than it wants and than fit into one answer, but one.
    fn share_of(&self, items: &VecDeque<Chosen>) -> usize {
        let mut bytes = 0;
        let fits = |chosen: &&Chosen| {
            bytes += chosen.bytes();
            bytes <= limits::LIST_BYTES_MAX
        };
        items.iter().take(self.wanted).take_while(fits).count().max(1)
    }
}

impl Chosen {
    /// How large it is.
    fn bytes(&self) -> usize {
        self.promised.records.iter().map(|(_, record)| record.value.len()).max().unwrap_or(0)
    }
}

impl Line {
    /// Something may have become ready.
    fn stir(&mut self) {
        self.stirs += 1;
        self.bare_until = Moment::ZERO;
    }

    /// Nothing is ready, as far as this daemon knows.
    fn is_bare(&self, now: Moment) -> bool {
        now < self.bare_until && self.hand.is_empty()
    }

    /// It was found a moment ago.
    fn is_fresh(&self, now: Moment) -> bool {
        now < self.fresh_until && self.is_bare(now)
    }

    /// A claim has been made: who waits for no more is told that there is nothing.
    fn looked(&mut self) {
        // Dropping the sender says so.
        self.waiters.retain(|waiter| !waiter.hasty);
        self.waiters.iter_mut().for_each(|waiter| waiter.looked = true);
    }
}

/// Leases items for one waiter.
struct Leasing {
    inner: Arc<Inner>,
    queue: QueueName,
    lease_ttl: Duration,
    max_attempts: u32,
}

impl Leasing {
    async fn serve(self, serving: Serving) {
        let Serving { waiter, items } = serving;
        let leases = items.into_iter().map(|chosen| self.lease(chosen));
        let leased = future::join_all(leases).await.into_iter().flatten();
        self.inner.hand_out(&self.queue, waiter, leased.collect());
    }

    async fn lease(&self, chosen: Chosen) -> Option<Reserved> {
        let inner = &self.inner;
        let (_, id) = parse_member(&chosen.member)?;
        let name = name_of(&self.queue, &id);
        if chosen.contended && !self.is_still_there(&id).await {
            return None;
        }
        let lease_id = LeaseId::from_bytes(inner.runtime().entropy.next_u128().to_be_bytes());
        let (ttl, max_attempts) = (self.lease_ttl, self.max_attempts);
        let change = ItemChange::Lease { lease_id, ttl, max_attempts };
        let deadline = inner.now() + inner.settings.patience;
        let ticket =
            inner.items.enqueue_with(&name, change, Extras::promised(chosen.promised), deadline).ok()?;
        let committed = match inner.items.wait(ticket, deadline).await {
            Ok(committed) => committed,
            Err(RegisterError::OutcomeUnknown) => {
                inner.give_back(&self.queue, &id, lease_id);
                return None;
            }
            Err(_) => return None,
        };
        let ItemAnswer::Leased(item) = committed.answer else { return None };
        let from = committed.first_sent?;
        Some(reserved(id, *item, lease_id, ttl, Leases::valid_until(from, ttl)))
    }
}

impl Leasing {
    /// A look, which takes nobody's promise, at an item that others may be leasing.
    async fn is_still_there(&self, id: &ItemId) -> bool {
        let inner = &self.inner;
        let pause = inner.runtime().entropy.jitter(CONTENDED_PAUSE);
        inner.runtime().clock.sleep_until(inner.now() + pause).await;
        let deadline = inner.now() + inner.settings.patience;
        let view = inner.view(&self.queue, id, deadline).await;
        view.is_ok_and(|view| view.is_some_and(|view| view.state == ItemState::Ready))
    }
}

pub(super) fn reserved(
    id: ItemId,
    item: Item,
    lease_id: LeaseId,
    ttl: Duration,
    valid_until: Moment,
) -> Reserved {
    Reserved {
        id,
        payload: item.payload,
        attributes: item.attributes,
        priority: item.priority,
        attempt: item.attempts,
        put_unix_ms: item.put_unix_ms,
        lease_id,
        token: item.token,
        ttl,
        valid_until,
    }
}

/// So many items can be wanted by one call.
pub(super) const WANTED_MAX: usize = limits::BATCH_ITEMS_MAX;
