//! Runs a command under a lease: extends the lease, and ends the command before the lease does.
//!
//! ```text
//!   sent an Extend                    terminate_at     kill_at  deadline
//!   |---------------------------------|----------------|--------|
//!     the next ones, every third        SIGTERM          SIGKILL
//! ```
//! Each answered `Extend` moves all three. The clock goes on while the machine sleeps, and is looked at at least every
//! `LOOK_INTERVAL`, because timers don't.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::client::{Daemons, explain};
use super::lock::{extend, is_lost};
use super::say::say;
use crate::proto::v1;
use crate::proto::v1::hold_response::Event;
use crate::runtime::{Moment, Runtime};

/// Longest time between two looks at the clock.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What a command gets to end by itself once its lock is somebody else's.
const LOST_GRACE: Duration = Duration::from_secs(1);

/// How long a lease is good, and when its command has to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Countdown {
    /// Length of the lease.
    pub(super) ttl: Duration,
    /// Its end, by this process's clock.
    pub(super) deadline: Moment,
}

impl Countdown {
    /// Ask the command to end: a fifth of the lease before its end, at least a second; half of a lease shorter than 2 s.
    fn terminate_at(self) -> Moment {
        self.deadline - (self.ttl / 5).max(Duration::from_secs(1)).min(self.ttl / 2)
    }

    /// End it: 200 ms before, less for leases shorter than 1 s.
    fn kill_at(self) -> Moment {
        self.deadline - Duration::from_millis(200).min(self.ttl / 5)
    }
}

/// The signals that end other programs, caught from the moment of [`Signals::listen`].
pub(super) struct Signals {
    received: mpsc::Receiver<Signal>,
}

impl Signals {
    /// SIGINT, SIGTERM, SIGHUP and SIGQUIT. SIGTSTP (Ctrl-Z) is caught and refused: stopped, this process could not extend.
    pub(super) fn listen() -> io::Result<Self> {
        let (sender, received) = mpsc::channel(16);
        let spawner = crate::runtime::system::runtime().spawner;
        for name in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::TSTP] {
            let mut caught = signal(SignalKind::from_raw(name.as_raw()))?;
            let sender = sender.clone();
            spawner.spawn(Box::pin(async move {
                while caught.recv().await.is_some() {
                    if name == Signal::TSTP {
                        say("not suspended, because the lease could not be extended then");
                    } else if sender.send(name).await.is_err() {
                        return;
                    }
                }
            }));
        }
        Ok(Self { received })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Signal {
        match self.received.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }

    /// Awaits something, unless a signal comes first.
    pub(super) async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Signal> {
        tokio::select! {
            biased;
            signal = self.next() => Err(signal),
            done = work => Ok(done),
        }
    }
}

/// How it ended.
pub(super) enum End {
    /// The command ended while the lock was held.
    Exited(ExitStatus),
    /// The command was ended, because the lock was lost or could not be kept.
    Lost {
        /// The lock is known to be somebody else's or nobody's.
        gone: bool,
    },
}

/// A command under a lease.
pub(super) struct Guard<'a> {
    /// Clock and tasks.
    pub(super) runtime: &'a Runtime,
    /// Where to extend.
    pub(super) daemons: &'a mut Daemons,
    /// What to pass on.
    pub(super) signals: &'a mut Signals,
    /// The lease.
    pub(super) lease: v1::Lease,
    /// Its time.
    pub(super) countdown: Countdown,
}

/// What became of an extension.
enum Kept {
    Until(Moment),
    Failed(Status, String),
}

/// How far the command has been told to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Terminated,
    Killed,
}

/// Kills the group if the guard itself breaks: nobody would end the command in time then.
pub(super) struct LastResort {
    pub(super) group: Pid,
    pub(super) armed: bool,
}

impl Drop for LastResort {
    fn drop(&mut self) {
        if self.armed {
            send(self.group, Signal::KILL);
        }
    }
}

/// What the guard knows while the command runs.
pub(super) struct Watch {
    /// Whose lease it is, for people.
    what: String,
    countdown: Countdown,
    stage: Stage,
    /// When the command must be gone because the lock is somebody else's.
    lost_at: Option<Moment>,
    /// The last extension failed; said once.
    failing: bool,
}

impl Guard<'_> {
    /// Starts the command and stays until it has ended. Fails if it can't be started.
    pub(super) async fn run(
        self,
        command: &[OsString],
        stream: Streaming<v1::HoldResponse>,
    ) -> io::Result<End> {
        let mut child = self.start(command)?;
        let group = group_of(&child);
        let mut last_resort = LastResort { group, armed: true };
        let mut exited = tokio::task::spawn_blocking(move || wait_unreaped(group));
        let mut kept = self.keep();
        let mut stream = Some(stream);
        let mut watch = Watch::new("the lock".to_owned(), self.countdown);
        loop {
            let now = self.runtime.clock.now();
            watch.enforce(now, group);
            let look = self.runtime.clock.sleep_until(watch.next_look(now));
            tokio::select! {
                biased;
                _ = &mut exited => break,
                signal = self.signals.next() => send(group, signal),
                Some(outcome) = kept.recv() => watch.on_kept(outcome, self.runtime.clock.now()),
                event = next_event(&mut stream) => {
                    if !watch.on_event(event, self.runtime.clock.now()) {
                        stream = None;
                    }
                }
                () = look => {}
            }
        }
        last_resort.armed = false;
        let lost = watch.is_over();
        if lost {
            // The command has ended, but is not reaped yet, so its number still means its group.
            send(group, Signal::KILL);
        }
        let status = child.wait().await?;
        if lost {
            return Ok(End::Lost { gone: watch.lost_at.is_some() });
        }
        Ok(End::Exited(status))
    }

    fn start(&self, command: &[OsString]) -> io::Result<Child> {
        let (program, arguments) = command.split_first().expect("the command line asks for a command");
        Command::new(program)
            .args(arguments)
            .env("MAJORITYD_LOCK_NAME", &self.lease.name)
            .env("MAJORITYD_FENCING_TOKEN", self.lease.fencing_token.to_string())
            .process_group(0)
            .spawn()
    }

    /// Extends in the background, every third of the lease; sooner after a failure, and at the next daemon. Ends when the
    /// receiver is dropped, or once it can say that the lease is lost.
    fn keep(&self) -> mpsc::Receiver<Kept> {
        let (sender, receiver) = mpsc::channel(4);
        let runtime = self.runtime.clone();
        let mut daemons = self.daemons.clone();
        let v1::Lease { name, lease_id, .. } = self.lease.clone();
        let ttl = self.countdown.ttl;
        self.runtime.spawner.spawn(Box::pin(async move {
            let mut pause = ttl / 3;
            let mut client = daemons.client();
            loop {
                let wake = runtime.clock.sleep_until(runtime.clock.now() + pause);
                tokio::select! {
                    () = sender.closed() => return,
                    () = wake => {}
                }
                let outcome = match extend(&runtime, &mut client, &name, &lease_id, ttl).await {
                    Ok(deadline) => {
                        pause = ttl / 3;
                        Kept::Until(deadline)
                    }
                    Err(status) => {
                        let address = daemons.address().to_owned();
                        daemons.advance();
                        client = daemons.client();
                        pause = (ttl / 20).clamp(Duration::from_millis(50), Duration::from_secs(1));
                        Kept::Failed(status, address)
                    }
                };
                let last = matches!(&outcome, Kept::Failed(status, _) if is_lost(status));
                if sender.send(outcome).await.is_err() || last {
                    return;
                }
            }
        }));
        receiver
    }
}

impl Watch {
    /// Over a command that was just started.
    pub(super) fn new(what: String, countdown: Countdown) -> Self {
        Self { what, countdown, stage: Stage::Running, lost_at: None, failing: false }
    }

    /// The lease is lost, or the command was told to end before it would be.
    pub(super) fn is_over(&self) -> bool {
        self.stage > Stage::Running || self.lost_at.is_some()
    }

    /// Until when the lease is good, as far as is known.
    pub(super) fn deadline(&self) -> Moment {
        self.countdown.deadline
    }

    /// Nothing may be started any more, or what was started has to end.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.due(now) > Stage::Running
    }

    /// The length of the lease.
    pub(super) fn ttl(&self) -> Duration {
        self.countdown.ttl
    }

    /// The lease is somebody else's or nobody's.
    pub(super) fn lose(&mut self, now: Moment) {
        self.lost_at.get_or_insert(now);
    }

    /// The lease was extended. An answer that was overtaken takes nothing back.
    pub(super) fn extend(&mut self, deadline: Moment) {
        self.countdown.deadline = self.countdown.deadline.max(deadline);
    }

    /// Tells the command what is due by now.
    pub(super) fn enforce(&mut self, now: Moment, group: Pid) {
        let due = self.due(now);
        if due <= self.stage {
            return;
        }
        self.stage = due;
        match due {
            Stage::Running => {}
            Stage::Terminated => {
                send(group, Signal::TERM);
                // What is stopped gets no SIGTERM until it goes on.
                send(group, Signal::CONT);
                say(format!("{} is lost or about to run out: ending the command", self.what));
            }
            Stage::Killed => {
                send(group, Signal::KILL);
                say(format!("{} is lost or about to run out: killing the command", self.what));
            }
        }
    }

    /// When SIGTERM and SIGKILL are due.
    fn ends(&self) -> (Moment, Moment) {
        let kill_at = self.countdown.kill_at();
        match self.lost_at {
            Some(lost_at) => (lost_at, kill_at.min(lost_at + LOST_GRACE)),
            None => (self.countdown.terminate_at(), kill_at),
        }
    }

    /// When something may be due that was not `now`, or a little later.
    pub(super) fn next_look(&self, now: Moment) -> Moment {
        let (terminate_at, kill_at) = self.ends();
        let ahead = [terminate_at, kill_at].into_iter().filter(|&end| end > now);
        ahead.fold(now + LOOK_INTERVAL, Moment::min)
    }

    fn due(&self, now: Moment) -> Stage {
        let (terminate_at, kill_at) = self.ends();
        if now >= kill_at {
            Stage::Killed
        } else if now >= terminate_at {
            Stage::Terminated
        } else {
            Stage::Running
        }
    }

    fn on_kept(&mut self, outcome: Kept, now: Moment) {
        match outcome {
            Kept::Until(deadline) => {
                self.extend(deadline);
                if std::mem::take(&mut self.failing) {
                    say("the lease is extended again");
                }
            }
            Kept::Failed(status, address) if is_lost(&status) => {
                say(explain(&status, &address));
                self.lose(now);
            }
            Kept::Failed(status, address) => {
                if !std::mem::replace(&mut self.failing, true) {
                    let left = humantime::format_duration(round(self.countdown.deadline.since(now)));
                    say(format!("can't extend, {left} left: {}", explain(&status, &address)));
                }
            }
        }
    }

    /// Judges an event of the stream; false after the last one. What the stream says of time is not counted on, and an
    /// end that is not a loss leaves the lease to the extensions.
    fn on_event(&mut self, event: Result<Option<Event>, Status>, now: Moment) -> bool {
        match event {
            Ok(Some(Event::Lost(lost))) => {
                match lost.reason() {
                    v1::LostReason::Replaced => say("somebody else has taken the lock over"),
                    v1::LostReason::Forced => say("an operator has released the lock"),
                    // That daemon could not extend. Another one may, until the time is up.
                    v1::LostReason::Expired | v1::LostReason::Unspecified => return false,
                }
                self.lose(now);
                false
            }
            Ok(Some(Event::Ended(_))) | Ok(None) | Err(_) => false,
            Ok(Some(
                Event::Waiting(_)
                | Event::TimedOut(_)
                | Event::Acquired(_)
                | Event::Extended(_)
                | Event::Jeopardy(_),
            )) => true,
        }
    }
}

fn round(length: Duration) -> Duration {
    Duration::from_millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX) / 100 * 100)
}

/// The next event that has a meaning here; `None` at the end of the stream.
async fn next_event(stream: &mut Option<Streaming<v1::HoldResponse>>) -> Result<Option<Event>, Status> {
    let Some(stream) = stream else { return std::future::pending().await };
    loop {
        match stream.message().await? {
            None => return Ok(None),
            Some(v1::HoldResponse { event: Some(event) }) => return Ok(Some(event)),
            Some(v1::HoldResponse { event: None }) => {}
        }
    }
}

/// The group of a child that was started with `process_group(0)`: its own number.
pub(super) fn group_of(child: &Child) -> Pid {
    let number = child.id().and_then(|id| i32::try_from(id).ok());
    number.and_then(Pid::from_raw).expect("a child that was not waited for has a number above zero")
}

/// Blocks until the process has ended, and leaves it unreaped, so that its number can't be given to another.
fn wait_unreaped(process: Pid) {
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(WaitId::Pid(process), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {}
}

pub(super) fn send(group: Pid, signal: Signal) {
    match rustix::process::kill_process_group(group, signal) {
        // Nobody is left, or only what has changed its user; nothing can be done about either.
        Ok(()) | Err(_) => {}
    }
}

/// The exit code of a command, as a shell has it.
pub(super) fn status_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(super::EXIT_FAILURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn watch(ttl_ms: u64) -> Watch {
        let countdown = Countdown { ttl: ms(ttl_ms), deadline: Moment::from_start(ms(100_000)) };
        Watch::new("the lock".to_owned(), countdown)
    }

    #[test]
    fn the_command_has_to_go_before_the_lease_does() {
        //   ttl      SIGTERM and SIGKILL, before the end
        for (ttl, terminate, kill) in [
            (300_000, 60_000, 200),
            (30_000, 6_000, 200),
            (5_000, 1_000, 200),
            (2_000, 1_000, 200),
            (1_000, 500, 200),
            (500, 250, 100),
        ] {
            let countdown = watch(ttl).countdown;
            assert_eq!(countdown.deadline.since(countdown.terminate_at()), ms(terminate), "{ttl}");
            assert_eq!(countdown.deadline.since(countdown.kill_at()), ms(kill), "{ttl}");
        }
    }

    #[test]
    fn what_is_due_follows_the_clock_and_the_extensions() {
        let at = |count| Moment::from_start(ms(count));
        let mut watch = watch(30_000);
        assert!(watch.due(at(93_999)) == Stage::Running);
        assert!(watch.due(at(94_000)) == Stage::Terminated);
        assert!(watch.due(at(99_800)) == Stage::Killed);
        watch.on_kept(Kept::Until(at(110_000)), at(94_000));
        assert!(watch.due(at(99_800)) == Stage::Running);
        // Overtaken.
        watch.on_kept(Kept::Until(at(105_000)), at(94_000));
        assert!(watch.due(at(99_800)) == Stage::Running);
    }

    #[test]
    fn a_lost_lock_leaves_a_second_at_most() {
        let at = |count| Moment::from_start(ms(count));
        let mut watch = watch(30_000);
        let lost = v1::hold_response::Lost { reason: v1::LostReason::Forced.into() };
        assert!(!watch.on_event(Ok(Some(Event::Lost(lost))), at(80_000)));
        assert!(watch.due(at(80_000)) == Stage::Terminated);
        assert!(watch.due(at(81_000)) == Stage::Killed);
    }

    #[test]
    fn a_broken_stream_alone_costs_nothing() {
        let mut watch = watch(30_000);
        let now = Moment::from_start(ms(80_000));
        let expired = v1::hold_response::Lost { reason: v1::LostReason::Expired.into() };
        assert!(!watch.on_event(Err(Status::unavailable("gone")), now));
        assert!(!watch.on_event(Ok(Some(Event::Lost(expired))), now));
        assert!(!watch.on_event(Ok(None), now));
        assert!(watch.due(now) == Stage::Running);
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(status_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(status_code(ExitStatus::from_raw(15)), 143);
    }
}
