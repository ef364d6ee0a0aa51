//! Files by blocking system calls: inline where the thread may block, else on I/O threads.
//!
//! An operation decides at its first poll. Under [`task::block_on`] it makes its system call there
//! and then, without a thread switch; a core's event loop must not stall, so there the operation
//! and its buffer go to a small pool and the task is woken. A dropped operation that has started
//! runs to its end on its own buffer.

#![expect(clippy::disallowed_methods, reason = "this is what Disk stands on")]

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use crate::buf::IoBuf;
use crate::disk::{DirEntry, Disk, File, IoClass, IoFuture, IoTag, OpenMode};
use crate::os::pool::{Job, Pool};
use crate::sync::oneshot;
use crate::task;

/// Enough to keep a solid-state drive busy from an event loop's point reads.
const IO_THREADS: usize = 8;

/// Zeros written per call where the file system cannot reserve space.
const ZERO_CHUNK: usize = 64 * 1024;

pub(super) struct OsDisk {
    pool: Pool,
}

impl OsDisk {
    pub(super) fn new() -> OsDisk {
        OsDisk { pool: Pool::new("atoll-io", Some(IO_THREADS)) }
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
        let (path, pool) = (path.to_owned(), self.pool.clone());
        self.run(LOOKUP, move || {
            let mut options = OpenOptions::new();
            options.read(true);
            match mode {
                OpenMode::Read => {}
                OpenMode::ReadWrite => _ = options.write(true),
                OpenMode::CreateNew => _ = options.write(true).create_new(true),
            }
            let file = options.open(path)?;
            // Linux opens a directory for reading and complains at the first read.
            if file.metadata()?.is_dir() {
                return Err(Errno::ISDIR.into());
            }
            Ok(Arc::new(OsFile { file: Arc::new(file), pool }) as Arc<dyn File>)
        })
    }

    fn rename<'a>(&'a self, tag: IoTag, from: &'a Path, to: &'a Path) -> IoFuture<'a, ()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.run(tag, move || fs::rename(from, to))
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
            retry_interrupted(|| rustix::fs::fsync(&dir))
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

struct OsFile {
    file: Arc<fs::File>,
    pool: Pool,
}

impl OsFile {
    fn run<T, F>(&self, tag: IoTag, call: F) -> IoFuture<'static, T>
    where
        T: Send + 'static,
        F: FnOnce(&fs::File) -> io::Result<T> + Send + Unpin + 'static,
    {
        let file = self.file.clone();
        Operation::boxed(&self.pool, tag, move || call(&file))
    }
}

impl File for OsFile {
    fn read_at(&self, tag: IoTag, offset: u64, mut buf: IoBuf) -> IoFuture<'_, IoBuf> {
        // std's loops retry interrupted and short calls.
        self.run(tag, move |file| file.read_exact_at(&mut buf, offset).map(|()| buf))
    }

    fn write_at(&self, tag: IoTag, offset: u64, buf: IoBuf) -> IoFuture<'_, IoBuf> {
        self.run(tag, move |file| file.write_all_at(&buf, offset).map(|()| buf))
    }

    fn sync(&self, tag: IoTag) -> IoFuture<'_, ()> {
        self.run(tag, |file| retry_interrupted(|| rustix::fs::fdatasync(file)))
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
                let background = tag.class >= IoClass::Flush;
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
