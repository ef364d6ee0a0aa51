//! What the HTTP pages show of this process.

use std::sync::Arc;

use atoll_env::{Clock, Instant};
use atoll_http::{Health, Pages, ShardFuture, Shards};
use atoll_kv::{RoutingKey, ShardReport};
use atoll_lsm::Stats as EngineStats;
use atoll_lsm::driven::Tree;
use atoll_redis::Shared;
use atoll_server::Operator;

/// The shards of a running server.
pub(crate) struct OfServer(pub(crate) Operator);

impl Shards for OfServer {
    fn list(&self) -> ShardFuture<'_, Vec<ShardReport>> {
        Box::pin(self.0.shards())
    }

    fn double(&self) -> ShardFuture<'_, (usize, Vec<String>)> {
        Box::pin(self.0.reshard_double())
    }

    fn split(&self, slot: u16) -> ShardFuture<'_, u64> {
        Box::pin(self.0.split_at(RoutingKey::Slot(slot)))
    }
}

/// The pages of a running server.
pub(crate) struct ServerPages {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) started: Instant,
    pub(crate) redis: Arc<Shared>,
    pub(crate) trees: Vec<(usize, Tree)>,
}

impl ServerPages {
    /// What all stores say, together.
    fn engine(&self) -> EngineStats {
        let mut sum = EngineStats::default();
        self.trees.iter().for_each(|(_, tree)| sum.add(&tree.stats()));
        sum
    }
}

impl Pages for ServerPages {
    /// The counters of surface and engine, and those of the process, which neither of them knows.
    fn metrics(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let uptime = self.clock.now().since(self.started).as_secs_f64();
        format!(
            "# HELP atoll_build_info The running version.\n\
             # TYPE atoll_build_info gauge\n\
             atoll_build_info{{version=\"{version}\"}} 1\n\
             # HELP atoll_uptime_seconds Time since the start.\n\
             # TYPE atoll_uptime_seconds gauge\n\
             atoll_uptime_seconds {uptime}\n\
             {}",
            atoll_server::metrics::render(
                &self.redis.total(),
                &self.engine(),
                self.redis.disk().as_ref()
            )
        )
    }

    /// Ready while the engine takes writes.
    fn health(&self) -> Health {
        match self.engine().refusal {
            None => Health::Ready,
            Some(why) => Health::Impaired(why),
        }
    }
}
