//! `majorityd serve`: the daemon.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigFlags, EXIT_CONFIG, EXIT_FAILURE, EXIT_OK, chain, print_problems};
use crate::config::Settings;
use crate::config::validate::NodesFrom;
use crate::server::{self, NodesKind};
use crate::telemetry;

/// What `--help` says, for `dev` too.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   stopped by SIGTERM or SIGINT
  1   can't serve
  2   the configuration is wrong; all that is wrong is printed
  64  wrong command line";

/// The command line of `majorityd serve`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct Serve {
    /// Where settings come from.
    #[command(flatten)]
    pub config: ConfigFlags,
}

impl Serve {
    /// Serves until a signal.
    pub async fn run(self) -> u8 {
        match self.config.load(NodesFrom::Addresses) {
            Ok(settings) => serve(settings, NodesKind::Redis).await,
            Err(problems) => {
                print_problems(&problems);
                EXIT_CONFIG
            }
        }
    }
}

/// Sets up the log and serves until SIGTERM or SIGINT.
pub(super) async fn serve(settings: Settings, nodes: NodesKind) -> u8 {
    let telemetry = match telemetry::init(&settings.log, &settings.tracing) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("majorityd: {}", chain(&error));
            return EXIT_FAILURE;
        }
    };
    let code = serve_logged(settings, nodes).await;
    // Nothing of a thread's end matters any more but that it has come.
    let _ = tokio::task::spawn_blocking(|| telemetry.end()).await;
    code
}

async fn serve_logged(settings: Settings, nodes: NodesKind) -> u8 {
    let shutdown = match shutdown_signal() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            tracing::error!(error = chain(&error), "can't listen for signals");
            return EXIT_FAILURE;
        }
    };
    match server::run(settings, nodes, shutdown).await {
        Ok(()) => EXIT_OK,
        Err(error) => {
            tracing::error!(error = chain(&error), "can't serve");
            EXIT_FAILURE
        }
    }
}

/// Completes at the first SIGTERM or SIGINT. Both are listened for as soon as this returns.
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
    })
}
