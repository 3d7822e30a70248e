//! What comes back: replies, answers and records.

use std::time::Duration;

use bytes::Bytes;
use unsigned_varint::decode as varint;

use super::encode::{HIGHER, OTHER};
use crate::ids::{MemoryId, ProposerId};
use crate::limits;
use crate::node::memory_from_wire;
use crate::node::operation::{
    Answer, Census, Claimed, Held, JoinState, Page, Place, Record, RegisterKey, Reported, Shown, Stamp, Told,
};
use crate::token::{Ballot, Token};

// Phases of a join, as the node record has them.
const SERVING: u64 = 0;
const WIPING: u64 = 1;

/// A stamp's name and 16 digits.
const STAMP_LENGTH: usize = Stamp::BYTES + 16;

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
        /// How many batches have changed something on this node; `None` if this one has not.
        writes: Option<u64>,
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

impl Malformed {
    /// A look was answered with more or fewer values than it asked for.
    pub const VALUES: Self = Self("as many values as keys expected");
}

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

    fn text(&mut self) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    fn signed(&mut self) -> Result<i64, Malformed> {
        rmp::decode::read_int(&mut self.0).map_err(|_| Malformed("number expected"))
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
        Ok(Ballot { token, proposer: self.proposer()? })
    }

    fn proposer(&mut self) -> Result<ProposerId, Malformed> {
        let proposer = self.bytes()?.try_into().map_err(|_| Malformed("proposer of 8 bytes expected"))?;
        Ok(ProposerId(u64::from_be_bytes(proposer)))
    }

    fn memory(&mut self) -> Result<Option<MemoryId>, Malformed> {
        match self.bytes()? {
            [] => Ok(None),
            bytes => {
                let bytes = bytes.try_into().map_err(|_| Malformed("memory of 8 bytes expected"))?;
                Ok(memory_from_wire(u64::from_be_bytes(bytes)))
            }
        }
    }

    fn key(&mut self) -> Result<RegisterKey, Malformed> {
        Ok(RegisterKey::from_bytes(self.bytes()?))
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
    let memory = input.memory()?;
    let list = input.vid()?;
    let now_us = input.number()?;
    let answers = (0..input.array()?).map(|_| decode_answer(&mut input, now_us)).collect::<Result<_, _>>()?;
    let writes = Some(input.number()?).filter(|writes| *writes != 0);
    Ok(BatchReply::Done { memory, list, now_us, answers, writes })
}

fn decode_answer(input: &mut Reader<'_>, now_us: u64) -> Result<Option<Answer>, Malformed> {
    if input.is_number() {
        return match input.number()? {
            1 => Ok(Some(Answer::Accepted)),
            7 => Ok(Some(Answer::TooFarAhead)),
            8 => Ok(Some(Answer::NotServing)),
            10 => Ok(None),
            11 => Ok(Some(Answer::Wiping)),
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
        12 => Answer::Page(decode_page(input)?),
        13 => {
            let held = (0..input.array()?).map(|_| decode_held(input));
            Answer::Ballots(held.collect::<Result<_, Malformed>>()?)
        }
        14 => Answer::Forgotten(input.number()?),
        16 => Answer::Claimed(decode_claimed(input, now_us)?),
        17 => Answer::Census(decode_census(input)?),
        15 => Answer::Reported(decode_reported(input)?),
        9 => Answer::Failed { message: String::from_utf8_lossy(input.bytes()?).into_owned() },
        _ => return Err(Malformed("unknown answer")),
    };
    Ok(Some(answer))
}

fn decode_page(input: &mut Reader<'_>) -> Result<Page, Malformed> {
    let (cursor, floor) = (Bytes::copy_from_slice(input.bytes()?), input.ballot()?);
    let rows = (0..input.array()? / 2).map(|_| {
        let key = input.key()?;
        let raw = if input.is_false() { None } else { Some(Bytes::copy_from_slice(input.bytes()?)) };
        Ok((key, raw))
    });
    Ok(Page { cursor, rows: rows.collect::<Result<_, Malformed>>()?, floor })
}

fn decode_held(input: &mut Reader<'_>) -> Result<Option<Held>, Malformed> {
    if input.is_false() {
        return Ok(None);
    }
    input.array()?;
    let (ballot, promise) = (input.ballot()?, input.ballot()?);
    let (copied, listed, guard) = (input.number()? != 0, input.number()? != 0, input.number()?);
    Ok(Some(Held { ballot, promise, copied, listed, ripe: guard == 1, guarded: guard == 2 }))
}

fn decode_claimed(input: &mut Reader<'_>, now_us: u64) -> Result<Claimed, Malformed> {
    let items = (0..input.array()? / 2).map(|_| Ok((input.text()?, decode_record(input.bytes()?, now_us)?)));
    let items = items.collect::<Result<_, Malformed>>()?;
    let (floor, next_due) = (input.vid()?, input.signed()?);
    let next_due = u64::try_from(next_due).ok().map(Duration::from_millis);
    Ok(Claimed { items, floor, next_due, contended: input.number()? != 0 })
}

fn decode_census(input: &mut Reader<'_>) -> Result<Census, Malformed> {
    let (ready, delayed, leased) = (input.number()?, input.number()?, input.number()?);
    let (dead, done, first) = (input.number()?, input.number()?, input.text()?);
    let members = (0..input.array()?).map(|_| input.text()).collect::<Result<_, Malformed>>()?;
    let first = Some(first).filter(|first| !first.is_empty());
    Ok(Census { ready, delayed, leased, dead, done, first, members })
}

fn decode_reported(input: &mut Reader<'_>) -> Result<Reported, Malformed> {
    let told = (0..input.array()? / 4).map(|_| {
        let unreached = Duration::from_micros(input.number()?);
        Ok(Told { unreached, memory: input.memory()?, writes: input.number()?, notes: input.number()? })
    });
    let nodes = told.collect::<Result<_, Malformed>>()?;
    let (aside, writes, phase) = (input.memory()?, input.number()?, input.number()?);
    let join = JoinState {
        wiping: phase == WIPING,
        merged: input.number()?,
        idle: Duration::from_micros(input.number()?),
    };
    Ok(Reported { nodes, aside, writes, join: (phase != SERVING).then_some(join) })
}

/// Reads a record in its stored form and works out the ages.
///
/// # Errors
/// [`Malformed`] for anything that `accept` does not store.
pub fn decode_record(raw: &[u8], now_us: u64) -> Result<Record, Malformed> {
    let mut input = Reader(raw);
    let (promise, ballot, copied, listed) =
        (input.ballot()?, input.ballot()?, input.number()? != 0, input.number()? != 0);
    let place = decode_place(&mut input)?;
    let guard = Duration::from_millis(input.number()?);
    let ages = input
        .bytes()?
        .chunks(STAMP_LENGTH)
        .map(|stamp| decode_age(stamp, now_us))
        .collect::<Result<_, _>>()?;
    let vid = input.vid()?;
    let recent = decode_vids(vid, input.bytes()?)?;
    let value = Bytes::copy_from_slice(input.bytes()?);
    Ok(Record { promise, ballot, value, vid, recent, ages, copied, listed, guard, place })
}

/// Reads of a record in its stored form what shows whether others hold the same.
///
/// # Errors
/// [`Malformed`] for anything that `accept` does not store, as far as it is read.
pub fn show(raw: &Bytes) -> Result<Shown, Malformed> {
    let mut input = Reader(raw);
    let (promise, ballot, copied) = (input.ballot()?, input.ballot()?, input.number()? != 0);
    Ok(Shown { promise, ballot, copied, raw: raw.clone() })
}

impl Shown {
    /// The record, with ages by this clock of its node.
    ///
    /// # Errors
    /// [`Malformed`] for anything that `accept` does not store.
    pub fn record(&self, now_us: u64) -> Result<Record, Malformed> {
        decode_record(&self.raw, now_us)
    }
}

/// The vids that `vids_after` wrote.
fn decode_vids(first: Ballot, mut input: &[u8]) -> Result<Vec<Ballot>, Malformed> {
    let mut vids = Vec::with_capacity(limits::RECENT_MAX);
    let mut before = first;
    while !input.is_empty() {
        let (marked, after) = varint::u64(input).map_err(|_| Malformed("vid expected"))?;
        input = after;
        let (last, distance) = (before.token.get(), marked >> 2);
        let is_higher = marked & HIGHER != 0;
        let token = if is_higher { last.checked_add(distance) } else { last.checked_sub(distance) };
        let token = token.and_then(Token::new).ok_or(Malformed("token out of range"))?;
        let mut proposer = before.proposer;
        if marked & OTHER != 0 {
            let (bytes, rest) = input.split_first_chunk().ok_or(Malformed("proposer expected"))?;
            (proposer, input) = (ProposerId(u64::from_be_bytes(*bytes)), rest);
        }
        before = Ballot { token, proposer };
        vids.push(before);
    }
    Ok(vids)
}

/// A stamp, and since when it is held, in digits.
fn decode_age(stamp: &[u8], now_us: u64) -> Result<(Stamp, Duration), Malformed> {
    let (name, since) = stamp.split_at_checked(Stamp::BYTES).ok_or(Malformed("stamp expected"))?;
    let name = Stamp::from_bytes(name).ok_or(Malformed("name of a stamp expected"))?;
    let since = std::str::from_utf8(since).ok().and_then(|since| since.parse::<u64>().ok());
    let since = since.ok_or(Malformed("time of a stamp expected"))?;
    // Rounded down: an age must never be overstated.
    Ok((name, Duration::from_millis(now_us.saturating_sub(since) / 1000)))
}

fn decode_place(input: &mut Reader<'_>) -> Result<Option<Box<Place>>, Malformed> {
    let (place, due) = (input.text()?, Duration::from_millis(input.number()?));
    let mut letters = place.chars();
    let Some(set) = letters.next() else { return Ok(None) };
    Ok(Some(Box::new(Place { set, member: letters.as_str().to_owned(), due })))
}

#[cfg(test)]
mod tests {
    use super::super::encode::vids_after;
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_reply_makes_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }

        #[test]
        fn no_record_makes_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode_record(&bytes, 0);
            let _ = show(&bytes.clone().into());
            let _ = decode_vids(Ballot::ZERO, &bytes);
        }

        #[test]
        fn vids_are_read_as_they_were_written(numbers: Vec<(u64, u64)>) {
            let ballots: Vec<_> = numbers
                .iter()
                .map(|(token, proposer)| Ballot {
                    token: Token::new(token % (1 << 53)).expect("in range"),
                    proposer: ProposerId(proposer % 3),
                })
                .collect();
            let first = ballots.first().copied().unwrap_or(Ballot::ZERO);
            let written = vids_after(first, &ballots);
            assert_eq!(decode_vids(first, &written), Ok(ballots));
        }
    }
}
