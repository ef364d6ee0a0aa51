//! The executor: one thread, virtual time, and a seed that makes every choice.
//!
//! ```text
//!   tasks:  waiting --wake--> ready --drawn by the seed--> polled --+--> waiting
//!                                                                  +--> done
//!   events: (time, number) -> wake a sleeper | apply and answer an I/O operation
//! ```
//!
//! A step polls one ready task, or, when none is ready, moves the time to the first event and lets
//! it happen. A poll costs [`POLL_COST`] of virtual time, so that a task which spins waits for its
//! event in bounded work.
//!
//! # Crashes
//! A node has an *epoch*, which counts its crashes. Every handle, task and event carries the epoch
//! it was made in; after the crash none of them has any effect, whatever destructors still run.
//!
//! # Invariants
//! - Neither a foreign waker nor a destructor runs while the state is locked: both may come back.
//! - Tasks are drawn from a list in the order in which they were woken, never from a hash map.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;

use crate::random::Prng;
use crate::sim::disk::SimDisk;
use crate::sim::net::Wires;
use crate::sim::trace::Trace;
use crate::task::{BoxFuture, CoreMain, LocalBoxFuture};
use crate::time::Instant;

/// Virtual nanoseconds per poll of a task.
const POLL_COST: u64 = 100;

pub(super) type NodeId = usize;
pub(super) type TaskId = u64;
/// Names an event, to take it back.
pub(super) type EventKey = (Instant, u64);

/// What all nodes share. Everything here is data; the futures live in [`Futures`].
pub(super) struct Shared {
    pub(super) seed: u64,
    pub(super) state: Mutex<State>,
    /// Locked before `state`, never after it.
    pub(super) wires: Mutex<Wires>,
}

pub(super) struct State {
    pub(super) now: Instant,
    pub(super) trace: Trace,
    pub(super) nodes: Vec<NodeState>,
    /// Draws seeds for what is made later: nodes.
    pub(super) prng: Prng,
    schedule: Prng,
    next_id: u64,
    events: BTreeMap<EventKey, Event>,
    tasks: BTreeMap<TaskId, TaskState>,
    ready: Vec<TaskId>,
    spawned: Vec<(TaskId, BoxFuture)>,
    /// Tasks of crashed nodes wait to be dropped.
    reap: bool,
}

pub(super) struct NodeState {
    pub(super) name: Arc<str>,
    /// How often it has crashed.
    pub(super) epoch: u64,
    pub(super) up: bool,
    /// Its tasks do not run before.
    pub(super) paused_until: Instant,
    /// Added to virtual time to give the node's wall time.
    pub(super) wall_offset_ms: i64,
    pub(super) prng: Prng,
    pub(super) disk: Arc<SimDisk>,
}

struct TaskState {
    name: &'static str,
    node: NodeId,
    epoch: u64,
    /// Is in `ready`.
    queued: bool,
}

struct Event {
    node: NodeId,
    epoch: u64,
    action: Action,
}

/// What an event does when its time comes.
pub(super) enum Action {
    Wake(Waker),
    Call(Box<dyn FnOnce() + Send>),
}

/// One node in one epoch: what every part of its environment holds.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) node: NodeId,
    pub(super) epoch: u64,
}

thread_local! {
    /// Local tasks spawned since the last step; `None` outside a running simulation.
    static SPAWNED_LOCAL: RefCell<Option<Vec<(TaskId, LocalBoxFuture)>>> = const { RefCell::new(None) };
}

impl Shared {
    pub(super) fn new(seed: u64) -> Arc<Shared> {
        let mut prng = Prng::new(seed);
        let schedule = prng.fork("schedule");
        let wires = Mutex::new(Wires::new(prng.fork("network")));
        let state = State {
            now: Instant::default(),
            trace: Trace::default(),
            nodes: Vec::new(),
            prng,
            schedule,
            next_id: 0,
            events: BTreeMap::new(),
            tasks: BTreeMap::new(),
            ready: Vec::new(),
            spawned: Vec::new(),
            reap: false,
        };
        Arc::new(Shared { seed, state: Mutex::new(state), wires })
    }

    pub(super) fn now(&self) -> Instant {
        self.state.lock().now
    }

    /// Ends an epoch of a node: power is gone.
    pub(super) fn crash(&self, node: NodeId, mode: Option<crate::sim::CrashMode>) {
        let (events, disk) = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let node_state = &mut state.nodes[node];
            if !node_state.up {
                return;
            }
            node_state.up = false;
            node_state.epoch += 1;
            node_state.paused_until = Instant::default();
            state.trace.record(
                state.now,
                &node_state.name,
                "crash",
                &[node_state.epoch],
                String::new,
            );
            state.reap = true;
            let dead: Vec<EventKey> =
                state.events.iter().filter(|(_, e)| e.node == node).map(|(key, _)| *key).collect();
            let events: Vec<_> = dead.iter().filter_map(|key| state.events.remove(key)).collect();
            (events, node_state.disk.clone())
        };
        drop(events);
        disk.power_cut(mode);
        Wires::crash(self, node);
    }

    /// Keeps a node's tasks from running for a while.
    pub(super) fn pause(self: &Arc<Self>, node: NodeId, duration: std::time::Duration) {
        let handle = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let node_state = &mut state.nodes[node];
            let until = state.now.after(duration).max(node_state.paused_until);
            node_state.paused_until = until;
            let name = &node_state.name;
            state.trace.record(state.now, name, "pause", &[until.0], || format!("{duration:?}"));
            Handle { shared: self.clone(), node, epoch: node_state.epoch }
        };
        // Time moves to the end of the pause even if nothing else happens.
        handle.schedule(self.now().after(duration), Action::Call(Box::new(|| ())));
    }

    /// Puts a woken task among those that can be drawn.
    fn make_ready(&self, id: TaskId) {
        let mut state = self.state.lock();
        let State { tasks, ready, .. } = &mut *state;
        if let Some(task) = tasks.get_mut(&id)
            && !task.queued
        {
            task.queued = true;
            ready.push(id);
        }
    }
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn add_task(&mut self, name: &'static str, node: NodeId, epoch: u64) -> TaskId {
        let id = self.next_id();
        self.tasks.insert(id, TaskState { name, node, epoch, queued: true });
        self.ready.push(id);
        id
    }

    /// Draws a task that may run, as its place in `ready`.
    fn draw(&mut self) -> Option<usize> {
        let State { nodes, tasks, ready, schedule, now, .. } = self;
        if ready.is_empty() {
            return None;
        }
        if nodes.iter().all(|node| node.paused_until <= *now) {
            return Some(schedule.index(ready.len()));
        }
        let runs =
            |id: &TaskId| tasks.get(id).is_none_or(|task| nodes[task.node].paused_until <= *now);
        let may: Vec<usize> = (0..ready.len()).filter(|at| runs(&ready[*at])).collect();
        if may.is_empty() { None } else { Some(may[schedule.index(may.len())]) }
    }

    fn remove_task(&mut self, id: TaskId) {
        if self.tasks.remove(&id).is_some_and(|task| task.queued) {
            self.ready.retain(|ready| *ready != id);
        }
    }
}

impl Handle {
    /// Returns whether the node has not crashed since the handle was made.
    pub(super) fn is_alive(&self) -> bool {
        let state = self.shared.state.lock();
        let node = &state.nodes[self.node];
        node.up && node.epoch == self.epoch
    }

    /// Arranges for `action` at `at`; it never happens if the node crashes before.
    pub(super) fn schedule(&self, at: Instant, action: Action) -> EventKey {
        let mut state = self.shared.state.lock();
        let key = (at.max(state.now), state.next_id());
        let event = Event { node: self.node, epoch: self.epoch, action };
        if state.nodes[self.node].epoch == self.epoch {
            state.events.insert(key, event);
        } else {
            drop(state);
            drop(event);
        }
        key
    }

    /// Takes an event back.
    pub(super) fn cancel(&self, key: EventKey) {
        let event = self.shared.state.lock().events.remove(&key);
        drop(event);
    }

    pub(super) fn record(
        &self,
        event: &'static str,
        numbers: &[u64],
        text: impl FnOnce() -> String,
    ) {
        let mut state = self.shared.state.lock();
        let State { trace, nodes, now, .. } = &mut *state;
        trace.record(*now, &nodes[self.node].name, event, numbers, text);
    }
}

impl crate::task::Tasks for Handle {
    fn spawn(&self, name: &'static str, task: BoxFuture) {
        if !self.is_alive() {
            return;
        }
        let mut state = self.shared.state.lock();
        let id = state.add_task(name, self.node, self.epoch);
        state.spawned.push((id, task));
    }

    fn spawn_local(&self, name: &'static str, task: LocalBoxFuture) {
        if !self.is_alive() {
            return;
        }
        SPAWNED_LOCAL.with_borrow_mut(|spawned| match spawned {
            Some(spawned) => {
                let id = self.shared.state.lock().add_task(name, self.node, self.epoch);
                spawned.push((id, task));
            }
            None => panic!("spawn_local('{name}') was called outside of Sim::block_on"),
        });
    }

    fn spawn_core(
        &self,
        _: usize,
        name: &'static str,
        _: Option<usize>,
        make: CoreMain,
    ) -> std::io::Result<()> {
        // Made when it is first polled, as on a thread of its own.
        self.spawn_local(name, Box::pin(async move { make().await }));
        Ok(())
    }
}

struct TaskWaker {
    shared: Weak<Shared>,
    id: TaskId,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(shared) = self.shared.upgrade() {
            shared.make_ready(self.id);
        }
    }
}

/// Nothing can ever happen again, and somebody waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// The virtual time at which everything stopped.
    pub at: Instant,
    /// Who waits, as `task (node)`, in the order in which they were started.
    pub waiting: Vec<String>,
}

impl std::fmt::Display for Deadlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.waiting.join(", ");
        write!(
            f,
            "deadlock at {} ns: no task is ready and no event is pending, waiting: {waiting}",
            self.at.0
        )
    }
}

impl std::error::Error for Deadlock {}

/// What a step did.
enum Step {
    /// A task that the caller polls was drawn.
    Drawn(TaskId),
    /// Something happened.
    Worked,
    /// Nothing is left to do up to the limit.
    Idle,
}

/// The tasks' futures, which need not be `Send` and therefore stay with the thread.
pub(super) struct Futures {
    shared: Arc<Shared>,
    futures: RefCell<BTreeMap<TaskId, (LocalBoxFuture, Waker)>>,
}

impl Futures {
    pub(super) fn new(shared: Arc<Shared>) -> Futures {
        Futures { shared, futures: RefCell::default() }
    }

    /// Runs `future` as a task of `node` until it is done (`Some`) or the node crashes (`None`).
    pub(super) fn run<F: Future>(
        &self,
        node: NodeId,
        future: F,
    ) -> Result<Option<F::Output>, Deadlock> {
        let _entered = Entered::new();
        let mut future = std::pin::pin!(future);
        let (id, epoch) = {
            let mut state = self.shared.state.lock();
            let NodeState { epoch, up, ref name, .. } = state.nodes[node];
            assert!(up, "node {name} is down: call Node::restart first");
            (state.add_task("main", node, epoch), epoch)
        };
        let waker = self.waker(id);
        let result = loop {
            if self.shared.state.lock().nodes[node].epoch != epoch {
                break Ok(None);
            }
            match self.step(Instant(u64::MAX)) {
                Step::Drawn(drawn) if drawn == id => {
                    let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
                    if let std::task::Poll::Ready(output) = polled {
                        break Ok(Some(output));
                    }
                }
                Step::Drawn(_) | Step::Worked => {}
                Step::Idle => break Err(self.deadlock()),
            }
        };
        self.shared.state.lock().remove_task(id);
        self.adopt();
        self.reap();
        result
    }

    /// Runs everything up to the instant `until`, which becomes the time.
    pub(super) fn run_until(&self, until: Instant) {
        let _entered = Entered::new();
        while !matches!(self.step(until), Step::Idle) {}
        let mut state = self.shared.state.lock();
        state.now = state.now.max(until);
    }

    fn waker(&self, id: TaskId) -> Waker {
        Waker::from(Arc::new(TaskWaker { shared: Arc::downgrade(&self.shared), id }))
    }

    /// Lets one thing happen: the first event if it is due, else a ready task, else the first event
    /// whenever it comes, up to `limit`.
    fn step(&self, limit: Instant) -> Step {
        self.adopt();
        self.reap();
        let mut guard = self.shared.state.lock();
        let state = &mut *guard;
        let first = state.events.keys().next().copied();
        let due = first.is_some_and(|(at, _)| at <= state.now);
        if !due
            && state.now < limit
            && let Some(drawn) = state.draw()
        {
            let id = state.ready.swap_remove(drawn);
            let task = state.tasks.get_mut(&id).expect("invariant: ready tasks exist");
            task.queued = false;
            let name = &state.nodes[task.node].name;
            state.trace.record(state.now, name, "poll", &[id], || task.name.to_owned());
            state.now = Instant(state.now.0.saturating_add(POLL_COST));
            drop(guard);
            return self.poll(id);
        }
        match first {
            Some(key) if key.0 <= limit => {
                let event = state.events.remove(&key).expect("invariant: it is the first key");
                state.now = state.now.max(key.0);
                let alive = state.nodes[event.node].epoch == event.epoch;
                drop(guard);
                match event.action {
                    Action::Wake(waker) if alive => waker.wake(),
                    Action::Call(call) if alive => call(),
                    _ => {}
                }
                Step::Worked
            }
            _ => Step::Idle,
        }
    }

    fn poll(&self, id: TaskId) -> Step {
        // Taken out for the poll, which may spawn tasks and crash nodes.
        let Some((mut future, waker)) = self.futures.borrow_mut().remove(&id) else {
            return Step::Drawn(id);
        };
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.shared.state.lock().remove_task(id);
        } else {
            self.futures.borrow_mut().insert(id, (future, waker));
        }
        Step::Worked
    }

    /// Takes over the tasks spawned since the last step.
    fn adopt(&self) {
        let spawned = std::mem::take(&mut self.shared.state.lock().spawned);
        let local = SPAWNED_LOCAL.with_borrow_mut(|s| s.as_mut().map(std::mem::take));
        let spawned = spawned.into_iter().map(|(id, task)| (id, task as LocalBoxFuture));
        for (id, task) in spawned.chain(local.unwrap_or_default()) {
            let waker = self.waker(id);
            self.futures.borrow_mut().insert(id, (task, waker));
        }
    }

    /// Drops the tasks of crashed epochs.
    fn reap(&self) {
        let dead: Vec<TaskId> = {
            let mut state = self.shared.state.lock();
            if !std::mem::take(&mut state.reap) {
                return;
            }
            let State { tasks, nodes, .. } = &*state;
            let is_dead = |task: &TaskState| nodes[task.node].epoch != task.epoch;
            let dead: Vec<_> =
                tasks.iter().filter(|(_, t)| is_dead(t)).map(|(id, _)| *id).collect();
            dead.iter().for_each(|id| state.remove_task(*id));
            dead
        };
        self.adopt();
        let futures: Vec<_> = {
            let mut all = self.futures.borrow_mut();
            dead.iter().filter_map(|id| all.remove(id)).collect()
        };
        drop(futures);
    }

    fn deadlock(&self) -> Deadlock {
        let state = self.shared.state.lock();
        let describe = |t: &TaskState| format!("{} ({})", t.name, state.nodes[t.node].name);
        Deadlock { at: state.now, waiting: state.tasks.values().map(describe).collect() }
    }
}

impl Drop for Futures {
    fn drop(&mut self) {
        // Handles that outlive the simulation, and the destructors below, find every node down:
        // nothing is added any more that would keep the state alive in a cycle.
        for node in &mut self.shared.state.lock().nodes {
            node.up = false;
            node.epoch += 1;
        }
        self.adopt();
        let futures = std::mem::take(&mut *self.futures.borrow_mut());
        let events = std::mem::take(&mut self.shared.state.lock().events);
        drop((futures, events));
        Wires::close(&self.shared);
    }
}

/// The thread runs a simulation.
struct Entered;

impl Entered {
    fn new() -> Entered {
        SPAWNED_LOCAL.with_borrow_mut(|spawned| {
            assert!(spawned.is_none(), "a simulation was run inside of a simulation");
            *spawned = Some(Vec::new());
        });
        Entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = SPAWNED_LOCAL.with_borrow_mut(Option::take);
        drop(left);
    }
}
