//! The floor: the connections of one core, and its turns.
//!
//! A turn takes the replies that have come, executes what is available from all ready clients, a
//! bounded share of each, and hands out what may leave. Clients whose share did not suffice stay
//! ready; after a turn the connection tasks get to run, so replies leave and requests arrive while
//! others wait.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::net::Stream;
use atoll_env::{Env, Instant};
use atoll_kv::Signal;
use atoll_redis::{ClientId, Completed, Front, Progress};

use crate::backend::{ShardBackend, Tasks};
use crate::connection::{self, OUTPUT_SOFT_LIMIT, Pipe};
use crate::server::Visit;

/// Time a client has to finish a request it has begun.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Slowest rate at which a long request may arrive after that, in bytes per second.
const REQUEST_RATE_MIN: usize = 1 << 10;
/// Time a client has to authenticate.
const AUTHENTICATION_TIME_MAX: Duration = Duration::from_secs(10);
/// Time a closing connection has to take its last replies.
const CLOSING_TIME_MAX: Duration = Duration::from_secs(5);
/// Size of a read.
const SCRATCH: usize = 64 << 10;

/// What tasks of the core leave for it, and what they share.
pub(crate) struct Desk {
    /// Raised when there is something below.
    pub signal: Rc<Signal>,
    pub visits: RefCell<Vec<Visit>>,
    ready: RefCell<VecDeque<ClientId>>,
    /// A second has passed.
    pub tick: Cell<bool>,
    /// A pause that held clients back may be over.
    pub pause_over: Cell<bool>,
    /// Target of reads. One for all connections, so that an idle one holds no buffer.
    pub scratch: RefCell<Vec<u8>>,
}

impl Desk {
    pub fn new() -> Desk {
        Desk {
            signal: Rc::default(),
            visits: RefCell::default(),
            pause_over: Cell::new(false),
            ready: RefCell::default(),
            tick: Cell::new(false),
            scratch: RefCell::new(vec![0; SCRATCH]),
        }
    }

    /// Makes a client ready, once.
    pub fn list(&self, id: ClientId, pipe: &mut Pipe) {
        if !std::mem::replace(&mut pipe.listed, true) {
            self.ready.borrow_mut().push_back(id);
            self.signal.raise();
        }
    }
}

/// The owner of a core's front end and of its connections.
pub(crate) struct Floor {
    env: Env,
    desk: Rc<Desk>,
    front: Front<ShardBackend>,
    tasks: Rc<Tasks>,
    /// Outcomes taken and not given to the front end yet.
    done: Vec<Completed>,
    /// Whose they are.
    touched: Vec<ClientId>,
    local: SocketAddr,
    connections: BTreeMap<ClientId, Connection>,
    /// Identities of refused connections, counted down from the top.
    next_refused: ClientId,
    /// When a pause is looked at again.
    pause_ends: Option<Instant>,
}

struct Connection {
    pipe: Rc<RefCell<Pipe>>,
    opened: Instant,
    /// When the client last sent something.
    active: Instant,
    /// When the request under way began, and how much of it is there.
    partial: Option<(Instant, usize)>,
    /// When the core decided to close.
    closing: Option<Instant>,
    /// Complete requests may be left in the executor: nothing is fed before they are executed,
    /// or a client that sends faster than it is served would fill memory.
    more: bool,
}

impl Floor {
    pub fn new(
        env: Env,
        desk: Rc<Desk>,
        mut front: Front<ShardBackend>,
        local: SocketAddr,
    ) -> Floor {
        let tasks = front.backend().tasks().clone();
        let (next_refused, connections) = (ClientId::MAX, BTreeMap::new());
        let (done, touched, pause_ends) = (Vec::new(), Vec::new(), None);
        Floor {
            env,
            desk,
            front,
            tasks,
            done,
            touched,
            local,
            connections,
            next_refused,
            pause_ends,
        }
    }

    /// Does what there is to do; returns whether more is ready.
    pub fn work(&mut self) -> bool {
        for visit in self.desk.visits.take() {
            match visit {
                // One that cannot be attached (the client is gone already) is nobody's loss.
                Visit::Guest(arrival, peer) => {
                    if let Ok(stream) = arrival.attach() {
                        self.admit(stream, peer);
                    }
                }
                Visit::Question(question, asker) => {
                    let _ = asker.send(self.front.answer_question(&question));
                    self.close_killed();
                }
            }
        }
        if self.desk.tick.take() {
            self.enforce_times();
            let memory = self.front.backend().store_bytes();
            self.front.note_memory(memory);
        }
        if self.desk.pause_over.take() {
            self.pause_ends = None;
            self.front.resume();
        }
        self.take_replies();
        self.turn();
        self.list_runnable();
        self.watch_pause();
        !self.desk.ready.borrow().is_empty()
    }

    /// Tells the address that clients connect to.
    pub fn set_local(&mut self, local: SocketAddr) {
        self.local = local;
    }

    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Returns whether replies are owed to somebody.
    pub fn owes(&mut self) -> bool {
        let ids: Vec<ClientId> = self.connections.keys().copied().collect();
        ids.into_iter().any(|id| self.front.owes(id))
    }

    /// Returns whether no connection is left.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Returns whether every connection that is left has got all its replies.
    pub fn is_told(&self) -> bool {
        self.connections.values().all(|connection| connection.pipe.borrow().shut)
    }

    /// Lets every connection close once its replies are sent.
    pub fn close_all(&mut self) {
        let now = self.env.clock.now();
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            self.close(id, now);
        }
    }

    fn admit(&mut self, stream: Box<dyn Stream>, peer: SocketAddr) {
        let now = self.env.clock.now();
        let mut pipe = Pipe::default();
        let refused = self.front.is_full();
        let id = if refused {
            self.front.stats().connections_rejected.add(1);
            pipe.outgoing.extend_from_slice(b"-ERR max number of clients reached\r\n");
            pipe.closing = true;
            self.next_refused -= 1;
            self.next_refused
        } else {
            self.front.connect(peer, self.local)
        };
        let pipe = Rc::new(RefCell::new(pipe));
        let connection = Connection {
            pipe: pipe.clone(),
            opened: now,
            active: now,
            partial: None,
            closing: refused.then_some(now),
            more: false,
        };
        self.connections.insert(id, connection);
        let task = connection::serve(id, stream, pipe, self.desk.clone());
        self.env.tasks.spawn_local("connection", Box::pin(task));
    }

    /// Gives the front end what has come of earlier requests.
    fn take_replies(&mut self) {
        self.tasks.take_done(&mut self.done);
        if self.done.is_empty() {
            return;
        }
        let mut touched = std::mem::take(&mut self.touched);
        self.front.complete(&mut self.done, &mut touched);
        let now = self.env.clock.now();
        for id in touched.drain(..) {
            self.hand_out(id, now);
        }
        self.touched = touched;
        self.list_runnable();
    }

    /// Makes ready whoever was held back and can go on.
    fn list_runnable(&mut self) {
        for id in self.front.take_runnable() {
            if let Some(connection) = self.connections.get(&id) {
                self.desk.list(id, &mut connection.pipe.borrow_mut());
            }
        }
    }

    /// Closes whoever was killed.
    fn close_killed(&mut self) {
        let now = self.env.clock.now();
        for id in self.front.take_killed() {
            self.close(id, now);
        }
    }

    /// Has a look taken when a pause ends that holds clients back.
    fn watch_pause(&mut self) {
        let Some(until) = self.front.paused_until() else { return };
        if self.pause_ends.is_some_and(|ends| ends <= until) {
            return;
        }
        self.pause_ends = Some(until);
        let (clock, desk) = (self.env.clock.clone(), Rc::downgrade(&self.desk));
        self.env.tasks.spawn_local(
            "pause",
            Box::pin(async move {
                clock.sleep(until.since(clock.now())).await;
                let Some(desk) = desk.upgrade() else { return };
                desk.pause_over.set(true);
                desk.signal.raise();
            }),
        );
    }

    /// Puts the replies that may leave into a client's pipe.
    fn hand_out(&mut self, id: ClientId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut pipe = connection.pipe.borrow_mut();
        let closing = self.front.take_output(id, &mut pipe.outgoing);
        pipe.wake();
        drop(pipe);
        if closing {
            self.close(id, now);
        }
    }

    fn turn(&mut self) {
        let mut ready = std::mem::take(&mut *self.desk.ready.borrow_mut());
        if ready.is_empty() {
            return;
        }
        self.front.begin_turn();
        let now = self.env.clock.now();
        while let Some(id) = ready.pop_front() {
            if let Some(progress) = self.execute(id, now) {
                self.answer(id, progress, now);
            }
        }
        self.close_killed();
        self.list_runnable();
    }

    /// Executes a ready client's share of the turn, if it may have one.
    fn execute(&mut self, id: ClientId, now: Instant) -> Option<Progress> {
        let connection = self.connections.get_mut(&id)?;
        {
            let mut pipe = connection.pipe.borrow_mut();
            pipe.listed = false;
            if pipe.gone {
                drop(pipe);
                self.connections.remove(&id);
                self.front.disconnect(id);
                return None;
            }
            if connection.closing.is_some() {
                return None;
            }
            if pipe.unsent() > OUTPUT_SOFT_LIMIT {
                pipe.passed_over = true;
                return None;
            }
            if !connection.more && !pipe.incoming.is_empty() {
                connection.active = now;
                self.front.feed(id, &mut pipe.incoming);
                // Its reading may have stopped for want of room.
                pipe.wake();
            }
        }
        Some(self.front.execute(id))
    }

    /// Hands out a client's replies and decides how it goes on after a turn.
    fn answer(&mut self, id: ClientId, progress: Progress, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut pipe = connection.pipe.borrow_mut();
        let mut closing = self.front.take_output(id, &mut pipe.outgoing);
        connection.more = matches!(progress, Progress::More | Progress::Waiting);
        match progress {
            // It is listed again when what it waits for is there.
            Progress::Waiting => connection.partial = None,
            Progress::More => {
                connection.partial = None;
                self.desk.list(id, &mut pipe);
            }
            Progress::Closing => closing = true,
            Progress::Idle { partial, executed } => {
                let began = connection.partial.map(|(began, _)| began);
                let began = began.filter(|_| executed == 0).unwrap_or(now);
                connection.partial = (partial > 0).then_some((began, partial));
                if !pipe.incoming.is_empty() {
                    self.desk.list(id, &mut pipe);
                } else if pipe.ended {
                    // It will hear what it asked for.
                    closing = !self.front.owes(id);
                }
            }
        }
        pipe.wake();
        drop(pipe);
        if closing {
            self.close(id, now);
        }
    }

    fn close(&mut self, id: ClientId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.closing.is_none() {
            connection.closing = Some(now);
            self.front.disconnect(id);
        }
        let mut pipe = connection.pipe.borrow_mut();
        pipe.closing = true;
        pipe.wake();
    }

    /// Closes connections that have kept something waiting for too long.
    fn enforce_times(&mut self) {
        let now = self.env.clock.now();
        let idle_max = match self.front.config().timeout_s {
            0 => Duration::MAX,
            seconds => Duration::from_secs(seconds),
        };
        let mut late: Vec<(ClientId, &str)> = Vec::new();
        for (&id, connection) in &self.connections {
            if let Some(since) = connection.closing {
                if now.since(since) > CLOSING_TIME_MAX {
                    let mut pipe = connection.pipe.borrow_mut();
                    pipe.cut = true;
                    pipe.wake();
                }
                continue;
            }
            let too_slow = connection.partial.is_some_and(|(began, len)| {
                let allowance = Duration::from_secs((len / REQUEST_RATE_MIN) as u64);
                now.since(began) > REQUEST_TIME_MAX + allowance
            });
            if too_slow {
                late.push((id, "-ERR the request did not arrive in time; send it again\r\n"));
            } else if !self.front.is_authenticated(id)
                && now.since(connection.opened) > AUTHENTICATION_TIME_MAX
            {
                late.push((id, "-NOAUTH no authentication within 10 seconds\r\n"));
            } else if now.since(connection.active) > idle_max {
                late.push((id, ""));
            }
        }
        for (id, farewell) in late {
            if let Some(connection) = self.connections.get(&id) {
                connection.pipe.borrow_mut().outgoing.extend_from_slice(farewell.as_bytes());
            }
            self.close(id, now);
        }
    }
}
