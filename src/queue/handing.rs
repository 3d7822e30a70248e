//! Handing: an item that somebody waits for is leased in the step that puts it, and so comes to its consumer in one round
//! instead of three.
//!
//! Only where nothing is ready that would come before it, as far as this daemon knows: a claim has found nothing, and nothing
//! has happened since ([`super::desk`]). An item that is put with a lease is as one that is put and leased right after; whether
//! it is leased is agreed on with it. A waiter that is to be handed an item is out of line meanwhile, and back as the first if
//! the item was known, or can't be put. If nobody can tell, it is back, too, and the lease is given back.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;

use super::change::ItemAnswer;
use super::desk::{Waiter, reserved};
use super::queues::Inner;
use super::value::Item;
use super::{NewItem, QueueOptions};
use crate::ids::{ItemId, LeaseId, QueueName};
use crate::register::registers::{ChangeResult, Ticket};
use crate::register::{Committed, Leases, RegisterError};
use crate::runtime::Moment;

/// A waiter that is to be handed an item which is put now.
pub(super) struct Handing {
    pub waiter: Waiter,
    lease_id: LeaseId,
    ttl: Duration,
}

/// Has the waiter back in line when it is dropped.
pub(super) struct Returning<'a> {
    inner: &'a Arc<Inner>,
    queue: &'a QueueName,
    handing: Option<Handing>,
}

impl<'a> Returning<'a> {
    /// Until [`Returning::keep`].
    pub fn new(inner: &'a Arc<Inner>, queue: &'a QueueName, handing: Option<Handing>) -> Self {
        Self { inner, queue, handing }
    }

    /// The lease under which the item is put.
    pub fn lease(&self) -> Option<(LeaseId, Duration)> {
        self.handing.as_ref().map(|handing| (handing.lease_id, handing.ttl))
    }

    /// The item is being put.
    pub fn keep(mut self) -> Option<Handing> {
        self.handing.take()
    }
}

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        if let Some(handing) = self.handing.take() {
            self.inner.put_back(self.queue, handing.waiter);
        }
    }
}

impl Inner {
    /// Who is to be handed which of these items: the first in the order of the queue go to those who came first. All others
    /// may be ready in a moment.
    pub(super) fn handings(
        &self,
        queue: &QueueName,
        items: &[NewItem],
        options: &QueueOptions,
    ) -> Vec<Option<Handing>> {
        let mut handings: Vec<Option<Handing>> = items.iter().map(|_| None).collect();
        let mut ready: Vec<usize> = (0..items.len()).filter(|at| items[*at].delay.is_zero()).collect();
        ready.sort_by_key(|at| items[*at].priority);
        let may_lease = self.leases.check_grants().is_ok();
        let most = if may_lease { ready.len() } else { 0 };
        let waiters = self.desk.take_waiters(queue, most, self.now());
        if waiters.len() < items.len() {
            self.desk.stir(queue);
        }
        for (at, waiter) in ready.into_iter().zip(waiters) {
            let lease_id = LeaseId::from_bytes(self.runtime().entropy.next_u128().to_be_bytes());
            let ttl = waiter.lease_ttl.unwrap_or(options.lease_ttl);
            handings[at] = Some(Handing { waiter, lease_id, ttl });
        }
        handings
    }

    /// Waits for the put and hands the item over, whether the call that puts it is still there or not. What the put comes to is
    /// told to that call.
    pub(super) fn hand_over(
        self: &Arc<Self>,
        queue: &QueueName,
        id: &ItemId,
        handing: Handing,
        ticket: Ticket<ItemAnswer>,
        deadline: Moment,
    ) -> oneshot::Receiver<ChangeResult<ItemAnswer>> {
        let (inner, queue, id) = (self.clone(), queue.clone(), id.clone());
        let (tell, told) = oneshot::channel();
        let task = async move {
            let result = inner.items.wait(ticket, deadline).await;
            inner.handed(&queue, id, handing, &result);
            // The call may be gone.
            let _ = tell.send(result);
        };
        self.runtime().spawner.spawn(task.boxed());
        told
    }

    fn handed(
        self: &Arc<Self>,
        queue: &QueueName,
        id: ItemId,
        handing: Handing,
        result: &ChangeResult<ItemAnswer>,
    ) {
        let Handing { waiter, lease_id, ttl } = handing;
        match result {
            Ok(Committed { answer: ItemAnswer::Leased(item), first_sent: Some(from), .. }) => {
                let item = reserved(id, Item::clone(item), lease_id, ttl, Leases::valid_until(*from, ttl));
                return self.hand_out(queue, waiter, vec![item]);
            }
            // It may be leased, or may be yet.
            Err(RegisterError::OutcomeUnknown) => self.give_back(queue, &id, lease_id),
            // It was known, or was not put.
            Ok(_) | Err(_) => {}
        }
        self.put_back(queue, waiter);
    }
}
