//! The stream of `queue work` to a daemon, and how it comes up again.

use std::time::Duration;

use futures::FutureExt as _;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use tonic::{Status, Streaming};

use super::job::{Job, Verdict};
use crate::cli::client::{CALL_TIMEOUT, Daemons, to_proto};
use crate::cli::lock::before;
use crate::proto::v1;
use crate::proto::v1::consume_request::{Command, Open};
use crate::proto::v1::consume_response::Event;
use crate::runtime::{Entropy, Moment, Runtime};

/// Pause before the first attempt to open a stream again; before each further one it is twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The stream, as far as it is there.
pub(super) enum Link {
    /// It is to be opened.
    Down { open_at: Moment },
    /// It is being opened.
    Opening(BoxFuture<'static, Result<Opened, Status>>),
    /// It is there.
    Up(Box<Opened>),
    /// It is not needed any more.
    Gone,
}

/// A stream.
pub(super) struct Opened {
    /// None once the client's side is closed: then no more items come.
    commands: Option<mpsc::Sender<v1::ConsumeRequest>>,
    events: Streaming<v1::ConsumeResponse>,
}

/// What a link tells.
pub(super) enum News {
    /// It is time to open the stream.
    Due,
    /// It is open.
    Opened,
    /// What the daemon said.
    Event(Event),
    /// It is broken, or was ended by the daemon.
    Broken(Status),
}

impl Link {
    /// Opens a stream at the daemon whose turn it is.
    pub(super) fn open(runtime: &Runtime, daemons: &Daemons, open: Open) -> Self {
        // Room for one command for each item in flight, and for the first.
        let room = usize::try_from(open.max_in_flight.unwrap_or(1)).unwrap_or(1) + 1;
        let (mut commands, receiver) = mpsc::channel(room);
        let first = v1::ConsumeRequest { command: Some(Command::Open(open)) };
        commands.try_send(first).expect("a new channel has room");
        let mut client = daemons.queue_client();
        // For the beginning of the answer; the stream itself has no end.
        let limit = runtime.clock.sleep_until(runtime.clock.now() + CALL_TIMEOUT);
        Self::Opening(
            async move {
                let events = before(limit, client.consume(receiver)).await?.into_inner();
                Ok(Opened { commands: Some(commands), events })
            }
            .boxed(),
        )
    }

    /// Waits for news. Nothing is lost if the wait is given up.
    pub(super) async fn next(&mut self, runtime: &Runtime) -> News {
        match self {
            Self::Down { open_at } => {
                runtime.clock.sleep_until(*open_at).await;
                News::Due
            }
            Self::Opening(opening) => match opening.await {
                Ok(opened) => {
                    *self = Self::Up(Box::new(opened));
                    News::Opened
                }
                Err(status) => {
                    *self = Self::Gone;
                    News::Broken(status)
                }
            },
            Self::Up(opened) => match opened.next().await {
                Ok(event) => News::Event(event),
                Err(status) => {
                    *self = Self::Gone;
                    News::Broken(status)
                }
            },
            Self::Gone => std::future::pending().await,
        }
    }

    /// Tells the daemon that no more items are wanted. What comes still has been under way.
    pub(super) fn close(&mut self) {
        match self {
            Self::Up(opened) => opened.commands = None,
            Self::Down { .. } | Self::Opening(_) | Self::Gone => *self = Self::Gone,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }

    /// Whether the daemon has yet to hear, or to say that it has heard, that no more items are wanted.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self, Self::Up(opened) if opened.commands.is_none())
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }

    /// Sends a verdict; false if it has to be sent in another way.
    pub(super) fn send(&mut self, job: &Job, verdict: &Verdict) -> bool {
        let Self::Up(opened) = self else { return false };
        let Some(commands) = &mut opened.commands else { return false };
        let command = match verdict {
            Verdict::Ack => Command::Ack(job.lease()),
            Verdict::Nack { delay, reason } => Command::Nack(nack_of(job, *delay, reason)),
        };
        commands.try_send(v1::ConsumeRequest { command: Some(command) }).is_ok()
    }
}

/// An item that is given back.
pub(super) fn nack_of(job: &Job, delay: Option<Duration>, reason: &str) -> v1::ItemNack {
    let v1::ItemLease { id, lease_id } = job.lease();
    v1::ItemNack { id, lease_id, delay: delay.map(to_proto), reason: reason.to_owned() }
}

impl Opened {
    /// The next event that has a meaning here.
    async fn next(&mut self) -> Result<Event, Status> {
        loop {
            match self.events.message().await? {
                None => return Err(Status::unavailable("the daemon ended the stream")),
                Some(v1::ConsumeResponse { event: Some(event) }) => return Ok(event),
                Some(v1::ConsumeResponse { event: None }) => {}
            }
        }
    }
}

/// Pauses that grow with each failure, each a little different, so that many workers do not come back at the same moment.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure.
    pub(super) fn next(&mut self, entropy: &dyn Entropy) -> Duration {
        let pause = pause_after(self.failures, entropy);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

/// The pause after so many failures before this one: half of it is certain, the rest is drawn.
pub(super) fn pause_after(failures: u32, entropy: &dyn Entropy) -> Duration {
    let longest = BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    longest / 2 + entropy.jitter(longest / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(u64);

    impl Entropy for Fixed {
        fn next_u64(&self) -> u64 {
            self.0
        }
    }

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::default();
        let least: Vec<u128> = (0..9).map(|_| backoff.next(&Fixed(0)).as_millis()).collect();
        assert_eq!(least, [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        backoff.reset();
        assert_eq!(backoff.next(&Fixed(u64::MAX)).as_millis(), 100);
        assert_eq!(pause_after(u32::MAX, &Fixed(u64::MAX)).as_secs(), 10);
    }
}
