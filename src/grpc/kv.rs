//! `KvService`: each handler parses, calls [`Keys`], maps the error and answers.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tonic::{Extensions, Request, Response, Status};

use super::access;
use super::convert::{Limits, kv as convert};
use super::layers::CallTime;
use super::status::{self, Repeat};
use super::streams::{self, failed};
use crate::ids::Key;
use crate::kv::{Keys, Mutation, Precondition, Write, Written};
use crate::proto::v1;
use crate::proto::v1::kv_service_server::KvService;
use crate::runtime::{Clock, Moment};

/// Keys of one batch that are read or written at the same time, at most: half of what goes to a node in one call, so that
/// others get a place in it.
const AT_ONCE: usize = 64;
/// Values that are read ahead for one answer may have so many bytes together: some times what fits into it.
const READ_AHEAD_BYTES: usize = 16 << 20;

/// The service over the wire.
pub struct KvApi {
    /// Who does the work.
    pub keys: Keys,
    /// What `remaining` is measured by.
    pub clock: Arc<dyn Clock>,
    /// What requests are held against.
    pub limits: Limits,
    /// For calls whose clients gave no deadline.
    pub deadline_default: Duration,
    /// True from the moment when the daemon starts to shut down; ends the watches.
    pub stopping: watch::Receiver<bool>,
}

/// When a call came, and when it is to be answered at the latest.
#[derive(Clone, Copy)]
struct Times {
    arrived: Moment,
    deadline: Moment,
}

impl KvApi {
    fn time(&self, extensions: &Extensions) -> CallTime {
        streams::time_of(extensions, &*self.clock)
    }

    fn times(&self, extensions: &Extensions) -> Times {
        let time = self.time(extensions);
        Times { arrived: time.arrived, deadline: time.deadline(self.deadline_default, Duration::ZERO) }
    }

    /// Keys of one batch that are read at the same time. How large their values are is not known before.
    fn reads_at_once(&self) -> usize {
        (READ_AHEAD_BYTES / self.limits.value_bytes_max.max(1)).clamp(1, AT_ONCE)
    }

    async fn write(&self, key: &Key, mutation: Mutation, times: Times) -> Result<Written, Status> {
        let repeat = repeat_of(&mutation);
        self.keys.write(key, mutation, times.deadline).await.map_err(|e| failed(&e, repeat))
    }

    async fn set_one(&self, key: Key, mutation: Mutation, times: Times) -> Result<v1::SetResponse, Status> {
        let written = self.write(&key, mutation, times).await?;
        Ok(convert::was_set(&key, written, self.clock.now().since(times.arrived)))
    }
}

/// A request id makes the repeat of a write the same write, and a version lets it hit nothing else. Whether there is a
/// value says too little: others may have written and removed one in between.
fn repeat_of(mutation: &Mutation) -> Repeat {
    let names_version = match &mutation.write {
        Write::Set { precondition, .. } => matches!(precondition, Precondition::Version(_)),
        Write::Delete { version } => version.is_some(),
        Write::Increment { .. } | Write::Touch { .. } => false,
    };
    match names_version || mutation.request.is_some() {
        true => Repeat::Harmless,
        false => Repeat::Harmful,
    }
}

#[tonic::async_trait]
impl KvService for KvApi {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        access::permit(&request)?;
        let times = self.times(request.extensions());
        let key = convert::get(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let entry = self.keys.get(&key, times.deadline).await;
        let entry = entry.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(convert::got(&key, entry)))
    }

    async fn set(&self, request: Request<v1::SetRequest>) -> Result<Response<v1::SetResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let times = self.times(&extensions);
        let (key, mutation) = convert::set(message, &self.limits).map_err(|e| status::invalid(&e))?;
        self.set_one(key, mutation, times).await.map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        access::permit(&request)?;
        let times = self.times(request.extensions());
        let (key, mutation) =
            convert::delete(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let written = self.write(&key, mutation, times).await?;
        Ok(Response::new(convert::was_deleted(&key, written)))
    }

    async fn increment(
        &self,
        request: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementResponse>, Status> {
        access::permit(&request)?;
        let times = self.times(request.extensions());
        let (key, mutation) =
            convert::increment(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let written = self.write(&key, mutation, times).await?;
        Ok(Response::new(convert::was_counted(&written)))
    }

    async fn touch(&self, request: Request<v1::TouchRequest>) -> Result<Response<v1::TouchResponse>, Status> {
        access::permit(&request)?;
        let times = self.times(request.extensions());
        let (key, mutation) =
            convert::touch(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let written = self.write(&key, mutation, times).await?;
        Ok(Response::new(convert::was_touched(&written)))
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let times = self.times(&extensions);
        let keys = convert::batch_get(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let count = keys.len();
        let mut reads = stream::iter(keys)
            .map(|key| async move {
                let read = self.keys.get(&key, times.deadline).await;
                (key, read.map_err(|e| failed(&e, Repeat::Harmless)))
            })
            .buffered(self.reads_at_once());
        let mut entries = convert::BatchEntries::default();
        while let Some((key, read)) = reads.next().await {
            if !entries.add(&key, read) {
                break;
            }
        }
        Ok(Response::new(entries.finish(count)))
    }

    async fn batch_set(
        &self,
        request: Request<v1::BatchSetRequest>,
    ) -> Result<Response<v1::BatchSetResponse>, Status> {
        access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let times = self.times(&extensions);
        let items = convert::batch_set(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let results = stream::iter(items)
            .map(|(key, mutation)| self.set_one(key, mutation, times))
            .buffered(AT_ONCE)
            .map(convert::batch_result);
        Ok(Response::new(v1::BatchSetResponse { results: results.collect().await }))
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        access::permit(&request)?;
        let times = self.times(request.extensions());
        let (asked, with_values) =
            convert::list(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let page = self.keys.list(&asked.prefix, asked.page_size, &asked.after, times.deadline).await;
        let page = page.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(convert::key_page(page, with_values)))
    }

    type WatchStream = BoxStream<'static, Result<v1::WatchResponse, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = access::permit(&request)?;
        let time = self.time(request.extensions());
        let watched = convert::watch(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let events = self.keys.watch(watched).map(|event| match event {
            Ok(event) => Ok(convert::watch_event(event)),
            Err(error) => Err(failed(&error, Repeat::Harmless)),
        });
        let events = streams::until_stopped(events, self.stopping.clone());
        let events = caller.until_revoked(request.into_inner(), events);
        Ok(Response::new(streams::until_deadline(&self.clock, events, time)))
    }
}
