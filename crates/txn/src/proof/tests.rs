//! Schedules of the test command, and the negative controls.

use atoll_mvcc::request::Isolation;

use super::kinds::{
    Bend, Proof, SOON, commands, crowd, dying, late, locks, lost, travel, travelling,
};
use super::*;
use crate::mutants;

const PROOF: Proof = Proof { prefix: "ATOLL_TXN", kinds: &KINDS, run, choose: mutants::choose };

fn run(seed: u64, bend: Bend) -> Result<Report, String> {
    run_bent(seed, bend, |env, oracle, starts, prng, weather| {
        ReferenceCluster::new(env, oracle, starts, prng, weather)
    })
}

/// Names one of them: `ATOLL_TXN_SEED=7 ATOLL_TXN_SEEDS=1`, of another kind with
/// `ATOLL_TXN_KIND=late`, with `ATOLL_TXN_TRACE=1` for every request, with
/// `ATOLL_TXN_MUTANT=no-low-water` to leave a rule out.
#[test]
fn schedules_are_right() {
    PROOF.schedules_are_right(20_000, 50, |total| {
        let Report { many_shards, two_rounds, pushed, settled, .. } = *total;
        let Report { orphaned, deadlocks, refreshed, .. } = *total;
        vec![many_shards, two_rounds, pushed, settled, orphaned, deadlocks, refreshed]
    });
}

/// Kinds of schedules in which some things meet often.
const KINDS: [(&str, Bend); 11] = [
    ("drawn", |_| {}),
    ("crowd", crowd),
    ("pushed", travelling),
    ("commands", commands),
    ("snapshots", |knobs| {
        // Transactions that commit wherever they are pushed to.
        travelling(knobs);
        knobs.isolations = vec![Isolation::Snapshot];
    }),
    ("travel", travel),
    ("slow", |knobs| {
        // Questions that overtake each other, and nobody who waits for the others.
        travelling(knobs);
        knobs.keys = 4;
        knobs.push_us = 0;
        knobs.deaths = 0;
        knobs.deaths_in_commit = 0.0;
        knobs.leader_changes = 0;
        knobs.weather.tail = 0.2;
        knobs.weather.apply_us = 50;
    }),
    ("locks", locks),
    ("late", |knobs| {
        late(knobs);
        knobs.clients = 3;
        knobs.transactions = 3;
    }),
    ("dying", dying),
    ("lost", lost),
];

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

#[test]
fn every_rule_is_missed_when_it_is_left_out() {
    let unseen = PROOF.not_missed(RULES.into_iter());
    assert!(unseen.is_empty(), "not caught by {SOON} seeds: {unseen:?}");
}

#[test]
#[ignore = "it only counts"]
fn how_often_each_kind_misses_each_rule() {
    PROOF.count_misses(RULES.iter().map(|(rule, _)| *rule));
}
