//! `majorityd queue`, above all `work`, the real binary, against a queue that does what each test wants.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/fake_queue.rs"]
mod fake_queue;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake_queue::{FakeQueue, SECRET};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Long enough that nothing happens by itself.
const LONG: Duration = Duration::from_secs(60);
/// The shortest lease: it is extended all the time.
const SHORT: Duration = Duration::from_secs(1);

struct Stage {
    fake: Arc<FakeQueue>,
    address: SocketAddr,
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Stage {
    fn new(ttl: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (fake, address) = FakeQueue::serve(ttl, &runtime);
        Self { fake, address, folder: tempfile::tempdir().unwrap(), _runtime: runtime }
    }

    /// A worker that runs a script, in the test's folder.
    fn work(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.queue(&[&["work", "q"], options, &["--", "bash", "-c", script]].concat());
        command.current_dir(self.folder.path());
        command
    }

    fn queue(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_majorityd"));
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MAJORITYD"))
        {
            command.env_remove(name);
        }
        command.arg("queue").args(arguments).env("MAJORITYD_ENDPOINT", format!("http://{}", self.address));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits for a file.
    fn until_there(&self, name: &str) {
        let path = self.path(name);
        self.fake.until(name, |_| path.exists());
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    fn lines(&self, name: &str) -> Vec<String> {
        lines(&self.path(name))
    }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Exit code and everything that was printed, which never has a lease id in it.
fn told(output: Output) -> (i32, String) {
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(!text.contains(SECRET), "{text}");
    (output.status.code().expect("it was not ended by a signal"), text)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for a file with this name.
const GATE: &str = "while [ ! -e open ]; do sleep 0.02; done";

#[test]
fn a_command_gets_its_item_and_no_secret() {
    let stage = Stage::new(LONG);
    stage.fake.put("i 1", "the payload\n");
    stage.fake.items.lock().unwrap().get_mut("i 1").unwrap().attributes =
        [("content-type".to_owned(), "text".to_owned())].into();
    let script = "cat > payload; env | grep '^MAJORITYD' | grep -v ENDPOINT | sort > env";
    let mut command = stage.work(&["--once"], script);
    // Of a lock or a worker above it.
    command.env("MAJORITYD_LOCK_NAME", "outer").env("MAJORITYD_ATTRIBUTE_STALE", "x");
    let (code, text) = told(command.output().unwrap());
    assert_eq!((code, text.as_str()), (0, ""));
    assert!(stage.fake.is_done("i 1"));
    assert_eq!(stage.lines("payload"), ["the payload"]);
    assert_eq!(
        stage.lines("env"),
        [
            "MAJORITYD_ATTEMPT=1",
            "MAJORITYD_ATTRIBUTE_CONTENT_TYPE=text",
            "MAJORITYD_FENCING_TOKEN=1",
            "MAJORITYD_ITEM_ID=i 1",
            "MAJORITYD_PRIORITY=0",
            "MAJORITYD_QUEUE=q",
        ]
    );
}

#[test]
fn what_fails_comes_again() {
    let stage = Stage::new(LONG);
    stage.fake.put("i", "x");
    let script = "echo $MAJORITYD_ATTEMPT >> attempts; [ $MAJORITYD_ATTEMPT -gt 2 ] || exit 3";
    let (code, text) = told(stage.work(&["--drain"], script).output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert_eq!(stage.lines("attempts"), ["1", "2", "3"]);
    assert!(stage.fake.is_done("i") && text.matches("exit status 3").count() == 2, "{text}");
    let item = stage.fake.item("i");
    assert_eq!((item.reason.as_str(), item.delay), ("exit status 3", None));
    // A command that reads nothing of much is no failure of its own.
    stage.fake.put("large", &"x".repeat(1 << 20));
    let (code, text) = told(stage.work(&["--once"], "kill -TERM $$").output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert_eq!(stage.fake.item("large").reason, "killed by signal 15");
}

#[test]
fn a_command_that_can_not_be_run_ends_the_worker() {
    let stage = Stage::new(LONG);
    // A daemon that hears late that no more items are wanted must not hand out again what is given back.
    stage.fake.hears_late.store(true, Ordering::SeqCst);
    for id in ["a", "b"] {
        stage.fake.put(id, "x");
    }
    let worker = |program| stage.queue(&["work", "q", "--concurrency", "2", "--", program]).output().unwrap();
    let (code, text) = told(worker("/nonexistent/command"));
    assert_eq!(code, 127, "{text}");
    // The daemon learns of the end of a stream a moment after the worker's own.
    stage.fake.until("both given back", |fake| ["a", "b"].iter().all(|id| fake.item(id).lease_id.is_none()));
    let items = ["a", "b"].map(|id| stage.fake.item(id));
    // The worker may have ended before it took the second.
    assert!(items.iter().all(|item| !item.done && item.attempts <= 1), "{text}");
    assert!(items.iter().any(|item| item.reason.contains("can't run")), "{text}");
    let (code, text) = told(worker("/etc/passwd"));
    assert_eq!(code, 126, "{text}");
}

#[test]
fn so_many_run_at_a_time_and_the_worker_ends_when_none_is_ready() {
    let stage = Stage::new(LONG);
    for id in ["a", "b", "c", "d", "e"] {
        stage.fake.put(id, "x");
    }
    // Each of the first two waits for the other.
    let script = "echo . >> run; while [ $(wc -l < run) -lt 2 ]; do sleep 0.02; done";
    let (code, text) = told(stage.work(&["--concurrency", "2", "--drain"], script).output().unwrap());
    assert_eq!((code, text.as_str()), (0, ""));
    assert!(stage.fake.items.lock().unwrap().values().all(|item| item.done && item.attempts == 1));
    // So it does when there is nothing at all.
    assert_eq!(told(stage.work(&["--drain"], "true").output().unwrap()), (0, String::new()));
}

#[test]
fn as_many_as_were_asked_for_are_worked_on() {
    let stage = Stage::new(LONG);
    for id in ["a", "b", "c"] {
        stage.fake.put(id, "x");
    }
    let (code, text) = told(stage.work(&["--max-items", "2"], "true").output().unwrap());
    assert_eq!((code, text.as_str()), (0, ""));
    let attempts = ["a", "b", "c"].map(|id| stage.fake.item(id).attempts);
    assert_eq!((attempts, stage.fake.is_done("c")), ([1, 1, 0], false));
}

#[test]
fn a_signal_lets_commands_end_and_takes_no_more_items() {
    let stage = Stage::new(LONG);
    stage.fake.put("a", "x");
    let mut child = stage.work(&[], &format!("touch started; {GATE}")).spawn().unwrap();
    stage.until_there("started");
    signal(&child, Signal::TERM);
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(
        said.next().unwrap().unwrap(),
        "majorityd: taking no more items; waiting for commands that run: 1"
    );
    stage.fake.put("b", "x");
    stage.touch("open");
    let (code, text) = told(child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert!(stage.fake.is_done("a"), "{text}");
    let later = stage.fake.item("b");
    assert!(!later.done && later.lease_id.is_none(), "{text}");

    // One that has nothing to do ends as well.
    let stage = Stage::new(LONG);
    let child = stage.work(&[], "true").spawn().unwrap();
    stage.fake.until("a stream", |fake| fake.streams.load(Ordering::SeqCst) == 1);
    signal(&child, Signal::INT);
    assert_eq!(told(child.wait_with_output().unwrap()).0, 0);
}

#[test]
fn a_second_signal_kills_what_runs() {
    let stage = Stage::new(LONG);
    stage.fake.put("a", "x");
    let child = stage.work(&[], "trap '' TERM; touch started; sleep 600 & wait").spawn().unwrap();
    stage.until_there("started");
    signal(&child, Signal::TERM);
    signal(&child, Signal::INT);
    let (code, text) = told(child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert_eq!(stage.fake.item("a").reason, "killed by signal 9", "{text}");
}

#[test]
fn an_item_that_is_lost_is_let_go() {
    let stage = Stage::new(LONG);
    stage.fake.put("a", "x");
    let script = "trap 'touch ended' EXIT; trap 'exit 0' TERM; touch started; while :; do sleep 0.02; done";
    let child = stage.work(&[], script).spawn().unwrap();
    stage.until_there("started");
    stage.fake.steal("a");
    stage.until_there("ended");
    signal(&child, Signal::TERM);
    let (code, text) = told(child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert!(stage.path("ended").exists() && text.contains("was ended with its lease"), "{text}");
    let item = stage.fake.item("a");
    assert!(!item.done && item.reason.is_empty() && item.lease_id.is_some(), "neither acked nor given back");
}

#[test]
fn a_lease_that_can_not_be_extended_ends_its_command() {
    let stage = Stage::new(SHORT);
    stage.fake.put("a", "x");
    stage.fake.not_extending.store(true, Ordering::SeqCst);
    let script = "trap '' TERM; touch started; sleep 600 & wait; wait";
    let (code, text) = told(stage.work(&["--once"], script).output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("can't extend leases") && text.contains("killing the command"), "{text}");
    assert!(!stage.fake.is_done("a"));
}

#[test]
fn commands_outlive_their_stream_and_are_acked_by_calls() {
    let stage = Stage::new(SHORT);
    stage.fake.put("a", "x");
    let child =
        stage.work(&["--concurrency", "1"], &format!("touch $MAJORITYD_ITEM_ID; {GATE}")).spawn().unwrap();
    stage.until_there("a");
    let before = stage.fake.extensions.load(Ordering::SeqCst);
    stage.fake.break_streams();
    // What comes on the next stream waits for the place.
    stage.fake.put("b", "x");
    stage.fake.until("another stream", |fake| fake.streams.load(Ordering::SeqCst) >= 2);
    stage.fake.until("b under a lease", |fake| fake.item("b").attempts == 1);
    // Longer than the lease of the one that is lost would have been.
    stage.fake.until("extensions", |fake| fake.extensions.load(Ordering::SeqCst) >= before + 6);
    assert!(!stage.path("b").exists());
    stage.touch("open");
    stage.fake.until("both done", |fake| fake.is_done("a") && fake.is_done("b"));
    let items = ["a", "b"].map(|id| stage.fake.item(id).attempts);
    assert_eq!((items, stage.fake.calls.load(Ordering::SeqCst)), ([1, 1], 1));
    signal(&child, Signal::TERM);
    let (code, text) = told(child.wait_with_output().unwrap());
    assert!(code == 0 && text.contains("trying again") && text.contains("connected again"), "{text}");
}

#[test]
fn what_can_not_be_acked_on_the_stream_is_acked_by_a_call() {
    let stage = Stage::new(LONG);
    stage.fake.put("a", "x");
    stage.fake.not_settling.store(true, Ordering::SeqCst);
    let child = stage.work(&[], "true").spawn().unwrap();
    stage.fake.until("a done", |fake| fake.is_done("a"));
    signal(&child, Signal::TERM);
    assert_eq!(told(child.wait_with_output().unwrap()).0, 0);
}

#[test]
fn what_nobody_can_be_told_of_is_said() {
    let stage = Stage::new(SHORT);
    stage.fake.put("a", "x");
    let child = stage.work(&[], &format!("touch started; {GATE}")).spawn().unwrap();
    stage.until_there("started");
    stage.fake.refusing.store(true, Ordering::SeqCst);
    stage.fake.break_streams();
    stage.touch("open");
    signal(&child, Signal::TERM);
    let (code, text) = told(child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("is done but could not be acked: it comes again"), "{text}");
}

#[test]
fn without_a_daemon_there_is_nothing_to_work_on() {
    let stage = Stage::new(LONG);
    let mut command = stage.work(&[], "true");
    command.env("MAJORITYD_ENDPOINT", "http://127.0.0.1:1");
    let (code, text) = told(command.output().unwrap());
    assert!(code == 69 && text.contains("majorityd serve"), "{code} {text}");
    // The next one is asked.
    stage.fake.put("a", "x");
    let mut command = stage.work(&["--once"], "true");
    command.env("MAJORITYD_ENDPOINT", format!("http://127.0.0.1:1,http://{}", stage.address));
    let (code, text) = told(command.output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert!(stage.fake.is_done("a"));
}

#[test]
fn lines_are_items_and_what_fails_is_named() {
    let stage = Stage::new(LONG);
    let mut child = stage.queue(&["put", "q", "--lines"]).stdin(Stdio::piped()).spawn().unwrap();
    let lines: String = (0..2_500).map(|number| format!("line {number}\n")).collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let (code, text) = told(child.wait_with_output().unwrap());
    assert_eq!((code, text.lines().count()), (0, 2_500), "{text}");
    let put = stage.fake.items.lock().unwrap().clone();
    let order: Vec<_> = text.lines().map(|id| String::from_utf8(put[id].payload.clone()).unwrap()).collect();
    assert_eq!(order, lines.lines().collect::<Vec<_>>());

    let mut child = stage.queue(&["put", "q", "--lines", "--json"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"good\nfull\ngood\nunknown\n").unwrap();
    let (code, text) = told(child.wait_with_output().unwrap());
    assert!(code == 75 && text.contains("line 2: ") && text.matches("QUEUE_FULL").count() == 1, "{text}");
    // What is not known to have been put was put again, and is the same item.
    let ids: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(ids.len(), 3, "{text}");
    assert!(ids.iter().all(|put| put["duplicate"] == json!(false)), "{text}");
}

#[test]
fn all_pages_are_read() {
    let stage = Stage::new(LONG);
    for (arguments, name) in [(["list", "pre"], "name"), (["dead", "q"], "id")] {
        let (code, text) = told(stage.queue(&arguments).arg("--json").output().unwrap());
        assert_eq!(code, 0, "{text}");
        let listed: Value = serde_json::from_str(&text).unwrap();
        let names: Vec<_> = listed.as_array().unwrap().iter().map(|entry| &entry[name]).collect();
        assert_eq!(names, [&json!("first"), &json!("second")]);
        let (code, text) = told(stage.queue(&arguments).output().unwrap());
        assert!(code == 0 && text.contains("first") && text.contains("second"), "{text}");
    }
}
