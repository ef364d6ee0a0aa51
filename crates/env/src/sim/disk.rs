//! The simulated disk: one node's files, behind the traits and in the hands of a test.
//!
//! ```text
//!  submit --(latency)--> complete       the effect happens at either end, drawn by the seed, so
//!    |                       |          that operations which overlap interleave both ways
//!    +-- effect? --- effect? +
//! ```
//!
//! An operation that was submitted has its effect even if its future is dropped, as with a real
//! kernel. [`SimDisk`] is the test's side: it places faults and crashes, counts operations, tampers
//! with what is stored and takes copies of the whole disk. What a power cut leaves is described in
//! `pages.rs` (contents) and `tree.rs` (names).
//!
//! Limits: directories are neither removed nor renamed, and there are no links.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use crate::buf::IoBuf;
use crate::disk::{DirEntry, Disk, File, IoFuture, IoTag, OpenMode};
use crate::random::Prng;
use crate::sim::executor::{Action, Handle};
use crate::sim::faults::{CrashMode, CrashTiming, DiskOptions, Fault, FaultKind, OpKind};
use crate::sim::pages::SECTOR;
use crate::sim::tree::{InodeId, Tree};
use crate::sync::oneshot;

/// A node's disk, as the test sees it. It outlives the node's crashes.
pub struct SimDisk {
    state: Mutex<State>,
}

struct State {
    tree: Tree,
    options: DiskOptions,
    prng: Prng,
    faults: Vec<Fault>,
    fault_hits: u64,
    ops: u64,
    mutations: u64,
    sites: BTreeMap<&'static str, u64>,
    /// What each mutation was, while they are kept.
    history: Option<Vec<Mutation>>,
    crash_at: Option<(u64, CrashTiming)>,
    /// How many handles a file has.
    open: BTreeMap<InodeId, usize>,
    /// Locked files, with the number of the guard.
    locks: BTreeMap<InodeId, u64>,
    next_guard: u64,
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

    /// Places a fault.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Makes operation number `n` fail, counted from 0 as [`SimDisk::ops`] does; if `sticky`, all
    /// after it too.
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
struct Info {
    op: OpKind,
    tag: Option<IoTag>,
    path: Arc<str>,
    /// Offset and length, or other numbers that tell operations apart.
    numbers: [u64; 2],
    /// Hash of the bytes it carries.
    content: u64,
}

impl Info {
    fn of_path(op: OpKind, tag: Option<IoTag>, path: &Path) -> Info {
        Info { op, tag, path: path.to_string_lossy().into(), numbers: [0; 2], content: 0 }
    }
}

/// What is to happen to an operation.
#[derive(Clone, Copy)]
struct Plan {
    fault: Option<FaultKind>,
    crash: Option<CrashTiming>,
    latency: Duration,
    /// The effect happens when it is submitted rather than when it completes.
    early: bool,
}

/// What an effect works on.
struct Medium<'a> {
    state: &'a mut State,
    fault: Option<FaultKind>,
    /// Power goes while it happens.
    interrupted: bool,
}

impl State {
    fn plan(&mut self, info: &Info) -> Plan {
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
                Some(if timing == CrashTiming::Any { timings[self.prng.index(3)] } else { timing })
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

    fn opened(&mut self, inode: InodeId) {
        *self.open.entry(inode).or_default() += 1;
    }

    fn closed(&mut self, inode: InodeId) {
        if let Some(count) = self.open.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&inode);
            }
        }
    }

    /// Bytes that can still be stored.
    fn room(&self) -> u64 {
        let Some(capacity) = self.options.capacity else { return u64::MAX };
        capacity.saturating_sub(self.tree.space(self.open.keys().copied()))
    }
}

impl Medium<'_> {
    /// The error of the fault, if it stops the operation before its effect.
    fn check(&self) -> io::Result<()> {
        match self.fault {
            Some(FaultKind::Error | FaultKind::Short | FaultKind::SyncLoses) => {
                Err(Errno::IO.into())
            }
            Some(FaultKind::NoSpace) => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }

    /// Whether success is to be reported without an effect.
    fn is_lost(&self) -> bool {
        self.fault == Some(FaultKind::Lost)
    }

    fn read(&mut self, inode: InodeId, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let content = self.state.tree.content(inode)?;
        let end = offset.checked_add(buf.len() as u64);
        if !buf.is_empty() && end.is_none_or(|end| end > content.len()) {
            let message = "failed to fill whole buffer";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        content.read(offset, buf);
        if self.fault == Some(FaultKind::Flip) && !buf.is_empty() {
            let at = self.state.prng.index(buf.len());
            buf[at] ^= 1 << self.state.prng.index(8);
        }
        Ok(())
    }

    fn write(&mut self, inode: InodeId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let content = self.state.tree.content(inode)?;
        if bytes.is_empty() || self.is_lost() {
            return self.check();
        }
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Errno::INVAL.into());
        }
        if self.fault == Some(FaultKind::Misdirected) {
            return self.misdirect(inode, bytes);
        }
        let mut stored = bytes.len();
        let mut result = Ok(());
        match self.fault {
            Some(FaultKind::Error | FaultKind::SyncLoses) => return self.check(),
            Some(FaultKind::Short | FaultKind::NoSpace) => {
                stored = self.state.prng.index(bytes.len());
                result = self.check();
            }
            _ => {}
        }
        // Conservative by up to a page: overwriting needs no room, the rest needs all of it.
        let end = offset + bytes.len() as u64;
        if self.state.options.capacity.is_some() && end > content.space() {
            let needed = (end - content.space().max(offset)) + offset % 4096;
            if needed > self.state.room() {
                stored = stored.min(self.state.prng.index(bytes.len()));
                stored = stored.min(usize::try_from(self.state.room()).unwrap_or(usize::MAX));
                result = Err(Errno::NOSPC.into());
            }
        }
        if self.interrupted {
            stored = stored.min(self.state.prng.index(bytes.len() + 1));
        }
        if stored > 0 {
            let State { tree, prng, .. } = &mut *self.state;
            tree.content_mut(inode)?.write(offset, &bytes[..stored], prng);
        }
        result
    }

    /// Stores the right bytes in the wrong place.
    fn misdirect(&mut self, inode: InodeId, bytes: &[u8]) -> io::Result<()> {
        let State { tree, prng, .. } = &mut *self.state;
        let files = tree.named_files();
        let victim = match prng.choose(&files) {
            Some(other) if prng.chance(0.5) => *other,
            _ => inode,
        };
        let victim = tree.content_mut(victim)?;
        let sectors = victim.len() / SECTOR as u64;
        victim.write(prng.below(sectors) * SECTOR as u64, bytes, prng);
        Ok(())
    }

    fn sync(&mut self, inode: InodeId) -> io::Result<()> {
        let State { tree, prng, .. } = &mut *self.state;
        let content = tree.content_mut(inode)?;
        match self.fault {
            Some(FaultKind::SyncLoses) => content.lose_unsynced(),
            Some(FaultKind::Error | FaultKind::NoSpace | FaultKind::Short | FaultKind::Lost) => {}
            _ if self.interrupted => content.sync_partly(prng),
            _ => content.sync(),
        }
        self.check()
    }

    fn set_len(&mut self, inode: InodeId, len: u64) -> io::Result<()> {
        self.check()?;
        if len > i64::MAX as u64 {
            return Err(Errno::INVAL.into());
        }
        if !self.is_lost() {
            self.state.tree.content_mut(inode)?.set_len(len);
        }
        Ok(())
    }

    fn allocate(&mut self, inode: InodeId, len: u64) -> io::Result<()> {
        self.check()?;
        if len > i64::MAX as u64 {
            return Err(Errno::INVAL.into());
        }
        let more =
            len.next_multiple_of(4096).saturating_sub(self.state.tree.content(inode)?.space());
        if more > self.state.room() {
            return Err(Errno::NOSPC.into());
        }
        if len > 0 && !self.is_lost() {
            self.state.tree.content_mut(inode)?.reserve(len);
        }
        Ok(())
    }

    /// Applies an operation on names.
    fn names(&mut self, change: impl FnOnce(&mut Tree) -> io::Result<()>) -> io::Result<()> {
        self.check()?;
        let skipped = self.is_lost() || (self.interrupted && self.state.prng.chance(0.5));
        if skipped { Ok(()) } else { change(&mut self.state.tree) }
    }
}

/// The disk in one epoch of its node: what the environment holds.
#[derive(Clone)]
pub(super) struct NodeDisk {
    handle: Handle,
    disk: Arc<SimDisk>,
}

impl NodeDisk {
    pub(super) fn new(handle: Handle, disk: Arc<SimDisk>) -> NodeDisk {
        NodeDisk { handle, disk }
    }

    fn submit<T, F>(&self, info: Info, effect: F) -> IoFuture<'static, T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Medium<'_>) -> io::Result<T> + Send + 'static,
    {
        Box::pin(Operation { disk: self.clone(), stage: Stage::Start(info, Box::new(effect)) })
    }

    /// Makes the effect happen and notes it. `None` if power went.
    fn apply<T>(&self, info: &Info, plan: Plan, effect: Effect<T>) -> Option<io::Result<T>> {
        let result = {
            let mut state = self.disk.state.lock();
            let interrupted = plan.crash == Some(CrashTiming::During);
            effect(&mut Medium { state: &mut state, fault: plan.fault, interrupted })
        };
        let outcome = result.as_ref().err().map_or(0, |e| 1 + e.kind() as u64);
        let [a, b] = info.numbers;
        let numbers = [xxh3_64(info.path.as_bytes()), a, b, info.content, outcome];
        self.handle.record(info.op.name(), &numbers, || {
            let site = info.tag.map_or("", |tag| tag.site);
            let error = result.as_ref().err().map(|e| format!(" -> {e}")).unwrap_or_default();
            format!("{} @{a}+{b} [{site}] #{:x}{error}", info.path, info.content)
        });
        if plan.crash.is_some() {
            self.handle.shared.crash(self.handle.node, None);
            return None;
        }
        Some(result)
    }
}

type Effect<T> = Box<dyn FnOnce(&mut Medium<'_>) -> io::Result<T> + Send>;

/// An operation from its first poll to its answer.
struct Operation<T> {
    disk: NodeDisk,
    stage: Stage<T>,
}

enum Stage<T> {
    Start(Info, Effect<T>),
    Submitted(oneshot::Receiver<io::Result<T>>),
    /// The node crashed, or the operation hangs.
    Never,
}

impl<T: Send + 'static> Operation<T> {
    fn start(disk: &NodeDisk, info: Info, effect: Effect<T>) -> Stage<T> {
        if !disk.handle.is_alive() {
            return Stage::Never;
        }
        let plan = disk.disk.state.lock().plan(&info);
        if plan.crash == Some(CrashTiming::Before) {
            disk.handle.shared.crash(disk.handle.node, None);
            return Stage::Never;
        }
        let (sender, receiver) = oneshot::channel();
        let done = disk.handle.shared.now().after(plan.latency);
        let hangs = plan.fault == Some(FaultKind::Hang);
        let answer: Box<dyn FnOnce() + Send> = if plan.early {
            let Some(result) = disk.apply(&info, plan, effect) else { return Stage::Never };
            // The answer is dropped if nobody waits for it any more.
            Box::new(move || _ = sender.send(result))
        } else {
            let disk = disk.clone();
            Box::new(move || {
                if let Some(result) = disk.apply(&info, plan, effect) {
                    _ = sender.send(result);
                }
            })
        };
        if hangs {
            return Stage::Never;
        }
        disk.handle.schedule(done, Action::Call(answer));
        Stage::Submitted(receiver)
    }
}

impl<T: Send + 'static> Future for Operation<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let operation = &mut *self;
        operation.stage = match std::mem::replace(&mut operation.stage, Stage::Never) {
            Stage::Start(info, effect) => Operation::start(&operation.disk, info, effect),
            stage => stage,
        };
        match &mut operation.stage {
            Stage::Submitted(receiver) => match Pin::new(receiver).poll(cx) {
                Poll::Ready(Ok(result)) => Poll::Ready(result),
                // Cancelled: the event went with a crash, and so does this task.
                Poll::Ready(Err(oneshot::Canceled)) | Poll::Pending => Poll::Pending,
            },
            Stage::Start(..) | Stage::Never => Poll::Pending,
        }
    }
}

impl Disk for NodeDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> IoFuture<'a, Arc<dyn File>> {
        let op = if mode == OpenMode::CreateNew { OpKind::Create } else { OpKind::Open };
        let info = Info::of_path(op, None, path);
        let (disk, name, path) = (self.clone(), info.path.clone(), path.to_owned());
        self.submit(info, move |medium| {
            medium.check()?;
            let state = &mut *medium.state;
            let inode = match mode {
                OpenMode::CreateNew if state.room() == 0 => return Err(Errno::NOSPC.into()),
                OpenMode::CreateNew => state.tree.create(&path)?,
                OpenMode::Read | OpenMode::ReadWrite => state.tree.find_file(&path)?,
            };
            state.opened(inode);
            let writable = mode != OpenMode::Read;
            Ok(Arc::new(SimFile { disk, inode, path: name, writable }) as Arc<dyn File>)
        })
    }

    fn rename<'a>(&'a self, tag: IoTag, from: &'a Path, to: &'a Path) -> IoFuture<'a, ()> {
        let mut info = Info::of_path(OpKind::Rename, Some(tag), from);
        info.content = xxh3_64(to.as_os_str().as_encoded_bytes());
        let (from, to) = (from.to_owned(), to.to_owned());
        self.submit(info, move |medium| medium.names(|tree| tree.rename(&from, &to)))
    }

    fn remove<'a>(&'a self, tag: IoTag, path: &'a Path) -> IoFuture<'a, ()> {
        let info = Info::of_path(OpKind::Remove, Some(tag), path);
        let path = path.to_owned();
        self.submit(info, move |medium| medium.names(|tree| tree.remove(&path)))
    }

    fn create_dir<'a>(&'a self, path: &'a Path) -> IoFuture<'a, ()> {
        let info = Info::of_path(OpKind::CreateDir, None, path);
        let path = path.to_owned();
        self.submit(info, move |medium| medium.names(|tree| tree.create_dir(&path)))
    }

    fn sync_dir<'a>(&'a self, tag: IoTag, path: &'a Path) -> IoFuture<'a, ()> {
        let info = Info::of_path(OpKind::SyncDir, Some(tag), path);
        let path = path.to_owned();
        self.submit(info, move |medium| {
            medium.names(|tree| tree.sync_dir(&path))?;
            let State { tree, open, .. } = &mut *medium.state;
            tree.collect_garbage(open.keys().copied());
            Ok(())
        })
    }

    fn list<'a>(&'a self, path: &'a Path) -> IoFuture<'a, Vec<DirEntry>> {
        let info = Info::of_path(OpKind::List, None, path);
        let path = path.to_owned();
        self.submit(info, move |medium| {
            medium.check()?;
            medium.state.tree.list(&path)
        })
    }

    fn lock<'a>(&'a self, path: &'a Path) -> IoFuture<'a, Box<dyn Send + Sync>> {
        let info = Info::of_path(OpKind::Lock, None, path);
        let (disk, path) = (self.clone(), path.to_owned());
        self.submit(info, move |medium| {
            medium.check()?;
            let state = &mut *medium.state;
            let inode = match state.tree.find_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => state.tree.create(&path)?,
                found => found?,
            };
            if state.locks.contains_key(&inode) {
                return Err(Errno::WOULDBLOCK.into());
            }
            state.next_guard += 1;
            let guard = state.next_guard;
            state.locks.insert(inode, guard);
            state.opened(inode);
            Ok(Box::new(SimLock { disk, inode, guard }) as Box<dyn Send + Sync>)
        })
    }
}

struct SimLock {
    disk: NodeDisk,
    inode: InodeId,
    guard: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        if self.disk.handle.is_alive() {
            let mut state = self.disk.disk.state.lock();
            if state.locks.get(&self.inode) == Some(&self.guard) {
                state.locks.remove(&self.inode);
                state.closed(self.inode);
            }
        }
    }
}

struct SimFile {
    disk: NodeDisk,
    inode: InodeId,
    path: Arc<str>,
    writable: bool,
}

impl SimFile {
    fn info(&self, op: OpKind, tag: Option<IoTag>, numbers: [u64; 2], bytes: &[u8]) -> Info {
        Info { op, tag, path: self.path.clone(), numbers, content: xxh3_64(bytes) }
    }

    /// Submits an operation that Linux refuses with `refusal` on a file opened for reading.
    fn change<T, F>(&self, refusal: Errno, info: Info, effect: F) -> IoFuture<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Medium<'_>) -> io::Result<T> + Send + 'static,
    {
        let writable = self.writable;
        self.disk.submit(
            info,
            move |medium| {
                if writable { effect(medium) } else { Err(refusal.into()) }
            },
        )
    }
}

impl File for SimFile {
    fn read_at(&self, tag: IoTag, offset: u64, mut buf: IoBuf) -> IoFuture<'_, IoBuf> {
        let info = self.info(OpKind::Read, Some(tag), [offset, buf.len() as u64], &[]);
        let inode = self.inode;
        self.disk.submit(info, move |medium| medium.read(inode, offset, &mut buf).map(|()| buf))
    }

    fn write_at(&self, tag: IoTag, offset: u64, buf: IoBuf) -> IoFuture<'_, IoBuf> {
        let info = self.info(OpKind::Write, Some(tag), [offset, buf.len() as u64], &buf);
        let inode = self.inode;
        self.change(Errno::BADF, info, move |medium| {
            medium.write(inode, offset, &buf).map(|()| buf)
        })
    }

    fn sync(&self, tag: IoTag) -> IoFuture<'_, ()> {
        let info = self.info(OpKind::Sync, Some(tag), [0; 2], &[]);
        let inode = self.inode;
        self.disk.submit(info, move |medium| medium.sync(inode))
    }

    fn allocate(&self, tag: IoTag, len: u64) -> IoFuture<'_, ()> {
        let info = self.info(OpKind::Allocate, Some(tag), [0, len], &[]);
        let inode = self.inode;
        self.change(Errno::BADF, info, move |medium| medium.allocate(inode, len))
    }

    fn truncate(&self, tag: IoTag, len: u64) -> IoFuture<'_, ()> {
        let info = self.info(OpKind::Truncate, Some(tag), [0, len], &[]);
        let inode = self.inode;
        self.change(Errno::INVAL, info, move |medium| medium.set_len(inode, len))
    }

    fn len(&self) -> IoFuture<'_, u64> {
        let info = self.info(OpKind::Len, None, [0; 2], &[]);
        let inode = self.inode;
        self.disk.submit(info, move |medium| {
            medium.check()?;
            medium.state.tree.content(inode).map(|content| content.len())
        })
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.disk.handle.is_alive() {
            self.disk.disk.state.lock().closed(self.inode);
        }
    }
}
