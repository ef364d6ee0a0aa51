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
        assert!(committed > 5 * count && seen.iter().all(|n| *n > count / 1_000), "{total:?}");
    }
}

/// Rules of the coordinator and of the shard, each with what it is there for.
const RULES: [&str; 27] = [
    "validate-after-staging",
    "no-refresh",
    "no-restage",
    "spans-not-validated",
    "abort-without-record",
    "lost-is-aborted",
    "resend-under-new-id",
    "missing-is-aborted",
    "recovery-forgets",
    "no-fences",
    "recovery-ignores-pushes",
    "snapshot-at-commit-point",
    "locks-not-checked",
    "locks-in-any-order",
    "no-deadlock-search",
    "no-low-water",
    "reads-do-not-raise",
    "scans-raise-rows",
    "reads-do-not-wait",
    "answer-before-apply",
    "no-commit-record",
    "record-in-memory",
    "records-dropped-early",
    "old-stamps-accepted",
    "record-not-checked",
    "fast-reads-do-not-raise",
    "fast-above-oracle",
];

#[test]
fn every_rule_is_missed_when_it_is_left_out() {
    const MOST: u64 = 5_000;
    let mut unseen = Vec::new();
    for rule in RULES {
        mutants::choose(Some(rule));
        let caught = (0..MOST).find_map(|seed| Some((seed, run_reference(seed).err()?)));
        mutants::choose(None);
        match caught {
            Some((seed, what)) => {
                let what = what.split([':', '{']).next().unwrap_or_default();
                println!("{rule}: caught by seed {seed}: {what}");
            }
            None => unseen.push(rule),
        }
    }
    assert!(unseen.is_empty(), "not caught by {MOST} seeds: {unseen:?}");
}
