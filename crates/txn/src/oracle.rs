//! The oracle: who gives out the points in time that everything else is derived from.
//!
//! On one engine it is one counter: the next epoch is one more than the last, or the wall clock if
//! that is ahead. Every point has an epoch of its own; a read point may not share the epoch of an
//! earlier one, because between the two somebody may have derived a timestamp from the first that
//! lies above the second (`atoll_mvcc::timestamp`).
//!
//! The counter lives in memory. Who restarts must start above everything that was given out before:
//! the owner persists a bound ahead of it and calls [`LocalOracle::start_above`].

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_env::Clock;
use atoll_mvcc::{Epoch, Timestamp};

use crate::error::Unavailable;

/// Gives out points in time.
pub trait Oracle: 'static {
    /// Returns a read point above everything that was computed before the call.
    fn read_point(&self) -> impl Future<Output = Result<Timestamp, Unavailable>>;

    /// Returns a commit point above everything that was computed before the call. Nobody else gets
    /// the same.
    fn commit_point(&self) -> impl Future<Output = Result<Timestamp, Unavailable>>;

    /// Returns a point that is known to be given out, without asking far away. A read at a chosen
    /// moment may not lie above it.
    fn known(&self) -> Timestamp;
}

/// The oracle of one engine. Clones share the counter.
#[derive(Clone)]
pub struct LocalOracle {
    /// The last epoch given out; only grows.
    last: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
}

impl LocalOracle {
    /// Returns an oracle that follows the wall clock.
    pub fn new(clock: Arc<dyn Clock>) -> LocalOracle {
        LocalOracle { last: Arc::default(), clock }
    }

    /// Gives out nothing at or below `epoch` from now on.
    pub fn start_above(&self, epoch: Epoch) {
        self.last.fetch_max(epoch.0, Ordering::SeqCst);
    }

    /// Returns the last epoch given out.
    pub fn last(&self) -> Epoch {
        Epoch(self.last.load(Ordering::SeqCst))
    }

    /// Gives out the next epoch.
    pub fn next_epoch(&self) -> Epoch {
        let wall = Epoch::from_unix_ms(self.clock.wall().0).0;
        // The common case is a busy engine inside one millisecond of the wall clock: one addition.
        let last = self.last.fetch_add(1, Ordering::SeqCst);
        if last >= wall {
            return Epoch(last + 1);
        }
        // The epoch taken above is lost; whoever is first here moves the counter to the clock.
        let _ = self.last.fetch_max(wall, Ordering::SeqCst);
        Epoch(self.last.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

impl fmt::Debug for LocalOracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalOracle({})", self.last().0)
    }
}

impl Oracle for LocalOracle {
    async fn read_point(&self) -> Result<Timestamp, Unavailable> {
        Ok(Timestamp::read_at(self.next_epoch()))
    }

    async fn commit_point(&self) -> Result<Timestamp, Unavailable> {
        Ok(Timestamp::commit_at(self.next_epoch()))
    }

    fn known(&self) -> Timestamp {
        Timestamp::read_at(self.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_env::sim::{Sim, WALL_START};
    use std::time::Duration;

    #[test]
    fn points_ascend_follow_the_clock_and_never_go_back() {
        let sim = Sim::new(1);
        let node = sim.node("a");
        let oracle = LocalOracle::new(node.env().clock);
        let first = oracle.next_epoch();
        assert_eq!(first.unix_ms(), WALL_START.0);
        assert_eq!(oracle.next_epoch(), Epoch(first.0 + 1));
        sim.advance(Duration::from_secs(2));
        let later = oracle.next_epoch();
        assert_eq!(later.unix_ms(), WALL_START.0 + 2_000);
        node.set_wall_offset_ms(-60_000);
        assert_eq!(oracle.next_epoch(), Epoch(later.0 + 1));
        oracle.start_above(Epoch(later.0 + 1_000));
        assert_eq!(oracle.next_epoch(), Epoch(later.0 + 1_001));
        assert_eq!(oracle.known(), Timestamp::read_at(Epoch(later.0 + 1_001)));
    }
}
