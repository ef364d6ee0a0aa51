//! The executor: all clients' commands, one after the other, a turn at a time.
//!
//! ```text
//!   begin_turn      the clock is read
//!   execute(a)      as many of a's commands as fit the turn; replies stay in a's output
//!   execute(b)      ...
//!   commit          one batch, one sync; or every dependent reply becomes an error
//!   take_output(a)  the replies leave
//! ```
//!
//! The owner (a core of the server, a test, the simulator) drives these five and owns sockets and
//! scheduling. One turn takes a bounded number of commands and bytes from each client, so that a
//! long pipeline does not hold up the others, and stages a bounded number of bytes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use atoll_env::Clock;
use atoll_resp::ProtocolError;
pub use atoll_resp::Request;

use crate::commands::{self, SessionCall};
use crate::config::Config;
use crate::data::{self, DataCall};
use crate::error::{self, CommandError, Outcome};
use crate::keyspace;
use crate::layout::MAX_KEY;
use crate::server::{Executed, Identity, Server};
use crate::session::{ClientId, MAX_OUTPUT, Replies, Session};
use crate::shared::Shared;
use crate::stats::Stats;
use crate::store::{DATABASES, Durability, Store, StoreError};
use crate::table::{Class, Command, Id};
use crate::task::Watched;
use crate::turn::Turn;
use crate::tx::{Keyspaces, Tx};
use crate::unit::{Queue, Queued, Unit};

/// Most commands of one client in a turn.
const TURN_COMMANDS: usize = 1024;
/// Bytes of replies after which a client's turn ends.
const TURN_OUTPUT: usize = 1 << 20;
/// Bytes of staged writes after which a turn takes no further command.
const TURN_WRITES: usize = 8 << 20;

/// How far a client's input was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything complete is executed.
    Idle {
        /// Bytes of a request that has begun and not ended.
        partial: usize,
        /// Requests executed by this call.
        executed: usize,
    },
    /// The client's share of the turn is used up; complete commands may be left.
    More,
    /// Replies are owed before it goes on; only a front end answers this.
    Waiting,
    /// The connection closes once its output is sent.
    Closing,
}

/// How a turn's commit went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Nothing was written.
    Nothing,
    /// The writes are as durable as the mode says.
    Done,
    /// The writes are refused and every dependent reply is an error now.
    Failed(StoreError),
}

/// Executes commands over a store.
pub struct Executor<S: Store> {
    server: Server,
    turn: Turn<S>,
    /// The strongest mode promised to a write of the turn.
    durability: Durability,
    /// The replies that depend on the turn's commit.
    dependents: Vec<Dependent>,
}

/// A reply in a client's output that must not leave if the commit fails.
struct Dependent {
    client: ClientId,
    start: usize,
    end: usize,
}

impl<S: Store> Executor<S> {
    /// Starts without clients.
    pub fn new(store: S, clock: Arc<dyn Clock>, config: Config, identity: Identity) -> Executor<S> {
        let seed = identity.run_id;
        let shared = Shared::new(config, seed, 1);
        let server = Server::new(clock, shared, 0, identity);
        let turn = Turn::new(store, server.stats.clone(), seed, server.now_ms);
        Executor { server, turn, durability: Durability::Buffered, dependents: Vec::new() }
    }

    /// Returns the counters, to be read from anywhere.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.server.stats
    }

    /// Returns the configuration as it is now.
    pub fn config(&self) -> &Config {
        &self.server.config
    }

    /// Returns the store.
    pub fn store(&self) -> &S {
        &self.turn.store
    }

    /// Admits a client.
    pub fn connect(&mut self, peer: SocketAddr, local: SocketAddr) -> ClientId {
        self.server.connect(peer, local)
    }

    /// Forgets a client.
    pub fn disconnect(&mut self, id: ClientId) {
        if let Some(mut session) = self.server.disconnect(id) {
            self.unwatch(&mut session);
        }
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

    /// Starts a turn.
    pub fn begin_turn(&mut self) {
        self.server.now_ms = self.server.clock.wall().0;
        self.server.tick = self.server.clock.now();
        self.turn.now_ms = self.server.now_ms;
        self.durability = Durability::Buffered;
        self.server.stats.turns.add(1);
        self.server.look();
    }

    /// Returns whether the turn has staged as much as a turn may.
    pub fn is_full(&self) -> bool {
        self.turn.writes.bytes() >= TURN_WRITES
    }

    /// Executes the client's commands that have arrived, up to its share of the turn.
    pub async fn execute(&mut self, id: ClientId) -> Progress {
        let Some(mut session) = self.server.sessions.remove(&id) else { return Progress::Closing };
        let input = std::mem::take(&mut session.input);
        let mut consumed = std::mem::take(&mut session.consumed);
        let mut parser = std::mem::take(&mut session.parser);
        let mut commands = 0;
        session.active = self.server.tick;
        let progress = loop {
            if session.closing {
                break Progress::Closing;
            }
            let share_used = commands == TURN_COMMANDS || session.output.len() >= TURN_OUTPUT;
            if share_used || self.is_full() {
                break Progress::More;
            }
            let unread = &input[consumed..];
            match parser.parse(unread, session.limits()) {
                Ok(None) => {
                    break Progress::Idle { partial: unread.len(), executed: commands };
                }
                Ok(Some(len)) => {
                    let request = parser.request(&unread[..len]);
                    if self.needs_a_turn_of_its_own(&session, &request, len) {
                        break Progress::More;
                    }
                    if !request.is_empty() {
                        self.request(&mut session, request).await;
                        commands += 1;
                    }
                    consumed += len;
                }
                Err(error) => self.refuse(&mut session, error),
            }
        };
        session.parser = parser;
        session.input = input;
        session.consumed = consumed;
        session.trim_input();
        self.server.sessions.insert(id, session);
        progress
    }

    /// Commits the turn's writes. Afterwards each client's output may leave.
    pub async fn commit(&mut self) -> Commit {
        if self.turn.writes.is_empty() {
            self.dependents.clear();
            self.turn.finish(true);
            return Commit::Nothing;
        }
        let Server { clock, stats, .. } = &self.server;
        let started = clock.now();
        let result = self.turn.store.commit(&self.turn.writes, self.durability).await;
        stats.commits.record(clock.now().since(started));
        self.turn.finish(result.is_ok());
        let commit = match result {
            Ok(()) => Commit::Done,
            Err(error) => {
                stats.commits_failed.add(1);
                self.replace_dependents(&error);
                Commit::Failed(error)
            }
        };
        self.dependents.clear();
        commit
    }

    /// Appends the client's replies to `output`; returns whether the connection closes then.
    /// Only between a commit and the next [`Self::begin_turn`].
    pub fn take_output(&mut self, id: ClientId, output: &mut Vec<u8>) -> bool {
        let Some(session) = self.server.sessions.get_mut(&id) else { return true };
        self.server.stats.output_bytes.add(session.output.len() as u64);
        if output.is_empty() {
            std::mem::swap(output, &mut session.output);
        } else {
            output.append(&mut session.output);
        }
        session.closing
    }

    /// Returns the clients closed by CLIENT KILL since the last call.
    pub fn take_killed(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.server.killed)
    }

    async fn request(&mut self, session: &mut Session, request: Request<'_>) {
        let start = session.output.len();
        self.turn.dependent = false;
        if session.replies == Replies::SkipNext {
            session.replies = Replies::Skip;
        }
        match self.server.admit(session, &request) {
            Err(error) => self.reject(session, &request, &error),
            Ok(command) => match command.id {
                Id::Exec => self.exec(session, command).await,
                Id::Discard | Id::Multi | Id::Quit | Id::Reset | Id::Watch => {
                    self.call(session, command, request).await
                }
                _ if session.queue.is_some() => self.queue(session, command, &request),
                _ => self.call(session, command, request).await,
            },
        }
        match session.replies {
            Replies::On | Replies::SkipNext => {}
            Replies::Off => session.output.truncate(start),
            Replies::Skip => {
                session.output.truncate(start);
                session.replies = Replies::On;
            }
        }
        if self.turn.dependent {
            let promised = session.durability.unwrap_or(self.server.config.durability);
            self.durability = self.durability.min(promised);
        }
        if session.output.len() > MAX_OUTPUT {
            // Nobody reads that much: the replies so far are dropped with the connection.
            session.closing = true;
            session.output = Vec::new();
        } else if self.turn.dependent && session.output.len() > start {
            let end = session.output.len();
            self.dependents.push(Dependent { client: session.id, start, end });
        }
    }

    /// Answers a request that is not executed, and lets the EXEC it belongs to know.
    fn reject(&mut self, session: &mut Session, request: &Request<'_>, error: &CommandError) {
        let start = session.output.len();
        if request.get(0).is_some_and(|name| name.eq_ignore_ascii_case(b"exec")) {
            session.queue = None;
            self.unwatch(session);
            let why = error.0.strip_prefix(b"ERR ").unwrap_or(&error.0);
            let before = b"EXECABORT Transaction discarded because of: ";
            return self.server.fail(session, start, &error::quoting(&[before, why]));
        }
        if let Some(queue) = &mut session.queue {
            queue.failed = true;
        }
        self.server.fail(session, start, error);
    }

    /// Returns whether a request may stage so much that others should not fail with it.
    fn needs_a_turn_of_its_own(
        &self,
        session: &Session,
        request: &Request<'_>,
        len: usize,
    ) -> bool {
        let queued = session.queue.as_ref().map_or(0, |queue| queue.bytes);
        let is_exec = || request.get(0).is_some_and(|name| name.eq_ignore_ascii_case(b"exec"));
        let is_large = len > TURN_WRITES || (queued > TURN_WRITES && is_exec());
        is_large && !self.turn.writes.is_empty()
    }

    /// Queues a command between MULTI and EXEC.
    fn queue(&mut self, session: &mut Session, command: &'static Command, request: &Request<'_>) {
        let start = session.output.len();
        let Some(queue) = &mut session.queue else { return };
        if queue.push(command, request.to_owned()) {
            session.reply().simple("QUEUED");
        } else {
            queue.failed = true;
            self.server.fail(session, start, &error::QUEUE_FULL);
        }
    }

    /// Executes EXEC and the commands queued for it.
    async fn exec(&mut self, session: &mut Session, command: &'static Command) {
        let start = session.output.len();
        let began = self.server.tick;
        session.command = command.name;
        let outcome = self.exec_unit(session).await;
        let now = self.server.clock.now();
        let error = outcome.as_ref().err().map(CommandError::text);
        let executed = Executed { command, took: now.since(began), error };
        self.server.account(session, &executed, || vec![b"EXEC"[..].into()]);
        if let Err(error) = &outcome {
            self.server.fail(session, start, error);
        }
        self.server.tick = now;
    }

    async fn exec_unit(&mut self, session: &mut Session) -> Outcome {
        let crosses = self.server.refuses_unit(session);
        let Some(Queue { commands, failed, .. }) = session.queue.take() else {
            return Err(error::fixed("ERR EXEC without MULTI"));
        };
        let unit = Unit { commands, watched: std::mem::take(&mut session.watched) };
        let unchanged = self.is_unchanged(&unit.watched).await;
        for Watched { db, key, .. } in &unit.watched {
            self.turn.watches.remove(*db, key);
        }
        if crosses {
            return Err(error::CROSS_SLOT);
        }
        if failed {
            return Err(error::EXEC_ABORT);
        }
        if !unchanged.map_err(|error| error::unreadable(&error))? {
            session.reply().null_array();
            return Ok(());
        }
        session.reply().array(unit.commands.len());
        for Queued { command, request } in &unit.commands {
            self.call(session, command, request.as_request()).await;
            if session.output.len() > MAX_OUTPUT {
                // The client is lost; the unit is executed to its end all the same.
                session.closing = true;
                session.output = Vec::new();
            }
        }
        Ok(())
    }

    /// Returns whether no watched key has changed.
    async fn is_unchanged(&mut self, watched: &[Watched]) -> Result<bool, StoreError> {
        for Watched { db, key, version } in watched {
            if self.turn.version(*db, key).await? != *version {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Starts to watch keys.
    async fn watch(&mut self, session: &mut Session, request: &Request<'_>) -> Outcome {
        if session.queue.is_some() {
            return Err(error::fixed("ERR WATCH inside MULTI is not allowed"));
        }
        let db = session.db;
        for key in request.tail(1) {
            if key.len() > MAX_KEY {
                return Err(error::key_too_long(key.len()));
            }
            if session.watched.iter().any(|watched| watched.db == db && *watched.key == *key) {
                continue;
            }
            self.turn.watches.add(db, key);
            let version = self.turn.version(db, key).await;
            let version = version.map_err(|error| {
                self.turn.watches.remove(db, key);
                error::unreadable(&error)
            })?;
            session.watched.push(Watched { db, key: key.into(), version });
        }
        session.reply().ok();
        Ok(())
    }

    /// Stops to watch the session's keys.
    fn unwatch(&mut self, session: &mut Session) {
        for Watched { db, key, .. } in session.watched.drain(..) {
            self.turn.watches.remove(db, &key);
        }
    }

    /// Executes a command and replies to it, an error included.
    async fn call(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: Request<'_>,
    ) {
        let start = session.output.len();
        session.command = command.name;
        let outcome = match command.class {
            Class::Data => {
                let call = data_call(session, command, request);
                data::run(&call, &mut self.turn, &mut session.output).await
            }
            Class::Keyspace => {
                let Executor { server, turn, .. } = self;
                if command.flags.is_write() {
                    server.counts.valid_until = None;
                }
                let call = data_call(session, command, request);
                keyspace::run(&call, turn, server.shared.cursors(), &mut session.output).await
            }
            Class::Session => self.session_command(session, command, request).await,
        };
        let server = &mut self.server;
        let now = server.clock.now();
        let error = outcome.as_ref().err().map(CommandError::text);
        let executed = Executed { command, took: now.since(server.tick), error };
        server.account(session, &executed, || Server::shorten(command, &request));
        server.tick = now;
        if let Err(error) = &outcome {
            server.fail(session, start, error);
        }
    }

    async fn session_command(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        request: Request<'_>,
    ) -> Outcome {
        match command.id {
            Id::Watch => return self.watch(session, &request).await,
            Id::Discard if session.queue.is_some() => self.unwatch(session),
            Id::Reset | Id::Unwatch => self.unwatch(session),
            Id::Info | Id::MemoryStats => {
                if command.id == Id::MemoryStats || commands::info::shows(&request, "keyspace") {
                    self.prepare_info().await?;
                }
                self.server.stats.store_bytes.set(self.turn.store.memory_bytes());
            }
            _ => {}
        }
        SessionCall { server: &mut self.server, session, request, command }.run()
    }

    /// Has ready what INFO tells about the keys and the store.
    async fn prepare_info(&mut self) -> Outcome {
        let Executor { server, turn, .. } = self;
        let started = server.clock.now();
        if server.counts.valid_until.is_none_or(|until| until <= started) {
            for db in 0..DATABASES {
                let counted = turn.count(db).await;
                server.counts.counts[db] = counted.map_err(|error| error::unreadable(&error))?;
            }
            let ended = server.clock.now();
            let valid_until = ended.after(ended.since(started) * 20);
            server.counts.valid_until = Some(valid_until);
        }
        Ok(())
    }

    /// Answers broken framing; the connection cannot go on after it.
    fn refuse(&mut self, session: &mut Session, error: ProtocolError) {
        let text = format!("ERR {error}");
        session.reply().error(text.as_bytes());
        session.closing = true;
        self.server.count_error(text.as_bytes());
    }

    /// Turns every reply that depends on the commit into an error.
    fn replace_dependents(&mut self, error: &StoreError) {
        let error = error::not_stored(error);
        let mut by_client: BTreeMap<ClientId, Vec<(usize, usize)>> = BTreeMap::new();
        for Dependent { client, start, end } in self.dependents.drain(..) {
            by_client.entry(client).or_default().push((start, end));
        }
        for (client, replies) in by_client {
            let Some(session) = self.server.sessions.get_mut(&client) else { continue };
            let sent = std::mem::take(&mut session.output);
            let mut copied = 0;
            let errors = replies.len();
            for (start, end) in replies {
                // A reply may be gone when its client's output was dropped for its size.
                session.output.extend_from_slice(sent.get(copied..start).unwrap_or(&[]));
                session.reply().error(&error.0);
                copied = end;
            }
            session.output.extend_from_slice(sent.get(copied..).unwrap_or(&[]));
            for _ in 0..errors {
                self.server.count_error(&error.0);
            }
        }
    }
}

fn data_call<'a>(
    session: &Session,
    command: &'static Command,
    request: Request<'a>,
) -> DataCall<'a> {
    let Session { protocol, db, no_touch, .. } = *session;
    DataCall { command, request, protocol, db, touch: !no_touch }
}
