//! The real binary against a daemon with TLS and rules of access, in this process: what it shows, and what it says when that is
//! not enough.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/in_process.rs"]
mod in_process;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use certificates::Authority;
use in_process::{InProcess, told};
use majorityd::access::token;
use majorityd::config::{ClientAuth, Settings};
use tempfile::TempDir;

const TOKEN: &str = "mjd_hunter2";

struct Stage {
    daemon: InProcess,
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (ours, clients, others) =
            (Authority::new("ours"), Authority::new("clients"), Authority::new("others"));
        let mut settings = Settings::default();
        let (certificate, key) = ours.server().write(folder.path(), "server");
        (settings.grpc.tls.cert_file, settings.grpc.tls.key_file) = (Some(certificate), Some(key));
        (settings.grpc.tls.client_ca_file, settings.grpc.tls.client_auth) =
            (Some(at("clients.crt")), ClientAuth::Optional);
        settings.access.file = Some(at("access.toml"));
        for (name, text) in [
            ("ours.crt", &ours.pem),
            ("clients.crt", &clients.pem),
            ("others.crt", &others.pem),
            ("token", &format!("{TOKEN}\n")),
            ("wrong", &"mjd_somebody".to_owned()),
            ("empty", &"\n".to_owned()),
        ] {
            std::fs::write(at(name), text).unwrap();
        }
        clients.client(&["ops.example"]).write(folder.path(), "ops");
        let rules = format!(
            "[[identity]]\nname = \"billing\"\ntoken_sha256 = [\"{}\"]\n\
             grants = [{{ services = [\"keys\", \"locks\"], prefixes = [\"billing/\"], rights = [\"read\", \"use\"] }}]\n\
             [[identity]]\nname = \"ops\"\ncertificates = [\"ops.example\"]\n\
             grants = [{{ services = [\"cluster\"], rights = [\"read\"] }}]\n",
            token::hash_text(&token::hash(TOKEN))
        );
        std::fs::write(at("access.toml"), rules).unwrap();
        Self { daemon: InProcess::embedded(&settings), folder }
    }

    fn command(&self, scheme: &str, arguments: &[&str], files: &[(&str, &str)]) -> Command {
        let mut command = self.daemon.command(arguments);
        command.env("MAJORITYD_ENDPOINT", format!("{scheme}://{}", self.daemon.address));
        for (variable, name) in files {
            command.env(variable, self.folder.path().join(name));
        }
        command
    }

    /// Through the environment, as a deployment has it.
    fn run(&self, arguments: &[&str], files: &[(&str, &str)]) -> (i32, String, String) {
        told(self.command("https", arguments, files).output().unwrap())
    }
}

const TRUST: (&str, &str) = ("MAJORITYD_TLS_CA", "ours.crt");

#[test]
fn a_token_file_and_a_client_certificate_open_the_door() {
    let stage = Stage::new();
    let with_token = [TRUST, ("MAJORITYD_TOKEN_FILE", "token")];
    let set = stage.run(&["kv", "set", "billing/a", "1"], &with_token);
    assert_eq!(set.0, 0, "{set:?}");
    let (code, out, _) = stage.run(&["kv", "get", "billing/a"], &with_token);
    assert_eq!((code, out.trim()), (0, "1"));
    let held = stage.run(&["lock", "billing/l", "--", "true"], &with_token);
    assert_eq!(held.0, 0, "{held:?}");
    // The token itself in the environment.
    let mut command = stage.command("https", &["kv", "get", "billing/a"], &[TRUST]);
    assert_eq!(told(command.env("MAJORITYD_TOKEN", TOKEN).output().unwrap()).0, 0);
    let shown = [TRUST, ("MAJORITYD_TLS_CERT", "ops.crt"), ("MAJORITYD_TLS_KEY", "ops.key")];
    let status = stage.run(&["status"], &shown);
    assert_eq!(status.0, 0, "{status:?}");
    // As flags, too.
    let path = |name: &str| stage.folder.path().join(name).to_str().unwrap().to_owned();
    let flags = ["kv", "get", "billing/a", "--tls-ca", &path("ours.crt"), "--token-file", &path("token")];
    assert_eq!(stage.run(&flags, &[]).0, 0);
}

#[test]
fn what_is_not_enough_is_told_with_what_to_do_and_never_with_the_token() {
    let stage = Stage::new();
    let get = &["kv", "get", "billing/a"][..];
    let token = ("MAJORITYD_TOKEN_FILE", "token");
    for (arguments, files, exit, expected) in [
        (get, &[TRUST][..], 1, &["NO_CREDENTIALS", "--token-file"][..]),
        (get, &[TRUST, ("MAJORITYD_TOKEN_FILE", "wrong")], 1, &["UNKNOWN_CREDENTIALS", "access.file"]),
        (&["kv", "get", "orders"], &[TRUST, token], 1, &["ACCESS_DENIED", "billing has no", "\"orders\""]),
        (&["locks", "list"], &[TRUST, token], 1, &["ACCESS_DENIED", "all names that start with \"\""]),
        (&["status"], &[TRUST, token], 1, &["ACCESS_DENIED", "read for cluster"]),
        (get, &[("MAJORITYD_TLS_CA", "others.crt"), token], 69, &["UnknownIssuer", "--tls-ca"]),
        (get, &[("MAJORITYD_TLS_CA", "token"), token], 64, &["must have a certificate in PEM"]),
        (get, &[("MAJORITYD_TLS_CA", "missing"), token], 64, &["can't read", "missing"]),
        (get, &[TRUST, ("MAJORITYD_TOKEN_FILE", "missing")], 64, &["can't read the token"]),
        (get, &[TRUST, ("MAJORITYD_TOKEN_FILE", "empty")], 64, &["one line"]),
        (get, &[TRUST, ("MAJORITYD_TLS_CERT", "ops.crt")], 64, &["--tls-cert needs --tls-key"]),
        (
            get,
            &[TRUST, ("MAJORITYD_TLS_CERT", "ops.crt"), ("MAJORITYD_TLS_KEY", "server.key")],
            64,
            &["server.key must be the key of the certificate"],
        ),
    ] {
        let (code, out, err) = stage.run(arguments, files);
        assert_eq!(code, exit, "{arguments:?} {files:?}: {err}");
        for part in expected {
            assert!(err.contains(part), "{part}: {err}");
        }
        assert!(!format!("{out}{err}").contains("hunter2") && !err.contains("mjd_somebody"), "{err}");
    }
}

#[test]
fn plaintext_to_a_port_with_tls_is_told_as_that() {
    let stage = Stage::new();
    let (code, _, err) = told(stage.command("http", &["kv", "get", "billing/a"], &[]).output().unwrap());
    assert_eq!(code, 69, "{err}");
    assert!(err.contains("https://"), "{err}");
    let (code, _, err) = told(stage.command("http", &["kv", "get", "billing/a"], &[TRUST]).output().unwrap());
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("is not encrypted"), "{err}");
}

fn majorityd_token(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_majorityd"));
    told(command.arg("token").args(arguments).stdin(Stdio::null()).output().unwrap())
}

/// The line of a token, as a file of rules has it.
fn line_of(token: &str) -> String {
    format!("token_sha256 = [\"{}\"]", token::hash_text(&token::hash(token)))
}

#[test]
fn a_token_is_made_with_the_line_by_which_it_is_known() {
    let (code, out, err) = majorityd_token(&[]);
    assert_eq!((code, err.as_str()), (0, ""));
    let [token, line] = out.lines().collect::<Vec<_>>()[..] else { panic!("{out}") };
    assert!(token.starts_with("mjd_") && token.len() == 47, "{token}");
    assert_eq!(line, line_of(token));
    assert_ne!(majorityd_token(&[]).1, out);
}

#[test]
fn a_token_in_a_file_is_for_its_owner_alone_and_not_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let path = file.to_str().unwrap();
    let (code, out, _) = majorityd_token(&["--write", path]);
    let token = std::fs::read_to_string(&file).unwrap();
    assert_eq!((code, out.trim()), (0, line_of(token.trim()).as_str()));
    assert_eq!(Path::new(path).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    // Not over one that is there.
    let (code, _, err) = majorityd_token(&["--write", path]);
    assert!(code == 1 && err.contains(path), "{err}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), token);
    assert_eq!(majorityd_token(&["--hash", path]).1, out);
}
