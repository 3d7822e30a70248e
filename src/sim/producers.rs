//! Clients that put items: one or a batch, under ids of their own or of the daemon's making, some under ids that all share;
//! and that send a request again, at any daemon, after an answer or without one.

use std::time::Duration;

use super::history::Fate;
use super::item::{ItemAsked, ItemTold, Request, fate_of};
use super::queues::QueueClient;
use crate::ids::{ItemId, QueueName};
use crate::queue::{NewItem, Put, QueueError};

/// Longest pause between two calls.
const PAUSE: Duration = Duration::from_millis(1_000);
/// Items of one call, at most.
const BATCH: u64 = 4;
/// So often at most is one request sent.
const SENDS_MAX: u32 = 4;
/// Ids that all producers share.
const SHARED: u64 = 3;

/// One client that puts.
pub struct Producer {
    base: QueueClient,
    /// Items that it puts at most while faults rage.
    left: u64,
    /// It was told that the queue is full, which is an answer, too.
    refused: bool,
}

impl Producer {
    /// A producer.
    pub fn new(base: QueueClient) -> Self {
        let left = base.work.items_max;
        Self { base, left, refused: false }
    }

    /// Puts until it is `calm`, and then until one put has been answered.
    pub async fn live(mut self, calm: impl Fn() -> bool) {
        while !self.base.judge.is_violated() {
            let was_calm = calm();
            if self.left > 0 || was_calm {
                self.base.does("puts".to_owned());
                let answered = self.round().await;
                if was_calm && answered {
                    return;
                }
            }
            self.base.rest(PAUSE).await;
        }
    }

    /// One call, and its repeats. Whether it was told of some item.
    async fn round(&mut self) -> bool {
        let queue = self.base.queue();
        let count = if self.base.random.chance(50) { 1 } else { 1 + self.base.random.below(BATCH) };
        let mut requests: Vec<Request> = (0..count).map(|_| self.request(&queue)).collect();
        self.left = self.left.saturating_sub(count);
        let mut answered = false;
        self.refused = false;
        for _ in 0..SENDS_MAX {
            let told = self.send(&queue, &requests).await;
            answered |= told.iter().any(Option::is_some);
            // Nobody else may be told of what has no id of the client's: a repeat would be another item.
            let again = requests.iter().zip(&told).map(|(request, told)| {
                let percent = if told.is_some() { 15 } else { 75 };
                request.id.is_some() && self.base.random.chance(percent)
            });
            let again: Vec<bool> = again.collect();
            requests =
                requests.into_iter().zip(again).filter(|(_, again)| *again).map(|(one, _)| one).collect();
            if requests.is_empty() {
                break;
            }
            self.base.rest(PAUSE * 2).await;
        }
        answered || self.refused
    }

    fn request(&mut self, queue: &QueueName) -> Request {
        let number = self.base.judge.queues(|notes| {
            notes.requests += 1;
            notes.requests
        });
        let random = &mut self.base.random;
        let id = match random.below(100) {
            0..15 => Some(format!("s{}", random.below(SHARED))),
            at if at < 15 + self.base.work.named => Some(format!("i{number}")),
            _ => None,
        };
        Request {
            number,
            queue: queue.clone(),
            id: id.map(|id| ItemId::parse(&id).expect("a good id")),
            priority: random.below(3) as i32 - 1,
            delay: if random.chance(25) {
                Duration::from_millis(random.below(3_000))
            } else {
                Duration::ZERO
            },
        }
    }

    /// One call of one of the daemons that are alive. What was told of each.
    async fn send(&mut self, queue: &QueueName, requests: &[Request]) -> Vec<Option<Put>> {
        let Some(daemon) = self.base.daemon().await else { return vec![None; requests.len()] };
        let asked = |request: &Request| ItemAsked::Put(request.clone());
        let calls: Vec<_> =
            requests.iter().map(|request| self.base.begin(&request.item(), asked(request))).collect();
        let items: Vec<NewItem> = requests.iter().map(Request::new_item).collect();
        let (queue, deadline) = (queue.clone(), self.base.deadline(&daemon));
        let answer =
            self.base.call(&daemon, |queues| async move { queues.put(&queue, items, deadline).await }).await;
        let results = match answer {
            // Nothing was put, it says.
            Some(Err(error)) => {
                calls.into_iter().for_each(|call| self.base.end(call, fate_of(&error)));
                return vec![None; requests.len()];
            }
            Some(Ok(results)) => self.base.one_each(Some(results), requests.len()),
            None => self.base.one_each(None, requests.len()),
        };
        calls.into_iter().zip(results).map(|(call, result)| self.learn(call, result)).collect()
    }

    fn learn(
        &mut self,
        call: super::history::CallId,
        result: Option<Result<Put, QueueError>>,
    ) -> Option<Put> {
        let fate = match &result {
            Some(Ok(put)) => Fate::Answered(ItemTold::Put(put.clone())),
            Some(Err(error)) => fate_of(error),
            None => Fate::Unknown("no answer".into()),
        };
        self.base.end(call, fate);
        self.refused |= matches!(result, Some(Err(QueueError::QueueFull { .. })));
        result.and_then(Result::ok)
    }
}
