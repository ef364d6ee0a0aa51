//! The coordinator: what all transactions of one core, or of one client, share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::sync::{QueueSender, queue};
use atoll_env::{Env, Random};
use atoll_mvcc::request::{Isolation, Key, Obstacle, Outcome, Response};
use atoll_mvcc::{Timestamp, TxnId};
use parking_lot::Mutex;

use crate::cleaner::{Background, Job};
use crate::deadlock::{Age, Deadlocks};
use crate::error::{Abort, Doubt, Error};
use crate::life::Life;
use crate::options::Options;
use crate::oracle::Oracle;
use crate::pace::{Backoff, Pace};
use crate::recovery::{Patience, Resolved, Unresolved, WhenAlive, nonsense, recover, resolve};
use crate::shards::Shards;
use crate::stats::Stats;
use crate::transaction::Transaction;

/// First and longest wait of [`Coordinator::run`].
const RUN_FIRST: Duration = Duration::from_millis(1);
const RUN_MOST: Duration = Duration::from_millis(200);

/// Begins transactions. Cheap to clone; clones share everything.
pub struct Coordinator<S: Shards, O: Oracle> {
    inner: Arc<Inner<S, O>>,
}

struct Inner<S: Shards, O: Oracle> {
    core: Arc<Core<S, O>>,
    jobs: QueueSender<Job>,
}

/// What transactions and the background have in common.
pub(crate) struct Core<S, O> {
    pub(crate) shards: S,
    pub(crate) oracle: O,
    pub(crate) pace: Pace,
    pub(crate) options: Options,
    pub(crate) deadlocks: Arc<Deadlocks>,
    pub(crate) stats: Stats,
    /// All transactions that have not ended, or whose end is not cleaned up.
    lives: Mutex<BTreeMap<TxnId, Arc<Life>>>,
    /// Transactions whose records nobody needs any more, and where these are.
    pub(crate) forgettable: Mutex<Vec<(TxnId, Key)>>,
}

impl<S: Shards, O: Oracle> Clone for Coordinator<S, O> {
    fn clone(&self) -> Coordinator<S, O> {
        Coordinator { inner: self.inner.clone() }
    }
}

impl<S: Shards, O: Oracle> fmt::Debug for Coordinator<S, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").field("stats", self.stats()).finish_non_exhaustive()
    }
}

impl<S: Shards, O: Oracle> Coordinator<S, O> {
    /// Returns a coordinator and its background work, which somebody has to run as a task. All
    /// coordinators of an engine share one search for deadlocks.
    pub fn new(
        shards: S,
        oracle: O,
        env: &Env,
        deadlocks: Arc<Deadlocks>,
        options: Options,
    ) -> (Coordinator<S, O>, Background<S, O>) {
        let core = Arc::new(Core {
            shards,
            oracle,
            pace: Pace::new(env),
            options,
            deadlocks,
            stats: Stats::default(),
            lives: Mutex::default(),
            forgettable: Mutex::default(),
        });
        let (sender, jobs) = queue();
        let inner = Arc::new(Inner { core: core.clone(), jobs: sender });
        (Coordinator { inner }, Background { core, jobs })
    }

    /// Begins a transaction. Nothing is asked of anybody before its first read.
    pub fn begin(&self, isolation: Isolation) -> Transaction<S, O> {
        let txn = self.new_id();
        self.begin_aged(txn, isolation, None, (self.core().pace.clock.now(), txn))
    }

    /// Begins a transaction that only reads, what was committed at one moment.
    ///
    /// # Errors
    /// The moment lies in the future.
    pub fn begin_at(&self, at: Timestamp) -> Result<Transaction<S, O>, Error> {
        // A read above the oracle would drive writers ahead of it, and readers that come later
        // would miss what they wrote.
        if at > self.core().oracle.known() {
            return Err(Error::Misuse("a read at a moment in the future is not possible"));
        }
        let txn = self.new_id();
        let age = (self.core().pace.clock.now(), txn);
        Ok(self.begin_aged(txn, Isolation::Snapshot, Some(at), age))
    }

    fn begin_aged(
        &self,
        txn: TxnId,
        isolation: Isolation,
        at: Option<Timestamp>,
        age: Age,
    ) -> Transaction<S, O> {
        let core = self.core();
        core.stats.begun.add(1);
        let life = Life::new(txn, core.pace.clock.now());
        if let Some(at) = at {
            life.set_read_ts(at);
        }
        core.lives.lock().insert(txn, life.clone());
        Transaction::new(self.clone(), life, isolation, at, age)
    }

    /// Runs a transaction until it commits: again, after a growing wait, as long as it is aborted
    /// for a reason that may not come again. Returns what the body returned and when it committed.
    ///
    /// # Errors
    /// Those of the body, those of a commit, and the last abort when all attempts are used up.
    pub async fn run<T, E: From<Error>>(
        &self,
        isolation: Isolation,
        mut body: impl AsyncFnMut(&mut Transaction<S, O>) -> Result<T, E>,
    ) -> Result<(T, Timestamp), E> {
        let options = &self.core().options;
        let mut backoff = self.core().pace.backoff(RUN_FIRST, RUN_MOST, Duration::MAX);
        // One age for all attempts: in the end it is the oldest, whom no deadlock chooses.
        let mut age = None;
        for attempt in 1.. {
            let txn = self.new_id();
            let age = *age.get_or_insert((self.core().pace.clock.now(), txn));
            let mut transaction = self.begin_aged(txn, isolation, None, age);
            let ended = match body(&mut transaction).await {
                Ok(output) => transaction.commit().await.map(|ts| (output, ts)),
                // What the body made of an abort does not matter: the work can be done again.
                Err(error) => match transaction.abort_reason() {
                    Some(why) if why.is_retryable() => Err(Error::Aborted(why.clone())),
                    _ => return Err(error),
                },
            };
            match ended {
                Err(error) if error.is_retryable() && attempt < options.attempts => {
                    backoff.pause("").await.map_err(Error::Unavailable)?;
                }
                ended => return ended.map_err(E::from),
            }
        }
        unreachable!("invariant: the last attempt returns")
    }

    /// Gets intents out of the way that a shard met by itself.
    ///
    /// # Errors
    /// As [`resolve`].
    pub async fn resolve(&self, obstacles: &[Obstacle]) -> Result<Resolved, Unresolved> {
        let core = self.core();
        let Options { push, operation, .. } = core.options;
        let patience = Patience { wait: push, then: WhenAlive::Push, limit: operation };
        resolve(&core.shards, &core.pace, obstacles, patience).await
    }

    /// Asks again what became of a transaction that was left in doubt: when it committed, `None` if
    /// it did not and never will.
    ///
    /// # Errors
    /// Shards did not serve in time.
    pub async fn settle(&self, doubt: &Doubt) -> Result<Option<Timestamp>, Error> {
        let core = self.core();
        let Doubt { txn, primary, commit_ts } = doubt;
        let mut backoff = core.backoff(core.options.operation);
        match recover(&core.shards, &mut backoff, *txn, primary, *commit_ts).await? {
            Outcome::Committed(ts) => Ok(Some(ts)),
            Outcome::Aborted => Ok(None),
        }
    }

    /// Returns the lowest moment at which a transaction of this coordinator reads: the safepoint has
    /// to stay below.
    pub fn oldest_read(&self) -> Option<Timestamp> {
        self.core().lives.lock().values().filter_map(|life| life.read_ts()).min()
    }

    /// Returns the counters.
    pub fn stats(&self) -> &Stats {
        &self.core().stats
    }

    pub(crate) fn core(&self) -> &Arc<Core<S, O>> {
        &self.inner.core
    }

    /// Hands the rest of a transaction to the background.
    pub(crate) fn hand_over(&self, job: Job) {
        // Nobody runs the background any more: others clean up (`cleaner.rs`).
        if let Err(job) = self.inner.jobs.send(job) {
            self.core().unregister(job.life.txn);
        }
    }

    fn new_id(&self) -> TxnId {
        let random: &dyn Random = &*self.core().pace.random;
        TxnId(u128::from(random.next_u64()) << 64 | u128::from(random.next_u64()))
    }
}

impl<S: Shards, O: Oracle> Core<S, O> {
    pub(crate) fn unregister(&self, txn: TxnId) {
        self.lives.lock().remove(&txn);
    }

    /// Returns all transactions that have not ended.
    pub(crate) fn lives(&self) -> Vec<Arc<Life>> {
        self.lives.lock().values().cloned().collect()
    }

    /// Returns how attempts at one thing are spaced.
    pub(crate) fn backoff(&self, limit: Duration) -> Backoff<'_> {
        self.pace.backoff(Duration::from_micros(500), Duration::from_millis(100), limit)
    }

    /// Gets intents out of the way of a read or a lock: as long as it takes.
    pub(crate) async fn clear_way(&self, obstacles: &[Obstacle]) -> Result<(), Error> {
        let Options { push, operation, .. } = self.options;
        let patience = Patience { wait: push, then: WhenAlive::Push, limit: operation };
        match resolve(&self.shards, &self.pace, obstacles, patience).await {
            Err(Unresolved::Unavailable(why)) => Err(Error::Unavailable(why)),
            // `Push` never leaves one alone.
            Ok(_) | Err(Unresolved::Alive(_)) => Ok(()),
        }
    }

    /// Makes sure that a question of a transaction can be asked again, after an answer that was none.
    pub(crate) async fn again(
        &self,
        backoff: &mut Backoff<'_>,
        question: &str,
        answer: Response,
    ) -> Result<(), Error> {
        match answer {
            Response::Blocked(obstacles) => return self.clear_way(&obstacles).await,
            Response::NotMine => backoff.pause("a shard is moving").await?,
            Response::Unknown => backoff.pause("a shard has lost its leader").await?,
            Response::Unavailable(why) => backoff.pause(&why).await?,
            Response::Refused(refusal) => return Err(Error::Aborted(refusal.into())),
            other => return Err(Error::Unavailable(nonsense(question, &other))),
        }
        Ok(())
    }

    /// Gets intents out of the way of a commit: those that are decided or dead at once, others only
    /// if they go soon.
    pub(crate) async fn clear_way_briefly(&self, obstacles: &[Obstacle]) -> Result<(), Abort> {
        let Options { yield_after, commit, .. } = self.options;
        let patience = Patience { wait: yield_after, then: WhenAlive::Leave, limit: commit };
        match resolve(&self.shards, &self.pace, obstacles, patience).await {
            Ok(_) => Ok(()),
            Err(Unresolved::Alive(txn)) => {
                let its = obstacles.iter().find(|obstacle| obstacle.txn == txn);
                Err(Abort::WriteConflict(its.map(|its| its.key.clone()).unwrap_or_default()))
            }
            Err(Unresolved::Unavailable(why)) => Err(Abort::Unavailable(why.0)),
        }
    }
}
