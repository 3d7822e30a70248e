//! Queues on real servers without faults: order, turns, bounds, wakes, and that done items leave nothing behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use majorityd::ids::{ItemId, QueueName};
use majorityd::queue::{
    ItemState, Leased, Nack, NewItem, Put, QueueError, QueueOptions, QueueOptionsPatch, ReserveRequest,
    Reserved, Settled,
};
use majorityd::runtime::Moment;

use crate::support::daemon::{beside, in_time, pause, seen, servers};
use crate::support::local::{Caller, LocalDaemon, settings};
use crate::support::redis_server::RedisServer;

/// The deadline of a call, beside what it asks to wait.
pub const CALL: Duration = Duration::from_secs(20);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(300);
const NO_WAIT: Duration = Duration::ZERO;

/// What a call came to; `None` where its daemon is gone, and then nobody knows.
pub type Told<T> = Option<Result<T, QueueError>>;

pub fn queue(name: &str) -> QueueName {
    QueueName::parse(name).unwrap()
}

pub fn id(text: &str) -> ItemId {
    ItemId::parse(text).unwrap()
}

/// An item with this text in it, and nothing else.
pub fn item(id: Option<ItemId>, text: &str) -> NewItem {
    let payload = Bytes::copy_from_slice(text.as_bytes());
    NewItem { id, payload, priority: 0, delay: Duration::ZERO, attributes: Vec::new() }
}

pub fn lease_of(item: &Reserved) -> Leased {
    Leased { id: item.id.clone(), lease_id: item.lease_id }
}

pub fn text(item: &Reserved) -> String {
    String::from_utf8(item.payload.to_vec()).unwrap()
}

impl Caller {
    fn deadline(&self) -> Moment {
        self.now() + CALL
    }

    pub async fn put(&self, queue: &QueueName, items: Vec<NewItem>) -> Told<Vec<Result<Put, QueueError>>> {
        let (queue, deadline) = (queue.clone(), self.deadline());
        self.call(|queues| async move { queues.put(&queue, items, deadline).await }).await
    }

    pub async fn reserve(
        &self,
        queue: &QueueName,
        max_items: usize,
        lease_ttl: Duration,
        wait: Duration,
    ) -> Told<Vec<Reserved>> {
        let request = ReserveRequest { queue: queue.clone(), max_items, lease_ttl: Some(lease_ttl), wait };
        let deadline = self.deadline() + wait;
        self.call(|queues| async move { queues.reserve(request, deadline).await }).await
    }

    pub async fn ack(&self, queue: &QueueName, lease: Leased) -> Told<Settled> {
        let (queue, deadline) = (queue.clone(), self.deadline());
        let acked = self.call(|queues| async move { queues.ack(&queue, vec![lease], deadline).await });
        acked.await.map(|mut results| results.pop().unwrap())
    }

    pub async fn nack(&self, queue: &QueueName, nack: Nack) -> Told<Settled> {
        let (queue, deadline) = (queue.clone(), self.deadline());
        let nacked = self.call(|queues| async move { queues.nack(&queue, vec![nack], deadline).await });
        nacked.await.map(|mut results| results.pop().unwrap())
    }

    pub async fn configure(&self, queue: &QueueName, patch: QueueOptionsPatch) -> QueueOptions {
        let (queue, deadline) = (queue.clone(), self.deadline());
        self.call(|queues| async move { queues.configure(&queue, patch, deadline).await })
            .await
            .unwrap()
            .unwrap()
    }

    /// One item, now, or the test fails.
    async fn must_put(&self, queue: &QueueName, item: NewItem) -> Put {
        let mut put = self.put(queue, vec![item]).await.unwrap().unwrap();
        put.pop().unwrap().unwrap()
    }

    /// What there is, at most so many, without waiting.
    async fn take(&self, queue: &QueueName, max_items: usize) -> Vec<Reserved> {
        self.reserve(queue, max_items, LONG, NO_WAIT).await.unwrap().unwrap()
    }

    /// One item, waiting for it.
    async fn must_get(&self, queue: &QueueName, lease_ttl: Duration) -> Reserved {
        let items = self.reserve(queue, 1, lease_ttl, Duration::from_secs(50)).await.unwrap().unwrap();
        let [item] = items.try_into().expect("one item");
        item
    }

    async fn must_ack(&self, queue: &QueueName, item: &Reserved) {
        assert_eq!(self.ack(queue, lease_of(item)).await.unwrap().unwrap(), Settled::Done);
    }

    /// Acks all, at once.
    async fn must_ack_all(&self, queue: &QueueName, items: &[Reserved]) {
        let (queue, deadline) = (queue.clone(), self.deadline());
        let leases = items.iter().map(lease_of).collect();
        let acked = self.call(|queues| async move { queues.ack(&queue, leases, deadline).await }).await;
        acked.unwrap().into_iter().for_each(|acked| assert_eq!(acked.unwrap(), Settled::Done));
    }
}

async fn daemons(servers: &[RedisServer], count: usize) -> Vec<LocalDaemon> {
    join_all((0..count).map(|_| LocalDaemon::serving(servers))).await
}

/// Mechanisms: the order in the members of the index, and that a claim is put together in it.
#[tokio::test]
async fn one_consumer_gets_by_priority_and_then_in_the_order_of_puts() {
    const ITEMS: usize = 3_000;
    let servers = servers(3);
    let daemons = daemons(&servers, 2).await;
    let (producer, consumer) = (daemons[0].caller(), daemons[1].caller());
    let queue = queue("order");
    let mut expected = Vec::with_capacity(ITEMS);
    let mut number = 0;
    for batch in (1..).map(|turn| 1 + turn * 7 % 60) {
        let items = (number..ITEMS.min(number + batch)).map(|number| {
            let priority = (number * 31 % 7) as i32 - 3;
            let id = number.is_multiple_of(3).then(|| id(&format!("of-a-client-{}", ITEMS - number)));
            expected.push((priority, number));
            NewItem { priority, ..item(id, &number.to_string()) }
        });
        let items: Vec<_> = items.collect();
        number += items.len();
        for put in producer.put(&queue, items).await.unwrap().unwrap() {
            assert!(!put.unwrap().duplicate);
        }
        if number == ITEMS {
            break;
        }
    }
    expected.sort_unstable();
    let mut got = Vec::with_capacity(ITEMS);
    for turn in 0.. {
        let items = consumer.take(&queue, 1 + turn * 13 % 40).await;
        if items.is_empty() {
            break;
        }
        consumer.must_ack_all(&queue, &items).await;
        got.extend(items.iter().map(|item| (item.priority, text(item).parse::<usize>().unwrap())));
    }
    assert_eq!(got.len(), ITEMS);
    let wrong = got.iter().zip(&expected).position(|(got, expected)| got != expected);
    assert_eq!(wrong, None, "{:?}", wrong.map(|at| (&got[at], &expected[at])));
}

/// What happened to one item, as numbers in the order of what happened to all.
#[derive(Clone, Copy, Debug, Default)]
struct Journey {
    put_begun: usize,
    put_ended: usize,
    /// When its first delivery arrived.
    got: usize,
}

/// By how many later items of its priority each was passed: put after its put had ended, and delivered before it. The least
/// first.
fn passed(journeys: &[Journey]) -> Vec<usize> {
    let mut by_got = journeys.to_vec();
    by_got.sort_by_key(|journey| journey.got);
    let by = |at: usize| by_got[..at].iter().filter(|other| other.put_begun > by_got[at].put_ended).count();
    let mut all: Vec<usize> = (0..by_got.len()).map(by).collect();
    all.sort_unstable();
    all
}

#[test]
fn passing_is_counted() {
    let journey = |put_begun, put_ended, got| Journey { put_begun, put_ended, got };
    let first = journey(1, 2, 20);
    for (others, expected) in [
        ([journey(3, 4, 21), journey(5, 6, 22)], [0, 0, 0]),
        ([journey(3, 4, 10), journey(5, 6, 11)], [0, 0, 2]),
        ([journey(3, 4, 11), journey(5, 6, 10)], [0, 1, 2]),
        // Put at the same time.
        ([journey(0, 4, 10), journey(2, 6, 11)], [0, 0, 0]),
    ] {
        assert_eq!(passed(&[first, others[0], others[1]]), expected, "{others:?}");
    }
}

/// Mechanisms: the order of the index on each node, and that what others have claimed is gone after, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_many_consumers_and_producers_no_item_is_passed_for_long() {
    const PRODUCERS: usize = 4;
    const CONSUMERS: usize = 9;
    const EACH: usize = 750;
    const ALL: usize = PRODUCERS * EACH;
    let servers = servers(3);
    let daemons = daemons(&servers, 3).await;
    let callers: Vec<Caller> = daemons.iter().map(LocalDaemon::caller).collect();
    let queue = queue("turns");
    let clock = Arc::new(AtomicUsize::new(1));
    let tick = |clock: &AtomicUsize| clock.fetch_add(1, Ordering::SeqCst);
    let journeys = Arc::new(Mutex::new(vec![Journey::default(); ALL]));
    let got = Arc::new(AtomicUsize::new(0));
    let producers = (0..PRODUCERS).map(|number| {
        let (caller, queue) = (callers[number % callers.len()].clone(), queue.clone());
        let (clock, journeys) = (clock.clone(), journeys.clone());
        beside(async move {
            for at in number * EACH..(number + 1) * EACH {
                let put_begun = tick(&clock);
                caller.must_put(&queue, item(None, &at.to_string())).await;
                let mut journeys = journeys.lock().unwrap();
                (journeys[at].put_begun, journeys[at].put_ended) = (put_begun, tick(&clock));
            }
        })
    });
    let consumers = (0..CONSUMERS).map(|number| {
        let (caller, queue) = (callers[number % callers.len()].clone(), queue.clone());
        let (clock, journeys, got) = (clock.clone(), journeys.clone(), got.clone());
        beside(async move {
            while got.load(Ordering::Relaxed) < ALL {
                let wait = Duration::from_millis(500);
                let items = caller.reserve(&queue, 1 + number % 3, LONG, wait).await.unwrap().unwrap();
                let at = tick(&clock);
                for item in &items {
                    let number: usize = text(item).parse().unwrap();
                    let before = std::mem::replace(&mut journeys.lock().unwrap()[number].got, at);
                    assert_eq!((before, item.attempt), (0, 1), "{number} came twice");
                    got.fetch_add(1, Ordering::Relaxed);
                }
                caller.must_ack_all(&queue, &items).await;
            }
        })
    });
    let tasks: Vec<_> = producers.chain(consumers).collect();
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let journeys = journeys.lock().unwrap();
    let passed = passed(&journeys);
    let (most, usual) = (passed[ALL - 1], passed[ALL * 99 / 100]);
    println!(
        "of {ALL} items none was passed by more than {most} that were put later, and 99 % by {usual} at most"
    );
    assert!(most <= ALL / 2, "an item was passed by {most} of {ALL}");
}

/// Mechanisms: the lease's stamp, which ages on the nodes; the change of the ack, which requires the lease.
#[tokio::test]
async fn a_consumer_that_sleeps_through_its_lease_finds_it_lost() {
    let servers = servers(3);
    let daemons = daemons(&servers, 2).await;
    let (sleeper, other) = (daemons[0].caller(), daemons[1].caller());
    let queue = queue("sleep");
    sleeper.must_put(&queue, item(None, "x")).await;
    let slept = sleeper.must_get(&queue, Duration::from_secs(1)).await;
    // It does nothing until somebody else has the item.
    let next = other.must_get(&queue, LONG).await;
    assert!(other.now() >= slept.valid_until, "two leases at a time");
    assert!(next.token > slept.token);
    assert_eq!((next.id.clone(), next.attempt), (slept.id.clone(), 2));
    assert_eq!(sleeper.ack(&queue, lease_of(&slept)).await.unwrap().unwrap(), Settled::LeaseLost);
    assert!(other.take(&queue, 1).await.is_empty());
    other.must_ack(&queue, &next).await;
    for (caller, lease) in [(&sleeper, &slept), (&other, &next), (&sleeper, &next)] {
        assert_eq!(caller.ack(&queue, lease_of(lease)).await.unwrap().unwrap(), Settled::AlreadyDone);
    }
    assert!(sleeper.take(&queue, 1).await.is_empty());
}

/// Mechanism: the count by the indexes of a quorum.
#[tokio::test]
async fn a_full_queue_takes_items_again_after_an_ack() {
    const MAX: u64 = 5;
    let servers = servers(3);
    let daemons = daemons(&servers, 2).await;
    let (caller, other) = (daemons[0].caller(), daemons[1].caller());
    let queue = queue("full");
    caller.configure(&queue, QueueOptionsPatch { max_items: Some(MAX), ..Default::default() }).await;
    let items = (0..MAX + 2).map(|number| item(Some(id(&number.to_string())), "x")).collect();
    let puts = caller.put(&queue, items).await.unwrap().unwrap();
    let is_full = |put: &Result<Put, QueueError>| {
        matches!(put, Err(QueueError::QueueFull { items: MAX, max: MAX, .. }))
    };
    assert!(puts[..MAX as usize].iter().all(Result::is_ok), "{puts:?}");
    assert!(puts[MAX as usize..].iter().all(is_full), "{puts:?}");
    let known = caller.must_put(&queue, item(Some(id("3")), "x")).await;
    assert!(known.duplicate, "what is there may be put again");
    for round in 0..3 {
        for caller in [&caller, &other] {
            let put = caller.put(&queue, vec![item(None, "too many")]).await.unwrap().unwrap();
            assert!(is_full(&put[0]), "{put:?}");
        }
        // However it leaves the queue.
        let leased = other.must_get(&queue, LONG).await;
        let put = caller.put(&queue, vec![item(None, "too many")]).await.unwrap().unwrap();
        assert!(is_full(&put[0]), "a leased item is in the queue: {put:?}");
        other.must_ack(&queue, &leased).await;
        let putter = if round == 1 { &other } else { &caller };
        // The count may be behind on one node, and then it is seen by the others.
        putter.must_put(&queue, item(None, "one more")).await;
    }
}

/// Keys of items, and of what is known of them.
fn left(server: &RedisServer) -> Vec<Vec<u8>> {
    [server.keys("majorityd:r:q:*"), server.keys("majorityd:i:q*")].concat()
}

/// How many keys there are but the floor, which comes with the first record that is forgotten, and what nodes note of others.
fn keys(server: &RedisServer) -> usize {
    let passing = |key: &[u8]| {
        key == b"majorityd:floor" || key == b"majorityd:seen" || key.starts_with(b"majorityd:n:")
    };
    server.keys("*").iter().filter(|key| !passing(key)).count()
}

/// Mechanisms: done items are forgotten when their time is over, by the daemon that saw them done, and by another one's
/// comparison when that is gone.
#[tokio::test]
async fn done_items_leave_nothing_behind() {
    const ITEMS: usize = 300;
    let servers = servers(3);
    let often = {
        let mut settings = settings(&servers);
        settings.healing.compare_interval = Duration::from_secs(1);
        settings
    };
    let (stays, goes) = futures::join!(LocalDaemon::start(&often, 1), LocalDaemon::serving(&servers));
    let queue = queue("short memory");
    let caller = stays.caller();
    let retention = Some(Duration::from_secs(2));
    caller.configure(&queue, QueueOptionsPatch { done_retention: retention, ..Default::default() }).await;
    let counts = || servers.iter().map(keys).collect::<Vec<_>>();
    // The options are acknowledged when two servers have them, and the third has them soon.
    let before = seen("the options on all servers", || async {
        let counts = counts();
        counts.iter().all(|count| *count == counts[0]).then_some(counts)
    })
    .await;
    let work = async |caller: &Caller, name: &str| {
        let new = |number| item(Some(id(&format!("{name}-{number}"))), "some work");
        for put in caller.put(&queue, (0..ITEMS).map(new).collect()).await.unwrap().unwrap() {
            put.unwrap();
        }
        let mut done = 0;
        while done < ITEMS {
            let items = caller.take(&queue, 100).await;
            caller.must_ack_all(&queue, &items).await;
            done += items.len();
        }
    };
    work(&stays.caller(), "stays").await;
    work(&goes.caller(), "goes").await;
    assert!(servers.iter().all(|server| left(server).len() > ITEMS));
    let known = caller.must_put(&queue, item(Some(id("goes-0")), "again")).await;
    assert!(known.duplicate, "it is remembered for a while");
    drop(goes);
    seen("servers without items", || async {
        servers.iter().all(|server| left(server).is_empty()).then_some(())
    })
    .await;
    assert_eq!(counts(), before);
    let new = caller.must_put(&queue, item(Some(id("goes-0")), "again")).await;
    assert!(!new.duplicate, "its id is free again");
    assert_eq!(text(&caller.must_get(&queue, LONG).await), "again");
}

/// Mechanisms: what is done with a queue as a whole is asked of the indexes, and agreed on for each item.
#[tokio::test]
async fn items_are_buried_redriven_purged_and_deleted() {
    const ITEMS: usize = 200;
    let servers = servers(3);
    let daemons = daemons(&servers, 2).await;
    let (caller, other) = (daemons[0].caller(), daemons[1].caller());
    let queue = queue("dead");
    let deadline = caller.now() + LONG;
    caller.configure(&queue, QueueOptionsPatch { max_attempts: Some(1), ..Default::default() }).await;
    let items = (0..ITEMS).map(|number| item(None, &number.to_string())).collect();
    for put in caller.put(&queue, items).await.unwrap().unwrap() {
        put.unwrap();
    }
    let mut buried = Vec::new();
    while buried.len() < ITEMS - 1 {
        for leased in caller.take(&queue, ITEMS - 1 - buried.len()).await {
            let nack = Nack { lease: lease_of(&leased), delay: Some(NO_WAIT), reason: "it can't be".into() };
            assert_eq!(other.nack(&queue, nack).await.unwrap().unwrap(), Settled::Buried);
            buried.push(leased.id);
        }
    }
    // One whose consumer died is dead when the next one wants it.
    let lost = caller.must_get(&queue, Duration::from_secs(1)).await;
    let counts = async |caller: &Caller| {
        let name = queue.clone();
        let view =
            caller.call(|queues| async move { queues.get(&name, deadline).await }).await.unwrap().unwrap();
        view.counts
    };
    let before = counts(&other).await;
    assert_eq!((before.dead, before.leased), (ITEMS as u64 - 1, 1));
    seen("one more that is dead", || async {
        assert!(caller.take(&queue, 1).await.is_empty());
        (counts(&other).await.dead == ITEMS as u64).then_some(())
    })
    .await;
    let (mut listed, mut after) = (Vec::new(), String::new());
    loop {
        let (name, from) = (queue.clone(), after.clone());
        let page = other.call(|queues| async move { queues.list_dead(&name, 50, &from, deadline).await });
        let page = page.await.unwrap().unwrap();
        listed.extend(page.items);
        let Some(next) = page.next else { break };
        after = next;
    }
    assert_eq!(listed.len(), ITEMS);
    assert!(listed.is_sorted_by_key(|view| view.put_unix_ms));
    assert!(
        listed
            .iter()
            .all(|view| view.state == ItemState::Dead && view.attempts == 1 && !view.reason.is_empty())
    );
    assert!(listed.iter().any(|view| view.id == lost.id));
    let some = buried[..5].to_vec();
    let name = queue.clone();
    let redriven = other.call(|queues| async move { queues.redrive(&name, &some, deadline).await }).await;
    assert_eq!(redriven.unwrap().unwrap(), 5);
    let name = queue.clone();
    let redriven = caller.call(|queues| async move { queues.redrive(&name, &[], deadline).await }).await;
    assert_eq!(redriven.unwrap().unwrap(), ITEMS as u64 - 5);
    let after = counts(&other).await;
    assert_eq!((after.dead, after.ready), (0, ITEMS as u64));
    let first = caller.must_get(&queue, LONG).await;
    assert_eq!((text(&first).as_str(), first.attempt), ("0", 1));
    // What is leased is not purged where only the ready are.
    let name = queue.clone();
    let purged =
        other.call(|queues| async move { queues.purge(&name, &[ItemState::Ready], deadline).await }).await;
    assert_eq!(purged.unwrap().unwrap(), ITEMS as u64 - 1);
    caller.must_ack(&queue, &first).await;
    caller.must_put(&queue, item(Some(id("last")), "x")).await;
    let name = queue.clone();
    let deleted = other.call(|queues| async move { queues.delete(&name, deadline).await }).await;
    assert_eq!(deleted.unwrap().unwrap(), 1);
    let name = queue.clone();
    let gone = caller.call(|queues| async move { queues.get(&name, deadline).await }).await.unwrap();
    assert!(matches!(gone, Err(QueueError::NoSuchQueue { .. })), "{gone:?}");
    assert!(caller.take(&queue, 10).await.is_empty());
    seen("servers without the item", || async {
        servers.iter().all(|server| server.keys("majorityd:r:q:*last").is_empty()).then_some(())
    })
    .await;
}

/// Mechanisms: announcements over the nodes, and the timer for what is due; looking comes too late.
#[tokio::test]
async fn a_waiting_consumer_is_woken_from_another_daemon() {
    let servers = servers(3);
    let seldom = {
        let mut settings = settings(&servers);
        settings.queues.look_interval = Duration::from_secs(3_600);
        settings
    };
    let (putting, waiting) = futures::join!(LocalDaemon::start(&seldom, 1), LocalDaemon::start(&seldom, 1));
    let (producer, consumer) = (putting.caller(), waiting.caller());
    let queue = queue("wake");
    producer.configure(&queue, QueueOptionsPatch::default()).await;
    let waits = |lease_ttl| {
        let (consumer, queue) = (consumer.clone(), queue.clone());
        beside(async move { consumer.must_get(&queue, lease_ttl).await })
    };
    let came = async |wait: tokio::task::JoinHandle<Reserved>, what: &str| {
        let got = in_time(what, wait).await.unwrap();
        consumer.must_ack(&queue, &got).await;
        got
    };
    for round in 0..10 {
        let wait = waits(LONG);
        pause(Duration::from_millis(20 * (round % 5))).await;
        producer.must_put(&queue, item(None, "now")).await;
        came(wait, "what was put").await;
    }
    let wait = waits(LONG);
    pause(Duration::from_millis(100)).await;
    producer.must_put(&queue, NewItem { delay: Duration::from_secs(1), ..item(None, "later") }).await;
    came(wait, "what was put with a delay").await;
    // Somebody takes it and gives it back, and another dies with it.
    for dies in [false, true] {
        producer.must_put(&queue, item(None, "again")).await;
        let leased = producer.must_get(&queue, if dies { Duration::from_secs(1) } else { LONG }).await;
        let wait = waits(LONG);
        pause(Duration::from_millis(100)).await;
        if !dies {
            let nack = Nack { lease: lease_of(&leased), delay: Some(NO_WAIT), reason: String::new() };
            assert_eq!(producer.nack(&queue, nack).await.unwrap().unwrap(), Settled::Done);
        }
        let got = came(wait, if dies { "what ran out" } else { "what was given back" }).await;
        assert_eq!((got.id, got.attempt), (leased.id, 2));
    }
    // Many wait, at both daemons, and each item wakes somebody.
    let all: Vec<_> = (0..20)
        .map(|number| {
            let (caller, queue) =
                (if number % 2 == 0 { &consumer } else { &producer }.clone(), queue.clone());
            beside(async move {
                let got = caller.must_get(&queue, LONG).await;
                caller.must_ack(&queue, &got).await;
                got.id
            })
        })
        .collect();
    pause(Duration::from_millis(100)).await;
    for number in 0..20 {
        producer.must_put(&queue, item(Some(id(&number.to_string())), "each")).await;
    }
    let mut times = BTreeMap::new();
    for waits in all {
        *times.entry(in_time("one for each", waits).await.unwrap()).or_insert(0) += 1;
    }
    assert!(times.len() == 20 && times.values().all(|times| *times == 1), "{times:?}");
}
