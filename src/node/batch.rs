//! The batch: encoding, decoding, and the group commit that fills it.
//!
//! Everything that a daemon does on a node is one call of the script with a batch of operations (protocol, section 6).
//! While batches are under way, what arrives forms the next one; at low load nothing waits. A [`Batcher`] is one node's
//! queue. An operation is encoded once and shared by all nodes ([`Encoded`]), so a batch is little more than a copy.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, select_biased};

use super::operation::{Accept, Answer, Operation, Record, Stamp};
use super::{CallError, Node, NodeState, memory_from_wire};
use crate::ids::{MemoryId, NodeIndex, ProposerId};
use crate::limits;
use crate::runtime::Runtime;
use crate::token::{Ballot, Token};

// ---------------------------------------------------------------------------------------------------------------------
// What goes out

const READ: u8 = 1;
const PREPARE: u8 = 2;
const ACCEPT: u8 = 3;
const LIST: u8 = 4;
const FOUND: u8 = 5;

/// One operation as MessagePack, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded(Bytes);

/// Writes MessagePack. Strings and binary both travel as `str`: Lua makes no difference, and cmsgpack packs only `str`.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    const FITS: &'static str = "writing to memory does not fail";

    fn array(&mut self, length: usize) -> &mut Self {
        rmp::encode::write_array_len(&mut self.0, length as u32).expect(Self::FITS);
        self
    }

    fn number(&mut self, value: u64) -> &mut Self {
        rmp::encode::write_uint(&mut self.0, value).expect(Self::FITS);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        rmp::encode::write_str_len(&mut self.0, bytes.len() as u32).expect(Self::FITS);
        self.0.extend_from_slice(bytes);
        self
    }

    fn ballot(&mut self, ballot: Ballot) -> &mut Self {
        self.number(ballot.token.get()).bytes(&ballot.proposer.0.to_be_bytes())
    }
}

impl Operation {
    /// As it travels. See the header of each file in `lua/` for the order of fields.
    pub fn encode(&self) -> Encoded {
        let mut out = Writer(Vec::with_capacity(64));
        match self {
            Operation::Read { key } => {
                out.array(2).number(READ.into()).bytes(key.as_bytes());
            }
            Operation::Prepare { key, ballot, soft } => {
                out.array(5)
                    .number(PREPARE.into())
                    .bytes(key.as_bytes())
                    .ballot(*ballot)
                    .number((*soft).into());
            }
            Operation::Accept(accept) => encode_accept(&mut out, accept),
            Operation::List { kind, prefix, after, limit } => {
                let (min, max) = lex_range(prefix, after);
                out.array(5).number(LIST.into()).bytes(kind.to_string().as_bytes());
                out.bytes(&min).bytes(&max).number(*limit as u64);
            }
            Operation::Found { founding, memory } => {
                out.array(5).number(FOUND.into()).bytes(&founding.to_bytes()).ballot(*founding);
                out.bytes(&memory.to_be_bytes());
            }
        }
        Encoded(out.0.into())
    }
}

fn encode_accept(out: &mut Writer, accept: &Accept) {
    out.0.reserve(accept.value.len() + 256);
    out.array(13).number(ACCEPT.into()).bytes(accept.key.as_bytes()).ballot(accept.ballot);
    out.bytes(&accept.value).bytes(&vid_bytes(accept.vid));
    let recent: Vec<u8> = accept.recent.iter().flat_map(|vid| vid.to_bytes()).collect();
    out.bytes(&recent);
    out.array(accept.stamps.len());
    for stamp in &accept.stamps {
        out.bytes(&stamp.to_bytes());
    }
    out.number(u64::try_from(accept.guard.as_millis()).unwrap_or(u64::MAX));
    out.number(accept.listed.into()).number(accept.next.get()).number(accept.announce.into());
    out.array(accept.wake.len());
    for daemon in &accept.wake {
        out.bytes(daemon.to_string().as_bytes());
    }
}

/// "Absent" travels as the empty string, so that a fresh node's list and the wish to go by none look alike.
fn vid_bytes(vid: Ballot) -> Vec<u8> {
    if vid == Ballot::ZERO { Vec::new() } else { vid.to_bytes().to_vec() }
}

/// The bounds of ZRANGEBYLEX for names with this prefix, after this name.
fn lex_range(prefix: &str, after: &str) -> (Vec<u8>, Vec<u8>) {
    let min = match (after.is_empty(), after >= prefix) {
        (false, true) => [b"(", after.as_bytes()].concat(),
        _ if prefix.is_empty() => b"-".to_vec(),
        _ => [b"[", prefix.as_bytes()].concat(),
    };
    // UTF-8 has no byte 0xff, so the last byte plus one is past every name with this prefix.
    let max = match prefix.as_bytes().split_last() {
        None => b"+".to_vec(),
        Some((last, start)) => [b"(", start, &[last + 1]].concat(),
    };
    (min, max)
}

/// A whole batch: the list that the daemon goes by, and the operations.
pub fn encode<'a>(list: Ballot, operations: impl ExactSizeIterator<Item = &'a Encoded> + Clone) -> Bytes {
    let bytes: usize = operations.clone().map(|operation| operation.0.len()).sum();
    let mut out = Writer(Vec::with_capacity(bytes + 32));
    out.array(2).bytes(&vid_bytes(list)).array(operations.len());
    for operation in operations {
        out.0.extend_from_slice(&operation.0);
    }
    out.0.into()
}

// ---------------------------------------------------------------------------------------------------------------------
// What comes back

/// A reply of the script.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchReply {
    /// The batch was run; one answer per operation, `None` where the gate was closed.
    Done {
        /// The node's memory.
        memory: Option<MemoryId>,
        /// The list that the node holds; [`Ballot::ZERO`] for none.
        list: Ballot,
        /// The node's clock, in microseconds of Unix time.
        now_us: u64,
        /// In the order of the operations.
        answers: Vec<Option<Answer>>,
    },
    /// The node record is gone (FLUSHALL): nothing was done.
    NoRecord,
    /// The node record is not the one of the handshake: nothing was done.
    Foreign,
}

/// A reply that is not what the script sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reply of the script can't be read ({0})")]
pub struct Malformed(&'static str);

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array(&mut self) -> Result<usize, Malformed> {
        let length =
            rmp::decode::read_array_len(&mut self.0).map_err(|_| Malformed("array expected"))? as usize;
        // Every element takes a byte, so a longer array is a lie and must not make us allocate.
        if length > self.0.len() { Err(Malformed("array too long")) } else { Ok(length) }
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        rmp::decode::read_int(&mut self.0).map_err(|_| Malformed("number expected"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length =
            rmp::decode::read_str_len(&mut self.0).map_err(|_| Malformed("string expected"))? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed("string too long"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn is_number(&self) -> bool {
        self.0.first().is_some_and(|first| *first < 0x80)
    }

    fn is_false(&mut self) -> bool {
        let is = self.0.first() == Some(&0xc2);
        if is {
            self.0 = &self.0[1..];
        }
        is
    }

    fn ballot(&mut self) -> Result<Ballot, Malformed> {
        let token = Token::new(self.number()?).ok_or(Malformed("token out of range"))?;
        let proposer = self.bytes()?.try_into().map_err(|_| Malformed("proposer of 8 bytes expected"))?;
        Ok(Ballot { token, proposer: ProposerId(u64::from_be_bytes(proposer)) })
    }

    fn vid(&mut self) -> Result<Ballot, Malformed> {
        match self.bytes()? {
            [] => Ok(Ballot::ZERO),
            bytes => Ballot::from_bytes(bytes).ok_or(Malformed("ballot of 16 bytes expected")),
        }
    }
}

/// Reads a reply of the batch script.
///
/// # Errors
/// [`Malformed`] for anything that the script does not send. Never panics, whatever the bytes.
pub fn decode(reply: &[u8]) -> Result<BatchReply, Malformed> {
    let mut input = Reader(reply);
    input.array()?;
    match input.number()? {
        0 => {}
        1 => return Ok(BatchReply::NoRecord),
        2 => return Ok(BatchReply::Foreign),
        _ => return Err(Malformed("unknown tag of a batch")),
    }
    let memory = match input.bytes()? {
        [] => None,
        bytes => {
            let bytes = bytes.try_into().map_err(|_| Malformed("memory of 8 bytes expected"))?;
            memory_from_wire(u64::from_be_bytes(bytes))
        }
    };
    let list = input.vid()?;
    let now_us = input.number()?;
    let answers = (0..input.array()?).map(|_| decode_answer(&mut input, now_us)).collect::<Result<_, _>>()?;
    Ok(BatchReply::Done { memory, list, now_us, answers })
}

fn decode_answer(input: &mut Reader<'_>, now_us: u64) -> Result<Option<Answer>, Malformed> {
    if input.is_number() {
        return match input.number()? {
            1 => Ok(Some(Answer::Accepted)),
            7 => Ok(Some(Answer::TooFarAhead)),
            8 => Ok(Some(Answer::NotServing)),
            10 => Ok(None),
            _ => Err(Malformed("unknown answer")),
        };
    }
    input.array()?;
    let answer = match input.number()? {
        2 if input.is_false() => Answer::Record(None),
        2 => Answer::Record(Some(decode_record(input.bytes()?, now_us)?)),
        3 => Answer::Promised { record: decode_record(input.bytes()?, now_us)?, floor: input.vid()? },
        4 => Answer::Held { record: decode_record(input.bytes()?, now_us)? },
        5 => Answer::Conflict { promise: input.ballot()? },
        6 => {
            let names = (0..input.array()?).map(|_| Ok(String::from_utf8_lossy(input.bytes()?).into_owned()));
            Answer::Names(names.collect::<Result<_, Malformed>>()?)
        }
        9 => Answer::Failed { message: String::from_utf8_lossy(input.bytes()?).into_owned() },
        _ => return Err(Malformed("unknown answer")),
    };
    Ok(Some(answer))
}

/// Reads a record in its stored form and works out the ages.
///
/// # Errors
/// [`Malformed`] for anything that `accept` does not store.
pub fn decode_record(raw: &[u8], now_us: u64) -> Result<Record, Malformed> {
    let mut input = Reader(raw);
    if input.array()? != 11 {
        return Err(Malformed("record of 11 fields expected"));
    }
    let (promise, ballot, vid) = (input.ballot()?, input.ballot()?, input.vid()?);
    let recent = input
        .bytes()?
        .chunks(Ballot::BYTES)
        .map(|vid| Ballot::from_bytes(vid).ok_or(Malformed("vids of 16 bytes expected")))
        .collect::<Result<_, _>>()?;
    let value = Bytes::copy_from_slice(input.bytes()?);
    let stamps = input.array()? / 2;
    let mut ages = Vec::with_capacity(stamps);
    for _ in 0..stamps {
        let stamp = Stamp::from_bytes(input.bytes()?).ok_or(Malformed("stamp of 17 bytes expected"))?;
        // Rounded down: an age must never be overstated.
        ages.push((stamp, Duration::from_millis(now_us.saturating_sub(input.number()?) / 1000)));
    }
    input.number()?;
    let copied = input.number()? != 0;
    Ok(Record { promise, ballot, value, vid, recent, ages, copied })
}

// ---------------------------------------------------------------------------------------------------------------------
// The queue of one node

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
pub type ReplySender = mpsc::UnboundedSender<Reply>;

struct Queued {
    list: Ballot,
    operation: Encoded,
    round: u32,
    reply: ReplySender,
}

/// The queue and the group commit of one node.
pub struct Batcher {
    node: Arc<dyn Node>,
    queue: mpsc::UnboundedSender<Queued>,
    queued: Arc<AtomicUsize>,
    last: Arc<Mutex<Option<LastReply>>>,
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
}

impl Batcher {
    /// Starts the queue's task. It ends when the batcher is dropped.
    pub fn new(node: Arc<dyn Node>, runtime: &Runtime) -> Self {
        let (queue, waiting) = mpsc::unbounded();
        let queued = Arc::new(AtomicUsize::new(0));
        let last = Arc::default();
        let sender = Sender {
            node: node.clone(),
            runtime: runtime.clone(),
            queued: queued.clone(),
            last: Arc::clone(&last),
        };
        runtime.spawner.spawn(sender.run(waiting).boxed());
        Self { node, queue, queued, last }
    }

    /// The node behind it.
    pub fn node(&self) -> &Arc<dyn Node> {
        &self.node
    }

    /// What the last reply said; `None` before the first.
    pub fn last_reply(&self) -> Option<LastReply> {
        self.last.lock().expect("no holder of this lock panics").clone()
    }

    /// Queues an operation that goes by the list `list`. Exactly one [`Reply`] follows.
    pub fn submit(&self, list: Ballot, operation: Encoded, round: u32, reply: &ReplySender) {
        let queued = self.queued.fetch_add(1, Ordering::Relaxed);
        let item = Queued { list, operation, round, reply: reply.clone() };
        if queued >= limits::OPERATIONS_QUEUED_MAX {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            let delivery = Delivery::Unsent("too many operations wait for this node".into());
            return answer(item, self.node.index(), delivery);
        }
        if let Err(refused) = self.queue.unbounded_send(item) {
            let delivery = Delivery::Unsent("the daemon is stopping".into());
            answer(refused.into_inner(), self.node.index(), delivery);
        }
    }
}

fn answer(item: Queued, node: NodeIndex, delivery: Delivery) {
    // A receiver that is gone has its quorum or has given up: nobody misses the answer.
    let _ = item.reply.unbounded_send(Reply { node, round: item.round, delivery });
}

/// The task behind a [`Batcher`].
struct Sender {
    node: Arc<dyn Node>,
    runtime: Runtime,
    queued: Arc<AtomicUsize>,
    last: Arc<Mutex<Option<LastReply>>>,
}

impl Sender {
    async fn run(self, mut waiting: mpsc::UnboundedReceiver<Queued>) {
        let mut under_way = FuturesUnordered::new();
        let mut next: VecDeque<Queued> = VecDeque::new();
        let mut open = true;
        while open || !under_way.is_empty() || !next.is_empty() {
            loop {
                match waiting.try_recv() {
                    Ok(item) => next.push_back(item),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Closed) => {
                        open = false;
                        break;
                    }
                }
            }
            while !next.is_empty() && under_way.len() < limits::BATCHES_IN_FLIGHT_MAX {
                under_way.push(self.carry(take_batch(&mut next)));
            }
            if open && under_way.len() < limits::BATCHES_IN_FLIGHT_MAX {
                select_biased! {
                    () = under_way.select_next_some() => {}
                    item = waiting.next() => match item {
                        Some(item) => next.push_back(item),
                        None => open = false,
                    },
                    complete => open = false,
                }
            } else {
                under_way.next().await;
            }
        }
    }

    /// Carries one batch to the node and hands its answers out.
    async fn carry(&self, batch: Vec<Queued>) {
        self.queued.fetch_sub(batch.len(), Ordering::Relaxed);
        let index = self.node.index();
        let payload = encode(batch[0].list, batch.iter().map(|item| &item.operation));
        let sent = self.runtime.clock.now();
        let reply = self.node.call(payload).await;
        let failed = match reply.map(|reply| decode(&reply)) {
            Ok(Ok(BatchReply::Done { memory, list, now_us, answers })) if answers.len() == batch.len() => {
                self.note(memory, now_us, self.runtime.clock.now().since(sent));
                if answers.iter().flatten().any(is_unfit) {
                    self.node.reset("it refuses to write: it is inspected again");
                }
                for (item, answered) in batch.into_iter().zip(answers) {
                    let delivery = match answered {
                        Some(answer) => Delivery::Answered { memory, answer },
                        None => Delivery::Gated { list },
                    };
                    answer(item, index, delivery);
                }
                return;
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
        for item in batch {
            answer(item, index, failed.clone());
        }
    }

    fn note(&self, memory: Option<MemoryId>, node_us: u64, round_trip: Duration) {
        let here_ms = self.runtime.clock.wall_unix_ms();
        let NodeState::Ready(welcome) = self.node.state() else { return };
        let last = LastReply { run_id: welcome.run_id, memory, node_us, here_ms, round_trip };
        *self.last.lock().expect("no holder of this lock panics") = Some(last);
    }
}

/// An operation failed in a way that the handshake would have found: the server was turned into a replica, or our rights
/// were taken away.
fn is_unfit(answer: &Answer) -> bool {
    let codes = ["READONLY", "NOPERM", "MISCONF"];
    matches!(answer, Answer::Failed { message } if codes.iter().any(|code| message.contains(code)))
}

/// The longest run from the front that goes by one list and keeps to the bounds; at least one operation.
fn take_batch(waiting: &mut VecDeque<Queued>) -> Vec<Queued> {
    let mut batch: Vec<Queued> = Vec::new();
    let mut bytes = 0;
    while let Some(item) = waiting.front() {
        bytes += item.operation.0.len();
        let full = batch.len() >= limits::BATCH_OPERATIONS_MAX || bytes > limits::BATCH_BYTES_MAX;
        let other_list = batch.first().is_some_and(|first| first.list != item.list);
        if !batch.is_empty() && (full || other_list) {
            break;
        }
        batch.extend(waiting.pop_front());
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::operation::RegisterKey;

    fn queued(list: u64, bytes: usize) -> Queued {
        let list = Ballot { token: Token::new(list).unwrap(), proposer: ProposerId(1) };
        let operation = Encoded(vec![0; bytes].into());
        Queued { list, operation, round: 0, reply: mpsc::unbounded().0 }
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
    fn ranges_follow_prefix_and_position() {
        let range = |prefix, after| {
            let (min, max) = lex_range(prefix, after);
            (String::from_utf8(min).unwrap(), String::from_utf8(max).unwrap())
        };
        assert_eq!(range("", ""), ("-".into(), "+".into()));
        assert_eq!(range("a/", ""), ("[a/".into(), "(a0".into()));
        assert_eq!(range("a/", "a/7"), ("(a/7".into(), "(a0".into()));
        assert_eq!(range("b", "a"), ("[b".into(), "(c".into()));
    }

    proptest::proptest! {
        #[test]
        fn no_reply_makes_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn absent_travels_as_the_empty_string() {
        let read = Operation::Read { key: RegisterKey::members() }.encode();
        let batch = encode(Ballot::ZERO, [&read].into_iter());
        assert_eq!(&batch[..3], &[0x92, 0xa0, 0x91]);
    }
}
