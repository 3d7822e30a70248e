//! What bounds answers while they are on their way: how many bytes there may be that clients have not read.
//!
//! An answer is in memory until its client takes it, and a client that opens streams and never gives them a window takes none. The
//! answers of calls are encoded when they are there, and counted until the last byte has been written to the connection. What is too
//! much then is dropped, and its client told: of a call that reads, that nothing happened; of another one, that it has to look.
//!
//! The events of a stream wait until there is room on its connection; where the daemon has none, the stream ends. Small messages
//! are not counted: their number is bounded by that of the calls.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use event_listener::EventListener;
use futures::future;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::bytes_gauge::{BytesGauge, Full, Taken};
use super::status;
use crate::access::Right;
use crate::access::methods::{self, Entrance};
use crate::limits::{
    LEAVING_BYTES_MAX, LEAVING_BYTES_PER_CONNECTION_MAX, LEAVING_SMALL_BYTES as SMALL_BYTES,
};
use crate::meter::calls::MethodMeter;

/// What an answer takes up, in times of its length: tonic encodes those of a stream into a buffer that grows by doubling, and keeps all
/// of it. Others are counted alike.
const TAKEN_UP: usize = 2;

/// For the answers on one connection.
pub fn gauge_of_connection() -> BytesGauge {
    BytesGauge::new("leaving_bytes_per_connection_max", LEAVING_BYTES_PER_CONNECTION_MAX)
}

/// For all answers of the daemon.
pub fn gauge_of_daemon() -> BytesGauge {
    BytesGauge::new("leaving_bytes_max", LEAVING_BYTES_MAX)
}

/// What one answer is held against: its connection, and the daemon.
pub struct Leaving {
    /// `None` for a connection that nobody counts.
    pub connection: Option<BytesGauge>,
    /// All of them.
    pub daemon: BytesGauge,
}

impl Leaving {
    /// The answer of a call that is no stream, encoded and counted; or what its client is told instead.
    pub async fn whole(self, answer: Response<Body>, method: &MethodMeter) -> Response<Body> {
        let (head, mut body) = answer.into_parts();
        let first = future::poll_fn(|context| Poll::Ready(Pin::new(&mut body).poll_frame(context))).await;
        let first = match first {
            Poll::Ready(Some(Ok(frame))) => match self.counted(frame, false) {
                Ok(frame) => Some(Ok(frame)),
                Err(full) => return too_much(&full, method).into_http(),
            },
            Poll::Ready(Some(Err(status))) => Some(Err(status)),
            Poll::Ready(None) | Poll::Pending => None,
        };
        Response::from_parts(head, Body::new(Counted { first, body, leaving: self, room: None }))
    }

    /// The answer of a stream, of which each message waits for room on its connection.
    pub fn stream(self, answer: Response<Body>) -> Response<Body> {
        answer.map(|body| Body::new(Counted { first: None, body, leaving: self, room: None }))
    }

    /// What `has_waited` for its connection is not held against that again.
    fn counted(&self, frame: Frame<Bytes>, has_waited: bool) -> Result<Frame<Bytes>, Full> {
        let data = match frame.into_data() {
            Ok(data) if data.len() > SMALL_BYTES => data,
            Ok(data) => return Ok(Frame::data(data)),
            Err(trailers) => return Ok(trailers),
        };
        let bytes = data.len() * TAKEN_UP;
        let on_connection = self.connection.as_ref().map(|connection| match has_waited {
            true => Ok(connection.take_anyway(bytes)),
            false => connection.take(bytes),
        });
        let taken = [on_connection.transpose()?, Some(self.daemon.take(bytes)?)];
        Ok(Frame::data(Bytes::from_owner(Unread { data, _taken: taken })))
    }
}

/// Bytes of an answer, until they have been written.
struct Unread {
    data: Bytes,
    _taken: [Option<Taken>; 2],
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

fn too_much(full: &Full, method: &MethodMeter) -> Status {
    match methods::entrance(&format!("/{}/{}", method.service, method.method)) {
        Some(Entrance::Needs(need)) if need.right != Right::Read => status::answer_dropped(full),
        Some(_) | None => status::too_much_leaving(full),
    }
}

/// A body that is counted until it has been written.
struct Counted {
    /// What was encoded before.
    first: Option<Result<Frame<Bytes>, Status>>,
    body: Body,
    leaving: Leaving,
    /// What tells that there may be some on the connection.
    room: Option<EventListener>,
}

impl Counted {
    /// Until there is some on the connection. One that is given back between the look and the listening is seen by the second look.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(connection) = &self.leaving.connection else { return Poll::Ready(()) };
        while connection.is_full() {
            let room = self.room.get_or_insert_with(|| connection.less());
            if connection.is_full() {
                ready!(Pin::new(room).poll(context));
            }
            self.room = None;
        }
        self.room = None;
        Poll::Ready(())
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(first));
        }
        ready!(this.poll_room(context));
        match ready!(Pin::new(&mut this.body).poll_frame(context)) {
            Some(Ok(frame)) => Poll::Ready(Some(
                this.leaving.counted(frame, true).map_err(|full| status::too_much_leaving(&full)),
            )),
            other => Poll::Ready(other),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = SMALL_BYTES + 1;

    /// A body of so many large messages, and the gauges of its connection and of the daemon.
    fn streamed(messages: usize, connection_max: usize, daemon_max: usize) -> (Body, BytesGauge, BytesGauge) {
        let (connection, daemon) = (BytesGauge::new("c", connection_max), BytesGauge::new("d", daemon_max));
        let leaving = Leaving { connection: Some(connection.clone()), daemon: daemon.clone() };
        let frames = (0..messages).map(|_| Ok::<_, Status>(Frame::data(Bytes::from(vec![7; LARGE]))));
        let body = Body::new(http_body_util::StreamBody::new(futures::stream::iter(frames)));
        (leaving.stream(Response::new(body)).into_body(), connection, daemon)
    }

    async fn next(body: &mut Body) -> Result<Bytes, Status> {
        let frame = future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        frame.expect("one more").map(|frame| frame.into_data().expect("no trailers"))
    }

    #[tokio::test]
    async fn a_stream_waits_until_its_connection_has_room() {
        let (mut body, connection, daemon) = streamed(3, TAKEN_UP * LARGE + 1, usize::MAX);
        let (first, second) = (next(&mut body).await.unwrap(), next(&mut body).await.unwrap());
        assert_eq!(first.len(), LARGE);
        let mut third = Box::pin(next(&mut body));
        assert!(futures::poll!(&mut third).is_pending());
        // Parts of it are as good as all of it, for they are one piece of memory.
        let part = first.slice(..1);
        drop(first);
        assert!(futures::poll!(&mut third).is_pending());
        drop(part);
        let third = third.await.unwrap();
        drop((second, third));
        assert!(connection.take(TAKEN_UP * LARGE + 1).is_ok() && daemon.take(1).is_ok());
    }

    #[tokio::test]
    async fn a_stream_ends_where_the_daemon_has_no_room() {
        let (mut body, _connection, daemon) = streamed(2, usize::MAX, TAKEN_UP * LARGE);
        let first = next(&mut body).await.unwrap();
        let refused = next(&mut body).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("the most that d allows"), "{refused:?}");
        drop(first);
        assert!(daemon.take(TAKEN_UP * LARGE).is_ok());
    }
}
