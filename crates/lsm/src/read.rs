//! Point reads: from a stored record to the value that the caller sees.

use crate::batch::CHUNK_LEN;
use crate::database::Inner;
use crate::error::{Error, Result};
use crate::iter::scan::key_kind;
use crate::key::{Kind, SeqNo, Trailer};
use crate::keyspace::{check_key, user_key};
use crate::slice::Slice;
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
struct Chunked {
    deadline: Option<u64>,
    len: usize,
    chunks: u64,
}

impl Stored {
    /// Returns the length of the value, without reading chunks.
    pub(crate) fn len(&self) -> usize {
        match key_kind(self.trailer) {
            Kind::ExpiringValue => self.value.len().saturating_sub(8),
            Kind::ChunkedValue => self.chunked().map_or(0, |c| c.len),
            Kind::Value | Kind::Chunk | Kind::Tombstone => self.value.len(),
        }
    }

    /// Returns when the value expires, without reading chunks.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match key_kind(self.trailer) {
            Kind::ExpiringValue | Kind::ChunkedValue => {
                crate::compaction::stream::deadline_of(&self.value)
            }
            Kind::Value | Kind::Chunk | Kind::Tombstone => None,
        }
    }

    fn chunked(&self) -> Option<Chunked> {
        let bytes: &[u8; 20] = self.value.as_ref().try_into().ok()?;
        let u64_at = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let deadline = Some(u64_at(0)).filter(|d| *d != 0);
        let len = usize::try_from(u64_at(8)).ok()?;
        let chunks = u64::from(u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]));
        (chunks == len.div_ceil(CHUNK_LEN) as u64).then_some(Chunked { deadline, len, chunks })
    }
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
        self.check_open()?;
        check_key(key)?;
        self.store.stats.read();
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
        match view.get(&self.store.tables, user_key, snapshot, now).await? {
            None => Ok(None),
            Some(Hit { trailer, value }) => {
                self.complete(view, user_key, Stored { trailer, value }).await.map(Some)
            }
        }
    }

    /// Returns the whole value of a stored record, which must be live in `view`.
    pub(crate) async fn complete(
        &self,
        view: &View,
        user_key: &[u8],
        stored: Stored,
    ) -> Result<Record> {
        match key_kind(stored.trailer) {
            Kind::Value | Kind::Tombstone | Kind::Chunk => {
                Ok(Record { value: stored.value, deadline: None })
            }
            Kind::ExpiringValue => {
                let deadline = crate::compaction::stream::deadline_of(&stored.value);
                let value = stored.value.slice(8.min(stored.value.len())..stored.value.len());
                Ok(Record { value, deadline })
            }
            Kind::ChunkedValue => {
                let broken = |what: &str| {
                    let key = user_key.escape_ascii();
                    Error::corruption(
                        &self.store.paths.root,
                        0,
                        format!("the long value of key \"{key}\" {what}"),
                    )
                };
                let head =
                    stored.chunked().ok_or_else(|| broken("has a head that makes no sense"))?;
                let mut value = Vec::new();
                let first = stored.trailer.seqno();
                for back in 1..=head.chunks {
                    let seqno = first.checked_sub(back).ok_or_else(|| broken("lacks chunks"))?;
                    let chunk = view.chunk(&self.store.tables, user_key, seqno).await?;
                    value.extend_from_slice(&chunk.ok_or_else(|| broken("lacks a chunk"))?);
                }
                if value.len() != head.len {
                    return Err(broken("has chunks of another length"));
                }
                Ok(Record { value: Slice::from(value), deadline: head.deadline })
            }
        }
    }
}
