//! What the cores of a server share above the keys: settings, counters, logs of what was slow,
//! cursors, a pause.
//!
//! A core reads none of this on the way of a command to its shard: it keeps a copy of the settings
//! and looks once a turn whether they have changed. The locks are taken by commands that are about
//! the server itself, by what was slow, and once by each step of a SCAN.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use atoll_env::Instant;
use atoll_env::disk::DiskStatus;
use parking_lot::Mutex;

use crate::config::Config;
use crate::cursors::Cursors;
use crate::latency::Latency;
use crate::slowlog::SlowLog;
use crate::stats::Stats;

/// What all cores share.
pub struct Shared {
    config: Mutex<Config>,
    pause: Mutex<Option<Pause>>,
    /// Counts changes of the two above.
    changes: AtomicU64,
    /// The counters of each core.
    stats: Vec<Arc<Stats>>,
    /// What was counted when CONFIG RESETSTAT came last. Counters have one writer, so nobody sets
    /// them to zero.
    before: Mutex<Option<Stats>>,
    rates: Mutex<Rates>,
    disk: OnceLock<AskDisk>,
    memory: OnceLock<AskMemory>,
    /// Where scans go on, whichever core is asked.
    pub(crate) cursors: Mutex<Cursors>,
    pub(crate) slowlog: Mutex<SlowLog>,
    pub(crate) latency: Mutex<Latency>,
}

/// Asks the disk by what means it works.
pub type AskDisk = Box<dyn Fn() -> DiskStatus + Send + Sync>;

/// Asks the stores what their memory is made of: lines of `INFO memory`.
pub type AskMemory = Box<dyn Fn() -> Vec<(&'static str, String)> + Send + Sync>;

/// CLIENT PAUSE: until then, commands wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    pub until: Instant,
    /// All of them, not only those that may write.
    pub all: bool,
}

/// What the last second brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    sampled: Option<(Instant, [u64; 3])>,
    /// Commands, bytes of requests and bytes of replies per second.
    pub per_second: [f64; 3],
}

impl Shared {
    /// Starts for a number of cores. Cursors start at a number that `random` gives.
    pub fn new(config: Config, random: u64, cores: usize) -> Arc<Shared> {
        Arc::new(Shared {
            config: Mutex::new(config),
            pause: Mutex::default(),
            changes: AtomicU64::new(1),
            stats: (0..cores.max(1)).map(|_| Arc::default()).collect(),
            before: Mutex::default(),
            rates: Mutex::default(),
            disk: OnceLock::new(),
            memory: OnceLock::new(),
            cursors: Mutex::new(Cursors::new(random)),
            slowlog: Mutex::default(),
            latency: Mutex::default(),
        })
    }

    /// Returns the counters that a core writes.
    pub fn stats(&self, core: usize) -> Arc<Stats> {
        self.stats[core].clone()
    }

    /// Returns the sums of what all cores have counted since the start.
    pub fn total(&self) -> Stats {
        Stats::sum(self.stats.iter().map(|stats| &**stats))
    }

    /// Returns how many connections there are, on all cores.
    pub fn connected(&self) -> u64 {
        self.stats.iter().map(|stats| stats.connected_clients.get()).sum()
    }

    /// Says where to ask for the state of the disk. The first one counts.
    pub fn ask_disk(&self, ask: AskDisk) {
        let _ = self.disk.set(ask);
    }

    /// Returns the state of the disk, if somebody said where to ask.
    pub fn disk(&self) -> Option<DiskStatus> {
        self.disk.get().map(|ask| ask())
    }

    /// Says where to ask what the stores' memory is made of. The first one counts.
    pub fn ask_memory(&self, ask: AskMemory) {
        let _ = self.memory.set(ask);
    }

    /// Returns what the stores' memory is made of.
    pub fn memory(&self) -> Vec<(&'static str, String)> {
        self.memory.get().map(|ask| ask()).unwrap_or_default()
    }

    /// Returns where scans go on.
    pub fn cursors(&self) -> &Mutex<Cursors> {
        &self.cursors
    }

    /// Returns the configuration as it is now.
    pub fn config(&self) -> Config {
        self.config.lock().clone()
    }

    /// Returns the password of the settings, empty if there is none.
    pub fn password(&self) -> Vec<u8> {
        self.config.lock().requirepass.clone()
    }

    /// Changes the configuration; every core has it before its next command.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config.lock());
        self.changed();
    }

    /// Samples how fast counters grow; once a second.
    pub fn sample(&self, now: Instant) {
        let total = self.total();
        let counted = [&total.commands_processed, &total.input_bytes, &total.output_bytes];
        let counted = counted.map(|counter| counter.get());
        let mut rates = self.rates.lock();
        if let Some((then, before)) = rates.sampled {
            let seconds = now.since(then).as_secs_f64().max(1e-3);
            for ((rate, now), before) in rates.per_second.iter_mut().zip(counted).zip(before) {
                *rate = now.saturating_sub(before) as f64 / seconds;
            }
        }
        rates.sampled = Some((now, counted));
    }

    pub(crate) fn rates(&self) -> Rates {
        *self.rates.lock()
    }

    /// Returns the sums since CONFIG RESETSTAT.
    pub(crate) fn since_reset(&self) -> Stats {
        match &*self.before.lock() {
            Some(before) => self.total().less(before),
            None => self.total(),
        }
    }

    pub(crate) fn reset_stats(&self) {
        *self.before.lock() = Some(self.total());
    }

    /// Returns a number that is another one whenever settings or the pause have changed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn pause(&self) -> Option<Pause> {
        *self.pause.lock()
    }

    /// Has commands wait, at least as many as they do now and at least as long.
    pub(crate) fn pause_until(&self, until: Instant, all: bool, now: Instant) {
        let mut pause = self.pause.lock();
        let current = pause.filter(|pause| pause.until > now);
        *pause = Some(Pause {
            until: current.map_or(until, |pause| pause.until.max(until)),
            all: all || current.is_some_and(|pause| pause.all),
        });
        drop(pause);
        self.changed();
    }

    pub(crate) fn unpause(&self) {
        *self.pause.lock() = None;
        self.changed();
    }
}
