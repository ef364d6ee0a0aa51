//! The server's settings: flags and variables over the configuration file over the defaults.
//!
//! clap lets a flag win over its variable; [`Settings::resolve`] lays the file under both. The file
//! is TOML with the flags' names as keys:
//!
//! ```toml
//! data = "/var/lib/atoll"
//! resp = "127.0.0.1:7379"
//! http = "off"
//! durability = "interval"
//! memory = "2GiB"
//! pool = "pinned"
//! io = "threads"
//! io-limit = "200MiB"
//! log-level = "debug"
//! requirepass = "correct horse battery staple"
//! insecure = false
//! ```
//!
//! A key that is not one of these is an error that names it: a setting that was misspelt must not
//! look as if it were in force.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use atoll_lsm::{Durability, PoolStrategy};
use serde::Deserialize;

use crate::cli::StartArgs;
use crate::failure::{Failure, Result};
use crate::log::LogLevel;
use crate::memory;
use crate::value::{IoLimit, Listen, Size};

/// Where Redis clients connect unless told otherwise.
const RESP_PORT: u16 = 7379;
/// Where the HTTP pages are unless told otherwise.
const HTTP_PORT: u16 = 7480;
/// Most stores of a directory, and so most cores that can share them.
const MAX_STORES: u16 = 64;

/// What a store needs at least; the engine takes it whatever it is told.
const STORE_MEMORY_MIN: u64 = 4 << 20;

/// What a server runs with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    pub(crate) resp: Listen,
    pub(crate) http: Listen,
    pub(crate) durability: Durability,
    pub(crate) memory: Size,
    /// Where the block cache has its memory.
    pub(crate) pool: PoolStrategy,
    /// Cores that serve.
    pub(crate) cores: usize,
    /// Stores of a new data directory.
    pub(crate) stores: u16,
    /// Whether cores are pinned to processors.
    pub(crate) pin: Pin,
    /// What carries disk transfers out.
    pub(crate) io: IoMode,
    /// What of them goes past the page cache.
    pub(crate) direct: Direct,
    /// Ceiling of background work.
    pub(crate) io_limit: IoLimit,
    /// What is told of the stores.
    pub(crate) log_level: LogLevel,
    pub(crate) requirepass: Option<String>,
}

/// What carries disk transfers out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IoMode {
    /// io_uring on the serving threads, where the kernel grants it.
    #[default]
    Auto,
    /// io_uring, or no start.
    Uring,
    /// Blocking calls on helper threads.
    Threads,
}

/// What goes past the kernel's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direct {
    /// Nothing.
    Off,
    /// Synced writes of the log.
    #[default]
    Log,
    /// Tables as well.
    All,
}

/// Whether cores are pinned to processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pin {
    /// If there are more processors than cores.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Returns how many processors this process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the stores of a new directory unless told otherwise: one for each core, as far as `memory`
/// is enough for them.
fn default_stores(cores: usize, memory: Size) -> u16 {
    let affordable = 1 << (memory.0 / STORE_MEMORY_MIN).max(1).ilog2().min(15);
    let wanted = u16::try_from(cores.next_power_of_two()).unwrap_or(MAX_STORES);
    wanted.min(affordable).min(MAX_STORES)
}

/// Returns the cores that serve unless told otherwise: half of the processors, because the other
/// half is busy with sockets, syncs and compaction; docs/benchmarks.md has the measurement.
fn default_cores() -> usize {
    (processors() / 2).max(1)
}

impl Settings {
    /// Merges the layers and refuses combinations that are unsafe or useless.
    pub(crate) fn resolve(args: StartArgs) -> Result<Settings> {
        let file = match &args.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let cores = args.cores.or(file.cores).unwrap_or_else(default_cores);
        let memory =
            args.memory.or(file.memory.map(|v| v.0)).unwrap_or_else(memory::default_budget);
        let stores = args.stores.or(file.stores).unwrap_or_else(|| default_stores(cores, memory));
        let loopback = |port| Listen::At(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let settings = Settings {
            data: args.data.or(file.data).unwrap_or_else(|| PathBuf::from("./atoll-data")),
            resp: args.resp.or(file.resp.map(|v| v.0)).unwrap_or(loopback(RESP_PORT)),
            http: args.http.or(file.http.map(|v| v.0)).unwrap_or(loopback(HTTP_PORT)),
            durability: args.durability.or(file.durability.map(|v| v.0)).unwrap_or_default(),
            memory,
            pool: args.pool.or(file.pool.map(|v| v.0)).unwrap_or_default(),
            cores,
            stores,
            pin: args.pin.or(file.pin).unwrap_or_default(),
            io: args.io.or(file.io).unwrap_or_default(),
            direct: args.direct.or(file.direct).unwrap_or_default(),
            io_limit: args.io_limit.or(file.io_limit.map(|v| v.0)).unwrap_or_default(),
            log_level: args.log_level.or(file.log_level).unwrap_or_default(),
            requirepass: args.requirepass.or(file.requirepass),
        };
        settings.check(args.insecure.or(file.insecure).unwrap_or(false))?;
        Ok(settings)
    }

    fn check(&self, insecure: bool) -> Result<()> {
        // Redis reads an empty password as none; here it would silently open the door.
        if self.requirepass.as_deref() == Some("") {
            return Err(Failure::new(
                "the password of --requirepass is empty; give one, or leave the setting out",
            ));
        }
        if !(1..=usize::from(MAX_STORES)).contains(&self.cores) {
            return Err(Failure::new(format!(
                "--cores {} is not between 1 and {MAX_STORES}; leave it out, or give the number of \
                 processors that are to serve",
                self.cores
            )));
        }
        if !self.stores.is_power_of_two() || self.stores > MAX_STORES {
            return Err(Failure::new(format!(
                "--stores {} is no power of two up to {MAX_STORES}; leave it out, or give one",
                self.stores
            )));
        }
        let needed = u64::from(self.stores) * STORE_MEMORY_MIN;
        if self.memory.0 < needed {
            return Err(Failure::new(format!(
                "--memory {} is too little for the stores of a new directory, which need {} \
                 ({} times {}); give more, or leave it out",
                self.memory,
                Size(needed),
                self.stores,
                Size(STORE_MEMORY_MIN)
            )));
        }
        if self.resp == Listen::Off && self.http == Listen::Off {
            return Err(Failure::new(
                "--resp and --http are both off, so nobody could reach the server; give one an \
                 address",
            ));
        }
        if insecure || self.requirepass.is_some() {
            return Ok(());
        }
        for (flag, listen) in [("--resp", self.resp), ("--http", self.http)] {
            if let Listen::At(addr) = listen
                && !addr.ip().is_loopback()
            {
                return Err(Failure::new(format!(
                    "{flag} {addr} would be open to other machines without a password; set \
                     --requirepass, listen on 127.0.0.1, or accept it with --insecure"
                )));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Settings {
    /// Leaves out the password: settings end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { data, resp, http, durability, memory, cores, stores, pin, .. } = self;
        let Settings { pool, io, direct, io_limit, log_level, requirepass, .. } = self;
        f.debug_struct("Settings")
            .field("data", data)
            .field("resp", resp)
            .field("http", http)
            .field("durability", durability)
            .field("memory", memory)
            .field("pool", pool)
            .field("cores", cores)
            .field("stores", stores)
            .field("pin", pin)
            .field("io", io)
            .field("direct", direct)
            .field("io_limit", io_limit)
            .field("log_level", log_level)
            .field("requirepass", &requirepass.as_ref().map(|_| "(set)"))
            .finish()
    }
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data: Option<PathBuf>,
    resp: Option<Parsed<Listen>>,
    http: Option<Parsed<Listen>>,
    durability: Option<Parsed<Durability>>,
    memory: Option<Parsed<Size>>,
    pool: Option<Parsed<PoolStrategy>>,
    cores: Option<usize>,
    stores: Option<u16>,
    pin: Option<Pin>,
    io: Option<IoMode>,
    direct: Option<Direct>,
    #[serde(rename = "io-limit")]
    io_limit: Option<Parsed<IoLimit>>,
    #[serde(rename = "log-level")]
    log_level: Option<LogLevel>,
    requirepass: Option<String>,
    insecure: Option<bool>,
}

impl File {
    fn read(path: &Path) -> Result<File> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::new(format!("the configuration file {} cannot be read: {e}", path.display()))
        })?;
        File::parse(&text)
            .map_err(|what| Failure::new(format!("{}: {what}; correct the file", path.display())))
    }

    fn parse(text: &str) -> std::result::Result<File, String> {
        toml::from_str(text).map_err(|e: toml::de::Error| {
            let what = e.message().lines().collect::<Vec<_>>().join(", ");
            match e.span() {
                Some(span) => {
                    let before = text.get(..span.start).unwrap_or(text);
                    format!("line {}: {what}", before.matches('\n').count() + 1)
                }
                None => what,
            }
        })
    }
}

/// A string in the file that is read as the flag of the same name is.
#[derive(Debug)]
struct Parsed<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Parsed<T>, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Parsed).map_err(|expected| {
            serde::de::Error::custom(format!("invalid value '{text}': {expected}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(args: StartArgs) -> std::result::Result<Settings, String> {
        Settings::resolve(args).map_err(|e| e.to_string())
    }

    fn at(text: &str) -> Option<Listen> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn defaults_are_loopback_synced_and_a_directory_here() {
        let settings = resolve(StartArgs::default()).unwrap();
        assert_eq!(settings.data, Path::new("./atoll-data"));
        assert_eq!(settings.resp.to_string(), "127.0.0.1:7379");
        assert_eq!(settings.http.to_string(), "127.0.0.1:7480");
        assert_eq!(settings.durability, Durability::Synced);
        assert_eq!(settings.memory, memory::default_budget());
        assert_eq!(settings.requirepass, None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    fn the_file_lies_under_the_flags() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("atoll.toml");
        let text = "data = \"d\"\nresp = \"off\"\nmemory = \"1GiB\"\ndurability = \"interval\"\n";
        std::io::Write::write_all(
            &mut std::fs::OpenOptions::new().create_new(true).write(true).open(&path).unwrap(),
            text.as_bytes(),
        )
        .unwrap();
        let settings = resolve(StartArgs {
            config: Some(path),
            memory: Some(Size(5 << 20)),
            ..StartArgs::default()
        })
        .unwrap();
        assert_eq!(settings.data, Path::new("d"));
        assert_eq!(settings.resp, Listen::Off);
        assert_eq!(settings.durability, Durability::Interval);
        assert_eq!(settings.memory, Size(5 << 20));
    }

    #[test]
    fn a_wrong_file_names_line_and_key() {
        for (text, expected) in [
            ("data = \"d\"\n\nmemroy = \"1GiB\"\n", "line 3: unknown field `memroy`, expected one"),
            ("memory = \"lots\"", "line 1: invalid value 'lots': expected a size like"),
            ("memory = 5", "line 1: invalid type: integer `5`, expected a string"),
            ("pool = \"fixed\"", "line 1: invalid value 'fixed': 'fixed' is no pool strategy"),
            (
                "durability = \"never\"",
                "line 1: invalid value 'never': 'never' is no durability mode",
            ),
            ("a = b = c", "line 1: "),
        ] {
            let error = File::parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn beyond_loopback_a_password_or_insecure_is_needed_on_each_listener() {
        for (resp, http, flag) in [
            ("0.0.0.0:1", "off", "--resp"),
            (":1", "[::]:2", "--http"),
            ("192.0.2.1:0", ":0", "--resp"),
        ] {
            let args = || StartArgs { resp: at(resp), http: at(http), ..StartArgs::default() };
            let error = resolve(args()).unwrap_err();
            assert!(error.starts_with(flag) && error.contains("--requirepass"), "{error}");
            resolve(StartArgs { insecure: Some(true), ..args() }).unwrap();
            resolve(StartArgs { requirepass: Some("x".to_owned()), ..args() }).unwrap();
            resolve(StartArgs { insecure: Some(false), ..args() }).unwrap_err();
        }
    }

    #[test]
    fn an_empty_password_and_a_server_without_listeners_are_refused() {
        let empty = StartArgs { requirepass: Some(String::new()), ..StartArgs::default() };
        assert!(resolve(empty).unwrap_err().contains("empty"));
        let deaf = StartArgs { resp: at("off"), http: at("off"), ..StartArgs::default() };
        assert!(resolve(deaf).unwrap_err().contains("both off"));
    }

    #[test]
    fn memory_is_enough_for_the_stores_or_refused() {
        let start = |cores, stores, mib: u64| {
            let memory = Some(Size(mib << 20));
            resolve(StartArgs { cores: Some(cores), stores, memory, ..StartArgs::default() })
        };
        for (cores, mib, stores) in [(1, 4, 1), (5, 1024, 8), (5, 16, 4), (5, 15, 2), (64, 9, 2)] {
            assert_eq!(start(cores, None, mib).unwrap().stores, stores, "{cores} {mib} MiB");
        }
        assert!(start(1, None, 3).unwrap_err().contains("3 MiB is too little"));
        assert!(start(1, Some(8), 31).unwrap_err().contains("need 32 MiB"));
        start(1, Some(8), 32).unwrap();
    }

    #[test]
    fn a_password_is_not_shown() {
        let args =
            StartArgs { requirepass: Some("open sesame".to_owned()), ..StartArgs::default() };
        assert!(!format!("{:?}", resolve(args).unwrap()).contains("sesame"));
    }
}
