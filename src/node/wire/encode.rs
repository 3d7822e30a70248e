//! What goes out: operations and batches.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use unsigned_varint::encode as varint;

use crate::mutant::{self, Mutant};
use crate::node::keyspace::{KIND_ITEM, RECORD_PREFIX};
use crate::node::operation::{Accept, Forgotten, Operation, Place, RegisterKey, Report};
use crate::token::Ballot;

const READ: u8 = 1;
const PREPARE: u8 = 2;
const ACCEPT: u8 = 3;
const LIST: u8 = 4;
const FOUND: u8 = 5;
const BEGIN_JOIN: u8 = 6;
const MERGE: u8 = 7;
const END_JOIN: u8 = 8;
const PAGE: u8 = 9;
const BALLOTS: u8 = 10;
const FORGET: u8 = 11;
const REPORT: u8 = 12;
const MISSED: u8 = 13;
const CLAIM: u8 = 14;
const CENSUS: u8 = 15;

const MEMBERS: &[u8] = b"m:";
/// In a record: it came by a round.
const NOT_COPIED: u64 = 0;

// Which parts of the script an operation wants (`records.lua`).
const UPKEEP: u8 = 1;
const QUEUES: u8 = 2;
const PROMISES: u8 = 4;
const PLACES: u8 = 8;
const HINTS: u8 = 16;
const STAMPS: u8 = 32;

// Marks of a vid after another.
pub(super) const HIGHER: u64 = 1;
pub(super) const OTHER: u64 = 2;

/// The slot of the member list's record; those of a batch's keys come after the three that are always read.
const MEMBERS_SLOT: usize = 2;
const FIRST_SLOT: usize = 4;

/// One operation as MessagePack, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    code: u8,
    /// The record that it is about, if it is about one.
    key: Option<RegisterKey>,
    /// What else it needs.
    bytes: Bytes,
    /// Which parts of the script it wants.
    wants: u8,
}

impl Encoded {
    /// Its length in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.key.as_ref().map_or(0, |key| RECORD_PREFIX.len() + key.as_bytes().len())
    }

    /// Whether the script writes all that came before it and reads anew what comes after: it costs least at the end of a batch.
    pub fn runs_alone(&self) -> bool {
        !matches!(self.code, READ | PREPARE | ACCEPT)
    }

    /// The register that it stores a value of, if it is an accept: a node that misses it has to be brought it later.
    pub fn accepts(&self) -> Option<&RegisterKey> {
        self.key.as_ref().filter(|_| self.code == ACCEPT)
    }

    /// So many bytes of nothing, for tests of what only looks at sizes.
    #[cfg(test)]
    pub fn of_size(bytes: usize) -> Self {
        Self { code: LIST, key: None, bytes: vec![0; bytes].into(), wants: UPKEEP }
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

    /// One string of several pieces.
    fn bytes_of(&mut self, pieces: &[&[u8]]) -> &mut Self {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        rmp::encode::write_str_len(&mut self.0, length as u32).expect(Self::FITS);
        for piece in pieces {
            self.0.extend_from_slice(piece);
        }
        self
    }

    fn millis(&mut self, length: Duration) -> &mut Self {
        self.number(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
    }

    fn nothing(&mut self) -> &mut Self {
        rmp::encode::write_bool(&mut self.0, false).expect(Self::FITS);
        self
    }

    /// A recovery: token and proposer, or false.
    fn recovery(&mut self, recovery: Option<Ballot>) -> &mut Self {
        match recovery {
            Some(ballot) => self.array(2).ballot(ballot),
            None => self.nothing(),
        }
    }

    fn keys(&mut self, keys: &[RegisterKey]) -> &mut Self {
        self.array(keys.len());
        for key in keys {
            self.bytes(key.as_bytes());
        }
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
            Operation::Read { .. } => {}
            Operation::Prepare { ballot, soft, .. } => {
                out.ballot(*ballot).number((*soft).into());
            }
            Operation::Accept(accept) => encode_accept(&mut out, accept),
            Operation::List { index, prefix, after, limit } => {
                let (min, max) = lex_range(prefix, after);
                out.array(5).number(LIST.into()).bytes(index.as_bytes());
                out.bytes(&min).bytes(&max).number(*limit as u64);
            }
            Operation::Claim(claim) => {
                out.array(7).number(CLAIM.into()).bytes(claim.queue.as_bytes());
                // None would be all, as a range.
                out.number(claim.count.max(1) as u64).number(claim.bytes as u64);
                out.number(claim.mark.as_millis() as u64).ballot(claim.ballot);
            }
            Operation::Census { queue, set, limit } => {
                out.array(4).number(CENSUS.into()).bytes(queue.as_bytes());
                out.bytes(set.to_string().as_bytes()).number(*limit as u64);
            }
            Operation::Found { founding, memory } => {
                out.array(5).number(FOUND.into()).bytes(&founding.to_bytes()).ballot(*founding);
                out.bytes(&memory.to_be_bytes());
            }
            Operation::BeginJoin { list, memory, recovery } => {
                out.array(4).number(BEGIN_JOIN.into()).bytes(&list.to_bytes());
                out.bytes(&memory.0.to_be_bytes()).recovery(*recovery);
            }
            Operation::Merge { memory, floor, rows } => {
                out.array(5).number(MERGE.into()).bytes(&memory.0.to_be_bytes()).ballot(*floor);
                out.array(2 * rows.len());
                for (key, raw) in rows {
                    out.bytes(key.as_bytes()).bytes(raw);
                }
            }
            Operation::EndJoin { memory } => {
                out.array(2).number(END_JOIN.into()).bytes(&memory.0.to_be_bytes());
            }
            Operation::Page(page) => {
                out.array(7).number(PAGE.into()).bytes(&page.cursor).number(page.count as u64);
                out.number(page.bytes as u64).recovery(page.recovery).number(page.with_values.into());
                out.keys(&page.keys);
            }
            Operation::Ballots { keys } => {
                out.array(2).number(BALLOTS.into()).keys(keys);
            }
            Operation::Forget { records } => {
                out.array(2).number(FORGET.into()).array(4 * records.len());
                for Forgotten { key, ballot, promise } in records {
                    out.bytes(key.as_bytes()).ballot(*ballot).number(promise.get());
                }
            }
            Operation::Report(report) => encode_report(&mut out, report),
            Operation::Missed { node, done, limit } => {
                out.array(4).number(MISSED.into()).number(node.0.into()).keys(done).number(*limit as u64);
            }
        }
        Encoded { code: self.code(), key: self.key().cloned(), bytes: out.0.into(), wants: self.wants() }
    }
}

impl Operation {
    /// The record that it is about, if it is about one.
    fn key(&self) -> Option<&RegisterKey> {
        match self {
            Operation::Read { key } | Operation::Prepare { key, .. } => Some(key),
            Operation::Accept(accept) => Some(&accept.key),
            _ => None,
        }
    }

    fn wants(&self) -> u8 {
        match self {
            Operation::Read { .. } | Operation::Prepare { .. } => PROMISES,
            Operation::Accept(accept) => {
                let is_item = accept.key.as_bytes().first() == Some(&(KIND_ITEM as u8));
                let hints = accept.announce || !accept.wake.is_empty();
                let stamps = !accept.stamps.is_empty();
                (u8::from(is_item) * PLACES) | (u8::from(hints) * HINTS) | (u8::from(stamps) * STAMPS)
            }
            Operation::Claim(_) | Operation::Census { .. } => QUEUES | PROMISES | PLACES,
            _ => UPKEEP | PROMISES | PLACES,
        }
    }

    fn code(&self) -> u8 {
        match self {
            Operation::Read { .. } => READ,
            Operation::Prepare { .. } => PREPARE,
            Operation::Accept(_) => ACCEPT,
            Operation::List { .. } => LIST,
            Operation::Claim(_) => CLAIM,
            Operation::Census { .. } => CENSUS,
            Operation::Found { .. } => FOUND,
            Operation::BeginJoin { .. } => BEGIN_JOIN,
            Operation::Merge { .. } => MERGE,
            Operation::EndJoin { .. } => END_JOIN,
            Operation::Page(_) => PAGE,
            Operation::Ballots { .. } => BALLOTS,
            Operation::Forget { .. } => FORGET,
            Operation::Report(_) => REPORT,
            Operation::Missed { .. } => MISSED,
        }
    }
}

fn encode_report(out: &mut Writer, report: &Report) {
    out.array(3).number(REPORT.into()).array(3 * report.nodes.len());
    for news in &report.nodes {
        out.number(news.reached.into());
        match news.memory {
            Some(memory) => out.bytes(&memory.0.to_be_bytes()),
            None => out.bytes(&[]),
        };
        out.number(news.writes);
    }
    out.array(2 * report.missed.len());
    for (node, keys) in &report.missed {
        out.number(node.0.into()).keys(keys);
    }
}

/// Token, ballot and all that the node needs to know of the record; and the record itself but for its stamps, in two parts.
fn encode_accept(out: &mut Writer, accept: &Accept) {
    out.0.reserve(accept.value.len() + 512);
    let place =
        accept.place.as_ref().map_or_else(String::new, |Place { set, member, .. }| format!("{set}{member}"));
    let due = accept.place.as_ref().map_or(Duration::ZERO, |place| place.due);
    let next_promised = accept.next > accept.ballot.token && !mutant::is_on(Mutant::NextNotPromised);
    let promise = if next_promised { accept.next } else { accept.ballot.token };

    let mut head = Writer(Vec::with_capacity(64 + place.len()));
    head.ballot(Ballot { token: promise, ..accept.ballot }).ballot(accept.ballot);
    head.number(NOT_COPIED)
        .number(accept.listed.into())
        .bytes(place.as_bytes())
        .millis(due)
        .millis(accept.guard);

    let recent = vids_after(accept.vid, &accept.recent);
    let mut tail = Writer(Vec::with_capacity(accept.value.len() + recent.len() + 32));
    tail.bytes(&vid_bytes(accept.vid)).bytes(&recent).bytes(&accept.value);

    let stamps: Vec<u8> = accept.stamps.iter().flat_map(|stamp| stamp.to_bytes()).collect();
    let wake: Vec<_> = accept.wake.iter().map(ToString::to_string).collect();
    out.ballot(accept.ballot).number(accept.next.get()).bytes(&head.0).bytes(&stamps).bytes(&tail.0);
    out.number(accept.listed.into()).bytes(place.as_bytes()).millis(due);
    out.number(accept.announce.into()).bytes(wake.join(" ").as_bytes());
}

/// Vids after one that is known. Each is a varint (LEB128) of its token's distance from the one before, times
/// four, with [`HIGHER`] where it is higher and [`OTHER`] where its proposer is another; that follows then. A server hashes
/// every byte of a record several times, and most vids are of one daemon and made in a row.
pub(super) fn vids_after(first: Ballot, vids: &[Ballot]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 * vids.len());
    let mut before = first;
    for vid in vids {
        let (token, last) = (vid.token.get(), before.token.get());
        let is_other = vid.proposer != before.proposer;
        let marks = u64::from(token > last) * HIGHER + u64::from(is_other) * OTHER;
        let marked = (token.abs_diff(last) << 2) | marks;
        out.extend_from_slice(varint::u64(marked, &mut varint::u64_buffer()));
        if is_other {
            out.extend_from_slice(&vid.proposer.0.to_be_bytes());
        }
        before = *vid;
    }
    out
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

/// A whole batch: the list that the daemon goes by, and the operations. `records.lua` says in which order.
pub fn encode<'a>(list: Ballot, operations: impl ExactSizeIterator<Item = &'a Encoded> + Clone) -> Bytes {
    let bytes: usize = operations.clone().map(|operation| operation.size() + 4).sum();
    let mut slots: HashMap<&[u8], usize> = HashMap::with_capacity(operations.len());
    let mut keys = Writer(Vec::with_capacity(bytes + 32));
    let mut codes = Writer(Vec::with_capacity(4 * operations.len()));
    let mut wanted = 0;
    for operation in operations.clone() {
        let slot = match operation.key.as_ref().map(RegisterKey::as_bytes) {
            None => 0,
            Some(MEMBERS) => MEMBERS_SLOT,
            Some(key) => {
                let next = FIRST_SLOT + slots.len();
                *slots.entry(key).or_insert_with(|| {
                    keys.bytes_of(&[RECORD_PREFIX.as_bytes(), key]);
                    next
                })
            }
        };
        codes.number(operation.code.into()).number(slot as u64);
        wanted |= operation.wants;
    }
    let mut out = Writer(Vec::with_capacity(bytes + 32));
    out.bytes(&vid_bytes(list))
        .number(slots.len() as u64)
        .number(operations.len() as u64)
        .number(wanted.into());
    out.0.extend_from_slice(&keys.0);
    out.0.extend_from_slice(&codes.0);
    for operation in operations {
        out.0.extend_from_slice(&operation.bytes);
    }
    out.0.into()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn absent_travels_as_the_empty_string() {
        let read = Operation::Read { key: RegisterKey::members() }.encode();
        let batch = encode(Ballot::ZERO, [&read].into_iter());
        assert_eq!(&batch[..], &[0xa0, 0, 1, PROMISES, READ, MEMBERS_SLOT as u8]);
    }
}
