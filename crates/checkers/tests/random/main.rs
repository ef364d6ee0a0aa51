//! Random histories: what a right database does passes, what a broken one does is caught.
//!
//! Each test prints how many seeds a mutant needs; the crate's documentation has a run over 40.

#[cfg(feature = "adya")]
mod adya;
mod toy;
mod workloads;

use atoll_checkers::history::{History, Outcome};
use atoll_checkers::linear::{self, Counter, List, Register};
use atoll_checkers::list_append::{self, Level};
use atoll_checkers::{Verdict, bank, counts, durable, ranges, sessions};
use toy::{Mutant, Size, State, Workload, run};
use workloads::{
    Appends, BANK, Bank, Counters, Counts, Lists, Ranges, Registers, Versions, Writes,
};

const BUDGET: u64 = 200_000;

/// Runs that say much and are read by people when they fail.
const SMALL: Size = Size { clients: 6, calls: 200, info: 0.03, fail: 0.03 };

/// Runs that must pass.
const VALID_SEEDS: u64 = 60;
/// Runs in which a mutant must be caught at least once.
const MUTANT_SEEDS: u64 = 15;

/// Judges valid runs, then those of every mutant; returns in how many seeds each was caught.
fn campaign<W: Workload>(
    name: &str,
    workload: &W,
    judge: impl Fn(&History<W::Op, W::Ret>, &State) -> Verdict,
    expected: &[Mutant],
) {
    for seed in 0..VALID_SEEDS {
        let (history, last) = run(workload, None, SMALL, seed);
        let verdict = judge(&history, &last);
        let checked = verdict.unwrap_or_else(|f| panic!("{name}, seed {seed}: {f}\n{history}"));
        assert!(checked.calls > 20, "{name}, seed {seed} proves nothing");
    }
    for mutant in Mutant::ALL {
        let caught: Vec<u64> = (0..MUTANT_SEEDS)
            .filter(|seed| {
                let (history, last) = run(workload, Some(mutant), SMALL, *seed);
                let failure = judge(&history, &last).err();
                // A search that gives up has not caught anything.
                failure.is_some_and(|failure| failure.violation().is_some())
            })
            .collect();
        let first = caught.first().map_or("-".into(), |seed| (seed + 1).to_string());
        println!("| {name} | {mutant:?} | {}/{MUTANT_SEEDS} | {first} |", caught.len());
        let must = expected.contains(&mutant);
        assert!(!must || !caught.is_empty(), "{name}: {mutant:?} was not caught");
    }
}

/// What breaks a single key.
const SINGLE: &[Mutant] = &[
    Mutant::StaleRead,
    Mutant::LostUpdate,
    Mutant::DirtyRead,
    Mutant::LostAck,
    Mutant::DuplicateApply,
];

#[test]
fn registers() {
    let judge = |history: &History<_, _>, _: &State| linear::check::<Register, _>(history, BUDGET);
    campaign("register", &Registers, judge, SINGLE);
}

#[test]
fn counters() {
    let judge = |history: &History<_, _>, _: &State| linear::check::<Counter, _>(history, BUDGET);
    campaign("counter", &Counters, judge, SINGLE);
}

#[test]
fn lists() {
    let judge = |history: &History<_, _>, _: &State| linear::check::<List, _>(history, BUDGET);
    campaign("list", &Lists, judge, SINGLE);
}

#[test]
fn appends_are_strictly_serializable() {
    let judge = |history: &History<_, _>, _: &State| {
        list_append::analyze(history)?.at(Level::StrictSerializable)
    };
    // Lists never go, so the only gap is an empty list: phantoms are the business of ranges.
    let expected = Mutant::ALL.into_iter().filter(|mutant| *mutant != Mutant::Phantom);
    campaign("list-append", &Appends, judge, &expected.collect::<Vec<_>>());
}

#[test]
fn snapshot_isolation_allows_write_skew_and_nothing_worse() {
    for seed in 0..MUTANT_SEEDS {
        let (history, _) = run(&Appends, Some(Mutant::WriteSkew), SMALL, seed);
        let report = list_append::analyze(&history).expect("well formed");
        let verdict = report.at(Level::StrongSnapshotIsolation);
        verdict.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
}

#[test]
fn range_reads_are_strictly_serializable() {
    let judge = |history: &History<_, _>, _: &State| ranges::check(history, BUDGET);
    campaign("ranges", &Ranges, judge, &Mutant::ALL);
}

#[test]
fn the_bank_keeps_its_sum() {
    let judge = |history: &History<bank::Op, workloads::Shown>, _: &State| {
        let view = history.expand(|call| {
            let outcome = match &call.outcome {
                Outcome::Ok(shown) => Outcome::Ok(shown.0.clone()),
                Outcome::Fail => Outcome::Fail,
                Outcome::Info => Outcome::Info,
            };
            [(call.op, outcome)]
        });
        bank::check(&view, BANK)
    };
    // Whole transfers that are lost, stale or doubled keep the sum.
    campaign("bank", &Bank, judge, &[Mutant::LostUpdate, Mutant::TornRead]);
}

#[test]
fn counts_are_exact() {
    let judge = |history: &History<_, _>, _: &State| counts::check(history);
    campaign("counts", &Counts, judge, &[Mutant::StaleRead, Mutant::LostAck]);
}

#[test]
fn acknowledged_writes_are_there_in_the_end() {
    let judge = |history: &History<durable::Write, workloads::Nothing>, last: &State| {
        let view = history.expand(|call| {
            let outcome = match call.outcome {
                Outcome::Ok(_) => Outcome::Ok(()),
                Outcome::Fail => Outcome::Fail,
                Outcome::Info => Outcome::Info,
            };
            [(call.op, outcome)]
        });
        durable::registers(&view, &last.iter().map(|(key, values)| (*key, values[0])).collect())
    };
    campaign("durable", &Writes, judge, &[Mutant::LostAck]);
}

#[test]
fn sessions_do_not_go_back() {
    let judge = |history: &History<sessions::Op, u64>, _: &State| {
        let promise = sessions::Promise {
            monotonic_reads: true,
            read_your_writes: true,
            staleness_nanos: Some(0),
        };
        sessions::check(history, promise)
    };
    campaign("sessions", &Versions, judge, &[Mutant::StaleRead, Mutant::LostAck]);
}
