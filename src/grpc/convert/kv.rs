//! `KvService`, wire to domain and back.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::Status;

use super::{Fields, Invalid, Limits, ListRequest, PAGE_BYTES_MAX, duration, page_token_from};
use crate::grpc::status::{self, Reason};
use crate::ids::{Key, LockName, RequestId};
use crate::kv::watch::Scope;
use crate::kv::{
    Effect, Entry, Fence, KeyPage, ListedKey, Mutation, Precondition, WatchEvent, Watched, Write, Written,
};
use crate::proto::v1;
use crate::token::Token;

impl Fields<'_> {
    fn key(&mut self, text: &str) -> Option<Key> {
        self.name_of("key", text, Key::parse)
    }

    /// The outer `Option` is for a refusal, the inner for "not given". In whole milliseconds, as it is kept.
    fn key_ttl(&mut self, value: Option<&prost_types::Duration>) -> Option<Option<Duration>> {
        let ttl = self.ttl_within("ttl", value, (self.limits.key_ttl_min, self.limits.key_ttl_max))?;
        let whole = |ttl: Duration| Duration::new(ttl.as_secs(), ttl.subsec_millis() * 1_000_000);
        Some(ttl.map(whole))
    }

    fn content(&mut self, content: Option<v1::set_request::Content>) -> Option<Bytes> {
        use v1::set_request::Content;
        let (field, data) = match content {
            Some(Content::Value(value)) => ("value", value),
            Some(Content::Text(text)) => ("text", text.into()),
            None => {
                let text =
                    "is not given, and neither is text; an empty one has to be given as such".to_owned();
                return self.refuse("value", Reason::InvalidValue, text, vec![]);
            }
        };
        let names = ["value_bytes", "value_bytes_max"];
        self.bytes_within(field, data.len(), self.limits.value_bytes_max, names)?;
        Some(data)
    }

    fn version(&mut self, value: u64) -> Option<Token> {
        self.token("version", Reason::InvalidVersion, ["version", "version_max"], value)
    }

    fn precondition(&mut self, given: Option<v1::set_request::Precondition>) -> Option<Precondition> {
        use v1::set_request::Precondition as Given;
        let unclear = |field| (field, "must be true if it is given: false would leave open what is meant");
        let (field, rule) = match given {
            None => return Some(Precondition::None),
            Some(Given::Absent(true)) => return Some(Precondition::Absent),
            Some(Given::Present(true)) => return Some(Precondition::Present),
            Some(Given::Version(version)) => return self.version(version).map(Precondition::Version),
            Some(Given::Absent(false)) => unclear("absent"),
            Some(Given::Present(false)) => unclear("present"),
        };
        self.refuse(field, Reason::InvalidPrecondition, rule.to_owned(), vec![])
    }

    /// The outer `Option` is for a refusal, the inner for "not given".
    fn request_id(&mut self, text: Option<&str>) -> Option<Option<RequestId>> {
        let Some(text) = text else { return Some(None) };
        match RequestId::parse(text) {
            Some(id) => Some(Some(id)),
            None => self.refuse(
                "request_id",
                Reason::InvalidRequestId,
                "must be a UUID: 32 hexadecimal digits, with its hyphens or without".to_owned(),
                vec![("request_id_digits", "32".to_owned())],
            ),
        }
    }

    /// The outer `Option` is for a refusal, the inner for "not given".
    fn fence(&mut self, fence: Option<&v1::Fence>) -> Option<Option<Fence>> {
        let Some(fence) = fence else { return Some(None) };
        let lock = self.name_of("fence.lock", &fence.lock, LockName::parse);
        let token = self.fencing_token("fence.token", fence.token);
        Some(Some(Fence { lock: lock?, token: token? }))
    }

    fn set(&mut self, request: v1::SetRequest) -> Option<(Key, Mutation)> {
        let key = self.key(&request.key);
        let data = self.content(request.content);
        let ttl = self.key_ttl(request.ttl.as_ref());
        let precondition = self.precondition(request.precondition);
        let id = self.request_id(request.request_id.as_deref());
        let fence = self.fence(request.fence.as_ref());
        let write = Write::Set { data: data?, ttl: ttl?, precondition: precondition? };
        Some((key?, Mutation { write, request: id?, fence: fence?, previous: request.return_previous }))
    }
}

/// A `Get`.
///
/// # Errors
/// [`Invalid`] with every field that breaks a rule; so for all parsers here.
pub fn get(request: &v1::GetRequest, limits: &Limits) -> Result<Key, Invalid> {
    let mut fields = Fields::new(limits);
    let key = fields.key(&request.key);
    fields.finish(key)
}

/// A `Set`.
pub fn set(request: v1::SetRequest, limits: &Limits) -> Result<(Key, Mutation), Invalid> {
    let mut fields = Fields::new(limits);
    let parsed = fields.set(request);
    fields.finish(parsed)
}

/// A `Delete`.
pub fn delete(request: &v1::DeleteRequest, limits: &Limits) -> Result<(Key, Mutation), Invalid> {
    let mut fields = Fields::new(limits);
    let key = fields.key(&request.key);
    let version = match request.version {
        None => Some(None),
        Some(version) => fields.version(version).map(Some),
    };
    let id = fields.request_id(request.request_id.as_deref());
    let fence = fields.fence(request.fence.as_ref());
    let parsed = || {
        let write = Write::Delete { version: version? };
        Some((key?, Mutation { write, request: id?, fence: fence?, previous: request.return_previous }))
    };
    fields.finish(parsed())
}

/// An `Increment`.
pub fn increment(request: &v1::IncrementRequest, limits: &Limits) -> Result<(Key, Mutation), Invalid> {
    let mut fields = Fields::new(limits);
    let key = fields.key(&request.key);
    let ttl = fields.key_ttl(request.ttl.as_ref());
    let id = fields.request_id(request.request_id.as_deref());
    let fence = fields.fence(request.fence.as_ref());
    let parsed = || {
        let (delta, initial) = (request.delta.unwrap_or(1), request.initial);
        let write = Write::Increment { delta, initial, ttl: ttl? };
        Some((key?, Mutation { write, request: id?, fence: fence?, previous: false }))
    };
    fields.finish(parsed())
}

/// A `Touch`.
pub fn touch(request: &v1::TouchRequest, limits: &Limits) -> Result<(Key, Mutation), Invalid> {
    let mut fields = Fields::new(limits);
    let key = fields.key(&request.key);
    let ttl = fields.key_ttl(request.ttl.as_ref());
    let id = fields.request_id(request.request_id.as_deref());
    let fence = fields.fence(request.fence.as_ref());
    let parsed = || {
        let write = Write::Touch { ttl: ttl? };
        Some((key?, Mutation { write, request: id?, fence: fence?, previous: false }))
    };
    fields.finish(parsed())
}

/// A `BatchGet`.
pub fn batch_get(request: v1::BatchGetRequest, limits: &Limits) -> Result<Vec<Key>, Invalid> {
    let mut fields = Fields::new(limits);
    let fits = fields.count("keys", request.keys.len());
    let keys = fits.and_then(|()| {
        fields.each("keys", request.keys, |fields, text| fields.name_of("", &text, Key::parse))
    });
    fields.finish(keys)
}

/// A `BatchSet`.
pub fn batch_set(request: v1::BatchSetRequest, limits: &Limits) -> Result<Vec<(Key, Mutation)>, Invalid> {
    let mut fields = Fields::new(limits);
    let fits = fields.count("items", request.items.len());
    let bytes = || request.items.iter().map(bytes_of).sum();
    let fits = fits.and_then(|()| fields.batch_bytes("bytes of keys and values", bytes()));
    let mut seen = BTreeSet::new();
    let items = fits.and_then(|()| {
        fields.each("items", request.items, |fields, item| {
            if item.return_previous {
                let text = "is not for batches: the values before might not fit into the answer".to_owned();
                fields.refuse::<()>("return_previous", Reason::InvalidReturnPrevious, text, vec![]);
            }
            let (key, mutation) = fields.set(item)?;
            if seen.insert(key.clone()) {
                return Some((key, mutation));
            }
            let text = format!("is {key}, as in an item before; items are set in no order");
            fields.refuse("key", Reason::DuplicateKey, text, vec![("key", key.as_str().to_owned())])
        })
    });
    fields.finish(items)
}

fn bytes_of(item: &v1::SetRequest) -> usize {
    use v1::set_request::Content;
    let content = match &item.content {
        Some(Content::Value(value)) => value.len(),
        Some(Content::Text(text)) => text.len(),
        None => 0,
    };
    item.key.len() + content
}

/// A `ListKeys`, and whether the values are wanted.
pub fn list(request: &v1::ListKeysRequest, limits: &Limits) -> Result<(ListRequest, bool), Invalid> {
    let mut fields = Fields::new(limits);
    let parsed = fields.list(&request.prefix, request.page_size, &request.page_token);
    fields.finish(parsed.map(|asked| (asked, request.with_values)))
}

/// A `Watch`.
pub fn watch(request: &v1::WatchRequest, limits: &Limits) -> Result<Watched, Invalid> {
    use v1::watch_request::Target;
    let mut fields = Fields::new(limits);
    let scope = match &request.target {
        Some(Target::Key(key)) => fields.key(key).map(Scope::Key),
        Some(Target::Prefix(prefix)) => fields.prefix(prefix).map(Scope::Prefix),
        None => {
            let text = "is not given, and neither is prefix".to_owned();
            fields.refuse("key", Reason::InvalidName, text, vec![])
        }
    };
    let after = match request.start_version {
        0 => Some(None),
        version => fields
            .token("start_version", Reason::InvalidVersion, ["version", "version_max"], version)
            .map(Some),
    };
    let parsed = || Some(Watched { scope: scope?, after: after? });
    fields.finish(parsed())
}

fn key_value(key: &Key, entry: Entry) -> v1::KeyValue {
    v1::KeyValue {
        key: key.as_str().to_owned(),
        value: entry.data,
        version: entry.version.get(),
        remaining: entry.remaining.map(duration),
    }
}

/// The answer to a `Get`.
pub fn got(key: &Key, entry: Option<Entry>) -> v1::GetResponse {
    v1::GetResponse { key_value: entry.map(|entry| key_value(key, entry)) }
}

fn number_of(version: Option<Token>) -> u64 {
    version.map_or(0, Token::get)
}

/// The answer to a `Set` that came `elapsed` ago.
pub fn was_set(key: &Key, written: Written, elapsed: Duration) -> v1::SetResponse {
    let Effect::Set { version, ttl } = written.effect else { unreachable!("a set sets") };
    // Of a repeat nobody knows how long ago it was done.
    let left = |ttl: Duration| if written.repeated { Duration::ZERO } else { ttl.saturating_sub(elapsed) };
    let entry = Entry { data: Bytes::new(), version, remaining: ttl.map(left) };
    v1::SetResponse {
        key_value: Some(key_value(key, entry)),
        previous: written.previous.map(|previous| key_value(key, previous)),
        repeated: written.repeated,
    }
}

/// The answer to a `Delete`.
pub fn was_deleted(key: &Key, written: Written) -> v1::DeleteResponse {
    let Effect::Deleted { version } = written.effect else { unreachable!("a delete deletes") };
    v1::DeleteResponse {
        deleted: version.is_some(),
        version: number_of(version),
        previous: written.previous.map(|previous| key_value(key, previous)),
        repeated: written.repeated,
    }
}

/// The answer to an `Increment`.
pub fn was_counted(written: &Written) -> v1::IncrementResponse {
    let Effect::Counted { number, version } = written.effect else { unreachable!("an increment counts") };
    v1::IncrementResponse { number, version: version.get(), repeated: written.repeated }
}

/// The answer to a `Touch`.
pub fn was_touched(written: &Written) -> v1::TouchResponse {
    let Effect::Touched { version, .. } = written.effect else { unreachable!("a touch touches") };
    v1::TouchResponse { found: version.is_some(), version: number_of(version), repeated: written.repeated }
}

/// The answer to a `BatchGet` while it is put together: entries in their order, until it is full.
#[derive(Debug, Default)]
pub struct BatchEntries {
    entries: Vec<v1::batch_get_response::Entry>,
    bytes: usize,
}

impl BatchEntries {
    /// Adds the entry of one key, unless there is no room for it. Whether there was.
    pub fn add(&mut self, key: &Key, read: Result<Option<Entry>, Status>) -> bool {
        use v1::batch_get_response::entry::{Absent, Outcome};
        let outcome = match read {
            Ok(Some(entry)) => Outcome::KeyValue(key_value(key, entry)),
            Ok(None) => Outcome::Absent(Absent {}),
            Err(status) => Outcome::Error(status::as_message(&status)),
        };
        let entry = v1::batch_get_response::Entry { outcome: Some(outcome) };
        let bytes = self.bytes + entry.encoded_len();
        if bytes > PAGE_BYTES_MAX && !self.entries.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.entries.push(entry);
        true
    }

    /// The answer for so many keys: those that are not there did not fit.
    pub fn finish(mut self, keys: usize) -> v1::BatchGetResponse {
        use v1::batch_get_response::entry::Outcome;
        let full = Outcome::Error(status::as_message(&status::answer_full(PAGE_BYTES_MAX)));
        self.entries.resize(keys, v1::batch_get_response::Entry { outcome: Some(full) });
        v1::BatchGetResponse { entries: self.entries }
    }
}

/// What became of one item of a `BatchSet`.
pub fn batch_result(set: Result<v1::SetResponse, Status>) -> v1::batch_set_response::Result {
    use v1::batch_set_response::result::Outcome;
    let outcome = match set {
        Ok(set) => Outcome::Set(set),
        Err(status) => Outcome::Error(status::as_message(&status)),
    };
    v1::batch_set_response::Result { outcome: Some(outcome) }
}

/// A page of `ListKeys`, cut short where it would be more than clients take.
pub fn key_page(page: KeyPage, with_values: bool) -> v1::ListKeysResponse {
    let found = page.keys.len();
    let mut bytes = 0;
    let mut keys = Vec::with_capacity(found);
    for ListedKey { key, mut entry } in page.keys {
        if !with_values {
            entry.data = Bytes::new();
        }
        let shown = key_value(&key, entry);
        bytes += shown.encoded_len();
        // The first may be larger where values may be; the list has to go on.
        if bytes > PAGE_BYTES_MAX && !keys.is_empty() {
            break;
        }
        keys.push(shown);
    }
    let last = keys.last().map(|shown| shown.key.clone());
    let next = if keys.len() < found { last } else { page.next };
    v1::ListKeysResponse { keys, next_page_token: next.as_deref().map(page_token_from).unwrap_or_default() }
}

/// An event of a `Watch`.
pub fn watch_event(event: WatchEvent) -> v1::WatchResponse {
    use v1::watch_response::{Event, Removed, Synced, Value};
    let event = match event {
        WatchEvent::Value { key, entry, missed } => {
            Event::Value(Value { key_value: Some(key_value(&key, entry)), missed })
        }
        WatchEvent::Removed { key, version, missed } => {
            Event::Removed(Removed { key: key.as_str().to_owned(), version: version.get(), missed })
        }
        WatchEvent::Synced => Event::Synced(Synced {}),
    };
    v1::WatchResponse { event: Some(event) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{paths, refused, wire};
    use super::*;
    use crate::grpc::convert::page_token_to_name;
    use v1::set_request::{Content, Precondition as Given};

    const ID: &str = "01234567-89ab-cdef-fedc-ba9876543210";

    fn valid(key: &str) -> v1::SetRequest {
        let content = Some(Content::Text("x".to_owned()));
        v1::SetRequest { key: key.to_owned(), content, ..Default::default() }
    }

    fn parse(request: v1::SetRequest) -> Result<(Key, Mutation), Invalid> {
        set(request, &Limits::default())
    }

    fn listed(name: &str, bytes: usize) -> ListedKey {
        let entry = Entry { data: vec![7; bytes].into(), version: Token::new(5).unwrap(), remaining: None };
        ListedKey { key: Key::parse(name).unwrap(), entry }
    }

    #[test]
    fn a_bare_set_sets_for_good_whatever_is_there() {
        let (key, mutation) = parse(valid("orders")).unwrap();
        let write =
            Write::Set { data: Bytes::from_static(b"x"), ttl: None, precondition: Precondition::None };
        assert_eq!((key.as_str(), mutation), ("orders", Mutation::from(write)));
    }

    #[test]
    fn everything_that_a_set_may_carry_arrives() {
        let request = v1::SetRequest {
            content: Some(Content::Value(Bytes::new())),
            ttl: wire(2, 1_999_999),
            precondition: Some(Given::Version(7)),
            return_previous: true,
            request_id: Some(ID.to_owned()),
            fence: Some(v1::Fence { lock: "l".to_owned(), token: 9 }),
            ..valid("orders")
        };
        let (_, mutation) = parse(request).unwrap();
        let token = |value| Token::new(value).unwrap();
        let precondition = Precondition::Version(token(7));
        // Time is kept in whole milliseconds.
        let ttl = Some(Duration::from_millis(2_001));
        let expected = Mutation {
            write: Write::Set { data: Bytes::new(), ttl, precondition },
            request: RequestId::parse(ID),
            fence: Some(Fence { lock: LockName::parse("l").unwrap(), token: token(9) }),
            previous: true,
        };
        assert_eq!(mutation, expected);
    }

    #[test]
    fn each_field_of_a_set_keeps_to_its_rule() {
        let fence = |lock: &str, token| Some(v1::Fence { lock: lock.to_owned(), token });
        let id = |text: &str| Some(text.to_owned());
        let large = Some(Content::Value(vec![0; (1 << 20) + 1].into()));
        let long = Some(Content::Text("x".repeat((1 << 20) + 1)));
        let good = || valid("orders");
        let cases: Vec<(v1::SetRequest, &[(&str, Reason)])> = vec![
            (valid(""), &[("key", Reason::InvalidName)]),
            (valid("a\n"), &[("key", Reason::InvalidName)]),
            (valid(&"x".repeat(513)), &[("key", Reason::InvalidName)]),
            (v1::SetRequest { content: None, ..good() }, &[("value", Reason::InvalidValue)]),
            (v1::SetRequest { content: large, ..good() }, &[("value", Reason::TooLarge)]),
            (v1::SetRequest { content: long, ..good() }, &[("text", Reason::TooLarge)]),
            (v1::SetRequest { ttl: wire(0, 999_999_999), ..good() }, &[("ttl", Reason::InvalidTtl)]),
            (v1::SetRequest { ttl: wire(365 * 86_400, 1), ..good() }, &[("ttl", Reason::InvalidTtl)]),
            (v1::SetRequest { ttl: wire(-1, 0), ..good() }, &[("ttl", Reason::InvalidTtl)]),
            (
                v1::SetRequest { precondition: Some(Given::Absent(false)), ..good() },
                &[("absent", Reason::InvalidPrecondition)],
            ),
            (
                v1::SetRequest { precondition: Some(Given::Present(false)), ..good() },
                &[("present", Reason::InvalidPrecondition)],
            ),
            (
                v1::SetRequest { precondition: Some(Given::Version(0)), ..good() },
                &[("version", Reason::InvalidVersion)],
            ),
            (
                v1::SetRequest { precondition: Some(Given::Version(1 << 53)), ..good() },
                &[("version", Reason::InvalidVersion)],
            ),
            (v1::SetRequest { request_id: id(""), ..good() }, &[("request_id", Reason::InvalidRequestId)]),
            (
                v1::SetRequest { request_id: id(&ID[1..]), ..good() },
                &[("request_id", Reason::InvalidRequestId)],
            ),
            (
                v1::SetRequest { fence: fence("", 0), ..good() },
                &[("fence.lock", Reason::InvalidName), ("fence.token", Reason::InvalidFencingToken)],
            ),
            (
                v1::SetRequest { fence: fence("l", 1 << 53), ..good() },
                &[("fence.token", Reason::InvalidFencingToken)],
            ),
        ];
        for (request, expected) in cases {
            assert_eq!(refused(parse(request)), expected);
        }
        let edge = v1::SetRequest {
            content: Some(Content::Value(vec![0; 1 << 20].into())),
            ttl: wire(365 * 86_400, 0),
            ..valid(&"ü".repeat(256))
        };
        assert!(parse(edge).is_ok());
    }

    #[test]
    fn what_other_writes_leave_out_has_its_default() {
        let limits = Limits::default();
        let key = || "n".to_owned();
        let (_, counted) =
            increment(&v1::IncrementRequest { key: key(), ..Default::default() }, &limits).unwrap();
        assert_eq!(counted.write, Write::Increment { delta: 1, initial: 0, ttl: None });
        let zero = v1::IncrementRequest { key: key(), delta: Some(0), initial: -7, ..Default::default() };
        let (_, counted) = increment(&zero, &limits).unwrap();
        assert_eq!(counted.write, Write::Increment { delta: 0, initial: -7, ttl: None });
        let (_, touched) = touch(&v1::TouchRequest { key: key(), ..Default::default() }, &limits).unwrap();
        assert_eq!(touched.write, Write::Touch { ttl: None });
        let (_, deleted) = delete(&v1::DeleteRequest { key: key(), ..Default::default() }, &limits).unwrap();
        assert_eq!(deleted.write, Write::Delete { version: None });
        let never = v1::DeleteRequest { key: key(), version: Some(0), ..Default::default() };
        assert_eq!(refused(delete(&never, &limits)), [("version", Reason::InvalidVersion)]);
    }

    #[test]
    fn a_batch_names_what_is_wrong_by_its_position() {
        let limits = Limits { batch_items_max: 4, batch_bytes_max: 40, ..Limits::default() };
        let batch = |items| batch_set(v1::BatchSetRequest { items }, &limits);
        assert_eq!(batch(vec![]).unwrap(), []);
        assert_eq!(batch(vec![valid("a"), valid("b")]).unwrap().len(), 2);
        let items = vec![
            valid("a"),
            v1::SetRequest { ttl: wire(0, 1), ..valid("") },
            v1::SetRequest { return_previous: true, ..valid("b") },
            valid("a"),
        ];
        let named = |path: &str, reason| (path.to_owned(), reason);
        let expected = [
            named("items[1].key", Reason::InvalidName),
            named("items[1].ttl", Reason::InvalidTtl),
            named("items[2].return_previous", Reason::InvalidReturnPrevious),
            named("items[3].key", Reason::DuplicateKey),
        ];
        assert_eq!(paths(batch(items)), expected);
        let many = (0..5).map(|n: u32| valid(&n.to_string())).collect();
        assert_eq!(paths(batch(many)), [named("items", Reason::TooLarge)]);
        // 20 bytes of key and one of text: two are too many by two.
        let large = ["a", "b"].map(|name| valid(&name.repeat(20)));
        assert_eq!(paths(batch(large.to_vec())), [named("items", Reason::TooLarge)]);
        let keys = |keys: &[&str]| {
            let keys = keys.iter().map(|key| (*key).to_owned()).collect();
            batch_get(v1::BatchGetRequest { keys }, &limits)
        };
        assert_eq!(keys(&["a", "a"]).unwrap().len(), 2);
        assert_eq!(paths(keys(&["a", "\t"])), [named("keys[1]", Reason::InvalidName)]);
        assert_eq!(paths(keys(&["a"; 5])), [named("keys", Reason::TooLarge)]);
    }

    #[test]
    fn a_watch_has_one_target() {
        use v1::watch_request::Target;
        let parse =
            |target, start_version| watch(&v1::WatchRequest { target, start_version }, &Limits::default());
        let all = parse(Some(Target::Prefix(String::new())), 0).unwrap();
        assert_eq!(all, Watched { scope: Scope::Prefix(String::new()), after: None });
        let one = parse(Some(Target::Key("a".to_owned())), 7).unwrap();
        let after = Token::new(7);
        assert_eq!(one, Watched { scope: Scope::Key(Key::parse("a").unwrap()), after });
        assert_eq!(refused(parse(None, 0)), [("key", Reason::InvalidName)]);
        assert_eq!(refused(parse(Some(Target::Key(String::new())), 0)), [("key", Reason::InvalidName)]);
        assert_eq!(
            refused(parse(Some(Target::Prefix("\0".to_owned())), 1 << 53)),
            [("prefix", Reason::InvalidName), ("start_version", Reason::InvalidVersion)]
        );
    }

    #[test]
    fn a_page_that_clients_would_refuse_is_cut_and_goes_on_after_its_last_entry() {
        let mebibyte = 1 << 20;
        let page = |sizes: &[usize], next: Option<&str>| {
            let keys = sizes.iter().enumerate().map(|(n, bytes)| listed(&format!("k{n}"), *bytes)).collect();
            KeyPage { keys, next: next.map(str::to_owned) }
        };
        let shown = |page: KeyPage, with_values| {
            let sent = key_page(page, with_values);
            assert!(sent.encoded_len() < 4 * mebibyte || sent.keys.len() == 1);
            let next = page_token_to_name(&sent.next_page_token).map(|name| name.as_str().to_owned());
            (sent.keys.len(), next)
        };
        let k = |n: usize| Some(format!("k{n}"));
        assert_eq!(shown(page(&[mebibyte; 5], Some("k9")), true), (2, k(1)));
        assert_eq!(shown(page(&[mebibyte; 2], Some("k9")), true), (2, k(9)));
        assert_eq!(shown(page(&[mebibyte; 5], None), false), (5, None));
        // Larger than any answer should be, but the list has to go on.
        assert_eq!(shown(page(&[5 * mebibyte, 1], None), true), (1, k(0)));
        assert_eq!(shown(page(&[], Some("k9")), true), (0, k(9)));
    }

    #[test]
    fn an_answer_of_many_values_is_filled_and_says_so_for_the_rest() {
        use v1::batch_get_response::entry::Outcome;
        let mut entries = BatchEntries::default();
        let ListedKey { key, entry } = listed("k", 1 << 20);
        assert!(entries.add(&key, Ok(Some(entry.clone()))));
        assert!(entries.add(&key, Ok(None)));
        assert!(entries.add(&key, Ok(Some(entry.clone()))));
        assert!(!entries.add(&key, Ok(Some(entry))));
        let sent = entries.finish(1_000);
        assert!(sent.encoded_len() < 4 << 20);
        assert_eq!(sent.entries.len(), 1_000);
        let outcome = |at: usize| sent.entries[at].outcome.clone().expect("set");
        assert!(matches!((outcome(0), outcome(1)), (Outcome::KeyValue(_), Outcome::Absent(_))));
        for at in [3, 999] {
            let Outcome::Error(error) = outcome(at) else { panic!("{at}") };
            assert_eq!(error.code, i32::from(tonic::Code::ResourceExhausted));
            assert_eq!(error.details.len(), 1, "ErrorInfo");
        }
    }

    #[test]
    fn a_set_says_what_is_left_of_its_time_and_a_repeat_promises_none() {
        let key = Key::parse("k").unwrap();
        let version = Token::new(5).unwrap();
        let second = Duration::from_secs;
        let left = |ttl: Option<u64>, repeated, elapsed| {
            let effect = Effect::Set { version, ttl: ttl.map(second) };
            let sent = was_set(&key, Written { effect, previous: None, repeated }, second(elapsed));
            sent.key_value.expect("always there").remaining
        };
        assert_eq!(left(Some(30), false, 2), wire(28, 0));
        assert_eq!(left(Some(30), false, 31), wire(0, 0));
        assert_eq!(left(Some(30), true, 0), wire(0, 0));
        assert_eq!(left(None, true, 0), None);
    }
}
