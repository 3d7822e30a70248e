//! What no log may show.

use std::time::Duration;

use majorityd::access::token;
use majorityd::proto::v1;
use majorityd::proto::v1::DisconnectPolicy;
use majorityd::proto::v1::cluster_service_client::ClusterServiceClient;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt as _;

use crate::support::daemon::{DaemonProcess, acquired, beside, seen, servers};
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

/// Tokens, right ones and wrong ones, are nowhere: in no log at any level, in no answer, on no page for operators.
#[tokio::test]
async fn a_token_is_shown_nowhere() {
    const RIGHT: &str = "mjd_hunter2-right-token";
    const WRONG: &str = "mjd_hunter2-wrong-token";
    let (servers, folder) = (servers(1), tempfile::tempdir().unwrap());
    let set = servers[0].command(&["CONFIG", "SET", "requirepass", PASSWORDS[0]]);
    assert_eq!(set, Reply::Status("OK".into()));
    let rules = |grants: &str| {
        let hash = token::hash_text(&token::hash(RIGHT));
        format!("[[identity]]\nname = \"a\"\ntoken_sha256 = [\"{hash}\"]\ngrants = [{grants}]\n")
    };
    let everything =
        "{ services = [\"locks\", \"cluster\"], prefixes = [\"mine\"], rights = [\"read\", \"use\"] }";
    let file = folder.path().join("access.toml");
    std::fs::write(&file, rules(everything)).unwrap();
    let file_text = file.to_str().unwrap();
    let settings = [
        ("log.filter", "trace"),
        ("nodes.password", PASSWORDS[0]),
        ("access.file", file_text),
        ("http.listen", "127.0.0.1:0"),
    ];
    let daemon = DaemonProcess::start(&[servers[0].address()], &settings).await;
    daemon.until_health(ServingStatus::Serving).await;

    let mut answers = Vec::new();
    let channel = daemon.channel().await;
    let mut lease_id = String::new();
    for header in
        [format!("Bearer {RIGHT}"), format!("Bearer {WRONG}"), RIGHT.to_owned(), format!("Basic {WRONG}")]
    {
        for name in ["mine", "yours"] {
            let message =
                v1::AcquireRequest { name: name.into(), owner: Some("o".into()), ..Default::default() };
            let mut request = tonic::Request::new(message);
            request.metadata_mut().insert("authorization", header.parse().unwrap());
            match LockServiceClient::new(channel.clone()).acquire(request).await {
                Ok(answer) => match answer.into_inner().outcome {
                    Some(v1::acquire_response::Outcome::Lease(lease)) => lease_id = lease.lease_id,
                    other => panic!("{other:?}"),
                },
                Err(status) => answers.push(format!("{status:?} {:?}", status.get_error_details())),
            }
        }
        let mut request = tonic::Request::new(v1::GetStatusRequest::default());
        request.metadata_mut().insert("authorization", header.parse().unwrap());
        let status = ClusterServiceClient::new(channel.clone()).get_status(request).await;
        answers.push(format!("{status:?}"));
    }
    assert_eq!(lease_id.len(), 32, "the right one was right");
    assert_eq!(answers.len(), 7 + 4);
    // A token where a hash should be, and one as the whole file.
    for bad in
        [rules(everything).replace("mine", "\" ] x"), format!("{RIGHT}\n"), format!("token = \"{WRONG}\"\n")]
    {
        std::fs::write(&file, bad).unwrap();
        pause_for_reload(&daemon).await;
    }
    let log = daemon.log();
    let http = log.lines().find(|line| line.contains("serving operators over HTTP")).unwrap();
    let http: serde_json::Value = serde_json::from_str(http).unwrap();
    for path in ["/metrics", "/", "/readyz"] {
        answers.push(get(http["listen"].as_str().unwrap(), path).await);
    }
    assert!(answers.iter().any(|answer| answer.contains("majorityd_access_refusals_total")));

    let log = daemon.log();
    assert!(log.contains("\"TRACE\"") && log.contains("can't be used"));
    let mut hidden = forms(&lease_id);
    hidden.extend([RIGHT, WRONG, PASSWORDS[0], "hunter2"].map(str::to_owned));
    for secret in hidden {
        for text in log.lines().chain(answers.iter().map(String::as_str)) {
            assert!(!text.contains(&secret), "{secret} is shown: {text}");
        }
    }
}

/// Until one more bad file has been told of.
async fn pause_for_reload(daemon: &DaemonProcess) {
    let told = || daemon.log().matches("can't be used").count();
    let before = told();
    seen("the bad file in the log", || async { (told() > before).then_some(()) }).await;
}

/// What a port for operators says.
async fn get(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
