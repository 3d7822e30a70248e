//! Operations, batches and replies as MessagePack, the form in which they travel to the script and back.
//!
//! An operation is encoded once and shared by all nodes ([`Encoded`]), so a batch is little more than a copy. Decoding
//! takes any bytes without a panic.

use std::time::Duration;

use bytes::Bytes;

use super::memory_from_wire;
use super::operation::{Accept, Answer, Operation, Record, Stamp};
use crate::ids::{MemoryId, ProposerId};
use crate::token::{Ballot, Token};

// ---------------------------------------------------------------------------------------------------------------------
// What goes out

const READ: u8 = 1;
const PREPARE: u8 = 2;
const ACCEPT: u8 = 3;
const LIST: u8 = 4;
const FOUND: u8 = 5;

/// One operation as MessagePack, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded(Bytes);

impl Encoded {
    /// Its length in bytes.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// So many bytes of nothing, for tests of what only looks at sizes.
    #[cfg(test)]
    pub fn of_size(bytes: usize) -> Self {
        Self(vec![0; bytes].into())
    }
}

/// Writes MessagePack. Strings and binary both travel as `str`: Lua makes no difference, and cmsgpack packs only `str`.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    const FITS: &'static str = "writing to memory does not fail";

    fn array(&mut self, length: usize) -> &mut Self {
        rmp::encode::write_array_len(&mut self.0, length as u32).expect(Self::FITS);
        self
    }

    fn number(&mut self, value: u64) -> &mut Self {
        rmp::encode::write_uint(&mut self.0, value).expect(Self::FITS);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        rmp::encode::write_str_len(&mut self.0, bytes.len() as u32).expect(Self::FITS);
        self.0.extend_from_slice(bytes);
        self
    }

    fn ballot(&mut self, ballot: Ballot) -> &mut Self {
        self.number(ballot.token.get()).bytes(&ballot.proposer.0.to_be_bytes())
    }
}

impl Operation {
    /// As it travels. See the header of each file in `lua/` for the order of fields.
    pub fn encode(&self) -> Encoded {
        let mut out = Writer(Vec::with_capacity(64));
        match self {
            Operation::Read { key } => {
                out.array(2).number(READ.into()).bytes(key.as_bytes());
            }
            Operation::Prepare { key, ballot, soft } => {
                out.array(5)
                    .number(PREPARE.into())
                    .bytes(key.as_bytes())
                    .ballot(*ballot)
                    .number((*soft).into());
            }
            Operation::Accept(accept) => encode_accept(&mut out, accept),
            Operation::List { kind, prefix, after, limit } => {
                let (min, max) = lex_range(prefix, after);
                out.array(5).number(LIST.into()).bytes(kind.to_string().as_bytes());
                out.bytes(&min).bytes(&max).number(*limit as u64);
            }
            Operation::Found { founding, memory } => {
                out.array(5).number(FOUND.into()).bytes(&founding.to_bytes()).ballot(*founding);
                out.bytes(&memory.to_be_bytes());
            }
        }
        Encoded(out.0.into())
    }
}

fn encode_accept(out: &mut Writer, accept: &Accept) {
    out.0.reserve(accept.value.len() + 256);
    out.array(13).number(ACCEPT.into()).bytes(accept.key.as_bytes()).ballot(accept.ballot);
    out.bytes(&accept.value).bytes(&vid_bytes(accept.vid));
    let recent: Vec<u8> = accept.recent.iter().flat_map(|vid| vid.to_bytes()).collect();
    out.bytes(&recent);
    out.array(accept.stamps.len());
    for stamp in &accept.stamps {
        out.bytes(&stamp.to_bytes());
    }
    out.number(u64::try_from(accept.guard.as_millis()).unwrap_or(u64::MAX));
    out.number(accept.listed.into()).number(accept.next.get()).number(accept.announce.into());
    out.array(accept.wake.len());
    for daemon in &accept.wake {
        out.bytes(daemon.to_string().as_bytes());
    }
}

/// "Absent" travels as the empty string, so that a fresh node's list and the wish to go by none look alike.
fn vid_bytes(vid: Ballot) -> Vec<u8> {
    if vid == Ballot::ZERO { Vec::new() } else { vid.to_bytes().to_vec() }
}

/// The bounds of ZRANGEBYLEX for names with this prefix, after this name.
fn lex_range(prefix: &str, after: &str) -> (Vec<u8>, Vec<u8>) {
    let min = match (after.is_empty(), after >= prefix) {
        (false, true) => [b"(", after.as_bytes()].concat(),
        _ if prefix.is_empty() => b"-".to_vec(),
        _ => [b"[", prefix.as_bytes()].concat(),
    };
    // UTF-8 has no byte 0xff, so the last byte plus one is past every name with this prefix.
    let max = match prefix.as_bytes().split_last() {
        None => b"+".to_vec(),
        Some((last, start)) => [b"(", start, &[last + 1]].concat(),
    };
    (min, max)
}

/// A whole batch: the list that the daemon goes by, and the operations.
pub fn encode<'a>(list: Ballot, operations: impl ExactSizeIterator<Item = &'a Encoded> + Clone) -> Bytes {
    let bytes: usize = operations.clone().map(|operation| operation.0.len()).sum();
    let mut out = Writer(Vec::with_capacity(bytes + 32));
    out.array(2).bytes(&vid_bytes(list)).array(operations.len());
    for operation in operations {
        out.0.extend_from_slice(&operation.0);
    }
    out.0.into()
}

// ---------------------------------------------------------------------------------------------------------------------
// What comes back

/// A reply of the script.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchReply {
    /// The batch was run; one answer per operation, `None` where the gate was closed.
    Done {
        /// The node's memory.
        memory: Option<MemoryId>,
        /// The list that the node holds; [`Ballot::ZERO`] for none.
        list: Ballot,
        /// The node's clock, in microseconds of Unix time.
        now_us: u64,
        /// In the order of the operations.
        answers: Vec<Option<Answer>>,
    },
    /// The node record is gone (FLUSHALL): nothing was done.
    NoRecord,
    /// The node record is not the one of the handshake: nothing was done.
    Foreign,
}

/// A reply that is not what the script sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reply of the script can't be read ({0})")]
pub struct Malformed(&'static str);

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array(&mut self) -> Result<usize, Malformed> {
        let length =
            rmp::decode::read_array_len(&mut self.0).map_err(|_| Malformed("array expected"))? as usize;
        // Every element takes a byte, so a longer array is a lie and must not make us allocate.
        if length > self.0.len() { Err(Malformed("array too long")) } else { Ok(length) }
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        rmp::decode::read_int(&mut self.0).map_err(|_| Malformed("number expected"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length =
            rmp::decode::read_str_len(&mut self.0).map_err(|_| Malformed("string expected"))? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed("string too long"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn is_number(&self) -> bool {
        self.0.first().is_some_and(|first| *first < 0x80)
    }

    fn is_false(&mut self) -> bool {
        let is = self.0.first() == Some(&0xc2);
        if is {
            self.0 = &self.0[1..];
        }
        is
    }

    fn ballot(&mut self) -> Result<Ballot, Malformed> {
        let token = Token::new(self.number()?).ok_or(Malformed("token out of range"))?;
        let proposer = self.bytes()?.try_into().map_err(|_| Malformed("proposer of 8 bytes expected"))?;
        Ok(Ballot { token, proposer: ProposerId(u64::from_be_bytes(proposer)) })
    }

    fn vid(&mut self) -> Result<Ballot, Malformed> {
        match self.bytes()? {
            [] => Ok(Ballot::ZERO),
            bytes => Ballot::from_bytes(bytes).ok_or(Malformed("ballot of 16 bytes expected")),
        }
    }
}

/// Reads a reply of the batch script.
///
/// # Errors
/// [`Malformed`] for anything that the script does not send. Never panics, whatever the bytes.
pub fn decode(reply: &[u8]) -> Result<BatchReply, Malformed> {
    let mut input = Reader(reply);
    input.array()?;
    match input.number()? {
        0 => {}
        1 => return Ok(BatchReply::NoRecord),
        2 => return Ok(BatchReply::Foreign),
        _ => return Err(Malformed("unknown tag of a batch")),
    }
    let memory = match input.bytes()? {
        [] => None,
        bytes => {
            let bytes = bytes.try_into().map_err(|_| Malformed("memory of 8 bytes expected"))?;
            memory_from_wire(u64::from_be_bytes(bytes))
        }
    };
    let list = input.vid()?;
    let now_us = input.number()?;
    let answers = (0..input.array()?).map(|_| decode_answer(&mut input, now_us)).collect::<Result<_, _>>()?;
    Ok(BatchReply::Done { memory, list, now_us, answers })
}

fn decode_answer(input: &mut Reader<'_>, now_us: u64) -> Result<Option<Answer>, Malformed> {
    if input.is_number() {
        return match input.number()? {
            1 => Ok(Some(Answer::Accepted)),
            7 => Ok(Some(Answer::TooFarAhead)),
            8 => Ok(Some(Answer::NotServing)),
            10 => Ok(None),
            _ => Err(Malformed("unknown answer")),
        };
    }
    input.array()?;
    let answer = match input.number()? {
        2 if input.is_false() => Answer::Record(None),
        2 => Answer::Record(Some(decode_record(input.bytes()?, now_us)?)),
        3 => Answer::Promised { record: decode_record(input.bytes()?, now_us)?, floor: input.vid()? },
        4 => Answer::Held { record: decode_record(input.bytes()?, now_us)? },
        5 => Answer::Conflict { promise: input.ballot()? },
        6 => {
            let names = (0..input.array()?).map(|_| Ok(String::from_utf8_lossy(input.bytes()?).into_owned()));
            Answer::Names(names.collect::<Result<_, Malformed>>()?)
        }
        9 => Answer::Failed { message: String::from_utf8_lossy(input.bytes()?).into_owned() },
        _ => return Err(Malformed("unknown answer")),
    };
    Ok(Some(answer))
}

/// Reads a record in its stored form and works out the ages.
///
/// # Errors
/// [`Malformed`] for anything that `accept` does not store.
pub fn decode_record(raw: &[u8], now_us: u64) -> Result<Record, Malformed> {
    let mut input = Reader(raw);
    if input.array()? != 11 {
        return Err(Malformed("record of 11 fields expected"));
    }
    let (promise, ballot, vid) = (input.ballot()?, input.ballot()?, input.vid()?);
    let recent = input
        .bytes()?
        .chunks(Ballot::BYTES)
        .map(|vid| Ballot::from_bytes(vid).ok_or(Malformed("vids of 16 bytes expected")))
        .collect::<Result<_, _>>()?;
    let value = Bytes::copy_from_slice(input.bytes()?);
    let stamps = input.array()? / 2;
    let mut ages = Vec::with_capacity(stamps);
    for _ in 0..stamps {
        let stamp = Stamp::from_bytes(input.bytes()?).ok_or(Malformed("stamp of 17 bytes expected"))?;
        // Rounded down: an age must never be overstated.
        ages.push((stamp, Duration::from_millis(now_us.saturating_sub(input.number()?) / 1000)));
    }
    input.number()?;
    let copied = input.number()? != 0;
    Ok(Record { promise, ballot, value, vid, recent, ages, copied })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::operation::RegisterKey;

    #[test]
    fn ranges_follow_prefix_and_position() {
        let range = |prefix, after| {
            let (min, max) = lex_range(prefix, after);
            (String::from_utf8(min).unwrap(), String::from_utf8(max).unwrap())
        };
        assert_eq!(range("", ""), ("-".into(), "+".into()));
        assert_eq!(range("a/", ""), ("[a/".into(), "(a0".into()));
        assert_eq!(range("a/", "a/7"), ("(a/7".into(), "(a0".into()));
        assert_eq!(range("b", "a"), ("[b".into(), "(c".into()));
    }

    proptest::proptest! {
        #[test]
        fn no_reply_makes_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn absent_travels_as_the_empty_string() {
        let read = Operation::Read { key: RegisterKey::members() }.encode();
        let batch = encode(Ballot::ZERO, [&read].into_iter());
        assert_eq!(&batch[..3], &[0x92, 0xa0, 0x91]);
    }
}
