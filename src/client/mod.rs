//! A thin client for programs in Rust (feature `client`): a lock as a guard that is kept up and tells of its loss, and a worker for a
//! queue. Everything else is called on the generated clients, which [`Client`] hands out.
//!
//! ```text
//! Client ── channels to several daemons, of which any will do
//!        │    with what Security has to say of TLS and of a token
//!   lock() ──► Lock: a task reads a Hold stream; when that ends it extends by itself, at the other daemons too
//!   work() ──► one Consume stream after the other; each item goes to a handler, whose outcome is its ack or nack
//! ```
//!
//! It promises what `docs/clients.md` asks of a client: the end of a lease is counted from before its answer can have been sent, a
//! repeat names its owner, and UNAVAILABLE is tried again elsewhere. It does not retry what may have happened twice. A process that
//! is stopped between a look at its guard and what it does then is nothing that a client can find out: hand on
//! [`Lock::fencing_token`].

mod lock;
mod security;
mod work;

use std::time::Duration;

use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::proto::v1;
use crate::proto::v1::kv_service_client::KvServiceClient;
use crate::proto::v1::lock_service_client::LockServiceClient;
use crate::proto::v1::queue_service_client::QueueServiceClient;
use crate::runtime::{Runtime, system};

pub use lock::{Lock, LockOptions, Loss};
pub use security::{Bearer, ClientCertificate, Security};
pub use work::Refused;

/// A connection to a daemon that shows the client's token with every call, if it has one.
pub type Connection = InterceptedService<Channel, Bearer>;

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
    /// An endpoint is neither `http://host:port` nor `https://host:port`, or what is known of its TLS can't be used.
    #[error("{endpoint} is not an endpoint")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// What is to be known and shown there does not go with the endpoint, or can't be used. Nothing of a key or a token is in it.
    #[error("{endpoint}: {why}")]
    Unfit {
        /// As it was given.
        endpoint: String,
        /// What is asked of it.
        why: String,
    },
    /// What was given as a token is empty, or has spaces or characters that no header has.
    #[error("what was given as a token can't be one")]
    Token,
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
    bearer: Bearer,
    /// The first endpoint at which a token would go over a network without encryption, against what was allowed.
    exposed: Option<String>,
    runtime: Runtime,
}

impl Client {
    /// For daemons at `http://host:port`, or `https://host:port` with certificates that the authorities of this machine have signed.
    /// They are connected to when they are needed. To be called within a runtime of tokio.
    ///
    /// # Errors
    /// [`ClientError::NoEndpoint`] and [`ClientError::Endpoint`].
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Result<Self, ClientError> {
        Self::secured(endpoints, &Security::default())
    }

    /// The same with authorities, a certificate or a token.
    ///
    /// # Errors
    /// The same, [`ClientError::Unfit`] and [`ClientError::Token`].
    pub fn secured<E: Into<String>>(
        endpoints: impl IntoIterator<Item = E>,
        security: &Security,
    ) -> Result<Self, ClientError> {
        let mut exposed = None;
        let connect = |endpoint: E| {
            let endpoint = endpoint.into();
            let parsed = Endpoint::from_shared(endpoint.clone())
                .map_err(|source| ClientError::Endpoint { endpoint: endpoint.clone(), source })?;
            // So that a daemon that is gone without a word is noticed, also by a stream.
            let parsed = security
                .secured(parsed, &endpoint)?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(5));
            if !security.may_show_token(&parsed, &endpoint) {
                exposed.get_or_insert(endpoint);
            }
            Ok(parsed.connect_lazy())
        };
        let channels = endpoints.into_iter().map(connect).collect::<Result<Vec<_>, ClientError>>()?;
        if channels.is_empty() {
            return Err(ClientError::NoEndpoint);
        }
        let client = Self { channels, bearer: Bearer::default(), exposed, runtime: system::runtime() };
        security.token.as_deref().map_or(Ok(()), |token| client.set_token(token))?;
        Ok(client)
    }

    /// Shows this token from now on, with the calls of locks that are held, too.
    ///
    /// # Errors
    /// [`ClientError::Token`], and [`ClientError::Unfit`] where it would go over a network without encryption.
    pub fn set_token(&self, token: &str) -> Result<(), ClientError> {
        match &self.exposed {
            Some(endpoint) => {
                let why = "a token is not sent without encryption unless that is allowed".to_owned();
                Err(ClientError::Unfit { endpoint: endpoint.clone(), why })
            }
            None => self.bearer.set(token),
        }
    }

    /// The locks, at the first daemon.
    pub fn locks(&self) -> LockServiceClient<Connection> {
        LockServiceClient::new(self.connection(0))
    }

    /// The queues, at the first daemon.
    pub fn queues(&self) -> QueueServiceClient<Connection> {
        QueueServiceClient::new(self.connection(0))
    }

    /// The keys, at the first daemon.
    pub fn keys(&self) -> KvServiceClient<Connection> {
        KvServiceClient::new(self.connection(0))
    }

    /// One of the daemons, by turns.
    fn connection(&self, turn: usize) -> Connection {
        InterceptedService::new(self.channels[turn % self.channels.len()].clone(), self.bearer.clone())
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
