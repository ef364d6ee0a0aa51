//! Schedules of the test command, and the negative controls.

use atoll_txn::proof::{Report, run_with};

use super::cluster::Real;
use crate::mutants;

fn run(seed: u64) -> Result<Report, String> {
    run_with(seed, |env, oracle, starts, prng, weather| {
        Real::new(env, oracle, starts, prng, weather)
    })
}

fn choose(rule: Option<&'static str>) {
    mutants::choose(rule);
    atoll_txn::mutants::choose(rule);
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Names one of them: `ATOLL_SHARD_SEED=7 ATOLL_SHARD_SEEDS=1`, with `ATOLL_SHARD_TRACE=1` for every
/// request, with `ATOLL_SHARD_MUTANT=no-low-water` to leave a rule out.
#[test]
fn schedules_are_right() {
    let from = number("ATOLL_SHARD_SEED", 0);
    let count = number("ATOLL_SHARD_SEEDS", 10_000);
    choose(std::env::var("ATOLL_SHARD_MUTANT").ok().map(|name| &*name.leak()));
    let mut total = Report::default();
    let mut wrong = Vec::new();
    for seed in from..from + count {
        match run(seed) {
            Ok(report) => total.add(&report),
            Err(what) => wrong.push(format!("ATOLL_SHARD_SEED={seed} ATOLL_SHARD_SEEDS=1: {what}")),
        }
    }
    println!("{count} schedules: {total:#?}");
    for what in wrong.iter().take(10) {
        println!("{what}");
    }
    assert!(wrong.is_empty(), "{} of {count} schedules are wrong", wrong.len());
    // A proof of nothing is no proof.
    if count >= 1_000 {
        let Report { committed, fast, many_shards, two_rounds, pushed, settled, .. } = total;
        let Report { orphaned, deadlocks, refreshed, .. } = total;
        let seen = [fast, many_shards, two_rounds, pushed, settled, orphaned, deadlocks, refreshed];
        assert!(committed > 5 * count && seen.iter().all(|n| *n > count / 1_000), "{total:?}");
    }
}

/// Rules of the leader, and of whoever follows it; see [`crate::mutants`].
const RULES: [&str; 39] = [
    "no-low-water",
    "horizon-forgotten",
    "reads-do-not-raise",
    "scans-do-not-raise",
    "reads-do-not-wait",
    "reads-pass-intents",
    "validation-does-not-raise",
    "prewrite-reads-do-not-raise",
    "commit-reads-do-not-raise",
    "edge-reads-do-not-raise",
    "fast-reads-do-not-raise",
    "fast-passes-intents",
    "read-the-edge-at-once",
    "no-delete-at-once",
    "locals-at-once",
    "local-below-commands",
    "resolved-not-awaited",
    "close-below-reads",
    "close-below-edge",
    "close-below-commits",
    "resolved-below-edge",
    "intent-below-reads",
    "intent-below-open",
    "intent-with-reads",
    "edge-not-checked",
    "spans-not-checked",
    "late-prewrites-pass",
    "records-dropped-early",
    "record-not-checked",
    "no-commit-record",
    "commit-record-at-closing",
    "fences-not-checked",
    "status-at-once",
    "probe-at-once",
    "restage-anything",
    "refusal-leaves-effects",
    "intents-not-counted",
    "answer-before-apply",
    "own-writes-not-seen",
];

#[test]
fn every_rule_is_missed_when_it_is_left_out() {
    let most = number("ATOLL_SHARD_SEEDS", 5_000);
    let mut unseen = Vec::new();
    for rule in RULES {
        choose(Some(rule));
        let caught = (0..most).find_map(|seed| Some((seed, run(seed).err()?)));
        choose(None);
        match caught {
            Some((seed, what)) => {
                let what = what.split([':', '{']).next().unwrap_or_default();
                println!("{rule}: caught by seed {seed}: {what}");
            }
            None => unseen.push(rule),
        }
    }
    assert!(unseen.is_empty(), "not caught by {most} seeds: {unseen:?}");
}
