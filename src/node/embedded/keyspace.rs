//! The data of an embedded server: what Redis would hold, with the few commands that the scripts use.
//!
//! A plain value: clone it to keep a snapshot, compare two, put one back. Everything is ordered, so that the same
//! commands give the same bytes. Scores of sorted sets are integers, as in [`crate::node::keyspace`]; others are refused.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::sorted_set::SortedSet;

/// What stands under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A string.
    Bytes(Bytes),
    /// A sorted set.
    Sorted(SortedSet),
}

/// All keys of one server, in byte order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyspace {
    entries: BTreeMap<Bytes, Entry>,
}

/// What a command answers, as RESP2 has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    Nil,
    Status(&'static str),
    Integer(i64),
    Bytes(Bytes),
    Array(Vec<Reply>),
    Error(String),
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const WRONG_NUMBER: &str = "ERR Wrong number of args calling Redis command from script";

fn wrong_type() -> Reply {
    Reply::Error(WRONG_TYPE.to_owned())
}

impl Keyspace {
    /// What stands under a key.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Puts something under a key, whatever was there.
    pub fn insert(&mut self, key: impl Into<Bytes>, entry: Entry) {
        self.entries.insert(key.into(), entry);
    }

    /// Removes a key; says whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        self.entries.remove(key).is_some()
    }

    /// All keys with what they hold, in byte order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Entry)> {
        self.entries.iter()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Runs a command that touches nothing but data; `None` for one that is not known here.
    pub(super) fn run(&mut self, name: &[u8], args: &[Bytes]) -> Option<Reply> {
        Some(match (name, args) {
            (b"GET", [key]) => self.get_string(key),
            (b"EXISTS", keys) if !keys.is_empty() => {
                Reply::Integer(keys.iter().filter(|key| self.entries.contains_key(*key)).count() as i64)
            }
            (b"SET", [key, value]) => {
                self.insert(key.clone(), Entry::Bytes(value.clone()));
                Reply::Status("OK")
            }
            (b"MGET", keys) if !keys.is_empty() => {
                // What is no string is nothing here, in Redis, too.
                let found = keys.iter().map(|key| match self.get_string(key) {
                    Reply::Bytes(bytes) => Reply::Bytes(bytes),
                    _ => Reply::Nil,
                });
                Reply::Array(found.collect())
            }
            (b"MSET", pairs) if !pairs.is_empty() && pairs.len().is_multiple_of(2) => {
                for pair in pairs.chunks_exact(2) {
                    self.insert(pair[0].clone(), Entry::Bytes(pair[1].clone()));
                }
                Reply::Status("OK")
            }
            (b"ZADD", [key, rows @ ..]) if !rows.is_empty() && rows.len().is_multiple_of(2) => {
                self.add_names(key, rows)
            }
            (b"ZREM", [key, names @ ..]) if !names.is_empty() => self.remove_names(key, names),
            (b"ZRANGEBYLEX", [key, min, max, limit, offset, count]) if limit.as_ref() == b"LIMIT" => {
                self.range(key, min, max, offset, count)
            }
            (b"ZRANGE", [key, first, last]) => self.range_by_rank(key, first, last, false),
            (b"ZRANGE", [key, first, last, scores]) if scores.as_ref() == b"WITHSCORES" => {
                self.range_by_rank(key, first, last, true)
            }
            (b"ZRANGEBYSCORE", [key, min, max, limit, offset, count])
                if min.as_ref() == b"-inf" && limit.as_ref() == b"LIMIT" && offset.as_ref() == b"0" =>
            {
                self.range_below(key, max, count)
            }
            (b"UNLINK", keys) if !keys.is_empty() => {
                Reply::Integer(keys.iter().map(|key| i64::from(self.remove(key))).sum())
            }
            (b"INCR", [key]) => self.increment(key),
            (b"ZCARD", [key]) => match self.sorted(key) {
                Ok(set) => Reply::Integer(set.map_or(0, SortedSet::len) as i64),
                Err(error) => error,
            },
            (b"SCAN", [cursor, matching, pattern, counting, count])
                if matching.as_ref() == b"MATCH" && counting.as_ref() == b"COUNT" =>
            {
                self.scan(cursor, pattern, count)
            }
            (
                b"GET" | b"MGET" | b"EXISTS" | b"SET" | b"MSET" | b"UNLINK" | b"INCR" | b"SCAN" | b"ZADD"
                | b"ZCARD" | b"ZREM" | b"ZRANGE" | b"ZRANGEBYLEX" | b"ZRANGEBYSCORE",
                _,
            ) => Reply::Error(WRONG_NUMBER.to_owned()),
            _ => return None,
        })
    }

    fn get_string(&self, key: &[u8]) -> Reply {
        match self.entries.get(key) {
            None => Reply::Nil,
            Some(Entry::Bytes(bytes)) => Reply::Bytes(bytes.clone()),
            Some(Entry::Sorted(_)) => wrong_type(),
        }
    }

    fn increment(&mut self, key: &Bytes) -> Reply {
        let old = match self.entries.get(key) {
            None => 0,
            Some(Entry::Bytes(bytes)) => match integer(bytes) {
                Some(number) => number,
                None => return Reply::Error("ERR value is not an integer or out of range".to_owned()),
            },
            Some(Entry::Sorted(_)) => return wrong_type(),
        };
        self.insert(key.clone(), Entry::Bytes((old + 1).to_string().into()));
        Reply::Integer(old + 1)
    }

    /// Keys that begin as the pattern does before its `*`, in byte order. Redis has an order of its own, and numbers as
    /// cursors; scripts take a cursor as it comes, and know of `0` alone, which is the beginning and the end.
    fn scan(&self, cursor: &[u8], pattern: &[u8], count: &[u8]) -> Reply {
        let Some(count) = integer(count).and_then(|count| usize::try_from(count).ok()) else {
            return Reply::Error("ERR value is not an integer or out of range".to_owned());
        };
        let Some(prefix) = pattern.strip_suffix(b"*") else {
            return Reply::Error("ERR only prefixes are known here".to_owned());
        };
        if count == 0 {
            return Reply::Error("ERR syntax error".to_owned());
        }
        let after = match cursor {
            b"0" => Bound::Unbounded,
            [b'k', key @ ..] => Bound::Excluded(Bytes::copy_from_slice(key)),
            _ => return Reply::Error("ERR invalid cursor".to_owned()),
        };
        // As in Redis, the count is of keys looked at, not of keys shown.
        let looked_at: Vec<&Bytes> =
            self.entries.range((after, Bound::Unbounded)).map(|(key, _)| key).take(count).collect();
        let next = match looked_at.last() {
            Some(last) if looked_at.len() == count => Bytes::from([b"k", last.as_ref()].concat()),
            _ => Bytes::from_static(b"0"),
        };
        let shown = looked_at.into_iter().filter(|key| key.starts_with(prefix)).cloned().map(Reply::Bytes);
        Reply::Array(vec![Reply::Bytes(next), Reply::Array(shown.collect())])
    }

    fn add_names(&mut self, key: &Bytes, rows: &[Bytes]) -> Reply {
        let scores: Option<Vec<_>> = rows.chunks_exact(2).map(|row| integer(&row[0])).collect();
        let Some(scores) = scores else {
            return Reply::Error("ERR only integers are known here as scores".to_owned());
        };
        match self.entries.entry(key.clone()).or_insert_with(|| Entry::Sorted(SortedSet::default())) {
            Entry::Sorted(set) => {
                let rows = rows.chunks_exact(2).zip(scores);
                Reply::Integer(rows.map(|(row, score)| i64::from(set.insert(row[1].clone(), score))).sum())
            }
            Entry::Bytes(_) => wrong_type(),
        }
    }

    fn remove_names(&mut self, key: &[u8], names: &[Bytes]) -> Reply {
        let Some(entry) = self.entries.get_mut(key) else { return Reply::Integer(0) };
        let Entry::Sorted(set) = entry else { return wrong_type() };
        let removed = names.iter().map(|name| i64::from(set.remove(name))).sum();
        // Redis keeps no empty set.
        if set.is_empty() {
            self.entries.remove(key);
        }
        Reply::Integer(removed)
    }

    /// The set under a key; `None` where there is nothing.
    fn sorted(&self, key: &[u8]) -> Result<Option<&SortedSet>, Reply> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Entry::Sorted(set)) => Ok(Some(set)),
            Some(Entry::Bytes(_)) => Err(wrong_type()),
        }
    }

    /// Members in byte order. Meaningful where all scores are the same.
    fn range(&self, key: &[u8], min: &Bytes, max: &Bytes, offset: &[u8], count: &[u8]) -> Reply {
        let (Some(offset), Some(count)) = (integer(offset), integer(count)) else {
            return Reply::Error("ERR value is not an integer or out of range".to_owned());
        };
        let (Some(min), Some(max)) = (lex_bound(min), lex_bound(max)) else {
            return Reply::Error("ERR min or max not valid string range item".to_owned());
        };
        let set = match self.sorted(key) {
            Ok(Some(set)) => set,
            Ok(None) => return Reply::Array(Vec::new()),
            Err(error) => return error,
        };
        let Ok(offset) = usize::try_from(offset) else { return Reply::Array(Vec::new()) };
        let inside = set.names().filter(|name| min.is_before(name) && max.is_after(name)).skip(offset);
        // A negative count means all.
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Reply::Array(inside.take(count).cloned().map(Reply::Bytes).collect())
    }

    /// Members by score, from one rank to another, counted from 0.
    fn range_by_rank(&self, key: &[u8], first: &[u8], last: &[u8], scores: bool) -> Reply {
        let rank = |text| integer(text).and_then(|rank| usize::try_from(rank).ok());
        let (Some(first), Some(last)) = (rank(first), rank(last)) else {
            return Reply::Error("ERR only ranks from the beginning are known here".to_owned());
        };
        let set = match self.sorted(key) {
            Ok(set) => set,
            Err(error) => return error,
        };
        let inside =
            set.into_iter().flat_map(SortedSet::iter).skip(first).take((last + 1).saturating_sub(first));
        let rows = inside.flat_map(|(score, name)| {
            let score = scores.then(|| Reply::Bytes(Bytes::from(score.to_string())));
            std::iter::once(Reply::Bytes(name.clone())).chain(score)
        });
        Reply::Array(rows.collect())
    }

    /// The first members whose score is below a bound, which is written `(BOUND`.
    fn range_below(&self, key: &[u8], bound: &[u8], count: &[u8]) -> Reply {
        let bound = bound.strip_prefix(b"(").and_then(integer);
        let count = integer(count).and_then(|count| usize::try_from(count).ok());
        let (Some(bound), Some(count)) = (bound, count) else {
            return Reply::Error("ERR min or max is not a float".to_owned());
        };
        let set = match self.sorted(key) {
            Ok(set) => set,
            Err(error) => return error,
        };
        let below = set.into_iter().flat_map(SortedSet::iter).take_while(|(score, _)| *score < bound);
        Reply::Array(below.take(count).map(|(_, name)| Reply::Bytes(name.clone())).collect())
    }
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// One end of a range as ZRANGEBYLEX takes it.
enum LexBound {
    Lowest,
    Highest,
    At(Bound<Bytes>),
}

fn lex_bound(text: &Bytes) -> Option<LexBound> {
    match text.first()? {
        b'-' if text.len() == 1 => Some(LexBound::Lowest),
        b'+' if text.len() == 1 => Some(LexBound::Highest),
        b'[' => Some(LexBound::At(Bound::Included(text.slice(1..)))),
        b'(' => Some(LexBound::At(Bound::Excluded(text.slice(1..)))),
        _ => None,
    }
}

impl LexBound {
    fn is_before(&self, name: &Bytes) -> bool {
        match self {
            LexBound::Lowest | LexBound::At(Bound::Unbounded) => true,
            LexBound::Highest => false,
            LexBound::At(Bound::Included(bound)) => bound <= name,
            LexBound::At(Bound::Excluded(bound)) => bound < name,
        }
    }

    fn is_after(&self, name: &Bytes) -> bool {
        match self {
            LexBound::Highest | LexBound::At(Bound::Unbounded) => true,
            LexBound::Lowest => false,
            LexBound::At(Bound::Included(bound)) => name <= bound,
            LexBound::At(Bound::Excluded(bound)) => name < bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(keyspace: &mut Keyspace, words: &[&str]) -> Reply {
        let args: Vec<Bytes> = words[1..].iter().map(|word| Bytes::from(word.to_string())).collect();
        keyspace.run(words[0].as_bytes(), &args).expect("known")
    }

    fn names(names: &[&str]) -> Reply {
        Reply::Array(names.iter().map(|name| Reply::Bytes(Bytes::from(name.to_string()))).collect())
    }

    #[test]
    fn a_set_of_names_is_ranged_in_byte_order_and_vanishes_when_empty() {
        let mut keyspace = Keyspace::default();
        for name in ["b", "a", "a/1", "c"] {
            assert_eq!(run(&mut keyspace, &["ZADD", "set", "0", name]), Reply::Integer(1));
        }
        assert_eq!(run(&mut keyspace, &["ZADD", "set", "0", "a"]), Reply::Integer(0));
        let mut range =
            |min, max, count| run(&mut keyspace, &["ZRANGEBYLEX", "set", min, max, "LIMIT", "0", count]);
        assert_eq!(range("-", "+", "-1"), names(&["a", "a/1", "b", "c"]));
        assert_eq!(range("[a", "(b", "10"), names(&["a", "a/1"]));
        assert_eq!(range("(a", "[b", "1"), names(&["a/1"]));
        assert_eq!(range("+", "-", "10"), names(&[]));
        assert!(matches!(range("a", "b", "10"), Reply::Error(_)));
        for name in ["b", "a", "a/1", "c"] {
            assert_eq!(run(&mut keyspace, &["ZREM", "set", name]), Reply::Integer(1));
        }
        assert!(keyspace.is_empty());
    }

    #[test]
    fn keys_exist_whatever_they_hold_and_count_as_often_as_they_are_named() {
        let mut keyspace = Keyspace::default();
        run(&mut keyspace, &["SET", "string", "x"]);
        run(&mut keyspace, &["ZADD", "set", "0", "x"]);
        assert_eq!(run(&mut keyspace, &["EXISTS", "string", "none", "set", "set"]), Reply::Integer(3));
        assert_eq!(run(&mut keyspace, &["EXISTS", "none"]), Reply::Integer(0));
        assert!(matches!(run(&mut keyspace, &["EXISTS"]), Reply::Error(_)));
    }

    #[test]
    fn a_set_is_ranged_by_score_and_then_by_name() {
        let mut keyspace = Keyspace::default();
        for (score, name) in [("20", "late"), ("10", "b"), ("10", "a"), ("0", "first")] {
            assert_eq!(run(&mut keyspace, &["ZADD", "set", score, name]), Reply::Integer(1));
        }
        assert_eq!(run(&mut keyspace, &["ZRANGE", "set", "0", "2"]), names(&["first", "a", "b"]));
        assert_eq!(run(&mut keyspace, &["ZRANGE", "set", "1", "1", "WITHSCORES"]), names(&["a", "10"]));
        assert_eq!(run(&mut keyspace, &["ZRANGE", "set", "4", "9"]), names(&[]));
        assert_eq!(run(&mut keyspace, &["ZRANGE", "none", "0", "9"]), names(&[]));
        let mut below =
            |max, count| run(&mut keyspace, &["ZRANGEBYSCORE", "set", "-inf", max, "LIMIT", "0", count]);
        assert_eq!(below("(20", "9"), names(&["first", "a", "b"]));
        assert_eq!(below("(10", "9"), names(&["first"]));
        assert_eq!(below("(21", "2"), names(&["first", "a"]));
        assert_eq!(run(&mut keyspace, &["ZADD", "set", "30", "first"]), Reply::Integer(0));
        assert_eq!(run(&mut keyspace, &["ZRANGE", "set", "0", "0"]), names(&["a"]));
        assert_eq!(run(&mut keyspace, &["ZCARD", "set"]), Reply::Integer(4));
        assert!(matches!(run(&mut keyspace, &["ZADD", "set", "1.5", "x"]), Reply::Error(_)));
    }

    #[test]
    fn a_scan_looks_at_so_many_keys_and_goes_on_where_it_was() {
        let mut keyspace = Keyspace::default();
        for key in ["a", "p:1", "p:2", "p:4", "z"] {
            run(&mut keyspace, &["SET", key, "x"]);
        }
        let scan = |keyspace: &mut Keyspace, cursor: &str, count| {
            let reply = run(keyspace, &["SCAN", cursor, "MATCH", "p:*", "COUNT", count]);
            let Reply::Array(reply) = reply else { panic!("{reply:?}") };
            let Reply::Bytes(cursor) = &reply[0] else { panic!("{reply:?}") };
            (String::from_utf8_lossy(cursor).into_owned(), reply[1].clone())
        };
        assert_eq!(scan(&mut keyspace, "0", "100"), ("0".into(), names(&["p:1", "p:2", "p:4"])));
        let (cursor, shown) = scan(&mut keyspace, "0", "2");
        assert_eq!(shown, names(&["p:1"]));
        // The key at the cursor may go meanwhile, and others come.
        keyspace.remove(b"p:1");
        run(&mut keyspace, &["SET", "p:3", "x"]);
        let (cursor, shown) = scan(&mut keyspace, &cursor, "3");
        assert_eq!(shown, names(&["p:2", "p:3", "p:4"]));
        assert_eq!(scan(&mut keyspace, &cursor, "3"), ("0".into(), names(&[])));
        for bad in [["0", "MATCH", "p:*", "COUNT", "0"], ["5", "MATCH", "p:*", "COUNT", "1"]] {
            assert!(matches!(run(&mut keyspace, &[&["SCAN"][..], &bad].concat()), Reply::Error(_)));
        }
    }

    #[test]
    fn a_command_on_the_wrong_type_is_refused() {
        let mut keyspace = Keyspace::default();
        run(&mut keyspace, &["SET", "string", "x"]);
        run(&mut keyspace, &["ZADD", "set", "0", "x"]);
        assert_eq!(run(&mut keyspace, &["GET", "set"]), wrong_type());
        assert_eq!(run(&mut keyspace, &["ZADD", "string", "0", "x"]), wrong_type());
        assert_eq!(run(&mut keyspace, &["ZREM", "string", "x"]), wrong_type());
        assert_eq!(run(&mut keyspace, &["SET", "set", "x"]), Reply::Status("OK"));
    }
}
