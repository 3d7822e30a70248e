//! What daemons do with the data register (section 1): changes, the retry rule, and reads.

use crate::bounds::Role;
use crate::model::{Action, Register, subsets};
use crate::mutants::Mutant;
use crate::properties;
use crate::state::*;

impl Register {
    /// Whether a node's answer counts under a list.
    pub fn counts(&self, state: &State, list: u8, node: usize) -> bool {
        match state.list(list)[node] {
            Entry::Member(memory) => memory == state.nodes[node].memory || self.is(Mutant::MemoryNotChecked),
            Entry::Joining(_) | Entry::Unset => false,
        }
    }

    /// The lists that some daemon may go by: those that q answers, at some time, showed to be agreed on.
    pub fn known_lists(&self, state: &State) -> impl Iterator<Item = u8> {
        let needed = if self.is(Mutant::GoesByUncommittedList) { 1 } else { Q };
        let known = |round: &&ListRound| round.proposed && round.readable.count_ones() >= needed;
        let set = state.lists.iter().filter(known).fold(0, |set, round| with(set, usize::from(round.vid)));
        (0..=self.bounds.lists).filter(move |vid| has(set, usize::from(*vid)))
    }

    pub fn data_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for ballot in self.ballots() {
            let round = &state.rounds[usize::from(ballot)];
            if round.phase == Phase::Idle && self.may_begin(state, ballot) {
                actions.extend(self.known_lists(state).map(|list| Action::Begin { ballot, list }));
            }
            for list in 0..=self.bounds.lists {
                if has(round.prepares, usize::from(list)) {
                    actions.extend((0..N).map(|node| Action::Prepare { ballot, node, list }));
                }
                if has(round.accepts, usize::from(list)) {
                    actions.extend((0..N).map(|node| Action::Accept { ballot, node, list }));
                }
            }
            if round.phase == Phase::Prepare {
                let promised = (0..N).filter(|node| round.promised[*node].is_some()).fold(0, with);
                let quorums = subsets(promised).filter(|set| set.count_ones() >= Q);
                actions.extend(quorums.map(|quorum| Action::Propose { ballot, quorum }));
            }
            if matches!(round.phase, Phase::Prepare | Phase::Accept) {
                let newer = self.known_lists(state).filter(|list| *list > round.list);
                actions.extend(newer.map(|list| Action::SendAgain { ballot, list }));
            }
        }
    }

    /// A retry begins when its accept was sent, whatever became of that; a look at any time.
    fn may_begin(&self, state: &State, ballot: u8) -> bool {
        match self.role(ballot) {
            Role::RetryOf(first) => state.rounds[usize::from(first)].phase == Phase::Accept,
            Role::Look | Role::Write | Role::Free => true,
        }
    }

    pub fn begin(&self, state: &mut State, ballot: u8, list: u8) {
        if let Role::RetryOf(first) = self.role(ballot) {
            // Its messages stay under way, but what comes of them the daemon does not learn any more.
            state.rounds[usize::from(first)].phase = Phase::Over;
        }
        let began = if self.role(ballot) == Role::Look { state.committed() } else { 0 };
        let round = &mut state.rounds[usize::from(ballot)];
        (round.phase, round.list, round.began) = (Phase::Prepare, list, began);
        round.prepares = with(round.prepares, usize::from(list));
    }

    pub fn deliver_prepare(&self, state: &mut State, ballot: u8, node: usize, list: u8) {
        if !self.takes_live(state, node, list) {
            return;
        }
        let counts = self.counts(state, list, node);
        let Node { record, floor, .. } = &mut state.nodes[node];
        if !self.prepare(record, *floor, ballot) {
            return;
        }
        let seen = (record.ballot, record.copied && !self.is(Mutant::CopiedCounts), *floor);
        let round = &mut state.rounds[usize::from(ballot)];
        if round.phase == Phase::Prepare && round.list == list && counts && round.promised[node].is_none() {
            round.promised[node] = Some(seen);
        }
    }

    /// With these promises the daemon goes on: to the accept, or to the answer.
    pub fn propose(&self, state: &mut State, ballot: u8, quorum: Set) {
        let promised = state.rounds[usize::from(ballot)].promised;
        let seen = || (0..N).filter(|node| has(quorum, *node)).filter_map(|node| promised[node]);
        let highest = seen().map(|(held, ..)| held).max().unwrap_or(0);
        let old = state.vid(highest);
        let agreed = seen().filter(|(held, copied, _)| *held == highest && !copied).count();
        let floors = seen().map(|(.., floor)| floor).max().unwrap_or(0);
        let (base, vid) = match self.role(ballot) {
            Role::Write | Role::Free => (old, ballot),
            Role::RetryOf(first) => match self.retry(state, first, old, floors) {
                Retry::Finish => (0, old),
                Retry::Apply => (old, ballot),
                Retry::Unknown => return,
            },
            Role::Look if agreed >= Q as usize => {
                let began = state.rounds[usize::from(ballot)].began;
                self.answer(state, began, highest);
                let round = &mut state.rounds[usize::from(ballot)];
                (round.phase, round.promised) = (Phase::Over, Default::default());
                return;
            }
            Role::Look => (0, old),
        };
        let round = &mut state.rounds[usize::from(ballot)];
        (round.phase, round.base, round.vid) = (Phase::Accept, base, vid);
        round.accepts = with(round.accepts, usize::from(round.list));
        round.promised = Default::default();
    }

    /// The retry rule. A value's chain stands for its `recent`, which here is never too short.
    fn retry(&self, state: &State, first: u8, found: u8, floors: u8) -> Retry {
        let base = state.rounds[usize::from(first)].base;
        if self.is(Mutant::NoRetryRule) {
            Retry::Apply
        } else if state.comes_from(found, first) {
            Retry::Finish
        } else if base == 0 && floors >= first && !self.is(Mutant::RetryIgnoresFloor) {
            Retry::Unknown
        } else if state.comes_from(found, base) {
            Retry::Apply
        } else {
            Retry::Unknown
        }
    }

    pub fn deliver_accept(&self, state: &mut State, ballot: u8, node: usize, list: u8) {
        if !self.takes_live(state, node, list) {
            return;
        }
        let counts = self.counts(state, list, node);
        let Node { record, floor, .. } = &mut state.nodes[node];
        if !self.accept(record, *floor, ballot) {
            return;
        }
        let round = &mut state.rounds[usize::from(ballot)];
        if !round.committed && round.list == list && counts {
            round.accepted = with(round.accepted, node);
            if round.accepted.count_ones() >= Q {
                // A retry may have begun meanwhile, but somebody could know.
                round.committed = true;
                let (vid, began) = (round.vid, round.began);
                state.stale |= !properties::shows_all(self, state, vid, began);
            }
        }
    }

    pub fn send_again(&self, state: &mut State, ballot: u8, list: u8) {
        let round = &mut state.rounds[usize::from(ballot)];
        round.list = list;
        round.promised = Default::default();
        if !round.committed {
            round.accepted = 0;
        }
        let under = if round.phase == Phase::Prepare { &mut round.prepares } else { &mut round.accepts };
        *under = with(*under, usize::from(list));
    }

    /// A client is told the value under this ballot, as one that is agreed on.
    fn answer(&self, state: &mut State, began: Set, ballot: u8) {
        state.stale |= !properties::shows_all(self, state, state.vid(ballot), began);
        if ballot > 0 {
            state.rounds[usize::from(ballot)].committed = true;
        }
    }

    pub fn read_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let reader = &state.reader;
        if reader.phase != Phase::Over {
            let newer = |list: &u8| reader.phase == Phase::Idle || *list > reader.list;
            actions.extend(self.known_lists(state).filter(newer).map(|list| Action::BeginRead { list }));
        }
        if reader.phase == Phase::Prepare {
            actions.extend((0..N).map(|node| Action::Read { node }));
            for ballot in 0..=u8::try_from(DATA).expect("a handful") {
                if reader.answers.iter().filter(|a| **a == Some((ballot, false))).count() >= Q as usize {
                    actions.push(Action::AnswerRead { ballot });
                }
            }
        }
    }

    pub fn begin_read(&self, state: &mut State, list: u8) {
        let began = if state.reader.phase == Phase::Idle { state.committed() } else { state.reader.began };
        state.reader = Reader { phase: Phase::Prepare, list, began, answers: Default::default() };
    }

    pub fn read(&self, state: &mut State, node: usize) {
        let list = state.reader.list;
        if self.passes(state, node, list) && self.counts(state, list, node) {
            let record = state.nodes[node].record;
            let seen = (record.ballot, record.copied && !self.is(Mutant::CopiedCounts));
            state.reader.answers[node].get_or_insert(seen);
        }
    }

    pub fn answer_read(&self, state: &mut State, ballot: u8) {
        let began = state.reader.began;
        self.answer(state, began, ballot);
        state.reader = Reader { phase: Phase::Over, ..Reader::default() };
    }
}

enum Retry {
    Finish,
    Apply,
    Unknown,
}
