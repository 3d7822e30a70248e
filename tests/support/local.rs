//! A daemon in the test's own process, on real Redis servers, as its rooms: without gRPC, so that a test sees leases as the
//! daemon does.

use std::sync::Arc;
use std::time::Duration;

use majorityd::config::{NodeAddress, Settings};
use majorityd::queue::Queues;
use majorityd::runtime::{Clock, Moment, system};
use majorityd::server::{Daemon, check};

use super::daemon::seen;
use super::redis_server::RedisServer;

/// A daemon with threads of its own. Dropping it stops it where it is, as SIGKILL does with a process.
pub struct LocalDaemon {
    caller: Caller,
    runtime: Option<tokio::runtime::Runtime>,
    daemon: Daemon,
}

/// Calls a daemon that may be gone.
#[derive(Clone)]
pub struct Caller {
    queues: Queues,
    handle: tokio::runtime::Handle,
    clock: Arc<dyn Clock>,
}

/// Settings for tests: as [`super::daemon::config`] has them.
pub fn settings(servers: &[RedisServer]) -> Settings {
    let mut settings = Settings::default();
    settings.cluster.name = "e2e".into();
    settings.cluster.bootstrap = true;
    let addresses = servers.iter().map(|server| NodeAddress::parse(&server.address()).expect("an address"));
    settings.nodes.addresses = addresses.collect();
    settings.nodes.connect_timeout = Duration::from_secs(1);
    settings.nodes.call_timeout = Duration::from_millis(500);
    settings.nodes.reconnect_delay_max = Duration::from_millis(300);
    settings.nodes.inspect_interval = Duration::from_millis(300);
    settings
}

impl LocalDaemon {
    /// Starts one with so many threads, and waits until all nodes count.
    pub async fn start(settings: &Settings, threads: usize) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(threads).enable_all().build().expect("threads can be started");
        let handle = runtime.handle().clone();
        let own = settings.clone();
        let started = handle.spawn(async move { Daemon::on_redis(&own, &system::runtime()) });
        let daemon = started.await.expect("a start does not panic").expect("a good number of servers");
        let clock = daemon.cluster.runtime.clock.clone();
        let caller = Caller { queues: daemon.queues.clone(), handle, clock };
        let local = Self { caller, runtime: Some(runtime), daemon };
        seen("all nodes to count", || async { (local.counting() == local.nodes()).then_some(()) }).await;
        local
    }

    /// With the settings for tests and one thread.
    pub async fn serving(servers: &[RedisServer]) -> Self {
        Self::start(&settings(servers), 1).await
    }

    /// For calls.
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    fn counting(&self) -> usize {
        self.daemon.observer.look().counting
    }

    fn nodes(&self) -> usize {
        self.daemon.cluster.size.nodes()
    }
}

impl Drop for LocalDaemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Caller {
    /// Now, by the daemons' clock.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Runs a call in the daemon; `None` if the daemon was gone, or is gone before it answers.
    pub async fn call<T, F>(&self, call: impl FnOnce(Queues) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.handle.spawn(call(self.queues.clone())).await.ok()
    }
}

/// Waits until the answers of every server count, by what each of them says itself.
pub async fn until_all_count(settings: &Settings) {
    seen("all nodes to count", || async {
        let nodes = check::check_nodes(settings).await;
        nodes.iter().all(|node| node.state.is_ok() && node.counts).then_some(())
    })
    .await;
}
