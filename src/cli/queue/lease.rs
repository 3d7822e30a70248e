//! `majorityd queue reserve`, `ack`, `nack` and `extend`: what is done by hand with one lease.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tonic::Status;

use super::show::{outcome_name, outcome_text, reserved_json, reserved_text};
use super::{End, ask, ask_for, status_of};
use crate::cli::client::{CALL_TIMEOUT, Daemons, Failed, QueueClient, from_proto, to_proto};
use crate::cli::{Output, print_json, print_line};
use crate::proto::v1;
use crate::proto::v1::queue_service_extend_response::result::Outcome as Extended;
use crate::proto::v1::settle_result::Result as Settled;

#[derive(Debug, Args)]
pub(super) struct Reserve {
    /// The queue
    queue: String,
    /// How many at most
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    max: i32,
    /// How long the leases last (default: the queue's)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How long to wait for the first item
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// One lease.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// The queue
    queue: String,
    /// The item
    id: String,
    /// The secret of its lease, as `reserve` printed it
    lease_id: String,
}

#[derive(Debug, Args)]
pub(super) struct Nack {
    /// Which lease.
    #[command(flatten)]
    lease: Named,
    /// For how long nobody gets it (default: the queue's back-off)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
    /// Why, for people
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct Extend {
    /// Which lease.
    #[command(flatten)]
    lease: Named,
    /// How long it lasts from now on (default: as long as before)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
}

impl Reserve {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let message = v1::ReserveRequest {
            queue: self.queue.clone(),
            max_items: Some(self.max),
            lease_ttl: self.ttl.map(to_proto),
            wait_timeout: Some(to_proto(self.wait)),
        };
        let call = |mut client: QueueClient, message| async move { client.reserve(message).await };
        // The daemon ends the wait; the rest is for one that hangs.
        let timeout = self.wait.saturating_add(CALL_TIMEOUT);
        let items = ask_for(daemons, timeout, message, call).await?.items;
        match output {
            Output::Json => print_json(&items.iter().map(reserved_json).collect::<Vec<_>>()),
            Output::Text if items.is_empty() => {}
            Output::Text => print_line(&items.iter().map(reserved_text).collect::<Vec<_>>().join("\n\n")),
        }
        if items.is_empty() {
            return Ok(End::Nothing(format!("no item of {:?} is ready", self.queue)));
        }
        Ok(End::Done)
    }
}

impl Named {
    fn lease(&self) -> v1::ItemLease {
        v1::ItemLease { id: self.id.clone(), lease_id: self.lease_id.clone() }
    }

    pub(super) async fn ack(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let message = v1::AckRequest { queue: self.queue.clone(), leases: vec![self.lease()] };
        let call = |mut client: QueueClient, message| async move { client.ack(message).await };
        let answer = ask(daemons, message, call).await?;
        self.settled(answer.results, output)
    }

    fn settled(&self, results: Vec<v1::SettleResult>, output: Output) -> Result<End, Failed> {
        match results.into_iter().next().and_then(|result| result.result) {
            Some(Settled::Outcome(outcome)) => {
                let outcome = v1::LeaseOutcome::try_from(outcome).unwrap_or_default();
                Ok(self.told(outcome, output))
            }
            Some(Settled::Error(error)) => Err(status_of(&error).into()),
            None => Err(no_result()),
        }
    }

    fn told(&self, outcome: v1::LeaseOutcome, output: Output) -> End {
        if output == Output::Json {
            print_json(&json!({ "id": self.id, "outcome": outcome_name(outcome) }));
        }
        match outcome {
            v1::LeaseOutcome::Ok => End::Done,
            v1::LeaseOutcome::Buried => {
                eprintln!("majorityd: {}", outcome_text(outcome));
                End::Done
            }
            v1::LeaseOutcome::LeaseLost
            | v1::LeaseOutcome::AlreadyDone
            | v1::LeaseOutcome::NoSuchItem
            | v1::LeaseOutcome::Unspecified => End::Refused(outcome_text(outcome).to_owned()),
        }
    }
}

impl Nack {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let item = v1::ItemNack {
            id: self.lease.id.clone(),
            lease_id: self.lease.lease_id.clone(),
            delay: self.delay.map(to_proto),
            reason: self.reason,
        };
        let message = v1::NackRequest { queue: self.lease.queue.clone(), items: vec![item] };
        let call = |mut client: QueueClient, message| async move { client.nack(message).await };
        let answer = ask(daemons, message, call).await?;
        self.lease.settled(answer.results, output)
    }
}

impl Extend {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let message = v1::QueueServiceExtendRequest {
            queue: self.lease.queue.clone(),
            leases: vec![self.lease.lease()],
            ttl: self.ttl.map(to_proto),
        };
        let call = |mut client: QueueClient, message| async move { client.extend(message).await };
        let answer = ask(daemons, message, call).await?;
        match answer.results.into_iter().next().and_then(|result| result.outcome) {
            Some(Extended::Extended(extended)) => {
                let [ttl, remaining] = [extended.ttl, extended.remaining].map(from_proto);
                match output {
                    Output::Json => print_json(&json!({
                        "id": self.lease.id,
                        "ttl_ms": u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
                        "remaining_ms": u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
                    })),
                    Output::Text => print_line(&format!("{:.1}s remaining", remaining.as_secs_f64())),
                }
                Ok(End::Done)
            }
            Some(Extended::Ended(outcome)) => {
                // OK would be nonsense here, and not that the lease goes on.
                let outcome = v1::LeaseOutcome::try_from(outcome).unwrap_or_default();
                match self.lease.told(outcome, output) {
                    End::Done => Err(no_result()),
                    end => Ok(end),
                }
            }
            Some(Extended::Error(error)) => Err(status_of(&error).into()),
            None => Err(no_result()),
        }
    }
}

fn no_result() -> Failed {
    Status::internal("the answer has no result for the item").into()
}
