//! `majorityd lock` and `majorityd locks`, the real binary, against a daemon that does what each test wants.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use futures::channel::mpsc;
use futures::stream::BoxStream;
use majorityd::proto::v1;
use majorityd::proto::v1::hold_response::{Ended, Event, Lost};
use majorityd::proto::v1::lock_service_server::{LockService, LockServiceServer};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A daemon with one lock.
#[derive(Default)]
struct Fake {
    ttl_ms: AtomicU64,
    /// What `Hold` says after it was granted; the stream stays open behind it unless `break_after` is set.
    events: Mutex<Vec<(Duration, Event)>>,
    /// How the stream breaks.
    break_after: Mutex<Option<Duration>>,
    contended: bool,
    /// So many calls of `Extend` succeed; the others hang.
    extensions: AtomicUsize,
    extended: AtomicUsize,
    released: AtomicUsize,
    holds: Mutex<Vec<v1::HoldRequest>>,
}

const LEASE_ID: &str = "0123456789abcdef0123456789abcdef";

impl Fake {
    fn new(ttl_ms: u64) -> Self {
        Self { ttl_ms: ttl_ms.into(), extensions: usize::MAX.into(), ..Self::default() }
    }

    fn lease(&self) -> v1::Lease {
        let ttl = Duration::from_millis(self.ttl_ms.load(Ordering::SeqCst));
        v1::Lease {
            name: "a".into(),
            owner: "me".into(),
            lease_id: LEASE_ID.into(),
            fencing_token: 42,
            ttl: ttl.try_into().ok(),
            remaining: ttl.try_into().ok(),
        }
    }
}

fn holder() -> v1::Holder {
    v1::Holder { owner: "someone".into(), fencing_token: 41, ..v1::Holder::default() }
}

#[expect(clippy::disallowed_methods, reason = "a daemon with real time for a real process")]
async fn pause(length: Duration) {
    tokio::time::sleep(length).await;
}

#[tonic::async_trait]
impl LockService for Shared {
    type HoldStream = BoxStream<'static, Result<v1::HoldResponse, Status>>;
    type WatchLockStream = BoxStream<'static, Result<v1::WatchLockResponse, Status>>;

    async fn hold(&self, request: Request<v1::HoldRequest>) -> Result<Response<Self::HoldStream>, Status> {
        self.0.holds.lock().unwrap().push(request.into_inner());
        let fake = self.0.clone();
        let (sender, receiver) = mpsc::unbounded();
        let say = |sender: &mpsc::UnboundedSender<_>, event| {
            sender.unbounded_send(Ok(v1::HoldResponse { event: Some(event) })).ok();
        };
        if fake.contended {
            say(&sender, Event::TimedOut(v1::Contention { holder: Some(holder()), waiters: 0 }));
            return Ok(Response::new(receiver.boxed()));
        }
        say(&sender, Event::Acquired(fake.lease()));
        start(async move {
            let events = std::mem::take(&mut *fake.events.lock().unwrap());
            for (wait, event) in events {
                pause(wait).await;
                say(&sender, event);
            }
            let wait = *fake.break_after.lock().unwrap();
            pause(wait.unwrap_or(Duration::from_secs(60))).await;
            sender.unbounded_send(Err(Status::unavailable("broken"))).ok();
        });
        Ok(Response::new(receiver.boxed()))
    }

    async fn extend(
        &self,
        request: Request<v1::ExtendRequest>,
    ) -> Result<Response<v1::ExtendResponse>, Status> {
        assert_eq!(request.get_ref().lease_id, LEASE_ID);
        if self.0.extended.fetch_add(1, Ordering::SeqCst) >= self.0.extensions.load(Ordering::SeqCst) {
            pause(Duration::from_secs(60)).await;
        }
        Ok(Response::new(v1::ExtendResponse { lease: Some(self.0.lease()) }))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        assert_eq!(request.get_ref().lease_id, LEASE_ID);
        self.0.released.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(v1::ReleaseResponse { released: true }))
    }

    async fn get_lock(
        &self,
        request: Request<v1::GetLockRequest>,
    ) -> Result<Response<v1::GetLockResponse>, Status> {
        let name = request.into_inner().name;
        let lock = v1::Lock { name, holder: Some(holder()), waiters: 3, nodes: vec![0, 1] };
        Ok(Response::new(v1::GetLockResponse { lock: Some(lock) }))
    }

    async fn list_locks(
        &self,
        request: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        let first = request.get_ref().page_token.is_empty();
        let lock = |name: &str| v1::Lock { name: name.into(), ..v1::Lock::default() };
        Ok(Response::new(v1::ListLocksResponse {
            locks: vec![lock(if first { "first" } else { "second" })],
            next_page_token: if first { "more".into() } else { String::new() },
        }))
    }

    async fn force_release(
        &self,
        request: Request<v1::ForceReleaseRequest>,
    ) -> Result<Response<v1::ForceReleaseResponse>, Status> {
        if request.get_ref().fencing_token == 41 {
            return Ok(Response::new(v1::ForceReleaseResponse {}));
        }
        let details = ErrorDetails::with_error_info(
            "TOKEN_NOT_HELD",
            "majorityd",
            [(); 0].map(|()| (String::new(), String::new())),
        );
        Err(Status::with_error_details(Code::FailedPrecondition, "held under 41", details))
    }

    async fn acquire(&self, _: Request<v1::AcquireRequest>) -> Result<Response<v1::AcquireResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn watch_lock(
        &self,
        _: Request<v1::WatchLockRequest>,
    ) -> Result<Response<Self::WatchLockStream>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn check_token(
        &self,
        _: Request<v1::CheckTokenRequest>,
    ) -> Result<Response<v1::CheckTokenResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }
}

#[derive(Clone)]
struct Shared(Arc<Fake>);

fn start(task: impl Future<Output = ()> + Send + 'static) {
    majorityd::runtime::system::runtime().spawner.spawn(Box::pin(task));
}

/// The daemon in this process, and commands that talk to it.
struct Stage {
    fake: Arc<Fake>,
    address: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    fn new(fake: Fake) -> Self {
        let fake = Arc::new(fake);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let service = LockServiceServer::new(Shared(fake.clone()));
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            start(async move {
                let server = tonic::transport::Server::builder().add_service(service);
                server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
            });
            address
        });
        Self { fake, address, runtime }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_majorityd"));
        command.args(arguments).env("MAJORITYD_ENDPOINT", format!("http://{}", self.address));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String) {
        told(self.command(arguments).output().unwrap())
    }

    fn released(&self) -> usize {
        self.fake.released.load(Ordering::SeqCst)
    }

    fn extended(&self) -> usize {
        self.fake.extended.load(Ordering::SeqCst)
    }
}

/// Exit code and everything that was printed, which never has the lease id in it.
fn told(output: Output) -> (i32, String) {
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(!text.contains(LEASE_ID), "{text}");
    (output.status.code().expect("it was not ended by a signal"), text)
}

#[test]
fn the_command_runs_with_the_token_and_its_exit_code_is_kept() {
    let stage = Stage::new(Fake::new(30_000));
    let script = "echo $MAJORITYD_LOCK_NAME $MAJORITYD_FENCING_TOKEN; exit 3";
    let (code, text) =
        stage.run(&["lock", "a", "--owner", "me", "--attribute", "job=7", "--", "sh", "-c", script]);
    assert_eq!((code, text.as_str()), (3, "a 42\n"));
    assert_eq!(stage.released(), 1);
    let holds = std::mem::take(&mut *stage.fake.holds.lock().unwrap());
    assert_eq!(holds[0].owner.as_deref(), Some("me"));
    assert_eq!(holds[0].attributes["job"], "7");
    assert_eq!(holds[0].disconnect_policy(), v1::DisconnectPolicy::Keep);

    let (code, _) = stage.run(&["lock", "a", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(code, 128 + 9);
    let (code, text) = stage.run(&["lock", "a", "--", "/nonexistent/command"]);
    assert_eq!(code, 127, "{text}");
    assert_eq!(stage.released(), 3);
}

#[test]
fn a_unix_socket_and_a_fallback_are_endpoints_too() {
    let stage = Stage::new(Fake::new(30_000));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.sock");
    let service = LockServiceServer::new(Shared(stage.fake.clone()));
    stage.runtime.block_on(async {
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        start(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
    });
    let socket = format!("unix://{}", path.display());
    let (code, text) = stage.run(&["lock", "a", "--endpoint", &socket, "--", "true"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) =
        stage.run(&["lock", "a", "--endpoint", &format!("http://127.0.0.1:1,{socket}"), "--", "true"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(stage.released(), 2);
}

#[test]
fn somebody_elses_lock_is_not_acquired() {
    let stage = Stage::new(Fake { contended: true, ..Fake::new(30_000) });
    let (code, text) = stage.run(&["lock", "a", "--", "echo", "ran"]);
    assert_eq!(code, 75);
    assert!(text.contains("someone") && !text.contains("ran"), "{text}");
}

#[test]
fn without_a_daemon_the_command_does_not_run() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_majorityd"));
    command.args(["lock", "a", "--endpoint", "http://127.0.0.1:1", "--", "echo", "ran"]);
    let (code, text) = told(command.output().unwrap());
    assert_eq!(code, 69, "{text}");
    assert!(text.contains("majorityd serve") && !text.contains("ran\n"), "{text}");
}

#[test]
fn a_broken_stream_does_not_end_the_command() {
    let fake = Fake::new(1_000);
    *fake.break_after.lock().unwrap() = Some(Duration::from_millis(50));
    let stage = Stage::new(fake);
    let (code, text) = stage.run(&["lock", "a", "--", "sleep", "2"]);
    assert_eq!(code, 0, "{text}");
    assert!(stage.extended() >= 4, "{}", stage.extended());
    assert_eq!(stage.released(), 1);
}

#[test]
fn an_end_of_the_stream_leaves_the_lease_to_the_client() {
    let fake = Fake::new(1_000);
    *fake.events.lock().unwrap() = vec![(Duration::ZERO, Event::Ended(Ended { remaining: None }))];
    let stage = Stage::new(fake);
    let (code, text) = stage.run(&["lock", "a", "--", "sleep", "1.5"]);
    assert_eq!(code, 0, "{text}");
}

/// A command that ignores SIGTERM, and its child, write the time in milliseconds again and again.
fn stubborn(path: &Path) -> String {
    let file = path.display();
    format!("trap '' TERM; (while :; do date +%s%3N >> {file}; sleep 0.02; done) & echo up; wait; sleep 60")
}

fn last_written(path: &Path) -> u64 {
    // It may have been killed in the middle of a line: the highest number is the last whole one.
    let written = std::fs::read_to_string(path).unwrap();
    written.lines().filter_map(|line| line.parse().ok()).max().expect("it has written")
}

fn wall_ms() -> u64 {
    let command = Command::new("date").arg("+%s%3N").output().unwrap();
    String::from_utf8(command.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn the_whole_group_is_dead_before_a_lease_that_nobody_extends_runs_out() {
    let fake = Fake::new(2_000);
    // The one before the command starts.
    fake.extensions.store(1, Ordering::SeqCst);
    let stage = Stage::new(fake);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alive");
    let started = wall_ms();
    let (code, text) = stage.run(&["lock", "a", "--", "bash", "-c", &stubborn(&path)]);
    let ended = wall_ms();
    assert_eq!(code, 76, "{text}");
    assert!(text.contains("can't extend") && text.contains("killing"), "{text}");
    let last = last_written(&path);
    assert!(last > started + 1_000 && last < ended, "{started} {last} {ended}");
    // The lease began after `started`; the process itself takes some time to come up.
    assert!(last < started + 2_000, "wrote {} ms after the start", last - started);
}

#[test]
fn a_reader_that_went_away_does_not_keep_the_command_alive() {
    let fake = Fake::new(2_000);
    fake.extensions.store(1, Ordering::SeqCst);
    let stage = Stage::new(fake);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alive");
    let started = wall_ms();
    let mut child = stage.command(&["lock", "a", "--", "bash", "-c", &stubborn(&path)]).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(76));
    let last = last_written(&path);
    assert!(last < started + 2_000, "wrote {} ms after the start", last - started);
}

#[test]
fn a_lock_that_was_taken_away_ends_the_group_at_once() {
    let fake = Fake::new(30_000);
    let lost = Event::Lost(Lost { reason: v1::LostReason::Forced.into() });
    *fake.events.lock().unwrap() = vec![(Duration::from_millis(500), lost)];
    let stage = Stage::new(fake);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alive");
    let started = wall_ms();
    let (code, text) = stage.run(&["lock", "a", "--", "bash", "-c", &stubborn(&path)]);
    assert_eq!(code, 76, "{text}");
    assert!(text.contains("operator"), "{text}");
    let last = last_written(&path);
    assert!(last < started + 5_000, "wrote {} ms after the start", last - started);
    assert!(last < wall_ms());
    assert_eq!(stage.released(), 0);
}

#[test]
fn signals_go_to_the_command_and_the_lock_is_released() {
    use std::io::BufRead as _;
    let stage = Stage::new(Fake::new(30_000));
    let script = "trap 'echo caught; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = stage.command(&["lock", "a", "--", "bash", "-c", script]).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert_eq!(stage.released(), 1);
}

#[test]
fn locks_are_listed_shown_and_released_by_force() {
    let stage = Stage::new(Fake::new(30_000));
    let (code, text) = stage.run(&["locks", "list"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("first") && text.contains("second"), "{text}");
    let (code, text) = stage.run(&["locks", "get", "a", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["holder"]["fencing_token"]), (0, &41.into()));
    assert_eq!(stage.run(&["locks", "release", "a", "--fencing-token", "41"]).0, 0);
    let (code, text) = stage.run(&["locks", "release", "a", "--fencing-token", "40"]);
    assert_eq!(code, 1);
    assert!(text.contains("TOKEN_NOT_HELD") && text.contains("Read who holds the lock"), "{text}");
}
