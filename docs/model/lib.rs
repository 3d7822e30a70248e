//! The register with its member list, small enough to explore in full.
//!
//! `README.md` beside this file says what is in the model, how far it goes and what it does not cover. `tests/model.rs`
//! runs it. Each file follows the protocol of `docs/protocol.md`:
//!
//! * [`state`]: what there is. [`model`]: what can happen, as stateright wants it. [`bounds`]: how much of it.
//! * [`node`]: what a node does with a message.
//! * [`data`], [`members`], [`forgetting`]: what daemons do.
//! * [`properties`]: what must hold. [`mutants`]: what is switched off to see it broken.

pub mod bounds;
pub mod data;
pub mod forgetting;
pub mod members;
pub mod model;
pub mod mutants;
pub mod node;
pub mod properties;
pub mod state;

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use bounds::Bounds;
use model::{Action, Register};
use mutants::Mutant;

/// What came of an exploration.
pub struct Explored {
    /// Different states that were reached, with those only mirrored counted once.
    pub states: usize,
    /// The most steps from the beginning.
    pub depth: usize,
    pub took: Duration,
    /// All of it was explored, or a violation was found.
    pub is_done: bool,
    /// The property violated, and the shortest way there from the very beginning.
    pub violation: Option<(&'static str, Vec<Action>)>,
    /// What should happen somewhere, and never did.
    pub never: Vec<&'static str>,
}

/// Explores everything within the bounds, or until the first violation.
#[expect(clippy::disallowed_methods, reason = "the model has no time in it, this is for the reader")]
pub fn explore(bounds: Bounds, mutant: Option<Mutant>) -> Explored {
    let started = Instant::now();
    let before = bounds.after.clone();
    let model = Register { bounds, mutant, found: false.into() };
    let names: Vec<_> = model.properties().into_iter().map(|p| (p.name, p.expectation)).collect();
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut found = checker.discoveries();
    let mut violation = None;
    let mut never = Vec::new();
    for (name, expectation) in names {
        match found.remove(name) {
            Some(path) if expectation.discovery_is_failure() => {
                violation = Some((name, [before.clone(), path.into_actions()].concat()));
            }
            None if !expectation.discovery_is_failure() => never.push(name),
            Some(_) | None => {}
        }
    }
    Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth() - 1,
        took: started.elapsed(),
        is_done: checker.is_done(),
        violation,
        never,
    }
}
