//! Which messages reach the state machine.
//!
//! The library takes messages at their word: where a peer's word contradicts its own log it ends
//! the process. A message that decodes may still be old, misdirected or nonsense, so everything
//! the library relies on is checked here first, and what fails is dropped: Raft allows any message
//! to be lost.

use std::fmt;

use super::message::{Message, MessageKind};
use super::read::CONTEXT_LEN;

/// Terms and indexes above it are nonsense; sums below it cannot overflow.
const NUMBER_MAX: u64 = 1 << 60;

/// Why a message was not stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It is for another replica, or from this one. The sender's routing is out of date.
    Misdirected,
    /// It asks for what only a leader or only its follower can do. Nothing is wrong.
    Role,
    /// It is an old answer that the present knowledge contradicts. Nothing is wrong.
    Stale,
    /// The sender is no member as far as this replica knows. The owner may tell it so.
    Stranger,
    /// The replica was restored lately and neither votes nor asks for votes yet.
    Settling,
    /// Too many entries wait to be applied here. The sender tries again.
    Busy,
    /// The leader counts on entries that this replica does not have: its log lost some. It must
    /// leave the group and come back as a new replica.
    LostEntries,
    /// Its parts contradict each other. The sender is broken or not one of ours.
    Nonsense(&'static str),
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dropped::Misdirected => f.write_str("the message is for another replica"),
            Dropped::Role => f.write_str("the message is for another role"),
            Dropped::Stale => f.write_str("the message is an old answer"),
            Dropped::Stranger => f.write_str("the sender is no member of the group"),
            Dropped::Settling => f.write_str("the replica started lately and does not vote yet"),
            Dropped::Busy => f.write_str("too many entries wait to be applied"),
            Dropped::LostEntries => f.write_str(
                "the replica's log lost entries it had confirmed; remove the replica from the group \
                 and add a new one",
            ),
            Dropped::Nonsense(what) => write!(f, "the message makes no sense: {what}"),
        }
    }
}

impl std::error::Error for Dropped {}

/// What the decision depends on.
pub(super) struct View {
    pub me: u64,
    pub term: u64,
    pub leader: u64,
    pub leads: bool,
    /// It is a candidate.
    pub stands: bool,
    pub last: u64,
    /// What is committed, and of which term the last entry of that is.
    pub commit: (u64, u64),
    /// What the leader knows the sender to have, if it leads and knows the sender.
    pub matched: Option<u64>,
    pub settling: bool,
    /// All it has is durable: term, vote and log.
    pub durable: bool,
    pub sole_voter: bool,
    /// It knows no members: it has never seen a snapshot.
    pub blank: bool,
    /// A snapshot is on its way to the disk.
    pub installing: bool,
    pub unapplied_full: bool,
}

/// Decides whether `message` is stepped.
pub(super) fn admit(message: &Message, view: &View) -> Result<(), Dropped> {
    let m = &message.0;
    let kind = message.kind();
    if m.to != view.me || m.from == view.me || m.from == 0 {
        return Err(Dropped::Misdirected);
    }
    let numbers = [m.term, m.log_term, m.index, m.commit, m.commit_term, m.reject_hint];
    if numbers.iter().any(|&number| number > NUMBER_MAX) {
        return Err(Dropped::Nonsense("a number beyond every log"));
    }
    if (m.term == 0) != (kind == MessageKind::AskReadIndex) {
        return Err(Dropped::Nonsense("a term where none belongs, or none where one does"));
    }
    match kind {
        MessageKind::Append => {
            // With a term of 0 the library would take an index behind its log for a match.
            if (m.log_term == 0) != (m.index == 0) || m.log_term > m.term {
                return Err(Dropped::Nonsense("an append after an impossible entry"));
            }
            // Terms do not fall along a log, and what is committed is in the log of every leader. The
            // library would look for the place where the logs part in what was released.
            let (commit, commit_term) = view.commit;
            if m.index >= commit && m.log_term < commit_term {
                return Err(Dropped::Nonsense(
                    "an append after an entry older than what is committed",
                ));
            }
            let mut before = (m.index, m.log_term);
            for entry in m.entries.iter() {
                if entry.index != before.0 + 1 || entry.term < before.1.max(1) {
                    return Err(Dropped::Nonsense("entries that do not follow one another"));
                }
                before = (entry.index, entry.term);
            }
            if before.1 > m.term {
                return Err(Dropped::Nonsense("an entry from the future"));
            }
            if view.blank && m.index == 0 && !m.entries.is_empty() {
                return Err(Dropped::Nonsense("a log from its beginning without the members"));
            }
            // An append to the end of the log passes even when it is full, if it brings nothing.
            if view.unapplied_full && !m.entries.is_empty() {
                return Err(Dropped::Busy);
            }
        }
        MessageKind::AppendReply => {
            if m.term == view.term {
                if !view.leads {
                    return Err(Dropped::Role);
                }
                let matched = view.matched.ok_or(Dropped::Stranger)?;
                if !m.reject && m.index > view.last {
                    return Err(Dropped::Nonsense("a reply about entries that do not exist"));
                }
                // What a follower confirmed in this term stays. The library would step back behind
                // it (raft-rs issue 555) when replies overtake each other.
                if m.reject && m.index <= matched {
                    return Err(Dropped::Stale);
                }
            }
        }
        MessageKind::AskPreVote | MessageKind::AskVote => {
            if view.settling {
                return Err(Dropped::Settling);
            }
        }
        MessageKind::Heartbeat => {
            if m.term >= view.term && m.commit > view.last {
                return Err(Dropped::LostEntries);
            }
        }
        MessageKind::Snapshot => {
            let meta = message.snapshot().ok_or(Dropped::Nonsense("a snapshot of nothing"))?;
            let possible = (1..=NUMBER_MAX).contains(&meta.index)
                && (1..=m.term).contains(&meta.term)
                && meta.members.check().is_ok()
                && !meta.members.voters.is_empty();
            if !possible {
                return Err(Dropped::Nonsense("a snapshot of an impossible state"));
            }
        }
        MessageKind::TakeOver => {
            if m.term != view.term || m.from != view.leader || view.sole_voter {
                return Err(Dropped::Role);
            }
            if view.installing {
                return Err(Dropped::Busy);
            }
        }
        MessageKind::AskReadIndex | MessageKind::ReadIndex => {
            if m.entries.len() != 1 || m.entries[0].data.len() != CONTEXT_LEN {
                return Err(Dropped::Nonsense("a read without its context"));
            }
            if (kind == MessageKind::AskReadIndex) != view.leads {
                return Err(Dropped::Role);
            }
            if kind == MessageKind::ReadIndex && (m.term != view.term || m.index == 0) {
                return Err(Dropped::Stale);
            }
        }
        MessageKind::Vote => {
            // It asks once term, vote and log are durable, and the log does not change while it
            // waits for answers. The library relies on that when it becomes leader.
            if view.stands && m.term == view.term && !m.reject && !view.durable {
                return Err(Dropped::Nonsense("a vote that nobody asked for"));
            }
        }
        MessageKind::PreVote | MessageKind::HeartbeatReply => {}
    }
    Ok(())
}
