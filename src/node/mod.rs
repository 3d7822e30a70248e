//! One node: what it is asked ([`operation`]), how questions travel together ([`batch`], [`wire`]), and the two kinds of it.
//!
//! A [`Node`] is a connection that runs the one script with a payload, proves on every new connection what it is
//! connected to ([`handshake`]), shows what is stored ([`peek`]), and passes on what others publish. [`redis`] reaches a Redis server; [`embedded`] runs
//! the same Lua in this process.

pub mod batch;
#[cfg(any(test, feature = "sim"))]
pub mod conformance;
pub mod embedded;
pub mod handshake;
pub mod keyspace;
mod literals;
pub mod operation;
pub mod peek;
pub mod redis;
pub mod script;
pub mod wire;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::ids::{MemoryId, NodeIndex, ProposerId};

/// A node as its connection presents it.
pub trait Node: Send + Sync + 'static {
    /// Its place in the configured list.
    fn index(&self) -> NodeIndex;

    /// Where it is, for people; without secrets.
    fn address(&self) -> &str;

    /// Runs the batch script once with this payload. Never sends a payload twice, whatever happens to the connection.
    /// Dropping the future does not take the payload back.
    fn call(&self, payload: Bytes) -> BoxFuture<'static, Result<Bytes, CallError>>;

    /// Shows what is stored under the keys of a question, without the script and so without its gate: whoever asks judges it.
    /// Nothing changes by it. Dropping the future does not take the question back.
    fn peek(&self, question: peek::Question) -> BoxFuture<'static, Result<peek::Peeked, CallError>>;

    /// What the node was made with.
    fn identity(&self) -> &Identity;

    /// Drops the connection and makes a new one, with a new handshake. What is under way ends as [`CallError::Lost`].
    fn reset(&self, reason: &str);

    /// What the connection knows now.
    fn state(&self) -> NodeState;

    /// Asks for, or no longer for, the changes that others announce ([`Hint::Changed`]). Survives reconnects.
    fn watch_changes(&self, on: bool);
}

/// Why a batch has no reply. The two cases are never mixed up: one is certain, the other is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It was not sent, or the server refused it whole: nothing was done.
    #[error("not sent: {0}")]
    Unsent(Arc<str>),
    /// It was sent and no reply came: nobody knows.
    #[error("no reply: {0}")]
    Lost(Arc<str>),
}

/// What a connection knows about its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Not connected (yet, or any more); the reason is for people.
    Unreachable(Arc<str>),
    /// Connected to something that must not be used; the reason says what to do.
    Refused(handshake::Refusal),
    /// The handshake succeeded.
    Ready(handshake::Welcome),
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeState::Unreachable(reason) => write!(f, "unreachable: {reason}"),
            NodeState::Refused(refusal) => write!(f, "refused: {refusal}"),
            NodeState::Ready(_) => f.write_str("ready"),
        }
    }
}

/// Something that a node passed on. Hints may be lost, late or repeated; nothing rests on them but speed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// This daemon was woken for a register (kind and name, as in [`operation::RegisterKey`]).
    Wake(Bytes),
    /// The value of a register changed in a way that its kind announces.
    Changed(Bytes),
    /// The connection's state changed.
    State,
}

/// Where a node puts its hints. Called from the node's own task; must not block.
pub type HintSink = Arc<dyn Fn(NodeIndex, Hint) + Send + Sync>;

/// What every node of one daemon is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the cluster; part of the script's text.
    pub cluster: Arc<str>,
    /// N, as configured.
    pub nodes: usize,
    /// This daemon, whose channel is listened to.
    pub daemon: ProposerId,
}

/// A memory as the wire has it: zero is none.
pub fn memory_from_wire(value: u64) -> Option<MemoryId> {
    (value != 0).then_some(MemoryId(value))
}
