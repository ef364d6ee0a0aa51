//! What a write and a read cost an owner of log and tree, beside the database's own.
//!
//! ```text
//! cargo run --release -p atoll-lsm --example driven [batches [reads]]
//! ```
//!
//! Batches of 16 records with keys of 16 and values of 64 bytes, in random order over a million
//! keys, in buffered mode: handed to the kernel and applied. Reads are of random keys. Times are of the
//! calling thread; on a busy machine those on the processor say more.
#![expect(clippy::print_stdout, reason = "the report")]

use std::path::Path;

use atoll_env::random::Prng;
use atoll_env::{Env, block_on, os};
use atoll_lsm::driven::{self, EntryId, OpenOptions, Stamp, Writes};
use atoll_lsm::{Batch, Database, Durability, KeyspaceOptions, Options, Result, WriteOptions};

const RECORDS: usize = 16;
const KEYS: u64 = 1 << 20;

fn options(env: &Env) -> Options {
    let mut options = Options::new(env.clone());
    options.durability = Durability::Buffered;
    options
}

/// Fills `key` with one of [`KEYS`] keys.
fn draw(prng: &mut Prng, key: &mut [u8; 16]) {
    key[8..].copy_from_slice(&prng.below(KEYS).to_be_bytes());
}

/// Returns how long the calling thread has been on a processor, in nanoseconds; 0 where the system
/// does not say.
fn on_processor() -> u64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    told.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// Prints what each of `count` steps took.
fn report(env: &Env, what: &str, count: usize, mut run: impl FnMut() -> Result<()>) -> Result<()> {
    let (started, before) = (env.clock.now(), on_processor());
    run()?;
    let took = env.clock.now().since(started).as_nanos() as f64 / count as f64;
    let busy = (on_processor() - before) as f64 / count as f64;
    println!("{what:<44} {took:>8.0} ns, on the processor {busy:>7.0} ns");
    Ok(())
}

fn database(env: &Env, dir: &Path, (batches, reads): (usize, usize)) -> Result<()> {
    let db = Database::builder(dir.join("db")).options(options(env)).open()?;
    let keyspace = db.keyspace("k", KeyspaceOptions::default())?;
    let (mut prng, mut key, value) = (Prng::new(1), *b"key:\0\0\0\0\0\0\0\0\0\0\0\0", [7; 64]);
    report(env, "Database::write, per record", batches * RECORDS, || {
        for _ in 0..batches {
            let mut batch = Batch::new();
            for _ in 0..RECORDS {
                draw(&mut prng, &mut key);
                batch.insert(&keyspace, &key, &value);
            }
            db.write(batch, WriteOptions::durability(Durability::Buffered))?;
        }
        Ok(())
    })?;
    for place in ["memory and tables", "tables"] {
        report(env, &format!("Keyspace::get, {place}"), reads, || {
            block_on(async {
                for _ in 0..reads {
                    draw(&mut prng, &mut key);
                    std::hint::black_box(keyspace.get_async(&key).await?);
                }
                Ok(())
            })
        })?;
        db.compact()?;
    }
    db.close()
}

fn store(env: &Env, dir: &Path, (batches, reads): (usize, usize), versions: bool) -> Result<()> {
    let name = if versions { "versions" } else { "plain" };
    let options = OpenOptions { options: options(env) };
    let (mut driver, tree) = block_on(driven::open(dir.join(name), options))?;
    let (mut prng, mut key, value) = (Prng::new(1), *b"key:\0\0\0\0\0\0\0\0\0\0\0\0", [7; 64]);
    let mut writes = Writes::new();
    report(env, &format!("Driver, {name}, per record"), batches * RECORDS, || {
        block_on(async {
            for index in 1..=batches as u64 {
                writes.clear();
                for _ in 0..RECORDS {
                    draw(&mut prng, &mut key);
                    if versions {
                        writes.insert_version(&key, Stamp::LATER, &[&value]);
                    } else {
                        writes.insert(&key, &[&value]);
                    }
                }
                writes.set_stamp(index);
                let bytes = writes.bytes();
                driver.reserve(writes.arena_bytes(), &[bytes.len()]).await?;
                let position = driver.append(EntryId { group: 1, index, term: 1 }, &[bytes])?;
                driver.write().await?;
                driver.apply(1, index, position, bytes).await?;
                driver.chores().await?;
            }
            Ok(())
        })
    })?;
    let last = batches as u64;
    tree.set_horizon(last / 2);
    for place in ["memory and tables", "tables"] {
        for at in if versions { vec![u64::MAX, last - last / 8] } else { vec![0] } {
            let what = match (versions, at) {
                (false, _) => format!("Tree::get, {place}"),
                (true, u64::MAX) => format!("Tree::get_version, newest, {place}"),
                (true, _) => format!("Tree::get_version, 1/8 back, {place}"),
            };
            report(env, &what, reads, || {
                block_on(async {
                    for _ in 0..reads {
                        draw(&mut prng, &mut key);
                        if versions {
                            std::hint::black_box(tree.get_version(&key, at).await?);
                        } else {
                            std::hint::black_box(tree.get(&key).await?);
                        }
                    }
                    Ok(())
                })
            })?;
        }
        block_on(driver.attend(tree.compact()))?;
    }
    block_on(driver.close())
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let argument = |n| std::env::args().nth(n).map(|n| n.parse::<usize>()).transpose();
    let size = (argument(1)?.unwrap_or(100_000), argument(2)?.unwrap_or(1_000_000));
    let env = os::env()?;
    let dir = tempfile::tempdir()?;
    database(&env, dir.path(), size)?;
    store(&env, dir.path(), size, false)?;
    store(&env, dir.path(), size, true)?;
    Ok(())
}
