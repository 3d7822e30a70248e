//! Wire to domain, with all validation, and domain to wire: [`lock`], [`queue`], [`kv`], [`cluster`], and here what they share.
//!
//! A request is parsed as a whole: every field that is wrong becomes a [`Violation`], and the caller learns all of them at
//! once. What passed is in domain types and is not checked again behind the edge.

pub mod cluster;
pub mod kv;
pub mod lock;
pub mod queue;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::status::Reason;
use crate::ids::{Attributes, InvalidName, LeaseId, LockName};
use crate::limits;
use crate::token::Token;

/// The longest page token that is looked at, in bytes: base64 of the longest name, and some room.
const PAGE_TOKEN_BYTES_MAX: usize = 1024;
/// The largest page, in bytes of its entries: gRPC clients refuse messages above 4 MiB unless told otherwise.
const PAGE_BYTES_MAX: usize = 3 << 20;
/// The longest `google.protobuf.Duration`, in seconds: 10,000 years, as its definition says.
const WIRE_SECONDS_MAX: i64 = 315_576_000_000;

/// What requests are held against. The defaults are those of [`crate::limits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The shortest TTL, included.
    pub ttl_min: Duration,
    /// The longest TTL, included.
    pub ttl_max: Duration,
    /// The TTL of a lease whose caller named none.
    pub ttl_default: Duration,
    /// Longest name and prefix, in bytes; more than [`limits::NAME_BYTES_MAX`] has no effect.
    pub name_bytes_max: usize,
    /// Longest owner, in bytes; more than [`limits::OWNER_BYTES_MAX`] has no effect.
    pub owner_bytes_max: usize,
    /// Most attributes, in entries.
    pub attributes_max: usize,
    /// Most attributes, keys and values together, in bytes.
    pub attributes_bytes_max: usize,
    /// Most entries of a page; who asks for more gets this many.
    pub page_size_max: usize,
    /// Entries of a page when the caller names no size.
    pub page_size_default: usize,
    /// The shortest TTL of a key, included.
    pub key_ttl_min: Duration,
    /// The longest TTL of a key, included.
    pub key_ttl_max: Duration,
    /// The largest value of a key, in bytes.
    pub value_bytes_max: usize,
    /// The largest payload of an item, in bytes.
    pub payload_bytes_max: usize,
    /// Most items of a batch.
    pub batch_items_max: usize,
    /// Most keys and values, or items, of a batch together, in bytes.
    pub batch_bytes_max: usize,
    /// The longest wait in line; who asks for more waits this long. It bounds calls that have no deadline.
    pub wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ttl_min: limits::TTL_MIN,
            ttl_max: limits::TTL_MAX,
            ttl_default: limits::TTL_DEFAULT,
            name_bytes_max: limits::NAME_BYTES_MAX,
            owner_bytes_max: limits::OWNER_BYTES_MAX,
            attributes_max: limits::ATTRIBUTES_MAX,
            attributes_bytes_max: limits::ATTRIBUTES_BYTES_MAX,
            page_size_max: limits::PAGE_SIZE_MAX,
            page_size_default: limits::PAGE_SIZE_DEFAULT,
            key_ttl_min: limits::TTL_MIN,
            key_ttl_max: limits::KEY_TTL_MAX_DEFAULT,
            value_bytes_max: limits::VALUE_BYTES_MAX,
            payload_bytes_max: limits::PAYLOAD_BYTES_MAX,
            batch_items_max: limits::BATCH_ITEMS_MAX,
            batch_bytes_max: limits::BATCH_BYTES_TOTAL_MAX,
            wait_max: Duration::from_secs(86_400),
        }
    }
}

/// One field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The element of a list that it is about, as the list's name and a position from 0.
    pub element: Option<(&'static str, usize)>,
    /// The field's name in the proto, within the element if there is one; empty for the element as a whole.
    pub field: &'static str,
    /// Which kind of rule.
    pub reason: Reason,
    /// What is wrong, as the rest of a sentence that starts with the field. Never repeats a secret.
    pub description: String,
    /// Every value that the description names.
    pub values: Vec<(&'static str, String)>,
}

impl Violation {
    /// The field as seen from the request, such as `items[3].ttl`.
    pub fn path(&self) -> Cow<'static, str> {
        match (self.element, self.field) {
            (None, field) => field.into(),
            (Some((list, at)), "") => format!("{list}[{at}]").into(),
            (Some((list, at)), field) => format!("{list}[{at}].{field}").into(),
        }
    }
}

/// All that is wrong with a request; at least one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(Vec<Violation>);

impl Invalid {
    /// In the order of the fields; never empty.
    pub fn violations(&self) -> &[Violation] {
        &self.0
    }
}

/// A request for a page of names, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// What the names start with.
    pub prefix: String,
    /// Most entries.
    pub page_size: usize,
    /// The name after which the page starts; empty for the first page.
    pub after: String,
}

/// Collects violations while the fields are parsed one by one.
struct Fields<'a> {
    limits: &'a Limits,
    /// Of the list whose element is being parsed.
    element: Option<(&'static str, usize)>,
    violations: Vec<Violation>,
}

impl<'a> Fields<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { limits, element: None, violations: Vec::new() }
    }

    /// `parsed` is `None` exactly if some field was refused.
    fn finish<T>(self, parsed: Option<T>) -> Result<T, Invalid> {
        match parsed {
            Some(parsed) if self.violations.is_empty() => Ok(parsed),
            Some(_) | None => {
                assert!(!self.violations.is_empty(), "a field is refused with a violation only");
                Err(Invalid(self.violations))
            }
        }
    }

    fn refuse<T>(
        &mut self,
        field: &'static str,
        reason: Reason,
        description: String,
        values: Vec<(&'static str, String)>,
    ) -> Option<T> {
        self.violations.push(Violation { element: self.element, field, reason, description, values });
        None
    }

    fn refuse_name<T>(&mut self, field: &'static str, reason: Reason, error: &InvalidName) -> Option<T> {
        let values = match error {
            InvalidName::Empty => vec![],
            InvalidName::TooLong { bytes, max } => {
                let [name, name_max] = match reason {
                    Reason::InvalidOwner => ["owner_bytes", "owner_bytes_max"],
                    Reason::InvalidItemId => ["id_bytes", "id_bytes_max"],
                    _ => ["name_bytes", "name_bytes_max"],
                };
                vec![(name, bytes.to_string()), (name_max, max.to_string())]
            }
            InvalidName::ControlCharacter { character, offset } => {
                vec![("character", format!("U+{character:04X}")), ("offset", offset.to_string())]
            }
        };
        self.refuse(field, reason, error.to_string(), values)
    }

    /// A name of something, by the rule that its type has on top of the configured length.
    fn name_of<T>(
        &mut self,
        field: &'static str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, InvalidName>,
    ) -> Option<T> {
        match within(text, self.limits.name_bytes_max).and_then(parse) {
            Ok(name) => Some(name),
            Err(error) => self.refuse_name(field, Reason::InvalidName, &error),
        }
    }

    fn name(&mut self, text: &str) -> Option<LockName> {
        self.name_of("name", text, LockName::parse)
    }

    /// As a name, but may be empty.
    fn prefix(&mut self, text: &str) -> Option<String> {
        if text.is_empty() {
            return Some(String::new());
        }
        self.name_of("prefix", text, |text| LockName::parse(text).map(|name| name.as_str().to_owned()))
    }

    /// The outer `Option` is for a refusal, the inner for "not given".
    fn duration(
        &mut self,
        field: &'static str,
        reason: Reason,
        value: Option<&prost_types::Duration>,
    ) -> Option<Option<Duration>> {
        let Some(value) = value else { return Some(None) };
        match duration_from_wire(value) {
            Ok(length) => Some(Some(length)),
            Err(rule) => self.refuse(
                field,
                reason,
                format!("{rule}, not {} s and {} ns", value.seconds, value.nanos),
                vec![("seconds", value.seconds.to_string()), ("nanos", value.nanos.to_string())],
            ),
        }
    }

    /// The outer `Option` is for a refusal, the inner for "not given". The names are those of the length and of both ends
    /// of the range in the metadata.
    fn duration_within(
        &mut self,
        (field, reason): (&'static str, Reason),
        value: Option<&prost_types::Duration>,
        (min, max): (Duration, Duration),
        [name, name_min, name_max]: [&'static str; 3],
    ) -> Option<Option<Duration>> {
        let Some(length) = self.duration(field, reason, value)? else { return Some(None) };
        if (min..=max).contains(&length) {
            return Some(Some(length));
        }
        let (length, min, max) = (format!("{length:?}"), format!("{min:?}"), format!("{max:?}"));
        self.refuse(
            field,
            reason,
            format!("is {length}; from {min} to {max} is allowed"),
            vec![(name, length), (name_min, min), (name_max, max)],
        )
    }

    /// The outer `Option` is for a refusal, the inner for "not given".
    fn ttl_within(
        &mut self,
        field: &'static str,
        value: Option<&prost_types::Duration>,
        range: (Duration, Duration),
    ) -> Option<Option<Duration>> {
        self.duration_within((field, Reason::InvalidTtl), value, range, ["ttl", "ttl_min", "ttl_max"])
    }

    /// The same for a lease, of a lock or of an item.
    fn lease_ttl(
        &mut self,
        field: &'static str,
        value: Option<&prost_types::Duration>,
    ) -> Option<Option<Duration>> {
        self.ttl_within(field, value, (self.limits.ttl_min, self.limits.ttl_max))
    }

    fn wait(&mut self, value: Option<&prost_types::Duration>) -> Option<Duration> {
        let wait = self.duration("wait_timeout", Reason::InvalidWaitTimeout, value)?.unwrap_or_default();
        Some(wait.min(self.limits.wait_max))
    }

    /// Does not repeat what was given: it may be a secret with a typing error.
    fn lease_id(&mut self, field: &'static str, text: &str) -> Option<LeaseId> {
        match LeaseId::parse(text) {
            Some(id) => Some(id),
            None => self.refuse(
                field,
                Reason::InvalidLeaseId,
                "must be 32 hexadecimal digits".to_owned(),
                vec![("lease_id_digits", "32".to_owned())],
            ),
        }
    }

    fn attributes(&mut self, given: BTreeMap<String, String>) -> Option<Attributes> {
        let (count, max) = (given.len(), self.limits.attributes_max);
        if count > max {
            return self.refuse(
                "attributes",
                Reason::InvalidAttributes,
                format!("has {count} entries; at most {max} are allowed"),
                vec![("attributes", count.to_string()), ("attributes_max", max.to_string())],
            );
        }
        let bytes: usize = given.iter().map(|(key, value)| key.len() + value.len()).sum();
        let bytes_max = self.limits.attributes_bytes_max;
        if bytes > bytes_max {
            let names = ["attributes_bytes", "attributes_bytes_max"];
            return self.too_large("attributes", "bytes of keys and values", bytes, bytes_max, names);
        }
        if given.contains_key("") {
            let text = "has an entry with an empty key".to_owned();
            return self.refuse("attributes", Reason::InvalidAttributes, text, vec![]);
        }
        // They end up in terminals and on the status page.
        let has_control = |text: &str| text.chars().any(char::is_control);
        if let Some((key, _)) = given.iter().find(|(key, value)| has_control(key) || has_control(value)) {
            let key = key.escape_debug().to_string();
            return self.refuse(
                "attributes",
                Reason::InvalidAttributes,
                format!("has a control character in the entry {key}"),
                vec![("attribute", key)],
            );
        }
        Some(given.into_iter().collect())
    }

    /// A token that may have been given out. `name` is the value's in the metadata, and so is it with `_max` behind.
    fn token(
        &mut self,
        field: &'static str,
        reason: Reason,
        [name, name_max]: [&'static str; 2],
        value: u64,
    ) -> Option<Token> {
        match Token::new(value).filter(|token| *token != Token::ZERO) {
            Some(token) => Some(token),
            None => {
                let max = Token::MAX.to_string();
                self.refuse(
                    field,
                    reason,
                    format!("is {value}; from 1 to {max} is allowed"),
                    vec![(name, value.to_string()), (name_max, max)],
                )
            }
        }
    }

    fn fencing_token(&mut self, field: &'static str, value: u64) -> Option<Token> {
        self.token(field, Reason::InvalidFencingToken, ["fencing_token", "fencing_token_max"], value)
    }

    fn page_size(&mut self, value: i32) -> Option<usize> {
        match usize::try_from(value) {
            Ok(0) => Some(self.limits.page_size_default),
            Ok(size) => Some(size.min(self.limits.page_size_max)),
            Err(_) => self.refuse(
                "page_size",
                Reason::InvalidPageSize,
                format!("is {value}; it must not be negative"),
                vec![("page_size", value.to_string())],
            ),
        }
    }

    /// The name after which the page starts; empty for the first page.
    fn page_token(&mut self, text: &str, prefix: &str) -> Option<String> {
        if text.is_empty() {
            return Some(String::new());
        }
        match page_token_to_name(text).filter(|name| name.as_str().starts_with(prefix)) {
            Some(name) => Some(name.as_str().to_owned()),
            None => self.refuse_page_token("is not the next_page_token of a page with the same prefix"),
        }
    }

    fn list(&mut self, prefix: &str, page_size: i32, page_token: &str) -> Option<ListRequest> {
        let prefix = self.prefix(prefix);
        let page_size = self.page_size(page_size);
        let after = self.page_token(page_token, prefix.as_deref().unwrap_or_default());
        Some(ListRequest { prefix: prefix?, page_size: page_size?, after: after? })
    }

    fn refuse_page_token<T>(&mut self, rule: &str) -> Option<T> {
        self.refuse("page_token", Reason::InvalidPageToken, rule.to_owned(), vec![])
    }

    /// `what` names what there are `found` of, and the names are those of that number and of the largest one allowed in
    /// the metadata.
    fn too_large<T>(
        &mut self,
        field: &'static str,
        what: &str,
        found: usize,
        max: usize,
        [name, name_max]: [&'static str; 2],
    ) -> Option<T> {
        self.refuse(
            field,
            Reason::TooLarge,
            format!("has {found} {what}; at most {max} are allowed"),
            vec![(name, found.to_string()), (name_max, max.to_string())],
        )
    }

    /// Whether a text or some bytes are no longer than they may be.
    fn bytes_within(
        &mut self,
        field: &'static str,
        bytes: usize,
        max: usize,
        names: [&'static str; 2],
    ) -> Option<()> {
        match bytes <= max {
            true => Some(()),
            false => self.too_large(field, "bytes", bytes, max, names),
        }
    }

    /// Whether so many are no more than a batch may have.
    fn count(&mut self, field: &'static str, count: usize) -> Option<()> {
        let max = self.limits.batch_items_max;
        if count <= max {
            return Some(());
        }
        self.too_large(field, "entries", count, max, ["batch_items", "batch_items_max"])
    }

    /// Whether the items of a batch are together no larger than they may be.
    fn batch_bytes(&mut self, what: &str, bytes: usize) -> Option<()> {
        let max = self.limits.batch_bytes_max;
        if bytes <= max {
            return Some(());
        }
        self.too_large("items", what, bytes, max, ["batch_bytes", "batch_bytes_max"])
    }

    /// Parses each element of a list, and has what is wrong with it named by its position.
    fn each<T, P>(
        &mut self,
        list: &'static str,
        elements: Vec<T>,
        mut parse: impl FnMut(&mut Self, T) -> Option<P>,
    ) -> Option<Vec<P>> {
        let mut parsed = Vec::with_capacity(elements.len());
        for (at, element) in elements.into_iter().enumerate() {
            self.element = Some((list, at));
            parsed.push(parse(self, element));
        }
        self.element = None;
        parsed.into_iter().collect()
    }
}

/// The configured length, where it is shorter than what the type allows.
fn within(text: &str, max: usize) -> Result<&str, InvalidName> {
    match text.len() > max {
        true => Err(InvalidName::TooLong { bytes: text.len(), max }),
        false => Ok(text),
    }
}

/// Zero or more, and well formed; the error is the rule that is broken.
fn duration_from_wire(value: &prost_types::Duration) -> Result<Duration, &'static str> {
    let prost_types::Duration { seconds, nanos } = *value;
    let mixed = (seconds > 0 && nanos < 0) || (seconds < 0 && nanos > 0);
    if mixed || nanos.unsigned_abs() >= 1_000_000_000 || seconds.unsigned_abs() > WIRE_SECONDS_MAX as u64 {
        return Err("must be well formed");
    }
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) => Ok(Duration::new(seconds, nanos)),
        (Err(_), _) | (_, Err(_)) => Err("must not be negative"),
    }
}

fn page_token_from(place: &str) -> String {
    URL_SAFE_NO_PAD.encode(place)
}

fn page_token_to_place(text: &str) -> Option<String> {
    if text.len() > PAGE_TOKEN_BYTES_MAX {
        return None;
    }
    String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

fn page_token_to_name(text: &str) -> Option<LockName> {
    LockName::parse(&page_token_to_place(text)?).ok()
}

/// What is longer than the wire allows becomes the longest that it does.
fn duration(length: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX).min(WIRE_SECONDS_MAX);
    let nanos = i32::try_from(length.subsec_nanos()).expect("nanoseconds are below one second");
    prost_types::Duration { seconds, nanos }
}

fn timestamp(unix_ms: u64) -> prost_types::Timestamp {
    let seconds = i64::try_from(unix_ms / 1000).expect("a thousandth of a u64 fits an i64");
    let nanos = i32::try_from(unix_ms % 1000).expect("a remainder of 1000 fits") * 1_000_000;
    prost_types::Timestamp { seconds, nanos }
}

#[cfg(test)]
mod testing {
    use super::*;

    pub fn wire(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos })
    }

    /// The reasons of all violations with their fields.
    pub fn refused<T: std::fmt::Debug>(result: Result<T, Invalid>) -> Vec<(&'static str, Reason)> {
        result.expect_err("refused").0.iter().map(|violation| (violation.field, violation.reason)).collect()
    }

    /// The paths and reasons of all violations.
    pub fn paths<T: std::fmt::Debug>(result: Result<T, Invalid>) -> Vec<(String, Reason)> {
        let invalid = result.expect_err("refused");
        invalid.violations().iter().map(|v| (v.path().into_owned(), v.reason)).collect()
    }
}
