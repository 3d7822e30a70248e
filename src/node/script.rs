//! Assembles the two scripts from `lua/`: constants, prelude, gate, operations, dispatch. At last the constants are written in
//! (`literals.rs`).
//!
//! Cluster, size and index are part of the text, so a digest that one server knows is no other cluster's or node's.

use super::keyspace::FORMAT;
use crate::ids::NodeIndex;

use super::{Identity, literals};
use crate::mutant::{self, Script};

/// The script that runs batches.
pub fn batch(identity: &Identity, index: NodeIndex) -> String {
    let parts = [
        include_str!("lua/prelude.lua"),
        include_str!("lua/records.lua"),
        include_str!("lua/floor.lua"),
        include_str!("lua/gate.lua"),
        "local is_guarded, promise, prepare, read\nif wanted % (2 * PROMISES_BIT) >= PROMISES_BIT then",
        include_str!("lua/prepare.lua"),
        include_str!("lua/read.lua"),
        "end\nlocal append, queue_set, replace",
        include_str!("lua/index.lua"),
        "if wanted % (2 * PLACES_BIT) >= PLACES_BIT then",
        include_str!("lua/places.lua"),
        "end\nlocal publish\nif wanted % (2 * HINTS_BIT) >= HINTS_BIT then",
        include_str!("lua/hints.lua"),
        "end\nlocal stamps_of\nif wanted % (2 * STAMPS_BIT) >= STAMPS_BIT then",
        include_str!("lua/stamps.lua"),
        "end",
        include_str!("lua/accept.lua"),
        "local UPKEEP, gate = {}\nif wanted % (2 * UPKEEP_BIT) >= UPKEEP_BIT then",
        include_str!("lua/upkeep.lua"),
        include_str!("lua/list.lua"),
        include_str!("lua/found.lua"),
        include_str!("lua/join.lua"),
        include_str!("lua/page.lua"),
        include_str!("lua/forget.lua"),
        include_str!("lua/report.lua"),
        "end\nlocal QUEUES = {}\nif wanted % (2 * QUEUES_BIT) >= QUEUES_BIT then",
        include_str!("lua/queue.lua"),
        "end\nlocal run_alone\nif wanted % (2 * QUEUES_BIT) >= UPKEEP_BIT then",
        include_str!("lua/alone.lua"),
        "end",
        include_str!("lua/dispatch.lua"),
    ];
    literals::write_in(&mutant::lua(Script::Batch, constants(identity, index) + &parts.join("\n")))
}

/// The script of the handshake.
pub fn hello(identity: &Identity, index: NodeIndex) -> String {
    literals::write_in(&mutant::lua(
        Script::Hello,
        constants(identity, index) + include_str!("lua/hello.lua"),
    ))
}

fn constants(identity: &Identity, index: NodeIndex) -> String {
    // The configuration allows a cluster only letters, digits and hyphens, so nothing in it can end the quotes.
    debug_assert!(identity.cluster.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    format!(
        "local CLUSTER, INDEX, NODES, FORMAT = '{}', {}, {}, {}\n",
        identity.cluster, index.0, identity.nodes, FORMAT
    )
}
