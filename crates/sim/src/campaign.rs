//! Many crash points: which ones, on all cores, and what to say about them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use atoll_env::probe;
use atoll_env::random::Prng;
use atoll_env::sim::{Mutation, OpKind};

use crate::check::Trouble;
use crate::point::{Point, Told, Violation, run};
use crate::rot::Verdict;
use crate::script::{Script, Size};

/// Sites that a full run must have crashed at, a thousand times each.
pub const REQUIRED_SITES: [&str; 18] = [
    "frame write",
    "frame sync",
    "segment reuse",
    "rotation",
    "flush install",
    "manifest swap",
    "compaction install",
    "range delete",
    "value write",
    "value names",
    "value move",
    "value removal",
    "checkpoint names",
    "checkpoint link",
    "checkpoint log",
    "backup file",
    "backup generation",
    "ingest install",
];
/// Sites that few operations have: each is crashed at several times, with other draws.
const DRAWS_OF_RARE: [(&str, u64); 10] = [
    ("rotation", 16),
    ("range delete", 3),
    ("value move", 40),
    ("value removal", 6),
    ("checkpoint names", 2),
    ("checkpoint link", 40),
    ("checkpoint log", 9),
    ("backup file", 3),
    ("backup generation", 6),
    ("ingest install", 3),
];
/// Points of a history that is too long to crash everywhere.
const POINTS_OF_LONG: usize = 120;
/// Mutations up to which a history is crashed at each of them.
const EVERY_UP_TO: usize = 400;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Crash points to run at least.
    pub points: u64,
    /// Where histories come from.
    pub seed: u64,
    /// Threads to use.
    pub threads: usize,
}

/// What was run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Histories.
    pub histories: u64,
    /// Crash points.
    pub points: u64,
    /// Further crashes, in the recoveries that followed.
    pub nested: u64,
    /// Crashes by site: first ones and those in recoveries.
    pub sites: BTreeMap<&'static str, (u64, u64)>,
    /// Rotten bytes that were refused, did not matter, and cut the log where nobody can know.
    pub rot: [u64; 3],
    /// How often states were reached that are rare and matter.
    pub reached: BTreeMap<&'static str, u64>,
    /// Sum of the trace hashes: equal for equal runs, whatever the number of threads.
    pub digest: u64,
    /// The first violation found, if any.
    pub violation: Option<Box<Violation>>,
}

impl Report {
    fn note(&mut self, point: Point, told: &Told) {
        for (index, crash) in told.crashes.iter().enumerate() {
            let (first, nested) = self.sites.entry(site(crash)).or_default();
            *if index == 0 { first } else { nested } += 1;
        }
        self.nested += told.crashes.len().saturating_sub(1) as u64;
        self.points += u64::from(point.at.is_some());
        self.histories += u64::from(point.at.is_none());
        match told.rot {
            Some(Verdict::Refused) => self.rot[0] += 1,
            Some(Verdict::Unaffected) => self.rot[1] += 1,
            Some(Verdict::Shorter) => self.rot[2] += 1,
            None => {}
        }
        for (what, times) in probe::take() {
            *self.reached.entry(what).or_default() += times;
        }
        self.digest = self.digest.wrapping_add(told.trace);
    }

    fn add(&mut self, other: Report) {
        self.histories += other.histories;
        self.points += other.points;
        self.nested += other.nested;
        for (site, (first, nested)) in other.sites {
            let sum = self.sites.entry(site).or_default();
            *sum = (sum.0 + first, sum.1 + nested);
        }
        for (what, times) in other.reached {
            *self.reached.entry(what).or_default() += times;
        }
        for (sum, more) in self.rot.iter_mut().zip(other.rot) {
            *sum += more;
        }
        self.digest = self.digest.wrapping_add(other.digest);
        if self.violation.is_none() {
            self.violation = other.violation;
        }
    }

    /// Returns the required sites that were hit less often than `least`.
    pub fn missing_sites(&self, least: u64) -> Vec<&'static str> {
        let hits = |site: &str| self.sites.get(site).map_or(0, |(first, _)| *first);
        REQUIRED_SITES.into_iter().filter(|site| hits(site) < least).collect()
    }

    /// Returns the report as a JSON object.
    pub fn json(&self, seconds: f64) -> String {
        let mut sites = String::new();
        for (site, (first, nested)) in &self.sites {
            let comma = if sites.is_empty() { "" } else { "," };
            let _ = write!(sites, "{comma}\"{site}\":{{\"first\":{first},\"nested\":{nested}}}");
        }
        let violation = match &self.violation {
            Some(v) => format!("\"{}\"", v.point),
            None => "null".to_owned(),
        };
        format!(
            "{{\"points\":{},\"nested\":{},\"histories\":{},\"seconds\":{seconds:.1},\
             \"rot\":{{\"refused\":{},\"unaffected\":{},\"shorter\":{}}},\
             \"digest\":\"{:016x}\",\"violation\":{violation},\"sites\":{{{sites}}}}}",
            self.points,
            self.nested,
            self.histories,
            self.rot[0],
            self.rot[1],
            self.rot[2],
            self.digest,
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20} {:>9} {:>12}", "site", "crashes", "in recovery")?;
        for (site, (first, nested)) in &self.sites {
            writeln!(f, "{site:<20} {first:>9} {nested:>12}")?;
        }
        writeln!(f, "{:<20} {:>9} {:>12}", "all", self.points, self.nested)?;
        for (what, times) in &self.reached {
            writeln!(f, "reached {times} times: {what}")?;
        }
        write!(
            f,
            "{} histories; rotten bytes: {} refused, {} without effect, {} cut an unproven tail; \
             digest {:016x}",
            self.histories, self.rot[0], self.rot[1], self.rot[2], self.digest
        )
    }
}

/// Returns the name under which a crash is counted.
fn site(crash: &Mutation) -> &'static str {
    match (crash.site, crash.op) {
        ("", OpKind::CreateDir) => "directory creation",
        ("", _) => "file creation",
        (site, _) => site,
    }
}

/// Returns the seed of history number `index`.
fn history(seed: u64, index: u64) -> u64 {
    Prng::new(seed).fork(&format!("history {index}")).next_u64()
}

/// Runs crash points until there are enough or one fails. `progress` is told the number of points
/// now and then, from any thread.
pub fn campaign(plan: Plan, progress: &(dyn Fn(u64) + Sync)) -> Report {
    let (next, points, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Report::default());
    let work = || {
        let mut report = Report::default();
        while !stop.load(Ordering::Relaxed) {
            // Each history runs whole, so that the same ones are run on any number of threads; the
            // numbers are drawn in order, and none is begun once there are enough points.
            let index = next.fetch_add(1, Ordering::Relaxed);
            if points.load(Ordering::Relaxed) >= plan.points {
                break;
            }
            let result = run_history(history(plan.seed, index), &mut report, &mut || {
                progress(points.fetch_add(1, Ordering::Relaxed) + 1);
                !stop.load(Ordering::Relaxed)
            });
            if let Err(violation) = result {
                report.violation = Some(violation);
                stop.store(true, Ordering::Relaxed);
            }
        }
        total.lock().expect("no holder panics").add(report);
    };
    std::thread::scope(|scope| {
        for _ in 1..plan.threads {
            scope.spawn(work);
        }
        work();
    });
    total.into_inner().expect("no holder panics")
}

/// Runs a history to its end, and then up to each of its crash points. `go_on` is asked after each.
fn run_history(
    seed: u64,
    report: &mut Report,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<(), Box<Violation>> {
    let whole = Point { seed, at: None, draw: 0 };
    let told = guarded(whole)?;
    report.note(whole, &told);
    for (at, draw) in choose(seed, &told.mutations) {
        let point = Point { seed, at: Some(at), draw };
        report.note(point, &guarded(point)?);
        if !go_on() {
            break;
        }
    }
    Ok(())
}

/// Runs a point; a panic is a violation too.
fn guarded(point: Point) -> Result<Told, Box<Violation>> {
    catch_unwind(AssertUnwindSafe(|| run(point, false))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let trouble = Trouble::Wrong(format!("panicked: {text}"));
        Err(Box::new(Violation { point, trouble, lines: Vec::new() }))
    })
}

/// Returns the points of a history, and which draws of them: all of a short one, those of rare
/// sites several times; of a long one as many of each site.
fn choose(seed: u64, mutations: &[Mutation]) -> Vec<(u64, u64)> {
    if Script::of(seed).size == Size::Short && mutations.len() <= EVERY_UP_TO {
        let all = (0u64..).zip(mutations);
        let draws = |m: &Mutation| {
            DRAWS_OF_RARE.iter().find(|(site, _)| *site == m.site).map_or(1, |(_, draws)| *draws)
        };
        return all.flat_map(|(at, m)| (0..draws(m)).map(move |draw| (at, draw))).collect();
    }
    let mut by_site: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (at, mutation) in (0u64..).zip(mutations) {
        by_site.entry(site(mutation)).or_default().push(at);
    }
    let mut prng = Prng::new(seed).fork("points");
    let share = POINTS_OF_LONG / by_site.len().max(1);
    let mut points = Vec::new();
    for mut of_site in by_site.into_values() {
        prng.shuffle(&mut of_site);
        points.extend(of_site.into_iter().take(share).map(|at| (at, 0)));
    }
    points
}
