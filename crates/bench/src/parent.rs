//! The order of measurements: engines take turns, a process and a directory for each.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::ValueEnum;

use crate::cgroup::MemoryCgroup;
use crate::child::{FAILURE, Phase};
use crate::data::{KEY_LEN, VALUE_LEN};
use crate::engines::{self, Name};
use crate::process;
use crate::report::{self, Figures, Row};
use crate::workload::{Family, Workload};
use crate::{EngineArgs, Failure};

/// What a process may use beside the budget: code, stacks, I/O in flight.
const ALLOWANCE: u64 = 64 << 20;

/// Runs the workloads and prints the table.
pub fn run(args: EngineArgs) -> Result<(), Failure> {
    let mut names = vec![Name::Atoll];
    for &peer in &args.peers {
        if !peer.is_built_in() {
            return Err(engines::missing(peer).into());
        }
        if !names.contains(&peer) {
            names.push(peer);
        }
    }
    let mut json = match &args.json {
        Some(path) => Some(fs::File::create(path).map_err(|e| format!("{}: {e}", path.display()))?),
        None => None,
    };
    let limited = match MemoryCgroup::create(args.memory + ALLOWANCE) {
        Ok(_) => true,
        Err(reason) => {
            eprintln!("no memory limit, so nothing is comparable: {reason}");
            false
        }
    };
    let bench = Bench { root: Root::make(&args.dir)?, args: &args, names, limited };

    println!(
        "memory {} MiB + {} MiB, size {}, keys {KEY_LEN} B, values {VALUE_LEN} B, median of {}",
        args.memory >> 20,
        ALLOWANCE >> 20,
        args.size,
        args.runs
    );
    println!("{}", report::heading());
    let mut loaded = BTreeSet::new();
    for workload in Family::members(&args.workload) {
        let rows = bench.workload(workload, &mut loaded)?;
        let rate = |row: &Row| row.outcome.as_ref().ok().map(|figures| figures.ops_per_s);
        let peers: Vec<_> =
            rows.iter().skip(1).filter_map(|row| Some((row.engine, rate(row)?))).collect();
        for row in &rows {
            let ours = row.engine == Name::Atoll;
            println!("{}", row.to_table(if ours { &peers } else { &[] }));
            if let Some(json) = &mut json {
                writeln!(json, "{}", row.to_json())?;
            }
        }
    }
    Ok(())
}

struct Bench<'a> {
    root: Root,
    args: &'a EngineArgs,
    names: Vec<Name>,
    limited: bool,
}

impl Bench<'_> {
    /// Measures every engine `runs` times. `loaded` has the directories that reads can use.
    fn workload(
        &self,
        workload: Workload,
        loaded: &mut BTreeSet<PathBuf>,
    ) -> Result<Vec<Row>, Failure> {
        let extent = workload.extent(self.args.size, self.args.memory);
        eprintln!(
            "{}: {} records, {} operations, {} threads",
            workload.name(),
            extent.records,
            extent.operations,
            extent.threads
        );
        let mut outcomes: Vec<Vec<Result<Figures, String>>> = vec![vec![]; self.names.len()];
        for run in 0..self.args.runs as usize {
            for turn in 0..self.names.len() {
                // Each run another engine begins, so that none always follows the same one.
                let which = (run + turn) % self.names.len();
                let name = self.names[which];
                if outcomes[which].iter().any(Result::is_err) {
                    continue;
                }
                eprintln!("  run {} of {}: {}", run + 1, self.args.runs, name.name());
                let outcome = if workload.reads_loaded_data() {
                    let dir = self.root.0.join(format!("{}-{}", name.name(), extent.records));
                    self.read(name, workload, &dir, loaded)?
                } else {
                    self.write(name, workload)?
                };
                outcomes[which].push(outcome);
            }
        }
        let rows = self.names.iter().zip(outcomes).map(|(&engine, outcomes)| Row {
            workload,
            engine,
            outcome: median(outcomes),
            comparable: self.limited,
        });
        Ok(rows.collect())
    }

    /// Measures a workload that begins with an empty directory.
    fn write(&self, name: Name, workload: Workload) -> Result<Result<Figures, String>, Failure> {
        let dir = self.root.0.join("fill");
        fs::create_dir(&dir)?;
        let mut outcome = Ok(());
        if workload.recovers() {
            outcome = self.child(name, workload, Phase::Die, &dir)?.map(drop);
            process::drop_page_cache(&dir)?;
        }
        let outcome = match outcome {
            Ok(()) => self.child(name, workload, Phase::Measure, &dir)?,
            Err(reason) => Err(reason),
        };
        let outcome = self.with_space(outcome, workload, &dir)?;
        fs::remove_dir_all(&dir)?;
        Ok(outcome)
    }

    /// Measures a workload that reads what is loaded once for all of them.
    fn read(
        &self,
        name: Name,
        workload: Workload,
        dir: &Path,
        loaded: &mut BTreeSet<PathBuf>,
    ) -> Result<Result<Figures, String>, Failure> {
        if !loaded.contains(dir) {
            fs::create_dir_all(dir)?;
            if let Err(reason) = self.child(name, workload, Phase::Load, dir)? {
                fs::remove_dir_all(dir)?;
                return Ok(Err(format!("while loading: {reason}")));
            }
            loaded.insert(dir.to_owned());
        }
        process::drop_page_cache(dir)?;
        let outcome = self.child(name, workload, Phase::Measure, dir)?;
        self.with_space(outcome, workload, dir)
    }

    fn with_space(
        &self,
        outcome: Result<Figures, String>,
        workload: Workload,
        dir: &Path,
    ) -> Result<Result<Figures, String>, Failure> {
        let records = workload.extent(self.args.size, self.args.memory).records;
        let bytes = process::bytes_on_disk(dir)?;
        let closed = bytes as f64 / workload.record_bytes(records) as f64;
        Ok(outcome.map(|figures| {
            // A child that measured at another moment had a reason.
            let space_amp = figures.space_amp.or(Some(closed));
            Figures { space_amp, ..figures }
        }))
    }

    /// Runs a child in a cgroup of its own. The inner error is what became of it; phases without
    /// figures yield zeroes.
    fn child(
        &self,
        name: Name,
        workload: Workload,
        phase: Phase,
        dir: &Path,
    ) -> Result<Result<Figures, String>, Failure> {
        // What fills a log beyond the budget needs memory beyond it.
        let unlimited = phase == Phase::Die && workload.fills_the_log();
        let group = match self.limited && !unlimited {
            true => Some(MemoryCgroup::create(self.args.memory + ALLOWANCE)?),
            false => None,
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["child", "--engine", name.name(), "--workload", &workload.name()]);
        command.args(["--phase", phase.name()]).arg("--dir").arg(dir);
        command.args(["--memory", &self.args.memory.to_string()]);
        command.args(["--size", &self.args.size.to_string()]);
        command.args(["--io", &word(self.args.io), "--direct", &word(self.args.direct)]);
        command.args(["--pool", self.args.pool.name()]);
        command.args(["--record-cache", &word(self.args.record_cache)]);
        command.args(["--separate-above", &self.args.separate_above.to_string()]);
        if let Some(group) = &group {
            command.arg("--join").arg(group.processes());
        }
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        if group.as_ref().is_some_and(MemoryCgroup::has_killed) {
            return Ok(Err("killed: it needed more memory than the limit".into()));
        }
        // That one was asked to kill itself; any other exit means it could not do its work.
        let as_asked = output.status.success() != (phase == Phase::Die);
        if !as_asked || phase == Phase::Die && output.status.code().is_some() {
            return Ok(Err(failure(&output)));
        }
        if phase != Phase::Measure {
            return Ok(Ok(Figures::default()));
        }
        let lines = String::from_utf8_lossy(&output.stdout);
        let figures = lines.lines().find_map(Figures::from_line);
        Ok(figures.ok_or_else(|| "failed: it printed no figures".into()))
    }
}

/// Returns the word by which a choice is named on the command line.
fn word(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Returns why a child failed: in its words, if it had any.
fn failure(output: &Output) -> String {
    let lines = String::from_utf8_lossy(&output.stdout);
    let reason = lines.lines().find_map(|line| line.strip_prefix(FAILURE));
    let status = output.status.to_string();
    format!("failed: {}", reason.unwrap_or(&status))
}

/// Returns the run with the median rate, or the first failure.
fn median(outcomes: Vec<Result<Figures, String>>) -> Result<Figures, String> {
    let mut runs = outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    runs.sort_by(|a, b| a.ops_per_s.total_cmp(&b.ops_per_s));
    runs.get(runs.len() / 2).copied().ok_or_else(|| "no run".into())
}

/// The directory of all databases, which is removed in the end.
struct Root(PathBuf);

impl Root {
    fn make(dir: &Path) -> Result<Root, Failure> {
        match fs::create_dir(dir) {
            Ok(()) => Ok(Root(dir.to_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(format!(
                "{} exists; remove it, or choose another place with --dir",
                dir.display()
            )
            .into()),
            Err(e) => Err(format!("making {}: {e}", dir.display()).into()),
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("atoll-bench: removing {}: {e}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_run_is_shown_and_a_failure_is_never_hidden() {
        let run = |ops_per_s| Ok(Figures { ops_per_s, ..Figures::default() });
        let rate = |outcomes| median(outcomes).map(|figures| figures.ops_per_s);
        assert_eq!(rate(vec![run(9.0), run(1.0), run(5.0)]), Ok(5.0));
        assert_eq!(rate(vec![run(9.0), Err("killed".into()), run(5.0)]), Err("killed".into()));
    }

    #[test]
    fn a_directory_that_exists_is_not_used_and_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Root::make(dir.path()).is_err());
        assert!(dir.path().exists());
        let inside = dir.path().join("new");
        drop(Root::make(&inside).unwrap());
        assert!(!inside.exists());
    }
}
