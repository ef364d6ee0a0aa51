//! Events: what the engine does in the background, told to whoever wants to know.
//!
//! ```text
//!   flush, compaction, leader, readers --tell--> queue --one task--> the listener
//! ```
//!
//! The engine only puts an event into a queue. A task of the store takes them out, in order, and
//! calls the listener, so that it never runs under a lock of the engine or in the way of a writer,
//! however slow it is. A queue that is full drops what comes and says how much that was. A panic of
//! the listener is caught; the event is gone then, and the next one is told as if nothing had been.
//!
//! Rejected: calling the listener where things happen (RocksDB). What a listener may do there has to
//! be written down (no call that waits for the work that is being reported), and one slow log
//! line holds up a flush.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::sync::Notify;
use parking_lot::Mutex;

use crate::error::Error;

/// Events that wait for a listener at most.
const WAITING_MAX: usize = 1024;

/// Somebody who wants to know what a store does in the background.
///
/// Every method is told the store's directory first, since one listener may have several stores. All
/// events of a store come from one task, in order: of each job that begins the end is told too,
/// unless the process dies. The listener may call the database, reads and writes as well, but not
/// close it: closing waits until all events were told.
#[expect(unused_variables, reason = "an event that nobody minds")]
pub trait EventListener: Send + Sync {
    /// A memtable is being written into a table.
    fn flush_begun(&self, store: &Path, event: &FlushBegun) {}
    /// It was, or could not be.
    fn flush_ended(&self, store: &Path, event: &FlushEnded) {}
    /// Tables are being merged, moved or dropped.
    fn compaction_begun(&self, store: &Path, event: &CompactionBegun) {}
    /// They were, or could not be.
    fn compaction_ended(&self, store: &Path, event: &CompactionEnded) {}
    /// A table is complete and part of the tree.
    fn table_created(&self, store: &Path, event: &TableInfo) {}
    /// The file of a table that no reader needed any more was removed.
    fn table_deleted(&self, store: &Path, id: u64) {}
    /// Writers are slowed down, because compaction falls behind.
    fn write_delayed(&self, store: &Path, event: &WriteDelayed) {}
    /// They are not any more. Told with the first write after that.
    fn write_delay_ended(&self, store: &Path) {}
    /// Writers wait for memory, because flushes fall behind.
    fn write_stalled(&self, store: &Path, event: &WriteStalled) {}
    /// They waited so long.
    fn write_stall_ended(&self, store: &Path, waited: Duration) {}
    /// A flush or compaction failed. It is tried again after a pause, and told again if it fails again.
    fn background_error(&self, store: &Path, event: &BackgroundError) {}
    /// A merge operator or a compaction filter did not answer a flush or compaction: what it was asked
    /// about stays as it was. Told of the first time in each job; [`Stats`](crate::Stats) count all.
    fn callback_failed(&self, store: &Path, why: &Error) {}
    /// The disk is full: writes are refused until space returns.
    fn read_only_entered(&self, store: &Path, why: &Error) {}
    /// Writes are accepted again.
    fn read_only_left(&self, store: &Path) {}
    /// The store has stopped and has to be opened again.
    fn stopped(&self, store: &Path, why: &Error) {}
    /// Bytes of a table do not verify: it is in quarantine. Or those of a value file, each time that a
    /// scrub comes by.
    fn corruption_found(&self, store: &Path, event: &CorruptionFound) {}
    /// The listener was too slow: so many events were not told.
    fn events_lost(&self, store: &Path, count: u64) {}
}

/// Why a memtable is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FlushReason {
    /// It has no room for the next batch.
    Full,
    /// Writers wait for memory.
    Memory,
    /// It holds one batch that is larger than a memtable usually is.
    LargeBatch,
    /// Somebody asked: a flush, a full compaction, the end.
    Asked,
    /// The log would become too long.
    LogLength,
    /// The log was read back when the store was opened.
    Recovery,
}

/// A flush that begins.
#[derive(Clone, Debug)]
pub struct FlushBegun {
    /// Number of the job.
    pub job: u64,
    /// Why.
    pub reason: FlushReason,
    /// Bytes in the memtable.
    pub bytes: u64,
    /// Records in it.
    pub entries: u64,
}

/// A flush that ended.
#[derive(Clone, Debug)]
pub struct FlushEnded {
    /// Number of the job.
    pub job: u64,
    /// The tables that were made of it.
    pub outputs: Vec<TableInfo>,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub end: JobEnd,
}

/// Why tables are compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompactionReason {
    /// There are too many tables in level 0.
    Level0,
    /// A level is larger than it should be.
    LevelSize,
    /// Most of a table is deleted, expired or overwritten.
    DeadWeight,
    /// A table points into value files that are mostly garbage: what is live in them is moved.
    Collection,
    /// Somebody asked for a full compaction.
    Asked,
}

/// What a compaction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionKind {
    /// Reads tables and writes new ones.
    Merge,
    /// Hangs a table lower, as it is.
    Move,
    /// Drops tables unread.
    Drop,
}

/// A compaction that begins.
#[derive(Clone, Debug)]
pub struct CompactionBegun {
    /// Number of the job.
    pub job: u64,
    /// Why.
    pub reason: CompactionReason,
    /// What it does.
    pub kind: CompactionKind,
    /// The tables that it takes.
    pub inputs: Vec<TableInfo>,
    /// The level that they go to, unless they are dropped.
    pub to: Option<usize>,
}

/// A compaction that ended.
#[derive(Clone, Debug)]
pub struct CompactionEnded {
    /// Number of the job.
    pub job: u64,
    /// What it did.
    pub kind: CompactionKind,
    /// The tables that it wrote.
    pub outputs: Vec<TableInfo>,
    /// Bytes of tables that it read.
    pub read: u64,
    /// Bytes of tables that it wrote.
    pub written: u64,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub end: JobEnd,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub enum JobEnd {
    /// It is part of the tree.
    Done,
    /// It was given up, because the store is closed or has stopped.
    Cancelled,
    /// It failed, and nothing came of it.
    Failed(Error),
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its number, which its file is named by.
    pub id: u64,
    /// Its level.
    pub level: usize,
    /// Its bytes on disk.
    pub bytes: u64,
    /// Records in it.
    pub entries: u64,
}

/// Writers are slowed down.
#[derive(Clone, Debug)]
pub struct WriteDelayed {
    /// Tables in level 0: why.
    pub level0_tables: usize,
}

/// Writers wait.
#[derive(Clone, Debug)]
pub struct WriteStalled {
    /// Memtables that wait for their flush: why.
    pub sealed_memtables: usize,
}

/// A job that failed.
#[derive(Clone, Debug)]
pub struct BackgroundError {
    /// `flush` or `compaction`.
    pub chore: &'static str,
    /// Why.
    pub error: Error,
}

/// A table or a value file that does not verify.
#[derive(Clone, Debug)]
pub struct CorruptionFound {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What was expected and what was found.
    pub what: String,
}

/// One event, on its way.
pub(crate) enum Event {
    FlushBegun(FlushBegun),
    FlushEnded(FlushEnded),
    CompactionBegun(CompactionBegun),
    CompactionEnded(CompactionEnded),
    TableCreated(TableInfo),
    TableDeleted(u64),
    WriteDelayed(WriteDelayed),
    WriteDelayEnded,
    WriteStalled(WriteStalled),
    WriteStallEnded(Duration),
    BackgroundError(BackgroundError),
    CallbackFailed(Error),
    ReadOnlyEntered(Error),
    ReadOnlyLeft,
    Stopped(Error),
    CorruptionFound(CorruptionFound),
    Lost(u64),
}

/// The queue to the listener, if there is one.
#[derive(Default)]
pub(crate) struct Events {
    listener: Option<Arc<dyn EventListener>>,
    store: PathBuf,
    waiting: Mutex<Waiting>,
    /// Something waits, or the store ends.
    pub(crate) due: Notify,
    next_job: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Event>,
    lost: u64,
}

impl Events {
    pub(crate) fn new(listener: Option<Arc<dyn EventListener>>, store: &Path) -> Events {
        Events { listener, store: store.to_owned(), ..Events::default() }
    }

    /// Returns whether somebody listens.
    pub(crate) fn are_wanted(&self) -> bool {
        self.listener.is_some()
    }

    /// Draws the number of a job.
    pub(crate) fn draw_job(&self) -> u64 {
        self.next_job.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells an event, which is made only if somebody listens.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.listener.is_none() {
            return;
        }
        let event = event();
        {
            let mut waiting = self.waiting.lock();
            if waiting.events.len() >= WAITING_MAX {
                waiting.lost += 1;
                return;
            }
            waiting.events.push_back(event);
        }
        self.due.notify();
    }

    /// Calls the listener with all that waits. By one task.
    pub(crate) fn deliver(&self) {
        let Some(listener) = &self.listener else { return };
        loop {
            let event = {
                let mut waiting = self.waiting.lock();
                // What was lost came behind all that waits.
                let lost =
                    if waiting.events.is_empty() { std::mem::take(&mut waiting.lost) } else { 0 };
                waiting.events.pop_front().or((lost > 0).then_some(Event::Lost(lost)))
            };
            let Some(event) = event else { return };
            // A listener that panicked is not the store's concern, and the hook has printed it.
            let _ = catch_unwind(AssertUnwindSafe(|| self.call(&**listener, event)));
        }
    }

    fn call(&self, listener: &dyn EventListener, event: Event) {
        let store = &self.store;
        match event {
            Event::FlushBegun(event) => listener.flush_begun(store, &event),
            Event::FlushEnded(event) => listener.flush_ended(store, &event),
            Event::CompactionBegun(event) => listener.compaction_begun(store, &event),
            Event::CompactionEnded(event) => listener.compaction_ended(store, &event),
            Event::TableCreated(event) => listener.table_created(store, &event),
            Event::TableDeleted(id) => listener.table_deleted(store, id),
            Event::WriteDelayed(event) => listener.write_delayed(store, &event),
            Event::WriteDelayEnded => listener.write_delay_ended(store),
            Event::WriteStalled(event) => listener.write_stalled(store, &event),
            Event::WriteStallEnded(waited) => listener.write_stall_ended(store, waited),
            Event::BackgroundError(event) => listener.background_error(store, &event),
            Event::CallbackFailed(why) => listener.callback_failed(store, &why),
            Event::ReadOnlyEntered(why) => listener.read_only_entered(store, &why),
            Event::ReadOnlyLeft => listener.read_only_left(store),
            Event::Stopped(why) => listener.stopped(store, &why),
            Event::CorruptionFound(event) => listener.corruption_found(store, &event),
            Event::Lost(count) => listener.events_lost(store, count),
        }
    }
}

// ---- as lines of a log ----

/// Writes tables as `12 13 in L0`, level by level.
fn tables(f: &mut fmt::Formatter<'_>, tables: &[TableInfo]) -> fmt::Result {
    if tables.is_empty() {
        return f.write_str("nothing");
    }
    for (at, of_level) in tables.chunk_by(|a, b| a.level == b.level).enumerate() {
        f.write_str(if at == 0 { "" } else { " and " })?;
        for table in of_level {
            write!(f, "{} ", table.id)?;
        }
        write!(f, "in L{}", of_level[0].level)?;
    }
    Ok(())
}

impl fmt::Display for FlushBegun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FlushBegun { job, reason, bytes, entries } = self;
        write!(f, "flush {job} begins ({reason:?}): {entries} records, {bytes} bytes")
    }
}

impl fmt::Display for FlushEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FlushEnded { job, outputs, bytes, took, end } = self;
        write!(f, "flush {job} {end} after {took:?}: ")?;
        tables(f, outputs)?;
        write!(f, ", {bytes} bytes")
    }
}

impl fmt::Display for CompactionBegun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CompactionBegun { job, reason, kind, inputs, to } = self;
        write!(f, "compaction {job} begins ({reason:?}): {kind:?} ")?;
        tables(f, inputs)?;
        to.map_or(Ok(()), |to| write!(f, " to L{to}"))
    }
}

impl fmt::Display for CompactionEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CompactionEnded { job, outputs, read, written, took, end, .. } = self;
        write!(f, "compaction {job} {end} after {took:?}: ")?;
        tables(f, outputs)?;
        write!(f, ", {read} bytes read, {written} written")
    }
}

impl fmt::Display for JobEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobEnd::Done => f.write_str("done"),
            JobEnd::Cancelled => f.write_str("given up"),
            JobEnd::Failed(why) => write!(f, "failed ({why})"),
        }
    }
}

impl fmt::Display for WriteDelayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writes are slowed down: {} tables in level 0", self.level0_tables)
    }
}

impl fmt::Display for WriteStalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writes wait: {} memtables wait for their flush", self.sealed_memtables)
    }
}

impl fmt::Display for BackgroundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} failed and will be tried again: {}", self.chore, self.error)
    }
}

impl fmt::Display for CorruptionFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CorruptionFound { file, offset, what } = self;
        write!(f, "corruption in {} at offset {offset}: {what}", file.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Deleted(Mutex<(Vec<u64>, u64)>);

    impl EventListener for Deleted {
        fn table_deleted(&self, _: &Path, id: u64) {
            assert_ne!(id, 3, "it minds the third");
            self.0.lock().0.push(id);
        }
        fn events_lost(&self, _: &Path, count: u64) {
            self.0.lock().1 += count;
        }
    }

    #[test]
    fn a_panic_of_the_listener_costs_one_event_and_a_full_queue_says_how_many() {
        let listener = Arc::new(Deleted::default());
        let events = Events::new(Some(listener.clone()), Path::new("db"));
        (0..6).for_each(|id| events.tell(|| Event::TableDeleted(id)));
        events.deliver();
        assert_eq!(*listener.0.lock(), (vec![0, 1, 2, 4, 5], 0));
        (0..WAITING_MAX as u64 + 7).for_each(|id| events.tell(|| Event::TableDeleted(100 + id)));
        events.deliver();
        let told = listener.0.lock();
        assert_eq!((told.0.len(), told.1), (5 + WAITING_MAX, 7));
    }

    #[test]
    fn nothing_is_made_for_nobody() {
        let events = Events::new(None, Path::new("db"));
        events.tell(|| unreachable!("nobody listens"));
        events.deliver();
    }
}
