//! `majorityd queue stats`, `list`, `item`, `configure`, `dead`, `redrive`, `purge` and `delete`: how queues are, and their
//! upkeep by operators.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tonic::Status;

use super::show::{
    block, dead_table, item_json, item_text, queue_json, queue_table, queue_text, settings_json,
    settings_rows,
};
use super::{End, ask, ask_for};
use crate::cli::client::{Daemons, Failed, QueueClient, to_proto};
use crate::cli::{Output, print_json, print_line, printable};
use crate::limits;
use crate::proto::v1;

/// Deadline of a call that goes through all items of a queue.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
pub(super) struct OneQueue {
    /// The queue
    queue: String,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only names that start with this
    #[arg(default_value = "")]
    prefix: String,
}

#[derive(Debug, Args)]
pub(super) struct OneItem {
    /// The queue
    queue: String,
    /// The item
    id: String,
    /// Write the payload's bytes as they are, with nothing around them
    #[arg(long, conflicts_with_all = ["output", "json"])]
    raw: bool,
}

#[derive(Debug, Args)]
pub(super) struct Configure {
    /// The queue
    queue: String,
    /// Settings, at least one.
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Settings {
    /// The length of a lease for which none is asked
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    lease_ttl: Option<Duration>,
    /// After so many leases an item that is not acked is dead; 0 for never
    #[arg(long, value_name = "COUNT")]
    max_attempts: Option<u32>,
    /// How long a nack without a delay waits after the first attempt; twice as long after each further one
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    backoff_min: Option<Duration>,
    /// The longest that such a nack waits
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    backoff_max: Option<Duration>,
    /// How many items may be in the queue; 0 for no bound
    #[arg(long, value_name = "COUNT")]
    max_items: Option<u64>,
    /// For how long the ids of items that are done are remembered
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    done_retention: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct Redrive {
    /// The queue
    queue: String,
    /// The items
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// All that are dead
    #[arg(long)]
    all: bool,
}

/// What can be purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    Ready,
    Delayed,
    Leased,
    Dead,
}

#[derive(Debug, Args)]
pub(super) struct Purge {
    /// The queue
    queue: String,
    /// Items in this state; repeatable, or with commas (default: all of them)
    #[arg(long = "state", value_enum, value_delimiter = ',')]
    states: Vec<State>,
    /// It is meant
    #[arg(long, required = true)]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The queue
    queue: String,
    /// It is meant
    #[arg(long, required = true)]
    yes: bool,
}

impl OneQueue {
    pub(super) async fn stats(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let message = v1::GetQueueRequest { queue: self.queue };
        let call = |mut client: QueueClient, message| async move { client.get_queue(message).await };
        let queue = ask(daemons, message, call).await?.queue;
        let queue = queue.ok_or_else(|| Status::internal("the answer has no queue in it"))?;
        match output {
            Output::Json => print_json(&queue_json(&queue)),
            Output::Text => print_line(&queue_text(&queue)),
        }
        Ok(End::Done)
    }

    pub(super) async fn dead(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let mut items = Vec::new();
        let mut page_token = String::new();
        // They come in an order, so this ends; a page that brings the same token again would not.
        loop {
            let message = v1::ListDeadRequest {
                queue: self.queue.clone(),
                page_size: page_size(),
                page_token: page_token.clone(),
            };
            let call = |mut client: QueueClient, message| async move { client.list_dead(message).await };
            let page = ask(daemons, message, call).await?;
            items.extend(page.items);
            if page.next_page_token.is_empty() || page.next_page_token == page_token {
                break;
            }
            page_token = page.next_page_token;
        }
        match output {
            Output::Json => print_json(&items.iter().map(|item| item_json(item, false)).collect::<Vec<_>>()),
            Output::Text => print_line(&dead_table(&items)),
        }
        Ok(End::Done)
    }
}

fn page_size() -> i32 {
    i32::try_from(limits::PAGE_SIZE_MAX).unwrap_or(i32::MAX)
}

impl List {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let mut queues = Vec::new();
        let mut page_token = String::new();
        // Names come in byte order, so this ends; a page that brings the same token again would not.
        loop {
            let message = v1::ListQueuesRequest {
                prefix: self.prefix.clone(),
                page_size: page_size(),
                page_token: page_token.clone(),
            };
            let call = |mut client: QueueClient, message| async move { client.list_queues(message).await };
            let page = ask(daemons, message, call).await?;
            queues.extend(page.queues);
            if page.next_page_token.is_empty() || page.next_page_token == page_token {
                break;
            }
            page_token = page.next_page_token;
        }
        match output {
            Output::Json => print_json(&queues.iter().map(queue_json).collect::<Vec<_>>()),
            Output::Text => print_line(&queue_table(&queues)),
        }
        Ok(End::Done)
    }
}

impl OneItem {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let message = v1::GetItemRequest { queue: self.queue, id: self.id };
        let call = |mut client: QueueClient, message| async move { client.get_item(message).await };
        let item = ask(daemons, message, call).await?.item;
        let item = item.ok_or_else(|| Status::internal("the answer has no item in it"))?;
        match output {
            _ if self.raw => {
                // A reader that went away is not an error.
                let _ = io::stdout().lock().write_all(&item.payload);
            }
            Output::Json => print_json(&item_json(&item, true)),
            Output::Text => print_line(&item_text(&item)),
        }
        Ok(End::Done)
    }
}

impl Configure {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let Settings { lease_ttl, max_attempts, backoff_min, backoff_max, max_items, done_retention } =
            self.settings;
        let message = v1::ConfigureQueueRequest {
            queue: self.queue,
            lease_ttl: lease_ttl.map(to_proto),
            max_attempts,
            backoff_min: backoff_min.map(to_proto),
            backoff_max: backoff_max.map(to_proto),
            max_items,
            done_retention: done_retention.map(to_proto),
        };
        let call = |mut client: QueueClient, message| async move { client.configure_queue(message).await };
        let settings = ask(daemons, message, call).await?.settings.unwrap_or_default();
        match output {
            Output::Json => print_json(&settings_json(&settings)),
            Output::Text => print_line(&block(&settings_rows(&settings))),
        }
        Ok(End::Done)
    }
}

impl Redrive {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        // No ids mean all of them, which the command line asks for by name.
        let batches: Vec<Vec<String>> = match self.all {
            true => vec![Vec::new()],
            false => self.ids.chunks(limits::BATCH_ITEMS_MAX).map(<[String]>::to_vec).collect(),
        };
        let mut redriven = 0;
        for ids in batches {
            let message = v1::RedriveRequest { queue: self.queue.clone(), ids };
            let call = |mut client: QueueClient, message| async move { client.redrive(message).await };
            redriven += ask_for(daemons, SWEEP_TIMEOUT, message, call).await?.redriven;
        }
        say_count(output, "redriven", redriven, "redriven");
        Ok(End::Done)
    }
}

fn say_count(output: Output, name: &str, count: u64, what: &str) {
    match output {
        Output::Json => print_json(&json!({ name: count })),
        Output::Text => print_line(&format!("{count} {what}")),
    }
}

impl State {
    fn proto(self) -> i32 {
        match self {
            Self::Ready => v1::ItemState::Ready.into(),
            Self::Delayed => v1::ItemState::Delayed.into(),
            Self::Leased => v1::ItemState::Leased.into(),
            Self::Dead => v1::ItemState::Dead.into(),
        }
    }
}

impl Purge {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let states = if self.states.is_empty() { State::value_variants() } else { &self.states };
        let states = states.iter().map(|state| state.proto()).collect();
        let message = v1::PurgeRequest { queue: self.queue, states };
        let call = |mut client: QueueClient, message| async move { client.purge(message).await };
        let purged = ask_for(daemons, SWEEP_TIMEOUT, message, call).await?.purged;
        say_count(output, "purged", purged, "removed");
        Ok(End::Done)
    }
}

impl Delete {
    pub(super) async fn run(self, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
        let message = v1::DeleteQueueRequest { queue: self.queue.clone() };
        let call = |mut client: QueueClient, message| async move { client.delete_queue(message).await };
        let items = ask_for(daemons, SWEEP_TIMEOUT, message, call).await?.items;
        match output {
            Output::Json => print_json(&json!({ "queue": self.queue, "items": items })),
            Output::Text => {
                print_line(&format!("deleted {}, which had {items} items", printable(&self.queue)));
            }
        }
        Ok(End::Done)
    }
}
