//! The API over a real channel on loopback.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use majorityd::grpc::{self, ServeError, Services, Settings};
use majorityd::lock::Locks;
use majorityd::proto::v1;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use majorityd::runtime::system;
use majorityd::server;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt;

const SERVICE: &str = "majority.v1.LockService";

/// Locks on nodes in this process. The calls of these tests end before they reach them.
fn locks() -> Arc<Locks> {
    let runtime = system::runtime();
    let servers = server::embedded_servers(1, &runtime);
    let settings = majorityd::config::Settings::default();
    server::Daemon::on_embedded(&settings, &runtime, &servers).unwrap().locks
}

/// A daemon's edge, serving until it is dropped or stopped.
struct Served {
    address: SocketAddr,
    can_serve: watch::Sender<bool>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    async fn start(settings: Settings, unix: Option<UnixListener>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (can_serve, seen) = watch::channel(true);
        let services = Services { locks: locks(), runtime: system::runtime(), can_serve: seen, settings };
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        #[expect(clippy::disallowed_methods, reason = "a test has no simulated runtime")]
        let task = tokio::spawn(grpc::serve(services, listener, unix, shutdown));
        Self { address, can_serve, stop, task }
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }
}

async fn check(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner().status()
}

async fn next_status(watch: &mut tonic::Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    watch.next().await.map(|answer| answer.unwrap().status())
}

/// The stream of statuses, past the one with which the server may start before it knows better.
async fn watch_health(channel: &Channel, service: &str) -> tonic::Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut watch = HealthClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    while next_status(&mut watch).await != Some(ServingStatus::Serving) {}
    watch
}

fn violations(status: &Status) -> BTreeMap<String, String> {
    let bad_request = status.get_details_bad_request().expect("BadRequest");
    bad_request.field_violations.into_iter().map(|v| (v.field, v.reason)).collect()
}

#[tokio::test]
async fn health_follows_the_quorum_and_ends_with_the_daemon() {
    let served = Served::start(Settings::default(), None).await;
    let channel = served.channel().await;
    let mut overall = watch_health(&channel, "").await;
    let mut locks = watch_health(&channel, SERVICE).await;

    served.can_serve.send(false).unwrap();
    assert_eq!(next_status(&mut overall).await, Some(ServingStatus::NotServing));
    assert_eq!(next_status(&mut locks).await, Some(ServingStatus::NotServing));
    assert_eq!(check(&channel, "").await, ServingStatus::NotServing);
    served.can_serve.send(true).unwrap();
    assert_eq!(next_status(&mut overall).await, Some(ServingStatus::Serving));
    assert_eq!(next_status(&mut locks).await, Some(ServingStatus::Serving));
    assert_eq!(check(&channel, SERVICE).await, ServingStatus::Serving);

    served.stop.send(()).unwrap();
    assert_eq!(next_status(&mut overall).await, Some(ServingStatus::NotServing));
    assert_eq!(next_status(&mut locks).await, Some(ServingStatus::NotServing));
    assert_eq!(next_status(&mut overall).await, None);
    served.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn health_is_not_serving_when_nobody_can_tell_any_more() {
    let served = Served::start(Settings::default(), None).await;
    let channel = served.channel().await;
    let mut overall = watch_health(&channel, "").await;
    drop(served.can_serve);
    assert_eq!(next_status(&mut overall).await, Some(ServingStatus::NotServing));
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let served = Served::start(Settings::default(), None).await;
    let channel = served.channel().await;

    let services = {
        use tonic_reflection::pb::v1::ServerReflectionRequest;
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let asked = tokio_stream::iter([request]);
        let mut answers = ServerReflectionClient::new(channel.clone())
            .server_reflection_info(asked)
            .await
            .unwrap()
            .into_inner();
        match answers.next().await.unwrap().unwrap().message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(services.iter().any(|name| name == SERVICE), "{services:?}");
    assert!(services.iter().any(|name| name == "grpc.health.v1.Health"), "{services:?}");

    // The second is what grpcurl asks for to print the details of errors.
    for symbol in [SERVICE, "google.rpc.ErrorInfo"] {
        use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
        use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;
        let message_request = Some(MessageRequest::FileContainingSymbol(symbol.to_owned()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let asked = tokio_stream::iter([request]);
        let mut client = ServerReflectionClient::new(channel.clone());
        let mut answers = client.server_reflection_info(asked).await.unwrap().into_inner();
        let answer = answers.next().await.unwrap().unwrap().message_response;
        assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn a_bad_request_names_every_field_and_reaches_no_lock() {
    let served = Served::start(Settings::default(), None).await;
    let mut client = LockServiceClient::new(served.channel().await);

    let request = v1::AcquireRequest {
        name: "tab\t".to_owned(),
        ttl: Some(prost_types::Duration { seconds: 0, nanos: 0 }),
        ..Default::default()
    };
    let status = client.acquire(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let info = status.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INVALID_NAME", "majorityd"));
    assert_eq!((info.metadata["ttl_min"].as_str(), info.metadata["ttl_max"].as_str()), ("1s", "300s"));
    let expected = [("name", "INVALID_NAME"), ("ttl", "INVALID_TTL")];
    let expected = expected.map(|(field, reason)| (field.to_owned(), reason.to_owned()));
    assert_eq!(violations(&status), BTreeMap::from(expected));

    let secret = "0123456789abcdef0123456789abcde";
    let request = v1::ExtendRequest { name: "orders".to_owned(), lease_id: secret.to_owned(), ttl: None };
    let status = client.extend(request).await.unwrap_err();
    assert_eq!(violations(&status)["lease_id"], "INVALID_LEASE_ID");
    assert!(!format!("{status:?}").contains(secret));

    let request = v1::ForceReleaseRequest { name: String::new(), fencing_token: 0 };
    let status = client.force_release(request).await.unwrap_err();
    assert_eq!(violations(&status).len(), 2);

    let hold = client.hold(v1::HoldRequest::default()).await.unwrap_err();
    let watch = client.watch_lock(v1::WatchLockRequest::default()).await.unwrap_err();
    let get = client.get_lock(v1::GetLockRequest::default()).await.unwrap_err();
    for status in [hold, watch, get] {
        assert_eq!(status.get_details_error_info().unwrap().reason, "INVALID_NAME");
    }
}

#[tokio::test]
async fn calls_past_the_limit_are_told_so_and_health_and_release_are_not() {
    let settings = Settings { calls_per_connection_max: 0, ..Settings::default() };
    let served = Served::start(settings, None).await;
    let channel = served.channel().await;
    let mut client = LockServiceClient::new(channel.clone());

    let status = client.get_lock(v1::GetLockRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata["calls_max"].as_str()), ("RATE_LIMITED", "0"));
    assert!(details.retry_info().is_some());

    let status = client.release(v1::ReleaseRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    watch_health(&channel, "").await;
}

#[tokio::test]
async fn a_message_past_the_limit_is_refused() {
    let served = Served::start(Settings::default(), None).await;
    let mut client = LockServiceClient::new(served.channel().await);
    let request = v1::GetLockRequest { name: "x".repeat(6 << 20) };
    assert_eq!(client.get_lock(request).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_client_that_pings_often_without_a_call_keeps_its_connection() {
    let served = Served::start(Settings::default(), None).await;
    let channel = Endpoint::from_shared(format!("http://{}", served.address))
        .unwrap()
        .http2_keep_alive_interval(Duration::from_millis(5))
        .keep_alive_while_idle(true)
        .connect()
        .await
        .unwrap();
    // Stays open meanwhile; a GOAWAY would end it.
    let mut watch = watch_health(&channel, "").await;
    #[expect(clippy::disallowed_methods, reason = "the pings need real time")]
    tokio::time::sleep(Duration::from_millis(300)).await;
    served.can_serve.send(false).unwrap();
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::NotServing));
}

#[tokio::test]
async fn the_unix_socket_serves_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("majorityd.sock");
    let served = Served::start(Settings::default(), Some(UnixListener::bind(&path).unwrap())).await;
    let channel =
        Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
    let status = LockServiceClient::new(channel).get_lock(v1::GetLockRequest::default()).await;
    assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
    served.stop.send(()).unwrap();
    served.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let served = Served::start(Settings::default(), None).await;
    let mut client = tonic::client::Grpc::new(served.channel().await);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/majority.v1.LockService/Nothing");
    let codec = tonic_prost::ProstCodec::<v1::GetLockRequest, v1::GetLockResponse>::default();
    let answer = client.unary(tonic::Request::new(v1::GetLockRequest::default()), path, codec).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}
