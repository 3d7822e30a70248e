//! Lua as Redis runs it: the scripts' text, compiled once, over a [`Store`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use mlua::state::{GcIncParams, GcMode};
use mlua::{Function, IntoLuaMulti, Lua, LuaOptions, LuaString, MultiValue, StdLib, Table, Value};

use super::keyspace::{Keyspace, Reply};
use super::msgpack;

/// What commands work on.
#[derive(Default)]
pub(super) struct Store {
    pub(super) keyspace: Keyspace,
    /// The clock, frozen while a script runs.
    pub(super) now_us: u64,
    /// How many subscribers each channel has; none is no entry.
    pub(super) subscribers: BTreeMap<Bytes, usize>,
    /// Channel and message, in the order of publishing; delivered when the script has ended.
    pub(super) published: Vec<(Bytes, Bytes)>,
}

impl Store {
    fn run(&mut self, name: &[u8], args: &[Bytes]) -> Reply {
        match (name, args) {
            (b"TIME", []) => {
                let number = |number: u64| Reply::Bytes(Bytes::from(number.to_string()));
                Reply::Array(vec![number(self.now_us / 1_000_000), number(self.now_us % 1_000_000)])
            }
            (b"PUBLISH", [channel, message]) => {
                self.published.push((channel.clone(), message.clone()));
                Reply::Integer(self.listeners(channel))
            }
            (b"PUBSUB", [what, channel]) if what.as_ref() == b"NUMSUB" => {
                Reply::Array(vec![Reply::Bytes(channel.clone()), Reply::Integer(self.listeners(channel))])
            }
            _ => match self.keyspace.run(name, args) {
                Some(reply) => reply,
                None => Reply::Error("ERR Unknown Redis command called from script".to_owned()),
            },
        }
    }

    fn listeners(&self, channel: &Bytes) -> i64 {
        self.subscribers.get(channel).map_or(0, |count| *count as i64)
    }
}

/// One Lua state with the environment of Redis scripts.
pub(super) struct Interpreter {
    environment: Table,
    invoke: Function,
    compiled: BTreeMap<Box<str>, Function>,
    store: Arc<Mutex<Store>>,
    lua: Lua,
}

/// Memory grows to so many percent of what is alive before Lua collects.
const GC_PAUSE: i32 = 1_000;

const MEMORY: &str = "Lua fails here only without memory";

impl Interpreter {
    pub(super) fn new() -> Self {
        // Panics are not for scripts to catch, and Lua's own pcall is what Redis has.
        let options = LuaOptions::new().catch_rust_panics(false);
        let lua =
            Lua::new_with(StdLib::STRING | StdLib::TABLE | StdLib::MATH, options).expect("safe libraries");
        // Scripts keep next to nothing alive, so collecting late costs little memory and saves a tenth of their time.
        lua.gc_set_mode(GcMode::Incremental(GcIncParams::default().pause(GC_PAUSE)));
        let store = Arc::new(Mutex::new(Store::default()));
        let commands = Arc::clone(&store);
        let run = lua.create_function(move |lua, args: MultiValue| run_command(lua, &commands, args));
        let pack = lua.create_function(|lua, values: MultiValue| {
            let mut out = Vec::new();
            for value in &values {
                msgpack::pack(&mut out, value, 0)?;
            }
            lua.create_string(out)
        });
        let unpack = lua.create_function(unpack_all);
        let unpack_limit = lua.create_function(unpack_limit);
        let (environment, invoke) = lua
            .load(include_str!("environment.lua"))
            .set_name("@environment")
            .call((
                run.expect(MEMORY),
                pack.expect(MEMORY),
                unpack.expect(MEMORY),
                unpack_limit.expect(MEMORY),
            ))
            .expect("the environment is a valid script");
        Self { environment, invoke, compiled: BTreeMap::new(), store, lua }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    /// Runs a script to its end with one argument; its string, or the message of what it raised.
    pub(super) fn run(&mut self, script: &str, argument: &[u8]) -> Result<Bytes, String> {
        let function = self.compile(script)?;
        let arguments = self.lua.create_string(argument).and_then(|text| {
            let arguments = self.lua.create_table()?;
            arguments.raw_set(1, text)?;
            self.environment.raw_set("ARGV", arguments)
        });
        arguments.expect(MEMORY);
        let (done, result): (bool, Value) = self.invoke.call(function).map_err(|error| error.to_string())?;
        match (done, result) {
            (true, Value::String(bytes)) => Ok(Bytes::copy_from_slice(&bytes.as_bytes())),
            (true, other) => Err(format!("the script returned a {}", other.type_name())),
            (false, Value::String(message)) => Err(message.to_string_lossy()),
            (false, other) => Err(format!("the script raised a {}", other.type_name())),
        }
    }

    fn compile(&mut self, script: &str) -> Result<Function, String> {
        if let Some(function) = self.compiled.get(script) {
            return Ok(function.clone());
        }
        let chunk = self.lua.load(script).set_name("@user_script").set_environment(self.environment.clone());
        let function = chunk.into_function().map_err(|error| error.to_string())?;
        self.compiled.insert(script.into(), function.clone());
        Ok(function)
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().expect("no holder of this lock panics")
}

/// `redis.pcall`.
fn run_command(lua: &Lua, store: &Mutex<Store>, args: MultiValue) -> mlua::Result<Value> {
    let mut words = Vec::with_capacity(args.len());
    for arg in args {
        match word(&arg) {
            Some(word) => words.push(word),
            None => {
                let message = "ERR Lua redis lib command arguments must be strings or integers";
                return to_lua(lua, Reply::Error(message.to_owned()));
            }
        }
    }
    let Some((name, args)) = words.split_first() else {
        let message = "ERR Please specify at least one argument for this redis.call() call";
        return to_lua(lua, Reply::Error(message.to_owned()));
    };
    // Nearly always it is in capitals already.
    let reply = match name.iter().any(u8::is_ascii_lowercase) {
        true => lock(store).run(&name.to_ascii_uppercase(), args),
        false => lock(store).run(name, args),
    };
    to_lua(lua, reply)
}

/// An argument as it reaches the command.
fn word(arg: &Value) -> Option<Bytes> {
    match arg {
        Value::String(text) => Some(Bytes::copy_from_slice(&text.as_bytes())),
        Value::Integer(number) => Some(Bytes::from(number.to_string())),
        Value::Number(number) => Some(Bytes::from(number.to_string())),
        _ => None,
    }
}

/// A reply as Redis gives it to a script.
fn to_lua(lua: &Lua, reply: Reply) -> mlua::Result<Value> {
    Ok(match reply {
        Reply::Nil => Value::Boolean(false),
        Reply::Status(text) => Value::Table(lua.create_table_from([("ok", text)])?),
        Reply::Integer(number) => Value::Number(number as f64),
        Reply::Bytes(bytes) => Value::String(lua.create_string(&bytes)?),
        Reply::Array(replies) => {
            let array = lua.create_table_with_capacity(replies.len(), 0)?;
            for (index, reply) in replies.into_iter().enumerate() {
                array.raw_set(index + 1, to_lua(lua, reply)?)?;
            }
            Value::Table(array)
        }
        Reply::Error(message) => Value::Table(lua.create_table_from([("err", message)])?),
    })
}

/// All values of a string, after `false`; or what is wrong.
fn unpack_all(lua: &Lua, input: LuaString) -> mlua::Result<MultiValue> {
    let bytes = input.as_bytes();
    Ok(match unpack_some(lua, &bytes, usize::MAX)? {
        Ok((values, _)) => values,
        Err(bad) => bad.message().into_lua_multi(lua)?,
    })
}

/// As [`unpack_all`], but so many values at most from an offset on, and after the `false` where the rest begins: -1 if there
/// is none.
fn unpack_limit(lua: &Lua, (input, limit, offset): (LuaString, usize, usize)) -> mlua::Result<MultiValue> {
    let bytes = input.as_bytes();
    let Some(from) = bytes.get(offset..) else {
        return "Start offset greater than input length.".into_lua_multi(lua);
    };
    let (mut values, rest) = match unpack_some(lua, from, limit)? {
        Ok(unpacked) => unpacked,
        Err(bad) => return bad.message().into_lua_multi(lua),
    };
    let rest = if rest.is_empty() { -1.0 } else { (bytes.len() - rest.len()) as f64 };
    // In front of the values and after the `false`.
    values.pop_front();
    values.push_front(Value::Number(rest));
    values.push_front(Value::Boolean(false));
    Ok(values)
}

/// `false` and so many values at most, and what is left.
fn unpack_some<'a>(
    lua: &'a Lua,
    mut rest: &'a [u8],
    limit: usize,
) -> mlua::Result<Result<(MultiValue, &'a [u8]), msgpack::Bad>> {
    let mut values = MultiValue::new();
    values.push_back(Value::Boolean(false));
    while !rest.is_empty() && values.len() <= limit {
        match msgpack::unpack(lua, rest)? {
            Ok((value, left)) => {
                values.push_back(value);
                rest = left;
            }
            Err(bad) => return Ok(Err(bad)),
        }
    }
    Ok(Ok((values, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> Result<Bytes, String> {
        Interpreter::new().run(script, b"argument")
    }

    #[test]
    fn a_script_sees_its_argument_and_no_globals() {
        assert_eq!(run("return ARGV[1]"), Ok(Bytes::from("argument")));
        assert_eq!(run("x = 1"), Err("user_script:1: Attempt to modify a readonly table".into()));
        let unknown = "user_script:2: Script attempted to access nonexistent global variable 'print'";
        assert_eq!(run("\nreturn print"), Err(unknown.into()));
    }

    #[test]
    fn call_raises_what_pcall_returns() {
        let set = "redis.call('ZADD', 'set', 0, 'x') ";
        let wrong = "WRONGTYPE Operation against a key holding the wrong kind of value";
        assert_eq!(run(&format!("{set} redis.call('GET', 'set')")), Err(wrong.into()));
        assert_eq!(run(&format!("{set} return redis.pcall('GET', 'set').err")), Ok(wrong.into()));
        let caught = "local ok, raised = pcall(redis.call, 'GET', 'set') return raised.err";
        assert_eq!(run(&format!("{set} {caught}")), Ok(wrong.into()));
        assert_eq!(run("return tostring(redis.call('GET', 'nothing'))"), Ok("false".into()));
        assert_eq!(run("return redis.call('SET', 'x', 'y').ok"), Ok("OK".into()));
        assert!(run("return redis.call('DEL', 'x')").unwrap_err().contains("Unknown Redis command"));
    }

    #[test]
    fn bad_messagepack_is_an_error_with_the_line_of_the_script() {
        let missing = "user_script:2: Missing bytes in input.";
        assert_eq!(run("\nlocal x = cmsgpack.unpack('\\146\\1')"), Err(missing.into()));
        let bad = "user_script:1: Bad data format in input.";
        assert_eq!(run("local x = cmsgpack.unpack('\\193')"), Err(bad.into()));
        assert_eq!(run("local x = cmsgpack.unpack_limit('\\1\\193', 2, 0)"), Err(bad.into()));
    }

    #[test]
    fn so_many_values_are_unpacked_from_an_offset_on() {
        let list = |call: &str| run(&format!("local t = {{ {call} }} return table.concat(t, ' ')"));
        assert_eq!(list("cmsgpack.unpack('\\1\\2\\3')"), Ok("1 2 3".into()));
        assert_eq!(list("cmsgpack.unpack_limit('\\1\\2\\3', 2, 0)"), Ok("2 1 2".into()));
        assert_eq!(list("cmsgpack.unpack_limit('\\1\\2\\3', 2, 1)"), Ok("-1 2 3".into()));
        assert_eq!(list("cmsgpack.unpack_limit('\\1\\2\\3', 9, 1)"), Ok("-1 2 3".into()));
        assert!(list("cmsgpack.unpack_limit('\\1', 1, 2)").unwrap_err().contains("greater than input"));
    }
}
