//! Keys: where a key belongs among the shards, and under which names a store keeps what it knows
//! about it.
//!
//! ```text
//!   what the client says     what shards say (Key)             what the tree says
//!   db 0, "cart:{7}"    ->   keyspace | slot | user key   ->   D | keyspace | slot | user key
//!                                |                             I | ...    R | ...    X | ...
//!                                v
//!                            routing key: 01 | slot, or 02 | keyspace | user key
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`class`] | which keyspace ids are placed how |
//! | [`placement`] | how a keyspace lays its keys out: in order, by Redis slot, by hash |
//! | [`routing`] | the one ordered space that shards divide among themselves, and its ranges |
//! | [`tree`] | the areas of a store: versions, intents, records, fences, parts, deadlines, state |
//!
//! A shard is one range of routing keys, but in the tree it is one range *per keyspace and area*.
//! That is the price of keeping every keyspace contiguous within a shard, which makes dropping one
//! a single range delete however many slots it has.

pub mod class;
pub mod placement;
pub mod routing;
pub mod tree;

pub use class::{PARTS, SLOTTED, is_slotted, place_of};
pub use placement::{Buckets, Parts, Placement, SLOTS, slot};
pub use routing::{Range, RoutingKey};
pub use tree::{Area, TreeKey};

/// Longest user key in bytes. A primary key may double when it is escaped in the name of its
/// transaction's record, and a user key with a sub key makes one tree key: both have to fit into
/// the 64 KiB that the engine allows.
pub const MAX_USER_KEY: usize = 32 * 1024 - 64;

/// Longest sub key in bytes, by the same sum.
pub const MAX_SUB_KEY: usize = MAX_USER_KEY;

/// What the engine allows.
const MAX_TREE_KEY: usize = 64 * 1024;

/// Longest key that has a name in the tree: before it stands the letter of an area.
pub(crate) const MAX_KEY: usize = MAX_TREE_KEY - 1;

const _: () = {
    let sub_record = 1 + placement::HEADER_MAX + 2 + MAX_USER_KEY + 8 + MAX_SUB_KEY;
    let record = 1 + 2 * (placement::HEADER_MAX + MAX_USER_KEY) + 2 + 16;
    assert!(sub_record <= MAX_TREE_KEY && record <= MAX_TREE_KEY);
};
