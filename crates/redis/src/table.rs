//! The command table: everything that is known about a command, once, as data.
//!
//! Arity and authentication are checked from it, a router sends a command where its class and its
//! keys say, COMMAND and its subcommands answer from it, statistics are indexed by it. A row reads
//!
//! ```text
//!   Id: "name", Class, arity, flags, [Keys], [ACL categories beyond the implied ones], group,
//!       since, complexity, summary;
//! ```
//!
//! Arity counts the name; a negative one is a minimum. The implied ACL categories are Redis's:
//! `@write`, `@read`, `@admin` with `@dangerous`, and `@fast` or `@slow`. Subcommands are rows
//! named `container|subcommand` that follow their container.

use atoll_encoding::hash::HashMap;
use atoll_resp::Request;

/// A row of the table.
#[derive(Debug)]
pub struct Command {
    /// What is dispatched on; also the row's index.
    pub id: Id,
    /// Full name in lower case, `config|get` for a subcommand.
    pub name: &'static str,
    /// Whether the name is that of a subcommand.
    pub is_subcommand: bool,
    /// Who executes it.
    pub class: Class,
    /// Number of arguments, name (and subcommand) included; negative for a minimum.
    pub arity: i32,
    /// What the command does and when it may run.
    pub flags: Flags,
    /// Where its keys are; one entry for each use of keys. Empty for commands without keys.
    pub keys: &'static [Keys],
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

/// Who executes a command, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The session, on its own state and the server's.
    Session,
    /// Whoever has the keys: a pure function on a transaction over exactly the keys that
    /// [`Command::key_indexes`] names.
    Data,
    /// Whoever has the databases as a whole: every shard takes part.
    Keyspace,
}

/// A use of keys: where they are among the arguments, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Index of the first key.
    pub first: i32,
    /// Index of the last key; -1 is the last argument.
    pub last: i32,
    /// Distance from key to key.
    pub step: i32,
    /// How the keys are used, in Redis's words and their case.
    pub access: &'static [&'static str],
    /// Whether the arguments decide how the keys are used, see [`Command::access`].
    pub varying: bool,
}

const READ: Keys = Keys { first: 1, last: 1, step: 1, access: &["RO", "access"], varying: false };
const READ_ALL: Keys = Keys { last: -1, ..READ };
const PROBE: Keys = Keys { access: &["RO"], ..READ };
const PROBE_ALL: Keys = Keys { last: -1, ..PROBE };
const UPDATE: Keys = Keys { access: &["RW", "update"], ..READ };
const UPDATE_READ: Keys = Keys { access: &["RW", "access", "update"], ..READ };
const INSERT: Keys = Keys { access: &["RW", "insert"], ..READ };
const INSERT_ONLY: Keys = Keys { access: &["OW", "insert"], ..READ };
const OVERWRITE: Keys = Keys { access: &["OW", "update"], ..READ };
const OVERWRITE_PAIRS: Keys = Keys { last: -1, step: 2, ..OVERWRITE };
const INSERT_ONLY_PAIRS: Keys = Keys { last: -1, step: 2, ..INSERT_ONLY };
const REMOVE: Keys = Keys { access: &["RW", "access", "delete"], ..READ };
const REMOVE_ALL: Keys = Keys { last: -1, access: &["RM", "delete"], ..READ };

impl Keys {
    /// The one key is at this index.
    const fn at(self, index: i32) -> Keys {
        Keys { first: index, last: index, ..self }
    }

    /// The arguments decide about the use.
    const fn varying(self) -> Keys {
        Keys { varying: true, ..self }
    }
}

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
    SKIP_SLOWLOG 10 "skip_slowlog";
    NO_MULTI 11 "no_multi";
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

    /// Returns whether the command is refused between MULTI and EXEC.
    pub fn no_multi(self) -> bool {
        self.has(NO_MULTI)
    }

    /// Returns whether the command is about what is slow itself.
    pub fn skips_slowlog(self) -> bool {
        self.has(SKIP_SLOWLOG)
    }

    /// Returns whether the command takes little time, whatever its arguments.
    pub fn is_fast(self) -> bool {
        self.has(FAST)
    }

    /// Returns whether the command may change keys.
    pub fn is_write(self) -> bool {
        self.has(WRITE)
    }

    /// Returns whether the command reads keys and changes none.
    pub fn is_readonly(self) -> bool {
        self.has(READONLY)
    }

    /// Returns the flags' names in Redis's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> + Clone {
        FLAGS.iter().filter(move |(flag, _)| self.has(*flag)).map(|(_, name)| *name)
    }
}

const fn has_bar(name: &str) -> bool {
    let name = name.as_bytes();
    let mut at = 0;
    while at < name.len() {
        if name[at] == b'|' {
            return true;
        }
        at += 1;
    }
    false
}

macro_rules! commands {
    ($($id:ident: $name:literal, $class:ident, $arity:literal, $flags:expr, [$($keys:expr),*],
       [$($category:literal)*], $group:literal, $since:literal, $complexity:literal,
       $summary:literal;)*) => {
        /// Names a command; the number is its row.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the names are the commands' names")]
        pub enum Id { $($id),* }

        /// The table, containers directly before their subcommands.
        pub static COMMANDS: &[Command] = &[$(Command {
            id: Id::$id,
            name: $name,
            is_subcommand: has_bar($name),
            class: Class::$class,
            arity: $arity,
            flags: $flags,
            keys: &[$($keys),*],
            categories: &[$($category),*],
            group: $group,
            since: $since,
            complexity: $complexity,
            summary: $summary,
        }),*];
    };
}

commands! {
    Acl: "acl", Session, -2, NONE, [], [], "server", "6.0.0",
        "Depends on subcommand.", "A container for Access List Control commands.";
    AclWhoami: "acl|whoami", Session, 2, SESSION, [], [], "server", "6.0.0",
        "O(1)", "Returns the name of the user of the connection.";
    Append: "append", Data, 3, GROW, [INSERT], ["string"], "string", "2.0.0",
        "O(1) for short values, O(N) in the value's length otherwise",
        "Appends a string to the value of a key. Creates the key if it doesn't exist.";
    Asking: "asking", Session, 1, FAST, [], ["connection"], "cluster", "3.0.0",
        "O(1)", "Signals that a cluster client is following an -ASK redirect.";
    Auth: "auth", Session, -2, GREETING, [], ["connection"], "connection", "1.0.0",
        "O(1)", "Authenticates the connection.";
    Bitcount: "bitcount", Data, -2, READONLY, [READ], ["bitmap"], "bitmap", "2.6.0",
        "O(N)",
        "Count set bits in a string.";
    Bitfield: "bitfield", Data, -2, WRITE.with(DENYOOM), [UPDATE_READ.varying()], ["bitmap"], "bitmap", "3.2.0",
        "O(1) for each subcommand specified",
        "Perform arbitrary bitfield integer operations on strings.";
    BitfieldRo: "bitfield_ro", Data, -2, LOOK, [READ], ["bitmap"], "bitmap", "6.0.0",
        "O(1) for each subcommand specified",
        "Perform arbitrary bitfield integer operations on strings. Read-only variant of BITFIELD.";
    Bitop: "bitop", Data, -4, WRITE.with(DENYOOM), [OVERWRITE.at(2), Keys { first: 3, last: -1, step: 1, ..READ }], ["bitmap"], "bitmap", "2.6.0",
        "O(N)",
        "Perform bitwise operations between strings.";
    Bitpos: "bitpos", Data, -3, READONLY, [READ], ["bitmap"], "bitmap", "2.8.7",
        "O(N)",
        "Find first bit set or clear in a string.";
    Client: "client", Session, -2, NONE, [], [], "connection", "2.4.0",
        "Depends on subcommand.", "A container for client connection commands.";
    ClientCaching: "client|caching", Session, 3, SESSION, [], ["connection"], "connection", "6.0.0",
        "O(1)", "Instructs the server whether to track the keys in the next request.";
    ClientConsistency: "client|consistency", Session, -2, SESSION, [], ["connection"], "connection", "7.0.0",
        "O(1)", "Chooses which reads of the connection may be old: FAST, STRICT or STALE milliseconds.";
    ClientDurability: "client|durability", Session, -2, SESSION, [], ["connection"], "connection", "7.0.0",
        "O(1)", "Chooses what acknowledged writes of the connection survive: SYNCED, INTERVAL, BUFFERED or DEFAULT.";
    ClientGetname: "client|getname", Session, 2, SESSION, [], ["connection"], "connection", "2.6.9",
        "O(1)", "Returns the name of the connection.";
    ClientGetredir: "client|getredir", Session, 2, SESSION, [], ["connection"], "connection", "6.0.0",
        "O(1)", "Returns the client ID to which the connection's tracking notifications are redirected.";
    ClientHelp: "client|help", Session, 2, ALWAYS, [], ["connection"], "connection", "5.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    ClientId: "client|id", Session, 2, SESSION, [], ["connection"], "connection", "5.0.0",
        "O(1)", "Returns the unique client ID of the connection.";
    ClientInfo: "client|info", Session, 2, SESSION, [], ["connection"], "connection", "6.2.0",
        "O(1)", "Returns information about the connection.";
    ClientKill: "client|kill", Session, -3, OPERATOR, [], ["connection"], "connection", "2.4.0",
        "O(N) where N is the number of client connections", "Terminates open connections.";
    ClientList: "client|list", Session, -2, OPERATOR, [], ["connection"], "connection", "2.4.0",
        "O(N) where N is the number of client connections", "Lists open connections.";
    ClientNoEvict: "client|no-evict", Session, 3, OPERATOR, [], ["connection"], "connection", "7.0.0",
        "O(1)", "Sets the client eviction mode of the connection.";
    ClientNoTouch: "client|no-touch", Session, 3, SESSION, [], ["connection"], "connection", "7.2.0",
        "O(1)", "Controls whether commands sent by the client affect the LRU/LFU of accessed keys.";
    ClientPause: "client|pause", Session, -3, OPERATOR, [], ["connection"], "connection", "2.9.50",
        "O(1)", "Suspends commands processing.";
    ClientReply: "client|reply", Session, 3, SESSION, [], ["connection"], "connection", "3.2.0",
        "O(1)", "Instructs the server whether to reply to commands.";
    ClientSetinfo: "client|setinfo", Session, 4, SESSION, [], ["connection"], "connection", "7.2.0",
        "O(1)", "Sets information specific to the client or connection.";
    ClientSetname: "client|setname", Session, 3, SESSION, [], ["connection"], "connection", "2.6.9",
        "O(1)", "Sets the connection name.";
    ClientTracking: "client|tracking", Session, -3, SESSION, [], ["connection"], "connection", "6.0.0",
        "O(1). Some options may introduce additional complexity.",
        "Controls server-assisted client-side caching for the connection.";
    ClientTrackinginfo: "client|trackinginfo", Session, 2, SESSION, [], ["connection"], "connection", "6.2.0",
        "O(1)", "Returns information about server-assisted client-side caching for the connection.";
    ClientUnblock: "client|unblock", Session, -3, OPERATOR, [], ["connection"], "connection", "5.0.0",
        "O(log N) where N is the number of client connections",
        "Unblocks a client blocked by a blocking command from a different connection.";
    ClientUnpause: "client|unpause", Session, 2, OPERATOR, [], ["connection"], "connection", "6.2.0",
        "O(N) Where N is the number of paused clients", "Resumes processing commands from paused clients.";
    Cluster: "cluster", Session, -2, NONE, [], [], "cluster", "3.0.0",
        "Depends on subcommand.", "A container for Redis Cluster commands.";
    ClusterCountkeysinslot: "cluster|countkeysinslot", Session, 3, STALE, [], [], "cluster", "3.0.0",
        "O(1)", "Returns the number of keys in a hash slot.";
    ClusterGetkeysinslot: "cluster|getkeysinslot", Session, 4, STALE, [], [], "cluster", "3.0.0",
        "O(N) where N is the number of requested keys", "Returns the key names in a hash slot.";
    ClusterHelp: "cluster|help", Session, 2, ALWAYS, [], [], "cluster", "5.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    ClusterInfo: "cluster|info", Session, 2, STALE, [], [], "cluster", "3.0.0",
        "O(1)", "Returns information about the state of a node.";
    ClusterKeyslot: "cluster|keyslot", Session, 3, STALE, [], [], "cluster", "3.0.0",
        "O(N) where N is the number of bytes in the key", "Returns the hash slot for a key.";
    ClusterLinks: "cluster|links", Session, 2, STALE, [], [], "cluster", "7.0.0",
        "O(N) where N is the total number of Cluster nodes",
        "Returns a list of all TCP links to and from peer nodes.";
    ClusterMyid: "cluster|myid", Session, 2, STALE, [], [], "cluster", "3.0.0",
        "O(1)", "Returns the ID of a node.";
    ClusterNodes: "cluster|nodes", Session, 2, STALE, [], [], "cluster", "3.0.0",
        "O(N) where N is the total number of Cluster nodes",
        "Returns the cluster configuration for a node.";
    ClusterShards: "cluster|shards", Session, 2, STALE, [], [], "cluster", "7.0.0",
        "O(N) where N is the total number of cluster nodes",
        "Returns the mapping of cluster slots to shards.";
    ClusterSlots: "cluster|slots", Session, 2, STALE, [], [], "cluster", "3.0.0",
        "O(N) where N is the total number of Cluster nodes",
        "Returns the mapping of cluster slots to nodes.";
    Command: "command", Session, -1, ALWAYS, [], ["connection"], "server", "2.8.13",
        "O(N) where N is the total number of commands",
        "Returns detailed information about all commands.";
    CommandCount: "command|count", Session, 2, ALWAYS, [], ["connection"], "server", "2.8.13",
        "O(1)", "Returns a count of commands.";
    CommandDocs: "command|docs", Session, -2, ALWAYS, [], ["connection"], "server", "7.0.0",
        "O(N) where N is the number of commands to look up",
        "Returns documentary information about one, multiple or all commands.";
    CommandGetkeys: "command|getkeys", Session, -3, ALWAYS, [], ["connection"], "server", "2.8.13",
        "O(N) where N is the number of arguments to the command",
        "Extracts the key names from an arbitrary command.";
    CommandGetkeysandflags: "command|getkeysandflags", Session, -3, ALWAYS, [], ["connection"], "server", "7.0.0",
        "O(N) where N is the number of arguments to the command",
        "Extracts the key names and access flags for an arbitrary command.";
    CommandHelp: "command|help", Session, 2, ALWAYS, [], ["connection"], "server", "5.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    CommandInfo: "command|info", Session, -2, ALWAYS, [], ["connection"], "server", "2.8.13",
        "O(N) where N is the number of commands to look up",
        "Returns information about one, multiple or all commands.";
    CommandList: "command|list", Session, -2, ALWAYS, [], ["connection"], "server", "7.0.0",
        "O(N) where N is the total number of commands", "Returns a list of command names.";
    Config: "config", Session, -2, NONE, [], [], "server", "2.0.0",
        "Depends on subcommand.", "A container for server configuration commands.";
    ConfigGet: "config|get", Session, -3, OPERATOR, [], [], "server", "2.0.0",
        "O(N) when N is the number of configuration parameters provided",
        "Returns the effective values of configuration parameters.";
    ConfigHelp: "config|help", Session, 2, ALWAYS, [], [], "server", "5.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    ConfigResetstat: "config|resetstat", Session, 2, OPERATOR, [], [], "server", "2.0.0",
        "O(1)", "Resets the server's statistics.";
    ConfigRewrite: "config|rewrite", Session, 2, OPERATOR, [], [], "server", "2.8.0",
        "O(1)", "Persists the effective configuration to file.";
    ConfigSet: "config|set", Session, -4, OPERATOR, [], [], "server", "2.0.0",
        "O(N) when N is the number of configuration parameters provided",
        "Sets configuration parameters in-flight.";
    Copy: "copy", Data, -3, WRITE.with(DENYOOM), [READ, OVERWRITE.at(2)], ["keyspace"], "generic", "6.2.0",
        "O(N) worst case for collections, where N is the number of nested items. O(1) for string values.",
        "Copy a key.";
    Dbsize: "dbsize", Keyspace, 1, LOOK, [], ["keyspace"], "server", "1.0.0",
        "O(N) where N is the number of keys in the database",
        "Returns the number of keys in the database.";
    Debug: "debug", Session, -2, OPERATOR, [], [], "server", "1.0.0",
        "Depends on subcommand.", "A container for debugging commands.";
    Decr: "decr", Data, 2, GROW, [UPDATE_READ], ["string"], "string", "1.0.0",
        "O(1)",
        "Decrements the integer value of a key by one. Uses 0 as initial value if the key doesn't \
         exist.";
    Decrby: "decrby", Data, 3, GROW, [UPDATE_READ], ["string"], "string", "1.0.0",
        "O(1)",
        "Decrements a number from the integer value of a key. Uses 0 as initial value if the key \
         doesn't exist.";
    Del: "del", Data, -2, WRITE, [REMOVE_ALL], ["keyspace"], "generic", "1.0.0",
        "O(N) where N is the number of keys that will be removed.", "Deletes one or more keys.";
    Discard: "discard", Session, 1, SESSION.with(FAST).with(ALLOW_BUSY), [], ["transaction"], "transactions", "2.0.0",
        "O(N), when N is the number of queued commands",
        "Discard all commands issued after MULTI.";
    Echo: "echo", Session, 2, ALWAYS.with(FAST), [], ["connection"], "connection", "1.0.0",
        "O(1)", "Returns the given string.";
    Exec: "exec", Session, 1, SESSION.with(SKIP_SLOWLOG), [], ["transaction"], "transactions", "1.2.0",
        "Depends on commands in the transaction",
        "Execute all commands issued after MULTI.";
    Exists: "exists", Data, -2, LOOK, [PROBE_ALL], ["keyspace"], "generic", "1.0.0",
        "O(N) where N is the number of keys to check.",
        "Determines whether one or more keys exist.";
    Expire: "expire", Data, -3, CHANGE, [UPDATE], ["keyspace"], "generic", "1.0.0",
        "O(1)", "Sets the expiration time of a key in seconds.";
    Expireat: "expireat", Data, -3, CHANGE, [UPDATE], ["keyspace"], "generic", "1.2.0",
        "O(1)",
        "Set the expiration for a key as a UNIX timestamp.";
    Expiretime: "expiretime", Data, 2, LOOK, [READ], ["keyspace"], "generic", "7.0.0",
        "O(1)",
        "Get the expiration Unix timestamp for a key.";
    Flushall: "flushall", Keyspace, -1, WRITE, [], ["keyspace" "dangerous"], "server", "1.0.0",
        "O(1): a range removal per database, reclaimed by compaction",
        "Removes all keys from all databases.";
    Flushdb: "flushdb", Keyspace, -1, WRITE, [], ["keyspace" "dangerous"], "server", "1.0.0",
        "O(1): a range removal, reclaimed by compaction",
        "Remove all keys from the current database.";
    Function: "function", Session, -2, NONE, [], [], "scripting", "7.0.0",
        "Depends on subcommand.", "A container for function commands.";
    FunctionDelete: "function|delete", Session, 3, WRITE.with(NOSCRIPT), [], ["scripting"], "scripting", "7.0.0",
        "O(1)", "Deletes a library and its functions.";
    FunctionFlush: "function|flush", Session, -2, WRITE.with(NOSCRIPT), [], ["scripting"], "scripting", "7.0.0",
        "O(N) where N is the number of functions deleted", "Deletes all libraries and functions.";
    FunctionHelp: "function|help", Session, 2, ALWAYS, [], ["scripting"], "scripting", "7.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    FunctionKill: "function|kill", Session, 2, NOSCRIPT.with(ALLOW_BUSY), [], ["scripting"], "scripting", "7.0.0",
        "O(1)", "Terminates a function during execution.";
    FunctionList: "function|list", Session, -2, NOSCRIPT, [], ["scripting"], "scripting", "7.0.0",
        "O(N) where N is the number of functions", "Returns information about all libraries.";
    FunctionStats: "function|stats", Session, 2, NOSCRIPT.with(ALLOW_BUSY), [], ["scripting"], "scripting", "7.0.0",
        "O(1)", "Returns information about a function during execution.";
    Get: "get", Data, 2, LOOK, [READ], ["string"], "string", "1.0.0",
        "O(1)", "Returns the string value of a key.";
    Getbit: "getbit", Data, 3, LOOK, [READ], ["bitmap"], "bitmap", "2.2.0",
        "O(1)",
        "Returns the bit value at offset in the string value stored at key.";
    Getdel: "getdel", Data, 2, CHANGE, [REMOVE], ["string"], "string", "6.2.0",
        "O(1)", "Returns the string value of a key after deleting the key.";
    Getex: "getex", Data, -2, CHANGE, [UPDATE_READ], ["string"], "string", "6.2.0",
        "O(1)", "Returns the string value of a key after setting its expiration time.";
    Getrange: "getrange", Data, 4, READONLY, [READ], ["string"], "string", "2.4.0",
        "O(N) where N is the length of the returned string. The complexity is ultimately determined by the returned length, but because creating a substring from an existing string is very cheap, it can be considered O(1) for small strings.",
        "Get a substring of the string stored at a key.";
    Getset: "getset", Data, 3, GROW, [UPDATE_READ], ["string"], "string", "1.0.0",
        "O(1)",
        "Set the string value of a key and return its old value.";
    Hello: "hello", Session, -1, GREETING, [], ["connection"], "connection", "6.0.0",
        "O(1)", "Handshakes with the Redis server.";
    Incr: "incr", Data, 2, GROW, [UPDATE_READ], ["string"], "string", "1.0.0",
        "O(1)",
        "Increments the integer value of a key by one. Uses 0 as initial value if the key doesn't \
         exist.";
    Incrby: "incrby", Data, 3, GROW, [UPDATE_READ], ["string"], "string", "1.0.0",
        "O(1)",
        "Increments the integer value of a key by a number. Uses 0 as initial value if the key \
         doesn't exist.";
    Incrbyfloat: "incrbyfloat", Data, 3, GROW, [UPDATE_READ], ["string"], "string", "2.6.0",
        "O(1)",
        "Increment the float value of a key by the given amount.";
    Info: "info", Session, -1, ALWAYS, [], ["dangerous"], "server", "1.0.0",
        "O(1)", "Returns information and statistics about the server.";
    Keys: "keys", Keyspace, 2, READONLY, [], ["keyspace" "dangerous"], "generic", "1.0.0",
        "O(N) with N being the number of keys in the database",
        "Returns all key names that match a pattern.";
    Lastsave: "lastsave", Session, 1, ALWAYS.with(FAST), [], ["dangerous"], "server", "1.0.0",
        "O(1)", "Returns the Unix timestamp of the last successful save to disk.";
    Latency: "latency", Session, -2, NONE, [], [], "server", "2.8.13",
        "Depends on subcommand.", "A container for latency diagnostics commands.";
    LatencyDoctor: "latency|doctor", Session, 2, OPERATOR, [], [], "server", "2.8.13",
        "O(1)", "Returns a human-readable latency analysis report.";
    LatencyGraph: "latency|graph", Session, 3, OPERATOR, [], [], "server", "2.8.13",
        "O(1)", "Returns a latency graph for an event.";
    LatencyHelp: "latency|help", Session, 2, ALWAYS, [], [], "server", "2.8.13",
        "O(1)", "Returns helpful text about the different subcommands.";
    LatencyHistogram: "latency|histogram", Session, -2, OPERATOR, [], [], "server", "7.0.0",
        "O(N) where N is the number of commands with latency information being retrieved.",
        "Returns the cumulative distribution of latencies of a subset or all commands.";
    LatencyHistory: "latency|history", Session, 3, OPERATOR, [], [], "server", "2.8.13",
        "O(1)", "Returns timestamp-latency samples for an event.";
    LatencyLatest: "latency|latest", Session, 2, OPERATOR, [], [], "server", "2.8.13",
        "O(1)", "Returns the latest latency samples for all events.";
    LatencyReset: "latency|reset", Session, -2, OPERATOR, [], [], "server", "2.8.13",
        "O(1)", "Resets the latency data for one or more events.";
    Lcs: "lcs", Data, -3, READONLY, [Keys { first: 1, last: 2, ..READ }], ["string"], "string", "7.0.0",
        "O(N*M) where N and M are the lengths of s1 and s2, respectively",
        "Find longest common substring.";
    Memory: "memory", Session, -2, NONE, [], [], "server", "4.0.0",
        "Depends on subcommand.",
        "A container for memory diagnostics commands.";
    MemoryDoctor: "memory|doctor", Session, 2, NONE, [], [], "server", "4.0.0",
        "O(1)", "Outputs a memory problems report.";
    MemoryHelp: "memory|help", Session, 2, ALWAYS, [], [], "server", "4.0.0",
        "O(1)",
        "Show helpful text about the different subcommands.";
    MemoryMallocStats: "memory|malloc-stats", Session, 2, NONE, [], [], "server", "4.0.0",
        "O(1)", "Returns the allocator statistics.";
    MemoryPurge: "memory|purge", Session, 2, NONE, [], [], "server", "4.0.0",
        "O(1)", "Asks the allocator to release memory.";
    MemoryStats: "memory|stats", Session, 2, NONE, [], [], "server", "4.0.0",
        "O(1)", "Returns details about memory usage.";
    MemoryUsage: "memory|usage", Data, -3, READONLY, [PROBE.at(2)], [], "server", "4.0.0",
        "O(N) where N is the number of samples.",
        "Estimate the memory usage of a key.";
    Mget: "mget", Data, -2, LOOK, [READ_ALL], ["string"], "string", "1.0.0",
        "O(N) where N is the number of keys to retrieve.",
        "Atomically returns the string values of one or more keys.";
    Module: "module", Session, -2, NONE, [], [], "server", "4.0.0",
        "Depends on subcommand.", "A container for module commands.";
    ModuleList: "module|list", Session, 2, ADMIN.with(NOSCRIPT), [], [], "server", "4.0.0",
        "O(N) where N is the number of loaded modules.", "Returns all loaded modules.";
    Move: "move", Data, 3, CHANGE, [UPDATE_READ], ["keyspace"], "generic", "1.0.0",
        "O(1)",
        "Move a key to another database.";
    Mset: "mset", Data, -3, WRITE.with(DENYOOM), [OVERWRITE_PAIRS], ["string"], "string", "1.0.1",
        "O(N) where N is the number of keys to set.",
        "Atomically creates or modifies the string values of one or more keys.";
    Msetnx: "msetnx", Data, -3, WRITE.with(DENYOOM), [INSERT_ONLY_PAIRS], ["string"], "string", "1.0.1",
        "O(N) where N is the number of keys to set.",
        "Set multiple keys to multiple values, only if none of the keys exist.";
    Multi: "multi", Session, 1, SESSION.with(FAST).with(ALLOW_BUSY), [], ["transaction"], "transactions", "1.2.0",
        "O(1)",
        "Mark the start of a transaction block.";
    Object: "object", Session, -2, NONE, [], [], "generic", "2.2.3",
        "Depends on subcommand.",
        "A container for object introspection commands.";
    ObjectEncoding: "object|encoding", Data, 3, READONLY, [PROBE.at(2)], ["keyspace"], "generic", "2.2.3",
        "O(1)",
        "Inspect the internal encoding of a Redis object.";
    ObjectFreq: "object|freq", Data, 3, READONLY, [PROBE.at(2)], ["keyspace"], "generic", "4.0.0",
        "O(1)",
        "Get the logarithmic access frequency counter of a Redis object.";
    ObjectHelp: "object|help", Session, 2, ALWAYS, [], ["keyspace"], "generic", "6.2.0",
        "O(1)",
        "Show helpful text about the different subcommands.";
    ObjectIdletime: "object|idletime", Data, 3, READONLY, [PROBE.at(2)], ["keyspace"], "generic", "2.2.3",
        "O(1)",
        "Get the time since a Redis object was last accessed.";
    ObjectMeta: "object|meta", Data, 3, READONLY, [PROBE.at(2)], ["keyspace"], "generic", "7.0.0",
        "O(1)",
        "Shows what is known about a key beside its value: its metadata record.";
    ObjectRefcount: "object|refcount", Data, 3, READONLY, [PROBE.at(2)], ["keyspace"], "generic", "2.2.3",
        "O(1)",
        "Get the number of references to the value of the key.";
    Persist: "persist", Data, 2, CHANGE, [UPDATE], ["keyspace"], "generic", "2.2.0",
        "O(1)", "Removes the expiration time of a key.";
    Pexpire: "pexpire", Data, -3, CHANGE, [UPDATE], ["keyspace"], "generic", "2.6.0",
        "O(1)", "Sets the expiration time of a key in milliseconds.";
    Pexpireat: "pexpireat", Data, -3, CHANGE, [UPDATE], ["keyspace"], "generic", "2.6.0",
        "O(1)",
        "Set the expiration for a key as a UNIX timestamp specified in milliseconds.";
    Pexpiretime: "pexpiretime", Data, 2, LOOK, [READ], ["keyspace"], "generic", "7.0.0",
        "O(1)",
        "Get the expiration Unix timestamp for a key in milliseconds.";
    Ping: "ping", Session, -1, FAST, [], ["connection"], "connection", "1.0.0",
        "O(1)", "Returns the server's liveliness response.";
    Psetex: "psetex", Data, 4, WRITE.with(DENYOOM), [OVERWRITE], ["string"], "string", "2.6.0",
        "O(1)",
        "Sets both string value and expiration time in milliseconds of a key. The key is created \
         if it doesn't exist.";
    Pttl: "pttl", Data, 2, LOOK, [READ], ["keyspace"], "generic", "2.6.0",
        "O(1)", "Returns the expiration time in milliseconds of a key.";
    Quit: "quit", Session, -1, GREETING, [], ["connection"], "connection", "1.0.0",
        "O(1)", "Closes the connection.";
    Randomkey: "randomkey", Keyspace, 1, READONLY, [], ["keyspace"], "generic", "1.0.0",
        "O(1)",
        "Return a random key from the keyspace.";
    Readonly: "readonly", Session, 1, ALWAYS.with(FAST), [], ["connection"], "cluster", "3.0.0",
        "O(1)", "Enables read-only queries for a connection to a Redis Cluster replica node.";
    Readwrite: "readwrite", Session, 1, ALWAYS.with(FAST), [], ["connection"], "cluster", "3.0.0",
        "O(1)", "Enables read-write queries for a connection to a Redis Cluster replica node.";
    Rename: "rename", Data, 3, WRITE, [REMOVE, OVERWRITE.at(2)], ["keyspace"], "generic", "1.0.0",
        "O(1)",
        "Rename a key.";
    Renamenx: "renamenx", Data, 3, CHANGE, [REMOVE, INSERT_ONLY.at(2)], ["keyspace"], "generic", "1.0.0",
        "O(1)",
        "Rename a key, only if the new key does not exist.";
    Reset: "reset", Session, 1, GREETING, [], ["connection"], "connection", "6.2.0",
        "O(1)", "Resets the connection.";
    Role: "role", Session, 1, SESSION.with(FAST), [], ["dangerous"], "server", "2.8.12",
        "O(1)", "Returns the replication role.";
    Scan: "scan", Keyspace, -2, READONLY, [], ["keyspace"], "generic", "2.8.0",
        "O(1) for every call. O(N) for a complete iteration, including enough command calls for \
         the cursor to return back to 0. N is the number of elements inside the collection.",
        "Iterates over the key names in the database.";
    Script: "script", Session, -2, NONE, [], [], "scripting", "2.6.0",
        "Depends on subcommand.", "A container for Lua scripts management commands.";
    ScriptExists: "script|exists", Session, -3, NOSCRIPT, [], ["scripting"], "scripting", "2.6.0",
        "O(N) with N being the number of scripts to check",
        "Determines whether server-side Lua scripts exist in the script cache.";
    ScriptFlush: "script|flush", Session, -2, NOSCRIPT, [], ["scripting"], "scripting", "2.6.0",
        "O(N) with N being the number of scripts in cache",
        "Removes all server-side Lua scripts from the script cache.";
    ScriptHelp: "script|help", Session, 2, ALWAYS, [], ["scripting"], "scripting", "5.0.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    ScriptKill: "script|kill", Session, 2, NOSCRIPT.with(ALLOW_BUSY), [], ["scripting"], "scripting", "2.6.0",
        "O(1)", "Terminates a server-side Lua script during execution.";
    Select: "select", Session, 2, ALWAYS.with(FAST), [], ["connection"], "connection", "1.0.0",
        "O(1)", "Changes the selected database.";
    Set: "set", Data, -3, WRITE.with(DENYOOM), [UPDATE_READ.varying()], ["string"], "string", "1.0.0",
        "O(1)",
        "Sets the string value of a key, ignoring its type. The key is created if it doesn't \
         exist.";
    Setbit: "setbit", Data, 4, WRITE.with(DENYOOM), [UPDATE_READ], ["bitmap"], "bitmap", "2.2.0",
        "O(1)",
        "Sets or clears the bit at offset in the string value stored at key.";
    Setex: "setex", Data, 4, WRITE.with(DENYOOM), [OVERWRITE], ["string"], "string", "2.0.0",
        "O(1)",
        "Sets the string value and expiration time of a key. Creates the key if it doesn't exist.";
    Setnx: "setnx", Data, 3, GROW, [INSERT_ONLY], ["string"], "string", "1.0.0",
        "O(1)", "Set the string value of a key only when the key doesn't exist.";
    Setrange: "setrange", Data, 4, WRITE.with(DENYOOM), [UPDATE], ["string"], "string", "2.2.0",
        "O(1), not counting the time taken to copy the new string in place. Usually, this string is very small so the amortized complexity is O(1). Otherwise, complexity is O(M) with M being the length of the value argument.",
        "Overwrite part of a string at key starting at the specified offset.";
    Slowlog: "slowlog", Session, -2, NONE, [], [], "server", "2.2.12",
        "Depends on subcommand.", "A container for slow log commands.";
    SlowlogGet: "slowlog|get", Session, -2, ADMIN.with(ALWAYS), [], [], "server", "2.2.12",
        "O(N) where N is the number of entries returned", "Returns the slow log's entries.";
    SlowlogHelp: "slowlog|help", Session, 2, ALWAYS, [], [], "server", "6.2.0",
        "O(1)", "Returns helpful text about the different subcommands.";
    SlowlogLen: "slowlog|len", Session, 2, ADMIN.with(ALWAYS), [], [], "server", "2.2.12",
        "O(1)", "Returns the number of entries in the slow log.";
    SlowlogReset: "slowlog|reset", Session, 2, ADMIN.with(ALWAYS), [], [], "server", "2.2.12",
        "O(N) where N is the number of entries in the slowlog",
        "Clears all entries from the slow log.";
    Strlen: "strlen", Data, 2, LOOK, [PROBE], ["string"], "string", "2.2.0",
        "O(1)", "Returns the length of a string value.";
    Substr: "substr", Data, 4, READONLY, [READ], ["string"], "string", "1.0.0",
        "O(N) where N is the length of the returned string. The complexity is ultimately determined by the returned length, but because creating a substring from an existing string is very cheap, it can be considered O(1) for small strings.",
        "Get a substring of the string stored at a key.";
    Swapdb: "swapdb", Keyspace, 3, CHANGE, [], ["keyspace" "dangerous"], "server", "4.0.0",
        "O(N) where N is the count of clients watching or blocking on keys from both databases.",
        "Swaps two Redis databases.";
    Time: "time", Session, 1, ALWAYS.with(FAST), [], [], "server", "2.6.0",
        "O(1)", "Returns the server time.";
    Touch: "touch", Data, -2, LOOK, [PROBE_ALL], ["keyspace"], "generic", "3.2.1",
        "O(N) where N is the number of keys that will be touched.",
        "Alters the last access time of a key(s). Returns the number of existing keys specified.";
    Ttl: "ttl", Data, 2, LOOK, [READ], ["keyspace"], "generic", "1.0.0",
        "O(1)", "Returns the expiration time in seconds of a key.";
    Type: "type", Data, 2, LOOK, [PROBE], ["keyspace"], "generic", "1.0.0",
        "O(1)", "Determines the type of value stored at a key.";
    Unlink: "unlink", Data, -2, CHANGE, [REMOVE_ALL], ["keyspace"], "generic", "4.0.0",
        "O(1) for each key removed regardless of its size.", "Asynchronously deletes one or more keys.";
    Unwatch: "unwatch", Session, 1, SESSION.with(FAST).with(ALLOW_BUSY), [], ["transaction"], "transactions", "2.2.0",
        "O(1)",
        "Forget about all watched keys.";
    Wait: "wait", Session, 3, NOSCRIPT, [], ["connection"], "generic", "3.0.0",
        "O(1)",
        "Blocks until the asynchronous replication of all preceding write commands sent by the connection is completed.";
    Watch: "watch", Session, -2, SESSION.with(FAST).with(ALLOW_BUSY), [PROBE_ALL], ["transaction"], "transactions", "2.2.0",
        "O(1) for every key.",
        "Watch the given keys to determine execution of the MULTI/EXEC block.";
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

impl Keys {
    /// Returns the indexes of the keys in a request of this many arguments.
    pub fn indexes(&self, args: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let first = self.first.unsigned_abs() as usize;
        let last = match self.last {
            last if last < 0 => args.saturating_sub(last.unsigned_abs() as usize),
            last => last.unsigned_abs() as usize,
        };
        let end = (last + 1).min(args);
        (first..end.max(first)).step_by(self.step.unsigned_abs().max(1) as usize)
    }
}

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
        matches!(
            self.id,
            Id::Acl
                | Id::Client
                | Id::Cluster
                | Id::Command
                | Id::Config
                | Id::Function
                | Id::Latency
                | Id::Memory
                | Id::Module
                | Id::Object
                | Id::Script
                | Id::Slowlog
        )
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

    /// Returns the indexes of the keys in a request of this many arguments, in their order.
    pub fn key_indexes(&self, args: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        self.keys.iter().flat_map(move |keys| keys.indexes(args))
    }

    /// Returns the first key's index, the last one's and the distance between them, as COMMAND
    /// shows them for clients that know one use of keys only; all 0 without keys.
    pub fn key_range(&self) -> (i32, i32, i32) {
        match (self.keys.first(), self.keys.last()) {
            (Some(first), Some(last)) => (first.first, last.last, first.step),
            _ => (0, 0, 0),
        }
    }

    /// Returns how this request uses the keys of one of the command's uses.
    pub fn access(&self, keys: &Keys, request: &Request<'_>) -> &'static [&'static str] {
        if !keys.varying {
            return keys.access;
        }
        let has = |word: &str| request.tail(2).any(|a| a.eq_ignore_ascii_case(word.as_bytes()));
        match self.id {
            Id::Bitfield if !has("SET") && !has("INCRBY") => READ.access,
            Id::Set if !has("GET") => OVERWRITE.access,
            _ => keys.access,
        }
    }
}

/// Returns the commands that are no subcommands.
pub fn top_level() -> impl Iterator<Item = &'static Command> + Clone {
    COMMANDS.iter().filter(|command| !command.is_subcommand)
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
            assert_eq!(command.is_subcommand, command.container().is_some());
            if let Some((container, _)) = command.container() {
                assert!(names.contains(&container), "{} before its container", command.name);
            }
            assert_eq!(command.is_container(), command.subcommands().next().is_some());
            for keys in command.keys {
                assert!(command.arity.abs() > keys.first && keys.first > 0, "{}", command.name);
            }
            names.push(command.name);
        }
        let client = Index::new().find(b"client").unwrap();
        assert_eq!(client.subcommands().count(), 20);
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
