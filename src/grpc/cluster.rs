//! `ClusterService`: what [`Observer`] sees, over the wire. Works without a quorum, and on a daemon that is full.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::access;
use super::convert::{Limits, cluster as convert};
use super::status;
use super::streams;
use crate::cluster::Observer;
use crate::proto::v1;
use crate::proto::v1::cluster_service_server::ClusterService;
use crate::runtime::Clock;

/// The service over the wire.
pub struct ClusterApi {
    /// Who looks.
    pub observer: Arc<Observer>,
    /// What deadlines are measured by.
    pub clock: Arc<dyn Clock>,
    /// What requests are held against.
    pub limits: Limits,
    /// True from the moment when the daemon starts to shut down.
    pub stopping: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl ClusterService for ClusterApi {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        access::permit(&request)?;
        let events_max = convert::events_max(request.get_ref().events_max);
        let status = convert::cluster_status(&self.observer.look(), events_max);
        Ok(Response::new(v1::GetStatusResponse { status: Some(status) }))
    }

    type WatchStatusStream = BoxStream<'static, Result<v1::WatchStatusResponse, Status>>;

    async fn watch_status(
        &self,
        request: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let caller = access::permit(&request)?;
        let time = streams::time_of(request.extensions(), &*self.clock);
        let (events_max, min_interval) =
            convert::watch_status(request.get_ref(), &self.limits).map_err(|e| status::invalid(&e))?;
        let events = self.observer.clone().watch(min_interval).map(move |status| {
            let status = convert::cluster_status(&status, events_max);
            Ok(v1::WatchStatusResponse { status: Some(status) })
        });
        let events = streams::until_stopped(events, self.stopping.clone());
        let events = caller.until_revoked(request.into_inner(), events);
        Ok(Response::new(streams::until_deadline(&self.clock, events, time)))
    }
}
