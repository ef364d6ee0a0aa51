//! INFO: the server in figures, under the names that stock tools look for.
//!
//! A field is shown when its value is known and true. What Redis tells about forks, replicas or an
//! allocator is left out where there is no such thing, unless tools fail without it and zero is the
//! truth.

use std::fmt::{Display, Write};

use atoll_resp::Request;

use crate::commands::SessionCall;
use crate::commands::connection::REDIS_VERSION;
use crate::commands::monitor::percentile_us;
use crate::error::Outcome;
use crate::stats::Stats;
use crate::tx::Counts;

/// The sections in their order, and whether they are shown when none is asked for.
const SECTIONS: &[(&str, bool)] = &[
    ("server", true),
    ("clients", true),
    ("memory", true),
    ("persistence", true),
    ("stats", true),
    ("replication", true),
    ("cpu", true),
    ("modules", true),
    ("commandstats", false),
    ("errorstats", true),
    ("latencystats", false),
    ("cluster", true),
    ("keyspace", true),
];

/// A text under construction.
struct Lines<'t>(&'t mut String);

impl Lines<'_> {
    fn put(&mut self, name: &str, value: impl Display) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "{name}:{value}\r\n");
    }

    /// A number of bytes, for machines and for people.
    fn put_bytes(&mut self, name: &str, value: u64) {
        self.put(name, value);
        self.put(&format!("{name}_human"), human(value));
    }
}

/// Returns a number of bytes as Redis shows it to people.
fn human(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, letter)) => format!("{:.2}{letter}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}

impl SessionCall<'_> {
    pub fn info(&mut self) -> Outcome {
        let shown = SECTIONS.iter().map(|(section, _)| *section);
        let shown: Vec<&str> = shown.filter(|section| shows(&self.request, section)).collect();
        let total = self.server.shared.since_reset();
        let mut text = String::new();
        for section in shown {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let (first, rest) = section.split_at(1);
            let title = match section {
                "cpu" => "CPU".to_owned(),
                _ => first.to_ascii_uppercase() + rest,
            };
            text.push_str(&format!("# {title}\r\n"));
            self.info_section(section, &total, &mut Lines(&mut text));
        }
        self.reply().verbatim(b"txt", text.as_bytes());
        Ok(())
    }

    fn info_section(&self, section: &str, stats: &Stats, lines: &mut Lines<'_>) {
        match section {
            "server" => self.info_server(lines),
            "clients" => {
                lines.put("connected_clients", stats.connected_clients.get());
                lines.put("cluster_connections", 0);
                lines.put("maxclients", self.server.config.maxclients);
                lines.put("blocked_clients", 0);
                lines.put("tracking_clients", 0);
                lines.put("clients_in_timeout_table", 0);
            }
            "memory" => self.info_memory(stats, lines),
            "persistence" => {
                lines.put("loading", 0);
                lines.put("async_loading", 0);
                lines.put("durability", self.server.config.durability.name());
                self.info_disk(lines);
                // Everything acknowledged is in the log: there is nothing that a save would add.
                lines.put("rdb_changes_since_last_save", 0);
                lines.put("rdb_bgsave_in_progress", 0);
                lines.put("rdb_last_save_time", self.server.now_ms / 1_000);
                lines.put("rdb_last_bgsave_status", "ok");
                lines.put("aof_enabled", 1);
                lines.put("aof_rewrite_in_progress", 0);
                lines.put("aof_rewrite_scheduled", 0);
                lines.put("aof_last_bgrewrite_status", "ok");
                let failed = stats.commits_failed.get() > 0;
                lines.put("aof_last_write_status", if failed { "err" } else { "ok" });
            }
            "stats" => self.info_stats(stats, lines),
            "replication" => {
                lines.put("role", "master");
                lines.put("connected_slaves", 0);
                lines.put("master_failover_state", "no-failover");
                lines.put("master_replid", format_args!("{:040x}", self.server.identity.run_id));
                lines.put("master_repl_offset", 0);
                lines.put("repl_backlog_active", 0);
            }
            "cpu" => {
                if let Some(usage) = self.server.identity.usage() {
                    lines.put("used_cpu_sys", usage.system.as_secs_f64());
                    lines.put("used_cpu_user", usage.user.as_secs_f64());
                    lines.put("used_cpu_sys_children", 0);
                    lines.put("used_cpu_user_children", 0);
                }
            }
            "commandstats" => {
                for (name, command) in stats.commands() {
                    let (calls, usec) = (command.calls.get(), command.latency.sum().as_micros());
                    let (rejected, failed) = (command.rejected.get(), command.failed.get());
                    let per_call = usec as f64 / calls.max(1) as f64;
                    lines.put(
                        &format!("cmdstat_{name}"),
                        format_args!(
                            "calls={calls},usec={usec},usec_per_call={per_call:.2},\
                             rejected_calls={rejected},failed_calls={failed}"
                        ),
                    );
                }
            }
            "errorstats" => {
                for (code, count) in stats.errors() {
                    lines.put(&format!("errorstat_{code}"), format_args!("count={count}"));
                }
            }
            "latencystats" => {
                for (name, command) in stats.commands().filter(|(_, of)| of.calls.get() > 0) {
                    let percentiles = self.server.config.percentiles.iter();
                    let shown: Vec<String> = percentiles
                        .map(|p| format!("p{p}={}", percentile_us(&command.latency, *p)))
                        .collect();
                    lines.put(&format!("latency_percentiles_usec_{name}"), shown.join(","));
                }
            }
            "cluster" => lines.put("cluster_enabled", 0),
            "keyspace" => {
                for (db, counts) in self.server.counts.counts.iter().enumerate() {
                    let Counts { keys, expiring, mean_ttl_ms } = counts;
                    if *keys > 0 {
                        let text = format!("keys={keys},expires={expiring},avg_ttl={mean_ttl_ms}");
                        lines.put(&format!("db{db}"), text);
                    }
                }
            }
            _ => {}
        }
    }

    fn info_server(&self, lines: &mut Lines<'_>) {
        let server = &*self.server;
        let uptime = server.tick.since(server.started).as_secs();
        lines.put("redis_version", REDIS_VERSION);
        lines.put("atoll_version", server.identity.version);
        lines.put("redis_mode", "standalone");
        lines.put("os", std::env::consts::OS);
        lines.put("arch_bits", usize::BITS);
        lines.put("multiplexing_api", "epoll");
        lines.put("process_id", server.identity.process_id);
        lines.put("run_id", format_args!("{:040x}", server.identity.run_id));
        lines.put("tcp_port", server.config.port);
        lines.put("server_time_usec", server.now_ms.saturating_mul(1_000));
        lines.put("uptime_in_seconds", uptime);
        lines.put("uptime_in_days", uptime / 86_400);
        lines.put("executable", "atoll");
        lines.put("config_file", "");
        lines.put("io_threads_active", 0);
    }

    /// By what means the disk works. A simulated one has none.
    fn info_disk(&self, lines: &mut Lines<'_>) {
        let Some(disk) = self.server.shared.disk().filter(|disk| !disk.backend.is_empty()) else {
            return;
        };
        lines.put("io_backend", disk.backend);
        if !disk.degraded.is_empty() {
            lines.put("io_not_granted", disk.degraded.join("; "));
        }
        if let Some(rate) = disk.background_rate {
            lines.put_bytes("io_background_rate", rate);
        }
    }

    fn info_memory(&self, stats: &Stats, lines: &mut Lines<'_>) {
        let (store, clients) = (stats.store_bytes.get(), stats.client_bytes.get());
        let used = store + clients;
        lines.put_bytes("used_memory", used);
        if let Some(usage) = self.server.identity.usage() {
            lines.put_bytes("used_memory_rss", usage.resident_bytes);
            let ratio = usage.resident_bytes as f64 / used.max(1) as f64;
            lines.put("mem_fragmentation_ratio", format_args!("{ratio:.2}"));
            lines.put_bytes("total_system_memory", usage.system_bytes);
        }
        lines.put("used_memory_engine", store);
        lines.put("used_memory_clients", clients);
        lines.put("used_memory_dataset", store);
        lines.put("used_memory_overhead", clients);
        lines.put_bytes("used_memory_lua", 0);
        lines.put("number_of_cached_scripts", 0);
        lines.put("number_of_functions", 0);
        lines.put("number_of_libraries", 0);
        if !self.server.identity.allocator.is_empty() {
            lines.put("mem_allocator", self.server.identity.allocator);
        }
        lines.put_bytes("maxmemory", 0);
        lines.put("maxmemory_policy", "noeviction");
        lines.put("mem_clients_slaves", 0);
        lines.put("mem_clients_normal", clients);
        lines.put("active_defrag_running", 0);
        lines.put("lazyfree_pending_objects", 0);
        for (name, value) in self.server.shared.memory() {
            lines.put(name, value);
        }
    }

    fn info_stats(&self, stats: &Stats, lines: &mut Lines<'_>) {
        let [commands, input, output] = self.server.shared.rates().per_second;
        lines.put("total_connections_received", stats.connections_received.get());
        lines.put("total_commands_processed", stats.commands_processed.get());
        lines.put("instantaneous_ops_per_sec", commands.round());
        lines.put("total_net_input_bytes", stats.input_bytes.get());
        lines.put("total_net_output_bytes", stats.output_bytes.get());
        lines.put("instantaneous_input_kbps", format_args!("{:.2}", input / 1024.0));
        lines.put("instantaneous_output_kbps", format_args!("{:.2}", output / 1024.0));
        lines.put("rejected_connections", stats.connections_rejected.get());
        lines.put("sync_full", 0);
        lines.put("sync_partial_ok", 0);
        lines.put("sync_partial_err", 0);
        lines.put("expired_keys", stats.expired_keys.get());
        lines.put("evicted_keys", 0);
        lines.put("evicted_clients", 0);
        lines.put("keyspace_hits", stats.keyspace_hits.get());
        lines.put("keyspace_misses", stats.keyspace_misses.get());
        lines.put("pubsub_channels", 0);
        lines.put("pubsub_patterns", 0);
        lines.put("latest_fork_usec", 0);
        lines.put("migrate_cached_sockets", 0);
        lines.put("total_error_replies", stats.error_replies.get());
        lines.put("turns", stats.turns.get());
        lines.put("commits", stats.commits.counts().iter().sum::<u64>());
        lines.put("commits_failed", stats.commits_failed.get());
    }
}

/// Returns whether this request of INFO shows a section.
pub(crate) fn shows(request: &Request<'_>, section: &str) -> bool {
    let asked = |name: &str| request.tail(1).any(|arg| arg.eq_ignore_ascii_case(name.as_bytes()));
    let by_default = SECTIONS.iter().any(|(name, by_default)| *name == section && *by_default);
    let default = request.len() == 1 || asked("default");
    asked("all") || asked("everything") || (default && by_default) || asked(section)
}
