//! Schedules of the test command, and the negative controls.

use super::*;
use crate::mutants;

#[test]
fn a_thousand_schedules_are_right() {
    let from: u64 = std::env::var("ATOLL_TXN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let count: u64 =
        std::env::var("ATOLL_TXN_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1000);
    mutants::choose(std::env::var("ATOLL_TXN_MUTANT").ok().map(|s| &*s.leak()));
    let mut total = Report::default();
    let mut wrong = 0;
    for seed in from..from + count {
        match run_reference(seed) {
            Ok(report) => total.add(&report),
            Err(what) => {
                println!("ATOLL_TXN_SEED={seed} ATOLL_TXN_SEEDS=1: {what}");
                wrong += 1;
            }
        }
    }
    println!("{total:#?} wrong {wrong}");
}
