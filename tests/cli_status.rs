//! `majorityd status`, the real binary, against daemons in this process.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/in_process.rs"]
mod in_process;

use std::io::{BufRead as _, BufReader};
use std::process::Command;

use in_process::{InProcess, told};
use majorityd::config::{NodeAddress, Secret, Settings};

/// What nobody may see.
const PASSWORD: &str = "hunter2";

/// A daemon, and commands that ask it.
struct Stage {
    daemon: InProcess,
}

impl Stage {
    fn new() -> Self {
        Self { daemon: InProcess::embedded(&Settings::default()) }
    }

    /// With Redis servers that are not there, and a password for each.
    fn without_servers() -> Self {
        let mut settings = Settings::default();
        let addresses =
            ["redis://me:hunter2@127.0.0.1:1", "redis://:hunter2@127.0.0.1:1/1", "redis://127.0.0.1:1/2"];
        settings.nodes.addresses = addresses.iter().map(|text| NodeAddress::parse(text).unwrap()).collect();
        settings.nodes.password = Some(Secret::new(PASSWORD));
        Self { daemon: InProcess::on_redis(&settings) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.daemon.command(&[&["status"], arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(self.command(arguments).output().unwrap())
    }

    fn json(&self) -> (i32, serde_json::Value) {
        let (code, out, err) = self.run(&["--json"]);
        (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
    }
}

#[test]
fn the_exit_code_and_the_table_follow_the_nodes() {
    let stage = Stage::new();
    let (code, out, err) = stage.run(&[]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        out.contains("NODE  ADDRESS     CONNECTION  MEMBER  COUNTS") && out.contains("embedded:2"),
        "{out}"
    );
    assert!(
        out.contains("3 of 3 nodes count and 2 are needed; 1 more may stop or lose its memory\n"),
        "{out}"
    );
    assert!(out.contains("a cluster of 3 nodes was founded"), "{out}");

    stage.daemon.servers[2].stop();
    let (code, json) = stage.json();
    assert_eq!((code, &json["serves"], &json["counting"]), (3, &true.into(), &2.into()), "{json}");
    assert_eq!(json["nodes"][2]["connection"], "unreachable", "{json}");
    assert_eq!(json["nodes"][0]["member"], "member", "{json}");
    assert_eq!(json["daemon"]["settings"]["cluster.bootstrap"], "true", "{json}");

    stage.daemon.servers[1].stop();
    let (code, out, _) = stage.run(&[]);
    assert_eq!(code, 4, "{out}");
    assert!(out.contains("node 1: ") && out.contains("not serving: 1 of 3"), "{out}");
}

#[test]
fn a_watch_prints_an_object_per_line_as_things_change() {
    let stage = Stage::new();
    let mut child = stage.command(&["--watch", "--output", "json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["counting"], 3);
    stage.daemon.servers[0].stop();
    assert_eq!(next()["counting"], 2);
    // The command notices a reader that has gone with the next change, and says how things were.
    drop(lines);
    stage.daemon.servers[1].stop();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(4));
}

#[test]
fn no_secret_is_shown_of_servers_that_are_not_there() {
    let stage = Stage::without_servers();
    let (code, text, _) = stage.run(&[]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("redis://***@127.0.0.1:1/1") && text.contains("redis://127.0.0.1:1/2"), "{text}");
    let (code, json, _) = stage.run(&["--json"]);
    assert!(json.contains("\"nodes.password\": \"***\""), "{json}");
    assert_eq!(code, 4);
    for shown in [text, json] {
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
}

#[test]
fn no_daemon_and_a_wrong_command_line_have_codes_of_their_own() {
    let stage = Stage::new();
    let (code, out, err) = stage.run(&["--endpoint", "http://127.0.0.1:1"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("127.0.0.1:1") && err.contains("majorityd serve"), "{err}");
    let (code, _, err) = stage.run(&["--watch", "--endpoint", "http://127.0.0.1:1"]);
    assert_eq!(code, 1, "{err}");
    // The next one is asked.
    let both = format!("http://127.0.0.1:1,http://{}", stage.daemon.address);
    assert_eq!(stage.run(&["--endpoint", &both]).0, 0);
    assert_eq!(stage.run(&["--fly"]).0, 64);
    assert_eq!(stage.run(&["--json", "--output", "text"]).0, 64);
}
