//! One crash point: a history is run until the power goes, and the database is opened again.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use atoll_env::random::Prng;
use atoll_env::sim::{CrashMode, CrashTiming, Mutation, Node, Outcome, Sim};

use crate::check::Trouble;
use crate::life::{Setting, live};
use crate::oracle::Oracle;
use crate::rot;
use crate::script::{Phase, Script};

/// Names a crash point, and everything that happens around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The history.
    pub seed: u64,
    /// The mutation of the disk at which the power goes, from 0; `None` if it does not.
    pub at: Option<u64>,
    /// Which draw of what the cut leaves and what follows.
    pub draw: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) if self.draw == 0 => write!(f, "{:#x}:{at}", self.seed),
            Some(at) => write!(f, "{:#x}:{at}/{}", self.seed, self.draw),
            None => write!(f, "{:#x}", self.seed),
        }
    }
}

impl std::str::FromStr for Point {
    type Err = String;
    fn from_str(whole: &str) -> Result<Point, String> {
        let wrong = || {
            format!(
                "'{whole}' is no crash point: write SEED, SEED:POINT or SEED:POINT/DRAW, as reported"
            )
        };
        let (text, draw) = match whole.split_once('/') {
            Some((text, draw)) => (text, draw.parse().map_err(|_| wrong())?),
            None => (whole, 0),
        };
        let (seed, at) = match text.split_once(':') {
            Some((seed, at)) => (seed, Some(at.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let seed = match seed.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => seed.parse(),
        };
        Ok(Point { seed: seed.map_err(|_| wrong())?, at, draw })
    }
}

/// What happened at a point.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Where the power went: first in the history, then in recoveries.
    pub crashes: Vec<Mutation>,
    /// What was written, if the power did not go.
    pub mutations: Vec<Mutation>,
    /// What became of a rotten byte, if one was tried.
    pub rot: Option<rot::Verdict>,
    /// Hash of everything that happened.
    pub trace: u64,
}

/// A violation.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Where.
    pub point: Point,
    /// What.
    pub trouble: Trouble,
    /// The last things that happened, if they were kept.
    pub lines: Vec<String>,
}

/// Runs a point. `verbose` keeps the trace as text for a violation.
///
/// # Errors
/// The engine broke a promise.
pub fn run(point: Point, verbose: bool) -> Result<Told, Box<Violation>> {
    let mut world = World::new(point, verbose);
    let result = world.run();
    let lines = world.sim.take_trace_lines();
    match result {
        Ok(()) => {
            world.told.trace = world.sim.trace_hash();
            Ok(world.told)
        }
        Err(trouble) => Err(Box::new(Violation { point, trouble, lines })),
    }
}

struct World {
    point: Point,
    sim: Sim,
    node: Node,
    script: Script,
    oracle: Rc<RefCell<Oracle>>,
    prng: Prng,
    lives: u64,
    /// Since the last check, power was cut: what was not synced may be gone.
    power_cut: bool,
    told: Told,
}

impl World {
    fn new(point: Point, verbose: bool) -> World {
        let sim = Sim::new(point.seed);
        if verbose {
            sim.keep_trace_lines();
        }
        let node = sim.node("db");
        let script = Script::of(point.seed);
        let oracle = Rc::new(RefCell::new(Oracle::new(script.tuning.sync_interval)));
        let fate = point.at.map_or(0, |at| (at + 1) << 32) ^ (point.draw << 56);
        let prng = Prng::new(point.seed ^ fate).fork("point");
        World {
            point,
            sim,
            node,
            script,
            oracle,
            prng,
            lives: 0,
            power_cut: false,
            told: Told::default(),
        }
    }

    fn run(&mut self) -> Result<(), Trouble> {
        self.node.disk().keep_mutations();
        if let Some(at) = self.point.at {
            self.plan_crash(at);
        }
        let mut crashed = false;
        for phase in std::mem::take(&mut self.script.phases).into_iter().map(Some).chain([None]) {
            if self.live(phase)?.is_none() {
                crashed = true;
                break;
            }
        }
        if crashed {
            self.recover()?;
        } else {
            self.told.mutations = self.node.disk().take_mutations();
        }
        Ok(())
    }

    /// Opens again after a crash, and perhaps crashes again in the middle of it, twice at most.
    fn recover(&mut self) -> Result<(), Trouble> {
        let rotten = self.prng.chance(0.1).then(|| self.copy());
        let mut nested = if self.prng.chance(0.5) { 1 + self.prng.index(2) } else { 0 };
        let mut first = None;
        loop {
            if nested > 0 {
                let most = self.prng.range(1..24);
                let after = self.prng.below(most);
                self.plan_crash(self.node.disk().mutations() + after);
            }
            let aftermath = self.prng.chance(0.3).then(|| Script::aftermath(&mut self.prng));
            let last = aftermath.is_none();
            match self.live(aftermath)? {
                None => {
                    // A planned cut may come just when the life has ended: then it shows here.
                    nested = nested.saturating_sub(1);
                    first = first.or(Some(None));
                }
                Some(survived) => {
                    first = first.or(Some(Some(survived)));
                    self.node.disk().cancel_crash();
                    nested = 0;
                    if last {
                        break;
                    }
                }
            }
        }
        if let (Some(copy), Some(Some(survived))) = (rotten, first) {
            self.told.rot = Some(rot::try_one(copy, survived, &mut self.prng)?);
        }
        Ok(())
    }

    /// Plans the next power cut, and what it leaves.
    fn plan_crash(&mut self, at: u64) {
        let disk = self.node.disk();
        let mut options = disk.options();
        options.crash_mode = match self.prng.index(8) {
            0 | 1 => CrashMode::KeepAll,
            2 | 3 => CrashMode::DropAll,
            _ => CrashMode::Random,
        };
        options.torn_sector = if self.prng.chance(0.5) { 0.05 } else { 0.5 };
        disk.set_options(options);
        disk.crash_at(at, CrashTiming::Any);
    }

    /// Leads a life. Returns how many entries of the one before survived, `None` if it ended in a
    /// crash; the node is up again then.
    fn live(&mut self, phase: Option<Phase>) -> Result<Option<usize>, Trouble> {
        self.lives += 1;
        let env = self.node.env();
        let floor = self.oracle.borrow().floor(self.power_cut, env.clock.now());
        let setting = Setting {
            env,
            tuning: self.script.tuning.clone(),
            oracle: self.oracle.clone(),
            floor,
            number: self.lives,
            prng: self.prng.fork("life"),
        };
        // What a life settles is durable, and what follows is promised anew.
        let settled = Rc::new(Cell::new(false));
        let outcome = self.sim.try_block_on(&self.node, live(setting, phase, settled.clone()));
        if settled.get() {
            self.power_cut = false;
        }
        match outcome {
            Err(deadlock) => Err(Trouble::Wrong(deadlock.to_string())),
            Ok(Outcome::Done(survived)) => survived.map(Some),
            Ok(Outcome::Crashed) => {
                self.told.crashes.extend(self.node.disk().take_mutations().last());
                self.power_cut |= self.node.disk().options().crash_mode != CrashMode::KeepAll;
                self.node.restart();
                Ok(None)
            }
        }
    }

    /// Copies what a crash left, for a world in which one of the bytes is another.
    fn copy(&self) -> rot::Copy {
        rot::Copy {
            seed: self.point.seed,
            disk: self.node.disk().snapshot(),
            tuning: self.script.tuning.clone(),
            oracle: self.oracle.borrow().without_copies(),
            life: self.lives + 1,
            now: self.sim.now(),
        }
    }
}
