//! What pure code costs on the way of one operation: batches written and read, a proposer's steps, a lock's changes.
//!
//! `cargo bench --bench hot_paths`; with `-- NAME` only those whose names contain NAME. Nothing here waits or calls the
//! system, so the fastest of many runs is the figure to go by.

#![expect(clippy::unwrap_used, reason = "a bench that can't go on fails")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use majorityd::driver::{Action, Context, Machine, Word};
use majorityd::ids::{Attributes, LeaseId, NodeIndex, Owner, ProposerId};
use majorityd::lock::change::{Acquire, LockChange, LockKind};
use majorityd::node::operation::{Accept, Answer, Operation, Record, RegisterKey};
use majorityd::node::wire::{self, BatchReply};
use majorityd::quorum::ClusterSize;
use majorityd::register::Kind;
use majorityd::register::proposer::{Entry, Proposer, Warm};
use majorityd::runtime::Moment;
use majorityd::token::{Ballot, Token};

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

/// Operations of one batch.
const BATCHES: [usize; 3] = [1, 32, 128];
const DAEMON: ProposerId = ProposerId(7);
const GRACE: Duration = Duration::from_millis(100);

fn main() {
    divan::main();
}

fn ballot(number: u64) -> Ballot {
    Ballot { token: Token::new(number).unwrap(), proposer: DAEMON }
}

fn acquire() -> LockChange {
    LockChange::Acquire(Acquire {
        lease_id: LeaseId::from_bytes([7; 16]),
        owner: Owner::parse("alice").unwrap(),
        ttl: Duration::from_secs(30),
        now_unix_ms: 1_700_000_000_000,
        attributes: Attributes::default(),
        grace: GRACE,
        waiting: None,
    })
}

fn release() -> LockChange {
    LockChange::Release { lease_id: LeaseId::from_bytes([7; 16]), grace: GRACE }
}

fn key() -> RegisterKey {
    RegisterKey::new(LockKind::LETTER, "jobs/nightly-report")
}

/// A record without a value that has promised a ballot.
fn promised(promise: Ballot) -> Record {
    Record {
        promise,
        ballot: Ballot::ZERO,
        value: Bytes::new(),
        vid: Ballot::ZERO,
        recent: Vec::new(),
        ages: Vec::new(),
        copied: false,
        listed: false,
        guard: Duration::ZERO,
        place: None,
    }
}

/// What a proposer came to.
struct Done {
    warm: Option<Warm<<LockKind as Kind>::Value>>,
    accept: Arc<Accept>,
}

/// Runs one change to its end, with the answers of the first two of three nodes.
fn round(change: LockChange, warm: Option<Warm<<LockKind as Kind>::Value>>, number: u64) -> Done {
    let (tokens, jitter) = (|above: Token| Token::new(above.get().max(number) + 1).unwrap(), |most| most);
    let context = Context { now: Moment::ZERO, tokens: &tokens, jitter: &jitter };
    let entries = vec![Entry { change, claim: Arc::default() }];
    let size = ClusterSize::new(3).unwrap();
    let mut proposer = Proposer::<LockKind>::new(key(), size, DAEMON, entries, warm);
    let mut action = proposer.start(&context);
    let mut accepted = None;
    loop {
        let word = match action {
            Action::Send(Operation::Prepare { ballot, .. }) => {
                Word::Answer(Answer::Promised { record: promised(ballot), floor: Ballot::ZERO })
            }
            Action::Send(Operation::Accept(accept)) => {
                accepted = Some(accept);
                Word::Answer(Answer::Accepted)
            }
            Action::Done(decided) => return Done { warm: decided.warm, accept: accepted.unwrap() },
            other => panic!("unexpected: {other:?}"),
        };
        action = proposer.on_word(NodeIndex(0), word.clone(), &context);
        if matches!(action, Action::Wait(_)) {
            action = proposer.on_word(NodeIndex(1), word, &context);
        }
    }
}

/// A lock that nobody has touched for long: a prepare and an accept.
#[divan::bench]
fn proposer_cold_acquire(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(acquire).bench_values(|change| round(change, None, 1));
}

/// The daemon that acquired it has the next promise: one accept.
#[divan::bench]
fn proposer_warm_release(bencher: Bencher<'_, '_>) {
    let warm = round(acquire(), None, 1).warm;
    bencher.with_inputs(|| (release(), warm.clone())).bench_values(|(change, warm)| round(change, warm, 1));
}

#[divan::bench]
fn lock_value_written_and_read(bencher: Bencher<'_, '_>) {
    let value = round(acquire(), None, 1).accept.value.clone();
    let value = LockKind::decode(&value).unwrap();
    bencher.bench(|| LockKind::decode(&LockKind::encode(black_box(&value))).unwrap());
}

#[divan::bench]
fn operation_written(bencher: Bencher<'_, '_>) {
    let accept = Operation::Accept(round(acquire(), None, 1).accept);
    bencher.bench(|| black_box(&accept).encode());
}

#[divan::bench(args = BATCHES)]
fn batch_written(bencher: Bencher<'_, '_>, size: usize) {
    let accept = Operation::Accept(round(acquire(), None, 1).accept).encode();
    let operations = vec![accept; size];
    bencher.counter(ItemsCount::new(size)).bench(|| wire::encode(ballot(1), black_box(&operations).iter()));
}

/// A reply as the script packs it: each answer a promise with the record of a held lock.
fn reply(size: usize) -> Vec<u8> {
    let value = round(acquire(), None, 1).accept.value.clone();
    let text = |bytes: &[u8]| rmp_serde::to_vec(std::str::from_utf8(bytes).unwrap()).unwrap();
    // Lua's strings travel as `str`, whatever is in them, so they are written by hand.
    let string = |bytes: &[u8]| {
        let mut out = vec![0xda];
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(bytes);
        out
    };
    let number = |number: u64| rmp_serde::to_vec(&number).unwrap();
    let proposer = string(&DAEMON.0.to_be_bytes());
    // Promise, ballot, copied, listed, place, due, guard, stamps, vid, recent, value.
    let record = [
        [number(9), proposer.clone(), number(9), proposer, number(0), number(1), text(b"")].concat(),
        [number(0), number(0), text(b""), string(&ballot(9).to_bytes()), text(b""), string(&value)].concat(),
    ]
    .concat();
    let mut out = vec![0x96];
    out.extend(number(0));
    out.extend(string(&7u64.to_be_bytes()));
    out.extend(string(&ballot(1).to_bytes()));
    out.extend(number(1_700_000_000_000_000));
    out.push(0xdc);
    out.extend((size as u16).to_be_bytes());
    for _ in 0..size {
        out.push(0x93);
        out.extend(number(3));
        out.extend(string(&record));
        out.extend(text(b""));
    }
    out.extend(number(1));
    out
}

#[divan::bench(args = BATCHES)]
fn reply_read(bencher: Bencher<'_, '_>, size: usize) {
    let reply = reply(size);
    let Ok(BatchReply::Done { answers, .. }) = wire::decode(&reply) else { panic!("it is a reply") };
    assert!(answers.iter().all(|answer| matches!(answer, Some(Answer::Promised { .. }))));
    bencher.counter(ItemsCount::new(size)).bench(|| wire::decode(black_box(&reply)));
}
