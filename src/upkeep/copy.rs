//! Copies one node's records to others, page by page, at a set rate.

use std::time::Duration;

use bytes::Bytes;

use super::rounds;
use crate::driver::Cluster;
use crate::ids::{MemoryId, NodeIndex};
use crate::node::operation::{Answer, Operation, Page, PageRequest, RegisterKey};
use crate::runtime::Moment;
use crate::token::Ballot;

/// Keys that one page looks at: some milliseconds of a node's time.
const PAGE_COUNT: usize = 200;
/// And not more than what is copied in so many seconds, so that a slow copy is seen to move.
const PAGE_SECONDS: usize = 2;
/// Values of one page, in bytes, unless one alone is larger.
const PAGE_BYTES: usize = 512 * 1024;
/// A node that does not answer, or goes by another list for the moment, is asked again for so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// A node that is copied to, and the memory that it is for.
pub type Target = (NodeIndex, MemoryId);

/// Why a copy came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFailed {
    /// The source did not answer as a member, or not at all.
    Source,
    /// A target did not take what it was sent.
    Target,
}

/// One copy.
pub struct Copy<'a> {
    /// The nodes.
    pub cluster: &'a Cluster,
    /// Whether the copy still makes sense; asked before each page.
    pub goes_on: &'a (dyn Fn() -> bool + Sync),
    /// Records a second; zero for no limit.
    pub rate: usize,
    /// The recovery that it is part of.
    pub recovery: Option<Ballot>,
    /// Told how many records each page had.
    pub on_page: &'a (dyn Fn(usize) + Sync),
}

impl Copy<'_> {
    /// Everything that `source` holds, out of one memory of it.
    ///
    /// # Errors
    /// [`CopyFailed`]: some of it may have been copied.
    pub async fn all(
        &self,
        source: NodeIndex,
        memory: Option<MemoryId>,
        targets: &[Target],
    ) -> Result<(), CopyFailed> {
        let (mut cursor, began, mut copied) = (PageRequest::START, self.now(), 0);
        loop {
            let page = self.page(source, memory, cursor, Vec::new()).await.ok_or(CopyFailed::Source)?;
            let records = page.rows.len();
            cursor = page.cursor.clone();
            self.copy_page(source, memory, page, targets).await?;
            (self.on_page)(records);
            if cursor == PageRequest::START {
                return Ok(());
            }
            copied += records;
            self.keep_pace(began, copied).await;
        }
    }

    /// A page, and what did not fit in it.
    async fn copy_page(
        &self,
        source: NodeIndex,
        memory: Option<MemoryId>,
        mut page: Page,
        targets: &[Target],
    ) -> Result<(), CopyFailed> {
        loop {
            let (shown, left): (Vec<_>, Vec<_>) = page.rows.into_iter().partition(|(_, raw)| raw.is_some());
            let rows = shown.into_iter().filter_map(|(key, raw)| Some((key, raw?))).collect();
            self.merge(page.floor, rows, targets).await?;
            let left: Vec<RegisterKey> = left.into_iter().map(|(key, _)| key).collect();
            if left.is_empty() {
                return Ok(());
            }
            let more = self.page(source, memory, PageRequest::START, left).await;
            page = more.ok_or(CopyFailed::Source)?;
            // The first always comes with its value; without one it is gone, which a node that serves can't be asked to
            // explain, so the copy does not count.
            if page.rows.first().is_none_or(|(_, raw)| raw.is_none()) {
                return Err(CopyFailed::Source);
            }
        }
    }

    async fn page(
        &self,
        source: NodeIndex,
        memory: Option<MemoryId>,
        cursor: Bytes,
        keys: Vec<RegisterKey>,
    ) -> Option<Page> {
        let request = PageRequest {
            cursor,
            count: self.page_count(),
            bytes: PAGE_BYTES,
            recovery: self.recovery,
            with_values: true,
            keys,
        };
        let operation = Operation::Page(request);
        let give_up = self.now() + PATIENCE;
        while self.now() < give_up && (self.goes_on)() {
            match rounds::ask_one(self.cluster, source, &operation).await {
                Some((answered, Answer::Page(page))) if answered == memory => return Some(page),
                // Another memory: what came before was of one that is gone.
                Some((answered, _)) if answered != memory => return None,
                Some(_) | None => self.pause().await,
            }
        }
        None
    }

    fn page_count(&self) -> usize {
        if self.rate == 0 { PAGE_COUNT } else { PAGE_COUNT.min(PAGE_SECONDS * self.rate) }
    }

    async fn merge(
        &self,
        floor: Ballot,
        rows: Vec<(RegisterKey, Bytes)>,
        targets: &[Target],
    ) -> Result<(), CopyFailed> {
        for (node, memory) in targets {
            let operation = Operation::Merge { memory: *memory, floor, rows: rows.clone() };
            self.send(*node, &operation).await?;
        }
        Ok(())
    }

    /// Sends until it is accepted. A merge may be repeated: it is the same again.
    pub async fn send(&self, node: NodeIndex, operation: &Operation) -> Result<(), CopyFailed> {
        let mut give_up = self.now() + PATIENCE;
        while self.now() < give_up && (self.goes_on)() {
            match rounds::ask_one(self.cluster, node, operation).await {
                Some((_, Answer::Accepted)) => return Ok(()),
                Some((_, Answer::Wiping)) => {
                    give_up = self.now() + PATIENCE;
                    (self.on_page)(0);
                }
                Some((_, Answer::Conflict { .. })) => return Err(CopyFailed::Target),
                Some(_) | None => self.pause().await,
            }
        }
        Err(CopyFailed::Target)
    }

    /// Waits until so many records are due.
    async fn keep_pace(&self, began: Moment, copied: usize) {
        if self.rate > 0 {
            let due = Duration::from_secs(1).mul_f64(copied as f64 / self.rate as f64);
            self.cluster.runtime.clock.sleep_until(began + due).await;
        }
    }

    async fn pause(&self) {
        self.cluster.runtime.clock.sleep_until(self.now() + PAUSE).await;
    }

    fn now(&self) -> Moment {
        self.cluster.runtime.clock.now()
    }
}
