//! The commands for people, one file each. They parse, call a room, print, and choose the exit code.
//!
//! What is asked for goes to stdout; everything else, events included, to stderr.

pub mod bench;
pub mod check;
pub mod client;
pub mod completions;
pub mod dev;
pub mod guard;
pub mod kv;
pub mod lock;
pub mod locks;
pub mod man;
pub mod queue;
mod say;
pub mod serve;
pub mod status;
pub mod token;

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::config::load::Flag;
use crate::config::validate::NodesFrom;
use crate::config::{Problems, Settings, Sources};
use crate::limits;

/// Exit code: all is well.
pub const EXIT_OK: u8 = 0;
/// Exit code: something failed.
pub const EXIT_FAILURE: u8 = 1;
/// Exit code: the configuration is wrong.
pub const EXIT_CONFIG: u8 = 2;
/// Exit code: the command line is wrong (EX_USAGE).
pub const EXIT_USAGE: u8 = 64;
/// Exit code: no daemon answers (EX_UNAVAILABLE).
pub const EXIT_UNAVAILABLE: u8 = 69;

/// Distributed locks over gRPC, by majority of independent Redis servers.
#[derive(Debug, Parser)]
#[command(name = "majorityd", version = env!("MAJORITYD_VERSION"), arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve(serve::Serve),
    /// Run a daemon for trying things out, with nodes of its own that keep nothing
    ///
    /// A configuration's section `nodes` is not used.
    Dev(dev::Dev),
    /// Check the configuration and every server in it
    ///
    /// Prints all that is wrong with the configuration; then connects to every server as a daemon would, and says for
    /// each what it found. Changes nothing on them.
    Check(check::Check),
    /// Hold a lock while a command runs
    ///
    /// Runs COMMAND in a process group of its own while holding the lock NAME, and releases the lock when it has ended.
    /// The command sees MAJORITYD_LOCK_NAME and MAJORITYD_FENCING_TOKEN; hand the token to what the lock protects.
    ///
    /// SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to its group. If the lock is lost or can't be extended, the group
    /// gets SIGTERM and then SIGKILL before the lease runs out; what has left the group (setsid)
    /// escapes that. Processes that the command leaves behind when it ends are not waited for. It is not in the
    /// terminal's foreground: it can write there, but not read.
    Lock(lock::Lock),
    /// Look at locks, or release one by force
    Locks(locks::Locks),
    /// Read, write, list and watch keys
    Kv(kv::Kv),
    /// Put items into queues, work on them, and look after both
    Queue(queue::Queue),
    /// Show how the cluster is: its nodes, whether a quorum serves, and what may still fail
    ///
    /// Asks one daemon, which answers from what it knows, also when no quorum of nodes can be reached. (`check` asks the
    /// servers themselves, and needs no daemon.)
    Status(status::Status),
    /// Make a token for a caller, and the line by which access.file knows it
    ///
    /// The token is printed first and is kept nowhere; the line has its SHA-256, which is no secret. docs/security.md says what
    /// to do with both.
    Token(token::Token),
    /// Measure how fast daemons answer
    ///
    /// Many callers do one thing again and again for a while, on the daemon that is there for all: it is load. Told are how
    /// often it was done each second and how long it took, with one line each second while it runs.
    Bench(bench::Bench),
    /// Print what makes a shell complete the words of this command line
    Completions(completions::Completions),
    /// Print the manual page, or write those of all commands
    Man(man::Man),
}

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// The flags of every command that reads settings.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigFlags {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "MAJORITYD_CONFIG")]
    pub config: Option<PathBuf>,

    /// Override a setting; repeatable
    ///
    /// Settings can also come from the environment, as MAJORITYD__SECTION__KEY. Not for passwords: others see the
    /// command lines of this machine.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = parse_pair)]
    pub set: Vec<(String, String)>,

    /// Address and port for gRPC (grpc.listen)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,

    /// Which events to log, such as info or info,majorityd=debug (log.filter)
    #[arg(long, value_name = "DIRECTIVES")]
    pub log_filter: Option<String>,

    /// How to log: text or json (log.format)
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl ConfigFlags {
    /// Reads all settings, these flags above everything else.
    ///
    /// # Errors
    /// [`Problems`] lists everything that is wrong.
    pub fn load(&self, nodes: NodesFrom) -> Result<Settings, Problems> {
        let file = self.config.clone();
        crate::config::load(
            &Sources { file, environment: std::env::vars_os().collect(), flags: self.flags() },
            nodes,
        )
    }

    fn flags(&self) -> Vec<Flag> {
        let mut flags: Vec<Flag> =
            self.set.iter().map(|(setting, value)| flag("--set", setting, value)).collect();
        let named = [
            ("--listen", "grpc.listen", &self.listen),
            ("--log-filter", "log.filter", &self.log_filter),
            ("--log-format", "log.format", &self.log_format),
        ];
        for (name, setting, value) in named {
            flags.extend(value.iter().map(|value| flag(name, setting, value)));
        }
        flags
    }
}

fn flag(flag: &str, setting: &str, value: &str) -> Flag {
    Flag { flag: flag.to_owned(), setting: setting.to_owned(), value: value.to_owned() }
}

/// `key=value`; the value may be empty and may hold more equals signs.
fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("key=value is needed".to_owned()),
    }
}

/// The binary.
pub fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os()))
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to say anything more.
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE } else { EXIT_OK };
        }
    };
    match cli.command {
        Command::Serve(command) => block_on_few(command.run()),
        Command::Dev(command) => block_on_few(command.run()),
        Command::Check(command) => block_on(command.run()),
        Command::Lock(command) => block_on(command.run()),
        Command::Locks(command) => block_on(command.run()),
        Command::Kv(command) => block_on(command.run()),
        Command::Queue(command) => block_on(command.run()),
        Command::Status(command) => block_on(command.run()),
        Command::Token(command) => block_on(command.run()),
        Command::Bench(command) => block_on_few(command.run()),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    }
}

/// Runs a daemon, or what puts one under load, on half of the cores: tasks of one call wake each other all the time, and
/// waking one in another thread costs more than what it does then. `TOKIO_WORKER_THREADS` sets another number.
///
/// One thread has the runtime that is made for one: its tasks run in the order in which they were woken, so that what many
/// calls of a connection answer is written together.
fn block_on_few(daemon: impl Future<Output = u8>) -> u8 {
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get).div_ceil(2);
    let asked = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|number| number.parse().ok());
    match asked.unwrap_or_else(cores) {
        0 | 1 => run_on(tokio::runtime::Builder::new_current_thread(), daemon),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            run_on(builder, daemon)
        }
    }
}

fn block_on(command: impl Future<Output = u8>) -> u8 {
    run_on(tokio::runtime::Builder::new_multi_thread(), command)
}

fn run_on(mut builder: tokio::runtime::Builder, command: impl Future<Output = u8>) -> u8 {
    match builder.enable_all().build() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            eprintln!("majorityd: can't start: {error}");
            EXIT_FAILURE
        }
    }
}

/// Says what is wrong with the configuration.
fn print_problems(problems: &Problems) {
    eprintln!("majorityd: the configuration can't be used:");
    for problem in &problems.0 {
        eprintln!("  {problem}");
    }
}

/// Prints a value as JSON, in lines.
fn print_json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).expect("what is printed has text keys only");
    print_line(&text);
}

/// Writes bytes to stdout as they are; a reader that went away is not an error.
fn print_bytes(bytes: &[u8]) {
    use io::Write as _;
    let _ = io::stdout().lock().write_all(bytes);
}

/// Prints a line; a reader that went away is not an error.
fn print_line(text: &str) {
    use io::Write as _;
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// The input, up to a little more than any daemon takes: what is longer is refused by it and not by us.
fn read_all(input: impl io::Read) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    input.take(limits::VALUE_BYTES_CEILING as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Text as it is, but for what could command a terminal; how many bytes of anything else.
fn text_of(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => printable(text),
        Err(_) => format!("<{} bytes that are no text>", value.len()),
    }
}

/// Bytes for programs: text under `name`, anything else under `name_base64`.
fn put_bytes(object: &mut serde_json::Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = text.into(),
        Err(_) => object[format!("{name}_base64")] = BASE64.encode(bytes).into(),
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A text from elsewhere without what could command a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Lines up columns under their titles, two spaces apart.
fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(titles.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_settings() {
        let cli = Cli::try_parse_from([
            "majorityd",
            "serve",
            "--set",
            "locks.ttl_max=2m",
            "--listen",
            "127.0.0.1:1",
            "--log-format=json",
        ]);
        let Command::Serve(serve) = cli.expect("parses").command else { panic!("serve was asked for") };
        let flags: Vec<(String, String)> =
            serve.config.flags().into_iter().map(|flag| (flag.setting, flag.value)).collect();
        let expected = [("locks.ttl_max", "2m"), ("grpc.listen", "127.0.0.1:1"), ("log.format", "json")];
        assert_eq!(flags, expected.map(|(setting, value)| (setting.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_wrong_command_line_has_its_own_exit_code() {
        let run_with = |arguments: &[&str]| run(arguments.iter().map(OsString::from));
        assert_eq!(run_with(&["majorityd", "fly"]), EXIT_USAGE);
        assert_eq!(run_with(&["majorityd", "serve", "--set", "nonsense"]), EXIT_USAGE);
        assert_eq!(run_with(&["majorityd", "--version"]), EXIT_OK);
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".to_owned(), "long one".to_owned()], vec!["bcdef".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "X"], &rows), "NAME   X\na      long one\nbcdef");
    }
}
