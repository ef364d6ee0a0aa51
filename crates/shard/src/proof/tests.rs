//! Schedules of the test command, and the negative controls.

use atoll_txn::proof::kinds::{
    Bend, Proof, SOON, commands, crowd, dying, late, locks, lost, travel, travelling,
};
use atoll_txn::proof::{Layout, Report, run_bent};

use super::cluster::Real;
use crate::leader::corners;
use crate::mutants;

const PROOF: Proof = Proof { prefix: "ATOLL_SHARD", kinds: &KINDS, run, choose };

fn run(seed: u64, bend: Bend) -> Result<Report, String> {
    run_bent(seed, bend, |env, oracle, starts, prng, weather| {
        Real::new(env, oracle, starts, prng, weather)
    })
}

fn choose(rule: Option<&'static str>) {
    mutants::choose(rule);
    atoll_txn::mutants::choose(rule);
}

/// Names one of them: `ATOLL_SHARD_SEED=7 ATOLL_SHARD_SEEDS=1`, of another kind with
/// `ATOLL_SHARD_KIND=late`, with `ATOLL_SHARD_TRACE=1` for every request, with
/// `ATOLL_SHARD_MUTANT=no-low-water` to leave a rule out.
#[test]
fn schedules_are_right() {
    PROOF.schedules_are_right(8_000, 25, |total| {
        let Report { fast, many_shards, two_rounds, pushed, settled, .. } = *total;
        let Report { orphaned, deadlocks, refreshed, .. } = *total;
        vec![fast, many_shards, two_rounds, pushed, settled, orphaned, deadlocks, refreshed]
    });
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
        if let Err(wrong) = run(seed, PROOF.kind("drawn")) {
            panic!("seed {seed}, in which {what}: {wrong}");
        }
    }
}

/// Kinds of schedules in which some things meet often.
const KINDS: [(&str, Bend); 10] = [
    ("drawn", |_| {}),
    ("commands", commands),
    ("own", |knobs| {
        crowd(knobs);
        knobs.layout = Layout::Own;
        knobs.fast = 0.6;
        knobs.learns = 60;
    }),
    ("travel", travel),
    ("spread", |knobs| {
        // Several keys to a shard, and commands with timestamps of the past among transactions that
        // travel for long.
        travelling(knobs);
        knobs.keys = 8;
        knobs.fast = 0.6;
        knobs.learns = 0;
        knobs.leader_changes = 0;
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
        locks(knobs);
        knobs.fast = 0.4;
    }),
    ("late", late),
    ("dying", dying),
    ("lost", |knobs| {
        lost(knobs);
        knobs.collections = 7;
    }),
];

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

#[test]
fn every_rule_is_missed_when_it_is_left_out() {
    let mut unseen = PROOF.not_missed(RULES.into_iter().chain(COORDINATORS));
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

#[test]
#[ignore = "it only counts"]
fn how_often_each_kind_misses_each_rule() {
    let corners = CORNERS.iter().map(|(rule, _)| *rule);
    PROOF.count_misses(RULES.iter().chain(&COORDINATORS).map(|(rule, _)| *rule).chain(corners));
}
