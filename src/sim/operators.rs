//! Operators of queues: they look, list, redrive what is dead, and in some runs purge. And one drains a queue at the end.

use std::time::Duration;

use super::history::Fate;
use super::item::{ItemAsked, ItemTold, Operation, fate_of};
use super::queues::{QueueClient, name, outstanding};
use crate::ids::{ItemId, QueueName};
use crate::queue::{ItemState, QueueError};
use crate::runtime::Moment;

/// Longest pause between two calls.
const PAUSE: Duration = Duration::from_secs(4);
/// Length of the leases while a queue is drained.
const DRAIN_TTL: Duration = Duration::from_secs(5);
/// How long each call waits for an item then.
const DRAIN_WAIT: Duration = Duration::from_millis(500);
/// Pause between two rounds over all queues then.
const DRAIN_PAUSE: Duration = Duration::from_secs(1);

/// One operator.
pub struct Operator {
    base: QueueClient,
}

impl Operator {
    /// An operator.
    pub fn new(base: QueueClient) -> Self {
        Self { base }
    }

    /// Operates until it is `calm`.
    pub async fn live(mut self, calm: impl Fn() -> bool) {
        while !calm() && !self.base.judge.is_violated() {
            let queue = self.base.queue();
            match self.base.random.below(10) {
                0 | 1 => self.purge(&queue).await,
                2 | 3 => self.redrive(&queue).await,
                4 => self.glance(&queue).await,
                _ => self.look().await,
            }
            self.base.rest(PAUSE).await;
        }
    }

    /// What a whole queue has is changed.
    async fn operate<F>(
        &mut self,
        queue: &QueueName,
        removes: bool,
        call: impl FnOnce(crate::queue::Queues, QueueName, Moment) -> F,
    ) where
        F: Future<Output = Result<u64, QueueError>> + Send + 'static,
    {
        let Some(daemon) = self.base.daemon().await else { return };
        let operation =
            Operation { queue: queue.clone(), removes, start: self.base.world.now(), end: Some(Moment::FAR) };
        let at = self.base.judge.queues(|notes| {
            notes.operations.push(operation);
            notes.operations.len() - 1
        });
        let deadline = self.base.deadline(&daemon);
        let asked = queue.clone();
        let answer = self.base.call(&daemon, |queues| call(queues, asked, deadline)).await;
        let what = if removes { "purges" } else { "redrives" };
        self.base.say(format_args!("{what} {queue}: {answer:?}"));
        // Of one that failed some of it may be done, or be under way.
        let end = match answer {
            Some(Ok(_)) => Some(self.base.world.now()),
            Some(Err(QueueError::NoSuchQueue { .. })) => None,
            Some(Err(_)) | None => Some(Moment::FAR),
        };
        self.base.judge.queues(|notes| notes.operations[at].end = end);
    }

    async fn purge(&mut self, queue: &QueueName) {
        if !self.base.work.purges {
            return;
        }
        let all = [ItemState::Ready, ItemState::Delayed, ItemState::Leased, ItemState::Dead];
        let states: Vec<ItemState> = all.into_iter().filter(|_| self.base.random.chance(50)).collect();
        self.operate(queue, true, |queues, queue, deadline| async move {
            queues.purge(&queue, &states, deadline).await
        })
        .await;
    }

    async fn redrive(&mut self, queue: &QueueName) {
        self.operate(queue, false, |queues, queue, deadline| async move {
            queues.redrive(&queue, &[], deadline).await
        })
        .await;
    }

    /// What is only for people.
    async fn glance(&mut self, queue: &QueueName) {
        let Some(daemon) = self.base.daemon().await else { return };
        let deadline = self.base.deadline(&daemon);
        let asked = queue.clone();
        let seen = self
            .base
            .call(&daemon, |queues| async move {
                let view = queues.get(&asked, deadline).await;
                let page = queues.list("", 10, "", deadline).await;
                let dead = queues.list_dead(&asked, 10, "", deadline).await;
                (view, page, dead)
            })
            .await;
        if let Some((Ok(view), ..)) = seen {
            self.base.say(format_args!("sees {queue}: {:?}", view.counts));
        }
    }

    /// Where one of the items stands.
    async fn look(&mut self) {
        let random = &mut self.base.random;
        let known = self.base.judge.queues(|notes| {
            let all: Vec<&str> = notes.items.keys().map(|(item, _)| item).collect();
            if all.is_empty() { None } else { Some(all[random.index(all.len())].to_owned()) }
        });
        let named =
            known.as_ref().and_then(|item| item.split_once('/')).filter(|(_, id)| !id.starts_with('#'));
        let (Some((queue, id)), Some(daemon)) = (named, self.base.daemon().await) else { return };
        let queue = QueueName::parse(queue).expect("the name of a queue");
        let id = ItemId::parse(id).expect("the id of an item");
        let call = self.base.begin(&format!("{queue}/{id}"), ItemAsked::Look);
        let deadline = self.base.deadline(&daemon);
        let seen = self
            .base
            .call(&daemon, |queues| async move { queues.get_item(&queue, &id, deadline).await })
            .await;
        let fate = match seen {
            Some(Ok(view)) => Fate::Answered(ItemTold::Seen(Some(view.state))),
            Some(Err(QueueError::NoSuchItem { .. })) => Fate::Answered(ItemTold::Seen(None)),
            Some(Err(error)) => fate_of(&error),
            None => Fate::Unknown("no answer".into()),
        };
        self.base.end(call, fate);
    }

    /// Reserves and acks whatever there is, until nothing is missed and for a while nothing came.
    pub async fn drain(&mut self, quiet: Duration) {
        let mut last = self.base.world.now();
        while !self.base.judge.is_violated() {
            for queue in (0..self.base.work.queues).map(name) {
                let held =
                    self.base.reserve(&queue, 16, Some(DRAIN_TTL), DRAIN_WAIT).await.unwrap_or_default();
                if !held.is_empty() {
                    last = self.base.world.now();
                    self.base.settle(&held, None).await;
                } else if self.base.work.options.max_attempts > 0 {
                    self.redrive(&queue).await;
                }
            }
            let options = &self.base.work.options;
            let left = self.base.judge.queues(|notes| outstanding(notes, options));
            if left.is_empty() && self.base.world.now() >= last + quiet {
                return;
            }
            self.base.world.sleep(DRAIN_PAUSE).await;
        }
    }

    /// Removes the queues.
    pub async fn delete(&mut self) {
        for queue in (0..self.base.work.queues).map(name) {
            let Some(daemon) = self.base.daemon().await else { return };
            let (queues, deadline) = (daemon.queues.clone(), daemon.now() + Duration::from_secs(20));
            let asked = queue.clone();
            let deleted = daemon.call(async move { queues.delete(&asked, deadline).await }).await;
            if !matches!(deleted, Some(Ok(_))) {
                self.base.judge.violated(format!("{queue} can't be deleted at the end: {deleted:?}"));
            }
        }
    }
}
