//! Which service answers a path.
//!
//! tonic routes through axum, which keeps a tree of paths, boxes each service once more and wraps each answer. For the four
//! services of the API a comparison of the path's first part says the same; the rest goes through tonic's.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::Service;

use super::cluster::ClusterApi;
use super::kv::KvApi;
use super::lock::LockApi;
use super::queue::QueueApi;
use super::{ServeError, Services};
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::v1::cluster_service_server::ClusterServiceServer;
use crate::proto::v1::kv_service_server::KvServiceServer;
use crate::proto::v1::lock_service_server::LockServiceServer;
use crate::proto::v1::queue_service_server::QueueServiceServer;

type Locks = LockServiceServer<LockApi>;
type Queues = QueueServiceServer<QueueApi>;
type Keys = KvServiceServer<KvApi>;
type Cluster = ClusterServiceServer<ClusterApi>;

/// All services by path. Cheap to clone, as is done for each call.
#[derive(Clone)]
pub(super) struct Routes {
    api: Arc<Api>,
    rest: tonic::service::Routes,
}

struct Api {
    locks: Locks,
    queues: Queues,
    keys: Keys,
    cluster: Cluster,
}

impl Routes {
    /// `stopping` turns true when the daemon starts to shut down.
    ///
    /// # Errors
    /// [`ServeError::Reflection`].
    pub(super) fn new(
        services: &Services,
        health: HealthServer<impl Health>,
        stopping: watch::Receiver<bool>,
    ) -> Result<Self, ServeError> {
        let locks = LockApi {
            locks: services.locks.clone(),
            clock: services.runtime.clock.clone(),
            limits: services.settings.limits.clone(),
            deadline_default: services.settings.deadline_default,
            stopping: stopping.clone(),
        };
        let queues = QueueApi {
            queues: services.queues.clone(),
            clock: services.runtime.clock.clone(),
            limits: services.settings.limits.clone(),
            deadline_default: services.settings.deadline_default,
            stopping: stopping.clone(),
        };
        let keys = KvApi {
            keys: services.keys.clone(),
            clock: services.runtime.clock.clone(),
            limits: services.settings.limits.clone(),
            deadline_default: services.settings.deadline_default,
            stopping: stopping.clone(),
        };
        let cluster = ClusterApi {
            observer: services.observer.clone(),
            clock: services.runtime.clock.clone(),
            limits: services.settings.limits.clone(),
            stopping,
        };
        let bytes_max = services.settings.message_bytes_max;
        let locks = LockServiceServer::new(locks).max_decoding_message_size(bytes_max);
        let queues = QueueServiceServer::new(queues).max_decoding_message_size(bytes_max);
        let keys = KvServiceServer::new(keys).max_decoding_message_size(bytes_max);
        let cluster = ClusterServiceServer::new(cluster).max_decoding_message_size(bytes_max);
        // Older clients and many tools ask for v1alpha only.
        let rest = tonic::service::Routes::new(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        Ok(Self { api: Arc::new(Api { locks, queues, keys, cluster }), rest })
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // The details of errors, which grpcurl prints in full only if it can ask for their types.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

impl Service<Request<Body>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // None of them is ever busy: how many calls there may be is decided before.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let service =
            path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(name, _)| name);
        match service {
            Locks::NAME => self.api.locks.clone().call(request),
            Queues::NAME => self.api.queues.clone().call(request),
            Keys::NAME => self.api.keys.clone().call(request),
            Cluster::NAME => self.api.cluster.clone().call(request),
            _ => self.rest.call(request).boxed(),
        }
    }
}
