//! `majorityd kv`: keys from the command line.
//!
//! Each write has a request id of its own, so that it can be sent to another daemon when one does not answer, and happens
//! once.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tonic::{Response, Status};

use super::client::{self, CALL_TIMEOUT, ClientFlags, Daemons, Failed, KvClient, from_proto, to_proto};
use super::{
    EXIT_FAILURE, EXIT_OK, Output, print_json, print_line, printable, put_bytes, read_all, table, text_of,
};
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::set_request::{Content, Precondition};
use crate::proto::v1::watch_request::Target;
use crate::proto::v1::watch_response::Event;
use crate::runtime::system;

/// The command line of `majorityd kv`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  0   done
  1   there is no value, or the write was refused
  64  wrong command line or argument
  69  no daemon answers, no quorum of nodes, or the outcome is unknown
  75  try again later")]
pub struct Kv {
    /// What to do.
    #[command(subcommand)]
    command: KvCommand,

    /// Which daemon.
    #[command(flatten)]
    client: ClientFlags,

    /// How to print
    #[arg(long, value_enum, default_value_t, global = true)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum KvCommand {
    /// Print the value of a key
    Get {
        /// The key
        key: String,
        /// Write the bytes as they are, with nothing after them
        #[arg(long, conflicts_with = "output")]
        raw: bool,
    },
    /// Put a value there
    Set(Set),
    /// Remove a value
    Delete {
        /// The key
        key: String,
        /// Only the value with this version
        #[arg(long)]
        version: Option<u64>,
        /// The lock under which it is written.
        #[command(flatten)]
        fence: FenceFlags,
    },
    /// Add to a number, and print the sum
    Incr {
        /// The key
        key: String,
        /// What to add
        #[arg(default_value_t = 1, allow_hyphen_values = true)]
        delta: i64,
        /// What to count from where there is no value
        #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
        initial: i64,
        /// For how long the number stays from now on; default: as long as before
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        ttl: Option<Duration>,
        /// The lock under which it is written.
        #[command(flatten)]
        fence: FenceFlags,
    },
    /// Start the time of a value again
    Touch {
        /// The key
        key: String,
        /// For how long it stays from now on; default: for good
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        ttl: Option<Duration>,
        /// The lock under which it is written.
        #[command(flatten)]
        fence: FenceFlags,
    },
    /// List the keys that have a value
    List {
        /// Only names that start with this
        #[arg(long, default_value = "")]
        prefix: String,
        /// With the values
        #[arg(long)]
        values: bool,
    },
    /// Print what there is and then every change, until Ctrl-C
    Watch {
        /// The key
        #[arg(required_unless_present = "prefix")]
        key: Option<String>,
        /// All keys whose names start with this, in place of one
        #[arg(long, conflicts_with = "key")]
        prefix: Option<String>,
        /// Of what is there at first, only what has a higher version
        #[arg(long, default_value_t = 0)]
        start_version: u64,
    },
}

#[derive(Debug, Args)]
struct Set {
    /// The key
    key: String,
    /// The value; - for what comes on the standard input, to its last byte
    value: String,
    /// For how long it stays; default: for good
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    ttl: Option<Duration>,
    /// Only if there is no value
    #[arg(long, group = "precondition")]
    absent: bool,
    /// Only if there is a value
    #[arg(long, group = "precondition")]
    present: bool,
    /// Only in place of the value with this version
    #[arg(long, group = "precondition")]
    version: Option<u64>,
    /// The lock under which it is written.
    #[command(flatten)]
    fence: FenceFlags,
}

#[derive(Debug, Args)]
struct FenceFlags {
    /// Refuse the write if the key was written under a higher token of this lock
    ///
    /// Under `majorityd lock NAME -- ...` the lock and its token are in the environment, and need not be given.
    #[arg(long, env = "MAJORITYD_LOCK_NAME", value_name = "NAME")]
    fence_lock: Option<String>,
    /// The fencing token of that lock's holder
    ///
    /// Default: MAJORITYD_FENCING_TOKEN, if MAJORITYD_LOCK_NAME is the lock. (Under `majorityd queue work` the token is
    /// that of an item, and no lock's.)
    #[arg(long, requires = "fence_lock", value_name = "TOKEN")]
    fence_token: Option<u64>,
}

impl FenceFlags {
    /// The fence, if a lock is named; what is wrong with it otherwise.
    fn fence(self) -> Result<Option<v1::Fence>, Failed> {
        let Some(lock) = self.fence_lock else { return Ok(None) };
        // It is the token of the lock that the environment names, and of no other.
        let named = std::env::var("MAJORITYD_LOCK_NAME").is_ok_and(|name| name == lock);
        let from_environment =
            || named.then(|| std::env::var("MAJORITYD_FENCING_TOKEN").ok()?.parse().ok()).flatten();
        match self.fence_token.or_else(from_environment) {
            Some(token) => Ok(Some(v1::Fence { lock, token })),
            None => Err(Failed::Usage(format!(
                "the fencing token of the lock {:?} is needed: --fence-token, or MAJORITYD_FENCING_TOKEN",
                printable(&lock)
            ))),
        }
    }
}

/// How a command ended, when no call failed.
enum End {
    Done,
    /// There is no value.
    Absent(String),
}

impl Kv {
    /// Asks and prints.
    pub async fn run(self) -> u8 {
        let mut daemons = match Daemons::new(&self.client) {
            Ok(daemons) => daemons,
            Err(code) => return code,
        };
        let done = run(self.command, &mut daemons, self.output).await;
        match done {
            Ok(End::Done) => EXIT_OK,
            Ok(End::Absent(key)) => {
                eprintln!("majorityd: {} has no value", printable(&key));
                EXIT_FAILURE
            }
            Err(failed) => failed.say(&daemons),
        }
    }
}

async fn run(command: KvCommand, daemons: &mut Daemons, output: Output) -> Result<End, Failed> {
    match command {
        KvCommand::Get { key, raw } => get(daemons, key, raw, output).await,
        KvCommand::Set(set) => self::set(daemons, set, output).await,
        KvCommand::Delete { key, version, fence } => {
            delete(daemons, key, version, fence.fence()?, output).await
        }
        KvCommand::Incr { key, delta, initial, ttl, fence } => {
            let message = v1::IncrementRequest {
                key,
                delta: Some(delta),
                initial,
                ttl: ttl.map(to_proto),
                request_id: Some(request_id()),
                fence: fence.fence()?,
            };
            increment(daemons, message, output).await
        }
        KvCommand::Touch { key, ttl, fence } => touch(daemons, key, ttl, fence.fence()?, output).await,
        KvCommand::List { prefix, values } => list(daemons, prefix, values, output).await,
        KvCommand::Watch { key, prefix, start_version } => {
            let target = key.map(Target::Key).or(prefix.map(Target::Prefix));
            watch(daemons, v1::WatchRequest { target, start_version }, output).await
        }
    }
}

/// A UUID (version 4) that nobody else draws.
fn request_id() -> String {
    let random = system::runtime().entropy.next_u128();
    let number = random & !(0xf000 << 64) & !(0b11 << 62) | 0x4000 << 64 | 0b10 << 62;
    let digits = format!("{number:032x}");
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

/// Asks the daemons of the command line.
async fn ask<M: Clone, A, F>(
    daemons: &mut Daemons,
    message: M,
    call: impl Fn(KvClient, tonic::Request<M>) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    client::ask(daemons, Daemons::kv_client, message, CALL_TIMEOUT, call).await
}

async fn get(daemons: &mut Daemons, key: String, raw: bool, output: Output) -> Result<End, Failed> {
    let message = v1::GetRequest { key: key.clone() };
    let call = |mut client: KvClient, message| async move { client.get(message).await };
    let Some(found) = ask(daemons, message, call).await?.key_value else { return Ok(End::Absent(key)) };
    match output {
        _ if raw => {
            // A reader that went away is not an error.
            let _ = io::stdout().lock().write_all(&found.value);
        }
        Output::Json => print_json(&as_json(&found, true)),
        Output::Text => print_line(&text_of(&found.value)),
    }
    Ok(End::Done)
}

async fn set(daemons: &mut Daemons, set: Set, output: Output) -> Result<End, Failed> {
    let Set { key, value, ttl, absent, present, version, fence } = set;
    let content = match value.as_str() {
        "-" => match read_all(io::stdin().lock()) {
            Ok(bytes) => Content::Value(bytes.into()),
            Err(error) => {
                return Err(Failed::Usage(format!("the standard input can't be read: {error}")));
            }
        },
        _ => Content::Text(value),
    };
    let precondition = match version {
        Some(version) => Some(Precondition::Version(version)),
        None if absent => Some(Precondition::Absent(true)),
        None if present => Some(Precondition::Present(true)),
        None => None,
    };
    let message = v1::SetRequest {
        key,
        content: Some(content),
        ttl: ttl.map(to_proto),
        precondition,
        return_previous: false,
        request_id: Some(request_id()),
        fence: fence.fence()?,
    };
    let call = |mut client: KvClient, message| async move { client.set(message).await };
    let written = ask(daemons, message, call).await?.key_value.unwrap_or_default();
    match output {
        Output::Json => print_json(&as_json(&written, false)),
        Output::Text => print_line(&format!("version {}", written.version)),
    }
    Ok(End::Done)
}

async fn delete(
    daemons: &mut Daemons,
    key: String,
    version: Option<u64>,
    fence: Option<v1::Fence>,
    output: Output,
) -> Result<End, Failed> {
    let request_id = Some(request_id());
    let message = v1::DeleteRequest { key: key.clone(), version, return_previous: false, request_id, fence };
    let call = |mut client: KvClient, message| async move { client.delete(message).await };
    let done = ask(daemons, message, call).await?;
    match output {
        Output::Json => {
            print_json(&json!({ "key": key, "deleted": done.deleted, "version": done.version }));
            Ok(End::Done)
        }
        Output::Text if done.deleted => {
            print_line(&format!("deleted (version {})", done.version));
            Ok(End::Done)
        }
        Output::Text => Ok(End::Absent(key)),
    }
}

async fn increment(
    daemons: &mut Daemons,
    message: v1::IncrementRequest,
    output: Output,
) -> Result<End, Failed> {
    let key = message.key.clone();
    let call = |mut client: KvClient, message| async move { client.increment(message).await };
    let sum = ask(daemons, message, call).await?;
    match output {
        Output::Json => print_json(&json!({ "key": key, "number": sum.number, "version": sum.version })),
        Output::Text => print_line(&sum.number.to_string()),
    }
    Ok(End::Done)
}

async fn touch(
    daemons: &mut Daemons,
    key: String,
    ttl: Option<Duration>,
    fence: Option<v1::Fence>,
    output: Output,
) -> Result<End, Failed> {
    let (ttl, request_id) = (ttl.map(to_proto), Some(request_id()));
    let message = v1::TouchRequest { key: key.clone(), ttl, request_id, fence };
    let call = |mut client: KvClient, message| async move { client.touch(message).await };
    let done = ask(daemons, message, call).await?;
    match output {
        Output::Json => {
            print_json(&json!({ "key": key, "found": done.found, "version": done.version }));
            Ok(End::Done)
        }
        Output::Text if done.found => {
            print_line(&format!("version {}", done.version));
            Ok(End::Done)
        }
        Output::Text => Ok(End::Absent(key)),
    }
}

async fn list(daemons: &mut Daemons, prefix: String, values: bool, output: Output) -> Result<End, Failed> {
    let mut keys = Vec::new();
    let mut page_token = String::new();
    // Names come in byte order, so this ends; a page that brings the same token again would not.
    loop {
        let message = v1::ListKeysRequest {
            prefix: prefix.clone(),
            page_size: i32::try_from(limits::PAGE_SIZE_MAX).unwrap_or(i32::MAX),
            page_token: page_token.clone(),
            with_values: values,
        };
        let call = |mut client: KvClient, message| async move { client.list_keys(message).await };
        let page = ask(daemons, message, call).await?;
        keys.extend(page.keys);
        if page.next_page_token.is_empty() || page.next_page_token == page_token {
            break;
        }
        page_token = page.next_page_token;
    }
    match output {
        Output::Json => print_json(&keys.iter().map(|key| as_json(key, values)).collect::<Vec<_>>()),
        Output::Text => print_line(&render(&keys, values)),
    }
    Ok(End::Done)
}

fn render(keys: &[v1::KeyValue], values: bool) -> String {
    let row = |key: &v1::KeyValue| {
        let remaining = key.remaining.map(|left| format!("{:.1}s", from_proto(Some(left)).as_secs_f64()));
        let mut row = vec![key.key.clone(), key.version.to_string(), remaining.unwrap_or_else(|| "-".into())];
        row.extend(values.then(|| text_of(&key.value).replace('\n', "\\n")));
        row
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    let titles = ["KEY", "VERSION", "REMAINING", "VALUE"];
    table(&titles[..if values { 4 } else { 3 }], &rows)
}

async fn watch(daemons: &Daemons, message: v1::WatchRequest, output: Output) -> Result<End, Failed> {
    // No deadline: it ends with the command.
    let mut events = daemons.kv_client().watch(message).await?.into_inner();
    while let Some(told) = events.message().await? {
        // What a newer daemon tells is for newer commands.
        let Some(event) = told.event else { continue };
        print_line(&match output {
            Output::Json => event_json(&event).to_string(),
            Output::Text => event_text(&event),
        });
    }
    Ok(End::Done)
}

fn event_text(event: &Event) -> String {
    let missed = |missed: u64| if missed == 0 { String::new() } else { format!(" ({missed} missed)") };
    match event {
        Event::Value(told) => {
            let key = told.key_value.clone().unwrap_or_default();
            let (name, value) = (printable(&key.key), text_of(&key.value));
            format!("{name} = {value} (version {}){}", key.version, missed(told.missed))
        }
        Event::Removed(told) => {
            format!("{} has no value (version {}){}", printable(&told.key), told.version, missed(told.missed))
        }
        Event::Synced(_) => "-- that is what there is; from here on come changes".to_owned(),
    }
}

fn event_json(event: &Event) -> Value {
    match event {
        Event::Value(told) => {
            let value = as_json(&told.key_value.clone().unwrap_or_default(), true);
            json!({ "event": "value", "value": value, "missed": told.missed })
        }
        Event::Removed(told) => {
            json!({ "event": "removed", "key": told.key, "version": told.version, "missed": told.missed })
        }
        Event::Synced(_) => json!({ "event": "synced" }),
    }
}

/// A key for programs: text as `value`, anything else as `value_base64`.
fn as_json(key: &v1::KeyValue, with_value: bool) -> Value {
    let mut object = json!({ "key": key.key, "version": key.version });
    if let Some(left) = key.remaining {
        object["remaining_ms"] = json!(u64::try_from(from_proto(Some(left)).as_millis()).unwrap_or(u64::MAX));
    }
    if with_value {
        put_bytes(&mut object, "value", &key.value);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RequestId;

    /// In a runtime, as the commands are.
    #[tokio::test]
    async fn request_ids_are_uuids_of_version_4_and_differ() {
        let id = request_id();
        assert!(RequestId::parse(&id).is_some(), "{id}");
        assert_eq!(&id[14..15], "4", "{id}");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
        assert_ne!(id, request_id());
    }

    #[test]
    fn values_are_shown_as_text_where_they_are_text() {
        let key = |value: &'static [u8]| v1::KeyValue {
            key: "k".into(),
            value: value.into(),
            version: 7,
            remaining: Some(to_proto(Duration::from_millis(1_500))),
        };
        let expected = json!({ "key": "k", "version": 7, "remaining_ms": 1_500, "value": "ü" });
        assert_eq!(as_json(&key("ü".as_bytes()), true), expected);
        assert_eq!(as_json(&key(b"\xff"), true)["value_base64"], json!("/w=="));
        assert_eq!(text_of(b"\x1b[31m"), "\u{fffd}[31m");
        assert_eq!(text_of(b"\xff\xfe"), "<2 bytes that are no text>");
        let lines = render(&[key(b"a\nb")], true);
        assert_eq!(lines, "KEY  VERSION  REMAINING  VALUE\nk    7        1.5s       a\\nb");
    }

    #[test]
    fn what_a_watch_tells_fits_on_a_line() {
        let removed =
            |missed| Event::Removed(v1::watch_response::Removed { key: "k".into(), version: 9, missed });
        assert_eq!(event_text(&removed(0)), "k has no value (version 9)");
        assert_eq!(event_text(&removed(2)), "k has no value (version 9) (2 missed)");
        let expected = json!({ "event": "removed", "key": "k", "version": 9, "missed": 2 });
        assert_eq!(event_json(&removed(2)), expected);
    }
}
