//! `atoll-sim crash`: crash tests of the storage engine.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use atoll_sim::campaign::{Plan, REQUIRED_SITES, Report, campaign};
use atoll_sim::point::{Point, Violation, run};
use atoll_sim::script::Script;

use crate::{USAGE, refuse};

/// What the arguments say.
struct Arguments {
    plan: Plan,
    json: bool,
    replay: Option<Point>,
    trace: bool,
    mutant: Option<String>,
}

/// Runs the command with the words that follow its name.
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    let arguments = match parse(words) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(what) => return refuse(&what),
    };
    if let Some(name) = &arguments.mutant
        && let Err(what) = choose_mutant(name)
    {
        return refuse(&what);
    }
    match arguments.replay {
        Some(point) => replay(point, arguments.trace),
        None => crash(&arguments),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Arguments>, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut arguments = Arguments {
        plan: Plan { points: 100_000, seed: 1, threads: cores },
        json: false,
        replay: None,
        trace: false,
        mutant: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        fn number<T: std::str::FromStr>(text: String) -> Result<T, String> {
            text.parse().map_err(|_| format!("'{text}' is no number"))
        }
        match word.as_str() {
            "--points" => arguments.plan.points = number(value()?)?,
            "--seed" => arguments.plan.seed = number(value()?)?,
            "--threads" => arguments.plan.threads = number::<usize>(value()?)?.max(1),
            "--json" => arguments.json = true,
            "--replay" => arguments.replay = Some(value()?.parse()?),
            "--trace" => arguments.trace = true,
            "--mutant" => arguments.mutant = Some(value()?),
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("there is no option '{other}': see atoll-sim --help")),
        }
    }
    Ok(Some(arguments))
}

#[cfg(feature = "mutants")]
fn choose_mutant(name: &str) -> Result<(), String> {
    use atoll_lsm::mutants;
    let known = mutants::ALL.into_iter().find(|known| *known == name);
    let known = known.ok_or_else(|| {
        format!("there is no mutant '{name}': choose one of {}", mutants::ALL.join(", "))
    })?;
    mutants::choose(known);
    Ok(())
}

#[cfg(not(feature = "mutants"))]
fn choose_mutant(_name: &str) -> Result<(), String> {
    Err("this build has no mutants: add --features mutants to the cargo command".to_owned())
}

#[expect(clippy::disallowed_methods, reason = "the rate of the harness is real time")]
fn crash(arguments: &Arguments) -> ExitCode {
    let plan = arguments.plan;
    let started = Instant::now();
    let told = AtomicU64::new(0);
    let report = campaign(plan, &|points| {
        let seconds = started.elapsed().as_secs();
        if told.fetch_max(seconds, Ordering::Relaxed) < seconds {
            let rate = points as f64 / started.elapsed().as_secs_f64();
            eprint!("\r{points} of {} points, {rate:.0}/s ", plan.points);
        }
    });
    eprintln!();
    let seconds = started.elapsed().as_secs_f64();
    if arguments.json {
        println!("{}", report.json(seconds));
    } else {
        println!("{report}");
        let rate = report.points as f64 / seconds;
        println!("{} points in {seconds:.1} s: {rate:.0} per second", report.points);
    }
    conclude(arguments, &report)
}

fn conclude(arguments: &Arguments, report: &Report) -> ExitCode {
    match (&report.violation, &arguments.mutant) {
        (Some(violation), Some(mutant)) => {
            eprintln!("{mutant} was caught after {} points: {}", report.points, violation.trouble);
            ExitCode::SUCCESS
        }
        (None, Some(mutant)) => {
            eprintln!("{mutant} was NOT caught in {} points", report.points);
            ExitCode::FAILURE
        }
        (Some(violation), None) => {
            complain(violation);
            ExitCode::FAILURE
        }
        (None, None) => {
            // None of these sites is so rare that it falls below a hundredth of the points.
            let missing = report.missing_sites(arguments.plan.points / 100);
            if missing.is_empty() {
                return ExitCode::SUCCESS;
            }
            let of = REQUIRED_SITES.len();
            eprintln!(
                "no violation, but too few crashes at {} of {of} sites: {missing:?}",
                missing.len()
            );
            ExitCode::FAILURE
        }
    }
}

fn complain(violation: &Violation) {
    eprintln!("VIOLATION at {}: {}", violation.point, violation.trouble);
    eprintln!(
        "replay: cargo run --release -p atoll-sim -- crash --replay {} --trace",
        violation.point
    );
}

fn replay(point: Point, trace: bool) -> ExitCode {
    if trace {
        print!("{}", Script::of(point.seed));
    }
    match run(point, trace) {
        Ok(told) => {
            let crashes: Vec<_> =
                told.crashes.iter().map(|c| format!("{:?} {}", c.op, c.site)).collect();
            println!(
                "no violation at {point}; crashes: {crashes:?}; rot: {:?}; trace {:016x}",
                told.rot, told.trace
            );
            ExitCode::SUCCESS
        }
        Err(violation) => {
            violation.lines.iter().for_each(|line| println!("{line}"));
            complain(&violation);
            ExitCode::FAILURE
        }
    }
}
