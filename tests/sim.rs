//! The simulation: real code, virtual time, one seed. Asks for the feature `sim`.
//!
//! `SIM_SEED=7` replays one seed with its trace, `SIM_MUTANT=aged-by-one` with a mechanism out, `SIM_LOG=1` with the logs. `SIM_SEEDS=1000` runs so
//! many from `SIM_FROM` on, on all cores; `tests/seeds` does that with optimised code.
#![cfg(feature = "sim")]

#[path = "sim/mutants.rs"]
mod mutants;
#[path = "sim/queues.rs"]
mod queues;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use majorityd::mutant::{Mutant, switch_on};
use majorityd::sim::run::run;

/// Lua's garbage is most of what a run allocates.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn replay(seed: u64) -> String {
    format!("replay: SIM_SEED={seed} cargo test --features sim --test sim one_seed -- --nocapture")
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..=5 {
        assert_eq!(run(seed).trace, run(seed).trace, "seed {seed}");
    }
}

#[test]
fn one_seed_with_its_trace() {
    let seed = number("SIM_SEED", 1);
    let mutant = std::env::var("SIM_MUTANT").ok();
    let mutant = mutant.map(|name| Mutant::by_name(&name).unwrap_or_else(|| panic!("no mutant {name}")));
    let _out = mutant.map(switch_on);
    if std::env::var_os("SIM_LOG").is_some() {
        // What the daemons log, as it happens: before the trace, and without its times.
        tracing_subscriber::fmt().without_time().with_ansi(false).with_max_level(tracing::Level::INFO).init();
    }
    let report = run(seed);
    println!("{}", report.trace);
    assert_eq!(report.violation, None, "seed {seed}");
}

/// Seeds that found something once; `docs/correctness.md` says what.
const KEPT: &[u64] = &[16, 587];

#[test]
fn seeds_that_found_something_find_nothing_more() {
    for seed in KEPT {
        assert_eq!(run(*seed).violation, None, "{}", replay(*seed));
    }
}

/// What many runs found.
#[derive(Default)]
struct Found {
    runs: u64,
    grants: u64,
    violations: Vec<(u64, String)>,
}

/// Runs seeds on all cores, one run on one thread.
fn run_many(from: u64, seeds: u64) -> Found {
    let (next, found) = (AtomicU64::new(from), Mutex::new(Found::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds {
                return;
            }
            let report = run(seed);
            let mut found = found.lock().expect("no run panics");
            found.runs += 1;
            found.grants += report.grants;
            if let Some(violation) = report.violation {
                println!("seed {seed}: {violation}\n{}", replay(seed));
                found.violations.push((seed, violation));
            }
            if found.runs.is_multiple_of(1_000) {
                println!(
                    "{} seeds, {} grants, {} violations",
                    found.runs,
                    found.grants,
                    found.violations.len()
                );
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    found.into_inner().expect("no run panics")
}

#[test]
fn seeds_show_nothing_that_must_not_be() {
    let (from, seeds) = (number("SIM_FROM", 1), number("SIM_SEEDS", 20));
    let Found { runs, grants, violations } = run_many(from, seeds);
    println!("{runs} seeds, {grants} grants, {} violations", violations.len());
    assert_eq!(violations, []);
    assert!(grants > 5 * seeds, "the clients hardly ever got a lock: {grants} grants in {seeds} runs");
}
