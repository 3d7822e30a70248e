//! majorityd: distributed locks, locking queues and consistent keys over gRPC, by majority of independent Redis servers.
//!
//! The map, from the caller to the servers. Each room's own page has its why.
//!
//! * [`cli`] and [`config`]: what is typed and what is set. [`server`] puts everything together, [`telemetry`] logs.
//! * [`access`]: who may do what (pure); [`tls`]: certificates and keys (pure).
//! * [`grpc`]: the API; [`proto`] has its generated code. Checks requests, calls a facade, maps errors in one place.
//! * [`http`]: the port for operators: metrics, liveness, readiness, a status page. [`metrics`] names what [`meter`] counts.
//! * [`lock`]: locks as pure changes of a value, and the facade with its waiting and its streams.
//! * [`queue`]: the items of queues as pure changes of a value, and the facade with the desk where calls wait for them.
//! * [`kv`]: keys as pure changes of a value, and the facade with its watches.
//! * [`cluster`]: how the cluster is, for people: what each node is worth now, and what may still fail.
//! * [`register`]: agreement on one value by CASPaxos: the proposer (pure), ages (pure), the line of changes per key.
//! * [`members`]: whose answers count (pure); [`upkeep`] keeps that list read, repaired and founded.
//! * [`driver`]: the one loop that carries out what a protocol machine wants, over all nodes.
//! * [`node`]: one node: operations, batches, the handshake, the Lua that runs there; on Redis or embedded.
//! * `client` (the feature of that name): a thin client for programs in Rust.
//! * [`quorum`], [`token`], [`ids`], [`limits`], [`runtime`]: what all of them stand on.
//! * `sim` (tests, or the feature of that name): a world of virtual time under the real rooms. [`mutant`] has switches
//!   that take one mechanism out, to see whether the simulation notices.
//!
//! `docs/architecture.md` follows one request through them; `docs/protocol.md` has the protocol.

pub mod access;
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
pub mod cluster;
pub mod config;
pub mod driver;
pub mod grpc;
pub mod http;
pub mod idle;
pub mod ids;
pub mod inbox;
pub mod kv;
pub mod limits;
pub mod load;
pub mod lock;
pub mod members;
pub mod meter;
pub mod metrics;
pub mod mutant;
pub mod node;
pub mod proto;
pub mod queue;
pub mod quorum;
pub mod register;
pub mod runtime;
pub mod server;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod telemetry;
pub mod tls;
pub mod token;
pub mod upkeep;
