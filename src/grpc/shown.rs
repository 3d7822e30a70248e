//! [`Shown`]: the certificate that a client has shown in its handshake, and whether it would still be let in with it.
//!
//! A connection outlives what was looked at when it came: the certificate expires, or who signed it is trusted no more. So it
//! is looked at again whenever the configuration of TLS changes, and when its time is over. From then on the calls of the connection
//! are refused, those that wait and streams end, and after a while the connection does: a client connects again then, with a
//! better certificate if it has one.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{self, BoxFuture};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::access::Refusal;
use crate::runtime::{Clock, Runtime};
use crate::tls::{self, CertificateName};

/// How long calls that were under way may take to end before the connection does.
const GRACE: Duration = Duration::from_secs(2);
/// How often the wall clock is looked at, which may be set meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// What all calls of a connection know of the certificate of their client.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What it vouches for.
    pub names: Arc<[CertificateName]>,
    /// Why it is not good any more, as the rest of a sentence.
    lapsed: watch::Receiver<Option<&'static str>>,
}

impl Shown {
    #[cfg(test)]
    pub(super) fn testing(names: Arc<[CertificateName]>) -> Self {
        Self { names, lapsed: watch::channel(None).1 }
    }

    /// Why calls are refused, if they are.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.lapsed.borrow().map(|why| Refusal::CertificateLapsed { why })
    }

    /// Completes when the certificate is not good any more.
    pub(super) async fn lapsed(mut self) -> Refusal {
        let why = self.lapsed.wait_for(Option::is_some).await.ok().and_then(|why| *why);
        match why {
            Some(why) => Refusal::CertificateLapsed { why },
            // The connection is gone, and its calls go with it.
            None => future::pending().await,
        }
    }
}

/// Looks at the chain that a client has shown from now on. The future completes when the connection is to be closed.
pub(super) fn watch(
    chain: Vec<CertificateDer<'static>>,
    server: watch::Receiver<Arc<tls::Server>>,
    runtime: &Runtime,
) -> (Shown, BoxFuture<'static, ()>) {
    let names = chain.first().map(tls::names).unwrap_or_default().into();
    let (sender, lapsed) = watch::channel(None);
    let clock = runtime.clock.clone();
    let watching = async move {
        let why = until_lapsed(&chain, server, &*clock).await;
        tracing::debug!(certificate = why, "the calls of a connection are refused from now on");
        sender.send_replace(Some(why));
        clock.sleep_until(clock.now() + GRACE).await;
    };
    (Shown { names, lapsed }, watching.boxed())
}

async fn until_lapsed(
    chain: &[CertificateDer<'static>],
    mut server: watch::Receiver<Arc<tls::Server>>,
    clock: &dyn Clock,
) -> &'static str {
    loop {
        let now = server.borrow_and_update().clone();
        let until_ms = match now.vouches(chain, Duration::from_millis(clock.wall_unix_ms())) {
            Ok(until_unix_s) => until_unix_s.saturating_add(1).saturating_mul(1_000),
            Err(why) => return why,
        };
        loop {
            let left = Duration::from_millis(until_ms.saturating_sub(clock.wall_unix_ms()));
            if left.is_zero() {
                break;
            }
            let timer = clock.sleep_until(clock.now() + left.min(LOOK_INTERVAL));
            let changed = async {
                // Nobody changes anything any more.
                if server.changed().await.is_err() {
                    future::pending().await
                }
            };
            if let future::Either::Left(_) = future::select(std::pin::pin!(changed), timer).await {
                break;
            }
        }
    }
}
