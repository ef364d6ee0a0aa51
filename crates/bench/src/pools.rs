//! What the block cache costs with each strategy: a hit, and a miss that evicts.
//!
//! ```text
//! cargo run --release -p atoll-bench -- pools --memory 256MiB
//! perf stat -e dTLB-load-misses atoll-bench pools --strategy heap
//! ```
//!
//! Blocks are as tables make them: a little more than 4 KiB, and with `--mixed` of any length between
//! 1.2 and 4.2 KiB. Each strategy is measured in a process of its own; nanoseconds are processor
//! time, in which the kernel's work for page faults is included.
//!
//! # Columns
//!
//! - **open**: milliseconds until the pool is there; `pinned` faults all of its memory in here.
//! - **fill**: nanoseconds for a block that comes into a pool with room: a lookup that misses, a
//!   frame, a copy of its bytes, its insertion.
//! - **hit**: nanoseconds to look up a block that is there, at random, and to read eight words of it.
//! - **evict**: as fill, once the pool is full and each block that comes pushes one out.
//! - **faults/op**: page faults during that, by blocks.
//! - **blocks**: what the pool holds at the end.
//! - **RSS/budget**: resident memory that came with the pool, by its budget.

use std::hint::black_box;
use std::process::{Command, Stdio};

use atoll_env::random::Prng;
use atoll_lsm::PoolStrategy;
use atoll_lsm::pool::{self, Admit, BlockKey, Pool};
use rustix::time::{ClockId, clock_gettime};

use crate::{Failure, process, size};

/// What is asked for.
#[derive(clap::Args)]
pub struct Args {
    /// Budget of a pool.
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, default_value = "256MiB")]
    memory: u64,
    /// Blocks of any length between 1.2 and 4.2 KiB.
    #[arg(long)]
    mixed: bool,
    /// Measure one strategy only, in this process.
    #[arg(long, value_name = "STRATEGY")]
    strategy: Option<PoolStrategy>,
}

/// Measures all strategies, or the one that is asked for.
pub fn run(args: Args) -> Result<(), Failure> {
    if let Some(strategy) = args.strategy {
        return measure(strategy, usize::try_from(args.memory)?, args.mixed);
    }
    println!(
        "{:<8} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>10}  granted",
        "pool", "open ms", "fill ns", "hit ns", "evict ns", "faults/op", "blocks", "RSS/budget"
    );
    for strategy in PoolStrategy::ALL {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["pools", "--strategy", strategy.name()]);
        command.args(["--memory", &args.memory.to_string()]);
        command.args(args.mixed.then_some("--mixed"));
        let status = command.stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("measuring {} failed: {status}", strategy.name()).into());
        }
    }
    Ok(())
}

/// Lengths and keys of blocks, the same for all strategies.
struct Blocks {
    lengths: Vec<usize>,
    bytes: Vec<u8>,
}

impl Blocks {
    fn new(mixed: bool) -> Blocks {
        let mut prng = Prng::new(1);
        let (low, high) = if mixed { (1200, 4200) } else { (4096, 4300) };
        let lengths = (0..1021).map(|_| prng.range(low..high) as usize).collect();
        Blocks { lengths, bytes: (0..4300).map(|n| n as u8).collect() }
    }

    fn key(n: u64) -> BlockKey {
        BlockKey { file: 1 + n / 5000, offset: n % 5000 * 4200 }
    }

    /// Reads block `n` as a table does, where it is not in the pool.
    fn bring(&self, pool: &dyn Pool, n: u64) {
        let key = Blocks::key(n);
        if pool.get(key, Admit::Data).is_none() {
            let mut frame = pool.frame(self.lengths[n as usize % self.lengths.len()]);
            let len = frame.len();
            frame.copy_from_slice(&self.bytes[..len]);
            black_box(pool.insert(key, frame, Admit::Data));
        }
    }
}

fn measure(strategy: PoolStrategy, memory: usize, mixed: bool) -> Result<(), Failure> {
    let blocks = Blocks::new(mixed);
    let resident = process::resident().unwrap_or(0);
    let start = now();
    let pool = pool::open(strategy, memory);
    let open = now() - start;

    let start = now();
    let mut next = 0;
    while pool.stats().evictions == 0 {
        (0..100).for_each(|n| blocks.bring(&*pool, next + n));
        next += 100;
    }
    let fill = (now() - start) / next as f64;
    (0..next).for_each(|n| blocks.bring(&*pool, next + n));
    next *= 2;

    // What came last is in the pool, but for the tenth that proves itself.
    let held: Vec<BlockKey> = (next - next / 4..next)
        .map(Blocks::key)
        .filter(|&key| pool.get(key, Admit::No).is_some())
        .collect();
    let mut prng = Prng::new(2);
    let hits = 4 * next;
    let start = now();
    let mut sum = 0_u64;
    for _ in 0..hits {
        let draw = prng.next_u64() as usize;
        if let Some(block) = pool.get(held[draw % held.len()], Admit::Data) {
            let at = draw >> 32;
            sum += (0..8).map(|n| u64::from(block[(at + n * 509) % 1200])).sum::<u64>();
        }
    }
    black_box(sum);
    let hit = (now() - start) / hits as f64;

    let faults = process::page_faults().unwrap_or(0);
    let start = now();
    (0..2 * next).for_each(|n| blocks.bring(&*pool, next + n));
    let evict = (now() - start) / (2 * next) as f64;
    let faults = process::page_faults().unwrap_or(0).saturating_sub(faults);

    let (stats, placement) = (pool.stats(), pool.placement());
    let grown = process::resident().unwrap_or(0).saturating_sub(resident);
    println!(
        "{:<8} {:>9.2} {fill:>8.0} {hit:>8.0} {evict:>8.0} {:>9.4} {:>8} {:>10.2}  {}",
        strategy.name(),
        open / 1e6,
        faults as f64 / (2 * next) as f64,
        stats.blocks,
        grown as f64 / memory as f64,
        format_args!(
            "huge pages {}, lock {}, strayed {}, cleared {}",
            placement.huge_pages, placement.lock, stats.strayed, stats.cleared_runs
        ),
    );
    Ok(())
}

/// Returns the processor time of this thread, in nanoseconds.
fn now() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strategy_can_be_measured() {
        for strategy in PoolStrategy::ALL {
            measure(strategy, 4 << 20, strategy == PoolStrategy::Vm).unwrap();
        }
    }
}
