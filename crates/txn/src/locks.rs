//! Taking locks: shard after shard, with a search for deadlocks when it takes long.
//!
//! ```text
//!   Lock ------------------------------------------------------> granted
//!     |  20 ms        20 ms        20 ms                            |
//!     +---> Waits? ---> Waits? ---> Waits? --> circle: give up      v
//!                                              10 s: give up     newest values
//! ```
//!
//! A waiter asks its shard itself whom it waits for, so nobody polls on behalf of others and shards
//! know nothing of each other (`deadlock.rs`).

use atoll_env::Instant;
use atoll_env::sync::{Either, select_biased};
use atoll_mvcc::TxnId;
use atoll_mvcc::request::{Key, Request, Response, Version};

use crate::cleaner::unlock;
use crate::coordinator::Core;
use crate::deadlock::{Age, Waiting};
use crate::error::{Abort, Error};
use crate::life::Life;
use crate::mutants;
use crate::oracle::Oracle;
use crate::shards::Shards;

/// A transaction that takes locks.
pub(crate) struct LockWait<'a, S: Shards, O: Oracle> {
    pub(crate) core: &'a Core<S, O>,
    pub(crate) life: &'a Life,
    pub(crate) txn: TxnId,
    pub(crate) age: Age,
}

impl<S: Shards, O: Oracle> LockWait<'_, S, O> {
    /// Takes locks in the order of the keys; one question for neighbours of one shard.
    pub(crate) async fn take(
        &self,
        keys: Vec<Key>,
        exclusive: bool,
    ) -> Result<Vec<(Key, Option<Version>)>, Error> {
        let core = self.core;
        let deadline = core.pace.clock.now().after(core.options.lock);
        let mut backoff = core.backoff(core.options.lock);
        let mut found = Vec::with_capacity(keys.len());
        let mut ahead = keys;
        while let [first, ..] = ahead.as_slice() {
            let shard = core.shards.shard_of(first);
            let run = ahead.iter().take_while(|key| core.shards.shard_of(key) == shard).count();
            let now = &ahead[..run];
            // Written down first: whoever gives up in the middle gives back what he may have got.
            self.life.add_locks(now);
            match self.wait(now, exclusive, deadline).await? {
                Response::Values(values) => {
                    found.extend(ahead.drain(..run).zip(values));
                }
                answer => core.again(&mut backoff, "Lock", answer).await?,
            }
        }
        Ok(found)
    }

    /// Waits for the locks of one shard, and looks for deadlocks if that takes long.
    async fn wait(
        &self,
        keys: &[Key],
        exclusive: bool,
        deadline: Instant,
    ) -> Result<Response, Error> {
        let core = self.core;
        let keys = || keys.to_vec();
        let lock = Request::Lock { txn: self.txn, keys: keys(), exclusive };
        let mut locked = std::pin::pin!(core.shards.send(lock));
        let pause = || core.pace.clock.sleep(core.options.deadlock);
        if let Either::Left(answer) = select_biased(locked.as_mut(), pause()).await {
            return Ok(answer);
        }
        let waiting = core.deadlocks.enter(self.txn, self.age);
        let looking = async {
            loop {
                if core.pace.clock.now() >= deadline {
                    return Abort::LockTimeout(keys().swap_remove(0));
                }
                if !mutants::is("no-deadlock-search") {
                    self.look(&waiting, keys()).await;
                }
                if let Either::Left(()) = select_biased(waiting.chosen(), pause()).await {
                    return Abort::Deadlock;
                }
            }
        };
        match select_biased(locked.as_mut(), looking).await {
            Either::Left(answer) => Ok(answer),
            Either::Right(why) => {
                // Others wait behind us: leave the queue before anything else.
                unlock(core, self.txn, self.life.take_locks()).await;
                Err(Error::Aborted(why))
            }
        }
    }

    /// Asks once whom the transaction waits for.
    async fn look(&self, waiting: &Waiting, keys: Vec<Key>) {
        let asked = waiting.ask();
        let request = Request::Waits { txn: self.txn, keys };
        // A shard that does not answer is asked again soon, and has lost its locks perhaps.
        if let Response::Waits(blockers) = self.core.shards.send(request).await {
            waiting.report(asked, &blockers);
        }
    }
}
