//! `LockService`, wire to domain and back.

use std::fmt;
use std::time::Duration;

use prost::Message;

use super::{
    Fields, Invalid, Limits, ListRequest, PAGE_BYTES_MAX, duration, page_token_from, timestamp, within,
};
use crate::grpc::status::Reason;
use crate::ids::{LeaseId, LockName, Owner};
use crate::lock::{
    self, AcquireRequest, Acquisition, Contention, DisconnectPolicy, HoldEvent, HoldRequest, HolderView,
    LostReason, TokenCheck, WatchEvent,
};
use crate::proto::v1;
use crate::runtime::Moment;
use crate::token::Token;

impl Fields<'_> {
    /// The outer `Option` is for a refusal, the inner for "not given".
    fn owner(&mut self, text: Option<&str>) -> Option<Option<Owner>> {
        let Some(text) = text else { return Some(None) };
        match within(text, self.limits.owner_bytes_max).and_then(Owner::parse) {
            Ok(owner) => Some(Some(owner)),
            Err(error) => self.refuse_name("owner", Reason::InvalidOwner, &error),
        }
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
}

/// An `Acquire`.
///
/// # Errors
/// [`Invalid`] with every field that breaks a rule; so for all parsers here.
pub fn acquire(request: v1::AcquireRequest, limits: &Limits) -> Result<AcquireRequest, Invalid> {
    let mut fields = Fields::new(limits);
    let name = fields.name(&request.name);
    let owner = fields.owner(request.owner.as_deref());
    let ttl = fields.lease_ttl("ttl", request.ttl.as_ref());
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
    let ttl = fields.lease_ttl("ttl", request.ttl.as_ref());
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
    let lease_id = fields.lease_id("lease_id", &request.lease_id);
    let ttl = fields.lease_ttl("ttl", request.ttl.as_ref());
    let parsed = || Some((name?, lease_id?, ttl?));
    fields.finish(parsed())
}

/// A `Release`.
pub fn release(request: &v1::ReleaseRequest, limits: &Limits) -> Result<(LockName, LeaseId), Invalid> {
    let mut fields = Fields::new(limits);
    let name = fields.name(&request.name);
    let lease_id = fields.lease_id("lease_id", &request.lease_id);
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
    let token = fields.fencing_token("fencing_token", fencing_token);
    fields.finish(name.zip(token))
}

/// A `ListLocks`.
pub fn list(request: &v1::ListLocksRequest, limits: &Limits) -> Result<ListRequest, Invalid> {
    let mut fields = Fields::new(limits);
    let parsed = fields.list(&request.prefix, request.page_size, &request.page_token);
    fields.finish(parsed)
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
        next_page_token: next.map(|name| page_token_from(name.as_str())).unwrap_or_default(),
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
    use std::collections::BTreeMap;

    use super::super::page_token_to_name;
    use super::super::testing::{refused, wire};
    use super::*;
    use crate::grpc::convert::WIRE_SECONDS_MAX;
    use crate::ids::NodeIndex;

    fn valid() -> v1::AcquireRequest {
        v1::AcquireRequest { name: "orders".to_owned(), ..Default::default() }
    }

    fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
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
