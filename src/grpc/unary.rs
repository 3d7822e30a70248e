//! Calls with one request and one answer: from the bytes to the handler and back.
//!
//! tonic reads each request as a stream of messages, and writes each answer as one. For one message that takes a future of two
//! kilobytes, for as long as somebody waits for a lock, and two buffers of eight. Here a request is read by a future that is gone
//! when it has been read, and an answer is encoded into as many bytes as it has. What is not said here is tonic's, above and below.
//!
//! The form of both is "gRPC over HTTP/2" (grpc/doc/PROTOCOL-HTTP2.md); nothing is compressed.

use std::convert::Infallible;
use std::future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use http_body::{Body as _, Frame};
use prost::Message;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::status;

/// Whether it is compressed, and its length: what stands before each message.
const PREFIX_BYTES: usize = 5;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What handles one method, as tonic's traits have it.
pub(super) type Handler<A, T, R> =
    for<'a> fn(&'a A, Request<T>) -> BoxFuture<'a, Result<Response<R>, Status>>;

/// Reads a request of at most so many bytes, has it handled, and encodes the answer.
pub(super) fn answer<A, T, R>(
    request: http::Request<Body>,
    bytes_max: usize,
    api: Arc<A>,
    handler: Handler<A, T, R>,
) -> BoxFuture<'static, Result<http::Response<Body>, Infallible>>
where
    A: Send + Sync + 'static,
    T: Message + Default + 'static,
    R: Message + 'static,
{
    let reading = read(request, bytes_max).boxed();
    async move {
        let answered = match reading.await {
            Ok(request) => handler(&api, request).await,
            Err(status) => Err(status),
        };
        Ok(answered.and_then(encoded).unwrap_or_else(Status::into_http))
    }
    .boxed()
}

async fn read<T: Message + Default>(
    request: http::Request<Body>,
    bytes_max: usize,
) -> Result<Request<T>, Status> {
    let (parts, mut body) = request.into_parts();
    refuse_compressed(&parts.headers)?;
    let mut metadata = MetadataMap::from_headers(parts.headers);
    let mut arrived = Arrived::Nothing;
    while let Some(frame) = future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        match frame?.into_data() {
            Ok(data) => arrived.push(data, bytes_max)?,
            Err(other) => {
                let trailers = other.into_trailers().unwrap_or_default();
                metadata.as_mut().extend(trailers);
            }
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(Request::from_parts(metadata, parts.extensions, arrived.message()?))
}

/// # Errors
/// `UNIMPLEMENTED`, with what is understood in place of it, as the specification has it.
fn refuse_compressed(headers: &HeaderMap) -> Result<(), Status> {
    let Some(encoding) = headers.get("grpc-encoding").filter(|encoding| *encoding != "identity") else {
        return Ok(());
    };
    let encoding = String::from_utf8_lossy(encoding.as_bytes());
    let text = format!("requests that are compressed ({encoding:?}) are not understood; nothing happened");
    let mut status = Status::unimplemented(text);
    let understood = tonic::metadata::MetadataValue::from_static("identity");
    status.metadata_mut().insert("grpc-accept-encoding", understood);
    Err(status)
}

/// The bytes of a request, as far as they have come.
enum Arrived {
    Nothing,
    /// All in one piece, as most are.
    Piece(Bytes),
    Pieces(BytesMut),
}

impl Arrived {
    fn push(&mut self, data: Bytes, bytes_max: usize) -> Result<(), Status> {
        match self {
            Self::Nothing => *self = Self::Piece(data),
            Self::Piece(first) => {
                let mut pieces = BytesMut::from(&first[..]);
                pieces.put(data);
                *self = Self::Pieces(pieces);
            }
            Self::Pieces(pieces) => pieces.put(data),
        }
        let Some(length) = length_of(self.bytes())? else { return Ok(()) };
        if length > bytes_max {
            let text = format!(
                "the request has {length} bytes, more than the {bytes_max} that this daemon takes; nothing happened"
            );
            return Err(Status::out_of_range(text));
        }
        match self.bytes().len() > PREFIX_BYTES + length {
            true => Err(Status::internal("there is more than one message")),
            false => Ok(()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::Piece(piece) => piece,
            Self::Pieces(pieces) => pieces,
        }
    }

    fn message<T: Message + Default>(self) -> Result<T, Status> {
        if self.bytes().is_empty() {
            return Err(Status::internal("there is no message"));
        }
        let length = length_of(self.bytes())?;
        if length.is_none_or(|length| self.bytes().len() < PREFIX_BYTES + length) {
            return Err(Status::internal("it ends within the message"));
        }
        let message = match self {
            // Its values are copied, so that they don't keep what else the connection read along with them.
            Self::Nothing | Self::Piece(_) => T::decode(&self.bytes()[PREFIX_BYTES..]),
            // They share its memory.
            Self::Pieces(pieces) => {
                let mut pieces = pieces.freeze();
                pieces.advance(PREFIX_BYTES);
                T::decode(pieces)
            }
        };
        message.map_err(|error| Status::internal(error.to_string()))
    }
}

/// That of the message, once its prefix is there.
fn length_of(bytes: &[u8]) -> Result<Option<usize>, Status> {
    match bytes {
        [0, a, b, c, d, ..] => Ok(Some(u32::from_be_bytes([*a, *b, *c, *d]) as usize)),
        [] | [0, ..] => Ok(None),
        [1, ..] => Err(Status::internal("the message is said to be compressed, and not how")),
        [flag, ..] => Err(Status::internal(format!("the message begins with {flag} in place of 0 or 1"))),
    }
}

fn encoded<R: Message>(response: Response<R>) -> Result<http::Response<Body>, Status> {
    let (metadata, message, extensions) = response.into_parts();
    let length = message.encoded_len();
    let Ok(announced) = u32::try_from(length) else {
        // No answer comes near that. The call has been carried out, so it must not look like a request that can't be read.
        return Err(status::panicked());
    };
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(announced);
    message.encode_raw(&mut bytes);
    let mut response = http::Response::new(Body::new(Answer { message: Some(bytes.freeze()), ended: false }));
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = metadata.into_headers();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    *response.extensions_mut() = extensions;
    Ok(response)
}

/// The message, then that all is well.
struct Answer {
    message: Option<Bytes>,
    ended: bool,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        if std::mem::replace(&mut self.ended, true) {
            return Poll::Ready(None);
        }
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::stream;
    use http_body_util::{BodyExt, StreamBody};
    use tonic::Code;

    use super::*;
    use crate::proto::v1;

    const BYTES_MAX: usize = 1_000;

    /// A request whose bytes come in pieces of this size.
    fn request(bytes: &[u8], size: usize) -> http::Request<Body> {
        let pieces: Vec<_> = bytes
            .chunks(size)
            .map(|piece| Ok::<_, Status>(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        http::Request::new(Body::new(StreamBody::new(stream::iter(pieces))))
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
    }

    fn set() -> v1::SetRequest {
        let content = Some(v1::set_request::Content::Value(vec![7; 300].into()));
        v1::SetRequest { key: "k".into(), content, ..Default::default() }
    }

    fn reading(request: http::Request<Body>) -> Result<v1::SetRequest, Status> {
        block_on(read::<v1::SetRequest>(request, BYTES_MAX)).map(Request::into_inner)
    }

    #[test]
    fn a_request_is_read_however_it_is_cut() {
        let bytes = framed(&set().encode_to_vec());
        for size in [1, 2, 4, 5, 6, 100, bytes.len()] {
            assert_eq!(reading(request(&bytes, size)).unwrap(), set(), "{size} bytes at a time");
        }
        assert_eq!(reading(request(&framed(b""), 5)).unwrap(), v1::SetRequest::default());
    }

    #[test]
    fn what_comes_after_the_message_belongs_to_its_metadata() {
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static("x-after"), HeaderValue::from_static("1"))]);
        let frames = [Frame::data(Bytes::from(framed(b""))), Frame::trailers(trailers)].map(Ok::<_, Status>);
        let mut request = http::Request::new(Body::new(StreamBody::new(stream::iter(frames))));
        request.headers_mut().insert("x-before", HeaderValue::from_static("0"));
        let read = block_on(read::<v1::SetRequest>(request, BYTES_MAX)).unwrap();
        let value = |name| read.metadata().get(name).map(|value| value.to_str().unwrap());
        assert_eq!([value("x-before"), value("x-after")], [Some("0"), Some("1")]);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let whole = framed(&set().encode_to_vec());
        let internal = |bytes: &[u8], words: &str| (bytes.to_vec(), Code::Internal, words.to_owned());
        let large = [&[0][..], &(BYTES_MAX as u32 + 1).to_be_bytes()].concat();
        let cases = [
            internal(b"", "there is no message"),
            internal(&whole[..3], "it ends within the message"),
            internal(&whole[..whole.len() - 1], "it ends within the message"),
            internal(&[whole.clone(), vec![0]].concat(), "there is more than one message"),
            internal(&[1, 0, 0, 0, 0], "the message is said to be compressed, and not how"),
            internal(&[7, 0, 0, 0, 0], "the message begins with 7 in place of 0 or 1"),
            internal(&framed(&[0xff]), "failed to decode Protobuf message: invalid varint"),
            // Before any of it has come.
            (large, Code::OutOfRange, "the request has 1001 bytes, more than the 1000".to_owned()),
        ];
        for (bytes, code, words) in cases {
            for size in [1, bytes.len().max(1)] {
                let status = reading(request(&bytes, size)).unwrap_err();
                assert_eq!(status.code(), code, "{status:?}");
                assert!(status.message().starts_with(&words), "{status:?} for {words}");
            }
        }
        let mut compressed = request(&whole, whole.len());
        compressed.headers_mut().insert("grpc-encoding", HeaderValue::from_static("gzip"));
        let status = reading(compressed).unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity");
        let mut plain = request(&whole, whole.len());
        plain.headers_mut().insert("grpc-encoding", HeaderValue::from_static("identity"));
        assert_eq!(reading(plain).unwrap(), set());
    }

    #[test]
    fn an_answer_is_its_message_and_that_all_is_well() {
        let mut response = Response::new(set());
        response.metadata_mut().insert("x-with", "it".parse().unwrap());
        let response = encoded(response).unwrap();
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!([header("content-type"), header("x-with")], [Some("application/grpc"), Some("it")]);
        let collected = block_on(response.into_body().collect()).unwrap();
        assert_eq!(collected.trailers().unwrap().get("grpc-status").unwrap(), "0");
        assert_eq!(collected.to_bytes(), framed(&set().encode_to_vec()));
    }

    #[test]
    fn a_handler_answers_or_refuses() {
        struct Api;
        let call = |handler: Handler<Api, v1::SetRequest, v1::SetRequest>, bytes: &[u8]| {
            block_on(answer(request(bytes, 100), BYTES_MAX, Arc::new(Api), handler)).unwrap()
        };
        let bytes = framed(&set().encode_to_vec());
        let body =
            call(|_, request| async { Ok(Response::new(request.into_inner())) }.boxed(), &bytes).into_body();
        assert_eq!(block_on(body.collect()).unwrap().to_bytes(), bytes);
        let refused = call(|_, _| async { Err(Status::aborted("no")) }.boxed(), &bytes);
        assert_eq!(Status::from_header_map(refused.headers()).unwrap().code(), Code::Aborted);
        let unread = call(|_, _| unreachable!("it is not called"), b"");
        assert_eq!(Status::from_header_map(unread.headers()).unwrap().code(), Code::Internal);
    }
}
