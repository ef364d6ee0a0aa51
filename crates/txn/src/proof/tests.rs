//! Schedules of the test command, and the negative controls.

use atoll_mvcc::request::Isolation;

use super::*;
use crate::mutants;

fn run(seed: u64, bend: Bend) -> Result<Report, String> {
    run_bent(seed, bend, |env, oracle, starts, prng, weather| {
        ReferenceCluster::new(env, oracle, starts, prng, weather)
    })
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Names one of them: `ATOLL_TXN_SEED=7 ATOLL_TXN_SEEDS=1`, of another kind with
/// `ATOLL_TXN_KIND=late`, with `ATOLL_TXN_TRACE=1` for every request, with
/// `ATOLL_TXN_MUTANT=no-low-water` to leave a rule out.
#[test]
fn schedules_are_right() {
    let from = number("ATOLL_TXN_SEED", 0);
    mutants::choose(std::env::var("ATOLL_TXN_MUTANT").ok().map(|name| &*name.leak()));
    let only = std::env::var("ATOLL_TXN_KIND").unwrap_or_else(|_| "drawn".to_owned());
    // What was drawn is what most seeds go to; of the other kinds there are a few as well.
    let named = std::env::var_os("ATOLL_TXN_KIND").is_some() || from != 0;
    let mut wrong = Vec::new();
    for (kind, bend) in KINDS {
        if named && kind != only {
            continue;
        }
        let share = if kind == only { 1 } else { 50 };
        let count = number("ATOLL_TXN_SEEDS", 20_000) / share;
        let mut total = Report::default();
        for seed in from..from + count {
            match run(seed, bend) {
                Ok(report) => total.add(&report),
                Err(what) => wrong.push(format!(
                    "ATOLL_TXN_KIND={kind} ATOLL_TXN_SEED={seed} ATOLL_TXN_SEEDS=1: {what}"
                )),
            }
        }
        println!("{count} schedules, {kind}: {total:?}");
        // A proof of nothing is no proof.
        if kind == "drawn" && count >= 1_000 && wrong.is_empty() {
            let Report { committed, many_shards, two_rounds, pushed, settled, .. } = total;
            let Report { orphaned, deadlocks, refreshed, .. } = total;
            let seen = [many_shards, two_rounds, pushed, settled, orphaned, deadlocks, refreshed];
            assert!(committed > 5 * count && seen.iter().all(|n| *n > count / 1_000), "{total:?}");
        }
    }
    for what in wrong.iter().take(10) {
        println!("{what}");
    }
    assert!(wrong.is_empty(), "{} schedules are wrong", wrong.len());
}

/// A way to bend what was drawn.
type Bend = fn(&mut Knobs);

/// Kinds of schedules in which some things meet often.
const KINDS: [(&str, Bend); 11] = [
    ("drawn", |_| {}),
    ("crowd", crowd),
    ("pushed", pushed),
    ("commands", |knobs| {
        // Shards do not learn what time it is: commands have timestamps of the past.
        crowd(knobs);
        knobs.fast = 0.6;
        knobs.learns = 0;
    }),
    ("snapshots", |knobs| {
        // The same, of transactions that commit wherever they are pushed to.
        pushed(knobs);
        knobs.isolations = vec![Isolation::Snapshot];
    }),
    ("travel", |knobs| {
        // The same, among commands that are told what time it is.
        pushed(knobs);
        knobs.fast = 0.6;
        knobs.learns = 400;
    }),
    ("slow", |knobs| {
        // Questions that overtake each other, and nobody who waits for the others.
        pushed(knobs);
        knobs.keys = 4;
        knobs.push_us = 0;
        knobs.deaths = 0;
        knobs.deaths_in_commit = 0.0;
        knobs.leader_changes = 0;
        knobs.weather.tail = 0.2;
        knobs.weather.apply_us = 50;
    }),
    ("locks", |knobs| {
        crowd(knobs);
        knobs.locks = 0.7;
        knobs.leader_changes = 0;
        knobs.splits = 0;
        knobs.deaths = 0;
        knobs.deaths_in_commit = 0.0;
        knobs.weather.breaks = 0.0;
    }),
    ("late", |knobs| {
        // Requests that come seconds late, when the safepoint has passed them.
        knobs.collections = 7;
        knobs.steps = 2;
        knobs.clients = 3;
        knobs.transactions = 3;
        knobs.spread_us = 10_000;
        knobs.weather.breaks = 0.3;
        knobs.weather.late_us = 8_000_000;
        knobs.leader_changes = 20;
        knobs.changes_within_us = 8_000_000;
    }),
    ("dying", |knobs| {
        // Coordinators that die in their commits; what they sent comes after they were given up.
        crowd(knobs);
        knobs.deaths_in_commit = 0.3;
        knobs.push_us = 0;
        knobs.weather.breaks = 0.3;
        knobs.weather.late_us = 8_000_000;
    }),
    ("lost", |knobs| {
        // Answers and leaders that are lost while entries are long under way.
        crowd(knobs);
        knobs.push_us = 0;
        knobs.leader_changes = 20;
        knobs.changes_within_us = 20_000;
        knobs.weather.breaks = 0.4;
        knobs.weather.late_us = 300;
        knobs.weather.apply_us = 3_000;
    }),
];

/// Many clients on few keys, while entries are long under way.
fn crowd(knobs: &mut Knobs) {
    knobs.keys = 3;
    knobs.clients = 3;
    knobs.transactions = 3;
    knobs.spread_us = 200;
    knobs.weather.network_us = 20;
    knobs.weather.apply_us = 500;
}

/// Transactions travel for long over shards, and others read meanwhile what they write.
fn pushed(knobs: &mut Knobs) {
    crowd(knobs);
    knobs.keys = 5;
    knobs.transactions = 8;
    knobs.locks = 0.0;
    knobs.splits = 0;
    knobs.isolations = vec![Isolation::Serializable];
    knobs.weather.network_us = 1_000;
    knobs.weather.apply_us = 3_000;
}

/// Rules of the coordinator and of the shard, each with a kind of schedules that misses it soon.
const RULES: [(&str, &str); 27] = [
    ("validate-after-staging", "slow"),
    ("no-refresh", "pushed"),
    ("no-restage", "pushed"),
    ("spans-not-validated", "drawn"),
    ("abort-without-record", "drawn"),
    ("lost-is-aborted", "drawn"),
    ("resend-under-new-id", "drawn"),
    ("missing-is-aborted", "slow"),
    ("recovery-forgets", "drawn"),
    ("no-fences", "slow"),
    ("recovery-ignores-pushes", "drawn"),
    ("snapshot-at-commit-point", "snapshots"),
    ("locks-not-checked", "locks"),
    ("locks-in-any-order", "locks"),
    ("no-deadlock-search", "locks"),
    ("no-low-water", "commands"),
    ("reads-do-not-raise", "drawn"),
    ("scans-raise-rows", "drawn"),
    ("reads-do-not-wait", "drawn"),
    ("answer-before-apply", "drawn"),
    ("no-commit-record", "lost"),
    ("record-in-memory", "lost"),
    ("records-dropped-early", "late"),
    ("old-stamps-accepted", "late"),
    ("record-not-checked", "slow"),
    ("fast-reads-do-not-raise", "commands"),
    ("fast-above-oracle", "commands"),
];

/// Seeds within which a missing rule is missed.
const SOON: u64 = 100;

fn kind(name: &str) -> Bend {
    let found = KINDS.iter().find(|(of, _)| *of == name);
    found.unwrap_or_else(|| panic!("no kind of schedules is called {name}")).1
}

#[test]
fn every_rule_is_missed_when_it_is_left_out() {
    let mut unseen = Vec::new();
    for (rule, of_kind) in RULES {
        mutants::choose(Some(rule));
        let caught = (0..SOON).find_map(|seed| Some((seed, run(seed, kind(of_kind)).err()?)));
        mutants::choose(None);
        let Some((seed, what)) = caught else {
            unseen.push(rule);
            continue;
        };
        let what = what.split([':', '{']).next().unwrap_or_default();
        println!("{rule}: caught by seed {seed} of {of_kind}: {what}");
        // It is the missing rule that was wrong, not the proof.
        if let Err(what) = run(seed, kind(of_kind)) {
            panic!("seed {seed} of {of_kind} is wrong with all rules: {what}");
        }
    }
    assert!(unseen.is_empty(), "not caught by {SOON} seeds: {unseen:?}");
}

/// Says how many of `ATOLL_TXN_SEEDS` schedules of each kind miss each rule (or only
/// `ATOLL_TXN_MUTANT`), for whoever changes schedules or adds a rule.
#[test]
#[ignore = "it only counts"]
fn how_often_each_kind_misses_each_rule() {
    let most = number("ATOLL_TXN_SEEDS", SOON);
    let only = std::env::var("ATOLL_TXN_MUTANT").ok();
    for (rule, _) in RULES {
        if only.as_deref().is_some_and(|only| only != rule) {
            continue;
        }
        mutants::choose(Some(rule));
        let counts = KINDS.map(|(name, bend)| {
            let missed = (0..most).filter(|seed| run(*seed, bend).is_err()).count();
            format!("{name} {missed}")
        });
        println!("{rule}: {}", counts.join(", "));
    }
    mutants::choose(None);
}
