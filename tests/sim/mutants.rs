//! Mechanisms whose absence random seeds find, each within a stated number of seeds. The others, and why they need the few
//! steps of a schedule, are in `tests/schedules.rs`.

use majorityd::mutant::{Mutant, switch_on};
use majorityd::sim::run::run;

/// The first of `seeds` that shows that the mechanism is missing.
fn first_caught(mutant: Mutant, seeds: u64) -> Option<(u64, String)> {
    let _out = switch_on(mutant);
    (1..=seeds).find_map(|seed| run(seed).violation.map(|words| (seed, words)))
}

/// Prints, for every mutant, the first seed that finds it: `SIM_SEEDS=300 cargo test … survey -- --ignored --nocapture`.
#[test]
#[ignore = "a survey, not a test"]
fn survey_of_all_mutants() {
    let seeds = super::number("SIM_SEEDS", 100);
    let only = std::env::var("SIM_MUTANT").ok();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(mutant) = Mutant::ALL.get(at) else { return };
            if only.as_ref().is_some_and(|only| only != mutant.name()) {
                continue;
            }
            let caught = std::panic::catch_unwind(|| first_caught(*mutant, seeds));
            match caught {
                Ok(Some((seed, words))) => {
                    println!("{mutant}: {seed}: {}", words.lines().next().unwrap_or_default());
                }
                Ok(None) => println!("{mutant}: not within {seeds}"),
                Err(_) => println!("{mutant}: panics"),
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
}
