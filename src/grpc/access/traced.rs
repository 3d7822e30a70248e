//! What a trace has of a request: what it names, and nothing else of it.

use super::super::status::bounded;
use super::names::Ask;
use crate::access::{Scope, Service};
use crate::telemetry;
use crate::telemetry::field;

/// Puts the names of a request into the span of its call: the first of each kind, and how many there are if there are more.
/// Nobody has looked at them yet, so they may be of any length.
pub(super) fn record(service: Option<Service>, asks: &[Ask<'_>]) {
    if !telemetry::is_traced() {
        return;
    }
    let span = tracing::Span::current();
    let mut seen = [false; 4];
    for ask in asks {
        let (place, name, text) = match (ask.scope, ask.need.map(|need| need.service).or(service)) {
            (Scope::Prefix(text), _) => (0, field::PREFIX, text),
            (Scope::Name(text), Some(Service::Locks)) => (1, field::LOCK, text),
            (Scope::Name(text), Some(Service::Queues)) => (2, field::QUEUE, text),
            (Scope::Name(text), Some(Service::Keys)) => (3, field::KEY, text),
            (Scope::Name(_), Some(Service::Cluster) | None) => continue,
        };
        if !std::mem::replace(&mut seen[place], true) {
            span.record(name, bounded(text));
        }
    }
    if asks.len() > 1 {
        span.record(field::NAMES, asks.len());
    }
}
