//! The command table: everything that is known about a command, once, as data.
//!
//! The executor checks arity and authentication from it, COMMAND and its subcommands answer from
//! it, statistics are indexed by it. A row reads
//!
//! ```text
//!   Id: "name", arity, flags, Keys, ACL categories beyond the implied ones, group, since,
//!       complexity, summary;
//! ```
//!
//! Arity counts the name; a negative one is a minimum. The implied ACL categories are Redis's:
//! `@write`, `@read`, `@admin` with `@dangerous`, and `@fast` or `@slow`. Subcommands are rows
//! named `container|subcommand` that follow their container.

use atoll_encoding::hash::HashMap;

/// A row of the table.
#[derive(Debug)]
pub struct Command {
    /// What the executor dispatches on; also the row's index.
    pub id: Id,
    /// Full name in lower case, `config|get` for a subcommand.
    pub name: &'static str,
    /// Number of arguments, name (and subcommand) included; negative for a minimum.
    pub arity: i32,
    /// What the command does and when it may run.
    pub flags: Flags,
    /// Where its keys are.
    pub keys: Keys,
    /// ACL categories beyond the implied ones.
    pub categories: &'static [&'static str],
    /// Group of the documentation.
    pub group: &'static str,
    /// Version of Redis that has it first.
    pub since: &'static str,
    /// Complexity, as documented.
    pub complexity: &'static str,
    /// What it does.
    pub summary: &'static str,
}

/// Where keys are among the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Index of the first key, 0 for none.
    pub first: i32,
    /// Index of the last key; -1 is the last argument.
    pub last: i32,
    /// Distance from key to key.
    pub step: i32,
    /// How the keys are used, in Redis's words and their case.
    pub access: &'static [&'static str],
}

const NO_KEYS: Keys = Keys { first: 0, last: 0, step: 0, access: &[] };
const READ: Keys = Keys { first: 1, last: 1, step: 1, access: &["RO", "access"] };
const READ_ALL: Keys = Keys { last: -1, ..READ };
const PROBE: Keys = Keys { access: &["RO"], ..READ };
const PROBE_ALL: Keys = Keys { last: -1, ..PROBE };
const UPDATE: Keys = Keys { access: &["RW", "update"], ..READ };
const UPDATE_READ: Keys = Keys { access: &["RW", "access", "update"], ..READ };
const INSERT: Keys = Keys { access: &["RW", "insert"], ..READ };
const INSERT_ONLY: Keys = Keys { access: &["OW", "insert"], ..READ };
const OVERWRITE: Keys = Keys { access: &["OW", "update"], ..READ };
const OVERWRITE_PAIRS: Keys = Keys { last: -1, step: 2, ..OVERWRITE };
const REMOVE: Keys = Keys { access: &["RW", "access", "delete"], ..READ };
const REMOVE_ALL: Keys = Keys { last: -1, access: &["RM", "delete"], ..READ };

/// A set of command flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

macro_rules! flags {
    ($($name:ident $bit:literal $text:literal;)*) => {
        $(const $name: Flags = Flags(1 << $bit);)*
        /// Flags and their names, in the order COMMAND lists them.
        const FLAGS: &[(Flags, &str)] = &[$(($name, $text)),*];
    };
}

flags! {
    WRITE 0 "write";
    READONLY 1 "readonly";
    DENYOOM 2 "denyoom";
    ADMIN 3 "admin";
    NOSCRIPT 4 "noscript";
    LOADING 5 "loading";
    STALE 6 "stale";
    FAST 7 "fast";
    NO_AUTH 8 "no_auth";
    ALLOW_BUSY 9 "allow_busy";
}

const NONE: Flags = Flags(0);
const LOOK: Flags = READONLY.with(FAST);
const CHANGE: Flags = WRITE.with(FAST);
const GROW: Flags = WRITE.with(DENYOOM).with(FAST);
const ALWAYS: Flags = LOADING.with(STALE);
const SESSION: Flags = NOSCRIPT.with(ALWAYS);
const OPERATOR: Flags = ADMIN.with(SESSION);
const GREETING: Flags = SESSION.with(FAST).with(NO_AUTH).with(ALLOW_BUSY);

impl Flags {
    const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    const fn has(self, flag: Flags) -> bool {
        self.0 & flag.0 != 0
    }

    /// Returns whether the command may run before authentication.
    pub fn no_auth(self) -> bool {
        self.has(NO_AUTH)
    }

    /// Returns the flags' names in Redis's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> + Clone {
        FLAGS.iter().filter(move |(flag, _)| self.has(*flag)).map(|(_, name)| *name)
    }
}

macro_rules! commands {
    ($($id:ident: $name:literal, $arity:literal, $flags:expr, $keys:expr, [$($category:literal)*],
       $group:literal, $since:literal, $complexity:literal, $summary:literal;)*) => {
        /// Names a command; the number is its row.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the names are the commands' names")]
        pub enum Id { $($id),* }

        /// The table, containers directly before their subcommands.
        pub static COMMANDS: &[Command] = &[$(Command {
            id: Id::$id,
            name: $name,
            arity: $arity,
            flags: $flags,
            keys: $keys,
            categories: &[$($category),*],
            group: $group,
            since: $since,
            complexity: $complexity,
            summary: $summary,
        }),*];
    };
}

commands! {
    Append: "append", 3, GROW, INSERT, ["string"], "string", "2.0.0",
        "O(1) for short values, O(N) in the value's length otherwise",
        "Appends a string to the value of a key. Creates the key if it doesn't exist.";
    Auth: "auth", -2, GREETING, NO_KEYS, ["connection"], "connection", "1.0.0",
        "O(1)", "Authenticates the connection.";
    Client: "client", -2, NONE, NO_KEYS, [], "connection", "2.4.0",
        "Depends on subcommand.", "A container for client connection commands.";
    ClientGetname: "client|getname", 2, SESSION, NO_KEYS, ["connection"], "connection", "2.6.9",
        "O(1)", "Returns the name of the connection.";
    ClientHelp: "client|help", 2, ALWAYS, NO_KEYS, ["connection"], "connection", "5.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    ClientId: "client|id", 2, SESSION, NO_KEYS, ["connection"], "connection", "5.0.0",
        "O(1)", "Returns the unique client ID of the connection.";
    ClientInfo: "client|info", 2, SESSION, NO_KEYS, ["connection"], "connection", "6.2.0",
        "O(1)", "Returns information about the connection.";
    ClientKill: "client|kill", -3, OPERATOR, NO_KEYS, ["connection"], "connection", "2.4.0",
        "O(N) where N is the number of client connections", "Terminates open connections.";
    ClientList: "client|list", -2, OPERATOR, NO_KEYS, ["connection"], "connection", "2.4.0",
        "O(N) where N is the number of client connections", "Lists open connections.";
    ClientNoEvict: "client|no-evict", 3, OPERATOR, NO_KEYS, ["connection"], "connection", "7.0.0",
        "O(1)", "Sets the client eviction mode of the connection.";
    ClientNoTouch: "client|no-touch", 3, SESSION, NO_KEYS, ["connection"], "connection", "7.2.0",
        "O(1)", "Controls whether commands sent by the client affect the LRU/LFU of accessed keys.";
    ClientReply: "client|reply", 3, SESSION, NO_KEYS, ["connection"], "connection", "3.2.0",
        "O(1)", "Instructs the server whether to reply to commands.";
    ClientSetinfo: "client|setinfo", 4, SESSION, NO_KEYS, ["connection"], "connection", "7.2.0",
        "O(1)", "Sets information specific to the client or connection.";
    ClientSetname: "client|setname", 3, SESSION, NO_KEYS, ["connection"], "connection", "2.6.9",
        "O(1)", "Sets the connection name.";
    Command: "command", -1, ALWAYS, NO_KEYS, ["connection"], "server", "2.8.13",
        "O(N) where N is the total number of commands",
        "Returns detailed information about all commands.";
    CommandCount: "command|count", 2, ALWAYS, NO_KEYS, ["connection"], "server", "2.8.13",
        "O(1)", "Returns a count of commands.";
    CommandDocs: "command|docs", -2, ALWAYS, NO_KEYS, ["connection"], "server", "7.0.0",
        "O(N) where N is the number of commands to look up",
        "Returns documentary information about one, multiple or all commands.";
    CommandGetkeys: "command|getkeys", -3, ALWAYS, NO_KEYS, ["connection"], "server", "2.8.13",
        "O(N) where N is the number of arguments to the command",
        "Extracts the key names from an arbitrary command.";
    CommandHelp: "command|help", 2, ALWAYS, NO_KEYS, ["connection"], "server", "5.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    CommandInfo: "command|info", -2, ALWAYS, NO_KEYS, ["connection"], "server", "2.8.13",
        "O(N) where N is the number of commands to look up",
        "Returns information about one, multiple or all commands.";
    CommandList: "command|list", -2, ALWAYS, NO_KEYS, ["connection"], "server", "7.0.0",
        "O(N) where N is the total number of commands", "Returns a list of command names.";
    Config: "config", -2, NONE, NO_KEYS, [], "server", "2.0.0",
        "Depends on subcommand.", "A container for server configuration commands.";
    ConfigGet: "config|get", -3, OPERATOR, NO_KEYS, [], "server", "2.0.0",
        "O(N) when N is the number of configuration parameters provided",
        "Returns the effective values of configuration parameters.";
    ConfigHelp: "config|help", 2, ALWAYS, NO_KEYS, [], "server", "5.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    ConfigResetstat: "config|resetstat", 2, OPERATOR, NO_KEYS, [], "server", "2.0.0",
        "O(1)", "Resets the server's statistics.";
    ConfigSet: "config|set", -4, OPERATOR, NO_KEYS, [], "server", "2.0.0",
        "O(N) when N is the number of configuration parameters provided",
        "Sets configuration parameters in-flight.";
    Dbsize: "dbsize", 1, LOOK, NO_KEYS, ["keyspace"], "server", "1.0.0",
        "O(N) where N is the number of keys in the database",
        "Returns the number of keys in the database.";
    Decr: "decr", 2, GROW, UPDATE_READ, ["string"], "string", "1.0.0",
        "O(1)",
        "Decrements the integer value of a key by one. Uses 0 as initial value if the key doesn't \
         exist.";
    Decrby: "decrby", 3, GROW, UPDATE_READ, ["string"], "string", "1.0.0",
        "O(1)",
        "Decrements a number from the integer value of a key. Uses 0 as initial value if the key \
         doesn't exist.";
    Del: "del", -2, WRITE, REMOVE_ALL, ["keyspace"], "generic", "1.0.0",
        "O(N) where N is the number of keys that will be removed.", "Deletes one or more keys.";
    Echo: "echo", 2, ALWAYS.with(FAST), NO_KEYS, ["connection"], "connection", "1.0.0",
        "O(1)", "Returns the given string.";
    Exists: "exists", -2, LOOK, PROBE_ALL, ["keyspace"], "generic", "1.0.0",
        "O(N) where N is the number of keys to check.",
        "Determines whether one or more keys exist.";
    Expire: "expire", -3, CHANGE, UPDATE, ["keyspace"], "generic", "1.0.0",
        "O(1)", "Sets the expiration time of a key in seconds.";
    Flushall: "flushall", -1, WRITE, NO_KEYS, ["keyspace" "dangerous"], "server", "1.0.0",
        "O(1): a range removal per database, reclaimed by compaction",
        "Removes all keys from all databases.";
    Flushdb: "flushdb", -1, WRITE, NO_KEYS, ["keyspace" "dangerous"], "server", "1.0.0",
        "O(1): a range removal, reclaimed by compaction",
        "Remove all keys from the current database.";
    Get: "get", 2, LOOK, READ, ["string"], "string", "1.0.0",
        "O(1)", "Returns the string value of a key.";
    Getdel: "getdel", 2, CHANGE, REMOVE, ["string"], "string", "6.2.0",
        "O(1)", "Returns the string value of a key after deleting the key.";
    Getex: "getex", -2, CHANGE, UPDATE_READ, ["string"], "string", "6.2.0",
        "O(1)", "Returns the string value of a key after setting its expiration time.";
    Hello: "hello", -1, GREETING, NO_KEYS, ["connection"], "connection", "6.0.0",
        "O(1)", "Handshakes with the Redis server.";
    Incr: "incr", 2, GROW, UPDATE_READ, ["string"], "string", "1.0.0",
        "O(1)",
        "Increments the integer value of a key by one. Uses 0 as initial value if the key doesn't \
         exist.";
    Incrby: "incrby", 3, GROW, UPDATE_READ, ["string"], "string", "1.0.0",
        "O(1)",
        "Increments the integer value of a key by a number. Uses 0 as initial value if the key \
         doesn't exist.";
    Info: "info", -1, ALWAYS, NO_KEYS, ["dangerous"], "server", "1.0.0",
        "O(1)", "Returns information and statistics about the server.";
    Keys: "keys", 2, READONLY, NO_KEYS, ["keyspace" "dangerous"], "generic", "1.0.0",
        "O(N) with N being the number of keys in the database",
        "Returns all key names that match a pattern.";
    Mget: "mget", -2, LOOK, READ_ALL, ["string"], "string", "1.0.0",
        "O(N) where N is the number of keys to retrieve.",
        "Atomically returns the string values of one or more keys.";
    Mset: "mset", -3, WRITE.with(DENYOOM), OVERWRITE_PAIRS, ["string"], "string", "1.0.1",
        "O(N) where N is the number of keys to set.",
        "Atomically creates or modifies the string values of one or more keys.";
    Persist: "persist", 2, CHANGE, UPDATE, ["keyspace"], "generic", "2.2.0",
        "O(1)", "Removes the expiration time of a key.";
    Pexpire: "pexpire", -3, CHANGE, UPDATE, ["keyspace"], "generic", "2.6.0",
        "O(1)", "Sets the expiration time of a key in milliseconds.";
    Ping: "ping", -1, FAST, NO_KEYS, ["connection"], "connection", "1.0.0",
        "O(1)", "Returns the server's liveliness response.";
    Psetex: "psetex", 4, WRITE.with(DENYOOM), OVERWRITE, ["string"], "string", "2.6.0",
        "O(1)",
        "Sets both string value and expiration time in milliseconds of a key. The key is created \
         if it doesn't exist.";
    Pttl: "pttl", 2, LOOK, READ, ["keyspace"], "generic", "2.6.0",
        "O(1)", "Returns the expiration time in milliseconds of a key.";
    Quit: "quit", -1, GREETING, NO_KEYS, ["connection"], "connection", "1.0.0",
        "O(1)", "Closes the connection.";
    Reset: "reset", 1, GREETING, NO_KEYS, ["connection"], "connection", "6.2.0",
        "O(1)", "Resets the connection.";
    Scan: "scan", -2, READONLY, NO_KEYS, ["keyspace"], "generic", "2.8.0",
        "O(1) for every call. O(N) for a complete iteration, including enough command calls for \
         the cursor to return back to 0. N is the number of elements inside the collection.",
        "Iterates over the key names in the database.";
    Select: "select", 2, ALWAYS.with(FAST), NO_KEYS, ["connection"], "connection", "1.0.0",
        "O(1)", "Changes the selected database.";
    Set: "set", -3, WRITE.with(DENYOOM), Keys { access: &["RW", "access", "update"], ..READ },
        ["string"], "string", "1.0.0",
        "O(1)",
        "Sets the string value of a key, ignoring its type. The key is created if it doesn't \
         exist.";
    Setex: "setex", 4, WRITE.with(DENYOOM), OVERWRITE, ["string"], "string", "2.0.0",
        "O(1)",
        "Sets the string value and expiration time of a key. Creates the key if it doesn't exist.";
    Setnx: "setnx", 3, GROW, INSERT_ONLY, ["string"], "string", "1.0.0",
        "O(1)", "Set the string value of a key only when the key doesn't exist.";
    Strlen: "strlen", 2, LOOK, PROBE, ["string"], "string", "2.2.0",
        "O(1)", "Returns the length of a string value.";
    Ttl: "ttl", 2, LOOK, READ, ["keyspace"], "generic", "1.0.0",
        "O(1)", "Returns the expiration time in seconds of a key.";
    Type: "type", 2, LOOK, PROBE, ["keyspace"], "generic", "1.0.0",
        "O(1)", "Determines the type of value stored at a key.";
    Unlink: "unlink", -2, CHANGE, REMOVE_ALL, ["keyspace"], "generic", "4.0.0",
        "O(1) for each key removed regardless of its size.", "Asynchronously deletes one or more keys.";
}

/// ACL categories, in the order Redis lists them.
pub const CATEGORIES: &[&str] = &[
    "keyspace",
    "read",
    "write",
    "set",
    "sortedset",
    "list",
    "hash",
    "string",
    "bitmap",
    "hyperloglog",
    "geo",
    "stream",
    "pubsub",
    "admin",
    "fast",
    "slow",
    "blocking",
    "dangerous",
    "connection",
    "transaction",
    "scripting",
];

impl Command {
    /// Returns the container's name and the subcommand's, if this is a subcommand.
    pub fn container(&self) -> Option<(&'static str, &'static str)> {
        self.name.split_once('|')
    }

    /// Returns the subcommands, empty for most commands.
    pub fn subcommands(&self) -> impl Iterator<Item = &'static Command> + Clone {
        let name = self.name;
        COMMANDS[self.id as usize + 1..]
            .iter()
            .take_while(move |row| row.container().is_some_and(|(container, _)| container == name))
    }

    /// Returns whether the command takes a subcommand. Asked for every request, so not by a look at
    /// the table; a test compares.
    pub fn is_container(&self) -> bool {
        matches!(self.id, Id::Client | Id::Command | Id::Config)
    }

    /// Returns whether a request of this many arguments is long enough and not too long.
    pub fn accepts(&self, args: usize) -> bool {
        let arity = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { args >= arity } else { args == arity }
    }

    /// Returns whether the command is in an ACL category.
    pub fn in_category(&self, category: &str) -> bool {
        match category {
            "read" => self.flags.has(READONLY),
            "write" => self.flags.has(WRITE),
            "admin" => self.flags.has(ADMIN),
            "fast" => self.flags.has(FAST),
            "slow" => !self.flags.has(FAST),
            "dangerous" if self.flags.has(ADMIN) => true,
            _ => self.categories.contains(&category),
        }
    }

    /// Returns the indexes of the keys in a request of this many arguments.
    pub fn key_indexes(&self, args: usize) -> impl Iterator<Item = usize> + use<> {
        let Keys { first, last, step, .. } = self.keys;
        let first = first.unsigned_abs() as usize;
        let last = match last {
            last if last < 0 => args.saturating_sub(last.unsigned_abs() as usize),
            last => last.unsigned_abs() as usize,
        };
        let end = if first == 0 { 0 } else { (last + 1).min(args) };
        (first..end).step_by(step.unsigned_abs().max(1) as usize)
    }
}

/// Returns the commands that are no subcommands.
pub fn top_level() -> impl Iterator<Item = &'static Command> + Clone {
    COMMANDS.iter().filter(|command| command.container().is_none())
}

/// Finds commands by name, whatever its case.
pub struct Index {
    rows: HashMap<&'static [u8], &'static Command>,
}

impl Index {
    /// Indexes the table.
    pub fn new() -> Index {
        Index { rows: COMMANDS.iter().map(|row| (row.name.as_bytes(), row)).collect() }
    }

    /// Finds a command by full name, `config|get` for a subcommand.
    pub fn find(&self, name: &[u8]) -> Option<&'static Command> {
        self.find_parts(&[name])
    }

    /// Finds a subcommand.
    pub fn find_subcommand(&self, container: &Command, name: &[u8]) -> Option<&'static Command> {
        self.find_parts(&[container.name.as_bytes(), b"|", name])
    }

    fn find_parts(&self, parts: &[&[u8]]) -> Option<&'static Command> {
        // Longer than every name, which a test proves.
        let mut name = [0; MAX_NAME];
        let mut len = 0;
        for part in parts {
            name.get_mut(len..len + part.len())?.copy_from_slice(part);
            len += part.len();
        }
        name[..len].make_ascii_lowercase();
        self.rows.get(&name[..len]).copied()
    }
}

impl Default for Index {
    fn default() -> Index {
        Index::new()
    }
}

/// Room for a full name.
const MAX_NAME: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        let mut names: Vec<&str> = Vec::new();
        for (row, command) in COMMANDS.iter().enumerate() {
            assert_eq!(command.id as usize, row);
            assert!(command.name.len() <= MAX_NAME, "{}", command.name);
            assert!(!names.contains(&command.name), "{} twice", command.name);
            for category in command.categories {
                assert!(CATEGORIES.contains(category), "{}: {category}", command.name);
            }
            if let Some((container, _)) = command.container() {
                assert!(names.contains(&container), "{} before its container", command.name);
            }
            assert_eq!(command.is_container(), command.subcommands().next().is_some());
            if command.keys.first > 0 {
                assert!(command.arity.abs() > command.keys.first, "{}", command.name);
            }
            names.push(command.name);
        }
        let client = Index::new().find(b"client").unwrap();
        assert_eq!(client.subcommands().count(), 11);
    }

    #[test]
    fn names_are_found_whatever_their_case_and_length() {
        let index = Index::new();
        assert_eq!(index.find(b"GeT").map(|row| row.id), Some(Id::Get));
        let config = index.find(b"CONFIG").unwrap();
        let found = index.find_subcommand(config, b"GET").map(|row| row.id);
        assert_eq!(found, Some(Id::ConfigGet));
        assert!(index.find(b"").is_none());
        assert!(index.find(&[b'g'; 1000]).is_none());
        assert!(index.find_subcommand(config, &[b'g'; 1000]).is_none());
    }

    #[test]
    fn keys_are_where_redis_says() {
        let index = Index::new();
        let keys = |name: &[u8], args| -> Vec<usize> {
            index.find(name).unwrap().key_indexes(args).collect()
        };
        assert_eq!(keys(b"get", 2), [1]);
        assert_eq!(keys(b"mget", 4), [1, 2, 3]);
        assert_eq!(keys(b"mset", 7), [1, 3, 5]);
        assert_eq!(keys(b"set", 9), [1]);
        assert!(keys(b"ping", 2).is_empty());
    }
}
