//! What a service manager is told that asked for it (`Type=notify` of systemd, by the protocol of `sd_notify(3)`): when the
//! daemon serves, when it begins to stop, in a few words how it is, and, with a watchdog, that it still runs.
//!
//! It is ready when a quorum can serve. Without one it is ready all the same after [`START_PATIENCE`]: the daemon is well, what
//! it lacks are servers, and to be killed and started again would bring none. What it is told goes out from the runtime that
//! serves calls, so a daemon that hangs misses its watchdog.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, BoxFuture};
use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::driver::Cluster;
use crate::runtime::{Clock, Moment};

/// How long a start waits for a quorum.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked what there is to say, beside the moments when something changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What a daemon is like when it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    counting: usize,
    nodes: usize,
    quorum: usize,
    stopping: bool,
}

impl Seen {
    fn serves(self) -> bool {
        self.counting >= self.quorum
    }

    fn words(self) -> String {
        let Self { counting, nodes, quorum, .. } = self;
        match self.serves() {
            true => format!("serving: {counting} of {nodes} nodes count"),
            false => format!("no quorum: {counting} of {nodes} nodes count, {quorum} are needed"),
        }
    }
}

/// What has been told.
#[derive(Debug, Default)]
struct Told {
    ready: bool,
    words: String,
    beat: Option<Moment>,
}

/// When what is due.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// From then on the daemon is ready whatever it lacks.
    ready_by: Moment,
    /// Between two signs of life.
    beat: Option<Duration>,
}

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Ready,
    Stopping,
    Status(String),
    Alive,
}

impl Told {
    /// What there is to say now, of which it is taken that it is said.
    fn next(&mut self, plan: &Plan, seen: Seen, now: Moment) -> Vec<Word> {
        let mut words = Vec::new();
        if !self.ready && !seen.stopping && (seen.serves() || now >= plan.ready_by) {
            self.ready = true;
            words.push(Word::Ready);
        }
        let status = seen.words();
        // What is said of the end has been said by `stopping`.
        if status != self.words && !seen.stopping {
            words.push(Word::Status(status.clone()));
            self.words = status;
        }
        if let Some(every) = plan.beat
            && self.beat.is_none_or(|last| now >= last + every)
        {
            self.beat = Some(now);
            words.push(Word::Alive);
        }
        words
    }

    /// When there may be something to say again, if nothing changes before.
    fn look_again(&self, plan: &Plan, now: Moment) -> Moment {
        let beat = plan.beat.zip(self.beat).map_or(Moment::FAR, |(every, last)| last + every);
        let ready = if self.ready { Moment::FAR } else { plan.ready_by.max(now) };
        beat.min(ready).min(now + LOOK_INTERVAL)
    }
}

/// Tells whoever started this process, for as long as it is polled; nobody, if nobody asked for it.
pub(super) async fn inform(
    cluster: Arc<Cluster>,
    mut can_serve: watch::Receiver<bool>,
    mut stopping: watch::Receiver<bool>,
) -> Infallible {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return future::pending().await;
    }
    let clock: Arc<dyn Clock> = cluster.runtime.clock.clone();
    // Twice as often as it has to be, as the manual has it.
    let beat = sd_notify::watchdog_enabled().map(|within| within / 2);
    let plan = Plan { ready_by: clock.now() + START_PATIENCE, beat };
    let mut told = Told::default();
    loop {
        let seen = Seen {
            counting: cluster.reachable(),
            nodes: cluster.size.nodes(),
            quorum: cluster.size.quorum(),
            stopping: *stopping.borrow_and_update(),
        };
        can_serve.mark_unchanged();
        let now = clock.now();
        say(&told.next(&plan, seen, now));
        let again = clock.sleep_until(told.look_again(&plan, now));
        let changed = future::select(changed(&mut can_serve), changed(&mut stopping));
        future::select(changed, again).await;
    }
}

/// Says that the daemon begins to stop. At once, for where nothing is under way its end comes before the next look.
pub(super) fn stopping() {
    let status = Word::Status("stopping: calls that are under way are finished".to_owned());
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        say(&[Word::Stopping, status]);
    }
}

/// Never completes where nothing will change any more.
fn changed(what: &mut watch::Receiver<bool>) -> BoxFuture<'_, ()> {
    async move {
        if what.changed().await.is_err() {
            future::pending().await
        }
    }
    .boxed()
}

fn say(words: &[Word]) {
    if words.is_empty() {
        return;
    }
    let states: Vec<NotifyState<'_>> = words
        .iter()
        .map(|word| match word {
            Word::Ready => NotifyState::Ready,
            Word::Stopping => NotifyState::Stopping,
            Word::Status(text) => NotifyState::Status(text),
            Word::Alive => NotifyState::Watchdog,
        })
        .collect();
    if let Err(error) = sd_notify::notify(&states) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the service manager can't be told how it is"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: Word = Word::Alive;

    fn at(seconds: u64) -> Moment {
        Moment::from_start(Duration::from_secs(1_000 + seconds))
    }

    fn seen(counting: usize) -> Seen {
        Seen { counting, nodes: 3, quorum: 2, stopping: false }
    }

    fn status(words: &str) -> Word {
        Word::Status(words.to_owned())
    }

    #[test]
    fn it_is_ready_once_when_a_quorum_serves_and_says_what_changes() {
        let plan = Plan { ready_by: at(60), beat: None };
        let mut told = Told::default();
        let waiting = "no quorum: 0 of 3 nodes count, 2 are needed";
        assert_eq!(told.next(&plan, seen(0), at(0)), [status(waiting)]);
        assert_eq!(told.next(&plan, seen(0), at(1)), []);
        let serving = [Word::Ready, status("serving: 2 of 3 nodes count")];
        assert_eq!(told.next(&plan, seen(2), at(2)), serving);
        assert_eq!(told.next(&plan, seen(3), at(3)), [status("serving: 3 of 3 nodes count")]);
        assert_eq!(told.next(&plan, seen(0), at(4)), [status(waiting)]);
        assert_eq!(
            told.next(&plan, seen(2), at(5)),
            [status("serving: 2 of 3 nodes count")],
            "not ready again"
        );
        let stopping = Seen { stopping: true, ..seen(2) };
        assert_eq!(told.next(&plan, stopping, at(6)), [], "that has been said when it began");
    }

    #[test]
    fn it_is_ready_without_a_quorum_when_it_has_waited_long_enough() {
        let plan = Plan { ready_by: at(60), beat: None };
        let mut told = Told::default();
        told.next(&plan, seen(1), at(0));
        assert_eq!(told.look_again(&plan, at(58)), at(60));
        assert_eq!(told.next(&plan, seen(1), at(59)), []);
        assert_eq!(told.next(&plan, seen(1), at(60)), [Word::Ready]);
        assert_eq!(told.look_again(&plan, at(60)), at(60) + LOOK_INTERVAL);
    }

    #[test]
    fn one_that_is_stopped_before_it_was_ready_is_never_ready() {
        let plan = Plan { ready_by: at(60), beat: None };
        let stopping = Seen { stopping: true, ..seen(3) };
        assert!(!Told::default().next(&plan, stopping, at(100)).contains(&Word::Ready));
    }

    #[test]
    fn it_shows_that_it_is_alive_as_often_as_it_has_to() {
        let plan = Plan { ready_by: at(60), beat: Some(Duration::from_secs(2)) };
        let mut told = Told::default();
        assert!(told.next(&plan, seen(3), at(0)).contains(&ALIVE));
        assert_eq!(told.look_again(&plan, at(1)), at(2));
        assert_eq!(told.next(&plan, seen(3), at(1)), []);
        assert_eq!(told.next(&plan, seen(3), at(2)), [ALIVE]);
        // Also while it stops.
        assert!(told.next(&plan, Seen { stopping: true, ..seen(3) }, at(9)).contains(&ALIVE));
    }
}
