//! What daemons do to forget a record that says nothing (section 5).

use crate::bounds::Role;
use crate::model::{Action, Register};
use crate::mutants::Mutant;
use crate::state::*;

impl Register {
    /// Whether a value says nothing: the absent one, and what a [`Role::Free`] made.
    pub fn says_nothing(&self, vid: u8) -> bool {
        vid == 0 || self.role(vid) == Role::Free
    }

    pub fn forget_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let forget = &state.forget;
        match forget.phase {
            Phase::Idle => {
                let settled = |list: &u8| {
                    let joining = state.list(*list).iter().any(|entry| matches!(entry, Entry::Joining(_)));
                    !joining || self.is(Mutant::ForgottenWhileJoining)
                };
                let lists = self.known_lists(state).filter(settled);
                actions.extend(lists.map(|list| Action::BeginForget { list }));
            }
            Phase::Prepare => {
                actions.extend((0..N).map(|node| Action::ReadToForget { node }));
                actions.extend(self.to_forget(state).map(|ballot| Action::SendForget { ballot }));
            }
            Phase::Accept => actions.extend((0..N).map(|node| Action::Forget { node })),
            Phase::Over => {}
        }
    }

    /// The ballot that may be forgotten, once all members have shown it, q of them uncopied.
    fn to_forget(&self, state: &State) -> Option<u8> {
        let forget = &state.forget;
        let list = state.list(forget.list);
        let members = list.iter().filter(|entry| matches!(entry, Entry::Member(_))).count();
        let needed = if self.is(Mutant::ForgottenByQuorum) { Q as usize } else { members };
        let answers = || forget.answers.iter().flatten();
        let ballot = answers().map(|(ballot, _)| *ballot).max()?;
        let same = answers().filter(|(held, _)| *held == ballot).count();
        let uncopied = answers().filter(|(held, copied)| *held == ballot && !copied).count();
        let enough = same >= needed && uncopied >= Q as usize;
        (enough && self.says_nothing(state.vid(ballot))).then_some(ballot)
    }

    pub fn begin_forget(&self, state: &mut State, list: u8) {
        state.forget = Forget { phase: Phase::Prepare, list, ..Forget::default() };
    }

    pub fn read_to_forget(&self, state: &mut State, node: usize) {
        let list = state.forget.list;
        if self.passes(state, node, list) && self.counts(state, list, node) {
            let record = state.nodes[node].record;
            state.forget.answers[node].get_or_insert((record.ballot, record.copied));
        }
    }

    pub fn send_forget(&self, state: &mut State, ballot: u8) {
        // q equal answers, uncopied: whoever has read that may tell that the value is agreed on.
        state.rounds[usize::from(ballot)].committed |= ballot > 0;
        state.forget = Forget { phase: Phase::Accept, ballot, list: state.forget.list, ..Forget::default() };
    }

    pub fn deliver_forget(&self, state: &mut State, node: usize) {
        let Forget { list, ballot, .. } = state.forget;
        if self.passes(state, node, list) {
            self.forget(state, node, ballot);
        }
    }
}
