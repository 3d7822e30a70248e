//! `majorityd status`, the real binary, against daemons in this process.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use majorityd::config::{NodeAddress, Secret, Settings};
use majorityd::grpc::{self, Services};
use majorityd::node::embedded::EmbeddedServer;
use majorityd::runtime::system;
use majorityd::server::{Daemon, embedded_servers};

/// What nobody may see.
const PASSWORD: &str = "hunter2";

/// A daemon, and commands that ask it.
struct Stage {
    address: SocketAddr,
    servers: Vec<Arc<EmbeddedServer>>,
    _runtime: tokio::runtime::Runtime,
}

impl Stage {
    /// With three embedded nodes that all count.
    fn new() -> Self {
        let mut settings = Settings::default();
        settings.cluster.bootstrap = true;
        Self::start(&settings, true)
    }

    /// With Redis servers that are not there, and a password for each.
    fn without_servers() -> Self {
        let mut settings = Settings::default();
        let addresses =
            ["redis://me:hunter2@127.0.0.1:1", "redis://:hunter2@127.0.0.1:1/1", "redis://127.0.0.1:1/2"];
        settings.nodes.addresses = addresses.iter().map(|text| NodeAddress::parse(text).unwrap()).collect();
        settings.nodes.password = Some(Secret::new(PASSWORD));
        Self::start(&settings, false)
    }

    fn start(settings: &Settings, embedded: bool) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (address, servers) = runtime.block_on(async {
            let system = system::runtime();
            let servers = embedded_servers(3, &system);
            let daemon = match embedded {
                true => Daemon::on_embedded(settings, &system, &servers).unwrap(),
                false => Daemon::on_redis(settings, &system).unwrap(),
            };
            while embedded && daemon.observer.look().counting < 3 {
                system.clock.sleep_until(system.clock.now() + Duration::from_millis(5)).await;
            }
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let services = Services {
                locks: daemon.locks.clone(),
                keys: daemon.keys.clone(),
                observer: daemon.observer.clone(),
                runtime: system.clone(),
                can_serve: daemon.can_serve.clone(),
                settings: grpc::Settings::default(),
            };
            system.spawner.spawn(Box::pin(async move {
                let _daemon = daemon;
                grpc::serve(services, listener, None, std::future::pending()).await.unwrap();
            }));
            (address, servers)
        });
        Self { address, servers, _runtime: runtime }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_majorityd"));
        command.arg("status").args(arguments);
        command.env("MAJORITYD_ENDPOINT", format!("http://{}", self.address));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Exit code, and what went to stdout and to stderr.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code().unwrap(), out, err)
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

    stage.servers[2].stop();
    let (code, json) = stage.json();
    assert_eq!((code, &json["serves"], &json["counting"]), (3, &true.into(), &2.into()), "{json}");
    assert_eq!(json["nodes"][2]["connection"], "unreachable", "{json}");
    assert_eq!(json["nodes"][0]["member"], "member", "{json}");
    assert_eq!(json["daemon"]["settings"]["cluster.bootstrap"], "true", "{json}");

    stage.servers[1].stop();
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
    stage.servers[0].stop();
    assert_eq!(next()["counting"], 2);
    // The command notices a reader that has gone with the next change, and says how things were.
    drop(lines);
    stage.servers[1].stop();
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
    let both = format!("http://127.0.0.1:1,http://{}", stage.address);
    assert_eq!(stage.run(&["--endpoint", &both]).0, 0);
    assert_eq!(stage.run(&["--fly"]).0, 64);
    assert_eq!(stage.run(&["--json", "--output", "text"]).0, 64);
}
