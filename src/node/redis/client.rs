//! What is asked of fred: a connection that does nothing by itself, a handful of commands, and what its errors mean.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fred::prelude::{
    Builder, Client, ClientLike, Config, ConfigInterface, Error, ErrorKind, LuaInterface, PubsubInterface,
    Server, ServerConfig, TcpConfig, TlsConnector,
};
use fred::rustls::{ClientConfig, RootCertStore, crypto};
use fred::rustls_native_certs::load_native_certs;
use fred::types::{ConnectHandle, CustomCommand, RespVersion, Value};

use super::RedisOptions;
use crate::config::NodeServer;
use crate::node::CallError;
use crate::node::handshake::{Inspection, Refusal};
use crate::node::peek::{Peeked, Question};
use crate::tls;

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server can't be reached, or not yet.
    Unreachable(Arc<str>),
    /// It must not be used as it is.
    Refused(Refusal),
}

/// Hints that may wait to be read; with more the oldest are lost, which hints may be.
const HINTS_WAITING_MAX: usize = 8192;

/// One fred client with its one connection, which ends with this value. fred's task holds the client and so would live
/// for ever; it is aborted, because asking it to quit would wait for a server that may hang.
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) task: ConnectHandle,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects once. There is no reconnect policy, so fred never connects again and has nothing to replay.
/// Must not be dropped half way, for then fred's task would stay; it ends by its own timeouts.
pub(super) async fn connect(options: &RedisOptions) -> Result<Connected, Failure> {
    let client = build(options)?;
    match client.init().await {
        Ok(task) => Ok(Connected { client, task }),
        Err(error) => Err(connect_failure(&error)),
    }
}

fn build(options: &RedisOptions) -> Result<Client, Failure> {
    let address = &options.address;
    let server = match &address.server {
        NodeServer::Tcp { host, port } => {
            ServerConfig::Centralized { server: Server::new(host.clone(), *port) }
        }
        NodeServer::Unix { path } => ServerConfig::Unix { path: path.clone() },
    };
    let config = Config {
        fail_fast: true,
        username: options.username.clone(),
        password: options.password.as_ref().map(|password| password.expose().to_owned()),
        server,
        version: RespVersion::RESP3,
        database: (address.database != 0).then_some(address.database),
        tls: if address.tls { Some(trust(options)?.into()) } else { None },
        ..Config::default()
    };
    let timeout = options.connect_timeout;
    Builder::from_config(config)
        .with_connection_config(|connection| {
            connection.connection_timeout = timeout;
            connection.internal_command_timeout = timeout;
            connection.max_command_attempts = 1;
            connection.max_redirections = 0;
            connection.reconnect_on_auth_error = false;
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .with_performance_config(|performance| {
            // Timeouts are set outside, where they end the connection too.
            performance.default_command_timeout = Duration::ZERO;
            performance.broadcast_channel_capacity = HINTS_WAITING_MAX;
        })
        .build()
        .map_err(|error| unreachable(&words(&error)))
}

fn trust(options: &RedisOptions) -> Result<TlsConnector, Failure> {
    tls_config(options).map(TlsConnector::from)
}

/// Whom to trust with TLS, and what to show. Files are read for each connection, so a new one has what they have then.
pub(super) fn tls_config(options: &RedisOptions) -> Result<ClientConfig, Failure> {
    let roots = match &options.ca_file {
        Some(file) => {
            let unfit = |rule: &str| unreachable(&format!("CA file {}: {rule}", file.display()));
            let text = std::fs::read(file).map_err(|error| unfit(&error.to_string()))?;
            tls::roots(&text).map_err(|error| unfit(&error.rule))?
        }
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(load_native_certs().certs);
            roots
        }
    };
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unreachable(&error.to_string()))?
        .with_root_certificates(roots);
    Ok(match &options.client_pair {
        Some((certificate, key)) => {
            let tls::Pair { chain, key } = client_pair(certificate, key)?;
            config.with_client_auth_cert(chain, key).map_err(|error| unreachable(&error.to_string()))?
        }
        None => config.with_no_client_auth(),
    })
}

fn client_pair(certificate: &Path, key: &Path) -> Result<tls::Pair, Failure> {
    let read = |file: &Path| {
        std::fs::read(file).map_err(|error| unreachable(&format!("{}: {error}", file.display())))
    };
    tls::pair(&read(certificate)?, &read(key)?).map_err(|unfit| {
        let file = |part| if part == tls::Part::Key { key } else { certificate };
        let told = unfit.iter().map(|unfit| format!("{} {}", file(unfit.part).display(), unfit.rule));
        unreachable(&told.collect::<Vec<_>>().join("; "))
    })
}

fn unreachable(reason: &str) -> Failure {
    Failure::Unreachable(reason.into())
}

// ---------------------------------------------------------------------------------------------------------------------
// Commands

/// What a server says about itself.
pub(super) async fn inspect(client: &Client, assume_noeviction: bool) -> Result<Inspection, Failure> {
    let info: String = match client.info(None).await {
        Ok(info) => info,
        Err(error) => return Err(failure("INFO", &error)),
    };
    let field = |name: &str| info_field(&info, name);
    let mut maxmemory_policy = setting(client, "maxmemory-policy").await?;
    if maxmemory_policy.is_none() && assume_noeviction {
        maxmemory_policy = Some("noeviction".to_owned());
    }
    Ok(Inspection {
        redis_version: field("redis_version"),
        run_id: field("run_id"),
        role: field("role"),
        cluster_enabled: field("cluster_enabled").is_some_and(|enabled| enabled != "0"),
        maxmemory_policy,
    })
}

/// One field of what INFO replied.
pub(super) fn info_field(info: &str, name: &str) -> Option<String> {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned())
}

/// One setting by CONFIG GET; `None` where the server will not tell.
pub(super) async fn setting(client: &Client, name: &'static str) -> Result<Option<String>, Failure> {
    match client.config_get::<HashMap<String, String>, _>(name).await {
        Ok(mut found) => Ok(found.remove(name)),
        Err(error) if reply_code(&error).is_some() => Ok(None),
        Err(error) => Err(failure("CONFIG GET", &error)),
    }
}

/// A string key; `None` where there is none.
pub(super) async fn get(client: &Client, key: &str) -> Result<Option<Bytes>, Failure> {
    let get = CustomCommand::new_static("GET", None::<u16>, false);
    client.custom(get, vec![key]).await.map_err(|error| failure("GET", &error))
}

/// The server's clock, in microseconds of Unix time.
pub(super) async fn time_us(client: &Client) -> Result<u64, Failure> {
    let time = CustomCommand::new_static("TIME", None::<u16>, false);
    let (seconds, micros): (u64, u64) =
        client.custom(time, Vec::<String>::new()).await.map_err(|error| failure("TIME", &error))?;
    Ok(unix_us(seconds, micros))
}

/// What TIME says; a server may say anything.
fn unix_us(seconds: u64, micros: u64) -> u64 {
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}

/// Runs a script once.
pub(super) async fn eval(client: &Client, script: &str, argument: &str) -> Result<Bytes, Failure> {
    let reply = client.eval(script, Vec::<String>::new(), vec![argument]).await;
    reply.map_err(|error| failure("EVAL", &error))
}

/// Loads a script; its digest.
pub(super) async fn load(client: &Client, script: &str) -> Result<String, Failure> {
    client.script_load(script).await.map_err(|error| failure("SCRIPT LOAD", &error))
}

/// Runs a loaded script.
pub(super) async fn evalsha(client: &Client, digest: &str, argument: Bytes) -> Result<Bytes, Error> {
    client.evalsha(digest, Vec::<String>::new(), vec![argument]).await
}

/// Shows what is stored, and the clock before it; where the script is not loaded, the error of EVALSHA.
pub(super) async fn peek(client: &Client, digest: &str, question: &Question) -> Result<Peeked, Error> {
    let all = client.pipeline();
    let time = CustomCommand::new_static("TIME", None::<u16>, false);
    let _: () = all.custom(time, Vec::<Value>::new()).await?;
    let exists = CustomCommand::new_static("SCRIPT EXISTS", None::<u16>, false);
    let _: () = all.custom(exists, vec![digest]).await?;
    let mget = CustomCommand::new_static("MGET", None::<u16>, false);
    let keys: Vec<Value> = question.keys().iter().map(|key| Value::Bytes(key.clone())).collect();
    let _: () = all.custom(mget, keys).await?;
    let ((seconds, micros), (loaded,), values): ((u64, u64), (u64,), Vec<Value>) = all.all().await?;
    if loaded == 0 {
        return Err(Error::new(ErrorKind::Unknown, NOSCRIPT));
    }
    let bytes = |value| match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::String(text) => Some(text.into_inner()),
        _ => None,
    };
    let values = values.into_iter().map(bytes).collect();
    Ok(Peeked { now_us: unix_us(seconds, micros), values })
}

/// What a server says where the script is not loaded.
const NOSCRIPT: &str = "NOSCRIPT No matching script. Please use EVAL.";

/// Subscribes, or no longer. fred takes these commands for answered once they are sent, and gives an error reply to the
/// command that waits next; so a PING follows, and nothing else may run on this connection.
pub(super) async fn subscribe(client: &Client, channel: &str, on: bool) -> Result<(), Failure> {
    let asked = if on { client.subscribe(channel).await } else { client.unsubscribe(channel).await };
    let answered = match asked {
        Ok(()) => client.ping::<String>(None).await.map(|_| ()),
        Err(error) => Err(error),
    };
    answered.map_err(|error| failure(if on { "SUBSCRIBE" } else { "UNSUBSCRIBE" }, &error))
}

// ---------------------------------------------------------------------------------------------------------------------
// Errors

/// The error in words: fred passes on errors of the system and of TLS in their debug form.
pub(super) fn words(error: &Error) -> String {
    let details = error.details();
    if let Some(words) = words_of_tls(details) {
        return words;
    }
    let of_system = details.split_once("message: \"").and_then(|(_, rest)| rest.split_once('"'));
    of_system.map_or(details, |(words, _)| words).to_owned()
}

/// What went wrong in a handshake, and where to look.
fn words_of_tls(details: &str) -> Option<String> {
    let inside = |name: &str| {
        let (_, rest) = details.split_once(name)?;
        Some(rest.trim_end_matches([' ', '}']).trim_end_matches(')'))
    };
    if let Some(why) = inside("InvalidCertificate(") {
        return Some(format!("its certificate is not trusted: {why} (setting nodes.tls.ca_file)"));
    }
    if let Some(alert) = inside("AlertReceived(") {
        let files = "nodes.tls.cert_file and key_file";
        return Some(format!("it refused the handshake of TLS: {alert} (for a client certificate: {files})"));
    }
    inside("InvalidMessage(").map(|why| format!("it does not speak TLS: {why} (is redis:// meant?)"))
}

/// The code of an error that the server replied, such as `NOSCRIPT`; `None` for what went wrong on the way.
fn reply_code(error: &Error) -> Option<&str> {
    match error.kind() {
        ErrorKind::IO | ErrorKind::Timeout | ErrorKind::Canceled | ErrorKind::Tls => return None,
        _ => {}
    }
    let code = error.details().split_whitespace().next()?;
    let is_code = code.len() > 1 && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    is_code.then_some(code)
}

/// Whether the server's rules for this user forbid what was asked.
pub(super) fn is_denied(error: &Error) -> bool {
    reply_code(error) == Some("NOPERM")
}

fn connect_failure(error: &Error) -> Failure {
    // Before Redis 6 there was no HELLO.
    if reply_code(error) == Some("ERR") && error.details().contains("unknown command") {
        return Failure::Refused(Refusal::TooOld { found: "5 or earlier".to_owned() });
    }
    let command = match reply_code(error) {
        Some("WRONGPASS" | "NOAUTH") => "AUTH",
        _ => "the connection (HELLO, SELECT)",
    };
    failure(command, error)
}

/// What it means that a command of the handshake failed.
fn failure(command: &'static str, error: &Error) -> Failure {
    match reply_code(error) {
        // These pass by themselves.
        None | Some("LOADING" | "BUSY" | "MASTERDOWN") => unreachable(&words(error)),
        Some(_) => Failure::Refused(Refusal::Denied { command, message: error.details().to_owned() }),
    }
}

/// What it means that a batch failed, and whether the connection must be made anew.
///
/// A server refuses a command whole before it runs it, with nothing but a code and a sentence. What a command *inside*
/// the script raised is marked with the script's name, and comes after others that may have been done.
pub(super) fn call_error(error: &Error) -> (CallError, bool) {
    let details = error.details();
    let code = reply_code(error);
    let inside = details.contains("user_script") || details.contains("script: ");
    let unsent = !inside
        && matches!(
            code,
            Some(
                "NOSCRIPT"
                    | "READONLY"
                    | "LOADING"
                    | "MASTERDOWN"
                    | "OOM"
                    | "NOAUTH"
                    | "NOPERM"
                    | "BUSY"
                    | "MISCONF"
            )
        );
    // The server works and stays who it is.
    let reset = !matches!(code, Some("OOM" | "BUSY" | "MISCONF"));
    let message: Arc<str> = words(error).into();
    (if unsent { CallError::Unsent(message) } else { CallError::Lost(message) }, reset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_with_tls_is_told_with_where_to_look() {
        for (details, expected) in [
            (
                "Custom { kind: InvalidData, error: InvalidCertificate(UnknownIssuer) }",
                "its certificate is not trusted: UnknownIssuer (setting nodes.tls.ca_file)",
            ),
            (
                "Custom { kind: InvalidData, error: AlertReceived(CertificateRequired) }",
                "it refused the handshake of TLS: CertificateRequired (for a client certificate: nodes.tls.cert_file and key_file)",
            ),
            (
                "Custom { kind: InvalidData, error: InvalidMessage(InvalidContentType) }",
                "it does not speak TLS: InvalidContentType (is redis:// meant?)",
            ),
            (
                "Os { code: 111, kind: ConnectionRefused, message: \"Connection refused\" }",
                "Connection refused",
            ),
        ] {
            assert_eq!(words(&Error::new(ErrorKind::IO, details)), expected);
        }
    }

    #[test]
    fn only_what_the_server_refused_whole_was_not_sent() {
        let cases = [
            // kind, details, unsent, reset
            (ErrorKind::Unknown, "NOSCRIPT No matching script. Please use EVAL.", true, true),
            (ErrorKind::Unknown, "READONLY You can't write against a read only replica.", true, true),
            (ErrorKind::Unknown, "LOADING Redis is loading the dataset in memory", true, true),
            (ErrorKind::Auth, "NOAUTH Authentication required.", true, true),
            (
                ErrorKind::Unknown,
                "NOPERM this user has no permissions to run the 'evalsha' command",
                true,
                true,
            ),
            (ErrorKind::Unknown, "BUSY Redis is busy running a script.", true, false),
            (ErrorKind::Unknown, "OOM command not allowed when used memory > 'maxmemory'.", true, false),
            (ErrorKind::Unknown, "OOM command not allowed. script: 1f, on @user_script:9.", false, false),
            (ErrorKind::Unknown, "MASTERDOWN Link is down. script: 1f, on @user_script:9.", false, true),
            (ErrorKind::Unknown, "ERR user_script:1: Bad data format in input.", false, true),
            (ErrorKind::IO, "NOSCRIPT is not what an interrupted connection says", false, true),
            (ErrorKind::Canceled, "Canceled.", false, true),
            (ErrorKind::Timeout, "Request timed out.", false, true),
        ];
        for (kind, details, unsent, reset) in cases {
            let (error, resets) = call_error(&Error::new(kind, details));
            assert_eq!((matches!(error, CallError::Unsent(_)), resets), (unsent, reset), "{details}");
        }
    }
}
