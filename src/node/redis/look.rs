//! A look at a server that touches nothing: no node record is made, no script is loaded.

use super::RedisOptions;
use super::client::{self, Failure};
use super::handshake::{self, Welcome};
use crate::ids::NodeIndex;
use crate::node::operation::Record;
use crate::node::{Identity, NodeState, keyspace, wire};
use crate::runtime::Runtime;

/// What a look found.
#[derive(Clone, Debug)]
pub struct Look {
    /// What a handshake would come to.
    pub state: NodeState,
    /// The node's record of the member list.
    pub members: Option<Record>,
    /// The server's clock against this machine's, in milliseconds.
    pub clock_offset_ms: Option<i64>,
}

/// Looks at one server.
pub async fn look(options: &RedisOptions, identity: &Identity, index: NodeIndex, runtime: &Runtime) -> Look {
    let found = find(options, identity, index, runtime);
    let timer = runtime.clock.sleep_until(runtime.clock.now() + options.connect_timeout);
    let nothing = |state| Look { state, members: None, clock_offset_ms: None };
    futures::pin_mut!(found);
    match futures::future::select(found, timer).await {
        futures::future::Either::Left((Ok(look), _)) => look,
        futures::future::Either::Left((Err(Failure::Refused(refusal)), _)) => {
            nothing(NodeState::Refused(refusal))
        }
        futures::future::Either::Left((Err(Failure::Unreachable(reason)), _)) => {
            nothing(NodeState::Unreachable(reason))
        }
        futures::future::Either::Right(_) => {
            nothing(NodeState::Unreachable("it does not answer in time".into()))
        }
    }
}

async fn find(
    options: &RedisOptions,
    identity: &Identity,
    index: NodeIndex,
    runtime: &Runtime,
) -> Result<Look, Failure> {
    let connected = client::connect(options).await?;
    let client = &connected.client;
    let found = client::inspect(client, options.assume_noeviction).await?;
    handshake::inspect(&found).map_err(Failure::Refused)?;
    let (version, run_id) = (found.redis_version.unwrap_or_default(), found.run_id.unwrap_or_default());
    let members = client::get(client, &format!("{}m:", keyspace::RECORD_PREFIX)).await?;
    let memory = match client::get(client, keyspace::NODE_KEY).await? {
        None => None,
        // Left by a daemon that founded nothing: it binds nobody.
        Some(record) if members.is_none() && handshake::is_blank(&record) => None,
        Some(record) => {
            let known = handshake::recorded(identity, index, &record).map_err(Failure::Refused)?;
            // Of another run: a handshake would find the memory gone.
            (known.run_id == run_id).then_some(known.memory).flatten()
        }
    };
    let now_us = client::time_us(client).await?;
    let offset = i64::try_from(now_us / 1_000).unwrap_or(i64::MAX) - runtime.clock.wall_unix_ms() as i64;
    let members = members.and_then(|raw| wire::decode_record(&raw, now_us).ok());
    Ok(Look {
        state: NodeState::Ready(Welcome { version: version.into(), run_id: run_id.into(), memory }),
        members,
        clock_offset_ms: Some(offset),
    })
}
