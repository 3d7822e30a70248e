//! [`Keys`]: what callers see of keys. Each call is one change, or one read, of one register.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use event_listener::Event;
use futures::FutureExt;
use futures::future::{self, BoxFuture};
use futures::stream::BoxStream;

use super::change::{KeyAnswer, KeyChange, KeyKind, Refused, Seen};
use super::watch::{self, WatchEvent, Watched, Watching};
use super::{Entry, KeyPage, KvError, ListedKey, Mutation, Write, Written};
use crate::driver::Cluster;
use crate::ids::Key;
use crate::limits;
use crate::mutant::{self, Mutant};
use crate::node::keyspace::KIND_KEY;
use crate::register::registers::Extras;
use crate::register::room::Full;
use crate::register::{RegisterError, Registers, Room, Sweep};
use crate::runtime::{Moment, Runtime};

/// Names of a page that are read at once: their values are in memory together.
const READ_AT_ONCE: usize = 64;

/// Settings of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySettings {
    /// How long a round is retried without a quorum.
    pub patience: Duration,
    /// About how often a watched key is looked at although nothing was announced.
    pub look_interval: Duration,
    /// Bytes of values that may be written at a time.
    pub writes_bytes_max: usize,
}

impl Default for KeySettings {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(3),
            look_interval: Duration::from_secs(5),
            writes_bytes_max: limits::WRITES_BYTES_MAX,
        }
    }
}

/// The keys of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub registers: Registers<KeyKind>,
    pub settings: KeySettings,
    pub watching: Watching,
    /// For the values that are being written.
    room: Room,
    closing: AtomicBool,
    pub closed: Event,
}

impl Keys {
    /// The keys of a cluster.
    pub fn new(cluster: Arc<Cluster>, settings: KeySettings) -> Self {
        let registers = Registers::new(cluster, settings.patience);
        let (closing, closed) = (AtomicBool::new(false), Event::new());
        Self {
            inner: Arc::new(Inner {
                registers,
                settings,
                watching: Watching::default(),
                room: Room::new(settings.writes_bytes_max),
                closing,
                closed,
            }),
        }
    }

    /// The value of a key, linearizable: it sees every write that was answered before the call. `None` for no value.
    ///
    /// # Errors
    /// [`KvError`] says what is certain; a read changes nothing.
    pub async fn get(&self, key: &Key, deadline: Moment) -> Result<Option<Entry>, KvError> {
        self.inner.check_open()?;
        Ok(self.inner.look(key, deadline).await?.entry)
    }

    /// Writes. The answer comes by the deadline. With a request id the write is tried until then, and happens once.
    ///
    /// # Errors
    /// [`KvError`] says what is certain.
    pub async fn write(&self, key: &Key, mutation: Mutation, deadline: Moment) -> Result<Written, KvError> {
        self.inner.check_open()?;
        let mut in_doubt = false;
        // No attempt has a lower one.
        let first = self.inner.registers.cluster().next_ballot();
        let answer = loop {
            let change = KeyChange::Write(mutation.clone());
            let ticket = match self.inner.room.take(size_of(&mutation.write)) {
                Ok(room) => {
                    // If it was done it may have been forgotten since, after a long pause.
                    let extras = if in_doubt { Extras::after_doubt(first) } else { Extras::default() };
                    let extras = extras.with_room(room);
                    self.inner.registers.enqueue_with(key.as_str(), change, extras, deadline)
                }
                // What was tried before may have happened.
                Err(_) if in_doubt => return Err(RegisterError::OutcomeUnknown.into()),
                Err(Full { taken, max }) => return Err(KvError::TooMuchToWrite { bytes: taken, max }),
            };
            let result = match ticket {
                Ok(ticket) => self.inner.registers.wait(ticket, deadline).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(committed) => break committed.answer,
                // The register remembers the request, so the same again can't do it twice.
                Err(RegisterError::OutcomeUnknown)
                    if mutation.request.is_some() && self.inner.now() < deadline =>
                {
                    in_doubt = true;
                }
                // That nothing happened is then true of this repeat only.
                Err(_) if in_doubt && !mutant::is_on(Mutant::RepeatForgetsDoubt) => {
                    return Err(RegisterError::OutcomeUnknown.into());
                }
                Err(error) => return Err(error.into()),
            }
        };
        match answer {
            KeyAnswer::Written(written) => Ok(written),
            KeyAnswer::Refused(refused) => Err(error_of(key, &mutation, refused)),
            KeyAnswer::Seen(_) => unreachable!("a write is written or refused"),
        }
    }

    /// The keys with a prefix, in byte order of their names, after `after`. Each is as good as one of [`Keys::get`]; the page
    /// is no snapshot. It is cut short where its values come to more than [`limits::LIST_BYTES_MAX`].
    ///
    /// # Errors
    /// [`KvError::Register`] without a quorum.
    pub async fn list(
        &self,
        prefix: &str,
        page_size: usize,
        after: &str,
        deadline: Moment,
    ) -> Result<KeyPage, KvError> {
        self.inner.check_open()?;
        let names = self.inner.registers.list(prefix, after, page_size, deadline).await?;
        let (mut keys, mut bytes, mut last) = (Vec::new(), 0, None);
        let mut chunks = names.names.chunks(READ_AT_ONCE);
        for chunk in chunks.by_ref() {
            let found = self.inner.look_at_all(chunk, deadline).await?;
            bytes +=
                found.iter().map(|(_, seen)| seen.entry.as_ref().map_or(0, |e| e.data.len())).sum::<usize>();
            // The index is a hint: what it names may have been removed since.
            keys.extend(
                found.into_iter().filter_map(|(key, seen)| Some(ListedKey { key, entry: seen.entry? })),
            );
            last = chunk.last();
            if bytes >= limits::LIST_BYTES_MAX {
                break;
            }
        }
        let more = names.more || chunks.next().is_some();
        Ok(KeyPage { keys, next: last.filter(|_| more).cloned() })
    }

    /// What there is, then every change. See [`watch`].
    pub fn watch(&self, what: Watched) -> BoxStream<'static, Result<WatchEvent, KvError>> {
        watch::watch(self.inner.clone(), what)
    }

    /// Some daemon announced that a key changed.
    pub fn on_changed(&self, name: &str) {
        self.inner.watching.changed(name);
    }

    /// Drops what has aged, so that it is not kept until somebody asks. Whether there was anything.
    ///
    /// # Errors
    /// [`KvError::Register`]; nothing is lost by it.
    pub async fn tidy(&self, name: &str, deadline: Moment) -> Result<bool, KvError> {
        let tidied = self.inner.registers.change(name, KeyChange::Tidy, deadline).await?;
        Ok(tidied.first_sent.is_some())
    }

    /// Bytes of values that are being written, and how many may be at a time.
    pub fn writes_bytes(&self) -> (usize, usize) {
        self.inner.room.filled()
    }

    /// Stops taking calls; watches end with [`KvError::ShuttingDown`].
    pub fn shut_down(&self) {
        self.inner.closing.store(true, Ordering::Release);
        self.inner.closed.notify(usize::MAX);
    }
}

impl Sweep for Keys {
    fn letter(&self) -> char {
        KIND_KEY
    }

    fn sweep<'a>(&'a self, name: &'a str) -> BoxFuture<'a, bool> {
        let deadline = self.inner.now() + self.inner.settings.patience;
        self.tidy(name, deadline).map(|tidied| tidied.unwrap_or(false)).boxed()
    }
}

impl Inner {
    pub fn runtime(&self) -> &Runtime {
        &self.registers.cluster().runtime
    }

    pub fn now(&self) -> Moment {
        self.runtime().clock.now()
    }

    pub fn check_open(&self) -> Result<(), KvError> {
        if self.closing.load(Ordering::Acquire) { Err(KvError::ShuttingDown) } else { Ok(()) }
    }

    /// Looks at a key, in line with the daemon's other calls of it, so that looks share a round and meet no write half way.
    pub async fn look(&self, key: &Key, deadline: Moment) -> Result<Seen, RegisterError> {
        let started = self.now();
        loop {
            match self.registers.look(key.as_str(), KeyChange::Get, deadline).await {
                Ok(committed) => match committed.answer {
                    KeyAnswer::Seen(seen) => return Ok(seen),
                    KeyAnswer::Written(_) | KeyAnswer::Refused(_) => unreachable!("a look sees"),
                },
                // That is about the writes of its round, or about the removal of what has expired. The look did nothing.
                Err(RegisterError::OutcomeUnknown) if self.now() < deadline => {}
                Err(RegisterError::OutcomeUnknown) => {
                    let waited = self.now().since(started);
                    return Err(RegisterError::DeadlineExceeded { waited });
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub async fn look_at_all(
        &self,
        names: &[String],
        deadline: Moment,
    ) -> Result<Vec<(Key, Seen)>, RegisterError> {
        let looks = names.iter().filter_map(|name| Key::parse(name).ok()).map(|key| async move {
            let seen = self.look(&key, deadline).await?;
            Ok::<_, RegisterError>((key, seen))
        });
        future::try_join_all(looks).await
    }
}

/// How much memory a write takes up.
fn size_of(write: &Write) -> usize {
    match write {
        Write::Set { data, .. } => data.len(),
        Write::Delete { .. } | Write::Increment { .. } | Write::Touch { .. } => 0,
    }
}

fn error_of(key: &Key, mutation: &Mutation, refused: Refused) -> KvError {
    let key = key.clone();
    let fence = || mutation.fence.clone().expect("only a fence is refused as one");
    match refused {
        Refused::Precondition(current) => KvError::PreconditionFailed { key, current },
        Refused::NotAnInteger => KvError::NotAnInteger { key },
        Refused::Overflow(number) => {
            let Write::Increment { delta, .. } = mutation.write else {
                unreachable!("only an increment overflows")
            };
            KvError::Overflow { key, number, delta }
        }
        Refused::Fenced(highest) => {
            let super::Fence { lock, token } = fence();
            KvError::Fenced { key, lock, token, highest }
        }
        Refused::TooManyFences => KvError::TooManyFences { key, lock: fence().lock, max: limits::FENCES_MAX },
        Refused::RequestIdReused => KvError::RequestIdReused { key },
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ids::{NodeIndex, ProposerId};
    use crate::kv::Precondition;
    use crate::node::embedded::{EmbeddedNode, EmbeddedServer};
    use crate::node::{Identity, Node};
    use crate::quorum::ClusterSize;
    use crate::runtime::system;

    #[tokio::test]
    async fn values_that_are_being_written_have_their_room_and_give_it_back() {
        let (size, daemon) = (ClusterSize::new(1).unwrap(), ProposerId(1));
        let identity = Identity { cluster: "blue".into(), nodes: 1, daemon };
        let server = EmbeddedServer::new(0, Arc::new(|| 0));
        let node = EmbeddedNode::new(server, identity, NodeIndex(0), Arc::new(|_, _| {})) as Arc<dyn Node>;
        // Nobody has founded it, so whoever writes waits.
        let cluster = Arc::new(Cluster::new(size, vec![node], daemon, system::runtime()));
        let keys = Keys::new(cluster, KeySettings { writes_bytes_max: 10, ..KeySettings::default() });
        let (key, deadline) = (Key::parse("a").unwrap(), keys.inner.now() + Duration::from_secs(60));
        let set = |bytes: usize| {
            let (data, ttl) = (Bytes::from(vec![0; bytes]), None);
            let mutation = Write::Set { data, ttl, precondition: Precondition::None }.into();
            Box::pin(keys.write(&key, mutation, deadline))
        };
        let mut first = set(8);
        assert!((&mut first).now_or_never().is_none());
        let refused = set(3).now_or_never();
        assert!(matches!(refused, Some(Err(KvError::TooMuchToWrite { bytes: 8, max: 10 }))), "{refused:?}");
        assert!(set(2).now_or_never().is_none());
        // Who goes away takes nothing back: the change waits on, and its value with it.
        drop(first);
        assert!(matches!(set(10).now_or_never(), Some(Err(KvError::TooMuchToWrite { .. }))));
    }
}
