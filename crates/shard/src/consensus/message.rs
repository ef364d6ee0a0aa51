//! Messages between the replicas of a group, and their bytes on the wire.
//!
//! A [`Message`] is what one replica's state machine hands to another's. Its encoding is ours: the
//! library's own (protobuf) would parse bytes from a socket by recursion and into fields that
//! nobody here sends. What decodes is well-formed; whether it makes sense to this replica now is
//! decided in `admit.rs`.
//!
//! The format is described in docs/formats/consensus.md.

use std::fmt;

use atoll_encoding::{Malformed, Reader, varint};
use bytes::Bytes;
use raft::eraftpb::{self, MessageType};

use super::entry::{Entry, EntryKind, wrap};
use super::members::Members;
use super::read::{read_context, read_entry};

const VERSION: u8 = 1;

/// How the library marks the vote request of a replica that was told to take over. It does not
/// export the constant; a test holds this one against what it sends.
pub(super) const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// What a message says. The numbers are on the wire: do not change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MessageKind {
    /// Leader: append these entries; also a probe for where the logs part.
    Append = 1,
    /// Follower: my log agrees up to here, or where to look.
    AppendReply = 2,
    /// Candidate: would you vote for me?
    AskPreVote = 3,
    /// Answer to it.
    PreVote = 4,
    /// Candidate: vote for me.
    AskVote = 5,
    /// Answer to it.
    Vote = 6,
    /// Leader: I am here, and so much is committed.
    Heartbeat = 7,
    /// Answer to it.
    HeartbeatReply = 8,
    /// Leader: a snapshot replaces your log. Only its description: the data travels elsewhere.
    Snapshot = 9,
    /// Leader: take over now.
    TakeOver = 10,
    /// Follower: up to where must I have applied to read?
    AskReadIndex = 11,
    /// Answer to it.
    ReadIndex = 12,
}

pub(super) const KINDS: [(MessageKind, MessageType); 12] = [
    (MessageKind::Append, MessageType::MsgAppend),
    (MessageKind::AppendReply, MessageType::MsgAppendResponse),
    (MessageKind::AskPreVote, MessageType::MsgRequestPreVote),
    (MessageKind::PreVote, MessageType::MsgRequestPreVoteResponse),
    (MessageKind::AskVote, MessageType::MsgRequestVote),
    (MessageKind::Vote, MessageType::MsgRequestVoteResponse),
    (MessageKind::Heartbeat, MessageType::MsgHeartbeat),
    (MessageKind::HeartbeatReply, MessageType::MsgHeartbeatResponse),
    (MessageKind::Snapshot, MessageType::MsgSnapshot),
    (MessageKind::TakeOver, MessageType::MsgTimeoutNow),
    (MessageKind::AskReadIndex, MessageType::MsgReadIndex),
    (MessageKind::ReadIndex, MessageType::MsgReadIndexResp),
];

/// A snapshot as consensus knows it: everything up to an entry, and the members at that point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Index of the last entry in it.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// The members once that entry is applied.
    pub members: Members,
}

impl SnapshotMeta {
    pub(super) fn to_raft(&self) -> eraftpb::Snapshot {
        let mut metadata =
            eraftpb::SnapshotMetadata { index: self.index, term: self.term, ..Default::default() };
        metadata.set_conf_state(self.members.to_raft());
        let mut snapshot = eraftpb::Snapshot::default();
        snapshot.set_metadata(metadata);
        snapshot
    }

    pub(super) fn from_raft(snapshot: &eraftpb::Snapshot) -> SnapshotMeta {
        let metadata = snapshot.get_metadata();
        let members = Members::from_raft(metadata.get_conf_state());
        SnapshotMeta { index: metadata.index, term: metadata.term, members }
    }
}

/// A message from one replica to another.
#[derive(Clone, PartialEq)]
pub struct Message(pub(super) eraftpb::Message);

impl Message {
    /// Returns the replica it is for.
    pub fn to(&self) -> u64 {
        self.0.to
    }

    /// Returns the replica that sends it.
    pub fn from(&self) -> u64 {
        self.0.from
    }

    /// Returns the term it belongs to, 0 for a question about reading.
    pub fn term(&self) -> u64 {
        self.0.term
    }

    /// Returns what it says.
    pub fn kind(&self) -> MessageKind {
        let kind = KINDS.iter().find(|(_, theirs)| *theirs == self.0.msg_type);
        kind.expect("local kinds of messages are neither emitted nor decoded").0
    }

    /// Returns whether it is a refusal.
    pub fn is_refusal(&self) -> bool {
        self.0.reject
    }

    /// Returns the index it is about; what it means depends on the kind.
    pub fn index(&self) -> u64 {
        self.0.index
    }

    /// Returns the entries of an append.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry> {
        self.0.entries.iter().cloned().map(Entry)
    }

    /// Returns about how much memory it takes.
    pub fn weight(&self) -> usize {
        let payloads = self.0.entries.iter().map(|entry| entry.data.len() + 64);
        64 + payloads.sum::<usize>()
    }

    /// Returns the snapshot that the receiver must fetch before it steps the message.
    pub fn snapshot(&self) -> Option<SnapshotMeta> {
        self.0.snapshot.as_ref().map(SnapshotMeta::from_raft)
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let m = &self.0;
        out.extend([VERSION, self.kind() as u8]);
        for value in [m.to, m.from, m.term] {
            varint::put(out, value);
        }
        match self.kind() {
            MessageKind::Append => {
                for value in [m.log_term, m.index, m.commit, m.entries.len() as u64] {
                    varint::put(out, value);
                }
                for entry in self.entries() {
                    let [kind, payload] = entry.log_parts();
                    out.extend_from_slice(kind);
                    varint::put(out, entry.term());
                    varint::put_bytes(out, payload);
                }
            }
            MessageKind::AppendReply => {
                out.push(u8::from(m.reject));
                for value in [m.index, m.commit] {
                    varint::put(out, value);
                }
                if m.reject {
                    varint::put(out, m.reject_hint);
                    varint::put(out, m.log_term);
                }
            }
            MessageKind::AskPreVote | MessageKind::AskVote => {
                out.push(u8::from(is_transfer(m)));
                for value in [m.log_term, m.index, m.commit, m.commit_term] {
                    varint::put(out, value);
                }
                varint::put(out, zigzag(m.priority));
            }
            MessageKind::PreVote | MessageKind::Vote => {
                out.push(u8::from(m.reject));
                varint::put(out, m.commit);
                varint::put(out, m.commit_term);
            }
            MessageKind::Heartbeat | MessageKind::HeartbeatReply => {
                varint::put(out, m.commit);
                varint::put_bytes(out, &m.context);
            }
            MessageKind::Snapshot => {
                let meta = SnapshotMeta::from_raft(m.get_snapshot());
                varint::put(out, meta.index);
                varint::put(out, meta.term);
                meta.members.encode(out);
            }
            MessageKind::TakeOver => {}
            MessageKind::AskReadIndex | MessageKind::ReadIndex => {
                varint::put(out, m.index);
                varint::put_bytes(out, m.entries.first().map_or(&[][..], |entry| &entry.data));
            }
        }
    }

    /// Decodes a message. The payloads of its entries point into `bytes` and keep it alive.
    pub fn decode(bytes: &Bytes) -> Result<Message, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u8("a version")? != VERSION {
            return Err(Malformed { offset: 0, expected: "version 1 of a message" });
        }
        let kind = reader.u8("the kind of a message")?;
        let kind = KINDS.iter().find(|&&(ours, _)| ours as u8 == kind);
        let &(kind, theirs) = kind.ok_or(reader.malformed("a known kind of message"))?;
        let mut m = eraftpb::Message { msg_type: theirs, ..Default::default() };
        m.to = reader.varint("the receiver")?;
        m.from = reader.varint("the sender")?;
        m.term = reader.varint("the term")?;
        match kind {
            MessageKind::Append => {
                m.log_term = reader.varint("the term before")?;
                m.index = reader.varint("the index before")?;
                m.commit = reader.varint("the commit index")?;
                let count = reader.varint("a count of entries")?;
                let mut entries = Vec::new();
                let mut index = m.index;
                for _ in 0..count {
                    index = index.checked_add(1).ok_or(reader.malformed("an index"))?;
                    entries.push(decode_entry(&mut reader, bytes, index)?.0);
                }
                m.entries = entries.into();
            }
            MessageKind::AppendReply => {
                m.reject = flag(&mut reader)?;
                m.index = reader.varint("an index")?;
                m.commit = reader.varint("the commit index")?;
                if m.reject {
                    m.reject_hint = reader.varint("a hint")?;
                    m.log_term = reader.varint("the hint's term")?;
                }
            }
            MessageKind::AskPreVote | MessageKind::AskVote => {
                if flag(&mut reader)? {
                    m.context = Bytes::from_static(CAMPAIGN_TRANSFER);
                }
                m.log_term = reader.varint("the last term")?;
                m.index = reader.varint("the last index")?;
                m.commit = reader.varint("the commit index")?;
                m.commit_term = reader.varint("the commit term")?;
                m.priority = unzigzag(reader.varint("a priority")?);
                m.deprecated_priority = u64::try_from(m.priority).unwrap_or(0);
            }
            MessageKind::PreVote | MessageKind::Vote => {
                m.reject = flag(&mut reader)?;
                m.commit = reader.varint("the commit index")?;
                m.commit_term = reader.varint("the commit term")?;
            }
            MessageKind::Heartbeat | MessageKind::HeartbeatReply => {
                m.commit = reader.varint("the commit index")?;
                m.context = Bytes::copy_from_slice(read_context(&mut reader)?);
            }
            MessageKind::Snapshot => {
                let index = reader.varint("an index")?;
                let term = reader.varint("a term")?;
                let members = Members::decode(&mut reader)?;
                m.set_snapshot(SnapshotMeta { index, term, members }.to_raft());
            }
            MessageKind::TakeOver => {}
            MessageKind::AskReadIndex | MessageKind::ReadIndex => {
                m.index = reader.varint("an index")?;
                let context = read_context(&mut reader)?;
                m.entries = vec![read_entry(Bytes::copy_from_slice(context))].into();
            }
        }
        reader.finish("the end of the message")?;
        Ok(Message(m))
    }
}

fn decode_entry(reader: &mut Reader<'_>, bytes: &Bytes, index: u64) -> Result<Entry, Malformed> {
    let kind = EntryKind::from_byte(reader.u8("the kind of an entry")?);
    let kind = kind.ok_or(reader.malformed("a known kind of entry"))?;
    let term = reader.varint("a term")?;
    let payload = reader.bytes("a payload")?;
    let end = reader.offset();
    let payload = bytes.slice(end - payload.len()..end);
    let entry = Entry::new(index, term, kind == EntryKind::Change, payload);
    if entry.kind() != kind || (kind == EntryKind::Change && entry.changes().is_err()) {
        return Err(reader.malformed("a payload that fits the kind of entry"));
    }
    Ok(entry)
}

fn is_transfer(m: &eraftpb::Message) -> bool {
    m.context == CAMPAIGN_TRANSFER
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    match reader.u8("a flag")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(reader.malformed("a flag of 0 or 1")),
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = &self.0;
        write!(f, "{}->{} {:?} term {}", m.from, m.to, self.kind(), m.term)?;
        match self.kind() {
            MessageKind::Append => {
                write!(f, " after {}@{}, commit {}", m.index, m.log_term, m.commit)?;
                if !m.entries.is_empty() {
                    write!(f, " {:?}", wrap(m.entries.to_vec()))?;
                }
                Ok(())
            }
            MessageKind::AppendReply if m.reject => {
                write!(f, " refuses {}, hint {}@{}", m.index, m.reject_hint, m.log_term)
            }
            MessageKind::AppendReply => write!(f, " up to {}, commit {}", m.index, m.commit),
            MessageKind::AskPreVote | MessageKind::AskVote => {
                write!(f, " last {}@{}", m.index, m.log_term)?;
                if is_transfer(m) { write!(f, ", asked to") } else { Ok(()) }
            }
            MessageKind::PreVote | MessageKind::Vote => {
                write!(f, " {}", if m.reject { "no" } else { "yes" })
            }
            MessageKind::Heartbeat | MessageKind::HeartbeatReply => {
                write!(f, " commit {}", m.commit)
            }
            MessageKind::Snapshot => {
                let meta = SnapshotMeta::from_raft(m.get_snapshot());
                write!(f, " of {}@{}, {}", meta.index, meta.term, meta.members)
            }
            MessageKind::TakeOver | MessageKind::AskReadIndex => Ok(()),
            MessageKind::ReadIndex => write!(f, " {}", m.index),
        }
    }
}
