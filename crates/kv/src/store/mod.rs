//! A store on its core: it drives the lane, the tree and the shards that live in it.
//!
//! ```text
//!   a turn:   close and propose        every shard with something to log: one entry
//!             append, write, sync      one batch of the lane for all of them, one sync
//!             apply, answer            in the order of the log
//! ```
//!
//! While a turn waits for its sync, commands go on being evaluated over the edge, and what they
//! decide gathers for the next turn: the slower the disk, the larger the turns.
//!
//! # Failures
//! A turn that finds no room (memory, disk) refuses what it would have logged: nothing was proposed,
//! so nothing has happened; the leader is made anew from the applied state. An entry that is closed for
//! its size, and a turn that is full, leave the rest to the next turn; only a command that is too large
//! all by itself is refused for that, and who shared its entry is evaluated again. A write or sync that
//! fails ends the store: whoever waits is told that the outcome is unknown, everybody later that the
//! store has stopped.

mod forward;
mod replication;
mod restore;
mod split;
mod turn;

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use atoll_env::sometimes;
use atoll_env::time::Instant;
use atoll_lsm::driven::{Direction, Tree};
use atoll_lsm::{Durability, Error};
use atoll_mvcc::keys::tree;
use atoll_mvcc::request::{Key, Refusal, Request, Response, Version};
use atoll_mvcc::{Bound, Epoch, Timestamp, TxnId, Value};
use atoll_shard::descriptor::ShardId;
use atoll_shard::edge::EntrySeq;
use atoll_shard::envelope::{Envelope, Packet};
use atoll_shard::eval::{Eval, Interrupt, Sight};
use atoll_shard::leader::{Leader, Miss, Step};
use atoll_shard::replica::EngineId;

use crate::base::{Reads, TreeBase};
use crate::core::Inner;
use crate::group::{Answer, Group, Job, Lane, ReplyTo, State, Waiter, Work};
use crate::program::{Ask, Failure, Program, Tried};
use crate::signal::Signal;

use forward::Led;
pub(crate) use restore::open_group;

/// An entry with more bytes than this takes no more commands: what a turn logs has to fit into memory,
/// and entries are what it is divided by.
const ENTRY_BYTES: usize = 1 << 20;
/// A turn with more bytes than this takes no more entries. Far more than a disk needs to be busy, and
/// little enough that answers do not wait for long.
const TURN_BYTES: usize = 16 << 20;

/// A store and its shards.
pub(crate) struct StoreHost<P: Program> {
    pub(crate) index: usize,
    pub(crate) tree: Tree,
    pub(crate) groups: RefCell<BTreeMap<ShardId, Rc<Group<P>>>>,
    /// Shards with something to log.
    dirty: RefCell<Vec<ShardId>>,
    /// There is something to do.
    pub(crate) signal: Signal,
    bound: RefCell<Bound>,
    /// Why the store has stopped.
    pub(crate) stopped: RefCell<Option<String>>,
    /// The owner closes.
    pub(crate) closing: Cell<bool>,
    /// A buffer for tree keys.
    name: RefCell<Vec<u8>>,
    /// Bytes of memtable that a turn may take.
    room: usize,
    /// The shard that found the last turn full: it is the first of the next one.
    next: Cell<ShardId>,
    /// Memtable room of entries that are in the log and not applied.
    promised: Cell<usize>,
    /// What replicas elsewhere have said, for the next turn.
    inbox: RefCell<VecDeque<Envelope>>,
    inbox_bytes: Cell<usize>,
    /// What is to be said to them.
    outbox: RefCell<BTreeMap<EngineId, Packet>>,
    /// A tick of the clock, for the next turn.
    pub(crate) ticked: Cell<bool>,
    /// Jobs whose lease is there.
    waiting: RefCell<Vec<Placed<P>>>,
    /// Up to where the root shard, as far as applied, lets the oracle give epochs.
    oracle: Cell<Epoch>,
    /// When a store that closes gives up giving its leaderships away.
    grace_until: Cell<Option<Instant>>,
}

/// A job and the shard that it is for.
type Placed<P> = (Rc<Group<P>>, Job<P>);

/// How one attempt at a job ended.
enum Outcome<P: Program> {
    Answer(Answer<P>),
    /// With the application of an entry.
    At(EntrySeq, Answer<P>),
    /// The tree is read, then it is answered.
    Read,
    CloseFirst,
    /// The moment it was to look at is not known any more.
    TooOld,
    /// The leader does not know whether it still leads.
    NoLease,
    Interrupted(Interrupt),
}

/// What became of a job after an attempt.
enum Disposed<P: Program> {
    Answered(Job<P>, Answer<P>),
    /// Something has it: it will be answered, or tried again.
    Waits,
    /// It is tried again at once.
    Again(Job<P>),
}

/// How an evaluation of a command ended.
enum Called {
    /// Its reply is given with the application of the entry, if there is one.
    Ended(Option<EntrySeq>),
    TooOld,
    Interrupted(Interrupt),
}

impl<P: Program> StoreHost<P> {
    pub(crate) fn new(
        index: usize,
        tree: Tree,
        bound: Epoch,
        oracle: Epoch,
        room: usize,
    ) -> StoreHost<P> {
        StoreHost {
            index,
            tree,
            groups: RefCell::default(),
            dirty: RefCell::default(),
            signal: Signal::default(),
            bound: RefCell::new(Bound::new(bound)),
            stopped: RefCell::default(),
            closing: Cell::new(false),
            name: RefCell::default(),
            room: room.min(TURN_BYTES),
            next: Cell::new(ShardId(0)),
            promised: Cell::new(0),
            inbox: RefCell::default(),
            inbox_bytes: Cell::new(0),
            outbox: RefCell::default(),
            ticked: Cell::new(false),
            waiting: RefCell::default(),
            grace_until: Cell::new(None),
            oracle: Cell::new(oracle),
        }
    }

    pub(crate) fn group(&self, id: ShardId) -> Option<Rc<Group<P>>> {
        self.groups.borrow().get(&id).cloned()
    }

    fn list(&self, group: &Group<P>, state: &mut State<P>) {
        if !std::mem::replace(&mut state.listed, true) {
            self.dirty.borrow_mut().push(group.id);
            self.signal.raise();
        }
    }

    /// Lists the shards that have something to log: something may be at hand that they lacked.
    pub(crate) fn retry(&self) {
        for group in self.groups.borrow().values() {
            self.relist(group, &mut group.state.borrow_mut());
        }
    }

    /// Lists a shard whose leader may have got something to log.
    pub(crate) fn relist(&self, group: &Group<P>, state: &mut State<P>) {
        if state.has_entries() {
            self.list(group, state);
        }
    }

    // ---- jobs ----

    /// Takes a job; returns its answer if there is one at once.
    pub(crate) fn submit(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        job: Job<P>,
    ) -> Option<(Job<P>, Answer<P>)> {
        let mut state = group.state.borrow_mut();
        if let Some(why) = &*self.stopped.borrow() {
            let answer = refuse_unseen(core, &job, why);
            return Some((job, answer));
        }
        if let Some((shard, term)) = job.only_under
            && (shard != group.id || state.led_term != term)
        {
            return Some((job, Answer::Moved));
        }
        if let Some(lane) = job.lane
            && !job.returned
            && let Some(away) = state.away.get_mut(&Some(lane))
            && self.is_behind_away(group, away)
        {
            sometimes!(true, "a job waits behind one of its connection that is away");
            away.behind.push_back(job);
            return None;
        }
        if let Some(lane) = job.lane
            && !job.returned
            && let Some(holder) = state.holder_of(lane)
        {
            sometimes!(
                true,
                "a job waits behind one of its connection at the shard before the split"
            );
            drop(state);
            let mut of_holder = holder.state.borrow_mut();
            if let Some(behind) = of_holder.stalled.get_mut(&lane) {
                behind.push_back(job);
            } else {
                of_holder.away.entry(Some(lane)).or_default().behind.push_back(job);
            }
            return None;
        }
        // Also while frozen: what waits behind one of its lane comes before what comes now.
        if let Some(lane) = job.lane
            && !state.stalled.is_empty()
            && let Some(behind) = state.stalled.get_mut(&lane)
        {
            sometimes!(true, "a job waits behind one of its connection");
            behind.push_back(job);
            return None;
        }
        if state.leader.is_none() || state.frozen {
            drop(state);
            match self.led(core, group) {
                Led::There(belief) => self.send_away(core, group, job, belief),
                Led::Nowhere(why) => {
                    let answer = refuse(core, &job, &Failure::Unavailable(why));
                    return Some((job, answer));
                }
                Led::Wait => {
                    sometimes!(true, "a job waits for its shard to serve");
                    group.state.borrow_mut().queue.push_back(job);
                }
            }
            return None;
        }
        drop(state);
        self.attempt(core, group, job)
    }

    /// Submits a job and delivers its answer if there is one at once.
    pub(crate) fn submit_and_deliver(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        job: Job<P>,
    ) {
        if let Some((job, answer)) = self.submit(core, group, job) {
            core.deliver(job.reply_to, answer);
        }
    }

    /// Tries a job. Afterwards it is answered, or waits somewhere.
    fn attempt(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        mut job: Job<P>,
    ) -> Option<(Job<P>, Answer<P>)> {
        loop {
            if let Some(failure) = job.reads.failure.take() {
                let answer = refuse(core, &job, &Failure::Unavailable(failure.to_string()));
                self.go_on(core, group, job.lane);
                return Some((job, answer));
            }
            let mut guard = group.state.borrow_mut();
            let state = &mut *guard;
            state.jobs += 1;
            if !self.is_mine(core, state, &job) {
                drop(guard);
                return self.send_on(core, group, job);
            }
            if let Work::Call(call) = &job.work
                && !core.program.fits(call, &state.descriptor.range)
            {
                sometimes!(true, "a command straddles a split");
                drop(guard);
                let why = "the shard of its keys was split while the command was on its way; send it \
                           again";
                let answer = refuse(core, &job, &Failure::Unavailable(why.to_owned()));
                self.go_on(core, group, job.lane);
                return Some((job, answer));
            }
            if !self.may_answer(core, group, state) {
                self.await_lease(state, job);
                return None;
            }
            if job.alone {
                state.close_open(core);
            }
            job.attempt = state.jobs;
            let before = open_bytes(state);
            let mut outcome = self.evaluate(core, state, &mut job);
            if matches!(outcome, Outcome::Answer(_)) && !self.may_answer(core, group, state) {
                sometimes!(true, "a lease ends while a read is evaluated");
                outcome = Outcome::NoLease;
            }
            job.wrote = open_bytes(state) > before;
            self.tend(core, group, state, job.alone);
            match self.dispose(core, group, guard, job, outcome) {
                Disposed::Answered(job, answer) => return Some((job, answer)),
                Disposed::Waits => return None,
                Disposed::Again(again) => job = again,
            }
        }
    }

    /// Tries a command where it lies. It becomes a job only if it has to wait for something.
    pub(crate) fn try_here<A: Ask<P>>(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        ask: &mut A,
        reply_to: ReplyTo,
        lane: Lane,
    ) -> Tried<P::Reply> {
        let mut guard = group.state.borrow_mut();
        let state = &mut *guard;
        let waits_behind = state.elder.is_some()
            || !state.stalled.is_empty() && state.stalled.contains_key(&lane)
            || !state.away.is_empty() && state.away.contains_key(&Some(lane));
        let serves = state.leader.is_some()
            && !state.frozen
            && self.stopped.borrow().is_none()
            && self.may_answer(core, group, state);
        if waits_behind || !serves || !state.descriptor.range.contains(ask.place()) {
            drop(guard);
            let job = Job::new(Work::Call(ask.call()), reply_to, Some(lane), ask.durability());
            return tried(core.route(job));
        }
        state.jobs += 1;
        let attempt = state.jobs;
        let before = open_bytes(state);
        let mut reads = Reads::default();
        reads.begin(state.applied_entries);
        let sight = sight(state, ask.sight(), false, Some(lane));
        let called = self.call(core, state, &mut reads, sight, |eval| ask.run(&core.program, eval));
        let wrote = open_bytes(state) > before;
        self.tend(core, group, state, false);
        let outcome = match called {
            Called::Ended(None) if !self.may_answer(core, group, state) => Outcome::NoLease,
            Called::Ended(None) => {
                drop(guard);
                self.wake_lock_waiters(core, group);
                return Tried::Answered;
            }
            Called::Ended(Some(entry)) => Outcome::At(entry, Answer::Reply(ask.reply())),
            Called::TooOld => Outcome::TooOld,
            Called::Interrupted(interrupt) => Outcome::Interrupted(interrupt),
        };
        let mut job = Job::new(Work::Call(ask.call()), reply_to, Some(lane), ask.durability());
        (job.reads, job.attempt, job.wrote) = (reads, attempt, wrote);
        match self.dispose(core, group, guard, job, outcome) {
            Disposed::Answered(job, answer) => tried(Some((job, answer))),
            Disposed::Waits => Tried::Waits,
            Disposed::Again(job) => tried(self.attempt(core, group, job)),
        }
    }

    /// Looks after the open entry when something was evaluated.
    fn tend(&self, core: &Rc<Inner<P>>, group: &Group<P>, state: &mut State<P>, close: bool) {
        if close || open_bytes(state) > ENTRY_BYTES.min(self.room / 4) {
            state.close_open(core);
        }
        self.relist(group, state);
    }

    /// Does with a job what an attempt at it came to.
    fn dispose(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        mut guard: RefMut<'_, State<P>>,
        mut job: Job<P>,
        outcome: Outcome<P>,
    ) -> Disposed<P> {
        let state = &mut *guard;
        match outcome {
            Outcome::Answer(answer) => {
                drop(guard);
                if let Work::Request(Request::Unlock { txn, keys }) = &job.work {
                    self.give_up_locks(core, group, |of, wanted| {
                        of == *txn && wanted.iter().any(|key| keys.contains(key))
                    });
                }
                self.wake_lock_waiters(core, group);
                self.go_on(core, group, job.lane);
                return Disposed::Answered(job, answer);
            }
            Outcome::At(entry, answer) => {
                if job.durability == Durability::Synced {
                    state.sync_to = state.sync_to.max(entry);
                }
                if let Some(lane) = job.lane {
                    // The newest: a later command of the lane that only reads may wait for an
                    // earlier entry, of somebody else's write that it saw. Were that noted, its
                    // application would end what is to be known of the lane's own write, and the
                    // next read would be one of the applied state, without it.
                    let newest = state.unanswered.entry(lane).or_insert(entry);
                    *newest = (*newest).max(entry);
                }
                let lane = job.lane;
                let waiter = Waiter::Answered { job: Box::new(job), answer };
                state.waiters.entry(entry).or_default().push(waiter);
                drop(guard);
                self.go_on(core, group, lane);
            }
            Outcome::Read => {
                drop(guard);
                self.read(core, group, job);
            }
            Outcome::NoLease => self.await_lease(state, job),
            Outcome::CloseFirst | Outcome::Interrupted(Interrupt::Hindered(Step::CloseFirst)) => {
                state.close_open(core);
                match &state.leader {
                    // It waits for an epoch, and so does the job: for the entry that it opens.
                    Some(leader) if leader.is_open() => {
                        sometimes!(true, "a job waits for an entry that cannot be closed yet");
                        let entry = leader.open_entry();
                        if let Some(lane) = job.lane {
                            state.stalled.entry(lane).or_default();
                        }
                        let waiter = Waiter::Again(Box::new(job));
                        state.waiters.entry(entry).or_default().push(waiter);
                        return Disposed::Waits;
                    }
                    _ => return Disposed::Again(job),
                }
            }
            Outcome::TooOld => {
                job.reads.newest = true;
                return Disposed::Again(job);
            }
            Outcome::Interrupted(interrupt) => {
                if let Some(lane) = job.lane {
                    state.stalled.entry(lane).or_default();
                }
                match interrupt {
                    Interrupt::Hindered(Step::AwaitEntry(entry)) => {
                        sometimes!(true, "a job waits for an entry in flight");
                        let waiter = Waiter::Again(Box::new(job));
                        state.waiters.entry(entry).or_default().push(waiter);
                    }
                    Interrupt::Hindered(Step::AwaitLock) => {
                        sometimes!(true, "a job waits for a lock");
                        state.for_locks.push(job);
                    }
                    Interrupt::Hindered(Step::Answer(Response::Blocked(obstacles))) => {
                        sometimes!(true, "a job meets an intent");
                        drop(guard);
                        self.resolve(core, group, job, obstacles);
                    }
                    Interrupt::Miss => {
                        sometimes!(true, "a job waits for a block of a table");
                        drop(guard);
                        self.catch_up(core, group, job);
                    }
                    other @ (Interrupt::Hindered(_) | Interrupt::TooOld) => {
                        drop(guard);
                        let why = format!("a command met {other:?}; this is a bug");
                        let answer = refuse(core, &job, &Failure::Unavailable(why));
                        self.go_on(core, group, job.lane);
                        return Disposed::Answered(job, answer);
                    }
                }
            }
        }
        Disposed::Waits
    }

    /// Returns whether the job's place is still this shard's.
    fn is_mine(&self, core: &Inner<P>, state: &State<P>, job: &Job<P>) -> bool {
        match &job.work {
            Work::Call(call) => state.descriptor.range.contains(core.program.place(call)),
            // Requests are told by the leader.
            Work::Request(_) => true,
            Work::Reap { key, .. } => state.descriptor.contains(key),
        }
    }

    /// Sends a job to the shard that has its place now.
    fn send_on(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        job: Job<P>,
    ) -> Option<(Job<P>, Answer<P>)> {
        let lane = job.lane;
        // Those behind it follow it, and it waits for none of them.
        let behind = lane.and_then(|lane| group.state.borrow_mut().stalled.remove(&lane));
        let answered = core.route(job);
        if let (Some(lane), Some(behind)) = (lane, behind) {
            self.follow(core, group, lane, behind);
        }
        answered
    }

    fn evaluate(&self, core: &Rc<Inner<P>>, state: &mut State<P>, job: &mut Job<P>) -> Outcome<P> {
        job.reads.begin(state.applied_entries);
        if let Work::Call(call) = &job.work {
            let sight = sight(state, core.program.sight(call), job.reads.newest, job.lane);
            let mut reply = None;
            let called = self.call(core, state, &mut job.reads, sight, |eval| {
                reply = Some(core.program.run(call, eval)?);
                Ok(())
            });
            return match (called, reply.map(Answer::Reply)) {
                (Called::Ended(None), Some(answer)) => Outcome::Answer(answer),
                (Called::Ended(Some(entry)), Some(answer)) => Outcome::At(entry, answer),
                (Called::TooOld, _) => Outcome::TooOld,
                (Called::Interrupted(interrupt), _) => Outcome::Interrupted(interrupt),
                (Called::Ended(_), None) => Outcome::Interrupted(Interrupt::Miss),
            };
        }
        let Some(leader) = &mut state.leader else {
            return Outcome::Interrupted(Interrupt::Miss);
        };
        let now = core.now();
        let mut name = self.name.borrow_mut();
        let mut base = TreeBase::new(&self.tree, &mut job.reads, &mut name);
        match &job.work {
            Work::Call(_) => Outcome::Interrupted(Interrupt::Miss),
            Work::Request(request) => match leader.evaluate(request, &mut base, now) {
                Err(Miss) => Outcome::Interrupted(Interrupt::Miss),
                Ok(Step::Answer(response)) => Outcome::Answer(Answer::Response(response)),
                Ok(Step::AnswerWith(response)) => {
                    Outcome::At(leader.open_entry(), Answer::Response(response))
                }
                Ok(Step::AnswerAt(entry, response)) => {
                    Outcome::At(entry, Answer::Response(response))
                }
                Ok(Step::Read) => Outcome::Read,
                Ok(Step::CloseFirst) => Outcome::CloseFirst,
                Ok(step @ (Step::AwaitEntry(_) | Step::AwaitLock)) => {
                    Outcome::Interrupted(Interrupt::Hindered(step))
                }
            },
            Work::Reap { key, deadline_ms } => {
                let mut eval = Eval::new(leader, &mut base, now, Sight::Edge);
                match reap(&core.program, &mut eval, key, *deadline_ms) {
                    Err(interrupt) => Outcome::Interrupted(interrupt),
                    Ok(is_there) => match eval.finish() {
                        Err(interrupt) => Outcome::Interrupted(interrupt),
                        Ok(ended) => {
                            if !is_there {
                                // The index was not told the truth: a half moved away, or a bug.
                                leader.forget_deadline(key, *deadline_ms);
                            }
                            let done = Answer::Response(Response::Done);
                            match ended.after.filter(|entry| *entry > leader.applied_entry()) {
                                None if leader.is_open() => Outcome::At(leader.open_entry(), done),
                                None => Outcome::Answer(done),
                                Some(entry) => Outcome::At(entry, done),
                            }
                        }
                    },
                }
            }
        }
    }

    /// Evaluates a command of the layer above.
    fn call(
        &self,
        core: &Inner<P>,
        state: &mut State<P>,
        reads: &mut Reads,
        sight: Sight,
        run: impl FnOnce(&mut Eval<'_, TreeBase<'_>>) -> Result<(), Interrupt>,
    ) -> Called {
        let Some(leader) = &mut state.leader else { return Called::Interrupted(Interrupt::Miss) };
        let mut name = self.name.borrow_mut();
        let mut base = TreeBase::new(&self.tree, reads, &mut name);
        let mut eval = Eval::new(leader, &mut base, core.now(), sight);
        let ended = run(&mut eval).and_then(|()| eval.finish());
        match ended {
            Ok(ended) => Called::Ended(ended.after.filter(|entry| *entry > leader.applied_entry())),
            Err(Interrupt::TooOld) => Called::TooOld,
            Err(interrupt) => Called::Interrupted(interrupt),
        }
    }

    /// Lets the jobs behind one of their lane go on.
    fn go_on(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>, lane: Option<u64>) {
        let Some(lane) = lane else { return };
        if group.state.borrow().stalled.is_empty() {
            return;
        }
        let Some(behind) = group.state.borrow_mut().stalled.remove(&lane) else { return };
        self.follow(core, group, lane, behind);
    }

    /// Tries the jobs that were behind one of their lane, in their order.
    fn follow(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        lane: Lane,
        mut behind: VecDeque<Job<P>>,
    ) {
        while let Some(job) = behind.pop_front() {
            if let Some((job, answer)) = self.attempt_one(core, group, job) {
                core.deliver(job.reply_to, answer);
            }
            let mut state = group.state.borrow_mut();
            if let Some(stalled) = state.stalled.get_mut(&lane) {
                // It has to try again: everybody else stays behind it.
                stalled.extend(behind.drain(..));
                return;
            }
        }
    }

    /// As [`Self::attempt`], for a job that leads its lane.
    fn attempt_one(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        job: Job<P>,
    ) -> Option<(Job<P>, Answer<P>)> {
        if let Some(why) = &*self.stopped.borrow() {
            // It was elsewhere when the store stopped: nobody would log what it decides now, or
            // answer it.
            if let Some(lane) = job.lane {
                group.state.borrow_mut().stalled.remove(&lane);
            }
            let answer = refuse_unseen(core, &job, why);
            return Some((job, answer));
        }
        if let Some((shard, term)) = job.only_under
            && (shard != group.id || group.state.borrow().led_term != term)
        {
            // It was elsewhere meanwhile, and its term is over.
            self.go_on(core, group, job.lane);
            return Some((job, Answer::Moved));
        }
        let frozen = {
            let state = group.state.borrow();
            state.leader.is_none() || state.frozen
        };
        if frozen {
            let lane = job.lane;
            match self.led(core, group) {
                Led::There(belief) => {
                    self.send_away(core, group, job, belief);
                    self.go_on(core, group, lane);
                    return None;
                }
                Led::Nowhere(why) => {
                    let answer = refuse(core, &job, &Failure::Unavailable(why));
                    self.go_on(core, group, lane);
                    return Some((job, answer));
                }
                Led::Wait => {}
            }
            let mut state = group.state.borrow_mut();
            // The lane goes on from the queue, in its order.
            let behind = job.lane.and_then(|lane| state.stalled.remove(&lane));
            state.queue.push_back(job);
            state.queue.extend(behind.into_iter().flatten());
            return None;
        }
        self.attempt(core, group, job)
    }

    /// Tries a job again that waited.
    fn again(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>, job: Job<P>) {
        if let Some((job, answer)) = self.attempt_one(core, group, job) {
            core.deliver(job.reply_to, answer);
        }
    }

    /// Does the read that interrupted a job, then tries it again.
    fn catch_up(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>, mut job: Job<P>) {
        let (host, inner, group) = (self.clone(), core.clone(), group.clone());
        core.spawn("read", async move {
            job.reads.catch_up(&host.tree).await;
            host.again(&inner, &group, job);
        });
    }

    /// Finds out what became of intents in the way, then tries the job again.
    fn resolve(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        mut job: Job<P>,
        obstacles: Vec<atoll_mvcc::request::Obstacle>,
    ) {
        // A transaction asks again by itself: it has its own idea of patience.
        if let Work::Request(_) = job.work {
            let answer = Answer::Response(Response::Blocked(obstacles));
            core.deliver(job.reply_to, answer);
            return;
        }
        let (host, inner, group) = (self.clone(), core.clone(), group.clone());
        core.spawn("resolve", async move {
            for obstacle in &obstacles {
                if let Err(why) = inner.resolve(std::slice::from_ref(obstacle)).await {
                    job.reads.failure = Some(Error::Stopped(why));
                    break;
                }
            }
            host.again(&inner, &group, job);
        });
    }

    /// Reads the applied state for a request whose way is free.
    fn read(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>, job: Job<P>) {
        let (host, inner, group) = (self.clone(), core.clone(), group.clone());
        core.run(async move {
            let Work::Request(request) = &job.work else { return };
            let response = match read_tree(&host.tree, request).await {
                // The leader looked before the read began. While it waited for the disk the horizon
                // may have passed it, and a compaction taken away what it was to find.
                Ok(_) if is_below(request, Timestamp(host.tree.horizon())) => {
                    Response::Refused(Refusal::SnapshotTooOld)
                }
                Ok(response) => response,
                Err(failure) => Response::Unavailable(failure.to_string()),
            };
            if !host.may_answer(&inner, &group, &group.state.borrow()) {
                // It looks again when there is a lease, or somewhere else.
                host.submit_and_deliver(&inner, &group, job);
                return;
            }
            inner.deliver(job.reply_to, Answer::Response(response));
        });
    }

    // ---- who waits ----

    /// Ends jobs that wait for locks which their transactions do not want any more, and whose queues
    /// they have left: tried again they would take them.
    pub(crate) fn give_up_locks(
        &self,
        core: &Inner<P>,
        group: &Group<P>,
        is_given_up: impl Fn(TxnId, &[Key]) -> bool,
    ) {
        let given_up: Vec<Job<P>> = {
            let waiting = &mut group.state.borrow_mut().for_locks;
            let is_given_up = |job: &mut Job<P>| match &job.work {
                Work::Request(Request::Lock { txn, keys, .. }) => is_given_up(*txn, keys),
                _ => false,
            };
            waiting.extract_if(.., is_given_up).collect()
        };
        for job in given_up {
            core.deliver(job.reply_to, refuse(core, &job, &Failure::Unknown));
        }
    }

    /// Tries jobs again that wait for locks, if some were given back.
    pub(crate) fn wake_lock_waiters(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>) {
        loop {
            let jobs = {
                let mut state = group.state.borrow_mut();
                if state.for_locks.is_empty() {
                    return;
                }
                let Some(leader) = &state.leader else { return };
                let unlocks = leader.unlocks();
                if unlocks == state.unlocks {
                    return;
                }
                state.unlocks = unlocks;
                std::mem::take(&mut state.for_locks)
            };
            for job in jobs {
                self.again(core, group, job);
            }
        }
    }

    /// Evaluates what came while nothing could be.
    fn drain_queue(self: &Rc<Self>, core: &Rc<Inner<P>>, group: &Rc<Group<P>>) {
        loop {
            let job = {
                let mut state = group.state.borrow_mut();
                if state.frozen || state.leader.is_none() {
                    return;
                }
                state.queue.pop_front()
            };
            let Some(job) = job else { return };
            self.submit_and_deliver(core, group, job);
        }
    }

    /// Starts the shards of an opened store: what their logs have is applied, then they lead.
    pub(crate) fn start(&self) {
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        for group in groups {
            self.list(&group, &mut group.state.borrow_mut());
        }
    }
}

/// Removes a key whose deadline is due; returns whether a key with this deadline is there.
fn reap<P: Program, B: atoll_shard::leader::Base>(
    program: &P,
    eval: &mut Eval<'_, B>,
    key: &Key,
    deadline_ms: u64,
) -> Result<bool, Interrupt> {
    let Some(value) = eval.version(key)?.and_then(|seen| seen.value) else { return Ok(false) };
    let is_it = Value::decode(&value).is_ok_and(|v| v.deadline_ms == Some(deadline_ms));
    if is_it && deadline_ms <= eval.now().epoch.unix_ms() {
        eval.put(key, None);
        program.reaped(key, &value, eval);
    }
    Ok(is_it)
}

/// Returns about how many bytes the open entry of a shard has.
fn open_bytes<P: Program>(state: &State<P>) -> usize {
    state.leader.as_ref().map_or(0, Leader::open_bytes)
}

/// Returns what a command of a lane sees. `newest`: the moment it was to look at is not known any more.
fn sight<P: Program>(state: &State<P>, wanted: Sight, newest: bool, lane: Option<Lane>) -> Sight {
    let sight = match wanted {
        Sight::At(_) if newest => Sight::Edge,
        Sight::Past(_) if newest => Sight::Applied,
        other => other,
    };
    if matches!(sight, Sight::Applied | Sight::At(_))
        && let Some(lane) = lane
        && !state.unanswered.is_empty()
        && state.unanswered.contains_key(&lane)
    {
        // It follows a write of its own client that is not applied.
        return Sight::Edge;
    }
    sight
}

/// Returns what came of a command that was submitted as a job.
fn tried<P: Program>(answered: Option<(Job<P>, Answer<P>)>) -> Tried<P::Reply> {
    match answered {
        Some((_, Answer::Reply(reply))) => Tried::Reply(reply),
        Some((_, Answer::Response(_) | Answer::Moved)) | None => Tried::Waits,
    }
}

/// Returns the answer to a job that gets none of its own.
fn refuse<P: Program>(core: &Inner<P>, job: &Job<P>, failure: &Failure) -> Answer<P> {
    match &job.work {
        Work::Call(call) => Answer::Reply(core.program.failed(call, failure)),
        Work::Request(_) | Work::Reap { .. } => Answer::Response(match failure {
            Failure::Unknown => Response::Unknown,
            Failure::Unavailable(why) => Response::Unavailable(why.clone()),
            Failure::TooLarge(what) => Response::Refused(Refusal::TooLarge(what.clone())),
        }),
    }
}

/// Returns the answer to a job that a store which has stopped did not look at: another engine may take its
/// own elsewhere.
fn refuse_unseen<P: Program>(core: &Inner<P>, job: &Job<P>, why: &str) -> Answer<P> {
    match job.only_under {
        Some(_) => Answer::Moved,
        None => refuse(core, job, &Failure::Unavailable(why.to_owned())),
    }
}

/// Returns whether a request reads at a moment below the horizon.
fn is_below(request: &Request, horizon: Timestamp) -> bool {
    matches!(request, Request::Get { at, .. } | Request::Scan { at, .. } if *at < horizon)
}

/// Reads what a `Get` or `Scan` asks for.
async fn read_tree(tree: &Tree, request: &Request) -> Result<Response, Error> {
    let mut name = Vec::new();
    match request {
        Request::Get { keys, at, .. } => {
            let mut values = Vec::with_capacity(keys.len());
            for key in keys {
                tree::data(&mut name, key);
                let found = tree.get_version(&name, at.0).await?;
                values.push(found.map(|v| Version {
                    ts: Timestamp(v.stamp),
                    value: v.value.map(|value| value.to_vec()),
                }));
            }
            Ok(Response::Values(values))
        }
        Request::Scan { span, at, limit, reverse, .. } => {
            let (mut start, mut end) = (Vec::new(), Vec::new());
            tree::data(&mut start, &span.start);
            tree::data(&mut end, &span.end);
            let direction = if *reverse { Direction::Backward } else { Direction::Forward };
            let mut cursor = tree.scan_versions(&start, &end, at.0, direction);
            let mut rows = Vec::new();
            let mut more = None;
            while let Some(row) = cursor.next().await? {
                let key = row.key()[1..].to_vec();
                if let Some(value) = row.value().await? {
                    let version =
                        Version { ts: Timestamp(row.stamp()), value: Some(value.to_vec()) };
                    rows.push((key.clone(), version));
                }
                if rows.len() >= *limit {
                    more = Some(key);
                    break;
                }
            }
            Ok(Response::Rows { rows, more })
        }
        _ => Ok(Response::Unavailable("this request does not read; this is a bug".to_owned())),
    }
}
