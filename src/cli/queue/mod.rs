//! `majorityd queue`: queues from the command line.
//!
//! Every item that is put has an id, one of its own if none is given, so that a put can be sent to another daemon when one
//! does not answer, and happens once. Lease ids are secrets: only `reserve` prints them, because its reader has to ack.
//!
//! `put` is in `put.rs`, what is done with one lease in `lease.rs`, the looks at a queue and its upkeep in `manage.rs`, and
//! `work`, which runs a command for each item, in `work.rs`.

mod calls;
mod job;
mod lease;
mod link;
mod manage;
mod put;
mod show;
mod work;

use std::time::Duration;

use clap::{Args, Subcommand};
use tonic::{Request, Response, Status};

use super::client::{self, CALL_TIMEOUT, ClientFlags, Daemons, EXIT_TRY_LATER, Failed, QueueClient};
use super::{EXIT_FAILURE, EXIT_OK, Output, printable};

/// The command line of `majorityd queue`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0   done; of `work`: it ended as it was asked to
  1   refused, or there is no such queue or item, or the lease is lost
  64  wrong command line or argument
  69  no daemon answers, no quorum of nodes, or the outcome is unknown
  75  no item is ready; or: try again later
  126 of `work`: the command can't be run
  127 of `work`: there is no such command
  128+n of `work`: it was interrupted by signal n a third time, and has left what it ran to itself")]
pub struct Queue {
    /// What to do.
    #[command(subcommand)]
    command: QueueCommand,

    /// Which daemon.
    #[command(flatten)]
    client: ClientFlags,

    /// How to print
    #[arg(long, value_enum, default_value_t, global = true)]
    output: Output,

    /// The same as --output json
    #[arg(long, conflicts_with = "output", global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// Put items into a queue, and print their ids
    Put(put::Put),
    /// Take items that are ready under a lease, and print them
    ///
    /// Ack them when they are done, or they come again when the lease has run out.
    Reserve(lease::Reserve),
    /// Say that an item is done
    Ack(lease::Named),
    /// Give an item back, to be handed out again
    Nack(lease::Nack),
    /// Start the time of a lease again
    Extend(lease::Extend),
    /// Run a command for each item, until it is told to stop
    ///
    /// COMMAND gets the payload on its standard input, and in its environment MAJORITYD_QUEUE, MAJORITYD_ITEM_ID,
    /// MAJORITYD_ATTEMPT, MAJORITYD_PRIORITY, MAJORITYD_FENCING_TOKEN and each attribute as MAJORITYD_ATTRIBUTE_NAME (in
    /// upper case, with _ for what is no letter or digit). Hand the token to what the work changes. If the command exits
    /// with 0 the item is done; otherwise it is given back and comes again after the queue's back-off.
    ///
    /// An item is handed out at least once, and a command may run twice for one. If the lease of an item is lost or can't
    /// be extended, its command's process group gets SIGTERM and then SIGKILL before the lease runs out; what has
    /// left the group (setsid) escapes that.
    ///
    /// SIGINT, SIGTERM, SIGHUP or SIGQUIT: takes no more items, lets the running commands end, and exits with 0. A second
    /// one kills them, and a third ends this process at once. If no daemon answers, the running commands go on for as long
    /// as their leases last, and the daemons are asked again and again. The commands are not in the
    /// terminal's foreground.
    Work(work::Work),
    /// Show how many items a queue has, and its settings
    Stats(manage::OneQueue),
    /// List the queues
    List(manage::List),
    /// Show an item with its payload
    Item(manage::OneItem),
    /// Change settings of a queue, and leave those that are not given
    Configure(manage::Configure),
    /// List the items that were tried as often as they may be
    Dead(manage::OneQueue),
    /// Make dead items ready again
    Redrive(manage::Redrive),
    /// Remove items for good
    Purge(manage::Purge),
    /// Remove a queue with all its items for good
    Delete(manage::Delete),
}

/// How a command ended, when nothing failed.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Done,
    /// There is none, but there may be later.
    Nothing(String),
    /// It was answered, and not done.
    Refused(String),
    /// Everything has been said.
    Code(u8),
}

impl Queue {
    /// Does it. The exit code.
    pub async fn run(self) -> u8 {
        let mut daemons = match Daemons::new(&self.client) {
            Ok(daemons) => daemons,
            Err(code) => return code,
        };
        let output = if self.json { Output::Json } else { self.output };
        match run(self.command, &mut daemons, output).await {
            Ok(End::Done) => EXIT_OK,
            Ok(End::Code(code)) => code,
            Ok(End::Nothing(what)) => {
                eprintln!("majorityd: {}", printable(&what));
                EXIT_TRY_LATER
            }
            Ok(End::Refused(what)) => {
                eprintln!("majorityd: {}", printable(&what));
                EXIT_FAILURE
            }
            Err(failed) => failed.say(&daemons),
        }
    }
}

async fn run(command: QueueCommand, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
    match command {
        QueueCommand::Put(put) => put.run(daemons, output).await,
        QueueCommand::Reserve(reserve) => reserve.run(daemons, output).await,
        QueueCommand::Ack(lease) => lease.ack(daemons, output).await,
        QueueCommand::Nack(nack) => nack.run(daemons, output).await,
        QueueCommand::Extend(extend) => extend.run(daemons, output).await,
        QueueCommand::Work(work) => work.run(daemons.clone()).await,
        QueueCommand::Stats(queue) => queue.stats(daemons, output).await,
        QueueCommand::List(list) => list.run(daemons, output).await,
        QueueCommand::Item(item) => item.run(daemons, output).await,
        QueueCommand::Configure(configure) => configure.run(daemons, output).await,
        QueueCommand::Dead(queue) => queue.dead(daemons, output).await,
        QueueCommand::Redrive(redrive) => redrive.run(daemons, output).await,
        QueueCommand::Purge(purge) => purge.run(daemons, output).await,
        QueueCommand::Delete(delete) => delete.run(daemons, output).await,
    }
}

/// Asks the daemons of the command line.
async fn ask<M: Clone, A, F>(
    daemons: &mut Daemons,
    message: M,
    call: impl Fn(QueueClient, Request<M>) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    ask_for(daemons, CALL_TIMEOUT, message, call).await
}

/// The same for what may take long.
async fn ask_for<M: Clone, A, F>(
    daemons: &mut Daemons,
    timeout: Duration,
    message: M,
    call: impl Fn(QueueClient, Request<M>) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    client::ask(daemons, Daemons::queue_client, message, timeout, call).await
}

/// An error inside an answer, as one of a call.
fn status_of(error: &tonic_types::pb::Status) -> Status {
    use prost::Message as _;
    Status::with_details(error.code.into(), error.message.clone(), error.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command, EXIT_USAGE};

    fn parse(line: &str) -> Result<Queue, clap::Error> {
        let cli = Cli::try_parse_from(format!("majorityd queue {line}").split(' '))?;
        let Command::Queue(queue) = cli.command else { panic!("queue was asked for") };
        Ok(queue)
    }

    #[test]
    fn what_would_be_a_mistake_is_no_command_line() {
        for good in [
            "put q hello",
            "put q -",
            "put q --file f --id i --priority -5 --delay 1m --attribute k=v=w",
            "put q --lines",
            "reserve q --max 10 --ttl 10s --wait 1m --json",
            "ack q i l",
            "nack q i l --delay 0s --reason why",
            "extend q i l --ttl 1m",
            "stats q --output json",
            "list",
            "list pre",
            "item q i --raw",
            "configure q --max-attempts 3",
            "dead q",
            "redrive q i j",
            "redrive q --all",
            "purge q --yes",
            "purge q --state dead,delayed --state ready --yes",
            "delete q --yes",
            "work q -- sh -c x --json",
            "work q --concurrency 1000 --ttl 10s --drain -- x",
            "work q --once -- x",
            "work q --max-items 3 -- x",
        ] {
            assert!(parse(good).is_ok(), "{good}: {}", parse(good).unwrap_err());
        }
        for bad in [
            "put q",
            "put q hello --file f",
            "put q hello --lines",
            "put q --lines --id i",
            "put q hello --attribute nonsense",
            "put q hello --delay 5",
            "reserve q --max x",
            "ack q i",
            "configure q",
            "redrive q",
            "redrive q i --all",
            "purge q",
            "purge q --state done --yes",
            "delete q",
            "work q",
            "work q --concurrency 0 -- x",
            "work q --concurrency 1001 -- x",
            "work q --once --max-items 3 -- x",
            "work q --max-items 0 -- x",
            "stats q --json --output json",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_inside_an_answer_keeps_its_reason() {
        use tonic::Code;
        use tonic_types::{ErrorDetails, StatusExt as _};
        let details =
            ErrorDetails::with_error_info("QUEUE_FULL", "majorityd", std::collections::HashMap::new());
        let sent = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let inside: tonic_types::pb::Status = prost::Message::decode(sent.details()).unwrap();
        let status = status_of(&inside);
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "full"));
        assert_eq!(client::reason(&status).as_deref(), Some("QUEUE_FULL"));
        assert_ne!(client::exit_code(&status), EXIT_USAGE);
    }
}
