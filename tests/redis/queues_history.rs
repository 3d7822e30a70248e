//! Queues on real servers that are killed, frozen and emptied, with daemons that die: what became of every item.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use futures::future::join_all;
use majorityd::config::Settings;
use majorityd::ids::{ItemId, LeaseId, QueueName};
use majorityd::queue::{Extended, ItemState, Nack, QueueError, QueueOptionsPatch, Reserved, Settled};
use majorityd::register::RegisterError;
use majorityd::runtime::Moment;
use majorityd::token::Token;

use super::queues::{CALL, Told, id, item, lease_of, queue, text};
use crate::support::daemon::{beside, pause, servers};
use crate::support::local::{Caller, LocalDaemon, settings, until_all_count};
use crate::support::redis_server::{Data, RedisServer};

const PRODUCERS: u64 = 4;
const CONSUMERS: u64 = 6;
/// Short, so that the items of those who die come again soon.
const LEASE: Duration = Duration::from_millis(1_500);
/// How long a server is frozen.
const AWAY: Duration = Duration::from_millis(1_500);

/// How sure it is that a put has put its item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Nothing,
    Unknown,
    Done,
}

/// What is known of one item. Items are told apart by what is in them, as the id is not known where a put's outcome is not.
#[derive(Debug, Default)]
struct Story {
    put: Fate,
    /// Under which it was seen.
    ids: BTreeSet<ItemId>,
    /// Puts that were told that they, and none before, had put it.
    puts: u32,
    lease: Option<(LeaseId, Moment)>,
    token: Token,
    attempt: u32,
    /// Acks that were told to be the first.
    acks: u32,
    /// An ack's outcome is open.
    in_doubt: bool,
    /// Acks that have been sent and of whose outcome nothing was told yet: it may have been agreed on all the same.
    under_way: u32,
}

/// What everybody was told, held against what is promised as it comes.
#[derive(Default)]
struct Ledger {
    stories: Mutex<BTreeMap<String, Story>>,
    failed: Mutex<BTreeMap<String, u32>>,
}

/// Whether nothing happened, or nobody knows; and nothing else may be said while nodes fail.
fn fate_of(error: &QueueError) -> Fate {
    match error {
        QueueError::Register(RegisterError::OutcomeUnknown) => Fate::Unknown,
        QueueError::Register(
            RegisterError::NoQuorum { .. }
            | RegisterError::DeadlineExceeded { .. }
            | RegisterError::Overloaded { .. },
        ) => Fate::Nothing,
        other => panic!("no daemon says that here: {other:?}"),
    }
}

impl Ledger {
    fn tell<T>(&self, text: &str, tell: impl FnOnce(&mut Story) -> T) -> T {
        tell(self.stories.lock().unwrap().entry(text.to_owned()).or_default())
    }

    /// What a failed call leaves open; `None` for a daemon that died.
    fn failed(&self, call: &str, error: Option<&QueueError>) -> Fate {
        let fate = error.map_or(Fate::Unknown, fate_of);
        let words = format!("{call}, {fate:?}");
        *self.failed.lock().unwrap().entry(words).or_default() += 1;
        fate
    }

    /// A lease has arrived at a consumer.
    fn delivered(&self, now: Moment, item: &Reserved) {
        self.tell(&text(item), |story| {
            story.ids.insert(item.id.clone());
            assert_eq!(story.ids.len(), 1, "one put, two items: {story:?}");
            if item.valid_until <= now {
                // It took too long to say anything about now; somebody else may have the item, or be done with it.
                return;
            }
            assert_eq!(story.acks, 0, "it was acked, and comes again: {item:?}, {story:?}");
            assert!(item.token > story.token, "tokens do not grow: {item:?}, {story:?}");
            assert!(item.attempt > story.attempt, "attempts do not grow: {item:?}, {story:?}");
            if let Some((_, until)) = story.lease {
                assert!(
                    until <= now,
                    "two leases at a time, for {:?}: {item:?}, {story:?}",
                    until.since(now)
                );
            }
            story.lease = Some((item.lease_id, item.valid_until));
            (story.token, story.attempt) = (item.token, item.attempt);
        });
    }

    /// Its holder goes by the lease up to another moment.
    fn holds_until(&self, item: &Reserved, until: Moment) {
        self.tell(&text(item), |story| {
            if let Some(lease) = story.lease.as_mut().filter(|(lease_id, _)| *lease_id == item.lease_id) {
                lease.1 = until;
            }
        });
    }
}

/// The daemons of the moment.
#[derive(Clone)]
struct Daemons(Arc<RwLock<Vec<LocalDaemon>>>);

impl Daemons {
    async fn start(settings: &Settings, count: usize) -> Self {
        let daemons = join_all((0..count).map(|_| LocalDaemon::start(settings, 1))).await;
        Self(Arc::new(RwLock::new(daemons)))
    }

    /// One of them, in turn.
    fn get(&self, turn: u64) -> Caller {
        let daemons = self.0.read().unwrap();
        daemons[turn as usize % daemons.len()].caller()
    }

    /// One dies, and another takes its place.
    async fn replace(&self, at: usize, settings: &Settings) {
        drop(self.0.write().unwrap().remove(at));
        let new = LocalDaemon::start(settings, 1).await;
        self.0.write().unwrap().insert(at, new);
    }
}

/// What everybody works with.
#[derive(Clone)]
struct Scene {
    queue: QueueName,
    daemons: Daemons,
    ledger: Arc<Ledger>,
    /// No more is put.
    put_up: Arc<AtomicBool>,
    /// Nobody works any more.
    over: Arc<AtomicBool>,
}

impl Scene {
    /// Puts, one item after the other or some at a time, until told to stop.
    async fn produce(self, number: u64) {
        for turn in 0.. {
            if self.put_up.load(Ordering::Relaxed) {
                return;
            }
            let texts = (0..1 + turn % 3).map(|place| format!("{number}-{turn}-{place}"));
            if (turn + number).is_multiple_of(2) {
                self.put_by_id(turn, &texts.collect::<Vec<_>>()).await;
            } else {
                self.put_once(turn, &texts.collect::<Vec<_>>()).await;
            }
            pause(Duration::from_millis(10)).await;
        }
    }

    /// Puts under ids, again and again, at one daemon after the other, until all are known to be there.
    async fn put_by_id(&self, turn: u64, texts: &[String]) {
        let mut open = texts.to_vec();
        texts.iter().for_each(|text| self.ledger.tell(text, |story| story.put = Fate::Unknown));
        for again in turn.. {
            let items = open.iter().map(|text| item(Some(id(text)), text)).collect();
            let Some(Ok(puts)) = self.daemons.get(again).put(&self.queue, items).await else { continue };
            let mut left = Vec::new();
            for (text, put) in open.into_iter().zip(puts) {
                match put {
                    Ok(put) => self.ledger.tell(&text, |story| {
                        story.put = Fate::Done;
                        story.puts += u32::from(!put.duplicate);
                        assert!(story.puts <= 1, "put anew for a second time: {story:?}");
                    }),
                    Err(error) => {
                        self.ledger.failed("put with an id", Some(&error));
                        left.push(text);
                    }
                }
            }
            if left.is_empty() {
                return;
            }
            open = left;
        }
    }

    /// Puts under ids of the daemon's making, once, whatever comes of it.
    async fn put_once(&self, turn: u64, texts: &[String]) {
        texts.iter().for_each(|text| self.ledger.tell(text, |story| story.put = Fate::Unknown));
        let items = texts.iter().map(|text| item(None, text)).collect();
        let told = self.daemons.get(turn).put(&self.queue, items).await;
        let fates: Vec<(Fate, Option<ItemId>)> = match told {
            Some(Ok(puts)) => puts
                .into_iter()
                .map(|put| match put {
                    Ok(put) => (Fate::Done, Some(put.id)),
                    Err(error) => (self.ledger.failed("put", Some(&error)), None),
                })
                .collect(),
            // As a whole: nothing was put.
            Some(Err(error)) => {
                self.ledger.failed("put", Some(&error));
                vec![(Fate::Nothing, None); texts.len()]
            }
            None => vec![(self.ledger.failed("put", None), None); texts.len()],
        };
        for (text, (fate, id)) in texts.iter().zip(fates) {
            self.ledger.tell(text, |story| {
                story.put = fate;
                story.ids.extend(id);
                assert!(story.ids.len() <= 1, "one put, two items: {story:?}");
            });
        }
    }

    /// Takes items and does something to each, until told to stop.
    async fn consume(self, number: u64) {
        let (mut count, mut work) = (number, Vec::new());
        for turn in number.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let caller = self.daemons.get(turn);
            let wait = Duration::from_millis(300);
            let items = match caller.reserve(&self.queue, 1 + (turn % 4) as usize, LEASE, wait).await {
                Some(Ok(items)) => items,
                Some(Err(error)) => {
                    self.ledger.failed("reserve", Some(&error));
                    continue;
                }
                None => {
                    self.ledger.failed("reserve", None);
                    continue;
                }
            };
            let now = caller.now();
            items.iter().for_each(|item| self.ledger.delivered(now, item));
            for item in items {
                count += 1;
                let scene = self.clone();
                work.push(beside(async move { scene.work(count, item).await }));
            }
        }
        join_all(work).await.into_iter().for_each(|work| work.unwrap());
    }

    async fn work(&self, turn: u64, item: Reserved) {
        match turn % 12 {
            // It dies with the item.
            3 => {}
            5 | 9 => self.give_back(turn, &item).await,
            7 => {
                pause(LEASE / 3).await;
                if self.extend(turn, &item).await {
                    pause(LEASE / 2).await;
                    self.ack(turn, &item).await;
                }
            }
            // Longer than the lease, and others may have had the item by then.
            11 => {
                pause(LEASE * 2).await;
                self.ack(turn, &item).await;
            }
            _ => self.ack(turn, &item).await,
        }
    }

    async fn give_back(&self, turn: u64, item: &Reserved) {
        let caller = self.daemons.get(turn);
        let delay = Duration::from_millis(turn * 37 % 300);
        let nack = Nack { lease: lease_of(item), delay: Some(delay), reason: "not now".into() };
        // Before it is sent: the next may have the item before the answer is here.
        self.ledger.holds_until(item, caller.now());
        match caller.nack(&self.queue, nack).await {
            Some(Ok(Settled::Done | Settled::LeaseLost | Settled::AlreadyDone)) => {}
            Some(Ok(other)) => panic!("{other:?} to a nack of {item:?}"),
            Some(Err(error)) => drop(self.ledger.failed("nack", Some(&error))),
            None => drop(self.ledger.failed("nack", None)),
        }
    }

    /// Whether the item is still the consumer's.
    async fn extend(&self, turn: u64, item: &Reserved) -> bool {
        let (caller, queue, lease) = (self.daemons.get(turn), self.queue.clone(), lease_of(item));
        let deadline = caller.now() + CALL;
        let extended = caller
            .call(|queues| async move { queues.extend(&queue, vec![lease], None, deadline).await.remove(0) })
            .await;
        match extended {
            Some(Ok(Extended::Until { valid_until, .. })) => {
                self.ledger.holds_until(item, valid_until);
                true
            }
            Some(Ok(Extended::Lost(Settled::LeaseLost | Settled::AlreadyDone))) => false,
            Some(Ok(other)) => panic!("{other:?} to an extension of {item:?}"),
            Some(Err(error)) => {
                self.ledger.failed("extend", Some(&error));
                false
            }
            None => {
                self.ledger.failed("extend", None);
                false
            }
        }
    }

    /// Acks, again and again, at one daemon after the other, until it is known what came of it.
    async fn ack(&self, turn: u64, item: &Reserved) {
        let text = text(item);
        for again in turn.. {
            self.ledger.tell(&text, |story| story.under_way += 1);
            let told: Told<Settled> = self.daemons.get(again).ack(&self.queue, lease_of(item)).await;
            let settled = match told {
                Some(Ok(settled)) => settled,
                Some(Err(error)) => {
                    let fate = self.ledger.failed("ack", Some(&error));
                    self.ledger.tell(&text, |story| {
                        story.under_way -= 1;
                        story.in_doubt |= fate == Fate::Unknown;
                    });
                    continue;
                }
                None => {
                    self.ledger.failed("ack", None);
                    self.ledger.tell(&text, |story| {
                        story.under_way -= 1;
                        story.in_doubt = true;
                    });
                    continue;
                }
            };
            return self.ledger.tell(&text, |story| {
                story.under_way -= 1;
                match settled {
                    Settled::Done => {
                        story.acks += 1;
                        assert_eq!(story.acks, 1, "it was done twice: {item:?}, {story:?}");
                    }
                    Settled::AlreadyDone => {
                        let somebody = story.acks > 0 || story.in_doubt || story.under_way > 0;
                        assert!(somebody, "nobody acked it: {item:?}, {story:?}");
                    }
                    Settled::LeaseLost => {}
                    Settled::Buried | Settled::NoSuchItem => {
                        panic!("{settled:?} to an ack of {item:?}, {story:?}")
                    }
                }
            });
        }
    }

    /// Takes and acks what is left. It is over when nobody has got anything for several leases.
    async fn drain(&self) {
        let mut quiet = 0;
        for turn in 0.. {
            let caller = self.daemons.get(turn);
            let items = caller.reserve(&self.queue, 100, LEASE, LEASE * 2).await.unwrap().unwrap();
            quiet = if items.is_empty() { quiet + 1 } else { 0 };
            if quiet == 3 {
                return;
            }
            let now = caller.now();
            items.iter().for_each(|item| self.ledger.delivered(now, item));
            join_all(items.iter().map(|item| self.ack(turn, item))).await;
        }
    }

    /// Kills, freezes and empties one server after the other, and kills a daemon now and then.
    async fn harass(&self, servers: &mut [RedisServer], settings: &Settings) {
        for (at, server) in servers.iter_mut().enumerate() {
            server.freeze();
            pause(AWAY).await;
            server.thaw();
            self.daemons.replace(at, settings).await;
            for data in [Data::Kept, Data::Wiped] {
                server.restart(data);
                until_all_count(settings).await;
            }
            server.flushall();
            until_all_count(settings).await;
        }
    }

    /// What became of every item.
    async fn judge(&self) {
        let stories = std::mem::take(&mut *self.ledger.stories.lock().unwrap());
        let mut counts = BTreeMap::new();
        for (text, story) in &stories {
            let is_done = match story.ids.first() {
                Some(id) => {
                    let (queue, id, caller) = (self.queue.clone(), id.clone(), self.daemons.get(0));
                    let deadline = caller.now() + CALL;
                    let view = caller
                        .call(|queues| async move { queues.get_item(&queue, &id, deadline).await })
                        .await;
                    let view = view.unwrap().unwrap_or_else(|error| panic!("{text}: {error}, {story:?}"));
                    assert_eq!(view.state, ItemState::Done, "{text}: {view:?}, {story:?}");
                    true
                }
                None => false,
            };
            let is_settled = story.acks == 1 || story.acks == 0 && story.in_doubt;
            assert!(!is_done || is_settled, "{text} is done and nobody did it: {story:?}");
            match story.put {
                Fate::Done => assert!(is_done, "{text} was put, and is nowhere: {story:?}"),
                Fate::Nothing => assert!(!is_done, "{text} was not put, and is there: {story:?}"),
                Fate::Unknown => {}
            }
            let words = match story.put {
                Fate::Done => "known to be put",
                Fate::Nothing => "known not to be put",
                Fate::Unknown if is_done => "unknown, and there",
                Fate::Unknown => "unknown, and not there",
            };
            *counts.entry(words).or_insert(0) += 1;
        }
        let attempts: u32 = stories.values().map(|story| story.attempt.saturating_sub(1)).sum();
        println!("items: {counts:?}, {attempts} attempts that came to nothing");
        println!("calls that failed: {:?}", self.ledger.failed.lock().unwrap());
        assert!(counts["known to be put"] > 100, "{counts:?}");
    }
}

/// Mechanisms: all of them. `ROUNDS=20` does that for some minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_item_is_done_once_while_servers_and_daemons_come_and_go() {
    let rounds: usize = std::env::var("ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        let mut servers = servers(3);
        let settings = settings(&servers);
        let daemons = Daemons::start(&settings, 3).await;
        let queue = queue("accounts");
        let patch = QueueOptionsPatch {
            max_attempts: Some(0),
            done_retention: Some(Duration::from_secs(3_600)),
            ..QueueOptionsPatch::default()
        };
        daemons.get(0).configure(&queue, patch).await;
        let scene =
            Scene { queue, daemons, ledger: Arc::default(), put_up: Arc::default(), over: Arc::default() };
        let producers: Vec<_> = (0..PRODUCERS).map(|number| beside(scene.clone().produce(number))).collect();
        let consumers: Vec<_> = (0..CONSUMERS).map(|number| beside(scene.clone().consume(number))).collect();
        scene.harass(&mut servers, &settings).await;
        scene.put_up.store(true, Ordering::Relaxed);
        join_all(producers).await.into_iter().for_each(|producer| producer.unwrap());
        scene.over.store(true, Ordering::Relaxed);
        join_all(consumers).await.into_iter().for_each(|consumer| consumer.unwrap());
        scene.drain().await;
        scene.judge().await;
    }
}
