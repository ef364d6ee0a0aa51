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

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use atoll_env::sometimes;
use atoll_env::sync::{oneshot, select_biased};
use atoll_env::task;
use atoll_lsm::driven::{Direction, Driver, Tree};
use atoll_lsm::log::{EntryId, GroupState};
use atoll_lsm::{Durability, Error};
use atoll_mvcc::keys::{Area, RoutingKey, TreeKey, tree};
use atoll_mvcc::record::{Fence, TxnRecord};
use atoll_mvcc::request::{Key, Obstacle, Refusal, Request, Response, Version};
use atoll_mvcc::{Bound, Epoch, Timestamp, TxnId, Value};
use atoll_shard::consensus::{self, Consensus, EntryKind, ShardConsensus};
use atoll_shard::descriptor::{Descriptor, ShardId};
use atoll_shard::edge::EntrySeq;
use atoll_shard::entry::{self, Closed, Payload, Split};
use atoll_shard::eval::{Eval, Interrupt, Sight};
use atoll_shard::intent::Intent;
use atoll_shard::leader::{Leader, Loaded, Miss, Step, local_key};
use atoll_shard::state;

use crate::base::{Reads, TreeBase};
use crate::core::Inner;
use crate::group::{
    Answer, Elder, Group, InFlight, Job, Lane, ReplyTo, Splitting, State, Waiter, Work,
};
use crate::program::{Ask, Failure, Program, Tried};
use crate::signal::Signal;

/// The one replica of a shard, for now.
pub(crate) const REPLICA: u64 = 1;

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
}

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
    pub(crate) fn new(index: usize, tree: Tree, bound: Epoch, room: usize) -> StoreHost<P> {
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
            let answer = refuse(core, &job, &Failure::Unavailable(why.clone()));
            return Some((job, answer));
        }
        if let Some(lane) = job.lane
            && let Some(holder) = state.holder_of(lane)
        {
            sometimes!(
                true,
                "a job waits behind one of its connection at the shard before the split"
            );
            drop(state);
            if let Some(behind) = holder.state.borrow_mut().stalled.get_mut(&lane) {
                behind.push_back(job);
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
            sometimes!(true, "a job waits for its shard to serve");
            state.queue.push_back(job);
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
            if job.alone {
                state.close_open(|| core.fresh_epoch());
            }
            job.attempt = state.jobs;
            let before = open_bytes(state);
            let outcome = self.evaluate(core, state, &mut job);
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
        let waits_behind =
            state.elder.is_some() || !state.stalled.is_empty() && state.stalled.contains_key(&lane);
        let serves = state.leader.is_some() && !state.frozen && self.stopped.borrow().is_none();
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
    fn tend(&self, core: &Inner<P>, group: &Group<P>, state: &mut State<P>, close: bool) {
        if close || open_bytes(state) > ENTRY_BYTES.min(self.room / 4) {
            state.close_open(|| core.fresh_epoch());
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
                self.read(core, job);
            }
            Outcome::CloseFirst | Outcome::Interrupted(Interrupt::Hindered(Step::CloseFirst)) => {
                state.close_open(|| core.fresh_epoch());
                return Disposed::Again(job);
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
            let answer = refuse(core, &job, &Failure::Unavailable(why.clone()));
            return Some((job, answer));
        }
        let frozen = {
            let state = group.state.borrow();
            state.leader.is_none() || state.frozen
        };
        if frozen {
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
    fn read(self: &Rc<Self>, core: &Rc<Inner<P>>, job: Job<P>) {
        let Work::Request(request) = &job.work else { return };
        let tree = self.tree.clone();
        let request = request.clone();
        let reply_to = job.reply_to;
        let inner = core.clone();
        core.run(async move {
            let response = match read_tree(&tree, &request).await {
                // The leader looked before the read began. While it waited for the disk the horizon
                // may have passed it, and a compaction taken away what it was to find.
                Ok(_) if is_below(&request, Timestamp(tree.horizon())) => {
                    Response::Refused(Refusal::SnapshotTooOld)
                }
                Ok(response) => response,
                Err(failure) => Response::Unavailable(failure.to_string()),
            };
            inner.deliver(reply_to, Answer::Response(response));
        });
    }

    // ---- turns ----

    /// Takes turns until the store is closed.
    pub(crate) async fn run(self: Rc<Self>, core: Rc<Inner<P>>, mut driver: Driver) {
        let chores = driver.chores_due();
        loop {
            select_biased(self.signal.raised(), chores.notified()).await;
            let done = self.turn(&core, &mut driver).await;
            if let Err(failure) = done {
                if self.stopped.borrow().is_none() {
                    core.program.turn_failed();
                }
                self.stop(&core, &failure);
            }
            if self.closing.get() && self.is_settled() {
                break;
            }
        }
        // Closing takes a while, and other cores may still send: they are told, not forgotten.
        self.end(&core, "the engine stops");
        let closed = driver.close().await;
        core.store_closed(self.index, closed);
    }

    fn is_settled(&self) -> bool {
        if self.stopped.borrow().is_some() {
            return true;
        }
        let groups = self.groups.borrow();
        groups.values().all(|group| {
            let state = group.state.borrow();
            state.in_flight.is_empty() && state.late.is_empty() && !state.has_entries()
        })
    }

    /// Ends the service of the store.
    fn stop(self: &Rc<Self>, core: &Rc<Inner<P>>, failure: &Error) {
        self.end(core, &failure.to_string());
    }

    /// Refuses everything from now on, and whoever waits.
    fn end(self: &Rc<Self>, core: &Rc<Inner<P>>, why: &str) {
        self.stopped.borrow_mut().get_or_insert_with(|| why.to_owned());
        // A core that waits for its shards to serve learns that they never will.
        core.changed.raise();
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        for group in groups {
            let (waiters, late, splitting) = {
                let mut state = group.state.borrow_mut();
                (state.take_all(), std::mem::take(&mut state.late), state.splitting.take())
            };
            if let Some(splitting) = splitting {
                let _ = splitting.done.send(Err(why.to_owned()));
            }
            for (job, _) in late {
                let answer = refuse(core, &job, &Failure::Unknown);
                core.deliver(job.reply_to, answer);
            }
            for waiter in waiters {
                let (job, failure) = match waiter {
                    Waiter::Answered { job, .. } => (job, Failure::Unknown),
                    Waiter::Again(job) => (job, Failure::Unavailable(why.to_owned())),
                };
                let answer = refuse(core, &job, &failure);
                core.deliver(job.reply_to, answer);
            }
        }
    }

    /// One turn.
    async fn turn(self: &Rc<Self>, core: &Rc<Inner<P>>, driver: &mut Driver) -> Result<(), Error> {
        driver.chores().await?;
        loop {
            let mut dirty = std::mem::take(&mut *self.dirty.borrow_mut());
            if dirty.is_empty() {
                return Ok(());
            }
            dirty.sort_unstable();
            let first = dirty.partition_point(|id| *id < self.next.get());
            dirty.rotate_left(first);
            let groups: Vec<Rc<Group<P>>> =
                dirty.into_iter().filter_map(|id| self.group(id)).collect();
            let started = core.env.clock.now();
            let proposed = self.propose(core, driver, &groups).await?;
            self.persist_and_apply(core, driver, &groups).await?;
            if proposed > 0 {
                core.program.turn_logged(core.env.clock.now().since(started));
            }
        }
    }

    /// Closes the open entries and proposes them, as many as there is room for in one turn; returns
    /// how many.
    async fn propose(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
        groups: &[Rc<Group<P>>],
    ) -> Result<usize, Error> {
        let mut arena = 0;
        let mut lens = Vec::new();
        let mut entries: Vec<(Rc<Group<P>>, Closed)> = Vec::new();
        let bound_before = *self.bound.borrow();
        let mut full = None;
        for group in groups {
            let mut state = group.state.borrow_mut();
            state.listed = false;
            state.close_open(|| core.fresh_epoch());
            if state.closed.is_empty()
                && state.splitting.is_some()
                && state.leader.as_ref().is_some_and(Leader::is_settled)
            {
                let split = self.close_split(core, &mut state);
                state.closed.extend(split);
            }
            while let Some(mut closed) = state.closed.pop_front() {
                // One that is larger than that is tried alone.
                if !entries.is_empty() && arena + closed.writes.arena_bytes() > self.room {
                    sometimes!(true, "a turn is full");
                    state.closed.push_front(closed);
                    full.get_or_insert(group.id);
                    self.list(group, &mut state);
                    break;
                }
                // An entry of intents and records has no stamp of its own, but moments of transactions.
                // All of them were given by the oracle before now.
                let given = Timestamp::read_at(core.oracle.last()).max(closed.stamp);
                if let Some(bound) = self.bound.borrow().bound_for(given) {
                    closed.set_bound(bound);
                }
                if let Some(bound) = closed.bound() {
                    self.bound.borrow_mut().set(bound);
                }
                arena += closed.writes.arena_bytes();
                lens.push(closed.writes.bytes().len() + 64);
                entries.push((group.clone(), closed));
            }
        }
        self.next.set(full.unwrap_or(ShardId(0)));
        if entries.is_empty() {
            return Ok(0);
        }
        if let Err(refusal) = driver.reserve(arena, &lens).await {
            // None of these entries records the bound that was meant for it.
            *self.bound.borrow_mut() = bound_before;
            self.refuse_turn(core, entries, refusal).await?;
            return Ok(0);
        }
        let count = entries.len();
        for (group, closed) in entries {
            let payload = closed.payload();
            let mut consensus = group.consensus.borrow_mut();
            let proposed = consensus.propose(payload.into());
            let mut state = group.state.borrow_mut();
            match proposed {
                Ok(at) => state.in_flight.push_back(InFlight {
                    index: at.index,
                    term: at.term,
                    seq: closed.seq,
                    stamp: closed.stamp,
                }),
                Err(why) => {
                    // With one voter this is a bug; nothing was appended.
                    return Err(Error::Stopped(format!("shard {}: {why}", group.id)));
                }
            }
        }
        Ok(count)
    }

    /// Refuses what a turn would have logged: nothing of it has happened.
    async fn refuse_turn(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        entries: Vec<(Rc<Group<P>>, Closed)>,
        refusal: Error,
    ) -> Result<(), Error> {
        if matches!(refusal, Error::Stopped(_)) {
            return Err(refusal);
        }
        sometimes!(true, "a turn is refused for lack of room");
        let oversized = match (&refusal, &entries[..]) {
            (Error::InvalidInput(_), [(_, closed)]) => Some(closed.seq),
            _ => None,
        };
        if oversized.is_none() {
            core.program.turn_failed();
        }
        let mut groups: Vec<Rc<Group<P>>> = entries.into_iter().map(|(group, _)| group).collect();
        groups.dedup_by_key(|group| group.id);
        for group in groups {
            let (mut again, mut refused) = (Vec::new(), Vec::new());
            {
                let unavailable = Failure::Unavailable(refusal.to_string());
                let mut state = group.state.borrow_mut();
                state.frozen = true;
                if let Some(seq) = oversized {
                    sometimes!(true, "an entry is too large");
                    let taken = state.take_oversized(seq);
                    again = taken.again;
                    let too_large = Failure::TooLarge(refusal.to_string());
                    refused.extend(taken.refused.into_iter().map(|job| (job, too_large.clone())));
                    refused.extend(taken.stuck.into_iter().map(|job| (job, unavailable.clone())));
                } else {
                    refused.extend(state.take_all().into_iter().map(|waiter| match waiter {
                        Waiter::Answered { job, .. } | Waiter::Again(job) => {
                            (*job, unavailable.clone())
                        }
                    }));
                }
            }
            let (descriptor, seq) = {
                let state = group.state.borrow();
                let seq = state.leader.as_ref().map_or(1, Leader::open_entry);
                (state.descriptor.clone(), seq)
            };
            let mut leader = match self.lead(core, descriptor).await {
                Ok(leader) => leader,
                Err(failure) => {
                    // The store stops. These are in none of its lists.
                    let why = Failure::Unavailable(failure.to_string());
                    for job in again.into_iter().chain(refused.into_iter().map(|(job, _)| job)) {
                        core.deliver(job.reply_to, refuse(core, &job, &why));
                    }
                    return Err(failure);
                }
            };
            leader.resume_at(seq);
            let splitting = {
                let mut state = group.state.borrow_mut();
                state.leader = Some(leader);
                state.unlocks = 0;
                state.frozen = false;
                state.sync_to = state.synced;
                // In front of those that came meanwhile.
                again.extend(state.queue.drain(..));
                state.queue = again.into();
                // A split that was to follow is refused as well. Left for later it would be carried
                // out while commands are evaluated behind its entry: the halves start anew from the
                // applied state, without what those decided, and the entry that comes next under
                // their number would tell them that it was done.
                state.splitting.take()
            };
            if let Some(splitting) = splitting {
                let _ = splitting.done.send(Err(refusal.to_string()));
            }
            for (job, failure) in refused {
                core.deliver(job.reply_to, refuse(core, &job, &failure));
            }
            self.drain_queue(core, &group);
        }
        Ok(())
    }

    /// Logs what the groups have, makes it durable, and applies what is committed by it.
    async fn persist_and_apply(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
        groups: &[Rc<Group<P>>],
    ) -> Result<(), Error> {
        let mut more: Vec<Rc<Group<P>>> = groups.to_vec();
        while !more.is_empty() {
            let mut batches: Vec<(Rc<Group<P>>, u64)> = Vec::new();
            let mut committed: Vec<(Rc<Group<P>>, Vec<consensus::Entry>)> = Vec::new();
            let mut sync = false;
            for group in &more {
                while let Some(effects) = group.consensus.borrow_mut().ready() {
                    // The state first: then whatever part of the batch a crash leaves is one that
                    // can be started from.
                    if let Some(consensus::GroupState { term, vote, commit }) = effects.state {
                        driver.set_state(group.id.0, GroupState { term, vote, commit })?;
                        // A term or a vote is a promise. Forgotten in a power cut, the next life would
                        // lead the same term with other entries. Even one that elected itself and
                        // serves without syncs syncs this.
                        sync = true;
                    }
                    for entry in &effects.entries {
                        let (index, term) = (entry.index(), entry.term());
                        let id = EntryId { group: group.id.0, index, term };
                        let position = driver.append(id, &entry.log_parts())?;
                        group.state.borrow_mut().positions.insert(index, position);
                    }
                    if effects.must_sync {
                        batches.push((group.clone(), effects.number));
                    }
                    if !effects.committed.is_empty() {
                        committed.push((group.clone(), effects.committed));
                    }
                }
                sync |= group.state.borrow().wants_sync();
            }
            if !batches.is_empty() && !sync {
                task::inline(driver.write()).await?;
            }
            // A sync writes what is staged in the same step.
            if sync {
                self.sync(core, driver, &more).await?;
            }
            for (group, entries) in committed {
                self.apply(core, driver, &group, entries).await?;
            }
            more.clear();
            for (group, number) in batches {
                group.consensus.borrow_mut().persisted(number);
                more.push(group);
            }
        }
        Ok(())
    }

    /// Makes durable what is written. What is evaluated meanwhile belongs to the next turn, and so
    /// does its wish for a sync: both are told apart by the number of the entry.
    async fn sync(
        &self,
        core: &Inner<P>,
        driver: &mut Driver,
        groups: &[Rc<Group<P>>],
    ) -> Result<(), Error> {
        let mut late = Vec::new();
        let mut covered = Vec::with_capacity(groups.len());
        for group in groups {
            let mut state = group.state.borrow_mut();
            late.append(&mut state.late);
            covered.push(state.in_flight.back().map_or(state.synced, |entry| entry.seq));
        }
        let synced = driver.sync().await;
        for (group, seq) in groups.iter().zip(covered) {
            let mut state = group.state.borrow_mut();
            if synced.is_ok() {
                state.synced = state.synced.max(seq);
            }
        }
        for (job, answer) in late {
            let answer = match &synced {
                Ok(_) => answer,
                Err(_) => refuse(core, &job, &Failure::Unknown),
            };
            core.deliver(job.reply_to, answer);
        }
        synced.map(|_| ())
    }

    /// Applies committed entries and answers whoever waited for them.
    async fn apply(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
        group: &Rc<Group<P>>,
        entries: Vec<consensus::Entry>,
    ) -> Result<(), Error> {
        for entry in entries {
            let (index, term) = (entry.index(), entry.term());
            let position = group.state.borrow_mut().positions.remove(&index).ok_or_else(|| {
                Error::Stopped(format!("shard {}: entry {index} is not in the log", group.id))
            })?;
            let malformed = |e: atoll_encoding::Malformed| {
                Error::Stopped(format!("shard {}: entry {index} does not decode: {e}", group.id))
            };
            atoll_env::always_same!(
                "applied entry",
                [group.id.0, index, term],
                atoll_encoding::hash::hash64(entry.payload())
            );
            let mut split = None;
            match entry.kind() {
                EntryKind::Normal => {
                    let payload = Payload::decode(entry.payload()).map_err(malformed)?;
                    driver.apply(group.id.0, index, position, payload.writes).await?;
                    split = payload.split;
                }
                EntryKind::Empty => {
                    driver.apply(group.id.0, index, position, &[]).await?;
                }
                EntryKind::Change => {
                    group
                        .consensus
                        .borrow_mut()
                        .apply_change(&entry)
                        .map_err(|e| Error::Stopped(format!("shard {}: {e}", group.id)))?;
                    driver.apply(group.id.0, index, position, &[]).await?;
                }
            }
            group.consensus.borrow_mut().applied(index);
            let was_ours = {
                let mut state = group.state.borrow_mut();
                state.applied_index = index;
                state.applied_entries += 1;
                let is_ours = |e: &&InFlight| e.index == index && e.term == term;
                let ours = state.in_flight.front().filter(is_ours).is_some();
                if ours { state.in_flight.pop_front() } else { None }
            };
            if let Some(split) = split {
                self.carry_out_split(core, driver, group, split).await?;
            }
            if let Some(ours) = was_ours {
                self.answer(core, group, ours.seq, ours.stamp);
            }
            let is_leader = group.consensus.borrow().is_leader();
            let of_this_term = term == group.consensus.borrow().term();
            if is_leader && of_this_term && group.state.borrow().leader.is_none() {
                // An entry of the own term is applied: everything before it is, too.
                let descriptor = group.state.borrow().descriptor.clone();
                let leader = self.lead(core, descriptor).await?;
                group.state.borrow_mut().leader = Some(leader);
                self.drain_queue(core, group);
                core.shard_ready();
            }
        }
        Ok(())
    }

    /// Makes the leader of a shard from its applied state.
    async fn lead(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        descriptor: Descriptor,
    ) -> Result<Leader, Error> {
        let loaded = load(&self.tree, &descriptor).await?;
        let low_water = core.oracle.read_ts(core.wall_epoch());
        Ok(Leader::new(descriptor, loaded, low_water, core.monotonic_ms()))
    }

    /// Answers everybody who waited for entries up to `seq`.
    fn answer(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        group: &Rc<Group<P>>,
        seq: EntrySeq,
        stamp: Timestamp,
    ) {
        let waiters = {
            let mut state = group.state.borrow_mut();
            let Some(leader) = &mut state.leader else { return };
            leader.applied(seq, stamp);
            state.waiters.remove(&seq).unwrap_or_default()
        };
        for waiter in waiters {
            match waiter {
                Waiter::Answered { job, mut answer } => {
                    if let Answer::Response(Response::Committed(ts)) = &mut answer {
                        *ts = stamp;
                    }
                    if let Some(lane) = job.lane {
                        let mut state = group.state.borrow_mut();
                        if state.unanswered.get(&lane) == Some(&seq) {
                            state.unanswered.remove(&lane);
                        }
                    }
                    let mut state = group.state.borrow_mut();
                    if job.durability == Durability::Synced && state.synced < seq {
                        sometimes!(true, "an answer comes too late for its turn's sync");
                        state.late.push((*job, answer));
                        self.list(group, &mut state);
                        continue;
                    }
                    drop(state);
                    core.deliver(job.reply_to, answer);
                }
                Waiter::Again(job) => self.again(core, group, *job),
            }
        }
        self.wake_lock_waiters(core, group);
        let mut state = group.state.borrow_mut();
        if state.splitting.is_some() {
            // It waits for a moment without entries in flight: this may be it.
            self.list(group, &mut state);
        }
    }

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

    // ---- splits ----

    /// Asks for a split of a shard at a place. What is returned completes when it is done.
    ///
    /// # Errors
    /// Transactions have intents on the shard's own values: they have to end first.
    pub(crate) fn split(
        self: &Rc<Self>,
        group: &Rc<Group<P>>,
        at: RoutingKey,
        id: ShardId,
    ) -> Result<oneshot::Receiver<Result<(), String>>, Vec<Obstacle>> {
        let (done, receiver) = oneshot::channel();
        let mut state = group.state.borrow_mut();
        let obstacles = state.leader.as_ref().map(Leader::local_obstacles).unwrap_or_default();
        if !obstacles.is_empty() {
            return Err(obstacles);
        }
        let halves = state.descriptor.split(at.clone(), id);
        let refusal = match &halves {
            _ if self.stopped.borrow().is_some() => self.stopped.borrow().clone(),
            _ if state.splitting.is_some() => Some(format!("shard {} is being split", group.id)),
            None => Some(format!("{at} does not divide shard {}", state.descriptor)),
            Some(_) => None,
        };
        match (refusal, halves) {
            (None, Some((left, right))) => {
                // What is evaluated already is logged first; the rest waits for a moment.
                state.frozen = true;
                state.splitting = Some(Splitting { split: Split { left, right }, done });
                self.list(group, &mut state);
            }
            (refusal, _) => {
                let _ = done.send(Err(refusal.unwrap_or_default()));
            }
        }
        Ok(receiver)
    }

    /// Makes the entry that splits a shard on which nothing is under way.
    fn close_split(&self, core: &Inner<P>, state: &mut State<P>) -> Option<Closed> {
        let split = state.splitting.as_ref()?.split.clone();
        let leader = state.leader.as_mut()?;
        let closed = leader.close_split(split, || core.fresh_epoch());
        state.sync_to = state.sync_to.max(closed.seq);
        Some(closed)
    }

    /// Divides what is in memory after the entry was applied.
    async fn carry_out_split(
        self: &Rc<Self>,
        core: &Rc<Inner<P>>,
        driver: &mut Driver,
        group: &Rc<Group<P>>,
        split: Split,
    ) -> Result<(), Error> {
        let Split { left, right } = split;
        if self.group(right.id).is_none() {
            let (child, _) = open_group(driver, right.clone()).await?;
            self.groups.borrow_mut().insert(right.id, Rc::new(child));
            if group.state.borrow().leader.is_none() {
                // Found in the log of an earlier process: one more that has to lead before the core
                // serves.
                core.starting.set(core.starting.get() + 1);
            }
        }
        let splitting = {
            let mut state = group.state.borrow_mut();
            state.descriptor = left.clone();
            // Before anybody can send it more: what came first goes first.
            if let Some(child) = self.group(right.id) {
                let lanes = state.stalled_lanes();
                let queue = std::mem::take(&mut state.queue);
                let (mine, theirs) =
                    queue.into_iter().partition(|job| self.is_mine(core, &state, job));
                state.queue = mine;
                let mut child = child.state.borrow_mut();
                child.queue = theirs;
                if !lanes.is_empty() {
                    child.elder = Some(Elder { group: group.clone(), lanes });
                }
            }
            state.splitting.take()
        };
        core.split_done(self.index, &left, &right);
        // The halves start anew from the applied state; nothing was under way. (While the log of an
        // earlier process is replayed there is no leader yet.)
        let before = group.state.borrow_mut().leader.take();
        if let Some(before) = before {
            let mut leader = self.lead(core, left).await?;
            leader.resume_at(before.open_entry());
            let mut state = group.state.borrow_mut();
            state.leader = Some(leader);
            state.frozen = false;
            // Locks ended with the leader that had them: whoever waits for one asks again.
            let waiting = std::mem::take(&mut state.for_locks);
            state.unlocks = 0;
            drop(state);
            for job in waiting {
                self.again(core, group, job);
            }
        }
        if let Some(child) = self.group(right.id) {
            self.list(&child, &mut child.state.borrow_mut());
        }
        if let Some(splitting) = splitting {
            let _ = splitting.done.send(Ok(()));
        }
        self.drain_queue(core, group);
        Ok(())
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
        Some((_, Answer::Response(_))) | None => Tried::Waits,
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

/// Reads what the leader of a shard keeps in memory.
async fn load(tree: &Tree, descriptor: &Descriptor) -> Result<Loaded, Error> {
    let mut loaded = Loaded { horizon: Timestamp(tree.horizon()), ..Loaded::default() };
    let broken = |key: &[u8], e: atoll_encoding::Malformed| {
        Error::Stopped(format!(
            "a record of shard {} at \"{}\": {e}",
            descriptor.id,
            key.escape_ascii()
        ))
    };
    for area in [Area::Intent, Area::Record, Area::Fence] {
        // All keyspaces of the area in key order; those of other shards are passed by.
        let (start, end) = ([area as u8], [area as u8 + 1]);
        let mut cursor = tree.scan(&start, &end, Direction::Forward);
        while let Some(row) = cursor.next().await? {
            let key = TreeKey::decode(row.key()).map_err(|e| broken(row.key(), e))?;
            let mine = match &key {
                TreeKey::Intent(key) => descriptor.contains(key),
                TreeKey::Record { primary, .. } => descriptor.contains(primary),
                TreeKey::Fence { key, .. } => descriptor.contains(key),
                _ => false,
            };
            if !mine {
                continue;
            }
            let Some(value) = row.value().await? else { continue };
            let broken = |e| broken(row.key(), e);
            match key {
                TreeKey::Intent(key) => {
                    let intent = Intent::decode(&value).map_err(broken)?;
                    loaded.intents.push((key.to_vec(), intent));
                }
                TreeKey::Record { primary, txn } => {
                    let record = TxnRecord::decode(&value).map_err(broken)?;
                    // Of the moment only the epoch is kept: the last one of it stands for all.
                    let written = Timestamp::read_at(record.written);
                    loaded.records.push((txn, primary, record.state, written));
                }
                TreeKey::Fence { key, txn } => {
                    let fence = Fence::decode(&value).map_err(broken)?;
                    loaded.fences.push((key, txn, fence.start));
                }
                _ => {}
            }
        }
    }
    let mut start = Vec::new();
    tree::shard(&mut start, descriptor.id.0, b"");
    let mut end = Vec::new();
    tree::shard(&mut end, descriptor.id.0 + 1, b"");
    let mut cursor = tree.scan(&start, &end, Direction::Forward);
    while let Some(row) = cursor.next().await? {
        if let Ok(TreeKey::Shard { what, .. }) = TreeKey::decode(row.key())
            && let Some(keyspace) = state::counted(what)
        {
            let Some(value) = row.value().await? else { continue };
            let count = entry::decode_count(&value).map_err(|e| broken(row.key(), e))?;
            loaded.counts.insert(keyspace, count);
        }
    }
    let slots = descriptor.range.slots();
    if !slots.is_empty() {
        let (mut start, mut end) = (Vec::new(), Vec::new());
        tree::data(&mut start, &local_key(slots.start, b""));
        tree::data(&mut end, &local_key(slots.start + 1, b""));
        let mut cursor = tree.scan_versions(&start, &end, u64::MAX, Direction::Forward);
        while let Some(row) = cursor.next().await? {
            if let Some(value) = row.value().await? {
                loaded.locals.push((row.key()[1..].to_vec(), value.to_vec()));
            }
        }
    }
    Ok(loaded)
}

/// Opens the consensus group of a shard from what the log has of it. Returns it with the highest
/// bound of the oracle that its log tells of.
pub(crate) async fn open_group<P: Program>(
    driver: &mut Driver,
    descriptor: Descriptor,
) -> Result<(Group<P>, Epoch), Error> {
    let mut bound = Epoch(0);
    let id = descriptor.id.0;
    let applied = driver.applied(id);
    let summary = driver.group(id);
    let config = consensus::Config::new(id, REPLICA);
    let mut stored = consensus::Stored {
        members: consensus::Members::of_voters([REPLICA]),
        applied,
        first: applied + 1,
        ..consensus::Stored::default()
    };
    let mut positions = BTreeMap::new();
    if let Some(summary) = summary {
        let GroupState { term, vote, commit } = summary.state;
        stored.state = consensus::GroupState { term, vote, commit };
        let next = summary.next;
        if applied > 0 {
            let term = driver.term(id, applied).ok_or_else(|| {
                Error::Stopped(format!("shard {id}: the term of entry {applied} is not known"))
            })?;
            stored.terms.push((applied, term));
        }
        if next > applied + 1 {
            for entry in driver.entries(id, applied + 1..next).await? {
                let (index, term) = (entry.id.index, entry.id.term);
                positions.insert(index, entry.position);
                let broken = |e: atoll_encoding::Malformed| {
                    Error::Stopped(format!("shard {id}: entry {index} does not decode: {e}"))
                };
                let decoded =
                    consensus::Entry::decode(index, term, entry.payload).map_err(broken)?;
                if decoded.kind() == EntryKind::Normal {
                    let payload = Payload::decode(decoded.payload()).map_err(broken)?;
                    bound = bound.max(payload.bound.unwrap_or_default());
                }
                stored.entries.push(decoded);
            }
        }
    }
    let consensus = Consensus::restore(config, stored)
        .map_err(|e| Error::Stopped(format!("shard {id}: {e}")))?;
    let group = Group {
        id: descriptor.id,
        consensus: RefCell::new(consensus),
        state: RefCell::new(State { positions, ..State::new(descriptor, applied) }),
    };
    Ok((group, bound))
}
