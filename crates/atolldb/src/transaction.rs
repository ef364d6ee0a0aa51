//! A transaction as a program holds it, and its scans.

use std::collections::VecDeque;
use std::ops::RangeBounds;

use atoll_env::block_on;
use atoll_keyspaces::{Error, Expiry, Found, KeyRange, Keyspace, Result, Row, Savepoint, Session};

/// Rows of the first page of a scan, and of a page at most.
const PAGE_FIRST: usize = 16;
const PAGE_MOST: usize = 1_024;

/// A transaction. Dropping it rolls it back.
///
/// Its own writes are seen by its reads. A write is sent ahead: what is wrong with it is told by the
/// next operation that waits, and by the commit at the latest.
#[derive(Debug)]
pub struct Transaction {
    session: Session,
    /// The conflict that has ended it.
    conflict: Option<Error>,
}

impl Transaction {
    pub(crate) fn new(session: Session) -> Transaction {
        Transaction { session, conflict: None }
    }

    /// Returns the conflict that has ended it, if one has.
    pub(crate) fn take_conflict(&mut self) -> Option<Error> {
        self.conflict.take()
    }

    fn notice<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.is_retryable()
        {
            self.conflict.get_or_insert_with(|| error.clone());
        }
        result
    }

    // ---- reads ----

    /// Reads a key.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn get(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        block_on(self.get_async(keyspace, key))
    }

    /// Async twin of [`Transaction::get`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn get_async(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Vec<u8>>> {
        Ok(self.record_async(keyspace, key).await?.map(|found| found.value))
    }

    /// Reads a key with its version and its deadline.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn record(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Found>> {
        block_on(self.record_async(keyspace, key))
    }

    /// Async twin of [`Transaction::record`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn record_async(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Found>> {
        let result = self.session.get(keyspace, key.as_ref()).await;
        self.notice(result)
    }

    /// Locks a key until the end of the transaction and reads its newest value: nobody else writes
    /// it meanwhile, so what depends on it cannot fail for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn get_for_update(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Vec<u8>>> {
        block_on(self.get_for_update_async(keyspace, key))
    }

    /// Async twin of [`Transaction::get_for_update`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn get_for_update_async(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Vec<u8>>> {
        let result = self.session.get_for_update(keyspace, key.as_ref()).await;
        Ok(self.notice(result)?.map(|found| found.value))
    }

    /// Iterates over the keys between two bounds, in order. Keys are in order in both kinds of
    /// keyspaces.
    pub fn range<K: AsRef<[u8]>>(
        &mut self,
        keyspace: &Keyspace,
        bounds: impl RangeBounds<K>,
    ) -> Scan<'_> {
        self.scan(keyspace, KeyRange::between(bounds))
    }

    /// Iterates over the keys that begin with a prefix.
    pub fn prefix(&mut self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Scan<'_> {
        self.scan(keyspace, KeyRange::prefix(prefix))
    }

    /// Iterates over the keys of a range; [`Scan::reverse`] turns it around.
    pub fn scan(&mut self, keyspace: &Keyspace, range: KeyRange) -> Scan<'_> {
        Scan {
            transaction: self,
            keyspace: keyspace.clone(),
            rest: Some(range),
            reverse: false,
            rows: VecDeque::new(),
            page: PAGE_FIRST,
        }
    }

    // ---- writes ----

    /// Writes a value, which expires by the keyspace's rule.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn put(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        block_on(self.put_async(keyspace, key, value))
    }

    /// Async twin of [`Transaction::put`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn put_async(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        self.put_with_async(keyspace, key, value, Expiry::Default).await
    }

    /// Writes a value and says when it expires.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn put_with(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        expiry: Expiry,
    ) -> Result<()> {
        block_on(self.put_with_async(keyspace, key, value, expiry))
    }

    /// Async twin of [`Transaction::put_with`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn put_with_async(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        expiry: Expiry,
    ) -> Result<()> {
        let result = self.session.put(keyspace, key.as_ref(), value.as_ref(), expiry).await;
        self.notice(result)
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn delete(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<()> {
        block_on(self.delete_async(keyspace, key))
    }

    /// Async twin of [`Transaction::delete`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn delete_async(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<()> {
        let result = self.session.delete(keyspace, key.as_ref()).await;
        self.notice(result)
    }

    // ---- savepoints and ends ----

    /// Marks a place to come back to.
    ///
    /// # Errors
    /// The database is closed.
    pub fn savepoint(&mut self) -> Result<Savepoint> {
        self.session.savepoint()
    }

    /// Takes back the writes since a savepoint. What was read stays read, what was locked locked.
    ///
    /// # Errors
    /// The savepoint is gone: an earlier one was gone back to; see [`Error`].
    pub fn rollback_to(&mut self, savepoint: Savepoint) -> Result<()> {
        block_on(self.rollback_to_async(savepoint))
    }

    /// Async twin of [`Transaction::rollback_to`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn rollback_to_async(&mut self, savepoint: Savepoint) -> Result<()> {
        let result = self.session.rollback_to(savepoint).await;
        self.notice(result)
    }

    /// Commits; returns the version of everything that it wrote.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn commit(self) -> Result<u64> {
        block_on(self.commit_async())
    }

    /// Async twin of [`Transaction::commit`].
    ///
    /// # Errors
    /// As its twin.
    pub async fn commit_async(self) -> Result<u64> {
        self.session.commit().await
    }

    /// Takes everything back. Nothing was written anywhere, so this cannot fail.
    pub fn rollback(self) {
        drop(self);
    }
}

/// The rows of a range, fetched page by page. As an iterator it blocks; [`Scan::next_async`] does not.
#[derive(Debug)]
pub struct Scan<'t> {
    transaction: &'t mut Transaction,
    keyspace: Keyspace,
    /// What is left of the range.
    rest: Option<KeyRange>,
    reverse: bool,
    rows: VecDeque<Row>,
    /// Rows of the next page.
    page: usize,
}

impl Scan<'_> {
    /// Turns a scan around, before its first row: from the end of the range, in descending order.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.reverse = !self.reverse;
        self
    }

    /// Returns the next row, `None` behind the last one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn next_async(&mut self) -> Result<Option<Row>> {
        while self.rows.is_empty() {
            let Some(rest) = self.rest.take() else { return Ok(None) };
            let session = &mut self.transaction.session;
            let result = session.scan(&self.keyspace, rest.clone(), self.reverse, self.page).await;
            let page = self.transaction.notice(result)?;
            if let Some(last) = page.rows.last().filter(|_| page.more) {
                self.rest = Some(rest.rest(&last.key, self.reverse));
            }
            self.rows = page.rows.into();
            // Who reads on wants more at a time.
            self.page = (self.page * 4).min(PAGE_MOST);
        }
        Ok(self.rows.pop_front())
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        block_on(self.next_async()).transpose()
    }
}
