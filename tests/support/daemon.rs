//! Real daemons for tests: the built binary, on a port of its own, and what talks to it.

use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use majorityd::proto::v1;
use majorityd::proto::v1::acquire_response::Outcome;
use majorityd::proto::v1::lock_service_client::LockServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt as _;

use super::redis_server::RedisServer;

/// The end of any wait: far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The deadline of a call, beside what it asks to wait.
const CALL: Duration = Duration::from_secs(20);

/// Lets real time pass.
#[expect(clippy::disallowed_methods, reason = "tests against real servers wait in real time")]
pub async fn pause(length: Duration) {
    tokio::time::sleep(length).await;
}

/// Now, by the test's own clock.
#[expect(clippy::disallowed_methods, reason = "tests against real servers wait in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// The future's outcome, or a panic when it never comes.
#[expect(clippy::disallowed_methods, reason = "an end to waiting for what never comes")]
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Runs beside the test.
#[expect(clippy::disallowed_methods, reason = "tests use their own runtime")]
pub fn beside<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(future)
}

/// Looks again and again until there is something to see.
pub async fn seen<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    in_time(what, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            pause(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// The addresses of servers, in their order.
pub fn addresses(servers: &[RedisServer]) -> Vec<String> {
    servers.iter().map(RedisServer::address).collect()
}

/// So many servers.
pub fn servers(count: usize) -> Vec<RedisServer> {
    (0..count).map(|_| RedisServer::start()).collect()
}

/// A running `majorityd serve`, killed when dropped. If the test fails, the end of its log is printed.
pub struct DaemonProcess {
    child: Child,
    /// Where it serves gRPC.
    pub address: SocketAddr,
    dir: TempDir,
}

/// A configuration for tests: quick to notice what is gone, patient enough for a busy machine.
pub fn config(addresses: &[String]) -> String {
    format!(
        "[cluster]\nname = \"e2e\"\nbootstrap = true\n\n\
         [nodes]\naddresses = {addresses:?}\nconnect_timeout = \"1s\"\ncall_timeout = \"500ms\"\n\
         reconnect_delay_max = \"300ms\"\ninspect_interval = \"300ms\"\n\n\
         [grpc]\nlisten = \"127.0.0.1:0\"\n\n[http]\nlisten = \"off\"\n\n\
         [log]\nformat = \"json\"\nfilter = \"info,majorityd=debug,fred=error\"\n"
    )
}

/// The binary under test, free of the settings of whoever runs the tests.
pub fn majorityd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_majorityd"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MAJORITYD")) {
        command.env_remove(name);
    }
    // Of whoever runs the tests, too.
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
    command.stdin(Stdio::null());
    command
}

impl DaemonProcess {
    /// Starts a daemon on these servers and waits until it serves.
    pub async fn serving(servers: &[RedisServer]) -> Self {
        let daemon = Self::start(&addresses(servers), &[]).await;
        daemon.until_health(ServingStatus::Serving).await;
        daemon
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Starts a daemon, with more settings, and waits until it listens.
    pub async fn start(addresses: &[String], settings: &[(&str, &str)]) -> Self {
        Self::start_under(addresses, settings, &[]).await
    }

    /// The same, with more in its environment.
    pub async fn start_under(
        addresses: &[String],
        settings: &[(&str, &str)],
        environment: &[(&str, &OsStr)],
    ) -> Self {
        let dir = tempfile::Builder::new().prefix("majorityd-daemon").tempdir().expect("a directory");
        let file = dir.path().join("majorityd.toml");
        std::fs::write(&file, config(addresses)).expect("the configuration can be written");
        let log = File::create(dir.path().join("log")).expect("the log can be written");
        let mut command = majorityd();
        command.arg("serve").arg("--config").arg(&file).stdout(Stdio::null()).stderr(log);
        for (name, value) in settings {
            command.arg("--set").arg(format!("{name}={value}"));
        }
        command.envs(environment.iter().copied());
        let child = command.spawn().expect("the daemon was built");
        let mut daemon = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), dir };
        daemon.address = seen("the daemon's address in its log", || {
            let ended = daemon.child.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "the daemon ended: {ended:?}");
            let log = daemon.log();
            let line = log.lines().find(|line| line.contains("serving gRPC")).map(str::to_owned);
            async move {
                let line: serde_json::Value = serde_json::from_str(&line?).ok()?;
                line["listen"].as_str()?.parse().ok()
            }
        })
        .await;
        daemon
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits for a line in the log that has all of these in it.
    pub async fn until_logged(&self, parts: &[&str]) {
        self.until_logged_times(1, parts).await;
    }

    /// The same for so many lines.
    pub async fn until_logged_times(&self, times: usize, parts: &[&str]) {
        seen(&format!("{parts:?} in the daemon's log, {times} times"), || async {
            let log = self.log();
            let lines = log.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
            (lines.count() >= times).then_some(())
        })
        .await;
    }

    /// Whether `majorityd check` has nothing to complain of: every server is usable and its answers count. Servers of tests keep
    /// nothing on disk.
    pub fn all_is_well(&self) -> bool {
        let file = self.dir.path().join("majorityd.toml");
        let output = majorityd().args(["check", "--accept", "persistence", "--config"]).arg(file).output();
        output.expect("the daemon was built").status.success()
    }

    /// A new connection.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.url()).expect("a good address");
        endpoint.connect().await.expect("the daemon listens")
    }

    /// A client on a new connection.
    pub async fn client(&self) -> Client {
        Client { inner: LockServiceClient::new(self.channel().await) }
    }

    /// What its health service says now.
    pub async fn health(&self) -> ServingStatus {
        let answer = HealthClient::new(self.channel().await).check(HealthCheckRequest::default()).await;
        answer.expect("health is always answered").into_inner().status()
    }

    /// What its health service says, and says again on each change.
    pub async fn watch_health(&self) -> Streaming<HealthCheckResponse> {
        let request = HealthCheckRequest { service: "majority.v1.LockService".into() };
        HealthClient::new(self.channel().await).watch(request).await.expect("answered").into_inner()
    }

    /// Waits until its health is this.
    pub async fn until_health(&self, status: ServingStatus) {
        let mut stream = self.watch_health().await;
        until_health(&mut stream, status).await;
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("an own child can be signalled");
    }

    /// Waits until the process has ended.
    pub async fn until_ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        seen("the end of the daemon", || {
            let ended = child.try_wait().expect("a child can be asked");
            async move { ended }
        })
        .await
    }

    /// Where it keeps its files.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- log of the daemon at {}, its end:\n{}", self.address, last.join("\n"));
        }
    }
}

/// Waits for an event of a health stream.
pub async fn until_health(stream: &mut Streaming<HealthCheckResponse>, status: ServingStatus) {
    in_time(&format!("health {status:?}"), async {
        while stream.message().await.expect("a stream of health").expect("it goes on").status() != status {}
    })
    .await;
}

/// Calls the lock service.
#[derive(Clone)]
pub struct Client {
    /// The generated client.
    pub inner: LockServiceClient<Channel>,
}

/// A request with a deadline.
pub fn request<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn seconds(length: Duration) -> Option<prost_types::Duration> {
    Some(length.try_into().expect("short enough"))
}

/// A length as the API has it.
pub fn length(length: Option<prost_types::Duration>) -> Duration {
    length.expect("is always set").try_into().expect("is never negative")
}

/// The reason of an error that the daemon made; `None` for one of the transport.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// A lease, and when it was asked for.
#[derive(Clone, Debug)]
pub struct Held {
    /// The lease.
    pub lease: v1::Lease,
    /// Up to when its holder may count on it: from when it asked. Says little of a lease that was waited for.
    pub valid_until: Instant,
    /// When it ends if the answer took no time.
    pub ends_at_best: Instant,
}

impl Held {
    /// A lease that was asked for at that moment and has just arrived.
    pub fn new(lease: v1::Lease, sent: Instant) -> Self {
        let remaining = length(lease.remaining);
        Self { lease, valid_until: sent + remaining, ends_at_best: now() + remaining }
    }
}

impl Client {
    /// Tries once, or waits in line. `Err` has the contention.
    pub async fn acquire(
        &self,
        name: &str,
        owner: &str,
        ttl: Duration,
        wait: Duration,
    ) -> Result<Result<Held, v1::Contention>, Status> {
        let message = v1::AcquireRequest {
            name: name.into(),
            owner: Some(owner.into()),
            ttl: seconds(ttl),
            wait_timeout: seconds(wait),
            ..v1::AcquireRequest::default()
        };
        let sent = now();
        let answer = self.inner.clone().acquire(request(message, wait + CALL)).await?.into_inner();
        Ok(match answer.outcome.expect("one of the two") {
            Outcome::Lease(lease) => Ok(Held::new(lease, sent)),
            Outcome::Contention(contention) => Err(contention),
        })
    }

    /// Gets the lock, or fails the test.
    pub async fn must_acquire(&self, name: &str, owner: &str, ttl: Duration, wait: Duration) -> Held {
        match self.acquire(name, owner, ttl, wait).await {
            Ok(Ok(held)) => held,
            other => panic!("{owner} did not get {name}: {other:?}"),
        }
    }

    /// Tries once; somebody else must have it.
    pub async fn must_be_held(&self, name: &str) -> v1::Contention {
        match self.acquire(name, "somebody else", Duration::from_secs(1), Duration::ZERO).await {
            Ok(Err(contention)) => contention,
            other => panic!("{name} should be held: {other:?}"),
        }
    }

    /// Tries once; no quorum may be there to answer. Gives the message.
    pub async fn must_lack_quorum(&self, name: &str, owner: &str) -> String {
        match self.acquire(name, owner, Duration::from_secs(2), Duration::ZERO).await {
            Err(status) if reason(&status).as_deref() == Some("NO_QUORUM") => {
                assert_eq!(status.code(), tonic::Code::Unavailable);
                format!("{} {:?}", status.message(), status.get_details_error_info())
            }
            other => panic!("there should be no quorum: {other:?}"),
        }
    }

    /// Extends.
    pub async fn extend(&self, held: &Held) -> Result<Held, Status> {
        let message = v1::ExtendRequest {
            name: held.lease.name.clone(),
            lease_id: held.lease.lease_id.clone(),
            ttl: None,
        };
        let sent = now();
        let answer = self.inner.clone().extend(request(message, CALL)).await?.into_inner();
        let lease = answer.lease.expect("is always set");
        Ok(Held::new(lease, sent))
    }

    /// Releases; whether it was still held.
    pub async fn release(&self, held: &Held) -> Result<bool, Status> {
        let message =
            v1::ReleaseRequest { name: held.lease.name.clone(), lease_id: held.lease.lease_id.clone() };
        Ok(self.inner.clone().release(request(message, CALL)).await?.into_inner().released)
    }

    /// Looks.
    pub async fn get(&self, name: &str) -> Result<v1::Lock, Status> {
        let message = v1::GetLockRequest { name: name.into() };
        let answer = self.inner.clone().get_lock(request(message, CALL)).await?.into_inner();
        Ok(answer.lock.expect("is always set"))
    }

    /// Asks about a token.
    pub async fn check_token(&self, name: &str, fencing_token: u64) -> v1::CheckTokenResponse {
        let message = v1::CheckTokenRequest { name: name.into(), fencing_token };
        self.inner.clone().check_token(request(message, CALL)).await.expect("answered").into_inner()
    }

    /// Holds, without a deadline.
    pub async fn hold(
        &self,
        name: &str,
        ttl: Duration,
        policy: v1::DisconnectPolicy,
    ) -> Streaming<v1::HoldResponse> {
        let message = v1::HoldRequest {
            name: name.into(),
            owner: Some("holder".into()),
            ttl: seconds(ttl),
            wait_timeout: seconds(Duration::from_secs(20)),
            disconnect_policy: policy.into(),
            ..v1::HoldRequest::default()
        };
        self.inner.clone().hold(message).await.expect("a stream").into_inner()
    }
}

/// The lease of a stream that acquires.
pub async fn acquired(stream: &mut Streaming<v1::HoldResponse>) -> v1::Lease {
    use v1::hold_response::Event;
    in_time("the lock of a Hold", async {
        loop {
            match stream.message().await.expect("a stream").expect("it goes on").event {
                Some(Event::Acquired(lease)) => return lease,
                Some(Event::Waiting(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await
}
