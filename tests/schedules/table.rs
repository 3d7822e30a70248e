//! A table with real nodes on it: embedded servers that run the real Lua, and real protocol machines that are moved by
//! hand. Nothing happens by itself. A schedule says which message reaches which node, and which answer comes back.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use majorityd::driver::{Action, Context, Machine, Word};
use majorityd::ids::{LeaseId, MemoryId, NodeIndex, Owner, ProposerId};
use majorityd::lock::change::{Acquire, LockAnswer, LockChange, LockKind, Waiting};
use majorityd::lock::value::LockValue;
use majorityd::members::change::Answered;
use majorityd::members::{Entry as Member, Loss, MemberList, State, View};
use majorityd::mutant::{self, Mutant};
use majorityd::node::embedded::{After, EmbeddedNode, EmbeddedServer, Keyspace};
use majorityd::node::operation::{Accept, Answer, Forgotten, Operation, RegisterKey};
use majorityd::node::wire::{self, BatchReply};
use majorityd::node::{Identity, Node};
use majorityd::quorum::ClusterSize;
use majorityd::register::proposer::{Claim, Decided, Entry, Fate, Proposer, Warm};
use majorityd::register::{Attempt, Kind, Publish, Verdict};
use majorityd::runtime::Moment;
use majorityd::token::{Ballot, Token};

/// What a schedule found: nothing, or the promise that was not kept.
pub type Found = Result<(), String>;

/// Says which promise is broken unless `kept`.
pub fn promise(kept: bool, broken: &str) -> Found {
    if kept { Ok(()) } else { Err(broken.to_owned()) }
}

/// The schedule is harmless, and breaks a promise when the mechanism is taken out.
pub fn holds_and_breaks_without(mutant: Mutant, schedule: impl Fn() -> Found) {
    each_is_enough(&[mutant], schedule);
}

/// Mechanisms that back each other up: with any one of them the schedule is harmless, without all it breaks a promise.
pub fn each_is_enough(mutants: &[Mutant], schedule: impl Fn() -> Found) {
    assert_eq!(schedule(), Ok(()), "with everything in place");
    for left in mutants {
        let others = mutants.iter().filter(|mutant| *mutant != left);
        let _out: Vec<_> = others.map(|mutant| mutant::switch_on(*mutant)).collect();
        assert_eq!(schedule(), Ok(()), "only the mechanism of {left} is left");
    }
    let _out: Vec<_> = mutants.iter().map(|mutant| mutant::switch_on(*mutant)).collect();
    let broken = schedule().expect_err("nothing of it is left, and yet no promise is broken");
    println!("{mutants:?}: {broken}");
}

const LOCK: &str = "lock";

pub fn ballot(token: u64, proposer: u64) -> Ballot {
    Ballot { token: Token::new(token).expect("a small number"), proposer: ProposerId(proposer) }
}

/// The ballot of the list that a table is laid with.
pub fn founding() -> Ballot {
    ballot(1, 9)
}

/// The list that a table is laid with: all are members, the memory of node i is i + 1.
pub fn first_list(nodes: usize) -> MemberList {
    let member = |id| Member { state: State::Member, memory: MemoryId(id) };
    MemberList {
        entries: (1..=nodes as u64).map(member).collect(),
        founding: false,
        ttl_max_ms: 60_000,
        recovery: None,
        loss: Loss::None,
        before: vec![],
    }
}

/// That list, to go by.
pub fn first_view(nodes: usize) -> View {
    View { vid: founding(), list: first_list(nodes), grants: true }
}

/// An accept of a list.
fn list_accept(at: Ballot, list: &MemberList) -> Accept {
    Accept {
        key: RegisterKey::members(),
        ballot: at,
        value: list.encode().into(),
        vid: at,
        recent: vec![Ballot::ZERO],
        stamps: list.recovery.into_iter().collect(),
        guard: Duration::ZERO,
        place: None,
        listed: false,
        next: Token::ZERO,
        announce: false,
        wake: Vec::new(),
    }
}

/// The table: servers with clocks of their own, and one time for all.
pub struct Table {
    pub size: ClusterSize,
    pub servers: Vec<Arc<EmbeddedServer>>,
    /// Milliseconds since then.
    pub clock_ms: Arc<AtomicU64>,
    skews_ms: Vec<Arc<AtomicI64>>,
    /// Reaches the servers as nobody's daemon.
    hands: Hand,
    leases: Cell<u8>,
}

/// A daemon's ways to the servers, and its tokens, which count up from where it is told.
pub struct Hand {
    pub id: ProposerId,
    nodes: Vec<Arc<EmbeddedNode>>,
    token: Cell<u64>,
    /// The list that it goes by.
    view: RefCell<View>,
}

impl Hand {
    fn new(servers: &[Arc<EmbeddedServer>], id: u64, token: u64) -> Self {
        let id = ProposerId(id);
        let identity = Identity { cluster: "table".into(), nodes: servers.len(), daemon: id };
        let connect = |(index, server): (u8, &Arc<EmbeddedServer>)| {
            EmbeddedNode::new(server.clone(), identity.clone(), NodeIndex(index), Arc::new(|_, _| {}))
        };
        let view = RefCell::new(first_view(servers.len()));
        Self { id, nodes: (0..).zip(servers).map(connect).collect(), token: Cell::new(token), view }
    }

    /// From now on it goes by this list.
    pub fn go_by(&self, view: &View) {
        *self.view.borrow_mut() = view.clone();
    }

    /// Its next ballot has this token.
    pub fn tokens_from(&self, token: u64) {
        self.token.set(token);
    }
}

impl Table {
    /// When its time starts, in milliseconds of Unix time.
    pub const START_UNIX_MS: u64 = 1_790_000_000_000;

    /// A table with a cluster of so many nodes.
    pub fn laid(nodes: usize) -> Self {
        let table = Self::bare(nodes);
        let list = first_list(nodes);
        for (node, member) in (0..).zip(&list.entries) {
            table.put_list(node, founding(), &list);
            table.run(node, &Operation::Found { founding: founding(), memory: member.memory.0 });
        }
        table
    }

    /// A table with servers that nobody has used.
    pub fn bare(nodes: usize) -> Self {
        let clock_ms = Arc::new(AtomicU64::new(0));
        let skews_ms: Vec<Arc<AtomicI64>> = (0..nodes).map(|_| Arc::default()).collect();
        let server = |(name, skew): (u64, &Arc<AtomicI64>)| {
            let (clock, skew) = (clock_ms.clone(), skew.clone());
            let now = move || Table::START_UNIX_MS + clock.load(Ordering::Relaxed);
            let skewed = move || now().saturating_add_signed(skew.load(Ordering::Relaxed)) * 1000;
            EmbeddedServer::new(name, Arc::new(skewed))
        };
        let servers: Vec<_> = (0..).zip(&skews_ms).map(server).collect();
        let hands = Hand::new(&servers, 99, 1);
        let size = ClusterSize::new(nodes).expect("an odd number");
        Self { size, servers, clock_ms, skews_ms, hands, leases: Cell::new(0) }
    }

    /// A daemon whose tokens count up from `token`.
    pub fn daemon(&self, id: u64, token: u64) -> Hand {
        Hand::new(&self.servers, id, token)
    }

    pub fn now(&self) -> Moment {
        Moment::from_start(Duration::from_millis(1_000 + self.clock_ms.load(Ordering::Relaxed)))
    }

    pub fn unix_ms(&self) -> u64 {
        Self::START_UNIX_MS + self.clock_ms.load(Ordering::Relaxed)
    }

    /// Time passes.
    pub fn pass(&self, seconds: u64) {
        self.clock_ms.fetch_add(seconds * 1000, Ordering::Relaxed);
    }

    /// The clock of one server jumps.
    pub fn jump(&self, node: u8, seconds: i64) {
        self.skews_ms[usize::from(node)].fetch_add(seconds * 1000, Ordering::Relaxed);
    }

    /// A server restarts, and everybody connects again.
    pub fn restart(&self, node: u8, after: After, daemons: &[&Hand]) {
        let node = usize::from(node);
        self.servers[node].restart(after);
        daemons.iter().chain([&&self.hands]).for_each(|daemon| daemon.nodes[node].connect());
    }

    /// All that a server holds, to be put back after a restart.
    pub fn snapshot(&self, node: u8) -> Keyspace {
        self.servers[usize::from(node)].keyspace()
    }

    /// Brings one operation to one node; the memory and the answer, which is `None` where the gate is closed.
    pub fn send(
        &self,
        from: &Hand,
        list: Ballot,
        node: u8,
        operation: &Operation,
    ) -> Option<(Option<MemoryId>, Option<Answer>)> {
        let payload = wire::encode(list, [&operation.encode()].into_iter());
        let reply = from.nodes[usize::from(node)].call(payload).now_or_never().expect("done when polled");
        match wire::decode(&reply.ok()?).expect("the script's own words") {
            BatchReply::Done { memory, mut answers, .. } => Some((memory, answers.pop().expect("one"))),
            BatchReply::NoRecord | BatchReply::Foreign => None,
        }
    }

    /// An operation of nobody's daemon.
    pub fn run(&self, node: u8, operation: &Operation) -> Option<Answer> {
        self.run_by(founding(), node, operation)
    }

    /// The same by another list.
    pub fn run_by(&self, list: Ballot, node: u8, operation: &Operation) -> Option<Answer> {
        self.send(&self.hands, list, node, operation)?.1
    }

    /// Writes a list on one node, in both steps.
    pub fn put_list(&self, node: u8, at: Ballot, list: &MemberList) {
        self.run(node, &Operation::Prepare { key: RegisterKey::members(), ballot: at, soft: false });
        self.run(node, &Operation::Accept(Arc::new(list_accept(at, list))));
    }

    /// What these nodes answer about the list.
    pub fn lists(&self, nodes: &[u8]) -> Vec<Answered> {
        let read = Operation::Read { key: RegisterKey::members() };
        let ask = |node: &u8| match self.send(&self.hands, Ballot::ZERO, *node, &read)? {
            (memory, Some(Answer::Record(record))) => {
                Some(Answered { node: NodeIndex(*node), memory, record })
            }
            _ => None,
        };
        nodes.iter().filter_map(ask).collect()
    }

    /// What all nodes hold under a key, by a list, as somebody who wants to forget it reads it.
    pub fn seen(&self, list: Ballot, key: &str) -> Forgotten {
        let key = RegisterKey::from_bytes(key.as_bytes());
        let ballots = Operation::Ballots { keys: vec![key.clone()] };
        let held = |node| match self.send(&self.hands, list, node, &ballots) {
            Some((_, Some(Answer::Ballots(held)))) => held[0].expect("a record"),
            other => panic!("ballots were expected: {other:?}"),
        };
        let held: Vec<_> = self.all().into_iter().map(held).collect();
        assert!(held.iter().all(|one| one.ballot == held[0].ballot && !one.listed), "{held:?}");
        let promise = held.iter().map(|one| one.promise.token).max().expect("there are nodes");
        Forgotten { key, ballot: held[0].ballot, promise }
    }

    /// A node forgets what was seen, if it is still that; whether it did.
    pub fn forget(&self, list: Ballot, node: u8, seen: &Forgotten) -> bool {
        let forget = Operation::Forget { records: vec![seen.clone()] };
        let answer = self.send(&self.hands, list, node, &forget).and_then(|(_, answer)| answer);
        answer == Some(Answer::Forgotten(1))
    }

    /// The record of a key is seen on all nodes, and forgotten by all.
    pub fn forget_everywhere(&self, key: &str) {
        let seen = self.seen(founding(), key);
        assert!(self.all().into_iter().all(|node| self.forget(founding(), node, &seen)));
    }

    // ---- rounds

    /// A round of changes, that may be warm.
    pub fn start<'a, K: Kind>(
        &'a self,
        daemon: &'a Hand,
        changes: Vec<K::Change>,
        warm: Option<Warm<K::Value>>,
    ) -> Round<'a, K> {
        let entries: Vec<Entry<K>> =
            changes.into_iter().map(|change| Entry { change, claim: Arc::default() }).collect();
        let claims = entries.iter().map(|entry| entry.claim.clone()).collect();
        let key = RegisterKey::new(K::LETTER, LOCK);
        let machine = Proposer::new(key, self.size, daemon.id, entries, warm);
        let view = daemon.view.borrow().clone();
        let mut round = Round {
            table: self,
            daemon,
            machine,
            claims,
            view,
            sent: None,
            number: 0,
            rests: false,
            end: None,
        };
        let first = round.with(|machine, context| machine.start(context));
        round.follow(first);
        round
    }

    /// A round of changes of the lock.
    pub fn round<'a>(&'a self, daemon: &'a Hand, changes: &[LockChange]) -> Round<'a, LockKind> {
        self.start(daemon, changes.to_vec(), None)
    }

    /// A round that may be warm.
    pub fn warm_round<'a>(
        &'a self,
        daemon: &'a Hand,
        change: LockChange,
        warm: Option<Warm<LockValue>>,
    ) -> Round<'a, LockKind> {
        self.start(daemon, vec![change], warm)
    }

    /// A round of changes of a register of numbers.
    pub fn numbers<'a>(&'a self, daemon: &'a Hand, changes: &[Append]) -> Round<'a, Numbers> {
        self.start(daemon, changes.to_vec(), None)
    }

    /// Who holds the lock, read by a daemon from these nodes.
    pub fn holder(&self, daemon: &Hand, nodes: &[u8]) -> Option<Owner> {
        let mut reader = self.start::<LockKind>(daemon, Vec::new(), None).run(nodes);
        let value = reader.end.take().expect("a read comes to an end").seen.expect("q were asked").value;
        value.holder.map(|holder| holder.owner)
    }

    /// An attempt to take the lock for ten seconds.
    pub fn acquire(&self, owner: &str) -> Acquire {
        self.leases.set(self.leases.get() + 1);
        Acquire {
            lease_id: LeaseId::from_bytes([self.leases.get(); 16]),
            owner: Owner::parse(owner).expect("a good owner"),
            ttl: Duration::from_secs(10),
            now_unix_ms: self.unix_ms(),
            attributes: Vec::new(),
            grace: GRACE,
            waiting: None,
        }
    }

    /// The same, standing in line if need be.
    pub fn wait_for(&self, daemon: &Hand, owner: &str, ticket: u64) -> Acquire {
        let waiting = Waiting {
            daemon: daemon.id,
            ticket: Token::new(ticket).expect("a small number"),
            first: true,
            next: None,
            count: 1,
            place_ttl: Duration::from_secs(15),
            renew: false,
        };
        Acquire { waiting: Some(waiting), ..self.acquire(owner) }
    }

    /// Takes the lock, with everybody listening.
    pub fn take<'a>(&'a self, daemon: &'a Hand, acquire: &Acquire) -> Round<'a, LockKind> {
        self.round(daemon, &[LockChange::Acquire(acquire.clone())]).run(&self.all())
    }

    pub fn all(&self) -> Vec<u8> {
        self.size.indexes().map(|node| node.0).collect()
    }
}

pub const GRACE: Duration = Duration::from_secs(2);

pub fn release(lease_id: LeaseId) -> LockChange {
    LockChange::Release { lease_id, grace: GRACE }
}

pub fn abandon(lease_id: LeaseId) -> LockChange {
    LockChange::Abandon { lease_id, grace: GRACE }
}

pub fn extend(lease_id: LeaseId) -> LockChange {
    LockChange::Extend { lease_id, ttl: None }
}

/// One round of a daemon, moved by hand.
pub struct Round<'a, K: Kind> {
    table: &'a Table,
    daemon: &'a Hand,
    machine: Proposer<K>,
    claims: Vec<Arc<Claim>>,
    /// The list that the message goes by.
    view: View,
    sent: Option<Operation>,
    /// Counts what was sent: words on what was sent before are not for the machine.
    number: u32,
    rests: bool,
    end: Option<Decided<K>>,
}

/// Answers on their way back, of what was sent by the number.
pub struct Words(u32, Vec<(u8, Word)>);

impl<K: Kind> Round<'_, K> {
    fn with<T>(&mut self, call: impl FnOnce(&mut Proposer<K>, &Context<'_>) -> T) -> T {
        let token = &self.daemon.token;
        let tokens = |above: Token| {
            let next = token.get().max(above.get() + 1);
            token.set(next + 1);
            Token::new(next).expect("a small number")
        };
        call(
            &mut self.machine,
            &Context { now: self.table.now(), tokens: &tokens, jitter: &|_| Duration::ZERO },
        )
    }

    fn follow(&mut self, action: Action<Decided<K>>) {
        match action {
            Action::Send(operation) => {
                self.sent = Some(operation);
                self.view = self.daemon.view.borrow().clone();
                self.number += 1;
            }
            Action::Look(_) => unreachable!("a round of one register asks for no others"),
            Action::Wait(_) => {}
            Action::Rest(_) => {
                self.rests = true;
                self.number += 1;
            }
            Action::Done(end) => self.end = Some(end),
        }
    }

    /// What the machine sent last, to be brought to a node at another time.
    pub fn message(&self) -> Operation {
        self.sent.clone().expect("something was sent")
    }

    /// The message reaches these nodes; the answers are still under way.
    pub fn reach(&mut self, nodes: &[u8]) -> Words {
        let message = self.message();
        let View { vid, list, .. } = &self.view;
        let is_member = |node| list.entry(node).is_some_and(|entry| entry.state == State::Member);
        let word = |node: &u8| match self.table.send(self.daemon, *vid, *node, &message) {
            None | Some((_, None | Some(Answer::NotServing))) => Word::Refused,
            Some((memory, Some(answer))) if list.counts(NodeIndex(*node), memory) => Word::Answer(answer),
            Some(_) => Word::Lost,
        };
        let word = |node: &u8| if is_member(NodeIndex(*node)) { word(node) } else { Word::Refused };
        Words(self.number, nodes.iter().map(|node| (*node, word(node))).collect())
    }

    /// Answers come back.
    pub fn hear(&mut self, words: Words) {
        for (node, word) in words.1 {
            if words.0 == self.number && self.end.is_none() {
                let action = self.with(|machine, context| machine.on_word(NodeIndex(node), word, context));
                self.follow(action);
            }
        }
    }

    /// The message reaches these nodes, and their answers come back.
    pub fn to(&mut self, nodes: &[u8]) {
        let words = self.reach(nodes);
        self.hear(words);
    }

    /// The daemon goes by another list now: the same message sets out again, and words start anew.
    pub fn resend(&mut self) {
        self.view = self.daemon.view.borrow().clone();
        self.machine.on_resend();
        self.number += 1;
    }

    /// From these nodes nothing is heard any more.
    pub fn lose(&mut self, nodes: &[u8]) {
        self.hear(Words(self.number, nodes.iter().map(|node| (*node, Word::Lost)).collect()));
    }

    /// The machine's pause is over.
    pub fn wake(&mut self) {
        self.rests = false;
        let action = self.with(|machine, context| machine.on_wake(context));
        self.follow(action);
    }

    /// The deadline has passed.
    pub fn give_up(&mut self) {
        self.end = Some(self.machine.give_up());
    }

    /// To the end, as far as it gets in a few steps with these nodes alone.
    pub fn run(mut self, nodes: &[u8]) -> Self {
        let silent: Vec<u8> = self.table.all().into_iter().filter(|node| !nodes.contains(node)).collect();
        for _ in 0..8 {
            if self.end.is_some() {
                break;
            }
            if self.rests {
                self.wake();
            }
            let before = self.number;
            self.to(nodes);
            self.lose(if before == self.number { &silent } else { &[] });
            if before == self.number && self.end.is_none() {
                self.wake();
            }
        }
        self
    }

    /// The claim of the only change.
    pub fn claim(&self) -> &Claim {
        &self.claims[0]
    }

    /// What became of the changes; nothing before the end.
    pub fn fates(&self) -> &[Fate<K::Answer>] {
        self.end.as_ref().map_or(&[], |end| &end.fates)
    }

    /// What the round leaves for the next.
    pub fn warm(&mut self) -> Option<Warm<K::Value>> {
        self.end.take().and_then(|end| end.warm)
    }

    /// The value that the round saw or made.
    pub fn value(&self) -> Option<&K::Value> {
        self.end.as_ref()?.seen.as_ref().map(|seen| &seen.value)
    }

    /// The first answer.
    pub fn answer(&self) -> Option<&K::Answer> {
        match self.fates().first()? {
            Fate::Done { answer, .. } => Some(answer),
            _ => None,
        }
    }
}

impl Round<'_, LockKind> {
    /// The tokens under which the changes got the lock.
    pub fn tokens(&self) -> Vec<u64> {
        let token = |fate: &Fate<LockAnswer>| match fate {
            Fate::Done { answer: LockAnswer::Held { token, .. }, .. } => Some(token.get()),
            _ => None,
        };
        self.fates().iter().filter_map(token).collect()
    }

    /// The first change got the lock.
    pub fn holds(&self) -> bool {
        matches!(self.answer(), Some(LockAnswer::Held { .. }))
    }

    /// The holder relies on the lease now.
    pub fn relies(&self) -> bool {
        match self.fates().first() {
            Some(Fate::Done { answer: LockAnswer::Held { ttl, .. }, first_sent: Some(sent), .. }) => {
                self.table.now() < *sent + *ttl
            }
            _ => false,
        }
    }
}

/// Two holders at one moment.
pub fn one_holder(one: &Round<'_, LockKind>, other: &Round<'_, LockKind>) -> Found {
    promise(!(one.relies() && other.relies()), "two hold the lock at one moment")
}

// ---- a register of numbers

/// A kind of register that shows what was applied twice.
#[derive(Debug)]
pub struct Numbers;

/// Its change: appends a number.
#[derive(Clone, Debug)]
pub struct Append(pub u8);

impl Kind for Numbers {
    const LETTER: char = 't';
    type Value = Vec<u8>;
    type Change = Append;
    type Answer = Vec<u8>;

    fn encode(value: &Vec<u8>) -> Bytes {
        value.clone().into()
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, String> {
        Ok(bytes.to_vec())
    }

    fn apply(Append(number): &Append, old: &Vec<u8>, _: &Attempt<'_>) -> Verdict<Vec<u8>, Vec<u8>> {
        let new = [old.as_slice(), &[*number]].concat();
        Verdict::Changed(new.clone(), new)
    }

    fn is_glance(_: &Append) -> bool {
        false
    }

    fn stamps(_: &Vec<u8>) -> Vec<(majorityd::node::operation::Stamp, Duration)> {
        Vec::new()
    }

    fn is_guarded(_: &Vec<u8>) -> bool {
        false
    }

    fn is_listed(_: &Vec<u8>) -> bool {
        false
    }

    fn publish(_: &Vec<u8>, _: &Vec<u8>) -> Publish {
        Publish::default()
    }
}
