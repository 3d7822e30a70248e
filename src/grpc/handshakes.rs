//! Handshakes of TLS, beside the loop that accepts connections: each in a task of its own, within a time, and no more of them
//! at once than a bound.
//!
//! ```text
//! accept -> peek at one byte -> TLS: handshake -> Connection (with the names of the client's certificate) -> the server
//!                            -> HTTP without TLS: an answer that says so
//! ```
//!
//! When there are too many, the one that began first is given up: a client that means it needs two round trips and is gone
//! from here before others have come in such numbers, and one that hangs holds up nobody.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::{mpsc, oneshot};
use futures::future::{self, Either};
use futures::stream;
use futures::{FutureExt, SinkExt, Stream, StreamExt};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::layers::Connection;
use crate::meter::calls::Calls;
use crate::runtime::Runtime;
use crate::tls;

/// The first byte of a TLS connection: a record of the type "handshake" (RFC 8446, 5.1).
const TLS_RECORD: u8 = 22;
/// What a client is told that speaks HTTP/2 without TLS.
const SPEAK_TLS: &str =
    "this port of majorityd speaks TLS: use an https:// address (grpcurl: without -plaintext)";
/// What is read of such a client before it is left alone, in bytes.
const PLAINTEXT_READ_MAX: u64 = 1 << 20;

/// What handshakes need.
#[derive(Clone)]
pub(super) struct Handshakes {
    /// As it is at the moment when one begins.
    pub(super) config: watch::Receiver<Arc<ServerConfig>>,
    /// What is counted.
    pub(super) calls: Arc<Calls>,
    /// Tasks and time.
    pub(super) runtime: Runtime,
    /// For each connection; see [`Connection::new`].
    pub(super) calls_max: usize,
    /// How many may be under way.
    pub(super) handshakes_max: usize,
    /// How long each may take.
    pub(super) timeout: Duration,
}

type Secured = Connection<TlsStream<TcpStream>>;

/// Connections with their handshakes done, in the order in which they were.
pub(super) fn done(
    incoming: impl Stream<Item = io::Result<TcpStream>> + Send + 'static,
    handshakes: Handshakes,
) -> impl Stream<Item = io::Result<Secured>> + Send + 'static {
    let (sender, finished) = mpsc::channel(0);
    let mut under_way: VecDeque<oneshot::Sender<()>> = VecDeque::new();
    let begun = incoming.filter_map(move |accepted| {
        let failed = match accepted {
            Ok(stream) => {
                under_way.retain(|handshake| !handshake.is_canceled());
                if under_way.len() >= handshakes.handshakes_max {
                    under_way.pop_front();
                }
                let (keep, displaced) = oneshot::channel();
                under_way.push_back(keep);
                let (handshakes, sender) = (handshakes.clone(), sender.clone());
                let spawner = handshakes.runtime.spawner.clone();
                spawner.spawn(handshakes.run(stream, displaced, sender).boxed());
                None
            }
            Err(error) => Some(Err(error)),
        };
        future::ready(failed)
    });
    stream::select(begun, finished.map(Ok))
}

/// What a handshake came to.
enum End {
    Done(Box<TlsStream<TcpStream>>),
    Failed(io::Error),
    Plaintext,
    TimedOut,
    Displaced,
}

impl Handshakes {
    async fn run(
        self,
        stream: TcpStream,
        displaced: oneshot::Receiver<()>,
        mut sender: mpsc::Sender<Secured>,
    ) {
        let peer = stream.peer_addr().ok();
        let clock = &self.runtime.clock;
        let timer = clock.sleep_until(clock.now() + self.timeout);
        let end = {
            let shaken = std::pin::pin!(shake(stream, &self.config));
            let given_up = future::select(displaced, timer);
            match future::select(shaken, given_up).await {
                Either::Left((end, _)) => end,
                Either::Right((Either::Left(_), _)) => End::Displaced,
                Either::Right((Either::Right(_), _)) => End::TimedOut,
            }
        };
        let counts = &self.calls.door.handshakes;
        match end {
            End::Done(stream) => {
                counts.done.one();
                // Nobody takes it when the daemon stops.
                let _ = sender.send(self.connection(*stream, peer)).await;
            }
            End::Failed(error) => {
                counts.failed.one();
                let error = &error as &dyn std::error::Error;
                tracing::debug!(peer = peer.map(tracing::field::display), error, "no TLS with a client");
            }
            End::Plaintext => {
                counts.plaintext.one();
                tracing::debug!(peer = peer.map(tracing::field::display), "a client spoke without TLS");
            }
            End::TimedOut => counts.timed_out.one(),
            End::Displaced => counts.displaced.one(),
        }
    }

    fn connection(&self, stream: TlsStream<TcpStream>, peer: Option<SocketAddr>) -> Secured {
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let names = certificate.map(tls::names).unwrap_or_default();
        Connection::new(stream, peer, self.calls_max).with_certificate(names.into())
    }
}

async fn shake(mut stream: TcpStream, config: &watch::Receiver<Arc<ServerConfig>>) -> End {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first == [TLS_RECORD] => {}
        Ok(1) => {
            // Whether it arrives is the client's luck.
            let _ = refuse_plaintext(&mut stream, first[0]).await;
            return End::Plaintext;
        }
        Ok(_) => return End::Failed(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => return End::Failed(error),
    }
    let config = config.borrow().clone();
    match TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => End::Done(Box::new(stream)),
        Err(error) => End::Failed(error),
    }
}

/// Tells a client that speaks HTTP/2 without TLS what is wrong: an empty SETTINGS, for some wait for it, and a GOAWAY with
/// INADEQUATE_SECURITY and a text, which most print (RFC 9113, 6.5 and 6.8).
async fn refuse_plaintext(stream: &mut TcpStream, first: u8) -> io::Result<()> {
    if first == b'P' {
        stream.write_all(&goaway()).await?;
    }
    stream.shutdown().await?;
    // Closed with something unread, the connection would be reset, and the answer lost with it.
    tokio::io::copy(&mut stream.take(PLAINTEXT_READ_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}

fn goaway() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const INADEQUATE_SECURITY: u32 = 0xc;
    let length = u32::try_from(8 + SPEAK_TLS.len()).expect("the text is short").to_be_bytes();
    let mut frames = SETTINGS.to_vec();
    frames.extend_from_slice(&length[1..]);
    // GOAWAY, no flags, on the connection; nothing was looked at.
    frames.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frames.extend_from_slice(&INADEQUATE_SECURITY.to_be_bytes());
    frames.extend_from_slice(SPEAK_TLS.as_bytes());
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plaintext_is_two_well_formed_frames() {
        let frames = goaway();
        let (settings, goaway) = frames.split_at(9);
        assert_eq!(settings, [0, 0, 0, 4, 0, 0, 0, 0, 0]);
        let length = u32::from_be_bytes([0, goaway[0], goaway[1], goaway[2]]) as usize;
        assert_eq!(goaway.len(), 9 + length);
        assert_eq!(goaway[3..9], [7, 0, 0, 0, 0, 0]);
        assert_eq!(goaway[9..17], [0, 0, 0, 0, 0, 0, 0, 0xc]);
        assert_eq!(&goaway[17..], SPEAK_TLS.as_bytes());
    }
}
