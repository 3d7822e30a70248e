//! Every setting, its type and its default.
//!
//! [`load()`] reads them once, at the start: defaults < TOML file < environment < flags. [`validate`] has the rules that
//! types can't express. Both report all problems, not the first. `deploy/majorityd.toml` is the reference for people; tests
//! keep it in step with this file. Settings are plain values from then on: nothing reads the environment later.

pub mod address;
pub mod load;
pub mod validate;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use address::{NodeAddress, NodeServer};
pub use load::{Sources, load};

use crate::limits;

/// A text that no log, message or dump may show. `Debug`, `Display` and serialization write a placeholder.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// What stands in for a secret.
pub const REDACTED: &str = "***";

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// Everything that can be set. What [`load()`] returns has passed every rule of [`validate`].
///
/// Serializing shows no secret, so it is fit for status pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Which cluster this daemon belongs to.
    pub cluster: Cluster,
    /// The Redis servers.
    pub nodes: Nodes,
    /// What clients see.
    pub grpc: Grpc,
    /// Who may do what.
    pub access: Access,
    /// What operators see.
    pub http: Http,
    /// Leases and waiting.
    pub locks: Locks,
    /// Items for one consumer at a time.
    pub queues: Queues,
    /// Values under names.
    pub keys: Keys,
    /// Patience with a minority of nodes.
    pub quorum: Quorum,
    /// Nodes that come back, and what they have missed.
    pub healing: Healing,
    /// What the daemon writes to stderr.
    pub log: Log,
    /// What the daemon tells of single calls.
    pub tracing: Tracing,
}

impl Settings {
    /// Every setting that has a value, as `section.key` and as an environment variable would have it, in the order of
    /// the names. Fit for everybody to see: no secret, and of an address nothing that may be one.
    pub fn shown(&self) -> Vec<(String, String)> {
        let mut shown = Vec::new();
        let value = serde_json::to_value(self).expect("settings serialize to JSON");
        show_in("", &value, &mut shown);
        shown
    }
}

fn show_in(name: &str, value: &serde_json::Value, shown: &mut Vec<(String, String)>) {
    use serde_json::Value;
    let text = match value {
        Value::Object(section) => {
            for (key, value) in section {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                show_in(&name, value, shown);
            }
            return;
        }
        Value::Null => return,
        // The only lists are of addresses.
        Value::Array(list) if list.is_empty() => return,
        Value::Array(list) => {
            let texts: Vec<String> = list.iter().filter_map(Value::as_str).map(address::redact).collect();
            texts.join(",")
        }
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    };
    shown.push((name.to_owned(), text));
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// The same for all daemons of a cluster; servers remember it and refuse another. 1 to 64 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// Allows a cluster to be made of empty nodes at once, because nobody held anything on them before.
    pub bootstrap: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { name: "majorityd".into(), bootstrap: false }
    }
}

/// `[nodes]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// Where the servers are: 1, 3, 5 or 7 of them, in the same order for every daemon. Required.
    #[serde(deserialize_with = "address::deserialize_list")]
    pub addresses: Vec<NodeAddress>,
    /// The ACL user, for addresses that name none.
    pub username: Option<String>,
    /// The password, for addresses that carry none. After loading also what `password_file` had.
    pub password: Option<Secret>,
    /// A file with the password; one newline at its end is not part of it.
    pub password_file: Option<PathBuf>,
    /// For `rediss://` addresses.
    pub tls: NodesTls,
    /// How long a connection may take to be ready, handshake included.
    #[serde(with = "duration_text")]
    pub connect_timeout: Duration,
    /// How long one batch may take before its answers count as lost.
    #[serde(with = "duration_text")]
    pub call_timeout: Duration,
    /// The longest pause between two attempts to connect.
    #[serde(with = "duration_text")]
    pub reconnect_delay_max: Duration,
    /// Vouches that a server which hides `CONFIG` does not evict.
    pub assume_noeviction: bool,
    /// How often a server is asked again whether it is still fit.
    #[serde(with = "duration_text")]
    pub inspect_interval: Duration,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            username: None,
            password: None,
            password_file: None,
            tls: NodesTls::default(),
            connect_timeout: Duration::from_secs(2),
            call_timeout: Duration::from_secs(1),
            reconnect_delay_max: Duration::from_secs(2),
            assume_noeviction: false,
            inspect_interval: Duration::from_secs(5),
        }
    }
}

impl Nodes {
    /// The user and the password for one of the addresses. What stands in the address comes first, as a pair.
    pub fn credentials<'a>(&'a self, address: &'a NodeAddress) -> (Option<&'a str>, Option<&'a Secret>) {
        if address.username.is_some() || address.password.is_some() {
            (address.username.as_deref(), address.password.as_ref())
        } else {
            (self.username.as_deref(), self.password.as_ref())
        }
    }
}

/// `[nodes.tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodesTls {
    /// Certificates (PEM) to trust instead of the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// Certificate (PEM) with its chain to show to the servers.
    pub cert_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
}

/// `[grpc]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Address and port to listen on.
    #[serde(deserialize_with = "deserialize_listen")]
    pub listen: SocketAddr,
    /// A Unix socket to listen on too.
    pub unix_socket: Option<PathBuf>,
    /// Connections that may be open at the same time.
    pub max_connections: u32,
    /// Calls and streams that one connection may have open at the same time.
    pub max_streams_per_connection: u32,
    /// The deadline of a call whose client named none.
    #[serde(with = "duration_text")]
    pub default_timeout: Duration,
    /// How long calls may go on after the daemon was asked to stop.
    #[serde(with = "duration_text")]
    pub shutdown_grace: Duration,
    /// Allows `listen` to be reachable from other machines although nothing is encrypted.
    pub allow_plaintext: bool,
    /// Encrypts `listen`.
    pub tls: GrpcTls,
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7480)),
            unix_socket: None,
            max_connections: limits::CONNECTIONS_MAX as u32,
            max_streams_per_connection: 4_096,
            default_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
            allow_plaintext: false,
            tls: GrpcTls::default(),
        }
    }
}

/// `[grpc.tls]`. There is TLS if there is a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcTls {
    /// The certificate (PEM) that clients are shown, with its chain.
    pub cert_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
    /// Certificates (PEM) that sign those of clients, which are asked for if this is set.
    pub client_ca_file: Option<PathBuf>,
    /// Lists (PEM) of revoked certificates of clients.
    pub client_crl_file: Option<PathBuf>,
    /// Whether a client has to have one then.
    pub client_auth: ClientAuth,
}

/// What clients without a certificate are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum ClientAuth {
    /// That there is no connection without one.
    #[default]
    Required,
    /// Nothing: they may show a token.
    Optional,
}

impl TryFrom<String> for ClientAuth {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "required" => Ok(Self::Required),
            "optional" => Ok(Self::Optional),
            _ => Err("must be \"required\" or \"optional\""),
        }
    }
}

/// `[access]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// The rules; without them everybody may do everything.
    pub file: Option<PathBuf>,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address and port to listen on; `None`, written `off`, for nowhere.
    #[serde(with = "listen_or_off")]
    pub listen: Option<SocketAddr>,
    /// Allows `listen` to be reachable from other machines although nothing is encrypted and nobody is asked who they are.
    pub allow_remote: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 7481))), allow_remote: false }
    }
}

/// `[locks]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Locks {
    /// The shortest lease that a call may ask for.
    #[serde(with = "duration_text")]
    pub ttl_min: Duration,
    /// The longest lease that a call may ask for.
    #[serde(with = "duration_text")]
    pub ttl_max: Duration,
    /// The lease of a call that asks for no length.
    #[serde(with = "duration_text")]
    pub ttl_default: Duration,
    /// Calls that may wait for one lock in this daemon.
    pub waiters_per_name_max: usize,
    /// Calls that may wait for locks in this daemon.
    pub waiters_max: usize,
    /// How long a lock that became free is kept for the first in line.
    #[serde(with = "duration_text")]
    pub offer_grace: Duration,
    /// How often a waiting call looks by itself, in case nobody woke it.
    #[serde(with = "duration_text")]
    pub look_interval: Duration,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            ttl_min: limits::TTL_MIN,
            ttl_max: limits::TTL_MAX,
            ttl_default: limits::TTL_DEFAULT,
            waiters_per_name_max: limits::WAITERS_PER_NAME_MAX,
            waiters_max: limits::WAITERS_MAX,
            offer_grace: Duration::from_secs(2),
            look_interval: Duration::from_secs(2),
        }
    }
}

/// `[queues]`. Leases of items have the lengths that `[locks]` allows; each queue has settings of its own in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queues {
    /// The largest payload that a call may put, in bytes.
    pub payload_bytes_max: usize,
    /// About how often a waiting consumer's daemon looks by itself, in case nothing told it of an item.
    #[serde(with = "duration_text")]
    pub look_interval: Duration,
    /// Calls and streams that may wait for items of one queue in this daemon.
    pub waiters_per_name_max: usize,
}

impl Default for Queues {
    fn default() -> Self {
        Self {
            payload_bytes_max: limits::PAYLOAD_BYTES_MAX,
            look_interval: Duration::from_secs(2),
            waiters_per_name_max: limits::WAITERS_PER_NAME_MAX,
        }
    }
}

/// `[keys]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// The longest time to live that a call may ask for; the shortest is a second.
    #[serde(with = "duration_text")]
    pub ttl_max: Duration,
    /// The largest value that a call may set, in bytes.
    pub value_bytes_max: usize,
    /// About how often a watch of a key looks by itself, in case nothing told it of a change.
    #[serde(with = "duration_text")]
    pub look_interval: Duration,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            ttl_max: limits::KEY_TTL_MAX_DEFAULT,
            value_bytes_max: limits::VALUE_BYTES_MAX,
            look_interval: Duration::from_secs(5),
        }
    }
}

/// `[quorum]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quorum {
    /// How long a call that finds no quorum is tried again before it fails with `NO_QUORUM`.
    #[serde(with = "duration_text")]
    pub patience: Duration,
}

impl Default for Quorum {
    fn default() -> Self {
        Self { patience: Duration::from_secs(3) }
    }
}

/// `[healing]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Healing {
    /// What happens when fewer than a quorum of the nodes have their memory.
    pub recovery: Recovery,
    /// Records a second that are copied to a node that joins.
    pub join_rate: usize,
    /// A node that no daemon has reached for so long is put out, until it is back.
    #[serde(with = "duration_text")]
    pub out_after: Duration,
    /// Between two comparisons of all that the nodes hold, on average.
    #[serde(with = "duration_text")]
    pub compare_interval: Duration,
    /// Registers a second that a comparison looks at.
    pub compare_rate: usize,
}

/// What happens when fewer than a quorum of the nodes have their memory: all were restarted, or too many at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Recovery {
    /// The cluster is recovered when all nodes answer, from what they have kept.
    #[default]
    Automatic,
    /// The same, and after half a minute without those that do not answer.
    Available,
    /// Nothing, until a daemon with another setting comes.
    Manual,
}

impl TryFrom<String> for Recovery {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "automatic" => Ok(Self::Automatic),
            "available" => Ok(Self::Available),
            "manual" => Ok(Self::Manual),
            _ => Err("must be \"automatic\", \"available\" or \"manual\""),
        }
    }
}

impl Default for Healing {
    fn default() -> Self {
        Self {
            recovery: Recovery::default(),
            join_rate: limits::JOIN_RATE,
            out_after: limits::OUT_AFTER,
            compare_interval: limits::COMPARE_INTERVAL,
            compare_rate: limits::COMPARE_RATE,
        }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// Which events, as a list of directives: `info`, or `info,majorityd=debug`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info,fred=error".into() }
    }
}

/// `[tracing]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// Where spans are sent, by OTLP over gRPC: `http://host:port` or `https://host:port`. `None` for nowhere.
    pub otlp_endpoint: Option<String>,
    /// Certificates (PEM) that sign the collector's; those of the machine unless set.
    pub ca_file: Option<PathBuf>,
    /// How many of the calls are traced whose client does not say whether they are.
    pub sample_ratio: Ratio,
    /// What the daemons are called there.
    pub service_name: String,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            ca_file: None,
            sample_ratio: Ratio(1.0),
            service_name: "majorityd".into(),
        }
    }
}

/// A part of the whole: a number. [`validate`] sees to it that it is from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ratio(pub f64);

// Settings are compared with what was written; NaN is refused like everything that is not from 0 to 1.
impl Eq for Ratio {}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum LogFormat {
    /// One line for people, in colour on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be \"text\" or \"json\""),
        }
    }
}

fn deserialize_listen<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let rule = "must be an IP address and a port, such as 127.0.0.1:7480 or [::1]:7480";
    text.parse().map_err(|_| serde::de::Error::custom(rule))
}

/// An address, or `off`.
mod listen_or_off {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    const OFF: &str = "off";

    pub(super) fn serialize<S: Serializer>(
        listen: &Option<SocketAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match listen {
            Some(listen) => serializer.collect_str(listen),
            None => serializer.serialize_str(OFF),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || text == OFF {
            return Ok(None);
        }
        let rule = "must be an IP address and a port, such as 127.0.0.1:7481 or [::1]:7481, or off";
        text.parse().map(Some).map_err(|_| de::Error::custom(rule))
    }
}

/// A setting that can't be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its name, `section.key`; empty when the problem is the file as a whole.
    pub setting: String,
    /// What it was set to, if that may be shown.
    pub value: Option<String>,
    /// What is asked of it.
    pub rule: String,
    /// Where it was set; `None` for a default.
    pub origin: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.setting.as_str(), &self.value) {
            ("", _) => {}
            (setting, Some(value)) => write!(f, "{setting} = {value}: ")?,
            (setting, None) => write!(f, "{setting}: ")?,
        }
        f.write_str(&self.rule)?;
        match &self.origin {
            Some(origin) => write!(f, " ({origin})"),
            None => Ok(()),
        }
    }
}

/// All that is wrong with a configuration, one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// As people write it. Months and years have no length that people agree on, so a long one is in days.
fn duration_as_text(length: Duration) -> String {
    const DAY: u64 = 86_400;
    match length.as_secs() / DAY {
        0..=1 => humantime::format_duration(length).to_string(),
        days => {
            let rest = length - Duration::from_secs(days * DAY);
            let rest = (!rest.is_zero()).then(|| format!(" {}", humantime::format_duration(rest)));
            format!("{days}days{}", rest.unwrap_or_default())
        }
    }
}

/// Durations as people write them: `30s`, `1m 30s`, `500ms`.
mod duration_text {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&crate::config::duration_as_text(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| {
            de::Error::custom(format!("must be a duration such as 500ms, 30s or 1m 30s ({error})"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_shown_by_nothing() {
        let mut settings = Settings::default();
        settings.nodes.password = Some(Secret::new("hunter2"));
        settings.nodes.addresses = vec![NodeAddress::parse("redis://me:hunter2@a:1").expect("good")];
        let json = serde_json::to_string(&settings).expect("serializes");
        for shown in
            [format!("{settings:?}"), format!("{settings:#?}"), json, format!("{}", Secret::new("hunter2"))]
        {
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains(REDACTED), "{shown}");
        }
    }

    #[test]
    fn all_that_is_set_is_shown_in_one_list_without_secrets() {
        let mut settings = Settings::default();
        settings.nodes.password = Some(Secret::new("hunter2"));
        let addresses = ["redis://me:hunter2@a:1", "redis://:hunter2@b:2/3", "redis://c"];
        settings.nodes.addresses =
            addresses.iter().map(|text| NodeAddress::parse(text).expect("good")).collect();
        let shown = settings.shown();
        assert!(shown.is_sorted() && !format!("{shown:?}").contains("hunter2"), "{shown:?}");
        let of = |name: &str| shown.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(of("nodes.addresses"), Some("redis://***@a:1,redis://***@b:2/3,redis://c:6379"));
        assert_eq!(of("nodes.password"), Some(REDACTED));
        assert_eq!(of("locks.ttl_max"), Some("5m"));
        assert_eq!((of("cluster.bootstrap"), of("nodes.tls.ca_file")), (Some("false"), None));
        for (name, _) in &shown {
            assert!(load::SETTINGS.contains(name), "{name}");
        }
    }

    #[test]
    fn the_port_for_operators_can_be_turned_off_and_shows_it() {
        let read = |text: &str| {
            let parsed: Result<Http, _> = serde_json::from_value(serde_json::json!({ "listen": text }));
            parsed
                .map(|http| (http.listen, serde_json::to_value(&http).expect("serializes")["listen"].clone()))
        };
        for off in ["", "off"] {
            assert_eq!(read(off).expect("good"), (None, "off".into()));
        }
        let one = "[::1]:1";
        assert_eq!(read(one).expect("good"), (Some(one.parse().expect("good")), one.into()));
        assert!(read("7481").expect_err("no address").to_string().contains("or off"));
    }

    #[test]
    fn credentials_of_an_address_come_first_and_as_a_pair() {
        let nodes = Nodes {
            username: Some("all".into()),
            password: Some(Secret::new("for-all")),
            ..Nodes::default()
        };
        let of = |text: &str| {
            let address = NodeAddress::parse(text).expect("good");
            let (username, password) = nodes.credentials(&address);
            (username.map(str::to_owned), password.map(|password| password.expose().to_owned()))
        };
        assert_eq!(of("redis://a:1"), (Some("all".into()), Some("for-all".into())));
        assert_eq!(of("redis://me:mine@a:1"), (Some("me".into()), Some("mine".into())));
        assert_eq!(of("redis://:mine@a:1"), (None, Some("mine".into())));
    }
}
