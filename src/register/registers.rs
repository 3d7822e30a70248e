//! [`Registers`]: the line of changes per key, and the warm promises.
//!
//! Changes of one key that wait in this daemon are applied in order, in one round. Different keys never wait for each
//! other. A round runs in a task of its own, so a caller that goes away stops nothing half way.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{self, Either};

use tracing::Instrument;

use super::age::Ages;
use super::claim::{Claimer, Gathered, Haul};
use super::looking::{self, Joined, Looking};
use super::proposer::{Claim, Decided, Entry, Fate, Proposer, Warm};
use super::room::Held;
use super::{Kind, Promised, RegisterError};
use crate::driver::{Cluster, drive, drive_from};
use crate::ids::NodeIndex;
use crate::limits;
use crate::meter::KindMeter;
use crate::node::operation::{Answer, ClaimRequest, Operation, RegisterKey};
use crate::runtime::Moment;
use crate::token::Ballot;

/// Locks that guard the map of lines, so that keys seldom meet at one.
const SHARDS: usize = 64;
/// Idle keys whose warm promise one shard remembers, and the bytes of their values, which it remembers with them: 128 MiB in
/// all shards. A promise that is forgotten costs one round trip.
const WARM_PER_SHARD_MAX: usize = 1_024;
const WARM_BYTES_PER_SHARD_MAX: usize = 2 << 20;

/// Pause before the indexes are asked again.
const LIST_PAUSE: Duration = Duration::from_millis(50);

/// A change that was agreed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed<A> {
    /// The change's answer.
    pub answer: A,
    /// The ballot that it was applied under; meaningful where it changed something.
    pub ballot: Ballot,
    /// A moment before the accept with this ballot was first sent: leases count from it. `None` where nothing changed.
    pub first_sent: Option<Moment>,
}

/// An agreed value, as read.
#[derive(Debug)]
pub struct Observed<V> {
    /// The value; the default for "absent".
    pub value: V,
    /// The attempt that made it; [`Ballot::ZERO`] for "absent".
    pub vid: Ballot,
    /// For how long its stamps have been held. For people and for pacing.
    pub ages: Ages,
    /// The nodes that showed it.
    pub nodes: Vec<NodeIndex>,
}

/// What a change ends with.
pub type ChangeResult<A> = Result<Committed<A>, RegisterError>;

/// A change that waits for its round. Dropping it does not take the change back.
#[derive(Debug)]
pub struct Ticket<A> {
    claim: Arc<Claim>,
    result: oneshot::Receiver<ChangeResult<A>>,
    enqueued: Moment,
}

/// All registers of one kind.
pub struct Registers<K: Kind> {
    inner: Arc<Inner<K>>,
}

struct Inner<K: Kind> {
    cluster: Arc<Cluster>,
    /// How long a round is retried without a quorum.
    patience: Duration,
    shards: Vec<Mutex<Shard<K>>>,
    looking: Arc<Looking<K>>,
}

struct Shard<K: Kind> {
    /// Never iterated over, so its order does not matter.
    lines: HashMap<Arc<str>, Line<K>>,
    /// Idle lines with a warm promise.
    idle: Resting,
}

/// Names of lines that came to rest, the longest idle first, with what their values weigh. A name stands there once for each
/// time that it came to rest.
#[derive(Default)]
struct Resting {
    names: VecDeque<(Arc<str>, usize)>,
    bytes: usize,
}

struct Line<K: Kind> {
    waiting: VecDeque<Pending<K>>,
    running: bool,
    warm: Option<Warm<K::Value>>,
    /// When its last round ended.
    ended: Moment,
    /// How often the name stands in [`Shard::idle`].
    rests: u32,
}

/// What one round applies, and what it may begin with in place of a prepare.
struct Group<K: Kind> {
    pending: Vec<Pending<K>>,
    warm: Option<Warm<K::Value>>,
    promised: Option<Promised>,
}

struct Pending<K: Kind> {
    entry: Entry<K>,
    result: oneshot::Sender<ChangeResult<K::Answer>>,
    deadline: Moment,
    extras: Extras,
    /// Of the call that it belongs to, for traces.
    span: tracing::Span,
}

/// What a change brings with it, beside itself.
#[derive(Default)]
pub struct Extras {
    start: Option<Start>,
    doubt: Option<Ballot>,
    /// What it takes up while it waits and is written.
    _room: Option<Held>,
}

impl Extras {
    /// The name is one that nobody else can know: nothing can have been proposed for it, and no prepare is needed.
    pub fn fresh(ballot: Ballot) -> Self {
        Self { start: Some(Start::Fresh(ballot)), ..Self::default() }
    }

    /// A claim has prepared the register.
    pub fn promised(promised: Promised) -> Self {
        Self { start: Some(Start::Promised(promised)), ..Self::default() }
    }

    /// The change was tried before, with an unknown outcome, under this ballot or a later one, and the register was absent then
    /// as far as is known. It knows its own effect where it finds it; where it finds nothing, that may have been forgotten,
    /// and unless the floors say otherwise the outcome stays unknown.
    pub fn after_doubt(first: Ballot) -> Self {
        Self { doubt: Some(first), ..Self::default() }
    }

    /// The change takes up room.
    pub fn with_room(self, room: Held) -> Self {
        Self { _room: Some(room), ..self }
    }
}

/// What spares a round its prepare.
enum Start {
    /// Nobody else can have proposed anything for the name: this ballot is the first.
    Fresh(Ballot),
    /// A claim has prepared it.
    Promised(Promised),
}

impl<A> Ticket<A> {
    /// The right to take the change back.
    pub fn claim(&self) -> Arc<Claim> {
        self.claim.clone()
    }
}

/// Names in byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// What the index says; a hint.
    pub names: Vec<String>,
    /// There may be more after the last.
    pub more: bool,
}

impl<K: Kind> Clone for Registers<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: Kind> Registers<K> {
    /// The registers of kind `K` on a cluster. Without a quorum a round is given up after `patience`.
    pub fn new(cluster: Arc<Cluster>, patience: Duration) -> Self {
        let shard = || Mutex::new(Shard { lines: HashMap::new(), idle: Resting::default() });
        let shards = (0..SHARDS).map(|_| shard()).collect();
        let looking = Looking::new(cluster.clone());
        Self { inner: Arc::new(Inner { cluster, patience, shards, looking }) }
    }

    /// The cluster under it.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.inner.cluster
    }

    /// That too few members answered in time, with what is wrong with each as far as is known.
    pub fn no_quorum(&self) -> RegisterError {
        self.inner.no_quorum()
    }

    /// Changes one register.
    ///
    /// # Errors
    /// [`RegisterError`] says what is certain. The answer comes by `deadline`.
    pub async fn change(&self, name: &str, change: K::Change, deadline: Moment) -> ChangeResult<K::Answer> {
        let [ticket] = self.enqueue(name, [change], deadline)?;
        self.wait(ticket, deadline).await
    }

    /// Whether nothing is under way here for the register, and the value that this daemon wrote last, which others may have
    /// changed since, passes the test.
    pub fn rests_at(&self, name: &str, test: impl FnOnce(&K::Value) -> bool) -> bool {
        let shard = self.inner.shard(name);
        let resting = shard.lines.get(name).filter(|line| !line.running);
        resting.and_then(|line| line.warm.as_ref()).is_some_and(|warm| test(warm.value()))
    }

    /// Puts changes in line, next to each other, so that one round applies them together if it can.
    ///
    /// # Errors
    /// [`RegisterError::Overloaded`], and none is in line.
    pub fn enqueue<const N: usize>(
        &self,
        name: &str,
        changes: [K::Change; N],
        deadline: Moment,
    ) -> Result<[Ticket<K::Answer>; N], RegisterError> {
        self.enqueue_from(name, changes, deadline, Extras::default())
    }

    /// Puts one change in line, with what it brings.
    ///
    /// # Errors
    /// [`RegisterError::Overloaded`], and it is not in line.
    pub fn enqueue_with(
        &self,
        name: &str,
        change: K::Change,
        extras: Extras,
        deadline: Moment,
    ) -> Result<Ticket<K::Answer>, RegisterError> {
        self.enqueue_from(name, [change], deadline, extras).map(|[ticket]| ticket)
    }

    fn enqueue_from<const N: usize>(
        &self,
        name: &str,
        changes: [K::Change; N],
        deadline: Moment,
        mut extras: Extras,
    ) -> Result<[Ticket<K::Answer>; N], RegisterError> {
        let enqueued = self.inner.cluster.runtime.clock.now();
        let mut shard = self.inner.shard(name);
        let (name, line) = shard.line(name);
        if line.waiting.len() + N > limits::CHANGES_QUEUED_MAX {
            return Err(RegisterError::Overloaded {
                waiting: line.waiting.len(),
                max: limits::CHANGES_QUEUED_MAX,
            });
        }
        let tickets = changes.map(|change| {
            let (sender, result) = oneshot::channel();
            let claim = Arc::new(Claim::default());
            let entry = Entry { change, claim: claim.clone() };
            line.waiting.push_back(Pending {
                entry,
                result: sender,
                deadline,
                extras: std::mem::take(&mut extras),
                span: tracing::Span::current(),
            });
            Ticket { claim, result, enqueued }
        });
        if !std::mem::replace(&mut line.running, true) {
            drop(shard);
            let inner = self.inner.clone();
            self.inner.cluster.runtime.spawner.spawn(async move { inner.run(name).await }.boxed());
        }
        Ok(tickets)
    }

    /// Waits for a change in line, and takes it back if it has not gone out by the deadline.
    ///
    /// # Errors
    /// [`RegisterError`] says what is certain.
    pub async fn wait(&self, ticket: Ticket<K::Answer>, deadline: Moment) -> ChangeResult<K::Answer> {
        let clock = &self.inner.cluster.runtime.clock;
        let Ticket { claim, mut result, enqueued } = ticket;
        let timer = clock.sleep_until(deadline);
        match future::select(&mut result, timer).await {
            Either::Left((Ok(result), _)) => result,
            // The round's task ended without a word: the runtime is stopping.
            Either::Left((Err(_), _)) => Err(RegisterError::OutcomeUnknown),
            Either::Right(_) if claim.withdraw() => Err(self.inner.in_vain(enqueued)),
            Either::Right(_) => match result.try_recv() {
                Ok(Some(result)) => result,
                Ok(None) | Err(_) => Err(RegisterError::OutcomeUnknown),
            },
        }
    }

    /// Looks at one register, linearizably, with a change that [`Kind::is_look`]. In line with the daemon's other changes of it,
    /// if there are any, so that it meets no write half way; else in one round with looks of other registers.
    ///
    /// # Errors
    /// [`RegisterError`] says what is certain. The answer comes by `deadline`.
    pub async fn look(&self, name: &str, change: K::Change, deadline: Moment) -> ChangeResult<K::Answer> {
        debug_assert!(K::is_look(&change), "only looks go together: {change:?}");
        let inner = &self.inner;
        if !inner.is_busy(name)
            && let Some(Joined { answer, is_prompt }) = inner.looking.join(name, change.clone(), deadline)
        {
            let clock = &inner.cluster.runtime.clock;
            let began = clock.now();
            // A timer for each look would be a fiftieth of its price.
            let answer = if is_prompt && deadline >= began + looking::PROMPT {
                answer.await.ok().flatten()
            } else {
                match future::select(answer, clock.sleep_until(deadline)).await {
                    Either::Left((answer, _)) => answer.ok().flatten(),
                    Either::Right(_) => return Err(inner.in_vain(began)),
                }
            };
            if let Some(answer) = answer {
                return Ok(Committed { answer, ballot: Ballot::ZERO, first_sent: None });
            }
        }
        self.change(name, change, deadline).await
    }

    /// Reads one register, linearizably: one round trip where q nodes agree.
    ///
    /// # Errors
    /// [`RegisterError`]; a read never leaves anything behind but a finished write of somebody else's.
    pub async fn read(&self, name: &str, deadline: Moment) -> Result<Observed<K::Value>, RegisterError> {
        let inner = &self.inner;
        let key = RegisterKey::new(K::LETTER, name);
        let mut reader =
            Proposer::<K>::new(key, inner.cluster.size, inner.cluster.proposer, Vec::new(), None);
        let started = inner.cluster.runtime.clock.now();
        let limit = deadline.min(started + inner.patience);
        let decided = drive(&inner.cluster, &mut reader, limit).await;
        match decided.seen {
            Some(seen) => {
                inner.meter().reads.took(inner.cluster.runtime.clock.now().since(started));
                let mut nodes = seen.nodes;
                nodes.sort_unstable();
                Ok(Observed { value: seen.value, vid: seen.vid, ages: seen.ages, nodes })
            }
            None => Err(inner.no_quorum()),
        }
    }
}

impl<K: Kind> Registers<K> {
    /// Names of listed registers with a prefix, after a name, from the indexes of a quorum. What is certain: a register
    /// that was listed all the while is among them.
    ///
    /// # Errors
    /// [`RegisterError::NoQuorum`].
    pub async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        deadline: Moment,
    ) -> Result<Names, RegisterError> {
        self.list_index(K::LETTER.to_string(), prefix, after, limit, deadline).await
    }

    /// The same from another index of the kind ([`crate::node::keyspace`]).
    ///
    /// # Errors
    /// [`RegisterError::NoQuorum`].
    pub async fn list_index(
        &self,
        index: String,
        prefix: &str,
        after: &str,
        limit: usize,
        deadline: Moment,
    ) -> Result<Names, RegisterError> {
        let list = Operation::List { index, prefix: prefix.to_owned(), after: after.to_owned(), limit };
        let names = |answer| match answer {
            Answer::Names(names) => Some(names),
            _ => None,
        };
        Ok(merge_names(self.ask_quorum(&list, names, deadline).await?, limit))
    }

    /// What at least q members answer to a question that changes nothing. Each as of its node alone: a hint.
    ///
    /// # Errors
    /// [`RegisterError::NoQuorum`].
    pub async fn ask_quorum<T>(
        &self,
        question: &Operation,
        pick: impl Fn(Answer) -> Option<T>,
        deadline: Moment,
    ) -> Result<Vec<T>, RegisterError> {
        let (inner, runtime) = (&self.inner, &self.inner.cluster.runtime);
        let give_up = deadline.min(runtime.clock.now() + inner.patience);
        loop {
            let view = inner.cluster.views.current();
            let answers = inner.cluster.ask_all(question).await.into_iter();
            let counted = answers.filter_map(|(node, memory, answer)| {
                view.as_ref().filter(|view| view.counts(node, memory))?;
                pick(answer)
            });
            let counted: Vec<_> = counted.collect();
            if counted.len() >= inner.cluster.size.quorum() {
                return Ok(counted);
            }
            if runtime.clock.now() >= give_up {
                return Err(inner.no_quorum());
            }
            inner.cluster.views.want();
            runtime.clock.sleep_until(runtime.clock.now() + LIST_PAUSE).await;
        }
    }
}

impl<K: Kind> Registers<K> {
    /// Prepares the first ready items of a queue, under one ballot. One try: without a quorum it fails at once.
    ///
    /// # Errors
    /// [`RegisterError::NoQuorum`]; a claim changes nothing but promises, and keeps others off for the request's mark.
    pub async fn claim(&self, request: ClaimRequest, deadline: Moment) -> Result<Haul, RegisterError> {
        let inner = &self.inner;
        let limit = deadline.min(inner.cluster.runtime.clock.now() + inner.patience);
        let mut claimer = Claimer::new(request, inner.cluster.size);
        let (gathered, view) = drive_from(&inner.cluster, &mut claimer, limit, None).await;
        let haul = gathered.zip(view).map(|(gathered, view)| gathered.under(view));
        haul.ok_or_else(|| inner.no_quorum())
    }

    /// The same at one node, the first that can be reached: where all daemons do that, it says who of them gets what. `None` if
    /// it does not answer.
    pub async fn claim_at_first(&self, request: ClaimRequest) -> Option<Haul> {
        let cluster = &self.inner.cluster;
        let (view, size, ballot) = (cluster.views.current()?, cluster.size, request.ballot);
        let first = size.indexes().find(|node| cluster.is_reachable(&view, *node))?;
        let operation = Operation::Claim(request).encode();
        let answers = cluster.ask_under(view.vid, std::iter::once((first, operation))).await;
        let (node, _, answer) = answers.into_iter().find(|(node, memory, _)| view.counts(*node, *memory))?;
        let Answer::Claimed(claimed) = answer else { return None };
        Some(Gathered::of_one(ballot, size, node, claimed).under(view))
    }
}

/// One page out of several indexes. A node that gave as many as were asked for may have more after its last, so the
/// page ends there at the latest.
fn merge_names(indexes: Vec<Vec<String>>, limit: usize) -> Names {
    let full = indexes.iter().filter(|names| names.len() >= limit);
    let certain_to = full.filter_map(|names| names.last().cloned()).min();
    let all: BTreeSet<String> = indexes.into_iter().flatten().collect();
    let more_known = all.len();
    let within = |name: &String| certain_to.as_ref().is_none_or(|last| name <= last);
    let names: Vec<String> = all.into_iter().filter(within).take(limit).collect();
    let more = certain_to.is_some() || names.len() < more_known;
    Names { names, more }
}

impl<K: Kind> Shard<K> {
    fn line(&mut self, name: &str) -> (Arc<str>, &mut Line<K>) {
        // The name is stored once and shared with the line's task.
        let name: Arc<str> = match self.lines.get_key_value(name) {
            Some((known, _)) => known.clone(),
            None => name.into(),
        };
        let line = self.lines.entry(name.clone()).or_insert_with(|| Line {
            waiting: VecDeque::new(),
            running: false,
            warm: None,
            ended: Moment::ZERO,
            rests: 0,
        });
        (name, line)
    }

    /// The line has nothing to do. It is kept only for its warm promise, and the longest idle make room.
    fn rest(&mut self, name: &Arc<str>) {
        let Some(line) = self.lines.get_mut(name) else { return };
        line.running = false;
        if let Some(warm) = &line.warm {
            line.rests += 1;
            self.idle.push(name.clone(), K::weight(warm.value()));
        } else if line.rests == 0 {
            self.lines.remove(name);
        }
        while let Some(oldest) = self.idle.pop_surplus() {
            let Some(line) = self.lines.get_mut(&oldest) else { continue };
            // A name stands there once for each time it came to rest; its last place counts.
            line.rests -= 1;
            if line.rests == 0 && !line.running {
                self.lines.remove(&oldest);
            }
        }
    }
}

impl Resting {
    fn push(&mut self, name: Arc<str>, bytes: usize) {
        self.names.push_back((name, bytes));
        self.bytes += bytes;
    }

    /// The longest idle, as long as there are too many or too heavy ones.
    fn pop_surplus(&mut self) -> Option<Arc<str>> {
        if self.names.len() <= WARM_PER_SHARD_MAX && self.bytes <= WARM_BYTES_PER_SHARD_MAX {
            return None;
        }
        let (name, bytes) = self.names.pop_front()?;
        self.bytes -= bytes;
        Some(name)
    }
}

impl<K: Kind> Inner<K> {
    fn shard(&self, name: &str) -> MutexGuard<'_, Shard<K>> {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let shard = &self.shards[hasher.finish() as usize % SHARDS];
        shard.lock().expect("no holder of this lock panics")
    }

    /// Whether a change of the register waits or is under way.
    fn is_busy(&self, name: &str) -> bool {
        self.shard(name).lines.get(name).is_some_and(|line| line.running)
    }

    /// For what had no answer by its deadline and has done nothing.
    fn in_vain(&self, began: Moment) -> RegisterError {
        if self.cluster.reachable() < self.cluster.size.quorum() {
            return self.no_quorum();
        }
        RegisterError::DeadlineExceeded { waited: self.cluster.runtime.clock.now().since(began) }
    }

    /// Runs rounds until nobody waits.
    async fn run(&self, name: Arc<str>) {
        let key = RegisterKey::new(K::LETTER, &name);
        while let Some(group) = self.take_group(&name) {
            self.round(&name, &key, group).await;
        }
    }

    /// The next group, or `None` and the line rests.
    fn take_group(&self, name: &Arc<str>) -> Option<Group<K>> {
        let mut shard = self.shard(name);
        let line = shard.lines.get_mut(name)?;
        line.waiting.retain(|pending| !pending.entry.claim.is_withdrawn());
        if line.waiting.is_empty() {
            shard.rest(name);
            return None;
        }
        let count = line.waiting.len().min(limits::GROUP_MAX);
        let warm = line.warm.take().filter(|warm| {
            // What says nothing may be forgotten, and its promise with it. An accept that goes by that is refused by all
            // whom it reaches, and where one does not answer, nobody can tell what became of it.
            let rested = self.cluster.runtime.clock.now().since(line.ended);
            K::is_listed(warm.value()) || rested < limits::FORGET_LAG
        });
        let mut pending: Vec<_> = line.waiting.drain(..count).collect();
        // A warm promise came after it, or is void by what the claim was promised.
        let group = match pending.iter_mut().find_map(|pending| pending.extras.start.take()) {
            None => Group { pending, warm, promised: None },
            Some(Start::Fresh(ballot)) => {
                Group { pending, warm: warm.or_else(|| Some(Warm::absent(ballot))), promised: None }
            }
            Some(Start::Promised(promised)) => Group { pending, warm: None, promised: Some(promised) },
        };
        Some(group)
    }

    async fn round(&self, name: &Arc<str>, key: &RegisterKey, group: Group<K>) {
        let Group { pending, warm, promised } = group;
        let is_warm = warm.is_some() || promised.is_some();
        let span = round_span(pending.iter().map(|pending| &pending.span));
        let now = self.cluster.runtime.clock.now();
        let pending_doubt = pending.iter().filter_map(|pending| pending.extras.doubt).min();
        let latest = pending.iter().map(|pending| pending.deadline).max().expect("a group is not empty");
        let (entries, waiters): (Vec<_>, Vec<_>) = pending
            .into_iter()
            .map(|pending| (pending.entry, (pending.result, pending.deadline, pending.extras, pending.span)))
            .unzip();
        let mut proposer =
            Proposer::<K>::new(key.clone(), self.cluster.size, self.cluster.proposer, entries, warm);
        if let Some(first) = pending_doubt {
            proposer = proposer.after_doubt(first);
        }
        let view = promised.as_ref().map(|promised| promised.view.clone());
        if let Some(promised) = promised {
            proposer = proposer.with_promises(promised);
        }
        let meter = self.meter();
        meter.changes.had(waiters.len());
        if is_warm {
            meter.warm.one();
        }
        let limit = latest.min(now + self.patience);
        let (decided, _) = drive_from(&self.cluster, &mut proposer, limit, view).instrument(span).await;
        let Decided { fates, warm, .. } = decided;
        if warm.as_ref().is_some_and(|warm| !K::is_listed(warm.value())) {
            let quiet = warm.as_ref().map_or(Duration::ZERO, |warm| K::retention(warm.value()));
            self.cluster.idle.add(key, self.cluster.runtime.clock.now() + quiet);
        }
        let mut deferred = Vec::new();
        for ((fate, entry), (result, deadline, extras, span)) in
            fates.into_iter().zip(proposer.into_entries()).zip(waiters)
        {
            match self.result_of(fate) {
                // Whoever asked may be gone; nobody misses the answer then.
                Some(answer) => drop(result.send(answer)),
                None => {
                    entry.claim.reopen();
                    deferred.push(Pending { entry, result, deadline, extras, span });
                }
            }
        }
        let mut shard = self.shard(name);
        let (_, line) = shard.line(name);
        line.warm = warm;
        line.ended = self.cluster.runtime.clock.now();
        meter.rounds.took(line.ended.since(now));
        for pending in deferred.into_iter().rev() {
            line.waiting.push_front(pending);
        }
    }

    /// `None` for "once more in the next round".
    fn result_of(&self, fate: Fate<K::Answer>) -> Option<ChangeResult<K::Answer>> {
        let fates = &self.meter().fates;
        let (counted, result) = match fate {
            Fate::Done { answer, ballot, first_sent } => {
                (&fates.done, Ok(Committed { answer, ballot, first_sent }))
            }
            Fate::Deferred => return None,
            Fate::Withdrawn | Fate::NotApplied => (&fates.no_quorum, Err(self.no_quorum())),
            Fate::Unknown => (&fates.unknown, Err(RegisterError::OutcomeUnknown)),
            Fate::Unreadable(detail) => (&fates.refused, Err(RegisterError::Unreadable { detail })),
            Fate::ClockTooFarAhead => (&fates.refused, Err(RegisterError::ClockTooFarAhead)),
        };
        counted.one();
        Some(result)
    }

    fn meter(&self) -> &KindMeter {
        self.cluster.meter.kinds.of(K::LETTER)
    }

    fn no_quorum(&self) -> RegisterError {
        RegisterError::NoQuorum {
            reachable: self.cluster.reachable(),
            nodes: self.cluster.size.nodes(),
            quorum: self.cluster.size.quorum(),
            detail: self.cluster.complaint(),
        }
    }
}

/// A round belongs to the first of the calls that it is made for, and is linked to the others: that is who waits for it.
pub(super) fn round_span<'a>(calls: impl Iterator<Item = &'a tracing::Span> + Clone) -> tracing::Span {
    let mut traced = calls.filter(|span| !span.is_none());
    let Some(first) = traced.next() else { return tracing::Span::none() };
    let span = tracing::debug_span!(target: "otlp", parent: first, "round", changes = tracing::field::Empty);
    let others = traced.inspect(|other| {
        span.follows_from(*other);
    });
    span.record("changes", 1 + others.count());
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_make_room_where_there_are_too_many_or_too_heavy_ones() {
        let rest = |count: usize, bytes: usize| {
            let (mut resting, mut left) = (Resting::default(), 0);
            for number in 0..count {
                resting.push(number.to_string().into(), bytes);
                while let Some(name) = resting.pop_surplus() {
                    assert_eq!(name.as_ref(), left.to_string());
                    left += 1;
                }
            }
            count - left
        };
        assert_eq!(rest(WARM_PER_SHARD_MAX, 0), WARM_PER_SHARD_MAX);
        assert_eq!(rest(WARM_PER_SHARD_MAX + 7, 0), WARM_PER_SHARD_MAX);
        assert_eq!(rest(10, WARM_BYTES_PER_SHARD_MAX / 4), 4);
        assert_eq!(rest(10, WARM_BYTES_PER_SHARD_MAX), 1);
        assert_eq!(rest(10, WARM_BYTES_PER_SHARD_MAX + 1), 0, "what is heavier than all may be is not kept");
    }

    #[test]
    fn a_page_ends_where_an_index_may_have_more() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        // Two indexes, limit: page, more?
        for (one, two, limit, page, more) in [
            (&["a", "b"][..], &["b", "c"][..], 5, &["a", "b", "c"][..], false),
            (&["a", "b"], &["b", "c"], 2, &["a", "b"], true),
            (&["a", "d"], &["b", "c"], 2, &["a", "b"], true),
            (&["a"], &["b", "c"], 2, &["a", "b"], true),
            (&[], &[], 2, &[], false),
        ] {
            let merged = merge_names(vec![names(one), names(two)], limit);
            assert_eq!(merged, Names { names: names(page), more }, "{one:?} {two:?} {limit}");
        }
    }
}
