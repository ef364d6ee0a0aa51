//! Negative controls: each rule of the engine that is left out is noticed. Needs
//! `--features mutants`; the rules are chosen for a whole process, hence one process each.
#![cfg(feature = "mutants")]

use std::process::Command;

/// In how many points each must be noticed.
const POINTS: &str = "5000";

fn is_caught(mutant: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_atoll-sim"))
        .args(["crash", "--points", POINTS, "--seed", "1", "--mutant", mutant])
        .output()
        .expect("the harness runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(&format!("{mutant} was caught")), "{text}");
}

#[test]
fn an_answer_before_the_sync_is_caught() {
    is_caught("ack-before-sync");
}

#[test]
fn a_log_that_takes_corruption_for_a_torn_tail_is_caught() {
    is_caught("no-synced-to-check");
}

#[test]
fn a_log_that_accepts_frames_of_a_former_life_is_caught() {
    is_caught("no-salt");
}

#[test]
fn names_that_are_not_synced_are_caught() {
    is_caught("no-dir-sync");
}

#[test]
fn a_checkpoint_that_shares_a_segment_is_caught() {
    is_caught("checkpoint-links-a-segment");
}

#[test]
fn a_tombstone_dropped_too_early_is_caught() {
    is_caught("early-tombstone-drop");
}
