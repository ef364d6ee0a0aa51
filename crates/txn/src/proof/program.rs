//! The programs: what the clients of a schedule do.
//!
//! A program is drawn step by step from its own random stream, so that what it does next may depend
//! on what it found without changing what others do.

use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sim::Node;
use atoll_mvcc::Timestamp;
use atoll_mvcc::request::{Isolation, Key, Span, Write};

use super::journal::{Journal, Kind, Own, Read, Told};
use super::{Cluster, Fast, FastAnswer, Knobs, Weather};
use crate::join::join_all;
use crate::{Abort, Coordinator, Error, LocalOracle, ScanOptions, Shards, Transaction};

/// One client.
pub(super) struct Program<C: Cluster> {
    pub(super) cluster: C,
    pub(super) coordinator: Coordinator<C::Shards, LocalOracle>,
    pub(super) oracle: LocalOracle,
    pub(super) env: Env,
    pub(super) node: Node,
    pub(super) journal: Rc<Journal>,
    pub(super) knobs: Rc<Knobs>,
    pub(super) prng: Prng,
}

type Txn<C> = Transaction<<C as Cluster>::Shards, LocalOracle>;

impl<C: Cluster> Program<C> {
    /// Runs its transactions one after the other.
    pub(super) async fn run(mut self) {
        for _ in 0..self.prng.range(1..self.knobs.transactions + 1) {
            let wait = Duration::from_micros(self.prng.below(self.knobs.spread_us));
            self.env.clock.sleep(wait).await;
            if self.prng.chance(self.knobs.fast) {
                self.fast().await;
            } else if self.prng.chance(self.knobs.stale) {
                self.stale().await;
            } else if self.prng.chance(0.2) {
                self.repeated().await;
            } else {
                self.once().await;
            }
        }
    }

    fn isolation(&mut self) -> Isolation {
        *self.prng.choose(&self.knobs.isolations).unwrap_or(&Isolation::Serializable)
    }

    /// One transaction, begun and committed by hand.
    async fn once(&mut self) {
        let isolation = self.isolation();
        let entry = self.journal.begin(Kind::Ordinary(isolation));
        let mut txn = self.coordinator.begin(isolation);
        match self.body(&mut txn, entry).await {
            Ok(()) if self.prng.chance(0.05) => {
                txn.rollback();
                self.journal.tell(entry, Told::GivenUp);
            }
            Ok(()) => {
                if self.prng.chance(self.knobs.deaths_in_commit) {
                    self.die_soon();
                }
                let committed = txn.commit().await;
                self.tell(entry, committed);
            }
            Err(error) => self.tell(entry, Err(error)),
        }
    }

    /// Lets the coordinator die about when its commit is decided.
    fn die_soon(&mut self) {
        let Weather { network_us, apply_us, .. } = self.knobs.weather;
        let after = Duration::from_micros(self.prng.below(6 * network_us + 2 * apply_us));
        let (node, clock) = (self.node.clone(), self.env.clock.clone());
        self.env.tasks.spawn_local(
            "die",
            Box::pin(async move {
                clock.sleep(after).await;
                node.crash();
            }),
        );
    }

    /// A transaction run again until it commits.
    async fn repeated(&mut self) {
        let isolation = self.isolation();
        let coordinator = self.coordinator.clone();
        let mut last = None;
        let ended = coordinator
            .run(isolation, async |txn: &mut Txn<C>| {
                if let Some(before) = last.take() {
                    // Its program was never told; nothing of it may be there.
                    self.journal.tell(before, Told::GivenUp);
                }
                let entry = self.journal.begin(Kind::Ordinary(isolation));
                last = Some(entry);
                self.body(txn, entry).await
            })
            .await;
        if let Some(entry) = last {
            self.tell(entry, ended.map(|((), ts)| ts));
        }
    }

    fn tell(&self, entry: usize, ended: Result<Timestamp, Error>) {
        if let Err(Error::Aborted(Abort::LockTimeout(key))) = &ended {
            self.journal.is_wrong(format!("the lock on {key:?} was not free in time: {entry}"));
        }
        let at_once = self.journal.with(entry, |entry| entry.locked_at_once);
        let all_in_order =
            self.knobs.updates == 0.0 && !self.knobs.isolations.contains(&Isolation::ReadCommitted);
        // Where a leader takes its locks with it, or an answer is lost and the lock asked for again,
        // others may have come between.
        let in_order = at_once && all_in_order && self.knobs.is_calm();
        if in_order && ended == Err(Error::Aborted(Abort::Deadlock)) {
            self.journal.is_wrong("a command that locks all at once was in a deadlock".into());
        }
        // Who has locked what he needs is not sent back, unless his locks were lost. (With several
        // shards he stages intents, and whoever meets them may give him up.)
        let locked_all = self.journal.with(entry, |entry| entry.locked_all);
        if let Err(Error::Aborted(Abort::WriteConflict(key) | Abort::ReadConflict(key))) = &ended
            && locked_all
            && self.knobs.is_calm()
        {
            self.journal.is_wrong(format!("the lock on {key:?} held nobody off: {entry}"));
        }
        let told = match ended {
            Ok(ts) => Told::Committed(ts),
            Err(Error::Aborted(why)) => Told::Aborted(why),
            Err(Error::Unknown(doubt)) => Told::Unknown(doubt),
            Err(Error::Unavailable(_)) => Told::GivenUp,
            Err(error) => {
                self.journal.is_wrong(format!("a program was told: {error}"));
                Told::GivenUp
            }
        };
        self.journal.tell(entry, told);
    }

    /// Reads at a moment of the past.
    async fn stale(&mut self) {
        // Some moments are so long past that they may lie below the safepoint.
        let most = if self.prng.chance(0.3) { 5_000_000 } else { 5_000 };
        let back = self.prng.below(most);
        let last = self.oracle.last();
        let at = Timestamp::read_at(atoll_mvcc::Epoch(last.0.saturating_sub(back)));
        let entry = self.journal.begin(Kind::Stale);
        let Ok(mut txn) = self.coordinator.begin_at(at) else {
            self.journal.is_wrong("a moment of the past was taken for the future".into());
            return;
        };
        for _ in 0..self.prng.range(1..4) {
            let read = if self.prng.chance(0.3) {
                self.scan(&mut txn, entry, &Own::new()).await
            } else {
                let key = self.key();
                self.get(&mut txn, entry, &Own::new(), key).await
            };
            if let Err(error) = read {
                return self.tell(entry, Err(error));
            }
        }
        let committed = txn.commit().await;
        self.tell(entry, committed);
    }

    fn key(&mut self) -> Key {
        self.knobs.layout.key(self.prng.below(self.knobs.keys))
    }

    /// The steps of one transaction.
    async fn body(&mut self, txn: &mut Txn<C>, entry: usize) -> Result<(), Error> {
        let mut own = Own::new();
        let mut savepoint = None;
        if self.prng.chance(self.knobs.locks) {
            let mut keys: Vec<Key> = (0..self.prng.range(1..4)).map(|_| self.key()).collect();
            keys.dedup();
            self.journal.with(entry, |entry| entry.locked_at_once = true);
            let shards = self.cluster.shards();
            let mut homes = keys.iter().map(|key| shards.shard_of(key).id);
            let first = homes.next();
            let on_one_shard = homes.all(|shard| Some(shard) == first);
            let exclusive = self.prng.chance(0.8);
            let values = txn.lock_all(&keys, exclusive).await?;
            for (key, value) in keys.iter().cloned().zip(values) {
                self.note(entry, Read::Locked { key, value });
            }
            if !self.prng.chance(0.2) {
                for key in keys {
                    if exclusive && self.prng.chance(0.7) {
                        self.put(txn, entry, &mut own, key).await?;
                    }
                }
            }
            if self.prng.chance(0.7) {
                self.journal.with(entry, |entry| entry.locked_all = on_one_shard);
                return Ok(());
            }
        }
        for _ in 0..self.prng.range(1..self.knobs.steps + 1) {
            let key = self.key();
            match self.prng.below(100) {
                0..30 => self.get(txn, entry, &own, key).await?,
                30..37 => self.multi_get(txn, entry, &own).await?,
                37..52 => self.scan(txn, entry, &own).await?,
                52..80 => self.put(txn, entry, &mut own, key).await?,
                80..88 if self.prng.chance(self.knobs.updates) => {
                    self.journal.with(entry, |entry| entry.locked_at_once = false);
                    let value = txn.get_for_update(&key).await?;
                    match own.get(&key) {
                        Some(mine) if *mine != value => self.own_is_wrong(&key),
                        Some(_) => {}
                        None => {
                            self.note(entry, Read::Locked { key: key.clone(), value });
                        }
                    }
                    if self.prng.chance(0.7) {
                        self.put(txn, entry, &mut own, key).await?;
                    }
                }
                88..92 => savepoint = Some((txn.savepoint(), own.clone())),
                92..95 => {
                    if let Some((place, then)) = savepoint.take() {
                        txn.rollback_to(place)?;
                        own = then;
                        self.journal.with(entry, |entry| entry.writes = own.clone());
                    }
                }
                95..97 if self.knobs.statements => txn.begin_statement(),
                _ => {
                    let wait = Duration::from_micros(self.prng.below(2_000));
                    self.env.clock.sleep(wait).await;
                }
            }
        }
        Ok(())
    }

    fn note(&self, entry: usize, read: Read) {
        self.journal.with(entry, |entry| entry.reads.push(read));
    }

    fn own_is_wrong(&self, key: &Key) {
        self.journal.is_wrong(format!("a transaction did not see its own write of {key:?}"));
    }

    /// Notes what was read from shards; returns the moment.
    fn moment(&self, txn: &Txn<C>, entry: usize) -> Timestamp {
        let at = txn.read_ts().unwrap_or_default();
        self.journal.with(entry, |entry| entry.read_ts = Some(at));
        at
    }

    async fn get(
        &mut self,
        txn: &mut Txn<C>,
        entry: usize,
        own: &Own,
        key: Key,
    ) -> Result<(), Error> {
        let value = txn.get(&key).await?;
        match own.get(&key) {
            Some(mine) if *mine != value => self.own_is_wrong(&key),
            Some(_) => {}
            None => {
                let at = self.moment(txn, entry);
                self.note(entry, Read::Key { at, key, value });
            }
        }
        Ok(())
    }

    async fn multi_get(&mut self, txn: &mut Txn<C>, entry: usize, own: &Own) -> Result<(), Error> {
        let keys: Vec<Key> = (0..self.prng.range(1..4)).map(|_| self.key()).collect();
        let values = txn.multi_get(&keys).await?;
        for (key, value) in keys.into_iter().zip(values) {
            match own.get(&key) {
                Some(mine) if *mine != value => self.own_is_wrong(&key),
                Some(_) => {}
                None => {
                    let at = self.moment(txn, entry);
                    self.note(entry, Read::Key { at, key, value });
                }
            }
        }
        Ok(())
    }

    async fn scan(&mut self, txn: &mut Txn<C>, entry: usize, own: &Own) -> Result<(), Error> {
        let (a, b) = (self.key(), self.key());
        let mut end = a.clone().max(b.clone());
        end.push(0);
        let span = Span { start: a.min(b), end };
        let limit = if self.prng.chance(0.5) { usize::MAX } else { self.prng.range(1..4) as usize };
        let reverse = self.prng.chance(0.5);
        let page = txn.scan(span.clone(), ScanOptions { limit, reverse }).await?;
        let at = self.moment(txn, entry);
        let complete = page.more.is_none();
        if !complete && page.rows.len() < limit {
            self.journal.is_wrong("a page ended before its limit and before its range".into());
        }
        let own = own.clone();
        self.note(entry, Read::Scan { at, span, reverse, rows: page.rows, complete, own });
        Ok(())
    }

    async fn put(
        &mut self,
        txn: &mut Txn<C>,
        entry: usize,
        own: &mut Own,
        key: Key,
    ) -> Result<(), Error> {
        // A transaction that only deletes could not be told from others afterwards.
        let delete = own.values().any(Option::is_some) && self.prng.chance(0.25);
        let value = (!delete).then(|| self.journal.value());
        match &value {
            Some(value) => txn.put(&key, value).await?,
            None => txn.delete(&key).await?,
        }
        let others = own.iter().any(|(other, value)| *other != key && value.is_some());
        if delete && !others {
            // The only value was deleted again: give it another.
            let value = self.journal.value();
            txn.put(&key, &value).await?;
            own.insert(key, Some(value));
        } else {
            own.insert(key, value);
        }
        self.journal.with(entry, |entry| entry.writes = own.clone());
        Ok(())
    }

    /// One command of the fast lane, or several that do not wait for each other.
    async fn fast(&mut self) {
        let pipelines = C::PIPELINES && self.prng.chance(0.4);
        let count = if pipelines { self.prng.range(2..5) } else { 1 };
        let commands: Vec<Fast> = (0..count).map(|_| self.command()).collect();
        let first = self.journal.begin(Kind::Fast);
        let entries: Vec<usize> = (0..commands.len())
            .map(|n| if n == 0 { first } else { self.journal.begin(Kind::Fast) })
            .collect();
        for (number, (entry, command)) in entries.iter().zip(&commands).enumerate() {
            self.journal.with(*entry, |entry| {
                let writes = command.writes.iter();
                entry.writes = writes.map(|w| (w.key.clone(), w.value.clone())).collect();
                entry.place = (pipelines && self.knobs.splits == 0).then_some((first, number));
            });
        }
        for _ in 0..20 {
            let answers = self.cluster.fast(commands.clone());
            let told = entries.iter().zip(&commands).zip(answers);
            let told = told.map(async |((entry, command), answer)| {
                let answer = answer.await;
                match &answer {
                    FastAnswer::Done { at, values } => {
                        for (key, value) in command.reads.iter().cloned().zip(values.clone()) {
                            self.note(*entry, Read::Key { at: at.ts, key, value });
                        }
                        self.journal.with(*entry, |entry| entry.moment = Some(*at));
                        self.journal.tell(*entry, Told::Committed(at.ts));
                    }
                    FastAnswer::Unknown => self.journal.tell(*entry, Told::Lost),
                    _ if pipelines => self.journal.tell(*entry, Told::GivenUp),
                    _ => {}
                }
                answer
            });
            let mut answers = join_all(told).await;
            match answers.pop() {
                _ if pipelines => return,
                Some(FastAnswer::Blocked(obstacles)) => {
                    if self.coordinator.resolve(&obstacles).await.is_err() {
                        break;
                    }
                }
                Some(FastAnswer::NotNow) => self.env.clock.sleep(Duration::from_millis(1)).await,
                _ => return,
            }
        }
        self.journal.tell(first, Told::GivenUp);
    }

    /// Draws a command: it reads, writes, reads and writes, or removes.
    fn command(&mut self) -> Fast {
        let key = self.key();
        let shards = self.cluster.shards();
        let other = self.key();
        let same = shards.shard_of(&key) == shards.shard_of(&other);
        let other = if same { other } else { key.clone() };
        let mut reads = if self.prng.chance(0.6) { vec![key.clone()] } else { Vec::new() };
        if !reads.is_empty() && other != key && self.prng.chance(0.4) {
            reads.push(other.clone());
        }
        let mut writes = Vec::new();
        if reads.is_empty() || self.prng.chance(0.4) {
            let value = (!self.prng.chance(0.2)).then(|| self.journal.value());
            writes.push(Write { key: other.clone(), value });
            if other != key && self.prng.chance(0.3) {
                let value = self.prng.chance(0.7).then(|| self.journal.value());
                writes.push(Write { key, value });
            }
        }
        Fast { reads, writes }
    }
}
