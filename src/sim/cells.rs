//! Clients of [cells](super::cell): they call whichever daemon, note what they are told, and [`judge`] what they noted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, Either};

use super::cell::{CellAsked, CellChange, CellKind, CellModel, CellTold};
use super::daemon::{Daemons, SimDaemon};
use super::history::{Calls, Fate, History};
use super::linearizable::{Timed, Verdict, check, first_unexplained};
use super::random::Random;
use super::world::World;
use crate::register::{RegisterError, Registers};
use crate::runtime::Moment;

/// What all clients of a run noted.
pub type CellHistory = History<CellAsked, CellTold>;

const LOCKED: &str = "no holder of this lock panics";

/// What clients do.
#[derive(Clone, Debug)]
pub struct CellSettings {
    /// So many cells.
    pub keys: u64,
    /// The longest pause between two calls of one client, in milliseconds.
    pub pause_ms: u64,
    /// Calls that the client drops half way, in percent.
    pub impatient: u64,
}

impl Default for CellSettings {
    fn default() -> Self {
        Self { keys: 2, pause_ms: 300, impatient: 5 }
    }
}

/// One client.
pub struct CellClient {
    world: World,
    client: u32,
    random: Random,
    settings: CellSettings,
    history: Arc<Mutex<CellHistory>>,
    /// What it saw last of each cell, for comparisons that have a chance.
    seen: BTreeMap<String, Option<u64>>,
}

/// Calls daemons until `calm`, and then until one change and one read have been answered.
pub async fn run_cell_client(mut client: CellClient, daemons: Arc<Daemons>, calm: impl Fn() -> bool) {
    let (mut changed, mut read) = (false, false);
    while !(changed && read) {
        let was_calm = calm();
        match client.call(&daemons).await {
            Some(CellTold::Number(_)) => read |= was_calm,
            Some(CellTold::Change(_)) => changed |= was_calm,
            None => {}
        }
        client.rest().await;
    }
}

impl CellClient {
    /// A client with a number of its own.
    pub fn new(world: &World, client: u32, settings: CellSettings, history: Arc<Mutex<CellHistory>>) -> Self {
        Self { world: world.clone(), client, random: world.fork(), settings, history, seen: BTreeMap::new() }
    }

    /// One call of one of the daemons that are alive. What it was told, if it was.
    pub async fn call(&mut self, daemons: &Daemons) -> Option<CellTold> {
        let daemon = daemons.pick(&mut self.random)?;
        let key = format!("c{}", self.random.below(self.settings.keys));
        let asked = self.ask(&key);
        let deadline = daemon.now() + Duration::from_millis(50 + self.random.below(4_000));
        let patience = if self.random.chance(self.settings.impatient) {
            Duration::from_millis(self.random.below(20))
        } else {
            // Longer than any deadline and any pause: a call answers by then.
            Duration::from_secs(60)
        };
        let call = self.begin(&key, asked.clone());
        let answer = make(daemon, key.clone(), asked.clone(), deadline);
        let fate = match future::select(answer.boxed(), self.world.sleep(patience)).await {
            Either::Left((fate, _)) => fate,
            // A change that is in line goes on without its caller. A read is its caller's alone.
            Either::Right(_) if asked == CellAsked::Read => Fate::NotApplied("dropped".into()),
            Either::Right(_) => Fate::Unknown("dropped".into()),
        };
        let told = match &fate {
            Fate::Answered(told) => Some(told.clone()),
            Fate::UnderWay | Fate::NotApplied(_) | Fate::Unknown(_) => None,
        };
        if let Some(CellTold::Number(number)) = &told {
            self.seen.insert(key.clone(), *number);
        }
        if let Some(CellTold::Change(answer)) = &told {
            self.seen.insert(key, answer.new);
        }
        self.history.lock().expect(LOCKED).end(call, fate, self.world.now());
        told
    }

    /// The pause between two calls. Often none, so that clients meet.
    pub async fn rest(&mut self) {
        let longest = if self.random.chance(40) { 3 } else { self.settings.pause_ms };
        let pause = Duration::from_micros(self.random.below(longest * 1_000));
        self.world.sleep(pause).await;
    }

    fn begin(&self, key: &str, asked: CellAsked) -> super::history::CallId {
        self.history.lock().expect(LOCKED).begin(key, self.client, asked, self.world.now())
    }

    fn ask(&mut self, key: &str) -> CellAsked {
        let random = &mut self.random;
        // Written numbers seldom meet, so that an old one is known for what it is. Added ones are small and common.
        let number = 100 * random.below(1_000);
        let change = match random.below(100) {
            0..20 => return CellAsked::Read,
            20..33 => CellChange::Look,
            33..43 => CellChange::Write(number),
            43..57 => CellChange::WriteFor { number, ttl_ms: 200 + random.below(3_000) },
            57..70 => {
                let expected = self.seen.get(key).copied().unwrap_or_default();
                CellChange::CompareAndSet { expected, new: number }
            }
            70..96 => CellChange::Add(1 + random.below(3)),
            _ => CellChange::Remove,
        };
        CellAsked::Change(change)
    }
}

async fn make(daemon: Arc<SimDaemon>, key: String, asked: CellAsked, deadline: Moment) -> Fate<CellTold> {
    let (registers, is_read) = (daemon.cells.clone(), asked == CellAsked::Read);
    let call = async move { ask(&registers, &key, asked, deadline).await };
    match daemon.call(call).await {
        Some(fate) => fate,
        None if is_read => Fate::NotApplied("the daemon died".into()),
        None => Fate::Unknown("the daemon died".into()),
    }
}

async fn ask(
    registers: &Registers<CellKind>,
    key: &str,
    asked: CellAsked,
    deadline: Moment,
) -> Fate<CellTold> {
    match asked {
        CellAsked::Read => match registers.read(key, deadline).await {
            Ok(seen) => Fate::Answered(CellTold::Number(seen.value.0.map(|held| held.number))),
            Err(error) => fate_of(&error),
        },
        CellAsked::Change(change) => match registers.change(key, change, deadline).await {
            Ok(committed) => Fate::Answered(CellTold::Change(committed.answer)),
            Err(error) => fate_of(&error),
        },
    }
}

/// What an error promises is held against it: one that says "nothing happened" must have done nothing, ever.
fn fate_of(error: &RegisterError) -> Fate<CellTold> {
    match error {
        RegisterError::OutcomeUnknown => Fate::Unknown("outcome unknown".into()),
        RegisterError::NoQuorum { .. } => Fate::NotApplied("no quorum".into()),
        RegisterError::DeadlineExceeded { .. } => Fate::NotApplied("deadline exceeded".into()),
        RegisterError::Overloaded { .. } => Fate::NotApplied("overloaded".into()),
        RegisterError::ClockTooFarAhead => Fate::NotApplied("clock too far ahead".into()),
        RegisterError::Unreadable { detail } => Fate::NotApplied(format!("unreadable: {detail}")),
    }
}

/// What was judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Calls that had an answer.
    pub answered: usize,
    /// Calls that took no effect.
    pub not_applied: usize,
    /// Calls of which nobody knows.
    pub unknown: usize,
    /// How often the model was asked, for all keys.
    pub steps: u64,
    /// Keys for which the steps did not suffice: nothing is known of them.
    pub undecided: Vec<String>,
}

impl Judged {
    /// One call more.
    pub fn count<A>(&mut self, fate: &Fate<A>) {
        match fate {
            Fate::Answered(_) => self.answered += 1,
            Fate::NotApplied(_) => self.not_applied += 1,
            Fate::UnderWay | Fate::Unknown(_) => self.unknown += 1,
        }
    }
}

/// Whether every cell's calls can be put in one order; see [`super::linearizable`]. For each cell the model is asked at
/// most `steps_max` times.
///
/// # Errors
/// The calls of the first cell that has no order, and which answer nothing explains.
pub fn judge(history: &CellHistory, steps_max: u64) -> Result<Judged, String> {
    let mut judged = Judged::default();
    for (key, calls) in history.keys() {
        calls.0.iter().for_each(|call| judged.count(&call.fate));
        // Which call each of those is that the checker sees.
        let (numbers, timed) = timed(calls);
        match check(&CellModel, &timed, steps_max) {
            Verdict::Linearizable { steps, .. } => judged.steps += steps,
            Verdict::Undecided { steps } => {
                judged.steps += steps;
                judged.undecided.push(key.to_owned());
            }
            Verdict::Violated { order, state, .. } => {
                let order: Vec<usize> = order.into_iter().map(|at| numbers[at]).collect();
                let first = first_unexplained(&CellModel, &timed, steps_max).map(|at| numbers[at]);
                return Err(calls.unexplained(&format!("the cell {key}"), &order, &state, first));
            }
        }
    }
    Ok(judged)
}

/// What the checker is to see, and the number of each call in the history. What took no effect is left out, and so are
/// reads without an answer.
pub fn timed(calls: &Calls<CellAsked, CellTold>) -> (Vec<usize>, Vec<Timed<'_, super::cell::CellCall>>) {
    let seen = calls.0.iter().enumerate().filter_map(|(number, call)| {
        let ended = match &call.fate {
            Fate::NotApplied(_) => return None,
            Fate::Answered(_) => call.ended,
            Fate::UnderWay | Fate::Unknown(_) if call.asked == CellAsked::Read => return None,
            Fate::UnderWay | Fate::Unknown(_) => None,
        };
        Some((number, Timed { call, began: call.began, ended }))
    });
    seen.unzip()
}
