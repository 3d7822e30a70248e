//! [`Looking`]: looks that wait in this daemon set out together.
//!
//! A look of a register that nothing of this daemon is under way for needs nobody's place in line and keeps no promise, so
//! looks of many registers make one round ([`super::look`]): one operation for each node and one answer from it, whatever
//! their number. While a round is under way, what comes forms the next; where the way is long, rounds overlap, as batches do
//! ([`crate::node::batch`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::{self, Either};
use tracing::Instrument;

use super::Kind;
use super::look::Looker;
use super::registers::round_span;
use crate::driver::{Cluster, drive};
use crate::limits;
use crate::node::operation::RegisterKey;
use crate::runtime::Moment;

/// How long a round may take. What it can't say by then, rounds of single registers try to.
pub(super) const PATIENCE: Duration = Duration::from_millis(1_500);

/// Looks of one kind.
pub(super) struct Looking<K: Kind> {
    cluster: Arc<Cluster>,
    waiting: Mutex<Waiting<K>>,
}

struct Waiting<K: Kind> {
    looks: VecDeque<Look<K>>,
    /// Some task takes what comes.
    served: bool,
}

struct Look<K: Kind> {
    name: Arc<str>,
    change: K::Change,
    answer: oneshot::Sender<Option<K::Answer>>,
    deadline: Moment,
    /// Of the call that it belongs to, for traces.
    span: tracing::Span,
}

impl<K: Kind> Looking<K> {
    pub(super) fn new(cluster: Arc<Cluster>) -> Arc<Self> {
        Arc::new(Self { cluster, waiting: Mutex::new(Waiting { looks: VecDeque::new(), served: false }) })
    }

    /// Adds a look to the round that sets out next. `None` is answered where the register needs a round of its own; nothing
    /// has happened then. `None` at once where too many wait.
    pub(super) fn join(
        self: &Arc<Self>,
        name: &str,
        change: K::Change,
        deadline: Moment,
    ) -> Option<oneshot::Receiver<Option<K::Answer>>> {
        let mut waiting = self.waiting();
        if waiting.looks.len() >= limits::CHANGES_QUEUED_MAX {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        let span = tracing::Span::current();
        waiting.looks.push_back(Look { name: name.into(), change, answer: sender, deadline, span });
        if !std::mem::replace(&mut waiting.served, true) {
            drop(waiting);
            self.serve();
        }
        Some(answer)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<K>> {
        self.waiting.lock().expect("no holder of this lock panics")
    }

    /// Starts the task that takes what waits, round by round.
    fn serve(self: &Arc<Self>) {
        let this = self.clone();
        let task = async move {
            while let Some(looks) = this.take() {
                let overlaps_from = this.cluster.runtime.clock.now() + limits::BATCHES_OVERLAP_AFTER;
                let round = std::pin::pin!(this.round(looks));
                let timer = this.cluster.runtime.clock.sleep_until(overlaps_from);
                if let Either::Right(((), round)) = future::select(round, timer).await {
                    this.serve();
                    return round.await;
                }
            }
        };
        self.cluster.runtime.spawner.spawn(task.boxed());
    }

    /// The looks of the next round, or `None` and nobody serves.
    fn take(&self) -> Option<Vec<Look<K>>> {
        let mut waiting = self.waiting();
        waiting.looks.retain(|look| !look.answer.is_canceled());
        let count = waiting.looks.len().min(limits::BATCH_OPERATIONS_MAX);
        let looks: Vec<_> = waiting.looks.drain(..count).collect();
        waiting.served = !looks.is_empty();
        waiting.served.then_some(looks)
    }

    async fn round(&self, looks: Vec<Look<K>>) {
        let mut places = HashMap::with_capacity(looks.len());
        let mut keys = Vec::with_capacity(looks.len());
        for look in &looks {
            places.entry(look.name.clone()).or_insert_with(|| {
                keys.push(RegisterKey::new(K::LETTER, &look.name));
                keys.len() - 1
            });
        }
        let started = self.cluster.runtime.clock.now();
        let latest = looks.iter().map(|look| look.deadline).max().expect("a round is not empty");
        let limit = latest.min(started + PATIENCE);
        let span = round_span(looks.iter().map(|look| &look.span));
        let mut looker = Looker::new(keys.into(), self.cluster.size);
        let sight = drive(&self.cluster, &mut looker, limit).instrument(span).await;
        let meter = self.cluster.meter.kinds.of(K::LETTER);
        if sight.is_some() {
            meter.reads.took(self.cluster.runtime.clock.now().since(started));
        }
        for look in looks {
            let answer = sight.as_ref().and_then(|sight| sight.answer::<K>(places[&look.name], &look.change));
            // Whoever asked may be gone; nobody misses the answer then.
            let _ = look.answer.send(answer);
        }
    }
}
