//! The metrics of one daemon, under the names that `docs/metrics.md` lists: what [`crate::meter`] has counted, and how the
//! cluster is at the moment of the scrape.
//!
//! Nothing is prepared between scrapes, and nothing is kept here. Labels have few values, known before: kinds, outcomes,
//! methods of the API, nodes by number. No name of a lock, a queue or a key is ever one, and no owner and no lease id.
//!
//! `page.rs` writes families; `cluster.rs` has what an observer sees, `work.rs` what has been counted.

mod cluster;
mod page;
mod work;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::Registry;

use crate::cluster::Observer;
use crate::driver::Cluster;
use crate::kv::Keys;
use crate::lock::Locks;
use crate::meter::calls::Calls;
use crate::queue::Queues;
use page::Page;

/// Where the numbers come from.
pub struct Sources {
    /// What is counted below the edges.
    pub cluster: Arc<Cluster>,
    /// Who waits for locks.
    pub locks: Arc<Locks>,
    /// What is being written to queues.
    pub queues: Queues,
    /// What is being written to keys.
    pub keys: Keys,
    /// How the cluster is.
    pub observer: Arc<Observer>,
    /// What comes over the wire.
    pub calls: Arc<Calls>,
    /// What the daemon takes at most.
    pub limits: Limits,
}

/// What the daemon takes at most, to hold against what there is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls in flight.
    pub calls: usize,
    /// Connections.
    pub connections: usize,
    /// Callers that wait for locks.
    pub lock_waiters: usize,
}

/// All metrics of one daemon.
pub struct Metrics {
    registry: Registry,
}

/// In which form they are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format of Prometheus, 0.0.4.
    Text,
}

impl Format {
    /// As HTTP calls it.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Metrics {
    /// Of these sources.
    pub fn new(sources: Sources) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Everything(sources)));
        Self { registry }
    }

    /// All of them, as they are now.
    pub fn shown(&self, format: Format) -> String {
        let mut shown = String::new();
        let written = match format {
            Format::OpenMetrics => text::encode(&mut shown, &self.registry),
            Format::Text => prometheus_text::encode(&mut shown, &self.registry),
        };
        written.expect("a String takes everything that is written to it");
        shown
    }
}

struct Everything(Sources);

impl fmt::Debug for Everything {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Everything")
    }
}

impl Collector for Everything {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        cluster::write(&mut page, &self.0)?;
        work::write(&mut page, &self.0)
    }
}
