//! What every node must do: cases of operations and expected answers, one for each rule in the headers of `lua/`.
//!
//! Run against embedded nodes here and against Redis by `tests/conformance.rs`, so that what the simulation believes
//! about a node is proved. A [`Subject`] is an empty server with a clock that the case sets; [`normal`] and
//! [`same_answers`] serve the comparison of random batches. What is here is agreement; `queues` is what is about
//! a queue as a whole; `looks` are without the script; `joining`, `records` and `reports` are upkeep.

mod joining;
mod looks;
mod queues;
mod records;
mod reports;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use futures::future::BoxFuture;

use super::embedded::{EmbeddedNode, EmbeddedServer, Entry, Keyspace};
use super::keyspace::{FLOOR_KEY, NODE_KEY, RECORD_PREFIX, WRITES_KEY};
use super::operation::{
    Accept, Answer, Operation, Page, PageRequest, Place, Record, RegisterKey, Report, Reported, Stamp,
};
use super::wire::{self, BatchReply};
use super::{CallError, Hint, Identity, Node, NodeState};
use crate::ids::{MemoryId, NodeIndex, ProposerId};
use crate::token::{Ballot, Token};

/// Where the clock of a subject begins, in seconds of Unix time.
pub const START: u64 = 1_795_000_000;
/// The cluster's name.
pub const CLUSTER: &str = "conformance";
/// The configured number of nodes.
pub const NODES: usize = 3;
/// The node's index.
pub const INDEX: NodeIndex = NodeIndex(1);

/// A server under test.
pub trait Subject: Send + Sync {
    /// A daemon's connection; ready when the future completes.
    fn connect(&self, daemon: ProposerId) -> BoxFuture<'_, Connection>;
    /// Sets the server's clock, which stands still, to so many seconds of Unix time.
    fn set_time(&self, unix_seconds: u64);
    /// All data.
    fn dump(&self) -> Keyspace;
    /// Puts something under a key, whatever was there.
    fn put(&self, key: &[u8], entry: Entry);
    /// FLUSHALL.
    fn wipe(&self);
    /// Lets a little time pass, in which hints may arrive.
    fn pause(&self) -> BoxFuture<'_, ()>;
}

/// One daemon's connection and what it heard.
pub struct Connection {
    /// The node.
    pub node: Arc<dyn Node>,
    /// Its hints.
    pub hints: mpsc::UnboundedReceiver<Hint>,
}

/// What a daemon of the suite presents itself with.
pub fn identity(daemon: ProposerId) -> Identity {
    Identity { cluster: CLUSTER.into(), nodes: NODES, daemon }
}

/// An embedded server as a subject.
pub struct EmbeddedSubject {
    server: Arc<EmbeddedServer>,
    seconds: Arc<std::sync::atomic::AtomicU64>,
}

impl Default for EmbeddedSubject {
    fn default() -> Self {
        let seconds = Arc::new(std::sync::atomic::AtomicU64::new(START));
        let clock = Arc::clone(&seconds);
        let now = move || clock.load(std::sync::atomic::Ordering::Relaxed) * 1_000_000;
        Self { server: EmbeddedServer::new(1, Arc::new(now)), seconds }
    }
}

impl EmbeddedSubject {
    /// The server itself.
    pub fn server(&self) -> &Arc<EmbeddedServer> {
        &self.server
    }
}

impl Subject for EmbeddedSubject {
    fn connect(&self, daemon: ProposerId) -> BoxFuture<'_, Connection> {
        let (sink, hints) = mpsc::unbounded();
        let sink = Arc::new(move |_: NodeIndex, hint: Hint| drop(sink.unbounded_send(hint)));
        let node = EmbeddedNode::new(self.server.clone(), identity(daemon), INDEX, sink);
        Box::pin(async move { Connection { node, hints } })
    }

    fn set_time(&self, unix_seconds: u64) {
        self.seconds.store(unix_seconds, std::sync::atomic::Ordering::Relaxed);
    }

    fn dump(&self) -> Keyspace {
        self.server.keyspace()
    }

    fn put(&self, key: &[u8], entry: Entry) {
        self.server.edit(|keyspace| keyspace.insert(Bytes::copy_from_slice(key), entry));
    }

    fn wipe(&self) {
        self.server.edit(|keyspace| *keyspace = Keyspace::default());
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Words of the cases

/// The ballot so many tokens after the start of the clock.
pub fn ballot(token: u64, proposer: u64) -> Ballot {
    let start = Token::at_unix_ms(START * 1000).get();
    Ballot { token: Token::new(start + token).expect("far below the bound"), proposer: ProposerId(proposer) }
}

/// The register of a lock.
pub fn lock(name: &str) -> RegisterKey {
    RegisterKey::new('l', name)
}

/// An accept with nothing in it but a value.
pub fn accept(key: RegisterKey, ballot: Ballot, value: &str) -> Accept {
    Accept {
        key,
        ballot,
        value: Bytes::copy_from_slice(value.as_bytes()),
        vid: ballot,
        recent: Vec::new(),
        stamps: Vec::new(),
        guard: Duration::ZERO,
        listed: false,
        next: Token::ZERO,
        announce: false,
        wake: Vec::new(),
        place: None,
    }
}

/// A record as its source stores it.
pub struct Source {
    /// No lower ballot was taken.
    pub promise: Ballot,
    /// The ballot of the value, and the attempt that made it.
    pub ballot: Ballot,
    /// The value.
    pub value: Bytes,
    /// What ages in it, and since when by the source's clock, in microseconds.
    pub stamps: Vec<(Stamp, u64)>,
    /// Whether the name is in the index.
    pub listed: bool,
    /// Where an item stands in its queue.
    pub place: Option<Place>,
}

impl Source {
    /// One with nothing in it but a value.
    pub fn new(ballot: Ballot, value: &str) -> Self {
        let value = Bytes::copy_from_slice(value.as_bytes());
        Self { promise: ballot, ballot, value, stamps: Vec::new(), listed: false, place: None }
    }

    /// As it is stored.
    ///
    /// # Panics
    /// Never: a vector takes everything.
    pub fn raw(&self) -> Bytes {
        const FITS: &str = "a vector takes everything";
        let mut out = Vec::new();
        let number = |out: &mut Vec<u8>, number| {
            rmp::encode::write_uint(out, number).expect(FITS);
        };
        let bytes = |out: &mut Vec<u8>, bytes: &[u8]| {
            rmp::encode::write_str_len(out, bytes.len() as u32).expect(FITS);
            out.extend_from_slice(bytes);
        };
        for ballot in [self.promise, self.ballot] {
            number(&mut out, ballot.token.get());
            bytes(&mut out, &ballot.proposer.0.to_be_bytes());
        }
        let (place, due) = self.place.as_ref().map_or((String::new(), Duration::ZERO), |place| {
            (format!("{}{}", place.set, place.member), place.due)
        });
        // Copied, listed.
        for field in [0, self.listed.into()] {
            number(&mut out, field);
        }
        bytes(&mut out, place.as_bytes());
        // Due, guard.
        for field in [due.as_millis() as u64, 0] {
            number(&mut out, field);
        }
        let stamps = self
            .stamps
            .iter()
            .flat_map(|(stamp, since)| [&stamp.to_bytes()[..], format!("{since:016}").as_bytes()].concat());
        bytes(&mut out, &stamps.collect::<Vec<_>>());
        for field in [&self.ballot.to_bytes()[..], b"", &self.value] {
            bytes(&mut out, field);
        }
        out.into()
    }
}

fn prepare(key: &str, ballot: Ballot) -> Operation {
    Operation::Prepare { key: lock(key), ballot, soft: false }
}

fn soft(key: &str, ballot: Ballot) -> Operation {
    Operation::Prepare { key: lock(key), ballot, soft: true }
}

fn read(key: &str) -> Operation {
    Operation::Read { key: lock(key) }
}

fn put(key: &str, ballot: Ballot, value: &str) -> Operation {
    Operation::Accept(Arc::new(accept(lock(key), ballot, value)))
}

fn stamp(ballot: Ballot) -> Stamp {
    Stamp { ballot, ordinal: 0 }
}

/// What the founding of the suite is.
pub fn founding() -> Ballot {
    ballot(0, 9)
}

/// The memory that the founding of the suite gives.
pub const MEMORY: MemoryId = MemoryId(0xfeed);

/// The batch that makes a new node a member, to be sent under no list.
pub fn found() -> [Operation; 2] {
    let list = accept(RegisterKey::members(), founding(), "list");
    [Operation::Accept(Arc::new(list)), Operation::Found { founding: founding(), memory: MEMORY.0 }]
}

impl Connection {
    /// Sends a batch under a list.
    ///
    /// # Errors
    /// What the node's call ended with.
    pub async fn send(&self, list: Ballot, operations: &[Operation]) -> Result<BatchReply, CallError> {
        let operations: Vec<_> = operations.iter().map(Operation::encode).collect();
        let reply = self.node.call(wire::encode(list, operations.iter())).await?;
        Ok(wire::decode(&reply).expect("the script's reply can be read"))
    }

    async fn done(
        &self,
        list: Ballot,
        operations: &[Operation],
    ) -> (Option<MemoryId>, Ballot, Vec<Option<Answer>>) {
        match self.send(list, operations).await {
            Ok(BatchReply::Done { memory, list, answers, .. }) => (memory, list, answers),
            other => panic!("the batch was not run: {other:?}"),
        }
    }

    /// Runs one operation under a list; `None` if the gate is closed.
    async fn run_by(&self, list: Ballot, operation: Operation) -> Option<Answer> {
        let (_, _, mut answers) = self.done(list, &[operation]).await;
        answers.pop().expect("one answer")
    }

    /// Runs one operation under the list of the founding.
    async fn run(&self, operation: Operation) -> Answer {
        self.run_by(founding(), operation).await.expect("the gate is open")
    }

    /// Runs one operation that no gate concerns, under no list.
    async fn ungated(&self, operation: Operation) -> Answer {
        self.run_by(Ballot::ZERO, operation).await.expect("there is no gate")
    }

    /// The memory and the list by which a batch would go.
    async fn met(&self) -> (Option<MemoryId>, Ballot) {
        let (memory, list, _) = self.done(Ballot::ZERO, &[]).await;
        (memory, list)
    }

    /// How many batches have changed something, as a batch under this list says.
    async fn writes(&self, list: Ballot, operations: &[Operation]) -> Option<u64> {
        match self.send(list, operations).await {
            Ok(BatchReply::Done { writes, .. }) => writes,
            other => panic!("the batch was not run: {other:?}"),
        }
    }

    async fn page(&self, list: Ballot, request: PageRequest) -> Page {
        match self.run_by(list, Operation::Page(request)).await {
            Some(Answer::Page(page)) => page,
            other => panic!("page answered {other:?}"),
        }
    }

    async fn report(&self, report: Report) -> Reported {
        match self.ungated(Operation::Report(report)).await {
            Answer::Reported(reported) => reported,
            other => panic!("report answered {other:?}"),
        }
    }

    async fn record(&self, key: &str) -> Option<Record> {
        match self.run(read(key)).await {
            Answer::Record(record) => record,
            other => panic!("read answered {other:?}"),
        }
    }

    /// The next hint that is not about the connection.
    async fn hint(&mut self) -> Hint {
        loop {
            match self.hints.next().await.expect("the node lives") {
                Hint::State => {}
                hint => return hint,
            }
        }
    }
}

/// A connection to a node that is a member.
async fn member(subject: &dyn Subject) -> Connection {
    let connection = subject.connect(ProposerId(1)).await;
    let (_, _, answers) = connection.done(Ballot::ZERO, &found()).await;
    assert_eq!(answers, [Some(Answer::Accepted), Some(Answer::Accepted)]);
    connection
}

/// A connection to the server after it was started again with its data: the handshake finds a run that is not the
/// node record's.
///
/// # Panics
/// If there is no node record.
pub async fn restarted(subject: &dyn Subject) -> Connection {
    let keyspace = without_run(&subject.dump());
    subject.put(NODE_KEY.as_bytes(), keyspace.get(NODE_KEY.as_bytes()).expect("a node record").clone());
    subject.connect(ProposerId(1)).await
}

/// An accept of a member list.
fn list(ballot: Ballot) -> Operation {
    Operation::Accept(Arc::new(accept(RegisterKey::members(), ballot, "list")))
}

fn listed(key: &str, ballot: Ballot, listed: bool) -> Operation {
    Operation::Accept(Arc::new(Accept { listed, ..accept(lock(key), ballot, "x") }))
}

fn names_from(after: &str) -> Operation {
    Operation::List { index: "l".into(), prefix: String::new(), after: after.into(), limit: 100 }
}

fn floor_entry(floor: Ballot) -> Entry {
    Entry::Bytes(Bytes::copy_from_slice(&floor.to_bytes()))
}

fn conflict(promise: Ballot) -> Answer {
    Answer::Conflict { promise }
}

fn is_bare(answer: &Answer, promised: Ballot) -> bool {
    matches!(answer, Answer::Promised { record, .. }
        if record.promise == promised && record.ballot == Ballot::ZERO && record.value.is_empty())
}

// ---------------------------------------------------------------------------------------------------------------------
// The cases

/// One case.
pub type Case = for<'a> fn(&'a dyn Subject) -> BoxFuture<'a, ()>;

macro_rules! cases {
    ($($name:path),* $(,)?) => {
        /// All cases by name. Each wants an empty server whose clock is at [`START`].
        pub const CASES: &[(&str, Case)] = &[$((stringify!($name), |subject| Box::pin($name(subject)))),*];
    };
}

cases! {
    no_list_opens_nothing_but_the_list,
    the_founding_gives_a_memory_once,
    a_founding_that_somebody_started_over_gives_none,
    another_list_is_gated_and_no_memory_serves_nothing,
    promises_go_by_token_alone,
    accepts_go_by_ballot,
    the_same_accept_again_changes_nothing,
    next_is_promised_with_the_accept,
    stamps_keep_their_time,
    a_stamp_is_not_found_across_others,
    a_soft_prepare_shows_what_is_guarded,
    ballots_of_the_day_after_tomorrow_are_refused,
    nothing_comes_back_from_under_the_floor,
    what_was_copied_is_overwritten_by_its_own_ballot,
    lists_are_in_byte_order_and_bounded,
    hints_reach_those_who_listen,
    one_failure_does_not_stop_the_others,
    a_flushed_node_does_nothing_and_has_no_memory_afterwards,
    a_foreign_node_does_nothing,
    values_and_names_of_any_bytes_survive,
    an_unreadable_batch_is_lost,
    joining::a_join_begins_under_its_own_list_only,
    joining::a_join_shuts_and_opens_the_gate_for_what_follows_in_its_batch,
    joining::a_join_begins_once_for_each_id,
    joining::a_join_removes_all_old_data_in_slices,
    joining::a_join_forgets_the_floor_at_once,
    joining::a_recovery_keeps_what_there_is,
    joining::a_recovery_is_over_when_the_list_is_promised_to_another,
    joining::the_highest_ballot_and_the_highest_promise_win_a_merge,
    joining::stamps_start_anew_with_a_merge,
    joining::the_floor_is_the_highest_merged,
    joining::the_index_follows_merges,
    joining::merges_are_of_one_memory_and_end_with_it,
    joining::the_end_of_a_join_can_be_repeated,
    joining::who_joins_serves_the_list_alone,
    joining::a_restart_ends_a_join,
    joining::a_restart_keeps_what_a_recovery_merges_into,
    joining::what_pages_show_can_be_merged,
    queues::a_claim_prepares_the_first_ready_items_in_order,
    queues::claims_are_bounded,
    queues::what_is_claimed_is_kept_from_others_for_a_moment,
    queues::what_was_promised_higher_is_not_claimed,
    queues::an_item_stands_in_one_set_at_a_time,
    queues::items_leave_the_sets_that_they_stand_in_whatever_their_records_say,
    queues::what_fails_half_way_leaves_nothing_to_those_after_it,
    queues::what_is_due_is_ready_by_the_clock_of_the_node,
    queues::members_without_their_record_are_dropped,
    queues::the_floor_is_told_with_a_claim,
    queues::a_census_counts_all_and_shows_the_first,
    queues::queues_do_not_meet,
    queues::a_batch_announces_each_queue_once,
    queues::claims_and_censuses_are_gated,
    queues::places_come_with_merges_and_their_times_begin_anew,
    queues::what_is_done_is_guarded_until_it_may_be_forgotten,
    queues::a_claim_that_promises_is_a_write,
    records::pages_show_every_record,
    records::values_that_do_not_fit_a_page_are_asked_for_by_key,
    records::a_page_of_keys_is_in_their_order,
    records::pages_are_gated_and_a_recovery_has_its_own_gate,
    looks::a_look_shows_what_reads_show,
    looks::looks_are_gated_like_reads,
    looks::a_look_at_a_flushed_or_foreign_node_shows_nothing,
    looks::where_no_record_stands_a_look_shows_nothing,
    records::ballots_are_shown_without_values,
    records::ballots_of_large_records_are_shown_some_at_a_time,
    records::what_guards_a_record_ripens_by_the_nodes_clock,
    records::only_what_is_as_it_was_read_is_forgotten,
    records::what_is_forgotten_raises_the_floor,
    records::the_list_is_never_forgotten,
    reports::ages_are_by_the_clock_of_the_node,
    reports::the_highest_count_of_each_memory_is_kept,
    reports::a_short_report_spoils_nothing,
    reports::what_was_missed_is_noted_until_it_is_brought,
    reports::notes_are_bounded,
    reports::a_node_tells_of_its_own_join,
    reports::batches_that_change_something_are_counted,
}

async fn no_list_opens_nothing_but_the_list(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    let operations = [
        read("a"),
        prepare("a", ballot(1, 1)),
        put("a", ballot(1, 1), "x"),
        Operation::List { index: "l".into(), prefix: String::new(), after: String::new(), limit: 9 },
        Operation::Read { key: RegisterKey::members() },
    ];
    let (memory, list, answers) = connection.done(Ballot::ZERO, &operations).await;
    assert_eq!((memory, list), (None, Ballot::ZERO));
    assert_eq!(answers, [None, None, None, None, Some(Answer::Record(None))]);
    let (_, _, answers) = connection.done(ballot(1, 1), &operations[..1]).await;
    assert_eq!(answers, [None]);
    assert_eq!(subject.dump().len(), 1, "nothing but the node record");
    // A bare promise is no list.
    let promise = Operation::Prepare { key: RegisterKey::members(), ballot: ballot(1, 1), soft: false };
    connection.done(Ballot::ZERO, &[promise]).await;
    let (_, list, answers) = connection.done(Ballot::ZERO, &operations[..1]).await;
    assert_eq!((list, answers), (Ballot::ZERO, vec![None]));
}

async fn the_founding_gives_a_memory_once(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    let [list, found] = found();
    let (memory, _, answers) = connection.done(Ballot::ZERO, std::slice::from_ref(&found)).await;
    assert_eq!((memory, answers), (None, vec![Some(conflict(Ballot::ZERO))]));
    let (memory, list, answers) = connection.done(Ballot::ZERO, &[list, found.clone()]).await;
    assert_eq!(answers, [Some(Answer::Accepted), Some(Answer::Accepted)]);
    assert_eq!(memory, Some(MEMORY));
    assert_eq!(list, Ballot::ZERO, "the batch goes by the list that it met");
    let (memory, list, answers) = connection.done(founding(), &[found]).await;
    assert_eq!((memory, list), (Some(MEMORY), founding()));
    assert_eq!(answers, [Some(conflict(founding()))]);
}

async fn a_founding_that_somebody_started_over_gives_none(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    let [list, found] = found();
    let over = Operation::Prepare { key: RegisterKey::members(), ballot: ballot(5, 2), soft: false };
    let (memory, _, answers) = connection.done(Ballot::ZERO, &[list, over, found]).await;
    assert_eq!(memory, None);
    assert_eq!(answers[2], Some(conflict(ballot(5, 2))));
    let other = Operation::Found { founding: ballot(5, 2), memory: 7 };
    let (_, _, answers) = connection.done(Ballot::ZERO, &[other]).await;
    assert_eq!(answers, [Some(conflict(ballot(5, 2)))], "the list is not of that founding");
}

async fn another_list_is_gated_and_no_memory_serves_nothing(subject: &dyn Subject) {
    let connection = subject.connect(ProposerId(1)).await;
    let [list, found] = found();
    connection.done(Ballot::ZERO, &[list]).await;
    let (_, held, answers) = connection.done(founding(), &[put("a", ballot(1, 1), "x")]).await;
    assert_eq!((held, answers), (founding(), vec![Some(Answer::NotServing)]));
    connection.done(founding(), &[found]).await;
    let members = Operation::Read { key: RegisterKey::members() };
    for list in [Ballot::ZERO, ballot(0, 8), ballot(1, 9)] {
        let (_, held, answers) = connection.done(list, &[put("a", ballot(1, 1), "x"), members.clone()]).await;
        assert_eq!(held, founding());
        assert_eq!(answers[0], None);
        assert!(matches!(answers[1], Some(Answer::Record(Some(_)))));
    }
    assert_eq!(connection.record("a").await, None);
}

async fn promises_go_by_token_alone(subject: &dyn Subject) {
    let connection = member(subject).await;
    assert!(is_bare(&connection.run(prepare("a", ballot(5, 5))).await, ballot(5, 5)));
    for refused in [ballot(4, 9), ballot(5, 4), ballot(5, 6)] {
        assert_eq!(connection.run(prepare("a", refused)).await, conflict(ballot(5, 5)), "{refused}");
    }
    assert!(is_bare(&connection.run(prepare("a", ballot(5, 5))).await, ballot(5, 5)), "a repeat");
    assert!(is_bare(&connection.run(prepare("a", ballot(6, 1))).await, ballot(6, 1)));
    connection.run(put("a", ballot(6, 1), "x")).await;
    let Answer::Promised { record, floor } = connection.run(prepare("a", ballot(7, 3))).await else {
        panic!("a higher token is promised")
    };
    assert_eq!((record.promise, record.ballot, floor), (ballot(7, 3), ballot(6, 1), Ballot::ZERO));
    assert_eq!(record.value, "x");
}

async fn accepts_go_by_ballot(subject: &dyn Subject) {
    let connection = member(subject).await;
    assert_eq!(connection.run(put("a", ballot(5, 5), "never prepared")).await, Answer::Accepted);
    connection.run(prepare("a", ballot(7, 5))).await;
    for refused in [ballot(6, 9), ballot(7, 4)] {
        assert_eq!(connection.run(put("a", refused, "low")).await, conflict(ballot(7, 5)), "{refused}");
    }
    assert_eq!(connection.run(put("a", ballot(7, 5), "equal")).await, Answer::Accepted);
    assert_eq!(connection.run(put("a", ballot(7, 6), "higher proposer")).await, Answer::Accepted);
    let written = Accept {
        vid: ballot(7, 5),
        recent: vec![ballot(6, 1), ballot(5, 5)],
        ..accept(lock("a"), ballot(8, 1), "a write-back")
    };
    assert_eq!(connection.run(Operation::Accept(Arc::new(written))).await, Answer::Accepted);
    let record = connection.record("a").await.expect("stored");
    assert_eq!((record.promise, record.ballot, record.vid), (ballot(8, 1), ballot(8, 1), ballot(7, 5)));
    assert_eq!(record.recent, [ballot(6, 1), ballot(5, 5)]);
    assert_eq!((record.value.as_ref(), record.copied), (&b"a write-back"[..], false));
}

async fn the_same_accept_again_changes_nothing(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.run(put("a", ballot(1, 1), "x")).await;
    connection.run(prepare("a", ballot(3, 2))).await;
    let before = subject.dump();
    assert_eq!(connection.run(put("a", ballot(1, 1), "x")).await, Answer::Accepted);
    assert_eq!(subject.dump(), before);
}

async fn next_is_promised_with_the_accept(subject: &dyn Subject) {
    let connection = member(subject).await;
    let with_next = |token, next: Ballot| {
        let accept = Accept { next: next.token, ..accept(lock("a"), ballot(token, 1), "x") };
        Operation::Accept(Arc::new(accept))
    };
    assert_eq!(connection.run(with_next(1, ballot(4, 1))).await, Answer::Accepted);
    assert_eq!(connection.record("a").await.expect("stored").promise, ballot(4, 1));
    assert_eq!(connection.run(prepare("a", ballot(4, 2))).await, conflict(ballot(4, 1)));
    assert_eq!(connection.run(put("a", ballot(3, 9), "y")).await, conflict(ballot(4, 1)));
    // One that is not above the ballot promises nothing more.
    assert_eq!(connection.run(with_next(4, ballot(2, 1))).await, Answer::Accepted);
    assert_eq!(connection.record("a").await.expect("stored").promise, ballot(4, 1));
}

async fn stamps_keep_their_time(subject: &dyn Subject) {
    let connection = member(subject).await;
    let (first, second) = (stamp(ballot(1, 1)), stamp(ballot(2, 1)));
    let with = |token, stamps: &[Stamp]| {
        let accept = Accept { stamps: stamps.to_vec(), ..accept(lock("a"), ballot(token, 1), "x") };
        Operation::Accept(Arc::new(accept))
    };
    let ages = async || connection.record("a").await.expect("stored").ages;
    let seconds = Duration::from_secs;
    connection.run(with(1, &[first])).await;
    subject.set_time(START + 5);
    connection.run(with(2, &[second, first])).await;
    assert_eq!(ages().await, [(second, seconds(0)), (first, seconds(5))]);
    subject.set_time(START + 6);
    assert_eq!(ages().await, [(second, seconds(1)), (first, seconds(6))]);
    connection.run(with(3, &[second])).await;
    connection.run(with(4, &[second, first])).await;
    assert_eq!(ages().await, [(second, seconds(1)), (first, seconds(0))], "dropped and set anew");
    subject.set_time(START);
    assert_eq!(ages().await, [(second, seconds(0)), (first, seconds(0))], "a clock that went back");
}

/// A record's stamps are one string. The name of another may stand in it across the end of one and the time after it.
async fn a_stamp_is_not_found_across_others(subject: &dyn Subject) {
    let connection = member(subject).await;
    let held = stamp(ballot(1, 7));
    let time = format!("{}000000", START);
    let (proposer, ordinal) = time.as_bytes().split_at(7);
    let proposer = [&[held.ordinal], proposer].concat().try_into().expect("eight bytes");
    let token = Token::new(held.ballot.proposer.0).expect("a small number");
    let ballot_across = Ballot { token, proposer: ProposerId(u64::from_be_bytes(proposer)) };
    let across = Stamp { ballot: ballot_across, ordinal: ordinal[0] };
    for (token, seconds, stamps) in [(1, 0, vec![held]), (2, 5, vec![across, held])] {
        subject.set_time(START + seconds);
        let accept = Accept { stamps, ..accept(lock("a"), ballot(token, 1), "x") };
        assert_eq!(connection.run(Operation::Accept(Arc::new(accept))).await, Answer::Accepted);
    }
    let ages = connection.record("a").await.expect("stored").ages;
    assert_eq!(ages, [(across, Duration::ZERO), (held, Duration::from_secs(5))]);
}

async fn a_soft_prepare_shows_what_is_guarded(subject: &dyn Subject) {
    let connection = member(subject).await;
    let guarded = Accept {
        stamps: vec![stamp(ballot(1, 1))],
        guard: Duration::from_secs(10),
        ..accept(lock("a"), ballot(1, 1), "held")
    };
    connection.run(Operation::Accept(Arc::new(guarded))).await;
    let held = |answer: &Answer| matches!(answer, Answer::Held { record } if record.promise == ballot(1, 1));
    // Exactly its length is not aged: aged means longer.
    for later in [0, 5, 10] {
        subject.set_time(START + later);
        assert!(held(&connection.run(soft("a", ballot(2, 2))).await), "after {later} s");
    }
    assert!(held(&connection.run(soft("a", ballot(0, 2))).await), "also for a ballot that is too low");
    subject.set_time(START + 11);
    let answer = connection.run(soft("a", ballot(2, 2))).await;
    assert!(matches!(answer, Answer::Promised { .. }), "aged: {answer:?}");
    subject.set_time(START);
    let answer = connection.run(prepare("a", ballot(3, 2))).await;
    assert!(matches!(answer, Answer::Promised { .. }), "a hard one: {answer:?}");
    connection.run(put("b", ballot(1, 1), "unguarded")).await;
    let answer = connection.run(soft("b", ballot(2, 2))).await;
    assert!(matches!(answer, Answer::Promised { .. }), "unguarded: {answer:?}");
    assert!(is_bare(&connection.run(soft("c", ballot(2, 2))).await, ballot(2, 2)), "absent");
}

async fn ballots_of_the_day_after_tomorrow_are_refused(subject: &dyn Subject) {
    let connection = member(subject).await;
    let in_hours = |hours: u64| ballot(hours * 3_600_000 * 4096, 1);
    let before = subject.dump();
    assert_eq!(connection.run(prepare("a", in_hours(25))).await, Answer::TooFarAhead);
    assert_eq!(connection.run(put("a", in_hours(25), "x")).await, Answer::TooFarAhead);
    let next = Accept { next: in_hours(25).token, ..accept(lock("a"), ballot(1, 1), "x") };
    assert_eq!(connection.run(Operation::Accept(Arc::new(next))).await, Answer::TooFarAhead);
    assert_eq!(subject.dump(), before);
    assert!(is_bare(&connection.run(prepare("a", in_hours(24))).await, in_hours(24)));
}

async fn nothing_comes_back_from_under_the_floor(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.run(put("old", ballot(1, 1), "x")).await;
    let floor = ballot(5, 5);
    subject.put(FLOOR_KEY.as_bytes(), floor_entry(floor));
    for refused in [ballot(4, 9), ballot(5, 4), ballot(5, 5), ballot(5, 9)] {
        assert_eq!(connection.run(prepare("a", refused)).await, conflict(floor), "{refused}");
        assert_eq!(connection.run(put("a", refused, "x")).await, conflict(floor), "{refused}");
    }
    assert_eq!(connection.record("a").await, None);
    let Answer::Promised { floor: told, .. } = connection.run(prepare("a", ballot(6, 1))).await else {
        panic!("above the floor")
    };
    assert_eq!(told, floor);
    assert_eq!(connection.run(put("b", ballot(6, 1), "x")).await, Answer::Accepted);
    assert_eq!(connection.run(put("old", ballot(2, 1), "y")).await, Answer::Accepted, "what is there");
    let members = Operation::Prepare { key: RegisterKey::members(), ballot: ballot(3, 1), soft: false };
    let answer = connection.run(members).await;
    assert!(matches!(answer, Answer::Promised { .. }), "the list is under no floor: {answer:?}");
}

async fn what_was_copied_is_overwritten_by_its_own_ballot(subject: &dyn Subject) {
    let connection = member(subject).await;
    connection.run(put("a", ballot(1, 1), "x")).await;
    let key = [RECORD_PREFIX.as_bytes(), b"l:a"].concat();
    let Some(Entry::Bytes(record)) = subject.dump().get(&key).cloned() else { panic!("a record") };
    // `copied` is the byte after two ballots, of two times nine bytes each.
    let mut copied = record.to_vec();
    let at = 36;
    assert_eq!((&copied[..at / 2], copied[at]), (&record[at / 2..at], 0));
    copied[at] = 1;
    subject.put(&key, Entry::Bytes(copied.into()));
    assert!(connection.record("a").await.expect("there").copied);
    assert_eq!(connection.run(put("a", ballot(1, 1), "x")).await, Answer::Accepted);
    assert!(!connection.record("a").await.expect("there").copied);
}

async fn lists_are_in_byte_order_and_bounded(subject: &dyn Subject) {
    let connection = member(subject).await;
    let listed = |name: &str, token, listed| {
        let accept = Accept { listed, ..accept(lock(name), ballot(token, 1), "x") };
        Operation::Accept(Arc::new(accept))
    };
    for name in ["b", "a/2", "a", "a/1", "ü", "Z"] {
        assert_eq!(connection.run(listed(name, 1, true)).await, Answer::Accepted);
    }
    connection.run(listed("hidden", 1, false)).await;
    connection.run(listed("b", 2, true)).await;
    let list = async |prefix: &str, after: &str, limit| {
        let list = Operation::List { index: "l".into(), prefix: prefix.into(), after: after.into(), limit };
        match connection.run(list).await {
            Answer::Names(names) => names,
            other => panic!("list answered {other:?}"),
        }
    };
    assert_eq!(list("", "", 100).await, ["Z", "a", "a/1", "a/2", "b", "ü"]);
    assert_eq!(list("a/", "", 100).await, ["a/1", "a/2"]);
    assert_eq!(list("", "a", 2).await, ["a/1", "a/2"]);
    assert_eq!(list("a", "a/1", 100).await, ["a/2"]);
    assert_eq!(list("none", "", 100).await, [""; 0]);
    connection.run(listed("a/1", 2, false)).await;
    assert_eq!(list("a/", "", 100).await, ["a/2"]);
    for name in ["b", "a/2", "a", "ü", "Z"] {
        connection.run(listed(name, 3, false)).await;
    }
    assert!(subject.dump().get(b"majorityd:i:l").is_none(), "an empty index is no key");
}

async fn hints_reach_those_who_listen(subject: &dyn Subject) {
    let mut first = member(subject).await;
    let mut second = subject.connect(ProposerId(2)).await;
    let wake = |token, name: &str, daemon| {
        let accept = Accept { wake: vec![ProposerId(daemon)], ..accept(lock(name), ballot(token, 1), "x") };
        Operation::Accept(Arc::new(accept))
    };
    let announce = |token| {
        let accept = Accept { announce: true, ..accept(lock("loud"), ballot(token, 1), "x") };
        Operation::Accept(Arc::new(accept))
    };
    first.run(announce(1)).await;
    first.run(wake(1, "a", 2)).await;
    assert_eq!(second.hint().await, Hint::Wake("l:a".into()), "and nobody watched");

    second.node.watch_changes(true);
    let mut token = 1;
    let heard = loop {
        token += 1;
        first.run(announce(token)).await;
        subject.pause().await;
        if let Ok(hint) = second.hints.try_recv()
            && hint != Hint::State
        {
            break hint;
        }
        assert!(token < 3_000, "changes are never heard");
    };
    assert_eq!(heard, Hint::Changed("l:loud".into()));

    second.node.watch_changes(false);
    loop {
        token += 1;
        first.run(announce(token)).await;
        first.run(wake(token, "end", 2)).await;
        // Hints arrive in order, so the end comes after what was announced before it.
        match second.hint().await {
            Hint::Wake(key) => {
                assert_eq!(key, "l:end");
                break;
            }
            Hint::Changed(_) => assert_eq!(second.hint().await, Hint::Wake("l:end".into())),
            Hint::State => {}
        }
        subject.pause().await;
        assert!(token < 6_000, "changes are heard for ever");
    }
    first.run(wake(1, "b", 1)).await;
    assert_eq!(first.hint().await, Hint::Wake("l:b".into()), "and none of the other's");
}

async fn one_failure_does_not_stop_the_others(subject: &dyn Subject) {
    let connection = member(subject).await;
    let set = Entry::Sorted(["x"].into_iter().collect());
    subject.put(b"majorityd:r:l:bad", set);
    let operations = [put("a", ballot(1, 1), "x"), read("bad"), prepare("bad", ballot(1, 1)), read("a")];
    let (_, _, answers) = connection.done(founding(), &operations).await;
    assert_eq!(answers[0], Some(Answer::Accepted));
    for answer in &answers[1..3] {
        let Some(Answer::Failed { message }) = answer else { panic!("{answer:?}") };
        assert_eq!(message, "WRONGTYPE Operation against a key holding the wrong kind of value");
    }
    assert!(matches!(answers[3], Some(Answer::Record(Some(_)))));
    // A record that nobody can read.
    subject.put(b"majorityd:r:l:torn", Entry::Bytes("\u{7f}\u{1}".into()));
    let answer = connection.run(prepare("torn", ballot(1, 1))).await;
    assert!(matches!(answer, Answer::Failed { .. }), "{answer:?}");
}

async fn a_flushed_node_does_nothing_and_has_no_memory_afterwards(subject: &dyn Subject) {
    let connection = member(subject).await;
    subject.wipe();
    let reply = connection.send(founding(), &[put("a", ballot(1, 1), "x")]).await;
    assert_eq!(reply, Ok(BatchReply::NoRecord));
    assert!(subject.dump().is_empty());
    let again = subject.connect(ProposerId(1)).await;
    let NodeState::Ready(welcome) = again.node.state() else { panic!("ready") };
    assert_eq!(welcome.memory, None);
}

/// The node record, but of another index.
fn foreign_record(subject: &dyn Subject) -> Entry {
    let Some(Entry::Bytes(node)) = subject.dump().get(NODE_KEY.as_bytes()).cloned() else {
        panic!("a node record")
    };
    // Format, the name with its length, N, and then the index.
    let at = 1 + 1 + 1 + CLUSTER.len() + 1;
    let mut foreign = node.to_vec();
    assert_eq!(foreign[at], INDEX.0);
    foreign[at] = 2;
    Entry::Bytes(foreign.into())
}

async fn a_foreign_node_does_nothing(subject: &dyn Subject) {
    let connection = member(subject).await;
    subject.put(NODE_KEY.as_bytes(), foreign_record(subject));
    let before = subject.dump();
    let reply = connection.send(founding(), &[put("a", ballot(1, 1), "x")]).await;
    assert_eq!(reply, Ok(BatchReply::Foreign));
    assert_eq!(subject.dump(), before);
}

async fn values_and_names_of_any_bytes_survive(subject: &dyn Subject) {
    let connection = member(subject).await;
    for length in [0, 1, 31, 32, 255, 256, 65_535, 65_536, 200_000] {
        let value: Bytes = (0..length).map(|i: u32| (i % 251) as u8 ^ 0xff).collect();
        let token = u64::from(length) + 1;
        let accept = Accept { value: value.clone(), ..accept(lock("a"), ballot(token, 1), "") };
        assert_eq!(connection.run(Operation::Accept(Arc::new(accept))).await, Answer::Accepted);
        assert_eq!(connection.record("a").await.expect("stored").value, value, "{length} bytes");
    }
    let name = "ü".repeat(256);
    connection.run(put(&name, ballot(1, u64::MAX), "long")).await;
    let record = connection.record(&name).await.expect("stored");
    assert_eq!((record.value.as_ref(), record.ballot), (&b"long"[..], ballot(1, u64::MAX)));
}

async fn an_unreadable_batch_is_lost(subject: &dyn Subject) {
    let connection = member(subject).await;
    let before = subject.dump();
    // The second of two operations, which need the same, begins with a byte that nothing in MessagePack begins with.
    let two = ["a", "b"].map(|name| put(name, ballot(1, 1), "x").encode());
    let mut two = wire::encode(founding(), two.iter()).to_vec();
    let second =
        (two.len() / 2..two.len()).find(|at| two[..*at].ends_with(&two[*at..])).expect("the same twice");
    two[second] = 0xc1;
    for payload in [&[0x92][..], &[0xc1], &[0x01], &two] {
        let result = connection.node.call(Bytes::copy_from_slice(payload)).await;
        assert!(result.is_err(), "{payload:?}: {result:?}");
        while !matches!(connection.node.state(), NodeState::Ready(_)) {
            subject.pause().await;
        }
    }
    assert_eq!(subject.dump(), before);
}

// ---------------------------------------------------------------------------------------------------------------------
// For the comparison of two nodes

/// Whether two nodes said the same. The words of an error inside the script are the implementation's own, and so is the
/// order of records in a page.
pub fn same_answers(one: &BatchReply, other: &BatchReply) -> bool {
    let (BatchReply::Done { memory, list, now_us, answers, writes }, BatchReply::Done { .. }) = (one, other)
    else {
        return one == other;
    };
    let in_order = |page: &Page| {
        let mut page = page.clone();
        page.rows.sort();
        page
    };
    let alike = |(one, other): (&Option<Answer>, &Option<Answer>)| match (one, other) {
        (Some(Answer::Failed { .. }), Some(Answer::Failed { .. })) => true,
        (Some(Answer::Page(one)), Some(Answer::Page(other))) => in_order(one) == in_order(other),
        (one, other) => one == other,
    };
    let BatchReply::Done { memory: memory2, list: list2, now_us: now2, answers: answers2, writes: writes2 } =
        other
    else {
        return false;
    };
    (memory, list, now_us, writes) == (memory2, list2, now2, writes2)
        && answers.len() == answers2.len()
        && answers.iter().zip(answers2).all(alike)
}

/// A copy of the data for comparison: without the node record's run_id, which no two servers share.
pub fn normal(keyspace: &Keyspace) -> Keyspace {
    without_run(keyspace)
}

fn without_run(keyspace: &Keyspace) -> Keyspace {
    let mut keyspace = keyspace.clone();
    if let Some(Entry::Bytes(node)) = keyspace.get(NODE_KEY.as_bytes()) {
        let mut node = node.to_vec();
        // Format, name, N, index, then a string of 40 bytes behind a head of two.
        let at = 1 + 1 + 1 + CLUSTER.len() + 1 + 1 + 2;
        node[at..at + 40].fill(b'0');
        keyspace.insert(NODE_KEY.as_bytes(), Entry::Bytes(node.into()));
    }
    keyspace
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::mutant::{Mutant, switch_on};

    fn run(case: Case) {
        futures::executor::block_on(case(&EmbeddedSubject::default()));
    }

    fn fails(case: Case) -> bool {
        catch_unwind(AssertUnwindSafe(|| run(case))).is_err()
    }

    #[test]
    fn embedded_nodes_conform() {
        let failed: Vec<_> = CASES.iter().filter(|(_, case)| fails(*case)).map(|(name, _)| name).collect();
        assert!(failed.is_empty(), "these fail: {failed:?}");
    }

    #[test]
    fn a_node_that_lacks_a_mechanism_does_not_conform() {
        // Each mutant with a case that is about the mechanism; others may fail too.
        let caught = [
            (Mutant::KeepsOldData, "a_join_removes_all_old_data_in_slices"),
            (Mutant::BegunTwice, "a_join_begins_once_for_each_id"),
            (Mutant::BegunUnderAnyList, "a_join_begins_under_its_own_list_only"),
            (Mutant::MergeAfterEnd, "merges_are_of_one_memory_and_end_with_it"),
            (Mutant::MergeForgetsFloor, "the_floor_is_the_highest_merged"),
            (Mutant::MergeForgetsPromise, "the_highest_ballot_and_the_highest_promise_win_a_merge"),
            (Mutant::MergeUnmarked, "the_highest_ballot_and_the_highest_promise_win_a_merge"),
            (Mutant::MergeKeepsTimes, "stamps_start_anew_with_a_merge"),
            (Mutant::ServesWhileJoining, "who_joins_serves_the_list_alone"),
            (Mutant::ForgetsWithoutFloor, "what_is_forgotten_raises_the_floor"),
            (Mutant::ForgetsChanged, "only_what_is_as_it_was_read_is_forgotten"),
        ];
        for (mutant, name) in caught {
            let of_name = CASES.iter().find(|(path, _)| path.ends_with(name));
            let (_, case) = of_name.unwrap_or_else(|| panic!("there is no case {name}"));
            run(*case);
            let _out = switch_on(mutant);
            assert!(fails(*case), "{name} does not catch {mutant}");
        }
    }
}
