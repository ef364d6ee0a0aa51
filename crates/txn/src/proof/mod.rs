//! The proof: many small histories under seeded schedules, each checked as a whole.
//!
//! ```text
//!   seed --> weather, keys, programs
//!              |
//!   coordinators (nodes of the simulator; they die) ---- requests ----> a Cluster
//!              |                                                          leaders change, shards
//!              |  journal: who read what, wrote what, was told what       split, safepoints move
//!              v                                                          |
//!            check  <------------------- all versions of all keys --------+
//! ```
//!
//! A schedule is a few coordinators with a few transactions each on a handful of keys, so that
//! everything meets everything. It ends when all programs have ended and what the dead left behind
//! is recovered; then [`check`] looks at the journal and at the versions, without knowing any
//! protocol: atomicity, durability, reads, order, first committer wins, no lost update, no phantom,
//! progress.
//!
//! The shards are behind the trait [`Cluster`]. The reference shard ([`reference`](mod@reference))
//! is one; the real one has to pass the same schedules.
//!
//! # Why one may believe it
//! Each rule of the protocol can be left out ([`crate::mutants`] and those of the reference shard);
//! the test leaves out one at a time and wants it caught within a number of seeds. "No violation" is
//! evidence, not proof: a rule set that was wrong once in 360,000 schedules has been seen.

use std::collections::BTreeMap;
use std::future::Future;

use atoll_mvcc::Timestamp;
use atoll_mvcc::keys::{Placement, SLOTTED};
use atoll_mvcc::request::{Key, Obstacle};

use crate::Shards;

pub mod check;
mod cluster;
pub mod journal;
pub mod kinds;
mod net;
mod program;
pub mod reference;
mod schedule;
#[cfg(test)]
mod tests;

pub use cluster::{ReferenceCluster, ReferenceShards};
pub use net::{Ground, Net};
pub use reference::{Fast, FastAnswer};
pub use schedule::{Knobs, Report, run_bent};

/// A place in the order of everything.
///
/// A shard may decide several things at one timestamp, one after the other: whoever reads at that
/// timestamp sees the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment {
    /// When.
    pub ts: Timestamp,
    /// In which order at that time.
    pub order: u64,
}

impl Moment {
    /// Returns the last moment of a timestamp.
    pub fn end_of(ts: Timestamp) -> Moment {
        Moment { ts, order: u64::MAX }
    }
}

/// A write that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// When.
    pub at: Moment,
    /// What, `None` if the key was deleted.
    pub value: Option<Vec<u8>>,
}

/// How keys are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In an ordered keyspace.
    Ordered,
    /// By slots, each key at one of its own.
    Slots,
    /// By slots, in the keyspace of the shards' own values: each shard's first key is one.
    Own,
}

impl Layout {
    /// Returns the key of a number below 26; keys ascend with it.
    pub fn key(self, number: u64) -> Key {
        let keyspace = match self {
            Layout::Ordered => return Placement::Ordered.key(7, &[b'a' + number as u8]),
            Layout::Slots => SLOTTED + 3,
            Layout::Own => SLOTTED,
        };
        let mut key = keyspace.to_be_bytes().to_vec();
        key.extend_from_slice(&(number as u16 * 600).to_be_bytes());
        key
    }
}

/// A set of shards that a schedule runs against.
pub trait Cluster: Clone + 'static {
    /// How a coordinator reaches them.
    type Shards: Shards;

    /// Whether a client may have several commands of the fast lane under way. They take effect in
    /// order, as long as no shard is split.
    const PIPELINES: bool = false;

    /// Returns a new client's view.
    fn shards(&self) -> Self::Shards;

    /// Runs commands of the fast lane, of one client: each of keys of one shard, no oracle.
    fn fast(&self, commands: Vec<Fast>) -> Vec<impl Future<Output = FastAnswer>>;

    /// Lets some shard change its leader; what was in flight may be lost, from some point on.
    fn change_leader(&self);

    /// Splits the shard that has `at`, there.
    fn split(&self, at: &Key);

    /// Lets some shard learn an epoch that the oracle has given out.
    fn learn_epoch(&self);

    /// Moves the safepoint: what is stamped below is refused from now on.
    fn set_safepoint(&self, safepoint: Timestamp);

    /// Drops what was kept up to the safepoint; all intents below are resolved.
    fn collect(&self);

    /// Returns all intents.
    fn intents(&self) -> Vec<Obstacle>;

    /// Returns everything that was written, what was overwritten at the same timestamp included.
    fn history(&self) -> BTreeMap<Key, Vec<Written>>;

    /// Returns what the cluster itself has found to be wrong.
    fn wrongs(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What the network and the disks are like.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Usual delay of a message.
    pub network_us: u64,
    /// Usual time from a proposal to its application.
    pub apply_us: u64,
    /// Share of delays that are many times as long.
    pub tail: f64,
    /// Share of messages whose connection breaks.
    pub breaks: f64,
    /// Longest delay of a message whose connection broke.
    pub late_us: u64,
}
