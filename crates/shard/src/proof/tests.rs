//! Schedules of the test command, and the negative controls.

use atoll_mvcc::request::Isolation;
use atoll_txn::proof::{Knobs, Layout, Report, run_bent};

use super::cluster::Real;
use crate::leader::corners;
use crate::mutants;

fn run(seed: u64, bend: Bend) -> Result<Report, String> {
    run_bent(seed, bend, |env, oracle, starts, prng, weather| {
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

/// Names one of them: `ATOLL_SHARD_SEED=7 ATOLL_SHARD_SEEDS=1`, of another kind with
/// `ATOLL_SHARD_KIND=late`, with `ATOLL_SHARD_TRACE=1` for every request, with
/// `ATOLL_SHARD_MUTANT=no-low-water` to leave a rule out.
#[test]
fn schedules_are_right() {
    let from = number("ATOLL_SHARD_SEED", 0);
    choose(std::env::var("ATOLL_SHARD_MUTANT").ok().map(|name| &*name.leak()));
    let only = std::env::var("ATOLL_SHARD_KIND").unwrap_or_else(|_| "drawn".to_owned());
    // What was drawn is what most seeds go to; of the other kinds there are a few as well.
    let named = std::env::var_os("ATOLL_SHARD_KIND").is_some() || from != 0;
    let mut wrong = Vec::new();
    for (kind, bend) in KINDS {
        if named && kind != only {
            continue;
        }
        let share = if kind == only { 1 } else { 25 };
        let count = number("ATOLL_SHARD_SEEDS", 8_000) / share;
        let mut total = Report::default();
        for seed in from..from + count {
            match run(seed, bend) {
                Ok(report) => total.add(&report),
                Err(what) => wrong.push(format!(
                    "ATOLL_SHARD_KIND={kind} ATOLL_SHARD_SEED={seed} ATOLL_SHARD_SEEDS=1: {what}"
                )),
            }
        }
        println!("{count} schedules, {kind}: {total:?}");
        // A proof of nothing is no proof.
        if kind == "drawn" && count >= 1_000 && wrong.is_empty() {
            let Report { committed, fast, many_shards, two_rounds, pushed, settled, .. } = total;
            let Report { orphaned, deadlocks, refreshed, .. } = total;
            let seen =
                [fast, many_shards, two_rounds, pushed, settled, orphaned, deadlocks, refreshed];
            let enough = committed > 5 * count && seen.iter().all(|n| *n > count / 1_000);
            assert!(enough, "{total:?}");
        }
    }
    for what in wrong.iter().take(10) {
        println!("{what}");
    }
    assert!(wrong.is_empty(), "{} schedules are wrong", wrong.len());
}

/// They were told wrong or were wrong once; each stands for others.
#[test]
fn schedules_that_were_wrong_once_are_right() {
    for (seed, what) in [
        (747, "a command removes what a transaction has removed just before"),
        (48_633, "a lost command removes what is not there, and writes"),
        (79_751, "a record is dropped while the intent it decided on may come back"),
        (190_463, "a transaction reads what a lost command did not remove"),
    ] {
        if let Err(wrong) = run(seed, kind("drawn")) {
            panic!("seed {seed}, in which {what}: {wrong}");
        }
    }
}

/// A way to bend what was drawn.
type Bend = fn(&mut Knobs);

/// Kinds of schedules in which some things meet often.
const KINDS: [(&str, Bend); 10] = [
    ("drawn", |_| {}),
    ("commands", |knobs| {
        // Shards do not learn what time it is: commands have timestamps of the past.
        crowd(knobs);
        knobs.fast = 0.6;
        knobs.learns = 0;
    }),
    ("own", |knobs| {
        crowd(knobs);
        knobs.layout = Layout::Own;
        knobs.fast = 0.6;
        knobs.learns = 60;
    }),
    ("travel", |knobs| {
        // Transactions travel for long, while shards learn what time it is.
        crowd(knobs);
        knobs.keys = 5;
        knobs.fast = 0.6;
        knobs.learns = 400;
        knobs.transactions = 8;
        knobs.locks = 0.0;
        knobs.splits = 0;
        knobs.isolations = vec![Isolation::Serializable];
        knobs.weather.network_us = 1_000;
        knobs.weather.apply_us = 3_000;
    }),
    ("spread", |knobs| {
        // Several keys to a shard, and commands with timestamps of the past among transactions that
        // travel for long.
        crowd(knobs);
        knobs.keys = 8;
        knobs.fast = 0.6;
        knobs.learns = 0;
        knobs.transactions = 8;
        knobs.locks = 0.0;
        knobs.splits = 0;
        knobs.leader_changes = 0;
        knobs.isolations = vec![Isolation::Serializable];
        knobs.weather.network_us = 1_000;
        knobs.weather.apply_us = 3_000;
    }),
    ("past", |knobs| {
        // Reads of a past that the horizon overtakes.
        knobs.stale = 0.5;
        knobs.fast = 0.4;
        knobs.keys = 3;
        knobs.transactions = 6;
        knobs.spread_us = 1_500_000;
        knobs.collections = 7;
    }),
    ("locks", |knobs| {
        crowd(knobs);
        knobs.locks = 0.7;
        knobs.fast = 0.4;
        knobs.leader_changes = 0;
        knobs.splits = 0;
        knobs.deaths = 0;
        knobs.deaths_in_commit = 0.0;
        knobs.weather.breaks = 0.0;
    }),
    ("late", |knobs| {
        // Requests that come seconds late, when the horizon has passed them.
        knobs.collections = 7;
        knobs.steps = 2;
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
        knobs.collections = 7;
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

/// Rules of the leader and of whoever follows it (see [`crate::mutants`]), each with a kind of
/// schedules that misses it soon.
const RULES: [(&str, &str); 50] = [
    ("no-low-water", "commands"),
    ("horizon-forgotten", "late"),
    ("reads-below-horizon", "past"),
    ("reads-do-not-raise", "commands"),
    ("scans-do-not-raise", "commands"),
    ("reads-do-not-wait", "commands"),
    ("reads-pass-intents", "dying"),
    ("validation-does-not-raise", "locks"),
    ("prewrite-reads-do-not-raise", "spread"),
    ("commit-reads-do-not-raise", "lost"),
    ("edge-reads-do-not-raise", "travel"),
    ("fast-reads-do-not-raise", "travel"),
    ("fast-passes-intents", "travel"),
    ("fast-above-oracle", "commands"),
    ("commands-pass-locks", "locks"),
    ("commits-pass-locks", "locks"),
    ("locks-pass-intents", "locks"),
    ("locks-do-not-wait", "locks"),
    ("locked-not-checked", "lost"),
    ("read-the-edge-at-once", "own"),
    ("no-delete-at-once", "own"),
    ("locals-at-once", "own"),
    ("local-passes-intents", "own"),
    ("local-not-awaited", "own"),
    ("resolved-not-awaited", "travel"),
    ("close-below-reads", "commands"),
    ("close-below-edge", "commands"),
    ("close-below-commits", "locks"),
    ("resolved-below-edge", "locks"),
    ("intent-below-reads", "travel"),
    ("intent-below-open", "own"),
    ("intent-with-reads", "travel"),
    ("writes-pass-intents", "travel"),
    ("writes-not-checked", "lost"),
    ("reads-not-checked", "travel"),
    ("edge-not-checked", "travel"),
    ("spans-not-checked", "travel"),
    ("late-prewrites-pass", "late"),
    ("records-dropped-early", "late"),
    ("record-not-checked", "dying"),
    ("no-commit-record", "lost"),
    ("commit-record-at-closing", "lost"),
    ("fences-not-checked", "own"),
    ("status-at-once", "lost"),
    ("probe-at-once", "lost"),
    ("finish-anything", "travel"),
    ("refusal-leaves-effects", "travel"),
    ("intents-not-counted", "locks"),
    ("answer-before-apply", "travel"),
    ("own-writes-not-seen", "travel"),
];

/// Rules of the coordinator (see `atoll_txn::mutants`): the real shards do not hide that one is
/// missing.
const COORDINATORS: [(&str, &str); 15] = [
    ("validate-after-staging", "drawn"),
    ("no-refresh", "drawn"),
    ("no-restage", "travel"),
    ("spans-not-validated", "drawn"),
    ("abort-without-record", "drawn"),
    ("lost-is-aborted", "drawn"),
    ("resend-under-new-id", "drawn"),
    ("missing-is-aborted", "drawn"),
    ("recovery-forgets", "drawn"),
    ("no-fences", "locks"),
    ("recovery-ignores-pushes", "drawn"),
    ("snapshot-at-commit-point", "drawn"),
    ("locks-not-checked", "drawn"),
    ("locks-in-any-order", "locks"),
    ("no-deadlock-search", "locks"),
];

/// Rules that random schedules miss too seldom, and the corner that misses them.
const CORNERS: [(&str, fn()); 6] = [
    ("locked-may-vanish", corners::what_was_read_under_a_lock_and_is_gone_has_changed),
    ("command-reads-do-not-raise", corners::a_command_that_writes_keeps_what_it_read),
    (
        "local-below-commands",
        corners::an_intent_on_an_own_value_lies_above_the_commands_that_read_it,
    ),
    (
        "restage-anything",
        corners::of_those_who_change_a_record_the_first_wins_and_the_others_learn_it,
    ),
    ("resolving-not-held", corners::an_intent_holds_the_horizon_until_its_resolution_is_applied),
    (
        "split-forgets-locals",
        corners::the_right_half_inherits_own_values_as_writes_above_those_who_did_not_find_them,
    ),
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
    for (rule, of_kind) in RULES.into_iter().chain(COORDINATORS) {
        choose(Some(rule));
        let caught = (0..SOON).find_map(|seed| Some((seed, run(seed, kind(of_kind)).err()?)));
        choose(None);
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
    for (rule, corner) in CORNERS {
        corner();
        choose(Some(rule));
        let caught = std::panic::catch_unwind(corner).is_err();
        choose(None);
        if !caught {
            unseen.push(rule);
        }
    }
    assert!(unseen.is_empty(), "not caught by {SOON} seeds: {unseen:?}");
}

/// Says how many of `ATOLL_SHARD_SEEDS` schedules of each kind miss each rule (or only
/// `ATOLL_SHARD_MUTANT`), for whoever changes schedules or adds a rule.
#[test]
#[ignore = "it only counts"]
fn how_often_each_kind_misses_each_rule() {
    let most = number("ATOLL_SHARD_SEEDS", SOON);
    let only = std::env::var("ATOLL_SHARD_MUTANT").ok();
    let corners = CORNERS.iter().map(|(rule, _)| *rule);
    let rules = RULES.iter().chain(&COORDINATORS).map(|(rule, _)| *rule).chain(corners);
    for rule in rules.filter(|rule| only.as_deref().is_none_or(|only| only == *rule)) {
        choose(Some(rule));
        let counts = KINDS.map(|(name, bend)| {
            let missed = (0..most).filter(|seed| run(*seed, bend).is_err()).count();
            format!("{name} {missed}")
        });
        println!("{rule}: {}", counts.join(", "));
    }
    choose(None);
}
