//! `server`: AtollDB beside Redis, each a process of its own, under equal promises and loads.
//!
//! ```text
//!   atoll-bench                             one thread: turns, load, table
//!      |                   \
//!      | RESP over loopback  /proc/PID/stat, status
//!      v                     v
//!   [ atoll start ]  [ redis-server ]       one of them has work, the others wait
//!
//!   for each durability, for each case (a row for each server)
//!      for each run       set GET      run 1   atoll  redis
//!         for each server, in turns    run 2   redis  atoll      -> medians, ratios
//! ```
//!
//! Runs take turns in changing order, so that what else the machine does meets all servers alike;
//! read the ratios. The generator takes a processor of its own, or shares one with the server where
//! there are few: its part is the same for all, so that it draws ratios of rates towards one. The
//! processor time of a server for an operation has no such share.
//!
//! | flag       | AtollDB                 | Redis                    | a write is answered        |
//! |------------|-------------------------|--------------------------|----------------------------|
//! | `synced`   | `--durability synced`   | `--appendfsync always`   | when it is on the disk     |
//! | `interval` | `--durability interval` | `--appendfsync everysec` | within a second before     |
//!
//! # Columns
//!
//! - **ops/s**: operations by the time from the first request to the last reply. An MSET of ten, and
//!   a transaction of MULTI, five SETs and EXEC, is one operation.
//! - **p50, p99, p99.9, max**: from sending a pipeline to its last reply; an operation's latency is
//!   its pipeline's.
//! - **CPU us**: user and system time of all the server's threads and of its children that ended, by
//!   operations; `-` if it is less than a tenth of a second in all.
//! - **RSS**: the resident set right after.
//! - **x ops, x p99, x CPU, ...**: AtollDB's figure by Redis's.
//!
//! A row fails if a reply was an error, if a key that was loaded is not there, or if the server
//! ended; the program then fails in the end. What is not comparable is said in the row.
//!
//! # Parts
//!
//! `plan` makes cases of flags; `subject` starts and stops servers (`exec` ties them to this
//! process, `proc` reads what they use); `measure` takes one measurement, by `load` (with `encode`,
//! `replies`, `zipf`) or `redis_benchmark`; `report` makes rows; `interrupt` is Ctrl-C.

mod encode;
pub mod exec;
mod interrupt;
mod load;
mod measure;
mod plan;
mod proc;
mod redis_benchmark;
mod replies;
mod report;
mod subject;
pub mod zipf;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use self::interrupt::Interrupt;
use self::load::Extent;
use self::measure::{Context, Subject};
pub use self::plan::Args;
use self::plan::{Case, Peers, Settings, Tool, Workload};
use self::report::{LoadFigures, Row, Sample};
use self::subject::{Durability, Spec, Which};
use crate::Failure;
use crate::cgroup::MemoryCgroup;

/// What AtollDB may use in set-4x beside its budget: code, stacks, I/O in flight.
const ALLOWANCE: u64 = 64 << 20;

/// Operations by which redis-benchmark finds out how many fit into the time asked for.
const CALIBRATION: u64 = 20_000;

/// Runs the cases and prints the table.
pub fn run(args: Args) -> Result<(), Failure> {
    let settings = args.settings();
    let programs = Programs::find(&args, &settings)?;
    let json = match &args.json {
        Some(path) => Some(File::create(path).map_err(|e| format!("{}: {e}", path.display()))?),
        None => None,
    };
    let interrupt = Interrupt::on_signals()?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let root = tempfile::Builder::new()
        .prefix("atoll-bench-")
        .tempdir_in(&parent)
        .map_err(|e| format!("making a directory in {}: {e}", parent.display()))?;
    let cases: usize = settings.durabilities.iter().map(|&d| settings.cases(d).len()).sum();
    if cases == 0 {
        return Err("nothing is to be measured: get-under-writes needs synced, and incr, mix and \
                    get-under-writes need a --keyspace above 1"
            .into());
    }
    programs.introduce(&settings, root.path())?;
    let mut bench = Bench {
        context: Context { settings: &settings, root: root.path(), interrupt: &interrupt },
        programs: &programs,
        json,
        progress: Progress::new(cases * programs.whiches(&settings).len() * settings.runs as usize),
        heading: String::new(),
        failed_rows: 0,
    };
    for &durability in &settings.durabilities {
        bench.durability(durability)?;
    }
    bench.progress.clear();
    println!("\nload average {} after", proc::load_average()?);
    match bench.failed_rows {
        0 => Ok(()),
        1 => Err("a row failed".into()),
        rows => Err(format!("{rows} rows failed").into()),
    }
}

/// The programs that are run.
struct Programs {
    atoll: PathBuf,
    redis: Option<PathBuf>,
    redis_benchmark: Option<PathBuf>,
}

impl Programs {
    /// Finds the programs, or says how to get the one that is missing.
    fn find(args: &Args, settings: &Settings) -> Result<Programs, Failure> {
        let beside = || Ok::<_, Failure>(std::env::current_exe()?.with_file_name("atoll"));
        let atoll = match &args.atoll {
            Some(path) => path.clone(),
            None => beside()?,
        };
        let atoll = subject::find_program(&atoll).ok_or_else(|| {
            format!(
                "there is no AtollDB at {}; build it with `cargo build --release -p atoll`, or name \
                 another one with --atoll",
                atoll.display()
            )
        })?;
        let redis = match args.peers {
            Peers::None => None,
            Peers::Redis => Some(subject::find_program(&args.redis).ok_or_else(|| {
                format!(
                    "there is no Redis at {}; install Redis 7 (Debian: apt-get install \
                     redis-server), name one with --redis, or measure AtollDB alone with \
                     --peers none",
                    args.redis.display()
                )
            })?),
        };
        let redis_benchmark = match settings.uses_redis_benchmark() {
            false => None,
            true => Some(subject::find_program(&args.redis_benchmark).ok_or_else(|| {
                format!(
                    "there is no redis-benchmark at {}; install it (Debian: apt-get install \
                     redis-tools), name one with --redis-benchmark, or use --tool own",
                    args.redis_benchmark.display()
                )
            })?),
        };
        Ok(Programs { atoll, redis, redis_benchmark })
    }

    /// Returns the servers that are measured, Redis last.
    fn whiches(&self, settings: &Settings) -> Vec<Which> {
        let atolls = settings.cores.iter().map(|&cores| Which::Atoll { cores });
        atolls.chain(self.redis.is_some().then_some(Which::Redis)).collect()
    }

    fn spec(&self, which: Which, durability: Durability, memory: Option<u64>) -> Spec {
        let program = match (which, &self.redis) {
            (Which::Redis, Some(redis)) => redis.clone(),
            _ => self.atoll.clone(),
        };
        Spec { which, program, durability, memory }
    }

    /// Prints what is measured where.
    fn introduce(&self, settings: &Settings, root: &Path) -> Result<(), Failure> {
        println!("{}", version(&self.atoll)?);
        if let Some(redis) = &self.redis {
            println!("{}", version(redis)?);
        }
        println!("{}", proc::conditions(root)?);
        let extent = match settings.extent {
            Extent::Operations(operations) => format!("{operations} operations"),
            Extent::Time(time) => format!("{} s", time.as_secs_f64()),
        };
        println!(
            "{} connections, {extent} a measurement, medians of {}; times are those of a pipeline",
            settings.connections, settings.runs
        );
        Ok(())
    }
}

fn version(program: &Path) -> Result<String, Failure> {
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|e| format!("{}: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

struct Bench<'a> {
    context: Context<'a>,
    programs: &'a Programs,
    json: Option<File>,
    progress: Progress,
    /// The heading above the last row.
    heading: String,
    failed_rows: u32,
}

impl Bench<'_> {
    fn durability(&mut self, durability: Durability) -> Result<(), Failure> {
        let whiches = self.programs.whiches(self.context.settings);
        let subjects = |memory: Option<u64>| -> Vec<Subject> {
            let spec = |which| self.programs.spec(which, durability, memory);
            whiches.iter().map(|&which| Subject::new(spec(which))).collect()
        };
        let settings = self.context.settings;
        let mut shared = subjects(None);
        for case in &settings.cases(durability) {
            if matches!(case.workload, Workload::Set4x | Workload::Idle | Workload::Restart) {
                // They have servers of their own, beside which no other one is to run.
                shared = subjects(None);
            }
            if case.workload == Workload::Set4x {
                let mut large = subjects(Some(settings.memory));
                let remark = self.start_limited(&mut large)?;
                self.case(case, &mut large, &remark)?;
            } else {
                self.case(case, &mut shared, "")?;
            }
        }
        Ok(())
    }

    /// Starts the servers of set-4x: AtollDB within a memory cgroup, where one can be made, in which
    /// the page cache counts too. Returns what to say about it.
    fn start_limited(&self, subjects: &mut [Subject]) -> Result<String, Failure> {
        let memory = self.context.settings.memory;
        let mut remark = format!("memory {} MiB", memory >> 20);
        for subject in subjects {
            let group = match subject.spec.which {
                Which::Redis => None,
                Which::Atoll { .. } => match MemoryCgroup::create(memory + ALLOWANCE) {
                    Ok(group) => Some(group),
                    Err(_) => {
                        remark = format!("memory {} MiB and any page cache", memory >> 20);
                        None
                    }
                },
            };
            subject.running(&self.context, group)?;
        }
        Ok(remark)
    }

    /// Measures a case on all servers in turns and prints its rows.
    fn case(
        &mut self,
        case: &Case,
        subjects: &mut [Subject],
        atoll_remark: &str,
    ) -> Result<(), Failure> {
        let mut outcomes: Vec<Vec<Result<Sample, String>>> = vec![vec![]; subjects.len()];
        for run in 0..self.context.settings.runs {
            for turn in 0..subjects.len() {
                // Each run another server begins, so that none always follows the same one.
                let i = (run as usize + turn) % subjects.len();
                self.progress.next(case, subjects[i].spec.which);
                if outcomes[i].iter().any(Result::is_err) {
                    continue;
                }
                if case.workload.kind().is_some() {
                    for subject in subjects.iter_mut() {
                        // A server that cannot be started is no finding, but the end of it.
                        subject.running(&self.context, None)?;
                    }
                }
                let outcome = self.measure(case, subjects, i, run);
                // An interrupt is no property of a server.
                self.context.interrupt.check()?;
                let outcome = outcome.map_err(|failure| explained(&mut subjects[i], failure));
                if let Some(json) = &mut self.json {
                    let which = subjects[i].spec.which;
                    writeln!(json, "{}", report::to_json(case, which, run + 1, &outcome))?;
                }
                outcomes[i].push(outcome);
            }
        }
        self.print(case, subjects, &outcomes, atoll_remark);
        Ok(())
    }

    fn measure(
        &mut self,
        case: &Case,
        subjects: &mut [Subject],
        i: usize,
        run: u32,
    ) -> Result<Sample, Failure> {
        let context = &self.context;
        match case.workload {
            Workload::Idle => return measure::idle(&subjects[i].spec, context),
            Workload::Restart => return measure::restart(&subjects[i].spec, case, context),
            _ => {}
        }
        measure::settle(subjects, context)?;
        if case.value_size > 0 {
            subjects[i].load(context, case.keyspace, case.value_size)?;
            measure::settle(subjects, context)?;
        }
        let server = subjects[i].running(context, None)?;
        match case.tool {
            Tool::Own => {
                let progress = &mut self.progress;
                measure::load(server, case, context, u64::from(run), &mut |done| {
                    progress.show(done)
                })
            }
            Tool::RedisBenchmark => {
                let program = self.programs.redis_benchmark.as_ref();
                let program = program.ok_or("redis-benchmark was not looked for")?;
                let (addr, connections) = (server.addr, context.settings.connections);
                let send = |requests| {
                    let interrupt = context.interrupt;
                    redis_benchmark::run(program, addr, case, connections, requests, interrupt)
                };
                let requests = match context.settings.extent {
                    Extent::Operations(operations) => operations,
                    Extent::Time(time) => {
                        (send(CALIBRATION)?.ops_per_s * time.as_secs_f64()) as u64
                    }
                };
                let requests = requests.max(u64::from(connections));
                let before = server.cpu_s()?;
                let found = send(requests)?;
                let figures = LoadFigures {
                    ops_per_s: found.ops_per_s,
                    p50_us: found.p50_us,
                    p99_us: found.p99_us,
                    max_us: found.max_us,
                    cpu_us_per_op: measure::cpu_us_per_op(
                        server.cpu_s()? - before,
                        requests as f64,
                    ),
                    rss_mib: server.resident()? as f64 / f64::from(1 << 20),
                    ..LoadFigures::default()
                };
                Ok(figures.into())
            }
        }
    }

    fn print(
        &mut self,
        case: &Case,
        subjects: &[Subject],
        outcomes: &[Vec<Result<Sample, String>>],
        atoll_remark: &str,
    ) {
        self.progress.clear();
        let heading = report::heading(case.workload);
        if heading != self.heading {
            println!("\n{heading}");
            self.heading = heading;
        }
        let medians: Vec<_> = outcomes.iter().map(|outcomes| report::median(outcomes)).collect();
        let of_redis = |subject: &Subject| subject.spec.which == Which::Redis;
        let redis = subjects.iter().position(of_redis).and_then(|i| medians[i].as_ref().ok());
        for (subject, outcome) in subjects.iter().zip(&medians) {
            let is_redis = of_redis(subject);
            let remark = match (case.workload, is_redis) {
                (Workload::Set4x, true) => "not comparable: all data in memory, no limit",
                _ if is_redis => "",
                _ => atoll_remark,
            };
            let row = Row {
                case,
                which: subject.spec.which,
                outcome,
                redis: redis.filter(|_| !is_redis),
                remark: Some(remark.to_owned()).filter(|remark| !remark.is_empty()),
            };
            println!("{}", row.to_table());
            self.failed_rows += u32::from(outcome.is_err());
        }
    }
}

/// Says why a measurement failed, with what became of the server.
fn explained(subject: &mut Subject, failure: Failure) -> String {
    match subject.end() {
        Some(end) => format!("{failure}; {end}"),
        None => failure.to_string(),
    }
}

/// The line on standard error that says how far it is: rewritten in place on a terminal, a line for
/// each measurement elsewhere.
struct Progress {
    all: usize,
    done: usize,
    started: Instant,
    in_place: bool,
    text: String,
    operations: (u64, Instant),
}

impl Progress {
    fn new(all: usize) -> Progress {
        let (started, in_place) = (Instant::now(), std::io::stderr().is_terminal());
        Progress { all, done: 0, started, in_place, text: String::new(), operations: (0, started) }
    }

    fn next(&mut self, case: &Case, which: Which) {
        self.done += 1;
        let label = report::label(case);
        let words: Vec<&str> = label.split_whitespace().collect();
        let seconds = self.started.elapsed().as_secs();
        let (done, all) = (self.done, self.all);
        self.text = format!("{done}/{all}  {seconds} s  {} {which}", words.join(" "));
        self.operations = (0, Instant::now());
        self.say("");
    }

    fn show(&mut self, operations: u64) {
        if !self.in_place {
            return;
        }
        let (before, then) = self.operations;
        let seconds = then.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        self.operations = (operations, Instant::now());
        self.say(&format!("  {:.0} ops/s", (operations - before) as f64 / seconds));
    }

    fn say(&self, rate: &str) {
        let (start, end) = if self.in_place { ("\r\x1b[K", "") } else { ("", "\n") };
        // Progress nobody can see is no reason to stop measuring.
        let _ = write!(std::io::stderr(), "{start}{}{rate}{end}", self.text);
    }

    fn clear(&self) {
        if self.in_place {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
