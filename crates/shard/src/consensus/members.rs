//! Who belongs to a group, and how that may change.
//!
//! A change is always *joint*: it names all replicas that move, the group then needs majorities of
//! the old and of the new voters, and a second entry, proposed by whoever leads, ends that state.
//!
//! ```text
//!   (1 2 3)  --[+4 -3]-->  (1 2 4) and (1 2 3)  --[leave]-->  (1 2 4), 3 is a learner
//! ```
//!
//! # Rules of a change
//! - A voter comes from the learners and goes back to them: nobody votes with an empty log, and a
//!   removed replica knows it before it loses its vote.
//! - A learner is promoted when it is near the leader's log.
//! - The leader neither removes nor demotes itself: it transfers first.
//! - Old and new voters must have a majority that was heard from lately.
//! - Two voters are refused: either of them down would stop the group, which is worse than one.

use std::fmt;

use atoll_encoding::{Malformed, Reader, varint};
use raft::eraftpb;

/// Longest list of replicas that is decoded. Groups have a handful.
const MEMBERS_MAX: usize = 64;

/// The replicas of a group by role. Stored by the owner together with the applied index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Replicas whose majority decides, ascending.
    pub voters: Vec<u64>,
    /// Replicas that only follow, ascending.
    pub learners: Vec<u64>,
    /// In a joint state: the voters before it, whose majority is needed too. Else empty.
    pub outgoing: Vec<u64>,
    /// In a joint state: voters before it that become learners when it ends.
    pub learners_next: Vec<u64>,
}

impl Members {
    /// Returns a group with these voters and no learners.
    pub fn of_voters(voters: impl IntoIterator<Item = u64>) -> Members {
        let mut voters: Vec<u64> = voters.into_iter().collect();
        voters.sort_unstable();
        Members { voters, ..Members::default() }
    }

    /// Returns whether a change is half-way: majorities of two sets of voters are needed.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Returns whether `replica` votes.
    pub fn is_voter(&self, replica: u64) -> bool {
        self.voters.contains(&replica) || self.outgoing.contains(&replica)
    }

    /// Returns whether `replica` belongs to the group.
    pub fn contains(&self, replica: u64) -> bool {
        self.is_voter(replica) || self.learners.contains(&replica)
    }

    /// Returns whether `replica` decides alone.
    pub(super) fn is_sole_voter(&self, replica: u64) -> bool {
        self.voters == [replica] && self.outgoing.iter().all(|&id| id == replica)
    }

    /// Returns whether nobody else belongs to the group.
    pub fn is_alone(&self, replica: u64) -> bool {
        self.is_sole_voter(replica) && self.learners.is_empty()
    }

    /// Says what is wrong with a list that did not come from this module.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let lists = [&self.voters, &self.learners, &self.outgoing, &self.learners_next];
        if lists.iter().any(|list| list.len() > MEMBERS_MAX) {
            return Err("too many members");
        }
        if lists.iter().any(|list| list.contains(&0) || !list.is_sorted_by(|a, b| a < b)) {
            return Err("members that are not ascending and above 0");
        }
        if self.voters.is_empty() && lists.iter().any(|list| !list.is_empty()) {
            return Err("members without a voter");
        }
        if self.learners.iter().any(|&id| self.is_voter(id)) {
            return Err("a member that is both voter and learner");
        }
        let staged = |id: &u64| self.outgoing.contains(id) && !self.voters.contains(id);
        if !self.learners_next.iter().all(staged) {
            return Err("a next learner that is no outgoing voter");
        }
        Ok(())
    }

    pub(super) fn to_raft(&self) -> eraftpb::ConfState {
        eraftpb::ConfState {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: false,
            ..Default::default()
        }
    }

    pub(super) fn from_raft(state: &eraftpb::ConfState) -> Members {
        let sorted = |list: &[u64]| {
            let mut list = list.to_vec();
            list.sort_unstable();
            list
        };
        Members {
            voters: sorted(&state.voters),
            learners: sorted(&state.learners),
            outgoing: sorted(&state.voters_outgoing),
            learners_next: sorted(&state.learners_next),
        }
    }

    /// Appends the encoding: four lists, each a count and ascending differences.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for list in [&self.voters, &self.learners, &self.outgoing, &self.learners_next] {
            varint::put(out, list.len() as u64);
            let mut before = 0;
            for &id in list {
                varint::put(out, id.wrapping_sub(before));
                before = id;
            }
        }
    }

    /// Reads what [`Members::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Members, Malformed> {
        let mut lists: [Vec<u64>; 4] = Default::default();
        for list in &mut lists {
            let count = reader.varint("a count of members")?;
            if count > MEMBERS_MAX as u64 {
                return Err(reader.malformed("at most 64 members"));
            }
            let mut before = 0u64;
            for _ in 0..count {
                let step = reader.varint("a member")?;
                let id = before.checked_add(step).filter(|_| step > 0);
                before = id.ok_or(reader.malformed("ascending members"))?;
                list.push(before);
            }
        }
        let [voters, learners, outgoing, learners_next] = lists;
        let members = Members { voters, learners, outgoing, learners_next };
        members.check().map_err(|_| reader.malformed("members that form a group"))?;
        Ok(members)
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, ids: &[u64]| {
            if ids.is_empty() { Ok(()) } else { write!(f, " {name} {ids:?}") }
        };
        write!(f, "voters {:?}", self.voters)?;
        list(f, "outgoing", &self.outgoing)?;
        list(f, "learners", &self.learners)?;
        list(f, "learners next", &self.learners_next)
    }
}

/// One replica's part in a change of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new replica follows.
    AddLearner(u64),
    /// A learner becomes a voter.
    Promote(u64),
    /// A voter becomes a learner.
    Demote(u64),
    /// A learner leaves the group.
    Remove(u64),
}

impl Change {
    /// Returns the replica.
    pub fn replica(&self) -> u64 {
        match *self {
            Change::AddLearner(id) | Change::Promote(id) | Change::Demote(id) => id,
            Change::Remove(id) => id,
        }
    }
}

/// Encodes changes as the payload of an entry; none at all ends the joint state.
pub(super) fn encode_changes(changes: &[Change]) -> Vec<u8> {
    let mut out = vec![1];
    varint::put(&mut out, changes.len() as u64);
    for change in changes {
        out.push(match change {
            Change::AddLearner(_) => 1,
            Change::Promote(_) => 2,
            Change::Demote(_) => 3,
            Change::Remove(_) => 4,
        });
        varint::put(&mut out, change.replica());
    }
    out
}

/// Decodes what [`encode_changes`] wrote.
pub(super) fn decode_changes(bytes: &[u8]) -> Result<Vec<Change>, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8("a version")? != 1 {
        return Err(Malformed { offset: 0, expected: "version 1 of a member change" });
    }
    let count = reader.varint("a count of changes")?;
    if count > MEMBERS_MAX as u64 {
        return Err(reader.malformed("at most 64 changes"));
    }
    let mut changes = Vec::new();
    for _ in 0..count {
        let kind = reader.u8("the kind of a change")?;
        let id = reader.varint("a replica")?;
        if id == 0 {
            return Err(reader.malformed("a replica above 0"));
        }
        changes.push(match kind {
            1 => Change::AddLearner(id),
            2 => Change::Promote(id),
            3 => Change::Demote(id),
            4 => Change::Remove(id),
            _ => return Err(reader.malformed("a known kind of change")),
        });
    }
    reader.finish("the end of the changes")?;
    Ok(changes)
}

/// Translates changes for the consensus library.
pub(super) fn to_raft(changes: &[Change]) -> eraftpb::ConfChangeV2 {
    let mut out = eraftpb::ConfChangeV2::default();
    if !changes.is_empty() {
        out.transition = eraftpb::ConfChangeTransition::Explicit;
    }
    for change in changes {
        out.changes.push(eraftpb::ConfChangeSingle {
            node_id: change.replica(),
            change_type: match change {
                Change::Promote(_) => eraftpb::ConfChangeType::AddNode,
                Change::AddLearner(_) | Change::Demote(_) => {
                    eraftpb::ConfChangeType::AddLearnerNode
                }
                Change::Remove(_) => eraftpb::ConfChangeType::RemoveNode,
            },
            ..Default::default()
        });
    }
    out
}

/// What the leader knows of the others, as far as a change depends on it.
pub(super) trait Health {
    /// Whether `replica` was heard from lately.
    fn is_heard(&self, replica: u64) -> bool;
    /// Whether `replica`'s log is near the end of the leader's.
    fn is_caught_up(&self, replica: u64) -> bool;
}

/// Says why the leader `me` should not make `changes` to `members`. Not joint is a precondition.
pub(super) fn refuse(
    members: &Members,
    me: u64,
    changes: &[Change],
    health: &impl Health,
) -> Option<&'static str> {
    if changes.is_empty() {
        return Some("it changes nothing");
    }
    if changes.len() > MEMBERS_MAX {
        return Some("it names too many replicas");
    }
    let mut voters = members.voters.clone();
    for (at, change) in changes.iter().enumerate() {
        let id = change.replica();
        if id == 0 || changes[..at].iter().any(|before| before.replica() == id) {
            return Some("it names a replica twice, or replica 0");
        }
        let (votes, learns) = (members.voters.contains(&id), members.learners.contains(&id));
        match change {
            Change::AddLearner(_) if votes || learns => return Some("the replica is a member"),
            Change::AddLearner(_) if members.voters.len() + members.learners.len() >= 32 => {
                return Some("the group has 32 members");
            }
            Change::AddLearner(_) => {}
            Change::Promote(_) if !learns => return Some("only a learner is promoted"),
            Change::Promote(_) if !health.is_caught_up(id) => {
                return Some("the learner has to catch up first");
            }
            Change::Promote(_) => voters.push(id),
            Change::Demote(_) if id == me => return Some("transfer leadership first"),
            Change::Demote(_) if !votes => return Some("only a voter is demoted"),
            Change::Demote(_) => voters.retain(|&voter| voter != id),
            Change::Remove(_) if !learns => return Some("only a learner is removed: demote first"),
            Change::Remove(_) => {}
        }
    }
    if voters.len() == 2 && voters.len() != members.voters.len() {
        return Some("two voters are worse than one: go to one or three");
    }
    let majority = |voters: &[u64]| {
        let heard = voters.iter().filter(|&&id| id == me || health.is_heard(id)).count();
        heard > voters.len() / 2
    };
    if !majority(&members.voters) || !majority(&voters) {
        return Some("no majority of the voters, old or new, was heard from lately");
    }
    None
}
