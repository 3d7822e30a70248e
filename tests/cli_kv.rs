//! `majorityd kv`, the real binary, against a daemon in this process.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/in_process.rs"]
mod in_process;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use in_process::{InProcess, told};
use majorityd::config::Settings;
use serde_json::{Value, json};

/// A daemon on three embedded nodes, and commands that ask it.
struct Stage {
    daemon: InProcess,
}

impl Stage {
    fn new() -> Self {
        let mut settings = Settings::default();
        // What a watch tells it has been told of, or knows when to look for.
        settings.keys.look_interval = Duration::from_secs(3_600);
        Self { daemon: InProcess::embedded(&settings) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.daemon.command(&[&["kv"], arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(self.command(arguments).output().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (code, out, err) = self.run(&[arguments, &["--output", "json"]].concat());
        assert_eq!(code, 0, "{arguments:?}: {err}");
        serde_json::from_str(&out).unwrap()
    }
}

#[test]
fn keys_are_written_read_listed_and_removed() {
    let stage = Stage::new();
    let says = |arguments: &[&str], code, expected: &str| {
        let (found, out, err) = stage.run(arguments);
        assert_eq!(found, code, "{arguments:?}: {out} {err}");
        assert!(out.contains(expected) || err.contains(expected), "{arguments:?}: {out} {err}");
    };
    says(&["get", "a"], 1, "a has no value");
    says(&["set", "a", "hello"], 0, "version ");
    says(&["get", "a"], 0, "hello");
    says(&["set", "a", "x", "--absent"], 1, "PRECONDITION_FAILED");
    says(&["set", "new", "x", "--present"], 1, "PRECONDITION_FAILED");
    says(&["set", "a", "x", "--absent", "--present"], 64, "cannot be used with");
    let version = stage.json(&["get", "a"])["version"].to_string();
    says(&["set", "a", "second", "--version", &version], 0, "version ");
    says(&["set", "a", "third", "--version", &version], 1, "PRECONDITION_FAILED");
    says(&["incr", "n"], 0, "1");
    says(&["incr", "n", "-43"], 0, "-42");
    says(&["incr", "m", "2", "--initial", "-5"], 0, "-3");
    says(&["incr", "a"], 1, "NOT_AN_INTEGER");
    says(&["touch", "a", "--ttl", "1h"], 0, "version ");
    says(&["touch", "nothing"], 1, "nothing has no value");
    says(&["list", "--prefix", "n", "--values"], 0, "-42");
    says(&["delete", "n"], 0, "deleted");
    says(&["delete", "n"], 1, "n has no value");
    says(&["get", ""], 64, "key must not be empty");
    let listed = stage.json(&["list", "--values"]);
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|key| (&key["key"], &key["value"])).collect();
    assert_eq!(names, [(&json!("a"), &json!("second")), (&json!("m"), &json!("-3"))]);
    assert!(listed[0]["remaining_ms"].as_u64().is_some_and(|left| left > 3_000_000), "{listed}");
    assert_eq!(listed[1]["remaining_ms"], Value::Null);
}

#[test]
fn bytes_go_in_and_out_as_they_are() {
    let stage = Stage::new();
    let bytes = [0xff, 0x00, b'\n'];
    let mut child = stage.command(&["set", "bin", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(stage.command(&["get", "bin", "--raw"]).output().unwrap().stdout, bytes);
    assert_eq!(stage.run(&["get", "bin"]).1, "<3 bytes that are no text>\n");
    assert_eq!(stage.json(&["get", "bin"])["value_base64"], json!("/wAK"));
}

#[test]
fn a_write_under_a_lock_takes_its_fence_from_the_environment() {
    let stage = Stage::new();
    let set = |token: &str| {
        let mut command = stage.command(&["set", "a", token]);
        command.env("MAJORITYD_LOCK_NAME", "job").env("MAJORITYD_FENCING_TOKEN", token);
        told(command.output().unwrap())
    };
    assert_eq!(set("7").0, 0);
    let (code, _, err) = set("6");
    assert_eq!(code, 1);
    assert!(err.contains("FENCED") && err.contains("token 7 of the lock job"), "{err}");
    assert_eq!(set("7").0, 0, "the same holder writes more than once");

    // The token of an item, as `queue work` gives it, is no fence; and no other lock's.
    let set = |arguments: &[&str]| {
        let mut command = stage.command(&[&["set", "b", "x"], arguments].concat());
        told(command.env("MAJORITYD_FENCING_TOKEN", "5").output().unwrap())
    };
    assert_eq!(set(&[]).0, 0);
    let (code, _, err) = set(&["--fence-lock", "other"]);
    assert!(code == 64 && err.contains("fencing token of the lock"), "{err}");
}

#[test]
fn a_watch_tells_what_there_is_and_then_what_changes() {
    let stage = Stage::new();
    stage.run(&["set", "w/1", "one"]);
    let mut child = stage.command(&["watch", "--prefix", "w/", "--output", "json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let first = next();
    assert_eq!((&first["event"], &first["value"]["value"]), (&json!("value"), &json!("one")));
    assert_eq!(next()["event"], json!("synced"));
    stage.run(&["set", "elsewhere", "x"]);
    stage.run(&["set", "w/2", "two", "--ttl", "1s"]);
    let second = next();
    assert_eq!((&second["value"]["key"], &second["value"]["value"]), (&json!("w/2"), &json!("two")));
    // Its time is told to the watch, which looks when it is over.
    let gone = next();
    assert_eq!(
        (&gone["event"], &gone["key"], &gone["missed"]),
        (&json!("removed"), &json!("w/2"), &json!(0))
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn another_daemon_is_asked_where_one_does_not_answer() {
    let stage = Stage::new();
    let mut command = stage.command(&["set", "a", "x"]);
    command.env("MAJORITYD_ENDPOINT", format!("http://127.0.0.1:1,http://{}", stage.daemon.address));
    assert_eq!(told(command.output().unwrap()).0, 0);
    let mut command = stage.command(&["get", "a"]);
    command.env("MAJORITYD_ENDPOINT", "http://127.0.0.1:1");
    assert_eq!(told(command.output().unwrap()).0, 69);
}
