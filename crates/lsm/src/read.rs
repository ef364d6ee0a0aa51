//! Point reads: from a stored record to the value that the caller sees.

use crate::batch::CHUNK_LEN;
use crate::database::Inner;
use crate::error::{Error, Result};
use crate::iter::scan::key_kind;
use crate::key::{Kind, SeqNo, Trailer};
use crate::keyspace::{check_key, user_key};
use crate::pacing::ReadTimer;
use crate::slice::Slice;
use crate::store::Store;
use crate::tables::Tables;
use crate::values::{Ahead, Pointer};
use crate::version::Version;
use crate::view::{Hit, View};

/// A value with what is stored beside it.
#[derive(Clone, Debug)]
pub struct Record {
    /// The value.
    pub value: Slice,
    /// When it expires, in milliseconds since the Unix epoch, if ever.
    pub deadline: Option<u64>,
}

/// A stored value, before long ones are put together.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) trailer: Trailer,
    pub(crate) value: Slice,
}

/// What the head of a chunked value says.
pub(crate) struct Chunked {
    /// Its deadline or, in a version, its stamp; 0 for none.
    pub(crate) first: u64,
    pub(crate) len: usize,
    pub(crate) chunks: u64,
}

impl Chunked {
    /// Decodes a head; `None` if it makes no sense.
    pub(crate) fn decode(head: &[u8]) -> Option<Chunked> {
        let mut reader = atoll_encoding::Reader::new(head);
        let first = reader.u64("a deadline or stamp").ok()?;
        let len = usize::try_from(reader.u64("a length").ok()?).ok()?;
        let chunks = u64::from(reader.u32("a number of chunks").ok()?);
        reader.finish("the end of the head").ok()?;
        (chunks == len.div_ceil(CHUNK_LEN) as u64).then_some(Chunked { first, len, chunks })
    }
}

impl From<Hit> for Stored {
    fn from(Hit { trailer, value, .. }: Hit) -> Stored {
        Stored { trailer, value }
    }
}

impl Stored {
    /// Returns a value as one record holds it, also a long one.
    pub(crate) fn of(record: Record) -> Stored {
        let Record { value, deadline } = record;
        let (kind, value) = match deadline {
            None => (Kind::Value, value),
            Some(at) => (Kind::ExpiringValue, [&at.to_le_bytes()[..], &value].concat().into()),
        };
        Stored { trailer: Trailer::new(0, kind), value }
    }

    /// Returns the length of the value, without reading chunks.
    pub(crate) fn len(&self) -> usize {
        if let Some(pointer) = Pointer::of(self.trailer, &self.value) {
            return pointer.len as usize;
        }
        match key_kind(self.trailer) {
            Kind::ExpiringValue | Kind::Merge | Kind::VersionedValue | Kind::VersionedTombstone => {
                self.value.len().saturating_sub(8)
            }
            Kind::ChunkedValue | Kind::VersionedChunked => {
                Chunked::decode(&self.value).map_or(0, |c| c.len)
            }
            Kind::Value | Kind::Chunk | Kind::Tombstone => self.value.len(),
        }
    }

    /// Returns what the caller sees, if the value is all in the record; else gives it back.
    #[inline]
    pub(crate) fn into_record(self) -> Result<Record, Stored> {
        let kind = key_kind(self.trailer);
        let elsewhere = matches!(kind, Kind::ChunkedValue | Kind::VersionedChunked | Kind::Merge);
        if elsewhere || self.trailer.is_separated() {
            return Err(self);
        }
        let deadline = self.deadline();
        Ok(Record { value: self.value.after(kind.head_len()), deadline })
    }

    /// Returns when the value expires, without reading chunks.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match key_kind(self.trailer) {
            Kind::ExpiringValue | Kind::ChunkedValue => {
                crate::compaction::stream::deadline_of(&self.value)
            }
            Kind::Value
            | Kind::Chunk
            | Kind::Merge
            | Kind::Tombstone
            | Kind::VersionedValue
            | Kind::VersionedTombstone
            | Kind::VersionedChunked => None,
        }
    }
}

/// The answer where an operand is met by somebody who has no operator: writers see to it that there is
/// none.
fn foreign_operand(user_key: &[u8]) -> Error {
    Error::InvalidInput(format!(
        "key \"{}\" holds a merge operand, which only a keyspace that names its operator can read",
        user_key.escape_ascii()
    ))
}

impl Inner {
    /// Returns the record of `key` that `snapshot` sees in `view`.
    pub(crate) async fn read(
        &self,
        view: &View,
        keyspace: u32,
        key: &[u8],
        snapshot: SeqNo,
    ) -> Result<Option<Record>> {
        let _timer = self.begin_read(key)?;
        let Some(hit) = self.find(view, keyspace, key, snapshot).await? else {
            return Ok(None);
        };
        let to_remember = hit.to_remember;
        let stored = match Stored::from(hit).into_record() {
            Ok(record) => return Ok(Some(record)),
            Err(stored) => stored,
        };
        let user_key = user_key(keyspace, key);
        self.store.complete_found(view, &user_key, stored, to_remember).await.map(Some)
    }

    /// Begins a read of `key`. What is returned, if the read is one to be timed, is to be kept to its
    /// end.
    pub(crate) fn begin_read(&self, key: &[u8]) -> Result<Option<ReadTimer<'_>>> {
        self.check_open()?;
        check_key(key)?;
        Ok(self.store.time_read())
    }

    /// Returns the record of `key`, whose read was begun, that `snapshot` sees in `view`, as it is
    /// stored; merged, if its newest record is an operand.
    pub(crate) async fn find(
        &self,
        view: &View,
        keyspace: u32,
        key: &[u8],
        snapshot: SeqNo,
    ) -> Result<Option<Hit>> {
        // Keys are short: most fit a buffer on the stack.
        let mut short = [0; 64];
        let long;
        let user_key = match short.get_mut(..4 + key.len()) {
            Some(buffer) => {
                buffer[..4].copy_from_slice(&keyspace.to_be_bytes());
                buffer[4..].copy_from_slice(key);
                &*buffer
            }
            None => {
                long = user_key(keyspace, key);
                &long[..]
            }
        };
        let now = self.store.now();
        let hit = view.get(&self.store.tables, user_key, snapshot, now).await?;
        match hit {
            Some(Hit { trailer, .. }) if key_kind(trailer) == Kind::Merge => {
                let merged = self.find_merged(view, keyspace, user_key, (snapshot, now));
                Ok(Box::pin(merged).await?.map(Hit::from))
            }
            hit => Ok(hit),
        }
    }

    async fn find_merged(
        &self,
        view: &View,
        keyspace: u32,
        user_key: &[u8],
        (snapshot, now): (SeqNo, u64),
    ) -> Result<Option<Stored>> {
        let about = self.keyspaces.with_id(keyspace).ok_or_else(|| foreign_operand(user_key))?;
        let merged = self.store.merged(view, &about, user_key, snapshot, now).await;
        if let Err(e) = &merged {
            self.store.tables.confirm(&view.version, e).await;
        }
        merged
    }

    /// Returns the values of `keys` that `snapshot` sees in `view`, in the order asked.
    pub(crate) async fn read_many<K: AsRef<[u8]>>(
        &self,
        view: &View,
        keyspace: u32,
        keys: &[K],
        snapshot: SeqNo,
    ) -> Result<Vec<Option<Slice>>> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let record = self.read(view, keyspace, key.as_ref(), snapshot).await?;
            values.push(record.map(|record| record.value));
        }
        Ok(values)
    }
}

impl Tables {
    /// Returns the value of a separated record of a table of `version`.
    pub(crate) async fn separated(
        &self,
        version: &Version,
        user_key: &[u8],
        stored: &Stored,
        ahead: Option<&Ahead>,
    ) -> Result<Slice> {
        let seqno = stored.trailer.seqno();
        let Some(pointer) = Pointer::of(stored.trailer, &stored.value) else {
            let key = user_key.escape_ascii();
            let what = format!("the record of key \"{key}\" has no pointer to its value");
            return Err(Error::corruption(&self.values().folder(), 0, what));
        };
        match ahead {
            None => self.values().read(version, user_key, seqno, pointer).await,
            Some(ahead) => self.values().read_ahead(version, user_key, seqno, pointer, ahead).await,
        }
    }
}

impl Store {
    /// Returns the whole value of a stored record, which must be live in `view`.
    pub(crate) async fn complete(
        &self,
        view: &View,
        user_key: &[u8],
        stored: Stored,
    ) -> Result<Record> {
        self.complete_with(view, user_key, stored, None).await
    }

    /// Does what [`Store::complete`] does, for a point read that found the record, and leaves what it
    /// reads to the record cache if that was [to remember](Hit::to_remember) it.
    pub(crate) async fn complete_found(
        &self,
        view: &View,
        user_key: &[u8],
        stored: Stored,
        to_remember: bool,
    ) -> Result<Record> {
        if !to_remember {
            return self.complete(view, user_key, stored).await;
        }
        let record = self.complete(view, user_key, stored.clone()).await?;
        view.remember_value(&self.tables, user_key, &stored, &record.value);
        Ok(record)
    }

    /// Does what [`Store::complete`] does, for a scan that may read ahead.
    pub(crate) async fn complete_with(
        &self,
        view: &View,
        user_key: &[u8],
        stored: Stored,
        ahead: Option<&Ahead>,
    ) -> Result<Record> {
        let stored = match stored.into_record() {
            Ok(record) => return Ok(record),
            Err(stored) => stored,
        };
        if stored.trailer.is_separated() {
            let read = self.tables.separated(&view.version, user_key, &stored, ahead);
            let value = Box::pin(read).await?;
            return Ok(Record { value, deadline: stored.deadline() });
        }
        if key_kind(stored.trailer) == Kind::Merge {
            return Err(foreign_operand(user_key));
        }
        let (value, head) = self.long_value(view, user_key, &stored).await?;
        // A version has a stamp in the deadline's place.
        let expires = key_kind(stored.trailer) == Kind::ChunkedValue && head.first != 0;
        Ok(Record { value, deadline: expires.then_some(head.first) })
    }

    /// Names what is wrong with a long value.
    pub(crate) fn broken_value(&self, user_key: &[u8], what: &str) -> Error {
        let what = format!("the long value of key \"{}\" {what}", user_key.escape_ascii());
        Error::corruption(&self.paths.root, 0, what)
    }

    /// Puts a long value together; returns it with its head.
    async fn long_value(
        &self,
        view: &View,
        user_key: &[u8],
        stored: &Stored,
    ) -> Result<(Slice, Chunked)> {
        let broken = |what: &str| self.broken_value(user_key, what);
        let head = Chunked::decode(&stored.value);
        let head = head.ok_or_else(|| broken("has a head that makes no sense"))?;
        let mut value = Vec::new();
        let first = stored.trailer.seqno();
        for back in 1..=head.chunks {
            let seqno = first.checked_sub(back).ok_or_else(|| broken("lacks chunks"))?;
            let chunk = view.chunk(&self.tables, user_key, seqno).await?;
            value.extend_from_slice(&chunk.ok_or_else(|| broken("lacks a chunk"))?);
        }
        if value.len() != head.len {
            return Err(broken("has chunks of another length"));
        }
        Ok((Slice::from(value), head))
    }
}
