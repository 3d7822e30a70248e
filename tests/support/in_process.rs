//! A daemon in the test's own process, and the built binary as its client.
#![allow(dead_code, reason = "every test crate uses another part of it")]

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use majorityd::config::Settings;
use majorityd::grpc::{self, Services};
use majorityd::node::embedded::EmbeddedServer;
use majorityd::runtime::system;
use majorityd::server::{Daemon, embedded_servers, reload};

/// A daemon on a port of its own.
pub struct InProcess {
    /// Where it serves gRPC.
    pub address: SocketAddr,
    /// Its nodes, unless they are Redis servers.
    pub servers: Vec<Arc<EmbeddedServer>>,
    _runtime: tokio::runtime::Runtime,
}

impl InProcess {
    /// With three embedded nodes that all count.
    pub fn embedded(settings: &Settings) -> Self {
        let mut settings = settings.clone();
        settings.cluster.bootstrap = true;
        Self::start(&settings, true)
    }

    /// On the servers that the settings list, whether they are there or not.
    pub fn on_redis(settings: &Settings) -> Self {
        Self::start(settings, false)
    }

    fn start(settings: &Settings, embedded: bool) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (address, servers) = runtime.block_on(async {
            let system = system::runtime();
            let servers = embedded_servers(3, &system);
            let daemon = match embedded {
                true => Daemon::on_embedded(settings, &system, &servers).unwrap(),
                false => Daemon::on_redis(settings, &system).unwrap(),
            };
            while embedded && daemon.observer.look().counting < 3 {
                system.clock.sleep_until(system.clock.now() + Duration::from_millis(5)).await;
            }
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let calls = Arc::new(grpc::calls());
            let door = reload::start(settings, &system, &calls).await.unwrap();
            let services = Services {
                locks: daemon.locks.clone(),
                queues: daemon.queues.clone(),
                keys: daemon.keys.clone(),
                observer: daemon.observer.clone(),
                runtime: system.clone(),
                can_serve: daemon.can_serve.clone(),
                calls,
                tls: door.tls,
                access: door.access,
                settings: grpc::Settings::default(),
            };
            system.spawner.spawn(Box::pin(async move {
                let _daemon = daemon;
                grpc::serve(services, listener, None, std::future::pending()).await.unwrap();
            }));
            (address, servers)
        });
        Self { address, servers, _runtime: runtime }
    }

    /// A command line of the binary that asks this daemon, free of the settings of whoever runs the tests.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_majorityd"));
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MAJORITYD"))
        {
            command.env_remove(name);
        }
        command.args(arguments).env("MAJORITYD_ENDPOINT", format!("http://{}", self.address));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Exit code, and what went to stdout and to stderr.
pub fn told(output: Output) -> (i32, String, String) {
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code().unwrap(), out, err)
}
