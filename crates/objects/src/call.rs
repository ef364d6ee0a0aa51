//! Calls: commands on their way to a shard, with everything that they need.

use atoll_mvcc::Timestamp;
use atoll_mvcc::keys::{Range, RoutingKey, slot};
pub use atoll_redis::task::{Encoded, Item, Watched};
use atoll_redis::{CommandError, Durability};
use atoll_resp::{Protocol, ReplyWriter};

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Work {
    /// One command.
    One(Item),
    /// Commands between MULTI and EXEC, unless a watched key has changed.
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
}

/// Work with what its client has chosen.
#[derive(Clone, Debug)]
pub struct Call {
    /// What is to be done. All keys are on one shard.
    pub work: Work,
    /// The slot of one of the keys.
    pub slot: u16,
    /// The protocol of the reply.
    pub protocol: Protocol,
    /// Whether reads count as such.
    pub touch: bool,
    /// What the acknowledgement has to survive.
    pub durability: Durability,
    /// As of when commands that only read are to be answered.
    pub moment: Moment,
}

impl Call {
    /// Returns whether all its keys lie in a range that has one of them.
    pub fn fits(&self, range: &Range) -> bool {
        if let Work::One(item) = &self.work
            && item.keys().nth(1).is_none()
        {
            return true;
        }
        self.keys().iter().all(|key| range.contains(RoutingKey::Slot(slot(key))))
    }

    /// Returns the keys it names. All of them have to be on the shard that evaluates it: nothing there
    /// asks again.
    pub fn keys(&self) -> Vec<&[u8]> {
        match &self.work {
            Work::One(item) => item.keys().collect(),
            Work::Unit { items, watched } => {
                let watched = watched.iter().map(|watched| &*watched.key);
                items.iter().flat_map(Item::keys).chain(watched).collect()
            }
            Work::Versions { keys, .. } => keys.iter().map(|key| &**key).collect(),
        }
    }
}

/// As of when a read is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moment {
    /// What is applied when it is evaluated.
    #[default]
    Now,
    /// A timestamp that was drawn after the question came: strictly serializable.
    At(Timestamp),
    /// An earlier timestamp, or a later one if that is not known any more.
    Past(Timestamp),
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The reply to one command, encoded.
    One(Encoded),
    /// The replies of a unit, encoded, in order; `None` if a watched key has changed.
    Unit(Option<Vec<Vec<u8>>>),
    /// Versions, in the order of the keys.
    Versions(Vec<u64>),
    /// Nothing was done, or it is not known whether it was: an error, encoded.
    Failed(Vec<u8>),
}

/// Encodes an error.
pub fn encode_error(protocol: Protocol, error: &CommandError) -> Vec<u8> {
    encode_text(protocol, error.text())
}

/// Encodes the text of an error.
pub fn encode_text(protocol: Protocol, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 3);
    ReplyWriter::new(&mut out, protocol).error(text);
    out
}
