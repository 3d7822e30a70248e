//! What goes out: operations and batches.

use bytes::Bytes;

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

/// One operation as MessagePack, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    bytes: Bytes,
    accepts: Option<RegisterKey>,
}

impl Encoded {
    /// Its length in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The register that it stores a value of, if it is an accept: a node that misses it has to be brought it later.
    pub fn accepts(&self) -> Option<&RegisterKey> {
        self.accepts.as_ref()
    }

    /// So many bytes of nothing, for tests of what only looks at sizes.
    #[cfg(test)]
    pub fn of_size(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes].into(), accepts: None }
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
        let accepts = match self {
            Operation::Accept(accept) => Some(accept.key.clone()),
            _ => None,
        };
        Encoded { bytes: out.0.into(), accepts }
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

fn encode_accept(out: &mut Writer, accept: &Accept) {
    out.0.reserve(accept.value.len() + 256);
    out.array(14).number(ACCEPT.into()).bytes(accept.key.as_bytes()).ballot(accept.ballot);
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
    match &accept.place {
        Some(Place { set, member, due }) => {
            out.array(3).bytes(set.to_string().as_bytes()).bytes(member.as_bytes());
            out.number(u64::try_from(due.as_millis()).unwrap_or(u64::MAX));
        }
        None => {
            out.nothing();
        }
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
    let bytes: usize = operations.clone().map(|operation| operation.bytes.len()).sum();
    let mut out = Writer(Vec::with_capacity(bytes + 32));
    out.array(2).bytes(&vid_bytes(list)).array(operations.len());
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
        assert_eq!(&batch[..3], &[0x92, 0xa0, 0x91]);
    }
}
