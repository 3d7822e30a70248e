//! `majorityd lock` against real daemons.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::support::daemon::{DaemonProcess, majorityd, pause, seen, servers};

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const WAIT: Duration = Duration::from_secs(40);

fn lock(endpoints: &[&DaemonProcess], flags: &[&str], script: &str, dir: &Path) -> Command {
    let endpoints: Vec<String> = endpoints.iter().map(|daemon| daemon.url()).collect();
    let mut command = majorityd();
    command.args(["lock", "x", "--endpoint", &endpoints.join(",")]).args(flags);
    command.args(["--", "sh", "-c", script]).current_dir(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn end_of(mut child: Child) -> Output {
    seen("the end of majorityd lock", || {
        let ended = child.try_wait().unwrap().is_some();
        async move { ended.then_some(()) }
    })
    .await;
    child.wait_with_output().unwrap()
}

async fn file(path: &Path) -> String {
    seen(&format!("{}", path.display()), || async {
        std::fs::read_to_string(path).ok().filter(|text| !text.is_empty())
    })
    .await
}

/// Mechanisms: the command runs only while the lease is held, sees its token, and its exit code is passed on.
#[tokio::test]
async fn a_command_runs_under_its_lock() {
    let servers = servers(3);
    let daemon = DaemonProcess::serving(&servers).await;
    let client = daemon.client().await;
    let dir = tempfile::tempdir().unwrap();
    let script = "echo $MAJORITYD_LOCK_NAME $MAJORITYD_FENCING_TOKEN > new; mv new env; \
                  while [ ! -e go ]; do sleep 0.05; done; echo done; exit 7";
    let child = lock(&[&daemon], &["--ttl", "2s"], script, dir.path()).spawn().unwrap();
    let environment = file(&dir.path().join("env")).await;
    let (name, token) = environment.trim().split_once(' ').unwrap();
    assert_eq!(name, "x");
    // Longer than its TTL.
    for _ in 0..5 {
        let holder = client.must_be_held("x").await.holder.unwrap();
        assert_eq!(holder.fencing_token.to_string(), token);
        pause(Duration::from_millis(600)).await;
    }
    let refused = end_of(lock(&[&daemon], &[], "touch ran", dir.path()).spawn().unwrap()).await;
    assert_eq!(refused.status.code(), Some(75), "{refused:?}");
    assert!(!dir.path().join("ran").exists());

    std::fs::write(dir.path().join("go"), "").unwrap();
    let output = end_of(child).await;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"done\n");
    client.must_acquire("x", "b", LONG, NO_WAIT).await;
}

/// Mechanism: the command's end is planned from the moments when extensions were sent, whether or not a daemon answers.
#[tokio::test]
async fn a_command_is_ended_before_its_lease_when_all_daemons_die() {
    let servers = servers(3);
    let mut first = DaemonProcess::serving(&servers).await;
    let mut second = DaemonProcess::serving(&servers).await;
    // The command knows nothing of this one.
    let witness = DaemonProcess::serving(&servers).await;
    let dir = tempfile::tempdir().unwrap();
    let beats = dir.path().join("beats");
    let script = "trap '' TERM; while :; do echo >> beats; sleep 0.02; done";
    let child = lock(&[&first, &second], &["--ttl", "3s"], script, dir.path()).spawn().unwrap();
    file(&beats).await;
    // One of them is enough.
    first.kill();
    pause(Duration::from_secs(4)).await;
    let client = witness.client().await;
    client.must_be_held("x").await;
    second.kill();
    client.must_acquire("x", "b", LONG, WAIT).await;
    let at_grant = std::fs::metadata(&beats).unwrap().len();
    pause(Duration::from_millis(500)).await;
    assert_eq!(std::fs::metadata(&beats).unwrap().len(), at_grant, "it ran on beyond its lease");
    let output = end_of(child).await;
    assert_eq!(output.status.code(), Some(76), "{output:?}");
}
