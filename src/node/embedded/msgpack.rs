//! `cmsgpack.pack` and `cmsgpack.unpack` as they are in Redis (lua_cmsgpack), byte for byte.
//!
//! What to know: every number that is an integer is packed as one; other numbers as a float of 32 bits where that is
//! exact; strings are always `str`, never `bin`; a table is an array if its keys are 1 to n, so an empty one is an
//! array; what nests deeper than 16 becomes nil.

use mlua::{Lua, Table, Value};

const NESTING_MAX: usize = 16;

/// Why a string can't be unpacked, in the words of lua_cmsgpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// It ends too early.
    Missing,
    /// A byte that begins nothing.
    Format,
    /// A map with nil or NaN as key, which a Lua table can't hold.
    Key,
}

impl Bad {
    pub(super) fn message(self) -> &'static str {
        match self {
            Bad::Missing => "Missing bytes in input.",
            Bad::Format => "Bad data format in input.",
            Bad::Key => "table index is nil",
        }
    }
}

/// Appends one value.
pub(super) fn pack(out: &mut Vec<u8>, value: &Value, level: usize) -> mlua::Result<()> {
    match value {
        Value::String(text) => pack_bytes(out, &text.as_bytes()),
        Value::Boolean(truth) => out.push(if *truth { 0xc3 } else { 0xc2 }),
        Value::Integer(number) => pack_integer(out, *number),
        Value::Number(number) => pack_number(out, *number),
        Value::Table(table) if level < NESTING_MAX => pack_table(out, table, level + 1)?,
        _ => out.push(0xc0),
    }
    Ok(())
}

fn pack_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        length @ 0..=31 => out.push(0xa0 | length as u8),
        length @ 32..=0xff => out.extend([0xd9, length as u8]),
        length @ 0x100..=0xffff => {
            out.push(0xda);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0xdb);
            out.extend((length as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

fn pack_number(out: &mut Vec<u8>, number: f64) {
    // Both ends of the range of i64 as doubles; the upper one itself does not fit.
    if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&number) && number.fract() == 0.0
    {
        return pack_integer(out, number as i64);
    }
    if f64::from(number as f32) == number {
        out.push(0xca);
        out.extend((number as f32).to_be_bytes());
    } else {
        out.push(0xcb);
        out.extend(number.to_be_bytes());
    }
}

fn pack_integer(out: &mut Vec<u8>, number: i64) {
    match number {
        0..=0x7f => out.push(number as u8),
        0x80..=0xff => out.extend([0xcc, number as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend((number as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend((number as u32).to_be_bytes());
        }
        0x1_0000_0000.. => {
            out.push(0xcf);
            out.extend(number.to_be_bytes());
        }
        -32..=-1 => out.push(number as i8 as u8),
        -128..=-33 => out.extend([0xd0, number as i8 as u8]),
        -32_768..=-129 => {
            out.push(0xd1);
            out.extend((number as i16).to_be_bytes());
        }
        -2_147_483_648..=-32_769 => {
            out.push(0xd2);
            out.extend((number as i32).to_be_bytes());
        }
        _ => {
            out.push(0xd3);
            out.extend(number.to_be_bytes());
        }
    }
}

fn pack_length(out: &mut Vec<u8>, length: usize, short: u8, long: u8) {
    match length {
        0..=15 => out.push(short | length as u8),
        16..=0xffff => {
            out.push(long);
            out.extend((length as u16).to_be_bytes());
        }
        _ => {
            out.push(long + 1);
            out.extend((length as u32).to_be_bytes());
        }
    }
}

fn pack_table(out: &mut Vec<u8>, table: &Table, level: usize) -> mlua::Result<()> {
    if let Some(values) = values_in_order(table)? {
        pack_length(out, values.len(), 0x90, 0xdc);
        return values.iter().try_for_each(|value| pack(out, value, level));
    }
    if is_array(table)? {
        let length = table.raw_len();
        pack_length(out, length, 0x90, 0xdc);
        for index in 1..=length {
            pack(out, &table.raw_get(index)?, level)?;
        }
        return Ok(());
    }
    pack_length(out, table.pairs::<Value, Value>().count(), 0x80, 0xde);
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        pack(out, &key, level)?;
        pack(out, &value, level)?;
    }
    Ok(())
}

/// The values of an array whose keys come one after the other, as nearly always; otherwise it may yet be one.
fn values_in_order(table: &Table) -> mlua::Result<Option<Vec<Value>>> {
    let mut values = Vec::with_capacity(table.raw_len());
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        let index = match key {
            Value::Integer(index) => index as f64,
            Value::Number(index) => index,
            _ => return Ok(None),
        };
        if index != (values.len() + 1) as f64 {
            return Ok(None);
        }
        values.push(value);
    }
    Ok(Some(values))
}

/// Whether the keys are 1 to n without a gap.
fn is_array(table: &Table) -> mlua::Result<bool> {
    let (mut count, mut max) = (0i64, 0i64);
    for pair in table.pairs::<Value, Value>() {
        let index = match pair?.0 {
            Value::Integer(index) => index,
            Value::Number(index) if index.fract() == 0.0 => index as i64,
            _ => return Ok(false),
        };
        if index <= 0 {
            return Ok(false);
        }
        count += 1;
        max = max.max(index);
    }
    Ok(count == max)
}

/// Reads one value and says what is left.
pub(super) fn unpack<'a>(lua: &'a Lua, input: &'a [u8]) -> mlua::Result<Result<(Value, &'a [u8]), Bad>> {
    let mut reader = Reader { lua, input };
    Ok(match reader.value()? {
        Ok(value) => Ok((value, reader.input)),
        Err(bad) => Err(bad),
    })
}

struct Reader<'a> {
    lua: &'a Lua,
    input: &'a [u8],
}

/// What goes wrong inside Lua (out of memory), around what goes wrong with the input.
type Read<T> = mlua::Result<Result<T, Bad>>;

macro_rules! good {
    ($read:expr) => {
        match $read {
            Ok(value) => value,
            Err(bad) => return Ok(Err(bad)),
        }
    };
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Bad> {
        let (taken, rest) = self.input.split_at_checked(length).ok_or(Bad::Missing)?;
        self.input = rest;
        Ok(taken)
    }

    fn unsigned(&mut self, bytes: usize) -> Result<u64, Bad> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn signed(&mut self, bytes: usize) -> Result<i64, Bad> {
        let unused = 64 - 8 * bytes as u32;
        Ok((self.unsigned(bytes)? as i64) << unused >> unused)
    }

    fn value(&mut self) -> Read<Value> {
        let first = good!(self.take(1))[0];
        let number = |number: Result<u64, Bad>| Ok(number.map(|number| Value::Number(number as f64)));
        let negative = |number: Result<i64, Bad>| Ok(number.map(|number| Value::Number(number as f64)));
        match first {
            0x00..=0x7f => number(Ok(first.into())),
            0x80..=0x8f => self.map((first & 0x0f).into()),
            0x90..=0x9f => self.array((first & 0x0f).into()),
            0xa0..=0xbf => self.string((first & 0x1f).into()),
            0xc0 => Ok(Ok(Value::Nil)),
            0xc2 | 0xc3 => Ok(Ok(Value::Boolean(first == 0xc3))),
            0xca => Ok(self.unsigned(4).map(|bits| Value::Number(f32::from_bits(bits as u32).into()))),
            0xcb => Ok(self.unsigned(8).map(|bits| Value::Number(f64::from_bits(bits)))),
            0xcc..=0xcf => number(self.unsigned(1 << (first - 0xcc))),
            0xd0..=0xd3 => negative(self.signed(1 << (first - 0xd0))),
            0xd9..=0xdb => self.long(1 << (first - 0xd9), Self::string),
            0xdc | 0xdd => self.long(2 << (first - 0xdc), Self::array),
            0xde | 0xdf => self.long(2 << (first - 0xde), Self::map),
            0xe0..=0xff => negative(Ok((first as i8).into())),
            // Redis's knows no `bin` and no extensions.
            0xc1 | 0xc4..=0xc9 | 0xd4..=0xd8 => Ok(Err(Bad::Format)),
        }
    }

    fn long(&mut self, bytes: usize, read: fn(&mut Self, usize) -> Read<Value>) -> Read<Value> {
        let length = good!(self.unsigned(bytes)) as usize;
        read(self, length)
    }

    fn string(&mut self, length: usize) -> Read<Value> {
        let bytes = good!(self.take(length));
        Ok(Ok(Value::String(self.lua.create_string(bytes)?)))
    }

    fn array(&mut self, length: usize) -> Read<Value> {
        let table = self.lua.create_table_with_capacity(length.min(self.input.len()), 0)?;
        for index in 1..=length {
            table.raw_set(index, good!(self.value()?))?;
        }
        Ok(Ok(Value::Table(table)))
    }

    fn map(&mut self, length: usize) -> Read<Value> {
        let table = self.lua.create_table()?;
        for _ in 0..length {
            let key = good!(self.value()?);
            let value = good!(self.value()?);
            if key.is_nil() || key.as_number().is_some_and(f64::is_nan) {
                return Ok(Err(Bad::Key));
            }
            table.raw_set(key, value)?;
        }
        Ok(Ok(Value::Table(table)))
    }
}
