//! Names of read questions.
//!
//! A read at the newest state asks up to which index the group had committed when the read began.
//! Questions and answers may be lost, repeated and late, and the leader tells questions apart by
//! their context alone, so a context must never come twice: not from another replica, not from
//! this one after a restart. Else the answer to an old question would let a new read see an old
//! state.

use atoll_encoding::{Malformed, Reader};
use bytes::Bytes;
use raft::eraftpb;

pub(super) const CONTEXT_LEN: usize = 24;

/// Names a question of this replica since it was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReadId(u64);

/// The answer to a question: a read may begin once everything up to `index` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadIndex {
    /// The question. All questions asked before it are answered by it, too.
    pub id: ReadId,
    /// The index.
    pub index: u64,
}

/// Gives out names.
pub(super) struct Reads {
    replica: u64,
    incarnation: u64,
    asked: u64,
}

impl Reads {
    pub fn new(replica: u64, incarnation: u64) -> Reads {
        Reads { replica, incarnation, asked: 0 }
    }

    pub fn next(&mut self) -> (ReadId, Bytes) {
        self.asked += 1;
        let mut context = [0; CONTEXT_LEN];
        for (part, value) in
            context.chunks_exact_mut(8).zip([self.replica, self.incarnation, self.asked])
        {
            part.copy_from_slice(&value.to_le_bytes());
        }
        (ReadId(self.asked), Bytes::copy_from_slice(&context))
    }

    /// Returns which question of this replica and incarnation has this context.
    pub fn id_of(&self, context: &[u8]) -> Option<ReadId> {
        let mut reader = Reader::new(context);
        let mut next = || reader.u64("a part of a context").ok();
        let (replica, incarnation, asked) = (next()?, next()?, next()?);
        let ours = (replica, incarnation) == (self.replica, self.incarnation);
        (ours && (1..=self.asked).contains(&asked)).then_some(ReadId(asked))
    }
}

/// How the library carries the context of a question: as the payload of an entry that is none.
pub(super) fn read_entry(context: Bytes) -> eraftpb::Entry {
    eraftpb::Entry { data: context, ..Default::default() }
}

/// Reads a context, or the lack of one, from a message.
pub(super) fn read_context<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let context = reader.bytes("the context of a read")?;
    if context.is_empty() || context.len() == CONTEXT_LEN {
        return Ok(context);
    }
    Err(reader.malformed("a context of a read"))
}
