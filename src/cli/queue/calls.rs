//! The calls that `queue work` makes beside its stream: they extend, settle and count, also while there is no stream.
//!
//! At most one call of each kind is under way, for all jobs together.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tonic::{Code, Response, Status};

use super::job::{Job, Key, Verdict};
use super::link::nack_of;
use super::status_of;
use crate::cli::client::{CALL_TIMEOUT, Daemons, QueueClient, explain, from_proto, request};
use crate::cli::lock::before;
use crate::proto::v1;
use crate::proto::v1::queue_service_extend_response::result::Outcome;
use crate::proto::v1::settle_result;
use crate::runtime::{Moment, Runtime};

/// The calls under way.
pub(super) struct Calls {
    queue: String,
    runtime: Runtime,
    daemons: Daemons,
    client: QueueClient,
    pending: FuturesUnordered<BoxFuture<'static, Told>>,
    extending: bool,
    settling: bool,
    counting: bool,
}

/// The answer to a call.
pub(super) enum Told {
    /// What became of each lease that was to be extended.
    Extended(Vec<(Key, Kept)>),
    /// What became of each verdict.
    Settled(Vec<(Key, Result<v1::LeaseOutcome, Status>)>),
    /// How many items are ready.
    Counted(Result<u64, Status>),
}

/// What became of an extension.
pub(super) enum Kept {
    /// The lease is good until then, counted from when the call was sent.
    Until(Moment),
    /// It is over.
    Ended(v1::LeaseOutcome),
    /// Not known.
    Failed(Status),
}

impl Calls {
    pub(super) fn new(queue: String, runtime: Runtime, daemons: Daemons) -> Self {
        let client = daemons.queue_client();
        let pending = FuturesUnordered::new();
        Self { queue, runtime, daemons, client, pending, extending: false, settling: false, counting: false }
    }

    /// The next answer, once there is a call. Nothing is lost if the wait is given up.
    pub(super) async fn next(&mut self) -> Told {
        let Some(told) = self.pending.next().await else { return std::future::pending().await };
        match &told {
            Told::Extended(results) => {
                self.extending = false;
                self.leave(results.iter().find_map(|(_, kept)| match kept {
                    Kept::Failed(status) => Some(status),
                    Kept::Until(_) | Kept::Ended(_) => None,
                }));
            }
            Told::Settled(results) => {
                self.settling = false;
                self.leave(results.iter().find_map(|(_, result)| result.as_ref().err()));
            }
            Told::Counted(result) => {
                self.counting = false;
                self.leave(result.as_ref().err());
            }
        }
        told
    }

    /// Goes on to the next daemon if this one could not answer.
    fn leave(&mut self, failure: Option<&Status>) {
        let lasting = |status: &Status| matches!(status.code(), Code::NotFound | Code::InvalidArgument);
        if failure.is_some_and(|status| !lasting(status)) {
            self.daemons.advance();
            self.client = self.daemons.queue_client();
        }
    }

    /// An error for people.
    pub(super) fn explain(&self, status: &Status) -> String {
        explain(status, self.daemons.address())
    }

    pub(super) fn may_extend(&self) -> bool {
        !self.extending
    }

    pub(super) fn may_settle(&self) -> bool {
        !self.settling
    }

    pub(super) fn may_count(&self) -> bool {
        !self.counting
    }

    /// Extends the leases of these jobs, which are some.
    pub(super) fn extend(&mut self, jobs: &[&Job]) {
        let keys: Vec<Key> = jobs.iter().map(|job| job.key()).collect();
        let shortest = jobs.iter().map(|job| job.watch.ttl()).min().unwrap_or_default();
        let timeout = (shortest / 4).clamp(Duration::from_millis(250), CALL_TIMEOUT / 2);
        let leases = jobs.iter().map(|job| job.lease()).collect();
        let message = v1::QueueServiceExtendRequest { queue: self.queue.clone(), leases, ttl: None };
        let sent = self.runtime.clock.now();
        let limit = self.runtime.clock.sleep_until(sent + timeout);
        let mut client = self.client.clone();
        self.extending = true;
        self.pending.push(
            async move {
                let answer = before(limit, client.extend(request(message, timeout))).await;
                Told::Extended(extended(keys, answer, sent))
            }
            .boxed(),
        );
    }

    /// Tells the verdicts on these jobs, which are some.
    pub(super) fn settle<'a>(&mut self, jobs: impl Iterator<Item = (&'a Job, &'a Verdict)>) {
        let (mut acked, mut leases) = (Vec::new(), Vec::new());
        let (mut nacked, mut items) = (Vec::new(), Vec::new());
        for (job, verdict) in jobs {
            match verdict {
                Verdict::Ack => {
                    acked.push(job.key());
                    leases.push(job.lease());
                }
                Verdict::Nack { delay, reason } => {
                    nacked.push(job.key());
                    items.push(nack_of(job, *delay, reason));
                }
            }
        }
        let ack = v1::AckRequest { queue: self.queue.clone(), leases };
        let nack = v1::NackRequest { queue: self.queue.clone(), items };
        let clock = self.runtime.clock.clone();
        let limit = move || clock.sleep_until(clock.now() + CALL_TIMEOUT);
        let mut client = self.client.clone();
        self.settling = true;
        self.pending.push(
            async move {
                let mut results = Vec::new();
                if !acked.is_empty() {
                    let answer = before(limit(), client.ack(request(ack, CALL_TIMEOUT))).await;
                    results.extend(settled(acked, answer.map(|answer| answer.into_inner().results)));
                }
                if !nacked.is_empty() {
                    let answer = before(limit(), client.nack(request(nack, CALL_TIMEOUT))).await;
                    results.extend(settled(nacked, answer.map(|answer| answer.into_inner().results)));
                }
                Told::Settled(results)
            }
            .boxed(),
        );
    }

    /// Counts the items that are ready.
    pub(super) fn count(&mut self) {
        let message = v1::GetQueueRequest { queue: self.queue.clone() };
        let limit = self.runtime.clock.sleep_until(self.runtime.clock.now() + CALL_TIMEOUT);
        let mut client = self.client.clone();
        self.counting = true;
        self.pending.push(
            async move {
                let answer = before(limit, client.get_queue(request(message, CALL_TIMEOUT))).await;
                Told::Counted(match answer.map(Response::into_inner) {
                    Ok(v1::GetQueueResponse { queue: Some(queue) }) => Ok(queue.ready),
                    Ok(v1::GetQueueResponse { queue: None }) => Err(no_result()),
                    // One that does not exist is as good as an empty one.
                    Err(status) if status.code() == Code::NotFound => Ok(0),
                    Err(status) => Err(status),
                })
            }
            .boxed(),
        );
    }
}

fn no_result() -> Status {
    Status::internal("the answer has no result for it")
}

fn extended(
    keys: Vec<Key>,
    answer: Result<Response<v1::QueueServiceExtendResponse>, Status>,
    sent: Moment,
) -> Vec<(Key, Kept)> {
    let results = match answer {
        Ok(answer) => answer.into_inner().results,
        Err(status) => return keys.into_iter().map(|key| (key, Kept::Failed(status.clone()))).collect(),
    };
    let mut results: BTreeMap<usize, _> = results.into_iter().enumerate().collect();
    let kept = |(at, key): (usize, Key)| {
        let found = results.remove(&at).filter(|result| result.id == key.0);
        let kept = match found.and_then(|result| result.outcome) {
            Some(Outcome::Extended(extended)) => Kept::Until(sent + from_proto(extended.remaining)),
            Some(Outcome::Ended(outcome)) => {
                Kept::Ended(v1::LeaseOutcome::try_from(outcome).unwrap_or_default())
            }
            Some(Outcome::Error(error)) => Kept::Failed(status_of(&error)),
            None => Kept::Failed(no_result()),
        };
        (key, kept)
    };
    keys.into_iter().enumerate().map(kept).collect()
}

fn settled(
    keys: Vec<Key>,
    answer: Result<Vec<v1::SettleResult>, Status>,
) -> Vec<(Key, Result<v1::LeaseOutcome, Status>)> {
    let results = match answer {
        Ok(results) => results,
        Err(status) => return keys.into_iter().map(|key| (key, Err(status.clone()))).collect(),
    };
    let mut results: BTreeMap<usize, _> = results.into_iter().enumerate().collect();
    let outcome = |(at, key): (usize, Key)| {
        let found = results.remove(&at).filter(|result| result.id == key.0);
        let outcome = match found.and_then(|result| result.result) {
            Some(settle_result::Result::Outcome(outcome)) => {
                Ok(v1::LeaseOutcome::try_from(outcome).unwrap_or_default())
            }
            Some(settle_result::Result::Error(error)) => Err(status_of(&error)),
            None => Err(no_result()),
        };
        (key, outcome)
    };
    keys.into_iter().enumerate().map(outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        (id.to_owned(), "secret".to_owned())
    }

    #[test]
    fn a_result_counts_only_for_the_item_that_it_names() {
        let result = |id: &str, outcome: v1::LeaseOutcome| v1::SettleResult {
            id: id.to_owned(),
            result: Some(settle_result::Result::Outcome(outcome.into())),
        };
        let answer = vec![result("a", v1::LeaseOutcome::Ok), result("other", v1::LeaseOutcome::Ok)];
        let told = settled(vec![key("a"), key("b"), key("c")], Ok(answer));
        let outcomes: Vec<_> = told.iter().map(|(_, outcome)| outcome.as_ref().ok().copied()).collect();
        assert_eq!(outcomes, [Some(v1::LeaseOutcome::Ok), None, None]);
    }

    #[test]
    fn an_extension_is_counted_from_when_it_was_sent() {
        let sent = Moment::from_start(Duration::from_secs(100));
        let remaining = Some(crate::cli::client::to_proto(Duration::from_secs(30)));
        let extended_to = v1::queue_service_extend_response::Extended { ttl: remaining, remaining };
        let result = |id: &str, outcome| v1::queue_service_extend_response::Result {
            id: id.to_owned(),
            outcome: Some(outcome),
        };
        let answer = v1::QueueServiceExtendResponse {
            results: vec![
                result("a", Outcome::Extended(extended_to)),
                result("b", Outcome::Ended(v1::LeaseOutcome::LeaseLost.into())),
            ],
        };
        let told = extended(vec![key("a"), key("b"), key("c")], Ok(Response::new(answer)), sent);
        assert!(matches!(told[0].1, Kept::Until(moment) if moment == sent + Duration::from_secs(30)));
        assert!(matches!(told[1].1, Kept::Ended(v1::LeaseOutcome::LeaseLost)));
        assert!(matches!(told[2].1, Kept::Failed(_)));
    }
}
