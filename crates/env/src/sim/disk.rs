//! The simulated disk in the hands of a test: it places faults and crashes, counts operations,
//! tampers with what is stored and takes copies of the whole disk.
//!
//! The disk of a node outlives its crashes. What the node itself sees of it is in `node_disk.rs`,
//! how an operation changes it in `medium.rs`, what a power cut leaves in `pages.rs` (contents) and
//! `tree.rs` (names).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::disk::IoTag;
use crate::random::Prng;
use crate::sim::faults::{
    CrashMode, CrashPoint, CrashTiming, DiskOptions, Fault, FaultKind, OpKind,
};
use crate::sim::tree::{InodeId, Tree};

/// A node's disk, as the test sees it. It outlives the node's crashes.
pub struct SimDisk {
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) tree: Tree,
    pub(super) options: DiskOptions,
    pub(super) prng: Prng,
    faults: Vec<Fault>,
    fault_hits: u64,
    ops: u64,
    mutations: u64,
    sites: BTreeMap<&'static str, u64>,
    /// What each mutation was, while they are kept.
    history: Option<Vec<Mutation>>,
    crash_at: Option<(u64, CrashTiming)>,
    last_crash: Option<CrashPoint>,
    /// How many handles a file has.
    pub(super) open: BTreeMap<InodeId, usize>,
    /// Locked files, with the number of the guard.
    pub(super) locks: BTreeMap<InodeId, u64>,
    pub(super) next_guard: u64,
}

/// An operation that can change the disk, as [`SimDisk::take_mutations`] tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// Its kind.
    pub op: OpKind,
    /// Its site; operations that carry no tag have the empty one.
    pub site: &'static str,
}

/// A copy of everything stored on a [`SimDisk`], durable and not. Cheap: pages are shared.
#[derive(Clone)]
pub struct DiskSnapshot {
    tree: Tree,
}

impl SimDisk {
    pub(super) fn new(prng: Prng) -> SimDisk {
        SimDisk {
            state: Mutex::new(State {
                tree: Tree::new(),
                options: DiskOptions::default(),
                prng,
                faults: Vec::new(),
                fault_hits: 0,
                ops: 0,
                mutations: 0,
                sites: BTreeMap::new(),
                history: None,
                crash_at: None,
                last_crash: None,
                open: BTreeMap::new(),
                locks: BTreeMap::new(),
                next_guard: 0,
            }),
        }
    }

    /// Changes the behaviour from now on.
    pub fn set_options(&self, options: DiskOptions) {
        self.state.lock().options = options;
    }

    /// Returns the present behaviour.
    pub fn options(&self) -> DiskOptions {
        self.state.lock().options.clone()
    }

    /// Crashes the node at mutation number `n`, counted from 0 as [`SimDisk::mutations`] does.
    pub fn crash_at(&self, n: u64, timing: CrashTiming) {
        self.state.lock().crash_at = Some((n, timing));
    }

    /// Takes a planned crash back. Returns whether there was one, that is, it did not happen.
    pub fn cancel_crash(&self) -> bool {
        self.state.lock().crash_at.take().is_some()
    }

    /// Returns where the last planned crash happened.
    pub fn last_crash(&self) -> Option<CrashPoint> {
        self.state.lock().last_crash.clone()
    }

    /// Places a fault.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Makes operation number `n` fail, counted from 0 as [`SimDisk::ops`] does; if `sticky`, all
    /// after it too. Kinds that touch only some operations ([`FaultKind::Flip`], `Lost`,
    /// `Misdirected`) count those alone from here on. When [`SimDisk::fault_hits`] stays 0, `n` is
    /// beyond the end of the run.
    pub fn fail_nth(&self, n: u64, kind: FaultKind, sticky: bool) {
        let mut state = self.state.lock();
        let skip = n.saturating_sub(state.ops);
        state.faults.push(Fault { sticky, ..Fault::new(kind).skip(skip) });
    }

    /// Removes the placed faults. Chances in the options stay.
    pub fn clear_faults(&self) {
        self.state.lock().faults.clear();
    }

    /// Returns how many placed faults have hit.
    pub fn fault_hits(&self) -> u64 {
        self.state.lock().fault_hits
    }

    /// Returns how many operations were submitted.
    pub fn ops(&self) -> u64 {
        self.state.lock().ops
    }

    /// Returns how many operations that can change the disk were submitted: the crash points.
    pub fn mutations(&self) -> u64 {
        self.state.lock().mutations
    }

    /// Returns how many operations each site has submitted.
    pub fn sites(&self) -> BTreeMap<&'static str, u64> {
        self.state.lock().sites.clone()
    }

    /// Keeps what each mutation is from now on.
    pub fn keep_mutations(&self) {
        self.state.lock().history.get_or_insert_default();
    }

    /// Takes the mutations kept since the last call, in the order of their numbers. After a crash
    /// planned by [`SimDisk::crash_at`] the last one is where it happened.
    pub fn take_mutations(&self) -> Vec<Mutation> {
        self.state.lock().history.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Starts all counters at zero.
    pub fn reset_counters(&self) {
        let mut state = self.state.lock();
        (state.ops, state.mutations, state.fault_hits) = (0, 0, 0);
        state.sites.clear();
    }

    /// Returns what a reader would see, `None` if there is no such file.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let inode = state.tree.find_file(path.as_ref()).ok()?;
        state.tree.content(inode).ok().map(|content| content.bytes())
    }

    /// Replaces or creates a file, with its directories, all durable. Names around it become
    /// durable too.
    ///
    /// # Errors
    /// The path leads through a file or names a directory.
    pub fn write_file(&self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        self.state.lock().tree.put_durable(path.as_ref(), bytes)
    }

    /// Removes a file, durably.
    ///
    /// # Errors
    /// There is no such file.
    pub fn remove_file(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.tree.remove(path.as_ref())?;
        state.tree.sync_dir(path.as_ref().parent().unwrap_or(Path::new("")))
    }

    /// Inverts a stored bit: rot at rest. Returns whether the file reaches that far.
    pub fn corrupt(&self, path: impl AsRef<Path>, offset: u64, bit: u32) -> bool {
        let mut state = self.state.lock();
        let Ok(inode) = state.tree.find_file(path.as_ref()) else { return false };
        state.tree.content_mut(inode).is_ok_and(|content| content.flip(offset, bit))
    }

    /// Returns the paths of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        self.state.lock().tree.all_files()
    }

    /// Returns the bytes of the medium in use.
    pub fn space(&self) -> u64 {
        let state = self.state.lock();
        state.tree.space(state.open.keys().copied())
    }

    /// Copies everything stored.
    pub fn snapshot(&self) -> DiskSnapshot {
        DiskSnapshot { tree: self.state.lock().tree.clone() }
    }

    /// Puts a copy in the place of everything stored, on this disk or one of another simulation.
    /// Files opened before must not be used after.
    pub fn restore(&self, snapshot: &DiskSnapshot) {
        let mut state = self.state.lock();
        state.tree = snapshot.tree.clone();
        state.open.clear();
        state.locks.clear();
    }

    /// Ends an epoch: leaves what the medium holds.
    pub(super) fn power_cut(&self, mode: Option<CrashMode>) {
        let mut state = self.state.lock();
        let State { tree, options, prng, .. } = &mut *state;
        tree.power_cut(mode.unwrap_or(options.crash_mode), options.torn_sector, prng);
        state.open.clear();
        state.locks.clear();
        state.crash_at = None;
    }
}

/// What an operation is about, for faults and the trace.
pub(super) struct Info {
    pub(super) op: OpKind,
    pub(super) tag: Option<IoTag>,
    pub(super) path: Arc<str>,
    /// Offset and length, or other numbers that tell operations apart.
    pub(super) numbers: [u64; 2],
    /// Hash of the bytes it carries.
    pub(super) content: u64,
}

/// What is to happen to an operation.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) fault: Option<FaultKind>,
    pub(super) crash: Option<CrashTiming>,
    pub(super) latency: Duration,
    /// The effect happens when it is submitted rather than when it completes.
    pub(super) early: bool,
}

impl State {
    pub(super) fn plan(&mut self, info: &Info) -> Plan {
        let (op_number, mutation) = (self.ops, self.mutations);
        self.ops = op_number + 1;
        self.mutations += u64::from(info.op.is_mutation());
        if let Some(tag) = info.tag {
            *self.sites.entry(tag.site).or_default() += 1;
        }
        if let Some(history) = &mut self.history
            && info.op.is_mutation()
        {
            let site = info.tag.map_or("", |tag| tag.site);
            history.push(Mutation { op: info.op, site });
        }
        let range =
            if info.op.is_sync() { &self.options.sync_latency } else { &self.options.latency };
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let mut latency = self.prng.range(nanos(range.start)..nanos(range.end));
        let early = self.prng.chance(0.5);
        let fault = self.placed_fault(info).or(self.options.faults.draw(info.op, &mut self.prng));
        if fault == Some(FaultKind::Slow) {
            latency = latency.saturating_mul(100);
        }
        let crash = match self.crash_at {
            Some((n, timing)) if info.op.is_mutation() && mutation >= n => {
                self.crash_at = None;
                let timings = [CrashTiming::Before, CrashTiming::During, CrashTiming::After];
                let drawn = timings[self.prng.index(3)];
                let timing = if timing == CrashTiming::Any { drawn } else { timing };
                let site = info.tag.map_or("", |tag| tag.site);
                let path = info.path.to_string();
                self.last_crash = Some(CrashPoint { mutation, timing, op: info.op, path, site });
                Some(timing)
            }
            _ => None,
        };
        Plan { fault, crash, latency: Duration::from_nanos(latency), early }
    }

    fn placed_fault(&mut self, info: &Info) -> Option<FaultKind> {
        let mut hit = None;
        for index in 0..self.faults.len() {
            let fault = &mut self.faults[index];
            if !fault.matches(info.op, info.tag, &info.path) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if hit.is_none() {
                hit = Some((index, fault.kind, fault.sticky));
            }
        }
        let (index, kind, sticky) = hit?;
        self.fault_hits += 1;
        if !sticky {
            self.faults.remove(index);
        }
        Some(kind)
    }

    pub(super) fn opened(&mut self, inode: InodeId) {
        *self.open.entry(inode).or_default() += 1;
    }

    pub(super) fn closed(&mut self, inode: InodeId) {
        if let Some(count) = self.open.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&inode);
            }
        }
    }

    /// Bytes that can still be stored.
    pub(super) fn room(&self) -> u64 {
        let Some(capacity) = self.options.capacity else { return u64::MAX };
        capacity.saturating_sub(self.tree.space(self.open.keys().copied()))
    }
}
