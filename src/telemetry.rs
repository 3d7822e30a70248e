//! What the daemon tells about itself: the set-up of `tracing`, and the one list of field names.
//!
//! Events go to stderr, so that stdout stays with the commands' own output.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Names of fields of spans and events. One name, one meaning, in every room.
pub mod field {
    /// A node's place in the configured list.
    pub const NODE: &str = "node";
    /// A node's address, without secrets.
    pub const ADDRESS: &str = "address";
    /// The name of a lock.
    pub const LOCK: &str = "lock";
    /// The owner of a lease.
    pub const OWNER: &str = "owner";
    /// A fencing token.
    pub const TOKEN: &str = "token";
    /// The full name of a gRPC method.
    pub const METHOD: &str = "method";
    /// Who called: an address, or `unix`.
    pub const PEER: &str = "peer";
    /// Who called, by the rules of access.
    pub const IDENTITY: &str = "identity";
    /// The gRPC status code of an answer.
    pub const CODE: &str = "code";
    /// The reason of an error, as `google.rpc.ErrorInfo` has it.
    pub const REASON: &str = "reason";
    /// An error with its causes.
    pub const ERROR: &str = "error";
    /// How long something took, in milliseconds.
    pub const ELAPSED_MS: &str = "elapsed_ms";
    /// The name of the cluster.
    pub const CLUSTER: &str = "cluster";
    /// This run of this daemon.
    pub const DAEMON: &str = "daemon";
}

/// Why events can't be written.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one. Settings that were validated have a good one.
    #[error("log.filter is not a list of directives")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// Something in this process did it before.
    #[error("the log was set up already")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sets up `tracing` for the whole process. Colours only for a terminal, and not if `NO_COLOR` is set.
///
/// # Errors
/// [`TelemetryError`], also when called twice.
pub fn init(log: &Log) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder().parse(&log.filter).map_err(TelemetryError::Filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(colours_wanted()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_ansi(false).try_init(),
    }
    .map_err(TelemetryError::Twice)
}

fn colours_wanted() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused_and_a_second_time_too() {
        let log = |filter: &str| Log { format: LogFormat::Json, filter: filter.into() };
        assert!(matches!(init(&log("majorityd=loud")), Err(TelemetryError::Filter(_))));
        assert!(init(&log("off")).is_ok());
        assert!(matches!(init(&log("off")), Err(TelemetryError::Twice(_))));
    }
}
