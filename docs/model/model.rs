//! The model: actions, and the walk from state to state that stateright explores.

use std::sync::atomic::AtomicBool;

use stateright::{Model, Property};

use crate::bounds::{Bounds, Role};
use crate::mutants::Mutant;
use crate::properties;
use crate::state::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    Everything,
    Saved,
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListChange {
    Finish,
    /// A member has lost its memory, or its join is started over.
    Join(usize),
    Promote(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    // One attempt on the register.
    Begin {
        ballot: u8,
        list: u8,
    },
    Prepare {
        ballot: u8,
        node: usize,
        list: u8,
    },
    Propose {
        ballot: u8,
        quorum: Set,
    },
    Accept {
        ballot: u8,
        node: usize,
        list: u8,
    },
    /// The daemon has read a newer list, and sends its round again.
    SendAgain {
        ballot: u8,
        list: u8,
    },
    // A read by quorum.
    BeginRead {
        list: u8,
    },
    Read {
        node: usize,
    },
    AnswerRead {
        ballot: u8,
    },
    // The member list.
    PrepareList {
        ballot: u8,
        node: usize,
    },
    ProposeList {
        ballot: u8,
        quorum: Set,
        change: ListChange,
    },
    AcceptList {
        ballot: u8,
        node: usize,
    },
    // A join, named by the list ballot that proposed its memory id.
    BeginJoin {
        join: u8,
        node: usize,
    },
    CopyFrom {
        join: u8,
        node: usize,
        source: usize,
        list: u8,
    },
    Merge {
        join: u8,
        node: usize,
        source: usize,
    },
    EndJoin {
        join: u8,
        node: usize,
    },
    // Forgetting.
    BeginForget {
        list: u8,
    },
    ReadToForget {
        node: usize,
    },
    SendForget {
        ballot: u8,
    },
    Forget {
        node: usize,
    },
    // Faults.
    Save {
        node: usize,
    },
    Restart {
        node: usize,
        keeps: Keeps,
    },
}

/// The register with its member list, in some bounds, with at most one mechanism switched off.
pub struct Register {
    pub bounds: Bounds,
    pub mutant: Option<Mutant>,
    /// A violation was found. stateright goes on for a while and keeps the last one that it finds; after this nothing more
    /// counts as one, so that it keeps the first, which in a search by breadth is one of the shortest.
    pub found: AtomicBool,
}

impl Register {
    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn role(&self, ballot: u8) -> Role {
        self.bounds.roles[usize::from(ballot) - 1]
    }

    pub fn ballots(&self) -> impl Iterator<Item = u8> + use<> {
        1..=u8::try_from(self.bounds.roles.len()).expect("a handful")
    }

    pub fn list_ballots(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.bounds.lists
    }
}

impl Register {
    fn take(&self, state: &mut State, action: Action) {
        match action {
            Action::Begin { ballot, list } => self.begin(state, ballot, list),
            Action::Prepare { ballot, node, list } => self.deliver_prepare(state, ballot, node, list),
            Action::Propose { ballot, quorum } => self.propose(state, ballot, quorum),
            Action::Accept { ballot, node, list } => self.deliver_accept(state, ballot, node, list),
            Action::SendAgain { ballot, list } => self.send_again(state, ballot, list),
            Action::BeginRead { list } => self.begin_read(state, list),
            Action::Read { node } => self.read(state, node),
            Action::AnswerRead { ballot } => self.answer_read(state, ballot),
            Action::PrepareList { ballot, node } => self.prepare_list(state, ballot, node),
            Action::ProposeList { ballot, quorum, change } => {
                self.propose_list(state, ballot, quorum, change);
            }
            Action::AcceptList { ballot, node } => self.accept_list(state, ballot, node),
            Action::BeginJoin { join, node } => self.deliver_begin_join(state, join, node),
            Action::CopyFrom { join, source, .. } => self.copy_from(state, join, source),
            Action::Merge { join, node, source } => self.deliver_merge(state, join, node, source),
            Action::EndJoin { join, node } => self.deliver_end_join(state, join, node),
            Action::BeginForget { list } => self.begin_forget(state, list),
            Action::ReadToForget { node } => self.read_to_forget(state, node),
            Action::SendForget { ballot } => self.send_forget(state, ballot),
            Action::Forget { node } => self.deliver_forget(state, node),
            Action::Save { node } => self.save(state, node),
            Action::Restart { node, keeps } => self.restart(state, node, keeps),
        }
    }

    fn canonical(&self, state: State) -> State {
        if self.bounds.mirrors { state.canonical() } else { state }
    }
}

/// All sets of nodes out of `from`.
pub fn subsets(from: Set) -> impl Iterator<Item = Set> {
    (1..1 << N).filter(move |set| set & !from == 0)
}

impl Model for Register {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            nodes: [Node { memory: 1, ..Node::default() }; N],
            rounds: Default::default(),
            lists: Default::default(),
            joins: Default::default(),
            reader: Reader::default(),
            forget: Forget::default(),
            restarts: 0,
            stale: false,
        };
        let all = (1 << N) - 1;
        state.lists[0] = ListRound {
            proposed: true,
            list: [Entry::Member(1); N],
            taken: all,
            readable: all,
            ..ListRound::default()
        };
        // A prepare that arrives late is as good as one that is sent late, so all that nobody can tell from when they
        // began have begun.
        for ballot in self.ballots().filter(|b| matches!(self.role(*b), Role::Write | Role::Free)) {
            let round = &mut state.rounds[usize::from(ballot)];
            (round.phase, round.prepares) = (Phase::Prepare, 1);
        }
        for action in &self.bounds.after {
            let last = state;
            self.take(&mut state, *action);
            assert!(state != last, "{action:?} does nothing");
        }
        vec![self.canonical(state)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.data_actions(state, actions);
        if self.bounds.reads {
            self.read_actions(state, actions);
        }
        self.list_actions(state, actions);
        self.join_actions(state, actions);
        if self.bounds.forgets {
            self.forget_actions(state, actions);
        }
        self.fault_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        self.take(&mut state, action);
        let state = self.canonical(state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.bounds)
    }
}
