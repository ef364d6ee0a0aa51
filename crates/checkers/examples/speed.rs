//! How long each checker takes for a history of 10,000 calls, the slowest of some seeds and ways to
//! be wrong; the figures are in the crate's documentation.
//!
//! `cargo run --release -p atoll-checkers --example speed`

#[path = "../tests/random/toy.rs"]
mod toy;
#[path = "../tests/random/workloads.rs"]
mod workloads;

use atoll_checkers::history::{History, Outcome};
use atoll_checkers::linear::{self, BUDGET, Counter, List, Register};
use atoll_checkers::list_append::{self, Level};
use atoll_checkers::{Failure, Verdict, bank, counts, durable, ranges, sessions};
use toy::{Mutant, Size, State, Workload, run};
use workloads::{
    Appends, BANK, Bank, Counters, Counts, Lists, Nothing, Ranges, Registers, Shown, Versions,
    Writes,
};

const SIZE: Size = Size { clients: 10, calls: 10_000, info: 0.01, fail: 0.02 };

fn measure<W: Workload>(
    name: &str,
    size: Size,
    workload: &W,
    judge: impl Fn(&History<W::Op, W::Ret>, &State) -> Verdict,
) {
    let slowest = |mutant: Option<Mutant>| {
        let mut slowest = 0;
        for seed in 0..3 {
            let (history, last) = run(workload, mutant, size, seed);
            let start = cpu_micros();
            let verdict = judge(&history, &last);
            let micros = cpu_micros() - start;
            if verdict.is_ok() == mutant.is_none() {
                slowest = slowest.max(micros);
            }
            if let Err(Failure::Unknown { explored }) = verdict {
                println!("{name} {mutant:?} seed {seed}: undecided after {explored} steps");
            }
        }
        slowest as f64 / 1e3
    };
    let right = slowest(None);
    let wrong = Mutant::ALL.map(|mutant| slowest(Some(mutant))).into_iter().fold(0.0, f64::max);
    println!("{name:<14} {right:>8.1} ms right {wrong:>8.1} ms wrong and explained");
}

/// Processor time of this thread: a busy machine does not count.
fn cpu_micros() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts it");
    let nanos = text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a number");
    nanos / 1000
}

fn plain<R>(outcome: &Outcome<R>) -> Outcome<()> {
    match outcome {
        Outcome::Ok(_) => Outcome::Ok(()),
        Outcome::Fail => Outcome::Fail,
        Outcome::Info => Outcome::Info,
    }
}

fn main() {
    measure("register", SIZE, &Registers, |h, _| linear::check::<Register, _>(h, BUDGET));
    let crowd = Size { clients: 50, ..SIZE };
    measure("register x50", crowd, &Registers, |h, _| linear::check::<Register, _>(h, BUDGET));
    measure("ranges x20", Size { clients: 20, ..SIZE }, &Ranges, |h, _| ranges::check(h, BUDGET));
    measure("counter", SIZE, &Counters, |h, _| linear::check::<Counter, _>(h, BUDGET));
    measure("list", SIZE, &Lists, |h, _| linear::check::<List, _>(h, BUDGET));
    measure("list-append", SIZE, &Appends, |h, _| {
        list_append::analyze(h)?.at(Level::StrictSerializable)
    });
    #[cfg(feature = "adya")]
    measure("adya", SIZE, &Appends, |h, _| {
        atoll_checkers::second_opinion::judge(h, Level::StrictSerializable)
    });
    measure("ranges", SIZE, &Ranges, |h, _| ranges::check(h, BUDGET));
    measure("bank", SIZE, &Bank, |h: &History<bank::Op, Shown>, _| {
        let balances = |outcome: &Outcome<Shown>| match outcome {
            Outcome::Ok(shown) => Outcome::Ok(shown.0.clone()),
            Outcome::Fail => Outcome::Fail,
            Outcome::Info => Outcome::Info,
        };
        bank::check(&h.expand(|call| [(call.op, balances(&call.outcome))]), BANK)
    });
    measure("counts", SIZE, &Counts, |h, _| counts::check(h));
    measure("sessions", SIZE, &Versions, |h, _| {
        let promise = sessions::Promise {
            monotonic_reads: true,
            read_your_writes: true,
            staleness_nanos: Some(0),
        };
        sessions::check(h, promise)
    });
    measure("durable", SIZE, &Writes, |h: &History<durable::Write, Nothing>, last| {
        let view = h.expand(|call| [(call.op, plain(&call.outcome))]);
        durable::registers(&view, &last.iter().map(|(key, values)| (*key, values[0])).collect())
    });
}
