//! Block-shards: what one consensus group of a store is made of.
//!
//! - [`consensus`]: the order of entries that the replicas of a shard agree on.

pub mod consensus;
