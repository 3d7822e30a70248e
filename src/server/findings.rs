//! What `majorityd check` makes of what it found out: for each thing that somebody should know, how bad it is, where, what was
//! found, and what to do. Pure. `docs/operations.md` lists the kinds for people; a test compares.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::config::Settings;
use crate::ids::NodeIndex;
use crate::limits::OPEN_FILES_SPARE;
use crate::node::handshake::Refusal;
use crate::node::redis::survey::Survey;

/// How far a server's clock may be off before it is worth a word, in milliseconds.
const CLOCK_OFFSET_MS: i64 = 1_000;
/// Of its memory, in hundredths: past the first a server will soon be full, past the second it is.
const MEMORY_WARNING: u64 = 80;
const MEMORY_ERROR: u64 = 95;
/// A median of so large a part of `nodes.call_timeout` leaves little for a busy moment.
const MEDIAN_PART: u32 = 10;
/// A single answer of so large a part of it is nearly one that is lost.
const WORST_PART: u32 = 2;

/// A certificate that is good for less than this is to be renewed: a week end and some days.
const CERTIFICATE_DAYS: i64 = 14;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or will not be kept.
    Error,
    /// It works, and will not always.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// What it is about. The names are for scripts, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The settings can't be used.
    Configuration,
    /// Nobody answers there.
    Unreachable,
    /// The version of a server.
    Version,
    /// A server is not a master of its own.
    Role,
    /// A server would drop what is held.
    Eviction,
    /// Two addresses lead to one server.
    Duplicate,
    /// A server belongs to another cluster or another place.
    Foreign,
    /// The user may not do what a daemon has to.
    Permissions,
    /// A server does not tell what must be known.
    Hidden,
    /// What a server keeps when it is restarted.
    Persistence,
    /// A server is nearly full.
    Memory,
    /// A server is copied by others.
    Replicas,
    /// How long the certificate of a server is good.
    Certificate,
    /// A clock is wrong.
    #[serde(rename = "clock")]
    ClockOffset,
    /// A server is slow to answer.
    Latency,
    /// What the member list says of a node.
    Member,
    /// Too few nodes count.
    Quorum,
    /// How many files a daemon may have open.
    OpenFiles,
    /// A setting that is for a new cluster only.
    Bootstrap,
}

impl Kind {
    /// All of them, in the order of `docs/operations.md`.
    pub const ALL: [Kind; 19] = [
        Kind::Configuration,
        Kind::Unreachable,
        Kind::Version,
        Kind::Role,
        Kind::Eviction,
        Kind::Duplicate,
        Kind::Foreign,
        Kind::Permissions,
        Kind::Hidden,
        Kind::Quorum,
        Kind::Member,
        Kind::Persistence,
        Kind::Memory,
        Kind::Replicas,
        Kind::Certificate,
        Kind::ClockOffset,
        Kind::Latency,
        Kind::OpenFiles,
        Kind::Bootstrap,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Configuration => "configuration",
            Kind::Unreachable => "unreachable",
            Kind::Version => "version",
            Kind::Role => "role",
            Kind::Eviction => "eviction",
            Kind::Duplicate => "duplicate",
            Kind::Foreign => "foreign",
            Kind::Permissions => "permissions",
            Kind::Hidden => "hidden",
            Kind::Persistence => "persistence",
            Kind::Memory => "memory",
            Kind::Replicas => "replicas",
            Kind::Certificate => "certificate",
            Kind::ClockOffset => "clock",
            Kind::Latency => "latency",
            Kind::Member => "member",
            Kind::Quorum => "quorum",
            Kind::OpenFiles => "open_files",
            Kind::Bootstrap => "bootstrap",
        }
    }
}

/// One thing that somebody should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub kind: Kind,
    /// At which node; `None` for what belongs to none, or to several.
    pub node: Option<u8>,
    /// What was found, with its values.
    pub found: String,
    /// What to do.
    pub advice: String,
}

impl Finding {
    /// Of the cluster, the machine or the settings as a whole.
    pub fn overall(
        severity: Severity,
        kind: Kind,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { severity, kind, node: None, found: found.into(), advice: advice.into() }
    }

    /// Of one node.
    pub fn of(
        node: NodeIndex,
        severity: Severity,
        kind: Kind,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { node: Some(node.0), ..Self::overall(severity, kind, found, advice) }
    }
}

/// A server that must not be used.
pub(super) fn refused(node: NodeIndex, refusal: &Refusal) -> Finding {
    let kind = match refusal {
        Refusal::TooOld { .. } => Kind::Version,
        Refusal::NotMaster { .. } | Refusal::ClusterMode => Kind::Role,
        Refusal::Evicts { .. } => Kind::Eviction,
        Refusal::Hidden { .. } => Kind::Hidden,
        Refusal::Duplicate { .. } => Kind::Duplicate,
        Refusal::Mismatch { .. } => Kind::Foreign,
        Refusal::Denied { .. } => Kind::Permissions,
    };
    let text = refusal.to_string();
    let (found, advice) = match refusal {
        Refusal::Denied { command: "AUTH", .. } => (
            text.as_str(),
            "set nodes.username and nodes.password (or password_file) to what the server knows",
        ),
        Refusal::Denied { .. } => (text.as_str(), "allow it to this user, on this server: ACL SETUSER"),
        // What it is and what to do are one sentence there.
        _ => text.rsplit_once(": ").unwrap_or((text.as_str(), "")),
    };
    Finding::of(node, Severity::Error, kind, found, advice)
}

/// A server that can't be asked.
pub(super) fn unreachable(node: NodeIndex, address: &str, reason: &str) -> Finding {
    let found = format!("{address} can't be reached: {reason}");
    let advice = "start the server, or mend its address in nodes.addresses, its TLS, or the network between";
    Finding::of(node, Severity::Error, Kind::Unreachable, found, advice)
}

/// What a server said about itself.
pub(super) fn surveyed(node: NodeIndex, survey: &Survey, settings: &Settings) -> Vec<Finding> {
    [
        permissions(node, survey),
        persistence(node, survey),
        memory(node, survey),
        replicas(node, survey),
        certificate(node, survey),
        clock(node, survey),
        latency(node, survey, settings.nodes.call_timeout),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn permissions(node: NodeIndex, survey: &Survey) -> Option<Finding> {
    if survey.denied.is_empty() {
        return None;
    }
    let found = format!("this user may not call {}", survey.denied.join("; "));
    let advice = "allow it with ACL SETUSER: all commands that are named, keys majorityd:* (~majorityd:*) and channels majorityd:* \
                  (&majorityd:*)";
    Some(Finding::of(node, Severity::Error, Kind::Permissions, found, advice))
}

/// A restart costs a node its memory in any case, and it gets that back from the others. What it has on disk matters when fewer
/// than a quorum are left to copy from.
fn persistence(node: NodeIndex, survey: &Survey) -> Option<Finding> {
    let warning = |found: String, advice: &str| {
        Some(Finding::of(node, Severity::Warning, Kind::Persistence, found, advice))
    };
    let append = "CONFIG SET appendonly yes, and appendonly yes in its configuration file, unless all that is kept here may go";
    match (survey.appendonly.as_deref(), survey.save.as_deref()) {
        (None, _) => {
            let found = "it does not tell whether it keeps anything on disk (CONFIG is hidden)";
            let advice = "see to it that it has an append-only file: what is on no disk is gone when a quorum restarts at once";
            Some(Finding::of(node, Severity::Note, Kind::Persistence, found, advice))
        }
        (Some("yes"), _) if survey.appendfsync.as_deref() == Some("no") => warning(
            "appendonly is yes and appendfsync is no: after a power cut of a quorum, what was acknowledged in the last half minute \
             or so is gone"
                .to_owned(),
            "CONFIG SET appendfsync everysec (the last second or so) or always (nothing)",
        ),
        (Some("yes"), _) => None,
        (Some(_), Some("") | None) => warning(
            "appendonly is no and no snapshots are saved: it keeps nothing on disk, and what is held, queued and set is gone when a \
             quorum restarts at once"
                .to_owned(),
            append,
        ),
        (Some(_), Some(save)) => warning(
            format!(
                "appendonly is no and snapshots are saved now and then (save {save:?}): what is newer than the last is gone when a \
                 quorum restarts at once"
            ),
            append,
        ),
    }
}

fn memory(node: NodeIndex, survey: &Survey) -> Option<Finding> {
    let used = survey.memory_used?;
    let (max, of) = match survey.memory_max {
        Some(0) | None => {
            (survey.memory_of_machine.filter(|machine| *machine > 0)?, "of its machine; maxmemory is 0")
        }
        Some(max) => (max, "of maxmemory"),
    };
    let percent = used.saturating_mul(100) / max;
    let severity = match percent {
        MEMORY_ERROR.. => Severity::Error,
        MEMORY_WARNING.. => Severity::Warning,
        _ => return None,
    };
    let found = format!(
        "it uses {} of {} ({percent} % {of}); when it is full it refuses writes",
        mib(used),
        mib(max)
    );
    let advice = "give it more, or empty queues and delete keys that nobody needs; it must never evict";
    Some(Finding::of(node, severity, Kind::Memory, found, advice))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn replicas(node: NodeIndex, survey: &Survey) -> Option<Finding> {
    let count = survey.replicas.filter(|count| *count > 0)?;
    let found = format!("{count} server(s) replicate it");
    let advice = "replicas help nothing here, and one that is promoted in its place lacks what was acknowledged last: it has to join \
                  again. See to it that nothing (Sentinel, an operator of Kubernetes) promotes one by itself";
    Some(Finding::of(node, Severity::Note, Kind::Replicas, found, advice))
}

/// One that has expired already has let nobody through.
fn certificate(node: NodeIndex, survey: &Survey) -> Option<Finding> {
    let hours = survey.certificate_left_s? / 3_600;
    let days = hours / 24;
    if days >= CERTIFICATE_DAYS {
        return None;
    }
    let found = format!(
        "its certificate expires in {days} days and {} hours; after that no daemon connects",
        hours % 24
    );
    let advice = "renew it on the server (CONFIG SET tls-cert-file loads a new one without a restart)";
    Some(Finding::of(node, Severity::Warning, Kind::Certificate, found, advice))
}

fn clock(node: NodeIndex, survey: &Survey) -> Option<Finding> {
    let offset = survey.clock_offset_ms.filter(|offset| offset.abs() > CLOCK_OFFSET_MS)?;
    let way = if offset > 0 { "ahead of" } else { "behind" };
    let found = format!("its clock is {} ms {way} this machine's", offset.abs());
    Some(Finding::of(
        node,
        Severity::Warning,
        Kind::ClockOffset,
        found,
        "run a time service (chrony, ntpd) on both machines",
    ))
}

fn latency(node: NodeIndex, survey: &Survey, call_timeout: Duration) -> Option<Finding> {
    let mut times = survey.round_trips.clone();
    times.sort_unstable();
    let (median, worst) = (*times.get(times.len() / 2)?, *times.last()?);
    if median * MEDIAN_PART <= call_timeout && worst * WORST_PART <= call_timeout {
        return None;
    }
    let count = times.len();
    let found = format!(
        "of {count} pings half took up to {median:.1?} and the slowest {worst:.1?}, and nodes.call_timeout is {call_timeout:?}"
    );
    let advice = "look for swapping, slow commands (SLOWLOG GET), slow disks (appendfsync always) and the network; or raise \
                  nodes.call_timeout, if it is that far away";
    Some(Finding::of(node, Severity::Warning, Kind::Latency, found, advice))
}

/// Servers that run different versions.
pub(super) fn versions(versions: &BTreeMap<u8, String>) -> Option<Finding> {
    let first = versions.values().next()?;
    if versions.values().all(|version| version == first) {
        return None;
    }
    let list: Vec<String> =
        versions.iter().map(|(node, version)| format!("node {node} runs {version}")).collect();
    let advice = "fine while they are being upgraded, one at a time; bring them to one version in the end";
    Some(Finding::overall(Severity::Note, Kind::Version, list.join(", "), advice))
}

/// How many files this process may open, against what the settings ask for.
pub(super) fn open_files(may: Option<u64>, settings: &Settings) -> Option<Finding> {
    let connections = u64::from(settings.grpc.max_connections);
    let (may, needed) = (may?, connections + OPEN_FILES_SPARE);
    if may >= needed {
        return None;
    }
    let found = format!(
        "a process may open {may} files here, and grpc.max_connections = {connections} needs {needed}: past that, clients wait in \
         vain for a connection"
    );
    let advice =
        "raise the limit for the daemon (LimitNOFILE of systemd, ulimit -n), or lower grpc.max_connections";
    Some(Finding::overall(Severity::Warning, Kind::OpenFiles, found, advice))
}

/// `cluster.bootstrap` in a cluster that is there.
pub(super) fn bootstrap(founded: bool, settings: &Settings) -> Option<Finding> {
    if !founded || !settings.cluster.bootstrap {
        return None;
    }
    let found = "cluster.bootstrap is true, and the cluster is there already: it changes nothing, but if all servers were emptied, \
                 locks would be granted at once that others may still hold";
    let advice = "set it to false";
    Some(Finding::overall(Severity::Note, Kind::Bootstrap, found, advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeIndex = NodeIndex(1);
    const OPERATIONS: &str = include_str!("../../docs/operations.md");

    /// A server about which there is nothing to say.
    fn good() -> Survey {
        Survey {
            appendonly: Some("yes".into()),
            appendfsync: Some("everysec".into()),
            save: Some("3600 1".into()),
            memory_used: Some(50 << 20),
            memory_max: Some(100 << 20),
            memory_of_machine: Some(1 << 30),
            replicas: Some(0),
            certificate_left_s: Some(14 * 86_400),
            clock_offset_ms: Some(-3),
            round_trips: vec![Duration::from_micros(300); 9],
            denied: Vec::new(),
        }
    }

    fn found(change: impl FnOnce(&mut Survey)) -> Vec<Finding> {
        let mut survey = good();
        change(&mut survey);
        surveyed(NODE, &survey, &Settings::default())
    }

    #[test]
    fn there_is_nothing_to_say_about_a_good_server() {
        assert_eq!(found(|_| {}), []);
        // Nor of one that tells nothing, but for what that means.
        let silent = surveyed(NODE, &Survey::default(), &Settings::default());
        assert_eq!(
            silent.iter().map(|finding| (finding.severity, finding.kind)).collect::<Vec<_>>(),
            [(Severity::Note, Kind::Persistence)]
        );
    }

    #[test]
    fn each_thing_is_found_with_its_values() {
        type Row = (fn(&mut Survey), Severity, Kind, &'static [&'static str]);
        let text = |text: &str| Some(text.to_owned());
        let rows: &[Row] = &[
            (
                |s| (s.appendonly, s.save) = (Some("no".into()), Some(String::new())),
                Severity::Warning,
                Kind::Persistence,
                &["keeps nothing on disk"],
            ),
            (
                |s| s.appendonly = Some("no".into()),
                Severity::Warning,
                Kind::Persistence,
                &["save \"3600 1\"", "newer than the last"],
            ),
            (
                |s| s.appendfsync = Some("no".into()),
                Severity::Warning,
                Kind::Persistence,
                &["appendfsync is no", "half minute"],
            ),
            (|s| s.appendonly = None, Severity::Note, Kind::Persistence, &["does not tell"]),
            (
                |s| s.memory_used = Some(80 << 20),
                Severity::Warning,
                Kind::Memory,
                &["80.0 MiB of 100.0 MiB", "80 %"],
            ),
            (|s| s.memory_used = Some(96 << 20), Severity::Error, Kind::Memory, &["96 % of maxmemory"]),
            (
                |s| (s.memory_max, s.memory_used) = (Some(0), Some(900 << 20)),
                Severity::Warning,
                Kind::Memory,
                &["of its machine", "87 %"],
            ),
            (|s| s.replicas = Some(2), Severity::Note, Kind::Replicas, &["2 server(s) replicate it"]),
            (
                |s| s.certificate_left_s = Some(2 * 86_400 + 3 * 3_600),
                Severity::Warning,
                Kind::Certificate,
                &["expires in 2 days and 3 hours"],
            ),
            (
                |s| s.clock_offset_ms = Some(1_001),
                Severity::Warning,
                Kind::ClockOffset,
                &["1001 ms ahead of"],
            ),
            (|s| s.clock_offset_ms = Some(-4_000), Severity::Warning, Kind::ClockOffset, &["4000 ms behind"]),
            (
                |s| s.round_trips[3..].fill(Duration::from_millis(101)),
                Severity::Warning,
                Kind::Latency,
                &["of 9 pings", "101.0ms", "nodes.call_timeout is 1s"],
            ),
            (
                |s| s.round_trips[8] = Duration::from_millis(501),
                Severity::Warning,
                Kind::Latency,
                &["up to 300.0µs", "slowest 501.0ms"],
            ),
            (
                |s| s.denied = vec!["SET majorityd:node x".into(), "TIME".into()],
                Severity::Error,
                Kind::Permissions,
                &["may not call SET majorityd:node x; TIME"],
            ),
        ];
        for (change, severity, kind, words) in rows {
            let findings = found(change);
            let [finding] = &findings[..] else { panic!("{kind:?}: {findings:?}") };
            assert_eq!(
                (finding.severity, finding.kind, finding.node),
                (*severity, *kind, Some(1)),
                "{finding:?}"
            );
            assert!(words.iter().all(|word| finding.found.contains(word)), "{words:?}: {finding:?}");
            assert!(!finding.advice.is_empty(), "{finding:?}");
        }
        assert_eq!(found(|s| s.appendfsync = text("always")), []);
    }

    #[test]
    fn what_is_refused_says_what_it_is_and_what_to_do() {
        let text = || "x".to_owned();
        let mismatch =
            Refusal::Mismatch { what: "index", found: text(), expected: text(), advice: "list it" };
        let rows = [
            (Refusal::TooOld { found: "6.2.7".into() }, Kind::Version, "6.2.7", "upgrade"),
            (Refusal::NotMaster { role: "slave".into() }, Kind::Role, "slave", "REPLICAOF NO ONE"),
            (Refusal::ClusterMode, Kind::Role, "cluster mode", "cluster-enabled no"),
            (Refusal::Evicts { found: "allkeys-lru".into() }, Kind::Eviction, "allkeys-lru", "noeviction"),
            (Refusal::Hidden { what: "role", setting: "none" }, Kind::Hidden, "role", "allow this user"),
            (
                Refusal::Duplicate { other: 0, run_id: text() },
                Kind::Duplicate,
                "node 0",
                "list each one once",
            ),
            (mismatch, Kind::Foreign, "index", "list it"),
            (
                Refusal::Denied { command: "AUTH", message: "WRONGPASS a: b".into() },
                Kind::Permissions,
                "WRONGPASS a: b",
                "nodes.password",
            ),
            (Refusal::Denied { command: "EVAL", message: text() }, Kind::Permissions, "EVAL", "ACL SETUSER"),
        ];
        for (refusal, kind, words, advice) in rows {
            let finding = refused(NODE, &refusal);
            assert_eq!((finding.severity, finding.kind), (Severity::Error, kind));
            assert!(finding.found.contains(words) && finding.advice.contains(advice), "{finding:?}");
        }
    }

    #[test]
    fn versions_that_differ_are_listed() {
        let of = |list: &[&str]| (0..).zip(list.iter().map(|version| (*version).to_owned())).collect();
        assert_eq!(versions(&of(&["7.0.15", "7.0.15", "7.0.15"])), None);
        let finding = versions(&of(&["7.0.15", "7.2.4"])).unwrap();
        assert_eq!(finding.found, "node 0 runs 7.0.15, node 1 runs 7.2.4");
    }

    #[test]
    fn files_and_bootstrap_are_held_against_the_settings() {
        let mut settings = Settings::default();
        assert_eq!(open_files(None, &settings), None);
        assert_eq!(open_files(Some(10_256), &settings), None);
        let finding = open_files(Some(1_024), &settings).unwrap();
        assert!(finding.found.contains("1024") && finding.found.contains("10256"), "{finding:?}");
        assert_eq!(bootstrap(true, &settings), None);
        settings.cluster.bootstrap = true;
        assert_eq!(bootstrap(false, &settings), None);
        assert_eq!(bootstrap(true, &settings).unwrap().severity, Severity::Note);
    }

    #[test]
    fn the_document_has_every_kind_in_this_order() {
        let table = OPERATIONS.split("## What `majorityd check` finds").nth(1).expect("the section");
        let table = table.split("\n## ").next().unwrap_or_default();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let kinds: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(rows.collect::<Vec<_>>(), kinds);
    }

    #[test]
    fn names_are_the_same_in_json() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        for severity in [Severity::Error, Severity::Warning, Severity::Note] {
            assert_eq!(serde_json::to_value(severity).unwrap(), severity.as_str());
        }
    }
}
