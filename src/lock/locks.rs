//! [`Locks`]: the asynchronous facade over the registers of locks.

use std::time::Duration;

use futures::stream::BoxStream;

use super::{
    AcquireRequest, Acquisition, HoldEvent, HoldRequest, Lease, LockError, LockPage, LockView, TokenCheck,
    WatchEvent,
};
use crate::ids::{LeaseId, LockName};
use crate::runtime::Moment;
use crate::token::Token;

/// Locks by majority. Cheap to share behind an `Arc`. Every `deadline` is a moment of the daemon's clock after which
/// the caller no longer listens; the answer comes before it.
pub struct Locks {}

impl Locks {
    /// Tries once, or waits in line for up to `request.wait`, never past `deadline`.
    pub async fn acquire(&self, request: AcquireRequest, deadline: Moment) -> Result<Acquisition, LockError> {
        unimplemented!("{request:?} {deadline:?}")
    }
    /// Starts the lease's time again, with another length if `ttl` is given.
    pub async fn extend(&self, name: &LockName, lease_id: LeaseId, ttl: Option<Duration>, deadline: Moment) -> Result<Lease, LockError> {
        unimplemented!("{name} {lease_id:?} {ttl:?} {deadline:?}")
    }
    /// Ends the lease. `false` when it was no longer held. Repeatable.
    pub async fn release(&self, name: &LockName, lease_id: LeaseId, deadline: Moment) -> Result<bool, LockError> {
        unimplemented!("{name} {lease_id:?} {deadline:?}")
    }
    /// Acquires and keeps extending until the stream is dropped. The deadline is for the acquiring.
    pub fn hold(&self, request: HoldRequest, deadline: Moment) -> BoxStream<'static, Result<HoldEvent, LockError>> {
        unimplemented!("{request:?} {deadline:?}")
    }
    /// Who holds the lock.
    pub async fn get(&self, name: &LockName, deadline: Moment) -> Result<LockView, LockError> {
        unimplemented!("{name} {deadline:?}")
    }
    /// The locks that are held or waited for, in byte order of their names, after `after`.
    pub async fn list(&self, prefix: &str, page_size: usize, after: &str, deadline: Moment) -> Result<LockPage, LockError> {
        unimplemented!("{prefix} {page_size} {after} {deadline:?}")
    }
    /// The holder now, then every change of holder. A holder that comes and goes between two looks may be left out.
    pub fn watch(&self, name: LockName) -> BoxStream<'static, Result<WatchEvent, LockError>> {
        unimplemented!("{name}")
    }
    /// Ends the lease that has this token, for operators.
    pub async fn force_release(&self, name: &LockName, token: Token, deadline: Moment) -> Result<(), LockError> {
        unimplemented!("{name} {token} {deadline:?}")
    }
    /// Whether a token is still the highest.
    pub async fn check_token(&self, name: &LockName, token: Token, deadline: Moment) -> Result<TokenCheck, LockError> {
        unimplemented!("{name} {token} {deadline:?}")
    }
    /// Stops taking calls: waiters end with [`LockError::ShuttingDown`], held streams with [`HoldEvent::Ended`].
    pub fn shut_down(&self) {}
}
