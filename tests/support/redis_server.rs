//! Real Redis servers for tests: started on a free port in a directory of their own, ended with the value.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use majorityd::node::embedded::{Entry, Keyspace, SortedSet};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
const INSTALL_REDIS: &str =
    "these tests need redis-server (7 or later) in PATH; on Debian and Ubuntu: apt-get install redis-server";
const INSTALL_FAKETIME: &str = "these tests need libfaketime; on Debian and Ubuntu: apt-get install faketime";

/// A running `redis-server`, killed when dropped.
pub struct RedisServer {
    child: Option<Child>,
    port: u16,
    options: Vec<String>,
    /// The server reads its clock from a file in `dir`.
    steered: bool,
    dir: TempDir,
}

/// The clock of a server that was started with [`RedisServer::start_with_clock`].
#[derive(Clone, Copy, Debug)]
pub enum ServerTime {
    /// Runs, so many seconds from the real time.
    Shifted(i64),
    /// Stands still at so many seconds of Unix time.
    Frozen(u64),
}

/// What a server has after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// All that it had.
    Kept,
    /// Nothing.
    Wiped,
}

/// A reply, as RESP2 has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// No value.
    Nil,
    /// `+OK` and the like.
    Status(String),
    /// An error in the server's words.
    Error(String),
    /// A number.
    Integer(i64),
    /// A string.
    Bytes(Vec<u8>),
    /// An array.
    Array(Vec<Reply>),
}

impl RedisServer {
    /// Starts a server that keeps nothing on disk by itself.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more options, as on the command line: `&["--maxmemory-policy", "allkeys-lru"]`.
    pub fn start_with(options: &[&str]) -> Self {
        Self::launch(options, false)
    }

    /// Starts a server whose clock can be set while it runs; it begins with the real time.
    pub fn start_with_clock(options: &[&str]) -> Self {
        assert!(Path::new(FAKETIME).exists(), "{INSTALL_FAKETIME}");
        Self::launch(options, true)
    }

    fn launch(options: &[&str], steered: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("majorityd-redis").tempdir().expect("a directory");
        let options = options.iter().map(|option| option.to_string()).collect();
        let mut server = Self { child: None, port: 0, options, steered, dir };
        if steered {
            server.set_time(ServerTime::Shifted(0));
        }
        // Another process may take the port between finding and using it.
        for _ in 0..10 {
            server.port = free_port();
            if server.run() {
                return server;
            }
        }
        panic!("redis-server does not start; its log:\n{}", server.log());
    }

    /// Starts the process and waits for it; whether it came up.
    fn run(&mut self) -> bool {
        let mut command = Command::new("redis-server");
        let port = self.port.to_string();
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--dir", &self.dir.path().to_string_lossy(), "--logfile", "redis.log"]);
        command.args(["--unixsocket", &self.socket().to_string_lossy()]);
        command.args(&self.options).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if self.steered {
            // libc comes before jemalloc, which would read the clock before libfaketime is ready.
            command.env("LD_PRELOAD", format!("{FAKETIME}:libc.so.6"));
            command.env("FAKETIME_TIMESTAMP_FILE", self.clock_file()).env("FAKETIME_FMT", "%s");
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("TZ", "UTC");
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{INSTALL_REDIS} ({error})"));
        for _ in 0..3_000 {
            if child.try_wait().expect("a child can be asked").is_some() {
                return false;
            }
            if self.is_mine(&child) {
                self.child = Some(child);
                return true;
            }
            pause();
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("redis-server runs and does not answer; its log:\n{}", self.log());
    }

    /// Whether the process that listens is this child and has loaded its data.
    fn is_mine(&self, child: &Child) -> bool {
        let Ok(Reply::Bytes(info)) = self.try_command(&[b"INFO", b"server"]) else { return false };
        let mine = format!("process_id:{}\r\n", child.id());
        String::from_utf8_lossy(&info).contains(&mine)
            && self.try_command(&[b"PING"]).is_ok_and(|reply| reply == Reply::Status("PONG".into()))
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address as `majorityd` takes it: `redis://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The Unix socket on which it listens too.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("redis.log")).unwrap_or_default()
    }

    /// Stops the process where it is (SIGSTOP): connections stay open and nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a frozen process go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the server runs");
        kill_process(Pid::from_child(child), signal).expect("an own child can be signalled");
    }

    /// Kills the process (SIGKILL), as a power cut would. What was not saved is lost.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a killed server again on its port, with the data that is on disk.
    pub fn revive(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        let up = (0..10).any(|_| self.run());
        assert!(up, "redis-server does not start again; its log:\n{}", self.log());
    }

    /// Kills it and starts it again on its port.
    pub fn restart(&mut self, data: Data) {
        if data == Data::Kept {
            assert_eq!(self.command(&["SAVE"]), Reply::Status("OK".into()));
        }
        self.kill();
        if data == Data::Wiped {
            let _ = std::fs::remove_file(self.dir.path().join("dump.rdb"));
            let _ = std::fs::remove_dir_all(self.dir.path().join("appendonlydir"));
        }
        self.revive();
    }

    /// Removes all data behind the back of all.
    pub fn flushall(&self) {
        assert_eq!(self.command(&["FLUSHALL"]), Reply::Status("OK".into()));
    }

    /// Sets the clock of a server that was started with [`RedisServer::start_with_clock`].
    pub fn set_time(&self, time: ServerTime) {
        assert!(self.steered, "start it with start_with_clock");
        let text = match time {
            ServerTime::Shifted(seconds) => format!("{seconds:+}"),
            ServerTime::Frozen(unix_seconds) => unix_seconds.to_string(),
        };
        // In one step: the server may read at any moment.
        let new = self.dir.path().join("clock.new");
        std::fs::write(&new, text).expect("the clock's file can be written");
        std::fs::rename(&new, self.clock_file()).expect("the clock's file can be replaced");
    }

    fn clock_file(&self) -> PathBuf {
        self.dir.path().join("clock")
    }

    /// Runs a command on a connection of its own. An error reply is a reply; no reply is a panic.
    pub fn command(&self, words: &[&str]) -> Reply {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.command_bytes(&words)
    }

    /// As [`RedisServer::command`], with words of any bytes.
    pub fn command_bytes(&self, words: &[&[u8]]) -> Reply {
        self.try_command(words).unwrap_or_else(|error| panic!("no reply from redis-server: {error}"))
    }

    fn try_command(&self, words: &[&[u8]]) -> std::io::Result<Reply> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut replies = BufReader::new(stream.try_clone()?);
        if let Some(password) = self.password() {
            stream.write_all(&request(&[b"AUTH", password.as_bytes()]))?;
            read_reply(&mut replies)?;
        }
        stream.write_all(&request(words))?;
        read_reply(&mut replies)
    }

    /// The password that the server was started with.
    fn password(&self) -> Option<&str> {
        let at = self.options.iter().position(|option| option == "--requirepass")?;
        self.options.get(at + 1).map(String::as_str)
    }

    /// How many locks have a record.
    pub fn lock_records(&self) -> usize {
        self.keys("majorityd:r:l:*").len()
    }

    /// The names of all keys that match a pattern.
    pub fn keys(&self, pattern: &str) -> Vec<Vec<u8>> {
        bytes_of(self.command(&["KEYS", pattern]))
    }

    /// All data, in the form of an embedded server's.
    pub fn dump(&self) -> Keyspace {
        let mut keyspace = Keyspace::default();
        for key in self.keys("*") {
            let entry = match self.command_bytes(&[b"TYPE", &key]) {
                Reply::Status(kind) if kind == "string" => match self.command_bytes(&[b"GET", &key]) {
                    Reply::Bytes(bytes) => Entry::Bytes(bytes.into()),
                    other => panic!("GET answered {other:?}"),
                },
                Reply::Status(kind) if kind == "zset" => {
                    let words = bytes_of(self.command_bytes(&[b"ZRANGE", &key, b"0", b"-1", b"WITHSCORES"]));
                    let mut set = SortedSet::default();
                    for pair in words.chunks(2) {
                        let score = String::from_utf8_lossy(&pair[1]).parse().expect("an integer");
                        set.insert(pair[0].clone().into(), score);
                    }
                    Entry::Sorted(set)
                }
                other => panic!("TYPE answered {other:?}"),
            };
            keyspace.insert(key, entry);
        }
        keyspace
    }

    /// Puts something under a key, whatever was there.
    pub fn put(&self, key: &[u8], entry: &Entry) {
        self.command_bytes(&[b"DEL", key]);
        match entry {
            Entry::Bytes(bytes) => {
                self.command_bytes(&[b"SET", key, bytes]);
            }
            Entry::Sorted(set) => {
                for (score, name) in set.iter() {
                    self.command_bytes(&[b"ZADD", key, score.to_string().as_bytes(), name]);
                }
            }
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn bytes_of(reply: Reply) -> Vec<Vec<u8>> {
    let Reply::Array(replies) = reply else { panic!("an array was expected, not {reply:?}") };
    let bytes = |reply| match reply {
        Reply::Bytes(bytes) => bytes,
        other => panic!("a string was expected, not {other:?}"),
    };
    replies.into_iter().map(bytes).collect()
}

fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).into_bytes());
        request.extend_from_slice(word);
        request.extend(b"\r\n");
    }
    request
}

fn read_reply(stream: &mut impl BufRead) -> std::io::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let malformed = || std::io::Error::other("a malformed reply");
    let rest = line.get(1..).ok_or_else(malformed)?.trim_end().to_owned();
    let number = || rest.parse::<i64>().map_err(|_| malformed());
    Ok(match line.as_bytes()[0] {
        b'+' => Reply::Status(rest),
        b'-' => Reply::Error(rest),
        b':' => Reply::Integer(number()?),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Reply::Nil,
            Ok(length) => {
                let mut bytes = vec![0; length + 2];
                stream.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Reply::Bytes(bytes)
            }
        },
        b'*' => match usize::try_from(number()?) {
            Err(_) => Reply::Nil,
            Ok(length) => Reply::Array((0..length).map(|_| read_reply(stream)).collect::<Result<_, _>>()?),
        },
        _ => return Err(malformed()),
    })
}
