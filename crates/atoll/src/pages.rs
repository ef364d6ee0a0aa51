//! What the HTTP pages show of this process.

use std::sync::Arc;

use atoll_env::{Clock, Instant};
use atoll_http::{Health, Pages};
use atoll_lsm::Database;
use atoll_redis::Stats;

/// The pages of a running server.
pub(crate) struct ServerPages {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) started: Instant,
    pub(crate) redis: Arc<Stats>,
    pub(crate) db: Database,
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
            atoll_server::metrics::render(&self.redis, &self.db.stats())
        )
    }

    /// Ready while the engine takes writes.
    fn health(&self) -> Health {
        match self.db.stats().refusal {
            None => Health::Ready,
            Some(why) => Health::Impaired(why),
        }
    }
}
