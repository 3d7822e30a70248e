//! `majorityd lock`: holds a lock while a command runs.
//!
//! A `Hold` stream gets the lock and tells early when it is lost. How long the lease is good is counted only from the
//! moments when this process *sent* an `Extend` that was answered: an event of a stream may have been under way for
//! any time. So the lease is extended once before the command starts, and by [`guard`](super::guard) from then on, also
//! when the stream breaks.
//!
//! The stream's policy is `KEEP`: the command outlives a broken connection, so the end of the stream must not hand its
//! lock to somebody else. The lease is released when the command has ended. If this process is killed with SIGKILL, the
//! command goes on without it, and its lease runs out: that is what fencing tokens are for.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use clap::Args;
use futures::future::Either;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use super::client::{
    CALL_TIMEOUT, Client, ClientFlags, Daemons, EXIT_TRY_LATER, exit_code, explain, from_proto, reason,
    request, to_proto,
};
use super::guard::{Countdown, End, Guard, Signals, status_code};
use super::say::{flush, say};
use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, parse_pair};
use crate::proto::v1;
use crate::proto::v1::hold_response::Event;
use crate::runtime::{Moment, Runtime, system};

/// Exit code: the lock was lost and the command was ended (EX_PROTOCOL's number; nothing else here has it).
pub const EXIT_LOST: u8 = 76;
/// Exit code: the command can't be run.
pub(super) const EXIT_NOT_EXECUTABLE: u8 = 126;
/// Exit code: there is no such command.
pub(super) const EXIT_NO_COMMAND: u8 = 127;
/// Pause between two attempts when no daemon answers and there is time left to wait.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often a release is tried before the lease is left to run out.
const RELEASE_ATTEMPTS: usize = 3;

/// The command line of `majorityd lock`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes:
  the command's own, or 128+n if signal n ended it
  64  wrong command line or argument
  69  no daemon answers, or no quorum of nodes
  75  not acquired: somebody else holds the lock, or too many wait
  76  lost while the command ran, so the command was ended
  126 the command can't be run
  127 there is no such command")]
pub struct Lock {
    /// The lock
    pub name: String,

    /// How long others wait after this machine crashed (default: the daemon's)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub ttl: Option<Duration>,

    /// How long to wait in line
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub wait: Duration,

    /// Who holds it; whoever asks with the same owner takes the lock over (default: a unique one)
    #[arg(long)]
    pub owner: Option<String>,

    /// Shown to those who ask who holds the lock; repeatable
    #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub attributes: Vec<(String, String)>,

    /// Say nothing while waiting
    #[arg(long, short)]
    pub quiet: bool,

    /// Which daemon.
    #[command(flatten)]
    pub client: ClientFlags,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// A lock that is held, as far as is known.
struct Held {
    lease: v1::Lease,
    countdown: Countdown,
    stream: Streaming<v1::HoldResponse>,
}

impl Lock {
    /// Acquires, runs, releases.
    pub async fn run(self) -> u8 {
        let code = self.run_unflushed().await;
        flush();
        code
    }

    async fn run_unflushed(self) -> u8 {
        let signals = match Signals::listen() {
            Ok(signals) => signals,
            Err(error) => {
                say(format!("can't listen for signals: {error}"));
                return EXIT_FAILURE;
            }
        };
        let runtime = system::runtime();
        let daemons = match Daemons::new(&self.client) {
            Ok(daemons) => daemons,
            Err(code) => return code,
        };
        let owner = self.owner.clone().unwrap_or_else(|| unique_owner(&runtime));
        Attempt { lock: self, owner, runtime, daemons, signals }.run().await
    }
}

/// Who asks, when nobody was named. Unique, so that a repeat after a broken connection is harmless and nobody else is
/// mistaken for it; readable, so that people see where it runs.
fn unique_owner(runtime: &Runtime) -> String {
    let system = rustix::system::uname();
    let host: String = system.nodename().to_string_lossy().chars().filter(|c| !c.is_control()).collect();
    format!("{host}:{}:{:016x}", std::process::id(), runtime.entropy.next_u64())
}

struct Attempt {
    lock: Lock,
    owner: String,
    runtime: Runtime,
    daemons: Daemons,
    signals: Signals,
}

impl Attempt {
    async fn run(mut self) -> u8 {
        let held = match self.acquire().await {
            Ok(held) => held,
            Err(code) => return code,
        };
        let name = held.lease.name.clone();
        let lease_id = held.lease.lease_id.clone();
        let (code, needless) = self.guard(held).await;
        if needless {
            return code;
        }
        match release(&self.runtime, &mut self.daemons, &name, &lease_id).await {
            Released::Yes | Released::Unknown => code,
            Released::WasLost => {
                say(format!("the lock {name:?} was lost before the command ended"));
                EXIT_LOST
            }
        }
    }

    /// Runs the command. The exit code, and whether there is nothing left to release.
    async fn guard(&mut self, held: Held) -> (u8, bool) {
        let Held { lease, countdown, stream } = held;
        let guard = Guard {
            runtime: &self.runtime,
            daemons: &mut self.daemons,
            signals: &mut self.signals,
            lease,
            countdown,
        };
        match guard.run(&self.lock.command, stream).await {
            Ok(End::Exited(status)) => (status_code(status), false),
            // A lease that was only in danger may be held still: release it all the same.
            Ok(End::Lost { gone }) => (EXIT_LOST, gone),
            Err(error) => {
                say(format!("can't run {:?}: {error}", self.lock.command[0]));
                let missing = error.kind() == io::ErrorKind::NotFound;
                (if missing { EXIT_NO_COMMAND } else { EXIT_NOT_EXECUTABLE }, false)
            }
        }
    }

    /// Waits for the lock, at one daemon after the other if need be. Fails with an exit code, all being said.
    async fn acquire(&mut self) -> Result<Held, u8> {
        let give_up_at = self.runtime.clock.now() + self.lock.wait;
        // One repeat at least: with an owner it does no harm, and it settles an unknown outcome.
        let mut untried = self.lock.client.endpoint.len().max(2);
        loop {
            let status = match self.hold(give_up_at).await? {
                Ok(held) => return Ok(held),
                Err(status) => status,
            };
            untried = untried.saturating_sub(1);
            let now = self.runtime.clock.now();
            if status.code() != Code::Unavailable || (untried == 0 && now >= give_up_at) {
                say(explain(&status, self.daemons.address()));
                return Err(exit_code(&status));
            }
            self.daemons.advance();
            if untried == 0 {
                let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
                self.pause(asked.unwrap_or(RETRY_PAUSE).max(RETRY_PAUSE).min(give_up_at.since(now))).await?;
            }
        }
    }

    async fn pause(&mut self, length: Duration) -> Result<(), u8> {
        let wake = self.runtime.clock.sleep_until(self.runtime.clock.now() + length);
        self.unless_signalled(wake).await
    }

    /// Awaits something; a signal ends the wait with its exit code.
    async fn unless_signalled<T>(&mut self, work: impl Future<Output = T>) -> Result<T, u8> {
        tokio::select! {
            biased;
            signal = self.signals.next() => Err(128 + u8::try_from(signal.as_raw()).unwrap_or(0)),
            done = work => Ok(done),
        }
    }

    /// One stream at one daemon, up to the lease. The inner error may be tried again; the outer one is an exit code.
    async fn hold(&mut self, give_up_at: Moment) -> Result<Result<Held, Status>, u8> {
        let clock = self.runtime.clock.clone();
        let wait = give_up_at.since(clock.now());
        let message = self.message(wait);
        let mut client = self.daemons.client();
        // The daemon ends the wait; this is for one that hangs.
        let limit = clock.now() + wait + CALL_TIMEOUT;
        let opened = self.unless_signalled(before(clock.sleep_until(limit), client.hold(message))).await?;
        let mut stream = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            let event = self.unless_signalled(before(clock.sleep_until(limit), stream.message())).await?;
            let event = match event {
                Ok(Some(response)) => response.event,
                Ok(None) => return Ok(Err(Status::unavailable("the stream ended without an answer"))),
                Err(status) => return Ok(Err(status)),
            };
            match event {
                Some(Event::Waiting(waiting)) => self.say_position(waiting.position),
                Some(Event::TimedOut(contention)) => return Err(self.contended(contention)),
                Some(Event::Acquired(lease)) => return self.confirm(lease, stream).await.map(Ok),
                Some(Event::Lost(_) | Event::Ended(_)) => {
                    return Ok(Err(Status::unavailable("the daemon stopped serving the wait")));
                }
                Some(Event::Extended(_) | Event::Jeopardy(_)) | None => {}
            }
        }
    }

    fn message(&self, wait: Duration) -> v1::HoldRequest {
        v1::HoldRequest {
            name: self.lock.name.clone(),
            owner: Some(self.owner.clone()),
            ttl: self.lock.ttl.map(to_proto),
            wait_timeout: Some(to_proto(wait)),
            hold_limit: None,
            attributes: self.lock.attributes.iter().cloned().collect(),
            disconnect_policy: v1::DisconnectPolicy::Keep.into(),
        }
    }

    fn say_position(&self, position: u32) {
        if !self.lock.quiet {
            say(format!("waiting for the lock {:?}, {position} before", self.lock.name));
        }
    }

    fn contended(&self, contention: v1::Contention) -> u8 {
        let name = &self.lock.name;
        match contention.holder {
            Some(holder) => say(format!(
                "{:?} holds the lock {name:?} (fencing token {}); not acquired",
                holder.owner, holder.fencing_token
            )),
            None => say(format!("somebody in line gets the lock {name:?}; not acquired")),
        }
        EXIT_TRY_LATER
    }

    /// Learns from when on to count: extends until that is answered. Gives up when the lease has run out by any count.
    async fn confirm(&mut self, lease: v1::Lease, stream: Streaming<v1::HoldResponse>) -> Result<Held, u8> {
        let clock = self.runtime.clock.clone();
        let ttl = from_proto(lease.ttl);
        let end = clock.now() + from_proto(lease.remaining);
        let name = lease.name.clone();
        let lease_id = lease.lease_id.clone();
        let mut daemons = self.daemons.clone();
        loop {
            let mut client = daemons.client();
            let extending = extend(&self.runtime, &mut client, &name, &lease_id, ttl);
            let extended = self.signals.unless(extending).await;
            let status = match extended {
                Err(signal) => {
                    release(&self.runtime, &mut daemons, &name, &lease_id).await;
                    return Err(128 + u8::try_from(signal.as_raw()).unwrap_or(0));
                }
                Ok(Ok(deadline)) => {
                    self.daemons = daemons;
                    return Ok(Held { lease, countdown: Countdown { ttl, deadline }, stream });
                }
                Ok(Err(status)) => status,
            };
            let lost = is_lost(&status);
            if lost || clock.now() >= end {
                say(explain(&status, daemons.address()));
                return Err(if lost { EXIT_TRY_LATER } else { EXIT_UNAVAILABLE });
            }
            daemons.advance();
            clock.sleep_until(clock.now() + (ttl / 10).min(RETRY_PAUSE)).await;
        }
    }
}

/// Awaits a call, but no longer than `limit`.
pub(super) async fn before<T>(
    limit: impl Future<Output = ()> + Unpin,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let call = std::pin::pin!(call);
    match futures::future::select(call, limit).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// The lease is not ours any more, says a daemon that knows.
pub(super) fn is_lost(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && reason(status).as_deref() == Some("LEASE_LOST")
}

/// Extends once. Until when the lease is good, counted from when the request was sent.
pub(super) async fn extend(
    runtime: &Runtime,
    client: &mut Client,
    name: &str,
    lease_id: &str,
    ttl: Duration,
) -> Result<Moment, Status> {
    let timeout = (ttl / 4).clamp(Duration::from_millis(250), CALL_TIMEOUT / 2);
    let message = v1::ExtendRequest { name: name.to_owned(), lease_id: lease_id.to_owned(), ttl: None };
    let sent = runtime.clock.now();
    let call = client.extend(request(message, timeout));
    let answer = before(runtime.clock.sleep_until(sent + timeout), call).await?.into_inner();
    let remaining = from_proto(answer.lease.and_then(|lease| lease.remaining));
    Ok(sent + remaining)
}

/// What came of a release.
enum Released {
    /// The lock is free.
    Yes,
    /// It was not held any more.
    WasLost,
    /// Nobody answered; the lease runs out by itself.
    Unknown,
}

async fn release(runtime: &Runtime, daemons: &mut Daemons, name: &str, lease_id: &str) -> Released {
    let message = || v1::ReleaseRequest { name: name.to_owned(), lease_id: lease_id.to_owned() };
    for attempt in 0..RELEASE_ATTEMPTS {
        let mut client = daemons.client();
        let limit = runtime.clock.sleep_until(runtime.clock.now() + CALL_TIMEOUT / 2);
        match before(limit, client.release(request(message(), CALL_TIMEOUT / 2))).await {
            Ok(answer) if answer.get_ref().released => return Released::Yes,
            // An attempt before this one may have done it.
            Ok(_) => return if attempt == 0 { Released::WasLost } else { Released::Yes },
            Err(status) => {
                daemons.advance();
                if attempt + 1 == RELEASE_ATTEMPTS {
                    say(format!(
                        "could not release the lock {name:?}, it runs out by itself: {}",
                        explain(&status, daemons.address())
                    ));
                }
            }
        }
        runtime.clock.sleep_until(runtime.clock.now() + RETRY_PAUSE).await;
    }
    Released::Unknown
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn the_command_stands_behind_two_dashes() {
        let arguments = "majorityd lock a --ttl 10s --wait 1m --attribute k=v=w -- sh -c --x";
        let cli = Cli::try_parse_from(arguments.split(' ')).expect("parses");
        let Command::Lock(lock) = cli.command else { panic!("lock was asked for") };
        assert_eq!(lock.command, ["sh", "-c", "--x"]);
        assert_eq!((lock.ttl, lock.wait), (Some(Duration::from_secs(10)), Duration::from_secs(60)));
        assert_eq!(lock.attributes, [("k".to_owned(), "v=w".to_owned())]);
        assert!(Cli::try_parse_from(["majorityd", "lock", "a"]).is_err());
        assert!(Cli::try_parse_from(["majorityd", "lock", "a", "--ttl", "5", "--", "x"]).is_err());
    }
}
