//! A small run of the crash harness, and the proof that a seed names one execution.

use std::process::{Command, Output};

use atoll_sim::campaign::{Plan, REQUIRED_SITES, Report, campaign};

fn run(points: u64, seed: u64, threads: usize) -> Report {
    let report = campaign(Plan { points, seed, threads }, &|_| {});
    if let Some(violation) = &report.violation {
        panic!(
            "{}\nreplay: cargo run --release -p atoll-sim -- crash --replay {} --trace",
            violation.trouble, violation.point
        );
    }
    report
}

#[test]
fn no_promise_is_broken_at_thousands_of_crash_points() {
    let report = run(6000, 20, 2);
    assert!(report.points >= 6000 && report.nested >= 1000, "{report}");
    let missing = report.missing_sites(10);
    assert!(missing.is_empty(), "hardly any crash at {missing:?} of {REQUIRED_SITES:?}:\n{report}");
    assert!(report.rot[0] > 50, "rotten bytes are refused:\n{report}");
    let long = report.reached.get("a log is longer than the memory of its database");
    assert!(long.is_some_and(|times| *times > 50), "{report}");
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atoll-sim"))
        .args(arguments)
        .output()
        .expect("the harness runs")
}

#[test]
fn a_seed_names_one_execution_in_every_process() {
    let hash = || {
        let output =
            program(&["crash", "--points", "300", "--seed", "31", "--threads", "1", "--json"]);
        let text = String::from_utf8(output.stdout).expect("the report is text");
        let digest = text.split_once("\"digest\":\"").map(|(_, rest)| rest[..16].to_owned());
        digest.expect("the report has a digest")
    };
    let first = hash();
    assert_ne!(first, "0000000000000000");
    assert_eq!(hash(), first);
}

#[test]
fn a_point_is_replayed_as_it_was() {
    let replay = || program(&["crash", "--replay", "0x1f:40", "--trace"]);
    let (first, second) = (replay(), replay());
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(first.stdout.len() > 1000, "the trace is printed");
    assert_eq!(first.stdout, second.stdout);
}

#[test]
fn wrong_arguments_are_told_in_a_sentence() {
    for (arguments, said) in [
        (&["smash"][..], "there is no command 'smash'"),
        (&["crash", "--points"], "--points needs a value"),
        (&["crash", "--points", "many"], "'many' is no number"),
        (&["crash", "--replay", "here"], "'here' is no crash point"),
    ] {
        let output = program(arguments);
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(said), "{text}");
    }
}
