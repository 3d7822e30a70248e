//! Assembles the two scripts from `lua/`: constants, prelude, gate, operations, dispatch.
//!
//! Cluster, size and index are part of the text, so a digest that one server knows is no other cluster's or node's.

use super::keyspace::FORMAT;
use crate::ids::NodeIndex;

use super::Identity;
use super::handshake::Refusal;

/// The script that runs batches.
pub fn batch(identity: &Identity, index: NodeIndex) -> String {
    let parts = [
        include_str!("lua/prelude.lua"),
        include_str!("lua/gate.lua"),
        include_str!("lua/read.lua"),
        include_str!("lua/prepare.lua"),
        include_str!("lua/accept.lua"),
        include_str!("lua/list.lua"),
        include_str!("lua/found.lua"),
        include_str!("lua/dispatch.lua"),
    ];
    constants(identity, index) + &parts.join("\n")
}

/// The script of the handshake.
pub fn hello(identity: &Identity, index: NodeIndex) -> String {
    constants(identity, index) + include_str!("lua/hello.lua")
}

fn constants(identity: &Identity, index: NodeIndex) -> String {
    // The configuration allows a cluster only letters, digits and hyphens, so nothing in it can end the quotes.
    debug_assert!(identity.cluster.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    format!(
        "local CLUSTER, INDEX, NODES, FORMAT = '{}', {}, {}, {}\n",
        identity.cluster, index.0, identity.nodes, FORMAT
    )
}

/// The node record, as `hello` returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The format of records.
    pub format: u64,
    /// Name of the cluster.
    pub cluster: String,
    /// N.
    pub nodes: u64,
    /// The node's index.
    pub index: u64,
    /// The memory; zero for none.
    pub memory: u64,
}

impl NodeRecord {
    /// Reads the reply of `hello`. `None` for anything else.
    pub fn decode(mut reply: &[u8]) -> Option<Self> {
        let reply = &mut reply;
        (rmp::decode::read_array_len(reply).ok()? == 5).then_some(())?;
        Some(Self {
            format: rmp::decode::read_int(reply).ok()?,
            cluster: String::from_utf8_lossy(text(reply)?).into_owned(),
            nodes: rmp::decode::read_int(reply).ok()?,
            index: rmp::decode::read_int(reply).ok()?,
            memory: match text(reply)? {
                [] => 0,
                bytes => u64::from_be_bytes(bytes.try_into().ok()?),
            },
        })
    }

    /// Whether this is the node that the daemon is configured for.
    ///
    /// # Errors
    /// [`Refusal::Mismatch`] names the first field that differs, and what to do.
    pub fn check(&self, identity: &Identity, index: NodeIndex, format: u32) -> Result<(), Refusal> {
        let mismatch = |what, found: String, expected: String, advice| {
            Err(Refusal::Mismatch { what, found, expected, advice })
        };
        if self.format != u64::from(format) {
            let advice = "run the version of majorityd that wrote it";
            return mismatch("format", self.format.to_string(), format.to_string(), advice);
        }
        if self.cluster != *identity.cluster {
            let advice = "this server belongs to another cluster: list the right addresses, or set cluster.name; \
                          to give the server away for good, remove its keys that start with majorityd:";
            return mismatch("cluster", self.cluster.clone(), identity.cluster.to_string(), advice);
        }
        if self.nodes != identity.nodes as u64 {
            let advice = "all daemons of a cluster list the same servers: set nodes.addresses to all of them";
            return mismatch("number of nodes", self.nodes.to_string(), identity.nodes.to_string(), advice);
        }
        if self.index != u64::from(index.0) {
            let advice = "list the servers in the same order in every daemon";
            return mismatch("index", self.index.to_string(), index.to_string(), advice);
        }
        Ok(())
    }
}

fn text<'a>(reply: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = rmp::decode::read_str_len(reply).ok()? as usize;
    let (text, rest) = reply.split_at_checked(length)?;
    *reply = rest;
    Some(text)
}
