//! The settings that the files of `deploy/` give to daemons are settings that a daemon takes.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use majorityd::config::validate::NodesFrom;
use majorityd::config::{Settings, Sources, load};

fn path_of(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn settings(file: Option<&str>, environment: Vec<(OsString, OsString)>) -> Settings {
    let sources = Sources { file: file.map(path_of), environment, flags: Vec::new() };
    load(&sources, NodesFrom::Addresses).unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[test]
fn kubernetes_gives_good_settings() {
    let settings = settings(Some("deploy/kubernetes/majorityd.toml"), Vec::new());
    assert_eq!(settings.nodes.addresses.len(), 3);
    // Volumes may vanish unseen there.
    assert!(!settings.cluster.bootstrap && settings.grpc.allow_plaintext);
}

#[test]
fn compose_gives_good_settings() {
    let text = fs::read_to_string(path_of("docker-compose.yml")).unwrap();
    let lines = text.lines().filter_map(|line| line.trim().split_once(": "));
    let ours = lines.filter(|(name, _)| name.starts_with("MAJORITYD__"));
    // Of `${NAME:-value}` the value.
    let plain = |value: &str| value.rsplit(":-").next().unwrap_or(value).trim_matches(['"', '}']).to_owned();
    let environment: Vec<_> = ours.map(|(name, value)| (name.into(), plain(value).into())).collect();
    assert_eq!(environment.len(), 4);
    let settings = settings(None, environment);
    assert_eq!(settings.nodes.addresses.len(), 3);
    assert!(settings.cluster.bootstrap && settings.grpc.allow_plaintext);
}
