//! The work of one transaction, by keyspace and key.
//!
//! A user key becomes a key of shards by the keyspace's placement, a value gets a deadline in front
//! of it, and a scan of a hashed keyspace merges its buckets:
//!
//! ```text
//!   bucket 0   a . . d . . . h        each bucket is in order, every key in one of them:
//!   bucket 1   . b . . e . . .    ->  a b c d e f g h
//!   bucket 2   . . c . . f g .        the head of each, the first of the heads, its successor
//! ```
//!
//! # Deadlines
//! A value is absent from its deadline on, for a read at a moment the moment counts, for a read
//! under a lock the present. It is removed some time later by the shard.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use atoll_kv::{Core, CoreShards, NodeOracle, Program};
use atoll_mvcc::Value;
use atoll_mvcc::keys::{MAX_USER_KEY, Placement};
use atoll_mvcc::request::{Key, Span};
use atoll_txn::{ScanOptions, Transaction};

use crate::error::{Error, Result};
use crate::range::KeyRange;
use crate::registry::{Entered, Keyspace};

/// A transaction on a core.
pub(crate) type CoreTxn<P> = Transaction<CoreShards<P>, NodeOracle<P>>;

/// When a value expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Expiry {
    /// By the keyspace's rule.
    #[default]
    Default,
    /// Never.
    Never,
    /// So long after it is written.
    After(Duration),
}

/// A value that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value.
    pub value: Vec<u8>,
    /// When it was committed, a number that only grows; `None` for one that the transaction itself
    /// has written, and for reads that did not ask.
    pub version: Option<u64>,
    /// From when on it is absent, in milliseconds of the Unix epoch.
    pub deadline_ms: Option<u64>,
}

/// A row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// From when on it is absent, in milliseconds of the Unix epoch.
    pub deadline_ms: Option<u64>,
}

/// Rows of a range.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rows {
    /// The rows, in the order asked for.
    pub rows: Vec<Row>,
    /// A limit ended the scan: there are more. Go on with [`KeyRange::rest`].
    pub more: bool,
}

/// How much of a range is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) rows: usize,
    /// Bytes of keys and values after which a scan ends; the first row always comes.
    pub(crate) bytes: usize,
}

/// Keyspaces that a transaction has used, by id.
pub(crate) type Used = BTreeMap<u32, Keyspace>;

/// Enters everything that a transaction has used, before it commits.
pub(crate) fn enter(used: &Used) -> Result<Vec<Entered>> {
    used.values().map(Keyspace::enter).collect()
}

/// Rows of one fetch at first, and how many bytes of them let the next one be larger: values of a
/// few bytes come by the hundred, values of a mebibyte one by one.
const FETCH_GROWS: usize = 64 << 10;
const FETCH_MAX: usize = 1024;

/// A transaction at work.
pub(crate) struct Work<'t, P: Program> {
    pub(crate) core: &'t Core<P>,
    pub(crate) txn: &'t mut CoreTxn<P>,
    pub(crate) used: &'t mut Used,
}

impl<P: Program> Work<'_, P> {
    /// Begins an operation in a keyspace.
    fn begin(&mut self, keyspace: &Keyspace) -> Result<()> {
        keyspace.check()?;
        // At read committed each operation is a statement, also one that scans many buckets.
        self.txn.begin_statement();
        self.used.entry(keyspace.id()).or_insert_with(|| keyspace.clone());
        Ok(())
    }

    /// Reads a key; under a lock its newest value, which nobody changes before the transaction ends.
    pub(crate) async fn get(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
        lock: bool,
    ) -> Result<Option<Found>> {
        self.begin(keyspace)?;
        let name = name_of(keyspace, key)?;
        let found = if lock {
            self.txn.get_for_update(&name).await?.map(|value| (value, None))
        } else {
            self.txn.get_version(&name).await?
        };
        let Some((bytes, version)) = found else { return Ok(None) };
        let now_ms = self.now_ms(lock);
        let value = decode(keyspace, &bytes)?;
        if value.is_expired(now_ms) {
            return Ok(None);
        }
        let version = version.map(|ts| ts.0);
        let (value, deadline_ms) = (value.payload.to_vec(), value.deadline_ms);
        Ok(Some(Found { value, version, deadline_ms }))
    }

    /// Writes a value.
    pub(crate) async fn put(
        &mut self,
        keyspace: &Keyspace,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
    ) -> Result<()> {
        self.begin(keyspace)?;
        let ttl_ms = match expiry {
            Expiry::Never => None,
            Expiry::Default => Some(keyspace.options().ttl_ms()).filter(|ms| *ms != 0),
            Expiry::After(ttl) => Some(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)),
        };
        let deadline_ms = ttl_ms.map(|ms| self.present_ms().saturating_add(ms));
        let stored = Value { deadline_ms, payload: value }.encode();
        Ok(self.txn.put(&name_of(keyspace, key)?, &stored).await?)
    }

    /// Deletes a key.
    pub(crate) async fn delete(&mut self, keyspace: &Keyspace, key: &[u8]) -> Result<()> {
        self.begin(keyspace)?;
        Ok(self.txn.delete(&name_of(keyspace, key)?).await?)
    }

    /// Returns the first rows of a range, or the last ones in descending order.
    pub(crate) async fn scan(
        &mut self,
        keyspace: &Keyspace,
        range: &KeyRange,
        reverse: bool,
        limits: Limits,
    ) -> Result<Rows> {
        self.begin(keyspace)?;
        let mut rows = Rows::default();
        if range.is_empty() || limits.rows == 0 {
            return Ok(rows);
        }
        let mut streams: Vec<Stream> =
            spans(keyspace, range).into_iter().map(Stream::new).collect();
        let head = header_len(keyspace);
        // The next row of each stream; a key is in one of them only.
        let mut heads: BTreeMap<Vec<u8>, (usize, Vec<u8>)> = BTreeMap::new();
        let mut bytes = 0;
        for (at, stream) in streams.iter_mut().enumerate() {
            if let Some((key, value)) = self.next(stream, reverse, limits.rows).await? {
                heads.insert(key.get(head..).unwrap_or_default().to_vec(), (at, value));
            }
        }
        while let Some((key, (at, stored))) =
            if reverse { heads.pop_last() } else { heads.pop_first() }
        {
            let value = decode(keyspace, &stored)?;
            if !value.is_expired(self.now_ms(false)) {
                let len = key.len() + value.payload.len();
                let is_full = rows.rows.len() >= limits.rows || bytes + len > limits.bytes;
                if is_full && !rows.rows.is_empty() {
                    rows.more = true;
                    return Ok(rows);
                }
                bytes += len;
                let (value, deadline_ms) = (value.payload.to_vec(), value.deadline_ms);
                rows.rows.push(Row { key, value, deadline_ms });
            }
            let wanted = limits.rows.saturating_add(1).saturating_sub(rows.rows.len());
            if let Some((key, value)) = self.next(&mut streams[at], reverse, wanted).await? {
                heads.insert(key.get(head..).unwrap_or_default().to_vec(), (at, value));
            }
        }
        Ok(rows)
    }

    /// Takes the next row of a stream.
    async fn next(
        &mut self,
        stream: &mut Stream,
        reverse: bool,
        wanted: usize,
    ) -> Result<Option<(Key, Vec<u8>)>> {
        loop {
            if let Some(row) = stream.rows.pop_front() {
                return Ok(Some(row));
            }
            let Some(span) = stream.rest.take() else { return Ok(None) };
            let limit = stream.fetch.min(wanted).max(1);
            let page = self.txn.scan(span, ScanOptions { limit, reverse }).await?;
            let bytes: usize = page.rows.iter().map(|(key, value)| key.len() + value.len()).sum();
            stream.fetch = match bytes {
                0..FETCH_GROWS => (stream.fetch * 4).min(FETCH_MAX),
                _ => (stream.fetch / 4).max(1),
            };
            stream.rows = page.rows.into();
            stream.rest = page.more;
        }
    }

    /// Returns the moment that deadlines are compared with.
    fn now_ms(&self, locked: bool) -> u64 {
        match self.txn.read_ts().filter(|_| !locked) {
            Some(at) => at.epoch().unix_ms(),
            None => self.present_ms(),
        }
    }

    fn present_ms(&self) -> u64 {
        self.core.refresh();
        self.core.now().epoch.unix_ms()
    }
}

/// Keys of one bucket, or of an ordered keyspace.
struct Stream {
    rows: VecDeque<(Key, Vec<u8>)>,
    rest: Option<Span>,
    /// Rows of the next fetch.
    fetch: usize,
}

impl Stream {
    fn new(span: Span) -> Stream {
        Stream { rows: VecDeque::new(), rest: Some(span), fetch: 4 }
    }
}

fn name_of(keyspace: &Keyspace, key: &[u8]) -> Result<Key> {
    if key.len() > MAX_USER_KEY {
        return Err(Error::InvalidInput(format!(
            "a key of {} bytes is too long: at most {MAX_USER_KEY} are possible",
            key.len()
        )));
    }
    Ok(keyspace.options().kind.placement().key(keyspace.id(), key))
}

fn header_len(keyspace: &Keyspace) -> usize {
    if keyspace.options().kind.placement() == Placement::Ordered { 4 } else { 6 }
}

/// Returns the spans that hold a range: one of an ordered keyspace, one of each bucket of a hashed
/// one.
fn spans(keyspace: &Keyspace, range: &KeyRange) -> Vec<Span> {
    let id = keyspace.id().to_be_bytes();
    let Placement::Hashed(buckets) = keyspace.options().kind.placement() else {
        let end = match &range.end {
            Some(end) => [&id[..], end].concat(),
            None => (keyspace.id() + 1).to_be_bytes().to_vec(),
        };
        return vec![Span { start: [&id[..], &range.start].concat(), end }];
    };
    let span = |bucket| {
        let slot: u16 = buckets.slot(bucket);
        let start = [&id[..], &slot.to_be_bytes(), &range.start].concat();
        let end = match &range.end {
            Some(end) => [&id[..], &slot.to_be_bytes(), end].concat(),
            None => [&id[..], &(slot + 1).to_be_bytes()].concat(),
        };
        Span { start, end }
    };
    (0..buckets.count()).map(span).collect()
}

fn decode<'b>(keyspace: &Keyspace, bytes: &'b [u8]) -> Result<Value<'b>> {
    Value::decode(bytes).map_err(|e| {
        Error::Corruption(format!("a value of keyspace '{}' does not decode: {e}", keyspace.name()))
    })
}
