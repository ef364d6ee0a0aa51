//! The slow log: commands that took longer than they should, the newest ones.
//!
//! Time counts from when a core takes a request up until its reply is ready: reads from the disk,
//! waiting for locks and the sync of the log are part of it, which Redis's slow log leaves out. The
//! time in buffers of the network is not. A transaction is one entry, its EXEC.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use atoll_resp::Request;

use crate::table::{Command, Id};

/// Arguments kept of a request; the last one says how many more there were.
const ARGS_MAX: usize = 32;
/// Bytes kept of an argument.
const ARG_MAX: usize = 128;

/// A request, shortened.
pub(crate) type Shortened = Vec<Box<[u8]>>;

/// A slow command.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub id: u64,
    /// Seconds of the Unix epoch.
    pub at_s: u64,
    pub took: Duration,
    pub args: Shortened,
    pub peer: SocketAddr,
    pub name: Vec<u8>,
}

/// The entries, the newest first.
#[derive(Default)]
pub(crate) struct SlowLog {
    entries: VecDeque<Entry>,
    next_id: u64,
}

impl SlowLog {
    /// Adds an entry under the next id and drops the oldest ones.
    pub fn push(&mut self, entry: Entry, max_len: usize) {
        self.entries.push_front(Entry { id: self.next_id, ..entry });
        self.next_id += 1;
        self.entries.truncate(max_len);
    }

    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Keeps of a request what the log shows: without secrets, and not more than it has room for.
pub(crate) fn shorten(command: &Command, request: &Request<'_>) -> Shortened {
    let secret = first_secret(command, request);
    let kept = if request.len() > ARGS_MAX { ARGS_MAX - 1 } else { request.len() };
    let mut args: Shortened = Vec::with_capacity(kept + 1);
    for (index, arg) in request.tail(0).take(kept).enumerate() {
        args.push(match arg {
            _ if secret.is_some_and(|first| index >= first) => b"(redacted)"[..].into(),
            arg if arg.len() > ARG_MAX => {
                let rest = format!("... ({} more bytes)", arg.len() - ARG_MAX);
                [&arg[..ARG_MAX], rest.as_bytes()].concat().into()
            }
            arg => arg.into(),
        });
    }
    if kept < request.len() {
        args.push(format!("... ({} more arguments)", request.len() - kept).into_bytes().into());
    }
    args
}

/// Returns the index from which on arguments are nobody's business.
fn first_secret(command: &Command, request: &Request<'_>) -> Option<usize> {
    let position = |word: &str| {
        request.tail(0).position(|arg| arg.eq_ignore_ascii_case(word.as_bytes())).map(|at| at + 1)
    };
    match command.id {
        Id::Auth => Some(1),
        Id::Hello => position("auth"),
        Id::ConfigSet => position("requirepass"),
        _ => None,
    }
}
