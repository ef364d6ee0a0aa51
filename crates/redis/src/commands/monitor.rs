//! What was slow, and where memory goes: SLOWLOG, LATENCY, MEMORY.

use std::fmt::Write;

use crate::commands::SessionCall;
use crate::error::{Outcome, fixed, quoting};
use crate::stats::{BUCKETS, Histogram};
use crate::table::{COMMANDS, Command};
use crate::tx::Counts;

impl SessionCall<'_> {
    pub fn slowlog_get(&mut self) -> Outcome {
        let wanted = match self.request.len() {
            2 => 10,
            3 => {
                let count = atoll_resp::number::parse_i64(self.arg(2)).filter(|count| *count >= -1);
                let wrong = fixed("ERR count should be greater than or equal to -1");
                usize::try_from(count.ok_or(wrong)?).unwrap_or(usize::MAX)
            }
            _ => {
                let text = "ERR unknown subcommand or wrong number of arguments for 'GET'. Try SLOWLOG HELP.";
                return Err(fixed(text));
            }
        };
        let shared = self.server.shared.clone();
        let log = shared.slowlog.lock();
        let mut reply = self.reply();
        reply.array(log.entries().len().min(wanted));
        for entry in log.entries().take(wanted) {
            reply.array(6);
            reply.int(entry.id as i64);
            reply.int(entry.at_s as i64);
            reply.int(i64::try_from(entry.took.as_micros()).unwrap_or(i64::MAX));
            reply.array(entry.args.len());
            entry.args.iter().for_each(|arg| reply.bulk(arg));
            reply.bulk(entry.peer.to_string().as_bytes());
            reply.bulk(&entry.name);
        }
        Ok(())
    }

    pub fn slowlog_len(&mut self) -> Outcome {
        let len = self.server.shared.slowlog.lock().entries().len();
        self.reply().count(len);
        Ok(())
    }

    pub fn slowlog_reset(&mut self) -> Outcome {
        self.server.shared.slowlog.lock().clear();
        self.reply().ok();
        Ok(())
    }

    pub fn latency_latest(&mut self) -> Outcome {
        let shared = self.server.shared.clone();
        let latency = shared.latency.lock();
        let mut reply = self.reply();
        reply.array(latency.events().len());
        for (name, event) in latency.events() {
            let last = event.samples.back();
            reply.array(4);
            reply.bulk(name.as_bytes());
            reply.int(last.map_or(0, |sample| sample.at_s as i64));
            reply.int(last.map_or(0, |sample| sample.ms as i64));
            reply.int(event.worst_ms as i64);
        }
        Ok(())
    }

    pub fn latency_history(&mut self) -> Outcome {
        let shared = self.server.shared.clone();
        let latency = shared.latency.lock();
        let event = latency.event(self.arg(2));
        let mut reply = self.reply();
        reply.array(event.map_or(0, |event| event.samples.len()));
        for sample in event.iter().flat_map(|event| &event.samples) {
            reply.array(2);
            reply.int(sample.at_s as i64);
            reply.int(sample.ms as i64);
        }
        Ok(())
    }

    pub fn latency_reset(&mut self) -> Outcome {
        let named = |name: &str| {
            self.request.len() == 2 || self.request.tail(2).any(|arg| arg == name.as_bytes())
        };
        let reset = self.server.shared.latency.lock().reset(named);
        self.reply().count(reset);
        Ok(())
    }

    pub fn latency_graph(&mut self) -> Outcome {
        let shared = self.server.shared.clone();
        let latency = shared.latency.lock();
        let name = self.arg(2);
        let Some(event) = latency.event(name) else {
            return Err(quoting(&[b"ERR No samples available for event '", name, b"'"]));
        };
        let now_s = self.server.clock.wall().0 / 1_000;
        let graph = event.graph(&String::from_utf8_lossy(name), now_s);
        self.reply().verbatim(b"txt", graph.as_bytes());
        Ok(())
    }

    pub fn latency_doctor(&mut self) -> Outcome {
        let shared = self.server.shared.clone();
        let latency = shared.latency.lock();
        let mut text = String::new();
        if self.server.config.latency_threshold_ms == 0 {
            text.push_str(
                "Latency monitoring is disabled in this AtollDB instance. You may use \"CONFIG SET \
                 latency-monitor-threshold <milliseconds>.\" in order to enable it.",
            );
        } else if latency.events().len() == 0 {
            text.push_str(
                "No latency spikes were observed since the monitoring began or was reset.",
            );
        } else {
            for (name, event) in latency.events() {
                let samples = event.samples.len();
                // Writing to a string does not fail.
                let _ = writeln!(
                    text,
                    "{name}: {samples} latency spikes (average {} ms, worst all time {} ms).",
                    event.mean_ms(),
                    event.worst_ms
                );
            }
            text.push_str(
                "SLOWLOG GET shows which commands were slow. A synced write is as slow as the disk's \
                 sync: INFO latencystats and the summary atoll_engine_sync_seconds of the metrics \
                 page tell them apart.",
            );
        }
        self.reply().verbatim(b"txt", text.as_bytes());
        Ok(())
    }

    pub fn latency_histogram(&mut self) -> Outcome {
        let total = self.server.shared.since_reset();
        let index = &self.server.index;
        let asked: Vec<&'static Command> = if self.request.len() == 2 {
            COMMANDS.iter().collect()
        } else {
            let mut asked = Vec::new();
            for name in self.request.tail(2) {
                let Some(command) = index.find(name) else { continue };
                asked.push(command);
                asked.extend(command.subcommands());
            }
            asked
        };
        let called = |command: &&&'static Command| total.command(command.id).calls.get() > 0;
        let shown: Vec<_> = asked.iter().filter(called).collect();
        let mut reply = self.session.reply();
        reply.map(shown.len());
        for command in shown {
            let of = total.command(command.id);
            reply.bulk(command.name.as_bytes());
            reply.map(2);
            reply.bulk(b"calls");
            reply.int(of.calls.get() as i64);
            reply.bulk(b"histogram_usec");
            let counts = of.latency.counts();
            reply.map(counts.iter().filter(|count| **count > 0).count());
            let mut cumulated = 0;
            for (bucket, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
                cumulated += count;
                reply.int(1 << bucket.min(BUCKETS - 1));
                reply.int(cumulated as i64);
            }
        }
        Ok(())
    }

    /// What MEMORY STATS can say of a server whose keys are on disk: its caches, memtables and
    /// buffers. Figures of an allocator are left out rather than guessed.
    pub fn memory_stats(&mut self) -> Outcome {
        let total = self.server.shared.total();
        let (store, clients) = (total.store_bytes.get(), total.client_bytes.get());
        let all = store + clients;
        let counts = self.server.counts.counts;
        let keys: u64 = counts.iter().map(|Counts { keys, .. }| keys).sum();
        let rss = self.server.identity.usage().map(|usage| usage.resident_bytes);
        let mut reply = self.session.reply();
        reply.map(9 + 2 * usize::from(rss.is_some()));
        for (name, value) in [
            ("total.allocated", all),
            ("replication.backlog", 0),
            ("clients.slaves", 0),
            ("clients.normal", clients),
            ("aof.buffer", 0),
            ("overhead.total", clients),
            ("keys.count", keys),
            ("keys.bytes-per-key", store / keys.max(1)),
            ("dataset.bytes", store),
        ] {
            reply.bulk(name.as_bytes());
            reply.int(value as i64);
        }
        if let Some(rss) = rss {
            reply.bulk(b"allocator.resident");
            reply.int(rss as i64);
            reply.bulk(b"fragmentation");
            reply.double(rss as f64 / all.max(1) as f64);
        }
        Ok(())
    }

    pub fn memory_doctor(&mut self) -> Outcome {
        let total = self.server.shared.total();
        let (store, clients) = (total.store_bytes.get(), total.client_bytes.get());
        let text = if clients > store && clients > 64 << 20 {
            format!(
                "Clients' buffers take {clients} bytes, more than caches and memtables ({store} \
                 bytes): CLIENT LIST shows whose (qbuf, omem)."
            )
        } else {
            format!(
                "Nothing to complain about: caches and memtables take {store} bytes of the budget \
                 that --memory set, clients' buffers {clients}."
            )
        };
        self.reply().verbatim(b"txt", text.as_bytes());
        Ok(())
    }

    pub fn memory_malloc_stats(&mut self) -> Outcome {
        self.reply().bulk(b"Stats not supported for the current allocator");
        Ok(())
    }

    /// Nothing is kept that could be given back: caches shrink when memory is needed elsewhere.
    pub fn memory_purge(&mut self) -> Outcome {
        self.reply().ok();
        Ok(())
    }
}

/// Returns the upper bound, in microseconds, of the bucket in which a percentile of all durations
/// is reached.
pub(crate) fn percentile_us(histogram: &Histogram, percent: f64) -> u64 {
    let counts = histogram.counts();
    let wanted = (counts.iter().sum::<u64>() as f64 * percent / 100.0).ceil() as u64;
    let mut seen = 0;
    let bucket = counts.iter().position(|count| {
        seen += count;
        seen >= wanted
    });
    1 << bucket.unwrap_or(0)
}
