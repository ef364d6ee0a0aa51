//! The store: one log lane, one set of memtables, one tree of tables.
//!
//! ```text
//!             leader (one at a time)                background
//!   batch -> log -> active memtable -> sealed memtable -> table in L0 -> compaction
//!                        |                   |                 |
//!                        +------- View (what readers pin) -----+
//! ```
//!
//! # Lock order
//! `commit queue` | `view_update` before `snapshots`; the catalog gate is taken by background work
//! only, and never while holding one of the others. No lock is held across an await but the gate.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use atoll_env::disk::{IoClass, IoTag};
use atoll_env::sync::Notify;
use atoll_env::{Clock, Instant};
use event_listener::Event;
use parking_lot::Mutex;

use crate::batch::{CHUNK_LEN, CHUNKED_ABOVE, Payload, Record, Records, arena_bytes_most};
use crate::commit::{self, Queue, Request, Work};
use crate::database::closed;
use crate::error::{Error, Result};
use crate::events::{self, Events, FlushReason, WriteStalled};
use crate::governor::Governor;
use crate::key::{InternalKey, Kind, SeqNo, Trailer};
use crate::log::{EntryId, FRAME_WRITE, GroupId, Log, Prepared};
use crate::memtable::{self, Full, Memtable};
use crate::mutants;
use crate::options::{Durability, Options};
use crate::pacing::{Owed, Pacing};
use crate::stats::Recorder;
use crate::stretches::Stretches;
use crate::tables::Tables;
use crate::transaction::validation::{Committing, Recent};
use crate::version::manifest::{Manifest, State};
use crate::version::{Applied, Garbage, Paths, Version};
use crate::view::View;

/// The group whose entries are the database's own batches.
pub(crate) const GROUP: u64 = 0;
/// Its only term: nobody is elected in an embedded database.
pub(crate) const TERM: u64 = 1;
/// Site of a log write with a range delete in it: the crash harness counts it apart.
const RANGE_DELETE: IoTag = IoTag::new(IoClass::Log, "range delete");
/// Bytes a writer may put at once, relative to the memory budget.
const BATCH_SHARE_MAX: usize = 2;

/// One store and what its readers, writers and background work share.
pub(crate) struct Store {
    pub(crate) options: Options,
    pub(crate) paths: Paths,
    /// The number that the directory was given when it was made.
    pub(crate) id: u64,
    pub(crate) tables: Arc<Tables>,
    /// To whoever wants to know what happens.
    pub(crate) events: Arc<Events>,
    pub(crate) garbage: Arc<Garbage>,
    /// What readers pin.
    view: ArcSwap<View>,
    /// Guards the replacement of `view`: rotation, flush and compaction each change a part of it.
    view_update: Mutex<()>,
    /// Every record at or below it may be read.
    pub(crate) visible: AtomicU64,
    /// Nobody reads versions at a stamp below it. Only rises; a merge reads it once.
    pub(crate) horizon: AtomicU64,
    /// Compactions under way whose filter may change what readers see.
    filtering: AtomicUsize,
    /// Live snapshots, counted by sequence number.
    snapshots: Mutex<BTreeMap<SeqNo, usize>>,
    pub(crate) queue: Queue,
    /// Optimistic transactions that are being committed.
    pub(crate) committing: Committing,
    /// The writing half; the leader takes it out while it works.
    writer: Mutex<Option<Box<Writer>>>,
    /// What memtables and cache may take.
    pub(crate) governor: Governor,
    /// How fast writers and merges may go.
    pub(crate) pacing: Pacing,
    /// Where scans find nothing.
    pub(crate) stretches: Arc<Stretches>,
    /// Sealed memtables, oldest first, waiting for their flush.
    pub(crate) sealed: Mutex<VecDeque<Sealed>>,
    pub(crate) catalog: Gate<Catalog>,
    /// A memtable was sealed, or the store stops.
    pub(crate) flush_due: Notify,
    /// The levels changed, or the store stops.
    pub(crate) compaction_due: Notify,
    /// Memory or space was freed, or the store stops.
    pub(crate) relief: Event,
    /// An unsynced frame waits for the interval's sync.
    pub(crate) unsynced: AtomicBool,
    health: Mutex<Health>,
    pub(crate) stopping: AtomicBool,
    /// Log segments that are being made aside.
    preparations: AtomicUsize,
    /// One of them was done.
    prepared: Notify,
    /// The lock of the directory. It is here and not in a handle, because it must be held as long
    /// as a task of the store may write.
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
    pub(crate) stats: Recorder,
}

/// The manifest and what it adds up to.
pub(crate) struct Catalog {
    pub(crate) manifest: Manifest,
    pub(crate) state: State,
}

/// Where an entry stands in the log: the tree's half of the seam. The log knows entries by it and
/// not by their content; the tree applies the content under it and never logs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) group: u64,
    /// One above the last index that was applied of the group.
    pub(crate) index: u64,
    /// Lane position at which the entry was first appended.
    pub(crate) position: u64,
}

/// What only the leader touches.
pub(crate) struct Writer {
    pub(crate) log: Log,
    pub(crate) active: memtable::Writer,
    /// Per group, the index of the last entry that was applied.
    pub(crate) applied: Applied,
    /// The same of entries that are in tables.
    pub(crate) flushed: Applied,
    /// Per group, the first entry that its owner wants kept although it is in tables.
    pub(crate) held: Applied,
    /// One above the largest sequence number that was applied.
    pub(crate) position: u64,
    /// The next segment is being made aside, or could not be.
    preparing: bool,
    /// Delay that is owed to back-pressure.
    pub(crate) owed: Owed,
    /// What optimistic transactions are held against.
    pub(crate) recent: Recent,
    /// Whether the listener was told that writers are slowed down.
    pub(crate) slowed_down: bool,
}

impl Writer {
    pub(crate) fn new(
        log: Log,
        active: memtable::Writer,
        applied: Applied,
        position: u64,
    ) -> Writer {
        let (preparing, slowed_down) = (false, false);
        let (owed, recent) = (Owed::default(), Recent::default());
        let (flushed, held) = (applied.clone(), Applied::default());
        Writer {
            log,
            active,
            applied,
            flushed,
            held,
            position,
            preparing,
            owed,
            recent,
            slowed_down,
        }
    }
}

impl Writer {
    /// Lets the log forget what of a group is in tables and not held.
    pub(crate) fn release(&mut self, group: GroupId) -> Result<()> {
        let Some(flushed) = self.flushed.get(&group) else { return Ok(()) };
        let held = self.held.get(&group).copied().unwrap_or(u64::MAX);
        self.log.release(group, held.min(flushed + 1))
    }

    /// Returns whether entries are kept that are in tables.
    pub(crate) fn holds(&self) -> bool {
        self.held
            .iter()
            .any(|(group, first)| self.flushed.get(group).is_some_and(|flushed| first <= flushed))
    }
}

/// A memtable that takes no writes any more.
#[derive(Clone)]
pub(crate) struct Sealed {
    pub(crate) memtable: Arc<Memtable>,
    /// Per group, the index of the last entry in it or before it.
    pub(crate) applied: Applied,
    /// One above the largest sequence number in it or before it.
    pub(crate) position: u64,
    /// Why it is to be flushed.
    pub(crate) reason: FlushReason,
}

/// Whether the store may be written.
#[derive(Default)]
struct Health {
    /// Why nothing is promised any more.
    stopped: Option<Error>,
    /// Why writes are refused for now.
    no_space: Option<Error>,
    /// Why the last flush failed, if it did. It is tried again; until it succeeds memory is not
    /// freed.
    flush: Option<Error>,
    /// Why the last compaction failed, if it did.
    compaction: Option<Error>,
}

/// A background job that is tried again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    Flush,
    Compaction,
}

/// The parts a recovered store is made of.
pub(crate) struct Parts {
    pub(crate) options: Options,
    pub(crate) paths: Paths,
    pub(crate) id: u64,
    pub(crate) tables: Arc<Tables>,
    pub(crate) events: Arc<Events>,
    pub(crate) garbage: Arc<Garbage>,
    pub(crate) version: Arc<Version>,
    /// Newest first, the active one first of all.
    pub(crate) memtables: Vec<Arc<Memtable>>,
    pub(crate) sealed: VecDeque<Sealed>,
    pub(crate) visible: SeqNo,
    pub(crate) writer: Writer,
    pub(crate) catalog: Catalog,
    /// Whether an owner drives log and tree; he takes the writer.
    pub(crate) owned: bool,
    pub(crate) lock: Box<dyn Send + Sync>,
}

impl Store {
    pub(crate) fn new(parts: Parts) -> Arc<Store> {
        let caches = (parts.tables.pool().clone(), parts.tables.records().clone());
        let governor = Governor::new(&parts.options, caches, &parts.memtables);
        let pacing = Pacing::new(&parts.options);
        let epoch = parts.tables.records().epoch();
        let view = View::new(parts.memtables, parts.version).of_epoch(epoch);
        Arc::new(Store {
            options: parts.options,
            paths: parts.paths,
            id: parts.id,
            tables: parts.tables,
            events: parts.events,
            garbage: parts.garbage,
            view: ArcSwap::from_pointee(view),
            view_update: Mutex::new(()),
            visible: AtomicU64::new(parts.visible),
            horizon: AtomicU64::new(0),
            filtering: AtomicUsize::new(0),
            snapshots: Mutex::new(BTreeMap::new()),
            queue: Queue::new(parts.owned),
            committing: Committing::default(),
            writer: Mutex::new(Some(Box::new(parts.writer))),
            governor,
            pacing,
            stretches: Arc::default(),
            sealed: Mutex::new(parts.sealed),
            catalog: Gate::new(parts.catalog),
            flush_due: Notify::new(),
            compaction_due: Notify::new(),
            relief: Event::new(),
            unsynced: AtomicBool::new(false),
            health: Mutex::new(Health::default()),
            stopping: AtomicBool::new(false),
            preparations: AtomicUsize::new(0),
            prepared: Notify::new(),
            lock: Mutex::new(Some(parts.lock)),
            stats: Recorder::default(),
        })
    }

    /// Pins what is visible now: the view first, the sequence number after it (see [`View`]).
    pub(crate) fn pin(&self) -> (arc_swap::Guard<Arc<View>>, SeqNo) {
        let view = self.view.load();
        let visible = self.visible.load(Ordering::Acquire);
        (view, visible)
    }

    /// Returns the present.
    pub(crate) fn visible(&self) -> SeqNo {
        self.visible.load(Ordering::Acquire)
    }

    /// Returns the clock.
    pub(crate) fn clock(&self) -> &dyn Clock {
        self.options.env.clock.as_ref()
    }

    /// Begins step number `step` of a scan, from 0. What is returned is for [`Store::end_step`].
    #[inline]
    pub(crate) fn begin_step(&self, step: u64) -> Option<Instant> {
        self.stats.times_step(step).then(|| self.clock().now())
    }

    /// Ends a step of a scan.
    #[inline]
    pub(crate) fn end_step(&self, step: u64, began: Option<Instant>) {
        if let Some(began) = began {
            self.stats.stepped(step, self.clock().now().since(began));
        }
    }

    /// Returns the wall clock, in milliseconds since the Unix epoch.
    pub(crate) fn now(&self) -> u64 {
        self.options.env.clock.wall().0
    }

    // ---- snapshots ----

    /// Registers a snapshot of the present. While a compaction filters, which does not know of it,
    /// the snapshot keeps the sources of this moment: all that its number sees is in them, as it would
    /// be in later ones, so a transaction that reads from them misses nothing.
    pub(crate) fn open_snapshot(&self) -> (SeqNo, Option<Arc<View>>) {
        let mut snapshots = self.snapshots.lock();
        let filtering = self.filtering.load(Ordering::Acquire) > 0;
        let (seqno, view) = loop {
            let before = self.view.load_full();
            let seqno = self.visible.load(Ordering::Acquire);
            if !filtering {
                break (seqno, None);
            }
            // If it is the same before and after, then every entry up to the number went into it.
            if Arc::ptr_eq(&before, &self.view.load_full()) {
                break (seqno, Some(before));
            }
        };
        *snapshots.entry(seqno).or_default() += 1;
        (seqno, view)
    }

    /// Announces a compaction that filters, until what is returned is dropped. Snapshots opened
    /// before are in the list that the compaction takes next, those opened after know of it.
    pub(crate) fn begin_filtering(&self) -> Filtering<'_> {
        let _snapshots = self.snapshots.lock();
        self.filtering.fetch_add(1, Ordering::AcqRel);
        Filtering { store: self }
    }

    /// Releases a snapshot.
    pub(crate) fn close_snapshot(&self, seqno: SeqNo) {
        let mut snapshots = self.snapshots.lock();
        if let Some(count) = snapshots.get_mut(&seqno) {
            *count -= 1;
            if *count == 0 {
                snapshots.remove(&seqno);
                drop(snapshots);
                self.compaction_due.notify();
            }
        }
    }

    /// Returns the live snapshots, ascending, with the present as the last.
    pub(crate) fn live_snapshots(&self) -> Vec<SeqNo> {
        let snapshots = self.snapshots.lock();
        let present = self.visible.load(Ordering::Acquire);
        let mut live: Vec<SeqNo> = snapshots.keys().copied().filter(|s| *s < present).collect();
        live.push(present);
        live
    }

    /// Returns whether a snapshot sees all of `present`, the last of [`Store::live_snapshots`].
    pub(crate) fn is_seen(&self, present: SeqNo) -> bool {
        self.snapshots.lock().range(present..).next().is_some()
    }

    // ---- health ----

    /// Returns the error that every write gets now, if any.
    pub(crate) fn refusal(&self) -> Option<Error> {
        let health = self.health.lock();
        health.stopped.clone().or_else(|| health.no_space.clone())
    }

    /// Returns why the store stopped, if it did.
    pub(crate) fn stopped(&self) -> Option<Error> {
        self.health.lock().stopped.clone()
    }

    /// Stops the store for good: nothing can be promised any more.
    pub(crate) fn stop(&self, why: &Error) {
        let error = match why {
            Error::Stopped(_) => why.clone(),
            other => Error::Stopped(other.to_string()),
        };
        {
            let mut health = self.health.lock();
            if health.stopped.is_none() {
                health.stopped = Some(error.clone());
                self.events.tell(|| events::Event::Stopped(error));
            }
        }
        self.wake_everybody();
    }

    /// Refuses writes until [`Store::space_returned`].
    pub(crate) fn run_out_of_space(&self, why: &Error) {
        if self.health.lock().no_space.replace(why.clone()).is_none() {
            self.events.tell(|| events::Event::ReadOnlyEntered(why.clone()));
        }
        self.relief.notify(usize::MAX);
    }

    /// Returns whether writes are refused for lack of space.
    pub(crate) fn lacks_space(&self) -> bool {
        self.health.lock().no_space.is_some()
    }

    /// Accepts writes again.
    pub(crate) fn space_returned(&self) {
        if self.health.lock().no_space.take().is_some() {
            self.events.tell(|| events::Event::ReadOnlyLeft);
            self.relief.notify(usize::MAX);
        }
    }

    /// Remembers how the last run of a chore went, for those who wait for it.
    pub(crate) fn note(&self, chore: Chore, failure: Option<Error>) {
        let failed = failure.is_some();
        {
            let mut health = self.health.lock();
            match chore {
                Chore::Flush => health.flush = failure,
                Chore::Compaction => health.compaction = failure,
            }
        }
        if failed {
            self.relief.notify(usize::MAX);
        }
    }

    /// Returns why the last run of a chore failed, if it did.
    pub(crate) fn failure(&self, chore: Chore) -> Option<Error> {
        let health = self.health.lock();
        match chore {
            Chore::Flush => health.flush.clone(),
            Chore::Compaction => health.compaction.clone(),
        }
    }

    /// Asks the background work to end.
    pub(crate) fn begin_shutdown(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake_everybody();
    }

    /// Returns whether the owner closed the store.
    pub(crate) fn is_closed(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Returns whether background work is to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.stopped().is_some()
    }

    /// Gives the directory back; the background work has ended and the log was given up.
    pub(crate) async fn unlock(&self) {
        while self.preparations.load(Ordering::Acquire) > 0 {
            self.prepared.notified().await;
        }
        // The signal is for one, and two handles may close at once.
        self.prepared.notify();
        let lock = self.lock.lock().take();
        drop(lock);
    }

    fn wake_everybody(&self) {
        self.flush_due.notify();
        self.compaction_due.notify();
        self.events.due.notify();
        self.relief.notify(usize::MAX);
    }

    // ---- the view ----

    /// Replaces the view by what `change` makes of it.
    pub(crate) fn update_view(&self, change: impl FnOnce(&View) -> View) {
        let _guard = self.view_update.lock();
        let next = change(&self.view.load());
        let epoch = self.tables.records().epoch();
        self.view.store(Arc::new(next.of_epoch(epoch)));
    }

    // ---- the leader ----

    /// Takes the writing half for good.
    pub(crate) fn take_writer(&self) -> Option<Box<Writer>> {
        self.writer.lock().take()
    }

    /// Carries a group through. Called by one leader at a time.
    pub(crate) async fn commit(self: &Arc<Self>, group: VecDeque<Request>) {
        let Some(mut writer) = self.writer.lock().take() else {
            // The store was closed, or a leader's task was torn down.
            let torn = || Error::Stopped("a commit was torn down half-way".to_owned());
            let why = if self.is_closed() { closed() } else { torn() };
            group.iter().for_each(|r| r.ticket.answer(Err(why.clone())));
            return;
        };
        let results = self.carry_out(&mut writer, &group).await;
        self.prepare_segment(&mut writer);
        // The writer goes back before anybody is answered: who is answered may lead at once.
        if !group.iter().any(|request| matches!(request.work, Work::End)) {
            *self.writer.lock() = Some(writer);
        }
        for (request, result) in group.iter().zip(results) {
            request.ticket.answer(result);
        }
    }

    /// Returns one result per request.
    async fn carry_out(&self, writer: &mut Writer, group: &VecDeque<Request>) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = Vec::with_capacity(group.len());
        let mut sync = false;
        let mut site = FRAME_WRITE;
        let mut writes: Vec<(usize, &Payload, u64)> = Vec::with_capacity(group.len());
        let mut index = writer.applied.get(&GROUP).copied().unwrap_or(0);
        let refusal = self.make_ready(writer, group).await.err();
        for (at, request) in group.iter().enumerate() {
            let Work::Write { payload, durability, condition } = &request.work else {
                sync |= matches!(request.work, Work::Sync);
                results.push(Ok(()));
                continue;
            };
            if let Some(refusal) = &refusal {
                results.push(Err(refusal.clone()));
                continue;
            }
            if let Some(condition) = condition {
                let staged = writes.iter().map(|(_, payload, _)| &payload.bytes[..]);
                if let Err(conflict) = condition.check(&writer.recent, staged) {
                    results.push(Err(conflict));
                    continue;
                }
            }
            let id = EntryId { group: GROUP, index: index + 1, term: TERM };
            match writer.log.append(id, &[&payload.bytes]) {
                Ok(position) => {
                    index += 1;
                    writes.push((at, payload, position));
                    sync |= *durability == Durability::Synced;
                    if payload.removes_range {
                        site = RANGE_DELETE;
                    }
                    results.push(Ok(()));
                }
                Err(e) => results.push(Err(e)),
            }
        }
        if let Err(e) = self.persist(writer, site, sync && !mutants::is("ack-before-sync")).await {
            if writes.is_empty() && matches!(e, Error::NoSpace(_)) {
                // What was staged before (the log's own states) stays staged.
                self.run_out_of_space(&e);
                results.iter_mut().filter(|r| r.is_ok()).for_each(|r| *r = Err(e.clone()));
            } else {
                self.fail_group(&e, &mut results);
            }
            return results;
        }
        for &(at, payload, position) in &writes {
            let index = writer.applied.get(&GROUP).copied().unwrap_or(0) + 1;
            let stamp = Stamp { group: GROUP, index, position };
            if let Err(e) = self.apply(writer, stamp, &payload.bytes).await {
                results[at] = Err(e);
            }
        }
        let (last, most) =
            (writer.position.saturating_sub(1), self.options.memtable_capacity() / 4);
        let batches = writes.iter().map(|(_, payload, position)| (*position, &payload.bytes[..]));
        writer.recent.applied(&self.committing, batches, last, most);
        for (at, request) in group.iter().enumerate() {
            if !matches!(request.work, Work::Write { .. } | Work::Sync) {
                results[at] = self.serve(writer, &request.work).await;
            }
        }
        results
    }

    /// Does what background work asked for.
    pub(crate) async fn serve(&self, writer: &mut Writer, work: &Work) -> Result<()> {
        match work {
            // Writes come in groups, with whatever else is in them synced on the way.
            Work::Write { .. } | Work::Barrier | Work::End => Ok(()),
            Work::Sync => self.write_log(writer, true).await,
            Work::Seal => {
                self.seal(writer, self.options.memtable_capacity(), FlushReason::Asked).await
            }
            Work::Release { applied } => self.release(writer, applied).await,
            Work::Probe => {
                writer.preparing = false;
                writer.log.prepare_next().await
            }
            #[cfg(test)]
            Work::Drive(step) => {
                let step = step.lock().take();
                match step {
                    Some(step) => step(self, writer).await,
                    None => Ok(()),
                }
            }
            Work::Ingest(turn) => {
                let turn = turn.lock().take();
                match turn {
                    Some(turn) => self.ingest(writer, turn).await,
                    None => Ok(()),
                }
            }
            Work::Image(slot) => {
                let moment = self.note_moment(writer).await?;
                *slot.lock() = Some(moment);
                Ok(())
            }
            Work::Replay(behind) => {
                let behind = behind.lock().take();
                match behind {
                    Some(behind) => behind.apply(self, writer).await,
                    None => Ok(()),
                }
            }
            Work::Adopt(prepared) => {
                let prepared = prepared.lock().take();
                self.adopt(writer, prepared).await
            }
        }
    }

    /// Hands what is staged to the kernel, and makes it durable if `sync` says so.
    ///
    /// On a full disk what is staged stays so, and the call may be repeated. After any other
    /// failure the store has stopped.
    pub(crate) async fn write_log(&self, writer: &mut Writer, sync: bool) -> Result<()> {
        self.persist(writer, FRAME_WRITE, sync).await.inspect_err(|e| match e {
            Error::NoSpace(_) => self.run_out_of_space(e),
            _ => self.stop(e),
        })
    }

    /// Sees to it that the writes of a group have room in memory and in the log, or says why they
    /// are refused.
    ///
    /// All waiting and refusing is done here, before anything is staged: an entry that is in the
    /// log can only be applied, however long that takes.
    async fn make_ready(&self, writer: &mut Writer, group: &VecDeque<Request>) -> Result<()> {
        let mut arena = 0;
        let mut payload_lens = Vec::with_capacity(group.len());
        for request in group {
            if let Work::Write { payload, .. } = &request.work {
                arena += payload.arena;
                payload_lens.push(payload.bytes.len());
            }
        }
        if payload_lens.is_empty() {
            return Ok(());
        }
        self.slow_down(writer, payload_lens.iter().sum()).await?;
        self.make_room(writer, arena, payload_lens).await
    }

    /// Sees to it that entries of these payload lengths have room in the log, and `arena` bytes of
    /// records in memory, or says why they are refused.
    pub(crate) async fn make_room(
        &self,
        writer: &mut Writer,
        arena: usize,
        payload_lens: impl IntoIterator<Item = usize>,
    ) -> Result<()> {
        if arena > writer.active.free() {
            self.wait_for_memory(writer, self.memtable_for(arena)).await?;
        } else if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let reserved = writer.log.reserve(payload_lens).await;
        match &reserved {
            Ok(()) => {}
            Err(e @ Error::NoSpace(_)) => self.run_out_of_space(e),
            Err(e @ Error::Stopped(_)) => self.stop(e),
            // The next segment could not be made. Nothing was staged; the next write tries again.
            Err(_) => {}
        }
        reserved
    }

    /// Waits until a memtable of `capacity` may be made.
    async fn wait_for_memory(&self, writer: &mut Writer, capacity: usize) -> Result<()> {
        let mut stalled: Option<Instant> = None;
        let admitted = self.wait_until_admitted(writer, capacity, &mut stalled).await;
        if let Some(since) = stalled {
            let waited = self.options.env.clock.now().since(since);
            self.events.tell(|| events::Event::WriteStallEnded(waited));
            if admitted.is_ok() {
                self.stats.stalled(waited);
            }
        }
        admitted
    }

    /// Does what [`Store::wait_for_memory`] does, which counts it; `stalled` is since when the caller has
    /// to wait.
    pub(crate) async fn wait_until_admitted(
        &self,
        writer: &mut Writer,
        capacity: usize,
        stalled: &mut Option<Instant>,
    ) -> Result<()> {
        loop {
            let relief = self.relief.listen();
            if let Some(refusal) = self.refusal() {
                return Err(refusal);
            }
            if self.governor.admits(capacity) {
                return Ok(());
            }
            // Nobody flushes any more, and whoever closes waits for this leader.
            if self.is_closed() {
                return Err(closed());
            }
            if let Some(failure) = self.failure(Chore::Flush) {
                return Err(failure);
            }
            if stalled.is_none() {
                *stalled = Some(self.options.env.clock.now());
                let sealed_memtables = self.sealed.lock().len();
                self.events.tell(|| events::Event::WriteStalled(WriteStalled { sealed_memtables }));
            }
            if self.sealed.lock().is_empty() {
                // Only the active one is in the way, and nothing else would seal it.
                let usual = self.options.memtable_capacity();
                self.seal(writer, usual, FlushReason::Memory).await?;
            }
            relief.await;
        }
    }

    pub(crate) async fn persist(&self, writer: &mut Writer, site: IoTag, sync: bool) -> Result<()> {
        if sync {
            let started = self.options.env.clock.now();
            writer.log.write_synced(site).await?;
            self.stats.synced(self.options.env.clock.now().since(started));
            self.unsynced.store(false, Ordering::Release);
        } else {
            writer.log.write(site).await?;
            let unsynced = writer.log.end() > writer.log.synced();
            self.unsynced.store(unsynced, Ordering::Release);
        }
        Ok(())
    }

    /// Has the log's next segment made aside, so that no commit waits for its zeroes.
    pub(crate) fn prepare_segment(self: &Arc<Self>, writer: &mut Writer) {
        if writer.preparing || self.is_stopping() || self.lacks_space() {
            return;
        }
        let Some(preparation) = writer.log.prepare() else { return };
        writer.preparing = true;
        self.preparations.fetch_add(1, Ordering::AcqRel);
        let store = self.clone();
        self.options.env.tasks.spawn(
            "log segment",
            Box::pin(async move {
                let prepared = preparation.run().await;
                store.preparations.fetch_sub(1, Ordering::AcqRel);
                store.prepared.notify();
                let work = Work::Adopt(Mutex::new(Some(prepared)));
                // Adopting answers by itself: a failure is the next rotation's concern.
                let _ = commit::submit(&store, work).await;
            }),
        );
    }

    async fn adopt(&self, writer: &mut Writer, prepared: Option<Result<Prepared>>) -> Result<()> {
        let adopted = match prepared {
            Some(Ok(prepared)) => writer.log.adopt(prepared).await,
            Some(Err(e)) => Err(e),
            None => Ok(()),
        };
        if let Err(e @ Error::Stopped(_)) = &adopted {
            self.stop(e);
        }
        // After another failure nothing is tried again aside: the write that needs the segment
        // makes it, or is refused with the reason.
        writer.preparing = adopted.is_err();
        adopted
    }

    /// Stops the store and tells every writer of a group: its batch may be in the log or not.
    fn fail_group(&self, e: &Error, results: &mut [Result<()>]) {
        self.stop(e);
        let answer = self.stopped().unwrap_or_else(|| e.clone());
        for result in results.iter_mut().filter(|r| r.is_ok()) {
            *result = Err(answer.clone());
        }
    }

    /// Applies a logged batch to the active memtable and makes it visible.
    ///
    /// Entries of one group come in the order of their indexes, those of several groups in any.
    pub(crate) async fn apply(
        &self,
        writer: &mut Writer,
        stamp: Stamp,
        payload: &[u8],
    ) -> Result<()> {
        // Most batches are far smaller than what is free: only near the end are they counted out.
        if arena_bytes_most(payload.len()) > writer.active.free() {
            let needed = arena_bytes(payload)?;
            if needed > writer.active.free() {
                self.seal(writer, self.memtable_for(needed), FlushReason::Full).await?;
            }
        }
        self.stretches.wrote(stamp.position, payload);
        self.take_in(writer, stamp, payload)?;
        self.stats.wrote(payload.len());
        let usual = self.options.memtable_capacity();
        if writer.active.memtable().capacity() > usual {
            // The cache lacks its memory: it goes as soon as it can.
            self.seal(writer, usual, FlushReason::LargeBatch).await?;
        }
        Ok(())
    }

    /// Inserts the records of an entry into the active memtable, which has room, and makes them visible.
    pub(crate) fn take_in(&self, writer: &mut Writer, stamp: Stamp, payload: &[u8]) -> Result<()> {
        let last = insert(&mut writer.active, payload, stamp.position)?;
        writer.applied.insert(stamp.group, stamp.index);
        writer.position = writer.position.max(last + 1);
        self.visible.fetch_max(last, Ordering::Release);
        Ok(())
    }

    /// Puts an empty memtable of `capacity` in the place of the active one.
    ///
    /// The entries of a sealed memtable are durable in the log: what a flush makes of them is never
    /// ahead of the log. (The flush itself must not ask for the sync: a leader that waits for the
    /// flush could not answer it.)
    pub(crate) async fn seal(
        &self,
        writer: &mut Writer,
        capacity: usize,
        reason: FlushReason,
    ) -> Result<()> {
        if !writer.active.memtable().is_empty() {
            self.persist(writer, FRAME_WRITE, true).await.inspect_err(|e| self.stop(e))?;
        }
        let (active, memtable) = self.governor.make(capacity);
        let sealed = std::mem::replace(&mut writer.active, active).memtable().clone();
        let was_empty = sealed.is_empty();
        if !was_empty {
            let (applied, position) = (writer.applied.clone(), writer.position);
            self.sealed.lock().push_back(Sealed { memtable: sealed, applied, position, reason });
        }
        self.update_view(|view| {
            let keep = view.memtables.iter().skip(usize::from(was_empty)).cloned();
            view.with(std::iter::once(memtable).chain(keep).collect())
        });
        self.flush_due.notify();
        Ok(())
    }

    /// Returns the capacity of the memtable for a batch that takes `arena` bytes: one that is larger
    /// than a memtable gets one of its own size.
    pub(crate) fn memtable_for(&self, arena: usize) -> usize {
        Memtable::capacity_for(arena).max(self.options.memtable_capacity())
    }

    /// Returns the memory of one commit group: half a memtable, so that a group seals at most one
    /// unless a single batch is larger.
    pub(crate) fn group_bytes_max(&self) -> usize {
        self.options.memtable_capacity() / 2
    }

    /// Returns the bytes from which on a lane is too long. What fills the memtables takes less of the
    /// log, and a segment each is in use, prepared and half released.
    pub(crate) fn lane_bytes_max(&self) -> u64 {
        let memtables = self.options.memtable_capacity() * (self.options.sealed_memtables_max + 1);
        memtables as u64 + 3 * self.options.segment_capacity()
    }

    /// Lets the log forget entries that are in tables, and recycles its segments.
    async fn release(&self, writer: &mut Writer, applied: &Applied) -> Result<()> {
        let mut released = Ok(());
        for (&group, &index) in applied {
            writer.flushed.insert(group, index);
            released = released.and_then(|()| writer.release(group));
        }
        if released.is_ok() {
            released = writer.log.reclaim().await.map(|_| ());
        }
        match released {
            Err(e @ Error::Stopped(_)) => {
                self.stop(&e);
                Err(e)
            }
            // Space for the log is the next write's concern, and what could not be recycled is
            // tried again after the next flush.
            Err(_) | Ok(()) => Ok(()),
        }
    }

    /// Refuses batches that could not be held in memory: short records take far more of it than
    /// their bytes, and what no memtable can take must not get into the log.
    pub(crate) fn check_size(&self, payload: &Payload) -> Result<()> {
        self.check_bytes(payload.bytes.len())?;
        self.check_arena(payload.arena)
    }

    /// Refuses batches of more bytes than a batch may have.
    pub(crate) fn check_bytes(&self, bytes: usize) -> Result<()> {
        let most = self.options.memory / BATCH_SHARE_MAX;
        if bytes > most {
            return Err(Error::InvalidInput(format!(
                "a batch of {bytes} bytes does not fit: with this memory budget the limit is \
                 {most}; write it in parts or raise the budget"
            )));
        }
        Ok(())
    }

    /// Refuses records that could not be held in memory together.
    pub(crate) fn check_arena(&self, arena_bytes: usize) -> Result<()> {
        let arena = Memtable::capacity_for(arena_bytes);
        let most = self.arena_most();
        if arena > most {
            return Err(Error::InvalidInput(format!(
                "a batch that takes {arena} bytes of memory does not fit: with this memory budget \
                 the limit is {most}; write it in parts or raise the budget"
            )));
        }
        Ok(())
    }

    /// Returns the largest memtable that may be made for one batch.
    pub(crate) fn arena_most(&self) -> usize {
        // The usual memtable behind it has its place, too.
        let most = self.options.memory.saturating_sub(self.options.memtable_capacity());
        most.max(self.options.memory / BATCH_SHARE_MAX).min(memtable::CAPACITY_MAX)
    }
}

/// Returns an upper bound for the arena bytes that a payload takes.
pub(crate) fn arena_bytes(payload: &[u8]) -> Result<usize> {
    let mut bytes = 0;
    for record in Records::new(payload).map_err(malformed)? {
        bytes += record.map_err(malformed)?.arena_bytes();
    }
    Ok(bytes)
}

/// Inserts the records of an entry at lane position `position`; returns the last sequence number.
pub(crate) fn insert(
    active: &mut memtable::Writer,
    payload: &[u8],
    position: u64,
) -> Result<SeqNo> {
    let mut seqno = position;
    for record in Records::new(payload).map_err(malformed)? {
        let record = record.map_err(malformed)?;
        let head = seqno + record.seqnos() - 1;
        let key = |seqno, kind| Trailer::new(seqno, kind);
        match record {
            Record::Insert { key: user_key, value, deadline } if value.len() > CHUNKED_ABOVE => {
                let long = (deadline.unwrap_or(0), value);
                put_long(active, user_key, Kind::ChunkedValue, long, seqno..head)?;
            }
            Record::InsertVersion { key: user_key, stamp, value }
                if value.len() > CHUNKED_ABOVE =>
            {
                put_long(active, user_key, Kind::VersionedChunked, (stamp, value), seqno..head)?;
            }
            Record::Insert { key: user_key, value, deadline: Some(deadline) } => {
                let trailer = key(head, Kind::ExpiringValue);
                put(active, user_key, trailer, [&deadline.to_le_bytes(), value])?;
            }
            Record::Insert { key: user_key, value, deadline: None } => {
                put(active, user_key, key(head, Kind::Value), [value, b""])?;
            }
            Record::Remove { key: user_key } => {
                put(active, user_key, key(head, Kind::Tombstone), [b"", b""])?;
            }
            Record::InsertVersion { key: user_key, stamp, value } => {
                let trailer = key(head, Kind::VersionedValue);
                put(active, user_key, trailer, [&stamp.to_le_bytes(), value])?;
            }
            Record::RemoveVersion { key: user_key, stamp } => {
                let trailer = key(head, Kind::VersionedTombstone);
                put(active, user_key, trailer, [&stamp.to_le_bytes(), b""])?;
            }
            Record::Merge { key: user_key, deadline, operand } => {
                let trailer = key(head, Kind::Merge);
                put(active, user_key, trailer, [&deadline.to_le_bytes(), operand])?;
            }
            Record::RemoveRange { start, end } => {
                active.delete_range(start, end, head).map_err(too_full)?;
            }
        }
        seqno = head + 1;
    }
    Ok(seqno - 1)
}

/// Returns the bytes of the head of a long value. `first` is what it begins with, a deadline or a
/// stamp.
pub(crate) fn head_of(first: u64, len: usize) -> [u8; 20] {
    let mut about = [0; 20];
    about[..8].copy_from_slice(&first.to_le_bytes());
    about[8..16].copy_from_slice(&(len as u64).to_le_bytes());
    about[16..].copy_from_slice(&(len.div_ceil(CHUNK_LEN) as u32).to_le_bytes());
    about
}

/// Inserts a long value: its chunks under `seqnos`, the first one with the highest number, and the
/// head above them. `first` is what the head begins with, a deadline or a stamp.
fn put_long(
    active: &mut memtable::Writer,
    user_key: &[u8],
    kind: Kind,
    (first, value): (u64, &[u8]),
    seqnos: Range<SeqNo>,
) -> Result<()> {
    let chunks = value.chunks(CHUNK_LEN);
    let about = head_of(first, value.len());
    let head = seqnos.end;
    for (chunk, seqno) in chunks.zip(seqnos.rev()) {
        put(active, user_key, Trailer::new(seqno, Kind::Chunk), [chunk, b""])?;
    }
    put(active, user_key, Trailer::new(head, kind), [&about, b""])
}

fn put(
    active: &mut memtable::Writer,
    user_key: &[u8],
    trailer: Trailer,
    value: [&[u8]; 2],
) -> Result<()> {
    active.insert_parts(InternalKey::new(user_key, trailer), value).map_err(too_full)
}

/// Room was made for the whole batch before its first record: this is a program error.
fn too_full(_: Full) -> Error {
    Error::Stopped("a memtable was fuller than it said".to_owned())
}

/// A payload of ours that does not decode: a program error, since frames are checksummed.
fn malformed(what: atoll_encoding::Malformed) -> Error {
    Error::Stopped(format!("a logged batch does not decode: {what}"))
}

/// A compaction that filters is under way as long as it lives.
pub(crate) struct Filtering<'s> {
    store: &'s Store,
}

impl Drop for Filtering<'_> {
    fn drop(&mut self) {
        self.store.filtering.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A mutual exclusion that may be held across awaits.
pub(crate) struct Gate<T> {
    value: Mutex<Option<T>>,
    freed: Event,
}

impl<T> Gate<T> {
    pub(crate) fn new(value: T) -> Gate<T> {
        Gate { value: Mutex::new(Some(value)), freed: Event::new() }
    }

    /// Waits for the value and takes it out until the guard is dropped.
    pub(crate) async fn enter(&self) -> GateGuard<'_, T> {
        loop {
            let listener = self.freed.listen();
            if let Some(value) = self.value.lock().take() {
                return GateGuard { gate: self, value: Some(value) };
            }
            listener.await;
        }
    }
}

/// Holds the value of a [`Gate`].
pub(crate) struct GateGuard<'g, T> {
    gate: &'g Gate<T>,
    value: Option<T>,
}

impl<T> std::ops::Deref for GateGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("held until drop")
    }
}

impl<T> std::ops::DerefMut for GateGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("held until drop")
    }
}

impl<T> Drop for GateGuard<'_, T> {
    fn drop(&mut self) {
        *self.gate.value.lock() = self.value.take();
        self.gate.freed.notify(1);
    }
}
