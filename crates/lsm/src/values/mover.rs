//! The hand of a merge that decides where each value goes: stay, into a value file, to another, or back
//! into the table.
//!
//! | the record comes from | and is | it becomes |
//! |---|---|---|
//! | a memtable | longer than the threshold | separated |
//! | the merge itself, which folded operands or replaced a value | longer than the threshold | separated, unless it would be merged back |
//! | a table | separated, in a file that should go | separated, in a new file |
//! | a table, merged into the last level | separated, and short enough to be merged back | inline |
//! | anywhere else | | what it was |

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::{Stored, ValueWriter};
use super::{Ahead, Pointer, ValueDesc};
use crate::compaction::run::{Job, Outcome};
use crate::error::Result;
use crate::iter::scan::key_kind;
use crate::key::{InternalKey, SeqNo, Trailer};
use crate::options::{Compression, ValuePlacement};
use crate::pieces::Subject;
use crate::slice::Slice;
use crate::version::LEVELS;
use crate::version::manifest::sync_dir;

/// Where the values of each keyspace go.
#[derive(Clone)]
pub(crate) struct ValueRule {
    /// Of keyspaces that say nothing.
    pub(crate) usual: Option<u32>,
    /// By keyspace id, of those that say something.
    pub(crate) placements: Arc<BTreeMap<u32, ValuePlacement>>,
}

impl ValueRule {
    fn placement(&self, user_key: &[u8]) -> ValuePlacement {
        if self.placements.is_empty() {
            return ValuePlacement::Usual;
        }
        let id = user_key.first_chunk().map(|id| u32::from_be_bytes(*id));
        id.and_then(|id| self.placements.get(&id).copied()).unwrap_or_default()
    }

    /// Returns the length above which a value of `user_key` goes into a value file.
    fn above(&self, user_key: &[u8]) -> usize {
        let above = match self.placement(user_key) {
            ValuePlacement::Usual => self.usual,
            ValuePlacement::Inline => None,
            ValuePlacement::Separate { above } | ValuePlacement::MergeBack { above, .. } => {
                Some(above)
            }
        };
        above.map_or(usize::MAX, |above| above as usize)
    }

    /// Returns whether a value of `len` bytes is in its table again in the last level.
    fn merges_back(&self, user_key: &[u8], len: u32) -> bool {
        match self.placement(user_key) {
            ValuePlacement::MergeBack { up_to, .. } => len <= up_to,
            _ => false,
        }
    }
}

/// Moves the values of one merge.
pub(crate) struct Mover<'a> {
    job: &'a Job<'a>,
    writer: Option<ValueWriter>,
    /// The changed bytes of a record.
    bytes: Vec<u8>,
    /// Records come in key order, as they stand in files.
    ahead: Ahead,
}

impl<'a> Mover<'a> {
    pub(crate) fn new(job: &'a Job<'a>) -> Mover<'a> {
        Mover { job, writer: None, bytes: Vec::new(), ahead: Ahead::default() }
    }
}

impl Mover<'_> {
    /// Returns the record as it is to be stored: its trailer and its bytes. `made` says that the merge
    /// has put it together.
    pub(crate) async fn place<'v>(
        &'v mut self,
        key: InternalKey<'_>,
        bytes: &'v [u8],
        made: bool,
        outcome: &mut Outcome,
    ) -> Result<(Trailer, &'v [u8])> {
        let as_it_is = (key.trailer, bytes);
        let Some(kind) = key.trailer.kind().filter(|kind| kind.has_value()) else {
            return Ok(as_it_is);
        };
        let head = kind.head_len();
        if !key.trailer.is_separated() {
            // Records come from a memtable when they go into level 0, and only then.
            let is_new = self.job.level == 0 || made;
            let len = bytes.len().saturating_sub(head);
            let separates = is_new
                && len > self.job.value_rule.above(key.user_key)
                && !self.merges_back(key.user_key, u32::try_from(len).unwrap_or(u32::MAX));
            if !separates {
                return Ok(as_it_is);
            }
            let (head, value) = bytes.split_at(head);
            let writer = self.writer(outcome).await?;
            let pointer = writer.add(key.user_key, key.trailer.seqno(), value);
            self.written(outcome).await?;
            return Ok((key.trailer.separated(), self.point(head, pointer)));
        }
        // What cannot be decoded is not touched: who reads the key is told.
        let Ok(pointer) = Pointer::decode(bytes, head) else { return Ok(as_it_is) };
        let back = self.merges_back(key.user_key, pointer.len);
        if !back && !self.job.leaving.contains(&pointer.file) {
            return Ok(as_it_is);
        }
        let Some(stored) = self.fetch(key, pointer, back).await else { return Ok(as_it_is) };
        match stored {
            Fetched::Value => {
                self.bytes[..head].copy_from_slice(&bytes[..head]);
                Ok((key.trailer.inline(), &self.bytes))
            }
            Fetched::Stored(stored) => {
                let writer = self.writer(outcome).await?;
                let pointer = writer.add_stored(key.user_key, key.trailer.seqno(), &stored);
                outcome.moved_bytes += u64::from(pointer.size);
                self.written(outcome).await?;
                Ok((key.trailer, self.point(&bytes[..head], pointer)))
            }
        }
    }

    fn merges_back(&self, user_key: &[u8], len: u32) -> bool {
        self.job.level == LEVELS - 1 && self.job.value_rule.merges_back(user_key, len)
    }

    /// Returns the value of a record, for who wants to look at it. `None` if it cannot be read: its file
    /// is left alone from now on.
    pub(crate) async fn value(
        &mut self,
        user_key: &[u8],
        trailer: Trailer,
        bytes: &Slice,
    ) -> Option<Slice> {
        let head = key_kind(trailer).head_len();
        if !trailer.is_separated() {
            return Some(bytes.clone().after(head));
        }
        let pointer = Pointer::decode(bytes, head).ok()?;
        let stored = self.read(user_key, trailer.seqno(), pointer).await;
        let corrupt = stored.as_ref().err().is_none_or(|e| e.is_corruption());
        let value = stored.ok().and_then(|stored| stored.into_value().ok());
        if value.is_none() {
            self.failed(pointer, corrupt);
        }
        value
    }

    async fn read(&self, user_key: &[u8], seqno: SeqNo, pointer: Pointer) -> Result<Stored> {
        let how = (&self.ahead, self.job.class);
        self.job.values.read_stored(self.job.version, user_key, seqno, pointer, how).await
    }

    /// Notes that a value could not be read.
    fn failed(&self, pointer: Pointer, corrupt: bool) {
        if let Some(file) = self.job.version.value_file(pointer.file) {
            file.handle.failed(corrupt);
        }
    }

    /// Reads a separated value; one that goes back into its table is put into `state.bytes`, behind
    /// room for the head. `None` if it cannot be read: its file is left alone from now on.
    async fn fetch(
        &mut self,
        key: InternalKey<'_>,
        pointer: Pointer,
        back: bool,
    ) -> Option<Fetched> {
        let stored = match self.read(key.user_key, key.trailer.seqno(), pointer).await {
            Ok(stored) if !back => return Some(Fetched::Stored(stored)),
            other => other,
        };
        let corrupt = stored.as_ref().err().is_none_or(|e| e.is_corruption());
        let head = key.trailer.kind().map_or(0, |kind| kind.head_len());
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.resize(head + pointer.len as usize, 0);
        let unpacked = stored.is_ok_and(|stored| stored.unpack(&mut bytes[head..]).is_ok());
        if unpacked {
            return Some(Fetched::Value);
        }
        self.failed(pointer, corrupt);
        None
    }

    /// Returns the bytes of a separated record.
    fn point(&mut self, head: &[u8], pointer: Pointer) -> &[u8] {
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.extend_from_slice(head);
        bytes.extend_from_slice(&pointer.encode());
        bytes
    }

    async fn writer(&mut self, outcome: &mut Outcome) -> Result<&mut ValueWriter> {
        Ok(match &mut self.writer {
            Some(writer) => writer,
            none => {
                let Job { options, class, .. } = self.job;
                let id = (self.job.next_id)();
                outcome.begun_values.push(id);
                let salt = options.env.random.next_u64();
                let path = self.job.paths.values_file(id);
                let compress = options.compression != Compression::None;
                let subject =
                    if self.job.level == 0 { Subject::Values } else { Subject::MovedValues };
                let (disk, purpose) = (options.env.disk.as_ref(), (subject, *class));
                none.insert(ValueWriter::create(disk, &path, (id, salt), compress, purpose).await?)
            }
        })
    }

    /// Writes out what is complete.
    async fn written(&mut self, outcome: &mut Outcome) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        if writer.size() >= self.job.options.value_file_size {
            return self.finish_file(outcome).await;
        }
        if writer.is_full() { writer.write_out().await } else { Ok(()) }
    }

    async fn finish_file(&mut self, outcome: &mut Outcome) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            let desc: ValueDesc = writer.finish().await?;
            outcome.value_bytes += desc.size;
            outcome.values.push(desc);
        }
        Ok(())
    }

    /// Completes the files; they are synced, their names too.
    pub(crate) async fn finish(mut self, outcome: &mut Outcome) -> Result<()> {
        self.finish_file(outcome).await?;
        if !outcome.values.is_empty() {
            let tag = atoll_env::IoTag::new(self.job.class, "value names");
            sync_dir(self.job.options.env.disk.as_ref(), tag, &self.job.paths.values()).await?;
        }
        Ok(())
    }
}

/// A value that was read to be moved.
enum Fetched {
    /// It is in the mover's buffer.
    Value,
    /// As its file stores it.
    Stored(Stored),
}
