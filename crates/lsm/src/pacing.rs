//! Pacing: how store and background work carry out what the [pacer](crate::pacer) says.
//!
//! ```text
//!   writer    before its entries are staged: a beat each 1/256 of a memtable -> a delay for each byte
//!   flush     begin | beat each 1024 records ........................ | installed
//!   merge     begin | beat each 1024 records, rest if it is said so ... | installed
//! ```
//!
//! What a writer owes adds up until it is worth a sleep, so that many short writes share one, and what
//! a sleep took too long is credited. A group of writers, and a turn of an owner, is delayed as one:
//! nobody waits longer for others' bytes than [`delay_max`] says.
//!
//! Without pacing ([`Options::pacing`]) it is as in an engine that knows none: merges never rest, and
//! writers go on until memory or level 0 is full, and then stand still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::{Instant, task};
use parking_lot::Mutex;

use crate::compaction::choose::Targets;
use crate::error::Result;
use crate::events::{self, WriteDelayed};
use crate::memtable::Memtable;
use crate::options::Options;
use crate::pacer::{Allowance, Event, Job, Limits, Pacer, Pressure, delay_max};
use crate::store::{Chore, Store, Writer};
use crate::version::{TableHandle, Version};

/// A shorter sleep is not worth it.
const SLEEP_MIN: Duration = Duration::from_micros(250);
const REST_MIN: Duration = Duration::from_millis(1);
/// A merge is worth two threads from this pressure on.
const HURRY: f64 = 0.35;

/// The pacer of a store.
pub(crate) struct Pacing {
    pacer: Mutex<Pacer>,
    on: bool,
    /// Bytes of a usual memtable.
    memtable: u64,
    /// Bytes that are written between two looks.
    every: u64,
    /// Level 0 may have so many tables without pacing.
    level0_most: usize,
    next_job: AtomicU64,
}

/// What a writer owes.
#[derive(Default)]
pub(crate) struct Owed {
    nanos_per_byte: f64,
    /// Bytes since the last look.
    bytes: u64,
    looked: bool,
    /// What is owed but too short to sleep, and what was slept too long.
    nanos: f64,
}

impl Pacing {
    pub(crate) fn new(options: &Options) -> Pacing {
        let memtable = options.memtable_capacity() as u64;
        let limits = Limits {
            memtable,
            memory: options.memtable_share() as u64,
            level0_slowdown: options.level0_slowdown,
            targets: targets(options),
        };
        Pacing {
            pacer: Mutex::new(Pacer::new(limits)),
            on: options.pacing,
            memtable,
            every: (memtable / 256).max(1),
            level0_most: 3 * options.level0_slowdown.max(options.level0_tables + 2),
            next_job: AtomicU64::new(1),
        }
    }

    fn step(&self, now: Instant, event: Event) -> Allowance {
        self.pacer.lock().step(now, event)
    }

    /// Returns what is behind.
    pub(crate) fn pressure(&self) -> Pressure {
        self.pacer.lock().pressure()
    }

    /// Returns the bytes of a memtable as the pacer counts them: one that was made for a large batch
    /// counts as a usual one, since it says nothing of how fast others write.
    pub(crate) fn memory(&self, memtable: &Memtable) -> u64 {
        (memtable.bytes_used() as u64).min(self.memtable)
    }

    /// Returns whether a merge is so urgent that it may take two threads.
    pub(crate) fn hurries(&self) -> bool {
        !self.on || self.pressure().of >= HURRY
    }
}

/// Returns the sizes at which compaction starts.
pub(crate) fn targets(options: &Options) -> Targets {
    Targets {
        level0_tables: options.level0_tables,
        level_base_size: options.level_base_size,
        level_ratio: options.level_ratio,
        value_file_size: options.value_file_size,
    }
}

/// Returns the job of merging tables into a level.
pub(crate) fn merge_job(tables: &[(usize, Arc<TableHandle>)], to: usize) -> Job {
    let mut job = Job { to, ..Job::default() };
    for (level, handle) in tables {
        job.from[*level] += handle.desc.size;
        job.tables += usize::from(*level == 0);
        job.records += handle.desc.entries;
    }
    job
}

/// A job that is under way. If it goes without having been installed it was given up.
pub(crate) struct Underway<'s> {
    store: &'s Store,
    pub(crate) id: u64,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let now = self.store.clock().now();
        self.store.pacing.step(now, Event::GiveUp { id: self.id });
    }
}

/// The beats of a job, or of a part of one.
pub(crate) struct Rhythm<'s> {
    store: &'s Store,
    job: u64,
    last: Instant,
    owed: Duration,
}

impl<'s> Rhythm<'s> {
    pub(crate) fn new(store: &'s Store, job: u64) -> Rhythm<'s> {
        Rhythm { store, job, last: store.clock().now(), owed: Duration::ZERO }
    }

    /// A beat: so many records were read. Lets others run, and rests if there is time.
    pub(crate) async fn beat(&mut self, records: u64) {
        let clock = self.store.clock();
        let now = clock.now();
        let took = now.since(self.last);
        let beat = Event::Beat { id: self.job, records, took };
        let rest = self.store.pacing.step(now, beat).rest;
        if self.store.pacing.on {
            self.owed += rest;
        }
        if self.owed >= REST_MIN {
            clock.sleep(std::mem::take(&mut self.owed)).await;
        } else {
            task::yield_now().await;
        }
        self.last = clock.now();
    }
}

/// Times a read for as long as it lives.
pub(crate) struct ReadTimer<'s> {
    store: &'s Store,
    since: Instant,
}

impl Drop for ReadTimer<'_> {
    fn drop(&mut self) {
        let took = self.store.clock().now().since(self.since);
        self.store.stats.read_took(took);
        self.store.pacing.pacer.lock().guard.read(took);
    }
}

impl Store {
    /// Counts a point read. What is returned, if it is one to be timed, is to be kept to its end.
    #[must_use]
    #[inline]
    pub(crate) fn time_read(&self) -> Option<ReadTimer<'_>> {
        self.stats.times_read().then(|| ReadTimer { store: self, since: self.clock().now() })
    }

    /// Tells the pacer what the levels are, and which job (with the bytes it wrote) made them so.
    pub(crate) fn pace_levels(&self, version: &Version, ended: Option<(u64, u64)>) {
        let bytes = std::array::from_fn(|level| {
            version.levels[level].iter().map(|handle| handle.desc.size).sum()
        });
        let levels = Event::Levels { bytes, tables: version.levels[0].len(), ended };
        self.pacing.step(self.clock().now(), levels);
    }

    /// Begins a job.
    pub(crate) fn begin_job(&self, job: Job) -> Underway<'_> {
        let id = self.pacing.next_job.fetch_add(1, Ordering::Relaxed);
        self.pacing.step(self.clock().now(), Event::Begin(Job { id, ..job }));
        Underway { store: self, id }
    }

    /// Delays whoever writes `bytes`, as much as is behind.
    ///
    /// # Errors
    /// Only without pacing, where this may wait for long: the store is closed or refuses writes.
    pub(crate) async fn slow_down(&self, writer: &mut Writer, bytes: usize) -> Result<()> {
        let owed = &mut writer.owed;
        owed.bytes += bytes as u64;
        if !owed.looked || owed.bytes >= self.pacing.every {
            let sealed =
                self.sealed.lock().iter().map(|s| self.pacing.memory(&s.memtable)).sum::<u64>();
            let memory = self.pacing.memory(writer.active.memtable()) + sealed;
            let write = Event::Write { memory };
            owed.nanos_per_byte = self.pacing.step(self.clock().now(), write).nanos_per_byte;
            (owed.bytes, owed.looked) = (0, true);
            let slowed_down = owed.nanos_per_byte > 0.0;
            if std::mem::replace(&mut writer.slowed_down, slowed_down) != slowed_down {
                let level0_tables = self.pin().0.version.levels[0].len();
                self.events.tell(|| match slowed_down {
                    true => events::Event::WriteDelayed(WriteDelayed { level0_tables }),
                    false => events::Event::WriteDelayEnded,
                });
            }
        }
        if !self.pacing.on {
            return self.wait_for_level0().await;
        }
        if owed.nanos_per_byte == 0.0 {
            owed.nanos = 0.0;
            return Ok(());
        }
        owed.nanos += bytes as f64 * owed.nanos_per_byte;
        let most = delay_max(bytes as u64);
        let delay = Duration::from_nanos(owed.nanos.max(0.0) as u64).min(most);
        if delay >= SLEEP_MIN {
            let before = self.clock().now();
            self.clock().sleep(delay).await;
            let slept = self.clock().now().since(before);
            // What is beyond the bound is forgiven, and so is a sleep that took far too long.
            owed.nanos = (delay.as_nanos() as f64 - slept.as_nanos() as f64).max(-1e6);
            owed.looked = false;
            self.stats.delayed(slept);
        }
        Ok(())
    }

    /// Waits until level 0 has room.
    async fn wait_for_level0(&self) -> Result<()> {
        let mut stalled: Option<Instant> = None;
        loop {
            let relief = self.relief.listen();
            if let Some(refusal) = self.refusal() {
                return Err(refusal);
            }
            let full = self.pin().0.version.levels[0].len() >= self.pacing.level0_most;
            if !full || self.is_closed() || self.failure(Chore::Compaction).is_some() {
                break;
            }
            stalled.get_or_insert_with(|| self.clock().now());
            self.compaction_due.notify();
            relief.await;
        }
        if let Some(since) = stalled {
            self.stats.stalled(self.clock().now().since(since));
        }
        Ok(())
    }
}
