//! Waiting in line. Within a daemon waiters stand in order of their tickets; the register knows only the first.
//!
//! One task per name speaks for all of them: it tries for the first, is woken by a release of this daemon, by a publish
//! (another daemon's release offered us the lock), by a change in the line, or by a slow, jittered look. It ends, and
//! gives up the daemon's place, when nobody waits. A waiter that goes away is taken out of the line at once; a lease
//! that was agreed on for somebody who is gone is released, and the one after is next.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use event_listener::Event;
use futures::FutureExt;
use futures::future::{self, BoxFuture, Either};

use super::change::{self, Acquire, LockAnswer, LockChange};
use super::locks::Inner;
use super::{Acquisition, Contention, HolderView, Lease, LockError};
use crate::ids::{LeaseId, LockName, NodeIndex};
use crate::inbox::{Inbox, Slot};
use crate::mutant::{self, Mutant};
use crate::register::RegisterError;
use crate::register::hints::Hinted;
use crate::register::registers::{ChangeResult, Ticket};
use crate::runtime::Moment;
use crate::token::Token;

/// A place lasts for so many looks without being renewed, and at least for [`PLACE_TTL_MIN`].
const PLACE_LOOKS: u32 = 8;
const PLACE_TTL_MIN: Duration = Duration::from_secs(15);
/// After a lease has run out by the nodes' clocks, a look comes this much later, jittered.
const AFTER_EXPIRY: Duration = Duration::from_millis(50);

/// All lines of this daemon.
#[derive(Default)]
pub(super) struct Waiting {
    /// Never iterated over, so its order does not matter.
    lines: Mutex<HashMap<Arc<str>, Line>>,
    total: AtomicUsize,
}

/// The waiters of one name.
#[derive(Default)]
struct Line {
    waiters: BTreeMap<Token, Waiter>,
    /// Wakes the line's task.
    woken: Arc<Event>,
    /// Attempts for the first waiter that releases put in the register's line.
    handed: Vec<(LeaseId, Ticket<LockAnswer>)>,
    /// As far as known, the daemon has a place in the register's line: newcomers need not be told there.
    placed: bool,
    /// Who passed on that it may be our turn, since the last look.
    hinted: Hinted,
    /// What the last look found.
    last: Option<Result<Contention, RegisterError>>,
    /// Of the last look: how many of other daemons stand before our first.
    before: u32,
    /// How many waiters want to hear of more than the lock.
    listeners: usize,
}

/// Somebody who wants to stand in line.
pub(super) struct Arrival {
    /// In the order of these they stand.
    pub ticket: Token,
    /// What it tries.
    pub acquire: Acquire,
    /// When it came.
    pub started: Moment,
    /// It may have the lock: the outcome of an attempt for it is open.
    pub is_unsure: bool,
}

struct Waiter {
    acquire: Acquire,
    news: Slot<News>,
    listens: Listens,
    /// It may have the lock: the outcome of an attempt for it is open.
    unsure: bool,
}

/// What a waiter wants to hear of beside the lock itself. Most want nothing: to wake each of a thousand at every handover
/// takes longer than the handover.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listens {
    Never,
    /// How many stand before it, whenever that may have changed.
    Positions,
    /// That somebody has looked: its time is up.
    Looks,
}

/// What a waiter hears.
enum News {
    Position(u32),
    Looked,
    Granted(Lease),
}

/// Who hears how many stand before, when that changes.
pub(super) type Positions<'a> = Option<&'a mut (dyn FnMut(u32) + Send)>;

impl Waiting {
    fn lines(&self) -> MutexGuard<'_, HashMap<Arc<str>, Line>> {
        self.lines.lock().expect("no holder of this lock panics")
    }

    /// Whether anybody waits for the name.
    pub fn has(&self, name: &str) -> bool {
        self.lines().contains_key(name)
    }

    /// Whether any line is not yet given up.
    pub fn is_any(&self) -> bool {
        !self.lines().is_empty()
    }

    /// How many wait, over all names.
    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }
}

impl Line {
    /// The attempt of the first waiter, in the words of a change.
    fn attempt(&self, inner: &Inner, renew: bool) -> Option<Acquire> {
        let mut tickets = self.waiters.iter();
        let (ticket, first) = tickets.next()?;
        let waiting = change::Waiting {
            daemon: inner.registers.cluster().proposer,
            ticket: *ticket,
            first: true,
            next: tickets.next().map(|(ticket, _)| *ticket),
            count: u32::try_from(self.waiters.len()).unwrap_or(u32::MAX),
            place_ttl: place_ttl(inner),
            renew,
        };
        let now_unix_ms = inner.runtime().clock.wall_unix_ms();
        Some(Acquire { waiting: Some(waiting), now_unix_ms, ..first.acquire.clone() })
    }

    /// Notes what a look has found, and tells those who want to hear of it.
    fn looked(&mut self, found: Result<Contention, RegisterError>) {
        self.last = Some(found);
        self.tell_listeners();
    }

    /// Tells those who listen how many stand before them, or that somebody has looked.
    fn tell_listeners(&self) {
        let listening =
            self.waiters.values().enumerate().filter(|(_, waiter)| waiter.listens != Listens::Never);
        for (others, waiter) in listening.take(self.listeners) {
            self.tell(waiter, others);
        }
    }

    /// Tells one waiter before whom so many others of this daemon stand.
    fn tell(&self, waiter: &Waiter, others: usize) {
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        let news = match waiter.listens {
            Listens::Never => return,
            Listens::Positions => News::Position(self.before.saturating_add(others)),
            Listens::Looks => News::Looked,
        };
        // Its seat lives as long as the waiter is in line.
        let _ = waiter.news.put(news, false);
    }

    fn add(&mut self, ticket: Token, waiter: Waiter) {
        self.listeners += usize::from(waiter.listens != Listens::Never);
        self.waiters.insert(ticket, waiter);
    }

    fn take_out(&mut self, ticket: Token) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        self.listeners -= usize::from(waiter.listens != Listens::Never);
        Some(waiter)
    }

    /// From now on the waiter hears of looks.
    fn listen_to_looks(&mut self, ticket: Token) {
        if let Some(waiter) = self.waiters.get_mut(&ticket) {
            self.listeners += usize::from(waiter.listens == Listens::Never);
            waiter.listens = Listens::Looks;
        }
    }
}

fn place_ttl(inner: &Inner) -> Duration {
    (inner.settings.look_interval * PLACE_LOOKS).max(PLACE_TTL_MIN)
}

/// A waiter's place in its daemon. Dropping it takes the waiter out, and gives back a lease that came too late.
struct Seat {
    inner: Arc<Inner>,
    name: LockName,
    ticket: Token,
    heard: Inbox<News>,
}

impl Seat {
    /// Takes the waiter out of the line; the lock, if it came at the last moment.
    fn stand_up(&self) -> Option<Lease> {
        if let Some(lease_id) = self.leave_line() {
            // An attempt for this waiter may have gone through although nobody could tell.
            self.inner.abandon(self.name.clone(), lease_id);
        }
        // A grant takes the waiter out under the same lock: after this none can come.
        while let Some(news) = self.heard.take() {
            if let News::Granted(lease) = news {
                return Some(lease);
            }
        }
        None
    }

    /// The waiter's lease id, if the outcome of an attempt is open.
    fn leave_line(&self) -> Option<LeaseId> {
        let waiting = &self.inner.waiting;
        let mut lines = waiting.lines();
        let line = lines.get_mut(self.name.as_str())?;
        let waiter = line.take_out(self.ticket)?;
        waiting.total.fetch_sub(1, Ordering::Relaxed);
        // Who comes after may speak for the daemon now, or nobody may be left.
        line.woken.notify(1);
        waiter.unsure.then_some(waiter.acquire.lease_id)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(lease) = self.stand_up() {
            self.inner.abandon(self.name.clone(), lease.lease_id);
        }
    }
}

impl Inner {
    /// Stands in line until the lock is had, or until `until`; or longer, up to `deadline`, until somebody has looked:
    /// who waits for however short a time has tried at least once.
    pub(super) fn wait_in_line<'a>(
        self: &'a Arc<Self>,
        name: LockName,
        arrival: Arrival,
        until: Moment,
        deadline: Moment,
        positions: Positions<'a>,
    ) -> BoxFuture<'a, Result<Acquisition, LockError>> {
        let started = arrival.started;
        let listens = if positions.is_some() { Listens::Positions } else { Listens::Never };
        // At once, so that what it came with is not kept twice.
        let seat = match self.sit_down(name, arrival, listens) {
            Ok(seat) => seat,
            Err(error) => return future::ready(Err(error)).boxed(),
        };
        async move {
            let result = self.wait_on(seat, started, until, deadline, positions).await;
            let waits = &self.meter().waits;
            let waited = match &result {
                Ok(Acquisition::Acquired(_)) => &waits.served,
                Ok(Acquisition::Contended(_)) => &waits.in_vain,
                Err(_) => &waits.failed,
            };
            waited.took(self.now().since(started));
            self.counted(result)
        }
        .boxed()
    }

    async fn wait_on(
        self: &Arc<Self>,
        seat: Seat,
        started: Moment,
        until: Moment,
        deadline: Moment,
        mut positions: Positions<'_>,
    ) -> Result<Acquisition, LockError> {
        let mut late = false;
        let mut timer = self.runtime().clock.sleep_until(until);
        let mut closed = self.closed.listen();
        let mut position = None;
        loop {
            if self.is_closing() {
                return seat.stand_up().map(Acquisition::Acquired).ok_or(LockError::ShuttingDown);
            }
            if late && self.has_looked(&seat.name) {
                let last = self.last_look(&seat, started);
                return seat.stand_up().map_or(last, |lease| Ok(Acquisition::Acquired(lease)));
            }
            let interruption = future::select(&mut timer, &mut closed);
            match future::select(seat.heard.next(1), interruption).await {
                Either::Left((Some(News::Granted(lease)), _)) => return Ok(Acquisition::Acquired(lease)),
                Either::Left((Some(News::Position(now)), _)) => {
                    if let (Some(positions), true) = (&mut positions, position.replace(now) != Some(now)) {
                        positions(now);
                    }
                }
                Either::Left((Some(News::Looked), _)) => {}
                // The line's task ended without a word: the runtime is stopping.
                Either::Left((None, _)) => return Err(LockError::ShuttingDown),
                Either::Right((Either::Left(_), _)) if !late && until < deadline => {
                    late = true;
                    // Before it is asked whether somebody has looked, so that no look goes unheard.
                    self.listen_to_looks(&seat);
                    timer = self.runtime().clock.sleep_until(deadline);
                }
                Either::Right((Either::Left(_), _)) => {
                    let last = self.last_look(&seat, started);
                    return seat.stand_up().map_or(last, |lease| Ok(Acquisition::Acquired(lease)));
                }
                Either::Right((Either::Right(_), _)) => closed = self.closed.listen(),
            }
        }
    }

    fn listen_to_looks(&self, seat: &Seat) {
        if let Some(line) = self.waiting.lines().get_mut(seat.name.as_str()) {
            line.listen_to_looks(seat.ticket);
        }
    }

    /// Whether it is known how the lock stands.
    fn has_looked(&self, name: &LockName) -> bool {
        self.waiting.lines().get(name.as_str()).is_some_and(|line| line.last.is_some())
    }

    /// What the last look found, for a waiter whose time is up.
    fn last_look(&self, seat: &Seat, started: Moment) -> Result<Acquisition, LockError> {
        let lines = self.waiting.lines();
        let line = lines.get(seat.name.as_str());
        let unsure = || line.and_then(|line| line.waiters.get(&seat.ticket)).is_some_and(|w| w.unsure);
        match line.and_then(|line| line.last.as_ref()) {
            Some(Ok(contention)) => Ok(Acquisition::Contended(contention.clone())),
            Some(Err(_)) | None if unsure() => Err(RegisterError::OutcomeUnknown.into()),
            // The outcome that is open is that of another waiter of this daemon.
            Some(Err(RegisterError::OutcomeUnknown)) | None => {
                Err(RegisterError::DeadlineExceeded { waited: self.now().since(started) }.into())
            }
            // That was the look's own time, which says nothing of the caller's.
            Some(Err(RegisterError::DeadlineExceeded { .. })) => Err(self.registers.no_quorum().into()),
            Some(Err(error)) => Err(error.clone().into()),
        }
    }

    fn sit_down(
        self: &Arc<Self>,
        name: LockName,
        arrival: Arrival,
        listens: Listens,
    ) -> Result<Seat, LockError> {
        let settings = &self.settings;
        let Arrival { ticket, acquire, is_unsure, .. } = arrival;
        let too_many = |waiting, max| {
            if is_unsure {
                self.abandon(name.clone(), acquire.lease_id);
            }
            Err(LockError::TooManyWaiters { name: name.clone(), waiting, max })
        };
        let mut lines = self.waiting.lines();
        let total = self.waiting.total();
        if total >= settings.waiters_max {
            return too_many(total, settings.waiters_max);
        }
        let starts = match lines.get(name.as_str()).map(|line| line.waiters.len()) {
            Some(waiting) if waiting >= settings.waiters_per_name_max => {
                return too_many(waiting, settings.waiters_per_name_max);
            }
            Some(_) => false,
            None => true,
        };
        self.waiting.total.fetch_add(1, Ordering::Relaxed);
        let heard = Inbox::with_capacity(0);
        let news = heard.slot();
        let line = lines.entry(name.as_str().into()).or_default();
        line.add(ticket, Waiter { acquire, news, listens, unsure: is_unsure });
        if line.placed {
            // The last of this daemon; the task need not look to know that.
            line.tell(&line.waiters[&ticket], line.waiters.len() - 1);
        } else {
            line.woken.notify(1);
        }
        drop(lines);
        if starts {
            let speaker = Speaker { inner: self.clone(), name: name.clone(), delivered: None };
            self.runtime().spawner.spawn(speaker.run().boxed());
        }
        Ok(Seat { inner: self.clone(), name, ticket, heard })
    }

    /// Puts a change in the register's line and right behind it an attempt for the first waiter, which the task of the
    /// name sees through. `None` where nobody waits. All under one lock: the waiter that the attempt is made for must
    /// not be served and its line given up in between.
    pub(super) fn enqueue_with_first(
        &self,
        name: &LockName,
        change: &LockChange,
        deadline: Moment,
    ) -> Option<Result<Ticket<LockAnswer>, RegisterError>> {
        self.check_grants().ok()?;
        let mut lines = self.waiting.lines();
        let line = lines.get_mut(name.as_str())?;
        let attempt = line.attempt(self, false)?;
        let lease_id = attempt.lease_id;
        let changes = [change.clone(), LockChange::Acquire(attempt)];
        let enqueued = self.registers.enqueue(name.as_str(), changes, deadline);
        Some(enqueued.map(|[ended, attempt]| {
            line.handed.push((lease_id, attempt));
            line.woken.notify(1);
            ended
        }))
    }

    /// A node passed on that it may be our turn.
    pub(super) fn on_wake(&self, node: NodeIndex, name: &str) {
        let quorum = self.registers.cluster().size.quorum();
        if let Some(line) = self.waiting.lines().get_mut(name) {
            line.hinted.hear(node, quorum, self.runtime(), &line.woken);
        }
    }
}

/// The task that speaks for the waiters of one name.
struct Speaker {
    inner: Arc<Inner>,
    name: LockName,
    /// The last lease that reached its waiter.
    delivered: Option<LeaseId>,
}

enum Look {
    Nobody,
    Again,
    Waiting(Duration),
}

impl Speaker {
    async fn run(mut self) {
        let mut renewed = self.inner.now();
        loop {
            // Listen before looking, so that nothing that happens in between is missed.
            let woken = self
                .inner
                .waiting
                .lines()
                .get(self.name.as_str())
                .map(|line| (line.woken.listen(), line.placed));
            let Some((woken, placed)) = woken else { return };
            let now = self.inner.now();
            let renew = placed && now.since(renewed) > place_ttl(&self.inner) / 3;
            match self.look(renew).await {
                Look::Nobody => return,
                Look::Again => {}
                Look::Waiting(pause) => {
                    if renew || !placed {
                        renewed = now;
                    }
                    let never = mutant::is_on(Mutant::NoLook);
                    let until = if never { Moment::FAR } else { self.inner.now() + pause };
                    let timer = self.inner.runtime().clock.sleep_until(until);
                    future::select(woken, timer).await;
                }
            }
        }
    }

    /// Sees attempts through that releases have made for us, or tries for the first waiter.
    async fn look(&mut self, renew: bool) -> Look {
        let inner = self.inner.clone();
        let name = self.name.clone();
        let name = name.as_str();
        let deadline = inner.now() + inner.settings.patience;
        let (handed, attempt) = {
            let mut lines = inner.waiting.lines();
            let Some(line) = lines.get_mut(name) else { return Look::Nobody };
            (std::mem::take(&mut line.handed), line.attempt(&inner, renew))
        };
        let mut look = None;
        for (lease_id, ticket) in handed {
            let result = inner.registers.wait(ticket, deadline).await;
            look = Some(self.after(lease_id, result));
        }
        match (look, attempt) {
            (Some(look), _) => look,
            (None, Some(_)) if inner.check_grants().is_err() => self.later(),
            (None, Some(attempt)) => {
                let lease_id = attempt.lease_id;
                let result = inner.registers.change(name, LockChange::Acquire(attempt), deadline).await;
                self.after(lease_id, result)
            }
            (None, None) => self.leave().await,
        }
    }

    /// Nobody waits any more: gives up the daemon's place, then ends, unless somebody came meanwhile.
    async fn leave(&self) -> Look {
        let inner = &self.inner;
        let name = self.name.as_str();
        // Whatever is known of the place: an attempt whose outcome is open may have made one.
        let daemon = inner.registers.cluster().proposer;
        let change = LockChange::Leave { daemon, grace: inner.settings.offer_grace };
        let tried = inner.waiting.lines().get(name).is_some_and(|line| line.placed || line.last.is_some());
        if tried {
            let deadline = inner.now() + inner.settings.patience;
            if let Err(error) = inner.registers.change(name, change, deadline).await {
                tracing::debug!(lock = %self.name, %error, "a place in line could not be given up; it will age");
            }
        }
        let mut lines = inner.waiting.lines();
        let Some(line) = lines.get_mut(name) else { return Look::Nobody };
        line.placed = false;
        line.last = None;
        if line.waiters.is_empty() && line.handed.is_empty() {
            lines.remove(name);
            return Look::Nobody;
        }
        Look::Again
    }

    /// What follows from an attempt under this lease id.
    fn after(&mut self, attempted: LeaseId, result: ChangeResult<LockAnswer>) -> Look {
        let inner = self.inner.clone();
        let mut lines = inner.waiting.lines();
        let Some(line) = lines.get_mut(self.name.as_str()) else { return Look::Nobody };
        line.hinted.clear();
        match result {
            Ok(committed) => match &committed.answer {
                LockAnswer::Waiting { contention, before } => {
                    line.placed = true;
                    line.before = *before;
                    line.looked(Ok(contention.clone()));
                    Look::Waiting(self.pause(contention))
                }
                LockAnswer::Held { placed, .. } => {
                    let waiter = line.waiters.values_mut().find(|w| w.acquire.lease_id == attempted);
                    if let Some(waiter) = waiter.filter(|_| inner.check_grants().is_err()) {
                        // It came of an attempt from before a recovery. It stays in line, and tries under the same lease
                        // id when locks are granted again.
                        waiter.unsure = true;
                        line.placed = *placed;
                        line.looked(Err(RegisterError::OutcomeUnknown));
                        return self.later();
                    }
                    let lease = inner.lease_of(&self.name, &committed);
                    self.deliver(line, lease, *placed)
                }
                LockAnswer::Contended(_)
                | LockAnswer::Lost { .. }
                | LockAnswer::Ended
                | LockAnswer::NothingToEnd { .. } => {
                    unreachable!("an acquire that waits answers that it holds or that it waits")
                }
            },
            Err(error) => {
                tracing::debug!(lock = %self.name, %error, "a look for those who wait failed");
                if error == RegisterError::OutcomeUnknown {
                    match line.waiters.values_mut().find(|waiter| waiter.acquire.lease_id == attempted) {
                        Some(waiter) => waiter.unsure = true,
                        // A second attempt for a waiter that has its lease already.
                        None if self.delivered == Some(attempted) => {}
                        None => inner.abandon(self.name.clone(), attempted),
                    }
                }
                line.looked(Err(error));
                self.later()
            }
        }
    }

    /// Nothing can be done for now.
    fn later(&self) -> Look {
        Look::Waiting(self.inner.runtime().entropy.jitter(self.inner.settings.look_interval))
    }

    /// The lock is held under this lease: hands it to its waiter, or gives it back.
    fn deliver(&mut self, line: &mut Line, lease: Lease, placed: bool) -> Look {
        let lease_id = lease.lease_id;
        let waiter = line.waiters.iter().find(|(_, waiter)| waiter.acquire.lease_id == lease_id);
        let Some(ticket) = waiter.map(|(ticket, _)| *ticket) else {
            // A second attempt for a waiter that has its lease already, or one that has gone away.
            if self.delivered != Some(lease_id) {
                self.inner.abandon(self.name.clone(), lease_id);
            }
            return Look::Again;
        };
        let waiter = line.take_out(ticket).expect("it was found a moment ago");
        self.inner.waiting.total.fetch_sub(1, Ordering::Relaxed);
        self.delivered = Some(lease_id);
        // The attempt named the next waiter that it knew of; one that came later has to be told there.
        line.placed = placed;
        line.before = 0;
        let contention = Contention {
            holder: Some(HolderView {
                owner: lease.owner.clone(),
                token: lease.token,
                ttl: lease.ttl,
                remaining: lease.ttl,
                acquired_unix_ms: waiter.acquire.now_unix_ms,
                attributes: waiter.acquire.attributes.clone(),
            }),
            waiters: u32::try_from(line.waiters.len()).unwrap_or(u32::MAX),
        };
        // The receiver lives as long as its seat, and its seat would have taken the waiter out.
        let _ = waiter.news.put(News::Granted(lease), false);
        if line.waiters.is_empty() || !placed {
            line.tell_listeners();
            return Look::Again;
        }
        let pause = self.pause(&contention);
        line.looked(Ok(contention));
        Look::Waiting(pause)
    }

    /// Until the next look, if nobody wakes us.
    fn pause(&self, contention: &Contention) -> Duration {
        let entropy = &self.inner.runtime().entropy;
        let interval = self.inner.settings.look_interval;
        let slow = interval / 2 + entropy.jitter(interval);
        match &contention.holder {
            // The holder may have died: others may have the lock when its lease has aged.
            Some(holder) => slow.min(holder.remaining + AFTER_EXPIRY / 10 + entropy.jitter(AFTER_EXPIRY)),
            // On offer to somebody who may not come.
            None => slow.min(self.inner.settings.offer_grace + entropy.jitter(AFTER_EXPIRY)),
        }
    }
}
