//! Tests of the whole module.

mod alone;
mod cluster;
mod hostile;

use raft::eraftpb;

use super::message::{Message, MessageKind};

/// A rule left out, to see that the tests notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// All rules hold.
    None,
    /// Votes leave before they are durable.
    EarlyVotes,
    /// Appends are confirmed before they are durable.
    EarlyConfirmations,
}

impl Mutant {
    /// Moves messages that must wait to those that leave at once.
    pub(super) fn misplace(
        self,
        after: &mut Vec<eraftpb::Message>,
        at_once: &mut Vec<eraftpb::Message>,
    ) {
        let early = match self {
            Mutant::None => return,
            Mutant::EarlyVotes => MessageKind::Vote,
            Mutant::EarlyConfirmations => MessageKind::AppendReply,
        };
        at_once.extend(after.extract_if(.., |m| Message(m.clone()).kind() == early));
    }
}
