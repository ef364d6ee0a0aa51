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
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use atoll_env::{Clock, Instant};
use atoll_resp::ProtocolError;
pub use atoll_resp::Request;

use crate::call::{Bytes, Call, Found};
use crate::config::Config;
use crate::cursors::Cursors;
use crate::error::{self, CommandError, Outcome};
use crate::layout::{self, MAX_KEY};
use crate::session::{ClientId, MAX_OUTPUT, Replies, Session};
use crate::stats::Stats;
use crate::store::{DATABASES, Durability, Store, StoreError, Visitor};
use crate::table::{Command, Index};
use crate::writes::Writes;

/// Most commands of one client in a turn.
const TURN_COMMANDS: usize = 1024;
/// Bytes of replies after which a client's turn ends.
const TURN_OUTPUT: usize = 1 << 20;
/// Bytes of staged writes after which a turn takes no further command.
const TURN_WRITES: usize = 8 << 20;

/// Who answers: what HELLO and INFO tell about the process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// AtollDB's version.
    pub version: &'static str,
    /// The process, 0 if unknown.
    pub process_id: u32,
    /// A random number naming this run, and the seed of cursor ids.
    pub run_id: u64,
}

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
    pub(crate) store: S,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) started: Instant,
    pub(crate) stats: Arc<Stats>,
    /// Error replies by their code.
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) index: Index,
    pub(crate) sessions: BTreeMap<ClientId, Box<Session>>,
    next_client: ClientId,
    /// Clients closed by CLIENT KILL, for the owner.
    pub(crate) killed: Vec<ClientId>,
    pub(crate) cursors: Cursors,
    pub(crate) counts: KeyCounts,
    /// Wall time of the turn, in milliseconds of the Unix epoch.
    pub(crate) now_ms: u64,
    /// When the command executed last ended.
    pub(crate) tick: Instant,
    pub(crate) writes: Writes,
    /// The strongest mode that was set during the turn.
    pub(crate) durability: Durability,
    /// The storage key of the command under way; a buffer that is reused.
    pub(crate) key: Vec<u8>,
    /// Whether the command under way staged a write or saw one.
    pub(crate) dependent: bool,
    /// The replies that depend on the turn's commit.
    dependents: Vec<Dependent>,
}

/// The keys of each database as INFO tells them. Counting visits all of them, and clients ask for
/// INFO when they connect; so a count is reused for twenty times as long as it took.
#[derive(Default)]
pub(crate) struct KeyCounts {
    pub valid_until: Option<Instant>,
    /// Keys, and keys with a deadline.
    pub counts: [(u64, u64); DATABASES],
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
        let started = clock.now();
        Executor {
            store,
            config,
            started,
            stats: Arc::new(Stats::new()),
            errors: BTreeMap::new(),
            index: Index::new(),
            sessions: BTreeMap::new(),
            next_client: 1,
            killed: Vec::new(),
            cursors: Cursors::new(identity.run_id),
            counts: KeyCounts::default(),
            now_ms: clock.wall().0,
            tick: started,
            writes: Writes::new(),
            durability: Durability::Synced,
            key: Vec::new(),
            dependent: false,
            dependents: Vec::new(),
            identity,
            clock,
        }
    }

    /// Returns the counters, to be read from anywhere.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Returns the configuration as it is now.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Admits a client.
    pub fn connect(&mut self, peer: SocketAddr, local: SocketAddr) -> ClientId {
        let id = self.next_client;
        self.next_client += 1;
        let mut session = Session::new(id, peer, local, self.clock.now());
        session.authenticated = self.config.requirepass.is_empty();
        self.sessions.insert(id, Box::new(session));
        self.stats.connections_received.add(1);
        self.stats.connected_clients.set(self.sessions.len() as u64);
        id
    }

    /// Forgets a client.
    pub fn disconnect(&mut self, id: ClientId) {
        self.sessions.remove(&id);
        self.stats.connected_clients.set(self.sessions.len() as u64);
    }

    /// Returns whether the client has proved who it is, or need not.
    pub fn is_authenticated(&self, id: ClientId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.authenticated)
    }

    /// Takes bytes a client sent; `bytes` is empty afterwards and may have got another memory.
    pub fn feed(&mut self, id: ClientId, bytes: &mut Vec<u8>) {
        let Some(session) = self.sessions.get_mut(&id) else { return bytes.clear() };
        self.stats.input_bytes.add(bytes.len() as u64);
        if session.input.is_empty() {
            std::mem::swap(&mut session.input, bytes);
        } else {
            session.input.append(bytes);
        }
    }

    /// Starts a turn.
    pub fn begin_turn(&mut self) {
        self.now_ms = self.clock.wall().0;
        self.tick = self.clock.now();
        self.durability = self.config.durability;
        self.stats.turns.add(1);
    }

    /// Returns whether the turn has staged as much as a turn may.
    pub fn is_full(&self) -> bool {
        self.writes.bytes() >= TURN_WRITES
    }

    /// Executes the client's commands that have arrived, up to its share of the turn.
    pub async fn execute(&mut self, id: ClientId) -> Progress {
        let Some(mut session) = self.sessions.remove(&id) else { return Progress::Closing };
        let input = std::mem::take(&mut session.input);
        let mut consumed = std::mem::take(&mut session.consumed);
        let mut parser = std::mem::take(&mut session.parser);
        let mut commands = 0;
        session.active = self.tick;
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
        self.sessions.insert(id, session);
        progress
    }

    /// Commits the turn's writes. Afterwards each client's output may leave.
    pub async fn commit(&mut self) -> Commit {
        if self.writes.is_empty() {
            self.dependents.clear();
            return Commit::Nothing;
        }
        let started = self.clock.now();
        let result = self.store.commit(&self.writes, self.durability).await;
        self.stats.commits.record(self.clock.now().since(started));
        self.writes.reset();
        let commit = match result {
            Ok(()) => Commit::Done,
            Err(error) => {
                self.stats.commits_failed.add(1);
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
        let Some(session) = self.sessions.get_mut(&id) else { return true };
        self.stats.output_bytes.add(session.output.len() as u64);
        if output.is_empty() {
            std::mem::swap(output, &mut session.output);
        } else {
            output.append(&mut session.output);
        }
        session.closing
    }

    /// Returns the clients closed by CLIENT KILL since the last call.
    pub fn take_killed(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.killed)
    }

    async fn request(&mut self, session: &mut Session, request: Request<'_>) {
        let start = session.output.len();
        self.dependent = false;
        if session.replies == Replies::SkipNext {
            session.replies = Replies::Skip;
        }
        match self.admit(session, &request) {
            Err(error) => self.fail(session, start, &error),
            Ok(command) => {
                session.command = command.name;
                let call = Call { executor: self, session, request, command };
                let outcome = call.run().await;
                let now = self.clock.now();
                self.stats.commands_processed.add(1);
                let stats = self.stats.command(command.id);
                stats.calls.add(1);
                stats.latency.record(now.since(self.tick));
                self.tick = now;
                if let Err(error) = outcome {
                    stats.failed.add(1);
                    self.fail(session, start, &error);
                }
            }
        }
        match session.replies {
            Replies::On | Replies::SkipNext => {}
            Replies::Off => session.output.truncate(start),
            Replies::Skip => {
                session.output.truncate(start);
                session.replies = Replies::On;
            }
        }
        if session.output.len() > MAX_OUTPUT {
            // Nobody reads that much: the replies so far are dropped with the connection.
            session.closing = true;
            session.output = Vec::new();
        } else if self.dependent && session.output.len() > start {
            let end = session.output.len();
            self.dependents.push(Dependent { client: session.id, start, end });
        }
    }

    /// Finds the command and checks what needs no execution, in Redis's order.
    fn admit(&self, session: &Session, request: &Request<'_>) -> Outcome<&'static Command> {
        let name = request.get(0).unwrap_or(&[]);
        let known = self.index.find(name).filter(|command| command.container().is_none());
        let Some(mut command) = known else { return Err(unknown_command(name, request)) };
        if command.is_container() && request.len() > 1 {
            let subcommand = &request[1];
            command = self.index.find_subcommand(command, subcommand).ok_or_else(|| {
                let upper = command.name.to_ascii_uppercase();
                let shown = shorten(subcommand, 128);
                let (before, after) = (b"ERR unknown subcommand '", b"'. Try ");
                error::quoting(&[before, shown, after, upper.as_bytes(), b" HELP."])
            })?;
        }
        let refused = |error| {
            self.stats.command(command.id).rejected.add(1);
            Err(error)
        };
        if !command.accepts(request.len()) {
            return refused(error::wrong_arity(command.name));
        }
        if !session.authenticated && !command.flags.no_auth() {
            return refused(error::NO_AUTH);
        }
        Ok(command)
    }

    /// Replaces what the command wrote by an error.
    fn fail(&mut self, session: &mut Session, start: usize, error: &CommandError) {
        session.output.truncate(start);
        session.reply().error(&error.0);
        self.count_error(&error.0);
    }

    /// Answers broken framing; the connection cannot go on after it.
    fn refuse(&mut self, session: &mut Session, error: ProtocolError) {
        let text = format!("ERR {error}");
        session.reply().error(text.as_bytes());
        session.closing = true;
        self.count_error(text.as_bytes());
    }

    fn count_error(&mut self, text: &[u8]) {
        self.stats.error_replies.add(1);
        // Codes are ours, never the client's, so their number is bounded.
        let code = text.split(|&byte| byte == b' ').next().unwrap_or(&[]);
        let code = String::from_utf8_lossy(code);
        match self.errors.get_mut(code.as_ref()) {
            Some(count) => *count += 1,
            None => {
                self.errors.insert(code.into_owned(), 1);
            }
        }
    }

    /// Turns every reply that depends on the commit into an error.
    fn replace_dependents(&mut self, error: &StoreError) {
        let error = error::not_stored(error);
        let mut by_client: BTreeMap<ClientId, Vec<(usize, usize)>> = BTreeMap::new();
        for Dependent { client, start, end } in self.dependents.drain(..) {
            by_client.entry(client).or_default().push((start, end));
        }
        for (client, replies) in by_client {
            let Some(session) = self.sessions.get_mut(&client) else { continue };
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
                self.count_error(&error.0);
            }
        }
    }

    /// Makes `key` the key under way.
    pub(crate) fn locate(&mut self, key: &[u8]) -> Outcome {
        if key.len() > MAX_KEY {
            return Err(error::key_too_long(key.len()));
        }
        layout::storage_key(&mut self.key, key);
        Ok(())
    }

    /// Reads a live record, the turn's own writes first.
    pub(crate) async fn read(&mut self, db: usize, key: &[u8]) -> Outcome<Option<Found<S::Value>>> {
        self.locate(key)?;
        let changes = self.writes.changes(db);
        let found = match changes.get(&self.key) {
            Some(staged) => {
                self.dependent = true;
                staged.map(|staged| Found {
                    bytes: Bytes::Staged(staged.record.clone()),
                    deadline_ms: staged.deadline_ms,
                })
            }
            None if changes.cleared() => {
                self.dependent = true;
                None
            }
            None => {
                let read = self.store.get(db, &self.key).await;
                read.map_err(|error| error::unreadable(&error))?.map(|record| Found {
                    bytes: Bytes::Stored(record.value),
                    deadline_ms: record.deadline_ms,
                })
            }
        };
        Ok(found.filter(|found| {
            let live = self.is_live(found.deadline_ms);
            if !live {
                self.stats.expired_keys.add(1);
            }
            live
        }))
    }

    /// Returns whether a record with this deadline is there at the turn's time.
    pub(crate) fn is_live(&self, deadline_ms: Option<u64>) -> bool {
        deadline_ms.is_none_or(|deadline_ms| deadline_ms > self.now_ms)
    }

    /// Visits the records of a database from storage key `from` on, in key order, the turn's own
    /// writes merged in. Records past their deadline are visited too.
    pub(crate) async fn visit(
        &mut self,
        db: usize,
        from: Bound<&[u8]>,
        visitor: Visitor<'_>,
    ) -> Outcome {
        let changes = self.writes.changes(db);
        self.dependent |= !changes.is_empty();
        let mut staged = changes.range(from).peekable();
        let mut flow = ControlFlow::Continue(());
        if !changes.cleared() {
            let mut merge = |key: &[u8], deadline_ms: Option<u64>| {
                while let Some(&(staged_key, record)) = staged.peek() {
                    if staged_key > key {
                        break;
                    }
                    staged.next();
                    if let Some(record) = record {
                        visitor(staged_key, record.deadline_ms)?;
                    }
                    if staged_key == key {
                        return ControlFlow::Continue(());
                    }
                }
                visitor(key, deadline_ms)
            };
            let mut watched = |key: &[u8], deadline_ms: Option<u64>| {
                flow = merge(key, deadline_ms);
                flow
            };
            let visited = self.store.visit(db, from, &mut watched).await;
            visited.map_err(|error| error::unreadable(&error))?;
        }
        for (key, record) in staged {
            if flow.is_break() {
                break;
            }
            if let Some(record) = record {
                flow = visitor(key, record.deadline_ms);
            }
        }
        Ok(())
    }
}

fn unknown_command(name: &[u8], request: &Request<'_>) -> CommandError {
    let mut args = Vec::new();
    for arg in request.tail(1) {
        if args.len() >= 128 {
            break;
        }
        let shown = shorten(arg, 128 - args.len());
        args.extend_from_slice(b"'");
        args.extend_from_slice(shown);
        args.extend_from_slice(b"' ");
    }
    let (before, after) = (b"ERR unknown command '", b"', with args beginning with: ");
    error::quoting(&[before, shorten(name, 128), after, &args])
}

/// Returns what Redis shows of an argument: no more than `len` bytes and none from a NUL on.
fn shorten(text: &[u8], len: usize) -> &[u8] {
    let text = text.get(..len).unwrap_or(text);
    text.split(|&byte| byte == 0).next().unwrap_or(text)
}
