//! The conformance suite against real Redis, and random batches against both kinds of node.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use majorityd::config::NodeAddress;
use majorityd::ids::{MemoryId, NodeIndex, ProposerId};
use majorityd::node::conformance::{
    CASES, Connection, EmbeddedSubject, INDEX, MEMORY, NODES, START, Source, Subject, accept, ballot, found,
    founding, identity, lock, normal, restarted, same_answers,
};
use majorityd::node::embedded::{Entry, Keyspace};
use majorityd::node::operation::{
    Accept, Answer, ClaimRequest, Forgotten, News, Operation, PageRequest, Place, RegisterKey, Report, Stamp,
};
use majorityd::node::redis::{RedisNode, RedisOptions, Runs};
use majorityd::node::wire::BatchReply;
use majorityd::node::{Hint, Node, NodeState};
use majorityd::runtime::system;
use majorityd::token::{Ballot, Token};
use proptest::prelude::*;
use support::eventually;
use support::redis_server::{RedisServer, Reply, ServerTime};

struct RedisSubject(RedisServer);

impl RedisSubject {
    fn new() -> Self {
        Self(RedisServer::start_with_clock(&[]))
    }
}

impl Subject for RedisSubject {
    fn connect(&self, daemon: ProposerId) -> BoxFuture<'_, Connection> {
        Box::pin(async move {
            let (sink, hints) = mpsc::unbounded();
            let sink = Arc::new(move |_: NodeIndex, hint: Hint| drop(sink.unbounded_send(hint)));
            let options = RedisOptions {
                address: NodeAddress::parse(&self.0.address()).expect("an address"),
                username: None,
                password: None,
                ca_file: None,
                client_pair: None,
                connect_timeout: Duration::from_secs(10),
                call_timeout: Duration::from_secs(10),
                reconnect_delay_max: Duration::from_millis(100),
                inspect_interval: Duration::from_secs(60),
                assume_noeviction: false,
            };
            let runs = Arc::new(Runs::default());
            let node = RedisNode::new(INDEX, options, identity(daemon), runs, sink, &system::runtime());
            eventually("the node is ready", || matches!(node.state(), NodeState::Ready(_)).then_some(()))
                .await;
            Connection { node: Arc::new(node), hints }
        })
    }

    fn set_time(&self, unix_seconds: u64) {
        self.0.set_time(ServerTime::Frozen(unix_seconds));
    }

    fn dump(&self) -> Keyspace {
        self.0.dump()
    }

    fn put(&self, key: &[u8], entry: Entry) {
        self.0.put(key, &entry);
    }

    fn wipe(&self) {
        self.0.flushall();
    }

    #[expect(clippy::disallowed_methods, reason = "tests against real servers wait in real time")]
    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(10)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_conforms() {
    let subject = RedisSubject::new();
    for (name, case) in CASES {
        println!("{name}");
        subject.set_time(START);
        subject.wipe();
        case(&subject).await;
    }
}

fn key() -> impl Strategy<Value = RegisterKey> + Clone {
    prop_oneof![
        4 => Just(lock("a")),
        2 => Just(lock("b")),
        4 => (1usize..4).prop_map(item),
        1 => Just(RegisterKey::members()),
        1 => Just(lock("wrong type")),
    ]
}

const QUEUE: &str = "queue";

fn item(number: usize) -> RegisterKey {
    RegisterKey::new('q', &format!("{QUEUE}{}{number}", Place::SEPARATOR))
}

fn member(order: usize, id: &str) -> String {
    format!("{order:022x}{id}")
}

/// Where an item stands, if it is one; as a rule under its own id. What is due is so by a stamp.
fn place(key: &RegisterKey, set: char, order: usize, due: u64, stamps: &[Stamp]) -> Option<Place> {
    let (kind, name) = key.parts()?;
    let (_, id) = name.split_once(Place::SEPARATOR)?;
    let id = if order == 3 { "3" } else { id };
    // Scores of the other sets are all 0: a list of names in byte order needs that.
    let timed = matches!(set, 'w' | 'l') && !stamps.is_empty();
    let due = Duration::from_millis(if timed { due * 2_500 } else { 0 });
    (kind == 'q' && order < 5).then(|| Place { set, member: member(order, id), due })
}

fn standing() -> impl Strategy<Value = (char, usize, u64)> + Clone {
    (
        prop_oneof![3 => Just('r'), 2 => Just('w'), 2 => Just('l'), 1 => Just('d'), 1 => Just('x')],
        0usize..6,
        0u64..7,
    )
}

fn keys() -> impl Strategy<Value = Vec<RegisterKey>> + Clone {
    prop::collection::vec(key(), 0..4)
}

fn at() -> impl Strategy<Value = Ballot> + Clone {
    (0u64..6, 1u64..4).prop_map(|(token, proposer)| ballot(token, proposer))
}

fn stamps() -> impl Strategy<Value = Vec<Stamp>> + Clone {
    prop::collection::vec((0u64..3, 0u8..2), 0..3).prop_map(|stamps| {
        let stamps = stamps.into_iter();
        stamps.map(|(token, ordinal)| Stamp { ballot: ballot(token, 1), ordinal }).collect()
    })
}

fn value_length() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![Just(0usize), 1usize..40, 250usize..260, 65_530usize..65_540]
}

/// Operations out of few keys, ballots and values, so that they meet. One as a rule; a join that nobody ends would keep
/// the node from serving all others.
fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let one = prop_oneof![16 => change(), 6 => of_queue(), 2 => join(), 5 => upkeep()];
    let one = one.prop_map(|operation| vec![operation]);
    prop_oneof![23 => one, 1 => put_and_claim(), 1 => whole_join()]
}

/// An item that is ready, and a claim after it that may have it: by chance alone the two hardly meet.
fn put_and_claim() -> impl Strategy<Value = Vec<Operation>> {
    let parts = (1usize..4, 20u64..40, 1u64..4, stamps());
    parts.prop_map(|(number, token, proposer, stamps)| {
        let place = place(&item(number), 'r', number, 0, &stamps);
        let put = Accept { place, stamps, ..accept(item(number), ballot(token, proposer), "put") };
        let claim = ClaimRequest {
            queue: QUEUE.to_owned(),
            count: 3,
            bytes: 1 << 20,
            mark: Duration::ZERO,
            ballot: ballot(token + 1, proposer),
        };
        vec![Operation::Accept(Arc::new(put)), Operation::Claim(claim)]
    })
}

fn change() -> impl Strategy<Value = Operation> {
    let (key, at, stamps, value) = (key(), at(), stamps(), value_length());
    let parts = (key.clone(), at.clone(), value, stamps, 0u64..3, any::<(bool, bool)>(), 0u64..8, standing());
    let accept =
        parts.prop_map(|(key, at, length, stamps, guard, (listed, announce), next, (set, order, due))| {
            Operation::Accept(Arc::new(Accept {
                place: place(&key, set, order, due, &stamps),
                value: Bytes::from(vec![length as u8; length]),
                recent: vec![ballot(0, 1); length % 9],
                // A guard is always by a stamp.
                guard: Duration::from_secs(if stamps.is_empty() { 0 } else { guard * 10 }),
                stamps,
                listed,
                announce,
                next: if next < 2 { Token::ZERO } else { ballot(next, 1).token },
                wake: vec![ProposerId(2)],
                ..accept(key, at, "")
            }))
        });
    prop_oneof![
        2 => key.clone().prop_map(|key| Operation::Read { key }),
        4 => (key, at.clone(), any::<bool>()).prop_map(|(key, ballot, soft)| Operation::Prepare { key, ballot, soft }),
        6 => accept,
        1 => (prop_oneof!["l", "qr:queue", "qd:queue"], prop_oneof!["", "a", "b"], prop_oneof!["", "a"], 0usize..3)
            .prop_map(|(index, prefix, after, limit)| Operation::List { index, prefix, after, limit }),
        1 => at.prop_map(|founding| Operation::Found { founding, memory: 7 }),
    ]
}

fn of_queue() -> impl Strategy<Value = Operation> {
    let queue = prop_oneof![6 => Just(QUEUE.to_owned()), 1 => Just("empty".to_owned())];
    let mark = (0u64..30).prop_map(Duration::from_secs);
    let bytes = prop_oneof![1 => 0usize..500, 2 => Just(1 << 20)];
    // Higher and higher, or hardly anything would be promised.
    let at = (0u64..40, 1u64..4).prop_map(|(token, proposer)| ballot(token, proposer));
    let claim = (queue.clone(), 1usize..4, bytes, mark, at.clone());
    let claim = claim.prop_map(|(queue, count, bytes, mark, ballot)| ClaimRequest {
        queue,
        count,
        bytes,
        mark,
        ballot,
    });
    let set = prop_oneof![Just('r'), Just('w'), Just('l'), Just('d'), Just('x'), Just('m')];
    let moved = (1usize..4, at, stamps(), standing()).prop_map(|(number, at, stamps, (set, order, due))| {
        let place = place(&item(number), set, order, due, &stamps);
        Operation::Accept(Arc::new(Accept { place, stamps, ..accept(item(number), at, "moved") }))
    });
    prop_oneof![
        4 => claim.prop_map(Operation::Claim),
        4 => moved,
        1 => (queue, set, 0usize..5).prop_map(|(queue, set, limit)| Operation::Census { queue, set, limit }),
    ]
}

/// Stands for the list that the node holds, which [`suited`] puts in its place.
const OWN_LIST: Ballot = Ballot::ZERO;
/// Stands for the memory that the node has.
const OWN_MEMORY: MemoryId = MemoryId(0);

fn join() -> impl Strategy<Value = Operation> {
    let list = prop_oneof![6 => Just(OWN_LIST), 1 => at()];
    let memory = prop_oneof![6 => Just(OWN_MEMORY), 1 => (7u64..10).prop_map(MemoryId)];
    let recovery = prop::option::of(list.clone());
    let source = (at(), prop_oneof![Just(Ballot::ZERO), at()], value_length(), stamps(), any::<bool>());
    let row = (key(), source, standing()).prop_map(|(key, source, (set, order, due))| {
        let (promise, ballot, length, stamps, listed) = source;
        let place = place(&key, set, order, due, &stamps);
        let since = |i: usize| (START - 20 + 30 * i as u64) * 1_000_000;
        let value = vec![length as u8; length].into();
        let stamps = stamps.into_iter().enumerate().map(|(i, stamp)| (stamp, since(i))).collect();
        (key, Source { promise, ballot, value, stamps, listed, place }.raw())
    });
    let torn = key().prop_map(|key| (key, Bytes::from_static(b"torn")));
    let row = prop_oneof![20 => row, 1 => torn];
    let floor = prop_oneof![Just(Ballot::ZERO), at()];
    prop_oneof![
        2 => (list, 7u64..12, recovery)
            .prop_map(|(list, id, recovery)| Operation::BeginJoin { list, memory: MemoryId(id), recovery }),
        4 => (memory.clone(), floor, prop::collection::vec(row, 0..4))
            .prop_map(|(memory, floor, rows)| Operation::Merge { memory, floor, rows }),
        2 => memory.prop_map(|memory| Operation::EndJoin { memory }),
    ]
}

fn whole_join() -> impl Strategy<Value = Vec<Operation>> {
    let steps = (7u64..12, any::<bool>(), prop::collection::vec(join(), 1..6));
    steps.prop_map(|(id, recovery, mut steps)| {
        let recovery = recovery.then_some(OWN_LIST);
        steps.insert(0, Operation::BeginJoin { list: OWN_LIST, memory: MemoryId(id), recovery });
        steps.retain(|step| !matches!(step, Operation::EndJoin { .. }));
        steps.push(Operation::EndJoin { memory: OWN_MEMORY });
        steps
    })
}

fn upkeep() -> impl Strategy<Value = Operation> {
    // The two kinds of node have orders of their own, so a page shows everything or what it is asked for.
    let page = (keys(), 0usize..1_000, prop::option::weighted(0.2, Just(OWN_LIST)), any::<bool>());
    let page = page.prop_map(|(keys, bytes, recovery, with_values)| {
        let bytes = if keys.is_empty() { usize::MAX >> 12 } else { bytes };
        let cursor = PageRequest::START;
        Operation::Page(PageRequest { cursor, count: 10_000, bytes, recovery, with_values, keys })
    });
    let forgotten = (key(), prop_oneof![1 => Just(Ballot::ZERO), 3 => at()], at());
    let forgotten =
        forgotten.prop_map(|(key, ballot, promise)| Forgotten { key, ballot, promise: promise.token });
    let news = (any::<bool>(), prop::option::of((1u64..3).prop_map(MemoryId)), 0u64..300)
        .prop_map(|(reached, memory, writes)| News { reached, memory, writes });
    let node = (0u8..NODES as u8).prop_map(NodeIndex);
    let missed = prop::collection::vec((node.clone(), keys()), 0..3);
    prop_oneof![
        2 => page,
        1 => keys().prop_map(|keys| Operation::Ballots { keys }),
        2 => prop::collection::vec(forgotten, 0..6).prop_map(|records| Operation::Forget { records }),
        2 => (prop::collection::vec(news, 0..=NODES), missed)
            .prop_map(|(nodes, missed)| Operation::Report(Report { nodes, missed })),
        1 => (node, keys(), 0usize..3)
            .prop_map(|(node, done, limit)| Operation::Missed { node, done, limit }),
    ]
}

/// A batch for a node that holds this list and memory.
fn suited(operations: Vec<Operation>, own: Ballot, mut memory: MemoryId) -> Vec<Operation> {
    let list_of = |list: Ballot| if list == OWN_LIST { own } else { list };
    let operations = operations.into_iter().map(|operation| match operation {
        Operation::BeginJoin { list, memory: begun, recovery } => {
            memory = begun;
            Operation::BeginJoin { list: list_of(list), memory, recovery: recovery.map(list_of) }
        }
        Operation::Merge { memory: OWN_MEMORY, floor, rows } => Operation::Merge { memory, floor, rows },
        Operation::EndJoin { memory: OWN_MEMORY } => Operation::EndJoin { memory },
        Operation::Page(page) => {
            Operation::Page(PageRequest { recovery: page.recovery.map(list_of), ..page })
        }
        other => other,
    });
    operations.collect()
}

/// What happens before a batch, and the batch.
#[derive(Clone, Debug)]
struct Step {
    /// The servers are started again with their data.
    restart: bool,
    /// The batch goes by the list that the node holds.
    by_the_list: bool,
    /// So many seconds pass.
    later: u64,
    operations: Vec<Operation>,
}

fn script() -> impl Strategy<Value = Vec<Step>> {
    let operations = prop::collection::vec(operations(), 1..8).prop_map(|groups| groups.concat());
    let step = (prop::bool::weighted(0.02), prop::bool::weighted(0.9), 0u64..15, operations);
    let step = step.prop_map(|(restart, by_the_list, later, operations)| Step {
        restart,
        by_the_list,
        later,
        operations,
    });
    prop::collection::vec(step, 1..12)
}

#[test]
fn random_batches_are_answered_alike_and_leave_the_same_data() {
    let tokio = tokio::runtime::Runtime::new().expect("a runtime");
    let redis = RedisSubject::new();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let claimed = AtomicUsize::new(0);
    let result = runner.run(&(script(), any::<bool>()), |(script, floor)| {
        claimed.fetch_add(tokio.block_on(compare(&redis, script, floor)), Ordering::Relaxed);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    let claimed = claimed.into_inner();
    assert!(claimed > 40, "hardly anything was claimed: {claimed}");
}

/// How many items were claimed.
async fn compare(redis: &RedisSubject, script: Vec<Step>, floor: bool) -> usize {
    let embedded = EmbeddedSubject::default();
    redis.wipe();
    let mut now = START;
    redis.set_time(now);
    let subjects: [&dyn Subject; 2] = [&embedded, redis];
    let mut connections = Vec::new();
    for subject in subjects {
        connections.push(subject.connect(ProposerId(1)).await);
        if floor {
            let floor = Bytes::copy_from_slice(&ballot(2, 2).to_bytes());
            subject.put(b"majorityd:floor", Entry::Bytes(floor));
        }
        subject.put(b"majorityd:r:l:wrong type", Entry::Sorted(["x"].into_iter().collect()));
        // Hints that are wrong.
        let stale = [member(2, "1"), member(9, "2"), member(1, "none"), "short".to_owned()];
        subject.put(b"majorityd:i:qr:queue", Entry::Sorted(stale.into_iter().collect()));
    }
    for connection in &connections {
        connection.send(Ballot::ZERO, &found()).await.expect("the founding");
    }
    let (mut list, mut memory, mut claimed) = (founding(), Some(MEMORY), 0);
    for Step { restart, by_the_list, later, operations } in script {
        now += later;
        subjects.iter().for_each(|subject| subject.set_time(now));
        if restart {
            connections.clear();
            for subject in subjects {
                connections.push(restarted(subject).await);
            }
        }
        let operations = suited(operations, list, memory.unwrap_or(MEMORY));
        let by = if by_the_list { list } else { Ballot::ZERO };
        let one = connections[0].send(by, &operations).await.expect("an answer");
        let other = connections[1].send(by, &operations).await.expect("an answer");
        assert!(same_answers(&one, &other), "{operations:#?}\nembedded {one:#?}\nRedis {other:#?}");
        let dumps = subjects.map(|subject| normal(&subject.dump()));
        assert_eq!(dumps[0], dumps[1], "after {operations:#?}");
        if let BatchReply::Done { list: held, memory: has, answers, .. } = one {
            (list, memory) = (held, has);
            claimed += answers.into_iter().flatten().map(|answer| items_of(&answer)).sum::<usize>();
        }
    }
    claimed
}

async fn answers(connection: &Connection, operations: &[Operation]) -> Vec<Option<Answer>> {
    match connection.send(founding(), operations).await {
        Ok(BatchReply::Done { answers, .. }) => answers,
        other => panic!("{other:?}"),
    }
}

/// What may stand in a batch with others and does the same there as alone. What changes the list or the node record shuts
/// the gate for whatever comes in another batch, and a report tells how many batches there were.
fn stands_alone(operation: &Operation) -> bool {
    let key = match operation {
        Operation::Read { key } | Operation::Prepare { key, .. } => Some(key),
        Operation::Accept(accept) => Some(&accept.key),
        _ => None,
    };
    let others = matches!(
        operation,
        Operation::BeginJoin { .. }
            | Operation::Merge { .. }
            | Operation::EndJoin { .. }
            | Operation::Found { .. }
            | Operation::Report(_)
    );
    // A member has its item's id in it, so no two items have one and the same.
    let is_its_own = match operation {
        Operation::Accept(accept) => accept.place.as_ref().is_none_or(|place| {
            let id = &place.member[Place::ORDER_LENGTH..];
            accept.key.parts().is_some_and(|(_, name)| name.ends_with(&format!("{}{id}", Place::SEPARATOR)))
        }),
        _ => true,
    };
    !others && is_its_own && key.is_none_or(|key| *key != RegisterKey::members())
}

/// Records are read once for a batch and written once, and the index with them: nobody must be able to tell.
#[test]
fn a_batch_does_what_its_operations_do_one_by_one() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let (together, met) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let result = runner.run(&script(), |script| {
        let subjects = [EmbeddedSubject::default(), EmbeddedSubject::default()];
        let tokio = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        tokio.block_on(async {
            let mut connections = Vec::new();
            for subject in &subjects {
                let connection = subject.connect(ProposerId(1)).await;
                connection.send(Ballot::ZERO, &found()).await.expect("the founding");
                connections.push(connection);
            }
            let mut now = START;
            for Step { later, mut operations, .. } in script {
                now += later;
                subjects.iter().for_each(|subject| subject.set_time(now));
                operations.retain(stands_alone);
                let operations = suited(operations, founding(), MEMORY);
                let batch = answers(&connections[0], &operations).await;
                let mut one_by_one = Vec::new();
                for operation in &operations {
                    one_by_one.extend(answers(&connections[1], std::slice::from_ref(operation)).await);
                }
                assert_eq!(batch, one_by_one, "{operations:#?}");
                let dumps = subjects.each_ref().map(|subject| {
                    let mut dump = subject.dump();
                    dump.remove(b"majorityd:writes");
                    normal(&dump)
                });
                assert_eq!(dumps[0], dumps[1], "after {operations:#?}");
                together.fetch_add(usize::from(operations.len() > 1), Ordering::Relaxed);
                let accepts = operations.iter().filter_map(|operation| match operation {
                    Operation::Accept(accept) => Some(accept.key.clone()),
                    _ => None,
                });
                let mut keys: Vec<_> = accepts.collect();
                let all = keys.len();
                keys.sort();
                keys.dedup();
                met.fetch_add(usize::from(keys.len() < all), Ordering::Relaxed);
            }
        });
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    let (together, met) = (together.into_inner(), met.into_inner());
    assert!(together > 100 && met > 20, "hardly any met: {together}, {met}");
}

/// A server without memory takes none of a batch's writes, and says so to whoever wrote or went by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_has_no_memory_for_fails_and_reads_do_not() {
    let redis = RedisSubject::new();
    redis.set_time(START);
    let connection = redis.connect(ProposerId(1)).await;
    connection.send(Ballot::ZERO, &found()).await.expect("the founding");
    let put =
        |name| Operation::Accept(Arc::new(Accept { listed: true, ..accept(lock(name), ballot(1, 1), "x") }));
    let read = |name| Operation::Read { key: lock(name) };
    answers(&connection, &[put("before")]).await;
    let before = redis.dump();
    assert_eq!(redis.0.command(&["CONFIG", "SET", "maxmemory", "1"]), Reply::Status("OK".into()));
    let batch = [put("a"), read("before"), read("a"), put("b"), read("none")];
    let answered = answers(&connection, &batch).await;
    for (i, answer) in answered.iter().enumerate() {
        match (i, answer) {
            (0 | 2 | 3, Some(Answer::Failed { message })) => assert!(message.contains("OOM"), "{message}"),
            (1, Some(Answer::Record(Some(_)))) | (4, Some(Answer::Record(None))) => {}
            _ => panic!("{i}: {answer:?}"),
        }
    }
    assert_eq!(redis.dump(), before, "nothing of it was done");
    assert_eq!(redis.0.command(&["CONFIG", "SET", "maxmemory", "0"]), Reply::Status("OK".into()));
    let answered = answers(&connection, &batch).await;
    assert_eq!((&answered[0], &answered[3]), (&Some(Answer::Accepted), &Some(Answer::Accepted)));
    assert!(matches!(answered[2], Some(Answer::Record(Some(_)))), "{answered:?}");
}

fn items_of(answer: &Answer) -> usize {
    match answer {
        Answer::Claimed(claimed) => claimed.items.len(),
        _ => 0,
    }
}

/// Values as Lua text, for what the scripts never pack too.
fn lua_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("nil".to_owned()),
        any::<bool>().prop_map(|truth| truth.to_string()),
        (-70_000i64..70_000).prop_map(|number| number.to_string()),
        // Integers as exact as Lua has them.
        (-(1i64 << 53)..(1i64 << 53)).prop_map(|number| number.to_string()),
        (0u32..63).prop_map(|bits| format!("2^{bits}")),
        (0u32..63).prop_map(|bits| format!("-2^{bits}-1")),
        (-1_000i32..1_000).prop_map(|eighths| format!("{eighths}/8")),
        (-1_000i32..1_000).prop_map(|thirds| format!("{thirds}/3")),
        Just("1/0".to_owned()),
        Just("1e300".to_owned()),
        prop_oneof![0usize..40, 250usize..260, 65_530usize..65_540]
            .prop_map(|n| format!("string.rep('x', {n})")),
        "[a-z]{0,6}".prop_map(|text| format!("'{text}'")),
    ];
    leaf.prop_recursive(4, 40, 20, |value| {
        prop_oneof![
            prop::collection::vec(value.clone(), 0..20).prop_map(|items| format!("{{{}}}", items.join(","))),
            prop::collection::btree_map("[a-z]{1,3}", value, 0..4).prop_map(|fields| {
                let fields: Vec<_> =
                    fields.iter().map(|(name, value)| format!("['{name}']={value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

#[test]
fn messagepack_is_the_same_byte_for_byte() {
    let redis = RedisServer::start();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let nested = (1..20).map(|depth| format!("{}1{}", "{".repeat(depth), "}".repeat(depth)));
    let scripts = |value: &str| {
        [
            format!("return cmsgpack.pack({value})"),
            format!("return cmsgpack.pack(cmsgpack.unpack(cmsgpack.pack({value})))"),
        ]
    };
    let compare = |value: &str| {
        for script in scripts(value) {
            let Reply::Bytes(theirs) = redis.command(&["EVAL", &script, "0"]) else { panic!("{script}") };
            let ours = majorityd::node::embedded::eval(&script, b"").expect(&script);
            assert_eq!(ours, theirs, "{script}");
        }
    };
    nested.for_each(|value| compare(&value));
    let result = runner.run(&lua_value(), |value| {
        compare(&value);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));

    // What other writers of MessagePack send, and what is none.
    let inputs: [&[u8]; 14] = [
        b"\xc4\x02ab",
        b"\xc5\x00\x02ab",
        b"\xc6\x00\x00\x00\x02ab",
        b"\xd9\x02ab",
        b"\xdc\x00\x01\x05",
        b"\xdd\x00\x00\x00\x01\x05",
        b"\xde\x00\x01\xa1a\x05",
        b"\xdf\x00\x00\x00\x01\xa1a\x05",
        b"\xcf\x00\x1f\xff\xff\xff\xff\xff\xff",
        b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xca\x3f\x00\x00\x00",
        b"\xc1",
        b"\x92\x01",
        b"\xd9",
    ];
    for input in inputs {
        let script = "local ok, value = pcall(cmsgpack.unpack, ARGV[1]) \
            return ok and cmsgpack.pack(value) or tostring(value)";
        let theirs = redis.command_bytes(&[b"EVAL", script.as_bytes(), b"0", input]);
        let ours = majorityd::node::embedded::eval(script, input).expect("a string");
        assert_eq!(Reply::Bytes(ours.to_vec()), theirs, "{input:x?}");
    }

    // Some values from somewhere on, and where the rest begins.
    for (limit, offset) in [(1, 0), (2, 0), (3, 0), (9, 0), (1, 1), (2, 1), (9, 2), (1, 5), (1, 9)] {
        let script = format!(
            "local ok, value = pcall(function() \
                return cmsgpack.pack({{ cmsgpack.unpack_limit(ARGV[1], {limit}, {offset}) }}) end) \
            return ok and value or 'refused'"
        );
        let input = b"\x01\x02\xa1x\x03";
        let theirs = redis.command_bytes(&[b"EVAL", script.as_bytes(), b"0", input]);
        let ours = majorityd::node::embedded::eval(&script, input).expect("a string");
        assert_eq!(Reply::Bytes(ours.to_vec()), theirs, "{limit} from {offset}");
    }
}
