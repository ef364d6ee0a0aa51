//! How files are read and written on this machine: what was wished for, what was granted, who waits.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::disk::{DiskStatus, IoClass};
use crate::os::uring;
use crate::throttle::{Limit, Throttle};
use crate::time::{Clock, Instant};

/// What carries transfers out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// A ring on each core, blocking calls on threads that may block. Without rings, threads.
    #[default]
    Auto,
    /// Rings everywhere, also on threads that may block; refused where there are none.
    Uring,
    /// Blocking calls: on helper threads where the caller may not block.
    Threads,
}

/// What goes past the page cache, where the file system lets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DirectIo {
    /// Nothing.
    Off,
    /// Synced writes of the log.
    #[default]
    Log,
    /// These, and tables.
    All,
}

/// Where it is told what was not granted.
pub type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// How a machine's disk is to be used.
#[derive(Clone, Default)]
pub struct IoOptions {
    /// What carries transfers out.
    pub backend: Backend,
    /// What goes past the page cache.
    pub direct: DirectIo,
    /// Ceiling of background work.
    pub limit: Limit,
    /// Is called with a line for each thing that is not granted; each is also in the status.
    pub report: Option<Report>,
}

impl fmt::Debug for IoOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IoOptions { backend, direct, limit, report: _ } = self;
        write!(f, "IoOptions({backend:?}, {direct:?}, {limit:?})")
    }
}

/// Counters of the status.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) rings: AtomicU64,
    pub(super) ring_transfers: AtomicU64,
    pub(super) ring_submissions: AtomicU64,
    pub(super) inline_transfers: AtomicU64,
    pub(super) thread_transfers: AtomicU64,
    pub(super) direct_transfers: AtomicU64,
    pub(super) bytes: [AtomicU64; IoClass::ALL.len()],
    pub(super) waited_us: AtomicU64,
}

/// What all files and cores of an environment share.
pub(super) struct Io {
    pub(super) options: IoOptions,
    /// Whether cores get rings.
    pub(super) rings: bool,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) throttle: Option<Mutex<Throttle>>,
    pub(super) counts: Counts,
    degraded: Mutex<Vec<String>>,
}

impl Io {
    /// Finds out what can be had.
    ///
    /// # Errors
    /// Rings were insisted on and there are none.
    pub(super) fn new(options: IoOptions, clock: Arc<dyn Clock>) -> io::Result<Io> {
        let throttle = Throttle::new(options.limit, clock.now()).map(Mutex::new);
        let mut io = Io {
            options,
            rings: false,
            clock,
            throttle,
            counts: Counts::default(),
            degraded: Mutex::default(),
        };
        match (io.options.backend, uring::probe()) {
            (Backend::Threads, _) => {}
            (_, Ok(())) => io.rings = true,
            (Backend::Auto, Err(error)) => io.degrade("io_uring", &error.to_string()),
            (Backend::Uring, Err(error)) => {
                let message = format!("io_uring cannot be had: {error}");
                return Err(io::Error::new(error.kind(), message));
            }
        }
        Ok(io)
    }

    /// Notes, once, that something is not granted.
    pub(super) fn degrade(&self, what: &str, why: &str) {
        let line = format!("{what}: {why}");
        let mut degraded = self.degraded.lock();
        if degraded.contains(&line) {
            return;
        }
        degraded.push(line.clone());
        drop(degraded);
        if let Some(report) = &self.options.report {
            report(&format!("not granted, going on without: {line}"));
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(super) fn status(&self) -> DiskStatus {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts {
            rings,
            ring_transfers,
            ring_submissions,
            inline_transfers,
            thread_transfers,
            direct_transfers,
            bytes,
            waited_us,
        } = &self.counts;
        DiskStatus {
            backend: if self.rings { "io_uring" } else { "threads" },
            degraded: self.degraded.lock().clone(),
            rings: get(rings),
            ring_transfers: get(ring_transfers),
            ring_submissions: get(ring_submissions),
            inline_transfers: get(inline_transfers),
            thread_transfers: get(thread_transfers),
            direct_transfers: get(direct_transfers),
            bytes: std::array::from_fn(|class| get(&bytes[class])),
            background_rate: self.throttle.as_ref().map(|throttle| throttle.lock().rate()),
            background_waited_us: get(waited_us),
        }
    }
}
