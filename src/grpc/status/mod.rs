//! The one map from errors to [`tonic::Status`]: code, [`Reason`], metadata with every value that the message names, and
//! what else helps the caller. `docs/errors.md` lists the same for people; a test compares them.

mod reason;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

pub use reason::{Effect, Reason, Repeat};

use super::bytes_gauge::Full;
use super::convert::Invalid;
use crate::access::{Asked, Need, Refusal};
use crate::kv::KvError;
use crate::lock::LockError;
use crate::queue::QueueError;
use crate::register::RegisterError;

/// The domain of every reason in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "majorityd";
/// Longest message, and longest value in the metadata, in bytes: some clients refuse more than 8 KiB of trailers, and
/// what is in a message travels three times in them.
const TEXT_BYTES_MAX: usize = 1024;
/// Most violations that one status names, and most bytes of them. A batch may have thousands, and the same bound on
/// trailers holds.
const VIOLATIONS_MAX: usize = 16;
const VIOLATION_BYTES_MAX: usize = 2048;

/// An error of a room that calls go to.
pub trait Fault: std::error::Error + 'static {
    /// As its caller gets it. `repeat` says what a repeat of the call does.
    fn status(&self, repeat: Repeat) -> Status;
}

impl Fault for LockError {
    fn status(&self, repeat: Repeat) -> Status {
        lock(self, repeat)
    }
}

impl Fault for KvError {
    fn status(&self, repeat: Repeat) -> Status {
        key(self, repeat)
    }
}

impl Fault for QueueError {
    fn status(&self, repeat: Repeat) -> Status {
        queue(self, repeat)
    }
}

impl Fault for RegisterError {
    fn status(&self, repeat: Repeat) -> Status {
        register(self, repeat)
    }
}

/// A request that breaks rules: all violations, each named, or the first of them where there are very many.
pub fn invalid(invalid: &Invalid) -> Status {
    let violations = invalid.violations();
    let mut metadata = HashMap::new();
    let mut fields = Vec::new();
    let mut parts: Vec<String> = Vec::new();
    for violation in violations.iter().take(VIOLATIONS_MAX) {
        if parts.iter().map(String::len).sum::<usize>() > VIOLATION_BYTES_MAX {
            break;
        }
        for (what, value) in &violation.values {
            metadata.insert((*what).to_owned(), bounded(value));
        }
        let path = violation.path();
        parts.push(format!("{path} {}", violation.description));
        let mut field = FieldViolation::new(path, bounded(&violation.description));
        field.reason = violation.reason.as_str().to_owned();
        fields.push(field);
    }
    if violations.len() > fields.len() {
        parts.insert(0, format!("{} fields break rules, of which these are the first", violations.len()));
        metadata.insert("violations".to_owned(), violations.len().to_string());
    }
    let reason = violations[0].reason;
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.as_str(), DOMAIN, metadata);
    details.set_bad_request(fields);
    Status::with_error_details(reason.code(Repeat::Harmless), bounded(&parts.join("; ")), details)
}

/// An error of the locks.
pub fn lock(error: &LockError, repeat: Repeat) -> Status {
    let text = error.to_string();
    match error {
        LockError::LeaseLost { name } => {
            build(Reason::LeaseLost, repeat, &text, &[("lock", name.as_str())], None)
        }
        LockError::TooManyWaiters { name, waiting, max } => build(
            Reason::TooManyWaiters,
            repeat,
            &text,
            &[("lock", name.as_str()), ("waiting", &waiting.to_string()), ("waiting_max", &max.to_string())],
            None,
        ),
        LockError::ShuttingDown => build(Reason::ShuttingDown, repeat, &text, &[], None),
        LockError::TokenNotHeld { name, token, highest } => build(
            Reason::TokenNotHeld,
            repeat,
            &text,
            &[
                ("lock", name.as_str()),
                ("fencing_token", &token.to_string()),
                ("highest_fencing_token", &highest.to_string()),
            ],
            None,
        ),
        LockError::Recovering { wait_ms } => recovering(*wait_ms, repeat, &text),
        LockError::Register(error) => register(error, repeat),
    }
}

/// An error of the keys.
pub fn key(error: &KvError, repeat: Repeat) -> Status {
    let text = error.to_string();
    let with = |reason, metadata: &[(&str, &str)]| build(reason, repeat, &text, metadata, None);
    match error {
        KvError::PreconditionFailed { key, current: Some(version) } => with(
            Reason::PreconditionFailed,
            &[("key", key.as_str()), ("current_version", &version.to_string())],
        ),
        KvError::PreconditionFailed { key, current: None } => {
            with(Reason::PreconditionFailed, &[("key", key.as_str())])
        }
        KvError::NotAnInteger { key } => with(Reason::NotAnInteger, &[("key", key.as_str())]),
        KvError::Overflow { key, number, delta } => with(
            Reason::IntegerOverflow,
            &[("key", key.as_str()), ("number", &number.to_string()), ("delta", &delta.to_string())],
        ),
        KvError::Fenced { key, lock, token, highest } => with(
            Reason::Fenced,
            &[
                ("key", key.as_str()),
                ("lock", lock.as_str()),
                ("fencing_token", &token.to_string()),
                ("highest_fencing_token", &highest.to_string()),
            ],
        ),
        KvError::TooManyFences { key, lock, max } => with(
            Reason::TooManyFences,
            &[("key", key.as_str()), ("lock", lock.as_str()), ("fences_max", &max.to_string())],
        ),
        KvError::RequestIdReused { key } => with(Reason::RequestIdReused, &[("key", key.as_str())]),
        KvError::TooManyKeys { prefix, max } => {
            with(Reason::TooManyKeys, &[("prefix", prefix), ("keys_max", &max.to_string())])
        }
        KvError::TooMuchToWrite { bytes, max } => {
            with(Reason::Overloaded, &[("bytes", &bytes.to_string()), ("bytes_max", &max.to_string())])
        }
        KvError::ShuttingDown => with(Reason::ShuttingDown, &[]),
        KvError::Register(error) => register(error, repeat),
    }
}

/// An error of the queues.
pub fn queue(error: &QueueError, repeat: Repeat) -> Status {
    let text = error.to_string();
    let with = |reason, metadata: &[(&str, &str)]| build(reason, repeat, &text, metadata, None);
    match error {
        QueueError::NoSuchQueue { queue } => with(Reason::NoSuchQueue, &[("queue", queue.as_str())]),
        QueueError::NoSuchItem { queue, id } => {
            with(Reason::NoSuchItem, &[("queue", queue.as_str()), ("id", id.as_str())])
        }
        QueueError::QueueFull { queue, items, max } => with(
            Reason::QueueFull,
            &[("queue", queue.as_str()), ("items", &items.to_string()), ("items_max", &max.to_string())],
        ),
        QueueError::TooManyWaiters { queue, waiting, max } => with(
            Reason::TooManyWaiters,
            &[
                ("queue", queue.as_str()),
                ("waiting", &waiting.to_string()),
                ("waiting_max", &max.to_string()),
            ],
        ),
        QueueError::TooMuchToWrite { bytes, max } => {
            with(Reason::Overloaded, &[("bytes", &bytes.to_string()), ("bytes_max", &max.to_string())])
        }
        QueueError::Recovering { wait_ms } => recovering(*wait_ms, repeat, &text),
        QueueError::ShuttingDown => with(Reason::ShuttingDown, &[]),
        QueueError::Register(error) => register(error, repeat),
    }
}

/// How much of the wait is over only the nodes know.
fn recovering(wait_ms: u64, repeat: Repeat, text: &str) -> Status {
    let retry_after = Duration::from_secs(5).min(Duration::from_millis(wait_ms));
    build(Reason::Recovering, repeat, text, &[("wait_ms", &wait_ms.to_string())], Some(retry_after))
}

/// In place of a value for which a batch's answer has no room.
pub fn answer_full(bytes_max: usize) -> Status {
    let text = format!(
        "the values before this one fill the answer, which has {bytes_max} bytes at most; ask for it again"
    );
    build(Reason::AnswerFull, Repeat::Harmless, &text, &[("answer_bytes_max", &bytes_max.to_string())], None)
}

/// A status inside an answer, with the details that it would have as an answer of its own.
pub fn as_message(status: &Status) -> tonic_types::Status {
    let without = || tonic_types::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: vec![],
    };
    match status.details() {
        [] => without(),
        details => tonic_types::Status::decode(details).unwrap_or_else(|_| without()),
    }
}

/// An error of the registers.
pub fn register(error: &RegisterError, repeat: Repeat) -> Status {
    let text = error.to_string();
    match error {
        RegisterError::NoQuorum { reachable, nodes, quorum, detail } => build(
            Reason::NoQuorum,
            repeat,
            &text,
            &[
                ("reachable", &reachable.to_string()),
                ("nodes", &nodes.to_string()),
                ("quorum", &quorum.to_string()),
                ("detail", detail),
            ],
            None,
        ),
        RegisterError::OutcomeUnknown => build(Reason::OutcomeUnknown, repeat, &text, &[], None),
        RegisterError::DeadlineExceeded { waited } => {
            build(Reason::DeadlineExceeded, repeat, &text, &[("waited", &format!("{waited:?}"))], None)
        }
        RegisterError::Overloaded { waiting, max } => build(
            Reason::Overloaded,
            repeat,
            &text,
            &[("waiting", &waiting.to_string()), ("waiting_max", &max.to_string())],
            None,
        ),
        RegisterError::ClockTooFarAhead => build(Reason::ClockTooFarAhead, repeat, &text, &[], None),
        RegisterError::Unreadable { detail } => {
            build(Reason::UnreadableRecord, repeat, &text, &[("detail", detail)], None)
        }
    }
}

/// More calls in flight than a limit of the edge allows.
pub fn rate_limited(limit: &'static str, max: usize) -> Status {
    build(
        Reason::RateLimited,
        Repeat::Harmless,
        &format!("{max} calls are in flight already, the most that {limit} allows; nothing happened"),
        &[("limit", limit), ("calls_max", &max.to_string())],
        None,
    )
}

/// A call that is not let in.
pub fn refused(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    let with = |reason, metadata: &[(&str, &str)]| build(reason, Repeat::Harmless, &text, metadata, None);
    match refusal {
        Refusal::NoCredentials => with(Reason::NoCredentials, &[]),
        Refusal::Malformed | Refusal::UnknownToken => with(Reason::UnknownCredentials, &[]),
        Refusal::UnknownCertificate { names } => {
            with(Reason::UnknownCredentials, &[("certificate_names", names)])
        }
        Refusal::CertificateLapsed { why } => with(Reason::CertificateLapsed, &[("why", why)]),
        Refusal::Denied { identity, need: Need { service, right }, asked } => {
            let (service, right) = (service.to_string(), right.to_string());
            let mut metadata =
                vec![("identity", identity.as_str()), ("service", &service), ("right", &right)];
            if let Some(Asked { name, prefix }) = asked {
                metadata.push((if *prefix { "prefix" } else { "name" }, name));
            }
            with(Reason::AccessDenied, &metadata)
        }
    }
}

/// A request that would have more bytes on their way than a limit of the edge allows.
pub fn too_much_arriving(full: &Full) -> Status {
    full_of(full, Reason::RateLimited, Repeat::Harmless, "on their way", "nothing happened")
}

/// An answer to a read for which there is no room among those that clients have not read.
pub fn too_much_leaving(full: &Full) -> Status {
    full_of(full, Reason::RateLimited, Repeat::Harmless, "that wait to be read", "nothing happened")
}

/// The same of a call that has done something.
pub fn answer_dropped(full: &Full) -> Status {
    let end = "the call was carried out, and its answer is dropped";
    full_of(full, Reason::OutcomeUnknown, Repeat::Harmful, "that wait to be read", end)
}

fn full_of(full: &Full, reason: Reason, repeat: Repeat, which: &str, end: &str) -> Status {
    let Full { name, bytes, max } = full;
    let text =
        format!("{bytes} bytes more {which} would be more than {max}, the most that {name} allows; {end}");
    let metadata = [("limit", *name), ("bytes", &bytes.to_string()), ("bytes_max", &max.to_string())];
    build(reason, repeat, &text, &metadata, None)
}

/// A request that was not there in time.
pub fn not_arrived(timeout: Duration) -> Status {
    let text = format!("the request did not arrive within {timeout:?}; nothing happened");
    build(
        Reason::DeadlineExceeded,
        Repeat::Harmless,
        &text,
        &[("arrival_timeout", &format!("{timeout:?}"))],
        None,
    )
}

/// What tonic says of a request that it can't read, with a reason; any other status as it is. tonic calls that INTERNAL, as
/// the specification of gRPC wants it, but the fault is the client's, and an operator must not be called for it.
pub fn unreadable(status: Status) -> Status {
    if status.code() != Code::Internal || !status.details().is_empty() {
        return status;
    }
    let text = format!("the request can't be read: {}", status.message());
    build(Reason::InvalidMessage, Repeat::Harmless, &text, &[("detail", status.message())], None)
}

/// The same for an answer that is an error and nothing else.
pub fn with_reason(answer: http::Response<Body>) -> http::Response<Body> {
    let Some(status) = Status::from_header_map(answer.headers()) else { return answer };
    let is_other = status.code() != Code::Internal || !status.details().is_empty();
    if is_other { answer } else { unreadable(status).into_http() }
}

/// A handler panicked. What it had sent by then is not known.
pub fn panicked() -> Status {
    let text = "this daemon has a bug, which its log names; the outcome is unknown";
    build(Reason::InternalError, Repeat::Harmful, text, &[], None)
}

/// `retry_after` in place of what the reason says by itself.
fn build(
    reason: Reason,
    repeat: Repeat,
    text: &str,
    metadata: &[(&str, &str)],
    retry_after: Option<Duration>,
) -> Status {
    let code = reason.code(repeat);
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), bounded(value))).collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.as_str(), DOMAIN, metadata);
    // A client that sees UNKNOWN has to read first, so it is not told when to repeat.
    if code != Code::Unknown
        && let Some(delay) = retry_after.or(reason.retry_after())
    {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, bounded(text), details)
}

/// A text of at most 1,024 bytes: a longer one is cut between characters.
pub fn bounded(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let mark = "…";
    let fits = (0..=TEXT_BYTES_MAX - mark.len()).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{}{mark}", &text[..fits])
}
