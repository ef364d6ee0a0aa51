//! Shards on one applied state, behind a network: the proof's cluster.
//!
//! Each shard has two tasks: one closes its open entry some time after something was decided, one
//! applies what is in flight. Everything else happens in the step of whoever asks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::random::Prng;
use atoll_env::sync::{Notify, oneshot};
use atoll_mvcc::Timestamp;
use atoll_mvcc::keys::{Range, RoutingKey, place_of};
use atoll_mvcc::request::{Key, Obstacle, Refusal, Request, Response, Span, Version};
use atoll_txn::proof::{Cluster, Fast, FastAnswer, Ground, Moment, Net, Weather, Written};
use atoll_txn::{LocalOracle, Pace, Patience, WhenAlive};

use super::host::{
    Answer, Flight, Host, Job, Lane, Outcome, ReplyTo, Waiter, When, Work, now, payload, stored,
};
use super::state::Applied;
use crate::descriptor::{Descriptor, ShardId};
use crate::entry::Split;
use crate::eval::Interrupt;
use crate::leader::{Count, EPOCH, LOCAL, Step};
use crate::mutants;

/// See the module. Clones share the shards.
#[derive(Clone)]
pub(super) struct Real {
    world: Rc<World>,
}

pub(super) struct World {
    env: Env,
    oracle: LocalOracle,
    prng: RefCell<Prng>,
    weather: Weather,
    hosts: RefCell<Vec<Host>>,
    /// Wake the tasks that close and apply, by shard.
    opened: RefCell<Vec<Rc<Notify>>>,
    proposed: RefCell<Vec<Rc<Notify>>>,
    applied: RefCell<Applied>,
    history: RefCell<BTreeMap<Key, Vec<Written>>>,
    wrongs: RefCell<Vec<String>>,
    /// Share of reads that are not in memory.
    misses: f64,
    epoch: Cell<u64>,
    safepoint: Cell<Timestamp>,
    horizon: Cell<Timestamp>,
    next_lane: Cell<Lane>,
    traces: bool,
}

impl Real {
    pub(super) fn new(
        env: &Env,
        oracle: &LocalOracle,
        starts: &[Key],
        mut prng: Prng,
        weather: Weather,
    ) -> Real {
        let misses = *prng.choose(&[0.0, 0.0, 0.2]).unwrap_or(&0.0);
        let world = Rc::new(World {
            env: env.clone(),
            oracle: oracle.clone(),
            prng: RefCell::new(prng),
            weather,
            hosts: RefCell::default(),
            opened: RefCell::default(),
            proposed: RefCell::default(),
            applied: RefCell::default(),
            history: RefCell::default(),
            wrongs: RefCell::default(),
            misses,
            epoch: Cell::new(0),
            safepoint: Cell::default(),
            horizon: Cell::default(),
            next_lane: Cell::new(0),
            traces: std::env::var_os("ATOLL_SHARD_TRACE").is_some(),
        });
        let place = |key: &Key| place_of(key).map(RoutingKey::into_owned);
        for (at, start) in starts.iter().enumerate() {
            let next = starts.get(at + 1);
            let range = Range {
                start: place(start).expect("invariant: shards begin at keys"),
                end: next.and_then(place).unwrap_or(RoutingKey::End),
            };
            let end = next.cloned().unwrap_or_else(|| vec![0xff; 8]);
            let descriptor = Descriptor { id: ShardId(at as u64 + 1), range, epoch: 1 };
            world.add(descriptor, Span { start: start.clone(), end });
        }
        let ticking = world.clone();
        env.tasks.spawn_local(
            "tick",
            Box::pin(async move {
                loop {
                    ticking.env.clock.sleep(Duration::from_millis(250)).await;
                    ticking.tick();
                }
            }),
        );
        Real { world }
    }
}

impl World {
    fn ms(&self) -> u64 {
        self.env.clock.now().0 / 1_000_000
    }

    fn is_wrong(&self, what: String) {
        self.wrongs.borrow_mut().push(what);
    }

    fn chance(&self, p: f64) -> bool {
        self.prng.borrow_mut().chance(p)
    }

    fn low_water(&self) -> Timestamp {
        Timestamp::read_at(self.oracle.next_epoch())
    }

    fn add(self: &Rc<World>, descriptor: Descriptor, span: Span) {
        let loaded = self.applied.borrow().load(&descriptor, self.horizon.get());
        let host = Host::new(descriptor, span, loaded, self.low_water(), self.ms());
        let index = self.hosts.borrow().len();
        self.hosts.borrow_mut().push(host);
        let (opened, proposed) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        self.opened.borrow_mut().push(opened.clone());
        self.proposed.borrow_mut().push(proposed.clone());
        let world = self.clone();
        self.env.tasks.spawn_local(
            "close",
            Box::pin(async move {
                loop {
                    opened.notified().await;
                    let wait = world.draw(world.weather.apply_us / 2);
                    world.env.clock.sleep(wait).await;
                    world.close(index);
                }
            }),
        );
        let world = self.clone();
        self.env.tasks.spawn_local(
            "apply",
            Box::pin(async move {
                loop {
                    proposed.notified().await;
                    while !world.hosts.borrow()[index].in_flight.is_empty() {
                        let wait = world.draw(world.weather.apply_us);
                        world.env.clock.sleep(wait).await;
                        world.apply_one(index);
                    }
                }
            }),
        );
    }

    // ---- jobs ----

    fn submit(self: &Rc<World>, index: usize, job: Job) {
        {
            let host = &mut self.hosts.borrow_mut()[index];
            if let Some(lane) = job.lane
                && let Some(behind) = host.stalled.get_mut(&lane)
            {
                behind.push_back(job);
                return;
            }
            if host.frozen {
                host.queue.push_back(job);
                return;
            }
        }
        self.attempt(index, job);
    }

    /// Tries a job that waited.
    fn again(self: &Rc<World>, index: usize, job: Job) {
        {
            let host = &mut self.hosts.borrow_mut()[index];
            if host.frozen {
                let behind = job.lane.and_then(|lane| host.stalled.remove(&lane));
                host.queue.push_back(job);
                host.queue.extend(behind.into_iter().flatten());
                return;
            }
        }
        self.attempt(index, job);
    }

    fn attempt(self: &Rc<World>, index: usize, mut job: Job) {
        loop {
            if let Work::Fast(fast) = &job.work
                && let Some(elsewhere) = self.place(index, fast)
            {
                let lane = job.lane;
                match elsewhere {
                    Some(other) => self.submit(other, job),
                    None => job.refuse(),
                }
                return self.go_on(index, lane);
            }
            let outcome = {
                let host = &mut self.hosts.borrow_mut()[index];
                let now = now(host.known, self.oracle.last(), self.ms());
                let patient = job.misses < 4;
                let misses = || patient && self.misses > 0.0 && self.chance(self.misses);
                let outcome = host.evaluate(&job, &self.applied.borrow(), misses, now);
                if host.leader.is_open() {
                    self.opened.borrow()[index].notify();
                }
                outcome
            };
            match outcome {
                Outcome::Answer(answer @ Answer::Fast { when: When::InEntry(_), .. }) => {
                    let lane = job.lane;
                    self.hosts.borrow_mut()[index].at_closing.push((job, answer));
                    return self.go_on(index, lane);
                }
                Outcome::Answer(answer) => {
                    self.give_up_locks(index, &job);
                    let lane = job.lane;
                    answer.leave(job, Timestamp::ZERO);
                    self.wake_lock_waiters(index);
                    return self.go_on(index, lane);
                }
                Outcome::At(entry, answer) => {
                    let lane = job.lane;
                    {
                        let host = &mut self.hosts.borrow_mut()[index];
                        if let Some(lane) = lane
                            && !mutants::is("own-writes-not-seen")
                        {
                            // A later command may wait for an earlier entry: of what it saw.
                            let newest = host.unanswered.entry(lane).or_insert(entry);
                            *newest = (*newest).max(entry);
                        }
                        let waiter = Waiter::Answered(job, answer);
                        host.waiters.entry(entry).or_default().push(waiter);
                    }
                    return self.go_on(index, lane);
                }
                Outcome::Read => return self.read(job),
                Outcome::CloseFirst => self.close(index),
                Outcome::Interrupted(interrupt) => {
                    let host = &mut self.hosts.borrow_mut()[index];
                    if let Some(lane) = job.lane {
                        host.stalled.entry(lane).or_default();
                    }
                    match interrupt {
                        Interrupt::Hindered(Step::AwaitEntry(entry)) => {
                            host.waiters.entry(entry).or_default().push(Waiter::Again(job));
                        }
                        Interrupt::Hindered(Step::AwaitLock) => host.for_locks.push(job),
                        Interrupt::Hindered(Step::Answer(Response::Blocked(obstacles))) => {
                            self.resolve(index, job, obstacles);
                        }
                        Interrupt::Miss => {
                            job.misses += 1;
                            self.catch_up(index, job);
                        }
                        other @ (Interrupt::Hindered(_) | Interrupt::TooOld) => {
                            self.is_wrong(format!("a command met {other:?}"));
                        }
                    }
                    return;
                }
            }
        }
    }

    /// Returns where a command belongs if it is not here; `Some(None)` if it belongs nowhere.
    fn place(&self, index: usize, fast: &Fast) -> Option<Option<usize>> {
        let mut keys = fast.reads.iter().chain(fast.writes.iter().map(|write| &write.key));
        let first = self.find(keys.next()?);
        let together = keys.all(|key| self.find(key) == first);
        if together && first == index { None } else { Some(together.then_some(first)) }
    }

    /// Lets the jobs behind one of their lane go on.
    fn go_on(self: &Rc<World>, index: usize, lane: Option<Lane>) {
        let Some(lane) = lane else { return };
        let behind = self.hosts.borrow_mut()[index].stalled.remove(&lane);
        let Some(mut behind) = behind else { return };
        while let Some(job) = behind.pop_front() {
            self.again(index, job);
            let host = &mut self.hosts.borrow_mut()[index];
            if let Some(stalled) = host.stalled.get_mut(&lane) {
                stalled.extend(behind.drain(..));
                return;
            }
        }
    }

    /// Ends requests for locks that their transaction does not want any more.
    fn give_up_locks(&self, index: usize, job: &Job) {
        let Work::Request(Request::Unlock { txn, keys }) = &job.work else { return };
        let is_given_up = |waiting: &mut Job| match &waiting.work {
            Work::Request(Request::Lock { txn: of, keys: wanted, .. }) => {
                of == txn && wanted.iter().any(|key| keys.contains(key))
            }
            _ => false,
        };
        let host = &mut self.hosts.borrow_mut()[index];
        host.for_locks.extract_if(.., is_given_up).for_each(Job::lost);
    }

    fn wake_lock_waiters(self: &Rc<World>, index: usize) {
        loop {
            let jobs = {
                let host = &mut self.hosts.borrow_mut()[index];
                let unlocks = host.leader.unlocks();
                if host.for_locks.is_empty() || unlocks == host.unlocks {
                    return;
                }
                host.unlocks = unlocks;
                std::mem::take(&mut host.for_locks)
            };
            jobs.into_iter().for_each(|job| self.again(index, job));
        }
    }

    fn catch_up(self: &Rc<World>, index: usize, job: Job) {
        let world = self.clone();
        self.env.tasks.spawn_local(
            "catch up",
            Box::pin(async move {
                world.env.clock.sleep(world.draw(world.weather.apply_us)).await;
                world.again(index, job);
            }),
        );
    }

    /// Finds out what became of intents in the way, then tries the job again.
    fn resolve(self: &Rc<World>, index: usize, job: Job, obstacles: Vec<Obstacle>) {
        if let Work::Request(_) = job.work {
            return Answer::Response(Response::Blocked(obstacles)).leave(job, Timestamp::ZERO);
        }
        let world = self.clone();
        self.env.tasks.spawn_local(
            "resolve",
            Box::pin(async move {
                let wait = Duration::from_millis(2);
                let limit = Duration::from_secs(10);
                let patience = Patience { wait, then: WhenAlive::Push, limit };
                let pace = Pace::new(&world.env);
                let _ = atoll_txn::resolve(&Net::new(&world), &pace, &obstacles, patience).await;
                world.again(index, job);
            }),
        );
    }

    /// Reads the applied state for a request whose way is free, perhaps much later.
    fn read(self: &Rc<World>, job: Job) {
        let wait = match self.chance(0.2) {
            true => self.draw(self.weather.apply_us * 2),
            false => Duration::ZERO,
        };
        if wait == Duration::ZERO {
            let response = self.read_now(&job);
            return Answer::Response(response).leave(job, Timestamp::ZERO);
        }
        let world = self.clone();
        self.env.tasks.spawn_local(
            "read",
            Box::pin(async move {
                world.env.clock.sleep(wait).await;
                let response = world.read_now(&job);
                Answer::Response(response).leave(job, Timestamp::ZERO);
            }),
        );
    }

    fn read_now(&self, job: &Job) -> Response {
        let applied = self.applied.borrow();
        let version = |found: &crate::leader::Found<super::state::Stored>| Version {
            ts: found.ts,
            value: found.value.as_deref().map(<[u8]>::to_vec),
        };
        if let Work::Request(Request::Get { at, .. } | Request::Scan { at, .. }) = &job.work
            && *at < applied.horizon()
            && !mutants::is("reads-below-horizon")
        {
            // It took so long that what it would have found is gone.
            return Response::Refused(Refusal::SnapshotTooOld);
        }
        match &job.work {
            Work::Request(Request::Get { keys, at, .. }) => {
                Response::Values(keys.iter().map(|key| applied.at(key, *at).map(version)).collect())
            }
            Work::Request(Request::Scan { span, at, limit, reverse, .. }) => {
                let rows = applied.rows(span, *at).into_iter();
                let mut rows: Vec<_> = rows.map(|(key, found)| (key, version(&found))).collect();
                if *reverse {
                    rows.reverse();
                }
                let more = (rows.len() > *limit).then(|| rows[limit - 1].0.clone());
                rows.truncate(*limit);
                Response::Rows { rows, more }
            }
            _ => unreachable!("invariant: only reads come here"),
        }
    }

    // ---- entries ----

    fn close(self: &Rc<World>, index: usize) {
        let mut leaving: Vec<(Job, Answer, Timestamp)> = Vec::new();
        {
            let host = &mut self.hosts.borrow_mut()[index];
            if !host.close(|| self.oracle.next_epoch()) {
                return;
            }
            let Some(&Flight { seq, stamp, .. }) = host.in_flight.back() else { return };
            leaving.extend(host.at_closing.drain(..).map(|(job, answer)| (job, answer, stamp)));
            if mutants::is("answer-before-apply") {
                let waiters = host.waiters.remove(&seq).unwrap_or_default();
                let mut stay = Vec::new();
                for waiter in waiters {
                    match waiter {
                        Waiter::Answered(job, answer) => leaving.push((job, answer, stamp)),
                        again => stay.push(again),
                    }
                }
                host.waiters.insert(seq, stay);
            }
        }
        self.proposed.borrow()[index].notify();
        leaving.into_iter().for_each(|(job, answer, stamp)| answer.leave(job, stamp));
    }

    fn apply_one(self: &Rc<World>, index: usize) {
        let (seq, stamp, waiters) = {
            let mut hosts = self.hosts.borrow_mut();
            let host = &mut hosts[index];
            let Some(flight) = host.in_flight.pop_front() else { return };
            let (seq, stamp) = (flight.seq, flight.stamp);
            if let Err(what) = self.apply(flight) {
                self.is_wrong(what);
            }
            host.leader.applied(seq, stamp);
            (seq, stamp, host.waiters.remove(&seq).unwrap_or_default())
        };
        self.check_counts(index);
        for waiter in waiters {
            match waiter {
                Waiter::Answered(job, answer) => {
                    if let Some(lane) = job.lane {
                        let unanswered = &mut self.hosts.borrow_mut()[index].unanswered;
                        if unanswered.get(&lane) == Some(&seq) {
                            unanswered.remove(&lane);
                        }
                    }
                    answer.leave(job, stamp);
                }
                Waiter::Again(job) => self.again(index, job),
            }
        }
        self.wake_lock_waiters(index);
    }

    /// Applies an entry, and checks it against what was evaluated.
    fn apply(&self, flight: Flight) -> Result<(), String> {
        let mut applied = self.applied.borrow_mut();
        let mut history = self.history.borrow_mut();
        let mut last = BTreeMap::new();
        for logged in flight.log {
            last.insert(logged.key.clone(), logged.value.clone());
            let at = Moment { ts: flight.stamp, order: logged.order };
            let value = logged.value.as_deref().map(payload);
            history.entry(logged.key).or_default().push(Written { at, value });
        }
        for added in applied.apply(&flight.payload)? {
            if added.ts == flight.stamp && last.get(&added.key) == Some(&added.value) {
                last.remove(&added.key);
                continue;
            }
            if is_epoch(&added.key) {
                // The split's own word, of no transaction.
                continue;
            }
            // An intent that was resolved.
            let at = Moment::end_of(added.ts);
            let value = added.value.as_deref().map(payload);
            history.entry(added.key).or_default().push(Written { at, value });
        }
        if !last.is_empty() {
            return Err(format!("entry {} lacks {:?}", flight.seq, last.keys()));
        }
        applied.check_expiry()
    }

    /// Checks the counts of a shard that has nothing under way. Halves of a split share what was
    /// counted before: then only sums tell.
    fn check_counts(&self, index: usize) {
        let hosts = self.hosts.borrow();
        let applied = self.applied.borrow();
        let is_empty = |count: &Count| *count == Count::default();
        if self.epoch.get() == 0 {
            let host = &hosts[index];
            if host.leader.is_settled() {
                let mut counts = host.leader.counts().clone();
                counts.retain(|_, count| !is_empty(count));
                let exact = applied.count(|key| host.descriptor.contains(key));
                if counts != exact {
                    self.is_wrong(format!("shard {index} counts {counts:?}, not {exact:?}"));
                }
            }
        } else if hosts.iter().all(|host| host.leader.is_settled()) {
            let mut counts: BTreeMap<u32, Count> = BTreeMap::new();
            for (keyspace, count) in hosts.iter().flat_map(|host| host.leader.counts()) {
                let sum = counts.entry(*keyspace).or_default();
                sum.keys += count.keys;
                sum.expiring += count.expiring;
            }
            counts.retain(|_, count| !is_empty(count));
            let exact = applied.count(|_| true);
            if counts != exact {
                self.is_wrong(format!("the shards count {counts:?}, not {exact:?}"));
            }
        }
    }

    // ---- what makes life hard ----

    fn change_leader(self: &Rc<World>, index: usize, keep: usize) {
        let flights = self.hosts.borrow()[index].in_flight.len();
        for _ in 0..keep.min(flights) {
            self.apply_one(index);
        }
        // A turn that finds no room proposes nothing: then it is known that nothing has happened.
        let refused = self.hosts.borrow()[index].in_flight.is_empty() && self.chance(0.3);
        let waiters = {
            let host = &mut self.hosts.borrow_mut()[index];
            let waiters = host.take_all();
            let loaded = self.applied.borrow().load(&host.descriptor, self.horizon.get());
            host.lead(loaded, self.low_water(), self.ms());
            waiters
        };
        self.check_counts(index);
        for waiter in waiters {
            match waiter {
                Waiter::Answered(job, _) if !refused => job.lost(),
                Waiter::Answered(job, _) | Waiter::Again(job) => job.refuse(),
            }
        }
    }

    fn split(self: &Rc<World>, at: &Key) {
        let index = self.find(at);
        let place = place_of(at).expect("invariant: shards are split at keys").into_owned();
        let id = ShardId(self.hosts.borrow().len() as u64 + 1);
        let Some((left, right)) = self.hosts.borrow()[index].descriptor.split(place, id) else {
            return;
        };
        if !self.hosts.borrow()[index].leader.local_obstacles().is_empty() {
            return;
        }
        self.hosts.borrow_mut()[index].frozen = true;
        while !self.hosts.borrow()[index].leader.is_settled() {
            self.close(index);
            self.apply_one(index);
        }
        {
            let host = &mut self.hosts.borrow_mut()[index];
            let split = Split { left: left.clone(), right: right.clone() };
            let closed = host.leader.close_split(split, || self.oracle.next_epoch());
            host.propose(&closed);
        }
        self.apply_one(index);
        self.epoch.set(self.epoch.get() + 1);
        for half in [&left, &right] {
            if self.applied.borrow().descriptor(half.id.0).as_ref() != Some(half) {
                self.is_wrong(format!("{half} is not stored"));
            }
        }
        let (waiting, end) = {
            let host = &mut self.hosts.borrow_mut()[index];
            host.descriptor = left;
            let end = std::mem::replace(&mut host.span.end, at.clone());
            let loaded = self.applied.borrow().load(&host.descriptor, self.horizon.get());
            host.lead(loaded, self.low_water(), self.ms());
            host.frozen = false;
            (std::mem::take(&mut host.for_locks), end)
        };
        self.add(right, Span { start: at.clone(), end });
        waiting.into_iter().for_each(|job| self.again(index, job));
        loop {
            let job = self.hosts.borrow_mut()[index].queue.pop_front();
            let Some(job) = job else { break };
            self.submit(index, job);
        }
    }

    fn tick(self: &Rc<World>) {
        let count = self.hosts.borrow().len();
        for index in 0..count {
            {
                let host = &mut self.hosts.borrow_mut()[index];
                let now = now(host.known, self.oracle.last(), self.ms());
                let dead = host.leader.expire_locks(now);
                let is_dead = |job: &mut Job| match &job.work {
                    Work::Request(Request::Lock { txn, .. }) => dead.contains(txn),
                    _ => false,
                };
                host.for_locks.extract_if(.., is_dead).for_each(Job::lost);
            }
            self.wake_lock_waiters(index);
        }
    }

    fn stored_request(request: Request) -> Request {
        let write = |write: &mut atoll_mvcc::request::Write| {
            write.value = write.value.as_deref().map(stored);
        };
        let mut request = request;
        if let Request::Commit { writes, .. } | Request::Prewrite { writes, .. } = &mut request {
            writes.iter_mut().for_each(write);
        }
        request
    }
}

/// Makes an answer's values what clients call them.
fn told(response: Response) -> Response {
    let version = |Version { ts, value }| Version { ts, value: value.as_deref().map(payload) };
    match response {
        Response::Values(values) => {
            Response::Values(values.into_iter().map(|value| value.map(version)).collect())
        }
        Response::Rows { rows, more } => {
            let rows = rows.into_iter().map(|(key, row)| (key, version(row))).collect();
            Response::Rows { rows, more }
        }
        other => other,
    }
}

impl Ground for World {
    fn env(&self) -> &Env {
        &self.env
    }

    fn prng(&self) -> &RefCell<Prng> {
        &self.prng
    }

    fn weather(&self) -> Weather {
        self.weather
    }

    fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    fn ranges(&self) -> Vec<Span> {
        self.hosts.borrow().iter().map(|host| host.span.clone()).collect()
    }

    async fn ask(self: &Rc<World>, shard: usize, request: Request) -> Response {
        let (sender, receiver) = oneshot::channel();
        let from = self.env.clock.now();
        let line = self.traces.then(|| format!("{request:?}"));
        let job = Job {
            work: Work::Request(World::stored_request(request)),
            reply_to: ReplyTo::Request(sender),
            lane: None,
            may_write: true,
            misses: 0,
        };
        self.submit(shard, job);
        let response = told(receiver.await.unwrap_or(Response::Unknown));
        if let Some(line) = line {
            let then = self.env.clock.now().0;
            eprintln!("{} to {then} shard {shard}: {line} --> {response:?}", from.0);
        }
        response
    }

    fn lose_leader(self: &Rc<World>, shard: usize) {
        self.close(shard);
        self.change_leader(shard, usize::MAX);
    }
}

impl Cluster for Real {
    type Shards = Net<World>;

    const PIPELINES: bool = true;

    fn shards(&self) -> Net<World> {
        Net::new(&self.world)
    }

    fn fast(&self, commands: Vec<Fast>) -> Vec<impl Future<Output = FastAnswer>> {
        let lane = self.world.next_lane.get();
        self.world.next_lane.set(lane + 1);
        let mut jobs = Vec::new();
        let mut answers = Vec::new();
        for mut fast in commands {
            for write in &mut fast.writes {
                write.value = write.value.as_deref().map(stored);
            }
            let (sender, receiver) = oneshot::channel();
            let may_write = self.world.chance(0.3);
            jobs.push((fast, sender, may_write));
            let world = self.world.clone();
            answers.push(async move {
                let answer = receiver.await.unwrap_or(FastAnswer::Unknown);
                world.env.clock.sleep(world.draw(world.weather.network_us)).await;
                answer
            });
        }
        let world = self.world.clone();
        self.world.env.tasks.spawn_local(
            "commands",
            Box::pin(async move {
                world.env.clock.sleep(world.draw(world.weather.network_us)).await;
                for (fast, sender, may_write) in jobs {
                    let mut keys = fast.reads.iter().chain(fast.writes.iter().map(|w| &w.key));
                    let Some(index) = keys.next().map(|key| world.find(key)) else { continue };
                    if world.traces {
                        eprintln!("{} shard {index}: {fast:?}", world.env.clock.now().0);
                    }
                    let work = Work::Fast(fast);
                    let reply_to = ReplyTo::Fast(sender);
                    let lane = Some(lane);
                    world.submit(index, Job { work, reply_to, lane, may_write, misses: 0 });
                }
            }),
        );
        answers
    }

    fn change_leader(&self) {
        let (at, keep) = {
            let mut prng = self.world.prng.borrow_mut();
            (prng.index(self.world.hosts.borrow().len()), prng.index(4))
        };
        if self.world.chance(0.5) {
            self.world.close(at);
        }
        self.world.change_leader(at, keep);
    }

    fn split(&self, at: &Key) {
        self.world.split(at);
    }

    fn learn_epoch(&self) {
        let mut prng = self.world.prng.borrow_mut();
        let mut hosts = self.world.hosts.borrow_mut();
        let at = prng.index(hosts.len());
        hosts[at].known = self.world.oracle.last();
    }

    fn set_safepoint(&self, safepoint: Timestamp) {
        let world = &self.world;
        world.safepoint.set(world.safepoint.get().max(safepoint));
    }

    fn collect(&self) {
        let world = &self.world;
        // Nobody has an intent below, not even one that may come back.
        let oldest = {
            let hosts = world.hosts.borrow();
            hosts.iter().filter_map(|host| host.leader.oldest_intent()).min()
        };
        let horizon = world.safepoint.get().min(oldest.unwrap_or(Timestamp::MAX).prev());
        world.horizon.set(world.horizon.get().max(horizon));
        world.applied.borrow_mut().collect(world.horizon.get());
        let count = world.hosts.borrow().len();
        for index in 0..count {
            let host = &mut world.hosts.borrow_mut()[index];
            host.leader.raise_horizon(world.horizon.get());
            if host.leader.is_open() {
                world.opened.borrow()[index].notify();
            }
        }
    }

    fn intents(&self) -> Vec<Obstacle> {
        let hosts = self.world.hosts.borrow();
        hosts.iter().flat_map(|host| host.leader.obstacles()).collect()
    }

    fn history(&self) -> BTreeMap<Key, Vec<Written>> {
        self.world.history.borrow().clone()
    }

    fn wrongs(&self) -> Vec<String> {
        let count = self.world.hosts.borrow().len();
        for index in 0..count {
            while !self.world.hosts.borrow()[index].leader.is_settled() {
                self.world.close(index);
                self.world.apply_one(index);
            }
            self.world.check_counts(index);
        }
        self.world.wrongs.borrow().clone()
    }
}

/// Returns whether a key is the shard's own value that splits write.
fn is_epoch(key: &[u8]) -> bool {
    key.starts_with(&LOCAL.to_be_bytes()) && key.get(6..) == Some(EPOCH)
}
