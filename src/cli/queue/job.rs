//! One item that `queue work` works on: its lease, its command, and what the end of the command says of the item.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{AbortHandle, abortable};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};

use crate::cli::client::from_proto;
use crate::cli::guard::{Countdown, LastResort, Watch, group_of, send};
use crate::proto::v1;
use crate::runtime::{Moment, Runtime};

/// Start of the name of every attribute in a command's environment.
const ATTRIBUTE_PREFIX: &str = "MAJORITYD_ATTRIBUTE_";
/// The longest reason that a nack may give, in bytes.
const REASON_BYTES_MAX: usize = 1_024;

/// Which lease of which item: id and lease id. An order, and not to be printed.
pub(super) type Key = (String, String);

/// An item under a lease.
pub(super) struct Job {
    /// The item as it came. Its payload is gone once it was handed to the command.
    pub(super) item: v1::ReservedItem,
    /// Jobs are numbered as they come.
    pub(super) number: u64,
    /// The number of the stream that it came on.
    pub(super) stream: u64,
    /// The time of its lease.
    pub(super) watch: Watch,
    /// When to extend the lease.
    pub(super) extend_at: Moment,
    /// How far it is.
    pub(super) state: State,
}

/// How far a job is.
pub(super) enum State {
    /// There was no place to run it yet.
    Waiting,
    /// Its command runs.
    Running(Running),
    /// Its command has ended, which the daemons do not know yet.
    Settling(Settling),
}

/// A command that runs.
pub(super) struct Running {
    child: Child,
    last_resort: LastResort,
    input: AbortHandle,
}

/// What the daemons are told about an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ack,
    Nack {
        /// The queue's back-off if there is none.
        delay: Option<Duration>,
        reason: String,
    },
}

/// A verdict on its way.
pub(super) struct Settling {
    pub(super) verdict: Verdict,
    /// It was sent on the stream, which has not answered.
    pub(super) on_stream: bool,
    /// It was sent in a call, which has not been answered.
    pub(super) asked: bool,
    /// Calls that failed.
    pub(super) failures: u32,
    /// When to call.
    pub(super) try_at: Moment,
}

impl Job {
    /// An item that has just come on a stream.
    ///
    /// It may have been under way for some time, and nobody can say how long: so a quarter of its lease is not counted
    /// on, and the lease is extended soon, which is counted from when the call is sent. Until that is answered, an item
    /// that was under way for longer than this quarter may be somebody else's; fencing tokens are for that.
    pub(super) fn new(item: v1::ReservedItem, number: u64, stream: u64, now: Moment) -> Self {
        let ttl = from_proto(item.ttl);
        let remaining = from_proto(item.remaining).saturating_sub(ttl / 4);
        let what = format!("the lease of the item {:?}", item.id);
        let watch = Watch::new(what, Countdown { ttl, deadline: now + remaining });
        Self { item, number, stream, watch, extend_at: now + ttl / 10, state: State::Waiting }
    }

    pub(super) fn key(&self) -> Key {
        (self.item.id.clone(), self.item.lease_id.clone())
    }

    pub(super) fn lease(&self) -> v1::ItemLease {
        v1::ItemLease { id: self.item.id.clone(), lease_id: self.item.lease_id.clone() }
    }

    /// Starts the command, and feeds it the payload.
    pub(super) fn start(&mut self, runtime: &Runtime, queue: &str, command: &[OsString]) -> io::Result<()> {
        let (program, arguments) = command.split_first().expect("the command line asks for a command");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).process_group(0);
        // What this process got from a worker or a lock above it says nothing about this item.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_attribute(name)) {
            command.env_remove(name);
        }
        command.env_remove("MAJORITYD_LOCK_NAME").envs(environment(queue, &self.item));
        let mut child = command.spawn()?;
        let last_resort = LastResort { group: group_of(&child), armed: true };
        let payload = std::mem::take(&mut self.item.payload);
        let (feeding, input) = abortable(feed(child.stdin.take(), payload));
        runtime.spawner.spawn(Box::pin(feeding.map(|_| ())));
        self.state = State::Running(Running { child, last_resort, input });
        Ok(())
    }
}

fn is_attribute(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(ATTRIBUTE_PREFIX)
}

/// Ends when all is written, or nobody reads any more: a command need not read its input.
async fn feed(input: Option<ChildStdin>, payload: impl AsRef<[u8]>) {
    let Some(mut input) = input else { return };
    let _ = input.write_all(payload.as_ref()).await;
}

/// What a command learns of its item, beside the payload; never the lease id.
fn environment(queue: &str, item: &v1::ReservedItem) -> Vec<(String, String)> {
    let attributes = item
        .attributes
        .iter()
        .map(|(name, value)| (format!("{ATTRIBUTE_PREFIX}{}", upper(name)), value.clone()));
    let own = [
        ("MAJORITYD_QUEUE", queue.to_owned()),
        ("MAJORITYD_ITEM_ID", item.id.clone()),
        ("MAJORITYD_ATTEMPT", item.attempt.to_string()),
        ("MAJORITYD_PRIORITY", item.priority.to_string()),
        ("MAJORITYD_FENCING_TOKEN", item.fencing_token.to_string()),
    ];
    own.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(attributes).collect()
}

fn upper(name: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(upper).collect()
}

impl Running {
    /// Its process group.
    pub(super) fn group(&self) -> Pid {
        self.last_resort.group
    }

    /// Whether the command has ended. It is left unreaped, so that its number still means its group.
    pub(super) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::Pid(self.group()), options) {
            Ok(ended) => ended.is_some(),
            Err(error) => error != rustix::io::Errno::INTR,
        }
    }

    /// Of a command that has ended: how. With `kill`, what it left behind in its group is ended too.
    pub(super) fn reap(mut self, kill: bool) -> io::Result<ExitStatus> {
        if kill {
            send(self.group(), Signal::KILL);
        }
        self.last_resort.armed = false;
        self.input.abort();
        self.child.try_wait()?.ok_or_else(|| io::Error::other("it has not ended"))
    }
}

impl Verdict {
    /// What the end of a command says.
    pub(super) fn of(ended: io::Result<ExitStatus>) -> Self {
        match ended {
            Ok(status) if status.success() => Self::Ack,
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Self::failed(&format!("exit status {code}")),
                (None, Some(signal)) => Self::failed(&format!("killed by signal {signal}")),
                (None, None) => Self::failed("it ended in an unknown way"),
            },
            Err(error) => Self::failed(&format!("its end is not known: {error}")),
        }
    }

    /// Again after the queue's back-off.
    pub(super) fn failed(reason: &str) -> Self {
        Self::Nack { delay: None, reason: shortened(reason) }
    }

    /// Again at once, for somebody else.
    pub(super) fn not_ours() -> Self {
        Self::Nack {
            delay: Some(Duration::ZERO),
            reason: "the worker was stopped before it began".to_owned(),
        }
    }
}

fn shortened(reason: &str) -> String {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item() -> v1::ReservedItem {
        let attributes = [("kind", "mail"), ("a-b.c", "x=y"), ("größe", "1")];
        v1::ReservedItem {
            id: "i 1".into(),
            payload: b"payload".as_slice().into(),
            attributes: attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            priority: -3,
            attempt: 2,
            put_time: None,
            lease_id: "0123456789abcdef0123456789abcdef".into(),
            fencing_token: 42,
            ttl: None,
            remaining: None,
        }
    }

    #[test]
    fn a_command_learns_of_its_item_but_not_of_the_lease() {
        let environment = environment("q", &item());
        let pairs: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("MAJORITYD_QUEUE", "q"),
                ("MAJORITYD_ITEM_ID", "i 1"),
                ("MAJORITYD_ATTEMPT", "2"),
                ("MAJORITYD_PRIORITY", "-3"),
                ("MAJORITYD_FENCING_TOKEN", "42"),
                ("MAJORITYD_ATTRIBUTE_A_B_C", "x=y"),
                ("MAJORITYD_ATTRIBUTE_GR__E", "1"),
                ("MAJORITYD_ATTRIBUTE_KIND", "mail"),
            ]
        );
    }

    #[test]
    fn only_an_exit_with_zero_is_an_ack() {
        let of = |raw| Verdict::of(Ok(ExitStatus::from_raw(raw)));
        assert_eq!(of(0), Verdict::Ack);
        assert_eq!(of(3 << 8), Verdict::failed("exit status 3"));
        assert_eq!(of(15), Verdict::failed("killed by signal 15"));
        assert!(matches!(Verdict::of(Err(io::Error::other("x"))), Verdict::Nack { .. }));
    }

    #[test]
    fn a_reason_is_cut_between_two_characters() {
        let Verdict::Nack { reason, .. } = Verdict::failed(&"ü".repeat(1_000)) else { panic!("a nack") };
        assert_eq!(reason, "ü".repeat(512));
        let Verdict::Nack { reason, .. } = Verdict::failed(&format!("x{}", "ü".repeat(1_000))) else {
            panic!("a nack")
        };
        assert_eq!(reason.len(), 1_023);
    }

    #[test]
    fn a_lease_without_a_length_is_over_before_it_begins() {
        let now = Moment::from_start(Duration::from_secs(9));
        let job = Job::new(item(), 0, 0, now);
        assert!(job.watch.is_due(now));
        let lease = |seconds| crate::cli::client::to_proto(Duration::from_secs(seconds));
        let item = v1::ReservedItem { ttl: Some(lease(1)), remaining: Some(lease(1)), ..item() };
        // The shortest that there is: it is extended before it is about to run out.
        let job = Job::new(item, 0, 0, now);
        assert!(!job.watch.is_due(now) && !job.watch.is_due(job.extend_at));
    }
}
