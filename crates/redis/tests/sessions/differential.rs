//! The same commands to AtollDB and to Redis: every reply must be the same, byte by byte.
//!
//! A seed names a sequence of commands of two connections over a few keys: all commands on
//! strings, keys, databases and transactions, with arguments that are often odd and sometimes too
//! many or too few. Two tests use it:
//!
//! - the corpus in `tests/corpus` has sequences with the replies of a Redis 7.0.15. It needs no
//!   Redis. `cargo xtask corpus` records it again.
//! - where there is a `redis-server` (in the path, or named by `ATOLL_REDIS_SERVER`), it runs beside
//!   AtollDB over `ATOLL_DIFFERENTIAL_SEEDS` fresh seeds, 8 if that is not set.
//!
//! Differences that are meant are in [`is_meant`], each with its reason.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use crate::support::{Bench, Random, replies_of};
use atoll_redis::Config;

/// Commands in a sequence.
const LENGTH: usize = 150;
/// Sequences in each file of the corpus.
const RECORDED: u64 = 6;
/// When sequences happen; their deadlines are far from it.
const NOW_MS: u64 = 1_800_000_000_000;

/// What a sequence is about, the name of its corpus file, and its commands. `{..}` is replaced.
const FAMILIES: &[(&str, &[&str])] = &[
    (
        "strings_are_set_got_and_cut",
        &[
            "SET {k} {v}",
            "SET {k} {v} {setopt}",
            "SET {k} {v} {setopt} {setopt}",
            "GET {k}",
            "GETSET {k} {v}",
            "GETDEL {k}",
            "GETEX {k} {getexopt}",
            "SETNX {k} {v}",
            "SETEX {k} {seconds} {v}",
            "PSETEX {k} {millis} {v}",
            "MSET {k} {v} {k} {v}",
            "MSETNX {k} {v} {k} {v}",
            "MGET {k} {k} {k}",
            "APPEND {k} {v}",
            "APPEND {k} {big}",
            "STRLEN {k}",
            "SETRANGE {k} {offset} {v}",
            "SETRANGE {k} {offset} {big}",
            "GETRANGE {k} {index} {index}",
            "SUBSTR {k} {index} {index}",
            "LCS {k} {k} {lcsopt}",
            "LCS {k} {k} {lcsopt} {lcsopt} {lcsopt}",
            "DEL {k} {k}",
        ],
    ),
    (
        "numbers_are_added",
        &[
            "SET {k} {i}",
            "SET {k} {f}",
            "INCR {k}",
            "DECR {k}",
            "INCRBY {k} {i}",
            "DECRBY {k} {i}",
            "INCRBYFLOAT {k} {f}",
            "INCRBYFLOAT {k} {f}",
            "INCRBYFLOAT {k} {f}",
            "APPEND {k} {i}",
            "GET {k}",
            "DEL {k}",
            "OBJECT REFCOUNT {k}",
        ],
    ),
    (
        "bits_are_set_counted_and_combined",
        &[
            "SET {k} {v}",
            "SETBIT {k} {bitoffset} {bit}",
            "SETBIT {k} {bitoffset} {bit}",
            "GETBIT {k} {bitoffset}",
            "BITCOUNT {k}",
            "BITCOUNT {k} {index} {index}",
            "BITCOUNT {k} {index} {index} {unit}",
            "BITPOS {k} {bit}",
            "BITPOS {k} {bit} {index}",
            "BITPOS {k} {bit} {index} {index}",
            "BITPOS {k} {bit} {index} {index} {unit}",
            "BITOP {bitop} {k} {k} {k}",
            "BITOP {bitop} {k} {k}",
            "BITOP NOT {k} {k}",
            "BITFIELD {k} {field}",
            "BITFIELD {k} {field} {field} {field}",
            "BITFIELD_RO {k} {field}",
            "BITFIELD_RO {k} GET {type} {fieldoffset} GET {type} {fieldoffset}",
            "APPEND {k} {big}",
            "SETRANGE {k} {offset} {v}",
            "GETRANGE {k} {index} {index}",
            "STRLEN {k}",
            "GET {k}",
            "DEL {k}",
        ],
    ),
    (
        "keys_expire_and_change_their_names",
        &[
            "SET {k} {v}",
            "SET {k} {i}",
            "SETRANGE {k} 20000 {v}",
            "EXPIREAT {k} {unixtime} {expireopt}",
            "PEXPIREAT {k} {unixtimems} {expireopt} {expireopt}",
            "EXPIRE {k} {seconds} {expireopt}",
            "PEXPIRE {k} {millis}",
            "EXPIRETIME {k}",
            "PEXPIRETIME {k}",
            "TTL {k}",
            "PTTL {k}",
            "PERSIST {k}",
            "RENAME {k} {k}",
            "RENAMENX {k} {k}",
            "COPY {k} {k} {copyopt}",
            "COPY {k} {k} {copyopt} {copyopt}",
            "MOVE {k} {db}",
            "SELECT {db}",
            "SWAPDB {db} {db}",
            "TOUCH {k} {k}",
            "EXISTS {k} {k}",
            "TYPE {k}",
            "UNLINK {k}",
            "DBSIZE",
            "KEYS {pattern}",
            "FLUSHDB {flush}",
            "FLUSHALL {flush}",
            "RANDOMKEY",
            "OBJECT REFCOUNT {k}",
            "OBJECT FREQ {k}",
            "GET {k}",
            "STRLEN {k}",
        ],
    ),
    (
        "transactions_are_queued_watched_and_executed",
        &[
            "MULTI",
            "MULTI",
            "EXEC",
            "EXEC",
            "EXEC",
            "DISCARD",
            "WATCH {k}",
            "WATCH {k} {k}",
            "UNWATCH",
            "SET {k} {v}",
            "GET {k}",
            "INCR {k}",
            "DEL {k}",
            "MGET {k} {k}",
            "EXPIREAT {k} {unixtime}",
            "RENAME {k} {k}",
            "COPY {k} {k} REPLACE",
            "SETBIT {k} {bitoffset} {bit}",
            "APPEND {k} {v}",
            "PING",
            "ECHO {v}",
            "SELECT {db}",
            "SWAPDB {db} {db}",
            "FLUSHDB",
            "DBSIZE",
            "RESET",
            "NOSUCH {v}",
        ],
    ),
    (
        "settings_are_checked_and_what_is_absent_is_answered",
        &[
            "CONFIG SET {setting} {value}",
            "CONFIG SET {setting} {value}",
            "CONFIG SET {setting} {value} {setting} {value}",
            "CONFIG GET {setting}",
            "CONFIG GET {setting}",
            "CONFIG REWRITE",
            "CONFIG NOSUCH",
            "SLOWLOG GET {nocount}",
            "SLOWLOG GET 1 2",
            "SLOWLOG RESET",
            "SLOWLOG NOSUCH",
            "LATENCY HISTORY command",
            "LATENCY LATEST",
            "LATENCY RESET",
            "LATENCY RESET command {v}",
            "LATENCY GRAPH {v}",
            "LATENCY HISTOGRAM nosuch",
            "MEMORY PURGE",
            "MEMORY NOSUCH",
            "DEBUG SET-ACTIVE-EXPIRE 1",
            "DEBUG SLEEP",
            "DEBUG NOSUCH {v}",
            "DEBUG PROTOCOL {proto}",
            "FUNCTION LIST",
            "FUNCTION LIST {listopt} {listopt}",
            "FUNCTION FLUSH {flush}",
            "FUNCTION KILL",
            "FUNCTION DELETE {k}",
            "FUNCTION NOSUCH",
            "SCRIPT EXISTS {k} {k}",
            "SCRIPT FLUSH {flush}",
            "SCRIPT KILL",
            "CLUSTER INFO",
            "CLUSTER NODES",
            "CLUSTER SLOTS",
            "CLUSTER SHARDS",
            "CLUSTER MYID",
            "CLUSTER KEYSLOT {k}",
            "CLUSTER COUNTKEYSINSLOT {i}",
            "CLUSTER GETKEYSINSLOT {i} {i}",
            "CLUSTER NOSUCH",
            "READONLY",
            "READWRITE",
            "ASKING",
            "WAIT 0 0",
            "WAIT {i} 1",
            "WAIT 0 {nocount}",
            "ROLE",
            "MODULE LIST",
            "ACL WHOAMI",
            "CLIENT PAUSE {nocount}",
            "CLIENT PAUSE 1 {v}",
            "CLIENT UNPAUSE",
            "CLIENT UNBLOCK {i} {unblockopt}",
            "CLIENT GETREDIR",
            "CLIENT TRACKINGINFO",
            "CLIENT CACHING YES",
            "CLIENT NO-EVICT {onoff}",
            "CLIENT NOSUCH",
            "CLIENT KILL 127.0.0.1:1",
            "CLIENT KILL ID 999999",
            "CLIENT LIST ID 999999",
            "CLIENT LIST TYPE master",
            "CLIENT LIST {v}",
            "COMMAND GETKEYS {called}",
            "COMMAND GETKEYSANDFLAGS {called}",
            "COMMAND LIST FILTERBY {v} {v}",
        ],
    ),
];

/// Settings that may be set to anything, and what they are at first.
const SETTINGS: &[(&str, &str)] = &[
    ("activerehashing", "yes"),
    ("appendfsync", "everysec"),
    ("busy-reply-threshold", "5000"),
    ("hash-max-listpack-entries", "512"),
    ("hash-max-ziplist-entries", "512"),
    ("hash-max-ziplist-value", "64"),
    ("hll-sparse-max-bytes", "3000"),
    ("latency-tracking-info-percentiles", "50 99 99.9"),
    ("lazyfree-lazy-user-flush", "no"),
    ("lfu-log-factor", "10"),
    ("list-compress-depth", "0"),
    ("list-max-listpack-size", "-2"),
    ("list-max-ziplist-size", "-2"),
    ("loglevel", "notice"),
    ("maxmemory-samples", "5"),
    ("rdbcompression", "yes"),
    ("repl-diskless-load", "disabled"),
    ("sanitize-dump-payload", "no"),
    ("save", ""),
    ("set-max-intset-entries", "512"),
    ("slowlog-log-slower-than", "10000"),
    ("slowlog-max-len", "128"),
    ("stop-writes-on-bgsave-error", "yes"),
    ("stream-node-max-bytes", "4096"),
    ("stream-node-max-entries", "100"),
    ("timeout", "0"),
    ("tracking-table-max-keys", "1000000"),
    ("zset-max-listpack-value", "64"),
];

const ODD: &[&str] = &[
    "",
    "x",
    "-1",
    "0",
    "1",
    "2",
    "1.5",
    " 1",
    "01",
    "+1",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "4294967296",
    "2147483648",
    "NX",
    "XX",
    "GET",
    "DB",
    "inf",
    "nan",
    "*",
    "\\xff\\x00\\r\\n",
];

fn placeholder(name: &str, random: &mut Random) -> Vec<u8> {
    let text: String = match name {
        "k" => random.pick(&["a", "b", "c", "{a}d", "e", "a"]).to_owned(),
        "v" => match random.below(8) {
            0 => random.below(1_000).to_string(),
            1 => (random.next() as i64).to_string(),
            2 => return (0..random.below(9)).map(|_| random.next() as u8).collect(),
            3 => "abcabba".chars().cycle().take(random.below(60) as usize).collect(),
            4 => String::new(),
            _ => random.pick(&["ohmytext", "mynewtext", "hello", "foobar", "12", "3.5"]).to_owned(),
        },
        "big" => {
            let len = 1 + random.below(9_000) as usize;
            return vec![b"\x00az\xff"[random.below(4) as usize]; len];
        }
        "i" => match random.below(6) {
            0 => random.pick(&["9223372036854775807", "-9223372036854775808"]).to_owned(),
            1 => (random.next() as i64).to_string(),
            2 => random.pick(ODD).to_owned(),
            _ => (random.below(200) as i64 - 100).to_string(),
        },
        "f" => match random.below(8) {
            0 => random.pick(&["1e3", "1e-5", "-2.5E2", "5.", ".5", "0x10", "0x1p-4"]).to_owned(),
            1 => random.pick(&["inf", "-inf", "nan", "1e5000", "1e-5000", "abc", ""]).to_owned(),
            2 => format!("{}e{}", random.below(1_000), random.below(60) as i64 - 30),
            3 => (random.next() as i64).to_string(),
            4 => format!("{}.{:017}", random.below(10), random.below(100_000_000_000_000_000)),
            _ => format!("{}.{}", random.below(200) as i64 - 100, random.below(100)),
        },
        "offset" => match random.below(12) {
            0 => random.pick(&["-1", "536870912", "x"]).to_owned(),
            1..=3 => random.below(40_000).to_string(),
            _ => random.below(30).to_string(),
        },
        "index" => match random.below(8) {
            0 => random.pick(ODD).to_owned(),
            1 => (random.below(80_000) as i64 - 40_000).to_string(),
            _ => (random.below(30) as i64 - 15).to_string(),
        },
        "bitoffset" => match random.below(10) {
            0 => random.pick(&["-1", "4294967296", "x", ""]).to_owned(),
            1..=3 => random.below(320_000).to_string(),
            _ => random.below(100).to_string(),
        },
        "bit" => random.pick(&["0", "1", "0", "1", "0", "1", "2", "x"]).to_owned(),
        "unit" => random.pick(&["BIT", "BYTE", "bit", "BITS"]).to_owned(),
        "bitop" => random.pick(&["AND", "OR", "XOR", "and", "NOT", "NAND"]).to_owned(),
        "type" => {
            random.pick(&["u8", "i8", "u1", "i64", "u63", "i5", "u64", "i65", "x8"]).to_owned()
        }
        "fieldoffset" => match random.below(12) {
            0 => random.pick(&["-1", "#-1", "x", "4294967296", "#4294967296", "#"]).to_owned(),
            1 => format!("#{}", random.below(20)),
            2 => random.below(300_000).to_string(),
            _ => random.below(70).to_string(),
        },
        "field" => {
            let shape = random.pick(&[
                "GET {type} {fieldoffset}",
                "SET {type} {fieldoffset} {i}",
                "INCRBY {type} {fieldoffset} {i}",
                "OVERFLOW {overflow} INCRBY {type} {fieldoffset} {i}",
                "OVERFLOW {overflow} SET {type} {fieldoffset} {i}",
            ]);
            shape.to_owned()
        }
        "overflow" => random.pick(&["WRAP", "SAT", "FAIL", "fail", "NONE"]).to_owned(),
        "seconds" => {
            random.pick(&["100000", "5000", "0", "-5", "x", "9223372036854775807"]).to_owned()
        }
        "millis" => random.pick(&["100000000", "0", "-5", "x", "9223372036854775807"]).to_owned(),
        "unixtime" => {
            let times = ["2000000000", "2100000000", "1", "0", "-7", "9223372036854775807", "x"];
            random.pick(&times).to_owned()
        }
        "unixtimems" => {
            let times = ["2000000000500", "2100000000499", "1", "-7", "9223372036854775807", ""];
            random.pick(&times).to_owned()
        }
        "expireopt" => random.pick(&["", "NX", "XX", "GT", "LT", "gt", "ZZ"]).to_owned(),
        "setopt" => random
            .pick(&[
                "NX",
                "XX",
                "GET",
                "KEEPTTL",
                "EX {seconds}",
                "PX {millis}",
                "EXAT {unixtime}",
                "PXAT {unixtimems}",
                "nx",
                "EX",
            ])
            .to_owned(),
        "getexopt" => {
            let options = ["", "PERSIST", "EX {seconds}", "PXAT {unixtimems}", "PERSIST EX 5"];
            random.pick(&options).to_owned()
        }
        "lcsopt" => {
            random.pick(&["", "LEN", "IDX", "WITHMATCHLEN", "MINMATCHLEN {index}"]).to_owned()
        }
        "copyopt" => random.pick(&["", "REPLACE", "DB {db}", "replace", "DB"]).to_owned(),
        "db" => random.pick(&["0", "1", "2", "0", "1", "15", "16", "-1", "x"]).to_owned(),
        "pattern" => random.pick(&["*", "a*", "[ab]", "?", "\\{a}*", "nothing"]).to_owned(),
        "flush" => random.pick(&["", "ASYNC", "SYNC", "now"]).to_owned(),
        "setting" => match random.below(12) {
            0 => random.pick(&["nosuch", "cluster-enabled", "databases", "unixsocket"]).to_owned(),
            1 => "TIMEOUT".to_owned(),
            _ => SETTINGS[random.below(SETTINGS.len() as u64) as usize].0.to_owned(),
        },
        "value" => match random.below(8) {
            0 => random.pick(ODD).to_owned(),
            1 => random.pick(&["yes", "NO", "maybe", "debug", "swapdb", "clients"]).to_owned(),
            2 => random.pick(&["1mb", "2GB", "3k", "4b", "5x", "always", "no"]).to_owned(),
            3 => random.pick(&["900 1", "900 1 60 10", "0 1", "900", "50 99", "101"]).to_owned(),
            _ => random.below(2_000).to_string(),
        },
        "nocount" => random.pick(&["x", "-2", "-9", "", "1.5"]).to_owned(),
        "proto" => {
            random.pick(&["string", "double", "null", "map", "attrib", "push", "nosuch"]).to_owned()
        }
        "listopt" => random.pick(&["", "WITHCODE", "LIBRARYNAME {k}", "LIBRARYNAME"]).to_owned(),
        "unblockopt" => random.pick(&["", "TIMEOUT", "error", "NOW"]).to_owned(),
        "onoff" => random.pick(&["on", "OFF", "maybe"]).to_owned(),
        "called" => random
            .pick(&[
                "GET {k}",
                "SET {k} {v}",
                "SET {k} {v} GET",
                "MSET {k} {v} {k} {v}",
                "BITOP AND {k} {k} {k}",
                "COPY {k} {k}",
                "BITFIELD {k} GET u8 0",
                "BITFIELD {k} SET u8 0 1",
                "LCS {k} {k}",
                "PING {v}",
                "NOSUCH {v}",
                "GET {k} {k}",
                "OBJECT ENCODING {k}",
            ])
            .to_owned(),
        other => panic!("no placeholder {other}"),
    };
    text.into_bytes()
}

/// Replaces placeholders until there are none; splits at spaces, where a template has them.
fn fill(template: &str, random: &mut Random) -> Vec<Vec<u8>> {
    let mut args = Vec::new();
    for word in template.split(' ') {
        match word.strip_prefix('{').and_then(|word| word.strip_suffix('}')) {
            None => args.push(word.as_bytes().to_vec()),
            Some(name) => {
                let text = placeholder(name, random);
                let nested = String::from_utf8(text.clone())
                    .ok()
                    .filter(|t| t.contains("{") && !t.contains("{a}"));
                match nested {
                    Some(nested) => args.extend(fill(&nested, random)),
                    // An option that is left out.
                    None if text.is_empty() && (name.ends_with("opt") || name == "flush") => {}
                    None if name.ends_with("opt") => {
                        args.extend(text.split(|&b| b == b' ').map(<[u8]>::to_vec));
                    }
                    None => args.push(text),
                }
            }
        }
    }
    args
}

/// A command of one of two connections.
struct Step {
    client: usize,
    args: Vec<Vec<u8>>,
}

fn sequence(seed: u64, templates: &[&str]) -> Vec<Step> {
    let mut random = Random(seed);
    let mut steps = Vec::new();
    for _ in 0..LENGTH {
        let client = if random.below(5) == 0 { 2 } else { 1 };
        let mut args = fill(random.pick(templates), &mut random);
        match random.below(40) {
            0 => drop(args.pop()),
            1 => args.push(random.pick(ODD).as_bytes().to_vec()),
            2 if args.len() > 1 => {
                let at = 1 + random.below(args.len() as u64 - 1) as usize;
                args[at] = random.pick(ODD).as_bytes().to_vec();
            }
            _ => {}
        }
        if !args.is_empty() {
            steps.push(Step { client, args });
        }
    }
    steps
}

/// Why a reply may differ; `None` if it may not.
fn is_meant(step: &Step, theirs: &str) -> Option<&'static str> {
    let name = step.args[0].to_ascii_uppercase();
    match name.as_slice() {
        b"RANDOMKEY" => Some("random, in both"),
        b"OBJECT" if step.args.get(1).is_some_and(|arg| arg.eq_ignore_ascii_case(b"REFCOUNT")) => {
            Some("Redis answers by how a number came about, AtollDB by what it is")
        }
        b"TTL" | b"PTTL" if !theirs.starts_with(":-") => Some("the clocks differ"),
        b"EXPIRETIME" | b"PEXPIRETIME"
            if theirs.len() > 2 && !theirs.contains(":20") && !theirs.contains(":21") =>
        {
            Some("the deadline was given from now, and the clocks differ")
        }
        b"COMMAND" if theirs.starts_with("-ERR wrong number of arguments for 'command|getkeys") => {
            Some("7.0 wants an argument more than 7.2 does")
        }
        b"LATENCY" if theirs.contains("histogram_usec") || theirs.contains("xxh3") => {
            Some("each counts its own commands")
        }
        b"CLIENT" if theirs.contains("laddr=") || theirs.contains("xxh3") => {
            Some("each has its own clients")
        }
        b"SLOWLOG" if theirs.contains("127.0.0.1") || theirs.contains("xxh3") => {
            Some("each has its own slow commands")
        }
        b"DEBUG" if step.args.get(1).is_some_and(|arg| arg.eq_ignore_ascii_case(b"SLEEP")) => {
            Some("sleeping is the front end's, and this is the executor")
        }
        _ => None,
    }
}

/// Removes what is in no order from a reply.
fn normal(step: &Step, reply: &str) -> String {
    if !step.args[0].eq_ignore_ascii_case(b"KEYS") || !reply.starts_with('*') {
        return reply.to_owned();
    }
    let mut words: Vec<&str> = reply.split(' ').collect();
    words[1..].sort_unstable();
    words.join(" ")
}

fn same(step: &Step, ours: &str, theirs: &str) -> bool {
    normal(step, ours) == normal(step, theirs) || is_meant(step, theirs).is_some()
}

/// AtollDB's side of a sequence.
struct Ours(Bench);

impl Ours {
    fn new() -> Ours {
        let mut ours = Ours(Bench::at(NOW_MS, Config::default()));
        // As Redis is at first.
        ours.ask(&Step {
            client: 1,
            args: ["CONFIG", "SET", "appendfsync", "everysec"].map(|arg| arg.into()).into(),
        });
        ours
    }

    fn ask(&mut self, step: &Step) -> String {
        let mut request = Vec::new();
        atoll_resp::request(&mut request, &step.args);
        let (_, output, _) = self.0.turn(&[(step.client, request)]).remove(0);
        replies_of(&output).join(" | ")
    }
}

/// A Redis of our own, for as long as this lives.
struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    /// Starts one, if there is a program to start.
    fn start() -> Option<Redis> {
        let program = match std::env::var_os("ATOLL_REDIS_SERVER") {
            Some(program) => PathBuf::from(program),
            None => std::env::split_paths(&std::env::var_os("PATH")?)
                .map(|folder| folder.join("redis-server"))
                .find(|program| program.is_file())?,
        };
        static STARTED: AtomicU16 = AtomicU16::new(0);
        let own = (std::process::id() % 10_000) as u16 * 2;
        let port = 20_000 + own + STARTED.fetch_add(1, Ordering::Relaxed);
        let process = Command::new(program)
            .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .args(["--bind", "127.0.0.1", "--enable-debug-command", "yes"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let mut redis = Redis { process, port };
        for _ in 0..500 {
            if redis.connect().is_some() {
                return Some(redis);
            }
            let ended = redis.process.try_wait().expect("a process can be asked");
            assert!(ended.is_none(), "redis-server ended at its start: {ended:?}");
            pause();
        }
        panic!("redis-server does not listen on port {port}");
    }

    #[expect(clippy::disallowed_methods, reason = "a real server is on the other side")]
    fn connect(&self) -> Option<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.port)).ok()
    }
}

#[expect(clippy::disallowed_methods, reason = "a real process needs real time to start")]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Redis's side of a sequence.
struct Theirs<'r> {
    redis: &'r Redis,
    clients: Vec<TcpStream>,
}

impl<'r> Theirs<'r> {
    fn new(redis: &'r Redis) -> Theirs<'r> {
        let mut theirs = Theirs { redis, clients: Vec::new() };
        theirs.ask(&Step { client: 1, args: vec![b"FLUSHALL".to_vec()] });
        let mut settings = vec![b"CONFIG".to_vec(), b"SET".to_vec()];
        for (name, value) in SETTINGS {
            // Two names of one setting cannot be set at once.
            if !name.contains("ziplist-entries") && !name.contains("ziplist-size") {
                settings.extend([name.as_bytes().to_vec(), value.as_bytes().to_vec()]);
            }
        }
        assert_eq!(theirs.ask(&Step { client: 1, args: settings }), "+OK");
        theirs
    }

    fn ask(&mut self, step: &Step) -> String {
        while self.clients.len() < step.client {
            self.clients.push(self.redis.connect().expect("redis-server accepts"));
        }
        let stream = &mut self.clients[step.client - 1];
        let mut request = Vec::new();
        atoll_resp::request(&mut request, &step.args);
        stream.write_all(&request).expect("redis-server reads");
        let mut received = Vec::new();
        let mut decoder = atoll_resp::ReplyDecoder::new();
        loop {
            let mut buf = [0; 64 << 10];
            let len = stream.read(&mut buf).expect("redis-server answers");
            assert!(len > 0, "redis-server closed the connection");
            received.extend_from_slice(&buf[..len]);
            decoder.feed(&buf[..len]);
            if decoder.next_reply().expect("redis-server speaks RESP").is_some() {
                return replies_of(&received).join(" | ");
            }
        }
    }
}

fn show(step: &Step) -> String {
    let args: Vec<String> = step.args.iter().map(|arg| write_arg(arg)).collect();
    format!("{} {}", step.client, args.join(" "))
}

/// Writes an argument in one word.
fn write_arg(arg: &[u8]) -> String {
    let byte = arg.first().copied().unwrap_or(0);
    if arg.len() > 64 && arg.iter().all(|other| *other == byte) {
        return format!("{:02x}*{}", byte, arg.len());
    }
    format!("\"{}\"", arg.escape_ascii().to_string().replace(' ', "\\x20"))
}

fn read_arg(word: &str) -> Vec<u8> {
    if let Some((byte, count)) = word.split_once('*').filter(|_| !word.starts_with('"')) {
        return vec![u8::from_str_radix(byte, 16).unwrap(); count.parse().unwrap()];
    }
    let mut bytes = Vec::new();
    let mut rest = word.strip_prefix('"').unwrap().strip_suffix('"').unwrap().bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().unwrap() {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => other,
            },
            other => other,
        });
    }
    bytes
}

/// A long reply in the corpus is its length and a hash of it.
fn shorten(reply: &str) -> String {
    if reply.len() <= 200 {
        return reply.to_owned();
    }
    let hash = atoll_encoding::hash::hash64(reply.as_bytes());
    format!("{} bytes, xxh3 {hash:016x}", reply.len())
}

fn corpus(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(family)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the corpus is files of the source tree")]
fn the_recorded_corpus_is_answered_as_redis_answered_it() {
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        record();
    }
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (family, _) in FAMILIES {
        let text = String::from_utf8(std::fs::read(corpus(family)).unwrap()).unwrap();
        for part in text.split("\n\n").filter(|part| !part.starts_with('#')) {
            let mut ours = Ours::new();
            let mut lines = part.lines();
            while let (Some(command), Some(theirs)) = (lines.next(), lines.next()) {
                let mut words = command.split(' ');
                let client = words.next().unwrap().parse().unwrap();
                let step = Step { client, args: words.map(read_arg).collect() };
                let theirs = theirs.strip_prefix("  ").unwrap();
                let answer = ours.ask(&step);
                compared += 1;
                if !same(&step, &shorten(&normal(&step, &answer)), theirs) {
                    wrong
                        .push(format!("{family}: {}\n ours {answer}\nredis {theirs}", show(&step)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 1_000, "the corpus is there");
}

/// Writes the corpus anew.
#[expect(clippy::disallowed_methods, reason = "the corpus is files of the source tree")]
fn record() {
    let redis = Redis::start().expect("recording the corpus needs a redis-server");
    for (family, templates) in FAMILIES {
        let mut text = "# Recorded from a real Redis: connection and command, reply below it.\n\
                        # `cargo xtask corpus` writes this file; read the diff.\n"
            .to_owned();
        for seed in 0..RECORDED {
            text.push('\n');
            let mut theirs = Theirs::new(&redis);
            for step in sequence(seed, templates) {
                let reply = theirs.ask(&step);
                text.push_str(&format!("{}\n  {}\n", show(&step), shorten(&normal(&step, &reply))));
            }
        }
        std::fs::write(corpus(family), text).unwrap();
    }
}

#[test]
fn random_sequences_are_answered_as_a_real_redis_answers_them() {
    let Some(redis) = Redis::start() else {
        eprintln!("skipped: there is no redis-server in the path");
        return;
    };
    let seeds = std::env::var("ATOLL_DIFFERENTIAL_SEEDS").ok().and_then(|n| n.parse().ok());
    let mut wrong = Vec::new();
    for seed in 1_000..1_000 + seeds.unwrap_or(8) {
        for (family, templates) in FAMILIES {
            let (mut ours, mut theirs) = (Ours::new(), Theirs::new(&redis));
            let mut recent: Vec<String> = Vec::new();
            for step in sequence(seed, templates) {
                let (answer, reply) = (ours.ask(&step), theirs.ask(&step));
                recent.push(format!("    {}", show(&step)));
                if !same(&step, &answer, &reply) {
                    let shown = recent[recent.len().saturating_sub(12)..].join("\n");
                    let (answer, reply) = (cut(&answer), cut(&reply));
                    wrong.push(format!(
                        "{family}, seed {seed}, after\n{shown}\n  ours {answer}\n redis {reply}"
                    ));
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn cut(text: &str) -> &str {
    text.get(..300).unwrap_or(text)
}
