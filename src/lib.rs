//! majorityd: distributed locks over gRPC, by majority of independent Redis servers.

pub mod cli;
pub mod config;
pub mod driver;
pub mod grpc;
pub mod ids;
pub mod limits;
pub mod lock;
pub mod members;
pub mod node;
pub mod proto;
pub mod quorum;
pub mod register;
pub mod runtime;
pub mod server;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod telemetry;
pub mod token;
pub mod upkeep;
