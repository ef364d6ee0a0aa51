//! `atoll-sim engine`: a whole server under random faults.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use atoll_sim::engine::campaign::{Plan, Report, campaign};
use atoll_sim::engine::mutants;
use atoll_sim::engine::run::{Failed, Run, run};

use crate::{USAGE, refuse};

/// Seeds from which on every state must have been reached.
const SEEDS_FOR_ALL_STATES: u64 = 100;

/// What the arguments say.
struct Arguments {
    plan: Plan,
    /// One seed, told in full.
    trace: bool,
    /// Rules to leave out, one after the other.
    mutants: Vec<&'static str>,
}

/// Runs the command with the words that follow its name.
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    match parse(words) {
        Ok(Some(Arguments { plan, trace: true, .. })) => trace(plan),
        Ok(Some(Arguments { plan, mutants, .. })) if mutants.is_empty() => engine(plan),
        Ok(Some(Arguments { plan, mutants, .. })) => {
            let run = |mutant| engine(Plan { mutant: Some(mutant), ..plan });
            let missed = mutants.into_iter().map(run).filter(|code| *code != ExitCode::SUCCESS);
            // All of them are run, whatever becomes of the first.
            missed.fold(ExitCode::SUCCESS, |_, code| code)
        }
        Ok(None) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Err(what) => refuse(&what),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan { seed: 1, seeds: 100, seconds: 60, threads, mutant: None };
    let mut arguments = Arguments { plan, trace: false, mutants: Vec::new() };
    while let Some(word) = words.next() {
        if word == "--mutant" {
            let name = words.next().ok_or("--mutant needs a value")?;
            arguments.mutants = mutants(&name)?;
            continue;
        }
        let mut number = || {
            let text = words.next().ok_or(format!("{word} needs a value"))?;
            text.parse::<u64>().map_err(|_| format!("'{text}' is no number"))
        };
        let plan = &mut arguments.plan;
        match word.as_str() {
            "--seed" => (plan.seed, plan.seeds) = (number()?, 1),
            "--seeds" => plan.seeds = number()?,
            "--from" => plan.seed = number()?,
            "--seconds" => plan.seconds = number()?.max(1),
            "--threads" => plan.threads = usize::try_from(number()?).unwrap_or(1).clamp(1, 1024),
            "--trace" => arguments.trace = true,
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("there is no option '{other}': see atoll-sim --help")),
        }
    }
    Ok(Some(arguments))
}

fn mutants(name: &str) -> Result<Vec<&'static str>, String> {
    if cfg!(not(feature = "mutants")) {
        let add = "add --features mutants to the cargo command";
        return Err(format!("this build has no mutants: {add}"));
    }
    let known = [&mutants::OF_SHARDS[..], &mutants::OF_TRANSACTIONS[..]].concat();
    if name == "all" {
        return Ok(known);
    }
    let found = known.iter().copied().find(|mutant| *mutant == name);
    found.map(|mutant| vec![mutant]).ok_or_else(|| {
        format!("there is no mutant '{name}': choose all or one of {}", known.join(", "))
    })
}

#[expect(clippy::disallowed_methods, reason = "the rate of the harness is real time")]
fn engine(plan: Plan) -> ExitCode {
    let started = Instant::now();
    let told = AtomicU64::new(0);
    let report = campaign(plan, &|done| {
        let seconds = started.elapsed().as_secs();
        if told.fetch_max(seconds, Ordering::Relaxed) < seconds {
            eprint!("\r{done} of {} seeds, {seconds} s ", plan.seeds);
        }
    });
    eprintln!();
    if plan.mutant.is_none() {
        println!("{report}");
    }
    println!("{:.1} s", started.elapsed().as_secs_f64());
    conclude(plan, &report)
}

fn conclude(plan: Plan, report: &Report) -> ExitCode {
    if let Some(mutant) = plan.mutant {
        let seeds = report.seeds + report.idle;
        return match &report.failed {
            Some(failed) => {
                let why = failed.why.lines().next().unwrap_or_default();
                eprintln!("{mutant} was caught after {seeds} seeds, by {}: {why}", failed.seed);
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("{mutant} was NOT caught in {seeds} seeds");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(failed) = &report.failed {
        complain(failed, plan.seconds);
        return ExitCode::FAILURE;
    }
    let unreached = report.unreached();
    if plan.seeds >= SEEDS_FOR_ALL_STATES && !unreached.is_empty() {
        eprintln!("no violation, but states that no seed reached: {unreached:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn complain(failed: &Failed, seconds: u64) {
    let seed = failed.seed;
    eprintln!("FAILED seed {seed}: {}", failed.why);
    eprintln!("again: cargo xtask sim --seed {seed} --seconds {seconds} --trace");
}

/// Runs one seed and prints its events.
fn trace(plan: Plan) -> ExitCode {
    let Plan { seed, seconds, .. } = plan;
    match run(Run { seed, seconds, trace: true }) {
        Ok(told) => {
            println!("no violation: {told:?}");
            ExitCode::SUCCESS
        }
        Err(failed) => {
            failed.lines.iter().for_each(|line| println!("{line}"));
            println!("{}", failed.history);
            failed.notes.iter().for_each(|line| println!("{line}"));
            complain(&failed, seconds);
            ExitCode::FAILURE
        }
    }
}
