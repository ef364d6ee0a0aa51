//! Files: each operation finds out at its first poll how it is carried out.
//!
//! ```text
//!   first poll on ...                    names and lengths    transfers
//!   a thread inside block_on             here and now         here and now, or on its own ring
//!   a core inside task::inline           here and now         here and now, to the page cache
//!   a core                               an I/O thread        the ring of the core
//!   another event loop, or no rings      an I/O thread        an I/O thread
//! ```
//!
//! Under [`task::block_on`] an operation makes its system call without a thread switch; a core's
//! event loop must not stall. Background transfers pass the throttle first ([`crate::throttle`]). A
//! dropped operation that has started runs to its end on its own buffer.

#![expect(clippy::disallowed_methods, reason = "this is what Disk stands on")]

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use crate::buf::IoBuf;
use crate::disk::{DirEntry, Disk, DiskStatus, File, FileUse, IoClass, IoFuture, IoTag, OpenMode};
use crate::os::io::{Backend, DirectIo, Io};
use crate::os::pool::{Job, Pool};
use crate::os::transfer::{Action, Direct, Handle, Transfer};
use crate::os::{uring, write_back};
use crate::sync::oneshot;
use crate::task;
use crate::throttle::{Answer, Throttle, Ticket};
use crate::time::Instant;

/// Enough to keep a solid-state drive busy from an event loop's point reads.
const IO_THREADS: usize = 8;

/// Zeros written per call where the file system cannot reserve space.
const ZERO_CHUNK: usize = 64 * 1024;

pub(super) struct OsDisk {
    pool: Pool,
    io: Arc<Io>,
}

impl OsDisk {
    pub(super) fn new(io: Arc<Io>) -> OsDisk {
        OsDisk { pool: Pool::new("atoll-io", Some(IO_THREADS)), io }
    }

    fn run<T, F>(&self, tag: IoTag, call: F) -> IoFuture<'static, T>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + Unpin + 'static,
    {
        Operation::boxed(&self.pool, tag, call)
    }
}

/// The tag of operations that open and look: a client may be waiting for each.
const LOOKUP: IoTag = IoTag::new(IoClass::Read, "lookup");

impl Disk for OsDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> IoFuture<'a, Arc<dyn File>> {
        self.open_for(path, mode, FileUse::Plain)
    }

    fn open_for<'a>(
        &'a self,
        path: &'a Path,
        mode: OpenMode,
        usage: FileUse,
    ) -> IoFuture<'a, Arc<dyn File>> {
        let (path, pool, io) = (path.to_owned(), self.pool.clone(), self.io.clone());
        self.run(LOOKUP, move || {
            let mut options = OpenOptions::new();
            options.read(true);
            match mode {
                OpenMode::Read => {}
                OpenMode::ReadWrite => _ = options.write(true),
                OpenMode::CreateNew => _ = options.write(true).create_new(true),
            }
            let file = options.open(&path)?;
            // Linux opens a directory for reading and complains at the first read.
            if file.metadata()?.is_dir() {
                return Err(Errno::ISDIR.into());
            }
            if usage == FileUse::Table && mode == OpenMode::Read {
                // Who reads tables reads ahead himself, in pieces of the right length: the kernel would
                // read five times as much for short scans. A hint: without it things work too.
                _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
            }
            let direct = open_direct(&io, &path, &file, mode, usage);
            let handle = Arc::new(Handle { file, direct });
            Ok(Arc::new(OsFile { handle, pool, io }) as Arc<dyn File>)
        })
    }

    fn status(&self) -> DiskStatus {
        self.io.status()
    }

    fn rename<'a>(&'a self, tag: IoTag, from: &'a Path, to: &'a Path) -> IoFuture<'a, ()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.run(tag, move || fs::rename(from, to))
    }

    fn link<'a>(&'a self, tag: IoTag, from: &'a Path, to: &'a Path) -> IoFuture<'a, ()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.run(tag, move || fs::hard_link(from, to))
    }

    fn remove<'a>(&'a self, tag: IoTag, path: &'a Path) -> IoFuture<'a, ()> {
        let path = path.to_owned();
        self.run(tag, move || fs::remove_file(path))
    }

    fn create_dir<'a>(&'a self, path: &'a Path) -> IoFuture<'a, ()> {
        let path = path.to_owned();
        self.run(LOOKUP, move || fs::create_dir_all(path))
    }

    fn sync_dir<'a>(&'a self, tag: IoTag, path: &'a Path) -> IoFuture<'a, ()> {
        let path = path.to_owned();
        self.run(tag, move || {
            let dir = fs::File::open(path)?;
            if !dir.metadata()?.is_dir() {
                return Err(Errno::NOTDIR.into());
            }
            Ok(rustix::fs::fsync(&dir)?)
        })
    }

    fn list<'a>(&'a self, path: &'a Path) -> IoFuture<'a, Vec<DirEntry>> {
        let path = path.to_owned();
        self.run(LOOKUP, move || {
            let mut entries = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let name = entry.file_name().into_string().map_err(|name| {
                    let message = format!("the file name {name:?} is not UTF-8; move it away");
                    io::Error::new(io::ErrorKind::InvalidData, message)
                })?;
                let metadata = match entry.metadata() {
                    Ok(metadata) => metadata,
                    // Removed since the directory was read.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                };
                let is_dir = metadata.is_dir();
                entries.push(DirEntry {
                    name,
                    is_dir,
                    len: if is_dir { 0 } else { metadata.len() },
                });
            }
            entries.sort();
            Ok(entries)
        })
    }

    fn lock<'a>(&'a self, path: &'a Path) -> IoFuture<'a, Box<dyn Send + Sync>> {
        let path = path.to_owned();
        self.run(LOOKUP, move || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            // flock belongs to the open file: it excludes other opens of this process too, and the
            // kernel releases it when the guard or the process is gone.
            retry_interrupted(|| {
                rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            })?;
            Ok(Box::new(file) as Box<dyn Send + Sync>)
        })
    }
}

/// Opens `file` once more, past the page cache, if that is wished for and can be.
fn open_direct(
    io: &Io,
    path: &Path,
    file: &fs::File,
    mode: OpenMode,
    usage: FileUse,
) -> Option<Direct> {
    let all = match usage {
        FileUse::Plain => return None,
        // Read once, by recovery: the page cache reads ahead for it.
        FileUse::Log if mode == OpenMode::Read || io.options.direct < DirectIo::Log => return None,
        FileUse::Log => false,
        FileUse::Table if io.options.direct < DirectIo::All => return None,
        FileUse::Table => true,
    };
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    let write = mode != OpenMode::Read;
    let opened = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    let same = opened.and_then(|direct| {
        let (one, other) = (file.metadata()?, direct.metadata()?);
        // The name may have passed on to another file since.
        let is_same = (one.dev(), one.ino()) == (other.dev(), other.ino());
        Ok(is_same.then_some(direct))
    });
    match same {
        Ok(file) => file.map(|file| Direct { file, refused: AtomicBool::new(false), all }),
        Err(error) => {
            let error = match error.raw_os_error() {
                Some(errno) if errno == Errno::INVAL.raw_os_error() => {
                    "the file system has none".to_owned()
                }
                _ => error.to_string(),
            };
            io.degrade("direct I/O", &error);
            None
        }
    }
}

struct OsFile {
    handle: Arc<Handle>,
    pool: Pool,
    io: Arc<Io>,
}

impl OsFile {
    fn run<T, F>(&self, tag: IoTag, call: F) -> IoFuture<'static, T>
    where
        T: Send + 'static,
        F: FnOnce(&fs::File) -> io::Result<T> + Send + Unpin + 'static,
    {
        let handle = self.handle.clone();
        Operation::boxed(&self.pool, tag, move || call(&handle.file))
    }

    /// Makes a transfer; `give` says what of the buffer its caller wants back.
    fn transfer<T: 'static>(
        &self,
        tag: IoTag,
        (action, offset): (Action, u64),
        buf: IoBuf,
        give: fn(IoBuf) -> T,
    ) -> IoFuture<'static, T> {
        let transfer = Transfer::new(self.handle.clone(), action, offset, buf);
        let (pool, io, state) = (self.pool.clone(), self.io.clone(), State::New(transfer));
        Box::pin(Moving { pool, io, tag, state, since: None, give })
    }
}

impl File for OsFile {
    fn read_at(&self, tag: IoTag, offset: u64, buf: IoBuf) -> IoFuture<'_, IoBuf> {
        self.transfer(tag, (Action::Read, offset), buf, |buf| buf)
    }

    fn write_at(&self, tag: IoTag, offset: u64, buf: IoBuf) -> IoFuture<'_, IoBuf> {
        self.transfer(tag, (Action::Write, offset), buf, |buf| buf)
    }

    fn write_sync(
        &self,
        write: IoTag,
        _sync: IoTag,
        offset: u64,
        buf: IoBuf,
    ) -> IoFuture<'_, IoBuf> {
        self.transfer(write, (Action::WriteSync, offset), buf, |buf| buf)
    }

    fn sync(&self, tag: IoTag) -> IoFuture<'_, ()> {
        self.transfer(tag, (Action::Sync, 0), IoBuf::new(), drop)
    }

    fn start_write_back(&self, tag: IoTag, range: Range<u64>) {
        // The call waits where the disk's queue is full, so it is nothing for the thread of a writer.
        let (handle, background) = (self.handle.clone(), tag.class.is_background());
        let run = Box::new(move || write_back::start(&handle.file, range));
        // Without a thread for it the sync has all to do.
        _ = self.pool.submit(Job { name: tag.site, background, run });
    }

    fn allocate(&self, tag: IoTag, len: u64) -> IoFuture<'_, ()> {
        self.run(tag, move |file| {
            if len == 0 {
                return Ok(()); // the system call refuses an empty range
            }
            let reserve = || rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len);
            match retry_interrupted(reserve) {
                Err(e) if e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                    extend_with_zeros(file, len)
                }
                result => result,
            }
        })
    }

    fn truncate(&self, tag: IoTag, len: u64) -> IoFuture<'_, ()> {
        self.run(tag, move |file| retry_interrupted(|| rustix::fs::ftruncate(file, len)))
    }

    fn len(&self) -> IoFuture<'_, u64> {
        self.run(LOOKUP, |file| file.metadata().map(|metadata| metadata.len()))
    }
}

/// Reserves by writing, on file systems without `fallocate`.
fn extend_with_zeros(file: &fs::File, len: u64) -> io::Result<()> {
    let zeros = [0; ZERO_CHUNK];
    let mut offset = file.metadata()?.len();
    while offset < len {
        let chunk = usize::try_from(len - offset).map_or(ZERO_CHUNK, |left| left.min(ZERO_CHUNK));
        file.write_all_at(&zeros[..chunk], offset)?;
        offset += chunk as u64;
    }
    Ok(())
}

fn retry_interrupted(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// A system call that is made inline or on an I/O thread, as its first poll finds out.
enum Operation<T, F> {
    Start { pool: Pool, tag: IoTag, call: F },
    OnThread(oneshot::Receiver<io::Result<T>>),
    Done,
}

impl<T, F> Operation<T, F>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + Unpin + 'static,
{
    fn boxed(pool: &Pool, tag: IoTag, call: F) -> IoFuture<'static, T> {
        Box::pin(Operation::Start { pool: pool.clone(), tag, call })
    }
}

impl<T, F> Future for Operation<T, F>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + Unpin + 'static,
{
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        match std::mem::replace(&mut *self, Operation::Done) {
            Operation::Start { call, .. } if task::may_block() => return Poll::Ready(call()),
            Operation::Start { pool, tag, call } => {
                let (sender, receiver) = oneshot::channel();
                let background = tag.class.is_background();
                // Nobody listens any more if the operation was dropped; its effect stands.
                let run = Box::new(move || _ = sender.send(call()));
                pool.submit(Job { name: tag.site, background, run })?;
                *self = Operation::OnThread(receiver);
            }
            Operation::OnThread(receiver) => *self = Operation::OnThread(receiver),
            Operation::Done => panic!("an I/O operation was polled after it completed"),
        }
        let Operation::OnThread(receiver) = &mut *self else { unreachable!("set just above") };
        match Pin::new(receiver).poll(cx) {
            Poll::Ready(Ok(result)) => Poll::Ready(result),
            Poll::Ready(Err(oneshot::Canceled)) => {
                Poll::Ready(Err(io::Error::other("the I/O thread ended before the operation")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A transfer on its way through the throttle to whatever carries it out.
struct Moving<T> {
    pool: Pool,
    io: Arc<Io>,
    tag: IoTag,
    state: State,
    /// When it was first polled, if its time is of use.
    since: Option<Instant>,
    give: fn(IoBuf) -> T,
}

enum State {
    New(Transfer),
    Throttled(Transfer, Ticket, Pin<Box<dyn Future<Output = ()> + Send>>),
    Admitted(Transfer),
    /// On a ring or a thread, which answers.
    Elsewhere(oneshot::Receiver<io::Result<IoBuf>>),
    Done,
}

impl<T> Moving<T> {
    /// Asks the throttle, which is there.
    fn throttled(
        &self,
        throttle: &Mutex<Throttle>,
        transfer: Transfer,
        ticket: Option<Ticket>,
    ) -> State {
        let now = self.io.now();
        let mut throttle = throttle.lock();
        let Some(ticket) =
            ticket.or_else(|| throttle.arrive(now, self.tag.class, transfer.bytes()))
        else {
            return State::Admitted(transfer);
        };
        match throttle.ask(now, ticket) {
            Answer::Go => State::Admitted(transfer),
            Answer::Wait(wait) => {
                let us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
                self.io.counts.waited_us.fetch_add(us, Ordering::Relaxed);
                State::Throttled(transfer, ticket, self.io.clock.sleep(wait))
            }
        }
    }

    /// Carries it out here, or starts it elsewhere.
    fn start(&mut self, transfer: Transfer) -> io::Result<Result<IoBuf, State>> {
        let counts = &self.io.counts;
        let count = |counter: &std::sync::atomic::AtomicU64, by| {
            counter.fetch_add(by, Ordering::Relaxed);
        };
        count(&counts.bytes[self.tag.class as usize], transfer.bytes());
        let on_core = uring::is_core();
        // A core that blocks does so for a moment only: the page cache, not the disk, and no sync.
        let may_block = task::may_block() && !(on_core && transfer.syncs());
        let transfer = if may_block && on_core { transfer.through_cache() } else { transfer };
        count(&counts.direct_transfers, u64::from(transfer.is_direct()));
        if may_block {
            if self.io.options.backend == Backend::Uring && !on_core {
                count(&counts.ring_transfers, 1);
                return uring::run(&self.io, transfer).map(Ok);
            }
            count(&counts.inline_transfers, 1);
            return transfer.run().map(Ok);
        }
        let transfer = if self.io.rings {
            match uring::start(self.tag.class, transfer) {
                Ok(receiver) => {
                    count(&counts.ring_transfers, 1);
                    return Ok(Err(State::Elsewhere(receiver)));
                }
                Err(transfer) => transfer,
            }
        } else {
            transfer
        };
        count(&counts.thread_transfers, 1);
        let (sender, receiver) = oneshot::channel();
        // Nobody listens any more if the operation was dropped; its effect stands.
        let run = Box::new(move || _ = sender.send(transfer.run()));
        let background = self.tag.class.is_background();
        self.pool.submit(Job { name: self.tag.site, background, run })?;
        Ok(Err(State::Elsewhere(receiver)))
    }

    /// The time of urgent work is what the throttle goes by.
    fn note_time(&mut self) {
        if let (Some(since), Some(throttle)) = (self.since.take(), &self.io.throttle) {
            let now = self.io.now();
            throttle.lock().urgent(now, now.since(since));
        }
    }
}

impl<T> Future for Moving<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let result = loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::New(mut transfer) => {
                    if let Some(result) = transfer.settled() {
                        break result;
                    }
                    let io = self.io.clone();
                    self.state = match &io.throttle {
                        None => State::Admitted(transfer),
                        Some(throttle) => {
                            if !self.tag.class.is_background() && throttle.lock().listens() {
                                self.since = Some(io.now());
                            }
                            self.throttled(throttle, transfer, None)
                        }
                    };
                }
                State::Throttled(transfer, ticket, mut sleep) => {
                    if sleep.as_mut().poll(cx).is_pending() {
                        self.state = State::Throttled(transfer, ticket, sleep);
                        return Poll::Pending;
                    }
                    let io = self.io.clone();
                    self.state = match &io.throttle {
                        Some(throttle) => self.throttled(throttle, transfer, Some(ticket)),
                        None => State::Admitted(transfer),
                    };
                }
                State::Admitted(transfer) => match self.start(transfer) {
                    Ok(Ok(buf)) => break Ok(buf),
                    Ok(Err(state)) => self.state = state,
                    Err(error) => break Err(error),
                },
                State::Elsewhere(mut receiver) => match Pin::new(&mut receiver).poll(cx) {
                    Poll::Ready(Ok(result)) => break result,
                    Poll::Ready(Err(oneshot::Canceled)) => {
                        let message = "its core or I/O thread ended before the transfer";
                        break Err(io::Error::other(message));
                    }
                    Poll::Pending => {
                        self.state = State::Elsewhere(receiver);
                        return Poll::Pending;
                    }
                },
                State::Done => panic!("an I/O operation was polled after it completed"),
            }
        };
        self.note_time();
        let give = self.give;
        Poll::Ready(result.map(give))
    }
}

impl<T> Drop for Moving<T> {
    fn drop(&mut self) {
        if let (State::Throttled(_, ticket, _), Some(throttle)) = (&self.state, &self.io.throttle) {
            throttle.lock().leave(*ticket);
        }
    }
}
