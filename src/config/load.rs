//! Reads settings: defaults < TOML file < environment < flags, each source above overriding those before it.
//!
//! Every setting of every source is tried by itself against the defaults, so one run reports all that is wrong, unknown
//! names included. Only then are they put together and [`validate`](super::validate)d as a whole.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use config::{Config, ConfigError, Environment, File, FileFormat, Source, Value, ValueKind};

use super::validate::{NodesFrom, validate};
use super::{Problem, Problems, REDACTED, Secret, Settings, address};
use crate::access::{BadRules, Rules};
use crate::tls::{self, Part, Unfit};

/// Environment variables that are settings start with this and a double underscore, which also stands between section
/// and key. So the variables that Kubernetes makes for a service called `majorityd` are not mistaken for settings.
const PREFIX: &str = "MAJORITYD";
const SEPARATOR: &str = "__";

/// Where settings come from. Empty sources leave the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables, all of them; those without the prefix are passed over.
    pub environment: Vec<(OsString, OsString)>,
    /// Settings from the command line, each with the flag that people know it by.
    pub flags: Vec<Flag>,
}

/// A setting from the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As typed, for messages.
    pub flag: String,
    /// `section.key`.
    pub setting: String,
    /// In the form that an environment variable has.
    pub value: String,
}

/// One setting as one source has it.
struct Leaf {
    setting: String,
    value: Value,
    origin: String,
}

/// The names of all settings, `section.key`.
pub static SETTINGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut names = Vec::new();
    let defaults = serde_json::to_value(Settings::default()).expect("settings serialize to JSON");
    collect_names("", &defaults, &mut names);
    names
});

fn collect_names(prefix: &str, value: &serde_json::Value, names: &mut Vec<String>) {
    let serde_json::Value::Object(section) = value else {
        names.push(prefix.to_owned());
        return;
    };
    for (key, value) in section {
        collect_names(&join(prefix, key), value, names);
    }
}

/// Reads, merges and checks all settings, and the password file if there is one.
///
/// # Errors
/// [`Problems`] lists everything that is wrong in any source.
pub fn load(sources: &Sources, nodes: NodesFrom) -> Result<Settings, Problems> {
    let mut problems = Vec::new();
    let mut leaves = Vec::new();
    if let Some(path) = &sources.file {
        read_file(path, &mut leaves, &mut problems);
    }
    read_environment(&sources.environment, &mut leaves, &mut problems);
    leaves.extend(sources.flags.iter().map(read_flag));

    let (good, mut wrong): (Vec<Leaf>, _) = sort_out(leaves);
    problems.append(&mut wrong);
    let mut settings = merge(&good);
    let origins: BTreeMap<&str, &str> =
        good.iter().map(|leaf| (leaf.setting.as_str(), leaf.origin.as_str())).collect();

    // A rule about a setting that could not be read would only repeat that.
    let unread: Vec<String> = problems.iter().map(|problem| problem.setting.clone()).collect();
    let mut broken = validate(&settings, nodes);
    broken.extend(read_password_file(&mut settings));
    broken.extend(try_files(&settings));
    broken.retain(|problem| !unread.contains(&problem.setting));
    for mut problem in broken {
        problem.origin = origins.get(problem.setting.as_str()).map(|&origin| origin.to_owned());
        problems.push(problem);
    }
    if problems.is_empty() { Ok(settings) } else { Err(Problems(problems)) }
}

fn read_file(path: &Path, leaves: &mut Vec<Leaf>, problems: &mut Vec<Problem>) {
    let origin = format!("from {}", path.display());
    let whole = |rule| Problem { setting: String::new(), value: None, rule, origin: None };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(whole(format!("can't read the configuration file {}: {error}", path.display())));
            return;
        }
    };
    match File::from_str(&text, FileFormat::Toml).collect() {
        Ok(sections) => flatten("", Value::new(None, ValueKind::Table(sections)), &origin, leaves),
        Err(error) => {
            problems.push(whole(format!("{} is not TOML: {}", path.display(), explain_toml(&error))))
        }
    }
}

/// The parser's message without the line that it quotes: there may be a password in it.
fn explain_toml(error: &ConfigError) -> String {
    let text = match error {
        ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start().starts_with('|'))
        .collect();
    lines.join(": ")
}

fn flatten(prefix: &str, value: Value, origin: &str, leaves: &mut Vec<Leaf>) {
    match value.kind {
        ValueKind::Table(section) if prefix.is_empty() || !section.is_empty() => {
            // The order of a table in memory is random; messages have a steady one.
            for (key, value) in section.into_iter().collect::<BTreeMap<_, _>>() {
                flatten(&join(prefix, &key), value, origin, leaves);
            }
        }
        kind => leaves.push(Leaf {
            setting: prefix.to_owned(),
            value: Value::new(None, kind),
            origin: origin.to_owned(),
        }),
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

fn read_environment(
    environment: &[(OsString, OsString)],
    leaves: &mut Vec<Leaf>,
    problems: &mut Vec<Problem>,
) {
    let mut names = BTreeMap::new();
    let mut variables = config::Map::new();
    let marker = format!("{PREFIX}{SEPARATOR}");
    for (name, value) in environment {
        let Some(name) = name.to_str().filter(|name| name.to_ascii_uppercase().starts_with(&marker)) else {
            continue;
        };
        let setting = name[marker.len()..].to_lowercase().replace(SEPARATOR, ".");
        let origin = format!("from the environment variable {name}");
        match value.to_str() {
            Some(value) => {
                variables.insert(name.to_owned(), value.to_owned());
                names.insert(setting, origin);
            }
            None => problems.push(Problem {
                setting,
                value: None,
                rule: "is not UTF-8".into(),
                origin: Some(origin),
            }),
        }
    }
    let source = Environment::with_prefix(PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .source(Some(variables));
    let read = source.collect().expect("all variables were checked to be UTF-8");
    for (setting, value) in read.into_iter().collect::<BTreeMap<_, _>>() {
        let origin = names.get(&setting).cloned().unwrap_or_default();
        leaves.push(Leaf { setting, value: Value::new(None, value.kind), origin });
    }
}

fn read_flag(flag: &Flag) -> Leaf {
    Leaf {
        setting: flag.setting.clone(),
        value: Value::new(None, ValueKind::String(flag.value.clone())),
        origin: format!("from {}", flag.flag),
    }
}

/// Tries each leaf alone. What fails becomes a problem.
fn sort_out(leaves: Vec<Leaf>) -> (Vec<Leaf>, Vec<Problem>) {
    let mut good = Vec::new();
    let mut problems = Vec::new();
    for leaf in leaves {
        match try_leaf(&leaf) {
            Ok(()) => good.push(leaf),
            Err(problem) => problems.push(problem),
        }
    }
    // An empty section sets nothing.
    good.retain(|leaf| !matches!(&leaf.value.kind, ValueKind::Table(section) if section.is_empty()));
    (good, problems)
}

fn try_leaf(leaf: &Leaf) -> Result<(), Problem> {
    let problem = |value, rule| Problem {
        setting: leaf.setting.clone(),
        value,
        rule,
        origin: Some(leaf.origin.clone()),
    };
    let known =
        SETTINGS.iter().any(|name| *name == leaf.setting || name.starts_with(&format!("{}.", leaf.setting)));
    if !known {
        return Err(problem(None, suggest(&leaf.setting)));
    }
    let tried = Config::builder()
        .set_override(&leaf.setting, leaf.value.clone())
        .and_then(|builder| builder.build())
        .and_then(Config::try_deserialize::<Settings>);
    match tried {
        Ok(_) => Ok(()),
        // The message of a wrong type quotes what was found.
        Err(_) if is_secret(&leaf.setting) => Err(problem(Some(REDACTED.into()), "must be a text".into())),
        Err(error) => Err(problem(Some(show(leaf)), explain(&error))),
    }
}

fn is_secret(setting: &str) -> bool {
    setting == "nodes.password"
}

fn show(leaf: &Leaf) -> String {
    fn show_value(value: &Value, quoted: bool) -> String {
        match &value.kind {
            ValueKind::Array(list) => {
                let list: Vec<String> = list.iter().map(|value| show_value(value, quoted)).collect();
                format!("[{}]", list.join(", "))
            }
            ValueKind::String(text) if quoted => {
                let parts: Vec<String> = text.split(',').map(address::redact).collect();
                format!("{:?}", parts.join(","))
            }
            ValueKind::Table(_) => "{…}".into(),
            other => other.to_string(),
        }
    }
    show_value(&leaf.value, true)
}

/// A rule from a refusal to deserialize.
fn explain(error: &ConfigError) -> String {
    match error {
        ConfigError::Type { expected, .. } if expected.contains("unsigned") => {
            "must be a whole number, zero or more".into()
        }
        ConfigError::Type { expected, .. } => format!("must be {expected}"),
        ConfigError::At { error, .. } => explain(error),
        ConfigError::Message(text) => text.clone(),
        other => other.to_string(),
    }
}

fn suggest(setting: &str) -> String {
    let section = setting.split('.').next().unwrap_or_default();
    let marker = format!("{section}.");
    let nearby: Vec<&str> =
        SETTINGS.iter().filter(|name| name.starts_with(&marker)).map(String::as_str).collect();
    if nearby.is_empty() {
        let mut sections: Vec<&str> = SETTINGS.iter().filter_map(|name| name.split('.').next()).collect();
        sections.dedup();
        format!("no such setting; the sections are {}", sections.join(", "))
    } else {
        format!("no such setting; this section has {}", nearby.join(", "))
    }
}

fn merge(good: &[Leaf]) -> Settings {
    let mut builder = Config::builder();
    for leaf in good {
        builder = builder
            .set_override(&leaf.setting, leaf.value.clone())
            .expect("the name was found among the settings");
    }
    let merged = builder.build().and_then(Config::try_deserialize);
    merged.expect("each setting was tried alone, and none depends on another")
}

/// Replaces `nodes.password` by the content of `nodes.password_file`.
fn read_password_file(settings: &mut Settings) -> Option<Problem> {
    let path = settings.nodes.password_file.clone()?;
    let problem = |rule: String| Problem {
        setting: "nodes.password_file".into(),
        value: Some(format!("{:?}", path.display().to_string())),
        rule,
        origin: None,
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => return Some(problem(format!("must be a file that can be read: {error}"))),
    };
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() || text.contains('\n') {
        return Some(problem("must be a file with the password on its one line".into()));
    }
    // Both being set is a problem that `validate` has reported by now.
    settings.nodes.password.get_or_insert_with(|| Secret::new(text));
    None
}

/// Looks whether the files of TLS and of access can be read and used.
fn try_files(settings: &Settings) -> Vec<Problem> {
    let mut files = Tried::default();
    let grpc = &settings.grpc.tls;
    files.try_tls(
        ["grpc.tls.cert_file", "grpc.tls.key_file", "grpc.tls.client_ca_file"],
        [&grpc.cert_file, &grpc.key_file, &grpc.client_ca_file],
    );
    let revoked = grpc.client_crl_file.as_deref();
    if let (Some(path), Some(text)) = (revoked, files.read("grpc.tls.client_crl_file", revoked))
        && let Err(Unfit { rule, .. }) = tls::revocations(&text)
    {
        files.push("grpc.tls.client_crl_file", path, rule);
    }
    let nodes = &settings.nodes.tls;
    files.try_tls(
        ["nodes.tls.cert_file", "nodes.tls.key_file", "nodes.tls.ca_file"],
        [&nodes.cert_file, &nodes.key_file, &nodes.ca_file],
    );
    let path = settings.tracing.ca_file.as_deref();
    if let (Some(path), Some(text)) = (path, files.read("tracing.ca_file", path))
        && let Err(Unfit { rule, .. }) = tls::roots(&text)
    {
        files.push("tracing.ca_file", path, rule);
    }
    let path = settings.access.file.as_deref();
    if let (Some(path), Some(text)) = (path, files.read("access.file", path)) {
        match String::from_utf8(text) {
            Ok(text) => {
                let wrong = Rules::parse(&text).err().map(|BadRules(wrong)| wrong).unwrap_or_default();
                wrong.into_iter().for_each(|rule| files.push("access.file", path, rule));
            }
            Err(_) => files.push("access.file", path, "must be UTF-8".to_owned()),
        }
    }
    files.problems
}

#[derive(Default)]
struct Tried {
    problems: Vec<Problem>,
}

impl Tried {
    fn push(&mut self, setting: &str, path: &Path, rule: String) {
        let value = Some(format!("{:?}", path.display().to_string()));
        self.problems.push(Problem { setting: setting.to_owned(), value, rule, origin: None });
    }

    fn read(&mut self, setting: &str, path: Option<&Path>) -> Option<Vec<u8>> {
        let path = path?;
        match std::fs::read(path) {
            Ok(text) => Some(text),
            Err(error) => {
                self.push(setting, path, format!("must be a file that can be read: {error}"));
                None
            }
        }
    }

    /// A certificate, its key, and authorities.
    fn try_tls(&mut self, settings: [&str; 3], paths: [&Option<PathBuf>; 3]) {
        let [certificate, key, authorities] =
            [0, 1, 2].map(|at| self.read(settings[at], paths[at].as_deref()));
        let text = |read: &Option<Vec<u8>>| read.clone().unwrap_or_default();
        let mut unfit = tls::pair(&text(&certificate), &text(&key)).err().unwrap_or_default();
        unfit.extend(authorities.as_deref().and_then(|text| tls::roots(text).err()));
        for Unfit { part, rule } in unfit {
            let (at, read) = match part {
                Part::Certificate => (0, certificate.is_some()),
                Part::Key => (1, key.is_some()),
                Part::Authorities | Part::Revoked => (2, true),
            };
            // What is wrong with a file that is not there has been said.
            if let (Some(path), true) = (paths[at], read) {
                self.push(settings[at], path, rule);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::NodeAddress;

    const SAMPLE: &str = include_str!("../../deploy/majorityd.toml");

    /// Loads a file's text, variables and flags.
    fn load_all(
        text: &str,
        variables: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Settings, Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("majorityd.toml");
        std::fs::write(&path, text).expect("writes");
        let sources = Sources {
            file: Some(path),
            environment: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            flags: flags
                .iter()
                .map(|(setting, value)| Flag {
                    flag: "--set".into(),
                    setting: (*setting).into(),
                    value: (*value).into(),
                })
                .collect(),
        };
        load(&sources, NodesFrom::Embedded)
            .map_err(|problems| problems.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_sample_is_the_defaults() {
        let settings = load_all(SAMPLE, &[], &[]).expect("the sample is good");
        let mut defaults = Settings::default();
        defaults.nodes.addresses = ["redis-1", "redis-2", "redis-3"]
            .map(|host| NodeAddress::parse(&format!("redis://{host}:6379")).expect("good"))
            .into();
        assert_eq!(settings, defaults);
    }

    #[test]
    fn the_sample_names_every_setting_and_nothing_else() {
        // What has no default stands there as a comment.
        let uncommented: Vec<&str> = SAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_key(key)) => rest,
                _ => line,
            })
            .collect();
        let whole = File::from_str(&uncommented.join("\n"), FileFormat::Toml).collect().expect("is TOML");
        let mut leaves = Vec::new();
        flatten("", Value::new(None, ValueKind::Table(whole)), "the sample", &mut leaves);
        let mut found: Vec<&str> = leaves.iter().map(|leaf| leaf.setting.as_str()).collect();
        let mut expected: Vec<&str> = SETTINGS.iter().map(String::as_str).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(sort_out(leaves).1.is_empty());
    }

    fn is_key(text: &str) -> bool {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    }

    #[test]
    fn later_sources_override_earlier_ones() {
        let file = "[locks]\nttl_min = \"2s\"\nttl_default = \"20s\"\nttl_max = \"1m\"\n[nodes.tls]\n[log]";
        let variables = [
            ("MAJORITYD__LOCKS__TTL_DEFAULT", "21s"),
            ("MAJORITYD__LOCKS__TTL_MAX", "2m"),
            ("MAJORITYD__NODES__ADDRESSES", "redis://a, redis://b,redis://c"),
            ("MAJORITYD__CLUSTER__BOOTSTRAP", "true"),
            ("MAJORITYD__LOCKS__WAITERS_MAX", "5000"),
            ("MAJORITYD_PORT", "tcp://10.0.0.1:7480"),
            ("PATH", "/bin"),
        ];
        let settings = load_all(file, &variables, &[("locks.ttl_max", "3m")]).expect("good");
        assert_eq!(settings.locks.ttl_min, Duration::from_secs(2));
        assert_eq!(settings.locks.ttl_default, Duration::from_secs(21));
        assert_eq!(settings.locks.ttl_max, Duration::from_secs(180));
        assert_eq!(settings.locks.waiters_max, 5000);
        assert_eq!(settings.nodes.addresses.len(), 3);
        assert!(settings.cluster.bootstrap);
    }

    #[test]
    fn everything_wrong_is_reported_at_once() {
        let file = r#"
            surprise = 1
            [cluster]
            name = "Main"
            bootstrap = "perhaps"
            [nodes]
            addresses = ["redis://me:hunter2@a:0", "redis://a", "http://me:hunter2@b"]
            password = ["hunter2"]
            [locks]
            ttl_min = 5
            ttl_maximum = "1m"
            waiters_max = -1
            [unknown]
            [grpc]
            listen = "localhost"
            [log]
            format = "xml"
        "#;
        let variables = [
            ("MAJORITYD__QUORUM__PATIENCE", "soon"),
            ("MAJORITYD__QUORUM__PATIENTS", "3"),
            ("MAJORITYD__X Y[__Z", "1"),
        ];
        let problems = load_all(file, &variables, &[("grpc.port", "1")]).expect_err("wrong");
        let all = problems.join("\n");
        for (expected, also) in [
            ("surprise: no such setting", "cluster, grpc"),
            ("cluster.name = \"Main\": ", "a-z"),
            ("cluster.bootstrap = \"perhaps\": must be a boolean", "majorityd.toml"),
            ("nodes.addresses = [\"redis://***@a:0\", ", "port 0"),
            ("nodes.addresses = ", "http"),
            ("nodes.password = ***: must be a text", "majorityd.toml"),
            ("locks.ttl_min = 5: must be a duration", "majorityd.toml"),
            ("locks.ttl_maximum: no such setting", "locks.ttl_max"),
            ("locks.waiters_max = -1: must be a whole number", "majorityd.toml"),
            ("unknown: no such setting", "majorityd.toml"),
            ("grpc.listen = \"localhost\": ", "IP address"),
            ("log.format = \"xml\": must be", "json"),
            ("quorum.patience = \"soon\": must be a duration", "MAJORITYD__QUORUM__PATIENCE"),
            ("quorum.patients: no such setting", "MAJORITYD__QUORUM__PATIENTS"),
            ("x y[.z: no such setting", "MAJORITYD__X Y[__Z"),
            ("grpc.port: no such setting", "from --set"),
        ] {
            let found = problems.iter().any(|line| line.starts_with(expected) && line.contains(also));
            assert!(found, "{expected} … {also}\n\n{all}");
        }
        assert_eq!(problems.len(), 15, "{all}");
        assert!(!all.contains("hunter2"), "{all}");
    }

    #[test]
    fn a_file_that_is_missing_or_not_toml_is_named_without_quoting_it() {
        let sources = Sources { file: Some("/nonexistent/majorityd.toml".into()), ..Sources::default() };
        let missing = load(&sources, NodesFrom::Embedded).expect_err("missing").to_string();
        assert!(missing.contains("/nonexistent/majorityd.toml"), "{missing}");

        let broken =
            load_all("[nodes]\npassword = \"hunt\"er2\"\n", &[], &[]).expect_err("broken").join("\n");
        assert!(broken.contains("line 2"), "{broken}");
        assert!(!broken.contains("er2"), "{broken}");
    }

    #[test]
    fn a_password_file_has_one_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("password");
        let setting = path.to_str().expect("UTF-8").to_owned();
        let load_with = |content: &str| {
            std::fs::write(&path, content).expect("writes");
            load_all("", &[], &[("nodes.password_file", &setting)])
        };
        for content in ["hunter2", "hunter2\n", "hunter2\r\n"] {
            let settings = load_with(content).expect("good");
            assert_eq!(settings.nodes.password.expect("read").expose(), "hunter2", "{content:?}");
        }
        for content in ["", "\n", "hunter2\nhunter3\n"] {
            let problems = load_with(content).expect_err("wrong").join("\n");
            assert!(problems.starts_with("nodes.password_file = "), "{problems}");
            assert!(!problems.contains("hunter"), "{problems}");
        }
    }

    #[test]
    fn all_that_is_wrong_with_files_of_tls_and_access_is_told_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("writes");
            path.to_str().expect("UTF-8").to_owned()
        };
        let made = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
            let certificate = write(&format!("{name}.crt"), &made.cert.pem());
            (certificate, write(&format!("{name}.key"), &made.signing_key.serialize_pem()))
        };
        let ((certificate, key), (_, other)) = (made("a"), made("b"));
        let rules = write("access.toml", "[[identity]]\nname = \"a b\"\n");
        let empty = write("empty", "");
        let problems = load_all(
            "",
            &[],
            &[
                ("grpc.tls.cert_file", &certificate),
                ("grpc.tls.key_file", &other),
                ("grpc.tls.client_ca_file", &empty),
                ("grpc.tls.client_crl_file", &key),
                ("nodes.tls.cert_file", &empty),
                ("nodes.tls.key_file", "/nonexistent/key"),
                ("nodes.tls.ca_file", &key),
                ("tracing.otlp_endpoint", "https://a:1"),
                ("tracing.ca_file", &empty),
                ("access.file", &rules),
            ],
        )
        .expect_err("wrong");
        for (setting, rule) in [
            ("grpc.tls.key_file", "must be the key of the certificate"),
            ("grpc.tls.client_ca_file", "must have a certificate"),
            ("grpc.tls.client_crl_file", "must have a list in PEM"),
            ("nodes.tls.cert_file", "must have a certificate"),
            ("nodes.tls.key_file", "must be a file that can be read"),
            ("nodes.tls.ca_file", "must have a certificate"),
            ("tracing.ca_file", "must have a certificate"),
            ("access.file", "name must have"),
            ("access.file", "must have token_sha256"),
        ] {
            let found = problems.iter().filter(|line| line.starts_with(setting) && line.contains(rule));
            assert_eq!(found.count(), 1, "{setting} {rule}: {problems:#?}");
        }
        assert_eq!(problems.len(), 9, "{problems:#?}");
        let good = [
            ("grpc.tls.cert_file", &*certificate),
            ("grpc.tls.key_file", &key),
            ("grpc.listen", "0.0.0.0:1"),
        ];
        load_all("", &[], &good).expect("good");
    }

    #[test]
    fn a_file_that_a_setting_names_must_be_there() {
        let settings = [
            "nodes.password_file",
            "nodes.tls.ca_file",
            "nodes.tls.cert_file",
            "nodes.tls.key_file",
            "grpc.tls.cert_file",
            "grpc.tls.key_file",
            "grpc.tls.client_ca_file",
            "grpc.tls.client_crl_file",
            "tracing.ca_file",
            "access.file",
        ];
        for setting in settings {
            let missing = load_all("", &[], &[(setting, "/nonexistent/x")]).expect_err("missing");
            let expected = format!("{setting} = \"/nonexistent/x\": must be a file that can be read");
            assert!(missing.iter().any(|line| line.starts_with(&expected)), "{missing:?}");
        }
    }
}
