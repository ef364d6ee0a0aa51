//! What is counted, for each peer and class.

use std::cell::Cell;
use std::time::Duration;

use crate::id::{Class, EngineId};

/// What happened between this engine and a peer on connections of a class, since the peer is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// A connection is there.
    pub connected: bool,
    /// Frames that were handed to the network.
    pub frames_out: u64,
    /// Frames that arrived whole.
    pub frames_in: u64,
    /// Bytes that the network took, headers counted.
    pub bytes_out: u64,
    /// Bytes that it brought.
    pub bytes_in: u64,
    /// Writes to the network: the more frames each has, the better turns are used.
    pub writes: u64,
    /// Messages, calls and streams that this side did not send, since there was no connection or no
    /// room.
    pub drops: u64,
    /// Questions of the peer that were declined before anybody looked at them.
    pub declines: u64,
    /// Connections that came about.
    pub connects: u64,
    /// Connections that gave way to another one of the same two processes.
    pub redundant: u64,
    /// Round trip of the last ping that was answered.
    pub rtt: Option<Duration>,
    /// Bytes that wait to be written now.
    pub queue_bytes: u64,
    /// The most that ever waited.
    pub queue_bytes_max: u64,
    /// Bytes that arrived and were not taken now: chunks of bulk streams, answers.
    pub unread_bytes: u64,
    /// The most that were ever unread.
    pub unread_bytes_max: u64,
}

/// Statistics of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// The peer.
    pub engine: EngineId,
    /// One of each class.
    pub classes: [Stats; 3],
}

impl PeerStats {
    /// Returns those of a class.
    pub fn class(&self, class: Class) -> &Stats {
        &self.classes[class.index()]
    }
}

/// The counters behind [`Stats`], shared by what counts.
#[derive(Default)]
pub(crate) struct Counters(Cell<Stats>);

impl Counters {
    pub(crate) fn get(&self) -> Stats {
        self.0.get()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.0.get();
        change(&mut stats);
        stats.queue_bytes_max = stats.queue_bytes_max.max(stats.queue_bytes);
        stats.unread_bytes_max = stats.unread_bytes_max.max(stats.unread_bytes);
        self.0.set(stats);
    }
}
