//! Names of replicas, and through them where each one is.
//!
//! ```text
//!   replica id u64  =  engine u32 | serial u32
//!                      where it is   the how-manieth that was ever made there, from 1
//! ```
//!
//! A replica never moves: a shard moves to another engine as a new replica there. So its id can say
//! where to find it, and no table of addresses has to be kept in step with the members. An id is never
//! used again, and neither is the number of an engine: one that comes back with an empty disk gets
//! another one.
//!
//! *Rejected:* ids without meaning and a map beside the members. It changes with them, in the same
//! entries, and whoever has an old one sends to the wrong place.

use std::fmt;

/// An engine of a database, by its number. The engine that began the database in a directory from
/// before engines had numbers is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineId(pub u32);

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

/// Returns the id of a replica, the `serial`th that was made on an engine, from 1.
pub fn id(engine: EngineId, serial: u32) -> u64 {
    u64::from(engine.0) << 32 | u64::from(serial)
}

/// Returns the engine that a replica is on.
pub fn engine_of(replica: u64) -> EngineId {
    EngineId((replica >> 32) as u32)
}

/// Returns a replica's place in the order in which those of a shard take over, 0 for the one that leads
/// if it can. `voters` ascend.
///
/// The order is that of the ids, begun at another one for each shard: engines with a replica of every
/// shard lead equally many.
pub fn rank(voters: &[u64], replica: u64, shard: u64) -> u32 {
    let count = voters.len() as u64;
    let Some(at) = voters.iter().position(|&voter| voter == replica) else { return count as u32 };
    ((at as u64 + count - shard.wrapping_sub(1) % count) % count) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_where_its_replica_is() {
        let replica = id(EngineId(3), 7);
        assert_eq!(engine_of(replica), EngineId(3));
        assert_eq!(engine_of(1), EngineId(0), "replicas from before engines had numbers");
        assert_ne!(id(EngineId(3), 8), replica);
    }

    #[test]
    fn three_engines_lead_five_shards_in_turn() {
        // Who leads, who is next and who is last, shard by shard.
        let voters = [id(EngineId(1), 1), id(EngineId(2), 1), id(EngineId(3), 1)];
        let order = |shard| {
            let mut order = [0; 3];
            for &voter in &voters {
                order[rank(&voters, voter, shard) as usize] = engine_of(voter).0;
            }
            order
        };
        let table: Vec<_> = (1..=5).map(order).collect();
        assert_eq!(table, [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3], [2, 3, 1]]);
        assert_eq!(rank(&voters, 99, 1), 3, "who does not vote comes last");
        assert_eq!(rank(&[], 1, 1), 0);
    }
}
