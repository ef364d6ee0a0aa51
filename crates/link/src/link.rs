//! The link of an engine: listening, dialling, and the face of it all.
//!
//! ```text
//!   listen task ---- accept, handshake --+
//!                                        +--> install (peer::judge) --> Driver, till the end
//!   dial task, one for each peer and --- +
//!   class: wait, connect, handshake
//! ```
//!
//! A dial task lives as long as its peer is wanted; while a connection of its class is there, whoever
//! dialled it, the task sleeps. What the owner is told comes from the tasks, in order, never from
//! inside of a call of his.
//!
//! # Invariants
//! - For each peer and class at most one connection delivers; the one that took its place begins
//!   after the last frame of the old one was delivered. So `raft` keeps its order over connections.
//! - A connection that is being closed has left its place already.
//! - The state is not borrowed while the [`Handler`] runs.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use atoll_env::Env;
use atoll_env::net::{Arrival, Listener, Stream};
use atoll_env::random::Prng;
use atoll_env::sync::{Either, select_biased, timeout};
use atoll_env::time::Instant;
use bytes::Bytes;

use crate::bulk::{self, BulkError, Sender};
use crate::conn::{Conn, Driver, End, Load, SCRATCH, last_words, write_all};
use crate::frame::{HEADER_LEN, Kind};
use crate::handler::{Handler, Peer};
use crate::handshake::{Handshake, Hello, MESSAGE_MAX, Proven, Step, nonce};
use crate::id::{Class, EngineId, Role};
use crate::options::{Check, Options, Wrapped};
use crate::outbox::Parts;
use crate::peer::{Candidate, Verdict, judge};
use crate::refusal::{Code, Refusal, Refused};
use crate::rpc::{self, CallError};
use crate::signal::Gong;
use crate::stats::{Counters, PeerStats, Stats};

/// How long last words may take to be read by somebody who is refused.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long accepting waits after it failed: there may be no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a message of consensus was dropped. Nothing of it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// There is no connection to the engine now.
    NotConnected,
    /// Too much waits for it.
    QueueFull,
    /// It is longer than a message can be.
    TooLong,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dropped::NotConnected => "there is no connection to the engine",
            Dropped::QueueFull => "too many messages wait for the engine",
            Dropped::TooLong => "the message is longer than a message can be",
        })
    }
}

impl std::error::Error for Dropped {}

/// An engine's end of its connections to others. Cheap to clone; the last clone closes it. Stays on
/// the thread on which it was opened.
///
/// The link holds its [`Handler`]. One that holds the link in turn keeps both: then the owner calls
/// [`Link::close`], and lets the handler drop its clone.
#[derive(Clone)]
pub struct Link(Rc<Owned>);

/// What closes the link when the last handle is gone; the tasks do not hold it.
struct Owned(Rc<Shared>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Shared {
    env: Env,
    options: Rc<Options>,
    handler: Rc<dyn Handler>,
    address: SocketAddr,
    boot: u64,
    state: RefCell<State>,
    /// Struck when connections come and go, peers are set and forgotten, or the link closes.
    gong: Gong,
    /// What the owner is still to be told.
    news: RefCell<VecDeque<News>>,
    is_telling: Cell<bool>,
    is_closed: Cell<bool>,
    /// Of one read at a time.
    scratch: Rc<RefCell<Vec<u8>>>,
}

struct State {
    peers: BTreeMap<EngineId, Known>,
    prng: Prng,
    /// Connections of others that have not proved who they are, by where they come from.
    handshakes: BTreeMap<IpAddr, usize>,
    last_generation: u64,
}

/// What is known of a peer.
#[derive(Default)]
struct Known {
    /// Where to dial it, if it is to be dialled.
    wanted: Option<Wanted>,
    conns: [Option<Rc<Conn>>; 3],
    counters: [Rc<Counters>; 3],
    load: Rc<Load>,
}

impl Known {
    fn is_connected(&self) -> bool {
        self.conns.iter().any(Option::is_some)
    }

    /// Whether it costs nothing to forget it: engines that nobody asked for leave nothing behind.
    fn is_nobody(&self) -> bool {
        self.wanted.is_none() && !self.is_connected() && self.load.is_none()
    }
}

#[derive(Clone, Copy)]
struct Wanted {
    address: SocketAddr,
    /// Tells the dial tasks of a peer from those of its last life, before it was forgotten.
    generation: u64,
}

enum News {
    Up(Peer, Class),
    Down(EngineId, Class, String),
    Refused(Refused),
    Unreachable(EngineId, SocketAddr, String),
}

impl Link {
    /// Begins to listen, on the calling thread's event loop. Nothing is dialled before
    /// [`Link::set_peer`].
    ///
    /// # Errors
    /// The address cannot be listened at, or the options contradict each other.
    pub async fn open(env: Env, options: Options, handler: Rc<dyn Handler>) -> io::Result<Link> {
        options.check().map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let listener = env.network.listen(options.listen).await?;
        let state = State {
            peers: BTreeMap::new(),
            prng: Prng::new(env.random.next_u64()),
            handshakes: BTreeMap::new(),
            last_generation: 0,
        };
        let shared = Rc::new(Shared {
            boot: env.random.next_u64(),
            env,
            options: Rc::new(options),
            handler,
            address: listener.local_addr(),
            state: RefCell::new(state),
            gong: Gong::default(),
            news: RefCell::default(),
            is_telling: Cell::new(false),
            is_closed: Cell::new(false),
            scratch: Rc::new(RefCell::new(vec![0; SCRATCH])),
        });
        let (listening, telling) = (shared.clone(), shared.clone());
        let tasks = &shared.env.tasks;
        tasks.spawn_local("link-listen", Box::pin(listening.listen(listener)));
        tasks.spawn_local("link-news", Box::pin(telling.tell_always()));
        Ok(Link(Rc::new(Owned(shared))))
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared().address
    }

    /// Keeps connections to an engine from now on, dialling `address` whenever there is none. Called
    /// again, it changes the address of the next try.
    pub fn set_peer(&self, engine: EngineId, address: SocketAddr) {
        let shared = self.shared();
        if engine == shared.options.engine || shared.is_closed.get() {
            return; // an engine does not dial itself
        }
        let is_new = {
            let mut state = shared.state.borrow_mut();
            let generation = state.last_generation + 1;
            let known = state.peers.entry(engine).or_default();
            match &mut known.wanted {
                Some(wanted) => {
                    wanted.address = address;
                    None
                }
                wanted => {
                    *wanted = Some(Wanted { address, generation });
                    state.last_generation = generation;
                    Some(generation)
                }
            }
        };
        if let Some(generation) = is_new {
            for class in Class::ALL {
                let dialling = shared.clone().dial(engine, class, generation);
                shared.env.tasks.spawn_local("link-dial", Box::pin(dialling));
            }
        }
    }

    /// Dials an engine no more and closes its connections. It may come back by itself, if the owner's
    /// [`Handler::welcome`] lets it.
    pub fn forget_peer(&self, engine: EngineId) {
        let shared = self.shared();
        if let Some(known) = shared.state.borrow_mut().peers.get_mut(&engine) {
            known.wanted = None;
        }
        for class in Class::ALL {
            if let Some(conn) = shared.conn(engine, class) {
                shared.detach(&conn, "this engine forgot the other one");
                conn.close(Refusal::Leaving);
            }
        }
        shared.state.borrow_mut().peers.retain(|_, known| !known.is_nobody());
        shared.gong.strike();
    }

    /// Sends a message of consensus, made of parts that follow each other. Never waits: messages
    /// arrive in the order in which they were sent, or not at all.
    ///
    /// # Errors
    /// It was dropped, and why. Counted in [`Stats::drops`].
    pub fn send(
        &self,
        to: EngineId,
        message: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), Dropped> {
        let shared = self.shared();
        let parts: Parts = message.into_iter().collect();
        let len: usize = parts.iter().map(Bytes::len).sum();
        let dropped = match shared.conn(to, Class::Raft) {
            None => Dropped::NotConnected,
            Some(_) if len > Class::Raft.payload_max() => Dropped::TooLong,
            Some(conn) => {
                let waiting = conn.out.borrow().bytes();
                if waiting + HEADER_LEN + len <= shared.options.raft_queue_bytes {
                    conn.push(Kind::Message, 0, parts);
                    return Ok(());
                }
                Dropped::QueueFull
            }
        };
        shared.count_drop(to, Class::Raft);
        Err(dropped)
    }

    /// Asks an engine and waits for its answer until `deadline`. Dropping the future cancels the call;
    /// what it has done by then is not known.
    ///
    /// # Errors
    /// Sorted by what may be done next: [`CallError`].
    pub async fn call(
        &self,
        to: EngineId,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let shared = self.shared();
        match shared.conn(to, Class::Rpc) {
            Some(conn) => rpc::call(conn, &shared.options, request, deadline).await,
            None => {
                shared.count_drop(to, Class::Rpc);
                Err(CallError::NotSent(Dropped::NotConnected.to_string()))
            }
        }
    }

    /// Opens a bulk stream to an engine; `header` tells it what comes (256 KiB at most).
    ///
    /// # Errors
    /// There is no connection, or there are too many streams: [`BulkError::NotSent`]. The header is
    /// too long.
    pub fn open_stream(&self, to: EngineId, header: Bytes) -> Result<Sender, BulkError> {
        let shared = self.shared();
        match shared.conn(to, Class::Bulk) {
            Some(conn) => bulk::open(conn, &shared.options, header),
            None => {
                shared.count_drop(to, Class::Bulk);
                Err(BulkError::NotSent(Dropped::NotConnected.to_string()))
            }
        }
    }

    /// Returns whether there is a connection of a class to an engine.
    pub fn is_connected(&self, engine: EngineId, class: Class) -> bool {
        self.shared().conn(engine, class).is_some()
    }

    /// Returns the statistics of all peers, in the order of their ids.
    pub fn stats(&self) -> Vec<PeerStats> {
        let state = self.shared().state.borrow();
        let of = |(engine, known): (&EngineId, &Known)| PeerStats {
            engine: *engine,
            classes: Class::ALL.map(|class| Stats {
                connected: known.conns[class.index()].as_ref().is_some_and(|c| c.is_open()),
                ..known.counters[class.index()].get()
            }),
        };
        state.peers.iter().map(of).collect()
    }

    /// Stops listening and dialling and closes all connections; peers are told. Its tasks end within
    /// half a second, those that are connecting or in a handshake within the timeouts of these.
    pub fn close(&self) {
        self.shared().close();
    }

    fn shared(&self) -> &Rc<Shared> {
        &self.0.0
    }
}

impl Shared {
    fn close(&self) {
        if self.is_closed.replace(true) {
            return;
        }
        let conns: Vec<Rc<Conn>> = {
            let state = self.state.borrow();
            state.peers.values().flat_map(|known| known.conns.iter().flatten().cloned()).collect()
        };
        for conn in conns {
            self.detach(&conn, "this engine stops");
            conn.close(Refusal::Leaving);
        }
        self.state.borrow_mut().peers.clear();
        self.gong.strike();
    }

    /// Returns the connection of a class to an engine, if something can leave on it.
    fn conn(&self, engine: EngineId, class: Class) -> Option<Rc<Conn>> {
        let state = self.state.borrow();
        let conn = state.peers.get(&engine)?.conns[class.index()].as_ref()?;
        conn.is_open().then(|| conn.clone())
    }

    fn count_drop(&self, engine: EngineId, class: Class) {
        if let Some(known) = self.state.borrow().peers.get(&engine) {
            known.counters[class.index()].update(|stats| stats.drops += 1);
        }
    }

    // What the owner is told.

    fn note(&self, news: News) {
        self.news.borrow_mut().push_back(news);
        self.gong.strike();
    }

    /// Tells the owner everything that happened, in order.
    fn tell(&self) {
        if self.is_telling.replace(true) {
            return; // whoever tells comes to it
        }
        loop {
            let next = self.news.borrow_mut().pop_front();
            match next {
                Some(News::Up(peer, class)) => self.handler.up(&peer, class),
                Some(News::Down(engine, class, why)) => self.handler.down(engine, class, &why),
                Some(News::Refused(refused)) => self.handler.refused(&refused),
                Some(News::Unreachable(engine, address, why)) => {
                    self.handler.unreachable(engine, address, &why);
                }
                None => break,
            }
        }
        self.is_telling.set(false);
    }

    /// Tells what happened inside of calls of the owner.
    async fn tell_always(self: Rc<Self>) {
        loop {
            let look = || match self.news.borrow().is_empty() {
                false => Some(true),
                true => self.is_closed.get().then_some(false),
            };
            let has_news = self.gong.wait(look).await;
            self.tell();
            if !has_news {
                return;
            }
        }
    }

    fn refused(&self, address: SocketAddr, engine: Option<EngineId>, end: &End) {
        let (code, by_peer, sentence) = match end {
            End::Lost(_) => return,
            End::Told(code, sentence) => (*code, true, sentence.clone()),
            End::Refuse(refusal) => (refusal.code(), false, refusal.ours(address)),
        };
        // What is nobody's fault is not told as one.
        if !matches!(code, Code::Redundant | Code::Leaving) {
            self.note(News::Refused(Refused { address, engine, code, by_peer, sentence }));
        }
    }

    // Connections come and go.

    fn candidate(conn: &Conn) -> Candidate {
        Candidate {
            class: conn.class,
            incarnation: conn.peer.incarnation,
            boot: conn.boot,
            dialled_here: conn.role == Role::Dialler,
            address: conn.peer.address,
        }
    }

    /// Decides whether a connection with whom `proven` is may come about.
    fn admit(&self, proven: &Proven, role: Role, address: SocketAddr) -> Verdict {
        let hello = &proven.hello;
        if self.is_closed.get() {
            return Verdict::Refuse(Refusal::Leaving);
        }
        let new = Candidate {
            class: hello.class,
            incarnation: hello.incarnation,
            boot: hello.boot,
            dialled_here: role == Role::Dialler,
            address,
        };
        let state = self.state.borrow();
        let live: Vec<Candidate> = match state.peers.get(&hello.engine) {
            Some(known) => known.conns.iter().flatten().map(|c| Shared::candidate(c)).collect(),
            None => Vec::new(),
        };
        let counts = |(engine, known): &(&EngineId, &Known)| {
            **engine != hello.engine && (known.is_connected() || !known.load.is_none())
        };
        if state.peers.iter().filter(counts).count() >= self.options.peers_max {
            return Verdict::Refuse(Refusal::Busy("engines connected"));
        }
        judge(self.options.engine, hello.engine, &live, &new)
    }

    /// Asks everybody who has a say: those who are connected, and the owner.
    fn consider(
        &self,
        proven: &Proven,
        role: Role,
        address: SocketAddr,
        check: Option<&Check>,
    ) -> Result<(), Refusal> {
        if let Some(check) = check {
            check(&proven.hello).map_err(Refusal::Certificate)?;
        }
        match self.admit(proven, role, address) {
            Verdict::Refuse(refusal) => Err(refusal),
            Verdict::Take(_) => {
                let peer = peer_of(proven, address);
                self.handler.welcome(&peer).map_err(Refusal::Unwelcome)
            }
        }
    }

    /// Puts a connection whose handshake is done into its place. It may be refused even now, since
    /// others may have come about meanwhile; then it is closed already.
    fn install(&self, proven: &Proven, role: Role, address: SocketAddr) -> Rc<Conn> {
        let class = proven.hello.class;
        let engine = proven.hello.engine;
        let verdict = self.admit(proven, role, address);
        let (counters, load) = match &verdict {
            Verdict::Refuse(_) => Default::default(),
            Verdict::Take(_) => {
                let mut state = self.state.borrow_mut();
                state.peers.retain(|known, of| *known == engine || !of.is_nobody());
                let known = state.peers.entry(engine).or_default();
                (known.counters[class.index()].clone(), known.load.clone())
            }
        };
        let peer = peer_of(proven, address);
        let conn = Rc::new(Conn::new(
            peer.clone(),
            proven.hello.boot,
            class,
            role,
            proven.salt,
            self.env.clock.clone(),
            self.handler.clone(),
            counters.clone(),
            load.clone(),
            self.options.clone(),
        ));
        match verdict {
            Verdict::Refuse(refusal) => conn.close(refusal),
            Verdict::Take(closed) => {
                for (class, refusal) in closed {
                    let old = self
                        .state
                        .borrow()
                        .peers
                        .get(&engine)
                        .and_then(|known| known.conns[class.index()].clone());
                    if let Some(old) = old {
                        if refusal == Refusal::Redundant {
                            old.counters.update(|stats| stats.redundant += 1);
                        }
                        self.detach(&old, &refusal.ours(old.peer.address));
                        old.close(refusal);
                    }
                }
                let mut state = self.state.borrow_mut();
                // It is there still or again: removing the last connection may have removed it.
                let known = state.peers.entry(engine).or_default();
                known.counters[class.index()] = counters.clone();
                known.load = load;
                known.conns[class.index()] = Some(conn.clone());
                drop(state);
                counters.update(|stats| stats.connects += 1);
                self.note(News::Up(peer, class));
            }
        }
        self.gong.strike();
        conn
    }

    /// Takes a connection out of its place, if it is there, and ends what waits on it.
    fn detach(&self, conn: &Rc<Conn>, why: &str) {
        let engine = conn.peer.engine;
        let was_there = {
            let mut state = self.state.borrow_mut();
            let Some(known) = state.peers.get_mut(&engine) else { return };
            let place = &mut known.conns[conn.class.index()];
            let is_there = place.as_ref().is_some_and(|there| Rc::ptr_eq(there, conn));
            if is_there {
                *place = None;
                if known.is_nobody() {
                    state.peers.remove(&engine);
                }
            }
            is_there
        };
        if was_there {
            conn.fail(why);
            conn.counters.update(|stats| stats.queue_bytes = 0);
            self.note(News::Down(engine, conn.class, why.to_owned()));
        }
    }

    /// Runs a connection to its end.
    async fn run(
        self: &Rc<Self>,
        conn: Rc<Conn>,
        stream: Box<dyn Stream>,
        salt: u64,
        rest: Vec<u8>,
    ) {
        self.tell();
        let mut driver = Driver::new(conn.clone(), stream, salt, rest, self.scratch.clone());
        let end = driver.drive().await;
        self.detach(&conn, &end.why(&conn.peer));
        conn.fail("it was closed");
        self.refused(conn.peer.address, Some(conn.peer.engine), &end);
        self.tell();
        if let End::Refuse(refusal) = &end {
            driver.farewell(refusal).await;
        }
    }

    // Handshakes.

    fn hello(&self, class: Class) -> Hello {
        let drawn = std::array::from_fn(|_| self.env.random.next_u64());
        Hello {
            versions: self.options.versions.clone(),
            cluster: self.options.cluster,
            engine: self.options.engine,
            incarnation: self.options.incarnation,
            boot: self.boot,
            class,
            has_key: self.options.key.is_some(),
            nonce: nonce(self.options.key.as_ref(), self.options.engine, drawn),
        }
    }

    /// Leads a handshake to its end; `out` is what is to be sent first.
    async fn shake(
        &self,
        wrapped: &mut Wrapped,
        mut handshake: Handshake,
        mut out: Vec<u8>,
        role: Role,
        address: SocketAddr,
    ) -> Result<(Proven, Vec<u8>), End> {
        let talk = self.talk(wrapped, &mut handshake, &mut out, role, address);
        let end = match timeout(&*self.env.clock, self.options.handshake_timeout, talk).await {
            Ok(Ok(proven)) => return Ok((proven, handshake.into_rest())),
            Ok(Err(end)) => end,
            Err(_) => {
                out.clear();
                handshake.refuse(Refusal::Silent, &mut out);
                End::Refuse(Refusal::Silent)
            }
        };
        self.refused(address, handshake.claimed(), &end);
        self.tell();
        if let End::Refuse(_) = end {
            let words = last_words(&mut *wrapped.stream, &out);
            let _ = timeout(&*self.env.clock, LAST_WORDS, words).await;
        }
        Err(end)
    }

    async fn talk(
        &self,
        wrapped: &mut Wrapped,
        handshake: &mut Handshake,
        out: &mut Vec<u8>,
        role: Role,
        address: SocketAddr,
    ) -> Result<Proven, End> {
        let Wrapped { stream, check } = wrapped;
        let stream = &mut **stream;
        let lost = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData => End::Refuse(Refusal::Encryption(error.to_string())),
            _ => End::Lost(format!("the handshake broke off: {error}")),
        };
        let mut buffer = [0; MESSAGE_MAX];
        loop {
            write_all(stream, out).await.map_err(lost)?;
            out.clear();
            let n = poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await.map_err(lost)?;
            if n == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
            let mut step = handshake.receive(&buffer[..n.min(MESSAGE_MAX)], out);
            if let Step::Admit(proven) = &step {
                step = match self.consider(proven, role, address, check.as_ref()) {
                    Ok(()) => handshake.admit(out),
                    Err(refusal) => handshake.refuse(refusal, out),
                };
            }
            match step {
                Step::More => {}
                Step::Done(proven) => {
                    write_all(stream, out).await.map_err(lost)?;
                    return Ok(proven);
                }
                // What is to be said is in `out`, and is said by the caller.
                Step::Refuse(refusal) => return Err(End::Refuse(refusal)),
                Step::Refused(code, sentence) => return Err(End::Told(code, sentence)),
                Step::Admit(_) => return Err(End::Refuse(Refusal::Protocol("a second proof"))),
            }
        }
    }

    // Listening.

    async fn listen(self: Rc<Self>, mut listener: Box<dyn Listener>) {
        loop {
            let closed = self.gong.wait(|| self.is_closed.get().then_some(()));
            match select_biased(closed, listener.accept()).await {
                Either::Left(()) => return,
                Either::Right(Ok((arrival, address))) => {
                    // A crowd of strangers gets no answer, so that answering costs nothing.
                    if let Some(place) = Place::take(&self, address.ip()) {
                        let accepting = self.clone().accept(arrival, address, place);
                        self.env.tasks.spawn_local("link-accept", Box::pin(accepting));
                    }
                }
                Either::Right(Err(_)) => self.env.clock.sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn accept(self: Rc<Self>, arrival: Box<dyn Arrival>, address: SocketAddr, place: Place) {
        let Ok(stream) = arrival.attach() else { return };
        let mut wrapped = self.wrap(stream, Role::Acceptor);
        let ours = self.hello(Class::Raft);
        let handshake = Handshake::accept(ours, self.options.key.clone());
        let shaken = self.shake(&mut wrapped, handshake, Vec::new(), Role::Acceptor, address).await;
        drop(place);
        if let Ok((proven, rest)) = shaken {
            let conn = self.install(&proven, Role::Acceptor, address);
            self.run(conn, wrapped.stream, proven.salt, rest).await;
        }
    }

    fn wrap(&self, stream: Box<dyn Stream>, role: Role) -> Wrapped {
        match &self.options.wrap {
            Some(wrap) => wrap(stream, role),
            None => Wrapped { stream, check: None },
        }
    }

    // Dialling.

    /// Where to dial, `None` if the task's peer is not wanted any more.
    fn wanted(&self, engine: EngineId, generation: u64) -> Option<SocketAddr> {
        let state = self.state.borrow();
        let wanted = state.peers.get(&engine)?.wanted?;
        (wanted.generation == generation).then_some(wanted.address)
    }

    /// Keeps a connection to a peer, as long as it is wanted.
    async fn dial(self: Rc<Self>, engine: EngineId, class: Class, generation: u64) {
        let options = self.options.clone();
        let mut backoff = options.backoff_min;
        // Both sides are often told of each other at once; the one whose connection would not stay
        // lets the other begin.
        let mut pause = match options.engine > engine {
            true => self.jitter(backoff),
            false => Duration::ZERO,
        };
        loop {
            let has_conn = || self.conn(engine, class).is_some();
            let gone = || self.wanted(engine, generation).is_none().then_some(());
            if has_conn() {
                self.gong.wait(|| gone().or((!has_conn()).then_some(()))).await;
                backoff = options.backoff_min;
                pause = self.jitter(backoff);
            }
            if pause > Duration::ZERO {
                let sleep = self.env.clock.sleep(std::mem::take(&mut pause));
                select_biased(self.gong.wait(gone), sleep).await;
            }
            let Some(address) = self.wanted(engine, generation) else { return };
            if has_conn() {
                continue; // it came while this task slept
            }
            let began = self.env.clock.now();
            self.dial_once(engine, class, generation, address).await;
            // One that comes about and is lost at once is a failure too.
            if self.env.clock.now().since(began) > options.backoff_max + options.connect_timeout {
                backoff = options.backoff_min;
            }
            pause = self.jitter(backoff);
            backoff = (backoff * 2).min(options.backoff_max);
        }
    }

    /// Connects once, and runs the connection to its end if it comes about.
    async fn dial_once(
        self: &Rc<Self>,
        engine: EngineId,
        class: Class,
        generation: u64,
        address: SocketAddr,
    ) {
        let connecting = self.env.network.connect(address);
        let connected = timeout(&*self.env.clock, self.options.connect_timeout, connecting).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "it does not answer".to_owned(),
                };
                self.note(News::Unreachable(engine, address, why));
                return;
            }
        };
        let mut wrapped = self.wrap(stream, Role::Dialler);
        let (mut out, key) = (Vec::new(), self.options.key.clone());
        let handshake = Handshake::dial(self.hello(class), key, Some(engine), &mut out);
        match self.shake(&mut wrapped, handshake, out, Role::Dialler, address).await {
            Ok((proven, rest)) => {
                let conn = self.install(&proven, Role::Dialler, address);
                if self.wanted(engine, generation).is_none() {
                    self.detach(&conn, "this engine forgot the other one");
                    conn.close(Refusal::Leaving);
                }
                self.run(conn, wrapped.stream, proven.salt, rest).await;
            }
            Err(End::Lost(why)) => self.note(News::Unreachable(engine, address, why)),
            Err(_) => {} // told by the handshake
        }
    }

    /// Draws between a half of a time and all of it, so that engines that failed together do not try
    /// together.
    fn jitter(&self, time: Duration) -> Duration {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let drawn = self.state.borrow_mut().prng.range(nanos / 2..nanos.max(1));
        Duration::from_nanos(drawn)
    }
}

/// A place among the handshakes under way. One address gets a quarter of them at most, so that it
/// cannot keep everybody else out.
struct Place {
    shared: Rc<Shared>,
    ip: IpAddr,
}

impl Place {
    fn take(shared: &Rc<Shared>, ip: IpAddr) -> Option<Place> {
        let max = shared.options.handshakes_max;
        let handshakes = &mut shared.state.borrow_mut().handshakes;
        let all: usize = handshakes.values().sum();
        let of_this = handshakes.get(&ip).copied().unwrap_or_default();
        if all >= max || of_this >= max.div_ceil(4) {
            return None;
        }
        handshakes.insert(ip, of_this + 1);
        Some(Place { shared: shared.clone(), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let handshakes = &mut self.shared.state.borrow_mut().handshakes;
        match handshakes.get_mut(&self.ip) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = handshakes.remove(&self.ip),
        }
    }
}

fn peer_of(proven: &Proven, address: SocketAddr) -> Peer {
    Peer {
        engine: proven.hello.engine,
        cluster: proven.hello.cluster,
        incarnation: proven.hello.incarnation,
        address,
        version: proven.version,
    }
}
