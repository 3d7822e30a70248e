//! Connections: how many there may be. That each of them says in time that it speaks HTTP/2 is seen to by [`Opening`].
//!
//! Past [`Connections::new`]'s bound a connection is accepted only to be told so, because one that is left to wait in the
//! system's queue would look to its client like a daemon that hangs. What it is told is GOAWAY with ENHANCE_YOUR_CALM, which
//! clients of gRPC answer by going elsewhere.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future;
use futures::{FutureExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::opening::Opening;
use crate::meter::calls::Calls;
use crate::runtime::Runtime;

/// Connections that are being told that there is no room. One more, and the connection is closed without a word.
const REFUSALS_MAX: usize = 64;
/// For how long a connection is told so at most.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// The server's preface, an empty SETTINGS frame, and GOAWAY before any stream.
const REFUSAL: &[u8] = b"\
    \x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x1c\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0btoo many connections";

/// The places for connections of one daemon, over all its listeners.
#[derive(Clone)]
pub struct Connections {
    places: Arc<Semaphore>,
    max: usize,
    refusals: Arc<Semaphore>,
    /// The last that came found no place: what the log has been told.
    full: Arc<AtomicBool>,
    opening_timeout: Duration,
    /// For who speaks HTTP/1.
    http1_answer: Arc<[u8]>,
    runtime: Runtime,
    meter: Arc<Calls>,
}

impl Connections {
    /// So many places, so long until the preface of a connection must be there, and what is answered to HTTP/1.
    pub fn new(
        max: usize,
        opening_timeout: Duration,
        http1_answer: Arc<[u8]>,
        runtime: Runtime,
        meter: Arc<Calls>,
    ) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(max)),
            max,
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            full: Arc::default(),
            opening_timeout,
            http1_answer,
            runtime,
            meter,
        }
    }

    /// Those of the connections for which there is a place. The others are told so if they are `plain`; where TLS comes first they
    /// would not understand it, and are closed.
    pub fn admitted<S, I>(
        &self,
        plain: bool,
        incoming: I,
    ) -> impl Stream<Item = io::Result<Admitted<S>>> + use<S, I>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        I: Stream<Item = io::Result<S>>,
    {
        let connections = self.clone();
        incoming.filter_map(move |accepted| {
            future::ready(match accepted {
                Ok(stream) => connections.admit(plain, stream).map(Ok),
                Err(error) => Some(Err(error)),
            })
        })
    }

    fn admit<S>(&self, plain: bool, stream: S) -> Option<Admitted<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.refuse(plain, stream);
            return None;
        };
        self.full.store(false, Ordering::Relaxed);
        self.meter.connections.opened();
        Some(Admitted { stream, meter: self.meter.clone(), _place: place })
    }

    /// The same connection, which ends with an error of its reader if its preface does not come in time. To be put around what
    /// carries HTTP/2: of an encrypted connection, around what has been decrypted.
    pub fn opened_in_time<S>(&self, stream: S) -> Opening<S> {
        let clock = &self.runtime.clock;
        let timer = clock.sleep_until(clock.now() + self.opening_timeout);
        Opening::new(stream, timer, self.http1_answer.clone(), self.meter.clone())
    }

    fn refuse<S>(&self, plain: bool, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.meter.connections.refused.one();
        if !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!(max = self.max, "no more connections are taken (grpc.max_connections)");
        }
        if !plain {
            return;
        }
        let Ok(place) = self.refusals.clone().try_acquire_owned() else { return };
        let clock = &self.runtime.clock;
        let limit = clock.sleep_until(clock.now() + REFUSAL_TIME);
        self.runtime.spawner.spawn(
            async move {
                future::select(Box::pin(tell_refusal(stream)), limit).await;
                drop(place);
            }
            .boxed(),
        );
    }
}

/// Writes what there is to say and reads until the client has gone: a connection that is closed while something of its client
/// is unread is reset, and what it was told may be lost with it.
async fn tell_refusal<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut nowhere = [0; 1024];
    // Whoever has gone need not be told.
    if stream.write_all(REFUSAL).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    while stream.read(&mut nowhere).await.is_ok_and(|read| read > 0) {}
}

/// A connection that has a place, until it is dropped.
pub struct Admitted<S> {
    stream: S,
    meter: Arc<Calls>,
    _place: OwnedSemaphorePermit,
}

impl<S> Admitted<S> {
    /// What carries it.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S> Drop for Admitted<S> {
    fn drop(&mut self) {
        self.meter.connections.closed();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Admitted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Admitted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_two_whole_frames() {
        let length =
            |at: usize| u32::from_be_bytes([0, REFUSAL[at], REFUSAL[at + 1], REFUSAL[at + 2]]) as usize;
        assert_eq!((length(0), REFUSAL[3]), (0, 4), "SETTINGS");
        assert_eq!((9 + 9 + length(9), REFUSAL[12]), (REFUSAL.len(), 7), "GOAWAY");
        assert_eq!(REFUSAL[22..26], [0, 0, 0, 0xb], "ENHANCE_YOUR_CALM");
    }
}
