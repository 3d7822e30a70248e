//! A look at a server that touches nothing: no node record is made, and no script of a daemon is loaded.

use futures::future::{self, Either};

use super::RedisOptions;
use super::certificate;
use super::client::{self, Connected, Failure};
use super::handshake::{self, Welcome};
use super::survey::{self, Survey};
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
    /// What the server said about itself, as far as it got; also of one that must not be used.
    pub survey: Survey,
}

/// Looks at one server.
pub async fn look(options: &RedisOptions, identity: &Identity, index: NodeIndex, runtime: &Runtime) -> Look {
    let mut look = Look {
        state: NodeState::Unreachable("it does not answer in time".into()),
        members: None,
        survey: Survey::default(),
    };
    let failed = |failure| match failure {
        Failure::Refused(refusal) => NodeState::Refused(refusal),
        Failure::Unreachable(reason) => NodeState::Unreachable(reason),
    };
    let connected = match in_time(options, runtime, client::connect(options)).await {
        Some(Ok(connected)) => connected,
        Some(Err(failure)) => return Look { state: failed(failure), ..look },
        None => return look,
    };
    match in_time(options, runtime, find(options, &connected, identity, index)).await {
        Some(Ok((welcome, members))) => (look.state, look.members) = (NodeState::Ready(welcome), members),
        Some(Err(failure)) => look.state = failed(failure),
        None => return look,
    }
    let expiry = in_time(options, runtime, certificate::expiry(options)).await.flatten();
    look.survey.certificate_left_s = expiry.map(|expiry| {
        let now = runtime.clock.wall_unix_ms() / 1_000;
        i64::try_from(expiry).unwrap_or(i64::MAX).saturating_sub(i64::try_from(now).unwrap_or(i64::MAX))
    });
    in_time(options, runtime, survey::fill(&mut look.survey, &connected.client, identity, runtime)).await;
    look
}

async fn in_time<T>(options: &RedisOptions, runtime: &Runtime, work: impl Future<Output = T>) -> Option<T> {
    let timer = runtime.clock.sleep_until(runtime.clock.now() + options.connect_timeout);
    futures::pin_mut!(work);
    match future::select(work, timer).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}

async fn find(
    options: &RedisOptions,
    connected: &Connected,
    identity: &Identity,
    index: NodeIndex,
) -> Result<(Welcome, Option<Record>), Failure> {
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
    let members = members.and_then(|raw| wire::decode_record(&raw, now_us).ok());
    Ok((Welcome { version: version.into(), run_id: run_id.into(), memory }, members))
}
