//! Sorted bulk ingest: records that come in order become tables at once, past the log and memory.
//!
//! ```text
//!   1  write tables         beside everything, sequence numbers relative to a base not known yet
//!   2  wait for a turn      of compaction, so that the levels stay; of the leader, so that nobody writes
//!   3  flush                what memory has of the same range
//!   4  reserve numbers      by empty entries of the log, synced: the base
//!   5  one edit             of the manifest adds all tables; then readers see them
//!   6  an empty edit        behind it: should the first one rot, it is not taken for a torn end
//! ```
//!
//! A write costs its bytes twice or more: log, table, and each merge on the way down. Here it costs them
//! once, and the tables go where no older record of their range lies above or beside them.
//!
//! # Why nothing is out of order
//! The sequence number of a write is its place in the log. The tables get theirs from entries that
//! are staged for it and hold nothing; while they are given out the leader does nothing else, so what
//! was written before is older and what comes after is newer than all of the ingested records.
//! - *Readers* stop at the first source that has a key. Sources above the new tables must hold nothing
//!   older of their range: what memory had was flushed in step 3, and a table goes to the deepest level
//!   above which and in which nothing overlaps it. In level 0 tables stand by their newest number.
//! - *Snapshots* opened before see numbers below the base only, those opened later have all of it.
//! - *Replay* cannot bring an older entry above them: an entry of the range that is older was flushed
//!   before the edit, so the manifest says that it is in tables. And no position of the log is used
//!   twice, since the edit also says how far the log was durable.
//! - *A crash* leaves the edit or not. Without it the tables are files that no manifest names.
//!
//! Nothing of it is unlogged: the manifest is the log of what is in tables, and the entry keeps the
//! place.
//!
//! # Rejected
//! *Number the records first, write the tables then*: what is written meanwhile would be newer and may
//! have sunk below; and a snapshot would see the records appear. *Hold the writers all the while*: a
//! load of hours. *Rewrite the numbers*: a second pass over every byte; an addition in the reader is
//! free.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use atoll_env::disk::{IoClass, IoTag};
use atoll_env::sync::oneshot;
use atoll_env::{block_on, task};
use parking_lot::Mutex;

use crate::background::Background;
use crate::batch::{CHUNK_LEN, CHUNKED_ABOVE, VERSION};
use crate::commit::{self, Work};
use crate::compaction::run::{Job, Outcome, Output};
use crate::database::closed;
use crate::error::{Error, Result};
use crate::events::FlushReason;
use crate::key::{InternalKey, Kind, SeqNo, Trailer};
use crate::keyspace::{Keyspace, user_key};
use crate::log::EntryId;
use crate::memtable::Memtable;
use crate::options::{KEY_LEN_MAX, VALUE_LEN_MAX};
use crate::store::{Chore, GROUP, Stamp, Store, TERM, Writer, head_of};
use crate::transaction::turnstile::OwnedPass;
use crate::version::manifest::{INGEST_INSTALL, sync_dir};
use crate::version::{Edit, Flushed, LEVELS, TableDesc, Version};
use crate::view::View;

/// Site of the entries that reserve numbers.
const RESERVE: IoTag = IoTag::new(IoClass::Log, "ingest entry");
/// Site of the names of the tables.
const NAMES: IoTag = IoTag::new(IoClass::Compaction, "table names");
/// Sequence numbers that an entry has at least: no frame is shorter.
const NUMBERS_OF_ENTRY: u64 = 64;
/// Records between two chances for others to run.
const RECORDS_PER_TURN: u64 = 1024;

/// What an ingest did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Records.
    pub records: u64,
    /// Tables they are in.
    pub tables: u64,
    /// Bytes of these.
    pub bytes: u64,
}

impl Keyspace {
    /// Sets many keys at once, which come sorted and each once: all of them or none, as one write that
    /// is durable when this returns. The fastest way to load data: they are written once, into tables,
    /// and merged with nothing that they do not overlap.
    ///
    /// ```
    /// # fn main() -> atoll_lsm::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// use atoll_lsm::{Database, KeyspaceOptions};
    ///
    /// let db = Database::builder(dir.path().join("db")).open()?;
    /// let squares = db.keyspace("squares", KeyspaceOptions::default())?;
    /// let records = (0..10_000u32).map(|n| (n.to_be_bytes(), (n * n).to_string()));
    /// assert_eq!(squares.ingest(records)?.records, 10_000);
    /// assert_eq!(squares.get(77u32.to_be_bytes())?.as_deref(), Some(&b"5929"[..]));
    /// # db.close()
    /// # }
    /// ```
    ///
    /// Values of a keyspace with a time to live get the deadline of the call's beginning. Waits for a
    /// compaction that is under way.
    ///
    /// # Errors
    /// `InvalidInput` names the first key that is not above the one before it, or is too long: nothing
    /// was changed then. `NoSpace`, `Io`: nothing was changed. `Stopped`: all of it was done or nothing.
    pub fn ingest<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        records: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Ingested> {
        block_on(self.ingest_async(records))
    }

    /// Async twin of [`Keyspace::ingest`]. Dropping the future before all records were taken changes
    /// nothing; later it does not take the ingest back.
    pub async fn ingest_async<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        records: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Ingested> {
        self.db.check_open()?;
        self.check_alive()?;
        if let Some(refusal) = self.db.store.refusal() {
            return Err(refusal);
        }
        let mut building = Building::new(self);
        for (key, value) in records {
            building.add(key.as_ref(), value.as_ref()).await?;
        }
        let Some(mut request) = building.finish().await? else { return Ok(Ingested::default()) };
        // A transaction that is alone sees none of it, so it waits for that one's end. The pass goes with
        // the tables: they get their place even if nobody waits for it any more.
        request.tables.pass = Some(self.db.transactions.turnstile.pass_owned().await?);
        self.check_alive()?;
        let done = request.done;
        let background = &self.db.background;
        background.ingests.push(request.tables)?;
        background.store.compaction_due.notify();
        let placed = done.await.unwrap_or_else(|_| Err(closed()));
        placed.map(|()| request.ingested)
    }
}

/// Tables under construction. Dropped half-way it has their files removed.
struct Building<'k> {
    keyspace: &'k Keyspace,
    deadline: Option<u64>,
    outcome: Outcome,
    output: Option<Output>,
    /// The last key, with the keyspace's number.
    last: Vec<u8>,
    records: u64,
    /// The highest relative number.
    numbers: u64,
}

/// Tables, and what their owner waits for.
struct Request {
    tables: Tables,
    done: oneshot::Receiver<Result<()>>,
    ingested: Ingested,
}

/// Tables that wait for their place. Their files are removed if they get none.
pub(crate) struct Tables {
    store: Arc<Store>,
    descs: Vec<TableDesc>,
    /// Sequence numbers they take.
    numbers: u64,
    done: Option<oneshot::Sender<Result<()>>>,
    /// Leave to write.
    pass: Option<OwnedPass>,
}

impl Drop for Tables {
    fn drop(&mut self) {
        self.store.garbage.add_begun(self.descs.iter().map(|desc| desc.id));
    }
}

impl Drop for Building<'_> {
    fn drop(&mut self) {
        let begun = std::mem::take(&mut self.outcome.begun);
        self.keyspace.db.store.garbage.add_begun(begun);
    }
}

impl<'k> Building<'k> {
    fn new(keyspace: &'k Keyspace) -> Building<'k> {
        let deadline = keyspace.default_deadline();
        let (last, outcome) = (Vec::new(), Outcome::default());
        Building { keyspace, deadline, outcome, output: None, last, records: 0, numbers: 0 }
    }

    async fn add(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let full = user_key(self.keyspace.id(), key);
        self.check(key, &full, value)?;
        let past = self.keyspace.db.store.options.table_size;
        if self.output.as_ref().is_some_and(|o| o.writer.estimated_size() >= past) {
            self.end_table().await?;
        }
        let output = match &mut self.output {
            Some(output) => output,
            none => none.insert(begin(self.keyspace, &mut self.outcome).await?),
        };
        self.numbers = self.numbers.max(add_record(output, &full, value, self.deadline)?);
        if output.writer.is_full() {
            output.writer.write_out().await?;
        }
        self.last = full;
        self.records += 1;
        if self.records.is_multiple_of(RECORDS_PER_TURN) {
            if self.keyspace.db.store.is_stopping() {
                return Err(self.keyspace.db.store.stopped().unwrap_or_else(closed));
            }
            task::yield_now().await;
        }
        Ok(())
    }

    /// Refuses what a write would refuse, and what is out of order.
    fn check(&self, key: &[u8], full: &[u8], value: &[u8]) -> Result<()> {
        let record = self.records + 1;
        let shown = key[..key.len().min(80)].escape_ascii();
        let wrong = |what: String| Err(Error::InvalidInput(format!("record {record}: {what}")));
        if key.len() > KEY_LEN_MAX {
            let len = key.len();
            return wrong(format!("a key of {len} bytes: the limit is {KEY_LEN_MAX}"));
        }
        if value.len() > VALUE_LEN_MAX {
            let len = value.len();
            return wrong(format!(
                "a value of {len} bytes: the limit is {VALUE_LEN_MAX}, split it"
            ));
        }
        if self.records > 0 && full <= &self.last[..] {
            let before = self.last[4..self.last.len().min(84)].escape_ascii();
            return wrong(if full == &self.last[..] {
                format!("the key '{shown}' comes twice")
            } else {
                format!("the key '{shown}' is below the one before it, '{before}': sort them")
            });
        }
        Ok(())
    }

    async fn end_table(&mut self) -> Result<()> {
        if let Some(output) = self.output.take() {
            output.finish(std::iter::empty(), &mut self.outcome).await?;
        }
        Ok(())
    }

    /// Ends the last table; `None` if there were no records.
    async fn finish(mut self) -> Result<Option<Request>> {
        self.end_table().await?;
        if self.records == 0 {
            return Ok(None);
        }
        let store = self.keyspace.db.store.clone();
        sync_dir(store.options.env.disk.as_ref(), NAMES, &store.paths.tables()).await?;
        let ingested = Ingested {
            records: self.records,
            tables: self.outcome.tables.len() as u64,
            bytes: self.outcome.bytes_written,
        };
        // From here on they are the request's to remove.
        self.outcome.begun.clear();
        let descs = std::mem::take(&mut self.outcome.tables);
        let (sender, done) = oneshot::channel();
        let tables = Tables { store, descs, numbers: self.numbers, done: Some(sender), pass: None };
        Ok(Some(Request { tables, done, ingested }))
    }
}

/// Begins a table. It is written as one of the last level, where bulk data ends.
async fn begin(keyspace: &Keyspace, outcome: &mut Outcome) -> Result<Output> {
    let background = &keyspace.db.background;
    let store = &background.store;
    let version = store.pin().0.version.clone();
    let next_id = || background.draw_id();
    let cancelled = || store.is_stopping();
    let job = Job {
        options: &store.options,
        paths: &store.paths,
        level: LEVELS - 1,
        class: IoClass::Compaction,
        snapshots: Vec::new(),
        expire_before: 0,
        horizon: 0,
        version: &version,
        keys: (&[], None),
        table_size: store.options.table_size,
        store,
        job: 0,
        prefix_rule: background.keyspaces.prefix_rule(),
        values: store.tables.values(),
        value_rule: background.keyspaces.value_rule(store.options.separate_above),
        leaving: &BTreeSet::new(),
        callbacks: background.keyspaces.callbacks(),
        filters: false,
        complain: &|_| {},
        next_id: &next_id,
        cancelled: &cancelled,
    };
    job.begin(outcome).await
}

/// Adds a record under relative sequence numbers from 1 on; returns the highest.
fn add_record(
    output: &mut Output,
    user_key: &[u8],
    value: &[u8],
    deadline: Option<u64>,
) -> Result<SeqNo> {
    let key = |seqno, kind| InternalKey::new(user_key, Trailer::new(seqno, kind));
    if value.len() > CHUNKED_ABOVE {
        let head = value.len().div_ceil(CHUNK_LEN) as u64 + 1;
        let about = head_of(deadline.unwrap_or(0), value.len());
        output.add(key(head, Kind::ChunkedValue), &about)?;
        for (seqno, chunk) in (1..head).rev().zip(value.chunks(CHUNK_LEN)) {
            output.add(key(seqno, Kind::Chunk), chunk)?;
        }
        return Ok(head);
    }
    match deadline {
        None => output.add(key(1, Kind::Value), value)?,
        Some(deadline) => {
            let value = [&deadline.to_le_bytes(), value].concat();
            output.add(key(1, Kind::ExpiringValue), &value)?;
        }
    }
    Ok(1)
}

// ---- places ----

/// Requests that wait for compaction to have a moment; `None` once it has ended.
pub(crate) struct Ingests(Mutex<Option<VecDeque<Tables>>>);

impl Default for Ingests {
    fn default() -> Ingests {
        Ingests(Mutex::new(Some(VecDeque::new())))
    }
}

impl Ingests {
    fn push(&self, tables: Tables) -> Result<()> {
        match &mut *self.0.lock() {
            Some(waiting) => waiting.push_back(tables),
            None => return Err(closed()),
        }
        Ok(())
    }

    fn pop(&self) -> Option<Tables> {
        self.0.lock().as_mut()?.pop_front()
    }
}

/// The leader's part of an ingest.
pub(crate) struct Turn {
    /// The smallest and the largest key.
    bounds: (Vec<u8>, Vec<u8>),
    /// How many sequence numbers to reserve.
    numbers: u64,
    /// Is told what they begin above. Nothing is written from then on until the other end speaks.
    began: oneshot::Sender<SeqNo>,
    /// Tells the highest number that may be read now, or is dropped if nothing was done.
    ended: oneshot::Receiver<SeqNo>,
}

impl Background {
    /// Gives the tables that wait their places. Called between two compactions: the levels change only
    /// by flushes meanwhile.
    pub(crate) async fn place_ingests(&self) {
        while let Some(mut tables) = self.ingests.pop() {
            let placed = self.place(&mut tables).await;
            if let Some(done) = tables.done.take() {
                // Nobody may wait any more; it is done nevertheless.
                let _ = done.send(placed);
            }
        }
    }

    /// Refuses what waits and what comes.
    pub(crate) fn refuse_ingests(&self) {
        // Dropping the requests answers them.
        drop(self.ingests.0.lock().take());
    }

    async fn place(&self, tables: &mut Tables) -> Result<()> {
        let store = &self.store;
        let (Some(first), Some(last)) = (tables.descs.first(), tables.descs.last()) else {
            return Ok(());
        };
        let (began, base) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let bounds = (first.smallest.clone(), last.largest.clone());
        let turn = Turn { bounds, numbers: tables.numbers, began, ended };
        // A task of its own: whoever submits may have to lead, and here is what the leader waits for.
        let (sender, led) = oneshot::channel();
        let of_leader = store.clone();
        store.options.env.tasks.spawn(
            "ingest",
            Box::pin(async move {
                let work = Work::Ingest(Mutex::new(Some(turn)));
                let _ = sender.send(commit::submit(&of_leader, work).await);
            }),
        );
        let Ok(base) = base.await else {
            // It was refused.
            return led.await.unwrap_or_else(|_| Err(closed())).and_then(|()| Err(closed()));
        };
        let version = store.pin().0.version.clone();
        let newest = base + tables.numbers;
        let mut edit = Edit {
            flushed: Some(Flushed { position: newest + 1, ..Flushed::default() }),
            ..Edit::default()
        };
        for desc in &mut tables.descs {
            desc.base = base;
            desc.seqnos = (desc.seqnos.0 + base, desc.seqnos.1 + base);
            edit.added.push((place_of(&version, desc) as u8, desc.clone()));
        }
        // What the record cache says of these keys is true up to the new view.
        let change = store.tables.records().begin_change();
        change.forget_tables(tables.descs.iter()).await;
        let publish = |view: &View, version| {
            change.installed();
            view.at(version)
        };
        let installed = self.install(INGEST_INSTALL, edit, None, publish).await;
        drop(change);
        // After another failure than a full disk the edit may be in the manifest: the files stay, and
        // the next opening knows.
        if !matches!(installed, Err(Error::NoSpace(_))) {
            tables.descs.clear();
        }
        if let Err(e) = &installed {
            if matches!(e, Error::NoSpace(_)) {
                store.run_out_of_space(e);
            }
            return installed;
        }
        // An edit that rots at the end of the manifest looks like one that was never finished. What a flush
        // or a merge did has left other traces; here an edit behind it is one. Without space for it
        // the ingest stands nevertheless.
        let proven = self.install(INGEST_INSTALL, Edit::default(), None, View::at).await;
        let _ = end.send(newest);
        if let Err(e @ Error::Stopped(_)) = proven {
            return Err(e);
        }
        led.await.unwrap_or_else(|_| Err(closed()))
    }
}

/// Returns the deepest level in which and above which nothing overlaps a table; level 0 if there is
/// none.
fn place_of(version: &Version, desc: &TableDesc) -> usize {
    let overlaps = |level: &usize| version.levels[*level].iter().any(|t| t.desc.overlaps(desc));
    (0..LEVELS).find(overlaps).map_or(LEVELS - 1, |level| level.saturating_sub(1))
}

impl Store {
    /// Holds the leader while tables get their place.
    pub(crate) async fn ingest(&self, writer: &mut Writer, turn: Turn) -> Result<()> {
        let Turn { bounds, numbers, began, ended } = turn;
        self.flush_overlapping(writer, &bounds).await?;
        let entries = numbers.div_ceil(NUMBERS_OF_ENTRY);
        self.make_room(writer, 0, std::iter::repeat_n(1, entries as usize)).await?;
        let next = writer.applied.get(&GROUP).copied().unwrap_or(0) + 1;
        let mut stamps = Vec::with_capacity(entries as usize);
        for index in next..next + entries {
            let id = EntryId { group: GROUP, index, term: TERM };
            let position = writer.log.append(id, &[&[VERSION]])?;
            stamps.push(Stamp { group: GROUP, index, position });
        }
        self.persist(writer, RESERVE, true).await.inspect_err(|e| self.stop(e))?;
        let base = stamps.first().map_or(0, |stamp| stamp.position - 1);
        for stamp in stamps {
            self.apply(writer, stamp, &[VERSION]).await?;
        }
        // Whoever asked may be gone.
        if began.send(base).is_ok()
            && let Ok(newest) = ended.await
        {
            writer.position = writer.position.max(newest + 1);
            writer.recent.written_past(newest);
            self.stretches.forget(newest);
            self.visible.fetch_max(newest, std::sync::atomic::Ordering::Release);
        }
        Ok(())
    }

    /// Waits until memory has nothing between the two keys.
    async fn flush_overlapping(
        &self,
        writer: &mut Writer,
        (smallest, largest): &(Vec<u8>, Vec<u8>),
    ) -> Result<()> {
        // An earlier failure is not this call's: it is tried again now.
        self.note(Chore::Flush, None);
        self.flush_due.notify();
        loop {
            let relief = self.relief.listen();
            if let Some(refusal) = self.refusal() {
                return Err(refusal);
            }
            let meets = |memtable: &Arc<Memtable>| overlaps(memtable, smallest, largest);
            if !self.pin().0.memtables.iter().any(meets) {
                return Ok(());
            }
            if self.is_closed() {
                return Err(closed());
            }
            if let Some(failure) = self.failure(Chore::Flush) {
                return Err(failure);
            }
            if meets(writer.active.memtable()) {
                self.seal(writer, self.options.memtable_capacity(), FlushReason::Asked).await?;
            }
            relief.await;
        }
    }
}

/// Returns whether a memtable has a record or a range tombstone between two keys, both included.
fn overlaps(memtable: &Arc<Memtable>, smallest: &[u8], largest: &[u8]) -> bool {
    let mut iter = memtable.iter();
    iter.seek(InternalKey::new(smallest, Trailer::NEWEST));
    if iter.valid() && iter.key().user_key <= largest {
        return true;
    }
    memtable.range_tombstones().is_some_and(|tombstones| {
        tombstones.iter().any(|range| range.start <= largest && range.end > smallest)
    })
}
