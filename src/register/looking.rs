//! [`Looking`]: looks that wait in this daemon set out together.
//!
//! A look of a register that nothing of this daemon is under way for needs nobody's place in line and keeps no promise, so
//! looks of many registers make one round ([`super::look`]): one operation for each node and one answer from it, whatever
//! their number. While a round is under way, what comes forms the next; where the way is long, rounds overlap, as batches do
//! ([`crate::node::batch`]).
//!
//! How large the values are is known when they are here. So there are few rounds at a time, and each asks for as many registers
//! as come to [`limits::LOOK_BYTES_MAX`] if their values are as large as those of the last round.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{self, Either};
use tracing::Instrument;

use super::Kind;
use super::look::{Looker, Sighted};
use super::registers::round_span;
use crate::driver::{Cluster, drive};
use crate::limits;
use crate::node::operation::RegisterKey;
use crate::runtime::Moment;

/// How long a round may take. What it can't say by then, rounds of single registers try to.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// A round that takes this long keeps no other from setting out: the nodes that it waits for may not answer at all. How many
/// they are asked meanwhile is bounded there ([`limits::LOOKS_IN_FLIGHT_MAX`]).
const STUCK_AFTER: Duration = Duration::from_millis(250);
/// A look that found but one round's before it has been answered after this time: all that may go before it are stuck then.
pub(super) const PROMPT: Duration = Duration::from_secs(3);

/// Looks of one kind.
pub(super) struct Looking<K: Kind> {
    cluster: Arc<Cluster>,
    waiting: Mutex<Waiting<K>>,
}

struct Waiting<K: Kind> {
    looks: VecDeque<Look<K>>,
    /// Some task takes what comes.
    served: bool,
    /// Rounds that are under way.
    rounds: usize,
    /// How many registers the next round may ask for.
    registers_max: usize,
}

struct Look<K: Kind> {
    name: Arc<str>,
    change: K::Change,
    answer: oneshot::Sender<Option<K::Answer>>,
    deadline: Moment,
    /// Of the call that it belongs to, for traces.
    span: tracing::Span,
}

/// A look that waits or is under way.
pub(super) struct Joined<K: Kind> {
    /// `None` where the register needs a round of its own; nothing has happened then.
    pub(super) answer: oneshot::Receiver<Option<K::Answer>>,
    /// It is answered within [`PROMPT`].
    pub(super) is_prompt: bool,
}

/// What sets out together.
struct Round<K: Kind> {
    /// Each with the place of its register.
    looks: Vec<(Look<K>, usize)>,
    keys: Vec<RegisterKey>,
}

impl<K: Kind> Looking<K> {
    pub(super) fn new(cluster: Arc<Cluster>) -> Arc<Self> {
        let registers_max = limits::BATCH_OPERATIONS_MAX;
        let waiting = Waiting { looks: VecDeque::new(), served: false, rounds: 0, registers_max };
        Arc::new(Self { cluster, waiting: Mutex::new(waiting) })
    }

    /// Adds a look to the round that sets out next. `None` at once where too many wait.
    pub(super) fn join(
        self: &Arc<Self>,
        name: &str,
        change: K::Change,
        deadline: Moment,
    ) -> Option<Joined<K>> {
        let mut waiting = self.waiting();
        if waiting.looks.len() >= limits::CHANGES_QUEUED_MAX {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let is_prompt = waiting.looks.len() < waiting.registers_max;
        waiting.looks.push_back(Look { name: name.into(), change, answer: sender, deadline, span });
        self.serve(waiting);
        Some(Joined { answer, is_prompt })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<K>> {
        self.waiting.lock().expect("no holder of this lock panics")
    }

    /// Has a task take what waits, unless one does, or as many rounds as may be are under way: then the end of one comes here.
    fn serve(self: &Arc<Self>, mut waiting: MutexGuard<'_, Waiting<K>>) {
        let in_vain = waiting.looks.is_empty() || waiting.rounds >= limits::LOOK_ROUNDS_MAX;
        if in_vain || std::mem::replace(&mut waiting.served, true) {
            return;
        }
        drop(waiting);
        self.cluster.runtime.spawner.spawn(self.clone().run().boxed());
    }

    /// Round by round, until nothing waits, or a round takes long: then another task may take what comes meanwhile.
    async fn run(self: Arc<Self>) {
        let clock = &*self.cluster.runtime.clock;
        while let Some(round) = self.take() {
            let set_out = clock.now();
            let round = std::pin::pin!(self.round(round));
            let overlap = clock.sleep_until(set_out + limits::BATCHES_OVERLAP_AFTER);
            let Either::Right(((), round)) = future::select(round, overlap).await else {
                self.ended();
                continue;
            };
            self.hand_on();
            let stuck = future::select(round, clock.sleep_until(set_out + STUCK_AFTER)).await;
            self.ended();
            if let Either::Right(((), round)) = stuck {
                round.await;
            }
            return;
        }
    }

    /// Another task may take what comes.
    fn hand_on(self: &Arc<Self>) {
        let mut waiting = self.waiting();
        waiting.served = false;
        self.serve(waiting);
    }

    /// A round is not under way any more, or counts as such.
    fn ended(self: &Arc<Self>) {
        let mut waiting = self.waiting();
        waiting.rounds -= 1;
        self.serve(waiting);
    }

    /// The next round, or `None` and nobody serves.
    fn take(&self) -> Option<Round<K>> {
        let mut waiting = self.waiting();
        waiting.looks.retain(|look| !look.answer.is_canceled());
        let count = waiting.looks.len().min(limits::BATCH_OPERATIONS_MAX);
        let mut places = HashMap::with_capacity(count);
        let mut round = Round { looks: Vec::with_capacity(count), keys: Vec::with_capacity(count) };
        while round.looks.len() < count {
            let name = &waiting.looks.front().expect("so many wait").name;
            let place = match places.get(name) {
                Some(place) => *place,
                None if round.keys.len() == waiting.registers_max => break,
                None => {
                    places.insert(name.clone(), round.keys.len());
                    round.keys.push(RegisterKey::new(K::LETTER, name));
                    round.keys.len() - 1
                }
            };
            round.looks.extend(waiting.looks.pop_front().map(|look| (look, place)));
        }
        waiting.served = count > 0;
        waiting.rounds += usize::from(waiting.served);
        waiting.served.then_some(round)
    }

    async fn round(&self, round: Round<K>) {
        let Round { looks, keys } = round;
        let registers = keys.len();
        let started = self.cluster.runtime.clock.now();
        let latest = looks.iter().map(|(look, _)| look.deadline).max().expect("a round is not empty");
        let limit = latest.min(started + PATIENCE);
        let span = round_span(looks.iter().map(|(look, _)| &look.span));
        let mut looker = Looker::new(keys.into(), self.cluster.size);
        let sight = drive(&self.cluster, &mut looker, limit).instrument(span).await;
        if let Some(sight) = &sight {
            let each = sight.bytes().div_ceil(registers).max(1);
            self.waiting().registers_max =
                (limits::LOOK_BYTES_MAX / each).clamp(1, limits::BATCH_OPERATIONS_MAX);
            let meter = self.cluster.meter.kinds.of(K::LETTER);
            meter.reads.took(self.cluster.runtime.clock.now().since(started));
        }
        // A value is decoded, and with it copied, once for all who ask for it.
        let mut sighted: Vec<Option<Option<Sighted<K>>>> = (0..registers).map(|_| None).collect();
        for (look, place) in looks {
            let sighted =
                sighted[place].get_or_insert_with(|| sight.as_ref().and_then(|sight| sight.of(place)));
            let answer = sighted.as_ref().and_then(|sighted| sighted.answer(&look.change));
            // Whoever asked may be gone; nobody misses the answer then.
            let _ = look.answer.send(answer);
        }
    }
}
