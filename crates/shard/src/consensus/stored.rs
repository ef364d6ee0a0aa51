//! Starting from what is stored: what the owner read back, and whether it can be true.
//!
//! The library ends the process when it is started from a state that contradicts itself. Such a
//! state is damage of one replica, not of the process, so it is found here and reported; the owner
//! sets the replica aside.
//!
//! # What the log knows of its commits
//! The stored commit index may lag far behind, and for entries that does not matter: a new leader
//! commits them again. Changes of members are different. The members in force are those of the
//! applied state, so a replica that forgot that a change was committed would act by members that
//! are long gone:
//!
//! ```text
//!   log of replica 1    ... | +2 +3 | ... | leave | ...        applied: before all this
//!                            (1 2 3) and (1)  (1 2 3)
//! ```
//!
//! It would take itself for the only voter and lead, while 2 and 3 do the same without it. But a
//! leader proposes a change only once all changes before it are applied, so **every change of
//! members in a log but the last is committed**, whatever was stored. The commit index starts at
//! least there; the library does not campaign before what is committed of the changes is
//! applied; and about the last change the overlap of joint majorities makes it right to be in
//! doubt.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use raft::eraftpb::HardState;
use raft::{RawNode, ReadOnlyOption};

use super::cache::{Cache, Terms};
use super::entry::{Entry, EntryKind};
use super::members::Members;
use super::read::Reads;
use super::{Consensus, Leadership, Role};

/// How a replica behaves. Times are in ticks.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group.
    pub group: u64,
    /// This replica. An id is never used again for another one.
    pub replica: u64,
    /// A number that no two starts of this replica share: a lane position, a count of starts.
    pub incarnation: u64,
    /// A follower that hears nothing for so long tries to become leader, if its rank is 0; also
    /// how long a leader goes on without hearing a majority.
    pub election_ticks: u32,
    /// A leader sends something to every follower so often.
    pub heartbeat_ticks: u32,
    /// Place in the order in which replicas try to become leader, 0 is first.
    pub rank: u32,
    /// How much longer each rank waits than the one before it.
    pub rank_ticks: u32,
    /// Spreads the waiting of replicas whose first try failed.
    pub seed: u64,
    /// So long after a start the replica neither votes nor asks for votes: an old leader may count
    /// on its word. Not for a group that has no other member.
    pub settle_ticks: u64,
    /// Votes for a candidate of lower priority are refused unless its log is longer.
    pub priority: i64,
    /// Most bytes of entries in one message, but at least one entry.
    pub message_bytes_max: u64,
    /// Most appends that a follower has not answered.
    pub inflight_messages_max: usize,
    /// Most bytes that are proposed and not committed; one proposal is always taken.
    pub uncommitted_bytes_max: u64,
    /// Most bytes of committed entries in one batch, but at least one entry.
    pub committed_bytes_max: u64,
    /// Most bytes of entries that wait to be applied at a follower before it drops new ones.
    pub unapplied_bytes_max: usize,
    /// Bytes of applied entries kept in memory for followers.
    pub cache_bytes: usize,
    /// A learner this many entries behind may become a voter.
    pub promote_lag: u64,
    /// The members never changed, so each of them knows those of the log's beginning: one that has nothing
    /// can be given the log from there.
    pub founded: bool,
}

impl Config {
    /// Ranks above it wait like it.
    pub const RANK_MAX: u32 = 31;

    /// Returns the usual figures, for ticks of 50 ms.
    pub fn new(group: u64, replica: u64) -> Config {
        Config {
            group,
            replica,
            incarnation: 0,
            election_ticks: 10,
            heartbeat_ticks: 2,
            rank: 0,
            rank_ticks: 2,
            seed: group,
            settle_ticks: 10,
            priority: 0,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 256,
            uncommitted_bytes_max: 64 << 20,
            committed_bytes_max: 4 << 20,
            unapplied_bytes_max: 64 << 20,
            cache_bytes: 1 << 20,
            promote_lag: 1000,
            founded: false,
        }
    }

    fn to_raft(&self, applied: u64) -> raft::Config {
        let election = self.election_ticks as usize;
        let spread = (Config::RANK_MAX as usize + 1) * self.rank_ticks as usize;
        raft::Config {
            id: self.replica,
            election_tick: election,
            heartbeat_tick: self.heartbeat_ticks as usize,
            min_election_tick: election,
            max_election_tick: election + spread + 1,
            applied,
            max_size_per_msg: self.message_bytes_max,
            max_inflight_msgs: self.inflight_messages_max,
            check_quorum: true,
            pre_vote: true,
            // The other kind is no lease: it trusts a leader that may have been replaced.
            read_only_option: ReadOnlyOption::Safe,
            skip_bcast_commit: false,
            // It would join messages beyond their size limit; the owner proposes once a turn anyway.
            batch_append: false,
            priority: self.priority,
            max_uncommitted_size: self.uncommitted_bytes_max.max(self.message_bytes_max),
            max_committed_size_per_ready: self.committed_bytes_max,
        }
    }
}

/// Term, vote and commit index of a replica: what it must not forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// The current term.
    pub term: u64,
    /// Who got this replica's vote in that term, 0 for nobody.
    pub vote: u64,
    /// Highest index known to be committed. May lag behind the truth.
    pub commit: u64,
}

/// What a replica finds when it starts.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Its last stored state.
    pub state: GroupState,
    /// The members as of the applied index.
    pub members: Members,
    /// Highest index whose effect is in the state machine.
    pub applied: u64,
    /// Lowest index in the log; one above the applied index if the log is empty.
    pub first: u64,
    /// The terms of what is applied: where each begins, ascending, the first at or below
    /// `first - 1`. Unless the log begins at 1 there is at least one.
    pub terms: Vec<(u64, u64)>,
    /// The entries above the applied index, up to the end of the log.
    pub entries: Vec<Entry>,
}

impl Stored {
    /// Returns the state of a replica that was added to a group and has nothing: the leader sends
    /// it a snapshot.
    pub fn blank() -> Stored {
        Stored { first: 1, ..Stored::default() }
    }

    /// Returns the state of a new group of these members, without a log. All its first voters
    /// start from it.
    pub fn new_group(members: Members) -> Stored {
        Stored { members, first: 1, ..Stored::default() }
    }
}

/// Why a replica cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// The configuration is wrong: correct it.
    Config(String),
    /// What is stored contradicts itself: set the replica aside and make a new one.
    Corruption(String),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Config(why) => write!(f, "the consensus configuration is wrong: {why}"),
            RestoreError::Corruption(why) => {
                write!(f, "the stored consensus state is damaged: {why}")
            }
        }
    }
}

impl std::error::Error for RestoreError {}

/// Checks what is stored; returns the terms and the last index.
fn check(stored: &Stored) -> Result<(Terms, u64), String> {
    let Stored { state, members, applied, first, terms, entries } = stored;
    let (applied, first) = (*applied, *first);
    members.check()?;
    if first == 0 || first > applied.saturating_add(1) {
        return Err(format!("the log begins at {first}, and {applied} is applied"));
    }
    if members.voters.is_empty() && (applied > 0 || !entries.is_empty()) {
        return Err("there are entries but no voters".into());
    }
    let mut runs = match terms.first() {
        None if first == 1 && applied == 0 => Terms::new(0, 0),
        Some(&(from, term)) if from < first && (term > 0 || first == 1) => {
            Terms::new(first - 1, if first == 1 { 0 } else { term })
        }
        _ => return Err(format!("the term of entry {} is not known", first - 1)),
    };
    let mut before = (first - 1, runs.get(first - 1).unwrap_or(0));
    for &(from, term) in terms {
        if from >= first {
            if from > applied || from <= before.0 && from != first || term <= before.1 {
                return Err(format!("term {term} begins at {from}, after {before:?}"));
            }
            before = (from, term);
            runs.push(from, term);
        }
    }
    if applied > 0 && before.1 == 0 {
        return Err(format!("the term of entry {applied} is not known"));
    }
    let mut last = (applied, before.1);
    for entry in entries {
        if entry.index() != last.0 + 1 || entry.term() < last.1.max(1) {
            return Err(format!("entry {entry:?} follows entry {} of term {}", last.0, last.1));
        }
        last = (entry.index(), entry.term());
    }
    if last.1 > state.term {
        return Err(format!("the last entry is of term {}, the state of {}", last.1, state.term));
    }
    if state.commit > last.0 {
        return Err(format!("{} is committed, but the log ends at {}", state.commit, last.0));
    }
    Ok((runs, last.0))
}

pub(super) fn restore(config: Config, stored: Stored) -> Result<Consensus, RestoreError> {
    let (terms, _) = check(&stored).map_err(RestoreError::Corruption)?;
    if config.election_ticks > 1 << 20 || config.rank_ticks > 1 << 10 {
        return Err(RestoreError::Config("an election takes too long".into()));
    }
    let Stored { state, members, applied, first, entries, .. } = stored;
    let mut changes = entries.iter().rev().filter(|entry| entry.kind() == EntryKind::Change);
    let known = changes.nth(1).map_or(0, Entry::index);
    let hard_state = HardState {
        term: state.term,
        vote: state.vote,
        // The state may have been stored before the last entries were applied.
        commit: state.commit.max(applied).max(known),
        ..Default::default()
    };
    let mut cache = Cache::new(hard_state, members.to_raft(), first, applied, terms);
    cache.append(&entries.into_iter().map(|entry| entry.0).collect::<Vec<_>>());
    if config.founded {
        cache.found();
    }
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let raft = RawNode::new(&config.to_raft(applied), cache, &logger)
        .map_err(|error| RestoreError::Config(error.to_string()))?;
    let mut consensus = Consensus {
        raft,
        reads: Reads::new(config.replica, config.incarnation),
        config,
        members,
        stored: (state.term, state.vote),
        leadership: Leadership { role: Role::Follower, leader: None, term: state.term },
        handed: 0,
        durable: 0,
        in_flight: VecDeque::new(),
        state_in: 0,
        held: VecDeque::new(),
        released: Vec::new(),
        installing: VecDeque::new(),
        change_applied: applied,
        attempts: 0,
        ticks: 0,
        heard: BTreeMap::new(),
        answered: Vec::new(),
        #[cfg(test)]
        mutant: super::tests::Mutant::None,
    };
    consensus.settle();
    Ok(consensus)
}
