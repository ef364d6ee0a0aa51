//! The server as the sessions of a core see it: its configuration, its clients, its counters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_env::{Clock, Instant};
use atoll_resp::Request;

use crate::config::Config;
use crate::error::{self, CommandError, Outcome};
use crate::layout;
use crate::session::{ClientId, Session};
use crate::shared::{Pause, Shared};
use crate::slowlog::{self, Entry, Shortened};
use crate::stats::Stats;
use crate::store::DATABASES;
use crate::table::{Command, Index};
use crate::tx::Counts;

/// Who answers: what HELLO and INFO tell about the process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// AtollDB's version.
    pub version: &'static str,
    /// The process, 0 if unknown.
    pub process_id: u32,
    /// A random number naming this run, and the seed of cursor ids.
    pub run_id: u64,
    /// Measures the process, if somebody can.
    pub measure: Option<fn() -> Option<Usage>>,
    /// Name of the process's allocator; empty if nobody says.
    pub allocator: &'static str,
}

/// What the process has used of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in its own code.
    pub user: Duration,
    /// Processor time in the kernel for it.
    pub system: Duration,
    /// Memory of the machine that it occupies.
    pub resident_bytes: u64,
    /// Memory that the machine has.
    pub system_bytes: u64,
}

impl Identity {
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.measure.and_then(|measure| measure())
    }
}

/// What sessions share, the keys excepted.
pub(crate) struct Server {
    pub clock: Arc<dyn Clock>,
    pub shared: Arc<Shared>,
    /// The shared configuration as it was when [`Server::look`] looked.
    pub config: Config,
    /// The shared pause, likewise.
    pub pause: Option<Pause>,
    /// What both are copies of.
    seen: u64,
    pub identity: Identity,
    pub started: Instant,
    /// This core's counters.
    pub stats: Arc<Stats>,
    pub index: Index,
    /// All clients but the one whose command is under way.
    pub sessions: BTreeMap<ClientId, Box<Session>>,
    next_client: ClientId,
    client_step: ClientId,
    /// Clients closed by CLIENT KILL, for the owner.
    pub killed: Vec<ClientId>,
    pub counts: KeyCounts,
    /// Wall time of the turn, in milliseconds of the Unix epoch.
    pub now_ms: u64,
    /// When the command executed last ended.
    pub tick: Instant,
    /// Whether keys are removed when their deadline comes, see DEBUG SET-ACTIVE-EXPIRE.
    pub active_expire: bool,
}

/// What is to be counted of an executed command.
pub(crate) struct Executed<'e> {
    pub command: &'static Command,
    pub took: Duration,
    /// The text of the error it answered.
    pub error: Option<&'e [u8]>,
}

/// The keys of each database as INFO tells them. Counting visits all of them, and clients ask for
/// INFO when they connect; so a count is reused for twenty times as long as it took.
#[derive(Default)]
pub(crate) struct KeyCounts {
    pub valid_until: Option<Instant>,
    pub counts: [Counts; DATABASES],
}

impl Server {
    /// Starts on one of the cores that share `shared`.
    pub fn new(
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
        core: usize,
        identity: Identity,
    ) -> Server {
        let started = clock.now();
        Server {
            config: shared.config(),
            pause: shared.pause(),
            seen: 0,
            stats: shared.stats(core),
            shared,
            started,
            index: Index::new(),
            sessions: BTreeMap::new(),
            next_client: 1,
            client_step: 1,
            killed: Vec::new(),
            counts: KeyCounts::default(),
            now_ms: clock.wall().0,
            tick: started,
            active_expire: true,
            identity,
            clock,
        }
    }

    /// Learns what other cores have changed.
    pub fn look(&mut self) {
        let changes = self.shared.changes();
        if changes != self.seen {
            self.seen = changes;
            self.config = self.shared.config();
            self.pause = self.shared.pause();
        }
    }

    /// Ends a pause for all cores; those with clients that wait have to be told.
    pub fn unpause(&mut self) {
        self.shared.unpause();
        self.look();
    }

    /// Returns whether a client's command has to wait for the end of a pause.
    pub fn is_paused(&self, session: &Session, command: &Command) -> bool {
        let Some(pause) = self.pause.filter(|pause| pause.until > self.tick) else { return false };
        let queue_writes = || {
            session
                .queue
                .iter()
                .flat_map(|queue| &queue.commands)
                .any(|q| q.command.flags.is_write())
        };
        pause.all
            || command.flags.is_write()
            || (command.id == crate::table::Id::Exec && queue_writes())
    }

    /// Returns whether slow commands are to be remembered with their arguments.
    pub fn keeps_slow(&self) -> bool {
        self.config.slowlog_slower_than_us >= 0 && self.config.slowlog_max_len > 0
    }

    /// Counts an executed command, and remembers it if it was slow.
    pub fn account(
        &mut self,
        session: &Session,
        executed: &Executed<'_>,
        args: impl FnOnce() -> Shortened,
    ) {
        let Executed { command, took, error } = *executed;
        self.stats.commands_processed.add(1);
        let of = self.stats.command(command.id);
        of.calls.add(1);
        of.latency.record(took);
        if error.is_some() {
            of.failed.add(1);
        }
        let us = i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
        let slow = self.keeps_slow() && us >= self.config.slowlog_slower_than_us;
        // Redis leaves EXEC out because the commands in it are entries of their own.
        if slow && (!command.flags.skips_slowlog() || command.id == crate::table::Id::Exec) {
            let entry = Entry {
                id: 0,
                at_s: self.clock.wall().0 / 1_000,
                took,
                args: args(),
                peer: session.peer,
                name: session.name.clone(),
            };
            self.shared.slowlog.lock().push(entry, self.config.slowlog_max_len);
        }
        let threshold = self.config.latency_threshold_ms;
        let ms = us as u64 / 1_000;
        if threshold > 0 && ms >= threshold {
            let event = if command.flags.is_fast() { "fast-command" } else { "command" };
            self.shared.latency.lock().note(event, self.clock.wall().0 / 1_000, ms);
        }
    }

    /// Keeps of a request what the slow log would show.
    pub fn shorten(command: &Command, request: &Request<'_>) -> Shortened {
        slowlog::shorten(command, request)
    }

    /// Numbers clients from `first` on in steps.
    pub fn number_clients(&mut self, first: ClientId, step: ClientId) {
        self.next_client = first;
        self.client_step = step;
    }

    /// Admits a client.
    pub fn connect(&mut self, peer: SocketAddr, local: SocketAddr) -> ClientId {
        let id = self.next_client;
        self.next_client += self.client_step;
        let mut session = Session::new(id, peer, local, self.clock.now());
        session.authenticated = self.config.requirepass.is_empty();
        self.sessions.insert(id, Box::new(session));
        self.stats.connections_received.add(1);
        self.stats.connected_clients.set(self.sessions.len() as u64);
        id
    }

    /// Forgets a client.
    pub fn disconnect(&mut self, id: ClientId) -> Option<Box<Session>> {
        let session = self.sessions.remove(&id);
        self.stats.connected_clients.set(self.sessions.len() as u64);
        session
    }

    /// Finds the command and checks what needs no execution, in Redis's order.
    pub fn admit(&self, session: &Session, request: &Request<'_>) -> Outcome<&'static Command> {
        let name = request.get(0).unwrap_or(&[]);
        let known = self.index.find(name).filter(|command| !command.is_subcommand);
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
        if session.queue.is_some() && command.flags.no_multi() {
            return refused(error::NO_MULTI);
        }
        if self.config.strict_slots && !command.keys.is_empty() {
            let keys = command.key_indexes(request.len()).filter_map(|index| request.get(index));
            if cross_slots(keys) {
                return refused(error::CROSS_SLOT);
            }
        }
        Ok(command)
    }

    /// Returns whether EXEC is refused because the queued commands' keys are of several slots.
    pub fn refuses_unit(&self, session: &Session) -> bool {
        if !self.config.strict_slots {
            return false;
        }
        let queued = session.queue.iter().flat_map(|queue| &queue.commands);
        cross_slots(queued.flat_map(|queued| {
            let request = queued.request.as_request();
            let indexes = queued.command.key_indexes(request.len());
            indexes.filter_map(move |index| request.get(index))
        }))
    }

    /// Replaces what the command wrote by an error.
    pub fn fail(&mut self, session: &mut Session, start: usize, error: &CommandError) {
        session.output.truncate(start);
        session.reply().error(&error.0);
        self.count_error(&error.0);
    }

    pub fn count_error(&mut self, text: &[u8]) {
        self.stats.count_error(text);
    }
}

/// Returns whether keys are of several slots, which a cluster of Redis refuses.
fn cross_slots<'k>(mut keys: impl Iterator<Item = &'k [u8]>) -> bool {
    let Some(first) = keys.next().map(layout::slot) else { return false };
    keys.any(|key| layout::slot(key) != first)
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
