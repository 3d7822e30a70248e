//! A thin client for programs in Rust (feature `client`): a lock as a guard that is kept up and tells of its loss, and a worker for a
//! queue. Everything else is called on the generated clients, which [`Client`] hands out.
//!
//! ```text
//! Client ── channels to several daemons, of which any will do
//!   lock() ──► Lock: a task reads a Hold stream; when that ends it extends by itself, at the other daemons too
//!   work() ──► one Consume stream after the other; each item goes to a handler, whose outcome is its ack or nack
//! ```
//!
//! It promises what `docs/clients.md` asks of a client: the end of a lease is counted from before its answer can have been sent, a
//! repeat names its owner, and UNAVAILABLE is tried again elsewhere. It does not retry what may have happened twice. A process that
//! is stopped between a look at its guard and what it does then is nothing that a client can find out: hand on
//! [`Lock::fencing_token`].

mod lock;
mod work;

use std::time::Duration;

use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::proto::v1;
use crate::proto::v1::kv_service_client::KvServiceClient;
use crate::proto::v1::lock_service_client::LockServiceClient;
use crate::proto::v1::queue_service_client::QueueServiceClient;
use crate::runtime::{Runtime, system};

pub use lock::{Lock, LockOptions, Loss};
pub use work::Refused;

/// How long it is until the next daemon is tried.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why something did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No endpoint was given.
    #[error("no endpoint was given")]
    NoEndpoint,
    /// An endpoint is not `http://host:port`.
    #[error("{endpoint} is not an endpoint")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// Somebody else holds the lock, and has for as long as was to be waited.
    #[error("somebody else holds the lock")]
    Contended(Box<v1::Contention>),
    /// What a daemon answered, or the transport.
    #[error("the call failed: {0}")]
    Call(#[from] Box<Status>),
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// Connections to daemons of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    channels: Vec<Channel>,
    runtime: Runtime,
}

impl Client {
    /// For daemons at `http://host:port`, which are connected to when they are needed. To be called within a runtime of tokio.
    ///
    /// # Errors
    /// [`ClientError::NoEndpoint`] and [`ClientError::Endpoint`].
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Result<Self, ClientError> {
        let connect = |endpoint: E| {
            let endpoint = endpoint.into();
            let parsed = Endpoint::from_shared(endpoint.clone())
                .map_err(|source| ClientError::Endpoint { endpoint, source })?;
            // So that a daemon that is gone without a word is noticed, also by a stream.
            let parsed = parsed
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(5));
            Ok(parsed.connect_lazy())
        };
        let channels = endpoints.into_iter().map(connect).collect::<Result<Vec<_>, ClientError>>()?;
        match channels.is_empty() {
            true => Err(ClientError::NoEndpoint),
            false => Ok(Self { channels, runtime: system::runtime() }),
        }
    }

    /// The locks, at the first daemon.
    pub fn locks(&self) -> LockServiceClient<Channel> {
        LockServiceClient::new(self.channels[0].clone())
    }

    /// The queues, at the first daemon.
    pub fn queues(&self) -> QueueServiceClient<Channel> {
        QueueServiceClient::new(self.channels[0].clone())
    }

    /// The keys, at the first daemon.
    pub fn keys(&self) -> KvServiceClient<Channel> {
        KvServiceClient::new(self.channels[0].clone())
    }

    /// One of the daemons, by turns.
    fn channel(&self, turn: usize) -> Channel {
        self.channels[turn % self.channels.len()].clone()
    }

    async fn pause(&self) {
        let clock = &self.runtime.clock;
        clock.sleep_until(clock.now() + PAUSE).await;
    }
}

/// Whether another daemon may be asked for the same: a stream that had not begun, or a call whose repeat does no harm.
fn is_elsewhere(status: &Status) -> bool {
    // What the transport makes of a connection that breaks, besides what daemons say.
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled)
}

fn to_proto(length: Duration) -> Option<prost_types::Duration> {
    length.try_into().ok()
}

fn from_proto(length: Option<prost_types::Duration>) -> Duration {
    length.and_then(|length| length.try_into().ok()).unwrap_or_default()
}
