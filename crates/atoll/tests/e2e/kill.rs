//! SIGKILL at random moments under load, with the oracle in this process.
//!
//! ```text
//!   connection 0   SET SET INCR DEL ...   pipelined, each on keys of its own
//!   connection 1   ...                    every request is remembered, replies are counted
//!   ...
//!   SIGKILL -> restart -> read all keys -> check -> next round on the same data
//! ```
//!
//! A connection is the only writer of its keys. Most of them are on one shard; now and then a MSET or a MULTI
//! spans shards, which waits for the connection's earlier commands and holds back its later ones. So its
//! commands take effect in the order sent, and the oracle is exact: after a restart its keys must look as if **some first part of what it sent
//! was executed and nothing after it, and that part holds every request whose reply was read**.
//! This finds a lost acknowledged write, a write nobody sent, and a hole: a later write that
//! survived an earlier one, half a transaction. And DBSIZE must be the number of keys. It must hold in all three durability modes, because a killed process
//! takes nothing from the kernel.
//!
//! `ATOLL_KILL_ROUNDS` sets the rounds per mode (3; `cargo xtask e2e` runs many), `ATOLL_KILL_SEED`
//! names the load (the moment of the kill is the machine's).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use atoll_env::random::Prng;
use atoll_resp::{ReplyDecoder, Value};
use redis::TypedCommands;

use crate::harness::{Server, size};

/// Connections that write at the same time.
const CONNECTIONS: usize = 4;
/// Keys of each connection, of each kind.
const KEYS: u64 = 100;
/// Hash tags of slots in the lower and in the upper half: keys of both are never on one shard. (If they
/// were, their command would be one of that shard, and might overtake those of another one.)
const LOW: [&str; 3] = ["b", "c", "f"];
const HIGH: [&str; 3] = ["a", "d", "e"];
/// Requests in one write at most.
const PIPELINE_MAX: u64 = 64;
/// Longest load before the kill, in milliseconds.
const LOAD_MS_MAX: u64 = 400;

/// What the keys of one connection hold.
type State = BTreeMap<String, String>;

/// A request that was sent.
#[derive(Clone, Debug)]
enum Op {
    Set(String, String),
    Del(String),
    Incr(String),
    /// Two keys of different shards set in one command.
    Twins(String, String, String),
    /// One number taken from a key and given to one of another shard, in a MULTI.
    Move(String, String),
}

impl Op {
    /// Makes a random request on the keys of `connection`. Values name their place in the run.
    fn random(prng: &mut Prng, connection: usize, tag: &str) -> Op {
        let key = format!("{{c{connection}}}:{}", prng.below(KEYS));
        match prng.below(12) {
            10 => {
                let twin = |tag: &str| format!("twin:{{{tag}}}:{connection}");
                return Op::Twins(twin(LOW[0]), twin(HIGH[0]), tag.to_owned());
            }
            11 => {
                let low = account(LOW[prng.index(LOW.len())], connection);
                let high = account(HIGH[prng.index(HIGH.len())], connection);
                return if prng.chance(0.5) { Op::Move(low, high) } else { Op::Move(high, low) };
            }
            _ => {}
        }
        match prng.below(10) {
            0..6 => {
                // Mostly small; now and then large enough to be cut in several reads and frames.
                let padding = match prng.below(50) {
                    0 => prng.index(300_000),
                    _ => prng.index(200),
                };
                Op::Set(key, format!("{tag} {}", "x".repeat(padding)))
            }
            6..8 => Op::Del(key),
            _ => Op::Incr(format!("n{key}")),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Op::Set(key, value) => atoll_resp::request(out, &["SET", key, value]),
            Op::Del(key) => atoll_resp::request(out, &["DEL", key]),
            Op::Incr(key) => atoll_resp::request(out, &["INCR", key]),
            Op::Twins(left, right, value) => {
                atoll_resp::request(out, &["MSET", left, value, right, value]);
            }
            Op::Move(from, to) => {
                for args in [&["MULTI"][..], &["DECR", from], &["INCR", to], &["EXEC"]] {
                    atoll_resp::request(out, args);
                }
            }
        }
    }

    /// Returns how many replies it gets.
    fn replies(&self) -> usize {
        if matches!(self, Op::Move(..)) { 4 } else { 1 }
    }

    /// Applies the request and returns the keys it changed.
    fn apply<'a>(&'a self, state: &mut State) -> Vec<&'a str> {
        let add = |state: &mut State, key: &String, by: i64| {
            let n: i64 = state.get(key).map_or(0, |text| text.parse().unwrap());
            state.insert(key.clone(), (n + by).to_string());
        };
        match self {
            Op::Set(key, value) => {
                state.insert(key.clone(), value.clone());
                vec![key]
            }
            Op::Del(key) => {
                state.remove(key);
                vec![key]
            }
            Op::Incr(key) => {
                add(state, key, 1);
                vec![key]
            }
            Op::Twins(left, right, value) => {
                state.insert(left.clone(), value.clone());
                state.insert(right.clone(), value.clone());
                vec![left, right]
            }
            Op::Move(from, to) => {
                add(state, from, -1);
                add(state, to, 1);
                vec![from, to]
            }
        }
    }
}

/// Returns the key of a number that is moved.
fn account(tag: &str, connection: usize) -> String {
    format!("account:{{{tag}}}:{connection}")
}

/// What one connection did in a round.
struct Sent {
    ops: Vec<Op>,
    /// How many of them were answered.
    acknowledged: usize,
}

/// Returns how many of `sent` were executed, given the keys before and after, or why no number
/// explains them.
fn executed(before: &State, sent: &Sent, after: &State) -> Result<usize, String> {
    let mut state = before.clone();
    // Keys whose content is not yet as found; none are left when the cut is reached.
    let differs = |state: &State, key: &str| state.get(key) != after.get(key);
    let mut wrong: std::collections::BTreeSet<String> =
        before.keys().chain(after.keys()).filter(|key| differs(before, key)).cloned().collect();
    for done in 0..=sent.ops.len() {
        if done >= sent.acknowledged && wrong.is_empty() {
            return Ok(done);
        }
        let Some(op) = sent.ops.get(done) else { break };
        for key in op.apply(&mut state) {
            if differs(&state, key) {
                wrong.insert(key.to_owned());
            } else {
                wrong.remove(key);
            }
        }
    }
    let key = wrong.first().cloned().unwrap_or_default();
    let show = |state: &State| match state.get(&key) {
        Some(value) => format!("'{}' of {} bytes", value.split(' ').next().unwrap(), value.len()),
        None => "nothing".to_owned(),
    };
    Err(format!(
        "no prefix of {} requests, {} of them acknowledged, explains what was found; {key} held {} \
         before, holds {} now, and would hold {} after all",
        sent.ops.len(),
        sent.acknowledged,
        show(before),
        show(after),
        show(&state),
    ))
}

/// Sends requests until the server is gone.
fn load(mut socket: TcpStream, mut prng: Prng, connection: usize, round: u64) -> Sent {
    let mut sent = Sent { ops: Vec::new(), acknowledged: 0 };
    // Replies that the request in front still gets.
    let mut owed = 0;
    let mut decoder = ReplyDecoder::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let mut requests = Vec::new();
        for _ in 0..=prng.below(PIPELINE_MAX) {
            let op = Op::random(&mut prng, connection, &format!("r{round}.{}", sent.ops.len()));
            op.encode(&mut requests);
            sent.ops.push(op);
        }
        // Half of a write may arrive; its replies, if any, are read below.
        let written = socket.write_all(&requests);
        while sent.acknowledged < sent.ops.len() {
            match decoder.next_reply().unwrap() {
                Some(Value::Error(text)) => panic!("refused: {}", text.escape_ascii()),
                Some(_) => {
                    if owed == 0 {
                        owed = sent.ops[sent.acknowledged].replies();
                    }
                    owed -= 1;
                    sent.acknowledged += usize::from(owed == 0);
                }
                None => match socket.read(&mut chunk) {
                    Ok(0) | Err(_) => return sent,
                    Ok(n) => decoder.feed(&chunk[..n]),
                },
            }
        }
        if written.is_err() {
            return sent;
        }
    }
}

/// Reads the keys of `connection` with a stock client.
fn read_state(client: &mut redis::Connection, connection: usize) -> State {
    let keys: Vec<String> = (0..KEYS)
        .flat_map(|key| [format!("{{c{connection}}}:{key}"), format!("n{{c{connection}}}:{key}")])
        .chain([LOW[0], HIGH[0]].map(|tag| format!("twin:{{{tag}}}:{connection}")))
        .chain(LOW.iter().chain(&HIGH).map(|tag| account(tag, connection)))
        .collect();
    let values: Vec<Option<String>> = client.mget(&keys).unwrap();
    keys.into_iter().zip(values).filter_map(|(key, value)| Some((key, value?))).collect()
}

fn kill_loop(mode: &str) {
    let rounds = size("ATOLL_KILL_ROUNDS", 3);
    let seed = size("ATOLL_KILL_SEED", u64::from(std::process::id()));
    println!("mode {mode}, ATOLL_KILL_SEED={seed}");
    let mut prng = Prng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // Little memory, so that flushes and compactions are under way when the kill comes.
    let flags = ["--durability", mode, "--memory", "16MiB"];
    let mut states = vec![State::new(); CONNECTIONS];
    let (mut acknowledged, mut unanswered) = (0, 0);
    for round in 0..rounds {
        let server = Server::start(&data, &flags);
        let loads: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let (socket, prng) = (server.socket(), prng.fork("load"));
                std::thread::spawn(move || load(socket, prng, connection, round))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(10 + prng.below(LOAD_MS_MAX)));
        server.kill();

        let server = Server::start(&data, &flags);
        let mut client = server.client();
        for (connection, load) in loads.into_iter().enumerate() {
            let sent = load.join().unwrap();
            let after = read_state(&mut client, connection);
            let before = &states[connection];
            executed(before, &sent, &after)
                .unwrap_or_else(|why| panic!("{mode}, seed {seed}, round {round}: {why}"));
            acknowledged += sent.acknowledged;
            unanswered += sent.ops.len() - sent.acknowledged;
            states[connection] = after;
        }
        let keys: usize = states.iter().map(State::len).sum();
        let counted: usize = redis::cmd("DBSIZE").query(&mut client).unwrap();
        assert_eq!(counted, keys, "{mode}, seed {seed}, round {round}: DBSIZE");
        // The next round begins after another kill: recovery of a recovery.
        server.kill();
    }
    println!("{mode}: {rounds} kills, {acknowledged} acknowledged, {unanswered} unanswered");
    assert!(acknowledged > 0, "the load never got an answer, so nothing was tested");
}

#[test]
fn synced_writes_survive_kill_9() {
    kill_loop("synced");
}

#[test]
fn interval_writes_survive_kill_9() {
    kill_loop("interval");
}

#[test]
fn buffered_writes_survive_kill_9() {
    kill_loop("buffered");
}

#[test]
fn the_oracle_accepts_every_prefix_with_what_was_acknowledged_and_nothing_else() {
    let set = |key: &str, value: &str| Op::Set(key.to_owned(), value.to_owned());
    let before = State::from([("a".to_owned(), "0".to_owned())]);
    let ops = vec![set("a", "1"), set("b", "1"), Op::Del("a".to_owned()), set("b", "2")];
    let prefix = |n: usize| {
        let mut state = before.clone();
        ops[..n].iter().for_each(|op| {
            op.apply(&mut state);
        });
        state
    };
    for acknowledged in 0..=ops.len() {
        let sent = Sent { ops: ops.clone(), acknowledged };
        for n in 0..=ops.len() {
            let found = executed(&before, &sent, &prefix(n));
            assert_eq!(found.is_ok(), n >= acknowledged, "{acknowledged} {n} {found:?}");
        }
    }
    let sent = Sent { ops: ops.clone(), acknowledged: 0 };
    // A hole (b without a), a value nobody sent, a key nobody sent.
    for wrong in
        [vec![("a", "0"), ("b", "1")], vec![("a", "7")], vec![("a", "0"), ("c", "1")], vec![]]
    {
        let after = wrong.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert!(executed(&before, &sent, &after).is_err(), "{wrong:?}");
    }
}

/// A bulk load through a stock client in pipeline mode, killed in the middle and finished after a
/// restart. `ATOLL_LOAD_KEYS` sets the size (20,000; `cargo xtask e2e` loads a million).
#[test]
fn a_bulk_load_that_is_killed_halfway_keeps_what_was_acknowledged() {
    const PIPELINE: u64 = 1000;
    let keys = size("ATOLL_LOAD_KEYS", 20_000).next_multiple_of(PIPELINE);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let key = |i: u64| format!("user:{i:010}");
    let value = |i: u64| format!("{{\"id\":{i},\"name\":\"user {i}\"}}");
    let load = |client: &mut redis::Connection, from: u64| {
        let mut pipe = redis::pipe();
        (from..from + PIPELINE).for_each(|i| {
            pipe.set(key(i), value(i)).ignore();
        });
        pipe.query::<()>(client)
    };
    let check = |client: &mut redis::Connection, upto: u64| {
        for from in (0..upto).step_by(PIPELINE as usize) {
            let names: Vec<String> = (from..from + PIPELINE).map(key).collect();
            let values: Vec<Option<String>> = client.mget(&names).unwrap();
            for (i, found) in (from..).zip(values) {
                assert_eq!(found, Some(value(i)), "{}", key(i));
            }
        }
    };

    let server = Server::start(&data, &[]);
    let mut client = server.client();
    let began = Instant::now();
    let mut acknowledged = 0;
    while acknowledged < keys / 2 {
        load(&mut client, acknowledged).unwrap();
        acknowledged += PIPELINE;
    }
    // The kill meets the load at work: half of the keys are left, and a third of that time.
    let until_kill = began.elapsed() / 3;
    let killer = std::thread::spawn(move || {
        std::thread::sleep(until_kill);
        server.kill();
    });
    while acknowledged < keys && load(&mut client, acknowledged).is_ok() {
        acknowledged += PIPELINE;
    }
    killer.join().unwrap();

    let server = Server::start(&data, &[]);
    let mut client = server.client();
    check(&mut client, acknowledged);
    println!("killed after {acknowledged} of {keys} acknowledged keys; each is there");
    while acknowledged < keys {
        load(&mut client, acknowledged).unwrap();
        acknowledged += PIPELINE;
    }
    assert_eq!(redis::cmd("DBSIZE").query::<u64>(&mut client).unwrap(), keys);
    assert_eq!(server.stop(rustix::process::Signal::TERM).code(), Some(0));
    let server = Server::start(&data, &[]);
    let mut client = server.client();
    check(&mut client, keys);
    assert_eq!(redis::cmd("DBSIZE").query::<u64>(&mut client).unwrap(), keys);
}
