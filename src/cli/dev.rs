//! `majorityd dev`: a daemon with nodes in its own process, for trying things out.

use std::net::SocketAddr;

use clap::Args;

use super::serve::{EXIT_CODES, serve};
use super::{ConfigFlags, EXIT_CONFIG, print_problems};
use crate::config::Settings;
use crate::config::validate::NodesFrom;
use crate::server::NodesKind;

/// The command line of `majorityd dev`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct Dev {
    /// How many nodes: 1, 3, 5 or 7
    #[arg(long, default_value_t = 3, value_parser = parse_nodes)]
    pub nodes: usize,

    /// Where settings come from.
    #[command(flatten)]
    pub config: ConfigFlags,
}

fn parse_nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(nodes @ (1 | 3 | 5 | 7)) => Ok(nodes),
        _ => Err("1, 3, 5 or 7 are allowed".to_owned()),
    }
}

impl Dev {
    /// Serves until a signal.
    pub async fn run(self) -> u8 {
        let mut settings = match self.config.load(NodesFrom::Embedded) {
            Ok(settings) => settings,
            Err(problems) => {
                print_problems(&problems);
                return EXIT_CONFIG;
            }
        };
        // Nodes that were made a moment ago have forgotten nothing.
        settings.cluster.bootstrap = true;
        eprintln!("{}", greeting(self.nodes, &settings));
        serve(settings, NodesKind::Embedded(self.nodes)).await
    }
}

fn greeting(nodes: usize, settings: &Settings) -> String {
    let (listen, http) = (settings.grpc.listen, settings.http.listen);
    let (encryption, plaintext, scheme) = match settings.grpc.tls.cert_file {
        Some(_) => ("with TLS", "", "https"),
        None => ("without encryption", "-plaintext ", "http"),
    };
    let plural = if nodes == 1 { "" } else { "s" };
    let reachable = reachable(listen);
    let page = http.map(|http| {
        format!("\n  Status page on http://{}/, metrics on /metrics there.\n", self::reachable(http))
    });
    let page = page.unwrap_or_default();
    format!(
        "\
majorityd dev: {nodes} node{plural} in this process. NOTHING IS KEPT: every lock is gone when it ends.

  gRPC on {listen}, {encryption}. Hold a lock until Ctrl-C:

    grpcurl {plaintext}-d '{{\"name\": \"demo\"}}' {reachable} majority.v1.LockService/Hold

  or while a command runs:

    majorityd lock --endpoint {scheme}://{reachable} demo -- sleep 60
{page}"
    )
}

/// What to type on this machine for an address that is listened on.
fn reachable(listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() { format!("127.0.0.1:{}", listen.port()) } else { listen.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_says_what_to_paste() {
        let mut settings = Settings::default();
        settings.grpc.listen = "0.0.0.0:7480".parse().expect("good");
        settings.http.listen = "[::]:7481".parse().ok();
        let text = greeting(3, &settings);
        assert!(text.contains("NOTHING IS KEPT"), "{text}");
        assert!(text.contains("http://127.0.0.1:7481/,"), "{text}");
        settings.http.listen = None;
        settings.grpc.tls.cert_file = Some("x".into());
        let encrypted = greeting(1, &settings);
        assert!(!encrypted.contains("Status page") && !encrypted.contains("-plaintext"), "{encrypted}");
        assert!(encrypted.contains("--endpoint https://"), "{encrypted}");
        assert!(
            text.contains(r#"-d '{"name": "demo"}' 127.0.0.1:7480 majority.v1.LockService/Hold"#),
            "{text}"
        );
    }
}
