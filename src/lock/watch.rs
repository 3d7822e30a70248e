//! `WatchLock`: the holder now, then every change of holder.
//!
//! Announcements say when to look; a slow, jittered look is the fallback. What is told was always read by quorum.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use event_listener::Event;
use futures::StreamExt;
use futures::future;
use futures::stream::{self, BoxStream};

use super::locks::Inner;
use super::{LockError, WatchEvent};
use crate::ids::LockName;
use crate::register::RegisterError;
use crate::token::Token;

/// About how often a watched lock is looked at although nothing was announced.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Who watches what at this daemon.
#[derive(Default)]
pub(super) struct Watching {
    /// Never iterated over, so its order does not matter. With the number of watchers.
    names: Mutex<HashMap<String, (Arc<Event>, usize)>>,
}

impl Watching {
    fn names(&self) -> MutexGuard<'_, HashMap<String, (Arc<Event>, usize)>> {
        self.names.lock().expect("no holder of this lock panics")
    }

    /// The holder of a lock changed.
    pub fn changed(&self, name: &str) {
        if let Some((event, _)) = self.names().get(name) {
            event.notify(usize::MAX);
        }
    }
}

/// One watcher; dropping it ends the watch.
struct Watcher {
    inner: Arc<Inner>,
    name: LockName,
    event: Arc<Event>,
    /// The token told last; `None` before the first event, zero for nobody.
    told: Option<Token>,
    failed: bool,
}

impl Watcher {
    fn new(inner: Arc<Inner>, name: LockName) -> Self {
        let event = {
            let mut names = inner.watching.names();
            let (event, count) = names.entry(name.as_str().to_owned()).or_default();
            *count += 1;
            event.clone()
        };
        inner.registers.cluster().watch();
        Self { inner, name, event, told: None, failed: false }
    }

    /// The next change. Without a quorum it waits for one: the watcher has been told nothing wrong meanwhile.
    async fn next(&mut self) -> Option<Result<WatchEvent, LockError>> {
        if self.failed {
            return None;
        }
        loop {
            let runtime = self.inner.runtime().clone();
            // Listen before looking, so that a change in between is not missed.
            let announced = self.event.listen();
            let closed = self.inner.closed.listen();
            if self.inner.is_closing() {
                self.failed = true;
                return Some(Err(LockError::ShuttingDown));
            }
            let deadline = runtime.clock.now() + self.inner.settings.patience;
            match self.inner.registers.read(self.name.as_str(), deadline).await {
                Ok(observed) => {
                    let holder = observed.value.holder.as_ref().map(|holder| holder.view(&observed.ages));
                    let token = holder.as_ref().map_or(Token::ZERO, |holder| holder.token);
                    if self.told.replace(token) != Some(token) {
                        return Some(Ok(WatchEvent { holder }));
                    }
                }
                Err(error @ RegisterError::Unreadable { .. }) => {
                    self.failed = true;
                    return Some(Err(error.into()));
                }
                Err(error) if self.told.is_none() => {
                    self.failed = true;
                    return Some(Err(error.into()));
                }
                Err(error) => tracing::debug!(lock = %self.name, %error, "a watched lock can't be read"),
            }
            let pause = LOOK_INTERVAL / 2 + runtime.entropy.jitter(LOOK_INTERVAL);
            let timer = runtime.clock.sleep_until(runtime.clock.now() + pause);
            future::select(timer, future::select(announced, closed)).await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut names = self.inner.watching.names();
        if let Some((_, count)) = names.get_mut(self.name.as_str()) {
            *count -= 1;
            if *count == 0 {
                names.remove(self.name.as_str());
            }
        }
        drop(names);
        self.inner.registers.cluster().unwatch();
    }
}

/// Starts a watch.
pub(super) fn watch(inner: Arc<Inner>, name: LockName) -> BoxStream<'static, Result<WatchEvent, LockError>> {
    let watcher = Watcher::new(inner, name);
    stream::unfold(watcher, |mut watcher| async move { watcher.next().await.map(|event| (event, watcher)) })
        .boxed()
}
