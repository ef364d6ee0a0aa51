//! Counters as text for Prometheus, version 0.0.4 of its exposition format.

use std::fmt::Write;

use atoll_env::disk::{DiskStatus, IoClass};
use atoll_lsm::pool::{Grant, Placement};
use atoll_redis::Stats;
use atoll_redis::stats::Histogram;

/// A page under construction.
struct Page(String);

/// Renders the counters of the Redis surface, of the engine under it and of the disk under that.
pub fn render(redis: &Stats, engine: &atoll_lsm::Stats, disk: Option<&DiskStatus>) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    page.redis(redis);
    page.engine(engine);
    if let Some(disk) = disk {
        page.disk(disk);
    }
    page.0
}

impl Page {
    fn redis(&mut self, stats: &Stats) {
        self.gauge(
            "atoll_connected_clients",
            "Connections open now.",
            stats.connected_clients.get(),
        );
        for (name, help, counter) in [
            ("connections_received", "Connections accepted.", &stats.connections_received),
            ("connections_rejected", "Connections refused: too many.", &stats.connections_rejected),
            ("input_bytes", "Bytes of requests.", &stats.input_bytes),
            ("output_bytes", "Bytes of replies.", &stats.output_bytes),
            ("error_replies", "Error replies.", &stats.error_replies),
            ("keyspace_hits", "Reads that found their key.", &stats.keyspace_hits),
            ("keyspace_misses", "Reads that did not.", &stats.keyspace_misses),
            ("turns", "Turns executed.", &stats.turns),
            ("commits_failed", "Commits that failed.", &stats.commits_failed),
        ] {
            self.counter(&format!("atoll_{name}_total"), help, counter.get());
        }
        self.head("atoll_commit_seconds", "histogram", "Time to commit a turn's writes.");
        self.histogram("atoll_commit_seconds", "", &stats.commits);
        self.head("atoll_command_seconds", "histogram", "Time to execute a command.");
        for (command, of) in stats.commands() {
            self.histogram("atoll_command_seconds", &format!("command=\"{command}\""), &of.latency);
        }
        self.head("atoll_command_failures_total", "counter", "Commands that answered an error.");
        for (command, of) in stats.commands() {
            for (kind, count) in [("failed", of.failed.get()), ("rejected", of.rejected.get())] {
                let labels = format!("command=\"{command}\",kind=\"{kind}\"");
                self.line("atoll_command_failures_total", &labels, count);
            }
        }
    }

    fn engine(&mut self, stats: &atoll_lsm::Stats) {
        for (name, help, value) in [
            ("batches", "Batches written.", stats.batches),
            ("batch_bytes", "Bytes of batches written.", stats.batch_bytes),
            ("gets", "Point reads.", stats.gets),
            ("flushed_bytes", "Bytes of tables flushed.", stats.flushed_bytes),
            ("compaction_read_bytes", "Bytes read by compaction.", stats.compaction_read_bytes),
            ("compaction_written_bytes", "Bytes written by it.", stats.compaction_written_bytes),
            ("values_written_bytes", "Bytes written to value files.", stats.values_written_bytes),
            (
                "values_moved_bytes",
                "Of these, bytes moved to free files.",
                stats.values_moved_bytes,
            ),
            ("stalls", "Times a writer waited for memory.", stats.stalls),
            ("cache_hits", "Blocks found in the cache.", stats.cache.hits),
            ("cache_misses", "Blocks not found in it.", stats.cache.misses),
            ("cache_evictions", "Blocks pushed out of it.", stats.cache.evictions),
            ("cache_strayed", "Blocks its region had no room for.", stats.cache.strayed),
            ("cache_cleared_runs", "Runs of it cleared for others.", stats.cache.cleared_runs),
            ("record_cache_hits", "Records found in the record cache.", stats.records.hits),
            ("record_cache_misses", "Records not found in it.", stats.records.misses),
            ("record_cache_admitted", "Records that it took.", stats.records.admitted),
            ("record_cache_rejected", "Records that it did not take.", stats.records.rejected),
            ("record_cache_late", "Records refused for a flush under way.", stats.records.late),
            ("record_cache_evictions", "Records pushed out of it.", stats.records.evictions),
            (
                "record_cache_invalidations",
                "Records that newer ones made untrue.",
                stats.records.invalidations,
            ),
        ] {
            self.counter(&format!("atoll_engine_{name}_total"), help, value);
        }
        for (name, help, value) in [
            ("memtable_bytes", "Bytes in memtables.", stats.memtable_bytes),
            (
                "sealed_memtables",
                "Memtables that wait for their flush.",
                stats.sealed_memtables as u64,
            ),
            ("snapshots", "Live snapshots.", stats.snapshots as u64),
            ("table_bytes", "Bytes of tables on disk.", stats.table_bytes()),
            ("value_file_bytes", "Bytes of value files on disk.", stats.value_file_bytes),
            ("value_live_bytes", "Of these, bytes that tables point to.", stats.value_live_bytes),
            ("cache_bytes", "Bytes in the block cache.", stats.cache.bytes),
            ("cache_capacity_bytes", "Capacity of the block cache.", stats.cache.capacity),
            ("cache_blocks", "Blocks in the block cache.", stats.cache.blocks),
            ("cache_region_bytes", "Bytes in runs of its region.", stats.cache.region_bytes),
            ("cache_heap_bytes", "Bytes of its blocks on the heap.", stats.cache.heap_bytes),
            ("record_cache_bytes", "Bytes in the record cache.", stats.records.bytes),
            ("record_cache_records", "Records in it.", stats.records.records),
            ("record_cache_capacity_bytes", "Capacity of it.", stats.records.capacity),
            ("quarantined_tables", "Tables set aside as corrupt.", stats.quarantined as u64),
            ("writes_refused", "1 while writes are refused.", u64::from(stats.refusal.is_some())),
        ] {
            self.gauge(&format!("atoll_engine_{name}"), help, value);
        }
        self.pool(&stats.pool);
        for (name, help, latency) in [
            ("sync", "Syncs of the log.", stats.syncs),
            ("flush", "Flushes of memtables.", stats.flushes),
            ("compaction", "Compactions.", stats.compactions),
        ] {
            let name = format!("atoll_engine_{name}_seconds");
            self.head(&name, "summary", help);
            for (quantile, us) in
                [("0.5", latency.p50), ("0.99", latency.p99), ("0.999", latency.p999)]
            {
                self.line(&name, &format!("quantile=\"{quantile}\""), us as f64 / 1e6);
            }
            self.line(&format!("{name}_count"), "", latency.count);
        }
        self.head("atoll_engine_level_bytes", "gauge", "Bytes of tables in a level.");
        for (level, of) in stats.levels.iter().enumerate() {
            self.line("atoll_engine_level_bytes", &format!("level=\"{level}\""), of.bytes);
        }
        self.head("atoll_engine_level_tables", "gauge", "Tables in a level.");
        for (level, of) in stats.levels.iter().enumerate() {
            self.line("atoll_engine_level_tables", &format!("level=\"{level}\""), of.tables);
        }
    }

    fn pool(&mut self, pool: &Placement) {
        self.head("atoll_engine_pool_info", "gauge", "Where the block cache has its memory.");
        self.line("atoll_engine_pool_info", &format!("strategy=\"{}\"", pool.strategy), 1);
        self.head("atoll_engine_pool_granted", "gauge", "1 for what the machine granted, 0 else.");
        for (what, grant) in [
            ("huge_pages", &pool.huge_pages),
            ("lock", &pool.lock),
            ("registered", &pool.registered),
        ] {
            let granted = matches!(grant, Grant::Granted(_));
            let labels = format!("what=\"{what}\",said=\"{}\"", escaped(&grant.to_string()));
            self.line("atoll_engine_pool_granted", &labels, u8::from(granted));
        }
    }

    fn disk(&mut self, disk: &DiskStatus) {
        self.head("atoll_disk_info", "gauge", "What carries the transfers of cores out.");
        self.line("atoll_disk_info", &format!("backend=\"{}\"", disk.backend), 1);
        self.head("atoll_disk_not_granted", "gauge", "What was wished for and not granted.");
        for what in &disk.degraded {
            let what = escaped(what);
            self.line("atoll_disk_not_granted", &format!("what=\"{what}\""), 1);
        }
        self.gauge("atoll_disk_rings", "io_uring rings that were opened.", disk.rings);
        self.head("atoll_disk_transfers_total", "counter", "Transfers, by what carried them out.");
        for (by, count) in [
            ("ring", disk.ring_transfers),
            ("thread", disk.thread_transfers),
            ("inline", disk.inline_transfers),
        ] {
            self.line("atoll_disk_transfers_total", &format!("by=\"{by}\""), count);
        }
        for (name, help, value) in [
            ("ring_submissions", "System calls that handed transfers over.", disk.ring_submissions),
            ("direct_transfers", "Transfers past the page cache.", disk.direct_transfers),
        ] {
            self.counter(&format!("atoll_disk_{name}_total"), help, value);
        }
        self.head("atoll_disk_bytes_total", "counter", "Bytes moved, by class.");
        for (class, bytes) in IoClass::ALL.iter().zip(disk.bytes) {
            self.line("atoll_disk_bytes_total", &format!("class=\"{}\"", class.name()), bytes);
        }
        if let Some(rate) = disk.background_rate {
            self.gauge("atoll_disk_background_rate_bytes", "Ceiling of background work.", rate);
        }
        self.head("atoll_disk_background_wait_seconds_total", "counter", "Waiting for it.");
        let waited = disk.background_waited_us as f64 / 1e6;
        self.line("atoll_disk_background_wait_seconds_total", "", waited);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut cumulated = 0;
        for (bucket, count) in histogram.counts().into_iter().enumerate() {
            cumulated += count;
            let bound = Histogram::bound_s(bucket).map_or("+Inf".to_owned(), |b| b.to_string());
            let labels = format!("{labels}{comma}le=\"{bound}\"");
            self.line(&format!("{name}_bucket"), &labels, cumulated);
        }
        self.line(&format!("{name}_sum"), labels, histogram.sum().as_secs_f64());
        self.line(&format!("{name}_count"), labels, cumulated);
    }

    // Writing to a string does not fail.

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            _ => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }
}

/// Returns a text as it may stand in a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_sample_follows_its_head_and_buckets_add_up() {
        let stats = Stats::new();
        stats.commits.record(Duration::from_micros(3));
        stats.commits.record(Duration::from_secs(60));
        stats.turns.add(2);
        let disk = DiskStatus {
            backend: "threads",
            degraded: vec!["io_uring: \"no\"".to_owned()],
            background_rate: Some(1 << 20),
            ..DiskStatus::default()
        };
        let page = render(&stats, &atoll_lsm::Stats::default(), Some(&disk));
        let mut head = "";
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                head = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(head), "{line} under {head}");
                let value = line.rsplit(' ').next().unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        assert!(page.contains("atoll_turns_total 2\n"));
        let lock = "atoll_engine_pool_granted{what=\"lock\",said=\"not asked for\"} 0\n";
        assert!(page.contains(lock), "{page}");
        assert!(page.contains("atoll_disk_not_granted{what=\"io_uring: \\\"no\\\"\"} 1\n"));
        assert!(page.contains("atoll_disk_bytes_total{class=\"level0\"} 0\n"));
        assert!(page.contains("atoll_commit_seconds_bucket{le=\"0.000004\"} 1\n"));
        assert!(page.contains("atoll_commit_seconds_bucket{le=\"+Inf\"} 2\n"));
    }
}
