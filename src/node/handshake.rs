//! What a daemon finds out about a server before it sends it anything, and why it may refuse it.
//!
//! Pure: [`inspect`] judges what `INFO`, `ROLE` and `CONFIG GET` said. The connection asks, on one connection that does
//! not reconnect by itself, and anew for every connection and every `NOSCRIPT`. Redis 7 never persists its script cache,
//! so an `EVALSHA` that works proves that a daemon has inspected this run of the server.

use std::sync::Arc;

use crate::ids::MemoryId;

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
    /// `appendonly` by `CONFIG GET`; for `majorityd check` only.
    pub appendonly: Option<String>,
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
    #[error("it runs Redis {found}; version 7 or later (or Valkey) is needed, because an older one keeps its script cache over a restart and so hides the restart: upgrade the server")]
    TooOld {
        /// The version found.
        found: String,
    },
    /// Not a master.
    #[error("its role is {role:?}; every node must be a master of its own: send it REPLICAOF NO ONE, or list the right address")]
    NotMaster {
        /// The role found.
        role: String,
    },
    /// Redis Cluster.
    #[error("it runs in cluster mode; every node must be an independent server: set cluster-enabled no")]
    ClusterMode,
    /// A server that may evict would forget locks.
    #[error("its maxmemory-policy is {found:?} and would drop what is held: send it CONFIG SET maxmemory-policy noeviction, and put that in its configuration file")]
    Evicts {
        /// The policy found.
        found: String,
    },
    /// The server hides what must be known.
    #[error("it does not tell its {what}: allow this user the commands INFO, ROLE and CONFIG|GET, or, where a managed Redis hides CONFIG, vouch for it with the setting {setting}")]
    Hidden {
        /// What it would not tell.
        what: &'static str,
        /// The setting that vouches for it.
        setting: &'static str,
    },
    /// Two addresses lead to one server.
    #[error("it is the same server (run_id {run_id}) as node {other}: a majority needs independent servers, so list each one once")]
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

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Inspection {
        Inspection {
            redis_version: Some("7.0.15".into()),
            run_id: Some("0".repeat(40)),
            role: Some("master".into()),
            cluster_enabled: false,
            maxmemory_policy: Some("noeviction".into()),
            appendonly: None,
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
