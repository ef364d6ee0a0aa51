//! The background: what goes on after the answer has left.
//!
//! | work | what is done | if it never ran |
//! |---|---|---|
//! | clean | `Finish`, then `Resolve` every intent, then `Forget` if it committed; locks back | whoever meets an intent recovers it |
//! | settle | find out or decide an end that the handle did not wait for, then as above | the same |
//! | unlock | give locks back | shards drop them after three seconds without a heartbeat |
//! | heartbeat | tell shards that transactions live, end idle ones | transactions are recovered in mid-commit |
//!
//! Every step may be done twice, by us or by others, and every step may fail: it is tried again,
//! for ever, with growing waits. Nothing that a client was told leans on any of it.
//!
//! The order *record, intents, forget* is part of the protocol (`recovery.rs`): an intent that is
//! resolved proves a decided record, and a missing record proves resolved intents.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use atoll_env::sync::{QueueReceiver, select_biased};
use atoll_mvcc::request::{Key, Outcome, Record, Request, Response};
use atoll_mvcc::{Timestamp, TxnId};

use crate::coordinator::Core;
use crate::error::{Abort, Unavailable};
use crate::join::{Nursery, join, join_all};
use crate::life::Life;
use crate::oracle::Oracle;
use crate::pace::Backoff;
use crate::recovery::{clear, recover};
use crate::shards::{Shards, ask, ask_each, by_shard};

const RETRY_FIRST: Duration = Duration::from_millis(1);
const RETRY_MOST: Duration = Duration::from_secs(1);
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
    pub(crate) primary: Key,
    /// All keys that may have one, ascending.
    pub(crate) keys: Vec<Key>,
    pub(crate) commit_ts: Timestamp,
}

/// A transaction that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) staged: Staged,
    pub(crate) outcome: Outcome,
    /// What its record says: staged at this timestamp; `None` if it tells the outcome already.
    pub(crate) record: Option<Timestamp>,
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
}

async fn attempt<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    backoff: &mut Backoff<'_>,
    txn: TxnId,
    work: &mut Work,
) -> Result<(), Unavailable> {
    let (staged, outcome, forget) = match work {
        Work::Unlock => return Ok(()),
        Work::Settle(staged) => {
            let commit_ts = staged.commit_ts;
            let outcome = recover(&core.shards, backoff, txn, &staged.primary, commit_ts).await?;
            // Somebody may hold a doubt about this transaction and ask for its record.
            (&*staged, outcome, false)
        }
        Work::Clean(ended) => {
            if let Some(from) = ended.record {
                if !finish(core, backoff, txn, ended, from).await? {
                    return Ok(());
                }
                ended.record = None;
            }
            (&ended.staged, ended.outcome, true)
        }
    };
    clear(&core.shards, backoff, txn, staged.keys.clone(), outcome).await?;
    if forget && matches!(outcome, Outcome::Committed(_)) {
        let primary = || staged.primary.clone();
        ask(&core.shards, backoff, || Request::Forget { txn, primary: primary() }).await?;
    }
    Ok(())
}

/// Makes the record of a transaction that committed by its intents say so; `false` if it says
/// something else, which the protocol excludes.
async fn finish<S: Shards, O: Oracle>(
    core: &Core<S, O>,
    backoff: &mut Backoff<'_>,
    txn: TxnId,
    ended: &Ended,
    from: Timestamp,
) -> Result<bool, Unavailable> {
    let finish = || Request::Finish {
        txn,
        primary: ended.staged.primary.clone(),
        expect: Some(from),
        outcome: ended.outcome,
        stamp: ended.staged.commit_ts,
    };
    match ask(&core.shards, backoff, finish).await? {
        Response::Done => Ok(true),
        // Somebody has helped, or our own words came through when the answer did not.
        Response::Record { record: Some(Record::Committed(ts)), .. }
            if ended.outcome == Outcome::Committed(ts) =>
        {
            Ok(true)
        }
        _ => {
            // Every intent was in place, so nobody may have decided otherwise. Nothing done here
            // would make it better: what is left is evidence.
            core.stats.broken.add(1);
            Ok(false)
        }
    }
}

/// Gives locks back. Not tried for long: shards drop the locks of a silent transaction anyway.
pub(crate) async fn unlock<S: Shards, O: Oracle>(core: &Core<S, O>, txn: TxnId, locks: Vec<Key>) {
    if !locks.is_empty() {
        let mut backoff = core.pace.backoff(RETRY_FIRST, RETRY_MOST, 3 * core.options.heartbeat);
        // Locks that nobody answers for end by themselves.
        let _ =
            ask_each(&core.shards, &mut backoff, locks, |keys| Request::Unlock { txn, keys }).await;
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
        };
        select_biased(all, core.pace.clock.sleep(core.options.heartbeat)).await;
    }
}
