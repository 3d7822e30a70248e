//! The port for operators: `/metrics`, `/livez`, `/readyz`, and at `/` a page that says how the cluster is.
//!
//! Nothing here changes anything, and nothing that it shows is a secret. Whoever connects may send anything: one
//! connection carries one request, head and answer are bounded in size, both together in time, and the connections in
//! number. Those beyond wait in the system's queue, in their order, so that a probe is late at worst.

mod page;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::cluster::Observer;
use crate::metrics::{Format, Metrics};
use crate::runtime::Runtime;

/// The largest head of a request, in bytes, and the most headers in it: a browser sends about a kilobyte.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// After a failed accept (no file descriptors left, mostly) the next try waits, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
/// The page brings its own style, and nothing else may be loaded into it or put around it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// What whoever connects may take up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// From the accept of a connection to its end, head and answer together.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // Some scrapers, some probes, some people, all of which are done in some milliseconds.
        Self { connections: 64, time: Duration::from_secs(10) }
    }
}

/// What is served.
pub struct Operators {
    /// Behind `/metrics`.
    pub metrics: Metrics,
    /// Behind the others.
    pub observer: Arc<Observer>,
    /// True from the moment when the daemon starts to shut down.
    pub stopping: watch::Receiver<bool>,
    /// What whoever connects may take up.
    pub limits: Limits,
    /// Clock and tasks.
    pub runtime: Runtime,
}

/// Serves for as long as this is polled. A connection that is open then has its time, and no more.
pub async fn serve(operators: Arc<Operators>, listener: TcpListener) -> Infallible {
    let places = Arc::new(Semaphore::new(operators.limits.connections));
    let Runtime { clock, spawner, .. } = operators.runtime.clone();
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let limit = clock.sleep_until(clock.now() + operators.limits.time);
                let connection = serve_connection(operators.clone(), stream);
                spawner.spawn(Box::pin(async move {
                    future::select(Box::pin(connection), limit).await;
                    drop(place);
                }));
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "could not accept a connection of an operator"
                );
                clock.sleep_until(clock.now() + ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(operators: Arc<Operators>, stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| {
        future::ready(Ok::<_, Infallible>(operators.answer(&request)))
    });
    // The time of the connection is bounded as a whole, so that no part of it needs a timer of its own.
    let served = http1::Builder::new()
        .keep_alive(false)
        .header_read_timeout(None::<Duration>)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection of an operator broke");
    }
}

impl Operators {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let known = match request.uri().path() {
            "/metrics" => Self::metrics,
            "/livez" => Self::live,
            "/readyz" => Self::ready,
            "/" => Self::page,
            _ => return respond(StatusCode::NOT_FOUND, TEXT, "not found\n".into()),
        };
        // Of a HEAD, hyper sends the head alone.
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refusal = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n".into());
            refusal.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        known(self, request.headers())
    }

    fn metrics(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let format = wanted_format(headers);
        respond(StatusCode::OK, format.content_type(), self.metrics.shown(format))
    }

    /// Whoever can answer is alive.
    fn live(&self, _: &HeaderMap) -> Response<Full<Bytes>> {
        respond(StatusCode::OK, TEXT, "ok\n".into())
    }

    fn ready(&self, _: &HeaderMap) -> Response<Full<Bytes>> {
        if *self.stopping.borrow() {
            return respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "shutting down\n".into());
        }
        let status = self.observer.look();
        let code = if status.serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        respond(code, TEXT, format!("{}\n", status.summary))
    }

    fn page(&self, _: &HeaderMap) -> Response<Full<Bytes>> {
        let now_unix_ms = self.runtime.clock.wall_unix_ms();
        respond(StatusCode::OK, HTML, page::page(&self.observer.look(), *self.stopping.borrow(), now_unix_ms))
    }
}

/// OpenMetrics for whoever asks for it, as Prometheus does; what everything can read for the others.
fn wanted_format(headers: &HeaderMap) -> Format {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    match accepts.into_iter().any(|value| value.contains("application/openmetrics-text")) {
        true => Format::OpenMetrics,
        false => Format::Text,
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("content-security-policy"), POLICY),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_are_for_those_who_ask_for_them() {
        let with = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, http::HeaderValue::from_static(accept));
            wanted_format(&headers)
        };
        // What Prometheus 3 sends.
        let prometheus =
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.3";
        assert_eq!(with(prometheus), Format::OpenMetrics);
        for other in ["*/*", "text/html", "text/plain;version=0.0.4", ""] {
            assert_eq!(with(other), Format::Text, "{other}");
        }
        assert_eq!(wanted_format(&HeaderMap::new()), Format::Text);
    }
}
