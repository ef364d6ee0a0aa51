//! The commit: how the writes of a transaction become one event.
//!
//! ```text
//!   coordinator        oracle      shard R (only read)   shard P (primary)      shard W
//!       |---- commit point C ->|          |                     |                  |
//!   1   |---- Validate up to C ---------->|  raises max_read    |                  |
//!   2   |---- Prewrite + record Staged(C) --------------------->| intents, record  |
//!       |---- Prewrite ----------------------------------------------------------->| intents
//!       |<--- Prewritten(min) -----------------------------------------------------|
//!   3   | all in place, none above C: this IS the commit. Answer the client.
//!       |
//!   4   |---- Finish Committed: so do the intents beside it --->| (background)     |
//!   5   |---- Resolve: intents become versions ----------------------------------->|
//!   6   |---- Forget, with others ----------------------------->|                  |
//! ```
//!
//! # Why the answer may leave at 3
//! Everything that decides is in replicated logs by then: the record names all keys, every key has
//! its intent, and no intent lies above the timestamp of the record. Whoever finds any of it later
//! can work out the same result from it (`recovery.rs`), and nobody can take it back: an intent goes
//! only after the record is decided, and the record can be decided in one way only. So steps 4 to 6
//! tell nothing new; they spare others the work of finding out.
//!
//! # The order of 1 and 2
//! Once the last intent is in place the transaction *is* committed, whether its coordinator lives to
//! say so or not. What it read has to be known to hold by then. Hence every shard that was only read
//! is validated before anything is staged (in parallel it would be wrong), and the shards that are
//! written validate their reads in the step that places their intents.
//!
//! # Pushed
//! A key may have been read by others at or above C; then its intent lies above C. A snapshot
//! transaction commits at the highest of its intents, wherever that is. A serializable one has
//! validated its reads only up to C: it validates all of them again up to the highest intent T,
//! moves the record from C to T, and then it is committed. Recovery that comes in between finds an
//! intent above the record and aborts; one of the two wins at the record.
//!
//! # Refused, or not answered
//! A prewrite that failed is not yet an abort: others are in place, it may itself be, and somebody
//! may be recovering the transaction this moment. It is an abort once the record says so, and only
//! then it is told. An answer that was lost is asked for in the same way as by any stranger: by
//! recovery. (If every answer has come and one was a refusal, no other end is possible any more; the
//! record then tells those who meet the intents, who would wait for us otherwise.)
//!
//! # One shard
//! If all that was read and is written lies on one shard, one request does everything in one step
//! of that shard. Its entry leaves a record, to be asked for if the answer is lost.
//!
//! # One log
//! Shards of one store write one log. A power cut leaves a first part of it, so of the steps above,
//! each of which is decided after the one before is logged, it leaves a first part too: the state of a
//! transaction whose coordinator died at that moment, which recovery is made for. Hence steps 4 to 6 need
//! no sync of their own, and a transaction that need not survive a power cut
//! ([`Transaction::set_lasting`]) needs none at all: some of its intents may be cut off, then recovery
//! finds one missing, and nothing of it has happened. What others have read of it came later in the same
//! log and goes first; what a transaction wrote to *another* log after it had read it may stay, as with
//! every write that was acknowledged unsynced.
//!
//! Over several logs this does not hold: a cut may leave the record that says committed and take an
//! intent, or a record that is gone and an intent that is back. There each step is durable before the
//! next is taken.
//!
//! # Two rounds
//! A transaction of very many keys does not name them all in a record. It stages none: its intents
//! are placed, and then a record `Committed` is written where there must be none. Who meets an
//! intent before that and takes the coordinator for dead writes `Aborted` in the same place.

use std::sync::Arc;

use atoll_env::sometimes;
use atoll_mvcc::request::{Isolation, Key, Outcome, ReadSet, Record, Request, Response, Write};
use atoll_mvcc::{Timestamp, TxnId};

use crate::buffer::{Part, Parts};
use crate::cleaner::{Ended, Staged, Work};
use crate::coordinator::Core;
use crate::error::{Abort, Doubt, Error, Unavailable};
use crate::join::join_all;
use crate::mutants;
use crate::oracle::Oracle;
use crate::recovery::{nonsense, recover};
use crate::shards::{Shards, ask, tell};
use crate::transaction::Transaction;

impl<S: Shards, O: Oracle> Transaction<S, O> {
    /// Commits; returns the moment at which everything happened.
    ///
    /// # Errors
    /// `Aborted`: nothing has happened. `Unknown`: ask again by the doubt. `Unavailable`: nothing
    /// has happened, since no point in time could be had.
    pub async fn commit(mut self) -> Result<Timestamp, Error> {
        let _busy = self.enter()?;
        let core = self.core().clone();
        let committed = if self.writes.is_empty() {
            self.commit_reads(&core).await
        } else {
            self.commit_writes(&core).await
        };
        match committed {
            Ok(ts) => Ok(ts),
            Err(Error::Aborted(why)) => Err(self.abort(why)),
            Err(error) => {
                if matches!(error, Error::Unknown(_)) {
                    core.stats.unknown.add(1);
                }
                Err(error)
            }
        }
    }

    /// Commits a transaction that wrote nothing: its reads are of one moment already, except those
    /// that looked past it under locks.
    async fn commit_reads(&mut self, core: &Arc<Core<S, O>>) -> Result<Timestamp, Error> {
        let mut at = self.read_ts;
        if self.isolation == Isolation::Serializable && !self.locked.is_empty() {
            let now = core.oracle.read_point().await?;
            validate(core, self.id, self.parts(false), self.read_ts.unwrap_or(now), now).await?;
            at = Some(now);
        }
        core.stats.read_only.add(1);
        self.hand_over(Work::Unlock);
        // One that read nothing has happened at any moment.
        Ok(at.unwrap_or_else(|| core.oracle.known()))
    }

    async fn commit_writes(&mut self, core: &Arc<Core<S, O>>) -> Result<Timestamp, Error> {
        let commit_ts = core.oracle.commit_point().await?;
        self.life.commit(commit_ts);
        // Read committed checks what it locked; it has no moment of its own.
        let read_ts = self.read_ts.filter(|_| self.isolation != Isolation::ReadCommitted);
        let mut backoff = core.backoff(core.options.commit);
        loop {
            let parts = self.parts(true).0;
            let [only] = parts.as_slice() else {
                return self.commit_many(core, parts, read_ts, commit_ts).await;
            };
            let request = Request::Commit {
                txn: self.id,
                isolation: self.isolation,
                read_ts,
                reads: Arc::new(only.reads.clone()),
                writes: self.writes_of(&only.writes),
                commit_ts,
            };
            // One entry is all of it or nothing.
            let why = match tell(&core.shards, !self.lasting, request).await {
                Response::Committed(ts) => {
                    core.stats.one_shard.add(1);
                    // The shard has given back the locks that it knew of.
                    let elsewhere = |key: &&Key| core.shards.shard_of(key) != only.shard;
                    let gone: Vec<Key> =
                        self.locked.keys().filter(|key| !elsewhere(key)).cloned().collect();
                    self.life.remove_locks(&gone);
                    self.hand_over(Work::Unlock);
                    return Ok(ts);
                }
                Response::Blocked(obstacles) => {
                    core.clear_way_briefly(&obstacles).await?;
                    continue;
                }
                Response::Refused(refusal) => return Err(Error::Aborted(refusal.into())),
                Response::NotMine => "a shard is moving".to_owned(),
                Response::Unavailable(why) => why,
                Response::Unknown if mutants::is("resend-under-new-id") => {
                    self.id = TxnId(self.id.0.wrapping_add(1));
                    continue;
                }
                Response::Unknown => {
                    let staged = self.staged(commit_ts);
                    return match self.settle(core, &staged).await? {
                        Outcome::Committed(ts) => {
                            core.stats.one_shard.add(1);
                            self.hand_over(Work::Unlock);
                            Ok(ts)
                        }
                        Outcome::Aborted => Err(Error::Aborted(Abort::Lost)),
                    };
                }
                other => return Err(nonsense("Commit", &other).into()),
            };
            if backoff.pause(&why).await.is_err() {
                return Err(Error::Aborted(Abort::Unavailable(why)));
            }
        }
    }

    async fn commit_many(
        &mut self,
        core: &Arc<Core<S, O>>,
        parts: Vec<Part>,
        read_ts: Option<Timestamp>,
        commit_ts: Timestamp,
    ) -> Result<Timestamp, Error> {
        let (written, only_read): (Vec<Part>, Vec<Part>) =
            parts.into_iter().partition(|part| !part.writes.is_empty());
        let moment = read_ts.unwrap_or(commit_ts);
        let late = mutants::is("validate-after-staging");
        if !late {
            validate(core, self.id, Parts(only_read.clone()), moment, commit_ts).await?;
        }

        let staged = self.staged(commit_ts);
        let options = &core.options;
        let in_one_round = staged.keys.len() <= options.staged_keys_max
            && written.len() <= options.staged_shards_max;
        let record = in_one_round.then(|| Record::Staged {
            commit_ts,
            isolation: self.isolation,
            keys: staged.keys.clone(),
        });
        // See the head of this file.
        let lightly = staged.one_log && !self.lasting;
        // From here on somebody has to decide the transaction, whatever becomes of this future.
        self.staged = Some(staged.clone());
        self.life.stage(staged.primary());
        let prewrite =
            Prewrite { transaction: self, core, read_ts, staged: &staged, record, lightly };
        let placed = join_all(written.into_iter().map(|part| prewrite.place(part))).await;

        let mut highest = commit_ts;
        let mut refused = None;
        let mut lost = false;
        for placed in placed {
            match placed {
                Ok(min) => highest = highest.max(min),
                Err(NotPlaced::Refused(why)) => refused = Some(why),
                Err(NotPlaced::Lost) => lost = true,
            }
        }
        if refused.is_none() && !lost && late {
            let late = validate(core, self.id, Parts(only_read), moment, commit_ts).await;
            refused = late.err();
        }
        if lost && mutants::is("abort-without-record") {
            return Err(Error::Aborted(Abort::Lost));
        }
        if lost {
            return self.end_by_record(core, staged).await;
        }
        if let Some(why) = refused {
            return self.refuse(core, staged, in_one_round, why).await;
        }

        let mut record_at = commit_ts;
        let mut ts = highest;
        if self.isolation != Isolation::Serializable {
            if mutants::is("snapshot-at-commit-point") {
                ts = commit_ts;
            }
        } else if highest > commit_ts {
            sometimes!(true, "a transaction is moved to a later time");
            core.stats.pushed.add(1);
            let all = self.parts(true);
            if !mutants::is("no-refresh")
                && let Err(why) = validate(core, self.id, all, moment, highest).await
            {
                return self.refuse(core, staged, in_one_round, why).await;
            }
            if in_one_round && !mutants::is("no-restage") {
                let restage = Request::Restage {
                    txn: self.id,
                    primary: staged.primary().clone(),
                    from: commit_ts,
                    to: highest,
                };
                match tell(&core.shards, lightly, restage).await {
                    Response::Done => record_at = highest,
                    // Somebody is recovering us, or nobody knows: the record decides.
                    _ => return self.end_by_record(core, staged).await,
                }
            }
        }
        if in_one_round {
            // The commit point: everything is in place.
            core.stats.many_shards.add(1);
            self.end(Ended::new(staged, Outcome::Committed(ts), Some(record_at)));
            return Ok(ts);
        }
        let finish = Request::Finish {
            txn: self.id,
            primary: staged.primary().clone(),
            expect: None,
            outcome: Outcome::Committed(ts),
            stamp: commit_ts,
            keys: Vec::new(),
        };
        match tell(&core.shards, lightly, finish).await {
            Response::Done => {
                core.stats.two_rounds.add(1);
                self.end(Ended::new(staged, Outcome::Committed(ts), None));
                Ok(ts)
            }
            _ => self.end_by_record(core, staged).await,
        }
    }

    /// Aborts a transaction of which something may be staged: by its record, then tells.
    async fn refuse(
        &mut self,
        core: &Arc<Core<S, O>>,
        staged: Staged,
        has_record: bool,
        why: Abort,
    ) -> Result<Timestamp, Error> {
        if mutants::is("abort-without-record") {
            return Err(Error::Aborted(why));
        }
        let mut expect = has_record.then_some(staged.commit_ts);
        let mut backoff = core.backoff(core.options.commit);
        loop {
            let finish = || Request::Finish {
                txn: self.id,
                primary: staged.primary().clone(),
                expect,
                outcome: Outcome::Aborted,
                stamp: staged.commit_ts,
                keys: Vec::new(),
            };
            let Ok(answer) = ask(&core.shards, false, &mut backoff, finish).await else {
                return Err(self.doubt(&staged));
            };
            match answer {
                Response::Done | Response::Record { record: Some(Record::Aborted), .. } => {
                    self.end(Ended::new(staged, Outcome::Aborted, None));
                    return Err(Error::Aborted(why));
                }
                Response::Record { record: Some(Record::Committed(ts)), .. } => {
                    // All of it was in place after all, and somebody has helped.
                    self.end(Ended::new(staged, Outcome::Committed(ts), None));
                    return Ok(ts);
                }
                Response::Record { record: Some(Record::Staged { commit_ts, .. }), .. } => {
                    expect = Some(commit_ts);
                }
                Response::Record { record: None, .. } => expect = None,
                other => return Err(nonsense("Finish", &other).into()),
            }
        }
    }

    /// Ends a transaction whose state is not known, by recovery.
    async fn end_by_record(
        &mut self,
        core: &Arc<Core<S, O>>,
        staged: Staged,
    ) -> Result<Timestamp, Error> {
        let outcome = self.settle(core, &staged).await?;
        self.end(Ended::new(staged, outcome, None));
        match outcome {
            Outcome::Committed(ts) => {
                core.stats.many_shards.add(1);
                Ok(ts)
            }
            Outcome::Aborted => Err(Error::Aborted(Abort::Lost)),
        }
    }

    async fn settle(&mut self, core: &Arc<Core<S, O>>, staged: &Staged) -> Result<Outcome, Error> {
        if mutants::is("lost-is-aborted") {
            return Ok(Outcome::Aborted);
        }
        sometimes!(true, "a commit's answer is lost and its outcome asked for");
        core.stats.settled.add(1);
        let (primary, commit_ts) = (staged.primary(), staged.commit_ts);
        let mut backoff = core.backoff(core.options.commit);
        match recover(&core.shards, &mut backoff, self.id, primary, commit_ts).await {
            Ok(outcome) => {
                let committed = matches!(outcome, Outcome::Committed(_));
                core.stats.settled_committed.add(u64::from(committed));
                Ok(outcome)
            }
            Err(Unavailable(_)) => Err(self.doubt(staged)),
        }
    }

    /// Leaves the transaction to the background, and the caller in doubt.
    fn doubt(&mut self, staged: &Staged) -> Error {
        self.staged = None;
        self.hand_over(Work::Settle(staged.clone()));
        let (primary, commit_ts) = (staged.primary().clone(), staged.commit_ts);
        Error::Unknown(Doubt { txn: self.id, primary, commit_ts })
    }

    /// The end is known and may be told; the rest goes on in the background.
    fn end(&mut self, ended: Ended) {
        self.staged = None;
        if ended.outcome == Outcome::Aborted {
            self.core().stats.aborted.add(1);
            self.aborted = Some(Abort::Fenced);
        }
        self.hand_over(Work::Clean(ended));
    }

    fn staged(&self, commit_ts: Timestamp) -> Staged {
        let keys: Arc<[Key]> = self.writes.values().keys().cloned().collect();
        assert!(!keys.is_empty(), "invariant: only transactions that write commit so");
        let one_log = self.core().shards.share_log(keys.iter());
        Staged { keys, commit_ts, one_log }
    }

    fn writes_of(&self, keys: &[Key]) -> Vec<Write> {
        let write =
            |key: &Key| Write { key: key.clone(), value: self.writes.get(key).cloned().flatten() };
        keys.iter().map(write).collect()
    }
}

/// The prewrites of one transaction.
struct Prewrite<'a, S: Shards, O: Oracle> {
    transaction: &'a Transaction<S, O>,
    core: &'a Core<S, O>,
    read_ts: Option<Timestamp>,
    staged: &'a Staged,
    /// Goes with the primary key.
    record: Option<Record>,
    /// Intents need not survive a power cut.
    lightly: bool,
}

/// What is written to one shard, and what was read there.
struct WrittenPart {
    reads: Arc<ReadSet>,
    writes: Vec<Key>,
}

impl WrittenPart {
    fn of(part: Part) -> WrittenPart {
        WrittenPart { reads: Arc::new(part.reads), writes: part.writes }
    }
}

/// Why a part has no intents, as far as is known.
enum NotPlaced {
    /// A shard refused.
    Refused(Abort),
    /// Nobody knows.
    Lost,
}

impl<S: Shards, O: Oracle> Prewrite<'_, S, O> {
    /// Places the intents of one part; returns the highest of their timestamps.
    async fn place(&self, part: Part) -> Result<Timestamp, NotPlaced> {
        let Prewrite { core, staged, .. } = self;
        let mut backoff = core.backoff(core.options.commit);
        let mut highest = staged.commit_ts;
        let mut open = vec![WrittenPart::of(part)];
        while let Some(part) = open.pop() {
            let has_primary = part.writes.binary_search(staged.primary()).is_ok();
            let request = Request::Prewrite {
                txn: self.transaction.id,
                isolation: self.transaction.isolation,
                read_ts: self.read_ts,
                reads: part.reads.clone(),
                writes: self.transaction.writes_of(&part.writes),
                commit_ts: staged.commit_ts,
                primary: staged.primary().clone(),
                record: self.record.clone().filter(|_| has_primary),
            };
            let why = match tell(&core.shards, self.lightly, request).await {
                Response::Prewritten(min) => {
                    highest = highest.max(min);
                    continue;
                }
                Response::Refused(refusal) => return Err(NotPlaced::Refused(refusal.into())),
                Response::Unknown => return Err(NotPlaced::Lost),
                Response::Blocked(obstacles) => {
                    core.clear_way_briefly(&obstacles).await.map_err(NotPlaced::Refused)?;
                    open.push(part);
                    continue;
                }
                Response::NotMine => {
                    if backoff.is_over() {
                        return Err(NotPlaced::Refused(Abort::Unavailable("it is moving".into())));
                    }
                    let _ = backoff.pause("it is moving").await;
                    let mut again = Parts::default();
                    again.again(&core.shards, &part.writes, &part.reads);
                    // What is now read on another shard than it is written with must be known to
                    // hold before this part's last intent is placed.
                    let (written, only_read): (Vec<Part>, Vec<Part>) =
                        again.0.into_iter().partition(|part| !part.writes.is_empty());
                    let moment = self.read_ts.unwrap_or(staged.commit_ts);
                    let txn = self.transaction.id;
                    validate(core, txn, Parts(only_read), moment, staged.commit_ts)
                        .await
                        .map_err(NotPlaced::Refused)?;
                    open.extend(written.into_iter().map(WrittenPart::of));
                    continue;
                }
                Response::Unavailable(why) => why,
                other => {
                    let Unavailable(why) = nonsense("Prewrite", &other);
                    return Err(NotPlaced::Refused(Abort::Unavailable(why)));
                }
            };
            if backoff.pause(&why).await.is_err() {
                return Err(NotPlaced::Refused(Abort::Unavailable(why)));
            }
            open.push(part);
        }
        Ok(highest)
    }
}

/// Makes sure that reads hold up to the moment `at`, and for ever after.
pub(crate) async fn validate<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    txn: TxnId,
    parts: Parts,
    read_ts: Timestamp,
    at: Timestamp,
) -> Result<(), Abort> {
    let mut backoff = core.backoff(core.options.commit);
    let mut open: Vec<Part> = parts.0;
    loop {
        open.retain(|part| !part.reads.is_empty());
        if open.is_empty() {
            return Ok(());
        }
        let ask = |reads: &ReadSet| Request::Validate { txn, reads: reads.clone(), read_ts, at };
        let answers = join_all(open.iter().map(|part| core.shards.send(ask(&part.reads)))).await;
        let mut again = Parts::default();
        let mut wait = None;
        for (part, answer) in open.into_iter().zip(answers) {
            match answer {
                Response::Done => continue,
                Response::Refused(refusal) => return Err(refusal.into()),
                Response::Blocked(obstacles) => core.clear_way_briefly(&obstacles).await?,
                Response::NotMine => wait = Some("a shard is moving".to_owned()),
                Response::Unknown => wait = Some("a shard has lost its leader".to_owned()),
                Response::Unavailable(why) => wait = Some(why),
                other => return Err(Abort::Unavailable(nonsense("Validate", &other).0)),
            }
            again.again(&core.shards, &[], &part.reads);
        }
        open = again.0;
        if let Some(why) = wait
            && backoff.pause(&why).await.is_err()
        {
            return Err(Abort::Unavailable(why));
        }
    }
}
