//! `majorityd queue`, the real binary, against a daemon in this process.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/in_process.rs"]
mod in_process;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use in_process::{InProcess, told};
use majorityd::config::Settings;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A daemon on three embedded nodes, and commands that ask it.
struct Stage {
    daemon: InProcess,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        Self { daemon: InProcess::embedded(&Settings::default()), folder: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.daemon.command(&[&["queue"], arguments].concat());
        command.current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(self.command(arguments).output().unwrap())
    }

    fn says(&self, arguments: &[&str], code: i32, expected: &str) {
        let (found, out, err) = self.run(arguments);
        assert_eq!(found, code, "{arguments:?}: {out} {err}");
        assert!(out.contains(expected) || err.contains(expected), "{arguments:?}: {out} {err}");
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (code, out, err) = self.run(&[arguments, &["--output", "json"]].concat());
        assert_eq!(code, 0, "{arguments:?}: {err}");
        serde_json::from_str(&out).unwrap()
    }

    /// The only item that is ready: its id and lease id.
    fn reserve(&self, queue: &str) -> (String, String) {
        let items = self.json(&["reserve", queue, "--wait", "10s"]);
        let text = |name: &str| items[0][name].as_str().unwrap().to_owned();
        (text("id"), text("lease_id"))
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn items_are_put_reserved_and_settled() {
    let stage = Stage::new();
    stage.says(&["reserve", "q"], 75, "no item of \"q\" is ready");
    stage.says(&["put", "q", "late", "--id", "late", "--priority", "5"], 0, "late");
    stage.says(
        &["put", "q", "first", "--id", "first", "--priority", "-1", "--attribute", "k=v=w"],
        0,
        "first",
    );
    stage.says(&["put", "q", "other", "--id", "first"], 0, "is a duplicate");
    assert_eq!(stage.json(&["put", "q", "x", "--id", "first"]), json!({ "id": "first", "duplicate": true }));
    stage.says(&["put", "q", "hidden", "--delay", "1h"], 0, "");

    let items = stage.json(&["reserve", "q", "--max", "10", "--ttl", "1m"]);
    let seen: Vec<_> = items.as_array().unwrap().iter().map(|item| (&item["id"], &item["payload"])).collect();
    assert_eq!(seen, [(&json!("first"), &json!("first")), (&json!("late"), &json!("late"))]);
    let first = &items[0];
    assert_eq!(
        (&first["attempt"], &first["attributes"], &first["ttl_ms"]),
        (&json!(1), &json!({ "k": "v=w" }), &json!(60_000))
    );
    assert!(first["fencing_token"].as_u64().is_some_and(|token| token > 0), "{first}");
    assert!(first["remaining_ms"].as_u64().is_some_and(|left| left > 0), "{first}");

    let lease = |at: usize| items[at]["lease_id"].as_str().unwrap();
    stage.says(&["extend", "q", "first", lease(0)], 0, "remaining");
    stage.says(&["ack", "q", "first", lease(0)], 0, "");
    stage.says(&["ack", "q", "first", lease(0)], 1, "done already");
    stage.says(&["extend", "q", "first", lease(0)], 1, "done already");
    stage.says(&["ack", "q", "late", lease(0)], 1, "lease is lost");
    stage.says(&["nack", "q", "late", lease(1), "--delay", "0s", "--reason", "no\nluck"], 0, "");
    stage.says(&["nack", "q", "late", lease(1)], 1, "lease is lost");
    stage.says(&["ack", "q", "nothing", lease(1)], 1, "no such item");
    stage.says(&["ack", "q", "late", "no hex"], 64, "INVALID_LEASE_ID");
    stage.says(&["put", "", "x"], 64, "INVALID_NAME");

    let item = stage.json(&["item", "q", "late"]);
    assert_eq!(
        (&item["state"], &item["reason"], &item["attempts"]),
        (&json!("ready"), &json!("no\nluck"), &json!(1))
    );
    assert_eq!(item["lease_id"], Value::Null);
    stage.says(&["item", "q", "late"], 0, "reason:        no\\nluck");
    stage.says(&["item", "q", "first"], 0, "done");
    stage.says(&["item", "q", "nothing"], 1, "NO_SUCH_ITEM");
    assert_eq!(stage.reserve("q").0, "late");
}

#[test]
fn payloads_go_in_and_out_as_they_are() {
    let stage = Stage::new();
    let bytes = [0xff, 0x00, b'\n'];
    std::fs::write(stage.folder.path().join("file"), bytes).unwrap();
    stage.says(&["put", "q", "--file", "file", "--id", "file"], 0, "file");
    stage.says(&["put", "q", "--file", "nothing"], 64, "can't be read");
    let mut child = stage.command(&["put", "q", "-", "--id", "input"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
    for id in ["file", "input"] {
        assert_eq!(stage.command(&["item", "q", id, "--raw"]).output().unwrap().stdout, bytes);
        assert_eq!(stage.json(&["item", "q", id])["payload_base64"], json!("/wAK"));
        stage.says(&["item", "q", id], 0, "<3 bytes that are no text>");
    }
    let mut child = stage.command(&["put", "lines", "--lines"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\n\nthree").unwrap();
    assert_eq!(told(child.wait_with_output().unwrap()).1.lines().count(), 3);
    let items = stage.json(&["reserve", "lines", "--max", "10"]);
    let payloads: Vec<_> = items.as_array().unwrap().iter().map(|item| &item["payload"]).collect();
    assert_eq!(payloads, [&json!("one"), &json!(""), &json!("three")]);
}

#[test]
fn operators_see_queues_and_look_after_them() {
    let stage = Stage::new();
    stage.says(&["stats", "q"], 1, "NO_SUCH_QUEUE");
    let settings = stage.json(&["configure", "q", "--max-attempts", "1", "--lease-ttl", "45s"]);
    assert_eq!((&settings["max_attempts"], &settings["lease_ttl_ms"]), (&json!(1), &json!(45_000)));
    stage.says(&["configure", "q", "--max-items", "2"], 0, "max items:      2");
    for id in ["a", "b"] {
        stage.says(&["put", "q", "x", "--id", id], 0, id);
    }
    stage.says(&["put", "q", "x"], 75, "QUEUE_FULL");
    for _ in 0..2 {
        let (id, lease) = stage.reserve("q");
        stage.says(&["nack", "q", &id, &lease, "--reason", "never"], 0, "is dead now");
    }
    let stats = stage.json(&["stats", "q"]);
    assert_eq!(
        (&stats["ready"], &stats["dead"], &stats["settings"]["max_attempts"]),
        (&json!(0), &json!(2), &json!(1))
    );
    stage.says(&["stats", "q"], 0, "dead:           2");
    let dead = stage.json(&["dead", "q"]);
    assert_eq!(
        (&dead[0]["id"], &dead[0]["reason"], &dead[1]["id"]),
        (&json!("a"), &json!("never"), &json!("b"))
    );
    stage.says(&["dead", "q"], 0, "never");
    stage.says(&["redrive", "q", "a"], 0, "1 redriven");
    stage.says(&["redrive", "q", "--all"], 0, "1 redriven");
    let listed = stage.json(&["list", "q"]);
    assert_eq!((&listed[0]["name"], &listed[0]["ready"]), (&json!("q"), &json!(2)));
    stage.says(&["list", "other"], 0, "NAME");
    stage.says(&["purge", "q", "--state", "dead,delayed", "--yes"], 0, "0 removed");
    stage.says(&["purge", "q", "--state", "ready", "--yes"], 0, "2 removed");
    stage.says(&["put", "q", "x"], 0, "");
    stage.says(&["delete", "q"], 64, "--yes");
    stage.says(&["delete", "q", "--yes"], 0, "deleted q, which had 1 items");
    stage.says(&["delete", "q", "--yes"], 1, "NO_SUCH_QUEUE");
}

#[test]
fn a_worker_runs_each_item_and_what_fails_comes_again() {
    let stage = Stage::new();
    stage.says(&["configure", "q", "--backoff-min", "0s", "--backoff-max", "0s"], 0, "");
    for id in ["a", "b", "c"] {
        stage.says(&["put", "q", &format!("payload of {id}"), "--id", id], 0, id);
    }
    // The second one fails once.
    let script = "echo \"$MAJORITYD_ITEM_ID $MAJORITYD_ATTEMPT $(cat)\" >> runs; \
                  [ \"$MAJORITYD_ITEM_ID $MAJORITYD_ATTEMPT\" != 'b 1' ] || exit 3";
    let (code, out, err) = stage.run(&["work", "q", "--drain", "--", "sh", "-c", script]);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(err.contains("exit status 3"), "{err}");
    let mut runs = stage.lines("runs");
    runs.sort();
    assert_eq!(runs, ["a 1 payload of a", "b 1 payload of b", "b 2 payload of b", "c 1 payload of c"]);
    let stats = stage.json(&["stats", "q"]);
    assert_eq!((&stats["ready"], &stats["leased"], &stats["done"]), (&json!(0), &json!(0), &json!(3)));
    assert_eq!(stage.json(&["item", "q", "b"])["state"], json!("done"));
}

#[test]
fn a_worker_that_is_terminated_finishes_what_it_has() {
    let stage = Stage::new();
    stage.says(&["put", "q", "x", "--id", "a"], 0, "a");
    let script = "echo started; while [ ! -e open ]; do sleep 0.02; done";
    let mut child = stage.command(&["work", "q", "--", "sh", "-c", script]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(out.next().unwrap().unwrap(), "started");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(err.next().unwrap().unwrap().contains("taking no more items"));
    stage.says(&["put", "q", "x", "--id", "b"], 0, "b");
    std::fs::write(stage.folder.path().join("open"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let states = ["a", "b"].map(|id| stage.json(&["item", "q", id])["state"].clone());
    assert_eq!(states, [json!("done"), json!("ready")]);
}

#[test]
fn another_daemon_is_asked_where_one_does_not_answer() {
    let stage = Stage::new();
    let with = |endpoint: String, arguments: &[&str]| {
        told(stage.command(arguments).env("MAJORITYD_ENDPOINT", endpoint).output().unwrap())
    };
    let both = format!("http://127.0.0.1:1,http://{}", stage.daemon.address);
    let (code, _, err) = with(both.clone(), &["put", "q", "x", "--id", "a"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(with(both, &["work", "q", "--once", "--", "true"]).0, 0);
    let (code, _, err) = with("http://127.0.0.1:1".to_owned(), &["put", "q", "x"]);
    assert!(code == 69 && err.contains("majorityd serve"), "{err}");
}
