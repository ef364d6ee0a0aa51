//! A client as the executor sees it: bytes in, replies out, and what the connection has chosen.

use std::net::SocketAddr;

use atoll_env::Instant;
use atoll_resp::{Limits, Protocol, ReplyWriter, RequestParser};

use crate::front::Slots;
use crate::store::Durability;
use crate::task::{Consistency, Watched};
use crate::unit::Queue;

/// Identity of a connection, never used twice in a process; `CLIENT ID`.
pub type ClientId = u64;

/// Most bytes of replies held for one client; a client that would need more is closed.
pub const MAX_OUTPUT: usize = 256 << 20;

/// Memory of an input buffer that is kept once it is empty.
const KEPT_INPUT: usize = 1 << 20;

/// The state of one connection.
pub(crate) struct Session {
    pub id: ClientId,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub created: Instant,
    /// When the client last sent something that was executed.
    pub active: Instant,
    /// Name of the command executed last.
    pub command: &'static str,
    pub db: usize,
    pub protocol: Protocol,
    pub authenticated: bool,
    pub name: Vec<u8>,
    pub library: Vec<u8>,
    pub library_version: Vec<u8>,
    pub replies: Replies,
    pub no_evict: bool,
    pub no_touch: bool,
    /// What CLIENT DURABILITY chose, `None` for what the server does by default.
    pub durability: Option<Durability>,
    pub consistency: Consistency,
    /// A command waits for the end of CLIENT PAUSE.
    pub paused: bool,
    /// The commands queued since MULTI, if it was executed.
    pub queue: Option<Queue>,
    /// The keys watched since the last EXEC.
    pub watched: Vec<Watched>,
    /// Bytes received; those before `consumed` are executed.
    pub input: Vec<u8>,
    pub consumed: usize,
    pub parser: RequestParser,
    /// Replies that wait for those before them; only a front end has some.
    pub slots: Slots,
    /// Replies of the turn.
    pub output: Vec<u8>,
    /// Set when no further command is executed: the connection closes once `output` is sent.
    pub closing: bool,
}

/// What CLIENT REPLY chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replies {
    On,
    Off,
    /// The command after this one is not answered.
    SkipNext,
    /// This command is not answered.
    Skip,
}

impl Session {
    pub fn new(id: ClientId, peer: SocketAddr, local: SocketAddr, now: Instant) -> Session {
        Session {
            id,
            peer,
            local,
            created: now,
            active: now,
            command: "NULL",
            db: 0,
            protocol: Protocol::Resp2,
            authenticated: false,
            name: Vec::new(),
            library: Vec::new(),
            library_version: Vec::new(),
            replies: Replies::On,
            no_evict: false,
            no_touch: false,
            durability: None,
            consistency: Consistency::Fast,
            paused: false,
            queue: None,
            watched: Vec::new(),
            input: Vec::new(),
            consumed: 0,
            parser: RequestParser::new(),
            slots: Slots::default(),
            output: Vec::new(),
            closing: false,
        }
    }

    /// Returns what the client's requests may announce now.
    pub fn limits(&self) -> &'static Limits {
        if self.authenticated { &Limits::CLIENT } else { &Limits::STRANGER }
    }

    /// Returns a writer for the client's protocol.
    pub fn reply(&mut self) -> ReplyWriter<'_> {
        ReplyWriter::new(&mut self.output, self.protocol)
    }

    /// Returns the bytes received and not executed.
    pub fn pending(&self) -> usize {
        self.input.len() - self.consumed
    }

    /// Drops what is executed from the input, without moving a long rest for a short gain.
    pub fn trim_input(&mut self) {
        if self.consumed == self.input.len() {
            self.input.clear();
            self.consumed = 0;
            if self.input.capacity() > KEPT_INPUT {
                self.input = Vec::new();
            }
        } else if self.consumed > self.input.len() / 2 {
            self.input.drain(..self.consumed);
            self.consumed = 0;
        }
    }

    /// Returns to the state of a fresh connection, as RESET does; the caller decides about
    /// authentication, and has stopped to watch keys.
    pub fn reset(&mut self) {
        self.db = 0;
        self.protocol = Protocol::Resp2;
        self.name.clear();
        self.replies = Replies::On;
        self.no_evict = false;
        self.no_touch = false;
        self.durability = None;
        self.consistency = Consistency::Fast;
        self.queue = None;
    }

    /// Returns the client's line of CLIENT LIST.
    pub fn describe(&self, now: Instant) -> Vec<u8> {
        let mut flags = String::new();
        if self.queue.is_some() {
            flags.push('x');
        }
        if self.closing {
            flags.push('c');
        }
        if self.no_evict {
            flags.push('e');
        }
        if self.no_touch {
            flags.push('T');
        }
        if self.paused {
            flags.push('b');
        }
        if flags.is_empty() {
            flags.push('N');
        }
        let mut line =
            format!("id={} addr={} laddr={} name=", self.id, self.peer, self.local).into_bytes();
        line.extend_from_slice(&self.name);
        let age = now.since(self.created).as_secs();
        let idle = now.since(self.active).as_secs();
        line.extend_from_slice(
            format!(
                " age={age} idle={idle} flags={flags} db={} sub=0 psub=0 ssub=0 multi={} watch={} \
                 qbuf={} qbuf-free={} argv-mem=0 multi-mem={} rbs={} rbp={} obl={} oll=0 \
                 omem={} tot-mem={} events=r cmd={} user=default redir=-1 resp={} lib-name=",
                self.db,
                self.queue.as_ref().map_or(-1, |queue| queue.commands.len() as i64),
                self.watched.len(),
                self.pending(),
                self.input.capacity() - self.input.len(),
                self.queue.as_ref().map_or(0, |queue| queue.bytes),
                self.output.capacity(),
                self.output.capacity(),
                self.output.len(),
                self.output.len(),
                self.pending() + self.output.len(),
                self.command,
                self.protocol.version(),
            )
            .as_bytes(),
        );
        line.extend_from_slice(&self.library);
        line.extend_from_slice(b" lib-ver=");
        line.extend_from_slice(&self.library_version);
        line
    }
}
