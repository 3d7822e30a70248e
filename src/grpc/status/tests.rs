//! Tests of the error map.

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
        (RegisterError::DeadlineExceeded { waited }.into(), DeadlineExceeded, Reason::DeadlineExceeded, None),
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
        let numbers = status.message().split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
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
    let document = include_str!("../../../docs/errors.md");
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
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::NotFound => "NOT_FOUND",
        Code::Unavailable => "UNAVAILABLE",
        Code::Unknown => "UNKNOWN",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Internal => "INTERNAL",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::PermissionDenied => "PERMISSION_DENIED",
        other => panic!("{other:?} is not used"),
    }
}

type Metadata = Vec<(&'static str, &'static str)>;

/// Every variant of the keys, with what it becomes and all of its metadata.
fn key_cases() -> Vec<(KvError, Code, Reason, Metadata)> {
    use Code::*;
    let key = || crate::ids::Key::parse("stock").unwrap();
    let of_key = ("key", "stock");
    vec![
        (
            KvError::PreconditionFailed { key: key(), current: Some(token(7)) },
            FailedPrecondition,
            Reason::PreconditionFailed,
            vec![of_key, ("current_version", "7")],
        ),
        (
            KvError::PreconditionFailed { key: key(), current: None },
            FailedPrecondition,
            Reason::PreconditionFailed,
            vec![of_key],
        ),
        (KvError::NotAnInteger { key: key() }, FailedPrecondition, Reason::NotAnInteger, vec![of_key]),
        (
            KvError::Overflow { key: key(), number: i64::MAX, delta: 1 },
            OutOfRange,
            Reason::IntegerOverflow,
            vec![of_key, ("number", "9223372036854775807"), ("delta", "1")],
        ),
        (
            KvError::Fenced { key: key(), lock: name(), token: token(6), highest: token(7) },
            FailedPrecondition,
            Reason::Fenced,
            vec![of_key, ("lock", "orders"), ("fencing_token", "6"), ("highest_fencing_token", "7")],
        ),
        (
            KvError::TooManyFences { key: key(), lock: name(), max: 16 },
            ResourceExhausted,
            Reason::TooManyFences,
            vec![of_key, ("lock", "orders"), ("fences_max", "16")],
        ),
        (KvError::RequestIdReused { key: key() }, FailedPrecondition, Reason::RequestIdReused, vec![of_key]),
        (
            KvError::TooManyKeys { prefix: "s".into(), max: 100 },
            ResourceExhausted,
            Reason::TooManyKeys,
            vec![("prefix", "s"), ("keys_max", "100")],
        ),
        (
            KvError::TooMuchToWrite { bytes: 41, max: 40 },
            ResourceExhausted,
            Reason::Overloaded,
            vec![("bytes", "41"), ("bytes_max", "40")],
        ),
        (KvError::ShuttingDown, Unavailable, Reason::ShuttingDown, vec![]),
        (RegisterError::OutcomeUnknown.into(), Unavailable, Reason::OutcomeUnknown, vec![]),
    ]
}

/// The same of the queues.
fn queue_cases() -> Vec<(QueueError, Code, Reason, Metadata)> {
    use Code::*;
    let queue = || crate::ids::QueueName::parse("mail").unwrap();
    let id = crate::ids::ItemId::parse("i-7").unwrap();
    let of_queue = ("queue", "mail");
    vec![
        (QueueError::NoSuchQueue { queue: queue() }, NotFound, Reason::NoSuchQueue, vec![of_queue]),
        (
            QueueError::NoSuchItem { queue: queue(), id },
            NotFound,
            Reason::NoSuchItem,
            vec![of_queue, ("id", "i-7")],
        ),
        (
            QueueError::QueueFull { queue: queue(), items: 41, max: 40 },
            ResourceExhausted,
            Reason::QueueFull,
            vec![of_queue, ("items", "41"), ("items_max", "40")],
        ),
        (
            QueueError::TooManyWaiters { queue: queue(), waiting: 41, max: 40 },
            ResourceExhausted,
            Reason::TooManyWaiters,
            vec![of_queue, ("waiting", "41"), ("waiting_max", "40")],
        ),
        (
            QueueError::TooMuchToWrite { bytes: 41, max: 40 },
            ResourceExhausted,
            Reason::Overloaded,
            vec![("bytes", "41"), ("bytes_max", "40")],
        ),
        (
            QueueError::Recovering { wait_ms: 300_000 },
            Unavailable,
            Reason::Recovering,
            vec![("wait_ms", "300000")],
        ),
        (QueueError::ShuttingDown, Unavailable, Reason::ShuttingDown, vec![]),
        (RegisterError::OutcomeUnknown.into(), Unavailable, Reason::OutcomeUnknown, vec![]),
    ]
}

fn has_its_code_its_reason_and_what_its_message_names<E: Fault>(cases: Vec<(E, Code, Reason, Metadata)>) {
    for (error, code, reason, expected) in cases {
        let status = error.status(Repeat::Harmless);
        let info = status.get_details_error_info().expect("every status has ErrorInfo");
        assert_eq!((status.code(), info.reason.as_str()), (code, reason.as_str()), "{error}");
        let expected = expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        assert_eq!(info.metadata, expected.collect(), "{error}");
        for value in info.metadata.values() {
            assert!(status.message().contains(value.as_str()), "{value} in {error}");
        }
    }
}

#[test]
fn every_error_of_a_key_has_its_code_its_reason_and_what_its_message_names() {
    has_its_code_its_reason_and_what_its_message_names(key_cases());
}

#[test]
fn every_error_of_a_queue_has_its_code_its_reason_and_what_its_message_names() {
    has_its_code_its_reason_and_what_its_message_names(queue_cases());
}

#[test]
fn who_may_put_again_later_is_told_when() {
    let queue = crate::ids::QueueName::parse("mail").unwrap();
    for (error, delay) in [
        (QueueError::QueueFull { queue, items: 1, max: 1 }, Duration::from_secs(1)),
        (QueueError::Recovering { wait_ms: 300_000 }, Duration::from_secs(5)),
        (QueueError::Recovering { wait_ms: 200 }, Duration::from_millis(200)),
    ] {
        let retry = error.status(Repeat::Harmless).get_details_retry_info();
        assert_eq!(retry.and_then(|info| info.retry_delay), Some(delay), "{error}");
    }
}

#[test]
fn an_unknown_outcome_of_a_key_asks_for_a_repeat_only_where_that_is_harmless() {
    let error = KvError::from(RegisterError::OutcomeUnknown);
    assert_eq!(error.status(Repeat::Harmless).code(), Code::Unavailable);
    let harmful = error.status(Repeat::Harmful);
    assert_eq!(harmful.code(), Code::Unknown);
    assert!(harmful.get_details_retry_info().is_none());
}

#[test]
fn a_status_inside_an_answer_has_the_details_of_one_outside() {
    use tonic_types::RpcStatusExt;
    let status = KvError::ShuttingDown.status(Repeat::Harmless);
    let message = as_message(&status);
    assert_eq!((message.code, message.message.as_str()), (status.code().into(), status.message()));
    let (inside, outside) = (message.get_error_details(), status.get_error_details());
    assert_eq!(format!("{inside:?}"), format!("{outside:?}"));
    assert_eq!(inside.error_info().expect("ErrorInfo").reason, "SHUTTING_DOWN");
    let bare = as_message(&Status::not_found("gone"));
    assert_eq!((bare.code, bare.message.as_str(), bare.details.len()), (5, "gone", 0));
}

/// Trailers have to stay below 8 KiB, whatever is wrong with how many items.
#[test]
fn very_many_violations_are_counted_and_not_all_named() {
    use crate::grpc::convert::{Limits, kv};
    use crate::proto::v1;
    let refused = |item| {
        let items = vec![item; 1_000];
        invalid(&kv::batch_set(v1::BatchSetRequest { items }, &Limits::default()).unwrap_err())
    };
    let status = refused(v1::SetRequest::default());
    assert!(status.message().starts_with("2000 fields break rules"), "{status:?}");
    assert!(status.message().contains("items[0].key must not be empty"));
    assert_eq!(status.get_details_bad_request().unwrap().field_violations.len(), VIOLATIONS_MAX);
    assert_eq!(status.get_details_error_info().unwrap().metadata["violations"], "2000");
    let long = v1::SetRequest {
        key: "x".repeat(512),
        content: Some(v1::set_request::Content::Text(String::new())),
        ..Default::default()
    };
    let duplicates = refused(long);
    assert_eq!(duplicates.get_details_error_info().unwrap().metadata["violations"], "999");
    for status in [status, duplicates] {
        // In base64.
        let bytes = status.message().len() + status.details().len() / 3 * 4;
        assert!(bytes < 8_000, "{bytes}");
    }
}
