//! The server as clients see it: its commands and its configuration.

use atoll_resp::ReplyWriter;

use crate::commands::SessionCall;
use crate::config::{self, PARAMETERS, Parameter};
use crate::error::{self, Outcome, fixed, quoting};
use crate::glob;
use crate::table::{self, CATEGORIES, COMMANDS, Command};

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
            COMMANDS.iter().map(name).collect()
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
        let command = self.with_keys()?;
        let args = self.request.len() - 2;
        let mut reply = self.session.reply();
        reply.array(command.key_indexes(args).count());
        for index in command.key_indexes(args) {
            reply.bulk(&self.request[index + 2]);
        }
        Ok(())
    }

    pub fn command_getkeysandflags(&mut self) -> Outcome {
        let command = self.with_keys()?;
        let args = self.request.len() - 2;
        let asked = self.request.tail_owned(2);
        let asked = asked.as_request();
        let mut reply = self.session.reply();
        reply.array(command.key_indexes(args).count());
        for keys in command.keys {
            let access = command.access(keys, &asked);
            for index in keys.indexes(args) {
                reply.array(2);
                reply.bulk(&asked[index]);
                reply.set(access.len());
                access.iter().for_each(|access| reply.simple(access));
            }
        }
        Ok(())
    }

    /// Returns the command that the request is about, which has keys where the table says.
    fn with_keys(&self) -> Outcome<&'static Command> {
        let index = &self.server.index;
        let found = index.find(self.arg(2));
        let mut command = found.ok_or(fixed("ERR Invalid command specified"))?;
        if command.is_container()
            && let Some(subcommand) = self.request.get(3)
        {
            let found = index.find_subcommand(command, subcommand);
            command = found.ok_or(fixed("ERR Invalid command specified"))?;
        }
        if command.keys.is_empty() {
            return Err(fixed("ERR The command has no key arguments"));
        }
        if !command.accepts(self.request.len() - 2) {
            return Err(fixed("ERR Invalid number of arguments specified for command"));
        }
        Ok(command)
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
        // A name is shown as it was asked for, what a pattern finds as it is written here.
        let mut wanted: Vec<(&[u8], &Parameter)> = Vec::new();
        for pattern in self.request.tail(2) {
            if !pattern.iter().any(|byte| b"*?[".contains(byte)) {
                wanted.extend(Parameter::find(pattern).map(|parameter| (pattern, parameter)));
                continue;
            }
            let pattern = pattern.to_ascii_lowercase();
            let matching = PARAMETERS.iter().filter(|p| glob::matches(&pattern, p.name.as_bytes()));
            wanted.extend(matching.map(|parameter| (parameter.name.as_bytes(), parameter)));
        }
        let mut seen: Vec<&str> = Vec::new();
        wanted.retain(|(_, parameter)| {
            let is_new = !seen.contains(&parameter.name);
            seen.push(parameter.name);
            is_new
        });
        wanted.sort_by_key(|(_, parameter)| parameter.name);
        let mut reply = self.session.reply();
        reply.map(wanted.len());
        for (name, parameter) in wanted {
            reply.bulk(name);
            reply.bulk(&parameter.get(&self.server.config));
        }
        Ok(())
    }

    pub fn config_set(&mut self) -> Outcome {
        if !self.request.len().is_multiple_of(2) {
            return Err(error::SYNTAX);
        }
        let failed = |parameter: &Parameter, why: &str| {
            let before = b"ERR CONFIG SET failed (possibly related to argument '";
            quoting(&[before, parameter.name.as_bytes(), b"') - ", why.as_bytes()])
        };
        // Names first, then values, as Redis does.
        let mut parameters: Vec<&Parameter> = Vec::new();
        for at in (2..self.request.len()).step_by(2) {
            let name = self.arg(at);
            let Some(parameter) = Parameter::find(name) else {
                let before = b"ERR Unknown option or number of arguments for CONFIG SET - '";
                return Err(quoting(&[before, name, b"'"]));
            };
            if parameter.is_fixed() {
                return Err(failed(parameter, config::IMMUTABLE));
            }
            if parameters.iter().any(|other| other.name == parameter.name) {
                return Err(failed(parameter, "duplicate parameter"));
            }
            parameters.push(parameter);
        }
        // Set on a copy, so that all take effect or none.
        let mut config = self.server.shared.config();
        for (index, parameter) in parameters.into_iter().enumerate() {
            let value = self.arg(3 + 2 * index);
            parameter.set(&mut config, value).map_err(|why| failed(parameter, &why))?;
        }
        // Checked against a copy that another core may have changed meanwhile: set again on what
        // is there now, value by value.
        let request = self.request;
        self.server.shared.configure(|config| {
            for at in (2..request.len()).step_by(2) {
                let parameter = request.get(at).and_then(Parameter::find);
                if let (Some(parameter), Some(value)) = (parameter, request.get(at + 1)) {
                    // What the copy took, this takes too.
                    let _ = parameter.set(config, value);
                }
            }
        });
        self.server.look();
        self.reply().ok();
        Ok(())
    }

    pub fn config_resetstat(&mut self) -> Outcome {
        self.server.shared.reset_stats();
        self.reply().ok();
        Ok(())
    }

    /// Settings come from flags, variables and a file that this server only reads.
    pub fn config_rewrite(&mut self) -> Outcome {
        Err(fixed("ERR The server is running without a config file"))
    }
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
