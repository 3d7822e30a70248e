//! `majorityd check` against servers that are not as they should be: each finding, with its values and what to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::{DaemonProcess, config, majorityd, seen, servers};
use crate::support::redis_server::{RedisServer, Reply, ServerTime};

/// Servers about which nothing is to be said, beside what a test does to them.
fn good_server() -> RedisServer {
    RedisServer::start_with(&["--appendonly", "yes"])
}

fn good_servers() -> Vec<RedisServer> {
    (0..3).map(|_| good_server()).collect()
}

struct Checked {
    code: i32,
    json: Value,
    text: String,
}

impl Checked {
    /// Once for machines and once for people.
    fn of(servers: &[RedisServer], flags: &[&str]) -> Self {
        let addresses: Vec<String> = servers.iter().map(RedisServer::address).collect();
        Self::at(&addresses, flags)
    }

    fn at(addresses: &[String], flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("majorityd.toml");
        std::fs::write(&file, config(addresses).replace("bootstrap = true", "bootstrap = false")).unwrap();
        let run = |output: &str| {
            let mut command = majorityd();
            command.args(["check", "--output", output, "--config"]).arg(&file).args(flags);
            command.output().unwrap()
        };
        let (json, text) = (run("json"), run("text"));
        let printed = String::from_utf8(json.stdout).unwrap();
        Self {
            code: json.status.code().unwrap(),
            json: serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}")),
            text: String::from_utf8(text.stdout).unwrap(),
        }
    }

    fn findings(&self) -> &Vec<Value> {
        self.json["findings"].as_array().expect("a list")
    }

    fn kinds(&self) -> BTreeSet<&str> {
        self.findings().iter().map(|finding| finding["kind"].as_str().unwrap()).collect()
    }

    /// There is one of this kind at this node, which says all this, and people see it too.
    #[track_caller]
    fn has(&self, severity: &str, kind: &str, node: Option<u64>, words: &[&str]) {
        let of_kind = self.findings().iter().filter(|finding| finding["kind"] == kind);
        let fits = |finding: &&Value| finding["severity"] == severity && finding["node"].as_u64() == node;
        let found: Vec<&Value> = of_kind.filter(fits).collect();
        let [finding] = &found[..] else { panic!("{severity} {kind} {node:?}: {}", self.text) };
        let (found, advice) = (finding["found"].as_str().unwrap(), finding["advice"].as_str().unwrap());
        for word in words {
            assert!(format!("{found} {advice}").contains(word), "{word}: {finding}");
        }
        assert!(!advice.is_empty(), "{finding}");
        // Of another run, so that times differ.
        assert!(
            words.iter().all(|word| self.text.contains(word)) && self.text.contains(advice),
            "{}",
            self.text
        );
    }
}

fn ok(server: &RedisServer, words: &[&str]) {
    assert_eq!(server.command(words), Reply::Status("OK".into()), "{words:?}");
}

#[tokio::test]
async fn good_servers_leave_nothing_to_say() {
    let servers = good_servers();
    let checked = Checked::of(&servers, &[]);
    assert_eq!((checked.code, checked.findings()), (0, &vec![]), "{}", checked.text);
    let daemon = DaemonProcess::serving(&servers).await;
    seen("a founded cluster", || async { daemon.all_is_well().then_some(()) }).await;
    let checked = Checked::of(&servers, &[]);
    assert_eq!((checked.code, checked.findings()), (0, &vec![]), "{}", checked.text);
    // What is for a new cluster only is worth a word from then on, and no more.
    let checked = Checked::of(&servers, &["--set", "cluster.bootstrap=true"]);
    checked.has("note", "bootstrap", None, &["set it to false"]);
    assert_eq!(checked.code, 0);
}

#[tokio::test]
async fn what_is_not_kept_on_disk_is_found_and_can_be_accepted() {
    let servers = good_servers();
    ok(&servers[0], &["CONFIG", "SET", "appendonly", "no"]);
    ok(&servers[1], &["CONFIG", "SET", "appendonly", "no"]);
    ok(&servers[1], &["CONFIG", "SET", "save", "900 1"]);
    ok(&servers[2], &["CONFIG", "SET", "appendfsync", "no"]);
    let checked = Checked::of(&servers, &[]);
    checked.has("warning", "persistence", Some(0), &["keeps nothing on disk", "CONFIG SET appendonly yes"]);
    checked.has("warning", "persistence", Some(1), &["save \"900 1\"", "newer than the last"]);
    checked.has("warning", "persistence", Some(2), &["appendfsync is no", "everysec"]);
    assert_eq!(checked.code, 1);
    let accepted = Checked::of(&servers, &["--accept", "persistence"]);
    assert_eq!(accepted.code, 0, "{}", accepted.text);
    assert!(accepted.text.contains("accepted (persistence): node 0"), "{}", accepted.text);
    assert_eq!(Checked::of(&servers, &["--accept", "clock"]).code, 1);
}

#[tokio::test]
async fn servers_that_must_not_be_used_are_found_with_all_else_about_them() {
    let servers = good_servers();
    ok(&servers[0], &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    ok(&servers[0], &["CONFIG", "SET", "appendonly", "no"]);
    let port = servers[1].port().to_string();
    ok(&servers[2], &["REPLICAOF", "127.0.0.1", &port]);
    seen("a replica", || async {
        let Reply::Bytes(info) = servers[1].command(&["INFO", "replication"]) else { return None };
        String::from_utf8_lossy(&info).contains("connected_slaves:1").then_some(())
    })
    .await;
    let checked = Checked::of(&servers, &[]);
    checked.has("error", "eviction", Some(0), &["allkeys-lru", "CONFIG SET maxmemory-policy noeviction"]);
    checked.has("warning", "persistence", Some(0), &["keeps nothing"]);
    checked.has("note", "replicas", Some(1), &["1 server(s)", "Sentinel"]);
    checked.has("error", "role", Some(2), &["slave", "REPLICAOF NO ONE"]);
    assert_eq!(checked.code, 2);
}

#[tokio::test]
async fn nobody_at_an_address_and_one_server_at_two_are_found() {
    let mut servers = good_servers();
    let port = servers[0].port();
    let addresses =
        [servers[0].address(), servers[1].address(), format!("redis://localhost:{port}")].map(|a| a);
    servers[1].kill();
    let checked = Checked::at(&addresses, &[]);
    checked.has("error", "unreachable", Some(1), &["Connection refused", "start the server"]);
    checked.has("error", "duplicate", Some(2), &["node 0", "list each one once"]);
    assert_eq!(checked.code, 2);
}

#[tokio::test]
async fn a_server_of_another_cluster_is_found() {
    let servers = good_servers();
    let daemon = DaemonProcess::serving(&servers).await;
    seen("a founded cluster", || async { daemon.all_is_well().then_some(()) }).await;
    let checked = Checked::of(&servers, &["--set", "cluster.name=other"]);
    checked.has("error", "foreign", Some(0), &["cluster e2e", "correct the cluster's name"]);
    assert_eq!((checked.code, checked.kinds()), (2, ["foreign"].into()));
}

#[tokio::test]
async fn a_server_that_is_nearly_full_is_found() {
    let servers = good_servers();
    for server in &servers {
        server.command(&["SETRANGE", "ballast", "50000000", "x"]);
    }
    let Reply::Bytes(info) = servers[0].command(&["INFO", "memory"]) else { panic!() };
    let info = String::from_utf8_lossy(&info).into_owned();
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let used: u64 = used.trim().parse().unwrap();
    let of = |server: &RedisServer, percent: u64| {
        ok(server, &["CONFIG", "SET", "maxmemory", &(used * 100 / percent).to_string()]);
    };
    of(&servers[0], 88);
    // So little that nothing can be written any more.
    of(&servers[1], 150);
    let checked = Checked::of(&servers, &[]);
    checked.has("warning", "memory", Some(0), &["MiB of", "% of maxmemory", "refuses writes"]);
    checked.has("error", "memory", Some(1), &["% of maxmemory"]);
    assert_eq!(checked.code, 1, "{}", checked.text);
}

#[tokio::test]
async fn commands_that_the_user_may_not_call_are_named() {
    let servers = good_servers();
    let user = |server: &RedisServer, rules: &[&str]| {
        let words =
            [&["ACL", "SETUSER", "doctor", "on", ">hunter2", "resetkeys", "resetchannels"], rules].concat();
        ok(server, &words);
    };
    let all = ["~majorityd:*", "&majorityd:*", "+@all", "-@dangerous", "+info", "+config|get"];
    user(&servers[0], &all);
    user(&servers[1], &[&all[..], &["-zadd", "-script", "-publish"]].concat());
    user(&servers[2], &[&all[2..], &["~other:*", "-eval"]].concat());
    let flags = ["--set", "nodes.username=doctor", "--set", "nodes.password=hunter2"];
    let checked = Checked::of(&servers, &flags);
    let denied =
        ["ZADD majorityd:node 0 x", "SCRIPT LOAD x", "PUBLISH majorityd:e2e:changes x", "ACL SETUSER"];
    checked.has("error", "permissions", Some(1), &denied);
    assert!(!checked.text.contains("): node 0"), "{}", checked.text);
    // Where nothing can be run, the command that runs is named, and what the look itself met.
    let of_two: Vec<_> = checked.findings().iter().filter(|finding| finding["node"] == 2).collect();
    assert!(
        of_two.iter().any(|finding| finding["found"].as_str().unwrap().contains("may not call EVAL")),
        "{of_two:?}"
    );
    assert!(!format!("{} {}", checked.json, checked.text).contains("hunter2"));
    assert_eq!(checked.code, 1);

    let wrong = ["--set", "nodes.username=doctor", "--set", "nodes.password=wrong"];
    let checked = Checked::of(&servers, &wrong);
    checked.has("error", "permissions", Some(0), &["AUTH", "nodes.password"]);
    assert_eq!(checked.code, 2);
}

#[tokio::test]
async fn a_server_that_hides_its_configuration_must_be_vouched_for() {
    let servers = good_servers();
    for server in &servers {
        ok(server, &["ACL", "SETUSER", "doctor", "on", ">hunter2", "~*", "&*", "+@all", "-config"]);
    }
    let user = ["--set", "nodes.username=doctor", "--set", "nodes.password=hunter2"];
    let checked = Checked::of(&servers, &user);
    checked.has("error", "hidden", Some(0), &["maxmemory-policy", "nodes.assume_noeviction"]);
    assert_eq!(checked.code, 2);
    let checked = Checked::of(&servers, &[&user[..], &["--set", "nodes.assume_noeviction=true"]].concat());
    checked.has("note", "persistence", Some(0), &["does not tell"]);
    assert_eq!(checked.code, 0, "{}", checked.text);
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_found() {
    let servers = [
        good_server(),
        RedisServer::start_with_clock(&["--appendonly", "yes"]),
        RedisServer::start_with_clock(&["--appendonly", "yes"]),
    ];
    servers[1].set_time(ServerTime::Shifted(20));
    servers[2].set_time(ServerTime::Shifted(-3600));
    let checked = Checked::of(&servers, &[]);
    checked.has("warning", "clock", Some(1), &["ms ahead of", "time service"]);
    checked.has("warning", "clock", Some(2), &["ms behind"]);
    assert_eq!((checked.code, checked.kinds()), (1, ["clock"].into()));
}

/// It stops again and again, for longer than any call takes.
#[tokio::test]
async fn a_server_that_stops_now_and_then_is_found() {
    let servers = Arc::new(good_servers());
    let stop = Arc::new(AtomicBool::new(false));
    let (frozen, stopped) = (servers.clone(), stop.clone());
    let stutter = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            frozen[1].freeze();
            std::thread::sleep(Duration::from_millis(300));
            frozen[1].thaw();
            std::thread::sleep(Duration::from_millis(30));
        }
    });
    let checked = Checked::of(&servers, &["--set", "nodes.connect_timeout=30s"]);
    stop.store(true, Ordering::SeqCst);
    stutter.join().unwrap();
    checked.has("warning", "latency", Some(1), &["of 9 pings", "nodes.call_timeout is 500ms", "SLOWLOG"]);
    assert_eq!(checked.code, 1);
}

#[tokio::test]
async fn a_node_that_lost_its_memory_and_a_cluster_that_did_are_found() {
    let servers = good_servers();
    let daemon = DaemonProcess::serving(&servers).await;
    seen("a founded cluster", || async { daemon.all_is_well().then_some(()) }).await;
    drop(daemon);
    servers[1].flushall();
    let checked = Checked::of(&servers, &[]);
    checked.has("warning", "member", Some(1), &["lost its memory", "restart no other server"]);
    assert_eq!(checked.code, 1);
    servers[2].flushall();
    let checked = Checked::of(&servers, &[]);
    checked.has("error", "quorum", None, &["the cluster does not serve", "After a power cut"]);
    assert_eq!(checked.code, 2);
}

#[tokio::test]
async fn too_few_files_and_a_wrong_configuration_are_found() {
    let servers = good_servers();
    let checked = Checked::of(&servers, &["--set", "grpc.max_connections=1000000"]);
    // Unless this machine lets a process open more than a million files.
    if majorityd::runtime::system::raise_open_files().is_some_and(|may| may < 1_000_256) {
        checked.has(
            "warning",
            "open_files",
            None,
            &["grpc.max_connections = 1000000", "1000256", "LimitNOFILE"],
        );
        assert_eq!(checked.code, 1);
    }
    let checked = Checked::of(&servers, &["--set", "locks.ttl_min=1day", "--set", "grpc.max_connections=0"]);
    let of_settings = checked.findings().iter().filter(|finding| finding["kind"] == "configuration").count();
    assert!(of_settings >= 2, "{}", checked.text);
    assert!(checked.text.contains("grpc.max_connections = 0"), "{}", checked.text);
    assert_eq!(checked.code, 2);
}

/// Servers of the other tests keep nothing, which is meant so there.
#[tokio::test]
async fn a_look_leaves_no_trace() {
    let servers = servers(3);
    let before: Vec<_> = servers.iter().map(RedisServer::dump).collect();
    Checked::of(&servers, &[]);
    let after: Vec<_> = servers.iter().map(RedisServer::dump).collect();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
}

/// A server with TLS whose certificate, signed by itself, is good for so many days.
fn secure_server(days: u32) -> (RedisServer, String, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("cert.pem"), path("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-days", &days.to_string()])
        .args(["-keyout", &key, "-out", &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = RedisServer::start_with(&[
        "--appendonly",
        "yes",
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &certificate,
        "--tls-auth-clients",
        "no",
    ]);
    (server, format!("rediss://127.0.0.1:{port}"), dir)
}

#[tokio::test]
async fn a_certificate_that_expires_soon_is_found() {
    let (_soon, address, dir) = secure_server(5);
    let (_later, later, other) = secure_server(400);
    let plain = good_server();
    let trusted = dir.path().join("both.pem");
    let read = |dir: &tempfile::TempDir| std::fs::read_to_string(dir.path().join("cert.pem")).unwrap();
    std::fs::write(&trusted, read(&dir) + &read(&other)).unwrap();
    let ca = format!("nodes.tls.ca_file={}", trusted.display());
    let checked = Checked::at(
        &[address, later, plain.address()],
        &["--set", &ca, "--set", "nodes.connect_timeout=20s"],
    );
    checked.has("warning", "certificate", Some(0), &["its certificate expires in ", "renew"]);
    assert_eq!((checked.code, checked.kinds()), (1, ["certificate"].into()), "{}", checked.text);
}
