//! The API over real channels on loopback: daemons in this process, on embedded servers that they share.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "grpc/access.rs"]
mod access;
#[path = "grpc/acquire.rs"]
mod acquire;
#[path = "support/certificates.rs"]
mod certificates;
#[cfg(feature = "client")]
#[path = "grpc/client.rs"]
mod client;
#[cfg(feature = "client")]
#[path = "grpc/client_security.rs"]
mod client_security;
#[path = "grpc/cluster.rs"]
mod cluster;
#[path = "grpc/crowd.rs"]
mod crowd;
#[path = "grpc/edge.rs"]
mod edge;
#[path = "grpc/hold.rs"]
mod hold;
#[path = "grpc/hostile.rs"]
mod hostile;
#[path = "grpc/kv.rs"]
mod kv;
#[path = "grpc/kv_many.rs"]
mod kv_many;
#[path = "grpc/kv_refusals.rs"]
mod kv_refusals;
#[path = "grpc/kv_watch.rs"]
mod kv_watch;
#[path = "grpc/look.rs"]
mod look;
#[path = "grpc/metrics.rs"]
mod metrics;
#[path = "grpc/operators.rs"]
mod operators;
#[path = "grpc/queue.rs"]
mod queue;
#[path = "grpc/queue_consume.rs"]
mod queue_consume;
#[path = "grpc/queue_operators.rs"]
mod queue_operators;
#[path = "grpc/queue_refusals.rs"]
mod queue_refusals;
#[path = "support/raw_http2.rs"]
mod raw_http2;
#[path = "grpc/refusals.rs"]
mod refusals;
#[path = "grpc/stage.rs"]
mod stage;
#[path = "grpc/tls.rs"]
mod tls;
#[path = "grpc/tls_lapse.rs"]
mod tls_lapse;
#[path = "grpc/unread.rs"]
mod unread;
