//! GetStatus and WatchStatus.

use std::time::Duration;

use majorityd::ids::NodeIndex;
use majorityd::members::EventKind;
use majorityd::proto::v1;
use majorityd::proto::v1::cluster_service_client::ClusterServiceClient;
use majorityd::proto::v1::{ClusterStatus, ConnectionState, MemberState, WatchStatusRequest};
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

use crate::acquire::shows;
use crate::stage::*;

type ClusterClient = ClusterServiceClient<Channel>;

async fn cluster_client(served: &Served) -> ClusterClient {
    ClusterServiceClient::new(served.channel().await)
}

async fn status(client: &mut ClusterClient) -> ClusterStatus {
    let answer = within(client.get_status(v1::GetStatusRequest::default())).await.unwrap();
    answer.into_inner().status.expect("always there")
}

fn quickly() -> WatchStatusRequest {
    WatchStatusRequest { min_interval: millis(100), ..WatchStatusRequest::default() }
}

async fn watch(client: &mut ClusterClient) -> Streaming<v1::WatchStatusResponse> {
    within(client.watch_status(quickly())).await.unwrap().into_inner()
}

/// The first message that is as wished; the test fails when none comes.
#[track_caller]
fn told(
    watch: &mut Streaming<v1::WatchStatusResponse>,
    wish: impl Fn(&ClusterStatus) -> bool,
) -> impl Future<Output = ClusterStatus> {
    within(async move {
        loop {
            let event = watch.message().await.expect("no error").expect("a watch does not end");
            let status = event.status.expect("always there");
            if wish(&status) {
                return status;
            }
        }
    })
}

#[tokio::test]
async fn a_whole_cluster_says_what_it_is_and_what_it_tolerates() {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let mut client = cluster_client(&served).await;
    let status = status(&mut client).await;
    assert_eq!((status.cluster.as_str(), status.node_count, status.quorum), ("majorityd", 3, 2));
    assert!(status.counting >= 2 && status.serves && status.grants_locks, "{status:?}");
    for (node, index) in status.nodes.iter().zip(0..) {
        assert_eq!((node.index, node.address.as_str()), (index, format!("embedded:{index}").as_str()));
        assert_eq!((node.connection(), node.member()), (ConnectionState::Ready, MemberState::Member));
        assert_eq!(node.server_version, "7.0.0-embedded");
        let offset = node.clock_offset.expect("it has answered");
        assert!(offset.seconds == 0 && node.round_trip.is_some() && node.measure_time.is_some(), "{node:?}");
    }
    let daemon = status.daemon.expect("always there");
    assert_eq!((daemon.version.as_str(), daemon.proposer_id.len()), (env!("CARGO_PKG_VERSION"), 16));
    assert!(daemon.start_time.is_some_and(|time| time.seconds > 1_600_000_000));
    let setting = |key| daemon.settings.iter().find(|setting| setting.key == key).map(|s| s.value.as_str());
    assert_eq!((setting("cluster.bootstrap"), setting("locks.ttl_max")), (Some("true"), Some("5m")));
}

#[tokio::test]
async fn a_watch_tells_of_each_node_that_stops_and_a_status_needs_no_quorum() {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let mut client = cluster_client(&served).await;
    let mut watch = watch(&mut client).await;
    let whole = told(&mut watch, |status| status.counting == 3).await;
    let tolerates = whole.tolerates.expect("always there");
    assert_eq!((tolerates.stops, tolerates.memory_losses), (1, 1));
    assert!(whole.nodes.iter().all(|node| node.counts && node.problem.is_empty()), "{whole:?}");

    cluster.stop_servers(&[2]);
    let degraded = told(&mut watch, |status| status.counting == 2).await;
    assert!(degraded.serves && degraded.tolerates.is_some_and(|tolerates| tolerates.stops == 0));
    let stopped = &degraded.nodes[2];
    assert_eq!(stopped.connection(), ConnectionState::Unreachable);
    assert_eq!((stopped.member(), stopped.counts), (MemberState::Member, false));
    assert!(stopped.problem.contains("stopped"), "{stopped:?}");
    assert_eq!((stopped.has_listed_memory, &stopped.round_trip), (None, &None));

    cluster.stop_servers(&[1]);
    let broken = told(&mut watch, |status| status.counting == 1).await;
    assert!(!broken.serves && !broken.grants_locks, "{broken:?}");
    assert!(broken.summary.contains("not serving: 1 of 3"), "{}", broken.summary);
    assert!(!status(&mut client).await.serves);
}

#[tokio::test]
async fn what_is_noted_of_nodes_is_told_and_so_many_events_as_are_asked_for() {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let mut client = cluster_client(&served).await;
    let mut watch = watch(&mut client).await;
    told(&mut watch, |status| status.counting == 3).await;
    let board = served.board();
    let before = board.events().len() as u64;
    for number in 0..30 {
        board.happened(1_000 * number, EventKind::MemoryLost, Some(NodeIndex(1)), "x".repeat(5_000));
    }
    board.note(NodeIndex(1), |notes| notes.missed = 12);
    let seen = told(&mut watch, |status| status.nodes[1].missed_records == 12).await;
    let last = seen.events.last().expect("there were events");
    assert_eq!((seen.events.len(), last.number, last.node), (20, before + 30, Some(1)));
    assert_eq!(last.kind(), v1::ClusterEventKind::MemoryLost);
    assert!(last.text.len() <= 1_024 && last.time.is_some_and(|time| time.seconds == 29));
    for (asked, count) in [(0, 0), (3, 3), (u32::MAX, 30 + before as usize)] {
        let request = v1::GetStatusRequest { events_max: Some(asked) };
        let answer = within(client.get_status(request)).await.unwrap().into_inner();
        assert_eq!(answer.status.expect("always there").events.len(), count, "{asked}");
    }
}

#[tokio::test]
async fn nobody_learns_a_lease_id_from_a_status() {
    let (_cluster, served, mut locks) = alone().await;
    let held = lease(&mut locks, asking("orders", "ann")).await;
    let mut client = cluster_client(&served).await;
    assert!(!shows(&status(&mut client).await, &held.lease_id));
}

#[tokio::test]
async fn a_watch_ends_with_the_daemon_and_at_its_deadline_and_says_so() {
    let cluster = Cluster::new();
    let served = cluster.daemon().await;
    let mut client = cluster_client(&served).await;
    let wrong = WatchStatusRequest { min_interval: seconds(-1), ..quickly() };
    let refused = client.watch_status(wrong).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::InvalidArgument, "INVALID_INTERVAL"));

    let mut request = Request::new(quickly());
    request.set_timeout(Duration::from_secs(1));
    let mut short = within(client.watch_status(request)).await.unwrap().into_inner();
    let end = within(async {
        loop {
            if let Err(end) = short.message().await {
                return end;
            }
        }
    });
    assert_eq!(end.await.code(), Code::DeadlineExceeded);

    let mut watch = watch(&mut client).await;
    told(&mut watch, |_| true).await;
    served.stop.send(()).unwrap();
    let end = within(async {
        loop {
            if let Err(end) = watch.message().await {
                return end;
            }
        }
    })
    .await;
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    within(served.task).await.unwrap().unwrap();
}
