//! How a lock changes: pure functions from one [`LockValue`] to the next, and an answer (protocol, section 4).
//!
//! Who is next: the lowest ticket in line, over all daemons. A released lock is *offered* to that daemon for a short
//! grace; if it does not come, its place is dropped and the one after is next. Whoever finds the lock free and is not
//! next makes the offer and goes on waiting, so a turn is never lost with a message.

use std::time::Duration;

use bytes::Bytes;

use super::value::{Holder, LockValue, Offer, Place};
use super::{Contention, HolderView};
use crate::ids::{Attributes, LeaseId, Owner, ProposerId};
use crate::mutant::{self, Mutant};
use crate::node::keyspace::KIND_LOCK;
use crate::node::operation::Stamp;
use crate::register::{Attempt, Kind, Publish, Verdict};
use crate::token::{Ballot, Token};

/// Ordinals of the stamps that one attempt may set.
const HOLDER_STAMP: u8 = 0;
const OFFER_STAMP: u8 = 1;
const PLACE_STAMP: u8 = 2;

/// The kind of register that holds a lock.
#[derive(Debug)]
pub struct LockKind;

/// A change of a lock, as data.
#[derive(Clone, Debug, PartialEq)]
pub enum LockChange {
    /// Take the lock, or stand in line.
    Acquire(Acquire),
    /// Start the lease's time again.
    Extend {
        /// The lease.
        lease_id: LeaseId,
        /// Another length from now on.
        ttl: Option<Duration>,
    },
    /// End the lease.
    Release {
        /// The lease.
        lease_id: LeaseId,
        /// Length of the offer to the next in line.
        grace: Duration,
    },
    /// End a lease that nobody heard of: only if it was granted under this very id and not taken over since.
    Abandon {
        /// The lease.
        lease_id: LeaseId,
        /// Length of the offer to the next in line.
        grace: Duration,
    },
    /// End whatever lease has this token.
    Force {
        /// The token.
        token: Token,
        /// Length of the offer to the next in line.
        grace: Duration,
    },
    /// Drop what has aged, as an acquire that finds it would: nobody asks for the lock any more.
    Tidy {
        /// Length of the offer to the next in line.
        grace: Duration,
    },
    /// Give up a daemon's place in line.
    Leave {
        /// Whose.
        daemon: ProposerId,
        /// Length of the offer to the next in line.
        grace: Duration,
    },
}

/// An attempt to take the lock.
#[derive(Clone, Debug, PartialEq)]
pub struct Acquire {
    /// The id of the lease, if it comes to one.
    pub lease_id: LeaseId,
    /// Who asks.
    pub owner: Owner,
    /// The lease's length.
    pub ttl: Duration,
    /// Now, for people.
    pub now_unix_ms: u64,
    /// For people.
    pub attributes: Attributes,
    /// Length of an offer to somebody before us.
    pub grace: Duration,
    /// The place in line; `None` for an attempt that does not wait.
    pub waiting: Option<Waiting>,
}

/// A waiter, as its daemon describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The waiter's daemon.
    pub daemon: ProposerId,
    /// The token of its arrival.
    pub ticket: Token,
    /// It is the first of its daemon: no other waiter of the daemon is before it.
    pub first: bool,
    /// The ticket of the daemon's waiter after it.
    pub next: Option<Token>,
    /// How many of the daemon wait, with it.
    pub count: u32,
    /// How long the daemon's place lasts without being renewed.
    pub place_ttl: Duration,
    /// Renew the place although it stands.
    pub renew: bool,
}

/// What a change of a lock answers.
#[derive(Clone, Debug, PartialEq)]
pub enum LockAnswer {
    /// The caller holds the lock; its lease has just begun or begun again.
    Held {
        /// The lease.
        lease_id: LeaseId,
        /// The fencing token.
        token: Token,
        /// The holder.
        owner: Owner,
        /// The lease's length.
        ttl: Duration,
        /// Others of the caller's daemon still have a place in line.
        placed: bool,
    },
    /// Somebody else has it, and the caller does not wait.
    Contended(Contention),
    /// The caller waits.
    Waiting {
        /// What it waits for.
        contention: Contention,
        /// How many of other daemons stand before it; approximate.
        before: u32,
    },
    /// The lease does not hold the lock.
    Lost {
        /// The last token that an operator released by force.
        forced_token: Token,
    },
    /// The lease, or the place in line, is ended.
    Ended,
    /// There was nothing to end.
    NothingToEnd {
        /// The highest token granted.
        highest_token: Token,
    },
}

type LockVerdict = Verdict<LockValue, LockAnswer>;

impl Kind for LockKind {
    const LETTER: char = KIND_LOCK;
    type Value = LockValue;
    type Change = LockChange;
    type Answer = LockAnswer;

    fn encode(value: &LockValue) -> Bytes {
        value.encode().into()
    }

    fn decode(bytes: &[u8]) -> Result<LockValue, String> {
        LockValue::decode(bytes)
    }

    fn apply(change: &LockChange, old: &LockValue, attempt: &Attempt<'_>) -> LockVerdict {
        match change {
            LockChange::Acquire(acquire) => self::acquire(acquire, old, attempt),
            LockChange::Extend { lease_id, ttl } => extend(*lease_id, *ttl, old, attempt),
            LockChange::Release { lease_id, grace } => {
                let anyones = mutant::is_on(Mutant::ReleaseByAnyone);
                end(|holder| holder.lease_id == *lease_id || anyones, *grace, old, attempt)
            }
            LockChange::Abandon { lease_id, grace } => {
                // A lease that was taken over under another id, or was taken over by this one, ages.
                let anyhow = mutant::is_on(Mutant::AbandonIgnoresFirst);
                let first = |holder: &Holder| holder.first == Some(*lease_id) || anyhow;
                end(|holder| holder.lease_id == *lease_id && first(holder), *grace, old, attempt)
            }
            LockChange::Force { token, grace } => force(*token, *grace, old, attempt),
            LockChange::Tidy { grace } => tidy(*grace, old, attempt),
            LockChange::Leave { daemon, grace } => leave(*daemon, *grace, old, attempt),
        }
    }

    fn is_glance(change: &LockChange) -> bool {
        matches!(change, LockChange::Acquire(Acquire { waiting: None, .. }))
    }

    fn stamps(value: &LockValue) -> Vec<(Stamp, Duration)> {
        let ms = Duration::from_millis;
        let holder = value.holder.iter().map(|holder| (holder.stamp, holder.ttl()));
        let offer = value.offer.iter().map(|offer| (offer.stamp, ms(offer.grace_ms)));
        let line = value.line.iter().map(|place| (place.stamp, ms(place.ttl_ms)));
        holder.chain(offer).chain(line).collect()
    }

    /// A free lock with a line has an offer, which guards it: whoever only glances does not get it before that has aged.
    fn is_guarded(value: &LockValue) -> bool {
        value.holder.is_some() || value.offer.is_some()
    }

    fn is_listed(value: &LockValue) -> bool {
        value.holder.is_some() || !value.line.is_empty()
    }

    fn publish(old: &LockValue, new: &LockValue) -> Publish {
        let token = |value: &LockValue| value.holder.as_ref().map(|holder| holder.token);
        let offered = new.offer.filter(|offer| old.offer != Some(*offer));
        Publish {
            announce: token(old) != token(new),
            wake: offered.into_iter().map(|offer| offer.daemon).collect(),
        }
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// A new stamp in the place of the one before. The ballot is in its name, so that no other attempt, late or failed, can
/// have given a node the same name at another time.
fn stamp(ordinal: u8, before: Option<Stamp>, attempt: &Attempt<'_>) -> Stamp {
    if mutant::is_on(Mutant::StampsWithoutBallot) {
        let count = before.map_or(0, |stamp| stamp.ballot.token.get()) + 1;
        let token = Token::new(count).expect("nobody extends so often");
        return Stamp { ballot: Ballot { token, proposer: ProposerId(0) }, ordinal };
    }
    Stamp { ballot: attempt.ballot, ordinal }
}

fn acquire(acquire: &Acquire, old: &LockValue, attempt: &Attempt<'_>) -> LockVerdict {
    let mut new = old.clone();
    if let Some(holder) = &mut new.holder {
        if holder.owner == acquire.owner {
            return take_again(acquire, new, attempt);
        }
        if !attempt.ages.is_aged(holder.stamp, holder.ttl()) {
            return stand_by(acquire, old, new, attempt);
        }
        new.holder = None;
    }
    drop_who_did_not_come(&mut new, attempt);
    if is_next(acquire, &new) {
        return grant(acquire, new, attempt);
    }
    offer_to_next(&mut new, acquire.grace, attempt);
    stand_by(acquire, old, new, attempt)
}

/// The same owner gets its lease again: same token, from now on, under a new id that voids the one before.
///
/// An old attempt of the owner may come to this after a newer one whose answer somebody goes by. So the lock stays held
/// for at least as long as the lease before was given for, and once it was taken over no attempt can be abandoned.
fn take_again(acquire: &Acquire, mut new: LockValue, attempt: &Attempt<'_>) -> LockVerdict {
    let holder = new.holder.as_mut().expect("called with a holder");
    if holder.lease_id != acquire.lease_id && !mutant::is_on(Mutant::FirstStays) {
        holder.first = None;
    }
    if !mutant::is_on(Mutant::KeepsLeaseId) {
        holder.lease_id = acquire.lease_id;
    }
    let shorter = mutant::is_on(Mutant::TakenShorter);
    holder.ttl_ms = if shorter { millis(acquire.ttl) } else { holder.ttl_ms.max(millis(acquire.ttl)) };
    holder.stamp = stamp(HOLDER_STAMP, Some(holder.stamp), attempt);
    if !acquire.attributes.is_empty() {
        holder.attributes = acquire.attributes.clone();
    }
    let holder = holder.clone();
    step_out_of_line(acquire, &mut new, attempt);
    let answer = held(acquire, holder, &new);
    Verdict::Changed(new, answer)
}

fn held(acquire: &Acquire, holder: Holder, new: &LockValue) -> LockAnswer {
    let placed = acquire.waiting.is_some_and(|waiting| new.place_of(waiting.daemon).is_some());
    let Holder { lease_id, token, owner, .. } = holder;
    LockAnswer::Held { lease_id, token, owner, ttl: acquire.ttl, placed }
}

fn grant(acquire: &Acquire, mut new: LockValue, attempt: &Attempt<'_>) -> LockVerdict {
    let token = attempt.ballot.token;
    // One new token per round: whoever would be second in it waits for the next ballot.
    if new.highest_token >= token && !mutant::is_on(Mutant::SecondTokenInRound) {
        return Verdict::Deferred;
    }
    let holder = Holder {
        lease_id: acquire.lease_id,
        first: Some(acquire.lease_id),
        owner: acquire.owner.clone(),
        token,
        ttl_ms: millis(acquire.ttl),
        stamp: stamp(HOLDER_STAMP, None, attempt),
        acquired_unix_ms: acquire.now_unix_ms,
        attributes: acquire.attributes.clone(),
    };
    new.holder = Some(holder.clone());
    new.offer = None;
    new.highest_token = token;
    step_out_of_line(acquire, &mut new, attempt);
    let answer = held(acquire, holder, &new);
    Verdict::Changed(new, answer)
}

/// The daemon's place goes to its next waiter, or goes.
fn step_out_of_line(acquire: &Acquire, new: &mut LockValue, attempt: &Attempt<'_>) {
    let Some(waiting) = acquire.waiting.filter(|waiting| waiting.first) else { return };
    new.line.retain(|place| place.daemon != waiting.daemon);
    if let Some(next) = waiting.next {
        let count = waiting.count.saturating_sub(1);
        enter(Waiting { ticket: next, count, ..waiting }, new, attempt);
    }
}

/// Puts a place where its ticket belongs.
fn enter(waiting: Waiting, new: &mut LockValue, attempt: &Attempt<'_>) {
    new.line.push(Place {
        daemon: waiting.daemon,
        ticket: waiting.ticket,
        count: waiting.count,
        stamp: stamp(PLACE_STAMP, None, attempt),
        ttl_ms: millis(waiting.place_ttl),
    });
    new.line.sort_by_key(|place| (place.ticket, place.daemon));
}

/// Places that aged, and the daemon that let its offer age. It comes back with the same ticket if it lives.
fn drop_who_did_not_come(new: &mut LockValue, attempt: &Attempt<'_>) {
    let aged = |stamp, ms| attempt.ages.is_aged(stamp, Duration::from_millis(ms));
    let offer_stays = mutant::is_on(Mutant::OffersNeverAge);
    if let Some(offer) = new.offer.filter(|offer| aged(offer.stamp, offer.grace_ms) && !offer_stays) {
        new.line.retain(|place| place.daemon != offer.daemon);
        new.offer = None;
    }
    let place_stays = mutant::is_on(Mutant::PlacesNeverAge);
    new.line.retain(|place| !aged(place.stamp, place.ttl_ms) || place_stays);
    // An offer stands only as long as its daemon stands in line.
    new.offer = new.offer.filter(|offer| new.line.iter().any(|place| place.daemon == offer.daemon));
}

/// Whether a free lock is this caller's to take.
fn is_next(acquire: &Acquire, value: &LockValue) -> bool {
    if mutant::is_on(Mutant::LineIgnored) {
        return true;
    }
    let own_turn = |daemon| acquire.waiting.is_some_and(|waiting| waiting.first && waiting.daemon == daemon);
    if value.offer.is_some_and(|offer| !own_turn(offer.daemon)) {
        return false;
    }
    // The daemon knows its own waiters better than its place says: the first of them is never behind it.
    let before_us = |place: &Place| {
        !own_turn(place.daemon) && acquire.waiting.is_none_or(|waiting| place.ticket < waiting.ticket)
    };
    value.offer.is_some() || !value.line.iter().any(before_us)
}

/// A free lock is offered to the lowest ticket.
fn offer_to_next(new: &mut LockValue, grace: Duration, attempt: &Attempt<'_>) {
    if new.holder.is_some() || new.offer.is_some() {
        return;
    }
    new.offer = new.line.first().map(|place| Offer {
        daemon: place.daemon,
        stamp: stamp(OFFER_STAMP, None, attempt),
        grace_ms: millis(grace),
    });
}

/// Not ours now: stand in line if we wait, and say who has it.
fn stand_by(acquire: &Acquire, old: &LockValue, mut new: LockValue, attempt: &Attempt<'_>) -> LockVerdict {
    if let Some(waiting) = acquire.waiting {
        let place = new.place_of(waiting.daemon).copied();
        // Only the first speaks for its daemon; one that came later must not push the first back.
        let moved = place.is_some_and(|place| {
            if waiting.first { place.ticket != waiting.ticket } else { place.ticket > waiting.ticket }
        });
        if place.is_none() || moved || waiting.renew {
            let ticket = match place {
                Some(place) if !waiting.first => place.ticket.min(waiting.ticket),
                _ => waiting.ticket,
            };
            new.line.retain(|place| place.daemon != waiting.daemon);
            enter(Waiting { ticket, ..waiting }, &mut new, attempt);
        }
    }
    let contention = contention(&new, attempt);
    let answer = match acquire.waiting {
        None => LockAnswer::Contended(contention),
        Some(waiting) => {
            let ahead = |place: &&Place| place.daemon != waiting.daemon && place.ticket < waiting.ticket;
            let before =
                new.line.iter().filter(ahead).fold(0u32, |sum, place| sum.saturating_add(place.count));
            LockAnswer::Waiting { contention, before }
        }
    };
    if new == *old { Verdict::Unchanged(answer) } else { Verdict::Changed(new, answer) }
}

fn contention(value: &LockValue, attempt: &Attempt<'_>) -> Contention {
    let holder: Option<HolderView> = value.holder.as_ref().map(|holder| holder.view(attempt.ages));
    Contention { holder, waiters: value.waiters() }
}

fn extend(lease_id: LeaseId, ttl: Option<Duration>, old: &LockValue, attempt: &Attempt<'_>) -> LockVerdict {
    let mut new = old.clone();
    let anyones = mutant::is_on(Mutant::ExtendByAnyone);
    let Some(holder) = new.holder.as_mut().filter(|holder| holder.lease_id == lease_id || anyones) else {
        return Verdict::Unchanged(LockAnswer::Lost { forced_token: old.forced_token });
    };
    // Also after it ran out: as long as the record still says so, nobody has had the lock since.
    holder.ttl_ms = ttl.map_or(holder.ttl_ms, millis);
    holder.stamp = stamp(HOLDER_STAMP, Some(holder.stamp), attempt);
    let (token, owner, ttl) = (holder.token, holder.owner.clone(), holder.ttl());
    let answer = LockAnswer::Held { lease_id, token, owner, ttl, placed: false };
    Verdict::Changed(new, answer)
}

fn end(
    is_it: impl Fn(&Holder) -> bool,
    grace: Duration,
    old: &LockValue,
    attempt: &Attempt<'_>,
) -> LockVerdict {
    if !old.holder.as_ref().is_some_and(is_it) {
        return Verdict::Unchanged(LockAnswer::NothingToEnd { highest_token: old.highest_token });
    }
    let mut new = LockValue { holder: None, ..old.clone() };
    drop_who_did_not_come(&mut new, attempt);
    offer_to_next(&mut new, grace, attempt);
    Verdict::Changed(new, LockAnswer::Ended)
}

fn force(token: Token, grace: Duration, old: &LockValue, attempt: &Attempt<'_>) -> LockVerdict {
    match end(|holder| holder.token == token, grace, old, attempt) {
        Verdict::Changed(new, answer) => Verdict::Changed(LockValue { forced_token: token, ..new }, answer),
        unchanged => unchanged,
    }
}

fn leave(daemon: ProposerId, grace: Duration, old: &LockValue, attempt: &Attempt<'_>) -> LockVerdict {
    let mut new = old.clone();
    new.line.retain(|place| place.daemon != daemon);
    drop_who_did_not_come(&mut new, attempt);
    if old.offer.is_some() {
        offer_to_next(&mut new, grace, attempt);
    }
    if new == *old {
        return Verdict::Unchanged(LockAnswer::NothingToEnd { highest_token: old.highest_token });
    }
    Verdict::Changed(new, LockAnswer::Ended)
}

fn tidy(grace: Duration, old: &LockValue, attempt: &Attempt<'_>) -> LockVerdict {
    let mut new = old.clone();
    new.holder = new.holder.filter(|holder| !attempt.ages.is_aged(holder.stamp, holder.ttl()));
    drop_who_did_not_come(&mut new, attempt);
    offer_to_next(&mut new, grace, attempt);
    if new == *old {
        return Verdict::Unchanged(LockAnswer::NothingToEnd { highest_token: old.highest_token });
    }
    Verdict::Changed(new, LockAnswer::Ended)
}
