//! Tasks: what a front end asks whoever has the keys, and what it is told.

use std::ops::Deref;
use std::time::Duration;

use atoll_resp::{OwnedRequest, Protocol, Request};

use crate::session::ClientId;
use crate::store::{DATABASES, Durability};
use crate::table::{Class, Command};
use crate::tx::Counts;

/// A command with its arguments, ready to be executed away from its session.
#[derive(Clone, Debug)]
pub struct Item {
    /// Which command. Its arity is right.
    pub command: &'static Command,
    /// Its arguments.
    pub request: OwnedRequest,
    /// The selected database.
    pub db: usize,
}

impl Item {
    /// Returns the keys it names.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let request = self.request.as_request();
        let indexes = self.command.key_indexes(request.len());
        indexes.filter_map(move |index| request.get(index))
    }

    /// Returns whether it concerns whole databases.
    pub fn is_whole(&self) -> bool {
        self.command.class == Class::Keyspace
    }
}

/// A key and what WATCH saw of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The database.
    pub db: usize,
    /// The key.
    pub key: Box<[u8]>,
    /// Its version then.
    pub version: u64,
}

/// What a client has chosen for its commands.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// The protocol of replies.
    pub protocol: Protocol,
    /// Whether reads count as such.
    pub touch: bool,
    /// What an acknowledgement has to survive.
    pub durability: Durability,
    /// How old what is read may be.
    pub consistency: Consistency,
}

/// How old what a command reads may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// As of a moment between question and answer, for each shard by itself.
    #[default]
    Fast,
    /// As of one timestamp of the oracle's, drawn after the question came.
    Strict,
    /// As of a timestamp at most this many milliseconds before the question came.
    Stale {
        /// The bound.
        ms: u64,
    },
}

/// What the front ends of all cores are asked, beside the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The lines of CLIENT LIST.
    List(Clients),
    /// Close connections.
    Kill {
        /// Which ones.
        clients: Clients,
        /// Whether the asker wants their number.
        counts: bool,
    },
    /// The pause is over: clients that were held back go on.
    Resume,
}

/// Which connections are meant; every condition that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    pub(crate) ids: Option<Vec<ClientId>>,
    pub(crate) peer: Option<Box<[u8]>>,
    pub(crate) local: Option<Box<[u8]>>,
    /// Of a type other than `normal`: there are none of these.
    pub(crate) other_type: bool,
    /// Not this one.
    pub(crate) except: Option<ClientId>,
}

/// What a front end says about its own clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Lines of CLIENT LIST, with the clients they are about.
    Lines(Vec<(ClientId, Vec<u8>)>),
    /// So many were closed.
    Killed(usize),
    /// Done.
    Resumed,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Task {
    /// One command, on named keys or on whole databases.
    One(Item),
    /// Commands between MULTI and EXEC, as one, unless a watched key has changed.
    Unit {
        /// The commands, in order.
        items: Vec<Item>,
        /// What must not have changed.
        watched: Vec<Watched>,
    },
    /// The versions of keys, for WATCH.
    Versions {
        /// The database.
        db: usize,
        /// The keys.
        keys: Vec<Box<[u8]>>,
    },
    /// The counts of all databases, for INFO.
    Counts,
    /// What the front ends of the other cores say.
    Ask(Question),
    /// Nothing, for a while.
    Sleep(Duration),
}

impl Task {
    /// Returns the keys it names.
    pub fn keys(&self) -> Vec<&[u8]> {
        match self {
            Task::One(item) => item.keys().collect(),
            Task::Unit { items, watched } => items
                .iter()
                .flat_map(Item::keys)
                .chain(watched.iter().map(|watched| &*watched.key))
                .collect(),
            Task::Versions { keys, .. } => keys.iter().map(|key| &**key).collect(),
            Task::Counts | Task::Ask(_) | Task::Sleep(_) => Vec::new(),
        }
    }
}

/// An encoded reply. A short one (`+OK`, any integer) lies in place.
#[derive(Clone)]
pub enum Encoded {
    /// The first so many bytes.
    Short([u8; Encoded::SHORT], u8),
    /// A longer one.
    Long(Vec<u8>),
}

impl Encoded {
    /// Longest reply that lies in place: the longest integer with its framing.
    const SHORT: usize = 23;

    /// Copies a reply.
    pub fn copy(reply: &[u8]) -> Encoded {
        let mut short = [0; Encoded::SHORT];
        match short.get_mut(..reply.len()) {
            Some(room) => {
                room.copy_from_slice(reply);
                Encoded::Short(short, reply.len() as u8)
            }
            None => Encoded::Long(reply.to_vec()),
        }
    }

    /// Returns the bytes as a vector.
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Encoded::Short(..) => self.to_vec(),
            Encoded::Long(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for Encoded {
    fn from(reply: Vec<u8>) -> Encoded {
        Encoded::Long(reply)
    }
}

impl Deref for Encoded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Encoded::Short(bytes, len) => &bytes[..usize::from(*len)],
            Encoded::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Encoded) -> bool {
        **self == **other
    }
}

impl Eq for Encoded {}

impl std::fmt::Debug for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

/// What came of a task. Replies are encoded.
#[derive(Clone, Debug)]
pub enum Done {
    /// The reply to one command.
    One(Encoded),
    /// The replies of a unit, in order; `None` if a watched key has changed.
    Unit(Option<Vec<Vec<u8>>>),
    /// Versions, in the order of the keys.
    Versions(Vec<u64>),
    /// Counts, by database.
    Counts(Box<[Counts; DATABASES]>),
    /// What the front ends of the other cores have said.
    Answers(Vec<Answer>),
    /// The while is over.
    Slept,
    /// Nothing was done, or it is not known whether it was: an error.
    Failed(Vec<u8>),
}

/// A command of named keys that lies in its client's input.
#[derive(Clone, Copy, Debug)]
pub struct Here<'r> {
    /// Which command. Its arity is right.
    pub command: &'static Command,
    /// Its arguments.
    pub request: Request<'r>,
    /// The selected database.
    pub db: usize,
}

impl<'r> Here<'r> {
    /// Returns the keys it names.
    pub fn keys(self) -> impl Iterator<Item = &'r [u8]> + Clone + use<'r> {
        let Here { command, request, .. } = self;
        command.key_indexes(request.len()).filter_map(move |index| request.get(index))
    }
}

/// What came of a command that lies in its client's input.
#[derive(Clone, Debug)]
pub enum Started {
    /// Its reply is appended to the output.
    Answered,
    /// What came of it, at once.
    Done(Done),
    /// It was copied, and what comes of it is given to the front end with its token.
    Waits(OwnedRequest),
    /// It is none for one shard: it is to be started as a task.
    Spread,
}

/// Whoever has the keys.
pub trait Backend {
    /// Returns whether a task can be executed in one step by whoever has all of its keys. Such
    /// tasks of one client take effect in the order of their start, if they concern the same keys;
    /// the others need to be waited for on both sides.
    fn is_simple(&self, task: &Task) -> bool;

    /// Starts a task; returns what came of it if it is there at once. Otherwise the owner gives it
    /// to the front end with this lane, which is the client, and this token.
    fn start(&mut self, task: Task, manner: Manner, lane: u64, token: u64) -> Option<Done>;

    /// Starts a command as [`Backend::start`] does, if it is simple, without copying it unless it has to
    /// wait.
    fn start_here(
        &mut self,
        here: Here<'_>,
        manner: Manner,
        lane: u64,
        token: u64,
        output: &mut Vec<u8>,
    ) -> Started;

    /// Moves the time of tasks that are started to the present.
    fn refresh(&mut self);

    /// Says whether keys are removed when their deadline comes, or only hidden from then on.
    fn set_active_expire(&mut self, on: bool);
}
