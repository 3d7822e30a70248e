//! `LockService`: each handler parses, calls [`Locks`], maps the error and answers.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{self, BoxFuture};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryFutureExt};
use tokio::sync::watch;
use tonic::{Extensions, Request, Response, Status};

use super::access;
use super::convert::{Limits, lock as convert};
use super::layers::CallTime;
use super::status::{self, Repeat};
use super::streams::{self, failed};
use crate::ids::Owner;
use crate::lock::{Acquisition, Locks};
use crate::proto::v1;
use crate::proto::v1::lock_service_server::LockService;
use crate::runtime::{Clock, Moment};

/// The service over the wire.
pub struct LockApi {
    /// Who does the work.
    pub locks: Arc<Locks>,
    /// What `remaining` is measured by.
    pub clock: Arc<dyn Clock>,
    /// What requests are held against.
    pub limits: Limits,
    /// For calls whose clients gave no deadline.
    pub deadline_default: Duration,
    /// True from the moment when the daemon starts to shut down; ends the streams that have no end of their own.
    pub stopping: watch::Receiver<bool>,
}

impl LockApi {
    /// When the call came and until when its client listens.
    fn time(&self, extensions: &Extensions) -> CallTime {
        streams::time_of(extensions, &*self.clock)
    }

    /// Until when a call is to be answered that asks to wait so long.
    fn deadline(&self, extensions: &Extensions, wait: Duration) -> Moment {
        self.time(extensions).deadline(self.deadline_default, wait)
    }

    /// A wait ends with the call.
    fn cut(&self, wait: Duration, deadline: Moment) -> Duration {
        wait.min(deadline.since(self.clock.now()))
    }

    fn start_acquire(
        &self,
        request: Request<v1::AcquireRequest>,
    ) -> Result<BoxFuture<'_, Result<Acquisition, Status>>, Status> {
        let caller = access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let named = caller.named(&message);
        let mut asked = convert::acquire(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let deadline = self.deadline(&extensions, asked.wait);
        asked.wait = self.cut(asked.wait, deadline);
        let repeat = repeat_of(asked.owner.as_ref());
        let acquired = self.locks.acquire(asked, deadline).map_err(move |e| failed(&e, repeat));
        Ok(caller.unless_revoked(named, acquired.boxed()))
    }
}

/// An owner makes the repeat of an acquire the same acquire.
fn repeat_of(owner: Option<&Owner>) -> Repeat {
    match owner {
        Some(_) => Repeat::Harmless,
        None => Repeat::Harmful,
    }
}

#[tonic::async_trait]
impl LockService for LockApi {
    // Not an `async fn`, which would keep the request for as long as it waits.
    fn acquire<'a, 'b>(
        &'a self,
        request: Request<v1::AcquireRequest>,
    ) -> BoxFuture<'b, Result<Response<v1::AcquireResponse>, Status>>
    where
        'a: 'b,
    {
        let acquired = match self.start_acquire(request) {
            Ok(acquired) => acquired,
            Err(refusal) => return future::ready(Err(refusal)).boxed(),
        };
        let answer = |acquisition| Response::new(convert::acquisition(&acquisition, self.clock.now()));
        acquired.map_ok(answer).boxed()
    }

    async fn extend(
        &self,
        request: Request<v1::ExtendRequest>,
    ) -> Result<Response<v1::ExtendResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let (name, lease_id, ttl) =
            convert::extend(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let extended = self.locks.extend(&name, lease_id, ttl, deadline).await;
        let lease = extended.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::ExtendResponse { lease: Some(convert::lease(&lease, self.clock.now())) }))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let (name, lease_id) =
            convert::release(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let released = self.locks.release(&name, lease_id, deadline).await;
        let released = released.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::ReleaseResponse { released }))
    }

    type HoldStream = BoxStream<'static, Result<v1::HoldResponse, Status>>;

    async fn hold(&self, request: Request<v1::HoldRequest>) -> Result<Response<Self::HoldStream>, Status> {
        let caller = access::permit(&request)?;
        let (_, extensions, message) = request.into_parts();
        let named = message.clone();
        let mut asked = convert::hold(message, &self.limits).map_err(|e| status::invalid(&e))?;
        let time = self.time(&extensions);
        let deadline = time.deadline_of_start(self.deadline_default, asked.acquire.wait);
        asked.acquire.wait = self.cut(asked.acquire.wait, deadline);
        let repeat = repeat_of(asked.acquire.owner.as_ref());
        let clock = self.clock.clone();
        let events = self.locks.hold(asked, deadline).map(move |event| match event {
            Ok(event) => Ok(convert::hold_event(&event, clock.now())),
            Err(error) => Err(failed(&error, repeat)),
        });
        let events = caller.until_revoked(named, events);
        Ok(Response::new(streams::until_deadline(&self.clock, events, time)))
    }

    async fn get_lock(
        &self,
        request: Request<v1::GetLockRequest>,
    ) -> Result<Response<v1::GetLockResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let name = convert::name(&request.get_ref().name, &self.limits).map_err(|e| status::invalid(&e))?;
        let view = self.locks.get(&name, deadline).await.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::GetLockResponse { lock: Some(convert::lock_view(&view)) }))
    }

    async fn list_locks(
        &self,
        request: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let asked = convert::list(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let page = self.locks.list(&asked.prefix, asked.page_size, &asked.after, deadline).await;
        let page = page.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(convert::lock_page(&page)))
    }

    type WatchLockStream = BoxStream<'static, Result<v1::WatchLockResponse, Status>>;

    async fn watch_lock(
        &self,
        request: Request<v1::WatchLockRequest>,
    ) -> Result<Response<Self::WatchLockStream>, Status> {
        let caller = access::permit(&request)?;
        let time = self.time(request.extensions());
        let name = convert::name(&request.get_ref().name, &self.limits).map_err(|e| status::invalid(&e))?;
        let events = self.locks.watch(name).map(|event| match event {
            Ok(event) => Ok(convert::watch_event(&event)),
            Err(error) => Err(failed(&error, Repeat::Harmless)),
        });
        let events = streams::until_stopped(events, self.stopping.clone());
        let events = caller.until_revoked(request.into_inner(), events);
        Ok(Response::new(streams::until_deadline(&self.clock, events, time)))
    }

    async fn force_release(
        &self,
        request: Request<v1::ForceReleaseRequest>,
    ) -> Result<Response<v1::ForceReleaseResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let message = request.get_ref();
        let (name, token) = convert::name_and_token(&message.name, message.fencing_token, &self.limits)
            .map_err(|e| status::invalid(&e))?;
        let released = self.locks.force_release(&name, token, deadline).await;
        released.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(v1::ForceReleaseResponse {}))
    }

    async fn check_token(
        &self,
        request: Request<v1::CheckTokenRequest>,
    ) -> Result<Response<v1::CheckTokenResponse>, Status> {
        access::permit(&request)?;
        let deadline = self.deadline(request.extensions(), Duration::ZERO);
        let message = request.get_ref();
        let (name, token) = convert::name_and_token(&message.name, message.fencing_token, &self.limits)
            .map_err(|e| status::invalid(&e))?;
        let check = self.locks.check_token(&name, token, deadline).await;
        let check = check.map_err(|e| failed(&e, Repeat::Harmless))?;
        Ok(Response::new(convert::token_check(&check)))
    }
}
