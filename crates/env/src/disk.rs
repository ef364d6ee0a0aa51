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
    /// Compaction.
    Compaction,
    /// Verification and other work nobody waits for.
    Scrub,
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
    /// Renames a file, replacing the target atomically. Durable after `sync_dir` of the
    /// directories involved.
    fn rename<'a>(&'a self, tag: IoTag, from: &'a Path, to: &'a Path) -> IoFuture<'a, ()>;
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
    /// Reserves space for `len` bytes and sets the length to at least `len`; new bytes read as
    /// zero. `StorageFull` if there is none.
    fn allocate(&self, tag: IoTag, len: u64) -> IoFuture<'_, ()>;
    /// Sets the length.
    fn truncate(&self, tag: IoTag, len: u64) -> IoFuture<'_, ()>;
    /// Returns the length in bytes.
    fn len(&self) -> IoFuture<'_, u64>;
}
