//! `atoll-sim`: the simulator's campaigns from the command line.

mod cli {
    pub mod crash;
    pub mod engine;
}

use std::process::ExitCode;

/// What `--help` prints.
pub const USAGE: &str = "\
atoll-sim: runs AtollDB in a simulator, breaks what is below it, and checks what is left

Usage:
  atoll-sim engine [--seed N | --seeds COUNT] [--from N] [--seconds S] [--threads T] [--trace]
                   [--mutant NAME]
  atoll-sim crash [--points N] [--seed S] [--threads T] [--json] [--mutant NAME]
  atoll-sim crash --replay SEED[:POINT[/DRAW]] [--trace] [--mutant NAME]

engine: a whole server and its clients under random faults
  --seed N       runs one seed
  --seeds COUNT  runs so many seeds (default 100)
  --from N       the first of them (default 1)
  --seconds S    simulated seconds of each (default 60)
  --threads T    threads (default: one per core)
  --trace        prints every event; for one seed
  --mutant NAME  leaves out a rule of shards or transactions, or all of them one after the other,
                 and succeeds only if that is noticed (builds with --features mutants)

crash: the storage engine, with the power cut at every disk operation
  --points N     crash points to run (default 100000)
  --seed S       where the histories come from (default 1)
  --threads T    threads (default: one per core)
  --json         the report as one JSON object on standard output
  --replay P     runs one point again, as printed by a failure
  --trace        prints what happens, operation by operation
  --mutant NAME  leaves out a rule of the engine and succeeds only if that is noticed
                 (builds with --features mutants)

Examples:
  cargo run --release -p atoll-sim -- engine --seeds 1000
  cargo run --release -p atoll-sim -- crash --points 20000 --seed 7
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("crash") => cli::crash::main(words),
        Some("engine") => cli::engine::main(words),
        None | Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Some(other) => refuse(&format!("there is no command '{other}': see atoll-sim --help")),
    }
}

/// Complains about the arguments.
pub fn refuse(what: &str) -> ExitCode {
    eprintln!("atoll-sim: {what}");
    ExitCode::from(2)
}
