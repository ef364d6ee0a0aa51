//! What a simulated disk does wrong: chances per operation, and faults put at chosen places.

use std::ops::Range;
use std::time::Duration;

use crate::disk::IoTag;
use crate::random::Prng;

/// What a power cut leaves of the things that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CrashMode {
    /// Everything: only the process died.
    KeepAll,
    /// Nothing.
    DropAll,
    /// Each sector, length and name on its own, drawn by the seed; sectors may be torn.
    #[default]
    Random,
}

/// When a planned crash happens, seen from its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CrashTiming {
    /// The operation has no effect.
    Before,
    /// The operation is half done: a prefix of a write, some sectors of a sync. An operation on
    /// names or lengths is atomic and happens or not.
    During,
    /// The operation had its effect, but nobody was told.
    After,
    /// One of the three, drawn by the seed.
    #[default]
    Any,
}

/// Where a planned crash happened, for the report of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    /// The number of the mutation, from 0.
    pub mutation: u64,
    /// Never [`CrashTiming::Any`].
    pub timing: CrashTiming,
    /// The operation.
    pub op: OpKind,
    /// Its path.
    pub path: String,
    /// Its site, empty for operations without a tag.
    pub site: &'static str,
}

/// How a simulated disk behaves. The default is a sound disk of usual speed.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Time of an operation other than a sync.
    pub latency: Range<Duration>,
    /// Time of a sync of a file or a directory.
    pub sync_latency: Range<Duration>,
    /// Bytes the files may occupy, by whole 4 KiB pages; `None` is no limit.
    pub capacity: Option<u64>,
    /// What crashes leave behind if they do not say otherwise.
    pub crash_mode: CrashMode,
    /// Chance that an unsynced sector is torn by a [`CrashMode::Random`] crash.
    pub torn_sector: f64,
    /// Chances of faults, all zero by default.
    pub faults: DiskFaults,
}

impl Default for DiskOptions {
    fn default() -> DiskOptions {
        DiskOptions {
            latency: Duration::from_micros(10)..Duration::from_micros(200),
            sync_latency: Duration::from_micros(100)..Duration::from_millis(2),
            capacity: None,
            crash_mode: CrashMode::default(),
            torn_sector: 0.05,
            faults: DiskFaults::default(),
        }
    }
}

/// Chances of faults per operation, from 0 (never, the default) to 1 (always).
#[derive(Clone, Debug, Default)]
pub struct DiskFaults {
    /// A read fails with EIO.
    pub read_error: f64,
    /// A read returns one inverted bit; the medium is sound.
    pub read_flip: f64,
    /// A write, allocation, truncation, rename or removal fails with EIO and has no effect.
    pub write_error: f64,
    /// A write fails with EIO after a prefix was stored.
    pub short_write: f64,
    /// A write is acknowledged and never stored.
    pub lost_write: f64,
    /// A write is stored at another sector of its file, or in another file, and acknowledged.
    pub misdirected_write: f64,
    /// A sync fails with EIO, its unsynced pages are thrown away and marked clean: reads show the
    /// old bytes and the next sync succeeds.
    pub sync_error: f64,
    /// An operation takes a hundred times as long.
    pub slow: f64,
    /// An operation never completes. It has its effect or not, by the seed.
    pub hang: f64,
}

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// EIO without an effect; for a sync, EIO with the unsynced pages kept (the next may succeed).
    Error,
    /// ENOSPC; a write stores a prefix first.
    NoSpace,
    /// EIO after a prefix of a write was stored; like `Error` for other operations.
    Short,
    /// EIO from a sync that throws the unsynced pages away and marks them clean; like `Error` for
    /// other operations.
    SyncLoses,
    /// EIO from a sync that marks the unsynced pages clean and keeps them: reads show what only
    /// memory has, until the power is cut. A later sync succeeds, and stores only pages that were
    /// written since. Like `Error` for other operations.
    SyncForgets,
    /// Success without an effect: a lost write, a sync that lies. Reads and opens are not touched.
    Lost,
    /// Success, but stored elsewhere. Only writes are touched.
    Misdirected,
    /// One inverted bit in what a read returns. Only reads are touched.
    Flip,
    /// No answer, ever.
    Hang,
    /// A hundred times slower.
    Slow,
}

/// Kinds of disk operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// `Disk::open` of an existing file.
    Open,
    /// `Disk::open` with `CreateNew`.
    Create,
    /// `Disk::create_dir`.
    CreateDir,
    /// `Disk::list`.
    List,
    /// `Disk::lock`.
    Lock,
    /// `Disk::rename`.
    Rename,
    /// `Disk::link`.
    Link,
    /// `Disk::remove`.
    Remove,
    /// `Disk::sync_dir`.
    SyncDir,
    /// `File::read_at`.
    Read,
    /// `File::write_at`.
    Write,
    /// `File::sync`.
    Sync,
    /// `File::allocate`.
    Allocate,
    /// `File::truncate`.
    Truncate,
    /// `File::len`.
    Len,
}

impl OpKind {
    /// Returns whether the operation can change the disk.
    pub fn is_mutation(self) -> bool {
        !matches!(self, OpKind::Open | OpKind::List | OpKind::Lock | OpKind::Read | OpKind::Len)
    }

    /// Returns whether it makes things durable.
    pub fn is_sync(self) -> bool {
        matches!(self, OpKind::Sync | OpKind::SyncDir)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            OpKind::Open => "open",
            OpKind::Create => "create",
            OpKind::CreateDir => "mkdir",
            OpKind::List => "list",
            OpKind::Lock => "lock",
            OpKind::Rename => "rename",
            OpKind::Link => "link",
            OpKind::Remove => "remove",
            OpKind::SyncDir => "sync_dir",
            OpKind::Read => "read",
            OpKind::Write => "write",
            OpKind::Sync => "sync",
            OpKind::Allocate => "allocate",
            OpKind::Truncate => "truncate",
            OpKind::Len => "len",
        }
    }
}

/// A fault put at a chosen place: every condition that is given must hold.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Only operations of this kind.
    pub op: Option<OpKind>,
    /// Only paths that contain this text.
    pub path: Option<String>,
    /// Only this site of [`IoTag`].
    pub site: Option<&'static str>,
    /// Matching operations to let pass first.
    pub skip: u64,
    /// Hits every later match too; otherwise the fault is used up by its first hit.
    pub sticky: bool,
}

impl Fault {
    /// Returns a fault that hits the next operation it can touch, once.
    pub fn new(kind: FaultKind) -> Fault {
        Fault { kind, op: None, path: None, site: None, skip: 0, sticky: false }
    }

    /// Hits only operations of one kind.
    pub fn on(self, op: OpKind) -> Fault {
        Fault { op: Some(op), ..self }
    }

    /// Hits only paths that contain `part`.
    pub fn path(self, part: &str) -> Fault {
        Fault { path: Some(part.to_owned()), ..self }
    }

    /// Hits only one site.
    pub fn site(self, site: &'static str) -> Fault {
        Fault { site: Some(site), ..self }
    }

    /// Lets `n` matching operations pass first.
    pub fn skip(self, n: u64) -> Fault {
        Fault { skip: n, ..self }
    }

    /// Hits every later match too.
    pub fn sticky(self) -> Fault {
        Fault { sticky: true, ..self }
    }

    pub(super) fn matches(&self, op: OpKind, tag: Option<IoTag>, path: &str) -> bool {
        let touches = match self.kind {
            FaultKind::Misdirected => op == OpKind::Write,
            FaultKind::Flip => op == OpKind::Read,
            FaultKind::Lost => op.is_mutation() && op != OpKind::Create,
            _ => true,
        };
        touches
            && self.op.is_none_or(|wanted| wanted == op)
            && self.path.as_ref().is_none_or(|part| path.contains(part.as_str()))
            && self.site.is_none_or(|site| tag.is_some_and(|tag| tag.site == site))
    }
}

impl DiskFaults {
    /// Draws what goes wrong with one operation.
    pub(super) fn draw(&self, op: OpKind, prng: &mut Prng) -> Option<FaultKind> {
        let never = (0.0, FaultKind::Error);
        let of_op = match op {
            OpKind::Read => {
                let flip = (self.read_flip, FaultKind::Flip);
                [(self.read_error, FaultKind::Error), flip, never, never]
            }
            OpKind::Write => [
                (self.write_error, FaultKind::Error),
                (self.short_write, FaultKind::Short),
                (self.lost_write, FaultKind::Lost),
                (self.misdirected_write, FaultKind::Misdirected),
            ],
            OpKind::Sync => [(self.sync_error, FaultKind::SyncLoses), never, never, never],
            OpKind::SyncDir => [(self.sync_error, FaultKind::Error), never, never, never],
            OpKind::Allocate
            | OpKind::Truncate
            | OpKind::Rename
            | OpKind::Link
            | OpKind::Remove => [(self.write_error, FaultKind::Error), never, never, never],
            _ => [never; 4],
        };
        let of_all = [(self.slow, FaultKind::Slow), (self.hang, FaultKind::Hang)];
        let mut hit = None;
        for (chance, kind) in of_op.into_iter().chain(of_all) {
            if chance > 0.0 && prng.chance(chance) {
                hit = hit.or(Some(kind));
            }
        }
        hit
    }
}
