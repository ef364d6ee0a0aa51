//! Runs every fuzz target on mutations of what it knows, by the stable compiler and without libFuzzer.
//!
//! ```text
//! cargo xtask fuzz --executions 1000000 --seed 7         a million inputs for each target
//! cargo xtask fuzz --executions 1000000 batch log_lane   two of them
//! ```
//!
//! A seed names the inputs. Half of them are mutations of samples (`atoll_lsm::fuzzing::samples`), a
//! quarter mutations of mutations, the rest random bytes over small alphabets. Targets that open files
//! on a simulated disk get a hundredth. What libFuzzer finds by coverage this does not; it finds what
//! it finds on any machine, and counts.
#![expect(clippy::print_stdout, reason = "the report")]

// The targets say `libfuzzer_sys::fuzz_target!`.
extern crate self as libfuzzer_sys;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use atoll_env::random::Prng;
use atoll_lsm::fuzzing::{mutate, samples};

/// Makes a function of a target's closure.
#[macro_export]
macro_rules! fuzz_target {
    (|$bytes:ident: &[u8]| $body:expr) => {
        pub(crate) fn target($bytes: &[u8]) {
            $body
        }
    };
}

include!("../fuzz/targets.rs");

const USAGE: &str = "usage: fuzz [--executions N] [--seed S] [TARGET...]";

struct Args {
    executions: u64,
    seed: u64,
    targets: Vec<String>,
}

impl Args {
    fn parse() -> Option<Args> {
        let mut args = Args { executions: 100_000, seed: 1, targets: Vec::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match &word[..] {
                "--executions" => args.executions = words.next()?.parse().ok()?,
                "--seed" => args.seed = words.next()?.parse().ok()?,
                name if TARGETS.iter().any(|(known, _)| *known == name) => args.targets.push(word),
                _ => return None,
            }
        }
        Some(args)
    }
}

fn main() -> ExitCode {
    let Some(args) = Args::parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (mut all, mut failed) = (0, false);
    for (name, target) in TARGETS {
        if !args.targets.is_empty() && !args.targets.iter().any(|wanted| wanted == name) {
            continue;
        }
        let slow = matches!(*name, "log_lane" | "log_segment" | "value_file");
        let executions = if slow { args.executions / 100 } else { args.executions };
        #[expect(clippy::disallowed_methods, reason = "how fast it was")]
        let started = Instant::now();
        let found = drive(name, *target, executions, args.seed);
        all += executions;
        failed |= found.is_some();
        let rate = executions as f64 / started.elapsed().as_secs_f64();
        println!(
            "{name:<18} {executions:>12} executions {rate:>10.0}/s {}",
            found.unwrap_or_default()
        );
        let _ = std::io::stdout().flush();
    }
    println!("{:<18} {all:>12} executions", "all");
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs a target; returns the first input at which it panicked.
fn drive(name: &str, target: fn(&[u8]), executions: u64, seed: u64) -> Option<String> {
    let mut prng = Prng::new(seed).fork(name);
    let samples = samples(name);
    // Mutants that mutants are made of.
    let mut pool: Vec<Vec<u8>> = samples.clone();
    pool.resize_with(pool.len().max(1) + 63, Vec::new);
    for n in 0..executions {
        let mut bytes = match prng.index(4) {
            0 | 1 if !samples.is_empty() => samples[prng.index(samples.len())].clone(),
            0..=2 => pool[prng.index(pool.len())].clone(),
            _ => random(&mut prng),
        };
        let other = &pool[prng.index(pool.len())];
        mutate(&mut prng, &mut bytes, other);
        bytes.truncate(1 << 14);
        if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
            return Some(format!("FAILED at {n}: {}", bytes.escape_ascii()));
        }
        if prng.below(16) == 0 {
            let at = samples.len() + prng.index(pool.len() - samples.len());
            pool[at] = bytes;
        }
    }
    None
}

/// Draws bytes: few different ones, since formats have small numbers and zeros in them, or any.
fn random(prng: &mut Prng) -> Vec<u8> {
    let alphabet = [2, 8, 256][prng.index(3)];
    let len = [8, 40, 300][prng.index(3)];
    (0..prng.below(len)).map(|_| prng.below(alphabet) as u8).collect()
}
