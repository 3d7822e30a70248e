//! [`CellKind`]: a register for the simulation alone, that holds a number; and [`CellModel`], what its clients must see.
//!
//! Nothing in the number says whose change made it, so that nothing but the retry rule keeps an [`CellChange::Add`] from
//! being applied twice. A number may expire: then it stays until a change finds it aged, and that change removes it
//! before it does anything else. An added or swapped number keeps the time of the one before it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::history::{Call, Fate};
use super::linearizable::Model;
use crate::node::operation::Stamp;
use crate::register::{Attempt, Kind, Publish, Verdict};
use crate::runtime::Moment;

/// Cells.
#[derive(Debug)]
pub enum CellKind {}

/// What a cell holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellValue(pub Option<Held>);

/// A number, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The number.
    pub number: u64,
    /// What ages, and how long it may, in milliseconds; `None` for a number that stays.
    pub lease: Option<(Stamp, u64)>,
}

/// What can be done to a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellChange {
    /// Nothing, unless the number has expired.
    Look,
    /// Puts a number there that stays.
    Write(u64),
    /// Puts a number there that expires.
    WriteFor {
        /// The number.
        number: u64,
        /// For how long, in milliseconds.
        ttl_ms: u64,
    },
    /// Puts `new` where `expected` is found.
    CompareAndSet {
        /// What has to be there; `None` for nothing.
        expected: Option<u64>,
        /// What is put there.
        new: u64,
    },
    /// Adds to the number; to zero where there is none.
    Add(u64),
    /// Takes the number away.
    Remove,
}

/// What a change found and left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellAnswer {
    /// The number before it; nothing where that had expired.
    pub old: Option<u64>,
    /// The number after it.
    pub new: Option<u64>,
    /// It found a number that had expired, and removed it.
    pub expired: bool,
}

/// How long the number that a change leaves stays.
enum Stay {
    /// As long as the one before it.
    AsBefore,
    /// Until it is changed.
    ForGood,
    /// So many milliseconds.
    For(u64),
}

/// What a change makes of a number that has not expired.
fn effect(change: &CellChange, old: Option<u64>) -> (Option<u64>, Stay) {
    match change {
        CellChange::Look => (old, Stay::AsBefore),
        CellChange::Write(number) => (Some(*number), Stay::ForGood),
        CellChange::WriteFor { number, ttl_ms } => (Some(*number), Stay::For(*ttl_ms)),
        CellChange::CompareAndSet { expected, new } if old == *expected => (Some(*new), Stay::AsBefore),
        CellChange::CompareAndSet { .. } => (old, Stay::AsBefore),
        CellChange::Add(number) => (Some(old.unwrap_or_default().wrapping_add(*number)), Stay::AsBefore),
        CellChange::Remove => (None, Stay::ForGood),
    }
}

impl Kind for CellKind {
    // Of no kind that a daemon has (`crate::node::keyspace`).
    const LETTER: char = 'x';
    type Value = CellValue;
    type Change = CellChange;
    type Answer = CellAnswer;

    fn encode(value: &CellValue) -> Bytes {
        rmp_serde::to_vec(value).expect("a cell has nothing that MessagePack can't hold").into()
    }

    fn decode(bytes: &[u8]) -> Result<CellValue, String> {
        if bytes.is_empty() {
            return Ok(CellValue::default());
        }
        rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
    }

    fn apply(change: &CellChange, old: &CellValue, attempt: &Attempt<'_>) -> Verdict<CellValue, CellAnswer> {
        let lease = old.0.as_ref().and_then(|held| held.lease);
        let expired =
            lease.is_some_and(|(stamp, ttl_ms)| attempt.ages.is_aged(stamp, Duration::from_millis(ttl_ms)));
        let before = if expired { None } else { old.0.as_ref() };
        let (number, stay) = effect(change, before.map(|held| held.number));
        let lease = match stay {
            Stay::AsBefore => before.and_then(|held| held.lease),
            Stay::ForGood => None,
            Stay::For(ttl_ms) => Some((Stamp { ballot: attempt.ballot, ordinal: 0 }, ttl_ms)),
        };
        let new = CellValue(number.map(|number| Held { number, lease }));
        let answer = CellAnswer { old: before.map(|held| held.number), new: number, expired };
        if new == *old { Verdict::Unchanged(answer) } else { Verdict::Changed(new, answer) }
    }

    fn is_glance(change: &CellChange) -> bool {
        *change == CellChange::Look
    }

    fn stamps(value: &CellValue) -> Vec<(Stamp, Duration)> {
        let lease = value.0.iter().filter_map(|held| held.lease);
        lease.map(|(stamp, ttl_ms)| (stamp, Duration::from_millis(ttl_ms))).collect()
    }

    /// What expires is guarded, so that looks at it take the way of the soft prepare.
    fn is_guarded(value: &CellValue) -> bool {
        value.0.as_ref().is_some_and(|held| held.lease.is_some())
    }

    fn is_listed(value: &CellValue) -> bool {
        value.0.is_some()
    }

    fn publish(_: &CellValue, _: &CellValue) -> Publish {
        Publish::default()
    }
}

/// What a client asks of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellAsked {
    /// The number as it is stored, expired or not.
    Read,
    /// A change.
    Change(CellChange),
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellTold {
    /// The number as it is stored.
    Number(Option<u64>),
    /// What the change found and left.
    Change(CellAnswer),
}

/// A client's call of a cell.
pub type CellCall = Call<CellAsked, CellTold>;

/// A cell as it must seem to its clients: one number, changed by one call after the other.
#[derive(Debug)]
pub struct CellModel;

/// What [`CellModel`] knows between two calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CellState {
    /// The number, and a moment before which it can't expire.
    held: Option<(u64, Option<Moment>)>,
    /// It is known to be later than this: a number has expired.
    later_than: Option<Moment>,
}

impl CellState {
    fn number(&self) -> Option<u64> {
        self.held.map(|(number, _)| number)
    }

    /// The call takes effect after this state; what of it then matters still. `None` if the call was over by then.
    fn reached_by(&self, call: &CellCall, open: bool) -> Option<Self> {
        // For an open call there is no end, whatever its client saw.
        let end = call.end.filter(|_| !open);
        match self.later_than {
            Some(moment) if end.is_some_and(|end| end <= moment) => None,
            // The order of starts and ends keeps what comes next in time by itself.
            Some(moment) if call.start >= moment => Some(Self { later_than: None, ..self.clone() }),
            Some(_) | None => Some(self.clone()),
        }
    }

    /// Its number has expired, if it can have.
    fn expire(&self) -> Option<Self> {
        let ripe = self.held.and_then(|(_, ripe)| ripe)?;
        Some(Self { held: None, later_than: self.later_than.max(Some(ripe)) })
    }

    fn change(&self, change: &CellChange, start: Moment) -> Self {
        let (number, stay) = effect(change, self.number());
        let ripe = match stay {
            Stay::AsBefore => self.held.and_then(|(_, ripe)| ripe),
            Stay::ForGood => None,
            // Nodes hold it since some moment after the start.
            Stay::For(ttl_ms) => Some(start + Duration::from_millis(ttl_ms)),
        };
        Self { held: number.map(|number| (number, ripe)), later_than: self.later_than }
    }
}

impl Model for CellModel {
    type State = CellState;
    type Call = CellCall;

    fn initial(&self) -> CellState {
        CellState::default()
    }

    fn step(&self, state: &CellState, call: &CellCall, open: bool) -> Vec<CellState> {
        let told = match &call.fate {
            Fate::Answered(told) if !open => Some(told),
            Fate::Answered(_) | Fate::UnderWay | Fate::NotApplied(_) | Fate::Unknown(_) => None,
        };
        let change = match (&call.asked, told) {
            (CellAsked::Change(change), None | Some(CellTold::Change(_))) => change,
            (CellAsked::Read, Some(CellTold::Number(number))) => {
                let reached = state.reached_by(call, open).filter(|_| *number == state.number());
                return reached.into_iter().collect();
            }
            // A read that nobody was told of might as well not have been.
            (CellAsked::Read, None) => return vec![state.clone()],
            (CellAsked::Read, Some(CellTold::Change(_)))
            | (CellAsked::Change(_), Some(CellTold::Number(_))) => return Vec::new(),
        };
        let ways = [(Some(state.clone()), false), (state.expire(), true)];
        let ways = ways.into_iter().filter_map(|(before, expired)| {
            let before = before?.reached_by(call, open)?;
            let after = before.change(change, call.start);
            let answer = CellAnswer { old: before.number(), new: after.number(), expired };
            let fits = told.is_none_or(|told| *told == CellTold::Change(answer));
            fits.then_some(after)
        });
        ways.collect()
    }

    fn are_alike(&self, one: &CellCall, other: &CellCall) -> bool {
        // What expires counts from its call's start.
        let expires = matches!(one.asked, CellAsked::Change(CellChange::WriteFor { .. }));
        one.asked == other.asked && !expires
    }
}

struct Number(Option<u64>);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "{number}"),
            None => write!(f, "nothing"),
        }
    }
}

impl fmt::Display for CellAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read => write!(f, "read"),
            Self::Change(CellChange::Look) => write!(f, "look"),
            Self::Change(CellChange::Write(number)) => write!(f, "write {number}"),
            Self::Change(CellChange::WriteFor { number, ttl_ms }) => {
                write!(f, "write {number} for {ttl_ms} ms")
            }
            Self::Change(CellChange::CompareAndSet { expected, new }) => {
                write!(f, "{} to {new}", Number(*expected))
            }
            Self::Change(CellChange::Add(number)) => write!(f, "add {number}"),
            Self::Change(CellChange::Remove) => write!(f, "remove"),
        }
    }
}

impl fmt::Display for CellTold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{}", Number(*number)),
            Self::Change(CellAnswer { old, new, expired }) => {
                let expired = if *expired { ", after one that had expired" } else { "" };
                write!(f, "{} -> {}{expired}", Number(*old), Number(*new))
            }
        }
    }
}

impl fmt::Display for CellState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Number(self.number()))?;
        if let Some((_, Some(ripe))) = self.held {
            write!(f, ", which can't expire before {ripe:?}")?;
        }
        if let Some(moment) = self.later_than {
            write!(f, ", later than {moment:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProposerId;
    use crate::quorum::ClusterSize;
    use crate::register::Ages;
    use crate::sim::linearizable::{Timed, Verdict as Found, check};
    use crate::token::{Ballot, Token};

    fn ballot(token: u64) -> Ballot {
        Ballot { token: Token::new(token).unwrap(), proposer: ProposerId(1) }
    }

    fn held(number: u64, lease: Option<(u64, u64)>) -> CellValue {
        let stamp = |token| Stamp { ballot: ballot(token), ordinal: 0 };
        CellValue(Some(Held { number, lease: lease.map(|(token, ttl_ms)| (stamp(token), ttl_ms)) }))
    }

    #[test]
    fn a_change_removes_what_has_expired_before_it_does_anything_else() {
        use CellChange::{Add, CompareAndSet, Look, Remove, Write, WriteFor};
        let (nothing, stays) = (CellValue(None), held(5, None));
        let (fresh, aged) = (held(5, Some((1, 9_000))), held(5, Some((1, 1_000))));
        let swap = |expected, new| CompareAndSet { expected, new };
        let for_2_s = WriteFor { number: 7, ttl_ms: 2_000 };
        // The stamp of token 1 has been held for two seconds; the attempt has token 2.
        // Old value, change: old and new number, expired?, new value if it changes.
        for (old, change, (before, after, expired), new) in [
            (&nothing, Look, (None, None, false), None),
            (&stays, Look, (Some(5), Some(5), false), None),
            (&fresh, Look, (Some(5), Some(5), false), None),
            (&aged, Look, (None, None, true), Some(&nothing)),
            (&fresh, Write(5), (Some(5), Some(5), false), Some(&stays)),
            (&stays, Write(5), (Some(5), Some(5), false), None),
            (&nothing, for_2_s, (None, Some(7), false), Some(&held(7, Some((2, 2_000))))),
            (&fresh, Add(2), (Some(5), Some(7), false), Some(&held(7, Some((1, 9_000))))),
            (&aged, Add(2), (None, Some(2), true), Some(&held(2, None))),
            (&fresh, swap(Some(5), 6), (Some(5), Some(6), false), Some(&held(6, Some((1, 9_000))))),
            (&fresh, swap(Some(4), 6), (Some(5), Some(5), false), None),
            (&aged, swap(Some(5), 6), (None, None, true), Some(&nothing)),
            (&aged, swap(None, 6), (None, Some(6), true), Some(&held(6, None))),
            (&stays, Remove, (Some(5), None, false), Some(&nothing)),
            (&nothing, Remove, (None, None, false), None),
        ] {
            let size = ClusterSize::new(3).unwrap();
            let age = vec![(Stamp { ballot: ballot(1), ordinal: 0 }, Duration::from_secs(2))];
            let ages = Ages::of(size, vec![age.clone(), age], 0);
            let verdict = CellKind::apply(&change, old, &Attempt::new(ballot(2), &ages));
            let answer = CellAnswer { old: before, new: after, expired };
            let expected = match new {
                Some(new) => Verdict::Changed(new.clone(), answer),
                None => Verdict::Unchanged(answer),
            };
            assert_eq!(verdict, expected, "{change:?} of {old:?}");
            assert_eq!(CellKind::decode(&CellKind::encode(old)).unwrap(), *old);
        }
    }

    /// A call at these milliseconds; its places among all events are the same numbers.
    fn call(start: u64, end: u64, asked: CellAsked, fate: Fate<CellTold>) -> CellCall {
        let at = |ms| Moment::from_start(Duration::from_millis(ms));
        Call { client: 1, asked, start: at(start), end: Some(at(end)), began: start, ended: Some(end), fate }
    }

    fn changed(old: Option<u64>, new: Option<u64>, expired: bool) -> Fate<CellTold> {
        Fate::Answered(CellTold::Change(CellAnswer { old, new, expired }))
    }

    #[test]
    fn nothing_expires_before_its_time() {
        let write = |start| {
            let asked = CellAsked::Change(CellChange::WriteFor { number: 7, ttl_ms: 100 });
            call(start, start + 5, asked, changed(None, Some(7), false))
        };
        let look = |start, end, old: Option<u64>, expired| {
            call(start, end, CellAsked::Change(CellChange::Look), changed(old, old, expired))
        };
        let lost =
            |start| call(start, start + 1, CellAsked::Change(CellChange::Look), Fate::Unknown(String::new()));
        let read =
            |start, number| call(start, start + 1, CellAsked::Read, Fate::Answered(CellTold::Number(number)));
        for (calls, expected) in [
            (vec![write(0), look(90, 95, Some(7), false)], true),
            (vec![write(0), look(200, 205, Some(7), false)], true),
            (vec![write(0), look(90, 95, None, true)], false),
            (vec![write(0), look(90, 101, None, true)], true),
            (vec![write(0), look(90, 101, None, false)], false),
            (vec![write(0), read(50, None)], false),
            (vec![write(0), look(101, 102, None, true), read(103, Some(7))], false),
            // Whom nobody heard of can have removed it, but not too early either.
            (vec![write(0), lost(10), read(50, None)], false),
            (vec![write(0), lost(10), read(150, None)], true),
            (vec![write(0), lost(10), look(150, 160, None, false)], true),
            (vec![write(0), read(150, None)], false),
        ] {
            let timed: Vec<_> = calls
                .iter()
                .map(|call| {
                    let ended = call.ended.filter(|_| matches!(call.fate, Fate::Answered(_)));
                    Timed { call, began: call.began, ended }
                })
                .collect();
            let found = matches!(check(&CellModel, &timed, 10_000), Found::Linearizable { .. });
            assert_eq!(found, expected, "{calls:?}");
        }
    }
}
