//! A fixed set of seeds of the whole server; `cargo xtask sim` runs many.

use atoll_sim::engine::campaign::{Plan, Report, campaign};
use atoll_sim::engine::run::{Run, run};

#[test]
fn a_server_under_random_faults_keeps_its_promises() {
    let plan = Plan { seed: 1, seeds: 24, seconds: 60, threads: 2, mutant: None };
    let report = campaign(plan, &|_| ());
    if let Some(failed) = &report.failed {
        panic!("seed {}: {}", failed.seed, failed.why);
    }
    let Report { seeds, idle, ref faults, .. } = report;
    assert_eq!((seeds, idle), (24, 0), "every seed has enough to do: {report}");
    assert!(faults.len() >= 10, "few classes of faults: {faults:?}");
}

#[test]
fn a_seed_names_one_execution() {
    let once = |seed| run(Run { seed, seconds: 10, trace: false }).expect("no violation").trace;
    assert_eq!(once(5), once(5));
    assert_ne!(once(5), once(6));
}

#[test]
fn a_server_that_forgets_is_noticed() {
    // The history of a run, with the last acknowledged write of a register taken out of what is read
    // at the end, must not pass.
    use atoll_checkers::Recorder;
    use atoll_checkers::linear::{RegisterOp, RegisterRet};
    use atoll_sim::engine::judge::judge;
    use atoll_sim::engine::op::{Op, Ret};
    let history = |last: Option<i64>| {
        let mut recorder = Recorder::new();
        let (client, judge) = (recorder.process(), recorder.process());
        for value in [1, 2] {
            let set = recorder.invoke(client, 0, Op::Register(7, RegisterOp::Set(value)));
            recorder.ok(set, 0, Ret::Register(RegisterRet::Done));
        }
        let get = recorder.invoke(judge, 0, Op::Register(7, RegisterOp::Get));
        recorder.ok(get, 0, Ret::Register(RegisterRet::Value(last)));
        recorder.finish(0)
    };
    judge(&history(Some(2)), false).expect("nothing is lost");
    for lost in [Some(1), None] {
        let why = judge(&history(lost), false).expect_err("a write is lost");
        assert!(why.contains("registers: not linearizable: r:7"), "{why}");
    }
}
