//! What a daemon finds out about a server before it sends it anything, and why it may refuse it.
//!
//! Pure: [`inspect`] judges what `INFO`, `ROLE` and `CONFIG GET` said. The connection asks, on one connection that does
//! not reconnect by itself, and anew for every connection and every `NOSCRIPT`. Redis 7 never persists its script cache,
//! so an `EVALSHA` that works proves that a daemon has inspected this run of the server.

use std::sync::Arc;

use super::keyspace::FORMAT;
use super::{Identity, memory_from_wire};
use crate::ids::{MemoryId, NodeIndex};

/// The phase of a node record while no join is under way.
const SERVING: u64 = 0;

/// What a server said about itself; `None` where it would not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// `redis_version` of `INFO server` (Valkey reports a Redis version that it is compatible with).
    pub redis_version: Option<String>,
    /// `run_id` of `INFO server`: 40 hexadecimal digits, new with every start.
    pub run_id: Option<String>,
    /// First word of `ROLE`, or the `role` of `INFO replication`.
    pub role: Option<String>,
    /// `cluster_enabled` of `INFO cluster`.
    pub cluster_enabled: bool,
    /// `maxmemory-policy` by `CONFIG GET`, or as the configuration vouches for where the server hides it.
    pub maxmemory_policy: Option<String>,
}

/// A handshake that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The server's version.
    pub version: Arc<str>,
    /// The server's run.
    pub run_id: Arc<str>,
    /// The node's memory, if it has one.
    pub memory: Option<MemoryId>,
}

/// Why a server must not be used. The message says what was found and what to do; nothing on it was touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Older than Redis 7.
    #[error(
        "it runs Redis {found}; version 7 or later (or Valkey) is needed, because an older one keeps its script cache over a restart and so hides the restart: upgrade the server"
    )]
    TooOld {
        /// The version found.
        found: String,
    },
    /// Not a master.
    #[error(
        "its role is {role:?}; every node must be a master of its own: send it REPLICAOF NO ONE, or list the right address"
    )]
    NotMaster {
        /// The role found.
        role: String,
    },
    /// Redis Cluster.
    #[error("it runs in cluster mode; every node must be an independent server: set cluster-enabled no")]
    ClusterMode,
    /// A server that may evict would forget locks.
    #[error(
        "its maxmemory-policy is {found:?} and would drop what is held: send it CONFIG SET maxmemory-policy noeviction, and put that in its configuration file"
    )]
    Evicts {
        /// The policy found.
        found: String,
    },
    /// The server hides what must be known.
    #[error(
        "it does not tell its {what}: allow this user the commands INFO, ROLE and CONFIG|GET, or, where a managed Redis hides CONFIG, vouch for it with the setting {setting}"
    )]
    Hidden {
        /// What it would not tell.
        what: &'static str,
        /// The setting that vouches for it.
        setting: &'static str,
    },
    /// Two addresses lead to one server.
    #[error(
        "it is the same server (run_id {run_id}) as node {other}: a majority needs independent servers, so list each one once"
    )]
    Duplicate {
        /// The other node's index.
        other: u8,
        /// The run that both reported.
        run_id: String,
    },
    /// The node record is another cluster's, or of another shape.
    #[error("its node record says {what} {found}, and this daemon is configured for {expected}: {advice}")]
    Mismatch {
        /// Which field.
        what: &'static str,
        /// What the record says.
        found: String,
        /// What was expected.
        expected: String,
        /// What to do.
        advice: &'static str,
    },
    /// The server refused a command of the handshake (authentication, ACL, …).
    #[error("it refused {command}: {message}")]
    Denied {
        /// Which command.
        command: &'static str,
        /// The server's words.
        message: String,
    },
}

/// Judges what a server said about itself.
///
/// # Errors
/// The first [`Refusal`] that applies.
pub fn inspect(found: &Inspection) -> Result<(), Refusal> {
    let hidden = |what, setting| Refusal::Hidden { what, setting };
    let version = found.redis_version.as_deref().ok_or(hidden("version", "none, INFO is needed"))?;
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap_or(0);
    if major < 7 {
        return Err(Refusal::TooOld { found: version.to_owned() });
    }
    if found.run_id.is_none() {
        return Err(hidden("run_id", "none, INFO is needed"));
    }
    match found.role.as_deref() {
        Some("master") => {}
        Some(role) => return Err(Refusal::NotMaster { role: role.to_owned() }),
        None => return Err(hidden("role", "none, ROLE is needed")),
    }
    if found.cluster_enabled {
        return Err(Refusal::ClusterMode);
    }
    match found.maxmemory_policy.as_deref() {
        Some("noeviction") => Ok(()),
        Some(policy) => Err(Refusal::Evicts { found: policy.to_owned() }),
        None => Err(hidden("maxmemory-policy", "nodes.assume_noeviction")),
    }
}

/// Judges the node record that the script `hello` answered, and gives the node's memory.
///
/// # Errors
/// [`Refusal::Mismatch`] for the first field that is not this daemon's.
pub fn greeted(identity: &Identity, index: NodeIndex, reply: &[u8]) -> Result<Option<MemoryId>, Refusal> {
    let mut fields = Fields(reply);
    identify(identity, index, &mut fields)?;
    Ok(fields.memory())
}

/// A node record as it is stored, of the right node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The run of the server that the memory belongs to.
    pub run_id: String,
    /// The memory, if the node had one then.
    pub memory: Option<MemoryId>,
    /// No join is under way.
    pub serving: bool,
}

/// Judges the node record as it is stored, for a look that runs no script.
///
/// # Errors
/// [`Refusal::Mismatch`] for the first field that is not this daemon's.
pub fn recorded(identity: &Identity, index: NodeIndex, record: &[u8]) -> Result<NodeRecord, Refusal> {
    let mut fields = Fields(record);
    identify(identity, index, &mut fields)?;
    let run_id = fields.text().map(|run_id| String::from_utf8_lossy(run_id).into_owned());
    let memory = fields.text().and_then(memory_in);
    let (_aside, _begun, phase) = (fields.text(), fields.text(), fields.number());
    Ok(NodeRecord { run_id: run_id.unwrap_or_default(), memory, serving: phase == Some(SERVING) })
}

/// The memory in a node record as it is stored, of whatever node, if it is of this run.
pub fn memory_of(record: &[u8], run_id: &str) -> Option<MemoryId> {
    let mut fields = Fields(record);
    fields.array();
    let (_format, _cluster, _nodes, _index) =
        (fields.number(), fields.text(), fields.number(), fields.number());
    let of_this_run = fields.text() == Some(run_id.as_bytes());
    fields.memory().filter(|_| of_this_run)
}

/// Whether a node record as it is stored has no memory, now or kept aside.
pub fn is_blank(record: &[u8]) -> bool {
    let mut fields = Fields(record);
    fields.array();
    let (_format, _cluster, _nodes, _index) =
        (fields.number(), fields.text(), fields.number(), fields.number());
    let _run_id = fields.text();
    fields.text() == Some(&[]) && fields.text() == Some(&[])
}

/// Compares format, cluster, N and index, with which a node record begins.
fn identify(identity: &Identity, index: NodeIndex, fields: &mut Fields<'_>) -> Result<(), Refusal> {
    let mismatch = |what, found: Option<String>, expected: String, advice| Refusal::Mismatch {
        what,
        found: found.unwrap_or_else(|| "something that is not a node record".to_owned()),
        expected,
        advice,
    };
    let of_text = |text: Option<&[u8]>| text.map(|text| String::from_utf8_lossy(text).into_owned());
    fields.array();
    let format = fields.number();
    if format != Some(FORMAT.into()) {
        let advice = "another version of majorityd wrote it, so run that version, or point this one to an empty server or database";
        let found = format.map(|format| format.to_string());
        return Err(mismatch("format", found, FORMAT.to_string(), advice));
    }
    let cluster = of_text(fields.text());
    if cluster.as_deref() != Some(identity.cluster.as_ref()) {
        let advice = "each cluster needs servers (or database numbers) of its own: correct the cluster's name or this address";
        return Err(mismatch("cluster", cluster, identity.cluster.to_string(), advice));
    }
    let nodes = fields.number();
    if nodes != Some(identity.nodes as u64) {
        let advice = "the number of nodes is fixed when a cluster is founded: list as many addresses as there were then, the same in every daemon";
        let found = nodes.map(|nodes| nodes.to_string());
        return Err(mismatch("number of nodes", found, identity.nodes.to_string(), advice));
    }
    let found = fields.number();
    if found != Some(index.0.into()) {
        let advice = "list the addresses in the same order in every daemon";
        let found = found.map(|found| found.to_string());
        return Err(mismatch("index", found, index.to_string(), advice));
    }
    Ok(())
}

fn memory_in(field: &[u8]) -> Option<MemoryId> {
    memory_from_wire(u64::from_be_bytes(field.try_into().ok()?))
}

/// Fields of a MessagePack array; whatever is not as expected is `None`, and so is all that follows it.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array(&mut self) -> Option<u32> {
        rmp::decode::read_array_len(&mut self.0).ok()
    }

    fn number(&mut self) -> Option<u64> {
        rmp::decode::read_int(&mut self.0).ok()
    }

    fn memory(&mut self) -> Option<MemoryId> {
        memory_in(self.text()?)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = rmp::decode::read_str_len(&mut self.0).ok()?;
        let (text, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProposerId;

    fn reply(format: u32, cluster: &str, nodes: u32, index: u32, memory: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        rmp::encode::write_array_len(&mut out, 5).unwrap();
        rmp::encode::write_uint(&mut out, format.into()).unwrap();
        rmp::encode::write_str(&mut out, cluster).unwrap();
        rmp::encode::write_uint(&mut out, nodes.into()).unwrap();
        rmp::encode::write_uint(&mut out, index.into()).unwrap();
        rmp::encode::write_str_len(&mut out, memory.len() as u32).unwrap();
        out.extend(memory);
        out
    }

    #[test]
    fn a_node_record_of_another_cluster_size_or_place_is_refused_with_advice() {
        let identity = Identity { cluster: "blue".into(), nodes: 3, daemon: ProposerId(1) };
        let judge = |reply: Vec<u8>| greeted(&identity, NodeIndex(1), &reply);
        assert_eq!(judge(reply(FORMAT, "blue", 3, 1, b"")), Ok(None));
        let memory = MemoryId(7).0.to_be_bytes();
        assert_eq!(judge(reply(FORMAT, "blue", 3, 1, &memory)), Ok(Some(MemoryId(7))));
        let refused = |reply| judge(reply).expect_err("foreign").to_string();
        assert!(refused(reply(99, "blue", 3, 1, b"")).contains("format 99"));
        assert!(refused(reply(FORMAT, "red", 3, 1, b"")).contains("cluster red"));
        assert!(refused(reply(FORMAT, "blue", 5, 1, b"")).contains("number of nodes 5"));
        let order = refused(reply(FORMAT, "blue", 3, 2, b""));
        assert!(order.contains("index 2") && order.contains("same order"));
        assert!(refused(vec![0xc0]).contains("not a node record"));
        assert!(refused(Vec::new()).contains("not a node record"));
    }

    fn good() -> Inspection {
        Inspection {
            redis_version: Some("7.0.15".into()),
            run_id: Some("0".repeat(40)),
            role: Some("master".into()),
            cluster_enabled: false,
            maxmemory_policy: Some("noeviction".into()),
        }
    }

    #[test]
    fn a_fit_server_is_welcome_and_each_unfit_one_is_named() {
        assert_eq!(inspect(&good()), Ok(()));
        let with = |change: fn(&mut Inspection)| {
            let mut found = good();
            change(&mut found);
            inspect(&found).expect_err("unfit").to_string()
        };
        assert!(with(|f| f.redis_version = Some("6.2.7".into())).contains("6.2.7"));
        assert!(with(|f| f.redis_version = Some("nonsense".into())).contains("nonsense"));
        assert!(with(|f| f.redis_version = None).contains("version"));
        assert!(with(|f| f.run_id = None).contains("run_id"));
        assert!(with(|f| f.role = Some("slave".into())).contains("slave"));
        assert!(with(|f| f.role = None).contains("role"));
        assert!(with(|f| f.cluster_enabled = true).contains("cluster"));
        assert!(with(|f| f.maxmemory_policy = Some("allkeys-lru".into())).contains("allkeys-lru"));
        assert!(with(|f| f.maxmemory_policy = None).contains("nodes.assume_noeviction"));
    }
}
