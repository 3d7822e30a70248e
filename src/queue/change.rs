//! How an item and a queue's settings change: pure functions from one value to the next, and an answer (protocol,
//! section 4).
//!
//! Whether a lease or a delay is over is judged by the ages in the answers to the change's own prepare. Who leases an item
//! counts the attempt, so an attempt is counted once, with the lease, or not at all.

use std::time::Duration;

use bytes::Bytes;

use super::value::{Item, ItemValue, QueueValue, State, Timer, millis};
use super::{ItemState, QueueOptions, QueueOptionsPatch, Settled};
use crate::ids::{Attributes, LeaseId, ProposerId};
use crate::mutant::{self, Mutant};
use crate::node::keyspace::{KIND_ITEM, KIND_QUEUE};
use crate::node::operation::{Place, Stamp};
use crate::register::{Attempt, Kind, Publish, Verdict};
use crate::token::Token;

/// The kind of register that holds an item.
#[derive(Debug)]
pub struct ItemKind;

/// A change of an item, as data.
#[derive(Clone, Debug, PartialEq)]
pub enum ItemChange {
    /// Put it, unless it is known.
    Put(PutItem),
    /// Lease it, or bury it if it was leased as often as it may.
    Lease {
        /// The lease.
        lease_id: LeaseId,
        /// Its length.
        ttl: Duration,
        /// The item is dead after so many attempts; 0 for never.
        max_attempts: u32,
    },
    /// Start the lease's time again.
    Extend {
        /// The lease.
        lease_id: LeaseId,
        /// The length from now on; `None` for the same as before.
        ttl: Option<Duration>,
    },
    /// It is done.
    Ack {
        /// The lease.
        lease_id: LeaseId,
        /// For how long it is remembered.
        retention: Duration,
    },
    /// Give it back.
    Nack {
        /// The lease.
        lease_id: LeaseId,
        /// How long nobody gets it.
        delay: Delay,
        /// The item is dead after so many attempts; 0 for never.
        max_attempts: u32,
        /// For people.
        reason: String,
    },
    /// A lease that nobody heard of is given back, as if it had not been.
    Return {
        /// The lease.
        lease_id: LeaseId,
    },
    /// Make a dead item ready again.
    Redrive,
    /// Remove it, if it is in one of these states.
    Purge {
        /// Which.
        states: States,
        /// For how long it is remembered.
        retention: Duration,
    },
}

/// An item to be put.
#[derive(Clone, Debug, PartialEq)]
pub struct PutItem {
    /// The bytes.
    pub payload: Bytes,
    /// For people and for workers.
    pub attributes: Attributes,
    /// Lower comes first.
    pub priority: i32,
    /// Its place among those of the same priority.
    pub order: Token,
    /// The daemon that puts it.
    pub put_by: ProposerId,
    /// When, in milliseconds of Unix time.
    pub now_unix_ms: u64,
    /// How long nobody gets it.
    pub delay: Duration,
    /// Somebody waits for it and there is nothing before it: it is leased in the same step, under this id and for so long.
    pub lease: Option<(LeaseId, Duration)>,
}

/// How long nobody gets an item that was given back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Delay {
    /// So long.
    Length(Duration),
    /// So long after the first attempt, twice as long after each further one, and at most so long.
    Backoff(Duration, Duration),
}

/// Some of the states of an item.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct States {
    /// Ready.
    pub ready: bool,
    /// Delayed.
    pub delayed: bool,
    /// Leased.
    pub leased: bool,
    /// Dead.
    pub dead: bool,
}

/// What a change of an item answers.
#[derive(Clone, Debug, PartialEq)]
pub enum ItemAnswer {
    /// It is there, by this change.
    Put,
    /// It was known.
    Known,
    /// It is leased; by a put, it is there by this change, too.
    Leased(Box<Item>),
    /// It was leased as often as it may be, and is dead now.
    Buried,
    /// Nobody may lease it now: it is somebody else's, delayed, dead, done, or not there.
    NotReady,
    /// The lease goes on, for so long.
    Extended(Duration),
    /// What became of the lease.
    Settled(Settled),
    /// Whether it was done.
    Changed(bool),
}

type ItemVerdict = Verdict<ItemValue, ItemAnswer>;

impl Kind for ItemKind {
    const LETTER: char = KIND_ITEM;
    type Value = ItemValue;
    type Change = ItemChange;
    type Answer = ItemAnswer;

    fn encode(value: &ItemValue) -> Bytes {
        value.encode().into()
    }

    fn decode(bytes: &[u8]) -> Result<ItemValue, String> {
        ItemValue::decode(bytes)
    }

    fn apply(change: &ItemChange, old: &ItemValue, attempt: &Attempt<'_>) -> ItemVerdict {
        match change {
            ItemChange::Put(put) => apply_put(put, old, attempt),
            ItemChange::Lease { lease_id, ttl, max_attempts } => {
                apply_lease(*lease_id, *ttl, *max_attempts, old, attempt)
            }
            ItemChange::Extend { lease_id, ttl } => match held(*lease_id, old) {
                Err(lost) => Verdict::Unchanged(ItemAnswer::Settled(lost)),
                Ok((item, timer)) => {
                    let length = ttl.unwrap_or(timer.length());
                    let state = State::Leased(*lease_id, timer_of(length, attempt));
                    changed(Item { state, ..item.clone() }, ItemAnswer::Extended(length))
                }
            },
            ItemChange::Ack { lease_id, retention } => match held(*lease_id, old) {
                Err(lost) => Verdict::Unchanged(ItemAnswer::Settled(lost)),
                Ok((item, _)) => changed(done(item, *retention, attempt), ItemAnswer::Settled(Settled::Done)),
            },
            ItemChange::Nack { lease_id, delay, max_attempts, reason } => match held(*lease_id, old) {
                Err(lost) => Verdict::Unchanged(ItemAnswer::Settled(lost)),
                Ok((item, _)) => {
                    let item = Item { reason: reason.clone(), ..item.clone() };
                    if *max_attempts > 0 && item.attempts >= *max_attempts {
                        let dead = Item { state: State::Dead, ..item };
                        return changed(dead, ItemAnswer::Settled(Settled::Buried));
                    }
                    let state = waiting(delay.length(item.attempts), attempt);
                    changed(Item { state, ..item }, ItemAnswer::Settled(Settled::Done))
                }
            },
            ItemChange::Return { lease_id } => match held(*lease_id, old) {
                Err(_) => Verdict::Unchanged(ItemAnswer::Changed(false)),
                Ok((item, _)) => {
                    let uncounted = u32::from(!mutant::is_on(Mutant::LostClaimsCount));
                    let attempts = item.attempts.saturating_sub(uncounted);
                    changed(Item { state: State::Ready, attempts, ..item.clone() }, ItemAnswer::Changed(true))
                }
            },
            ItemChange::Redrive => match &old.item {
                Some(item) if item.state == State::Dead => {
                    let ready =
                        Item { state: State::Ready, attempts: 0, reason: String::new(), ..item.clone() };
                    changed(ready, ItemAnswer::Changed(true))
                }
                Some(_) | None => Verdict::Unchanged(ItemAnswer::Changed(false)),
            },
            ItemChange::Purge { states, retention } => match old.alive() {
                Some(item) if states.have(item.state(attempt.ages)) => {
                    changed(done(item, *retention, attempt), ItemAnswer::Changed(true))
                }
                Some(_) | None => Verdict::Unchanged(ItemAnswer::Changed(false)),
            },
        }
    }

    fn is_glance(_: &ItemChange) -> bool {
        false
    }

    fn stamps(value: &ItemValue) -> Vec<(Stamp, Duration)> {
        let timer = value.item.as_ref().and_then(|item| item.state.timer());
        timer.map(|timer| (timer.stamp, timer.length())).into_iter().collect()
    }

    fn is_guarded(value: &ItemValue) -> bool {
        // A lease needs no guard: nobody glances at an item, and who claims it asks for a promise.
        !Self::retention(value).is_zero()
    }

    fn weight(value: &ItemValue) -> usize {
        value.item.as_ref().map_or(0, |item| item.payload.len())
    }

    fn is_listed(value: &ItemValue) -> bool {
        value.alive().is_some()
    }

    fn retention(value: &ItemValue) -> Duration {
        match &value.item {
            Some(Item { state: State::Done(Some(timer)), .. }) => timer.length(),
            Some(_) | None => Duration::ZERO,
        }
    }

    fn place(name: &str, value: &ItemValue) -> Option<Place> {
        value.place(name)
    }

    fn publish(old: &ItemValue, new: &ItemValue) -> Publish {
        // Those who wait want to know of what they may have, now or soon.
        let waits = |value: &ItemValue| {
            value.item.as_ref().is_some_and(|item| matches!(item.state, State::Ready | State::Delayed(_)))
        };
        Publish { announce: waits(new) && old != new, wake: Vec::new() }
    }
}

fn changed(item: Item, answer: ItemAnswer) -> ItemVerdict {
    Verdict::Changed(ItemValue { item: Some(item) }, answer)
}

fn timer_of(length: Duration, attempt: &Attempt<'_>) -> Timer {
    // The ordinal tells the timers apart that changes of one round set.
    let ordinal = u8::try_from(attempt.place).unwrap_or(u8::MAX);
    Timer { stamp: Stamp { ballot: attempt.ballot, ordinal }, length_ms: millis(length) }
}

fn waiting(delay: Duration, attempt: &Attempt<'_>) -> State {
    if delay.is_zero() { State::Ready } else { State::Delayed(timer_of(delay, attempt)) }
}

/// Done, without what only those who work on it need.
fn done(item: &Item, retention: Duration, attempt: &Attempt<'_>) -> Item {
    let timer = (!retention.is_zero()).then(|| timer_of(retention, attempt));
    Item { state: State::Done(timer), payload: Bytes::new(), attributes: Vec::new(), ..item.clone() }
}

/// The item, if this lease holds it; the lease may have run out, but nobody has had the item since.
fn held(lease_id: LeaseId, value: &ItemValue) -> Result<(&Item, &Timer), Settled> {
    match &value.item {
        None => Err(Settled::NoSuchItem),
        Some(item) => match &item.state {
            State::Done(_) => Err(Settled::AlreadyDone),
            State::Leased(holder, timer) if *holder == lease_id || mutant::is_on(Mutant::AckByAnyone) => {
                Ok((item, timer))
            }
            State::Leased(..) | State::Ready | State::Delayed(_) | State::Dead => Err(Settled::LeaseLost),
        },
    }
}

fn apply_put(put: &PutItem, old: &ItemValue, attempt: &Attempt<'_>) -> ItemVerdict {
    let is_own = |item: &Item| (item.order, item.put_by) == (put.order, put.put_by);
    if old.item.as_ref().is_some_and(is_own) && !mutant::is_on(Mutant::PutsAgain) {
        // By an earlier attempt of this very put.
        return Verdict::Unchanged(ItemAnswer::Put);
    }
    let is_known = old.item.as_ref().is_some_and(|item| match &item.state {
        // Forgotten as of now, although the record is still there.
        State::Done(None) => false,
        State::Done(Some(timer)) => !timer.is_over(attempt.ages),
        State::Ready | State::Delayed(_) | State::Leased(..) | State::Dead => true,
    });
    if is_known && !mutant::is_on(Mutant::PutsAgain) {
        return Verdict::Unchanged(ItemAnswer::Known);
    }
    let item = Item {
        state: waiting(put.delay, attempt),
        payload: put.payload.clone(),
        attributes: put.attributes.clone(),
        priority: put.priority,
        order: put.order,
        put_by: put.put_by,
        put_unix_ms: put.now_unix_ms,
        attempts: 0,
        // Tokens go on from those of the item that had the id before.
        token: old.item.as_ref().map_or(Token::ZERO, |item| item.token),
        reason: String::new(),
    };
    match put.lease {
        None => changed(item, ItemAnswer::Put),
        // However often it may be leased, it may be once.
        Some((lease_id, ttl)) => apply_lease(lease_id, ttl, 0, &ItemValue { item: Some(item) }, attempt),
    }
}

fn apply_lease(
    lease_id: LeaseId,
    ttl: Duration,
    max_attempts: u32,
    old: &ItemValue,
    attempt: &Attempt<'_>,
) -> ItemVerdict {
    let Some(item) = &old.item else { return Verdict::Unchanged(ItemAnswer::NotReady) };
    let trusted = mutant::is_on(Mutant::IndexTrusted);
    let is_free = match &item.state {
        State::Ready => true,
        State::Delayed(timer) | State::Leased(_, timer) => trusted || timer.is_over(attempt.ages),
        State::Dead | State::Done(_) => trusted,
    };
    // A round hands out its token once: who comes to an item that was leased in the same round finds it taken.
    if !is_free {
        return Verdict::Unchanged(ItemAnswer::NotReady);
    }
    if max_attempts > 0 && item.attempts >= max_attempts {
        let reason = match item.reason.as_str() {
            "" => format!("its lease ran out {} times", item.attempts),
            last => format!("leased {} times; the last nack said: {last}", item.attempts),
        };
        return changed(Item { state: State::Dead, reason, ..item.clone() }, ItemAnswer::Buried);
    }
    let stays = mutant::is_on(Mutant::ItemTokenStays) && item.token != Token::ZERO;
    let leased = Item {
        state: State::Leased(lease_id, timer_of(ttl, attempt)),
        attempts: item.attempts.saturating_add(1),
        token: if stays { item.token } else { attempt.token() },
        ..item.clone()
    };
    let answer = ItemAnswer::Leased(Box::new(leased.clone()));
    changed(leased, answer)
}

impl Delay {
    /// How long, after so many attempts.
    fn length(self, attempts: u32) -> Duration {
        match self {
            Delay::Length(length) => length,
            Delay::Backoff(first, longest) => {
                let doubled = 2u32.saturating_pow(attempts.saturating_sub(1).min(31));
                first.saturating_mul(doubled).min(longest)
            }
        }
    }
}

impl States {
    fn have(self, state: ItemState) -> bool {
        match state {
            ItemState::Ready => self.ready,
            ItemState::Delayed => self.delayed,
            ItemState::Leased => self.leased,
            ItemState::Dead => self.dead,
            ItemState::Done => false,
        }
    }
}

/// The kind of register that holds a queue's settings.
#[derive(Debug)]
pub struct QueueKind;

/// A change of a queue's settings, as data.
#[derive(Clone, Debug, PartialEq)]
pub enum QueueChange {
    /// Set these, and leave the others as they are, or as they are by default.
    Configure(QueueOptionsPatch),
    /// There is no such queue any more.
    Remove,
}

/// What a change of a queue's settings answers.
#[derive(Clone, Debug, PartialEq)]
pub enum QueueAnswer {
    /// What is set now.
    Options(QueueOptions),
    /// Whether there was such a queue.
    Removed(bool),
}

impl Kind for QueueKind {
    const LETTER: char = KIND_QUEUE;
    type Value = QueueValue;
    type Change = QueueChange;
    type Answer = QueueAnswer;

    fn encode(value: &QueueValue) -> Bytes {
        value.encode().into()
    }

    fn decode(bytes: &[u8]) -> Result<QueueValue, String> {
        QueueValue::decode(bytes)
    }

    fn apply(change: &QueueChange, old: &QueueValue, _: &Attempt<'_>) -> Verdict<QueueValue, QueueAnswer> {
        match change {
            QueueChange::Configure(patch) => {
                let options = patch.applied_to(old.options.map(QueueOptions::from).unwrap_or_default());
                let new = QueueValue { options: Some((&options).into()) };
                let answer = QueueAnswer::Options(options);
                if new == *old { Verdict::Unchanged(answer) } else { Verdict::Changed(new, answer) }
            }
            QueueChange::Remove if old.options.is_some() => {
                Verdict::Changed(QueueValue::default(), QueueAnswer::Removed(true))
            }
            QueueChange::Remove => Verdict::Unchanged(QueueAnswer::Removed(false)),
        }
    }

    fn is_glance(_: &QueueChange) -> bool {
        false
    }

    fn stamps(_: &QueueValue) -> Vec<(Stamp, Duration)> {
        Vec::new()
    }

    fn is_guarded(_: &QueueValue) -> bool {
        false
    }

    fn is_listed(value: &QueueValue) -> bool {
        value.options.is_some()
    }

    fn publish(_: &QueueValue, _: &QueueValue) -> Publish {
        Publish::default()
    }
}

impl QueueOptionsPatch {
    fn applied_to(&self, old: QueueOptions) -> QueueOptions {
        QueueOptions {
            lease_ttl: self.lease_ttl.unwrap_or(old.lease_ttl),
            max_attempts: self.max_attempts.unwrap_or(old.max_attempts),
            backoff_min: self.backoff_min.unwrap_or(old.backoff_min),
            backoff_max: self.backoff_max.unwrap_or(old.backoff_max),
            max_items: self.max_items.unwrap_or(old.max_items),
            done_retention: self.done_retention.unwrap_or(old.done_retention),
        }
    }
}
