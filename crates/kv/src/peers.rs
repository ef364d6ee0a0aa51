//! Other engines: how an engine that is one of several is told who they are and reaches them.
//!
//! This layer says what is to be sent, and to whom; a [`Carrier`] brings it there. What arrives at the
//! other side goes into [`Core::arrived`](crate::Core::arrived) of any core.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use atoll_shard::replica::{self, EngineId};
use bytes::Bytes;

use crate::node::Shared;
use crate::program::Program;

/// First byte of a question for epochs.
pub(crate) const EPOCHS: u8 = 1;
/// First byte of a job for the leader of its shard.
pub(crate) const FORWARD: u8 = 2;
/// What such a job is.
pub(crate) const CALL: u8 = 1;
pub(crate) const REQUEST: u8 = 2;
/// First byte of the answer to one.
pub(crate) const REPLY: u8 = 1;
pub(crate) const RESPONSE: u8 = 2;
pub(crate) const MOVED: u8 = 3;
pub(crate) const UNKNOWN: u8 = 4;

/// An answer on its way, or why there is none.
pub type Asked = Pin<Box<dyn Future<Output = Result<Bytes, Lost>>>>;

/// A question to another engine got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It never left, or was refused unread: nothing has happened.
    NotSent,
    /// It is longer than what can be carried, in bytes: nothing has happened, and never will.
    TooLong(usize),
    /// It may have arrived, and what it asked for been done.
    Unknown,
}

/// Brings packets and questions to other engines.
pub trait Carrier: Send + Sync {
    /// Sends a packet of messages of replicas. It may be lost. Those that one core sends to an engine never
    /// overtake each other. Called on any core; does not wait.
    fn send(&self, to: EngineId, packet: Vec<u8>);

    /// Asks an engine; what comes back is what its [`Core::asked`](crate::Core::asked) has answered.
    /// Questions of one core to an engine arrive in the order of these calls, answers in any. Called on any
    /// core. May take as long as it likes: whoever asks has a deadline of his own.
    fn ask(&self, to: EngineId, question: Vec<u8>) -> Asked;
}

/// An engine's part in a database of several.
#[derive(Clone)]
pub struct ClusterOptions {
    /// This engine.
    pub engine: EngineId,
    /// The engines that began the database, this one included: a shard whose replicas never changed has
    /// one on each.
    pub founders: Vec<EngineId>,
    /// Reaches the others.
    pub carrier: Arc<dyn Carrier>,
}

/// Where a shard's replicas are, if they never changed.
pub(crate) struct Place {
    /// The one that is here.
    pub(crate) replica: u64,
    /// All, ascending.
    pub(crate) founders: Vec<u64>,
}

/// The first replica of a shard on an engine.
const FIRST: u32 = 1;

impl<P: Program> Shared<P> {
    /// Returns where replicas are by default.
    pub(crate) fn place(&self) -> Place {
        let alone = [EngineId(0)];
        let (engine, founders) = match &self.options.cluster {
            Some(cluster) => (cluster.engine, &cluster.founders[..]),
            None => (alone[0], &alone[..]),
        };
        let mut founders: Vec<u64> = founders.iter().map(|&e| replica::id(e, FIRST)).collect();
        founders.sort_unstable();
        Place { replica: replica::id(engine, FIRST), founders }
    }
}
