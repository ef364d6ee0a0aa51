//! Schedules of the test command, and the negative controls.

use super::*;
use crate::mutants;

/// Names one of them: `ATOLL_TXN_SEED=7 ATOLL_TXN_SEEDS=1`, with `ATOLL_TXN_TRACE=1` for every
/// request, with `ATOLL_TXN_MUTANT=no-low-water` to leave a rule out.
#[test]
fn schedules_are_right() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let from = number("ATOLL_TXN_SEED", 0);
    let count = number("ATOLL_TXN_SEEDS", 20_000);
    mutants::choose(std::env::var("ATOLL_TXN_MUTANT").ok().map(|name| &*name.leak()));
    let mut total = Report::default();
    let mut wrong = Vec::new();
    for seed in from..from + count {
        match run_reference(seed) {
            Ok(report) => total.add(&report),
            Err(what) => wrong.push(format!("ATOLL_TXN_SEED={seed} ATOLL_TXN_SEEDS=1: {what}")),
        }
    }
    println!("{count} schedules: {total:#?}");
    for what in wrong.iter().take(10) {
        println!("{what}");
    }
    assert!(wrong.is_empty(), "{} of {count} schedules are wrong", wrong.len());
    // A proof of nothing is no proof.
    if count >= 1_000 {
        let Report { committed, many_shards, two_rounds, pushed, settled, .. } = total;
        let Report { orphaned, deadlocks, refreshed, .. } = total;
        let seen = [many_shards, two_rounds, pushed, settled, orphaned, deadlocks, refreshed];
        assert!(committed > 5 * count && seen.iter().all(|n| *n > count / 500), "{total:?}");
    }
}
