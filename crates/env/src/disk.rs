//! Files and directories: the storage half of the environment.
//!
//! The contract is the weakest one that real file systems keep, and the simulator breaks everything
//! that is not promised here:
//!
//! - A completed [`File::write_at`] is seen by later reads and survives the death of the process,
//!   not a power cut.
//! - A completed [`File::sync`] makes the file's earlier writes and its length survive a power cut.
//!   After a failed one nothing is known about them, and a later success proves nothing.
//! - A file's *name* (creation, rename, removal) survives a power cut only after
//!   [`Disk::sync_dir`] of its directory. A rename replaces its target atomically.
//! - Unsynced sectors (512 bytes) survive a power cut or not, each on its own, in any order; one
//!   being written may be torn.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use crate::buf::IoBuf;

/// An I/O operation under way. It owns what it touches and may be dropped at any time.
pub type IoFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// What an operation is for: its class orders it against others, its site names the place in the
/// code for statistics and for the crash harness (`frame write`, `manifest swap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoTag {
    /// Scheduling class.
    pub class: IoClass,
    /// The place in the code, as the crash harness prints it.
    pub site: &'static str,
}

impl IoTag {
    /// Names a site.
    pub const fn new(class: IoClass, site: &'static str) -> IoTag {
        IoTag { class, site }
    }
}

/// Scheduling class of an operation, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IoClass {
    /// Commits wait for it.
    Log,
    /// A client's read waits for it.
    Read,
    /// Memory is freed by it.
    Flush,
    /// Compaction out of level 0: writers are slowed down until it is done.
    Level0,
    /// Compaction between deeper levels.
    Compaction,
    /// Collection of values that nobody points to any more.
    Collection,
    /// Verification and other work nobody waits for.
    Scrub,
}

impl IoClass {
    /// All classes, most urgent first.
    pub const ALL: [IoClass; 7] = [
        IoClass::Log,
        IoClass::Read,
        IoClass::Flush,
        IoClass::Level0,
        IoClass::Compaction,
        IoClass::Collection,
        IoClass::Scrub,
    ];

    /// Returns the name, as statistics spell it.
    pub fn name(self) -> &'static str {
        match self {
            IoClass::Log => "log",
            IoClass::Read => "read",
            IoClass::Flush => "flush",
            IoClass::Level0 => "level0",
            IoClass::Compaction => "compaction",
            IoClass::Collection => "collection",
            IoClass::Scrub => "scrub",
        }
    }

    /// Returns whether nobody waits for it right now: it may neither fill a queue nor stand before
    /// what is urgent.
    pub fn is_background(self) -> bool {
        self >= IoClass::Flush
    }
}

/// What a file is for, as far as the kernel's page cache is concerned. A hint: an implementation may
/// treat all files alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileUse {
    /// Small and rarely touched.
    Plain,
    /// A segment of a log: [`File::write_sync`] overwrites whole blocks of it, and nobody reads them
    /// again before a restart.
    Log,
    /// A table: whoever reads it has a cache of his own.
    Table,
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A new file, for reading and writing; fails with `AlreadyExists` if the name is taken.
    CreateNew,
}

/// An entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// File name without its directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Length in bytes, 0 for a directory.
    pub len: u64,
}

/// A directory tree on stable storage.
pub trait Disk: Send + Sync {
    /// Opens a file.
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> IoFuture<'a, Arc<dyn File>>;
    /// Opens a file and says what it is for.
    fn open_for<'a>(
        &'a self,
        path: &'a Path,
        mode: OpenMode,
        usage: FileUse,
    ) -> IoFuture<'a, Arc<dyn File>> {
        let _ = usage;
        self.open(path, mode)
    }
    /// Returns by what means files are read and written here, and how often.
    fn status(&self) -> DiskStatus {
        DiskStatus::default()
    }
    /// Renames a file, replacing the target atomically. Durable after `sync_dir` of the
    /// directories involved.
    fn rename<'a>(&'a self, tag: IoTag, from: &'a Path, to: &'a Path) -> IoFuture<'a, ()>;
    /// Gives a file one more name, on the same file system. Fails with `AlreadyExists` if the name is
    /// taken, and with `CrossesDevices`, `Unsupported`, `PermissionDenied` or `TooManyLinks` where
    /// there are no such links: then the bytes can be copied. Durable after `sync_dir` of the new
    /// name's directory.
    fn link<'a>(&'a self, tag: IoTag, from: &'a Path, to: &'a Path) -> IoFuture<'a, ()> {
        let _ = (tag, from, to);
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }
    /// Removes a file. Durable after `sync_dir`.
    fn remove<'a>(&'a self, tag: IoTag, path: &'a Path) -> IoFuture<'a, ()>;
    /// Creates a directory and its missing parents; succeeds if it exists. Durable after
    /// `sync_dir` of each parent.
    fn create_dir<'a>(&'a self, path: &'a Path) -> IoFuture<'a, ()>;
    /// Makes the names in a directory durable.
    fn sync_dir<'a>(&'a self, tag: IoTag, path: &'a Path) -> IoFuture<'a, ()>;
    /// Lists a directory, sorted by name.
    fn list<'a>(&'a self, path: &'a Path) -> IoFuture<'a, Vec<DirEntry>>;
    /// Takes an exclusive lock on a file (created if missing), held until the guard is dropped or
    /// the process dies. `WouldBlock` if somebody holds it.
    fn lock<'a>(&'a self, path: &'a Path) -> IoFuture<'a, Box<dyn Send + Sync>>;
}

/// An open file. Operations may overlap; the caller orders those that touch the same bytes.
#[expect(
    clippy::len_without_is_empty,
    reason = "the length is an operation that may fail, not a property"
)]
pub trait File: Send + Sync {
    /// Fills `buf` (its whole length) from `offset`. `UnexpectedEof` if the file ends before.
    fn read_at(&self, tag: IoTag, offset: u64, buf: IoBuf) -> IoFuture<'_, IoBuf>;
    /// Writes the whole of `buf` at `offset`, extending the file if needed. Returns the buffer.
    fn write_at(&self, tag: IoTag, offset: u64, buf: IoBuf) -> IoFuture<'_, IoBuf>;
    /// Makes earlier completed writes and the length durable (fdatasync).
    fn sync(&self, tag: IoTag) -> IoFuture<'_, ()>;
    /// Writes like [`File::write_at`] and then makes durable like [`File::sync`]: one step for an
    /// implementation that can give the kernel both at once.
    fn write_sync(
        &self,
        write: IoTag,
        sync: IoTag,
        offset: u64,
        buf: IoBuf,
    ) -> IoFuture<'_, IoBuf> {
        Box::pin(async move {
            let buf = self.write_at(write, offset, buf).await?;
            self.sync(sync).await?;
            Ok(buf)
        })
    }
    /// Is told that `range`, which was written, will be synced before long: a good moment to begin. Promises
    /// nothing, and whoever waits for the sync then waits for less.
    fn start_write_back(&self, tag: IoTag, range: Range<u64>) {
        let _ = (tag, range);
    }
    /// Reserves space for `len` bytes and sets the length to at least `len`; new bytes read as
    /// zero. `StorageFull` if there is none.
    fn allocate(&self, tag: IoTag, len: u64) -> IoFuture<'_, ()>;
    /// Sets the length.
    fn truncate(&self, tag: IoTag, len: u64) -> IoFuture<'_, ()>;
    /// Returns the length in bytes.
    fn len(&self) -> IoFuture<'_, u64>;
}

/// By what means a disk works. What was wished for and not granted says why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskStatus {
    /// What carries out the transfers of a core: `io_uring` or `threads`; empty if simulated.
    pub backend: &'static str,
    /// Each thing that was wished for and not granted, with the reason: `direct I/O: ...`.
    pub degraded: Vec<String>,
    /// Rings that are open.
    pub rings: u64,
    /// Transfers by rings.
    pub ring_transfers: u64,
    /// System calls that handed transfers to rings: fewer, the busier a core is.
    pub ring_submissions: u64,
    /// Transfers by blocking calls on the thread that wanted them.
    pub inline_transfers: u64,
    /// Transfers by helper threads.
    pub thread_transfers: u64,
    /// Transfers past the page cache, by whatever means.
    pub direct_transfers: u64,
    /// Bytes by class, in the order of [`IoClass::ALL`].
    pub bytes: [u64; IoClass::ALL.len()],
    /// Ceiling for background work now, in bytes a second, if there is one.
    pub background_rate: Option<u64>,
    /// How long background work waited for it in all, in microseconds.
    pub background_waited_us: u64,
}
