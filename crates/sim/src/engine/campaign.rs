//! Many seeds, on all cores, and what to say about them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::run::{Failed, Run, run};

/// A seed counts only if it acknowledged so much per simulated minute.
const ACKNOWLEDGED_MIN: u64 = 200;
/// A seed counts only with so many faults per simulated minute.
const FAULTS_MIN: u64 = 3;
/// States that a campaign of any size worth its name reaches; the names are those of the probes
/// ([`atoll_env::probe`]).
pub const STATES: [&str; 18] = [
    "a commit's answer is lost and its outcome asked for",
    "a dropped database is reclaimed",
    "a job meets an intent",
    "a job waits behind one of its connection",
    "a job waits for a block of a table",
    "a job waits for a lock",
    "a job waits for an entry in flight",
    "a job waits for its shard to serve",
    "a key is reaped at its deadline",
    "a staged transaction is recovered as aborted",
    "a staged transaction is recovered as committed",
    "a torn tail of the log is cut",
    "a transaction is moved to a later time",
    "a turn is refused for lack of room",
    SITES[0],
    SITES[1],
    SITES[2],
    SITES[3],
];
/// States that show as operations of the disk: each ends with the name of a site.
pub const SITES: [&str; 4] = [
    "disk: flush install",
    "disk: compaction install",
    "disk: manifest swap",
    "disk: segment reuse",
];

/// Which seeds to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first.
    pub seed: u64,
    /// How many.
    pub seeds: u64,
    /// Simulated seconds of each.
    pub seconds: u64,
    /// Threads to use.
    pub threads: usize,
    /// The rule that is left out, for a negative control.
    pub mutant: Option<&'static str>,
}

/// What a seed did.
#[derive(Clone, Debug)]
pub struct Told {
    /// Polls, disk operations, deliveries.
    pub events: u64,
    /// Faults by class.
    pub faults: BTreeMap<&'static str, u64>,
    /// Operations with a known outcome.
    pub acknowledged: u64,
    /// Calls that took part in a proof.
    pub checked: u64,
    /// Entries that were applied again and were the same.
    pub confirmed: u64,
    /// Probes.
    pub reached: BTreeMap<&'static str, u64>,
    /// The hash of everything.
    pub trace: u64,
    /// Simulated time under load.
    pub simulated_s: u64,
}

/// What all seeds did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Seeds that count.
    pub seeds: u64,
    /// Seeds with too little load or too few faults to count.
    pub idle: u64,
    /// Sum of the seeds' events.
    pub events: u64,
    /// Faults by class.
    pub faults: BTreeMap<&'static str, u64>,
    /// Sum of acknowledged operations.
    pub acknowledged: u64,
    /// Sum of calls in proofs.
    pub checked: u64,
    /// Sum of entries that were applied again and were the same.
    pub confirmed: u64,
    /// In how many seeds a state was reached.
    pub reached: BTreeMap<&'static str, u64>,
    /// Sum of the trace hashes: equal for equal runs, whatever the number of threads.
    pub digest: u64,
    /// Simulated seconds.
    pub simulated_s: u64,
    /// The first failure.
    pub failed: Option<Box<Failed>>,
}

impl Report {
    fn note(&mut self, told: &Told) {
        // What an operator does is no fault.
        const ORDINARY: [&str; 3] = ["restart", "split", "doubling"];
        let faults = told.faults.iter().filter(|(class, _)| !ORDINARY.contains(class));
        let faults: u64 = faults.map(|(_, times)| times).sum();
        let counts = told.acknowledged * 60 >= ACKNOWLEDGED_MIN * told.simulated_s
            && faults * 60 >= FAULTS_MIN * told.simulated_s;
        *if counts { &mut self.seeds } else { &mut self.idle } += 1;
        self.events += told.events;
        for (class, times) in &told.faults {
            *self.faults.entry(class).or_default() += times;
        }
        self.acknowledged += told.acknowledged;
        self.checked += told.checked;
        self.confirmed += told.confirmed;
        for state in told.reached.keys() {
            *self.reached.entry(state).or_default() += 1;
        }
        self.digest = self.digest.wrapping_add(told.trace);
        self.simulated_s += told.simulated_s;
    }

    /// Returns the states that no seed reached.
    pub fn unreached(&self) -> Vec<&'static str> {
        STATES.into_iter().filter(|state| !self.reached.contains_key(state)).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seeds ({} more had too little to do), {} simulated seconds, {} events",
            self.seeds, self.idle, self.simulated_s, self.events
        )?;
        writeln!(
            f,
            "{} operations acknowledged, {} calls in proofs, {} entries applied again and alike, \
             digest {:016x}",
            self.acknowledged, self.checked, self.confirmed, self.digest
        )?;
        writeln!(f, "\n{:<52} {:>9}", "fault", "times")?;
        for (class, times) in &self.faults {
            writeln!(f, "{class:<52} {times:>9}")?;
        }
        if !self.reached.is_empty() {
            writeln!(f, "\n{:<52} {:>9}", "state", "seeds")?;
            for (state, seeds) in &self.reached {
                writeln!(f, "{state:<52} {seeds:>9}")?;
            }
        }
        for state in self.unreached() {
            writeln!(f, "{state:<52}     never")?;
        }
        Ok(())
    }
}

/// Runs the seeds of a plan up to the first failure. `progress` is told how many are done.
pub fn campaign(plan: Plan, progress: &(dyn Fn(u64) + Sync)) -> Report {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(|| {
                super::mutants::choose(plan.mutant);
                while !failed.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= plan.seeds {
                        return;
                    }
                    let seed = plan.seed + number;
                    let outcome = run(Run { seed, seconds: plan.seconds, trace: false });
                    let mut report = report.lock().expect("no panic while it is held");
                    match outcome {
                        Ok(told) => report.note(&told),
                        Err(why) => {
                            failed.store(true, Ordering::Relaxed);
                            report.failed.get_or_insert(why);
                        }
                    }
                    progress(report.seeds + report.idle);
                }
            });
        }
    });
    report.into_inner().expect("no panic while it is held")
}
