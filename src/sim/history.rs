//! [`History`]: what clients asked of each key, when, and what became of it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::runtime::Moment;

/// What became of a call, as far as its client can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<A> {
    /// It is under way. At the end of a run that is as good as unknown.
    UnderWay,
    /// It took effect once, and this is the answer.
    Answered(A),
    /// It took no effect and never will; why.
    NotApplied(String),
    /// It may have taken effect, may at any later time, or never; why nobody knows.
    Unknown(String),
}

/// A client's call.
#[derive(Clone, Debug)]
pub struct Call<Q, A> {
    /// Whose it is.
    pub client: u32,
    /// What was asked.
    pub asked: Q,
    /// When it began.
    pub start: Moment,
    /// When its fate was known; for one that is under way, nothing.
    pub end: Option<Moment>,
    /// Where its start stands among all starts and ends of the history. Moments can be alike; these are not.
    pub began: u64,
    /// The same for its end.
    pub ended: Option<u64>,
    /// What became of it.
    pub fate: Fate<A>,
}

/// Names a call of a history.
#[derive(Clone, Debug)]
pub struct CallId {
    key: String,
    number: usize,
}

/// The calls of one key, in the order of their starts.
#[derive(Clone, Debug)]
pub struct Calls<Q, A>(pub Vec<Call<Q, A>>);

/// The calls of all keys.
#[derive(Clone, Debug)]
pub struct History<Q, A> {
    keys: BTreeMap<String, Calls<Q, A>>,
    events: u64,
}

impl<Q, A> Default for History<Q, A> {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), events: 0 }
    }
}

impl<Q, A> History<Q, A> {
    /// A client begins a call.
    pub fn begin(&mut self, key: &str, client: u32, asked: Q, now: Moment) -> CallId {
        let began = self.event();
        let calls = self.keys.entry(key.to_owned()).or_insert_with(|| Calls(Vec::new()));
        let number = calls.0.len();
        let fate = Fate::UnderWay;
        calls.0.push(Call { client, asked, start: now, end: None, began, ended: None, fate });
        CallId { key: key.to_owned(), number }
    }

    /// The client learns what became of it, or no longer waits for it.
    pub fn end(&mut self, call: CallId, fate: Fate<A>, now: Moment) {
        let ended = self.event();
        let calls = self.keys.get_mut(&call.key).expect("the call was begun in this history");
        let call = &mut calls.0[call.number];
        assert!(call.ended.is_none(), "a call ends once");
        (call.end, call.ended, call.fate) = (Some(now), Some(ended), fate);
    }

    /// The keys with their calls.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Calls<Q, A>)> {
        self.keys.iter().map(|(key, calls)| (key.as_str(), calls))
    }

    /// How many calls of a key are such.
    pub fn count(&self, key: &str, such: impl Fn(&Call<Q, A>) -> bool) -> usize {
        self.keys.get(key).map_or(0, |calls| calls.0.iter().filter(|call| such(call)).count())
    }

    /// How many calls there are.
    pub fn len(&self) -> usize {
        self.keys.values().map(|calls| calls.0.len()).sum()
    }

    /// Whether nobody ever called.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }
}

impl<A: fmt::Display> fmt::Display for Fate<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnderWay => write!(f, "? still under way"),
            Self::Answered(answer) => write!(f, "= {answer}"),
            Self::NotApplied(why) => write!(f, "x {why}"),
            Self::Unknown(why) => write!(f, "? {why}"),
        }
    }
}

impl<Q: fmt::Display, A: fmt::Display> Calls<Q, A> {
    /// One line per call, by start, with a mark before it.
    pub fn table(&self, mark: impl Fn(usize) -> String) -> String {
        let seconds = |moment: Moment| format!("{:.6}", moment.since(Moment::ZERO).as_secs_f64());
        let rows = self.0.iter().enumerate().map(|(number, call)| {
            let end = call.end.map_or_else(|| "-".to_owned(), seconds);
            let (client, asked) = (format!("c{}", call.client), call.asked.to_string());
            [mark(number), number.to_string(), client, seconds(call.start), end, asked, call.fate.to_string()]
        });
        let head =
            ["", "call", "client", "start", "end", "asked", "fate: = answer, x not applied, ? unknown"];
        let rows: Vec<[String; 7]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        let line = |row: &[String; 7]| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        };
        rows.iter().map(line).collect()
    }

    /// Why a checker complains: the table, with the order that explains the most answers and ends in `state`, and with the
    /// first call whose answer can't be explained, where that was found.
    pub fn unexplained(
        &self,
        whose: &str,
        order: &[usize],
        state: &dyn fmt::Display,
        first: Option<usize>,
    ) -> String {
        let mut words = format!("no order explains the calls of {whose}.\n");
        match first {
            Some(number) => {
                let _ = writeln!(
                    words,
                    "Up to the answer of call {number} (marked !!) there is one, with it none."
                );
            }
            None => {
                words.push_str("Which answer is the first that can't be explained took too long to find.\n")
            }
        }
        let _ = writeln!(
            words,
            "The first column is the order that explains the most answers; it ends with {state}.\n"
        );
        let mark = |number: usize| {
            let place =
                order.iter().position(|at| *at == number).map_or_else(String::new, |at| at.to_string());
            if Some(number) == first { format!("!! {place}") } else { place }
        };
        words.push_str(&self.table(mark));
        words
    }
}

impl<Q: fmt::Display, A: fmt::Display> fmt::Display for Calls<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table(|_| String::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_history_reads_as_a_table_by_start() {
        let at = |ms| Moment::from_start(Duration::from_millis(ms));
        let mut history: History<&str, u8> = History::default();
        let one = history.begin("k", 1, "add 2", at(1_000));
        let two = history.begin("k", 12, "read", at(1_500));
        let three = history.begin("k", 3, "add 3", at(1_500));
        history.end(two, Fate::Answered(2), at(1_501));
        history.end(three, Fate::NotApplied("no quorum".into()), at(1_600));
        history.end(one, Fate::Unknown("dropped".into()), at(2_000));
        history.begin("k", 4, "read", at(9_000));
        let (_, calls) = history.keys().next().unwrap();
        let expected = "
  call  client  start     end       asked  fate: = answer, x not applied, ? unknown
  0     c1      1.000000  2.000000  add 2  ? dropped
  1     c12     1.500000  1.501000  read   = 2
  2     c3      1.500000  1.600000  add 3  x no quorum
  3     c4      9.000000  -         read   ? still under way
";
        assert_eq!(format!("\n{calls}"), expected);
        assert!(calls.0[1].ended < calls.0[2].ended && calls.0[1].began < calls.0[2].began);
    }
}
