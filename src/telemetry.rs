//! What the daemon tells about itself: the set-up of `tracing`, and the one list of field names.
//!
//! Events go to stderr, so that stdout stays with the commands' own output. Spans go to a collector by OTLP, if there is one: that
//! of a call, that of a round which changes something for it, and one for each node that is asked. A round serves many calls at
//! a time: it is a child of the first, and linked to the others. Of what a request carries, the names are in the span of its call.

use std::io::IsTerminal;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing::Metadata;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Log, LogFormat, Tracing};

/// Names of fields of spans and events. One name, one meaning, in every room.
pub mod field {
    /// A node's place in the configured list.
    pub const NODE: &str = "node";
    /// A node's address, without secrets.
    pub const ADDRESS: &str = "address";
    /// The name of a lock.
    pub const LOCK: &str = "lock";
    /// The name of a queue.
    pub const QUEUE: &str = "queue";
    /// A key.
    pub const KEY: &str = "key";
    /// What names start with, of a list or a watch.
    pub const PREFIX: &str = "prefix";
    /// How many names a request has.
    pub const NAMES: &str = "names";
    /// The owner of a lease.
    pub const OWNER: &str = "owner";
    /// A fencing token.
    pub const TOKEN: &str = "token";
    /// The full name of a gRPC method.
    pub const METHOD: &str = "method";
    /// Who called: an address, or `unix`.
    pub const PEER: &str = "peer";
    /// Who called, by the rules of access.
    pub const IDENTITY: &str = "identity";
    /// The gRPC status code of an answer.
    pub const CODE: &str = "code";
    /// The reason of an error, as `google.rpc.ErrorInfo` has it.
    pub const REASON: &str = "reason";
    /// An error with its causes.
    pub const ERROR: &str = "error";
    /// How long something took, in milliseconds.
    pub const ELAPSED_MS: &str = "elapsed_ms";
    /// The name of the cluster.
    pub const CLUSTER: &str = "cluster";
    /// This run of this daemon.
    pub const DAEMON: &str = "daemon";
}

/// How long one export may take; what it carried is dropped then.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often spans are sent that have ended.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Spans that wait to be sent; with more the newest are dropped. Some MiB.
const SPANS_WAITING_MAX: usize = 4_096;
/// How long the end of a daemon waits for its last spans to be taken.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// The target of spans that are for traces alone, so that no directive of a log is about them.
const TRACED_TARGET: &str = "otlp";

/// Set once, at the start.
static TRACED: AtomicBool = AtomicBool::new(false);

/// Why events can't be written.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one. Settings that were validated have a good one.
    #[error("log.filter is not a list of directives")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The endpoint is none. Settings that were validated have a good one.
    #[error("tracing.otlp_endpoint can't be used")]
    Endpoint(#[source] opentelemetry_otlp::ExporterBuildError),
    /// The authorities can't be read any more.
    #[error("tracing.ca_file can't be read")]
    Authorities(#[source] std::io::Error),
    /// Something in this process did it before.
    #[error("the log was set up already")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What is left to do at the end.
#[must_use = "spans that have ended are sent by its end"]
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sends the spans that have ended. Blocks, for some seconds at most: not for a thread that serves.
    pub fn end(self) {
        if let Some(Err(error)) = self.traces.map(|traces| traces.shutdown_with_timeout(FLUSH_TIMEOUT)) {
            tracing::warn!(error = &error as &dyn std::error::Error, "the last spans could not be sent");
        }
    }
}

/// Sets up `tracing` for the whole process. Colours only for a terminal, and not if `NO_COLOR` is set. With an endpoint for traces
/// it must be called within a runtime of tokio.
///
/// # Errors
/// [`TelemetryError`], also when called twice.
pub fn init(log: &Log, traces: &Tracing) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::builder().parse(&log.filter).map_err(TelemetryError::Filter)?;
    let provider = traces.otlp_endpoint.as_deref().map(|endpoint| provider(endpoint, traces)).transpose()?;
    let exported = provider.as_ref().map(|provider| {
        let is_exported = |metadata: &Metadata<'_>| {
            metadata.is_span() && (metadata.target() == TRACED_TARGET || metadata.name() == "call")
        };
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("majorityd"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_level(false)
            .with_target(false)
            .with_filter(filter_fn(is_exported).with_max_level_hint(LevelFilter::DEBUG))
    });
    let registry = tracing_subscriber::registry().with(exported);
    let written = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => registry.with(written.with_ansi(colours_wanted()).with_filter(filter)).try_init(),
        LogFormat::Json => {
            registry.with(written.json().flatten_event(true).with_ansi(false).with_filter(filter)).try_init()
        }
    }
    .map_err(|error| TelemetryError::Twice(error.into()))?;
    TRACED.store(provider.is_some(), Ordering::Relaxed);
    Ok(Telemetry { traces: provider })
}

fn provider(endpoint: &str, traces: &Tracing) -> Result<SdkTracerProvider, TelemetryError> {
    let mut exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT);
    if endpoint.starts_with("https://") {
        let trusted = ClientTlsConfig::new();
        exporter = exporter.with_tls_config(match &traces.ca_file {
            Some(file) => {
                let pem = std::fs::read(file).map_err(TelemetryError::Authorities)?;
                trusted.ca_certificate(Certificate::from_pem(pem))
            }
            None => trusted.with_enabled_roots(),
        });
    }
    let exporter = exporter.build().map_err(TelemetryError::Endpoint)?;
    // It has a thread of its own, and takes what there is room for.
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(SPANS_WAITING_MAX)
        .with_scheduled_delay(EXPORT_INTERVAL)
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let without_parent = Sampler::TraceIdRatioBased(traces.sample_ratio.0);
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder_empty()
        .with_service_name(traces.service_name.clone())
        .with_attribute(version)
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(Sampler::ParentBased(Box::new(without_parent)))
        .with_resource(resource)
        .build())
}

/// Whether calls are traced at all. `tracing::enabled!` would say it too, but with filters of single layers what it finds is taken
/// for the next event, which is then missing in the log.
pub fn is_traced() -> bool {
    TRACED.load(Ordering::Relaxed)
}

/// Has a span that was made a moment ago belong to the trace that `traceparent` and `tracestate` name (W3C Trace Context), if they do.
pub fn follow<'a>(span: &tracing::Span, header: impl Fn(&str) -> Option<&'a str>) {
    let context = TraceContextPropagator::new().extract(&Headers(header, PhantomData));
    if context.span().span_context().is_valid() {
        // Where nothing is traced there is nothing to set.
        let _ = span.set_parent(context);
    }
}

struct Headers<'a, F>(F, PhantomData<&'a str>);

impl<'a, F: Fn(&str) -> Option<&'a str>> Extractor for Headers<'a, F> {
    fn get(&self, key: &str) -> Option<&str> {
        (self.0)(key)
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

fn colours_wanted() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused_and_a_second_time_too() {
        let log = |filter: &str| Log { format: LogFormat::Json, filter: filter.into() };
        assert!(matches!(init(&log("majorityd=loud"), &Tracing::default()), Err(TelemetryError::Filter(_))));
        assert!(init(&log("off"), &Tracing::default()).is_ok());
        assert!(matches!(init(&log("off"), &Tracing::default()), Err(TelemetryError::Twice(_))));
    }
}
