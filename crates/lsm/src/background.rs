//! Background work: flush, compaction, the interval's sync, removal of dead files.
//!
//! Three tasks per store, one more that tells a listener what happens, if there is one, and one if it is
//! scrubbed. Each runs until the store stops, and none of them is ever waited for by a reader.
//!
//! # Failures
//! A flush or a compaction that fails is undone and tried again: until its edit is in the manifest
//! nothing refers to its files. Only a write or sync of the manifest or of the log that fails
//! stops the store, since what they hold afterwards is not known.
//!
//! | what failed | what happens |
//! |---|---|
//! | a full disk | writes are refused until a try succeeds |
//! | writing or syncing a table | tried again; writers are told the reason once memory is full |
//! | reading a table (EIO) | tried again, and after some tries compaction goes around the table |
//! | bytes do not verify | the table is in quarantine, compaction goes around it |
//! | the manifest or the log | the store stops |

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use atoll_env::disk::{IoClass, IoTag};
use atoll_env::sync::{Notify, oneshot, select_biased};

use crate::commit::{self, Work};
use crate::compaction::choose::{
    Candidate, Plan, Targets, View as LevelsView, choose, collect as collect_values, reason,
};
use crate::compaction::parts::{self, Inputs};
use crate::compaction::run::{Job, Outcome, merged_tombstones};
use crate::database::closed;
use crate::error::{Error, Result};
use crate::events::{
    BackgroundError, CompactionBegun, CompactionEnded, CompactionKind, CompactionReason, Event,
    FlushBegun, FlushEnded, JobEnd, TableInfo,
};
use crate::ingest::Ingests;
use crate::iter::{Direction, Merge, Source};
use crate::keyspace::{Callbacks, Keyspaces};
use crate::mutants;
use crate::options::Options;
use crate::pacer;
use crate::pacing;
use crate::store::{Chore, Sealed, Store};
use crate::table::PrefixRule;
use crate::tables::ReadMode;
use crate::tombstone::Fragmented;
use crate::values::ValueRule;
use crate::values::collect::{self, Candidate as ValueCandidate, low_water};
use crate::version::manifest::{COMPACTION_INSTALL, FLUSH_INSTALL};
use crate::version::{Edit, Flushed, Paths, TableDesc, TableHandle, Version};
use crate::view::View;

/// Between two tries when the disk is full, and between two looks for expired tables.
const PAUSE: Duration = Duration::from_secs(1);
/// A merge of so many tables is worth a second thread, if it is urgent.
const PARTS_FROM: u64 = 3;
/// Smaller tables are not worth their files.
const TABLE_SIZE_MIN: u64 = 4 << 20;
const REMOVE: IoTag = IoTag::new(IoClass::Compaction, "table removal");
const REMOVE_VALUES: IoTag = IoTag::new(IoClass::Collection, "value removal");
/// Share of garbage in value files, in percent, that a compaction of everything leaves.
const GARBAGE_LEFT_PERCENT: u64 = 5;

/// The tasks of one store.
pub(crate) struct Background {
    pub(crate) store: Arc<Store>,
    pub(crate) keyspaces: Arc<Keyspaces>,
    /// Next file number; drawn by flush and compaction.
    pub(crate) next_file: AtomicU64,
    /// Tasks that have not ended.
    running: AtomicU64,
    ended: Notify,
    /// Somebody waits for a compaction of everything.
    full_compactions: AtomicU64,
    /// Value files had too much garbage, and some is still to be collected.
    collecting: AtomicBool,
    /// Tables that wait for their place.
    pub(crate) ingests: Ingests,
}

impl Background {
    /// Starts the tasks.
    pub(crate) fn start(
        store: Arc<Store>,
        keyspaces: Arc<Keyspaces>,
        next_file: u64,
    ) -> Arc<Background> {
        let listened = store.events.are_wanted();
        let scrubs = store.options.scrub_interval;
        let this = Arc::new(Background {
            store,
            keyspaces,
            next_file: AtomicU64::new(next_file),
            running: AtomicU64::new(3 + u64::from(listened) + u64::from(scrubs.is_some())),
            ended: Notify::new(),
            full_compactions: AtomicU64::new(0),
            collecting: AtomicBool::new(false),
            ingests: Ingests::default(),
        });
        this.store.pace_levels(&this.store.pin().0.version, None);
        let tasks = &this.store.options.env.tasks;
        let (flush, compact, sync) = (this.clone(), this.clone(), this.clone());
        tasks.spawn(
            "flush",
            Box::pin(async move {
                flush.flush_loop().await;
                flush.end();
            }),
        );
        tasks.spawn(
            "compaction",
            Box::pin(async move {
                compact.compaction_loop().await;
                compact.end();
            }),
        );
        tasks.spawn(
            "log sync",
            Box::pin(async move {
                sync.sync_loop().await;
                sync.end();
            }),
        );
        if listened {
            let tell = this.clone();
            tasks.spawn(
                "events",
                Box::pin(async move {
                    tell.tell_loop().await;
                    tell.end();
                }),
            );
        }
        if let Some(interval) = scrubs {
            let scrub = this.clone();
            let task = async move {
                scrub.scrub_loop(interval).await;
                scrub.end();
            };
            tasks.spawn("scrub", Box::pin(task));
        }
        this
    }

    /// Tells the listener what happens, until everything else has ended.
    async fn tell_loop(&self) {
        loop {
            let ends = self.store.is_closed() && self.running.load(Ordering::Acquire) == 1;
            self.store.events.deliver();
            if ends {
                return;
            }
            self.store.events.due.notified().await;
        }
    }

    /// Waits until all tasks have ended after [`Store::begin_shutdown`].
    pub(crate) async fn ended(&self) {
        while self.running.load(Ordering::Acquire) > 0 {
            self.ended.notified().await;
        }
        // The signal is for one, and two handles may close at once.
        self.ended.notify();
    }

    fn end(&self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
        self.ended.notify();
        self.store.events.due.notify();
    }

    pub(crate) fn draw_id(&self) -> u64 {
        self.next_file.fetch_add(1, Ordering::Relaxed)
    }

    async fn pause(&self, wake: &Notify) {
        let sleep = self.store.options.env.clock.sleep(PAUSE);
        select_biased(wake.notified(), sleep).await;
    }

    /// Sorts a failure, see the table above.
    fn sort_out(&self, chore: Chore, error: Error) {
        self.store.events.tell(|| {
            let chore = match chore {
                Chore::Flush => "flush",
                Chore::Compaction => "compaction",
            };
            Event::BackgroundError(BackgroundError { chore, error: error.clone() })
        });
        match &error {
            Error::NoSpace(_) => self.store.run_out_of_space(&error),
            Error::Corruption { .. } | Error::Io { .. } => {}
            _ => self.store.stop(&error),
        }
        self.store.note(chore, Some(error));
    }

    // ---- flush ----

    async fn flush_loop(&self) {
        while !self.store.is_stopping() {
            let sealed = self.store.sealed.lock().front().cloned();
            match sealed {
                None => self.store.flush_due.notified().await,
                Some(sealed) => {
                    if let Err(e) = self.flush(&sealed).await {
                        self.sort_out(Chore::Flush, e);
                        self.pause(&self.store.flush_due).await;
                    }
                }
            }
        }
    }

    /// Flushes a sealed memtable, and tells of it.
    async fn flush(&self, sealed: &Sealed) -> Result<()> {
        let Store { events, options, .. } = &*self.store;
        let (job, started) = (events.draw_job(), options.env.clock.now());
        events.tell(|| {
            let (bytes, entries) = (sealed.memtable.bytes_used(), sealed.memtable.entries());
            let (bytes, entries) = (bytes as u64, entries as u64);
            Event::FlushBegun(FlushBegun { job, reason: sealed.reason, bytes, entries })
        });
        let mut outcome = Outcome::default();
        let flushed = self.flush_into(sealed, &mut outcome).await;
        events.tell(|| {
            let (outputs, end) = ended(0, &outcome, &flushed);
            let (bytes, took) = (total(&outputs), options.env.clock.now().since(started));
            Event::FlushEnded(FlushEnded { job, outputs, bytes, took, end })
        });
        flushed
    }

    /// Writes a sealed memtable into L0 and lets the log forget its entries.
    async fn flush_into(&self, sealed: &Sealed, outcome: &mut Outcome) -> Result<()> {
        let store = &self.store;
        let started = store.options.env.clock.now();
        let tombstones: Vec<Arc<Fragmented>> =
            sealed.memtable.range_tombstones().into_iter().collect();
        let newest = sealed.memtable.seqnos().map_or(0, |(_, newest)| newest);
        let source = Source::memtable(sealed.memtable.iter(), newest);
        let version = store.pin().0.version.clone();
        let underway = store.begin_job(pacer::Job {
            memory: store.pacing.memory(&sealed.memtable).max(1),
            records: sealed.memtable.entries() as u64,
            ..pacer::Job::default()
        });
        let table_size = store.options.table_size;
        let nothing = BTreeSet::new();
        let class = IoClass::Flush;
        let terms = self.terms(&version, 0, class, table_size, underway.id, nothing);
        let merge = Merge::new(vec![source], Direction::Forward);
        let all = KeyRange::default();
        let merged = self.run(&terms, merge, &tombstones, &all, outcome).await;
        if merged.is_err() || outcome.cancelled {
            self.remove_begun(outcome).await;
            return merged;
        }
        let edit = Edit {
            added: outcome.tables.iter().map(|desc| (0, desc.clone())).collect(),
            values: outcome.values.clone(),
            flushed: Some(Flushed { position: sealed.position, applied: sealed.applied.clone() }),
            ..Edit::default()
        };
        // What the record cache says of these keys is true up to the new view.
        let change = store.tables.records().begin_change();
        change.forget_memtable(&sealed.memtable).await;
        let installed = self
            .install(
                FLUSH_INSTALL,
                edit,
                Some((underway.id, outcome.bytes_written)),
                |view, version| {
                    change.installed();
                    let keep = view.memtables.iter().filter(|m| !Arc::ptr_eq(m, &sealed.memtable));
                    View::new(keep.cloned().collect(), version)
                },
            )
            .await;
        drop(change);
        if let Err(e) = installed {
            if matches!(e, Error::NoSpace(_)) {
                self.remove_begun(outcome).await;
            }
            return Err(e);
        }
        store.sealed.lock().pop_front();
        store.governor.flushed(&sealed.memtable);
        store.note(Chore::Flush, None);
        store.stats.wrote_values(outcome.value_bytes, outcome.moved_bytes);
        store.stats.flushed(outcome.bytes_written, store.options.env.clock.now().since(started));
        store.space_returned();
        store.relief.notify(usize::MAX);
        store.compaction_due.notify();
        commit::post(store, Work::Release { applied: sealed.applied.clone() });
        Ok(())
    }

    fn terms(
        &self,
        version: &Arc<Version>,
        level: usize,
        class: IoClass,
        table_size: u64,
        job: u64,
        leaving: BTreeSet<u64>,
    ) -> Terms {
        let store = &self.store;
        let snapshots = store.live_snapshots();
        let present = snapshots.last().copied().unwrap_or(0);
        Terms {
            version: version.clone(),
            level,
            class,
            table_size,
            job,
            expire_before: store.now(),
            horizon: store.horizon.load(Ordering::Acquire),
            prefix_rule: self.keyspaces.prefix_rule(),
            value_rule: self.keyspaces.value_rule(store.options.separate_above),
            leaving,
            callbacks: self.keyspaces.callbacks(),
            filters: !store.is_seen(present),
            snapshots,
        }
    }

    async fn run(
        &self,
        terms: &Terms,
        input: Merge,
        tombstones: &[Arc<Fragmented>],
        keys: &KeyRange,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let store = &self.store;
        let next_id = || self.draw_id();
        let cancelled = || store.is_stopping();
        let told = AtomicBool::new(false);
        let complain = |e: Error| {
            store.stats.callback_failed(&e);
            // One is enough to find the mistake; all of them would crowd out other events.
            if !told.swap(true, Ordering::Relaxed) {
                store.events.tell(|| Event::CallbackFailed(e));
            }
        };
        let job = Job {
            options: &store.options,
            paths: &store.paths,
            level: terms.level,
            class: terms.class,
            snapshots: terms.snapshots.clone(),
            expire_before: terms.expire_before,
            horizon: terms.horizon,
            version: &terms.version,
            keys: (&keys.start, keys.end.as_deref()),
            table_size: terms.table_size,
            store,
            job: terms.job,
            prefix_rule: terms.prefix_rule.clone(),
            values: store.tables.values(),
            value_rule: terms.value_rule.clone(),
            leaving: &terms.leaving,
            callbacks: terms.callbacks.clone(),
            filters: terms.filters,
            complain: &complain,
            next_id: &next_id,
            cancelled: &cancelled,
        };
        job.run(input, &merged_tombstones(tombstones), outcome).await
    }

    // ---- the manifest ----

    /// Writes `edit` to the manifest and then publishes what follows from it. `ended` is the job whose
    /// end it is, for the pacer, and what it wrote.
    pub(crate) async fn install(
        &self,
        tag: IoTag,
        mut edit: Edit,
        ended: Option<(u64, u64)>,
        publish: impl FnOnce(&View, Arc<Version>) -> View,
    ) -> Result<()> {
        let store = &self.store;
        let mut catalog = store.catalog.enter().await;
        edit.next_file = self.next_file.load(Ordering::Relaxed);
        let catalog = &mut *catalog;
        if let Some(flushed) = &mut edit.flushed {
            flushed.raise(&catalog.state.flushed);
        }
        // What lost its last reader's handle may go only after the edit is durable; computing the
        // next version first also proves that the edit fits.
        let next = catalog.state.version.after(&edit, &store.garbage).map_err(|what| {
            Error::Stopped(format!("an edit of the manifest does not fit: {what}"))
        })?;
        let appended = catalog.manifest.append(tag, &edit, &catalog.state).await;
        if let Err(e) = appended {
            if !matches!(e, Error::NoSpace(_)) {
                store.stop(&e);
            }
            return Err(e);
        }
        for id in &edit.removed {
            let gone = catalog.state.version.tables().find(|(_, t)| t.desc.id == *id);
            if let Some((_, handle)) = gone {
                handle.retire();
            }
        }
        for file in &catalog.state.version.values {
            if next.value_file(file.handle.desc.id).is_none() {
                file.handle.retire();
            }
        }
        catalog.state.next_file = edit.next_file;
        if let Some(flushed) = edit.flushed {
            catalog.state.flushed = flushed;
        }
        catalog.state.version = next.share();
        for (level, desc) in &edit.added {
            store.events.tell(|| Event::TableCreated(info(usize::from(*level), desc)));
        }
        let version = Arc::new(next);
        store.update_view(|view| publish(view, version.clone()));
        store.pace_levels(&version, ended);
        Ok(())
    }

    /// Removes the files that nobody needs any more.
    async fn remove_garbage(&self) {
        let ids = self.store.garbage.take();
        self.remove_tables(&ids).await;
        self.remove_tables(&self.store.garbage.take_begun()).await;
        self.remove_value_files(&self.store.garbage.take_values()).await;
        ids.iter().for_each(|id| self.store.events.tell(|| Event::TableDeleted(*id)));
    }

    pub(crate) async fn remove_tables(&self, ids: &[u64]) {
        self.remove_files(REMOVE, ids, Paths::table).await;
    }

    async fn remove_value_files(&self, ids: &[u64]) {
        self.remove_files(REMOVE_VALUES, ids, Paths::values_file).await;
    }

    async fn remove_files(&self, tag: IoTag, ids: &[u64], path: fn(&Paths, u64) -> PathBuf) {
        let store = &self.store;
        for id in ids {
            store.tables.pool().forget(*id);
            // A file that stays behind is removed at the next open: it is in no manifest.
            let _ = store.options.env.disk.remove(tag, &path(&store.paths, *id)).await;
        }
    }

    /// Removes the files of a merge that came to nothing.
    async fn remove_begun(&self, outcome: &Outcome) {
        self.remove_tables(&outcome.begun).await;
        self.remove_value_files(&outcome.begun_values).await;
    }

    // ---- compaction ----

    async fn compaction_loop(self: &Arc<Self>) {
        while !self.store.is_stopping() {
            self.place_ingests().await;
            match self.compact_once().await {
                Ok(true) => {}
                Ok(false) => self.pause(&self.store.compaction_due).await,
                Err(e) => {
                    self.sort_out(Chore::Compaction, e);
                    self.full_compactions.store(0, Ordering::Release);
                    self.store.relief.notify(usize::MAX);
                    self.pause(&self.store.compaction_due).await;
                }
            }
        }
        self.refuse_ingests();
    }

    /// Does the most useful thing; returns whether there was one.
    async fn compact_once(self: &Arc<Self>) -> Result<bool> {
        self.record_suspects().await?;
        self.remove_garbage().await;
        let version = self.store.pin().0.version.clone();
        let targets = pacing::targets(&self.store.options);
        let percent = u64::from(self.store.options.value_garbage_percent);
        let collecting = self.collecting.load(Ordering::Relaxed);
        let percent = if collecting { low_water(percent) } else { percent };
        let view = self.levels_view(&version, percent).await;
        self.collecting.store(!view.leaving.is_empty(), Ordering::Relaxed);
        let forced = self.full_compactions.load(Ordering::Acquire);
        let asked = if forced > 0 { everything(&view) } else { None };
        let asked = asked.map(|plan| (plan, CompactionReason::Asked));
        let chosen = || {
            let plan = choose(&view, targets)?;
            let reason = reason(&view, &plan);
            Some((plan, reason))
        };
        let plan = asked.or_else(chosen);
        let due = plan.is_some();
        if let Some((plan, reason)) = plan {
            self.compact(version, plan, reason, view.leaving).await?;
            self.store.space_returned();
        }
        if forced > 0 {
            self.collect_all(targets).await?;
        }
        self.store.note(Chore::Compaction, None);
        self.full_compactions.fetch_sub(forced, Ordering::AcqRel);
        self.store.relief.notify(usize::MAX);
        Ok(due)
    }

    /// Gives back nearly all space that values which were overwritten take.
    async fn collect_all(self: &Arc<Self>, targets: Targets) -> Result<()> {
        while !self.store.is_stopping() {
            let version = self.store.pin().0.version.clone();
            let view = self.levels_view(&version, GARBAGE_LEFT_PERCENT).await;
            let Some(plan) = collect_values(&view, targets) else { break };
            self.compact(version, plan, CompactionReason::Collection, view.leaving).await?;
        }
        Ok(())
    }

    /// Carries a plan of `version` out, tells of it and removes what it made superfluous; values in files
    /// of `leaving` that it meets are moved.
    async fn compact(
        self: &Arc<Self>,
        version: Arc<Version>,
        plan: Plan,
        reason: CompactionReason,
        leaving: BTreeSet<u64>,
    ) -> Result<()> {
        let Store { events, options, .. } = &*self.store;
        let (job, started) = (events.draw_job(), options.env.clock.now());
        let (kind, to, ids) = match &plan {
            Plan::Drop { tables } => (CompactionKind::Drop, None, tables.clone()),
            Plan::Move { table, to } => (CompactionKind::Move, Some(*to), vec![*table]),
            Plan::Merge { inputs, to } => {
                (CompactionKind::Merge, Some(*to), inputs.iter().map(|(_, id)| *id).collect())
            }
        };
        let taken = version.tables().filter(|(_, handle)| ids.contains(&handle.desc.id));
        let inputs: Vec<_> = taken.map(|(level, handle)| info(level, &handle.desc)).collect();
        let read = if kind == CompactionKind::Merge { total(&inputs) } else { 0 };
        events.tell(|| Event::CompactionBegun(CompactionBegun { job, reason, kind, inputs, to }));
        let mut outcome = Outcome::default();
        let done = self.carry_out(&version, plan, leaving, &mut outcome).await;
        events.tell(|| {
            let (outputs, end) = ended(to.unwrap_or(0), &outcome, &done);
            let read = if matches!(end, JobEnd::Done) { read } else { 0 };
            let (written, took) = (total(&outputs), options.env.clock.now().since(started));
            let ended = CompactionEnded { job, kind, outputs, read, written, took, end };
            Event::CompactionEnded(ended)
        });
        if let Err(e) = &done {
            self.blame(&version, e).await;
        }
        done?;
        // It keeps the files that the merge replaced.
        drop(version);
        self.remove_garbage().await;
        Ok(())
    }

    async fn carry_out(
        self: &Arc<Self>,
        version: &Arc<Version>,
        plan: Plan,
        leaving: BTreeSet<u64>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let edit = match plan {
            Plan::Drop { tables } => Edit { removed: tables, ..Edit::default() },
            Plan::Move { table, to } => Edit { moved: vec![(table, to as u8)], ..Edit::default() },
            Plan::Merge { inputs, to } => {
                return self.merge(version, (inputs, to), leaving, outcome).await;
            }
        };
        self.install(COMPACTION_INSTALL, edit, None, View::at).await
    }

    /// Merges tables into new ones of a level.
    async fn merge(
        self: &Arc<Self>,
        version: &Arc<Version>,
        (inputs, to): (Vec<(usize, u64)>, usize),
        leaving: BTreeSet<u64>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let started = self.store.options.env.clock.now();
        let handle = |(level, id): (usize, u64)| {
            let table = version.levels[level].iter().find(|t| t.desc.id == id);
            table.map(|table| (level, table.clone()))
        };
        let inputs: Inputs = inputs.into_iter().filter_map(handle).collect();
        let job = pacing::merge_job(&inputs, to);
        let relieves = job.tables > 0;
        let read: u64 = job.from.iter().sum();
        let underway = self.store.begin_job(job);
        let in_place = inputs.iter().all(|(level, _)| *level == to);
        let class = match (relieves, in_place && !leaving.is_empty()) {
            (true, _) => IoClass::Level0,
            (false, true) => IoClass::Collection,
            (false, false) => IoClass::Compaction,
        };
        // Until the outputs are what readers see; before the list of snapshots is taken.
        let _filtering = self.keyspaces.has_filters().then(|| self.store.begin_filtering());
        let table_size = table_size(version, &self.store.options);
        let doomed: Vec<u64> = leaving.iter().copied().collect();
        let terms = self.terms(version, to, class, table_size, underway.id, leaving);
        let split = match read >= PARTS_FROM * table_size && self.store.pacing.hurries() {
            true => parts::middle(&self.store.tables, &inputs).await?,
            false => None,
        };
        let merged = match split {
            None => self.merge_range(&terms, &inputs, &KeyRange::default(), outcome).await,
            Some(middle) => self.merge_halves(terms, &inputs, middle, outcome).await,
        };
        if merged.is_err() || outcome.cancelled {
            self.remove_begun(outcome).await;
            return merged;
        }
        let edit = Edit {
            added: outcome.tables.iter().map(|desc| (to as u8, desc.clone())).collect(),
            values: outcome.values.clone(),
            removed: inputs.iter().map(|(_, h)| h.desc.id).collect(),
            ..Edit::default()
        };
        let ended = Some((underway.id, outcome.bytes_written));
        let change = outcome.filtered.then(|| self.store.tables.records().begin_change());
        if let Some(change) = &change {
            change.forget_tables(inputs.iter().map(|(_, handle)| &handle.desc)).await;
        }
        let installed = self
            .install(COMPACTION_INSTALL, edit, ended, |view, version| {
                change.iter().for_each(|change| change.installed());
                view.at(version)
            })
            .await;
        drop(change);
        if matches!(installed, Err(Error::NoSpace(_))) {
            self.remove_begun(outcome).await;
        }
        installed?;
        if mutants::is("value-file-removed-early") && outcome.moved_bytes > 0 {
            self.remove_value_files(&doomed).await;
        }
        self.store.stats.wrote_values(outcome.value_bytes, outcome.moved_bytes);
        let took = self.store.options.env.clock.now().since(started);
        self.store.stats.compacted(read, outcome.bytes_written, took);
        Ok(())
    }

    /// Merges what lies before `middle` and what lies behind it at the same time.
    async fn merge_halves(
        self: &Arc<Self>,
        terms: Terms,
        inputs: &Inputs,
        middle: Vec<u8>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let terms = Arc::new(terms);
        let lower = KeyRange { start: Vec::new(), end: Some(middle.clone()) };
        let upper = KeyRange { start: middle, end: None };
        let (done, of_upper) = oneshot::channel();
        let (this, its_terms, its_inputs) = (self.clone(), terms.clone(), inputs.clone());
        self.store.options.env.tasks.spawn(
            "upper half of a merge",
            Box::pin(async move {
                let mut outcome = Outcome::default();
                let merged = this.merge_range(&its_terms, &its_inputs, &upper, &mut outcome).await;
                // Who started it waits.
                let _ = done.send((merged, outcome));
            }),
        );
        let merged = self.merge_range(&terms, inputs, &lower, outcome).await;
        let Ok((of_upper, upper)) = of_upper.await else {
            return merged.and(Err(Error::Stopped("half of a merge was torn down".to_owned())));
        };
        outcome.add(upper);
        merged.and(of_upper)
    }

    /// Merges the records of a range of keys.
    async fn merge_range(
        &self,
        terms: &Terms,
        inputs: &Inputs,
        keys: &KeyRange,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let tables = &self.store.tables;
        let mut sources = Vec::new();
        let mut tombstones = Vec::new();
        let mut run: (usize, Vec<Arc<TableHandle>>) = (0, Vec::new());
        let end_run = |run: &mut Vec<Arc<TableHandle>>, sources: &mut Vec<Source>| {
            if !run.is_empty() {
                sources.push(Source::level(tables.clone(), std::mem::take(run), ReadMode::Bulk));
            }
        };
        for (level, handle) in inputs {
            if handle.desc.range_tombstones > 0 {
                tombstones.push(tables.open(handle).await?.range_tombstones.clone());
            }
            if *level == 0 {
                let iter = tables.iter(handle, ReadMode::Bulk).await?;
                sources.push(Source::table(iter, handle.desc.seqnos.1));
                continue;
            }
            // Tables of one level are one run.
            if run.0 != *level {
                end_run(&mut run.1, &mut sources);
                run.0 = *level;
            }
            run.1.push(handle.clone());
        }
        end_run(&mut run.1, &mut sources);
        let merge = Merge::new(sources, Direction::Forward);
        self.run(terms, merge, &tombstones, keys, outcome).await
    }

    /// Finds out which table a failed merge could not read.
    async fn blame(&self, version: &Version, error: &Error) {
        let tables = &self.store.tables;
        match error {
            Error::Io { path, .. } => {
                let named =
                    version.tables().find(|(_, t)| self.store.paths.table(t.desc.id) == *path);
                if let Some((_, handle)) = named {
                    handle.unreadable.fetch_add(1, Ordering::Relaxed);
                }
            }
            _ => tables.confirm(version, error).await,
        }
    }

    /// Returns what a choice is made from, where value files with more garbage than so many percent of
    /// all should go.
    async fn levels_view(&self, version: &Version, garbage_percent: u64) -> LevelsView {
        let files: Vec<ValueCandidate> = version
            .values
            .iter()
            .map(|file| ValueCandidate {
                id: file.handle.desc.id,
                bytes: file.handle.desc.records(),
                live: file.live,
                stuck: file.handle.is_stuck(),
            })
            .collect();
        let mut view = LevelsView {
            levels: Default::default(),
            snapshots: self.store.live_snapshots(),
            expire_before: self.store.now(),
            horizon: self.store.horizon.load(Ordering::Acquire),
            leaving: collect::choose(&files, garbage_percent),
        };
        for (level, handle) in version.tables() {
            let mut range_tombstones = Vec::new();
            if handle.desc.range_tombstones > 0 && !handle.is_quarantined() {
                // If it does not open it is in quarantine by now, and drops nothing.
                if let Ok(open) = self.store.tables.open(handle).await {
                    range_tombstones = open.table.range_tombstones().to_vec();
                }
            }
            view.levels[level].push(Candidate {
                desc: handle.desc.clone(),
                blocked: handle.is_blocked(),
                range_tombstones: range_tombstones.into(),
            });
        }
        view
    }

    /// Writes newly found quarantines into the manifest.
    async fn record_suspects(&self) -> Result<()> {
        let suspects = self.store.tables.take_suspects();
        if suspects.is_empty() {
            return Ok(());
        }
        let edit = Edit { quarantined: suspects, ..Edit::default() };
        self.install(COMPACTION_INSTALL, edit, None, View::at).await
    }

    /// Compacts everything into the last level and waits for it.
    pub(crate) async fn compact_all(&self) -> Result<()> {
        self.flush_all().await?;
        self.store.note(Chore::Compaction, None);
        self.full_compactions.fetch_add(1, Ordering::AcqRel);
        loop {
            let relief = self.store.relief.listen();
            if let Some(failure) = self.store.failure(Chore::Compaction) {
                return Err(failure);
            }
            // Nobody compacts any more, and what was under way was given up.
            if self.store.is_closed() {
                return Err(closed());
            }
            if self.full_compactions.load(Ordering::Acquire) == 0 {
                return self.nothing_is_blocked();
            }
            if let Some(refusal) = self.store.refusal() {
                return Err(refusal);
            }
            self.store.compaction_due.notify();
            relief.await;
        }
    }

    /// Fails if there is a table that could not take part in a full compaction.
    fn nothing_is_blocked(&self) -> Result<()> {
        let (view, _) = self.store.pin();
        match view.version.tables().find(|(_, t)| t.is_blocked()) {
            None => Ok(()),
            Some((_, handle)) => Err(Error::corruption(
                &self.store.paths.table(handle.desc.id),
                0,
                "the table could not be read, so it was not merged with the others: restore the \
                 file, or run `atoll repair` on the stopped database",
            )),
        }
    }

    /// Flushes what is in memory now and waits for it, but not for what others write meanwhile.
    pub(crate) async fn flush_all(&self) -> Result<()> {
        commit::submit(&self.store, Work::Seal).await?;
        let last = self.store.sealed.lock().back().map_or(0, |sealed| sealed.position);
        // An earlier failure is not this call's: it is tried again now.
        self.store.note(Chore::Flush, None);
        self.store.flush_due.notify();
        loop {
            let relief = self.store.relief.listen();
            if self.store.sealed.lock().front().is_none_or(|sealed| sealed.position > last) {
                return Ok(());
            }
            if let Some(failure) = self.store.failure(Chore::Flush) {
                return Err(failure);
            }
            if let Some(refusal) = self.store.refusal() {
                return Err(refusal);
            }
            if self.store.is_closed() {
                return Err(closed());
            }
            relief.await;
        }
    }

    // ---- the interval ----

    async fn sync_loop(&self) {
        let store = &self.store;
        while !store.is_stopping() {
            let sleep = store.options.env.clock.sleep(store.options.sync_interval);
            let relief = store.relief.listen();
            if store.is_stopping() {
                return;
            }
            select_biased(sleep, relief).await;
            store.governor.look();
            if store.lacks_space() && store.sealed.lock().is_empty() {
                // Nothing else would find out: writes are refused, and no flush is due.
                if commit::submit(store, Work::Probe).await.is_ok() {
                    store.space_returned();
                }
            }
            if store.unsynced.load(Ordering::Acquire) {
                // A failure has stopped the store; nothing is left to do about it here.
                let _ = commit::submit(store, Work::Sync).await;
            }
        }
    }
}

/// Returns what is told of a table.
fn info(level: usize, desc: &TableDesc) -> TableInfo {
    TableInfo { id: desc.id, level, bytes: desc.size, entries: desc.entries }
}

fn total(tables: &[TableInfo]) -> u64 {
    tables.iter().map(|table| table.bytes).sum()
}

/// Returns the tables that came of a job, and how it ended.
fn ended(level: usize, outcome: &Outcome, result: &Result<()>) -> (Vec<TableInfo>, JobEnd) {
    match result {
        Err(e) => (Vec::new(), JobEnd::Failed(e.clone())),
        Ok(()) if outcome.cancelled => (Vec::new(), JobEnd::Cancelled),
        Ok(()) => (outcome.tables.iter().map(|desc| info(level, desc)).collect(), JobEnd::Done),
    }
}

/// What the parts of a job have in common.
struct Terms {
    version: Arc<Version>,
    level: usize,
    class: IoClass,
    table_size: u64,
    /// Its number at the pacer.
    job: u64,
    snapshots: Vec<u64>,
    expire_before: u64,
    horizon: u64,
    prefix_rule: PrefixRule,
    value_rule: ValueRule,
    leaving: BTreeSet<u64>,
    callbacks: Callbacks,
    /// Whether values may be shown to filters: no snapshot sees all of the present.
    filters: bool,
}

/// The keys of a part: from `start` to before `end`, all by default.
#[derive(Default)]
struct KeyRange {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// Returns the size of a merge's outputs. A level of few tables is merged in large steps, and a table
/// that is lowered meets a large part of the next level: in a small database tables are smaller, down
/// to a part of 32 of its largest level.
fn table_size(version: &Version, options: &Options) -> u64 {
    let bytes = |tables: &Vec<Arc<TableHandle>>| tables.iter().map(|t| t.desc.size).sum::<u64>();
    let largest = version.levels[1..].iter().map(bytes).max().unwrap_or(0);
    (largest / 32).max(TABLE_SIZE_MIN).min(options.table_size)
}

/// Returns the plan that merges every table into the last level, or `None` if there is nothing to
/// merge or a quarantined table is in the way.
fn everything(view: &LevelsView) -> Option<Plan> {
    let last = crate::version::LEVELS - 1;
    if view.levels.iter().flatten().any(|c| c.blocked) {
        return None;
    }
    let levels = view.levels.iter().enumerate();
    let inputs: Vec<_> =
        levels.flat_map(|(level, ts)| ts.iter().map(move |t| (level, t.desc.id))).collect();
    (!inputs.is_empty()).then_some(Plan::Merge { inputs, to: last })
}
