//! [`Named`]: what each request names. A request whose names are not all taken here would get past the rules, so every
//! request is in this file, and a test asks each method for what it may not have.

use crate::access::{Need, Right, Scope, Service};
use crate::proto::v1;

/// One thing that a request names.
pub struct Ask<'a> {
    /// What is needed for it, where that is another thing than for the method.
    pub need: Option<Need>,
    /// What it is.
    pub scope: Scope<'a>,
}

/// A request, as the rules see it.
pub trait Named {
    /// Everything that it names.
    fn asks(&self) -> Vec<Ask<'_>>;
}

const READ_LOCK: Need = Need { service: Service::Locks, right: Right::Read };
const READ_KEY: Need = Need { service: Service::Keys, right: Right::Read };

fn name(name: &str) -> Ask<'_> {
    Ask { need: None, scope: Scope::Name(name) }
}

fn prefix(prefix: &str) -> Ask<'_> {
    Ask { need: None, scope: Scope::Prefix(prefix) }
}

fn also(need: Need, name: &str) -> Ask<'_> {
    Ask { need: Some(need), scope: Scope::Name(name) }
}

/// Requests that name one thing, or all that starts in one way.
macro_rules! named {
    ($($kind:ident: $($request:ident),+ in $field:ident;)+) => {
        $($(
            impl Named for v1::$request {
                fn asks(&self) -> Vec<Ask<'_>> {
                    vec![$kind(&self.$field)]
                }
            }
        )+)+
    };
}

named! {
    name: AcquireRequest, ExtendRequest, ReleaseRequest, HoldRequest, GetLockRequest, WatchLockRequest,
        ForceReleaseRequest, CheckTokenRequest in name;
    name: PutRequest, ReserveRequest, QueueServiceExtendRequest, AckRequest, NackRequest, GetItemRequest,
        GetQueueRequest, ConfigureQueueRequest, ListDeadRequest, RedriveRequest, PurgeRequest,
        DeleteQueueRequest in queue;
    name: GetRequest in key;
    prefix: ListLocksRequest, ListQueuesRequest, ListKeysRequest in prefix;
}

/// A write names its key and the lock that fences it, whose highest token an error would tell. Who asks for the value before
/// reads the key.
fn written<'a>(key: &'a str, fence: Option<&'a v1::Fence>, previous: bool) -> Vec<Ask<'a>> {
    let fence = fence.map(|fence| also(READ_LOCK, &fence.lock));
    let previous = previous.then(|| also(READ_KEY, key));
    [Some(name(key)), fence, previous].into_iter().flatten().collect()
}

impl Named for v1::SetRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        written(&self.key, self.fence.as_ref(), self.return_previous)
    }
}

impl Named for v1::DeleteRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        written(&self.key, self.fence.as_ref(), self.return_previous)
    }
}

impl Named for v1::IncrementRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        written(&self.key, self.fence.as_ref(), false)
    }
}

impl Named for v1::TouchRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        written(&self.key, self.fence.as_ref(), false)
    }
}

impl Named for v1::BatchGetRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        self.keys.iter().map(|key| name(key)).collect()
    }
}

impl Named for v1::BatchSetRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        self.items.iter().flat_map(Named::asks).collect()
    }
}

impl Named for v1::WatchRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        use v1::watch_request::Target;
        match &self.target {
            Some(Target::Key(key)) => vec![name(key)],
            Some(Target::Prefix(text)) => vec![prefix(text)],
            // Refused as malformed later.
            None => vec![],
        }
    }
}

/// Later messages name items of the queue that the first one has opened; nothing is granted by item.
impl Named for v1::ConsumeRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        use v1::consume_request::Command;
        match &self.command {
            Some(Command::Open(open)) => vec![name(&open.queue)],
            Some(Command::Ack(_) | Command::Nack(_)) | None => vec![],
        }
    }
}

/// There is one cluster, and it has no names.
impl Named for v1::GetStatusRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        vec![]
    }
}

impl Named for v1::WatchStatusRequest {
    fn asks(&self) -> Vec<Ask<'_>> {
        vec![]
    }
}
