//! The command line: every subcommand and its flags, as data for clap.
//!
//! A flag's doc comment is its help text; every subcommand's help ends with an example that works
//! as written. Flags of the server are optional here, because the configuration file may give them:
//! [`crate::config`] merges the two and knows the defaults.

use std::path::PathBuf;

use atoll_lsm::{Durability, PoolStrategy};
use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::value::{Count, IoLimit, Listen, Server, Size, Ttl};

/// A database that keeps what it acknowledged, spoken to by any Redis client.
#[derive(Debug, Parser)]
#[command(name = "atoll", version = crate::allocator::VERSION, subcommand_required = true, arg_required_else_help = false)]
#[command(after_help = "Example:\n  atoll start            run the database on ./atoll-data\n  \
                        atoll set greeting hi   and, from another terminal, use it")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the database server until SIGTERM or Ctrl-C
    #[command(
        after_help = "Every flag can also be an ATOLL_ variable (ATOLL_DATA) or a key of the \
                            file given by --config (data = \"DIR\"); a flag wins over a variable, \
                            a variable over the file.\n\nExample:\n  atoll start --data \
                            /var/lib/atoll --memory 2GiB --resp 127.0.0.1:7379"
    )]
    Start(StartArgs),
    /// Ask a server whether it answers, and how fast
    #[command(after_help = "Example:\n  atoll ping --resp 127.0.0.1:7379")]
    Ping {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Print the value of a key
    #[command(after_help = "The value is printed as it is stored, followed by a line end; a key \
                            that does not exist is exit code 1.\n\nExample:\n  atoll get greeting")]
    Get {
        #[command(flatten)]
        server: ServerArgs,
        /// The key
        key: String,
    },
    /// Set a key to a value
    #[command(after_help = "Example:\n  atoll set session:42 alice --ttl 30m")]
    Set {
        #[command(flatten)]
        server: ServerArgs,
        /// The key
        key: String,
        /// The value
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Remove the key after this time: 500ms, 30s, 15m, 12h, 7d
        #[arg(long, value_name = "TIME")]
        ttl: Option<Ttl>,
    },
    /// List keys, a line each
    #[command(after_help = "Keys that are not plain text are printed in quotes with \\x \
                            escapes.\n\nExample:\n  atoll scan --match 'session:*' --values \
                            --limit 20")]
    Scan {
        #[command(flatten)]
        server: ServerArgs,
        /// Only keys that match the pattern: `*` any text, `?` one character, `[ab]` one of these
        #[arg(long = "match", value_name = "PATTERN", default_value = "*")]
        pattern: String,
        /// Stop after this many keys
        #[arg(long, value_name = "N")]
        limit: Option<Count>,
        /// Print each key's value behind it, separated by a tab
        #[arg(long)]
        values: bool,
    },
    /// Show what a server is doing
    #[command(after_help = "Examples:\n  atoll stats\n  atoll stats memory\n  atoll stats \
                            --metrics --http 127.0.0.1:7480")]
    Stats {
        #[command(flatten)]
        server: ServerArgs,
        /// Show only this section of INFO: server, clients, memory, ...
        #[arg(conflicts_with = "metrics")]
        section: Option<String>,
        /// Show the counters of the HTTP page /metrics instead of INFO
        #[arg(long)]
        metrics: bool,
        /// The server's HTTP address, for --metrics
        #[arg(long, env = "ATOLL_HTTP", value_name = "ADDR", default_value = "127.0.0.1:7480")]
        http: Server,
    },
    /// Show the shards of a server: range, store, size, load, position in the log
    #[command(after_help = "A running server is asked over HTTP; with --data the directory of a \
                            stopped one is read. Sizes are those of table files, \
                            estimated.\n\nExamples:\n  atoll shards\n  atoll shards --data \
                            ./atoll-data")]
    Shards {
        #[command(flatten)]
        http: HttpArgs,
        /// The data directory of a stopped server, to be read instead
        #[arg(long, value_name = "DIR", conflicts_with_all = ["http", "password"])]
        data: Option<PathBuf>,
    },
    /// Change into how many shards the data is cut
    #[command(after_help = "Example:\n  atoll reshard double --http 127.0.0.1:7480")]
    Reshard {
        #[command(subcommand)]
        how: Reshard,
    },
    /// Write the strings of a server as lines of JSON
    #[command(after_help = "A line is {\"key\":...,\"value\":...}; what is no UTF-8 text is in \
                            key_base64 and value_base64, a deadline in expires_ms, in milliseconds \
                            since 1970. Keys that are written meanwhile may be in it or \
                            not.\n\nExample:\n  atoll export --match 'session:*' --to \
                            sessions.jsonl")]
    Export {
        #[command(flatten)]
        server: ServerArgs,
        /// Only keys that match the pattern, as `atoll scan` has it
        #[arg(long = "match", value_name = "PATTERN", default_value = "*")]
        pattern: String,
        /// The file to make [default: standard output]
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Set the keys of a server from lines of JSON, as `atoll export` writes them
    #[command(after_help = "A line that cannot be read is named and ends the import; what stands \
                            before it is set. Importing again does no harm: a line says what its key \
                            is to be.\n\nExample:\n  atoll import sessions.jsonl")]
    Import {
        #[command(flatten)]
        server: ServerArgs,
        /// The file, `-` for standard input
        #[arg(value_name = "FILE")]
        from: PathBuf,
    },
    /// Read every byte of a stopped server's data and check it
    #[command(after_help = "Changes nothing. Exit code 1 if something is wrong.\n\nExample:\n  \
                            atoll verify --data ./atoll-data")]
    Verify {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Back a stopped server's data up; what a backup has already is not copied again
    #[command(
        after_help = "Each backup is a generation that can be restored by itself; tables that did \
                      not change are shared, after a look at their checksums. What is found \
                      damaged in the backup is copied again.\n\nExample:\n  atoll backup --data \
                      ./atoll-data --to /mnt/backup"
    )]
    Backup {
        #[command(flatten)]
        data: DataArgs,
        /// The directory of the backup, made if missing
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Copy everything and share no file with earlier generations
        #[arg(long, conflicts_with = "trust")]
        whole: bool,
        /// Share tables without reading them again; `atoll backups --verify` finds rot in them
        #[arg(long)]
        trust: bool,
    },
    /// Restore a backup to a new directory
    #[command(after_help = "Every byte is held against its checksum. The server starts on the \
                            directory afterwards.\n\nExample:\n  atoll restore --from /mnt/backup \
                            --to ./restored")]
    Restore {
        /// The directory of the backup
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Which generation [default: the newest]
        #[arg(long, value_name = "N")]
        generation: Option<Count>,
        /// The directory to make; missing or without a file
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// List the generations of a backup, verify or prune them
    #[command(after_help = "Examples:\n  atoll backups --from /mnt/backup --verify\n  atoll \
                            backups --from /mnt/backup --keep 7")]
    Backups {
        /// The directory of the backup
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Read every file and hold it against its checksums
        #[arg(long)]
        verify: bool,
        /// Remove all but the newest N generations, and what only they needed
        #[arg(long, value_name = "N")]
        keep: Option<Count>,
    },
    /// Merge a stopped server's tables and drop what is dead
    #[command(after_help = "Example:\n  atoll compact --data ./atoll-data")]
    Compact {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Make a stopped server's damaged data usable again, at the price you allow
    #[command(
        after_help = "Restoring the damaged files from a backup is always better. Without a \
                            flag nothing is dropped: tables that verify again serve again.\n\n\
                            Example:\n  atoll repair --data ./atoll-data --cut-log"
    )]
    Repair {
        #[command(flatten)]
        data: DataArgs,
        /// Cut the log at the first frame that does not verify: what was written behind it is lost
        #[arg(long)]
        cut_log: bool,
        /// Go on without tables that do not verify: what was in them is lost, and what they
        /// replaced or deleted may reappear. Their files are kept as *.sst.corrupt
        #[arg(long)]
        drop_corrupt_tables: bool,
        /// Go on without value files that are missing or cut short: reads of the values that stood
        /// there answer with an error, until their keys are written again or deleted
        #[arg(long)]
        drop_lost_values: bool,
    },
    /// Measure a server: any that speaks RESP, Redis too
    #[command(
        after_help = "Example:\n  atoll bench --clients 50 --pipeline 16 --requests 1000000 \
                            --keyspace 100000 --tests set,get"
    )]
    Bench(BenchArgs),
}

/// How the shards change.
#[derive(Debug, Subcommand)]
pub(crate) enum Reshard {
    /// Split every shard at its midpoint while the server serves: twice as many, no data is moved
    #[command(after_help = "Example:\n  atoll reshard double")]
    Double {
        #[command(flatten)]
        http: HttpArgs,
    },
}

/// Where the server's HTTP port is, for the commands that ask there.
#[derive(Args, Debug)]
pub(crate) struct HttpArgs {
    /// The server's HTTP address
    #[arg(long, env = "ATOLL_HTTP", value_name = "ADDR", default_value = "127.0.0.1:7480")]
    pub(crate) http: Server,
    /// The server's password, if it has one
    #[arg(long, env = "ATOLL_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub(crate) password: Option<String>,
}

/// Where the server is, for the commands that talk to one.
#[derive(Args, Debug)]
pub(crate) struct ServerArgs {
    /// The server's Redis address
    #[arg(long, env = "ATOLL_RESP", value_name = "ADDR", default_value = "127.0.0.1:7379")]
    pub(crate) resp: Server,
    /// The server's password, if it has one
    #[arg(long, env = "ATOLL_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub(crate) password: Option<String>,
}

/// Which data, for the commands that work on a stopped server's.
#[derive(Args, Debug)]
pub(crate) struct DataArgs {
    /// The data directory of a stopped server
    #[arg(long = "data", env = "ATOLL_DATA", value_name = "DIR", default_value = "./atoll-data")]
    pub(crate) dir: PathBuf,
}

/// The server's settings, as far as flags and variables give them.
#[derive(Args, Debug, Default)]
pub(crate) struct StartArgs {
    /// The data directory, created if missing [default: ./atoll-data]
    #[arg(long, env = "ATOLL_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where Redis clients connect; port 0 picks a free one, `off` opens none
    /// [default: 127.0.0.1:7379]
    #[arg(long, env = "ATOLL_RESP", value_name = "ADDR")]
    pub(crate) resp: Option<Listen>,
    /// Where REST, /metrics and /health are; port 0 picks a free one, `off` opens none
    /// [default: 127.0.0.1:7480]
    #[arg(long, env = "ATOLL_HTTP", value_name = "ADDR")]
    pub(crate) http: Option<Listen>,
    /// When a write is answered: `synced`, after it is on stable storage; `interval`, at once,
    /// on stable storage within a second; `buffered`, at once, when the kernel likes. All three
    /// survive kill -9; only the first survives every power cut [default: synced]
    #[arg(long, env = "ATOLL_DURABILITY", value_name = "MODE")]
    pub(crate) durability: Option<Durability>,
    /// Memory for everything the engine holds: 512MiB, 2GiB [default: a quarter of RAM or of the
    /// cgroup's limit]
    #[arg(long, env = "ATOLL_MEMORY", value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Where the block cache has its memory: `auto`, a region of huge pages that grows as it is used;
    /// `pinned`, all of it from the start and locked; `vm`, small pages that go back to the machine when
    /// they are free; `heap`, the allocator [default: auto]
    #[arg(long, env = "ATOLL_POOL", value_name = "STRATEGY")]
    pub(crate) pool: Option<PoolStrategy>,
    /// Threads that serve, each with stores of its own; at most as many as the directory has stores
    /// [default: half of the processors]
    #[arg(long, env = "ATOLL_CORES", value_name = "N")]
    pub(crate) cores: Option<usize>,
    /// Stores of a new data directory, a power of two; fixed when it is made [default: the cores]
    #[arg(long, env = "ATOLL_STORES", value_name = "N")]
    pub(crate) stores: Option<u16>,
    /// Pin the serving threads to processors: `auto` does if there are more processors than cores
    /// [default: auto]
    #[arg(long, env = "ATOLL_PIN", value_name = "WHEN")]
    pub(crate) pin: Option<crate::config::Pin>,
    /// What carries disk transfers out: `auto`, io_uring on the serving threads if the kernel grants it;
    /// `uring`, io_uring everywhere or no start; `threads`, blocking calls on helper threads
    /// [default: auto]
    #[arg(long, env = "ATOLL_IO", value_name = "MODE")]
    pub(crate) io: Option<crate::config::IoMode>,
    /// What goes past the kernel's page cache: `off`, nothing; `log`, synced writes of the log; `all`,
    /// tables as well [default: log]
    #[arg(long, env = "ATOLL_DIRECT", value_name = "WHAT")]
    pub(crate) direct: Option<crate::config::Direct>,
    /// How much background work may read and write a second: a size, `auto` to follow how long clients'
    /// reads and writes take, `off` for no ceiling [default: off]
    #[arg(long, env = "ATOLL_IO_LIMIT", value_name = "SIZE")]
    pub(crate) io_limit: Option<IoLimit>,
    /// What is told on standard error of the stores: `warn`, what fails; `debug`, flushes and
    /// compactions as well; `off`, nothing [default: warn]
    #[arg(long, env = "ATOLL_LOG_LEVEL", value_name = "LEVEL")]
    pub(crate) log_level: Option<crate::log::LogLevel>,
    /// The password Redis clients must give with AUTH, and HTTP clients as Authorization. On the command line other users of the
    /// machine can see it; the variable or the file is better
    #[arg(long, env = "ATOLL_REQUIREPASS", value_name = "PASSWORD", hide_env_values = true)]
    pub(crate) requirepass: Option<String>,
    /// Listen beyond this machine without a password
    #[arg(long, env = "ATOLL_INSECURE", value_name = "BOOL", num_args = 0..=1,
          require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new())]
    pub(crate) insecure: Option<bool>,
    /// A TOML file with these settings
    #[arg(long, env = "ATOLL_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_ends_its_help_with_an_example_that_parses() {
        for command in Cli::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            let (_, examples) = help.rsplit_once("Example").unwrap_or_else(|| panic!("{help}"));
            let examples: Vec<&str> =
                examples.lines().skip(1).map(str::trim).filter(|line| !line.is_empty()).collect();
            assert!(!examples.is_empty(), "{help}");
            for example in examples {
                let words = example.split_whitespace().map(|word| word.trim_matches('\''));
                Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{example}: {e}"));
            }
        }
    }

    #[test]
    fn insecure_is_a_switch_that_can_also_be_switched_off() {
        let insecure = |flags: &[&str]| {
            let words = ["atoll", "start"].iter().chain(flags);
            match Cli::try_parse_from(words).unwrap().command {
                Command::Start(args) => args.insecure,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(insecure(&[]), None);
        assert_eq!(insecure(&["--insecure"]), Some(true));
        assert_eq!(insecure(&["--insecure=false"]), Some(false));
    }
}
