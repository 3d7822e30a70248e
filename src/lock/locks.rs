//! [`Locks`]: the asynchronous facade over the registers of locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use event_listener::Event;
use futures::FutureExt;
use futures::future::{self, BoxFuture};
use futures::stream::BoxStream;

use super::change::{Acquire, LockAnswer, LockChange, LockKind};
use super::value::LockValue;
use super::waiting::{Arrival, Positions, Waiting};
use super::watch::Watching;
use super::{
    AcquireRequest, Acquisition, HoldEvent, HoldRequest, Lease, LockError, LockPage, LockView, LostReason,
    TokenCheck, WatchEvent, hold, watch,
};
use crate::driver::Cluster;
use crate::ids::{Attributes, LeaseId, LockName, NodeIndex, Owner};
use crate::limits;
use crate::meter::LockMeter;
use crate::mutant::{self, Mutant};
use crate::node::keyspace::KIND_LOCK;
use crate::register::proposer::Claim;
use crate::register::registers::ChangeResult;
use crate::register::{Committed, Leases, Observed, RegisterError, Registers, Sweep};
use crate::runtime::{Moment, Runtime};
use crate::token::Token;

/// How long a daemon goes on trying to undo what nobody will use. After this the lease runs out by itself.
const ABANDON_FOR: Duration = Duration::from_secs(30);

/// How often it is looked whether the places in line are given up.
const SETTLE_INTERVAL: Duration = Duration::from_millis(10);

/// The settings of locks.
#[derive(Clone, Debug)]
pub struct LockSettings {
    /// Waiters of one name at this daemon.
    pub waiters_per_name_max: usize,
    /// Waiters of this daemon.
    pub waiters_max: usize,
    /// How long the next in line has to come.
    pub offer_grace: Duration,
    /// About how often a waiting daemon looks although nobody woke it.
    pub look_interval: Duration,
    /// How long a round is retried without a quorum.
    pub patience: Duration,
}

impl Default for LockSettings {
    fn default() -> Self {
        Self {
            waiters_per_name_max: limits::WAITERS_PER_NAME_MAX,
            waiters_max: limits::WAITERS_MAX,
            offer_grace: Duration::from_secs(2),
            look_interval: Duration::from_secs(2),
            patience: Duration::from_secs(3),
        }
    }
}

/// Locks by majority. Cheap to clone. Every `deadline` is a moment of the daemon's clock after which the caller no
/// longer listens; the answer comes before it.
#[derive(Clone)]
pub struct Locks {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub registers: Registers<LockKind>,
    pub settings: LockSettings,
    pub waiting: Waiting,
    pub watching: Watching,
    leases: Leases,
    closing: AtomicBool,
    pub closed: Event,
}

impl Locks {
    /// The locks of a cluster.
    pub fn new(cluster: Arc<Cluster>, settings: LockSettings) -> Self {
        let leases = Leases::new(cluster.clone());
        let registers = Registers::new(cluster, settings.patience);
        let waiting = Waiting::default();
        let (closing, closed) = (AtomicBool::new(false), Event::new());
        Self {
            inner: Arc::new(Inner {
                registers,
                settings,
                waiting,
                watching: Watching::default(),
                leases,
                closing,
                closed,
            }),
        }
    }

    /// Tries once, or waits in line for up to `request.wait`, never past `deadline`. Dropping the future leaves nothing
    /// behind but, at worst, a lease that runs out.
    ///
    /// # Errors
    /// [`LockError`] says what is certain.
    pub fn acquire(
        &self,
        request: AcquireRequest,
        deadline: Moment,
    ) -> BoxFuture<'_, Result<Acquisition, LockError>> {
        self.inner.acquire(request, deadline, None)
    }

    /// Starts the lease's time again, with another length if `ttl` is given.
    ///
    /// # Errors
    /// [`LockError::LeaseLost`] when somebody has had the lock since, or it was released.
    pub async fn extend(
        &self,
        name: &LockName,
        lease_id: LeaseId,
        ttl: Option<Duration>,
        deadline: Moment,
    ) -> Result<Lease, LockError> {
        match self.inner.extend(name, lease_id, ttl, deadline).await? {
            Ok(lease) => Ok(lease),
            Err(_) => Err(LockError::LeaseLost { name: name.clone() }),
        }
    }

    /// Ends the lease. `false` when it was no longer held. Repeatable.
    ///
    /// # Errors
    /// [`LockError`] says what is certain.
    pub async fn release(
        &self,
        name: &LockName,
        lease_id: LeaseId,
        deadline: Moment,
    ) -> Result<bool, LockError> {
        let grace = self.inner.settings.offer_grace;
        let ended = self.inner.end(name, LockChange::Release { lease_id, grace }, deadline).await?;
        Ok(ended.answer == LockAnswer::Ended)
    }

    /// Acquires and keeps extending until the stream is dropped. The deadline is for the acquiring.
    pub fn hold(
        &self,
        request: HoldRequest,
        deadline: Moment,
    ) -> BoxStream<'static, Result<HoldEvent, LockError>> {
        hold::hold(self.inner.clone(), request, deadline)
    }

    /// Who holds the lock.
    ///
    /// # Errors
    /// [`LockError::Register`] without a quorum.
    pub async fn get(&self, name: &LockName, deadline: Moment) -> Result<LockView, LockError> {
        let observed = self.inner.registers.read(name.as_str(), deadline).await?;
        Ok(view(name.clone(), &observed))
    }

    /// The locks that are held or waited for, in byte order of their names, after `after`.
    ///
    /// # Errors
    /// [`LockError::Register`] without a quorum.
    pub async fn list(
        &self,
        prefix: &str,
        page_size: usize,
        after: &str,
        deadline: Moment,
    ) -> Result<LockPage, LockError> {
        let names = self.inner.registers.list(prefix, after, page_size, deadline).await?;
        let reads = names.names.iter().filter_map(|name| LockName::parse(name).ok()).map(|name| async move {
            let observed = self.inner.registers.read(name.as_str(), deadline).await?;
            let listed = observed.value.holder.is_some() || !observed.value.line.is_empty();
            // The index is a hint: what it names may have been released since.
            Ok::<_, LockError>(listed.then(|| view(name, &observed)))
        });
        let views = future::try_join_all(reads).await?;
        let next =
            names.more.then(|| names.names.last()).flatten().and_then(|name| LockName::parse(name).ok());
        Ok(LockPage { locks: views.into_iter().flatten().collect(), next })
    }

    /// The holder now, then every change of holder. A holder that comes and goes between two looks may be left out.
    pub fn watch(&self, name: LockName) -> BoxStream<'static, Result<WatchEvent, LockError>> {
        watch::watch(self.inner.clone(), name)
    }

    /// Ends the lease that has this token, for operators.
    ///
    /// # Errors
    /// [`LockError::TokenNotHeld`] when the lock is not held under it.
    pub async fn force_release(
        &self,
        name: &LockName,
        token: Token,
        deadline: Moment,
    ) -> Result<(), LockError> {
        let grace = self.inner.settings.offer_grace;
        match self.inner.end(name, LockChange::Force { token, grace }, deadline).await?.answer {
            LockAnswer::NothingToEnd { highest_token } => {
                Err(LockError::TokenNotHeld { name: name.clone(), token, highest: highest_token })
            }
            _ => Ok(()),
        }
    }

    /// Whether a token is still the highest.
    ///
    /// # Errors
    /// [`LockError::Register`] without a quorum.
    pub async fn check_token(
        &self,
        name: &LockName,
        token: Token,
        deadline: Moment,
    ) -> Result<TokenCheck, LockError> {
        let observed = self.inner.registers.read(name.as_str(), deadline).await?;
        let LockValue { holder, highest_token, .. } = &observed.value;
        let running = |stamp, ttl| !observed.ages.is_aged(stamp, ttl);
        Ok(TokenCheck {
            highest: *highest_token == token,
            held: holder.as_ref().is_some_and(|h| h.token == token && running(h.stamp, h.ttl())),
            highest_token: *highest_token,
        })
    }

    /// A node passed on that somebody woke this daemon for a lock: its turn may have come.
    pub fn on_wake(&self, node: NodeIndex, name: &str) {
        self.inner.on_wake(node, name);
    }

    /// Some daemon announced that a lock's holder changed.
    pub fn on_changed(&self, name: &str) {
        self.inner.watching.changed(name);
    }

    /// How many leases are good that this daemon gave out or extended, as far as it remembers and was told.
    pub fn live_leases(&self) -> usize {
        self.inner.leases.live()
    }

    /// How many callers of this daemon wait in line, over all names.
    pub fn waiters(&self) -> usize {
        self.inner.waiting.total()
    }

    /// Stops taking calls: waiters end with [`LockError::ShuttingDown`], held streams with [`HoldEvent::Ended`].
    pub fn shut_down(&self) {
        self.inner.closing.store(true, Ordering::Release);
        self.inner.closed.notify(usize::MAX);
    }

    /// After [`Locks::shut_down`]: completes when the daemon has given up its places in line, or at `until`.
    pub async fn settled(&self, until: Moment) {
        let clock = self.inner.runtime().clock.clone();
        while self.inner.waiting.is_any() && clock.now() < until {
            clock.sleep_until(clock.now() + SETTLE_INTERVAL).await;
        }
    }
}

impl Sweep for Locks {
    fn letter(&self) -> char {
        KIND_LOCK
    }

    fn sweep<'a>(&'a self, name: &'a str) -> BoxFuture<'a, bool> {
        let inner = &self.inner;
        let change = LockChange::Tidy { grace: inner.settings.offer_grace };
        let swept = inner.registers.change(name, change, inner.now() + inner.settings.patience);
        swept.map(|swept| swept.is_ok_and(|committed| committed.answer == LockAnswer::Ended)).boxed()
    }
}

fn view(name: LockName, observed: &Observed<LockValue>) -> LockView {
    let holder = observed.value.holder.as_ref().map(|holder| holder.view(&observed.ages));
    LockView { name, holder, waiters: observed.value.waiters(), nodes: observed.nodes.clone() }
}

impl Inner {
    pub fn runtime(&self) -> &Runtime {
        &self.registers.cluster().runtime
    }

    pub fn now(&self) -> Moment {
        self.runtime().clock.now()
    }

    pub fn meter(&self) -> &LockMeter {
        &self.registers.cluster().meter.locks
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// See [`Locks::acquire`]; `positions` hears how many stand before, when that changes. Each way has a future of its own,
    /// and no larger one than it needs: a daemon has as many of those that wait as there are waiters.
    pub fn acquire<'a>(
        self: &'a Arc<Self>,
        request: AcquireRequest,
        deadline: Moment,
        positions: Positions<'a>,
    ) -> BoxFuture<'a, Result<Acquisition, LockError>> {
        if let Err(error) = self.check_open() {
            return future::ready(Err(error)).boxed();
        }
        let AcquireRequest { name, owner, ttl, wait, attributes } = request;
        let named = owner.is_some();
        let acquire = self.change_of(owner, ttl, attributes);
        let started = self.now();
        let until = deadline.min(started + wait);
        if wait.is_zero() {
            return async move { self.counted(self.try_once(&name, acquire, deadline).await) }.boxed();
        }
        let arrival = Arrival { ticket: self.ticket(), acquire, started, is_unsure: false };
        // The same owner may hold it already; it does not have to stand in line for that.
        if named && self.waiting.has(name.as_str()) {
            return async move {
                let glanced = self.try_once(&name, arrival.acquire.clone(), deadline).await;
                if !matches!(glanced, Ok(Acquisition::Contended(_))) {
                    return self.counted(glanced);
                }
                self.wait_in_line(name, arrival, until, deadline, positions).await
            }
            .boxed();
        }
        // Where it seems to be free nobody need speak for whoever comes.
        if !self.waiting.has(name.as_str()) && self.registers.rests_at(name.as_str(), LockValue::is_free) {
            return async move {
                match self.try_first(&name, arrival, until, deadline).await {
                    Ok(acquisition) => self.counted(Ok(acquisition)),
                    Err(arrival) => self.wait_in_line(name, arrival, until, deadline, positions).await,
                }
            }
            .boxed();
        }
        self.wait_in_line(name, arrival, until, deadline, positions)
    }

    /// One attempt before standing in line. In vain, it goes on there under the same lease id.
    async fn try_first(
        self: &Arc<Self>,
        name: &LockName,
        arrival: Arrival,
        until: Moment,
        deadline: Moment,
    ) -> Result<Acquisition, Arrival> {
        let lease_id = arrival.acquire.lease_id;
        let deadline = deadline.min(arrival.started + self.settings.patience);
        let change = LockChange::Acquire(arrival.acquire.clone());
        let Ok([ticket]) = self.registers.enqueue(name.as_str(), [change], deadline) else {
            return Err(arrival);
        };
        // For as long as it has no seat.
        let mut guard = AbandonGuard::new(self.clone(), name.clone(), lease_id, Some(ticket.claim()));
        let result = self.registers.wait(ticket, deadline).await;
        guard.disarm();
        let waits = &self.meter().waits;
        let waited = || self.now().since(arrival.started);
        let is_unsure = match result {
            Ok(committed) => match &committed.answer {
                LockAnswer::Contended(contention) if self.now() >= until => {
                    waits.in_vain.took(waited());
                    return Ok(Acquisition::Contended(contention.clone()));
                }
                LockAnswer::Contended(_) => false,
                // It came of an attempt from before a recovery.
                _ if self.check_grants().is_err() => true,
                _ => {
                    waits.served.took(waited());
                    return Ok(Acquisition::Acquired(self.lease_of(name, &committed)));
                }
            },
            Err(error) => error == RegisterError::OutcomeUnknown,
        };
        Err(Arrival { is_unsure, ..arrival })
    }

    pub(super) fn counted(&self, acquired: Result<Acquisition, LockError>) -> Result<Acquisition, LockError> {
        match &acquired {
            Ok(Acquisition::Acquired(_)) => self.meter().leases.granted.one(),
            Ok(Acquisition::Contended(_)) => self.meter().contended.one(),
            Err(_) => {}
        }
        acquired
    }

    /// Who comes now stands behind all who came before.
    fn ticket(&self) -> Token {
        self.registers.cluster().next_ballot().token
    }

    fn check_open(&self) -> Result<(), LockError> {
        if self.is_closing() {
            return Err(LockError::ShuttingDown);
        }
        self.check_grants()
    }

    /// See [`Leases::check_grants`].
    pub fn check_grants(&self) -> Result<(), LockError> {
        self.leases.check_grants().map_err(LockError::from)
    }

    /// The lease that a change came to, of which the caller will be told.
    pub fn lease_of(&self, name: &LockName, committed: &Committed<LockAnswer>) -> Lease {
        let lease = lease_of(name, committed);
        self.leases.note(lease.lease_id, lease.valid_until);
        lease
    }

    fn change_of(&self, owner: Option<Owner>, ttl: Duration, attributes: Attributes) -> Acquire {
        let runtime = self.runtime();
        Acquire {
            lease_id: LeaseId::from_bytes(runtime.entropy.next_u128().to_be_bytes()),
            owner: owner.unwrap_or_else(|| Owner::unique(runtime.entropy.next_u128())),
            ttl,
            now_unix_ms: runtime.clock.wall_unix_ms(),
            attributes,
            grace: self.settings.offer_grace,
            waiting: None,
        }
    }

    async fn try_once(
        self: &Arc<Self>,
        name: &LockName,
        acquire: Acquire,
        deadline: Moment,
    ) -> Result<Acquisition, LockError> {
        let lease_id = acquire.lease_id;
        let [ticket] = self.registers.enqueue(name.as_str(), [LockChange::Acquire(acquire)], deadline)?;
        // If the caller goes away, or nobody can tell whether it holds the lock, the lease must not stand for long.
        let mut guard = AbandonGuard::new(self.clone(), name.clone(), lease_id, Some(ticket.claim()));
        let result = self.registers.wait(ticket, deadline).await;
        if !matches!(result, Err(RegisterError::OutcomeUnknown)) {
            guard.disarm();
        }
        let committed = result?;
        match &committed.answer {
            LockAnswer::Contended(contention) => Ok(Acquisition::Contended(contention.clone())),
            _ => {
                self.check_grants().inspect_err(|_| self.abandon(name.clone(), lease_id))?;
                Ok(Acquisition::Acquired(self.lease_of(name, &committed)))
            }
        }
    }

    /// Extends a lease; the inner error is why it is lost.
    pub async fn extend(
        &self,
        name: &LockName,
        lease_id: LeaseId,
        ttl: Option<Duration>,
        deadline: Moment,
    ) -> Result<Result<Lease, LockAnswer>, LockError> {
        let until = self.leases.until(lease_id);
        self.leases.check_extends(until)?;
        let change = LockChange::Extend { lease_id, ttl };
        let committed = self.registers.change(name.as_str(), change, deadline).await?;
        match &committed.answer {
            // The lease's time has begun again, and yet its holder may not go by it.
            LockAnswer::Held { .. } if self.leases.check_extends(until).is_err() => {
                Err(RegisterError::OutcomeUnknown.into())
            }
            LockAnswer::Held { .. } => {
                self.meter().leases.extended.one();
                Ok(Ok(self.lease_of(name, &committed)))
            }
            lost => {
                self.meter().leases.taken.one();
                self.leases.lost(lease_id);
                Ok(Err(lost.clone()))
            }
        }
    }

    /// Ends a lease. Where callers of this daemon wait, the first of them tries in the same round.
    pub async fn end(
        self: &Arc<Self>,
        name: &LockName,
        change: LockChange,
        deadline: Moment,
    ) -> ChangeResult<LockAnswer> {
        let ended = match self.enqueue_with_first(name, &change, deadline) {
            Some(enqueued) => self.registers.wait(enqueued?, deadline).await?,
            None => self.registers.change(name.as_str(), change.clone(), deadline).await?,
        };
        if ended.answer == LockAnswer::Ended {
            self.count_end(&change);
        }
        Ok(ended)
    }

    fn count_end(&self, change: &LockChange) {
        match change {
            LockChange::Release { lease_id, .. } => {
                self.meter().leases.ended.one();
                self.leases.ended(*lease_id);
            }
            LockChange::Abandon { lease_id, .. } => self.leases.ended(*lease_id),
            LockChange::Force { .. } => self.meter().forced.one(),
            LockChange::Acquire(_)
            | LockChange::Extend { .. }
            | LockChange::Tidy { .. }
            | LockChange::Leave { .. } => {}
        }
    }

    /// Undoes an acquire that nobody will use, in the background.
    pub fn abandon(self: &Arc<Self>, name: LockName, lease_id: LeaseId) {
        if mutant::is_on(Mutant::NoAbandon) {
            return;
        }
        let inner = self.clone();
        let task = async move {
            let give_up = inner.now() + ABANDON_FOR;
            while inner.now() < give_up {
                let change = LockChange::Abandon { lease_id, grace: inner.settings.offer_grace };
                let limit = give_up.min(inner.now() + inner.settings.patience);
                match inner.end(&name, change, limit).await {
                    Ok(_) => return,
                    Err(error) => {
                        tracing::debug!(lock = %name, %error, "an abandoned acquire could not be undone yet")
                    }
                }
                let pause = inner.runtime().entropy.jitter(Duration::from_millis(500));
                inner.runtime().clock.sleep_until(inner.now() + pause).await;
            }
        };
        self.runtime().spawner.spawn(task.boxed());
    }
}

/// A lease, as its holder gets it. It is valid from before its accept was first sent.
fn lease_of(name: &LockName, committed: &Committed<LockAnswer>) -> Lease {
    let LockAnswer::Held { lease_id, token, owner, ttl, .. } = &committed.answer else {
        unreachable!("only an answer that holds the lock makes a lease")
    };
    let from = committed.first_sent.expect("a lease is made by a change that was sent");
    let valid_until = Leases::valid_until(from, *ttl);
    Lease {
        name: name.clone(),
        owner: owner.clone(),
        lease_id: *lease_id,
        token: *token,
        ttl: *ttl,
        valid_until,
    }
}

/// Why a lease with this token was lost.
pub(super) fn lost_reason(token: Token, answer: &LockAnswer) -> LostReason {
    match answer {
        LockAnswer::Lost { forced_token } if *forced_token == token => LostReason::Forced,
        _ => LostReason::Replaced,
    }
}

/// What it takes to undo an acquire, or to take it back if it has not gone out.
type Undo = (Arc<Inner>, LockName, LeaseId, Option<Arc<Claim>>);

/// Undoes an acquire whose caller has gone away. Armed until told otherwise.
pub(super) struct AbandonGuard {
    armed: Option<Undo>,
}

impl AbandonGuard {
    pub fn new(inner: Arc<Inner>, name: LockName, lease_id: LeaseId, claim: Option<Arc<Claim>>) -> Self {
        Self { armed: Some((inner, name, lease_id, claim)) }
    }

    pub fn disarm(&mut self) {
        self.armed = None;
    }
}

impl Drop for AbandonGuard {
    fn drop(&mut self) {
        let Some((inner, name, lease_id, claim)) = self.armed.take() else { return };
        if !claim.is_some_and(|claim| claim.withdraw()) {
            inner.abandon(name, lease_id);
        }
    }
}
