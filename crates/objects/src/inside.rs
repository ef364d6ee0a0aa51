//! Questions about whole databases inside of a transaction: DBSIZE, KEYS, SCAN, RANDOMKEY in a MULTI.
//!
//! Outside of one they walk over a snapshot and add up counts. Inside they read through the
//! transaction, so what they tell is of its moment, shows what the commands before have written, and is
//! compared at the commit as everything that was read: a key that somebody adds meanwhile is a conflict.
//!
//! A count is a walk here. The counts of shards are of the present, which is not the transaction's
//! moment, and cost nothing to keep; a count for every moment would. So a unit that asks about a large
//! database is not run this way ([`is_too_large`]).

use std::ops::{Bound, ControlFlow};

use atoll_env::Random;
use atoll_kv::Core;
use atoll_redis::StoreError;
use atoll_redis::store::Visitor;
use atoll_redis::tx::{Counts, Keyspaces};
use atoll_txn::Error;

use crate::program::ObjectProgram;
use crate::txn_tx::TxnTx;
use crate::whole;

/// Keys of a database up to which it is walked over inside of a transaction: a walk has to end while
/// its moment is kept, and is repeated after a conflict.
const KEYS_MAX: u64 = 200_000;

/// Returns whether one of these databases is too large to be walked over in a transaction.
///
/// # Errors
/// Those of a transaction.
pub async fn is_too_large(
    core: &Core<ObjectProgram>,
    mut dbs: impl Iterator<Item = usize>,
) -> Result<bool, Error> {
    let counts = whole::counts(core).await?;
    Ok(dbs.any(|db| counts[db].0 > KEYS_MAX))
}

/// The databases as a transaction sees them.
pub(crate) struct Inside<'a, 't> {
    core: &'a Core<ObjectProgram>,
    tx: &'a mut TxnTx<'t>,
}

impl<'a, 't> Inside<'a, 't> {
    pub(crate) fn new(core: &'a Core<ObjectProgram>, tx: &'a mut TxnTx<'t>) -> Inside<'a, 't> {
        Inside { core, tx }
    }

    /// Visits the keys of a database, what the commands before have written included.
    async fn walk(
        &mut self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> Result<(), Error> {
        let TxnTx { txn, writes, keyspaces, .. } = &mut *self.tx;
        // They are staged when all commands have run; until then a command may take one back.
        let before = txn.savepoint();
        for (key, value) in &*writes {
            txn.set(key.clone(), value.clone()).await?;
        }
        whole::walk_in(txn, keyspaces[db], from, visitor).await?;
        txn.rollback_to(before)
    }
}

impl Keyspaces for Inside<'_, '_> {
    fn now_ms(&self) -> u64 {
        atoll_redis::object::unix_ms(self.tx.epoch_us)
    }

    async fn visit(
        &mut self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> Result<(), StoreError> {
        self.walk(db, from, visitor).await.map_err(|error| {
            let text = StoreError(error.to_string());
            self.tx.failure.get_or_insert(error);
            text
        })
    }

    async fn count(&mut self, db: usize) -> Result<Counts, StoreError> {
        let now = self.now_ms();
        let mut counts = Counts::default();
        let mut count = |_: &[u8], deadline_ms: Option<u64>| {
            if deadline_ms.is_none_or(|deadline_ms| deadline_ms > now) {
                counts.keys += 1;
                counts.expiring += u64::from(deadline_ms.is_some());
            }
            ControlFlow::Continue(())
        };
        self.visit(db, Bound::Unbounded, &mut count).await?;
        Ok(counts)
    }

    fn flush(&mut self, _: usize) {
        debug_assert!(false, "changes of databases are steps of their own");
    }

    fn swap(&mut self, _: usize, _: usize) {
        debug_assert!(false, "changes of databases are steps of their own");
    }

    fn random_below(&mut self, bound: u64) -> u64 {
        let random: &dyn Random = &*self.core.env().random;
        random.next_u64() % bound.max(1)
    }
}
