//! The server as clients see it: its commands, its configuration, its figures.

use std::fmt::Write;

use atoll_resp::{ReplyWriter, Request};

use crate::commands::SessionCall;
use crate::commands::connection::REDIS_VERSION;
use crate::config::PARAMETERS;
use crate::error::{self, Outcome, fixed, quoting};
use crate::glob;
use crate::stats::BUCKETS;
use crate::table::{self, CATEGORIES, COMMANDS, Command};
use crate::tx::Counts;

/// The sections of INFO in their order, and whether they are shown when none is asked for.
const SECTIONS: &[(&str, bool)] = &[
    ("server", true),
    ("clients", true),
    ("memory", true),
    ("persistence", true),
    ("stats", true),
    ("replication", true),
    ("commandstats", false),
    ("errorstats", true),
    ("latencystats", false),
    ("cluster", true),
    ("keyspace", true),
];

impl SessionCall<'_> {
    pub fn command_count(&mut self) -> Outcome {
        self.reply().count(table::top_level().count());
        Ok(())
    }

    pub fn command_all(&mut self) -> Outcome {
        let mut reply = self.reply();
        reply.array(table::top_level().count());
        for command in table::top_level() {
            describe(&mut reply, command);
        }
        Ok(())
    }

    pub fn command_info(&mut self) -> Outcome {
        if self.request.len() == 2 {
            return self.command_all();
        }
        self.session.reply().array(self.request.len() - 2);
        for name in self.request.tail(2) {
            let command = self.server.index.find(name);
            let mut reply = self.reply();
            match command {
                Some(command) => describe(&mut reply, command),
                None => reply.null(),
            }
        }
        Ok(())
    }

    pub fn command_docs(&mut self) -> Outcome {
        let index = &self.server.index;
        let commands: Vec<&Command> = match self.request.len() {
            2 => table::top_level().collect(),
            _ => self.request.tail(2).filter_map(|name| index.find(name)).collect(),
        };
        let mut reply = self.reply();
        reply.map(commands.len());
        for command in commands {
            document(&mut reply, command);
        }
        Ok(())
    }

    pub fn command_list(&mut self) -> Outcome {
        let name = |command: &'static Command| command.name;
        let names: Vec<&str> = if self.request.len() == 2 {
            table::top_level().map(name).collect()
        } else if self.request.len() == 5 && self.is(2, "FILTERBY") {
            let value = self.arg(4);
            if self.is(3, "MODULE") {
                Vec::new()
            } else if self.is(3, "ACLCAT") {
                let known = CATEGORIES.iter().find(|known| self.is(4, known));
                let inside = |command: &&Command| known.is_some_and(|k| command.in_category(k));
                COMMANDS.iter().filter(inside).map(name).collect()
            } else if self.is(3, "PATTERN") {
                let matching = |command: &&Command| glob::matches(value, command.name.as_bytes());
                COMMANDS.iter().filter(matching).map(name).collect()
            } else {
                return Err(error::SYNTAX);
            }
        } else {
            return Err(error::SYNTAX);
        };
        let mut reply = self.reply();
        reply.array(names.len());
        for name in names {
            reply.bulk(name.as_bytes());
        }
        Ok(())
    }

    pub fn command_getkeys(&mut self) -> Outcome {
        let found = self.server.index.find(self.arg(2));
        let command = found.ok_or(fixed("ERR Invalid command specified"))?;
        let args = self.request.len() - 2;
        if command.keys.is_empty() {
            return Err(fixed("ERR The command has no key arguments"));
        }
        if !command.accepts(args) {
            return Err(fixed("ERR Invalid number of arguments specified for command"));
        }
        let mut reply = self.session.reply();
        reply.array(command.key_indexes(args).count());
        for index in command.key_indexes(args) {
            reply.bulk(&self.request[index + 2]);
        }
        Ok(())
    }

    /// Answers the HELP of a container from the table.
    pub fn help(&mut self) -> Outcome {
        let container = self.command.container().map_or("", |(container, _)| container);
        let rows = COMMANDS.iter().filter_map(|row| {
            let (of, name) = row.container()?;
            (of == container).then_some((name, row.summary))
        });
        let title = container.to_ascii_uppercase();
        let mut reply = self.session.reply();
        reply.array(1 + 2 * rows.clone().count());
        reply.simple(&format!("{title} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
        for (name, summary) in rows {
            reply.simple(&name.to_ascii_uppercase());
            reply.simple(&format!("    {summary}"));
        }
        Ok(())
    }

    pub fn config_get(&mut self) -> Outcome {
        let request = self.request;
        let wanted = PARAMETERS.iter().filter(|parameter| {
            let name = parameter.name.as_bytes();
            request.tail(2).any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name))
        });
        let mut reply = self.session.reply();
        reply.map(wanted.clone().count());
        for parameter in wanted {
            reply.bulk(parameter.name.as_bytes());
            reply.bulk(&(parameter.get)(&self.server.config));
        }
        Ok(())
    }

    pub fn config_set(&mut self) -> Outcome {
        if !self.request.len().is_multiple_of(2) {
            return Err(error::SYNTAX);
        }
        // Set on a copy, so that all take effect or none.
        let mut config = self.server.config.clone();
        let mut seen: Vec<&str> = Vec::new();
        for at in (2..self.request.len()).step_by(2) {
            let name = self.arg(at);
            let Some(parameter) = PARAMETERS.iter().find(|parameter| self.is(at, parameter.name))
            else {
                let before = b"ERR Unknown option or number of arguments for CONFIG SET - '";
                return Err(quoting(&[before, name, b"'"]));
            };
            let failed = |why: &str| {
                let before = b"ERR CONFIG SET failed (possibly related to argument '";
                quoting(&[before, name, b"') - ", why.as_bytes()])
            };
            if seen.contains(&parameter.name) {
                return Err(failed("duplicate parameter"));
            }
            seen.push(parameter.name);
            let set = parameter.set.ok_or_else(|| failed("can't set immutable config"))?;
            set(&mut config, self.arg(at + 1)).map_err(|why| failed(&why))?;
        }
        self.server.config = config;
        self.reply().ok();
        Ok(())
    }

    pub fn config_resetstat(&mut self) -> Outcome {
        self.server.stats.reset();
        self.server.errors.clear();
        self.reply().ok();
        Ok(())
    }

    pub fn info(&mut self) -> Outcome {
        let shown = SECTIONS.iter().map(|(section, _)| *section);
        let shown: Vec<&str> = shown.filter(|section| shows(&self.request, section)).collect();
        let mut text = String::new();
        for section in shown {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let (first, rest) = section.split_at(1);
            text.push_str(&format!("# {}{rest}\r\n", first.to_ascii_uppercase()));
            if section == "keyspace" {
                self.info_keyspace(&mut text);
            } else {
                self.info_section(section, &mut text);
            }
        }
        self.reply().verbatim(b"txt", text.as_bytes());
        Ok(())
    }

    fn info_section(&self, section: &str, text: &mut String) {
        let server = &*self.server;
        let (stats, config) = (&server.stats, &server.config);
        let uptime = server.tick.since(server.started).as_secs();
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            text.push_str(&format!("{name}:{value}\r\n"));
        };
        match section {
            "server" => {
                line("redis_version", &REDIS_VERSION);
                line("atoll_version", &server.identity.version);
                line("redis_mode", &"standalone");
                line("os", &std::env::consts::OS);
                line("arch_bits", &usize::BITS);
                line("process_id", &server.identity.process_id);
                line("run_id", &format_args!("{:040x}", server.identity.run_id));
                line("tcp_port", &config.port);
                line("server_time_usec", &server.now_ms.saturating_mul(1_000));
                line("uptime_in_seconds", &uptime);
                line("uptime_in_days", &(uptime / 86_400));
            }
            "clients" => {
                line("connected_clients", &stats.connected_clients.get());
                line("maxclients", &config.maxclients);
                line("blocked_clients", &0);
            }
            "memory" => {
                let sessions = server.sessions.values().map(|session| &**session);
                let buffers: usize = sessions
                    .chain([&*self.session])
                    .map(|session| session.input.capacity() + session.output.capacity())
                    .sum();
                let store = server.store_memory;
                line("used_memory", &(store + buffers as u64));
                line("used_memory_engine", &store);
                line("used_memory_clients", &buffers);
            }
            "persistence" => {
                line("loading", &0);
                line("async_loading", &0);
                line("durability", &config.durability.name());
            }
            "stats" => {
                line("total_connections_received", &stats.connections_received.get());
                line("total_commands_processed", &stats.commands_processed.get());
                line("total_net_input_bytes", &stats.input_bytes.get());
                line("total_net_output_bytes", &stats.output_bytes.get());
                line("rejected_connections", &stats.connections_rejected.get());
                line("expired_keys", &stats.expired_keys.get());
                line("evicted_keys", &0);
                line("keyspace_hits", &stats.keyspace_hits.get());
                line("keyspace_misses", &stats.keyspace_misses.get());
                line("total_error_replies", &stats.error_replies.get());
                line("turns", &stats.turns.get());
                line("commits", &stats.commits.counts().iter().sum::<u64>());
                line("commits_failed", &stats.commits_failed.get());
            }
            "replication" => {
                line("role", &"master");
                line("connected_slaves", &0);
            }
            "commandstats" => {
                for (name, command) in stats.commands() {
                    let (calls, usec) = (command.calls.get(), command.latency.sum().as_micros());
                    let (rejected, failed) = (command.rejected.get(), command.failed.get());
                    let per_call = usec as f64 / calls.max(1) as f64;
                    line(
                        &format!("cmdstat_{name}"),
                        &format_args!(
                            "calls={calls},usec={usec},usec_per_call={per_call:.2},\
                             rejected_calls={rejected},failed_calls={failed}"
                        ),
                    );
                }
            }
            "errorstats" => {
                for (code, count) in &server.errors {
                    line(&format!("errorstat_{code}"), &format_args!("count={count}"));
                }
            }
            "latencystats" => {
                for (name, command) in stats.commands() {
                    let counts = command.latency.counts();
                    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|p| percentile_us(&counts, p));
                    line(
                        &format!("latency_percentiles_usec_{name}"),
                        &format_args!("p50={p50},p99={p99},p99.9={p999}"),
                    );
                }
            }
            "cluster" => line("cluster_enabled", &0),
            _ => {}
        }
    }

    fn info_keyspace(&self, text: &mut String) {
        for (db, counts) in self.server.counts.counts.iter().enumerate() {
            let Counts { keys, expiring, mean_ttl_ms } = counts;
            if *keys > 0 {
                // Writing to a string does not fail.
                let _ =
                    write!(text, "db{db}:keys={keys},expires={expiring},avg_ttl={mean_ttl_ms}\r\n");
            }
        }
    }
}

/// Returns whether this request of INFO shows a section.
pub(crate) fn shows(request: &Request<'_>, section: &str) -> bool {
    let asked = |name: &str| request.tail(1).any(|arg| arg.eq_ignore_ascii_case(name.as_bytes()));
    let by_default = SECTIONS.iter().any(|(name, by_default)| *name == section && *by_default);
    let default = request.len() == 1 || asked("default");
    asked("all") || asked("everything") || (default && by_default) || asked(section)
}

/// Returns the upper bound, in microseconds, of the bucket in which a share of all durations is
/// reached.
fn percentile_us(counts: &[u64; BUCKETS], share: f64) -> u64 {
    let wanted = (counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
    let mut seen = 0;
    let bucket = counts.iter().position(|count| {
        seen += count;
        seen >= wanted
    });
    1 << bucket.unwrap_or(0)
}

/// Writes a command as COMMAND INFO does.
fn describe(reply: &mut ReplyWriter<'_>, command: &'static Command) {
    reply.array(10);
    reply.bulk(command.name.as_bytes());
    reply.int(command.arity.into());
    reply.set(command.flags.names().count());
    command.flags.names().for_each(|flag| reply.simple(flag));
    let (first, last, step) = command.key_range();
    reply.int(first.into());
    reply.int(last.into());
    reply.int(step.into());
    let categories = CATEGORIES.iter().filter(|category| command.in_category(category));
    reply.set(categories.clone().count());
    categories.for_each(|category| reply.simple(&format!("@{category}")));
    reply.set(0); // tips
    key_specifications(reply, command);
    reply.set(command.subcommands().count());
    command.subcommands().for_each(|subcommand| describe(reply, subcommand));
}

fn key_specifications(reply: &mut ReplyWriter<'_>, command: &Command) {
    reply.set(command.keys.len());
    for keys in command.keys {
        reply.map(3);
        reply.bulk(b"flags");
        reply.set(keys.access.len() + usize::from(keys.varying));
        keys.access.iter().for_each(|access| reply.simple(access));
        if keys.varying {
            reply.simple("variable_flags");
        }
        reply.bulk(b"begin_search");
        reply.map(2);
        reply.bulk(b"type");
        reply.bulk(b"index");
        reply.bulk(b"spec");
        reply.map(1);
        reply.bulk(b"index");
        reply.int(keys.first.into());
        reply.bulk(b"find_keys");
        reply.map(2);
        reply.bulk(b"type");
        reply.bulk(b"range");
        reply.bulk(b"spec");
        reply.map(3);
        reply.bulk(b"lastkey");
        // Counted from the first key, unless it counts from the end.
        reply.int((if keys.last < 0 { keys.last } else { keys.last - keys.first }).into());
        reply.bulk(b"keystep");
        reply.int(keys.step.into());
        reply.bulk(b"limit");
        reply.int(0);
    }
}

/// Writes a command's name and its documentation, as COMMAND DOCS does.
fn document(reply: &mut ReplyWriter<'_>, command: &'static Command) {
    let subcommands = command.subcommands();
    let has_subcommands = usize::from(command.is_container());
    reply.bulk(command.name.as_bytes());
    reply.map(4 + has_subcommands);
    for (field, text) in [
        ("summary", command.summary),
        ("since", command.since),
        ("group", command.group),
        ("complexity", command.complexity),
    ] {
        reply.bulk(field.as_bytes());
        reply.bulk(text.as_bytes());
    }
    if has_subcommands == 1 {
        reply.bulk(b"subcommands");
        reply.map(subcommands.clone().count());
        subcommands.for_each(|subcommand| document(reply, subcommand));
    }
}
