//! What a table costs: nanoseconds per record written, per cached lookup, per step of a walk.
//!
//! `cargo run --release -p atoll-lsm --example table [RECORDS]`

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use atoll_encoding::hash::hash64;
use atoll_env::disk::IoClass;
use atoll_env::{Env, IoTag, block_on, os};
use atoll_lsm::key::{InternalKey, Kind, SEQNO_MAX, Trailer};
use atoll_lsm::pool::{Admit, BlockKey, HeapPool, Pool};
use atoll_lsm::table::{
    Advance, Codec, Direction, Expected, ReadOptions, Seek, Table, TableIter, TableOptions,
    TableWriter,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let records = std::env::args().nth(1).map_or(Ok(500_000), |n| n.parse())?;
    let env = os::env()?;
    let path = |name: &str| {
        std::env::temp_dir().join(format!("atoll-table-{}-{name}", std::process::id()))
    };
    measure(&env, &path("raw"), Codec::None, records)?;
    measure(&env, &path("lz4"), Codec::Lz4, records)?;
    measure(&env, &path("zstd"), Codec::Zstd(3), records)
}

/// Key number `n`: 4 bytes of keyspace and 16 digits.
fn key(n: u64) -> Vec<u8> {
    format!("\0\0\0\x01{n:016}").into_bytes()
}

/// 100 bytes, half of them compressible.
fn value(n: u64) -> [u8; 100] {
    let mut value = [b'v'; 100];
    let mut x = n;
    for chunk in value[..50].chunks_mut(8) {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
    }
    value
}

fn measure(env: &Env, path: &Path, codec: Codec, records: u64) -> Outcome<()> {
    let now = || env.clock.now();
    let per = |start, n: u64| now().since(start).as_nanos() as f64 / n as f64;
    let start = now();
    let options = TableOptions { codec, ..TableOptions::default() };
    let meta = block_on(async {
        let disk = &*env.disk;
        let mut writer = TableWriter::create(disk, path, 1, 2, options, IoClass::Flush).await?;
        for n in 0..records {
            let trailer = Trailer::new(n, Kind::Value);
            writer.add(InternalKey::new(&key(n * 2), trailer), &value(n))?;
            if writer.is_full() {
                writer.write_out().await?;
            }
        }
        writer.finish().await
    })?;
    println!("{codec:?}: {} bytes", meta.size);
    println!("  write            {:7.1} ns/record", per(start, records));

    let pool = Arc::new(HeapPool::new(1 << 30));
    let expected = Expected { size: meta.size, salt: meta.salt, base: 0 };
    let table = block_on(Table::open(&*env.disk, path, 1, expected, pool.clone()))?;
    println!("  memory when open {:7} bytes", table.memory());
    for (round, options) in
        [("cold, compaction", ReadOptions::COMPACTION), ("cold, scan", ReadOptions::SCAN)]
    {
        let start = now();
        walk(&table, options, Direction::Forward, records)?;
        println!("  {round:16} {:7.1} ns/record", per(start, records));
    }
    for direction in [Direction::Forward, Direction::Backward] {
        let start = now();
        walk(&table, ReadOptions::SCAN, direction, records)?;
        println!("  cached {direction:9?} {:7.1} ns/record", per(start, records));
    }
    let lookups = 2 * records;
    let keys: Vec<_> = (0..lookups)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % records)
        .map(|n| (key(n * 2), key(n * 2 + 1)))
        .collect();
    for round in ["first", "cached"] {
        let start = now();
        for (present, _) in &keys {
            let found = block_on(table.get(present, SEQNO_MAX, hash64(present)))?;
            black_box(found.ok_or("a key was not found")?);
        }
        println!("  get, {round:11} {:7.1} ns", per(start, lookups));
    }
    let start = now();
    for (_, absent) in &keys {
        black_box(block_on(table.get(absent, SEQNO_MAX, hash64(absent)))?);
    }
    println!("  get, absent      {:7.1} ns", per(start, lookups));
    let start = now();
    let mut iter = TableIter::new(table.clone(), ReadOptions::SCAN);
    for (present, _) in &keys {
        block_on(iter.seek(InternalKey::new(present, Trailer::NEWEST)))?;
        black_box(iter.valid());
    }
    println!("  seek, cached     {:7.1} ns", per(start, lookups));
    let offset = 0;
    let start = now();
    for _ in 0..lookups {
        black_box(pool.get(BlockKey { file: 1, offset }, Admit::Data));
    }
    println!("  pool, same block {:7.1} ns", per(start, lookups));
    let start = now();
    let verified = block_on(table.verify())?;
    println!("  verify           {:7.1} ns/record", per(start, verified.entries));
    let tag = IoTag::new(IoClass::Scrub, "example clean-up");
    block_on(env.disk.remove(tag, path))?;
    Ok(())
}

fn walk(
    table: &Arc<Table>,
    options: ReadOptions,
    direction: Direction,
    records: u64,
) -> Outcome<()> {
    let mut iter = TableIter::new(table.clone(), options);
    let start = if direction == Direction::Forward { Seek::First } else { Seek::Last };
    let mut step = iter.position(start);
    let (mut seen, mut bytes) = (0, 0);
    loop {
        if step == Advance::NeedsBlock {
            block_on(iter.load())?;
        }
        if !iter.valid() {
            break;
        }
        seen += 1;
        bytes += iter.key().user_key.len() + iter.value().len();
        step = iter.advance(direction);
    }
    if seen != records || bytes as u64 != records * 120 {
        return Err(format!("walked {seen} of {records} records").into());
    }
    Ok(())
}
