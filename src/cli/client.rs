//! What the commands that call a daemon share: where it is, what it is shown, how errors are told, and their exit codes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::{EXIT_FAILURE, EXIT_UNAVAILABLE, EXIT_USAGE};
use crate::limits;
use crate::proto::v1::cluster_service_client::ClusterServiceClient;
use crate::proto::v1::kv_service_client::KvServiceClient;
use crate::proto::v1::lock_service_client::LockServiceClient;
use crate::proto::v1::queue_service_client::QueueServiceClient;
use crate::tls::{self, Part, Unfit};

/// A connection that shows a token with every call, if there is one.
pub type Connection = InterceptedService<Channel, Bearer>;

/// A client of the lock service.
pub type Client = LockServiceClient<Connection>;

/// A client of the key service.
pub type KvClient = KvServiceClient<Connection>;

/// A client of the queue service.
pub type QueueClient = QueueServiceClient<Connection>;

/// Exit code: not now, perhaps later (EX_TEMPFAIL).
pub const EXIT_TRY_LATER: u8 = 75;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection is asked whether it is alive; a daemon allows this from 8 s on.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long it may take to say so.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Deadline of a call that answers at once.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer: one item with the largest payload that a configuration may allow, and what is around it.
const ANSWER_BYTES_MAX: usize = limits::VALUE_BYTES_CEILING + (4 << 20);

/// Every reason, with what to do about it.
const ERRORS: &str = include_str!("../../docs/errors.md");

/// Which daemon to ask.
#[derive(Clone, Debug, Args)]
pub struct ClientFlags {
    /// The daemon: https://HOST:PORT, http://HOST:PORT or unix:///PATH; with commas, several to fall back on
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "MAJORITYD_ENDPOINT",
        default_value = "http://127.0.0.1:7480",
        value_delimiter = ',',
        value_parser = parse_endpoint
    )]
    pub endpoint: Vec<Target>,

    /// Certificates (PEM) that sign that of the daemon, instead of those of this machine; for https://
    #[arg(long, global = true, value_name = "FILE", env = "MAJORITYD_TLS_CA")]
    pub tls_ca: Option<PathBuf>,

    /// Certificate (PEM) to show to the daemon, with its chain; for https://
    #[arg(long, global = true, value_name = "FILE", env = "MAJORITYD_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,

    /// Private key (PEM) of that certificate
    #[arg(long, global = true, value_name = "FILE", env = "MAJORITYD_TLS_KEY")]
    pub tls_key: Option<PathBuf>,

    /// File with the token to show to the daemon; the token itself can be in MAJORITYD_TOKEN
    #[arg(long, global = true, value_name = "FILE", env = "MAJORITYD_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// The token itself, for where there is no file. It is no flag: others see the command lines of this machine.
const TOKEN_VARIABLE: &str = "MAJORITYD_TOKEN";

impl ClientFlags {
    /// The token, if any is given.
    fn token(&self) -> Result<Bearer, String> {
        let from_environment = std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
        let token = match (&self.token_file, from_environment) {
            (Some(_), Some(_)) => {
                return Err(format!("a token file and {TOKEN_VARIABLE} are given; one of them is enough"));
            }
            (Some(file), None) => read_token(file)?,
            (None, Some(token)) => token,
            (None, None) => return Ok(Bearer(None)),
        };
        let mut value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "the token has a character that no token has".to_owned())?;
        // So that nothing prints it.
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }

    /// What to trust and to show where the daemon is asked by `https://`.
    fn tls(&self) -> Result<ClientTlsConfig, String> {
        let read = |file: &Path| {
            std::fs::read(file).map_err(|error| format!("can't read {}: {error}", file.display()))
        };
        let mut config = ClientTlsConfig::new();
        config = match &self.tls_ca {
            Some(file) => {
                let text = read(file)?;
                tls::roots(&text).map_err(|unfit| format!("{} {}", file.display(), unfit.rule))?;
                config.ca_certificate(Certificate::from_pem(text))
            }
            None => config.with_enabled_roots(),
        };
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let (cert_text, key_text) = (read(certificate)?, read(key)?);
                let told = |Unfit { part, rule }: &Unfit| {
                    let file = if *part == Part::Key { key } else { certificate };
                    format!("{} {rule}", file.display())
                };
                tls::pair(&cert_text, &key_text)
                    .map_err(|unfit| unfit.iter().map(told).collect::<Vec<_>>().join("; "))?;
                Ok(config.identity(Identity::from_pem(cert_text, key_text)))
            }
            (None, None) => Ok(config),
            (Some(_), None) => Err("--tls-cert needs --tls-key".to_owned()),
            (None, Some(_)) => Err("--tls-key needs --tls-cert".to_owned()),
        }
    }
}

/// The token in a file; the newline at its end is not part of it.
pub fn read_token(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| format!("can't read the token in {}: {error}", file.display()))?;
    let token = text.trim_end_matches(['\n', '\r']);
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(format!("{} must have a token on its one line", file.display()));
    }
    Ok(token.to_owned())
}

/// Shows a token with every call.
#[derive(Clone, Debug)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A daemon's address, checked.
#[derive(Clone, Debug)]
pub struct Target {
    endpoint: Endpoint,
    text: String,
}

impl Target {
    fn is_encrypted(&self) -> bool {
        self.text.starts_with("https://")
    }

    /// Nobody on a network sees what is sent there.
    fn is_private(&self) -> bool {
        let host = self.endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
        let loopback = host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
        self.is_encrypted() || self.text.starts_with("unix://") || host == "localhost" || loopback
    }
}

fn parse_endpoint(text: &str) -> Result<Target, String> {
    let socket = text.strip_prefix("unix://").is_some_and(|path| path.starts_with('/'));
    if !socket && !text.starts_with("http://") && !text.starts_with("https://") {
        return Err("https://HOST:PORT, http://HOST:PORT or unix:///PATH is needed".to_owned());
    }
    let endpoint = Endpoint::from_shared(text.to_owned())
        .map_err(|error| super::chain(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(Target { endpoint, text: text.to_owned() })
}

/// The daemons to ask, one at a time. Each turn makes a connection of its own, so that one that hangs is left behind.
#[derive(Clone, Debug)]
pub struct Daemons {
    targets: Vec<Target>,
    bearer: Bearer,
    turn: usize,
}

impl Daemons {
    /// Those that the flags name, the first one first. What is wrong with the flags is told to people.
    ///
    /// # Errors
    /// The exit code.
    pub fn new(flags: &ClientFlags) -> Result<Self, u8> {
        Self::checked(flags).map_err(|what| {
            eprintln!("majorityd: {what}");
            EXIT_USAGE
        })
    }

    fn checked(flags: &ClientFlags) -> Result<Self, String> {
        let bearer = flags.token()?;
        let mut targets = flags.endpoint.clone();
        let wants_tls = flags.tls_ca.is_some() || flags.tls_cert.is_some() || flags.tls_key.is_some();
        if let Some(plain) = targets.iter().find(|target| wants_tls && target.text.starts_with("http://")) {
            return Err(format!(
                "{} is not encrypted; --tls-ca, --tls-cert and --tls-key are for https://",
                plain.text
            ));
        }
        if targets.iter().any(Target::is_encrypted) {
            let config = flags.tls()?;
            for target in targets.iter_mut().filter(|target| target.is_encrypted()) {
                let endpoint = target.endpoint.clone().tls_config(config.clone());
                target.endpoint = endpoint.map_err(|error| super::chain(&error))?;
            }
        }
        let exposed = |target: &&Target| bearer.0.is_some() && !target.is_private();
        if let Some(target) = targets.iter().find(exposed) {
            eprintln!("majorityd: warning: the token is sent to {} without encryption", target.text);
        }
        Ok(Self { targets, bearer, turn: 0 })
    }

    fn connection(&self) -> Connection {
        InterceptedService::new(self.target().endpoint.connect_lazy(), self.bearer.clone())
    }

    /// A client with a new connection, which is made at its first call.
    pub fn client(&self) -> Client {
        LockServiceClient::new(self.connection())
    }

    /// The same of the cluster service.
    pub fn cluster_client(&self) -> ClusterServiceClient<Connection> {
        ClusterServiceClient::new(self.connection())
    }

    /// The same of the key service.
    pub fn kv_client(&self) -> KvClient {
        KvServiceClient::new(self.connection())
    }

    /// The same of the queue service.
    pub fn queue_client(&self) -> QueueClient {
        let client = QueueServiceClient::new(self.connection());
        client.max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// So many connections, to each daemon in turn, all of them up.
    pub async fn connect(&self, count: u32) -> Result<Vec<Connection>, Failed> {
        let targets = self.targets.iter().cycle().take(count as usize);
        let connected = targets.map(|target| async move {
            let channel = target.endpoint.connect().await;
            let channel = channel.map_err(|error| Status::unavailable(super::chain(&error)))?;
            Ok::<_, Status>(InterceptedService::new(channel, self.bearer.clone()))
        });
        Ok(futures::future::try_join_all(connected).await?)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.targets.len()
    }

    /// Goes on to the next daemon, or stays with the only one.
    pub fn advance(&mut self) {
        self.turn = self.turn.wrapping_add(1);
    }

    /// Where the daemon is, for people.
    pub fn address(&self) -> &str {
        &self.target().text
    }

    fn target(&self) -> &Target {
        &self.targets[self.turn % self.targets.len()]
    }
}

/// Asks one daemon after the other, until one answers that is available. Only for what may be repeated.
pub async fn ask<C, M: Clone, A, F>(
    daemons: &mut Daemons,
    connect: impl Fn(&Daemons) -> C,
    message: M,
    timeout: Duration,
    call: impl Fn(C, Request<M>) -> F,
) -> Result<A, Status>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    for _ in 1..daemons.count() {
        match call(connect(daemons), request(message.clone(), timeout)).await {
            Err(status) if status.code() == Code::Unavailable => daemons.advance(),
            done => return done.map(Response::into_inner),
        }
    }
    call(connect(daemons), request(message, timeout)).await.map(Response::into_inner)
}

/// Why a command could not do what it was asked.
#[derive(Debug)]
pub enum Failed {
    /// What was typed can't be used.
    Usage(String),
    /// A daemon said no, or none answered.
    Call(Status),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

impl Failed {
    /// Says it to people. The exit code.
    pub fn say(self, daemons: &Daemons) -> u8 {
        match self {
            Self::Usage(what) => {
                eprintln!("majorityd: {what}");
                EXIT_USAGE
            }
            Self::Call(status) => {
                eprintln!("majorityd: {}", explain(&status, daemons.address()));
                exit_code(&status)
            }
        }
    }
}

/// A request with a deadline.
pub fn request<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// The reason that the daemon gave, if it was a daemon that answered.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// An error for people: code, reason, message, and what to do.
pub fn explain(status: &Status, address: &str) -> String {
    let reason = reason(status);
    let code = format!("{:?}", status.code());
    let what = match &reason {
        Some(reason) => format!("{code} ({reason})"),
        None => code,
    };
    let message = super::printable(&whole_message(status));
    match advice(status.code(), reason.as_deref(), &message) {
        Some(advice) => format!("{address}: {what}: {message}\n  {advice}"),
        None => format!("{address}: {what}: {message}"),
    }
}

/// The message, and what the transport knows beyond it.
fn whole_message(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) && cause_text != "transport error" {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What the transport says where TLS is the matter, and what to do then.
const ABOUT_TLS: [(&str, &str); 4] = [
    ("UnknownIssuer", "Name who signs the daemon's certificate with --tls-ca."),
    (
        "invalid peer certificate",
        "Call the daemon by a name that its certificate has, and have that renewed if it has expired.",
    ),
    ("CertificateRequired", "Show a certificate with --tls-cert and --tls-key."),
    ("received fatal alert", "The daemon refuses the certificate that is shown with --tls-cert."),
];

fn advice(code: Code, reason: Option<&str>, message: &str) -> Option<String> {
    if let Some(reason) = reason {
        let marker = format!("| `{reason}` |");
        let row = ERRORS.lines().find(|line| line.starts_with(&marker))?;
        return Some(row.trim_end_matches(" |").rsplit(" | ").next()?.to_owned());
    }
    if let Some((_, advice)) = ABOUT_TLS.iter().find(|(words, _)| message.contains(words)) {
        return Some((*advice).to_owned());
    }
    let advice = match code {
        // What a port with TLS says to plaintext; a daemon's own refusal has a reason.
        Code::PermissionDenied => "Name the daemon as https:// with --endpoint.",
        Code::Unavailable | Code::Unknown | Code::Internal => {
            "Is a daemon running there? Start one with `majorityd serve`, or name another with --endpoint."
        }
        Code::DeadlineExceeded => "The daemon or the network is slow; try again.",
        Code::Unimplemented => "That is no majorityd, or an older one.",
        _ => return None,
    };
    Some(advice.to_owned())
}

/// The exit code for an error.
pub fn exit_code(status: &Status) -> u8 {
    match status.code() {
        // No daemon has answered; see `advice`.
        Code::PermissionDenied if reason(status).is_none() => EXIT_UNAVAILABLE,
        Code::InvalidArgument => EXIT_USAGE,
        Code::ResourceExhausted | Code::DeadlineExceeded | Code::Aborted => EXIT_TRY_LATER,
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Unimplemented => EXIT_UNAVAILABLE,
        Code::FailedPrecondition | Code::NotFound | Code::AlreadyExists | Code::OutOfRange => EXIT_FAILURE,
        Code::Unauthenticated | Code::PermissionDenied | Code::DataLoss => EXIT_FAILURE,
        Code::Cancelled | Code::Ok => EXIT_FAILURE,
    }
}

/// A duration as the API has it.
pub fn to_proto(length: Duration) -> prost_types::Duration {
    // Only lengths beyond the age of the universe don't fit.
    prost_types::Duration::try_from(length).unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

/// A duration as the API has it; zero for one that is absent, negative or malformed.
pub fn from_proto(length: Option<prost_types::Duration>) -> Duration {
    length.and_then(|length| Duration::try_from(length).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn endpoints_are_checked_when_they_are_parsed() {
        for good in ["http://127.0.0.1:7480", "https://a.example:1", "http://[::1]:1", "unix:///run/m.sock"] {
            assert!(parse_endpoint(good).is_ok(), "{good}");
        }
        for bad in ["127.0.0.1:7480", "ftp://a:1", "unix://run/m.sock", "http://a b:1", ""] {
            assert!(parse_endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_safe_on_this_machine_and_with_tls() {
        let is_private = |text| parse_endpoint(text).unwrap().is_private();
        for text in [
            "https://a.example:1",
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://[::1]:1",
            "http://localhost:1",
            "unix:///run/m.sock",
        ] {
            assert!(is_private(text), "{text}");
        }
        for text in
            ["http://a.example:1", "http://10.0.0.1:1", "http://localhost.example:1", "http://[::2]:1"]
        {
            assert!(!is_private(text), "{text}");
        }
    }

    #[test]
    fn people_learn_code_reason_and_what_to_do() {
        let details = ErrorDetails::with_error_info("NO_QUORUM", "majorityd", HashMap::new());
        let status = tonic::Status::with_error_details(Code::Unavailable, "1 of 3 nodes answer", details);
        let text = explain(&status, "http://a:1");
        for expected in ["http://a:1", "Unavailable (NO_QUORUM)", "1 of 3 nodes", "Repeat later."] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let text = explain(&Status::unavailable("refused"), "http://a:1");
        assert!(text.contains("majorityd serve"), "{text}");
    }
}
