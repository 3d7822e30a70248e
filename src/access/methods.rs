//! Which service and right each method of the API needs. A method that has no line here is open to nobody; a test holds the
//! table against the descriptors of all that is served.

use super::{Need, Right, Service};

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Everybody: probes have no credentials.
    Open,
    /// Whoever is known, or everybody where the rules say so.
    Reflection,
    /// Whoever was granted this on what the request names.
    Needs(Need),
}

const fn needs(service: Service, right: Right) -> Entrance {
    Entrance::Needs(Need { service, right })
}

const LOCKS_READ: Entrance = needs(Service::Locks, Right::Read);
const LOCKS_USE: Entrance = needs(Service::Locks, Right::Use);
const LOCKS_FORCE: Entrance = needs(Service::Locks, Right::Force);
const QUEUES_READ: Entrance = needs(Service::Queues, Right::Read);
const QUEUES_USE: Entrance = needs(Service::Queues, Right::Use);
const QUEUES_FORCE: Entrance = needs(Service::Queues, Right::Force);
const QUEUES_ADMIN: Entrance = needs(Service::Queues, Right::Admin);
const KEYS_READ: Entrance = needs(Service::Keys, Right::Read);
const KEYS_USE: Entrance = needs(Service::Keys, Right::Use);
const CLUSTER_READ: Entrance = needs(Service::Cluster, Right::Read);

/// By path. What a request needs besides, on what else it names, is said where its names are taken from it.
pub const METHODS: &[(&str, Entrance)] = &[
    ("/majority.v1.LockService/Acquire", LOCKS_USE),
    ("/majority.v1.LockService/Extend", LOCKS_USE),
    ("/majority.v1.LockService/Release", LOCKS_USE),
    ("/majority.v1.LockService/Hold", LOCKS_USE),
    ("/majority.v1.LockService/GetLock", LOCKS_READ),
    ("/majority.v1.LockService/ListLocks", LOCKS_READ),
    ("/majority.v1.LockService/WatchLock", LOCKS_READ),
    ("/majority.v1.LockService/CheckToken", LOCKS_READ),
    ("/majority.v1.LockService/ForceRelease", LOCKS_FORCE),
    ("/majority.v1.QueueService/Put", QUEUES_USE),
    ("/majority.v1.QueueService/Reserve", QUEUES_USE),
    ("/majority.v1.QueueService/Consume", QUEUES_USE),
    ("/majority.v1.QueueService/Extend", QUEUES_USE),
    ("/majority.v1.QueueService/Ack", QUEUES_USE),
    ("/majority.v1.QueueService/Nack", QUEUES_USE),
    ("/majority.v1.QueueService/GetItem", QUEUES_READ),
    ("/majority.v1.QueueService/GetQueue", QUEUES_READ),
    ("/majority.v1.QueueService/ListQueues", QUEUES_READ),
    ("/majority.v1.QueueService/ListDead", QUEUES_READ),
    ("/majority.v1.QueueService/Redrive", QUEUES_FORCE),
    ("/majority.v1.QueueService/Purge", QUEUES_FORCE),
    ("/majority.v1.QueueService/DeleteQueue", QUEUES_FORCE),
    ("/majority.v1.QueueService/ConfigureQueue", QUEUES_ADMIN),
    ("/majority.v1.KvService/Get", KEYS_READ),
    ("/majority.v1.KvService/BatchGet", KEYS_READ),
    ("/majority.v1.KvService/ListKeys", KEYS_READ),
    ("/majority.v1.KvService/Watch", KEYS_READ),
    ("/majority.v1.KvService/Set", KEYS_USE),
    ("/majority.v1.KvService/Delete", KEYS_USE),
    ("/majority.v1.KvService/Increment", KEYS_USE),
    ("/majority.v1.KvService/Touch", KEYS_USE),
    ("/majority.v1.KvService/BatchSet", KEYS_USE),
    ("/majority.v1.ClusterService/GetStatus", CLUSTER_READ),
    ("/majority.v1.ClusterService/WatchStatus", CLUSTER_READ),
    ("/grpc.health.v1.Health/Check", Entrance::Open),
    ("/grpc.health.v1.Health/Watch", Entrance::Open),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Entrance::Reflection),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Entrance::Reflection),
];

/// Who may call the method at a path; `None` for one that is not in the table.
pub fn entrance(path: &str) -> Option<Entrance> {
    METHODS.iter().find(|(known, _)| *known == path).map(|(_, entrance)| *entrance)
}
