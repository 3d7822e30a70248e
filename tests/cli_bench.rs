//! `majorityd bench`, the real binary, against a daemon in this process. How fast it is, nothing here judges.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/in_process.rs"]
mod in_process;

use std::process::Command;

use in_process::{InProcess, told};
use majorityd::config::Settings;
use serde_json::{Value, json};

fn stage() -> InProcess {
    InProcess::embedded(&Settings::default())
}

fn json_of(daemon: &InProcess, arguments: &[&str]) -> Value {
    let short = ["--duration", "300ms", "--warm-up", "50ms", "--output", "json"];
    let (code, out, err) = told(daemon.command(&[&["bench"], arguments, &short].concat()).output().unwrap());
    assert_eq!(code, 0, "{arguments:?}: {out} {err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn every_operation_is_done_and_nothing_of_it_is_left() {
    let daemon = stage();
    for operation in ["locks", "get", "set", "cas", "increment", "queue", "consume", "ping"] {
        let prefix = format!("b/{operation}/");
        let report =
            json_of(&daemon, &[operation, "--callers", "5", "--connections", "2", "--prefix", &prefix]);
        assert_eq!((&report["operation"], &report["failed"]), (&json!(operation), &json!({})), "{report}");
        assert!(report["done"].as_u64().unwrap() > 0, "{report}");
        let latency = &report["latency_us"];
        let [p50, p99, max] = ["p50", "p99", "max"].map(|part| latency[part].as_u64().unwrap());
        assert!(0 < p50 && p50 <= p99 && p99 <= max, "{report}");
    }
    let (code, out, _) = told(daemon.command(&["locks", "list", "--output", "json"]).output().unwrap());
    assert_eq!((code, out.contains("b/")), (0, false), "a lock is left: {out}");
    for queue in ["b/queue/0", "b/consume/0"] {
        let (code, _, err) = told(daemon.command(&["queue", "stats", queue]).output().unwrap());
        assert_eq!((code, err.contains("NO_SUCH_QUEUE")), (1, true), "the queue {queue} is left: {err}");
    }
}

#[test]
fn callers_of_one_lock_wait_for_each_other() {
    let report = json_of(&stage(), &["locks", "--callers", "8", "--names", "1"]);
    assert_eq!((&report["names"], &report["failed"]), (&json!(1), &json!({})), "{report}");
    assert!(report["done"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn what_was_due_and_not_made_is_told() {
    // More than anything can do, so that some is missed on any machine.
    let report = json_of(&stage(), &["set", "--callers", "2", "--rate", "1000000"]);
    assert!(report["missed"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn people_see_how_it_goes_and_what_came_of_it() {
    let arguments = ["bench", "ping", "--callers", "2", "--duration", "1500ms", "--warm-up", "0s"];
    let (code, out, err) = told(stage().command(&arguments).output().unwrap());
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("ping: 2 callers on 4 connections") && out.contains("p99.9"), "{out}");
    assert!(err.contains("1 s") && err.contains("/s"), "{err}");
}

#[test]
fn a_payload_that_is_too_large_is_said_so_and_every_failure_is_told() {
    let daemon = stage();
    let too_large = ["bench", "set", "--payload", "2000000", "--callers", "1", "--duration", "1s"];
    let (code, out, _) = told(daemon.command(&too_large).output().unwrap());
    assert!(code == 1 && out.contains("TOO_LARGE"), "{code} {out}");
}

#[test]
fn where_no_daemon_is_that_is_said() {
    let arguments = ["bench", "ping", "--endpoint", "http://127.0.0.1:1"];
    let output = Command::new(env!("CARGO_BIN_EXE_majorityd")).args(arguments).output().unwrap();
    let (code, _, err) = told(output);
    assert!(code == 69 && err.contains("http://127.0.0.1:1"), "{code} {err}");
}
