//! What systemd is told, as a socket in its place hears it.

use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::support::daemon::{DaemonProcess, addresses, in_time, pause, servers};

/// The socket that a daemon's `NOTIFY_SOCKET` names.
struct Manager {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
    /// All lines that came, in their order.
    heard: Vec<String>,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, dir, heard: Vec::new() }
    }

    async fn daemon(&self, addresses: &[String]) -> DaemonProcess {
        let path = self.dir.path().join("notify");
        let environment = [("NOTIFY_SOCKET", path.as_os_str()), ("WATCHDOG_USEC", OsStr::new("200000"))];
        DaemonProcess::start_under(addresses, &[], &environment).await
    }

    /// What has come, without the signs of life.
    fn news(&mut self) -> Vec<String> {
        let mut message = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut message) {
            let text = String::from_utf8(message[..length].to_vec()).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
        self.heard.iter().filter(|line| *line != "WATCHDOG=1").cloned().collect()
    }

    fn signs_of_life(&mut self) -> usize {
        self.news();
        self.heard.iter().filter(|line| *line == "WATCHDOG=1").count()
    }

    /// Waits until the latest news are these.
    async fn hears_last(&mut self, last: &[&str]) {
        in_time(&format!("{last:?}"), async {
            while !self.news().ends_with(&last.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>()) {
                pause(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn systemd_is_told_when_the_daemon_serves_stops_and_lives() {
    let servers = servers(3);
    servers[0].freeze();
    servers[1].freeze();
    let mut manager = Manager::new();
    let mut daemon = manager.daemon(&addresses(&servers)).await;
    manager.hears_last(&["STATUS=no quorum: 0 of 3 nodes count, 2 are needed"]).await;
    assert!(!manager.news().contains(&"READY=1".to_owned()));

    servers.iter().take(2).for_each(|server| server.thaw());
    in_time("READY=1", async {
        while !manager.news().contains(&"READY=1".to_owned()) {
            pause(Duration::from_millis(20)).await;
        }
    })
    .await;
    manager.hears_last(&["STATUS=serving: 3 of 3 nodes count"]).await;

    servers[0].freeze();
    servers[1].freeze();
    in_time("the loss of the quorum", async {
        while !manager.news().last().is_some_and(|last| last.starts_with("STATUS=no quorum: ")) {
            pause(Duration::from_millis(20)).await;
        }
    })
    .await;
    servers.iter().take(2).for_each(|server| server.thaw());
    manager.hears_last(&["STATUS=serving: 3 of 3 nodes count"]).await;

    let before = manager.signs_of_life();
    in_time("signs of life", async {
        while manager.signs_of_life() < before + 5 {
            pause(Duration::from_millis(20)).await;
        }
    })
    .await;

    daemon.terminate();
    assert_eq!(daemon.until_ended().await.code(), Some(0));
    manager.hears_last(&["STOPPING=1", "STATUS=stopping: calls that are under way are finished"]).await;
    let ready = manager.news().iter().filter(|line| *line == "READY=1").count();
    assert_eq!(ready, 1);
}

/// Who did not ask is told nothing, and a socket that is not there is no reason to stop.
#[tokio::test]
async fn a_manager_that_is_gone_does_not_matter() {
    let servers = servers(3);
    let gone = [("NOTIFY_SOCKET", OsStr::new("/nonexistent/notify"))];
    let mut daemon = DaemonProcess::start_under(&addresses(&servers), &[], &gone).await;
    daemon.until_logged(&["the service manager can't be told"]).await;
    daemon.until_health(tonic_health::pb::health_check_response::ServingStatus::Serving).await;
    daemon.terminate();
    assert_eq!(daemon.until_ended().await.code(), Some(0));
}
