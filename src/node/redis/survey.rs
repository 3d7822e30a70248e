//! What `majorityd check` asks a server beyond what a handshake does. All of it is for people: whatever the server will not tell
//! is left out, and nothing is changed on it.

use std::time::Duration;

use fred::prelude::{Client, ClientLike, LuaInterface};

use super::client;
use crate::node::{Identity, keyspace};
use crate::runtime::Runtime;

/// How often a server is pinged, and how long it is from one ping to the next: over a moment, so that a server which stops
/// now and then is noticed.
const PINGS: usize = 9;
const PING_INTERVAL: Duration = Duration::from_millis(20);

/// Says which commands, given as lines, this user may not call. It is asked under the user's own rights, and so needs no
/// right to ask about users.
const DENIED: &str = "#!lua flags=no-writes
local denied = {}
for i = 1, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[i], '%S+') do
    words[#words + 1] = word
  end
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if known and not allowed then
    denied[#denied + 1] = ARGV[i]
  end
end
return denied";

/// What a server told; `None` where it would not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// `appendonly` by `CONFIG GET`.
    pub appendonly: Option<String>,
    /// `appendfsync` by `CONFIG GET`.
    pub appendfsync: Option<String>,
    /// `save` by `CONFIG GET`: when snapshots are made; empty for never.
    pub save: Option<String>,
    /// Bytes in use, by `INFO`.
    pub memory_used: Option<u64>,
    /// Bytes that it may use, by `INFO`; 0 for as many as there are.
    pub memory_max: Option<u64>,
    /// Bytes of its machine, by `INFO`.
    pub memory_of_machine: Option<u64>,
    /// Servers that copy it, by `INFO`.
    pub replicas: Option<u64>,
    /// Its clock against this machine's, in milliseconds; off by at most half a round trip.
    pub clock_offset_ms: Option<i64>,
    /// For how many seconds its certificate is still good; `None` without TLS.
    pub certificate_left_s: Option<i64>,
    /// From each ping to its answer.
    pub round_trips: Vec<Duration>,
    /// What the daemon needs and this user may not do.
    pub denied: Vec<String>,
}

/// Asks one thing after the other, and notes at once what came: whoever stops waiting has the rest.
pub(super) async fn fill(survey: &mut Survey, client: &Client, identity: &Identity, runtime: &Runtime) {
    survey.denied = denied(client, identity).await;
    let info: String = client.info(None).await.unwrap_or_default();
    let number = |name: &str| client::info_field(&info, name).and_then(|text| text.parse().ok());
    survey.memory_used = number("used_memory");
    survey.memory_max = number("maxmemory");
    survey.memory_of_machine = number("total_system_memory");
    survey.replicas = number("connected_slaves");
    survey.appendonly = client::setting(client, "appendonly").await.ok().flatten();
    survey.appendfsync = client::setting(client, "appendfsync").await.ok().flatten();
    survey.save = client::setting(client, "save").await.ok().flatten();
    survey.clock_offset_ms = clock_offset(client, runtime).await;
    for _ in 0..PINGS {
        let clock = &runtime.clock;
        let sent = clock.now();
        if client.ping::<String>(None).await.is_err() {
            return;
        }
        survey.round_trips.push(clock.now().since(sent));
        clock.sleep_until(clock.now() + PING_INTERVAL).await;
    }
}

async fn clock_offset(client: &Client, runtime: &Runtime) -> Option<i64> {
    let sent = runtime.clock.now();
    let theirs_us = client::time_us(client).await.ok()?;
    let half = i64::try_from(runtime.clock.now().since(sent).as_millis() / 2).ok()?;
    let ours_ms = i64::try_from(runtime.clock.wall_unix_ms()).ok()?;
    Some(i64::try_from(theirs_us / 1_000).ok()? + half - ours_ms)
}

/// The commands that a daemon calls, each in a form that it calls.
fn needed(identity: &Identity) -> Vec<String> {
    let key = keyspace::NODE_KEY;
    let changes = keyspace::changes_channel(&identity.cluster);
    let of_key = [
        "GET _",
        "MGET _",
        "EXISTS _",
        "SET _ x",
        "MSET _ x",
        "UNLINK _",
        "INCR _",
        "ZADD _ 0 x",
        "ZREM _ x",
        "ZCARD _",
    ];
    let of_key = of_key.into_iter().chain(["ZRANGE _ 0 0", "ZRANGEBYSCORE _ 0 0", "ZRANGEBYLEX _ - +"]);
    let of_key = of_key.map(|words| words.replace('_', key));
    let others = ["INFO", "PING", "TIME", "SCAN 0", "SCRIPT LOAD x", "SCRIPT EXISTS x", "EVALSHA x 0"]
        .map(str::to_owned);
    let of_channel = ["SUBSCRIBE", "PUBLISH", "PUBSUB NUMSUB"].map(|words| match words {
        "PUBLISH" => format!("{words} {changes} x"),
        _ => format!("{words} {changes}"),
    });
    others.into_iter().chain(of_key).chain(of_channel).collect()
}

async fn denied(client: &Client, identity: &Identity) -> Vec<String> {
    let asked: Vec<String> = needed(identity);
    match client.eval::<Vec<String>, _, _, _>(DENIED, Vec::<String>::new(), asked).await {
        Ok(denied) => denied,
        Err(error) if client::is_denied(&error) => vec!["EVAL".to_owned()],
        // Of an older server, or one that is busy, nothing is known.
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ProposerId;
    use std::collections::BTreeSet;

    /// The scripts and the survey name the same commands.
    #[test]
    fn every_command_of_the_scripts_is_asked_for() {
        let identity = Identity { cluster: "c".into(), nodes: 3, daemon: ProposerId(1) };
        let asked: BTreeSet<String> = needed(&identity)
            .iter()
            .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
            .collect();
        let scripts = crate::node::script::batch(&identity, crate::ids::NodeIndex(0))
            + &crate::node::script::hello(&identity, crate::ids::NodeIndex(0));
        let calls = scripts.split("redis.call('").chain(scripts.split("redis.pcall('")).skip(1);
        let called: BTreeSet<String> = calls
            .filter_map(|rest| rest.split('\'').next())
            .filter(|word| word.chars().all(|c| c.is_ascii_uppercase()))
            .map(str::to_owned)
            .collect();
        assert!(called.len() > 5, "{called:?}");
        assert!(called.is_subset(&asked), "{:?}", called.difference(&asked));
    }
}
