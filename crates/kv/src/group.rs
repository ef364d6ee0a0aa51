//! A shard as its core keeps it: the leader, the consensus group, and everybody who waits.
//!
//! ```text
//!   job --> attempt --+--> answered at once
//!            ^        +--> answered when entry n is applied  --> waiters[n]
//!            |        +--> again when entry n is applied     --> waiters[n]
//!            |        +--> again when a lock is given back   --> for_locks
//!            |        +--> again when a block was read, or an intent resolved (a task of its own)
//!            +--------------------------------------------------------------+
//! ```
//!
//! Jobs of one lane (a client's connection) are evaluated in the order they came: while one of them
//! has to try again, the later ones queue behind it. Jobs of different lanes do not wait for each
//! other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use atoll_encoding::hash::HashMap;
use atoll_lsm::Durability;
use atoll_mvcc::Timestamp;
use atoll_mvcc::request::{Request, Response};
use atoll_shard::consensus::Consensus;
use atoll_shard::descriptor::{Descriptor, ShardId};
use atoll_shard::edge::EntrySeq;
use atoll_shard::entry::{Closed, Split};
use atoll_shard::leader::Leader;
use atoll_shard::lease::{Heard, Lease};

use crate::base::Reads;
use crate::core::Inner;
use crate::program::Program;

/// Names a stream of jobs whose order counts: core and connection.
pub type Lane = u64;

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    pub(crate) core: usize,
    /// The lane of a call, 0 of anything else.
    pub(crate) lane: Lane,
    pub(crate) token: u64,
}

/// What is to be done.
pub(crate) enum Work<P: Program> {
    /// A command of the layer above.
    Call(P::Call),
    /// A transaction's request.
    Request(Request),
    /// Remove a key if it still has this deadline, which is due.
    Reap { key: Vec<u8>, deadline_ms: u64 },
}

/// Something to be evaluated, until it is answered.
pub(crate) struct Job<P: Program> {
    pub(crate) work: Work<P>,
    pub(crate) reply_to: ReplyTo,
    pub(crate) lane: Option<Lane>,
    pub(crate) durability: Durability,
    pub(crate) reads: Reads,
    /// Number of its last attempt, of those of its shard: the order in which jobs took effect.
    pub(crate) attempt: u64,
    /// Its last attempt added to the open entry.
    pub(crate) wrote: bool,
    /// It gets an entry of its own, because the one that it shared was too large.
    pub(crate) alone: bool,
    /// It came from another engine, for the leader of this shard in this term and for nobody else.
    pub(crate) only_under: Option<(ShardId, u64)>,
    /// When it was first sent to another engine, in monotonic milliseconds, and the how-manieth of its
    /// shard it was.
    pub(crate) away: Option<(u64, u64)>,
    /// It was refused elsewhere, and goes before those of its lane that came later.
    pub(crate) returned: bool,
}

impl<P: Program> Job<P> {
    pub(crate) fn new(
        work: Work<P>,
        reply_to: ReplyTo,
        lane: Option<Lane>,
        durability: Durability,
    ) -> Job<P> {
        let reads = Reads::default();
        Job {
            work,
            reply_to,
            lane,
            durability,
            reads,
            attempt: 0,
            wrote: false,
            alone: false,
            only_under: None,
            away: None,
            returned: false,
        }
    }
}

/// An answer.
pub(crate) enum Answer<P: Program> {
    Reply(P::Reply),
    Response(Response),
    /// To a job of another engine: its shard is not led here in that term, and nothing has happened.
    Moved,
}

/// Who leads a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Belief {
    /// The replica.
    pub(crate) leader: u64,
    /// Since which term.
    pub(crate) term: u64,
}

/// A job that was sent to the leader of its shard.
pub(crate) struct Sent<P: Program> {
    /// Whom it was sent to.
    pub(crate) belief: Belief,
    pub(crate) job: Job<P>,
    /// It came back, and nothing has happened.
    pub(crate) returned: bool,
}

/// Jobs of a lane that are away.
pub(crate) struct Away<P: Program> {
    /// By the order in which they came: what is sent once more keeps its place.
    pub(crate) out: BTreeMap<u64, Sent<P>>,
    /// What came later and waits.
    pub(crate) behind: VecDeque<Job<P>>,
    /// A task will look after it.
    pub(crate) looks_again: bool,
}

impl<P: Program> Default for Away<P> {
    fn default() -> Away<P> {
        Away { out: BTreeMap::new(), behind: VecDeque::new(), looks_again: false }
    }
}

/// Who waits for an entry to be applied.
pub(crate) enum Waiter<P: Program> {
    /// The answer is known; `call` is kept for the answer it gets if the entry is lost.
    Answered { job: Box<Job<P>>, answer: Answer<P> },
    /// It is tried again.
    Again(Box<Job<P>>),
}

/// Who waited when an entry was too large.
pub(crate) struct Oversized<P: Program> {
    /// Whose entry it is.
    pub(crate) refused: Vec<Job<P>>,
    /// They are evaluated again, in this order.
    pub(crate) again: Vec<Job<P>>,
    /// They cannot be evaluated again in the order of their lanes.
    pub(crate) stuck: Vec<Job<P>>,
}

/// An entry that was proposed.
pub(crate) struct InFlight {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) seq: EntrySeq,
    pub(crate) stamp: Timestamp,
}

/// An entry of the log that is not applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Logged {
    /// Its position in the lane.
    pub(crate) position: u64,
    /// The memtable room that was promised to it.
    pub(crate) arena: usize,
}

/// An entry that was in flight when its leadership ended: it may still be committed, and who waits for it
/// learns that.
pub(crate) struct Orphan<P: Program> {
    pub(crate) entry: InFlight,
    pub(crate) waiting: Vec<(Job<P>, Answer<P>)>,
    /// When the leadership ended, in monotonic milliseconds.
    pub(crate) since_ms: u64,
}

/// Somebody who waits for a split.
pub(crate) struct Splitting {
    pub(crate) split: Split,
    /// What it writes is in the open entry, which waits for an epoch.
    pub(crate) begun: bool,
    pub(crate) done: atoll_env::sync::oneshot::Sender<Result<(), String>>,
}

/// The shard that another one was split off, while lanes have jobs there that stalled before the split.
/// They may belong to the other one now, and so may those behind them.
pub(crate) struct Elder<P: Program> {
    pub(crate) group: Rc<Group<P>>,
    pub(crate) lanes: BTreeSet<Lane>,
}

/// One shard on its core.
pub(crate) struct Group<P: Program> {
    pub(crate) id: ShardId,
    /// The replica of it that is here.
    pub(crate) replica: u64,
    pub(crate) consensus: RefCell<Consensus>,
    pub(crate) state: RefCell<State<P>>,
}

impl<P: Program> Group<P> {
    /// Returns whether the replica here is the only one.
    pub(crate) fn is_alone(&self) -> bool {
        self.consensus.borrow().is_alone()
    }
}

/// What changes with every job.
pub(crate) struct State<P: Program> {
    pub(crate) descriptor: Descriptor,
    /// `None` until everything that an earlier leadership left in the log is applied.
    pub(crate) leader: Option<Leader>,
    /// Nothing is evaluated: a split is due, or the leader is made anew.
    pub(crate) frozen: bool,
    /// Jobs that came while frozen or without leader.
    pub(crate) queue: VecDeque<Job<P>>,
    pub(crate) waiters: BTreeMap<EntrySeq, Vec<Waiter<P>>>,
    pub(crate) for_locks: Vec<Job<P>>,
    /// The leader's count of given-back locks when `for_locks` was last tried.
    pub(crate) unlocks: u64,
    /// Lanes with a job that has to try again, and the jobs behind it.
    pub(crate) stalled: BTreeMap<Lane, VecDeque<Job<P>>>,
    /// Where jobs of some lanes wait that come before those that come now.
    pub(crate) elder: Option<Elder<P>>,
    /// The newest entry that a command of a lane waits for which is not answered yet.
    pub(crate) unanswered: HashMap<Lane, EntrySeq>,
    /// Entries that were closed before their turn ended.
    pub(crate) closed: VecDeque<Closed>,
    /// The last entry that is to survive a power cut before it is answered.
    pub(crate) sync_to: EntrySeq,
    /// The last own entry that does.
    pub(crate) synced: EntrySeq,
    /// Answers whose entries were applied without a sync, because they came to them too late.
    pub(crate) late: Vec<(Job<P>, Answer<P>)>,
    pub(crate) in_flight: VecDeque<InFlight>,
    /// Entries that are not applied, by index.
    pub(crate) positions: BTreeMap<u64, Logged>,
    pub(crate) splitting: Option<Splitting>,
    /// Entries applied in this process: reads of the applied state are as old as this says.
    pub(crate) applied_entries: u64,
    /// It is in its store's list of shards with something to do.
    pub(crate) listed: bool,
    /// Jobs evaluated, for `atoll shards`.
    pub(crate) jobs: u64,
    /// How many of them when the load was last measured.
    pub(crate) jobs_measured: u64,
    /// Jobs per second, as last measured.
    pub(crate) jobs_per_s: f64,
    /// Index of the last entry applied to the tree.
    pub(crate) applied_index: u64,
    /// The core waits for it to lead before it serves.
    pub(crate) awaited: bool,
    /// Until when it may answer reads, if it leads.
    pub(crate) lease: Lease,
    /// What it has had of its leader, if it follows.
    pub(crate) heard: Heard,
    /// The first index that somebody may still ask for, as its leader says.
    pub(crate) keep: u64,
    /// Jobs that wait for the lease.
    pub(crate) for_lease: Vec<Job<P>>,
    /// The term of the leadership that is evaluated for.
    pub(crate) led_term: u64,
    /// The replicas never changed since the database began, nor those of the shard it was split off.
    pub(crate) founded: bool,
    /// Nothing is evaluated before this entry is applied: it was in flight when the leader was given up.
    pub(crate) resume_after: u64,
    /// The number with which the next leader goes on.
    pub(crate) next_seq: EntrySeq,
    /// Entries of earlier leaderships that are not decided.
    pub(crate) orphans: VecDeque<Orphan<P>>,
    /// Since when no leader is known, in monotonic milliseconds.
    pub(crate) leaderless_since: Option<u64>,
    /// Leadership is being given away.
    pub(crate) giving: bool,
    /// A timestamp above everything that an earlier leader has served, and the term it was drawn in.
    pub(crate) low_water: Option<(u64, Timestamp)>,
    /// Jobs that are at the leader elsewhere, by lane; those without one are all in lane `None`.
    pub(crate) away: BTreeMap<Option<Lane>, Away<P>>,
    /// Of the root shard: the term since which this engine holds the oracle.
    pub(crate) holds_since: u64,
}

impl<P: Program> State<P> {
    pub(crate) fn new(descriptor: Descriptor, applied_index: u64) -> State<P> {
        State {
            descriptor,
            leader: None,
            frozen: false,
            queue: VecDeque::new(),
            waiters: BTreeMap::new(),
            for_locks: Vec::new(),
            unlocks: 0,
            stalled: BTreeMap::new(),
            elder: None,
            unanswered: HashMap::default(),
            closed: VecDeque::new(),
            sync_to: 0,
            synced: 0,
            late: Vec::new(),
            in_flight: VecDeque::new(),
            positions: BTreeMap::new(),
            splitting: None,
            applied_entries: 0,
            listed: false,
            jobs: 0,
            jobs_measured: 0,
            jobs_per_s: 0.0,
            applied_index,
            awaited: false,
            lease: Lease::default(),
            heard: Heard::default(),
            keep: 0,
            for_lease: Vec::new(),
            led_term: 0,
            founded: false,
            resume_after: 0,
            next_seq: 1,
            orphans: VecDeque::new(),
            leaderless_since: None,
            giving: false,
            low_water: None,
            away: BTreeMap::new(),
            holds_since: 0,
        }
    }

    /// Returns the shard with stalled jobs of a lane that come before what comes here, if there is one.
    pub(crate) fn holder_of(&mut self, lane: Lane) -> Option<Rc<Group<P>>> {
        let mut elder = self.elder.take()?;
        elder.lanes.retain(|lane| elder.group.state.borrow_mut().holds(*lane));
        let holder = if elder.lanes.contains(&lane) {
            let further = elder.group.state.borrow_mut().holder_of(lane);
            Some(further.unwrap_or_else(|| elder.group.clone()))
        } else {
            None
        };
        self.elder = (!elder.lanes.is_empty()).then_some(elder);
        holder
    }

    /// Returns whether jobs of a lane are stalled here or at an elder.
    fn holds(&mut self, lane: Lane) -> bool {
        self.stalled.contains_key(&lane)
            || self.away.contains_key(&Some(lane))
            || self.holder_of(lane).is_some()
    }

    /// Returns the lanes of jobs that are stalled or away, for a shard that is split off.
    pub(crate) fn stalled_lanes(&self) -> BTreeSet<Lane> {
        let inherited = self.elder.iter().flat_map(|elder| &elder.lanes);
        let away = self.away.keys().flatten();
        self.stalled.keys().chain(inherited).chain(away).copied().collect()
    }

    /// Ends the open entry, if it has effects: what comes next gets another one. It stays open if it
    /// cannot be closed without an epoch that is not at hand.
    pub(crate) fn close_open(&mut self, core: &Rc<Inner<P>>) {
        if let Some(leader) = &mut self.leader {
            self.closed.extend(leader.try_close(|above| core.spare_epoch(above)));
        }
    }

    /// Returns whether the leader has something to log.
    pub(crate) fn has_entries(&self) -> bool {
        !self.closed.is_empty() || self.leader.as_ref().is_some_and(Leader::is_open)
    }

    /// Returns whether somebody waits for a sync of what is logged.
    pub(crate) fn wants_sync(&self) -> bool {
        let logged = self.in_flight.back().map_or(0, |entry| entry.seq);
        !self.late.is_empty() || self.sync_to.min(logged) > self.synced
    }

    /// Takes everybody who waits when entry `seq` turned out too large to be logged: the one whose
    /// entry it is, and those who are to be evaluated again, in an order that keeps that of their
    /// lanes. Nothing that was decided is kept.
    pub(crate) fn take_oversized(&mut self, seq: EntrySeq) -> Oversized<P> {
        let writes =
            |waiter: &Waiter<P>| matches!(waiter, Waiter::Answered { job, .. } if job.wrote);
        let writers = self.waiters.get(&seq).map_or(0, |w| w.iter().filter(|w| writes(w)).count());
        let mut oversized = Oversized { refused: Vec::new(), again: Vec::new(), stuck: Vec::new() };
        let (mut answered, mut hindered) = (Vec::new(), Vec::new());
        for (entry, waiters) in std::mem::take(&mut self.waiters) {
            for waiter in waiters {
                match waiter {
                    Waiter::Answered { job, .. } if entry == seq && job.wrote && writers == 1 => {
                        oversized.refused.push(*job);
                    }
                    Waiter::Answered { mut job, .. } => {
                        // Several shared the entry: the next time each has one of its own.
                        job.alone |= entry == seq && job.wrote;
                        answered.push(*job);
                    }
                    Waiter::Again(job) => hindered.push(*job),
                }
            }
        }
        answered.sort_unstable_by_key(|job| job.attempt);
        hindered.append(&mut self.for_locks);
        hindered.append(&mut self.for_lease);
        hindered.extend(self.queue.drain(..));
        // Whoever waits behind one that is here follows it. Whoever waits behind one that is elsewhere
        // (it reads from the disk, or it resolves an intent) stays where he is.
        let behind: Vec<_> =
            hindered.iter().filter_map(|job| self.stalled.remove(&job.lane?)).flatten().collect();
        for job in answered {
            // It came before the one that is elsewhere, and cannot get in front of it any more.
            let is_passed = job.lane.is_some_and(|lane| self.stalled.contains_key(&lane));
            if is_passed { oversized.stuck.push(job) } else { oversized.again.push(job) }
        }
        oversized.again.append(&mut hindered);
        oversized.again.extend(behind);
        self.unanswered.clear();
        self.closed.clear();
        self.in_flight.clear();
        oversized
    }

    /// Takes everybody who waits for something that was not applied. A lane whose first job is
    /// elsewhere (it reads from the disk, or it resolves an intent) stays stalled: what comes now may
    /// not overtake it.
    pub(crate) fn take_all(&mut self) -> Vec<Waiter<P>> {
        let mut all: Vec<Waiter<P>> = Vec::new();
        let (mut taken, mut ended) = (Vec::new(), Vec::new());
        for (_, waiters) in std::mem::take(&mut self.waiters) {
            all.extend(waiters);
        }
        let again = |job| Waiter::Again(Box::new(job));
        all.extend(self.for_locks.drain(..).map(again));
        all.extend(self.for_lease.drain(..).map(again));
        all.extend(self.queue.drain(..).map(again));
        for waiter in &all {
            if let Waiter::Again(job) = waiter
                && let Some(behind) = job.lane.and_then(|lane| self.stalled.get_mut(&lane))
            {
                // Its first job is here.
                taken.extend(behind.drain(..));
                ended.extend(job.lane);
            }
        }
        ended.iter().for_each(|lane| drop(self.stalled.remove(lane)));
        self.stalled.values_mut().for_each(|behind| taken.extend(behind.drain(..)));
        all.extend(taken.into_iter().map(again));
        self.unanswered.clear();
        self.closed.clear();
        self.in_flight.clear();
        all
    }
}
