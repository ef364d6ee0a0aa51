//! The simulated disk as its node sees it: the traits.
//!
//! ```text
//!  submit --(latency)--> complete       the effect happens at either end, drawn by the seed, so
//!    |                       |          that operations which overlap interleave both ways
//!    +-- effect? --- effect? +
//! ```
//!
//! An operation that was submitted has its effect even if its future is dropped, as with a real
//! kernel. Handles belong to an epoch of the node and never answer after its crash.
//!
//! Limits: directories are neither removed nor renamed, and there are no symbolic links.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use crate::buf::IoBuf;
use crate::disk::{DirEntry, Disk, File, IoFuture, IoTag, OpenMode};
use crate::sim::disk::{Info, Plan, SimDisk, State};
use crate::sim::executor::{Action, Handle};
use crate::sim::faults::{CrashTiming, FaultKind, OpKind};
use crate::sim::medium::Medium;
use crate::sim::tree::InodeId;
use crate::sync::oneshot;

impl Info {
    fn of_path(op: OpKind, tag: Option<IoTag>, path: &Path) -> Info {
        Info { op, tag, path: path.to_string_lossy().into(), numbers: [0; 2], content: 0 }
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
        let code = |e: &io::Error| 1 + u64::from(e.raw_os_error().unwrap_or(0).unsigned_abs());
        let outcome = result.as_ref().err().map_or(0, code);
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

    fn link<'a>(&'a self, tag: IoTag, from: &'a Path, to: &'a Path) -> IoFuture<'a, ()> {
        let mut info = Info::of_path(OpKind::Link, Some(tag), from);
        info.content = xxh3_64(to.as_os_str().as_encoded_bytes());
        let (from, to) = (from.to_owned(), to.to_owned());
        self.submit(info, move |medium| medium.names(|tree| tree.link(&from, &to)))
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
        // An empty write or allocation makes no system call that could refuse.
        let is_empty = matches!(info.op, OpKind::Write | OpKind::Allocate) && info.numbers[1] == 0;
        let writable = self.writable || is_empty;
        let checked = move |medium: &mut Medium<'_>| {
            if writable { effect(medium) } else { Err(refusal.into()) }
        };
        self.disk.submit(info, checked)
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
