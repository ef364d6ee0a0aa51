//! The project's recipes, one command each: `cargo xtask <recipe>`.
//!
//! A recipe is a sequence of commands that a person could type, printed before they run; the first
//! that fails ends it with its exit code.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const HELP: &str = "\
Recipes:
  cargo xtask ci                  what .ci/run does: format, lints, docs, all tests
  cargo xtask e2e                 the end-to-end tests on the release binary: 100 kills per
                                  durability mode, a bulk load of a million keys
  cargo xtask crash [FLAGS]       100,000 crash points on the simulated disk; flags are those of
                                  atoll-sim crash (--points N --seed S)
  cargo xtask crash --mutants     the same with one rule of the engine left out after the other;
                                  each must be caught
  cargo xtask sim [FLAGS]         a whole server under random faults, 1,000 seeds of a minute; flags
                                  are those of atoll-sim engine (--seed N, --seeds COUNT)
  cargo xtask fuzz                checks that the fuzz targets compile under their own manifest; the
                                  tests of xtask compile and run them too, without libFuzzer
  cargo xtask fuzz [FLAGS]        runs each target on mutations of real bytes, by the stable compiler
                                  (--executions N --seed S [TARGET...])
  cargo xtask sim --mutants       the same with one rule of shards or transactions left out after
                                  the other; each must be caught within 100 seeds
  cargo xtask loom                rings between cores, memtable, record cache and group commit under
                                  the model checker: all orders of a few threads
  cargo xtask bench [FLAGS]       the engine benchmark beside its peers, everything at the default
                                  size; flags are those of atoll-bench engine (--workload NAME,...)
  cargo xtask bench-peers [FLAGS] the same beside RocksDB and LMDB too (--quick ends in minutes); builds
                                  RocksDB, which takes long, unless ROCKSDB_LIB_DIR names a folder
                                  that has it; installs what that needs (scripts/install-peers)
  cargo xtask bench-server [FLAGS]
                                  the server beside Redis 7, under equal promises; flags are those
                                  of atoll-bench server (--quick ends in about two minutes)
  cargo xtask bench-allocators [ROUNDS]
                                  engine and server under the system's allocator, jemalloc and mimalloc,
                                  side by side: rate, p99 and memory; builds each (scripts/bench-allocators)
  cargo xtask golden              rewrites the expected output of golden scripts; read the diff
  cargo xtask corpus              records what a real Redis answers to the sequences of the
                                  differential test; needs a redis-server; read the diff";

/// The rules that a build may leave out (`atoll_lsm::mutants`); each absence must be noticed.
const MUTANTS: [&str; 8] = [
    "ack-before-sync",
    "no-synced-to-check",
    "no-salt",
    "no-dir-sync",
    "early-tombstone-drop",
    "pointer-without-checksum",
    "value-file-removed-early",
    "checkpoint-links-a-segment",
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let recipe = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    if matches!(recipe.as_str(), "help" | "--help" | "-h") {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let Some(steps) = steps(&recipe, &rest) else {
        let asked = [&[recipe], &rest[..]].concat().join(" ");
        eprintln!("xtask: there is no recipe '{asked}'\n{HELP}");
        return ExitCode::from(2);
    };
    steps.into_iter().map(run).find(|&code| code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}

/// Returns the commands of a recipe, or `None` if there is no such one.
fn steps(recipe: &str, flags: &[String]) -> Option<Vec<Command>> {
    Some(match (recipe, flags.is_empty()) {
        ("ci", true) => vec![Command::new(root().join(".ci/run"))],
        ("e2e", true) => e2e(),
        ("crash", _) => crash(flags),
        ("sim", _) => vec![sim(flags)],
        ("fuzz", true) => vec![fuzz()],
        ("fuzz", false) => vec![fuzz_stable(flags)],
        ("loom", true) => vec![loom("atoll-env", "ring::model"), loom("atoll-lsm", "::model::")],
        ("bench", _) => vec![bench(flags)],
        ("bench-peers", _) => bench_peers(flags),
        ("bench-server", _) => bench_server(flags),
        ("bench-allocators", _) => vec![bench_allocators(flags)],
        ("golden", true) => vec![golden()],
        ("corpus", true) => vec![corpus()],
        _ => return None,
    })
}

fn e2e() -> Vec<Command> {
    let mut test =
        cargo(["test", "--release", "-p", "atoll", "--test", "e2e", "--", "--nocapture"]);
    // Cargo builds the release binary for these tests; the tests find it by themselves.
    for (variable, size) in [("ATOLL_KILL_ROUNDS", "100"), ("ATOLL_LOAD_KEYS", "1000000")] {
        if std::env::var_os(variable).is_none() {
            test.env(variable, size);
        }
    }
    vec![test]
}

/// One campaign, or with `--mutants` one for each rule left out.
fn crash(args: &[String]) -> Vec<Command> {
    let (mutants, args): (Vec<_>, Vec<_>) = args.iter().partition(|arg| *arg == "--mutants");
    if mutants.is_empty() {
        let mut run = cargo(["run", "--release", "-p", "atoll-sim", "--", "crash"]);
        run.args(args);
        return vec![run];
    }
    let with = |mutant| {
        let mut run = cargo(["run", "--release", "-p", "atoll-sim", "--features", "mutants"]);
        run.args(["--", "crash", "--mutant", mutant]).args(&args);
        run
    };
    let mut steps: Vec<Command> = MUTANTS.into_iter().map(with).collect();
    // Those that a power cut does not show try themselves.
    steps.push(cargo(["test", "-p", "atoll-lsm", "--features", "mutants", "--test", "records"]));
    steps
}

fn sim(flags: &[String]) -> Command {
    if flags == ["--mutants"] {
        let mut run = cargo(["run", "--release", "-p", "atoll-sim", "--features", "mutants"]);
        run.args(["--", "engine", "--seeds", "100", "--mutant", "all"]);
        return run;
    }
    let mut run = cargo(["run", "--release", "-p", "atoll-sim", "--", "engine"]);
    if flags.is_empty() {
        run.args(["--seeds", "1000"]);
    }
    run.args(flags);
    run
}

/// Without the feature that builds libFuzzer, for which the stable compiler is enough; with the lock
/// file as it is, which goes stale when a crate that is fuzzed gets a dependency.
fn fuzz() -> Command {
    let mut check = cargo(["check", "--manifest-path", "fuzz/Cargo.toml", "--no-default-features"]);
    check.args(["--locked", "--target-dir", "target/fuzz"]);
    check
}

/// The targets on inputs of our own making.
fn fuzz_stable(flags: &[String]) -> Command {
    let mut run = cargo(["run", "--release", "-p", "xtask", "--example", "fuzz", "--"]);
    run.args(flags);
    run
}

/// In a directory of its own: the flag is for every crate and would rebuild everything twice.
fn loom(package: &str, model: &str) -> Command {
    let mut test = cargo(["test", "-p", package, "--lib", model]);
    test.args(["--target-dir", "target/loom"]).env("RUSTFLAGS", "--cfg atoll_loom");
    test
}

fn bench(flags: &[String]) -> Command {
    let mut run = cargo([
        "run",
        "--release",
        "-p",
        "atoll-bench",
        "--features",
        "peers-rust",
        "--",
        "engine",
    ]);
    run.args(flags);
    run
}

/// RocksDB as its own makefile builds it, for this processor; without that its checksums and filters do
/// without the instructions that ours choose when they run. No optimisation across crates, which would
/// take long and reaches no C++.
fn bench_peers(flags: &[String]) -> Vec<Command> {
    let mut run = cargo(["run", "--release", "--config", "profile.release.lto=false"]);
    run.args(["-p", "atoll-bench", "--features", "peers", "--features", "peers-rust"]);
    run.args(["--", "engine"]).args(flags);
    for variable in ["CFLAGS", "CXXFLAGS"] {
        if std::env::var_os(variable).is_none() {
            run.env(variable, "-march=native");
        }
    }
    vec![Command::new(root().join("scripts/install-peers")), run]
}

/// The server is a program of its own, which the benchmark finds beside itself.
fn bench_server(flags: &[String]) -> Vec<Command> {
    let mut run = cargo(["run", "--release", "-p", "atoll-bench", "--", "server"]);
    run.args(flags);
    vec![cargo(["build", "--release", "-p", "atoll"]), run]
}

fn bench_allocators(flags: &[String]) -> Command {
    let mut run = Command::new(root().join("scripts/bench-allocators"));
    run.args(flags);
    run
}

fn golden() -> Command {
    let mut test = cargo(["test", "-p", "atoll-redis", "--test", "sessions", "every_script"]);
    test.env("UPDATE_SCRIPTS", "1");
    test
}

fn corpus() -> Command {
    let mut test = cargo(["test", "-p", "atoll-redis", "--test", "sessions", "corpus"]);
    test.env("UPDATE_CORPUS", "1");
    test
}

fn cargo<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// Returns the root of the workspace.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Runs one step from the root of the workspace.
fn run(mut step: Command) -> ExitCode {
    eprintln!("xtask: {step:?}");
    match step.current_dir(root()).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            code.map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(e) => {
            eprintln!("xtask: {step:?} cannot be run: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_of_the_engine_is_in_the_list() {
        let source = include_str!("../../lsm/src/mutants.rs");
        let (_, list) = source.split_once("pub const ALL").unwrap();
        let (list, _) = list.split_once(';').and_then(|(_, rest)| rest.split_once(';')).unwrap();
        let named: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
        assert_eq!(named, MUTANTS);
    }

    /// Returns the arguments that follow each `flag` of a command.
    fn values<'a>(command: &'a Command, flag: &str) -> Vec<&'a str> {
        let args: Vec<&str> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        args.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1]).collect()
    }

    #[test]
    fn every_package_feature_and_test_that_a_recipe_names_exists() {
        let recipes = HELP.lines().filter_map(|line| line.trim().strip_prefix("cargo xtask "));
        let (mut recipes_seen, mut tests_seen) = (0, 0);
        for line in recipes {
            let words: Vec<&str> = line.split_whitespace().collect();
            let flags: Vec<String> = words[1..].iter().map(|w| w.to_string()).collect();
            let flags = if flags[0] == "--mutants" { &flags[..1] } else { &[] };
            let steps = steps(words[0], flags).unwrap_or_else(|| panic!("help names '{line}'"));
            assert!(!steps.is_empty());
            recipes_seen += 1;
            for step in steps {
                for package in values(&step, "-p") {
                    let folder = package.strip_prefix("atoll-").unwrap_or(package);
                    let folder = root().join("crates").join(folder);
                    let file = folder.join("Cargo.toml");
                    let manifest = std::fs::read_to_string(&file).unwrap();
                    assert!(manifest.contains(&format!("name = \"{package}\"")), "{step:?}");
                    for feature in values(&step, "--features") {
                        assert!(manifest.contains(&format!("\n{feature} = [")), "{step:?}");
                    }
                    for test in values(&step, "--test") {
                        let tests = folder.join("tests");
                        let file = tests.join(format!("{test}.rs"));
                        assert!(
                            file.exists() || tests.join(test).join("main.rs").exists(),
                            "{step:?}"
                        );
                        tests_seen += 1;
                    }
                }
            }
        }
        assert!(recipes_seen >= 6 && tests_seen >= 2, "{recipes_seen} recipes, {tests_seen} tests");
    }
}
