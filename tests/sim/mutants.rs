//! Mechanisms whose absence random seeds find, each within a stated number of seeds. The others, and why they need the few
//! steps of a schedule, are in `tests/schedules.rs`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use majorityd::mutant::{Mutant, switch_on};
use majorityd::sim::run::run;

/// The first of `seeds` that shows that the mechanism is missing.
fn first_caught(mutant: Mutant, seeds: u64) -> Option<(u64, String)> {
    let _out = switch_on(mutant);
    (1..=seeds).find_map(|seed| run(seed).violation.map(|words| (seed, words)))
}

/// Each is found within so many seeds.
const CAUGHT_WITHIN: &[(Mutant, u64)] = &[
    (Mutant::AcceptIgnoresPromise, 5),
    (Mutant::AcceptRaisesNoPromise, 5),
    (Mutant::NextNotPromised, 5),
    (Mutant::SmallQuorum, 5),
    (Mutant::StampsInheritTime, 5),
    (Mutant::AgedEarly, 5),
    (Mutant::WarmAnswers, 5),
    (Mutant::ExtendByAnyone, 5),
    (Mutant::FenceIgnored, 5),
    (Mutant::FenceRefusesEqual, 5),
    (Mutant::IndexTrusted, 20),
    (Mutant::LeasesOnFewer, 25),
    (Mutant::PutsAgain, 5),
    (Mutant::ItemTokenStays, 5),
    (Mutant::NotTheHighest, 10),
    (Mutant::ReadsFromOne, 10),
    (Mutant::StampsWithoutBallot, 10),
    (Mutant::RetryAppliesAgain, 10),
    (Mutant::ReleaseByAnyone, 10),
    (Mutant::GroupThaws, 15),
    (Mutant::LostIsRefused, 60),
    (Mutant::FencesGoWithValue, 15),
    (Mutant::RequestIdIgnored, 20),
    (Mutant::NoOpUnremembered, 20),
    (Mutant::WatchForgetsVersions, 100),
    (Mutant::AckByAnyone, 30),
    (Mutant::AgedByOne, 80),
    (Mutant::NeverSwept, 10),
    (Mutant::WarmTwice, 40),
];

#[test]
fn random_seeds_find_what_is_missing() {
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    let work = || {
        while let Some((mutant, seeds)) = CAUGHT_WITHIN.get(next.fetch_add(1, Ordering::Relaxed)) {
            match first_caught(*mutant, *seeds) {
                Some((seed, words)) => {
                    println!("{mutant}: seed {seed}: {}", words.lines().next().unwrap_or(""))
                }
                None => missed.lock().expect("no run panics").push((mutant.name(), *seeds)),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    assert_eq!(missed.into_inner().expect("no run panics"), [], "found nothing within so many seeds");
}

/// Prints, for every mutant, the first seed that finds it: `SIM_SEEDS=300 cargo test … survey -- --ignored --nocapture`.
#[test]
#[ignore = "a survey, not a test"]
fn survey_of_all_mutants() {
    let seeds = super::number("SIM_SEEDS", 100);
    let only = std::env::var("SIM_MUTANT").ok();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
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
