//! [`Calls`]: what comes over the wire, by method and code. Methods are those that the daemon has; all others are one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::door::DoorMeter;
use super::{Count, Level, Times};

/// The codes of gRPC, by number.
pub const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// The code of a call whose client went away.
const CANCELLED: usize = 1;
/// What a method is called that the daemon does not have.
const OTHER: &str = "other";

/// All calls of one daemon. What a client sends as a path is looked up and never kept.
#[derive(Debug)]
pub struct Calls {
    /// By path, `/package.Service/Method`.
    methods: BTreeMap<String, Arc<MethodMeter>>,
    other: Arc<MethodMeter>,
    /// Before a call is one: handshakes, and calls that were not let in.
    pub door: DoorMeter,
    /// What the calls come over.
    pub connections: ConnectionMeter,
}

/// Connections of clients.
#[derive(Debug, Default)]
pub struct ConnectionMeter {
    /// Open ones that have a place.
    pub open: Level,
    /// For which there was no place.
    pub refused: Count,
    /// That were closed because they did not say in time what they speak.
    pub silent: Count,
    /// That were closed because they spoke HTTP/1.
    pub http1: Count,
}

impl ConnectionMeter {
    /// One has come. It will end.
    pub fn opened(&self) {
        self.open.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One has ended.
    pub fn closed(&self) {
        self.open.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One method.
#[derive(Debug)]
pub struct MethodMeter {
    /// The full name of its service.
    pub service: String,
    /// Its name.
    pub method: String,
    /// Its answers, or its requests, are a stream.
    pub streams: bool,
    /// Calls that have not ended.
    pub in_flight: Level,
    /// How long calls took that have ended.
    pub times: Times,
    codes: [Count; CODES.len()],
}

impl Calls {
    /// For methods with these services and names, and whether they stream.
    pub fn of(methods: impl IntoIterator<Item = (String, String, bool)>) -> Self {
        let methods = methods.into_iter().map(|(service, method, streams)| {
            (format!("/{service}/{method}"), Arc::new(MethodMeter::new(service, method, streams)))
        });
        let other = Arc::new(MethodMeter::new(OTHER.into(), OTHER.into(), true));
        Self {
            methods: methods.collect(),
            other,
            door: DoorMeter::default(),
            connections: ConnectionMeter::default(),
        }
    }

    /// The method at a path.
    pub fn at(&self, path: &str) -> &Arc<MethodMeter> {
        self.methods.get(path).unwrap_or(&self.other)
    }

    /// All methods, and the one that stands for the others.
    pub fn all(&self) -> impl Iterator<Item = &MethodMeter> {
        self.methods.values().chain([&self.other]).map(Arc::as_ref)
    }
}

impl MethodMeter {
    fn new(service: String, method: String, streams: bool) -> Self {
        let codes = std::array::from_fn(|_| Count::default());
        let (in_flight, times) = (Level::default(), Times::default());
        Self { service, method, streams, in_flight, times, codes }
    }

    /// A call has come. It will end.
    pub fn began(&self) {
        self.in_flight.0.fetch_add(1, Ordering::Relaxed);
    }

    /// A call has ended with a code, or with its client's going away.
    pub fn ended(&self, code: Option<usize>, took: Duration) {
        let code = code.filter(|code| *code < CODES.len()).unwrap_or(CANCELLED);
        self.in_flight.0.fetch_sub(1, Ordering::Relaxed);
        self.codes[code].one();
        self.times.took(took);
    }

    /// How many calls have ended with each code, of the codes that there were, and of `OK`.
    pub fn codes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = CODES.into_iter().zip(self.codes.iter().map(Count::get));
        counts.enumerate().filter(|(code, (_, count))| *code == 0 || *count > 0).map(|(_, counted)| counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_the_daemon_does_not_have_are_one_and_are_not_kept() {
        let calls = Calls::of([("a.B".to_owned(), "C".to_owned(), false)]);
        let ended = |path: &str, code| {
            calls.at(path).began();
            calls.at(path).ended(code, Duration::from_millis(1));
        };
        ended("/a.B/C", Some(0));
        for path in ["/a.B/D", "/hunter2/hunter2", "", "/a.B/C/"] {
            ended(path, Some(12));
        }
        let told: Vec<_> =
            calls.all().map(|method| (method.method.as_str(), method.codes().collect())).collect();
        let expected: Vec<(&str, Vec<_>)> =
            vec![("C", vec![("OK", 1)]), ("other", vec![("OK", 0), ("UNIMPLEMENTED", 4)])];
        assert_eq!(told, expected);
        assert!(!format!("{calls:?}").contains("hunter2"));
    }

    #[test]
    fn who_goes_away_has_cancelled() {
        let calls = Calls::of([]);
        let method = calls.at("x");
        (0..3).for_each(|_| method.began());
        method.ended(None, Duration::ZERO);
        method.ended(Some(99), Duration::ZERO);
        assert_eq!(method.codes().collect::<Vec<_>>(), [("OK", 0), ("CANCELLED", 2)]);
        assert_eq!(method.in_flight.get(), 1);
    }
}
