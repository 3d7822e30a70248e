//! `majorityd bench`: how fast daemons answer, from here, with so many callers.

mod work;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::client::{ClientFlags, Daemons, Failed};
use super::{EXIT_FAILURE, EXIT_OK, Output, print_json, print_line};
use crate::limits;
use crate::load::{self, Outcome, Plan, Progress};
use crate::runtime::system;
use work::{Caller, Place};

const CALLERS_MAX: i64 = 100_000;
const CONNECTIONS_MAX: i64 = 1_024;
/// The parts of the calls that are told about.
const PARTS: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// The command line of `majorityd bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Operations:
  locks      acquire and release; the callers wait for a name that somebody has. With --names 1 all want the same
  get        read a key
  set        write a key
  cas        read a key and write it if nobody has written since; who is too late tries again
  increment  add 1 to a number
  queue      put an item, reserve one, and ack it
  consume    put an item, and take one and ack it on a stream that each caller keeps open
  ping       ask whether the daemon serves, which takes gRPC and nothing else: what the others can't be faster than

Latencies of calls that failed are not in the figures. With --rate a call's latency counts from when it was due, so a
pause of the daemon is seen in full.

Exit codes:
  0   done
  1   every call failed
  64  wrong command line
  69  no daemon answers")]
pub struct Bench {
    /// What each caller does again and again
    #[arg(value_enum)]
    operation: Operation,

    /// How many callers there are
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=CALLERS_MAX))]
    callers: u32,

    /// Over how many connections they call; with several endpoints in turn to each of them
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    connections: u32,

    /// For how long it is counted
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = parse_duration)]
    duration: Duration,

    /// For how long callers are at work before that
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    warm_up: Duration,

    /// Calls that are due each second, of all callers together; default: as many as they can
    #[arg(long, value_name = "CALLS", value_parser = parse_rate)]
    rate: Option<f64>,

    /// How many locks, keys or queues there are, for all callers; default: one for each caller, and one queue
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    names: Option<u64>,

    /// Bytes of a value or a payload
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = parse_payload)]
    payload: usize,

    /// What all names begin with; default: something that nobody else uses
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// Which daemons.
    #[command(flatten)]
    client: ClientFlags,

    /// How to print
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Operation {
    Locks,
    Get,
    Set,
    Cas,
    Increment,
    Queue,
    Consume,
    Ping,
}

impl Operation {
    fn is_on_queues(self) -> bool {
        matches!(self, Self::Queue | Self::Consume)
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration < Duration::from_millis(1) { Err("at least 1ms".to_owned()) } else { Ok(duration) }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a number is needed".to_owned())?;
    if (0.001..=10_000_000.0).contains(&rate) { Ok(rate) } else { Err("from 0.001 to 10000000".to_owned()) }
}

fn parse_payload(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| "a number is needed".to_owned())?;
    let max = limits::VALUE_BYTES_CEILING;
    if bytes <= max { Ok(bytes) } else { Err(format!("at most {max}")) }
}

impl Bench {
    /// Measures and prints.
    pub async fn run(self) -> u8 {
        let daemons = match Daemons::new(&self.client) {
            Ok(daemons) => daemons,
            Err(code) => return code,
        };
        match self.measure(&daemons).await {
            Ok(outcome) => self.tell(&outcome),
            Err(failed) => failed.say(&daemons),
        }
    }

    async fn measure(&self, daemons: &Daemons) -> Result<Outcome, Failed> {
        let runtime = system::runtime();
        let place = Place {
            prefix: self
                .prefix
                .clone()
                .unwrap_or_else(|| format!("bench/{:016x}/", runtime.entropy.next_u64())),
            names: self.names(),
            callers: u64::from(self.callers),
            payload: vec![b'x'; self.payload].into(),
        };
        let channels = daemons.connect(self.connections).await?;
        work::prepare(self.operation, &place, &channels[0]).await?;
        let callers = (0..u64::from(self.callers))
            .map(|number| {
                let channel = channels[number as usize % channels.len()].clone();
                Caller::new(self.operation, number, &place, channel)
            })
            .collect();
        let plan = Plan { warm_up: self.warm_up, duration: self.duration, rate: self.rate };
        // Lines that are read by a program are not for people.
        let show = io::stderr().is_terminal() || self.output == Output::Text;
        let outcome = load::run(&runtime, &plan, callers, |progress| {
            if show {
                eprintln!("{}", progress_line(progress));
            }
        })
        .await;
        work::tidy_up(self.operation, &place, &channels[0]).await;
        Ok(outcome)
    }

    fn names(&self) -> u64 {
        self.names.unwrap_or(if self.operation.is_on_queues() { 1 } else { u64::from(self.callers) })
    }

    fn tell(&self, outcome: &Outcome) -> u8 {
        match self.output {
            Output::Text => print_line(&self.text(outcome)),
            Output::Json => print_json(&self.json(outcome)),
        }
        if outcome.done == 0 && outcome.failed_in_all() > 0 { EXIT_FAILURE } else { EXIT_OK }
    }

    fn operation_name(&self) -> String {
        let value = self.operation.to_possible_value().expect("no operation is hidden");
        value.get_name().to_owned()
    }

    fn text(&self, outcome: &Outcome) -> String {
        let Self { callers, connections, duration, .. } = self;
        let mut lines = vec![format!(
            "{}: {callers} callers on {connections} connections, {} names, {}",
            self.operation_name(),
            self.names(),
            humantime::format_duration(*duration)
        )];
        let rate = self.rate.map_or(String::new(), |rate| format!(" of {rate} due"));
        lines.push(format!(
            "  {:.0} a second{rate}: {} done, {} failed, {} missed",
            outcome.a_second(),
            outcome.done,
            outcome.failed_in_all(),
            outcome.missed
        ));
        let parts = PARTS.map(|(name, part)| format!("{name} {}", millis(outcome.quantile(part))));
        lines.push(format!(
            "  mean {}, {}, slowest {}",
            millis(outcome.mean()),
            parts.join(", "),
            millis(outcome.slowest())
        ));
        lines.extend(outcome.failed.iter().map(|(why, count)| format!("  failed: {count} x {why}")));
        lines.join("\n")
    }

    fn json(&self, outcome: &Outcome) -> Value {
        let micros = |length: Duration| length.as_micros() as u64;
        let mut latency = serde_json::Map::new();
        latency.insert("mean".to_owned(), micros(outcome.mean()).into());
        for (name, part) in PARTS {
            latency.insert(name.to_owned(), micros(outcome.quantile(part)).into());
        }
        latency.insert("max".to_owned(), micros(outcome.slowest()).into());
        json!({
            "operation": self.operation_name(),
            "callers": self.callers,
            "connections": self.connections,
            "names": self.names(),
            "payload_bytes": self.payload,
            "rate": self.rate,
            "duration_seconds": outcome.duration.as_secs_f64(),
            "done": outcome.done,
            "per_second": outcome.a_second(),
            "missed": outcome.missed,
            "failed": outcome.failed,
            "latency_us": latency,
        })
    }
}

fn progress_line(progress: &Progress) -> String {
    let Progress { elapsed, a_second, failed, p50, p99 } = progress;
    let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
    format!(
        "{:>5} s  {a_second:>9.0}/s  p50 {}, p99 {}{failed}",
        elapsed.as_secs(),
        millis(*p50),
        millis(*p99)
    )
}

fn millis(length: Duration) -> String {
    format!("{:.3} ms", length.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn bench(arguments: &[&str]) -> Result<Bench, clap::Error> {
        let cli = Cli::try_parse_from(["majorityd", "bench"].iter().chain(arguments))?;
        let Command::Bench(bench) = cli.command else { panic!("a bench was asked for") };
        Ok(bench)
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            &["fly"][..],
            &["locks", "--callers", "0"],
            &["locks", "--connections", "0"],
            &["locks", "--names", "0"],
            &["locks", "--duration", "0s"],
            &["locks", "--rate", "0"],
            &["locks", "--rate", "nan"],
            &["set", "--payload", "1000000000"],
        ] {
            assert!(bench(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn callers_have_a_name_each_and_share_a_queue() {
        let names = |arguments: &[&str]| bench(arguments).expect("it parses").names();
        assert_eq!(names(&["locks"]), 64);
        assert_eq!(names(&["get", "--callers", "3"]), 3);
        assert_eq!(names(&["queue"]), 1);
        assert_eq!(names(&["consume"]), 1);
        assert_eq!(names(&["locks", "--names", "1"]), 1);
    }
}
