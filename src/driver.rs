//! The one asynchronous loop: feeds a protocol [`Machine`], fans its operations out to the nodes, keeps the deadline.
//!
//! It alone knows about futures, cancellation and late answers. A late answer names its round and is counted there or
//! nowhere. All answers of a round are given under one member list: where a node goes by another one, the loop waits
//! for the membership task to read or repair the list, and sends the same operation, same ballot, to all again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use event_listener::EventListener;
use futures::FutureExt;
use futures::future::{self, BoxFuture, Either};

use crate::idle::Idle;
use crate::ids::{MemoryId, NodeIndex, ProposerId};
use crate::inbox::Inbox;
use crate::limits::NODES_MAX;
use crate::members::{Board, EventKind, View, Views};
use crate::meter::Meter;
use crate::mutant::{self, Mutant};
use crate::node::batch::{Batcher, Delivery, Reply, memory_of};
use crate::node::operation::{Answer, Operation, RegisterKey};
use crate::node::peek::Question;
use crate::node::wire::Encoded;
use crate::node::{Node, NodeState};
use crate::quorum::ClusterSize;
use crate::runtime::{Moment, Runtime};
use crate::token::{Ballot, Token, TokenClock};

/// How long a round waits for answers before it counts the silent nodes out. Nodes that are known to be gone answer at
/// once; this is for those that are not.
const ROUND_TIMEOUT: Duration = Duration::from_millis(1_500);

/// What one node's word in a round comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// An answer that counts.
    Answer(Answer),
    /// Certainly not done there.
    Refused,
    /// Nobody knows whether it was done there.
    Lost,
}

/// What a machine wants next.
#[derive(Debug)]
pub enum Action<O> {
    /// Send this to all members; words of earlier rounds no longer matter.
    Send(Operation),
    /// Ask all members what they hold of these registers; words of earlier rounds no longer matter. Each answers
    /// [`Answer::Looked`].
    Look(Arc<[RegisterKey]>),
    /// Wait for more words, at most so long if a length is given.
    Wait(Option<Duration>),
    /// Rest, then call [`Machine::on_wake`]. Words that come meanwhile no longer matter.
    Rest(Duration),
    /// Done.
    Done(O),
}

/// What a machine may use of the world: plain values and two sources of numbers.
pub struct Context<'a> {
    /// Now.
    pub now: Moment,
    /// Makes tokens above all seen, and above the one given.
    pub tokens: &'a dyn Fn(Token) -> Token,
    /// Draws from `[0, most]`.
    pub jitter: &'a dyn Fn(Duration) -> Duration,
}

/// A protocol machine: input, state, effects. No clock, no randomness, no network of its own.
pub trait Machine: Send {
    /// What it ends with.
    type Outcome: Send;

    /// The first action.
    fn start(&mut self, context: &Context<'_>) -> Action<Self::Outcome>;

    /// One node's word in the latest round, once per node.
    fn on_word(&mut self, node: NodeIndex, word: Word, context: &Context<'_>) -> Action<Self::Outcome>;

    /// The rest, or the wait with a length, is over.
    fn on_wake(&mut self, context: &Context<'_>) -> Action<Self::Outcome>;

    /// The latest operation is sent again, under another list: words start anew.
    fn on_resend(&mut self);

    /// The deadline has passed: what is certain?
    fn give_up(&mut self) -> Self::Outcome;
}

/// The nodes of one cluster, as one daemon reaches them.
pub struct Cluster {
    /// N and q.
    pub size: ClusterSize,
    /// The list to go by.
    pub views: Views,
    /// What has happened to the nodes, for people.
    pub board: Board,
    /// Registers that seem to say nothing.
    pub idle: Idle,
    /// What is counted of all that goes on here.
    pub meter: Meter,
    /// The runtime under it.
    pub runtime: Runtime,
    /// This daemon's tokens.
    pub tokens: TokenClock,
    /// This run of this daemon.
    pub proposer: ProposerId,
    batchers: Vec<Batcher>,
    /// How many want to hear of changes.
    watchers: AtomicUsize,
}

impl Cluster {
    /// Puts the nodes, in the order of their indexes, under one roof.
    pub fn new(size: ClusterSize, nodes: Vec<Arc<dyn Node>>, proposer: ProposerId, runtime: Runtime) -> Self {
        assert_eq!(nodes.len(), size.nodes(), "one node per index");
        assert!(nodes.iter().zip(size.indexes()).all(|(node, index)| node.index() == index), "in order");
        let batchers = nodes.into_iter().map(|node| Batcher::new(node, &runtime)).collect();
        Self {
            size,
            views: Views::default(),
            board: Board::default(),
            idle: Idle::default(),
            meter: Meter::default(),
            runtime,
            tokens: TokenClock::default(),
            proposer,
            batchers,
            watchers: AtomicUsize::new(0),
        }
    }

    /// The queues of the nodes, in order.
    pub fn batchers(&self) -> &[Batcher] {
        &self.batchers
    }

    /// A ballot above all that this daemon has made or seen.
    pub fn next_ballot(&self) -> Ballot {
        let token = self.tokens.next(self.runtime.clock.wall_unix_ms());
        Ballot { token, proposer: self.proposer }
    }

    /// Puts something that happened on the board, as of now.
    pub fn happened(&self, kind: EventKind, node: Option<NodeIndex>, text: String) {
        self.board.happened(self.runtime.clock.wall_unix_ms(), kind, node, text);
    }

    /// Somebody more wants to hear of the changes that daemons announce. Each call asks for one [`Cluster::unwatch`].
    pub fn watch(&self) {
        if self.watchers.fetch_add(1, Ordering::AcqRel) == 0 {
            self.batchers.iter().for_each(|batcher| batcher.node().watch_changes(true));
        }
    }

    /// Takes one [`Cluster::watch`] back.
    pub fn unwatch(&self) {
        if self.watchers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.batchers.iter().for_each(|batcher| batcher.node().watch_changes(false));
        }
    }

    /// Members that are connected with the memory that the list names, as last seen.
    pub fn reachable(&self) -> usize {
        let Some(view) = self.views.current() else { return 0 };
        self.size.indexes().filter(|node| self.is_reachable(&view, *node)).count()
    }

    /// Whether a node is a member and connected with the memory that the list names, as last seen.
    pub fn is_reachable(&self, view: &View, node: NodeIndex) -> bool {
        let batcher = &self.batchers[usize::from(node.0)];
        let NodeState::Ready(welcome) = batcher.node().state() else { return false };
        view.counts(node, memory_of(&welcome, batcher.last_reply().as_ref()))
    }

    /// What is wrong with each node that can't be counted on, for people.
    pub fn complaint(&self) -> String {
        let view = self.views.current();
        let complaints = self.batchers.iter().filter_map(|batcher| {
            let node = batcher.node();
            let words = match (node.state(), &view) {
                (NodeState::Unreachable(reason), _) => reason.to_string(),
                (NodeState::Refused(refusal), _) => format!("refused: {refusal}"),
                (NodeState::Ready(_), None) => "the member list has not been read yet".to_owned(),
                (NodeState::Ready(_), Some(view)) if !self.is_reachable(view, node.index()) => {
                    "it lost its memory (a restart?) and does not count until it has rejoined".to_owned()
                }
                (NodeState::Ready(_), Some(_)) => return None,
            };
            Some(format!("node {} at {}: {words}", node.index(), node.address()))
        });
        let complaints: Vec<_> = complaints.collect();
        if complaints.is_empty() { "members answer too slowly".to_owned() } else { complaints.join("; ") }
    }

    /// Sends one ungated operation to all nodes and waits for all to answer or fail. Nodes that fail are left out.
    pub async fn ask_all(&self, operation: &Operation) -> Vec<(NodeIndex, Option<MemoryId>, Answer)> {
        let encoded = operation.encode();
        self.ask(self.size.indexes().map(|node| (node, encoded.clone()))).await
    }

    /// The same with an operation for each node.
    pub async fn ask(
        &self,
        operations: impl Iterator<Item = (NodeIndex, Encoded)>,
    ) -> Vec<(NodeIndex, Option<MemoryId>, Answer)> {
        let list = self.views.current().map_or(Ballot::ZERO, |view| view.vid);
        self.ask_under(list, operations).await
    }

    /// Sends one operation to the members of a list. Only answers that count by it, all given under it.
    pub async fn ask_members(&self, view: &View, operation: &Operation) -> Vec<(NodeIndex, Answer)> {
        let encoded = operation.encode();
        let members = self.size.indexes().filter(|node| {
            view.list.entry(*node).is_some_and(|entry| entry.state == crate::members::State::Member)
        });
        let answers = self.ask_under(view.vid, members.map(|node| (node, encoded.clone()))).await;
        let counted = answers.into_iter().filter(|(node, memory, _)| view.counts(*node, *memory));
        counted.map(|(node, _, answer)| (node, answer)).collect()
    }

    /// Sends operations under a list and waits for all to answer or fail. Nodes that fail, or go by another list, are left
    /// out.
    pub async fn ask_under(
        &self,
        list: Ballot,
        operations: impl Iterator<Item = (NodeIndex, Encoded)>,
    ) -> Vec<(NodeIndex, Option<MemoryId>, Answer)> {
        let replies = Inbox::with_capacity(self.size.nodes());
        let mut outstanding = 0;
        for (node, operation) in operations {
            outstanding += 1;
            self.batchers[usize::from(node.0)].submit(list, operation, 0, &replies.slot());
        }
        let mut timer = self.runtime.clock.sleep_until(self.runtime.clock.now() + ROUND_TIMEOUT);
        let mut answers = Vec::with_capacity(outstanding);
        while outstanding > 0
            && let Either::Left((Some(reply), _)) =
                future::select(replies.next(outstanding), &mut timer).await
        {
            outstanding -= 1;
            if let Delivery::Answered { memory, answer } = reply.delivery {
                self.observe(&answer);
                answers.push((reply.node, memory, answer));
            }
        }
        answers.sort_by_key(|(node, ..)| *node);
        answers
    }

    /// Takes note of the tokens in an answer.
    fn observe(&self, answer: &Answer) {
        if matches!(answer, Answer::Conflict { .. }) {
            self.meter.conflicts.one();
        }
        if mutant::is_on(Mutant::TokensUnobserved) {
            return;
        }
        match answer {
            Answer::Record(Some(record)) | Answer::Held { record } => {
                self.tokens.observe(record.promise.token)
            }
            Answer::Promised { record, floor } => {
                self.tokens.observe(record.promise.token.max(floor.token));
            }
            Answer::Conflict { promise } => self.tokens.observe(promise.token),
            Answer::Page(page) => self.tokens.observe(page.floor.token),
            Answer::Ballots(held) => {
                held.iter().flatten().for_each(|held| self.tokens.observe(held.promise.token));
            }
            Answer::Claimed(claimed) => {
                let promised = claimed.items.iter().map(|(_, record)| record.promise.token);
                self.tokens.observe(promised.fold(claimed.floor.token, Token::max));
            }
            Answer::Looked(looked) => {
                looked.rows.iter().flatten().for_each(|shown| self.tokens.observe(shown.promise.token));
            }
            Answer::Record(None)
            | Answer::Census(_)
            | Answer::Accepted
            | Answer::Names(_)
            | Answer::Forgotten(_)
            | Answer::Reported(_)
            | Answer::Wiping
            | Answer::TooFarAhead
            | Answer::NotServing
            | Answer::Failed { .. } => {}
        }
    }
}

/// Runs a machine to its end, at the latest until `deadline`.
pub async fn drive<M: Machine>(cluster: &Cluster, machine: &mut M, deadline: Moment) -> M::Outcome {
    drive_from(cluster, machine, deadline, None).await.0
}

/// The same for a machine that goes by answers which were given under a list; and the list of the last round.
pub async fn drive_from<M: Machine>(
    cluster: &Cluster,
    machine: &mut M,
    deadline: Moment,
    view: Option<Arc<View>>,
) -> (M::Outcome, Option<Arc<View>>) {
    let mut drive = Drive::new(cluster, deadline);
    drive.round.view = view;
    let outcome = drive.run(machine).await;
    (outcome, drive.round.view)
}

/// One run of one machine.
struct Drive<'a> {
    cluster: &'a Cluster,
    deadline: Moment,
    replies: Inbox<Reply>,
    round: Round,
    /// A span for each node whose word is out, for traces.
    asked: [tracing::Span; NODES_MAX],
    /// When the machine is to be woken, and whether that ends a round.
    alarm: Option<(Moment, Alarm)>,
    /// Completes then, or at the deadline; set again only where that moment is another.
    timer: Option<(Moment, BoxFuture<'static, ()>)>,
}

/// What the alarm is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alarm {
    /// The machine asked.
    Machine,
    /// Silent nodes are counted out.
    Round,
}

/// The latest operation and who has had a word on it.
struct Round {
    number: u32,
    asked: Option<Asked>,
    view: Option<Arc<View>>,
    /// Nodes whose word is still out, by bit.
    outstanding: u8,
    /// Some node goes by another list; completes when that may have changed.
    gated: Option<EventListener>,
}

impl Round {
    /// How many more words it takes until a machine may have something to do: q that say yes, or so many others that q can't.
    fn enough(&self, size: ClusterSize) -> usize {
        let least = size.quorum().min(size.nodes() - size.quorum() + 1);
        let heard = size.nodes() - self.outstanding.count_ones() as usize;
        least.saturating_sub(heard).max(1)
    }
}

/// What all members are asked.
enum Asked {
    Operation(Encoded),
    Look(Question),
}

enum Input {
    Reply(Reply),
    Refreshed,
    Alarm,
    Deadline,
}

impl<'a> Drive<'a> {
    fn new(cluster: &'a Cluster, deadline: Moment) -> Self {
        let replies = Inbox::with_capacity(cluster.size.nodes());
        let round = Round { number: 0, asked: None, view: None, outstanding: 0, gated: None };
        let asked = [const { tracing::Span::none() }; NODES_MAX];
        Self { cluster, deadline, replies, round, asked, alarm: None, timer: None }
    }

    async fn run<M: Machine>(&mut self, machine: &mut M) -> M::Outcome {
        let mut action = self.with_context(|context| machine.start(context));
        loop {
            match action {
                Action::Done(outcome) => return outcome,
                // What was promised before a recovery may be lost.
                Action::Send(Operation::Accept(_)) if self.has_recovered() => return machine.give_up(),
                Action::Send(operation) => {
                    self.round.asked = Some(Asked::Operation(operation.encode()));
                    self.send();
                }
                Action::Look(keys) => {
                    self.round.asked = Some(Asked::Look(Question::about(&keys)));
                    self.send();
                }
                Action::Wait(length) => {
                    if let Some(length) = length {
                        self.alarm = Some((self.now() + length, Alarm::Machine));
                    }
                }
                Action::Rest(length) => {
                    self.round.number += 1;
                    self.round.outstanding = 0;
                    self.round.gated = None;
                    self.alarm = Some((self.now() + length, Alarm::Machine));
                }
            }
            action = match self.next_input().await {
                Input::Deadline => return machine.give_up(),
                Input::Refreshed => self.resend(machine),
                Input::Alarm => self.on_alarm(machine),
                Input::Reply(reply) => {
                    self.told(&reply);
                    self.on_reply(machine, reply)
                }
            };
        }
    }

    fn now(&self) -> Moment {
        self.cluster.runtime.clock.now()
    }

    fn with_context<T>(&self, call: impl FnOnce(&Context<'_>) -> T) -> T {
        let runtime = &self.cluster.runtime;
        call(&Context {
            now: runtime.clock.now(),
            tokens: &|above| {
                self.cluster.tokens.observe(above);
                self.cluster.tokens.next(runtime.clock.wall_unix_ms())
            },
            jitter: &|most| runtime.entropy.jitter(most),
        })
    }

    /// From the sending of an operation to the word of one node on it, for what is traced: the batch that carries it carries
    /// operations of others too, and belongs to none of them alone.
    fn asking(&self, node: NodeIndex) -> tracing::Span {
        tracing::debug_span!(
            target: "otlp",
            "node",
            node = node.0,
            otel.kind = "client",
            outcome = tracing::field::Empty
        )
    }

    /// Ends the span of a node.
    fn told(&mut self, reply: &Reply) {
        let span = std::mem::replace(&mut self.asked[usize::from(reply.node.0)], tracing::Span::none());
        span.record(
            "outcome",
            match reply.delivery {
                Delivery::Answered { .. } => "answered",
                Delivery::Gated { .. } => "gated",
                Delivery::Unsent(_) => "unsent",
                Delivery::Lost(_) => "lost",
            },
        );
    }

    /// Sends the latest operation to all members, as a new round.
    fn send(&mut self) {
        self.round.number += 1;
        self.round.gated = None;
        self.round.view = self.cluster.views.current();
        self.round.outstanding = 0;
        self.alarm = Some((self.now() + ROUND_TIMEOUT, Alarm::Round));
        let asked = self.round.asked.as_ref().expect("it is set before it is sent");
        let traced = !tracing::Span::current().is_none();
        let slot = self.replies.slot();
        for batcher in self.cluster.batchers() {
            let node = batcher.node().index();
            self.round.outstanding |= 1 << node.0;
            if traced {
                self.asked[usize::from(node.0)] = self.asking(node);
            }
            match &self.round.view {
                Some(view)
                    if view.list.entry(node).is_some_and(|e| e.state == crate::members::State::Member) =>
                {
                    let number = self.round.number;
                    match asked {
                        Asked::Operation(operation) => {
                            batcher.submit(view.vid, operation.clone(), number, &slot)
                        }
                        Asked::Look(question) => batcher.look(view.vid, question.clone(), number, &slot),
                    }
                }
                Some(_) | None => {
                    let delivery = Delivery::Unsent("not a member".into());
                    let reply = Reply { node, round: self.round.number, delivery };
                    slot.put(reply, false).expect("this loop holds the inbox");
                }
            }
        }
    }

    /// Whether the cluster was recovered since the last round.
    fn has_recovered(&self) -> bool {
        let now = self.cluster.views.current();
        let recovered = self.round.view.as_ref().zip(now).is_some_and(|(then, now)| {
            then.list.recovery != now.list.recovery && now.list.recovery.is_some()
        });
        recovered && !mutant::is_on(Mutant::RoundsCrossRecovery)
    }

    /// Sends the same again under the list that there is now. Not across a recovery: what the round goes by may have been
    /// lost, and the time that it counts from may be before leases that were granted since.
    fn resend<M: Machine>(&mut self, machine: &mut M) -> Action<M::Outcome> {
        if self.has_recovered() {
            return Action::Done(machine.give_up());
        }
        machine.on_resend();
        self.send();
        Action::Wait(None)
    }

    /// Waits for the first of: a reply of this round, news about the list, the alarm, the deadline.
    async fn next_input(&mut self) -> Input {
        let wake_at = self.alarm.map_or(self.deadline, |(at, _)| at.min(self.deadline));
        if self.timer.as_ref().is_none_or(|(at, _)| *at != wake_at) {
            self.timer = Some((wake_at, self.cluster.runtime.clock.sleep_until(wake_at)));
        }
        let (_, mut timer) = self.timer.take().expect("it was set a moment ago");
        let input = self.first_input(&mut timer, wake_at).await;
        if let Input::Reply(_) | Input::Refreshed = input {
            self.timer = Some((wake_at, timer));
        }
        input
    }

    async fn first_input(&mut self, timer: &mut BoxFuture<'static, ()>, wake_at: Moment) -> Input {
        let enough = self.round.enough(self.cluster.size);
        let mut refreshed = match &mut self.round.gated {
            Some(listener) => Either::Left(listener),
            None => Either::Right(future::pending()),
        };
        loop {
            futures::select_biased! {
                reply = self.replies.next(enough).fuse() => {
                    let reply = reply.expect("only this loop closes the inbox");
                    let now = reply.round == self.round.number || mutant::is_on(Mutant::LateWordsCount);
                    if now && self.round.outstanding & (1 << reply.node.0) != 0 {
                        return Input::Reply(reply);
                    }
                    if let Delivery::Answered { answer, .. } = &reply.delivery {
                        self.cluster.observe(answer);
                    }
                }
                () = (&mut refreshed).fuse() => return Input::Refreshed,
                () = timer.fuse() => {
                    return if wake_at >= self.deadline { Input::Deadline } else { Input::Alarm };
                }
            }
        }
    }

    fn on_alarm<M: Machine>(&mut self, machine: &mut M) -> Action<M::Outcome> {
        let Some((_, alarm)) = self.alarm.take() else { return Action::Wait(None) };
        if alarm == Alarm::Machine {
            return self.with_context(|context| machine.on_wake(context));
        }
        // The silent are counted out one by one, until the machine has heard enough.
        while self.round.outstanding != 0 {
            let node = NodeIndex(self.round.outstanding.trailing_zeros() as u8);
            self.round.outstanding &= !(1 << node.0);
            match self.with_context(|context| machine.on_word(node, Word::Lost, context)) {
                Action::Wait(_) => {}
                action => return action,
            }
        }
        Action::Wait(None)
    }

    fn on_reply<M: Machine>(&mut self, machine: &mut M, reply: Reply) -> Action<M::Outcome> {
        let word = match reply.delivery {
            Delivery::Answered { memory, answer } => {
                self.cluster.observe(&answer);
                let counts = self.round.view.as_ref().is_some_and(|view| view.counts(reply.node, memory));
                match answer {
                    Answer::NotServing => {
                        self.cluster.views.want();
                        Word::Refused
                    }
                    Answer::Failed { message } => {
                        tracing::warn!(node = %reply.node, message, "an operation failed in the script");
                        Word::Lost
                    }
                    answer if counts => Word::Answer(answer),
                    // Done there, but by a memory that does not count: to this round nobody knows.
                    _ => {
                        self.cluster.views.want();
                        Word::Lost
                    }
                }
            }
            Delivery::Gated { .. } => {
                // Its word stays out: the round is sent again when the list has been read or the node repaired.
                if self.round.gated.is_none() {
                    self.round.gated = Some(self.cluster.views.refreshed());
                }
                self.cluster.views.want();
                // The list may have been read between the sending and now.
                let current = self.cluster.views.current();
                if current.as_ref().map(|view| view.vid) != self.round.view.as_ref().map(|view| view.vid) {
                    return self.resend(machine);
                }
                return Action::Wait(None);
            }
            Delivery::Unsent(_) => Word::Refused,
            Delivery::Lost(_) => Word::Lost,
        };
        self.round.outstanding &= !(1 << reply.node.0);
        self.with_context(|context| machine.on_word(reply.node, word, context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::{Loss, MemberList};
    use crate::node::Identity;
    use crate::node::embedded::{EmbeddedNode, EmbeddedServer};
    use crate::node::operation::{Accept, Stamp};
    use crate::runtime::system;

    /// Sends what it was given, and says whether that went out.
    struct Sender(Option<Operation>);

    impl Machine for Sender {
        type Outcome = &'static str;

        fn start(&mut self, _: &Context<'_>) -> Action<Self::Outcome> {
            Action::Send(self.0.take().expect("started once"))
        }

        fn on_word(&mut self, _: NodeIndex, _: Word, _: &Context<'_>) -> Action<Self::Outcome> {
            Action::Done("sent")
        }

        fn on_wake(&mut self, _: &Context<'_>) -> Action<Self::Outcome> {
            Action::Done("woken")
        }

        fn on_resend(&mut self) {}

        fn give_up(&mut self) -> Self::Outcome {
            "given up"
        }
    }

    fn view(recovery: Option<u64>) -> View {
        let stamp = |token| {
            let ballot = Ballot { token: Token::new(token).unwrap(), proposer: ProposerId(1) };
            Stamp { ballot, ordinal: 0 }
        };
        let list = MemberList {
            entries: Vec::new(),
            founding: false,
            ttl_max_ms: 0,
            recovery: recovery.map(stamp),
            loss: Loss::None,
            before: Vec::new(),
        };
        View { vid: Ballot::ZERO, list, grants: true }
    }

    #[tokio::test]
    async fn what_goes_by_promises_from_before_a_recovery_is_not_accepted_after_it() {
        let key = RegisterKey::new('t', "x");
        let accept = Operation::Accept(Arc::new(Accept {
            key: key.clone(),
            ballot: Ballot::ZERO,
            value: "v".into(),
            vid: Ballot::ZERO,
            recent: Vec::new(),
            stamps: Vec::new(),
            guard: Duration::ZERO,
            listed: false,
            next: Token::ZERO,
            announce: false,
            wake: Vec::new(),
            place: None,
        }));
        let read = Operation::Read { key };
        // What is sent, the recovery of the list that it goes by, and that of the list now.
        for (operation, then, now, expected) in [
            (&accept, Some(None), None, "sent"),
            (&accept, Some(None), Some(1), "given up"),
            (&accept, Some(Some(1)), Some(1), "sent"),
            (&accept, Some(Some(1)), Some(2), "given up"),
            // Over: the stamp was taken off.
            (&accept, Some(Some(1)), None, "sent"),
            (&accept, None, Some(1), "sent"),
            (&read, Some(None), Some(1), "sent"),
        ] {
            let daemon = ProposerId(1);
            let identity = Identity { cluster: "blue".into(), nodes: 1, daemon };
            let server = EmbeddedServer::new(0, Arc::new(|| 0));
            let node =
                EmbeddedNode::new(server, identity, NodeIndex(0), Arc::new(|_, _| {})) as Arc<dyn Node>;
            let size = ClusterSize::new(1).unwrap();
            let cluster = Cluster::new(size, vec![node], daemon, system::runtime());
            cluster.views.install(view(now));
            let deadline = cluster.runtime.clock.now() + Duration::from_secs(60);
            let mut machine = Sender(Some(operation.clone()));
            let then = then.map(|recovery| Arc::new(view(recovery)));
            let (outcome, _) = drive_from(&cluster, &mut machine, deadline, then).await;
            assert_eq!(outcome, expected, "{operation:?} from {now:?}");
        }
    }
}
