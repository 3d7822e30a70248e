//! Clients of keys: they call whichever daemon, send a request again there or elsewhere, note what they are told, and
//! [`judge`] what they noted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{self, Either};

use super::cells::Judged;
use super::daemon::{Daemons, SimDaemon};
use super::history::{Call, CallId, Calls, Fate, History};
use super::invariants::Event;
use super::judge::Judge;
use super::key::{KeyAsked, KeyModel, KeyOperation, KeyTold};
use super::linearizable::{Timed, Verdict, check, first_unexplained};
use super::random::Random;
use super::world::World;
use crate::ids::{Key, LockName, RequestId};
use crate::kv::change::Refused;
use crate::kv::{Effect, Entry, Fence, Keys, KvError, Mutation, Precondition, Write};
use crate::limits;
use crate::register::RegisterError;
use crate::runtime::Moment;
use crate::token::Token;

/// What all clients of a run noted.
pub type KeyHistory = History<KeyAsked, KeyTold>;

/// A client's call of a key.
pub type KeyCall = Call<KeyAsked, KeyTold>;

const LOCKED: &str = "no holder of this lock panics";
/// What stands before the number of each key of a run.
pub const PREFIX: &str = "k";
/// Locks whose tokens fence keys.
const LOCKS: u64 = 2;
/// So often at most is one request sent.
const SENDS_MAX: u32 = 4;

/// What clients do.
#[derive(Clone, Debug)]
pub struct KeySettings {
    /// So many keys.
    pub keys: u64,
    /// Writes with a request id, in percent.
    pub requests: u64,
    /// Writes under a token of a lock, in percent.
    pub fenced: u64,
    /// Reads that are made by listing all keys, in percent.
    pub listed: u64,
}

/// The longest pause between two calls of one client, in milliseconds.
const PAUSE_MS: u64 = 800;
/// Calls that the client drops half way, in percent.
const IMPATIENT: u64 = 5;

/// One client.
pub struct KeyClient {
    world: World,
    judge: Arc<Judge>,
    client: u32,
    random: Random,
    settings: KeySettings,
    requests: u64,
    /// The version that it was told last of each key, for preconditions that have a chance.
    seen: BTreeMap<String, Option<Token>>,
}

/// One of the keys of a run.
pub fn name(number: u64) -> Key {
    Key::parse(&format!("{PREFIX}{number}")).expect("a good name")
}

/// Calls daemons until `calm`, and then until one write and one read have been answered.
pub async fn run_key_client(mut client: KeyClient, daemons: Arc<Daemons>, calm: impl Fn() -> bool) {
    let (mut wrote, mut read) = (false, false);
    while !(wrote && read || client.judge.is_violated()) {
        let was_calm = calm();
        match client.round(&daemons).await {
            Some(KeyTold::Seen(_)) => read |= was_calm,
            Some(KeyTold::Written(_) | KeyTold::Refused(_)) => wrote |= was_calm,
            None => {}
        }
        client.rest().await;
    }
}

impl KeyClient {
    /// A client with a number of its own.
    pub fn new(world: &World, client: u32, settings: KeySettings, judge: Arc<Judge>) -> Self {
        let random = world.fork();
        Self { world: world.clone(), judge, client, random, settings, requests: 0, seen: BTreeMap::new() }
    }

    /// The pause between two calls. Often none, so that clients meet.
    async fn rest(&mut self) {
        let longest = if self.random.chance(40) { 3 } else { PAUSE_MS };
        let pause = Duration::from_micros(self.random.below(longest * 1_000));
        self.world.sleep(pause).await;
    }

    /// One operation: a call, or the sends of one request. What it was told last, if it was.
    async fn round(&mut self, daemons: &Daemons) -> Option<KeyTold> {
        let key = name(self.random.below(self.settings.keys));
        let asked = self.ask(&key);
        if asked == KeyAsked::Get && self.random.chance(self.settings.listed) {
            return self.list(daemons).await;
        }
        let KeyAsked::Write(Mutation { request: Some(_), .. }) = &asked else {
            return self.send(daemons, &key, &asked).await;
        };
        if self.random.chance(30) {
            // The other one sets out while this one is under way, mostly.
            let mut other = self.another();
            let pause = self.world.sleep(Duration::from_micros(self.random.below(8_000)));
            let later = async {
                pause.await;
                other.send(daemons, &key, &asked).await
            };
            let (one, other) = future::join(self.send(daemons, &key, &asked), later).await;
            return one.or(other);
        }
        let mut told = None;
        for _ in 0..SENDS_MAX {
            told = self.send(daemons, &key, &asked).await.or(told);
            if self.random.chance(if told.is_some() { 60 } else { 15 }) {
                break;
            }
            self.rest().await;
        }
        told
    }

    /// The same client once more, to wait for two calls at a time.
    fn another(&mut self) -> Self {
        let random = Random::new(self.random.bits());
        let (world, judge) = (self.world.clone(), self.judge.clone());
        let (settings, seen) = (self.settings.clone(), BTreeMap::new());
        Self { world, judge, client: self.client, random, settings, requests: 0, seen }
    }

    /// One call of one of the daemons that are alive.
    async fn send(&mut self, daemons: &Daemons, key: &Key, asked: &KeyAsked) -> Option<KeyTold> {
        let daemon = daemons.pick(&mut self.random)?;
        let deadline = daemon.now() + Duration::from_millis(50 + self.random.below(4_000));
        let patience = self.patience();
        let call = self.begin(key, asked.clone());
        let answer = make(daemon, key.clone(), asked.clone(), deadline);
        let fate = match future::select(answer.boxed(), self.world.sleep(patience)).await {
            Either::Left((fate, _)) => fate,
            Either::Right(_) => Fate::Unknown("dropped".into()),
        };
        let told = answer_of(&fate).cloned();
        if let Some(told) = &told {
            self.judge_told(key, asked, told);
            if let Some(version) = version_of(told) {
                self.seen.insert(key.as_str().to_owned(), version);
            }
        }
        self.end(call, fate);
        told
    }

    /// A list of all keys, as reads of those that are on it. Of those that are not nothing is promised: an index knows
    /// at once of a removal that may never be agreed on.
    async fn list(&mut self, daemons: &Daemons) -> Option<KeyTold> {
        let daemon = daemons.pick(&mut self.random)?;
        let deadline = daemon.now() + Duration::from_millis(50 + self.random.below(4_000));
        let calls: Vec<_> = (0..self.settings.keys)
            .map(|number| (name(number), self.begin(&name(number), KeyAsked::Get)))
            .collect();
        let keys = daemon.keys.clone();
        let page = daemon.call(async move { keys.list(PREFIX, 100, "", deadline).await }).await;
        let page = page.and_then(Result::ok);
        let mut told = None;
        for (key, call) in calls {
            let listed = page.iter().flat_map(|page| &page.keys).find(|listed| listed.key == key);
            let Some(listed) = listed else {
                self.end(call, Fate::NotApplied("not listed".into()));
                continue;
            };
            let seen = KeyTold::Seen(Some(listed.entry.clone()));
            self.judge_told(&key, &KeyAsked::Get, &seen);
            self.end(call, Fate::Answered(seen.clone()));
            told = Some(seen);
        }
        told
    }

    fn patience(&mut self) -> Duration {
        if self.random.chance(IMPATIENT) {
            return Duration::from_millis(self.random.below(20));
        }
        // Longer than any deadline and any pause: a call answers by then.
        Duration::from_secs(60)
    }

    fn begin(&self, key: &Key, asked: KeyAsked) -> CallId {
        self.judge.keys.lock().expect(LOCKED).begin(key.as_str(), self.client, asked, self.world.now())
    }

    fn end(&self, call: CallId, fate: Fate<KeyTold>) {
        self.judge.keys.lock().expect(LOCKED).end(call, fate, self.world.now());
    }

    /// Tells what the answer says of versions.
    fn judge_told(&self, key: &Key, asked: &KeyAsked, told: &KeyTold) {
        let say = |version, data, made| {
            self.judge.observe(&Event::Versioned { key: key.clone(), version, data, made });
        };
        let see = |entry: &Entry| say(entry.version, Some(entry.data.clone()), false);
        match (asked, told) {
            (_, KeyTold::Seen(entry)) => entry.iter().for_each(see),
            (KeyAsked::Write(mutation), KeyTold::Written(written)) => {
                written.previous.iter().for_each(see);
                let (version, data) = match (&mutation.write, &written.effect) {
                    (Write::Set { data, .. }, Effect::Set { version, .. }) => (*version, Some(data.clone())),
                    (_, Effect::Counted { number, version }) => (*version, Some(number.to_string().into())),
                    (_, Effect::Deleted { version: Some(version) }) => (*version, None),
                    _ => return,
                };
                if mutation.fence.is_some() {
                    self.judge.watches(|watches| watches.fenced(key, version));
                }
                say(version, data, !written.repeated);
            }
            (_, KeyTold::Refused(_)) | (KeyAsked::Get, KeyTold::Written(_)) => {}
        }
    }

    fn ask(&mut self, key: &Key) -> KeyAsked {
        let seen = self.seen.get(key.as_str()).copied().flatten();
        let random = &mut self.random;
        let version = seen.unwrap_or(Token::ZERO);
        let ttl = |random: &mut Random, percent| {
            random.chance(percent).then(|| Duration::from_millis(200 + random.below(2_800)))
        };
        let set = |random: &mut Random, percent, precondition| Write::Set {
            data: data(random),
            ttl: ttl(random, percent),
            precondition,
        };
        let write = match random.below(100) {
            0..25 => return KeyAsked::Get,
            25..43 => set(random, 60, Precondition::None),
            43..51 => set(random, 50, Precondition::Absent),
            51..57 => set(random, 50, Precondition::Present),
            57..68 => set(random, 30, Precondition::Version(version)),
            68..84 => Write::Increment {
                delta: 1 + random.below(3) as i64,
                initial: 10 * random.below(2) as i64,
                ttl: ttl(random, 25),
            },
            84..90 => Write::Touch { ttl: ttl(random, 60) },
            90..96 => Write::Delete { version: None },
            _ => Write::Delete { version: Some(version) },
        };
        let request = random.chance(self.settings.requests).then(|| {
            self.requests += 1;
            RequestId(self.client.into(), self.requests)
        });
        let fence = random.chance(self.settings.fenced).then(|| {
            // Tokens grow, and who comes late has a lower one.
            let now = self.world.now().since(Moment::ZERO).as_secs();
            let lock = LockName::parse(&format!("f{}", random.below(LOCKS))).expect("a good name");
            Fence { lock, token: Token::new(1 + now / 2 + random.below(6)).expect("a small number") }
        });
        let previous = random.chance(30);
        KeyAsked::Write(Mutation { write, request, fence, previous })
    }
}

/// Mostly numbers, which seldom meet, so that an old one is known for what it is.
fn data(random: &mut Random) -> Bytes {
    match random.below(20) {
        0..2 => format!("text {}", random.below(100)).into(),
        2 => (i64::MAX - random.below(3) as i64).to_string().into(),
        _ => (100 * random.below(10_000)).to_string().into(),
    }
}

/// The version that the key has by this answer; the outer `None` where it does not say.
fn version_of(told: &KeyTold) -> Option<Option<Token>> {
    match told {
        KeyTold::Seen(entry) => Some(entry.as_ref().map(|entry| entry.version)),
        KeyTold::Refused(Refused::Precondition(version)) => Some(*version),
        KeyTold::Refused(_) => None,
        KeyTold::Written(written) => Some(match written.effect {
            Effect::Set { version, .. } | Effect::Counted { version, .. } => Some(version),
            Effect::Deleted { .. } => None,
            Effect::Touched { version, .. } => version,
        }),
    }
}

fn answer_of(fate: &Fate<KeyTold>) -> Option<&KeyTold> {
    match fate {
        Fate::Answered(told) => Some(told),
        Fate::UnderWay | Fate::NotApplied(_) | Fate::Unknown(_) => None,
    }
}

async fn make(daemon: Arc<SimDaemon>, key: Key, asked: KeyAsked, deadline: Moment) -> Fate<KeyTold> {
    let keys = daemon.keys.clone();
    let call = async move { ask(&keys, &key, asked, deadline).await };
    daemon.call(call).await.unwrap_or_else(|| Fate::Unknown("the daemon died".into()))
}

async fn ask(keys: &Keys, key: &Key, asked: KeyAsked, deadline: Moment) -> Fate<KeyTold> {
    match asked {
        KeyAsked::Get => match keys.get(key, deadline).await {
            Ok(entry) => Fate::Answered(KeyTold::Seen(entry)),
            Err(error) => fate_of(&error),
        },
        KeyAsked::Write(mutation) => match keys.write(key, mutation, deadline).await {
            Ok(written) => Fate::Answered(KeyTold::Written(written)),
            Err(error) => fate_of(&error),
        },
    }
}

/// What an error promises is held against it: one that says "nothing happened" must have done nothing, ever.
fn fate_of(error: &KvError) -> Fate<KeyTold> {
    let refused = |refused| Fate::Answered(KeyTold::Refused(refused));
    match error {
        KvError::PreconditionFailed { current, .. } => refused(Refused::Precondition(*current)),
        KvError::NotAnInteger { .. } => refused(Refused::NotAnInteger),
        KvError::Overflow { number, .. } => refused(Refused::Overflow(*number)),
        KvError::Fenced { highest, .. } => refused(Refused::Fenced(*highest)),
        KvError::TooManyFences { .. } => refused(Refused::TooManyFences),
        KvError::RequestIdReused { .. } => refused(Refused::RequestIdReused),
        KvError::Register(RegisterError::OutcomeUnknown) => Fate::Unknown("outcome unknown".into()),
        KvError::TooManyKeys { .. } | KvError::ShuttingDown | KvError::Register(_) => {
            Fate::NotApplied(error.to_string().chars().take(40).collect())
        }
    }
}

// ---- judging

/// Whether every key's calls can be put in one order; see [`super::linearizable`]. For each key the model is asked at
/// most `steps_max` times.
///
/// # Errors
/// The calls of the first key that has no order, and which answer nothing explains; or answers to one request that
/// contradict each other.
pub fn judge(history: &KeyHistory, steps_max: u64) -> Result<Judged, String> {
    let mut judged = Judged::default();
    for (key, calls) in history.keys() {
        calls.0.iter().for_each(|call| judged.count(&call.fate));
        let operations = operations(calls).map_err(|words| format!("{key}: {words}\n{calls}"))?;
        let timed = timed(&operations);
        match check(&KeyModel, &timed, steps_max) {
            Verdict::Linearizable { steps, .. } => judged.steps += steps,
            Verdict::Undecided { steps } => {
                judged.steps += steps;
                judged.undecided.push(key.to_owned());
            }
            Verdict::Violated { order, state, .. } => {
                let order: Vec<usize> = order.into_iter().map(|at| operations[at].number).collect();
                let first = first_unexplained(&KeyModel, &timed, steps_max).map(|at| operations[at].number);
                return Err(calls.unexplained(&format!("the key {key}"), &order, &state, first));
            }
        }
    }
    Ok(judged)
}

/// What the checker is to see.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The number of the call in the history, or of one of its sends.
    pub number: usize,
    /// What takes effect once.
    pub operation: KeyOperation,
    began: u64,
    ended: Option<u64>,
}

/// The same, as the checker wants it.
pub fn timed(operations: &[Seen]) -> Vec<Timed<'_, KeyOperation>> {
    operations
        .iter()
        .map(|seen| Timed { call: &seen.operation, began: seen.began, ended: seen.ended })
        .collect()
}

/// What takes effect. What took none is left out, and so are reads without an answer. All sends of one request are one
/// operation, and each that was refused is one of its own, which had to find the request undone.
///
/// # Errors
/// Answers to one request that contradict each other.
pub fn operations(calls: &Calls<KeyAsked, KeyTold>) -> Result<Vec<Seen>, String> {
    let mut operations = Vec::new();
    let mut requests: BTreeMap<RequestId, Vec<usize>> = BTreeMap::new();
    for (number, call) in calls.0.iter().enumerate() {
        match (&call.asked, &call.fate) {
            (_, Fate::NotApplied(_)) | (KeyAsked::Get, Fate::UnderWay | Fate::Unknown(_)) => {}
            (KeyAsked::Write(Mutation { request: Some(id), .. }), _) => {
                requests.entry(*id).or_default().push(number);
            }
            _ => operations.push(alone(calls, number)),
        }
    }
    for (id, sends) in requests {
        let others = remembered_after(calls, &sends);
        if others >= limits::REQUESTS_MAX {
            // So many others may have made the key forget this one.
            operations.extend(sends.iter().map(|number| alone(calls, *number)));
        } else {
            together(calls, &sends, &mut operations).map_err(|words| format!("request {id:?}: {words}"))?;
        }
    }
    Ok(operations)
}

/// How many sends with a request id there may have been between the first and the last of these.
fn remembered_after(calls: &Calls<KeyAsked, KeyTold>, sends: &[usize]) -> usize {
    let began = sends.iter().map(|number| calls.0[*number].began).min().unwrap_or(0);
    let ended = sends.iter().map(|number| calls.0[*number].ended.unwrap_or(u64::MAX)).max().unwrap_or(0);
    let has_id = |call: &&KeyCall| matches!(&call.asked, KeyAsked::Write(write) if write.request.is_some());
    let meets = |call: &&KeyCall| call.began < ended && call.ended.is_none_or(|end| end > began);
    calls.0.iter().filter(has_id).filter(meets).count()
}

fn alone(calls: &Calls<KeyAsked, KeyTold>, number: usize) -> Seen {
    let call = &calls.0[number];
    let told = answer_of(&call.fate).cloned();
    let ended = call.ended.filter(|_| told.is_some());
    let operation = KeyOperation { asked: call.asked.clone(), start: call.start, end: call.end, told };
    Seen { number, operation, began: call.began, ended }
}

/// The sends of one request. At most one of them did it, and the others tell of that.
fn together(
    calls: &Calls<KeyAsked, KeyTold>,
    sends: &[usize],
    operations: &mut Vec<Seen>,
) -> Result<(), String> {
    let (mut refused, mut written, mut open) = (Vec::new(), Vec::new(), Vec::new());
    for number in sends {
        match &calls.0[*number].fate {
            Fate::Answered(KeyTold::Written(told)) => written.push((*number, told)),
            Fate::Answered(_) => refused.push(*number),
            Fate::UnderWay | Fate::Unknown(_) => open.push(*number),
            Fate::NotApplied(_) => {}
        }
    }
    operations.extend(refused.iter().map(|number| alone(calls, *number)));
    let first_end = written.iter().filter_map(|(number, _)| calls.0[*number].ended).min();
    if let Some((number, told)) = written.first() {
        if let Some((other, _)) = written.iter().find(|(_, other)| other.effect != told.effect) {
            return Err(format!("calls {number} and {other} were told of different effects"));
        }
        let after_the_end = |other: &&usize| first_end.is_some_and(|end| calls.0[**other].began > end);
        if let Some(other) = refused.iter().find(after_the_end) {
            return Err(format!("call {other} was refused after the request had been done"));
        }
        let fresh = written.iter().filter(|(_, told)| !told.repeated).map(|(number, _)| number);
        if let Some(other) = fresh.clone().find(after_the_end) {
            return Err(format!("call {other} did the request after it had been done"));
        }
        if let [one, other, ..] = fresh.collect::<Vec<_>>()[..] {
            return Err(format!("calls {one} and {other} both did the request"));
        }
    }
    if let Some((number, _)) = written.iter().find(|(_, told)| !told.repeated) {
        operations.push(alone(calls, *number));
        return Ok(());
    }
    // Nobody was told that it did it. Whoever was refused found it undone, so it was done after that call began.
    let until = first_end.unwrap_or(u64::MAX);
    let may_have = written.iter().map(|(number, _)| number).chain(&open);
    let earliest =
        may_have.filter(|number| calls.0[**number].began < until).min_by_key(|n| calls.0[**n].began);
    let Some(earliest) = earliest else { return Ok(()) };
    let after = refused.iter().filter(|number| calls.0[**number].began < until);
    let from = after.chain([earliest]).max_by_key(|number| calls.0[**number].began).expect("one at least");
    let last = written.iter().min_by_key(|(number, _)| calls.0[*number].ended);
    let told = last.map(|(_, told)| KeyTold::Written((*told).clone()));
    let operation = KeyOperation {
        asked: calls.0[*earliest].asked.clone(),
        start: calls.0[*from].start,
        end: last.and_then(|(number, _)| calls.0[*number].end),
        told,
    };
    let number = last.map_or(*earliest, |(number, _)| *number);
    operations.push(Seen { number, operation, began: calls.0[*from].began, ended: first_end });
    Ok(())
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
