//! Composition root: builds the nodes, the rooms, the services and the listeners, and takes them down again.

use crate::config::Settings;
use crate::ids::NodeIndex;
use crate::node::handshake::Welcome;

/// What a daemon's nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodesKind {
    /// The servers that the settings list.
    Redis,
    /// So many in this process, which forget everything when it ends.
    Embedded(usize),
}

/// Why a daemon could not serve, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It has not been put together yet.
    #[error("this build has no server")]
    NotBuilt,
}

/// What `check` found out about one node.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Its place in the configured list.
    pub index: NodeIndex,
    /// Its address, without secrets.
    pub address: String,
    /// What the handshake found, or why the node can't be used: a refusal, or that nobody answers.
    pub state: Result<Welcome, String>,
    /// What the member list says of it, in a word or two.
    pub member_state: String,
    /// What an operator should know besides.
    pub notes: Vec<String>,
}

/// Serves until `shutdown` completes, then ends gracefully.
///
/// # Errors
/// [`ServeError`] says what could not be started or what broke.
pub async fn run(
    _settings: Settings,
    _nodes: NodesKind,
    _shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    Err(ServeError::NotBuilt)
}

/// Connects to every node, as a daemon would, and reports what it found. In the order of the configured list.
pub async fn check_nodes(settings: &Settings) -> Vec<NodeReport> {
    let report = |(index, address): (u8, &crate::config::NodeAddress)| NodeReport {
        index: NodeIndex(index),
        address: address.to_string(),
        state: Err(ServeError::NotBuilt.to_string()),
        member_state: "unknown".into(),
        notes: Vec::new(),
    };
    (0..).zip(&settings.nodes.addresses).map(report).collect()
}
