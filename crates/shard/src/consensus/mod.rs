//! Consensus: the replicas of a group agree on the order of its entries.
//!
//! A group is a log and those who keep it. One replica *leads*: it appends what is proposed, and
//! an entry is *committed* once a majority of the voters has it on stable storage. Committed
//! entries come out in order, the same at every replica, and never change. That is Raft; the
//! algorithm is the `raft` crate's, and this module is what makes it fit: no type of that crate
//! leaves it, so it could be replaced.
//!
//! [`Consensus`] is a plain state machine. Calls put messages, proposals and ticks in,
//! [`ShardConsensus::ready`] takes out what the owner must do. There is no I/O, no clock and no
//! chance in it: the same calls give the same effects.
//!
//! ```text
//!   step, tick, propose, ...        persisted(3)             applied(41)
//!           |                            |                        |
//!           v                            v                        v
//!     ready() = Effects 3  --->  ready() = Effects 4  --->  ready() = ...
//!       install, state, entries    messages that 3 held
//!       messages (may go now)      committed (41), reads
//!       committed, reads
//!           |                            |
//!           v                            v
//!     log batch, one sync          send, apply: data, applied index and
//!     for all groups               members in one write of the tree
//! ```
//!
//! # The owner's loop
//! 1. After any call, take [`Effects`] until there are none. Send the messages at once: a leader's
//!    appends travel while its own disk works.
//! 2. Install the snapshot (in one step: the state machine, its applied index and members, and the
//!    log's new beginning), then write the state, then the entries; batches in order of their
//!    numbers. A crash may leave any first part of that. Sync once for all groups, if any batch
//!    says `must_sync`.
//! 3. Then [`ShardConsensus::persisted`] with the highest number. A batch without `must_sync` needs
//!    no call. Batches may pile up: `ready` does not wait for `persisted`.
//! 4. Apply the committed entries in order; for [`EntryKind::Change`] call
//!    [`Consensus::apply_change`] and store the members with the applied index. Then
//!    [`ShardConsensus::applied`].
//! 5. Read what [`Consensus::wanted`] asks for, build the snapshots that are wanted.
//!
//! The commit index need not be stored: it is only a hint for the next start, and is written along
//! with a new term or vote. What is applied is committed, a leader finds out the rest, and about
//! changes of members the log itself knows enough (`stored.rs`).
//!
//! A replica that votes alone leads as soon as its log is durable, and commits by `persisted`
//! alone, without a tick.
//!
//! # Invariants
//! - **Persist before promise.** Messages that promise something (votes, confirmations of appends)
//!   wait inside until the batch they depend on is durable. The owner cannot send them early.
//! - **One batch, one truth.** What a batch hands out for the log is readable by the library from
//!   then on (`cache.rs`); a restart finds some prefix of the batches.
//! - **Nothing waits for a disk.** Unapplied entries and all terms are in memory.
//! - **No word is taken on trust.** What could contradict the log is refused before the library
//!   sees it: messages in `admit.rs`, stored states in `stored.rs`. The library's panics are then
//!   bugs, and may end the process.
//! - **A payload is allocated once.** Everything that carries it holds a reference.
//!
//! # Elections
//! Replicas are ranked, and rank r waits `election_ticks + r * rank_ticks`: the next in line takes
//! over, nobody splits the vote. Only a second try is spread, by a hash of seed, term and try.
//! The library draws a random timeout at each change of role or term; it is replaced before
//! the next tick.
//!
//! # Where the known pitfalls are handled
//!
//! | pitfall | where |
//! |---|---|
//! | order of sending, persisting, applying; stepping between batches | `ready`, `held` |
//! | commit index behind the applied one, or beyond the log, at a start | `stored.rs` |
//! | read questions lost, answered twice, answered by an old leader | `read.rs`, `read_index` |
//! | a start within the lease of a leader this replica supported | `settle_ticks` |
//! | two changes at once, unfinished joint states, removed leaders | `members.rs`, `leave_joint` |
//! | learners promoted too early, minorities changed away | `members.rs` |
//! | snapshots that block, or that wait for ever | `offer_snapshot`, `report_snapshot` |
//! | slow followers | windows of the library, [`Dropped::Busy`], `unapplied_bytes_max` |
//! | proposals forwarded behind the owner's back | `check_leads` |
//! | replies that overtake each other (raft-rs 555) | `admit.rs` |
//! | a replica that lost confirmed entries | [`Dropped::LostEntries`] |
//! | the only voter, elected before its log is durable | `lead_alone` |
//! | the only voter, sending before its term is durable | `state_in` |
//! | a restart that forgets a committed change of members | `stored.rs` |
//! | an election while a snapshot is being installed | `may_campaign` |
//!
//! # What is left to the owner
//! Leases and the reads they serve (a leader hands out none here; [`Status::transferring_to`] tells
//! when to stop them), ticking only groups that are awake, packing heartbeats of many groups,
//! ordered delivery per pair of stores, tombstones of removed replicas, when to release the log
//! and how many snapshots may travel, ending the process when a sync fails.
//!
//! # Rejected
//! *Storing the commit index with every batch*: a state frame for each entry, and nothing gained.
//! *Handing out messages together with a rule when they may leave*: a rule can be broken.
//! *The library's own encoding*: see `message.rs`.

mod admit;
mod cache;
mod entry;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod members;
mod message;
mod read;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Range;

use atoll_encoding::hash::hash64;
use bytes::Bytes;
use raft::eraftpb;
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};

pub use admit::Dropped;
pub use entry::{Entry, EntryKind};
pub use members::{Change, Members};
pub use message::{Message, MessageKind, SnapshotMeta};
pub use read::{ReadId, ReadIndex};
pub use stored::{Config, GroupState, RestoreError, Stored};

use crate::mutants;
use admit::View;
use cache::Cache;
use entry::wrap;
use members::Health;
use read::Reads;

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads: the only one that takes proposals.
    Leader,
}

impl Role {
    fn of(state: StateRole) -> Role {
        match state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }
}

/// Who leads, as one replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// What this replica is.
    pub role: Role,
    /// The leader, if it knows one.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
}

/// Where a proposal will be found if it commits: when another entry is applied at that index, or
/// one of another term, it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Term of the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: u64,
}

/// Why something was not begun. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another replica leads, or none: go to the leader.
    NotLeader {
        /// The leader, if this replica knows one.
        leader: Option<u64>,
    },
    /// Leadership is being given to another replica: wait for it, then go there.
    Transferring {
        /// The next leader.
        to: u64,
    },
    /// Too many bytes are proposed and not committed: wait until some are.
    TooMuch,
    /// The leader has not committed anything in its term yet: try again soon.
    NotYet,
    /// The group is in the middle of a change of members: wait until it is applied.
    ChangeInProgress,
    /// The change breaks a rule: propose another.
    Rule(&'static str),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotLeader { leader: Some(leader) } => {
                write!(f, "replica {leader} leads the group; go there")
            }
            Refused::NotLeader { leader: None } => {
                f.write_str("the group has no known leader; try again")
            }
            Refused::Transferring { to } => {
                write!(f, "replica {to} is about to lead the group; try again there")
            }
            Refused::TooMuch => f.write_str("too many writes are in flight; try again"),
            Refused::NotYet => f.write_str("the leader is new and not ready; try again"),
            Refused::ChangeInProgress => {
                f.write_str("the members of the group are changing; try again when that is done")
            }
            Refused::Rule(why) => write!(f, "the change of members is not allowed: {why}"),
        }
    }
}

impl std::error::Error for Refused {}

/// A committed change of members that cannot be applied: this replica's state is not what the
/// group's is. It must stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diverged(String);

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Diverged {}

/// What the owner has to do. The order is that of the fields; see the module's text.
#[derive(Debug, Default)]
pub struct Effects {
    /// Names this batch for [`ShardConsensus::persisted`]. Numbers ascend by one.
    pub number: u64,
    /// Replace the state by this snapshot, in one piece and durably, before anything else of the
    /// batch. Everything handed out for applying before is void.
    pub install: Option<SnapshotMeta>,
    /// Store this, before the entries.
    pub state: Option<GroupState>,
    /// Append these to the log. The first may be at or below the log's last index: what is there
    /// and above it goes.
    pub entries: Vec<Entry>,
    /// Whether the batch has something that must reach stable storage. If not, it counts as
    /// persisted already, and `persisted` need not be called for it.
    pub must_sync: bool,
    /// Send these now. What must wait for the disk is in a later batch.
    pub messages: Vec<Message>,
    /// Apply these, in order.
    pub committed: Vec<Entry>,
    /// Reads that may begin once their index is applied.
    pub reads: Vec<ReadIndex>,
    /// Who leads, if that changed.
    pub leadership: Option<Leadership>,
    /// Followers that need a snapshot: build one and call `offer_snapshot`.
    pub snapshots_wanted: Vec<u64>,
}

/// How far a group is, seen from one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The group.
    pub group: u64,
    /// This replica.
    pub replica: u64,
    /// Who leads.
    pub leadership: Leadership,
    /// Who got this replica's vote in this term.
    pub vote: Option<u64>,
    /// Lowest index in the log.
    pub first: u64,
    /// Highest index in the log, durable or not.
    pub last: u64,
    /// Highest index that is durable here.
    pub persisted: u64,
    /// Highest index known to be committed.
    pub commit: u64,
    /// Highest index applied here.
    pub applied: u64,
    /// The members, as far as applied here.
    pub members: Members,
    /// Who is about to lead, if this replica leads and gives it up.
    pub transferring_to: Option<u64>,
    /// Bytes proposed here and not committed.
    pub uncommitted_bytes: usize,
    /// Bytes of entries in memory.
    pub cached_bytes: usize,
    /// The others, if this replica leads.
    pub followers: Vec<Follower>,
}

/// How far the leader knows a follower to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follower {
    /// The replica.
    pub replica: u64,
    /// Highest index it has confirmed.
    pub matched: u64,
    /// Highest index it has said to be committed.
    pub commit: u64,
    /// Whether it waits for a snapshot.
    pub snapshot_pending: bool,
    /// Whether it was heard from within an election timeout.
    pub heard: bool,
}

/// The order of a group's entries, as a state machine without I/O, clock or randomness.
pub trait ShardConsensus {
    /// Takes a message from another replica.
    fn step(&mut self, message: Message) -> Result<(), Dropped>;

    /// Says that one tick of time has passed.
    fn tick(&mut self);

    /// Appends an entry with this payload. Once the effects that have it are persisted by a
    /// majority it comes back among the committed ones. An empty payload makes an entry that no
    /// state machine sees.
    fn propose(&mut self, payload: Bytes) -> Result<Proposed, Refused>;

    /// Begins a change of members. All of it takes effect together; the second half of the joint
    /// change is proposed by the module.
    fn propose_change(&mut self, changes: &[Change]) -> Result<Proposed, Refused>;

    /// Asks how far this replica must have applied for a read that begins now. The answer comes
    /// among the effects, or never: ask again after a while.
    fn read_index(&mut self) -> Result<ReadId, Refused>;

    /// Tries to become leader without waiting for the election timeout.
    fn campaign(&mut self);

    /// Gives leadership to a voter that has the whole log. Until that is done or an election
    /// timeout has passed, proposals are refused.
    fn transfer(&mut self, to: u64) -> Result<(), Refused>;

    /// Returns what there is to do. Call it after each of the others until it returns `None`; a
    /// batch may be taken while earlier ones are not persisted.
    fn ready(&mut self) -> Option<Effects>;

    /// Says that the batch of this number and all before it are durable.
    fn persisted(&mut self, number: u64);

    /// Says that everything up to `index` is applied.
    fn applied(&mut self, index: u64);

    /// Returns how far the group is.
    fn status(&self) -> Status;
}

/// The consensus of one replica of a group.
pub struct Consensus {
    raft: RawNode<Cache>,
    config: Config,
    members: Members,
    /// Term and vote as last handed out to be stored.
    stored: (u64, u64),
    leadership: Leadership,
    /// Number of the last batch handed out, and of the last one up to which all is durable.
    handed: u64,
    durable: u64,
    /// Numbers of the batches between them that have something to store.
    in_flight: VecDeque<u64>,
    /// Number of the last batch with a new term or vote.
    state_in: u64,
    /// Messages that wait for a batch to be durable, with its number.
    held: VecDeque<(u64, Vec<eraftpb::Message>)>,
    /// Messages whose batch is durable.
    released: Vec<eraftpb::Message>,
    /// Snapshots handed out, and not durable: number and index.
    installing: VecDeque<(u64, u64)>,
    /// Index of the last change of members applied.
    change_applied: u64,
    /// Elections begun since a leader was known.
    attempts: u32,
    /// Ticks since the replica was restored.
    ticks: u64,
    /// When other replicas were last heard, in ticks.
    heard: BTreeMap<u64, u64>,
    reads: Reads,
    answered: Vec<ReadIndex>,
    #[cfg(test)]
    pub(crate) mutant: tests::Mutant,
}

impl Consensus {
    /// Starts from what is stored. A replica that votes alone campaigns at once.
    pub fn restore(config: Config, stored: Stored) -> Result<Consensus, RestoreError> {
        stored::restore(config, stored)
    }

    /// Returns whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.raft.raft.state == StateRole::Leader
    }

    /// Returns the current term.
    pub fn term(&self) -> u64 {
        self.raft.raft.term
    }

    /// Returns the leader, if this replica knows one.
    pub fn leader(&self) -> Option<u64> {
        Some(self.raft.raft.leader_id).filter(|&id| id != raft::INVALID_ID)
    }

    /// Returns the highest index known to be committed.
    pub fn commit(&self) -> u64 {
        self.raft.raft.raft_log.committed
    }

    /// Returns the members as far as applied.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Returns whether nobody else belongs to the group.
    pub fn is_alone(&self) -> bool {
        self.members.is_alone(self.config.replica)
    }

    /// Returns who is about to lead, if this replica leads and gives it up.
    pub fn transferring_to(&self) -> Option<u64> {
        self.raft.raft.lead_transferee
    }

    /// Returns up to where every replica of the group is known to have the log, if this one leads.
    pub fn lowest_match(&self) -> u64 {
        self.raft.raft.prs().iter().map(|(_, progress)| progress.matched).min().unwrap_or(0)
    }

    /// Returns this replica's last index.
    pub fn last_index(&self) -> u64 {
        self.raft.raft.raft_log.last_index()
    }

    /// Returns whether a replica was heard from within an election timeout.
    pub fn hears(&self, replica: u64) -> bool {
        self.is_heard(replica)
    }

    /// Sets this replica's place in the order in which replicas try to become leader; 0 is first.
    pub fn set_rank(&mut self, rank: u32) {
        self.config.rank = rank;
        self.settle();
    }

    /// Applies a committed entry of kind [`EntryKind::Change`]; returns the members to be stored
    /// together with the applied index. Once for each such entry, in order, before
    /// [`ShardConsensus::applied`] is told its index.
    pub fn apply_change(&mut self, entry: &Entry) -> Result<Members, Diverged> {
        let at = entry.index();
        assert!(at > self.change_applied, "each change of members is applied once, in order");
        let diverged = |why: &dyn fmt::Display| {
            Diverged(format!("entry {at} changes the members in a way that cannot be: {why}"))
        };
        let changes = entry.changes().map_err(|error| diverged(&error))?;
        let state = self.raft.apply_conf_change(&members::to_raft(&changes));
        self.members = Members::from_raft(&state.map_err(|error| diverged(&error))?);
        self.change_applied = at;
        self.raft.mut_store().members_changed();
        self.heard.retain(|&id, _| self.members.contains(id));
        self.settle();
        Ok(self.members.clone())
    }

    /// Returns entries to be read from the log for [`Consensus::fetched`], as long as there are.
    pub fn wanted(&mut self) -> Option<Range<u64>> {
        self.raft.mut_store().wanted()
    }

    /// Hands in entries of a range that [`Consensus::wanted`] returned: all, the first few, or
    /// none if they could not be read (then they are asked for again, later).
    pub fn fetched(&mut self, range: Range<u64>, entries: Vec<Entry>) {
        let found = !entries.is_empty();
        let entries = entries.into_iter().map(|entry| entry.0).collect();
        let attempts = self.raft.mut_store().stash(&range, entries);
        if found {
            for attempt in attempts {
                self.raft.on_entries_fetched(attempt);
            }
        }
        self.raft.mut_store().unstash();
        self.settle();
    }

    /// Lets a snapshot be sent to a follower that needs one. The message only describes it: the
    /// owner holds it back until the follower has the data, or lets the follower fetch it.
    ///
    /// One that is no use (older than the log, or not applied here) is refused with the reason.
    pub fn offer_snapshot(&mut self, to: u64, snapshot: &SnapshotMeta) -> Result<(), &'static str> {
        let log = &self.raft.raft.raft_log;
        if snapshot.index == 0 || snapshot.index > log.applied {
            return Err("the snapshot is of a state that is not applied");
        }
        if snapshot.index + 1 < log.store.first() {
            return Err("the snapshot is older than the log");
        }
        if log.term(snapshot.index).ok() != Some(snapshot.term) {
            return Err("the snapshot is not of this log");
        }
        if !self.is_leader() || self.raft.raft.prs().get(to).is_none() {
            return Err("the follower does not want it any more");
        }
        self.raft.mut_store().offer(to, snapshot.to_raft());
        self.raft.raft.send_append(to);
        Ok(())
    }

    /// Says how the transfer of a snapshot to `to` ended. Every snapshot message needs it.
    pub fn report_snapshot(&mut self, to: u64, arrived: bool) {
        self.raft.mut_store().withdraw(to);
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raft.report_snapshot(to, status);
        self.settle();
    }

    /// Says that a message to `to` was probably lost.
    pub fn report_unreachable(&mut self, to: u64) {
        self.raft.report_unreachable(to);
        self.settle();
    }

    /// Says that the log below `first` is gone. It must be applied.
    pub fn released(&mut self, first: u64) {
        let applied = self.raft.raft.raft_log.applied;
        assert!(first <= applied + 1, "only applied entries are released");
        self.raft.mut_store().release(first);
    }

    /// Returns whether the replica was restored so lately that an old leader's lease, which it
    /// may have supported, could still run.
    fn is_settling(&self) -> bool {
        self.ticks < self.config.settle_ticks
            && !self.members.is_alone(self.config.replica)
            && !mutants::is("votes-after-a-start")
    }

    /// Returns whether a snapshot has arrived and is not durable. Until then the library would look
    /// for entries that it replaces, or lead by its members without having it.
    fn is_installing(&self) -> bool {
        !self.installing.is_empty() || self.raft.snap().is_some()
    }

    /// Returns whether this replica may ask for votes now.
    fn may_campaign(&self) -> bool {
        !self.is_settling() && !self.is_installing()
    }

    /// Returns whether this replica has an election timeout of its own: no chance is involved.
    fn election_timeout(&self) -> usize {
        let config = &self.config;
        let ranked = config.election_ticks + config.rank.min(Config::RANK_MAX) * config.rank_ticks;
        if self.attempts <= 1 || config.rank_ticks == 0 {
            return ranked as usize;
        }
        let mut seed = [0; 24];
        for (part, value) in seed.chunks_exact_mut(8).zip([
            config.seed,
            config.replica,
            self.raft.raft.term << 32 | u64::from(self.attempts),
        ]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        (u64::from(ranked) + hash64(&seed) % u64::from(config.rank_ticks)) as usize
    }

    /// Brings what is ours in line with the library's state, after every call that may change it.
    fn settle(&mut self) {
        let raft = &self.raft.raft;
        if raft.state == StateRole::Leader {
            self.attempts = 0;
            if self.members.is_joint() {
                self.leave_joint();
            }
        } else {
            if raft.leader_id != raft::INVALID_ID {
                self.attempts = 0;
            }
            if self.members.is_sole_voter(self.config.replica) {
                self.lead_alone();
            }
        }
        // The library draws a timeout at random with each change of role or term.
        let timeout = self.election_timeout();
        if self.raft.raft.randomized_election_timeout() != timeout {
            self.raft.raft.set_randomized_election_timeout(timeout);
        }
    }

    /// Makes the only voter leader, once nothing it has handed out is in the air: it wins by its
    /// own vote, so there is no answer to wait for that would prove its log durable.
    fn lead_alone(&mut self) {
        let raft = &self.raft.raft;
        let quiet = self.durable == self.handed
            && raft.msgs.is_empty()
            && raft.raft_log.unstable_entries().is_empty()
            && raft.raft_log.unstable_snapshot().is_none()
            && (raft.term, raft.vote) == self.stored;
        if quiet {
            // The library may refuse: a change of members waits to be applied. Then again later.
            let elected = self.raft.raft.step(hup(self.config.replica));
            debug_assert!(elected.is_ok(), "a call to elect is never dropped");
        }
    }

    /// Proposes the end of a joint state: whoever leads does, whoever began it.
    fn leave_joint(&mut self) {
        let raft = &self.raft.raft;
        if raft.has_pending_conf() || raft.lead_transferee.is_some() {
            return;
        }
        // Without room for it, the next call tries again.
        let _ = self.append_change(&[]);
    }

    fn append_change(&mut self, changes: &[Change]) -> Result<Proposed, Refused> {
        let payload = members::encode_changes(changes);
        let index = self.raft.raft.raft_log.last_index() + 1;
        let before = std::mem::replace(&mut self.raft.raft.pending_conf_index, index);
        let proposed = self.append(payload.into(), true);
        if proposed.is_err() {
            self.raft.raft.pending_conf_index = before;
        }
        proposed
    }

    /// The library's handling of a proposal, without wrapping it into a message first.
    fn append(&mut self, payload: Bytes, change: bool) -> Result<Proposed, Refused> {
        let raft = &mut self.raft.raft;
        let entry = Entry::new(0, 0, change, payload);
        if !raft.append_entry(std::array::from_mut(&mut { entry.0 })) {
            return Err(Refused::TooMuch);
        }
        let proposed = Proposed { term: raft.term, index: raft.raft_log.last_index() };
        if raft.prs().iter().len() > 1 {
            raft.bcast_append();
        }
        Ok(proposed)
    }

    fn check_leads(&self) -> Result<(), Refused> {
        let raft = &self.raft.raft;
        if raft.state != StateRole::Leader || raft.prs().get(self.config.replica).is_none() {
            let leader = self.leader().filter(|&id| id != self.config.replica);
            return Err(Refused::NotLeader { leader });
        }
        match raft.lead_transferee {
            Some(to) => Err(Refused::Transferring { to }),
            None => Ok(()),
        }
    }

    /// Returns how many bytes of applied entries stay in memory.
    fn keep_bytes(&self) -> usize {
        if self.members.is_alone(self.config.replica) { 0 } else { self.config.cache_bytes }
    }

    fn now_leadership(&self) -> Leadership {
        let raft = &self.raft.raft;
        Leadership { role: Role::of(raft.state), leader: self.leader(), term: raft.term }
    }

    fn is_heard(&self, replica: u64) -> bool {
        let timeout = u64::from(self.config.election_ticks);
        self.heard.get(&replica).is_some_and(|&at| self.ticks - at <= timeout)
    }

    /// Moves on to before the oldest batch in flight. Batches with nothing to store that follow a
    /// durable one are durable, too.
    fn on_durable(&mut self) {
        let durable = self.in_flight.front().map_or(self.handed, |oldest| oldest - 1);
        if durable == self.durable {
            return;
        }
        self.durable = durable;
        self.raft.on_persist_ready(self.durable);
        while let Some(&(number, index)) = self.installing.front() {
            if number > self.durable {
                break;
            }
            self.installing.pop_front();
            if index > self.raft.raft.raft_log.applied {
                self.raft.advance_apply_to(index);
            }
        }
        while let Some((number, _)) = self.held.front() {
            if *number > self.durable {
                break;
            }
            let (_, messages) = self.held.pop_front().expect("it was just seen");
            self.release_messages(messages);
        }
    }

    fn release_messages(&mut self, messages: Vec<eraftpb::Message>) {
        if self.released.is_empty() {
            self.released = messages;
        } else {
            self.released.extend(messages);
        }
    }
}

/// The library's call to elect.
fn hup(me: u64) -> eraftpb::Message {
    eraftpb::Message { msg_type: eraftpb::MessageType::MsgHup, from: me, ..Default::default() }
}

impl Health for Consensus {
    fn is_heard(&self, replica: u64) -> bool {
        Consensus::is_heard(self, replica)
    }

    fn is_caught_up(&self, replica: u64) -> bool {
        let last = self.raft.raft.raft_log.last_index();
        self.raft.raft.prs().get(replica).is_some_and(|progress| {
            progress.state != ProgressState::Snapshot
                && progress.matched + self.config.promote_lag >= last
        })
    }
}

impl ShardConsensus for Consensus {
    fn step(&mut self, message: Message) -> Result<(), Dropped> {
        let raft = &self.raft.raft;
        let view = View {
            me: self.config.replica,
            term: raft.term,
            leader: raft.leader_id,
            leads: raft.state == StateRole::Leader,
            stands: raft.state == StateRole::Candidate,
            last: raft.raft_log.last_index(),
            commit: {
                let commit = raft.raft_log.committed;
                (commit, raft.raft_log.term(commit).unwrap_or(0))
            },
            matched: raft.prs().get(message.from()).map(|progress| progress.matched),
            settling: self.is_settling(),
            durable: self.in_flight.is_empty()
                && raft.raft_log.unstable_entries().is_empty()
                && (raft.term, raft.vote) == self.stored,
            sole_voter: self.members.is_sole_voter(self.config.replica),
            blank: self.members.voters.is_empty(),
            installing: self.is_installing(),
            // Only while there is something to apply: what waits for its commit must not wait for
            // ever.
            unapplied_full: raft.raft_log.committed > raft.raft_log.applied
                && raft.raft_log.store.unapplied_bytes() > self.config.unapplied_bytes_max,
        };
        admit::admit(&message, &view)?;
        if self.members.contains(message.from()) {
            self.heard.insert(message.from(), self.ticks);
        }
        let led = view.leads;
        let stepped = self.raft.step(message.0);
        if led && !self.is_leader() {
            self.raft.mut_store().forget_requests();
        }
        self.settle();
        stepped.map_err(|error| match error {
            raft::Error::StepPeerNotFound => Dropped::Stranger,
            _ => Dropped::Role,
        })
    }

    fn tick(&mut self) {
        self.ticks += 1;
        if self.members.is_sole_voter(self.config.replica) && !self.is_leader() {
            // Elects itself when its log is durable, not when time has passed.
            self.settle();
            return;
        }
        let timer = self.raft.raft.election_elapsed + 1;
        let elects = timer >= self.raft.raft.randomized_election_timeout();
        if elects && !self.is_leader() && !self.may_campaign() {
            return;
        }
        let (role, term) = (self.raft.raft.state, self.raft.raft.term);
        self.raft.tick();
        let now = &self.raft.raft;
        if now.state != StateRole::Leader && (now.state, now.term) != (role, term) {
            if role == StateRole::Leader {
                self.raft.mut_store().forget_requests();
            } else {
                self.attempts += 1;
            }
        }
        self.settle();
    }

    fn propose(&mut self, payload: Bytes) -> Result<Proposed, Refused> {
        self.check_leads()?;
        self.append(payload, false)
    }

    fn propose_change(&mut self, changes: &[Change]) -> Result<Proposed, Refused> {
        self.check_leads()?;
        if self.raft.raft.has_pending_conf() || self.members.is_joint() {
            return Err(Refused::ChangeInProgress);
        }
        let refused = members::refuse(&self.members, self.config.replica, changes, self);
        if let Some(rule) = refused {
            return Err(Refused::Rule(rule));
        }
        self.append_change(changes)
    }

    fn read_index(&mut self) -> Result<ReadId, Refused> {
        let leader = self.leader().ok_or(Refused::NotLeader { leader: None })?;
        if leader == self.config.replica {
            if !self.raft.raft.commit_to_current_term() {
                return Err(Refused::NotYet);
            }
            if self.members.is_sole_voter(self.config.replica) {
                // Nobody else could have committed anything.
                let (id, _) = self.reads.next();
                self.answered.push(ReadIndex { id, index: self.commit() });
                return Ok(id);
            }
        }
        let (id, context) = self.reads.next();
        self.raft.read_index(context.to_vec());
        Ok(id)
    }

    fn campaign(&mut self) {
        if !self.may_campaign() || self.members.is_sole_voter(self.config.replica) {
            // A sole voter does it by itself as soon as it may.
            self.settle();
            return;
        }
        if !self.is_leader() && self.raft.raft.promotable() {
            self.attempts += 1;
            let elected = self.raft.campaign();
            debug_assert!(elected.is_ok(), "a call to elect is never dropped");
        }
        self.settle();
    }

    fn transfer(&mut self, to: u64) -> Result<(), Refused> {
        self.check_leads()?;
        if !self.members.voters.contains(&to) {
            return Err(Refused::Rule("only a voter can lead"));
        }
        if to != self.config.replica {
            self.raft.transfer_leader(to);
        }
        self.settle();
        Ok(())
    }

    fn ready(&mut self) -> Option<Effects> {
        let wanted = self.raft.raft.raft_log.store.has_snapshots_wanted();
        let rest = wanted || !self.released.is_empty() || !self.answered.is_empty();
        if !self.raft.has_ready() && !rest {
            return None;
        }
        let mut ready = self.raft.ready();
        let entries = ready.take_entries();
        let must_sync = ready.must_sync();
        let mut at_once = ready.take_messages();
        let mut after = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        let mut reads = std::mem::take(&mut self.answered);
        for read in ready.take_read_states() {
            let id = self.reads.id_of(&read.request_ctx);
            reads.extend(id.map(|id| ReadIndex { id, index: read.index }));
        }
        let install = ready.snapshot();
        let install = (!install.is_empty()).then(|| SnapshotMeta::from_raft(install));
        let number = ready.number();
        debug_assert_eq!(number, self.handed + 1, "batches are numbered in order");
        self.handed = number;

        // The library reads back what is handed out, so the cache takes it first.
        if let Some(snapshot) = &install {
            self.raft.mut_store().install(snapshot.index, snapshot.term);
            self.members = snapshot.members.clone();
            self.change_applied = snapshot.index;
            self.installing.push_back((number, snapshot.index));
        }
        self.raft.mut_store().append(&entries);
        self.raft.advance_append_async(ready);

        let raft = &self.raft.raft;
        let state = ((raft.term, raft.vote) != self.stored).then(|| GroupState {
            term: raft.term,
            vote: raft.vote,
            // What is stored never counts on entries that are not.
            commit: raft.raft_log.committed.min(raft.raft_log.persisted),
        });
        self.stored = (raft.term, raft.vote);
        let now = self.now_leadership();
        let leadership = (now != self.leadership).then_some(now);
        self.leadership = now;

        if state.is_some() {
            self.state_in = number;
        }
        // A leader's messages need not wait for its log, but they do for its term. The library
        // forgets that one that was elected by its own vote alone has not stored it yet: after a
        // crash it would lead the same term again, with other entries.
        if self.state_in > self.durable {
            after.append(&mut at_once);
        }
        if mutants::is("promise-before-sync") {
            at_once.append(&mut after);
        }
        #[cfg(test)]
        self.mutant.misplace(&mut after, &mut at_once);
        if !after.is_empty() {
            self.held.push_back((number, after));
        }
        if must_sync {
            self.in_flight.push_back(number);
        }
        self.on_durable();
        let mut messages = std::mem::take(&mut self.released);
        messages.append(&mut at_once);
        let effects = Effects {
            number,
            install,
            state,
            entries: wrap(entries),
            must_sync,
            messages: messages.into_iter().map(Message).collect(),
            committed: wrap(committed),
            reads,
            leadership,
            snapshots_wanted: if wanted {
                self.raft.mut_store().snapshots_wanted()
            } else {
                Vec::new()
            },
        };
        self.settle();
        Some(effects)
    }

    fn persisted(&mut self, number: u64) {
        assert!(number <= self.handed, "only batches that were handed out are persisted");
        while self.in_flight.front().is_some_and(|&oldest| oldest <= number) {
            self.in_flight.pop_front();
        }
        self.on_durable();
        self.settle();
    }

    fn applied(&mut self, index: u64) {
        if index <= self.raft.raft.raft_log.applied {
            return; // A snapshot has overtaken it.
        }
        self.raft.advance_apply_to(index);
        let keep = self.keep_bytes();
        self.raft.mut_store().applied(index, keep);
        self.settle();
    }

    fn status(&self) -> Status {
        let raft = &self.raft.raft;
        let mut followers = Vec::new();
        if raft.state == StateRole::Leader {
            for (&replica, progress) in raft.prs().iter() {
                if replica != self.config.replica {
                    followers.push(Follower {
                        replica,
                        matched: progress.matched,
                        commit: progress.committed_index,
                        snapshot_pending: progress.state == ProgressState::Snapshot,
                        heard: self.is_heard(replica),
                    });
                }
            }
            followers.sort_by_key(|follower| follower.replica);
        }
        Status {
            group: self.config.group,
            replica: self.config.replica,
            leadership: self.now_leadership(),
            vote: Some(raft.vote).filter(|&id| id != raft::INVALID_ID),
            first: raft.raft_log.store.first(),
            last: raft.raft_log.last_index(),
            persisted: raft.raft_log.persisted,
            commit: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            members: self.members.clone(),
            transferring_to: raft.lead_transferee,
            uncommitted_bytes: raft.uncommitted_size(),
            cached_bytes: raft.raft_log.store.bytes(),
            followers,
        }
    }
}
