//! [`Opening`]: the beginning of a connection, up to the preface of HTTP/2.
//!
//! A connection that is open and says nothing costs a file descriptor and nobody pings it yet: hyper begins with that after
//! the preface. So the preface has a time of its own, and from then on the pings find out who is gone, or hangs half way in a
//! frame, where no answer to a ping can be sent.
//!
//! Browsers, probes and `curl` without a flag speak HTTP/1, and to them the frames of HTTP/2 are noise. So what is written before the
//! preface has come is kept back, and who begins with a method of HTTP/1 is told in its own words what this port is.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::meter::calls::Calls;

/// What a client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What may be written before that, in bytes: SETTINGS, and a window for the connection.
const HELD_BYTES_MAX: usize = 4_096;
/// What is read of a client of HTTP/1 after it was told, in bytes: enough for a request with a small body.
const HTTP1_READ_MAX: usize = 1 << 20;

/// A connection whose preface has to come in time.
pub struct Opening<S> {
    stream: S,
    stage: Stage,
    /// Written and not sent: while the preface is awaited, and until it has all gone out after that.
    held: Vec<u8>,
    meter: Arc<Calls>,
}

enum Stage {
    /// So many bytes of the preface have come.
    Awaited { seen: usize, timer: BoxFuture<'static, ()>, http1_answer: Arc<[u8]> },
    /// A client of HTTP/1 is being told so; so many bytes have been sent, and so many read since.
    Refusing { answer: Arc<[u8]>, sent: usize, closed: bool, read: usize, timer: BoxFuture<'static, ()> },
    /// HTTP/2, or something of which it will make nothing.
    Open,
}

/// An answer to whatever request of HTTP/1. `about` is what this port is, and `operators` where another one is that does speak it.
pub fn http1_answer(about: &str, operators: Option<SocketAddr>) -> Arc<[u8]> {
    let elsewhere = match operators {
        Some(address) if address.ip().is_unspecified() => {
            format!(" Metrics, probes and a status page are on port {}.", address.port())
        }
        Some(address) => format!(" Metrics, probes and a status page are at http://{address}/."),
        None => String::new(),
    };
    let text = format!("{about}{elsewhere}\n");
    let head = "HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{text}", text.len()).into_bytes().into()
}

/// Whether a first byte may be that of a request of HTTP/1: methods are capitals.
pub(super) fn is_http1(first: u8) -> bool {
    first.is_ascii_uppercase()
}

impl<S> Opening<S> {
    /// Until the timer; after this there is an error. `http1_answer` is for who speaks that.
    pub(super) fn new(
        stream: S,
        timer: BoxFuture<'static, ()>,
        http1_answer: Arc<[u8]>,
        meter: Arc<Calls>,
    ) -> Self {
        Self { stream, stage: Stage::Awaited { seen: 0, timer, http1_answer }, held: Vec::new(), meter }
    }

    /// What the bytes that have come make of the stage; `false` if they are not for the reader.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let Stage::Awaited { seen, .. } = &mut self.stage else { return true };
        let awaited = &PREFACE[*seen..];
        let length = bytes.len().min(awaited.len());
        if bytes[..length] == awaited[..length] {
            *seen += length;
            if *seen == PREFACE.len() {
                self.stage = Stage::Open;
            }
            return true;
        }
        // What begins as the preface does begins with a capital.
        let is_http1 = *seen > 0 || bytes.first().copied().is_some_and(is_http1);
        let before = std::mem::replace(&mut self.stage, Stage::Open);
        match before {
            Stage::Awaited { timer, http1_answer, .. } if is_http1 => {
                self.meter.connections.http1.one();
                self.held = Vec::new();
                self.stage = Stage::Refusing { answer: http1_answer, sent: 0, closed: false, read: 0, timer };
                false
            }
            _ => true,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Opening<S> {
    /// Sends what was held back.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }

    /// Tells a client of HTTP/1, and reads on until it has gone: a connection that is closed while something of its client is
    /// unread is reset, and what it was told may be lost with it.
    fn poll_refused(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Stage::Refusing { answer, sent, closed, read, timer } = &mut self.stage else {
            return Poll::Pending;
        };
        if timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(io::ErrorKind::TimedOut.into());
        }
        let stream = &mut self.stream;
        while *sent < answer.len() {
            match ready!(Pin::new(&mut *stream).poll_write(context, &answer[*sent..])) {
                Ok(0) => return Poll::Ready(io::ErrorKind::WriteZero.into()),
                Ok(length) => *sent += length,
                Err(error) => return Poll::Ready(error),
            }
        }
        if !*closed {
            if let Err(error) = ready!(Pin::new(&mut *stream).poll_shutdown(context)) {
                return Poll::Ready(error);
            }
            *closed = true;
        }
        let mut nowhere = [0; 1_024];
        while *read < HTTP1_READ_MAX {
            let mut buffer = ReadBuf::new(&mut nowhere);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer)) {
                Err(error) => return Poll::Ready(error),
                Ok(()) if buffer.filled().is_empty() => break,
                Ok(()) => *read += buffer.filled().len(),
            }
        }
        Poll::Ready(io::Error::new(io::ErrorKind::InvalidData, "the client speaks HTTP/1"))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Stage::Awaited { .. } = this.stage {
            let before = buffer.filled().len();
            let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
            let came = polled.is_ready() && buffer.filled().len() > before;
            if came && !this.take(&buffer.filled()[before..]) {
                buffer.set_filled(before);
            }
            match &mut this.stage {
                Stage::Awaited { timer, .. } => {
                    if timer.as_mut().poll(context).is_pending() {
                        return polled;
                    }
                    this.meter.connections.silent.one();
                    let error = io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface has come");
                    return Poll::Ready(Err(error));
                }
                // What does not go out now does so with the next write; an error comes again there.
                Stage::Open => {
                    let _ = this.poll_held(context);
                    return polled;
                }
                Stage::Refusing { .. } => {}
            }
        }
        match this.stage {
            Stage::Refusing { .. } => this.poll_refused(context).map(Err),
            Stage::Awaited { .. } | Stage::Open => Pin::new(&mut this.stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.stage {
            Stage::Awaited { .. } if self.held.len() + bytes.len() > HELD_BYTES_MAX => {
                Poll::Ready(Err(io::Error::other("more than is held back is written before the preface")))
            }
            Stage::Awaited { .. } => {
                self.held.extend_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
            // Nobody there would understand it.
            Stage::Refusing { .. } => Poll::Ready(Ok(bytes.len())),
            Stage::Open => {
                ready!(self.poll_held(context))?;
                Pin::new(&mut self.stream).poll_write(context, bytes)
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stage {
            Stage::Awaited { .. } | Stage::Refusing { .. } => Poll::Ready(Ok(())),
            Stage::Open => {
                ready!(self.poll_held(context))?;
                Pin::new(&mut self.stream).poll_flush(context)
            }
        }
    }

    /// With what was held back: that the daemon is going is in it.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.stage {
            Stage::Open => {
                ready!(self.poll_held(context))?;
                Pin::new(&mut self.stream).poll_write_vectored(context, slices)
            }
            Stage::Awaited { .. } | Stage::Refusing { .. } => {
                let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
                self.poll_write(context, first)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(operators: Option<&str>) -> String {
        let operators = operators.map(|address| address.parse().unwrap());
        String::from_utf8(http1_answer("This is gRPC.", operators).to_vec()).unwrap()
    }

    #[test]
    fn the_answer_is_whole_and_says_where_http1_is_spoken() {
        for (operators, text) in [
            (None, "This is gRPC.\n"),
            (
                Some("127.0.0.1:7481"),
                "This is gRPC. Metrics, probes and a status page are at http://127.0.0.1:7481/.\n",
            ),
            (Some("0.0.0.0:7481"), "This is gRPC. Metrics, probes and a status page are on port 7481.\n"),
        ] {
            let answer = answer(operators);
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(body, text);
            assert!(head.starts_with("HTTP/1.1 505 "), "{head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        }
    }
}
