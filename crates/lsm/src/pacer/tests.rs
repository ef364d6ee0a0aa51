//! The pacer beside a disk that is a rate: whoever writes and whatever merges, in steps of a
//! millisecond.

use atoll_env::random::Prng;

use super::*;
use crate::compaction::choose::targets_of;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn limits() -> Limits {
    let targets = Targets {
        level0_tables: 4,
        level_base_size: 64 * MIB,
        level_ratio: 10,
        value_file_size: 128 * MIB,
    };
    Limits { memtable: 8 * MIB, memory: 24 * MIB, level0_slowdown: 12, targets }
}

fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn the_delay_begins_at_one_half_and_only_rises() {
    assert_eq!(nanos_per_byte(0.0), 0.0);
    assert_eq!(nanos_per_byte(0.5), 0.0);
    let mut before = 0.0;
    for n in 0..1000 {
        let now = nanos_per_byte(0.5 + f64::from(n) / 2000.0);
        assert!(now >= before && now - before < 50.0, "{n}: {before} {now}");
        before = now;
    }
    assert_eq!(nanos_per_byte(1.0), STEEPEST_NANOS);
    assert_eq!(nanos_per_byte(9.0), nanos_per_byte(1.125));
}

#[test]
fn one_write_is_delayed_by_no_more_than_a_bound() {
    assert_eq!(delay_max(1), ms(20));
    assert_eq!(delay_max(MIB), Duration::from_nanos(MIB * 250));
}

#[test]
fn what_a_job_has_done_counts_before_it_is_installed() {
    let mut pacer = Pacer::new(limits());
    let levels = [40 * MIB, 0, 0, 0, 0, 60 * MIB, 600 * MIB];
    pacer.step(at(0), Event::Levels { bytes: levels, tables: 5, ended: None });
    let from = [40 * MIB, 0, 0, 0, 0, 60 * MIB, 0];
    let job = Job { id: 1, from, tables: 5, to: 5, records: 1000, ..Job::default() };
    pacer.step(at(0), Event::Begin(job));
    let mut before = pacer.pressure().debt;
    for n in 0..100 {
        pacer.step(at(n), Event::Beat { id: 1, records: 10, took: ms(1) });
        let now = pacer.pressure().debt;
        assert!(now < before && before - now < 3e6, "{n}: {before} {now}");
        before = now;
    }
    let levels = [0, 0, 0, 0, 0, 100 * MIB, 600 * MIB];
    let ended = Some((1, 100 * MIB));
    pacer.step(at(100), Event::Levels { bytes: levels, tables: 0, ended });
    assert!((pacer.pressure().debt - before).abs() < 1.0, "{before} {}", pacer.pressure().debt);
}

#[test]
fn a_flush_changes_memory_into_level_0_without_a_step() {
    let mut pacer = Pacer::new(limits());
    pacer.shrinks = 0.5;
    let levels = |level0| [level0, 0, 0, 0, 0, 60 * MIB, 600 * MIB];
    pacer.step(at(0), Event::Levels { bytes: levels(16 * MIB), tables: 4, ended: None });
    pacer.step(at(0), Event::Write { memory: 12 * MIB });
    let before = pacer.pressure();
    let flush = Job { id: 1, memory: 8 * MIB, records: 100, ..Job::default() };
    pacer.step(at(0), Event::Begin(flush));
    pacer.step(at(1), Event::Beat { id: 1, records: 100, took: ms(1) });
    let done = pacer.pressure();
    assert!((done.debt - before.debt).abs() < 1.0 && done.of <= before.of);
    let ended = Some((1, 4 * MIB));
    pacer.step(at(2), Event::Levels { bytes: levels(20 * MIB), tables: 5, ended });
    assert!((pacer.pressure().debt - done.debt).abs() < 1.0);
    assert!((pacer.pressure().of - done.of).abs() < 1e-9, "{:?} {done:?}", pacer.pressure());
}

#[test]
fn a_merge_rests_while_others_write_and_nothing_is_urgent() {
    let mut pacer = Pacer::new(limits());
    pacer.step(at(0), Event::Begin(Job { id: 1, records: 1000, ..Job::default() }));
    let rest = |pacer: &mut Pacer, now, memory| {
        if let Some(memory) = memory {
            pacer.step(at(now), Event::Write { memory });
        }
        pacer.step(at(now), Event::Beat { id: 1, records: 1, took: ms(2) }).rest
    };
    assert_eq!(rest(&mut pacer, 0, None), Duration::ZERO, "nobody writes");
    let idle = rest(&mut pacer, 1, Some(0));
    assert!(idle > ms(3) && idle < ms(4), "{idle:?}");
    let busy = rest(&mut pacer, 1, Some(7 * MIB));
    assert!(busy > Duration::ZERO && busy < ms(1), "{busy:?}");
    assert_eq!(rest(&mut pacer, 2, Some(9 * MIB)), Duration::ZERO, "it is urgent");
    assert_eq!(rest(&mut pacer, 1000, None), Duration::ZERO, "nobody writes any more");
}

#[test]
fn merges_rest_while_they_make_reads_slow() {
    let mut guard = Guard::default();
    let us = Duration::from_micros;
    // One read in fifty is slow: that is what the 99th percentile is about.
    let reads = |guard: &mut Guard, slow: u64| {
        for n in 0..2000 {
            guard.read(us(if n % 50 == 0 { slow } else { 10 }));
        }
    };
    reads(&mut guard, 100);
    guard.merging = true;
    reads(&mut guard, 150);
    assert_eq!(guard.work(at(100)), 1.0, "no harm");
    let mut share = 1.0;
    for n in 0..20 {
        reads(&mut guard, 600);
        share = guard.work(at(200 + n * 100));
    }
    assert_eq!(share, Guard::LEAST);
    for n in 0..200 {
        reads(&mut guard, 150);
        share = guard.work(at(3000 + n * 100));
    }
    assert_eq!(share, 1.0);
    // Without readers there is nobody to spare.
    reads(&mut guard, 900);
    guard.work(at(30_000));
    for n in 0..20 {
        share = guard.work(at(31_000 + n * 100));
    }
    assert_eq!(share, 1.0);
}

/// A tree of which only sizes are known, a disk that is a rate, and writers.
struct Model {
    pacer: Pacer,
    paced: bool,
    levels: [u64; LEVELS],
    /// Sizes of level 0's tables.
    level0: Vec<u64>,
    active: u64,
    sealed: Vec<u64>,
    flush: Option<(u64, Job)>,
    merge: Option<(u64, Job)>,
    next: u64,
    now: u64,
    resting: u64,
    /// Bytes of merges a millisecond.
    disk: u64,
}

/// What happened in a run.
#[derive(Debug, Default)]
struct Seen {
    wrote: u64,
    /// By second.
    seconds: Vec<u64>,
    longest_wait: Duration,
    stalled_ms: u64,
    debt_max: f64,
}

impl Model {
    fn new(paced: bool, disk_mib: u64, data_mib: u64) -> Model {
        let mut levels = [0; LEVELS];
        levels[LEVELS - 1] = data_mib * MIB;
        Model {
            pacer: Pacer::new(limits()),
            paced,
            levels,
            level0: Vec::new(),
            active: 0,
            sealed: Vec::new(),
            flush: None,
            merge: None,
            next: 0,
            now: 0,
            resting: 0,
            disk: disk_mib * MIB / 1000,
        }
    }

    fn step(&mut self, event: Event) -> Allowance {
        self.pacer.step(at(self.now), event)
    }

    fn installed(&mut self, ended: (u64, u64)) {
        self.levels[0] = self.level0.iter().sum();
        let (bytes, tables) = (self.levels, self.level0.len());
        self.step(Event::Levels { bytes, tables, ended: Some(ended) });
    }

    fn begin(&mut self, job: Job) -> (u64, Job) {
        self.next += 1;
        let job = Job { id: self.next, ..job };
        self.step(Event::Begin(job.clone()));
        (0, job)
    }

    /// A millisecond of background work. Bytes stand for records.
    fn work(&mut self) {
        if self.flush.is_none()
            && let Some(&memory) = self.sealed.first()
        {
            self.flush = Some(self.begin(Job { memory, records: memory, ..Job::default() }));
        }
        if let Some((done, job)) = &mut self.flush {
            let piece = 4 * self.disk;
            *done += piece;
            let (id, over, bytes) = (job.id, *done >= job.records, job.memory);
            self.step(Event::Beat { id, records: piece, took: ms(1) });
            if over {
                self.flush = None;
                self.sealed.remove(0);
                self.level0.push(bytes);
                self.installed((id, bytes));
            }
        }
        if self.merge.is_none() {
            self.choose();
        }
        if self.resting > 0 {
            self.resting -= 1;
        } else if let Some((done, job)) = &mut self.merge {
            *done += self.disk;
            let (id, over) = (job.id, *done >= job.records);
            let piece = self.disk;
            let allowed = self.step(Event::Beat { id, records: piece, took: ms(1) });
            if self.paced {
                self.resting = allowed.rest.as_millis() as u64;
            }
            if over && let Some((_, job)) = self.merge.take() {
                self.level0.drain(..job.tables);
                let moved: u64 =
                    job.from.iter().enumerate().filter(|(l, _)| *l != job.to).map(|(_, b)| b).sum();
                for level in 1..LEVELS {
                    if level != job.to {
                        self.levels[level] -= job.from[level];
                    }
                }
                self.levels[job.to] += moved;
                // What is overwritten goes in the last level.
                let last = &mut self.levels[LEVELS - 1];
                *last = (*last).min(1000 * MIB);
                self.installed((id, 0));
            }
        }
    }

    /// Does as `choose` does: the level with the highest score.
    fn choose(&mut self) {
        let targets = limits().targets;
        let (base, sizes) = targets_of(&self.levels, targets);
        let mut scores: Vec<(f64, usize)> =
            (base..LEVELS - 1).map(|l| (self.levels[l] as f64 / sizes[l] as f64, l)).collect();
        scores.push((self.level0.len() as f64 / targets.level0_tables as f64, 0));
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        let Some(&(_, level)) = scores.first().filter(|(score, _)| *score >= 1.0) else { return };
        let mut job = Job::default();
        if level == 0 {
            (job.to, job.tables) = (base, self.level0.len());
            job.from[0] = self.level0.iter().sum();
            job.from[base] = self.levels[base];
        } else {
            job.to = level + 1;
            job.from[level] = self.levels[level].min(16 * MIB);
            let below =
                self.levels[level + 1] as f64 * job.from[level] as f64 / self.levels[level] as f64;
            job.from[level + 1] = below as u64;
        }
        job.records = job.from.iter().sum();
        self.merge = Some(self.begin(job));
    }

    /// Writers of 1 KiB who would write `rate` mebibytes a second, for some seconds.
    fn run(&mut self, seconds: u64, mut rate: impl FnMut(u64) -> u64) -> Seen {
        let mut seen = Seen::default();
        let (mut owed, mut waited) = (0.0f64, Duration::ZERO);
        for second in 0..seconds {
            let mut wrote = 0;
            let wanted = rate(second);
            for _ in 0..1000 {
                self.now += 1;
                self.work();
                let memory = self.active + self.sealed.iter().sum::<u64>();
                let nanos = self.step(Event::Write { memory }).nanos_per_byte;
                seen.debt_max = seen.debt_max.max(self.pacer.pressure().debt);
                // The time of this millisecond goes for writes and their delays.
                let mut left = wanted * MIB / 1000;
                owed -= 1e6;
                owed = owed.max(-1e6);
                let full = memory + KIB > limits().memory || !self.paced && self.level0.len() >= 24;
                if full {
                    waited += ms(1);
                    seen.stalled_ms += 1;
                    seen.longest_wait = seen.longest_wait.max(waited);
                    continue;
                }
                waited = Duration::ZERO;
                while left >= KIB && owed <= 0.0 {
                    left -= KIB;
                    wrote += KIB;
                    self.active += KIB;
                    if self.paced {
                        let delay = KIB as f64 * nanos;
                        owed += delay;
                        let delay = Duration::from_nanos(delay as u64);
                        assert!(delay <= delay_max(KIB));
                        seen.longest_wait = seen.longest_wait.max(delay);
                    }
                }
                if self.active >= limits().memtable {
                    self.sealed.push(std::mem::take(&mut self.active));
                }
            }
            seen.wrote += wrote;
            seen.seconds.push(wrote);
        }
        seen
    }
}

/// Returns the worst second by the mean.
fn worst(seconds: &[u64]) -> f64 {
    let mean = seconds.iter().sum::<u64>() as f64 / seconds.len() as f64;
    seconds.iter().copied().min().unwrap_or(0) as f64 / mean
}

#[test]
fn whoever_writes_faster_than_merges_work_is_slowed_down_evenly_and_never_stopped() {
    let mut prng = Prng::new(11);
    for (disk, data) in [(20, 300), (60, 300), (60, 1000), (200, 1000), (400, 700)] {
        let wanted = 100 + prng.range(0..200);
        let mut model = Model::new(true, disk, data);
        let warm = model.run(20, |_| wanted);
        let seen = model.run(60, |_| wanted);
        let last = model.pacer.pressure();
        assert_eq!(warm.stalled_ms + seen.stalled_ms, 0, "{disk} {data}: {seen:?} {last:?}");
        assert!(seen.longest_wait <= ms(20), "{disk} {data}: {seen:?}");
        // On a slow disk one merge takes many seconds, in which a byte may cost more or less.
        let even = if disk < 100 { 0.4 } else { 0.6 };
        assert!(worst(&seen.seconds) > even, "{disk} {data}: {seen:?} {last:?}");
        let rate = seen.wrote / 60;
        assert!(rate < wanted * MIB, "{disk} {data}: the disk is no limit");
        // Without a slope the same writers meet a wall.
        let mut unpaced = Model::new(false, disk, data);
        unpaced.run(20, |_| wanted);
        let other = unpaced.run(60, |_| wanted);
        assert!(other.stalled_ms > 1000, "{disk} {data}: {other:?}");
        assert!(other.longest_wait > ms(100), "{disk} {data}: {other:?}");
        assert!(worst(&other.seconds) < even, "{disk} {data}: {other:?}");
        // What they wrote more in the time between, they owe.
        let as_much = rate as f64 > 0.8 * (other.wrote / 60) as f64;
        assert!(
            as_much || other.debt_max > 1.5 * seen.debt_max,
            "{disk} {data}: {seen:?} {other:?}"
        );
    }
}

#[test]
fn whoever_writes_slower_than_merges_work_is_never_delayed() {
    for (disk, wanted) in [(400, 5), (400, 12), (100, 3)] {
        let mut model = Model::new(true, disk, 800);
        let seen = model.run(60, |_| wanted);
        assert_eq!(seen.stalled_ms, 0);
        assert!(seen.longest_wait <= Duration::from_micros(20), "{disk} {wanted}: {seen:?}");
        assert!(worst(&seen.seconds) > 0.98, "{disk} {wanted}: {seen:?}");
    }
}

#[test]
fn debt_stays_bounded_under_bursts() {
    let mut prng = Prng::new(3);
    for disk in [30, 100] {
        let mut model = Model::new(true, disk, 600);
        let seen =
            model.run(120, |second| if second % 7 < 2 { 50 + prng.range(0..300) } else { 1 });
        assert_eq!(seen.stalled_ms, 0, "{disk}: {seen:?}");
        let pressure = model.pacer.pressure();
        assert!(pressure.of < 1.0, "{disk}: {pressure:?}");
        // The work of as many memtables as level 0 may have tables.
        assert!(seen.debt_max < 12.0 * (8 * MIB) as f64 * 30.0, "{disk}: {seen:?}");
    }
}
