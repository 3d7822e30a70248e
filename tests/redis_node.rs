//! The connection to Redis against real servers: handshake, refusals, recovery, and what is lost or was never sent.

#[path = "support/certificates.rs"]
mod certificates;
mod support;

use std::sync::Arc;
use std::time::Duration;

use certificates::{Authority, Signed};
use majorityd::config::{NodeAddress, Secret};
use majorityd::ids::{NodeIndex, ProposerId};
use majorityd::node::conformance::{Connection, MEMORY, accept, ballot, found, founding, lock};
use majorityd::node::embedded::Entry;
use majorityd::node::handshake::{Refusal, Welcome};
use majorityd::node::operation::Operation;
use majorityd::node::peek::Question;
use majorityd::node::redis::{RedisNode, RedisOptions, Runs};
use majorityd::node::wire::BatchReply;
use majorityd::node::{CallError, Hint, Identity, NodeState};
use majorityd::runtime::system;
use majorityd::token::Ballot;
use support::eventually;
use support::redis_server::{Data, RedisServer, Reply, ServerTime};

fn options(address: &str) -> RedisOptions {
    RedisOptions {
        address: NodeAddress::parse(address).expect("an address"),
        username: None,
        password: None,
        ca_file: None,
        client_pair: None,
        connect_timeout: Duration::from_secs(5),
        call_timeout: Duration::from_secs(5),
        reconnect_delay_max: Duration::from_millis(100),
        inspect_interval: Duration::from_millis(200),
        assume_noeviction: false,
    }
}

fn identity() -> Identity {
    Identity { cluster: "blue".into(), nodes: 3, daemon: ProposerId(1) }
}

fn connect_as(index: u8, options: RedisOptions, identity: Identity, runs: &Arc<Runs>) -> Connection {
    let (sink, hints) = futures::channel::mpsc::unbounded();
    let sink = Arc::new(move |_: NodeIndex, hint: Hint| drop(sink.unbounded_send(hint)));
    let node = RedisNode::new(NodeIndex(index), options, identity, runs.clone(), sink, &system::runtime());
    Connection { node: Arc::new(node), hints }
}

fn connect(options: RedisOptions) -> Connection {
    connect_as(0, options, identity(), &Arc::default())
}

async fn ready(connection: &Connection) -> Welcome {
    eventually("the node is ready", || match connection.node.state() {
        NodeState::Ready(welcome) => Some(welcome),
        _ => None,
    })
    .await
}

async fn refused(connection: &Connection) -> Refusal {
    eventually("the node is refused", || match connection.node.state() {
        NodeState::Refused(refusal) => Some(refusal),
        _ => None,
    })
    .await
}

async fn not_ready(connection: &Connection) {
    eventually("the node is not ready", || {
        (!matches!(connection.node.state(), NodeState::Ready(_))).then_some(())
    })
    .await;
}

/// A server whose clock suits the ballots of the suite.
fn server() -> RedisServer {
    let server = RedisServer::start_with_clock(&[]);
    server.set_time(ServerTime::Frozen(majorityd::node::conformance::START));
    server
}

async fn member(server: &RedisServer) -> Connection {
    let connection = connect(options(&server.address()));
    ready(&connection).await;
    connection.send(Ballot::ZERO, &found()).await.expect("the founding");
    connection.node.reset("to learn the memory");
    assert_eq!(ready(&connection).await.memory, Some(MEMORY));
    connection
}

fn write(token: u64) -> Operation {
    Operation::Accept(Arc::new(accept(lock("a"), ballot(token, 1), "x")))
}

fn ok(server: &RedisServer, words: &[&str]) {
    assert_eq!(server.command(words), Reply::Status("OK".into()), "{words:?}");
}

/// How often a command was called, by `INFO commandstats`.
fn calls(server: &RedisServer, command: &str) -> u64 {
    let Reply::Bytes(info) = server.command(&["INFO", "commandstats"]) else { panic!("INFO") };
    let info = String::from_utf8(info).expect("text");
    let start = format!("cmdstat_{command}:calls=");
    let line = info.lines().find_map(|line| line.strip_prefix(&start));
    line.map_or(0, |rest| rest.split(',').next().expect("a number").parse().expect("a number"))
}

#[tokio::test]
async fn a_flushed_script_cache_means_a_new_handshake() {
    let server = server();
    let connection = member(&server).await;
    ok(&server, &["SCRIPT", "FLUSH"]);
    let refused = connection.send(founding(), &[write(1)]).await;
    assert!(matches!(&refused, Err(CallError::Unsent(reason)) if reason.contains("NOSCRIPT")), "{refused:?}");
    assert_eq!(ready(&connection).await.memory, Some(MEMORY), "the same run keeps its memory");
    assert!(matches!(connection.send(founding(), &[write(1)]).await, Ok(BatchReply::Done { .. })));
}

#[tokio::test]
async fn a_look_is_refused_where_no_script_proves_an_inspection() {
    let server = server();
    let connection = member(&server).await;
    let look = || connection.node.peek(Question::about(&[lock("a")]));
    assert!(look().await.is_ok());
    ok(&server, &["SCRIPT", "FLUSH"]);
    let refused = look().await;
    assert!(matches!(&refused, Err(CallError::Unsent(reason)) if reason.contains("NOSCRIPT")), "{refused:?}");
    ready(&connection).await;
    assert!(look().await.is_ok(), "after a new handshake");
}

#[tokio::test]
async fn flushall_costs_the_memory() {
    let server = server();
    let connection = member(&server).await;
    server.flushall();
    assert_eq!(connection.send(founding(), &[write(1)]).await, Ok(BatchReply::NoRecord));
    connection.node.reset("its record is gone");
    assert_eq!(ready(&connection).await.memory, None);
}

#[tokio::test]
async fn a_restart_costs_the_memory_also_when_all_data_was_kept() {
    for data in [Data::Kept, Data::Wiped] {
        let mut server = server();
        let connection = member(&server).await;
        let before = ready(&connection).await.run_id;
        server.restart(data);
        let welcome = eventually("the new run is found", || match connection.node.state() {
            NodeState::Ready(welcome) if welcome.run_id != before => Some(welcome),
            _ => None,
        })
        .await;
        assert_eq!(welcome.memory, None);
        assert_eq!(server.dump().get(b"majorityd:r:m:").is_some(), data == Data::Kept);
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_unsent_and_found_again() {
    let mut server = server();
    let connection = member(&server).await;
    server.kill();
    not_ready(&connection).await;
    let unsent = connection.send(founding(), &[write(1)]).await;
    assert!(matches!(unsent, Err(CallError::Unsent(_))), "{unsent:?}");
    server.revive();
    ready(&connection).await;
}

#[tokio::test]
async fn a_server_that_evicts_is_refused_for_as_long_as_it_does() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    let connection = connect(options(&server.address()));
    assert_eq!(refused(&connection).await, Refusal::Evicts { found: "allkeys-lru".into() });
    assert!(server.dump().is_empty(), "nothing was touched");
    ok(&server, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    ready(&connection).await;
    ok(&server, &["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
    assert_eq!(refused(&connection).await, Refusal::Evicts { found: "volatile-ttl".into() });
    let unsent = connection.send(Ballot::ZERO, &[write(1)]).await;
    assert!(matches!(unsent, Err(CallError::Unsent(_))), "{unsent:?}");
}

#[tokio::test]
async fn a_replica_is_refused_also_when_it_becomes_one() {
    let server = RedisServer::start();
    let connection = connect(options(&server.address()));
    ready(&connection).await;
    ok(&server, &["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(refused(&connection).await, Refusal::NotMaster { role: "slave".into() });
    ok(&server, &["REPLICAOF", "NO", "ONE"]);
    ready(&connection).await;
}

#[tokio::test]
async fn cluster_mode_is_refused() {
    let server = RedisServer::start_with(&["--cluster-enabled", "yes"]);
    let connection = connect(options(&server.address()));
    assert_eq!(refused(&connection).await, Refusal::ClusterMode);
}

#[tokio::test]
async fn one_server_under_two_addresses_counts_once() {
    let server = RedisServer::start();
    let runs = Arc::default();
    let first = connect_as(0, options(&server.address()), identity(), &runs);
    ready(&first).await;
    // Another database of the same server has a node record of its own and is still no other server.
    let second = connect_as(1, options(&format!("{}/1", server.address())), identity(), &runs);
    assert!(matches!(refused(&second).await, Refusal::Duplicate { other: 0, .. }));

    let runs = Arc::default();
    let later = connect_as(2, options(&format!("{}/2", server.address())), identity(), &runs);
    ready(&later).await;
    let earlier = connect_as(0, options(&server.address()), identity(), &runs);
    ready(&earlier).await;
    assert!(matches!(refused(&later).await, Refusal::Duplicate { other: 0, .. }));
}

#[tokio::test]
async fn a_node_record_of_another_cluster_size_or_place_is_refused() {
    let server = RedisServer::start();
    let address = server.address();
    ready(&connect(options(&address))).await;
    // From here on the record binds: a daemon has begun to agree on a member list.
    server.put(b"majorityd:r:m:", &Entry::Bytes("a promise".into()));
    let before = server.dump();
    let red = Identity { cluster: "red".into(), ..identity() };
    let five = Identity { nodes: 5, ..identity() };
    for (index, identity, expected) in
        [(0, red, "cluster"), (0, five, "number of nodes"), (2, identity(), "index")]
    {
        let connection = connect_as(index, options(&address), identity, &Arc::default());
        let refusal = refused(&connection).await;
        assert!(matches!(&refusal, Refusal::Mismatch { what, .. } if *what == expected), "{refusal}");
    }
    assert_eq!(server.dump(), before, "nothing was touched");
}

#[tokio::test]
async fn a_wrong_password_is_denied_in_clear_words() {
    let server = RedisServer::start_with(&["--requirepass", "right-secret"]);
    let address = format!("redis://127.0.0.1:{}", server.port());
    let with = |password: Option<&str>| {
        let options = RedisOptions { password: password.map(Secret::new), ..options(&address) };
        assert!(!format!("{options:?}").contains("secret"), "no secret is printed");
        connect(options)
    };
    for password in [None, Some("wrong-secret")] {
        let refusal = refused(&with(password)).await;
        assert!(matches!(&refusal, Refusal::Denied { command: "AUTH", .. }), "{refusal}");
        assert!(!refusal.to_string().contains("-secret"));
    }
    ready(&with(Some("right-secret"))).await;
}

#[tokio::test]
async fn a_user_needs_its_rights_and_hidden_settings_need_a_word() {
    let server = RedisServer::start();
    let user = |name: &str, rules: &[&str]| {
        let all = [&["ACL", "SETUSER", name, "on", ">pass", "~*", "+@all"], rules].concat();
        ok(&server, &all);
        RedisOptions {
            username: Some(name.into()),
            password: Some(Secret::new("pass")),
            ..options(&server.address())
        }
    };
    ready(&connect(user("full", &["&*"]))).await;
    let refusal = refused(&connect(user("deaf", &["resetchannels"]))).await;
    assert!(matches!(refusal, Refusal::Denied { command: "SUBSCRIBE", .. }), "{refusal}");
    let refusal = refused(&connect(user("idle", &["&*", "-evalsha"]))).await;
    assert!(matches!(refusal, Refusal::Denied { command: "EVALSHA", .. }), "{refusal}");
    let refusal = refused(&connect(user("blind", &["&*", "-script|exists"]))).await;
    let looks = "TIME, SCRIPT EXISTS or MGET";
    assert!(matches!(refusal, Refusal::Denied { command, .. } if command == looks), "{refusal}");
    let hidden = user("hidden", &["&*", "-config"]);
    let refusal = refused(&connect(hidden.clone())).await;
    assert!(matches!(refusal, Refusal::Hidden { what: "maxmemory-policy", .. }), "{refusal}");
    ready(&connect(RedisOptions { assume_noeviction: true, ..hidden })).await;
}

#[tokio::test]
async fn a_frozen_server_loses_the_call_and_nothing_is_sent_twice() {
    let server = server();
    let quick = RedisOptions { call_timeout: Duration::from_millis(500), ..options(&server.address()) };
    let quick = RedisOptions { inspect_interval: Duration::from_secs(600), ..quick };
    let connection = connect(quick);
    ready(&connection).await;
    connection.send(Ballot::ZERO, &found()).await.expect("the founding");
    let before = (calls(&server, "evalsha"), calls(&server, "script|load"));
    server.freeze();
    let lost = connection.send(founding(), &[write(1)]).await;
    assert!(matches!(lost, Err(CallError::Lost(_))), "{lost:?}");
    let unsent = connection.send(founding(), &[write(2)]).await;
    assert!(matches!(unsent, Err(CallError::Unsent(_))), "{unsent:?}");
    server.thaw();
    ready(&connection).await;
    let reply = connection.send(founding(), &[Operation::Read { key: lock("a") }]).await;
    assert!(matches!(reply, Ok(BatchReply::Done { .. })), "{reply:?}");
    // One EVALSHA belongs to each handshake, one to the read, and at most one to what was lost.
    let handshakes = calls(&server, "script|load") - before.1;
    let batches = calls(&server, "evalsha") - before.0 - handshakes;
    assert!((1..=2).contains(&batches), "{batches} batches reached the server");
}

#[tokio::test]
async fn a_reset_ends_what_is_under_way() {
    let server = server();
    let patient = RedisOptions { call_timeout: Duration::from_secs(600), ..options(&server.address()) };
    let connection = connect(RedisOptions { inspect_interval: Duration::from_secs(600), ..patient });
    ready(&connection).await;
    server.freeze();
    let operations = [write(1)];
    let call = connection.send(founding(), &operations);
    let reset = async {
        // After the call was polled, and so sent.
        connection.node.reset("as the test wants it");
    };
    let (lost, ()) = futures::join!(call, reset);
    assert!(matches!(&lost, Err(CallError::Lost(reason)) if reason.contains("test")), "{lost:?}");
    server.thaw();
    ready(&connection).await;
}

#[tokio::test]
async fn unix_sockets_and_database_numbers_are_understood() {
    let server = RedisServer::start();
    let address = format!("redis+unix://{}?db=3", server.socket().display());
    let connection = connect(options(&address));
    ready(&connection).await;
    assert!(server.dump().is_empty(), "database 0 is empty");
    let Reply::Bytes(info) = server.command(&["INFO", "keyspace"]) else { panic!("INFO") };
    assert!(String::from_utf8_lossy(&info).contains("db3:keys=1"));
}

#[tokio::test]
async fn a_dropped_node_leaves_no_connection_behind() {
    let server = server();
    let connection = member(&server).await;
    let clients = || {
        let Reply::Bytes(list) = server.command(&["CLIENT", "LIST"]) else { panic!("CLIENT LIST") };
        String::from_utf8_lossy(&list).lines().count()
    };
    eventually("both connections", || (clients() == 3).then_some(())).await;
    for _ in 0..3 {
        connection.node.reset("again");
        ready(&connection).await;
    }
    eventually("only the last two", || (clients() == 3).then_some(())).await;
    drop(connection);
    eventually("only the one that asks", || (clients() == 1).then_some(())).await;
}

// ---------------------------------------------------------------------------------------------------------------------
// TLS

/// A server with TLS on a port of its own besides the plain one, and what it was signed by.
struct SecureServer {
    _server: RedisServer,
    port: u16,
    folder: tempfile::TempDir,
    authority: Authority,
}

impl SecureServer {
    /// `clients` is what `tls-auth-clients` is set to.
    fn start(clients: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::new("redis");
        let (certificate, key) = authority.server().write(folder.path(), "server");
        let authorities = folder.path().join("ca.crt");
        std::fs::write(&authorities, &authority.pem).expect("writes");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let port_text = port.to_string();
        let paths = [&certificate, &key, &authorities].map(|path| path.to_str().expect("UTF-8").to_owned());
        let server = RedisServer::start_with(&[
            "--tls-port",
            &port_text,
            "--tls-cert-file",
            &paths[0],
            "--tls-key-file",
            &paths[1],
            "--tls-ca-cert-file",
            &paths[2],
            "--tls-auth-clients",
            clients,
        ]);
        Self { _server: server, port, folder, authority }
    }

    fn options(&self, trusted: &Authority) -> RedisOptions {
        let file = self.folder.path().join(format!("trusted-{}.crt", trusted.pem.len()));
        std::fs::write(&file, &trusted.pem).expect("writes");
        RedisOptions { ca_file: Some(file), ..options(&format!("rediss://127.0.0.1:{}", self.port)) }
    }

    fn showing(&self, shown: &Signed) -> RedisOptions {
        let pair = shown.write(self.folder.path(), "client");
        RedisOptions { client_pair: Some(pair), ..self.options(&self.authority) }
    }
}

async fn unreachable(connection: &Connection) -> Arc<str> {
    let reached = eventually("the node is known to be unreachable", || match connection.node.state() {
        NodeState::Unreachable(reason) if !reason.contains("not connected yet") => Some(Ok(reason)),
        NodeState::Ready(welcome) => Some(Err(welcome)),
        _ => None,
    })
    .await;
    reached.unwrap_or_else(|welcome| panic!("it got through: {welcome:?}"))
}

#[tokio::test]
async fn a_server_with_tls_is_a_node_if_its_certificate_is_trusted() {
    let server = SecureServer::start("no");
    ready(&connect(server.options(&server.authority))).await;
    let reason = unreachable(&connect(server.options(&Authority::new("somebody else's")))).await;
    assert!(reason.contains("UnknownIssuer") && reason.contains("nodes.tls.ca_file"), "{reason}");
    let plain = RedisOptions { ca_file: None, ..server.options(&server.authority) };
    let reason = unreachable(&connect(plain)).await;
    assert!(reason.contains("UnknownIssuer"), "{reason}");
    let missing =
        RedisOptions { ca_file: Some("/nonexistent/ca".into()), ..server.options(&server.authority) };
    let reason = unreachable(&connect(missing)).await;
    assert!(reason.contains("/nonexistent/ca"), "{reason}");
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_is_shown_one() {
    let server = SecureServer::start("yes");
    ready(&connect(server.showing(&server.authority.client(&["majorityd.example"])))).await;
    let reason = unreachable(&connect(server.options(&server.authority))).await;
    assert!(reason.contains("nodes.tls.cert_file"), "{reason}");
    let strange = Authority::new("strange").client(&["majorityd.example"]);
    let reason = unreachable(&connect(server.showing(&strange))).await;
    assert!(reason.contains("nodes.tls.cert_file"), "{reason}");
    let Signed { certificate, .. } = server.authority.client(&["a.example"]);
    let unfit = Signed { certificate, ..strange };
    let reason = unreachable(&connect(server.showing(&unfit))).await;
    assert!(reason.contains("client.key must be the key of the certificate"), "{reason}");
}

/// Files are read for each connection, so a new certificate needs no new daemon.
#[tokio::test]
async fn a_new_connection_shows_what_the_files_have_then() {
    let server = SecureServer::start("yes");
    let strange = Authority::new("strange").client(&["majorityd.example"]);
    let connection = connect(server.showing(&strange));
    unreachable(&connection).await;
    server.authority.client(&["majorityd.example"]).write(server.folder.path(), "client");
    ready(&connection).await;
}
