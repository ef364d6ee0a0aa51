//! What the way of a command over shards costs beside the engine alone: processor time of a SET.
//!
//! ```text
//!   engine   a batch of 16 records -> Database::write
//!   shards   16 SETs as they lie in a connection's input -> route, evaluate, one entry of the shard's
//!            consensus group -> log, apply -> 16 replies
//! ```
//!
//! ```sh
//! cargo run --release -p atoll-server --example cost_path -- 1000000
//! ```
//!
//! Both write the same keys and values of 64 bytes, a batch after the other, in the mode `interval`, to a
//! directory of their own. They take turns; each turn's ratio is printed, and the median. Processor time is
//! that of the whole process, with what the kernel spends on the disk; neither has a socket. The shards
//! also read what a key holds before they write it, which a SET has to; the engine is not asked to.
#![expect(
    clippy::disallowed_methods,
    reason = "a measurement asks the kernel for its threads' times"
)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_env::random::Prng;
use atoll_env::{block_on, os};
use atoll_kv::{Core, Node, NodeOptions, Tried};
use atoll_lsm::{Batch, Database, Durability, WriteOptions};
use atoll_mvcc::keys::slot;
use atoll_objects::{Ask, Moment, ObjectProgram};
use atoll_redis::Stats;
use atoll_redis::table;
use atoll_redis::task::{Consistency, Here, Manner};
use atoll_resp::{Limits, Protocol, RequestParser};

mod cpu;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Keys that are written at random; all are there before.
const KEYS: u64 = 20_000;
/// Bytes of a value.
const VALUE: usize = 64;
/// Commands of a batch.
const BATCH: usize = 16;
/// Turns of each.
const TURNS: usize = 5;
const MEMORY: usize = 256 << 20;

fn main() -> Result<()> {
    let commands: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 1_000_000,
    };
    let mut ratios = Vec::new();
    for turn in 1..=TURNS {
        let dir = tempfile::tempdir()?;
        let engine = of_engine(&dir.path().join("engine"), commands)?;
        let shards = of_shards(&dir.path().join("shards"), commands)?;
        let ratio = shards / engine;
        println!("turn {turn}: engine {engine:.0} ns, shards {shards:.0} ns a SET, {ratio:.2} x");
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median {:.2} x", ratios[TURNS / 2]);
    Ok(())
}

fn key(n: u64) -> String {
    format!("key:{n:012}")
}

/// Returns the nanoseconds of processor time of a record in a batch.
fn of_engine(path: &Path, commands: u64) -> Result<f64> {
    let database =
        Database::builder(path).memory(MEMORY).durability(Durability::Interval).open()?;
    let keyspace = database.keyspace("cost", Default::default())?;
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let value = [b'x'; VALUE];
    let mut prng = Prng::new(1);
    let write = |keys: &mut dyn FnMut() -> usize, names: &[String], batches: u64| -> Result<()> {
        for _ in 0..batches {
            let mut batch = Batch::new();
            for _ in 0..BATCH {
                batch.insert(&keyspace, names[keys()].as_bytes(), &value);
            }
            database.write(batch, WriteOptions::default())?;
        }
        Ok(())
    };
    let mut next = 0;
    let mut in_order = || {
        next += 1;
        next - 1
    };
    write(&mut in_order, &keys, KEYS / BATCH as u64)?;
    let batches = commands / BATCH as u64;
    let before = cpu_ns();
    write(&mut || prng.below(KEYS) as usize, &keys, batches)?;
    let after = cpu_ns();
    database.close()?;
    Ok((after - before) as f64 / (batches * BATCH as u64) as f64)
}

/// Returns the nanoseconds of processor time of a SET over a shard.
fn of_shards(path: &Path, commands: u64) -> Result<f64> {
    let mut options = NodeOptions::new(os::env()?, path);
    options.shards = 2;
    options.memory = MEMORY;
    options.engine.durability = Durability::Interval;
    let spent = Arc::new(AtomicU64::new(0));
    let batches = commands / BATCH as u64;
    let told = spent.clone();
    let script = move |core: Core<ObjectProgram>| {
        let told = told.clone();
        let running = async move {
            let keys: Vec<String> = (0..KEYS).map(key).collect();
            let mut prng = Prng::new(1);
            let mut client = Client::new(core);
            let mut next = 0;
            let mut in_order = || {
                next += 1;
                next - 1
            };
            client.write(&mut in_order, &keys, KEYS / BATCH as u64).await;
            let before = cpu_ns();
            client.write(&mut || prng.below(KEYS) as usize, &keys, batches).await;
            told.store(cpu_ns() - before, Ordering::Relaxed);
        };
        Box::pin(running) as _
    };
    block_on(async {
        let program = |_| ObjectProgram::new(Arc::new(Stats::default()));
        Node::start(options, program, script).await?.wait().await
    })?;
    Ok(spent.load(Ordering::Relaxed) as f64 / (batches * BATCH as u64) as f64)
}

/// A connection without its socket.
struct Client {
    core: Core<ObjectProgram>,
    parser: RequestParser,
    input: Vec<u8>,
    output: Vec<u8>,
    token: u64,
}

impl Client {
    fn new(core: Core<ObjectProgram>) -> Client {
        let parser = RequestParser::new();
        Client { core, parser, input: Vec::new(), output: Vec::new(), token: 0 }
    }

    async fn write(&mut self, keys: &mut dyn FnMut() -> usize, names: &[String], batches: u64) {
        let set =
            table::COMMANDS.iter().find(|command| command.name == "set").expect("it is a command");
        let value = "x".repeat(VALUE);
        let manner = Manner {
            protocol: Protocol::Resp2,
            touch: true,
            durability: atoll_redis::Durability::Interval,
            consistency: Consistency::default(),
        };
        let mut replies = Vec::new();
        for _ in 0..batches {
            self.core.refresh();
            self.output.clear();
            let mut waiting = 0;
            for _ in 0..BATCH {
                let name = &names[keys()];
                self.input.clear();
                atoll_resp::request(&mut self.input, &["SET", name, &value]);
                let parsed = self.parser.parse(&self.input, &Limits::CLIENT);
                let len = parsed.expect("a request").expect("a whole one");
                let request = self.parser.request(&self.input[..len]);
                let here = Here { command: set, request, db: 0 };
                let slot = slot(name.as_bytes());
                let mut ask = Ask::new(here, manner, slot, Moment::Now, &mut self.output);
                self.token += 1;
                match self.core.try_here(&mut ask, 1, self.token) {
                    Tried::Waits => waiting += 1,
                    Tried::Answered | Tried::Reply(_) => {}
                }
            }
            self.core.flush();
            while replies.len() < waiting {
                self.core.replied().await;
                self.core.take_replies(&mut replies);
            }
            replies.clear();
        }
    }
}

/// Processor time of all threads. None ends while it is measured.
fn cpu_ns() -> u64 {
    cpu::nanos(|_| true)
}
