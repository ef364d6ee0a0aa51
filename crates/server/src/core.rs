//! The core: takes turns.
//!
//! A turn executes what is available from all ready clients, a bounded share of each, commits
//! once, and hands out the replies. Clients whose share did not suffice stay ready; after a turn
//! the connection tasks get to run, so replies leave and requests arrive while others wait.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use atoll_env::net::Stream;
use atoll_env::{Env, Instant};
use atoll_redis::{ClientId, Executor, Progress, Store};

use crate::connection::{self, OUTPUT_SOFT_LIMIT, Pipe};
use crate::signal::Signal;

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
    pub signal: Signal,
    pub arrivals: RefCell<Vec<(Box<dyn Stream>, SocketAddr)>>,
    ready: RefCell<VecDeque<ClientId>>,
    /// A second has passed.
    pub tick: Cell<bool>,
    /// Target of reads. One for all connections, so that an idle one holds no buffer.
    pub scratch: RefCell<Vec<u8>>,
}

impl Desk {
    pub fn new() -> Desk {
        Desk {
            signal: Signal::default(),
            arrivals: RefCell::default(),
            ready: RefCell::default(),
            tick: Cell::new(false),
            scratch: RefCell::new(vec![0; SCRATCH]),
        }
    }

    /// Puts clients that a turn had no room for before those that became ready meanwhile.
    fn list_first(&self, mut clients: VecDeque<ClientId>) {
        let mut ready = self.ready.borrow_mut();
        clients.append(&mut ready);
        *ready = clients;
    }

    /// Makes a client ready, once.
    pub fn list(&self, id: ClientId, pipe: &mut Pipe) {
        if !std::mem::replace(&mut pipe.listed, true) {
            self.ready.borrow_mut().push_back(id);
            self.signal.raise();
        }
    }
}

/// The owner of the executor and of all connections.
pub(crate) struct Core<S: Store> {
    env: Env,
    desk: Rc<Desk>,
    executor: Executor<S>,
    local: SocketAddr,
    connections: BTreeMap<ClientId, Connection>,
    /// Identities of refused connections, counted down from the top.
    next_refused: ClientId,
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

impl<S: Store> Core<S> {
    pub fn new(env: Env, desk: Rc<Desk>, executor: Executor<S>, local: SocketAddr) -> Core<S> {
        let next_refused = ClientId::MAX;
        Core { env, desk, executor, local, connections: BTreeMap::new(), next_refused }
    }

    /// Does what there is to do; returns whether more is ready.
    pub async fn work(&mut self) -> bool {
        for (stream, peer) in self.desk.arrivals.take() {
            self.admit(stream, peer);
        }
        if self.desk.tick.take() {
            self.enforce_times();
        }
        self.turn().await;
        !self.desk.ready.borrow().is_empty()
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
        let refused = self.connections.len() >= self.executor.config().maxclients;
        let id = if refused {
            self.executor.stats().connections_rejected.add(1);
            pipe.outgoing.extend_from_slice(b"-ERR max number of clients reached\r\n");
            pipe.closing = true;
            self.next_refused -= 1;
            self.next_refused
        } else {
            self.executor.connect(peer, self.local)
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

    async fn turn(&mut self) {
        let mut ready = std::mem::take(&mut *self.desk.ready.borrow_mut());
        if ready.is_empty() {
            return;
        }
        self.executor.begin_turn();
        let now = self.env.clock.now();
        let mut executed = Vec::with_capacity(ready.len());
        while let Some(id) = ready.pop_front() {
            if self.executor.is_full() {
                ready.push_front(id);
                break;
            }
            if let Some(progress) = self.execute(id, now).await {
                executed.push((id, progress));
            }
        }
        self.desk.list_first(ready);
        self.executor.commit().await;
        for (id, progress) in executed {
            self.answer(id, progress, now);
        }
        for id in self.executor.take_killed() {
            self.close(id, now);
        }
    }

    /// Executes a ready client's share of the turn, if it may have one.
    async fn execute(&mut self, id: ClientId, now: Instant) -> Option<Progress> {
        let connection = self.connections.get_mut(&id)?;
        {
            let mut pipe = connection.pipe.borrow_mut();
            pipe.listed = false;
            if pipe.gone {
                drop(pipe);
                self.connections.remove(&id);
                self.executor.disconnect(id);
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
                self.executor.feed(id, &mut pipe.incoming);
                // Its reading may have stopped for want of room.
                pipe.wake();
            }
        }
        Some(self.executor.execute(id).await)
    }

    /// Hands out a client's replies and decides how it goes on.
    fn answer(&mut self, id: ClientId, progress: Progress, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut pipe = connection.pipe.borrow_mut();
        let mut closing = self.executor.take_output(id, &mut pipe.outgoing);
        connection.more = progress == Progress::More;
        match progress {
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
                    closing = true;
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
            self.executor.disconnect(id);
        }
        let mut pipe = connection.pipe.borrow_mut();
        pipe.closing = true;
        pipe.wake();
    }

    /// Closes connections that have kept something waiting for too long.
    fn enforce_times(&mut self) {
        let now = self.env.clock.now();
        let idle_max = match self.executor.config().timeout_s {
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
            } else if !self.executor.is_authenticated(id)
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
