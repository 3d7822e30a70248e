//! What happens to every call before and after its handler: whether it is let in, its deadline, the limits on calls in flight, its span, and
//! that it is counted.
//!
//! ```text
//! tonic: grpc-timeout -> CallLayer: span, Gate, count, CallTime, bounds on the request -> routes -> handler
//!                        ^ the response body keeps the count and the span until the last byte of a stream
//! ```
//!
//! tonic applies `grpc-timeout` by itself and answers without an `ErrorInfo`. The deadline that handlers work with is
//! earlier by a margin, so that the richer answer is there first; tonic's stays as the backstop.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::Code;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tracing::Instrument;

use super::access::{Caller, Gate};
use super::arrival::{self, Arrivals};
use super::bytes_gauge::BytesGauge;
use super::leaving::{self, Leaving};
use super::shown::Shown;
use super::status;
use crate::limits;
use crate::meter::calls::{CODES, Calls, MethodMeter};
use crate::runtime::{Clock, Moment};
use crate::telemetry;
use crate::telemetry::field;

/// The most that an answer gets to travel to the client before the client's deadline.
const MARGIN_MAX: Duration = Duration::from_millis(100);

/// Calls that are never refused for their number: whoever asks how the daemon is must get an answer when it is full.
const UNLIMITED_PREFIXES: [&str; 2] = ["/grpc.health.v1.Health/", "/majority.v1.ClusterService/GetStatus"];
/// Methods that a full connection may still call: a client whose waiting calls fill its connection must be able to
/// release and extend what they wait for.
const ENDING_METHODS: [&str; 2] = ["/majority.v1.LockService/Release", "/majority.v1.LockService/Extend"];

/// When a call came and until when its client listens; [`CallLayer`] puts it into the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallTime {
    /// When the daemon saw the request.
    pub arrived: Moment,
    /// The client's deadline less the margin; `None` when it gave none.
    pub client_deadline: Option<Moment>,
    /// When a stream ends at the latest: half the margin later, so that what the deadline leads to is told before.
    pub stream_deadline: Option<Moment>,
}

impl CallTime {
    /// From a request's headers. A malformed `grpc-timeout` counts as none, as it does for tonic.
    pub fn of(headers: &HeaderMap, now: Moment) -> Self {
        let timeout = headers.get("grpc-timeout").and_then(|value| parse_timeout(value.as_bytes()));
        Self {
            arrived: now,
            client_deadline: timeout.map(|timeout| now + (timeout - margin(timeout))),
            stream_deadline: timeout.map(|timeout| now + (timeout - margin(timeout) / 2)),
        }
    }

    /// Until when to answer: the client's word, or the default after the time that the call asks to wait.
    pub fn deadline(&self, default: Duration, wait: Duration) -> Moment {
        self.client_deadline.unwrap_or(self.arrived + wait + default)
    }

    /// The same for the first part of a stream. There the client's deadline is for the whole stream and may be far away,
    /// so that it only makes this one earlier.
    pub fn deadline_of_start(&self, default: Duration, wait: Duration) -> Moment {
        let without = self.arrived + wait + default;
        self.client_deadline.map_or(without, |deadline| deadline.min(without))
    }
}

/// A tenth of the time, and at most [`MARGIN_MAX`].
fn margin(timeout: Duration) -> Duration {
    (timeout / 10).min(MARGIN_MAX)
}

/// `TimeoutValue TimeoutUnit` of the gRPC specification: 1 to 8 digits and one of `H M S m u n`.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// How many calls are in flight, and how many may be. A stream counts until it ends.
#[derive(Clone, Debug)]
pub struct Gauge {
    name: &'static str,
    max: usize,
    now: Arc<AtomicUsize>,
}

impl Gauge {
    /// At zero. The name is that of the setting, for the error.
    pub fn new(name: &'static str, max: usize) -> Self {
        Self { name, max, now: Arc::default() }
    }

    fn enter(&self) -> Result<Counted, tonic::Status> {
        let counted = self.enter_anyway();
        match counted.before < self.max {
            true => Ok(counted),
            false => Err(status::rate_limited(self.name, self.max)),
        }
    }

    fn enter_anyway(&self) -> Counted {
        Counted { before: self.now.fetch_add(1, Ordering::Relaxed), now: self.now.clone() }
    }
}

/// One call in flight; counts down when dropped.
#[derive(Debug)]
struct Counted {
    before: usize,
    now: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the calls of one connection share; tonic puts it into the extensions of each of them.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Who is at the other end, if it has an address.
    pub peer: Option<SocketAddr>,
    /// The client's certificate, if it has shown one.
    pub certificate: Option<Shown>,
    /// Calls in flight on this connection.
    pub calls: Gauge,
    /// Bytes of requests that are on their way on this connection.
    pub arriving: BytesGauge,
    /// Bytes of answers that wait to be read on it.
    pub leaving: BytesGauge,
}

#[cfg(test)]
impl ConnectionInfo {
    pub(super) fn testing(certificate: Shown) -> Self {
        let calls = Gauge::new("calls_per_connection_max", 1);
        let (arriving, leaving) = (arrival::gauge_of_connection(), leaving::gauge_of_connection());
        Self { peer: None, certificate: Some(certificate), calls, arriving, leaving }
    }
}

/// A connection that carries its own count of calls, and that lets others have their turn: what one of them sends without a
/// pause would otherwise be worked off in one go, for as long as it comes.
pub struct Connection<S> {
    stream: S,
    info: ConnectionInfo,
    /// Bytes that have been read since others had a turn.
    read_in_turn: usize,
    /// Completes when the connection is to be closed, because of its certificate.
    closing: Option<BoxFuture<'static, ()>>,
}

impl<S> Connection<S> {
    /// Around an accepted stream.
    pub fn new(stream: S, peer: Option<SocketAddr>, calls_max: usize) -> Self {
        let calls = Gauge::new("calls_per_connection_max", calls_max);
        let (arriving, leaving) = (arrival::gauge_of_connection(), leaving::gauge_of_connection());
        let info = ConnectionInfo { peer, certificate: None, calls, arriving, leaving };
        Self { stream, info, read_in_turn: 0, closing: None }
    }

    /// With the certificate of the client, which has been verified, and what says when the connection is to be closed for it.
    pub(super) fn with_certificate(mut self, (shown, closing): (Shown, BoxFuture<'static, ()>)) -> Self {
        (self.info.certificate, self.closing) = (Some(shown), Some(closing));
        self
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        // Before a call is read that it may concern.
        if self.closing.as_mut().is_some_and(|closing| closing.as_mut().poll(context).is_ready()) {
            self.closing = None;
            let what = "the certificate of the client is not good any more";
            return Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, what)));
        }
        if self.read_in_turn >= limits::READ_IN_TURN_BYTES {
            self.read_in_turn = 0;
            // It goes on when the others have been.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        match polled {
            Poll::Ready(_) => self.read_in_turn += buffer.filled().len() - before,
            Poll::Pending => self.read_in_turn = 0,
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Wraps the routes; see the module.
#[derive(Clone)]
pub struct CallLayer {
    clock: Arc<dyn Clock>,
    calls: Gauge,
    arrivals: Arrivals,
    /// Bytes of answers that wait to be read, of all connections.
    leaving: BytesGauge,
    counted: Arc<Calls>,
    gate: Gate,
}

impl CallLayer {
    /// `calls` and `arrivals` bound those of the whole daemon, `counted` is told of each, and `gate` says who is let in.
    pub fn new(
        clock: Arc<dyn Clock>,
        calls: Gauge,
        arrivals: Arrivals,
        counted: Arc<Calls>,
        gate: Gate,
    ) -> Self {
        Self { clock, calls, arrivals, leaving: leaving::gauge_of_daemon(), counted, gate }
    }

    /// Counts the call, or refuses it.
    fn admit(&self, request: &Request<Body>) -> Result<Vec<Counted>, tonic::Status> {
        let path = request.uri().path();
        if UNLIMITED_PREFIXES.iter().any(|prefix| path.starts_with(prefix)) {
            return Ok(vec![]);
        }
        let connection = request.extensions().get::<ConnectionInfo>().map(|info| &info.calls);
        if ENDING_METHODS.contains(&path) {
            return Ok(connection.into_iter().chain([&self.calls]).map(Gauge::enter_anyway).collect());
        }
        connection.into_iter().chain([&self.calls]).map(Gauge::enter).collect()
    }
}

impl<S> tower::Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallService { inner, layer: Arc::new(self.clone()) }
    }
}

/// A service inside a [`CallLayer`]. It is cloned for each call.
#[derive(Clone)]
pub struct CallService<S> {
    inner: S,
    layer: Arc<CallLayer>,
}

impl<S> tower::Service<Request<Body>> for CallService<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut call = Call::start(&request, &self.layer);
        let let_in = self.layer.gate.admit(&mut request);
        match let_in.and_then(|()| self.layer.admit(&request)) {
            Ok(counted) => call.counted = counted,
            Err(refusal) => {
                call.code = Some(refusal.code());
                return Box::pin(futures::future::ready(Ok(refusal.into_http())));
            }
        }
        if let Some(identity) = request.extensions().get().and_then(Caller::identity) {
            call.span.record(field::IDENTITY, identity);
        }
        let time = CallTime::of(request.headers(), call.started);
        request.extensions_mut().insert(time);
        let connection = request.extensions().get::<ConnectionInfo>().map(|info| info.leaving.clone());
        let leaving = Leaving { connection, daemon: self.layer.leaving.clone() };
        let answer = self.inner.call(self.layer.arrivals.bounded(request)).instrument(call.span.clone());
        Box::pin(async move {
            // A panic ends this call only, and its client is told so. No state of the call outlives it; what the rooms
            // behind share is theirs to keep whole.
            let response = match AssertUnwindSafe(answer).catch_unwind().await {
                Ok(answer) => status::with_reason(answer?),
                Err(_) => status::panicked().into_http(),
            };
            let response = match call.method.streams {
                true => leaving.stream(response),
                false => leaving.whole(response, &call.method).await,
            };
            // An error without a body has its code in the headers.
            call.note_code(response.headers());
            Ok(response.map(|body| Body::new(CallBody { body, call })))
        })
    }
}

/// A call from its arrival to the last byte of its answer.
struct Call {
    clock: Arc<dyn Clock>,
    started: Moment,
    span: tracing::Span,
    /// `None` for as long as there is none; a client that goes away gets none.
    code: Option<Code>,
    counted: Vec<Counted>,
    method: Arc<MethodMeter>,
}

impl Call {
    /// Only the method, the peer and, once they are known, the identity and in traces the names are in the span: requests hold
    /// secrets.
    fn start(request: &Request<Body>, layer: &CallLayer) -> Self {
        let peer = request.extensions().get::<ConnectionInfo>().and_then(|info| info.peer);
        let (clock, method) = (layer.clock.clone(), layer.counted.at(request.uri().path()).clone());
        let span = match telemetry::is_traced() {
            true => traced(request, &method, peer),
            false => tracing::debug_span!(
                "call",
                method = request.uri().path(),
                peer = peer.map(tracing::field::display),
                identity = tracing::field::Empty,
            ),
        };
        method.began();
        Self { started: clock.now(), clock, span, code: None, counted: vec![], method }
    }

    fn note_code(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.clock.now().since(self.started);
        self.method.ended(self.code.map(|code| code as usize), took);
        let duration_ms = took.as_secs_f64() * 1000.0;
        match self.code {
            Some(code @ (Code::Internal | Code::DataLoss)) => {
                tracing::warn!(parent: &self.span, ?code, duration_ms, "a call failed for a reason that an operator has to see");
            }
            Some(code) => tracing::debug!(parent: &self.span, ?code, duration_ms, "answered"),
            None => tracing::debug!(parent: &self.span, duration_ms, "the client went away"),
        }
        // Of a span that is not traced these are no fields.
        if let Some(code) = self.code {
            self.span.record("code", CODES[code as usize]);
        }
        if self.code.is_some_and(is_fault) {
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

/// The same span with what a trace has of it: a name of few, because a path is whatever the client says, and the trace that the
/// client has it belong to.
fn traced(request: &Request<Body>, method: &MethodMeter, peer: Option<SocketAddr>) -> tracing::Span {
    let name = format!("{}/{}", method.service, method.method);
    let span = tracing::debug_span!(
        "call",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        rpc.system = "grpc",
        method = name,
        peer = peer.map(tracing::field::display),
        identity = tracing::field::Empty,
        lock = tracing::field::Empty,
        queue = tracing::field::Empty,
        key = tracing::field::Empty,
        prefix = tracing::field::Empty,
        names = tracing::field::Empty,
        code = tracing::field::Empty,
    );
    telemetry::follow(&span, |name| request.headers().get(name)?.to_str().ok());
    span
}

/// What OpenTelemetry takes for a fault of the server.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Keeps the [`Call`] until the body ends or is dropped.
struct CallBody {
    body: Body,
    call: Call,
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = &mut *self;
        let polled = this.call.span.in_scope(|| Pin::new(&mut this.body).poll_frame(context));
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            this.call.note_code(trailers);
        }
        polled
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

    fn headers(timeout: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", timeout.parse().unwrap());
        headers
    }

    #[test]
    fn a_connection_that_never_pauses_lets_others_have_their_turn() {
        let mut endless = Connection::new(tokio::io::repeat(7), None, 1);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut bytes = vec![0; 1_000];
        let mut turn = || {
            let mut read = 0;
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                match Pin::new(&mut endless).poll_read(&mut context, &mut buffer) {
                    Poll::Ready(result) => result.unwrap(),
                    Poll::Pending => return read,
                }
                read += buffer.filled().len();
            }
        };
        for _ in 0..3 {
            let read = turn();
            assert!(
                (limits::READ_IN_TURN_BYTES..limits::READ_IN_TURN_BYTES + 1_000).contains(&read),
                "{read}"
            );
        }
    }

    #[test]
    fn timeouts_are_read_in_every_unit_and_nothing_else() {
        let cases = [
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("0S", Some(Duration::ZERO)),
            ("00000004m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("100000000n", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            (" 1S", None),
            ("1 S", None),
            ("1SS", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timeout(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(parse_timeout("5ü".as_bytes()), None);
    }

    #[test]
    fn the_answer_gets_a_tenth_of_the_time_to_travel_and_at_most_100_ms() {
        let now = Moment::from_start(Duration::from_secs(1000));
        let cases = [("500m", 450), ("1S", 900), ("2S", 1900), ("1M", 59_900), ("0m", 0)];
        for (timeout, milliseconds) in cases {
            let time = CallTime::of(&headers(timeout), now);
            assert_eq!(time.client_deadline, Some(now + Duration::from_millis(milliseconds)), "{timeout}");
        }
    }

    #[test]
    fn a_call_without_a_usable_timeout_gets_the_default_after_its_wait() {
        let now = Moment::from_start(Duration::from_secs(1000));
        let default = Duration::from_secs(10);
        for time in [CallTime::of(&HeaderMap::new(), now), CallTime::of(&headers("soon"), now)] {
            assert_eq!(time.deadline(default, Duration::from_secs(60)), now + Duration::from_secs(70));
        }
        let time = CallTime::of(&headers("5S"), now);
        assert_eq!(time.deadline(default, Duration::from_secs(60)), now + Duration::from_millis(4900));
    }

    #[test]
    fn a_stream_starts_within_its_wait_and_the_default_however_long_it_may_last() {
        let now = Moment::from_start(Duration::from_secs(1000));
        let (default, wait) = (Duration::from_secs(10), Duration::from_secs(60));
        let cases = [("1H", 70_000), ("1M", 59_900)];
        for (timeout, milliseconds) in cases {
            let time = CallTime::of(&headers(timeout), now);
            assert_eq!(time.deadline_of_start(default, wait), now + Duration::from_millis(milliseconds));
        }
    }

    #[tokio::test]
    async fn a_panic_is_told_as_an_unknown_outcome() {
        let counted = Arc::new(Calls::of([]));
        let clock = crate::runtime::system::runtime().clock;
        let arrivals = Arrivals::new(clock.clone(), Duration::from_secs(1), Default::default());
        let gate = Gate::new(None, counted.clone());
        let layer = CallLayer::new(clock, Gauge::new("calls_max", 1), arrivals, counted.clone(), gate);
        let broken = tower::service_fn(|_: Request<Body>| async {
            if true {
                panic!("a broken invariant");
            }
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        let mut service = tower::Layer::layer(&layer, broken);
        // Twice, because the first must give its place back.
        for _ in 0..2 {
            let response = tower::Service::call(&mut service, Request::new(Body::empty())).await.unwrap();
            let status = tonic::Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), Code::Internal);
        }
        assert_eq!(counted.at("/").codes().last(), Some(("INTERNAL", 2)));
    }

    #[test]
    fn a_gauge_refuses_past_its_limit_and_recovers() {
        let gauge = Gauge::new("calls_max", 2);
        let first = gauge.enter().unwrap();
        let _second = gauge.enter().unwrap();
        let refusal = gauge.enter().unwrap_err();
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        drop(gauge.enter_anyway());
        drop(first);
        assert!(gauge.enter().is_ok());
    }
}
