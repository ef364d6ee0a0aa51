//! A core: the stores it owns, its part of the mesh, and the way of a job to its shard.
//!
//! ```text
//!   front end (sessions)          transactions
//!        | call                        | request
//!        v                             v
//!      route: table ---- a shard of this core ----> store, shard: evaluated here and now
//!        |
//!        +------------- a shard of another core --> ring --> that core's stores
//!                                              <-- ring <-- answer
//! ```
//!
//! Everything here runs on one thread; there are no locks. The only shared things are the oracle
//! (one atomic), the rings, and what the node keeps for all cores ([`Shared`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use atoll_encoding::hash::hash64;
use atoll_encoding::{Malformed, Reader, varint};
use atoll_env::Env;
use atoll_env::mesh::Port;
use atoll_env::sometimes;
use atoll_env::sync::oneshot;
use atoll_lsm::driven::Direction;
use atoll_lsm::{Durability, Error};
use atoll_mvcc::keys::{PARTS, Placement, RoutingKey, is_slotted, place_of, tree};
use atoll_mvcc::request::{Isolation, Key, Obstacle, Request, Response, Span};
use atoll_mvcc::{Epoch, Timestamp};
use atoll_shard::descriptor::{Descriptor, ROOT, ShardId};
use atoll_shard::envelope::{self, Envelope};
use atoll_shard::leader::{Leader, Now};
use atoll_shard::replica::EngineId;
use atoll_txn::{Coordinator, ShardRef, Shards, Transaction, Unavailable, Unresolved};
use bytes::Bytes;

use crate::group::{Answer, Group, Job, Lane, ReplyTo, Work};
use crate::node::Shared;
use crate::program::{Ask, Failure, Program, Tried};
use crate::signal::Signal;
use crate::store::StoreHost;
use crate::table::Table;
use crate::time::{Asking, Timekeeper};
use crate::{care, peers};

/// What cores say to each other.
pub(crate) enum Message<P: Program> {
    /// Do this at a shard of yours.
    Job {
        work: Work<P>,
        lane: Option<Lane>,
        durability: Durability,
        token: u64,
        only_under: Option<(ShardId, u64)>,
    },
    /// The answer to a job.
    Answer { lane: Lane, token: u64, answer: Answer<P> },
    /// A replica elsewhere says something to one of yours.
    Replica(Envelope),
    /// A shard was split.
    Split { left: Descriptor, right: Descriptor },
    /// Split a shard of yours.
    PleaseSplit {
        shard: ShardId,
        at: RoutingKey,
        id: ShardId,
        done: oneshot::Sender<Result<(), String>>,
    },
    /// Something for the layer above.
    Note(Note<P>),
}

/// Something to be run on a core.
type Note<P> = Box<dyn FnOnce(&Core<P>) + Send>;
/// A shard and the store it is in.
pub(crate) type Housed<P> = (Rc<StoreHost<P>>, Rc<Group<P>>);

/// Tokens of requests; those of calls are the front end's and lie below.
const REQUEST: u64 = 1 << 63;
/// Keys reaped between two looks at what else there is to do.
const REAP_BATCH: usize = 2_000;
/// How long a split waits for transactions that have written the shard's own values.
const SPLIT_TIME_MAX: Duration = Duration::from_secs(10);
/// Intents of a shard that are resolved at once.
const SETTLE_BATCH: usize = 512;
/// How far ahead of this engine's time another one's timestamps may be, in microseconds: clocks differ, and
/// the holder of the oracle goes by its own.
const AHEAD_MOST_US: u64 = 3_600_000_000;
/// Marks lanes of other engines.
const FAR_LANE: u64 = 1 << 63;
/// Tokens whose answer nobody wants.
const NOBODY: u64 = u64::MAX;

/// A core's handle on itself. Cheap to clone, stays on its thread.
pub struct Core<P: Program>(pub(crate) Rc<Inner<P>>);

impl<P: Program> Clone for Core<P> {
    fn clone(&self) -> Core<P> {
        Core(self.0.clone())
    }
}

pub(crate) struct Inner<P: Program> {
    pub(crate) index: usize,
    pub(crate) env: Env,
    pub(crate) program: P,
    pub(crate) time: Arc<Timekeeper>,
    pub(crate) asking: Asking,
    /// Something was evaluated since the last question for an epoch.
    pub(crate) used_time: Cell<bool>,
    pub(crate) shared: Arc<Shared<P>>,
    pub(crate) table: RefCell<Arc<Table>>,
    pub(crate) stores: RefCell<BTreeMap<usize, Rc<StoreHost<P>>>>,
    pub(crate) port: RefCell<Port<Message<P>>>,
    /// Answers to calls that the front end has not taken.
    replies: RefCell<Vec<(Lane, u64, P::Reply)>>,
    replied: Signal,
    /// Requests that wait for their answer.
    asked: RefCell<BTreeMap<u64, oneshot::Sender<Response>>>,
    /// Engines that wait for the answer to a job of theirs.
    asked_from_afar: RefCell<BTreeMap<u64, oneshot::Sender<Answer<P>>>>,
    next_token: Cell<u64>,
    /// How many jobs were sent to leaders elsewhere.
    places: Cell<u64>,
    /// The moment of what is evaluated now.
    epoch: Cell<Epoch>,
    coordinator: RefCell<Option<Coordinator<CoreShards<P>, NodeOracle<P>>>>,
    /// Stores that are not closed.
    pub(crate) open_stores: Cell<usize>,
    /// Shards that do not serve yet.
    pub(crate) starting: Cell<usize>,
    pub(crate) changed: Signal,
    /// All stores are closed.
    pub(crate) ended: Signal,
    /// Why a store could not be closed in order.
    pub(crate) close_failure: RefCell<Option<String>>,
    pub(crate) stopping: Cell<bool>,
}

impl<P: Program> Inner<P> {
    pub(crate) fn new(
        index: usize,
        env: Env,
        program: P,
        time: Arc<Timekeeper>,
        shared: Arc<Shared<P>>,
        table: Arc<Table>,
        port: Port<Message<P>>,
    ) -> Rc<Inner<P>> {
        let epoch = time.known();
        Rc::new(Inner {
            index,
            env,
            program,
            time,
            asking: Asking::default(),
            used_time: Cell::new(false),
            shared,
            table: RefCell::new(table),
            stores: RefCell::default(),
            port: RefCell::new(port),
            replies: RefCell::default(),
            replied: Signal::default(),
            asked: RefCell::default(),
            asked_from_afar: RefCell::default(),
            next_token: Cell::new(REQUEST),
            places: Cell::new(0),
            epoch: Cell::new(epoch),
            coordinator: RefCell::default(),
            open_stores: Cell::new(0),
            starting: Cell::new(0),
            changed: Signal::default(),
            ended: Signal::default(),
            close_failure: RefCell::default(),
            stopping: Cell::new(false),
        })
    }

    // ---- time ----

    pub(crate) fn wall_epoch(&self) -> Epoch {
        Epoch::from_unix_ms(self.env.clock.wall().0)
    }

    /// Returns the monotonic time in microseconds.
    pub(crate) fn now_us(&self) -> u64 {
        self.env.clock.now().0 / 1_000
    }

    pub(crate) fn monotonic_ms(&self) -> u64 {
        self.env.clock.now().0 / 1_000_000
    }

    /// Moves the moment of evaluation to the present, or to the latest that this engine was given.
    pub(crate) fn refresh(&self) {
        self.used_time.set(true);
        self.epoch.set(self.try_epoch().unwrap_or_else(|| self.time.known()));
    }

    pub(crate) fn now(&self) -> Now {
        Now { epoch: self.epoch.get(), monotonic_ms: self.monotonic_ms() }
    }

    // ---- tasks ----

    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.env.tasks.spawn_local(name, Box::pin(task));
    }

    /// Runs a task as far as memory reaches, the rest as a task of its own.
    pub(crate) fn run(&self, task: impl Future<Output = ()> + 'static) {
        let mut task = Box::pin(task);
        let mut context = Context::from_waker(Waker::noop());
        if task.as_mut().poll(&mut context).is_pending() {
            // The first poll registered a deaf waker: the next one comes at once.
            self.env.tasks.spawn_local("read", task);
        }
    }

    // ---- the way of a job ----

    /// Brings a job to its shard; returns its answer if there is one at once.
    pub(crate) fn route(self: &Rc<Self>, job: Job<P>) -> Option<(Job<P>, Answer<P>)> {
        let (store, core, shard) = {
            let table = self.table.borrow();
            let place = match &job.work {
                Work::Call(call) => Some(self.program.place(call)),
                Work::Request(request) => place_of(request.key()),
                Work::Reap { key, .. } => place_of(key),
            };
            let Some(place) = place else {
                let answer = Answer::Response(Response::Unavailable(
                    "a request names no key; this is a bug".to_owned(),
                ));
                drop(table);
                return Some((job, answer));
            };
            let route = table.find(place);
            (route.store, route.core, route.descriptor.id)
        };
        if core != self.index {
            if job.reply_to.core != self.index {
                // It came from elsewhere by an older table: it is answered through this core.
                self.forward(job, core);
                return None;
            }
            let Job { work, lane, durability, reply_to, only_under, .. } = job;
            let token = reply_to.token;
            let message = Message::Job { work, lane, durability, token, only_under };
            self.port.borrow_mut().send(core, message);
            return None;
        }
        let host = self.stores.borrow().get(&store).cloned();
        let group = host.as_ref().and_then(|host| host.group(shard));
        match (host, group) {
            (Some(host), Some(group)) => host.submit(self, &group, job),
            _ => {
                let failure = Failure::Unavailable("the engine stops".to_owned());
                let answer = match &job.work {
                    Work::Call(call) => Answer::Reply(self.program.failed(call, &failure)),
                    _ => Answer::Response(Response::Unavailable("the engine stops".to_owned())),
                };
                Some((job, answer))
            }
        }
    }

    /// Returns the shard that has a place with its store, if both are of this core.
    fn house_of(&self, place: RoutingKey<&[u8]>) -> Option<Housed<P>> {
        let table = self.table.borrow();
        let route = table.find(place);
        if route.core != self.index {
            return None;
        }
        let host = self.stores.borrow().get(&route.store).cloned()?;
        let group = host.group(route.descriptor.id)?;
        Some((host, group))
    }

    /// Passes a job of another core on to a third one. (Shards do not change cores yet, so this is
    /// only reached when tables differ about a split, and then the core is this one.)
    fn forward(self: &Rc<Self>, job: Job<P>, core: usize) {
        let (sender, receiver) = oneshot::channel();
        let mine = self.draw_token();
        self.asked.borrow_mut().insert(mine, sender);
        let Job { work, lane, durability, reply_to, only_under, .. } = job;
        let message = Message::Job { work, lane, durability, token: mine, only_under };
        self.port.borrow_mut().send(core, message);
        let inner = self.clone();
        self.spawn("forward", async move {
            let response = receiver.await.unwrap_or(Response::Unknown);
            inner.deliver(reply_to, Answer::Response(response));
        });
    }

    /// Returns a number above all that it has returned.
    pub(crate) fn draw_place(&self) -> u64 {
        self.places.set(self.places.get() + 1);
        self.places.get()
    }

    fn draw_token(&self) -> u64 {
        let token = self.next_token.get();
        self.next_token.set(if token + 1 == NOBODY { REQUEST } else { token + 1 });
        token
    }

    /// Gives an answer to whoever asked.
    pub(crate) fn deliver(&self, to: ReplyTo, answer: Answer<P>) {
        if to.core != self.index {
            let ReplyTo { core, lane, token } = to;
            self.port.borrow_mut().send(core, Message::Answer { lane, token, answer });
            return;
        }
        if to.token >= REQUEST
            && let Some(asked) = self.asked_from_afar.borrow_mut().remove(&to.token)
        {
            let _ = asked.send(answer);
            return;
        }
        match answer {
            // Nobody of this engine asks for one term only.
            Answer::Moved => {}
            Answer::Reply(reply) => {
                self.replies.borrow_mut().push((to.lane, to.token, reply));
                self.replied.raise();
            }
            Answer::Response(response) => {
                if let Some(asked) = self.asked.borrow_mut().remove(&to.token) {
                    let _ = asked.send(response);
                }
            }
        }
    }

    /// Asks a shard, wherever it is.
    pub(crate) async fn ask(self: &Rc<Self>, request: Request, durability: Durability) -> Response {
        self.refresh();
        let token = self.draw_token();
        let reply_to = ReplyTo { core: self.index, lane: 0, token };
        let (sender, receiver) = oneshot::channel();
        self.asked.borrow_mut().insert(token, sender);
        let job = Job::new(Work::Request(request), reply_to, None, durability);
        if let Some((_, Answer::Response(response))) = self.route(job) {
            self.asked.borrow_mut().remove(&token);
            return response;
        }
        receiver.await.unwrap_or(Response::Unknown)
    }

    /// Returns whether a key's shard is led here, or may be in a moment.
    pub(crate) fn leads(&self, key: &[u8]) -> bool {
        let Some((_, group)) = place_of(key).and_then(|place| self.house_of(place)) else {
            return true;
        };
        group.is_alone() || group.state.borrow().leader.is_some()
    }

    /// Has a key reaped; nobody waits for it.
    pub(crate) fn reap(self: &Rc<Self>, key: Vec<u8>, deadline_ms: u64) {
        let work = Work::Reap { key, deadline_ms };
        let reply_to = ReplyTo { core: self.index, lane: 0, token: NOBODY };
        // What is reaped was absent already: nobody is told, so nothing has to be synced for it.
        let durability = Durability::Buffered;
        let _ = self.route(Job::new(work, reply_to, None, durability));
    }

    /// Finds out what became of intents' transactions and removes them from the way.
    pub(crate) async fn resolve(self: &Rc<Self>, obstacles: &[Obstacle]) -> Result<(), String> {
        match self.coordinator().resolve(obstacles).await {
            // A transaction that lives on is asked for again when the job meets its intent again.
            Ok(_) | Err(Unresolved::Alive(_)) => Ok(()),
            Err(Unresolved::Unavailable(why)) => Err(why.to_string()),
        }
    }

    pub(crate) fn coordinator(self: &Rc<Self>) -> Coordinator<CoreShards<P>, NodeOracle<P>> {
        self.coordinator.borrow().clone().expect("made before the core serves")
    }

    pub(crate) fn make_coordinator(self: &Rc<Self>) {
        let shards = CoreShards { core: Rc::downgrade(self) };
        let oracle = NodeOracle { core: Rc::downgrade(self), time: self.time.clone() };
        // Between replicas everything is durable before it counts.
        let lasting =
            self.shared.options.engine.durability == Durability::Synced || self.time.is_shared();
        let options = atoll_txn::Options { lasting, ..atoll_txn::Options::default() };
        let deadlocks = self.shared.deadlocks.clone();
        let (coordinator, background) =
            Coordinator::new(shards, oracle, &self.env, deadlocks, options);
        *self.coordinator.borrow_mut() = Some(coordinator);
        self.spawn("transactions", background.run());
    }

    // ---- messages ----

    /// Serves the other cores' messages until the node stops.
    pub(crate) async fn serve_mesh(self: Rc<Self>) {
        loop {
            // The port is borrowed only while it is polled.
            std::future::poll_fn(|cx| self.port.borrow_mut().poll_arrived(cx)).await;
            self.refresh();
            let mut messages = Vec::new();
            self.port.borrow_mut().drain(|from, message| messages.push((from, message)));
            for (from, message) in messages {
                self.handle(from, message);
            }
            self.port.borrow_mut().flush();
        }
    }

    fn handle(self: &Rc<Self>, from: usize, message: Message<P>) {
        match message {
            Message::Job { work, lane, durability, token, only_under } => {
                let reply_to = ReplyTo { core: from, lane: lane.unwrap_or(0), token };
                let job = Job { only_under, ..Job::new(work, reply_to, lane, durability) };
                if let Some((job, answer)) = self.route(job) {
                    self.deliver(job.reply_to, answer);
                }
            }
            Message::Answer { lane, token, answer } => {
                self.deliver(ReplyTo { core: self.index, lane, token }, answer);
            }
            Message::Replica(envelope) => self.arrived(envelope),
            Message::Split { left, right } => self.learn_split(&left, &right),
            Message::PleaseSplit { shard, at, id, done } => self.split_here(shard, at, id, done),
            Message::Note(note) => note(&Core(self.clone())),
        }
    }

    // ---- other engines ----

    /// Brings what a replica elsewhere says to the one that it is for.
    fn arrived(&self, envelope: Envelope) {
        let route = if envelope.shard == ROOT {
            Some((0, 0))
        } else {
            let table = self.table.borrow();
            table.get(envelope.shard).map(|route| (route.store, route.core))
        };
        // One that is split off here in a moment is told again.
        let Some((store, core)) = route else { return };
        if core != self.index {
            self.port.borrow_mut().send(core, Message::Replica(envelope));
        } else if let Some(host) = self.stores.borrow().get(&store) {
            host.arrived(envelope);
        }
    }

    /// Begins a job that another engine has sent to the leader of its shard.
    fn begin_forwarded(
        self: &Rc<Self>,
        question: &[u8],
    ) -> Result<oneshot::Receiver<Answer<P>>, String> {
        let mut reader = Reader::new(question);
        let mut parse = || -> Result<_, Malformed> {
            let shard = ShardId(reader.varint("a shard")?);
            let term = reader.varint("a term")?;
            let engine = reader.varint("an engine")?;
            let durability = match reader.u8("a durability")? {
                0 => Durability::Synced,
                1 => Durability::Interval,
                2 => Durability::Buffered,
                _ => return Err(reader.malformed("a known durability")),
            };
            let has_lane = reader.u8("whether it has a lane")? == 1;
            let lane = reader.varint("a lane")?;
            let kind = reader.u8("a kind of work")?;
            Ok((shard, term, engine, durability, has_lane.then_some(lane), kind))
        };
        let (shard, term, engine, durability, lane, kind) = parse().map_err(|e| e.to_string())?;
        let rest = &question[reader.offset()..];
        let work = match kind {
            peers::CALL => Work::Call(self.program.decode_call(rest)?),
            peers::REQUEST => {
                let request = Request::decode(rest).map_err(|e| e.to_string())?;
                // Entries are stamped above what is asked for; one from far away would stop a shard's time.
                let now = self.time.known().max(self.wall_epoch());
                if request.latest().epoch() > now.after_us(AHEAD_MOST_US) {
                    return Err("a timestamp that nobody can have given yet".to_owned());
                }
                // The oracle has given it, so what follows from it here is known to lie above.
                self.time.learn_of(request.latest().epoch());
                Work::Request(request)
            }
            _ => return Err("an unknown kind of work".to_owned()),
        };
        // A name of its own here. Should two have the same they wait for each other, no more.
        let lane = lane.map(|lane| {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&engine.to_le_bytes());
            name[8..].copy_from_slice(&lane.to_le_bytes());
            hash64(&name) | FAR_LANE
        });
        self.refresh();
        let token = self.draw_token();
        let (sender, receiver) = oneshot::channel();
        self.asked_from_afar.borrow_mut().insert(token, sender);
        let reply_to = ReplyTo { core: self.index, lane: lane.unwrap_or(0), token };
        let job = Job::new(work, reply_to, lane, durability);
        let job = Job { only_under: Some((shard, term)), ..job };
        if let Some((job, answer)) = self.route(job) {
            self.deliver(job.reply_to, answer);
        }
        Ok(receiver)
    }

    /// Returns the answer to another engine's job; `None`: it was lost.
    fn encode_answer(&self, answer: Option<Answer<P>>) -> Vec<u8> {
        let mut out = Vec::new();
        // Whoever is told that something is done knows of no earlier time afterwards.
        varint::put(&mut out, self.time.known().0);
        match answer {
            Some(Answer::Reply(reply)) => {
                out.push(peers::REPLY);
                self.program.encode_reply(&reply, &mut out);
            }
            Some(Answer::Response(response)) => {
                out.push(peers::RESPONSE);
                response.encode(&mut out);
            }
            Some(Answer::Moved) => out.push(peers::MOVED),
            None => out.push(peers::UNKNOWN),
        }
        out
    }

    /// Sends a packet to another engine.
    pub(crate) fn carry(&self, to: EngineId, packet: Vec<u8>) {
        if let Some(cluster) = &self.shared.options.cluster {
            cluster.carrier.send(to, packet);
        }
    }

    // ---- splits ----

    fn learn_split(&self, left: &Descriptor, right: &Descriptor) {
        let next = self.table.borrow().after_split(left, right);
        *self.table.borrow_mut() = Arc::new(next);
    }

    /// A shard of this core was split: everybody is told.
    pub(crate) fn split_done(&self, _store: usize, left: &Descriptor, right: &Descriptor) {
        self.learn_split(left, right);
        self.shared.note_shard(right.id);
        for core in 0..self.shared.cores {
            if core != self.index {
                let message = Message::Split { left: left.clone(), right: right.clone() };
                self.port.borrow_mut().send(core, message);
            }
        }
    }

    fn split_here(
        self: &Rc<Self>,
        shard: ShardId,
        at: RoutingKey,
        id: ShardId,
        done: oneshot::Sender<Result<(), String>>,
    ) {
        let store = self.table.borrow().get(shard).map(|route| route.store);
        let host = store.and_then(|store| self.stores.borrow().get(&store).cloned());
        let group = host.as_ref().and_then(|host| host.group(shard));
        let (Some(host), Some(group)) = (host, group) else {
            let _ = done.send(Err(format!("shard {shard} is not on core {}", self.index)));
            return;
        };
        let core = self.clone();
        self.spawn("split", async move {
            let _ = done.send(core.split_group(&host, &group, at, id).await);
        });
    }

    async fn split_group(
        self: &Rc<Self>,
        host: &Rc<StoreHost<P>>,
        group: &Rc<Group<P>>,
        at: RoutingKey,
        id: ShardId,
    ) -> Result<(), String> {
        let deadline = self.env.clock.now().after(SPLIT_TIME_MAX);
        loop {
            match host.split(group, at.clone(), id) {
                Ok(split) => {
                    return split.await.unwrap_or_else(|_| Err("the store has stopped".to_owned()));
                }
                Err(obstacles) => {
                    sometimes!(true, "a split waits for a transaction over all shards");
                    for obstacle in &obstacles {
                        self.resolve(std::slice::from_ref(obstacle)).await?;
                    }
                    if self.env.clock.now() >= deadline {
                        return Err(format!(
                            "shard {} is not split: a transaction over all shards does not end",
                            group.id
                        ));
                    }
                    self.env.clock.sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    pub(crate) fn shard_ready(&self) {
        self.starting.set(self.starting.get().saturating_sub(1));
        self.changed.raise();
    }

    pub(crate) fn store_closed(&self, store: usize, closed: Result<(), Error>) {
        self.stores.borrow_mut().remove(&store);
        self.open_stores.set(self.open_stores.get() - 1);
        if let Err(failure) = closed {
            self.close_failure.borrow_mut().get_or_insert(failure.to_string());
        }
        self.changed.raise();
    }

    /// Returns the shards of this core with their stores, but not the root shard.
    pub(crate) fn all_groups(&self) -> Vec<Housed<P>> {
        let stores: Vec<_> = self.stores.borrow().values().cloned().collect();
        let mut all = Vec::new();
        for host in stores {
            let groups = host.groups.borrow();
            let with_keys = groups.values().filter(|group| group.id != ROOT).cloned();
            all.extend(with_keys.map(|group| (host.clone(), group)));
        }
        all
    }
}

impl<P: Program> Core<P> {
    /// Returns the number of this core.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// Returns the world.
    pub fn env(&self) -> &Env {
        &self.0.env
    }

    /// Returns the program.
    pub fn program(&self) -> &P {
        &self.0.program
    }

    /// Takes in a packet that another engine's [`Carrier`](crate::Carrier) was given for this one. On any
    /// core; packets of one core of another engine in the order they were sent.
    ///
    /// # Errors
    /// The bytes are no packet.
    pub fn arrived(&self, packet: &Bytes) -> Result<(), Malformed> {
        for envelope in envelope::open(packet)? {
            self.0.arrived(envelope);
        }
        self.flush();
        Ok(())
    }

    /// Moves the moment of evaluation to the present; for the front end, before it evaluates what
    /// has arrived.
    pub fn refresh(&self) {
        self.0.refresh();
    }

    /// Waits until all stores of this core are closed; for one who waits: what carries between engines is
    /// needed until then.
    pub async fn ended(&self) {
        self.0.ended.raised().await;
    }

    /// Returns the moment of evaluation.
    pub fn now(&self) -> Now {
        self.0.now()
    }

    /// Draws a timestamp to read at: whatever was answered before now lies below. On an engine that
    /// shares its oracle with others, and does not have it now, whatever *this* engine knows of lies below;
    /// for more ask [`Core::strict_point`].
    pub fn read_point(&self) -> Timestamp {
        Timestamp::read_at(self.0.try_epoch().unwrap_or_else(|| self.0.time.known()))
    }

    /// Draws a timestamp to read at: whatever was answered by anybody before the call lies below.
    ///
    /// # Errors
    /// A sentence: the oracle could not be reached in time.
    pub async fn strict_point(&self) -> Result<Timestamp, String> {
        self.0.epoch().await.map(Timestamp::read_at).map_err(|e| e.0)
    }

    /// Answers a question that another engine's [`Carrier`](crate::Carrier) was given for this one. On any
    /// core; questions of one core of another engine in the order they were asked: what they ask for is
    /// begun by the call, not by the future. An answer of no bytes says that the question was not
    /// understood.
    pub fn asked(&self, question: &[u8]) -> Pin<Box<dyn Future<Output = Vec<u8>>>> {
        let answer = match question.split_first() {
            Some((&peers::EPOCHS, rest)) => {
                let mut reader = Reader::new(rest);
                reader.varint("a count").map(|count| self.0.answer_epochs(count)).ok()
            }
            Some((&peers::FORWARD, rest)) => match self.0.begin_forwarded(rest) {
                Ok(answered) => {
                    self.flush();
                    let core = self.0.clone();
                    return Box::pin(async move {
                        let answer = answered.await;
                        core.encode_answer(answer.ok())
                    });
                }
                Err(_) => None,
            },
            _ => None,
        };
        Box::pin(std::future::ready(answer.unwrap_or_default()))
    }

    /// Has a command evaluated by its shard. Commands of one lane on one shard take effect in the
    /// order of the calls. Returns the reply if there is one at once; otherwise it comes out of
    /// [`Core::take_replies`] with the lane and `token`, which is below 2^63.
    pub fn call(&self, call: P::Call, lane: Lane, token: u64) -> Option<P::Reply> {
        debug_assert!(token < REQUEST, "the upper half of the tokens is not the front end's");
        let durability = self.0.program.durability(&call);
        let reply_to = ReplyTo { core: self.0.index, lane, token };
        let job = Job::new(Work::Call(call), reply_to, Some(lane), durability);
        match self.0.route(job)? {
            (_, Answer::Reply(reply)) => Some(reply),
            (_, Answer::Response(_) | Answer::Moved) => None,
        }
    }

    /// Has a command evaluated that lies elsewhere, as [`Core::call`] does, without a copy of it unless
    /// it has to wait.
    pub fn try_here(&self, ask: &mut impl Ask<P>, lane: Lane, token: u64) -> Tried<P::Reply> {
        debug_assert!(token < REQUEST, "the upper half of the tokens is not the front end's");
        let reply_to = ReplyTo { core: self.0.index, lane, token };
        if let Some((host, group)) = self.0.house_of(ask.place()) {
            return host.try_here(&self.0, &group, ask, reply_to, lane);
        }
        match self.call(ask.call(), lane, token) {
            Some(reply) => Tried::Reply(reply),
            None => Tried::Waits,
        }
    }

    /// Takes the replies that have come, with their lanes and tokens.
    pub fn take_replies(&self, replies: &mut Vec<(Lane, u64, P::Reply)>) {
        replies.append(&mut self.0.replies.borrow_mut());
    }

    /// Waits until there are replies.
    pub async fn replied(&self) {
        self.0.replied.raised().await;
    }

    /// Sends what waits for other cores.
    pub fn flush(&self) {
        self.0.port.borrow_mut().flush();
    }

    /// Begins a transaction.
    pub fn begin(&self, isolation: Isolation) -> Transaction<CoreShards<P>, NodeOracle<P>> {
        self.0.coordinator().begin(isolation)
    }

    /// Returns the coordinator of this core's transactions.
    pub fn coordinator(&self) -> Coordinator<CoreShards<P>, NodeOracle<P>> {
        self.0.coordinator()
    }

    /// Returns the routing table as this core knows it.
    pub fn table(&self) -> Arc<Table> {
        self.0.table.borrow().clone()
    }

    /// Runs something on another core.
    pub fn on_core(&self, core: usize, note: impl FnOnce(&Core<P>) + Send + 'static) {
        if core == self.0.index {
            note(self);
        } else {
            self.0.port.borrow_mut().send(core, Message::Note(Box::new(note)));
        }
    }

    /// Has everything reaped whose deadline is due, in the stores of this core.
    pub async fn reap_due(&self) {
        self.0.refresh();
        let hosts: Vec<_> = self.0.stores.borrow().values().cloned().collect();
        for host in hosts {
            // Evaluated at once, so that counts know; the entries follow.
            while care::reap(&self.0, &host, REAP_BATCH).await == REAP_BATCH {
                if host.stopped.borrow().is_some() || host.tree.refusal().is_some() {
                    // Nothing goes from the index: it would be found due for ever.
                    break;
                }
                atoll_env::task::yield_now().await;
            }
        }
    }

    /// Says for all cores whether keys are removed when their deadline comes. They are hidden from
    /// then on in any case.
    pub fn set_reaping(&self, on: bool) {
        self.0.shared.reaping.store(on, std::sync::atomic::Ordering::Relaxed);
    }

    /// Returns whether every shard of this core has its leader: none is being split or made anew,
    /// and no store is closed.
    pub fn leads_all(&self) -> bool {
        let table = self.0.table.borrow();
        let stores = self.0.stores.borrow();
        table.routes().iter().filter(|route| route.core == self.0.index).all(|route| {
            let group = stores.get(&route.store).and_then(|host| host.group(route.descriptor.id));
            group.is_some_and(|group| group.state.borrow().leader.is_some())
        })
    }

    /// Shows the leaders of this core's shards. Those that are being made are left out
    /// ([`Core::leads_all`]).
    pub fn each_leader(&self, mut visit: impl FnMut(&Leader)) {
        for (_, group) in self.0.all_groups() {
            if let Some(leader) = &group.state.borrow().leader {
                visit(leader);
            }
        }
    }

    /// Shows the leader of the shard that has a place; `None` if it is on another core or has none now.
    pub fn leader_at<R>(
        &self,
        place: RoutingKey<&[u8]>,
        visit: impl FnOnce(&Leader) -> R,
    ) -> Option<R> {
        let table = self.0.table.borrow();
        let route = table.find(place);
        let host = self.0.stores.borrow().get(&route.store).cloned()?;
        let group = host.group(route.descriptor.id)?;
        let state = group.state.borrow();
        state.leader.as_ref().map(visit)
    }

    /// Turns intents of transactions that are committed into versions, on this core's shards: such a
    /// transaction may be acknowledged, and a key counts from its version on.
    ///
    /// # Errors
    /// A sentence: shards did not serve in time.
    pub async fn settle_intents(&self) -> Result<(), String> {
        // Whatever was acknowledged before now lies below.
        let now = self.read_point();
        loop {
            let mut intents = Vec::new();
            self.each_leader(|leader| intents.extend(leader.intents_below(now, SETTLE_BATCH)));
            if intents.is_empty() {
                return Ok(());
            }
            match self.coordinator().resolve(&intents).await {
                Err(Unresolved::Unavailable(why)) => return Err(why.to_string()),
                Ok(_) => {}
                // It lives on, and is looked at again.
                Err(Unresolved::Alive(_)) => {
                    self.0.env.clock.sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    /// Has what is left of a keyspace removed from the shards of this core. Returns false if one of
    /// them could not be asked: it has no leader, or one whose undecided entries end with a split.
    pub fn drop_keyspace(&self, keyspace: u32) -> bool {
        let mut all = true;
        for (host, group) in self.0.all_groups() {
            let mut state = group.state.borrow_mut();
            let state = &mut *state;
            match state.leader.as_mut().filter(|_| !state.frozen) {
                Some(leader) => {
                    leader.drop_keyspace(keyspace);
                    host.relist(&group, state);
                }
                None => {
                    sometimes!(true, "a dropped keyspace meets a shard that does not serve");
                    all = false;
                }
            }
        }
        all
    }

    /// Returns whether the stores of this core hold nothing of a keyspace any more.
    ///
    /// # Errors
    /// A store cannot be read.
    pub async fn holds_nothing_of(&self, keyspace: u32) -> Result<bool, Error> {
        let stores: Vec<_> = self.0.stores.borrow().values().cloned().collect();
        for host in stores {
            for id in [keyspace, keyspace | PARTS] {
                let (mut start, mut end) = (Vec::new(), Vec::new());
                tree::data(&mut start, &id.to_be_bytes());
                tree::data(&mut end, &id.saturating_add(1).to_be_bytes());
                let mut left =
                    host.tree.scan_all_versions(&start, &end, u64::MAX, Direction::Forward);
                if left.next().await?.is_some() {
                    return Ok(false);
                }
                if !is_slotted(keyspace) {
                    break;
                }
            }
        }
        Ok(true)
    }

    /// Returns the moment below which versions may be gone: nobody reads there any more.
    pub fn horizon(&self) -> Timestamp {
        let stores = self.0.stores.borrow();
        let horizons = stores.values().map(|host| Timestamp(host.tree.horizon()));
        horizons.min().unwrap_or_default()
    }

    /// Returns the trees of this core's stores, to be asked from anywhere for what they hold.
    pub fn trees(&self) -> Vec<(usize, atoll_lsm::driven::Tree)> {
        let stores = self.0.stores.borrow();
        stores.iter().map(|(index, host)| (*index, host.tree.clone())).collect()
    }

    /// Returns what the stores of this core say about themselves.
    pub fn store_stats(&self) -> Vec<(usize, atoll_lsm::Stats)> {
        let stores = self.0.stores.borrow();
        stores.iter().map(|(index, host)| (*index, host.tree.stats())).collect()
    }

    /// Returns the number of cores.
    pub fn cores(&self) -> usize {
        self.0.shared.cores
    }

    /// Splits the shard that has a place there. Returns the new shard.
    ///
    /// # Errors
    /// A sentence: the place divides no shard, or the shard is being split already.
    pub async fn split_at(&self, at: RoutingKey) -> Result<ShardId, String> {
        let (shard, core) = {
            let table = self.table();
            let route = table.find(at.borrowed());
            (route.descriptor.id, route.core)
        };
        let id = self.0.shared.draw_shard();
        let (done, receiver) = oneshot::channel();
        if core == self.0.index {
            self.0.split_here(shard, at, id, done);
        } else {
            let message = Message::PleaseSplit { shard, at, id, done };
            self.0.port.borrow_mut().send(core, message);
        }
        receiver.await.unwrap_or_else(|_| Err("the engine stops".to_owned()))?;
        Ok(id)
    }
}

/// The shards of the node, as transactions of one core see them.
///
/// The core has the coordinator, which has this: it does not own the core in turn.
pub struct CoreShards<P: Program> {
    core: Weak<Inner<P>>,
}

impl<P: Program> Clone for CoreShards<P> {
    fn clone(&self) -> CoreShards<P> {
        CoreShards { core: self.core.clone() }
    }
}

impl<P: Program> Shards for CoreShards<P> {
    fn shard_of(&self, key: &[u8]) -> ShardRef {
        // Who asks for a core that is gone learns so when he sends.
        let Some(core) = self.core.upgrade() else { return ShardRef { id: 0, epoch: 0 } };
        let table = core.table.borrow();
        let place = place_of(key).unwrap_or(RoutingKey::Slot(0));
        let descriptor = &table.find(place).descriptor;
        ShardRef { id: descriptor.id.0, epoch: descriptor.epoch }
    }

    fn pieces(&self, span: &Span) -> Vec<(ShardRef, Span)> {
        let Some(core) = self.core.upgrade() else {
            return vec![(ShardRef { id: 0, epoch: 0 }, span.clone())];
        };
        let table = core.table.borrow();
        let Some(keyspace) = atoll_mvcc::keys::placement::keyspace(&span.start) else {
            return Vec::new();
        };
        let placement = if is_slotted(keyspace) { Placement::Slots } else { Placement::Ordered };
        let mut pieces = Vec::new();
        for route in table.routes() {
            let Some(part) = route.descriptor.range.span(keyspace, placement) else { continue };
            let start = part.start.max(span.start.clone());
            let end = part.end.min(span.end.clone());
            if start < end {
                let shard = ShardRef { id: route.descriptor.id.0, epoch: route.descriptor.epoch };
                pieces.push((shard, Span { start, end }));
            }
        }
        pieces.sort_by(|(_, a), (_, b)| a.start.cmp(&b.start));
        pieces
    }

    async fn send(&self, request: Request) -> Response {
        self.ask(request, Durability::Synced).await
    }

    async fn send_lightly(&self, request: Request) -> Response {
        self.ask(request, Durability::Buffered).await
    }

    fn share_log<'k>(&self, mut keys: impl Iterator<Item = &'k Key>) -> bool {
        let Some(core) = self.core.upgrade() else { return false };
        let table = core.table.borrow();
        // A shard stays in its store, and so do the halves of one that is split.
        let mut store = |key: &Key| place_of(key).map(|place| table.find(place).store);
        let first = keys.next().and_then(&mut store);
        first.is_some() && keys.all(|key| store(key) == first)
    }
}

impl<P: Program> CoreShards<P> {
    async fn ask(&self, request: Request, durability: Durability) -> Response {
        match self.core.upgrade() {
            Some(core) => core.ask(request, durability).await,
            None => Response::Unavailable("the engine has stopped".to_owned()),
        }
    }
}

/// The oracle, as transactions of one core see it.
#[derive(Clone)]
pub struct NodeOracle<P: Program> {
    core: Weak<Inner<P>>,
    time: Arc<Timekeeper>,
}

impl<P: Program> NodeOracle<P> {
    async fn epoch(&self) -> Result<Epoch, Unavailable> {
        match self.core.upgrade() {
            Some(core) => core.epoch().await,
            None => Err(Unavailable("the engine has stopped".to_owned())),
        }
    }
}

impl<P: Program> atoll_txn::Oracle for NodeOracle<P> {
    async fn read_point(&self) -> Result<Timestamp, Unavailable> {
        Ok(Timestamp::read_at(self.epoch().await?))
    }

    async fn commit_point(&self) -> Result<Timestamp, Unavailable> {
        Ok(Timestamp::commit_at(self.epoch().await?))
    }

    fn known(&self) -> Timestamp {
        Timestamp::read_at(self.time.known())
    }
}
