//! How a key changes: pure functions from one [`KeyValue`] to the next, and an answer (protocol, section 4).
//!
//! Every change begins by dropping what has aged, so that nothing is answered as absent whose removal is not agreed on in
//! the same step. Then a request that is known is answered as it was; then the fence, then the precondition.

use std::time::Duration;

use bytes::Bytes;

use super::value::{Expiry, KeyValue, Request, Stored, StoredEffect, millis};
use super::{Effect, Entry, Fence, Mutation, Precondition, Write, Written};
use crate::limits;
use crate::mutant::{self, Mutant};
use crate::node::keyspace::KIND_KEY;
use crate::node::operation::Stamp;
use crate::register::{Attempt, Kind, Publish, Verdict};
use crate::token::Token;

/// Ordinals of the stamps that one attempt may set.
const EXPIRY_STAMP: u8 = 0;
const REQUESTS_STAMP: u8 = 1;
const FENCES_STAMP: u8 = 2;

/// The kind of register that holds a key.
#[derive(Debug)]
pub struct KeyKind;

/// A change of a key, as data.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyChange {
    /// Look, and remove what has expired.
    Get,
    /// Write.
    Write(Mutation),
    /// Drop whatever has aged.
    Tidy,
}

/// What a change of a key answers.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyAnswer {
    /// What was found.
    Seen(Seen),
    /// What was done.
    Written(Written),
    /// Nothing was done.
    Refused(Refused),
}

/// What a look finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The value; `None` for none.
    pub entry: Option<Entry>,
    /// The version of the last write or removal that is known of; zero for none.
    pub version: Token,
    /// How many writes and removals are known of.
    pub writes: u64,
}

/// Why a write was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// What it asked for is not there, but this version, or nothing.
    Precondition(Option<Token>),
    /// The value is no number.
    NotAnInteger,
    /// The sum does not fit: the number that is there.
    Overflow(i64),
    /// The highest token of the lock that the key was written under.
    Fenced(Token),
    /// As many other locks fence the key as may.
    TooManyFences,
    /// The id names another request.
    RequestIdReused,
}

type KeyVerdict = Verdict<KeyValue, KeyAnswer>;

impl Kind for KeyKind {
    const LETTER: char = KIND_KEY;
    type Value = KeyValue;
    type Change = KeyChange;
    type Answer = KeyAnswer;

    fn encode(value: &KeyValue) -> Bytes {
        value.encode().into()
    }

    fn decode(bytes: &[u8]) -> Result<KeyValue, String> {
        KeyValue::decode(bytes)
    }

    fn apply(change: &KeyChange, old: &KeyValue, attempt: &Attempt<'_>) -> KeyVerdict {
        let fresh = without_the_aged(old, attempt);
        let (new, answer) = match change {
            KeyChange::Get if mutant::is_on(Mutant::AbsentUnagreed) => {
                let answer = KeyAnswer::Seen(look(&fresh, attempt));
                return Verdict::Unchanged(answer);
            }
            KeyChange::Get | KeyChange::Tidy => {
                let answer = KeyAnswer::Seen(look(&fresh, attempt));
                (fresh, answer)
            }
            KeyChange::Write(mutation) => match write(mutation, &fresh, attempt) {
                Ok((new, written)) => (new, KeyAnswer::Written(written)),
                Err(refused) => (fresh, KeyAnswer::Refused(refused)),
            },
        };
        if new == *old { Verdict::Unchanged(answer) } else { Verdict::Changed(new, answer) }
    }

    fn is_glance(change: &KeyChange) -> bool {
        Self::is_look(change)
    }

    fn is_look(change: &KeyChange) -> bool {
        matches!(change, KeyChange::Get | KeyChange::Tidy)
    }

    fn stamps(value: &KeyValue) -> Vec<(Stamp, Duration)> {
        value.stamps()
    }

    fn is_guarded(value: &KeyValue) -> bool {
        !value.stamps().is_empty()
    }

    fn weight(value: &KeyValue) -> usize {
        let data = value.stored.as_ref().map_or(0, |stored| stored.data.len());
        data + value.requests.len() * size_of::<Request>()
    }

    fn is_listed(value: &KeyValue) -> bool {
        value.says_something()
    }

    fn publish(old: &KeyValue, new: &KeyValue) -> Publish {
        // Who watches looks when the value can have expired, and so has to know of another TTL.
        let expiry = |value: &KeyValue| value.stored.as_ref().and_then(|stored| stored.expiry);
        let announce = old.version != new.version || expiry(old) != expiry(new);
        Publish { announce, wake: Vec::new() }
    }
}

fn stamp(ordinal: u8, attempt: &Attempt<'_>) -> Stamp {
    Stamp { ballot: attempt.ballot, ordinal }
}

fn look(value: &KeyValue, attempt: &Attempt<'_>) -> Seen {
    Seen { entry: value.entry(attempt.ages), version: value.version, writes: value.writes }
}

fn without_the_aged(old: &KeyValue, attempt: &Attempt<'_>) -> KeyValue {
    let mut value = old.clone();
    if value.has_expired(attempt.ages) {
        remove(&mut value, attempt);
    }
    let aged = |stamp: Option<Stamp>, length| stamp.is_some_and(|stamp| attempt.ages.is_aged(stamp, length));
    let requests_age = !mutant::is_on(Mutant::RequestsNeverAge);
    if requests_age && aged(value.requests_stamp, limits::REQUESTS_KEPT) {
        value.requests.clear();
        value.requests_stamp = None;
    }
    if aged(value.fences_stamp, limits::FENCES_KEPT) {
        value.fences.clear();
        value.fences_stamp = None;
    }
    value
}

/// The value is gone. Who was fenced off while there was one stays so for a while.
fn remove(value: &mut KeyValue, attempt: &Attempt<'_>) {
    value.stored = None;
    wrote(value, attempt);
    if mutant::is_on(Mutant::FencesGoWithValue) {
        value.fences.clear();
    }
    value.fences_stamp = (!value.fences.is_empty()).then(|| stamp(FENCES_STAMP, attempt));
}

/// Puts a value there.
fn store(value: &mut KeyValue, data: Bytes, expiry: Option<Expiry>, attempt: &Attempt<'_>) {
    value.stored = Some(Stored { data, expiry });
    value.fences_stamp = None;
    wrote(value, attempt);
}

/// The tokens of a register's attempts grow, so no version comes twice, however often the key was removed and forgotten.
fn wrote(value: &mut KeyValue, attempt: &Attempt<'_>) {
    value.writes += 1;
    value.version = attempt.token();
    if mutant::is_on(Mutant::VersionsCounted) {
        value.version = Token::ZERO.plus(value.writes);
    }
}

fn write(mutation: &Mutation, old: &KeyValue, attempt: &Attempt<'_>) -> Result<(KeyValue, Written), Refused> {
    if let Some(done) = done_before(mutation, old)? {
        return Ok((old.clone(), Written { effect: done.into(), previous: None, repeated: true }));
    }
    check_fence(mutation.fence.as_ref(), old)?;
    let mut new = old.clone();
    let effect = carry_out(&mutation.write, &mut new, attempt)?;
    if let Some(fence) = &mutation.fence {
        note_fence(fence, &mut new, attempt);
    }
    let is_no_op =
        matches!(effect, Effect::Deleted { version: None } | Effect::Touched { version: None, .. });
    let remembered = mutation.request.filter(|_| !is_no_op || !mutant::is_on(Mutant::NoOpUnremembered));
    if let Some(id) = remembered {
        let (fingerprint, effect) = (fingerprint(mutation), StoredEffect::from(&effect));
        new.requests.push(Request { id, fingerprint, effect });
        let surplus = new.requests.len().saturating_sub(limits::REQUESTS_MAX);
        new.requests.drain(..surplus);
        new.requests_stamp = Some(stamp(REQUESTS_STAMP, attempt));
    }
    let previous = mutation.previous.then(|| old.entry(attempt.ages)).flatten();
    Ok((new, Written { effect, previous, repeated: false }))
}

/// What the request did when it came first, if this is a repeat.
fn done_before(mutation: &Mutation, old: &KeyValue) -> Result<Option<StoredEffect>, Refused> {
    let Some(id) = mutation.request.filter(|_| !mutant::is_on(Mutant::RequestIdIgnored)) else {
        return Ok(None);
    };
    match old.requests.iter().find(|request| request.id == id) {
        Some(request) if request.fingerprint != fingerprint(mutation) => Err(Refused::RequestIdReused),
        // Fingerprints are short, and who wants to can make two that are the same.
        Some(request) if !answers(request.effect, &mutation.write) => Err(Refused::RequestIdReused),
        Some(request) => Ok(Some(request.effect)),
        None => Ok(None),
    }
}

/// Whether a write of this kind can have done that.
fn answers(effect: StoredEffect, write: &Write) -> bool {
    matches!(
        (effect, write),
        (StoredEffect::Set(..), Write::Set { .. })
            | (StoredEffect::Deleted(..), Write::Delete { .. })
            | (StoredEffect::Counted(..), Write::Increment { .. })
            | (StoredEffect::Touched(..), Write::Touch { .. })
    )
}

/// Lower than the highest is refused. Equal is the same holder, who may write more than once.
fn check_fence(fence: Option<&Fence>, old: &KeyValue) -> Result<(), Refused> {
    let Some(fence) = fence else { return Ok(()) };
    match old.fences.iter().find(|(lock, _)| lock == fence.lock.as_str()) {
        Some((_, highest)) if fence.token < *highest && !mutant::is_on(Mutant::FenceIgnored) => {
            Err(Refused::Fenced(*highest))
        }
        Some((_, highest)) if fence.token == *highest && mutant::is_on(Mutant::FenceRefusesEqual) => {
            Err(Refused::Fenced(*highest))
        }
        Some(_) => Ok(()),
        None if old.fences.len() >= limits::FENCES_MAX => Err(Refused::TooManyFences),
        None => Ok(()),
    }
}

fn note_fence(fence: &Fence, new: &mut KeyValue, attempt: &Attempt<'_>) {
    match new.fences.iter_mut().find(|(lock, _)| lock == fence.lock.as_str()) {
        Some((_, highest)) => *highest = fence.token.max(*highest),
        None => new.fences.push((fence.lock.as_str().to_owned(), fence.token)),
    }
    if new.stored.is_none() {
        new.fences_stamp = Some(stamp(FENCES_STAMP, attempt));
    }
}

fn carry_out(write: &Write, new: &mut KeyValue, attempt: &Attempt<'_>) -> Result<Effect, Refused> {
    let expires = |ttl: Option<Duration>| {
        ttl.map(|ttl| Expiry { stamp: stamp(EXPIRY_STAMP, attempt), ttl_ms: millis(ttl) })
    };
    let current = new.stored.as_ref().map(|_| new.version);
    match write {
        Write::Set { data, ttl, precondition } => {
            let met = match precondition {
                Precondition::None => true,
                Precondition::Absent => current.is_none(),
                Precondition::Present => current.is_some(),
                Precondition::Version(version) => current == Some(*version),
            };
            if !met {
                return Err(Refused::Precondition(current));
            }
            store(new, data.clone(), expires(*ttl), attempt);
            Ok(Effect::Set { version: new.version, ttl: *ttl })
        }
        Write::Delete { version } => {
            if version.is_some() && current != *version {
                return Err(Refused::Precondition(current));
            }
            if current.is_none() {
                return Ok(Effect::Deleted { version: None });
            }
            remove(new, attempt);
            Ok(Effect::Deleted { version: Some(new.version) })
        }
        Write::Increment { delta, initial, ttl } => {
            let number = match &new.stored {
                Some(stored) => integer(&stored.data).ok_or(Refused::NotAnInteger)?,
                None => *initial,
            };
            let sum = number.checked_add(*delta).ok_or(Refused::Overflow(number))?;
            let kept = new.stored.as_ref().and_then(|stored| stored.expiry);
            store(new, Bytes::from(sum.to_string()), expires(*ttl).or(kept), attempt);
            Ok(Effect::Counted { number: sum, version: new.version })
        }
        Write::Touch { ttl } => {
            if let Some(stored) = &mut new.stored {
                stored.expiry = expires(*ttl);
            }
            Ok(Effect::Touched { version: current, ttl: *ttl })
        }
    }
}

/// A number as [`Write::Increment`] writes it. Other ways to write the same number are not its, and stay as they are.
fn integer(data: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(data).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == data).then_some(number)
}

/// Tells requests apart that have one id. Not what came with them by another way: whether the value before is wanted.
fn fingerprint(mutation: &Mutation) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut number = |number: u64| hasher.update(&number.to_be_bytes());
    let ttl = |ttl: &Option<Duration>| ttl.map_or(u64::MAX, millis);
    let data = match &mutation.write {
        Write::Set { data, ttl: length, precondition } => {
            let (tag, version) = match precondition {
                Precondition::None => (0, 0),
                Precondition::Absent => (1, 0),
                Precondition::Present => (2, 0),
                Precondition::Version(version) => (3, version.get()),
            };
            [1, ttl(length), tag, version].into_iter().for_each(&mut number);
            data.clone()
        }
        Write::Delete { version } => {
            [2, version.map_or(0, Token::get)].into_iter().for_each(&mut number);
            Bytes::new()
        }
        Write::Increment { delta, initial, ttl: length } => {
            [3, *delta as u64, *initial as u64, ttl(length)].into_iter().for_each(&mut number);
            Bytes::new()
        }
        Write::Touch { ttl: length } => {
            [4, ttl(length)].into_iter().for_each(&mut number);
            Bytes::new()
        }
    };
    hasher.update(&data);
    hasher.finalize()
}
