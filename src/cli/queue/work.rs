//! `majorityd queue work`: runs a command for each item of a queue.
//!
//! ```text
//!   the stream  --item-->  Waiting --a place is free--> Running --the command has ended--> Settling  --settled-->  gone
//!                             |                            |                                  |
//!                             +--- lost, or about to be ---+-- SIGTERM, SIGKILL --> gone      +-- no answer: gone,
//!                                                                                                 it comes again
//! ```
//! One task does all of it: it waits for the stream, the answers to calls, signals and ends of commands, and looks at the
//! clock every [`LOOK_INTERVAL`].
//!
//! The daemon extends the leases of what is in flight on the stream, but does not say when it last did. So this process
//! extends them too, by calls, and counts how long they are good from when it *sent* a call that was answered, as
//! `majorityd lock` does: a command has ended before its lease has, whatever becomes of stream and daemon. The price is a
//! call every third of a lease for all that runs; what is done within a tenth of its lease costs none.
//!
//! When the stream breaks, commands go on for as long as calls to any of the daemons extend their leases, and what they say
//! is told by calls. What comes on a new stream while older commands still run waits for a place, under its lease.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::time::Duration;

use clap::Args;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::End;
use super::calls::{Calls, Kept, Told};
use super::job::{Job, Key, Settling, State, Verdict};
use super::link::{Backoff, Link, News, pause_after};
use super::show::outcome_text;
use crate::cli::client::{CALL_TIMEOUT, Daemons, Failed, exit_code, explain, to_proto};
use crate::cli::guard::{LOOK_INTERVAL, Signals, send};
use crate::cli::lock::{EXIT_NO_COMMAND, EXIT_NOT_EXECUTABLE};
use crate::cli::say::{flush, say};
use crate::cli::{EXIT_FAILURE, EXIT_OK};
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::consume_response::{Event, Settled, settled};
use crate::runtime::{Moment, Runtime, system};

/// Pause between two looks whether a queue is drained. It is, when two in a row find nothing ready: counts are near, and
/// not exact, while things change.
const DRAIN_INTERVAL: Duration = Duration::from_millis(500);
/// How long a daemon has to end a stream that was closed: the end waits so long for items that were under way, and so does
/// what is given back by calls: before the daemon knows that no more is wanted, it may come on the stream again.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// How often a verdict is told at least before it is given up because its lease has run out.
const SETTLE_ATTEMPTS: u32 = 3;

#[derive(Debug, Args)]
pub(super) struct Work {
    /// The queue
    queue: String,
    /// How many commands run at a time
    #[arg(
        long,
        default_value_t = 1,
        value_name = "COUNT",
        value_parser = clap::value_parser!(i32).range(1..=limits::BATCH_ITEMS_MAX as i64)
    )]
    concurrency: i32,
    /// How long an item is kept from others after this machine crashed (default: the queue's)
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// End when no item is ready; those that are delayed or that others have are not waited for
    #[arg(long)]
    drain: bool,
    /// End after one item; the same as --max-items 1
    #[arg(long, conflicts_with = "max_items")]
    once: bool,
    /// End after so many items; one that comes too many is given back, which counts as an attempt
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    max_items: Option<u64>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Why no more items are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// There are none. What is still under way is run.
    Drained,
    /// As many as were asked for. What is still under way is given back.
    Enough,
    /// By a signal, or because it can't go on. What waits is given back.
    Ended,
}

struct Worker {
    work: Work,
    runtime: Runtime,
    signals: Signals,
    ends: tokio::signal::unix::Signal,
    /// Where the stream is, or was.
    daemons: Daemons,
    calls: Calls,
    link: Link,
    backoff: Backoff,
    /// Attempts left to open the first stream; none once there was one: from then on they are not counted.
    untried: Option<usize>,
    /// The stream is broken, which was said.
    down: bool,
    /// Extending fails, which was said.
    failing: bool,
    jobs: BTreeMap<Key, Job>,
    /// Items that were taken; numbers the jobs.
    taken: u64,
    /// Streams that were opened; numbers them.
    streams: u64,
    stop: Option<Stop>,
    /// When the stream was closed, if it was.
    closed_at: Moment,
    /// Signals that came.
    signalled: u32,
    /// When something happened last.
    touched: Moment,
    /// Looks in a row that found nothing ready, and when to look next.
    empty_looks: u32,
    count_at: Moment,
    code: u8,
}

impl Work {
    pub(super) async fn run(self, daemons: Daemons) -> Result<End, Failed> {
        let listened = Signals::listen().and_then(|signals| Ok((signals, signal(SignalKind::child())?)));
        let code = match listened {
            Ok((signals, ends)) => Worker::new(self, daemons, signals, ends).run().await,
            Err(error) => {
                say(format!("can't listen for signals: {error}"));
                EXIT_FAILURE
            }
        };
        flush();
        Ok(End::Code(code))
    }

    /// How many items end it.
    fn most(&self) -> Option<u64> {
        if self.once { Some(1) } else { self.max_items }
    }

    fn places(&self) -> usize {
        usize::try_from(self.concurrency).unwrap_or(1)
    }
}

impl Worker {
    fn new(work: Work, daemons: Daemons, signals: Signals, ends: tokio::signal::unix::Signal) -> Self {
        let runtime = system::runtime();
        let now = runtime.clock.now();
        Self {
            calls: Calls::new(work.queue.clone(), runtime.clone(), daemons.clone()),
            link: Link::Down { open_at: now },
            backoff: Backoff::default(),
            // One repeat at least, as everywhere.
            untried: Some(daemons.count().max(2)),
            down: false,
            failing: false,
            jobs: BTreeMap::new(),
            taken: 0,
            streams: 0,
            stop: None,
            closed_at: now,
            signalled: 0,
            touched: now,
            empty_looks: 0,
            count_at: now + DRAIN_INTERVAL,
            code: EXIT_OK,
            work,
            runtime,
            signals,
            ends,
            daemons,
        }
    }

    /// Until it is stopped and nothing is left. The exit code.
    async fn run(mut self) -> u8 {
        loop {
            let now = self.runtime.clock.now();
            self.enforce(now);
            self.start_waiting(now);
            self.extend_due(now);
            self.settle_due(now);
            self.count_if_due(now);
            if self.is_over(now) {
                return self.code;
            }
            let look = self.runtime.clock.sleep_until(now + LOOK_INTERVAL);
            tokio::select! {
                biased;
                signal = self.signals.next() => {
                    if let Some(code) = self.on_signal(signal) {
                        return code;
                    }
                }
                _ = self.ends.recv() => self.reap(),
                told = self.calls.next() => self.on_told(told),
                news = self.link.next(&self.runtime) => self.on_news(news),
                // Signals that come close together are one: so ends of commands are looked for, too.
                () = look => self.reap(),
            }
        }
    }

    fn is_over(&self, now: Moment) -> bool {
        let quiet = self.link.is_gone() || now >= self.touched + CLOSE_GRACE;
        self.stop.is_some() && self.jobs.is_empty() && quiet
    }

    /// Takes no more items.
    fn stop(&mut self, why: Stop) {
        if self.stop != Some(Stop::Ended) {
            self.stop = Some(why);
        }
        let now = self.runtime.clock.now();
        if !self.link.is_closing() {
            self.link.close();
            self.closed_at = now;
        }
        self.touched = now;
        // What was sent on the stream may be answered still; nothing more can be sent there.
        if why == Stop::Ended {
            for key in self.keys_where(|job| matches!(job.state, State::Waiting)) {
                self.settle(&key, Verdict::not_ours());
            }
        }
    }

    /// It can't go on.
    fn fail(&mut self, code: u8) {
        self.code = code;
        self.stop(Stop::Ended);
    }

    fn on_signal(&mut self, signal: Signal) -> Option<u8> {
        self.signalled += 1;
        let running = self.keys_where(|job| matches!(job.state, State::Running(_))).len();
        match self.signalled {
            1 => {
                say(match running {
                    0 => "taking no more items".to_owned(),
                    _ => format!("taking no more items; waiting for commands that run: {running}"),
                });
                self.stop(Stop::Ended);
                None
            }
            2 => {
                say(format!("killing commands that run: {running}"));
                for job in self.jobs.values() {
                    if let State::Running(running) = &job.state {
                        send(running.group(), Signal::KILL);
                    }
                }
                None
            }
            _ => Some(128 + u8::try_from(signal.as_raw()).unwrap_or(0)),
        }
    }

    fn keys_where(&self, which: impl Fn(&Job) -> bool) -> Vec<Key> {
        self.jobs.iter().filter(|(_, job)| which(job)).map(|(key, _)| key.clone()).collect()
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Commands

    /// Ends commands whose leases are lost or about to be, and forgets items that were not begun before that.
    fn enforce(&mut self, now: Moment) {
        self.jobs.retain(|_, job| match &job.state {
            State::Running(running) => {
                job.watch.enforce(now, running.group());
                true
            }
            State::Waiting if job.watch.is_due(now) => {
                say(format!("{:?} was not begun before its lease ended: it comes again", job.item.id));
                false
            }
            State::Waiting | State::Settling(_) => true,
        });
    }

    fn start_waiting(&mut self, now: Moment) {
        let running = self.keys_where(|job| matches!(job.state, State::Running(_))).len();
        let mut waiting = self.keys_where(|job| matches!(job.state, State::Waiting));
        waiting.sort_by_key(|key| self.jobs[key].number);
        for key in waiting.into_iter().take(self.work.places().saturating_sub(running)) {
            // One that can't be started may have ended it for all.
            let waits = |job: &&mut Job| matches!(job.state, State::Waiting);
            let Some(job) = self.jobs.get_mut(&key).filter(waits) else { continue };
            if let Err(error) = job.start(&self.runtime, &self.work.queue, &self.work.command) {
                self.cannot_start(&key, &error);
            }
            self.touched = now;
        }
    }

    fn cannot_start(&mut self, key: &Key, error: &io::Error) {
        let program = &self.work.command[0];
        say(format!("can't run {program:?}: {error}"));
        // Other items would fare no better, and would soon be dead. So no more are taken before this one is given back.
        match error.kind() {
            io::ErrorKind::NotFound => self.fail(EXIT_NO_COMMAND),
            io::ErrorKind::PermissionDenied => self.fail(EXIT_NOT_EXECUTABLE),
            _ => {}
        }
        self.settle(key, Verdict::failed(&format!("can't run the command: {error}")));
    }

    /// Looks which commands have ended.
    fn reap(&mut self) {
        for key in self.keys_where(|job| matches!(&job.state, State::Running(running) if running.has_ended()))
        {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            let State::Running(running) = std::mem::replace(&mut job.state, State::Waiting) else { continue };
            let over = job.watch.is_over();
            let verdict = Verdict::of(running.reap(over));
            self.touched = self.runtime.clock.now();
            if over {
                say(format!("the command for {:?} was ended with its lease: the item comes again", key.0));
                self.jobs.remove(&key);
                continue;
            }
            if let Verdict::Nack { reason, .. } = &verdict {
                say(format!("the command for {:?} failed: {reason}", key.0));
            }
            self.settle(&key, verdict);
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Verdicts

    /// Tells a verdict on the stream that the item came on, or has it told by a call.
    fn settle(&mut self, key: &Key, verdict: Verdict) {
        let now = self.runtime.clock.now();
        let Some(job) = self.jobs.get_mut(key) else { return };
        let on_stream = job.stream == self.streams && self.link.send(job, &verdict);
        job.state = State::Settling(Settling { verdict, on_stream, asked: false, failures: 0, try_at: now });
    }

    fn settle_due(&mut self, now: Moment) {
        for job in self.jobs.values_mut() {
            if let State::Settling(settling) = &mut job.state {
                // A stream that does not answer must not keep this process.
                settling.on_stream &= now < settling.try_at + CALL_TIMEOUT;
            }
        }
        let closing = self.link.is_closing() && now < self.closed_at + CLOSE_GRACE;
        // What is acked comes no more, and its lease may not last that long.
        let waits = |settling: &Settling| closing && settling.verdict != Verdict::Ack;
        let due = |settling: &Settling| {
            !settling.on_stream && !settling.asked && !waits(settling) && settling.try_at <= now
        };
        let due = |job: &Job| matches!(&job.state, State::Settling(settling) if due(settling));
        let keys = self.keys_where(due);
        if keys.is_empty() || !self.calls.may_settle() {
            return;
        }
        let keys = &keys[..keys.len().min(limits::BATCH_ITEMS_MAX)];
        self.calls.settle(keys.iter().filter_map(|key| match self.jobs.get(key) {
            Some(job @ Job { state: State::Settling(settling), .. }) => Some((job, &settling.verdict)),
            _ => None,
        }));
        for key in keys {
            if let Some(settling) = self.settling(key) {
                settling.asked = true;
            }
        }
    }

    fn settling(&mut self, key: &Key) -> Option<&mut Settling> {
        match &mut self.jobs.get_mut(key)?.state {
            State::Settling(settling) => Some(settling),
            State::Waiting | State::Running(_) => None,
        }
    }

    fn on_outcome(&mut self, key: &Key, result: Result<v1::LeaseOutcome, Status>) {
        match result {
            Ok(outcome) => self.settled(key, outcome),
            Err(status) => self.not_settled(key, &status),
        }
    }

    fn settled(&mut self, key: &Key, outcome: v1::LeaseOutcome) {
        let Some(settling) = self.settling(key) else { return };
        let acked = settling.verdict == Verdict::Ack;
        match outcome {
            v1::LeaseOutcome::Ok => {}
            // By an earlier attempt of ours, whose answer was lost.
            v1::LeaseOutcome::AlreadyDone if acked => {}
            v1::LeaseOutcome::LeaseLost if acked => {
                say(format!(
                    "{:?} is done, but its lease was lost before it was acked: it comes again",
                    key.0
                ));
            }
            v1::LeaseOutcome::Buried
            | v1::LeaseOutcome::LeaseLost
            | v1::LeaseOutcome::AlreadyDone
            | v1::LeaseOutcome::NoSuchItem
            | v1::LeaseOutcome::Unspecified => say(format!("{:?}: {}", key.0, outcome_text(outcome))),
        }
        self.jobs.remove(key);
    }

    /// Tries again, for as long as the lease lasts.
    fn not_settled(&mut self, key: &Key, status: &Status) {
        let now = self.runtime.clock.now();
        let entropy = self.runtime.entropy.clone();
        let Some(job) = self.jobs.get_mut(key) else { return };
        let over = now >= job.watch.deadline();
        let State::Settling(settling) = &mut job.state else { return };
        settling.failures = settling.failures.saturating_add(1);
        settling.try_at = now + pause_after(settling.failures, &*entropy);
        settling.asked = false;
        settling.on_stream = false;
        if may_be_repeated(status) && !(over && settling.failures >= SETTLE_ATTEMPTS) {
            return;
        }
        let what = match settling.verdict {
            Verdict::Ack => "is done but could not be acked",
            Verdict::Nack { .. } => "could not be given back",
        };
        say(format!("{:?} {what}: it comes again. {}", key.0, self.calls.explain(status)));
        self.jobs.remove(key);
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Leases

    /// Extends what is due, and with it what is soon.
    fn extend_due(&mut self, now: Moment) {
        let held =
            |job: &Job| matches!(job.state, State::Waiting | State::Running(_)) && !job.watch.is_over();
        let due = self.jobs.values().any(|job| held(job) && job.extend_at <= now);
        if !due || !self.calls.may_extend() {
            return;
        }
        let soon = |job: &&Job| held(job) && job.extend_at <= now + job.watch.ttl() / 10;
        let jobs: Vec<&Job> = self.jobs.values().filter(soon).take(limits::BATCH_ITEMS_MAX).collect();
        self.calls.extend(&jobs);
    }

    fn on_extended(&mut self, key: &Key, kept: Kept) {
        let now = self.runtime.clock.now();
        let Some(job) = self.jobs.get_mut(key) else { return };
        let ttl = job.watch.ttl();
        match kept {
            Kept::Until(deadline) => {
                job.watch.extend(deadline);
                job.extend_at = now + ttl / 3;
                if std::mem::take(&mut self.failing) {
                    say("leases are extended again");
                }
            }
            Kept::Ended(outcome) => {
                if matches!(job.state, State::Waiting | State::Running(_)) {
                    say(format!("{:?}: {}", key.0, outcome_text(outcome)));
                }
                self.lose(key);
            }
            Kept::Failed(status) => {
                job.extend_at = now + (ttl / 20).clamp(Duration::from_millis(50), Duration::from_secs(1));
                if !std::mem::replace(&mut self.failing, true) {
                    say(format!("can't extend leases: {}", self.calls.explain(&status)));
                }
            }
        }
    }

    /// The item is somebody else's, or has to be taken for it.
    fn lose(&mut self, key: &Key) {
        let now = self.runtime.clock.now();
        let Some(job) = self.jobs.get_mut(key) else { return };
        match &mut job.state {
            State::Waiting | State::Running(_) => job.watch.lose(now),
            // The verdict was told by a call, or crossed this; another call says what became of it.
            State::Settling(settling) => settling.on_stream = false,
        }
    }

    fn on_told(&mut self, told: Told) {
        match told {
            Told::Extended(results) => {
                results.into_iter().for_each(|(key, kept)| self.on_extended(&key, kept));
            }
            Told::Settled(results) => {
                results.into_iter().for_each(|(key, result)| self.on_outcome(&key, result));
                self.touched = self.runtime.clock.now();
            }
            Told::Counted(result) => self.on_counted(result.ok()),
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // An empty queue

    fn count_if_due(&mut self, now: Moment) {
        let busy = self.jobs.len() >= self.work.places();
        let due = self.work.drain && self.stop.is_none() && self.link.is_up() && now >= self.count_at;
        if due && !busy && self.calls.may_count() {
            self.calls.count();
        }
    }

    fn on_counted(&mut self, ready: Option<u64>) {
        self.count_at = self.runtime.clock.now() + DRAIN_INTERVAL;
        self.empty_looks = if ready == Some(0) { self.empty_looks + 1 } else { 0 };
        if self.empty_looks >= 2 && self.stop.is_none() {
            self.stop(Stop::Drained);
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // The stream

    fn on_news(&mut self, news: News) {
        match news {
            News::Due => self.open(),
            News::Opened => {
                self.untried = None;
                if std::mem::take(&mut self.down) {
                    say(format!("connected again, to {}", self.daemons.address()));
                }
            }
            News::Event(event) => {
                self.backoff.reset();
                self.touched = self.runtime.clock.now();
                self.on_event(event);
            }
            News::Broken(status) => self.on_broken(&status),
        }
    }

    fn open(&mut self) {
        let left = self.work.most().map(|most| most.saturating_sub(self.taken).max(1));
        let left = left.and_then(|left| i32::try_from(left).ok()).unwrap_or(i32::MAX);
        let open = v1::consume_request::Open {
            queue: self.work.queue.clone(),
            max_in_flight: Some(self.work.concurrency.min(left)),
            lease_ttl: self.work.ttl.map(to_proto),
        };
        self.streams += 1;
        self.link = Link::open(&self.runtime, &self.daemons, open);
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Item(item) => self.take(item),
            Event::Settled(Settled { lease: Some(lease), result }) => {
                let result = match result {
                    Some(settled::Result::Outcome(outcome)) => {
                        Ok(v1::LeaseOutcome::try_from(outcome).unwrap_or_default())
                    }
                    Some(settled::Result::Error(error)) => Err(super::status_of(&error)),
                    None => Err(Status::unavailable("the daemon did not say what became of it")),
                };
                self.on_outcome(&(lease.id, lease.lease_id), result);
            }
            Event::Lost(v1::consume_response::Lost { lease: Some(lease) }) => {
                self.lose(&(lease.id, lease.lease_id));
            }
            Event::Settled(Settled { lease: None, .. })
            | Event::Lost(v1::consume_response::Lost { lease: None }) => {}
        }
    }

    fn take(&mut self, item: v1::ReservedItem) {
        let now = self.runtime.clock.now();
        let job = Job::new(item, self.taken, self.streams, now);
        let key = job.key();
        if self.jobs.contains_key(&key) {
            return;
        }
        self.jobs.insert(key.clone(), job);
        self.empty_looks = 0;
        self.count_at = now + DRAIN_INTERVAL;
        match self.stop {
            Some(Stop::Enough | Stop::Ended) => self.settle(&key, Verdict::not_ours()),
            Some(Stop::Drained) | None => self.taken += 1,
        }
        if self.stop.is_none() && self.work.most().is_some_and(|most| self.taken >= most) {
            self.stop(Stop::Enough);
        }
    }

    fn on_broken(&mut self, status: &Status) {
        let now = self.runtime.clock.now();
        // Nobody will answer there.
        for job in self.jobs.values_mut() {
            if let State::Settling(settling) = &mut job.state {
                settling.on_stream = false;
            }
        }
        if self.stop.is_some() {
            return;
        }
        let untried = self.untried.map(|untried| untried.saturating_sub(1));
        self.untried = untried;
        if untried == Some(0) || !may_be_repeated(status) {
            say(explain(status, self.daemons.address()));
            self.fail(exit_code(status));
            return;
        }
        if untried.is_none() && !std::mem::replace(&mut self.down, true) {
            let running = self.jobs.len();
            let address = self.daemons.address();
            say(format!(
                "no stream, and {running} items in hand; trying again: {}",
                explain(status, address)
            ));
        }
        self.daemons.advance();
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let pause = self.backoff.next(&*self.runtime.entropy).max(asked.unwrap_or_default());
        self.link = Link::Down { open_at: now + pause };
    }
}

/// Another attempt may fare better.
fn may_be_repeated(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Internal | Code::DeadlineExceeded | Code::Cancelled => true,
        Code::ResourceExhausted | Code::Aborted => true,
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => false,
        Code::OutOfRange | Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated => false,
        Code::DataLoss | Code::Ok => false,
    }
}
