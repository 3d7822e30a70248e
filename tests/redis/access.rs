//! Rules of access and a daemon as a process of its own: signals, and what its log says of who calls.

use majorityd::access::token;
use majorityd::proto::v1;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::support::daemon::{DaemonProcess, seen, servers};

fn rules(token: &str) -> String {
    let hash = token::hash_text(&token::hash(token));
    let grant = "{ services = [\"locks\"], prefixes = [\"\"], rights = [\"read\"] }";
    format!("[[identity]]\nname = \"billing\"\ntoken_sha256 = [\"{hash}\"]\ngrants = [{grant}]\n")
}

async fn code(daemon: &DaemonProcess, token: &str) -> Code {
    let mut request = tonic::Request::new(v1::GetLockRequest { name: "x".into() });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let answer = LockServiceClient::new(daemon.channel().await).get_lock(request).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test]
async fn a_hangup_has_the_rules_read_again_and_ends_nothing() {
    let (servers, folder) = (servers(1), tempfile::tempdir().unwrap());
    let file = folder.path().join("access.toml");
    std::fs::write(&file, rules("old")).unwrap();
    let settings = [("access.file", file.to_str().unwrap())];
    let daemon = DaemonProcess::start(&[servers[0].address()], &settings).await;
    daemon.until_health(ServingStatus::Serving).await;
    assert_eq!(code(&daemon, "old").await, Code::Ok);
    daemon.until_logged(&["answered", "\"identity\":\"billing\""]).await;

    std::fs::write(&file, rules("new")).unwrap();
    let pid = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    daemon.until_logged(&["SIGHUP"]).await;
    daemon.until_logged(&["read again and in use from now on", "access.file"]).await;
    seen("the new token", || async { (code(&daemon, "new").await == Code::Ok).then_some(()) }).await;
    assert_eq!(code(&daemon, "old").await, Code::Unauthenticated);
}
