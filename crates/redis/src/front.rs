//! The front end of a core: its clients' sessions over whoever has the keys.
//!
//! ```text
//!   bytes -> parse -> session command: here and now -----------------+
//!                  -> simple task: started, the next may follow ----+|
//!                  -> any other task: when everything before it is  ||
//!                     answered; nothing follows before its answer --+|
//!                                                                   vv
//!   bytes <- in the order of the requests <---- slots: [done][ ... ][done]
//! ```
//!
//! A client's replies leave in the order of its requests, whatever order they come in. Simple tasks
//! (all keys on one shard) run ahead of their replies: a pipeline keeps many shards busy. A task
//! that touches several shards waits for the client's earlier ones and holds back the later ones.
//!
//! The front end executes nothing itself but session commands; it neither waits nor spawns. Its
//! owner moves bytes, gives it replies as they come, and asks which clients can go on.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::{Clock, Instant};
use atoll_resp::{OwnedRequest, ProtocolError, ReplyWriter, Request, Span};

use crate::commands::{self, SessionCall, clients};
use crate::config::Config;
use crate::error::{self, CommandError};
use crate::executor::Progress;
use crate::layout::MAX_KEY;
use crate::server::{Executed, Identity, Server};
use crate::session::{ClientId, MAX_OUTPUT, Replies, Session};
use crate::shared::Shared;
use crate::slowlog::Shortened;
use crate::stats::Stats;
use crate::store::DATABASES;
use crate::table::{Class, Command, Id};
use crate::task::{
    Answer, Backend, Done, Encoded, Here, Item, Manner, Question, Started, Task, Watched,
};
use crate::unit::{Queue, Queued};

/// Memory of the buffer for replies that is kept.
const KEPT_REPLY: usize = 64 << 10;

/// Most requests of one client executed before others get their turn.
const TURN_COMMANDS: usize = 1024;
/// Bytes of replies after which a client's turn ends.
const TURN_OUTPUT: usize = 1 << 20;
/// Longest DEBUG SLEEP: it goes on when its client is gone.
const SLEEP_MAX: Duration = Duration::from_secs(600);
/// Most requests of one client without an answer.
const IN_FLIGHT_MAX: usize = 4096;

/// The replies of a client that wait for those before them.
#[derive(Default)]
pub(crate) struct Slots {
    waiting: VecDeque<Slot>,
    /// Nothing is executed before everything is answered.
    held: bool,
    /// The owner is to be told when the client can go on.
    stalled: bool,
}

struct Slot {
    /// Names the task. Those of a session's slots ascend.
    token: u64,
    reply: Option<Encoded>,
    then: Then,
    /// CLIENT REPLY said not to answer.
    mute: bool,
    began: Instant,
    /// The command, of a task.
    command: Option<&'static Command>,
    /// What the slow log shows of it.
    request: Option<OwnedRequest>,
}

/// What comes of a task: whose it is, its name, the outcome.
pub type Completed = (ClientId, u64, Done);

/// What a task's outcome means to the session.
enum Then {
    /// It is the reply.
    Reply,
    /// It belongs to EXEC.
    Exec(Vec<Part>),
    /// It is what WATCH remembers.
    Watch { db: usize, keys: Vec<Box<[u8]>> },
    /// A command that wants the counts can be executed now.
    Counted(OwnedRequest),
    /// What the other cores say about their clients.
    Told(Question),
}

/// A command of EXEC.
enum Part {
    /// Its reply is the next of the task's.
    Task,
    /// The session executes it.
    Session(Queued),
}

/// The sessions of one core.
pub struct Front<B: Backend> {
    server: Server,
    backend: B,
    next_token: u64,
    /// A buffer for replies that wait for those before them.
    reply: Vec<u8>,
    /// Clients that were held back and can go on.
    runnable: Vec<ClientId>,
}

impl<B: Backend> Front<B> {
    /// Starts without clients.
    pub fn new(
        backend: B,
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
        core: usize,
        identity: Identity,
    ) -> Front<B> {
        let server = Server::new(clock, shared, core, identity);
        Front { server, backend, next_token: 1, reply: Vec::new(), runnable: Vec::new() }
    }

    /// Gives clients identities that no other core of the server gives.
    pub fn number_clients(&mut self, first: ClientId, step: ClientId) {
        self.server.number_clients(first, step);
    }

    /// Returns the counters, to be read from anywhere.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.server.stats
    }

    /// Returns the configuration as it is now.
    pub fn config(&self) -> &Config {
        &self.server.config
    }

    /// Returns whether there are as many connections as there may be, on all cores together.
    pub fn is_full(&self) -> bool {
        self.server.shared.connected() >= self.server.config.maxclients as u64
    }

    /// Returns whoever has the keys.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Admits a client.
    pub fn connect(&mut self, peer: SocketAddr, local: SocketAddr) -> ClientId {
        // Whether it has to authenticate is another core's word too.
        self.server.look();
        self.server.connect(peer, local)
    }

    /// Forgets a client. What it has started goes on; nobody hears of it.
    pub fn disconnect(&mut self, id: ClientId) {
        self.server.disconnect(id);
    }

    /// Returns whether the client has proved who it is, or need not.
    pub fn is_authenticated(&self, id: ClientId) -> bool {
        self.server.sessions.get(&id).is_some_and(|session| session.authenticated)
    }

    /// Takes bytes a client sent; `bytes` is empty afterwards and may have got another memory.
    pub fn feed(&mut self, id: ClientId, bytes: &mut Vec<u8>) {
        let Some(session) = self.server.sessions.get_mut(&id) else { return bytes.clear() };
        self.server.stats.input_bytes.add(bytes.len() as u64);
        if session.input.is_empty() {
            std::mem::swap(&mut session.input, bytes);
        } else {
            session.input.append(bytes);
        }
    }

    /// Moves the clock to the present, before requests are executed.
    pub fn begin_turn(&mut self) {
        self.server.now_ms = self.server.clock.wall().0;
        self.server.tick = self.server.clock.now();
        self.server.stats.turns.add(1);
        self.server.look();
        let over = self.server.pause.is_some_and(|pause| pause.until <= self.server.tick);
        if over {
            self.server.pause = None;
        }
        self.backend.refresh();
    }

    /// Answers what another core's client asks about the clients of this one.
    pub fn answer_question(&mut self, question: &Question) -> Answer {
        self.server.tick = self.server.clock.now();
        if *question == Question::Resume {
            self.resume();
        }
        self.server.answer(question, None)
    }

    /// Returns when clients that are held back by CLIENT PAUSE go on, if there are some.
    pub fn paused_until(&self) -> Option<Instant> {
        let mut sessions = self.server.sessions.values();
        let pause = self.server.pause?;
        sessions.any(|session| session.paused).then_some(pause.until)
    }

    /// Lets clients go on that CLIENT PAUSE held back; they wait again if it is not over.
    pub fn resume(&mut self) {
        self.server.look();
        for session in self.server.sessions.values_mut().filter(|session| session.paused) {
            session.paused = false;
            if session.slots.waiting.is_empty() {
                session.slots.held = false;
                session.slots.stalled = false;
                self.runnable.push(session.id);
            }
        }
    }

    /// Notes how much memory stores and clients hold; once a second.
    pub fn note_memory(&mut self, store_bytes: u64) {
        let sessions = self.server.sessions.values();
        let buffers = sessions.map(|session| session.input.capacity() + session.output.capacity());
        self.server.stats.client_bytes.set(buffers.sum::<usize>() as u64);
        self.server.stats.store_bytes.set(store_bytes);
    }

    /// Executes the client's requests that have arrived, as far as they may go now.
    pub fn execute(&mut self, id: ClientId) -> Progress {
        let Some(mut session) = self.server.sessions.remove(&id) else { return Progress::Closing };
        let input = std::mem::take(&mut session.input);
        let mut consumed = std::mem::take(&mut session.consumed);
        let mut parser = std::mem::take(&mut session.parser);
        let mut executed = 0;
        session.active = self.server.tick;
        let progress = loop {
            if session.closing {
                let waits = !session.slots.waiting.is_empty();
                break if waits { Progress::Waiting } else { Progress::Closing };
            }
            if session.slots.held || session.slots.waiting.len() >= IN_FLIGHT_MAX {
                break Progress::Waiting;
            }
            if executed == TURN_COMMANDS || session.output.len() >= TURN_OUTPUT {
                break Progress::More;
            }
            let unread = &input[consumed..];
            match parser.parse(unread, session.limits()) {
                Ok(None) => break Progress::Idle { partial: unread.len(), executed },
                Ok(Some(len)) => {
                    let request = parser.request(&unread[..len]);
                    if !request.is_empty() && !self.request(&mut session, request) {
                        // It waits for everything before it.
                        session.slots.held = true;
                        break Progress::Waiting;
                    }
                    executed += 1;
                    consumed += len;
                }
                Err(error) => self.refuse(&mut session, &error),
            }
        };
        session.slots.stalled |= progress == Progress::Waiting;
        session.parser = parser;
        session.input = input;
        session.consumed = consumed;
        session.trim_input();
        self.server.sessions.insert(id, session);
        progress
    }

    /// Appends the client's replies that may leave to `output`; returns whether the connection
    /// closes then.
    pub fn take_output(&mut self, id: ClientId, output: &mut Vec<u8>) -> bool {
        let Some(session) = self.server.sessions.get_mut(&id) else { return true };
        self.server.stats.output_bytes.add(session.output.len() as u64);
        if output.is_empty() {
            std::mem::swap(output, &mut session.output);
        } else {
            output.append(&mut session.output);
        }
        session.closing && session.slots.waiting.is_empty()
    }

    /// Returns the clients closed by CLIENT KILL since the last call.
    pub fn take_killed(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.server.killed)
    }

    /// Returns the clients that were held back and can go on, since the last call.
    pub fn take_runnable(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.runnable)
    }

    /// Takes the outcomes of tasks; adds their clients, whose output may have grown, to `touched`.
    pub fn complete(&mut self, outcomes: &mut Vec<Completed>, touched: &mut Vec<ClientId>) {
        let now = self.server.clock.now();
        let mut outcomes = outcomes.drain(..).peekable();
        while let Some((id, token, done)) = outcomes.next() {
            let Some(mut session) = self.server.sessions.remove(&id) else { continue };
            self.settle(&mut session, token, done, now);
            while let Some((_, token, done)) = outcomes.next_if(|(of, ..)| *of == id) {
                self.settle(&mut session, token, done, now);
            }
            self.go_on(&mut session);
            self.server.sessions.insert(id, session);
            touched.push(id);
        }
    }

    /// Takes the outcome of a session's task, and moves replies that have nothing to wait for any more
    /// into the output.
    fn settle(&mut self, session: &mut Session, token: u64, done: Done, now: Instant) {
        let found = session.slots.waiting.binary_search_by_key(&token, |slot| slot.token);
        let Ok(at) = found else { return };
        let reply = match (&session.slots.waiting[at].then, done) {
            (Then::Reply, Done::One(reply)) => reply,
            (_, done) => {
                let then = std::mem::replace(&mut session.slots.waiting[at].then, Then::Reply);
                self.translate(session, then, done).into()
            }
        };
        let slot = &mut session.slots.waiting[at];
        let (command, began, request) = (slot.command, slot.began, slot.request.take());
        slot.reply = Some(reply);
        if let Some(command) = command {
            let reply = session.slots.waiting[at].reply.as_deref().unwrap_or(&[]);
            let args = || {
                let request = request.as_ref().map(OwnedRequest::as_request);
                request.map(|request| Server::shorten(command, &request)).unwrap_or_default()
            };
            self.account(session, command, now.since(began), reply, args);
        }
        while session.slots.waiting.front().is_some_and(|slot| slot.reply.is_some()) {
            let Some(slot) = session.slots.waiting.pop_front() else { break };
            if !slot.mute {
                session.output.extend_from_slice(slot.reply.as_deref().unwrap_or(&[]));
            }
        }
    }

    /// Looks whether a session whose replies have come can go on.
    fn go_on(&mut self, session: &mut Session) {
        self.bound_output(session);
        let slots = &mut session.slots;
        if slots.waiting.is_empty() {
            slots.held = false;
        }
        if slots.stalled && !slots.held && slots.waiting.len() <= IN_FLIGHT_MAX / 2 {
            slots.stalled = false;
            self.runnable.push(session.id);
        }
    }

    /// Returns whether replies are owed to a client; the owner is told when that changes.
    pub fn owes(&mut self, id: ClientId) -> bool {
        let Some(session) = self.server.sessions.get_mut(&id) else { return false };
        let owes = !session.slots.waiting.is_empty();
        session.slots.stalled |= owes;
        session.slots.held |= owes;
        owes
    }

    fn bound_output(&mut self, session: &mut Session) {
        if session.output.len() > MAX_OUTPUT {
            // Nobody reads that much: the replies so far are dropped with the connection.
            session.closing = true;
            session.output = Vec::new();
            // Without them, later ones would be taken for theirs.
            session.slots.waiting.clear();
        }
    }

    /// Returns for how long the command took that is executed now and at once.
    fn took(&self) -> Duration {
        self.server.clock.now().since(self.server.tick)
    }

    /// Counts an executed command.
    fn account(
        &mut self,
        session: &Session,
        command: &'static Command,
        took: Duration,
        reply: &[u8],
        args: impl FnOnce() -> Shortened,
    ) {
        let error = match reply {
            [b'-', text @ ..] => Some(text.strip_suffix(b"\r\n").unwrap_or(text)),
            _ => None,
        };
        self.server.account(session, &Executed { command, took, error }, args);
        if let Some(text) = error {
            self.server.count_error(text);
        }
    }

    // ---- requests ----

    /// Executes a request or starts it; `false` if it has to wait for those before it.
    fn request(&mut self, session: &mut Session, request: Request<'_>) -> bool {
        let command = match self.server.admit(session, &request) {
            Ok(command) => command,
            Err(error) => {
                self.advance_replies(session);
                self.reject(session, &request, &error);
                self.end_replies(session);
                return true;
            }
        };
        if self.server.pause.is_some() && self.server.is_paused(session, command) {
            session.paused = true;
            return false;
        }
        let queues = session.queue.is_some()
            && !matches!(
                command.id,
                Id::Exec | Id::Discard | Id::Multi | Id::Quit | Id::Reset | Id::Watch
            );
        if queues {
            self.advance_replies(session);
            self.queue(session, command, &request);
            self.end_replies(session);
            return true;
        }
        match command.id {
            Id::Exec => self.exec(session, command),
            Id::Watch => self.watch(session, command, &request),
            Id::Info if commands::info::shows(&request, "keyspace") => {
                self.start_counted(session, command, &request)
            }
            Id::MemoryStats => self.start_counted(session, command, &request),
            Id::ClientList | Id::ClientKill | Id::ClientUnpause => {
                self.ask_all(session, command, &request)
            }
            Id::Debug if is_sleep(&request) => {
                let task = Task::Sleep(sleep_time(&request));
                self.start_in_order(session, command, &request, task, Then::Reply)
            }
            _ => match command.class {
                Class::Session => {
                    self.session_command(session, command, request);
                    true
                }
                Class::Data if self.start_here(session, command, &request) => true,
                Class::Data | Class::Keyspace => {
                    let item = Item { command, request: request.to_owned(), db: session.db };
                    let task = Task::One(item);
                    self.start_in_order(session, command, &request, task, Then::Reply)
                }
            },
        }
    }

    /// Starts a command that wants to know the counts of all databases.
    fn start_counted(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: &Request<'_>,
    ) -> bool {
        let then = Then::Counted(request.to_owned());
        self.start(session, command, request, Task::Counts, then);
        true
    }

    /// Starts a command about the clients of all cores.
    fn ask_all(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: &Request<'_>,
    ) -> bool {
        match clients::question(command, request, session.id) {
            Ok(Some(question)) => {
                if question == Question::Resume {
                    self.server.unpause();
                    self.resume();
                }
                let task = Task::Ask(question.clone());
                self.start(session, command, request, task, Then::Told(question));
            }
            // The command says itself what is wrong with it.
            Ok(None) | Err(_) => self.session_command(session, command, *request),
        }
        true
    }

    /// Returns what the session has chosen for its commands.
    fn manner(&self, session: &Session) -> Manner {
        Manner {
            protocol: session.protocol,
            touch: !session.no_touch,
            durability: session.durability.unwrap_or(self.server.config.durability),
            consistency: session.consistency,
        }
    }

    fn draw_token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// Starts a command of one shard where it lies; `false` if it is none.
    fn start_here(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: &Request<'_>,
    ) -> bool {
        let here = Here { command, request: *request, db: session.db };
        let (manner, token) = (self.manner(session), self.draw_token());
        // Nothing is before it, mostly: then its reply goes where it belongs.
        let leaves = session.slots.waiting.is_empty() && session.replies == Replies::On;
        let started = if leaves {
            let start = session.output.len();
            let output = &mut session.output;
            let started = self.backend.start_here(here, manner, session.id, token, output);
            if matches!(started, Started::Answered) {
                session.command = command.name;
                let output = std::mem::take(&mut session.output);
                let args = || Server::shorten(command, request);
                self.account(session, command, self.took(), &output[start..], args);
                session.output = output;
                self.bound_output(session);
                return true;
            }
            started
        } else {
            let mut reply = std::mem::take(&mut self.reply);
            reply.clear();
            let started = self.backend.start_here(here, manner, session.id, token, &mut reply);
            self.reply = reply;
            started
        };
        if matches!(started, Started::Spread) {
            return false;
        }
        self.advance_replies(session);
        session.command = command.name;
        let then = Then::Reply;
        match started {
            Started::Spread => {}
            Started::Answered => {
                let reply = match self.reply.len() {
                    ..=KEPT_REPLY => Encoded::copy(&self.reply),
                    _ => std::mem::take(&mut self.reply).into(),
                };
                self.done_at_once(session, command, request, token, then, Done::One(reply));
            }
            Started::Done(done) => {
                self.done_at_once(session, command, request, token, then, done);
            }
            Started::Waits(copy) => {
                let kept = self.server.keeps_slow().then_some(copy);
                self.wait(session, command, kept, token, then);
            }
        }
        if self.reply.capacity() > KEPT_REPLY {
            self.reply = Vec::new();
        }
        self.end_replies(session);
        true
    }

    /// Starts a task unless it has to wait for the session's earlier ones.
    fn start_in_order(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: &Request<'_>,
        task: Task,
        then: Then,
    ) -> bool {
        let simple = self.backend.is_simple(&task);
        if !simple && !session.slots.waiting.is_empty() {
            return false;
        }
        self.start(session, command, request, task, then);
        session.slots.held |= !simple && !session.slots.waiting.is_empty();
        true
    }

    fn start(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: &Request<'_>,
        task: Task,
        then: Then,
    ) {
        self.advance_replies(session);
        session.command = command.name;
        let (manner, token) = (self.manner(session), self.draw_token());
        // What the slow log may want to show is shared with the task that has it already.
        let kept = self.server.keeps_slow().then(|| match &task {
            Task::One(item) => item.request.clone(),
            _ => request.to_owned(),
        });
        match self.backend.start(task, manner, session.id, token) {
            Some(done) => self.done_at_once(session, command, request, token, then, done),
            None => self.wait(session, command, kept, token, then),
        }
        self.end_replies(session);
    }

    /// Returns whether the command under way is not answered.
    fn is_mute(session: &Session) -> bool {
        session.replies != Replies::On && session.replies != Replies::SkipNext
    }

    /// Takes what came at once of a task.
    fn done_at_once(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: &Request<'_>,
        token: u64,
        then: Then,
        done: Done,
    ) {
        let reply = match (then, done) {
            (Then::Reply, Done::One(reply)) => reply,
            (then, done) => self.translate(session, then, done).into(),
        };
        let args = || Server::shorten(command, request);
        self.account(session, command, self.took(), &reply, args);
        if !Self::is_mute(session) {
            self.answer(session, token, reply);
        }
    }

    /// Notes a task that was started, with what the slow log may have to show of it.
    fn wait(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: Option<OwnedRequest>,
        token: u64,
        then: Then,
    ) {
        let (began, mute) = (self.server.tick, Self::is_mute(session));
        let slot = Slot { token, reply: None, then, mute, began, command: Some(command), request };
        session.slots.waiting.push_back(slot);
    }

    /// Puts a reply behind those before it.
    fn answer(&mut self, session: &mut Session, token: u64, reply: Encoded) {
        if session.slots.waiting.is_empty() {
            session.output.extend_from_slice(&reply);
            self.bound_output(session);
        } else {
            let (began, then, mute) = (self.server.tick, Then::Reply, false);
            let (reply, command, request) = (Some(reply), None, None);
            let slot = Slot { token, reply, then, mute, began, command, request };
            session.slots.waiting.push_back(slot);
        }
    }

    /// Executes a session command; its reply takes its place in the order.
    fn session_command(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: Request<'_>,
    ) {
        self.advance_replies(session);
        let token = self.draw_token();
        let reply = self.run_session_command(session, command, request);
        let args = || Server::shorten(command, &request);
        self.account(session, command, self.took(), &reply, args);
        if !Self::is_mute(session) {
            self.answer(session, token, reply.into());
        }
        self.end_replies(session);
    }

    /// Executes a session command and returns its reply.
    fn run_session_command(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: Request<'_>,
    ) -> Vec<u8> {
        let earlier = std::mem::take(&mut session.output);
        session.command = command.name;
        if matches!(command.id, Id::Reset | Id::Unwatch)
            || (command.id == Id::Discard && session.queue.is_some())
        {
            session.watched.clear();
        }
        let call = SessionCall { server: &mut self.server, session, request, command };
        if let Err(error) = call.run() {
            session.output.clear();
            session.reply().error(&error.0);
        }
        if command.id == Id::Debug {
            self.backend.set_active_expire(self.server.active_expire);
        }
        std::mem::replace(&mut session.output, earlier)
    }

    /// CLIENT REPLY SKIP concerns the command that follows it.
    fn advance_replies(&self, session: &mut Session) {
        if session.replies == Replies::SkipNext {
            session.replies = Replies::Skip;
        }
    }

    fn end_replies(&self, session: &mut Session) {
        if session.replies == Replies::Skip {
            session.replies = Replies::On;
        }
    }

    /// Answers a request that is not executed, and lets the EXEC it belongs to know.
    fn reject(&mut self, session: &mut Session, request: &Request<'_>, error: &CommandError) {
        let mut text = error.0.to_vec();
        if request.get(0).is_some_and(|name| name.eq_ignore_ascii_case(b"exec")) {
            session.queue = None;
            session.watched.clear();
            let why = error.0.strip_prefix(b"ERR ").unwrap_or(&error.0);
            let before = b"EXECABORT Transaction discarded because of: ";
            text = error::quoting(&[before, why]).0.to_vec();
        } else if let Some(queue) = &mut session.queue {
            queue.failed = true;
        }
        self.answer_error(session, &text);
    }

    fn answer_error(&mut self, session: &mut Session, text: &[u8]) {
        self.server.count_error(text);
        if Self::is_mute(session) {
            return;
        }
        let mut reply = Vec::with_capacity(text.len() + 3);
        ReplyWriter::new(&mut reply, session.protocol).error(text);
        let token = self.draw_token();
        self.answer(session, token, reply.into());
    }

    /// Queues a command between MULTI and EXEC.
    fn queue(&mut self, session: &mut Session, command: &'static Command, request: &Request<'_>) {
        let Some(queue) = &mut session.queue else { return };
        if queue.push(command, request.to_owned()) {
            let mut reply = Vec::new();
            ReplyWriter::new(&mut reply, session.protocol).simple("QUEUED");
            if session.replies == Replies::On {
                let token = self.draw_token();
                self.answer(session, token, reply.into());
            }
        } else {
            queue.failed = true;
            self.answer_error(session, &error::QUEUE_FULL.0);
        }
    }

    /// Starts the commands queued for EXEC.
    fn exec(&mut self, session: &mut Session, command: &'static Command) -> bool {
        let Some(queue) = &session.queue else {
            self.advance_replies(session);
            self.answer_error(session, b"ERR EXEC without MULTI");
            self.end_replies(session);
            return true;
        };
        let crosses = self.server.refuses_unit(session);
        if queue.failed || crosses {
            let error = if crosses { error::CROSS_SLOT } else { error::EXEC_ABORT };
            session.queue = None;
            session.watched.clear();
            self.advance_replies(session);
            self.answer_error(session, &error.0);
            self.end_replies(session);
            return true;
        }
        if !session.slots.waiting.is_empty() {
            return false;
        }
        let Some(Queue { commands, .. }) = session.queue.take() else { return true };
        let watched: Vec<Watched> = std::mem::take(&mut session.watched);
        let mut items = Vec::new();
        let mut parts = Vec::with_capacity(commands.len());
        let mut db = session.db;
        for queued in commands {
            let Queued { command, request } = queued;
            if command.class == Class::Session {
                if command.id == Id::Select
                    && let Some(number) = request.as_request().get(1)
                    && let Some(number) = atoll_resp::number::parse_i64(number)
                    && let Ok(number) = usize::try_from(number)
                    && number < DATABASES
                {
                    // What follows is on this database, whenever the session hears of it.
                    db = number;
                }
                parts.push(Part::Session(Queued { command, request }));
            } else {
                parts.push(Part::Task);
                items.push(Item { command, request, db });
            }
        }
        let task = Task::Unit { items, watched };
        self.start_in_order(session, command, &exec_request(), task, Then::Exec(parts))
    }

    /// Starts to watch keys.
    fn watch(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: &Request<'_>,
    ) -> bool {
        let refusal = if session.queue.is_some() {
            Some(error::fixed("ERR WATCH inside MULTI is not allowed"))
        } else {
            let long = request.tail(1).find(|key| key.len() > MAX_KEY);
            long.map(|key| error::key_too_long(key.len()))
        };
        if let Some(refusal) = refusal {
            self.advance_replies(session);
            self.answer_error(session, &refusal.0);
            self.end_replies(session);
            return true;
        }
        if !session.slots.waiting.is_empty() {
            return false;
        }
        let db = session.db;
        let known = |key: &[u8]| session.watched.iter().any(|w| w.db == db && *w.key == *key);
        let keys: Vec<Box<[u8]>> =
            request.tail(1).filter(|key| !known(key)).map(Box::from).collect();
        let task = Task::Versions { db, keys: keys.clone() };
        self.start(session, command, request, task, Then::Watch { db, keys });
        // What follows may depend on it.
        session.slots.held |= !session.slots.waiting.is_empty();
        true
    }

    /// Makes the reply of a task's outcome.
    fn translate(&mut self, session: &mut Session, then: Then, done: Done) -> Vec<u8> {
        let mut reply = Vec::new();
        match (then, done) {
            (_, Done::Failed(error)) => error,
            (Then::Reply, Done::One(reply)) => reply.into_vec(),
            (Then::Exec(_), Done::Unit(None)) => {
                ReplyWriter::new(&mut reply, session.protocol).null_array();
                reply
            }
            (Then::Exec(parts), Done::Unit(Some(replies))) => {
                let mut replies = replies.into_iter();
                // A HELLO among them changes the protocol of what follows it.
                ReplyWriter::new(&mut reply, session.protocol).array(parts.len());
                for part in parts {
                    match part {
                        Part::Task => {
                            reply.extend_from_slice(&replies.next().unwrap_or_default());
                        }
                        Part::Session(Queued { command, request }) => {
                            let request = request.as_request();
                            let one = self.run_session_command(session, command, request);
                            reply.extend_from_slice(&one);
                        }
                    }
                }
                reply
            }
            (Then::Watch { db, keys }, Done::Versions(versions)) => {
                for (key, version) in keys.into_iter().zip(versions) {
                    session.watched.push(Watched { db, key, version });
                }
                ReplyWriter::new(&mut reply, session.protocol).ok();
                reply
            }
            (Then::Reply, Done::Slept) => {
                ReplyWriter::new(&mut reply, session.protocol).ok();
                reply
            }
            (Then::Told(question), Done::Answers(mut answers)) => {
                answers.push(self.server.answer(&question, Some(session)));
                let mut writer = ReplyWriter::new(&mut reply, session.protocol);
                clients::tell(&question, answers, &mut writer);
                reply
            }
            (Then::Counted(request), Done::Counts(counts)) => {
                self.server.counts.counts = *counts;
                let request = request.as_request();
                let command = match self.server.admit(session, &request) {
                    Ok(command) => command,
                    Err(error) => {
                        ReplyWriter::new(&mut reply, session.protocol).error(&error.0);
                        return reply;
                    }
                };
                self.run_session_command(session, command, request)
            }
            _ => {
                ReplyWriter::new(&mut reply, session.protocol).error(&error::MISROUTED.0);
                reply
            }
        }
    }

    /// Answers broken framing; the connection cannot go on after it.
    fn refuse(&mut self, session: &mut Session, error: &ProtocolError) {
        let text = format!("ERR {error}");
        self.answer_error(session, text.as_bytes());
        session.closing = true;
    }
}

fn is_sleep(request: &Request<'_>) -> bool {
    request.len() == 3 && request.get(1).is_some_and(|word| word.eq_ignore_ascii_case(b"sleep"))
}

/// Returns the time of DEBUG SLEEP; what is no number is none, as for the `strtod` of Redis.
fn sleep_time(request: &Request<'_>) -> Duration {
    let text = request.get(2).and_then(|text| std::str::from_utf8(text).ok());
    let seconds = text.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    Duration::try_from_secs_f64(seconds).unwrap_or_default().min(SLEEP_MAX)
}

/// Returns what the slow log shows of a transaction.
fn exec_request() -> Request<'static> {
    const EXEC: &[u8] = b"EXEC";
    const SPANS: &[Span] = &[Span { start: 0, end: EXEC.len() as u32 }];
    Request::new(EXEC, SPANS)
}
