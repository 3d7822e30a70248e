//! The settings that the files of `deploy/` give to daemons are settings that a daemon takes.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

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

/// Settings in an environment, with certificates made for the test where the files would be mounted.
fn settings_with_tls(file: Option<&str>, mut environment: Vec<(OsString, OsString)>) -> Settings {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for (_, value) in &mut environment {
        let path = PathBuf::from(&*value);
        let Ok(name) = path.strip_prefix("/etc/majorityd-tls") else { continue };
        let place = folder.path().join(name);
        let is_key = name.extension().is_some_and(|extension| extension == "key");
        fs::write(&place, if is_key { made.signing_key.serialize_pem() } else { made.cert.pem() }).unwrap();
        *value = place.into();
    }
    settings(file, environment)
}

#[test]
fn kubernetes_with_tls_gives_good_settings() {
    let text = fs::read_to_string(path_of("deploy/kubernetes-tls/daemons.yaml")).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let variable = |pair: &[&str]| {
        let name = pair[0].strip_prefix("- name: ").filter(|name| name.starts_with("MAJORITYD__"))?;
        let value = pair[1].strip_prefix("value: ")?;
        Some((name.into(), value.trim_matches('"').into()))
    };
    let environment: Vec<(OsString, OsString)> = lines.windows(2).filter_map(variable).collect();
    assert_eq!(environment.len(), 5);
    let settings = settings_with_tls(Some("deploy/kubernetes/majorityd.toml"), environment);
    assert!(!settings.grpc.allow_plaintext && settings.grpc.tls.cert_file.is_some());
}

#[test]
fn compose_with_tls_gives_good_settings() {
    let environment: Vec<_> =
        compose("docker-compose.yml").into_iter().chain(compose("deploy/compose.tls.yml")).collect();
    assert_eq!(environment.len(), 4 + 3);
    let settings = settings_with_tls(None, environment);
    assert!(!settings.grpc.allow_plaintext && settings.grpc.tls.cert_file.is_some());
}

#[test]
fn kubernetes_gives_good_settings() {
    let settings = settings(Some("deploy/kubernetes/majorityd.toml"), Vec::new());
    assert_eq!(settings.nodes.addresses.len(), 3);
    // Volumes may vanish unseen there.
    assert!(!settings.cluster.bootstrap && settings.grpc.allow_plaintext);
}

/// What a file of Compose gives to daemons.
fn compose(file: &str) -> Vec<(OsString, OsString)> {
    let text = fs::read_to_string(path_of(file)).unwrap();
    let lines = text.lines().filter_map(|line| line.trim().split_once(": "));
    let ours = lines.filter(|(name, _)| name.starts_with("MAJORITYD__"));
    // Of `${NAME:-value}` the value.
    let plain = |value: &str| value.rsplit(":-").next().unwrap_or(value).trim_matches(['"', '}']).to_owned();
    ours.map(|(name, value)| (name.into(), plain(value).into())).collect()
}

#[test]
fn compose_gives_good_settings() {
    let environment = compose("docker-compose.yml");
    assert_eq!(environment.len(), 4);
    let settings = settings(None, environment);
    assert_eq!(settings.nodes.addresses.len(), 3);
    assert!(settings.cluster.bootstrap && settings.grpc.allow_plaintext);
}
