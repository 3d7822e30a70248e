//! Servers that must not be used, and configurations that must not serve.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::daemon::{DaemonProcess, addresses, config, majorityd, seen, servers};
use crate::support::redis_server::{RedisServer, Reply};

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_secs(30);

/// `majorityd check --output json`: its exit code and what it printed.
fn check(addresses: &[String], settings: &[(&str, &str)]) -> (i32, Value) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("majorityd.toml");
    std::fs::write(&file, config(addresses)).unwrap();
    let mut command = majorityd();
    command
        .args(["check", "--accept", "persistence", "--output", "json", "--config"])
        .arg(&file)
        .stderr(Stdio::null());
    for (name, value) in settings {
        command.arg("--set").arg(format!("{name}={value}"));
    }
    let output = command.output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stdout));
    });
    (output.status.code().unwrap(), report)
}

/// What `check` says against a node; empty if it may be used.
fn refusal(report: &Value, node: usize) -> &str {
    report["nodes"][node]["refusal"].as_str().unwrap_or("")
}

fn ok(server: &RedisServer, words: &[&str]) {
    assert_eq!(server.command(words), Reply::Status("OK".into()), "{words:?}");
}

/// Node 2 of three does not count: without node 0 there is no quorum. Gives what the caller is told.
async fn does_not_count(daemon: &DaemonProcess, servers: &[RedisServer]) -> String {
    servers[0].freeze();
    let told = daemon.client().await.must_lack_quorum("probe", "a").await;
    servers[0].thaw();
    daemon.until_health(ServingStatus::Serving).await;
    told
}

/// Node 2 of three counts: without node 0 there is a quorum.
async fn counts(daemon: &DaemonProcess, servers: &[RedisServer]) {
    servers[0].freeze();
    let client = daemon.client().await;
    seen("node 2 being used", || async {
        match client.acquire("counts", "a", LONG, NO_WAIT).await {
            Ok(Ok(held)) => client.release(&held).await.ok(),
            _ => None,
        }
    })
    .await;
    servers[0].thaw();
}

/// Mechanism: a server is asked again and again whether it is still fit, and refused from then on until it is.
#[tokio::test]
async fn a_server_that_is_told_to_evict_is_refused_until_it_no_longer_does() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let held = client.must_acquire("x", "a", LONG, NO_WAIT).await;
    ok(&servers[2], &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    daemon.until_logged(&["node is refused", "CONFIG SET maxmemory-policy noeviction"]).await;
    let (code, report) = check(&addresses(&servers), &[]);
    assert_eq!(code, 1, "{report}");
    assert!(refusal(&report, 2).contains("CONFIG SET maxmemory-policy noeviction"), "{report}");
    client.extend(&held).await.unwrap();
    let told = does_not_count(&daemon, &servers).await;
    assert!(told.contains("CONFIG SET maxmemory-policy noeviction"), "{told}");

    ok(&servers[2], &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    counts(&daemon, &servers).await;
    daemon.until_health(ServingStatus::Serving).await;
    assert!(client.release(&held).await.unwrap());
    assert_eq!(check(&addresses(&servers), &[]).0, 0);
}

/// Mechanisms: only masters are used; the node record says which place of which cluster its data is of, so a copy of
/// another node's does not pass for the node.
#[tokio::test]
async fn a_server_that_was_made_a_replica_is_refused_and_its_copied_data_too() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let held = client.must_acquire("x", "a", LONG, NO_WAIT).await;
    let port = servers[1].port().to_string();
    ok(&servers[2], &["REPLICAOF", "127.0.0.1", &port]);
    daemon.until_logged(&["node is refused", "REPLICAOF NO ONE"]).await;
    client.extend(&held).await.unwrap();
    client.must_be_held("x").await;
    does_not_count(&daemon, &servers).await;
    seen("the end of the copying", || async {
        let Reply::Bytes(info) = servers[2].command(&["INFO", "replication"]) else { return None };
        String::from_utf8_lossy(&info).contains("master_link_status:up").then_some(())
    })
    .await;

    ok(&servers[2], &["REPLICAOF", "NO", "ONE"]);
    daemon.until_logged(&["node is refused", "index", "same order"]).await;
    let (code, report) = check(&addresses(&servers), &[]);
    assert_eq!(code, 1, "{report}");
    assert!(refusal(&report, 2).contains("index 1"), "{report}");
    does_not_count(&daemon, &servers).await;
    client.must_be_held("x").await;
    client.extend(&held).await.unwrap();
}

/// Mechanism: without its node record a node has no memory, and answers without the listed memory do not count.
#[tokio::test]
async fn a_server_that_was_flushed_does_not_count_until_it_has_joined_and_locks_stay() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let other = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let held = client.must_acquire("x", "a", LONG, NO_WAIT).await;
    servers[0].freeze();
    servers[2].flushall();
    // On connections on which the server was inspected before.
    client.must_lack_quorum("probe", "a").await;
    other.client().await.must_lack_quorum("probe", "a").await;
    assert!(!daemon.all_is_well());
    servers[0].thaw();
    seen("all nodes count", || async { daemon.all_is_well().then_some(()) }).await;
    counts(&daemon, &servers).await;
    other.until_health(ServingStatus::Serving).await;
    other.client().await.must_be_held("x").await;
    client.extend(&held).await.unwrap();
    assert!(client.release(&held).await.unwrap());
    let next = other.client().await.must_acquire("x", "b", LONG, NO_WAIT).await;
    assert!(next.lease.fencing_token > held.lease.fencing_token);
}

/// Mechanism: NOSCRIPT means that nothing ran; the server is inspected again, the script loaded, the round sent again.
#[tokio::test]
async fn a_flushed_script_cache_is_nobodys_error() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    for round in 0..5 {
        for server in &servers {
            ok(server, &["SCRIPT", "FLUSH"]);
        }
        let held = client.must_acquire("x", "a", LONG, NO_WAIT).await;
        for server in &servers {
            ok(server, &["SCRIPT", "FLUSH"]);
        }
        client.extend(&held).await.unwrap();
        for server in &servers {
            ok(server, &["SCRIPT", "FLUSH"]);
        }
        assert!(client.release(&held).await.unwrap(), "round {round}");
    }
}

/// Such a configuration does not serve, and both `check` and the daemon's log say why.
async fn never_serves(addresses: &[String], settings: &[(&str, &str)], node: usize, words: &[&str]) {
    let (code, report) = check(addresses, settings);
    assert_eq!(code, 2, "{report}");
    for word in words {
        assert!(refusal(&report, node).contains(word), "{word}: {report}");
    }
    let daemon = DaemonProcess::start(addresses, settings).await;
    daemon.until_logged(&[&["node is refused"], words].concat()).await;
    let client = daemon.client().await;
    for _ in 0..2 {
        client.must_lack_quorum("x", "a").await;
        assert_eq!(daemon.health().await, ServingStatus::NotServing);
    }
}

/// Mechanism: two addresses with one run id are one server.
#[tokio::test]
async fn one_server_listed_twice_is_found_out() {
    let servers = servers(3);
    let port = servers[0].port();
    // The same words twice are a matter of the configuration alone.
    let (code, report) = check(&[servers[0].address(), servers[1].address(), servers[0].address()], &[]);
    assert_eq!(code, 2);
    assert!(report["problems"][0].as_str().unwrap().contains("same as node 0"), "{report}");

    // Other names for the same address are not. Founded before, so that it is certain which place the server has.
    drop(DaemonProcess::serving(&servers).await);
    let found_out = |report: &Value, node| {
        let refusal = refusal(report, node);
        refusal.contains("same server") || refusal.contains("index 0")
    };
    let name = format!("redis://localhost:{port}");
    let (code, report) = check(&[servers[0].address(), servers[1].address(), name.clone()], &[]);
    assert_eq!(code, 1, "{report}");
    assert!(found_out(&report, 2), "{report}");
    let list = [servers[0].address(), name, servers[0].socket().display().to_string()];
    let (code, report) = check(&list, &[]);
    assert_eq!(code, 2, "{report}");
    assert!(found_out(&report, 1) && found_out(&report, 2), "{report}");
    let daemon = DaemonProcess::start(&list, &[]).await;
    daemon.until_logged(&["node is refused"]).await;
    let client = daemon.client().await;
    for _ in 0..2 {
        client.must_lack_quorum("x", "a").await;
        assert_eq!(daemon.health().await, ServingStatus::NotServing);
    }
}

/// Mechanism: the node record has the number of nodes, the cluster's name and the node's place.
#[tokio::test]
async fn servers_of_another_cluster_size_name_or_order_are_refused() {
    let servers = servers(5);
    let all = addresses(&servers);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let held = client.must_acquire("x", "a", LONG, WAIT).await;
    never_serves(&all[..3], &[], 0, &["number of nodes 5", "configured for 3"]).await;
    never_serves(&all, &[("cluster.name", "other")], 4, &["cluster e2e", "configured for other"]).await;
    let swapped = [&all[1], &all[0], &all[3], &all[2], &all[4]].map(Clone::clone);
    never_serves(&swapped, &[], 0, &["index 1", "same order in every daemon"]).await;
    // Nobody has touched anything.
    client.must_be_held("x").await;
    assert!(client.release(&held).await.unwrap());
    assert_eq!(check(&all, &[]).0, 0);
}

/// Mechanism: a node record without a memory, on a server without a member list, binds nobody. Else a look with a wrong
/// name or order would keep new servers from ever being used with the right one.
#[tokio::test]
async fn a_look_with_a_wrong_configuration_does_not_spoil_new_servers() {
    let servers = servers(3);
    let mut list = addresses(&servers);
    list.reverse();
    check(&list, &[("cluster.name", "typo")]);
    let daemon = DaemonProcess::serving(&servers).await;
    daemon.client().await.must_acquire("x", "a", LONG, NO_WAIT).await;
}
