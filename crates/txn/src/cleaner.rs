//! The background: what goes on after the answer has left.
//!
//! | work | what is done | if it never ran |
//! |---|---|---|
//! | clean | `Finish`, in the same entry the intents that lie beside the record, then `Resolve` the others; locks back | whoever meets an intent recovers it |
//! | forget | records of what committed and is clean, many at once | they go when the safepoint has passed them |
//! | settle | find out or decide an end that the handle did not wait for, then as above | the same |
//! | unlock | give locks back | shards drop them after three seconds without a heartbeat |
//! | heartbeat | tell shards that transactions live, end idle ones | transactions are recovered in mid-commit |
//!
//! Every step may be done twice, by us or by others, and every step may fail: it is tried again,
//! for ever, with growing waits. Nothing that a client was told leans on any of it.
//!
//! The order *record, intents, forget* is part of the protocol (`recovery.rs`): an intent that is
//! resolved proves a decided record, and a missing record proves resolved intents. A crash may not
//! change it, so each step is durable before the next is taken, unless all of them go into one log
//! ([`Shards::share_log`]), which keeps the order by itself: then none of them asks for a sync.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use atoll_env::sync::{QueueReceiver, select_biased};
use atoll_mvcc::request::{Key, Outcome, Record, Request, Response};
use atoll_mvcc::{Timestamp, TxnId};
use parking_lot::Mutex;

use crate::coordinator::Core;
use crate::error::{Abort, Unavailable};
use crate::join::{Nursery, join, join_all};
use crate::life::Life;
use crate::oracle::Oracle;
use crate::pace::Backoff;
use crate::recovery::{clear, recover};
use crate::shards::{ShardRef, Shards, ask, ask_each, by_shard};

const RETRY_FIRST: Duration = Duration::from_millis(1);
const RETRY_MOST: Duration = Duration::from_secs(1);
/// So many records are removed at once; fewer at the next heartbeat.
const FORGET_BATCH: usize = 64;
/// How long one attempt of a piece of work keeps asking before it starts over.
const ATTEMPT: Duration = Duration::from_secs(60);

/// A transaction whose handle is done with it.
pub(crate) struct Job {
    pub(crate) life: Arc<Life>,
    pub(crate) work: Work,
}

/// What is left to do for it, besides giving its locks back.
#[derive(Debug)]
pub(crate) enum Work {
    /// Nothing.
    Unlock,
    /// It ended.
    Clean(Ended),
    /// It may be staged; nobody waits for its end.
    Settle(Staged),
}

/// A transaction that may have intents.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    /// All keys that may have one, ascending. The first is the primary.
    pub(crate) keys: Arc<[Key]>,
    pub(crate) commit_ts: Timestamp,
    /// All its shards write one log.
    pub(crate) one_log: bool,
}

impl Staged {
    /// Returns where its record is.
    pub(crate) fn primary(&self) -> &Key {
        &self.keys[0]
    }
}

/// A transaction that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) staged: Staged,
    pub(crate) outcome: Outcome,
    /// What its record says: staged at this timestamp; `None` if it tells the outcome already.
    pub(crate) record: Option<Timestamp>,
    /// Keys whose intents are not resolved; `None`: all.
    pub(crate) left: Option<Vec<Key>>,
}

impl Ended {
    /// Returns what is left to do for a transaction that has ended.
    pub(crate) fn new(staged: Staged, outcome: Outcome, record: Option<Timestamp>) -> Ended {
        Ended { staged, outcome, record, left: None }
    }
}

/// The background work of a coordinator: a future to be run as a task by whoever owns it.
pub struct Background<S: Shards, O: Oracle> {
    pub(crate) core: Arc<Core<S, O>>,
    pub(crate) jobs: QueueReceiver<Job>,
}

impl<S: Shards, O: Oracle> Background<S, O> {
    /// Works until the coordinator and all of its transactions are dropped and their work is done.
    /// Dropping the future leaves the rest to others: see the table above.
    pub async fn run(self) {
        let Background { core, mut jobs } = self;
        let cleaning = async {
            let mut nursery = Nursery::new();
            let mut open = true;
            while open || !nursery.is_empty() {
                let receives = open;
                let mut next = std::pin::pin!(async {
                    if receives { jobs.recv().await } else { std::future::pending().await }
                });
                let job = std::future::poll_fn(|cx| {
                    // The children first: one that ends makes room.
                    let ended = nursery.poll(cx).is_ready();
                    match next.as_mut().poll(cx) {
                        Poll::Ready(job) => Poll::Ready(job),
                        Poll::Pending if ended && !receives => Poll::Ready(None),
                        Poll::Pending => Poll::Pending,
                    }
                })
                .await;
                match job {
                    Some(job) => nursery.add(do_job(core.clone(), job)),
                    None => open = false,
                }
            }
        };
        select_biased(cleaning, beat(&core)).await;
        forget(&core).await;
    }
}

async fn do_job<S: Shards, O: Oracle>(core: Arc<Core<S, O>>, job: Job) {
    let Job { life, mut work } = job;
    // Others wait for the locks: they are given back at once, except those whose keys have intents,
    // which go with them.
    let with_intent: &[Key] = match &work {
        Work::Unlock => &[],
        Work::Clean(Ended { staged, .. }) | Work::Settle(staged) => &staged.keys,
    };
    let mut locks = life.take_locks();
    locks.retain(|key| with_intent.binary_search(key).is_err());
    let unlocking = unlock(&core, life.txn, locks);
    let working = async {
        let mut between = core.pace.backoff(RETRY_FIRST, RETRY_MOST, Duration::MAX);
        loop {
            let mut backoff = core.pace.backoff(RETRY_FIRST, RETRY_MOST, ATTEMPT);
            match attempt(&core, &mut backoff, life.txn, &mut work).await {
                Ok(()) => break,
                Err(Unavailable(why)) => {
                    if between.pause(&why).await.is_err() {
                        break;
                    }
                }
            }
        }
    };
    join(unlocking, working).await;
    core.unregister(life.txn);
    if core.forgettable.lock().len() >= FORGET_BATCH {
        forget(&core).await;
    }
}

async fn attempt<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    backoff: &mut Backoff<'_>,
    txn: TxnId,
    work: &mut Work,
) -> Result<(), Unavailable> {
    let (staged, outcome, left, forget) = match work {
        Work::Unlock => return Ok(()),
        Work::Settle(staged) => {
            let commit_ts = staged.commit_ts;
            let outcome = recover(&core.shards, backoff, txn, staged.primary(), commit_ts).await?;
            // Somebody may hold a doubt about this transaction and ask for its record.
            (&*staged, outcome, staged.keys.to_vec(), false)
        }
        Work::Clean(ended) => {
            if let Some(from) = ended.record {
                let Some(left) = finish(core, backoff, txn, ended, from).await? else {
                    return Ok(());
                };
                (ended.record, ended.left) = (None, Some(left));
            }
            // Those that were resolved are found so if it has to be tried again.
            let left = ended.left.take().unwrap_or_else(|| ended.staged.keys.to_vec());
            (&ended.staged, ended.outcome, left, true)
        }
    };
    if !left.is_empty() {
        clear(&core.shards, backoff, staged.one_log, txn, left, outcome).await?;
    }
    if forget && matches!(outcome, Outcome::Committed(_)) {
        core.forgettable.lock().push((txn, staged.primary().clone()));
    }
    Ok(())
}

/// Makes the record of a transaction that committed by its intents say so, and resolves the intents
/// that lie beside it; returns the keys of the others, `None` if the record says something else, which
/// the protocol excludes.
async fn finish<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    backoff: &mut Backoff<'_>,
    txn: TxnId,
    ended: &Ended,
    from: Timestamp,
) -> Result<Option<Vec<Key>>, Unavailable> {
    let Ended { staged, outcome, .. } = ended;
    // Those that the last question did not name.
    let left = Mutex::new(Vec::new());
    let finish = || {
        let home = core.shards.shard_of(staged.primary());
        let is_beside = |key: &Key| core.shards.shard_of(key) == home;
        let (keys, others) = staged.keys.iter().cloned().partition(is_beside);
        *left.lock() = others;
        Request::Finish {
            txn,
            primary: staged.primary().clone(),
            expect: Some(from),
            outcome: *outcome,
            stamp: staged.commit_ts,
            keys,
        }
    };
    match ask(&core.shards, staged.one_log, backoff, finish).await? {
        Response::Done => Ok(Some(left.into_inner())),
        // Somebody has helped, or our own words came through when the answer did not.
        Response::Record { record: Some(Record::Committed(ts)), .. }
            if *outcome == Outcome::Committed(ts) =>
        {
            Ok(Some(staged.keys.to_vec()))
        }
        _ => {
            // Every intent was in place, so nobody may have decided otherwise. Nothing done here
            // would make it better: what is left is evidence.
            core.stats.broken.add(1);
            Ok(None)
        }
    }
}

/// Has the records removed of transactions that are clean. Not tried again: they go with the safepoint.
async fn forget<S: Shards, O: Oracle>(core: &Core<S, O>) {
    let mut clean = std::mem::take(&mut *core.forgettable.lock());
    clean.sort_unstable_by(|(_, a), (_, b)| a.cmp(b));
    let mut by_shard: Vec<(ShardRef, Vec<(TxnId, Key)>)> = Vec::new();
    for (txn, primary) in clean {
        let shard = core.shards.shard_of(&primary);
        match by_shard.last_mut().filter(|(of, _)| *of == shard) {
            Some((_, txns)) => txns.push((txn, primary)),
            None => by_shard.push((shard, vec![(txn, primary)])),
        }
    }
    let forget = |(_, txns)| core.shards.send_lightly(Request::Forget { txns });
    join_all(by_shard.into_iter().map(forget)).await;
}

/// Gives locks back. Not tried for long: shards drop the locks of a silent transaction anyway.
pub(crate) async fn unlock<S: Shards, O: Oracle>(core: &Core<S, O>, txn: TxnId, locks: Vec<Key>) {
    if !locks.is_empty() {
        let mut backoff = core.pace.backoff(RETRY_FIRST, RETRY_MOST, 3 * core.options.heartbeat);
        // Locks that nobody answers for end by themselves.
        let _ =
            ask_each(&core.shards, true, &mut backoff, locks, |keys| Request::Unlock { txn, keys })
                .await;
    }
}

/// Tells shards what lives and ends what is idle, until dropped.
async fn beat<S: Shards, O: Oracle>(core: &Core<S, O>) {
    let idle = core.options.idle;
    loop {
        core.pace.clock.sleep(core.options.heartbeat).await;
        let now = core.pace.clock.now().0;
        let deadline = now.checked_sub(u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX));
        let mut beats = Vec::new();
        let mut unlocks = Vec::new();
        for life in core.lives() {
            if let Some(deadline) = deadline
                && life.end_if_idle_since(atoll_env::Instant(deadline), || Abort::Idle(idle))
            {
                core.stats.idle.add(1);
                unlocks.push((life.txn, life.take_locks()));
                continue;
            }
            for (_, mut keys) in by_shard(&core.shards, life.anchors()) {
                let request = Request::Heartbeat { txn: life.txn, key: keys.swap_remove(0) };
                beats.push(core.shards.send(request));
            }
        }
        let unlocks = unlocks.into_iter().map(|(txn, locks)| unlock(core, txn, locks));
        // One that is lost is followed by the next. Shards that do not answer do not hold it up.
        let all = async {
            join_all(beats).await;
            join_all(unlocks).await;
            forget(core).await;
        };
        select_biased(all, core.pace.clock.sleep(core.options.heartbeat)).await;
    }
}
