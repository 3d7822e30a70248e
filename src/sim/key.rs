//! [`KeyModel`]: a key as it must seem to its clients: one value, changed by one call after the other.
//!
//! The rules are written down here once more, from the promises and not from [`crate::kv`], so that the two can differ.
//! What an answer does not tell stays open in the state: who wrote without an answer has made a version that nobody
//! knows until somebody reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::linearizable::Model;
use crate::ids::LockName;
use crate::kv::change::Refused;
use crate::kv::{Effect, Entry, Fence, Mutation, Precondition, Write, Written};
use crate::runtime::Moment;
use crate::token::Token;

/// Clocks of nodes may run a thousandth fast; so much earlier, at least, a value may be gone.
const DRIFT: u32 = 500;

/// What a client asks of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyAsked {
    /// The value.
    Get,
    /// A write.
    Write(Mutation),
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyTold {
    /// The value.
    Seen(Option<Entry>),
    /// A write was done.
    Written(Written),
    /// A write was not done.
    Refused(Refused),
}

/// What takes effect once: a call, or all sends of one request together.
#[derive(Clone, Debug)]
pub struct KeyOperation {
    /// What was asked.
    pub asked: KeyAsked,
    /// When it began.
    pub start: Moment,
    /// When its answer came.
    pub end: Option<Moment>,
    /// The answer.
    pub told: Option<KeyTold>,
}

/// The model.
#[derive(Debug)]
pub struct KeyModel;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held {
    data: Bytes,
    /// `None` where nobody has been told.
    version: Option<Token>,
    /// A moment before which it can't expire; `None` where it stays for good.
    ripe: Option<Moment>,
}

/// What [`KeyModel`] knows between two operations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyState {
    held: Option<Held>,
    /// The last version that is known: of a value or of a removal. All that follow are higher.
    known: Token,
    /// The highest token of each lock that it was written under.
    fences: BTreeMap<LockName, Token>,
    /// It is known to be later than this: a value has expired.
    later_than: Option<Moment>,
}

impl KeyState {
    /// The operation takes effect after this state; what of it then matters still. `None` if it was over by then.
    fn reached_by(&self, operation: &KeyOperation, open: bool) -> Option<Self> {
        let end = operation.end.filter(|_| !open);
        match self.later_than {
            Some(moment) if end.is_some_and(|end| end <= moment) => None,
            // The order of starts and ends keeps what comes next in time by itself.
            Some(moment) if operation.start >= moment => Some(Self { later_than: None, ..self.clone() }),
            Some(_) | None => Some(self.clone()),
        }
    }

    /// Its value has expired, if it can have.
    fn expire(&self) -> Option<Self> {
        let ripe = self.held.as_ref()?.ripe?;
        Some(Self { held: None, later_than: self.later_than.max(Some(ripe)), ..self.clone() })
    }

    fn version(&self) -> Option<Token> {
        self.held.as_ref()?.version
    }

    /// Somebody is told which version the value has; `None` for no value.
    fn shows_version(mut self, told: Option<Token>) -> Option<Self> {
        let (known, held) = (self.known, self.held.as_mut());
        match (held, told) {
            (None, None) => Some(self),
            (Some(held), Some(told)) => match held.version {
                Some(version) => (version == told).then_some(self),
                None if told > known => {
                    held.version = Some(told);
                    self.known = told;
                    Some(self)
                }
                None => None,
            },
            (None, Some(_)) | (Some(_), None) => None,
        }
    }

    /// Somebody is told of the value.
    fn shows(self, told: Option<&Entry>) -> Option<Self> {
        let same = match (&self.held, told) {
            (None, None) => true,
            (Some(held), Some(told)) => {
                held.data == told.data && held.ripe.is_some() == told.remaining.is_some()
            }
            _ => false,
        };
        if same { self.shows_version(told.map(|entry| entry.version)) } else { None }
    }

    /// A value or a removal of this version; whoever is not told does not know which.
    fn makes_version(&mut self, told: Option<Token>) -> Option<()> {
        if let Some(version) = told {
            if version <= self.known {
                return None;
            }
            self.known = version;
        }
        Some(())
    }

    fn check_fence(&self, fence: Option<&Fence>) -> Result<(), Refused> {
        let highest = fence.and_then(|fence| Some((fence, self.fences.get(&fence.lock)?)));
        match highest {
            Some((fence, highest)) if fence.token < *highest => Err(Refused::Fenced(*highest)),
            Some(_) | None => Ok(()),
        }
    }

    /// Why the write is not done here, if it is not.
    fn refuses(&self, mutation: &Mutation) -> Option<Refused> {
        if let Err(fenced) = self.check_fence(mutation.fence.as_ref()) {
            return Some(fenced);
        }
        let met = match &mutation.write {
            Write::Set { precondition, .. } => match precondition {
                Precondition::None => true,
                Precondition::Absent => self.held.is_none(),
                Precondition::Present => self.held.is_some(),
                // Whoever asks for a version was told of it, and then it is known here, too.
                Precondition::Version(version) => self.version() == Some(*version),
            },
            Write::Delete { version: Some(version) } => self.version() == Some(*version),
            Write::Delete { version: None } | Write::Touch { .. } => true,
            Write::Increment { delta, initial, .. } => {
                let number = match &self.held {
                    Some(held) => match number_of(&held.data) {
                        Some(number) => number,
                        None => return Some(Refused::NotAnInteger),
                    },
                    None => *initial,
                };
                return number.checked_add(*delta).is_none().then_some(Refused::Overflow(number));
            }
        };
        (!met).then(|| Refused::Precondition(self.version()))
    }

    /// What the write leaves, if it is done as `told`. Of one without an answer nobody knows the version.
    fn writes(&self, mutation: &Mutation, start: Moment, told: Option<&Effect>) -> Option<Self> {
        let mut new = self.clone();
        if let Some(fence) = &mutation.fence {
            let highest = new.fences.entry(fence.lock.clone()).or_default();
            *highest = fence.token.max(*highest);
        }
        // Nodes hold it since some moment after the start.
        let ripe = |ttl: Option<Duration>| ttl.map(|ttl| start + (ttl - ttl / DRIFT));
        match &mutation.write {
            Write::Set { data, ttl, .. } => {
                let version = match told {
                    None => None,
                    Some(Effect::Set { version, ttl: told }) if told == ttl => Some(*version),
                    Some(_) => return None,
                };
                new.makes_version(version)?;
                new.held = Some(Held { data: data.clone(), version, ripe: ripe(*ttl) });
            }
            Write::Delete { .. } => {
                let version = match told {
                    None => None,
                    // Where there was nothing to remove there is no removal to tell of.
                    Some(Effect::Deleted { version }) if version.is_some() == self.held.is_some() => *version,
                    Some(_) => return None,
                };
                new.makes_version(version)?;
                new.held = None;
            }
            Write::Increment { delta, initial, ttl } => {
                let number = match &self.held {
                    Some(held) => number_of(&held.data)?,
                    None => *initial,
                };
                let sum = number.checked_add(*delta)?;
                let version = match told {
                    None => None,
                    Some(Effect::Counted { number, version }) if *number == sum => Some(*version),
                    Some(_) => return None,
                };
                new.makes_version(version)?;
                let kept = self.held.as_ref().and_then(|held| held.ripe);
                new.held = Some(Held { data: sum.to_string().into(), version, ripe: ripe(*ttl).or(kept) });
            }
            Write::Touch { ttl } => {
                match told {
                    None => {}
                    Some(Effect::Touched { version, ttl: told }) if told == ttl => {
                        new = new.shows_version(*version)?;
                    }
                    Some(_) => return None,
                }
                if let Some(held) = &mut new.held {
                    held.ripe = ripe(*ttl);
                }
            }
        }
        Some(new)
    }

    /// What the operation leaves; `None` where its answer contradicts this state.
    fn after(&self, operation: &KeyOperation, open: bool) -> Option<Self> {
        let mutation = match (&operation.asked, &operation.told) {
            (KeyAsked::Get, Some(KeyTold::Seen(told))) if !open => return self.clone().shows(told.as_ref()),
            (KeyAsked::Get, _) => return open.then(|| self.clone()),
            (KeyAsked::Write(mutation), _) => mutation,
        };
        let refused = self.refuses(mutation);
        match operation.told.as_ref().filter(|_| !open) {
            None if refused.is_some() => Some(self.clone()),
            None => self.writes(mutation, operation.start, None),
            Some(KeyTold::Refused(Refused::Precondition(told))) => match refused? {
                Refused::Precondition(_) => self.clone().shows_version(*told),
                _ => None,
            },
            Some(KeyTold::Refused(told)) => (refused? == *told).then(|| self.clone()),
            Some(KeyTold::Written(_)) if refused.is_some() => None,
            Some(KeyTold::Written(Written { effect, previous, repeated })) => {
                let wanted = mutation.previous && !repeated;
                let before = if wanted { self.clone().shows(previous.as_ref())? } else { self.clone() };
                before.writes(mutation, operation.start, Some(effect))
            }
            Some(KeyTold::Seen(_)) => None,
        }
    }
}

/// A number as an increment reads it: decimal, without anything that another way to write it would have.
fn number_of(data: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(data).ok()?;
    text.parse::<i64>().ok().filter(|number| number.to_string() == text)
}

impl Model for KeyModel {
    type State = KeyState;
    type Call = KeyOperation;

    fn initial(&self) -> KeyState {
        KeyState::default()
    }

    fn step(&self, state: &KeyState, call: &KeyOperation, open: bool) -> Vec<KeyState> {
        let mut ways: Vec<KeyState> = Vec::with_capacity(2);
        for before in [Some(state.clone()), state.expire()].into_iter().flatten() {
            let after = before.reached_by(call, open).and_then(|before| before.after(call, open));
            // Where expiry makes no difference it need not have been.
            let differs = |after: &KeyState| {
                ways.first()
                    .is_none_or(|first| *first != KeyState { later_than: first.later_than, ..after.clone() })
            };
            ways.extend(after.filter(differs));
        }
        ways
    }

    fn are_alike(&self, one: &KeyOperation, other: &KeyOperation) -> bool {
        let (KeyAsked::Write(one), KeyAsked::Write(other)) = (&one.asked, &other.asked) else { return false };
        // What expires counts from its call's start.
        let stays = match &one.write {
            Write::Set { ttl, .. } | Write::Increment { ttl, .. } | Write::Touch { ttl } => ttl.is_none(),
            Write::Delete { .. } => true,
        };
        stays && one.write == other.write && one.fence == other.fence
    }
}

fn until(ttl: &Option<Duration>) -> String {
    ttl.map_or_else(String::new, |ttl| format!(" for {ttl:?}"))
}

fn of_version(version: &Option<Token>) -> String {
    version.map_or_else(|| "nothing".to_owned(), |version| format!("@{version}"))
}

struct Shown<'a>(&'a Entry);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { data, version, remaining } = self.0;
        write!(f, "{} @{version}{}", String::from_utf8_lossy(data), until(remaining))
    }
}

impl fmt::Display for KeyAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Write(mutation) = self else { return write!(f, "get") };
        match &mutation.write {
            Write::Set { data, ttl, precondition } => {
                write!(f, "set {}{}", String::from_utf8_lossy(data), until(ttl))?;
                match precondition {
                    Precondition::None => {}
                    Precondition::Absent => write!(f, " if absent")?,
                    Precondition::Present => write!(f, " if present")?,
                    Precondition::Version(version) => write!(f, " if @{version}")?,
                }
            }
            Write::Delete { version: None } => write!(f, "delete")?,
            Write::Delete { version: Some(version) } => write!(f, "delete @{version}")?,
            Write::Increment { delta, initial, ttl } => {
                write!(f, "add {delta} (from {initial}){}", until(ttl))?
            }
            Write::Touch { ttl } => write!(f, "touch{}", until(ttl))?,
        }
        if let Some(Fence { lock, token }) = &mutation.fence {
            write!(f, ", {lock} {token}")?;
        }
        if let Some(id) = mutation.request {
            write!(f, ", request {}.{}", id.0, id.1)?;
        }
        Ok(())
    }
}

impl fmt::Display for KeyTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seen(None) => write!(f, "nothing"),
            Self::Seen(Some(entry)) => write!(f, "{}", Shown(entry)),
            Self::Refused(Refused::Precondition(version)) => write!(f, "no: {}", of_version(version)),
            Self::Refused(refused) => write!(f, "no: {refused:?}"),
            Self::Written(Written { effect, previous, repeated }) => {
                match effect {
                    Effect::Set { version, .. } => write!(f, "set @{version}")?,
                    Effect::Deleted { version } => write!(f, "deleted {}", of_version(version))?,
                    Effect::Counted { number, version } => write!(f, "{number} @{version}")?,
                    Effect::Touched { version, .. } => write!(f, "touched {}", of_version(version))?,
                }
                if let Some(previous) = previous {
                    write!(f, ", was {}", Shown(previous))?;
                }
                if *repeated { write!(f, ", again") } else { Ok(()) }
            }
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.held {
            None => write!(f, "nothing after @{}", self.known)?,
            Some(Held { data, version, ripe }) => {
                write!(f, "{} ", String::from_utf8_lossy(data))?;
                match version {
                    Some(version) => write!(f, "@{version}")?,
                    None => write!(f, "@ more than {}", self.known)?,
                }
                if let Some(ripe) = ripe {
                    write!(f, ", which can't expire before {ripe:?}")?;
                }
            }
        }
        for (lock, token) in &self.fences {
            write!(f, ", {lock} {token}")?;
        }
        if let Some(moment) = self.later_than {
            write!(f, ", later than {moment:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
