//! Traces, as a collector of OpenTelemetry gets them from the built binary.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::kv_service_client::KvServiceClient;
use majorityd::proto::v1::queue_service_client::QueueServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::certificates::{Authority, Signed};

use crate::support::daemon::{DaemonProcess, addresses, beside, in_time, pause, request, seen, servers};

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const SECRET: &str = "hunter2-in-a-header";

/// A collector that keeps what it gets, or never answers.
#[derive(Clone, Default)]
struct Collector {
    got: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    hangs: bool,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.got.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn serve(self) -> String {
        self.serve_with(None).await
    }

    /// With this certificate, if there is one.
    async fn serve_with(self, shown: Option<&Signed>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if shown.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let mut server = tonic::transport::Server::builder();
        if let Some(Signed { certificate, key }) = shown {
            let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
            server = server.tls_config(tls).unwrap();
        }
        let served = server
            .add_service(TraceServiceServer::new(self))
            .serve_with_incoming(TcpListenerStream::new(listener));
        beside(async move { drop(served.await) });
        url
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock().unwrap();
        let scopes = got.iter().flat_map(|request| &request.resource_spans).flat_map(|of| &of.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn of_trace(&self, trace: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| hex(&span.trace_id) == trace).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
    Some(match value.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    })
}

fn acquiring(name: &str, traceparent: &str) -> Request<v1::AcquireRequest> {
    let message = v1::AcquireRequest {
        name: name.into(),
        owner: Some("ann".into()),
        attributes: [("note".to_owned(), SECRET.to_owned())].into(),
        ..Default::default()
    };
    let mut request = request(message, LONG);
    request.metadata_mut().insert("authorization", format!("Bearer {SECRET}").parse().unwrap());
    if !traceparent.is_empty() {
        request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    }
    request
}

async fn traced_daemon(
    collector: &Collector,
    ratio: &str,
) -> (Vec<crate::support::redis_server::RedisServer>, DaemonProcess) {
    let url = collector.clone().serve().await;
    traced_daemon_at(&url, &[("tracing.sample_ratio", ratio)]).await
}

async fn traced_daemon_at(
    url: &str,
    more: &[(&str, &str)],
) -> (Vec<crate::support::redis_server::RedisServer>, DaemonProcess) {
    let servers = servers(3);
    let settings = [("tracing.otlp_endpoint", url), ("tracing.service_name", "locks-of-test")];
    let daemon = DaemonProcess::start(&addresses(&servers), &[&settings, more].concat()).await;
    daemon.until_health(tonic_health::pb::health_check_response::ServingStatus::Serving).await;
    (servers, daemon)
}

/// Mechanisms: the caller's trace is gone on with; a call has a round, and a round its nodes; secrets are no attributes.
#[tokio::test]
async fn a_call_is_a_span_of_its_callers_trace_with_what_was_done_for_it() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";
    let collector = Collector::default();
    let (_servers, daemon) = traced_daemon(&collector, "0").await;
    let client = daemon.client().await;
    let sampled = format!("00-{TRACE}-{PARENT}-01");
    let answer = client.inner.clone().acquire(acquiring("orders", &sampled)).await.unwrap().into_inner();
    let Some(v1::acquire_response::Outcome::Lease(lease)) = answer.outcome else { panic!("{answer:?}") };
    // Held by somebody: a read and no more, and an answer that is an error.
    let mut bad = acquiring("", &sampled);
    bad.get_mut().name = String::new();
    client.inner.clone().acquire(bad).await.unwrap_err();

    let trace = seen("the spans of the call", || async {
        let spans = collector.of_trace(TRACE);
        let nodes = spans.iter().filter(|span| span.name == "node").count();
        let calls = spans.iter().filter(|span| hex(&span.parent_span_id) == PARENT).count();
        (nodes >= 3 && calls == 2).then_some(spans)
    })
    .await;
    let calls: Vec<&Span> = trace.iter().filter(|span| hex(&span.parent_span_id) == PARENT).collect();
    for call in &calls {
        assert_eq!(call.name, "majority.v1.LockService/Acquire");
        assert_eq!(call.kind(), SpanKind::Server);
        assert_eq!(attribute(call, "method").as_deref(), Some("majority.v1.LockService/Acquire"));
        assert!(attribute(call, "peer").unwrap().starts_with("127.0.0.1:"));
    }
    let codes: BTreeSet<String> = calls.iter().filter_map(|call| attribute(call, "code")).collect();
    assert_eq!(codes, ["OK", "INVALID_ARGUMENT"].map(str::to_owned).into());
    let names: Vec<_> = calls.iter().map(|call| attribute(call, "lock")).collect();
    assert!(names.contains(&Some("orders".to_owned())), "{names:?}");
    let good = calls.iter().find(|call| attribute(call, "code").as_deref() == Some("OK")).unwrap();
    let rounds: Vec<&Span> = trace.iter().filter(|span| span.name == "round").collect();
    assert!(!rounds.is_empty() && rounds.iter().all(|round| round.parent_span_id == good.span_id));
    assert_eq!(attribute(rounds[0], "changes").as_deref(), Some("1"));
    let asked: Vec<&Span> = trace.iter().filter(|span| span.name == "node").collect();
    for node in &asked {
        assert!(rounds.iter().any(|round| round.span_id == node.parent_span_id), "{node:?}");
        assert_eq!(node.kind(), SpanKind::Client);
    }
    let nodes: BTreeSet<String> = asked.iter().filter_map(|span| attribute(span, "node")).collect();
    assert_eq!(nodes, ["0", "1", "2"].map(str::to_owned).into());

    // Of calls whose clients said nothing, or no, there is nothing.
    let unsampled = format!("00-{}-{PARENT}-00", TRACE.replace('0', "1"));
    for traceparent in ["", unsampled.as_str(), "nonsense"] {
        client.inner.clone().acquire(acquiring("orders", traceparent)).await.unwrap();
    }
    let last = "ffffffffffffffffffffffffffffffff";
    client.inner.clone().acquire(acquiring("orders", &format!("00-{last}-{PARENT}-01"))).await.unwrap();
    seen("a later call", || async { (!collector.of_trace(last).is_empty()).then_some(()) }).await;
    let traces: BTreeSet<String> = collector.spans().iter().map(|span| hex(&span.trace_id)).collect();
    assert_eq!(traces, [TRACE, last].map(str::to_owned).into());

    let everything = format!("{:?}", collector.got.lock().unwrap());
    assert!(everything.contains("locks-of-test"), "the name of the service");
    for secret in [SECRET, &lease.lease_id] {
        assert!(!everything.contains(secret), "{secret}");
    }
}

/// Reads have what was asked of the nodes under them, as writes do; and each call its names, and nothing else of its request.
#[tokio::test]
async fn reads_are_traced_and_calls_have_their_names() {
    let collector = Collector::default();
    let (_servers, daemon) = traced_daemon(&collector, "1").await;
    let channel = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap().connect_lazy();
    let mut keys = KvServiceClient::new(channel.clone());
    let value = Some(v1::set_request::Content::Text(SECRET.to_owned()));
    let set = v1::SetRequest { key: "rate".into(), content: value, ..Default::default() };
    keys.set(request(set, LONG)).await.unwrap();
    keys.get(request(v1::GetRequest { key: "rate".into() }, LONG)).await.unwrap();
    let many = v1::BatchGetRequest { keys: vec!["rate".into(), "other".into()] };
    keys.batch_get(request(many, LONG)).await.unwrap();
    let list = v1::ListKeysRequest { prefix: "ra".into(), ..Default::default() };
    keys.list_keys(request(list, LONG)).await.unwrap();
    let item = v1::NewItem {
        id: Some("item".into()),
        content: Some(v1::new_item::Content::Text(SECRET.to_owned())),
        ..Default::default()
    };
    let put = v1::PutRequest { queue: "mail".into(), items: vec![item] };
    QueueServiceClient::new(channel).put(request(put, LONG)).await.unwrap();
    let client = daemon.client().await;
    client.get("orders").await.unwrap();

    let spans = seen("all calls", || async {
        let spans = collector.spans();
        let ended = |method: &str| spans.iter().any(|span| span.name.ends_with(method));
        let methods = ["/Set", "/Get", "/BatchGet", "/ListKeys", "/Put", "/GetLock"];
        methods.iter().all(|method| ended(method)).then_some(spans)
    })
    .await;
    let call = |method: &str| spans.iter().find(|span| span.name.ends_with(method)).unwrap();
    for (method, name, value) in [
        ("KvService/Set", "key", "rate"),
        ("KvService/Get", "key", "rate"),
        ("KvService/BatchGet", "key", "rate"),
        ("KvService/BatchGet", "names", "2"),
        ("KvService/ListKeys", "prefix", "ra"),
        ("QueueService/Put", "queue", "mail"),
        ("LockService/GetLock", "lock", "orders"),
    ] {
        assert_eq!(attribute(call(method), name).as_deref(), Some(value), "{method}");
    }
    // Under a call, or under the round that it is in.
    let under = |method: &str| {
        let call = call(method);
        let is_under = |span: &&Span| span.trace_id == call.trace_id && span.name == "node";
        let asked: BTreeSet<String> =
            spans.iter().filter(is_under).filter_map(|span| attribute(span, "node")).collect();
        let parents: BTreeSet<&Vec<u8>> = spans
            .iter()
            .filter(|span| span.trace_id == call.trace_id && span.name != "node")
            .map(|span| if span.span_id == call.span_id { &call.span_id } else { &span.parent_span_id })
            .collect();
        assert_eq!(parents, [&call.span_id].into(), "{method}");
        asked.len()
    };
    for method in ["KvService/Get", "KvService/BatchGet", "KvService/ListKeys", "LockService/GetLock"] {
        assert!(under(method) >= 2, "{method}: a quorum was asked");
    }
    assert!(!format!("{:?}", collector.got.lock().unwrap()).contains(SECRET));
}

/// Mechanism: the collector is known by its certificate, too.
#[tokio::test]
async fn a_collector_is_reached_by_tls_and_has_to_be_who_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let authorities = [Authority::new("ours"), Authority::new("others")];
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, &authorities[0].pem).unwrap();
    let trusted = [("tracing.ca_file", file.to_str().unwrap())];
    let collector = Collector::default();
    let url = collector.clone().serve_with(Some(&authorities[0].server())).await;
    let (_servers, daemon) = traced_daemon_at(&url, &trusted).await;
    daemon.client().await.get("orders").await.unwrap();
    seen("a call", || async { (!collector.spans().is_empty()).then_some(()) }).await;

    let unheard = Collector::default();
    let url = unheard.clone().serve_with(Some(&authorities[1].server())).await;
    let (_servers, mut daemon) = traced_daemon_at(&url, &trusted).await;
    daemon.client().await.get("orders").await.unwrap();
    daemon.terminate();
    assert_eq!(in_time("the end", daemon.until_ended()).await.code(), Some(0));
    assert!(unheard.spans().is_empty(), "it told a collector that it does not know");
}

/// Calls that one round serves: a child of one of them, linked to the others. And the end of a daemon sends what it has.
#[tokio::test]
async fn a_round_for_many_is_linked_to_all_of_them_and_the_last_spans_are_sent() {
    let collector = Collector::default();
    let (_servers, mut daemon) = traced_daemon(&collector, "1").await;
    let client = daemon.client().await;
    let mut calls = Vec::new();
    for _ in 0..50 {
        let mut client = client.inner.clone();
        calls.push(beside(async move { client.acquire(acquiring("orders", "")).await.map(drop) }));
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    daemon.terminate();
    assert_eq!(daemon.until_ended().await.code(), Some(0));
    let spans = collector.spans();
    let calls: Vec<&Span> = spans.iter().filter(|span| span.name.ends_with("/Acquire")).collect();
    assert_eq!(calls.len(), 50);
    let ids: BTreeSet<&Vec<u8>> = calls.iter().map(|call| &call.span_id).collect();
    let mut served = BTreeSet::new();
    for round in spans.iter().filter(|span| span.name == "round") {
        let of_round =
            std::iter::once(&round.parent_span_id).chain(round.links.iter().map(|link| &link.span_id));
        let of_round: Vec<_> = of_round.collect();
        assert_eq!(attribute(round, "changes"), Some(of_round.len().to_string()));
        served.extend(of_round);
    }
    assert!(ids.is_subset(&served), "{} of {}", ids.intersection(&served).count(), ids.len());
    assert!(spans.iter().any(|span| !span.links.is_empty()), "some round served several");
}

/// Mechanism: spans wait in a queue of bounded length, and are sent by a thread of its own.
#[tokio::test]
async fn a_collector_that_hangs_or_is_not_there_holds_up_nothing() {
    let hangs = Collector { hangs: true, ..Collector::default() }.serve().await;
    let servers = servers(3);
    for endpoint in [hangs.as_str(), "http://127.0.0.1:9"] {
        let settings = [("tracing.otlp_endpoint", endpoint)];
        let mut daemon = DaemonProcess::start(&addresses(&servers), &settings).await;
        daemon.until_health(tonic_health::pb::health_check_response::ServingStatus::Serving).await;
        let client = daemon.client().await;
        for _ in 0..300 {
            let held = client.must_acquire("x", "a", LONG, NO_WAIT).await;
            assert!(client.release(&held).await.unwrap());
        }
        pause(Duration::from_millis(1_500)).await;
        let held = client.must_acquire("x", "a", LONG, NO_WAIT).await;
        assert!(client.release(&held).await.unwrap());
        daemon.terminate();
        assert_eq!(in_time("the end", daemon.until_ended()).await.code(), Some(0));
    }
}
