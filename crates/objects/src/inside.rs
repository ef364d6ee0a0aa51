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
use atoll_mvcc::Value;
use atoll_mvcc::request::{Key, Span};
use atoll_redis::StoreError;
use atoll_redis::store::Visitor;
use atoll_redis::tx::{Counts, Keyspaces};
use atoll_txn::{Error, ScanOptions};

use crate::program::ObjectProgram;
use crate::txn_tx::TxnTx;
use crate::whole::{self, whole_span};

/// Keys of one page.
const PAGE: usize = 512;
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

    /// Visits the rows of a span, what the commands before have written included.
    async fn walk(
        &mut self,
        span: Span,
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        // They are staged when all commands have run; until then a command may take one back.
        let before = self.tx.txn.savepoint();
        for (key, value) in &self.tx.writes {
            self.tx.txn.set(key.clone(), value.clone()).await?;
        }
        let mut rest = Some(span);
        'pages: while let Some(span) = rest {
            let page = self.tx.txn.scan(span, ScanOptions { limit: PAGE, reverse: false }).await?;
            for (key, value) in &page.rows {
                if visit(key, value).is_break() {
                    break 'pages;
                }
            }
            rest = page.more;
        }
        self.tx.txn.rollback_to(before)
    }

    /// Visits the keys of a database from a place on.
    async fn walk_database(
        &mut self,
        db: usize,
        from: &[u8],
        visitor: Visitor<'_>,
    ) -> Result<(), StoreError> {
        let keyspace = self.tx.keyspaces[db];
        let Some(span) = whole_span(keyspace) else { return Ok(()) };
        let mut start: Key = keyspace.to_be_bytes().to_vec();
        start.extend_from_slice(from);
        let span = Span { start: start.max(span.start), end: span.end };
        let walked = self.walk(span, |key, value| {
            let deadline_ms = Value::decode(value).ok().and_then(|value| value.deadline_ms);
            visitor(&key[4..], deadline_ms)
        });
        walked.await.map_err(|error| {
            let text = StoreError(error.to_string());
            self.tx.failure.get_or_insert(error);
            text
        })
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
        let (start, behind) = match from {
            Bound::Unbounded => (&[][..], None),
            Bound::Included(place) => (place, None),
            Bound::Excluded(place) => (place, Some(place)),
        };
        let mut visit = |place: &[u8], deadline_ms: Option<u64>| {
            if behind == Some(place) {
                return ControlFlow::Continue(());
            }
            visitor(place, deadline_ms)
        };
        self.walk_database(db, start, &mut visit).await
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
        self.walk_database(db, &[], &mut count).await?;
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
