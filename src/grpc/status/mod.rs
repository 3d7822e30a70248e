//! The one map from errors to [`tonic::Status`]: code, [`Reason`], metadata with every value that the message names, and
//! what else helps the caller. `docs/errors.md` lists the same for people; a test compares them.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::convert::Invalid;
use crate::lock::LockError;
use crate::register::RegisterError;

/// The domain of every reason in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "majorityd";
/// Longest message, and longest value in the metadata, in bytes: some clients refuse more than 8 KiB of trailers, and
/// what is in a message travels three times in them.
const TEXT_BYTES_MAX: usize = 1024;

/// Why a call was refused or failed, as clients branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A name or prefix breaks its rules.
    InvalidName,
    /// An owner breaks its rules.
    InvalidOwner,
    /// A TTL is malformed or out of range.
    InvalidTtl,
    /// A time to wait is malformed or negative.
    InvalidWaitTimeout,
    /// A lease id is not 32 hexadecimal digits.
    InvalidLeaseId,
    /// Attributes are too many, or have an empty key or a control character.
    InvalidAttributes,
    /// A page size is negative.
    InvalidPageSize,
    /// A page token is not one that this API made for this list.
    InvalidPageToken,
    /// A fencing token is out of range.
    InvalidFencingToken,
    /// A hold limit is malformed or not above zero.
    InvalidHoldLimit,
    /// A disconnect policy is unknown.
    InvalidDisconnectPolicy,
    /// An interval is malformed or negative.
    InvalidInterval,
    /// Something is larger than it may be.
    TooLarge,
    /// The lease is not the lock's any more.
    LeaseLost,
    /// The lock is not held under the fencing token given.
    TokenNotHeld,
    /// Too few nodes answer.
    NoQuorum,
    /// No lock may be granted yet after a founding or a recovery.
    Recovering,
    /// The daemon is stopping.
    ShuttingDown,
    /// Sent to the nodes and not confirmed.
    OutcomeUnknown,
    /// Too many wait in line.
    TooManyWaiters,
    /// Too many changes wait for one record.
    Overloaded,
    /// Too many calls are in flight.
    RateLimited,
    /// The call's deadline passed.
    DeadlineExceeded,
    /// A record was written by a newer version, or is damaged.
    UnreadableRecord,
    /// The daemon's clock is wrong.
    ClockTooFarAhead,
    /// The daemon broke a promise to itself.
    InternalError,
}

/// What is certain about the state of the cluster when a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing was changed by the call and nothing will be.
    Nothing,
    /// The change may have happened, may still happen, or may never.
    Unknown,
}

/// What a repeat of a call does whose first attempt may have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The same as the first attempt: the call named its owner, its lease or its token, or only reads.
    Harmless,
    /// Perhaps the same again: nothing in the call says that it is the same.
    Harmful,
}

impl Reason {
    /// All of them, in the order of `docs/errors.md`.
    pub const ALL: [Reason; 26] = [
        Reason::InvalidName,
        Reason::InvalidOwner,
        Reason::InvalidTtl,
        Reason::InvalidWaitTimeout,
        Reason::InvalidLeaseId,
        Reason::InvalidAttributes,
        Reason::InvalidPageSize,
        Reason::InvalidPageToken,
        Reason::InvalidFencingToken,
        Reason::InvalidHoldLimit,
        Reason::InvalidDisconnectPolicy,
        Reason::InvalidInterval,
        Reason::TooLarge,
        Reason::LeaseLost,
        Reason::TokenNotHeld,
        Reason::NoQuorum,
        Reason::Recovering,
        Reason::ShuttingDown,
        Reason::OutcomeUnknown,
        Reason::TooManyWaiters,
        Reason::Overloaded,
        Reason::RateLimited,
        Reason::DeadlineExceeded,
        Reason::UnreadableRecord,
        Reason::ClockTooFarAhead,
        Reason::InternalError,
    ];

    /// As it stands in `google.rpc.ErrorInfo`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::InvalidName => "INVALID_NAME",
            Reason::InvalidOwner => "INVALID_OWNER",
            Reason::InvalidTtl => "INVALID_TTL",
            Reason::InvalidWaitTimeout => "INVALID_WAIT_TIMEOUT",
            Reason::InvalidLeaseId => "INVALID_LEASE_ID",
            Reason::InvalidAttributes => "INVALID_ATTRIBUTES",
            Reason::InvalidPageSize => "INVALID_PAGE_SIZE",
            Reason::InvalidPageToken => "INVALID_PAGE_TOKEN",
            Reason::InvalidFencingToken => "INVALID_FENCING_TOKEN",
            Reason::InvalidHoldLimit => "INVALID_HOLD_LIMIT",
            Reason::InvalidDisconnectPolicy => "INVALID_DISCONNECT_POLICY",
            Reason::InvalidInterval => "INVALID_INTERVAL",
            Reason::TooLarge => "TOO_LARGE",
            Reason::LeaseLost => "LEASE_LOST",
            Reason::TokenNotHeld => "TOKEN_NOT_HELD",
            Reason::NoQuorum => "NO_QUORUM",
            Reason::Recovering => "RECOVERING",
            Reason::ShuttingDown => "SHUTTING_DOWN",
            Reason::OutcomeUnknown => "OUTCOME_UNKNOWN",
            Reason::TooManyWaiters => "TOO_MANY_WAITERS",
            Reason::Overloaded => "OVERLOADED",
            Reason::RateLimited => "RATE_LIMITED",
            Reason::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Reason::UnreadableRecord => "UNREADABLE_RECORD",
            Reason::ClockTooFarAhead => "CLOCK_TOO_FAR_AHEAD",
            Reason::InternalError => "INTERNAL_ERROR",
        }
    }

    /// The code it travels under. Clients and proxies repeat UNAVAILABLE by themselves, so an unknown outcome has it
    /// only where that does no harm.
    pub fn code(self, repeat: Repeat) -> Code {
        match self {
            Reason::InvalidName
            | Reason::InvalidOwner
            | Reason::InvalidTtl
            | Reason::InvalidWaitTimeout
            | Reason::InvalidLeaseId
            | Reason::InvalidAttributes
            | Reason::InvalidPageSize
            | Reason::InvalidPageToken
            | Reason::InvalidFencingToken
            | Reason::InvalidHoldLimit
            | Reason::InvalidDisconnectPolicy
            | Reason::InvalidInterval
            | Reason::TooLarge => Code::InvalidArgument,
            Reason::LeaseLost | Reason::TokenNotHeld => Code::FailedPrecondition,
            Reason::NoQuorum | Reason::Recovering | Reason::ShuttingDown => Code::Unavailable,
            Reason::OutcomeUnknown => match repeat {
                Repeat::Harmless => Code::Unavailable,
                Repeat::Harmful => Code::Unknown,
            },
            Reason::TooManyWaiters | Reason::Overloaded | Reason::RateLimited => Code::ResourceExhausted,
            Reason::DeadlineExceeded => Code::DeadlineExceeded,
            // Not the client's fault and not passing by itself: an operator has to act.
            Reason::UnreadableRecord | Reason::ClockTooFarAhead | Reason::InternalError => Code::Internal,
        }
    }

    /// What is certain then. Stated here and nowhere else.
    pub fn effect(self) -> Effect {
        match self {
            // Refused before anything was sent.
            Reason::InvalidName
            | Reason::InvalidOwner
            | Reason::InvalidTtl
            | Reason::InvalidWaitTimeout
            | Reason::InvalidLeaseId
            | Reason::InvalidAttributes
            | Reason::InvalidPageSize
            | Reason::InvalidPageToken
            | Reason::InvalidFencingToken
            | Reason::InvalidHoldLimit
            | Reason::InvalidDisconnectPolicy
            | Reason::InvalidInterval
            | Reason::TooLarge
            | Reason::TooManyWaiters
            | Reason::Overloaded
            | Reason::RateLimited
            | Reason::DeadlineExceeded
            | Reason::ShuttingDown => Effect::Nothing,
            // Read what there is, and changed nothing because of it.
            Reason::LeaseLost
            | Reason::TokenNotHeld
            | Reason::Recovering
            | Reason::UnreadableRecord
            | Reason::ClockTooFarAhead => Effect::Nothing,
            // No accept was sent.
            Reason::NoQuorum => Effect::Nothing,
            Reason::OutcomeUnknown | Reason::InternalError => Effect::Unknown,
        }
    }

    /// How long to wait before a repeat; `None` where a repeat of the same call does not help.
    fn retry_after(self) -> Option<Duration> {
        match self {
            Reason::InvalidName
            | Reason::InvalidOwner
            | Reason::InvalidTtl
            | Reason::InvalidWaitTimeout
            | Reason::InvalidLeaseId
            | Reason::InvalidAttributes
            | Reason::InvalidPageSize
            | Reason::InvalidPageToken
            | Reason::InvalidFencingToken
            | Reason::InvalidHoldLimit
            | Reason::InvalidDisconnectPolicy
            | Reason::InvalidInterval
            | Reason::TooLarge
            | Reason::LeaseLost
            | Reason::TokenNotHeld
            | Reason::DeadlineExceeded
            | Reason::UnreadableRecord
            | Reason::ClockTooFarAhead
            | Reason::InternalError => None,
            // Nodes that come back are noticed within about a second.
            Reason::NoQuorum | Reason::Recovering => Some(Duration::from_secs(1)),
            // Another daemon may be asked at once; this one will be gone.
            Reason::ShuttingDown => Some(Duration::from_millis(100)),
            Reason::OutcomeUnknown => Some(Duration::from_millis(200)),
            Reason::TooManyWaiters => Some(Duration::from_secs(1)),
            Reason::Overloaded | Reason::RateLimited => Some(Duration::from_millis(500)),
        }
    }
}

/// A request that breaks rules: all violations, each named.
pub fn invalid(invalid: &Invalid) -> Status {
    let mut metadata = HashMap::new();
    let mut fields = Vec::new();
    let mut parts = Vec::new();
    for violation in invalid.violations() {
        for (what, value) in &violation.values {
            metadata.insert((*what).to_owned(), bounded(value));
        }
        let mut field = FieldViolation::new(violation.field, bounded(&violation.description));
        field.reason = violation.reason.as_str().to_owned();
        fields.push(field);
        parts.push(format!("{} {}", violation.field, violation.description));
    }
    let reason = invalid.violations()[0].reason;
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
        LockError::Recovering { wait_ms } => build(
            Reason::Recovering,
            repeat,
            &text,
            &[("wait_ms", &wait_ms.to_string())],
            // How much of the wait is over only the nodes know.
            Some(Duration::from_secs(5).min(Duration::from_millis(*wait_ms))),
        ),
        LockError::Register(error) => register(error, repeat),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LockName;
    use crate::token::Token;

    fn name() -> LockName {
        LockName::parse("orders").unwrap()
    }

    fn token(value: u64) -> Token {
        Token::new(value).unwrap()
    }

    fn no_quorum() -> LockError {
        let detail = "node 2 is joining".to_owned();
        RegisterError::NoQuorum { reachable: 1, nodes: 3, quorum: 2, detail }.into()
    }

    /// Every variant, with what it becomes when a repeat is harmless.
    fn cases() -> Vec<(LockError, Code, Reason, Option<u64>)> {
        use Code::*;
        let waited = Duration::from_millis(1500);
        let detail = "version 9".to_owned();
        vec![
            (LockError::LeaseLost { name: name() }, FailedPrecondition, Reason::LeaseLost, None),
            (
                LockError::TooManyWaiters { name: name(), waiting: 41, max: 40 },
                ResourceExhausted,
                Reason::TooManyWaiters,
                Some(1000),
            ),
            (LockError::ShuttingDown, Unavailable, Reason::ShuttingDown, Some(100)),
            (
                LockError::TokenNotHeld { name: name(), token: token(6), highest: token(7) },
                FailedPrecondition,
                Reason::TokenNotHeld,
                None,
            ),
            (LockError::Recovering { wait_ms: 300_000 }, Unavailable, Reason::Recovering, Some(5_000)),
            (no_quorum(), Unavailable, Reason::NoQuorum, Some(1000)),
            (RegisterError::OutcomeUnknown.into(), Unavailable, Reason::OutcomeUnknown, Some(200)),
            (
                RegisterError::DeadlineExceeded { waited }.into(),
                DeadlineExceeded,
                Reason::DeadlineExceeded,
                None,
            ),
            (
                RegisterError::Overloaded { waiting: 9, max: 8 }.into(),
                ResourceExhausted,
                Reason::Overloaded,
                Some(500),
            ),
            (RegisterError::ClockTooFarAhead.into(), Internal, Reason::ClockTooFarAhead, None),
            (RegisterError::Unreadable { detail }.into(), Internal, Reason::UnreadableRecord, None),
        ]
    }

    #[test]
    fn every_error_has_its_code_its_reason_and_when_to_repeat() {
        for (error, code, reason, retry_ms) in cases() {
            let status = lock(&error, Repeat::Harmless);
            let details = status.get_error_details();
            let info = details.error_info().expect("every status has ErrorInfo");
            assert_eq!((status.code(), info.reason.as_str()), (code, reason.as_str()), "{error}");
            assert_eq!(info.domain, "majorityd");
            assert_eq!(status.message(), error.to_string());
            let retry = details.retry_info().and_then(|info| info.retry_delay);
            assert_eq!(retry, retry_ms.map(Duration::from_millis), "{error}");
        }
    }

    #[test]
    fn metadata_has_every_number_that_the_message_names() {
        for (error, _, _, _) in cases() {
            let status = lock(&error, Repeat::Harmless);
            let details = status.get_error_details();
            let values: Vec<&String> = details.error_info().unwrap().metadata.values().collect();
            let numbers =
                status.message().split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
            for number in numbers {
                assert!(values.iter().any(|value| value.contains(number)), "{number} of {error}");
            }
        }
    }

    #[test]
    fn an_unknown_outcome_is_unavailable_only_where_a_repeat_is_harmless() {
        let error = LockError::from(RegisterError::OutcomeUnknown);
        assert_eq!(lock(&error, Repeat::Harmless).code(), Code::Unavailable);
        let status = lock(&error, Repeat::Harmful);
        assert_eq!(status.code(), Code::Unknown);
        assert!(status.get_details_retry_info().is_none());
        for reason in Reason::ALL {
            let repeated_unasked = reason.code(Repeat::Harmful) == Code::Unavailable;
            assert!(!repeated_unasked || reason.effect() == Effect::Nothing, "{reason:?}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(bounded("short"), "short");
        let cut = bounded(&"ü".repeat(2000));
        assert!(cut.len() <= TEXT_BYTES_MAX && cut.ends_with('…'));
    }

    /// Rows of the form ``| `REASON` | `CODE` or `CODE` | effect | … |``.
    #[test]
    fn the_document_lists_exactly_these_reasons_codes_and_effects() {
        let document = include_str!("../../docs/errors.md");
        let listed: Vec<(String, String, String)> = document
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| {
                let cells: Vec<String> = line.split('|').map(|cell| cell.trim().replace('`', "")).collect();
                (cells[1].clone(), cells[2].clone(), cells[3].clone())
            })
            .collect();
        let expected: Vec<(String, String, String)> = Reason::ALL
            .iter()
            .map(|reason| {
                let mut codes = vec![wire(reason.code(Repeat::Harmless)), wire(reason.code(Repeat::Harmful))];
                codes.dedup();
                let effect = match reason.effect() {
                    Effect::Nothing => "nothing happened",
                    Effect::Unknown => "unknown",
                };
                (reason.as_str().to_owned(), codes.join(" or "), effect.to_owned())
            })
            .collect();
        assert_eq!(listed, expected);
    }

    /// The code's name in the gRPC specification.
    fn wire(code: Code) -> &'static str {
        match code {
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Unavailable => "UNAVAILABLE",
            Code::Unknown => "UNKNOWN",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::Internal => "INTERNAL",
            other => panic!("{other:?} is not used"),
        }
    }
}
