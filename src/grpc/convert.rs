//! Wire to domain, with all validation, and domain to wire.
//!
//! A request is parsed as a whole: every field that is wrong becomes a [`Violation`], and the caller learns all of them at
//! once. What passed is in domain types and is not checked again behind the edge.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;

use super::status::{Reason, bounded};
use crate::cluster::{self, Connection, DaemonFacts, Event, EventKind, JoinProgress, NodeStatus, State};
use crate::ids::{InvalidName, LeaseId, LockName, Owner};
use crate::limits;
use crate::lock::{
    self, AcquireRequest, Acquisition, Attributes, Contention, DisconnectPolicy, HoldEvent, HoldRequest,
    HolderView, LostReason, TokenCheck, WatchEvent,
};
use crate::proto::v1;
use crate::runtime::Moment;
use crate::token::Token;

/// The longest page token that is looked at, in bytes: base64 of the longest name, and some room.
const PAGE_TOKEN_BYTES_MAX: usize = 1024;
/// The largest page, in bytes of its entries: gRPC clients refuse messages above 4 MiB unless told otherwise.
const PAGE_BYTES_MAX: usize = 3 << 20;
/// The longest `google.protobuf.Duration`, in seconds: 10,000 years, as its definition says.
const WIRE_SECONDS_MAX: i64 = 315_576_000_000;

/// Events of a status when the caller names no number: a screen of them.
const EVENTS_DEFAULT: usize = 20;
/// Most events of a status: as many as are kept, and the answer stays far below 4 MiB.
const EVENTS_MAX: usize = 256;
/// The shortest time between two messages of a watch of the status: it is for people.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The same where the caller names none.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
/// The longest: a watch that says nothing for longer is of no use.
const INTERVAL_MAX: Duration = Duration::from_secs(3_600);

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
            wait_max: Duration::from_secs(86_400),
        }
    }
}

/// One field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's name in the proto.
    pub field: &'static str,
    /// Which kind of rule.
    pub reason: Reason,
    /// What is wrong, as the rest of a sentence that starts with the field. Never repeats a secret.
    pub description: String,
    /// Every value that the description names.
    pub values: Vec<(&'static str, String)>,
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

/// Collects violations while the fields are parsed one by one.
struct Fields<'a> {
    limits: &'a Limits,
    violations: Vec<Violation>,
}

impl<'a> Fields<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { limits, violations: Vec::new() }
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
        self.violations.push(Violation { field, reason, description, values });
        None
    }

    fn refuse_name<T>(&mut self, field: &'static str, reason: Reason, error: &InvalidName) -> Option<T> {
        let values = match error {
            InvalidName::Empty => vec![],
            InvalidName::TooLong { bytes, max } => match reason {
                Reason::InvalidOwner => {
                    vec![("owner_bytes", bytes.to_string()), ("owner_bytes_max", max.to_string())]
                }
                _ => vec![("name_bytes", bytes.to_string()), ("name_bytes_max", max.to_string())],
            },
            InvalidName::ControlCharacter { character, offset } => {
                vec![("character", format!("U+{character:04X}")), ("offset", offset.to_string())]
            }
        };
        self.refuse(field, reason, error.to_string(), values)
    }

    fn name(&mut self, text: &str) -> Option<LockName> {
        match within(text, self.limits.name_bytes_max).and_then(LockName::parse) {
            Ok(name) => Some(name),
            Err(error) => self.refuse_name("name", Reason::InvalidName, &error),
        }
    }

    /// As a name, but may be empty.
    fn prefix(&mut self, text: &str) -> Option<String> {
        if text.is_empty() {
            return Some(String::new());
        }
        match within(text, self.limits.name_bytes_max).and_then(LockName::parse) {
            Ok(name) => Some(name.as_str().to_owned()),
            Err(error) => self.refuse_name("prefix", Reason::InvalidName, &error),
        }
    }

    /// The outer `Option` is for a refusal, the inner for "not given".
    fn owner(&mut self, text: Option<&str>) -> Option<Option<Owner>> {
        let Some(text) = text else { return Some(None) };
        match within(text, self.limits.owner_bytes_max).and_then(Owner::parse) {
            Ok(owner) => Some(Some(owner)),
            Err(error) => self.refuse_name("owner", Reason::InvalidOwner, &error),
        }
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

    /// The outer `Option` is for a refusal, the inner for "not given".
    fn ttl(&mut self, value: Option<&prost_types::Duration>) -> Option<Option<Duration>> {
        let Some(ttl) = self.duration("ttl", Reason::InvalidTtl, value)? else { return Some(None) };
        let (min, max) = (self.limits.ttl_min, self.limits.ttl_max);
        if (min..=max).contains(&ttl) {
            return Some(Some(ttl));
        }
        let (ttl, min, max) = (format!("{ttl:?}"), format!("{min:?}"), format!("{max:?}"));
        self.refuse(
            "ttl",
            Reason::InvalidTtl,
            format!("is {ttl}; from {min} to {max} is allowed"),
            vec![("ttl", ttl), ("ttl_min", min), ("ttl_max", max)],
        )
    }

    fn wait(&mut self, value: Option<&prost_types::Duration>) -> Option<Duration> {
        let wait = self.duration("wait_timeout", Reason::InvalidWaitTimeout, value)?.unwrap_or_default();
        Some(wait.min(self.limits.wait_max))
    }

    fn hold_limit(&mut self, value: Option<&prost_types::Duration>) -> Option<Option<Duration>> {
        match self.duration("hold_limit", Reason::InvalidHoldLimit, value)? {
            Some(Duration::ZERO) => self.refuse(
                "hold_limit",
                Reason::InvalidHoldLimit,
                "must be above zero, or left out for no limit".to_owned(),
                vec![],
            ),
            limit => Some(limit),
        }
    }

    /// Does not repeat what was given: it may be a secret with a typing error.
    fn lease_id(&mut self, text: &str) -> Option<LeaseId> {
        match LeaseId::parse(text) {
            Some(id) => Some(id),
            None => self.refuse(
                "lease_id",
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
            return self.refuse(
                "attributes",
                Reason::TooLarge,
                format!("has {bytes} bytes of keys and values; at most {bytes_max} are allowed"),
                vec![
                    ("attributes_bytes", bytes.to_string()),
                    ("attributes_bytes_max", bytes_max.to_string()),
                ],
            );
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

    fn fencing_token(&mut self, value: u64) -> Option<Token> {
        match Token::new(value).filter(|token| *token != Token::ZERO) {
            Some(token) => Some(token),
            None => {
                let max = Token::MAX.to_string();
                self.refuse(
                    "fencing_token",
                    Reason::InvalidFencingToken,
                    format!("is {value}; from 1 to {max} is allowed"),
                    vec![("fencing_token", value.to_string()), ("fencing_token_max", max)],
                )
            }
        }
    }

    fn disconnect(&mut self, value: i32) -> Option<DisconnectPolicy> {
        match v1::DisconnectPolicy::try_from(value) {
            Ok(v1::DisconnectPolicy::Unspecified | v1::DisconnectPolicy::Keep) => {
                Some(DisconnectPolicy::Keep)
            }
            Ok(v1::DisconnectPolicy::Release) => Some(DisconnectPolicy::Release),
            Err(_) => self.refuse(
                "disconnect_policy",
                Reason::InvalidDisconnectPolicy,
                format!("is {value}, which is not one of its values"),
                vec![("disconnect_policy", value.to_string())],
            ),
        }
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
            None => self.refuse(
                "page_token",
                Reason::InvalidPageToken,
                "is not the next_page_token of a page with the same prefix".to_owned(),
                vec![],
            ),
        }
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

fn page_token_from_name(name: &LockName) -> String {
    URL_SAFE_NO_PAD.encode(name.as_str())
}

fn page_token_to_name(text: &str) -> Option<LockName> {
    if text.len() > PAGE_TOKEN_BYTES_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    LockName::parse(&String::from_utf8(bytes).ok()?).ok()
}

/// An `Acquire`.
///
/// # Errors
/// [`Invalid`] with every field that breaks a rule; so for all parsers here.
pub fn acquire(request: v1::AcquireRequest, limits: &Limits) -> Result<AcquireRequest, Invalid> {
    let mut fields = Fields::new(limits);
    let name = fields.name(&request.name);
    let owner = fields.owner(request.owner.as_deref());
    let ttl = fields.ttl(request.ttl.as_ref());
    let wait = fields.wait(request.wait_timeout.as_ref());
    let attributes = fields.attributes(request.attributes);
    let parsed = || {
        Some(AcquireRequest {
            name: name?,
            owner: owner?,
            ttl: ttl?.unwrap_or(limits.ttl_default),
            wait: wait?,
            attributes: attributes?,
        })
    };
    fields.finish(parsed())
}

/// A `Hold`.
pub fn hold(request: v1::HoldRequest, limits: &Limits) -> Result<HoldRequest, Invalid> {
    let mut fields = Fields::new(limits);
    let name = fields.name(&request.name);
    let owner = fields.owner(request.owner.as_deref());
    let ttl = fields.ttl(request.ttl.as_ref());
    let wait = fields.wait(request.wait_timeout.as_ref());
    let hold_limit = fields.hold_limit(request.hold_limit.as_ref());
    let attributes = fields.attributes(request.attributes);
    let disconnect = fields.disconnect(request.disconnect_policy);
    let parsed = || {
        let acquire = AcquireRequest {
            name: name?,
            owner: owner?,
            ttl: ttl?.unwrap_or(limits.ttl_default),
            wait: wait?,
            attributes: attributes?,
        };
        Some(HoldRequest { acquire, hold_limit: hold_limit?, disconnect: disconnect? })
    };
    fields.finish(parsed())
}

/// An `Extend`: name, lease id, and the new TTL if one is asked for.
pub fn extend(
    request: &v1::ExtendRequest,
    limits: &Limits,
) -> Result<(LockName, LeaseId, Option<Duration>), Invalid> {
    let mut fields = Fields::new(limits);
    let name = fields.name(&request.name);
    let lease_id = fields.lease_id(&request.lease_id);
    let ttl = fields.ttl(request.ttl.as_ref());
    let parsed = || Some((name?, lease_id?, ttl?));
    fields.finish(parsed())
}

/// A `Release`.
pub fn release(request: &v1::ReleaseRequest, limits: &Limits) -> Result<(LockName, LeaseId), Invalid> {
    let mut fields = Fields::new(limits);
    let name = fields.name(&request.name);
    let lease_id = fields.lease_id(&request.lease_id);
    fields.finish(name.zip(lease_id))
}

/// A request that is a name and nothing else.
pub fn name(text: &str, limits: &Limits) -> Result<LockName, Invalid> {
    let mut fields = Fields::new(limits);
    let name = fields.name(text);
    fields.finish(name)
}

/// A request that is a name and a fencing token.
pub fn name_and_token(text: &str, fencing_token: u64, limits: &Limits) -> Result<(LockName, Token), Invalid> {
    let mut fields = Fields::new(limits);
    let name = fields.name(text);
    let token = fields.fencing_token(fencing_token);
    fields.finish(name.zip(token))
}

/// A `ListLocks` request, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// What the names start with.
    pub prefix: String,
    /// Most entries.
    pub page_size: usize,
    /// The name after which the page starts; empty for the first page.
    pub after: String,
}

/// A `ListLocks`.
pub fn list(request: &v1::ListLocksRequest, limits: &Limits) -> Result<ListRequest, Invalid> {
    let mut fields = Fields::new(limits);
    let prefix = fields.prefix(&request.prefix);
    let page_size = fields.page_size(request.page_size);
    let after = fields.page_token(&request.page_token, prefix.as_deref().unwrap_or_default());
    let parsed = || Some(ListRequest { prefix: prefix?, page_size: page_size?, after: after? });
    fields.finish(parsed())
}

/// Most events that a caller asks for.
pub fn events_max(asked: Option<u32>) -> usize {
    asked.map_or(EVENTS_DEFAULT, |asked| usize::try_from(asked).unwrap_or(usize::MAX).min(EVENTS_MAX))
}

/// A `WatchStatus`: most events, and the time between two messages.
pub fn watch_status(request: &v1::WatchStatusRequest, limits: &Limits) -> Result<(usize, Duration), Invalid> {
    let mut fields = Fields::new(limits);
    let interval = fields.duration("min_interval", Reason::InvalidInterval, request.min_interval.as_ref());
    let interval = interval.map(|asked| asked.unwrap_or(INTERVAL_DEFAULT).clamp(INTERVAL_MIN, INTERVAL_MAX));
    fields.finish(interval.map(|interval| (events_max(request.events_max), interval)))
}

/// A lease with what remains of it `now`. The one place where a lease id leaves.
pub fn lease(lease: &lock::Lease, now: Moment) -> v1::Lease {
    v1::Lease {
        name: lease.name.as_str().to_owned(),
        owner: lease.owner.as_str().to_owned(),
        lease_id: lease.lease_id.expose(),
        fencing_token: lease.token.get(),
        ttl: Some(duration(lease.ttl)),
        remaining: Some(duration(lease.valid_until.since(now))),
    }
}

/// The answer to an `Acquire`.
pub fn acquisition(acquisition: &Acquisition, now: Moment) -> v1::AcquireResponse {
    use v1::acquire_response::Outcome;
    let outcome = match acquisition {
        Acquisition::Acquired(acquired) => Outcome::Lease(lease(acquired, now)),
        Acquisition::Contended(contended) => Outcome::Contention(contention(contended)),
    };
    v1::AcquireResponse { outcome: Some(outcome) }
}

fn contention(contention: &Contention) -> v1::Contention {
    v1::Contention { holder: contention.holder.as_ref().map(holder), waiters: contention.waiters }
}

fn holder(holder: &HolderView) -> v1::Holder {
    v1::Holder {
        owner: holder.owner.as_str().to_owned(),
        fencing_token: holder.token.get(),
        ttl: Some(duration(holder.ttl)),
        remaining: Some(duration(holder.remaining)),
        acquire_time: Some(timestamp(holder.acquired_unix_ms)),
        attributes: holder.attributes.iter().cloned().collect(),
    }
}

/// A lock for `GetLock` and `ListLocks`.
pub fn lock_view(view: &lock::LockView) -> v1::Lock {
    v1::Lock {
        name: view.name.as_str().to_owned(),
        holder: view.holder.as_ref().map(holder),
        waiters: view.waiters,
        nodes: view.nodes.iter().map(|node| u32::from(node.0)).collect(),
    }
}

/// A page of `ListLocks`, cut short where it would be more than clients take.
pub fn lock_page(page: &lock::LockPage) -> v1::ListLocksResponse {
    let mut bytes = 0;
    let fits = |view: &&lock::LockView| {
        bytes += lock_view(view).encoded_len();
        bytes <= PAGE_BYTES_MAX
    };
    let shown = page.locks.iter().take_while(fits).count();
    // One entry alone is far below the limit, so a page that was cut has a last one.
    let next = if shown < page.locks.len() { Some(&page.locks[shown - 1].name) } else { page.next.as_ref() };
    v1::ListLocksResponse {
        locks: page.locks[..shown].iter().map(lock_view).collect(),
        next_page_token: next.map(page_token_from_name).unwrap_or_default(),
    }
}

/// An event of a `Hold`.
pub fn hold_event(event: &HoldEvent, now: Moment) -> v1::HoldResponse {
    use v1::hold_response::{Ended, Event, Jeopardy, Lost, Waiting};
    let event = match event {
        HoldEvent::Waiting { position } => Event::Waiting(Waiting { position: *position }),
        HoldEvent::TimedOut(contended) => Event::TimedOut(contention(contended)),
        HoldEvent::Acquired(acquired) => Event::Acquired(lease(acquired, now)),
        HoldEvent::Extended(extended) => Event::Extended(lease(extended, now)),
        HoldEvent::Jeopardy { remaining } => {
            Event::Jeopardy(Jeopardy { remaining: Some(duration(*remaining)) })
        }
        HoldEvent::Lost(reason) => Event::Lost(Lost { reason: lost_reason(*reason).into() }),
        HoldEvent::Ended { remaining } => Event::Ended(Ended { remaining: Some(duration(*remaining)) }),
    };
    v1::HoldResponse { event: Some(event) }
}

fn lost_reason(reason: LostReason) -> v1::LostReason {
    match reason {
        LostReason::Expired => v1::LostReason::Expired,
        LostReason::Replaced => v1::LostReason::Replaced,
        LostReason::Forced => v1::LostReason::Forced,
    }
}

/// An event of a `WatchLock`.
pub fn watch_event(event: &WatchEvent) -> v1::WatchLockResponse {
    v1::WatchLockResponse { holder: event.holder.as_ref().map(holder) }
}

/// The answer to a `CheckToken`.
pub fn token_check(check: &TokenCheck) -> v1::CheckTokenResponse {
    v1::CheckTokenResponse {
        highest: check.highest,
        held: check.held,
        highest_fencing_token: check.highest_token.get(),
    }
}

/// The cluster, with so many of the latest events.
pub fn cluster_status(status: &cluster::Status, events_max: usize) -> v1::ClusterStatus {
    let events = &status.events[status.events.len().saturating_sub(events_max)..];
    v1::ClusterStatus {
        cluster: status.daemon.cluster.clone(),
        node_count: count(status.size.nodes()),
        quorum: count(status.size.quorum()),
        counting: count(status.counting),
        serves: status.serves,
        grants_locks: status.grants,
        tolerates: Some(v1::Tolerance {
            stops: count(status.tolerates.stops),
            memory_losses: count(status.tolerates.memory_losses),
        }),
        summary: bounded(&status.summary),
        nodes: status.nodes.iter().map(node_status).collect(),
        events: events.iter().map(cluster_event).collect(),
        daemon: Some(daemon_status(&status.daemon)),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn node_status(node: &NodeStatus) -> v1::NodeStatus {
    v1::NodeStatus {
        index: node.index.0.into(),
        address: bounded(&node.address),
        connection: connection_state(node.connection).into(),
        member: member_state(node.listed).into(),
        counts: node.counts,
        problem: node.problem.as_deref().map(bounded).unwrap_or_default(),
        has_listed_memory: node.has_listed_memory,
        join: node.join.as_ref().map(join_progress),
        missed_records: node.missed,
        round_trip: node.figures.map(|figures| duration(figures.round_trip)),
        clock_offset: node.figures.map(|figures| signed_micros(figures.clock_offset_us)),
        measure_time: node.figures.map(|figures| timestamp(figures.measured_unix_ms)),
        server_version: node.version.as_deref().unwrap_or_default().chars().take(64).collect(),
    }
}

fn connection_state(connection: Connection) -> v1::ConnectionState {
    match connection {
        Connection::Unreachable => v1::ConnectionState::Unreachable,
        Connection::Refused => v1::ConnectionState::Refused,
        Connection::Ready => v1::ConnectionState::Ready,
    }
}

fn member_state(listed: Option<State>) -> v1::MemberState {
    match listed {
        None => v1::MemberState::Unknown,
        Some(State::Member) => v1::MemberState::Member,
        Some(State::Joining) => v1::MemberState::Joining,
        Some(State::Out) => v1::MemberState::Out,
    }
}

fn join_progress(join: &JoinProgress) -> v1::JoinProgress {
    v1::JoinProgress { wiping: join.wiping, merged_records: join.merged, expected_records: join.expected }
}

fn cluster_event(event: &Event) -> v1::ClusterEvent {
    let kind = match event.kind {
        EventKind::Founded => v1::ClusterEventKind::Founded,
        EventKind::MemoryLost => v1::ClusterEventKind::MemoryLost,
        EventKind::Joined => v1::ClusterEventKind::Joined,
        EventKind::PutOut => v1::ClusterEventKind::PutOut,
        EventKind::ClockJumped => v1::ClusterEventKind::ClockJumped,
        EventKind::Recovered => v1::ClusterEventKind::Recovered,
        EventKind::PossibleLoss => v1::ClusterEventKind::PossibleLoss,
    };
    v1::ClusterEvent {
        number: event.number,
        time: Some(timestamp(event.unix_ms)),
        kind: kind.into(),
        node: event.node.map(|node| node.0.into()),
        text: bounded(&event.text),
    }
}

fn daemon_status(daemon: &DaemonFacts) -> v1::DaemonStatus {
    let setting = |(key, value): &(String, String)| v1::Setting { key: key.clone(), value: bounded(value) };
    v1::DaemonStatus {
        version: daemon.version.to_owned(),
        proposer_id: daemon.proposer.to_string(),
        start_time: Some(timestamp(daemon.started_unix_ms)),
        settings: daemon.settings.iter().map(setting).collect(),
    }
}

/// Seconds and nanoseconds have the same sign.
fn signed_micros(micros: i64) -> prost_types::Duration {
    let nanos = i32::try_from(micros % 1_000_000).expect("a remainder of a million fits") * 1_000;
    prost_types::Duration { seconds: (micros / 1_000_000).clamp(-WIRE_SECONDS_MAX, WIRE_SECONDS_MAX), nanos }
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

// The generated `Debug` of these three is left out because it would print the lease id.

impl fmt::Debug for v1::Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("name", &self.name)
            .field("owner", &self.owner)
            .field("fencing_token", &self.fencing_token)
            .field("ttl", &self.ttl)
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::ExtendRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtendRequest")
            .field("name", &self.name)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::ReleaseRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleaseRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeIndex;

    fn wire(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos })
    }

    fn valid() -> v1::AcquireRequest {
        v1::AcquireRequest { name: "orders".to_owned(), ..Default::default() }
    }

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_watch_of_the_status_has_an_interval_that_people_can_follow() {
        let asked = |min_interval| {
            let request = v1::WatchStatusRequest { min_interval, events_max: None };
            watch_status(&request, &Limits::default()).map(|(_, interval)| interval)
        };
        assert_eq!(asked(None), Ok(Duration::from_secs(1)));
        assert_eq!(asked(wire(0, 0)), Ok(Duration::from_millis(100)));
        assert_eq!(asked(wire(2, 500_000_000)), Ok(Duration::from_millis(2_500)));
        assert_eq!(asked(wire(86_400, 0)), Ok(Duration::from_secs(3_600)));
        for bad in [wire(-1, 0), wire(0, -1), wire(1, -1), wire(0, 1_000_000_000)] {
            assert_eq!(refused(asked(bad)), [("min_interval", Reason::InvalidInterval)], "{bad:?}");
        }
        assert_eq!([None, Some(0), Some(30), Some(1_000)].map(events_max), [20, 0, 30, 256]);
    }

    #[test]
    fn a_status_goes_over_the_wire_as_it_is() {
        use crate::ids::ProposerId;
        use crate::quorum::ClusterSize;
        let figures = cluster::Figures {
            round_trip: Duration::from_micros(1_500),
            clock_offset_us: -2_000_001,
            measured_unix_ms: 1_001,
        };
        let node = NodeStatus {
            index: NodeIndex(0),
            address: "redis://a:6379".into(),
            connection: Connection::Ready,
            listed: Some(State::Joining),
            counts: false,
            problem: Some("ü".repeat(2_000)),
            has_listed_memory: Some(false),
            join: Some(JoinProgress { wiping: true, merged: 3, expected: None }),
            missed: 9,
            figures: Some(figures),
            version: Some("7.2.4".into()),
        };
        let event = |number| Event {
            number,
            unix_ms: 2_000,
            kind: EventKind::PutOut,
            node: None,
            text: "gone".into(),
        };
        let daemon = DaemonFacts {
            cluster: "blue".into(),
            version: "1.2.3",
            proposer: ProposerId(255),
            started_unix_ms: 3_000,
            settings: vec![("cluster.name".into(), "blue".into())],
        };
        let status = cluster::Status {
            size: ClusterSize::new(1).unwrap(),
            counting: 0,
            serves: false,
            grants: false,
            tolerates: cluster::Tolerance { stops: 0, memory_losses: 0 },
            summary: "not serving".into(),
            nodes: vec![node],
            events: vec![event(1), event(2), event(3)],
            daemon: std::sync::Arc::new(daemon),
        };
        let sent = cluster_status(&status, 2);
        assert_eq!((sent.cluster.as_str(), sent.node_count, sent.quorum), ("blue", 1, 1));
        let numbers: Vec<u64> = sent.events.iter().map(|event| event.number).collect();
        assert_eq!(numbers, [2, 3], "the latest, oldest first");
        assert_eq!((sent.events[0].kind(), sent.events[0].node), (v1::ClusterEventKind::PutOut, None));
        let node = &sent.nodes[0];
        assert_eq!(
            (node.member(), node.connection()),
            (v1::MemberState::Joining, v1::ConnectionState::Ready)
        );
        assert_eq!(node.clock_offset, wire(-2, -1_000));
        assert_eq!((node.round_trip, node.missed_records), (wire(0, 1_500_000), 9));
        assert!(node.problem.len() <= 1_024 && !node.problem.is_empty());
        let join = v1::JoinProgress { wiping: true, merged_records: 3, expected_records: None };
        assert_eq!(node.join, Some(join));
        let daemon = sent.daemon.expect("always there");
        assert_eq!((daemon.proposer_id.as_str(), daemon.settings.len()), ("00000000000000ff", 1));
        assert_eq!(signed_micros(i64::MIN).seconds, -WIRE_SECONDS_MAX);
    }

    /// The reasons of all violations with their fields.
    fn refused<T: fmt::Debug>(result: Result<T, Invalid>) -> Vec<(&'static str, Reason)> {
        result.expect_err("refused").0.iter().map(|violation| (violation.field, violation.reason)).collect()
    }

    #[test]
    fn a_bare_name_gets_all_the_defaults() {
        let parsed = acquire(valid(), &Limits::default()).unwrap();
        assert_eq!(parsed.name.as_str(), "orders");
        assert_eq!((parsed.owner, parsed.ttl), (None, Duration::from_secs(30)));
        assert_eq!((parsed.wait, parsed.attributes), (Duration::ZERO, vec![]));
    }

    #[test]
    fn ttls_keep_to_their_range_with_both_ends() {
        let cases = [
            (wire(1, 0), true),
            (wire(300, 0), true),
            (wire(1, 500_000_000), true),
            (wire(0, 0), false),
            (wire(0, 999_999_999), false),
            (wire(300, 1), false),
            (wire(-1, 0), false),
            (wire(0, -1), false),
            (wire(5, -1), false),
            (wire(-5, 1), false),
            (wire(5, 1_000_000_000), false),
            (wire(5, i32::MIN), false),
            (wire(10 * 365 * 86_400, 0), false),
            (wire(i64::MAX, 0), false),
            (wire(i64::MIN, i32::MIN), false),
        ];
        for (ttl, good) in cases {
            let result = acquire(v1::AcquireRequest { ttl, ..valid() }, &Limits::default());
            match good {
                true => assert!(result.is_ok(), "{ttl:?}"),
                false => assert_eq!(refused(result), [("ttl", Reason::InvalidTtl)], "{ttl:?}"),
            }
        }
    }

    #[test]
    fn a_long_wait_is_cut_and_a_negative_one_refused() {
        let with = |wait_timeout| acquire(v1::AcquireRequest { wait_timeout, ..valid() }, &Limits::default());
        assert_eq!(with(wire(WIRE_SECONDS_MAX, 0)).unwrap().wait, Duration::from_secs(86_400));
        assert_eq!(with(wire(5, 1)).unwrap().wait, Duration::new(5, 1));
        assert_eq!(refused(with(wire(-5, 0))), [("wait_timeout", Reason::InvalidWaitTimeout)]);
        assert_eq!(
            refused(with(wire(WIRE_SECONDS_MAX + 1, 0))),
            [("wait_timeout", Reason::InvalidWaitTimeout)]
        );
    }

    #[test]
    fn an_owner_that_is_given_is_not_empty() {
        let with = |owner: &str| {
            acquire(v1::AcquireRequest { owner: Some(owner.to_owned()), ..valid() }, &Limits::default())
        };
        assert_eq!(with("pod-7").unwrap().owner.unwrap().as_str(), "pod-7");
        for owner in ["", "a\n", &"x".repeat(513)] {
            assert_eq!(refused(with(owner)), [("owner", Reason::InvalidOwner)]);
        }
    }

    #[test]
    fn attributes_keep_to_their_rules() {
        let with = |attributes| acquire(v1::AcquireRequest { attributes, ..valid() }, &Limits::default());
        let many = (0..17).map(|i| (i.to_string(), String::new())).collect();
        assert!(with(attributes(&[("a", ""), ("b", &"x".repeat(4094))])).is_ok());
        assert_eq!(refused(with(many)), [("attributes", Reason::InvalidAttributes)]);
        assert_eq!(
            refused(with(attributes(&[("a", &"x".repeat(4096))]))),
            [("attributes", Reason::TooLarge)]
        );
        for bad in [("", "x"), ("a\u{1b}", "x"), ("a", "x\r")] {
            assert_eq!(refused(with(attributes(&[bad]))), [("attributes", Reason::InvalidAttributes)]);
        }
    }

    #[test]
    fn all_violations_are_reported_at_once() {
        let request = v1::HoldRequest {
            name: String::new(),
            owner: Some(String::new()),
            ttl: wire(0, 0),
            wait_timeout: wire(-1, 0),
            hold_limit: wire(0, 0),
            attributes: attributes(&[("", "")]),
            disconnect_policy: 9,
        };
        let expected = [
            ("name", Reason::InvalidName),
            ("owner", Reason::InvalidOwner),
            ("ttl", Reason::InvalidTtl),
            ("wait_timeout", Reason::InvalidWaitTimeout),
            ("hold_limit", Reason::InvalidHoldLimit),
            ("attributes", Reason::InvalidAttributes),
            ("disconnect_policy", Reason::InvalidDisconnectPolicy),
        ];
        assert_eq!(refused(hold(request, &Limits::default())), expected);
    }

    #[test]
    fn a_bad_lease_id_is_not_repeated() {
        let lease_id = "0123456789abcdef0123456789abcdeg";
        let request = v1::ReleaseRequest { name: "orders".to_owned(), lease_id: lease_id.to_owned() };
        let invalid = release(&request, &Limits::default()).unwrap_err();
        assert!(!format!("{invalid:?}").contains("0123456789"));
        assert!(!format!("{request:?}").contains("0123456789"));
        assert_eq!(invalid.violations()[0].reason, Reason::InvalidLeaseId);
    }

    #[test]
    fn configured_limits_are_held() {
        let limits = Limits { name_bytes_max: 4, ttl_max: Duration::from_secs(2), ..Limits::default() };
        let request = v1::AcquireRequest { ttl: wire(3, 0), ..valid() };
        let invalid = acquire(request, &limits).unwrap_err();
        assert_eq!(invalid.violations()[0].description, "is 6 bytes long; at most 4 are allowed");
        assert_eq!(invalid.violations()[1].description, "is 3s; from 1s to 2s is allowed");
    }

    #[test]
    fn fencing_tokens_are_from_one_to_below_two_to_the_53() {
        let with = |token| name_and_token("orders", token, &Limits::default());
        assert!(with(1).is_ok() && with((1 << 53) - 1).is_ok());
        for bad in [0, 1 << 53, u64::MAX] {
            assert_eq!(refused(with(bad)), [("fencing_token", Reason::InvalidFencingToken)]);
        }
    }

    #[test]
    fn page_sizes_are_cut_and_page_tokens_come_back_as_names() {
        let page = lock::LockPage { locks: vec![], next: Some(LockName::parse("a/ü?").unwrap()) };
        let token = lock_page(&page).next_page_token;
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{token}");
        let with = |prefix: &str, page_size, page_token: &str| {
            let (prefix, page_token) = (prefix.to_owned(), page_token.to_owned());
            list(&v1::ListLocksRequest { prefix, page_size, page_token }, &Limits::default())
        };
        let parsed = with("a/", 0, &token).unwrap();
        assert_eq!((parsed.after.as_str(), parsed.page_size), ("a/ü?", 100));
        assert_eq!(with("", 5000, "").unwrap().page_size, 1000);
        assert_eq!(refused(with("", -1, "")), [("page_size", Reason::InvalidPageSize)]);
        assert_eq!(refused(with("a\n", 0, "")), [("prefix", Reason::InvalidName)]);
        for bad in ["!", "====", "AA", "_w", &"A".repeat(2000)] {
            assert_eq!(refused(with("", 0, bad)), [("page_token", Reason::InvalidPageToken)], "{bad}");
        }
        assert_eq!(refused(with("b/", 0, &token)), [("page_token", Reason::InvalidPageToken)]);
    }

    #[test]
    fn a_page_that_clients_would_refuse_is_cut_and_goes_on_after_its_last_entry() {
        let view = |i: u32| {
            let holder = HolderView {
                owner: Owner::parse("pod-7").unwrap(),
                token: Token::new(7).unwrap(),
                ttl: Duration::from_secs(30),
                remaining: Duration::ZERO,
                acquired_unix_ms: 0,
                attributes: vec![("note".to_owned(), "x".repeat(4092))],
            };
            let name = LockName::parse(&format!("{i:04}")).unwrap();
            lock::LockView { name, holder: Some(holder), waiters: 0, nodes: vec![] }
        };
        let page = lock::LockPage { locks: (0..1000).map(view).collect(), next: None };
        let wire = lock_page(&page);
        assert!(wire.locks.len() < 1000 && wire.encoded_len() < 4 << 20, "{}", wire.locks.len());
        let next = page_token_to_name(&wire.next_page_token).unwrap();
        assert_eq!(next.as_str(), wire.locks.last().unwrap().name);
    }

    #[test]
    fn a_lease_says_what_remains_now_and_never_less_than_zero() {
        let second = |s| Moment::from_start(Duration::from_secs(s));
        let acquired = lock::Lease {
            name: LockName::parse("orders").unwrap(),
            owner: Owner::parse("pod-7").unwrap(),
            lease_id: LeaseId::from_bytes([0xab; 16]),
            token: Token::new(7).unwrap(),
            ttl: Duration::from_secs(30),
            valid_until: second(100),
        };
        let at = |now| lease(&acquired, now);
        assert_eq!(at(second(75)).remaining, wire(25, 0));
        assert_eq!(at(second(101)).remaining, wire(0, 0));
        assert_eq!(at(second(75)).lease_id, "ab".repeat(16));
        assert!(!format!("{:?}", at(second(75))).contains("abab"));
    }

    #[test]
    fn a_lock_shows_its_holder() {
        let view = lock::LockView {
            name: LockName::parse("orders").unwrap(),
            holder: Some(HolderView {
                owner: Owner::parse("pod-7").unwrap(),
                token: Token::new(7).unwrap(),
                ttl: Duration::from_secs(30),
                remaining: Duration::from_millis(1500),
                acquired_unix_ms: 1_704_067_200_123,
                attributes: vec![("host".to_owned(), "a".to_owned())],
            }),
            waiters: 3,
            nodes: vec![NodeIndex(0), NodeIndex(2)],
        };
        let shown = lock_view(&view);
        assert_eq!((shown.waiters, shown.nodes), (3, vec![0, 2]));
        let holder = shown.holder.unwrap();
        assert_eq!(holder.remaining, wire(1, 500_000_000));
        let since = prost_types::Timestamp { seconds: 1_704_067_200, nanos: 123_000_000 };
        assert_eq!(holder.acquire_time, Some(since));
        assert_eq!(holder.attributes, attributes(&[("host", "a")]));
    }
}
