//! Items and queues as they are printed. Names of JSON fields are for scripts, and only grow.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::client::from_proto;
use crate::cli::{put_bytes, table, text_of};
use crate::proto::v1;

/// Titles and texts, one to a line.
pub(super) fn block(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(title, _)| title.len() + 2).max().unwrap_or(0);
    let line = |(title, text): &(&str, String)| {
        format!("{:<width$}{}", format!("{title}:"), one_line(text)).trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Without what could command a terminal, or look like another line.
fn one_line(text: &str) -> String {
    text_of(text.replace('\n', "\\n").as_bytes())
}

fn seconds(length: Duration) -> String {
    format!("{:.1}s", length.as_secs_f64())
}

/// A setting, which people type in whole units.
fn setting(length: Option<prost_types::Duration>) -> String {
    humantime::format_duration(from_proto(length)).to_string()
}

fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or("-".to_owned(), ToString::to_string)
}

fn attributes(attributes: &BTreeMap<String, String>) -> impl Iterator<Item = (&'static str, String)> {
    attributes.iter().map(|(name, value)| ("attribute", format!("{name}={value}")))
}

/// With the lease id: whoever reserves needs it.
pub(super) fn reserved_text(item: &v1::ReservedItem) -> String {
    let mut rows = vec![
        ("id", item.id.clone()),
        ("lease id", item.lease_id.clone()),
        ("fencing token", item.fencing_token.to_string()),
        ("attempt", item.attempt.to_string()),
        ("priority", item.priority.to_string()),
        ("put", time(item.put_time.as_ref())),
        ("ttl", seconds(from_proto(item.ttl))),
        ("remaining", seconds(from_proto(item.remaining))),
    ];
    rows.extend(attributes(&item.attributes));
    rows.push(("payload", text_of(&item.payload)));
    block(&rows)
}

pub(super) fn reserved_json(item: &v1::ReservedItem) -> Value {
    let mut object = json!({
        "id": item.id,
        "lease_id": item.lease_id,
        "fencing_token": item.fencing_token,
        "attempt": item.attempt,
        "priority": item.priority,
        "put_time": item.put_time.as_ref().map(ToString::to_string),
        "ttl_ms": ms(from_proto(item.ttl)),
        "remaining_ms": ms(from_proto(item.remaining)),
        "attributes": item.attributes,
    });
    put_bytes(&mut object, "payload", &item.payload);
    object
}

pub(super) fn state_name(state: v1::ItemState) -> &'static str {
    match state {
        v1::ItemState::Unspecified => "unknown",
        v1::ItemState::Ready => "ready",
        v1::ItemState::Delayed => "delayed",
        v1::ItemState::Leased => "leased",
        v1::ItemState::Dead => "dead",
        v1::ItemState::Done => "done",
    }
}

pub(super) fn item_text(item: &v1::Item) -> String {
    let mut rows = vec![("id", item.id.clone()), ("state", state_name(item.state()).to_owned())];
    rows.extend(item.remaining.map(|left| ("remaining", seconds(from_proto(Some(left))))));
    rows.push(("attempts", item.attempts.to_string()));
    rows.push(("priority", item.priority.to_string()));
    rows.push(("put", time(item.put_time.as_ref())));
    rows.push(("fencing token", token(item.fencing_token)));
    rows.extend(Some(("reason", item.reason.clone())).filter(|(_, reason)| !reason.is_empty()));
    rows.extend(attributes(&item.attributes));
    rows.push(("payload", text_of(&item.payload)));
    block(&rows)
}

fn token(token: u64) -> String {
    if token == 0 { "-".to_owned() } else { token.to_string() }
}

pub(super) fn item_json(item: &v1::Item, with_payload: bool) -> Value {
    let mut object = json!({
        "id": item.id,
        "state": state_name(item.state()),
        "attempts": item.attempts,
        "priority": item.priority,
        "put_time": item.put_time.as_ref().map(ToString::to_string),
        "fencing_token": item.fencing_token,
        "reason": item.reason,
        "attributes": item.attributes,
    });
    if let Some(left) = item.remaining {
        object["remaining_ms"] = ms(from_proto(Some(left))).into();
    }
    if with_payload {
        put_bytes(&mut object, "payload", &item.payload);
    }
    object
}

pub(super) fn dead_table(items: &[v1::Item]) -> String {
    let row = |item: &v1::Item| {
        vec![
            item.id.clone(),
            item.attempts.to_string(),
            item.priority.to_string(),
            time(item.put_time.as_ref()),
            one_line(&item.reason),
        ]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    table(&["ID", "ATTEMPTS", "PRIORITY", "PUT", "REASON"], &rows)
}

fn age(queue: &v1::Queue) -> Option<Duration> {
    queue.oldest_ready_age.map(|age| from_proto(Some(age)))
}

pub(super) fn queue_text(queue: &v1::Queue) -> String {
    let mut rows = vec![
        ("queue", queue.name.clone()),
        ("ready", queue.ready.to_string()),
        ("oldest ready", age(queue).map_or("-".to_owned(), seconds)),
        ("delayed", queue.delayed.to_string()),
        ("leased", queue.leased.to_string()),
        ("dead", queue.dead.to_string()),
        ("done", queue.done.to_string()),
    ];
    rows.extend(settings_rows(&queue.settings.unwrap_or_default()));
    block(&rows)
}

pub(super) fn queue_json(queue: &v1::Queue) -> Value {
    json!({
        "name": queue.name,
        "ready": queue.ready,
        "oldest_ready_age_ms": age(queue).map(ms),
        "delayed": queue.delayed,
        "leased": queue.leased,
        "dead": queue.dead,
        "done": queue.done,
        "settings": settings_json(&queue.settings.unwrap_or_default()),
    })
}

pub(super) fn queue_table(queues: &[v1::Queue]) -> String {
    let row = |queue: &v1::Queue| {
        vec![
            queue.name.clone(),
            queue.ready.to_string(),
            age(queue).map_or("-".to_owned(), seconds),
            queue.delayed.to_string(),
            queue.leased.to_string(),
            queue.dead.to_string(),
            queue.done.to_string(),
        ]
    };
    let rows: Vec<_> = queues.iter().map(row).collect();
    table(&["NAME", "READY", "OLDEST", "DELAYED", "LEASED", "DEAD", "DONE"], &rows)
}

/// Zero of a setting that has no bound then.
fn or_none(count: u64) -> String {
    if count == 0 { "-".to_owned() } else { count.to_string() }
}

pub(super) fn settings_rows(settings: &v1::QueueSettings) -> Vec<(&'static str, String)> {
    vec![
        ("lease ttl", setting(settings.lease_ttl)),
        ("max attempts", or_none(settings.max_attempts.into())),
        ("backoff min", setting(settings.backoff_min)),
        ("backoff max", setting(settings.backoff_max)),
        ("max items", or_none(settings.max_items)),
        ("done retention", setting(settings.done_retention)),
    ]
}

pub(super) fn settings_json(settings: &v1::QueueSettings) -> Value {
    json!({
        "lease_ttl_ms": ms(from_proto(settings.lease_ttl)),
        "max_attempts": settings.max_attempts,
        "backoff_min_ms": ms(from_proto(settings.backoff_min)),
        "backoff_max_ms": ms(from_proto(settings.backoff_max)),
        "max_items": settings.max_items,
        "done_retention_ms": ms(from_proto(settings.done_retention)),
    })
}

/// What became of a lease, for people.
pub(super) fn outcome_text(outcome: v1::LeaseOutcome) -> &'static str {
    match outcome {
        v1::LeaseOutcome::Ok => "done as asked",
        v1::LeaseOutcome::Buried => "it was tried as often as it may be, and is dead now",
        v1::LeaseOutcome::LeaseLost => "the lease is lost: it ran out or was given back",
        v1::LeaseOutcome::AlreadyDone => "the item is done already",
        v1::LeaseOutcome::NoSuchItem => "there is no such item",
        v1::LeaseOutcome::Unspecified => "the daemon is newer and said what this command does not know",
    }
}

/// The same for programs.
pub(super) fn outcome_name(outcome: v1::LeaseOutcome) -> &'static str {
    match outcome {
        v1::LeaseOutcome::Ok => "ok",
        v1::LeaseOutcome::Buried => "buried",
        v1::LeaseOutcome::LeaseLost => "lease_lost",
        v1::LeaseOutcome::AlreadyDone => "already_done",
        v1::LeaseOutcome::NoSuchItem => "no_such_item",
        v1::LeaseOutcome::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::to_proto;

    #[test]
    fn a_reserved_item_is_shown_with_what_acks_it() {
        let item = v1::ReservedItem {
            id: "i".into(),
            payload: b"a\n\x1b[31m".as_slice().into(),
            attributes: [("kind".to_owned(), "x".to_owned())].into(),
            priority: -5,
            attempt: 2,
            lease_id: "secret".into(),
            fencing_token: 7,
            ttl: Some(to_proto(Duration::from_secs(30))),
            remaining: Some(to_proto(Duration::from_millis(29_940))),
            put_time: None,
        };
        let text = reserved_text(&item);
        for line in [
            "id:            i",
            "lease id:      secret",
            "fencing token: 7",
            "attempt:       2",
            "priority:      -5",
            "put:           -",
            "remaining:     29.9s",
            "attribute:     kind=x",
            "payload:       a\\n\u{fffd}[31m",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        let json = reserved_json(&item);
        assert_eq!((&json["lease_id"], &json["payload"]), (&json!("secret"), &json!("a\n\x1b[31m")));
        assert_eq!((&json["remaining_ms"], &json["attributes"]), (&json!(29_940), &json!({ "kind": "x" })));
        let bytes = v1::ReservedItem { payload: b"\xff".as_slice().into(), ..item };
        assert_eq!(reserved_json(&bytes)["payload_base64"], json!("/w=="));
    }

    #[test]
    fn queues_and_dead_items_are_shown_in_lines() {
        let settings = v1::QueueSettings {
            lease_ttl: Some(to_proto(Duration::from_secs(90))),
            max_attempts: 10,
            ..v1::QueueSettings::default()
        };
        let queue = v1::Queue {
            name: "q".into(),
            settings: Some(settings),
            ready: 3,
            oldest_ready_age: Some(to_proto(Duration::from_millis(1_500))),
            ..v1::Queue::default()
        };
        let text = queue_text(&queue);
        for line in
            ["ready:          3", "oldest ready:   1.5s", "lease ttl:      1m 30s", "max items:      -"]
        {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert_eq!(queue_json(&queue)["settings"]["lease_ttl_ms"], json!(90_000));
        assert_eq!(queue_table(&[queue]).lines().count(), 2);
        let dead = v1::Item { id: "i".into(), reason: "no\nway".into(), attempts: 10, ..v1::Item::default() };
        let text = dead_table(&[dead]);
        assert!(text.ends_with("i   10        0         -    no\\nway"), "{text}");
    }
}
