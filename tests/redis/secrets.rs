//! What no log may show.

use std::time::Duration;

use majorityd::proto::v1::DisconnectPolicy;

use crate::support::daemon::{DaemonProcess, acquired, beside, servers};
use crate::support::redis_server::Reply;

const NO_WAIT: Duration = Duration::ZERO;
const SHORT: Duration = Duration::from_secs(2);
const WAIT: Duration = Duration::from_secs(30);
const PASSWORDS: [&str; 2] = ["hunter2-for-all", "hunter2-for-one"];

/// A lease id in the forms in which somebody might print it: as text, as bytes, as numbers.
fn forms(lease_id: &str) -> Vec<String> {
    let bytes: Vec<u8> =
        (0..32).step_by(2).map(|at| u8::from_str_radix(&lease_id[at..at + 2], 16).unwrap()).collect();
    let escaped: String = bytes.escape_ascii().to_string();
    let number = u128::from_str_radix(lease_id, 16).unwrap().to_string();
    vec![lease_id.to_owned(), lease_id.to_uppercase(), escaped, format!("{bytes:?}"), number]
}

/// Mechanism: secrets have types that do not print, and libraries that print payloads are not asked to.
#[tokio::test]
async fn no_log_has_a_lease_id_or_a_password_at_any_level() {
    let servers = servers(3);
    for (server, password) in servers.iter().zip([PASSWORDS[0], PASSWORDS[0], PASSWORDS[1]]) {
        let set = server.command(&["CONFIG", "SET", "requirepass", password]);
        assert_eq!(set, Reply::Status("OK".into()));
    }
    let port = servers[2].port();
    let own = format!("redis://:{}@127.0.0.1:{port}", PASSWORDS[1]);
    let addresses = [servers[0].address(), servers[1].address(), own];
    let settings = [("log.filter", "trace"), ("nodes.password", PASSWORDS[0])];
    let daemon = DaemonProcess::start(&addresses, &settings).await;
    let other = DaemonProcess::start(&addresses, &settings).await;
    let (client, stranger) = (daemon.client().await, other.client().await);
    let mut secrets = Vec::new();

    let held = client.must_acquire("x", "a", SHORT, WAIT).await;
    secrets.push(held.lease.lease_id.clone());
    let again = client.must_acquire("x", "a", SHORT, NO_WAIT).await;
    secrets.push(again.lease.lease_id.clone());
    client.extend(&held).await.unwrap_err();
    client.extend(&again).await.unwrap();
    let waiter = stranger.clone();
    let wait = beside(async move { waiter.must_acquire("x", "b", SHORT, WAIT).await });
    client.get("x").await.unwrap();
    assert!(client.release(&again).await.unwrap());
    let next = wait.await.unwrap();
    secrets.push(next.lease.lease_id.clone());
    assert!(!client.release(&again).await.unwrap());
    let mut stream = stranger.hold("x", SHORT, DisconnectPolicy::Release).await;
    secrets.push(acquired(&mut stream).await.lease_id);
    // Extended at least once.
    stream.message().await.unwrap();
    servers[0].freeze();
    stream.message().await.unwrap();
    drop(stream);
    servers[0].thaw();
    client.must_acquire("x", "c", SHORT, WAIT).await;

    for log in [daemon.log(), other.log()] {
        assert!(log.contains("\"TRACE\""), "the level is what was asked for");
        for secret in secrets.iter().flat_map(|id| forms(id)).chain(PASSWORDS.map(str::to_owned)) {
            let line = log.lines().find(|line| line.contains(&secret));
            assert!(line.is_none(), "{secret} is in the log: {line:?}");
        }
    }
}
