//! The routing table: which shard has a place, and which core has the shard.
//!
//! Every core has the whole table, as an immutable value behind one pointer. A change (a split)
//! makes a new one and sends it to the other cores; until it arrives they ask the wrong shard, which
//! tells them so and lets them look again.

use std::fmt;

use atoll_mvcc::keys::RoutingKey;
use atoll_shard::descriptor::{Descriptor, ShardId};

/// Where a shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The shard and its range.
    pub descriptor: Descriptor,
    /// The store that has it.
    pub store: usize,
    /// The core that owns the store.
    pub core: usize,
}

/// All shards, by the start of their ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    routes: Vec<Route>,
    /// Counts changes; a newer table wins.
    version: u64,
}

impl Table {
    /// Makes a table of shards in any order.
    pub fn new(mut routes: Vec<Route>) -> Table {
        routes.sort_by(|a, b| a.descriptor.range.start.cmp(&b.descriptor.range.start));
        Table { routes, version: 1 }
    }

    /// Returns whether the ranges cover everything without overlap; the reason if not.
    pub fn check(&self) -> Result<(), String> {
        let mut end = RoutingKey::START;
        for route in &self.routes {
            let range = &route.descriptor.range;
            if range.start != end {
                return Err(format!(
                    "shard {} begins at {}, not at {end}",
                    route.descriptor.id, range.start
                ));
            }
            end = range.end.clone();
        }
        if end != RoutingKey::End {
            return Err(format!("the shards end at {end}"));
        }
        Ok(())
    }

    /// Returns the shard that has a place.
    pub fn find(&self, place: RoutingKey<&[u8]>) -> &Route {
        let after =
            self.routes.partition_point(|route| route.descriptor.range.start.borrowed() <= place);
        // The first range starts at the first place there is.
        &self.routes[after.saturating_sub(1)]
    }

    /// Returns a shard by its id.
    pub fn get(&self, id: ShardId) -> Option<&Route> {
        self.routes.iter().find(|route| route.descriptor.id == id)
    }

    /// Returns all shards, by the start of their ranges.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Returns how often the table was changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the table after a shard was split: `left` takes the place of what had its id, and
    /// `right` is in the same store.
    pub fn after_split(&self, left: &Descriptor, right: &Descriptor) -> Table {
        let mut routes = self.routes.clone();
        let at = routes.iter().position(|route| route.descriptor.id == left.id);
        // A table that was told of later splits first keeps what it knows.
        let newer = |route: &Route| route.descriptor.epoch >= left.epoch;
        if let Some(at) = at
            && !newer(&routes[at])
            && !routes.iter().any(|route| route.descriptor.id == right.id)
        {
            routes[at].descriptor = left.clone();
            let route = Route { descriptor: right.clone(), ..routes[at].clone() };
            routes.insert(at + 1, route);
        }
        Table { routes, version: self.version + 1 }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for route in &self.routes {
            writeln!(f, "{} store {} core {}", route.descriptor, route.store, route.core)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use atoll_mvcc::keys::Range;

    use super::*;

    fn table(shards: u16) -> Table {
        let ranges = Range::divide(shards).into_iter().enumerate();
        Table::new(
            ranges
                .map(|(n, range)| Route {
                    descriptor: Descriptor { id: ShardId(n as u64 + 1), range, epoch: 1 },
                    store: n % 2,
                    core: 0,
                })
                .collect(),
        )
    }

    #[test]
    fn every_place_has_one_shard_before_and_after_a_split() {
        let before = table(4);
        before.check().unwrap();
        let parent = before.find(RoutingKey::Slot(5_000)).descriptor.clone();
        let (left, right) = parent.split(RoutingKey::Slot(6_000), ShardId(9)).unwrap();
        let after = before.after_split(&left, &right);
        after.check().unwrap();
        assert_eq!(after.find(RoutingKey::Slot(5_999)).descriptor, left);
        assert_eq!(after.find(RoutingKey::Slot(6_000)).descriptor, right);
        assert_eq!(after.after_split(&left, &right).routes(), after.routes(), "told twice");
        let last = RoutingKey::Ordered { keyspace: 9, key: &b"k"[..] };
        assert_eq!(after.find(last).descriptor.range.end, RoutingKey::End);
    }

    #[test]
    fn a_hole_is_noticed() {
        let mut routes = table(4).routes().to_vec();
        routes.remove(1);
        assert!(Table::new(routes).check().is_err());
    }
}
