//! Reading a value piece by piece.
//!
//! A value above 1 MiB is stored in chunks of 256 KiB, each of them a record. Reading it whole takes as much
//! memory as it is long; whoever only passes it on takes one chunk at a time:
//!
//! ```text
//!   keyspace.reader(key) ──► head: length, deadline
//!        next() ──► chunk 0 ──► chunk 1 ──► ... ──► None
//! ```
//!
//! A shorter value, or one that is merged for the read, comes as one piece. All pieces are of one moment, whatever is written meanwhile.

use std::sync::Arc;

use atoll_env::block_on;

use crate::error::{Error, Result};
use crate::iter::scan::key_kind;
use crate::key::{Kind, SeqNo};
use crate::keyspace::{Keyspace, user_key};
use crate::read::{Chunked, Stored};
use crate::slice::Slice;
use crate::view::View;

/// A value that is read piece by piece, as of the moment it was asked for.
///
/// It pins tables and memtables: drop it when you are done. After an error it ends: every further call
/// returns that error.
pub struct ValueReader {
    keyspace: Keyspace,
    view: Arc<View>,
    user_key: Vec<u8>,
    len: usize,
    deadline: Option<u64>,
    /// Bytes that were not returned yet.
    left: usize,
    rest: Rest,
}

enum Rest {
    /// The value is one record.
    Whole(Stored),
    /// Chunk after chunk, the next one under this number.
    Chunks(SeqNo),
    Failed(Error),
}

impl ValueReader {
    pub(crate) async fn open(keyspace: Keyspace, key: &[u8]) -> Result<Option<ValueReader>> {
        let db = &keyspace.db;
        let (view, snapshot) = db.store.pin_owned();
        let Some(hit) = db.find(&view, keyspace.id(), key, snapshot).await? else {
            return Ok(None);
        };
        let stored = Stored::from(hit);
        let user_key = user_key(keyspace.id(), key);
        let (len, deadline) = (stored.len(), stored.deadline());
        let rest = match key_kind(stored.trailer) {
            Kind::ChunkedValue => {
                let broken = || db.store.broken_value(&user_key, "has a head that makes no sense");
                Chunked::decode(&stored.value).ok_or_else(broken)?;
                let first = stored.trailer.seqno().checked_sub(1).ok_or_else(broken)?;
                Rest::Chunks(first)
            }
            _ => Rest::Whole(stored),
        };
        Ok(Some(ValueReader { keyspace, view, user_key, len, deadline, left: len, rest }))
    }

    /// Returns the length of the whole value, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the value is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns when the value expires, in milliseconds since the Unix epoch, if ever.
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Returns the next piece, which is not empty; `None` behind the last.
    pub async fn next_async(&mut self) -> Result<Option<Slice>> {
        if let Rest::Failed(e) = &self.rest {
            return Err(e.clone());
        }
        if self.left == 0 {
            return Ok(None);
        }
        let piece = self.fetch().await;
        match piece {
            Ok(piece) => {
                self.left -= piece.len();
                Ok(Some(piece))
            }
            Err(e) => {
                self.keyspace.db.store.tables.confirm(&self.view.version, &e).await;
                self.rest = Rest::Failed(e.clone());
                Err(e)
            }
        }
    }

    async fn fetch(&mut self) -> Result<Slice> {
        let store = &self.keyspace.db.store;
        let broken = |what: &str| store.broken_value(&self.user_key, what);
        let piece = match &mut self.rest {
            Rest::Failed(e) => return Err(e.clone()),
            Rest::Whole(stored) => {
                store.complete(&self.view, &self.user_key, stored.clone()).await?.value
            }
            Rest::Chunks(seqno) => {
                let chunk = self.view.chunk(&store.tables, &self.user_key, *seqno).await?;
                *seqno = seqno.saturating_sub(1);
                chunk.ok_or_else(|| broken("lacks a chunk"))?
            }
        };
        if piece.is_empty() || piece.len() > self.left {
            return Err(broken("has chunks of another length"));
        }
        Ok(piece)
    }
}

/// Blocks for each piece. Yields an error once and then ends.
impl Iterator for ValueReader {
    type Item = Result<Slice>;
    fn next(&mut self) -> Option<Result<Slice>> {
        if matches!(self.rest, Rest::Failed(_)) {
            return None;
        }
        block_on(self.next_async()).transpose()
    }
}

impl std::fmt::Debug for ValueReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ValueReader({} of {} bytes left)", self.left, self.len)
    }
}
