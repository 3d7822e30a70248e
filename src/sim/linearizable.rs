//! [`check`]: whether calls that overlapped can be put in one order that explains every answer.
//!
//! Linearizability (Herlihy and Wing 1990): each call takes effect at one moment between its start and its end. The
//! check is the search of Wing and Gong (1993) with the memory of Lowe (2017): take a call that may come next, see
//! whether the model allows its answer, go on from there, and never search twice from where the same calls were done
//! and left the same state. porcupine (github.com/anishathalye/porcupine) has shown how well that works in practice.
//!
//! What differs here are *open* calls: calls without an answer, that took effect at some moment after their start, or
//! never. Ten of them make a thousand sets, so the search avoids them where it can:
//!
//! * They are tried after those with an answer, and first only few of them in a row: most of the time nothing, or one
//!   late write, lies between two answers. Only the last pass, without that bound, says that there is no order.
//! * One that changes nothing is not tried: it is as good as never.
//! * Where the same answered calls have led to the same state with fewer open ones, nothing new can come: those that
//!   are left can do all that these can.
//! * Of two that are alike the earlier is used first.
//!
//! Who runs out of steps says so: [`Verdict::Undecided`] is neither a yes nor a no.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;

/// What the calls are made to, as if there were only one caller.
pub trait Model {
    /// What calls change.
    type State: Clone + Debug + Eq + Hash;
    /// A call with its answer.
    type Call;

    /// The state before the first call.
    fn initial(&self) -> Self::State;

    /// Every state that the call can lead to if it takes effect in `state`: none where its answer contradicts that. Of
    /// an `open` call the answer does not matter.
    fn step(&self, state: &Self::State, call: &Self::Call, open: bool) -> Vec<Self::State>;

    /// Whether two open calls do the same, whenever they take effect. `false` is always right, and slower.
    fn are_alike(&self, one: &Self::Call, other: &Self::Call) -> bool;
}

/// A call, and when it was under way: places in the order of all starts and ends, no two of them alike.
#[derive(Debug)]
pub struct Timed<'a, C> {
    /// The call.
    pub call: &'a C,
    /// The place of its start.
    pub began: u64,
    /// The place of its end; `None` for an open call.
    pub ended: Option<u64>,
}

impl<C> Clone for Timed<'_, C> {
    fn clone(&self) -> Self {
        Self { call: self.call, began: self.began, ended: self.ended }
    }
}

/// What [`check`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<S> {
    /// There is an order.
    Linearizable {
        /// It, by the calls' places in the argument. Open calls that are missing took no effect.
        order: Vec<usize>,
        /// How often the model was asked.
        steps: u64,
    },
    /// There is none.
    Violated {
        /// The order that explains the most answers.
        order: Vec<usize>,
        /// The state that it ends with.
        state: S,
        /// How often the model was asked.
        steps: u64,
    },
    /// The steps were used up.
    Undecided {
        /// How often the model was asked.
        steps: u64,
    },
}

/// So many open calls in a row are tried, one pass after the other. The last is no bound.
const OPEN_IN_A_ROW: [usize; 3] = [1, 3, usize::MAX];

/// Looks for an order of the calls, asking the model at most `steps_max` times.
pub fn check<M: Model>(model: &M, calls: &[Timed<'_, M::Call>], steps_max: u64) -> Verdict<M::State> {
    let mut search = Search::new(model, calls, steps_max);
    for open_in_a_row in OPEN_IN_A_ROW {
        match search.pass(open_in_a_row) {
            End::Found(order) => return Verdict::Linearizable { order, steps: search.steps },
            End::OutOfSteps => return Verdict::Undecided { steps: search.steps },
            End::Exhausted if open_in_a_row >= search.open.len() => break,
            End::Exhausted => {}
        }
    }
    let (order, state) = search.best;
    Verdict::Violated { order, state, steps: search.steps }
}

/// Of a history that has no order, the call whose answer is the first, by the time of the ends, that can't be
/// explained: without that end and all later ones there is an order. `None` where the steps did not suffice.
pub fn first_unexplained<M: Model>(model: &M, calls: &[Timed<'_, M::Call>], steps_max: u64) -> Option<usize> {
    let mut ends: Vec<(u64, usize)> =
        calls.iter().enumerate().filter_map(|(at, timed)| Some((timed.ended?, at))).collect();
    ends.sort_unstable();
    // A beginning of a history that has an order has one too, so the edge can be found by halving.
    let is_explained = |last: u64| {
        let until = calls.iter().filter(|timed| timed.began < last).map(|timed| {
            let ended = timed.ended.filter(|end| *end <= last);
            Timed { ended, ..timed.clone() }
        });
        match check(model, &until.collect::<Vec<_>>(), steps_max) {
            Verdict::Linearizable { .. } => Some(true),
            Verdict::Violated { .. } => Some(false),
            Verdict::Undecided { .. } => None,
        }
    };
    let (mut low, mut high) = (0, ends.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if is_explained(ends[middle].0)? { low = middle + 1 } else { high = middle }
    }
    ends.get(low).map(|(_, at)| *at)
}

/// A set of small numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Set(Vec<u64>);

impl Set {
    fn new(end: usize) -> Self {
        Self(vec![0; end.div_ceil(64)])
    }

    fn has(&self, number: usize) -> bool {
        self.0[number / 64] & (1 << (number % 64)) != 0
    }

    fn flip(&mut self, number: usize) {
        self.0[number / 64] ^= 1 << (number % 64);
    }

    fn is_within(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(one, other)| one & !other == 0)
    }
}

/// A call that may come next: a place in [`Search::closed`] or in [`Search::open`].
#[derive(Clone, Copy, Debug)]
enum Choice {
    Closed(usize),
    Open(usize),
}

enum End {
    Found(Vec<usize>),
    Exhausted,
    OutOfSteps,
}

/// A place of the search.
struct Frame<S> {
    state: S,
    /// The call that led here; `None` at the start.
    by: Option<Choice>,
    /// All closed calls before this one are done.
    first: usize,
    /// So many open calls led here, one after the other.
    open_in_a_row: usize,
    choices: Vec<Choice>,
    tried: usize,
    /// Where the choice tried last leads to, as far as it has not been followed.
    successors: Vec<S>,
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Timed<'a, M::Call>],
    /// Places in `calls` of those with an answer, by their start.
    closed: Vec<usize>,
    /// Places in `calls` of those without, by their start.
    open: Vec<usize>,
    /// For each open call the latest before it that is alike.
    alike: Vec<Option<usize>>,
    steps: u64,
    steps_max: u64,
    best: (Vec<usize>, M::State),
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, calls: &'a [Timed<'a, M::Call>], steps_max: u64) -> Self {
        let mut by_start: Vec<usize> = (0..calls.len()).collect();
        by_start.sort_unstable_by_key(|at| calls[*at].began);
        let (closed, open): (Vec<_>, Vec<_>) =
            by_start.into_iter().partition(|at| calls[*at].ended.is_some());
        let are_alike = |one: usize, other: usize| model.are_alike(calls[one].call, calls[other].call);
        let alike = (0..open.len()).map(|n| (0..n).rev().find(|earlier| are_alike(open[*earlier], open[n])));
        let alike = alike.collect();
        let best = (Vec::new(), model.initial());
        Self { model, calls, closed, open, alike, steps: 0, steps_max, best }
    }

    fn pass(&mut self, open_in_a_row_max: usize) -> End {
        let (mut done, mut used) = (Set::new(self.closed.len()), Set::new(self.open.len()));
        // For the closed calls done and the state, the sets of open calls used on the way. Only ever looked up, so its
        // order does not matter.
        let mut seen: HashMap<(Set, M::State), Vec<Set>> = HashMap::new();
        let (mut count, mut best_count) = (0, 0);
        let root = self.frame(self.model.initial(), None, 0, 0, open_in_a_row_max, (&done, &used));
        let mut stack = vec![root];
        while let Some(frame) = stack.last_mut() {
            if frame.first == self.closed.len() {
                return End::Found(self.order(&stack));
            }
            let Some((choice, state)) = self.next(frame) else {
                if self.steps >= self.steps_max {
                    return End::OutOfSteps;
                }
                match frame.by {
                    Some(Choice::Closed(number)) => {
                        done.flip(number);
                        count -= 1;
                    }
                    Some(Choice::Open(number)) => used.flip(number),
                    None => {}
                }
                stack.pop();
                continue;
            };
            let (mut first, mut open_in_a_row) = (frame.first, 0);
            match choice {
                Choice::Closed(number) => {
                    done.flip(number);
                    count += 1;
                    while first < self.closed.len() && done.has(first) {
                        first += 1;
                    }
                }
                Choice::Open(number) => {
                    used.flip(number);
                    open_in_a_row = frame.open_in_a_row + 1;
                }
            }
            let ways = seen.entry((done.clone(), state.clone())).or_default();
            if ways.iter().any(|way| way.is_within(&used)) {
                match choice {
                    Choice::Closed(number) => {
                        done.flip(number);
                        count -= 1;
                    }
                    Choice::Open(number) => used.flip(number),
                }
                continue;
            }
            ways.retain(|way| !used.is_within(way));
            ways.push(used.clone());
            let sets = (&done, &used);
            let next = self.frame(state, Some(choice), first, open_in_a_row, open_in_a_row_max, sets);
            stack.push(next);
            if count > best_count {
                best_count = count;
                let state = stack.last().expect("it was pushed a moment ago").state.clone();
                self.best = (self.order(&stack), state);
            }
        }
        End::Exhausted
    }

    /// A place of the search with the calls that may come next: those that began before every call that is not done
    /// has ended.
    fn frame(
        &self,
        state: M::State,
        by: Option<Choice>,
        first: usize,
        open_in_a_row: usize,
        open_in_a_row_max: usize,
        (done, used): (&Set, &Set),
    ) -> Frame<M::State> {
        let mut until = u64::MAX;
        let mut next: Vec<(u64, usize)> = Vec::new();
        for number in first..self.closed.len() {
            let timed = &self.calls[self.closed[number]];
            // By the order of starts whatever ends before this start has been met already.
            if timed.began > until {
                break;
            }
            if !done.has(number) {
                let end = timed.ended.expect("closed calls have ended");
                until = until.min(end);
                next.push((end, number));
            }
        }
        next.sort_unstable();
        let mut choices: Vec<Choice> = next.into_iter().map(|(_, number)| Choice::Closed(number)).collect();
        if open_in_a_row < open_in_a_row_max {
            let may_come = |number: &usize| {
                !used.has(*number)
                    && self.calls[self.open[*number]].began < until
                    && self.alike[*number].is_none_or(|earlier| used.has(earlier))
            };
            choices.extend((0..self.open.len()).filter(may_come).map(Choice::Open));
        }
        Frame { state, by, first, open_in_a_row, choices, tried: 0, successors: Vec::new() }
    }

    /// The next way on from a place; `None` where there is none, or no step is left.
    fn next(&mut self, frame: &mut Frame<M::State>) -> Option<(Choice, M::State)> {
        loop {
            if let Some(state) = frame.successors.pop() {
                return Some((frame.choices[frame.tried - 1], state));
            }
            let choice = *frame.choices.get(frame.tried)?;
            if self.steps >= self.steps_max {
                return None;
            }
            self.steps += 1;
            frame.tried += 1;
            let call = self.calls[self.place(choice)].call;
            frame.successors = match choice {
                Choice::Closed(_) => self.model.step(&frame.state, call, false),
                Choice::Open(_) => {
                    let mut successors = self.model.step(&frame.state, call, true);
                    successors.retain(|state| *state != frame.state);
                    successors
                }
            };
        }
    }

    fn place(&self, choice: Choice) -> usize {
        match choice {
            Choice::Closed(number) => self.closed[number],
            Choice::Open(number) => self.open[number],
        }
    }

    fn order(&self, stack: &[Frame<M::State>]) -> Vec<usize> {
        stack.iter().filter_map(|frame| frame.by).map(|choice| self.place(choice)).collect()
    }
}

#[cfg(test)]
#[path = "linearizable_tests.rs"]
mod tests;
