//! MULTI to EXEC: a unit of commands.
//!
//! ```text
//!   WATCH k      the version of k is noted
//!   MULTI        the session begins to queue
//!   SET k 1      checked against the table, copied, answered QUEUED
//!   EXEC         the unit: compare versions, then run all, as one
//!   DISCARD      forget the queue and the versions
//! ```
//!
//! The session collects, EXEC hands over a [`Unit`]. Whoever executes it does so in one consistent
//! moment: the executor within its turn, a router by locking the keys that the commands' rows of
//! the table name and the watched ones. A command of the unit that fails answers its error and the
//! others go on, as in Redis; a command that could not be queued makes EXEC refuse all.

use atoll_resp::OwnedRequest;

use crate::table::Command;
use crate::task::Watched;

/// Most bytes that a client may have queued.
pub(crate) const MAX_QUEUED: usize = 256 << 20;

/// What EXEC executes.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    /// The commands, in order. SELECT may be among them.
    pub commands: Vec<Queued>,
    /// What must not have changed.
    pub watched: Vec<Watched>,
}

/// A queued command. Its arity is right.
#[derive(Debug)]
pub(crate) struct Queued {
    pub command: &'static Command,
    pub request: OwnedRequest,
}

/// The state of a session between MULTI and EXEC.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub commands: Vec<Queued>,
    /// Bytes the commands take.
    pub bytes: usize,
    /// A command was refused: EXEC will refuse the unit.
    pub failed: bool,
}

impl Queue {
    /// Adds a command; returns whether there was room for it.
    pub fn push(&mut self, command: &'static Command, request: OwnedRequest) -> bool {
        let bytes = self.bytes + request.memory() + size_of::<Queued>();
        if bytes > MAX_QUEUED {
            return false;
        }
        self.bytes = bytes;
        self.commands.push(Queued { command, request });
        true
    }
}
