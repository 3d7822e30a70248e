//! Keys on real servers, with everything that clients asked and were told judged as the simulation judges it: whether all
//! of it can be put in one order for each key.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use majorityd::ids::RequestId;
use majorityd::kv::change::Refused;
use majorityd::kv::{Effect, Entry, Mutation, Precondition, Write, Written};
use majorityd::proto::v1;
use majorityd::proto::v1::set_request::{Content, Precondition as Asked};
use majorityd::runtime::Moment;
use majorityd::sim::history::Fate;
use majorityd::sim::key::{KeyAsked, KeyTold};
use majorityd::sim::keys::{KeyHistory, judge};
use majorityd::token::Token;
use tonic::{Response, Status};
use tonic_types::StatusExt as _;

use super::keys::{Client, client, harass, request_id};
use crate::support::daemon::{DaemonProcess, beside, now, pause, reason, request, servers};

const CALL: Duration = Duration::from_secs(5);
const KEYS: u64 = 3;
const CLIENTS: u32 = 6;
/// How often the model is asked for one key, at most.
const STEPS_MAX: u64 = 20_000_000;

fn token(version: u64) -> Token {
    Token::new(version).unwrap()
}

fn some_token(version: u64) -> Option<Token> {
    (version > 0).then(|| token(version))
}

fn entry(found: v1::KeyValue) -> Entry {
    let remaining = found.remaining.map(|left| Duration::try_from(left).unwrap());
    Entry { data: found.value, version: token(found.version), remaining }
}

fn length(ttl: Option<Duration>) -> Option<prost_types::Duration> {
    ttl.map(|ttl| ttl.try_into().unwrap())
}

fn written(effect: Effect, repeated: bool) -> KeyTold {
    KeyTold::Written(Written { effect, previous: None, repeated })
}

/// What became of a call, held against its error's word.
fn fate(told: Result<KeyTold, Status>) -> Fate<KeyTold> {
    let status = match told {
        Ok(told) => return Fate::Answered(told),
        Err(status) => status,
    };
    match reason(&status).as_deref() {
        Some("PRECONDITION_FAILED") => {
            let info = status.get_details_error_info().unwrap();
            let current = info.metadata.get("current_version").map(|version| token(version.parse().unwrap()));
            Fate::Answered(KeyTold::Refused(Refused::Precondition(current)))
        }
        Some("NO_QUORUM" | "DEADLINE_EXCEEDED" | "OVERLOADED") => Fate::NotApplied(status.message().into()),
        Some("OUTCOME_UNKNOWN") => Fate::Unknown("outcome unknown".into()),
        // The client's own deadline, or a connection that broke.
        None => Fate::Unknown(status.to_string()),
        Some(other) => panic!("{other}: {status:?}"),
    }
}

async fn ask(client: &mut Client, key: &str, asked: &KeyAsked, id: Option<String>) -> Fate<KeyTold> {
    let key = key.to_owned();
    let told = match asked {
        KeyAsked::Get => {
            let found = client.get(request(v1::GetRequest { key }, CALL)).await.map(Response::into_inner);
            found.map(|found| KeyTold::Seen(found.key_value.map(entry)))
        }
        KeyAsked::Write(Mutation { write, .. }) => match write.clone() {
            Write::Set { data, ttl, precondition } => {
                let message = v1::SetRequest {
                    key,
                    content: Some(Content::Value(data)),
                    ttl: length(ttl),
                    precondition: match precondition {
                        Precondition::None => None,
                        Precondition::Absent => Some(Asked::Absent(true)),
                        Precondition::Present => Some(Asked::Present(true)),
                        Precondition::Version(version) => Some(Asked::Version(version.get())),
                    },
                    request_id: id,
                    ..v1::SetRequest::default()
                };
                let set = client.set(request(message, CALL)).await.map(Response::into_inner);
                set.map(|set| {
                    let version = token(set.key_value.unwrap().version);
                    written(Effect::Set { version, ttl }, set.repeated)
                })
            }
            Write::Delete { version } => {
                let version = version.map(Token::get);
                let message =
                    v1::DeleteRequest { key, version, request_id: id, ..v1::DeleteRequest::default() };
                let deleted = client.delete(request(message, CALL)).await.map(Response::into_inner);
                deleted.map(|it| written(Effect::Deleted { version: some_token(it.version) }, it.repeated))
            }
            Write::Increment { delta, .. } => {
                let delta = Some(delta);
                let message =
                    v1::IncrementRequest { key, delta, request_id: id, ..v1::IncrementRequest::default() };
                let sum = client.increment(request(message, CALL)).await.map(Response::into_inner);
                sum.map(|sum| {
                    let effect = Effect::Counted { number: sum.number, version: token(sum.version) };
                    written(effect, sum.repeated)
                })
            }
            Write::Touch { ttl } => {
                let message = v1::TouchRequest { key, ttl: length(ttl), request_id: id, fence: None };
                let touched = client.touch(request(message, CALL)).await.map(Response::into_inner);
                touched
                    .map(|it| written(Effect::Touched { version: some_token(it.version), ttl }, it.repeated))
            }
        },
    };
    fate(told)
}

/// What a client asks next: all kinds of calls in turn, each with other numbers.
fn choose(client: u32, turn: u64, last: Token) -> KeyAsked {
    let number = 1_000 * u64::from(client) + turn;
    let set = |ttl: Option<u64>, precondition| Write::Set {
        data: number.to_string().into(),
        ttl: ttl.map(Duration::from_secs),
        precondition,
    };
    let write = match (turn + u64::from(client)) % 10 {
        0 | 3 | 7 => return KeyAsked::Get,
        1 => set(None, Precondition::None),
        2 => set(Some(1), Precondition::None),
        4 => set(None, Precondition::Version(last)),
        5 => set(Some(2), Precondition::Absent),
        6 => Write::Touch { ttl: Some(Duration::from_secs(1)) },
        8 => Write::Increment { delta: 1, initial: 0, ttl: None },
        _ => Write::Delete { version: None },
    };
    // The number of the turn is the id's, so that no two requests share one.
    let request = (turn.is_multiple_of(2)).then(|| RequestId(request_bits(client), number));
    KeyAsked::Write(Mutation { request, ..write.into() })
}

fn request_bits(client: u32) -> u64 {
    u64::from(client) << 32 | 0x4000
}

/// The version that an answer shows.
fn version_of(told: &KeyTold) -> Option<Token> {
    match told {
        KeyTold::Seen(found) => found.as_ref().map(|found| found.version),
        KeyTold::Refused(Refused::Precondition(current)) => *current,
        KeyTold::Refused(_) => None,
        KeyTold::Written(written) => match written.effect {
            Effect::Set { version, .. } | Effect::Counted { version, .. } => Some(version),
            Effect::Deleted { .. } => None,
            Effect::Touched { version, .. } => version,
        },
    }
}

async fn live(
    number: u32,
    clients: Vec<Client>,
    history: Arc<Mutex<KeyHistory>>,
    started: Instant,
    over: Arc<AtomicBool>,
) {
    let at = || Moment::from_start(Duration::from_secs(1) + (now() - started));
    let mut last = token(1);
    let mut turn = 0;
    while !over.load(Ordering::Relaxed) {
        turn += 1;
        let key = format!("h/{}", (turn + u64::from(number)) % KEYS);
        let asked = choose(number, turn, last);
        let id = match &asked {
            KeyAsked::Write(Mutation { request: Some(id), .. }) => Some(request_id(id.0, id.1)),
            KeyAsked::Write(_) | KeyAsked::Get => None,
        };
        // What has an id and is not answered is sent to the next daemon.
        for client in clients.iter().cycle().skip(turn as usize).take(2) {
            let call = history.lock().unwrap().begin(&key, number, asked.clone(), at());
            let fate = ask(&mut client.clone(), &key, &asked, id.clone()).await;
            let answered = match &fate {
                Fate::Answered(told) => {
                    last = version_of(told).unwrap_or(last);
                    true
                }
                Fate::UnderWay | Fate::NotApplied(_) | Fate::Unknown(_) => false,
            };
            history.lock().unwrap().end(call, fate, at());
            if answered || id.is_none() {
                break;
            }
        }
        pause(Duration::from_millis(5)).await;
    }
}

/// Mechanisms: all of them. Servers are killed, frozen and emptied one after the other, a daemon is killed, and values
/// expire meanwhile. `ROUNDS=20` does that for some minutes.
#[tokio::test]
async fn everything_that_was_told_of_keys_can_be_put_in_one_order() {
    let rounds: usize = std::env::var("ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let mut servers = servers(3);
        let mut daemons = join_all((0..3).map(|_| DaemonProcess::serving(&servers))).await;
        let clients: Vec<Client> = join_all(daemons.iter().map(client)).await;
        let history = Arc::new(Mutex::new(KeyHistory::default()));
        let (over, started) = (Arc::new(AtomicBool::new(false)), now());
        let lives = (0..CLIENTS)
            .map(|number| beside(live(number, clients.clone(), history.clone(), started, over.clone())));
        let lives: Vec<_> = lives.collect();
        harass(&mut servers[..2], &daemons[0]).await;
        daemons[2].kill();
        harass(&mut servers[2..], &daemons[0]).await;
        over.store(true, Ordering::Relaxed);
        join_all(lives).await.into_iter().for_each(|life| life.unwrap());
        let history = Arc::into_inner(history).unwrap().into_inner().unwrap();
        let judged = judge(&history, STEPS_MAX).unwrap_or_else(|words| panic!("{words}"));
        println!("round {round}: {judged:?}");
        assert!(judged.answered > 100, "{judged:?}");
        assert!(judged.undecided.len() < KEYS as usize, "{judged:?}");
    }
}
