//! The key-value layer: cores, stores, shards, and the way of a request to its shard.
//!
//! ```text
//!   node    a data directory and its cores
//!   core    one thread: owns stores, and a port of the mesh between cores
//!   store   one log lane and one tree, driven by its core; shared by the shards placed in it
//!   shard   a range of keys with a consensus group; evaluated by its leader
//! ```
//!
//! The layer above gives its commands a meaning as a [`Program`] and calls them by
//! [`Core::call`]; transactions over many shards begin with [`Core::begin`].
//!
//! An engine that is one of several ([`ClusterOptions`]) has replicas of shards: its stores exchange messages with
//! those elsewhere through a [`Carrier`] (`store/replication.rs`), and answer for the shards that they lead.
//!
//! # Invariants
//! - A shard's state is touched by one thread. No lock lies on the path of a command to its shard,
//!   and no core waits for a disk.
//! - Commands of one lane on one shard take effect in the order of their calls.
//! - An answer leaves when what it tells is as durable as was asked for.
//!
//! The layer knows no wire protocol and no data type: values are bytes with a deadline.

mod base;
mod care;
mod core;
mod group;
pub mod identity;
mod node;
mod peers;
mod program;
mod reclaim;
mod signal;
mod store;
mod survey;
mod table;
mod time;

pub use crate::core::{Core, CoreShards, NodeOracle};
pub use atoll_mvcc::keys::RoutingKey;
pub use group::Lane;
pub use node::{Node, NodeOptions};
pub use peers::{Asked, Carrier, ClusterOptions, Lost};
pub use program::{Ask, Failure, Program, Tried};
pub use signal::Signal;
pub use survey::{ShardReport, shards_of_stopped};
pub use table::{Route, Table};
