//! Configuration a client can see, and the part of it a client can change.
//!
//! The parameters are data: a name and what becomes of a value. There are four sorts:
//!
//! - **live**: it has an effect here, under Redis's name or one of ours;
//! - **kept**: Redis has it, and what it tunes does not exist here (encodings of small collections,
//!   snapshots, defragmentation ...). A value is checked as Redis checks it, remembered until the
//!   server stops, shown, and changes nothing. Tools that set one go on;
//! - **refused**: it would promise something that this server does not do (eviction, events of
//!   keys). The one value that is true can be set, any other is an error that says why;
//! - **fixed**: shown, and never changed while the server runs.
//!
//! A name that is none of these gets Redis's error.

use std::collections::BTreeMap;

use crate::store::{DATABASES, Durability};

/// What can be configured. The server sets it at its start, CONFIG SET changes it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The password of the default user; empty for none.
    pub requirepass: Vec<u8>,
    /// What an acknowledged write survives, for connections that have not chosen.
    pub durability: Durability,
    /// Most connections at a time.
    pub maxclients: usize,
    /// Seconds after which an idle connection is closed; 0 for never.
    pub timeout_s: u64,
    /// The addresses listened on, for CONFIG GET.
    pub bind: String,
    /// The port listened on, for CONFIG GET and INFO.
    pub port: u16,
    /// The data directory, for CONFIG GET.
    pub dir: String,
    /// Microseconds from which on a command is slow; negative for never.
    pub slowlog_slower_than_us: i64,
    /// Slow commands remembered.
    pub slowlog_max_len: usize,
    /// Milliseconds from which on a command is noted by the latency monitor; 0 for never.
    pub latency_threshold_ms: u64,
    /// Which percentiles INFO shows of commands' latencies.
    pub percentiles: Vec<f64>,
    /// Commands whose keys are of several slots are refused, as a cluster of Redis does.
    pub strict_slots: bool,
    /// Values of parameters without effect that were set.
    pub kept: KeptValues,
}

/// Values of parameters without effect, by name.
#[derive(Clone, Debug, Default)]
pub struct KeptValues(BTreeMap<&'static str, Vec<u8>>);

impl Default for Config {
    fn default() -> Config {
        Config {
            requirepass: Vec::new(),
            durability: Durability::Synced,
            maxclients: 10_000,
            timeout_s: 0,
            bind: "127.0.0.1".to_owned(),
            port: 7379,
            dir: String::new(),
            slowlog_slower_than_us: 10_000,
            slowlog_max_len: 128,
            latency_threshold_ms: 0,
            percentiles: vec![50.0, 99.0, 99.9],
            strict_slots: false,
            kept: KeptValues::default(),
        }
    }
}

/// Changes a parameter, or says what is wrong with the value.
type Setter = fn(&mut Config, &[u8]) -> Result<(), String>;

/// A parameter.
pub(crate) struct Parameter {
    pub name: &'static str,
    pub sort: Sort,
}

/// What becomes of a value.
pub(crate) enum Sort {
    /// It has an effect, or is refused.
    Live(fn(&Config) -> Vec<u8>, Setter),
    /// It is checked and remembered.
    Kept(Check, &'static str),
    /// Another name of a parameter.
    Alias(&'static str),
    /// It cannot be set.
    Fixed(fn(&Config) -> Vec<u8>),
}

/// What a value has to be.
#[derive(Clone, Copy)]
pub(crate) enum Check {
    Bool,
    Int(i64, i64),
    /// Bytes, with a unit if it likes; kept as a number.
    Bytes,
    OneOf(&'static [&'static str]),
    Text,
    /// Pairs of seconds and changes.
    Save,
}

use Check::{Bool, Bytes, Int, OneOf, Save, Text};
use Sort::{Alias, Fixed, Kept, Live};

const INT_MAX: i64 = i32::MAX as i64;

macro_rules! parameters {
    ($($name:literal: $sort:expr;)*) => {
        /// The parameters, sorted by name.
        pub(crate) static PARAMETERS: &[Parameter] = &[$(Parameter { name: $name, sort: $sort }),*];
    };
}

parameters! {
    "active-defrag-threshold-lower": Kept(Int(0, 1000), "10");
    "active-expire-effort": Kept(Int(1, 10), "1");
    "activedefrag": Kept(Bool, "no");
    "activerehashing": Kept(Bool, "yes");
    "aof-load-truncated": Kept(Bool, "yes");
    "aof-rewrite-incremental-fsync": Kept(Bool, "yes");
    "aof-timestamp-enabled": Kept(Bool, "no");
    "aof-use-rdb-preamble": Kept(Bool, "yes");
    "appendfsync": Live(|config| config.durability.appendfsync().into(), |config, value| {
        // In the order in which Redis names them in its error.
        let modes = [Durability::Interval, Durability::Synced, Durability::Buffered];
        config.durability = choose(value, modes, Durability::appendfsync)?;
        Ok(())
    });
    "appendonly": Live(|_| b"yes".to_vec(), |_, value| match boolean(value)? {
        true => Ok(()),
        false => Err("every write is logged; `durability` says when the log is synced".to_owned()),
    });
    "auto-aof-rewrite-min-size": Kept(Bytes, "67108864");
    "auto-aof-rewrite-percentage": Kept(Int(0, INT_MAX), "100");
    "bind": Fixed(|config| config.bind.clone().into_bytes());
    "busy-reply-threshold": Kept(Int(0, i64::MAX), "5000");
    "client-output-buffer-limit": Kept(Text, "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60");
    "client-query-buffer-limit": Kept(Bytes, "1073741824");
    "cluster-enabled": Fixed(|_| b"no".to_vec());
    "cluster-strict-slots": Live(|config| yes_or_no(config.strict_slots), |config, value| {
        config.strict_slots = boolean(value)?;
        Ok(())
    });
    "crash-log-enabled": Kept(Bool, "yes");
    "daemonize": Fixed(|_| b"no".to_vec());
    "databases": Fixed(|_| number(DATABASES));
    "dir": Fixed(|config| config.dir.clone().into_bytes());
    "durability": Live(|config| config.durability.name().into(), |config, value| {
        let modes = [Durability::Synced, Durability::Interval, Durability::Buffered];
        config.durability = choose(value, modes, Durability::name)?;
        Ok(())
    });
    "dynamic-hz": Kept(Bool, "yes");
    "hash-max-listpack-entries": Kept(Int(0, i64::MAX), "512");
    "hash-max-listpack-value": Kept(Bytes, "64");
    "hash-max-ziplist-entries": Alias("hash-max-listpack-entries");
    "hash-max-ziplist-value": Alias("hash-max-listpack-value");
    "hll-sparse-max-bytes": Kept(Bytes, "3000");
    "hz": Kept(Int(0, INT_MAX), "10");
    "io-threads": Fixed(|_| b"1".to_vec());
    "latency-monitor-threshold": Live(|config| config.latency_threshold_ms.to_string().into(), |config, value| {
        config.latency_threshold_ms = integer(value, 0, i64::MAX)? as u64;
        Ok(())
    });
    "latency-tracking": Live(|_| b"yes".to_vec(), |_, value| match boolean(value)? {
        true => Ok(()),
        false => Err("latencies are always tracked; it costs one addition a command".to_owned()),
    });
    "latency-tracking-info-percentiles": Live(show_percentiles, set_percentiles);
    "lazyfree-lazy-eviction": Kept(Bool, "no");
    "lazyfree-lazy-expire": Kept(Bool, "no");
    "lazyfree-lazy-server-del": Kept(Bool, "no");
    "lazyfree-lazy-user-del": Kept(Bool, "no");
    "lazyfree-lazy-user-flush": Kept(Bool, "no");
    "lfu-decay-time": Kept(Int(0, INT_MAX), "1");
    "lfu-log-factor": Kept(Int(0, INT_MAX), "10");
    "list-compress-depth": Kept(Int(0, INT_MAX), "0");
    "list-max-listpack-size": Kept(Int(-INT_MAX - 1, INT_MAX), "-2");
    "list-max-ziplist-size": Alias("list-max-listpack-size");
    "logfile": Fixed(|_| Vec::new());
    "loglevel": Kept(OneOf(&["debug", "verbose", "notice", "warning"]), "notice");
    "lua-time-limit": Alias("busy-reply-threshold");
    "maxclients": Live(|config| number(config.maxclients), |config, value| {
        config.maxclients = integer(value, 1, i64::from(u32::MAX))? as usize;
        Ok(())
    });
    "maxmemory": Live(|_| b"0".to_vec(), |_, value| match bytes(value)? {
        0 => Ok(()),
        _ => Err("keys are kept on disk and never evicted; memory is bounded by --memory".to_owned()),
    });
    "maxmemory-clients": Kept(Text, "0");
    "maxmemory-eviction-tenacity": Kept(Int(0, 100), "10");
    "maxmemory-policy": Live(|_| b"noeviction".to_vec(), |_, value| {
        let policies = ["volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl", "allkeys-lru",
            "allkeys-lfu", "allkeys-random", "noeviction"];
        match one_of(value, &policies)? {
            "noeviction" => Ok(()),
            _ => Err("keys are never evicted".to_owned()),
        }
    });
    "maxmemory-samples": Kept(Int(1, INT_MAX), "5");
    "min-replicas-max-lag": Kept(Int(0, INT_MAX), "10");
    "min-replicas-to-write": Live(|_| b"0".to_vec(), |_, value| match integer(value, 0, INT_MAX)? {
        0 => Ok(()),
        _ => Err("there are no replicas".to_owned()),
    });
    "min-slaves-max-lag": Alias("min-replicas-max-lag");
    "min-slaves-to-write": Alias("min-replicas-to-write");
    "no-appendfsync-on-rewrite": Kept(Bool, "no");
    "notify-keyspace-events": Live(|_| Vec::new(), |_, value| match value {
        b"" => Ok(()),
        _ => Err("events of keys are not published by this version".to_owned()),
    });
    "pidfile": Fixed(|_| Vec::new());
    "port": Fixed(|config| number(config.port.into()));
    "protected-mode": Kept(Bool, "yes");
    "proto-max-bulk-len": Fixed(|_| number(atoll_resp::Limits::CLIENT.bulk));
    "rdb-save-incremental-fsync": Kept(Bool, "yes");
    "rdbchecksum": Fixed(|_| b"yes".to_vec());
    "rdbcompression": Kept(Bool, "yes");
    "repl-backlog-size": Kept(Bytes, "1048576");
    "repl-backlog-ttl": Kept(Int(0, i64::MAX), "3600");
    "repl-diskless-load": Kept(OneOf(&["disabled", "on-empty-db", "swapdb"]), "disabled");
    "repl-diskless-sync": Kept(Bool, "yes");
    "repl-diskless-sync-delay": Kept(Int(0, INT_MAX), "5");
    "repl-ping-replica-period": Kept(Int(1, INT_MAX), "10");
    "repl-timeout": Kept(Int(1, INT_MAX), "60");
    "replica-lazy-flush": Kept(Bool, "no");
    "replica-priority": Kept(Int(0, INT_MAX), "100");
    "replica-read-only": Kept(Bool, "yes");
    "replica-serve-stale-data": Kept(Bool, "yes");
    "replicaof": Fixed(|_| Vec::new());
    "requirepass": Live(|config| config.requirepass.clone(), |config, value| {
        config.requirepass = value.to_vec();
        Ok(())
    });
    "sanitize-dump-payload": Kept(OneOf(&["no", "yes", "clients"]), "no");
    "save": Kept(Save, "");
    "set-max-intset-entries": Kept(Int(0, i64::MAX), "512");
    "shutdown-timeout": Kept(Int(0, INT_MAX), "10");
    "slaveof": Alias("replicaof");
    "slowlog-log-slower-than": Live(|config| config.slowlog_slower_than_us.to_string().into(), |config, value| {
        config.slowlog_slower_than_us = integer(value, -1, i64::MAX)?;
        Ok(())
    });
    "slowlog-max-len": Live(|config| number(config.slowlog_max_len), |config, value| {
        // Redis allows any length; a log that fills memory helps nobody.
        config.slowlog_max_len = (integer(value, 0, i64::MAX)? as usize).min(SLOWLOG_LEN_MAX);
        Ok(())
    });
    "stop-writes-on-bgsave-error": Kept(Bool, "yes");
    "stream-node-max-bytes": Kept(Bytes, "4096");
    "stream-node-max-entries": Kept(Int(0, i64::MAX), "100");
    "supervised": Fixed(|_| b"no".to_vec());
    "tcp-keepalive": Kept(Int(0, INT_MAX), "300");
    "timeout": Live(|config| config.timeout_s.to_string().into_bytes(), |config, value| {
        config.timeout_s = integer(value, 0, INT_MAX)? as u64;
        Ok(())
    });
    "tracking-table-max-keys": Kept(Int(0, i64::MAX), "1000000");
    "unixsocket": Fixed(|_| Vec::new());
    "zset-max-listpack-entries": Kept(Int(0, i64::MAX), "128");
    "zset-max-listpack-value": Kept(Bytes, "64");
    "zset-max-ziplist-entries": Alias("zset-max-listpack-entries");
    "zset-max-ziplist-value": Alias("zset-max-listpack-value");
}

/// Why a fixed parameter cannot be set.
pub(crate) const IMMUTABLE: &str = "can't set immutable config";
/// Longest slow log.
const SLOWLOG_LEN_MAX: usize = 100_000;

impl Parameter {
    /// Finds a parameter by name, whatever its case.
    pub fn find(name: &[u8]) -> Option<&'static Parameter> {
        PARAMETERS.iter().find(|known| name.eq_ignore_ascii_case(known.name.as_bytes()))
    }

    /// Returns what has the value: itself, or what it is another name of.
    fn real(&self) -> &Parameter {
        match self.sort {
            Alias(of) => Parameter::find(of.as_bytes()).unwrap_or(self),
            _ => self,
        }
    }

    /// Returns the value.
    pub fn get(&self, config: &Config) -> Vec<u8> {
        let real = self.real();
        match real.sort {
            Live(get, _) | Fixed(get) => get(config),
            Kept(_, default) => {
                config.kept.0.get(real.name).cloned().unwrap_or_else(|| default.into())
            }
            Alias(_) => Vec::new(),
        }
    }

    /// Changes the value, or says why not.
    pub fn set(&self, config: &mut Config, value: &[u8]) -> Result<(), String> {
        let real = self.real();
        match real.sort {
            Live(_, set) => set(config, value),
            Kept(check, _) => {
                let value = check.value(value)?;
                config.kept.0.insert(real.name, value);
                Ok(())
            }
            Fixed(_) | Alias(_) => Err(IMMUTABLE.to_owned()),
        }
    }

    /// Returns whether no value can be set.
    pub fn is_fixed(&self) -> bool {
        matches!(self.real().sort, Fixed(_))
    }
}

impl Check {
    /// Returns the value as it is kept.
    fn value(self, value: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Bool => Ok(yes_or_no(boolean(value)?)),
            Int(min, max) => Ok(integer(value, min, max)?.to_string().into_bytes()),
            Bytes => Ok(bytes(value)?.to_string().into_bytes()),
            OneOf(words) => Ok(one_of(value, words)?.into()),
            Text => Ok(value.to_vec()),
            Save => {
                let words: Vec<&[u8]> =
                    value.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).collect();
                let valid = words.len().is_multiple_of(2)
                    && words.chunks(2).all(|pair| {
                        let numbers = pair.iter().map(|word| atoll_resp::number::parse_i64(word));
                        numbers.zip([1, 0]).all(|(number, min)| number.is_some_and(|n| n >= min))
                    });
                if !valid {
                    return Err("Invalid save parameters".to_owned());
                }
                Ok(words.join(&b' '))
            }
        }
    }
}

fn number(value: usize) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn integer(value: &[u8], min: i64, max: i64) -> Result<i64, String> {
    let value = atoll_resp::number::parse_i64(value)
        .ok_or_else(|| "argument couldn't be parsed into an integer".to_owned())?;
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(format!("argument must be between {min} and {max} inclusive"))
}

fn boolean(value: &[u8]) -> Result<bool, String> {
    match () {
        () if value.eq_ignore_ascii_case(b"yes") => Ok(true),
        () if value.eq_ignore_ascii_case(b"no") => Ok(false),
        () => Err("argument must be 'yes' or 'no'".to_owned()),
    }
}

fn yes_or_no(value: bool) -> Vec<u8> {
    if value { b"yes".to_vec() } else { b"no".to_vec() }
}

/// Reads a number of bytes with an optional unit, as Redis writes them: `k` is 1000, `kb` 1024.
fn bytes(value: &[u8]) -> Result<u64, String> {
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, unit) = value.split_at(digits);
    let factor = match &*unit.to_ascii_lowercase() {
        b"" | b"b" => Some(1),
        b"k" => Some(1_000),
        b"kb" => Some(1 << 10),
        b"m" => Some(1_000_000),
        b"mb" => Some(1 << 20),
        b"g" => Some(1_000_000_000),
        b"gb" => Some(1 << 30),
        _ => None,
    };
    let number = std::str::from_utf8(number).ok().and_then(|number| number.parse::<u64>().ok());
    let value = number.zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    let value = value.ok_or_else(|| "argument must be a memory value".to_owned())?;
    match i64::try_from(value) {
        Ok(_) => Ok(value),
        Err(_) => Err(format!("argument must be between 0 and {} inclusive", i64::MAX)),
    }
}

fn one_of<'w>(value: &[u8], words: &[&'w str]) -> Result<&'w str, String> {
    let found = words.iter().find(|word| value.eq_ignore_ascii_case(word.as_bytes()));
    found
        .copied()
        .ok_or_else(|| format!("argument(s) must be one of the following: {}", words.join(", ")))
}

fn choose(
    value: &[u8],
    modes: [Durability; 3],
    name: fn(Durability) -> &'static str,
) -> Result<Durability, String> {
    let chosen = one_of(value, &modes.map(name))?;
    Ok(modes.into_iter().find(|mode| name(*mode) == chosen).unwrap_or(Durability::Synced))
}

fn show_percentiles(config: &Config) -> Vec<u8> {
    let shown: Vec<String> = config.percentiles.iter().map(f64::to_string).collect();
    shown.join(" ").into_bytes()
}

fn set_percentiles(config: &mut Config, value: &[u8]) -> Result<(), String> {
    let words = value.split(|byte| *byte == b' ').filter(|_| !value.is_empty());
    let numbers: Option<Vec<f64>> =
        words.map(|word| std::str::from_utf8(word).ok()?.parse().ok()).collect();
    let numbers =
        numbers.ok_or_else(|| "Invalid latency-tracking-info-percentiles parameters".to_owned())?;
    if !numbers.iter().all(|number| (0.0..=100.0).contains(number)) {
        let what = "latency-tracking-info-percentiles parameters should sit between [0.0,100.0]";
        return Err(what.to_owned());
    }
    config.percentiles = numbers;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(name: &str) -> &'static Parameter {
        Parameter::find(name.as_bytes()).unwrap()
    }

    #[test]
    fn parameters_are_sorted_and_show_what_was_set() {
        assert!(PARAMETERS.is_sorted_by_key(|parameter| parameter.name));
        let mut config = Config::default();
        for (name, value, shown) in [
            ("appendfsync", "everysec", "everysec"),
            ("durability", "BUFFERED", "buffered"),
            ("maxclients", "12", "12"),
            ("requirepass", "secret", "secret"),
            ("timeout", "0", "0"),
            ("save", " 900 1  300 10", "900 1 300 10"),
            ("hash-max-ziplist-entries", "7", "7"),
            ("repl-backlog-size", "2mb", "2097152"),
            ("slowlog-log-slower-than", "-1", "-1"),
            ("latency-tracking-info-percentiles", "50 99.9", "50 99.9"),
            ("maxmemory", "0", "0"),
            ("loglevel", "Debug", "debug"),
        ] {
            parameter(name).set(&mut config, value.as_bytes()).unwrap();
            assert_eq!(parameter(name).get(&config), shown.as_bytes());
        }
        assert_eq!(config.durability, Durability::Buffered, "set last under its other name");
        assert_eq!(parameter("hash-max-listpack-entries").get(&config), b"7", "its real name");
    }

    #[test]
    fn every_default_is_a_value_and_every_alias_a_name() {
        for parameter in PARAMETERS {
            match parameter.sort {
                Kept(check, default) => {
                    assert_eq!(check.value(default.as_bytes()), Ok(default.into()));
                }
                Alias(of) => {
                    assert!(!matches!(Parameter::find(of.as_bytes()).unwrap().sort, Alias(_)))
                }
                Live(get, set) => {
                    let mut config = Config::default();
                    let shown = get(&config);
                    set(&mut config, &shown).unwrap();
                }
                Fixed(_) => {}
            }
        }
    }

    #[test]
    fn what_would_not_be_true_is_refused() {
        let mut config = Config::default();
        for (name, value) in [
            ("maxmemory", "100mb"),
            ("maxmemory-policy", "allkeys-lru"),
            ("appendonly", "no"),
            ("notify-keyspace-events", "KEA"),
            ("min-replicas-to-write", "1"),
        ] {
            let before = parameter(name).get(&config);
            assert!(parameter(name).set(&mut config, value.as_bytes()).is_err(), "{name}");
            assert_eq!(parameter(name).get(&config), before, "{name}");
        }
    }
}
