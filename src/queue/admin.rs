//! What operators do with a queue as a whole: count, list, redrive, purge, delete.
//!
//! Which items there are is asked of the nodes' indexes, which are hints; what is done to each is agreed on.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::future;
use futures::{StreamExt, stream};

use super::change::{ItemAnswer, ItemChange, States};
use super::queues::{Inner, Queues};
use super::value::{name_of, parse_member};
use super::{DeadPage, ItemState, ItemView, QueueCounts, QueueError, QueuePage, QueueView};
use crate::ids::{ItemId, QueueName};
use crate::node::keyspace::KIND_ITEM;
use crate::node::operation::{Answer, Census, Operation};
use crate::register::RegisterError;
use crate::runtime::Moment;
use crate::token::Token;

/// Items that are worked on at once.
const AT_ONCE: usize = 64;
/// Items that are read at once: their payloads are in memory together.
const READ_AT_ONCE: usize = 16;
/// Members that are asked for at once.
const PAGE: usize = 512;

impl Queues {
    /// One queue.
    ///
    /// # Errors
    /// [`QueueError::NoSuchQueue`]; [`QueueError::Register`] without a quorum.
    pub async fn get(&self, queue: &QueueName, deadline: Moment) -> Result<QueueView, QueueError> {
        let view = self.inner.view_queue(queue, deadline).await?;
        view.ok_or_else(|| QueueError::NoSuchQueue { queue: queue.clone() })
    }

    /// Queues with a prefix, in byte order of their names, after `after`.
    ///
    /// # Errors
    /// [`QueueError::Register`] without a quorum.
    pub async fn list(
        &self,
        prefix: &str,
        page_size: usize,
        after: &str,
        deadline: Moment,
    ) -> Result<QueuePage, QueueError> {
        let names = self.inner.options.names(prefix, after, page_size, deadline).await?;
        let known: Vec<_> = names.names.iter().filter_map(|name| QueueName::parse(name).ok()).collect();
        // The index is a hint: what it names may have been deleted since.
        let mut views = Vec::with_capacity(known.len());
        for some in known.chunks(AT_ONCE) {
            let some = some.iter().map(|queue| self.inner.view_queue(queue, deadline));
            views.extend(future::try_join_all(some).await?);
        }
        let queues = views.into_iter().flatten().collect();
        let next = names.names.last().filter(|_| names.more).cloned();
        Ok(QueuePage { queues, next })
    }

    /// Dead items without their payloads, after `after` (a page's `next`).
    ///
    /// # Errors
    /// [`QueueError::NoSuchQueue`]; [`QueueError::Register`] without a quorum.
    pub async fn list_dead(
        &self,
        queue: &QueueName,
        page_size: usize,
        after: &str,
        deadline: Moment,
    ) -> Result<DeadPage, QueueError> {
        let inner = &self.inner;
        inner.check_exists(queue, deadline).await?;
        let index = format!("{KIND_ITEM}d:{queue}");
        let names = inner.items.list_index(index, "", after, page_size, deadline).await?;
        let ids: Vec<ItemId> =
            names.names.iter().filter_map(|member| parse_member(member)).map(|(_, id)| id).collect();
        let mut items = Vec::new();
        for some in ids.chunks(READ_AT_ONCE) {
            let views = some.iter().map(|id| inner.view(queue, id, deadline));
            let views: Vec<Option<ItemView>> = future::try_join_all(views).await?;
            // The index is a hint: what it names may have been redriven since.
            let dead = views.into_iter().flatten().filter(|view| view.state == ItemState::Dead);
            items.extend(dead.map(|view| ItemView { payload: Bytes::new(), ..view }));
        }
        let next = names.names.last().filter(|_| names.more).cloned();
        Ok(DeadPage { items, next })
    }

    /// Makes dead items ready again, their attempts counted from zero: these, or all if none are named. How many were.
    ///
    /// # Errors
    /// [`QueueError::NoSuchQueue`]; else some may have been redriven, and a repeat goes on.
    pub async fn redrive(
        &self,
        queue: &QueueName,
        ids: &[ItemId],
        deadline: Moment,
    ) -> Result<u64, QueueError> {
        let inner = &self.inner;
        inner.check_exists(queue, deadline).await?;
        let redriven = match ids.is_empty() {
            true => inner.change_all(queue, 'd', &ItemChange::Redrive, deadline).await,
            false => inner.change_each(queue, ids.to_vec(), &ItemChange::Redrive, deadline).await,
        };
        inner.desk.stir(queue);
        redriven
    }

    /// Removes the items in these states, as if they had been acked. How many.
    ///
    /// # Errors
    /// [`QueueError::NoSuchQueue`]; else some may have been removed, and a repeat goes on.
    pub async fn purge(
        &self,
        queue: &QueueName,
        states: &[ItemState],
        deadline: Moment,
    ) -> Result<u64, QueueError> {
        let inner = &self.inner;
        let Some(options) = inner.options.current(queue, deadline).await? else {
            return Err(QueueError::NoSuchQueue { queue: queue.clone() });
        };
        let retention = options.done_retention;
        inner.purge(queue, &ItemChange::Purge { states: States::of(states), retention }, deadline).await
    }

    /// Removes all items and the settings. How many items there were.
    ///
    /// # Errors
    /// [`QueueError::NoSuchQueue`]; else some may have been removed, and a repeat goes on.
    pub async fn delete(&self, queue: &QueueName, deadline: Moment) -> Result<u64, QueueError> {
        let inner = &self.inner;
        inner.check_exists(queue, deadline).await?;
        let all = States { ready: true, delayed: true, leased: true, dead: true };
        let purge = ItemChange::Purge { states: all, retention: std::time::Duration::ZERO };
        let removed = inner.purge(queue, &purge, deadline).await?;
        inner.options.remove(queue, deadline).await?;
        // What was put in between, by daemons that did not know yet.
        Ok(removed + inner.purge(queue, &purge, deadline).await?)
    }
}

impl Inner {
    async fn check_exists(&self, queue: &QueueName, deadline: Moment) -> Result<(), QueueError> {
        match self.options.current(queue, deadline).await? {
            Some(_) => Ok(()),
            None => Err(QueueError::NoSuchQueue { queue: queue.clone() }),
        }
    }

    async fn view_queue(&self, queue: &QueueName, deadline: Moment) -> Result<Option<QueueView>, QueueError> {
        let Some(options) = self.options.current(queue, deadline).await? else { return Ok(None) };
        let counted = self.census(queue, deadline).await?;
        let first = counted.first.and_then(|member| parse_member(&member));
        let now = Token::at_unix_ms(self.runtime().clock.wall_unix_ms());
        Ok(Some(QueueView {
            queue: queue.clone(),
            options,
            counts: counted.counts,
            oldest_ready_age: first.map(|(put, _)| now.since(put)),
        }))
    }

    /// How many items a queue has: of each count the middle one of those that a quorum gives.
    pub async fn census(&self, queue: &QueueName, deadline: Moment) -> Result<Counted, RegisterError> {
        let censuses = self.ask_census(queue, 'r', 0, deadline).await?;
        let middle = |pick: fn(&Census) -> u64| {
            let mut counts: Vec<u64> = censuses.iter().map(pick).collect();
            counts.sort_unstable();
            counts[(counts.len() - 1) / 2]
        };
        let counts = QueueCounts {
            ready: middle(|census| census.ready),
            delayed: middle(|census| census.delayed),
            leased: middle(|census| census.leased),
            dead: middle(|census| census.dead),
            done: middle(|census| census.done),
        };
        let mut firsts: Vec<_> = censuses.into_iter().filter_map(|census| census.first).collect();
        firsts.sort_unstable();
        Ok(Counted { counts, first: firsts.into_iter().next() })
    }

    async fn ask_census(
        &self,
        queue: &QueueName,
        set: char,
        limit: usize,
        deadline: Moment,
    ) -> Result<Vec<Census>, RegisterError> {
        let question = Operation::Census { queue: queue.as_str().to_owned(), set, limit };
        let census = |answer| match answer {
            Answer::Census(census) => Some(census),
            _ => None,
        };
        self.items.ask_quorum(&question, census, deadline).await
    }

    async fn purge(
        &self,
        queue: &QueueName,
        purge: &ItemChange,
        deadline: Moment,
    ) -> Result<u64, QueueError> {
        let mut removed = 0;
        let ItemChange::Purge { states, .. } = purge else { unreachable!("called to purge") };
        // What is due stands among the ready, and what was claimed a moment ago among the marked.
        let open = states.ready || states.delayed || states.leased;
        let sets =
            [('r', open), ('m', open), ('w', states.delayed), ('l', states.leased), ('d', states.dead)];
        for (set, _) in sets.into_iter().filter(|(_, wanted)| *wanted) {
            removed += self.change_all(queue, set, purge, deadline).await?;
        }
        Ok(removed)
    }

    /// Changes all items of a set that leave it by that. How many were changed.
    async fn change_all(
        &self,
        queue: &QueueName,
        set: char,
        change: &ItemChange,
        deadline: Moment,
    ) -> Result<u64, QueueError> {
        let mut changed = 0;
        loop {
            let censuses = self.ask_census(queue, set, PAGE, deadline).await?;
            let members: BTreeSet<String> = censuses.into_iter().flat_map(|census| census.members).collect();
            let ids = members.iter().filter_map(|member| parse_member(member)).map(|(_, id)| id).collect();
            match self.change_each(queue, ids, change, deadline).await? {
                // The rest is there by hearsay, or in another state.
                0 => return Ok(changed),
                some => changed += some,
            }
        }
    }

    /// Changes items. How many were changed.
    async fn change_each(
        &self,
        queue: &QueueName,
        ids: Vec<ItemId>,
        change: &ItemChange,
        deadline: Moment,
    ) -> Result<u64, QueueError> {
        let changes = ids.into_iter().map(|id| async move {
            let committed = self.items.change(&name_of(queue, &id), change.clone(), deadline).await?;
            Ok::<_, QueueError>(committed.answer == ItemAnswer::Changed(true))
        });
        let mut results = stream::iter(changes).buffer_unordered(AT_ONCE);
        let mut changed = 0;
        while let Some(result) = results.next().await {
            changed += u64::from(result?);
        }
        Ok(changed)
    }
}

/// What the indexes of a quorum say of a queue.
pub(super) struct Counted {
    counts: QueueCounts,
    /// The member that comes next.
    first: Option<String>,
}

impl Counted {
    /// Items that are not done.
    pub fn alive(&self) -> u64 {
        let QueueCounts { ready, delayed, leased, dead, done: _ } = self.counts;
        ready + delayed + leased + dead
    }
}

impl States {
    fn of(states: &[ItemState]) -> Self {
        let has = |state| states.contains(&state);
        Self {
            ready: has(ItemState::Ready),
            delayed: has(ItemState::Delayed),
            leased: has(ItemState::Leased),
            dead: has(ItemState::Dead),
        }
    }
}
