//! Checks the source tree: the walls between rooms, words that must not stay, and paths that the documents name.
//!
//! In one crate no compiler keeps rooms apart, so this reads the paths that the source names, `use` lines and others.
//! `docs/architecture.md` says what the rooms are for; [`ROOMS`] and [`CRATES`] are the walls as a table. Unit tests and
//! test files are free to name what they like. The last tests feed the checker what it must catch.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files under `src/`, by the longest matching start of their path, and the rooms (or parts of them) that they may name
/// besides their own.
const ROOMS: &[(&str, &[&str])] = &[
    // Below everyone.
    ("ids.rs", &["limits"]),
    ("limits.rs", &[]),
    ("token.rs", &["ids", "limits"]),
    ("runtime/", &[]),
    ("inbox.rs", &[]),
    // Certificates and keys, of all who speak TLS.
    ("tls.rs", &[]),
    // Who may do what; it knows the names that certificates vouch for.
    ("access/", &["tls"]),
    ("idle.rs", &["limits", "node::operation", "runtime"]),
    // Counts what all of them do, and knows no more of them than the letters of the kinds.
    ("meter/", &["node::keyspace"]),
    // Asked by each mechanism whether a test has taken it out.
    ("mutant.rs", &[]),
    ("quorum/", &["ids", "limits", "mutant"]),
    ("members/", &["ids", "limits", "mutant", "token", "quorum", "node::operation"]),
    // From the wire up.
    ("node/", &["ids", "inbox", "limits", "meter", "mutant", "token", "quorum", "members", "runtime"]),
    ("node/redis", &["ids", "limits", "token", "config", "runtime", "telemetry", "tls"]),
    (
        "driver.rs",
        &[
            "idle", "ids", "inbox", "limits", "meter", "mutant", "token", "quorum", "members", "node",
            "runtime",
        ],
    ),
    (
        "register/",
        &[
            "ids",
            "limits",
            "meter",
            "mutant",
            "token",
            "quorum",
            "members",
            "node::operation",
            "node::keyspace",
            "driver",
            "runtime",
        ],
    ),
    (
        "lock/",
        &[
            "ids",
            "inbox",
            "limits",
            "meter",
            "mutant",
            "token",
            "node::operation",
            "node::keyspace",
            "driver::Cluster",
            "register",
            "runtime",
        ],
    ),
    (
        "queue/",
        &[
            "ids",
            "limits",
            "meter",
            "mutant",
            "token",
            "node::operation",
            "node::keyspace",
            "driver::Cluster",
            "register",
            "runtime",
        ],
    ),
    (
        "kv/",
        &[
            "ids",
            "limits",
            "mutant",
            "token",
            "node::operation",
            "node::keyspace",
            "driver::Cluster",
            "register",
            "runtime",
        ],
    ),
    (
        "upkeep/",
        &[
            "idle", "ids", "limits", "meter", "mutant", "token", "quorum", "members", "node", "driver",
            "register", "runtime",
        ],
    ),
    // What it shows of an address it has the configuration redact.
    (
        "cluster/",
        &[
            "ids",
            "limits",
            "token",
            "quorum",
            "members",
            "node",
            "driver",
            "runtime",
            "config::address::redact",
        ],
    ),
    // The simulation, under the same code.
    (
        "sim/",
        &[
            "ids", "limits", "mutant", "token", "quorum", "members", "node", "driver", "register", "lock",
            "queue", "kv", "upkeep", "runtime",
        ],
    ),
    // The edges. An error of a register is part of a facade's error, and the one error map has to match on it.
    (
        "grpc/",
        &[
            "ids",
            "limits",
            "token",
            "lock",
            "queue",
            "kv",
            "cluster",
            "access",
            "tls",
            "meter::calls",
            "proto",
            "runtime",
            "telemetry",
            "register::RegisterError",
        ],
    ),
    // What is counted and what is seen, under the names of metrics.
    (
        "metrics/",
        &[
            "limits",
            "lock::Locks",
            "queue::Queues",
            "kv::Keys",
            "cluster",
            "meter",
            "node::batch::Batcher",
            "driver::Cluster",
        ],
    ),
    ("http/", &["cluster", "metrics", "runtime"]),
    // It looks whether files can be used.
    ("config/", &["access", "limits", "tls"]),
    ("client/", &["proto", "runtime", "tls"]),
    ("telemetry.rs", &["config"]),
    ("proto.rs", &[]),
    (
        "cli/",
        &["access::token", "config", "limits", "load", "proto", "runtime", "server", "telemetry", "tls"],
    ),
    ("load/", &["runtime"]),
    ("server/reload.rs", &["access", "config", "meter::calls", "meter::door", "runtime", "tls"]),
    ("server/check.rs", &["config", "ids", "members", "node", "quorum", "runtime", "server"]),
    ("server/findings.rs", &["config", "ids", "limits", "node"]),
    ("server/supervisor.rs", &["driver::Cluster", "runtime"]),
    ("main.rs", &[]),
    ("lib.rs", &[]),
];

/// The composition root names everything.
const ROOT: &str = "server.rs";

/// Crates (or parts of them) that only some files may name. Everywhere else they are walls.
const CRATES: &[(&str, &[&str])] = &[
    ("tokio", &["runtime/system.rs", "grpc/", "http/", "cli/", "server", "node/redis", "client/"]),
    ("opentelemetry", &["telemetry.rs"]),
    ("opentelemetry_otlp", &["telemetry.rs"]),
    ("opentelemetry_sdk", &["telemetry.rs"]),
    ("tracing_opentelemetry", &["telemetry.rs"]),
    ("sd_notify", &["server/supervisor.rs"]),
    ("tokio_stream", &["grpc/", "server.rs", "client/"]),
    ("fred", &["node/redis"]),
    ("rustls", &["tls.rs", "grpc/"]),
    ("tokio_rustls", &["grpc/", "node/redis/certificate.rs"]),
    ("x509_cert", &["tls.rs", "node/redis/certificate.rs"]),
    ("ring", &["access/token.rs", "server/reload.rs"]),
    ("subtle", &["access/rules.rs"]),
    ("toml", &["access/rules.rs"]),
    ("mlua", &["node/embedded"]),
    ("tonic", &["grpc/", "cli/", "proto.rs", "client/"]),
    ("tonic_types", &["grpc/", "cli/"]),
    ("tonic_health", &["grpc/", "cli/bench"]),
    ("tonic_reflection", &["grpc/"]),
    ("prost", &["grpc/", "cli/queue/"]),
    ("prost_types", &["grpc/", "cli/", "client/"]),
    // The server names the room of that name.
    ("http", &["grpc/", "http/", "server.rs"]),
    ("hyper", &["http/"]),
    ("hyper_util", &["http/"]),
    ("http_body_util", &["http/", "grpc/leaving.rs"]),
    ("prometheus_client", &["metrics/"]),
    ("tower", &["grpc/"]),
    ("hdrhistogram", &["load/"]),
    ("clap", &["cli/"]),
    ("clap_complete", &["cli/"]),
    ("clap_mangen", &["cli/"]),
    ("config", &["config/"]),
    ("getrandom", &["runtime/system.rs"]),
    ("rustix", &["runtime/system.rs", "cli/"]),
    ("std::time::Instant", &[]),
    ("std::time::SystemTime", &["runtime/system.rs", "cli/"]),
    ("std::thread", &["node/embedded", "cli/mod.rs", "cli/say.rs"]),
];

/// Files that are pure: no input but their arguments.
const PURE: &[&str] = &[
    "ids.rs",
    "limits.rs",
    "token.rs",
    "quorum/",
    "members/change.rs",
    "members/list.rs",
    "register/age.rs",
    "register/proposer.rs",
    "register/reader.rs",
    "lock/change.rs",
    "lock/value.rs",
    "kv/change.rs",
    "kv/value.rs",
    "cluster/status.rs",
    "server/findings.rs",
    "http/page.rs",
    "meter/",
    "node/keyspace.rs",
    "node/operation.rs",
    "tls.rs",
    "access/",
];

/// What a pure file has none of. A `HashMap` is iterated over in another order each time.
const IMPURE: &[&str] =
    &["async", "await", "HashMap", "HashSet", "futures", "Clock", "Entropy", "Spawn", "Runtime"];

/// What is not left behind in `src/`.
const LEFTOVERS: &[&str] = &["TODO", "FIXME", "XXX", "todo!", "unimplemented!", "dbg!"];

/// Where paths in documents start.
const PATH_STARTS: &[&str] = &["src/", "docs/", "tests/", "proto/", "deploy/", ".ci/", ".config/"];

// ---------------------------------------------------------------------------------------------------------------------
// The checks, as functions from text to complaints

/// The file itself, and files of tests, are not held against the walls.
fn is_test_file(file: &str) -> bool {
    file.ends_with("_tests.rs") || file.ends_with("/tests.rs") || file.ends_with("/conformance.rs")
}

fn check_walls(file: &str, source: &str) -> Vec<String> {
    if is_test_file(file) {
        return Vec::new();
    }
    let code = without_tests(&code_of(source));
    let words = words_of(&code);
    let paths = paths_of(&words);
    let mut complaints = Vec::new();
    if file != ROOT {
        let Some((_, may)) = longest(ROOMS, file) else {
            return vec![format!("src/{file}: no line of ROOMS in tests/tidy.rs says what it may name")];
        };
        let own = room_of(file);
        for path in paths.iter().filter_map(|path| inside(file, path)) {
            let room = path.split("::").next().unwrap_or_default();
            let allowed = may.iter().any(|may| path == *may || starts_with_path(&path, may));
            if room != own && !room.is_empty() && !allowed {
                complaints.push(format!("src/{file} names crate::{path}"));
            }
        }
    }
    for (name, homes) in CRATES {
        let at_home = homes.iter().any(|home| file.starts_with(home));
        if !at_home && paths.iter().any(|path| path == name || starts_with_path(path, name)) {
            complaints.push(format!("src/{file} names {name}"));
        }
    }
    if PURE.iter().any(|pure| file.starts_with(pure)) {
        for word in IMPURE.iter().filter(|word| words.iter().any(|found| found == *word)) {
            complaints.push(format!("src/{file} is pure, but has {word}"));
        }
    }
    complaints
}

fn check_leftovers(file: &str, source: &str) -> Vec<String> {
    let left = LEFTOVERS.iter().filter(|word| source.contains(**word));
    left.map(|word| format!("src/{file} has {word}")).collect()
}

/// Paths in backticks and relative targets of links, with whether they are there asked of `exists` (from the top of the
/// tree).
fn check_document(document: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
    let quoted = text.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    let quoted = quoted.filter(|span| PATH_STARTS.iter().any(|start| span.starts_with(start)));
    // Of a pattern, what stands before it.
    let plain = |span: &str| span.split_once('*').map_or(span, |(start, _)| start).to_owned();
    let quoted = quoted.map(|span| plain(span.trim_end_matches([',', ';', ':', ')', '.', '\'', '"'])));
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://") && !link.starts_with('#') && !link.contains(' '));
    let links = links.map(|link| join(folder, link.split('#').next().unwrap_or_default()));
    let missing = quoted.chain(links).filter(|path| !exists(path));
    missing.map(|path| format!("{document} names {path}, which is not there")).collect()
}

/// A path relative to a folder of the tree.
fn join(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading Rust, as far as paths go

/// The source without comments and without what is in quotes.
fn code_of(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut code = String::with_capacity(source.len());
    let mut i = 0;
    while i < chars.len() {
        let before = code.chars().next_back().unwrap_or(' ');
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            ('r', '"' | '#')
                if !before.is_alphanumeric() && before != '_' || before == 'b' && at(i) == 'r' =>
            {
                let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
                if at(i + 1 + hashes) == '"' {
                    let end = |j: usize| at(j) == '"' && (1..=hashes).all(|k| at(j + k) == '#');
                    i += hashes + 2;
                    while i < chars.len() && !end(i) {
                        i += 1;
                    }
                    i += hashes + 1;
                } else {
                    code.push('r');
                    i += 1;
                }
            }
            ('"', _) => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                code.push(' ');
            }
            ('\'', '\\') => {
                i += 3;
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (c, _) => {
                code.push(c);
                i += 1;
            }
        }
    }
    code
}

/// The code without the modules of unit tests that stand in the file.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find("#[cfg(test)]") {
        let (before, marked) = rest.split_at(start);
        kept.push_str(before);
        let head = marked.find(['{', ';']).unwrap_or(marked.len());
        let is_inline =
            marked[..head].split_whitespace().any(|word| word == "mod") && marked[head..].starts_with('{');
        let mut end = head + 1;
        if is_inline {
            let mut depth = 1;
            for (offset, c) in marked[end..].char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    end += offset + 1;
                    break;
                }
            }
        }
        rest = marked.get(end.min(marked.len())..).unwrap_or_default();
    }
    kept.push_str(rest);
    kept
}

/// Identifiers, `::`, and each other character by itself.
fn words_of(code: &str) -> Vec<String> {
    let chars: Vec<char> = code.chars().collect();
    let mut words = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if is_word(c) {
            let end = chars[i..].iter().position(|c| !is_word(*c)).map_or(chars.len(), |length| i + length);
            words.push(chars[i..end].iter().collect());
            i = end;
        } else if c == ':' && chars.get(i + 1) == Some(&':') {
            words.push("::".to_owned());
            i += 2;
        } else {
            if !c.is_whitespace() {
                words.push(c.to_string());
            }
            i += 1;
        }
    }
    words
}

/// All paths of two segments or more, and what `use` lines bring in, with their groups taken apart.
fn paths_of(words: &[String]) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut i = 0;
    while i < words.len() {
        let starts = is_name(&words[i]) && (i == 0 || words[i - 1] != "::");
        let is_use = i > 0 && words[i - 1] == "use";
        if starts && (is_use || words.get(i + 1).is_some_and(|next| next == "::")) {
            read_path(words, &mut i, String::new(), &mut paths);
        } else {
            i += 1;
        }
    }
    paths
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads one path from `i` on, with a group behind it if there is one.
fn read_path(words: &[String], i: &mut usize, start: String, paths: &mut BTreeSet<String>) {
    let mut path = start;
    let at = |i: usize| words.get(i).map_or("", String::as_str);
    loop {
        if at(*i) == "{" {
            *i += 1;
            while *i < words.len() && at(*i) != "}" {
                if is_name(at(*i)) {
                    read_path(words, i, path.clone(), paths);
                } else {
                    *i += 1;
                }
            }
            *i += 1;
            return;
        }
        if !is_name(at(*i)) {
            break;
        }
        // `self` in a group is the path before it.
        if at(*i) != "self" || path.is_empty() {
            if !path.is_empty() {
                path.push_str("::");
            }
            path.push_str(at(*i));
        }
        *i += 1;
        if at(*i) != "::" {
            break;
        }
        *i += 1;
    }
    if at(*i) == "as" {
        *i += 2;
    }
    paths.insert(path);
}

/// A path from the crate's root on, if it leads to something of this crate.
fn inside(file: &str, path: &str) -> Option<String> {
    let mut module: Vec<&str> = file.trim_end_matches(".rs").split('/').collect();
    if matches!(module.last(), Some(&"mod" | &"lib" | &"main")) {
        module.pop();
    }
    let mut segments = path.split("::").peekable();
    match *segments.peek()? {
        "crate" => {
            module.clear();
            segments.next();
        }
        "self" => drop(segments.next()),
        "super" => {
            while segments.next_if_eq(&"super").is_some() {
                module.pop();
            }
        }
        _ => return None,
    }
    Some(module.into_iter().chain(segments).collect::<Vec<_>>().join("::"))
}

fn starts_with_path(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.starts_with("::"))
}

fn room_of(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

fn longest<'a>(table: &'a [(&str, &'a [&'a str])], file: &str) -> Option<&'a (&'a str, &'a [&'a str])> {
    table.iter().filter(|(start, _)| file.starts_with(start)).max_by_key(|(start, _)| start.len())
}

// ---------------------------------------------------------------------------------------------------------------------
// The tree

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in entries.map(|entry| entry.expect("an entry of a folder can be read").path()) {
        if entry.is_dir() { files.extend(files_under(&entry)) } else { files.push(entry) }
    }
    files.sort();
    files
}

/// All of `src/`, as path from there and text.
fn sources() -> Vec<(String, String)> {
    let root = top().join("src");
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("it was found there").to_string_lossy().into_owned();
        (name, fs::read_to_string(&path).expect("sources are text"))
    };
    files_under(&root).into_iter().map(read).collect()
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn no_room_reaches_through_a_wall() {
    let rust = sources().into_iter().filter(|(file, _)| file.ends_with(".rs"));
    assert_none(&rust.flat_map(|(file, source)| check_walls(&file, &source)).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_to_be_done_in_the_source() {
    let found = sources().into_iter().flat_map(|(file, source)| check_leftovers(&file, &source));
    assert_none(&found.collect::<Vec<_>>());
}

#[test]
fn every_path_that_a_document_names_is_there() {
    let mut documents: Vec<String> = vec!["README.md".into()];
    for path in files_under(&top().join("docs")) {
        let name = path.strip_prefix(top()).expect("it was found there").to_string_lossy().into_owned();
        documents.extend(name.ends_with(".md").then_some(name));
    }
    let exists = |path: &str| top().join(path).exists();
    let read = |document: &String| fs::read_to_string(top().join(document)).expect("documents are text");
    let found = documents.iter().flat_map(|document| check_document(document, &read(document), &exists));
    assert_none(&found.collect::<Vec<_>>());
}

#[test]
fn every_line_of_the_tables_still_says_something() {
    let sources = sources();
    let homes = CRATES.iter().flat_map(|(_, homes)| homes.iter());
    for start in homes.chain(PURE) {
        assert!(
            sources.iter().any(|(file, _)| file.starts_with(start)),
            "no file is, or is under, src/{start}"
        );
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The checker can fail

#[test]
fn a_wall_is_seen_however_it_is_climbed() {
    // File, source: what is complained about.
    for (file, source, complaint) in [
        ("lock/locks.rs", "use crate::grpc::status;", "crate::grpc::status"),
        ("lock/locks.rs", "use super::super::grpc;", "crate::grpc"),
        ("lock/mod.rs", "use super::grpc;", "crate::grpc"),
        (
            "lock/locks.rs",
            "use crate::{ids, node::{batch::Batcher, operation}};",
            "crate::node::batch::Batcher",
        ),
        ("lock/hold.rs", "fn f() { crate::driver::drive() }", "crate::driver::drive"),
        ("lock/hold.rs", "use tokio::sync::mpsc as channel;", "tokio"),
        ("lock/watch.rs", "async fn f() { tokio::time::sleep(x).await }", "tokio"),
        ("node/batch.rs", "use fred::prelude::*;", "fred"),
        ("node/batch.rs", "use crate::register::Kind;", "crate::register::Kind"),
        ("driver.rs", "use crate::lock::Locks;", "crate::lock::Locks"),
        ("upkeep/membership.rs", "use crate::proto;", "crate::proto"),
        ("grpc/lock.rs", "use crate::driver::Cluster;", "crate::driver::Cluster"),
        ("grpc/lock.rs", "use crate::register::Registers;", "crate::register::Registers"),
        ("lock/change.rs", "use std::collections::HashMap;", "HashMap"),
        ("register/proposer.rs", "async fn f() {}", "async"),
        ("token.rs", "use std::time::{Duration, SystemTime};", "std::time::SystemTime"),
        ("nowhere/new.rs", "", "ROOMS"),
        ("lock/hold.rs", "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::grpc;", "crate::grpc"),
        ("lock/hold.rs", "const A: char = '\"'; use crate::grpc;", "crate::grpc"),
    ] {
        let complaints = check_walls(file, source);
        assert!(complaints.iter().any(|found| found.contains(complaint)), "{file}: {source}: {complaints:?}");
    }
}

#[test]
fn what_is_allowed_is_not_complained_about() {
    for (file, source) in [
        ("lock/locks.rs", "use crate::register::Registers; use super::{LockError, value::LockValue};"),
        ("lock/locks.rs", "use crate::driver::Cluster;"),
        ("lock/locks.rs", "//! Like [`crate::grpc::status`].\nconst A: &str = \"crate::grpc::status\";"),
        ("lock/locks.rs", "const A: &str = r#\"\" crate::grpc::status\"#;"),
        ("lock/hold.rs", "#[cfg(test)]\nmod tests { use crate::grpc; fn f() { tokio::spawn(x) } }"),
        ("lock/mod.rs", "pub mod hold; pub use hold::Hold; fn f<'a>(x: &'a str) {}"),
        ("grpc/status.rs", "use crate::register::RegisterError; use tonic::Status;"),
        ("server.rs", "use crate::{grpc, node, lock}; use tokio::net::TcpListener;"),
        ("register/proposer_tests.rs", "use std::collections::HashMap;"),
    ] {
        assert_eq!(check_walls(file, source), Vec::<String>::new(), "{file}: {source}");
    }
}

#[test]
fn leftovers_are_found() {
    for word in LEFTOVERS {
        assert_eq!(check_leftovers("a.rs", &format!("fn f() {{ }} // {word}(later)")).len(), 1, "{word}");
    }
    assert!(check_leftovers("a.rs", "fn method() {}").is_empty());
}

#[test]
fn a_document_that_names_what_is_gone_is_found() {
    let exists = |path: &str| ["src/a.rs", "docs/b.md", "LICENSE"].contains(&path);
    let check = |text: &str| check_document("docs/x.md", text, &exists);
    assert!(
        check("See `src/a.rs`, [b](b.md#c), [l](../LICENSE), [s](https://example.org/src/) and `x/y`.")
            .is_empty()
    );
    assert_eq!(check("See `src/gone.rs`."), ["docs/x.md names src/gone.rs, which is not there"]);
    assert_eq!(check("Run `tests/gone --fast`."), ["docs/x.md names tests/gone, which is not there"]);
    assert_eq!(check("See [it](gone.md)."), ["docs/x.md names docs/gone.md, which is not there"]);
}
