//! What a command or a transaction over several shards costs: processor time, allocations, entries and
//! syncs of each, measured in one process through the code that serves connections.
//!
//! ```text
//!   this thread   50 connections: a pipeline on each, then all replies, then the next round
//!        | TCP on the loopback device
//!   a thread      the server: one core, one store, two shards, a real disk
//! ```
//!
//! ```sh
//! cargo run --release -p atoll-server --example cost -- get interval 50 160000 16
//! cargo run --release -p atoll-server --example cost -- mset interval 50 20000 1
//! ```
//!
//! The arguments: `get`, `set`, `incr`, `mset` (ten keys), `multi` (five SETs) or `multi-get` (five GETs);
//! `synced`, `interval` or `buffered`; connections; how many commands or transactions; how many of them a
//! connection sends before it reads. Processor time is that of all threads but the
//! client's, as the kernel counts it, with what it spends on sockets and the disk. Instructions, which
//! other work on the machine does not disturb, are told by two runs and the difference of their sums:
//!
//! ```sh
//! for n in 8000 24000; do
//!     valgrind --tool=callgrind --callgrind-out-file=cost.$n target/release/examples/cost get interval 10 $n 16
//! done
//! ```
#![expect(
    clippy::disallowed_methods,
    reason = "a measurement needs a real thread and a real socket"
)]

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use atoll_env::os;
use atoll_env::random::Prng;
use atoll_env::sync::{oneshot, select_biased};
use atoll_kv::NodeOptions;
use atoll_lsm::Durability;
use atoll_redis::{Config, Identity};
use atoll_server::{Engine, Server};

// The counting allocator of the benchmarks, as it is.
#[path = "../../bench/src/alloc.rs"]
#[expect(dead_code, reason = "this program does not ask what counting costs")]
mod alloc;
mod cpu;
/// What it hands calls on to.
mod heap {
    pub use std::alloc::System as Heap;
}

/// Keys that are written at random.
const KEYS: u64 = 20_000;
/// Bytes of a value.
const VALUE: usize = 64;

/// What is counted.
#[derive(Clone, Copy)]
struct Counts {
    allocations: u64,
    bytes: u64,
    cpu_ns: u64,
    entries: u64,
    syncs: u64,
    log_bytes: u64,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [load, durability, connections, transactions, pipeline] = arguments.as_slice() else {
        return Err("usage: cost get|set|incr|mset|multi|multi-get synced|interval|buffered \
                    CONNECTIONS COUNT PIPELINE"
            .into());
    };
    let connections: usize = connections.parse()?;
    let pipeline = pipeline.parse::<usize>()?.max(1);
    let transactions = transactions.parse::<usize>()?.next_multiple_of(pipeline);
    let (durability, promised) = match durability.as_str() {
        "synced" => (Durability::Synced, atoll_redis::Durability::Synced),
        "interval" => (Durability::Interval, atoll_redis::Durability::Interval),
        "buffered" => (Durability::Buffered, atoll_redis::Durability::Buffered),
        _ => return Err("durability is synced, interval or buffered".into()),
    };
    let dir = tempfile::tempdir()?;
    let (tell, told) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let (ask, asked) = mpsc::channel::<mpsc::Sender<Counts>>();
    let path = dir.path().to_owned();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let served: std::io::Result<()> =
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let env = os::env()?;
                let mut options = NodeOptions::new(env.clone(), path);
                options.shards = 2;
                options.memory = 256 << 20;
                options.engine.durability = durability;
                let identity = Identity {
                    version: "cost",
                    process_id: 1,
                    run_id: 1,
                    measure: None,
                    allocator: "",
                };
                // Under valgrind everything is slow: the log of it would be what is measured.
                let slowlog_slower_than_us = i64::MAX;
                let config =
                    Config { durability: promised, slowlog_slower_than_us, ..Config::default() };
                let engine = Engine::start(options, config, identity);
                let engine = engine.await.map_err(std::io::Error::other)?;
                let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let server = Server::bind(&engine, any).await.map_err(std::io::Error::other)?;
                let _ = tell.send(server.local_addr());
                let (trees, operator) = (engine.trees(), engine.operator());
                let counting = async {
                    loop {
                        env.clock.sleep(Duration::from_millis(2)).await;
                        let Ok(answer) = asked.try_recv() else { continue };
                        let shards = operator.shards().await.unwrap_or_default();
                        let stats: Vec<_> = trees.iter().map(|(_, tree)| tree.stats()).collect();
                        let heap = alloc::Counts::of_process();
                        let counts = Counts {
                            allocations: heap.allocations,
                            bytes: heap.bytes,
                            cpu_ns: cpu_ns(),
                            entries: shards.iter().map(|shard| shard.applied).sum(),
                            syncs: stats.iter().map(|stats| stats.syncs.count).sum(),
                            log_bytes: stats.iter().map(|stats| stats.batch_bytes).sum(),
                        };
                        let _ = answer.send(counts);
                    }
                };
                let stop = async {
                    let _ = stopped.await;
                };
                select_biased(server.run(stop), counting).await;
                engine.stop().await.map_err(std::io::Error::other)
            });
        served
    });
    let addr = told.recv()?;
    let mut clients = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        clients.push(stream);
    }
    let count = || -> Result<Counts> {
        let (answer, answered) = mpsc::channel();
        ask.send(answer)?;
        Ok(answered.recv()?)
    };
    let mut prng = Prng::new(1);
    // Every key is there, as after a while of use.
    let keys: Vec<String> = (0..KEYS).map(|n| format!("key:{n:012}")).collect();
    // Of a fixed number of digits, so that every reply has the same length.
    let value = match load.as_str() {
        "incr" => "1000000".to_owned(),
        _ => "x".repeat(VALUE),
    };
    if load != "nothing" {
        for chunk in keys.chunks(1_000) {
            let mut request = Vec::new();
            for key in chunk {
                atoll_resp::request(&mut request, &["SET", key, &value]);
            }
            clients[0].write_all(&request)?;
            let mut replies = vec![0; 5 * chunk.len()];
            clients[0].read_exact(&mut replies)?;
        }
    }
    let mut requests = Vec::new();
    let mut expected = 0;
    for _ in 0..4_096_usize.div_ceil(pipeline) {
        let mut request = Vec::new();
        expected = 0;
        for _ in 0..pipeline {
            expected +=
                append(&mut request, load, &value, || keys[prng.below(KEYS) as usize].as_str())?;
        }
        requests.push(request);
    }
    let mut reply = vec![0; expected];
    let mut next = 0;
    let mut run = |transactions: usize| -> Result<()> {
        let mut left = transactions.div_ceil(pipeline);
        while left > 0 {
            let round = left.min(clients.len());
            for client in &mut clients[..round] {
                client.write_all(&requests[next % requests.len()])?;
                next += 1;
            }
            for client in &mut clients[..round] {
                client.read_exact(&mut reply)?;
                if reply.contains(&b'-') {
                    return Err(String::from_utf8_lossy(&reply).into());
                }
            }
            left -= round;
        }
        Ok(())
    };
    run(connections * pipeline)?;
    let before = count()?;
    let started = Instant::now();
    run(transactions)?;
    let seconds = started.elapsed().as_secs_f64();
    let after = count()?;
    let each = |value: fn(&Counts) -> u64| {
        (value(&after) - value(&before)) as f64 / transactions.max(1) as f64
    };
    println!(
        "{load} {durability:?}: {:.0}/s, each {:.1} us of processor, {:.1} allocations of {:.0} bytes, \
         {:.3} entries, {:.4} syncs, {:.0} bytes applied",
        transactions as f64 / seconds,
        each(|counts| counts.cpu_ns) / 1e3,
        each(|counts| counts.allocations),
        each(|counts| counts.bytes),
        each(|counts| counts.entries),
        each(|counts| counts.syncs),
        each(|counts| counts.log_bytes),
    );
    drop(clients);
    let _ = stop.send(());
    match server.join() {
        Ok(served) => Ok(served?),
        Err(_) => Err("the server panicked".into()),
    }
}

/// Appends a command or a transaction; returns how long its replies are.
fn append<'k>(
    request: &mut Vec<u8>,
    load: &str,
    value: &str,
    mut key: impl FnMut() -> &'k str,
) -> Result<usize> {
    let bulk = 5 + VALUE + 2;
    Ok(match load {
        "get" => {
            atoll_resp::request(request, &["GET", key()]);
            bulk
        }
        "set" => {
            atoll_resp::request(request, &["SET", key(), value]);
            5
        }
        "incr" => {
            atoll_resp::request(request, &["INCR", key()]);
            1 + value.len() + 2
        }
        "mset" => {
            let mut words = vec!["MSET"];
            for _ in 0..10 {
                words.extend([key(), value]);
            }
            atoll_resp::request(request, &words);
            5
        }
        "multi" | "multi-get" => {
            atoll_resp::request(request, &["MULTI"]);
            for _ in 0..5 {
                match load {
                    "multi" => atoll_resp::request(request, &["SET", key(), value]),
                    _ => atoll_resp::request(request, &["GET", key()]),
                }
            }
            atoll_resp::request(request, &["EXEC"]);
            let of_each = if load == "multi" { 5 } else { bulk };
            5 + 5 * 9 + 4 + 5 * of_each
        }
        _ => return Err("the load is get, set, incr, mset, multi or multi-get".into()),
    })
}

/// Processor time of all threads but the first, which is the client.
fn cpu_ns() -> u64 {
    let client = std::process::id().to_string();
    cpu::nanos(|thread| thread != client)
}
