//! One life of a database: it is opened, checked, used by several tasks at once, and closed; or the
//! power goes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sync::{oneshot, timeout};
use atoll_lsm::backup::{Backups, Mode};
use atoll_lsm::{Batch, Database, Durability, Error, Keyspace, KeyspaceOptions, WriteOptions};

use crate::check::{
    BACKUP, BULK, BULK_KEYS, Trouble, bulk_key, bulk_value, check, check_copies, copy_path, doing,
    rows,
};
use crate::model::{Change, Effect, Value, Window, compare};
use crate::oracle::Oracle;
use crate::script::{Edit, FLEETING, NAMES, Op, Phase, TALLY, Tuning, content, keyspace_options};

/// Virtual time in which a life ends, unless somebody waits for something that never comes.
const LIFETIME: Duration = Duration::from_secs(600);

/// How often to try to open a database whose last handle was dropped.
const PATIENCE: usize = 100;

/// Where the database lies on the simulated disk.
pub const PATH: &str = "data/db";

/// What a life is led with.
pub struct Setting {
    /// The world.
    pub env: Env,
    /// Options of the engine.
    pub tuning: Tuning,
    /// The judge.
    pub oracle: Rc<RefCell<Oracle>>,
    /// Entries that must be there at the beginning.
    pub floor: usize,
    /// Number of the life, which makes values unique.
    pub number: u64,
    /// Draws what the checks look at.
    pub prng: Prng,
}

/// Leads a life: opens, checks, lets the writers and the reader of `phase` run, closes. Returns how
/// many entries of the life before survived.
///
/// `settled` becomes true once the check is over: the oracle knows then what is there.
pub async fn live(
    setting: Setting,
    phase: Option<Phase>,
    settled: Rc<Cell<bool>>,
) -> Result<usize, Trouble> {
    let clock = setting.env.clock.clone();
    let life = lead(setting, phase, settled);
    let life = timeout(clock.as_ref(), LIFETIME, life).await;
    life.unwrap_or_else(|_| Err(Trouble::Wrong(format!("not done after {LIFETIME:?}"))))
}

async fn lead(
    mut setting: Setting,
    phase: Option<Phase>,
    settled: Rc<Cell<bool>>,
) -> Result<usize, Trouble> {
    let db = open(&setting).await?;
    let options = || setting.tuning.options(setting.env.clone());
    check_copies(&setting.env, &setting.oracle, options, setting.number).await?;
    let Setting { env, oracle, floor, number, prng, .. } = &mut setting;
    let survived = check(&db, env, oracle, *floor, prng).await?;
    settled.set(true);
    let mut close = true;
    if let Some(phase) = phase {
        close = phase.close;
        let shared = Rc::new(Shared {
            db: db.clone(),
            env: env.clone(),
            oracle: oracle.clone(),
            slots: RefCell::default(),
            number: *number,
        });
        shared.begin().await?;
        shared.use_up(phase, prng).await?;
    }
    if close {
        let submitted = oracle.borrow().submitted();
        db.close_async().await.map_err(doing("closing"))?;
        oracle.borrow_mut().synced(submitted);
    } else {
        drop(db);
        env.clock.sleep(Duration::from_micros(50)).await;
    }
    Ok(survived)
}

/// Opens the database, waiting for what is left of the life before to let go of it.
async fn open(setting: &Setting) -> Result<Database, Trouble> {
    for _ in 0..PATIENCE {
        let options = setting.tuning.options_of(setting.number, setting.env.clone());
        match Database::builder(PATH).options(options).open_async().await {
            Err(Error::Locked(_)) => setting.env.clock.sleep(Duration::from_millis(100)).await,
            opened => return opened.map_err(doing("opening")),
        }
    }
    Err(Trouble::Wrong("the database that was let go of holds on to its lock".to_owned()))
}

/// A keyspace as the writers know it; it may have been dropped.
#[derive(Clone)]
struct Slot {
    keyspace: Keyspace,
    incarnation: u64,
    dropped: bool,
}

/// What the tasks of a life share.
struct Shared {
    db: Database,
    env: Env,
    oracle: Rc<RefCell<Oracle>>,
    slots: RefCell<BTreeMap<usize, Slot>>,
    number: u64,
}

impl Shared {
    /// Takes up the keyspaces that are there, and makes the first one if there is none.
    async fn begin(&self) -> Result<(), Trouble> {
        for (number, name) in NAMES.iter().enumerate() {
            let incarnation = self.oracle.borrow().base().spaces.get(*name).map(|s| s.incarnation);
            if let (Some(keyspace), Some(incarnation)) = (self.db.find_keyspace(name), incarnation)
            {
                let slot = Slot { keyspace, incarnation, dropped: false };
                self.slots.borrow_mut().insert(number, slot);
            }
        }
        self.create(0).await
    }

    /// Runs the tasks of a phase to their end.
    async fn use_up(self: Rc<Self>, phase: Phase, prng: &mut Prng) -> Result<(), Trouble> {
        let mut tasks = Vec::new();
        for ops in phase.writers {
            tasks.push(self.start("writer", self.clone().write_all(ops)));
        }
        tasks
            .push(self.start("reader", self.clone().read_all(phase.readings, prng.fork("reader"))));
        for task in tasks {
            task.await.map_err(|_| Trouble::Wrong("a task was dropped".to_owned()))??;
        }
        Ok(())
    }

    /// Starts a task; its result comes by the channel.
    fn start(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), Trouble>> + 'static,
    ) -> oneshot::Receiver<Result<(), Trouble>> {
        let (sender, receiver) = oneshot::channel();
        let task = async move {
            // Nobody waits if another task failed before.
            let _ = sender.send(task.await);
        };
        self.env.tasks.spawn_local(name, Box::pin(task));
        receiver
    }

    async fn write_all(self: Rc<Self>, ops: Vec<Op>) -> Result<(), Trouble> {
        for op in ops {
            match op {
                Op::Write(edits, durability) => self.write(&edits, durability).await?,
                Op::Create(name) => self.create(name).await?,
                Op::DropKeyspace(name) => self.drop_keyspace(name).await?,
                Op::Flush => self.promise("flushing", self.db.flush_async()).await?,
                Op::Compact => self.promise("compacting", self.db.compact_async()).await?,
                Op::Sync => self.promise("syncing", self.db.sync_async()).await?,
                Op::Checkpoint => self.checkpoint().await?,
                Op::Backup => self.backup().await?,
                Op::Ingest => self.ingest().await?,
                Op::Sleep(time) => self.env.clock.sleep(time).await,
            }
        }
        Ok(())
    }

    /// Waits for something that makes all earlier entries durable.
    async fn promise(
        &self,
        what: &str,
        call: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Trouble> {
        let submitted = self.oracle.borrow().submitted();
        call.await.map_err(doing(what))?;
        self.oracle.borrow_mut().synced(submitted);
        Ok(())
    }

    async fn checkpoint(&self) -> Result<(), Trouble> {
        let number = self.oracle.borrow_mut().begin_copy(false);
        let made = self.db.checkpoint_async(copy_path(number)).await;
        made.map_err(doing("making a checkpoint"))?;
        self.oracle.borrow_mut().end_copy(number, None);
        Ok(())
    }

    async fn backup(&self) -> Result<(), Trouble> {
        let number = self.oracle.borrow_mut().begin_copy(true);
        let backups = Backups::in_env(&self.env, BACKUP);
        match backups.take_async(&self.db, Mode::Incremental, &mut |_| {}).await {
            // The one of a life that was let go of may still be at it.
            Err(Error::Locked(_)) => self.oracle.borrow_mut().refuse_copy(number),
            taken => {
                let generation = taken.map_err(doing("taking a backup"))?.generation.number;
                self.oracle.borrow_mut().end_copy(number, Some(generation));
            }
        }
        Ok(())
    }

    /// Writes some keys of the bulk keyspace, and ingests all of them after that.
    async fn ingest(&self) -> Result<(), Trouble> {
        let keyspace = self.db.keyspace_async(BULK, KeyspaceOptions::default()).await;
        let keyspace = keyspace.map_err(doing("making the bulk keyspace"))?;
        let round = self.oracle.borrow_mut().begin_round();
        let buffered = WriteOptions::durability(Durability::Buffered);
        let step = 1 + round as usize % 9;
        for key in (0..BULK_KEYS).step_by(step).take(round as usize % 4) {
            let value = bulk_value(round, true);
            let written = keyspace.insert_async(bulk_key(key), value, buffered).await;
            written.map_err(doing("writing before an ingest"))?;
        }
        let all = (0..BULK_KEYS).map(|key| (bulk_key(key), bulk_value(round, false)));
        keyspace.ingest_async(all).await.map_err(doing("ingesting"))?;
        self.oracle.borrow_mut().end_round(round);
        Ok(())
    }

    async fn create(&self, name: usize) -> Result<(), Trouble> {
        if self.db.find_keyspace(NAMES[name]).is_some() {
            return Ok(());
        }
        let (incarnation, number) = {
            let mut oracle = self.oracle.borrow_mut();
            let incarnation = oracle.draw_incarnation();
            let name = NAMES[name].to_owned();
            (incarnation, oracle.submit(Effect::Create { name, incarnation }))
        };
        let options = keyspace_options(name);
        let keyspace = self.db.keyspace_async(NAMES[name], options).await;
        let keyspace = keyspace.map_err(doing("creating a keyspace"))?;
        self.answered(number, Durability::Synced);
        self.slots.borrow_mut().insert(name, Slot { keyspace, incarnation, dropped: false });
        Ok(())
    }

    async fn drop_keyspace(&self, name: usize) -> Result<(), Trouble> {
        if self.db.find_keyspace(NAMES[name]).is_none() {
            return Ok(());
        }
        let effect = Effect::Drop { name: NAMES[name].to_owned() };
        let number = self.oracle.borrow_mut().submit(effect);
        let dropped = self.db.drop_keyspace_async(NAMES[name]).await;
        dropped.map_err(doing("dropping a keyspace"))?;
        self.answered(number, Durability::Synced);
        let nested = format!("{}/", NAMES[name]);
        for (other, slot) in self.slots.borrow_mut().iter_mut() {
            slot.dropped |= *other == name || NAMES[*other].starts_with(&nested);
        }
        Ok(())
    }

    fn answered(&self, number: usize, durability: Durability) {
        self.oracle.borrow_mut().answer(number, durability, self.env.clock.now());
    }

    /// Submits a batch. From the oracle's entry to the engine's queue nothing else can happen: the
    /// future is polled in the same step.
    async fn write(&self, edits: &[Edit], durability: Durability) -> Result<(), Trouble> {
        let options = WriteOptions::durability(durability);
        let number = self.oracle.borrow().submitted();
        let changes = self.changes(edits, number);
        if changes.is_empty() {
            return Ok(());
        }
        let noted = changes.iter().map(|(slot, change)| (slot.incarnation, change.clone()));
        self.oracle.borrow_mut().submit(Effect::Batch(noted.collect()));
        let result = match &changes[..] {
            // A single change goes by the call made for it, every other time.
            [(slot, change)] if number.is_multiple_of(2) && self.is_simple(slot, change) => {
                let keyspace = &slot.keyspace;
                match change {
                    Change::Put(key, value) => {
                        keyspace.insert_async(key, &value.bytes, options).await
                    }
                    Change::Merge(key, operand) => {
                        keyspace.merge_async(key, operand, options).await
                    }
                    Change::Remove(key) => keyspace.remove_async(key, options).await,
                    Change::RemoveRange(start, end) => {
                        keyspace.remove_range_async(&start[..]..&end[..], options).await
                    }
                    Change::Clear => keyspace.remove_range_async::<&[u8]>(.., options).await,
                }
            }
            _ => self.db.write_async(batch(&changes), options).await,
        };
        match result {
            Err(Error::InvalidInput(_)) if changes.iter().any(|(slot, _)| slot.dropped) => {
                self.oracle.borrow_mut().refuse(number);
                Ok(())
            }
            result => {
                result.map_err(doing("writing"))?;
                self.answered(number, durability);
                Ok(())
            }
        }
    }

    /// Returns whether the calls for one change can express it.
    fn is_simple(&self, slot: &Slot, change: &Change) -> bool {
        let Change::Put(_, value) = change else { return true };
        let ttl = slot.keyspace.options().ttl;
        let default = ttl.map(|ttl| self.env.clock.wall().0 + ttl.as_millis() as u64);
        value.deadline == default
    }

    /// Turns edits into changes of the keyspaces that are known.
    fn changes(&self, edits: &[Edit], number: usize) -> Vec<(Slot, Change)> {
        let slots = self.slots.borrow();
        let now = self.env.clock.wall().0;
        let mut changes = Vec::new();
        for (index, edit) in edits.iter().enumerate() {
            let (name, change) = match edit {
                Edit::Put(name, key, len, ttl) => {
                    let bytes = content(number, index, self.number, *len).into();
                    let ttl = ttl.or((*name == NAMES.len() - 1).then_some(FLEETING));
                    let deadline = ttl.map(|ttl| now + ttl.as_millis() as u64);
                    (name, Change::Put(key.clone(), Value { bytes, deadline }))
                }
                Edit::Merge(key, len) => {
                    let bytes = content(number, index, self.number, *len).into();
                    (&TALLY, Change::Merge(key.clone(), bytes))
                }
                Edit::Remove(name, key) => (name, Change::Remove(key.clone())),
                // An empty range is not logged, so it has no place in the order.
                Edit::RemoveRange(_, start, end) if start >= end => continue,
                Edit::RemoveRange(name, start, end) => {
                    (name, Change::RemoveRange(start.clone(), end.clone()))
                }
                Edit::Clear(name) => (name, Change::Clear),
            };
            if let Some(slot) = slots.get(name) {
                changes.push((slot.clone(), change));
            }
        }
        changes
    }

    async fn read_all(self: Rc<Self>, times: usize, mut prng: Prng) -> Result<(), Trouble> {
        for _ in 0..times {
            self.read(&mut prng).await?;
        }
        Ok(())
    }

    /// Looks at the first keyspace while others write: what a snapshot shows is a prefix, and
    /// stays.
    async fn read(&self, prng: &mut Prng) -> Result<(), Trouble> {
        self.env.clock.sleep(Duration::from_micros(prng.range(10..20_000))).await;
        let Some(slot) = self.slots.borrow().get(&0).cloned() else { return Ok(()) };
        let snapshot = self.db.snapshot();
        let (lowest, highest) = {
            let oracle = self.oracle.borrow();
            (oracle.answered(), oracle.submitted())
        };
        for backward in [prng.chance(0.5), prng.chance(0.5)] {
            let from = self.env.clock.wall().0;
            let cursor = snapshot.cursor::<&[u8]>(&slot.keyspace, ..);
            let found = rows(cursor, backward).await.map_err(doing("scanning a snapshot"))?;
            let window = Window { from, to: self.env.clock.wall().0 };
            let explained = self.oracle.borrow().explain(lowest, highest, |state| {
                let space = state.spaces.values().find(|s| s.incarnation == slot.incarnation)?;
                match backward {
                    true => compare(space.keys.iter().rev(), &found, window, true),
                    false => compare(space.keys.iter(), &found, window, false),
                }
            });
            explained.map_err(|why| Trouble::Wrong(format!("a scan of a snapshot: {why}")))?;
            self.env.clock.sleep(Duration::from_micros(prng.range(0..40_000))).await;
        }
        Ok(())
    }
}

/// Builds the batch of some changes.
fn batch(changes: &[(Slot, Change)]) -> Batch {
    let mut batch = Batch::new();
    for (Slot { keyspace, .. }, change) in changes {
        match change {
            Change::Put(key, Value { bytes, deadline: Some(deadline) }) => {
                batch.insert_expiring(keyspace, key, bytes, *deadline)
            }
            Change::Put(key, Value { bytes, deadline: None }) => {
                batch.insert_lasting(keyspace, key, bytes)
            }
            Change::Merge(key, operand) => batch.merge(keyspace, key, operand),
            Change::Remove(key) => batch.remove(keyspace, key),
            Change::RemoveRange(start, end) => batch.remove_range(keyspace, start, end),
            Change::Clear => batch.clear(keyspace),
        };
    }
    batch
}
