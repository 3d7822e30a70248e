//! The rules that types can't express, most of them between settings. Pure; reports every broken one.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::{
    ClientAuth, Grpc, GrpcTls, Healing, Http, Keys, Locks, Nodes, Problem, Queues, Settings, Tracing,
    duration_as_text,
};
use crate::limits;

/// Longest name of a cluster: it is part of the scripts and of the names of channels.
const CLUSTER_NAME_BYTES_MAX: usize = 64;
/// Shortest wait for a server: below it, a healthy one on another continent would seem dead.
const WAIT_MIN: Duration = Duration::from_millis(10);
/// Longest wait for one server or between looks at it: beyond it nobody would know that it is gone.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Shortest lease that may be allowed: extending it takes two round trips to a quorum and some margin.
const TTL_FLOOR: Duration = Duration::from_millis(100);
/// Longest default deadline of a call.
const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);
/// Most waiters and streams that may be allowed: each takes some kilobytes.
const COUNT_MAX: usize = 1_000_000;
/// Shorter, and a node that restarts would be put out; and nothing is gained by comparing without a rest.
const HEALING_MIN: Duration = Duration::from_secs(1);

/// Where the nodes of a daemon come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodesFrom {
    /// `nodes.addresses`, which must then be there.
    Addresses,
    /// This process; `[nodes]` is not used.
    Embedded,
}

/// Checks everything.
pub fn validate(settings: &Settings, nodes: NodesFrom) -> Vec<Problem> {
    let mut found = Found::default();
    check_cluster_name(&mut found, &settings.cluster.name);
    if nodes == NodesFrom::Addresses {
        check_addresses(&mut found, &settings.nodes);
    }
    check_nodes(&mut found, &settings.nodes);
    check_grpc(&mut found, &settings.grpc);
    check_http(&mut found, &settings.http, &settings.grpc);
    check_locks(&mut found, &settings.locks);
    check_queues(&mut found, &settings.queues);
    check_keys(&mut found, &settings.keys);
    check_healing(&mut found, &settings.healing);
    check_tracing(&mut found, &settings.tracing);
    check_between(&mut found, settings);
    if let Err(error) = EnvFilter::builder().parse(&settings.log.filter) {
        let rule = format!("must be directives such as info or info,majorityd=debug: {error}");
        found.push("log.filter", quoted(&settings.log.filter), rule);
    }
    found.0
}

#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn push(&mut self, setting: &str, value: impl Into<Option<String>>, rule: impl Into<String>) {
        let (setting, value, rule) = (setting.to_owned(), value.into(), rule.into());
        self.0.push(Problem { setting, value, rule, origin: None });
    }

    fn duration(&mut self, setting: &str, value: Duration, min: Duration, max: Duration) {
        if value < min || value > max {
            let rule = format!("must be from {} to {}, both included", duration(min), duration(max));
            self.push(setting, quoted(duration(value)), rule);
        }
    }

    fn count(&mut self, setting: &str, value: usize, max: usize) {
        if value < 1 || value > max {
            self.push(setting, value.to_string(), format!("must be from 1 to {max}"));
        }
    }

    /// Checks that `value` is not above what another setting says.
    fn at_most(&mut self, setting: &str, value: Duration, other: (&str, Duration), why: &str) {
        if value > other.1 {
            let rule = format!("must not be longer than {} (\"{}\"){why}", other.0, duration(other.1));
            self.push(setting, quoted(duration(value)), rule);
        }
    }
}

fn duration(value: Duration) -> String {
    duration_as_text(value)
}

fn quoted(value: impl Display) -> String {
    format!("{:?}", value.to_string())
}

fn check_cluster_name(found: &mut Found, name: &str) {
    let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > CLUSTER_NAME_BYTES_MAX || !name.bytes().all(known) {
        let rule = format!("must have from 1 to {CLUSTER_NAME_BYTES_MAX} characters out of a-z, 0-9 and -");
        found.push("cluster.name", quoted(name), rule);
    }
}

fn check_addresses(found: &mut Found, nodes: &Nodes) {
    let count = nodes.addresses.len();
    if !(1..=limits::NODES_MAX).contains(&count) || count.is_multiple_of(2) {
        let rule =
            "must list 1, 3, 5 or 7 servers: with an even number one more must be up, and none more may fail";
        found.push("nodes.addresses", format!("[{count} addresses]"), rule);
    }
    for (position, address) in nodes.addresses.iter().enumerate() {
        if let Some(first) =
            nodes.addresses[..position].iter().position(|other| other.server == address.server)
        {
            let rule = format!(
                "must list each server once: node {position} is the same as node {first}, \
                 and a majority needs independent servers"
            );
            found.push("nodes.addresses", quoted(&address.server), rule);
        }
    }
    let tls = &nodes.tls;
    for (setting, file) in [
        ("nodes.tls.ca_file", &tls.ca_file),
        ("nodes.tls.cert_file", &tls.cert_file),
        ("nodes.tls.key_file", &tls.key_file),
    ] {
        if let Some(file) = file
            && !nodes.addresses.iter().any(|address| address.tls)
        {
            let rule = "needs an address in nodes.addresses that starts with rediss://";
            found.push(setting, quoted(file.display()), rule);
        }
    }
}

/// A certificate is worth nothing without its key.
fn check_pair(found: &mut Found, section: &str, certificate: Option<&Path>, key: Option<&Path>) {
    let names = [format!("{section}.cert_file"), format!("{section}.key_file")];
    match (certificate, key) {
        (Some(path), None) => found.push(&names[0], quoted(path.display()), format!("needs {}", names[1])),
        (None, Some(path)) => found.push(&names[1], quoted(path.display()), format!("needs {}", names[0])),
        (None, None) | (Some(_), Some(_)) => {}
    }
}

fn check_nodes(found: &mut Found, nodes: &Nodes) {
    if nodes.username.as_deref() == Some("") {
        found.push("nodes.username", quoted(""), "must not be empty; leave it out for the default user");
    }
    if nodes.password.as_ref().is_some_and(|password| password.expose().is_empty()) {
        found.push("nodes.password", quoted(""), "must not be empty; leave it out if the servers need none");
    }
    if nodes.password.is_some() && nodes.password_file.is_some() {
        found.push("nodes.password_file", None, "must not be set together with nodes.password");
    }
    if nodes.username.is_some() && nodes.password.is_none() && nodes.password_file.is_none() {
        let value = nodes.username.as_ref().map(quoted);
        found.push("nodes.username", value, "needs nodes.password or nodes.password_file");
    }
    check_pair(found, "nodes.tls", nodes.tls.cert_file.as_deref(), nodes.tls.key_file.as_deref());
    found.duration("nodes.connect_timeout", nodes.connect_timeout, WAIT_MIN, WAIT_MAX);
    found.duration("nodes.call_timeout", nodes.call_timeout, WAIT_MIN, WAIT_MAX);
    found.duration("nodes.reconnect_delay_max", nodes.reconnect_delay_max, WAIT_MIN, WAIT_MAX);
    found.duration("nodes.inspect_interval", nodes.inspect_interval, Duration::from_millis(100), WAIT_MAX);
}

fn check_grpc(found: &mut Found, grpc: &Grpc) {
    let encrypted = grpc.tls.cert_file.is_some();
    if !grpc.listen.ip().is_loopback() && !encrypted && !grpc.allow_plaintext {
        let rule = "must be a loopback address as long as nothing is encrypted, tokens of callers included: set \
                    grpc.tls.cert_file and grpc.tls.key_file, or grpc.allow_plaintext = true where the network is trusted";
        found.push("grpc.listen", quoted(grpc.listen), rule);
    }
    check_grpc_tls(found, &grpc.tls);
    if let Some(path) = &grpc.unix_socket
        && !path.is_absolute()
    {
        found.push("grpc.unix_socket", quoted(path.display()), "must be an absolute path");
    }
    let streams = usize::try_from(grpc.max_streams_per_connection).unwrap_or(usize::MAX);
    found.count("grpc.max_streams_per_connection", streams, COUNT_MAX);
    let connections = usize::try_from(grpc.max_connections).unwrap_or(usize::MAX);
    found.count("grpc.max_connections", connections, COUNT_MAX);
    found.duration("grpc.default_timeout", grpc.default_timeout, Duration::from_millis(100), TIMEOUT_MAX);
    found.duration("grpc.shutdown_grace", grpc.shutdown_grace, Duration::ZERO, TIMEOUT_MAX);
}

fn check_grpc_tls(found: &mut Found, tls: &GrpcTls) {
    check_pair(found, "grpc.tls", tls.cert_file.as_deref(), tls.key_file.as_deref());
    if let Some(path) = &tls.client_ca_file
        && tls.cert_file.is_none()
    {
        found.push("grpc.tls.client_ca_file", quoted(path.display()), "needs grpc.tls.cert_file");
    }
    if let Some(path) = &tls.client_crl_file
        && tls.client_ca_file.is_none()
    {
        found.push("grpc.tls.client_crl_file", quoted(path.display()), "needs grpc.tls.client_ca_file");
    }
    if tls.client_auth == ClientAuth::Optional && tls.client_ca_file.is_none() {
        let rule = "needs grpc.tls.client_ca_file, without which no client is asked for a certificate";
        found.push("grpc.tls.client_auth", quoted("optional"), rule);
    }
}

fn check_http(found: &mut Found, http: &Http, grpc: &Grpc) {
    let Some(listen) = http.listen else { return };
    if !listen.ip().is_loopback() && !http.allow_remote {
        let rule = "must be a loopback address or off, because nothing there is encrypted and nobody is asked who they are: \
                    put a proxy before it, or set http.allow_remote = true where the network is trusted";
        found.push("http.listen", quoted(listen), rule);
    }
    if listen == grpc.listen && listen.port() != 0 {
        found.push("http.listen", quoted(listen), "must be another address or port than grpc.listen");
    }
}

fn check_locks(found: &mut Found, locks: &Locks) {
    found.duration("locks.ttl_min", locks.ttl_min, TTL_FLOOR, limits::TTL_CEILING);
    found.duration("locks.ttl_max", locks.ttl_max, TTL_FLOOR, limits::TTL_CEILING);
    found.duration("locks.ttl_default", locks.ttl_default, TTL_FLOOR, limits::TTL_CEILING);
    found.at_most("locks.ttl_min", locks.ttl_min, ("locks.ttl_default", locks.ttl_default), "");
    found.at_most("locks.ttl_default", locks.ttl_default, ("locks.ttl_max", locks.ttl_max), "");
    found.at_most("locks.ttl_min", locks.ttl_min, ("locks.ttl_max", locks.ttl_max), "");
    found.count("locks.waiters_max", locks.waiters_max, COUNT_MAX);
    found.count("locks.waiters_per_name_max", locks.waiters_per_name_max, COUNT_MAX);
    if locks.waiters_per_name_max > locks.waiters_max {
        let rule = format!("must not be more than locks.waiters_max ({})", locks.waiters_max);
        found.push("locks.waiters_per_name_max", locks.waiters_per_name_max.to_string(), rule);
    }
    found.duration("locks.offer_grace", locks.offer_grace, TTL_FLOOR, WAIT_MAX);
    found.duration("locks.look_interval", locks.look_interval, TTL_FLOOR, WAIT_MAX);
}

fn check_queues(found: &mut Found, queues: &Queues) {
    found.count("queues.payload_bytes_max", queues.payload_bytes_max, limits::VALUE_BYTES_CEILING);
    found.duration("queues.look_interval", queues.look_interval, TTL_FLOOR, WAIT_MAX);
    found.count("queues.waiters_per_name_max", queues.waiters_per_name_max, COUNT_MAX);
}

fn check_keys(found: &mut Found, keys: &Keys) {
    found.duration("keys.ttl_max", keys.ttl_max, limits::TTL_MIN, limits::KEY_TTL_MAX);
    found.count("keys.value_bytes_max", keys.value_bytes_max, limits::VALUE_BYTES_CEILING);
    found.duration("keys.look_interval", keys.look_interval, TTL_FLOOR, WAIT_MAX);
}

fn check_healing(found: &mut Found, healing: &Healing) {
    found.count("healing.join_rate", healing.join_rate, COUNT_MAX);
    found.count("healing.compare_rate", healing.compare_rate, COUNT_MAX);
    found.duration("healing.out_after", healing.out_after, HEALING_MIN, limits::TTL_CEILING);
    found.duration("healing.compare_interval", healing.compare_interval, HEALING_MIN, limits::TTL_CEILING);
}

fn check_tracing(found: &mut Found, tracing: &Tracing) {
    if let Some(endpoint) = &tracing.otlp_endpoint {
        let good = url::Url::parse(endpoint).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some()
                && url.password().is_none()
                && url.username().is_empty()
        });
        if !good {
            let rule = "must be https:// with a host and a port, such as https://collector.example:4317, or http:// for a collector on this \
                        machine or behind a trusted network, because then nothing is encrypted";
            found.push("tracing.otlp_endpoint", None, rule);
        }
    }
    let is_encrypted =
        tracing.otlp_endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("https://"));
    if let Some(path) = &tracing.ca_file
        && !is_encrypted
    {
        found.push("tracing.ca_file", quoted(path.display()), "needs tracing.otlp_endpoint with https://");
    }
    let ratio = tracing.sample_ratio.0;
    if !(0.0..=1.0).contains(&ratio) {
        found.push("tracing.sample_ratio", ratio.to_string(), "must be from 0 to 1");
    }
    if tracing.service_name.is_empty() {
        found.push("tracing.service_name", quoted(""), "must not be empty");
    }
}

fn check_between(found: &mut Found, settings: &Settings) {
    let Settings { nodes, grpc, locks, quorum, .. } = settings;
    let why = ": one slow node would cost the shortest lease";
    found.at_most("nodes.call_timeout", nodes.call_timeout, ("locks.ttl_min", locks.ttl_min), why);
    let why = ": the call would end before it is known that there is no quorum";
    found.at_most("quorum.patience", quorum.patience, ("grpc.default_timeout", grpc.default_timeout), why);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NodeAddress, Ratio, Secret};

    fn good() -> Settings {
        let mut settings = Settings::default();
        settings.nodes.addresses = addresses(&["redis://a", "redis://b", "redis://c"]);
        settings
    }

    fn addresses(list: &[&str]) -> Vec<NodeAddress> {
        list.iter().map(|text| NodeAddress::parse(text).expect("good")).collect()
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn good_settings_have_no_problem() {
        assert_eq!(validate(&good(), NodesFrom::Addresses), []);
        assert_eq!(validate(&Settings::default(), NodesFrom::Embedded), []);
    }

    /// Each change breaks one rule: the problem names the setting, its value and the rule.
    #[test]
    fn every_rule_is_checked() {
        type Row = (fn(&mut Settings), &'static str, &'static str);
        let rows: &[Row] = &[
            (|s| s.cluster.name = String::new(), "cluster.name = \"\"", "a-z"),
            (|s| s.cluster.name = "x".repeat(65), "cluster.name = ", "64"),
            (|s| s.cluster.name = "Ä".into(), "cluster.name = \"Ä\"", "a-z"),
            (|s| s.nodes.addresses.clear(), "nodes.addresses = [0", "1, 3, 5 or 7"),
            (|s| s.nodes.addresses.truncate(2), "nodes.addresses = [2", "1, 3, 5 or 7"),
            (
                |s| s.nodes.addresses = (0..9).flat_map(|i| addresses(&[&format!("redis://n{i}")])).collect(),
                "nodes.addresses = [9",
                "1, 3, 5 or 7",
            ),
            (
                |s| s.nodes.addresses = addresses(&["redis://a", "redis://b", "redis://A:6379/1"]),
                "nodes.addresses = \"a:6379\"",
                "node 2 is the same as node 0",
            ),
            (|s| s.nodes.username = Some(String::new()), "nodes.username = \"\"", "empty"),
            (|s| s.nodes.username = Some("me".into()), "nodes.username = \"me\"", "nodes.password"),
            (|s| s.nodes.password = Some(Secret::new("")), "nodes.password = \"\"", "empty"),
            (
                |s| {
                    s.nodes.password = Some(Secret::new("hunter2"));
                    s.nodes.password_file = Some("/x".into());
                },
                "nodes.password_file: ",
                "together",
            ),
            (|s| s.nodes.tls.ca_file = Some("/nonexistent/ca".into()), "nodes.tls.ca_file", "rediss://"),
            (
                |s| s.nodes.tls.cert_file = Some("/x".into()),
                "nodes.tls.cert_file = \"/x\"",
                "nodes.tls.key_file",
            ),
            (|s| s.nodes.tls.key_file = Some("/x".into()), "nodes.tls.key_file = \"/x\"", "rediss://"),
            (
                |s| s.grpc.tls.cert_file = Some("/x".into()),
                "grpc.tls.cert_file = \"/x\"",
                "grpc.tls.key_file",
            ),
            (|s| s.grpc.tls.key_file = Some("/x".into()), "grpc.tls.key_file = \"/x\"", "grpc.tls.cert_file"),
            (
                |s| s.grpc.tls.client_ca_file = Some("/x".into()),
                "grpc.tls.client_ca_file",
                "grpc.tls.cert_file",
            ),
            (
                |s| s.grpc.tls.client_crl_file = Some("/x".into()),
                "grpc.tls.client_crl_file = \"/x\"",
                "grpc.tls.client_ca_file",
            ),
            (
                |s| s.grpc.tls.client_auth = ClientAuth::Optional,
                "grpc.tls.client_auth = \"optional\"",
                "grpc.tls.client_ca_file",
            ),
            (|s| s.nodes.connect_timeout = seconds(61), "nodes.connect_timeout = \"1m 1s\"", "10ms to 1m"),
            (|s| s.nodes.call_timeout = Duration::ZERO, "nodes.call_timeout = \"0s\"", "10ms to 1m"),
            (|s| s.nodes.call_timeout = seconds(2), "nodes.call_timeout = \"2s\"", "locks.ttl_min (\"1s\")"),
            (|s| s.nodes.reconnect_delay_max = Duration::ZERO, "nodes.reconnect_delay_max", "10ms"),
            (|s| s.nodes.inspect_interval = Duration::ZERO, "nodes.inspect_interval", "100ms"),
            (
                |s| s.grpc.listen = "0.0.0.0:7480".parse().expect("good"),
                "grpc.listen = \"0.0.0.0:7480\"",
                "grpc.allow_plaintext",
            ),
            (|s| s.grpc.unix_socket = Some("m.sock".into()), "grpc.unix_socket = \"m.sock\"", "absolute"),
            (|s| s.grpc.max_connections = 0, "grpc.max_connections = 0", "from 1"),
            (|s| s.grpc.max_streams_per_connection = 0, "grpc.max_streams_per_connection = 0", "from 1"),
            (|s| s.grpc.default_timeout = seconds(3601), "grpc.default_timeout = \"1h 1s\"", "1h"),
            (
                |s| s.grpc.default_timeout = seconds(2),
                "quorum.patience = \"3s\"",
                "grpc.default_timeout (\"2s\")",
            ),
            (|s| s.grpc.shutdown_grace = seconds(3601), "grpc.shutdown_grace", "0s to 1h"),
            (
                |s| s.http.listen = "0.0.0.0:7481".parse().ok(),
                "http.listen = \"0.0.0.0:7481\"",
                "http.allow_remote",
            ),
            (|s| s.http.listen = Some(s.grpc.listen), "http.listen = \"127.0.0.1:7480\"", "than grpc.listen"),
            (|s| s.locks.ttl_min = Duration::from_millis(99), "locks.ttl_min = \"99ms\"", "100ms to 1day"),
            (|s| s.locks.ttl_max = seconds(86_401), "locks.ttl_max = \"1day 1s\"", "1day"),
            (
                |s| s.locks.ttl_default = seconds(301),
                "locks.ttl_default = \"5m 1s\"",
                "locks.ttl_max (\"5m\")",
            ),
            (|s| s.locks.ttl_min = seconds(31), "locks.ttl_min = \"31s\"", "locks.ttl_default (\"30s\")"),
            (|s| s.locks.waiters_max = 0, "locks.waiters_max = 0", "from 1"),
            (|s| s.locks.waiters_per_name_max = 70_000, "locks.waiters_per_name_max = 70000", "65536"),
            (|s| s.locks.offer_grace = seconds(61), "locks.offer_grace = \"1m 1s\"", "1m"),
            (|s| s.locks.look_interval = Duration::ZERO, "locks.look_interval = \"0s\"", "100ms"),
            (|s| s.queues.payload_bytes_max = 0, "queues.payload_bytes_max = 0", "from 1 to 16777216"),
            (
                |s| s.queues.payload_bytes_max = (16 << 20) + 1,
                "queues.payload_bytes_max = 16777217",
                "16777216",
            ),
            (|s| s.queues.look_interval = seconds(61), "queues.look_interval = \"1m 1s\"", "100ms to 1m"),
            (|s| s.queues.waiters_per_name_max = 0, "queues.waiters_per_name_max = 0", "from 1 to 1000000"),
            (|s| s.keys.ttl_max = Duration::ZERO, "keys.ttl_max = \"0s\"", "from 1s to 3650days"),
            (|s| s.keys.ttl_max = seconds(3_650 * 86_400 + 1), "keys.ttl_max = \"3650days 1s\"", "3650days"),
            (|s| s.keys.value_bytes_max = 0, "keys.value_bytes_max = 0", "from 1 to 16777216"),
            (|s| s.keys.value_bytes_max = (16 << 20) + 1, "keys.value_bytes_max = 16777217", "16777216"),
            (|s| s.keys.look_interval = Duration::ZERO, "keys.look_interval = \"0s\"", "100ms"),
            (|s| s.tracing.otlp_endpoint = Some("ftp://a:1".into()), "tracing.otlp_endpoint: ", "https://"),
            (
                |s| s.tracing.ca_file = Some("/x".into()),
                "tracing.ca_file = \"/x\"",
                "needs tracing.otlp_endpoint",
            ),
            (
                |s| s.tracing.otlp_endpoint = Some("http://me:hunter2@a:1".into()),
                "tracing.otlp_endpoint: ",
                "http://",
            ),
            (|s| s.tracing.sample_ratio = Ratio(1.5), "tracing.sample_ratio = 1.5", "from 0 to 1"),
            (|s| s.tracing.sample_ratio = Ratio(f64::NAN), "tracing.sample_ratio = NaN", "from 0 to 1"),
            (|s| s.tracing.service_name.clear(), "tracing.service_name = \"\"", "empty"),
            (|s| s.log.filter = "majorityd=loud".into(), "log.filter = \"majorityd=loud\"", "directives"),
        ];
        for (change, setting, rule) in rows {
            let mut settings = good();
            change(&mut settings);
            let problems: Vec<String> =
                validate(&settings, NodesFrom::Addresses).iter().map(ToString::to_string).collect();
            let found = problems.iter().any(|line| line.starts_with(setting) && line.contains(rule));
            assert!(found, "{setting} … {rule}: {problems:?}");
            assert!(!problems.concat().contains("hunter2"));
        }
    }

    #[test]
    fn what_is_open_to_the_network_must_be_meant() {
        let mut settings = good();
        settings.grpc.listen = "[::]:7480".parse().expect("good");
        settings.http.listen = "[::]:7481".parse().ok();
        assert_eq!(validate(&settings, NodesFrom::Addresses).len(), 2, "both at once");
        settings.grpc.allow_plaintext = true;
        assert_eq!(validate(&settings, NodesFrom::Addresses).len(), 1, "each needs its own");
        settings.http.allow_remote = true;
        assert_eq!(validate(&settings, NodesFrom::Addresses), []);
        settings.grpc.allow_plaintext = false;
        (settings.grpc.tls.cert_file, settings.grpc.tls.key_file) = (Some("/c".into()), Some("/k".into()));
        assert_eq!(validate(&settings, NodesFrom::Addresses), [], "what is encrypted needs no word");
    }
}
