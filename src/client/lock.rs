//! [`Lock`]: a guard over a lease, and the task that keeps it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use futures::future;
use tokio::sync::{oneshot, watch};
use tonic::{Code, Request, Status, Streaming};

use super::{Client, ClientError, Connection, from_proto, is_elsewhere, to_proto};
use crate::proto::v1;
use crate::proto::v1::hold_response::Event;
use crate::proto::v1::lock_service_client::LockServiceClient;
use crate::runtime::Moment;

/// For how long an event of a stream may have been under way; by so much earlier the lease is taken to end.
const UNDER_WAY_MAX: Duration = Duration::from_secs(1);
/// A lease is extended when this part of it has passed.
const EXTEND_AFTER: u32 = 3;
/// How often each daemon is tried for a lock that nobody has begun to wait for.
const ROUNDS: usize = 3;

/// How a lock is asked for.
#[derive(Clone, Debug, Default)]
pub struct LockOptions {
    /// Who holds it, for people, and for a repeat; a random name unless given.
    pub owner: Option<String>,
    /// The length of the lease, for how long others wait when this process dies; the daemon's default unless given. Not below some
    /// seconds: a second of it is taken off for what is under way.
    pub ttl: Option<Duration>,
    /// How long to wait in line; zero tries once.
    pub wait: Duration,
    /// For people who look who holds the lock.
    pub attributes: BTreeMap<String, String>,
}

/// How a lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A daemon says that it is no longer held under this lease.
    Taken,
    /// Nobody could extend it in time.
    Expired,
}

/// A lock that is held, until it is released, dropped or lost. What it protects must not be touched after that.
#[derive(Debug)]
pub struct Lock {
    lease: v1::Lease,
    lost: watch::Receiver<Option<Loss>>,
    /// Dropped, it tells the task to give the lock back.
    stop: Option<oneshot::Sender<()>>,
    released: oneshot::Receiver<bool>,
}

impl Lock {
    /// Grows with each holder: whatever the lock protects should refuse a lower one than it has seen.
    pub fn fencing_token(&self) -> u64 {
        self.lease.fencing_token
    }

    /// The name of the lock.
    pub fn name(&self) -> &str {
        &self.lease.name
    }

    /// How it was lost, if it was.
    pub fn loss(&self) -> Option<Loss> {
        *self.lost.borrow()
    }

    /// Completes when the lock is lost, and not before: to be waited for beside the work.
    pub async fn lost(&self) -> Loss {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await.map(|loss| *loss) {
            Ok(Some(loss)) => loss,
            // The task is gone with its runtime, and nobody extends any more.
            Ok(None) | Err(_) => Loss::Expired,
        }
    }

    /// Gives the lock back; whether it was still held. A drop does the same without waiting for it.
    pub async fn release(mut self) -> bool {
        drop(self.stop.take());
        (&mut self.released).await.unwrap_or(false)
    }
}

impl Client {
    /// Acquires a lock and keeps it for as long as the guard lives.
    ///
    /// # Errors
    /// [`ClientError::Contended`] when somebody else had it all the time, and [`ClientError::Call`].
    pub async fn lock(&self, name: &str, options: LockOptions) -> Result<Lock, ClientError> {
        let owner = options.owner.unwrap_or_else(|| format!("{:016x}", self.runtime.entropy.next_u64()));
        let asked = v1::HoldRequest {
            name: name.to_owned(),
            // So that a repeat at another daemon is the same.
            owner: Some(owner),
            ttl: options.ttl.and_then(to_proto),
            wait_timeout: to_proto(options.wait),
            attributes: options.attributes,
            // A stream that breaks must not cost the lock: it is extended elsewhere.
            disconnect_policy: v1::DisconnectPolicy::Keep.into(),
            ..Default::default()
        };
        let mut turn = 0;
        let (stream, lease) = loop {
            match begin(&mut LockServiceClient::new(self.connection(turn)), asked.clone()).await {
                Ok(begun) => break begun,
                Err(ClientError::Call(status))
                    if is_elsewhere(&status) && turn + 1 < ROUNDS * self.channels.len() =>
                {
                    turn += 1;
                    self.pause().await;
                }
                Err(error) => return Err(error),
            }
        };
        let (stop, stopped) = oneshot::channel();
        let (lost, is_lost) = watch::channel(None);
        let (released, is_released) = oneshot::channel();
        let until = self.runtime.clock.now() + seen(&lease);
        let keeper =
            Keeper { client: self.clone(), lease: lease.clone(), until, turn, lost, next: Moment::FAR };
        self.runtime.spawner.spawn(
            async move {
                // Nobody may be there any more who wants to know.
                let _ = released.send(keeper.keep(stream, stopped).await);
            }
            .boxed(),
        );
        Ok(Lock { lease, lost: is_lost, stop: Some(stop), released: is_released })
    }
}

async fn begin(
    locks: &mut LockServiceClient<Connection>,
    asked: v1::HoldRequest,
) -> Result<(Streaming<v1::HoldResponse>, v1::Lease), ClientError> {
    let mut stream = locks.hold(asked).await?.into_inner();
    loop {
        match stream.message().await?.and_then(|answer| answer.event) {
            Some(Event::Acquired(lease)) => return Ok((stream, lease)),
            Some(Event::TimedOut(contention)) => return Err(ClientError::Contended(Box::new(contention))),
            Some(Event::Waiting(_)) => {}
            Some(_) | None => {
                return Err(Status::unavailable("the stream ended before the lock was held").into());
            }
        }
    }
}

/// What is certainly left of a lease that an event told of just now.
fn seen(lease: &v1::Lease) -> Duration {
    from_proto(lease.remaining).saturating_sub(UNDER_WAY_MAX)
}

struct Keeper {
    client: Client,
    lease: v1::Lease,
    until: Moment,
    turn: usize,
    lost: watch::Sender<Option<Loss>>,
    /// When it is extended without a stream.
    next: Moment,
}

impl Keeper {
    /// Whether the lock was given back at the end.
    async fn keep(mut self, stream: Streaming<v1::HoldResponse>, mut stopped: oneshot::Receiver<()>) -> bool {
        let mut stream = Some(stream);
        let clock = self.client.runtime.clock.clone();
        loop {
            let timer = clock.sleep_until(self.until.min(self.next));
            let event = tokio::select! {
                _ = &mut stopped => break,
                event = message(&mut stream) => Some(event),
                () = timer => None,
            };
            match event {
                Some(Ok(Some(v1::HoldResponse { event: Some(event) }))) => match event {
                    Event::Extended(lease) => self.until = clock.now() + seen(&lease),
                    Event::Lost(_) => return self.lose(Loss::Taken),
                    // The daemon stops.
                    Event::Ended(_) => (stream, self.next) = (None, clock.now()),
                    Event::Acquired(_) | Event::Waiting(_) | Event::TimedOut(_) | Event::Jeopardy(_) => {}
                },
                // It has said all that it will: gone, or broken.
                Some(_) => (stream, self.next) = (None, clock.now()),
                None if clock.now() >= self.until => return self.lose(Loss::Expired),
                None => {
                    if let Err(loss) = self.extend().await {
                        return self.lose(loss);
                    }
                }
            }
        }
        drop(stream);
        self.release().await
    }

    fn lose(&self, loss: Loss) -> bool {
        self.lost.send_replace(Some(loss));
        false
    }

    /// One try, at the next daemon if it fails.
    async fn extend(&mut self) -> Result<(), Loss> {
        let clock = self.client.runtime.clock.clone();
        let sent = clock.now();
        let mut request = Request::new(v1::ExtendRequest {
            name: self.lease.name.clone(),
            lease_id: self.lease.lease_id.clone(),
            ttl: self.lease.ttl,
        });
        let ttl = from_proto(self.lease.ttl);
        request.set_timeout(self.until.since(sent).min(ttl / EXTEND_AFTER));
        let mut locks = LockServiceClient::new(self.client.connection(self.turn));
        match locks.extend(request).await {
            Ok(answer) => {
                let lease = answer.into_inner().lease.unwrap_or_default();
                self.until = sent + from_proto(lease.remaining);
                self.next = sent + from_proto(lease.ttl) / EXTEND_AFTER;
                Ok(())
            }
            Err(status) if status.code() == Code::FailedPrecondition => Err(Loss::Taken),
            Err(_) => {
                self.turn += 1;
                self.next = clock.now() + super::PAUSE;
                Ok(())
            }
        }
    }

    async fn release(&mut self) -> bool {
        while self.client.runtime.clock.now() < self.until {
            let (name, lease_id) = (self.lease.name.clone(), self.lease.lease_id.clone());
            let mut request = Request::new(v1::ReleaseRequest { name, lease_id });
            request.set_timeout(self.until.since(self.client.runtime.clock.now()));
            match LockServiceClient::new(self.client.connection(self.turn)).release(request).await {
                Ok(answer) => return answer.into_inner().released,
                Err(status) if !is_elsewhere(&status) => return false,
                Err(_) => {
                    self.turn += 1;
                    self.client.pause().await;
                }
            }
        }
        false
    }
}

/// Never, where there is no stream.
async fn message(
    stream: &mut Option<Streaming<v1::HoldResponse>>,
) -> Result<Option<v1::HoldResponse>, Status> {
    match stream {
        Some(stream) => stream.message().await,
        None => future::pending().await,
    }
}
