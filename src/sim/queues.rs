//! Queues in a run: what their clients share, the end of the run when everything is drained, and [`judge`].

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, Either};

use super::cells::Judged;
use super::daemon::{Daemons, SimDaemon};
use super::history::{CallId, Fate};
use super::invariants::{Event, Grant, Leasable, accounting, deliveries};
use super::item::{ItemAsked, ItemTold, QueueNotes, delivery, fate_of};
use super::judge::Judge;
use super::options::QueueWork;
use super::random::Random;
use super::story::Story;
use super::world::World;
use crate::ids::QueueName;
use crate::queue::{
    Extended, Leased, Nack, QueueError, QueueOptions, QueueOptionsPatch, Queues, Reserved, Settled,
};
use crate::runtime::Moment;
use crate::token::Token;

/// Calls that the client drops half way, in percent.
const IMPATIENT: u64 = 5;
/// Longer than any deadline and any pause: a call answers by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of the queues of a run.
pub fn name(number: u64) -> QueueName {
    QueueName::parse(&format!("q{number}")).expect("a good name")
}

/// One client of queues, whatever it does.
pub struct QueueClient {
    /// The world.
    pub world: World,
    /// Whom it tells.
    pub judge: Arc<Judge>,
    /// Whom it calls.
    pub daemons: Arc<Daemons>,
    /// Its number.
    pub client: u32,
    /// Its accidents.
    pub random: Random,
    /// What the seed decided.
    pub work: QueueWork,
}

/// An item that a client has leased.
#[derive(Clone, Debug)]
pub struct Held {
    /// Out of which queue.
    pub queue: QueueName,
    /// Its name in the history.
    pub item: String,
    /// As it was delivered.
    pub reserved: Reserved,
    /// Until when the client relies on it, by the world's clock.
    pub until: Moment,
}

impl Held {
    /// Which lease of which item.
    pub fn lease(&self) -> Leased {
        Leased { id: self.reserved.id.clone(), lease_id: self.reserved.lease_id }
    }

    fn name(&self) -> Leasable {
        Leasable::Item(self.queue.clone(), self.reserved.id.clone())
    }

    fn token(&self) -> Token {
        self.reserved.token
    }
}

impl QueueClient {
    /// A client with a number of its own.
    pub fn new(
        world: &World,
        client: u32,
        judge: &Arc<Judge>,
        daemons: &Arc<Daemons>,
        work: &QueueWork,
    ) -> Self {
        let (judge, daemons) = (judge.clone(), daemons.clone());
        Self { world: world.clone(), judge, daemons, client, random: world.fork(), work: work.clone() }
    }

    /// One line of the trace.
    pub fn say(&self, words: std::fmt::Arguments<'_>) {
        self.judge.say(format_args!("client {}  {words}", self.client));
    }

    /// What it is about.
    pub fn does(&self, what: String) {
        let now = self.world.now();
        self.judge.progress(|progress| progress.does(self.client, now, what));
    }

    /// One of the queues.
    pub fn queue(&mut self) -> QueueName {
        name(self.random.below(self.work.queues))
    }

    /// A daemon that is alive; after a while, if there is none.
    pub async fn daemon(&mut self) -> Option<Arc<SimDaemon>> {
        let picked = self.daemons.pick(&mut self.random);
        if picked.is_none() {
            self.world.sleep(Duration::from_millis(100)).await;
        }
        picked
    }

    /// A moment by which the daemon is to answer.
    pub fn deadline(&mut self, daemon: &SimDaemon) -> Moment {
        let longest = if self.random.chance(15) { 30_000 } else { 4_000 };
        daemon.now() + Duration::from_millis(50 + self.random.below(longest))
    }

    /// The pause between two calls, up to so long. Often none, so that clients meet.
    pub async fn rest(&mut self, longest: Duration) {
        let longest = if self.random.chance(30) { Duration::from_millis(3) } else { longest };
        let pause = Duration::from_micros(self.random.below(longest.as_micros() as u64));
        self.world.sleep(pause).await;
    }

    /// Calls a daemon. `None` when it died, or when the client hung up.
    pub async fn call<T, C, F>(&mut self, daemon: &SimDaemon, call: C) -> Option<T>
    where
        T: Send + 'static,
        C: FnOnce(Queues) -> F,
        F: Future<Output = T> + Send + 'static,
    {
        let patience = if self.random.chance(IMPATIENT) {
            Duration::from_millis(self.random.below(20))
        } else {
            PATIENCE
        };
        let answer = daemon.call(call(daemon.queues.clone()));
        match future::select(answer.boxed(), self.world.sleep(patience)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => None,
        }
    }

    /// A call of an item begins.
    pub fn begin(&self, item: &str, asked: ItemAsked) -> CallId {
        let now = self.world.now();
        self.judge.queues(|notes| notes.items.begin(item, self.client, asked, now))
    }

    /// Its fate is known, as far as it will be.
    pub fn end(&self, call: CallId, fate: Fate<ItemTold>) {
        let now = self.world.now();
        self.judge.queues(|notes| notes.items.end(call, fate, now));
    }

    /// It is told that it has an item. `None` if nobody can have put it.
    pub fn takes(
        &self,
        daemon: &SimDaemon,
        queue: &QueueName,
        start: Moment,
        reserved: Reserved,
    ) -> Option<Held> {
        let until = daemon.clock.global(reserved.valid_until);
        let Some((item, told)) = delivery(&reserved, until) else {
            self.judge.violated(format!("client {} is given what nobody put: {reserved:?}", self.client));
            return None;
        };
        self.say(format_args!("has {item} with token {}, attempt {}", told.token, told.attempt));
        let now = self.world.now();
        self.judge.queues(|notes| {
            let call = notes.items.begin(&item, self.client, ItemAsked::Lease, start);
            notes.items.end(call, Fate::Answered(ItemTold::Leased(told)), now);
        });
        let held = Held { queue: queue.clone(), item, reserved, until };
        self.relies(&held);
        Some(held)
    }

    /// It relies on the lease until then.
    fn relies(&self, held: &Held) {
        self.judge.observe(&Event::Holds(Grant {
            client: self.client,
            name: held.name(),
            lease: held.reserved.lease_id,
            token: held.token(),
            until: held.until,
        }));
    }

    /// It relies on the lease no longer.
    pub fn lets_go(&self, held: &Held) {
        self.judge.observe(&Event::LetsGo { client: self.client, name: held.name(), token: held.token() });
    }

    /// What a lease came to.
    pub fn settled(
        &self,
        held: &Held,
        call: CallId,
        result: Option<Result<Settled, QueueError>>,
    ) -> Option<Settled> {
        let fate = match &result {
            Some(Ok(settled)) => Fate::Answered(ItemTold::Settled(*settled)),
            Some(Err(error)) => fate_of(error),
            None => Fate::Unknown("no answer".into()),
        };
        self.end(call, fate);
        let settled = result.and_then(Result::ok)?;
        // Whatever the answer: this lease is over.
        self.judge.observe(&Event::Over { name: held.name(), lease: held.reserved.lease_id });
        Some(settled)
    }

    /// Acks or gives back items of one queue, in one call. What each came to, if it was told.
    pub async fn settle(&mut self, all: &[Held], nack: Option<Option<Duration>>) -> Vec<Option<Settled>> {
        let Some(first) = all.first() else { return Vec::new() };
        let Some(daemon) = self.daemon().await else { return vec![None; all.len()] };
        let asked = |held: &Held| match nack {
            None => ItemAsked::Ack(held.token()),
            Some(delay) => ItemAsked::Nack(held.token(), delay),
        };
        let calls: Vec<CallId> = all.iter().map(|held| self.begin(&held.item, asked(held))).collect();
        all.iter().for_each(|held| self.lets_go(held));
        let (queue, deadline) = (first.queue.clone(), self.deadline(&daemon));
        let leases: Vec<Leased> = all.iter().map(Held::lease).collect();
        let answer = self
            .call(&daemon, |queues| async move {
                let Some(delay) = nack else { return queues.ack(&queue, leases, deadline).await };
                let reason = "not now".to_owned();
                let nack = |lease| Nack { lease, delay, reason: reason.clone() };
                queues.nack(&queue, leases.into_iter().map(nack).collect(), deadline).await
            })
            .await;
        let results = self.one_each(answer, all.len());
        let ended = all.iter().zip(calls).zip(results);
        ended.map(|((held, call), result)| self.settled(held, call, result)).collect()
    }

    /// Asks for more time for items of one queue, in one call. Those that it has still.
    pub async fn extend(&mut self, mut all: Vec<Held>) -> Vec<Held> {
        let Some(queue) = all.first().map(|held| held.queue.clone()) else { return all };
        let Some(daemon) = self.daemon().await else { return all };
        let ttl = self.random.chance(40).then(|| self.ttl());
        if let Some(ttl) = ttl {
            // Whoever asks for a shorter lease may have it from then on, told so or not.
            let shorter = self.world.now() + (ttl - ttl / 200);
            for held in &mut all {
                held.until = held.until.min(shorter);
                self.relies(held);
            }
        }
        let asked = |held: &Held| ItemAsked::Extend(held.token(), ttl);
        let calls: Vec<CallId> = all.iter().map(|held| self.begin(&held.item, asked(held))).collect();
        let (leases, deadline) = (all.iter().map(Held::lease).collect(), self.deadline(&daemon));
        let answer = self
            .call(&daemon, |queues| async move { queues.extend(&queue, leases, ttl, deadline).await })
            .await;
        let results = self.one_each(answer, all.len());
        let mut kept = Vec::new();
        for ((mut held, call), result) in all.into_iter().zip(calls).zip(results) {
            match result {
                Some(Ok(Extended::Until { valid_until, .. })) => {
                    held.until = daemon.clock.global(valid_until);
                    self.end(call, Fate::Answered(ItemTold::Until(held.until)));
                    self.relies(&held);
                    kept.push(held);
                }
                Some(Ok(Extended::Lost(settled))) => {
                    self.lets_go(&held);
                    self.settled(&held, call, Some(Ok(settled)));
                }
                Some(Err(error)) => {
                    self.end(call, fate_of(&error));
                    kept.push(held);
                }
                None => {
                    self.end(call, Fate::Unknown("no answer".into()));
                    kept.push(held);
                }
            }
        }
        kept
    }

    /// The length of a lease.
    pub fn ttl(&mut self) -> Duration {
        Duration::from_millis(300 + self.random.below(3_000))
    }

    /// An answer has a result for each, or there is none.
    pub fn one_each<T>(&self, answer: Option<Vec<T>>, count: usize) -> Vec<Option<T>> {
        match answer {
            Some(results) if results.len() == count => results.into_iter().map(Some).collect(),
            Some(results) => {
                let words =
                    format!("client {} asked for {count} and was told {}", self.client, results.len());
                self.judge.violated(words);
                Vec::new()
            }
            None => (0..count).map(|_| None).collect(),
        }
    }
}

/// Gives each queue its settings, before anything goes wrong.
pub async fn configure(daemon: Arc<SimDaemon>, judge: Arc<Judge>, work: QueueWork) {
    let QueueOptions { lease_ttl, max_attempts, backoff_min, backoff_max, max_items, done_retention } =
        work.options;
    for queue in (0..work.queues).map(name) {
        let patch = QueueOptionsPatch {
            lease_ttl: Some(lease_ttl),
            max_attempts: Some(max_attempts),
            backoff_min: Some(backoff_min),
            backoff_max: Some(backoff_max),
            max_items: Some(max_items),
            done_retention: Some(done_retention),
        };
        let (queues, deadline) = (daemon.queues.clone(), daemon.now() + PATIENCE);
        let call = async move { queues.configure(&queue, patch, deadline).await };
        match daemon.call(call).await {
            Some(Ok(options)) if options == work.options => {}
            other => judge.violated(format!("a queue can't be configured at the start: {other:?}")),
        }
    }
}

/// Judges what clients of queues noted.
///
/// # Errors
/// The calls of the first item of which something must not be.
pub fn judge(notes: &QueueNotes, options: &QueueOptions) -> Result<Judged, String> {
    let mut total = Judged::default();
    for (item, calls) in notes.items.keys() {
        calls.0.iter().for_each(|call| total.count(&call.fate));
        let story = Story::new(item, calls, notes, options.done_retention);
        let judged = accounting::judge(&story).and_then(|()| deliveries::judge(&story, options));
        judged.map_err(|words| format!("the item {item}: {words}\n{calls}"))?;
    }
    Ok(total)
}

/// Items that were put and are still to be acked, as far as anybody was told.
pub fn outstanding(notes: &QueueNotes, options: &QueueOptions) -> Vec<String> {
    let all = notes.items.keys().filter(|(item, calls)| {
        accounting::is_outstanding(&Story::new(item, calls, notes, options.done_retention))
    });
    all.map(|(item, _)| item.to_owned()).collect()
}
