//! Which service answers a path.
//!
//! tonic routes through axum, which keeps a tree of paths, boxes each service once more and wraps each answer. For the four
//! services of the API a comparison of the path's parts says the same: their unary methods are answered as [`super::unary`] does,
//! their streams by what tonic has made of the proto. The rest goes through tonic's routes.

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
use super::unary;
use super::{ServeError, Services};
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use crate::proto::v1::kv_service_server::{KvService, KvServiceServer};
use crate::proto::v1::lock_service_server::{LockService, LockServiceServer};
use crate::proto::v1::queue_service_server::{QueueService, QueueServiceServer};

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
    locks: Served<LockApi, Locks>,
    queues: Served<QueueApi, Queues>,
    keys: Served<KvApi, Keys>,
    cluster: Served<ClusterApi, Cluster>,
    bytes_max: usize,
}

/// A service, and what tonic has made of it.
struct Served<A, S> {
    api: Arc<A>,
    streams: S,
}

/// Answers a call by its method: those that are named here are unary, and what tonic has made knows the others.
macro_rules! by_method {
    ($request:ident, $method:ident, $served:expr, $bytes_max:expr, [$($name:literal => $handler:ident),* $(,)?]) => {
        match $method {
            $($name => {
                let api = $served.api.clone();
                unary::answer($request, $bytes_max, api, |api, request| api.$handler(request))
            })*
            _ => $served.streams.clone().call($request),
        }
    };
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
        let (locks, queues) = (Arc::new(locks), Arc::new(queues));
        let (keys, cluster) = (Arc::new(keys), Arc::new(cluster));
        let api = Api {
            locks: Served {
                api: locks.clone(),
                streams: LockServiceServer::from_arc(locks).max_decoding_message_size(bytes_max),
            },
            queues: Served {
                api: queues.clone(),
                streams: QueueServiceServer::from_arc(queues).max_decoding_message_size(bytes_max),
            },
            keys: Served {
                api: keys.clone(),
                streams: KvServiceServer::from_arc(keys).max_decoding_message_size(bytes_max),
            },
            cluster: Served {
                api: cluster.clone(),
                streams: ClusterServiceServer::from_arc(cluster).max_decoding_message_size(bytes_max),
            },
            bytes_max,
        };
        // Older clients and many tools ask for v1alpha only.
        let rest = tonic::service::Routes::new(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        Ok(Self { api: Arc::new(api), rest })
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
        let uri = request.uri().clone();
        let named = uri.path().strip_prefix('/').and_then(|path| path.split_once('/'));
        let (service, method) = named.unwrap_or_default();
        let api = &*self.api;
        match service {
            Locks::NAME => by_method!(request, method, api.locks, api.bytes_max, [
                "Acquire" => acquire,
                "Extend" => extend,
                "Release" => release,
                "GetLock" => get_lock,
                "ListLocks" => list_locks,
                "ForceRelease" => force_release,
                "CheckToken" => check_token,
            ]),
            Queues::NAME => by_method!(request, method, api.queues, api.bytes_max, [
                "Put" => put,
                "Reserve" => reserve,
                "Extend" => extend,
                "Ack" => ack,
                "Nack" => nack,
                "GetItem" => get_item,
                "GetQueue" => get_queue,
                "ListQueues" => list_queues,
                "ConfigureQueue" => configure_queue,
                "ListDead" => list_dead,
                "Redrive" => redrive,
                "Purge" => purge,
                "DeleteQueue" => delete_queue,
            ]),
            Keys::NAME => by_method!(request, method, api.keys, api.bytes_max, [
                "Get" => get,
                "Set" => set,
                "Delete" => delete,
                "Increment" => increment,
                "Touch" => touch,
                "BatchGet" => batch_get,
                "BatchSet" => batch_set,
                "ListKeys" => list_keys,
            ]),
            Cluster::NAME => by_method!(request, method, api.cluster, api.bytes_max, [
                "GetStatus" => get_status,
            ]),
            _ => self.rest.call(request).boxed(),
        }
    }
}
