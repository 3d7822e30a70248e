//! What bounds a request while it is on its way: how long it may take, and how many bytes of such requests there may be.
//!
//! A handler runs when the whole request is there. So without a bound a client that sends half of each request would keep
//! as much memory as it has calls times the largest message, for as long as it answers pings. Bytes are counted by the length
//! that a message announces, because that much is set aside for it. Small messages are not counted: their number is bounded by
//! that of the calls.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Request;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::bytes_gauge::{BytesGauge, Full, Taken};
use super::layers::ConnectionInfo;
use super::status;
use crate::limits::{
    ARRIVING_BYTES_MAX, ARRIVING_BYTES_PER_CONNECTION_MAX, ARRIVING_SMALL_BYTES as SMALL_BYTES,
};
use crate::runtime::{Clock, Moment};

/// Whether it is compressed, and its length: what stands before each message of gRPC.
const PREFIX_BYTES: usize = 5;

/// For the requests of one connection.
pub fn gauge_of_connection() -> BytesGauge {
    BytesGauge::new("arriving_bytes_per_connection_max", ARRIVING_BYTES_PER_CONNECTION_MAX)
}

/// What all requests are held against.
#[derive(Clone)]
pub struct Arrivals {
    clock: Arc<dyn Clock>,
    timeout: Duration,
    bytes: BytesGauge,
    /// Paths of methods whose clients may go on sending.
    streaming: Arc<BTreeSet<String>>,
}

impl Arrivals {
    /// `timeout` is for a whole request, and for each message of a stream once it has begun.
    pub fn new(clock: Arc<dyn Clock>, timeout: Duration, streaming: BTreeSet<String>) -> Self {
        Self {
            clock,
            timeout,
            bytes: BytesGauge::new("arriving_bytes_max", ARRIVING_BYTES_MAX),
            streaming: Arc::new(streaming),
        }
    }

    /// The same request, with a body that is bounded.
    pub fn bounded(&self, request: Request<Body>) -> Request<Body> {
        let connection = request.extensions().get::<ConnectionInfo>().map(|info| info.arriving.clone());
        let streams = self.streaming.contains(request.uri().path());
        let mut arriving = Arriving {
            body: Body::empty(),
            clock: self.clock.clone(),
            timeout: self.timeout,
            gauges: connection.into_iter().chain([self.bytes.clone()]).collect(),
            streams,
            messages: Messages::default(),
            taken: Vec::new(),
            until: (!streams).then(|| self.clock.now() + self.timeout),
            timer: None,
        };
        request.map(|body| {
            arriving.body = body;
            Body::new(arriving)
        })
    }
}

/// Where the messages in a stream of bytes begin and end.
#[derive(Debug, Default)]
struct Messages {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the prefix that have come.
    begun: usize,
    /// Bytes of the message that have not come.
    missing: usize,
}

/// What has come of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It will have so many bytes.
    Prefix(usize),
    /// It is whole.
    End,
}

impl Messages {
    /// The next boundary in `bytes`, which are cut up to there; `None` when all of them are used up.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Part> {
        if self.begun < PREFIX_BYTES {
            let more = bytes.len().min(PREFIX_BYTES - self.begun);
            self.prefix[self.begun..self.begun + more].copy_from_slice(&bytes[..more]);
            *bytes = &bytes[more..];
            self.begun += more;
            if self.begun < PREFIX_BYTES {
                return None;
            }
            let [_, length @ ..] = self.prefix;
            self.missing = u32::from_be_bytes(length) as usize;
            return Some(Part::Prefix(self.missing));
        }
        let more = bytes.len().min(self.missing);
        *bytes = &bytes[more..];
        self.missing -= more;
        if self.missing > 0 {
            return None;
        }
        self.begun = 0;
        Some(Part::End)
    }

    /// Nothing of a message has come that is not whole.
    fn is_between(&self) -> bool {
        self.begun == 0
    }
}

/// A body that is on its way.
struct Arriving {
    body: Body,
    clock: Arc<dyn Clock>,
    timeout: Duration,
    gauges: Vec<BytesGauge>,
    streams: bool,
    messages: Messages,
    /// For the message that is on its way.
    taken: Vec<Taken>,
    /// When it must be there; `None` between two messages of a stream.
    until: Option<Moment>,
    /// For `until`; made when there is something to wait for.
    timer: Option<BoxFuture<'static, ()>>,
}

impl Arriving {
    fn count(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while let Some(part) = self.messages.next(&mut bytes) {
            match part {
                Part::Prefix(length) if length > SMALL_BYTES => {
                    let taken: Result<Vec<_>, Full> =
                        self.gauges.iter().map(|gauge| gauge.take(length)).collect();
                    self.taken = taken.map_err(|full| status::too_much_arriving(&full))?;
                }
                Part::Prefix(_) => {}
                Part::End => self.taken.clear(),
            }
        }
        if self.streams {
            match (self.messages.is_between(), self.until) {
                (true, _) => (self.until, self.timer) = (None, None),
                (false, None) => self.until = Some(self.clock.now() + self.timeout),
                (false, Some(_)) => {}
            }
        }
        Ok(())
    }

    /// Whether its time is over.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let Some(until) = self.until else { return false };
        let timer = self.timer.get_or_insert_with(|| self.clock.sleep_until(until));
        timer.as_mut().poll(context).is_ready()
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Pending if this.is_late(context) => {
                Poll::Ready(Some(Err(status::not_arrived(this.timeout))))
            }
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(match frame.data_ref() {
                Some(bytes) => this.count(bytes).map(|()| frame),
                None => Ok(frame),
            })),
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(messages: &mut Messages, mut bytes: &[u8]) -> Vec<Part> {
        std::iter::from_fn(|| messages.next(&mut bytes)).collect()
    }

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let stream = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 0], &[7; 256]].concat();
        let expected = [Part::Prefix(3), Part::End, Part::Prefix(0), Part::End, Part::Prefix(256), Part::End];
        for size in [1, 2, 3, 7, 100, stream.len()] {
            let mut messages = Messages::default();
            let found: Vec<_> = stream.chunks(size).flat_map(|chunk| parts(&mut messages, chunk)).collect();
            assert_eq!(found, expected, "{size} bytes at a time");
            assert!(messages.is_between());
        }
        let mut messages = Messages::default();
        assert_eq!(parts(&mut messages, &[0, 0, 0, 0, 2, 1]), [Part::Prefix(2)]);
        assert!(!messages.is_between());
    }
}
