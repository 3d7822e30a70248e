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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connections::{Admitted, Connections};
use super::layers::Connection;
use super::opening::{Opening, PREFACE, is_http1};
use super::shown;
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
    /// Who the daemon is and whom it lets in, as that is at the moment when one begins.
    pub(super) server: watch::Receiver<Arc<tls::Server>>,
    /// What is counted.
    pub(super) calls: Arc<Calls>,
    /// Tasks and time.
    pub(super) runtime: Runtime,
    /// Where HTTP/2 has to begin in time.
    pub(super) connections: Connections,
    /// For each connection; see [`Connection::new`].
    pub(super) calls_max: usize,
    /// How many may be under way.
    pub(super) handshakes_max: usize,
    /// How long each may take.
    pub(super) timeout: Duration,
    /// For who speaks HTTP/1 without TLS.
    pub(super) http1_answer: Arc<[u8]>,
}

/// What was accepted: a TCP connection, or something around one.
pub(super) trait Accepted: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The connection itself.
    fn tcp(&self) -> &TcpStream;
}

impl Accepted for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl<S: Accepted> Accepted for Admitted<S> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
    }
}

type Secured<S> = Connection<Opening<TlsStream<S>>>;

/// Connections with their handshakes done, in the order in which they were.
pub(super) fn done<S: Accepted>(
    incoming: impl Stream<Item = io::Result<S>> + Send + 'static,
    handshakes: Handshakes,
) -> impl Stream<Item = io::Result<Secured<S>>> + Send + 'static {
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
enum End<S> {
    Done(Box<TlsStream<S>>),
    Failed(io::Error),
    Plaintext,
    TimedOut,
    Displaced,
}

impl Handshakes {
    async fn run<S: Accepted>(
        self,
        stream: S,
        displaced: oneshot::Receiver<()>,
        mut sender: mpsc::Sender<Secured<S>>,
    ) {
        let peer = stream.tcp().peer_addr().ok();
        let clock = &self.runtime.clock;
        let timer = clock.sleep_until(clock.now() + self.timeout);
        let end = {
            let shaken = std::pin::pin!(shake(stream, &self.server, &self.http1_answer));
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

    fn connection<S>(&self, stream: TlsStream<S>, peer: Option<SocketAddr>) -> Secured<S> {
        let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
        let stream = self.connections.opened_in_time(stream);
        let connection = Connection::new(stream, peer, self.calls_max);
        match chain {
            Some(chain) => {
                connection.with_certificate(shown::watch(chain, self.server.clone(), &self.runtime))
            }
            None => connection,
        }
    }
}

async fn shake<S: Accepted>(
    mut stream: S,
    server: &watch::Receiver<Arc<tls::Server>>,
    http1_answer: &[u8],
) -> End<S> {
    let mut first = [0];
    match stream.tcp().peek(&mut first).await {
        Ok(1) if first == [TLS_RECORD] => {}
        Ok(1) => {
            // Whether it arrives is the client's luck.
            let _ = refuse_plaintext(&mut stream, first[0], http1_answer).await;
            return End::Plaintext;
        }
        Ok(_) => return End::Failed(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => return End::Failed(error),
    }
    let config = server.borrow().config.clone();
    match TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => End::Done(Box::new(stream)),
        Err(error) => End::Failed(error),
    }
}

/// Tells a client that speaks HTTP without TLS what is wrong. One of HTTP/2 is told as the answer to its first call: to a GOAWAY
/// alone some of them connect again at once, and say nothing of why. The few frames that this takes are written by hand
/// (RFC 9113, RFC 7541).
async fn refuse_plaintext(stream: &mut impl Accepted, first: u8, http1_answer: &[u8]) -> io::Result<()> {
    if is_http1(first) {
        match is_http2(stream).await? {
            true => answer_plaintext(stream).await?,
            false => stream.write_all(http1_answer).await?,
        }
    }
    stream.shutdown().await?;
    // Closed with something unread, the connection would be reset, and the answer lost with it.
    tokio::io::copy(&mut stream.take(PLAINTEXT_READ_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Reads the preface of HTTP/2, or as much as shows that it is none.
async fn is_http2(stream: &mut impl Accepted) -> io::Result<bool> {
    for byte in PREFACE {
        if stream.read_u8().await? != *byte {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The largest frame that a client may send which was told of no other size.
const FRAME_BYTES_MAX: usize = 16_384;
/// Frames of such a client that are read before its call.
const FRAMES_MAX: usize = 16;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

async fn answer_plaintext(stream: &mut impl Accepted) -> io::Result<()> {
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    for _ in 0..FRAMES_MAX {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream_id @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > FRAME_BYTES_MAX {
            return Ok(());
        }
        stream.read_exact(&mut vec![0; length]).await?;
        match kind {
            SETTINGS if flags & 1 == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[])).await?,
            HEADERS => return stream.write_all(&refusal(u32::from_be_bytes(stream_id))).await,
            _ => {}
        }
    }
    Ok(())
}

/// The call on this stream is answered PERMISSION_DENIED, as gRPC calls HTTP/2's INADEQUATE_SECURITY, and the connection ends.
fn refusal(stream_id: u32) -> Vec<u8> {
    const INADEQUATE_SECURITY: u32 = 0xc;
    // `:status: 200` of the static table; the others are literals that are not indexed, without Huffman's code.
    let mut fields = vec![0x88];
    for (name, value) in
        [("content-type", "application/grpc"), ("grpc-status", "7"), ("grpc-message", SPEAK_TLS)]
    {
        fields.push(0);
        for text in [name, value] {
            fields.push(u8::try_from(text.len()).expect("the texts are short"));
            fields.extend_from_slice(text.as_bytes());
        }
    }
    // END_STREAM and END_HEADERS.
    let mut frames = frame(HEADERS, 0x5, stream_id, &fields);
    let mut reason = stream_id.to_be_bytes().to_vec();
    reason.extend_from_slice(&INADEQUATE_SECURITY.to_be_bytes());
    reason.extend_from_slice(SPEAK_TLS.as_bytes());
    frames.extend(frame(GOAWAY, 0, 0, &reason));
    frames
}

fn frame(kind: u8, flags: u8, stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("the texts are short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream_id.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plaintext_is_well_formed() {
        // Lengths of literals have seven bits, and what is escaped in a message of gRPC is not in this one.
        assert!(SPEAK_TLS.len() < 127 && SPEAK_TLS.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'%'));
        assert_eq!(frame(SETTINGS, 1, 0, &[]), [0, 0, 0, 4, 1, 0, 0, 0, 0]);
        let frames = refusal(3);
        assert_eq!(frames[3..9], [HEADERS, 5, 0, 0, 0, 3]);
        let length = u32::from_be_bytes([0, frames[0], frames[1], frames[2]]) as usize;
        assert_eq!(frames[9..26], *b"\x88\0\x0ccontent-type\x10a");
        let goaway = &frames[9 + length..];
        assert_eq!(goaway[3..17], [GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0xc]);
        assert_eq!(&goaway[17..], SPEAK_TLS.as_bytes());
    }
}
