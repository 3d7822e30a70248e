//! Watching keys: what there is, then every change of it.
//!
//! Announcements say when to look, and so does the end of a TTL that was told; a slow, jittered walk through all that is
//! watched is the fallback, and finds what no announcement told of. What is told was always read by quorum, one look after the other for each key, so no version goes
//! backwards.
//!
//! A watcher reads only when its client takes an event. Until then the names of what changed wait for it, each once: a
//! slow client holds up nobody, is told the latest state of each key, and how many changes of it it has missed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use event_listener::Event;
use futures::StreamExt;
use futures::future;
use futures::stream::{self, BoxStream};

use super::change::Seen;
use super::keys::Inner;
use super::{Entry, KvError};
use crate::ids::Key;
use crate::limits;
use crate::mutant::{self, Mutant};
use crate::register::RegisterError;
use crate::runtime::Moment;
use crate::token::Token;

/// Names of one step of a walk.
const STEP: usize = 64;
/// Between two steps of a walk that looks for what was not announced.
const STEP_PAUSE: Duration = Duration::from_millis(50);
/// A prefix is walked through this much less often than a key is looked at.
const WALKS_SPARSER: u32 = 6;
/// After a value can have expired, it is looked at within so long: many may watch it.
const EXPIRY_JITTER: Duration = Duration::from_millis(200);
/// After a look that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
const LOCKED: &str = "no holder of this lock panics";

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Which keys.
    pub scope: Scope,
    /// Of what is there at first, only what is newer is told.
    pub after: Option<Token>,
}

/// Which keys are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One.
    Key(Key),
    /// All whose names begin with this.
    Prefix(String),
}

impl Scope {
    fn has(&self, name: &str) -> bool {
        match self {
            Scope::Key(key) => key.as_str() == name,
            Scope::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key has a value that was not told yet.
    Value {
        /// Which.
        key: Key,
        /// The value.
        entry: Entry,
        /// How many writes and removals of it came between the event before and this one, at least.
        missed: u64,
    },
    /// A key has no value.
    Removed {
        /// Which.
        key: Key,
        /// The version of the removal, or of the last value that was told where the removal is forgotten; zero where nothing is
        /// known.
        version: Token,
        /// As above.
        missed: u64,
    },
    /// All that was there has been told; from here on come changes. Once.
    Synced,
}

/// Who watches what at this daemon.
#[derive(Default)]
pub(super) struct Watching {
    /// By name, for watches of one key. Never iterated over.
    keys: Mutex<HashMap<String, Vec<Weak<Changed>>>>,
    prefixes: Mutex<Vec<(String, Weak<Changed>)>>,
}

/// What has changed since the watcher looked.
#[derive(Default)]
struct Changed {
    names: Mutex<Names>,
    event: Event,
}

#[derive(Default)]
struct Names {
    some: BTreeSet<String>,
    /// There were too many to note each.
    many: bool,
}

impl Changed {
    fn add(&self, name: &str) {
        let mut names = self.names.lock().expect(LOCKED);
        if names.some.len() < limits::WATCH_PENDING_MAX {
            names.some.insert(name.to_owned());
        } else {
            names.many = true;
        }
        drop(names);
        self.event.notify(usize::MAX);
    }

    fn take(&self) -> Names {
        std::mem::take(&mut self.names.lock().expect(LOCKED))
    }
}

impl Watching {
    fn keys(&self) -> MutexGuard<'_, HashMap<String, Vec<Weak<Changed>>>> {
        self.keys.lock().expect(LOCKED)
    }

    fn prefixes(&self) -> MutexGuard<'_, Vec<(String, Weak<Changed>)>> {
        self.prefixes.lock().expect(LOCKED)
    }

    fn enter(&self, scope: &Scope, changed: &Arc<Changed>) {
        let weak = Arc::downgrade(changed);
        match scope {
            Scope::Key(key) => self.keys().entry(key.as_str().to_owned()).or_default().push(weak),
            Scope::Prefix(prefix) => self.prefixes().push((prefix.clone(), weak)),
        }
    }

    fn leave(&self, scope: &Scope, changed: &Arc<Changed>) {
        let is_it = |weak: &Weak<Changed>| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(changed));
        match scope {
            Scope::Key(key) => {
                let mut keys = self.keys();
                let Some(watchers) = keys.get_mut(key.as_str()) else { return };
                watchers.retain(|weak| !is_it(weak));
                if watchers.is_empty() {
                    keys.remove(key.as_str());
                }
            }
            Scope::Prefix(_) => self.prefixes().retain(|(_, weak)| !is_it(weak)),
        }
    }

    /// A key changed.
    pub fn changed(&self, name: &str) {
        let of_key: Vec<_> = self.keys().get(name).into_iter().flatten().filter_map(Weak::upgrade).collect();
        let prefixes = self.prefixes();
        let of_prefix = prefixes.iter().filter(|(prefix, _)| name.starts_with(prefix.as_str()));
        let of_prefix: Vec<_> = of_prefix.filter_map(|(_, weak)| weak.upgrade()).collect();
        drop(prefixes);
        of_key.into_iter().chain(of_prefix).for_each(|watcher| watcher.add(name));
    }
}

/// What was told of a key last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    version: Token,
    writes: u64,
    present: bool,
}

/// [`Told`], and when it is to be looked at because the value can have expired.
#[derive(Clone, Copy)]
struct Known {
    told: Told,
    expiry: Option<Moment>,
}

/// Compares what is seen with what was told; pure.
fn compare(key: Key, seen: Seen, told: Option<Told>) -> (Option<WatchEvent>, Told) {
    let version = match told {
        // A removal that is forgotten is no older than the value that it removed.
        Some(told) if !mutant::is_on(Mutant::WatchForgetsVersions) => seen.version.max(told.version),
        Some(_) | None => seen.version,
    };
    let now = Told { version, writes: seen.writes, present: seen.entry.is_some() };
    let changed = match told {
        Some(told) => told.version != version || told.present != now.present,
        None => true,
    };
    if !changed {
        return (None, now);
    }
    let missed = match told {
        None => 0,
        Some(told) if seen.writes > told.writes => seen.writes - told.writes - 1,
        // The record was forgotten after a removal that was not told, and counts anew.
        Some(told) if told.present && now.present => seen.writes.max(1),
        Some(_) => 0,
    };
    let event = match seen.entry {
        Some(entry) => WatchEvent::Value { key, entry, missed },
        None => WatchEvent::Removed { key, version, missed },
    };
    (Some(event), now)
}

/// One watcher; dropping it ends the watch.
struct Watcher {
    inner: Arc<Inner>,
    watched: Watched,
    changed: Arc<Changed>,
    told: BTreeMap<String, Known>,
    /// Names that changed, to be read.
    names: VecDeque<String>,
    /// When values that were told can have expired.
    expiries: BTreeSet<(Moment, String)>,
    ready: VecDeque<WatchEvent>,
    /// Where a walk goes on, if there is one.
    walk: Option<String>,
    next_walk: Moment,
    /// Another walk is to follow at once.
    again: bool,
    synced: bool,
    over: bool,
}

impl Watcher {
    fn new(inner: Arc<Inner>, watched: Watched) -> Self {
        let changed = Arc::new(Changed::default());
        inner.watching.enter(&watched.scope, &changed);
        inner.registers.cluster().watch();
        let next_walk = inner.now();
        Self {
            inner,
            watched,
            changed,
            told: BTreeMap::new(),
            names: VecDeque::new(),
            expiries: BTreeSet::new(),
            ready: VecDeque::new(),
            walk: Some(String::new()),
            next_walk,
            again: false,
            synced: false,
            over: false,
        }
    }

    /// The next event. Without a quorum it waits for one: the client has been told nothing wrong meanwhile.
    async fn next(&mut self) -> Option<Result<WatchEvent, KvError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            if let Err(error) = self.inner.check_open() {
                return self.end(error);
            }
            match self.look().await {
                Ok(()) => {}
                Err(
                    error @ (KvError::Register(RegisterError::Unreadable { .. })
                    | KvError::TooManyKeys { .. }),
                ) => {
                    return self.end(error);
                }
                Err(error) if !self.synced && self.told.is_empty() => return self.end(error),
                Err(error) => {
                    tracing::debug!(scope = ?self.watched.scope, %error, "what is watched can't be read");
                    self.pause_until(self.inner.now() + FAILED_PAUSE).await;
                }
            }
        }
    }

    fn end(&mut self, error: KvError) -> Option<Result<WatchEvent, KvError>> {
        self.over = true;
        Some(Err(error))
    }

    /// Reads some of what there is to read, or waits for there to be something.
    async fn look(&mut self) -> Result<(), KvError> {
        // Listen before taking the names, so that a change in between is not missed.
        let (announced, closed) = (self.changed.event.listen(), self.inner.closed.listen());
        // Those that were taken come first: what waits beyond them is bounded where it waits.
        if self.names.is_empty() {
            let Names { some, many } = self.changed.take();
            self.names.extend(some);
            let expired = self.take_expired();
            self.names.extend(expired);
            // A walk that is under way may have passed them.
            self.again |= many && self.walk.is_some();
            if self.walk.is_none() && (many || self.inner.now() >= self.next_walk) {
                self.walk = Some(String::new());
            }
        }
        if !self.names.is_empty() {
            let names: Vec<String> = self.names.iter().take(STEP).cloned().collect();
            self.read(&names).await?;
            self.names.drain(..names.len());
            if self.walk.is_none() {
                return Ok(());
            }
        }
        // Also while changes keep coming: a walk comes to its end.
        if let Some(after) = self.walk.clone() {
            return self.step(after).await;
        }
        let expiry = self.expiries.first().map(|(at, _)| *at);
        let wake_at = expiry.map_or(self.next_walk, |at| at.min(self.next_walk));
        let timer = self.inner.runtime().clock.sleep_until(wake_at);
        future::select(timer, future::select(announced, closed)).await;
        Ok(())
    }

    /// The names of what can have expired by now.
    fn take_expired(&mut self) -> Vec<String> {
        let now = self.inner.now();
        let mut names = Vec::new();
        while let Some((at, name)) = self.expiries.pop_first() {
            if at > now {
                self.expiries.insert((at, name));
                break;
            }
            names.push(name);
        }
        names
    }

    /// One step of a walk through all that is watched.
    async fn step(&mut self, after: String) -> Result<(), KvError> {
        let deadline = self.deadline();
        let (names, more) = match &self.watched.scope {
            Scope::Key(key) => (vec![key.as_str().to_owned()], false),
            Scope::Prefix(prefix) => {
                let page = self.inner.registers.list(prefix, &after, STEP, deadline).await?;
                (page.names, page.more)
            }
        };
        let last = names.last().cloned();
        let mut all: BTreeSet<String> = names.into_iter().collect();
        // What was told and is not listed any more has been removed.
        let told = self.told.range(after.clone()..).map(|(name, _)| name).filter(|name| **name != after);
        all.extend(told.take_while(|name| !more || last.as_ref().is_some_and(|last| *name <= last)).cloned());
        for names in all.into_iter().collect::<Vec<_>>().chunks(STEP) {
            self.read(names).await?;
        }
        if more {
            self.walk = last;
            if self.synced {
                self.pause_until(self.inner.now() + STEP_PAUSE).await;
            }
            return Ok(());
        }
        self.walk = std::mem::take(&mut self.again).then(String::new);
        let interval = match self.watched.scope {
            Scope::Key(_) => self.inner.settings.look_interval,
            Scope::Prefix(_) => self.inner.settings.look_interval * WALKS_SPARSER,
        };
        self.next_walk = self.inner.now() + interval / 2 + self.inner.runtime().entropy.jitter(interval);
        if mutant::is_on(Mutant::WatchNeverWalks) {
            self.next_walk = Moment::FAR;
        }
        if !std::mem::replace(&mut self.synced, true) {
            self.ready.push_back(WatchEvent::Synced);
        }
        Ok(())
    }

    fn deadline(&self) -> Moment {
        self.inner.now() + self.inner.settings.patience
    }

    async fn read(&mut self, names: &[String]) -> Result<(), KvError> {
        let found = self.inner.look_at_all(names, self.deadline()).await?;
        for (key, seen) in found {
            self.tell(key, seen);
        }
        if let Scope::Prefix(prefix) = &self.watched.scope
            && self.told.len() > limits::WATCH_KEYS_MAX
        {
            return Err(KvError::TooManyKeys { prefix: prefix.clone(), max: limits::WATCH_KEYS_MAX });
        }
        Ok(())
    }

    fn tell(&mut self, key: Key, seen: Seen) {
        debug_assert!(self.watched.scope.has(key.as_str()), "only what is watched is read");
        let of_prefix = matches!(self.watched.scope, Scope::Prefix(_));
        let name = key.as_str().to_owned();
        let known = self.told.get(&name).copied();
        let told = known.map(|known| known.told);
        if let Some(expiry) = known.and_then(|known| known.expiry) {
            self.expiries.remove(&(expiry, name.clone()));
        }
        // Of a prefix nobody is told of keys that are not there and were not told of.
        if of_prefix && told.is_none() && seen.entry.is_none() {
            return;
        }
        let old = told.is_none() && !self.synced;
        let expiry = seen.entry.as_ref().and_then(|entry| entry.remaining).map(|remaining| {
            let jitter = self.inner.runtime().entropy.jitter(EXPIRY_JITTER);
            // Never at once: a clock that says zero may be ahead of those that decide.
            self.inner.now() + remaining + EXPIRY_JITTER / 4 + jitter
        });
        let has_it =
            old && seen.entry.is_some() && self.watched.after.is_some_and(|after| seen.version <= after);
        let (event, now) = compare(key, seen, told);
        if now.present || !of_prefix {
            self.expiries.extend(expiry.map(|at| (at, name.clone())));
            self.told.insert(name, Known { told: now, expiry });
        } else {
            self.told.remove(&name);
        }
        self.ready.extend(event.filter(|_| !has_it));
    }

    async fn pause_until(&self, moment: Moment) {
        let closed = self.inner.closed.listen();
        if self.inner.check_open().is_ok() {
            future::select(self.inner.runtime().clock.sleep_until(moment), closed).await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.inner.watching.leave(&self.watched.scope, &self.changed);
        self.inner.registers.cluster().unwatch();
    }
}

/// Starts a watch.
pub(super) fn watch(inner: Arc<Inner>, watched: Watched) -> BoxStream<'static, Result<WatchEvent, KvError>> {
    let watcher = Watcher::new(inner, watched);
    stream::unfold(watcher, |mut watcher| async move { watcher.next().await.map(|event| (event, watcher)) })
        .boxed()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn token(number: u64) -> Token {
        Token::new(number).expect("a small number")
    }

    #[test]
    fn what_is_told_is_newer_and_says_what_was_missed() {
        let key = || Key::parse("k").unwrap();
        let seen = |version, writes, present: bool| Seen {
            entry: present.then(|| Entry { data: Bytes::new(), version: token(version), remaining: None }),
            version: token(version),
            writes,
        };
        let told = |version, writes, present| Some(Told { version: token(version), writes, present });
        // Told before: version, writes, present; seen: the same. Then: told version (none for nothing), missed.
        for (before, now, event) in [
            (None, seen(5, 3, true), Some((5, 0))),
            (None, seen(0, 0, false), Some((0, 0))),
            (told(5, 3, true), seen(5, 3, true), None),
            (told(5, 3, true), seen(6, 4, true), Some((6, 0))),
            (told(5, 3, true), seen(9, 7, true), Some((9, 3))),
            (told(5, 3, true), seen(6, 4, false), Some((6, 0))),
            (told(6, 4, false), seen(6, 4, false), None),
            // The removal is forgotten.
            (told(5, 3, true), seen(0, 0, false), Some((5, 0))),
            (told(6, 4, false), seen(0, 0, false), None),
            (told(5, 3, true), seen(9, 1, true), Some((9, 1))),
            (told(6, 4, false), seen(9, 1, true), Some((9, 0))),
        ] {
            let present = now.entry.is_some();
            let (found, after) = compare(key(), now.clone(), before);
            let found = found.map(|event| match event {
                WatchEvent::Value { entry, missed, .. } => {
                    assert!(present);
                    (entry.version.get(), missed)
                }
                WatchEvent::Removed { version, missed, .. } => {
                    assert!(!present);
                    (version.get(), missed)
                }
                WatchEvent::Synced => unreachable!("no comparison says that"),
            });
            assert_eq!(found, event, "{before:?} {now:?}");
            assert!(before.is_none_or(|before| after.version >= before.version));
        }
    }
}
