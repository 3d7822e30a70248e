//! What is served besides locks: health, reflection, limits, transports.

use std::time::Duration;

use majorityd::proto::v1;
use majorityd::proto::v1::cluster_service_client::ClusterServiceClient;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt;

use crate::stage::*;

async fn check(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    within(HealthClient::new(channel.clone()).check(request)).await.unwrap().into_inner().status()
}

async fn next_status(watch: &mut tonic::Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    within(watch.next()).await.map(|answer| answer.unwrap().status())
}

/// The stream of statuses, past the one with which the server may start before it knows better.
async fn watch_health(channel: &Channel, service: &str) -> tonic::Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let mut watch = within(HealthClient::new(channel.clone()).watch(request)).await.unwrap().into_inner();
    while next_status(&mut watch).await != Some(ServingStatus::Serving) {}
    watch
}

#[tokio::test]
async fn health_follows_the_quorum_and_ends_with_the_daemon() {
    let cluster = Cluster::new();
    let served = cluster.daemon_behind_network().await;
    let channel = served.channel().await;
    let mut overall = watch_health(&channel, "").await;
    let mut locks = watch_health(&channel, SERVICE).await;
    let mut nodes_health = watch_health(&channel, CLUSTER_SERVICE).await;

    for nodes in [&[0, 1][..], &[1, 2], &[0, 1, 2]] {
        cluster.set_network(nodes, Network::Cut);
        assert_eq!(next_status(&mut overall).await, Some(ServingStatus::NotServing));
        assert_eq!(next_status(&mut locks).await, Some(ServingStatus::NotServing));
        assert_eq!(check(&channel, "").await, ServingStatus::NotServing);
        assert_eq!(check(&channel, SERVICE).await, ServingStatus::NotServing);
        assert_eq!(check(&channel, QUEUE_SERVICE).await, ServingStatus::NotServing);
        assert_eq!(check(&channel, KV_SERVICE).await, ServingStatus::NotServing);
        assert_eq!(check(&channel, CLUSTER_SERVICE).await, ServingStatus::Serving, "it needs no quorum");
        cluster.set_network(nodes, Network::Whole);
        assert_eq!(next_status(&mut overall).await, Some(ServingStatus::Serving));
        assert_eq!(next_status(&mut locks).await, Some(ServingStatus::Serving));
        assert_eq!(check(&channel, SERVICE).await, ServingStatus::Serving);
        assert_eq!(check(&channel, QUEUE_SERVICE).await, ServingStatus::Serving);
        assert_eq!(check(&channel, KV_SERVICE).await, ServingStatus::Serving);
    }

    served.stop.send(()).unwrap();
    assert_eq!(next_status(&mut overall).await, Some(ServingStatus::NotServing));
    assert_eq!(next_status(&mut locks).await, Some(ServingStatus::NotServing));
    assert_eq!(next_status(&mut nodes_health).await, Some(ServingStatus::NotServing));
    assert_eq!(next_status(&mut overall).await, None);
    drop((channel, overall, locks, nodes_health));
    within(served.task).await.unwrap().unwrap();
}

/// And so do locks.
#[tokio::test]
async fn one_node_of_three_may_go_and_two_may_not() {
    let (cluster, served, mut client) = alone().await;
    let channel = served.channel().await;
    let mut overall = watch_health(&channel, "").await;
    let held = lease(&mut client, asking("orders", "ann")).await;
    cluster.stop_servers(&[1]);
    let extended = extend(&mut client, &held).await.unwrap();
    assert_eq!(extended.fencing_token, held.fencing_token);
    let lock = get(&mut client, "orders").await;
    assert_eq!(lock.nodes, [0, 2]);
    lease(&mut client, asking("other", "ann")).await;
    assert_eq!(check(&channel, SERVICE).await, ServingStatus::Serving);

    cluster.stop_servers(&[2]);
    assert_eq!(next_status(&mut overall).await, Some(ServingStatus::NotServing));
    let request = v1::GetLockRequest { name: "orders".to_owned() };
    let status = within(client.get_lock(request)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "NO_QUORUM"));
}

#[tokio::test]
async fn the_health_of_an_unknown_service_is_not_found() {
    let (_cluster, served, _client) = alone().await;
    let request = HealthCheckRequest { service: "majority.v1.Nothing".to_owned() };
    let status = HealthClient::new(served.channel().await).check(request).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    let (_cluster, served, _client) = alone().await;
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
    assert!(services.iter().any(|name| name == QUEUE_SERVICE), "{services:?}");
    assert!(services.iter().any(|name| name == KV_SERVICE), "{services:?}");
    assert!(services.iter().any(|name| name == CLUSTER_SERVICE), "{services:?}");
    assert!(services.iter().any(|name| name == "grpc.health.v1.Health"), "{services:?}");

    // The second is what grpcurl asks for to print the details of errors.
    for symbol in [SERVICE, QUEUE_SERVICE, KV_SERVICE, "google.rpc.ErrorInfo", "google.rpc.Status"] {
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
async fn calls_past_the_limit_are_told_so_and_health_and_release_are_not() {
    let mut cluster = Cluster::new();
    cluster.grpc.calls_per_connection_max = 0;
    let served = cluster.daemon().await;
    let channel = served.channel().await;
    let mut client = LockServiceClient::new(channel.clone());

    let status = client.get_lock(v1::GetLockRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    assert_eq!(metadata(&status, "calls_max"), "0");
    assert!(status.get_details_retry_info().is_some());

    let status = client.release(v1::ReleaseRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = client.extend(v1::ExtendRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    watch_health(&channel, "").await;
    let mut client = ClusterServiceClient::new(channel.clone());
    assert!(client.get_status(v1::GetStatusRequest::default()).await.is_ok());
    let status = client.watch_status(v1::WatchStatusRequest::default()).await.unwrap_err();
    assert_eq!(reason(&status), "RATE_LIMITED");
}

/// A connection that is full of waiting calls can still end what they wait for.
#[tokio::test]
async fn a_connection_full_of_waiters_can_release_what_they_wait_for() {
    let mut cluster = Cluster::new();
    cluster.grpc.calls_per_connection_max = 4;
    let served = cluster.daemon().await;
    let mut client = served.client().await;
    let held = lease(&mut client, asking("orders", "ann")).await;
    let mut streams = Vec::new();
    for number in 0..4 {
        let request =
            v1::HoldRequest { wait_timeout: seconds(600), ..holding("orders", &format!("waiter {number}")) };
        streams.push(hold(&mut client, request).await);
    }
    let looking = v1::GetLockRequest { name: "orders".to_owned() };
    let status = within(client.get_lock(looking)).await.unwrap_err();
    assert_eq!(reason(&status), "RATE_LIMITED");
    extend(&mut client, &held).await.unwrap();
    let mut current = held;
    // All on one connection, so they came in this order.
    for mut stream in streams {
        assert!(release(&mut client, &current).await);
        current = crate::stage::held(&mut stream).await;
    }
}

#[tokio::test]
async fn a_message_past_the_limit_is_refused_and_one_below_it_is_not() {
    let (_cluster, _served, mut client) = alone().await;
    for (megabytes, code) in [(6, Code::OutOfRange), (4, Code::InvalidArgument)] {
        let request = v1::GetLockRequest { name: "x".repeat(megabytes << 20) };
        assert_eq!(within(client.get_lock(request)).await.unwrap_err().code(), code);
        let attributes = [("a".to_owned(), "x".repeat(megabytes << 20))];
        let request = v1::AcquireRequest { attributes: attributes.into(), ..asking("orders", "ann") };
        let status = within(client.acquire(request)).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().len() < 10_000);
    }
    assert_eq!(get(&mut client, "orders").await.holder, None);
}

#[tokio::test]
async fn a_client_that_pings_often_without_a_call_keeps_its_connection() {
    let (_cluster, served, _client) = alone().await;
    let channel = Endpoint::from_shared(format!("http://{}", served.address))
        .unwrap()
        .http2_keep_alive_interval(Duration::from_millis(5))
        .keep_alive_while_idle(true)
        .connect()
        .await
        .unwrap();
    // Stays open meanwhile; a GOAWAY would end it.
    let mut watch = watch_health(&channel, "").await;
    for _ in 0..50 {
        pause().await;
    }
    served.stop.send(()).unwrap();
    assert_eq!(next_status(&mut watch).await, Some(ServingStatus::NotServing));
}

#[tokio::test]
async fn the_unix_socket_serves_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("majorityd.sock");
    let cluster = Cluster::new();
    let served = cluster.daemon_on(UnixListener::bind(&path).unwrap()).await;
    let uri = format!("unix://{}", path.display());
    let mut client = LockServiceClient::new(Endpoint::from_shared(uri).unwrap().connect().await.unwrap());
    let held = lease(&mut client, asking("orders", "ann")).await;
    let mut over_tcp = served.client().await;
    assert!(release(&mut over_tcp, &held).await);
    drop((client, over_tcp));
    served.stop.send(()).unwrap();
    within(served.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let (_cluster, served, _client) = alone().await;
    let mut client = tonic::client::Grpc::new(served.channel().await);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/majority.v1.LockService/Nothing");
    let codec = tonic_prost::ProstCodec::<v1::GetLockRequest, v1::GetLockResponse>::default();
    let answer = client.unary(tonic::Request::new(v1::GetLockRequest::default()), path, codec).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}
