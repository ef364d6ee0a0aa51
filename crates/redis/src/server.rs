//! The server as sessions share it: its configuration, its clients, its counters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use atoll_env::{Clock, Instant};
use atoll_resp::Request;

use crate::config::Config;
use crate::cursors::Cursors;
use crate::error::{self, CommandError, Outcome};
use crate::session::{ClientId, Session};
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
}

/// What sessions share, the keys excepted.
pub(crate) struct Server {
    pub clock: Arc<dyn Clock>,
    pub config: Config,
    pub identity: Identity,
    pub started: Instant,
    pub stats: Arc<Stats>,
    /// Error replies by their code.
    pub errors: BTreeMap<String, u64>,
    pub index: Index,
    /// All clients but the one whose command is under way.
    pub sessions: BTreeMap<ClientId, Box<Session>>,
    next_client: ClientId,
    client_step: ClientId,
    /// Clients closed by CLIENT KILL, for the owner.
    pub killed: Vec<ClientId>,
    pub cursors: std::cell::RefCell<Cursors>,
    pub counts: KeyCounts,
    /// Wall time of the turn, in milliseconds of the Unix epoch.
    pub now_ms: u64,
    /// When the command executed last ended.
    pub tick: Instant,
    /// Bytes of memory the store holds, as of the command under way if that is INFO.
    pub store_memory: u64,
}

/// The keys of each database as INFO tells them. Counting visits all of them, and clients ask for
/// INFO when they connect; so a count is reused for twenty times as long as it took.
#[derive(Default)]
pub(crate) struct KeyCounts {
    pub valid_until: Option<Instant>,
    pub counts: [Counts; DATABASES],
}

impl Server {
    pub fn new(clock: Arc<dyn Clock>, config: Config, identity: Identity) -> Server {
        let started = clock.now();
        Server {
            config,
            started,
            stats: Arc::new(Stats::new()),
            errors: BTreeMap::new(),
            index: Index::new(),
            sessions: BTreeMap::new(),
            next_client: 1,
            client_step: 1,
            killed: Vec::new(),
            cursors: std::cell::RefCell::new(Cursors::new(identity.run_id)),
            counts: KeyCounts::default(),
            now_ms: clock.wall().0,
            tick: started,
            store_memory: 0,
            identity,
            clock,
        }
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
        Ok(command)
    }

    /// Replaces what the command wrote by an error.
    pub fn fail(&mut self, session: &mut Session, start: usize, error: &CommandError) {
        session.output.truncate(start);
        session.reply().error(&error.0);
        self.count_error(&error.0);
    }

    pub fn count_error(&mut self, text: &[u8]) {
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
