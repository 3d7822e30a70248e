//! The simulation: real code, virtual time, one seed. Asks for the feature `sim`.
//!
//! `SIM_SEED=7` replays one seed with its trace; `SIM_SEEDS=1000` runs so many from `SIM_FROM` on.
#![cfg(feature = "sim")]

use majorityd::sim::run::run;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..=3 {
        assert_eq!(run(seed).trace, run(seed).trace, "seed {seed}");
    }
}

/// Seeds that found something once:
/// 94 and 1280, a lease taken from its holder because a second attempt for it had an open outcome;
/// 10189, daemons that founded at once left nodes without a memory, so that two restarts stopped the cluster.
const KEPT: &[u64] = &[94, 1280, 10189];

#[test]
fn seeds_that_found_something_find_nothing_more() {
    for seed in KEPT {
        assert_eq!(run(*seed).violation, None, "seed {seed}");
    }
}

#[test]
fn no_seed_shows_two_holders_or_a_token_that_does_not_grow() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        let report = run(seed.parse().expect("SIM_SEED is a number"));
        println!("{}", report.trace);
        assert_eq!(report.violation, None);
        return;
    }
    let (from, seeds) = (number("SIM_FROM", 1), number("SIM_SEEDS", 100));
    let mut grants = 0;
    for seed in from..from + seeds {
        let report = run(seed);
        grants += report.grants;
        assert_eq!(
            report.violation, None,
            "replay: SIM_SEED={seed} cargo test --features sim --test sim -- --nocapture"
        );
    }
    assert!(grants as u64 > seeds, "the clients hardly ever got a lock: {grants} grants in {seeds} runs");
    println!("{seeds} seeds, {grants} grants");
}
