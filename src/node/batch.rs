//! The batch: the queue of one node, and the group commit that empties it.
//!
//! Everything that a daemon does on a node is one call of the script with a batch of operations (protocol, section 6).
//! While a batch is under way, what arrives forms the next one; at low load nothing waits. Where the way is long, batches
//! overlap: the next one sets out a moment after the one before, whether that is back or not. A [`Batcher`] is one node's
//! queue. [`super::wire`] has the form in which batches travel.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{self, Either};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use super::handshake::Welcome;
use super::operation::{Answer, RegisterKey};
use super::peek::Question;
use super::wire::{BatchReply, Encoded, Malformed, decode, encode};
use super::{CallError, Node, NodeState};
use crate::ids::{MemoryId, NodeIndex};
use crate::inbox::{Inbox, Slot};
use crate::limits;
use crate::meter::NodeMeter;
use crate::runtime::{Moment, Runtime};
use crate::token::Ballot;

/// What became of one operation on one node.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// The node answered.
    Answered {
        /// The node's memory, by which the answer counts or not.
        memory: Option<MemoryId>,
        /// The answer.
        answer: Answer,
    },
    /// The gate was closed: the node goes by another list. Nothing was done.
    Gated {
        /// The list that the node holds.
        list: Ballot,
    },
    /// It was not sent, or refused with the whole batch. Nothing was done.
    Unsent(Arc<str>),
    /// It was sent and nobody knows.
    Lost(Arc<str>),
}

/// A delivery, addressed to the round that asked.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Which node.
    pub node: NodeIndex,
    /// Which round of the receiver.
    pub round: u32,
    /// What became of it.
    pub delivery: Delivery,
}

/// Where replies of one receiver arrive.
pub type ReplySlot = Slot<Reply>;

const LOCKED: &str = "no holder of this lock panics";

struct Queued {
    list: Ballot,
    operation: Encoded,
    round: u32,
    reply: ReplySlot,
}

/// The queue and the group commit of one node.
pub struct Batcher {
    node: Arc<dyn Node>,
    queue: Slot<Queued>,
    shared: Arc<Shared>,
    sender: Arc<Sender>,
}

/// What the node's last reply said beside its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastReply {
    /// The run of the server that replied.
    pub run_id: Arc<str>,
    /// The node's memory.
    pub memory: Option<MemoryId>,
    /// The node's clock, in microseconds of Unix time.
    pub node_us: u64,
    /// This machine's, in milliseconds of Unix time, when the reply came.
    pub here_ms: u64,
    /// From sending to the reply.
    pub round_trip: Duration,
    /// The highest count of writes that it answered out of this memory.
    pub writes: u64,
}

/// The memory that a connected node was last seen with. One may be given after the handshake, but only to the run that
/// shook hands.
pub fn memory_of(welcome: &Welcome, last: Option<&LastReply>) -> Option<MemoryId> {
    last.filter(|last| last.run_id == welcome.run_id).map_or(welcome.memory, |last| last.memory)
}

/// Registers whose value a node was to store and has not, as far as is known.
#[derive(Debug, Default)]
pub struct Misses {
    keys: BTreeSet<RegisterKey>,
    /// There were more than fit.
    pub overflowed: bool,
}

impl Misses {
    fn add(&mut self, key: &RegisterKey) {
        if self.keys.len() < limits::MISSES_MAX {
            self.keys.insert(key.clone());
        } else {
            self.overflowed = true;
        }
    }
}

impl Batcher {
    /// Starts the queue's task. It ends when the batcher is dropped.
    pub fn new(node: Arc<dyn Node>, runtime: &Runtime) -> Self {
        let waiting = Inbox::with_capacity(limits::BATCH_OPERATIONS_MAX);
        let queue = waiting.slot();
        let shared = Arc::new(Shared::default());
        let sender =
            Arc::new(Sender { node: node.clone(), runtime: runtime.clone(), shared: shared.clone() });
        let task = sender.clone();
        runtime.spawner.spawn(async move { task.run(waiting).await }.boxed());
        Self { node, queue, shared, sender }
    }

    /// The node behind it.
    pub fn node(&self) -> &Arc<dyn Node> {
        &self.node
    }

    /// What the last reply said; `None` before the first.
    pub fn last_reply(&self) -> Option<LastReply> {
        self.shared.last.lock().expect(LOCKED).clone()
    }

    /// What is counted of this queue.
    pub fn meter(&self) -> &NodeMeter {
        &self.shared.meter
    }

    /// How many operations wait to be sent.
    pub fn queued(&self) -> usize {
        self.shared.queued.load(Ordering::Relaxed)
    }

    /// Takes what the node has missed since the last call.
    pub fn take_misses(&self) -> (Vec<RegisterKey>, bool) {
        let misses = std::mem::take(&mut *self.shared.misses.lock().expect(LOCKED));
        (misses.keys.into_iter().collect(), misses.overflowed)
    }

    /// Queues an operation that goes by the list `list`. Exactly one [`Reply`] follows.
    pub fn submit(&self, list: Ballot, operation: Encoded, round: u32, reply: &ReplySlot) {
        let queued = self.shared.queued.fetch_add(1, Ordering::Relaxed);
        let item = Queued { list, operation, round, reply: reply.clone() };
        if queued >= limits::OPERATIONS_QUEUED_MAX {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            self.shared.missed(&item.operation);
            self.shared.meter.unsent.one();
            let delivery = Delivery::Unsent("too many operations wait for this node".into());
            return answer(item, self.node.index(), delivery);
        }
        if let Err(refused) = self.queue.put(item, false) {
            let delivery = Delivery::Unsent("the daemon is stopping".into());
            answer(refused, self.node.index(), delivery);
        }
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Batcher {
    /// Asks a question that goes by the list `list`, past the queue. Exactly one [`Reply`] follows, with [`Answer::Looked`] if
    /// the gate is open.
    pub fn look(&self, list: Ballot, question: Question, round: u32, reply: &ReplySlot) {
        let (sender, reply) = (self.sender.clone(), reply.clone());
        let under_way = self.shared.looks.fetch_add(1, Ordering::Relaxed);
        let looking = async move {
            let delivery = if under_way < limits::LOOKS_IN_FLIGHT_MAX {
                sender.look(list, &question).await
            } else {
                sender.shared.meter.unsent.one();
                Delivery::Unsent("too many looks wait for this node".into())
            };
            sender.shared.looks.fetch_sub(1, Ordering::Relaxed);
            deliver(&reply, Reply { node: sender.node.index(), round, delivery });
        };
        self.sender.runtime.spawner.spawn(looking.boxed());
    }
}

/// What the queue and its task share.
#[derive(Default)]
struct Shared {
    queued: AtomicUsize,
    /// Looks that are under way.
    looks: AtomicUsize,
    last: Mutex<Option<LastReply>>,
    misses: Mutex<Misses>,
    meter: NodeMeter,
}

impl Shared {
    /// The operation did not reach the node, as far as is known.
    fn missed(&self, operation: &Encoded) {
        if let Some(key) = operation.accepts() {
            self.misses.lock().expect(LOCKED).add(key);
        }
    }
}

fn answer(item: Queued, node: NodeIndex, delivery: Delivery) {
    deliver(&item.reply, Reply { node, round: item.round, delivery });
}

fn deliver(slot: &ReplySlot, reply: Reply) {
    // Who hears that a list or a node has changed does not wait for the others.
    let is_urgent = match &reply.delivery {
        Delivery::Answered { answer, .. } => matches!(answer, Answer::NotServing | Answer::Failed { .. }),
        Delivery::Gated { .. } | Delivery::Unsent(_) | Delivery::Lost(_) => true,
    };
    // A receiver that is gone has its quorum or has given up: nobody misses the answer.
    let _ = slot.put(reply, is_urgent);
}

/// The task behind a [`Batcher`].
struct Sender {
    node: Arc<dyn Node>,
    runtime: Runtime,
    shared: Arc<Shared>,
}

impl Sender {
    async fn run(&self, waiting: Inbox<Queued>) {
        let mut under_way = FuturesUnordered::new();
        let mut next: VecDeque<Queued> = VecDeque::new();
        let mut overlaps_from = Moment::ZERO;
        let mut open = true;
        while open || !under_way.is_empty() || !next.is_empty() {
            open = waiting.take_all(&mut next);
            let has_room = under_way.len() < limits::BATCHES_IN_FLIGHT_MAX;
            if !next.is_empty() && has_room {
                let now = self.runtime.clock.now();
                if under_way.is_empty() || overlaps_from <= now {
                    under_way.push(self.carry(take_batch(&mut next)));
                    overlaps_from = now + limits::BATCHES_OVERLAP_AFTER;
                    continue;
                }
                // What comes meanwhile goes with what waits.
                let timer = self.runtime.clock.sleep_until(overlaps_from);
                future::select(under_way.next(), timer).await;
            } else if open && under_way.is_empty() {
                next.extend(waiting.next(1).await);
            } else if open && has_room {
                if let Either::Right((item, _)) = future::select(under_way.next(), waiting.next(1)).await {
                    next.extend(item);
                }
            } else {
                under_way.next().await;
            }
        }
    }

    /// Carries one batch to the node and hands its answers out.
    async fn carry(&self, batch: Vec<Queued>) {
        self.shared.queued.fetch_sub(batch.len(), Ordering::Relaxed);
        let (index, meter) = (self.node.index(), &self.shared.meter);
        meter.operations.had(batch.len());
        let payload = encode(batch[0].list, batch.iter().map(|item| &item.operation));
        let sent = self.runtime.clock.now();
        let reply = self.node.call(payload).await;
        let deliveries = self.deliveries(reply.map(|reply| decode(&reply)), batch.len(), sent);
        for (item, delivery) in batch.into_iter().zip(deliveries) {
            if matches!(delivery, Delivery::Unsent(_) | Delivery::Lost(_)) {
                self.shared.missed(&item.operation);
            }
            answer(item, index, delivery);
        }
    }

    async fn look(&self, list: Ballot, question: &Question) -> Delivery {
        self.shared.meter.operations.had(1);
        let sent = self.runtime.clock.now();
        let peeked = self.node.peek(question.clone()).await;
        let judged =
            peeked.map(|peeked| question.judge(self.node.identity(), self.node.index(), list, &peeked));
        self.deliveries(judged, 1, sent).pop().expect("one for each operation")
    }

    /// What a reply to so many operations comes to for each of them.
    fn deliveries(
        &self,
        reply: Result<Result<BatchReply, Malformed>, CallError>,
        count: usize,
        sent: Moment,
    ) -> Vec<Delivery> {
        let meter = &self.shared.meter;
        let failed = match reply {
            Ok(Ok(BatchReply::Done { memory, list, now_us, answers, writes })) if answers.len() == count => {
                let round_trip = self.runtime.clock.now().since(sent);
                meter.batches.took(round_trip);
                self.note(memory, now_us, writes, round_trip);
                if answers.iter().flatten().any(is_unfit) {
                    self.node.reset("it refuses to write: it is inspected again");
                }
                let delivery = move |answered| match answered {
                    Some(answer) => {
                        meter.answered.one();
                        Delivery::Answered { memory, answer }
                    }
                    None => {
                        meter.gated.one();
                        Delivery::Gated { list }
                    }
                };
                return answers.into_iter().map(delivery).collect();
            }
            Ok(Ok(BatchReply::NoRecord)) => {
                self.node.reset("its node record is gone (FLUSHALL?)");
                Delivery::Unsent("the node record is gone".into())
            }
            Ok(Ok(BatchReply::Foreign)) => {
                self.node.reset("its node record changed");
                Delivery::Unsent("the node record is not this cluster's".into())
            }
            Ok(Ok(BatchReply::Done { .. })) => {
                Delivery::Lost("as many answers as operations were expected".into())
            }
            Ok(Err(malformed)) => Delivery::Lost(malformed.to_string().into()),
            Err(CallError::Unsent(reason)) => Delivery::Unsent(reason),
            Err(CallError::Lost(reason)) => Delivery::Lost(reason),
        };
        let counted = if matches!(failed, Delivery::Lost(_)) { &meter.lost } else { &meter.unsent };
        counted.add(count as u64);
        vec![failed; count]
    }

    fn note(&self, memory: Option<MemoryId>, node_us: u64, writes: Option<u64>, round_trip: Duration) {
        let here_ms = self.runtime.clock.wall_unix_ms();
        let NodeState::Ready(welcome) = self.node.state() else { return };
        let mut last = self.shared.last.lock().expect(LOCKED);
        let known = last.as_ref().filter(|last| last.memory == memory).map_or(0, |last| last.writes);
        let writes = known.max(writes.unwrap_or(0));
        *last = Some(LastReply { run_id: welcome.run_id, memory, node_us, here_ms, round_trip, writes });
    }
}

/// An operation failed in a way that the handshake would have found: the server was turned into a replica, or our rights
/// were taken away.
fn is_unfit(answer: &Answer) -> bool {
    let codes = ["READONLY", "NOPERM", "MISCONF"];
    matches!(answer, Answer::Failed { message } if codes.iter().any(|code| message.contains(code)))
}

/// The longest run from the front that goes by one list and keeps to the bounds; at least one operation. What runs alone
/// comes last.
fn take_batch(waiting: &mut VecDeque<Queued>) -> Vec<Queued> {
    let mut batch: Vec<Queued> = Vec::new();
    let mut bytes = 0;
    while let Some(item) = waiting.front() {
        bytes += item.operation.size();
        let full = batch.len() >= limits::BATCH_OPERATIONS_MAX || bytes > limits::BATCH_BYTES_MAX;
        let other_list = batch.first().is_some_and(|first| first.list != item.list);
        if !batch.is_empty() && (full || other_list) {
            break;
        }
        batch.extend(waiting.pop_front());
    }
    // Nobody has been promised an order: whoever needs one waits for the answer.
    batch.sort_by_key(|item| item.operation.runs_alone());
    batch
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use event_listener::Event;
    use futures::channel::oneshot;
    use futures::executor::LocalPool;
    use futures::future::BoxFuture;
    use futures::task::LocalSpawnExt;

    use super::*;
    use crate::ids::ProposerId;
    use crate::node::Identity;
    use crate::node::operation::Operation;
    use crate::node::peek::Peeked;
    use crate::runtime::{Clock, Entropy, Spawn};
    use crate::token::Token;

    /// A node that answers when it is told to, and time that goes on when it is told to.
    #[derive(Default)]
    struct Stage {
        calls: Mutex<Vec<oneshot::Sender<Result<Bytes, CallError>>>>,
        millis: AtomicUsize,
        moved: Event,
        tasks: Mutex<Vec<BoxFuture<'static, ()>>>,
    }

    /// What the queue holds of it.
    #[derive(Clone)]
    struct Part(Arc<Stage>);

    impl Node for Part {
        fn index(&self) -> NodeIndex {
            NodeIndex(0)
        }

        fn address(&self) -> &str {
            "stage"
        }

        fn call(&self, _: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>> {
            let (sender, reply) = oneshot::channel();
            self.0.calls.lock().unwrap().push(sender);
            async move { reply.await.unwrap_or(Err(CallError::Lost("gone".into()))) }.boxed()
        }

        fn peek(&self, _: Question) -> BoxFuture<'static, Result<Peeked, CallError>> {
            unreachable!("nobody looks here")
        }

        fn identity(&self) -> &Identity {
            unreachable!("nobody looks here")
        }

        fn reset(&self, _: &str) {}

        fn state(&self) -> NodeState {
            NodeState::Unreachable("it is not asked".into())
        }

        fn watch_changes(&self, _: bool) {}
    }

    impl Clock for Part {
        fn now(&self) -> Moment {
            Moment::from_start(Duration::from_millis(self.0.millis.load(Ordering::Relaxed) as u64))
        }

        fn wall_unix_ms(&self) -> u64 {
            0
        }

        fn sleep_until(&self, moment: Moment) -> BoxFuture<'static, ()> {
            let part = self.clone();
            async move {
                while part.now() < moment {
                    let moved = part.0.moved.listen();
                    moved.await;
                }
            }
            .boxed()
        }
    }

    impl Entropy for Part {
        fn next_u64(&self) -> u64 {
            0
        }
    }

    impl Spawn for Part {
        fn spawn(&self, task: BoxFuture<'static, ()>) {
            self.0.tasks.lock().unwrap().push(task);
        }
    }

    /// The queue of a stage, and what drives it.
    struct Play {
        stage: Arc<Stage>,
        batcher: Batcher,
        pool: LocalPool,
        replies: Inbox<Reply>,
    }

    impl Play {
        fn new() -> Self {
            let part = Part(Arc::default());
            let shared = Arc::new(part.clone());
            let runtime = Runtime { clock: shared.clone(), entropy: shared.clone(), spawner: shared.clone() };
            let batcher = Batcher::new(shared, &runtime);
            let pool = LocalPool::new();
            for task in part.0.tasks.lock().unwrap().drain(..) {
                pool.spawner().spawn_local(task).unwrap();
            }
            Self { stage: part.0, batcher, pool, replies: Inbox::with_capacity(0) }
        }

        /// So many operations come. How many calls are under way then.
        fn comes(&mut self, operations: usize) -> usize {
            for _ in 0..operations {
                self.batcher.submit(Ballot::ZERO, Encoded::of_size(1), 0, &self.replies.slot());
            }
            self.pool.run_until_stalled();
            self.under_way()
        }

        fn passes(&mut self, length: Duration) -> usize {
            self.stage.millis.fetch_add(length.as_millis() as usize, Ordering::Relaxed);
            self.stage.moved.notify(usize::MAX);
            self.pool.run_until_stalled();
            self.under_way()
        }

        /// The first call comes to this.
        fn comes_to(&mut self, reply: Result<Bytes, CallError>) {
            let call = self.stage.calls.lock().unwrap().remove(0);
            call.send(reply).unwrap();
            self.pool.run_until_stalled();
        }

        /// The first call fails. How many operations learn of it.
        fn ends(&mut self) -> usize {
            self.comes_to(Err(CallError::Lost("as told".into())));
            let mut replies = VecDeque::new();
            self.replies.take_all(&mut replies);
            replies.len()
        }

        fn under_way(&self) -> usize {
            self.stage.calls.lock().unwrap().len()
        }
    }

    #[test]
    fn what_comes_while_a_call_is_under_way_goes_together() {
        let mut play = Play::new();
        assert_eq!((play.comes(1), play.comes(1), play.comes(5)), (1, 1, 1));
        assert_eq!((play.ends(), play.under_way()), (1, 1), "the next one sets out when the first is back");
        assert_eq!(play.ends(), 6);
        assert_eq!(
            (play.under_way(), play.comes(1)),
            (0, 1),
            "what comes when nothing is under way does not wait"
        );
    }

    #[test]
    fn where_the_way_is_long_calls_overlap_up_to_a_bound() {
        let mut play = Play::new();
        let long = limits::BATCHES_OVERLAP_AFTER;
        assert_eq!((play.comes(1), play.comes(2)), (1, 1));
        assert_eq!(play.passes(long), 2, "what waited");
        assert_eq!(play.passes(long), 2, "nothing waits");
        assert_eq!(play.comes(1), 3, "it is long enough ago");
        assert_eq!((play.comes(4), play.passes(10 * long)), (3, 3), "that is all that may be under way");
        assert_eq!((play.ends(), play.under_way()), (1, 3));
        assert_eq!((play.ends(), play.ends(), play.ends()), (2, 1, 4));
    }

    /// What the script returns where one operation was answered so.
    fn reply_of(answer: &[u8]) -> Bytes {
        let no_vid = 0xa0;
        [&[0x96, 0, no_vid, no_vid, 0, 0x91][..], answer, &[0]].concat().into()
    }

    #[test]
    fn who_waits_for_several_answers_is_told_at_once_that_one_is_of_no_use() {
        let failed = [0x92, 9, 0xa1, b'x'];
        for (reply, at_once) in [
            (Err(CallError::Lost("as told".into())), true),
            (Err(CallError::Unsent("as told".into())), true),
            (Ok(reply_of(&[8])), true),
            (Ok(reply_of(&failed)), true),
            // Accepted, and no record.
            (Ok(reply_of(&[1])), false),
            (Ok(reply_of(&[0x92, 2, 0xc2])), false),
        ] {
            let mut play = Play::new();
            play.comes(1);
            let heard = {
                let replies = std::mem::replace(&mut play.replies, Inbox::with_capacity(0));
                play.pool.spawner().spawn_local_with_handle(async move { replies.next(3).await }).unwrap()
            };
            play.pool.run_until_stalled();
            play.comes_to(reply.clone());
            let heard = heard.now_or_never().map(|reply| reply.expect("there is one").delivery);
            assert_eq!(heard.is_some(), at_once, "{reply:?}: {heard:?}");
            let was_answered = heard.as_ref().is_none_or(|heard| matches!(heard, Delivery::Answered { .. }));
            assert_eq!(was_answered, reply.is_ok(), "{heard:?}");
        }
    }

    fn queued(list: u64, bytes: usize) -> Queued {
        let list = Ballot { token: Token::new(list).unwrap(), proposer: ProposerId(1) };
        Queued { list, operation: Encoded::of_size(bytes), round: 0, reply: Inbox::with_capacity(0).slot() }
    }

    #[test]
    fn a_batch_keeps_to_one_list_and_to_its_bounds() {
        let mut waiting: VecDeque<_> = [queued(1, 10), queued(1, 10), queued(2, 10)].into();
        assert_eq!(take_batch(&mut waiting).len(), 2);
        assert_eq!(take_batch(&mut waiting).len(), 1);

        let mut waiting: VecDeque<_> = (0..200).map(|_| queued(1, 1)).collect();
        assert_eq!(take_batch(&mut waiting).len(), limits::BATCH_OPERATIONS_MAX);

        let mut waiting: VecDeque<_> = [queued(1, limits::BATCH_BYTES_MAX + 1), queued(1, 1)].into();
        assert_eq!(take_batch(&mut waiting).len(), 1, "one that is too large alone travels alone");
    }

    #[test]
    fn what_runs_alone_comes_last_and_else_the_order_stays() {
        let read = |round| {
            let operation = Operation::Read { key: RegisterKey::new('t', "x") }.encode();
            Queued { operation, round, ..queued(1, 1) }
        };
        let alone = |round| Queued { round, ..queued(1, 1) };
        let mut waiting: VecDeque<_> = [read(0), alone(1), read(2), alone(3), read(4)].into();
        let rounds: Vec<_> = take_batch(&mut waiting).iter().map(|item| item.round).collect();
        assert_eq!(rounds, [0, 2, 4, 1, 3]);
    }
}
